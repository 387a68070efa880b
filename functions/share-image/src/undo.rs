//! UndoShareImage: takes the launch permissions back that ShareImage was to give.

use ami_share_core::{Error, Hub, hub::Actions};
use aws_sdk_ec2::{Client, error::ProvideErrorMetadata, types::LaunchPermissionModifications};

use crate::{DESCRIBE, Input, MODIFY, Output, failure, modify, not_yet_visible, permissions, permitted};

pub const UNDO_ACTIONS: Actions = Actions { source: &[MODIFY, DESCRIBE], target: &[], launcher: &[] };

/// Removes the accounts from the image's launch permissions and reads them back. A permission that
/// is not there is as good as taken back, and so is one on an image that is gone or disabled: both
/// lose every permission.
///
/// # Errors
/// [`Error::NotYetVisible`] when the read back still has an account.
#[tracing::instrument(skip_all, fields(execution = %input.execution, image = %input.image_id))]
pub async fn undo_share_image(hub: &Hub, input: Input) -> Result<Output, Error> {
    if input.account_ids.is_empty() {
        return Ok(Output { modified: Vec::new() });
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, UNDO_ACTIONS).await?;
    let ec2 = Client::new(&config);
    let change = LaunchPermissionModifications::builder().set_remove(Some(permissions(&input.account_ids))).build();
    if let Err(error) = modify(&ec2, &input.image_id, change).await {
        return match error.code() {
            Some("InvalidAMIID.NotFound" | "InvalidAMIID.Unavailable") => Ok(Output { modified: Vec::new() }),
            _ => Err(failure(&input, error)),
        };
    }
    tracing::info!(accounts = input.account_ids.len(), "launch permission taken back");
    let permitted = permitted(&ec2, &input).await?;
    match input.account_ids.iter().find(|account| permitted.contains(account.as_str())) {
        Some(account) => Err(not_yet_visible(&input, &format!("the end of launch permission for account {account}"))),
        None => Ok(Output { modified: input.account_ids }),
    }
}
