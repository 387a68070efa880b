//! The policies of the keys, as they are and as ShareKey would write them.

use ami_share_core::{
    Error, aws,
    key_policy::{self, KeyPolicy},
    plan::PlannedPolicies,
    share::{KeyChange, Resolution},
};
use aws_sdk_kms::Client;

pub(crate) const READ: &str = "kms:GetKeyPolicy";

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
        let key = &change.key_arn;
        let answer =
            kms.get_key_policy().key_id(key.as_str()).policy_name("default").send().await.map_err(|error| {
                key_policy::explained(key, aws::failure(&resolution.source.account_id, READ, error))
            })?;
        policies.push(PolicyChange::new(change, answer.policy.unwrap_or_default())?);
    }
    Ok(policies)
}

impl<'r> PolicyChange<'r> {
    pub(crate) fn new(change: &'r KeyChange, text: String) -> Result<Self, Error> {
        let before = KeyPolicy::parse(&change.key_arn, &text)?;
        let after = before.with(&change.account_ids);
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
