//! Report: says how an execution of share-ami ended, for itself or for undo-share: what was changed and stays, what was
//! there already, how each target stands; on failure the first cause, what was taken back and what could not be. Calls
//! nothing.

use std::mem;

use ami_share_core::{
    Error,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId, InstanceId, KeyArn, PrincipalArn},
    room::MOST_OF_CAUSE,
    share::{EncryptedVolume, Kept, KeyChange, Resolution, SnapshotChange, Source, Standing},
    take_back::{Failure, Taken, TakenBack, bytes_of},
    words,
};
use aws_smithy_types::date_time::{DateTime, Format};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions::NONE;

/// The longest report, in bytes of JSON: a state hands on 262,144, and a notice has the report as a string in JSON.
const MOST: usize = 190_000;

/// The longest message of what failed, and what those of all targets have together.
const MOST_OF_MESSAGE: usize = 8_000;
const MOST_OF_MESSAGES: usize = 40_000;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// Nothing when ResolveImage refused.
    pub resolution: Option<Resolution>,
    pub results: Vec<TargetResult>,
    /// The first thing that went wrong.
    pub failure: Option<Failure>,
    /// The targets whose part was taken back; nothing where everybody's was.
    pub failed: Option<Vec<AccountId>>,
    /// What became of it, but for the last take-back; nothing where none was tried.
    pub so_far: Option<TakenBack>,
    pub last: Option<TakenBack>,
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
    instance_stays: bool,
    #[serde(default)]
    volumes: Vec<EncryptedVolume>,
    failure: Option<Failure>,
    /// ISO 8601, from Step Functions' context.
    started_at: String,
    ended_at: String,
}

impl TargetResult {
    /// Whether a proof was launched, where nothing failed.
    fn is_proved(&self) -> bool {
        self.instance_id.is_some()
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    status: Status,
    execution: ExecutionName,
    /// Where the image is.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<ImageId>,
    /// What was not there before, and stays. What is left of the rest is in `left`.
    changed: Changed,
    /// Targets that had everything, and that nothing was done for.
    already_shared: Vec<AccountId>,
    /// In words, where volumes of the image are not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    unencrypted: Option<String>,
    targets: Vec<TargetReport>,
    /// An error name of ami-share or of Step Functions.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    /// The calls that took something back.
    taken_back: Vec<Taken>,
    /// What could not be taken back.
    left: Vec<String>,
    /// Targets that keep access to keys, as other images need it.
    kept: Vec<Kept>,
    /// How many more entries there are than all lists have room for.
    #[serde(skip_serializing_if = "is_default")]
    unlisted: usize,
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
    /// Whether something that was to be taken back from it, or from all, is in `left`.
    #[serde(skip_serializing_if = "is_default")]
    partly_left: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<ImageId>,
    /// The key that it re-encrypts with.
    #[serde(skip_serializing_if = "Option::is_none")]
    kms_key_id: Option<KeyArn>,
    /// Of what was shared already: which execution proved it, and when.
    #[serde(skip_serializing_if = "Option::is_none")]
    proved_by: Option<ExecutionName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proved_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<InstanceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    launches: Option<u64>,
    instance_stays: bool,
    volumes: Vec<EncryptedVolume>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

impl TargetReport {
    /// With nothing else that is known.
    fn new(account_id: AccountId, status: TargetStatus) -> Self {
        Self {
            account_id,
            status,
            partly_left: false,
            image_id: None,
            kms_key_id: None,
            proved_by: None,
            proved_at: None,
            instance_id: None,
            launches: None,
            instance_stays: false,
            volumes: vec![],
            duration_seconds: None,
            error: None,
            cause: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum TargetStatus {
    /// It is shared with, and that was proved.
    Proved,
    /// It is shared with, and no proof was asked for.
    Shared,
    /// It failed, and what it was given stays.
    NotProved,
    /// It failed, and what it was given was taken back.
    Failed,
    /// Nothing of its own is known to have failed, and what it was given was taken back with everybody's.
    TakenBack,
    /// It had everything, and nothing was done for it.
    AlreadyShared,
}

/// What became of what the execution added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    /// It failed before it had added anything.
    NeverAdded,
    /// That of the failed targets was taken back, or of all.
    TakenBack,
    /// It was to be taken back, and nobody can say that anything was.
    Unknown,
}

/// How an execution ended.
struct Ending {
    fate: Fate,
    failure: Option<Failure>,
    failed: Option<Vec<AccountId>>,
    done: TakenBack,
}

impl Ending {
    /// Whether what a target was given is still there, but for what is kept or left of it.
    fn stays(&self, account: &AccountId) -> bool {
        match self.fate {
            Fate::Stays | Fate::Unknown => true,
            Fate::NeverAdded => false,
            Fate::TakenBack => !self.was_to_go(account),
        }
    }

    fn was_to_go(&self, account: &AccountId) -> bool {
        self.failed.as_ref().is_none_or(|failed| failed.contains(account))
    }

    fn is_partly_left(&self, account: &AccountId) -> bool {
        let concerns = |of: &Option<AccountId>| of.as_ref().is_none_or(|of| of == account);
        self.was_to_go(account) && self.done.left.iter().any(|left| concerns(&left.account_id))
    }
}

/// # Errors
/// None of its own.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub fn report(input: Input) -> Result<Output, Error> {
    Ok(summary(input))
}

fn summary(input: Input) -> Output {
    let ending = ending(&input);
    let Input { execution, resolution, results, .. } = input;
    let cause = ending.failure.as_ref().map(|failure| cause(failure, resolution.as_ref(), &results, &ending));
    let status = match &resolution {
        _ if ending.failure.is_some() => Status::Failed,
        None => Status::Failed,
        Some(resolution) if resolution.targets.is_empty() => Status::AlreadyShared,
        Some(_) => Status::Shared,
    };
    let output = Output {
        status,
        execution,
        source: resolution.as_ref().map(|resolution| resolution.source.clone()),
        image_id: resolution.as_ref().map(|resolution| resolution.image.image_id.clone()),
        targets: target_reports(resolution.as_ref(), results, &ending),
        changed: resolution.as_ref().map(|resolution| changed(resolution, &ending)).unwrap_or_default(),
        unencrypted: resolution.as_ref().and_then(|resolution| words::unencrypted(&resolution.image.unencrypted())),
        already_shared: resolution.map(|resolution| resolution.already_shared).unwrap_or_default(),
        error: ending.failure.map(|failure| words::cut(&failure.error, 256)),
        cause,
        left: ending.done.left.iter().map(ToString::to_string).collect(),
        taken_back: ending.done.taken,
        kept: ending.done.kept,
        unlisted: ending.done.unlisted.all(),
    };
    fitted(output)
}

fn ending(input: &Input) -> Ending {
    let mut done = TakenBack::default();
    for part in [&input.so_far, &input.last].into_iter().flatten() {
        done.add(part.clone());
    }
    let first_failed = input.results.iter().find_map(|result| result.failure.as_ref());
    let failure = input.failure.as_ref().or(first_failed).cloned();
    let fate = match &failure {
        None => Fate::Stays,
        Some(failure) if input.so_far.is_some() || input.last.is_some() => {
            let nothing_taken = done.taken.is_empty() && done.unlisted.taken == 0;
            let is_whole_take_back = |state: &str| ["ResolveUndo", "TakeBack"].contains(&state);
            match done.left.as_slice() {
                // ShareKey has taken back what it had written itself.
                [] if nothing_taken && failure.error == "PlanChanged" => Fate::NeverAdded,
                [left] if nothing_taken && left.account_id.is_none() && is_whole_take_back(&left.state) => {
                    Fate::Unknown
                }
                _ => Fate::TakenBack,
            }
        }
        Some(_) if first_failed.is_some() => Fate::Stays,
        Some(_) => Fate::NeverAdded,
    };
    Ending { fate, failure, failed: input.failed.clone(), done }
}

/// What the execution added and that stays.
fn changed(resolution: &Resolution, ending: &Ending) -> Changed {
    let staying = |accounts: &[AccountId]| -> Vec<AccountId> {
        accounts.iter().filter(|account| ending.stays(account)).cloned().collect()
    };
    // A change without accounts mends a statement, for nobody in particular: it is put back only where everything is
    // taken back.
    let mended = resolution.targets.iter().any(|target| ending.stays(&target.account_id));
    let keys = |changes: &[KeyChange]| -> Vec<KeyChange> {
        let changes = changes.iter().map(|KeyChange { key_arn, account_ids, .. }| {
            let staying = staying(account_ids);
            let stays = if account_ids.is_empty() { mended } else { !staying.is_empty() };
            stays.then(|| KeyChange { key_arn: key_arn.clone(), account_ids: staying, repair: None })
        });
        changes.flatten().collect()
    };
    let snapshots = resolution.snapshot_changes.iter().map(|change| SnapshotChange {
        snapshot_id: change.snapshot_id.clone(),
        account_ids: staying(&change.account_ids),
    });
    let targets = resolution.targets.iter().filter(|target| ending.stays(&target.account_id));
    Changed {
        keys: keys(&resolution.key_changes),
        grants: keys(&resolution.grant_changes),
        snapshots: snapshots.filter(|change| !change.account_ids.is_empty()).collect(),
        launch_permissions: staying(&resolution.launch_permissions),
        principals: targets
            .flat_map(|target| &target.principal_changes)
            .map(|change| change.principal.clone())
            .collect(),
    }
}

/// One for each target that something was done for, or is known of, then for those that had everything.
fn target_reports(resolution: Option<&Resolution>, results: Vec<TargetResult>, ending: &Ending) -> Vec<TargetReport> {
    let most = (MOST_OF_MESSAGES / results.len().max(1)).min(MOST_OF_MESSAGE);
    let known: Vec<AccountId> = results.iter().map(|result| result.account_id.clone()).collect();
    let mut reports: Vec<TargetReport> =
        results.into_iter().map(|result| target_report(result, ending, most)).collect();
    if [Fate::TakenBack, Fate::Unknown].contains(&ending.fate) {
        let targets = resolution.into_iter().flat_map(|resolution| &resolution.targets);
        let others = targets.map(|target| &target.account_id).filter(|account| !known.contains(account));
        reports.extend(others.map(|account| {
            let status = if ending.stays(account) { TargetStatus::NotProved } else { TargetStatus::TakenBack };
            let partly_left = ending.is_partly_left(account);
            TargetReport { partly_left, ..TargetReport::new(account.clone(), status) }
        }));
    }
    for target in resolution.into_iter().flat_map(|resolution| &resolution.targets) {
        if let Some(report) = reports.iter_mut().find(|report| report.account_id == target.account_id) {
            report.kms_key_id.clone_from(&target.kms_key_id);
        }
    }
    let standing = resolution.into_iter().flat_map(|resolution| &resolution.standing);
    reports.extend(standing.cloned().map(standing_report));
    reports
}

/// What is said of its instance and volumes is of its last proof.
fn standing_report(target: Standing) -> TargetReport {
    let report = TargetReport {
        image_id: Some(target.image_id),
        kms_key_id: target.kms_key_id,
        proved_by: target.proved_by,
        ..TargetReport::new(target.account_id, TargetStatus::AlreadyShared)
    };
    let Some(proof) = target.proof else { return report };
    TargetReport {
        proved_at: Some(proof.at),
        instance_id: Some(proof.instance_id),
        instance_stays: proof.instance_stays,
        volumes: proof.volumes,
        ..report
    }
}

fn target_report(result: TargetResult, ending: &Ending, most_of_message: usize) -> TargetReport {
    let status = match (&result.failure, ending.stays(&result.account_id)) {
        (None, true) if result.is_proved() => TargetStatus::Proved,
        (None, true) => TargetStatus::Shared,
        (None, false) => TargetStatus::TakenBack,
        (Some(_), true) => TargetStatus::NotProved,
        (Some(_), false) => TargetStatus::Failed,
    };
    TargetReport {
        duration_seconds: seconds_between(&result.started_at, &result.ended_at),
        partly_left: ending.is_partly_left(&result.account_id),
        image_id: result.image_id,
        instance_id: result.instance_id,
        instance_stays: result.instance_stays,
        launches: result.launches,
        volumes: result.volumes,
        cause: result.failure.as_ref().map(|failure| words::cut(&failure.message(), most_of_message)),
        error: result.failure.map(|failure| words::cut(&failure.error, 256)),
        ..TargetReport::new(result.account_id, status)
    }
}

fn seconds_between(start: &str, end: &str) -> Option<f64> {
    let read = |time: &str| DateTime::from_str(time, Format::DateTimeWithOffset).ok();
    Some(read(end)?.as_secs_f64() - read(start)?.as_secs_f64())
}

/// The first cause, who stays shared, then what became of what the execution had added. What is left comes last: it may
/// be long.
fn cause(failure: &Failure, resolution: Option<&Resolution>, results: &[TargetResult], ending: &Ending) -> String {
    let message = words::cut(&failure.message(), MOST_OF_MESSAGE);
    let failed = results.iter().filter(|result| result.failure.is_some()).count();
    let mut said = vec![if results.len() > 1 && failed > 0 {
        let first = if failed > 1 { "; this is the first" } else { "" };
        let message = words::without_full_stop(&message);
        format!("{}: {message} ({failed} of {} targets failed{first}).", failure.state, results.len())
    } else {
        format!("{}: {}", failure.state, words::with_full_stop(&message))
    }];
    for (is_proved, how) in [(true, "shared and proved"), (false, "shared, without a proof")] {
        let whole = results.iter().filter(|result| result.failure.is_none() && result.is_proved() == is_proved);
        let staying: Vec<&AccountId> =
            whole.map(|result| &result.account_id).filter(|account| ending.stays(account)).collect();
        match staying.as_slice() {
            [] => {}
            [one] => said.push(format!("Account {one} stays {how}.")),
            several => said.push(format!("Accounts {} stay {how}.", joined(several))),
        }
    }
    said.extend(fate(resolution, results, ending));
    let kept = ending.done.kept.iter().map(|Kept { account_id, image_id }| {
        format!("Account {account_id} keeps access to keys, as it can launch {image_id} too.")
    });
    let kept: Vec<String> = kept.collect();
    if !kept.is_empty() {
        said.push(words::list(&kept, " ", ending.done.unlisted.kept, MOST_OF_MESSAGE));
    }
    if !ending.done.is_whole() {
        let left: Vec<String> = ending.done.left.iter().map(ToString::to_string).collect();
        let room = MOST_OF_CAUSE.saturating_sub(bytes_of(&said.join(" ")) + 100);
        let left = words::list(&left, "; ", ending.done.unlisted.left, room);
        said.push(format!("Not everything could be taken back: {}", words::with_full_stop(&left)));
    }
    words::cut(&said.join(" "), MOST_OF_CAUSE)
}

/// What became of what the execution had added, where nothing of it is left.
fn fate(resolution: Option<&Resolution>, results: &[TargetResult], ending: &Ending) -> Option<String> {
    match ending.fate {
        Fate::NeverAdded => Some("Nothing was changed.".to_owned()),
        Fate::Stays => {
            let failed = results.iter().filter(|result| result.failure.is_some()).map(|result| &result.account_id);
            Some(format!(
                "What was added stays, as onFailure: keep asks, and is not proved{}: start the same request again to have \
                 it proved.",
                for_accounts(&failed.collect::<Vec<_>>())
            ))
        }
        Fate::TakenBack | Fate::Unknown if !ending.done.is_whole() => None,
        Fate::TakenBack | Fate::Unknown => {
            let targets = resolution.into_iter().flat_map(|resolution| &resolution.targets);
            let everybodys = targets.map(|target| &target.account_id).all(|account| ending.was_to_go(account));
            let failed = ending.failed.iter().flatten().filter(|_| !everybodys);
            let whose = for_accounts(&failed.collect::<Vec<_>>());
            Some(if ending.done.kept.is_empty() {
                format!("Everything that this execution had added{whose} was taken back.")
            } else {
                format!("What this execution had added{whose} was taken back, but for what other images need.")
            })
        }
    }
}

fn for_accounts(accounts: &[&AccountId]) -> String {
    match accounts {
        [] => String::new(),
        [one] => format!(" for account {one}"),
        several => format!(" for accounts {}", joined(several)),
    }
}

fn joined(accounts: &[&AccountId]) -> String {
    accounts.iter().map(|account| account.as_str()).collect::<Vec<_>>().join(", ")
}

/// What has no bound of its own is listed as far as there is room: what stays before what a proof found.
fn fitted(mut output: Output) -> Output {
    let changed = mem::take(&mut output.changed);
    let volumes: Vec<_> = output.targets.iter_mut().map(|target| mem::take(&mut target.volumes)).collect();
    let mut room = Room { bytes: MOST.saturating_sub(bytes_of(&output)), unlisted: output.unlisted };
    output.changed = Changed {
        launch_permissions: room.list(changed.launch_permissions),
        keys: room.list(changed.keys),
        grants: room.list(changed.grants),
        snapshots: room.list(changed.snapshots),
        principals: room.list(changed.principals),
    };
    for (target, volumes) in output.targets.iter_mut().zip(volumes) {
        target.volumes = room.list(volumes);
    }
    output.unlisted = room.unlisted;
    output
}

struct Room {
    bytes: usize,
    unlisted: usize,
}

impl Room {
    fn list<T: Serialize>(&mut self, mut items: Vec<T>) -> Vec<T> {
        items.retain(|item| {
            let bytes = bytes_of(item) + 1;
            let fits = bytes <= self.bytes;
            if fits {
                self.bytes -= bytes;
            } else {
                self.unlisted += 1;
            }
            fits
        });
        items
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const FIRST: &str = "222222222222";
    const SECOND: &str = "444444444444";
    const THIRD: &str = "555555555555";

    /// An image shared with `accounts`; one more has everything already.
    fn resolution(accounts: &[&str], on_failure: &str) -> Value {
        let target = |account: &&str| {
            let principal = format!("arn:aws:iam::{account}:role/AmiShareLauncher");
            json!({ "accountId": account, "mode": "none", "launch": {}, "principalChanges": [{ "principal": principal }] })
        };
        let key = |id: &str| format!("arn:aws:kms:eu-west-1:111111111111:key/{id}");
        json!({
            "execution": "e",
            "source": { "accountId": "111111111111", "region": "eu-west-1" },
            "image": { "imageId": "ami-0123abcd", "name": "web", "architecture": "x86_64", "volumes": [] },
            "keyChanges": [{ "keyArn": key("1"), "accountIds": accounts }, { "keyArn": key("mended"), "accountIds": [] }],
            "grantChanges": [{ "keyArn": key("2"), "accountIds": accounts }],
            "snapshotChanges": [{ "snapshotId": "snap-0123abcd", "accountIds": accounts }],
            "launchPermissions": accounts,
            "targets": accounts.iter().map(target).collect::<Vec<_>>(),
            "alreadyShared": ["333333333333"], "principalAccess": "attach", "onFailure": on_failure
        })
    }

    fn proved(account: &str) -> Value {
        json!({
            "accountId": account, "imageId": "ami-0123abcd", "instanceId": "i-0123abcd", "instanceStays": true, "launches": 2,
            "volumes": [{ "deviceName": "/dev/xvda", "volumeId": "vol-1" }],
            "startedAt": "2026-01-01T00:00:00Z", "endedAt": "2026-01-01T00:01:00.500Z"
        })
    }

    fn no_room() -> Value {
        json!({ "state": "LaunchInstance", "error": "LaunchFailed", "cause": "{\"errorMessage\":\"no room\"}" })
    }

    fn failed(account: &str) -> Value {
        json!({
            "accountId": account, "failure": no_room(),
            "startedAt": "2026-01-01T00:00:00Z", "endedAt": "2026-01-01T00:01:00Z"
        })
    }

    fn done(taken: &Value, left: &Value, kept: &Value) -> Value {
        json!({ "taken": taken, "left": left, "kept": kept, "unlisted": { "taken": 0, "left": 0, "kept": 0 } })
    }

    fn taken() -> Value {
        json!([{ "call": "iam:DetachRolePolicy", "accountId": FIRST, "resource": "AmiShareKeyAccess" }])
    }

    /// An execution for one target, whose launch failed, and of which that became.
    fn one_failed(last: &Value) -> Value {
        json!({
            "execution": "e", "resolution": resolution(&[FIRST], "undo"), "results": [failed(FIRST)],
            "failure": no_room(), "failed": [FIRST], "soFar": null, "last": last
        })
    }

    /// One for three targets, of which the second failed.
    fn second_failed(on_failure: &str, failed_accounts: &Value, last: &Value) -> Value {
        json!({
            "execution": "e", "resolution": resolution(&[FIRST, SECOND, THIRD], on_failure),
            "results": [proved(FIRST), failed(SECOND), proved(THIRD)],
            "failure": no_room(), "failed": failed_accounts, "soFar": null, "last": last
        })
    }

    fn summarise(input: &Value) -> Value {
        serde_json::to_value(summary(serde_json::from_value(input.clone()).unwrap())).unwrap()
    }

    fn nothing() -> Value {
        json!({ "keys": [], "snapshots": [], "launchPermissions": [], "principals": [] })
    }

    fn statuses(report: &Value) -> Vec<(&str, &str)> {
        let targets = report["targets"].as_array().unwrap().iter();
        targets.map(|target| (target["accountId"].as_str().unwrap(), target["status"].as_str().unwrap())).collect()
    }

    #[test]
    fn a_share_says_what_changed_and_what_each_target_got() {
        let report = summarise(&json!({
            "execution": "e", "resolution": resolution(&[FIRST], "undo"), "results": [proved(FIRST)],
            "failure": null, "failed": null, "soFar": null, "last": null
        }));
        assert_eq!(report["status"], "shared");
        assert_eq!(statuses(&report), [(FIRST, "proved")]);
        let target = &report["targets"][0];
        assert_eq!((&target["durationSeconds"], &target["launches"]), (&json!(60.5), &json!(2)));
        assert_eq!(target["volumes"][0]["volumeId"], "vol-1");
        assert_eq!(report["changed"]["principals"][0], "arn:aws:iam::222222222222:role/AmiShareLauncher");
        assert_eq!(report["changed"]["keys"].as_array().unwrap().len(), 2);
        assert_eq!(report["alreadyShared"][0], "333333333333");
        assert_eq!((&report["takenBack"], &report["left"], &report["kept"]), (&json!([]), &json!([]), &json!([])));
        for absent in ["error", "cause", "unlisted"] {
            assert!(report.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn nothing_to_do_is_already_shared() {
        let report = summarise(&json!({
            "execution": "e", "resolution": resolution(&[], "undo"), "results": [],
            "failure": null, "failed": null, "soFar": null, "last": null
        }));
        assert_eq!(report["status"], "alreadyShared");
    }

    #[test]
    fn what_was_shared_already_is_told_like_the_rest() {
        let mut resolution = resolution(&[FIRST], "undo");
        let key = |account: &str| format!("arn:aws:kms:eu-west-1:{account}:key/own");
        let volumes = json!([{ "deviceName": "/dev/xvda", "volumeId": "vol-2", "keyArn": key("333333333333") }]);
        resolution["targets"][0]["kmsKeyId"] = json!(key(FIRST));
        resolution["standing"] = json!([
            {
                "accountId": "333333333333", "imageId": "ami-4567cdef", "kmsKeyId": key("333333333333"), "provedBy": "before",
                "proof": {
                    "at": "2026-01-01T00:00:00Z", "instanceId": "i-01234567", "instanceStays": true, "volumes": volumes
                },
            },
            { "accountId": SECOND, "imageId": "ami-0123abcd", "provedBy": "before" },
            { "accountId": THIRD, "imageId": "ami-0123abcd" },
        ]);
        let report = summarise(&json!({
            "execution": "e", "resolution": resolution, "results": [proved(FIRST)],
            "failure": null, "failed": null, "soFar": null, "last": null
        }));
        assert_eq!(
            statuses(&report),
            [FIRST, "333333333333", SECOND, THIRD]
                .map(|account| (account, if account == FIRST { "proved" } else { "alreadyShared" }))
        );
        assert_eq!(report["targets"][0]["kmsKeyId"], key(FIRST));
        assert_eq!(
            report["targets"][1],
            json!({
                "accountId": "333333333333", "status": "alreadyShared", "imageId": "ami-4567cdef",
                "kmsKeyId": key("333333333333"), "provedAt": "2026-01-01T00:00:00Z", "provedBy": "before",
                "instanceId": "i-01234567", "instanceStays": true, "volumes": volumes,
            })
        );
        // Earlier versions noted no more, and where no proof was asked for there is none.
        assert_eq!(
            (&report["targets"][2]["provedBy"], &report["targets"][2]["provedAt"]),
            (&json!("before"), &Value::Null)
        );
        assert_eq!(report["targets"][3].get("provedBy"), None);
    }

    #[test]
    fn a_failure_names_the_state_the_cause_and_what_was_taken_back() {
        let report = summarise(&one_failed(&done(&taken(), &json!([]), &json!([]))));
        assert_eq!(report["status"], "failed");
        assert_eq!(report["error"], "LaunchFailed");
        let said = "LaunchInstance: no room. Everything that this execution had added was taken back.";
        assert_eq!(report["cause"], said);
        assert_eq!(report["takenBack"], taken());
        assert_eq!(statuses(&report), [(FIRST, "failed")]);
        assert_eq!(report["changed"]["launchPermissions"], json!([]));
    }

    #[test]
    fn one_target_that_fails_leaves_the_others_as_they_are() {
        let report = summarise(&second_failed("undo", &json!([SECOND]), &done(&taken(), &json!([]), &json!([]))));
        assert_eq!((&report["status"], &report["error"]), (&json!("failed"), &json!("LaunchFailed")));
        assert_eq!(statuses(&report), [(FIRST, "proved"), (SECOND, "failed"), (THIRD, "proved")]);
        assert_eq!(
            report["cause"],
            "LaunchInstance: no room (1 of 3 targets failed). Accounts 222222222222, 555555555555 stay shared and \
             proved. Everything that this execution had added for account 444444444444 was taken back."
        );
        let changed = &report["changed"];
        let stay = json!([FIRST, THIRD]);
        assert_eq!(changed["launchPermissions"], stay);
        assert_eq!(changed["snapshots"][0]["accountIds"], stay);
        assert_eq!(changed["grants"][0]["accountIds"], stay);
        // What concerns no account is not taken back.
        assert_eq!((&changed["keys"][0]["accountIds"], &changed["keys"][1]["accountIds"]), (&stay, &json!([])));
        assert_eq!(changed["principals"].as_array().unwrap().len(), 2);
        assert!(!changed.to_string().contains(SECOND), "{changed}");
    }

    #[test]
    fn what_is_left_of_one_target_does_not_change_how_another_stands() {
        let left =
            json!([{ "accountId": SECOND, "state": "UndoGrantPrincipals", "error": "AccessDenied", "cause": "no" }]);
        let report = summarise(&second_failed("undo", &json!([SECOND]), &done(&taken(), &left, &json!([]))));
        assert_eq!(statuses(&report), [(FIRST, "proved"), (SECOND, "failed"), (THIRD, "proved")]);
        let partly_left = |n: usize| report["targets"][n]["partlyLeft"] == true;
        assert_eq!([partly_left(0), partly_left(1), partly_left(2)], [false, true, false]);
        let said = "Accounts 222222222222, 555555555555 stay shared and proved. Not everything could be taken back: \
                    UndoGrantPrincipals in account 444444444444 failed with AccessDenied: no.";
        assert!(report["cause"].as_str().unwrap().ends_with(said), "{}", report["cause"]);
        // What is left in the source account may be anybody's who was to go.
        let left = json!([{ "state": "UndoShareKey", "error": "AccessDenied", "cause": "no" }]);
        let report = summarise(&second_failed("undoAll", &Value::Null, &done(&taken(), &left, &json!([]))));
        assert!(report["targets"].as_array().unwrap().iter().all(|target| target["partlyLeft"] == true), "{report}");
    }

    #[test]
    fn where_everything_goes_a_proof_does_not_say_that_it_is_shared() {
        let report = summarise(&second_failed("undoAll", &Value::Null, &done(&taken(), &json!([]), &json!([]))));
        assert_eq!(statuses(&report), [(FIRST, "takenBack"), (SECOND, "failed"), (THIRD, "takenBack")]);
        let said = "LaunchInstance: no room (1 of 3 targets failed). Everything that this execution had added was \
                    taken back.";
        assert_eq!(report["cause"], said);
        let mut changed = report["changed"].clone();
        assert_eq!(changed["keys"].as_array_mut().unwrap().pop(), None);
        assert_eq!(changed, nothing());
    }

    #[test]
    fn a_target_without_a_proof_is_never_said_to_be_proved() {
        let mut input = second_failed("undo", &json!([SECOND]), &done(&taken(), &json!([]), &json!([])));
        let unproved = &mut input["results"][2];
        for (field, value) in [
            ("instanceId", Value::Null),
            ("launches", Value::Null),
            ("instanceStays", json!(false)),
            ("volumes", json!([])),
        ] {
            unproved[field] = value;
        }
        let report = summarise(&input);
        assert_eq!(statuses(&report), [(FIRST, "proved"), (SECOND, "failed"), (THIRD, "shared")]);
        let said = "Account 222222222222 stays shared and proved. Account 555555555555 stays shared, without a proof.";
        assert!(report["cause"].as_str().unwrap().contains(said), "{report}");
    }

    #[test]
    fn what_stays_unproved_is_said_so() {
        let mut input = second_failed("keep", &Value::Null, &Value::Null);
        input["results"][2] = failed(THIRD);
        let report = summarise(&input);
        assert_eq!(statuses(&report), [(FIRST, "proved"), (SECOND, "notProved"), (THIRD, "notProved")]);
        assert_eq!(
            report["cause"],
            "LaunchInstance: no room (2 of 3 targets failed; this is the first). Account 222222222222 stays shared and \
             proved. What was added stays, as onFailure: keep asks, and is not proved for accounts 444444444444, \
             555555555555: start the same request again to have it proved."
        );
        assert_eq!(report["changed"]["launchPermissions"], json!([FIRST, SECOND, THIRD]));
    }

    /// Also with `keep`: it is about targets.
    #[test]
    fn what_fails_before_any_target_is_taken_back_for_all() {
        let mut input = second_failed("keep", &Value::Null, &done(&taken(), &json!([]), &json!([])));
        input["results"] = json!([]);
        input["failure"]["state"] = json!("ShareImage");
        let report = summarise(&input);
        let said = "ShareImage: no room. Everything that this execution had added was taken back.";
        assert_eq!(report["cause"], said);
        assert_eq!(report["changed"], nothing());
        assert_eq!(statuses(&report), [(FIRST, "takenBack"), (SECOND, "takenBack"), (THIRD, "takenBack")]);
    }

    #[test]
    fn what_another_image_needs_is_named_and_is_no_failure_of_the_take_back() {
        let kept = json!([{ "accountId": FIRST, "imageId": "ami-0000000b" }]);
        let report = summarise(&one_failed(&done(&taken(), &json!([]), &kept)));
        assert_eq!(report["left"], json!([]));
        assert_eq!(report["kept"], kept);
        assert_eq!(
            report["cause"],
            "LaunchInstance: no room. What this execution had added was taken back, but for what other images need. \
             Account 222222222222 keeps access to keys, as it can launch ami-0000000b too."
        );
    }

    #[test]
    fn where_nobody_could_say_what_may_go_it_all_stays() {
        for (state, hint) in [("ResolveUndo", " (so nothing more was taken back)"), ("TakeBack", "")] {
            let left = json!([{ "state": state, "error": "AccessDenied", "cause": "no role" }]);
            let report = summarise(&one_failed(&done(&json!([]), &left, &json!([]))));
            let said = format!(
                "LaunchInstance: no room. Not everything could be taken back: {state} failed with AccessDenied: no \
                 role{hint}."
            );
            assert_eq!(report["cause"], said);
            assert_eq!(report["changed"]["launchPermissions"], json!([FIRST]));
            assert_eq!(statuses(&report), [(FIRST, "notProved")]);
            // What went before it is gone.
            let mut input = one_failed(&done(&json!([]), &left, &json!([])));
            input["soFar"] = done(&taken(), &json!([]), &json!([]));
            let report = summarise(&input);
            assert_eq!(report["takenBack"], taken());
            assert_eq!(report["changed"]["launchPermissions"], json!([]));
        }
    }

    #[test]
    fn take_backs_one_after_the_other_are_one() {
        let left = json!([{ "accountId": FIRST, "state": "UndoCopyImage", "error": "AccessDenied", "cause": "plain" }]);
        let mut input = one_failed(&done(&taken(), &json!([]), &json!([])));
        input["soFar"] = done(&taken(), &left, &json!([]));
        input["soFar"]["unlisted"]["left"] = json!(7);
        let report = summarise(&input);
        assert_eq!(report["takenBack"].as_array().unwrap().len(), 2);
        assert_eq!(report["left"][0], "UndoCopyImage in account 222222222222 failed with AccessDenied: plain");
        assert_eq!(report["unlisted"], 7);
        assert!(report["cause"].as_str().unwrap().ends_with("AccessDenied: plain; and 7 more."), "{report}");
    }

    #[test]
    fn a_refused_request_changed_nothing() {
        let refused = |resolution: Value, state: &str, error: &str, last: Value| {
            summarise(&json!({
                "execution": "e", "resolution": resolution, "results": [], "failed": null, "soFar": null, "last": last,
                "failure": { "state": state, "error": error, "cause": "{\"errorMessage\":\"bad\"}" }
            }))
        };
        let clean = done(&json!([]), &json!([]), &json!([]));
        let known = || resolution(&[FIRST], "undo");
        for report in [
            refused(Value::Null, "ResolveImage", "InvalidRequest", Value::Null),
            refused(known(), "PlanShare", "PlanChanged", Value::Null),
            refused(known(), "RecordShare", "Unavailable", Value::Null),
            // ShareKey has taken back what it wrote, and the take-back found nothing.
            refused(known(), "ShareKey", "PlanChanged", clean),
        ] {
            assert_eq!(report["status"], "failed");
            assert!(report["cause"].as_str().unwrap().ends_with(": bad. Nothing was changed."), "{report}");
            assert_eq!((&report["changed"], &report["targets"]), (&nothing(), &json!([])));
        }
    }

    /// Every part of it as long as it can be.
    #[test]
    fn a_report_fits_into_what_a_state_hands_on() {
        let accounts: Vec<String> = (0..50).map(|n| format!("{:012}", 200_000_000_000_u64 + n)).collect();
        let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
        let mut resolution = resolution(&accounts, "undo");
        for target in resolution["targets"].as_array_mut().unwrap() {
            let account = target["accountId"].as_str().unwrap();
            let arn = |n| format!("arn:aws:iam::{account}:role/{}/{n}", "a-path".repeat(12));
            target["principalChanges"] = (0..21).map(|n| json!({ "principal": arn(n) })).collect();
        }
        let message = json!({ "errorMessage": "\"quoted\" ".repeat(3_000) }).to_string();
        let failure = json!({ "state": "LaunchInstance", "error": "LaunchFailed", "cause": message });
        let volume = json!({
            "deviceName": "/dev/xvda", "volumeId": "vol-0123456789abcdef0",
            "keyArn": "arn:aws:kms:eu-west-1:111111111111:key/01234567-0123-0123-0123-0123456789ab"
        });
        let result = |account: &&str| {
            let mut result = proved(account);
            result["volumes"] = vec![volume.clone(); 20].into();
            result
        };
        let mut results: Vec<Value> = accounts.iter().map(result).collect();
        let mut full = TakenBack::default();
        let cause = json!({ "errorMessage": "\"quoted\" ".repeat(100) }).to_string()[..500].to_owned();
        let left =
            json!([{ "accountId": FIRST, "state": "UndoGrantPrincipals", "error": "AccessDenied", "cause": cause }]);
        let kept = json!([{ "accountId": FIRST, "imageId": "ami-0123456789abcdef0" }]);
        let one: TakenBack = serde_json::from_value(done(&taken(), &left, &kept)).unwrap();
        for _ in 0..300 {
            full.add(one.clone());
        }
        let mut input = json!({
            "execution": "e", "resolution": resolution, "results": results, "failure": null, "failed": null,
            "soFar": null, "last": null
        });
        let shared = summarise(&input);
        // Half of the targets fail, and a lot is taken back, and left, of each.
        for result in results.iter_mut().take(25) {
            result["failure"] = failure.clone();
        }
        input["results"] = results.into();
        input["failure"] = failure;
        let kept = summarise(&input);
        input["failed"] = json!(accounts[..25]);
        input["soFar"] = json!(full);
        input["last"] = json!(full);
        let failed = summarise(&input);
        for (name, report) in [("shared", &shared), ("kept", &kept), ("failed", &failed)] {
            let bytes = report.to_string().len();
            assert!(bytes < 200_000 && bytes > 150_000, "{name}: {bytes}");
            assert!(report["cause"].as_str().unwrap_or_default().len() < 32_768, "{name}");
            assert_eq!(report["targets"].as_array().unwrap().len(), 50, "{name}");
            assert!(report["unlisted"].as_u64().unwrap() > 0, "{name}");
        }
        let cause = failed["cause"].as_str().unwrap();
        for said in ["(25 of 50 targets failed; this is the first)", " stay shared and proved. ", " more."] {
            assert!(cause.contains(said), "{said}: {cause}");
        }
    }
}
