//! Grants that a target passed on while it had one of ours: they outlive it.

use ami_share_tests::{REGION, Result, SOURCE, TARGET, clients::root_of, local::Settings};
use aws_sdk_kms::{
    Client,
    primitives::Blob,
    types::{GrantOperation, Tag},
};
use serde_json::{Value, json};

use crate::Stage;

/// They exist in the sandbox because they are targets; nobody shares anything with them.
const THIRD: &str = "444444444444";
const FOURTH: &str = "555555555555";
const SHAREABLE_TAG: &str = "ami-share:shareable";

fn settings() -> Settings {
    Settings { targets: [TARGET, THIRD, FOURTH].map(str::to_owned).to_vec(), ..Settings::default() }
}

fn kms(stage: &Stage, account: &str) -> Client {
    Client::new(&root_of(account, &stage.local.sandbox.endpoint()))
}

/// Shares the image by grants, and has the target pass the use of its first key on, and somebody else pass it on again.
/// Returns the key, something that is encrypted under it, and the ids of both grants.
async fn passed_on(stage: &Stage) -> Result<(String, Blob, [String; 2])> {
    let mut request = stage.share_request(TARGET, json!({}));
    request["keyAccess"] = json!("grant");
    stage.share("share", &request).await?;
    let key = stage.image.key_arns()[0].to_owned();
    let encrypted = kms(stage, SOURCE).encrypt().key_id(&key).plaintext(Blob::new("secret")).send().await?;
    let mut grants = Vec::new();
    for (from, to) in [(TARGET, THIRD), (THIRD, FOURTH)] {
        let grant = kms(stage, from).create_grant().key_id(&key).grantee_principal(format!("arn:aws:iam::{to}:root"));
        let grant = grant.operations(GrantOperation::Decrypt).operations(GrantOperation::CreateGrant);
        grants.push(grant.send().await?.grant_id.ok_or("no grant")?);
    }
    let grants = grants.try_into().map_err(|_| "not two grants")?;
    Ok((key, encrypted.ciphertext_blob.ok_or("nothing is encrypted")?, grants))
}

async fn decrypts(stage: &Stage, account: &str, encrypted: &Blob) -> bool {
    kms(stage, account).decrypt().ciphertext_blob(encrypted.clone()).send().await.is_ok()
}

fn told(key: &str, account: &str, stay: &str, grant: &str, to: &str) -> Value {
    json!({
        "keyArn": key, "accountId": account, "kind": "other", "stay": stay, "more": 0,
        "grants": [{ "grantId": grant, "grantee": format!("arn:aws:iam::{to}:root") }],
    })
}

#[tokio::test]
async fn a_revoke_says_what_the_target_passed_on_and_what_was_passed_on_from_that() -> Result<()> {
    let stage = Stage::start(settings()).await?;
    let (key, encrypted, [first, second]) = passed_on(&stage).await?;
    assert!(decrypts(&stage, TARGET, &encrypted).await);
    let revoked = stage.revoke("revoke", &stage.request(json!([TARGET]))).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    let expected =
        json!([told(&key, TARGET, "notAsked", &first, THIRD), told(&key, THIRD, "notAsked", &second, FOURTH),]);
    assert_eq!(revoked.report()["foreignGrants"], expected, "{:#}", revoked.report());
    assert!(!decrypts(&stage, TARGET, &encrypted).await);
    // That is why it is told.
    assert!(decrypts(&stage, THIRD, &encrypted).await && decrypts(&stage, FOURTH, &encrypted).await);

    // The source has no role that could revoke them.
    let revoked = stage.revoke("revoke-them", &revoking(&stage)).await?;
    assert_eq!(revoked.error(), "RevokeIncomplete", "{}", revoked.summary());
    assert!(revoked.cause().contains("RevokeForeignGrants=true"), "{}", revoked.cause());
    assert!(decrypts(&stage, THIRD, &encrypted).await);
    Ok(())
}

fn revoking(stage: &Stage) -> Value {
    let mut request = stage.request(json!([TARGET]));
    request["foreignGrants"] = json!("revoke");
    request
}

/// The calls of a report that revoked grants, by whom they were to.
fn revoked_from(report: &Value) -> Vec<Value> {
    let taken = report["takenBack"].as_array().into_iter().flatten();
    taken.filter(|taken| taken["call"] == "kms:RevokeGrant").map(|taken| taken["from"].clone()).collect()
}

fn both() -> [Value; 1] {
    [json!([FOURTH, THIRD].map(|account| format!("arn:aws:iam::{account}:root")))]
}

/// As EBS does for a volume that the target attaches ("How Amazon EBS uses AWS KMS", KMS developer guide).
fn attach_volume(stage: &Stage, key: &str) -> Result<()> {
    let mut world = stage.local.sandbox.world();
    let kms = world.account_mut(SOURCE).kms.get_mut(REGION).ok_or("no keys")?;
    let key = kms.keys.get_mut(id(key)).ok_or("no key")?;
    let passed_on = key.grants.iter().find(|grant| grant.issuing_account.contains(TARGET)).ok_or("no grant")?;
    let mut of_ebs = passed_on.clone();
    of_ebs.id = "of-ebs".to_owned();
    of_ebs.grantee = format!("arn:aws:sts::{TARGET}:assumed-role/aws:ec2-infrastructure/i-0123456789abcdef0");
    of_ebs.constraints = Some(json!({ "EncryptionContextSubset": { "aws:ebs:id": "vol-0123456789abcdef0" } }));
    key.grants.push(of_ebs);
    Ok(())
}

fn id(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}

#[tokio::test]
async fn what_was_passed_on_is_revoked_where_that_is_asked_for_and_ebs_own_grants_stay() -> Result<()> {
    let stage = Stage::start(Settings { revoke_foreign_grants: true, ..settings() }).await?;
    let (key, encrypted, [first, second]) = passed_on(&stage).await?;
    attach_volume(&stage, &key)?;
    let request = revoking(&stage);
    let mut plan = request.clone();
    plan["action"] = json!("plan");
    let planned = stage.revoke("plan", &plan).await?;
    assert!(planned.succeeded(), "{}", planned.summary());
    let calls = planned.report()["calls"].as_array().into_iter().flatten();
    let planned_calls = calls.filter(|call| call["call"] == "kms:RevokeGrant").map(|call| call["parameters"].clone());
    let expected = [second, first].map(|grant| json!({ "keyId": key, "grantId": grant }));
    assert_eq!(planned_calls.collect::<Vec<_>>(), expected, "the last in the row first");
    assert!(decrypts(&stage, THIRD, &encrypted).await, "a plan revokes nothing");

    let mut planned_request = request.clone();
    planned_request["planHash"] = planned.report()["planHash"].clone();
    let revoked = stage.revoke("revoke", &planned_request).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    for account in [TARGET, THIRD, FOURTH] {
        assert!(!decrypts(&stage, account, &encrypted).await, "{account}");
    }
    assert_eq!(revoked_from(revoked.report()), both());
    // What runs goes on running.
    let stay = json!([{
        "keyArn": key, "accountId": TARGET, "kind": "ebs", "stay": "inUse", "grants": [], "more": 1,
    }]);
    for report in [planned.report(), revoked.report()] {
        assert_eq!(report["foreignGrants"], stay);
    }
    let again = stage.revoke("again", &request).await?;
    assert_eq!(again.report()["status"], "nothingToRevoke", "{}", again.summary());
    Ok(())
}

/// A revoke that only tells of them takes our grants and the notes. The next one finds what was passed on all the same.
#[tokio::test]
async fn what_one_revoke_told_the_next_one_revokes_and_on_tagged_keys_only() -> Result<()> {
    let stage = Stage::start(Settings { revoke_foreign_grants: true, ..settings() }).await?;
    let (key, encrypted, _) = passed_on(&stage).await?;
    let told = stage.revoke("tell", &stage.request(json!([TARGET]))).await?;
    assert!(told.succeeded(), "{}", told.summary());
    assert!(revoked_from(told.report()).is_empty(), "{:#}", told.report());

    kms(&stage, SOURCE).untag_resource().key_id(&key).tag_keys(SHAREABLE_TAG).send().await?;
    let mut plan = revoking(&stage);
    plan["action"] = json!("plan");
    let planned = stage.revoke("plan", &plan).await?;
    let left = planned.report()["left"].to_string();
    assert!(left.contains(&key) && left.contains(SHAREABLE_TAG), "{}", planned.summary());
    let refused = stage.revoke("untagged", &revoking(&stage)).await?;
    assert_eq!(refused.error(), "RevokeIncomplete", "{}", refused.summary());
    for said in [id(&key), SHAREABLE_TAG, "aws kms revoke-grant --region eu-west-1"] {
        assert!(refused.cause().contains(said), "{}", refused.cause());
    }
    assert!(decrypts(&stage, THIRD, &encrypted).await);

    let tag = Tag::builder().tag_key(SHAREABLE_TAG).tag_value("true").build()?;
    kms(&stage, SOURCE).tag_resource().key_id(&key).tags(tag).send().await?;
    let revoked = stage.revoke("tagged", &revoking(&stage)).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(revoked_from(revoked.report()), both());
    for account in [THIRD, FOURTH] {
        assert!(!decrypts(&stage, account, &encrypted).await, "{account}");
    }
    Ok(())
}
