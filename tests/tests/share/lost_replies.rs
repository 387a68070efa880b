//! Calls that are done, and whose answer is lost: the next try finds what the first one did.

use std::collections::BTreeMap;

use ami_share_sandbox::faults::{Fault, FaultKind, Matcher};
use ami_share_tests::{REGION, Result, SOURCE, TARGET, local::Settings};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{Run, Stage};

/// Every kind of call that changes something: its account, and the state that makes it.
const CALLS: [(&str, &str, &str); 7] = [
    ("kms:PutKeyPolicy", SOURCE, "ShareKey"),
    ("ec2:ModifySnapshotAttribute", SOURCE, "ShareSnapshots"),
    ("ec2:ModifyImageAttribute", SOURCE, "ShareImage"),
    ("iam:AttachRolePolicy", TARGET, "GrantPrincipals"),
    ("ec2:CopyImage", TARGET, "CopyImage"),
    ("ec2:RunInstances", TARGET, "LaunchInstance"),
    ("ec2:TerminateInstances", TARGET, "TerminateInstance"),
];

/// More than the SDK tries: the state is tried again too.
const TRIES_OF_SDK: u32 = 4;
/// A call of kms:PutKeyPolicy is made once, and the state's next try finds that key's policy written.
const KEYS: u32 = 2;
/// As often as the SDK and the state try together: the step fails, and its undo can do the same call.
const TRIES_OF_STATE: u32 = 3 * 7;

fn request(stage: &Stage) -> Value {
    stage.request(json!({
        "principals": [stage.target().principal],
        "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" },
    }))
}

/// How often each call changed something.
fn changes(run: &Run) -> BTreeMap<&str, usize> {
    let mut changes = BTreeMap::new();
    for entry in run.journal.iter().filter(|entry| entry.changed && entry.via.is_none()) {
        *changes.entry(entry.action.as_str()).or_default() += 1;
    }
    changes
}

#[tokio::test]
async fn a_lost_reply_is_made_good_and_nothing_is_done_twice() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let usual = stage.run("usual", &request(&stage)).await?;
    assert!(usual.succeeded(), "{}", usual.summary());
    let lost = CALLS.map(|(call, account, _)| {
        let matcher = Matcher::action(call).in_account(account);
        let count = if call == "kms:PutKeyPolicy" { KEYS } else { TRIES_OF_SDK };
        (call, Fault { count, ..Fault::once(matcher, FaultKind::ReplyLost) })
    });
    // A policy is read before it is written: what a try did, the next one sees.
    let seen = ("kms:PutKeyPolicy", Fault::always(Matcher::action("kms:PutKeyPolicy"), FaultKind::ReplyFailed));
    for (index, (call, fault)) in lost.into_iter().chain([seen]).enumerate() {
        stage.reset();
        stage.local.sandbox.world().faults.add(fault);
        let run = stage.run(&format!("lost-{index}"), &request(&stage)).await?;
        let left = stage.local.sandbox.world().faults.faults().iter().filter(|fault| fault.count != u32::MAX).count();
        assert_eq!(left, 0, "{call}: too few calls");
        stage.local.sandbox.world().faults.clear();
        assert!(run.succeeded(), "{call}: {}", run.summary());
        assert_eq!(run.report()["changed"], usual.report()["changed"], "{call}");
        assert_eq!(changes(&run), changes(&usual), "{call}");
        assert_eq!(run.after[SOURCE], usual.after[SOURCE], "{call}");
        assert_eq!(run.after[TARGET]["iam"], usual.after[TARGET]["iam"], "{call}");
        for (kind, count) in [("images", 1), ("snapshots", 3), ("instances", 0), ("volumes", 0)] {
            let found = run.after[TARGET]["ec2"][REGION][kind].as_object().map_or(0, |found| found.len());
            assert_eq!(found, count, "{call}: {kind}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_acts_and_fails_each_time_is_taken_back() -> Result<()> {
    let mut runs: JoinSet<Result<_>> = JoinSet::new();
    for (call, account, state) in CALLS.into_iter().filter(|(call, ..)| *call != "kms:PutKeyPolicy") {
        runs.spawn(async move {
            let stage = Stage::start(Settings::default()).await?;
            let matcher = Matcher::action(call).in_account(account);
            let fault = Fault { count: TRIES_OF_STATE, ..Fault::once(matcher, FaultKind::ReplyFailed) };
            stage.local.sandbox.world().faults.add(fault);
            let run = stage.run(&call.replace(':', "-"), &request(&stage)).await?;
            Ok((call, state, run))
        });
    }
    while let Some(finished) = runs.join_next().await {
        let (call, state, run) = finished??;
        assert_eq!(run.error(), "Unavailable", "{call}: {}", run.summary());
        assert!(run.cause().starts_with(&format!("{state}: {call} in account ")), "{call}: {}", run.cause());
        assert!(changes(&run).contains_key(call), "{call} was not done: {:?}", changes(&run));
        assert_eq!(run.differences(), "", "{call}");
        let taken_back = "Everything that this execution had added was taken back";
        assert!(run.cause().contains(taken_back), "{call}: {}", run.cause());
    }
    Ok(())
}
