//! VerifyVolumes: looks which key each volume of the proof is really encrypted with.

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, InstanceId, KeyArn},
    share::{EncryptedVolume, Image, Source, Target},
};
use ami_share_default_key::{AWS_MANAGED, BY_DEFAULT, DEFAULT_KEY, DefaultKey};
use aws_sdk_ec2::{
    Client,
    types::{Filter, Volume},
};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions { launcher: &[DESCRIBE_VOLUMES, DEFAULT_KEY, BY_DEFAULT], ..Actions::NONE };

const DESCRIBE_VOLUMES: &str = "ec2:DescribeVolumes";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    pub image: Image,
    pub target: Target,
    pub instance_id: InstanceId,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub volumes: Vec<EncryptedVolume>,
}

/// Every EBS volume of the instance, with its key. A volume of the image that was encrypted must
/// be so here too, under the target's default EBS key; with a re-encryption mode every volume of the image must be under
/// the key that was asked for.
///
/// # Errors
/// [`Error::VolumeNotReencrypted`] for each volume that is not as it should be;
/// [`Error::NotYetVisible`] when a volume of the image is not attached.
#[tracing::instrument(skip_all, fields(
    execution = %input.execution, account = %input.target.account_id, instance = %input.instance_id
))]
pub async fn verify_volumes(hub: &Hub, input: Input) -> Result<Output, Error> {
    let Input { execution, source, image, target, instance_id } = &input;
    let account = &target.account_id;
    let config = hub.as_launcher(account, &source.region, execution, ACTIONS).await?;
    let ec2 = Client::new(&config);
    let volumes = attached(&ec2, account, instance_id).await?;
    let missing: Vec<&str> =
        found(image, &volumes).filter(|(_, volume)| volume.is_none()).map(|(expected, _)| expected.device).collect();
    if !missing.is_empty() {
        return Err(Error::NotYetVisible {
            what: format!("the volume at {} of instance {instance_id}", missing.join(", ")),
            account: account.clone(),
            call: DESCRIBE_VOLUMES,
        });
    }
    let wanted = match &target.kms_key_id {
        Some(key) => Wanted::Key(key.clone()),
        None => Wanted::Default(ami_share_default_key::find(&ec2, account, image).await?),
    };
    Error::all_of(differences(image, account, &volumes, &wanted))?;
    Ok(Output { volumes })
}

async fn attached(ec2: &Client, account: &AccountId, instance: &InstanceId) -> Result<Vec<EncryptedVolume>, Error> {
    let of_instance = Filter::builder().name("attachment.instance-id").values(instance.as_str()).build();
    let mut pages = ec2.describe_volumes().filters(of_instance).into_paginator().send();
    let mut volumes = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|error| aws::failure(account, DESCRIBE_VOLUMES, error))?;
        volumes.extend(page.volumes().iter().map(|volume| described(volume, instance)));
    }
    volumes.sort_by(|a, b| a.device_name.cmp(&b.device_name));
    Ok(volumes)
}

fn described(volume: &Volume, instance: &InstanceId) -> EncryptedVolume {
    let attachment = volume.attachments().iter().find(|attachment| attachment.instance_id() == Some(instance.as_str()));
    EncryptedVolume {
        device_name: attachment.and_then(|attachment| attachment.device()).unwrap_or_default().to_owned(),
        volume_id: volume.volume_id().unwrap_or_default().to_owned(),
        key_arn: volume.kms_key_id().and_then(|key| KeyArn::parse(key).ok()),
    }
}

/// A volume that the image has an instance have.
#[derive(Debug, Clone, Copy)]
struct Expected<'a> {
    device: &'a str,
    /// Nothing for one that starts empty.
    shared: Option<&'a ami_share_core::share::Volume>,
}

/// Each volume of the image, with that of the instance. EC2 may attach one under another name than the image's mapping
/// has (`/dev/sda` where the root device is `/dev/sda1`): where one of each is left over, they are the same.
fn found<'a>(
    image: &'a Image,
    volumes: &'a [EncryptedVolume],
) -> impl Iterator<Item = (Expected<'a>, Option<&'a EncryptedVolume>)> {
    let shared = image.volumes.iter().map(|volume| Expected { device: &volume.device_name, shared: Some(volume) });
    let empty = image.empty_volumes.iter().map(|device| Expected { device, shared: None });
    let expected: Vec<Expected<'_>> = shared.chain(empty).collect();
    let named = |device: &str| volumes.iter().find(|volume| volume.device_name == device);
    let unknown = expected.iter().filter(|expected| named(expected.device).is_none()).count();
    let mut others =
        volumes.iter().filter(|volume| expected.iter().all(|expected| expected.device != volume.device_name));
    let other = match (others.next(), others.next()) {
        (Some(one), None) if unknown == 1 => Some(one),
        _ => None,
    };
    let paired: Vec<_> = expected.iter().map(|expected| (*expected, named(expected.device).or(other))).collect();
    paired.into_iter()
}

/// What volumes are to be under.
enum Wanted {
    /// What was asked for.
    Key(KeyArn),
    Default(DefaultKey),
}

impl Wanted {
    /// What is amiss with a volume under that key, if anything is: what it should be under.
    fn differs(&self, expected: Expected<'_>, found: Option<&KeyArn>, account: &AccountId) -> Option<String> {
        match self {
            Self::Key(key) => (found != Some(key)).then(|| format!("under key {key}")),
            Self::Default(default) if !default.covers(expected.shared) => None,
            Self::Default(DefaultKey { key: Some(key), .. }) => {
                (found != Some(key)).then(|| format!("under key {key}, the account's default EBS key"))
            }
            Self::Default(DefaultKey { key: None, .. }) => {
                let own = found.is_some_and(|key| key.account_id() == *account);
                (!own).then(|| format!("under {AWS_MANAGED}, the account's default EBS key"))
            }
        }
    }
}

/// One error for each volume of the image that is not as it should be on the instance.
fn differences(image: &Image, account: &AccountId, volumes: &[EncryptedVolume], wanted: &Wanted) -> Vec<Error> {
    found(image, volumes)
        .filter_map(|(expected, volume)| {
            let volume = volume?;
            let key = volume.key_arn.as_ref();
            Some(Error::VolumeNotReencrypted {
                expected: wanted.differs(expected, key, account)?,
                volume: format!("{} ({})", volume.volume_id, volume.device_name),
                account: account.clone(),
                found: key.map_or("is not encrypted".to_owned(), |key| format!("is under key {key}")),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use ami_share_core::{
        ids::{ImageId, SnapshotId},
        share,
    };
    use aws_sdk_ec2::types::VolumeAttachment;

    use super::*;

    fn key(account: &str, id: &str) -> KeyArn {
        KeyArn::parse(format!("arn:aws:kms:eu-west-1:{account}:key/{id}")).unwrap()
    }

    fn account() -> AccountId {
        AccountId::parse("222222222222").unwrap()
    }

    fn image() -> Image {
        let volume = |device: &str, key_arn| share::Volume {
            device_name: device.to_owned(),
            snapshot_id: SnapshotId::parse("snap-0123abcd").unwrap(),
            key_arn,
        };
        Image {
            image_id: ImageId::parse("ami-0123abcd").unwrap(),
            name: "golden".to_owned(),
            architecture: "x86_64".to_owned(),
            volumes: vec![volume("/dev/xvda", Some(key("111111111111", "source"))), volume("/dev/sdf", None)],
            empty_volumes: vec![],
        }
    }

    fn volumes(root: Option<KeyArn>, data: Option<KeyArn>) -> Vec<EncryptedVolume> {
        [("/dev/xvda", "vol-1", root), ("/dev/sdf", "vol-2", data), ("/dev/sdz", "vol-3", None)]
            .into_iter()
            .map(|(device, id, key_arn)| EncryptedVolume {
                device_name: device.to_owned(),
                volume_id: id.to_owned(),
                key_arn,
            })
            .collect()
    }

    fn default(key: Option<&KeyArn>, encrypts_all: bool) -> Wanted {
        Wanted::Default(DefaultKey { key: key.cloned(), encrypts_all })
    }

    #[test]
    fn without_a_mode_what_was_encrypted_is_under_the_accounts_default_key() {
        let (own, other) = (key("222222222222", "default"), key("222222222222", "other"));
        let source = key("111111111111", "source");
        let wrong = |root: Option<&KeyArn>, wanted: &Wanted| {
            let found = differences(&image(), &account(), &volumes(root.cloned(), None), wanted);
            found.iter().map(Error::to_string).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(wrong(Some(&own), &default(Some(&own), false)), "");
        assert!(
            wrong(Some(&other), &default(Some(&own), false)).contains("key/default, the account's default EBS key")
        );
        // AWS's own has an ARN too, which nobody asks for.
        assert_eq!(wrong(Some(&other), &default(None, false)), "");
        assert!(wrong(Some(&source), &default(None, false)).contains("should be under alias/aws/ebs"));
        let text = wrong(None, &default(None, false));
        assert!(text.contains("vol-1 (/dev/xvda)") && text.contains("is not encrypted"), "{text}");
    }

    #[test]
    fn with_encryption_by_default_no_volume_is_left_out() {
        let own = key("222222222222", "default");
        let mut image = image();
        image.empty_volumes = vec!["/dev/sdz".to_owned()];
        let volumes = volumes(Some(own.clone()), None);
        let wrong = |encrypts_all| differences(&image, &account(), &volumes, &default(Some(&own), encrypts_all)).len();
        assert_eq!((wrong(false), wrong(true)), (0, 2));
    }

    #[test]
    fn with_a_mode_every_volume_of_the_image_is_under_the_key() {
        let (own, other) = (key("222222222222", "own"), key("222222222222", "other"));
        let right = volumes(Some(own.clone()), Some(own.clone()));
        let wanted = Wanted::Key(own);
        assert!(differences(&image(), &account(), &right, &wanted).is_empty());
        let found = differences(&image(), &account(), &volumes(Some(other), None), &wanted);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].to_string().contains("key/other"));
        assert_eq!(found[1].name(), "VolumeNotReencrypted");
    }

    #[test]
    fn a_volume_under_another_name_is_the_one_that_is_left_over() {
        let renamed = |devices: &[&str]| {
            let volume = |device: &&str| EncryptedVolume {
                device_name: (*device).to_owned(),
                volume_id: format!("vol-{device}"),
                key_arn: None,
            };
            devices.iter().map(volume).collect::<Vec<_>>()
        };
        let seen = |devices: &[&str]| {
            let (image, volumes) = (image(), renamed(devices));
            found(&image, &volumes).map(|(_, volume)| volume.map(|v| v.device_name.clone())).collect::<Vec<_>>()
        };
        let name = |device: &str| Some(device.to_owned());
        assert_eq!(seen(&["/dev/xvda1", "/dev/sdf"]), [name("/dev/xvda1"), name("/dev/sdf")]);
        assert_eq!(seen(&["/dev/sdf"]), [None, name("/dev/sdf")]);
        assert_eq!(seen(&["/dev/xvda1", "/dev/sdf1"]), [None, None]);
        assert_eq!(seen(&["/dev/xvda1", "/dev/sdf", "/dev/sdz"]), [None, name("/dev/sdf")]);
    }

    #[test]
    fn what_starts_empty_is_under_the_key_that_was_asked_for() {
        let mut image = image();
        image.empty_volumes = vec!["/dev/sdz".to_owned()];
        let own = key("222222222222", "own");
        let right = volumes(Some(own.clone()), Some(own.clone()));
        let wrong = differences(&image, &account(), &right, &Wanted::Key(own));
        assert_eq!(wrong.len(), 1);
        assert!(wrong[0].to_string().contains("vol-3 (/dev/sdz)"), "{}", wrong[0]);
        assert!(differences(&image, &account(), &right, &default(None, false)).is_empty());
    }

    #[test]
    fn a_volume_is_described_by_its_attachment_to_this_instance() {
        let attachment =
            |instance: &str, device: &str| VolumeAttachment::builder().instance_id(instance).device(device).build();
        let volume = Volume::builder()
            .volume_id("vol-1")
            .kms_key_id("arn:aws:kms:eu-west-1:222222222222:key/own")
            .attachments(attachment("i-99999999", "/dev/sdb"))
            .attachments(attachment("i-0123abcd", "/dev/xvda"))
            .build();
        let described = described(&volume, &InstanceId::parse("i-0123abcd").unwrap());
        assert_eq!(described.device_name, "/dev/xvda");
        assert_eq!(described.key_arn, Some(key("222222222222", "own")));
    }
}
