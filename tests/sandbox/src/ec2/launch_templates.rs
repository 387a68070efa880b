//! Launch templates, as far as they name images.

use super::filters::{Filters, page};
use super::tags::Tags;
use super::{Request, account_arn};
use crate::auth::Context;
use crate::wire::{ApiError, Params, Reply, Xml};

/// A launch template.
#[derive(Debug, Clone)]
pub struct LaunchTemplate {
    pub id: String,
    pub name: String,
    /// From number 1; the last one is the latest.
    pub versions: Vec<Version>,
    /// The number of the default version.
    pub default_version: usize,
    pub created: String,
}

/// A version of a launch template: what is set in its data, of what the sandbox knows.
#[derive(Debug, Clone)]
pub struct Version {
    pub image_id: Option<String>,
    pub instance_type: Option<String>,
}

/// Canonical picture for comparing states.
pub(super) fn picture(template: &LaunchTemplate) -> serde_json::Value {
    let images: Vec<_> = template.versions.iter().map(|version| &version.image_id).collect();
    serde_json::json!({ "name": template.name, "images": images, "default": template.default_version })
}

fn version(params: &Params) -> Version {
    let data = params.sub("LaunchTemplateData");
    let field = |name: &str| data.get(name).map(str::to_owned);
    Version { image_id: field("ImageId"), instance_type: field("InstanceType") }
}

pub(super) fn create(request: &mut Request<'_>) -> Reply {
    let arn = account_arn(request.region, &request.caller.account, "launch-template", "*");
    request.authorize(&arn, &Context::new())?;
    let name = request.params.require("LaunchTemplateName")?.to_owned();
    request.end_dry_run()?;
    if request.ec2().is_some_and(|ec2| ec2.launch_templates.values().any(|template| template.name == name)) {
        return Err(ApiError::bad_request(
            "InvalidLaunchTemplateName.AlreadyExistsException",
            "Launch template name already in use.",
        ));
    }
    let template = LaunchTemplate {
        id: request.world.next_id("lt"),
        name,
        versions: vec![version(request.params)],
        default_version: 1,
        created: request.world.timestamp(),
    };
    let mut xml = Xml::new();
    xml.nest("launchTemplate", |xml| {
        xml.elem("launchTemplateId", &template.id)
            .elem("launchTemplateName", &template.name)
            .elem("createTime", &template.created)
            .elem("createdBy", &request.caller.arn)
            .elem("defaultVersionNumber", template.default_version)
            .elem("latestVersionNumber", template.versions.len());
    });
    request.ec2_mut().launch_templates.insert(template.id.clone(), template);
    request.world.note_change();
    Ok(xml.finish())
}

pub(super) fn create_version(request: &mut Request<'_>) -> Reply {
    let id = request.params.require("LaunchTemplateId")?.to_owned();
    let arn = account_arn(request.region, &request.caller.account, "launch-template", &id);
    request.authorize(&arn, &Context::new())?;
    request.end_dry_run()?;
    let version = version(request.params);
    let template = request.ec2_mut().launch_templates.get_mut(&id).ok_or_else(|| not_found(&id))?;
    template.versions.push(version);
    let (template, number) = (template.clone(), template.versions.len());
    request.world.note_change();
    let mut xml = Xml::new();
    xml.nest("launchTemplateVersion", |xml| write(xml, &template, number));
    Ok(xml.finish())
}

fn not_found(id: &str) -> ApiError {
    ApiError::bad_request(
        "InvalidLaunchTemplateId.NotFound",
        format!("The specified launch template, with template ID {id}, does not exist."),
    )
}

/// The latest, the default or both versions of all launch templates.
pub(super) fn describe_versions(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    let filters = Filters::parse(request.params, &["image-id", "instance-type", "is-default-version"])?;
    request.end_dry_run()?;
    let wanted = request.params.list("LaunchTemplateVersion");
    if wanted.is_empty() || wanted.iter().any(|version| !matches!(version.as_str(), "$Latest" | "$Default")) {
        return Err(ApiError::bad_request(
            "InvalidParameterValue",
            "Without a launch template, versions must be $Latest, $Default or both.",
        ));
    }
    let mut found = Vec::new();
    for template in request.ec2().into_iter().flat_map(|ec2| ec2.launch_templates.values()) {
        for number in 1..=template.versions.len() {
            let latest = number == template.versions.len();
            let default = number == template.default_version;
            let is = |name: &str| wanted.iter().any(|version| version == name);
            let version = &template.versions[number - 1];
            let matches = filters.match_item(&Tags::new(), |filter| match filter {
                "image-id" => version.image_id.clone().into_iter().collect(),
                "instance-type" => version.instance_type.clone().into_iter().collect(),
                _ => vec![default.to_string()],
            });
            if ((latest && is("$Latest")) || (default && is("$Default"))) && matches {
                found.push((template, number));
            }
        }
    }
    let (found, next_token) = page(request.params, found, None)?;
    let mut xml = Xml::new();
    xml.items("launchTemplateVersionSet", found, |xml, (template, number)| write(xml, template, number));
    xml.opt("nextToken", next_token);
    Ok(xml.finish())
}

fn write(xml: &mut Xml, template: &LaunchTemplate, number: usize) {
    let version = &template.versions[number - 1];
    xml.elem("launchTemplateId", &template.id)
        .elem("launchTemplateName", &template.name)
        .elem("versionNumber", number)
        .elem("createTime", &template.created)
        .elem("defaultVersion", number == template.default_version);
    xml.nest("launchTemplateData", |xml| {
        xml.opt("imageId", version.image_id.as_ref()).opt("instanceType", version.instance_type.as_ref());
    });
}
