//! RunInstances from a shared, encrypted image: what it needs, and how it dies
//! without it.

use super::stage::*;
use ami_share_sandbox::faults::{Fault, FaultKind, Matcher};
use ami_share_sandbox::{Settings, ec2};
use aws_sdk_ec2::types::{BlockDeviceMapping, EbsBlockDevice, Instance, InstanceStateName, InstanceType};
use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use serde_json::json;

/// A shared image and a role in B that has what it needs to launch it.
async fn ready() -> (Stage, Shared, aws_sdk_ec2::Client) {
    let stage = Stage::new().await;
    let shared = stage.shared_image().await;
    let keys = [shared.keys[0].as_str(), shared.keys[1].as_str()];
    let launcher = stage.role(B, "launcher", launcher_policy(&keys, &ON_SOURCE_KEY)).await;
    (stage, shared, launcher)
}

#[track_caller]
fn assert_died_silently(instance: &Instance, without: &str) {
    assert_eq!(state(instance), InstanceStateName::Terminated, "without {without}");
    let reason = instance.state_reason().expect("a dead instance has a reason");
    assert_eq!(reason.code(), Some("Client.InternalError"), "without {without}");
    assert_eq!(reason.message(), Some("Client.InternalError: Client error on launch"));
    assert_eq!(instance.state_transition_reason(), Some("Server.InternalError"));
}

#[tokio::test]
async fn a_fully_shared_image_launches_under_the_default_key() {
    let (stage, shared, launcher) = ready().await;
    let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
    let default_key = stage.kms(B).describe_key().key_id("alias/aws/ebs").send().await.unwrap();
    let default_key = default_key.key_metadata.and_then(|key| key.arn);
    assert_eq!(keys_of(&stage.b, &instance).await, vec![default_key; 2]);
}

#[tokio::test]
async fn a_launch_is_pending_first() {
    let stage = Stage::with(Settings { launch_delay_ms: 300, ..Settings::default() }).await;
    let shared = stage.shared_image().await;
    let started = launch(&stage.b, &shared.image).send().await.unwrap();
    let id = started.instances()[0].instance_id().unwrap();
    assert_eq!(state(&instance(&stage.b, id).await), InstanceStateName::Pending);
    assert_eq!(state(&settled(&stage.b, id).await), InstanceStateName::Running);
}

#[tokio::test]
async fn without_launch_permission_nobody_is_authorized_for_the_image() {
    let (stage, shared, launcher) = ready().await;
    stage.unshare_image(&shared.image, B).await;
    assert_eq!(code(launch(&launcher, &shared.image).send().await), "AuthFailure");
    let said = message(launch(&launcher, &shared.image).send().await);
    assert_eq!(said, format!("Not authorized for images: [{}]", shared.image));
    let asked = stage.b.describe_images().image_ids(&shared.image).send().await;
    assert_eq!(code(asked), "AuthFailure");
    assert_eq!(code(launch(&launcher, "ami-12345678").send().await), "InvalidAMIID.NotFound");
    stage.share_image(&shared.image, B).await;
    let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
}

#[tokio::test]
async fn a_launch_takes_no_permission_on_the_snapshots() {
    let (stage, shared, launcher) = ready().await;
    for snapshot in &shared.snapshots {
        stage.unshare_snapshot(snapshot, B).await;
    }
    let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
}

#[tokio::test]
async fn every_action_of_the_key_policy_is_needed() {
    let (stage, shared, launcher) = ready().await;
    for missing in ON_SOURCE_KEY {
        let rest: Vec<&str> = ON_SOURCE_KEY.into_iter().filter(|action| *action != missing).collect();
        // One of the two keys is enough to kill the instance.
        stage.set_key_policy(&shared.keys[1], B, &rest).await;
        let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
        assert_died_silently(&instance, missing);
        assert!(volumes_of(&stage.b, &instance).await.is_empty());
    }
    stage.set_key_policy(&shared.keys[1], B, &ON_SOURCE_KEY).await;
    let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
}

#[tokio::test]
async fn every_action_of_the_identity_policy_is_needed() {
    let (stage, shared, launcher) = ready().await;
    let keys = [shared.keys[0].as_str(), shared.keys[1].as_str()];
    for missing in ON_SOURCE_KEY {
        let rest: Vec<&str> = ON_SOURCE_KEY.into_iter().filter(|action| *action != missing).collect();
        stage.set_role_policy(B, "launcher", launcher_policy(&keys, &rest)).await;
        let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
        assert_died_silently(&instance, missing);
    }
    stage.set_role_policy(B, "launcher", launcher_policy(&keys[..1], &ON_SOURCE_KEY)).await;
    let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
    assert_died_silently(&instance, "the second key");
    stage.set_role_policy(B, "launcher", launcher_policy(&keys, &ON_SOURCE_KEY)).await;
    let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
}

#[tokio::test]
async fn every_action_on_the_new_key_is_needed() {
    let (stage, shared, launcher) = ready().await;
    let own = stage.key(B).await;
    let sources = [shared.keys[0].as_str(), shared.keys[1].as_str()];
    let policy = |on_own: &[&str]| {
        let mut statements = launcher_policy(&sources, &ON_SOURCE_KEY);
        let statement = json!({ "Effect": "Allow", "Action": on_own, "Resource": own });
        statements.as_array_mut().unwrap().push(statement);
        statements
    };
    let call = || {
        launch(&launcher, &shared.image)
            .block_device_mappings(encrypted_as(&device_name(0), Some(&own)))
            .block_device_mappings(encrypted_as(&device_name(1), Some(&own)))
    };
    for missing in ON_DESTINATION_KEY {
        let rest: Vec<&str> = ON_DESTINATION_KEY.into_iter().filter(|action| *action != missing).collect();
        stage.set_role_policy(B, "launcher", policy(&rest)).await;
        assert_died_silently(&outcome(&launcher, call()).await, missing);
    }
    stage.set_role_policy(B, "launcher", policy(&ON_DESTINATION_KEY)).await;
    let instance = outcome(&launcher, call()).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
    assert_eq!(keys_of(&stage.b, &instance).await, vec![Some(own.clone()); 2]);
}

#[tokio::test]
async fn a_volume_that_stays_under_the_source_key_needs_both_directions() {
    let stage = Stage::new().await;
    let key = stage.key(A).await;
    let snapshot = stage.snapshot(&stage.a, Some(&key)).await;
    let image = stage.image(&stage.a, "golden", &[&snapshot]).await;
    stage.share_image(&image, B).await;
    let call = || launch(&stage.b, &image).block_device_mappings(encrypted_as(&device_name(0), Some(&key)));
    stage.set_key_policy(&key, B, &ON_SOURCE_KEY).await;
    assert_died_silently(&outcome(&stage.b, call()).await, "kms:ReEncryptTo");
    let both = [&ON_SOURCE_KEY[..], &["kms:ReEncryptTo"]].concat();
    stage.set_key_policy(&key, B, &both).await;
    let instance = outcome(&stage.b, call()).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
    assert_eq!(keys_of(&stage.b, &instance).await, vec![Some(key)]);
}

#[tokio::test]
async fn key_conditions_are_those_of_ec2_in_the_region() {
    let (stage, shared, launcher) = ready().await;
    let with_condition = |condition: serde_json::Value| {
        json!([
            { "Effect": "Allow", "Action": "ec2:*", "Resource": "*" },
            { "Effect": "Allow", "Action": "kms:*", "Resource": "*", "Condition": condition },
        ])
    };
    for condition in [
        json!({ "StringEquals": { "kms:ViaService": "ec2.us-east-1.amazonaws.com" } }),
        json!({ "StringEquals": { "kms:CallerAccount": A } }),
    ] {
        stage.set_role_policy(B, "launcher", with_condition(condition)).await;
        assert_died_silently(&outcome(&launcher, launch(&launcher, &shared.image)).await, "the condition's match");
    }
    let matching = json!({ "StringEquals": {
        "kms:ViaService": format!("ec2.{REGION}.amazonaws.com"),
        "kms:CallerAccount": B,
    } });
    stage.set_role_policy(B, "launcher", with_condition(matching)).await;
    let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
}

#[tokio::test]
async fn a_disabled_key_kills_the_instance() {
    let (stage, shared, launcher) = ready().await;
    stage.kms(A).disable_key().key_id(&shared.keys[0]).send().await.unwrap();
    let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Terminated);
    let reason = instance.state_reason().unwrap();
    assert_eq!(reason.code(), Some("Client.InvalidKMSKey.InvalidState"));
    stage.kms(A).enable_key().key_id(&shared.keys[0]).send().await.unwrap();
    let instance = outcome(&launcher, launch(&launcher, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
}

#[tokio::test]
async fn a_key_that_does_not_exist_shows_only_later() {
    let (_stage, shared, launcher) = ready().await;
    let call = launch(&launcher, &shared.image)
        .block_device_mappings(encrypted_as(&device_name(0), Some("alias/no-such-key")));
    assert_died_silently(&outcome(&launcher, call).await, "a key");
}

#[tokio::test]
async fn kms_key_id_needs_encrypted() {
    let (_stage, shared, launcher) = ready().await;
    let ebs = EbsBlockDevice::builder().kms_key_id(&shared.keys[0]).build();
    let mapping = BlockDeviceMapping::builder().device_name(device_name(0)).ebs(ebs).build();
    let call = launch(&launcher, &shared.image).block_device_mappings(mapping);
    assert_eq!(code(call.send().await), "InvalidParameterDependency");
}

#[tokio::test]
async fn the_owner_keeps_the_keys_of_the_snapshots() {
    let (stage, shared, _launcher) = ready().await;
    let instance = outcome(&stage.a, launch(&stage.a, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
    let keys = shared.keys.map(Some).to_vec();
    assert_eq!(keys_of(&stage.a, &instance).await, keys);
}

#[tokio::test]
async fn the_default_key_can_be_chosen() {
    let (stage, shared, _launcher) = ready().await;
    let own = stage.key(B).await;
    let before = stage.b.get_ebs_default_kms_key_id().send().await.unwrap();
    assert_eq!(before.kms_key_id(), Some("alias/aws/ebs"));
    stage.b.modify_ebs_default_kms_key_id().kms_key_id(&own).send().await.unwrap();
    let after = stage.b.get_ebs_default_kms_key_id().send().await.unwrap();
    assert_eq!(after.kms_key_id(), Some(own.as_str()));
    let instance = outcome(&stage.b, launch(&stage.b, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
    assert_eq!(keys_of(&stage.b, &instance).await, vec![Some(own); 2]);
}

#[tokio::test]
async fn plain_snapshots_stay_plain_unless_encryption_is_the_default() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "plain", &[&snapshot]).await;
    stage.make_public(&image).await;
    let plain = outcome(&stage.b, launch(&stage.b, &image)).await;
    assert_eq!(keys_of(&stage.b, &plain).await, [None]);
    let asked = launch(&stage.b, &image).block_device_mappings(encrypted_as(&device_name(0), None));
    let asked = outcome(&stage.b, asked).await;
    assert!(keys_of(&stage.b, &asked).await[0].is_some());
    stage.b.enable_ebs_encryption_by_default().send().await.unwrap();
    let by_default = outcome(&stage.b, launch(&stage.b, &image)).await;
    assert!(keys_of(&stage.b, &by_default).await[0].is_some());
}

#[tokio::test]
async fn a_service_linked_role_launches_by_grant_only() {
    let (stage, shared, _launcher) = ready().await;
    stage.iam(B).create_service_linked_role().aws_service_name("autoscaling.amazonaws.com").send().await.unwrap();
    let role = format!("arn:aws:iam::{B}:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling");
    let scaling = stage.session(&role);
    assert_died_silently(&outcome(&scaling, launch(&scaling, &shared.image)).await, "a grant");

    let owner_policy = [&ON_SOURCE_KEY[..], &["kms:ListGrants"]].concat();
    for key in &shared.keys {
        // For a service-linked role the grant is made by B itself, so the key policy
        // cannot insist on grants for AWS resources.
        let policy = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{A}:root") }, "Action": "kms:*", "Resource": "*" },
            { "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{B}:root") }, "Action": owner_policy, "Resource": "*" },
        ] });
        stage.kms(A).put_key_policy().key_id(key).policy(policy.to_string()).send().await.unwrap();
        let operations = ["DescribeKey", "CreateGrant", "Decrypt", "ReEncryptFrom", "GenerateDataKeyWithoutPlaintext"];
        stage
            .kms(B)
            .create_grant()
            .key_id(key)
            .grantee_principal(&role)
            .set_operations(Some(operations.map(Into::into).to_vec()))
            .send()
            .await
            .unwrap();
    }
    let instance = outcome(&scaling, launch(&scaling, &shared.image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
}

#[tokio::test]
async fn every_resource_of_a_launch_is_authorised() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.b, None).await;
    let image = stage.image(&stage.b, "plain", &[&snapshot]).await;
    let here = |kind: &str| format!("arn:aws:ec2:{REGION}:{B}:{kind}/*");
    let resources = [
        format!("arn:aws:ec2:{REGION}::image/{image}"),
        format!("arn:aws:ec2:{REGION}::snapshot/{snapshot}"),
        here("instance"),
        here("volume"),
        here("network-interface"),
        here("subnet"),
        here("security-group"),
    ];
    let policy = |resources: &[String]| {
        json!([
            { "Effect": "Allow", "Action": "ec2:RunInstances", "Resource": resources },
            { "Effect": "Allow", "Action": "ec2:Describe*", "Resource": "*" },
        ])
    };
    let launcher = stage.role(B, "launcher", policy(&resources)).await;
    assert_eq!(code(launch(&launcher, &image).dry_run(true).send().await), "DryRunOperation");
    for missing in &resources {
        let rest: Vec<String> = resources.iter().filter(|resource| *resource != missing).cloned().collect();
        stage.set_role_policy(B, "launcher", policy(&rest)).await;
        let refused = message(launch(&launcher, &image).send().await);
        let kind = missing.rsplit(':').next().and_then(|rest| rest.split('/').next()).unwrap();
        assert!(refused.starts_with("You are not authorized to perform this operation. User: "), "{refused}");
        assert!(refused.contains(&format!(":{kind}/")), "{refused} should name a {kind}");
        assert_eq!(code(launch(&launcher, &image).dry_run(true).send().await), "UnauthorizedOperation");
    }
    stage.set_role_policy(B, "launcher", policy(&resources)).await;
    let instance = outcome(&launcher, launch(&launcher, &image)).await;
    assert_eq!(state(&instance), InstanceStateName::Running);
}

#[tokio::test]
async fn tags_at_launch_need_create_tags() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.b, None).await;
    let image = stage.image(&stage.b, "plain", &[&snapshot]).await;
    let run = json!({ "Effect": "Allow", "Action": ["ec2:RunInstances", "ec2:Describe*"], "Resource": "*" });
    let launcher = stage.role(B, "launcher", json!([run])).await;
    let tagged = |kind: ResourceType| {
        let tag = Tag::builder().key("team").value("red").build();
        TagSpecification::builder().resource_type(kind).tags(tag).build()
    };
    let call = || {
        launch(&launcher, &image)
            .tag_specifications(tagged(ResourceType::Instance))
            .tag_specifications(tagged(ResourceType::Volume))
    };
    assert_eq!(code(call().send().await), "UnauthorizedOperation");
    let tag = json!({
        "Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "*",
        "Condition": {
            "StringEquals": { "ec2:CreateAction": "RunInstances", "aws:RequestTag/team": "red" },
            "ForAllValues:StringEquals": { "aws:TagKeys": ["team"] },
        },
    });
    stage.set_role_policy(B, "launcher", json!([run, tag])).await;
    let instance = outcome(&launcher, call()).await;
    assert_eq!(instance.tags()[0].value(), Some("red"));
    assert_eq!(volumes_of(&stage.b, &instance).await[0].tags()[0].value(), Some("red"));
    let world = stage.sandbox.world();
    let launches: Vec<_> = world.journal.entries().iter().filter(|entry| entry.action == "ec2:RunInstances").collect();
    assert!(launches.len() == 2 && launches.iter().all(|entry| entry.implied == ["ec2:CreateTags"]), "{launches:?}");
}

#[tokio::test]
async fn a_client_token_launches_once() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.b, None).await;
    let image = stage.image(&stage.b, "plain", &[&snapshot]).await;
    let call = || launch(&stage.b, &image).client_token("once");
    let first = outcome(&stage.b, call()).await;
    let second = outcome(&stage.b, call()).await;
    assert_eq!(first.instance_id(), second.instance_id());
    let other = call().instance_type(InstanceType::T3Small);
    assert_eq!(code(other.send().await), "IdempotentParameterMismatch");
    let found = stage.b.describe_instances().filters(filter("client-token", "once")).send().await.unwrap();
    assert_eq!(found.reservations().len(), 1);
    stage.b.terminate_instances().instance_ids(first.instance_id().unwrap()).send().await.unwrap();
    assert_eq!(code(call().send().await), "IdempotentInstanceTerminated");
}

#[tokio::test]
async fn images_that_are_not_available_do_not_launch() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "plain", &[&snapshot]).await;
    stage.set_image_state(&image, ec2::ImageState::Pending);
    assert_eq!(code(launch(&stage.a, &image).send().await), "InvalidAMIID.Unavailable");
    stage.set_image_state(&image, ec2::ImageState::Available);
    let arm = launch(&stage.a, &image).instance_type(InstanceType::T4gMicro);
    assert_eq!(code(arm.send().await), "InvalidParameterValue");
    assert_eq!(code(launch(&stage.a, "ami-1").send().await), "InvalidAMIID.Malformed");
}

#[tokio::test]
async fn a_launch_can_be_made_to_fail() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.b, None).await;
    let image = stage.image(&stage.b, "plain", &[&snapshot]).await;
    let reason = "Server.InsufficientInstanceCapacity".to_owned();
    let fault = Fault::once(Matcher::action("ec2:RunInstances"), FaultKind::Fail { reason: reason.clone() });
    stage.sandbox.world().faults.add(fault);
    let dead = outcome(&stage.b, launch(&stage.b, &image)).await;
    assert_eq!(state(&dead), InstanceStateName::Terminated);
    assert_eq!(dead.state_reason().and_then(|given| given.code()), Some(reason.as_str()));
    let alive = outcome(&stage.b, launch(&stage.b, &image)).await;
    assert_eq!(state(&alive), InstanceStateName::Running);
}

#[tokio::test]
async fn devices_can_be_left_out_and_added() {
    let stage = Stage::new().await;
    let key = stage.key(B).await;
    let one = stage.snapshot(&stage.b, None).await;
    let other = stage.snapshot(&stage.b, Some(&key)).await;
    let image = stage.image(&stage.b, "two", &[&one, &other]).await;
    let without = BlockDeviceMapping::builder().device_name(device_name(1)).no_device("").build();
    let empty = EbsBlockDevice::builder().volume_size(3).build();
    let added = BlockDeviceMapping::builder().device_name("/dev/sdz").ebs(empty).build();
    let call = launch(&stage.b, &image).block_device_mappings(without).block_device_mappings(added);
    let instance = outcome(&stage.b, call).await;
    let sizes: Vec<_> = volumes_of(&stage.b, &instance).await.iter().map(|volume| volume.size()).collect();
    assert_eq!(sizes, [Some(8), Some(3)]);
}
