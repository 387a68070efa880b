//! Executions of revoke-share after executions of share-ami, as both are deployed: what is taken back, what
//! stays and why, and what each leaves behind in every account.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

mod all_images;
mod everything;
mod foreign;
mod in_use;
mod left;
mod others;

use std::collections::BTreeMap;

use ami_share_core::share::EXECUTION_TAG;
use ami_share_sandbox::{ec2::Ec2, journal::Entry, sts};
use ami_share_tests::{
    REGION, Result, SOURCE, TARGET,
    clients::root_of,
    execution::{self, Ended},
    local::{Local, Settings},
    seed,
    stop::Stopper,
};
use aws_sdk_ec2::{
    config::Credentials,
    error::ProvideErrorMetadata,
    operation::run_instances::builders::RunInstancesFluentBuilder,
    types::{InstanceNetworkInterfaceSpecification, InstanceType, ResourceType, Tag, TagSpecification},
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

/// Everything on this machine, with an image that nobody is given yet.
struct Stage {
    local: Local,
    notes: Stopper,
    image: seed::Image,
    /// By account.
    targets: BTreeMap<String, seed::Target>,
}

/// One execution, and what came of it.
struct Run {
    ended: Ended,
    /// Every call of anybody while it ran.
    journal: Vec<Entry>,
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
        let notes = Stopper::new(&local).await?;
        Ok(Self { local, notes, image, targets })
    }

    /// A request that shares the image with one target, described by `fields`.
    fn share_request(&self, account: &str, fields: Value) -> Value {
        let mut target = json!({ "accountId": account, "principals": [self.targets[account].principal] });
        for (name, value) in fields.as_object().into_iter().flatten() {
            target[name] = value.clone();
        }
        json!({ "imageId": self.image.image_id, "targets": [target] })
    }

    /// Shares, and fails where that fails.
    async fn share(&self, name: &str, request: &Value) -> Result<Run> {
        let run = self.run(&self.local.hub.state_machine, name, request).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
        Ok(run)
    }

    async fn revoke(&self, name: &str, request: &Value) -> Result<Run> {
        self.run(&self.local.hub.revoke_share, name, request).await
    }

    /// What revokes the image from `targets`.
    fn request(&self, targets: Value) -> Value {
        json!({ "imageId": self.image.image_id, "targets": targets })
    }

    async fn run(&self, machine: &str, name: &str, request: &Value) -> Result<Run> {
        let engine = self.local.engine.endpoint();
        let seen = self.local.sandbox.world().journal.last_seq();
        let arn = execution::start(&engine, machine, name, request).await?;
        let ended = execution::follow(&engine, &arn, |_| {}).await?;
        let journal = self.local.sandbox.world().journal.since(seen).to_vec();
        Ok(Run { ended, journal })
    }

    /// Every account as it is.
    fn snapshots(&self) -> BTreeMap<String, Value> {
        let mut world = self.local.sandbox.world();
        let accounts: Vec<String> = world.accounts.keys().cloned().collect();
        accounts.into_iter().map(|account| (account.clone(), world.snapshot(&account))).collect()
    }

    /// The notes of what targets have, by target and part.
    fn notes(&self) -> Result<BTreeMap<(String, String), Value>> {
        let mut notes = BTreeMap::new();
        for record in self.notes.records()? {
            if let Some(gift) = record["gift"]["S"].as_str() {
                let text = |field: &str| record[field]["S"].as_str().unwrap_or_default().to_owned();
                notes.insert((text("id"), text("part")), serde_json::from_str(gift)?);
            }
        }
        Ok(notes)
    }

    fn with_ec2<T>(&self, account: &str, look: impl FnOnce(&mut Ec2) -> T) -> T {
        let mut world = self.local.sandbox.world();
        look(world.account_mut(account).ec2.entry(REGION.to_owned()).or_default())
    }

    /// EC2 as the account's launcher.
    fn launcher(&self, account: &str) -> Result<aws_sdk_ec2::Client> {
        let role = format!("arn:aws:iam::{account}:role/AmiShareLauncher");
        let key =
            sts::issue_session(&mut self.local.sandbox.world(), &role, "test").ok_or("the target has no launcher")?;
        let credentials = Credentials::new(key.id, key.secret, key.token, None, "session");
        let config = aws_sdk_ec2::config::Builder::from(&root_of(account, &self.local.sandbox.endpoint()))
            .credentials_provider(credentials)
            .build();
        Ok(aws_sdk_ec2::Client::from_conf(config))
    }

    /// EC2 as the account's root.
    fn ec2(&self, account: &str) -> aws_sdk_ec2::Client {
        aws_sdk_ec2::Client::new(&root_of(account, &self.local.sandbox.endpoint()))
    }

    /// The code of the error with which the account's launcher cannot launch the image.
    async fn refusal(&self, account: &str) -> Result<String> {
        let launched = self.launch(account)?.send().await;
        Ok(launched.err().and_then(|error| error.code().map(str::to_owned)).unwrap_or_default())
    }

    /// A launch of the image by the account's launcher.
    fn launch(&self, account: &str) -> Result<RunInstancesFluentBuilder> {
        let tagged = |kind: ResourceType| {
            let tag = Tag::builder().key(EXECUTION_TAG).value("test").build();
            TagSpecification::builder().resource_type(kind).tags(tag).build()
        };
        let launch = self.launcher(account)?.run_instances().image_id(&self.image.image_id);
        let launch = launch.instance_type(InstanceType::T3Micro).min_count(1).max_count(1);
        // The launcher may not give a public address.
        let interface = InstanceNetworkInterfaceSpecification::builder().device_index(0);
        let launch = launch.network_interfaces(interface.associate_public_ip_address(false).build());
        let launch = launch.tag_specifications(tagged(ResourceType::Instance));
        Ok(launch.tag_specifications(tagged(ResourceType::Volume)))
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

    /// The calls of a kind that changes something, whatever came of them; but for the report on who uses the
    /// image, which changes nothing for anybody.
    fn writes(&self) -> Vec<&str> {
        let entries = self.journal.iter().filter(|entry| entry.write || entry.changed);
        entries.map(|entry| entry.action.as_str()).filter(|action| *action != "ec2:CreateImageUsageReport").collect()
    }

    /// How it ended, for a failed assertion.
    fn summary(&self) -> String {
        let Ended { status, error, cause, output, states, .. } = &self.ended;
        let last: Vec<&str> = states.iter().rev().take(3).map(|entered| entered.state.as_str()).collect();
        format!("{} {error:?} {cause:?} {output:?} after {last:?}", status.as_str())
    }
}

/// What is not as it was, by account; nothing where all is.
fn differences(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) -> String {
    let differing = before.iter().filter(|(account, before)| after.get(*account) != Some(before));
    differing
        .map(|(account, before)| format!("account {account} was {before:#}\nand is {:#}\n", after[account]))
        .collect()
}

fn one_target() -> Settings {
    Settings { targets: vec![TARGET.to_owned()], inline_policies: true, ..Settings::default() }
}
