//! UndoShareKey: takes the accounts that ShareKey was to add out of the key policies again.

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{ExecutionName, KeyArn},
    key_policy::KeyPolicy,
    share::{KeyChange, Source},
    take_back::{Taken, Undone},
};
use ami_share_key_policies::GET_KEY_POLICY;
use serde::Deserialize;

use crate::policies::{PUT_KEY_POLICY, Policies, not_yet_visible};

pub const UNDO_ACTIONS: Actions = Actions { source: &[GET_KEY_POLICY, PUT_KEY_POLICY], ..Actions::NONE };

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
pub async fn undo_share_key(hub: &Hub, input: UndoInput) -> Result<Undone, Error> {
    let changes: Vec<&KeyChange> = input.keys.iter().filter(|change| is_something(change)).collect();
    if changes.is_empty() {
        return Ok(Undone::default());
    }
    let mut policies = Policies::open(hub, &input.execution, &input.source, UNDO_ACTIONS).await?;
    let (mut taken, mut errors) = (Vec::new(), Vec::new());
    for change in changes {
        match take_back(&mut policies, change).await {
            Ok(one) => taken.extend(one),
            Err(error) => errors.push(error),
        }
    }
    policies.lock.give_back().await;
    Error::all_of(errors)?;
    Ok(Undone { taken })
}

fn is_something(change: &KeyChange) -> bool {
    !change.account_ids.is_empty() || change.repair.is_some()
}

/// The policy without what the change gave; nothing where it has none of that.
fn reduced(policy: &KeyPolicy, change: &KeyChange) -> Option<KeyPolicy> {
    let without = policy.without(&change.account_ids);
    let repair = change.repair.as_ref();
    let restored = repair.and_then(|repair| without.as_ref().unwrap_or(policy).without_repair(repair));
    restored.or(without)
}

/// Nothing where the key's policy names none of the accounts.
///
/// # Errors
/// [`Error::KeyPolicyConflict`] where a statement under one of our Sids lets everybody in, so that the accounts keep what
/// it says.
pub(crate) async fn take_back(policies: &mut Policies<'_>, change: &KeyChange) -> Result<Option<Taken>, Error> {
    let KeyChange { key_arn, account_ids, .. } = change;
    let policy = policies.read(key_arn).await?;
    let open = policy.open_to_all();
    let Some(without) = reduced(&policy, change) else {
        return if open.is_empty() || account_ids.is_empty() { Ok(None) } else { Err(open_to_all(key_arn, &open)) };
    };
    policies.write(key_arn, &policy, &without).await?;
    tracing::info!(key = %key_arn, accounts = account_ids.len(), "key policy written");
    if reduced(&policies.read(key_arn).await?, change).is_some() {
        return Err(not_yet_visible(key_arn));
    }
    if !open.is_empty() && !account_ids.is_empty() {
        return Err(open_to_all(key_arn, &open));
    }
    let named = policy.named();
    let from = account_ids.iter().filter(|account| named.contains(account)).map(ToString::to_string).collect();
    Ok(Some(Taken {
        call: PUT_KEY_POLICY.to_owned(),
        account_id: key_arn.account_id(),
        resource: key_arn.to_string(),
        from,
    }))
}

fn open_to_all(key: &KeyArn, statements: &[&str]) -> Error {
    Error::KeyPolicyConflict {
        key: key.clone(),
        reason: format!(
            "its statement {} is not as ami-share writes it and lets everybody in, so that nobody can be taken out of it; \
             give it another Sid, or remove it, and start again",
            statements.join(" and ")
        ),
    }
}
