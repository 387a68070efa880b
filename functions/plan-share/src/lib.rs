//! PlanShare: says every change that would be made, call by call, and makes none. Where a certain plan
//! is to be applied, it compares instead.
//!
//! The calls are made from what the later steps are given, with the code by which they make them;
//! a test holds each to what an execution really calls.

mod calls;
mod plan;
mod policies;

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::ExecutionName,
    plan::PlannedPolicies,
    share::{Action, Resolution},
};
use ami_share_key_grants::LIST_TAGS;
use ami_share_key_policies::GET_KEY_POLICY;
use ami_share_plan::Names;
use serde::{Deserialize, Serialize};

use plan::Plan;

pub const ACTIONS: Actions = Actions { source_reader: &[GET_KEY_POLICY, LIST_TAGS], ..Actions::NONE };

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
    /// The id of the item of the record table by which plan-share notes the plan.
    pub note: String,
    /// Whether a share must find it there, and use it up.
    pub claim: bool,
}

/// Reads the key policies again, without a lock, and works out the calls; for a plan, also the keys' tags.
///
/// # Errors
/// [`Error::PlanChanged`] when another plan was to be applied; [`Error::KeyPolicyTooLarge`] and
/// [`Error::KeyPolicyConflict`] as ShareKey would.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn plan_share(hub: &Hub, input: Input) -> Result<Output, Error> {
    let resolution = &input.resolution;
    let source = &resolution.source;
    let (mut policies, mut untagged) = (Vec::new(), Vec::new());
    if !resolution.key_changes.is_empty() || !resolution.grant_changes.is_empty() {
        let config = hub.as_source_reader(&source.account_id, &source.region, &input.execution, ACTIONS).await?;
        let kms = aws_sdk_kms::Client::new(&config);
        policies = policies::read(&kms, resolution).await?;
        if resolution.action == Action::Plan {
            untagged = policies::untagged(&kms, resolution).await?;
        }
    }
    let source_role = hub.source_role(&source.account_id, &source.region);
    let names = Names { key_access_policy: &hub.settings.key_access_policy, source_role: &source_role };
    let plan = Plan::new(names, resolution, &policies)?;
    if let Some(planned) = resolution.plan_hash.as_ref().filter(|planned| planned.whole() != plan.plan_hash.whole()) {
        return Err(Error::PlanChanged { reason: plan.difference_to(planned, hub.settings.require_plan) });
    }
    tracing::info!(hash = %plan.plan_hash, calls = plan.calls.len(), "planned");
    let note = format!("plan#{}", plan.plan_hash.whole());
    let (plan, policies) = match resolution.action {
        Action::Plan => (Some(plan.naming(untagged).fitted(plan::MOST_BYTES)), PlannedPolicies::default()),
        Action::Apply => (None, policies::planned(&policies)),
    };
    Ok(Output { claim: hub.settings.require_plan && plan.is_none(), plan, policies, note })
}
