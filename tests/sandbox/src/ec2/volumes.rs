//! EBS volumes: making, attaching, detaching and deleting them.

use super::encryption::{self, Encryption, Source, Wish};
use super::filters::{Filters, page};
use super::schedule::{Change, later};
use super::tags::{self, Tags};
use super::{
    Ec2, InstanceState, Request, SnapshotState, account_arn, context, is_id, returns_true, shared_arn, snapshots,
};
use crate::auth::Context;
use crate::wire::{ApiError, Reply, Xml};

/// State of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    Creating,
    Available,
    InUse,
}

impl VolumeState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Available => "available",
            Self::InUse => "in-use",
        }
    }
}

/// State of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachmentState {
    Attaching,
    Attached,
    Detaching,
}

impl AttachmentState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Detaching => "detaching",
        }
    }
}

/// Where a volume is attached.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub instance_id: String,
    /// Such as `/dev/sda1`.
    pub device: String,
    pub state: AttachmentState,
    pub delete_on_termination: bool,
    pub since: String,
}

/// An EBS volume.
#[derive(Debug, Clone)]
pub struct Volume {
    pub id: String,
    /// GiB.
    pub size: u32,
    pub volume_type: String,
    pub availability_zone: String,
    pub snapshot_id: Option<String>,
    /// The key's ARN, if it is encrypted.
    pub key: Option<String>,
    pub state: VolumeState,
    pub attachment: Option<Attachment>,
    pub tags: Tags,
    pub created: String,
}

impl Volume {
    /// Finishes attaching to that instance, if it is what the volume is doing.
    pub(super) fn attached_to(&mut self, instance_id: &str) {
        if self.attachment.as_ref().is_some_and(|attachment| attachment.instance_id == instance_id) {
            self.finish_attaching();
        }
    }

    pub(super) fn finish_attaching(&mut self) {
        if let Some(attachment) = &mut self.attachment
            && attachment.state == AttachmentState::Attaching
        {
            attachment.state = AttachmentState::Attached;
        }
    }
}

/// Canonical picture for comparing states.
pub(super) fn picture(volume: &Volume) -> serde_json::Value {
    let attachment = volume
        .attachment
        .as_ref()
        .map(|attachment| serde_json::json!({ "instance": attachment.instance_id, "device": attachment.device }));
    serde_json::json!({
        "key": volume.key,
        "snapshot": volume.snapshot_id,
        "attachment": attachment,
        "tags": volume.tags,
    })
}

pub(super) fn not_found(id: &str) -> ApiError {
    if is_id(id, "vol") {
        ApiError::bad_request("InvalidVolume.NotFound", format!("The volume '{id}' does not exist."))
    } else {
        ApiError::bad_request(
            "InvalidParameterValue",
            format!("Value ({id}) for parameter volumeId is invalid. Expected: 'vol-...'."),
        )
    }
}

/// What conditions can say about a volume that is to be made.
pub(super) fn creation_context(
    region: &str,
    size: u32,
    volume_type: &str,
    snapshot_id: Option<&str>,
    wish: &Wish,
    encrypted: bool,
    tags: Option<&Tags>,
) -> Context {
    let mut context = context([
        ("ec2:Encrypted", encrypted.to_string()),
        ("ec2:VolumeSize", size.to_string()),
        ("ec2:VolumeType", volume_type.to_owned()),
    ]);
    if let Some(id) = snapshot_id {
        let arn = shared_arn(region, "snapshot", id);
        context.insert("ec2:ParentSnapshot".to_owned(), vec![arn]);
    }
    if let Some(key_id) = &wish.kms_key_id {
        context.insert("ec2:KmsKeyId".to_owned(), vec![key_id.clone()]);
    }
    if let Some(tags) = tags {
        tags::add_request_context(&mut context, tags);
    }
    context
}

pub(super) fn create(request: &mut Request<'_>) -> Reply {
    let (world_account, region) = (request.caller.account.clone(), request.region);
    let params = request.params;
    let tags = tags::specifications(params, &["volume"])?.remove("volume").unwrap_or_default();
    let wish = Wish::parse(params)?;
    let snapshot_id = params.get("SnapshotId").filter(|id| !id.is_empty());
    let snapshot = snapshot_id.and_then(|id| snapshots::visible(request.world, &world_account, region, id)).cloned();
    let size = params
        .int("Size")
        .and_then(|size| u32::try_from(size).ok())
        .or_else(|| snapshot.as_ref().map(|snapshot| snapshot.size))
        .unwrap_or(0);
    let volume_type = params.get("VolumeType").unwrap_or("gp2").to_owned();

    let any_volume = account_arn(region, &world_account, "volume", "*");
    let encrypted = wish.encrypted == Some(true) || snapshot.as_ref().is_some_and(|snapshot| snapshot.key.is_some());
    let volume_context = creation_context(region, size, &volume_type, snapshot_id, &wish, encrypted, Some(&tags));
    request.authorize(&any_volume, &volume_context)?;
    if let Some(id) = snapshot_id {
        let snapshot_context = snapshot.as_ref().map(|snapshot| snapshot.context(&Tags::new())).unwrap_or_default();
        request.authorize(&shared_arn(region, "snapshot", id), &snapshot_context)?;
    }
    tags::authorize_on_create(request, &any_volume, Some(&tags))?;
    let availability_zone = params.get("AvailabilityZone").map_or_else(|| format!("{region}a"), String::from);
    if !availability_zone.starts_with(region) {
        return Err(ApiError::bad_request(
            "InvalidZone.NotFound",
            format!("The zone '{availability_zone}' does not exist."),
        ));
    }
    if let Some(ids) = request.made_before()? {
        return Ok(reply(request, &ids));
    }
    if let Some(id) = snapshot_id {
        match &snapshot {
            None => return Err(snapshots::not_found(id)),
            Some(snapshot) if snapshot.state != SnapshotState::Completed => {
                return Err(ApiError::bad_request(
                    "IncorrectState",
                    format!("Snapshot '{id}' is not in a completed state."),
                ));
            }
            Some(_) => {}
        }
    }
    if size == 0 {
        return Err(ApiError::bad_request("MissingParameter", "The request must contain the parameter size/snapshot"));
    }
    request.end_dry_run()?;

    let source = snapshot
        .as_ref()
        .map(|snapshot| Source {
            key: snapshot.key.clone(),
            foreign: snapshot.owner != world_account,
            other_region: None,
        })
        .unwrap_or_default();
    let id = request.world.next_id("vol");
    let target = encryption::decide(request.world, request.caller, region, &wish, &source);
    let usable = encryption::check_conversion(request.world, request.caller, region, &source, &target, &id);
    let volume = Volume {
        id: id.clone(),
        size,
        volume_type,
        availability_zone,
        snapshot_id: snapshot_id.map(String::from),
        key: target.key().map(String::from),
        state: VolumeState::Creating,
        attachment: None,
        tags,
        created: request.world.timestamp(),
    };
    request.ec2_mut().volumes.insert(id.clone(), volume);
    request.world.note_resource(account_arn(region, &world_account, "volume", &id));
    request.world.note_change();
    let change = match usable {
        Ok(()) => Change::VolumeBecomesAvailable(id.clone()),
        Err(_) => Change::VolumeVanishes(id.clone()),
    };
    let delay =
        if target == Encryption::Plain && source.key.is_none() { 0 } else { request.world.settings.copy_delay_ms };
    later(request.world, &world_account, region, delay, change);
    let ids = [id];
    request.remember_made(&ids);
    Ok(reply(request, &ids))
}

fn reply(request: &Request<'_>, ids: &[String]) -> String {
    let mut xml = Xml::new();
    let volume = ids.first().and_then(|id| request.ec2().and_then(|ec2| ec2.volumes.get(id)));
    if let Some(volume) = volume {
        write(&mut xml, volume);
    }
    xml.finish()
}

/// The caller's volume named by parameter `VolumeId`, the caller being allowed to
/// do the called action on it.
fn own_volume(request: &mut Request<'_>) -> Result<Volume, ApiError> {
    let id = request.params.require("VolumeId")?;
    let arn = account_arn(request.region, &request.caller.account, "volume", id);
    request.world.note_resource(arn.clone());
    let volume = request.ec2().and_then(|ec2| ec2.volumes.get(id)).cloned();
    let context = volume.as_ref().map(|volume| tags::resource_context(&volume.tags)).unwrap_or_default();
    request.authorize(&arn, &context)?;
    volume.ok_or_else(|| not_found(id))
}

/// Whether the caller may do the called action on the instance, too.
fn authorize_instance(request: &mut Request<'_>, id: &str) -> Result<(), ApiError> {
    let arn = account_arn(request.region, &request.caller.account, "instance", id);
    request.world.note_resource(arn.clone());
    let context = request
        .ec2()
        .and_then(|ec2| ec2.instances.get(id))
        .map(|instance| tags::resource_context(&instance.tags))
        .unwrap_or_default();
    request.authorize(&arn, &context)
}

pub(super) fn delete(request: &mut Request<'_>) -> Reply {
    let volume = own_volume(request)?;
    request.end_dry_run()?;
    if let Some(attachment) = &volume.attachment {
        return Err(ApiError::bad_request(
            "VolumeInUse",
            format!("Volume {} is currently attached to {}", volume.id, attachment.instance_id),
        ));
    }
    request.ec2_mut().volumes.remove(&volume.id);
    request.world.note_change();
    Ok(returns_true())
}

pub(super) fn attach(request: &mut Request<'_>) -> Reply {
    let volume = own_volume(request)?;
    let instance_id = request.params.require("InstanceId")?;
    authorize_instance(request, instance_id)?;
    let device = request.params.require("Device")?.to_owned();
    let empty = Ec2::default();
    let ec2 = request.ec2().unwrap_or(&empty);
    let instance_state = ec2
        .instances
        .get(instance_id)
        .map(|instance| instance.state)
        .ok_or_else(|| super::instances::not_found(instance_id))?;
    if volume.state != VolumeState::Available {
        return Err(ApiError::bad_request("IncorrectState", format!("volume '{}' is not 'available'", volume.id)));
    }
    if !matches!(instance_state, InstanceState::Running | InstanceState::Stopped) {
        return Err(ApiError::bad_request(
            "IncorrectState",
            format!("Instance '{instance_id}' is not 'running' or 'stopped'."),
        ));
    }
    let device_taken = ec2.volumes.values().any(|other| {
        other
            .attachment
            .as_ref()
            .is_some_and(|attachment| attachment.instance_id == instance_id && attachment.device == device)
    });
    if device_taken {
        return Err(ApiError::bad_request(
            "InvalidParameterValue",
            format!("Invalid value '{device}' for unixDevice. Attachment point {device} is already in use"),
        ));
    }
    request.end_dry_run()?;

    // A stopped instance's volumes are unlocked when it starts.
    let usable = match (&volume.key, instance_state) {
        (Some(key), InstanceState::Running) => {
            encryption::check_volume(request.world, request.caller, request.region, key, &volume.id)
        }
        _ => Ok(()),
    };
    let attachment = Attachment {
        instance_id: instance_id.to_owned(),
        device,
        state: AttachmentState::Attaching,
        delete_on_termination: false,
        since: request.world.timestamp(),
    };
    if let Some(volume) = request.ec2_mut().volumes.get_mut(&volume.id) {
        volume.state = VolumeState::InUse;
        volume.attachment = Some(attachment.clone());
    }
    request.world.note_change();
    let change = match usable {
        Ok(()) => Change::VolumeAttaches(volume.id.clone()),
        Err(_) => Change::VolumeDetaches(volume.id.clone()),
    };
    let delay = request.world.settings.launch_delay_ms;
    later(request.world, &request.caller.account, request.region, delay, change);
    let mut xml = Xml::new();
    write_attachment(&mut xml, &volume.id, &attachment);
    Ok(xml.finish())
}

pub(super) fn detach(request: &mut Request<'_>) -> Reply {
    let volume = own_volume(request)?;
    let attachment = volume.attachment.clone().ok_or_else(|| {
        ApiError::bad_request("IncorrectState", format!("Volume '{}' is in the 'available' state.", volume.id))
    })?;
    authorize_instance(request, &attachment.instance_id)?;
    if request.params.get("InstanceId").is_some_and(|id| id != attachment.instance_id) {
        return Err(ApiError::bad_request(
            "InvalidAttachment.NotFound",
            format!("Volume '{}' is not attached to the given instance", volume.id),
        ));
    }
    let is_running_root =
        request.ec2().and_then(|ec2| ec2.instances.get(&attachment.instance_id)).is_some_and(|instance| {
            instance.state == InstanceState::Running && instance.root_device_name.as_ref() == Some(&attachment.device)
        });
    if is_running_root {
        return Err(ApiError::bad_request(
            "OperationNotPermitted",
            format!("Unable to detach root volume '{}' from instance '{}'", attachment.device, attachment.instance_id),
        ));
    }
    request.end_dry_run()?;

    let attachment = Attachment { state: AttachmentState::Detaching, ..attachment };
    if let Some(volume) = request.ec2_mut().volumes.get_mut(&volume.id) {
        volume.attachment = Some(attachment.clone());
    }
    request.world.note_change();
    let delay = request.world.settings.launch_delay_ms;
    later(request.world, &request.caller.account, request.region, delay, Change::VolumeDetaches(volume.id.clone()));
    let mut xml = Xml::new();
    write_attachment(&mut xml, &volume.id, &attachment);
    Ok(xml.finish())
}

/// Filters of DescribeVolumes, besides those about tags.
const FILTERS: [&str; 11] = [
    "attachment.delete-on-termination",
    "attachment.device",
    "attachment.instance-id",
    "attachment.status",
    "availability-zone",
    "encrypted",
    "size",
    "snapshot-id",
    "status",
    "volume-id",
    "volume-type",
];

fn filter_values(volume: &Volume, filter: &str) -> Vec<String> {
    let attachment = volume.attachment.as_ref();
    let value = match filter {
        "attachment.delete-on-termination" => attachment.map(|attachment| attachment.delete_on_termination.to_string()),
        "attachment.device" => attachment.map(|attachment| attachment.device.clone()),
        "attachment.instance-id" => attachment.map(|attachment| attachment.instance_id.clone()),
        "attachment.status" => attachment.map(|attachment| attachment.state.as_str().to_owned()),
        "availability-zone" => Some(volume.availability_zone.clone()),
        "encrypted" => Some(volume.key.is_some().to_string()),
        "size" => Some(volume.size.to_string()),
        "snapshot-id" => volume.snapshot_id.clone(),
        "status" => Some(volume.state.as_str().to_owned()),
        "volume-id" => Some(volume.id.clone()),
        "volume-type" => Some(volume.volume_type.clone()),
        _ => None,
    };
    value.into_iter().collect()
}

pub(super) fn describe(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    let filters = Filters::parse(request.params, &FILTERS)?;
    request.end_dry_run()?;

    let ids = request.params.list("VolumeId");
    let empty = Ec2::default();
    let ec2 = request.ec2().unwrap_or(&empty);
    let candidates: Vec<&Volume> = if ids.is_empty() {
        ec2.volumes.values().collect()
    } else {
        ids.iter().map(|id| ec2.volumes.get(id).ok_or_else(|| not_found(id))).collect::<Result<_, _>>()?
    };
    let found: Vec<&Volume> = candidates
        .into_iter()
        .filter(|volume| filters.match_item(&volume.tags, |filter| filter_values(volume, filter)))
        .collect();
    let ids_given = (!ids.is_empty()).then_some("volumeSet");
    let (found, next_token) = page(request.params, found, ids_given)?;
    let mut xml = Xml::new();
    xml.items("volumeSet", found, write);
    xml.opt("nextToken", next_token);
    for id in ids {
        let arn = account_arn(request.region, &request.caller.account, "volume", &id);
        request.world.note_resource(arn);
    }
    Ok(xml.finish())
}

fn write(xml: &mut Xml, volume: &Volume) {
    xml.elem("volumeId", &volume.id)
        .elem("size", volume.size)
        .elem("snapshotId", volume.snapshot_id.as_deref().unwrap_or_default())
        .elem("availabilityZone", &volume.availability_zone)
        .elem("status", volume.state.as_str())
        .elem("createTime", &volume.created)
        .elem("volumeType", &volume.volume_type)
        .elem("encrypted", volume.key.is_some())
        .opt("kmsKeyId", volume.key.as_ref())
        .elem("multiAttachEnabled", false);
    xml.items("attachmentSet", &volume.attachment, |xml, attachment| {
        write_attachment(xml, &volume.id, attachment);
    });
    tags::write(xml, &volume.tags);
}

fn write_attachment(xml: &mut Xml, volume_id: &str, attachment: &Attachment) {
    xml.elem("volumeId", volume_id)
        .elem("instanceId", &attachment.instance_id)
        .elem("device", &attachment.device)
        .elem("status", attachment.state.as_str())
        .elem("attachTime", &attachment.since)
        .elem("deleteOnTermination", attachment.delete_on_termination);
}
