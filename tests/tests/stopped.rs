//! Executions that are stopped run no Catch: undo-share takes back what they had added.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::{collections::VecDeque, fs, sync::Arc, time::Duration};

use ami_share_sandbox::faults::{Fault, FaultKind, Matcher};
use ami_share_tests::{
    REGION, Result, SOURCE, TARGET, deploy,
    engine::checkout,
    execution::Ended,
    local::{Local, Settings},
    seed,
    stop::{Stopper, hold_after},
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// How many cases run at the same time, each in a source and a target account of its own.
const WORKERS: usize = 6;

/// How long the first change that a function makes is held up: long enough to stop the execution
/// meanwhile, and shorter than undo-share waits for functions (1.3 s here).
const DELAY_MS: u64 = 1000;

/// The states whose functions change something: in which account, the call that does, and how often
/// it is made before.
const CHANGES: [(&str, Side, &str, u32); 15] = [
    ("ShareKey", Side::Source, "kms:PutKeyPolicy", 0),
    ("GrantKeys", Side::Source, "kms:CreateGrant", 0),
    ("ShareSnapshots", Side::Source, "ec2:ModifySnapshotAttribute", 0),
    ("ShareImage", Side::Source, "ec2:ModifyImageAttribute", 0),
    ("GrantPrincipals", Side::Target, "iam:AttachRolePolicy", 0),
    ("CopyImage", Side::Target, "ec2:CopyImage", 0),
    ("LaunchInstance", Side::Target, "ec2:RunInstances", 0),
    ("TerminateInstance", Side::Target, "ec2:TerminateInstances", 0),
    ("UndoLaunchInstance", Side::Target, "ec2:TerminateInstances", 0),
    ("UndoCopyImage", Side::Target, "ec2:DeregisterImage", 0),
    ("UndoGrantPrincipals", Side::Target, "iam:DetachRolePolicy", 0),
    ("UndoShareImage", Side::Source, "ec2:ModifyImageAttribute", 1),
    // Each of three snapshots, and each of two keys, was changed before.
    ("UndoShareSnapshots", Side::Source, "ec2:ModifySnapshotAttribute", 3),
    ("UndoGrantKeys", Side::Source, "kms:RetireGrant", 0),
    ("UndoShareKey", Side::Source, "kms:PutKeyPolicy", 2),
];

#[derive(Debug, Clone, Copy)]
enum Side {
    Source,
    Target,
}

/// An execution that is stopped in a state.
#[derive(Debug, Clone)]
struct Case {
    state: String,
    /// Whether it is a state of take-back, which the execution waits for.
    of_child: bool,
    /// The function that fails, so that the state is entered at all.
    failing: Option<&'static str>,
    /// What the state's function is still at when the execution is stopped, of [`CHANGES`].
    /// Otherwise the state has done its work, and no other has begun.
    change: Option<(Side, &'static str, u32)>,
}

impl Case {
    /// Whether the execution has seen to its end itself: what it shared stays.
    fn is_settled(&self) -> bool {
        SETTLED.contains(&self.state.as_str())
    }
}

/// The states of share-ami that are entered when the share is settled, and stays.
const SETTLED: [&str; 5] = ["SettleShare", "Report", "CheckReport", "Notify", "CheckOutcome"];

/// Those that a target that fails leads to.
const AFTER_A_FAILURE: [&str; 4] = ["FailTarget", "ResolveUndo", "TakeBack", "CheckTakeBack"];

/// Every state of share-ami but the ones in which it ends, CheckSettled, which an execution enters only when it was redriven
/// (the engine has no redrive) or the table fails, and ClaimPlan, which it enters only where shares must be planned, before
/// anything is noted; and every state of its take-back.
fn cases() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for machine in ["take-back", "share-ami"] {
        let of_child = machine == "take-back";
        let text = fs::read_to_string(checkout().join(format!("statemachine/{machine}.asl.json")))?;
        let machine: Value = serde_json::from_str(&text)?;
        let outer = machine["States"].as_object().ok_or("the machine has no states")?;
        let inner = outer.values().filter_map(|state| state["ItemProcessor"]["States"].as_object()).flatten();
        for (name, state) in outer.iter().chain(inner) {
            let kind = state["Type"].as_str().unwrap_or_default();
            if ["Succeed", "Fail"].contains(&kind) || ["CheckSettled", "ClaimPlan"].contains(&name.as_str()) {
                continue;
            }
            let failing = match name.as_str() {
                "CheckReport" | "ReopenShare" => Some("ReportFunction"),
                name if of_child || AFTER_A_FAILURE.contains(&name) => Some("TerminateInstanceFunction"),
                _ => None,
            };
            let change = CHANGES.iter().find(|(state, ..)| state == name);
            let change = change.map(|(_, side, call, before)| (*side, *call, *before));
            cases.push(Case { state: name.clone(), of_child, failing, change });
        }
    }
    Ok(cases)
}

/// A source account with an image, and a target.
struct World {
    source: String,
    target: String,
    request: Value,
}

impl World {
    async fn seed(local: &Local, source: &str, target: &str) -> Result<Self> {
        let sandbox = local.sandbox.endpoint();
        let image = seed::image(&sandbox, source, "golden-image").await?;
        let principal = seed::target(&sandbox, target).await?.principal;
        let request = json!({
            "imageId": image.image_id,
            "source": { "accountId": source },
            "targets": [{
                "accountId": target,
                "principals": [principal],
                "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" },
            }],
        });
        Ok(Self { source: source.to_owned(), target: target.to_owned(), request })
    }

    /// Holds up the next such call in one of the accounts.
    fn delay(&self, side: Side, call: &str) -> Fault {
        let account = match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        };
        Fault::once(Matcher::action(call).in_account(account), FaultKind::Delay { ms: DELAY_MS })
    }

    fn snapshots(&self, local: &Local) -> Value {
        let mut world = local.sandbox.world();
        json!({ &self.source: world.snapshot(&self.source), &self.target: world.snapshot(&self.target) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_state_it_was_in_everything_is_taken_back() -> Result<()> {
    let account = |kind: usize, index: usize| format!("{kind}{index:011}");
    let pairs: Vec<(String, String)> = (0..WORKERS).map(|index| (account(4, index), account(5, index))).collect();
    let local = Arc::new(Local::start(Settings { pairs: pairs.clone(), ..Settings::default() }).await?);
    let failing = deploy::deploy_failing_function(&local.engine).await?;
    let stopper = Arc::new(Stopper::new(&local).await?);

    let cases = Arc::new(Mutex::new(VecDeque::from(cases()?)));
    let mut workers = Vec::new();
    for (source, target) in pairs {
        let world = World::seed(&local, &source, &target).await?;
        let (local, stopper, cases, failing) = (local.clone(), stopper.clone(), cases.clone(), failing.clone());
        workers.push(tokio::spawn(async move {
            let mut problems = Vec::new();
            loop {
                let Some(case) = cases.lock().await.pop_front() else { return problems };
                if let Err(problem) = run(&local, &stopper, &world, &case, &failing).await {
                    problems.push(format!("{}: {problem}", case.state));
                }
            }
        }));
    }
    let mut problems = Vec::new();
    for worker in workers {
        problems.extend(worker.await?);
    }
    let left: Vec<Value> = stopper.records()?.into_iter().filter(is_held).collect();
    if !left.is_empty() {
        problems.push(format!("the table still holds {left:#?}"));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

/// A note on an execution that nobody has seen to the end of, or on a target, or a lock that somebody has.
fn is_held(record: &Value) -> bool {
    match record["id"]["S"].as_str().unwrap_or_default().split('#').next() {
        Some("keys") => !record["heldBy"].is_null(),
        Some("execution") => record["settled"].is_null(),
        Some("target") => !record["gift"].is_null(),
        _ => true,
    }
}

async fn run(local: &Local, stopper: &Stopper, world: &World, case: &Case, failing: &str) -> Result<()> {
    let mut definition = stopper.definition();
    if let Some(function) = case.failing {
        let text = definition.to_string().replace(&local.hub.function(function)?, failing);
        definition = serde_json::from_str(&text)?;
    }
    let name = format!("stopped-in-{}", case.state);
    let mut child = None;
    if case.of_child {
        let mut take_back = stopper.take_back_definition().await?;
        if case.change.is_none() {
            hold_after(&mut take_back, &case.state)?;
        }
        child = Some(stopper.replace_take_back(&mut definition, &name, &take_back).await?);
    } else if case.change.is_none() {
        hold_after(&mut definition, &case.state)?;
    }
    if let Some((side, call, before)) = case.change {
        local.sandbox.world().faults.add(world.delay(side, call).after(before));
    }
    let before = world.snapshots(local);
    let mut request = world.request.clone();
    if ["PlanShare", "CheckPlan"].contains(&case.state.as_str()) {
        request["action"] = json!("plan");
    }
    if ["GrantKeys", "UndoGrantKeys"].contains(&case.state.as_str()) {
        request["keyAccess"] = json!("grant");
    }
    let arn = stopper.start(&definition, &name, &request).await?;
    let child = match &child {
        Some(machine) => Some(stopper.only_execution_of(machine).await?),
        None => None,
    };
    let inside = child.as_ref().unwrap_or(&arn);
    match case.change {
        Some(_) => stopper.entered(inside, &case.state).await?,
        None => stopper.held(inside).await?,
    }
    stopper.stop(&arn).await?;
    let undo = stopper.follow_undo(&arn).await?;
    let stopped = stopper.follow(&arn).await?;
    if stopped.status != ExecutionStatus::Aborted {
        return Err(format!("the execution ended in {} after {:?}", stopped.status, stopped.states).into());
    }
    let inside = stopper.follow(inside).await?;
    if inside.status != ExecutionStatus::Aborted || !inside.entered(&case.state) {
        return Err(format!("{} ended in {} after {:?}", inside.arn, inside.status, inside.states).into());
    }
    succeeded(&undo)?;
    if let Some((side, call, _)) = case.change {
        let delay = world.delay(side, call);
        if local.sandbox.world().faults.faults().iter().any(|fault| fault.matcher == delay.matcher) {
            return Err(format!("{call} was not under way").into());
        }
    }
    if case.is_settled() {
        let said = undo.output.as_ref().map(|output| (&output["status"], &output["executionArn"]));
        if said != Some((&json!("nothingToTakeBack"), &json!(arn))) {
            return Err(format!("of a share that was settled undo-share said {:?}", undo.output).into());
        }
        if !is_shared(local, world) {
            return Err("what was shared and settled is gone".into());
        }
        // It is noted, so that a revoke takes it back.
        let revoke = json!({
            "imageId": request["imageId"],
            "source": request["source"],
            "targets": [world.target],
            "copies": true,
            "force": true,
        });
        succeeded(&stopper.follow(&stopper.start_revoke(&name, &revoke).await?).await?)?;
    }
    let after = world.snapshots(local);
    if before != after {
        return Err(format!("an account is not as it was:\n{before:#}\n{after:#}").into());
    }
    Ok(())
}

/// Whether the target may launch the image.
fn is_shared(local: &Local, world: &World) -> bool {
    let source = local.sandbox.world().snapshot(&world.source);
    let image = world.request["imageId"].as_str().unwrap_or_default();
    source["ec2"][REGION]["images"][image]["launchPermissions"] == json!([world.target])
}

fn succeeded(ended: &Ended) -> Result<()> {
    if ended.status == ExecutionStatus::Succeeded {
        return Ok(());
    }
    Err(format!("{} ended in {}: {:?} {:?}", ended.arn, ended.status, ended.error, ended.cause).into())
}

/// One source and one target account, an execution of which is stopped when it has shared the image.
struct Stage {
    local: Local,
    stopper: Stopper,
    world: World,
}

impl Stage {
    async fn start() -> Result<Self> {
        let local = Local::start(Settings::default()).await?;
        let stopper = Stopper::new(&local).await?;
        let world = World::seed(&local, SOURCE, TARGET).await?;
        Ok(Self { local, stopper, world })
    }

    fn snapshots(&self) -> Value {
        self.world.snapshots(&self.local)
    }

    /// Starts an execution and stops it when `state` has done its work; returns its ARN.
    async fn stop_after(&self, state: &str, name: &str) -> Result<String> {
        let mut definition = self.stopper.definition();
        hold_after(&mut definition, state)?;
        let arn = self.stopper.start(&definition, name, &self.world.request).await?;
        self.stopper.stop_held(&arn).await?;
        Ok(arn)
    }

    async fn share(&self, name: &str) -> Result<Ended> {
        let arn = self.stopper.start(&self.stopper.definition(), name, &self.world.request).await?;
        self.stopper.follow(&arn).await
    }

    async fn undo(&self, name: &str, event: &Value) -> Result<Ended> {
        self.stopper.follow(&self.stopper.start_undo(name, event).await?).await
    }
}

#[tokio::test]
async fn the_same_event_twice_takes_nothing_back_that_a_later_execution_gave() -> Result<()> {
    let stage = Stage::start().await?;
    let before = stage.snapshots();
    let first = stage.stop_after("ShareImage", "first").await?;
    let event = stage.stopper.event(&first, "ABORTED");
    // At the same time as the one that the rule starts.
    succeeded(&stage.undo("at-the-same-time", &event).await?)?;
    while stage.stopper.undos_of(&first).await?.len() < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for undo in stage.stopper.undos_of(&first).await? {
        succeeded(&stage.stopper.follow(&undo).await?)?;
    }
    assert_eq!(stage.snapshots(), before);

    succeeded(&stage.share("second").await?)?;
    let shared = stage.snapshots();
    assert_ne!(shared, before);
    let late = stage.undo("much-later", &event).await?;
    succeeded(&late)?;
    assert!(late.entered("FinishUndoShare") && !late.entered("TakeBack"), "{:?}", late.states);
    assert_eq!(stage.snapshots(), shared);
    Ok(())
}

#[tokio::test]
async fn an_execution_that_was_stopped_before_it_changed_anything_needs_no_undo() -> Result<()> {
    let stage = Stage::start().await?;
    let before = stage.snapshots();
    let arn = stage.stop_after("ResolveImage", "early").await?;
    let undo = stage.stopper.follow_undo(&arn).await?;
    succeeded(&undo)?;
    // Nobody else tells of it.
    assert!(!undo.entered("TakeBack") && undo.entered("Notify"), "{:?}", undo.states);
    assert_eq!(stage.snapshots(), before);
    assert_eq!(stage.stopper.records()?, Vec::<Value>::new());
    Ok(())
}

/// The local engine does not end executions that run out of time: here one is stopped, nobody is
/// told, and the event is the one that AWS would have sent.
#[tokio::test]
async fn an_execution_that_timed_out_is_taken_back_too() -> Result<()> {
    let stage = Stage::start().await?;
    let before = stage.snapshots();
    stage.stopper.set_rule(false)?;
    let arn = stage.stop_after("VerifyVolumes", "slow").await?;
    assert_ne!(stage.snapshots(), before);
    let undo = stage.undo("undo", &stage.stopper.event(&arn, "TIMED_OUT")).await?;
    succeeded(&undo)?;
    assert_eq!(stage.stopper.undos_of(&arn).await?.len(), 1, "the rule was to start none");
    let report = undo.states.iter().position(|entered| entered.state == "Report");
    assert!(report.is_some(), "nobody was told: {:?}", undo.states);
    assert_eq!(stage.snapshots(), before);
    Ok(())
}

#[tokio::test]
async fn an_undo_that_cannot_be_whole_says_what_is_left_and_can_be_tried_again() -> Result<()> {
    let stage = Stage::start().await?;
    let before = stage.snapshots();
    let refusal = FaultKind::Error {
        code: "AccessDeniedException".to_owned(),
        message: "The key's owner says no.".to_owned(),
        status: 400,
    };
    let arn = {
        let mut definition = stage.stopper.definition();
        hold_after(&mut definition, "VerifyVolumes")?;
        let arn = stage.stopper.start(&definition, "stuck", &stage.world.request).await?;
        stage.stopper.stop_held(&arn).await?;
        arn
    };
    stage.local.sandbox.world().faults.add(Fault::always(Matcher::action("kms:PutKeyPolicy"), refusal));
    let undo = stage.stopper.follow_undo(&arn).await?;
    assert_eq!(undo.status, ExecutionStatus::Failed);
    assert_eq!(undo.error.as_deref(), Some("UndoIncomplete"));
    let cause = undo.cause.unwrap_or_default();
    for part in ["ABORTED", "UndoShareKey failed with AccessDenied", SOURCE] {
        assert!(cause.contains(part), "{part} is not in {cause}");
    }
    // Everything else was taken back all the same.
    let after = stage.snapshots();
    assert_eq!(after[TARGET], before[TARGET]);
    assert_eq!(after[SOURCE]["ec2"], before[SOURCE]["ec2"]);
    assert_ne!(after[SOURCE]["kms"], before[SOURCE]["kms"]);

    stage.local.sandbox.world().faults.clear();
    succeeded(&stage.undo("again", &stage.stopper.event(&arn, "ABORTED")).await?)?;
    assert_eq!(stage.snapshots(), before);
    assert!(!stage.stopper.records()?.iter().any(is_held));
    Ok(())
}
