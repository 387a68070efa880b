//! The largest request that is accepted, and everything goes wrong that can: every launch fails and no policy can be
//! detached, with the longest messages. What states hand on still fits, the executions see to their end, what is in the
//! source account goes, and the report says what is left. The same on the machine and on the local engine.

use std::{cmp::Reverse, collections::BTreeMap};

use ami_share_core::{
    request::{MAX_COPIES, MAX_PRINCIPALS, MAX_TARGETS},
    room::MOST_HANDED_ON,
    take_back::bytes_of,
};
use ami_share_machine::{Deployment, Machine, Record, root::Caller};
use ami_share_sandbox::{
    World,
    faults::{Fault, FaultKind, Matcher},
};
use ami_share_tests::{
    REGION, SOURCE, execution,
    local::{Local, Settings},
    notices::Inbox,
    stop::{Stopper, hold_after},
};
use serde_json::{Value, json};

use crate::{
    check,
    crowd::{deployment, target},
    deployed,
    world::{self, Image},
};

/// How many characters the principals of the largest request may have in their paths and names, each: see docs/request.md.
const LONGEST_NAMES: usize = 43;

/// The launcher is one too.
const PRINCIPALS: usize = MAX_TARGETS * (MAX_PRINCIPALS + 1);

/// As long as an execution's name may be: sessions are named after it.
fn name(what: &str) -> String {
    format!("{what}-{}", "n".repeat(79 - what.len()))
}

/// An image, and targets with the most principals.
struct Stage {
    world: World,
    image: Image,
    request: Value,
}

impl Stage {
    fn new(deployment: &Deployment, longest_names: usize) -> Self {
        let (mut world, mut images, _) = world::crowded(deployment, &[false]);
        let image = images.remove(0);
        let targets: Vec<Value> = (0..MAX_TARGETS)
            .map(|index| {
                let account = target(index);
                world::make_key(&mut world, &account, REGION);
                let principals: Vec<String> =
                    (0..MAX_PRINCIPALS).map(|index| make_role(&mut world, &account, index, longest_names)).collect();
                let mut target = json!({ "accountId": account, "principals": principals });
                if index < MAX_COPIES {
                    target["reencrypt"] = json!({ "mode": "copyImage", "kmsKeyId": "alias/app-volumes" });
                }
                target
            })
            .collect();
        world.journal.clear();
        let request = json!({ "imageId": image.id, "targets": targets });
        Self { world, image, request }
    }

    /// It has been shared before, and is revoked.
    fn revoke_request(&self) -> Value {
        let targets: Vec<String> = (0..MAX_TARGETS).map(target).collect();
        json!({ "imageId": self.image.id, "targets": targets, "copies": true, "force": true })
    }
}

/// Returns its ARN.
fn make_role(world: &mut World, account: &str, index: usize, path_and_name: usize) -> String {
    const PATH: &str = "app-teams/";
    let name = format!("{index:0width$}", width = path_and_name - PATH.len());
    let trust = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{account}:root") }, "Action": "sts:AssumeRole",
    }]});
    let (path, trust) = (format!("/{PATH}"), trust.to_string());
    let parameters = [("RoleName", name.as_str()), ("Path", &path), ("AssumeRolePolicyDocument", &trust)];
    Caller::root(account).call(world, "iam", "CreateRole", &parameters).unwrap();
    format!("arn:aws:iam::{account}:role/{PATH}{name}")
}

/// From now on it is refused, with a message that is longer than what is handed on, and that JSON makes longer still.
fn refuse(world: &mut World, action: &str, code: &str) {
    let message = "an explicit deny in the \"service control policy\" of the organization; ".repeat(100);
    let kind = FaultKind::Error { code: code.to_owned(), message, status: 403 };
    world.faults.add(Fault::always(Matcher::action(action), kind));
}

fn refuse_launches(world: &mut World) {
    refuse(world, "ec2:RunInstances", "UnauthorizedOperation");
}

fn refuse_detaching(world: &mut World) {
    refuse(world, "iam:DetachRolePolicy", "AccessDenied");
}

/// How many targets have something in the source account, and how many principals still have the policy.
fn standing(world: &mut World, image: &Image) -> BTreeMap<&'static str, usize> {
    let source = world.snapshot(SOURCE);
    let ec2 = &source["ec2"][REGION];
    let named = |value: &Value| {
        let text = value.to_string();
        (0..MAX_TARGETS).filter(|index| text.contains(&target(*index))).count()
    };
    let targets: Vec<Value> = (0..MAX_TARGETS).map(|index| world.snapshot(&target(index))).collect();
    let principals =
        targets.iter().map(|target| target["iam"].to_string().matches(":policy/AmiShareKeyAccess\"").count());
    let copies = targets.iter().filter_map(|target| target["ec2"][REGION]["images"].as_object());
    BTreeMap::from([
        ("launch permissions", named(&ec2["images"][&image.id]["launchPermissions"])),
        ("snapshots", named(&ec2["snapshots"])),
        ("keys", named(&source["kms"])),
        ("principals", principals.sum()),
        ("copies", copies.map(serde_json::Map::len).sum()),
    ])
}

/// Everything goes but what cannot be detached, and all of that is said.
fn check(world: &mut World, image: &Image, report: &Value) {
    let standing = standing(world, image);
    let expected = [("launch permissions", 0), ("snapshots", 0), ("keys", 0), ("copies", 0)];
    for (what, count) in expected {
        assert_eq!(standing[what], count, "{what}: {standing:?}");
    }
    // What an account has of the policy itself is not more than one.
    assert!(standing["principals"] >= PRINCIPALS, "{standing:?}");
    assert_eq!(report["status"], "failed");
    let left: Vec<&str> = report["left"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let unlisted = report["unlisted"].as_u64().unwrap_or_default();
    println!("a report of {} bytes, {} left, {unlisted} unlisted", bytes_of(report), left.len());
    assert!(left.len() > MAX_TARGETS / 2, "{} are left: {left:?}", left.len());
    assert!(left.len() as u64 + unlisted >= MAX_TARGETS as u64);
    for left in &left {
        assert!(left.starts_with("UndoGrantPrincipals in account 5"), "{left}");
        assert!(left.contains("iam:DetachRolePolicy"), "{left}");
    }
}

fn print_largest(machine: &str, record: &Record) {
    let mut largest: Vec<(&String, &usize)> = record.largest.iter().collect();
    largest.sort_by_key(|(_, bytes)| Reverse(**bytes));
    let largest: Vec<String> = largest.iter().take(8).map(|(state, bytes)| format!("{state} {bytes}")).collect();
    println!("{machine}: {} events; the largest, in bytes: {}", record.events, largest.join(", "));
}

/// Runs to the end of everything, and returns the last report.
fn run(machine: &Machine) -> Value {
    machine.run().unwrap();
    for name in ["ShareAmi", "UndoShare", "RevokeShare", "TakeBack"] {
        for arn in machine.executions(name) {
            let record = machine.record(&arn);
            print_largest(name, &record);
            assert!(record.largest.values().all(|bytes| *bytes <= MOST_HANDED_ON));
        }
    }
    let notice = machine.published().pop().unwrap();
    check::report_in(&notice).unwrap()
}

#[test]
fn the_largest_share_that_is_accepted_fails_at_every_target_and_reports() {
    let started = |longest_names: usize| {
        let Stage { mut world, image, request } = Stage::new(deployment(), longest_names);
        refuse_launches(&mut world);
        refuse_detaching(&mut world);
        let machine = Machine::new(deployment(), world, 1).unwrap();
        let arn = machine.start("ShareAmi", &name("share"), request, 0).unwrap();
        (machine, image, arn)
    };
    let (machine, _, arn) = started(LONGEST_NAMES + 1);
    machine.run().unwrap();
    let record = machine.record(&arn);
    assert_eq!(record.error.as_deref(), Some("InvalidRequest"), "{:?}", record.cause);
    let (machine, image, arn) = started(LONGEST_NAMES);
    let report = run(&machine);
    let record = machine.record(&arn);
    assert_eq!(record.error.as_deref(), Some("AccessDenied"), "{:?}", record.cause);
    let cause = record.cause.unwrap();
    assert!(cause.starts_with("LaunchInstance: ") && cause.contains("50 of 50 targets failed"), "{cause}");
    assert!(report["targets"].as_array().unwrap().iter().all(|target| target["partlyLeft"] == true), "{report}");
    check(&mut machine.world(), &image, &report);
}

#[test]
fn the_largest_share_that_is_accepted_is_planned() {
    let Stage { world, mut request, .. } = Stage::new(deployment(), LONGEST_NAMES);
    request["action"] = json!("plan");
    let machine = Machine::new(deployment(), world, 1).unwrap();
    let arn = machine.start("ShareAmi", &name("plan"), request, 0).unwrap();
    machine.run().unwrap();
    let plan = machine.record(&arn).output.unwrap();
    assert_eq!(plan["status"], "planned");
    println!("a plan of {} bytes: {:?}", bytes_of(&plan), plan["cut"]);
}

#[test]
fn the_largest_share_that_is_accepted_is_stopped_and_undo_share_reports() {
    let Stage { mut world, image, request } = Stage::new(deployment(), LONGEST_NAMES);
    refuse_detaching(&mut world);
    let machine = Machine::new(deployment(), world, 1).unwrap();
    let arn = machine.start("ShareAmi", &name("share"), request, 0).unwrap();
    machine.stop_in(&arn, "SettleShare");
    let report = run(&machine);
    // The event may come twice: the other one finds the share claimed.
    let undos: Vec<Record> = machine.executions("UndoShare").iter().map(|arn| machine.record(arn)).collect();
    let failed: Vec<&str> = undos.iter().filter_map(|undo| undo.error.as_deref()).collect();
    assert_eq!(failed, ["UndoIncomplete"], "{undos:?}");
    check(&mut machine.world(), &image, &report);
}

#[test]
fn the_largest_share_that_is_accepted_is_revoked_and_that_is_reported() {
    let stage = Stage::new(deployment(), LONGEST_NAMES);
    let revoke = stage.revoke_request();
    let machine = Machine::new(deployment(), stage.world, 1).unwrap();
    machine.start("ShareAmi", &name("share"), stage.request, 0).unwrap();
    assert_eq!(run(&machine)["status"], "shared");
    refuse_detaching(&mut machine.world());
    let arn = machine.start("RevokeShare", &name("revoke"), revoke, 0).unwrap();
    let report = run(&machine);
    let record = machine.record(&arn);
    assert_eq!(record.error.as_deref(), Some("RevokeIncomplete"), "{:?}", record.cause);
    check(&mut machine.world(), &stage.image, &report);
}

/// The local engine with the stage on it.
async fn on_the_engine() -> (Local, Inbox, Stage) {
    let targets = (0..MAX_TARGETS).map(target).collect();
    let local = Local::start(Settings { targets, ..Settings::default() }).await.unwrap();
    let inbox = Inbox::open(&local.engine, &local.hub).await.unwrap();
    let stage = Stage::new(&deployed::of(&local).unwrap(), LONGEST_NAMES);
    let mut world = local.sandbox.world();
    // Ids that were given in making the stage are not given again.
    (0..10_000).for_each(|_| drop(world.next_id("made")));
    world.accounts = stage.world.accounts.clone();
    drop(world);
    (local, inbox, stage)
}

fn received(local: &Local, inbox: &Inbox) -> Value {
    inbox.receive(&local.engine).unwrap().report().unwrap()
}

#[tokio::test]
async fn the_same_share_fails_and_reports_on_the_local_engine() {
    let (local, inbox, stage) = on_the_engine().await;
    refuse_launches(&mut local.sandbox.world());
    refuse_detaching(&mut local.sandbox.world());
    let engine = local.engine.endpoint();
    let arn = execution::start(&engine, &local.hub.state_machine, &name("share"), &stage.request).await.unwrap();
    let ended = execution::follow(&engine, &arn, |_| {}).await.unwrap();
    assert_eq!(ended.error.as_deref(), Some("AccessDenied"), "{:?}", ended.cause);
    check(&mut local.sandbox.world(), &stage.image, &received(&local, &inbox));
}

#[tokio::test]
async fn the_same_share_is_stopped_and_undo_share_reports_on_the_local_engine() {
    let (local, inbox, stage) = on_the_engine().await;
    refuse_detaching(&mut local.sandbox.world());
    let stopper = Stopper::new(&local).await.unwrap();
    let mut definition = stopper.definition();
    hold_after(&mut definition, "ShareWithTargets").unwrap();
    let arn = stopper.start(&definition, &name("share"), &stage.request).await.unwrap();
    stopper.stop_held(&arn).await.unwrap();
    let undo = stopper.follow_undo(&arn).await.unwrap();
    assert_eq!(undo.error.as_deref(), Some("UndoIncomplete"), "{:?}", undo.cause);
    check(&mut local.sandbox.world(), &stage.image, &received(&local, &inbox));
}

#[tokio::test]
async fn the_same_share_is_revoked_and_that_is_reported_on_the_local_engine() {
    let (local, inbox, stage) = on_the_engine().await;
    let engine = local.engine.endpoint();
    let arn = execution::start(&engine, &local.hub.state_machine, &name("share"), &stage.request).await.unwrap();
    execution::follow(&engine, &arn, |_| {}).await.unwrap();
    assert_eq!(received(&local, &inbox)["status"], "shared");
    refuse_detaching(&mut local.sandbox.world());
    let arn =
        execution::start(&engine, &local.hub.revoke_share, &name("revoke"), &stage.revoke_request()).await.unwrap();
    let ended = execution::follow(&engine, &arn, |_| {}).await.unwrap();
    assert_eq!(ended.error.as_deref(), Some("RevokeIncomplete"), "{:?}", ended.cause);
    check(&mut local.sandbox.world(), &stage.image, &received(&local, &inbox));
}
