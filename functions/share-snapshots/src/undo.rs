//! UndoShareSnapshots: takes the permissions back that ShareSnapshots was to give.

use ami_share_core::{Error, Hub, hub::Actions};
use aws_sdk_ec2::{Client, types::OperationType};

use crate::{Input, MODIFY, Output, modify};

pub const UNDO_ACTIONS: Actions = Actions { source: &[MODIFY], target: &[], launcher: &[] };

/// Removes each account from each snapshot's createVolumePermission. A permission or a snapshot
/// that is not there is as good as taken back; one that fails does not keep the others from being
/// tried.
///
/// # Errors
/// Only what AWS answers.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn undo_share_snapshots(hub: &Hub, input: Input) -> Result<Output, Error> {
    let mut modified = Vec::new();
    if input.snapshots.is_empty() {
        return Ok(Output { modified });
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, UNDO_ACTIONS).await?;
    let ec2 = Client::new(&config);
    let mut errors = Vec::new();
    for change in &input.snapshots {
        let mut found = false;
        for batch in change.batches() {
            match modify(&ec2, source, &change.snapshot_id, OperationType::Remove, batch).await {
                Ok(is_there) => found |= is_there,
                Err(error) => errors.push(error),
            }
        }
        if found {
            modified.push(change.snapshot_id.clone());
        }
    }
    Error::all_of(errors)?;
    Ok(Output { modified })
}
