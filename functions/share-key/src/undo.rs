//! UndoShareKey: takes the accounts that ShareKey was to add out of the key policies again.

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::ExecutionName,
    share::{KeyChange, Source},
};
use serde::Deserialize;

use crate::{Output, Policies, not_yet_visible};

pub const UNDO_ACTIONS: Actions =
    Actions { source: &["kms:GetKeyPolicy", "kms:PutKeyPolicy"], target: &[], launcher: &[] };

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoInput {
    pub execution: ExecutionName,
    pub source: Source,
    /// The accounts to take out of each key's policy.
    pub keys: Vec<KeyChange>,
}

/// Writes each policy that still names one of the accounts, without them, under the lock of the source account and
/// Region. One that fails does not keep the others from being tried.
///
/// # Errors
/// As [`crate::share_key`]: a policy that cannot be written keeps its accounts, and is reported.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn undo_share_key(hub: &Hub, input: UndoInput) -> Result<Output, Error> {
    let changes: Vec<&KeyChange> = input.keys.iter().filter(|change| !change.account_ids.is_empty()).collect();
    let mut written = Vec::new();
    if changes.is_empty() {
        return Ok(Output { written });
    }
    let mut policies = Policies::open(hub, &input.execution, &input.source, UNDO_ACTIONS).await?;
    let mut errors = Vec::new();
    for change in changes {
        match take_back(&mut policies, change).await {
            Ok(true) => written.push(change.key_arn.clone()),
            Ok(false) => {}
            Err(error) => errors.push(error),
        }
    }
    policies.lock.give_back().await;
    Error::all_of(errors)?;
    Ok(Output { written })
}

/// Whether the key's policy was written.
pub(crate) async fn take_back(policies: &mut Policies<'_>, change: &KeyChange) -> Result<bool, Error> {
    let KeyChange { key_arn, account_ids } = change;
    let policy = policies.read(key_arn).await?;
    let Some(reduced) = policy.without(account_ids) else { return Ok(false) };
    policies.write(key_arn, &policy, &reduced).await?;
    tracing::info!(key = %key_arn, accounts = account_ids.len(), "key policy written");
    if policies.read(key_arn).await?.without(account_ids).is_some() {
        return Err(not_yet_visible(key_arn));
    }
    Ok(true)
}
