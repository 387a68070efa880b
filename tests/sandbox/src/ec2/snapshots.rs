//! EBS snapshots: making, seeing, sharing and deleting them.

use super::filters::{Filters, page};
use super::images::{self, invalid_attribute};
use super::public_access::PublicAccess;
use super::schedule::{Change, later};
use super::tags::{self, Tags};
use super::{Ec2, Request, Volume, account_arn, context, is_account_id, is_id, returns_true, shared_arn};
use crate::auth::Context;
use crate::kms;
use crate::wire::{ApiError, Params, Reply, Xml};
use crate::world::World;
use std::collections::BTreeSet;

/// Permissions that one ModifySnapshotAttribute call may change.
const MODIFICATIONS_PER_CALL: usize = 500;

/// The group that means everybody.
const EVERYONE: &str = "all";

/// State of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotState {
    Pending,
    Completed,
    Error,
}

impl SnapshotState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Error => "error",
        }
    }
}

/// An EBS snapshot.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub id: String,
    pub owner: String,
    /// `vol-ffffffff` for a copy.
    pub volume_id: String,
    /// GiB.
    pub size: u32,
    pub description: String,
    pub state: SnapshotState,
    /// `StateMessage`: why it is in error.
    pub message: Option<String>,
    /// The key's ARN, if it is encrypted.
    pub key: Option<String>,
    /// Accounts that may copy it and make volumes of it, or `all`.
    pub permissions: BTreeSet<String>,
    pub tags: Tags,
    pub started: String,
}

impl Snapshot {
    fn is_visible_to(&self, viewer: &str) -> bool {
        self.owner == viewer || self.permissions.contains(viewer) || self.permissions.contains(EVERYONE)
    }

    /// What conditions can say about the snapshot in any call.
    pub(super) fn context(&self, tags: &Tags) -> Context {
        let mut context = context([
            ("ec2:SnapshotID", self.id.clone()),
            ("ec2:Owner", self.owner.clone()),
            ("ec2:ParentVolume", self.volume_id.clone()),
            ("ec2:VolumeSize", self.size.to_string()),
            ("ec2:Encrypted", self.key.is_some().to_string()),
        ]);
        tags::add_resource_context(&mut context, tags);
        context
    }
}

/// Canonical picture for comparing states.
pub(super) fn picture(snapshot: &Snapshot) -> serde_json::Value {
    serde_json::json!({
        "state": snapshot.state.as_str(),
        "key": snapshot.key,
        "createVolumePermissions": snapshot.permissions,
        "tags": snapshot.tags,
    })
}

pub(super) fn not_found(id: &str) -> ApiError {
    if is_id(id, "snap") {
        ApiError::bad_request("InvalidSnapshot.NotFound", format!("The snapshot '{id}' does not exist."))
    } else {
        ApiError::bad_request("InvalidSnapshotID.Malformed", format!("The snapshot ID '{id}' is not valid."))
    }
}

/// The snapshot of that id, if the account can see it.
pub(super) fn visible<'w>(world: &'w World, viewer: &str, region: &str, id: &str) -> Option<&'w Snapshot> {
    any(world, viewer, region, id).filter(|snapshot| snapshot.is_visible_to(viewer))
}

/// The snapshot of that id, whoever owns it; looked for in `first` account first.
pub(super) fn any<'w>(world: &'w World, first: &str, region: &str, id: &str) -> Option<&'w Snapshot> {
    world
        .account(first)
        .into_iter()
        .chain(world.accounts.values())
        .find_map(|account| account.ec2.get(region)?.snapshots.get(id))
}

/// The caller's account's tags on a snapshot it can see.
pub(super) fn tags_seen(ec2: Option<&Ec2>, viewer: &str, snapshot: &Snapshot) -> Tags {
    if snapshot.owner == viewer {
        return snapshot.tags.clone();
    }
    ec2.and_then(|ec2| ec2.tags_on_others.get(&snapshot.id)).cloned().unwrap_or_default()
}

/// The caller's own snapshot named by parameter `SnapshotId`, the caller being
/// allowed to do the called action on it; `call` is what conditions can say about the call.
fn own_snapshot(request: &mut Request<'_>, call: Context) -> Result<Snapshot, ApiError> {
    let id = request.params.require("SnapshotId")?;
    let arn = shared_arn(request.region, "snapshot", id);
    request.world.note_resource(arn.clone());
    let viewer = &request.caller.account;
    let snapshot = visible(request.world, viewer, request.region, id).cloned();
    let mut context = match &snapshot {
        Some(snapshot) => snapshot.context(&tags_seen(request.ec2(), viewer, snapshot)),
        None => Context::new(),
    };
    context.extend(call);
    request.authorize(&arn, &context)?;
    let snapshot = snapshot.ok_or_else(|| not_found(id))?;
    if snapshot.owner != request.caller.account {
        return Err(ApiError::new(403, "AuthFailure", format!("You do not own snapshot '{id}'")));
    }
    request.end_dry_run()?;
    Ok(snapshot)
}

/// Puts a snapshot into the caller's account, pending; its end is up to the caller.
pub(super) fn add(request: &mut Request<'_>, snapshot: Snapshot) {
    request.world.note_resource(shared_arn(request.region, "snapshot", &snapshot.id));
    request.world.note_change();
    request.ec2_mut().snapshots.insert(snapshot.id.clone(), snapshot);
}

/// Starts a snapshot of a volume of the caller; returns its id.
pub(super) fn add_of_volume(request: &mut Request<'_>, volume: &Volume, description: String, tags: Tags) -> String {
    let id = request.world.next_id("snap");
    let snapshot = Snapshot {
        id: id.clone(),
        owner: request.caller.account.clone(),
        volume_id: volume.id.clone(),
        size: volume.size,
        description,
        state: SnapshotState::Pending,
        message: None,
        key: volume.key.clone(),
        permissions: BTreeSet::new(),
        tags,
        started: request.world.timestamp(),
    };
    add(request, snapshot);
    let delay = request.world.settings.copy_delay_ms;
    later(request.world, &request.caller.account, request.region, delay, Change::SnapshotCompletes(id.clone()));
    id
}

pub(super) fn create(request: &mut Request<'_>) -> Reply {
    let volume_id = request.params.require("VolumeId")?;
    let tags = tags::specifications(request.params, &["snapshot"])?.remove("snapshot").unwrap_or_default();
    let volume = request.ec2().and_then(|ec2| ec2.volumes.get(volume_id)).cloned();
    let volume_context = volume.as_ref().map(|volume| tags::resource_context(&volume.tags)).unwrap_or_default();
    let volume_arn = account_arn(request.region, &request.caller.account, "volume", volume_id);
    request.authorize(&volume_arn, &volume_context)?;
    let any_snapshot = shared_arn(request.region, "snapshot", "*");
    let mut snapshot_context = Context::new();
    tags::add_request_context(&mut snapshot_context, &tags);
    request.authorize(&any_snapshot, &snapshot_context)?;
    tags::authorize_on_create(request, &any_snapshot, Some(&tags))?;
    let volume = volume.ok_or_else(|| super::volumes::not_found(volume_id))?;
    request.end_dry_run()?;

    let description = request.params.get("Description").unwrap_or_default();
    let id = add_of_volume(request, &volume, description.to_owned(), tags);
    let mut xml = Xml::new();
    if let Some(snapshot) = request.ec2().and_then(|ec2| ec2.snapshots.get(&id)) {
        write(&mut xml, snapshot, &snapshot.tags);
    }
    Ok(xml.finish())
}

/// CreateSnapshots: of all volumes of an instance, with the volumes' tags where that is asked for.
pub(super) fn create_of_instance(request: &mut Request<'_>) -> Reply {
    let instance_id = request.params.require("InstanceSpecification.InstanceId")?;
    let new_tags = tags::specifications(request.params, &["snapshot"])?.remove("snapshot").unwrap_or_default();
    let copies_tags = request.params.get("CopyTagsFromSource") == Some("volume");
    let instance = request.ec2().and_then(|ec2| ec2.instances.get(instance_id)).cloned();
    let context = instance.as_ref().map(|instance| tags::resource_context(&instance.tags)).unwrap_or_default();
    request.authorize(&account_arn(request.region, &request.caller.account, "instance", instance_id), &context)?;
    let instance = instance.ok_or_else(|| super::instances::not_found(instance_id))?;
    let is_attached = |volume: &&Volume| volume.attachment.as_ref().is_some_and(|at| at.instance_id == instance.id);
    let volumes: Vec<Volume> =
        request.ec2().into_iter().flat_map(|ec2| ec2.volumes.values()).filter(is_attached).cloned().collect();
    let any_snapshot = shared_arn(request.region, "snapshot", "*");
    let mut with_tags = Vec::new();
    for volume in volumes {
        let arn = account_arn(request.region, &request.caller.account, "volume", &volume.id);
        request.authorize(&arn, &tags::resource_context(&volume.tags))?;
        let mut tags = if copies_tags { volume.tags.clone() } else { Tags::new() };
        tags.extend(new_tags.clone());
        let mut snapshot_context = Context::new();
        tags::add_request_context(&mut snapshot_context, &tags);
        request.authorize(&any_snapshot, &snapshot_context)?;
        tags::authorize_on_create(request, &any_snapshot, Some(&tags))?;
        with_tags.push((volume, tags));
    }
    request.end_dry_run()?;

    let description = request.params.get("Description").unwrap_or_default();
    let mut xml = Xml::new();
    let ids: Vec<String> = with_tags
        .into_iter()
        .map(|(volume, tags)| add_of_volume(request, &volume, description.to_owned(), tags))
        .collect();
    let snapshots = ids.iter().filter_map(|id| request.ec2()?.snapshots.get(id));
    xml.items("snapshotSet", snapshots, |xml, snapshot| write(xml, snapshot, &snapshot.tags));
    Ok(xml.finish())
}

pub(super) fn delete(request: &mut Request<'_>) -> Reply {
    let snapshot = own_snapshot(request, Context::new())?;
    let image = request.ec2().and_then(|ec2| images::users(ec2, &snapshot.id).next());
    if let Some(image) = image {
        return Err(ApiError::bad_request(
            "InvalidSnapshot.InUse",
            format!("The snapshot {} is currently in use by {}", snapshot.id, image.id),
        ));
    }
    request.ec2_mut().snapshots.remove(&snapshot.id);
    request.world.note_change();
    Ok(returns_true())
}

/// Filters of DescribeSnapshots, besides those about tags.
const FILTERS: [&str; 7] =
    ["description", "encrypted", "owner-id", "snapshot-id", "status", "volume-id", "volume-size"];

fn filter_values(snapshot: &Snapshot, filter: &str) -> Vec<String> {
    let value = match filter {
        "description" => snapshot.description.clone(),
        "encrypted" => snapshot.key.is_some().to_string(),
        "owner-id" => snapshot.owner.clone(),
        "snapshot-id" => snapshot.id.clone(),
        "status" => snapshot.state.as_str().to_owned(),
        "volume-id" => snapshot.volume_id.clone(),
        "volume-size" => snapshot.size.to_string(),
        _ => return Vec::new(),
    };
    vec![value]
}

pub(super) fn describe(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    let filters = Filters::parse(request.params, &FILTERS)?;
    request.end_dry_run()?;

    let (viewer, region) = (request.caller.account.as_str(), request.region);
    let ids = request.params.list("SnapshotId");
    let candidates: Vec<&Snapshot> = if ids.is_empty() {
        request
            .world
            .accounts
            .values()
            .filter_map(|account| account.ec2.get(region))
            .flat_map(|ec2| ec2.snapshots.values())
            .filter(|snapshot| snapshot.is_visible_to(viewer))
            .collect()
    } else {
        ids.iter()
            .map(|id| visible(request.world, viewer, region, id).ok_or_else(|| not_found(id)))
            .collect::<Result<_, _>>()?
    };

    let is_viewer = |given: &str| given == "self" || given == viewer;
    let owners = request.params.list("Owner");
    let restorable_by = request.params.list("RestorableBy");
    let found: Vec<(&Snapshot, Tags)> = candidates
        .into_iter()
        .filter(|snapshot| {
            owners.is_empty()
                || owners.iter().any(|owner| *owner == snapshot.owner || (owner == "self" && snapshot.owner == viewer))
        })
        .filter(|snapshot| {
            restorable_by.is_empty()
                || restorable_by
                    .iter()
                    .any(|user| (user == EVERYONE && snapshot.permissions.contains(EVERYONE)) || is_viewer(user))
        })
        .map(|snapshot| (snapshot, tags_seen(request.ec2(), viewer, snapshot)))
        .filter(|(snapshot, tags)| filters.match_item(tags, |filter| filter_values(snapshot, filter)))
        .collect();
    let ids_given = (!ids.is_empty()).then_some("snapshotSet");
    let (found, next_token) = page(request.params, found, ids_given)?;

    let mut xml = Xml::new();
    xml.items("snapshotSet", found, |xml, (snapshot, tags)| {
        write(xml, snapshot, &tags);
    });
    xml.opt("nextToken", next_token);
    for id in ids {
        request.world.note_resource(shared_arn(region, "snapshot", &id));
    }
    Ok(xml.finish())
}

fn write(xml: &mut Xml, snapshot: &Snapshot, tags: &Tags) {
    let progress = match snapshot.state {
        SnapshotState::Completed => "100%",
        SnapshotState::Pending | SnapshotState::Error => "0%",
    };
    xml.elem("snapshotId", &snapshot.id)
        .elem("volumeId", &snapshot.volume_id)
        .elem("status", snapshot.state.as_str())
        .opt("statusMessage", snapshot.message.as_ref())
        .elem("startTime", &snapshot.started)
        .elem("progress", progress)
        .elem("ownerId", &snapshot.owner)
        .elem("volumeSize", snapshot.size)
        .elem("description", &snapshot.description)
        .elem("encrypted", snapshot.key.is_some())
        .opt("kmsKeyId", snapshot.key.as_ref())
        .elem("storageTier", "standard");
    tags::write(xml, tags);
}

pub(super) fn describe_attribute(request: &mut Request<'_>) -> Reply {
    let snapshot = own_snapshot(request, Context::new())?;
    let mut xml = Xml::new();
    xml.elem("snapshotId", &snapshot.id);
    match request.params.require("Attribute")? {
        "createVolumePermission" => {
            xml.items("createVolumePermission", &snapshot.permissions, |xml, user| {
                let element = if user == EVERYONE { "group" } else { "userId" };
                xml.elem(element, user);
            });
        }
        "productCodes" => images::write_product_codes(&mut xml, &[]),
        attribute => return Err(invalid_attribute(attribute)),
    }
    Ok(xml.finish())
}

pub(super) fn modify_attribute(request: &mut Request<'_>) -> Reply {
    let params = request.params;
    let (add, remove) = modifications(params)?;
    let snapshot = own_snapshot(request, modified(&add, &remove))?;
    match params.get("Attribute") {
        None | Some("createVolumePermission") => {}
        Some(attribute) => return Err(invalid_attribute(attribute)),
    }
    check_modifications(&add, &remove)?;
    if !add.is_empty() {
        check_shareable(request, &snapshot, &add)?;
    }
    let mut permissions = snapshot.permissions.clone();
    permissions.retain(|user| !remove.contains(user));
    permissions.extend(add);
    if permissions != snapshot.permissions {
        if let Some(snapshot) = request.ec2_mut().snapshots.get_mut(&snapshot.id) {
            snapshot.permissions = permissions;
        }
        request.world.note_change();
    }
    Ok(returns_true())
}

/// Whom a permission is to be given to, and whom taken from.
fn modifications(params: &Params) -> Result<(BTreeSet<String>, BTreeSet<String>), ApiError> {
    let mut add = BTreeSet::new();
    let mut remove = BTreeSet::new();
    let flat: Vec<String> = [params.list("UserId"), params.list("UserGroup")].concat();
    if !flat.is_empty() {
        match params.get("OperationType") {
            Some("add") => add.extend(flat),
            Some("remove") => remove.extend(flat),
            _ => {
                return Err(ApiError::bad_request(
                    "MissingParameter",
                    "The request must contain the parameter operationType",
                ));
            }
        }
    }
    for (list, side) in [("CreateVolumePermission.Add", &mut add), ("CreateVolumePermission.Remove", &mut remove)] {
        for entry in params.structs(list) {
            side.extend(entry.iter().map(|(_, value)| value.to_owned()));
        }
    }
    Ok((add, remove))
}

/// What conditions can say about that (ModifySnapshotAttribute in "Actions, resources, and condition keys for Amazon EC2",
/// service authorization reference).
fn modified(add: &BTreeSet<String>, remove: &BTreeSet<String>) -> Context {
    let mut context = Context::new();
    for (verb, whom) in [("Add", add), ("Remove", remove)] {
        let (groups, accounts) = whom.iter().cloned().partition(|user| user == EVERYONE);
        context.insert(format!("ec2:{verb}/group"), groups);
        context.insert(format!("ec2:{verb}/userId"), accounts);
    }
    context
}

fn check_modifications(add: &BTreeSet<String>, remove: &BTreeSet<String>) -> Result<(), ApiError> {
    if add.is_empty() && remove.is_empty() {
        return Err(ApiError::bad_request("InvalidParameterCombination", "No attributes specified."));
    }
    if !add.is_empty() && !remove.is_empty() {
        return Err(ApiError::bad_request(
            "InvalidParameterCombination",
            "Permissions cannot be added and removed in the same request.",
        ));
    }
    if add.len() + remove.len() > MODIFICATIONS_PER_CALL {
        return Err(ApiError::bad_request(
            "InvalidParameterValue",
            format!("At most {MODIFICATIONS_PER_CALL} modifications can be made in a request."),
        ));
    }
    for user in add.iter().chain(remove) {
        if user != EVERYONE && !is_account_id(user) {
            return Err(ApiError::bad_request(
                "InvalidParameterValue",
                format!("Value ({user}) for parameter userId is invalid. Invalid account ID."),
            ));
        }
    }
    Ok(())
}

/// Refuses snapshots that AWS does not let anyone share.
fn check_shareable(request: &Request<'_>, snapshot: &Snapshot, added: &BTreeSet<String>) -> Result<(), ApiError> {
    if added.contains(EVERYONE) {
        PublicAccess::check(request.ec2().and_then(|ec2| ec2.public_access.snapshots.as_deref()))?;
    }
    let Some(key) = &snapshot.key else {
        return Ok(());
    };
    let refused = |message: &str| Err(ApiError::bad_request("OperationNotPermitted", message));
    if kms::key_facts(request.world, key).is_some_and(|facts| facts.aws_managed) {
        return refused("Encrypted snapshots with EBS default key cannot be shared");
    }
    if added.contains(EVERYONE) {
        return refused("Encrypted snapshots cannot be made public");
    }
    Ok(())
}
