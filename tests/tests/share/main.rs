//! Whole executions, as they are deployed: what each leaves behind in every account, and every
//! call it makes on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

mod actions;
mod again;
mod foreign;
mod grants;
mod guardrails;
mod key_policies;
mod lost_replies;
mod modes;
mod operators;
mod paths;
mod plan;
mod propagation;
mod refused;
#[path = "../contract/steps.rs"]
mod steps;
mod targets;
mod undo;

use std::collections::BTreeMap;

use ami_share_sandbox::{
    World,
    ec2::{Ec2, Image},
    journal::Entry,
    kms::Key,
    world::Account,
};
use ami_share_tests::{
    REGION, Result, SOURCE, TARGET,
    execution::{self, Ended},
    local::{Local, Settings},
    seed,
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

/// Everything on this machine, with an image to share and targets to share it with.
struct Stage {
    local: Local,
    image: seed::Image,
    /// By account.
    targets: BTreeMap<String, seed::Target>,
    seeded: BTreeMap<String, Account>,
}

/// One execution, and what came of it.
struct Run {
    ended: Ended,
    /// Every call of anybody while it ran.
    journal: Vec<Entry>,
    /// Each account's state.
    before: BTreeMap<String, Value>,
    after: BTreeMap<String, Value>,
}

impl Stage {
    async fn start(settings: Settings) -> Result<Self> {
        let accounts = settings.targets.clone();
        let local = Local::start(settings).await?;
        let sandbox = local.sandbox.endpoint();
        let image = seed::image(&sandbox, SOURCE, "golden-image").await?;
        let mut targets = BTreeMap::new();
        for account in accounts {
            targets.insert(account.clone(), seed::target(&sandbox, &account).await?);
        }
        let seeded = local.sandbox.world().accounts.clone();
        Ok(Self { local, image, targets, seeded })
    }

    /// The accounts are again as they were after `start`, or after `keep`.
    fn reset(&self) {
        self.local.sandbox.world().accounts = self.seeded.clone();
    }

    /// What was changed since `start` is from now on there after each `reset`.
    fn keep(&mut self) {
        self.seeded = self.local.sandbox.world().accounts.clone();
    }

    fn target(&self) -> &seed::Target {
        &self.targets[TARGET]
    }

    /// A request that shares the image with one target, described by `fields`.
    fn request(&self, fields: Value) -> Value {
        let mut target = json!({ "accountId": TARGET });
        merge(&mut target, fields);
        json!({ "imageId": self.image.image_id, "targets": [target] })
    }

    async fn run(&self, name: &str, request: &Value) -> Result<Run> {
        self.run_on(&self.local.hub.state_machine, name, request).await
    }

    async fn run_on(&self, state_machine: &str, name: &str, request: &Value) -> Result<Run> {
        let engine = self.local.engine.endpoint();
        let (before, seen) = (self.snapshots(), self.local.sandbox.world().journal.last_seq());
        let arn = execution::start(&engine, state_machine, name, request).await?;
        let ended = execution::follow(&engine, &arn, |_| {}).await?;
        let after = self.snapshots();
        let journal = self.local.sandbox.world().journal.since(seen).to_vec();
        Ok(Run { ended, journal, before, after })
    }

    /// Takes back all that the target was given of the image; `fields` are of the request.
    async fn revoke(&self, name: &str, fields: Value) -> Result<Run> {
        let mut request = json!({ "imageId": self.image.image_id, "targets": [TARGET] });
        merge(&mut request, fields);
        let run = self.run_on(&self.local.hub.revoke_share, name, &request).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
        Ok(run)
    }

    fn snapshots(&self) -> BTreeMap<String, Value> {
        let mut world = self.local.sandbox.world();
        let accounts: Vec<String> = world.accounts.keys().cloned().collect();
        accounts.into_iter().map(|account| (account.clone(), world.snapshot(&account))).collect()
    }
}

impl Run {
    fn succeeded(&self) -> bool {
        self.ended.status == ExecutionStatus::Succeeded
    }

    fn report(&self) -> &Value {
        self.ended.output.as_ref().unwrap_or(&Value::Null)
    }

    fn error(&self) -> &str {
        self.ended.error.as_deref().unwrap_or_default()
    }

    fn cause(&self) -> &str {
        self.ended.cause.as_deref().unwrap_or_default()
    }

    /// The calls of a kind that changes something, whatever came of them.
    fn writes(&self) -> Vec<&str> {
        self.journal.iter().filter(|entry| entry.write || entry.changed).map(|entry| entry.action.as_str()).collect()
    }

    /// How it ended, for a failed assertion.
    fn summary(&self) -> String {
        let Ended { status, error, cause, output, .. } = &self.ended;
        format!("{} {error:?} {cause:?} {output:?}", status.as_str())
    }

    /// What is not as it was, by account; nothing where all is.
    fn differences(&self) -> String {
        let differing = self.before.iter().filter(|(account, before)| self.after.get(*account) != Some(before));
        differing
            .map(|(account, before)| format!("account {account} was {before:#}\nand is {:#}\n", self.after[account]))
            .collect()
    }
}

/// Sets the fields of `changes` in `value`, in objects inside it too.
fn merge(value: &mut Value, changes: Value) {
    match changes {
        Value::Object(fields) => fields.into_iter().for_each(|(name, change)| merge(&mut value[name], change)),
        other => *value = other,
    }
}

/// EC2 of an account, which has something there.
fn ec2<'w>(world: &'w mut World, account: &str) -> &'w mut Ec2 {
    world.account_mut(account).ec2.entry(REGION.to_owned()).or_default()
}

fn image_mut<'w>(world: &'w mut World, image: &seed::Image) -> &'w mut Image {
    ec2(world, SOURCE).images.get_mut(&image.image_id).expect("the image was seeded")
}

fn key_mut<'w>(world: &'w mut World, arn: &str) -> &'w mut Key {
    let account = arn.split(':').nth(4).expect("a key's ARN has an account");
    let id = arn.rsplit('/').next().expect("a key's ARN ends with its id");
    let kms = world.account_mut(account).kms.entry(REGION.to_owned()).or_default();
    kms.keys.get_mut(id).expect("the key was seeded")
}
