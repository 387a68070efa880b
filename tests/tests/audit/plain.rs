//! What is as it should be.

use ami_share_sandbox::world::Organization;
use ami_share_tests::{REGION, TARGET};
use aws_sdk_ec2::types::ImageBlockPublicAccessEnabledState;

use super::*;

#[tokio::test]
async fn nothing_that_is_shared_is_clean() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let audit = stage.audit("nothing", &json!({})).await?;
    assert_eq!(audit.report["status"], "clean", "{:#}", audit.report);
    assert_eq!((&audit.report["images"], &audit.report["findings"]), (&json!([]), &json!([])));
    assert_eq!(
        audit.report["summary"],
        json!({ "images": 1, "sharedImages": 0, "shares": 0, "keys": 2, "untaggedKeys": 0, "findings": {} })
    );
    assert!(audit.table.contains("found nothing wrong"), "{}", audit.table);
    assert!(!audit.table.contains("SHARED WITH") && !audit.table.contains("FINDINGS"), "{}", audit.table);
    Ok(())
}

#[tokio::test]
async fn a_share_is_shown_with_all_that_ami_share_gave() -> Result<()> {
    let targets = vec![TARGET.to_owned(), SECOND.to_owned()];
    let stage = Stage::start(Settings { targets, ..Settings::default() }).await?;
    let image = &stage.image;
    let copy = json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" } });
    stage.share("copied", image, TARGET, [json!({}), copy]).await?;
    let principals = json!({ "principals": [format!("arn:aws:iam::{SECOND}:role/app-deployer")] });
    stage.share("by-grant", image, SECOND, [json!({ "keyAccess": "grant" }), principals]).await?;

    for (name, request) in [("all", json!({})), ("one", json!({ "imageId": image.image_id }))] {
        let audit = stage.audit(name, &request).await?;
        assert_eq!(audit.report["status"], "clean", "{:#}", audit.report);
        let ways = |way: &str| -> Vec<Value> {
            let mut keys = image.key_arns();
            keys.sort_unstable();
            keys.into_iter().map(|key| json!({ "keyArn": key, "ways": [way] })).collect()
        };
        let copied = audit.share(&image.image_id, TARGET);
        assert_eq!(copied["launchPermission"], "amiShare");
        assert_eq!(copied["keyAccess"], json!(ways("amiShareStatements")));
        assert_eq!(copied["snapshotPermissions"], json!({ "amiShare": 3 }));
        assert_eq!(copied["principals"], json!(["AmiShareLauncher"]));
        assert!(copied["copiedBy"][0].as_str().is_some_and(|execution| execution.starts_with("copied-")), "{copied}");
        let granted = audit.share(&image.image_id, SECOND);
        assert_eq!(granted["keyAccess"], json!(ways("amiShareGrant")));
        assert_eq!(granted["principals"], json!(["AmiShareLauncher", "app-deployer"]));
        assert_eq!((&granted["snapshotPermissions"], &granted["copiedBy"]), (&Value::Null, &Value::Null));

        let rows = audit.rows(&[&image.image_id]);
        assert_eq!(rows.len(), 2, "{}", audit.table);
        let heading = audit.rows(&["SHARED WITH"]);
        for (row, cells) in rows.iter().zip([
            [TARGET, "ami-share", "2 of 2: statements", "3 of 3: ami-share", "AmiShareLauncher", "1"],
            [SECOND, "ami-share", "2 of 2: grant", "-", "AmiShareLauncher, app-deployer", "-"],
        ]) {
            for (column, cell) in
                ["SHARED WITH", "LAUNCH", "KEYS", "SNAPSHOTS", "PRINCIPALS", "COPIES"].iter().zip(cells)
            {
                let place = heading[0].find(column).ok_or("no column")?;
                assert!(row[place..].starts_with(cell), "{column} of {row}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn access_that_another_image_needs_is_as_it_should_be() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let other = stage.another_image("other-image").await?;
    stage.share_plainly("other", &other, TARGET).await?;
    // The first image is under the same keys, and shared with nobody.
    for (name, request) in [("all", json!({})), ("one", json!({ "imageId": stage.image.image_id }))] {
        let audit = stage.audit(name, &request).await?;
        assert_eq!(audit.report["status"], "clean", "{:#}", audit.report);
        assert_eq!(audit.share(&stage.image.image_id, TARGET), &Value::Null);
    }
    stage.keep_from_launching(&other.image_id, TARGET).await?;
    for (name, request) in [("all-left", json!({})), ("one-left", json!({ "imageId": stage.image.image_id }))] {
        let audit = stage.audit(name, &request).await?;
        let mut keys = stage.image.key_arns();
        keys.sort_unstable();
        let left = keys.into_iter().map(|key| ("KeyAccessWithoutLaunchPermission", key, vec![TARGET]));
        assert_eq!(audit.findings(), left.collect::<Vec<_>>(), "{:#}", audit.report);
    }
    Ok(())
}

#[tokio::test]
async fn a_request_is_refused_with_every_problem_and_an_image_that_is_nowhere_is_not_found() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let audit = stage.try_audit("wrong", &json!({ "imageID": 1, "source": { "accountId": "1" } })).await?;
    assert_eq!(audit.ended.status, ExecutionStatus::Failed);
    assert_eq!(audit.ended.error.as_deref(), Some("InvalidRequest"));
    for part in ["InvalidRequest", "imageID", "source.accountId"] {
        assert!(audit.table.contains(part), "{}", audit.table);
    }
    assert_eq!(audit.journal.len(), 0, "{:#?}", audit.journal);
    let audit = stage.try_audit("nowhere", &json!({ "imageId": "ami-0123abcd" })).await?;
    assert_eq!(audit.ended.error.as_deref(), Some("ImageNotFound"), "{:?}", audit.ended.cause);
    let audit = stage.try_audit("elsewhere", &json!({ "source": { "region": "us-east-1" } })).await?;
    assert_eq!(audit.report["summary"]["images"], 0, "{:?}", audit.ended.cause);
    Ok(())
}

/// Whom the hub allows by organization is asked of Organizations, as it is when something is given.
#[tokio::test]
async fn accounts_are_looked_up_in_the_organization_that_is_allowed() -> Result<()> {
    let organization = |state: Option<&str>| Organization {
        organization_arn: format!("arn:aws:organizations::{HUB}:organization/o-a1b2c3d4e5"),
        state: state.map(str::to_owned),
        ..Organization::default()
    };
    let allowed = ami_share_tests::local::Organization {
        organizations: vec!["o-a1b2c3d4e5".to_owned()],
        ..ami_share_tests::local::Organization::default()
    };
    let stage = Stage::start(Settings { organization: allowed, ..Settings::default() }).await?;
    let image = &stage.image.image_id;
    let suspended = "555555555555";
    for account in [SECOND, suspended] {
        stage.let_launch(image, to_account(account)).await?;
    }
    let not_allowed = |audit: &Audit| -> Vec<Value> {
        let findings = audit.report["findings"].as_array().into_iter().flatten();
        findings.filter(|finding| finding["kind"] == "NotOnAllowList").cloned().collect()
    };

    // The hub is in no organization, so it cannot ask.
    let audit = stage.audit("nobody-to-ask", &json!({})).await?;
    assert_eq!(not_allowed(&audit), [Value::Null; 0]);
    let unknown = audit.report["findings"].to_string();
    assert!(unknown.contains("AllowListNotChecked"), "{unknown}");
    assert!(unknown.contains("not listed may be targets") && unknown.contains("OrganizationsRoleArn"), "{unknown}");

    for (account, state) in [(HUB, None), (SECOND, None), (suspended, Some("SUSPENDED"))] {
        stage.local.sandbox.world().set_organization(account, Some(organization(state)));
    }
    let audit = stage.audit("asked", &json!({})).await?;
    let found = not_allowed(&audit);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!((&found[0]["accounts"], &found[0]["imageId"]), (&json!([suspended]), &json!(image)));
    assert!(found[0]["message"].as_str().is_some_and(|text| text.contains("its state is SUSPENDED")), "{}", found[0]);
    assert_eq!(stage.audit("one", &json!({ "imageId": image })).await?.findings(), audit.findings());
    Ok(())
}

/// EC2's and EBS's settings of the Region; nothing of it is a finding.
#[tokio::test]
async fn whether_anything_may_be_made_public_is_told() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let audit = stage.audit("open", &json!({})).await?;
    let unblocked = json!({ "state": "unblocked", "managedBy": "account" });
    assert_eq!((&audit.report["publicImages"], &audit.report["publicSnapshots"]), (&unblocked, &unblocked));
    let block = stage.ec2().enable_image_block_public_access();
    block.image_block_public_access_state(ImageBlockPublicAccessEnabledState::BlockNewSharing).send().await?;
    let audit = stage.audit("images", &json!({})).await?;
    assert_eq!(audit.report["publicImages"]["state"], "block-new-sharing");
    let said = "of images block-new-sharing (managed by account), of snapshots unblocked (managed by account)";
    assert!(audit.table.contains(said), "{}", audit.table);
    assert_eq!(audit.report["status"], "clean");
    Ok(())
}

#[tokio::test]
async fn an_image_that_is_not_wholly_encrypted_says_so_in_words() -> Result<()> {
    let stage = Stage::start(Settings { allow_unencrypted: true, ..Settings::default() }).await?;
    let volume = &stage.image.volumes[0];
    {
        let mut world = stage.local.sandbox.world();
        let ec2 = world.account_mut(SOURCE).ec2.get_mut(REGION).ok_or("no EC2")?;
        ec2.snapshots.get_mut(&volume.snapshot_id).ok_or("no snapshot")?.key = None;
    }
    stage.share_plainly("share", &stage.image, TARGET).await?;
    let audit = stage.audit("audit", &json!({})).await?;
    let said = audit.report["images"][0]["unencrypted"].as_str().unwrap_or_default();
    assert!(said.contains(volume.device) && said.contains("is not encrypted"), "{:#}", audit.report);
    let row = audit.rows(&[&stage.image.image_id, TARGET, "1 of 1: statements, and volumes without a key"]);
    assert_eq!(row.len(), 1, "{}", audit.table);
    assert_eq!(audit.report["status"], "clean");
    Ok(())
}
