//! Fifty executions for one image at the same time, each for a target of its own, with stale reads of the key policies
//! that they all write.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use ami_share_core::key_policy::{GRANT_SID, USE_SID};
use ami_share_machine::{Deployment, Record, Status, services::Fault};
use ami_share_sandbox::faults::{Fault as SandboxFault, FaultKind, Matcher};
use ami_share_tests::local::Settings;
use serde_json::{Value, json};

use crate::{
    Tally, add,
    check::{self, Checked},
    deployed, hold,
    locked::LEASE_MS,
    request::Asked,
    world::{self, Stage},
};

const EXECUTIONS: usize = 50;

/// As long as a read may be stale, and the last wait before the next look.
const STALE_MS: u64 = 300_000 + 60_000;

pub(crate) fn target(index: usize) -> String {
    format!("5{index:011}")
}

pub(crate) fn deployment() -> &'static Deployment {
    static DEPLOYED: OnceLock<Deployment> = OnceLock::new();
    DEPLOYED.get_or_init(|| {
        let targets = (0..EXECUTIONS).map(target).collect();
        deployed::start(Settings { targets, ..Settings::default() })
    })
}

/// Each fifth one finds no room for its proof, and takes everything back while others share.
fn fails(index: usize) -> bool {
    index % 5 == 3
}

#[test]
fn fifty_at_once_lose_none_of_each_others_access() {
    use proptest::prelude::*;
    let seeds = any::<u64>().no_shrink();
    hold("fifty at once lose none of each other's access", (2, 20_260_107), "crowd", seeds, crowd);
}

/// Each for its target, within 20 s.
fn start_all(stage: &Stage, seed: u64) -> Result<Vec<String>, String> {
    let start = |index: usize| {
        let request = json!({ "imageId": stage.images[0].id, "targets": [{ "accountId": target(index) }] });
        let delay = seed.rotate_left(u32::try_from(index).unwrap_or_default()) % 20_000;
        stage.machine.start("ShareAmi", &format!("share-{index:02}"), request, delay)
    };
    (0..EXECUTIONS).map(start).collect()
}

fn crowd(tally: &Tally, seed: u64) -> Checked {
    let stage = world::crowd(deployment(), seed);
    let foreign = statements(&stage, false);
    let arns = start_all(&stage, seed)?;
    (0..EXECUTIONS).flat_map(faults).for_each(|fault| stage.machine.world().faults.add(fault));
    stage.machine.run()?;
    add(&tally.executions, EXECUTIONS as u64);
    add(&tally.calls, stage.machine.calls());
    stage.machine.world().faults.clear();
    for (index, arn) in arns.iter().enumerate() {
        let record = stage.machine.record(arn);
        add(&tally.succeeded, u64::from(record.status == Status::Succeeded));
        let expected = if fails(index) { Status::Failed } else { Status::Succeeded };
        if record.status != expected {
            return Err(format!("share {index} ended in {:?}: {:?} {:?}", record.status, record.error, record.cause));
        }
    }
    if statements(&stage, false) != foreign {
        return Err("a foreign statement is not what it was".to_owned());
    }
    let shared: BTreeSet<String> = (0..EXECUTIONS).filter(|index| !fails(*index)).map(target).collect();
    all_are_named(&stage, &shared)?;
    let mut world = stage.machine.world();
    check::locks_are_free(&stage)?;
    for account in &shared {
        let asked = Asked { account: account.clone(), mode: None, principals: Vec::new(), keep: false, always: false };
        check::can_launch(&mut world, &stage.images[0], &asked)?;
    }
    Ok(())
}

#[test]
fn among_fifty_at_once_nobody_waits_longer_than_a_lease_for_each_holder_that_died() {
    use proptest::{collection::vec, prelude::*};
    let fault = prop::sample::select(vec![Fault::CrashBefore, Fault::CrashAfter, Fault::Hangs, Fault::GivenUp]);
    // Of two writes for each execution.
    let deaths = vec((1..=2 * EXECUTIONS as u64, fault), 3..=5);
    let cases = (any::<u64>(), deaths).no_shrink();
    hold("holders die among fifty at once", (1, 20_260_115), "dying", cases, holders_die);
}

/// As [`crowd`], without stale reads; at some of their writes the holders of the lock crash, run into their time limit, or
/// are given up on while they go on.
fn holders_die(tally: &Tally, (seed, deaths): (u64, Vec<(u64, Fault)>)) -> Checked {
    let waited = |deaths: &[(u64, Fault)]| {
        let stage = world::crowd(deployment(), seed);
        let arns = start_all(&stage, seed)?;
        stage.machine.set_faults_of("PutKeyPolicy", deaths.iter().copied());
        stage.machine.run()?;
        add(&tally.executions, EXECUTIONS as u64);
        add(&tally.calls, stage.machine.calls());
        for arn in &arns {
            let record = stage.machine.record(arn);
            add(&tally.succeeded, u64::from(record.status == Status::Succeeded));
            if record.status != Status::Succeeded {
                return Err(format!("{arn} ended in {:?}: {:?} {:?}", record.status, record.error, record.cause));
            }
        }
        all_are_named(&stage, &(0..EXECUTIONS).map(target).collect())?;
        check::locks_are_free(&stage)?;
        let began = stage.machine.time_of_day_ms() - stage.machine.now();
        let in_share_key = |record: Record| {
            let at = record.entered.iter().position(|state| state == "ShareKey").unwrap_or_default();
            (record.entered_ms[at + 1] - record.entered_ms[at], record.entered_ms[at + 1] - began)
        };
        let waits: Vec<(u64, u64)> = arns.iter().map(|arn| in_share_key(stage.machine.record(arn))).collect();
        Ok((waits, stage.machine.struck()))
    };
    let (undisturbed, _) = waited(&[])?;
    let queued = undisturbed.iter().map(|(wait, _)| *wait).max().unwrap_or_default();
    let (waits, struck) = waited(&deaths)?;
    for (index, (wait, until)) in waits.iter().enumerate() {
        let before =
            |fault: &[Fault]| struck.iter().filter(|(at, kind)| at < until && fault.contains(kind)).count() as u64;
        let died = before(&[Fault::CrashBefore, Fault::CrashAfter, Fault::Hangs]);
        // Nobody knows of a write that was not made, until the time for stale reads is over.
        let most = queued + died * LEASE_MS + before(&[Fault::CrashBefore]) * STALE_MS + 60_000;
        if *wait > most {
            return Err(format!("share {index} waited for {wait} ms, {died} holders having died: over {most}"));
        }
    }
    Ok(())
}

/// Three reads of key policies are stale for each execution, at different moments: by a change, or by some. A fourth
/// one in a row would be believed, as a policy that somebody put back.
fn faults(index: usize) -> Vec<SandboxFault> {
    let read = Matcher { session: Some(format!("share-{index:02}*")), ..Matcher::action("kms:GetKeyPolicy") };
    // ResolveImage makes the first two.
    let first = u32::try_from(index % 5).unwrap_or_default();
    let mut faults: Vec<SandboxFault> = [first, first + 1, first + 3]
        .into_iter()
        .enumerate()
        .map(|(nth, skip)| {
            SandboxFault::once(read.clone(), FaultKind::Stale { writes: 1 + (index + nth) % 6 }).after(skip)
        })
        .collect();
    if fails(index) {
        let code = "InsufficientInstanceCapacity".to_owned();
        let kind = FaultKind::Error { code, message: "There is no room.".to_owned(), status: 400 };
        faults.push(SandboxFault::always(Matcher::action("ec2:RunInstances").in_account(&target(index)), kind));
    }
    faults
}

/// Our statements in all policies name these accounts, and nobody else.
fn all_are_named(stage: &Stage, shared: &BTreeSet<String>) -> Checked {
    for (key, ours) in statements(stage, true) {
        for statement in ours {
            let statement: Value = serde_json::from_str(&statement).unwrap_or_default();
            let named = statement["Principal"]["AWS"].as_array().cloned().unwrap_or_default();
            let named: BTreeSet<String> =
                named.iter().filter_map(|arn| arn.as_str()?.split(':').nth(4).map(str::to_owned)).collect();
            if named != *shared {
                let lost: Vec<_> = shared.symmetric_difference(&named).collect();
                return Err(format!("{} of {key}: not as it should be for {lost:?}", statement["Sid"]));
            }
        }
    }
    Ok(())
}

/// Our statements of each key, or everybody else's, as they are written.
fn statements(stage: &Stage, ours: bool) -> BTreeMap<String, Vec<String>> {
    let mut world = stage.machine.world();
    let is_ours = |statement: &Value| statement["Sid"] == USE_SID || statement["Sid"] == GRANT_SID;
    let mut found = BTreeMap::new();
    for key in &stage.keys {
        let policy: Value = serde_json::from_str(&world::key_policy(&mut world, key)).unwrap_or_default();
        let all = policy["Statement"].as_array().into_iter().flatten();
        let wanted = all.filter(|statement| is_ours(statement) == ours).map(Value::to_string).collect();
        found.insert(key.clone(), wanted);
    }
    found
}
