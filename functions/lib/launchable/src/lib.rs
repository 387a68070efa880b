//! The images of a source account and Region that others can launch, and the keys under them: what they need their access
//! to keys for.

#![warn(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, aws,
    ids::{AccountId, ImageId, KeyArn},
    share::Source,
};
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    operation::describe_images::builders::DescribeImagesFluentBuilder,
    types::{self, ImageAttributeName, ImageState},
};
use futures_util::{StreamExt, TryStreamExt, stream};

/// Which images there are, and what they are made of.
pub const DESCRIBE_IMAGES: &str = "ec2:DescribeImages";
/// Which keys snapshots are under.
pub const DESCRIBE_SNAPSHOTS: &str = "ec2:DescribeSnapshots";
/// Who may launch an image.
pub const DESCRIBE_IMAGE_ATTRIBUTE: &str = "ec2:DescribeImageAttribute";

/// How many calls are made at a time.
const CONCURRENCY: usize = 16;

/// How many snapshots are asked for at a time.
const SNAPSHOTS_PER_CALL: usize = 200;

/// The most images whose launch permissions are looked at one by one: EC2 answers some 20 such calls a second ("Request
/// throttling for the Amazon EC2 API", EC2 developer guide), and a function has less than two minutes.
const MOST_ASKED: usize = 1_500;

/// Images, each with the keys of the source account under it.
pub type Images = BTreeMap<ImageId, BTreeSet<KeyArn>>;

/// The images that each of `accounts` has a launch permission of its own for: one call for each account, and one for each
/// 200 snapshots. Asked for an account that is not the caller's, EC2 names no image that is shared with the account's
/// organization or unit only ("ExecutableBy", EC2 API reference, DescribeImages), nor one that is public, which no
/// encrypted image can be.
///
/// # Errors
/// [`Error::NotYetVisible`] when an image goes while it is looked at; whatever AWS answers.
pub async fn by_account(
    ec2: &Client,
    source: &Source,
    accounts: &BTreeSet<AccountId>,
) -> Result<BTreeMap<AccountId, Images>, Error> {
    let found: Vec<(AccountId, BTreeMap<ImageId, Vec<String>>)> = stream::iter(accounts)
        .map(|account| async move {
            let request = ec2.describe_images().owners("self").executable_users(account.as_str());
            Ok::<_, Error>((account.clone(), images_of(source, request, snapshots).await?))
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let snapshots: BTreeSet<&String> = found.iter().flat_map(|(_, images)| images.values().flatten()).collect();
    let keys = keys(ec2, source, snapshots.into_iter().cloned().collect()).await?;
    Ok(found.into_iter().map(|(account, images)| (account, under(images, &keys))).collect())
}

/// The images that are shared with an organization or a unit, which only their launch permissions say: one call for each
/// image that has a key of the source account under it.
///
/// # Errors
/// As [`by_account`]; [`Error::QuotaExceeded`] where there are more images than can be asked about.
pub async fn by_organization(ec2: &Client, source: &Source) -> Result<Images, Error> {
    let images = images_of(source, ec2.describe_images().owners("self"), snapshots).await?;
    let keys = keys(ec2, source, images.values().flatten().cloned().collect()).await?;
    let images: Vec<(ImageId, BTreeSet<KeyArn>)> =
        under(images, &keys).into_iter().filter(|(_, keys)| !keys.is_empty()).collect();
    if images.len() > MOST_ASKED {
        return Err(Error::QuotaExceeded {
            account: source.account_id.clone(),
            call: DESCRIBE_IMAGE_ATTRIBUTE,
            reason: format!(
                "whether one of its {} images under its own keys is shared with an organization takes more calls than one \
                 function can make",
                images.len()
            ),
            source: None,
        });
    }
    let open: Vec<Option<(ImageId, BTreeSet<KeyArn>)>> = stream::iter(images)
        .map(|(image, keys)| async move {
            let is_open = is_open_to_an_organization(ec2, source, &image).await?;
            Ok::<_, Error>(is_open.then_some((image, keys)))
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    Ok(open.into_iter().flatten().collect())
}

async fn is_open_to_an_organization(ec2: &Client, source: &Source, image: &ImageId) -> Result<bool, Error> {
    let attribute =
        ec2.describe_image_attribute().image_id(image.as_str()).attribute(ImageAttributeName::LaunchPermission);
    match attribute.send().await {
        Ok(answer) => Ok(answer.launch_permissions().iter().any(|permission| {
            permission.organization_arn().is_some() || permission.organizational_unit_arn().is_some()
        })),
        // It has gone meanwhile, or is disabled: then it has no launch permissions.
        Err(error) if matches!(error.code(), Some("InvalidAMIID.NotFound" | "InvalidAMIID.Unavailable")) => Ok(false),
        Err(error) => Err(aws::failure(&source.account_id, DESCRIBE_IMAGE_ATTRIBUTE, error)),
    }
}

/// What `request` finds, and `of` says of each image: one call for each 1,000.
///
/// # Errors
/// Whatever AWS answers.
pub async fn images_of<T>(
    source: &Source,
    request: DescribeImagesFluentBuilder,
    of: impl Fn(&types::Image) -> T,
) -> Result<BTreeMap<ImageId, T>, Error> {
    let mut pages = request.into_paginator().page_size(1000).items().send();
    let mut images = BTreeMap::new();
    while let Some(image) = pages.next().await {
        let image = image.map_err(|error| aws::failure(&source.account_id, DESCRIBE_IMAGES, error))?;
        // EC2 goes on naming an image for some time after it was deregistered.
        let gone = image.state() == Some(&ImageState::Deregistered);
        if let Some(Ok(id)) = image.image_id().map(ImageId::parse).filter(|_| !gone) {
            images.insert(id, of(&image));
        }
    }
    Ok(images)
}

fn under(images: BTreeMap<ImageId, Vec<String>>, keys: &BTreeMap<String, KeyArn>) -> Images {
    let of = |snapshots: &[String]| snapshots.iter().filter_map(|snapshot| keys.get(snapshot)).cloned().collect();
    images.into_iter().map(|(image, snapshots)| (image, of(&snapshots))).collect()
}

/// The snapshots that an image is made of.
pub fn snapshots(image: &types::Image) -> Vec<String> {
    let mappings = image.block_device_mappings().iter();
    mappings.filter_map(|mapping| mapping.ebs()?.snapshot_id().map(str::to_owned)).collect()
}

/// The key of each snapshot that is under one of the source account's.
///
/// # Errors
/// As [`by_account`].
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

#[cfg(test)]
mod tests;
