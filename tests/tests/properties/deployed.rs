//! What was deployed: the templates as CloudFormation made them on the local engine, once for each test process.

use std::{cell::RefCell, collections::BTreeMap, fs, sync::OnceLock};

use ami_share_machine::{Deployment, Function, Rule};
use ami_share_sandbox::{World, world::Account};
use ami_share_tests::{
    HUB, REGION, Result, SOURCE, TARGET, deploy,
    engine::checkout,
    local::{Local, Organization, Settings},
};
use serde_json::{Value, json};

/// The accounts that may be targets.
pub(crate) const TARGETS: [&str; 3] = [TARGET, "444444444444", "555555555555"];
/// An account that is ready to be a target, and is not on the allow-list.
pub(crate) const UNLISTED: &str = "666666666666";

const MACHINES: [(&str, &str); 5] = [
    ("AuditShares", "statemachine/audit-shares.asl.json"),
    ("ShareAmi", "statemachine/share-ami.asl.json"),
    ("UndoShare", "statemachine/undo-share.asl.json"),
    ("RevokeShare", "statemachine/revoke-share.asl.json"),
    ("TakeBack", "statemachine/take-back.asl.json"),
];

/// The targets' owners allow inline policies, and that refusals are decoded, or do not.
pub(crate) fn deployment(inline_policies: bool) -> &'static Deployment {
    static WITHOUT: OnceLock<Deployment> = OnceLock::new();
    static WITH: OnceLock<Deployment> = OnceLock::new();
    let place = if inline_policies { &WITH } else { &WITHOUT };
    place.get_or_init(|| {
        let targets = TARGETS.map(str::to_owned).to_vec();
        let organization = Organization { targets: vec![UNLISTED.to_owned()], ..Organization::default() };
        let decode_messages = inline_policies;
        start(Settings { targets, inline_policies, decode_messages, organization, ..Settings::default() })
    })
}

/// Accounts that have what was deployed, and nothing else.
pub(crate) fn world(inline_policies: bool) -> World {
    thread_local! {
        static MADE: RefCell<BTreeMap<bool, BTreeMap<String, Account>>> = RefCell::default();
    }
    let settings = ami_share_sandbox::Settings::default();
    let mut world = World::new(settings.clone());
    // Ids that were given in making the accounts are not given again.
    (0..1_000).for_each(|_| drop(world.next_id("made")));
    world.accounts = MADE.with_borrow_mut(|made| {
        let make = || deployment(inline_policies).world(settings).unwrap().accounts;
        made.entry(inline_policies).or_insert_with(make).clone()
    });
    world
}

/// Deploys, reads what that made, and ends the engine.
pub(crate) fn start(settings: Settings) -> Deployment {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { of(&Local::start(settings).await.unwrap()).unwrap() })
}

/// What is deployed on a local engine that runs.
pub(crate) fn of(local: &Local) -> Result<Deployment> {
    let listed = ask(local, &["lambda", "list-functions"])?;
    let mut functions = BTreeMap::new();
    for (id, name) in &local.hub.stack.resources {
        let Some(state) = id.strip_suffix("Function") else { continue };
        let functions_listed = listed["Functions"].as_array().into_iter().flatten();
        let found = functions_listed.into_iter().find(|function| function["FunctionName"] == name.as_str());
        let function = found.ok_or_else(|| format!("{id} is not among the functions"))?;
        let variables = function["Environment"]["Variables"].as_object().into_iter().flatten();
        functions.insert(
            state.to_owned(),
            Function {
                role_arn: function["Role"].as_str().unwrap_or_default().to_owned(),
                timeout_seconds: function["Timeout"].as_u64().ok_or_else(|| format!("{id} has no time limit"))?,
                environment: variables
                    .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
                    .collect(),
            },
        );
    }
    let table = local.hub.stack.resources.get("RecordTable").ok_or("there is no RecordTable")?;
    let mut definitions = BTreeMap::new();
    for (name, path) in MACHINES {
        // By whose executions undo-share knows what it is asked for; here state machines have the names above.
        let definition = fs::read_to_string(checkout().join(path))?;
        definitions.insert(name.to_owned(), definition.replace("${ShareAmiStateMachineName}", "ShareAmi"));
    }
    let world = local.sandbox.world();
    Ok(Deployment {
        functions,
        definitions,
        rules: rules(local)?,
        table_arn: format!("arn:aws:dynamodb:{REGION}:{HUB}:table/{table}"),
        accounts: world.accounts.keys().map(|account| (account.clone(), world.export_iam(account))).collect(),
    })
}

/// The rules by which the end of an execution starts another one.
fn rules(local: &Local) -> Result<Vec<Rule>> {
    let machine = |arn: &Value| {
        let found = local.hub.stack.resources.iter().find(|(_, physical)| *arn == physical.as_str());
        let name = found.and_then(|(id, _)| id.strip_suffix("StateMachine"));
        name.map(str::to_owned).ok_or_else(|| format!("{arn} is no state machine of the stack"))
    };
    let mut rules = Vec::new();
    for rule in ask(local, &["events", "list-rules"])?["Rules"].as_array().into_iter().flatten() {
        let pattern: Value = serde_json::from_str(rule["EventPattern"].as_str().unwrap_or("{}"))?;
        if pattern["source"] != json!(["aws.states"]) {
            continue;
        }
        // What narrows it otherwise is not known here.
        let mut rest = pattern.clone();
        let (ofs, statuses) = (rest["detail"]["stateMachineArn"].take(), rest["detail"]["status"].take());
        let known = json!({
            "source": ["aws.states"],
            "detail-type": ["Step Functions Execution Status Change"],
            "detail": { "stateMachineArn": null, "status": null },
        });
        if rest != known {
            return Err(format!("the pattern {pattern} is not known here").into());
        }
        let statuses: Vec<String> = serde_json::from_value(statuses)?;
        let name = rule["Name"].as_str().unwrap_or_default();
        let targets = ask(local, &["events", "list-targets-by-rule", "--rule", name])?;
        for of in ofs.as_array().into_iter().flatten() {
            for target in targets["Targets"].as_array().into_iter().flatten() {
                rules.push(Rule { of: machine(of)?, statuses: statuses.clone(), starts: machine(&target["Arn"])? });
            }
        }
    }
    Ok(rules)
}

/// What the engine answers a call of the AWS CLI.
fn ask(local: &Local, call: &[&str]) -> Result<Value> {
    let output = deploy::aws(HUB, &local.engine.endpoint())?.args(call).output()?;
    serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("aws {}: {error}: {}", call.join(" "), String::from_utf8_lossy(&output.stderr)).into())
}

/// The accounts that images are shared from and with, and the hub.
pub(crate) fn accounts() -> impl Iterator<Item = &'static str> {
    [HUB, SOURCE, UNLISTED].into_iter().chain(TARGETS)
}
