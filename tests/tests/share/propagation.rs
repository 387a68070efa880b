//! Changes that are seen late: IAM, KMS and EC2 are eventually consistent.

use ami_share_sandbox::faults::{Fault, FaultKind, Matcher};
use ami_share_tests::{REGION, Result, TARGET, local::Settings};
use serde_json::json;

use crate::{Run, Stage};

const RUN: &str = "ec2:RunInstances";
/// As often as the SDK and the state try together.
const ALL_TRIES: u32 = 3 * 7;

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
        assert_eq!(launches(&run), 3, "{what}");
        assert_eq!(run.differences(), "", "{what}");
    }
    Ok(())
}

/// How many instances there were.
fn launches(run: &Run) -> usize {
    run.journal.iter().filter(|entry| entry.action == RUN && entry.changed).count()
}

/// The first launch is of an instance that dies as those do whose key is not open yet.
fn first_dies() -> Fault {
    Fault::once(Matcher::action(RUN), FaultKind::Fail { reason: "Client.InternalError".to_owned() })
}

#[tokio::test]
async fn a_proof_that_dies_once_is_launched_again_and_the_report_says_so() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    stage.local.sandbox.world().faults.add(first_dies());
    let run = stage.run("dies-once", &stage.request(json!({ "launch": { "keep": true } }))).await?;
    assert!(run.succeeded(), "{}", run.summary());
    assert_eq!(run.report()["targets"][0]["launches"], 2, "{}", run.summary());
    assert_eq!(launches(&run), 2);
    let instances = &run.after[TARGET]["ec2"][REGION]["instances"];
    let running = instances.as_object().into_iter().flatten().filter(|(_, instance)| instance["state"] == "running");
    let kept: Vec<&String> = running.map(|(id, _)| id).collect();
    assert_eq!(run.report()["targets"][0]["instanceId"], json!(kept[0]), "{instances:#}");
    assert_eq!(kept.len(), 1, "{instances:#}");
    Ok(())
}

#[tokio::test]
async fn a_second_launch_whose_reply_is_lost_is_taken_back() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    stage.local.sandbox.world().faults.add(first_dies());
    let lost = Fault { count: ALL_TRIES, ..Fault::once(Matcher::action(RUN), FaultKind::ReplyFailed) };
    stage.local.sandbox.world().faults.add(lost.after(1));
    let run = stage.run("second-lost", &stage.request(json!({}))).await?;
    assert_eq!(run.error(), "Unavailable", "{}", run.summary());
    assert_eq!(launches(&run), 2);
    assert_eq!(run.differences(), "");
    Ok(())
}

/// Launch and snapshot permission, in all the words that EC2 has for it.
#[tokio::test]
async fn what_ec2_does_not_let_use_yet_is_asked_for_again() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let image = &stage.image.image_id;
    let copy = json!({ "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/app-volumes" } });
    for (name, call, code, message, target) in [
        ("launch", RUN, "AuthFailure", format!("Not authorized for images: [{image}]"), json!({})),
        ("unknown", RUN, "InvalidAMIID.NotFound", format!("The image id '[{image}]' does not exist"), json!({})),
        ("copy", "ec2:CopyImage", "AuthFailure", format!("Not authorized for images: [{image}]"), copy.clone()),
        (
            "storage",
            "ec2:CopyImage",
            "InvalidRequest",
            "You do not have permission to access the storage of this ami".to_owned(),
            copy,
        ),
    ] {
        let kind = FaultKind::Error { code: code.to_owned(), message, status: 400 };
        let fault = Fault { count: 3, ..Fault::once(Matcher::action(call), kind) };
        stage.local.sandbox.world().faults.add(fault);
        let run = stage.run(&format!("not-yet-{name}"), &stage.request(target)).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
        assert!(stage.local.sandbox.world().faults.faults().is_empty(), "{name}: too few calls");
        stage.reset();
    }
    Ok(())
}
