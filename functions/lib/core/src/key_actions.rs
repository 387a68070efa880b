//! The actions on keys that EC2 needs in a caller's name.

use crate::{aws::ALLOWED_IMAGES, refusal::DECODE};

/// What EC2 calls in the launcher's name on a key that a snapshot of the image is encrypted with ("How
/// Amazon EBS encryption works" and "Requirements", EBS user guide).
pub const SOURCE_KEY_ACTIONS: [&str; 5] =
    ["kms:DescribeKey", "kms:CreateGrant", "kms:Decrypt", "kms:ReEncryptFrom", "kms:GenerateDataKeyWithoutPlaintext"];

/// The same on the target's own key, which volumes are put under and copies are read from.
pub const OWN_KEY_ACTIONS: [&str; 6] = {
    let [describe, grant, decrypt, from, generate] = SOURCE_KEY_ACTIONS;
    [describe, grant, decrypt, from, "kms:ReEncryptTo", generate]
};

/// The launcher's actions for `call`, which makes something of a shared image's encrypted snapshots and tags it, and asks why
/// where it is refused.
pub const fn making_encrypted(call: &'static str) -> [&'static str; 10] {
    let [describe, grant, decrypt, from, to, generate] = OWN_KEY_ACTIONS;
    [call, "ec2:CreateTags", describe, grant, decrypt, from, to, generate, DECODE, ALLOWED_IMAGES]
}
