//! ShareSnapshots: lets targets use the image's snapshots that copy the image, or ask to make volumes of them. A launch
//! does not need it.

mod undo;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, SnapshotId},
    share::{SnapshotChange, Source},
};
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{OperationType, SnapshotAttributeName},
};
use serde::{Deserialize, Serialize};

pub use undo::{UNDO_ACTIONS, undo_share_snapshots};

pub const ACTIONS: Actions = Actions { source: &[MODIFY], ..Actions::NONE };

const MODIFY: &str = "ec2:ModifySnapshotAttribute";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    /// The accounts that may not copy each snapshot yet.
    pub snapshots: Vec<SnapshotChange>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub modified: Vec<SnapshotId>,
}

/// Adds each account to each snapshot's createVolumePermission; EC2 takes one that is there already.
///
/// # Errors
/// [`Error::SourceNotAllowed`]; [`Error::TargetNotAllowed`]; [`Error::KeyNotShareable`] for a snapshot under the AWS-managed key.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn share_snapshots(hub: &Hub, input: Input) -> Result<Output, Error> {
    let accounts = input.snapshots.iter().flat_map(|change| &change.account_ids);
    hub.settings.sources.check(&input.source.account_id)?;
    ami_share_allow_list::check(hub, &input.execution, accounts).await?;
    let mut modified = Vec::new();
    if input.snapshots.is_empty() {
        return Ok(Output { modified });
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, ACTIONS).await?;
    let ec2 = Client::new(&config);
    for change in &input.snapshots {
        for batch in change.batches() {
            modify(&ec2, source, &change.snapshot_id, OperationType::Add, batch).await?;
        }
        modified.push(change.snapshot_id.clone());
    }
    Ok(Output { modified })
}

/// `Ok(false)`: there is no such snapshot.
async fn modify(
    ec2: &Client,
    source: &Source,
    snapshot: &SnapshotId,
    operation: OperationType,
    accounts: &[AccountId],
) -> Result<bool, Error> {
    let answer = ec2
        .modify_snapshot_attribute()
        .snapshot_id(snapshot.as_str())
        .attribute(SnapshotAttributeName::CreateVolumePermission)
        .operation_type(operation.clone())
        .set_user_ids(Some(accounts.iter().map(ToString::to_string).collect()))
        .send()
        .await;
    let Err(error) = answer else {
        tracing::info!(%snapshot, %operation, accounts = accounts.len(), "snapshot permission modified");
        return Ok(true);
    };
    match error.code() {
        Some("InvalidSnapshot.NotFound") if operation == OperationType::Remove => Ok(false),
        Some("OperationNotPermitted" | "InvalidParameter") => Err(Error::KeyNotShareable {
            key: format!("of snapshot {snapshot}"),
            reason: format!("{MODIFY}: {}", error.message().unwrap_or_default()),
        }),
        _ => Err(aws::failure(&source.account_id, MODIFY, error)),
    }
}
