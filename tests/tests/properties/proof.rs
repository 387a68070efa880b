//! Proofs that die right after changes: launched again, not for ever, and nothing is left of them.

use ami_share_machine::{Record, Status, services::Fault};
use ami_share_sandbox::{
    World,
    faults::{Fault as SandboxFault, FaultKind, Matcher},
    journal::Entry,
};
use ami_share_tests::{REGION, TARGET};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    Tally, add,
    check::{self, Checked},
    deployed, hold,
    world::{self, Stage},
};

/// What is seen late.
#[derive(Debug, Clone, Copy)]
enum Late {
    PolicyOfIam,
    KeyPolicy,
}

impl Late {
    fn by(self, stage: &Stage, seconds: u64) {
        let settings = &mut stage.machine.world().settings;
        match self {
            Self::PolicyOfIam => settings.iam_policy_delay_ms = seconds * 1_000,
            Self::KeyPolicy => settings.key_policy_delay_ms = seconds * 1_000,
        }
    }
}

fn late() -> impl Strategy<Value = Late> {
    prop::sample::select(vec![Late::PolicyOfIam, Late::KeyPolicy])
}

/// The wait after changes is 15 s; the first instance is seen dead 10 s later, and the pauses are 30 s and 60 s.
#[test]
fn a_change_that_is_seen_late_takes_another_launch() {
    let cases = (late(), prop::sample::select(vec![(35, 2), (80, 3)]), any::<u64>()).no_shrink();
    let property = |tally: &Tally, (late, (seconds, launches), seed): (Late, (u64, u64), u64)| {
        let stage = world::crowd(deployed::deployment(false), seed);
        late.by(&stage, seconds);
        let (record, journal) = share(tally, &stage, "late", &json!({}))?;
        expect(&record.status, &Status::Succeeded, &record)?;
        let report = record.output.clone().unwrap_or_default();
        expect(&report["targets"][0]["launches"], &json!(launches), &record)?;
        expect(&count(&journal, "ec2:RunInstances"), &launches, &record)?;
        // Nobody asks why, as long as there is another try. ResolveImage has asked what the target's owner allows.
        let (looks_ahead, explains): (Vec<_>, Vec<_>) = journal
            .iter()
            .filter(|entry| entry.action == "iam:SimulatePrincipalPolicy")
            .partition(|entry| entry.assumed_by.as_deref().is_some_and(|role| role.contains("AmiShareResolveImage")));
        expect(&(looks_ahead.is_empty(), explains.len()), &(false, 0), &record)?;
        nothing_runs(&mut stage.machine.world())
    };
    hold("a change that is seen late takes another launch", (12, 20_260_110), "late", cases, property);
}

#[test]
fn a_proof_that_dies_three_times_is_explained_and_taken_back() {
    let cases = (late(), any::<u64>()).no_shrink();
    let property = |tally: &Tally, (late, seed): (Late, u64)| {
        let stage = world::crowd(deployed::deployment(false), seed);
        let before = check::picture(&stage);
        late.by(&stage, 3_600);
        let (record, journal) = share(tally, &stage, "never", &json!({}))?;
        expect(&record.error.as_deref(), &Some("InstanceDied"), &record)?;
        let cause = record.cause.clone().unwrap_or_default();
        for said in ["the last of 3", "start the execution again"] {
            expect(&cause.contains(said), &true, &record)?;
        }
        expect(&count(&journal, "ec2:RunInstances"), &3, &record)?;
        nothing_runs(&mut stage.machine.world())?;
        let after = check::picture(&stage);
        check::unchanged(&before, &after, &check::kept(&stage))
    };
    hold("a proof that dies three times is taken back", (6, 20_260_111), "never", cases, property);
}

/// Also between two launches, and where the reply of one is lost.
#[test]
fn a_share_that_is_stopped_leaves_none_of_its_launches() {
    let fault = prop::option::of((40..90_u64, Just(Fault::ReplyLost)));
    let cases = (late(), 50..95_u64, fault, any::<u64>());
    let property = |tally: &Tally, (late, point, fault, seed): (Late, u64, Option<(u64, Fault)>, u64)| {
        let stage = world::crowd(deployed::deployment(false), seed);
        let before = check::picture(&stage);
        late.by(&stage, 80);
        let arn = stage.machine.start("ShareAmi", "stopped", request(&stage, &json!({})), 0)?;
        stage.machine.stop_at(&arn, point);
        stage.machine.set_faults(fault);
        stage.machine.run()?;
        add(&tally.executions, 1);
        add(&tally.calls, stage.machine.calls());
        nothing_runs(&mut stage.machine.world())?;
        let record = stage.machine.record(&arn);
        add(&tally.succeeded, u64::from(record.status == Status::Succeeded));
        // What has settled its note before it was stopped stands: undo-share leaves it alone.
        if record.entered("SettleShare") {
            return Ok(());
        }
        let after = check::picture(&stage);
        check::unchanged(&before, &after, &check::kept(&stage))
    };
    hold("a share that is stopped leaves none of its launches", (40, 20_260_114), "launches", cases, property);
}

#[test]
fn where_nothing_was_changed_a_proof_is_launched_once() {
    let property = |tally: &Tally, seed: u64| {
        let stage = world::crowd(deployed::deployment(false), seed);
        let (record, _) = share(tally, &stage, "first", &json!({}))?;
        expect(&record.status, &Status::Succeeded, &record)?;
        die(&stage, "Client.InternalError");
        let (record, journal) = share(tally, &stage, "again", &json!({ "prove": "always" }))?;
        expect(&record.error.as_deref(), &Some("InstanceDied"), &record)?;
        expect(&count(&journal, "ec2:RunInstances"), &1, &record)
    };
    let seeds = any::<u64>().no_shrink();
    hold("where nothing was changed a proof is launched once", (3, 20_260_112), "once", seeds, property);
}

#[test]
fn a_death_that_time_does_not_heal_is_the_end() {
    let property = |tally: &Tally, seed: u64| {
        let stage = world::crowd(deployed::deployment(false), seed);
        die(&stage, "Server.InsufficientInstanceCapacity");
        let (record, journal) = share(tally, &stage, "full", &json!({}))?;
        expect(&record.error.as_deref(), &Some("InstanceDied"), &record)?;
        expect(&count(&journal, "ec2:RunInstances"), &1, &record)
    };
    let seeds = any::<u64>().no_shrink();
    hold("a death that time does not heal is the end", (3, 20_260_113), "full", seeds, property);
}

/// Whatever is launched dies of that.
fn die(stage: &Stage, reason: &str) {
    let kind = FaultKind::Fail { reason: reason.to_owned() };
    stage.machine.world().faults.add(SandboxFault::always(Matcher::action("ec2:RunInstances"), kind));
}

/// Shares the image with one target, and says how that ended and which calls it made.
fn share(tally: &Tally, stage: &Stage, name: &str, launch: &Value) -> Result<(Record, Vec<Entry>), String> {
    let seen = stage.machine.world().journal.last_seq();
    let arn = stage.machine.start("ShareAmi", name, request(stage, launch), 0)?;
    stage.machine.run()?;
    let record = stage.machine.record(&arn);
    add(&tally.executions, 1);
    add(&tally.succeeded, u64::from(record.status == Status::Succeeded));
    let journal = stage.machine.world().journal.since(seen).to_vec();
    add(&tally.calls, journal.len() as u64);
    Ok((record, journal))
}

fn request(stage: &Stage, launch: &Value) -> Value {
    json!({ "imageId": stage.images[0].id, "targets": [{ "accountId": TARGET, "launch": launch }] })
}

fn count(journal: &[Entry], action: &str) -> u64 {
    journal.iter().filter(|entry| entry.action == action && entry.via.is_none()).count() as u64
}

fn nothing_runs(world: &mut World) -> Checked {
    let snapshot = world.snapshot(TARGET);
    let instances = snapshot["ec2"][REGION]["instances"].as_object().into_iter().flatten();
    match instances.into_iter().find(|(_, instance)| instance["state"] != "terminated") {
        Some((id, instance)) => Err(format!("instance {id} is left: {instance}")),
        None => Ok(()),
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(found: &T, expected: &T, record: &Record) -> Checked {
    if found == expected {
        return Ok(());
    }
    Err(format!("{found:?}, not {expected:?}: {:?} {:?} {:?}", record.status, record.error, record.cause))
}
