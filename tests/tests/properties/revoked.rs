//! A share, and its revoke.

use ami_share_machine::Status;
use serde_json::json;

use crate::{
    Tally, add,
    check::{self, Checked},
    hold,
    request::{RequestPlan, good_requests},
    world::{WorldPlan, untouched_worlds},
};

#[test]
fn what_is_shared_and_revoked_is_as_before() {
    let plans = (untouched_worlds(), good_requests());
    hold("what is shared and revoked is as before", (1_000, 20_260_108), "revokes", plans, revoked);
}

/// In worlds where nothing was half shared: what was there under our names before is ours by definition, and goes with
/// the rest.
fn revoked(tally: &Tally, (world, request): (WorldPlan, RequestPlan)) -> Checked {
    let stage = world.stage();
    let request = request.request(&stage);
    let before = check::picture(&mut stage.machine.world());
    let share = stage.machine.start("ShareAmi", "share", request.json.clone(), 0)?;
    stage.machine.run()?;
    let inline_refused = request.inline && !world.inline_policies;
    if stage.machine.record(&share).status != Status::Succeeded && !inline_refused {
        return Err(format!("not shared: {:?}", stage.machine.record(&share).cause));
    }
    let targets: Vec<&str> = request.targets.iter().map(|target| target.account.as_str()).collect();
    let revoke = json!({ "imageId": stage.images[request.image].id, "targets": targets,
        "copies": true, "instances": true, "force": true });
    let mut ended = Vec::new();
    for name in ["first", "second"] {
        let seen = stage.machine.world().journal.last_seq();
        let arn = stage.machine.start("RevokeShare", name, revoke.clone(), 0)?;
        stage.machine.run()?;
        let record = stage.machine.record(&arn);
        if record.status != Status::Succeeded {
            return Err(format!(
                "the {name} revoke ended in {:?}: {:?} {:?}",
                record.status, record.error, record.cause
            ));
        }
        let world = stage.machine.world();
        ended.push(world.journal.since(seen).iter().filter(|entry| entry.changed).count());
    }
    add(&tally.executions, 3);
    add(&tally.succeeded, 2);
    add(&tally.calls, stage.machine.calls());
    if ended[1] > 0 {
        return Err(format!("the second revoke changed {} things", ended[1]));
    }
    check::unchanged(&before, &check::picture(&mut stage.machine.world()), &Default::default())
}
