//! The policies of the keys, as they are and as UndoShareKey would write them.

use std::collections::BTreeMap;

use ami_share_core::{
    Error, aws,
    ids::{AccountId, KeyArn},
    key_policy::{self, KeyPolicy},
    take_back::TakeBack,
};
use aws_sdk_kms::Client;

pub(crate) const READ: &str = "kms:GetKeyPolicy";

/// A key's policy as the rounds before leave it, and as this one would.
pub(crate) struct PolicyChange {
    pub(crate) key: KeyArn,
    pub(crate) before: KeyPolicy,
    /// As KMS gives it, or as the rounds before would have written it.
    pub(crate) text: String,
    /// Nothing where it would not be written.
    pub(crate) after: Option<KeyPolicy>,
}

/// Reads them in the source account. `lost` are the accounts that the rounds before take out of each.
pub(crate) async fn read(
    kms: &Client,
    take_back: &TakeBack,
    lost: &BTreeMap<KeyArn, Vec<AccountId>>,
) -> Result<Vec<PolicyChange>, Error> {
    let mut policies = Vec::new();
    for change in &take_back.key_changes {
        let key = &change.key_arn;
        let answer = kms
            .get_key_policy()
            .key_id(key.as_str())
            .policy_name("default")
            .send()
            .await
            .map_err(|error| key_policy::explained(key, aws::failure(&take_back.source.account_id, READ, error)))?;
        let mut text = answer.policy.unwrap_or_default();
        let mut before = KeyPolicy::parse(key, &text)?;
        if let Some(less) = lost.get(key).and_then(|accounts| before.without(accounts)) {
            text = less.to_text()?;
            before = less;
        }
        let after = before.without(&change.account_ids);
        policies.push(PolicyChange { key: key.clone(), before, text, after });
    }
    Ok(policies)
}
