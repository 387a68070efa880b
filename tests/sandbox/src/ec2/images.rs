//! Images: registering, seeing, sharing and retiring them.

use super::encryption::Wish;
use super::filters::{Filters, page};
use super::public_access::PublicAccess;
use super::schedule::{Change, later};
use super::tags::{self, Tags};
use super::{
    Ec2, Request, SnapshotState, StateReason, account_arn, context, is_account_id, is_id, returns_true, shared_arn,
    snapshots,
};
use crate::auth::Context;
use crate::kms;
use crate::wire::{ApiError, Params, Reply, Xml};
use crate::world::{Account, PARTITION, World};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Launch-permission entities (accounts, organizations and units) of one image;
/// AWS's default quota.
const SHARING_QUOTA: usize = 1000;

/// Account ids in one ModifyImageAttribute call.
const ACCOUNTS_PER_CALL: usize = 10_000;

/// State of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageState {
    Pending,
    Available,
    Failed,
    Disabled,
}

impl ImageState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Available => "available",
            Self::Failed => "failed",
            Self::Disabled => "disabled",
        }
    }
}

/// Who may launch an image, besides its owner.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LaunchPermission {
    Account(String),
    /// The ARN of an organization.
    Organization(String),
    /// The ARN of an organizational unit.
    OrganizationalUnit(String),
    /// Group `all`: the image is public.
    Everyone,
}

impl LaunchPermission {
    fn covers(&self, viewer: &str, account: Option<&Account>) -> bool {
        let organization = account.and_then(|account| account.organization.as_ref());
        match self {
            Self::Account(id) => id == viewer,
            Self::Organization(arn) => organization.is_some_and(|own| own.organization_arn == *arn),
            Self::OrganizationalUnit(arn) => organization.is_some_and(|own| own.unit_arns.contains(arn)),
            Self::Everyone => true,
        }
    }

    /// The element that DescribeImageAttribute has for it, and its text.
    fn element(&self) -> (&'static str, &str) {
        match self {
            Self::Account(id) => ("userId", id),
            Self::Organization(arn) => ("organizationArn", arn),
            Self::OrganizationalUnit(arn) => ("organizationalUnitArn", arn),
            Self::Everyone => ("group", "all"),
        }
    }
}

/// An EBS volume of a block device mapping.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EbsDevice {
    /// `None` for a volume that starts empty.
    pub snapshot_id: Option<String>,
    pub encrypted: bool,
    /// GiB.
    pub size: u32,
    pub volume_type: String,
    pub delete_on_termination: bool,
}

/// What a device name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceKind {
    Ebs(EbsDevice),
    /// An instance store volume: `ephemeral0` and so on.
    Ephemeral(String),
    /// Suppresses the device.
    NoDevice,
}

/// One entry of an image's block device mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Such as `/dev/sda1`.
    pub name: String,
    pub kind: DeviceKind,
}

impl Device {
    /// The EBS volume, if it is one.
    pub fn ebs(&self) -> Option<&EbsDevice> {
        match &self.kind {
            DeviceKind::Ebs(ebs) => Some(ebs),
            DeviceKind::Ephemeral(_) | DeviceKind::NoDevice => None,
        }
    }
}

/// An AMI.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: String,
    pub name: String,
    pub description: String,
    pub owner: String,
    /// `ImageLocation`: a manifest in S3 for instance-store images.
    pub location: String,
    pub architecture: String,
    pub state: ImageState,
    pub state_reason: Option<StateReason>,
    pub root_device_name: Option<String>,
    /// Whether the root device is EBS; otherwise it is instance store.
    pub ebs_backed: bool,
    pub devices: Vec<Device>,
    pub permissions: BTreeSet<LaunchPermission>,
    /// Marketplace product codes.
    pub product_codes: Vec<String>,
    pub tags: Tags,
    pub created: String,
    /// Id and region of the image that it was copied from, or that its instance was launched from.
    pub source_image: Option<(String, String)>,
    /// The instance that CreateImage made it from.
    pub source_instance: Option<String>,
}

impl Image {
    /// The distinct snapshots, in the order of the devices.
    pub fn snapshot_ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = Vec::new();
        for device in &self.devices {
            if let Some(id) = device.ebs().and_then(|ebs| ebs.snapshot_id.as_deref())
                && !ids.contains(&id)
            {
                ids.push(id);
            }
        }
        ids
    }

    pub fn is_public(&self) -> bool {
        self.permissions.contains(&LaunchPermission::Everyone)
    }

    fn is_visible_to(&self, viewer: &str, account: Option<&Account>) -> bool {
        self.owner == viewer
            || (self.state == ImageState::Available
                && self.permissions.iter().any(|permission| permission.covers(viewer, account)))
    }

    /// What conditions can say about the image in any call.
    pub(super) fn context(&self, tags: &Tags) -> Context {
        let mut context = context([
            ("ec2:ImageID", self.id.clone()),
            ("ec2:ImageType", "machine".to_owned()),
            ("ec2:Owner", self.owner.clone()),
            ("ec2:Public", self.is_public().to_string()),
            ("ec2:RootDeviceType", self.root_device_type().to_owned()),
        ]);
        tags::add_resource_context(&mut context, tags);
        context
    }

    /// What conditions can say about it in CopyImage.
    pub(super) fn context_of_copies(&self) -> Context {
        context([("ec2:ImageID", self.id.clone()), ("ec2:Owner", self.owner.clone())])
    }

    pub(super) fn root_device_type(&self) -> &'static str {
        if self.ebs_backed { "ebs" } else { "instance-store" }
    }
}

/// Canonical picture for comparing states.
pub(super) fn picture(image: &Image) -> serde_json::Value {
    let permissions: Vec<_> = image.permissions.iter().map(|permission| permission.element().1).collect();
    serde_json::json!({
        "name": image.name,
        "state": image.state.as_str(),
        "launchPermissions": permissions,
        "snapshots": image.snapshot_ids(),
        "tags": image.tags,
    })
}

pub(super) fn not_found(id: &str) -> ApiError {
    if is_id(id, "ami") {
        ApiError::bad_request("InvalidAMIID.NotFound", format!("The image id '[{id}]' does not exist"))
    } else {
        ApiError::bad_request("InvalidAMIID.Malformed", format!("Invalid id: \"{id}\""))
    }
}

/// Why a caller that may not use the image cannot launch or copy it, or ask for it by its id.
///
/// That using an image without permission is an `AuthFailure` is documented ("Error codes for the Amazon EC2 API", EC2
/// developer guide). The message, its status 400 and that it comes instead of `InvalidAMIID.NotFound` are field reports
/// of RunInstances (hashicorp/terraform #5408, DataBiosphere/toil #3512, Orange-Cyberdefense/GOAD #304). DescribeImages
/// is assumed to answer the same; there is one report of an empty list (agentsea/surfkit #88).
pub(super) fn hidden(world: &World, region: &str, id: &str) -> ApiError {
    let mut regions = world.accounts.values().filter_map(|account| account.ec2.get(region));
    if regions.any(|ec2| ec2.images.contains_key(id)) {
        return ApiError::bad_request("AuthFailure", format!("Not authorized for images: [{id}]"));
    }
    not_found(id)
}

pub(super) fn unavailable(id: &str) -> ApiError {
    ApiError::bad_request("InvalidAMIID.Unavailable", format!("The image ID '{id}' is not available"))
}

/// What Allowed AMIs of the viewer's account and region leave out is as if it were not shared. What EC2 answers of it by id,
/// AWS's documents do not say.
fn is_left_out(viewer: Option<&Account>, region: &str, image: &Image) -> bool {
    let Some((viewer, ec2)) = viewer.and_then(|viewer| Some((viewer, viewer.ec2.get(region)?))) else {
        return false;
    };
    ec2.allowed_images.hides(image, &viewer.id)
}

/// Every image of the region that the account can see, its own first.
fn all_visible<'w>(world: &'w World, viewer: &'w str, region: &'w str) -> impl Iterator<Item = &'w Image> {
    let viewer_account = world.account(viewer);
    let own = viewer_account.into_iter();
    let others = world.accounts.values().filter(move |account| account.id != viewer);
    own.chain(others)
        .filter_map(|account| account.ec2.get(region))
        .flat_map(|ec2| ec2.images.values())
        .filter(move |image| image.is_visible_to(viewer, viewer_account))
        .filter(move |image| !is_left_out(viewer_account, region, image))
}

/// The image of that id, if the account can see it.
pub(super) fn visible<'w>(world: &'w World, viewer: &str, region: &str, id: &str) -> Option<&'w Image> {
    let viewer_account = world.account(viewer);
    let own = viewer_account.into_iter();
    own.chain(world.accounts.values())
        .filter_map(|account| account.ec2.get(region)?.images.get(id))
        .find(|image| image.is_visible_to(viewer, viewer_account))
        .filter(|image| !is_left_out(viewer_account, region, image))
}

/// The image of that id, whoever can see it.
pub(super) fn any<'w>(world: &'w World, region: &str, id: &str) -> Option<&'w Image> {
    world.accounts.values().find_map(|account| account.ec2.get(region)?.images.get(id))
}

/// The caller's account's tags on an image it can see.
pub(super) fn tags_seen(ec2: Option<&Ec2>, viewer: &str, image: &Image) -> Tags {
    if image.owner == viewer {
        return image.tags.clone();
    }
    ec2.and_then(|ec2| ec2.tags_on_others.get(&image.id)).cloned().unwrap_or_default()
}

/// The caller's own image named by parameter `ImageId`, the caller being allowed
/// to do the called action on it.
pub(super) fn own_image(request: &mut Request<'_>) -> Result<Image, ApiError> {
    let id = request.params.require("ImageId")?;
    let arn = shared_arn(request.region, "image", id);
    request.world.note_resource(arn.clone());
    let viewer = &request.caller.account;
    let image = visible(request.world, viewer, request.region, id).cloned();
    let context = match &image {
        Some(image) => image.context(&tags_seen(request.ec2(), viewer, image)),
        None => Context::new(),
    };
    request.authorize(&arn, &context)?;
    let image = image.ok_or_else(|| not_found(id))?;
    if image.owner != request.caller.account {
        return Err(ApiError::new(403, "AuthFailure", format!("Not authorized for image:{id}")));
    }
    request.end_dry_run()?;
    Ok(image)
}

/// Changes an image of the caller.
fn change(request: &mut Request<'_>, id: &str, change: impl FnOnce(&mut Image)) {
    if let Some(image) = request.ec2_mut().images.get_mut(id) {
        change(image);
        request.world.note_change();
    }
}

/// Checks the name of a new image: its form, and that the account has no other
/// image of that name.
pub(super) fn check_name(request: &Request<'_>, name: &str) -> Result<(), ApiError> {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "()[] ./-'@_".contains(character);
    if !(3..=128).contains(&name.chars().count()) || !name.chars().all(allowed) {
        return Err(ApiError::bad_request(
            "InvalidAMIName.Malformed",
            "AMI names must be between 3 and 128 characters long, and may contain letters, \
             numbers, '(', ')', '.', '-', '/' and '_'",
        ));
    }
    let same_name = request.ec2().and_then(|ec2| ec2.images.values().find(|image| image.name == name));
    if let Some(image) = same_name {
        return Err(ApiError::bad_request(
            "InvalidAMIName.Duplicate",
            format!("AMI name {name} is already in use by AMI {}", image.id),
        ));
    }
    Ok(())
}

/// The entries of `BlockDeviceMapping.N`.
fn parse_devices(request: &Request<'_>) -> Result<Vec<Device>, ApiError> {
    let mut devices: Vec<Device> = Vec::new();
    for mapping in request.params.structs("BlockDeviceMapping") {
        let name = mapping.require("DeviceName")?.to_owned();
        if devices.iter().any(|device| device.name == name) {
            return Err(ApiError::bad_request(
                "InvalidBlockDeviceMapping",
                format!("The device '{name}' is used in more than one block-device mapping"),
            ));
        }
        let kind = if mapping.get("NoDevice").is_some() {
            DeviceKind::NoDevice
        } else if let Some(name) = mapping.get("VirtualName") {
            DeviceKind::Ephemeral(name.to_owned())
        } else {
            DeviceKind::Ebs(parse_ebs(request, &mapping.sub("Ebs"))?)
        };
        devices.push(Device { name, kind });
    }
    Ok(devices)
}

/// The `Ebs` part of a mapping in RegisterImage.
fn parse_ebs(request: &Request<'_>, ebs: &Params) -> Result<EbsDevice, ApiError> {
    let snapshot_id = ebs.get("SnapshotId").map(String::from);
    let snapshot = match &snapshot_id {
        Some(id) => Some(
            snapshots::visible(request.world, &request.caller.account, request.region, id)
                .ok_or_else(|| snapshots::not_found(id))?,
        ),
        None => None,
    };
    if ebs.get("Encrypted").is_some() && snapshot.is_some() {
        return Err(ApiError::bad_request(
            "InvalidBlockDeviceMapping",
            "the encrypted flag cannot be specified since the device has a snapshot specified",
        ));
    }
    let size = ebs.int("VolumeSize").and_then(|size| size.try_into().ok());
    let size = size.or_else(|| snapshot.map(|snapshot| snapshot.size)).ok_or_else(|| {
        ApiError::bad_request("MissingParameter", "The request must contain the parameter size or snapshotId")
    })?;
    Ok(EbsDevice {
        encrypted: match snapshot {
            Some(snapshot) => snapshot.key.is_some(),
            None => Wish::parse(ebs)?.encrypted == Some(true),
        },
        snapshot_id,
        size,
        volume_type: ebs.get("VolumeType").unwrap_or("gp2").to_owned(),
        delete_on_termination: ebs.bool("DeleteOnTermination").unwrap_or(true),
    })
}

/// Puts a new image into the caller's account: pending, and available as soon as
/// its snapshots are, or at once if they already are.
pub(super) fn add(request: &mut Request<'_>, mut image: Image) -> String {
    let id = image.id.clone();
    let waits = request.ec2().is_some_and(|ec2| {
        image
            .snapshot_ids()
            .iter()
            .any(|id| ec2.snapshots.get(*id).is_some_and(|snapshot| snapshot.state == SnapshotState::Pending))
    });
    image.state = if waits { ImageState::Pending } else { ImageState::Available };
    request.ec2_mut().images.insert(id.clone(), image);
    if waits {
        let delay = request.world.settings.copy_delay_ms;
        later(request.world, &request.caller.account, request.region, delay, Change::ImageBecomesAvailable(id.clone()));
    }
    request.world.note_resource(shared_arn(request.region, "image", &id));
    request.world.note_change();
    id
}

pub(super) fn register(request: &mut Request<'_>) -> Reply {
    let tags = tags::specifications(request.params, &["image"])?.remove("image").unwrap_or_default();
    let any_image = shared_arn(request.region, "image", "*");
    let mut tag_context = Context::new();
    tags::add_request_context(&mut tag_context, &tags);
    request.authorize(&any_image, &tag_context)?;
    tags::authorize_on_create(request, &any_image, Some(&tags))?;

    let location = request.params.get("ImageLocation");
    let name = match (request.params.get("Name"), location) {
        (Some(name), _) => name,
        (None, Some(location)) => location,
        (None, None) => request.params.require("Name")?,
    };
    check_name(request, name)?;
    let devices = parse_devices(request)?;
    let root_device_name = request.params.get("RootDeviceName").map(String::from);
    if location.is_none() {
        let has_root = devices.iter().any(|device| {
            Some(&device.name) == root_device_name.as_ref() && device.ebs().is_some_and(|ebs| ebs.snapshot_id.is_some())
        });
        if !has_root {
            return Err(ApiError::bad_request(
                "InvalidBlockDeviceMapping",
                "the root device must be an EBS device with a snapshot: \
                 RootDeviceName and BlockDeviceMapping do not fit",
            ));
        }
    }
    request.end_dry_run()?;

    let owner = request.caller.account.clone();
    let image = Image {
        id: request.world.next_id("ami"),
        name: name.to_owned(),
        description: request.params.get("Description").unwrap_or_default().to_owned(),
        location: location.map_or_else(|| format!("{owner}/{name}"), String::from),
        owner,
        architecture: request.params.get("Architecture").unwrap_or("x86_64").to_owned(),
        state: ImageState::Pending,
        state_reason: None,
        root_device_name,
        ebs_backed: location.is_none(),
        devices,
        permissions: BTreeSet::new(),
        product_codes: Vec::new(),
        tags,
        created: request.world.timestamp(),
        source_image: None,
        source_instance: None,
    };
    let id = add(request, image);
    Ok(id_reply(&id))
}

pub(super) fn id_reply(id: &str) -> String {
    let mut xml = Xml::new();
    xml.elem("imageId", id);
    xml.finish()
}

pub(super) fn create(request: &mut Request<'_>) -> Reply {
    let instance_id = request.params.require("InstanceId")?;
    let mut tags = tags::specifications(request.params, &["image", "snapshot"])?;
    let (account, region) = (request.caller.account.clone(), request.region);
    let instance = request.ec2().and_then(|ec2| ec2.instances.get(instance_id)).cloned();
    let instance_context = instance.as_ref().map(|instance| tags::resource_context(&instance.tags)).unwrap_or_default();
    request.authorize(&account_arn(region, &account, "instance", instance_id), &instance_context)?;
    for kind in ["image", "snapshot"] {
        let any = shared_arn(region, kind, "*");
        let mut context = Context::new();
        if let Some(tags) = tags.get(kind) {
            tags::add_request_context(&mut context, tags);
        }
        request.authorize(&any, &context)?;
        tags::authorize_on_create(request, &any, tags.get(kind))?;
    }
    let instance = instance.ok_or_else(|| super::instances::not_found(instance_id))?;
    if instance.state.is_over() {
        return Err(ApiError::bad_request(
            "IncorrectInstanceState",
            format!("The instance '{instance_id}' is terminated"),
        ));
    }
    let name = request.params.require("Name")?;
    check_name(request, name)?;
    request.end_dry_run()?;

    let snapshot_tags = tags.remove("snapshot").unwrap_or_default();
    let mut attached: Vec<_> = request
        .ec2()
        .into_iter()
        .flat_map(|ec2| ec2.volumes.values())
        .filter_map(|volume| {
            let attachment = volume.attachment.as_ref()?;
            (attachment.instance_id == instance_id).then(|| (attachment.clone(), volume.clone()))
        })
        .collect();
    let is_data = |device: &String| instance.root_device_name.as_ref() != Some(device);
    attached.sort_by_key(|(attachment, _)| (is_data(&attachment.device), attachment.device.clone()));
    let id = request.world.next_id("ami");
    let mut devices = Vec::new();
    for (attachment, volume) in attached {
        let snapshot_id = snapshots::add_of_volume(
            request,
            &volume,
            format!("Created by CreateImage({instance_id}) for {id}"),
            snapshot_tags.clone(),
        );
        devices.push(Device {
            name: attachment.device,
            kind: DeviceKind::Ebs(EbsDevice {
                snapshot_id: Some(snapshot_id),
                encrypted: volume.key.is_some(),
                size: volume.size,
                volume_type: volume.volume_type,
                delete_on_termination: attachment.delete_on_termination,
            }),
        });
    }
    let image = Image {
        id,
        name: name.to_owned(),
        description: request.params.get("Description").unwrap_or_default().to_owned(),
        location: format!("{account}/{name}"),
        owner: account,
        architecture: instance.architecture,
        state: ImageState::Pending,
        state_reason: None,
        root_device_name: instance.root_device_name,
        ebs_backed: instance.ebs_backed,
        devices,
        permissions: BTreeSet::new(),
        product_codes: instance.product_codes,
        tags: tags.remove("image").unwrap_or_default(),
        created: request.world.timestamp(),
        source_image: Some((instance.image_id, region.to_owned())),
        source_instance: Some(instance.id),
    };
    let id = add(request, image);
    Ok(id_reply(&id))
}

pub(super) fn deregister(request: &mut Request<'_>) -> Reply {
    let image = own_image(request)?;
    request.ec2_mut().images.remove(&image.id);
    request.world.note_change();
    let mut results = Vec::new();
    if request.params.bool("DeleteAssociatedSnapshots") == Some(true) {
        for id in image.snapshot_ids() {
            results.push((id.to_owned(), delete_snapshot_of(request, id)));
        }
    }
    let mut xml = Xml::new();
    xml.elem("return", true);
    xml.items("deleteSnapshotResultSet", results, |xml, (snapshot_id, code)| {
        xml.elem("snapshotId", snapshot_id).elem("returnCode", code);
    });
    Ok(xml.finish())
}

/// Deletes a snapshot of a deregistered image; returns AWS's code for how it went.
fn delete_snapshot_of(request: &mut Request<'_>, id: &str) -> &'static str {
    let Some(ec2) = request.ec2() else {
        return "client-error";
    };
    let Some(snapshot) = ec2.snapshots.get(id) else {
        return "client-error";
    };
    if users(ec2, id).next().is_some() {
        return "skipped";
    }
    let arn = shared_arn(request.region, "snapshot", id);
    let context = snapshot.context(&snapshot.tags);
    if request.authorize_action("DeleteSnapshot", &arn, &context).is_err() {
        return "missing-permissions";
    }
    request.ec2_mut().snapshots.remove(id);
    request.world.note_resource(arn);
    "success"
}

/// The account's images that use the snapshot.
pub(super) fn users<'e>(ec2: &'e Ec2, snapshot_id: &'e str) -> impl Iterator<Item = &'e Image> + use<'e> {
    ec2.images.values().filter(move |image| image.snapshot_ids().contains(&snapshot_id))
}

pub(super) fn disable(request: &mut Request<'_>) -> Reply {
    let image = own_image(request)?;
    match image.state {
        ImageState::Disabled => {}
        ImageState::Available | ImageState::Failed => {
            change(request, &image.id, |image| {
                image.state = ImageState::Disabled;
                image.permissions.clear();
            });
        }
        ImageState::Pending => return Err(unavailable(&image.id)),
    }
    Ok(returns_true())
}

pub(super) fn enable(request: &mut Request<'_>) -> Reply {
    let image = own_image(request)?;
    if image.state == ImageState::Disabled {
        change(request, &image.id, |image| {
            image.state = ImageState::Available;
        });
    }
    Ok(returns_true())
}

/// Filters of DescribeImages, besides those about tags.
const FILTERS: [&str; 18] = [
    "architecture",
    "block-device-mapping.device-name",
    "block-device-mapping.encrypted",
    "block-device-mapping.snapshot-id",
    "description",
    "hypervisor",
    "image-id",
    "image-type",
    "is-public",
    "manifest-location",
    "name",
    "owner-id",
    "product-code",
    "root-device-name",
    "root-device-type",
    "source-image-id",
    "state",
    "virtualization-type",
];

fn filter_values(image: &Image, filter: &str) -> Vec<String> {
    let ebs = || image.devices.iter().filter_map(Device::ebs);
    match filter {
        "architecture" => vec![image.architecture.clone()],
        "block-device-mapping.device-name" => image.devices.iter().map(|device| device.name.clone()).collect(),
        "block-device-mapping.encrypted" => ebs().map(|ebs| ebs.encrypted.to_string()).collect(),
        "block-device-mapping.snapshot-id" => ebs().filter_map(|ebs| ebs.snapshot_id.clone()).collect(),
        "description" => vec![image.description.clone()],
        "hypervisor" => vec!["xen".to_owned()],
        "image-id" => vec![image.id.clone()],
        "image-type" => vec!["machine".to_owned()],
        "is-public" => vec![image.is_public().to_string()],
        "manifest-location" => vec![image.location.clone()],
        "name" => vec![image.name.clone()],
        "owner-id" => vec![image.owner.clone()],
        "product-code" => image.product_codes.clone(),
        "root-device-name" => image.root_device_name.clone().into_iter().collect(),
        "root-device-type" => vec![image.root_device_type().to_owned()],
        "source-image-id" => image.source_image.iter().map(|(id, _)| id.clone()).collect(),
        "state" => vec![image.state.as_str().to_owned()],
        "virtualization-type" => vec!["hvm".to_owned()],
        _ => Vec::new(),
    }
}

pub(super) fn describe(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    let filters = Filters::parse(request.params, &FILTERS)?;
    request.end_dry_run()?;

    let viewer = request.caller.account.as_str();
    let ids = request.params.list("ImageId");
    let candidates: Vec<&Image> = if ids.is_empty() {
        all_visible(request.world, viewer, request.region).collect()
    } else {
        ids.iter()
            .map(|id| {
                visible(request.world, viewer, request.region, id)
                    .ok_or_else(|| hidden(request.world, request.region, id))
            })
            .collect::<Result<_, _>>()?
    };

    let include_disabled = request.params.bool("IncludeDisabled") == Some(true);
    let owners = request.params.list("Owner");
    let executable_by = request.params.list("ExecutableBy");
    let found: Vec<(&Image, Tags)> = candidates
        .into_iter()
        .filter(|image| include_disabled || image.state != ImageState::Disabled)
        .filter(|image| {
            owners.is_empty()
                || owners.iter().any(|owner| *owner == image.owner || (owner == "self" && image.owner == viewer))
        })
        .filter(|image| {
            executable_by.is_empty() || executable_by.iter().any(|user| is_executable_by(image, user, viewer))
        })
        .map(|image| (image, tags_seen(request.ec2(), viewer, image)))
        .filter(|(image, tags)| filters.match_item(tags, |filter| filter_values(image, filter)))
        .collect();
    let ids_given = (!ids.is_empty()).then_some("imagesSet");
    let (found, next_token) = page(request.params, found, ids_given)?;

    let noted: Vec<String> = ids.iter().map(|id| shared_arn(request.region, "image", id)).collect();
    let mut xml = Xml::new();
    let setting = request.ec2().map(|ec2| ec2.allowed_images.clone()).unwrap_or_default();
    xml.items("imagesSet", found, |xml, (image, tags)| {
        write(xml, image, &tags);
        xml.opt("imageAllowed", setting.verdict(image, viewer));
    });
    xml.opt("nextToken", next_token);
    for arn in noted {
        request.world.note_resource(arn);
    }
    Ok(xml.finish())
}

/// Whether the image has an explicit launch permission for the `ExecutableBy`
/// value; only its owner may ask about accounts other than the caller's.
fn is_executable_by(image: &Image, user: &str, viewer: &str) -> bool {
    match user {
        "all" => image.is_public(),
        "self" => image.permissions.contains(&LaunchPermission::Account(viewer.to_owned())),
        account => {
            (account == viewer || image.owner == viewer)
                && image.permissions.contains(&LaunchPermission::Account(account.to_owned()))
        }
    }
}

fn write(xml: &mut Xml, image: &Image, tags: &Tags) {
    xml.elem("imageId", &image.id)
        .elem("imageLocation", &image.location)
        .elem("imageState", image.state.as_str())
        .elem("imageOwnerId", &image.owner)
        .elem("creationDate", &image.created)
        .elem("isPublic", image.is_public())
        .elem("architecture", &image.architecture)
        .elem("imageType", "machine")
        .elem("name", &image.name)
        .opt("description", Some(&image.description).filter(|text| !text.is_empty()))
        .elem("rootDeviceType", image.root_device_type())
        .opt("rootDeviceName", image.root_device_name.as_ref())
        .elem("virtualizationType", "hvm")
        .elem("hypervisor", "xen")
        .elem("enaSupport", true)
        .elem("platformDetails", "Linux/UNIX")
        .elem("usageOperation", "RunInstances");
    if let Some((id, region)) = &image.source_image {
        xml.elem("sourceImageId", id).elem("sourceImageRegion", region);
    }
    xml.opt("sourceInstanceId", image.source_instance.as_ref());
    write_state_reason(xml, image.state_reason.as_ref());
    if !image.product_codes.is_empty() {
        write_product_codes(xml, &image.product_codes);
    }
    xml.items("blockDeviceMapping", &image.devices, write_device);
    tags::write(xml, tags);
}

fn write_device(xml: &mut Xml, device: &Device) {
    xml.elem("deviceName", &device.name);
    match &device.kind {
        DeviceKind::Ebs(ebs) => {
            xml.nest("ebs", |xml| {
                xml.opt("snapshotId", ebs.snapshot_id.as_ref())
                    .elem("volumeSize", ebs.size)
                    .elem("deleteOnTermination", ebs.delete_on_termination)
                    .elem("volumeType", &ebs.volume_type)
                    .elem("encrypted", ebs.encrypted);
            });
        }
        DeviceKind::Ephemeral(name) => {
            xml.elem("virtualName", name);
        }
        DeviceKind::NoDevice => {
            xml.elem("noDevice", "");
        }
    }
}

pub(super) fn write_state_reason(xml: &mut Xml, reason: Option<&StateReason>) {
    if let Some(reason) = reason {
        xml.nest("stateReason", |xml| {
            xml.elem("code", &reason.code).elem("message", &reason.message);
        });
    }
}

pub(super) fn write_product_codes(xml: &mut Xml, codes: &[String]) {
    xml.items("productCodes", codes, |xml, code| {
        xml.elem("productCode", code).elem("type", "marketplace");
    });
}

pub(super) fn describe_attribute(request: &mut Request<'_>) -> Reply {
    let image = own_image(request)?;
    let mut xml = Xml::new();
    xml.elem("imageId", &image.id);
    match request.params.require("Attribute")? {
        "launchPermission" => {
            xml.items("launchPermission", &image.permissions, |xml, permission| {
                let (element, text) = permission.element();
                xml.elem(element, text);
            });
        }
        "description" => {
            xml.nest("description", |xml| {
                xml.elem("value", &image.description);
            });
        }
        "productCodes" => write_product_codes(&mut xml, &image.product_codes),
        "blockDeviceMapping" => {
            xml.items("blockDeviceMapping", &image.devices, write_device);
        }
        attribute => return Err(invalid_attribute(attribute)),
    }
    Ok(xml.finish())
}

pub(super) fn invalid_attribute(attribute: &str) -> ApiError {
    ApiError::bad_request(
        "InvalidParameterValue",
        format!("Value ({attribute}) for parameter attribute is invalid. Unknown attribute."),
    )
}

/// Launch permissions to add and to remove.
#[derive(Debug, Default)]
struct Modifications {
    add: BTreeSet<LaunchPermission>,
    remove: BTreeSet<LaunchPermission>,
}

pub(super) fn modify_attribute(request: &mut Request<'_>) -> Reply {
    let image = own_image(request)?;
    let params = request.params;
    let attribute = params.get("Attribute");
    if let Some(description) = params
        .get("Description.Value")
        .or_else(|| (attribute == Some("description")).then(|| params.get("Value")).flatten())
    {
        if image.description != description {
            let description = description.to_owned();
            change(request, &image.id, |image| image.description = description);
        }
        return Ok(returns_true());
    }
    match attribute {
        None | Some("launchPermission") => {}
        Some(attribute) => return Err(invalid_attribute(attribute)),
    }
    let modifications = parse_modifications(params)?;
    if image.state != ImageState::Available {
        return Err(unavailable(&image.id));
    }
    let mut permissions = image.permissions.clone();
    permissions.retain(|permission| !modifications.remove.contains(permission));
    permissions.extend(modifications.add.iter().cloned());
    if !modifications.add.is_empty() {
        check_shareable(request, &image, &modifications.add)?;
        let entities = permissions.iter().filter(|permission| **permission != LaunchPermission::Everyone).count();
        if entities > SHARING_QUOTA {
            return Err(ApiError::bad_request(
                "ResourceLimitExceeded",
                format!(
                    "You have reached the maximum number of entities ({SHARING_QUOTA}) that \
                     AMI {} can be shared with.",
                    image.id
                ),
            ));
        }
    }
    if permissions != image.permissions {
        change(request, &image.id, |image| image.permissions = permissions);
    }
    Ok(returns_true())
}

/// Reads both spellings: OperationType with UserId.N and so on, and the structure
/// LaunchPermission.Add.N / Remove.N. The first bad entry refuses everything.
fn parse_modifications(params: &Params) -> Result<Modifications, ApiError> {
    let mut modifications = Modifications::default();
    let mut flat = BTreeSet::new();
    for (list, field) in [
        ("UserId", "UserId"),
        ("UserGroup", "Group"),
        ("OrganizationArn", "OrganizationArn"),
        ("OrganizationalUnitArn", "OrganizationalUnitArn"),
    ] {
        for value in params.list(list) {
            flat.insert(parse_permission(field, &value)?);
        }
    }
    if !flat.is_empty() {
        match params.get("OperationType") {
            Some("add") => modifications.add.extend(flat),
            Some("remove") => modifications.remove.extend(flat),
            _ => {
                return Err(ApiError::bad_request(
                    "MissingParameter",
                    "The request must contain the parameter operationType",
                ));
            }
        }
    }
    for (list, side) in
        [("LaunchPermission.Add", &mut modifications.add), ("LaunchPermission.Remove", &mut modifications.remove)]
    {
        for entry in params.structs(list) {
            for (field, value) in entry.iter() {
                side.insert(parse_permission(field, value)?);
            }
        }
    }
    let (added, removed) = (modifications.add.len(), modifications.remove.len());
    if added + removed == 0 {
        return Err(ApiError::bad_request("InvalidParameterCombination", "No attributes specified."));
    }
    if added + removed > ACCOUNTS_PER_CALL {
        return Err(ApiError::bad_request(
            "InvalidParameterValue",
            format!("Up to {ACCOUNTS_PER_CALL} account IDs can be specified in a single request"),
        ));
    }
    Ok(modifications)
}

fn parse_permission(field: &str, value: &str) -> Result<LaunchPermission, ApiError> {
    let value_owned = value.to_owned();
    let (item_type, permission) = match field {
        "UserId" => ("userId", is_account_id(value).then_some(LaunchPermission::Account(value_owned))),
        "Group" => ("group", (value == "all").then_some(LaunchPermission::Everyone)),
        "OrganizationArn" => (
            "organizationArn",
            is_organizations_arn(value, "organization/o-").then_some(LaunchPermission::Organization(value_owned)),
        ),
        "OrganizationalUnitArn" => (
            "organizationalUnitArn",
            is_organizations_arn(value, "ou/o-").then_some(LaunchPermission::OrganizationalUnit(value_owned)),
        ),
        other => (other, None),
    };
    permission.ok_or_else(|| {
        ApiError::bad_request(
            "InvalidAMIAttributeItemValue",
            format!("Invalid attribute item value \"{value}\" for {item_type} item type."),
        )
    })
}

/// Whether `arn` is `arn:aws:organizations::<account>:<resource>…`.
fn is_organizations_arn(arn: &str, resource: &str) -> bool {
    arn.strip_prefix(&format!("arn:{PARTITION}:organizations::")).and_then(|rest| rest.split_once(':')).is_some_and(
        |(account, rest)| is_account_id(account) && rest.strip_prefix(resource).is_some_and(|rest| !rest.is_empty()),
    )
}

/// Refuses images that AWS does not let anyone share.
fn check_shareable(request: &Request<'_>, image: &Image, added: &BTreeSet<LaunchPermission>) -> Result<(), ApiError> {
    let public = added.contains(&LaunchPermission::Everyone);
    if public {
        PublicAccess::check(request.ec2().and_then(|ec2| ec2.public_access.images.as_deref()))?;
    }
    let snapshots: BTreeMap<_, _> = request
        .ec2()
        .map(|ec2| image.snapshot_ids().into_iter().filter_map(|id| Some((id, ec2.snapshots.get(id)?))).collect())
        .unwrap_or_default();
    for key in snapshots.values().filter_map(|snapshot| snapshot.key.as_ref()) {
        if kms::key_facts(request.world, key).is_some_and(|facts| facts.aws_managed) {
            return Err(ApiError::bad_request(
                "InvalidParameter",
                "Snapshots encrypted with the AWS Managed CMK can't be shared",
            ));
        }
        if public {
            return Err(ApiError::bad_request(
                "InvalidParameter",
                "Images with encrypted snapshots can't be made public",
            ));
        }
    }
    if public && !image.product_codes.is_empty() {
        return Err(ApiError::bad_request(
            "OperationNotPermitted",
            "Images with Marketplace product codes can't be made public",
        ));
    }
    Ok(())
}
