//! The images that the source account owns, what they are made of, and whom EC2 lets use them.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, aws,
    ids::{ImageId, KeyArn, SnapshotId},
    share::Source,
};
use ami_share_launchable as launchable;
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{self, Filter, ImageAttributeName, ImageState, SnapshotAttributeName},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::{grantee::Grantee, pace::CONCURRENCY};

pub(crate) const DESCRIBE_IMAGES: &str = launchable::DESCRIBE_IMAGES;
pub(crate) const DESCRIBE_SNAPSHOTS: &str = "ec2:DescribeSnapshots";
pub(crate) const DESCRIBE_IMAGE_ATTRIBUTE: &str = "ec2:DescribeImageAttribute";
pub(crate) const DESCRIBE_SNAPSHOT_ATTRIBUTE: &str = "ec2:DescribeSnapshotAttribute";

/// How many snapshots are asked for at a time: the most values of a filter ("Filtering", EC2 user guide).
const SNAPSHOTS_PER_CALL: usize = 200;

/// An image of the source account.
#[derive(Debug)]
pub(crate) struct OwnImage {
    pub(crate) name: String,
    /// One that is not has no launch permissions: EC2 drops them when an image is disabled.
    available: bool,
    pub(crate) snapshots: BTreeSet<SnapshotId>,
    /// The device of each volume, with the snapshot that it is made of.
    pub(crate) devices: Vec<(String, SnapshotId)>,
}

/// Every image of the source account in the Region, and the keys that its own snapshots are under.
#[derive(Debug, Default)]
pub(crate) struct Inventory {
    pub(crate) images: BTreeMap<ImageId, OwnImage>,
    /// Of the account's own snapshots; nothing for one that is not encrypted.
    keys: BTreeMap<SnapshotId, Option<KeyArn>>,
}

/// A place in the order in which images are looked at: those of one key together, so that few keys are
/// half looked at when a run ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Position {
    /// Whether it is only looked at because it is under a key of the image that was asked for.
    pub(crate) sibling: bool,
    first_key: Option<KeyArn>,
    pub(crate) image_id: ImageId,
}

impl Inventory {
    /// One call for each 1,000 images, and one for each 200 snapshots.
    ///
    /// # Errors
    /// Whatever AWS answers.
    pub(crate) async fn read(ec2: &Client, source: &Source) -> Result<Self, Error> {
        let request = ec2.describe_images().owners("self").include_disabled(true);
        let images = launchable::images_of(source, request, OwnImage::of).await?;
        let snapshots: BTreeSet<&SnapshotId> = images.values().flat_map(|image| &image.snapshots).collect();
        let snapshots: Vec<String> = snapshots.into_iter().map(ToString::to_string).collect();
        let batches: Vec<Vec<String>> = snapshots.chunks(SNAPSHOTS_PER_CALL).map(<[String]>::to_vec).collect();
        let keys: Vec<Vec<(SnapshotId, Option<KeyArn>)>> =
            stream::iter(batches).map(|batch| keys_of(ec2, source, batch)).buffered(CONCURRENCY).try_collect().await?;
        Ok(Self { images, keys: keys.into_iter().flatten().collect() })
    }

    /// The keys under an image's volumes.
    pub(crate) fn keys(&self, image: &ImageId) -> BTreeSet<&KeyArn> {
        let snapshots = self.images.get(image).map(|image| &image.snapshots).into_iter().flatten();
        snapshots.filter_map(|snapshot| self.keys.get(snapshot)?.as_ref()).collect()
    }

    /// Devices whose snapshot is the account's own, and under no key.
    pub(crate) fn unencrypted(&self, image: &ImageId) -> Vec<String> {
        let devices = self.images.get(image).map(|image| &image.devices).into_iter().flatten();
        let under_none = devices.filter(|(_, snapshot)| self.keys.get(snapshot).is_some_and(Option::is_none));
        under_none.map(|(device, _)| device.clone()).collect()
    }

    /// Every key that an image is under.
    pub(crate) fn all_keys(&self) -> BTreeSet<&KeyArn> {
        self.keys.values().flatten().collect()
    }

    /// The snapshots of an image that are the account's own, whose permissions it can see.
    pub(crate) fn own_snapshots(&self, image: &ImageId) -> impl Iterator<Item = &SnapshotId> {
        let snapshots = self.images.get(image).map(|image| &image.snapshots).into_iter().flatten();
        snapshots.filter(|snapshot| self.keys.contains_key(snapshot))
    }

    /// What is looked at, in this order: every image, or that one and the others that are under its keys.
    pub(crate) fn order(&self, only: Option<&ImageId>) -> Vec<Position> {
        let wanted = only.map(|image| self.keys(image));
        let mut order: Vec<Position> = self
            .images
            .keys()
            .filter_map(|image| {
                let keys = self.keys(image);
                let sibling = only.is_some_and(|only| only != image);
                let looked_at = !sibling || wanted.iter().flatten().any(|key| keys.contains(key));
                let first_key = keys.first().map(|key| (*key).clone());
                looked_at.then(|| Position { sibling, first_key, image_id: image.clone() })
            })
            .collect();
        order.sort();
        order
    }
}

impl OwnImage {
    fn of(image: &types::Image) -> Self {
        let mappings = image.block_device_mappings().iter();
        let device = |mapping: &types::BlockDeviceMapping| {
            let snapshot = SnapshotId::parse(mapping.ebs()?.snapshot_id()?).ok()?;
            Some((mapping.device_name().unwrap_or_default().to_owned(), snapshot))
        };
        let devices: Vec<_> = mappings.filter_map(device).collect();
        Self {
            name: image.name().unwrap_or_default().to_owned(),
            available: image.state() == Some(&ImageState::Available),
            snapshots: devices.iter().map(|(_, snapshot)| snapshot.clone()).collect(),
            devices,
        }
    }
}

/// By a filter: asked for by their ids, one that is gone would fail the call for all of them.
async fn keys_of(
    ec2: &Client,
    source: &Source,
    batch: Vec<String>,
) -> Result<Vec<(SnapshotId, Option<KeyArn>)>, Error> {
    let ids = Filter::builder().name("snapshot-id").set_values(Some(batch)).build();
    let request = ec2.describe_snapshots().owner_ids("self").filters(ids);
    let mut pages = request.into_paginator().page_size(1000).items().send();
    let mut keys = Vec::new();
    while let Some(snapshot) = pages.next().await {
        let snapshot = snapshot.map_err(|error| aws::failure(&source.account_id, DESCRIBE_SNAPSHOTS, error))?;
        let key = snapshot.kms_key_id().filter(|_| snapshot.encrypted() == Some(true));
        if let Some(Ok(id)) = snapshot.snapshot_id().map(SnapshotId::parse) {
            keys.push((id, key.and_then(|key| KeyArn::parse(key).ok())));
        }
    }
    Ok(keys)
}

/// Whom EC2 lets launch an image. Nobody, where the image went meanwhile.
pub(crate) async fn launch_permissions(
    ec2: &Client,
    source: &Source,
    image_id: &ImageId,
    image: &OwnImage,
) -> Result<BTreeSet<Grantee>, Error> {
    if !image.available {
        return Ok(BTreeSet::new());
    }
    let request =
        ec2.describe_image_attribute().image_id(image_id.as_str()).attribute(ImageAttributeName::LaunchPermission);
    match request.send().await {
        Ok(answer) => Ok(answer.launch_permissions().iter().filter_map(launching).collect()),
        Err(error) if matches!(error.code(), Some("InvalidAMIID.NotFound" | "InvalidAMIID.Unavailable")) => {
            Ok(BTreeSet::new())
        }
        Err(error) => Err(aws::failure(&source.account_id, DESCRIBE_IMAGE_ATTRIBUTE, error)),
    }
}

fn launching(permission: &types::LaunchPermission) -> Option<Grantee> {
    let whom = permission.user_id().or(permission.organization_arn()).or(permission.organizational_unit_arn());
    match (whom, permission.group()) {
        (Some(whom), _) => Grantee::try_from(whom.to_owned()).ok(),
        (None, group) => group.map(|_| Grantee::Everybody),
    }
}

/// Whom EC2 lets copy a snapshot. Nobody, where the snapshot went meanwhile.
pub(crate) async fn snapshot_permissions(
    ec2: &Client,
    source: &Source,
    snapshot: &SnapshotId,
) -> Result<BTreeSet<Grantee>, Error> {
    let request = ec2
        .describe_snapshot_attribute()
        .snapshot_id(snapshot.as_str())
        .attribute(SnapshotAttributeName::CreateVolumePermission);
    match request.send().await {
        Ok(answer) => Ok(answer.create_volume_permissions().iter().filter_map(copying).collect()),
        Err(error) if error.code() == Some("InvalidSnapshot.NotFound") => Ok(BTreeSet::new()),
        Err(error) => Err(aws::failure(&source.account_id, DESCRIBE_SNAPSHOT_ATTRIBUTE, error)),
    }
}

fn copying(permission: &types::CreateVolumePermission) -> Option<Grantee> {
    match permission.user_id() {
        Some(account) => Grantee::try_from(account.to_owned()).ok(),
        None => permission.group().map(|_| Grantee::Everybody),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image_id(digit: u8) -> ImageId {
        ImageId::parse(format!("ami-0000000{digit}")).unwrap()
    }

    fn snapshot(digit: u8) -> SnapshotId {
        SnapshotId::parse(format!("snap-0000000{digit}")).unwrap()
    }

    fn key(digit: u8) -> KeyArn {
        KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/{digit}")).unwrap()
    }

    /// Images with the snapshots of these numbers, and snapshots under the keys of these.
    fn inventory(images: &[(u8, &[u8])], keys: &[(u8, Option<u8>)]) -> Inventory {
        let image = |(id, snapshots): &(u8, &[u8])| {
            let devices = snapshots.iter().map(|id| (format!("/dev/xvd{id}"), snapshot(*id))).collect();
            let snapshots = snapshots.iter().map(|id| snapshot(*id)).collect();
            (image_id(*id), OwnImage { name: String::new(), available: true, snapshots, devices })
        };
        Inventory {
            images: images.iter().map(image).collect(),
            keys: keys.iter().map(|(id, under)| (snapshot(*id), under.map(key))).collect(),
        }
    }

    fn ids(order: &[Position]) -> Vec<(ImageId, bool)> {
        order.iter().map(|position| (position.image_id.clone(), position.sibling)).collect()
    }

    /// Of a snapshot that the account does not own nobody can say.
    #[test]
    fn volumes_are_unencrypted_whose_snapshot_is_known_to_be() {
        let inventory = inventory(&[(1, &[1, 2, 3]), (2, &[1])], &[(1, Some(8)), (2, None)]);
        assert_eq!(inventory.unencrypted(&image_id(1)), ["/dev/xvd2"]);
        assert!(inventory.unencrypted(&image_id(2)).is_empty());
    }

    #[test]
    fn images_of_one_key_are_looked_at_together() {
        let inventory =
            inventory(&[(1, &[1]), (2, &[2]), (3, &[3, 1]), (4, &[4])], &[(1, Some(8)), (2, Some(7)), (3, Some(9))]);
        let order = [4, 2, 1, 3].map(|id| (image_id(id), false));
        assert_eq!(ids(&inventory.order(None)), order);
        assert_eq!(inventory.keys(&image_id(3)), BTreeSet::from([&key(8), &key(9)]));
        assert_eq!(inventory.own_snapshots(&image_id(4)).count(), 0, "a snapshot that is not there");
    }

    #[test]
    fn one_image_is_looked_at_before_the_others_that_are_under_its_keys() {
        let inventory = inventory(
            &[(1, &[1]), (2, &[2]), (3, &[3]), (4, &[4])],
            &[(1, Some(8)), (2, Some(7)), (3, Some(8)), (4, None)],
        );
        assert_eq!(ids(&inventory.order(Some(&image_id(3)))), [(image_id(3), false), (image_id(1), true)]);
        assert_eq!(ids(&inventory.order(Some(&image_id(4)))), [(image_id(4), false)]);
        assert_eq!(ids(&inventory.order(Some(&image_id(9)))), []);
    }
}
