//! Why a launch or a copy failed in a target: which key, and which of launch permission, snapshot
//! permission, key policy, key grant, IAM policy, key state or capacity is the likely cause.
//!
//! EC2 says little more than `Client.InternalError`. So both accounts are asked for everything that
//! the attempt needed, and each answer is judged. A question that gets no answer is named, and never
//! hides what the others found.

#![warn(missing_docs)]

mod attempt;
mod findings;
mod key_access;
mod source;
mod target;

use ami_share_core::{
    hub::Actions,
    ids::{ImageId, KeyArn, PrincipalArn},
};
use ami_share_default_key::{BY_DEFAULT, DEFAULT_KEY};
use ami_share_key_grants::{LIST_GRANTS, LIST_TAGS};
use ami_share_key_policies::GET_KEY_POLICY;
use aws_config::SdkConfig;

use findings::Findings;

pub use attempt::Attempt;
pub use target::{is_refused_by_organization, refusal};

/// What [`explain_launch`] calls.
pub const LAUNCH_ACTIONS: Actions = Actions {
    source_reader: &["ec2:DescribeImageAttribute", "kms:DescribeKey", "kms:GetKeyPolicy", LIST_GRANTS],
    target: &[DEFAULT_KEY, BY_DEFAULT, "iam:SimulatePrincipalPolicy", "kms:DescribeKey", GET_KEY_POLICY, LIST_TAGS],
    ..Actions::NONE
};

/// What [`explain_copy`] calls. A copy is under the key that was asked for.
pub const COPY_ACTIONS: Actions = Actions {
    source_reader: &[
        "ec2:DescribeImageAttribute",
        source::SNAPSHOT_ATTRIBUTE,
        "kms:DescribeKey",
        "kms:GetKeyPolicy",
        LIST_GRANTS,
    ],
    target: &["iam:SimulatePrincipalPolicy", "kms:DescribeKey", GET_KEY_POLICY, LIST_TAGS],
    ..Actions::NONE
};

/// What keeps `launcher` from making volumes under a key of its own account, as the role of the target in `config` sees
/// it. What that cannot see is left out: the proof will show it.
pub async fn own_key_problems(config: &SdkConfig, launcher: &PrincipalArn, key: &KeyArn) -> Vec<String> {
    target::own_key_findings(config, launcher, key).await.causes
}

/// Why an instance of `launched` (the image, or the target's own copy of it) died.
///
/// `state_reason` is what EC2 says, such as `Client.InternalError: Client error on launch`.
pub async fn explain_launch(attempt: Attempt<'_>, launched: &ImageId, state_reason: &str) -> String {
    if let Some(cause) = not_about_sharing(state_reason) {
        return cause.to_owned();
    }
    let mut findings = Findings::default();
    if *launched == attempt.image.image_id {
        source::examine(attempt, LAUNCH_ACTIONS, &mut findings).await;
    }
    target::examine(attempt, LAUNCH_ACTIONS, *launched == attempt.image.image_id, &mut findings).await;
    findings.sentence(attempt)
}

/// Whether an instance that died of that may live when it is launched a little later, with nothing changed but time: EC2
/// says the same of a key that is closed and of one that was opened a moment ago.
pub fn may_pass(state_reason: &str) -> bool {
    let of_a_key = ["Client.InternalError", "Client.InvalidKMSKey."].iter().any(|code| state_reason.contains(code));
    of_a_key && not_about_sharing(state_reason).is_none()
}

/// Why a copy of the image failed.
pub async fn explain_copy(attempt: Attempt<'_>) -> String {
    let mut findings = Findings::default();
    source::examine(attempt, COPY_ACTIONS, &mut findings).await;
    target::examine(attempt, COPY_ACTIONS, true, &mut findings).await;
    findings.sentence(attempt)
}

/// The state reasons that say by themselves what happened ("StateReason" in the EC2 API reference).
fn not_about_sharing(state_reason: &str) -> Option<&'static str> {
    const CAUSES: [(&str, &str); 10] = [
        ("InsufficientInstanceCapacity", CAPACITY),
        ("InsufficientCapacity", CAPACITY),
        ("InsufficientHostCapacity", CAPACITY),
        (
            "VolumeLimitExceeded",
            "a quota, not the share: the target has as many volumes, or as much storage, as it may",
        ),
        ("InstanceLimitExceeded", "a quota, not the share: the target has as many instances as it may"),
        ("UserInitiatedShutdown", "somebody in the target stopped or terminated it; the share is not the cause"),
        ("InstanceInitiatedShutdown", "the image booted and shut itself down; the share is not the cause"),
        ("SpotInstance", "EC2 took a Spot instance back; the share is not the cause"),
        ("ScheduledStop", "EC2 stopped it for scheduled maintenance; the share is not the cause"),
        ("InvalidSnapshot.NotFound", "a snapshot of the image is gone; make the image again"),
    ];
    const CAPACITY: &str = "capacity, not the share: EC2 has no room for this instance type there now; \
                            ask for another launch.instanceType or launch.subnetId, or start the execution later";
    CAUSES.iter().find(|(code, _)| state_reason.contains(code)).map(|(_, cause)| *cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_quota_and_operators_are_told_from_the_share() {
        for (reason, word) in [
            ("Server.InsufficientInstanceCapacity: Insufficient capacity", "capacity"),
            ("Client.VolumeLimitExceeded: Volume limit exceeded", "quota"),
            ("Client.UserInitiatedShutdown: User initiated shutdown", "somebody"),
            ("Client.InstanceInitiatedShutdown: Instance initiated shutdown", "shut itself down"),
        ] {
            assert!(not_about_sharing(reason).is_some_and(|cause| cause.contains(word)), "{reason}");
        }
    }

    #[test]
    fn only_what_may_be_a_key_may_pass() {
        assert!(may_pass("Client.InternalError: Client error on launch"));
        assert!(may_pass("Client.InvalidKMSKey.InvalidState: The KMS key provided is in an incorrect state"));
        assert!(!may_pass("Client.InternalError: Client.VolumeLimitExceeded: Volume limit exceeded"));
        assert!(!may_pass("Server.InternalError: Internal error on launch"));
        assert!(!may_pass("EC2 gives no reason"));
    }

    #[test]
    fn what_may_be_a_key_is_looked_into() {
        for reason in [
            "Client.InternalError: Client error on launch",
            "Client.InternalError: Client.InvalidKMSKey.InvalidState: The KMS key provided is in an incorrect state",
            "Client.InvalidKMSKey.InvalidState",
            "unknown",
        ] {
            assert_eq!(not_about_sharing(reason), None, "{reason}");
        }
    }
}
