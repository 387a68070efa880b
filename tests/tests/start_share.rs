//! An image that becomes available is shared, if its tag asks for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ami_share_tests::{
    HUB, REGION, Result, TARGET,
    clients::root_of,
    deploy,
    engine::checkout,
    execution,
    local::{IMAGE_EVENT_SOURCE, Local, Settings},
    seed, template,
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn an_image_with_a_profile_is_shared_once_however_often_the_event_comes() -> Result<()> {
    // An event bus takes its own account's events only, so here the hub owns the image.
    // What the profile says was reviewed, so it is shared where shares must be planned, too.
    let local = Local::start(Settings { source: HUB.to_owned(), require_plan: true, ..Settings::default() }).await?;
    let sandbox = local.sandbox.endpoint();
    let plain = seed::image(&sandbox, HUB, "plain-image").await?;
    let image = seed::image(&sandbox, HUB, "golden-image").await?;
    let tag = aws_sdk_ec2::types::Tag::builder().key("ami-share:profile").value("web").build();
    let ec2 = aws_sdk_ec2::Client::new(&root_of(HUB, &sandbox));
    ec2.create_tags().resources(&image.image_id).tags(tag).send().await?;
    let request = json!({ "targets": [{ "accountId": TARGET }] });
    aws(
        &local,
        &[
            "ssm",
            "put-parameter",
            "--type",
            "String",
            "--name",
            "/ami-share/profiles/web",
            "--value",
            &request.to_string(),
        ],
    )?;

    let seen = local.sandbox.world().journal.last_seq();
    for image_id in [&plain.image_id, &image.image_id, &image.image_id] {
        let entry = json!([{ "Source": IMAGE_EVENT_SOURCE, "DetailType": "EC2 AMI State Change", "Detail": detail(image_id).to_string() }]);
        aws(&local, &["events", "put-events", "--entries", &entry.to_string()])?;
    }

    let sfn = aws_sdk_sfn::Client::new(&root_of(HUB, &local.engine.endpoint()));
    let started = Instant::now();
    let first = loop {
        let executions = sfn.list_executions().state_machine_arn(&local.hub.state_machine).send().await?.executions;
        if let Some(execution) = executions.into_iter().next() {
            break execution;
        }
        assert!(started.elapsed() < TIMEOUT, "no execution was started");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let ended = execution::follow(&local.engine.endpoint(), &first.execution_arn, |_| {}).await?;
    assert_eq!(ended.status, ExecutionStatus::Succeeded, "{:?}", ended.cause);
    assert_eq!(ended.output.unwrap_or_default()["imageId"], json!(image.image_id));

    // Once more, and after the execution: the answer names the same one.
    let function = local.hub.function("StartShareFunction")?;
    let event = event(&image.image_id).to_string();
    let answer = aws(&local, &["lambda", "invoke", "--function-name", &function, "--payload", &event, "/dev/stdout"])?;
    assert!(answer.contains(&first.name), "{answer}");
    // An account whose images may not be shared is not even asked.
    let asked = local.sandbox.world().journal.last_seq();
    let mut elsewhere = self::event(&image.image_id);
    elsewhere["account"] = json!(TARGET);
    let payload = elsewhere.to_string();
    let answer =
        aws(&local, &["lambda", "invoke", "--function-name", &function, "--payload", &payload, "/dev/stdout"])?;
    assert!(answer.replace(' ', "").contains("\"execution\":null"), "{answer}");
    assert_eq!(local.sandbox.world().journal.since(asked), []);
    // Every change was made once: two keys, one image, one principal, one proof.
    let mut changes: BTreeMap<String, usize> = BTreeMap::new();
    for entry in local.sandbox.world().journal.since(seen).iter().filter(|entry| entry.changed) {
        *changes.entry(entry.action.clone()).or_default() += 1;
    }
    let expected = [
        ("ec2:ModifyImageAttribute", 1),
        ("ec2:RunInstances", 1),
        ("ec2:TerminateInstances", 1),
        ("iam:AttachRolePolicy", 1),
        ("kms:PutKeyPolicy", 2),
    ];
    assert_eq!(changes, expected.map(|(action, times)| (action.to_owned(), times)).into());
    let executions = sfn.list_executions().state_machine_arn(&local.hub.state_machine).send().await?.executions;
    assert_eq!(executions.len(), 1, "{executions:?}");
    Ok(())
}

#[tokio::test]
async fn the_rule_is_for_images_that_become_available() -> Result<()> {
    let local = Local::start(Settings::default()).await?;
    let template = template::read(&checkout().join("template.yaml"))?;
    let event_rule = &template["Resources"]["StartShareFunction"]["Properties"]["Events"]["ImageAvailable"];
    let mut pattern = event_rule["Properties"]["Pattern"].clone();
    assert_eq!(pattern["source"], json!([{ "Ref": "ImageEventSource" }]));
    pattern["source"] = json!([template["Parameters"]["ImageEventSource"]["Default"]]);
    let matches = |event: Value| -> Result<bool> {
        let arguments =
            ["events", "test-event-pattern", "--event-pattern", &pattern.to_string(), "--event", &event.to_string()];
        let answer: Value = serde_json::from_str(&aws(&local, &arguments)?)?;
        Ok(answer["Result"] == true)
    };
    let available = event("ami-0123456789abcdef0");
    assert!(matches(available.clone())?);
    let mut other = available.clone();
    other["detail"]["State"] = json!("deregistered");
    assert!(!matches(other)?);
    let mut other = available;
    other["source"] = json!("somebody.else");
    assert!(!matches(other)?);
    Ok(())
}

/// As EC2 sends it (EC2 user guide, "Monitor AMI events").
fn event(image_id: &str) -> Value {
    json!({
        "version": "0",
        "id": "00000000-0000-0000-0000-000000000000",
        "detail-type": "EC2 AMI State Change",
        "source": "aws.ec2",
        "account": HUB,
        "time": "2026-11-24T03:00:00Z",
        "region": REGION,
        "resources": [format!("arn:aws:ec2:{REGION}::image/{image_id}")],
        "detail": detail(image_id),
    })
}

fn detail(image_id: &str) -> Value {
    json!({ "RequestId": "00000000-0000-0000-0000-000000000001", "ImageId": image_id, "State": "available", "ErrorMessage": "" })
}

/// Runs the AWS CLI in the hub account.
fn aws(local: &Local, arguments: &[&str]) -> Result<String> {
    let output = deploy::aws(HUB, &local.engine.endpoint())?.args(arguments).output()?;
    if !output.status.success() {
        return Err(format!("aws {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
