//! Reports on which other accounts use an image. What AWS says of them: a report takes a while, and is deleted
//! after 30 days; instances count for about an hour after they were terminated, which here is for good; of a
//! launch template the latest 20 versions count, unless the call asks for another number.

use super::filters::{Filters, page};
use super::schedule::{Change, later};
use super::tags::Tags;
use super::{Request, account_arn, images, is_account_id};
use crate::auth::Context;
use crate::faults;
use crate::wire::{ApiError, Reply, Xml};
use crate::world::Account;

/// How many versions of a launch template are looked at.
const VERSIONS: usize = 20;

const INSTANCE: &str = "ec2:Instance";
const LAUNCH_TEMPLATE: &str = "ec2:LaunchTemplate";
const IMAGE_RECIPE: &str = "imagebuilder:ImageRecipe";
const CONTAINER_RECIPE: &str = "imagebuilder:ContainerRecipe";

/// The resource types that can be asked for ("ImageUsageResourceTypeRequest", EC2 API reference, in the SDKs of 2026).
const KINDS: [&str; 4] = [INSTANCE, LAUNCH_TEMPLATE, IMAGE_RECIPE, CONTAINER_RECIPE];

/// A recipe of Image Builder, as far as usage reports know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Whether it makes images; containers otherwise.
    pub of_images: bool,
    /// The image that it builds on.
    pub image_id: String,
}

/// State of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportState {
    Pending,
    Available,
    /// With its reason.
    Error(String),
}

/// A report. What it says is known from the start, and told when it is available.
#[derive(Debug, Clone)]
pub struct UsageReport {
    pub id: String,
    pub image_id: String,
    pub state: ReportState,
    pub created: String,
    /// Account, resource type, count.
    pub entries: Vec<(String, &'static str, usize)>,
}

pub(super) fn create(request: &mut Request<'_>) -> Reply {
    let arn = account_arn(request.region, &request.caller.account, "image-usage-report", "*");
    request.authorize(&arn, &Context::new())?;
    let image = images::own_image(request)?;
    let kinds = request.params.structs("ResourceType");
    let kinds: Vec<&str> = kinds.iter().map(|kind| kind.require("ResourceType")).collect::<Result<_, _>>()?;
    if kinds.is_empty() || kinds.iter().any(|kind| !KINDS.contains(kind)) {
        return Err(ApiError::bad_request(
            "InvalidParameterValue",
            "A resource type is missing or not one that is known.",
        ));
    }
    let accounts = request.params.list("AccountId");
    if let Some(wrong) = accounts.iter().find(|account| !is_account_id(account)) {
        return Err(ApiError::bad_request("InvalidParameterValue", format!("Invalid account id {wrong}")));
    }
    if let Some(made) = request.made_before()? {
        return Ok(write_id(&made[0]));
    }
    let failure = faults::take_failure(request.world, request.caller, "ec2:CreateImageUsageReport");
    let id = request.world.next_id("report");
    let counted = |account: &Account| {
        account.id != request.caller.account && (accounts.is_empty() || accounts.contains(&account.id))
    };
    let mut entries = Vec::new();
    for account in request.world.accounts.values().filter(|account| counted(account)) {
        let uses = [
            (INSTANCE, instances(account, request.region, &image.id)),
            (LAUNCH_TEMPLATE, launch_templates(account, request.region, &image.id)),
            (IMAGE_RECIPE, recipes(account, request.region, &image.id, true)),
            (CONTAINER_RECIPE, recipes(account, request.region, &image.id, false)),
        ];
        entries.extend(
            uses.into_iter()
                .filter(|(kind, count)| *count > 0 && kinds.contains(kind))
                .map(|(kind, count)| (account.id.clone(), kind, count)),
        );
    }
    let report = UsageReport {
        id: id.clone(),
        image_id: image.id,
        state: ReportState::Pending,
        created: request.world.timestamp(),
        entries,
    };
    request.ec2_mut().usage_reports.insert(id.clone(), report);
    request.remember_made(std::slice::from_ref(&id));
    request.world.note_change();
    let (state, delay) =
        (failure.map_or(ReportState::Available, ReportState::Error), request.world.settings.copy_delay_ms);
    later(request.world, &request.caller.account, request.region, delay, Change::ReportEnds(id.clone(), state));
    Ok(write_id(&id))
}

fn write_id(id: &str) -> String {
    let mut xml = Xml::new();
    xml.elem("reportId", id);
    xml.finish()
}

fn instances(account: &Account, region: &str, image: &str) -> usize {
    let instances = account.ec2.get(region).into_iter().flat_map(|ec2| ec2.instances.values());
    instances.filter(|instance| instance.image_id == image).count()
}

fn launch_templates(account: &Account, region: &str, image: &str) -> usize {
    let templates = account.ec2.get(region).into_iter().flat_map(|ec2| ec2.launch_templates.values());
    let uses = |version: &super::LaunchTemplateVersion| version.image_id.as_deref() == Some(image);
    templates.filter(|template| template.versions.iter().rev().take(VERSIONS).any(uses)).count()
}

fn recipes(account: &Account, region: &str, image: &str, of_images: bool) -> usize {
    let recipes = account.ec2.get(region).into_iter().flat_map(|ec2| &ec2.recipes);
    recipes.filter(|recipe| recipe.of_images == of_images && recipe.image_id == image).count()
}

pub(super) fn describe(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    let filters = Filters::parse(request.params, &["state"])?;
    request.end_dry_run()?;
    let mut reports = asked_for(request)?;
    reports.retain(|report| filters.match_item(&Tags::new(), |_| vec![state(report).to_owned()]));
    let (reports, next_token) = page(request.params, reports, None)?;
    let mut xml = Xml::new();
    xml.items("imageUsageReportSet", reports, |xml, report| {
        xml.elem("imageId", &report.image_id)
            .elem("reportId", &report.id)
            .elem("state", state(report))
            .elem("creationTime", &report.created);
        if let ReportState::Error(reason) = &report.state {
            xml.elem("stateReason", reason);
        }
    });
    xml.opt("nextToken", next_token);
    Ok(xml.finish())
}

pub(super) fn describe_entries(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    let filters = Filters::parse(request.params, &["account-id", "resource-type"])?;
    request.end_dry_run()?;
    let reports = asked_for(request)?;
    let available = reports.iter().filter(|report| report.state == ReportState::Available);
    let mut entries: Vec<_> =
        available.flat_map(|report| report.entries.iter().map(move |entry| (*report, entry))).collect();
    entries.retain(|(_, (account, kind, _))| {
        filters.match_item(&Tags::new(), |filter| {
            vec![if filter == "account-id" { account.clone() } else { (*kind).to_owned() }]
        })
    });
    let (entries, next_token) = page(request.params, entries, None)?;
    let mut xml = Xml::new();
    xml.items("imageUsageReportEntrySet", entries, |xml, (report, (account, kind, count))| {
        xml.elem("resourceType", kind)
            .elem("reportId", &report.id)
            .elem("usageCount", count)
            .elem("accountId", account)
            .elem("imageId", &report.image_id)
            .elem("reportCreationTime", &report.created);
    });
    xml.opt("nextToken", next_token);
    Ok(xml.finish())
}

/// The caller's reports that the call names; all where it names none.
fn asked_for<'r>(request: &'r Request<'_>) -> Result<Vec<&'r UsageReport>, ApiError> {
    let (ids, images) = (request.params.list("ReportId"), request.params.list("ImageId"));
    let known = |id: &String| request.ec2().is_some_and(|ec2| ec2.usage_reports.contains_key(id));
    if let Some(unknown) = ids.iter().find(|id| !known(id)) {
        return Err(ApiError::bad_request(
            "InvalidImageUsageReportId.NotFound",
            format!("The image usage report '{unknown}' does not exist"),
        ));
    }
    let reports = request.ec2().into_iter().flat_map(|ec2| ec2.usage_reports.values());
    let named = |report: &&UsageReport| {
        (ids.is_empty() || ids.contains(&report.id)) && (images.is_empty() || images.contains(&report.image_id))
    };
    Ok(reports.filter(named).collect())
}

fn state(report: &UsageReport) -> &'static str {
    match report.state {
        ReportState::Pending => "pending",
        ReportState::Available => "available",
        ReportState::Error(_) => "error",
    }
}
