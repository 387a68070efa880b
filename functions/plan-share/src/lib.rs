//! PlanShare: says every change that would be made, call by call, and makes none. Where a certain plan
//! is to be applied, it compares instead.
//!
//! The calls are made from what the later steps are given, with the code by which they make them;
//! a test holds each to what an execution really calls.

mod calls;
mod plan;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::ExecutionName,
    key_policy::{self, KeyPolicy},
    plan::PlannedPolicies,
    share::{Action, KeyChange, Resolution},
};
use serde::{Deserialize, Serialize};

use calls::Names;
use plan::Plan;

pub const ACTIONS: Actions = Actions { source: &[READ], target: &[], launcher: &[] };

const READ: &str = "kms:GetKeyPolicy";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// As ResolveImage found the world.
    pub resolution: Resolution,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Nothing where a plan is applied.
    pub plan: Option<Plan>,
    /// What ShareKey must find, where a plan is applied.
    pub policies: PlannedPolicies,
}

/// A key's policy as it is, and as ShareKey would write it.
struct PolicyChange<'r> {
    change: &'r KeyChange,
    /// As KMS gives it.
    text: String,
    before: KeyPolicy,
    /// Nothing where it would not be written.
    after: Option<KeyPolicy>,
}

/// Reads the key policies again, without a lock, and works out the calls.
///
/// # Errors
/// [`Error::PlanChanged`] when another plan was to be applied; [`Error::KeyPolicyTooLarge`] and
/// [`Error::KeyPolicyConflict`] as ShareKey would.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn plan_share(hub: &Hub, input: Input) -> Result<Output, Error> {
    let resolution = &input.resolution;
    let policies = read_policies(hub, &input).await?;
    let source_role = hub.source_role(&resolution.source.account_id, &resolution.source.region);
    let names = Names { key_access_policy: &hub.settings.key_access_policy, source_role: &source_role };
    let plan = Plan::new(names, resolution, &policies)?;
    if let Some(planned) = resolution.plan_hash.as_ref().filter(|planned| **planned != plan.plan_hash) {
        return Err(Error::PlanChanged {
            reason: format!(
                "the request is not the one of plan {planned}, or what it would change was changed by somebody \
                 since; the plan is now {}",
                plan.plan_hash
            ),
        });
    }
    tracing::info!(hash = %plan.plan_hash, calls = plan.calls.len(), "planned");
    Ok(match resolution.action {
        Action::Plan => Output { plan: Some(plan.fitted(plan::MOST_BYTES)), policies: PlannedPolicies::default() },
        Action::Apply => Output { plan: None, policies: planned(&policies) },
    })
}

async fn read_policies<'r>(hub: &Hub, input: &'r Input) -> Result<Vec<PolicyChange<'r>>, Error> {
    let Input { execution, resolution } = input;
    let mut policies = Vec::new();
    if resolution.key_changes.is_empty() {
        return Ok(policies);
    }
    let source = &resolution.source;
    let config = hub.as_source(&source.account_id, &source.region, execution, ACTIONS).await?;
    let kms = aws_sdk_kms::Client::new(&config);
    for change in &resolution.key_changes {
        let key = &change.key_arn;
        let answer = kms
            .get_key_policy()
            .key_id(key.as_str())
            .policy_name("default")
            .send()
            .await
            .map_err(|error| key_policy::explained(key, aws::failure(&source.account_id, READ, error)))?;
        policies.push(PolicyChange::new(change, answer.policy.unwrap_or_default())?);
    }
    Ok(policies)
}

impl<'r> PolicyChange<'r> {
    fn new(change: &'r KeyChange, text: String) -> Result<Self, Error> {
        let before = KeyPolicy::parse(&change.key_arn, &text)?;
        let after = before.with(&change.account_ids);
        Ok(Self { change, text, before, after })
    }
}

fn planned(policies: &[PolicyChange<'_>]) -> PlannedPolicies {
    let mut planned = PlannedPolicies::default();
    for policy in policies {
        planned.add(&policy.change.key_arn, &policy.before, policy.after.as_ref().unwrap_or(&policy.before));
    }
    planned
}
