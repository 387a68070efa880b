//! UndoShareKey: takes the accounts that ShareKey was to add out of the key policies again.

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::ExecutionName,
    share::{KeyChange, Source},
};
use aws_sdk_kms::Client;
use serde::Deserialize;

use crate::{Lock, Output, Policies, Superseded, not_yet_visible};

pub const UNDO_ACTIONS: Actions =
    Actions { source: &["kms:GetKeyPolicy", "kms:PutKeyPolicy"], target: &[], launcher: &[] };

/// How often a policy without the accounts is looked at again before it is believed: where ShareKey
/// failed right after a write, nobody was told which policy that replaced.
const LOOKS: u32 = 2;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoInput {
    pub execution: ExecutionName,
    pub source: Source,
    /// The accounts to take out of each key's policy.
    pub keys: Vec<KeyChange>,
    /// As the last execution that held the lock left it.
    pub superseded: Superseded,
    /// How often the state was tried before.
    pub retry: u32,
    pub lock: Lock,
    /// How often the execution was redriven.
    pub redrive: u32,
}

/// Writes each policy that still names one of the accounts, without them. One that fails does not
/// keep the others from being tried.
///
/// # Errors
/// As [`crate::share_key`]: a policy that cannot be written keeps its accounts, and is reported.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn undo_share_key(hub: &Hub, input: UndoInput) -> Result<Output, Error> {
    let mut written = Vec::new();
    let mut superseded = input.superseded;
    if input.keys.iter().all(|change| change.account_ids.is_empty()) {
        return Ok(Output { written, superseded });
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, UNDO_ACTIONS).await?;
    let policies = Policies { kms: Client::new(&config), lock: input.lock.held(source, input.redrive)? };
    let mut errors = Vec::new();
    for change in input.keys.iter().filter(|change| !change.account_ids.is_empty()) {
        match take_back(&policies, change, input.retry, &mut superseded).await {
            Ok(true) => written.push(change.key_arn.clone()),
            Ok(false) => {}
            Err(error) => errors.push(error),
        }
    }
    Error::all_of(errors)?;
    Ok(Output { written, superseded })
}

/// Whether the key's policy was written.
pub(crate) async fn take_back(
    policies: &Policies,
    change: &KeyChange,
    retry: u32,
    superseded: &mut Superseded,
) -> Result<bool, Error> {
    let KeyChange { key_arn, account_ids } = change;
    let policy = policies.read(key_arn).await?;
    superseded.check(key_arn, &policy, retry)?;
    let Some(reduced) = policy.without(account_ids) else {
        if retry < LOOKS {
            return Err(Error::NotYetVisible {
                what: format!("what was just written to the policy of key {key_arn}, if anything was"),
                account: key_arn.account_id(),
                call: "kms:GetKeyPolicy",
            });
        }
        if let Some(before) = policy.with(account_ids) {
            superseded.replace(key_arn, &before, &policy);
        }
        return Ok(false);
    };
    policies.write(key_arn, &reduced).await?;
    superseded.replace(key_arn, &policy, &reduced);
    tracing::info!(key = %key_arn, accounts = account_ids.len(), "key policy written");
    if policies.read(key_arn).await?.without(account_ids).is_some() {
        return Err(not_yet_visible(key_arn));
    }
    Ok(true)
}
