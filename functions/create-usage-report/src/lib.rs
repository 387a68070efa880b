//! CreateUsageReport: has EC2 report which other accounts use the image. It is the owner's view: it needs
//! nothing in a target, knows also of accounts that cannot be asked, and looks at more versions of a launch
//! template than its latest.

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{ExecutionName, ImageId},
    polling::USAGE_REPORT,
    revoke::{SourceImage, UsageReport, UsingResource},
    share::Source,
    tokens::client_token,
};
use aws_sdk_ec2::{Client, error::ProvideErrorMetadata, types::ImageUsageResourceTypeRequest};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions { source_reader: &[CREATE], ..Actions::NONE };

const CREATE: &str = "ec2:CreateImageUsageReport";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    pub image_id: ImageId,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub report: UsageReport,
    pub wait_seconds: u64,
}

/// Starts the report, for every account: EC2 deletes it after 30 days. The same execution has one of each image, however
/// often this is called.
///
/// # Errors
/// Whatever AWS answers, with what to do: without a report nobody can say whether the image is in use.
#[tracing::instrument(skip_all, fields(execution = %input.execution, image = %input.image_id))]
pub async fn create_usage_report(hub: &Hub, input: Input) -> Result<Output, Error> {
    let Input { execution, source, image_id } = &input;
    let config = hub.as_source_reader(&source.account_id, &source.region, execution, ACTIONS).await?;
    let ec2 = Client::new(&config);
    let create = |kinds: &[UsingResource]| {
        let kind = |kind: &UsingResource| ImageUsageResourceTypeRequest::builder().resource_type(kind.name()).build();
        ec2.create_image_usage_report()
            .image_id(image_id.as_str())
            .set_resource_types(Some(kinds.iter().map(kind).collect()))
            .client_token(client_token(execution, &source.account_id, &format!("usage {image_id}")))
            .send()
    };
    let mut created = create(&UsingResource::ALL).await;
    if created.as_ref().is_err_and(|error| error.code() == Some("InvalidParameterValue")) {
        tracing::warn!("EC2 does not know recipes here, and is asked about the rest");
        created = create(&UsingResource::OF_EC2).await;
    }
    let report_id = match created {
        Ok(created) => created.report_id,
        Err(error) if error.code() == Some("InvalidAMIID.NotFound") => {
            let (account, region) = (source.account_id.clone(), source.region.to_string());
            return Err(Error::ImageNotFound { image: image_id.clone(), account, region });
        }
        Err(error) => {
            return Err(match aws::failure(&source.account_id, CREATE, error) {
                Error::Aws { account, call, reason, source } => Error::Aws {
                    reason: format!(
                        "{reason}; so nobody can say whether image {image_id} is in use: revoke it with force, or later"
                    ),
                    account,
                    call,
                    source,
                },
                error => error,
            });
        }
    };
    let report_id = report_id.ok_or_else(|| Error::Unavailable {
        account: source.account_id.clone(),
        call: CREATE,
        source: Some("the answer holds no report id".into()),
    })?;
    tracing::info!(report = report_id, "usage report asked for");
    let image = SourceImage { source: source.clone(), image_id: image_id.clone() };
    Ok(Output { report: UsageReport { image, report_id }, wait_seconds: USAGE_REPORT.shortest })
}
