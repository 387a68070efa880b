//! What cannot be taken back is named, does not keep the rest, and goes when the execution is started again.

use std::collections::BTreeMap;

use ami_share_machine::steps::undos;
use ami_share_tests::{Result, SOURCE, TARGET, clients::root_of, deploy, local::Settings};
use serde_json::json;

use crate::{Stage, differences, one_target};

const OTHER: &str = "444444444444";

#[tokio::test]
async fn an_undo_that_fails_is_named_and_the_next_execution_takes_the_rest() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let failing = deploy::deploy_failing_function(&stage.local.engine).await?;
    let before = stage.snapshots();
    let fields = json!({
        "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" }, "launch": { "keep": true }
    });
    for undo in undos() {
        let mut share = stage.share_request(TARGET, fields.clone());
        if undo == "UndoGrantKeys" {
            share["keyAccess"] = json!("grant");
        }
        stage.share(&format!("{undo}-share"), &share).await?;
        let machine = &stage.local.hub.revoke_share;
        let function = format!("{undo}Function");
        let (engine, hub) = (&stage.local.engine, &stage.local.hub);
        let (broken, _) = hub.taking_back_with(engine, machine, undo, &function, &failing).await?;
        let mut request = stage.request(json!([TARGET]));
        request["copies"] = json!(true);
        request["instances"] = json!(true);
        let run = stage.run(&broken, &format!("{undo}-fails"), &request).await?;
        assert_eq!(run.error(), "RevokeIncomplete", "{undo}: {}", run.summary());
        let place = match undo {
            "UndoLaunchInstance" | "UndoCopyImage" | "UndoGrantPrincipals" => format!(" in account {TARGET}"),
            _ => String::new(),
        };
        let said = format!("{undo}{place} failed with InjectedFailure: This step was made to fail");
        assert!(
            run.cause().contains(&said) && run.cause().contains("start the same request again"),
            "{undo}: {}",
            run.cause()
        );
        assert_ne!(differences(&before, &stage.snapshots()), "", "{undo}");
        assert_eq!(stage.notes()?.len(), 1, "{undo}");

        let again = stage.revoke(&format!("{undo}-again"), &request).await?;
        assert!(again.succeeded(), "{undo}: {}", again.summary());
        assert_eq!(differences(&before, &stage.snapshots()), "", "{undo}");
        assert_eq!(stage.notes()?, BTreeMap::new(), "{undo}");
    }
    Ok(())
}

/// An account that was closed, or that has removed the roles, keeps nobody else's share; and what the source
/// account had given it is taken back.
#[tokio::test]
async fn a_target_without_its_roles_loses_what_the_source_gave_it_and_is_reported() -> Result<()> {
    let targets = vec![TARGET.to_owned(), OTHER.to_owned()];
    let stage = Stage::start(Settings { targets, ..Settings::default() }).await?;
    let before = stage.snapshots();
    for account in [TARGET, OTHER] {
        stage.share(&format!("share-{account}"), &stage.share_request(account, json!({}))).await?;
    }
    let iam = aws_sdk_iam::Client::new(&root_of(TARGET, &stage.local.sandbox.endpoint()));
    let trust = stage.local.sandbox.world().export_iam(TARGET);
    for role in ["AmiShareTarget", "AmiShareLauncher"] {
        let nobody = json!({ "Version": "2012-10-17", "Statement": [{
            "Effect": "Deny", "Principal": { "AWS": "*" }, "Action": "sts:AssumeRole",
        }]});
        iam.update_assume_role_policy().role_name(role).policy_document(nobody.to_string()).send().await?;
    }
    stage.with_ec2(TARGET, |ec2| ec2.instances.clear());
    let all = stage.request(json!("all"));
    let run = stage.revoke("gone", &all).await?;
    assert_eq!(run.error(), "RevokeIncomplete", "{}", run.summary());
    let said = format!("UndoGrantPrincipals in account {TARGET} failed with AccessDenied");
    assert!(run.cause().contains(&said) && !run.cause().contains(OTHER), "{}", run.cause());
    let after = stage.snapshots();
    for account in before.keys().filter(|account| *account != TARGET) {
        assert_eq!(after[account], before[account], "{account}");
    }
    let noted: Vec<String> = stage.notes()?.into_keys().map(|(target, _)| target).collect();
    assert_eq!(noted, [format!("target#{TARGET}")]);

    // Its owner puts the roles back: then all of it goes.
    stage.local.sandbox.world().import_iam(TARGET, &trust)?;
    let again = stage.revoke("back", &all).await?;
    assert!(again.succeeded(), "{}", again.summary());
    assert_eq!(again.report()["revoked"], json!([TARGET]));
    assert_eq!(stage.notes()?, BTreeMap::new());
    assert_eq!(differences(&before, &stage.snapshots()), "");
    Ok(())
}

/// The source's stack was deleted and deployed again: its role has the old name, and is another one.
#[tokio::test]
async fn a_grant_of_a_role_that_was_made_again_is_named_with_what_ends_it() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let mut share = stage.share_request(TARGET, json!({}));
    share["keyAccess"] = json!("grant");
    stage.share("share", &share).await?;
    {
        let mut world = stage.local.sandbox.world();
        let role = world.account_mut(SOURCE).iam.roles.get_mut("AmiShareSource").ok_or("no source role")?;
        role.entity.id = "AROAMADEAGAIN00000000".to_owned();
    }
    let request = stage.request(json!([TARGET]));
    let run = stage.revoke("made-again", &request).await?;
    assert_eq!(run.error(), "RevokeIncomplete", "{}", run.summary());
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &stage.local.sandbox.endpoint()));
    let mut commands = Vec::new();
    for key in stage.image.key_arns() {
        for grant in kms.list_grants().key_id(key).send().await?.grants.unwrap_or_default() {
            assert!(grant.retiring_principal().is_some_and(|principal| principal.starts_with("AROA")), "{grant:?}");
            let (id, grant) = (key.rsplit('/').next().unwrap_or_default(), grant.grant_id().unwrap_or_default());
            commands.push(format!("aws kms revoke-grant --region eu-west-1 --key-id {id} --grant-id {grant}"));
        }
    }
    // What is left is cut, after the first of them.
    assert!(run.cause().contains("UndoGrantKeys failed with AccessDenied"), "{}", run.cause());
    assert!(commands.iter().any(|command| run.cause().contains(command)), "{commands:?}: {}", run.cause());

    for key in stage.image.key_arns() {
        for grant in kms.list_grants().key_id(key).send().await?.grants.unwrap_or_default() {
            kms.revoke_grant().key_id(key).set_grant_id(grant.grant_id).send().await?;
        }
    }
    let again = stage.revoke("again", &request).await?;
    assert!(again.succeeded(), "{}", again.summary());
    assert_eq!(stage.notes()?, BTreeMap::new());
    Ok(())
}
