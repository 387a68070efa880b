//! The same request twice: the second execution finds everything in place.

use ami_share_sandbox::faults::{Fault, FaultKind, Matcher};
use ami_share_tests::{Result, TARGET, local::Settings, seed};
use serde_json::{Value, json};

use crate::{Run, Stage, ec2, modes};

const A_PROOF: [&str; 2] = ["ec2:RunInstances", "ec2:TerminateInstances"];

#[tokio::test]
async fn a_request_that_was_granted_before_changes_nothing() -> Result<()> {
    let mut stage = Stage::start(Settings { inline_policies: true, ..Settings::default() }).await?;
    let user = modes::user(&stage, "app-user").await?;
    stage.keep();
    let key = json!("alias/app-volumes");
    for (name, reencrypt, access) in [
        ("plain", Value::Null, "attach"),
        ("at-launch", json!({ "mode": "atLaunch", "kmsKeyId": key }), "attach"),
        ("copy-image", json!({ "mode": "copyImage", "kmsKeyId": key }), "attach"),
        ("inline", Value::Null, "inline"),
    ] {
        stage.reset();
        let mut request =
            stage.request(json!({ "principals": [stage.target().principal, user], "reencrypt": reencrypt }));
        request["principalAccess"] = json!(access);
        let first = stage.run(&format!("{name}-first"), &request).await?;
        assert!(first.succeeded(), "{name}: {}", first.summary());
        assert_eq!(first.report()["status"], "shared", "{name}");
        assert_eq!(first.report()["alreadyShared"], json!([]), "{name}");

        let second = stage.run(&format!("{name}-second"), &request).await?;
        assert!(second.succeeded(), "{name}: {}", second.summary());
        assert_eq!(second.writes(), [""; 0], "{name}");
        assert_eq!(second.differences(), "", "{name}");
        assert_eq!(second.report()["status"], "alreadyShared", "{name}");
        assert_eq!(second.report()["alreadyShared"], json!([TARGET]), "{name}");
        let (proved, standing) = (&first.report()["targets"][0], &second.report()["targets"][0]);
        assert_eq!(standing["status"], "alreadyShared", "{name}");
        for field in ["accountId", "imageId", "kmsKeyId", "instanceId", "instanceStays", "volumes"] {
            assert_eq!(standing[field], proved[field], "{name}: {field}");
        }
        assert_eq!(standing["kmsKeyId"].is_string(), !reencrypt.is_null(), "{name}");
        assert_eq!(standing["provedBy"], first.report()["execution"], "{name}");
        assert!(standing["provedAt"].is_string(), "{name}: {standing:#}");
        let states: Vec<&str> = second.ended.states.iter().map(|entered| entered.state.as_str()).collect();
        let expected = ["ResolveImage", "ChoosePlan", "CheckWork", "Report", "Notify", "CheckOutcome", "FinishShare"];
        assert_eq!(states, expected, "{name}");

        // A proof that is asked for is made, of what is there already.
        request["targets"][0]["launch"] = json!({ "prove": "always" });
        let proof = stage.run(&format!("{name}-proof"), &request).await?;
        assert!(proof.succeeded(), "{name}: {}", proof.summary());
        assert_eq!(proof.writes(), ["ec2:RunInstances", "ec2:TerminateInstances"], "{name}");
        assert_eq!(proof.differences(), "", "{name}");
        let target = &proof.report()["targets"][0];
        assert_eq!(target["status"], "proved", "{name}");
        assert_eq!(target["imageId"], first.report()["targets"][0]["imageId"], "{name}");
        assert_ne!(target["instanceId"], first.report()["targets"][0]["instanceId"], "{name}");
        let nothing = json!({ "keys": [], "snapshots": [], "launchPermissions": [], "principals": [] });
        assert_eq!(proof.report()["changed"], nothing, "{name}");
    }
    Ok(())
}

/// How its one target stands, and what was written for it.
fn outcome(run: &Run) -> (&str, Vec<&str>) {
    assert!(run.succeeded(), "{}", run.summary());
    (run.report()["targets"][0]["status"].as_str().unwrap_or_default(), run.writes())
}

#[tokio::test]
async fn a_mode_or_key_that_was_not_proved_before_is_proved() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    seed::usable_key(&stage.local.sandbox.endpoint(), TARGET, "alias/other").await?;
    let under = |key: &str| stage.request(json!({ "reencrypt": { "mode": "atLaunch", "kmsKeyId": key } }));
    let without_proof = stage.run("never", &stage.request(json!({ "launch": { "prove": "never" } }))).await?;
    assert_eq!(outcome(&without_proof).0, "shared");
    let again = stage.run("never-again", &stage.request(json!({ "launch": { "prove": "never" } }))).await?;
    assert_eq!(outcome(&again), ("alreadyShared", vec![]));
    assert!(!again.report().to_string().contains("proved"), "{}", again.report());
    for (name, request) in [
        ("plain", stage.request(json!({}))),
        ("one-key", under("alias/app-volumes")),
        ("other-key", under("alias/other")),
    ] {
        let first = stage.run(name, &request).await?;
        assert_eq!(outcome(&first), ("proved", A_PROOF.to_vec()), "{name}");
        let again = stage.run(&format!("{name}-again"), &request).await?;
        assert_eq!(outcome(&again), ("alreadyShared", vec![]), "{name}");
    }
    Ok(())
}

/// What failed last stays failed until it is proved, whatever was proved before.
#[tokio::test]
async fn what_stays_without_its_proof_is_proved_by_the_same_request() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let proved = stage.run("proved", &stage.request(json!({}))).await?;
    assert_eq!(outcome(&proved).0, "proved");
    let mut request = stage.request(json!({ "launch": { "prove": "always" } }));
    request["onFailure"] = json!("keep");
    let dies = FaultKind::Fail { reason: "Server.InternalError".to_owned() };
    stage.local.sandbox.world().faults.add(Fault::once(Matcher::action("ec2:RunInstances"), dies));
    let kept = stage.run("kept", &request).await?;
    assert_eq!(kept.error(), "InstanceDied", "{}", kept.summary());
    let next = stage.run("next", &stage.request(json!({}))).await?;
    assert_eq!(outcome(&next), ("proved", A_PROOF.to_vec()));
    let again = stage.run("again", &stage.request(json!({}))).await?;
    assert_eq!(outcome(&again), ("alreadyShared", vec![]));
    Ok(())
}

/// Somebody else may have given all of it again.
#[tokio::test]
async fn a_proof_of_a_share_that_was_taken_back_does_not_count() -> Result<()> {
    let mut stage = Stage::start(Settings::default()).await?;
    let request = stage.request(json!({}));
    let first = stage.run("first", &request).await?;
    assert_eq!(outcome(&first).0, "proved");
    stage.keep();
    let revoke = stage.revoke("revoke", json!({ "force": true })).await?;
    assert_ne!(revoke.differences(), "");
    stage.reset();
    let again = stage.run("again", &request).await?;
    assert_eq!(outcome(&again), ("proved", A_PROOF.to_vec()));
    Ok(())
}

#[tokio::test]
async fn a_copy_counts_only_if_all_its_snapshots_are_under_the_key() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let request = stage.request(json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" } }));
    let mut last = stage.run("first", &request).await?;
    for (name, key) in [("not-encrypted", None), ("another-key", Some(stage.image.volumes[0].key_arn.clone()))] {
        let copy = last.report()["targets"][0]["imageId"].as_str().ok_or("there is a copy")?.to_owned();
        {
            let mut world = stage.local.sandbox.world();
            let ec2 = ec2(&mut world, TARGET);
            let snapshot = ec2.images[&copy].snapshot_ids()[1].to_owned();
            ec2.snapshots.get_mut(&snapshot).ok_or("it is the copy's")?.key = key;
        }
        let run = stage.run(name, &request).await?;
        let (status, writes) = outcome(&run);
        assert_eq!(status, "proved", "{name}");
        assert!(writes.contains(&"ec2:CopyImage"), "{name}: {writes:?}");
        assert_ne!(run.report()["targets"][0]["imageId"], json!(copy), "{name}");
        last = run;
    }
    Ok(())
}
