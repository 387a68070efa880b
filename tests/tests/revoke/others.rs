//! Images that share keys and targets: what another one needs stays, stays noted, and goes with that one.

use std::collections::BTreeMap;

use ami_share_core::{ids::KeyArn, key_policy::KeyPolicy};
use ami_share_tests::{Result, SOURCE, TARGET, clients::root_of, seed};
use serde_json::{Value, json};

use crate::{Stage, differences, one_target};

/// Another image. Its volumes are under the first key of `image`; the others of `image` are under a key of its own.
pub(crate) async fn other_image(stage: &Stage) -> Result<seed::Image> {
    let shared_key = stage.image.key_arns()[0];
    seed::image_under(&stage.local.sandbox.endpoint(), SOURCE, "other-image", shared_key, shared_key).await
}

fn of(image: &seed::Image, mut request: Value) -> Value {
    request["imageId"] = json!(image.image_id);
    request
}

/// Whether the policy of that key names the target.
async fn key_names_target(stage: &Stage, key: &str) -> Result<bool> {
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &stage.local.sandbox.endpoint()));
    let text = kms.get_key_policy().key_id(key).policy_name("default").send().await?.policy.unwrap_or_default();
    Ok(KeyPolicy::parse(&KeyArn::parse(key)?, &text)?.accounts().iter().any(|account| account.as_str() == TARGET))
}

/// The first image's execution gave everything; the second's found the keys and principals there.
#[tokio::test]
async fn what_another_image_needs_stays_and_goes_with_it() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let other = other_image(&stage).await?;
    let [shared_key, own_key] = [0, 1].map(|index| stage.image.key_arns()[index].to_owned());
    for access in ["attach", "inline"] {
        for key_access in ["policy", "grant"] {
            let name = format!("{access}-{key_access}");
            let before = stage.snapshots();
            let mut request = stage.share_request(TARGET, json!({}));
            request["principalAccess"] = json!(access);
            request["keyAccess"] = json!(key_access);
            stage.share(&format!("{name}-first"), &request).await?;
            let share_other = of(&other, request.clone());
            stage.share(&format!("{name}-other"), &share_other).await?;

            let revoked = stage.revoke(&format!("{name}-revoke"), &stage.request(json!([TARGET]))).await?;
            assert!(revoked.succeeded(), "{name}: {}", revoked.summary());
            let kept = json!([{ "accountId": TARGET, "imageId": other.image_id }]);
            assert_eq!(revoked.report()["kept"], kept, "{name}");
            assert_eq!(stage.refusal(TARGET).await?, "AuthFailure", "{name}");
            if key_access == "policy" {
                assert!(key_names_target(&stage, &shared_key).await?, "{name}");
                assert!(!key_names_target(&stage, &own_key).await?, "{name}");
            }
            // The other one's share is whole: nothing is missing, and its proof runs.
            let mut proof = share_other.clone();
            proof["targets"][0]["launch"] = json!({ "prove": "always" });
            let proved = stage.share(&format!("{name}-proof"), &proof).await?;
            let nothing = json!({ "keys": [], "snapshots": [], "launchPermissions": [], "principals": [] });
            assert_eq!(proved.report()["changed"], nothing, "{name}");

            // The first note is all that says who gave the principals their policies.
            let notes = stage.notes()?;
            let note = notes.iter().find(|((_, part), _)| part.starts_with(&stage.image.image_id));
            let (_, note) = note.ok_or_else(|| format!("{name}: nothing is noted of the first image"))?;
            assert_eq!(note["target"]["principalChanges"].as_array().map(Vec::len), Some(2), "{name}: {note}");
            assert!(note["target"]["sourceChanges"]["launchPermission"].is_null(), "{name}: {note}");

            let again = stage.revoke(&format!("{name}-again"), &stage.request(json!([TARGET]))).await?;
            assert_eq!(again.report()["status"], "nothingToRevoke", "{name}: {}", again.summary());
            assert_eq!(again.writes(), [""; 0], "{name}");

            let rest = of(&other, stage.request(json!("all")));
            let revoked = stage.revoke(&format!("{name}-rest"), &rest).await?;
            assert!(revoked.succeeded(), "{name}: {}", revoked.summary());
            assert_eq!(differences(&before, &stage.snapshots()), "", "{name}");
            assert_eq!(stage.notes()?, BTreeMap::new(), "{name}");
        }
    }
    Ok(())
}

/// An image that somebody else lets the target launch needs its keys as well.
#[tokio::test]
async fn an_image_that_somebody_else_shared_keeps_the_access_too() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let other = other_image(&stage).await?;
    stage.share("share", &stage.share_request(TARGET, json!({}))).await?;
    stage.with_ec2(SOURCE, |ec2| {
        let image = ec2.images.get_mut(&other.image_id).expect("the image was seeded");
        image.permissions.insert(ami_share_sandbox::ec2::LaunchPermission::Account(TARGET.to_owned()));
    });
    let revoked = stage.revoke("revoke", &stage.request(json!("all"))).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(revoked.report()["kept"], json!([{ "accountId": TARGET, "imageId": other.image_id }]));
    assert!(key_names_target(&stage, stage.image.key_arns()[0]).await?);
    assert!(!key_names_target(&stage, stage.image.key_arns()[1]).await?);
    // It ends: what stayed for it goes with the next revoke.
    stage.ec2(SOURCE).deregister_image().image_id(&other.image_id).send().await?;
    let rest = stage.revoke("rest", &stage.request(json!("all"))).await?;
    assert!(rest.succeeded(), "{}", rest.summary());
    assert_eq!(rest.report()["revoked"], json!([TARGET]));
    assert!(!key_names_target(&stage, stage.image.key_arns()[0]).await?);
    assert_eq!(stage.notes()?, BTreeMap::new());
    Ok(())
}
