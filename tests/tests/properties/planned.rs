//! A plan, and its application.

use ami_share_machine::{Status, root::Caller};
use ami_share_sandbox::journal::Entry;
use ami_share_tests::SOURCE;
use proptest::prelude::*;

use crate::{
    Tally, add,
    check::{self, Checked},
    hold,
    request::{Request, RequestPlan, good_requests},
    world::{Stage, WorldPlan, worlds},
};

type Plan = (WorldPlan, RequestPlan, bool);

#[test]
fn a_plan_changes_nothing_and_is_applied_as_it_is_or_not_at_all() {
    let plans = (worlds(), good_requests(), any::<bool>());
    hold("a plan is applied as it is or not at all", (120, 20_260_106), "plans", plans, planned);
}

fn planned(tally: &Tally, (world, request, meddled): Plan) -> Checked {
    let stage = world.stage();
    let mut request = request.request(&stage);
    let before = check::picture(&stage);
    request.json["action"] = "plan".into();
    let arn = run(tally, &stage, "plan", &request)?;
    let plan = stage.machine.record(&arn);
    check::unchanged(&before, &check::picture(&stage), &Default::default())?;
    // Whoever backs up copies has no part in it.
    let is_written = |entry: &&Entry| entry.write && entry.principal.contains("AmiShare");
    if let Some(entry) = stage.machine.world().journal.entries().iter().find(is_written) {
        return Err(format!("a plan called {}", entry.action));
    }
    if plan.status != Status::Succeeded {
        // What the targets' owners do not allow is known before.
        if request.inline && !world.inline_policies {
            return Ok(());
        }
        return Err(format!("no plan: {:?} {:?}", plan.error, plan.cause));
    }
    if meddled {
        meddle(&stage, &request)?;
    }
    let before = check::picture(&stage);
    request.json["action"] = "apply".into();
    request.json["planHash"] = plan.output.unwrap_or_default()["planHash"].clone();
    let arn = run(tally, &stage, "apply", &request)?;
    let record = stage.machine.record(&arn);
    if meddled {
        if record.error.as_deref() != Some("PlanChanged") {
            return Err(format!("another plan was applied: {:?} {:?} {:?}", record.status, record.error, record.cause));
        }
        return check::unchanged(&before, &check::picture(&stage), &Default::default());
    }
    if record.status == Status::Succeeded {
        add(&tally.succeeded, 1);
        return check::usable(&mut stage.machine.world(), &stage, &request);
    }
    if world.copies_too_early(&request) {
        return Ok(());
    }
    Err(format!("the plan was not applied: {:?} {:?}", record.error, record.cause))
}

fn run(tally: &Tally, stage: &Stage, name: &str, request: &Request) -> Result<String, String> {
    let arn = stage.machine.start("ShareAmi", name, request.json.clone(), 0)?;
    let calls = stage.machine.calls();
    stage.machine.run()?;
    add(&tally.executions, 1);
    add(&tally.calls, stage.machine.calls() - calls);
    Ok(arn)
}

/// Somebody gives a target the launch permission that the plan was to give, or takes it away.
fn meddle(stage: &Stage, request: &Request) -> Checked {
    let image = &stage.images[request.image].id;
    let account = request.targets[0].account.as_str();
    let mut world = stage.machine.world();
    let root = Caller::root(SOURCE).in_region(stage.images[request.image].region);
    let asked = [("ImageId", image.as_str()), ("Attribute", "launchPermission")];
    let permitted = root.call(&mut world, "ec2", "DescribeImageAttribute", &asked)?.contains(account);
    let change = if permitted { "LaunchPermission.Remove.1.UserId" } else { "LaunchPermission.Add.1.UserId" };
    root.call(&mut world, "ec2", "ModifyImageAttribute", &[("ImageId", image), (change, account)])?;
    Ok(())
}
