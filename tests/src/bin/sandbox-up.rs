//! `make sandbox`: leaves the simulated accounts running, with the stack deployed, until Ctrl-C.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::process::ExitCode;

use ami_share_tests::{
    HUB, REGION, Result, SOURCE, TARGET,
    engine::checkout,
    local::{EXTERNAL_ID, Local, Settings},
    report::bold,
    seed,
};
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("The sandbox could not be started: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let local = Local::start(Settings::default()).await?;
    let (engine, sandbox) = (local.engine.endpoint(), local.sandbox.endpoint());
    let image = seed::image(&sandbox, SOURCE, "golden-image").await?;
    let target = seed::target(&sandbox, TARGET).await?;
    let request = json!({ "imageId": image.image_id, "targets": [{
        "accountId": TARGET,
        "principals": [target.principal],
        "reencrypt": { "mode": "atLaunch", "kmsKeyId": "alias/app-volumes" },
        "launch": { "keep": true },
    }]});
    let tools = checkout().join(".venv/bin");

    println!("{}", bold("Running until Ctrl-C"));
    println!("  {engine}   Step Functions, Lambda, CloudFormation, EventBridge, SSM");
    println!("  {sandbox}   EC2, KMS, IAM, STS\n");
    println!("{}", bold("Accounts (the id is also the access key id of the account's root)"));
    println!("  {HUB}   hub: the stack ami-share");
    println!("  {SOURCE}   source: image {} with {} volumes", image.image_id, image.volumes.len());
    println!("  {TARGET}   target: {} and alias/app-volumes\n", target.principal);
    println!("{}", bold("All is deployed. In another shell, try, and then other commands of the documents"));
    println!("  # Who deploys again keeps to ExternalId={EXTERNAL_ID}: the roles here stay as they are.");
    println!("  export PATH={}:$PATH AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION={REGION}", tools.display());
    println!("  export AWS_ENDPOINT_URL={engine}");
    let simulated = ["EC2", "KMS", "IAM", "STS"].map(|service| format!("AWS_ENDPOINT_URL_{service}={sandbox}"));
    println!("  export {}", simulated.join(" "));
    println!("  export AWS_ACCESS_KEY_ID={HUB}");
    println!("  # 1. Share the image, and prove that the target can launch it.");
    println!("  execution=$(aws stepfunctions start-execution --query executionArn --output text \\");
    println!("    --state-machine-arn {} \\", local.hub.state_machine);
    println!("    --input '{request}')");
    println!("  # 2. See how it ended. While it says RUNNING, look again.");
    println!("  aws stepfunctions describe-execution --execution-arn $execution \\");
    println!("    --query '[status, error, cause, output]' --output text");
    println!("  # 3. Look at the target's volumes, and the key that each is encrypted with.");
    println!("  AWS_ACCESS_KEY_ID={TARGET} aws ec2 describe-volumes \\");
    println!("    --query 'Volumes[].[VolumeId,Attachments[0].Device,KmsKeyId]' --output table");
    println!("  # 4. Take it back, and end the instance that was kept: while it runs, the image is in use.");
    println!("  execution=$(aws stepfunctions start-execution --query executionArn --output text \\");
    println!("    --state-machine-arn {} \\", local.hub.revoke_share);
    let revoke = json!({ "imageId": image.image_id, "targets": "all", "instances": true });
    println!("    --input '{revoke}')");
    println!("  # 5. See how that ended: as 2.");
    // Ctrl-C ends this process; the engine notices and ends with it.
    std::future::pending::<Result<()>>().await
}
