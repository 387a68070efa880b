//! CopyImage: starts the target's own copy of the image under the target's own key.

mod undo;

use ami_share_core::{
    Error, Hub, aws,
    hub::{Actions, client_token, making_encrypted},
    ids::{AccountId, ExecutionName, ImageId},
    share::{EXECUTION_TAG, Image, KEY_TAG, SOURCE_IMAGE_TAG, Source, Target},
};
use aws_sdk_ec2::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::copy_image::CopyImageError,
    types::{ResourceType, Tag, TagSpecification},
};
use serde::{Deserialize, Serialize};

pub use undo::{UNDO_ACTIONS, undo_copy_image};

pub const ACTIONS: Actions = Actions { source: &[], target: &[], launcher: &making_encrypted(COPY) };

const COPY: &str = "ec2:CopyImage";

/// The longest name of an image (EC2 API reference, CreateImage).
const MAX_NAME: usize = 128;

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
/// [`Error::TargetNotAllowed`]; [`Error::NotYetVisible`] when the target does not see the image; [`Error::CopyFailed`] when it may
/// not copy from its snapshots; [`Error::QuotaExceeded`] when it makes as many copies as it may.
#[tracing::instrument(skip_all, fields(
    execution = %input.execution, account = %input.target.account_id, image = %input.image.image_id
))]
pub async fn copy_image(hub: &Hub, input: Input) -> Result<Output, Error> {
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
    let tags = [(EXECUTION_TAG, execution.as_str()), (SOURCE_IMAGE_TAG, image.image_id.as_str()), (KEY_TAG, key)];
    let copied = Client::new(&config)
        .copy_image()
        .source_image_id(image.image_id.as_str())
        .source_region(source.region.as_str())
        .name(copy_name(image, &token))
        .description(format!("Copy of {} of account {}, made by ami-share", image.image_id, source.account_id))
        .encrypted(true)
        .kms_key_id(key)
        .tag_specifications(tagged(ResourceType::Image, &tags))
        .tag_specifications(tagged(ResourceType::Snapshot, &tags))
        .client_token(token)
        .send()
        .await
        .map_err(|error| failure(&input, error))?;
    let copy_id = ImageId::parse(copied.image_id().unwrap_or_default()).map_err(|_| Error::Unavailable {
        account: target.account_id.clone(),
        call: COPY,
        source: Some("the answer holds no image id".into()),
    })?;
    tracing::info!(copy = %copy_id, key, "copy started");
    Ok(Output { copy_id })
}

/// The image's name and [`name_end`], in the characters that EC2 takes for a name (EC2 API reference,
/// CreateImage). Names are unique within an account and Region, and a target may have several
/// copies, under several keys.
fn copy_name(image: &Image, token: &str) -> String {
    let end = name_end(&image.image_id, token);
    let fits = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    let start: String = image.name.chars().map(|c| if fits(c) { c } else { '-' }).take(MAX_NAME - end.len()).collect();
    format!("{start}{end}")
}

/// How the name of a copy ends, which is made of the image `of`: the start of the token tells it from other copies.
fn name_end(of: &ImageId, token: &str) -> String {
    format!(" ({of} {})", &token[..8])
}

/// The token of the one copy that an execution has `account` make.
fn copy_token(execution: &ExecutionName, account: &AccountId) -> String {
    client_token(execution, account, "copy")
}

fn tagged(kind: ResourceType, tags: &[(&str, &str)]) -> TagSpecification {
    let tags = tags.iter().map(|(key, value)| Tag::builder().key(*key).value(*value).build()).collect();
    TagSpecification::builder().resource_type(kind).set_tags(Some(tags)).build()
}

fn failure(input: &Input, error: SdkError<CopyImageError>) -> Error {
    let Input { source, image, target, .. } = input;
    let account = target.account_id.clone();
    // EC2 refuses at once where the snapshots are not shared with the account.
    let no_snapshot_permission = match error.code() {
        Some("InvalidRequest") => error.message().is_some_and(|message| message.contains("storage of this ami")),
        code => code == Some("InvalidSnapshot.NotFound"),
    };
    match error.code() {
        Some("InvalidAMIID.NotFound") => Error::NotYetVisible {
            what: format!(
                "image {} (what it takes is launch permission for account {account}, given by account {})",
                image.image_id, source.account_id
            ),
            account,
            call: COPY,
        },
        _ if no_snapshot_permission => {
            let snapshots: Vec<&str> = image.volumes.iter().map(|volume| volume.snapshot_id.as_str()).collect();
            Error::CopyFailed {
                image: image.image_id.clone(),
                reason: format!(
                    "ec2:CopyImage says {}; the likely cause is snapshot permission: account {account} needs \
                     createVolumePermission on {} of account {} (ec2:ModifySnapshotAttribute gives it)",
                    error.message().unwrap_or_default(),
                    snapshots.join(", "),
                    source.account_id
                ),
                account,
            }
        }
        _ => aws::failure(&account, COPY, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str) -> Image {
        Image {
            image_id: ImageId::parse("ami-0123456789abcdef0").unwrap(),
            name: name.to_owned(),
            architecture: "x86_64".to_owned(),
            volumes: Vec::new(),
        }
    }

    #[test]
    fn a_copy_is_named_after_its_image() {
        assert_eq!(copy_name(&image("golden 1.2"), "0123456789"), "golden 1.2 (ami-0123456789abcdef0 01234567)");
    }

    #[test]
    fn characters_that_ec2_does_not_take_are_replaced() {
        assert_eq!(copy_name(&image("a:b,c\u{e9}"), "0123456789"), "a-b-c- (ami-0123456789abcdef0 01234567)");
    }

    #[test]
    fn a_long_name_is_cut_and_keeps_what_tells_it_apart() {
        let name = copy_name(&image(&"n".repeat(128)), "0123456789");
        assert_eq!(name.len(), MAX_NAME);
        assert!(name.ends_with("(ami-0123456789abcdef0 01234567)"), "{name}");
    }
}
