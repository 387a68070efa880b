//! What the accounts of the sandbox hold before anything is shared.

use std::time::{Duration, Instant};

use aws_sdk_ec2::types::{
    ArchitectureValues, BlockDeviceMapping, BootModeValues, EbsBlockDevice, SnapshotState, VirtualizationType,
    VolumeType,
};
use serde_json::{Value, json};

use crate::{REGION, Result, clients::root_of};

const TIMEOUT: Duration = Duration::from_secs(10);

/// An image of the source account.
#[derive(Debug, Clone)]
pub struct Image {
    pub image_id: String,
    /// One for each EBS volume: device, snapshot and the ARN of the key it is encrypted with.
    pub volumes: Vec<Volume>,
}

#[derive(Debug, Clone)]
pub struct Volume {
    pub device: &'static str,
    pub snapshot_id: String,
    pub key_arn: String,
}

impl Image {
    /// The distinct keys, in the order of the volumes.
    pub fn key_arns(&self) -> Vec<&str> {
        let mut arns: Vec<&str> = Vec::new();
        for volume in &self.volumes {
            if !arns.contains(&volume.key_arn.as_str()) {
                arns.push(&volume.key_arn);
            }
        }
        arns
    }
}

/// What a target account has of its own.
#[derive(Debug, Clone)]
pub struct Target {
    /// A role that is to launch the image.
    pub principal: String,
    /// The ARN of the key `alias/app-volumes`.
    pub key_arn: String,
}

/// Makes an image with three EBS volumes under two customer-managed keys, an ephemeral entry and a
/// NoDevice entry. Each key's policy has a statement of somebody else's, which must survive.
pub async fn image(sandbox: &str, account: &str, name: &str) -> Result<Image> {
    let administrator = format!("{name}-key-admin");
    role(sandbox, account, &administrator).await?;
    let root_key = key(sandbox, account, &administrator).await?;
    let data_key = key(sandbox, account, &administrator).await?;
    image_under(sandbox, account, name, &root_key, &data_key).await
}

/// The same, under keys that are there.
pub async fn image_under(sandbox: &str, account: &str, name: &str, root_key: &str, data_key: &str) -> Result<Image> {
    let ec2 = aws_sdk_ec2::Client::new(&root_of(account, sandbox));
    let mut volumes = Vec::new();
    for (device, size, key_arn) in [("/dev/xvda", 8, root_key), ("/dev/sdf", 20, data_key), ("/dev/sdg", 50, data_key)]
    {
        let snapshot_id = snapshot(&ec2, size, key_arn).await?;
        volumes.push(Volume { device, snapshot_id, key_arn: key_arn.to_owned() });
    }
    let ebs = volumes.iter().map(|volume| {
        let ebs = EbsBlockDevice::builder()
            .snapshot_id(&volume.snapshot_id)
            .volume_type(VolumeType::Gp3)
            .delete_on_termination(true)
            .build();
        BlockDeviceMapping::builder().device_name(volume.device).ebs(ebs).build()
    });
    let others = [
        BlockDeviceMapping::builder().device_name("/dev/sdb").virtual_name("ephemeral0").build(),
        BlockDeviceMapping::builder().device_name("/dev/sdc").no_device("").build(),
    ];
    let registered = ec2
        .register_image()
        .name(name)
        .architecture(ArchitectureValues::X8664)
        .boot_mode(BootModeValues::Uefi)
        .virtualization_type(VirtualizationType::Hvm.as_str())
        .root_device_name("/dev/xvda")
        .set_block_device_mappings(Some(ebs.chain(others).collect()))
        .send()
        .await
        .map_err(|error| format!("RegisterImage: {}", error.into_service_error()))?;
    Ok(Image { image_id: registered.image_id.unwrap_or_default(), volumes })
}

/// Makes the role `app-deployer` and a key of its own with the alias `app-volumes`, which the launcher may use.
pub async fn target(sandbox: &str, account: &str) -> Result<Target> {
    let principal = role(sandbox, account, "app-deployer").await?;
    let key_arn = usable_key(sandbox, account, "alias/app-volumes").await?;
    Ok(Target { principal, key_arn })
}

/// Makes a key that the launcher may use; returns its ARN.
pub async fn usable_key(sandbox: &str, account: &str, alias: &str) -> Result<String> {
    let kms = aws_sdk_kms::Client::new(&root_of(account, sandbox));
    let usable = aws_sdk_kms::types::Tag::builder().tag_key("ami-share:usable").tag_value("true").build()?;
    let created = kms
        .create_key()
        .tags(usable)
        .send()
        .await
        .map_err(|error| format!("CreateKey: {}", error.into_service_error()))?;
    let key_arn = created.key_metadata.and_then(|key| key.arn).ok_or("CreateKey answered no ARN")?;
    kms.create_alias()
        .alias_name(alias)
        .target_key_id(&key_arn)
        .send()
        .await
        .map_err(|error| format!("CreateAlias: {}", error.into_service_error()))?;
    Ok(key_arn)
}

/// Makes a role that the account itself may assume; returns its ARN.
pub async fn role(sandbox: &str, account: &str, name: &str) -> Result<String> {
    let iam = aws_sdk_iam::Client::new(&root_of(account, sandbox));
    let trust = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow",
        "Principal": { "AWS": format!("arn:aws:iam::{account}:root") },
        "Action": "sts:AssumeRole",
    }]});
    let created = iam
        .create_role()
        .role_name(name)
        .assume_role_policy_document(trust.to_string())
        .send()
        .await
        .map_err(|error| format!("CreateRole {name}: {}", error.into_service_error()))?;
    Ok(created.role.ok_or("CreateRole answered no role")?.arn)
}

/// The policy of a new key: the account's, and one of a role that administers it.
pub fn key_policy(account: &str, administrator: &str) -> Value {
    json!({ "Version": "2012-10-17", "Id": "key-of-the-image-factory", "Statement": [
        {
            "Sid": "Enable IAM User Permissions",
            "Effect": "Allow",
            "Principal": { "AWS": format!("arn:aws:iam::{account}:root") },
            "Action": "kms:*",
            "Resource": "*",
        },
        {
            "Sid": "Key administrators",
            "Effect": "Allow",
            "Principal": { "AWS": format!("arn:aws:iam::{account}:role/{administrator}") },
            "Action": ["kms:Describe*", "kms:Enable*", "kms:Disable*", "kms:Put*", "kms:Get*", "kms:ScheduleKeyDeletion"],
            "Resource": "*",
            "Condition": { "StringEquals": { "kms:CallerAccount": account } },
        },
    ]})
}

/// The tag that accounts/source.yaml asks of keys.
pub fn shareable() -> Result<aws_sdk_kms::types::Tag> {
    Ok(aws_sdk_kms::types::Tag::builder().tag_key("ami-share:shareable").tag_value("true").build()?)
}

async fn key(sandbox: &str, account: &str, administrator: &str) -> Result<String> {
    let kms = aws_sdk_kms::Client::new(&root_of(account, sandbox));
    let created = kms
        .create_key()
        .policy(key_policy(account, administrator).to_string())
        .tags(shareable()?)
        .send()
        .await
        .map_err(|error| format!("CreateKey: {}", error.into_service_error()))?;
    Ok(created.key_metadata.and_then(|key| key.arn).ok_or("CreateKey answered no ARN")?)
}

async fn snapshot(ec2: &aws_sdk_ec2::Client, size: i32, key_arn: &str) -> Result<String> {
    let volume = ec2
        .create_volume()
        .availability_zone(format!("{REGION}a"))
        .size(size)
        .encrypted(true)
        .kms_key_id(key_arn)
        .send()
        .await
        .map_err(|error| format!("CreateVolume: {}", error.into_service_error()))?;
    let created = ec2
        .create_snapshot()
        .set_volume_id(volume.volume_id)
        .send()
        .await
        .map_err(|error| format!("CreateSnapshot: {}", error.into_service_error()))?;
    let id = created.snapshot_id.ok_or("CreateSnapshot answered no id")?;
    let started = Instant::now();
    while started.elapsed() < TIMEOUT {
        let snapshots = ec2.describe_snapshots().snapshot_ids(&id).send().await?.snapshots.unwrap_or_default();
        if snapshots.iter().any(|snapshot| snapshot.state == Some(SnapshotState::Completed)) {
            return Ok(id);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(format!("snapshot {id} is not completed after {TIMEOUT:?}").into())
}
