//! ShareImage: gives the targets launch permission. The last step in the source account: what a
//! target can see from here on, it can use.

mod undo;

use std::collections::BTreeSet;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId},
    share::Source,
};
use aws_sdk_ec2::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::{
        describe_image_attribute::DescribeImageAttributeError, modify_image_attribute::ModifyImageAttributeError,
    },
    types::{ImageAttributeName, LaunchPermission, LaunchPermissionModifications},
};
use serde::{Deserialize, Serialize};

pub use undo::{UNDO_ACTIONS, undo_share_image};

pub const ACTIONS: Actions = Actions { source: &[MODIFY, DESCRIBE], ..Actions::NONE };

const MODIFY: &str = "ec2:ModifyImageAttribute";
const DESCRIBE: &str = "ec2:DescribeImageAttribute";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    pub image_id: ImageId,
    /// The accounts without launch permission.
    pub account_ids: Vec<AccountId>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub modified: Vec<AccountId>,
}

/// Adds the accounts to the image's launch permissions in one call, and reads them back. EC2 takes
/// 10,000 accounts a call, far more than a request has; it takes all of a call or nothing.
///
/// # Errors
/// [`Error::SourceNotAllowed`]; [`Error::TargetNotAllowed`]; [`Error::InvalidRequest`] for an account that EC2 does not know;
/// [`Error::QuotaExceeded`]; [`Error::NotYetVisible`] when the read back lacks an account.
#[tracing::instrument(skip_all, fields(execution = %input.execution, image = %input.image_id))]
pub async fn share_image(hub: &Hub, input: Input) -> Result<Output, Error> {
    hub.settings.sources.check(&input.source.account_id)?;
    ami_share_allow_list::check(hub, &input.execution, &input.account_ids).await?;
    if input.account_ids.is_empty() {
        return Ok(Output { modified: Vec::new() });
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, ACTIONS).await?;
    let ec2 = Client::new(&config);
    let change = LaunchPermissionModifications::builder().set_add(Some(permissions(&input.account_ids))).build();
    modify(&ec2, &input.image_id, change).await.map_err(|error| failure(&input, error))?;
    tracing::info!(accounts = input.account_ids.len(), "launch permission given");
    let permitted = permitted(&ec2, &input).await?;
    match input.account_ids.iter().find(|account| !permitted.contains(account.as_str())) {
        Some(account) => Err(not_yet_visible(&input, &format!("launch permission for account {account}"))),
        None => Ok(Output { modified: input.account_ids }),
    }
}

async fn modify(
    ec2: &Client,
    image: &ImageId,
    change: LaunchPermissionModifications,
) -> Result<(), SdkError<ModifyImageAttributeError>> {
    ec2.modify_image_attribute().image_id(image.as_str()).launch_permission(change).send().await.map(|_| ())
}

fn permissions(accounts: &[AccountId]) -> Vec<LaunchPermission> {
    accounts.iter().map(|account| LaunchPermission::builder().user_id(account.as_str()).build()).collect()
}

async fn permitted(ec2: &Client, input: &Input) -> Result<BTreeSet<String>, Error> {
    read(ec2, &input.image_id).await.map_err(|error| aws::failure(&input.source.account_id, DESCRIBE, error))
}

async fn read(ec2: &Client, image: &ImageId) -> Result<BTreeSet<String>, SdkError<DescribeImageAttributeError>> {
    let answer = ec2
        .describe_image_attribute()
        .image_id(image.as_str())
        .attribute(ImageAttributeName::LaunchPermission)
        .send()
        .await?;
    Ok(answer.launch_permissions().iter().filter_map(|permission| permission.user_id().map(str::to_owned)).collect())
}

fn failure(input: &Input, error: SdkError<ModifyImageAttributeError>) -> Error {
    let message = error.message().unwrap_or_default().to_owned();
    let (image, account) = (input.image_id.clone(), input.source.account_id.clone());
    match error.code() {
        Some("InvalidAMIID.NotFound") => {
            Error::ImageNotFound { image, account, region: input.source.region.to_string() }
        }
        Some("InvalidAMIID.Unavailable") => {
            Error::ImageNotAvailable { image, account, state: "not available".to_owned() }
        }
        Some("InvalidAMIAttributeItemValue") => {
            let accounts: Vec<&str> = input.account_ids.iter().map(AccountId::as_str).collect();
            Error::invalid("targets", accounts.join(", "), format!("must be accounts that exist ({MODIFY}: {message})"))
        }
        Some("InvalidParameter") => Error::ImageNotShareable { image, account, reason: format!("{MODIFY}: {message}") },
        _ => aws::failure(&account, MODIFY, error),
    }
}

fn not_yet_visible(input: &Input, what: &str) -> Error {
    Error::NotYetVisible {
        what: format!("{what} on image {}", input.image_id),
        account: input.source.account_id.clone(),
        call: DESCRIBE,
    }
}
