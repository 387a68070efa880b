//! Several targets in one request: each stands for itself, or all together, as the request asks.

use std::collections::BTreeMap;

use ami_share_core::{ids::KeyArn, key_policy::KeyPolicy};
use ami_share_sandbox::faults::{Fault, FaultKind, Matcher};
use ami_share_tests::{
    REGION, Result, SOURCE, TARGET, clients::root_of, local::Settings, notices::Inbox, stop::Stopper,
};
use aws_sdk_ec2::types::{LaunchPermission, LaunchPermissionModifications};
use serde_json::{Value, json};

use crate::{Run, Stage, key_mut};

const SECOND: &str = "444444444444";
const THIRD: &str = "555555555555";
const ALL: [&str; 3] = [TARGET, SECOND, THIRD];
/// Of a proof that may have died of a change that was not seen in time.
const LAUNCHES: u32 = 3;

async fn three_targets() -> Result<Stage> {
    Stage::start(Settings { targets: ALL.map(str::to_owned).to_vec(), ..Settings::default() }).await
}

fn request(stage: &Stage, on_failure: &str) -> Value {
    let targets = ALL.map(|account| json!({ "accountId": account, "principals": [stage.targets[account].principal] }));
    json!({ "imageId": stage.image.image_id, "targets": targets, "onFailure": on_failure })
}

/// The launches in `accounts` die, as if a change had not reached EC2, each as often as it is tried.
fn fail_launches(stage: &Stage, accounts: &[&str]) {
    for account in accounts {
        let reason = FaultKind::Fail { reason: "Client.InternalError".to_owned() };
        let launch = Matcher::action("ec2:RunInstances").in_account(account);
        stage.local.sandbox.world().faults.add(Fault { count: LAUNCHES, ..Fault::once(launch, reason) });
    }
}

fn launch_permissions(stage: &Stage, run: &Run) -> Value {
    run.after[SOURCE]["ec2"][REGION]["images"][&stage.image.image_id]["launchPermissions"].clone()
}

fn attached(run: &Run, account: &str, role: &str) -> Value {
    run.after[account]["iam"]["roles"][role]["attached"].clone()
}

fn key_access(account: &str) -> String {
    format!("arn:aws:iam::{account}:policy/AmiShareKeyAccess")
}

/// Whether any call of the run was made in `account`, as ami-share.
fn writes_in<'r>(run: &'r Run, account: &str) -> Vec<&'r str> {
    let writes = run.journal.iter().filter(|entry| entry.write && entry.account == account);
    writes.map(|entry| entry.action.as_str()).collect()
}

/// How the cause counts the targets that failed.
fn counted(failing: &[&str]) -> String {
    let first = if failing.len() > 1 { "; this is the first" } else { "" };
    format!("({} of {} targets failed{first})", failing.len(), ALL.len())
}

/// The accounts that a key's policy names.
fn key_accounts(stage: &Stage, key: &str) -> Result<Vec<String>> {
    let text = key_mut(&mut stage.local.sandbox.world(), key).policy.latest().text.clone();
    Ok(KeyPolicy::parse(&KeyArn::parse(key)?, &text)?.accounts().iter().map(ToString::to_string).collect())
}

#[tokio::test]
async fn one_target_that_fails_takes_the_others_back_where_that_is_asked_for() -> Result<()> {
    let stage = three_targets().await?;
    for (name, failing) in [("one", &[SECOND][..]), ("two", &[TARGET, THIRD])] {
        fail_launches(&stage, failing);
        let run = stage.run(name, &request(&stage, "undoAll")).await?;
        assert_eq!(run.error(), "InstanceDied", "{name}: {}", run.summary());
        let account = format!("in account {} died", failing[0]);
        let others = ALL.iter().filter(|account| !failing[..1].contains(account));
        let everything = "Everything that this execution had added was taken back.";
        for said in ["DescribeInstance: ", &account, &counted(failing), everything] {
            assert!(run.cause().contains(said), "{name}: the cause does not say {said:?}: {}", run.cause());
        }
        for other in others {
            assert!(!run.cause().contains(other), "{name}: the cause speaks of {other}: {}", run.cause());
        }
        for account in ALL {
            let writes = writes_in(&run, account);
            assert!(writes.contains(&"iam:AttachRolePolicy"), "{name}: {account}: {writes:?}");
            assert!(writes.contains(&"iam:DetachRolePolicy"), "{name}: {account}: {writes:?}");
        }
        assert_eq!(run.differences(), "", "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn one_target_that_fails_leaves_the_others_shared_and_proved() -> Result<()> {
    let stage = three_targets().await?;
    let stopper = Stopper::new(&stage.local).await?;
    let inbox = Inbox::open(&stage.local.engine, &stage.local.hub).await?;
    for (name, failing) in [("one", &[SECOND][..]), ("two", &[TARGET, THIRD])] {
        stage.reset();
        stopper.forget_records()?;
        fail_launches(&stage, failing);
        let proved: Vec<&str> = ALL.into_iter().filter(|account| !failing.contains(account)).collect();
        let run = stage.run(name, &request(&stage, "undo")).await?;
        assert_eq!(run.error(), "InstanceDied", "{name}: {}", run.summary());
        let account = format!("in account {} died", failing[0]);
        let stay = match proved.as_slice() {
            [one] => format!("Account {one} stays shared and proved."),
            several => format!("Accounts {} stay shared and proved.", several.join(", ")),
        };
        let whose = format!("account{} {}", if failing.len() > 1 { "s" } else { "" }, failing.join(", "));
        let gone = format!("Everything that this execution had added for {whose} was taken back.");
        for said in ["DescribeInstance: ", &account, &counted(failing), &stay, &gone] {
            assert!(run.cause().contains(said), "{name}: the cause does not say {said:?}: {}", run.cause());
        }
        assert_eq!(launch_permissions(&stage, &run), json!(proved), "{name}");
        for key in stage.image.key_arns() {
            assert_eq!(key_accounts(&stage, key)?, proved, "{name}: {key}");
        }
        for account in failing {
            assert_eq!(run.after[*account], run.before[*account], "{name}: {account}");
            assert!(writes_in(&run, account).contains(&"iam:DetachRolePolicy"), "{name}: {account}");
        }
        for account in &proved {
            for role in ["AmiShareLauncher", "app-deployer"] {
                assert_eq!(attached(&run, account, role), json!([key_access(account)]), "{name}: {account}: {role}");
            }
            assert_eq!(run.after[*account]["ec2"], json!({}), "{name}: {account}: an instance is left");
            assert!(!writes_in(&run, account).contains(&"iam:DetachRolePolicy"), "{name}: {account}");
        }
        let report: Value = inbox.receive(&stage.local.engine)?.report()?;
        let said = report["targets"].as_array().into_iter().flatten();
        let said: Vec<_> = said.map(|target| (target["accountId"].as_str(), target["status"].as_str())).collect();
        let expected =
            ALL.map(|account| (Some(account), Some(if failing.contains(&account) { "failed" } else { "proved" })));
        assert_eq!(said, expected, "{name}: {report}");
        assert_eq!(report["changed"]["launchPermissions"], json!(proved), "{name}: {report}");
        // The same again is for those that failed.
        let again = stage.run(&format!("{name}-again"), &request(&stage, "undo")).await?;
        assert_eq!(again.report()["alreadyShared"], json!(proved), "{name}: {}", again.summary());
        assert_eq!(again.report()["changed"]["launchPermissions"], json!(failing), "{name}");
        for account in proved {
            assert_eq!(writes_in(&again, account), [""; 0], "{name}: {account}");
        }
        assert_eq!(launch_permissions(&stage, &again), json!(ALL), "{name}");
        inbox.receive(&stage.local.engine)?;
    }
    Ok(())
}

#[tokio::test]
async fn what_was_added_stays_where_that_is_asked_for_and_the_execution_fails_all_the_same() -> Result<()> {
    let stage = three_targets().await?;
    fail_launches(&stage, &[SECOND]);
    let run = stage.run("keep", &request(&stage, "keep")).await?;
    assert_eq!(run.error(), "InstanceDied", "{}", run.summary());
    for said in [SECOND, "What was added stays, as onFailure: keep asks, and is not proved"] {
        assert!(run.cause().contains(said), "the cause does not say {said:?}: {}", run.cause());
    }
    assert_eq!(launch_permissions(&stage, &run), json!(ALL));
    for account in ALL {
        for role in ["AmiShareLauncher", "app-deployer"] {
            assert_eq!(attached(&run, account, role), json!([key_access(account)]), "{account}: {role}");
        }
        assert_eq!(run.after[account]["ec2"], json!({}), "{account}: an instance is left");
    }
    // What is missing is its proof.
    let again = stage.run("again", &request(&stage, "keep")).await?;
    assert_eq!(again.report()["alreadyShared"], json!([TARGET, THIRD]), "{}", again.summary());
    assert_eq!(again.writes(), ["ec2:RunInstances", "ec2:TerminateInstances"], "{}", again.summary());
    assert_eq!(again.report()["targets"][0]["status"], "proved", "{}", again.summary());
    Ok(())
}

#[tokio::test]
async fn what_somebody_else_had_shared_before_stays_when_an_execution_is_taken_back() -> Result<()> {
    let stage = three_targets().await?;
    let sandbox = stage.local.sandbox.endpoint();
    // One target has been shared with by hand, as far as it goes without the keys' policies; one by
    // ami-share, with other principals.
    let ec2 = aws_sdk_ec2::Client::new(&root_of(SOURCE, &sandbox));
    let permission = LaunchPermission::builder().user_id(SECOND).build();
    let change = LaunchPermissionModifications::builder().add(permission).build();
    ec2.modify_image_attribute().image_id(&stage.image.image_id).launch_permission(change).send().await?;
    let iam = aws_sdk_iam::Client::new(&root_of(SECOND, &sandbox));
    for role in ["AmiShareLauncher", "app-deployer"] {
        iam.attach_role_policy().role_name(role).policy_arn(key_access(SECOND)).send().await?;
    }
    let earlier = json!({ "imageId": stage.image.image_id, "targets": [{ "accountId": THIRD }] });
    let shared = stage.run("earlier", &earlier).await?;
    assert!(shared.succeeded(), "{}", shared.summary());

    // Once with everybody's, once for the targets that failed alone: then what THIRD was given stays.
    for on_failure in ["undoAll", "undo"] {
        fail_launches(&stage, &[TARGET, SECOND]);
        let run = stage.run(on_failure, &request(&stage, on_failure)).await?;
        assert_eq!(run.error(), "InstanceDied", "{on_failure}: {}", run.summary());
        let (third_has, third_writes) = match on_failure {
            "undoAll" => (json!([]), &["iam:AttachRolePolicy", "iam:DetachRolePolicy"][..]),
            _ => (json!([key_access(THIRD)]), &["iam:AttachRolePolicy"][..]),
        };
        for account in [SOURCE, TARGET, SECOND, THIRD] {
            let same = run.after[account] == run.before[account];
            assert_eq!(same, account != THIRD || on_failure == "undoAll", "{on_failure}: {account}");
        }
        assert_eq!(launch_permissions(&stage, &run), json!([SECOND, THIRD]), "{on_failure}");
        assert_eq!(attached(&run, SECOND, "AmiShareLauncher"), json!([key_access(SECOND)]), "{on_failure}");
        assert_eq!(attached(&run, SECOND, "app-deployer"), json!([key_access(SECOND)]), "{on_failure}");
        assert_eq!(attached(&run, THIRD, "AmiShareLauncher"), json!([key_access(THIRD)]), "{on_failure}");
        assert_eq!(attached(&run, THIRD, "app-deployer"), third_has, "{on_failure}");
        // What was there was not even touched.
        assert_eq!(writes_in(&run, SECOND), ["ec2:RunInstances"; LAUNCHES as usize], "{on_failure}");
        let mut third = writes_in(&run, THIRD);
        third.retain(|action| action.starts_with("iam:"));
        assert_eq!(third, third_writes, "{on_failure}");
    }
    Ok(())
}

#[tokio::test]
async fn ten_targets_take_no_more_calls_in_the_source_account_than_one() -> Result<()> {
    let accounts: Vec<String> = (0..10).map(|index| format!("22222222222{index}")).collect();
    let stage = Stage::start(Settings { targets: accounts.clone(), ..Settings::default() }).await?;
    let mut calls = Vec::new();
    // The accounts are not reset between the two: ShareKey would take the old policies for stale reads.
    for count in [1, 10] {
        let targets: Vec<Value> = accounts[..count]
            .iter()
            .map(|account| {
                json!({
                    "accountId": account,
                    "principals": [stage.targets[account].principal],
                    "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" },
                })
            })
            .collect();
        let request = json!({ "imageId": stage.image.image_id, "targets": targets });
        let run = stage.run(&format!("share-with-{count}"), &request).await?;
        assert!(run.succeeded(), "{}", run.summary());
        assert_eq!(launch_permissions(&stage, &run), json!(accounts[..count]));
        let mut by_action: BTreeMap<String, usize> = BTreeMap::new();
        for entry in run.journal.iter().filter(|entry| entry.account == SOURCE) {
            *by_action.entry(entry.action.clone()).or_default() += 1;
        }
        calls.push(by_action);
    }
    assert_eq!(calls[0], calls[1]);
    // Three volumes under two keys.
    assert_eq!(calls[0]["kms:PutKeyPolicy"], 2);
    assert_eq!(calls[0]["ec2:ModifySnapshotAttribute"], 3);
    assert_eq!(calls[0]["ec2:ModifyImageAttribute"], 1);
    Ok(())
}
