//! Grants that a target passed on while it had one of ours: they outlive it.

use ami_share_tests::{Result, SOURCE, TARGET, clients::root_of, local::Settings};
use aws_sdk_kms::{Client, primitives::Blob, types::GrantOperation};
use serde_json::{Value, json};

use crate::Stage;

/// They exist in the sandbox because they are targets; nobody shares anything with them.
const THIRD: &str = "444444444444";
const FOURTH: &str = "555555555555";

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
    Ok(())
}
