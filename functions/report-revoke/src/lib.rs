//! ReportRevoke: says what was taken back, call by call, what stays and why, and what could not be taken back. Calls
//! nothing.

use ami_share_core::{
    Error,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId},
    revoke::{Phase, Progress},
    room::MOST_OF_CAUSE,
    share::Kept,
    take_back::{Failure, ForeignGrants, Taken, TakenBack, bytes_of},
    words,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub const ACTIONS: Actions = Actions::NONE;

/// The error of an execution that did not take everything back.
const INCOMPLETE: &str = "RevokeIncomplete";

/// The most targets that a cause names where they are listed in the report.
const NAMED: usize = 3;

/// The longest message of what failed.
const MOST_OF_MESSAGE: usize = 8_000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// The input of the execution, as it was given.
    pub request: Value,
    /// Nothing when the first ResolveRevoke refused.
    pub progress: Option<Progress>,
    /// What became of the last round; nothing where none took anything back.
    pub last: Option<TakenBack>,
    /// What the shares were last gone through for, as far as the state machine knows: with force it begins to take at once.
    pub phase: Phase,
    /// What ended the execution before its time.
    pub failure: Option<Failure>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    status: Status,
    execution: ExecutionName,
    /// The image that was asked for; nothing where it was all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<ImageId>,
    /// The images that something was taken back of, or was to be, where all were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<ImageId>,
    /// Targets that had something which was taken back, or was to be.
    revoked: Vec<AccountId>,
    /// The calls that took something back.
    taken_back: Vec<Taken>,
    /// Targets that keep access to keys, as other images need it.
    kept: Vec<Kept>,
    /// Targets with a launch permission that ami-share did not give. It stays.
    not_ours: Vec<AccountId>,
    /// Targets that have copies or instances which nobody asked to remove.
    copies_or_instances_stay: Vec<AccountId>,
    /// Targets that were given something of an image since the execution began, and keep what they have of that image.
    given_since: Vec<AccountId>,
    /// Targets that could not be asked whether anybody has the managed policy without a note.
    not_asked: Vec<AccountId>,
    /// Grants that targets passed on while they had the use of keys, and that stay.
    foreign_grants: Vec<ForeignGrants>,
    /// What could not be taken back.
    left: Vec<String>,
    /// How many more entries there are than all lists have room for.
    #[serde(skip_serializing_if = "is_zero")]
    unlisted: usize,
    /// Shares that have not been looked at.
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
pub fn report_revoke(input: Input) -> Result<Output, Error> {
    Ok(summary(input))
}

fn summary(input: Input) -> Output {
    let mut progress = input.progress.unwrap_or_default();
    progress.add_last(input.last);
    // Whoever was only looked at has lost nothing.
    let (revoked, images) =
        if progress.phase == Phase::Revoke { (progress.revoked, progress.images) } else { (vec![], vec![]) };
    let done = progress.done;
    let left: Vec<String> = done.left.iter().map(ToString::to_string).collect();
    let said = match &input.failure {
        Some(failure) => Some(failed(failure, revoked.len(), input.phase, &input.request)),
        None if done.is_whole() && progress.remaining == 0 && progress.given_since.is_empty() => None,
        None => Some(incomplete(revoked.len(), progress.remaining, &progress.given_since)),
    };
    let cause = said.map(|mut said| {
        said.extend(not_taken_back(&left, done.unlisted.left, &said.join(" ")));
        words::cut(&said.join(" "), MOST_OF_CAUSE)
    });
    let name = input.failure.map_or_else(|| INCOMPLETE.to_owned(), |failure| words::cut(&failure.error, 256));
    let error = cause.is_some().then_some(name);
    let status = match &error {
        Some(_) => Status::Failed,
        None if revoked.is_empty() => Status::NothingToRevoke,
        None => Status::Revoked,
    };
    Output {
        status,
        execution: input.execution,
        images: if input.request["images"].is_null() { vec![] } else { images },
        image_id: input.request["imageId"].as_str().and_then(|id| ImageId::parse(id).ok()),
        revoked,
        taken_back: done.taken,
        kept: done.kept,
        not_ours: progress.not_ours,
        copies_or_instances_stay: progress.stays,
        given_since: progress.given_since,
        not_asked: progress.not_asked,
        foreign_grants: done.foreign_grants,
        left,
        unlisted: progress.unlisted + done.unlisted.all(),
        remaining: progress.remaining,
        error,
        cause,
    }
}

/// What failed, and what that leaves.
fn failed(failure: &Failure, revoked: usize, phase: Phase, request: &Value) -> Vec<String> {
    let so_far = match revoked {
        0 if !may_have_marked(failure, phase, request) => "Nothing was changed.".to_owned(),
        0 => "Nothing was taken back, but notes may say that it is going to be: start it again.".to_owned(),
        some => format!("What {some} targets had was taken back before, or was to be: start it again."),
    };
    let message = words::cut(&failure.message(), MOST_OF_MESSAGE);
    vec![format!("{}: {}", failure.state, words::with_full_stop(&message)), so_far]
}

/// Whether it came after the first mark on a note, or may have: ResolveRevoke marks before it looks.
fn may_have_marked(failure: &Failure, phase: Phase, request: &Value) -> bool {
    let looks_first = request["force"] != true || request["action"] == "plan" || !request["planHash"].is_null();
    let refused = ["InvalidRequest", "ImageNotFound"].contains(&failure.error.as_str());
    failure.state == "ResolveRevoke" && (phase == Phase::Revoke || !looks_first) && !refused
}

/// Why an execution that nothing has failed is not whole, but for what is left.
fn incomplete(revoked: usize, remaining: usize, given_since: &[AccountId]) -> Vec<String> {
    let mut said = Vec::new();
    if !given_since.is_empty() {
        let more = given_since.len().saturating_sub(NAMED);
        let named: Vec<String> = given_since.iter().take(NAMED).map(ToString::to_string).collect();
        said.push(format!(
            "{} targets were given something since this execution began, which nobody was asked about, and keep it: {}. \
             Start the same request again if it is to go too.",
            given_since.len(),
            words::list(&named, ", ", more, MOST_OF_CAUSE)
        ));
    }
    if remaining > 0 {
        said.push(format!(
            "{revoked} targets lost what one execution has room for, and {remaining} shares remain: start the same request \
             again, which goes on with them."
        ));
    }
    said
}

/// After what the cause says already.
fn not_taken_back(left: &[String], unlisted: usize, said: &str) -> Option<String> {
    if left.is_empty() && unlisted == 0 {
        return None;
    }
    let room = MOST_OF_CAUSE.saturating_sub(bytes_of(&said) + 150);
    let left = words::list(left, "; ", unlisted, room);
    Some(format!(
        "Not everything could be taken back: {} When the reason is mended, start the same request again.",
        words::with_full_stop(&left)
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report(progress: Value, last: Value, failure: Value) -> Value {
        let input = json!({
            "execution": "e",
            "request": { "imageId": "ami-0123abcd", "targets": "all" },
            "progress": progress,
            "last": last,
            "phase": "revoke",
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

    fn done(changes: Value) -> Value {
        let mut done = serde_json::to_value(TakenBack::default()).unwrap();
        for (name, value) in changes.as_object().unwrap() {
            done[name] = value.clone();
        }
        done
    }

    fn left(cause: &str) -> Value {
        let account = "222222222222";
        let left =
            json!({ "accountId": account, "state": "UndoGrantPrincipals", "error": "AccessDenied", "cause": cause });
        done(json!({ "left": [left] }))
    }

    #[test]
    fn it_says_who_lost_it_and_who_had_nothing() {
        let revoked = report(progress(json!({ "revoked": ["222222222222"] })), done(json!({})), Value::Null);
        assert_eq!(revoked["status"], "revoked");
        assert_eq!(revoked["revoked"], json!(["222222222222"]));
        assert_eq!(revoked["error"], Value::Null);
        let nothing = report(progress(json!({ "notOurs": ["222222222222"] })), Value::Null, Value::Null);
        assert_eq!(nothing["status"], "nothingToRevoke");
        assert_eq!(nothing["notOurs"], json!(["222222222222"]));
        assert_eq!(nothing["takenBack"], json!([]));
    }

    #[test]
    fn it_lists_what_all_rounds_took_back_call_by_call() {
        let taken = |call: &str| {
            let from = ["222222222222"];
            json!([{ "call": call, "accountId": "111111111111", "resource": "ami-0123abcd", "from": from }])
        };
        let kept = json!([{ "accountId": "222222222222", "imageId": "ami-0000000b" }]);
        let before = done(json!({ "taken": taken("ec2:ModifyImageAttribute"), "kept": kept }));
        let last =
            done(json!({ "taken": taken("kms:PutKeyPolicy"), "unlisted": { "taken": 3, "left": 0, "kept": 2 } }));
        let so_far = progress(json!({ "revoked": ["222222222222"], "done": before, "unlisted": 1 }));
        let report = report(so_far, last, Value::Null);
        assert_eq!(report["status"], "revoked");
        let calls: Vec<&Value> = report["takenBack"].as_array().unwrap().iter().map(|taken| &taken["call"]).collect();
        assert_eq!(calls, ["ec2:ModifyImageAttribute", "kms:PutKeyPolicy"]);
        assert_eq!((&report["kept"], &report["unlisted"]), (&kept, &json!(6)));
    }

    #[test]
    fn what_is_left_fails_it_and_is_named_with_what_to_do() {
        let cause = r#"{"errorType":"AccessDenied","errorMessage":"role x cannot be assumed"}"#;
        let report = report(progress(json!({ "revoked": ["222222222222"] })), left(cause), Value::Null);
        assert_eq!((&report["status"], &report["error"]), (&json!("failed"), &json!("RevokeIncomplete")));
        assert_eq!(
            report["cause"],
            "Not everything could be taken back: UndoGrantPrincipals in account 222222222222 failed with AccessDenied: \
             role x cannot be assumed. When the reason is mended, start the same request again."
        );
    }

    /// What an earlier round left counts, and so does what there was no room to list.
    #[test]
    fn what_any_round_left_fails_it() {
        for before in [left("no"), done(json!({ "unlisted": { "taken": 0, "left": 2, "kept": 0 } }))] {
            let report = report(progress(json!({ "done": before })), done(json!({})), Value::Null);
            assert_eq!(report["error"], "RevokeIncomplete", "{before}");
        }
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
            report(progress(json!({ "revoked": ["222222222222"], "remaining": 1500 })), Value::Null, Value::Null);
        assert_eq!(report["error"], "RevokeIncomplete");
        assert!(report["cause"].as_str().unwrap().contains("1500 shares remain"), "{report}");
    }

    #[test]
    fn a_refusal_says_that_nothing_was_changed() {
        let failure =
            json!({ "state": "JudgeUsage", "error": "ImageInUse", "cause": "{\"errorMessage\":\"it is in use\"}" });
        let looked = progress(json!({ "phase": "check", "revoked": ["222222222222"] }));
        let report = report(looked, Value::Null, failure);
        assert_eq!((&report["status"], &report["error"]), (&json!("failed"), &json!("ImageInUse")));
        assert_eq!(report["revoked"], json!([]));
        assert_eq!(report["cause"], "JudgeUsage: it is in use. Nothing was changed.");
    }

    /// It marks notes, reads them again, and asks the source account: in the middle of that it may fail.
    #[test]
    fn one_that_fails_right_after_it_marked_notes_does_not_say_that_nothing_was_changed() {
        let cause_of = |force: bool, phase: &str, error: &str| {
            let input = json!({
                "execution": "e",
                "request": { "imageId": "ami-0123abcd", "targets": "all", "force": force },
                "progress": null,
                "last": null,
                "phase": phase,
                "failure": { "state": "ResolveRevoke", "error": error, "cause": "why" },
            });
            summary(serde_json::from_value(input).unwrap()).cause.unwrap()
        };
        let marked =
            "ResolveRevoke: why. Nothing was taken back, but notes may say that it is going to be: start it again.";
        assert_eq!(cause_of(false, "revoke", "Throttled"), marked);
        assert_eq!(cause_of(true, "check", "Throttled"), marked);
        for (force, phase, error) in [(false, "check", "Throttled"), (true, "check", "InvalidRequest")] {
            assert_eq!(cause_of(force, phase, error), "ResolveRevoke: why. Nothing was changed.");
        }
    }

    /// It stands: so the revoke is not whole.
    #[test]
    fn what_was_given_since_it_began_is_named() {
        let accounts = ["222222222222", "444444444444", "555555555555", "666666666666"];
        let so_far = progress(json!({ "revoked": ["222222222222"], "givenSince": accounts }));
        let report = report(so_far, Value::Null, Value::Null);
        assert_eq!((&report["error"], &report["givenSince"]), (&json!("RevokeIncomplete"), &json!(accounts)));
        let cause = report["cause"].as_str().unwrap();
        assert!(cause.starts_with("4 targets were given something since this execution began"), "{cause}");
        assert!(cause.contains("keep it: 222222222222, 444444444444, 555555555555, and 1 more. Start"), "{cause}");
    }

    #[test]
    fn what_was_left_before_a_failure_is_in_its_cause_too() {
        let failure = json!({ "state": "ResolveRevoke", "error": "Throttled", "cause": "later" });
        let report = report(progress(json!({ "revoked": ["222222222222"] })), left("no role"), failure);
        assert_eq!(report["error"], "Throttled");
        let cause = report["cause"].as_str().unwrap();
        assert!(cause.starts_with("ResolveRevoke: later. What 1 targets had was taken back before"), "{cause}");
        assert!(cause.contains("in account 222222222222 failed with AccessDenied: no role."), "{cause}");
    }

    /// Every part of it as long as it can be.
    #[test]
    fn a_report_fits_into_what_a_state_hands_on() {
        let account = "222222222222";
        let cause = json!({ "errorMessage": "\"quoted\" ".repeat(100) }).to_string()[..500].to_owned();
        let taken =
            json!({ "call": "kms:PutKeyPolicy", "accountId": account, "resource": "key", "from": vec![account; 9] });
        let one: TakenBack = serde_json::from_value(done(json!({
            "taken": vec![taken; 20], "left": left(&cause)["left"],
            "kept": [{ "accountId": account, "imageId": "ami-0123456789abcdef0" }]
        })))
        .unwrap();
        let mut full = TakenBack::default();
        for _ in 0..200 {
            full.add(one.clone());
        }
        let so_far = progress(json!({
            "revoked": vec![account; 500], "notOurs": vec![account; 200], "stays": vec![account; 200], "remaining": 1500,
            "givenSince": vec![account; 200], "notAsked": vec![account; 200],
            "done": full
        }));
        let failure = json!({ "state": "CheckUsage", "error": "Aws", "cause": "\"quoted\" ".repeat(3_000) });
        for failure in [Value::Null, failure] {
            let report = report(so_far.clone(), json!(full), failure);
            let bytes = report.to_string().len();
            assert!(bytes > 60_000 && bytes < 200_000, "{bytes}");
            let cause = report["cause"].as_str().unwrap();
            assert!(cause.len() < 32_768 && cause.contains(" more. When the reason is mended"), "{cause}");
        }
    }
}
