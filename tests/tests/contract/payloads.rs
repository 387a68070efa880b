//! What the states pass to the functions fits what these take, and what the functions answer has
//! what the states read. Payloads are made from the definition itself, with sample values.

use ami_share_core::{
    ids::{ImageId, InstanceId},
    plan::PlannedPolicies,
    revoke::Round,
    share::{Resolution, Target},
    step,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    definition::{self, Machine},
    steps::steps,
};

/// Fields that may be null, and so may be left out as far as serde can tell.
const NULLABLE: [(&str, &str); 6] = [
    ("Report", "resolution"),
    ("Report", "failure"),
    ("ResolveRevoke", "progress"),
    ("ReportRevoke", "progress"),
    ("ReportRevoke", "failure"),
    ("AuditShares", "progress"),
];

fn target() -> Value {
    json!({
        "accountId": "222222222222",
        "sourceChanges": {
            "launchPermission": true,
            "snapshotIds": ["snap-0123456789abcdef0"],
            "keyArns": ["arn:aws:kms:eu-west-1:111111111111:key/1234"],
            "grantKeyArns": ["arn:aws:kms:eu-west-1:111111111111:key/1234"]
        },
        "principalChanges": [{
            "principal": "arn:aws:iam::222222222222:role/AmiShareLauncher",
            "keyArns": ["arn:aws:kms:eu-west-1:111111111111:key/1234"]
        }],
        "mode": "copyImage",
        "kmsKeyId": "alias/app",
        "copyId": "ami-0123456789abcdef1",
        "launch": { "instanceType": "t3.micro", "subnetId": "subnet-0abc", "keep": true, "prove": "always" }
    })
}

/// As ResolveImage answers; [`the_sample_is_a_resolution`] holds it to that.
fn resolution() -> Value {
    json!({
        "execution": "nightly-1-0123abcd",
        "source": { "accountId": "111111111111", "region": "eu-west-1" },
        "image": {
            "imageId": "ami-0123456789abcdef0",
            "name": "web",
            "architecture": "x86_64",
            "volumes": [{
                "deviceName": "/dev/xvda",
                "snapshotId": "snap-0123456789abcdef0",
                "keyArn": "arn:aws:kms:eu-west-1:111111111111:key/1234"
            }]
        },
        "keyChanges": [{
            "keyArn": "arn:aws:kms:eu-west-1:111111111111:key/1234",
            "accountIds": ["222222222222"]
        }],
        "grantChanges": [{
            "keyArn": "arn:aws:kms:eu-west-1:111111111111:key/1234",
            "accountIds": ["222222222222"]
        }],
        "snapshotChanges": [{ "snapshotId": "snap-0123456789abcdef0", "accountIds": ["222222222222"] }],
        "launchPermissions": ["222222222222"],
        "targets": [target()],
        "alreadyShared": ["444444444444"],
        "keyAccess": "grant",
        "principalAccess": "attach",
        "onFailure": "undo"
    })
}

fn failure() -> Value {
    json!({ "state": "LaunchInstance", "error": "LaunchFailed", "cause": "it did" })
}

fn kept() -> Value {
    json!({ "accountId": "222222222222", "imageId": "ami-0123456789abcdef2" })
}

/// As ResolveRevoke answers; [`the_sample_is_a_round`] holds it to that.
fn round() -> Value {
    let change = json!({ "keyArn": "arn:aws:kms:eu-west-1:111111111111:key/1234", "accountIds": ["222222222222"] });
    let made = json!({ "copiesOf": ["nightly-1-0123abcd"], "instancesOf": ["nightly-1-0123abcd"] });
    let with_made = |mut value: Value| {
        for (name, executions) in made.as_object().unwrap() {
            value[name] = executions.clone();
        }
        value
    };
    json!({
        "execution": "revoke-1-0123abcd",
        "source": { "accountId": "111111111111", "region": "eu-west-1" },
        "imageId": "ami-0123456789abcdef0",
        "imageFound": true,
        "force": false,
        "accounts": [with_made(json!({ "accountId": "222222222222" }))],
        "launchPermissions": ["222222222222"],
        "snapshotChanges": [{ "snapshotId": "snap-0123456789abcdef0", "accountIds": ["222222222222"] }],
        "targets": [with_made(json!({ "target": target(), "principalAccess": "attach" }))],
        "keyChanges": [change.clone()],
        "grantChanges": [change],
        "notes": [{
            "accountId": "222222222222",
            "imageId": "ami-0123456789abcdef0",
            "execution": "nightly-1-0123abcd",
            "gift": "{}"
        }],
        "more": true,
        "progress": progress()
    })
}

fn progress() -> Value {
    json!({
        "phase": "revoke",
        "after": "222222222222",
        "until": "444444444444",
        "remaining": 3,
        "spent": 100,
        "revoked": ["222222222222"],
        "kept": [kept()],
        "notOurs": ["222222222222"],
        "stays": ["222222222222"],
        "left": [left()],
        "unlisted": 1
    })
}

fn left() -> Value {
    json!({ "accountId": "222222222222", "state": "UndoCopyImage", "error": "Aws", "cause": "it did" })
}

fn used() -> Value {
    json!({
        "accountId": "222222222222",
        "imageId": "ami-0123456789abcdef0",
        "resource": "launchTemplate",
        "count": 1,
        "ids": ["lt-0123"]
    })
}

/// Every variable of the definitions, and what Step Functions brings along.
fn variables() -> Value {
    json!({
        "execution": "nightly-1",
        "begun": "2026-11-24T03:00:00.000Z",
        "resolution": resolution(),
        "results": [],
        "failure": null,
        "left": [],
        "kept": [kept()],
        "undo": {
            "keyChanges": resolution()["keyChanges"].clone(),
            "grantChanges": resolution()["grantChanges"].clone(),
            "snapshotChanges": resolution()["snapshotChanges"].clone(),
            "launchPermissions": resolution()["launchPermissions"].clone(),
            "targets": [target()]
        },
        "progress": null,
        "plan": { "status": "planned" },
        "planned": { "arn:aws:kms:eu-west-1:111111111111:key/1234": { "before": "00ff", "after": "ff00" } },
        "target": target(),
        "undoTarget": target(),
        "thisRound": round(),
        "undone": round()["targets"][0].clone(),
        "request": { "imageId": "ami-0123456789abcdef0", "targets": "all" },
        "phase": "check",
        "soFar": progress(),
        "usage": { "asked": ["222222222222"], "unasked": ["444444444444"], "uses": [used()], "unlisted": 0 },
        "reportId": "report-0123",
        "reported": [used()],
        "targetFailure": failure(),
        "startedAt": "2026-11-24T03:00:00.000Z",
        "launchImageId": "ami-0123456789abcdef1",
        "instanceId": "i-0123456789abcdef0",
        "launches": 1,
        "looks": 2,
        "instanceState": "pending",
        "volumes": [{
            "deviceName": "/dev/xvda",
            "volumeId": "vol-0123",
            "keyArn": "arn:aws:kms:eu-west-1:222222222222:key/5678"
        }],
        "states": {
            "input": target(),
            "context": {
                "Execution": {
                    "Name": "nightly-1",
                    "Id": "arn:aws:states:eu-west-1:333333333333:execution:share-ami:nightly-1",
                    "StartTime": "2026-11-24T03:00:00.000Z",
                    "RedriveCount": 1
                },
                "State": { "Name": "LaunchInstance", "EnteredTime": "2026-11-24T03:01:00.000Z", "RetryCount": 1 }
            },
            "errorOutput": { "Error": "LaunchFailed", "Cause": "it did" }
        }
    })
}

/// Replaces every expression in `value`: all that is passed on are paths, `{% $a.b %}`, comparisons
/// with true, and paths that may lead nowhere, `{% $exists($a.b) ? $a.b : '' %}` (or `: 0`).
fn evaluate(value: &Value, variables: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("{%") => {
            let expression = text.trim_start_matches("{%").trim_end_matches("%}").trim();
            if let Some(path) = expression.strip_suffix(" = true") {
                json!(look_up(path, variables) == true)
            } else if let Some((_, path)) = expression.split_once(") ? ") {
                match path.strip_suffix(" : 0") {
                    Some(path) => find(path, variables).unwrap_or(json!(0)),
                    None => look_up(path.trim_end_matches(" : ''"), variables),
                }
            } else {
                look_up(expression, variables)
            }
        }
        Value::Array(items) => items.iter().map(|item| evaluate(item, variables)).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(name, field)| (name.clone(), evaluate(field, variables))).collect()
        }
        other => other.clone(),
    }
}

fn look_up(path: &str, variables: &Value) -> Value {
    find(path, variables).unwrap_or_else(|| panic!("there is no sample for {path}"))
}

fn find(path: &str, variables: &Value) -> Option<Value> {
    let path = path.strip_prefix('$').unwrap_or_else(|| panic!("{path} is no path"));
    variables.pointer(&format!("/{}", path.replace('.', "/"))).cloned()
}

fn state(name: &str) -> Value {
    definition::share_ami().state(name)
}

fn revoke_state(name: &str) -> Value {
    definition::revoke_share().state(name)
}

/// What the first machine that has that step sends to it. What undo-share sends is the same as share-ami: see
/// [`both_machines_send_a_step_the_same`].
fn payload(name: &str, variables: &Value) -> Value {
    let tasks = definition::machines().into_iter().flat_map(|machine| machine.tasks());
    let (_, task) = tasks.into_iter().find(|(state, _)| state == name).unwrap_or_else(|| panic!("nobody calls {name}"));
    evaluate(&task["Arguments"]["Payload"], variables)
}

#[test]
fn the_sample_is_a_resolution() {
    let parsed: Resolution = serde_json::from_value(resolution()).unwrap();
    assert_eq!(serde_json::to_value(parsed).unwrap(), resolution());
    let parsed: Target = serde_json::from_value(target()).unwrap();
    assert_eq!(serde_json::to_value(parsed).unwrap(), target());
}

#[test]
fn the_sample_is_a_round() {
    let parsed: Round = serde_json::from_value(round()).unwrap();
    assert_eq!(serde_json::to_value(parsed).unwrap(), round());
}

#[test]
fn every_payload_is_what_its_step_takes() {
    let steps = steps();
    for (name, task) in definition::machines().iter().flat_map(Machine::tasks) {
        let step = steps.iter().find(|step| step.state == name).unwrap_or_else(|| panic!("nobody is {name}"));
        let payload = evaluate(&task["Arguments"]["Payload"], &variables());
        (step.decode)(payload).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn both_machines_send_a_step_the_same() {
    for (name, task) in definition::undo_share().tasks() {
        assert_eq!(task["Arguments"], state(&name)["Arguments"], "{name}");
    }
}

#[test]
fn a_field_too_many_or_too_few_is_refused() {
    for step in steps() {
        let whole = payload(step.state, &variables());
        let mut more = whole.clone();
        more["oneMore"] = json!(1);
        assert!((step.decode)(more).is_err(), "{} takes a field that it does not know", step.state);
        for field in whole.as_object().unwrap().keys() {
            if NULLABLE.contains(&(step.state, field.as_str())) {
                continue;
            }
            let mut fewer = whole.clone();
            fewer.as_object_mut().unwrap().remove(field);
            assert!((step.decode)(fewer).is_err(), "{} does without {field}", step.state);
        }
    }
}

#[test]
fn report_takes_what_targets_end_with() {
    let outcomes: Vec<Value> =
        ["ProveTarget", "FailTarget"].iter().map(|name| evaluate(&state(name)["Output"], &variables())).collect();
    let mut variables = variables();
    variables["results"] = json!(outcomes);
    decode_report(&variables);
}

#[test]
fn report_takes_what_a_catch_remembers() {
    let mut variables = variables();
    for (_, task) in definition::share_ami().states() {
        for catch in task["Catch"].as_array().into_iter().flatten() {
            for remembered in [&catch["Assign"]["failure"], &catch["Assign"]["targetFailure"]] {
                if !remembered.is_null() {
                    variables["failure"] = evaluate(remembered, &variables);
                    decode_report(&variables);
                }
            }
        }
    }
    assert!(!variables["failure"].is_null(), "no Catch remembers a failure");
}

#[test]
fn report_takes_what_undo_share_says_of_the_execution() {
    let mut variables = variables();
    let claimed = definition::undo_share().state("ClaimShare")["Assign"].clone();
    for name in ["results", "left", "kept"] {
        variables[name] = claimed[name].clone();
    }
    let described = definition::undo_share().state("DescribeShare")["Assign"].clone();
    let fields = described["failure"].as_object().unwrap().keys();
    variables["failure"] = fields.map(|field| (field.clone(), json!("a text"))).collect();
    decode_report(&variables);
}

#[test]
fn report_takes_a_request_that_was_refused() {
    let refused = evaluate(&state("ResolveImage")["Catch"][0]["Assign"], &variables());
    let mut variables = variables();
    for (name, value) in refused.as_object().unwrap() {
        variables[name] = value.clone();
    }
    assert!(variables["resolution"].is_null());
    decode_report(&variables);
}

/// The lists of what an undo left grow by `{'accountId': …, 'state': …}`: their fields are read
/// from the expressions.
#[test]
fn report_takes_what_an_undo_could_not_take_back() {
    let mut seen = 0;
    let machines = definition::machines();
    let states =
        machines.iter().flat_map(|machine| machine.states().into_iter().map(move |state| (machine.path, state)));
    for (machine, (name, task)) in states {
        for text in definition::strings(&task["Catch"]) {
            let Some((_, object)) = text.split_once("{'").filter(|_| text.contains("$states.errorOutput")) else {
                continue;
            };
            let mut left = json!({});
            for field in format!("{{'{object}").split('\'').skip(1).step_by(2) {
                left[field] = if field == "accountId" { json!("222222222222") } else { json!(name) };
            }
            let mut variables = variables();
            variables["left"] = json!([left]);
            if machine == definition::revoke_share().path {
                decode_report_revoke(&variables);
            } else {
                decode_report(&variables);
            }
            seen += 1;
        }
    }
    assert!(seen >= 4, "only {seen} states remember what they left");
}

fn decode_report(variables: &Value) {
    let payload = payload("Report", variables);
    if let Err(error) = step::decode::<report::Input>(payload.clone()) {
        panic!("{error}: {payload:#}");
    }
}

fn decode_report_revoke(variables: &Value) {
    let payload = payload("ReportRevoke", variables);
    if let Err(error) = step::decode::<report_revoke::Input>(payload.clone()) {
        panic!("{error}: {payload:#}");
    }
}

/// Before anything is known, and when a state other than an undo fails.
#[test]
fn report_revoke_takes_what_revoke_share_begins_and_ends_with() {
    let mut variables = variables();
    let begun = evaluate(&revoke_state("BeginRevoke")["Assign"], &variables);
    for (name, value) in begun.as_object().unwrap() {
        variables[name] = value.clone();
    }
    decode_report_revoke(&variables);
    let mut seen = 0;
    for (_, task) in definition::revoke_share().tasks() {
        let failure = &task["Catch"][0]["Assign"]["failure"];
        if !failure.is_null() {
            variables["failure"] = evaluate(failure, &variables);
            decode_report_revoke(&variables);
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen}");
    // What the first round is told, and who was asked before it.
    for name in ["ResolveRevoke", "CheckUsage", "JudgeUsage"] {
        let step = steps().into_iter().find(|step| step.state == name).unwrap();
        (step.decode)(payload(name, &variables)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Every `$states.result.Payload.x` of the definition, against a sample of the step's own answer.
#[test]
fn every_answer_has_what_its_state_reads() {
    let image_id = ImageId::parse("ami-0123456789abcdef1").unwrap();
    let instance_id = InstanceId::parse("i-0123456789abcdef0").unwrap();
    let key_policies = || share_key::Output { written: vec![] };
    let answers = [
        ("ResolveImage", resolution()),
        ("PlanShare", json(plan_share::Output { plan: None, policies: PlannedPolicies::default() })),
        ("ShareKey", json(key_policies())),
        ("UndoShareKey", json(key_policies())),
        (
            "ResolveUndo",
            json(resolve_undo::Output {
                targets: vec![],
                key_changes: vec![],
                grant_changes: vec![],
                snapshot_changes: vec![],
                launch_permissions: vec![],
                kept: vec![],
            }),
        ),
        ("GrantPrincipals", json(grant_principals::Output { granted: vec![], settle_seconds: 10 })),
        ("CopyImage", json(copy_image::Output { copy_id: image_id })),
        ("DescribeCopy", json(describe_copy::Output { state: describe_copy::State::Available, wait_seconds: 30 })),
        ("LaunchInstance", json(launch_instance::Output { instance_id, launches: 1 })),
        (
            "DescribeInstance",
            json(describe_instance::Output { state: describe_instance::State::Running, wait_seconds: 10, looks: 1 }),
        ),
        ("VerifyVolumes", json(verify_volumes::Output { volumes: vec![] })),
        ("ResolveRevoke", round()),
        ("CreateUsageReport", json(create_usage_report::Output { report_id: "report-1".to_owned(), wait_seconds: 15 })),
        (
            "DescribeUsageReport",
            json(describe_usage_report::Output {
                state: describe_usage_report::State::Available,
                wait_seconds: 0,
                reported: vec![],
            }),
        ),
        ("AuditShares", json(audit_shares::Output { progress: None, report: None, table: None })),
    ];
    for (name, task) in definition::machines().iter().flat_map(Machine::tasks) {
        for text in definition::strings(&task["Assign"]) {
            let Some((_, field)) = text.split_once("$states.result.Payload.") else { continue };
            let field = field.trim_end_matches("%}").trim();
            let answer = answers.iter().find(|(state, _)| *state == name);
            let (_, answer) = answer.unwrap_or_else(|| panic!("there is no sample of what {name} answers"));
            assert!(answer.get(field).is_some(), "{name} answers {answer}, without {field}");
        }
    }
}

#[test]
fn choices_compare_with_what_steps_answer() {
    let answers = [
        ("CheckCopy", "copyState", json(describe_copy::State::Available)),
        ("CheckInstance", "instanceState", json(describe_instance::State::Running)),
        ("ChooseReencryption", "target.mode", json(ami_share_core::share::Mode::CopyImage)),
    ];
    let available = json(describe_usage_report::State::Available);
    let expected = format!("{{% $usageState = '{}' %}}", available.as_str().unwrap());
    assert_eq!(revoke_state("CheckUsageReport")["Choices"][0]["Condition"], expected);
    let check = format!("$soFar.phase = '{}'", json(ami_share_core::revoke::Phase::Check).as_str().unwrap());
    for choice in revoke_state("ChooseRound")["Choices"].as_array().unwrap().iter().take(2) {
        assert!(choice["Condition"].as_str().unwrap().contains(&check), "{choice}");
    }
    for (name, phase) in
        [("JudgeUsage", revoke_state("JudgeUsage")), ("CheckLooked", revoke_state("CheckLooked")["Choices"][1].clone())]
    {
        assert_eq!(phase["Assign"]["phase"], json(ami_share_core::revoke::Phase::Revoke), "{name}");
    }
    let plan = json(ami_share_core::share::Action::Plan);
    let plan = format!("$resolution.action = '{}'", plan.as_str().unwrap());
    for name in ["ChoosePlan", "CheckPlan"] {
        assert!(state(name)["Choices"][0]["Condition"].as_str().unwrap().contains(&plan), "{name}");
    }
    let again = json(describe_instance::State::Again);
    let again = format!("{{% $instanceState = '{}' %}}", again.as_str().unwrap());
    assert_eq!(state("CheckInstance")["Choices"][1]["Condition"], again);
    for (name, variable, value) in answers {
        let expected = format!("{{% ${variable} = '{}' %}}", value.as_str().unwrap());
        assert_eq!(state(name)["Choices"][0]["Condition"], expected);
    }
}

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}
