//! Whether the source account lets images and snapshots be made public: EC2's and EBS's block public access, which are
//! settings of each Region.

use std::fmt;

use ami_share_core::{Error, aws, share::Source};
use aws_sdk_ec2::{Client, types::ManagedBy};
use serde::{Deserialize, Serialize};

pub(crate) const OF_IMAGES: &str = "ec2:GetImageBlockPublicAccessState";
pub(crate) const OF_SNAPSHOTS: &str = "ec2:GetSnapshotBlockPublicAccessState";

/// In EC2's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BlockPublicAccess {
    /// `unblocked`, `block-new-sharing` or `block-all-sharing`.
    state: String,
    /// `account` or `declarative-policy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    managed_by: Option<String>,
}

impl BlockPublicAccess {
    fn new(state: String, managed_by: Option<ManagedBy>) -> Self {
        Self { state, managed_by: managed_by.map(|by| by.as_str().to_owned()) }
    }
}

impl fmt::Display for BlockPublicAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.state)?;
        self.managed_by.iter().try_for_each(|by| write!(f, " (managed by {by})"))
    }
}

/// For images.
///
/// # Errors
/// Whatever AWS answers.
pub(crate) async fn of_images(ec2: &Client, source: &Source) -> Result<Option<BlockPublicAccess>, Error> {
    let answer = ec2.get_image_block_public_access_state().send().await;
    let answer = answer.map_err(|error| aws::failure(&source.account_id, OF_IMAGES, error))?;
    Ok(answer.image_block_public_access_state.map(|state| BlockPublicAccess::new(state, answer.managed_by)))
}

/// For snapshots.
///
/// # Errors
/// Whatever AWS answers.
pub(crate) async fn of_snapshots(ec2: &Client, source: &Source) -> Result<Option<BlockPublicAccess>, Error> {
    let answer = ec2.get_snapshot_block_public_access_state().send().await;
    let answer = answer.map_err(|error| aws::failure(&source.account_id, OF_SNAPSHOTS, error))?;
    Ok(answer.state.map(|state| BlockPublicAccess::new(state.as_str().to_owned(), answer.managed_by)))
}
