//! Several requests at the same time.

use std::collections::BTreeSet;

use ami_share_machine::{Status, services::Fault};
use proptest::{collection::vec, prelude::*};

use crate::{
    Tally, add,
    check::{self, Checked},
    hold,
    request::{Request, RequestPlan, good_requests},
    trouble::{break_call, broken, faults},
    world::{WorldPlan, worlds},
};

#[derive(Debug, Clone)]
struct Plan {
    world: WorldPlan,
    /// Each with when it is made, in milliseconds, and the point at which it is stopped.
    requests: Vec<(RequestPlan, u64, Option<u64>)>,
    /// The first request is made twice.
    twice: bool,
    faults: Vec<(u64, Fault)>,
    broken: Option<usize>,
}

fn plans() -> impl Strategy<Value = Plan> {
    let request = (good_requests(), 0..60_000_u64, prop::option::weighted(0.2, 1..120_u64));
    (worlds(), vec(request, 2..=3), prop::bool::weighted(0.3), faults(2), broken())
        .prop_map(|(world, requests, twice, faults, broken)| Plan { world, requests, twice, faults, broken })
}

#[test]
fn requests_at_once_lose_nothing_of_each_other() {
    hold("requests at once lose nothing of each other", (150, 20_260_105), "at_once", plans(), at_once);
}

fn at_once(tally: &Tally, mut plan: Plan) -> Checked {
    let stage = plan.world.stage();
    if plan.twice {
        plan.requests[1].0 = plan.requests[0].0.clone();
    }
    let requests: Vec<Request> = plan.requests.iter().map(|(request, ..)| request.request(&stage)).collect();
    let before = check::picture(&stage);
    let mut arns = Vec::new();
    for (index, (request, (_, delay, stop))) in requests.iter().zip(&plan.requests).enumerate() {
        let arn = stage.machine.start("ShareAmi", &format!("share-{index}"), request.json.clone(), *delay)?;
        if let Some(stop) = stop {
            stage.machine.stop_at(&arn, *stop);
        }
        arns.push(arn);
    }
    let held_up = !plan.faults.is_empty();
    stage.machine.set_faults(plan.faults);
    if let Some(broken) = plan.broken {
        break_call(&mut stage.machine.world(), broken, None);
    }
    stage.machine.run()?;
    let after = check::picture(&stage);
    let journal = stage.machine.world().journal.entries().to_vec();
    add(&tally.executions, (arns.len() + stage.machine.executions("UndoShare").len()) as u64);
    add(&tally.calls, stage.machine.calls());
    let all: Vec<&Request> = requests.iter().collect();
    check::foreign_is_kept(&before, &after, &all)?;
    check::outsiders_have_nothing(&after)?;
    check::roles_suffice(&journal)?;
    if held_up {
        check::locks_end(&stage)?;
    } else {
        check::locks_are_free(&stage)?;
    }
    for arn in stage.machine.executions("UndoShare") {
        let undo = stage.machine.record(&arn);
        if undo.status != Status::Succeeded {
            return Err(format!("undo-share ended in {:?}: {:?} {:?}", undo.status, undo.error, undo.cause));
        }
    }
    stage.machine.world().faults.clear();

    let succeeded = |index: usize| stage.machine.record(&arns[index]).status == Status::Succeeded;
    // What is there of these accounts is for the ones that succeeded, or was asked to be kept.
    let mut shared: BTreeSet<String> = check::kept(&stage).into_keys().collect();
    for (index, request) in requests.iter().enumerate().filter(|(index, request)| succeeded(*index) || request.keep) {
        add(&tally.succeeded, u64::from(succeeded(index)));
        shared.extend(request.targets.iter().map(|target| target.account.clone()));
    }
    // One that was stopped after it had settled its note has sent no report of what stands.
    for index in (0..requests.len()).filter(|index| !succeeded(*index)) {
        shared.extend(check::standing(&stage, &format!("share-{index}")));
        shared.extend(check::settled_for(&stage, &arns[index], &requests[index]));
    }
    check::others_unchanged(&before, &after, &stage, &shared)?;
    check::backups_stay(&stage)?;
    let mut world = stage.machine.world();
    check::administrators_keep_access(&mut world, &stage)?;
    for (index, request) in requests.iter().enumerate().filter(|(index, _)| succeeded(*index)) {
        let mut request = request.clone();
        // The limits that docs/decisions.md knows of ("Known limits"): the undo of an execution
        // takes from another one for the same image and target what that one only found in place; and that of one for
        // another image too, where it was held up between its look and the taking.
        for (other, of) in requests.iter().enumerate().filter(|(other, _)| *other != index && !succeeded(*other)) {
            if of.image == request.image || held_up || stage.machine.record(&arns[other]).status == Status::Aborted {
                request.targets.retain(|target| of.targets.iter().all(|other| other.account != target.account));
            }
        }
        check::usable(&mut world, &stage, &request)?;
    }
    Ok(())
}
