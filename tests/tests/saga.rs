//! A failure at every step, one by one: the execution fails with that cause, and every account is
//! as it was before.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use ami_share_tests::{
    Result, SOURCE, TARGET, deploy, execution,
    local::{Local, Settings},
    seed,
    stop::Stopper,
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

/// The steps of a share that copies the image, which has all of them.
const STEPS: [&str; 12] = [
    "ResolveImage",
    "ShareKey",
    "ShareSnapshots",
    "ShareImage",
    "GrantPrincipals",
    "CopyImage",
    "DescribeCopy",
    "LaunchInstance",
    "DescribeInstance",
    "VerifyVolumes",
    "TerminateInstance",
    "Report",
];

#[tokio::test]
async fn whatever_step_fails_everything_is_taken_back() -> Result<()> {
    let local = Local::start(Settings::default()).await?;
    let (engine, sandbox) = (local.engine.endpoint(), local.sandbox.endpoint());
    let image = seed::image(&sandbox, SOURCE, "golden-image").await?;
    let target = seed::target(&sandbox, TARGET).await?;
    let request = json!({ "imageId": image.image_id, "targets": [{
        "accountId": TARGET,
        "principals": [target.principal],
        "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" },
    }]});
    let stopper = Stopper::new(&local).await?;
    let failing = deploy::deploy_failing_function(&local.engine).await?;
    let accounts = local.sandbox.world().accounts.clone();
    let mut problems = Vec::new();
    for step in STEPS {
        local.sandbox.world().accounts = accounts.clone();
        stopper.forget_records()?;
        let before = snapshots(&local);
        let function = format!("{step}Function");
        let machine = local.hub.share_ami_with(&local.engine, &format!("without-{step}"), &function, &failing).await?;
        let arn = execution::start(&engine, &machine, step, &request).await?;
        let ended = execution::follow(&engine, &arn, |_| {}).await?;
        let after = snapshots(&local);
        if ended.status != ExecutionStatus::Failed || ended.error.as_deref() != Some("InjectedFailure") {
            problems.push(format!("{step}: ended in {} with {:?}", ended.status.as_str(), ended.error));
        }
        if !ended.cause.as_deref().unwrap_or_default().contains("This step was made to fail.") {
            problems.push(format!("{step}: the cause is {:?}", ended.cause));
        }
        if !ended.entered(step) {
            problems.push(format!("{step}: was not entered, only {:?}", ended.states));
        }
        if before != after {
            problems.push(format!("{step}: an account is not as it was:\n{before:#}\n{after:#}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn snapshots(local: &Local) -> Value {
    let mut world = local.sandbox.world();
    json!({ SOURCE: world.snapshot(SOURCE), TARGET: world.snapshot(TARGET) })
}
