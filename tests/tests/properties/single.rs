//! One request in a random world.

use ami_share_machine::Status;
use ami_share_tests::{REGION, TARGET};
use serde_json::json;

use crate::{
    Tally, add,
    check::{self, Checked},
    deployed, hold,
    request::{Request, RequestPlan, requests},
    world::{self, Stage, WorldPlan, worlds},
};

#[test]
fn a_share_is_whole_or_not_there() {
    hold("a share is whole or not there", (400, 20_260_101), "whole", (worlds(), requests()), whole);
}

fn whole(tally: &Tally, (world, request): (WorldPlan, RequestPlan)) -> Checked {
    let stage = world.stage();
    let request = request.request(&stage);
    let before = check::picture(&stage);
    let arn = stage.machine.start("ShareAmi", "first", request.json.clone(), 0)?;
    stage.machine.run()?;
    let record = stage.machine.record(&arn);
    let after = check::picture(&stage);
    let journal = stage.machine.world().journal.entries().to_vec();
    add(&tally.executions, 1);
    add(&tally.calls, stage.machine.calls());
    let refusable = request.wrong || request.unlisted || (request.inline && !world.inline_policies);
    let refusable = refusable || world.copies_too_early(&request);
    check::backups_stay(&stage)?;
    check::foreign_is_kept(&before, &after, &[&request])?;
    check::outsiders_have_nothing(&after)?;
    check::roles_suffice(&journal)?;
    if record.status != Status::Succeeded {
        if !refusable {
            return Err(format!("{:?} {:?}", record.error, record.cause));
        }
        // Nobody but the hub is asked anything about a request for an account that is not allowed. Backups are others' calls.
        let asked: Vec<_> = journal.iter().filter(|entry| entry.principal.contains("AmiShare")).collect();
        if request.unlisted && !asked.is_empty() {
            return Err(format!("a request for an account that is not allowed made calls: {asked:?}"));
        }
        let standing = check::standing(&stage, "first");
        return if request.keep { Ok(()) } else { check::partly(&before, &after, &stage, &request, &standing) };
    }
    if request.unlisted || request.wrong {
        return Err("a request that must be refused succeeded".to_owned());
    }
    add(&tally.succeeded, 1);
    again(tally, &stage, &request)?;
    let mut world = stage.machine.world();
    check::administrators_keep_access(&mut world, &stage)?;
    check::usable(&mut world, &stage, &request)
}

/// Invariant 2: the same request once more changes nothing.
fn again(tally: &Tally, stage: &Stage, request: &Request) -> Checked {
    if request.targets.iter().any(|target| target.always) {
        return Ok(());
    }
    let seen = stage.machine.world().journal.last_seq();
    let arn = stage.machine.start("ShareAmi", "again", request.json.clone(), 0)?;
    stage.machine.run()?;
    add(&tally.executions, 1);
    let record = stage.machine.record(&arn);
    let status = record.output.as_ref().map(|output| output["status"].clone());
    if status != Some("alreadyShared".into()) {
        return Err(format!("the second run ended in {:?}: {:?} {:?}", record.status, record.error, record.cause));
    }
    let world = stage.machine.world();
    match world.journal.since(seen).iter().find(|entry| entry.write) {
        Some(entry) => Err(format!("the second run called {} in {}", entry.action, entry.account)),
        None => Ok(()),
    }
}

/// Its note is settled, and what it shared stands: somebody must be told.
#[test]
fn an_execution_that_is_stopped_before_its_report_was_sent_is_told_of_by_undo_share() {
    let stage = world::with_images(deployed::deployment(false), 41, &[false]);
    world::make_principals(&mut stage.machine.world(), TARGET, &[REGION]);
    let request = json!({ "imageId": stage.images[0].id, "targets": [{ "accountId": TARGET }] });
    let arn = stage.machine.start("ShareAmi", "stopped", request, 0).unwrap();
    stage.machine.stop_in(&arn, "Notify");
    stage.machine.run().unwrap();
    let undos = stage.machine.executions("UndoShare");
    let undo = stage.machine.record(&undos[0]);
    assert_eq!((undos.len(), undo.status), (1, Status::Succeeded), "{:?}", undo.cause);
    let report = undo.output.unwrap();
    assert_eq!((&report["status"], &report["executionArn"]), (&json!("nothingToTakeBack"), &json!(arn)));
    assert_eq!(stage.machine.published().len(), 1);
}
