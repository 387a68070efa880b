//! What the states pass to the functions fits what these take, and what the functions answer has
//! what the states read. Payloads are made from the definition itself, with sample values.

use ami_share_core::{
    ids::{ImageId, InstanceId},
    plan::PlannedPolicies,
    revoke::{Round, Usage, UsageReport},
    share::{OnFailure, Resolution, Target},
    step,
    take_back::{Left, TakeBack, TakenBack, Undone},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    definition::{self, Machine},
    steps::steps,
};

/// Fields that may be null, and so may be left out as far as serde can tell.
const NULLABLE: [(&str, &str); 19] = [
    ("ResolveUndo", "failed"),
    ("ResolveUndo", "failure"),
    ("ResolveUndo", "after"),
    ("ResolveUndo", "soFar"),
    ("ResolveUndo", "last"),
    ("Report", "resolution"),
    ("Report", "failure"),
    ("Report", "failed"),
    ("Report", "soFar"),
    ("Report", "last"),
    ("PlanRevoke", "takeBack"),
    ("PlanRevoke", "plan"),
    ("PlanRevoke", "planHash"),
    ("ResolveRevoke", "progress"),
    ("ResolveRevoke", "last"),
    ("ReportRevoke", "progress"),
    ("ReportRevoke", "last"),
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
        "kmsKeyId": "arn:aws:kms:eu-west-1:222222222222:key/5678",
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
        "onFailure": "undo",
        "mostOfCause": 500
    })
}

fn failure() -> Value {
    json!({ "state": "LaunchInstance", "error": "LaunchFailed", "cause": "it did" })
}

fn kept() -> Value {
    json!({ "accountId": "222222222222", "imageId": "ami-0123456789abcdef2" })
}

/// What take-back is given; [`the_sample_is_a_take_back`] holds it to that.
fn take_back() -> Value {
    let change = json!({ "keyArn": "arn:aws:kms:eu-west-1:111111111111:key/1234", "accountIds": ["222222222222"] });
    json!({
        "execution": "nightly-1-0123abcd",
        "source": { "accountId": "111111111111", "region": "eu-west-1" },
        "imageId": "ami-0123456789abcdef0",
        "launchPermissions": ["222222222222"],
        "snapshotChanges": [{ "snapshotId": "snap-0123456789abcdef0", "accountIds": ["222222222222"] }],
        "targets": [from_target()],
        "grantChanges": [change.clone()],
        "revokeForeignGrants": false,
        "keyChanges": [change],
        "notes": [{
            "accountId": "222222222222",
            "imageId": "ami-0123456789abcdef0",
            "execution": "nightly-1-0123abcd",
            "going": "nightly-1-0123abcd",
            "gift": "{}"
        }],
        "kept": [kept()],
        "left": [left()]
    })
}

fn from_target() -> Value {
    json!({
        "accountId": "222222222222",
        "instances": [{ "execution": "nightly-1-0123abcd", "instanceId": "i-0123456789abcdef0" }],
        "copies": [{
            "execution": "nightly-1-0123abcd",
            "of": "ami-0123456789abcdef0",
            "notedAt": 1_795_489_200_000_i64,
            "copyId": "ami-0123456789abcdef1"
        }],
        "principalChanges": [{ "principal": "arn:aws:iam::222222222222:role/AmiShareLauncher" }]
    })
}

fn taken() -> Value {
    json!({
        "call": "ec2:ModifyImageAttribute",
        "accountId": "111111111111",
        "resource": "ami-0123456789abcdef0",
        "from": ["222222222222"]
    })
}

fn foreign_grants() -> Value {
    json!({
        "keyArn": "arn:aws:kms:eu-west-1:111111111111:key/1234",
        "accountId": "222222222222",
        "kind": "other",
        "stay": "notAsked",
        "grants": [{ "grantId": "0123", "grantee": "arn:aws:iam::555555555555:root" }],
        "more": 1
    })
}

/// What take-back answers; [`the_sample_is_a_take_back`] holds it to that.
fn taken_back() -> Value {
    json!({
        "taken": [taken()],
        "left": [left()],
        "kept": [kept()],
        "foreignGrants": [foreign_grants()],
        "unlisted": { "taken": 1, "left": 0, "kept": 2, "foreignGrants": 0 }
    })
}

/// As ResolveRevoke answers; [`the_sample_is_a_round`] holds it to that.
fn round() -> Value {
    json!({
        "execution": "revoke-1-0123abcd",
        "image": source_image(),
        "imageFound": true,
        "accounts": ["222222222222"],
        "takeBack": take_back(),
        "askUsage": true,
        "reportUsage": true,
        "plan": true,
        "left": [left()],
        "planHash": "f72000278f64efa800b180b5b2a4861e2aae1d4685599d8c454af9e30a294a85",
        "more": true,
        "progress": progress()
    })
}

fn usage_report() -> Value {
    json!({ "image": source_image(), "reportId": "report-0123" })
}

fn source_image() -> Value {
    json!({ "source": { "accountId": "111111111111", "region": "eu-west-1" }, "imageId": "ami-0123456789abcdef0" })
}

fn progress() -> Value {
    json!({
        "phase": "revoke",
        "begun": 1_764_273_600_000_i64,
        "order": [source_image()],
        "after": { "image": 0, "accountId": "222222222222" },
        "until": { "image": 0, "accountId": "444444444444" },
        "rounds": 2,
        "ofImage": true,
        "remaining": 3,
        "revoked": ["222222222222"],
        "images": ["ami-0123456789abcdef0"],
        "notOurs": ["222222222222"],
        "stays": ["222222222222"],
        "givenSince": ["222222222222"],
        "notAsked": ["222222222222"],
        "unlisted": 1,
        "done": taken_back()
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
    let states = json!({
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
    });
    json!({
        "execution": "nightly-1",
        "begun": "2026-11-24T03:00:00.000Z",
        "resolution": resolution(),
        "results": [],
        "failure": null,
        "failed": ["222222222222"],
        "executionArn": "arn:aws:states:eu-west-1:333333333333:execution:share-ami:nightly-1",
        "after": "222222222222",
        "soFar": taken_back(),
        "last": taken_back(),
        "taking": take_back(),
        "taken": [taken()],
        "left": [left()],
        "undone": from_target(),
        "progress": null,
        "plan": { "status": "planned" },
        "planned": { "arn:aws:kms:eu-west-1:111111111111:key/1234": { "before": "00ff", "after": "ff00" } },
        "target": target(),
        "thisRound": round(),
        "request": { "imageId": "ami-0123456789abcdef0", "targets": "all" },
        "phase": "check",
        "usage": {
            "targets": ["222222222222"],
            "images": [{ "image": source_image(), "answered": [0], "unasked": [] }],
            "uses": [used()],
            "unlisted": 0
        },
        "reports": [usage_report()],
        "plan": null,
        "foreign": { "grants": [foreign_grants()], "unlisted": 0 },
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
        "states": states
    })
}

/// Replaces every expression in `value`: all that is passed on are paths, `{% $a.b %}`, comparisons
/// with true, paths that may lead nowhere, `{% $exists($a.b) ? $a.b : '' %}` (or `: 0`), and beginnings of texts,
/// `{% $substring($a.b, 0, $a.c) %}`.
fn evaluate(value: &Value, variables: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("{%") => {
            let expression = text.trim_start_matches("{%").trim_end_matches("%}").trim();
            if let Some(path) = expression.strip_suffix(" = true") {
                json!(look_up(path, variables) == true)
            } else if let Some(arguments) = expression.strip_prefix("$substring(") {
                let (path, most) = arguments.trim_end_matches(')').split_once(", 0, ").unwrap();
                let (text, most) = (look_up(path, variables), look_up(most, variables).as_u64().unwrap());
                json!(text.as_str().unwrap().chars().take(usize::try_from(most).unwrap()).collect::<String>())
            } else if let Some((_, path)) = expression.split_once(") ? ") {
                match path.strip_suffix(" : 0") {
                    Some(path) => find(path, variables).unwrap_or(json!(0)),
                    None => look_up(path.trim_end_matches(" : ''"), variables),
                }
            } else if let Some(path) = expression.strip_prefix("$exists(") {
                json!(find(path.trim_end_matches(')'), variables).is_some())
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
    let machines = definition::machines();
    let mut tasks = machines.iter().flat_map(|machine| machine.tasks().into_iter().map(move |task| (machine, task)));
    let (machine, (_, task)) =
        tasks.find(|(_, (state, _))| state == name).unwrap_or_else(|| panic!("nobody calls {name}"));
    sent(machine, &task, variables)
}

/// The payload of a state. Some variables of two machines have one name.
fn sent(machine: &Machine, task: &Value, variables: &Value) -> Value {
    let mut variables = variables.clone();
    if machine.path == definition::take_back().path {
        variables["states"]["input"] = from_target();
    }
    if machine.path == definition::revoke_share().path && !variables["soFar"].is_null() {
        variables["soFar"] = progress();
    }
    evaluate(&task["Arguments"]["Payload"], &variables)
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
fn the_sample_is_a_usage_report() {
    let report: UsageReport = serde_json::from_value(usage_report()).unwrap();
    let answer = create_usage_report::Output { report, wait_seconds: 15 };
    assert_eq!(json(answer), json!({ "report": usage_report(), "waitSeconds": 15 }));
}

#[test]
fn the_sample_is_a_take_back() {
    let parsed: TakeBack = serde_json::from_value(take_back()).unwrap();
    assert_eq!(serde_json::to_value(parsed).unwrap(), take_back());
    let parsed: TakenBack = serde_json::from_value(taken_back()).unwrap();
    assert_eq!(serde_json::to_value(parsed).unwrap(), taken_back());
}

/// Its input is read by no function, so nobody else would say that a field is missing.
#[test]
fn take_back_reads_only_what_a_take_back_has() {
    let mut read = 0;
    for text in definition::strings(&definition::take_back().whole) {
        for rest in text.split("$taking.").skip(1) {
            let field: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
            // Nothing for a revoke, and so not in the sample.
            assert!(field == "note" || take_back().get(&field).is_some(), "{text}");
            read += 1;
        }
    }
    assert!(read >= 20, "{read}");
}

#[test]
fn every_payload_is_what_its_step_takes() {
    let steps = steps();
    for machine in definition::machines() {
        for (name, task) in machine.tasks() {
            let step = steps.iter().find(|step| step.state == name).unwrap_or_else(|| panic!("nobody is {name}"));
            let payload = sent(&machine, &task, &variables());
            (step.decode)(payload).unwrap_or_else(|error| panic!("{}: {name}: {error}", machine.path));
        }
    }
}

/// But for whose share it is, and that nobody knows what ended it.
#[test]
fn both_machines_send_a_step_the_same() {
    for (name, task) in definition::undo_share().tasks() {
        let mut expected = state(&name)["Arguments"].clone();
        if name == "ResolveUndo" {
            expected["Payload"]["executionArn"] = json!("{% $executionArn %}");
            expected["Payload"]["failure"] = Value::Null;
        }
        assert_eq!(task["Arguments"], expected, "{name}");
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
        ["ConfirmTarget", "FailTarget"].iter().map(|name| evaluate(&state(name)["Output"], &variables())).collect();
    let mut variables = variables();
    variables["results"] = json!(outcomes);
    decode_report(&variables);
}

#[test]
fn what_a_target_failed_with_is_cut_to_the_room_that_there_is_for_it() {
    let mut variables = variables();
    variables["targetFailure"] = failure();
    variables["targetFailure"]["cause"] = json!("x".repeat(30_000));
    let most = variables["resolution"]["mostOfCause"].as_u64().unwrap();
    let told = evaluate(&state("FailTarget")["Output"]["failure"], &variables);
    let expected = "x".repeat(usize::try_from(most).unwrap());
    assert_eq!(told, json!({ "state": "LaunchInstance", "error": "LaunchFailed", "cause": expected }));
}

#[test]
fn report_takes_what_a_catch_remembers() {
    let mut variables = variables();
    for (_, task) in definition::share_ami().states() {
        for catch in task["Catch"].as_array().into_iter().flatten() {
            for remembered in ["failure", "targetFailure", "settleFailure", "reportFailure"] {
                let remembered = &catch["Assign"][remembered];
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
    for name in ["results", "failed", "soFar", "last"] {
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

/// What is left is remembered by `{'accountId': …, 'state': …}`: its fields are read from the expressions.
#[test]
fn what_is_remembered_as_left_is_one() {
    let mut seen = 0;
    for (name, task) in definition::all_states() {
        for text in definition::strings(&task["Catch"]) {
            let Some(left) = remembered_as_left(text) else { continue };
            serde_json::from_value::<Left>(left).unwrap_or_else(|error| panic!("{name}: {error}"));
            seen += 1;
        }
    }
    assert_eq!(seen, 8 + 1 + 3 + 2);
}

fn remembered_as_left(text: &str) -> Option<Value> {
    let (before, after) = text.split_once("'state': $states.context.State.Name, ")?;
    let mut left = json!({ "state": "a text" });
    if before.contains("{'accountId': ") {
        left["accountId"] = json!("222222222222");
    }
    let pieces: Vec<&str> = after.split("': ").collect();
    for piece in &pieces[..pieces.len() - 1] {
        left[piece.rsplit_once('\'')?.1] = json!("a text");
    }
    Some(left)
}

/// Where no function can say what became of a take-back, the definition does.
#[test]
fn what_a_definition_says_of_a_take_back_is_as_its_answer() {
    let numbers = |text: &str| (text.contains("$count(") && !text.contains("$append(")).then(|| json!(1));
    let mut made: Vec<Value> = vec![definition::take_back().state("RewriteNotes")["Catch"][0]["Output"].clone()];
    for machine in [definition::share_ami(), definition::undo_share(), definition::revoke_share()] {
        made.push(machine.state("TakeBack")["Catch"][0]["Assign"]["last"].clone());
    }
    for mut taken_back in made {
        for (_, list) in taken_back.as_object_mut().unwrap() {
            if list.is_string() {
                *list = json!([remembered_as_left(list.as_str().unwrap()).unwrap()]);
            } else if let Some(text) = list[0].as_str() {
                *list = json!([remembered_as_left(text).unwrap()]);
            } else if let Some(counts) = list.as_object_mut() {
                for (_, count) in counts {
                    *count = count.as_str().and_then(numbers).unwrap_or_else(|| count.clone());
                }
            }
        }
        let parsed: TakenBack =
            serde_json::from_value(taken_back.clone()).unwrap_or_else(|error| panic!("{error}: {taken_back}"));
        assert_eq!((parsed.left.len(), parsed.taken.len()), (1, 0));
    }
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
    let answers = [
        ("ResolveImage", resolution()),
        (
            "PlanShare",
            json(plan_share::Output {
                plan: None,
                policies: PlannedPolicies::default(),
                note: "plan#00ff".to_owned(),
                claim: true,
            }),
        ),
        (
            "ResolveUndo",
            json(resolve_undo::Output {
                take_back: serde_json::from_value(take_back()).unwrap(),
                more: false,
                after: None,
                so_far: TakenBack::default(),
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
        ("CreateUsageReport", json!({ "report": usage_report(), "waitSeconds": 15 })),
        (
            "DescribeUsageReport",
            json(describe_usage_report::Output {
                state: describe_usage_report::State::Available,
                wait_seconds: 0,
                usage: Usage::default(),
            }),
        ),
        ("AuditShares", json(audit_shares::Output { progress: None, report: None, table: None })),
        ("UndoGrantKeys", json(grant_keys::Undone::default())),
    ];
    for (name, task) in definition::machines().iter().flat_map(Machine::tasks) {
        for text in definition::strings(&task["Assign"]) {
            let Some((_, field)) = text.split_once("$states.result.Payload.") else { continue };
            let field = field.trim_end_matches("%}").trim().trim_end_matches(')');
            let answer = answers.iter().find(|(state, _)| *state == name);
            let undone = name.starts_with("Undo").then(|| json(Undone::default()));
            let answer = answer.map(|(_, answer)| answer.clone()).or(undone);
            let answer = answer.unwrap_or_else(|| panic!("there is no sample of what {name} answers"));
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
    let never = json(ami_share_core::share::Prove::Never);
    let never = format!("$target.launch.prove = '{}'", never.as_str().unwrap());
    for (name, index) in [("CheckCopy", 0), ("ChooseReencryption", 1)] {
        let choice = &state(name)["Choices"][index];
        assert!(choice["Condition"].as_str().unwrap().contains(&never), "{name}");
        assert_eq!(choice["Next"], "ConfirmTarget");
    }
    let available = json(describe_usage_report::State::Available);
    let expected = format!("{{% $usageState = '{}' %}}", available.as_str().unwrap());
    assert_eq!(revoke_state("CheckUsageReport")["Choices"][0]["Condition"], expected);
    let check = format!("$soFar.phase = '{}'", json(ami_share_core::revoke::Phase::Check).as_str().unwrap());
    assert!(revoke_state("ChooseRound")["Choices"][1]["Condition"].as_str().unwrap().contains(&check));
    assert_eq!(revoke_state("CheckPlan")["Assign"]["phase"], json(ami_share_core::revoke::Phase::Revoke));
    let plan = json(ami_share_core::share::Action::Plan);
    let plan = format!(".action = '{}'", plan.as_str().unwrap());
    for (name, state) in [
        ("ChoosePlan", state("ChoosePlan")),
        ("CheckPlan", state("CheckPlan")),
        ("CheckPlan", revoke_state("CheckPlan")),
    ] {
        assert!(state["Choices"][0]["Condition"].as_str().unwrap().contains(&plan), "{name}");
    }
    let again = json(describe_instance::State::Again);
    let again = format!("{{% $instanceState = '{}' %}}", again.as_str().unwrap());
    assert_eq!(state("CheckInstance")["Choices"][1]["Condition"], again);
    for choice in state("CheckTargets")["Choices"].as_array().unwrap() {
        if let Some((_, rest)) = choice["Condition"].as_str().unwrap().split_once("$resolution.onFailure = '") {
            let on_failure = rest.split_once('\'').unwrap().0;
            serde_json::from_value::<OnFailure>(json!(on_failure)).unwrap_or_else(|error| panic!("{error}"));
        }
    }
    for (name, variable, value) in answers {
        let expected = format!("{{% ${variable} = '{}' ", value.as_str().unwrap());
        assert!(state(name)["Choices"][0]["Condition"].as_str().unwrap().starts_with(&expected), "{name}");
    }
}

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}
