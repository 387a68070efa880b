//! The image in the source account: what it is made of, and who may use it already.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, aws,
    ids::{AccountId, ImageId, KeyArn, SnapshotId},
    share::{Image, SnapshotChange, Source, Volume},
};
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{self, DeviceType, ImageAttributeName, ImageState, SnapshotAttributeName},
};

/// The image, and for each key under it the devices whose volumes it encrypts.
pub(crate) struct Found {
    pub(crate) image: Image,
    pub(crate) devices: BTreeMap<String, Vec<String>>,
}

/// # Errors
/// [`Error::ImageNotFound`], and whatever AWS answers; what stands in the way of sharing an image
/// that is there goes to `problems`.
pub(crate) async fn find(
    ec2: &Client,
    source: &Source,
    image_id: &ImageId,
    problems: &mut Vec<Error>,
) -> Result<Found, Error> {
    let account = &source.account_id;
    let not_found = || Error::ImageNotFound {
        image: image_id.clone(),
        account: account.clone(),
        region: source.region.to_string(),
    };
    let answer = match ec2.describe_images().image_ids(image_id.as_str()).include_disabled(true).send().await {
        Ok(answer) => answer,
        Err(error) => {
            let hidden = aws::hides_image(&error) || error.code() == Some("InvalidAMIID.Unavailable");
            return Err(if hidden { not_found() } else { aws::failure(account, "ec2:DescribeImages", error) });
        }
    };
    let image = answer.images().first().ok_or_else(not_found)?;
    problems.extend(obstacles(source, image_id, image));

    let devices = ebs_devices(image);
    let encryption = snapshot_keys(ec2, source, image_id, &devices, problems).await?;
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut volumes = Vec::new();
    for (device_name, snapshot_id) in devices {
        let key = encryption.get(&snapshot_id).cloned().flatten();
        let key_arn = match &key {
            Some(key) => {
                keys.entry(key.clone()).or_default().push(device_name.clone());
                KeyArn::parse(key.as_str()).ok()
            }
            None => None,
        };
        match SnapshotId::parse(snapshot_id) {
            Ok(snapshot_id) => volumes.push(Volume { device_name, snapshot_id, key_arn }),
            Err(rule) => problems.push(not_shareable(image_id, account, format!("its snapshot's id must be {rule}"))),
        }
    }
    let image = Image {
        image_id: image_id.clone(),
        name: image.name().unwrap_or_default().to_owned(),
        architecture: image.architecture().map_or("x86_64", |architecture| architecture.as_str()).to_owned(),
        volumes,
        empty_volumes: empty_volumes(image),
    };
    Ok(Found { image, devices: keys })
}

fn obstacles(source: &Source, image_id: &ImageId, image: &types::Image) -> Vec<Error> {
    let account = &source.account_id;
    let mut obstacles = Vec::new();
    if let Some(state) = image.state().filter(|state| **state != ImageState::Available) {
        obstacles.push(Error::ImageNotAvailable {
            image: image_id.clone(),
            account: account.clone(),
            state: state.to_string(),
        });
    }
    let mut refuse = |reason: String| obstacles.push(not_shareable(image_id, account, reason));
    if let Some(owner) = image.owner_id().filter(|owner| *owner != account.as_str()) {
        refuse(format!("it belongs to account {owner}; only its owner can share it, so make {owner} the source"));
    }
    if image.root_device_type() == Some(&DeviceType::InstanceStore) {
        refuse(
            "it is instance-store backed: it has no snapshots to encrypt or share; use an EBS-backed image".to_owned(),
        );
    }
    let codes: Vec<&str> = image.product_codes().iter().filter_map(types::ProductCode::product_code_id).collect();
    if !codes.is_empty() {
        refuse(format!(
            "it has product codes ({}): a Marketplace image is shared by its vendor; the target must subscribe to it",
            codes.join(", ")
        ));
    }
    obstacles
}

/// The device names of volumes that start empty.
fn empty_volumes(image: &types::Image) -> Vec<String> {
    let empty = image.block_device_mappings().iter().filter(|mapping| {
        mapping.ebs().is_some_and(|ebs| ebs.snapshot_id().is_none_or(str::is_empty)) && mapping.no_device().is_none()
    });
    empty.filter_map(|mapping| mapping.device_name().map(str::to_owned)).collect()
}

/// Device name and snapshot of every EBS entry; ephemeral and NoDevice entries, and volumes that
/// start empty, have no snapshot and nothing to share.
fn ebs_devices(image: &types::Image) -> Vec<(String, String)> {
    image
        .block_device_mappings()
        .iter()
        .filter_map(|mapping| {
            let snapshot = mapping.ebs()?.snapshot_id()?;
            Some((mapping.device_name()?.to_owned(), snapshot.to_owned()))
        })
        .collect()
}

/// The key of each snapshot, nothing for one that is not encrypted.
async fn snapshot_keys(
    ec2: &Client,
    source: &Source,
    image_id: &ImageId,
    devices: &[(String, String)],
    problems: &mut Vec<Error>,
) -> Result<BTreeMap<String, Option<String>>, Error> {
    let ids: BTreeSet<&String> = devices.iter().map(|(_, snapshot)| snapshot).collect();
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let request = ec2.describe_snapshots().set_snapshot_ids(Some(ids.into_iter().cloned().collect()));
    match request.send().await {
        Ok(answer) => Ok(answer
            .snapshots()
            .iter()
            .filter_map(|snapshot| {
                let key = snapshot.kms_key_id().filter(|_| snapshot.encrypted() == Some(true));
                Some((snapshot.snapshot_id()?.to_owned(), key.map(str::to_owned)))
            })
            .collect()),
        Err(error) if error.code() == Some("InvalidSnapshot.NotFound") => {
            let message = error.message().unwrap_or_default();
            problems.push(not_shareable(
                image_id,
                &source.account_id,
                format!("a snapshot under it is gone (ec2:DescribeSnapshots: {message}); build the image anew"),
            ));
            Ok(BTreeMap::new())
        }
        Err(error) => Err(aws::failure(&source.account_id, "ec2:DescribeSnapshots", error)),
    }
}

fn not_shareable(image: &ImageId, account: &AccountId, reason: String) -> Error {
    Error::ImageNotShareable { image: image.clone(), account: account.clone(), reason }
}

/// Those of `accounts` that have no launch permission of their own.
pub(crate) async fn without_launch_permission(
    ec2: &Client,
    source: &Source,
    image_id: &ImageId,
    accounts: &[AccountId],
) -> Result<Vec<AccountId>, Error> {
    let answer = ec2
        .describe_image_attribute()
        .image_id(image_id.as_str())
        .attribute(ImageAttributeName::LaunchPermission)
        .send()
        .await
        .map_err(|error| aws::failure(&source.account_id, "ec2:DescribeImageAttribute", error))?;
    let permitted = answer.launch_permissions().iter().filter_map(types::LaunchPermission::user_id).collect();
    Ok(missing(accounts, &permitted))
}

/// For each snapshot, those of `accounts` that may not copy it. No call where nobody copies.
pub(crate) async fn without_snapshot_permission(
    ec2: &Client,
    source: &Source,
    image: &Image,
    accounts: &[AccountId],
) -> Result<Vec<SnapshotChange>, Error> {
    let mut changes = Vec::new();
    if accounts.is_empty() {
        return Ok(changes);
    }
    let snapshots: BTreeSet<&SnapshotId> = image.volumes.iter().map(|volume| &volume.snapshot_id).collect();
    for snapshot_id in snapshots {
        let answer = ec2
            .describe_snapshot_attribute()
            .snapshot_id(snapshot_id.as_str())
            .attribute(SnapshotAttributeName::CreateVolumePermission)
            .send()
            .await
            .map_err(|error| aws::failure(&source.account_id, "ec2:DescribeSnapshotAttribute", error))?;
        let permitted =
            answer.create_volume_permissions().iter().filter_map(types::CreateVolumePermission::user_id).collect();
        let account_ids = missing(accounts, &permitted);
        if !account_ids.is_empty() {
            changes.push(SnapshotChange { snapshot_id: snapshot_id.clone(), account_ids });
        }
    }
    Ok(changes)
}

fn missing(accounts: &[AccountId], permitted: &BTreeSet<&str>) -> Vec<AccountId> {
    accounts.iter().filter(|account| !permitted.contains(account.as_str())).cloned().collect()
}
