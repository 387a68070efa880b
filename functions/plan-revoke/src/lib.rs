//! PlanRevoke: says every call that would take something back, round by round, and makes none. Where a certain plan is
//! to be applied, it compares instead.
//!
//! What would be taken is what ResolveRevoke has found; of policies of keys, it says what would change. What a target
//! has lost since it was noted is called for all the same, and found gone.

mod calls;
mod plan;

use std::collections::BTreeMap;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, KeyArn, PlanHash},
    key_policy::{self, KeyPolicy},
    take_back::TakeBack,
};
use serde::Deserialize;

use plan::Plan;

pub const ACTIONS: Actions = Actions { source: &[READ], target: &[], launcher: &[] };

const READ: &str = "kms:GetKeyPolicy";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// What the round at hand would take back; nothing where that is nothing.
    pub take_back: Option<TakeBack>,
    /// What the rounds before it would.
    pub plan: Option<Plan>,
    /// Whether another round follows.
    pub more: bool,
    /// Shares that this execution has no room for.
    pub remaining: usize,
    /// The plan that is to be applied; nothing where one is made.
    pub plan_hash: Option<PlanHash>,
}

/// A key's policy as the rounds before leave it, and as this one would.
struct PolicyChange {
    key: KeyArn,
    before: KeyPolicy,
    /// As KMS gives it, or as the rounds before would have written it.
    text: String,
    /// Nothing where it would not be written.
    after: Option<KeyPolicy>,
}

/// Reads the key policies, without a lock, and works out the calls.
///
/// # Errors
/// [`Error::PlanChanged`] when another plan was to be applied; [`Error::KeyPolicyConflict`] as UndoShareKey would;
/// [`Error::InvalidRequest`] for a plan that is too large.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn plan_revoke(hub: &Hub, input: Input) -> Result<Plan, Error> {
    let mut plan = input.plan.unwrap_or_default();
    if let Some(take_back) = &input.take_back {
        let policies = read_policies(hub, &input.execution, take_back, plan.lost()).await?;
        let names = calls::Names {
            key_access_policy: &hub.settings.key_access_policy,
            source_role: &hub.source_role(&take_back.source.account_id, &take_back.source.region),
        };
        plan.add(take_back, calls::calls(names, take_back, &policies)?, &policies)?;
    }
    plan.remaining(input.remaining);
    if let Some(planned) = input.plan_hash.filter(|planned| !input.more && planned != plan.hash()) {
        return Err(Error::PlanChanged {
            reason: format!(
                "the request is not the one of plan {planned}, or what it would take back is no longer the same; the \
                 plan is now {}",
                plan.hash()
            ),
        });
    }
    Ok(plan)
}

async fn read_policies(
    hub: &Hub,
    execution: &ExecutionName,
    take_back: &TakeBack,
    lost: &BTreeMap<KeyArn, Vec<AccountId>>,
) -> Result<Vec<PolicyChange>, Error> {
    let mut policies = Vec::new();
    if take_back.key_changes.is_empty() {
        return Ok(policies);
    }
    let source = &take_back.source;
    let config = hub.as_source(&source.account_id, &source.region, execution, ACTIONS).await?;
    let kms = aws_sdk_kms::Client::new(&config);
    for change in &take_back.key_changes {
        let key = &change.key_arn;
        let answer = kms
            .get_key_policy()
            .key_id(key.as_str())
            .policy_name("default")
            .send()
            .await
            .map_err(|error| key_policy::explained(key, aws::failure(&source.account_id, READ, error)))?;
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
