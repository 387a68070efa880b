//! The copies that executions have targets make: what they are called, and how they are known again.
//!
//! A tag does not say that something is a copy of ours: backups inherit tags, from a copy or an instance that stayed, and
//! are somebody else's. So a copy is known by its id. Only where a lost reply kept that from being noted, it is looked for by
//! tag, and then everything else must fit as well.

#![warn(missing_docs)]

use std::collections::BTreeMap;

use ami_share_core::{
    Error, aws,
    ids::{AccountId, ExecutionName, ImageId},
    share::{EXECUTION_TAG, Image},
    take_back::MadeCopy,
    tokens::client_token,
};
use aws_sdk_ec2::{
    Client,
    primitives::{DateTime, DateTimeFormat},
    types::{self, Filter, Tag},
};

/// What finds them.
pub const DESCRIBE_IMAGES: &str = "ec2:DescribeImages";

/// The most values of a filter ("List and filter using the CLI and API", EC2 user guide), and so the most copies that are
/// looked for at once.
pub const MAX_VALUES: usize = 200;

/// The longest name of an image (EC2 API reference, CreateImage).
const MAX_NAME: usize = 128;

/// The image's name and [`name_end`], in the characters that EC2 takes for a name (EC2 API reference,
/// CreateImage). Names are unique within an account and Region, and a target may have several
/// copies, under several keys.
pub fn copy_name(image: &Image, token: &str) -> String {
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
pub fn copy_token(execution: &ExecutionName, account: &AccountId) -> String {
    client_token(execution, account, "copy")
}

/// Those of `copies`, which are at most [`MAX_VALUES`], that are there, by their ids.
///
/// # Errors
/// Whatever AWS answers.
pub async fn find(
    ec2: &Client,
    account: &AccountId,
    copies: &[MadeCopy],
) -> Result<BTreeMap<String, types::Image>, Error> {
    let noted: Vec<String> = copies.iter().filter_map(|made| Some(made.copy_id.as_ref()?.to_string())).collect();
    let lost: Vec<&MadeCopy> = copies.iter().filter(|made| made.copy_id.is_none()).collect();
    let mut found = BTreeMap::new();
    if !noted.is_empty() {
        let filter = Filter::builder().name("image-id").set_values(Some(noted)).build();
        found.extend(own_images(ec2, account, filter).await?);
    }
    if !lost.is_empty() {
        let candidates = own_images(ec2, account, of_executions(&lost)).await?.into_iter();
        found.extend(candidates.filter(|(_, image)| lost.iter().any(|made| is_copy(made, account, image))));
    }
    Ok(found)
}

/// The images of the account that the filter lets pass, disabled ones too, by their ids.
///
/// # Errors
/// Whatever AWS answers.
pub async fn own_images(
    ec2: &Client,
    account: &AccountId,
    filter: Filter,
) -> Result<BTreeMap<String, types::Image>, Error> {
    let pages = ec2.describe_images().owners("self").include_disabled(true).filters(filter).into_paginator();
    let mut images = pages.items().send();
    let mut found = BTreeMap::new();
    while let Some(image) = images.next().await {
        let image = image.map_err(|error| aws::failure(account, DESCRIBE_IMAGES, error))?;
        if let Some(id) = image.image_id() {
            found.insert(id.to_owned(), image);
        }
    }
    Ok(found)
}

/// What may be of those copies, by its tag.
pub fn of_executions(copies: &[&MadeCopy]) -> Filter {
    let names = copies.iter().map(|made| made.execution.to_string()).collect();
    Filter::builder().name(format!("tag:{EXECUTION_TAG}")).set_values(Some(names)).build()
}

/// Whether the image is the copy that `made` tells of, without its id. A copy of the copy, or an image of its instance,
/// may have its tags; an image of an instance names the same source as well, but has another name, as names are unique.
pub fn is_copy(made: &MadeCopy, account: &AccountId, image: &types::Image) -> bool {
    let end = name_end(&made.of, &copy_token(&made.execution, account));
    let created = image.creation_date().and_then(|date| DateTime::from_str(date, DateTimeFormat::DateTime).ok());
    has_tag_of(made, image.tags())
        && image.source_image_id() == Some(made.of.as_str())
        && image.source_instance_id().is_none()
        && image.name().is_some_and(|name| name.ends_with(&end))
        && is_younger(made, created.as_ref())
}

/// Whether the tags name the execution of the copy. A filter takes `*` and `?` for wildcards: what it finds is looked at again.
pub fn has_tag_of(made: &MadeCopy, tags: &[Tag]) -> bool {
    tags.iter().any(|tag| tag.key() == Some(EXECUTION_TAG) && tag.value() == Some(made.execution.as_str()))
}

/// Whether something of that time can be of the copy. EC2 tells the time of an image to the second.
pub fn is_younger(made: &MadeCopy, time: Option<&DateTime>) -> bool {
    time.is_some_and(|time| time.secs() >= made.noted_at.div_euclid(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: &str = "ami-0123456789abcdef0";
    const COPY: &str = "ami-0fedcba9876543210";
    const NOTED: &str = "2026-11-27T20:00:00.700Z";

    fn account() -> AccountId {
        AccountId::parse("222222222222").unwrap()
    }

    fn time(text: &str) -> DateTime {
        DateTime::from_str(text, DateTimeFormat::DateTime).unwrap()
    }

    fn made(execution: &str, copy_id: Option<&str>) -> MadeCopy {
        MadeCopy {
            execution: ExecutionName::parse(execution).unwrap(),
            of: ImageId::parse(OF).unwrap(),
            noted_at: time(NOTED).to_millis().unwrap(),
            copy_id: copy_id.map(|id| ImageId::parse(id).unwrap()),
        }
    }

    fn image(name: &str) -> Image {
        Image {
            image_id: ImageId::parse(OF).unwrap(),
            name: name.to_owned(),
            architecture: "x86_64".to_owned(),
            volumes: Vec::new(),
            empty_volumes: vec![],
        }
    }

    fn tag(execution: &str) -> Tag {
        Tag::builder().key(EXECUTION_TAG).value(execution).build()
    }

    /// As CopyImage has it made for the execution.
    fn copy(execution: &str) -> types::builders::ImageBuilder {
        let token = copy_token(&ExecutionName::parse(execution).unwrap(), &account());
        types::Image::builder()
            .image_id(COPY)
            .name(copy_name(&image("golden"), &token))
            .source_image_id(OF)
            .creation_date("2026-11-27T20:00:00.000Z")
            .tags(tag(execution))
    }

    #[test]
    fn a_copy_whose_reply_was_lost_is_known_by_everything_together() {
        let made = made("nightly*", None);
        assert!(is_copy(&made, &account(), &copy("nightly*").build()));
        for (other, what) in [
            (copy("nightly*").source_image_id(COPY), "a copy of the copy, with its tags"),
            (copy("nightly*").source_instance_id("i-0123abcd"), "made of an instance, with its tags"),
            (copy("nightly*").name("backup"), "another name"),
            (copy("nightly*").creation_date("2026-11-27T19:59:59.000Z"), "older than the note"),
            (copy("nightly*").set_creation_date(None), "of no known time"),
            (copy("nightly*").set_tags(None), "without the tag"),
            (copy("nightly-2"), "of another execution"),
        ] {
            assert!(!is_copy(&made, &account(), &other.build()), "{what}");
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
