//! What happens some time after the call that started it. The outcome is known
//! from the start; the clock reveals it.

use super::{Ec2, ImageState, InstanceState, ReportState, SnapshotState, StateReason, instances, volumes::VolumeState};
use crate::world::World;
use std::collections::BTreeMap;

/// Changes to come, in the order of their time.
#[derive(Debug, Default)]
pub struct Schedule {
    /// By due time (milliseconds since the sandbox started) and a serial number.
    events: BTreeMap<(u64, u64), Event>,
    serial: u64,
}

#[derive(Debug)]
struct Event {
    account: String,
    region: String,
    change: Change,
}

/// A change to the resource of that id. It is dropped when the resource has left
/// the state that it starts from.
#[derive(Debug)]
pub(super) enum Change {
    /// From pending to running.
    InstanceRuns(String),
    /// From pending to terminated.
    InstanceDies(String, StateReason),
    /// From stopping or pending to stopped.
    InstanceStops(String, StateReason),
    /// From shutting-down to terminated.
    InstanceTerminates(String),
    /// From pending to available, once its snapshots are completed.
    ImageBecomesAvailable(String),
    ImageFails(String, StateReason),
    SnapshotCompletes(String),
    SnapshotFails(String, String),
    VolumeBecomesAvailable(String),
    /// A volume that could not be made vanishes.
    VolumeVanishes(String),
    VolumeAttaches(String),
    VolumeDetaches(String),
    /// From pending to that.
    ReportEnds(String, ReportState),
}

/// Lets `change` happen `delay_ms` from now.
pub(super) fn later(world: &mut World, account: &str, region: &str, delay_ms: u64, change: Change) {
    let due = world.now_ms() + delay_ms;
    let schedule = &mut world.schedule;
    schedule.serial += 1;
    let event = Event { account: account.to_owned(), region: region.to_owned(), change };
    schedule.events.insert((due, schedule.serial), event);
}

/// Lets everything happen whose time has come (launches, copies). Called before
/// every API call and every snapshot.
pub fn settle(world: &mut World) {
    let now = world.now_ms();
    while let Some(entry) = world.schedule.events.first_entry() {
        if entry.key().0 > now {
            break;
        }
        let Event { account, region, change } = entry.remove();
        let ec2 = world.accounts.get_mut(&account).and_then(|account| account.ec2.get_mut(&region));
        if let Some(ec2) = ec2 {
            apply(ec2, change);
        }
    }
}

fn apply(ec2: &mut Ec2, change: Change) {
    match change {
        Change::InstanceRuns(id) => {
            if let Some(instance) = ec2.instances.get_mut(&id)
                && instance.state == InstanceState::Pending
            {
                instance.state = InstanceState::Running;
                for volume in ec2.volumes.values_mut() {
                    volume.attached_to(&id);
                }
            }
        }
        Change::InstanceDies(id, reason) => {
            if let Some(instance) = ec2.instances.get_mut(&id)
                && instance.state == InstanceState::Pending
            {
                instance.state = InstanceState::Terminated;
                instance.state_reason = Some(reason);
                // AWS has this in StateTransitionReason, whatever StateReason says.
                instance.transition_reason = "Server.InternalError".to_owned();
                instances::release_volumes(ec2, &id);
            }
        }
        Change::InstanceStops(id, reason) => {
            if let Some(instance) = ec2.instances.get_mut(&id)
                && matches!(instance.state, InstanceState::Stopping | InstanceState::Pending)
            {
                if instance.state == InstanceState::Pending {
                    instance.transition_reason = "Server.InternalError".to_owned();
                }
                instance.state = InstanceState::Stopped;
                instance.state_reason = Some(reason);
            }
        }
        Change::InstanceTerminates(id) => {
            if let Some(instance) = ec2.instances.get_mut(&id)
                && instance.state == InstanceState::ShuttingDown
            {
                instance.state = InstanceState::Terminated;
                instances::release_volumes(ec2, &id);
            }
        }
        Change::ImageBecomesAvailable(id) => {
            if let Some(image) = ec2.images.get_mut(&id)
                && image.state == ImageState::Pending
            {
                image.state = ImageState::Available;
            }
        }
        Change::ImageFails(id, reason) => {
            if let Some(image) = ec2.images.get_mut(&id)
                && image.state == ImageState::Pending
            {
                image.state = ImageState::Failed;
                image.state_reason = Some(reason);
            }
        }
        Change::SnapshotCompletes(id) => {
            if let Some(snapshot) = ec2.snapshots.get_mut(&id)
                && snapshot.state == SnapshotState::Pending
            {
                snapshot.state = SnapshotState::Completed;
            }
        }
        Change::SnapshotFails(id, message) => {
            if let Some(snapshot) = ec2.snapshots.get_mut(&id)
                && snapshot.state == SnapshotState::Pending
            {
                snapshot.state = SnapshotState::Error;
                snapshot.message = Some(message);
            }
        }
        Change::VolumeBecomesAvailable(id) => {
            if let Some(volume) = ec2.volumes.get_mut(&id)
                && volume.state == VolumeState::Creating
            {
                volume.state = VolumeState::Available;
            }
        }
        Change::VolumeVanishes(id) => {
            ec2.volumes.remove(&id);
        }
        Change::VolumeAttaches(id) => {
            if let Some(volume) = ec2.volumes.get_mut(&id) {
                volume.finish_attaching();
            }
        }
        Change::ReportEnds(id, state) => {
            if let Some(report) = ec2.usage_reports.get_mut(&id) {
                report.state = state;
            }
        }
        Change::VolumeDetaches(id) => {
            if let Some(volume) = ec2.volumes.get_mut(&id) {
                volume.state = VolumeState::Available;
                volume.attachment = None;
            }
        }
    }
}
