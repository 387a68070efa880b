//! The other images that a target can launch, and the keys under them: what it needs its access to keys for.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, aws,
    ids::{AccountId, ImageId, KeyArn},
    share::Source,
};
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{self, ImageState},
};
use futures_util::{StreamExt, TryStreamExt, stream};

pub const DESCRIBE_IMAGES: &str = "ec2:DescribeImages";
pub const DESCRIBE_SNAPSHOTS: &str = "ec2:DescribeSnapshots";

/// How many calls are made at a time.
const CONCURRENCY: usize = 16;

/// How many snapshots are asked for at a time.
const SNAPSHOTS_PER_CALL: usize = 200;

/// An image with its snapshots.
type WithSnapshots = (ImageId, Vec<String>);

/// The images that an account can launch, and the keys of the source account under them, each with one of
/// these images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Launchable {
    pub images: BTreeSet<ImageId>,
    pub keys: BTreeMap<KeyArn, ImageId>,
}

/// What each of `accounts` can launch besides `this_image`: one call for each account, and one for each
/// 200 snapshots.
///
/// # Errors
/// [`Error::NotYetVisible`] when an image goes while it is looked at; whatever AWS answers.
pub async fn besides(
    ec2: &Client,
    source: &Source,
    this_image: &ImageId,
    accounts: BTreeSet<AccountId>,
) -> Result<BTreeMap<AccountId, Launchable>, Error> {
    let images: Vec<(AccountId, Vec<WithSnapshots>)> = stream::iter(accounts)
        .map(|account| async move {
            let images = launchable(ec2, source, this_image, &account).await?;
            Ok((account, images))
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let of_all = images.iter().flat_map(|(_, images)| images);
    let snapshots: BTreeSet<&String> = of_all.flat_map(|(_, snapshots)| snapshots).collect();
    let keys = keys(ec2, source, snapshots.into_iter().cloned().collect()).await?;
    let launchable = |images: Vec<WithSnapshots>| Launchable {
        keys: keys_under(&images, &keys),
        images: images.into_iter().map(|(image, _)| image).collect(),
    };
    Ok(images.into_iter().map(|(account, images)| (account, launchable(images))).collect())
}

/// The images of the source account, other than `this_image`, that `account` has a launch permission
/// of its own for. Asked for an account that is not the caller's, EC2 names no image that is shared
/// with the account's organization or unit only ("ExecutableBy", EC2 API reference, DescribeImages),
/// nor one that is public, which no encrypted image can be.
async fn launchable(
    ec2: &Client,
    source: &Source,
    this_image: &ImageId,
    account: &AccountId,
) -> Result<Vec<WithSnapshots>, Error> {
    let request = ec2.describe_images().owners("self").executable_users(account.as_str());
    let mut pages = request.into_paginator().page_size(1000).items().send();
    let mut images = Vec::new();
    while let Some(image) = pages.next().await {
        let image = image.map_err(|error| aws::failure(&source.account_id, DESCRIBE_IMAGES, error))?;
        // EC2 goes on naming an image for some time after it was deregistered.
        let gone = image.state() == Some(&ImageState::Deregistered);
        match image.image_id().map(ImageId::parse) {
            Some(Ok(id)) if id != *this_image && !gone => images.push((id, snapshots(&image))),
            _ => {}
        }
    }
    Ok(images)
}

/// The snapshots that an image is made of.
pub fn snapshots(image: &types::Image) -> Vec<String> {
    let mappings = image.block_device_mappings().iter();
    mappings.filter_map(|mapping| mapping.ebs()?.snapshot_id().map(str::to_owned)).collect()
}

/// The key of each snapshot that is under one of the source account's.
///
/// # Errors
/// As [`besides`].
pub async fn keys(ec2: &Client, source: &Source, snapshots: Vec<String>) -> Result<BTreeMap<String, KeyArn>, Error> {
    let batches: Vec<Vec<String>> = snapshots.chunks(SNAPSHOTS_PER_CALL).map(<[String]>::to_vec).collect();
    let found: Vec<Vec<(String, KeyArn)>> =
        stream::iter(batches).map(|batch| keys_of(ec2, source, batch)).buffered(CONCURRENCY).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

async fn keys_of(ec2: &Client, source: &Source, batch: Vec<String>) -> Result<Vec<(String, KeyArn)>, Error> {
    let answer = ec2.describe_snapshots().set_snapshot_ids(Some(batch)).send().await.map_err(|error| {
        match (error.code(), error.message()) {
            // Looked at again, the image that was deregistered meanwhile is not named any more.
            (Some("InvalidSnapshot.NotFound"), message) => Error::NotYetVisible {
                what: format!("that an image is gone with its snapshots ({})", message.unwrap_or_default()),
                account: source.account_id.clone(),
                call: DESCRIBE_SNAPSHOTS,
            },
            _ => aws::failure(&source.account_id, DESCRIBE_SNAPSHOTS, error),
        }
    })?;
    let under_own_key = |snapshot: &types::Snapshot| {
        let key = KeyArn::parse(snapshot.kms_key_id()?).ok()?;
        let own = key.account_id() == source.account_id;
        own.then_some((snapshot.snapshot_id()?.to_owned(), key))
    };
    Ok(answer.snapshots().iter().filter_map(under_own_key).collect())
}

/// Each key under `images`, with the first of them that is under it.
fn keys_under(images: &[WithSnapshots], keys: &BTreeMap<String, KeyArn>) -> BTreeMap<KeyArn, ImageId> {
    let mut under = BTreeMap::new();
    for (image, snapshots) in images {
        for key in snapshots.iter().filter_map(|snapshot| keys.get(snapshot)) {
            under.entry(key.clone()).or_insert_with(|| image.clone());
        }
    }
    under
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_needs_the_keys_under_its_encrypted_snapshots() {
        let image = |id: &str| ImageId::parse(id).unwrap();
        let key = |id: &str| KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/{id}")).unwrap();
        let snapshots = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let images = [
            (image("ami-0000000a"), snapshots(&["snap-1", "snap-2", "snap-unencrypted"])),
            (image("ami-0000000b"), snapshots(&["snap-3"])),
        ];
        let keys = BTreeMap::from([
            ("snap-1".to_owned(), key("1")),
            ("snap-2".to_owned(), key("1")),
            ("snap-3".to_owned(), key("2")),
            ("snap-4".to_owned(), key("3")),
        ]);
        let expected = BTreeMap::from([(key("1"), image("ami-0000000a")), (key("2"), image("ami-0000000b"))]);
        assert_eq!(keys_under(&images, &keys), expected);
        assert_eq!(keys_under(&[], &keys), BTreeMap::new());
    }
}
