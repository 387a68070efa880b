//! The policies of the keys, as they are and as UndoShareKey would write them.

use std::collections::BTreeMap;

use ami_share_core::{
    Error,
    ids::{AccountId, KeyArn},
    key_policy::KeyPolicy,
    take_back::TakeBack,
};
use aws_sdk_kms::Client;

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
        let mut text = ami_share_key_policies::read(kms, key).await?;
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
