//! AuditShares: lists who can use the source account's images and the keys under them, what of it ami-share gave,
//! and what is half there. It changes nothing.
//!
//! An account may have thousands of images, and EC2 answers a call for each. So a run looks at some of them and
//! hands on how far it came; the state machine calls again until there is nothing left to look at. How many calls
//! that takes does not depend on how many accounts the images are shared with, but for the pages of grants.

mod allowed;
mod grantee;
mod images;
mod keys;
mod notes;
mod pace;
mod public_access;
mod report;
mod run;
mod shares;
mod table;

use ami_share_core::{Error, Hub, hub::Actions, ids::ExecutionName, request::AuditRequest, share::Source};
use ami_share_record::Record;
use aws_sdk_ec2::config::retry::RetryConfig;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use images::Inventory;
use notes::Notes;
use run::World;

pub use report::{Kind, Report};
pub use run::Progress;

pub const ACTIONS: Actions = Actions {
    source_reader: &[
        images::DESCRIBE_IMAGES,
        images::DESCRIBE_SNAPSHOTS,
        images::DESCRIBE_IMAGE_ATTRIBUTE,
        images::DESCRIBE_SNAPSHOT_ATTRIBUTE,
        public_access::OF_IMAGES,
        public_access::OF_SNAPSHOTS,
        keys::LIST_KEYS,
        keys::DESCRIBE_KEY,
        ami_share_key_policies::GET_KEY_POLICY,
        ami_share_key_grants::LIST_GRANTS,
        ami_share_key_grants::LIST_TAGS,
    ],
    ..Actions::NONE
};

/// What it calls in the hub account, as its own role.
pub const HUB_ACTIONS: [&str; 2] = [ami_share_record::HUB_ACTIONS[0], ami_share_record::SCAN];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// The input of the execution, as it was given.
    pub request: Value,
    /// How far the run before this one came; nothing for the first one.
    pub progress: Option<Progress>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Nothing when there is nothing left to look at.
    pub progress: Option<Progress>,
    /// Of the last run.
    pub report: Option<Report>,
    /// The report for people.
    pub table: Option<String>,
}

/// # Errors
/// [`Error::InvalidRequest`]; [`Error::ImageNotFound`] for an image that is not there and that nothing is noted of;
/// [`Error::AccessDenied`] where the source account's images or the list of its keys may not be looked at.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn audit_shares(hub: &Hub, input: Input) -> Result<Output, Error> {
    let request = read_request(hub, &input.request)?;
    let source = &request.source;
    let config = hub.as_source_reader(&source.account_id, &source.region, &input.execution, ACTIONS).await?;
    let config = config.to_builder().retry_config(RetryConfig::adaptive().with_max_attempts(pace::ATTEMPTS)).build();
    let ec2 = aws_sdk_ec2::Client::new(&config);
    let world = World {
        hub,
        execution: &input.execution,
        request: &request,
        source_role: hub.source_role(&source.account_id, &source.region),
        inventory: Inventory::read(&ec2, source).await?,
        ec2,
        kms: aws_sdk_kms::Client::new(&config),
    };
    let mut notes = Notes::read(Record::open(hub)?, &request).await?;
    let mut progress = match input.progress {
        Some(progress) => progress,
        None => {
            let mut progress = Progress::new(&request);
            run::look_at_public_access(&world, &mut progress).await?;
            progress
        }
    };
    run::run(&world, &mut notes, &mut progress).await?;
    Ok(match progress.finished() {
        Ok(report) => {
            // The stack counts it: see AuditFindingsFilter in template.yaml.
            tracing::info!(findings = report.found(), "audited");
            Output { progress: None, table: Some(table::table(&report)), report: Some(report) }
        }
        Err(progress) => Output { progress: Some(progress), report: None, table: None },
    })
}

fn read_request(hub: &Hub, request: &Value) -> Result<AuditRequest, Error> {
    let region = hub.region().map_err(|rule| Error::invalid("region", "", rule))?;
    let default_source = Source { account_id: hub.settings.source_account.clone(), region };
    AuditRequest::parse(request, &default_source).map_err(Error::InvalidRequest)
}
