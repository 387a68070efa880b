//! The policies of the keys, as they are and as ShareKey would write them.

use ami_share_core::{
    Error,
    ids::KeyArn,
    key_policy::KeyPolicy,
    plan::PlannedPolicies,
    share::{KeyChange, Resolution},
};
use ami_share_key_grants::is_shareable;
use aws_sdk_kms::Client;

/// A key's policy as it is, and as ShareKey would write it.
pub(crate) struct PolicyChange<'r> {
    pub(crate) change: &'r KeyChange,
    /// As KMS gives it.
    pub(crate) text: String,
    pub(crate) before: KeyPolicy,
    /// Nothing where it would not be written.
    pub(crate) after: Option<KeyPolicy>,
}

/// Reads them in the source account.
pub(crate) async fn read<'r>(kms: &Client, resolution: &'r Resolution) -> Result<Vec<PolicyChange<'r>>, Error> {
    let mut policies = Vec::new();
    for change in &resolution.key_changes {
        policies.push(PolicyChange::new(change, ami_share_key_policies::read(kms, &change.key_arn).await?)?);
    }
    Ok(policies)
}

/// The keys that would be changed and do not have the tag of keys that may be shared. One whose tags may not be read is
/// none of them: what is refused says so.
pub(crate) async fn untagged(kms: &Client, resolution: &Resolution) -> Result<Vec<KeyArn>, Error> {
    let mut untagged = Vec::new();
    for change in resolution.key_changes.iter().chain(&resolution.grant_changes) {
        match is_shareable(kms, &change.key_arn).await {
            Ok(false) => untagged.push(change.key_arn.clone()),
            Ok(true) | Err(Error::AccessDenied { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(untagged)
}

impl<'r> PolicyChange<'r> {
    pub(crate) fn new(change: &'r KeyChange, text: String) -> Result<Self, Error> {
        let before = KeyPolicy::parse(&change.key_arn, &text)?;
        let after = before.with(&change.account_ids)?;
        Ok(Self { change, text, before, after })
    }
}

/// What ShareKey is to find, and to leave.
pub(crate) fn planned(policies: &[PolicyChange<'_>]) -> PlannedPolicies {
    let mut planned = PlannedPolicies::default();
    for policy in policies {
        planned.add(&policy.change.key_arn, &policy.before, policy.after.as_ref().unwrap_or(&policy.before));
    }
    planned
}
