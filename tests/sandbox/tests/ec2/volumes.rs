//! Volumes and the later life of instances.

use super::stage::*;
use aws_sdk_ec2::types::{Instance, InstanceStateName, Volume};

async fn launched(stage: &Stage, key: &str) -> Instance {
    let snapshot = stage.snapshot(&stage.a, Some(key)).await;
    let image = stage.image(&stage.a, "golden", &[&snapshot]).await;
    outcome(&stage.a, launch(&stage.a, &image)).await
}

async fn volume_settled(stage: &Stage, id: &str, wanted: &str) -> Volume {
    eventually(
        async || {
            let found = stage.a.describe_volumes().volume_ids(id).send().await.expect("DescribeVolumes");
            found.volumes()[0].clone()
        },
        |volume| volume.state().is_some_and(|state| state.as_str() == wanted),
    )
    .await
}

/// What it takes to put the root volume of a stopped instance under another key.
#[tokio::test]
async fn a_root_volume_is_swapped_for_one_under_another_key() {
    let stage = Stage::new().await;
    let (old_key, new_key) = (stage.key(A).await, stage.key(A).await);
    let instance = launched(&stage, &old_key).await;
    let id = instance.instance_id().unwrap();
    let old = volumes_of(&stage.a, &instance).await[0].clone();
    let old_id = old.volume_id().unwrap();
    let running = stage.a.detach_volume().volume_id(old_id).send().await;
    assert_eq!(code(running), "OperationNotPermitted");

    stage.a.stop_instances().instance_ids(id).send().await.unwrap();
    assert_eq!(state(&settled(&stage.a, id).await), InstanceStateName::Stopped);
    let snapshot = stage.a.create_snapshot().volume_id(old_id).send().await.unwrap();
    let snapshot = snapshot.snapshot_id().unwrap();
    eventually(async || snapshot_state(&stage.a, snapshot).await, |state| state == "completed").await;
    let created = stage
        .a
        .create_volume()
        .availability_zone(old.availability_zone().unwrap())
        .snapshot_id(snapshot)
        .encrypted(true)
        .kms_key_id(&new_key)
        .send()
        .await
        .unwrap();
    let new_id = created.volume_id().unwrap();
    volume_settled(&stage, new_id, "available").await;
    stage.a.detach_volume().volume_id(old_id).send().await.unwrap();
    volume_settled(&stage, old_id, "available").await;
    let rootless = stage.a.start_instances().instance_ids(id).send().await;
    assert_eq!(code(rootless), "InvalidParameterValue");
    stage.a.attach_volume().volume_id(new_id).instance_id(id).device(device_name(0)).send().await.unwrap();
    stage.a.start_instances().instance_ids(id).send().await.unwrap();
    let restarted = settled(&stage.a, id).await;
    assert_eq!(state(&restarted), InstanceStateName::Running);
    assert_eq!(keys_of(&stage.a, &restarted).await, [Some(new_key)]);
    stage.a.delete_volume().volume_id(old_id).send().await.unwrap();
    let gone = stage.a.describe_volumes().volume_ids(old_id).send().await;
    assert_eq!(code(gone), "InvalidVolume.NotFound");
}

#[tokio::test]
async fn a_stopped_instance_does_not_start_without_its_key() {
    let stage = Stage::new().await;
    let key = stage.key(A).await;
    let instance = launched(&stage, &key).await;
    let id = instance.instance_id().unwrap();
    stage.a.stop_instances().instance_ids(id).send().await.unwrap();
    settled(&stage.a, id).await;
    stage.kms(A).disable_key().key_id(&key).send().await.unwrap();
    stage.a.start_instances().instance_ids(id).send().await.unwrap();
    let instance = settled(&stage.a, id).await;
    assert_eq!(state(&instance), InstanceStateName::Stopped);
    assert_eq!(instance.state_reason().and_then(|reason| reason.code()), Some("Client.InvalidKMSKey.InvalidState"));
    assert_eq!(instance.state_transition_reason(), Some("Server.InternalError"));
}

#[tokio::test]
async fn terminating_deletes_the_volumes_that_say_so() {
    let stage = Stage::new().await;
    let key = stage.key(A).await;
    let instance = launched(&stage, &key).await;
    let id = instance.instance_id().unwrap();
    let root = volumes_of(&stage.a, &instance).await[0].volume_id().unwrap().to_owned();
    let zone = format!("{REGION}a");
    let data = stage.a.create_volume().availability_zone(zone).size(1).send().await.unwrap();
    let data = data.volume_id().unwrap();
    stage.a.attach_volume().volume_id(data).instance_id(id).device("/dev/sdf").send().await.unwrap();
    assert_eq!(code(stage.a.delete_volume().volume_id(data).send().await), "VolumeInUse");

    let ended = stage.a.terminate_instances().instance_ids(id).send().await.unwrap();
    let change = &ended.terminating_instances()[0];
    let names = [change.previous_state(), change.current_state()].map(|state| state.unwrap().name().unwrap().clone());
    assert_eq!(names, [InstanceStateName::Running, InstanceStateName::ShuttingDown]);
    let instance = settled(&stage.a, id).await;
    assert_eq!(state(&instance), InstanceStateName::Terminated);
    let reason = instance.state_reason().and_then(|reason| reason.code());
    assert_eq!(reason, Some("Client.UserInitiatedShutdown"));
    let gone = stage.a.describe_volumes().volume_ids(root).send().await;
    assert_eq!(code(gone), "InvalidVolume.NotFound");
    volume_settled(&stage, data, "available").await;
    let filters = [("instance-state-name", "terminated"), ("instance-id", id)];
    let filters = filters.map(|(name, value)| filter(name, value)).to_vec();
    let found = stage.a.describe_instances().set_filters(Some(filters)).send().await.unwrap();
    assert_eq!(found.reservations().len(), 1);
}

#[tokio::test]
async fn a_volume_whose_key_cannot_be_used_vanishes() {
    let stage = Stage::new().await;
    let zone = format!("{REGION}a");
    let call = stage.a.create_volume().availability_zone(zone).size(1).encrypted(true).kms_key_id("alias/nothing");
    let created = call.send().await.unwrap();
    let id = created.volume_id().unwrap();
    eventually(async || stage.a.describe_volumes().volume_ids(id).send().await.is_err(), |gone| *gone).await;
}
