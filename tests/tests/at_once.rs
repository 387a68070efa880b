//! Two executions for the same image and target at once: both find the same missing, and both end well. Where one
//! fails, the other keeps what both gave; where both fail, nothing stays.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    key_policy::{GRANT_SID, USE_SID},
    share::EXECUTION_TAG,
};
use ami_share_sandbox::faults::{Fault, FaultKind, Matcher};
use ami_share_tests::{
    Result, SOURCE, TARGET,
    clients::root_of,
    execution::{self, Ended},
    local::{Local, Settings},
    seed,
    stop::Stopper,
};
use aws_sdk_ec2::types::{Filter, ImageAttributeName, LaunchPermission, LaunchPermissionModifications};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

/// How long each one is held up in ResolveImage, after it has read what there is and before anything is changed.
const DELAY_MS: u64 = 1_500;

const NAMES: [&str; 2] = ["first", "second"];

/// Runs both, neither of which sees anything of the other's when it decides what is missing.
async fn run_both(local: &Local, request: &Value) -> Result<Vec<Ended>> {
    for name in NAMES {
        let last_read = Matcher {
            session: Some(format!("{name}-*")),
            ..Matcher::action("ec2:DescribeImageAttribute").in_account(SOURCE)
        };
        local.sandbox.world().faults.add(Fault::once(last_read, FaultKind::Delay { ms: DELAY_MS }));
    }
    let engine = local.engine.endpoint();
    let mut started = Vec::new();
    for name in NAMES {
        started.push(execution::start(&engine, &local.hub.state_machine, name, request).await?);
    }
    let mut both = Vec::new();
    for arn in &started {
        both.push(execution::follow(&engine, arn, |_| {}).await?);
    }
    assert!(local.sandbox.world().faults.faults().is_empty(), "a fault did not strike");
    Ok(both)
}

/// What each was to add, and the notes of what each gave.
fn noted(stopper: &Stopper) -> Result<(Vec<Value>, BTreeMap<String, Value>)> {
    let (mut resolutions, mut gifts) = (Vec::new(), BTreeMap::new());
    for record in stopper.records()? {
        if let Some(resolution) = record["resolution"]["S"].as_str() {
            resolutions.push(serde_json::from_str(resolution)?);
        } else if let Some(gift) = record["gift"]["S"].as_str() {
            gifts.insert(record["part"]["S"].as_str().unwrap_or_default().to_owned(), serde_json::from_str(gift)?);
        } else {
            assert!(record["heldBy"].is_null(), "the lock is still held: {record}");
        }
    }
    Ok((resolutions, gifts))
}

/// The accounts that our statements in the key's policy name, by Sid, each as often as it is named.
async fn named(local: &Local, key: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &local.sandbox.endpoint()));
    let text = kms.get_key_policy().key_id(key).policy_name("default").send().await?.policy.unwrap_or_default();
    let policy: Value = serde_json::from_str(&text)?;
    let statements = policy["Statement"].as_array().cloned().unwrap_or_default();
    let ours = statements
        .into_iter()
        .filter(|statement| [USE_SID, GRANT_SID].contains(&statement["Sid"].as_str().unwrap_or_default()));
    let principals = |statement: &Value| match &statement["Principal"]["AWS"] {
        Value::Array(list) => list.iter().filter_map(|arn| arn.as_str().map(str::to_owned)).collect(),
        one => one.as_str().map(str::to_owned).into_iter().collect(),
    };
    Ok(ours
        .map(|statement| (statement["Sid"].as_str().unwrap_or_default().to_owned(), principals(&statement)))
        .collect())
}

async fn share_twice(reencrypt: Value, copies: usize) -> Result<()> {
    let local = Local::start(Settings::default()).await?;
    let sandbox = local.sandbox.endpoint();
    let image = seed::image(&sandbox, SOURCE, "golden-image").await?;
    let target = seed::target(&sandbox, TARGET).await?;
    let request = json!({ "imageId": image.image_id, "targets": [{
        "accountId": TARGET, "principals": [target.principal], "reencrypt": reencrypt,
    }]});
    for ended in run_both(&local, &request).await? {
        assert_eq!(ended.status, ExecutionStatus::Succeeded, "{:?} {:?}", ended.error, ended.cause);
    }
    let (resolutions, gifts) = noted(&Stopper::new(&local).await?)?;

    assert_eq!(resolutions.len(), 2);
    for resolution in &resolutions {
        assert_eq!(resolution["launchPermissions"], json!([TARGET]), "one came too late to be at once");
        assert_eq!(resolution["keyChanges"].as_array().map(Vec::len), Some(2), "one came too late to be at once");
    }
    // What is there is there once, and both have noted it.
    let once = vec![format!("arn:aws:iam::{TARGET}:root")];
    for key in image.key_arns() {
        let expected = BTreeMap::from([USE_SID, GRANT_SID].map(|sid| (sid.to_owned(), once.clone())));
        assert_eq!(named(&local, key).await?, expected, "{key}");
    }
    let ec2 = aws_sdk_ec2::Client::new(&root_of(SOURCE, &sandbox));
    let attribute =
        ec2.describe_image_attribute().image_id(&image.image_id).attribute(ImageAttributeName::LaunchPermission);
    let permissions = attribute.send().await?.launch_permissions.unwrap_or_default();
    assert_eq!(permissions.iter().map(|permission| permission.user_id()).collect::<Vec<_>>(), [Some(TARGET)]);
    let executions: BTreeSet<&str> =
        resolutions.iter().filter_map(|resolution| resolution["execution"].as_str()).collect();
    let parts: BTreeSet<String> =
        executions.iter().map(|execution| format!("{}#{execution}", image.image_id)).collect();
    assert_eq!(gifts.keys().cloned().collect::<BTreeSet<_>>(), parts);
    for (part, gift) in &gifts {
        let changes = &gift["target"]["sourceChanges"];
        assert_eq!(changes["launchPermission"], true, "{part}");
        assert_eq!(changes["keyArns"].as_array().map(Vec::len), Some(2), "{part}");
        assert_eq!(gift["target"]["principalChanges"].as_array().map(Vec::len), Some(2), "{part}");
    }

    // What was made is of an execution that has noted its gift; no proof is left.
    let ec2 = aws_sdk_ec2::Client::new(&root_of(TARGET, &sandbox));
    let made = ec2.describe_images().owners("self").send().await?.images.unwrap_or_default();
    assert_eq!(made.len(), copies);
    for copy in &made {
        let tags = copy.tags();
        let by = tags.iter().find(|tag| tag.key() == Some(EXECUTION_TAG)).and_then(|tag| tag.value());
        assert!(by.is_some_and(|by| executions.contains(by)), "{tags:?}");
    }
    let states = ["pending", "running", "stopping", "stopped"].map(str::to_owned).to_vec();
    let alive = Filter::builder().name("instance-state-name").set_values(Some(states)).build();
    let instances = ec2.describe_instances().filters(alive).send().await?.reservations.unwrap_or_default();
    assert!(instances.is_empty(), "{instances:?}");

    // And the next one finds everything there.
    let engine = local.engine.endpoint();
    let arn = execution::start(&engine, &local.hub.state_machine, "third", &request).await?;
    let third = execution::follow(&engine, &arn, |_| {}).await?;
    assert_eq!(third.status, ExecutionStatus::Succeeded, "{:?}", third.cause);
    assert!(!third.entered("ShareKey") && !third.entered("LaunchInstance"), "{:?}", third.states);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_share_and_what_they_share_is_there_once() -> Result<()> {
    share_twice(Value::Null, 0).await
}

/// Each makes a copy of its own.
#[tokio::test(flavor = "multi_thread")]
async fn both_copy_and_each_copy_is_of_one_of_them() -> Result<()> {
    share_twice(json!({ "mode": "copyImage", "kmsKeyId": "alias/app-volumes" }), 2).await
}

/// The proof of the execution of that name cannot be terminated the first time: it fails at its very end.
fn fail_at_the_end(local: &Local, name: &str) {
    let refusal = FaultKind::Error {
        code: "UnauthorizedOperation".to_owned(),
        message: "The target's owner says no.".to_owned(),
        status: 403,
    };
    let matcher =
        Matcher { session: Some(format!("{name}-*")), ..Matcher::action("ec2:TerminateInstances").in_account(TARGET) };
    local.sandbox.world().faults.add(Fault::once(matcher, refusal));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_fails_leaves_to_the_other_what_both_gave() -> Result<()> {
    let local = Local::start(Settings::default()).await?;
    let sandbox = local.sandbox.endpoint();
    let image = seed::image(&sandbox, SOURCE, "golden-image").await?;
    let target = seed::target(&sandbox, TARGET).await?;
    let mut request = json!({
        "imageId": image.image_id,
        "targets": [{ "accountId": TARGET, "principals": [target.principal] }],
    });
    fail_at_the_end(&local, NAMES[1]);
    let both = run_both(&local, &request).await?;
    assert_eq!(both[0].status, ExecutionStatus::Succeeded, "{:?} {:?}", both[0].error, both[0].cause);
    assert_eq!(both[1].status, ExecutionStatus::Failed);

    // The share is whole: nothing is missing, and a launch with it runs.
    request["targets"][0]["launch"] = json!({ "prove": "always" });
    let engine = local.engine.endpoint();
    let arn = execution::start(&engine, &local.hub.state_machine, "third", &request).await?;
    let third = execution::follow(&engine, &arn, |_| {}).await?;
    assert_eq!(third.status, ExecutionStatus::Succeeded, "{:?}", third.cause);
    let changed = &third.output.unwrap_or_default()["changed"];
    for list in ["keys", "launchPermissions", "principals"] {
        assert_eq!(changed[list], json!([]), "{list}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_both_fail_nothing_stays() -> Result<()> {
    let local = Local::start(Settings::default()).await?;
    let sandbox = local.sandbox.endpoint();
    let image = seed::image(&sandbox, SOURCE, "golden-image").await?;
    let principal = seed::target(&sandbox, TARGET).await?.principal;
    let request = json!({
        "imageId": image.image_id,
        "targets": [{ "accountId": TARGET, "principals": [principal] }],
    });
    let snapshots = || [SOURCE, TARGET].map(|account| local.sandbox.world().snapshot(account));
    let before = snapshots();
    NAMES.iter().for_each(|name| fail_at_the_end(&local, name));
    for ended in run_both(&local, &request).await? {
        assert_eq!(ended.status, ExecutionStatus::Failed);
    }
    assert_eq!(snapshots(), before);
    let (_, gifts) = noted(&Stopper::new(&local).await?)?;
    assert!(gifts.is_empty(), "{gifts:?}");
    Ok(())
}

/// The note of the first still says that it gave it.
#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_took_away_before_an_execution_began_is_not_kept_for_the_one_that_gave_it() -> Result<()> {
    let local = Local::start(Settings::default()).await?;
    let sandbox = local.sandbox.endpoint();
    let image = seed::image(&sandbox, SOURCE, "golden-image").await?;
    seed::target(&sandbox, TARGET).await?;
    let request = json!({ "imageId": image.image_id, "targets": [{ "accountId": TARGET }] });
    let (engine, share_ami) = (local.engine.endpoint(), &local.hub.state_machine);
    let arn = execution::start(&engine, share_ami, "early", &request).await?;
    let first = execution::follow(&engine, &arn, |_| {}).await?;
    assert_eq!(first.status, ExecutionStatus::Succeeded);

    let ec2 = aws_sdk_ec2::Client::new(&root_of(SOURCE, &sandbox));
    let target = LaunchPermission::builder().user_id(TARGET).build();
    let none = LaunchPermissionModifications::builder().remove(target).build();
    ec2.modify_image_attribute().image_id(&image.image_id).launch_permission(none).send().await?;
    let snapshots = || [SOURCE, TARGET].map(|account| local.sandbox.world().snapshot(account));
    let before = snapshots();
    fail_at_the_end(&local, NAMES[1]);
    let arn = execution::start(&engine, share_ami, NAMES[1], &request).await?;
    let second = execution::follow(&engine, &arn, |_| {}).await?;
    assert_eq!(second.status, ExecutionStatus::Failed);
    assert_eq!(snapshots(), before);
    Ok(())
}
