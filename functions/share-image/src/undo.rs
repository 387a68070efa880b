//! UndoShareImage: takes the launch permissions back that ShareImage was to give.

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    take_back::{Taken, Undone},
};
use aws_sdk_ec2::{Client, error::ProvideErrorMetadata, types::LaunchPermissionModifications};

use crate::{DESCRIBE, Input, MODIFY, failure, modify, not_yet_visible, permissions, permitted, read};

pub const UNDO_ACTIONS: Actions = Actions { source: &[MODIFY, DESCRIBE], ..Actions::NONE };

/// Removes the accounts from the image's launch permissions and reads them back. A permission that
/// is not there is as good as taken back, and so is one on an image that is gone or disabled: both
/// lose every permission.
///
/// # Errors
/// [`Error::NotYetVisible`] when the read back still has an account.
#[tracing::instrument(skip_all, fields(execution = %input.execution, image = %input.image_id))]
pub async fn undo_share_image(hub: &Hub, input: Input) -> Result<Undone, Error> {
    if input.account_ids.is_empty() {
        return Ok(Undone::default());
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, UNDO_ACTIONS).await?;
    let ec2 = Client::new(&config);
    let had = match read(&ec2, &input.image_id).await {
        Ok(permitted) => permitted,
        Err(error) if is_gone(&error) => return Ok(Undone::default()),
        Err(error) => return Err(aws::failure(&source.account_id, DESCRIBE, error)),
    };
    // Not only those that it was read to have: what was just given may not be listed yet.
    let change = LaunchPermissionModifications::builder().set_remove(Some(permissions(&input.account_ids))).build();
    if let Err(error) = modify(&ec2, &input.image_id, change).await {
        return if is_gone(&error) { Ok(Undone::default()) } else { Err(failure(&input, error)) };
    }
    tracing::info!(accounts = input.account_ids.len(), "launch permission taken back");
    let permitted = permitted(&ec2, &input).await?;
    if let Some(account) = input.account_ids.iter().find(|account| permitted.contains(account.as_str())) {
        return Err(not_yet_visible(&input, &format!("the end of launch permission for account {account}")));
    }
    let from: Vec<String> =
        input.account_ids.iter().map(ToString::to_string).filter(|account| had.contains(account)).collect();
    if from.is_empty() {
        return Ok(Undone::default());
    }
    let taken = Taken {
        call: MODIFY.to_owned(),
        account_id: input.source.account_id,
        resource: input.image_id.to_string(),
        from,
    };
    Ok(Undone { taken: vec![taken] })
}

fn is_gone(error: &impl ProvideErrorMetadata) -> bool {
    matches!(error.code(), Some("InvalidAMIID.NotFound" | "InvalidAMIID.Unavailable"))
}
