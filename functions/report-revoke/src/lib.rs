//! ReportRevoke: says what was taken back, what stays and why, and what could not be taken back. Calls
//! nothing.

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId},
    revoke::{Left, Phase, Progress},
    share::Kept,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub const ACTIONS: Actions = Actions { source: &[], target: &[], launcher: &[] };

/// The error of an execution that did not take everything back.
const INCOMPLETE: &str = "RevokeIncomplete";

/// The longest cause of a failed execution (Step Functions API reference, ExecutionFailed event).
const MAX_CAUSE: usize = 32_768;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// The input of the execution, as it was given.
    pub request: Value,
    /// Nothing when the first ResolveRevoke refused.
    pub progress: Option<Progress>,
    /// What the last round could not take back.
    pub left: Vec<Left>,
    /// What ended the execution before its time.
    pub failure: Option<Failure>,
}

/// A state that failed, with its error as Step Functions gives it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    state: String,
    error: String,
    cause: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    status: Status,
    execution: ExecutionName,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<ImageId>,
    /// Targets that had something which was taken back, or was to be.
    revoked: Vec<AccountId>,
    /// Targets that keep access to keys, as other images need it.
    kept: Vec<Kept>,
    /// Targets with a launch permission that ami-share did not give. It stays.
    not_ours: Vec<AccountId>,
    /// Targets that have copies or instances which nobody asked to remove.
    copies_or_instances_stay: Vec<AccountId>,
    /// What could not be taken back.
    left: Vec<String>,
    /// How many more of these there are than are listed.
    #[serde(skip_serializing_if = "is_zero")]
    unlisted: usize,
    /// Targets that have not been looked at.
    remaining: usize,
    /// An error name of ami-share or of Step Functions.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Status {
    Revoked,
    NothingToRevoke,
    Failed,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// # Errors
/// None of its own.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn report_revoke(_hub: &Hub, input: Input) -> Result<Output, Error> {
    Ok(summary(input))
}

fn summary(input: Input) -> Output {
    let mut progress = input.progress.unwrap_or_default();
    progress.add_left(input.left);
    // Whoever was only looked at has lost nothing.
    let revoked = if progress.phase == Phase::Revoke { progress.revoked } else { vec![] };
    let left: Vec<String> = progress.left.iter().map(describe).collect();
    let incomplete = !left.is_empty() || progress.remaining > 0;
    let (error, cause) = match &input.failure {
        Some(failure) => {
            let so_far = match revoked.len() {
                0 => "Nothing was changed.".to_owned(),
                some => format!("What {some} targets had was taken back before, or was to be: start it again."),
            };
            let text = format!("{}: {} {so_far}", failure.state, with_full_stop(&message(&failure.cause)));
            (Some(failure.error.clone()), Some(text))
        }
        None if incomplete => {
            (Some(INCOMPLETE.to_owned()), Some(incomplete_cause(&left, &revoked, progress.remaining)))
        }
        None => (None, None),
    };
    let status = match &error {
        Some(_) => Status::Failed,
        None if revoked.is_empty() => Status::NothingToRevoke,
        None => Status::Revoked,
    };
    Output {
        status,
        execution: input.execution,
        image_id: input.request["imageId"].as_str().and_then(|id| ImageId::parse(id).ok()),
        revoked,
        kept: progress.kept,
        not_ours: progress.not_ours,
        copies_or_instances_stay: progress.stays,
        left,
        unlisted: progress.unlisted,
        remaining: progress.remaining,
        error,
        cause: cause.map(|cause| cause.chars().take(MAX_CAUSE).collect()),
    }
}

fn incomplete_cause(left: &[String], revoked: &[AccountId], remaining: usize) -> String {
    let mut said = Vec::new();
    if remaining > 0 {
        said.push(format!(
            "{} targets were looked at for what one execution has room for, and {remaining} remain: start the same \
             request again, which goes on with them.",
            revoked.len()
        ));
    }
    if !left.is_empty() {
        said.push(format!(
            "Not everything could be taken back: {}. When the reason is mended, start the same request again.",
            left.join("; ")
        ));
    }
    said.join(" ")
}

fn describe(left: &Left) -> String {
    let place = left.account_id.as_ref().map(|account| format!(" in account {account}")).unwrap_or_default();
    let message = message(&left.cause);
    let message = message.strip_suffix('.').filter(|whole| !whole.ends_with('.')).unwrap_or(&message);
    format!("{}{place} failed with {}: {message}", left.state, left.error)
}

fn with_full_stop(text: &str) -> String {
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

/// A function's error reaches Step Functions as JSON with `errorMessage`, and the state machine may have cut
/// it; Step Functions' own errors are plain text.
fn message(cause: &str) -> String {
    if let Some(message) =
        serde_json::from_str::<Value>(cause).ok().as_ref().and_then(|whole| whole["errorMessage"].as_str())
    {
        return message.to_owned();
    }
    match cause.split_once("\"errorMessage\":") {
        Some((_, message)) => message.trim_start().trim_start_matches('"').replace("\\\"", "\"") + "...",
        None if cause.is_empty() => "no cause was given".to_owned(),
        None => cause.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(progress: Value, left: Value, failure: Value) -> Value {
        let input = json!({
            "execution": "e",
            "request": { "imageId": "ami-0123abcd", "targets": "all" },
            "progress": progress,
            "left": left,
            "failure": failure,
        });
        serde_json::to_value(summary(serde_json::from_value(input).unwrap())).unwrap()
    }

    fn progress(changes: Value) -> Value {
        let mut progress = serde_json::to_value(Progress { phase: Phase::Revoke, ..Progress::default() }).unwrap();
        for (name, value) in changes.as_object().unwrap() {
            progress[name] = value.clone();
        }
        progress
    }

    fn left(cause: &str) -> Value {
        json!([{ "accountId": "222222222222", "state": "UndoGrantPrincipals", "error": "AccessDenied", "cause": cause }])
    }

    #[test]
    fn it_says_who_lost_it_and_who_had_nothing() {
        let revoked = report(progress(json!({ "revoked": ["222222222222"] })), json!([]), Value::Null);
        assert_eq!(revoked["status"], "revoked");
        assert_eq!(revoked["revoked"], json!(["222222222222"]));
        assert_eq!(revoked["error"], Value::Null);
        let nothing = report(progress(json!({ "notOurs": ["222222222222"] })), json!([]), Value::Null);
        assert_eq!(nothing["status"], "nothingToRevoke");
        assert_eq!(nothing["notOurs"], json!(["222222222222"]));
    }

    #[test]
    fn what_is_left_fails_it_and_is_named_with_what_to_do() {
        let cause = r#"{"errorType":"AccessDenied","errorMessage":"role x cannot be assumed"}"#;
        let report = report(progress(json!({ "revoked": ["222222222222"] })), left(cause), Value::Null);
        assert_eq!((&report["status"], &report["error"]), (&json!("failed"), &json!("RevokeIncomplete")));
        let said = report["cause"].as_str().unwrap();
        assert!(
            said.contains("UndoGrantPrincipals in account 222222222222 failed with AccessDenied: role x cannot"),
            "{said}"
        );
        assert!(said.contains("start the same request again"), "{said}");
    }

    #[test]
    fn a_cause_that_was_cut_is_still_read() {
        let report =
            report(progress(json!({})), left(r#"{"errorType":"Aws","errorMessage":"the \"rest\" is cu"#), Value::Null);
        let said = report["left"][0].as_str().unwrap();
        assert!(said.ends_with("failed with AccessDenied: the \"rest\" is cu..."), "{said}");
    }

    #[test]
    fn targets_that_remain_are_counted() {
        let report =
            report(progress(json!({ "revoked": ["222222222222"], "remaining": 1500 })), json!([]), Value::Null);
        assert_eq!(report["error"], "RevokeIncomplete");
        assert!(report["cause"].as_str().unwrap().contains("1500 remain"), "{report}");
    }

    #[test]
    fn a_refusal_says_that_nothing_was_changed() {
        let failure =
            json!({ "state": "JudgeUsage", "error": "ImageInUse", "cause": "{\"errorMessage\":\"it is in use\"}" });
        let looked = progress(json!({ "phase": "check", "revoked": ["222222222222"] }));
        let report = report(looked, json!([]), failure);
        assert_eq!((&report["status"], &report["error"]), (&json!("failed"), &json!("ImageInUse")));
        assert_eq!(report["revoked"], json!([]));
        assert_eq!(report["cause"], "JudgeUsage: it is in use. Nothing was changed.");
    }
}
