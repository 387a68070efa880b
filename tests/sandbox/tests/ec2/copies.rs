//! CopyImage and CopySnapshot: what they need, what they keep, how they fail.

use super::stage::*;
use ami_share_sandbox::Settings;
use ami_share_sandbox::faults::{Fault, FaultKind, Matcher};
use aws_sdk_ec2::operation::copy_image::builders::CopyImageFluentBuilder;
use aws_sdk_ec2::types::{Image, ResourceType, Tag, TagSpecification};
use serde_json::json;

/// A shared image, a key of B, and a role in B that has what it needs to copy.
struct Ready {
    stage: Stage,
    shared: Shared,
    own_key: String,
    copier: aws_sdk_ec2::Client,
}

async fn ready() -> Ready {
    let stage = Stage::new().await;
    let shared = stage.shared_image().await;
    let own_key = stage.key(B).await;
    let policy = copier_policy(&shared, &own_key, &ON_SOURCE_KEY, &ON_DESTINATION_KEY);
    let copier = stage.role(B, "copier", policy).await;
    Ready { stage, shared, own_key, copier }
}

fn copier_policy(shared: &Shared, own_key: &str, on_source: &[&str], on_own: &[&str]) -> serde_json::Value {
    json!([
        { "Effect": "Allow", "Action": "ec2:*", "Resource": "*" },
        { "Effect": "Allow", "Action": on_source, "Resource": shared.keys },
        { "Effect": "Allow", "Action": on_own, "Resource": own_key },
    ])
}

fn copy(ec2: &aws_sdk_ec2::Client, image: &str, key: Option<&str>) -> CopyImageFluentBuilder {
    ec2.copy_image()
        .source_image_id(image)
        .source_region(REGION)
        .name("copy")
        .set_encrypted(key.map(|_| true))
        .set_kms_key_id(key.map(String::from))
}

/// Copies, waits for the end, and takes the copy away again.
async fn result(ec2: &aws_sdk_ec2::Client, call: CopyImageFluentBuilder) -> Image {
    let started = call.send().await.expect("CopyImage");
    let id = started.image_id().expect("a copy has an id");
    let image = settled_image(ec2, id).await;
    ec2.deregister_image().image_id(id).send().await.expect("DeregisterImage");
    image
}

fn snapshot_ids(image: &Image) -> Vec<String> {
    let ids = image.block_device_mappings().iter().filter_map(|device| device.ebs()?.snapshot_id());
    ids.map(String::from).collect()
}

fn tags(kind: ResourceType, value: &str) -> TagSpecification {
    TagSpecification::builder().resource_type(kind).tags(Tag::builder().key("by").value(value).build()).build()
}

#[tokio::test]
async fn a_copy_is_the_copiers_own_under_one_key() {
    let Ready { stage, shared, own_key, copier } = ready().await;
    stage
        .a
        .create_tags()
        .resources(&shared.image)
        .tags(Tag::builder().key("secret").value("x").build())
        .send()
        .await
        .unwrap();
    let call = copy(&copier, &shared.image, Some(&own_key))
        .copy_image_tags(true)
        .tag_specifications(tags(ResourceType::Image, "image"))
        .tag_specifications(tags(ResourceType::Snapshot, "snapshot"));
    let started = call.send().await.unwrap();
    let image = settled_image(&copier, started.image_id().unwrap()).await;
    assert_eq!(image.state().unwrap().as_str(), "available");
    assert_eq!(image.owner_id(), Some(B));
    assert_eq!(image.source_image_id(), Some(shared.image.as_str()));
    assert_eq!(image.source_image_region(), Some(REGION));
    assert_eq!(image.tags(), tags(ResourceType::Image, "image").tags());
    let snapshots = snapshot_ids(&image);
    let found = copier.describe_snapshots().set_snapshot_ids(Some(snapshots)).send().await.unwrap();
    assert_eq!(found.snapshots().len(), 2);
    for snapshot in found.snapshots() {
        assert_eq!(snapshot.kms_key_id(), Some(own_key.as_str()));
        assert_eq!(snapshot.owner_id(), Some(B));
        assert_eq!(snapshot.state().unwrap().as_str(), "completed");
        assert_eq!(snapshot.tags(), tags(ResourceType::Snapshot, "snapshot").tags());
        let (copy, source) = (started.image_id().unwrap(), &shared.image);
        let made_for = format!("Copied for DestinationAmi {copy} from SourceAmi {source} for SourceSnapshot snap-");
        let (_, task) = snapshot.description().and_then(|text| text.strip_prefix(&made_for)?.split_once(". ")).unwrap();
        assert!(task.starts_with("Task created on 1,") && task.ends_with('.'), "{task}");
    }
    let permissions = stage
        .b
        .describe_image_attribute()
        .image_id(started.image_id().unwrap())
        .attribute("launchPermission".into())
        .send()
        .await
        .unwrap();
    assert!(permissions.launch_permissions().is_empty());

    // Whatever A does now, B's copy stands.
    for key in &shared.keys {
        stage.kms(A).disable_key().key_id(key).send().await.unwrap();
    }
    stage.a.deregister_image().image_id(&shared.image).send().await.unwrap();
    let instance = outcome(&stage.b, launch(&stage.b, started.image_id().unwrap())).await;
    assert_eq!(state(&instance), aws_sdk_ec2::types::InstanceStateName::Running);
}

#[tokio::test]
async fn a_copy_is_pending_first() {
    let stage = Stage::with(Settings { copy_delay_ms: 300, ..Settings::default() }).await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "plain", &[&snapshot]).await;
    let started = copy(&stage.a, &image, None).send().await.unwrap();
    let id = started.image_id().unwrap();
    let found = stage.a.describe_images().image_ids(id).send().await.unwrap();
    assert_eq!(found.images()[0].state().unwrap().as_str(), "pending");
    let share = stage.a.modify_image_attribute().image_id(id).operation_type("add".into()).user_ids(B);
    assert_eq!(code(share.send().await), "InvalidAMIID.Unavailable");
    assert_eq!(settled_image(&stage.a, id).await.state().unwrap().as_str(), "available");
}

#[tokio::test]
async fn a_copy_takes_the_permission_on_every_snapshot() {
    let Ready { stage, shared, own_key, copier } = ready().await;
    stage.unshare_snapshot(&shared.snapshots[1], B).await;
    let refused = copy(&copier, &shared.image, Some(&own_key)).send().await;
    assert_eq!(message(refused), "You do not have permission to access the storage of this ami");
    stage.share_snapshot(&shared.snapshots[1], B).await;
    let image = result(&copier, copy(&copier, &shared.image, Some(&own_key))).await;
    assert_eq!(image.state().unwrap().as_str(), "available");
    stage.unshare_image(&shared.image, B).await;
    let refused = copy(&copier, &shared.image, Some(&own_key)).send().await;
    assert_eq!(code(refused), "AuthFailure");
    let nowhere = copy(&copier, "ami-12345678", Some(&own_key)).send().await;
    assert_eq!(code(nowhere), "InvalidAMIID.NotFound");
}

#[tokio::test]
async fn every_action_on_both_keys_is_needed() {
    let Ready { stage, shared, own_key, copier } = ready().await;
    let without = |actions: [&'static str; 5], missing: &str| -> Vec<&'static str> {
        actions.into_iter().filter(|action| *action != missing).collect()
    };
    let mut policies = Vec::new();
    for missing in ON_SOURCE_KEY {
        let rest = without(ON_SOURCE_KEY, missing);
        policies.push((missing, copier_policy(&shared, &own_key, &rest, &ON_DESTINATION_KEY)));
    }
    for missing in ON_DESTINATION_KEY {
        let rest = without(ON_DESTINATION_KEY, missing);
        policies.push((missing, copier_policy(&shared, &own_key, &ON_SOURCE_KEY, &rest)));
    }
    for (missing, policy) in policies {
        stage.set_role_policy(B, "copier", policy).await;
        let image = result(&copier, copy(&copier, &shared.image, Some(&own_key))).await;
        assert_eq!(image.state().unwrap().as_str(), "failed", "without {missing}");
        let reason = image.state_reason().and_then(|reason| reason.message());
        assert_eq!(reason, Some("Given key ID is not accessible"));
        let snapshots = stage.b.describe_snapshots().set_snapshot_ids(Some(snapshot_ids(&image))).send().await.unwrap();
        let snapshot = &snapshots.snapshots()[0];
        assert_eq!(snapshot.state().unwrap().as_str(), "error");
        assert_eq!(snapshot.state_message(), Some("Given key ID is not accessible"));
    }
    let policy = copier_policy(&shared, &own_key, &ON_SOURCE_KEY, &ON_DESTINATION_KEY);
    stage.set_role_policy(B, "copier", policy).await;
    for missing in ON_SOURCE_KEY {
        stage.set_key_policy(&shared.keys[0], B, &without(ON_SOURCE_KEY, missing)).await;
        let image = result(&copier, copy(&copier, &shared.image, Some(&own_key))).await;
        assert_eq!(image.state().unwrap().as_str(), "failed", "without {missing}");
    }
    stage.set_key_policy(&shared.keys[0], B, &ON_SOURCE_KEY).await;
    let image = result(&copier, copy(&copier, &shared.image, Some(&own_key))).await;
    assert_eq!(image.state().unwrap().as_str(), "available");
}

#[tokio::test]
async fn without_a_key_a_foreign_image_goes_under_the_default_key() {
    let Ready { stage, shared, own_key, .. } = ready().await;
    let key_of = async |image: Image| {
        let found = stage.b.describe_snapshots().set_snapshot_ids(Some(snapshot_ids(&image))).send().await.unwrap();
        found.snapshots()[0].kms_key_id().map(String::from)
    };
    stage.b.modify_ebs_default_kms_key_id().kms_key_id(&own_key).send().await.unwrap();
    let foreign = result(&stage.b, copy(&stage.b, &shared.image, None)).await;
    assert_eq!(key_of(foreign).await.as_deref(), Some(own_key.as_str()));
}

#[tokio::test]
async fn an_own_image_keeps_its_key_within_the_region_only() {
    let stage = Stage::new().await;
    let key = stage.key(A).await;
    let snapshot = stage.snapshot(&stage.a, Some(&key)).await;
    let image = stage.image(&stage.a, "golden", &[&snapshot]).await;
    let same = result(&stage.a, copy(&stage.a, &image, None)).await;
    let found = stage.a.describe_snapshots().set_snapshot_ids(Some(snapshot_ids(&same))).send().await.unwrap();
    assert_eq!(found.snapshots()[0].kms_key_id(), Some(key.as_str()));

    let elsewhere = stage.root_in("us-east-1", A);
    let other = result(&elsewhere, copy(&elsewhere, &image, None)).await;
    assert_eq!(other.state().unwrap().as_str(), "available");
    let found = elsewhere.describe_snapshots().set_snapshot_ids(Some(snapshot_ids(&other))).send().await.unwrap();
    let other_key = found.snapshots()[0].kms_key_id().unwrap();
    assert!(other_key.starts_with(&format!("arn:aws:kms:us-east-1:{A}:key/")), "{other_key}");
}

#[tokio::test]
async fn a_client_token_copies_once() {
    let Ready { stage: _stage, shared, own_key, copier } = ready().await;
    let call = || copy(&copier, &shared.image, Some(&own_key)).client_token("once");
    let first = call().send().await.unwrap();
    let second = call().send().await.unwrap();
    assert_eq!(first.image_id(), second.image_id());
    assert_eq!(code(call().name("other").send().await), "IdempotentParameterMismatch");
}

#[tokio::test]
async fn a_copy_is_authorised_on_sources_and_results() {
    let Ready { stage, shared, own_key, copier } = ready().await;
    let resources: Vec<String> = [&shared.image, &shared.snapshots[0], &shared.snapshots[1]]
        .iter()
        .map(|id| {
            let kind = if id.starts_with("ami-") { "image" } else { "snapshot" };
            format!("arn:aws:ec2:{REGION}::{kind}/{id}")
        })
        .collect();
    let policy = |denied: &str| {
        let mut statements = copier_policy(&shared, &own_key, &ON_SOURCE_KEY, &ON_DESTINATION_KEY);
        let deny = json!({ "Effect": "Deny", "Action": "ec2:CopyImage", "Resource": denied });
        statements.as_array_mut().unwrap().push(deny);
        statements
    };
    for denied in &resources {
        stage.set_role_policy(B, "copier", policy(denied)).await;
        let refused = copy(&copier, &shared.image, Some(&own_key)).dry_run(true).send().await;
        assert_eq!(code(refused), "UnauthorizedOperation", "{denied}");
    }
    let only_sources = json!([{ "Effect": "Allow", "Action": "ec2:CopyImage", "Resource": resources }]);
    stage.set_role_policy(B, "copier", only_sources).await;
    let refused = copy(&copier, &shared.image, Some(&own_key)).dry_run(true).send().await;
    assert_eq!(code(refused), "UnauthorizedOperation");
    stage.set_role_policy(B, "copier", policy("arn:aws:ec2:us-east-1::image/*")).await;
    let allowed = copy(&copier, &shared.image, Some(&own_key)).dry_run(true).send().await;
    assert_eq!(code(allowed), "DryRunOperation");
}

/// The service authorization reference lists no key of a snapshot for CopyImage, but for tags that are asked for.
#[tokio::test]
async fn a_copy_knows_the_owner_of_its_image_and_not_of_the_snapshots() {
    let Ready { stage, shared, own_key, copier } = ready().await;
    let policy = |of_image: &str, of_snapshots: serde_json::Value| {
        let mut statements = copier_policy(&shared, &own_key, &ON_SOURCE_KEY, &ON_DESTINATION_KEY);
        let image = json!({ "Effect": "Allow", "Action": "ec2:CopyImage", "Resource": "arn:aws:ec2:*::image/*",
            "Condition": { "StringEqualsIfExists": { "ec2:Owner": of_image } } });
        let snapshots = json!({ "Effect": "Allow", "Action": "ec2:CopyImage", "Resource": "arn:aws:ec2:*::snapshot/*",
            "Condition": of_snapshots });
        statements.as_array_mut().unwrap().retain(|statement| statement["Action"] != "ec2:*");
        statements.as_array_mut().unwrap().extend([image, snapshots]);
        statements
    };
    for (of_image, of_snapshots, answer) in [
        (A, json!({}), "DryRunOperation"),
        (B, json!({}), "UnauthorizedOperation"),
        (A, json!({ "StringEquals": { "ec2:Owner": A } }), "UnauthorizedOperation"),
    ] {
        stage.set_role_policy(B, "copier", policy(of_image, of_snapshots.clone())).await;
        let asked = copy(&copier, &shared.image, Some(&own_key)).dry_run(true).send().await;
        assert_eq!(code(asked), answer, "{of_image} {of_snapshots}");
    }
}

#[tokio::test]
async fn a_copy_can_be_made_to_fail() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "plain", &[&snapshot]).await;
    let kind = FaultKind::Fail { reason: "Internal error".to_owned() };
    stage.sandbox.world().faults.add(Fault::once(Matcher::action("ec2:CopyImage"), kind));
    let failed = result(&stage.a, copy(&stage.a, &image, None)).await;
    assert_eq!(failed.state().unwrap().as_str(), "failed");
    assert_eq!(failed.state_reason().and_then(|reason| reason.message()), Some("Internal error"));
    let copied = result(&stage.a, copy(&stage.a, &image, None)).await;
    assert_eq!(copied.state().unwrap().as_str(), "available");
}

#[tokio::test]
async fn a_snapshot_copy_fails_as_silently() {
    let Ready { stage, shared, own_key, copier } = ready().await;
    let snapshot = &shared.snapshots[0];
    let call = || {
        copier
            .copy_snapshot()
            .source_snapshot_id(snapshot)
            .source_region(REGION)
            .encrypted(true)
            .kms_key_id(&own_key)
            .tag_specifications(tags(ResourceType::Snapshot, "copy"))
    };
    let settled =
        async |id: &str| eventually(async || snapshot_state(&stage.b, id).await, |state| state != "pending").await;
    let copied = call().send().await.unwrap();
    assert_eq!(copied.tags(), tags(ResourceType::Snapshot, "copy").tags());
    assert_eq!(settled(copied.snapshot_id().unwrap()).await, "completed");
    stage.set_key_policy(&shared.keys[0], B, &ON_SOURCE_KEY[..4]).await;
    let copied = call().send().await.unwrap();
    assert_eq!(settled(copied.snapshot_id().unwrap()).await, "error");
    stage.unshare_snapshot(snapshot, B).await;
    assert_eq!(code(call().send().await), "InvalidSnapshot.NotFound");
}

#[tokio::test]
async fn twenty_snapshot_copies_run_at_a_time() {
    let stage = Stage::with(Settings { copy_delay_ms: 60_000, ..Settings::default() }).await;
    let created = stage.a.create_volume().availability_zone(format!("{REGION}a")).size(1).send().await.unwrap();
    let snapshot = stage.a.create_snapshot().volume_id(created.volume_id().unwrap()).send().await.unwrap();
    let id = snapshot.snapshot_id().unwrap();
    {
        let mut world = stage.sandbox.world();
        let ec2 = world.account_mut(A).ec2.get_mut(REGION).unwrap();
        ec2.snapshots.get_mut(id).unwrap().state = ami_share_sandbox::ec2::SnapshotState::Completed;
    }
    let call = || stage.a.copy_snapshot().source_snapshot_id(id).source_region(REGION).send();
    for _ in 0..20 {
        call().await.unwrap();
    }
    assert_eq!(code(call().await), "ResourceLimitExceeded");
}
