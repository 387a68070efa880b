//! What an audit says: the output of its execution.
//!
//! States pass 262,144 bytes to each other, and an account may have more shares than fit. Findings and shares have
//! room of their own, so that no list of shares pushes a finding out; what had no room is counted.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    ids::{ImageId, KeyArn, SnapshotId},
    request::AuditRequest,
    share::Source,
    take_back::PassedOn,
};
use serde::{Deserialize, Serialize};

use crate::{grantee::Grantee, keys::Way, public_access::BlockPublicAccess};

/// Room for the findings, in bytes of JSON.
const FINDINGS_BYTES: usize = 80_000;
/// Room for the shares of images.
const IMAGES_BYTES: usize = 60_000;
/// How many accounts of one finding are listed.
const ACCOUNTS_LISTED: usize = 100;
/// How many are named in its sentence.
const ACCOUNTS_NAMED: usize = 5;
/// How many keys without the tag are listed.
const UNTAGGED_LISTED: usize = 100;
/// How many sentences say what was not looked at.
const NOT_LOOKED_AT: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    pub(crate) status: Status,
    pub(crate) source: Source,
    /// The one that was asked for; nothing where every image was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image_id: Option<ImageId>,
    pub(crate) summary: Summary,
    pub(crate) findings: Vec<Finding>,
    /// Images that are shared, or of which something is noted.
    pub(crate) images: Vec<ImageShares>,
    /// Keys with a statement or grant of ours, and without the tag of keys that may be shared. That is as it should be
    /// where the source is deployed with `OnlyTaggedKeys=false`, which is not known here.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) untagged_keys: BTreeSet<KeyArn>,
    /// Whether images of the account may be made public in the Region; nothing where nobody could say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) public_images: Option<BlockPublicAccess>,
    /// The same of snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) public_snapshots: Option<BlockPublicAccess>,
    pub(crate) not_looked_at: BTreeSet<String>,
    /// What was left out so that the report fits.
    pub(crate) cut: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Status {
    /// Nothing was found that is not as it should be.
    #[default]
    Clean,
    Findings,
}

/// Of the whole, also where something was cut.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Summary {
    /// Images that were looked at.
    pub(crate) images: usize,
    pub(crate) shared_images: usize,
    /// Pairs of an image and whom it is shared with.
    pub(crate) shares: usize,
    pub(crate) keys: usize,
    #[serde(default)]
    pub(crate) untagged_keys: usize,
    pub(crate) findings: BTreeMap<Kind, usize>,
    /// Grants on keys that others than the source account made, by what they are for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) grants_of_others: BTreeMap<PassedOn, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    LaunchPermissionWithoutKeyAccess,
    KeyAccessWithoutLaunchPermission,
    KeyAccessWithoutImage,
    HalfKeyStatements,
    KeyStatementNotOurs,
    GrantNotRetirable,
    GrantPassedOn,
    KeyNotUsable,
    SnapshotPermissionWithoutLaunchPermission,
    NoteWithoutImage,
    NotOnAllowList,
    AllowListNotChecked,
    KeyNotRead,
}

impl Kind {
    /// Every one there is, for the contract test with docs/errors.md.
    pub const ALL: [Self; 13] = [
        Self::LaunchPermissionWithoutKeyAccess,
        Self::KeyAccessWithoutLaunchPermission,
        Self::KeyAccessWithoutImage,
        Self::HalfKeyStatements,
        Self::KeyStatementNotOurs,
        Self::GrantNotRetirable,
        Self::GrantPassedOn,
        Self::KeyNotUsable,
        Self::SnapshotPermissionWithoutLaunchPermission,
        Self::NoteWithoutImage,
        Self::NotOnAllowList,
        Self::AllowListNotChecked,
        Self::KeyNotRead,
    ];
}

/// One thing that is not as it should be, of all accounts that it is so for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Finding {
    pub(crate) kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image_id: Option<ImageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key_arn: Option<KeyArn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot_id: Option<SnapshotId>,
    /// Accounts, organizations, units or `all`: the first 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) accounts: Vec<Grantee>,
    pub(crate) message: String,
}

impl Finding {
    /// `message` is given whom it is about, as words.
    pub(crate) fn new(kind: Kind, about: Vec<Grantee>, message: impl FnOnce(&str) -> String) -> Self {
        let mut named: Vec<String> = about.iter().take(ACCOUNTS_NAMED).map(ToString::to_string).collect();
        if about.len() > ACCOUNTS_NAMED {
            named.push(format!("and {} more", about.len() - ACCOUNTS_NAMED));
        }
        let message = message(&named.join(", "));
        let accounts = about.into_iter().take(ACCOUNTS_LISTED).collect();
        Self { kind, image_id: None, key_arn: None, snapshot_id: None, accounts, message }
    }

    pub(crate) fn of_image(self, image: &ImageId) -> Self {
        Self { image_id: Some(image.clone()), ..self }
    }

    pub(crate) fn of_key(self, key: &KeyArn) -> Self {
        Self { key_arn: Some(key.clone()), ..self }
    }

    pub(crate) fn of_snapshot(self, snapshot: &SnapshotId) -> Self {
        Self { snapshot_id: Some(snapshot.clone()), ..self }
    }
}

/// Who can use one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ImageShares {
    pub(crate) image_id: ImageId,
    pub(crate) name: String,
    /// How many keys and snapshots are under it.
    pub(crate) keys: usize,
    pub(crate) snapshots: usize,
    /// What is to be known of volumes that are not encrypted; nothing where all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) unencrypted: Option<String>,
    pub(crate) shares: Vec<SharedWith>,
}

/// Whoever has the same of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SharedWith {
    pub(crate) accounts: Vec<Grantee>,
    #[serde(flatten)]
    pub(crate) share: Share,
}

/// What one account has of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Share {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) launch_permission: Option<GivenBy>,
    /// For each key under the image; empty where nobody can say, as for an organization.
    pub(crate) key_access: Vec<KeyShare>,
    /// How many snapshots of the image it may copy, by who gave the permission.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) snapshot_permissions: BTreeMap<GivenBy, usize>,
    /// Whom of its principals ami-share gave the use of the keys, as its notes say.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) principals: BTreeSet<String>,
    /// Executions of ami-share in which it copied the image, as the notes say.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) copied_by: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum GivenBy {
    /// A note of ami-share says so.
    AmiShare,
    SomebodyElse,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct KeyShare {
    pub(crate) key_arn: KeyArn,
    /// Empty where nothing was found.
    pub(crate) ways: Vec<Way>,
}

impl Report {
    pub(crate) fn new(request: &AuditRequest) -> Self {
        Self {
            status: Status::default(),
            source: request.source.clone(),
            image_id: request.image_id.clone(),
            summary: Summary::default(),
            findings: Vec::new(),
            images: Vec::new(),
            untagged_keys: BTreeSet::new(),
            public_images: None,
            public_snapshots: None,
            not_looked_at: BTreeSet::new(),
            cut: Vec::new(),
        }
    }

    /// Says once what is so of the whole audit.
    pub(crate) fn find_once(&mut self, finding: Finding) {
        if !self.summary.findings.contains_key(&finding.kind) {
            self.find([finding]);
        }
    }

    pub(crate) fn find(&mut self, findings: impl IntoIterator<Item = Finding>) {
        let mut used = written(&self.findings);
        for finding in findings {
            self.status = Status::Findings;
            *self.summary.findings.entry(finding.kind).or_default() += 1;
            let bytes = written(&finding) + 1;
            if used + bytes < FINDINGS_BYTES {
                used += bytes;
                self.findings.push(finding);
            }
        }
    }

    pub(crate) fn add(&mut self, images: impl IntoIterator<Item = ImageShares>) {
        let mut used = written(&self.images);
        for image in images.into_iter().filter(|image| !image.shares.is_empty()) {
            self.summary.shared_images += 1;
            self.summary.shares += image.shares.iter().map(|share| share.accounts.len()).sum::<usize>();
            let bytes = written(&image) + 1;
            if used + bytes < IMAGES_BYTES {
                used += bytes;
                self.images.push(image);
            }
        }
    }

    pub(crate) fn untagged(&mut self, key: &KeyArn) {
        self.summary.untagged_keys += 1;
        if self.untagged_keys.len() < UNTAGGED_LISTED {
            self.untagged_keys.insert(key.clone());
        }
    }

    pub(crate) fn not_looked_at(&mut self, what: String) {
        let room = self.not_looked_at.len() < NOT_LOOKED_AT || self.not_looked_at.contains(&what);
        self.not_looked_at.insert(if room { what } else { "more, that there is no room to name".to_owned() });
    }

    /// How many findings there are, listed or not.
    pub(crate) fn found(&self) -> usize {
        self.summary.findings.values().sum()
    }

    /// Says what there was no room for.
    pub(crate) fn finish(&mut self) {
        let whole = "the summary counts all; ask for one image by its imageId to see it whole";
        for (listed, all, what) in [
            (self.findings.len(), self.found(), "findings"),
            (self.images.len(), self.summary.shared_images, "images that are shared"),
            (self.untagged_keys.len(), self.summary.untagged_keys, "keys without the tag"),
        ] {
            if listed < all {
                self.cut.push(format!("{} of {all} {what}: {whole}", all - listed));
            }
        }
    }
}

pub(crate) fn written(value: &impl Serialize) -> usize {
    serde_json::to_string(value).map_or(0, |text| text.len())
}
