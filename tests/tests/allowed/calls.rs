//! Functions called by hand, past the state machine: whatever gives something gives nothing to an account outside.

use ami_share_sandbox::journal::Outcome;
use ami_share_tests::{
    HUB, REGION, Result, SOURCE, TARGET, deploy,
    local::{self, Local, Settings},
    seed,
};
use serde_json::{Value, json};

use crate::{MANAGEMENT, OUTER, others, place, put, questions, run};

/// Ready to be a target, and nowhere on the allow-list.
const OUTSIDER: &str = "555555555555";

/// Neither source nor target of anything.
const UNKNOWN: &str = "888888888888";

/// A function, and what it is called with.
type Call = (&'static str, Value);

/// The functions that give something in the source account, and those that do in the target, with a call of each that
/// gives it to [`OUTSIDER`].
fn calls(image: &seed::Image) -> ([Call; 4], [Call; 3]) {
    let key = image.key_arns()[0];
    let snapshot = &image.volumes[0].snapshot_id;
    let source = json!({ "accountId": SOURCE, "region": REGION });
    let accounts = json!([TARGET, OUTSIDER]);
    let description = json!({
        "imageId": image.image_id, "name": "golden-image", "architecture": "x86_64",
        "volumes": [{ "deviceName": "/dev/xvda", "snapshotId": snapshot, "keyArn": key }],
    });
    let target = json!({
        "accountId": OUTSIDER,
        "principalChanges": [{ "principal": format!("arn:aws:iam::{OUTSIDER}:role/AmiShareLauncher") }],
        "mode": "copyImage",
        "kmsKeyId": format!("arn:aws:kms:{REGION}:{OUTSIDER}:key/1234"),
        "launch": {},
    });
    let call = |fields: Value| {
        let mut payload = json!({ "execution": "by-hand", "source": source });
        for (name, field) in fields.as_object().into_iter().flatten() {
            payload[name] = field.clone();
        }
        payload
    };
    let in_source = [
        (
            "ShareKey",
            call(json!({
                "keys": [{ "keyArn": key, "accountIds": accounts }], "planned": {},
            })),
        ),
        ("GrantKeys", call(json!({ "keys": [{ "keyArn": key, "accountIds": accounts }] }))),
        ("ShareSnapshots", call(json!({ "snapshots": [{ "snapshotId": snapshot, "accountIds": accounts }] }))),
        ("ShareImage", call(json!({ "imageId": image.image_id, "accountIds": accounts }))),
    ];
    let in_target = [
        ("GrantPrincipals", call(json!({ "target": target, "principalAccess": "attach" }))),
        ("CopyImage", call(json!({ "target": target, "image": description }))),
        (
            "LaunchInstance",
            call(json!({ "target": target, "image": description, "launchImageId": image.image_id, "launches": 0 })),
        ),
    ];
    (in_source, in_target)
}

/// Calls a function past the state machine; returns its error and the message.
fn invoke(local: &Local, function: &str, payload: &Value) -> Result<(String, String)> {
    let output = deploy::aws(HUB, &local.engine.endpoint())?
        .args(["lambda", "invoke", "--function-name", &local.hub.function(&format!("{function}Function"))?])
        .args(["--query", "FunctionError", "--payload", &payload.to_string(), "/dev/stdout"])
        .output()?;
    let answer = String::from_utf8(output.stdout)?;
    let answer: Value = serde_json::Deserializer::from_str(&answer)
        .into_iter()
        .next()
        .ok_or_else(|| format!("{function} answered nothing: {}", String::from_utf8_lossy(&output.stderr)))??;
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    Ok((text("errorType"), text("errorMessage")))
}

#[tokio::test]
async fn with_a_list_of_accounts_only_no_function_gives_anything_and_nobody_is_asked() -> Result<()> {
    let targets = vec![OUTSIDER.to_owned()];
    let organization = local::Organization { targets, ..Default::default() };
    let local = Local::start(Settings { organization, ..Settings::default() }).await?;
    let image = seed::image(&local.sandbox.endpoint(), SOURCE, "golden-image").await?;
    let seen = local.sandbox.world().journal.last_seq();
    let (in_source, in_target) = calls(&image);
    for (function, payload) in in_source.iter().chain(&in_target) {
        let (error, message) = invoke(&local, function, payload)?;
        assert_eq!(error, "TargetNotAllowed", "{function}: {message}");
        assert!(message.contains(OUTSIDER) && !message.contains(TARGET), "{function}: {message}");
    }
    let request = json!({ "imageId": image.image_id, "targets": [{ "accountId": TARGET }, { "accountId": OUTSIDER }] });
    let (error, cause, _) = run(&local, "outside", &request).await?;
    assert_eq!(error, "TargetNotAllowed", "{cause}");

    // Nor anything of an account whose images may not be shared.
    for (function, mut payload) in in_source.into_iter().chain(in_target) {
        payload["source"]["accountId"] = json!(OUTSIDER);
        let (error, message) = invoke(&local, function, &payload)?;
        assert_eq!(error, "SourceNotAllowed", "{function}: {message}");
    }
    let source = json!({ "accountId": OUTSIDER });
    let request = json!({ "imageId": image.image_id, "source": source, "targets": [{ "accountId": TARGET }] });
    let (error, cause, _) = run(&local, "of-an-outsider", &request).await?;
    assert_eq!(error, "SourceNotAllowed", "{cause}");
    for said in [OUTSIDER, SOURCE, "AllowedSourceAccountIds", "Nothing was changed."] {
        assert!(cause.contains(said), "the cause does not say {said}: {cause}");
    }
    // Both are said at once, with what else is wrong.
    let request = json!({ "imageId": "ami-x", "source": source, "targets": [{ "accountId": UNKNOWN }] });
    let (error, cause, _) = run(&local, "all-wrong", &request).await?;
    assert_eq!(error, "InvalidRequest", "{cause}");
    for said in ["imageId", "list of sources", "allow-list of targets", UNKNOWN] {
        assert!(cause.contains(said), "the cause does not say {said}: {cause}");
    }
    assert_eq!(local.sandbox.world().journal.since(seen), []);

    // And for a target inside, Organizations is not asked either.
    let request = json!({ "imageId": image.image_id, "targets": [{ "accountId": TARGET }] });
    let (error, cause, journal) = run(&local, "inside", &request).await?;
    assert_eq!(error, "", "{cause}");
    assert_eq!(questions(&journal), []);
    Ok(())
}

#[tokio::test]
async fn with_a_unit_allowed_no_function_gives_anything_to_an_account_outside_of_it() -> Result<()> {
    let organization = local::Organization {
        units: vec![OUTER.to_owned()],
        asked_in: Some(MANAGEMENT.to_owned()),
        targets: vec![OUTSIDER.to_owned()],
        ..Default::default()
    };
    let local = Local::start(Settings { organization, ..Settings::default() }).await?;
    let image = seed::image(&local.sandbox.endpoint(), SOURCE, "golden-image").await?;
    put(&mut local.sandbox.world(), MANAGEMENT, place(MANAGEMENT, &[]));
    put(&mut local.sandbox.world(), OUTSIDER, place(MANAGEMENT, &[]));
    let (in_source, in_target) = calls(&image);
    let seen = local.sandbox.world().journal.last_seq();
    for (function, payload) in &in_source {
        let (error, message) = invoke(&local, function, payload)?;
        assert_eq!(error, "TargetNotAllowed", "{function}: {message}");
    }
    let journal = local.sandbox.world().journal.since(seen).to_vec();
    assert!(others(&journal).is_empty(), "{journal:#?}");

    // These do not ask: the roles of the hub may not assume the role in such an account.
    for (function, payload) in &in_target {
        let seen = local.sandbox.world().journal.last_seq();
        let (error, message) = invoke(&local, function, payload)?;
        assert_eq!(error, "AccessDenied", "{function}: {message}");
        let journal = local.sandbox.world().journal.since(seen).to_vec();
        let [only] = journal.as_slice() else { panic!("{function}: {journal:#?}") };
        assert_eq!((only.account.as_str(), only.action.as_str()), (HUB, "sts:AssumeRole"), "{function}");
        assert_eq!(only.outcome, Outcome::Denied, "{function}");
    }

    // In the unit, nothing refuses it any more.
    put(&mut local.sandbox.world(), OUTSIDER, place(MANAGEMENT, &[OUTER]));
    for (function, payload) in in_source.iter().chain(&in_target[..1]) {
        let (error, message) = invoke(&local, function, payload)?;
        assert_eq!(error, "", "{function}: {message}");
    }
    Ok(())
}
