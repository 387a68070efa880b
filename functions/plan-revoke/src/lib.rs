//! PlanRevoke: says every call that would take something back, round by round, and makes none. Where a certain plan is
//! to be applied, it compares instead.
//!
//! What would be taken is what ResolveRevoke has found; of policies of keys, it says what would change. What a target
//! has lost since it was noted is called for all the same, and found gone.

mod calls;
mod foreign;
mod plan;
mod policies;

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{ExecutionName, PlanHash},
    take_back::{Left, TakeBack},
};
use ami_share_key_grants::{LIST_GRANTS, LIST_TAGS};
use ami_share_key_policies::GET_KEY_POLICY;
use ami_share_plan::Names;
use serde::Deserialize;

use plan::Plan;

pub const ACTIONS: Actions = Actions { source_reader: &[GET_KEY_POLICY, LIST_GRANTS, LIST_TAGS], ..Actions::NONE };

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// What the round at hand would take back; nothing where that is nothing.
    pub take_back: Option<TakeBack>,
    /// What stays of targets that are in no round.
    pub left: Vec<Left>,
    /// What the rounds before it would.
    pub plan: Option<Plan>,
    /// Whether another round follows.
    pub more: bool,
    /// Shares that this execution has no room for.
    pub remaining: usize,
    /// The plan that is to be applied; nothing where one is made.
    pub plan_hash: Option<PlanHash>,
}

/// Reads the key policies, without a lock, and works out the calls.
///
/// # Errors
/// [`Error::PlanChanged`] when another plan was to be applied; [`Error::KeyPolicyConflict`] as UndoShareKey would;
/// [`Error::InvalidRequest`] for a plan that is too large.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn plan_revoke(hub: &Hub, input: Input) -> Result<Plan, Error> {
    let mut plan = input.plan.unwrap_or_default();
    plan.stays(&input.left);
    if let Some(take_back) = &input.take_back {
        let source = &take_back.source;
        let source_role = &hub.source_role(&source.account_id, &source.region);
        let (policies, passed_on) = if take_back.key_changes.is_empty() && take_back.grant_changes.is_empty() {
            (vec![], foreign::PassedOn::default())
        } else {
            let config = hub.as_source_reader(&source.account_id, &source.region, &input.execution, ACTIONS).await?;
            let kms = aws_sdk_kms::Client::new(&config);
            let passed_on = foreign::find(&kms, take_back, source_role).await?;
            (policies::read(&kms, take_back, plan.lost()).await?, passed_on)
        };
        let names = Names { key_access_policy: &hub.settings.key_access_policy, source_role };
        plan.stays(&passed_on.left);
        plan.add(take_back, calls::calls(names, take_back, &policies, &passed_on.revoked)?, &policies, passed_on.stay)?;
    }
    plan.remaining(input.remaining);
    if let Some(planned) = input.plan_hash.filter(|planned| !input.more && planned.whole() != plan.hash().whole()) {
        return Err(Error::PlanChanged { reason: plan.difference_to(&planned) });
    }
    Ok(plan)
}

#[cfg(test)]
mod tests;
