//! CopyImage: starts the target's own copy of the image under the target's own key.

mod undo;

use ami_share_copies::{copy_name, copy_token};
use ami_share_core::{
    Error, Hub, authorization, aws,
    hub::Actions,
    ids::{ExecutionName, ImageId},
    key_actions::making_encrypted,
    share::{EXECUTION_TAG, Image, KEY_TAG, SOURCE_IMAGE_TAG, Source, Target},
};
use aws_config::SdkConfig;
use aws_sdk_ec2::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::copy_image::CopyImageError,
    types::{ResourceType, Tag, TagSpecification},
};
use serde::{Deserialize, Serialize};

pub use undo::{UNDO_ACTIONS, undo_copy_image};

pub const ACTIONS: Actions = Actions { launcher: &making_encrypted(COPY), ..Actions::NONE };

const COPY: &str = "ec2:CopyImage";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    pub image: Image,
    pub target: Target,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub copy_id: ImageId,
}

/// Starts the copy; the same execution started twice has one copy. A copy that an earlier execution
/// made under the same key is taken as it is.
///
/// # Errors
/// [`Error::SourceNotAllowed`]; [`Error::TargetNotAllowed`]; [`Error::NotYetVisible`] when the target may not use the image or its snapshots, or not
/// yet; [`Error::QuotaExceeded`] when it makes as many copies as it may.
#[tracing::instrument(skip_all, fields(
    execution = %input.execution, account = %input.target.account_id, image = %input.image.image_id
))]
pub async fn copy_image(hub: &Hub, input: Input) -> Result<Output, Error> {
    hub.settings.sources.check(&input.source.account_id)?;
    hub.settings.allow_list.check_listed([&input.target.account_id])?;
    if let Some(copy_id) = input.target.copy_id {
        return Ok(Output { copy_id });
    }
    let Input { execution, source, image, target } = &input;
    let Some(key) = &target.kms_key_id else {
        return Err(Error::invalid(
            "target.kmsKeyId",
            "null",
            "is required: a copy is made to be under the target's key",
        ));
    };
    let config = hub.as_launcher(&target.account_id, &source.region, execution, ACTIONS).await?;
    let token = copy_token(execution, &target.account_id);
    let tags =
        [(EXECUTION_TAG, execution.as_str()), (SOURCE_IMAGE_TAG, image.image_id.as_str()), (KEY_TAG, key.as_str())];
    let copied = Client::new(&config)
        .copy_image()
        .source_image_id(image.image_id.as_str())
        .source_region(source.region.as_str())
        .name(copy_name(image, &token))
        .description(format!("Copy of {} of account {}, made by ami-share", image.image_id, source.account_id))
        .encrypted(true)
        .kms_key_id(key.as_str())
        .tag_specifications(tagged(ResourceType::Image, &tags))
        .tag_specifications(tagged(ResourceType::Snapshot, &tags))
        .client_token(token)
        .send()
        .await;
    let copied = match copied {
        Ok(copied) => copied,
        Err(error) => return Err(failure(&config, &input, error).await),
    };
    let copy_id = ImageId::parse(copied.image_id().unwrap_or_default()).map_err(|_| Error::Unavailable {
        account: target.account_id.clone(),
        call: COPY,
        source: Some("the answer holds no image id".into()),
    })?;
    tracing::info!(copy = %copy_id, %key, "copy started");
    Ok(Output { copy_id })
}

fn tagged(kind: ResourceType, tags: &[(&str, &str)]) -> TagSpecification {
    let tags = tags.iter().map(|(key, value)| Tag::builder().key(*key).value(*value).build()).collect();
    TagSpecification::builder().resource_type(kind).set_tags(Some(tags)).build()
}

async fn failure(config: &SdkConfig, input: &Input, error: SdkError<CopyImageError>) -> Error {
    let Input { source, image, target, .. } = input;
    let account = &target.account_id;
    if aws::hides_image(&error) {
        let said = error.message().unwrap_or_default();
        return ami_share_allowed_images::hidden(&Client::new(config), &image.image_id, source, account, COPY, said)
            .await;
    }
    match storage_not_given_yet(input, &error) {
        Some(passing) => passing,
        None => authorization::failure(config, account, COPY, error).await,
    }
}

/// What EC2 refuses for want of the snapshot permission that was just given: it passes.
fn storage_not_given_yet(input: &Input, error: &impl ProvideErrorMetadata) -> Option<Error> {
    let Input { source, image, target, .. } = input;
    let account = target.account_id.clone();
    if hides_storage(error) {
        let snapshots: Vec<&str> = image.volumes.iter().map(|volume| volume.snapshot_id.as_str()).collect();
        let (image, owner) = (&image.image_id, &source.account_id);
        let what = format!(
            "the storage of image {image} of account {owner} (what it takes is snapshot permission, \
             createVolumePermission for account {account} on {}, and launch permission on the image; where it stays so, \
             see that ec2:DescribeSnapshotAttribute and ec2:DescribeImageAttribute in account {owner} still list it, and \
             start the execution again)",
            snapshots.join(", ")
        );
        return Some(Error::NotYetVisible { what, account, call: COPY });
    }
    None
}

/// Whether EC2 says that the account may not read the image's snapshots. The sentence is documented, for copies that
/// lost launch and snapshot permission ("Troubleshoot a logically air-gapped vault issue", AWS Backup developer guide);
/// its code, `InvalidRequest`, which others share, is a field report, and so is that snapshot permission alone brings it
/// about (clong/DetectionLab #422).
fn hides_storage(error: &impl ProvideErrorMetadata) -> bool {
    match error.code() {
        Some("InvalidSnapshot.NotFound") => true,
        Some("InvalidRequest" | "AuthFailure") => {
            error.message().is_some_and(|message| message.contains("storage of this ami"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use ami_share_core::{
        ids::{AccountId, KeyArn, Region},
        share::{Launch, Mode, SourceChanges},
    };
    use aws_sdk_ec2::error::ErrorMetadata;

    use super::*;

    fn refused(code: &str, message: &str) -> Option<Error> {
        let input = Input {
            execution: ExecutionName::parse("nightly").unwrap(),
            source: Source {
                account_id: AccountId::parse("111111111111").unwrap(),
                region: Region::parse("eu-west-1").unwrap(),
            },
            image: Image {
                image_id: ImageId::parse("ami-0123456789abcdef0").unwrap(),
                name: "golden".to_owned(),
                architecture: "x86_64".to_owned(),
                volumes: Vec::new(),
                empty_volumes: vec![],
            },
            target: Target {
                account_id: AccountId::parse("222222222222").unwrap(),
                principal_changes: Vec::new(),
                source_changes: SourceChanges::default(),
                mode: Mode::CopyImage,
                kms_key_id: KeyArn::parse("arn:aws:kms:eu-west-1:222222222222:key/own").ok(),
                copy_id: None,
                launch: Launch::default(),
            },
        };
        storage_not_given_yet(&input, &ErrorMetadata::builder().code(code).message(message).build())
    }

    #[test]
    fn what_was_just_given_may_not_be_seen_yet_whatever_ec2_calls_it() {
        for (code, message) in [
            ("InvalidRequest", "You do not have permission to access the storage of this ami"),
            ("InvalidSnapshot.NotFound", "The snapshot 'snap-0123abcd' does not exist."),
        ] {
            let error = refused(code, message).unwrap_or_else(|| panic!("{code} is for good"));
            assert_eq!(error.name(), "NotYetVisible", "{code}");
            let said = error.to_string();
            for part in ["launch permission", "account 111111111111", "account 222222222222", "ec2:CopyImage"] {
                assert!(said.contains(part), "{code}, {part}: {said}");
            }
        }
    }

    #[test]
    fn what_never_passes_is_not_waited_for() {
        let marketplace = "Images from AWS Marketplace cannot be copied to another AWS account";
        assert!(refused("InvalidRequest", marketplace).is_none());
        let credentials = "AWS was not able to validate the provided access credentials";
        assert!(refused("AuthFailure", credentials).is_none());
    }
}
