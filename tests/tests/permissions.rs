//! Each permission is needed: taken away one at a time, just before the launch or the copy, each
//! makes it fail, and the error names what was missing. Put back, it works.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use ami_share_core::{
    ids::{AccountId, KeyArn},
    key_policy::{GRANT_SID, KeyPolicy, USE_SID},
};
use ami_share_sandbox::faults::{Hook, Matcher, RootCall, When};
use ami_share_tests::{
    REGION, Result, SOURCE, TARGET, clients,
    execution::{self, Ended},
    local::{Local, Settings},
    seed,
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

/// What a launch or a copy is missing, how it comes to be missing, and what the error must say.
struct Removal {
    name: String,
    calls: Vec<RootCall>,
    error: &'static str,
    says: Vec<String>,
}

/// A world with an image and a target, and what is deployed.
struct World {
    local: Local,
    image: seed::Image,
    principal: String,
    policy_arn: String,
    policy_document: Value,
}

impl World {
    async fn start() -> Result<Self> {
        let local = Local::start(Settings::default()).await?;
        let sandbox = local.sandbox.endpoint();
        let image = seed::image(&sandbox, SOURCE, "golden-image").await?;
        let target = seed::target(&sandbox, TARGET).await?;
        let iam = aws_sdk_iam::Client::new(&clients::root_of(TARGET, &sandbox));
        let policy_arn = format!("arn:aws:iam::{TARGET}:policy/AmiShareKeyAccess");
        let version = iam.get_policy_version().policy_arn(&policy_arn).version_id("v1").send().await?;
        let document =
            version.policy_version.and_then(|version| version.document).ok_or("the policy has no document")?;
        let decoded = form_urlencoded::parse(document.as_bytes()).next().ok_or("the document is empty")?.0.into_owned();
        let policy_document = serde_json::from_str(&decoded)?;
        Ok(Self { local, image, principal: target.principal, policy_arn, policy_document })
    }

    /// The key under the root volume, and the policy it has once the image is shared.
    async fn shared_policy(&self) -> Result<(String, Value)> {
        let key = self.image.volumes[0].key_arn.clone();
        let kms = aws_sdk_kms::Client::new(&clients::root_of(SOURCE, &self.local.sandbox.endpoint()));
        let text = kms.get_key_policy().key_id(&key).policy_name("default").send().await?.policy.unwrap_or_default();
        let shared = KeyPolicy::parse(&KeyArn::parse(key.as_str())?, &text)?
            .with([&AccountId::parse(TARGET)?])?
            .ok_or("the key is shared already")?
            .to_text()?;
        Ok((key, serde_json::from_str(&shared)?))
    }

    async fn run(&self, name: &str, reencrypt: &Value) -> Result<Ended> {
        let request = json!({ "imageId": self.image.image_id, "targets": [{
            "accountId": TARGET, "principals": [self.principal], "reencrypt": reencrypt,
        }]});
        let engine = self.local.engine.endpoint();
        let arn = execution::start(&engine, &self.local.hub.state_machine, name, &request).await?;
        execution::follow(&engine, &arn, |_| {}).await
    }

    fn put_key_policy(key: &str, policy: &Value) -> RootCall {
        RootCall {
            account: SOURCE.to_owned(),
            region: REGION.to_owned(),
            service: "kms".to_owned(),
            action: "PutKeyPolicy".to_owned(),
            params: json!({ "KeyId": key, "PolicyName": "default", "Policy": policy.to_string() }),
        }
    }

    fn put_managed_policy(&self, document: &Value) -> RootCall {
        RootCall {
            account: TARGET.to_owned(),
            region: REGION.to_owned(),
            service: "iam".to_owned(),
            action: "CreatePolicyVersion".to_owned(),
            params: json!({
                "PolicyArn": self.policy_arn, "PolicyDocument": document.to_string(), "SetAsDefault": "true"
            }),
        }
    }

    /// Every action and every condition of the key statements and of the principal's policy.
    async fn key_and_principal_removals(&self, error: &'static str) -> Result<Vec<Removal>> {
        let (key, shared) = self.shared_policy().await?;
        let mut removals = Vec::new();
        for (change, says) in
            changes(&shared, |statement| statement["Sid"] == USE_SID, |statement| statement["Sid"] == GRANT_SID)
        {
            removals.push(Removal {
                name: format!("key-{}", change.name),
                calls: vec![Self::put_key_policy(&key, &change.document)],
                error,
                says: [says, vec!["key policy".to_owned(), key.clone()]].concat(),
            });
        }
        let is_grant = |statement: &Value| statement["Action"] == "kms:CreateGrant";
        for (change, says) in changes(&self.policy_document, |statement| !is_grant(statement), is_grant) {
            removals.push(Removal {
                name: format!("principal-{}", change.name),
                calls: vec![self.put_managed_policy(&change.document)],
                error,
                says: [says, vec!["IAM policy".to_owned(), "AmiShareLauncher".to_owned()]].concat(),
            });
        }
        Ok(removals)
    }

    /// Shares with one permission taken away just before `call`, and again with it put back.
    async fn try_without(&self, removal: Removal, call: &str, reencrypt: &Value) -> Result<Vec<String>> {
        let Removal { name, calls, error, says } = removal;
        let accounts = self.local.sandbox.world().accounts.clone();
        self.local.sandbox.world().faults.add_hook(Hook {
            when: When::Before,
            matcher: Matcher::action(call).in_account(TARGET),
            skip: 0,
            calls,
        });
        let ended = self.run(&name, reencrypt).await?;
        let mut problems = Vec::new();
        let failed_hooks = std::mem::take(&mut self.local.sandbox.world().faults.failed_hooks);
        if !failed_hooks.is_empty() || !self.local.sandbox.world().faults.hooks().is_empty() {
            problems.push(format!("{name}: the permission was not taken away: {failed_hooks:?}"));
        }
        if ended.status != ExecutionStatus::Failed || ended.error.as_deref() != Some(error) {
            problems.push(format!("{name}: ended in {} with {:?}, not {error}", ended.status.as_str(), ended.error));
        }
        let cause = ended.cause.unwrap_or_default();
        for said in says.iter().filter(|said| !cause.contains(said.as_str())) {
            problems.push(format!("{name}: the cause does not say {said:?}: {cause}"));
        }
        self.local.sandbox.world().accounts = accounts.clone();
        let ended = self.run(&format!("{name}-put-back"), reencrypt).await?;
        if ended.status != ExecutionStatus::Succeeded {
            problems.push(format!("{name}: put back, it still fails: {:?} {:?}", ended.error, ended.cause));
        }
        self.local.sandbox.world().accounts = accounts;
        Ok(problems)
    }
}

struct Change {
    name: String,
    document: Value,
}

/// `document` with one action or condition changed, for each there is, and the action that is then missing.
fn changes(
    document: &Value,
    is_use: impl Fn(&Value) -> bool,
    is_grant: impl Fn(&Value) -> bool,
) -> Vec<(Change, Vec<String>)> {
    let place = |wanted: &dyn Fn(&Value) -> bool| {
        let statements = document["Statement"].as_array().map(Vec::as_slice).unwrap_or_default();
        statements.iter().position(wanted).expect("the statement is there")
    };
    let (use_place, grant_place) = (place(&is_use), place(&is_grant));
    let mut changes = Vec::new();
    let mut change = |name: &str, says: &[&str], edit: &dyn Fn(&mut Value)| {
        let mut changed = document.clone();
        edit(&mut changed["Statement"]);
        assert_ne!(changed, *document, "{name} changes nothing");
        let says = says.iter().map(|text| (*text).to_owned()).collect();
        changes.push((Change { name: name.to_owned(), document: changed }, says));
    };
    for (action, needed) in [
        ("kms:DescribeKey", "kms:DescribeKey"),
        ("kms:Decrypt", "kms:Decrypt"),
        ("kms:ReEncrypt*", "kms:ReEncryptFrom"),
        ("kms:GenerateDataKeyWithoutPlaintext", "kms:GenerateDataKeyWithoutPlaintext"),
    ] {
        let name = action.trim_start_matches("kms:").trim_end_matches('*');
        change(name, &[needed], &|statements| {
            statements[use_place]["Action"].as_array_mut().expect("a list").retain(|listed| *listed != action);
        });
    }
    change("CreateGrant", &["kms:CreateGrant"], &|statements| {
        statements.as_array_mut().expect("a list").remove(grant_place);
    });
    for (name, place, action) in [("use-via", use_place, "kms:Decrypt"), ("grant-via", grant_place, "kms:CreateGrant")]
    {
        change(name, &[action], &|statements| {
            for operator in ["StringEquals", "StringLike"] {
                if let Some(value) = statements[place]["Condition"].get_mut(operator) {
                    value["kms:ViaService"] = json!("rds.eu-west-1.amazonaws.com");
                }
            }
        });
    }
    change("grant-for-service", &["kms:CreateGrant"], &|statements| {
        statements[grant_place]["Condition"]["Bool"]["kms:GrantIsForAWSResource"] = json!("false");
    });
    change("who-or-which", &["kms:Decrypt"], &|statements| {
        let statement = &mut statements[use_place];
        if statement.get("Principal").is_some() {
            statement["Principal"] = json!({ "AWS": "arn:aws:iam::444444444444:root" });
        } else {
            statement["Resource"] = json!("arn:aws:kms:*:444444444444:key/*");
        }
    });
    changes
}

fn ec2_call(action: &str, params: Value) -> RootCall {
    RootCall {
        account: SOURCE.to_owned(),
        region: REGION.to_owned(),
        service: "ec2".to_owned(),
        action: action.to_owned(),
        params,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launch_needs_every_permission() -> Result<()> {
    let world = World::start().await?;
    let mut removals = world.key_and_principal_removals("InstanceDied").await?;
    removals.push(Removal {
        name: "launch-permission".to_owned(),
        calls: vec![ec2_call(
            "ModifyImageAttribute",
            json!({ "ImageId": world.image.image_id, "LaunchPermission.Remove.1.UserId": TARGET }),
        )],
        error: "NotYetVisible",
        says: vec!["launch permission".to_owned(), world.image.image_id.clone()],
    });
    assert_eq!(removals.len(), 19);
    let mut problems = Vec::new();
    for removal in removals {
        problems.extend(world.try_without(removal, "ec2:RunInstances", &Value::Null).await?);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_needs_every_permission() -> Result<()> {
    let world = World::start().await?;
    let mut removals = world.key_and_principal_removals("CopyFailed").await?;
    removals.push(Removal {
        name: "snapshot-permission".to_owned(),
        calls: vec![ec2_call(
            "ModifySnapshotAttribute",
            json!({
                "SnapshotId": world.image.volumes[1].snapshot_id, "Attribute": "createVolumePermission",
                "OperationType": "remove", "UserId.1": TARGET
            }),
        )],
        error: "NotYetVisible",
        says: vec!["snapshot permission".to_owned(), world.image.volumes[1].snapshot_id.clone()],
    });
    removals.push(Removal {
        name: "launch-permission".to_owned(),
        calls: vec![ec2_call(
            "ModifyImageAttribute",
            json!({ "ImageId": world.image.image_id, "LaunchPermission.Remove.1.UserId": TARGET }),
        )],
        error: "NotYetVisible",
        says: vec!["launch permission".to_owned(), world.image.image_id.clone()],
    });
    assert_eq!(removals.len(), 20);
    let copy = json!({ "mode": "copyImage", "kmsKeyId": "alias/app-volumes" });
    let mut problems = Vec::new();
    for removal in removals {
        problems.extend(world.try_without(removal, "ec2:CopyImage", &copy).await?);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}
