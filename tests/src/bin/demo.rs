//! `make demo`: shares an encrypted image five times on simulated accounts, takes the first share back, shows
//! what happened, and fails if anything is not as it should be.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    process::ExitCode,
    time::Instant,
};

use ami_share_tests::{
    HUB, Result, SOURCE, TARGET,
    clients::root_of,
    engine::checkout,
    execution::{self, Ended},
    local::{Local, Settings},
    notices::Inbox,
    operator::Operator,
    report::{Run, bold},
    sabotage, seed,
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

/// One execution of the demo, and what it should come to.
struct Scenario {
    name: &'static str,
    title: &'static str,
    reencrypt: Option<&'static str>,
    keep: bool,
    /// What makes it fail.
    trouble: Option<Trouble>,
    /// What it should change: account, call, how often.
    changes: &'static [(&'static str, &'static str, usize)],
}

/// What somebody else does, and how it must be explained.
struct Trouble {
    make: fn(&mut ami_share_sandbox::World),
    error: &'static str,
    says: &'static [&'static str],
}

const SCENARIOS: [Scenario; 5] = [
    Scenario {
        name: "plain",
        title: "A plain share: no key of the target's own is named",
        reencrypt: None,
        keep: false,
        trouble: None,
        changes: &[
            (SOURCE, "ec2:ModifyImageAttribute", 1),
            (SOURCE, "kms:PutKeyPolicy", 2),
            (TARGET, "ec2:RunInstances", 1),
            (TARGET, "ec2:TerminateInstances", 1),
            (TARGET, "iam:AttachRolePolicy", 2),
        ],
    },
    Scenario {
        name: "at-launch",
        title: "Re-encrypted at launch, with the target's own key",
        reencrypt: Some("atLaunch"),
        keep: true,
        trouble: None,
        changes: &[
            (SOURCE, "ec2:ModifyImageAttribute", 1),
            (SOURCE, "kms:PutKeyPolicy", 2),
            (TARGET, "ec2:RunInstances", 1),
            (TARGET, "iam:AttachRolePolicy", 2),
        ],
    },
    Scenario {
        name: "copy-image",
        title: "Copied by the target, under its own key",
        reencrypt: Some("copyImage"),
        keep: true,
        trouble: None,
        changes: &[
            (SOURCE, "ec2:ModifyImageAttribute", 1),
            (SOURCE, "ec2:ModifySnapshotAttribute", 3),
            (SOURCE, "kms:PutKeyPolicy", 2),
            (TARGET, "ec2:CopyImage", 1),
            (TARGET, "ec2:RunInstances", 1),
            (TARGET, "iam:AttachRolePolicy", 2),
        ],
    },
    Scenario {
        name: "sabotaged",
        title: "Somebody takes the launcher's access to the keys away just before the launch",
        reencrypt: None,
        keep: false,
        trouble: Some(Trouble {
            make: |world| world.faults.add_hook(sabotage::detach_before_launch()),
            error: "InstanceDied",
            says: &["AmiShareLauncher", "kms:", "taken back"],
        }),
        changes: &[],
    },
    Scenario {
        name: "refused",
        title: "The target's organization denies launches of instances without the tag team",
        reencrypt: None,
        keep: false,
        trouble: Some(Trouble {
            make: |world| world.set_organization(TARGET, Some(sabotage::denied_by(sabotage::ask_for_team()))),
            error: "AccessDenied",
            says: &["ec2:RunInstances", "service control policy", "AskForTeam", "aws:RequestTag/team", "taken back"],
        }),
        changes: &[],
    },
];

/// Lines of a plan's diff.
const SHOWN: usize = 24;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match demonstrate().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("The demo could not go on: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was as it should be.
async fn demonstrate() -> Result<bool> {
    let started = Instant::now();
    println!("Starting the simulated accounts and the local engine, deploying template.yaml and accounts/*.yaml ...");
    let local = Local::start(Settings { decode_messages: true, ..Settings::default() }).await?;
    let world = World::seed(&local).await?;
    println!("Ready after {:.1} s. The image is {}.", started.elapsed().as_secs_f64(), world.image.image_id);
    // Every execution begins with the same accounts.
    let accounts = local.sandbox.world().accounts.clone();
    let plan = plan(&local, &world).await?;
    let mut runs = Vec::new();
    let mut audited = Value::Null;
    for scenario in &SCENARIOS {
        local.sandbox.world().accounts = accounts.clone();
        let before = snapshots(&local);
        runs.push(run(&local, &world, scenario).await?);
        if scenario.name == "plain" {
            audited = audit(&local).await?;
            runs.push(revoke(&local, &world, &before).await?);
        }
    }
    let directory = checkout().join("target/demo");
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("plan.json"), serde_json::to_string_pretty(&plan)?)?;
    fs::write(directory.join("audit.json"), serde_json::to_string_pretty(&audited)?)?;
    for run in &runs {
        fs::write(directory.join(format!("{}.json", run.name)), serde_json::to_string_pretty(&run.json())?)?;
    }
    println!("\n{}", bold("Result"));
    for run in &runs {
        let verdict = if run.problems.is_empty() { "as it should be" } else { "NOT AS IT SHOULD BE" };
        let duration = run.ended.duration.as_secs_f64();
        println!("  {:<12}{:<11}{duration:>6.1} s  {verdict}", run.name, run.ended.status.as_str());
        for problem in &run.problems {
            println!("    {problem}");
        }
    }
    println!("The same as JSON: target/demo/*.json. All in {:.1} s.", started.elapsed().as_secs_f64());
    Ok(runs.iter().all(|run| run.problems.is_empty()))
}

/// What is there before anything is shared.
struct World {
    image: seed::Image,
    target: seed::Target,
    /// The ARN of the target's default key for volumes.
    default_key: String,
}

impl World {
    async fn seed(local: &Local) -> Result<Self> {
        let sandbox = local.sandbox.endpoint();
        let image = seed::image(&sandbox, SOURCE, "golden-image").await?;
        let target = seed::target(&sandbox, TARGET).await?;
        let kms = aws_sdk_kms::Client::new(&root_of(TARGET, &sandbox));
        let default_key = kms.describe_key().key_id("alias/aws/ebs").send().await?.key_metadata;
        let default_key = default_key.and_then(|key| key.arn).ok_or("DescribeKey answered no ARN")?;
        Ok(Self { image, target, default_key })
    }

    fn names(&self) -> BTreeMap<String, String> {
        let keys = self.image.key_arns().into_iter().enumerate();
        keys.map(|(index, arn)| (arn.to_owned(), format!("the source's key {}", index + 1)))
            .chain([
                (self.target.key_arn.clone(), "the target's alias/app-volumes".to_owned()),
                (self.default_key.clone(), "the target's alias/aws/ebs".to_owned()),
            ])
            .collect()
    }

    /// The key that the volumes of the launched instance should be encrypted with.
    fn expected_key(&self, scenario: &Scenario) -> &str {
        if scenario.reencrypt.is_some() { &self.target.key_arn } else { &self.default_key }
    }
}

/// Shows what the first scenario would change, asked for by an operator who may only plan, and that saying so changes
/// nothing.
async fn plan(local: &Local, world: &World) -> Result<Value> {
    let request = request(world, &SCENARIOS[0]);
    println!("\n{}\n", bold("What the next share would change: its plan, with what it does to the first key's policy"));
    let seen = local.sandbox.world().journal.last_seq();
    let engine = local.engine.endpoint();
    let operator = Operator::hire(local, "planner", &["PlanSharesPolicy"]).await?;
    let machine = &local.hub.stack.outputs["PlanShareStateMachineArn"];
    let arn = operator.start(machine, "plan", &request).await?;
    println!("  User planner, who holds PlanSharesPolicy and nothing else, starts plan-share:\n");
    let plan = execution::follow(&engine, &arn, |_| {}).await?.output.ok_or("there is no plan")?;
    for call in plan["calls"].as_array().into_iter().flatten() {
        let field = |name: &str| call[name].as_str().unwrap_or_default();
        println!("  {}  {:<26} {}", field("accountId"), field("call"), call["parameters"]);
    }
    let diff: Vec<&Value> = plan["calls"][0]["policy"]["diff"].as_array().into_iter().flatten().collect();
    for line in diff.iter().take(SHOWN) {
        println!("    {}", line.as_str().unwrap_or_default());
    }
    println!("    ... and {} more lines (target/demo/plan.json)", diff.len().saturating_sub(SHOWN));
    println!("  {}", plan["message"].as_str().unwrap_or_default());
    println!("  planHash: {}", plan["planHash"].as_str().unwrap_or_default());
    let refused = operator.start(&local.hub.state_machine, "planned", &request).await;
    println!(
        "  The same user starts share-ami with the same request: {}.",
        refused.as_deref().unwrap_or_else(|error| error)
    );
    let written = local.sandbox.world().journal.since(seen).iter().filter(|entry| entry.write).count();
    println!("  Calls that the plan itself made to change something: {written}.");
    match refused {
        Ok(_) => Err("whoever may only plan shared the image".into()),
        Err(_) if written > 0 => Err("the plan changed something".into()),
        Err(error) if error != "AccessDeniedException" => Err(error.into()),
        Err(_) => Ok(plan),
    }
}

/// Shows what an audit says of the share before it, and that it changes nothing.
async fn audit(local: &Local) -> Result<Value> {
    println!("\n{}\n", bold("Who can use what now: the notice of an audit"));
    let machine = &local.hub.stack.outputs["AuditSharesStateMachineArn"];
    let seen = local.sandbox.world().journal.last_seq();
    let inbox = Inbox::open(&local.engine, &local.hub).await?;
    println!("$ aws stepfunctions start-execution --state-machine-arn {machine} --name audit --input '{{}}'\n");
    let arn = execution::start_with_cli(&local.engine.endpoint(), machine, "audit", &json!({}))?;
    let report = execution::follow(&local.engine.endpoint(), &arn, |_| {}).await?.output.ok_or("there is no audit")?;
    let notice = inbox.receive(&local.engine)?;
    for line in notice.message.lines() {
        println!("  {line}");
    }
    let written = local.sandbox.world().journal.since(seen).iter().filter(|entry| entry.write).count();
    if written == 0 && report["status"] == "clean" {
        Ok(report)
    } else {
        Err("the audit is not as it should be".into())
    }
}

fn request(world: &World, scenario: &Scenario) -> Value {
    let mut target = json!({
        "accountId": TARGET,
        "principals": [world.target.principal],
        "launch": { "instanceType": "t3.micro", "keep": scenario.keep },
    });
    if let Some(mode) = scenario.reencrypt {
        target["reencrypt"] = json!({ "mode": mode, "kmsKeyId": "alias/app-volumes" });
    }
    json!({ "imageId": world.image.image_id, "targets": [target] })
}

/// Source and target as they are.
fn snapshots(local: &Local) -> [Value; 2] {
    [SOURCE, TARGET].map(|account| local.sandbox.world().snapshot(account))
}

async fn run(local: &Local, world: &World, scenario: &Scenario) -> Result<Run> {
    if let Some(trouble) = &scenario.trouble {
        (trouble.make)(&mut local.sandbox.world());
    }
    let before = snapshots(local);
    let request = request(world, scenario);
    let mut run = execute(local, &local.hub.state_machine, scenario.name, scenario.title, request).await?;
    run.problems = match &scenario.trouble {
        Some(trouble) => check_failure(&run, trouble, &before, &snapshots(local)),
        None => check_success(local, world, scenario, &run).await?,
    };
    print!("{}", run.tables(&world.names()));
    Ok(run)
}

/// Takes the share back that was just made: the accounts are as they were before it.
async fn revoke(local: &Local, world: &World, before: &[Value; 2]) -> Result<Run> {
    let request = json!({ "imageId": world.image.image_id, "targets": [TARGET] });
    let title = "The same share, taken back";
    let mut run = execute(local, &local.hub.revoke_share, "revoke", title, request).await?;
    run.problems = differences(before, &snapshots(local));
    let status = run.ended.output.as_ref().map(|report| report["status"].clone()).unwrap_or_default();
    if status != "revoked" {
        run.problems.push(format!("the status is {status}: {:?}", run.ended.cause));
    }
    print!("{}", run.tables(&world.names()));
    if run.problems.is_empty() {
        println!("\n  Both accounts are as they were before the share.");
    }
    Ok(run)
}

/// Starts an execution as a user would, and shows each state as it is entered.
async fn execute(local: &Local, machine: &str, name: &str, title: &str, request: Value) -> Result<Run> {
    let seen = local.sandbox.world().journal.last_seq();
    println!("\n{}\n", bold(&format!("{title} ({name})")));
    println!("$ aws stepfunctions start-execution --state-machine-arn {machine} \\");
    println!("    --name {name} --input '{request}'\n");
    let engine = local.engine.endpoint();
    let children = take_backs(local).await?;
    let arn = execution::start_with_cli(&engine, machine, name, &request)?;
    let ended = follow(&engine, &arn).await?;
    for child in take_backs(local).await?.difference(&children) {
        println!("  What it took back, TakeBack has started as an execution of its own, of take-back:\n");
        follow(&engine, child).await?;
    }
    let journal = local.sandbox.world().journal.since(seen).to_vec();
    Ok(Run { name: name.to_owned(), title: title.to_owned(), request, ended, journal, problems: Vec::new() })
}

/// Shows each state of an execution as it is entered, and how it ends.
async fn follow(engine: &str, arn: &str) -> Result<Ended> {
    let ended = execution::follow(engine, arn, |entered| {
        println!("  {:>6.2} s  {}", entered.after.as_secs_f64(), entered.state);
        let _ = io::stdout().flush();
    })
    .await?;
    println!("  {:>6.2} s  {}\n", ended.duration.as_secs_f64(), ended.status.as_str());
    Ok(ended)
}

/// The executions of take-back until now.
async fn take_backs(local: &Local) -> Result<BTreeSet<String>> {
    let machine = local.hub.stack.resources.get("TakeBackStateMachine").ok_or("the hub stack has no take-back")?;
    let client = aws_sdk_sfn::Client::new(&root_of(HUB, &local.engine.endpoint()));
    let listed = client.list_executions().state_machine_arn(machine).send().await?.executions;
    Ok(listed.into_iter().map(|execution| execution.execution_arn).collect())
}

async fn check_success(local: &Local, world: &World, scenario: &Scenario, run: &Run) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    let mut expect = |what: &str, found: &Value, expected: &Value| {
        if found != expected {
            problems.push(format!("{what}: {found} instead of {expected}"));
        }
    };
    expect("status of the execution", &json!(run.ended.status.as_str()), &json!("SUCCEEDED"));
    let target = run.target();
    expect("status of the target", &target["status"], &json!("proved"));
    expect("instance kept", &target["instanceStays"], &json!(scenario.keep));
    let volumes: Vec<Value> = target["volumes"].as_array().cloned().unwrap_or_default();
    let keys: BTreeMap<&str, &str> = volumes
        .iter()
        .filter_map(|volume| Some((volume["deviceName"].as_str()?, volume["keyArn"].as_str()?)))
        .collect();
    let expected: BTreeMap<&str, &str> =
        world.image.volumes.iter().map(|volume| (volume.device, world.expected_key(scenario))).collect();
    expect("keys of the volumes, as reported", &json!(keys), &json!(expected));
    if scenario.keep {
        let instance = target["instanceId"].as_str().unwrap_or_default();
        let found = keys_of_instance(&local.sandbox.endpoint(), instance).await?;
        expect("keys of the volumes, as EC2 has them", &json!(found), &json!(expected));
    }
    let mut changes: BTreeMap<String, usize> = BTreeMap::new();
    for entry in run.changes() {
        *changes.entry(format!("{} {}", entry.account, entry.action)).or_default() += 1;
    }
    let expected: BTreeMap<String, usize> =
        scenario.changes.iter().map(|(account, action, count)| (format!("{account} {action}"), *count)).collect();
    expect("changes", &json!(changes), &json!(expected));
    let refused: usize = run.calls().values().map(|calls| calls.refused).sum();
    expect("refused calls", &json!(refused), &json!(0));
    problems.extend(check_key_policies(&local.sandbox.endpoint(), world).await?);
    Ok(problems)
}

/// Everyone else's statements are where they were, followed by ours.
async fn check_key_policies(sandbox: &str, world: &World) -> Result<Vec<String>> {
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, sandbox));
    let original = seed::key_policy(SOURCE, "golden-image-key-admin");
    let original = original["Statement"].as_array().ok_or("the seeded policy has no statements")?;
    let mut problems = Vec::new();
    for arn in world.image.key_arns() {
        let policy = kms.get_key_policy().key_id(arn).send().await?.policy.unwrap_or_default();
        let policy: Value = serde_json::from_str(&policy)?;
        let statements = policy["Statement"].as_array().cloned().unwrap_or_default();
        if !statements.starts_with(original) || statements.len() != original.len() + 2 {
            problems.push(format!("the policy of {arn} is {policy}"));
        }
    }
    Ok(problems)
}

async fn keys_of_instance(sandbox: &str, instance: &str) -> Result<BTreeMap<String, String>> {
    let ec2 = aws_sdk_ec2::Client::new(&root_of(TARGET, sandbox));
    let volumes = ec2.describe_volumes().send().await?.volumes.unwrap_or_default();
    Ok(volumes
        .into_iter()
        .filter_map(|volume| {
            let attachment = volume.attachments?.into_iter().find(|at| at.instance_id.as_deref() == Some(instance))?;
            Some((attachment.device?, volume.kms_key_id?))
        })
        .collect())
}

/// The execution failed with the reason, and both accounts are as they were.
fn check_failure(run: &Run, trouble: &Trouble, before: &[Value; 2], after: &[Value; 2]) -> Vec<String> {
    let mut problems = Vec::new();
    if run.ended.status != ExecutionStatus::Failed {
        problems.push(format!("the execution ended in {}", run.ended.status.as_str()));
    }
    if run.ended.error.as_deref() != Some(trouble.error) {
        problems.push(format!("the error is {:?} instead of {}", run.ended.error, trouble.error));
    }
    let cause = run.ended.cause.as_deref().unwrap_or_default();
    for part in trouble.says {
        if !cause.contains(part) {
            problems.push(format!("the cause does not name {part}"));
        }
    }
    problems.extend(differences(before, after));
    problems
}

fn differences(before: &[Value; 2], after: &[Value; 2]) -> Vec<String> {
    let accounts = [(SOURCE, &before[0], &after[0]), (TARGET, &before[1], &after[1])];
    let differing = accounts.into_iter().filter(|(_, before, after)| before != after);
    differing
        .map(|(account, before, after)| {
            format!("account {account} is not as it was before: {after} instead of {before}")
        })
        .collect()
}
