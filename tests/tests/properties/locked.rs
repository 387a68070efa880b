//! The lock on key policies: what its holders leave behind when they are refused, crash or hang, and who has to wait.

use ami_share_core::key_policy::USE_SID;
use ami_share_machine::{Status, services::Fault};
use ami_share_sandbox::faults::{Fault as SandboxFault, FaultKind, Matcher};
use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};

use crate::{
    Tally, add,
    check::{self, Checked},
    deployed::{self, TARGETS},
    hold,
    world::{self, Stage},
};

/// A function's time-out and a minute: the longest that a holder which died keeps the others waiting.
pub(crate) const LEASE_MS: u64 = 170_000;

fn stage(seed: u64) -> Stage {
    world::crowd(deployed::deployment(false), seed)
}

fn start(stage: &Stage, name: &str, target: &str, delay: u64) -> Result<String, String> {
    let request = json!({ "imageId": stage.images[0].id, "targets": [{ "accountId": target }] });
    stage.machine.start("ShareAmi", name, request, delay)
}

/// Whether our statement names the account in the policies of all keys.
fn is_named(stage: &Stage, account: &str) -> bool {
    let mut world = stage.machine.world();
    stage.keys.iter().all(|key| {
        let policy: Value = serde_json::from_str(&world::key_policy(&mut world, key)).unwrap_or_default();
        let ours = policy["Statement"].as_array().into_iter().flatten().find(|one| one["Sid"] == USE_SID);
        ours.is_some_and(|statement| statement["Principal"].to_string().contains(account))
    })
}

fn succeeded(stage: &Stage, arn: &str) -> Checked {
    let record = stage.machine.record(arn);
    if record.status == Status::Succeeded {
        return Ok(());
    }
    Err(format!("{arn} ended in {:?}: {:?} {:?}", record.status, record.error, record.cause))
}

/// The numbers of the calls that put a key policy, were nothing to go wrong.
fn puts(seed: u64) -> Vec<u64> {
    let stage = stage(seed);
    start(&stage, "probe", TARGETS[0], 0).unwrap();
    stage.machine.run().unwrap();
    stage.machine.calls_of("PutKeyPolicy")
}

/// Whatever becomes of the first write of a policy, and of whoever made it, the share comes about, and is seen whole by
/// the next one.
#[test]
fn a_write_that_is_lost_or_not_made_is_found_out() {
    for seed in [1, 2] {
        let first = puts(seed)[0];
        for fault in [
            Fault::Throttled,
            Fault::Failed,
            Fault::ReplyFailed,
            Fault::ReplyLost,
            Fault::Hangs,
            Fault::CrashBefore,
            Fault::CrashAfter,
        ] {
            let stage = stage(seed);
            let one = start(&stage, "one", TARGETS[0], 0).unwrap();
            stage.machine.set_faults([(first, fault)]);
            stage.machine.run().unwrap();
            let waited = stage.machine.now();
            let two = start(&stage, "two", TARGETS[1], 0).unwrap();
            stage.machine.run().unwrap();
            for (arn, account) in [(&one, TARGETS[0]), (&two, TARGETS[1])] {
                succeeded(&stage, arn).unwrap_or_else(|why| panic!("{fault:?}: {why}"));
                assert!(is_named(&stage, account), "{fault:?}: {account} is not in the policies");
            }
            check::locks_are_free(&stage).unwrap_or_else(|why| panic!("{fault:?}: {why}"));
            // Nobody waits for what KMS itself has refused.
            if fault == Fault::Throttled {
                assert!(waited < 120_000, "{waited} ms");
            }
        }
    }
}

/// A tool puts back the policy that it knows, right after ours: it is believed when the time for stale reads is over.
#[test]
fn an_old_policy_that_somebody_puts_back_is_believed_after_its_time() {
    let stage = stage(3);
    let key = stage.keys[0].clone();
    let before = world::key_policy(&mut stage.machine.world(), &key);
    let one = start(&stage, "one", TARGETS[0], 0).unwrap();
    stage.machine.run().unwrap();
    succeeded(&stage, &one).unwrap();
    world::put_key_policy(&mut stage.machine.world(), &key, &before);
    let began = stage.machine.now();
    let two = start(&stage, "two", TARGETS[1], 0).unwrap();
    stage.machine.run().unwrap();
    succeeded(&stage, &two).unwrap();
    assert!(is_named(&stage, TARGETS[1]));
    let waited = stage.machine.now() - began;
    assert!((60_000..480_000).contains(&waited), "{waited} ms");
}

/// The lock's retries are not counted as looks at a policy.
#[test]
fn fifty_tries_for_the_lock_do_not_make_a_stale_read_believed() {
    let stage = stage(4);
    let one = start(&stage, "one", TARGETS[0], 0).unwrap();
    stage.machine.run().unwrap();
    succeeded(&stage, &one).unwrap();
    let now = stage.machine.time_of_day_ms();
    let mut lock = stage.machine.table().items().find(|item| item.contains_key("writes")).unwrap().clone();
    lock.insert("heldBy".to_owned(), json!({ "S": "dead#0" }));
    lock.insert("heldUntil".to_owned(), json!({ "N": (now + LEASE_MS).to_string() }));
    stage.machine.table().put(&json!(lock));
    let read = Matcher { session: Some("two*".to_owned()), ..Matcher::action("kms:GetKeyPolicy") };
    // ResolveImage reads each policy once; what ShareKey reads first is from before the first share.
    let reads = u32::try_from(stage.keys.len()).unwrap();
    stage.machine.world().faults.add(SandboxFault::once(read, FaultKind::Stale { writes: 1 }).after(reads));
    let two = start(&stage, "two", TARGETS[1], 0).unwrap();
    stage.machine.run().unwrap();
    succeeded(&stage, &two).unwrap();
    let tried = stage.machine.record(&two).entered.iter().filter(|state| *state == "ShareKey").count();
    assert_eq!(tried, 1, "entered once, whatever it took");
    assert!(stage.machine.now() >= LEASE_MS, "the lock was not waited for");
    assert!(is_named(&stage, TARGETS[0]), "the first share's access was lost to a stale read");
    assert!(is_named(&stage, TARGETS[1]));
}

#[test]
fn nobody_waits_longer_than_a_lease_for_each_holder_that_died() {
    let crashes = vec((0..40_u64, any::<bool>()), 1..=4);
    hold(
        "holders that die are waited out",
        (25, 20_260_108),
        "locked",
        (any::<u64>().no_shrink(), crashes),
        holders_die,
    );
}

/// Ten shares of one key pair; at some of their calls the function dies.
fn holders_die(tally: &Tally, (seed, crashes): (u64, Vec<(u64, bool)>)) -> Checked {
    let stage = stage(seed);
    let mut arns = Vec::new();
    for index in 0..10_u64 {
        let target = TARGETS[usize::try_from(index).unwrap_or_default() % TARGETS.len()];
        arns.push(start(&stage, &format!("share-{index}"), target, index * 10)?);
    }
    let dies = |at_once| if at_once { Fault::CrashBefore } else { Fault::CrashAfter };
    stage.machine.set_faults(crashes.iter().map(|(call, before)| (40 + call * 3, dies(*before))));
    stage.machine.run()?;
    add(&tally.executions, arns.len() as u64);
    add(&tally.calls, stage.machine.calls());
    for arn in &arns {
        succeeded(&stage, arn)?;
        add(&tally.succeeded, 1);
    }
    for target in TARGETS {
        if !is_named(&stage, target) {
            return Err(format!("{target} is not in the policies"));
        }
    }
    // A write that nobody knows of costs as long as a stale read may last, besides.
    let most = crashes.len() as u64 * (LEASE_MS + 300_000 + 60_000) + 10 * 60_000;
    if stage.machine.now() > most {
        return Err(format!("it took {} ms, with {} holders that died", stage.machine.now(), crashes.len()));
    }
    check::locks_are_free(&stage)
}
