//! What an organization forbids in a target: the error names the kind of policy, and the statement where the target lets
//! AWS tell.

use ami_share_sandbox::{ec2::AllowedImages, world::Organization};
use ami_share_tests::{
    Result, SOURCE, TARGET,
    local::Settings,
    sabotage::{self, ask_for_team, denied_by, limited_to},
};
use serde_json::{Value, json};

use crate::{Run, Stage, ec2};

fn join(stage: &Stage, organization: Organization) {
    stage.local.sandbox.world().set_organization(TARGET, Some(organization));
}

fn deny(actions: &[&str]) -> Value {
    json!({ "Sid": "Guardrail", "Effect": "Deny", "Action": actions, "Resource": "*" })
}

/// What AWS says by itself.
const EXPLICIT: &str = "with an explicit deny in a service control policy: \
                        arn:aws:organizations::999999999999:policy/o-abcdefghij/service_control_policy/p-guardrail";
const REMEDY: &str = "whoever manages the organization can change that";

fn assert_refused(name: &str, run: &Run, says: &[&str]) {
    assert_eq!(run.error(), "AccessDenied", "{name}: {}", run.summary());
    for said in says {
        assert!(run.cause().contains(said), "{name}: the cause does not say {said:?}: {}", run.cause());
    }
    assert!(!run.cause().contains("Encoded authorization failure message"), "{name}: {}", run.cause());
}

#[tokio::test]
async fn a_call_that_a_service_control_policy_refuses_is_explained_by_the_statement() -> Result<()> {
    let stage = Stage::start(Settings { decode_messages: true, ..Settings::default() }).await?;
    join(&stage, denied_by(ask_for_team()));
    let plain = stage.request(json!({}));
    let run = stage.run("no-tags", &plain).await?;
    let statement = "denied by statement AskForTeam (its condition is on aws:RequestTag/team = true, and the request has no \
                     aws:RequestTag/team)";
    assert_refused("no-tags", &run, &["refused ec2:RunInstances", EXPLICIT, REMEDY, statement]);
    assert_eq!(run.differences(), "");
    let run = stage.run("tags", &stage.request(json!({ "launch": { "tags": { "team": "red" } } }))).await?;
    assert!(run.succeeded(), "{}", run.summary());

    stage.reset();
    join(&stage, limited_to(&[json!({ "Effect": "Allow", "NotAction": "ec2:RunInstances", "Resource": "*" })]));
    let run = stage.run("not-allowed", &plain).await?;
    let image = &stage.image.image_id;
    let nothing = format!("nothing allows ec2:RunInstances on arn:aws:ec2:eu-west-1::image/{image} with ");
    let implicit = "because no service control policy allows the ec2:RunInstances action";
    assert_refused("not-allowed", &run, &[implicit, REMEDY, &nothing, &format!("ec2:ImageID = {image}")]);
    assert_eq!(run.differences(), "");

    let copy = stage.request(json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" } }));
    for (name, action, request) in [
        ("copy", "ec2:CopyImage", &copy),
        ("tags-of-a-copy", "ec2:CreateTags", &copy),
        ("termination", "ec2:TerminateInstances", &plain),
    ] {
        stage.reset();
        join(&stage, denied_by(deny(&[action])));
        let run = stage.run(name, request).await?;
        assert_refused(name, &run, &[action, EXPLICIT, REMEDY, "denied by statement Guardrail"]);
    }

    // What is left says the same.
    stage.reset();
    join(&stage, denied_by(deny(&["ec2:RunInstances", "ec2:DeregisterImage"])));
    let run = stage.run("copy-that-stays", &copy).await?;
    assert_refused("copy-that-stays", &run, &["refused ec2:RunInstances", "refused ec2:DeregisterImage"]);
    assert_eq!(run.cause().matches("denied by statement Guardrail").count(), 2, "{}", run.cause());
    Ok(())
}

#[tokio::test]
async fn without_the_parameter_the_error_names_the_kind_of_policy_and_how_to_be_told_more() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    join(&stage, denied_by(ask_for_team()));
    let run = stage.run("not-told", &stage.request(json!({}))).await?;
    let parameter = "set DecodeAuthorizationMessages of accounts/target.yaml to true to be told";
    assert_refused("not-told", &run, &["refused ec2:RunInstances", EXPLICIT, REMEDY, parameter]);
    assert!(!run.cause().contains("AskForTeam"), "{}", run.cause());
    assert_eq!(run.differences(), "");
    Ok(())
}

/// Of the target.
fn allow_images(stage: &Stage, state: &str, criteria: &[&[&str]]) {
    let criteria = criteria.iter().map(|providers| providers.iter().map(|provider| (*provider).to_owned()).collect());
    ec2(&mut stage.local.sandbox.world(), TARGET).allowed_images =
        AllowedImages { state: Some(state.to_owned()), criteria: criteria.collect(), by_organization: true };
}

#[tokio::test]
async fn allowed_amis_that_leave_the_image_out_are_named_and_others_do_no_harm() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let plain = stage.request(json!({}));
    let copy = stage.request(json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" } }));
    for (name, call, request) in [("launch", "ec2:RunInstances", &plain), ("copy", "ec2:CopyImage", &copy)] {
        stage.reset();
        allow_images(&stage, "enabled", &[&["amazon", "444444444444"]]);
        let run = stage.run(name, request).await?;
        let named = format!(
            "Allowed AMIs, set by a declarative policy of the organization, leave out image {} of account {SOURCE}: they \
             allow images of amazon, 444444444444 (ec2:GetAllowedImagesSettings)",
            stage.image.image_id
        );
        assert_refused(name, &run, &[&format!("refused {call}"), &named, "EC2 says: Not authorized for images"]);
        assert_eq!(run.differences(), "");
    }
    for (name, state, criteria) in
        [("audited", "audit-mode", &[&["amazon"][..]][..]), ("allowed", "enabled", &[&["amazon"], &[SOURCE]])]
    {
        stage.reset();
        allow_images(&stage, state, criteria);
        let run = stage.run(name, &copy).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
    }
    // The image may meet the other criterion; here it cannot be seen for another reason.
    stage.reset();
    allow_images(&stage, "enabled", &[&["amazon"], &[SOURCE]]);
    stage.local.sandbox.world().faults.add_hook(sabotage::unshare_before_launch(&stage.image.image_id));
    let run = stage.run("not-shared", &plain).await?;
    assert_eq!(run.error(), "NotYetVisible", "{}", run.summary());
    for said in ["launch permission for account", "may leave the image out: see their criteria"] {
        assert!(run.cause().contains(said), "{said}: {}", run.cause());
    }
    Ok(())
}
