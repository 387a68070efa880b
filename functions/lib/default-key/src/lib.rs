//! The key that new volumes come under where nobody names one.
//!
//! What is launched from an encrypted image of another account comes under the default EBS key of the launching account and
//! Region ("Use encryption with EBS-backed AMIs", EC2 user guide). So does what would not be encrypted, where encryption by
//! default is on ("Amazon EBS encryption examples" with its table of outcomes, EBS user guide).

#![warn(missing_docs)]

use ami_share_core::{
    Error, aws,
    ids::{AccountId, KeyArn},
    share::{Image, Volume},
};
use aws_sdk_ec2::Client;

/// With the next, what [`find`] calls in the account.
pub const DEFAULT_KEY: &str = "ec2:GetEbsDefaultKmsKeyId";
/// The other.
pub const BY_DEFAULT: &str = "ec2:GetEbsEncryptionByDefault";

/// AWS's own key for EBS, which is the default until an account sets another ("GetEbsDefaultKmsKeyId", EC2 API reference).
/// Its policy lets everybody in the account use it through EC2.
pub const AWS_MANAGED: &str = "alias/aws/ebs";

/// An account's default EBS key, as far as volumes of an image come under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultKey {
    /// Nothing where it is [`AWS_MANAGED`], or where no volume comes under it.
    pub key: Option<KeyArn>,
    /// Whether what is not encrypted in the image comes under it too.
    pub encrypts_all: bool,
}

impl DefaultKey {
    /// Whether a volume comes under it that is launched from another account's image without a word of its encryption:
    /// one of `shared`, or one that starts empty.
    pub fn covers(&self, shared: Option<&Volume>) -> bool {
        self.encrypts_all || shared.is_some_and(|volume| volume.key_arn.is_some())
    }
}

/// The default EBS key of `account`, as far as volumes of the shared `image` come under it. Asks no more than the image
/// needs.
///
/// # Errors
/// [`Error::KeyNotUsable`] for a default that is no key; what AWS answers.
pub async fn find(ec2: &Client, account: &AccountId, image: &Image) -> Result<DefaultKey, Error> {
    let plain = !image.empty_volumes.is_empty() || !image.unencrypted().is_empty();
    let encrypts_all = plain && {
        let answer = ec2.get_ebs_encryption_by_default().send().await;
        let answer = answer.map_err(|error| aws::failure(account, BY_DEFAULT, error))?;
        answer.ebs_encryption_by_default().unwrap_or_default()
    };
    if !encrypts_all && image.keys().is_empty() {
        return Ok(DefaultKey { key: None, encrypts_all });
    }
    let answer = ec2.get_ebs_default_kms_key_id().send().await;
    let answer = answer.map_err(|error| aws::failure(account, DEFAULT_KEY, error))?;
    let key = match answer.kms_key_id().unwrap_or(AWS_MANAGED) {
        own if own.ends_with(AWS_MANAGED) => None,
        set => Some(KeyArn::parse(set).map_err(|rule| Error::KeyNotUsable {
            key: set.to_owned(),
            reason: format!("account {account} has it as its default EBS key, which must be {rule} ({DEFAULT_KEY})"),
        })?),
    };
    Ok(DefaultKey { key, encrypts_all })
}
