//! Changes that are seen late: IAM, KMS and EC2 are eventually consistent.

use ami_share_tests::{Result, TARGET, local::Settings};
use serde_json::json;

use crate::Stage;

/// Less than the wait before the launch, which is 15 s long, and 150 ms here.
const SLOW_MS: u64 = 100;
/// No wait is as long.
const NEVER_MS: u64 = 3_600_000;

/// What is seen late, and by how many milliseconds.
type Delay = fn(&mut ami_share_sandbox::Settings, u64);

/// Each kind of change that a launch depends on.
const DELAYS: [(&str, Delay); 2] = [
    ("a policy of IAM", |settings, ms| settings.iam_policy_delay_ms = ms),
    ("a key policy", |settings, ms| settings.key_policy_delay_ms = ms),
];

#[tokio::test]
async fn a_launch_waits_for_what_was_just_changed() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    for (index, (what, delay)) in DELAYS.into_iter().enumerate() {
        stage.reset();
        delay(&mut stage.local.sandbox.world().settings, SLOW_MS);
        for mode in ["atLaunch", "copyImage"] {
            let reencrypt = json!({ "mode": mode, "kmsKeyId": "alias/app-volumes" });
            let run =
                stage.run(&format!("slow-{index}-{mode}"), &stage.request(json!({ "reencrypt": reencrypt }))).await?;
            assert!(run.succeeded(), "{what}, {mode}: {}", run.summary());
            stage.reset();
        }
        delay(&mut stage.local.sandbox.world().settings, 0);
    }
    Ok(())
}

#[tokio::test]
async fn after_a_change_that_is_not_seen_in_time_everything_is_taken_back_and_trying_again_is_advised() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    for (index, (what, delay)) in DELAYS.into_iter().enumerate() {
        stage.reset();
        delay(&mut stage.local.sandbox.world().settings, NEVER_MS);
        let run = stage.run(&format!("never-{index}"), &stage.request(json!({}))).await?;
        delay(&mut stage.local.sandbox.world().settings, 0);
        assert_eq!(run.error(), "InstanceDied", "{what}: {}", run.summary());
        let cause = run.cause();
        assert!(cause.contains(TARGET), "{what}: {cause}");
        assert!(cause.contains("start the execution again"), "{what}: {cause}");
        assert_eq!(run.differences(), "", "{what}");
    }
    Ok(())
}
