//! UndoShareKey: takes the accounts that ShareKey was to add out of the key policies again.

use ami_share_core::{Error, Hub, hub::Actions, share::KeyChange};
use aws_sdk_kms::Client;

use crate::{Input, Output, not_yet_visible, read, write};

pub const UNDO_ACTIONS: Actions =
    Actions { source: &["kms:GetKeyPolicy", "kms:PutKeyPolicy"], target: &[], launcher: &[] };

/// How often a policy without the accounts is looked at again before it is believed: where ShareKey
/// failed right after a write, nobody was told which policy that replaced.
const LOOKS: u32 = 2;

/// Writes each policy that still names one of the accounts, without them.
///
/// # Errors
/// As [`crate::share_key`]: a policy that cannot be written keeps its accounts, and is reported.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn undo_share_key(hub: &Hub, input: Input) -> Result<Output, Error> {
    let mut written = Vec::new();
    let mut superseded = input.superseded;
    if input.keys.iter().all(|change| change.account_ids.is_empty()) {
        return Ok(Output { written, superseded });
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, UNDO_ACTIONS.source).await?;
    let kms = Client::new(&config);
    for KeyChange { key_arn, account_ids } in input.keys.iter().filter(|change| !change.account_ids.is_empty()) {
        let policy = read(&kms, key_arn).await?;
        superseded.check(key_arn, &policy, input.retry)?;
        let Some(reduced) = policy.without(account_ids) else {
            if input.retry < LOOKS {
                return Err(Error::NotYetVisible {
                    what: format!("what was just written to the policy of key {key_arn}, if anything was"),
                    account: key_arn.account_id(),
                    call: "kms:GetKeyPolicy",
                });
            }
            if let Some(before) = policy.with(account_ids) {
                superseded.replace(key_arn, &before, &policy);
            }
            continue;
        };
        write(&kms, key_arn, &reduced).await?;
        superseded.replace(key_arn, &policy, &reduced);
        tracing::info!(key = %key_arn, accounts = account_ids.len(), "key policy written");
        if read(&kms, key_arn).await?.without(account_ids).is_some() {
            return Err(not_yet_visible(key_arn));
        }
        written.push(key_arn.clone());
    }
    Ok(Output { written, superseded })
}
