//! ShareKey: merges our statements into the policy of every key under the image's volumes.

mod policies;
mod refused;
mod undo;

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{ExecutionName, KeyArn},
    key_policy::{GRANT_SID, USE_SID},
    plan::PlannedPolicies,
    share::{KeyChange, Source},
};
use ami_share_key_policies::GET_KEY_POLICY;
use serde::{Deserialize, Serialize};

use policies::{PUT_KEY_POLICY, Policies, not_yet_visible};
use refused::name_refused;

pub use undo::{UNDO_ACTIONS, UndoInput, undo_share_key};

pub const ACTIONS: Actions = Actions { source: &[GET_KEY_POLICY, PUT_KEY_POLICY], ..Actions::NONE };

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    /// The accounts to add to each key's policy. A key without accounts has its statements put right.
    pub keys: Vec<KeyChange>,
    /// What the policies must be; nothing where no plan is applied.
    pub planned: PlannedPolicies,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Keys whose policy was written.
    pub written: Vec<KeyArn>,
}

/// Writes each policy that lacks something of ours, and reads it back, under the lock of the source account and Region.
///
/// Reading, merging and writing again is safe, so a retry after a lost reply changes nothing.
///
/// # Errors
/// [`Error::SourceNotAllowed`]; [`Error::TargetNotAllowed`]; [`Error::KeyPoliciesLocked`]; [`Error::PlanChanged`], and then
/// nothing of this execution is left in the policies that are as it wrote them; [`Error::KeyPolicyTooLarge`] before a write;
/// [`Error::KeyPolicyConflict`] before a write, also where putting a statement right would let in whom nobody allows, and
/// naming the accounts that KMS refuses; [`Error::NotYetVisible`] for a read that is out of date, before or after the write.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn share_key(hub: &Hub, input: Input) -> Result<Output, Error> {
    let accounts = input.keys.iter().flat_map(|change| &change.account_ids);
    hub.settings.sources.check(&input.source.account_id)?;
    ami_share_allow_list::check(hub, &input.execution, accounts).await?;
    if input.keys.is_empty() {
        return Ok(Output { written: vec![] });
    }
    let mut policies = Policies::open(hub, &input.execution, &input.source, ACTIONS).await?;
    let shared = share(hub, &mut policies, &input).await;
    policies.lock.give_back().await;
    Ok(Output { written: shared? })
}

async fn share(hub: &Hub, policies: &mut Policies<'_>, input: &Input) -> Result<Vec<KeyArn>, Error> {
    keep_to_plan(policies, input).await?;
    let mut written = Vec::new();
    for KeyChange { key_arn, account_ids, repair } in &input.keys {
        let policy = policies.read(key_arn).await?;
        if !policies.lock.has_written(key_arn, &policy) && input.planned.check(key_arn, &policy).is_err() {
            keep_to_plan(policies, input).await?;
            return Err(not_yet_visible(key_arn));
        }
        let Some(merged) = policy.with(account_ids)? else { continue };
        if policy.repair().is_some_and(|found| Some(&found) != repair.as_ref()) {
            return Err(Error::KeyPolicyConflict {
                key: key_arn.clone(),
                reason: format!(
                    "its statements {USE_SID} and {GRANT_SID} were changed since they were looked at; start again"
                ),
            });
        }
        ami_share_allow_list::check_revived(hub, &input.execution, key_arn, &policy, account_ids).await?;
        if let Some(reason) = policies.offer(key_arn, &policy, &merged).await? {
            return Err(name_refused(policies, key_arn, &policy, account_ids, &reason).await?);
        }
        tracing::info!(key = %key_arn, accounts = account_ids.len(), "key policy written");
        if policies.read(key_arn).await?.with(account_ids)?.is_some() {
            return Err(not_yet_visible(key_arn));
        }
        written.push(key_arn.clone());
    }
    Ok(written)
}

/// Looks at all policies before any is written, and, where one is not as planned, takes back what this execution has
/// written already.
async fn keep_to_plan(policies: &mut Policies<'_>, input: &Input) -> Result<(), Error> {
    if input.planned.is_empty() {
        return Ok(());
    }
    let (mut refused, mut written) = (None, Vec::new());
    for change in &input.keys {
        let policy = policies.read(&change.key_arn).await?;
        // Be it with some of the accounts alone: see `name_refused`.
        if policies.lock.has_written(&change.key_arn, &policy) {
            written.push(change);
        } else if let Err(error) = input.planned.check(&change.key_arn, &policy) {
            refused.get_or_insert(error);
        }
    }
    let Some(refused) = refused else { return Ok(()) };
    for change in written {
        undo::take_back(policies, change).await?;
    }
    Err(refused)
}
