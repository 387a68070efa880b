//! Each kind of thing that may be wrong, made by hand.

use ami_share_core::key_policy::{GRANT_SID, USE_SID};
use ami_share_tests::TARGET;

use super::*;

fn statement<'s>(statements: &'s mut [Value], sid: &str) -> &'s mut Value {
    statements.iter_mut().find(|statement| statement["Sid"] == sid).expect("the key is shared")
}

/// The one target of a policy's statement under `sid` is another one from now on.
async fn instead(stage: &Stage, key: &str, sid: &str, account: &str) -> Result<()> {
    let root = json!(format!("arn:aws:iam::{account}:root"));
    stage.change_policy(key, |statements| statement(statements, sid)["Principal"]["AWS"] = root).await
}

/// A stage with the image shared, and its keys in the order in which a report has them.
async fn shared() -> Result<(Stage, [String; 2])> {
    let stage = Stage::start(Settings::default()).await?;
    stage.share_plainly("share", &stage.image, TARGET).await?;
    let mut keys: Vec<String> = stage.image.key_arns().into_iter().map(str::to_owned).collect();
    keys.sort_unstable();
    let keys = keys.try_into().map_err(|_| "the image is not under two keys")?;
    Ok((stage, keys))
}

#[tokio::test]
async fn launch_permission_without_key_access() -> Result<()> {
    let (stage, [key, _]) = shared().await?;
    let image = &stage.image.image_id;
    assert_eq!(stage.audit("clean", &json!({})).await?.findings(), []);
    assert_eq!(stage.counted()?, [0; 0], "no finding, no alarm");
    stage
        .change_policy(&key, |statements| {
            statements.retain(|statement| !statement["Sid"].as_str().is_some_and(|sid| sid.starts_with("AmiShare")));
        })
        .await?;
    let audit = stage.audit("audit", &json!({})).await?;
    assert_eq!(audit.findings(), [("LaunchPermissionWithoutKeyAccess", key.as_str(), vec![TARGET])]);
    let finding = &audit.report["findings"][0];
    assert_eq!(finding["imageId"], json!(image));
    let message = finding["message"].as_str().unwrap_or_default();
    assert!(message.contains(TARGET) && message.contains(&key) && message.contains(image), "{message}");
    assert_eq!(audit.rows(&["LaunchPermissionWithoutKeyAccess:", message]).len(), 1, "{}", audit.table);
    assert_eq!(audit.rows(&[image, TARGET, "1 of 2: statements"]).len(), 1, "{}", audit.table);
    assert_eq!(audit.report["summary"]["findings"], json!({ "LaunchPermissionWithoutKeyAccess": 1 }));
    assert_eq!(stage.counted()?, [1], "the alarm counts it");
    Ok(())
}

#[tokio::test]
async fn only_one_of_our_two_statements() -> Result<()> {
    for (name, sid) in [("use", USE_SID), ("grant", GRANT_SID)] {
        let (stage, [_, key]) = shared().await?;
        stage.change_policy(&key, |statements| statements.retain(|statement| statement["Sid"] != sid)).await?;
        let audit = stage.audit(name, &json!({ "imageId": stage.image.image_id })).await?;
        let expected = [
            ("LaunchPermissionWithoutKeyAccess", key.as_str(), vec![TARGET]),
            ("HalfKeyStatements", key.as_str(), vec![TARGET]),
        ];
        assert_eq!(audit.findings(), expected, "without {sid}");
        assert_eq!(audit.rows(&[TARGET, "1 of 2: statements, one statement"]).len(), 1, "{}", audit.table);
    }
    Ok(())
}

#[tokio::test]
async fn key_access_without_launch_permission_or_without_any_image() -> Result<()> {
    let (stage, keys) = shared().await?;
    let image = &stage.image.image_id;
    stage.keep_from_launching(image, TARGET).await?;
    let left = |kind: &'static str| keys.iter().map(|key| (kind, key.as_str(), vec![TARGET])).collect::<Vec<_>>();
    let audit = stage.audit("no-permission", &json!({})).await?;
    assert_eq!(audit.findings(), left("KeyAccessWithoutLaunchPermission"));
    // What is noted of the target is still shown.
    assert_eq!(audit.share(image, TARGET)["launchPermission"], Value::Null);
    assert_eq!(audit.rows(&[image, TARGET, " -  "]).len(), 1, "{}", audit.table);

    stage.ec2().deregister_image().image_id(image).send().await?;
    let audit = stage.audit("no-image", &json!({})).await?;
    let mut expected = left("KeyAccessWithoutImage");
    expected.push(("NoteWithoutImage", image.as_str(), vec![TARGET]));
    assert_eq!(audit.findings(), expected);
    let note = audit.report["findings"][2]["message"].as_str().unwrap_or_default();
    assert!(note.contains("1 principal(s)"), "{note}");

    let audit = stage.audit("one", &json!({ "imageId": image })).await?;
    assert_eq!(audit.findings(), [("NoteWithoutImage", image.as_str(), vec![TARGET])]);
    Ok(())
}

#[tokio::test]
async fn a_grant_that_is_left() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    stage.share("grant", &stage.image, TARGET, [json!({ "keyAccess": "grant" }), json!({})]).await?;
    stage.keep_from_launching(&stage.image.image_id, TARGET).await?;
    let audit = stage.audit("audit", &json!({})).await?;
    let mut keys = stage.image.key_arns();
    keys.sort_unstable();
    let left = keys.into_iter().map(|key| ("KeyAccessWithoutLaunchPermission", key, vec![TARGET]));
    assert_eq!(audit.findings(), left.collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_grant_that_the_role_may_not_retire() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    stage.share("grant", &stage.image, TARGET, [json!({ "keyAccess": "grant" }), json!({})]).await?;
    {
        let mut world = stage.local.sandbox.world();
        let role = world.account_mut(SOURCE).iam.roles.get_mut("AmiShareSource").ok_or("no source role")?;
        role.entity.id = "AROAMADEAGAIN00000000".to_owned();
    }
    let audit = stage.audit("audit", &json!({})).await?;
    let mut keys = stage.image.key_arns();
    keys.sort_unstable();
    let found = keys.into_iter().map(|key| ("GrantNotRetirable", key, vec![TARGET]));
    assert_eq!(audit.findings(), found.collect::<Vec<_>>());
    assert!(audit.report["findings"].to_string().contains("aws kms revoke-grant --region eu-west-1"));
    Ok(())
}

/// A target that has a grant makes one of its own from it, which outlives ours.
#[tokio::test]
async fn a_grant_that_a_target_passed_on() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    stage.share("grant", &stage.image, TARGET, [json!({ "keyAccess": "grant" }), json!({})]).await?;
    let key = stage.image.key_arns()[0].to_owned();
    let kms = aws_sdk_kms::Client::new(&root_of(TARGET, &stage.local.sandbox.endpoint()));
    let stranger = format!("arn:aws:iam::{SECOND}:root");
    let passed_on = kms.create_grant().key_id(&key).grantee_principal(&stranger).operations("Decrypt".into());
    let id = passed_on.send().await?.grant_id.ok_or("no grant")?;
    let audit = stage.audit("audit", &json!({})).await?;
    assert_eq!(audit.findings(), [("GrantPassedOn", key.as_str(), vec![TARGET])]);
    let message = audit.report["findings"][0]["message"].as_str().unwrap_or_default();
    for said in [TARGET, &stranger, &id, "aws kms revoke-grant --region eu-west-1"] {
        assert!(message.contains(said), "{message}");
    }
    assert_eq!(audit.report["summary"]["grantsOfOthers"], json!({ "other": 1 }));
    Ok(())
}

/// It says who has access, though the first policy does not.
#[tokio::test]
async fn the_second_policy_of_a_key_that_is_shared_through_ram() -> Result<()> {
    let (stage, [key, other]) = shared().await?;
    let id = |arn: &str| arn.rsplit('/').next().unwrap_or_default().to_owned();
    let with_target = json!({ "Statement": [{
        "Effect": "Allow", "Principal": { "AWS": TARGET }, "Action": "kms:Decrypt", "Resource": "*",
    }] });
    {
        let mut world = stage.local.sandbox.world();
        let kms = world.account_mut(SOURCE).kms.get_mut(REGION).ok_or("no keys")?;
        kms.keys.get_mut(&id(&key)).ok_or("no key")?.ram_policy = Some(with_target.to_string());
        kms.keys.get_mut(&id(&other)).ok_or("no key")?.ram_policy = Some("{".to_owned());
    }
    stage
        .change_policy(&key, |statements| {
            statements.retain(|statement| !statement["Sid"].as_str().is_some_and(|sid| sid.starts_with("AmiShare")));
        })
        .await?;
    let audit = stage.audit("audit", &json!({})).await?;
    assert_eq!(audit.findings(), []);
    assert_eq!(audit.rows(&[TARGET, "2 of 2: statements, others' statement"]).len(), 1, "{}", audit.table);
    let not_looked_at = audit.report["notLookedAt"].to_string();
    assert!(not_looked_at.contains(&format!("the second policy of key {other}")), "{not_looked_at}");
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_disabled() -> Result<()> {
    let (stage, [key, _]) = shared().await?;
    stage.kms().disable_key().key_id(&key).send().await?;
    let audit = stage.audit("audit", &json!({})).await?;
    assert_eq!(audit.findings(), [("KeyNotUsable", key.as_str(), vec![])]);
    assert!(audit.report["findings"].to_string().contains("kms:EnableKey"), "{:#}", audit.report);
    Ok(())
}

#[tokio::test]
async fn snapshot_permission_without_launch_permission() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let copy = json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" } });
    stage.share("copy", &stage.image, TARGET, [json!({}), copy]).await?;
    let (image, snapshot) = (&stage.image.image_id, &stage.image.volumes[1].snapshot_id);
    stage.keep_from_launching(image, TARGET).await?;
    // Somebody has taken the others back.
    for volume in [&stage.image.volumes[0], &stage.image.volumes[2]] {
        let request = stage.ec2().modify_snapshot_attribute().snapshot_id(&volume.snapshot_id);
        request.operation_type(aws_sdk_ec2::types::OperationType::Remove).user_ids(TARGET).send().await?;
    }
    let audit = stage.audit("audit", &json!({})).await?;
    let of_snapshot = ("SnapshotPermissionWithoutLaunchPermission", snapshot.as_str(), vec![TARGET]);
    let left = |kind: &str| audit.findings().iter().filter(|(found, _, _)| *found == kind).count();
    assert_eq!(audit.findings()[0], of_snapshot);
    assert_eq!((left("SnapshotPermissionWithoutLaunchPermission"), audit.findings().len()), (1, 3));
    assert_eq!(audit.share(image, TARGET)["snapshotPermissions"], json!({ "amiShare": 1 }));
    assert_eq!(audit.rows(&[image, TARGET, "1 of 3: ami-share"]).len(), 1, "{}", audit.table);
    Ok(())
}

#[tokio::test]
async fn whoever_is_not_on_the_allow_list() -> Result<()> {
    let (stage, [first, second]) = shared().await?;
    let image = &stage.image.image_id;
    let organization = "arn:aws:organizations::999999999999:organization/o-a1b2c3d4e5";
    stage.let_launch(image, to_account(SECOND)).await?;
    let to_organization = LaunchPermission::builder().organization_arn(organization).build();
    stage.let_launch(image, to_organization).await?;
    let not_allowed = |audit: &Audit| -> Vec<(String, Vec<String>)> {
        let found = audit.findings().into_iter().filter(|(kind, _, _)| *kind == "NotOnAllowList");
        found.map(|(_, about, who)| (about.to_owned(), who.into_iter().map(str::to_owned).collect())).collect()
    };
    let found = |about: &str, who: &str| (about.to_owned(), vec![who.to_owned()]);
    let audit = stage.audit("launch", &json!({})).await?;
    assert_eq!(not_allowed(&audit), [found(image, SECOND), found(image, organization)]);
    assert_eq!(audit.rows(&[image, "o-a1b2c3d4e5", "others", "?"]).len(), 1, "{}", audit.table);
    // Without launch permission, but in our statements, or half in them.
    stage.keep_from_launching(image, SECOND).await?;
    for sid in [USE_SID, GRANT_SID] {
        instead(&stage, &first, sid, SECOND).await?;
    }
    instead(&stage, &second, USE_SID, SECOND).await?;
    let audit = stage.audit("keys", &json!({})).await?;
    let expected = [found(image, organization), found(&first, SECOND), found(&second, SECOND)];
    assert_eq!(not_allowed(&audit), expected, "{:#}", audit.report);
    // Members of the organization may launch it: nobody can say that the key access is left over.
    assert!(audit.findings().iter().all(|(kind, _, _)| *kind != "KeyAccessWithoutLaunchPermission"));
    assert!(audit.report["notLookedAt"].to_string().contains("shared with an organization"), "{:#}", audit.report);
    Ok(())
}

/// A key whose policy shuts the role out is a finding, and the rest is looked at all the same.
#[tokio::test]
async fn a_key_that_cannot_be_read() -> Result<()> {
    let (stage, [first, second]) = shared().await?;
    let root = format!("arn:aws:iam::{SOURCE}:root");
    stage
        .change_policy(&first, |statements| {
            for statement in statements.iter_mut().filter(|statement| statement["Principal"]["AWS"] == root.as_str()) {
                statement["Condition"] =
                    json!({ "ArnNotLike": { "aws:PrincipalArn": "arn:aws:iam::*:role/AmiShare*" } });
            }
        })
        .await?;
    stage.change_policy(&second, |statements| statement(statements, USE_SID)["Action"] = json!("kms:*")).await?;
    let audit = stage.audit("audit", &json!({})).await?;
    let found = [
        ("KeyNotRead", first.as_str(), vec![]),
        ("HalfKeyStatements", second.as_str(), vec![TARGET]),
        ("KeyStatementNotOurs", second.as_str(), vec![TARGET]),
    ];
    assert_eq!(audit.findings(), found);
    for (index, part) in [(0, "kms:GetKeyPolicy"), (2, "in statement AmiShareUse, its Action is \"kms:*\"")] {
        let message = audit.report["findings"][index]["message"].as_str().unwrap_or_default();
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(audit.rows(&[TARGET, "2 of 2: one statement, others' statement, not read"]).len(), 1, "{}", audit.table);
    Ok(())
}

/// Which is as it should be where the source's owner wants no tags.
#[tokio::test]
async fn keys_without_the_tag_are_listed_and_are_no_finding() -> Result<()> {
    let (stage, [key, other]) = shared().await?;
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &stage.local.sandbox.endpoint()));
    kms.untag_resource().key_id(&key).tag_keys("ami-share:shareable").send().await?;
    let audit = stage.audit("audit", &json!({})).await?;
    assert_eq!(audit.report["status"], "clean", "{:#}", audit.report);
    assert_eq!(audit.report["untaggedKeys"], json!([key]));
    let listed = format!("WITHOUT THE TAG ami-share:shareable=true, WHICH OnlyTaggedKeys ASKS FOR\n  {key}\n");
    assert!(audit.table.contains(&listed), "{}", audit.table);
    assert!(!audit.table.contains(&other), "{}", audit.table);
    Ok(())
}
