//! Instances: launching them, with everything that a launch from an encrypted
//! image needs, and their later life.

use super::catalog::{self, Subnet};
use super::encryption::{self, Encryption, KeyFault, Source, Wish};
use super::filters::{Filters, page};
use super::images::{self, EbsDevice, Image, ImageState};
use super::schedule::{Change, later};
use super::tags::{self, Tags};
use super::volumes::{self, Attachment, AttachmentState, Volume, VolumeState};
use super::{Ec2, Request, StateReason, account_arn, context, is_id, shared_arn, snapshots};
use crate::auth::Context;
use crate::faults;
use crate::wire::{ApiError, Params, Reply, Xml};
use std::collections::BTreeMap;

/// State of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    Pending,
    Running,
    ShuttingDown,
    Terminated,
    Stopping,
    Stopped,
}

impl InstanceState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::ShuttingDown => "shutting-down",
            Self::Terminated => "terminated",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    fn code(self) -> u16 {
        match self {
            Self::Pending => 0,
            Self::Running => 16,
            Self::ShuttingDown => 32,
            Self::Terminated => 48,
            Self::Stopping => 64,
            Self::Stopped => 80,
        }
    }

    /// Whether it is terminated or about to be.
    pub fn is_over(self) -> bool {
        matches!(self, Self::ShuttingDown | Self::Terminated)
    }

    fn write(self, xml: &mut Xml, name: &str) {
        xml.nest(name, |xml| {
            xml.elem("code", self.code()).elem("name", self.as_str());
        });
    }
}

/// An instance.
#[derive(Debug, Clone)]
pub struct Instance {
    pub id: String,
    pub reservation_id: String,
    /// Position in its launch.
    pub index: usize,
    pub image_id: String,
    pub instance_type: String,
    pub architecture: String,
    pub state: InstanceState,
    pub state_reason: Option<StateReason>,
    /// `StateTransitionReason`
    pub transition_reason: String,
    pub root_device_name: Option<String>,
    pub ebs_backed: bool,
    pub product_codes: Vec<String>,
    pub key_name: Option<String>,
    pub client_token: Option<String>,
    pub subnet_id: String,
    pub vpc_id: String,
    pub availability_zone: String,
    pub security_groups: Vec<String>,
    /// What the launch asked for.
    pub public_address: Option<bool>,
    /// `optional` or `required`
    pub metadata_tokens: String,
    pub private_ip: String,
    pub tags: Tags,
    pub launched: String,
}

/// Canonical picture for comparing states.
pub(super) fn picture(instance: &Instance) -> serde_json::Value {
    serde_json::json!({
        "image": instance.image_id,
        "state": instance.state.as_str(),
        "tags": instance.tags,
    })
}

/// Whether the volume is about to be deleted with the instance it is attached to.
pub(super) fn goes_down_with_its_instance(ec2: &Ec2, volume: &Volume) -> bool {
    volume.attachment.as_ref().is_some_and(|attachment| {
        attachment.delete_on_termination
            && ec2.instances.get(&attachment.instance_id).is_some_and(|instance| instance.state.is_over())
    })
}

/// Deletes the DeleteOnTermination volumes of an instance and detaches the others.
pub(super) fn release_volumes(ec2: &mut Ec2, instance_id: &str) {
    let is_attached = |volume: &Volume| {
        volume
            .attachment
            .as_ref()
            .filter(|attachment| attachment.instance_id == instance_id)
            .map(|attachment| attachment.delete_on_termination)
    };
    ec2.volumes.retain(|_, volume| is_attached(volume) != Some(true));
    for volume in ec2.volumes.values_mut() {
        if is_attached(volume).is_some() {
            volume.attachment = None;
            volume.state = VolumeState::Available;
        }
    }
}

pub(super) fn not_found(id: &str) -> ApiError {
    if is_id(id, "i") {
        ApiError::bad_request("InvalidInstanceID.NotFound", format!("The instance ID '{id}' does not exist"))
    } else {
        ApiError::bad_request("InvalidInstanceID.Malformed", format!("Invalid id: \"{id}\""))
    }
}

/// One EBS volume that a launch makes.
#[derive(Debug, Clone)]
struct PlannedVolume {
    device: String,
    ebs: EbsDevice,
    wish: Wish,
}

/// The volumes of a launch: the image's devices, changed by the call's mappings.
fn plan_volumes(request: &Request<'_>, image: &Image) -> Result<Vec<PlannedVolume>, ApiError> {
    let mut overrides: BTreeMap<String, Params> = BTreeMap::new();
    for mapping in request.params.structs("BlockDeviceMapping") {
        let name = mapping.require("DeviceName")?.to_owned();
        overrides.insert(name, mapping);
    }
    let mut planned = Vec::new();
    for device in &image.devices {
        match overrides.remove(&device.name) {
            None => planned.extend(plan_volume(request, &device.name, device.ebs(), None)?),
            Some(mapping) => {
                planned.extend(plan_volume(request, &device.name, device.ebs(), Some(&mapping))?);
            }
        }
    }
    for (name, mapping) in &overrides {
        planned.extend(plan_volume(request, name, None, Some(mapping))?);
    }
    Ok(planned)
}

/// The volume at one device name, if there is to be one.
fn plan_volume(
    request: &Request<'_>,
    device: &str,
    of_image: Option<&EbsDevice>,
    mapping: Option<&Params>,
) -> Result<Option<PlannedVolume>, ApiError> {
    let Some(mapping) = mapping else {
        return Ok(of_image.map(|ebs| PlannedVolume {
            device: device.to_owned(),
            ebs: ebs.clone(),
            wish: Wish {
                // Only a device without a snapshot carries its own wish.
                encrypted: (ebs.snapshot_id.is_none() && ebs.encrypted).then_some(true),
                kms_key_id: None,
            },
        }));
    };
    if mapping.get("NoDevice").is_some() || mapping.get("VirtualName").is_some() {
        return Ok(None);
    }
    let given = mapping.sub("Ebs");
    let wish = Wish::parse(&given)?;
    let given_snapshot = given.get("SnapshotId");
    let mut ebs = match (of_image, given_snapshot) {
        (Some(ebs), None) => ebs.clone(),
        (Some(ebs), Some(id)) if ebs.snapshot_id.as_deref() == Some(id) => ebs.clone(),
        (_, Some(id)) => {
            let account = &request.caller.account;
            let snapshot = snapshots::visible(request.world, account, request.region, id)
                .ok_or_else(|| snapshots::not_found(id))?;
            EbsDevice {
                snapshot_id: Some(id.to_owned()),
                encrypted: snapshot.key.is_some(),
                size: snapshot.size,
                volume_type: "gp2".to_owned(),
                delete_on_termination: true,
            }
        }
        (None, None) => {
            EbsDevice { volume_type: "gp2".to_owned(), delete_on_termination: true, ..EbsDevice::default() }
        }
    };
    if let Some(size) = given.int("VolumeSize").and_then(|size| size.try_into().ok()) {
        ebs.size = size;
    }
    if ebs.size == 0 {
        return Err(ApiError::bad_request(
            "MissingParameter",
            "The request must contain the parameter size or snapshotId",
        ));
    }
    if ebs.snapshot_id.is_some() && ebs.encrypted && wish.encrypted == Some(false) {
        return Err(ApiError::bad_request(
            "InvalidBlockDeviceMapping",
            format!("Device {device} has an encrypted snapshot: its volume cannot be unencrypted"),
        ));
    }
    if let Some(volume_type) = given.get("VolumeType") {
        volume_type.clone_into(&mut ebs.volume_type);
    }
    if let Some(delete) = given.bool("DeleteOnTermination") {
        ebs.delete_on_termination = delete;
    }
    Ok(Some(PlannedVolume { device: device.to_owned(), ebs, wish }))
}

/// Parameters of a launch, checked.
struct Launch {
    instance_type: String,
    count: usize,
    subnet: Subnet,
    security_groups: Vec<String>,
    /// Nothing where the call does not say it: then there is no such condition key.
    public_address: Option<bool>,
    /// `optional` or `required`
    metadata_tokens: String,
    tags: BTreeMap<String, Tags>,
}

fn parse_launch(request: &Request<'_>) -> Result<Launch, ApiError> {
    let params = request.params;
    let instance_type = params.get("InstanceType").unwrap_or("m1.small").to_owned();
    if catalog::architecture_of(&instance_type).is_none() {
        return Err(ApiError::bad_request(
            "InvalidParameterValue",
            format!("Invalid value '{instance_type}' for InstanceType."),
        ));
    }
    let (min, max) = (params.int("MinCount"), params.int("MaxCount"));
    let count = match (min, max) {
        (Some(min), Some(max)) if 1 <= min && min <= max => usize::try_from(max).unwrap_or(1),
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request(
                "InvalidParameterValue",
                "MinCount must be at least 1 and at most MaxCount",
            ));
        }
        _ => {
            return Err(ApiError::bad_request(
                "MissingParameter",
                "The request must contain the parameter MinCount and MaxCount",
            ));
        }
    };
    let account = &request.caller.account;
    let network = params.structs("NetworkInterface").into_iter().next();
    if network.is_some() && (params.get("SubnetId").is_some() || !params.list("SecurityGroupId").is_empty()) {
        return Err(ApiError::bad_request(
            "InvalidParameterCombination",
            "Network interfaces and an instance-level subnet ID or security groups may not be specified on the same request",
        ));
    }
    let network = network.unwrap_or_default();
    let subnet_id = params.get("SubnetId").or_else(|| network.get("SubnetId"));
    let mut security_groups = params.list("SecurityGroupId");
    security_groups.extend(network.list("SecurityGroupId"));
    if security_groups.is_empty() {
        security_groups.push(catalog::default_security_group(account));
    }
    Ok(Launch {
        instance_type,
        count,
        subnet: catalog::subnet(account, request.region, subnet_id)?,
        security_groups,
        public_address: network.bool("AssociatePublicIpAddress"),
        metadata_tokens: params.sub("MetadataOptions").get("HttpTokens").unwrap_or("optional").to_owned(),
        tags: tags::specifications(params, &["instance", "volume", "network-interface"])?,
    })
}

/// Authorises a launch on every resource that AWS asks about.
fn authorize_launch(
    request: &mut Request<'_>,
    image_id: &str,
    image: Option<&Image>,
    volumes: &[PlannedVolume],
    launch: &Launch,
) -> Result<(), ApiError> {
    let (account, region) = (request.caller.account.as_str(), request.region);
    let arn = |kind: &str, id: &str| account_arn(region, account, kind, id);
    let subnet_arn = arn("subnet", &launch.subnet.id);
    let vpc_arn = arn("vpc", &launch.subnet.vpc_id);
    let place =
        || context([("ec2:AvailabilityZone", launch.subnet.availability_zone.clone()), ("ec2:Vpc", vpc_arn.clone())]);

    let image_context =
        image.map(|image| image.context(&images::tags_seen(request.ec2(), account, image))).unwrap_or_default();
    request.authorize(&shared_arn(region, "image", image_id), &image_context)?;

    let mut instance_context = place();
    instance_context.extend(context([
        ("ec2:InstanceType", launch.instance_type.clone()),
        ("ec2:Tenancy", "default".to_owned()),
        ("ec2:EbsOptimized", "false".to_owned()),
        ("ec2:MetadataHttpTokens", launch.metadata_tokens.clone()),
    ]));
    if let Some(image) = image {
        instance_context.insert("ec2:RootDeviceType".to_owned(), vec![image.root_device_type().to_owned()]);
    }
    if let Some(tags) = launch.tags.get("instance") {
        tags::add_request_context(&mut instance_context, tags);
    }
    request.authorize(&arn("instance", "*"), &instance_context)?;

    for volume in volumes {
        let snapshot_id = volume.ebs.snapshot_id.as_deref();
        let mut volume_context = volumes::creation_context(
            region,
            volume.ebs.size,
            &volume.ebs.volume_type,
            snapshot_id,
            &volume.wish,
            volume.ebs.encrypted || volume.wish.encrypted == Some(true),
            launch.tags.get("volume"),
        );
        volume_context.extend(place());
        request.authorize(&arn("volume", "*"), &volume_context)?;
        if let Some(id) = snapshot_id {
            let owner = image.map_or(account, |image| image.owner.as_str());
            let snapshot = snapshots::any(request.world, owner, region, id);
            let snapshot_context = snapshot
                .map(|snapshot| snapshot.context(&snapshots::tags_seen(request.ec2(), account, snapshot)))
                .unwrap_or_default();
            request.authorize(&shared_arn(region, "snapshot", id), &snapshot_context)?;
        }
    }

    let mut interface_context = place();
    interface_context.insert("ec2:Subnet".to_owned(), vec![subnet_arn.clone()]);
    if let Some(public) = launch.public_address {
        interface_context.insert("ec2:AssociatePublicIpAddress".to_owned(), vec![public.to_string()]);
    }
    request.authorize(&arn("network-interface", "*"), &interface_context)?;
    let with_id = |key: &str, id: &str| {
        let mut context = place();
        context.insert(key.to_owned(), vec![id.to_owned()]);
        context
    };
    request.authorize(&subnet_arn, &with_id("ec2:SubnetID", &launch.subnet.id))?;
    for group in &launch.security_groups {
        request.authorize(&arn("security-group", group), &with_id("ec2:SecurityGroupID", group))?;
    }
    if let Some(key_name) = request.params.get("KeyName") {
        request.authorize(&arn("key-pair", key_name), &Context::new())?;
    }
    for (kind, tags) in &launch.tags {
        tags::authorize_on_create(request, &arn(kind, "*"), Some(tags))?;
    }
    Ok(())
}

pub(super) fn run(request: &mut Request<'_>) -> Reply {
    let image_id = request.params.require("ImageId")?;
    let (account, region) = (request.caller.account.clone(), request.region);
    request.world.note_resource(shared_arn(region, "image", image_id));
    let launch = parse_launch(request)?;
    let image = images::visible(request.world, &account, region, image_id).cloned();
    let planned = match &image {
        Some(image) => plan_volumes(request, image)?,
        None => Vec::new(),
    };
    // EC2 knows whose image it is, whoever may use it.
    let known = image.clone().or_else(|| images::any(request.world, region, image_id).cloned());
    authorize_launch(request, image_id, known.as_ref(), &planned, &launch)?;
    if let Some(ids) = request.made_before()? {
        return repeated(request, &ids);
    }
    let image = image.ok_or_else(|| images::hidden(request.world, region, image_id))?;
    check_image(&image, &launch.instance_type)?;
    request.end_dry_run()?;

    let failure = faults::take_failure(request.world, request.caller, "ec2:RunInstances");
    let reservation_id = request.world.next_id("r");
    let mut ids = Vec::new();
    for index in 0..launch.count {
        let instance = new_instance(request, &image, &launch, &reservation_id, index);
        let id = instance.id.clone();
        request.ec2_mut().instances.insert(id.clone(), instance);
        request.world.note_resource(account_arn(region, &account, "instance", &id));
        let mut death = failure.as_deref().map(named_reason);
        for volume in &planned {
            let tags = launch.tags.get("volume").cloned().unwrap_or_default();
            if let Err(reason) = make_volume(request, &image, &id, &launch.subnet, volume, tags) {
                death = death.or(Some(reason));
            }
        }
        let change = match death {
            None => Change::InstanceRuns(id.clone()),
            Some(reason) => Change::InstanceDies(id.clone(), reason),
        };
        let delay = request.world.settings.launch_delay_ms;
        later(request.world, &account, region, delay, change);
        ids.push(id);
    }
    request.world.note_change();
    request.remember_made(&ids);
    Ok(launch_reply(request, &ids))
}

/// Refuses images that cannot be launched, or not on that instance type.
fn check_image(image: &Image, instance_type: &str) -> Result<(), ApiError> {
    if image.state != ImageState::Available {
        return Err(images::unavailable(&image.id));
    }
    let of_type = catalog::architecture_of(instance_type).unwrap_or("x86_64");
    let of_image = image.architecture.as_str();
    if (of_type == "arm64") != of_image.starts_with("arm64") {
        return Err(ApiError::bad_request(
            "InvalidParameterValue",
            format!(
                "The architecture '{of_type}' of the specified instance type does not match the \
                 architecture '{of_image}' of the specified AMI. Specify an instance type and an \
                 AMI that have matching architectures, and try again. You can use \
                 'describe-instance-types' or 'describe-images' to discover the architecture of \
                 the instance type or AMI."
            ),
        ));
    }
    Ok(())
}

/// The answer to a launch that was made before with the same client token.
fn repeated(request: &mut Request<'_>, ids: &[String]) -> Reply {
    let over = request
        .ec2()
        .is_none_or(|ec2| ids.iter().any(|id| ec2.instances.get(id).is_none_or(|instance| instance.state.is_over())));
    if over {
        return Err(ApiError::bad_request(
            "IdempotentInstanceTerminated",
            "The client token you have provided is associated with resources that are already \
             terminated.",
        ));
    }
    request.end_dry_run()?;
    Ok(launch_reply(request, ids))
}

fn new_instance(
    request: &mut Request<'_>,
    image: &Image,
    launch: &Launch,
    reservation_id: &str,
    index: usize,
) -> Instance {
    let serial = request.world.next_number();
    Instance {
        id: request.world.next_id("i"),
        reservation_id: reservation_id.to_owned(),
        index,
        image_id: image.id.clone(),
        instance_type: launch.instance_type.clone(),
        architecture: image.architecture.clone(),
        state: InstanceState::Pending,
        state_reason: None,
        transition_reason: String::new(),
        root_device_name: image.root_device_name.clone(),
        ebs_backed: image.ebs_backed,
        product_codes: image.product_codes.clone(),
        key_name: request.params.get("KeyName").map(String::from),
        client_token: request.params.get("ClientToken").map(String::from),
        subnet_id: launch.subnet.id.clone(),
        vpc_id: launch.subnet.vpc_id.clone(),
        availability_zone: launch.subnet.availability_zone.clone(),
        security_groups: launch.security_groups.clone(),
        public_address: launch.public_address,
        metadata_tokens: launch.metadata_tokens.clone(),
        private_ip: format!("172.31.{}.{}", (serial >> 8) & 15, 4 + (serial & 0x7f)),
        tags: launch.tags.get("instance").cloned().unwrap_or_default(),
        launched: request.world.timestamp(),
    }
}

/// Makes one volume of a launch. The error is what the instance dies of.
fn make_volume(
    request: &mut Request<'_>,
    image: &Image,
    instance_id: &str,
    subnet: &Subnet,
    planned: &PlannedVolume,
    tags: Tags,
) -> Result<(), StateReason> {
    let (account, region) = (request.caller.account.clone(), request.region);
    let source = match &planned.ebs.snapshot_id {
        None => Source::default(),
        // A launch takes no permission on the snapshot.
        Some(id) => match snapshots::any(request.world, &image.owner, region, id) {
            None => return Err(named_reason("Client.InvalidSnapshot.NotFound")),
            Some(snapshot) => {
                Source { key: snapshot.key.clone(), foreign: snapshot.owner != account, other_region: None }
            }
        },
    };
    let id = request.world.next_id("vol");
    let target: Encryption = encryption::decide(request.world, request.caller, region, &planned.wish, &source);
    let usable = encryption::check_conversion(request.world, request.caller, region, &source, &target, &id);
    let since = request.world.timestamp();
    let volume = Volume {
        id: id.clone(),
        size: planned.ebs.size,
        volume_type: planned.ebs.volume_type.clone(),
        availability_zone: subnet.availability_zone.clone(),
        snapshot_id: planned.ebs.snapshot_id.clone(),
        key: target.key().map(String::from),
        state: VolumeState::InUse,
        attachment: Some(Attachment {
            instance_id: instance_id.to_owned(),
            device: planned.device.clone(),
            state: AttachmentState::Attaching,
            delete_on_termination: planned.ebs.delete_on_termination,
            since: since.clone(),
        }),
        tags,
        created: since,
    };
    request.ec2_mut().volumes.insert(id, volume);
    usable.map_err(key_reason)
}

/// As little as AWS says.
fn key_reason(fault: KeyFault) -> StateReason {
    named_reason(match fault {
        KeyFault::NotAccessible => "Client.InternalError",
        KeyFault::WrongState => "Client.InvalidKMSKey.InvalidState",
    })
}

/// The state reason of that code, with AWS's message where it is known.
fn named_reason(code: &str) -> StateReason {
    let text = match code {
        "Client.InternalError" => "Client error on launch",
        "Client.InvalidKMSKey.InvalidState" => "The KMS key provided is in an incorrect state",
        "Client.InvalidSnapshot.NotFound" => "The specified snapshot was not found",
        "Client.UserInitiatedShutdown" => "User initiated shutdown",
        "Client.VolumeLimitExceeded" => "Volume limit exceeded",
        "Server.InsufficientInstanceCapacity" => {
            "There was insufficient instance capacity to satisfy the launch request"
        }
        "Server.InternalError" => "Internal error on launch",
        other => {
            return StateReason { code: other.to_owned(), message: other.to_owned() };
        }
    };
    StateReason { code: code.to_owned(), message: format!("{code}: {text}") }
}

fn launch_reply(request: &Request<'_>, ids: &[String]) -> String {
    let empty = Ec2::default();
    let ec2 = request.ec2().unwrap_or(&empty);
    let instances: Vec<&Instance> = ids.iter().filter_map(|id| ec2.instances.get(id)).collect();
    let mut xml = Xml::new();
    write_reservation(&mut xml, &request.caller.account, ec2, &instances);
    xml.finish()
}

/// Filters of DescribeInstances, besides those about tags.
const FILTERS: [&str; 11] = [
    "availability-zone",
    "block-device-mapping.volume-id",
    "client-token",
    "image-id",
    "instance-id",
    "instance-state-code",
    "instance-state-name",
    "instance-type",
    "reservation-id",
    "state-reason-code",
    "subnet-id",
];

fn filter_values(ec2: &Ec2, instance: &Instance, filter: &str) -> Vec<String> {
    let value = match filter {
        "availability-zone" => Some(instance.availability_zone.clone()),
        "block-device-mapping.volume-id" => {
            return attached(ec2, &instance.id).map(|(volume, _)| volume.id.clone()).collect();
        }
        "client-token" => instance.client_token.clone(),
        "image-id" => Some(instance.image_id.clone()),
        "instance-id" => Some(instance.id.clone()),
        "instance-state-code" => Some(instance.state.code().to_string()),
        "instance-state-name" => Some(instance.state.as_str().to_owned()),
        "instance-type" => Some(instance.instance_type.clone()),
        "reservation-id" => Some(instance.reservation_id.clone()),
        "state-reason-code" => instance.state_reason.as_ref().map(|reason| reason.code.clone()),
        "subnet-id" => Some(instance.subnet_id.clone()),
        _ => None,
    };
    value.into_iter().collect()
}

pub(super) fn describe(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    let filters = Filters::parse(request.params, &FILTERS)?;
    request.end_dry_run()?;

    let ids = request.params.list("InstanceId");
    let empty = Ec2::default();
    let ec2 = request.ec2().unwrap_or(&empty);
    let candidates: Vec<&Instance> = if ids.is_empty() {
        ec2.instances.values().collect()
    } else {
        ids.iter().map(|id| ec2.instances.get(id).ok_or_else(|| not_found(id))).collect::<Result<_, _>>()?
    };
    let mut reservations: BTreeMap<&str, Vec<&Instance>> = BTreeMap::new();
    for instance in candidates {
        let matches = filters.match_item(&instance.tags, |filter| filter_values(ec2, instance, filter));
        if matches {
            reservations.entry(&instance.reservation_id).or_default().push(instance);
        }
    }
    let ids_given = (!ids.is_empty()).then_some("instancesSet");
    let (found, next_token) = page(request.params, reservations.into_values().collect(), ids_given)?;
    let mut xml = Xml::new();
    xml.items("reservationSet", found, |xml, mut instances| {
        instances.sort_by_key(|instance| instance.index);
        write_reservation(xml, &request.caller.account, ec2, &instances);
    });
    xml.opt("nextToken", next_token);
    for id in ids {
        let arn = account_arn(request.region, &request.caller.account, "instance", &id);
        request.world.note_resource(arn);
    }
    Ok(xml.finish())
}

/// The volumes attached to an instance.
fn attached<'e>(ec2: &'e Ec2, instance_id: &'e str) -> impl Iterator<Item = (&'e Volume, &'e Attachment)> {
    ec2.volumes.values().filter_map(move |volume| {
        let attachment = volume.attachment.as_ref()?;
        (attachment.instance_id == instance_id).then_some((volume, attachment))
    })
}

fn write_reservation(xml: &mut Xml, account: &str, ec2: &Ec2, instances: &[&Instance]) {
    if let Some(first) = instances.first() {
        xml.elem("reservationId", &first.reservation_id);
    }
    xml.elem("ownerId", account).items("groupSet", [(); 0], |_, ()| {}).items(
        "instancesSet",
        instances,
        |xml, instance| {
            write(xml, ec2, instance);
        },
    );
}

fn write(xml: &mut Xml, ec2: &Ec2, instance: &Instance) {
    xml.elem("instanceId", &instance.id).elem("imageId", &instance.image_id);
    instance.state.write(xml, "instanceState");
    xml.elem("privateDnsName", "")
        .elem("dnsName", "")
        .elem("reason", &instance.transition_reason)
        .opt("keyName", instance.key_name.as_ref())
        .elem("amiLaunchIndex", instance.index)
        .elem("instanceType", &instance.instance_type)
        .elem("launchTime", &instance.launched)
        .elem("architecture", &instance.architecture)
        .elem("virtualizationType", "hvm")
        .elem("hypervisor", "xen")
        .elem("rootDeviceType", if instance.ebs_backed { "ebs" } else { "instance-store" })
        .opt("rootDeviceName", instance.root_device_name.as_ref())
        .opt("clientToken", instance.client_token.as_ref())
        .elem("ebsOptimized", false);
    xml.nest("placement", |xml| {
        xml.elem("availabilityZone", &instance.availability_zone).elem("tenancy", "default");
    });
    xml.nest("monitoring", |xml| {
        xml.elem("state", "disabled");
    });
    if !instance.state.is_over() {
        xml.elem("subnetId", &instance.subnet_id)
            .elem("vpcId", &instance.vpc_id)
            .elem("privateIpAddress", &instance.private_ip);
        xml.items("groupSet", &instance.security_groups, |xml, group| {
            xml.elem("groupId", group);
        });
    }
    images::write_state_reason(xml, instance.state_reason.as_ref());
    images::write_product_codes(xml, &instance.product_codes);
    let mut mappings: Vec<_> = attached(ec2, &instance.id).collect();
    mappings.sort_by(|(_, one), (_, other)| one.device.cmp(&other.device));
    xml.items("blockDeviceMapping", mappings, |xml, (volume, attachment)| {
        xml.elem("deviceName", &attachment.device);
        xml.nest("ebs", |xml| {
            xml.elem("volumeId", &volume.id)
                .elem("status", attachment.state.as_str())
                .elem("attachTime", &attachment.since)
                .elem("deleteOnTermination", attachment.delete_on_termination);
        });
    });
    tags::write(xml, &instance.tags);
}

/// The caller's instances named by `InstanceId.N`, the caller being allowed to do
/// the called action on each.
fn own_instances(request: &mut Request<'_>) -> Result<Vec<Instance>, ApiError> {
    let ids = request.params.list("InstanceId");
    if ids.is_empty() {
        return Err(ApiError::bad_request("MissingParameter", "The request must contain the parameter instancesSet"));
    }
    let mut instances = Vec::new();
    for id in ids {
        let arn = account_arn(request.region, &request.caller.account, "instance", &id);
        request.world.note_resource(arn.clone());
        let instance = request.ec2().and_then(|ec2| ec2.instances.get(&id)).cloned();
        let context = instance
            .as_ref()
            .map(|instance| {
                let mut context = context([
                    ("ec2:InstanceType", instance.instance_type.clone()),
                    ("ec2:AvailabilityZone", instance.availability_zone.clone()),
                ]);
                tags::add_resource_context(&mut context, &instance.tags);
                context
            })
            .unwrap_or_default();
        request.authorize(&arn, &context)?;
        instances.push(instance.ok_or_else(|| not_found(&id))?);
    }
    request.end_dry_run()?;
    Ok(instances)
}

/// Moves an instance to another state; returns what `write_changes` shows.
fn move_to(
    request: &mut Request<'_>,
    instance: &Instance,
    state: InstanceState,
    reason: Option<StateReason>,
    transition_reason: String,
) -> (String, InstanceState, InstanceState) {
    if let Some(instance) = request.ec2_mut().instances.get_mut(&instance.id) {
        instance.state = state;
        instance.state_reason = reason;
        instance.transition_reason = transition_reason;
    }
    request.world.note_change();
    (instance.id.clone(), instance.state, state)
}

fn write_changes(changes: Vec<(String, InstanceState, InstanceState)>) -> String {
    let mut xml = Xml::new();
    xml.items("instancesSet", changes, |xml, (id, previous, current)| {
        xml.elem("instanceId", id);
        current.write(xml, "currentState");
        previous.write(xml, "previousState");
    });
    xml.finish()
}

/// `User initiated (2026-01-31 23:59:59 GMT)`
fn user_initiated(request: &Request<'_>) -> String {
    let time = request.world.timestamp().replace('T', " ");
    format!("User initiated ({} GMT)", time.trim_end_matches(".000Z"))
}

pub(super) fn terminate(request: &mut Request<'_>) -> Reply {
    let mut changes = Vec::new();
    for instance in own_instances(request)? {
        if instance.state.is_over() {
            changes.push((instance.id, instance.state, instance.state));
            continue;
        }
        let transition_reason = user_initiated(request);
        changes.push(move_to(
            request,
            &instance,
            InstanceState::ShuttingDown,
            Some(named_reason("Client.UserInitiatedShutdown")),
            transition_reason,
        ));
        change_later(request, Change::InstanceTerminates(instance.id));
    }
    Ok(write_changes(changes))
}

pub(super) fn stop(request: &mut Request<'_>) -> Reply {
    let instances = own_instances(request)?;
    for instance in &instances {
        if !matches!(instance.state, InstanceState::Running | InstanceState::Stopping | InstanceState::Stopped) {
            return Err(incorrect_state(instance));
        }
    }
    let mut changes = Vec::new();
    for instance in instances {
        if instance.state != InstanceState::Running {
            changes.push((instance.id, instance.state, instance.state));
            continue;
        }
        let reason = named_reason("Client.UserInitiatedShutdown");
        let transition_reason = user_initiated(request);
        changes.push(move_to(request, &instance, InstanceState::Stopping, Some(reason.clone()), transition_reason));
        change_later(request, Change::InstanceStops(instance.id, reason));
    }
    Ok(write_changes(changes))
}

pub(super) fn start(request: &mut Request<'_>) -> Reply {
    let instances = own_instances(request)?;
    for instance in &instances {
        match instance.state {
            InstanceState::Stopped => check_root(request, instance)?,
            InstanceState::Pending | InstanceState::Running => {}
            _ => return Err(incorrect_state(instance)),
        }
    }
    let mut changes = Vec::new();
    for instance in instances {
        if instance.state != InstanceState::Stopped {
            changes.push((instance.id, instance.state, instance.state));
            continue;
        }
        let volumes: Vec<(String, Option<String>)> = request
            .ec2()
            .into_iter()
            .flat_map(|ec2| attached(ec2, &instance.id))
            .map(|(volume, _)| (volume.id.clone(), volume.key.clone()))
            .collect();
        let mut fault = None;
        for (volume_id, key) in volumes {
            let Some(key) = key else { continue };
            let usable = encryption::check_volume(request.world, request.caller, request.region, &key, &volume_id);
            fault = fault.or(usable.err());
        }
        changes.push(move_to(request, &instance, InstanceState::Pending, None, String::new()));
        let change = match fault {
            None => Change::InstanceRuns(instance.id),
            Some(fault) => Change::InstanceStops(instance.id, key_reason(fault)),
        };
        change_later(request, change);
    }
    Ok(write_changes(changes))
}

fn change_later(request: &mut Request<'_>, change: Change) {
    let delay = request.world.settings.launch_delay_ms;
    later(request.world, &request.caller.account, request.region, delay, change);
}

fn incorrect_state(instance: &Instance) -> ApiError {
    ApiError::bad_request(
        "IncorrectInstanceState",
        format!("The instance '{}' is not in a state from which it can be started or stopped.", instance.id),
    )
}

/// An EBS-backed instance starts only with a volume at its root.
fn check_root(request: &Request<'_>, instance: &Instance) -> Result<(), ApiError> {
    let Some(root) = instance.root_device_name.as_ref().filter(|_| instance.ebs_backed) else {
        return Ok(());
    };
    let has_root = request
        .ec2()
        .into_iter()
        .flat_map(|ec2| attached(ec2, &instance.id))
        .any(|(_, attachment)| attachment.device == *root);
    if has_root {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "InvalidParameterValue",
        format!(
            "Invalid value '{}' for instanceId. Instance does not have a volume attached at root \
             ({root})",
            instance.id
        ),
    ))
}
