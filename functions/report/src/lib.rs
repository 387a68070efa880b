//! Report: says how the execution ended: what was changed, what was there already, what each target
//! got; on failure the first cause, what was taken back and what could not be. Calls nothing.

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId, InstanceId, PrincipalArn},
    share::{EncryptedVolume, Kept, KeyChange, OnFailure, Resolution, SnapshotChange},
};
use aws_smithy_types::date_time::{DateTime, Format};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub const ACTIONS: Actions = Actions { source: &[], target: &[], launcher: &[] };

/// The longest cause of a failed execution (Step Functions API reference, ExecutionFailed event).
const MAX_CAUSE: usize = 32_768;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// Nothing when ResolveImage refused.
    pub resolution: Option<Resolution>,
    pub results: Vec<TargetResult>,
    /// The first thing that went wrong.
    pub failure: Option<Failure>,
    /// What an undo could not take back.
    pub left: Vec<Left>,
    /// What an undo left because other images need it.
    pub kept: Vec<Kept>,
}

/// What became of one target.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetResult {
    account_id: AccountId,
    image_id: Option<ImageId>,
    instance_id: Option<InstanceId>,
    /// How many instances were launched until one ran.
    launches: Option<u64>,
    #[serde(default)]
    kept: bool,
    #[serde(default)]
    volumes: Vec<EncryptedVolume>,
    failure: Option<Failure>,
    /// ISO 8601, from Step Functions' context.
    started_at: String,
    ended_at: String,
}

/// A state that failed, with its error as Step Functions gives it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    state: String,
    error: String,
    cause: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Left {
    account_id: Option<AccountId>,
    state: String,
    error: String,
    cause: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    status: Status,
    execution: ExecutionName,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<ImageId>,
    /// What was not there before; of a failed execution, what was to be added.
    changed: Changed,
    /// Targets that had everything, and that nothing was done for.
    already_shared: Vec<AccountId>,
    targets: Vec<TargetReport>,
    /// An error name of ami-share or of Step Functions.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    /// What an undo could not take back.
    left: Vec<String>,
    /// Targets that keep access to keys, as other images need it.
    kept: Vec<Kept>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Status {
    Shared,
    AlreadyShared,
    Failed,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Changed {
    keys: Vec<KeyChange>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    grants: Vec<KeyChange>,
    snapshots: Vec<SnapshotChange>,
    launch_permissions: Vec<AccountId>,
    principals: Vec<PrincipalArn>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TargetReport {
    account_id: AccountId,
    status: TargetStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<ImageId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<InstanceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    launches: Option<u64>,
    kept: bool,
    volumes: Vec<EncryptedVolume>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
enum TargetStatus {
    Proved,
    Failed,
}

/// # Errors
/// None of its own.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn report(_hub: &Hub, input: Input) -> Result<Output, Error> {
    Ok(summary(input))
}

fn summary(input: Input) -> Output {
    let left: Vec<String> = input.left.iter().map(describe_left).collect();
    let (error, cause) = match &input.failure {
        None => (None, None),
        Some(failure) => (Some(failure.error.clone()), Some(cause(failure, &input, &left))),
    };
    let resolution = input.resolution;
    let status = match (&input.failure, &resolution) {
        (Some(_), _) | (None, None) => Status::Failed,
        (None, Some(resolution)) if resolution.targets.is_empty() => Status::AlreadyShared,
        (None, Some(_)) => Status::Shared,
    };
    let image_id = resolution.as_ref().map(|resolution| resolution.image.image_id.clone());
    let (changed, already_shared) = resolution.map(changes).unwrap_or_default();
    Output {
        status,
        execution: input.execution,
        image_id,
        changed,
        already_shared,
        targets: input.results.into_iter().map(target_report).collect(),
        error,
        cause,
        left,
        kept: input.kept,
    }
}

fn changes(resolution: Resolution) -> (Changed, Vec<AccountId>) {
    let principals = resolution
        .targets
        .into_iter()
        .flat_map(|target| target.principal_changes)
        .map(|change| change.principal)
        .collect();
    let changed = Changed {
        keys: resolution.key_changes,
        grants: resolution.grant_changes,
        snapshots: resolution.snapshot_changes,
        launch_permissions: resolution.launch_permissions,
        principals,
    };
    (changed, resolution.already_shared)
}

fn target_report(result: TargetResult) -> TargetReport {
    TargetReport {
        duration_seconds: seconds_between(&result.started_at, &result.ended_at),
        account_id: result.account_id,
        status: if result.failure.is_none() { TargetStatus::Proved } else { TargetStatus::Failed },
        image_id: result.image_id,
        instance_id: result.instance_id,
        launches: result.launches,
        kept: result.kept,
        volumes: result.volumes,
        cause: result.failure.as_ref().map(|failure| message(failure.cause.as_deref())),
        error: result.failure.map(|failure| failure.error),
    }
}

fn seconds_between(start: &str, end: &str) -> Option<f64> {
    let read = |time: &str| DateTime::from_str(time, Format::DateTimeWithOffset).ok();
    Some(read(end)?.as_secs_f64() - read(start)?.as_secs_f64())
}

/// The first cause, then what became of what the execution had added.
fn cause(failure: &Failure, input: &Input, left: &[String]) -> String {
    let failed = input.results.iter().filter(|result| result.failure.is_some()).count();
    let mut text = format!("{}: {}", failure.state, message(failure.cause.as_deref()));
    if failed > 1 {
        text.push_str(&format!(" ({failed} of {} targets failed; this is the first)", input.results.len()));
    }
    text.push_str(if text.ends_with('.') { " " } else { ". " });
    text.push_str(&match &input.resolution {
        None => "Nothing was changed.".to_owned(),
        Some(resolution) if resolution.on_failure == OnFailure::Keep && failed > 0 => {
            "What was added stays, as onFailure: keep asks, and is not proved: ask for launch.prove: always next time."
                .to_owned()
        }
        Some(_) if !left.is_empty() => format!("Not everything could be taken back: {}", left.join("; ")),
        Some(_) if !input.kept.is_empty() => {
            "What this execution had added was taken back, but for what other images need.".to_owned()
        }
        Some(_) => "Everything that this execution had added was taken back.".to_owned(),
    });
    for Kept { account_id, image_id } in &input.kept {
        text.push_str(&format!(" Account {account_id} keeps access to keys, as it can launch {image_id} too."));
    }
    text.chars().take(MAX_CAUSE).collect()
}

fn describe_left(left: &Left) -> String {
    let place = left.account_id.as_ref().map(|account| format!(" in account {account}")).unwrap_or_default();
    let text = format!("{}{place} failed with {}: {}", left.state, left.error, message(left.cause.as_deref()));
    match left.state.as_str() {
        "ResolveUndo" => format!("{text} (so all access to keys stays: other images may need it)"),
        _ => text,
    }
}

/// A function's error reaches Step Functions as JSON with `errorMessage`; Step Functions' own
/// errors are plain text.
fn message(cause: Option<&str>) -> String {
    let cause = cause.unwrap_or("no cause was given");
    let parsed: Option<Value> = serde_json::from_str(cause).ok();
    parsed.as_ref().and_then(|value| value["errorMessage"].as_str()).unwrap_or(cause).to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn resolution(targets: &Value) -> Value {
        json!({
            "execution": "e",
            "source": { "accountId": "111111111111", "region": "eu-west-1" },
            "image": { "imageId": "ami-0123abcd", "name": "web", "architecture": "x86_64", "volumes": [] },
            "keyChanges": [{ "keyArn": "arn:aws:kms:eu-west-1:111111111111:key/1", "accountIds": ["222222222222"] }],
            "snapshotChanges": [], "launchPermissions": ["222222222222"], "targets": targets,
            "alreadyShared": ["333333333333"], "principalAccess": "attach", "onFailure": "undo"
        })
    }

    fn target() -> Value {
        json!([{ "accountId": "222222222222", "mode": "none", "launch": {}, "principalChanges": [
            { "principal": "arn:aws:iam::222222222222:role/AmiShareLauncher" }] }])
    }

    fn summarise(input: &Value) -> Value {
        serde_json::to_value(summary(serde_json::from_value(input.clone()).unwrap())).unwrap()
    }

    fn failed_input(left: &Value) -> Value {
        json!({
            "execution": "e", "resolution": resolution(&target()),
            "results": [{ "accountId": "222222222222", "startedAt": "2026-01-01T00:00:00Z", "endedAt": "2026-01-01T00:01:00.500Z",
                "failure": { "state": "LaunchInstance", "error": "LaunchFailed", "cause": "{\"errorMessage\":\"no room\"}" } }],
            "failure": { "state": "LaunchInstance", "error": "LaunchFailed", "cause": "{\"errorMessage\":\"no room\"}" },
            "left": left, "kept": []
        })
    }

    fn failed(left: &Value) -> Value {
        summarise(&failed_input(left))
    }

    #[test]
    fn a_share_says_what_changed_and_what_each_target_got() {
        let report = summarise(&json!({
            "execution": "e", "resolution": resolution(&target()), "failure": null, "left": [], "kept": [],
            "results": [{ "accountId": "222222222222", "imageId": "ami-0123abcd", "instanceId": "i-0123abcd", "launches": 2, "kept": true,
                "volumes": [{ "deviceName": "/dev/xvda", "volumeId": "vol-1" }],
                "startedAt": "2026-01-01T00:00:00Z", "endedAt": "2026-01-01T00:01:00.500Z" }]
        }));
        assert_eq!(report["status"], "shared");
        assert_eq!(report["targets"][0]["status"], "proved");
        assert_eq!(report["targets"][0]["durationSeconds"], 60.5);
        assert_eq!(report["targets"][0]["launches"], 2);
        assert_eq!(report["changed"]["principals"][0], "arn:aws:iam::222222222222:role/AmiShareLauncher");
        assert_eq!(report["alreadyShared"][0], "333333333333");
        assert!(report.get("error").is_none());
    }

    #[test]
    fn nothing_to_do_is_already_shared() {
        let report = summarise(&json!({
            "execution": "e", "resolution": resolution(&json!([])), "results": [], "failure": null, "left": [], "kept": []
        }));
        assert_eq!(report["status"], "alreadyShared");
    }

    #[test]
    fn a_failure_names_the_state_the_cause_and_what_was_taken_back() {
        let report = failed(&json!([]));
        assert_eq!(report["status"], "failed");
        assert_eq!(report["error"], "LaunchFailed");
        assert_eq!(
            report["cause"],
            "LaunchInstance: no room. Everything that this execution had added was taken back."
        );
    }

    #[test]
    fn what_could_not_be_taken_back_is_named() {
        let report = failed(&json!([
            { "accountId": "222222222222", "state": "UndoCopyImage", "error": "AccessDenied", "cause": "plain text" }
        ]));
        let cause = report["cause"].as_str().unwrap();
        assert!(cause.contains("Not everything could be taken back: UndoCopyImage in account 222222222222"), "{cause}");
        assert!(cause.contains("plain text"), "{cause}");
    }

    #[test]
    fn what_another_image_needs_is_named_and_is_no_failure_of_the_undo() {
        let mut input = failed_input(&json!([]));
        input["kept"] = json!([{ "accountId": "222222222222", "imageId": "ami-0000000b" }]);
        let report = summarise(&input);
        assert_eq!(report["left"], json!([]));
        assert_eq!(report["kept"], input["kept"]);
        assert_eq!(
            report["cause"],
            "LaunchInstance: no room. What this execution had added was taken back, but for what other images need. \
             Account 222222222222 keeps access to keys, as it can launch ami-0000000b too."
        );
    }

    #[test]
    fn where_nobody_could_say_what_other_images_need_the_cause_says_what_stays() {
        let report = failed(&json!([{ "state": "ResolveUndo", "error": "AccessDenied", "cause": "no role" }]));
        let cause = report["cause"].as_str().unwrap();
        assert!(
            cause.ends_with(
                "Not everything could be taken back: ResolveUndo failed with AccessDenied: no role \
             (so all access to keys stays: other images may need it)"
            ),
            "{cause}"
        );
    }

    #[test]
    fn a_refused_request_changed_nothing() {
        let report = summarise(&json!({
            "execution": "e", "resolution": null, "results": [], "left": [], "kept": [],
            "failure": { "state": "ResolveImage", "error": "InvalidRequest", "cause": "{\"errorMessage\":\"bad\"}" }
        }));
        assert_eq!(report["status"], "failed");
        assert_eq!(report["cause"], "ResolveImage: bad. Nothing was changed.");
    }
}
