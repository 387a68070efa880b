//! UndoCopyImage: removes the copies that executions made, with their snapshots.
//!
//! A copy is known as [`ami_share_copies`] says, and its snapshots by its block device mapping. Only those that an
//! interrupted removal has left are looked for by tag, and then everything else must fit as well.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_copies::{
    self as copies, DESCRIBE_IMAGES, MAX_VALUES, has_tag_of, is_copy, is_younger, of_executions, own_images,
};
use ami_share_core::{
    Error, Hub, authorization, aws,
    hub::Actions,
    ids::{AccountId, ImageId},
    refusal::DECODE,
    take_back::{MadeCopy, Taken, UndoInput, Undone},
};
use aws_config::SdkConfig;
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{Filter, Image, ImageState, Snapshot},
};

pub const UNDO_ACTIONS: Actions =
    Actions { launcher: &[DESCRIBE_IMAGES, DEREGISTER, DESCRIBE_SNAPSHOTS, DELETE, DECODE], ..Actions::NONE };

const DEREGISTER: &str = "ec2:DeregisterImage";
const DESCRIBE_SNAPSHOTS: &str = "ec2:DescribeSnapshots";
const DELETE: &str = "ec2:DeleteSnapshot";

/// In seconds: the snapshots of a copy are begun with it. They take longer than this to be copied in their turn, unless
/// they are small.
const SOON: i64 = 60 * 60;

/// Deregisters the copies, and deletes their snapshots, also where a copy is gone already. What is not there is as good
/// as removed; one thing that fails does not keep the others from being tried.
///
/// # Errors
/// [`Error::NotYetVisible`] for a copy that EC2 calls unavailable: it may be on its way in or out.
/// [`Error::AccessDenied`], and whatever else EC2 refuses with: a snapshot may be in use for a moment
/// after its image was deregistered.
#[tracing::instrument(skip_all, fields(execution = %input.execution, account = %input.target.account_id))]
pub async fn undo_copy_image(hub: &Hub, input: UndoInput) -> Result<Undone, Error> {
    let UndoInput { execution, source, target } = &input;
    if target.copies.is_empty() {
        return Ok(Undone::default());
    }
    let account = &target.account_id;
    let config = hub.as_launcher(account, &source.region, execution, UNDO_ACTIONS).await?;
    let ec2 = Client::new(&config);
    let mut removal = Removal { config: &config, ec2: &ec2, account, taken: Vec::new(), errors: Vec::new() };
    for made in target.copies.chunks(MAX_VALUES) {
        let images = copies::find(&ec2, account, made).await?;
        // All is read before anything is removed: from then on nobody knows which snapshots an image had.
        let mut snapshots = mapped_snapshots(&images);
        let unmapped: Vec<&MadeCopy> = made.iter().filter(|made| !is_mapped(made, account, &images)).collect();
        if !unmapped.is_empty() {
            snapshots.extend(left_snapshots(&ec2, account, &unmapped, &images).await?);
        }
        for id in images.keys() {
            removal.deregister(id).await;
        }
        for id in &snapshots {
            removal.delete(id).await;
        }
    }
    Error::all_of(removal.errors)?;
    Ok(Undone { taken: removal.taken })
}

struct Removal<'a> {
    config: &'a SdkConfig,
    ec2: &'a Client,
    account: &'a AccountId,
    taken: Vec<Taken>,
    errors: Vec<Error>,
}

impl Removal<'_> {
    async fn deregister(&mut self, id: &str) {
        match self.ec2.deregister_image().image_id(id).send().await {
            Ok(_) => {
                tracing::info!(image = id, "copy deregistered");
                self.took(DEREGISTER, id);
            }
            Err(error) if error.code() == Some("InvalidAMIID.NotFound") => {}
            Err(error) if error.code() == Some("InvalidAMIID.Unavailable") => self.errors.push(Error::NotYetVisible {
                what: format!("whether copy {id} is gone, which is unavailable,"),
                account: self.account.clone(),
                call: DEREGISTER,
            }),
            Err(error) => self.errors.push(authorization::failure(self.config, self.account, DEREGISTER, error).await),
        }
    }

    async fn delete(&mut self, id: &str) {
        match self.ec2.delete_snapshot().snapshot_id(id).send().await {
            Ok(_) => {
                tracing::info!(snapshot = id, "snapshot deleted");
                self.took(DELETE, id);
            }
            Err(error) if error.code() == Some("InvalidSnapshot.NotFound") => {}
            Err(error) => self.errors.push(authorization::failure(self.config, self.account, DELETE, error).await),
        }
    }

    fn took(&mut self, call: &str, id: &str) {
        let (call, account_id, resource) = (call.to_owned(), self.account.clone(), id.to_owned());
        self.taken.push(Taken { call, account_id, resource, from: Vec::new() });
    }
}

/// Whether the copy is there, and its mapping has all its snapshots.
fn is_mapped(made: &MadeCopy, account: &AccountId, images: &BTreeMap<String, Image>) -> bool {
    let image = match &made.copy_id {
        Some(id) => images.get(id.as_str()),
        None => images.values().find(|image| is_copy(made, account, image)),
    };
    let state = image.and_then(|image| image.state());
    matches!(state, Some(ImageState::Available | ImageState::Disabled))
}

fn mapped_snapshots(images: &BTreeMap<String, Image>) -> BTreeSet<String> {
    let mappings = images.values().flat_map(|image| image.block_device_mappings());
    mappings.filter_map(|mapping| mapping.ebs()?.snapshot_id().map(str::to_owned)).collect()
}

/// The snapshots of copies that are gone already, and those that the mapping of a copy that is being made may not have
/// yet. `images` are the copies that are there.
async fn left_snapshots(
    ec2: &Client,
    account: &AccountId,
    copies: &[&MadeCopy],
    images: &BTreeMap<String, Image>,
) -> Result<BTreeSet<String>, Error> {
    let pages = ec2.describe_snapshots().owner_ids("self").filters(of_executions(copies)).into_paginator();
    let mut snapshots = pages.items().send();
    // By the copy that they were made for.
    let mut left: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    while let Some(snapshot) = snapshots.next().await {
        let snapshot = snapshot.map_err(|error| aws::failure(account, DESCRIBE_SNAPSHOTS, error))?;
        let copy = copies.iter().find_map(|made| copy_of(made, &snapshot));
        if let (Some(copy), Some(id)) = (copy, snapshot.snapshot_id()) {
            left.entry(copy).or_default().insert(id.to_owned());
        }
    }
    // Where no id was noted, and an image of that id is there that is no copy of ours, they are of that one.
    let noted: BTreeSet<&str> = copies.iter().filter_map(|made| made.copy_id.as_ref().map(ImageId::as_str)).collect();
    let unknown: Vec<String> =
        left.keys().filter(|copy| !noted.contains(copy.as_str()) && !images.contains_key(*copy)).cloned().collect();
    for unknown in unknown.chunks(MAX_VALUES) {
        let filter = Filter::builder().name("image-id").set_values(Some(unknown.to_vec())).build();
        for other in own_images(ec2, account, filter).await?.keys() {
            left.remove(other);
        }
    }
    Ok(left.into_values().flatten().collect())
}

/// The id of the copy that the snapshot was made for, where it can be the one that `made` tells of.
fn copy_of(made: &MadeCopy, snapshot: &Snapshot) -> Option<String> {
    let CopiedFor { copy, of, task_ms } = copied_for(snapshot.description()?)?;
    // Somebody may have copied a snapshot of ours in its turn, with its tags and its description.
    let with_its_copy =
        task_ms.is_none_or(|at| snapshot.start_time().is_some_and(|time| time.secs() <= at / 1_000 + SOON));
    let fits = of == made.of.as_str()
        && with_its_copy
        && made.copy_id.as_ref().is_none_or(|id| id.as_str() == copy)
        && has_tag_of(made, snapshot.tags())
        && is_younger(made, snapshot.start_time());
    fits.then(|| copy.to_owned())
}

/// What EC2 says of a snapshot that CopyImage makes.
#[derive(Debug, PartialEq, Eq)]
struct CopiedFor<'a> {
    copy: &'a str,
    of: &'a str,
    /// In milliseconds since 1970.
    task_ms: Option<i64>,
}

/// Reads EC2's own description, `Copied for DestinationAmi ami-... from SourceAmi ami-... for SourceSnapshot snap-....
/// Task created on 1,566,308,778,174.` (field reports; EC2's documents do not say).
fn copied_for(description: &str) -> Option<CopiedFor<'_>> {
    let (copy, rest) = description.strip_prefix("Copied for DestinationAmi ")?.split_once(" from SourceAmi ")?;
    let (of, rest) = rest.split_once(" for SourceSnapshot snap-")?;
    let task_ms = rest.split_once("Task created on ").and_then(|(_, at)| {
        let digits: String = at.trim_end_matches('.').split(',').collect();
        digits.parse().ok()
    });
    let images = ImageId::parse(copy).is_ok() && ImageId::parse(of).is_ok();
    images.then_some(CopiedFor { copy, of, task_ms })
}

#[cfg(test)]
mod tests {
    use ami_share_core::{ids::ExecutionName, share::EXECUTION_TAG};
    use aws_sdk_ec2::{
        primitives::{DateTime, DateTimeFormat},
        types::Tag,
    };

    use super::*;

    const OF: &str = "ami-0123456789abcdef0";
    const COPY: &str = "ami-0fedcba9876543210";
    const NOTED: &str = "2026-11-27T20:00:00.700Z";

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

    fn tag(execution: &str) -> Tag {
        Tag::builder().key(EXECUTION_TAG).value(execution).build()
    }

    fn snapshot(description: &str) -> aws_sdk_ec2::types::builders::SnapshotBuilder {
        Snapshot::builder()
            .snapshot_id("snap-0123abcd")
            .description(description)
            .start_time(time("2026-11-27T20:00:00Z"))
            .tags(tag("nightly"))
    }

    fn description(copy: &str, of: &str) -> String {
        format!(
            "Copied for DestinationAmi {copy} from SourceAmi {of} for SourceSnapshot snap-0123abcd. Task created on \
             1,795,809,601,500."
        )
    }

    #[test]
    fn a_snapshot_that_is_left_is_known_by_what_it_was_copied_for() {
        let ours = description(COPY, OF);
        assert_eq!(copy_of(&made("nightly", Some(COPY)), &snapshot(&ours).build()).as_deref(), Some(COPY));
        assert_eq!(copy_of(&made("nightly", None), &snapshot(&ours).build()).as_deref(), Some(COPY));
        let another = made("nightly", Some("ami-0aaaaaaaaaaaaaaaa"));
        assert_eq!(copy_of(&another, &snapshot(&ours).build()), None, "of a copy that was not noted");
        for (other, what) in [
            (snapshot("Created by CreateImage(i-0123abcd) for ami-0fedcba9876543210"), "of an instance"),
            (snapshot(&format!("[Copied snap-0123abcd from eu-west-1] {ours}")), "a copy of the snapshot"),
            (snapshot(&description(COPY, COPY)), "of a copy of another image"),
            (snapshot("").set_description(None), "without a description"),
            (snapshot(&ours).set_tags(None), "without the tag"),
            (snapshot(&ours).set_tags(Some(vec![tag("nightly-2")])), "of another execution"),
            (snapshot(&ours).start_time(time("2026-11-27T19:59:59Z")), "older than the note"),
            (snapshot(&ours).start_time(time("2026-11-28T20:00:00Z")), "begun long after its copy"),
        ] {
            for made in [made("nightly", Some(COPY)), made("nightly", None)] {
                assert_eq!(copy_of(&made, &other.clone().build()), None, "{what}");
            }
        }
    }

    #[test]
    fn a_description_that_only_looks_alike_names_no_copy() {
        let said = description(COPY, OF);
        assert_eq!(copied_for(&said), Some(CopiedFor { copy: COPY, of: OF, task_ms: Some(1_795_809_601_500) }));
        let old =
            copied_for("Copied for DestinationAmi ami-0123abcd from SourceAmi ami-0123abce for SourceSnapshot snap-1");
        assert_eq!(old, Some(CopiedFor { copy: "ami-0123abcd", of: "ami-0123abce", task_ms: None }));
        assert_eq!(copied_for("Copied for DestinationAmi from SourceAmi ami-0123abcd for SourceSnapshot snap-1"), None);
        assert_eq!(copied_for("Copied for DestinationAmi x from SourceAmi y for SourceSnapshot snap-1"), None);
        assert_eq!(copied_for(""), None);
    }
}
