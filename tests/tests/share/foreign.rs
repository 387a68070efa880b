//! Other people's statements in the keys' policies: what ami-share does leaves them as they are.

use ami_share_core::key_policy::{GRANT_SID, USE_SID};
use ami_share_sandbox::{
    faults::{Fault, FaultKind, Matcher},
    sts::issue_session,
};
use ami_share_tests::{Result, SOURCE, TARGET, clients::root_of, local::Settings};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use serde_json::{Value, json};

use crate::Stage;

const SECOND: &str = "444444444444";
const THIRD: &str = "555555555555";
pub(crate) const ADMINISTRATOR: &str = "golden-image-key-admin";

/// Statements as people write them: every element there is, names of every form, text in Latin-1,
/// and elements in an order that no program would choose.
fn foreign_policy() -> Value {
    let root = format!("arn:aws:iam::{SOURCE}:root");
    let administrator = format!("arn:aws:iam::{SOURCE}:role/{ADMINISTRATOR}");
    json!({ "Statement": [
        { "Resource": "*", "Action": "kms:*", "Principal": { "AWS": root }, "Effect": "Allow", "Sid": "Clé du compte" },
        {
            "Sid": "Administrators",
            "Effect": "Allow",
            "Principal": { "AWS": [administrator] },
            "Action": ["kms:Put*", "kms:Get*", "kms:Describe*"],
            "Resource": ["*"],
        },
        // Everybody in an organization, as the EC2 user guide shares with one.
        {
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["kms:Describe*", "kms:Decrypt"],
            "Resource": "*",
            "Condition": {
                "StringEquals": { "aws:PrincipalOrgID": "o-123example" },
                "ForAnyValue:StringLike": { "aws:PrincipalOrgPaths": ["o-123example/r-ab12/ou-ab12-1*/*"] },
                "Null": { "kms:ViaService": false },
            },
        },
        // One Sid twice, which KMS takes; an account by its number; and one of the targets.
        { "Sid": "Logs", "Effect": "Allow", "Principal": { "Service": ["logs.eu-west-1.amazonaws.com"] }, "Action": "kms:Encrypt*", "Resource": "*" },
        { "Sid": "Logs", "Effect": "Deny", "NotPrincipal": { "AWS": [root, administrator] }, "NotAction": ["kms:Decrypt", "kms:CreateGrant", "kms:DescribeKey", "kms:ReEncrypt*", "kms:GenerateDataKeyWithoutPlaintext"], "Resource": "*" },
        { "Sid": "AmiShareUseOfOthers", "Effect": "Allow", "Principal": { "AWS": TARGET }, "Action": "kms:DescribeKey", "Resource": "*" },
    ], "Id": "written-by-hand", "Version": "2012-10-17" })
}

async fn policy(stage: &Stage, key: &str) -> Result<Value> {
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &stage.local.sandbox.endpoint()));
    let answer = kms.get_key_policy().key_id(key).policy_name("default").send().await?;
    Ok(serde_json::from_str(&answer.policy.unwrap_or_default())?)
}

/// Returns the policy as KMS stores it, which writes an account's number as its ARN.
async fn put_policy(stage: &Stage, key: &str, new: &Value) -> Result<Value> {
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &stage.local.sandbox.endpoint()));
    kms.put_key_policy().key_id(key).policy(new.to_string()).send().await?;
    policy(stage, key).await
}

fn is_ours(statement: &Value) -> bool {
    statement["Sid"] == USE_SID || statement["Sid"] == GRANT_SID
}

/// The text of the statements that are not ours, in their order.
pub(crate) fn foreign(policy: &Value) -> Vec<String> {
    let statements = match &policy["Statement"] {
        Value::Array(statements) => statements.iter().collect(),
        single => vec![single],
    };
    statements.into_iter().filter(|statement| !is_ours(statement)).map(Value::to_string).collect()
}

/// The accounts that each of our statements names; nothing where there are none.
pub(crate) fn shared_with(policy: &Value) -> Vec<Vec<&str>> {
    let ours = policy["Statement"].as_array().into_iter().flatten().filter(|statement| is_ours(statement));
    ours.map(|statement| match &statement["Principal"]["AWS"] {
        Value::Array(arns) => arns.iter().filter_map(|arn| arn.as_str()?.split(':').nth(4)).collect(),
        single => single.as_str().and_then(|arn| arn.split(':').nth(4)).into_iter().collect(),
    })
    .collect()
}

/// KMS, as the role that administers the image's keys.
pub(crate) fn as_administrator(stage: &Stage) -> Result<aws_sdk_kms::Client> {
    let role = format!("arn:aws:iam::{SOURCE}:role/{ADMINISTRATOR}");
    let session = issue_session(&mut stage.local.sandbox.world(), &role, "session").ok_or("no role")?;
    let credentials = Credentials::new(session.id, session.secret, session.token, None, "administrator");
    let config = root_of(SOURCE, &stage.local.sandbox.endpoint())
        .into_builder()
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    Ok(aws_sdk_kms::Client::new(&config))
}

/// Whether the role that administers the key can read and write its policy.
async fn is_administered(stage: &Stage, key: &str) -> Result<bool> {
    let kms = as_administrator(stage)?;
    let Ok(read) = kms.get_key_policy().key_id(key).policy_name("default").send().await else { return Ok(false) };
    let written = kms.put_key_policy().key_id(key).set_policy(read.policy).send().await;
    Ok(written.is_ok() && kms.describe_key().key_id(key).send().await.is_ok())
}

#[tokio::test]
async fn others_statements_keep_their_place_text_and_meaning() -> Result<()> {
    let targets = [TARGET, SECOND, THIRD].map(str::to_owned).to_vec();
    let stage = Stage::start(Settings { targets, ..Settings::default() }).await?;
    let keys = stage.image.key_arns();
    let mut written = put_policy(&stage, keys[0], &foreign_policy()).await?;
    // A policy may have its one statement outside a list.
    let mut single = foreign_policy();
    single["Statement"] = single["Statement"][0].clone();
    let single = put_policy(&stage, keys[1], &single).await?;
    let with = |account: &str| json!({ "imageId": stage.image.image_id, "targets": [{ "accountId": account }] });
    let fail_launch = || {
        let reason = FaultKind::Fail { reason: "Server.InternalError".to_owned() };
        stage.local.sandbox.world().faults.add(Fault::once(Matcher::action("ec2:RunInstances"), reason));
    };

    fail_launch();
    let run = stage.run("undone", &with(TARGET)).await?;
    assert_eq!(run.error(), "InstanceDied", "{}", run.summary());
    assert!(run.writes().contains(&"kms:PutKeyPolicy"));
    assert_eq!(policy(&stage, keys[0]).await?.to_string(), written.to_string());
    assert_eq!(foreign(&policy(&stage, keys[1]).await?), foreign(&single));
    assert_eq!(shared_with(&policy(&stage, keys[1]).await?), [[""; 0]; 0]);

    let run = stage.run("first", &with(TARGET)).await?;
    assert!(run.succeeded(), "{}", run.summary());
    for (key, before) in [(keys[0], &written), (keys[1], &single)] {
        let after = policy(&stage, key).await?;
        assert_eq!(foreign(&after), foreign(before));
        assert_eq!((&after["Id"], &after["Version"]), (&before["Id"], &before["Version"]));
        assert_eq!(shared_with(&after), [[TARGET], [TARGET]]);
        assert_eq!(is_administered(&stage, key).await?, key == keys[0]);
    }

    // Somebody adds a statement after ours, and one before them.
    let mut between = policy(&stage, keys[0]).await?;
    let addition = |sid: &str| {
        json!({
            "Action": "kms:Decrypt", "Effect": "Deny", "Principal": "*", "Resource": "*", "Sid": sid,
            "Condition": { "StringNotEquals": { "kms:CallerAccount": [SOURCE, TARGET, SECOND, THIRD] } },
        })
    };
    let statements = between["Statement"].as_array_mut().ok_or("no list")?;
    statements.insert(0, addition("First"));
    statements.push(addition("Last"));
    let between = put_policy(&stage, keys[0], &between).await?;
    let order = |policy: &Value| -> Vec<Value> {
        policy["Statement"].as_array().into_iter().flatten().map(|statement| statement["Sid"].clone()).collect()
    };

    let run = stage.run("second", &with(SECOND)).await?;
    assert!(run.succeeded(), "{}", run.summary());
    written = policy(&stage, keys[0]).await?;
    assert_eq!(foreign(&written), foreign(&between));
    assert_eq!(order(&written), order(&between));
    assert_eq!(shared_with(&written), [[TARGET, SECOND], [TARGET, SECOND]]);
    assert!(is_administered(&stage, keys[0]).await?);

    fail_launch();
    let run = stage.run("third-undone", &with(THIRD)).await?;
    assert_eq!(run.error(), "InstanceDied", "{}", run.summary());
    assert_eq!(policy(&stage, keys[0]).await?.to_string(), written.to_string());
    assert_eq!(run.differences(), "");
    Ok(())
}
