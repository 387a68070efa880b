//! What somebody else gave is told from what ami-share gave.

use ami_share_tests::TARGET;
use aws_sdk_kms::types::GrantOperation;

use super::*;

#[tokio::test]
async fn what_others_gave_is_shown_as_theirs() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let (image, keys) = (&stage.image.image_id, stage.image.key_arns());
    stage.let_launch(image, to_account(TARGET)).await?;
    let snapshot = &stage.image.volumes[0].snapshot_id;
    let request = stage.ec2().modify_snapshot_attribute().snapshot_id(snapshot);
    request.operation_type(aws_sdk_ec2::types::OperationType::Add).user_ids(TARGET).send().await?;
    stage
        .change_policy(keys[0], |statements| {
            statements.push(json!({
                "Sid": "Others", "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{TARGET}:role/app-deployer") },
                "Action": ["kms:Decrypt", "kms:CreateGrant"], "Resource": "*",
            }));
        })
        .await?;
    // Under the name that ours would have, but nobody of ours may retire it.
    let grant = stage.kms().create_grant().key_id(keys[1]).name(format!("ami-share-{TARGET}"));
    let grant = grant.grantee_principal(format!("arn:aws:iam::{TARGET}:root"));
    grant.operations(GrantOperation::Decrypt).operations(GrantOperation::DescribeKey).send().await?;

    let audit = stage.audit("others", &json!({})).await?;
    assert_eq!(audit.findings(), [], "{:#}", audit.report);
    let share = audit.share(image, TARGET);
    assert_eq!(share["launchPermission"], "somebodyElse");
    assert_eq!(share["snapshotPermissions"], json!({ "somebodyElse": 1 }));
    let mut ways = [(keys[0], "othersStatement"), (keys[1], "othersGrant")];
    ways.sort_unstable();
    let ways: Vec<Value> = ways.iter().map(|(key, way)| json!({ "keyArn": key, "ways": [way] })).collect();
    assert_eq!(share["keyAccess"], json!(ways));
    assert_eq!((&share["principals"], &share["copiedBy"]), (&Value::Null, &Value::Null));
    let row = [image.as_str(), TARGET, "others  ", "2 of 2: others' statement, others' grant", "1 of 3: others"];
    assert_eq!(audit.rows(&row).len(), 1, "{}", audit.table);

    // Asked to share it too, ami-share adds what is its own, and notes that.
    stage.share_plainly("too", &stage.image, TARGET).await?;
    let audit = stage.audit("both", &json!({})).await?;
    assert_eq!(audit.findings(), [], "{:#}", audit.report);
    let share = audit.share(image, TARGET);
    assert_eq!(share["launchPermission"], "somebodyElse", "it was there before");
    for key in share["keyAccess"].as_array().into_iter().flatten() {
        assert_eq!(key["ways"][0], "amiShareStatements", "{share}");
        assert_eq!(key["ways"].as_array().map(Vec::len), Some(2), "{share}");
    }

    // A statement for everybody may be access, and nobody can say that it is none.
    stage.keep_from_launching(image, TARGET).await?;
    stage.let_launch(image, to_account(SECOND)).await?;
    for key in &keys {
        stage
            .change_policy(key, |statements| {
                statements.push(json!({
                    "Sid": "Organization", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*",
                    "Condition": { "StringEquals": { "aws:PrincipalOrgID": "o-a1b2c3d4e5" } },
                }));
            })
            .await?;
    }
    let audit = stage.audit("everybody", &json!({})).await?;
    let kinds: Vec<&str> = audit.findings().into_iter().map(|(kind, _, _)| kind).collect();
    assert!(!kinds.contains(&"LaunchPermissionWithoutKeyAccess"), "{kinds:?}");
    assert_eq!(audit.rows(&[SECOND, "2 of 2: statement for everybody"]).len(), 1, "{}", audit.table);
    Ok(())
}

/// Notes of another source account, or of its other Regions, say nothing of this one's images.
#[tokio::test]
async fn another_source_accounts_notes_are_not_looked_at() -> Result<()> {
    const OTHER_SOURCE: &str = "666666666666";
    let pairs = vec![(OTHER_SOURCE.to_owned(), SECOND.to_owned())];
    let stage = Stage::start(Settings { pairs, ..Settings::default() }).await?;
    let sandbox = stage.local.sandbox.endpoint();
    let other = seed::image(&sandbox, OTHER_SOURCE, "other-image").await?;
    seed::target(&sandbox, SECOND).await?;
    let source = json!({ "source": { "accountId": OTHER_SOURCE } });
    stage.share("other", &other, SECOND, [source.clone(), json!({})]).await?;
    let audit = stage.audit("own", &json!({})).await?;
    assert_eq!(audit.report["status"], "clean", "{:#}", audit.report);
    assert_eq!(audit.report["images"], json!([]));
    let audit = stage.audit("other-account", &source).await?;
    assert_eq!(audit.report["status"], "clean", "{:#}", audit.report);
    assert_eq!(audit.share(&other.image_id, SECOND)["launchPermission"], "amiShare");
    assert_eq!(audit.report["source"], json!({ "accountId": OTHER_SOURCE, "region": REGION }));
    Ok(())
}
