//! One request, and everything that may go wrong with it.

use ami_share_machine::{Status, services::Fault};
use proptest::prelude::*;

use crate::{
    Tally, add,
    check::{self, Checked},
    hold,
    request::{RequestPlan, good_requests},
    trouble::{break_call, broken, faults},
    world::{Stage, WorldPlan, worlds},
};

#[derive(Debug, Clone)]
struct Plan {
    world: WorldPlan,
    request: RequestPlan,
    faults: Vec<(u64, Fault)>,
    broken: Option<usize>,
    /// The point at which the execution is stopped.
    stop: Option<u64>,
    /// How long after its end it is redriven, in milliseconds.
    redrive: Option<u64>,
}

fn plans(stop: bool, redrive: bool) -> impl Strategy<Value = Plan> {
    let stop = if stop { (1..120_u64).prop_map(Some).boxed() } else { Just(None).boxed() };
    // While undo-share is under way, before it, and after it.
    let redrive = if redrive { (0..400_000_u64).prop_map(Some).boxed() } else { Just(None).boxed() };
    (worlds(), good_requests(), faults(3), broken(), stop, redrive).prop_map(
        |(world, request, faults, broken, stop, redrive)| Plan { world, request, faults, broken, stop, redrive },
    )
}

#[test]
fn no_fault_leaves_a_share_half_made() {
    hold("no fault leaves a share half made", (250, 20_260_102), "faults", plans(false, false), settled);
}

#[test]
fn what_is_stopped_is_taken_back() {
    hold("what is stopped is taken back", (300, 20_260_103), "stops", plans(true, false), settled);
}

#[test]
fn what_is_redriven_is_whole_or_taken_back() {
    hold("what is redriven is whole or taken back", (200, 20_260_104), "redrives", plans(true, true), settled);
}

/// Either it succeeded, and can be used, or everything is as before.
fn settled(tally: &Tally, plan: Plan) -> Checked {
    let stage = plan.world.stage();
    let request = plan.request.request(&stage);
    let before = check::picture(&mut stage.machine.world());
    let arn = stage.machine.start("ShareAmi", "first", request.json.clone(), 0)?;
    stage.machine.set_faults(plan.faults);
    if let Some(broken) = plan.broken {
        break_call(&mut stage.machine.world(), broken);
    }
    if let Some(stop) = plan.stop {
        stage.machine.stop_at(&arn, stop);
    }
    if let Some(delay) = plan.redrive {
        stage.machine.redrive(&arn, delay);
    }
    stage.machine.run()?;
    let after = check::picture(&mut stage.machine.world());
    let journal = stage.machine.world().journal.entries().to_vec();
    let undos = stage.machine.executions("UndoShare");
    add(&tally.executions, 1 + undos.len() as u64);
    add(&tally.calls, stage.machine.calls());
    let inline_refused = request.inline && !plan.world.inline_policies;
    check::foreign_is_kept(&before, &after, &[&request])?;
    check::outsiders_have_nothing(&after)?;
    check::roles_suffice(&journal, inline_refused)?;
    check::locks_end(&stage)?;
    undone(&stage, &undos)?;
    stage.machine.world().faults.clear();
    let record = stage.machine.record(&arn);
    if record.status == Status::Succeeded {
        add(&tally.succeeded, 1);
        let mut world = stage.machine.world();
        check::administrators_keep_access(&mut world, &stage)?;
        return check::usable(&mut world, &stage, &request);
    }
    if plan.broken.is_none() && plan.stop.is_none() && !inline_refused {
        return Err(format!("nothing was broken for good, and it failed: {:?} {:?}", record.error, record.cause));
    }
    // Whoever asks for it keeps what was added when a target fails; undo-share takes back what is not settled.
    let standing = check::settled_for(&stage, &request);
    if request.keep && (record.status == Status::Failed || !standing.is_empty()) {
        return Ok(());
    }
    check::partly(&before, &after, &stage, &request, &standing)
        .map_err(|why| format!("{why} ({:?}: {:?})", record.status, record.cause))
}

fn undone(stage: &Stage, undos: &[String]) -> Checked {
    for arn in undos {
        let undo = stage.machine.record(arn);
        if undo.status != Status::Succeeded {
            return Err(format!("undo-share ended in {:?}: {:?} {:?}", undo.status, undo.error, undo.cause));
        }
    }
    Ok(())
}
