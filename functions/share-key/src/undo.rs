//! UndoShareKey: takes the accounts that ShareKey was to add out of the key policies again.

use ami_share_core::{Error, Hub, hub::Actions, ids::KeyArn, share::KeyChange};
use aws_sdk_kms::Client;
use serde::Serialize;

use crate::{Input, not_yet_visible, read, write};

pub const UNDO_ACTIONS: Actions =
    Actions { source: &["kms:GetKeyPolicy", "kms:PutKeyPolicy"], target: &[], launcher: &[] };

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UndoOutput {
    /// Keys whose policy was written.
    pub written: Vec<KeyArn>,
}

/// Writes each policy that still names one of the accounts, without them. A policy that cannot be
/// written does not keep the others from being tried.
///
/// # Errors
/// As [`crate::share_key`]: a policy that cannot be written keeps its accounts, and is reported.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn undo_share_key(hub: &Hub, input: Input) -> Result<UndoOutput, Error> {
    let (mut written, mut errors) = (Vec::new(), Vec::new());
    if input.keys.iter().all(|change| change.account_ids.is_empty()) {
        return Ok(UndoOutput { written });
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, UNDO_ACTIONS.source).await?;
    let kms = Client::new(&config);
    for change in &input.keys {
        match take_back(&kms, change).await {
            Ok(true) => written.push(change.key_arn.clone()),
            Ok(false) => {}
            Err(error) => errors.push(error),
        }
    }
    Error::all_of(errors)?;
    Ok(UndoOutput { written })
}

/// Whether there was something to take back.
async fn take_back(kms: &Client, KeyChange { key_arn, account_ids }: &KeyChange) -> Result<bool, Error> {
    let Some(reduced) = read(kms, key_arn).await?.without(account_ids) else { return Ok(false) };
    write(kms, key_arn, &reduced).await?;
    tracing::info!(key = %key_arn, accounts = account_ids.len(), "key policy written");
    match read(kms, key_arn).await?.without(account_ids) {
        Some(_) => Err(not_yet_visible(key_arn)),
        None => Ok(true),
    }
}
