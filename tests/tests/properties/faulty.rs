//! One request, and everything that may go wrong with it.

use std::collections::BTreeSet;

use ami_share_machine::{Status, services::Fault};
use ami_share_sandbox::journal::Entry;
use proptest::prelude::*;
use serde_json::json;

use crate::{
    Tally, add,
    check::{self, Checked},
    deployed::TARGETS,
    hold,
    request::{Request, RequestPlan, good_requests},
    trouble::{break_call, broken, faults},
    world::{Stage, WorldPlan, worlds},
};

#[derive(Debug, Clone)]
struct Plan {
    world: WorldPlan,
    request: RequestPlan,
    faults: Vec<(u64, Fault)>,
    broken: Option<usize>,
    /// The only target that this is broken in: everywhere, where there is none.
    bad: Option<usize>,
    /// The point at which the execution is stopped, or fails without a Catch.
    end: Option<(u64, End)>,
    /// How long after its end it is redriven, in milliseconds.
    redrive: Option<u64>,
    /// When somebody starts undo-share for it besides, while it runs or later.
    by_hand: Option<u64>,
    /// A target of which there is a note that nobody can read.
    unreadable: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
enum End {
    Stopped,
    Failed,
}

fn plans(ends: bool, redriven: bool) -> impl Strategy<Value = Plan> {
    let how = prop_oneof![Just(End::Stopped), Just(End::Failed)];
    let end = if ends { (1..120_u64, how).prop_map(Some).boxed() } else { Just(None).boxed() };
    // While undo-share is under way, before it, and after it.
    let redrive = if redriven { (0..400_000_u64).prop_map(Some).boxed() } else { Just(None).boxed() };
    let broken = (broken(), prop::option::of(0..TARGETS.len()));
    let by_hand = prop::option::weighted(0.2, 0..400_000_u64);
    let unreadable = prop::option::weighted(0.1, 0..TARGETS.len());
    (worlds(), good_requests(), faults(3), broken, end, redrive, by_hand, unreadable).prop_map(
        |(world, request, faults, (broken, bad), end, redrive, by_hand, unreadable)| Plan {
            world,
            request,
            faults,
            broken,
            bad,
            end,
            redrive,
            by_hand,
            unreadable,
        },
    )
}

#[test]
fn no_fault_leaves_a_share_half_made() {
    hold("no fault leaves a share half made", (250, 20_260_102), "faults", plans(false, false), settled);
}

#[test]
fn what_is_stopped_or_fails_without_a_catch_is_taken_back() {
    let name = "what is stopped or fails without a Catch is taken back";
    hold(name, (300, 20_260_103), "stops", plans(true, false), settled);
}

#[test]
fn what_is_redriven_is_whole_or_taken_back() {
    hold("what is redriven is whole or taken back", (200, 20_260_104), "redrives", plans(true, true), settled);
}

/// Either it succeeded, and can be used, or everything is as before.
fn settled(tally: &Tally, plan: Plan) -> Checked {
    let stage = plan.world.stage();
    let request = plan.request.request(&stage);
    let unreadable = plan.unreadable.map(|index| TARGETS[index]);
    unreadable.into_iter().for_each(|account| stage.note_unreadably(account));
    let before = check::picture(&stage);
    let arn = stage.machine.start("ShareAmi", "first", request.json.clone(), 0)?;
    stage.machine.set_faults(plan.faults.clone());
    if let Some(broken) = plan.broken {
        break_call(&mut stage.machine.world(), broken, plan.bad.map(|index| TARGETS[index]));
    }
    match plan.end {
        Some((point, End::Stopped)) => stage.machine.stop_at(&arn, point),
        Some((point, End::Failed)) => stage.machine.fail_at(&arn, point),
        None => {}
    }
    if let Some(delay) = plan.redrive {
        stage.machine.redrive(&arn, delay);
    }
    if let Some(delay) = plan.by_hand {
        stage.machine.start("UndoShare", "by-hand", json!({ "detail": { "executionArn": arn } }), delay)?;
    }
    stage.machine.run()?;
    if stage.machine.executions("UndoShare").iter().any(|undo| ran_out_of_patience(&stage, undo)) {
        stage.machine.start("UndoShare", "again", json!({ "detail": { "executionArn": arn } }), 0)?;
        stage.machine.run()?;
    }
    let after = check::picture(&stage);
    let journal = stage.machine.world().journal.entries().to_vec();
    let undos = stage.machine.executions("UndoShare");
    add(&tally.executions, 1 + undos.len() as u64);
    add(&tally.calls, stage.machine.calls());
    let inline_refused = request.inline && !plan.world.inline_policies;
    check::foreign_is_kept(&before, &after, &[&request])?;
    check::outsiders_have_nothing(&after)?;
    check::roles_suffice(&journal)?;
    check::locks_end(&stage)?;
    check::backups_stay(&stage)?;
    undone(&stage, &undos, unreadable)?;
    stage.machine.world().faults.clear();
    let record = stage.machine.record(&arn);
    if record.status == Status::Succeeded {
        add(&tally.succeeded, 1);
        let mut world = stage.machine.world();
        check::administrators_keep_access(&mut world, &stage)?;
        return check::usable(&mut world, &stage, &request);
    }
    // Whether what is there was proved, nobody can say then.
    let unread =
        |account: &str| record.cause.as_ref().is_some_and(|cause| cause.contains(&format!("target#{account},")));
    let refusable = inline_refused || plan.world.copies_too_early(&request) || unreadable.is_some_and(unread);
    if plan.broken.is_none() && plan.end.is_none() && !refusable {
        return Err(format!("nothing was broken for good, and it failed: {:?} {:?}", record.error, record.cause));
    }
    // Whoever asks for it keeps what was added when a target fails; undo-share takes back what is not settled.
    let standing = check::settled_for(&stage, &arn, &request);
    if request.keep && (record.status == Status::Failed || !standing.is_empty()) {
        return Ok(());
    }
    if plan.end.is_none() && !refusable {
        one_fails(&request, plan.bad.map(|index| TARGETS[index]), &standing)?;
    }
    let with_cause = |why: String| format!("{why} ({:?}: {:?})", record.status, record.cause);
    match unreadable.filter(|account| request.targets.iter().any(|target| target.account == *account)) {
        Some(account) => left_alone(&stage, (&before, &after), &journal, account, &standing).map_err(with_cause),
        None => check::partly(&before, &after, &stage, &request, &standing).map_err(with_cause),
    }
}

/// Of one bad target among others, its share alone is taken back, unless all are to be.
fn one_fails(request: &Request, bad: Option<&str>, standing: &BTreeSet<String>) -> Checked {
    let Some(bad) = bad else { return Ok(()) };
    let others = request.targets.iter().map(|target| target.account.clone()).filter(|account| account != bad);
    let expected: BTreeSet<String> = if request.all { BTreeSet::new() } else { others.collect() };
    if *standing == expected {
        return Ok(());
    }
    Err(format!("{bad} was bad, and {standing:?} stand, not {expected:?}"))
}

/// Where nobody can say what a target has, nothing is taken from it that it was given, which is reported.
fn left_alone(
    stage: &Stage,
    (before, after): check::Pictures<'_>,
    journal: &[Entry],
    account: &str,
    standing: &BTreeSet<String>,
) -> Checked {
    let others = check::kept(stage).into_keys().chain(standing.iter().cloned()).chain([account.to_owned()]).collect();
    check::others_unchanged(before, after, stage, &others)?;
    if let Some(entry) = journal.iter().find(|entry| takes_from(entry, account)) {
        return Err(format!("nobody can say what {account} has, and it lost something: {entry:?}"));
    }
    let is_left = check::left_by(stage, "ResolveUndo").contains(account);
    if !is_left && !standing.contains(account) && check::unchanged(before, after, &check::kept(stage)).is_err() {
        return Err(format!("{account} has something left, which nobody reports"));
    }
    Ok(())
}

/// Whether the call takes a permission from the account. An instance and a copy are known without a note.
fn takes_from(entry: &Entry, account: &str) -> bool {
    let parameters = entry.parameters.as_object().into_iter().flatten();
    let mut named = parameters.filter(|(_, value)| *value == account).map(|(name, _)| name);
    entry.changed
        && match entry.action.as_str() {
            "ec2:ModifyImageAttribute" | "ec2:ModifySnapshotAttribute" => named.any(|name| name.contains("Remove")),
            "iam:DetachRolePolicy" | "iam:DetachUserPolicy" | "iam:DeleteRolePolicy" | "iam:DeleteUserPolicy" => {
                entry.account == account
            }
            _ => false,
        }
}

/// Calls that hang use up the time in which ResolveUndo is patient. What is throttled then stays, and goes when the undo is
/// started again.
fn ran_out_of_patience(stage: &Stage, undo: &str) -> bool {
    let hung = stage.machine.struck().iter().any(|(_, fault)| *fault == Fault::Hangs);
    let undo = stage.machine.record(undo);
    let throttled =
        |cause: &String| cause.contains("ResolveUndo in account") && cause.contains("failed with Throttled");
    hung && undo.error.as_deref() == Some("UndoIncomplete") && undo.cause.as_ref().is_some_and(throttled)
}

/// What undo-share cannot take back is what it cannot judge. A take-back whose end it is never told of it gives up in the
/// end, and says so: whether all was taken is looked at all the same.
fn undone(stage: &Stage, undos: &[String], unreadable: Option<&str>) -> Checked {
    let hung = stage.machine.struck().iter().any(|(_, fault)| *fault == Fault::Hangs);
    for arn in undos {
        let undo = stage.machine.record(arn);
        let cause = undo.cause.clone().unwrap_or_default();
        let said = |account: &str| cause.contains(&format!("ResolveUndo in account {account} failed with Aws"));
        let untold = hung && cause.contains("TakeBack failed with States.Timeout");
        // Another one stopped its take-back, and does the rest: a known limit.
        let taken_over = undos.len() > 1 && cause.contains("undo-share takes back what is left");
        let incomplete = undo.error.as_deref() == Some("UndoIncomplete")
            && (untold || taken_over || ran_out_of_patience(stage, arn) || unreadable.is_some_and(said));
        if undo.status != Status::Succeeded && !incomplete {
            return Err(format!("undo-share ended in {:?}: {:?} {:?}", undo.status, undo.error, undo.cause));
        }
    }
    Ok(())
}
