//! The same request twice: the second execution finds everything in place.

use ami_share_tests::{Result, TARGET, local::Settings};
use serde_json::{Value, json};

use crate::{Stage, modes};

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
        assert_eq!(second.report()["targets"], json!([]), "{name}");
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
