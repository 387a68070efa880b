//! Everything that some targets were ever given; plans of revokes; and what nobody has noted.

use std::collections::BTreeMap;

use ami_share_tests::{Result, SOURCE, TARGET, clients::root_of, local::Settings, seed};
use serde_json::{Value, json};

use crate::{Run, Stage, differences, one_target, others::other_image};

const OTHER: &str = "444444444444";

fn with(request: &Value, changes: Value) -> Value {
    let mut request = request.clone();
    for (name, value) in changes.as_object().into_iter().flatten() {
        request[name] = value.clone();
    }
    request
}

fn all_of(accounts: &[&str]) -> Value {
    json!({ "images": "all", "targets": accounts })
}

/// By account and call, in an order that does not depend on which target was first.
fn made(run: &Run) -> Vec<(String, String)> {
    let made = run.journal.iter().filter(|entry| entry.changed && entry.action != "ec2:CreateImageUsageReport");
    let mut made: Vec<_> = made.map(|entry| (entry.account.clone(), entry.action.clone())).collect();
    made.sort();
    made
}

fn planned(plan: &Value) -> Vec<(String, String)> {
    let text = |call: &Value, field: &str| call[field].as_str().unwrap_or_default().to_owned();
    let calls = plan["calls"].as_array().into_iter().flatten();
    let mut planned: Vec<_> = calls.map(|call| (text(call, "accountId"), text(call, "call"))).collect();
    planned.sort();
    planned
}

impl Stage {
    /// Runs a plan, which must not have done anything; returns it.
    async fn plan_revoke(&self, name: &str, request: &Value) -> Result<Value> {
        let before = self.snapshots();
        let notes = self.notes.records()?;
        let run = self.revoke(name, &with(request, json!({ "action": "plan" }))).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
        assert_eq!(run.writes(), [""; 0], "{name}");
        assert_eq!(differences(&before, &self.snapshots()), "", "{name}");
        assert_eq!(self.notes.records()?, notes, "{name}");
        assert_eq!(run.report()["status"], "planned", "{name}");
        Ok(run.report().clone())
    }

    /// Two images for one target, the first for another one too. Returns the second.
    async fn shared_twice(&self) -> Result<seed::Image> {
        let second = other_image(self).await?;
        for account in [TARGET, OTHER] {
            self.share(&format!("first-{account}"), &self.share_request(account, json!({}))).await?;
        }
        let request = with(&self.share_request(TARGET, json!({})), json!({ "imageId": second.image_id }));
        self.share("second", &request).await?;
        Ok(second)
    }
}

fn two_targets() -> Settings {
    Settings { targets: vec![TARGET.to_owned(), OTHER.to_owned()], ..Settings::default() }
}

#[tokio::test]
async fn all_that_a_target_was_given_goes_as_planned_and_nothing_of_others() -> Result<()> {
    let stage = Stage::start(two_targets()).await?;
    stage.share("before", &stage.share_request(OTHER, json!({}))).await?;
    let before = stage.snapshots();
    let second = other_image(&stage).await?;
    stage.share("first", &stage.share_request(TARGET, json!({}))).await?;
    let request = with(&stage.share_request(TARGET, json!({})), json!({ "imageId": second.image_id }));
    stage.share("second", &request).await?;

    let request = all_of(&[TARGET]);
    let plan = stage.plan_revoke("plan", &request).await?;
    let diffs = plan["calls"].as_array().into_iter().flatten().filter(|call| call["policy"].is_object());
    for call in diffs {
        let lines: Vec<&str> =
            call["policy"]["diff"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let with_target =
            |sign: char| lines.iter().filter(|line| line.starts_with(sign) && line.contains(TARGET)).count();
        assert_eq!((with_target('-'), with_target('+')), (2, 0), "{lines:#?}");
    }
    let apply = with(&request, json!({ "planHash": plan["planHash"] }));
    let revoked = stage.revoke("apply", &apply).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(planned(&plan), made(&revoked));
    assert_eq!(plan["summary"]["calls"].as_u64(), Some(planned(&plan).len() as u64), "{plan:#}");
    let report = revoked.report();
    assert_eq!((&report["status"], &report["revoked"]), (&json!("revoked"), &json!([TARGET])));
    assert_eq!(report["images"].as_array().map(Vec::len), Some(2), "{report:#}");
    // The second image is new, and the target may launch neither.
    let mut after = stage.snapshots();
    after.remove(SOURCE);
    assert_eq!(differences(&after, &before), "");
    assert_eq!(stage.refusal(TARGET).await?, "AuthFailure");
    assert!(stage.notes()?.keys().all(|(target, _)| *target == format!("target#{OTHER}")));
    let other = stage.share("other-again", &stage.share_request(OTHER, json!({}))).await?;
    assert_eq!(other.report()["status"], "alreadyShared", "{:#}", other.report());

    let again = stage.revoke("again", &request).await?;
    assert_eq!(again.report()["status"], "nothingToRevoke", "{}", again.summary());
    assert_eq!(again.writes(), [""; 0]);
    let nothing = stage.plan_revoke("plan-nothing", &request).await?;
    assert_eq!(nothing["calls"], json!([]));
    Ok(())
}

#[tokio::test]
async fn a_plan_that_is_no_longer_true_takes_nothing_back() -> Result<()> {
    let stage = Stage::start(two_targets()).await?;
    let second = stage.shared_twice().await?;
    let one = stage.request(json!([TARGET]));
    let plan = stage.plan_revoke("plan", &one).await?;
    assert_eq!(plan["kept"], json!([{ "accountId": TARGET, "imageId": second.image_id }]));
    let same = stage.plan_revoke("plan-again", &one).await?;
    assert_eq!(plan, same);
    let forced = stage.plan_revoke("plan-forced", &with(&one, json!({ "force": true }))).await?;
    assert_eq!(plan["planHash"], forced["planHash"]);

    let shared = stage.snapshots();
    let rest = with(&stage.request(json!("all")), json!({ "imageId": second.image_id }));
    stage.revoke("rest", &rest).await?;
    let without = stage.snapshots();
    assert_ne!(differences(&shared, &without), "");
    for (name, force) in [("changed", false), ("changed-forced", true)] {
        let apply = with(&one, json!({ "planHash": plan["planHash"], "force": force }));
        let run = stage.revoke(name, &apply).await?;
        assert_eq!(run.error(), "PlanChanged", "{}", run.summary());
        assert!(run.cause().contains("Nothing was changed"), "{}", run.cause());
        assert!(run.cause().contains("these are others: ") && run.cause().contains("what stays"), "{}", run.cause());
        assert_eq!(differences(&without, &stage.snapshots()), "", "{name}");
    }
    let now = stage.plan_revoke("plan-now", &one).await?;
    assert_ne!(now["planHash"], plan["planHash"]);
    assert_eq!(now["kept"], json!([]));
    let apply = with(&one, json!({ "planHash": now["planHash"], "force": true }));
    let applied = stage.revoke("applied", &apply).await?;
    assert!(applied.succeeded(), "{}", applied.summary());
    assert_eq!(planned(&now), made(&applied));
    Ok(())
}

#[tokio::test]
async fn one_image_in_use_keeps_all_of_them_and_is_named() -> Result<()> {
    let stage = Stage::start(two_targets()).await?;
    stage.shared_twice().await?;
    stage.launch(TARGET)?.send().await?;
    for (name, action) in [("plan", "plan"), ("apply", "apply")] {
        let run = stage.revoke(name, &with(&all_of(&[TARGET, OTHER]), json!({ "action": action }))).await?;
        assert_eq!(run.error(), "ImageInUse", "{}", run.summary());
        assert!(run.cause().contains(&stage.image.image_id) && run.cause().contains(TARGET), "{}", run.cause());
        assert_eq!(run.writes(), [""; 0], "{name}");
    }
    let forced = stage.revoke("forced", &with(&all_of(&[TARGET, OTHER]), json!({ "force": true }))).await?;
    assert!(forced.succeeded(), "{}", forced.summary());
    assert_eq!(forced.report()["revoked"].as_array().map(Vec::len), Some(2), "{}", forced.report());
    assert_eq!(stage.notes()?, BTreeMap::new());
    Ok(())
}

/// The notes were lost: what is plainly ami-share's stays, is named with what takes it, and is not called revoked.
#[tokio::test]
async fn what_no_note_names_stays_and_is_said() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let before = stage.snapshots();
    stage.share("share", &stage.share_request(TARGET, json!({}))).await?;
    stage.notes.forget_records()?;
    let run = stage.revoke("revoke", &stage.request(json!([TARGET]))).await?;
    assert_eq!(run.error(), "RevokeIncomplete", "{}", run.summary());
    let command = format!(
        "aws iam detach-role-policy --role-name AmiShareLauncher --policy-arn \
         arn:aws:iam::{TARGET}:policy/AmiShareKeyAccess"
    );
    let permission = format!("modify-image-attribute --region eu-west-1 --image-id {}", stage.image.image_id);
    for said in ["NotNoted", "AmiShareKeyAccess attached to role AmiShareLauncher", &command, &permission] {
        assert!(run.cause().contains(said), "{said}: {}", run.cause());
    }
    // Of everything, also where no image is named.
    let all = stage.revoke("all", &all_of(&[TARGET])).await?;
    assert_eq!(all.error(), "RevokeIncomplete", "{}", all.summary());
    assert!(all.cause().contains(&command), "{}", all.cause());

    // As the commands say.
    let iam = aws_sdk_iam::Client::new(&root_of(TARGET, &stage.local.sandbox.endpoint()));
    let policy = format!("arn:aws:iam::{TARGET}:policy/AmiShareKeyAccess");
    let principals = iam.list_entities_for_policy().policy_arn(&policy).send().await?;
    for role in principals.policy_roles() {
        let name = role.role_name().unwrap_or_default();
        iam.detach_role_policy().role_name(name).policy_arn(&policy).send().await?;
    }
    let permission = aws_sdk_ec2::types::LaunchPermission::builder().user_id(TARGET).build();
    let removed = aws_sdk_ec2::types::LaunchPermissionModifications::builder().remove(permission).build();
    let modify = stage.ec2(SOURCE).modify_image_attribute().image_id(&stage.image.image_id);
    modify.launch_permission(removed).send().await?;
    let again = stage.revoke("again", &stage.request(json!([TARGET]))).await?;
    assert!(again.succeeded(), "{}", again.summary());
    assert_eq!(differences(&before, &stage.snapshots()), "");
    Ok(())
}

/// A target that has nothing of ami-share's, and perhaps not even its roles, has nothing to be said of it.
#[tokio::test]
async fn a_stranger_has_nothing_to_revoke() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    for (name, request) in [("one", stage.request(json!([OTHER]))), ("all", all_of(&[OTHER]))] {
        let run = stage.revoke(name, &request).await?;
        assert!(run.succeeded(), "{}", run.summary());
        assert_eq!(run.report()["status"], "nothingToRevoke", "{name}");
        assert_eq!(run.writes(), [""; 0], "{name}");
    }
    Ok(())
}
