//! An image that is still in use is taken from nobody, unless it is said.

use std::collections::BTreeMap;

use ami_share_sandbox::{
    ec2::{InstanceState, Recipe},
    faults::{Fault, FaultKind, Matcher},
};
use ami_share_tests::{Result, SOURCE, TARGET, local::Settings};
use aws_sdk_ec2::types::RequestLaunchTemplateData;
use serde_json::json;

use crate::{Run, Stage, differences, one_target};

const OTHER: &str = "444444444444";

/// Nothing was changed, and the cause names all of `said`.
fn assert_refused(run: &Run, said: &[&str]) {
    assert_eq!(run.error(), "ImageInUse", "{}", run.summary());
    for said in said {
        assert!(run.cause().contains(said), "{said}: {}", run.cause());
    }
    assert!(run.cause().ends_with("Nothing was changed."), "{}", run.cause());
    assert_eq!(run.writes(), [""; 0]);
}

async fn launch_template(stage: &Stage, account: &str) -> Result<String> {
    let data = RequestLaunchTemplateData::builder().image_id(&stage.image.image_id).build();
    let created = stage.ec2(account).create_launch_template().launch_template_name("web").launch_template_data(data);
    let template = created.send().await?.launch_template.and_then(|template| template.launch_template_id);
    template.ok_or_else(|| "CreateLaunchTemplate answered no id".into())
}

#[tokio::test]
async fn an_instance_or_a_launch_template_keeps_the_image_and_is_named() -> Result<()> {
    let targets = vec![TARGET.to_owned(), OTHER.to_owned()];
    let stage = Stage::start(Settings { targets, ..Settings::default() }).await?;
    for account in [TARGET, OTHER] {
        stage.share(&format!("share-{account}"), &stage.share_request(account, json!({}))).await?;
    }
    // The proofs were terminated: EC2's report still counts them, and the targets do not.
    let launched = stage.launch(TARGET)?.send().await?;
    let instance = launched.instances()[0].instance_id().unwrap_or_default().to_owned();
    let template = launch_template(&stage, OTHER).await?;

    let all = stage.request(json!("all"));
    let refused = stage.revoke("refused", &all).await?;
    assert_refused(&refused, &[TARGET, &instance, "1 instance", OTHER, &template, "1 launch template", "force"]);
    // One target that does not use it any more is not kept by the other.
    stage.ec2(TARGET).terminate_instances().instance_ids(&instance).send().await?;
    let revoked = stage.revoke("one", &stage.request(json!([TARGET]))).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_refused(&stage.revoke("other", &all).await?, &[OTHER, &template]);

    let mut forced = all;
    forced["force"] = json!(true);
    let revoked = stage.revoke("forced", &forced).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(revoked.report()["revoked"], json!([OTHER]));
    for asked in ["CheckUsage", "CreateUsageReport", "JudgeUsage"] {
        assert!(!revoked.ended.entered(asked), "{asked}");
    }
    assert_eq!(stage.notes()?, BTreeMap::new());
    Ok(())
}

/// A stopped instance is one; what the revoke itself terminates is not.
#[tokio::test]
async fn what_goes_with_the_image_does_not_keep_it() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let before = stage.snapshots();
    stage.share("share", &stage.share_request(TARGET, json!({ "launch": { "keep": true } }))).await?;
    let instance = stage.with_ec2(TARGET, |ec2| {
        let (id, instance) = ec2.instances.iter_mut().next().expect("the proof was kept");
        instance.state = InstanceState::Stopped;
        id.clone()
    });
    let mut request = stage.request(json!([TARGET]));
    assert_refused(&stage.revoke("kept", &request).await?, &[&instance]);
    request["instances"] = json!(true);
    let revoked = stage.revoke("with-it", &request).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(differences(&before, &stage.snapshots()), "");
    Ok(())
}

/// Versions of a launch template before the latest are found by EC2's report only.
#[tokio::test]
async fn the_report_counts_for_older_versions_of_a_launch_template() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    stage.share("share", &stage.share_request(TARGET, json!({}))).await?;
    let template = launch_template(&stage, TARGET).await?;
    stage.with_ec2(TARGET, |ec2| {
        let template = ec2.launch_templates.get_mut(&template).expect("it was made");
        let mut other = template.versions[0].clone();
        other.image_id = Some("ami-0123456789abcdef0".to_owned());
        template.versions.push(other);
        template.default_version = 2;
    });
    let refused = stage.revoke("refused", &stage.request(json!("all"))).await?;
    assert_refused(&refused, &[TARGET, "1 launch template", "EC2's usage report"]);
    Ok(())
}

/// No target is asked about Image Builder, and its next build would fail.
#[tokio::test]
async fn recipes_that_build_on_the_image_keep_it() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    stage.share("share", &stage.share_request(TARGET, json!({}))).await?;
    let image_id = stage.image.image_id.clone();
    let recipe = |of_images| Recipe { of_images, image_id: image_id.clone() };
    stage.with_ec2(TARGET, |ec2| ec2.recipes = vec![recipe(true), recipe(true), recipe(false)]);
    let refused = stage.revoke("refused", &stage.request(json!("all"))).await?;
    assert_refused(&refused, &[TARGET, "2 image recipes", "1 container recipe", "EC2's usage report"]);
    Ok(())
}

#[tokio::test]
async fn where_ec2_knows_no_recipes_it_is_asked_about_the_rest() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    stage.share("share", &stage.share_request(TARGET, json!({}))).await?;
    let unknown = FaultKind::Error {
        code: "InvalidParameterValue".to_owned(),
        message: "imagebuilder:ImageRecipe is no resource type.".to_owned(),
        status: 400,
    };
    stage.local.sandbox.world().faults.add(Fault::once(Matcher::action("ec2:CreateImageUsageReport"), unknown));
    let revoked = stage.revoke("revoked", &stage.request(json!("all"))).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    Ok(())
}

/// Whoever cannot be asked is looked for in EC2's report.
#[tokio::test]
async fn the_report_counts_for_a_target_that_cannot_be_asked() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    stage.share("share", &stage.share_request(TARGET, json!({}))).await?;
    let denied = FaultKind::Error {
        code: "UnauthorizedOperation".to_owned(),
        message: "A guardrail says no.".to_owned(),
        status: 403,
    };
    let look = Matcher::action("ec2:DescribeLaunchTemplateVersions").in_account(TARGET);
    stage.local.sandbox.world().faults.add(Fault::always(look, denied));
    // The proof: terminated, and not an hour ago.
    let refused = stage.revoke("refused", &stage.request(json!("all"))).await?;
    assert_refused(&refused, &[TARGET, "1 instance", "EC2's usage report"]);
    stage.with_ec2(TARGET, |ec2| ec2.instances.clear());
    let revoked = stage.revoke("unused", &stage.request(json!("all"))).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    Ok(())
}

/// No doubt is swallowed: without a report, nobody can say.
#[tokio::test]
async fn without_a_report_nothing_is_taken_back_unless_it_is_forced() -> Result<()> {
    let stage = Stage::start(one_target()).await?;
    let before = stage.snapshots();
    stage.share("share", &stage.share_request(TARGET, json!({}))).await?;
    let shared = stage.snapshots();
    let failed = FaultKind::Fail { reason: "An internal error occurred.".to_owned() };
    let refused = FaultKind::Error {
        code: "OperationNotPermitted".to_owned(),
        message: "Reports are not for this Region.".to_owned(),
        status: 400,
    };
    for (name, fault, said) in
        [("error", failed, "An internal error occurred"), ("refused", refused, "not for this Region")]
    {
        let create = Matcher::action("ec2:CreateImageUsageReport").in_account(SOURCE);
        stage.local.sandbox.world().faults.add(Fault::once(create, fault));
        let run = stage.revoke(name, &stage.request(json!("all"))).await?;
        assert_eq!(run.error(), "Aws", "{name}: {}", run.summary());
        for said in [said, "nobody can say whether", "force", "Nothing was changed"] {
            assert!(run.cause().contains(said), "{name}: {said}: {}", run.cause());
        }
        assert_eq!(differences(&shared, &stage.snapshots()), "", "{name}");
    }
    let mut forced = stage.request(json!("all"));
    forced["force"] = json!(true);
    let revoked = stage.revoke("forced", &forced).await?;
    assert!(revoked.succeeded(), "{}", revoked.summary());
    assert_eq!(differences(&before, &stage.snapshots()), "");
    Ok(())
}
