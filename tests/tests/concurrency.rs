//! Executions that write the policies of the same keys at the same time, with reads that are stale:
//! none loses what another has given, and no foreign statement is touched.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use ami_share_core::{
    key_policy::{GRANT_SID, USE_SID},
    share::EXECUTION_TAG,
};
use ami_share_sandbox::{
    faults::{Fault, FaultKind, Matcher},
    sts,
};
use ami_share_tests::{
    HUB, REGION, Result, SOURCE, TARGET,
    clients::root_of,
    execution,
    local::{Local, Settings},
    seed,
    stop::Stopper,
};
use aws_sdk_ec2::{
    config::Credentials,
    error::ProvideErrorMetadata,
    types::{
        InstanceNetworkInterfaceSpecification, InstanceStateName, InstanceType, ResourceType, Tag, TagSpecification,
    },
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

/// How many executions, each for a target of its own.
const EXECUTIONS: usize = 50;

const TIMEOUT: Duration = Duration::from_secs(600);

/// Each fifth one finds no room for its proof, and takes everything back while others share.
fn fails(index: usize) -> bool {
    index % 5 == 3
}

fn name(index: usize) -> String {
    format!("share-{index:02}")
}

fn target(index: usize) -> String {
    format!("5{index:011}")
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_succeed_have_access_and_none_that_failed() -> Result<()> {
    let targets: Vec<String> = (0..EXECUTIONS).map(target).collect();
    let local = Local::start(settings(targets.clone())).await?;
    let image = seed::image(&local.sandbox.endpoint(), SOURCE, "golden-image").await?;
    let keys: Vec<String> = image.key_arns().into_iter().map(str::to_owned).collect();
    let mut foreign = BTreeMap::new();
    for key in &keys {
        foreign.insert(key.clone(), add_foreign_statements(&local, key).await?);
    }
    let faults: Vec<Fault> = (0..EXECUTIONS).flat_map(faults).collect();
    faults.iter().for_each(|fault| local.sandbox.world().faults.add(fault.clone()));

    let engine = local.engine.endpoint();
    for (index, account) in targets.iter().enumerate() {
        let request = json!({ "imageId": image.image_id, "targets": [{ "accountId": account }] });
        execution::start(&engine, &local.hub.state_machine, &name(index), &request).await?;
    }
    let ended = follow_all(&local, &local.hub.state_machine).await?;

    for index in 0..EXECUTIONS {
        let expected = if fails(index) { ExecutionStatus::Failed } else { ExecutionStatus::Succeeded };
        assert_eq!(ended[&name(index)], expected, "{}", name(index));
    }
    let left = local.sandbox.world().faults.faults().to_vec();
    let stale: Vec<&Fault> = left.iter().filter(|fault| matches!(fault.kind, FaultKind::Stale { .. })).collect();
    assert!(stale.is_empty(), "reads that were to be stale were not made: {stale:?}");
    local.sandbox.world().faults.clear();

    let shared: BTreeSet<String> = (0..EXECUTIONS).filter(|index| !fails(*index)).map(target).collect();
    for (key, foreign) in &foreign {
        let (theirs, ours) = statements(&local, key).await?;
        assert_eq!(theirs, *foreign, "{key}");
        assert_eq!(ours.keys().collect::<Vec<_>>(), [GRANT_SID, USE_SID], "{key}");
        for (sid, accounts) in ours {
            assert_eq!(accounts, shared, "{sid} of {key}");
        }
    }
    for account in &targets {
        let launched = launch(&local, account, &image.image_id).await?;
        let expected = if shared.contains(account) { "running" } else { "AuthFailure" };
        assert_eq!(launched, expected, "{account}");
    }
    Ok(())
}

/// Three reads of key policies are stale for each execution, at different moments: by a change, or
/// by some. One that is older than the window would be believed, as a policy that somebody put back.
fn stale_reads(name: &str, index: usize) -> Vec<Fault> {
    let read = Matcher { session: Some(format!("{name}*")), ..Matcher::action("kms:GetKeyPolicy") };
    // ResolveImage, or ResolveRevoke, makes the first two.
    let first = u32::try_from(index % 5).unwrap_or_default();
    [first, first + 1, first + 3]
        .into_iter()
        .enumerate()
        .map(|(nth, skip)| Fault::once(read.clone(), FaultKind::Stale { writes: 1 + (index + nth) % 6 }).after(skip))
        .collect()
}

fn faults(index: usize) -> Vec<Fault> {
    let mut faults = stale_reads(&name(index), index);
    if fails(index) {
        let kind = FaultKind::Error {
            code: "InsufficientInstanceCapacity".to_owned(),
            message: "There is no room.".to_owned(),
            status: 400,
        };
        faults.push(Fault::always(Matcher::action("ec2:RunInstances").in_account(&target(index)), kind));
    }
    faults
}

/// Statements of somebody else's before and after the ones that are there; returns all of them.
async fn add_foreign_statements(local: &Local, key: &str) -> Result<Vec<Value>> {
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &local.sandbox.endpoint()));
    let text = kms.get_key_policy().key_id(key).policy_name("default").send().await?.policy.unwrap_or_default();
    let mut policy: Value = serde_json::from_str(&text)?;
    let statements = policy["Statement"].as_array_mut().ok_or("the policy has no statements")?;
    statements.insert(
        0,
        json!({
            "Sid": "NoDeletionByAnybodyButTheFactory",
            "Effect": "Deny",
            "Principal": "*",
            "Action": ["kms:ScheduleKeyDeletion", "kms:DeleteImportedKeyMaterial"],
            "Resource": "*",
            "Condition": { "StringNotEquals": { "aws:PrincipalAccount": SOURCE } },
        }),
    );
    statements.push(json!({
        "Effect": "Allow",
        "Principal": { "Service": ["logs.amazonaws.com", "ec2.amazonaws.com"] },
        "Action": "kms:Describe*",
        "Resource": "*",
    }));
    let statements = statements.clone();
    let put = kms.put_key_policy().key_id(key).policy_name("default").policy(policy.to_string());
    put.send().await.map_err(|error| format!("PutKeyPolicy: {}", error.into_service_error()))?;
    Ok(statements)
}

/// The foreign statements of the key's policy in their order, and the accounts of ours by Sid.
async fn statements(local: &Local, key: &str) -> Result<(Vec<Value>, BTreeMap<String, BTreeSet<String>>)> {
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &local.sandbox.endpoint()));
    let text = kms.get_key_policy().key_id(key).policy_name("default").send().await?.policy.unwrap_or_default();
    let policy: Value = serde_json::from_str(&text)?;
    let mut theirs = Vec::new();
    let mut ours = BTreeMap::new();
    for statement in policy["Statement"].as_array().into_iter().flatten() {
        match statement["Sid"].as_str() {
            Some(sid @ (USE_SID | GRANT_SID)) => {
                let principals = statement["Principal"]["AWS"].as_array().cloned().unwrap_or_default();
                let account = |arn: &Value| arn.as_str().and_then(|arn| arn.split(':').nth(4)).map(str::to_owned);
                ours.insert(sid.to_owned(), principals.iter().filter_map(account).collect());
            }
            _ => theirs.push(statement.clone()),
        }
    }
    Ok((theirs, ours))
}

/// Waits until no execution of `machine` runs; how each ended, by its name.
async fn follow_all(local: &Local, machine: &str) -> Result<BTreeMap<String, ExecutionStatus>> {
    let client = aws_sdk_sfn::Client::new(&root_of(HUB, &local.engine.endpoint()));
    let started = Instant::now();
    loop {
        let listed = client.list_executions().state_machine_arn(machine).max_results(1000);
        let executions = listed.send().await?.executions;
        let running = executions.iter().filter(|execution| execution.status == ExecutionStatus::Running).count();
        if running == 0 {
            return Ok(executions.into_iter().map(|execution| (execution.name, execution.status)).collect());
        }
        if started.elapsed() > TIMEOUT {
            return Err(format!("{running} executions still run after {TIMEOUT:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Launches the image as the account's launcher: the state that the instance comes to, or the code
/// of the error.
async fn launch(local: &Local, account: &str, image_id: &str) -> Result<String> {
    let role = format!("arn:aws:iam::{account}:role/AmiShareLauncher");
    let key = sts::issue_session(&mut local.sandbox.world(), &role, "test").ok_or("the target has no launcher")?;
    let credentials = Credentials::new(key.id, key.secret, key.token, None, "session");
    let config = aws_sdk_ec2::config::Builder::from(&root_of(account, &local.sandbox.endpoint()))
        .credentials_provider(credentials)
        .build();
    let ec2 = aws_sdk_ec2::Client::from_conf(config);
    let tagged = |kind: ResourceType| {
        let tag = Tag::builder().key(EXECUTION_TAG).value("test").build();
        TagSpecification::builder().resource_type(kind).tags(tag).build()
    };
    let call = ec2
        .run_instances()
        .image_id(image_id)
        .instance_type(InstanceType::T3Micro)
        .min_count(1)
        .max_count(1)
        .network_interfaces(
            // The launcher may not give a public address.
            InstanceNetworkInterfaceSpecification::builder().device_index(0).associate_public_ip_address(false).build(),
        )
        .tag_specifications(tagged(ResourceType::Instance))
        .tag_specifications(tagged(ResourceType::Volume));
    let launched = match call.send().await {
        Ok(launched) => launched,
        Err(error) => return Ok(error.code().unwrap_or("an error without a code").to_owned()),
    };
    let id = launched.instances().first().and_then(|instance| instance.instance_id()).unwrap_or_default().to_owned();
    let started = Instant::now();
    loop {
        let answer = ec2.describe_instances().instance_ids(&id).send().await?;
        let instance = answer.reservations().iter().flat_map(|reservation| reservation.instances()).next();
        let state = instance.and_then(|instance| instance.state()?.name().cloned());
        match state {
            Some(InstanceStateName::Pending) | None if started.elapsed() < Duration::from_secs(10) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            state => return Ok(state.map_or_else(|| "no state".to_owned(), |state| state.to_string())),
        }
    }
}

/// Targets that have the image lose it while others get it, all by the policies of the same keys.
#[tokio::test(flavor = "multi_thread")]
async fn all_that_are_shared_have_access_and_none_that_are_revoked() -> Result<()> {
    let targets: Vec<String> = (0..EXECUTIONS).map(target).collect();
    let local = Local::start(settings(targets.clone())).await?;
    let image = seed::image(&local.sandbox.endpoint(), SOURCE, "golden-image").await?;
    let mut foreign = BTreeMap::new();
    for key in image.key_arns() {
        foreign.insert(key.to_owned(), add_foreign_statements(&local, key).await?);
    }
    let engine = local.engine.endpoint();
    let request = |accounts: &[String]| -> Value {
        let targets: Vec<Value> = accounts.iter().map(|account| json!({ "accountId": account })).collect();
        json!({ "imageId": image.image_id, "targets": targets })
    };
    let (having, getting) = targets.split_at(EXECUTIONS / 2);
    execution::start(&engine, &local.hub.state_machine, "before", &request(having)).await?;
    assert_eq!(follow_all(&local, &local.hub.state_machine).await?["before"], ExecutionStatus::Succeeded);

    let revoke = |index: usize| format!("revoke-{index:02}");
    for index in 0..having.len() {
        let faults = [stale_reads(&name(index), index), stale_reads(&revoke(index), index)].concat();
        faults.into_iter().for_each(|fault| local.sandbox.world().faults.add(fault));
    }
    for (index, (losing, getting)) in having.iter().zip(getting).enumerate() {
        let one = request(std::slice::from_ref(getting));
        execution::start(&engine, &local.hub.state_machine, &name(index), &one).await?;
        let all_the_same = json!({ "imageId": image.image_id, "targets": [losing], "force": index % 2 == 0 });
        execution::start(&engine, &local.hub.revoke_share, &revoke(index), &all_the_same).await?;
    }
    for machine in [&local.hub.state_machine, &local.hub.revoke_share] {
        for (name, status) in follow_all(&local, machine).await? {
            assert_eq!(status, ExecutionStatus::Succeeded, "{name}");
        }
    }
    let left = local.sandbox.world().faults.faults().len();
    assert_eq!(left, 0, "reads that were to be stale were not made");

    let shared: BTreeSet<String> = getting.iter().cloned().collect();
    for (key, foreign) in &foreign {
        let (theirs, ours) = statements(&local, key).await?;
        assert_eq!(theirs, *foreign, "{key}");
        assert_eq!(ours.keys().collect::<Vec<_>>(), [GRANT_SID, USE_SID], "{key}");
        for (sid, accounts) in ours {
            assert_eq!(accounts, shared, "{sid} of {key}");
        }
    }
    for account in &targets {
        let launched = launch(&local, account, &image.image_id).await?;
        let expected = if shared.contains(account) { "running" } else { "AuthFailure" };
        assert_eq!(launched, expected, "{account}");
    }
    Ok(())
}

/// ShareKey writes the first key's policy and fails at the second one's: nobody was told what it
/// replaced, and UndoShareKey reads just that.
#[tokio::test]
async fn an_undo_right_after_a_write_is_not_misled_by_a_stale_read() -> Result<()> {
    let local = Local::start(Settings::default()).await?;
    let image = seed::image(&local.sandbox.endpoint(), SOURCE, "golden-image").await?;
    let before = local.sandbox.world().snapshot(SOURCE);
    let refusal = FaultKind::Error {
        code: "AccessDeniedException".to_owned(),
        message: "The key's owner says no.".to_owned(),
        status: 400,
    };
    // ResolveImage reads both policies; ShareKey the first one, once more after the write, the second.
    let stale = Fault::once(Matcher::action("kms:GetKeyPolicy"), FaultKind::Stale { writes: 1 }).after(5);
    local.sandbox.world().faults.add(stale);
    local.sandbox.world().faults.add(Fault::once(Matcher::action("kms:PutKeyPolicy"), refusal).after(1));
    let request = json!({ "imageId": image.image_id, "targets": [{ "accountId": TARGET }] });
    let engine = local.engine.endpoint();
    let arn = execution::start(&engine, &local.hub.state_machine, "half", &request).await?;
    let ended = execution::follow(&engine, &arn, |_| {}).await?;
    assert_eq!(ended.error.as_deref(), Some("AccessDenied"), "{:?}", ended.cause);
    assert!(local.sandbox.world().faults.faults().is_empty(), "a fault did not strike");
    assert_eq!(local.sandbox.world().snapshot(SOURCE), before);
    Ok(())
}

/// The sandbox's stale reads are counted in writes, and may be older on a busy machine than any of AWS's.
fn settings(targets: Vec<String>) -> Settings {
    Settings { targets, stale_read_seconds: 60, ..Settings::default() }
}

/// It crashed with the lock, and nobody cleans up after it.
#[tokio::test]
async fn a_holder_that_never_gives_the_lock_back_is_waited_for_until_its_lease_ends() -> Result<()> {
    let local = Local::start(Settings::default()).await?;
    let stopper = Stopper::new(&local).await?;
    let image = seed::image(&local.sandbox.endpoint(), SOURCE, "golden-image").await?;
    let now = u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis())?;
    let mut held = json!({
        "id": { "S": format!("keys#{SOURCE}#{REGION}") },
        "part": { "S": "lock" },
        "heldBy": { "S": "dead#00000000" },
        "heldUntil": { "N": (now + 170_000).to_string() },
    });
    stopper.put_record(&held)?;

    let request = json!({ "imageId": image.image_id, "targets": [{ "accountId": TARGET }] });
    let waiting = stopper.start(&stopper.definition(), "waiting", &request).await?;
    stopper.entered(&waiting, "ShareKey").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let writes =
        local.sandbox.world().journal.entries().iter().filter(|entry| entry.action == "kms:PutKeyPolicy").count();
    assert_eq!(writes, 0, "the lock was not respected");
    assert_eq!(lock(&stopper)?["heldBy"], held["heldBy"]);

    held["heldUntil"]["N"] = json!((now - 1).to_string());
    stopper.put_record(&held)?;
    let waited = stopper.follow(&waiting).await?;
    assert_eq!(waited.status, ExecutionStatus::Succeeded, "{:?}", waited.cause);
    assert!(lock(&stopper)?["heldBy"].is_null(), "the lock is free again");
    Ok(())
}

/// The lock on the source account's key policies, as the table has it.
fn lock(stopper: &Stopper) -> Result<Value> {
    let id = format!("keys#{SOURCE}#{REGION}");
    let records = stopper.records()?;
    let lock = records.into_iter().find(|record| record["id"]["S"] == id.as_str());
    lock.ok_or_else(|| format!("there is no {id}").into())
}
