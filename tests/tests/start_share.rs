//! An image is shared if its tag asks for it: when it becomes available, when it is tagged, and when somebody looks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use ami_share_tests::{
    HUB, REGION, Result, TARGET,
    clients::root_of,
    deploy,
    engine::checkout,
    execution::{self, Ended},
    local::{IMAGE_EVENT_SOURCE, Local, Settings, TAG_EVENT_SOURCE},
    seed, template,
};
use aws_sdk_ec2::types::Tag;
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(20);
/// EventBridge's shortest schedule is a minute.
const PATIENCE: Duration = Duration::from_secs(300);

/// The hub owns the images: an event bus takes its own account's events only.
struct Stage {
    local: Local,
    ec2: aws_sdk_ec2::Client,
    sfn: aws_sdk_sfn::Client,
}

impl Stage {
    async fn start(settings: Settings) -> Result<Self> {
        let local = Local::start(Settings { source: HUB.to_owned(), ..settings }).await?;
        let ec2 = aws_sdk_ec2::Client::new(&root_of(HUB, &local.sandbox.endpoint()));
        let sfn = aws_sdk_sfn::Client::new(&root_of(HUB, &local.engine.endpoint()));
        Ok(Self { local, ec2, sfn })
    }

    async fn image(&self, name: &str) -> Result<String> {
        Ok(seed::image(&self.local.sandbox.endpoint(), HUB, name).await?.image_id)
    }

    async fn tag(&self, image: &str) -> Result<()> {
        let tag = Tag::builder().key("ami-share:profile").value("web").build();
        self.ec2.create_tags().resources(image).tags(tag).send().await?;
        Ok(())
    }

    /// Runs the AWS CLI in the hub account.
    fn aws(&self, arguments: &[&str]) -> Result<String> {
        let output = deploy::aws(HUB, &self.local.engine.endpoint())?.args(arguments).output()?;
        if !output.status.success() {
            return Err(format!("aws {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn send(&self, source: &str, event: &Value) -> Result<()> {
        let entry = json!([{
            "Source": source, "DetailType": event["detail-type"], "Resources": event["resources"],
            "Detail": event["detail"].to_string(),
        }]);
        self.aws(&["events", "put-events", "--entries", &entry.to_string()])?;
        Ok(())
    }

    /// What the function says that it has started.
    fn hear(&self, event: &Value) -> Result<Value> {
        let function = self.local.hub.function("StartShareFunction")?;
        let payload = event.to_string();
        let answer =
            self.aws(&["lambda", "invoke", "--function-name", &function, "--payload", &payload, "/dev/stdout"])?;
        let answer = serde_json::Deserializer::from_str(&answer).into_iter::<Value>().next();
        Ok(answer.ok_or("there is no answer")??["started"].take())
    }

    async fn names(&self) -> Result<BTreeMap<String, String>> {
        let machine = &self.local.hub.state_machine;
        let executions = self.sfn.list_executions().state_machine_arn(machine).send().await?.executions;
        Ok(executions.into_iter().map(|execution| (execution.name, execution.execution_arn)).collect())
    }

    /// Sees an execution of that name through.
    async fn follow(&self, name: &str, patience: Duration) -> Result<Ended> {
        let since = Instant::now();
        let execution = loop {
            if let Some(execution) = self.names().await?.remove(name) {
                break execution;
            }
            assert!(since.elapsed() < patience, "{name} was not started: {:?}", self.names().await?.keys());
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let ended = execution::follow(&self.local.engine.endpoint(), &execution, |_| {}).await?;
        assert_eq!(ended.status, ExecutionStatus::Succeeded, "{name}: {:?}", ended.cause);
        Ok(ended)
    }
}

#[tokio::test]
async fn an_image_with_a_profile_is_shared_once_whoever_tells_of_it_and_however_often() -> Result<()> {
    // What the profile says was reviewed, so it is shared where shares must be planned, too.
    let image_schedule = "rate(1 minute)".to_owned();
    let stage = Stage::start(Settings { image_schedule, require_plan: true, ..Settings::default() }).await?;
    let plain = stage.image("plain-image").await?;
    let image = stage.image("golden-image").await?;
    stage.tag(&image).await?;
    let request = json!({ "targets": [{ "accountId": TARGET }] }).to_string();
    let parameter = ["--type", "String", "--name", "/ami-share/profiles/web", "--value", &request];
    stage.aws(&[&["ssm", "put-parameter"], &parameter[..]].concat())?;

    let seen = stage.local.sandbox.world().journal.last_seq();
    for image in [&plain, &image, &image] {
        stage.send(IMAGE_EVENT_SOURCE, &state_event(image, "available"))?;
    }
    let ended = stage.follow(&format!("{image}-web"), TIMEOUT).await?;
    assert_eq!(ended.output.unwrap_or_default()["imageId"], json!(image));
    // Every change was made once: two keys, one image, one principal, one proof.
    let mut changes: BTreeMap<String, usize> = BTreeMap::new();
    for entry in stage.local.sandbox.world().journal.since(seen).iter().filter(|entry| entry.changed) {
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
    assert_eq!(stage.hear(&state_event(&image, "available"))?, json!([]));

    // Tagged after the event, which may also come after the tag.
    let late = stage.image("late-image").await?;
    stage.send(IMAGE_EVENT_SOURCE, &state_event(&late, "available"))?;
    stage.tag(&late).await?;
    stage.send(TAG_EVENT_SOURCE, &tag_event(&late))?;
    stage.follow(&format!("{late}-web"), TIMEOUT).await?;
    assert_eq!(stage.hear(&state_event(&late, "available"))?, json!([]));
    assert_eq!(stage.hear(&tag_event(&late))?, json!([]));

    // Disabled, which takes its launch permissions, and enabled again.
    stage.ec2.disable_image().image_id(&image).send().await?;
    assert_eq!(stage.hear(&state_event(&image, "disabled"))?, json!([]));
    stage.ec2.enable_image().image_id(&image).send().await?;
    stage.send(IMAGE_EVENT_SOURCE, &state_event(&image, "available"))?;
    let ended = stage.follow(&format!("{image}_2-web"), TIMEOUT).await?;
    assert_eq!(
        ended.output.unwrap_or_default()["changed"]["launchPermissions"],
        json!([TARGET]),
        "it can be launched again"
    );

    // Nothing tells of it.
    let missed = stage.image("missed-image").await?;
    stage.tag(&missed).await?;
    stage.follow(&format!("{missed}-web"), PATIENCE).await?;

    let names: BTreeSet<String> = stage.names().await?.into_keys().collect();
    let expected = [format!("{image}-web"), format!("{late}-web"), format!("{image}_2-web"), format!("{missed}-web")];
    assert_eq!(names, expected.into());
    Ok(())
}

/// The bus of a hub that is not the source has the hub's own images on it. None of it is an error, which would fill the
/// queue of lost events.
#[tokio::test]
async fn an_account_that_is_no_source_is_not_even_asked() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let image = stage.image("golden-image").await?;
    stage.tag(&image).await?;
    let asked = stage.local.sandbox.world().journal.last_seq();
    for mut event in [state_event(&image, "available"), state_event(&image, "disabled"), tag_event(&image)] {
        event["account"] = json!(TARGET);
        assert_eq!(stage.hear(&event)?, json!([]), "{event}");
    }
    assert_eq!(stage.local.sandbox.world().journal.since(asked), []);
    assert_eq!(stage.names().await?, BTreeMap::new());
    Ok(())
}

#[tokio::test]
async fn the_rules_are_for_images_that_change_their_state_or_their_profile() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let template = template::read(&checkout().join("template.yaml"))?;
    let pattern = |event: &str, source: &str| {
        let rule = &template["Resources"]["StartShareFunction"]["Properties"]["Events"][event];
        let mut pattern = rule["Properties"]["Pattern"].clone();
        assert_eq!(pattern["source"], json!([{ "Ref": source }]));
        pattern["source"] = json!([template["Parameters"][source]["Default"]]);
        pattern
    };
    let patterns = [pattern("ImageState", "ImageEventSource"), pattern("ImageTagged", "TagEventSource")];
    let matches = |event: Value| -> Result<[bool; 2]> {
        let mut matched = [false; 2];
        for (pattern, matched) in patterns.iter().zip(&mut matched) {
            let arguments = ["events", "test-event-pattern", "--event-pattern", &pattern.to_string()];
            let event = event.to_string();
            let answer: Value = serde_json::from_str(&stage.aws(&[&arguments, &["--event", &event][..]].concat())?)?;
            *matched = answer["Result"] == true;
        }
        Ok(matched)
    };
    let (available, tagged) = (state_event("ami-0123456789abcdef0", "available"), tag_event("ami-0123456789abcdef0"));
    assert_eq!(matches(available.clone())?, [true, false]);
    assert_eq!(matches(state_event("ami-0123456789abcdef0", "disabled"))?, [true, false]);
    assert_eq!(matches(state_event("ami-0123456789abcdef0", "deregistered"))?, [false, false]);
    assert_eq!(matches(tagged.clone())?, [false, true]);
    for (field, other) in [
        ("changed-tag-keys", json!(["Name"])),
        ("resource-type", json!("snapshot")),
        ("service", json!("imagebuilder")),
    ] {
        let mut event = tagged.clone();
        event["detail"][field] = other;
        assert_eq!(matches(event)?, [false, false], "{field}");
    }
    for mut event in [available, tagged] {
        event["source"] = json!("somebody.else");
        assert_eq!(matches(event)?, [false, false]);
    }
    Ok(())
}

/// As EC2 sends it (EC2 user guide, "Monitor AMI events").
fn state_event(image_id: &str, state: &str) -> Value {
    json!({
        "version": "0",
        "id": "00000000-0000-0000-0000-000000000000",
        "detail-type": "EC2 AMI State Change",
        "source": "aws.ec2",
        "account": HUB,
        "time": "2026-11-24T03:00:00Z",
        "region": REGION,
        "resources": [format!("arn:aws:ec2:{REGION}::image/{image_id}")],
        "detail": {
            "RequestId": "00000000-0000-0000-0000-000000000001",
            "ImageId": image_id,
            "State": state,
            "ErrorMessage": "",
        },
    })
}

/// As it is sent of an instance (Tagging AWS resources user guide, "Monitor tag changes with serverless workflows and Amazon
/// EventBridge").
fn tag_event(image_id: &str) -> Value {
    json!({
        "version": "0",
        "id": "00000000-0000-0000-0000-000000000002",
        "detail-type": "Tag Change on Resource",
        "source": "aws.tag",
        "account": HUB,
        "time": "2026-11-24T03:00:00Z",
        "region": REGION,
        "resources": [format!("arn:aws:ec2:{REGION}::image/{image_id}")],
        "detail": {
            "changed-tag-keys": ["ami-share:profile"],
            "service": "ec2",
            "resource-type": "image",
            "version": 1,
            "tags": { "Name": "golden-image", "ami-share:profile": "web" },
        },
    })
}
