//! Share, then revoke: every account is as it was before, and nothing is noted.

use std::collections::BTreeMap;

use ami_share_sandbox::{
    ec2::LaunchPermission,
    faults::{Fault, FaultKind, Matcher},
    journal::Outcome,
};
use ami_share_tests::{REGION, Result, SOURCE, TARGET, local::Settings};
use serde_json::{Value, json};

use crate::{Stage, differences, one_target};

const KEY: &str = "alias/app-volumes";

#[tokio::test]
async fn after_a_share_and_its_revoke_every_account_is_as_before() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let copy = json!({ "mode": "copyImage", "kmsKeyId": KEY });
    let at_launch = json!({ "mode": "atLaunch", "kmsKeyId": KEY });
    let keep = json!({ "keep": true });
    for (name, fields, access, key_access) in [
        ("plain", json!({}), "attach", "policy"),
        ("at-launch", json!({ "reencrypt": at_launch, "launch": keep }), "attach", "policy"),
        ("copy", json!({ "reencrypt": copy, "launch": keep }), "attach", "policy"),
        ("inline", json!({}), "inline", "policy"),
        ("grant", json!({}), "attach", "grant"),
        ("all-at-once", json!({ "reencrypt": copy, "launch": keep }), "inline", "grant"),
    ] {
        let before = stage.snapshots();
        let mut share = stage.share_request(TARGET, fields);
        share["principalAccess"] = json!(access);
        share["keyAccess"] = json!(key_access);
        stage.share(&format!("{name}-share"), &share).await?;
        assert_ne!(differences(&before, &stage.snapshots()), "", "{name}");
        assert_eq!(stage.notes()?.len(), 1, "{name}");

        let mut request = stage.request(json!([TARGET]));
        request["copies"] = json!(true);
        request["instances"] = json!(true);
        let revoked = stage.revoke(&format!("{name}-revoke"), &request).await?;
        assert!(revoked.succeeded(), "{name}: {}", revoked.summary());
        assert!(revoked.ended.entered("TakeBack"), "{name}");
        assert_eq!(revoked.report()["status"], "revoked", "{name}");
        assert_eq!(revoked.report()["revoked"], json!([TARGET]), "{name}");
        assert_eq!(differences(&before, &stage.snapshots()), "", "{name}");
        assert_eq!(stage.notes()?, BTreeMap::new(), "{name}");
        assert_eq!(stage.refusal(TARGET).await?, "AuthFailure", "{name}");
        let refused: Vec<_> = revoked.journal.iter().filter(|entry| entry.outcome == Outcome::Denied).collect();
        assert!(refused.is_empty(), "{name}: {refused:#?}");
        // Whoever looks into CloudTrail finds this execution, not the one that made what goes.
        let execution = revoked.report()["execution"].as_str().unwrap_or_default();
        for entry in revoked.journal.iter().filter(|entry| entry.action != "sts:AssumeRole") {
            assert_eq!(entry.session_name.as_deref(), Some(execution), "{name}: {}", entry.action);
        }

        // And once more: nothing to do, nothing is called that could change anything.
        let again = stage.revoke(&format!("{name}-again"), &request).await?;
        assert!(again.succeeded(), "{name}: {}", again.summary());
        assert_eq!(again.report()["status"], "nothingToRevoke", "{name}");
        assert_eq!(again.writes(), [""; 0], "{name}");
        assert!(!again.ended.entered("TakeBack"), "{name}");
        assert_eq!(differences(&before, &stage.snapshots()), "", "{name}");
    }
    Ok(())
}

/// Two executions have given the same target something of the same image: both notes go.
#[tokio::test]
async fn what_several_executions_gave_is_taken_back_at_once() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let before = stage.snapshots();
    let mut first = stage.share_request(TARGET, json!({}));
    first["targets"][0]["principals"] = json!([]);
    stage.share("first", &first).await?;
    stage.share("second", &stage.share_request(TARGET, json!({}))).await?;
    let mut third = stage.share_request(TARGET, json!({}));
    third["principalAccess"] = json!("inline");
    third["keyAccess"] = json!("grant");
    stage.share("third", &third).await?;
    assert_eq!(stage.notes()?.len(), 3);
    let revoked = stage.revoke("revoke", &stage.request(json!("all"))).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(differences(&before, &stage.snapshots()), "");
    assert_eq!(stage.notes()?, BTreeMap::new());
    Ok(())
}

/// What nobody asked to remove stays, stays noted, and goes when somebody does.
#[tokio::test]
async fn copies_and_instances_stay_until_somebody_asks() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let before = stage.snapshots();
    let fields = json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": KEY }, "launch": { "keep": true } });
    stage.share("share", &stage.share_request(TARGET, fields)).await?;
    let plain = stage.request(json!([TARGET]));
    let revoked = stage.revoke("without", &plain).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(revoked.report()["copiesOrInstancesStay"], json!([TARGET]));
    let (made, alive) = stage.with_ec2(TARGET, |ec2| {
        (ec2.images.len(), ec2.instances.values().filter(|instance| !instance.state.is_over()).count())
    });
    assert_eq!((made, alive), (1, 1));
    let note = stage.notes()?.into_values().next().ok_or("nothing is noted")?;
    assert_eq!(note["target"]["principalChanges"], json!([]));
    assert_eq!(note["target"]["sourceChanges"], Value::Null);

    let again = stage.revoke("again", &plain).await?;
    assert_eq!(again.report()["status"], "nothingToRevoke", "{}", again.summary());
    assert_eq!(again.writes(), [""; 0]);

    let mut request = plain;
    request["copies"] = json!(true);
    // The instance that stays is one of the copy that goes.
    let refused = stage.revoke("copies", &request).await?;
    assert_eq!(refused.error(), "ImageInUse", "{}", refused.summary());
    request["instances"] = json!(true);
    let revoked = stage.revoke("both", &request).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(differences(&before, &stage.snapshots()), "");
    assert_eq!(stage.notes()?, BTreeMap::new());
    Ok(())
}

/// More than one round of targets.
#[tokio::test]
async fn all_targets_lose_it_in_several_rounds() -> Result<()> {
    const TARGETS: usize = 60;
    let accounts: Vec<String> = (0..TARGETS).map(|index| format!("5{index:011}")).collect();
    let stage = Stage::start(Settings { targets: accounts.clone(), ..Settings::default() }).await?;
    let before = stage.snapshots();
    for (number, accounts) in accounts.chunks(30).enumerate() {
        let targets: Vec<Value> = accounts.iter().map(|account| json!({ "accountId": account })).collect();
        let request = json!({ "imageId": stage.image.image_id, "targets": targets });
        stage.share(&format!("share-{number}"), &request).await?;
    }
    assert_eq!(stage.notes()?.len(), TARGETS);
    let revoked = stage.revoke("all", &stage.request(json!("all"))).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(revoked.report()["revoked"], json!(accounts));
    assert_eq!(differences(&before, &stage.snapshots()), "");
    assert_eq!(stage.notes()?, BTreeMap::new());
    // Twice to look, twice to take back.
    let rounds = revoked.ended.states.iter().filter(|entered| entered.state == "ResolveRevoke").count();
    assert_eq!(rounds, 4);
    Ok(())
}

/// What somebody else gave the same target is not ours to take.
#[tokio::test]
async fn what_was_there_before_stays() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let permission = LaunchPermission::Account(TARGET.to_owned());
    stage.with_ec2(SOURCE, |ec2| {
        let image = ec2.images.get_mut(&stage.image.image_id).expect("the image was seeded");
        image.permissions.insert(permission.clone());
        for volume in &stage.image.volumes {
            let snapshot = ec2.snapshots.get_mut(&volume.snapshot_id).expect("the snapshot was seeded");
            snapshot.permissions.insert(TARGET.to_owned());
        }
    });
    let iam = aws_sdk_iam::Client::new(&ami_share_tests::clients::root_of(TARGET, &stage.local.sandbox.endpoint()));
    let policy = format!("arn:aws:iam::{TARGET}:policy/AmiShareKeyAccess");
    iam.attach_role_policy().role_name("AmiShareLauncher").policy_arn(&policy).send().await?;
    let before = stage.snapshots();
    let fields = json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": KEY } });
    stage.share("share", &stage.share_request(TARGET, fields)).await?;
    let mut request = stage.request(json!("all"));
    request["copies"] = json!(true);
    let revoked = stage.revoke("revoke", &request).await?;
    // The policy is ami-share's, whoever attached it: it stays, and is no success.
    assert_eq!(revoked.error(), "RevokeIncomplete", "{}", revoked.summary());
    for said in ["NotNoted", "aws iam detach-role-policy --role-name AmiShareLauncher"] {
        assert!(revoked.cause().contains(said), "{}", revoked.cause());
    }
    assert_eq!(differences(&before, &stage.snapshots()), "");
    Ok(())
}

/// Statements under our Sids are ours by definition, whoever is asked for and whatever is noted.
#[tokio::test]
async fn a_target_that_nothing_is_noted_of_is_taken_out_of_the_key_policies() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let before = stage.snapshots();
    let key = ami_share_core::ids::KeyArn::parse(stage.image.key_arns()[0])?;
    let kms = aws_sdk_kms::Client::new(&ami_share_tests::clients::root_of(SOURCE, &stage.local.sandbox.endpoint()));
    let text =
        kms.get_key_policy().key_id(key.as_str()).policy_name("default").send().await?.policy.unwrap_or_default();
    let policy = ami_share_core::key_policy::KeyPolicy::parse(&key, &text)?;
    let shared = policy.with([&ami_share_core::ids::AccountId::parse(TARGET)?])?.ok_or("it is shared")?.to_text()?;
    kms.put_key_policy().key_id(key.as_str()).policy_name("default").policy(shared).send().await?;
    let revoked = stage.revoke("revoke", &stage.request(json!([TARGET]))).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(revoked.report()["revoked"], json!([TARGET]));
    assert_eq!(differences(&before, &stage.snapshots()), "");
    Ok(())
}

/// The notes are read, not what the world shows a moment after the share.
#[tokio::test]
async fn a_revoke_right_after_the_share_is_not_misled_by_stale_reads() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let before = stage.snapshots();
    let stale = |action: &str| {
        let read = Matcher { session: Some("revoke-*".to_owned()), ..Matcher::action(action) };
        Fault { count: 3, ..Fault::once(read, FaultKind::Stale { writes: 9 }) }
    };
    for action in ["kms:GetKeyPolicy", "ec2:DescribeImageAttribute"] {
        stage.local.sandbox.world().faults.add(stale(action));
    }
    stage.share("share", &stage.share_request(TARGET, json!({}))).await?;
    let revoked = stage.revoke("revoke-at-once", &stage.request(json!("all"))).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(differences(&before, &stage.snapshots()), "");
    assert_eq!(stage.notes()?, BTreeMap::new());
    Ok(())
}

/// Its share went with the image; what was given besides is still there.
#[tokio::test]
async fn an_image_that_is_disabled_or_gone_is_revoked_all_the_same() -> Result<()> {
    for gone in [false, true] {
        let stage = Stage::start(one_target()).await?;
        let before = stage.snapshots();
        let fields = json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": KEY } });
        stage.share("share", &stage.share_request(TARGET, fields)).await?;
        let source = stage.ec2(SOURCE);
        if gone {
            source.deregister_image().image_id(&stage.image.image_id).send().await?;
        } else {
            source.disable_image().image_id(&stage.image.image_id).send().await?;
        }
        let mut request = stage.request(json!("all"));
        request["copies"] = json!(true);
        let revoked = stage.revoke("revoke", &request).await?;
        assert!(revoked.succeeded(), "{gone}: {}", revoked.summary());
        let after = stage.snapshots();
        for part in ["kms", "iam"] {
            assert_eq!(after[SOURCE][part], before[SOURCE][part], "{gone}: {part}");
        }
        assert_eq!(after[SOURCE]["ec2"][REGION]["snapshots"], before[SOURCE]["ec2"][REGION]["snapshots"], "{gone}");
        assert_eq!(after[TARGET], before[TARGET], "{gone}");
        assert_eq!(stage.notes()?, BTreeMap::new(), "{gone}");
        assert_eq!(revoked.ended.entered("CreateUsageReport"), !gone);
        let again = stage.revoke("again", &stage.request(json!([TARGET]))).await?;
        if gone {
            // It may be another image that was meant.
            assert_eq!(again.error(), "ImageNotFound", "{}", again.summary());
        } else {
            assert_eq!(again.report()["status"], "nothingToRevoke", "{}", again.summary());
        }
        assert_eq!(again.writes(), [""; 0], "{gone}");
    }
    Ok(())
}

/// Also from an account that is not on the allow-list any more; and nothing from whom nothing was given.
#[tokio::test]
async fn a_request_is_refused_with_every_problem_before_anything_is_called() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let request = json!({ "imageId": "ami-1", "targets": ["22", SOURCE], "copies": 1, "onFailure": "keep" });
    let refused = stage.revoke("wrong", &request).await?;
    assert_eq!(refused.error(), "InvalidRequest", "{}", refused.summary());
    for field in ["imageId", "targets[0]", "copies", "onFailure"] {
        assert!(refused.cause().contains(field), "{field}: {}", refused.cause());
    }
    assert!(refused.cause().contains("Nothing was changed"), "{}", refused.cause());
    assert!(refused.journal.is_empty(), "{:?}", refused.journal);
    Ok(())
}
