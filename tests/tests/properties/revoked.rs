//! Shares, and their revokes.

use std::collections::BTreeSet;

use ami_share_machine::{Record, Status};
use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};

use crate::{
    Tally, add,
    check::{self, Checked},
    hold,
    request::{Request, RequestPlan, good_requests},
    world::{Stage, WorldPlan, untouched_worlds},
};

/// The requests, which are made one after the other, and how they are revoked.
type Plan = (WorldPlan, Vec<RequestPlan>, Order);

#[derive(Debug, Clone, Copy)]
enum Order {
    AsGiven,
    Reversed,
    /// By one execution, for all images, as it was planned.
    Together,
}

#[test]
fn what_is_shared_and_revoked_is_as_before() {
    let requests = prop_oneof![2 => vec(good_requests(), 1), 1 => vec(good_requests(), 2)];
    let orders = prop_oneof![Just(Order::AsGiven), Just(Order::Reversed), Just(Order::Together)];
    let plans = (untouched_worlds(), requests, orders);
    hold("what is shared and revoked is as before", (500, 20_260_108), "revokes", plans, revoked);
}

/// In worlds where nothing was half shared: what was there under our names before is ours by definition, and goes with
/// the rest.
fn revoked(tally: &Tally, (world, requests, order): Plan) -> Checked {
    let stage = world.stage();
    let requests: Vec<Request> = requests.iter().map(|request| request.request(&stage)).collect();
    let before = check::picture(&stage);
    let mut stands = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        let share = run(tally, &stage, "ShareAmi", &format!("share-{index}"), &request.json)?;
        let refused = request.inline && !world.inline_policies || world.copies_too_early(request);
        match share.status {
            Status::Succeeded => stands.push(request),
            _ if refused => {}
            _ => return Err(format!("not shared: {:?} {:?}", share.error, share.cause)),
        }
    }
    match order {
        Order::AsGiven => one_by_one(tally, &stage, requests.iter(), stands)?,
        Order::Reversed => one_by_one(tally, &stage, requests.iter().rev(), stands)?,
        Order::Together => together(tally, &stage, &requests)?,
    }
    check::backups_stay(&stage)?;
    let kept = check::kept(&stage);
    check::unchanged(&before, &check::picture(&stage), &kept)?;
    if kept.is_empty() {
        return Ok(());
    }
    // What an organization needed goes when its images are not shared with it any more.
    stage.images.iter().for_each(|image| image.close(&mut stage.machine.world()));
    for (index, request) in requests.iter().enumerate() {
        revoke(tally, &stage, &format!("rest-{index}"), request)?;
    }
    stage.images.iter().for_each(|image| image.open(&mut stage.machine.world()));
    check::unchanged(&before, &check::picture(&stage), &check::Kept::new())
}

/// Each revoke leaves the other shares whole.
fn one_by_one<'r>(
    tally: &Tally,
    stage: &Stage,
    requests: impl Iterator<Item = &'r Request>,
    mut stands: Vec<&Request>,
) -> Checked {
    for (index, request) in requests.enumerate() {
        revoke(tally, stage, &format!("revoke-{index}"), request)?;
        stands.retain(|other| other.image != request.image);
        for other in &stands {
            is_whole(tally, stage, &format!("plan-{index}"), other)?;
        }
    }
    Ok(())
}

/// What the plan says is what is made.
fn together(tally: &Tally, stage: &Stage, requests: &[Request]) -> Checked {
    let targets = requests.iter().flat_map(|request| &request.targets).map(|target| target.account.as_str());
    let targets: BTreeSet<&str> = targets.collect();
    let mut revoke = json!({ "images": "all", "targets": targets, "copies": true, "instances": true, "force": true });
    revoke["action"] = json!("plan");
    let seen = stage.machine.world().journal.last_seq();
    let plan = run(tally, stage, "RevokeShare", "plan-all", &revoke)?;
    let plan = plan.output.ok_or_else(|| format!("no plan: {:?} {:?}", plan.error, plan.cause))?;
    if stage.machine.world().journal.since(seen).iter().any(|entry| entry.changed) {
        return Err("the plan has changed something".to_owned());
    }
    revoke["action"] = json!("apply");
    revoke["planHash"] = plan["planHash"].clone();
    twice(tally, stage, "revoke-all", &revoke)
}

fn run(tally: &Tally, stage: &Stage, machine: &str, name: &str, input: &Value) -> Result<Record, String> {
    let calls = stage.machine.calls();
    let arn = stage.machine.start(machine, name, input.clone(), 0)?;
    stage.machine.run()?;
    let record = stage.machine.record(&arn);
    add(&tally.executions, 1);
    add(&tally.succeeded, u64::from(record.status == Status::Succeeded));
    add(&tally.calls, stage.machine.calls() - calls);
    Ok(record)
}

/// Takes everything back that the request gave; a second time there is nothing.
fn revoke(tally: &Tally, stage: &Stage, name: &str, request: &Request) -> Checked {
    let targets: BTreeSet<&str> = request.targets.iter().map(|target| target.account.as_str()).collect();
    let image = &stage.images[request.image];
    let revoke = json!({ "imageId": image.id, "source": image.source(), "targets": targets,
        "copies": true, "instances": true, "force": true });
    twice(tally, stage, name, &revoke)
}

/// The second time changes nothing.
fn twice(tally: &Tally, stage: &Stage, name: &str, revoke: &Value) -> Checked {
    let mut revoke = revoke.clone();
    let mut kept = false;
    for (nth, name) in [format!("{name}-first"), format!("{name}-second")].iter().enumerate() {
        let seen = stage.machine.world().journal.last_seq();
        let record = run(tally, stage, "RevokeShare", name, &revoke)?;
        if record.status != Status::Succeeded {
            return Err(format!("{name} ended in {:?}: {:?} {:?}", record.status, record.error, record.cause));
        }
        let changed = stage.machine.world().journal.since(seen).iter().filter(|entry| entry.changed).count();
        if nth > 0 && changed > 0 && !kept {
            return Err(format!("{name} changed {changed} things"));
        }
        kept = is_kept_for_an_open_one(stage, &record);
        // The plan was of what is gone.
        revoke.as_object_mut().ok_or("a request is an object")?.remove("planHash");
    }
    Ok(())
}

/// Whether access stayed for the sake of an image that an organization can launch: a known limit, as a revoke of that image
/// takes it.
fn is_kept_for_an_open_one(stage: &Stage, record: &Record) -> bool {
    let kept = record.output.iter().flat_map(|report| report["kept"].as_array().into_iter().flatten());
    kept.map(|kept| &kept["imageId"]).any(|kept| stage.images.iter().any(|image| image.is_open() && *kept == *image.id))
}

/// Whatever else was revoked: nothing of this share is missing.
fn is_whole(tally: &Tally, stage: &Stage, name: &str, request: &Request) -> Checked {
    let mut plan = request.json.clone();
    plan["action"] = json!("plan");
    for target in plan["targets"].as_array_mut().into_iter().flatten() {
        target["launch"] = json!({});
    }
    let record = run(tally, stage, "ShareAmi", name, &plan)?;
    match record.output.map(|plan| plan["calls"].clone()) {
        Some(calls) if calls == json!([]) => Ok(()),
        calls => Err(format!("{name} says that something is missing: {calls:?} {:?}", record.cause)),
    }
}
