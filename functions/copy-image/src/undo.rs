//! UndoCopyImage: removes the copy that an execution made, with its snapshots.

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::ExecutionName,
    share::{EXECUTION_TAG, UndoInput},
};
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{Filter, Tag},
};
use serde::Serialize;

pub const UNDO_ACTIONS: Actions =
    Actions { source: &[], target: &[], launcher: &[DESCRIBE_IMAGES, DEREGISTER, DESCRIBE_SNAPSHOTS, DELETE] };

const DESCRIBE_IMAGES: &str = "ec2:DescribeImages";
const DEREGISTER: &str = "ec2:DeregisterImage";
const DESCRIBE_SNAPSHOTS: &str = "ec2:DescribeSnapshots";
const DELETE: &str = "ec2:DeleteSnapshot";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UndoOutput {
    /// Ids of the images and snapshots that were removed.
    pub removed: Vec<String>,
}

/// Deregisters the target's images that carry the tag of one of the executions, and deletes its snapshots that
/// do, also where the image is gone already or never came to be. What is not there is as good as
/// removed; one thing that fails does not keep the others from being tried. A copy that an earlier
/// execution made stays: where there was one, this execution made none.
///
/// # Errors
/// [`Error::NotYetVisible`] for a copy that EC2 calls unavailable: it may be on its way in or out.
/// [`Error::AccessDenied`], and whatever else EC2 refuses with: a snapshot may be in use for a moment
/// after its image was deregistered.
#[tracing::instrument(skip_all, fields(execution = %input.execution, account = %input.target.account_id))]
pub async fn undo_copy_image(hub: &Hub, input: UndoInput) -> Result<UndoOutput, Error> {
    let UndoInput { execution, made_by, source, target } = &input;
    if target.copy_id.is_some() {
        return Ok(UndoOutput { removed: Vec::new() });
    }
    let account = &target.account_id;
    let config = hub.as_launcher(account, &source.region, execution, UNDO_ACTIONS).await?;
    let ec2 = Client::new(&config);
    let (mut removed, mut errors) = (Vec::new(), Vec::new());

    let mut pages = ec2.describe_images().owners("self").filters(of(made_by)).into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| aws::failure(account, DESCRIBE_IMAGES, error))?;
        for image in page.images().iter().filter(|image| is_of(made_by, image.tags())) {
            let id = image.image_id().unwrap_or_default();
            match ec2.deregister_image().image_id(id).send().await {
                Ok(_) => {
                    tracing::info!(image = id, "copy deregistered");
                    removed.push(id.to_owned());
                }
                Err(error) if error.code() == Some("InvalidAMIID.NotFound") => {}
                Err(error) if error.code() == Some("InvalidAMIID.Unavailable") => errors.push(Error::NotYetVisible {
                    what: format!("whether copy {id} is gone, which is unavailable,"),
                    account: account.clone(),
                    call: DEREGISTER,
                }),
                Err(error) => errors.push(aws::failure(account, DEREGISTER, error)),
            }
        }
    }

    let mut pages = ec2.describe_snapshots().owner_ids("self").filters(of(made_by)).into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| aws::failure(account, DESCRIBE_SNAPSHOTS, error))?;
        for snapshot in page.snapshots().iter().filter(|snapshot| is_of(made_by, snapshot.tags())) {
            let id = snapshot.snapshot_id().unwrap_or_default();
            match ec2.delete_snapshot().snapshot_id(id).send().await {
                Ok(_) => {
                    tracing::info!(snapshot = id, "snapshot deleted");
                    removed.push(id.to_owned());
                }
                Err(error) if error.code() == Some("InvalidSnapshot.NotFound") => {}
                Err(error) => errors.push(aws::failure(account, DELETE, error)),
            }
        }
    }
    Error::all_of(errors)?;
    Ok(UndoOutput { removed })
}

fn of(executions: &[ExecutionName]) -> Filter {
    let names = executions.iter().map(ToString::to_string).collect();
    Filter::builder().name(format!("tag:{EXECUTION_TAG}")).set_values(Some(names)).build()
}

/// A filter takes `*` and `?` for wildcards: what it finds is looked at again.
fn is_of(executions: &[ExecutionName], tags: &[Tag]) -> bool {
    let by = tags.iter().find(|tag| tag.key() == Some(EXECUTION_TAG)).and_then(|tag| tag.value());
    by.is_some_and(|by| executions.iter().any(|execution| execution.as_str() == by))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_carries_exactly_one_of_the_executions_is_ours() {
        let execution = ["nightly*", "weekly"].map(|name| ExecutionName::parse(name).unwrap());
        let tag = |key: &str, value: &str| vec![Tag::builder().key(key).value(value).build()];
        assert!(is_of(&execution, &tag(EXECUTION_TAG, "nightly*")));
        assert!(is_of(&execution, &tag(EXECUTION_TAG, "weekly")));
        assert!(!is_of(&execution, &tag(EXECUTION_TAG, "nightly-2")));
        assert!(!is_of(&execution, &tag("Name", "nightly*")));
        assert!(!is_of(&execution, &[]));
    }
}
