//! What was deployed: the templates as CloudFormation made them on the local engine, once for each test process.

use std::{cell::RefCell, collections::BTreeMap, fs, sync::OnceLock};

use ami_share_machine::{Deployment, Function};
use ami_share_sandbox::{World, world::Account};
use ami_share_tests::{
    HUB, REGION, Result, SOURCE, TARGET, deploy,
    engine::checkout,
    local::{Local, Organization, Settings},
};
use serde_json::Value;

/// The accounts that may be targets.
pub(crate) const TARGETS: [&str; 3] = [TARGET, "444444444444", "555555555555"];
/// An account that is ready to be a target, and is not on the allow-list.
pub(crate) const UNLISTED: &str = "666666666666";

const MACHINES: [(&str, &str); 3] = [
    ("ShareAmi", "statemachine/share-ami.asl.json"),
    ("UndoShare", "statemachine/undo-share.asl.json"),
    ("RevokeShare", "statemachine/revoke-share.asl.json"),
];

/// The targets' owners allow inline policies, or do not.
pub(crate) fn deployment(inline_policies: bool) -> &'static Deployment {
    static WITHOUT: OnceLock<Deployment> = OnceLock::new();
    static WITH: OnceLock<Deployment> = OnceLock::new();
    let place = if inline_policies { &WITH } else { &WITHOUT };
    place.get_or_init(|| {
        let targets = TARGETS.map(str::to_owned).to_vec();
        let organization = Organization { targets: vec![UNLISTED.to_owned()], ..Organization::default() };
        start(Settings { targets, inline_policies, organization, ..Settings::default() })
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
    let output = deploy::aws(HUB, &local.engine.endpoint())?.args(["lambda", "list-functions"]).output()?;
    let listed: Value = serde_json::from_slice(&output.stdout)?;
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
        definitions.insert(name.to_owned(), fs::read_to_string(checkout().join(path))?);
    }
    let world = local.sandbox.world();
    Ok(Deployment {
        functions,
        definitions,
        table_arn: format!("arn:aws:dynamodb:{REGION}:{HUB}:table/{table}"),
        accounts: world.accounts.keys().map(|account| (account.clone(), world.export_iam(account))).collect(),
    })
}

/// The accounts that images are shared from and with, and the hub.
pub(crate) fn accounts() -> impl Iterator<Item = &'static str> {
    [HUB, SOURCE, UNLISTED].into_iter().chain(TARGETS)
}
