//! LaunchInstance: launches the proof in the target.

mod undo;

use ami_share_core::{
    Error, Hub, authorization, aws,
    hub::Actions,
    ids::{ExecutionName, ImageId, InstanceId, KeyArn},
    key_actions::making_encrypted,
    share::{EXECUTION_TAG, Image, Launch, Mode, SOURCE_IMAGE_TAG, Source, Target},
    tokens::launch_token,
};
use aws_config::SdkConfig;
use aws_sdk_ec2::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::run_instances::RunInstancesError,
    types::{
        BlockDeviceMapping, EbsBlockDevice, HttpTokensState, InstanceMetadataOptionsRequest,
        InstanceNetworkInterfaceSpecification, InstanceType, ResourceType, Tag, TagSpecification,
    },
};
use serde::{Deserialize, Serialize};

pub use undo::{UNDO_ACTIONS, undo_launch_instance};

pub const ACTIONS: Actions = Actions { launcher: &making_encrypted(RUN), ..Actions::NONE };

const RUN: &str = "ec2:RunInstances";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    pub image: Image,
    pub target: Target,
    /// The image, or the target's own copy of it.
    pub launch_image_id: ImageId,
    /// How many instances this execution has launched in the target before, and seen die.
    pub launches: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub instance_id: InstanceId,
    /// With this one.
    pub launches: u64,
}

/// Launches one instance; after as many others it is the same one, however often this is called. Its volumes go
/// with it when it is terminated, whatever the image says: a proof leaves nothing behind.
///
/// # Errors
/// [`Error::SourceNotAllowed`]; [`Error::TargetNotAllowed`];
/// [`Error::NotYetVisible`] when the target does not see the image; [`Error::LaunchFailed`] when EC2
/// has no room, the request does not fit the account's network or the image, or the instance is gone
/// already; [`Error::QuotaExceeded`].
#[tracing::instrument(skip_all, fields(
    execution = %input.execution, account = %input.target.account_id, image = %input.launch_image_id
))]
pub async fn launch_instance(hub: &Hub, input: Input) -> Result<Output, Error> {
    hub.settings.sources.check(&input.source.account_id)?;
    hub.settings.allow_list.check_listed([&input.target.account_id])?;
    let Input { execution, source, target, launch_image_id, .. } = &input;
    let mappings = block_devices(&input.image, target)?;
    let config = hub.as_launcher(&target.account_id, &source.region, execution, ACTIONS).await?;
    let launched = Client::new(&config)
        .run_instances()
        .image_id(launch_image_id.as_str())
        .instance_type(InstanceType::from(target.instance_type(&input.image)))
        .network_interfaces(network_interface(&target.launch))
        .metadata_options(InstanceMetadataOptionsRequest::builder().http_tokens(HttpTokensState::Required).build())
        .min_count(1)
        .max_count(1)
        .set_block_device_mappings(Some(mappings))
        .tag_specifications(tagged(ResourceType::Instance, &input))
        .tag_specifications(tagged(ResourceType::Volume, &input))
        .client_token(launch_token(execution, &target.account_id, input.launches))
        .send()
        .await;
    let launched = match launched {
        Ok(launched) => launched,
        Err(error) => return Err(failure(&config, &input, error).await),
    };
    let instance_id = launched.instances().first().and_then(|instance| instance.instance_id()).unwrap_or_default();
    let instance_id = InstanceId::parse(instance_id).map_err(|_| Error::Unavailable {
        account: target.account_id.clone(),
        call: RUN,
        source: Some("the answer holds no instance id".into()),
    })?;
    tracing::info!(instance = %instance_id, "instance launched");
    Ok(Output { instance_id, launches: input.launches + 1 })
}

/// What is to be otherwise than the image says, for each of its EBS volumes.
fn block_devices(image: &Image, target: &Target) -> Result<Vec<BlockDeviceMapping>, Error> {
    if target.mode == Mode::AtLaunch && target.kms_key_id.is_none() {
        return Err(Error::invalid("target.kmsKeyId", "null", "is required for re-encryption at launch"));
    }
    let mapping = |device: &String, key: Option<&KeyArn>| {
        let ebs = EbsBlockDevice::builder().delete_on_termination(true);
        let ebs = match key {
            Some(key) => ebs.encrypted(true).kms_key_id(key.as_str()),
            None => ebs,
        };
        BlockDeviceMapping::builder().device_name(device).ebs(ebs.build()).build()
    };
    let key = target.kms_key_id.as_ref();
    // A copy's snapshots are under the key already; what starts empty has none to be copied.
    let of_shared = key.filter(|_| target.mode == Mode::AtLaunch);
    let shared = image.volumes.iter().map(|volume| mapping(&volume.device_name, of_shared));
    Ok(shared.chain(image.empty_volumes.iter().map(|device| mapping(device, key))).collect())
}

/// Without a public address, whatever the subnet does by default. Subnet and security groups of a launch that names its
/// interface belong to the interface (EC2 API reference, RunInstances).
fn network_interface(launch: &Launch) -> InstanceNetworkInterfaceSpecification {
    InstanceNetworkInterfaceSpecification::builder()
        .device_index(0)
        .associate_public_ip_address(false)
        .set_subnet_id(launch.subnet_id.clone())
        .set_groups((!launch.security_group_ids.is_empty()).then(|| launch.security_group_ids.clone()))
        .build()
}

fn tagged(kind: ResourceType, input: &Input) -> TagSpecification {
    let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build();
    let asked = input.target.launch.tags.iter().map(|(key, value)| tag(key, value));
    TagSpecification::builder()
        .resource_type(kind)
        .set_tags(Some(asked.collect()))
        .tags(tag(EXECUTION_TAG, input.execution.as_str()))
        .tags(tag(SOURCE_IMAGE_TAG, input.image.image_id.as_str()))
        .build()
}

async fn failure(config: &SdkConfig, input: &Input, error: SdkError<RunInstancesError>) -> Error {
    let Input { source, image, target, launch_image_id, .. } = input;
    let account = target.account_id.clone();
    let code = error.code().unwrap_or_default().to_owned();
    if aws::hides_image(&error) {
        if *launch_image_id == image.image_id {
            let said = error.message().unwrap_or_default();
            return ami_share_allowed_images::hidden(
                &Client::new(config),
                launch_image_id,
                source,
                &account,
                RUN,
                said,
            )
            .await;
        }
        let what = format!("copy {launch_image_id} of image {}", image.image_id);
        return Error::NotYetVisible { what, account, call: RUN };
    }
    match advice(&code) {
        Some(advice) => Error::LaunchFailed {
            image: launch_image_id.clone(),
            account,
            reason: format!("{code}: {}; {advice}", error.message().unwrap_or_default().trim_end_matches('.')),
            source: Some(error.into()),
        },
        None => authorization::failure(config, &account, RUN, error).await,
    }
}

/// What to do about an error that only a launch has ("Error codes", EC2 API reference).
fn advice(code: &str) -> Option<&'static str> {
    Some(match code {
        "InsufficientInstanceCapacity" | "InsufficientHostCapacity" | "InsufficientCapacity" => {
            "this is capacity, not the share: ask for another launch.instanceType or launch.subnetId, or start the \
             execution later"
        }
        "IdempotentInstanceTerminated" => {
            "the instance of this launch was terminated before its id was known: start a new execution"
        }
        "IdempotentParameterMismatch" => {
            "this execution launched an instance with other parameters before: start a new execution"
        }
        "VPCIdNotSpecified" | "MissingInput" | "InvalidSubnetID.NotFound" | "InvalidSubnet" => {
            "name a subnet of the target in launch.subnetId: it has no default VPC, or not that subnet"
        }
        "Unsupported" | "UnsupportedOperation" | "InvalidParameterCombination" | "InvalidParameterValue" => {
            "name an instance type in launch.instanceType that the image's architecture and boot mode fit, and that \
             the Region has"
        }
        "InvalidAMIID.Unavailable" => "the image is not available any more: it was disabled or deregistered",
        "InvalidSnapshot.NotFound" => "a snapshot of the image is gone: make the image again",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use ami_share_core::{
        ids::{AccountId, SnapshotId},
        share::{SourceChanges, Volume},
    };

    use super::*;

    fn image(architecture: &str) -> Image {
        let volume = |device: &str| Volume {
            device_name: device.to_owned(),
            snapshot_id: SnapshotId::parse("snap-0123abcd").unwrap(),
            key_arn: None,
        };
        Image {
            image_id: ImageId::parse("ami-0123abcd").unwrap(),
            name: "golden".to_owned(),
            architecture: architecture.to_owned(),
            volumes: vec![volume("/dev/xvda"), volume("/dev/sdf")],
            empty_volumes: vec!["/dev/sdx".to_owned()],
        }
    }

    const OWN_KEY: &str = "arn:aws:kms:eu-west-1:222222222222:key/own";

    fn target(mode: Mode, key: Option<&str>) -> Target {
        Target {
            account_id: AccountId::parse("222222222222").unwrap(),
            source_changes: SourceChanges::default(),
            principal_changes: Vec::new(),
            mode,
            kms_key_id: key.map(|key| KeyArn::parse(key).unwrap()),
            copy_id: None,
            launch: Launch::default(),
        }
    }

    #[test]
    fn the_instance_type_follows_the_architecture_unless_it_is_asked_for() {
        assert_eq!(target(Mode::None, None).instance_type(&image("x86_64")), "t3.micro");
        assert_eq!(target(Mode::None, None).instance_type(&image("arm64")), "t4g.micro");
        let mut asked = target(Mode::None, None);
        asked.launch.instance_type = Some("m7i.large".to_owned());
        assert_eq!(asked.instance_type(&image("x86_64")), "m7i.large");
    }

    #[test]
    fn at_launch_puts_every_volume_under_the_key() {
        let mappings = block_devices(&image("x86_64"), &target(Mode::AtLaunch, Some(OWN_KEY))).unwrap();
        let devices: Vec<_> = mappings.iter().map(|mapping| mapping.device_name().unwrap()).collect();
        assert_eq!(devices, ["/dev/xvda", "/dev/sdf", "/dev/sdx"]);
        for mapping in &mappings {
            assert_eq!(mapping.ebs().unwrap().kms_key_id(), Some(OWN_KEY));
            assert_eq!(mapping.ebs().unwrap().encrypted(), Some(true));
        }
    }

    #[test]
    fn otherwise_encryption_is_left_as_it_is_and_volumes_go_with_their_instance() {
        for target in [target(Mode::None, None), target(Mode::CopyImage, Some(OWN_KEY))] {
            let mappings = block_devices(&image("x86_64"), &target).unwrap();
            for mapping in &mappings[..2] {
                let ebs = mapping.ebs().unwrap();
                assert_eq!((ebs.encrypted(), ebs.kms_key_id()), (None, None));
                assert_eq!(ebs.delete_on_termination(), Some(true));
            }
            // A copy's snapshots are under the key, and what starts empty has to be put there.
            let empty = mappings[2].ebs().unwrap();
            assert_eq!(empty.kms_key_id(), target.kms_key_id.as_ref().map(KeyArn::as_str));
            assert_eq!(empty.delete_on_termination(), Some(true));
        }
    }

    #[test]
    fn at_launch_without_a_key_is_refused() {
        let error = block_devices(&image("x86_64"), &target(Mode::AtLaunch, None)).unwrap_err();
        assert_eq!(error.name(), "InvalidRequest");
    }

    #[test]
    fn capacity_and_a_terminated_instance_are_told_apart_from_the_rest() {
        assert!(advice("InsufficientInstanceCapacity").is_some_and(|advice| advice.contains("capacity")));
        assert!(advice("IdempotentInstanceTerminated").is_some_and(|advice| advice.contains("new execution")));
        assert_eq!(advice("UnauthorizedOperation"), None);
        assert_eq!(advice("RequestLimitExceeded"), None);
    }
}
