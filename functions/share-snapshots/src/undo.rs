//! UndoShareSnapshots: takes the permissions back that ShareSnapshots was to give.

use std::collections::BTreeSet;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::SnapshotId,
    share::Source,
    take_back::{Taken, Undone},
};
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{OperationType, SnapshotAttributeName},
};

use crate::{Input, MODIFY, modify};

pub const UNDO_ACTIONS: Actions = Actions { source: &[MODIFY, DESCRIBE], ..Actions::NONE };

const DESCRIBE: &str = "ec2:DescribeSnapshotAttribute";

/// Removes each account from each snapshot's createVolumePermission. A permission or a snapshot
/// that is not there is as good as taken back; one that fails does not keep the others from being
/// tried.
///
/// # Errors
/// Only what AWS answers.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn undo_share_snapshots(hub: &Hub, input: Input) -> Result<Undone, Error> {
    let changes: Vec<_> = input.snapshots.iter().filter(|change| !change.account_ids.is_empty()).collect();
    if changes.is_empty() {
        return Ok(Undone::default());
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, UNDO_ACTIONS).await?;
    let ec2 = Client::new(&config);
    let (mut taken, mut errors) = (Vec::new(), Vec::new());
    for change in changes {
        let had = match permitted(&ec2, source, &change.snapshot_id).await {
            Ok(Some(permitted)) => permitted,
            Ok(None) => continue,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        for batch in change.batches() {
            // Not only those that it was read to have: what was just given may not be listed yet.
            if let Err(error) = modify(&ec2, source, &change.snapshot_id, OperationType::Remove, batch).await {
                errors.push(error);
                continue;
            }
            let from: Vec<String> =
                batch.iter().map(ToString::to_string).filter(|account| had.contains(account)).collect();
            if !from.is_empty() {
                let (account_id, resource) = (source.account_id.clone(), change.snapshot_id.to_string());
                taken.push(Taken { call: MODIFY.to_owned(), account_id, resource, from });
            }
        }
    }
    Error::all_of(errors)?;
    Ok(Undone { taken })
}

/// The accounts that may copy it; nothing where there is no such snapshot.
async fn permitted(ec2: &Client, source: &Source, snapshot: &SnapshotId) -> Result<Option<BTreeSet<String>>, Error> {
    let answer = ec2
        .describe_snapshot_attribute()
        .snapshot_id(snapshot.as_str())
        .attribute(SnapshotAttributeName::CreateVolumePermission)
        .send()
        .await;
    match answer {
        Ok(answer) => {
            let permissions = answer.create_volume_permissions().iter();
            Ok(Some(permissions.filter_map(|permission| permission.user_id().map(str::to_owned)).collect()))
        }
        Err(error) if error.code() == Some("InvalidSnapshot.NotFound") => Ok(None),
        Err(error) => Err(aws::failure(&source.account_id, DESCRIBE, error)),
    }
}
