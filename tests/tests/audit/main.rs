//! Audits, as they are deployed: what each says of accounts that are shared with in every way, well and badly, and
//! that it changes nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

mod findings;
mod limits;
mod others;
mod permitted;
mod plain;
mod schedule;

use std::collections::BTreeMap;

use ami_share_sandbox::journal::Entry;
use ami_share_tests::{
    HUB, REGION, Result, SOURCE,
    checkout::checkout,
    clients::root_of,
    deploy,
    execution::{self, Ended},
    filter_pattern,
    local::{Local, Settings},
    notices::{Inbox, Notice},
    seed, template,
};
use aws_sdk_ec2::types::{ImageAttributeName, LaunchPermission, LaunchPermissionModifications};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

const SECOND: &str = "444444444444";

/// Everything on this machine, with an image that nobody is shared with yet.
struct Stage {
    local: Local,
    inbox: Inbox,
    image: seed::Image,
}

/// One audit, and every call of anybody while it ran.
struct Audit {
    ended: Ended,
    report: Value,
    /// What the notification says.
    table: String,
    journal: Vec<Entry>,
}

impl Stage {
    async fn start(settings: Settings) -> Result<Self> {
        let accounts = settings.targets.clone();
        let local = Local::start(settings).await?;
        let sandbox = local.sandbox.endpoint();
        let image = seed::image(&sandbox, SOURCE, "golden-image").await?;
        for account in accounts {
            seed::target(&sandbox, &account).await?;
        }
        let inbox = Inbox::open(&local.engine, &local.hub).await?;
        Ok(Self { local, inbox, image })
    }

    fn ec2(&self) -> aws_sdk_ec2::Client {
        aws_sdk_ec2::Client::new(&root_of(SOURCE, &self.local.sandbox.endpoint()))
    }

    fn kms(&self) -> aws_sdk_kms::Client {
        aws_sdk_kms::Client::new(&root_of(SOURCE, &self.local.sandbox.endpoint()))
    }

    /// Another image under the same two keys.
    async fn another_image(&self, name: &str) -> Result<seed::Image> {
        let (root_key, data_key) = (&self.image.volumes[0].key_arn, &self.image.volumes[1].key_arn);
        seed::image_under(&self.local.sandbox.endpoint(), SOURCE, name, root_key, data_key).await
    }

    /// Shares an image with an account; `fields` are the request's and the target's own.
    async fn share(&self, name: &str, image: &seed::Image, account: &str, fields: [Value; 2]) -> Result<()> {
        let [mut request, mut target] = fields;
        target["accountId"] = json!(account);
        request["imageId"] = json!(image.image_id);
        request["targets"] = json!([target]);
        let ended = self.execute(&self.local.hub.state_machine, name, &request).await?;
        assert_eq!(ended.status, ExecutionStatus::Succeeded, "{name}: {:?} {:?}", ended.error, ended.cause);
        self.inbox.receive(&self.local.engine)?;
        Ok(())
    }

    async fn share_plainly(&self, name: &str, image: &seed::Image, account: &str) -> Result<()> {
        self.share(name, image, account, [json!({}), json!({})]).await
    }

    async fn execute(&self, state_machine: &str, name: &str, input: &Value) -> Result<Ended> {
        let engine = self.local.engine.endpoint();
        let arn = execution::start(&engine, state_machine, name, input).await?;
        execution::follow(&engine, &arn, |_| {}).await
    }

    /// An audit that comes to its end, and changes nothing on the way.
    async fn audit(&self, name: &str, request: &Value) -> Result<Audit> {
        let before = self.snapshots();
        let audit = self.try_audit(name, request).await?;
        let Ended { status, error, cause, .. } = &audit.ended;
        assert_eq!(*status, ExecutionStatus::Succeeded, "{name}: {error:?} {cause:?}");
        let writes: Vec<&Entry> = audit.journal.iter().filter(|entry| entry.write || entry.changed).collect();
        assert!(writes.is_empty(), "{name} changed something: {writes:#?}");
        assert_eq!(self.snapshots(), before, "{name} changed something");
        Ok(audit)
    }

    /// An audit that may fail.
    async fn try_audit(&self, name: &str, request: &Value) -> Result<Audit> {
        let machine = self.local.hub.stack.resources.get("AuditSharesStateMachine").ok_or("there is no audit")?;
        let seen = self.local.sandbox.world().journal.last_seq();
        let ended = self.execute(machine, name, request).await?;
        let journal = self.local.sandbox.world().journal.since(seen).to_vec();
        let Notice { subject, message } = self.inbox.receive(&self.local.engine)?;
        let report = ended.output.clone().unwrap_or_default();
        let status = report["status"].as_str().unwrap_or("failed");
        assert!(subject.starts_with(&format!("ami-share audit: {status}")), "{subject}: {message}");
        Ok(Audit { report, ended, table: message, journal })
    }

    /// The lines of the functions' log that the deployed filter of findings counts, each with its findings.
    fn counted(&self) -> Result<Vec<u64>> {
        let template = template::read(&checkout().join("template.yaml"))?;
        let filter = &template["Resources"]["AuditFindingsFilter"]["Properties"];
        let pattern = filter["FilterPattern"].as_str().ok_or("there is no pattern")?;
        let group = self.local.hub.stack.resources.get("FunctionsLogGroup").ok_or("there is no log group")?;
        let endpoint = self.local.engine.endpoint();
        let output = deploy::aws(HUB, &endpoint)?
            .args(["--endpoint-url", &endpoint, "logs", "filter-log-events", "--log-group-name", group])
            .args(["--query", "events[].message", "--output", "json"])
            .output()?;
        let lines: Vec<String> = serde_json::from_slice(&output.stdout)?;
        assert!(!lines.is_empty(), "nothing is logged: {}", String::from_utf8_lossy(&output.stderr));
        let mut counted = Vec::new();
        for line in lines {
            if filter_pattern::matches(pattern, &line)? {
                counted.extend(serde_json::from_str::<Value>(&line)?["findings"].as_u64());
            }
        }
        assert_eq!(filter["MetricTransformations"][0]["MetricValue"], "$.findings");
        Ok(counted)
    }

    fn snapshots(&self) -> BTreeMap<String, Value> {
        let mut world = self.local.sandbox.world();
        let accounts: Vec<String> = world.accounts.keys().cloned().collect();
        accounts.into_iter().map(|account| (account.clone(), world.snapshot(&account))).collect()
    }

    async fn launch_permission(&self, image: &str, change: LaunchPermissionModifications) -> Result<()> {
        let request = self.ec2().modify_image_attribute().image_id(image);
        request.attribute(ImageAttributeName::LaunchPermission.as_str()).launch_permission(change).send().await?;
        Ok(())
    }

    async fn let_launch(&self, image: &str, whom: LaunchPermission) -> Result<()> {
        self.launch_permission(image, LaunchPermissionModifications::builder().add(whom).build()).await
    }

    async fn keep_from_launching(&self, image: &str, account: &str) -> Result<()> {
        let change = LaunchPermissionModifications::builder().remove(to_account(account)).build();
        self.launch_permission(image, change).await
    }

    async fn policy(&self, key: &str) -> Result<Value> {
        let answer = self.kms().get_key_policy().key_id(key).policy_name("default").send().await?;
        Ok(serde_json::from_str(&answer.policy.unwrap_or_default())?)
    }

    /// Changes the statements of a key's policy.
    async fn change_policy(&self, key: &str, change: impl FnOnce(&mut Vec<Value>)) -> Result<()> {
        let mut policy = self.policy(key).await?;
        change(policy["Statement"].as_array_mut().ok_or("the policy has no list of statements")?);
        self.kms().put_key_policy().key_id(key).policy(policy.to_string()).send().await?;
        Ok(())
    }
}

fn to_account(account: &str) -> LaunchPermission {
    LaunchPermission::builder().user_id(account).build()
}

impl Audit {
    /// The findings, each as its kind, what it is about, and the accounts.
    fn findings(&self) -> Vec<(&str, &str, Vec<&str>)> {
        fn text(value: &Value) -> &str {
            value.as_str().unwrap_or_default()
        }
        fn about(finding: &Value) -> &str {
            let ids = ["snapshotId", "keyArn", "imageId"];
            ids.iter().map(|id| text(&finding[*id])).find(|id| !id.is_empty()).unwrap_or_default()
        }
        let findings = self.report["findings"].as_array().into_iter().flatten();
        findings
            .map(|finding| {
                let accounts = finding["accounts"].as_array().into_iter().flatten().map(text).collect();
                (text(&finding["kind"]), about(finding), accounts)
            })
            .collect()
    }

    /// What an account has of an image.
    fn share(&self, image: &str, account: &str) -> &Value {
        let images = self.report["images"].as_array().into_iter().flatten();
        let of_image = images.filter(|found| found["imageId"] == image);
        let mut shares = of_image.flat_map(|found| found["shares"].as_array().into_iter().flatten());
        let of = |share: &&Value| share["accounts"].as_array().is_some_and(|with| with.contains(&json!(account)));
        shares.find(of).unwrap_or(&Value::Null)
    }

    /// The rows of the table that have all of these words.
    fn rows(&self, words: &[&str]) -> Vec<&str> {
        self.table.lines().filter(|line| words.iter().all(|word| line.contains(word))).collect()
    }

    /// How often each action was called in the source account.
    fn calls(&self) -> BTreeMap<&str, usize> {
        let mut calls = BTreeMap::new();
        for entry in self.journal.iter().filter(|entry| entry.account == SOURCE) {
            *calls.entry(entry.action.as_str()).or_default() += 1;
        }
        calls
    }
}
