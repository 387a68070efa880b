//! CopyImage and CopySnapshot. Both take the caller's word at first; a key that
//! cannot be used shows later, in the state of what was made.

use super::encryption::{self, Source, Wish};
use super::images::{self, Image, ImageState};
use super::schedule::{Change, later};
use super::snapshots::{self, Snapshot};
use super::tags::{self, Tags};
use super::{Device, DeviceKind, Request, SnapshotState, StateReason, shared_arn};
use crate::auth::Context;
use crate::faults;
use crate::wire::{ApiError, Reply, Xml};
use std::collections::{BTreeMap, BTreeSet};

/// Snapshot copies of one account that may be under way in a region.
const CONCURRENT_COPIES: usize = 20;

/// What AWS says of a copy, whatever it was about the key.
const KEY_NOT_ACCESSIBLE: &str = "Given key ID is not accessible";

/// The volume id that AWS shows for a snapshot that is a copy.
const NO_VOLUME: &str = "vol-ffffffff";

/// Authorises the call on its sources and on what it makes.
fn authorize(
    request: &mut Request<'_>,
    sources: &[(String, Context)],
    made: &[&str],
    tags: &BTreeMap<String, Tags>,
) -> Result<(), ApiError> {
    for (arn, context) in sources {
        request.authorize(arn, context)?;
    }
    for kind in made {
        let any = shared_arn(request.region, kind, "*");
        let mut context = Context::new();
        if let Some(tags) = tags.get(*kind) {
            tags::add_request_context(&mut context, tags);
        }
        request.authorize(&any, &context)?;
        tags::authorize_on_create(request, &any, tags.get(*kind))?;
    }
    Ok(())
}

pub(super) fn copy_image(request: &mut Request<'_>) -> Reply {
    let params = request.params;
    let source_id = params.require("SourceImageId")?;
    let source_region = params.require("SourceRegion")?;
    let account = request.caller.account.clone();
    let mut new_tags = tags::specifications(params, &["image", "snapshot"])?;
    let source = images::visible(request.world, &account, source_region, source_id).cloned();
    if params.bool("CopyImageTags") == Some(true)
        && let Some(source) = &source
    {
        // Only the caller's own tags; what the call itself gives goes first.
        let mut tags = images::tags_seen(request.ec2(), &account, source);
        tags.extend(new_tags.remove("image").unwrap_or_default());
        new_tags.insert("image".to_owned(), tags);
    }

    // The keys of this action: an image's id and owner, and nothing of its snapshots (service authorization reference).
    let image_context = source.as_ref().map(Image::context_of_copies).unwrap_or_default();
    let mut sources = vec![(shared_arn(source_region, "image", source_id), image_context)];
    for id in source.iter().flat_map(Image::snapshot_ids) {
        sources.push((shared_arn(source_region, "snapshot", id), Context::new()));
    }
    request.world.note_resource(sources[0].0.clone());
    authorize(request, &sources, &["image", "snapshot"], &new_tags)?;

    let wish = Wish::parse(params)?;
    if let Some(ids) = request.made_before()?
        && let Some(id) = ids.first()
    {
        return Ok(images::id_reply(id));
    }
    let source = source.ok_or_else(|| images::hidden(request.world, source_region, source_id))?;
    let name = params.require("Name")?;
    images::check_name(request, name)?;
    check_source(request, &source, source_region)?;
    request.end_dry_run()?;

    let id = request.world.next_id("ami");
    let failure = faults::take_failure(request.world, request.caller, "ec2:CopyImage");
    let snapshot_tags = new_tags.remove("snapshot").unwrap_or_default();
    let mut copies: BTreeMap<String, String> = BTreeMap::new();
    let mut problem = failure.clone();
    for source_snapshot in source.snapshot_ids() {
        let description = description(&id, source_id, source_snapshot, request.world.epoch_ms());
        let copy = start_copy(
            request,
            &source.owner,
            source_region,
            source_snapshot,
            &wish,
            failure.clone(),
            description,
            snapshot_tags.clone(),
        )?;
        copies.insert(source_snapshot.to_owned(), copy.id);
        problem = problem.or(copy.problem);
    }

    let is_encrypted = |request: &Request<'_>, id: &str| {
        request.ec2().and_then(|ec2| ec2.snapshots.get(id)).is_some_and(|snapshot| snapshot.key.is_some())
    };
    let devices = source
        .devices
        .iter()
        .map(|device| {
            let mut device: Device = device.clone();
            if let DeviceKind::Ebs(ebs) = &mut device.kind
                && let Some(copy) = ebs.snapshot_id.as_ref().and_then(|id| copies.get(id))
            {
                ebs.encrypted = is_encrypted(request, copy);
                ebs.snapshot_id = Some(copy.clone());
            }
            device
        })
        .collect();
    let image = Image {
        id: id.clone(),
        name: name.to_owned(),
        description: params.get("Description").unwrap_or(&source.description).to_owned(),
        location: format!("{account}/{name}"),
        owner: account.clone(),
        state: ImageState::Pending,
        state_reason: None,
        devices,
        permissions: BTreeSet::new(),
        tags: new_tags.remove("image").unwrap_or_default(),
        created: request.world.timestamp(),
        source_image: Some((source_id.to_owned(), source_region.to_owned())),
        source_instance: None,
        ..source
    };
    request.ec2_mut().images.insert(id.clone(), image);
    let change = match problem {
        None => Change::ImageBecomesAvailable(id.clone()),
        Some(message) => {
            Change::ImageFails(id.clone(), StateReason { code: "Client.InternalError".to_owned(), message })
        }
    };
    let delay = request.world.settings.copy_delay_ms;
    later(request.world, &account, request.region, delay, change);
    request.world.note_resource(shared_arn(request.region, "image", &id));
    request.world.note_change();
    request.remember_made(std::slice::from_ref(&id));
    Ok(images::id_reply(&id))
}

/// What EC2 writes on a snapshot that CopyImage makes (field reports; its documents do not say).
fn description(copy: &str, source: &str, snapshot: &str, epoch_ms: u64) -> String {
    let digits = epoch_ms.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    format!(
        "Copied for DestinationAmi {copy} from SourceAmi {source} for SourceSnapshot {snapshot}. Task created on {}.",
        groups.join(",")
    )
}

/// Refuses sources that the caller cannot copy.
///
/// Without permission on the snapshots, CopyImage speaks of the storage. The sentence is documented, for copies that lose
/// launch and snapshot permission alike ("Troubleshoot a logically air-gapped vault issue", AWS Backup developer guide);
/// its code `InvalidRequest` is a field report, as are the many of images that are public and whose snapshots are not
/// (clong/DetectionLab #422, privacysandbox/aggregation-service #12). What CopyImage says where only launch permission
/// is missing we found nowhere: it is taken to be what RunInstances says.
fn check_source(request: &Request<'_>, source: &Image, region: &str) -> Result<(), ApiError> {
    let account = &request.caller.account;
    if source.state != ImageState::Available {
        return Err(images::unavailable(&source.id));
    }
    if source.owner != *account && !source.product_codes.is_empty() {
        return Err(ApiError::bad_request(
            "InvalidRequest",
            "Images from AWS Marketplace cannot be copied to another AWS account",
        ));
    }
    let readable =
        source.snapshot_ids().iter().all(|id| snapshots::visible(request.world, account, region, id).is_some());
    if !readable {
        return Err(ApiError::bad_request(
            "InvalidRequest",
            "You do not have permission to access the storage of this ami",
        ));
    }
    Ok(())
}

/// A snapshot copy that was started.
struct Copy {
    id: String,
    /// What will be wrong with it, if anything.
    problem: Option<String>,
}

/// Starts copying a snapshot that the caller can see; `owner` is where to look
/// for it first.
#[expect(clippy::too_many_arguments)]
fn start_copy(
    request: &mut Request<'_>,
    owner: &str,
    source_region: &str,
    source_id: &str,
    wish: &Wish,
    failure: Option<String>,
    description: String,
    tags: Tags,
) -> Result<Copy, ApiError> {
    let source_snapshot = snapshots::any(request.world, owner, source_region, source_id)
        .cloned()
        .ok_or_else(|| snapshots::not_found(source_id))?;
    let source = Source {
        key: source_snapshot.key.clone(),
        foreign: source_snapshot.owner != request.caller.account,
        other_region: (source_region != request.region).then(|| source_region.to_owned()),
    };
    let id = request.world.next_id("snap");
    let target = encryption::decide(request.world, request.caller, request.region, wish, &source);
    let usable = encryption::check_conversion(request.world, request.caller, request.region, &source, &target, &id);
    let problem = failure.or_else(|| usable.is_err().then(|| KEY_NOT_ACCESSIBLE.to_owned()));
    let copy = Snapshot {
        id: id.clone(),
        owner: request.caller.account.clone(),
        volume_id: NO_VOLUME.to_owned(),
        size: source_snapshot.size,
        description,
        state: SnapshotState::Pending,
        message: None,
        key: target.key().map(String::from),
        permissions: BTreeSet::new(),
        tags,
        started: request.world.timestamp(),
    };
    snapshots::add(request, copy);
    let change = match &problem {
        None => Change::SnapshotCompletes(id.clone()),
        Some(message) => Change::SnapshotFails(id.clone(), message.clone()),
    };
    let delay = request.world.settings.copy_delay_ms;
    later(request.world, &request.caller.account, request.region, delay, change);
    Ok(Copy { id, problem })
}

pub(super) fn copy_snapshot(request: &mut Request<'_>) -> Reply {
    let params = request.params;
    let source_id = params.require("SourceSnapshotId")?;
    let source_region = params.require("SourceRegion")?;
    let mut new_tags = tags::specifications(params, &["snapshot"])?;
    let account = request.caller.account.clone();
    let source = snapshots::visible(request.world, &account, source_region, source_id).cloned();
    let context = source.as_ref().map(|snapshot| snapshot.context(&Tags::new())).unwrap_or_default();
    let arn = shared_arn(source_region, "snapshot", source_id);
    request.world.note_resource(arn.clone());
    authorize(request, &[(arn, context)], &["snapshot"], &new_tags)?;

    let source = source.ok_or_else(|| snapshots::not_found(source_id))?;
    if source.state != SnapshotState::Completed {
        return Err(ApiError::bad_request(
            "IncorrectState",
            format!("Snapshot '{source_id}' is not in a completed state."),
        ));
    }
    let wish = Wish::parse(params)?;
    let under_way = request.ec2().map_or(0, |ec2| {
        ec2.snapshots
            .values()
            .filter(|snapshot| snapshot.volume_id == NO_VOLUME && snapshot.state == SnapshotState::Pending)
            .count()
    });
    if under_way >= CONCURRENT_COPIES {
        return Err(ApiError::bad_request(
            "ResourceLimitExceeded",
            format!(
                "Too many snapshot copies in progress. The limit is {CONCURRENT_COPIES} for this \
                 destination region."
            ),
        ));
    }
    request.end_dry_run()?;

    let failure = faults::take_failure(request.world, request.caller, "ec2:CopySnapshot");
    let tags = new_tags.remove("snapshot").unwrap_or_default();
    let description = params.get("Description").map_or_else(|| source.description.clone(), String::from);
    let copy = start_copy(request, &source.owner, source_region, source_id, &wish, failure, description, tags.clone())?;
    let mut xml = Xml::new();
    xml.elem("snapshotId", &copy.id);
    tags::write(&mut xml, &tags);
    Ok(xml.finish())
}
