//! What cannot be taken back is named, does not keep the rest, and goes when the execution is started again.

use std::collections::BTreeMap;

use ami_share_machine::steps::undos;
use ami_share_tests::{Result, TARGET, clients::root_of, deploy, local::Settings};
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
