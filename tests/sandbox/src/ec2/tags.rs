//! Tags: CreateTags, DeleteTags, and tags given when something is made.

use super::{Ec2, Request, account_arn, images, returns_true, shared_arn, snapshots};
use crate::auth::Context;
use crate::wire::{ApiError, Params, Reply, Xml};
use std::collections::BTreeMap;

/// A resource's tags, by key.
pub type Tags = BTreeMap<String, String>;

/// Tags a resource may have.
const LIMIT: usize = 50;

/// `<tagSet>…</tagSet>`; nothing without tags, as AWS has it.
pub(super) fn write(xml: &mut Xml, tags: &Tags) {
    if tags.is_empty() {
        return;
    }
    xml.items("tagSet", tags, |xml, (key, value)| {
        xml.elem("key", key).elem("value", value);
    });
}

/// The tags of `Tag.N.Key` and `Tag.N.Value`.
fn parse(params: &Params) -> Result<Tags, ApiError> {
    let mut tags = Tags::new();
    for tag in params.structs("Tag") {
        let key = tag.require("Key")?;
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(ApiError::bad_request(
                "InvalidParameterValue",
                "Tag keys starting with 'aws:' are reserved for internal use",
            ));
        }
        let value = tag.get("Value").unwrap_or_default();
        if key.is_empty() || key.chars().count() > 128 || value.chars().count() > 256 {
            return Err(ApiError::bad_request(
                "InvalidParameterValue",
                format!("Tag '{key}' is empty or exceeds the maximum length"),
            ));
        }
        tags.insert(key.to_owned(), value.to_owned());
    }
    check_count(tags.len())?;
    Ok(tags)
}

fn check_count(count: usize) -> Result<(), ApiError> {
    if count > LIMIT {
        return Err(ApiError::bad_request("TagLimitExceeded", "The maximum number of tags has been reached."));
    }
    Ok(())
}

/// The call's tag specifications, by resource type; `types` are those that it
/// can make.
pub(super) fn specifications(params: &Params, types: &[&str]) -> Result<BTreeMap<String, Tags>, ApiError> {
    let mut by_type: BTreeMap<String, Tags> = BTreeMap::new();
    for specification in params.structs("TagSpecification") {
        let resource_type = specification.require("ResourceType")?;
        if !types.contains(&resource_type) {
            return Err(ApiError::bad_request(
                "InvalidParameterValue",
                format!("'{resource_type}' is not a valid taggable resource type for this operation."),
            ));
        }
        by_type.entry(resource_type.to_owned()).or_default().extend(parse(&specification)?);
    }
    Ok(by_type)
}

/// `aws:RequestTag/…` and `aws:TagKeys`, added to `context`.
pub(super) fn add_request_context(context: &mut Context, tags: &Tags) {
    if tags.is_empty() {
        return;
    }
    for (key, value) in tags {
        context.insert(format!("aws:RequestTag/{key}"), vec![value.clone()]);
    }
    context.insert("aws:TagKeys".to_owned(), tags.keys().cloned().collect());
}

/// `aws:ResourceTag/…` and `ec2:ResourceTag/…`, added to `context`.
pub(super) fn add_resource_context(context: &mut Context, tags: &Tags) {
    for (key, value) in tags {
        context.insert(format!("aws:ResourceTag/{key}"), vec![value.clone()]);
        context.insert(format!("ec2:ResourceTag/{key}"), vec![value.clone()]);
    }
}

/// The context of a call on an existing resource with these tags.
pub(super) fn resource_context(tags: &Tags) -> Context {
    let mut context = Context::new();
    add_resource_context(&mut context, tags);
    context
}

/// Whether the caller may tag what the call makes: ec2:CreateTags on the new
/// resource, with the call as ec2:CreateAction.
pub(super) fn authorize_on_create(request: &mut Request<'_>, arn: &str, tags: Option<&Tags>) -> Result<(), ApiError> {
    let Some(tags) = tags.filter(|tags| !tags.is_empty()) else {
        return Ok(());
    };
    request.world.note_implied("ec2:CreateTags");
    let mut context = super::context([("ec2:CreateAction", request.action.to_owned())]);
    add_request_context(&mut context, tags);
    request.authorize_action("CreateTags", arn, &context)
}

pub(super) fn create(request: &mut Request<'_>) -> Reply {
    let tags = parse(request.params)?;
    if tags.is_empty() {
        return Err(ApiError::bad_request("MissingParameter", "The request must contain the parameter Tag"));
    }
    let resources = authorized_resources(request, &tags)?;
    for (id, _) in &resources {
        let mut merged = current(request, id).cloned().unwrap_or_default();
        merged.extend(tags.clone());
        check_count(merged.len())?;
    }
    request.end_dry_run()?;
    for (id, arn) in resources {
        request.world.note_resource(arn);
        let before = current(request, &id).cloned().unwrap_or_default();
        let mut after = before.clone();
        after.extend(tags.clone());
        replace(request, &id, before, after);
    }
    Ok(returns_true())
}

pub(super) fn delete(request: &mut Request<'_>) -> Reply {
    // A key with a value is deleted only where it has that value; without one, always.
    let wanted: Vec<(String, Option<String>)> = request
        .params
        .structs("Tag")
        .iter()
        .filter_map(|tag| Some((tag.get("Key")?.to_owned(), tag.get("Value").map(String::from))))
        .collect();
    let named = wanted.iter().map(|(key, value)| (key.clone(), value.clone().unwrap_or_default())).collect();
    let resources = authorized_resources(request, &named)?;
    request.end_dry_run()?;
    for (id, arn) in resources {
        request.world.note_resource(arn);
        let before = current(request, &id).cloned().unwrap_or_default();
        let mut after = before.clone();
        if wanted.is_empty() {
            after.clear();
        }
        after.retain(|key, value| {
            !wanted.iter().any(|(wanted_key, wanted_value)| {
                wanted_key == key && wanted_value.as_ref().is_none_or(|wanted| wanted == value)
            })
        });
        replace(request, &id, before, after);
    }
    Ok(returns_true())
}

/// The id and ARN of every resource of the call, each authorised.
fn authorized_resources(request: &Request<'_>, tags: &Tags) -> Result<Vec<(String, String)>, ApiError> {
    let mut resources = Vec::new();
    for id in request.params.list("ResourceId") {
        let arn = arn(request, &id)?;
        let mut context = Context::new();
        add_request_context(&mut context, tags);
        if let Some(tags) = current(request, &id) {
            add_resource_context(&mut context, tags);
        }
        request.authorize(&arn, &context)?;
        resources.push((id, arn));
    }
    if resources.is_empty() {
        return Err(ApiError::bad_request("MissingParameter", "The request must contain the parameter resourceIdSet"));
    }
    Ok(resources)
}

/// The ARN of a resource that the caller's account can see, or the error that
/// AWS has for a missing one of its kind.
fn arn(request: &Request<'_>, id: &str) -> Result<String, ApiError> {
    let Request { caller, region, .. } = request;
    let (account, kind) = (caller.account.as_str(), id.split('-').next().unwrap_or(""));
    let empty = Ec2::default();
    let ec2 = request.ec2().unwrap_or(&empty);
    match kind {
        "ami" => images::visible(request.world, account, region, id)
            .map(|_| shared_arn(region, "image", id))
            .ok_or_else(|| images::not_found(id)),
        "snap" => snapshots::visible(request.world, account, region, id)
            .map(|_| shared_arn(region, "snapshot", id))
            .ok_or_else(|| snapshots::not_found(id)),
        "vol" if ec2.volumes.contains_key(id) => Ok(account_arn(region, account, "volume", id)),
        "vol" => Err(super::volumes::not_found(id)),
        "i" if ec2.instances.contains_key(id) => Ok(account_arn(region, account, "instance", id)),
        "i" => Err(super::instances::not_found(id)),
        _ => Err(ApiError::bad_request("InvalidID", format!("The ID '{id}' is not valid"))),
    }
}

/// The caller's account's tags on the resource.
fn current<'r>(request: &'r Request<'_>, id: &str) -> Option<&'r Tags> {
    let ec2 = request.ec2()?;
    let own = || {
        None.or_else(|| ec2.images.get(id).map(|image| &image.tags))
            .or_else(|| ec2.snapshots.get(id).map(|snapshot| &snapshot.tags))
            .or_else(|| ec2.volumes.get(id).map(|volume| &volume.tags))
            .or_else(|| ec2.instances.get(id).map(|instance| &instance.tags))
    };
    own().or_else(|| ec2.tags_on_others.get(id))
}

fn replace(request: &mut Request<'_>, id: &str, before: Tags, after: Tags) {
    if before == after {
        return;
    }
    request.world.note_change();
    let ec2 = request.ec2_mut();
    let tags = if let Some(image) = ec2.images.get_mut(id) {
        &mut image.tags
    } else if let Some(snapshot) = ec2.snapshots.get_mut(id) {
        &mut snapshot.tags
    } else if let Some(volume) = ec2.volumes.get_mut(id) {
        &mut volume.tags
    } else if let Some(instance) = ec2.instances.get_mut(id) {
        &mut instance.tags
    } else {
        ec2.tags_on_others.entry(id.to_owned()).or_default()
    };
    *tags = after;
}
