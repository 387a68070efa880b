//! Every step: the state that calls it, the Rust function that it is, and the actions it names.

use std::{any::type_name_of_val, fmt, future::Future, pin::Pin};

use ami_share_core::{Error, Hub, hub::Actions, step};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// A step that runs.
pub type Running<'h> = Pin<Box<dyn Future<Output = Result<Value, Error>> + 'h>>;

type Run = Box<dyn for<'h> Fn(&'h Hub, Value) -> Running<'h> + Send + Sync>;

pub struct Step {
    pub state: &'static str,
    pub actions: Actions,
    /// The path of its Rust function, such as `share_key::undo::undo_share_key`.
    pub path: &'static str,
    /// Decodes a payload as the deployed function does.
    pub decode: fn(Value) -> Result<(), Error>,
    run: Run,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Step").field("state", &self.state).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Step {
    /// Runs it as the deployed function does.
    pub fn run<'h>(&self, hub: &'h Hub, payload: Value) -> Running<'h> {
        (self.run)(hub, payload)
    }
}

fn step<I, O, F>(state: &'static str, actions: Actions, function: F) -> Step
where
    I: DeserializeOwned + 'static,
    O: Serialize + 'static,
    F: AsyncFn(&Hub, I) -> Result<O, Error> + Copy + Send + Sync + 'static,
{
    Step {
        state,
        actions,
        path: type_name_of_val(&function),
        decode: |payload| step::decode::<I>(payload).map(drop),
        run: Box::new(move |hub, payload| {
            Box::pin(async move { step::encode(Box::pin(function(hub, step::decode(payload)?)).await?) })
        }),
    }
}

/// The states of those that take something back.
pub fn undos() -> impl Iterator<Item = &'static str> {
    steps().into_iter().map(|step| step.state).filter(|state| state.starts_with("Undo"))
}

/// One that calls nothing.
fn alone<I, O, F>(state: &'static str, actions: Actions, function: F) -> Step
where
    I: DeserializeOwned + 'static,
    O: Serialize + 'static,
    F: Fn(I) -> Result<O, Error> + Copy + Send + Sync + 'static,
{
    let path = type_name_of_val(&function);
    Step { path, ..step(state, actions, async move |_: &Hub, input| function(input)) }
}

pub fn steps() -> Vec<Step> {
    vec![
        step("ResolveImage", resolve_image::ACTIONS, resolve_image::resolve_image),
        step("PlanShare", plan_share::ACTIONS, plan_share::plan_share),
        step("ShareKey", share_key::ACTIONS, share_key::share_key),
        step("ResolveUndo", resolve_undo::ACTIONS, resolve_undo::resolve_undo),
        step("UndoShareKey", share_key::UNDO_ACTIONS, share_key::undo_share_key),
        step("GrantKeys", grant_keys::ACTIONS, grant_keys::grant_keys),
        step("UndoGrantKeys", grant_keys::UNDO_ACTIONS, grant_keys::undo_grant_keys),
        step("ShareSnapshots", share_snapshots::ACTIONS, share_snapshots::share_snapshots),
        step("UndoShareSnapshots", share_snapshots::UNDO_ACTIONS, share_snapshots::undo_share_snapshots),
        step("ShareImage", share_image::ACTIONS, share_image::share_image),
        step("UndoShareImage", share_image::UNDO_ACTIONS, share_image::undo_share_image),
        step("GrantPrincipals", grant_principals::ACTIONS, grant_principals::grant_principals),
        step("UndoGrantPrincipals", grant_principals::UNDO_ACTIONS, grant_principals::undo_grant_principals),
        step("CopyImage", copy_image::ACTIONS, copy_image::copy_image),
        step("UndoCopyImage", copy_image::UNDO_ACTIONS, copy_image::undo_copy_image),
        step("DescribeCopy", describe_copy::ACTIONS, describe_copy::describe_copy),
        step("LaunchInstance", launch_instance::ACTIONS, launch_instance::launch_instance),
        step("UndoLaunchInstance", launch_instance::UNDO_ACTIONS, launch_instance::undo_launch_instance),
        step("DescribeInstance", describe_instance::ACTIONS, describe_instance::describe_instance),
        step("VerifyVolumes", verify_volumes::ACTIONS, verify_volumes::verify_volumes),
        step("TerminateInstance", terminate_instance::ACTIONS, terminate_instance::terminate_instance),
        alone("Report", report::ACTIONS, report::report),
        step("RewriteNotes", rewrite_notes::ACTIONS, rewrite_notes::rewrite_notes),
        step("PlanRevoke", plan_revoke::ACTIONS, plan_revoke::plan_revoke),
        step("ResolveRevoke", resolve_revoke::ACTIONS, resolve_revoke::resolve_revoke),
        step("CheckUsage", check_usage::ACTIONS, check_usage::check_usage),
        step("CreateUsageReport", create_usage_report::ACTIONS, create_usage_report::create_usage_report),
        step("DescribeUsageReport", describe_usage_report::ACTIONS, describe_usage_report::describe_usage_report),
        alone("JudgeUsage", judge_usage::ACTIONS, judge_usage::judge_usage),
        alone("ReportRevoke", report_revoke::ACTIONS, report_revoke::report_revoke),
        step("AuditShares", audit_shares::ACTIONS, audit_shares::audit_shares),
    ]
}
