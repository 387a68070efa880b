//! EC2: images, snapshots, volumes and instances, as far as sharing an encrypted
//! image touches them.
//!
//! One file per noun; `copies` holds what CopyImage and CopySnapshot have in
//! common, `encryption` the choice of a volume's key and the permissions that it
//! takes, `schedule` everything that happens some time after the call.

mod allowed_images;
mod catalog;
mod copies;
mod encryption;
mod filters;
mod images;
mod instances;
mod launch_templates;
mod public_access;
mod schedule;
mod snapshots;
mod tags;
mod usage_reports;
mod volumes;

pub use allowed_images::AllowedImages;
pub use images::{Device, DeviceKind, Image, ImageState, LaunchPermission};
pub use instances::{Instance, InstanceState};
pub use launch_templates::{LaunchTemplate, Version as LaunchTemplateVersion};
pub use public_access::PublicAccess;
pub use schedule::{Schedule, settle};
pub use snapshots::{Snapshot, SnapshotState};
pub use tags::Tags;
pub use usage_reports::{Recipe, ReportState, UsageReport};
pub use volumes::{Attachment, Volume};

use crate::auth::{self, Caller, Context};
use crate::authorization;
use crate::wire::{ApiError, Params, Reply, Service};
use crate::world::{PARTITION, World};
use std::collections::BTreeMap;

/// Why an instance, image or snapshot is in its state, for the owner to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateReason {
    pub code: String,
    pub message: String,
}

/// What a client token was used for.
#[derive(Debug, Clone)]
struct TokenUse {
    params: Params,
    /// The ids of what the call made.
    ids: Vec<String>,
}

/// EC2 of one account and region. Everything is keyed by its id.
#[derive(Debug, Clone, Default)]
pub struct Ec2 {
    pub images: BTreeMap<String, Image>,
    pub snapshots: BTreeMap<String, Snapshot>,
    pub volumes: BTreeMap<String, Volume>,
    pub instances: BTreeMap<String, Instance>,
    pub launch_templates: BTreeMap<String, LaunchTemplate>,
    /// Image Builder's, which usage reports count; put here by tests, as Image Builder is not simulated.
    pub recipes: Vec<Recipe>,
    /// EC2 deletes them by itself, so that they are no part of a snapshot.
    pub usage_reports: BTreeMap<String, UsageReport>,
    /// What ModifyEbsDefaultKmsKeyId set: a key ARN, or as given when it names no key.
    pub default_key: Option<String>,
    pub encryption_by_default: bool,
    /// It is the account's administrator's, and no part of a snapshot.
    pub public_access: PublicAccess,
    /// The same.
    pub allowed_images: AllowedImages,
    /// The account's own tags on images and snapshots of other accounts.
    pub tags_on_others: BTreeMap<String, Tags>,
    /// By action and token.
    tokens: BTreeMap<(String, String), TokenUse>,
}

/// One call being handled.
struct Request<'a> {
    world: &'a mut World,
    caller: &'a Caller,
    region: &'a str,
    action: &'a str,
    params: &'a Params,
}

/// Handles one EC2 call; returns what goes inside `<ActionResponse>`.
pub fn handle(world: &mut World, caller: &Caller, region: &str, action: &str, params: &Params) -> Reply {
    let request = &mut Request { world, caller, region, action, params };
    match action {
        "RegisterImage" => images::register(request),
        "CreateImage" => images::create(request),
        "CopyImage" => copies::copy_image(request),
        "DeregisterImage" => images::deregister(request),
        "DescribeImages" => images::describe(request),
        "DescribeImageAttribute" => images::describe_attribute(request),
        "ModifyImageAttribute" => images::modify_attribute(request),
        "DisableImage" => images::disable(request),
        "EnableImage" => images::enable(request),
        "CreateImageUsageReport" => usage_reports::create(request),
        "DescribeImageUsageReports" => usage_reports::describe(request),
        "DescribeImageUsageReportEntries" => usage_reports::describe_entries(request),
        "CreateSnapshot" => snapshots::create(request),
        "CreateSnapshots" => snapshots::create_of_instance(request),
        "CopySnapshot" => copies::copy_snapshot(request),
        "DeleteSnapshot" => snapshots::delete(request),
        "DescribeSnapshots" => snapshots::describe(request),
        "DescribeSnapshotAttribute" => snapshots::describe_attribute(request),
        "ModifySnapshotAttribute" => snapshots::modify_attribute(request),
        "CreateVolume" => volumes::create(request),
        "DeleteVolume" => volumes::delete(request),
        "DescribeVolumes" => volumes::describe(request),
        "AttachVolume" => volumes::attach(request),
        "DetachVolume" => volumes::detach(request),
        "RunInstances" => instances::run(request),
        "DescribeInstances" => instances::describe(request),
        "TerminateInstances" => instances::terminate(request),
        "StopInstances" => instances::stop(request),
        "StartInstances" => instances::start(request),
        "CreateLaunchTemplate" => launch_templates::create(request),
        "CreateLaunchTemplateVersion" => launch_templates::create_version(request),
        "DescribeLaunchTemplateVersions" => launch_templates::describe_versions(request),
        "CreateTags" => tags::create(request),
        "DeleteTags" => tags::delete(request),
        "GetEbsDefaultKmsKeyId" => encryption::get_default_key(request),
        "ModifyEbsDefaultKmsKeyId" => encryption::modify_default_key(request),
        "ResetEbsDefaultKmsKeyId" => encryption::reset_default_key(request),
        "GetEbsEncryptionByDefault" => encryption::get_by_default(request),
        "EnableEbsEncryptionByDefault" => encryption::set_by_default(request, true),
        "DisableEbsEncryptionByDefault" => encryption::set_by_default(request, false),
        "GetImageBlockPublicAccessState" => public_access::get_of_images(request),
        "EnableImageBlockPublicAccess" => public_access::enable_of_images(request),
        "GetSnapshotBlockPublicAccessState" => public_access::get_of_snapshots(request),
        "EnableSnapshotBlockPublicAccess" => public_access::enable_of_snapshots(request),
        "GetAllowedImagesSettings" => allowed_images::get(request),
        "EnableAllowedImagesSettings" => allowed_images::enable(request),
        "ReplaceImageCriteriaInAllowedImagesSettings" => allowed_images::replace_criteria(request),
        "DescribeInstanceTypes" => catalog::describe_instance_types(request),
        "DescribeSubnets" => catalog::describe_subnets(request),
        _ => Err(ApiError::bad_request(
            "InvalidAction",
            format!("The action {action} is not valid for this web service."),
        )),
    }
}

impl Request<'_> {
    /// The caller's account and region, if anything was ever made there.
    fn ec2(&self) -> Option<&Ec2> {
        self.world.account(&self.caller.account)?.ec2.get(self.region)
    }

    /// The caller's account and region, made if need be.
    fn ec2_mut(&mut self) -> &mut Ec2 {
        self.world.account_mut(&self.caller.account).ec2.entry(self.region.to_owned()).or_default()
    }

    /// Whether the caller may do the called action on the resource.
    fn authorize(&self, resource: &str, context: &Context) -> Result<(), ApiError> {
        self.authorize_action(self.action, resource, context)
    }

    /// Whether the caller may do another EC2 action as part of this call.
    fn authorize_action(&self, action: &str, resource: &str, context: &Context) -> Result<(), ApiError> {
        let mut context = context.clone();
        context.insert("ec2:Region".to_owned(), vec![self.region.to_owned()]);
        auth::authorize(self.world, self.caller, &format!("ec2:{action}"), resource, &context).map_err(|denied| {
            let encoded = authorization::encode(self.world, self.caller, &denied, &context);
            let mut error = Service::Ec2.denied(denied);
            error.message = format!("You are not authorized to perform this operation. {}", error.message);
            // What knows no resources has none (field reports of DescribeInstances and DescribeImages).
            if resource != "*" {
                error.message = format!("{}. Encoded authorization failure message: {encoded}", error.message);
            }
            error
        })
    }

    /// Ends a dry run; to be called once the caller is known to be allowed.
    fn end_dry_run(&self) -> Result<(), ApiError> {
        if self.params.bool("DryRun") == Some(true) {
            return Err(ApiError::new(412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set."));
        }
        Ok(())
    }

    /// The ids that an earlier call with the same client token made.
    ///
    /// `IdempotentParameterMismatch` when that call had other parameters.
    fn made_before(&self) -> Result<Option<Vec<String>>, ApiError> {
        let Some(token) = self.params.get("ClientToken") else {
            return Ok(None);
        };
        let key = (self.action.to_owned(), token.to_owned());
        let Some(token_use) = self.ec2().and_then(|ec2| ec2.tokens.get(&key)) else {
            return Ok(None);
        };
        if token_use.params != self.params_that_count() {
            return Err(ApiError::bad_request(
                "IdempotentParameterMismatch",
                "The client token you have provided is associated with a resource that \
                 was created with different request parameters.",
            ));
        }
        Ok(Some(token_use.ids.clone()))
    }

    /// Remembers what this call made, for a repetition with its client token.
    fn remember_made(&mut self, ids: &[String]) {
        if let Some(token) = self.params.get("ClientToken") {
            let key = (self.action.to_owned(), token.to_owned());
            let token_use = TokenUse { params: self.params_that_count(), ids: ids.to_vec() };
            self.ec2_mut().tokens.insert(key, token_use);
        }
    }

    fn params_that_count(&self) -> Params {
        Params::from_pairs(self.params.iter().filter(|(name, _)| !matches!(*name, "DryRun" | "ClientToken")))
    }
}

/// The ARN of an image or snapshot: these name no account.
fn shared_arn(region: &str, kind: &str, id: &str) -> String {
    format!("arn:{PARTITION}:ec2:{region}::{kind}/{id}")
}

/// The ARN of an instance, volume, subnet, and so on.
fn account_arn(region: &str, account: &str, kind: &str, id: &str) -> String {
    format!("arn:{PARTITION}:ec2:{region}:{account}:{kind}/{id}")
}

/// A condition context of single-valued keys.
fn context<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> Context {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), vec![value])).collect()
}

/// Whether `id` is `prefix` with a hyphen and 8 or 17 hexadecimal digits.
fn is_id(id: &str, prefix: &str) -> bool {
    id.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('-')).is_some_and(|digits| {
        matches!(digits.len(), 8 | 17) && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Whether `account` is a 12-digit account id.
fn is_account_id(account: &str) -> bool {
    account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit())
}

/// `<return>true</return>`
fn returns_true() -> String {
    let mut xml = crate::wire::Xml::new();
    xml.elem("return", true);
    xml.finish()
}

/// The state in canonical form, without timestamps, client tokens and what is
/// terminated. `null` when nothing is left.
pub fn snapshot(ec2: &Ec2) -> serde_json::Value {
    let images: BTreeMap<_, _> = ec2.images.iter().map(|(id, image)| (id, images::picture(image))).collect();
    let snapshots: BTreeMap<_, _> =
        ec2.snapshots.iter().map(|(id, snapshot)| (id, snapshots::picture(snapshot))).collect();
    let instances: BTreeMap<_, _> = ec2
        .instances
        .iter()
        .filter(|(_, instance)| !instance.state.is_over())
        .map(|(id, instance)| (id, instances::picture(instance)))
        .collect();
    let volumes: BTreeMap<_, _> = ec2
        .volumes
        .iter()
        .filter(|(_, volume)| !instances::goes_down_with_its_instance(ec2, volume))
        .map(|(id, volume)| (id, volumes::picture(volume)))
        .collect();
    let launch_templates: BTreeMap<_, _> =
        ec2.launch_templates.iter().map(|(id, template)| (id, launch_templates::picture(template))).collect();
    let tags_on_others: BTreeMap<_, _> = ec2.tags_on_others.iter().filter(|(_, tags)| !tags.is_empty()).collect();
    if images.is_empty()
        && snapshots.is_empty()
        && instances.is_empty()
        && volumes.is_empty()
        && launch_templates.is_empty()
        && tags_on_others.is_empty()
        && ec2.default_key.is_none()
        && !ec2.encryption_by_default
    {
        return serde_json::Value::Null;
    }
    serde_json::json!({
        "images": images,
        "snapshots": snapshots,
        "instances": instances,
        "volumes": volumes,
        "launchTemplates": launch_templates,
        "tagsOnOthers": tags_on_others,
        "defaultKey": ec2.default_key,
        "encryptionByDefault": ec2.encryption_by_default,
    })
}
