//! An undo that fails: the first cause stays the cause, what was left is named, and the other undos
//! are done all the same.

use std::collections::BTreeMap;

use ami_share_sandbox::faults::{Fault, FaultKind, Hook, Matcher, RootCall, When};
use ami_share_tests::{REGION, Result, SOURCE, TARGET, clients::root_of, deploy, local::Settings, seed};
use serde_json::{Value, json};

use crate::Stage;

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

#[tokio::test]
async fn an_undo_that_fails_is_named_and_the_others_are_done() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let failing = deploy::deploy_failing_function(&stage.local.engine).await?;
    let no_room = |call: &str| {
        let kind = FaultKind::Error {
            code: "InsufficientInstanceCapacity".to_owned(),
            message: "There is no room.".to_owned(),
            status: 400,
        };
        stage.local.sandbox.world().faults.add(Fault::once(Matcher::action(call).in_account(TARGET), kind));
    };
    for (undo, part) in UNDOS {
        stage.reset();
        let function = format!("{undo}Function");
        let machine = stage.local.hub.share_ami_with(&stage.local.engine, undo, &function, &failing).await?;
        // An instance is left only where there was one: then it is a later step that fails.
        let (call, state, error) = match undo {
            "UndoLaunchInstance" => ("ec2:DescribeVolumes", "VerifyVolumes", "Aws"),
            _ => ("ec2:RunInstances", "LaunchInstance", "LaunchFailed"),
        };
        let reencrypt = match undo {
            "UndoCopyImage" | "UndoShareSnapshots" => json!({ "mode": "copyImage", "kmsKeyId": "alias/app-volumes" }),
            _ => Value::Null,
        };
        let request = stage.request(json!({ "principals": [stage.target().principal], "reencrypt": reencrypt }));
        no_room(call);
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
        for (undo, _) in UNDOS {
            assert!(run.ended.entered(undo), "{undo} was not entered: {:?}", run.ended.states);
        }
    }
    Ok(())
}

/// Within one undo too: what cannot be taken back does not keep the rest.
#[tokio::test]
async fn a_key_whose_policy_cannot_be_written_any_more_does_not_keep_the_others_shared() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let sandbox = stage.local.sandbox.endpoint();
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &sandbox));
    // The first that is looked at: UndoShareKey takes the keys in the order of their ARNs.
    let mut keys = stage.image.key_arns();
    keys.sort();
    let leaver = seed::role(&sandbox, SOURCE, "leaver").await?;
    let mut policy = seed::key_policy(SOURCE, "golden-image-key-admin");
    let statement = json!({
        "Sid": "Leaver", "Effect": "Allow", "Principal": { "AWS": leaver }, "Action": "kms:Encrypt", "Resource": "*",
    });
    policy["Statement"].as_array_mut().ok_or("no list")?.push(statement);
    kms.put_key_policy().key_id(keys[0]).policy(policy.to_string()).send().await?;
    {
        let mut world = stage.local.sandbox.world();
        let launch = Matcher::action("ec2:RunInstances").in_account(TARGET);
        world.faults.add(Fault::once(launch.clone(), FaultKind::Fail { reason: "Server.InternalError".to_owned() }));
        world.faults.add_hook(Hook {
            when: When::Before,
            matcher: launch,
            skip: 0,
            calls: vec![RootCall {
                account: SOURCE.to_owned(),
                region: REGION.to_owned(),
                service: "iam".to_owned(),
                action: "DeleteRole".to_owned(),
                params: json!({ "RoleName": "leaver" }),
            }],
        });
    }
    let run = stage.run("leaver", &stage.request(json!({}))).await?;
    assert_eq!(stage.local.sandbox.world().faults.failed_hooks, [""; 0]);
    assert_eq!(run.error(), "InstanceDied", "{}", run.summary());
    for said in ["UndoShareKey failed with KeyPolicyConflict", keys[0], "statement Leaver names AROA"] {
        assert!(run.cause().contains(said), "the cause does not say {said:?}: {}", run.cause());
    }
    let policy = |snapshots: &BTreeMap<String, Value>, key: &str| {
        snapshots[SOURCE]["kms"][REGION][key]["policy"]["Statement"].as_array().map(Vec::len)
    };
    assert_eq!(policy(&run.before, keys[0]), Some(3));
    assert_eq!(policy(&run.after, keys[0]), Some(5), "our statements are left");
    assert_eq!(policy(&run.before, keys[1]), Some(2));
    assert_eq!(policy(&run.after, keys[1]), Some(2), "our statements are gone");
    assert_eq!(run.before[TARGET], run.after[TARGET]);
    Ok(())
}
