//! DescribeUsageReport: looks whether EC2's reports on who uses the images are there, and reads what they say
//! of the targets.

use std::collections::BTreeMap;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId},
    polling::USAGE_REPORT,
    revoke::{Usage, UsageReport, Use, UsingResource},
    share::Source,
};
use aws_sdk_ec2::{Client, error::ProvideErrorMetadata, primitives::DateTime, types::ImageUsageReportEntry};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions { source_reader: &[DESCRIBE, DESCRIBE_ENTRIES], ..Actions::NONE };

const DESCRIBE: &str = "ec2:DescribeImageUsageReports";
const DESCRIBE_ENTRIES: &str = "ec2:DescribeImageUsageReportEntries";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// One of each image.
    pub reports: Vec<UsageReport>,
    /// Whose use they are about, and what the targets themselves have said.
    pub usage: Usage,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub state: State,
    /// Until the next look.
    pub wait_seconds: u64,
    /// With what the reports say, once all are there.
    pub usage: Usage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Pending,
    Available,
}

/// # Errors
/// [`Error::Aws`] for a report that came to nothing, also when it has been pending for six hours: without it
/// nobody can say whether the image is in use. [`Error::NotYetVisible`].
#[tracing::instrument(skip_all, fields(execution = %input.execution, reports = input.reports.len()))]
pub async fn describe_usage_report(hub: &Hub, input: Input) -> Result<Output, Error> {
    let Input { execution, reports, mut usage } = input;
    let mut by_source: BTreeMap<&Source, Vec<&UsageReport>> = BTreeMap::new();
    for report in &reports {
        by_source.entry(&report.image.source).or_default().push(report);
    }
    let mut available = Vec::new();
    for (source, reports) in by_source {
        let ec2 = Client::new(&hub.as_source_reader(&source.account_id, &source.region, &execution, ACTIONS).await?);
        for report in reports {
            if let Some(wait_seconds) = until_available(hub, &ec2, report).await? {
                return Ok(Output { state: State::Pending, wait_seconds, usage });
            }
            available.push((ec2.clone(), report));
        }
    }
    for (ec2, report) in available {
        usage.add_reported(&report.image, reported(&ec2, report).await?);
    }
    Ok(Output { state: State::Available, wait_seconds: 0, usage })
}

/// Until the next look, in seconds; nothing where the report is there.
async fn until_available(hub: &Hub, ec2: &Client, asked: &UsageReport) -> Result<Option<u64>, Error> {
    let account = &asked.image.source.account_id;
    let found = match ec2.describe_image_usage_reports().report_ids(&asked.report_id).send().await {
        Ok(answer) => answer.image_usage_reports.unwrap_or_default().into_iter().next(),
        Err(error) if error.code().is_some_and(|code| code.ends_with(".NotFound")) => None,
        Err(error) => return Err(aws::failure(account, DESCRIBE, error)),
    };
    let Some(report) = found else {
        return Err(Error::NotYetVisible {
            what: format!("usage report {} of image {}", asked.report_id, asked.image.image_id),
            account: account.clone(),
            call: DESCRIBE,
        });
    };
    match report.state() {
        Some("available") => Ok(None),
        Some("pending") => {
            let age = DateTime::from(hub.now()).secs() - report.creation_time().map_or(0, DateTime::secs);
            let age = u64::try_from(age).unwrap_or_default();
            if age > USAGE_REPORT.patience {
                return Err(unknown(asked, "it has been pending for over six hours"));
            }
            Ok(Some(USAGE_REPORT.wait(age)))
        }
        state => {
            let reason = report.state_reason().unwrap_or("no reason is given");
            Err(unknown(asked, &format!("it is in state {}: {reason}", state.unwrap_or("unknown"))))
        }
    }
}

fn unknown(asked: &UsageReport, why: &str) -> Error {
    Error::Aws {
        account: asked.image.source.account_id.clone(),
        call: DESCRIBE,
        reason: format!(
            "usage report {} came to nothing ({why}); so nobody can say whether image {} is in use: revoke it with \
             force, or later",
            asked.report_id, asked.image.image_id
        ),
        source: None,
    }
}

async fn reported(ec2: &Client, report: &UsageReport) -> Result<Vec<Use>, Error> {
    let UsageReport { image, report_id } = report;
    let mut pages = ec2.describe_image_usage_report_entries().report_ids(report_id).into_paginator().items().send();
    let mut reported = Vec::new();
    while let Some(entry) = pages.next().await {
        let entry = entry.map_err(|error| aws::failure(&image.source.account_id, DESCRIBE_ENTRIES, error))?;
        reported.extend(read(&entry, &image.image_id));
    }
    Ok(reported)
}

/// Nothing for an entry that says of no use.
fn read(entry: &ImageUsageReportEntry, image: &ImageId) -> Option<Use> {
    let resource = UsingResource::named(entry.resource_type()?)?;
    let count = u64::try_from(entry.usage_count()?).ok().filter(|count| *count > 0)?;
    let account_id = AccountId::parse(entry.account_id()?).ok()?;
    Some(Use { account_id, image_id: image.clone(), resource, count, ids: vec![] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_who_uses_the_image_how_often() {
        let image = ImageId::parse("ami-0123abcd").unwrap();
        let entry = |resource: &str, count: i64| {
            ImageUsageReportEntry::builder()
                .resource_type(resource)
                .account_id("222222222222")
                .usage_count(count)
                .build()
        };
        let used = read(&entry("ec2:LaunchTemplate", 3), &image).unwrap();
        assert_eq!(
            (used.account_id.as_str(), used.resource, used.count),
            ("222222222222", UsingResource::LaunchTemplate, 3)
        );
        for resource in UsingResource::ALL {
            assert_eq!(read(&entry(resource.name(), 1), &image).unwrap().resource, resource);
        }
        assert_eq!(read(&entry("ec2:Instance", 0), &image), None);
        assert_eq!(read(&entry("ec2:Fleet", 1), &image), None);
    }
}
