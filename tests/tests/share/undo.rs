//! An undo that fails: the first cause stays the cause, what was left is named, and all the rest is
//! taken back.

use std::{
    collections::BTreeMap,
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use ami_share_core::{
    ids::{AccountId, KeyArn},
    key_policy::KeyPolicy,
    share::EXECUTION_TAG,
};
use ami_share_sandbox::faults::{Fault, FaultKind, Hook, Matcher, RootCall, When};
use ami_share_tests::{HUB, REGION, Result, SOURCE, TARGET, deploy, local::Settings, stop::Stopper};
use serde_json::{Value, json};

use crate::{Stage, ec2, key_mut};

/// Each undo with what it takes back, as [`parts`] names it.
const UNDOS: [(&str, &str); 6] = [
    ("UndoLaunchInstance", "instance"),
    ("UndoCopyImage", "copy"),
    ("UndoGrantPrincipals", "principals"),
    ("UndoShareImage", "launch permission"),
    ("UndoShareSnapshots", "snapshot permissions"),
    ("UndoShareKey", "key policies"),
];

/// The world in the parts that steps change.
fn parts(snapshots: &BTreeMap<String, Value>) -> BTreeMap<&'static str, Value> {
    let (source, target) = (&snapshots[SOURCE], &snapshots[TARGET]);
    // An account without anything in EC2 has no lists of it either.
    let list = |name: &str| target["ec2"][REGION][name].as_object().cloned().unwrap_or_default();
    BTreeMap::from([
        ("instance", json!([list("instances"), list("volumes")])),
        ("copy", json!([list("images"), list("snapshots")])),
        ("principals", target["iam"].clone()),
        ("launch permission", source["ec2"][REGION]["images"].clone()),
        ("snapshot permissions", source["ec2"][REGION]["snapshots"].clone()),
        ("key policies", source["kms"].clone()),
    ])
}

/// The next such call in the target fails.
fn no_room(stage: &Stage, call: &str) {
    let kind = FaultKind::Error {
        code: "InsufficientInstanceCapacity".to_owned(),
        message: "There is no room.".to_owned(),
        status: 400,
    };
    stage.local.sandbox.world().faults.add(Fault::once(Matcher::action(call).in_account(TARGET), kind));
}

#[tokio::test]
async fn an_undo_that_fails_is_named_and_the_others_are_done() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let stopper = Stopper::new(&stage.local).await?;
    let failing = deploy::deploy_failing_function(&stage.local.engine).await?;
    let request = stage.request(json!({
        "principals": [stage.target().principal],
        "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" },
    }));
    for (undo, part) in UNDOS {
        stage.reset();
        let function = format!("{undo}Function");
        let (hub, engine) = (&stage.local.hub, &stage.local.engine);
        let (machine, take_back) = hub.taking_back_with(engine, &hub.state_machine, undo, &function, &failing).await?;
        // An instance is left only where there was one: then it is a later step that fails.
        let (call, state, error) = match undo {
            "UndoLaunchInstance" => ("ec2:DescribeVolumes", "VerifyVolumes", "Aws"),
            _ => ("ec2:RunInstances", "LaunchInstance", "LaunchFailed"),
        };
        no_room(&stage, call);
        let run = stage.run_on(&machine, undo, &request).await?;
        assert_eq!(run.error(), error, "{undo}: {}", run.summary());
        let cause = run.cause();
        assert!(cause.starts_with(&format!("{state}: ")) && cause.contains("There is no room"), "{undo}: {cause}");
        let (_, left) = cause.split_once("Not everything could be taken back: ").ok_or_else(|| cause.to_owned())?;
        let place = match undo {
            "UndoLaunchInstance" | "UndoCopyImage" | "UndoGrantPrincipals" => format!(" in account {TARGET}"),
            _ => String::new(),
        };
        assert_eq!(left, format!("{undo}{place} failed with InjectedFailure: This step was made to fail."), "{undo}");
        let (before, after) = (parts(&run.before), parts(&run.after));
        let differing: Vec<&str> = before.keys().copied().filter(|part| before[part] != after[part]).collect();
        assert_eq!(differing, [part], "{undo}");
        let child = stopper.follow(&stopper.only_execution_of(&take_back).await?).await?;
        for state in UNDOS.map(|(state, _)| state).into_iter().chain(["RewriteNotes"]) {
            assert!(child.entered(state), "{undo}: {state} was not entered: {:?}", child.states);
        }
    }
    Ok(())
}

fn root_call(account: &str, service: &str, action: &str, params: Value) -> RootCall {
    RootCall {
        account: account.to_owned(),
        region: REGION.to_owned(),
        service: service.to_owned(),
        action: action.to_owned(),
        params,
    }
}

/// Denies a role of ami-share that action on that resource.
fn deny(account: &str, role: &str, action: &str, resource: &str) -> RootCall {
    let document = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Deny", "Action": action, "Resource": resource },
    ]});
    let params = json!({ "RoleName": role, "PolicyName": "Guard", "PolicyDocument": document.to_string() });
    root_call(account, "iam", "PutRolePolicy", params)
}

/// Just before the launch, which fails, somebody locks the first key's policy, the first snapshot's
/// permissions and the first principal's policies. The undos run into each first.
#[tokio::test]
async fn what_cannot_be_taken_back_does_not_keep_the_rest() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let keys = stage.image.key_arns();
    let (locked_key, other_key) = (KeyArn::parse(keys[0])?, KeyArn::parse(keys[1])?);
    let before = key_mut(&mut stage.local.sandbox.world(), keys[0]).policy.latest().text.clone();
    let target = AccountId::parse(TARGET)?;
    let shared = KeyPolicy::parse(&locked_key, &before)?.with([&target])?.ok_or("it is shared already")?.to_text()?;
    let mut locked: Value = serde_json::from_str(&shared)?;
    let statements = locked["Statement"].as_array_mut().ok_or("no statements")?;
    statements.push(json!({
        "Sid": "Guard",
        "Effect": "Deny",
        "Principal": { "AWS": format!("arn:aws:iam::{SOURCE}:role/AmiShareSource") },
        "Action": "kms:PutKeyPolicy",
        "Resource": "*",
    }));
    let snapshots: Vec<&str> = stage.image.volumes.iter().map(|volume| volume.snapshot_id.as_str()).collect();
    let launcher = format!("arn:aws:iam::{TARGET}:role/AmiShareLauncher");
    let put = json!({ "KeyId": keys[0], "PolicyName": "default", "Policy": locked.to_string() });
    let snapshot = format!("arn:aws:ec2:{REGION}::snapshot/{}", snapshots[0]);
    stage.local.sandbox.world().faults.add_hook(Hook {
        when: When::Before,
        matcher: Matcher::action("ec2:RunInstances").in_account(TARGET),
        skip: 0,
        calls: vec![
            root_call(SOURCE, "kms", "PutKeyPolicy", put),
            deny(SOURCE, "AmiShareSource", "ec2:ModifySnapshotAttribute", &snapshot),
            deny(TARGET, "AmiShareTarget", "iam:DetachRolePolicy", &launcher),
        ],
    });
    no_room(&stage, "ec2:RunInstances");
    let request = stage.request(json!({
        "principals": [stage.target().principal],
        "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" },
    }));
    let run = stage.run("locked", &request).await?;
    assert!(stage.local.sandbox.world().faults.failed_hooks.is_empty(), "a lock could not be put on");
    assert_eq!(run.error(), "LaunchFailed", "{}", run.summary());
    let (_, left) = run.cause().split_once("Not everything could be taken back: ").ok_or_else(|| run.summary())?;
    for (undo, call) in [
        ("UndoGrantPrincipals", "iam:DetachRolePolicy"),
        ("UndoShareSnapshots", "ec2:ModifySnapshotAttribute"),
        ("UndoShareKey", "kms:PutKeyPolicy"),
    ] {
        assert!(left.contains(undo) && left.contains(call), "{undo}: {left}");
    }
    for undo in ["UndoLaunchInstance", "UndoCopyImage", "UndoShareImage"] {
        assert!(!left.contains(undo), "{left}");
    }

    let key_accounts = |key: &KeyArn| -> Result<Vec<AccountId>> {
        let text = key_mut(&mut stage.local.sandbox.world(), key.as_str()).policy.latest().text.clone();
        Ok(KeyPolicy::parse(key, &text)?.accounts().into_iter().collect())
    };
    assert_eq!(key_accounts(&locked_key)?, [target]);
    assert_eq!(key_accounts(&other_key)?, []);
    let permissions = |id| run.after[SOURCE]["ec2"][REGION]["snapshots"][id]["createVolumePermissions"].clone();
    assert_eq!(snapshots.into_iter().map(permissions).collect::<Vec<_>>(), [json!([TARGET]), json!([]), json!([])]);
    let roles = &run.after[TARGET]["iam"]["roles"];
    let key_access = format!("arn:aws:iam::{TARGET}:policy/AmiShareKeyAccess");
    assert_eq!(roles["AmiShareLauncher"]["attached"], json!([key_access]));
    assert_eq!(roles["app-deployer"]["attached"], json!([]));
    let (before, after) = (parts(&run.before), parts(&run.after));
    for part in ["instance", "copy", "launch permission"] {
        assert_eq!(before[part], after[part], "{part}");
    }
    Ok(())
}

#[tokio::test]
async fn a_copy_that_is_unavailable_for_a_moment_is_tried_again() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    no_room(&stage, "ec2:RunInstances");
    let kind = FaultKind::Error {
        code: "InvalidAMIID.Unavailable".to_owned(),
        message: "The image is not in a state that allows it.".to_owned(),
        status: 400,
    };
    stage.local.sandbox.world().faults.add(Fault::once(Matcher::action("ec2:DeregisterImage"), kind));
    let request = stage.request(json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" } }));
    let run = stage.run("unavailable", &request).await?;
    assert_eq!(run.error(), "LaunchFailed", "{}", run.summary());
    assert!(run.cause().contains("Everything that this execution had added was taken back"), "{}", run.cause());
    assert_eq!(run.writes().iter().filter(|action| **action == "ec2:DeregisterImage").count(), 2);
    assert_eq!(run.differences(), "");
    Ok(())
}

#[tokio::test]
async fn a_copy_that_was_there_before_stays_whatever_its_tags_say() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let request = stage.request(json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" } }));
    let run = stage.run("first", &request).await?;
    assert!(run.succeeded(), "{}", run.summary());
    let images = || ec2(&mut stage.local.sandbox.world(), TARGET).images.clone();
    let (copy, image) = images().pop_first().ok_or("there is no copy")?;
    let execution = &image.tags[EXECUTION_TAG];

    let undo = |copies: Value| -> Result<Value> {
        let target = json!({ "accountId": TARGET, "instances": [], "copies": copies, "principalChanges": [] });
        let source = json!({ "accountId": SOURCE, "region": REGION });
        let payload = json!({ "execution": "by-hand", "source": source, "target": target });
        let answer = stage.local.engine.directory().join("answer.json");
        let output = deploy::aws(HUB, &stage.local.engine.endpoint())?
            .args(["lambda", "invoke", "--function-name", &stage.local.hub.function("UndoCopyImageFunction")?])
            .args(["--payload", &payload.to_string()])
            .arg(&answer)
            .output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&fs::read(answer)?)?)
    };
    // Made by the execution without a note of its id, but: nothing was made; of another image; before it was noted that one
    // is to be made; and by its id, which another one has.
    let made = json!({ "execution": execution, "of": stage.image.image_id, "notedAt": 0 });
    let other = "ami-0000000000000000f";
    let later = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())? + 3_600_000;
    for copies in [
        json!([]),
        json!([with(&made, "of", json!(other))]),
        json!([with(&made, "notedAt", json!(later))]),
        json!([with(&made, "copyId", json!(other))]),
    ] {
        assert_eq!(undo(copies.clone())?, json!({ "taken": [] }), "{copies}");
        assert_eq!(images().len(), 1, "{copies}");
    }
    // Where all fits, it finds the copy by its tag.
    let taken = undo(json!([made]))?["taken"].clone();
    let taken: Vec<(&str, &str)> = taken
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|taken| Some((taken["call"].as_str()?, taken["resource"].as_str()?)))
        .collect();
    assert_eq!(taken.len(), 1 + stage.image.volumes.len(), "{taken:?}");
    assert_eq!(taken[0], ("ec2:DeregisterImage", copy.as_str()));
    assert!(taken[1..].iter().all(|(call, _)| *call == "ec2:DeleteSnapshot"), "{taken:?}");
    assert_eq!(images().len(), 0);
    Ok(())
}

fn with(made: &Value, field: &str, value: Value) -> Value {
    let mut made = made.clone();
    made[field] = value;
    made
}
