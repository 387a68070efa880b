//! The tag of keys that may be shared, which accounts/source.yaml can ask for (`OnlyTaggedKeys`).

use ami_share_core::{Error, aws, ids::KeyArn};
use aws_sdk_kms::{Client, types::Tag};

/// All that is called for it.
pub const LIST_TAGS: &str = "kms:ListResourceTags";

/// With the value `true`.
pub const SHAREABLE_TAG: &str = "ami-share:shareable";

/// Whether the key has it.
///
/// # Errors
/// [`Error::AccessDenied`], for one where a key's policy does not leave that to IAM.
pub async fn is_shareable(kms: &Client, key: &KeyArn) -> Result<bool, Error> {
    Ok(tags(kms, key).await?.iter().any(|tag| tag.tag_key() == SHAREABLE_TAG && tag.tag_value() == "true"))
}

/// All tags of the key.
///
/// # Errors
/// As [`is_shareable`].
pub async fn tags(kms: &Client, key: &KeyArn) -> Result<Vec<Tag>, Error> {
    let mut pages = kms.list_resource_tags().key_id(key.as_str()).into_paginator().items().send();
    let mut tags = Vec::new();
    while let Some(tag) = pages.next().await {
        tags.push(tag.map_err(|error| aws::failure(&key.account_id(), LIST_TAGS, error))?);
    }
    Ok(tags)
}
