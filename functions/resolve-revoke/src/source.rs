//! The source account: whether it has the image, who can launch it, and what its keys say.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, aws,
    ids::{AccountId, KeyArn, SnapshotId},
    key_policy::KeyPolicy,
    revoke::SourceImage,
};
use ami_share_key_grants::KeyGrant;
use ami_share_launchable as launchable;
use ami_share_record::Note;
use ami_share_take_back::Need;
use aws_config::SdkConfig;
use aws_sdk_ec2::types::{Filter, ImageAttributeName, ImageState};
use aws_sdk_kms::error::ProvideErrorMetadata;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::notes::{NotesByTarget, is_of};

pub(crate) const DESCRIBE_IMAGES: &str = launchable::DESCRIBE_IMAGES;
pub(crate) const DESCRIBE_SNAPSHOTS: &str = launchable::DESCRIBE_SNAPSHOTS;
pub(crate) const DESCRIBE_IMAGE_ATTRIBUTE: &str = launchable::DESCRIBE_IMAGE_ATTRIBUTE;
pub(crate) const GET_KEY_POLICY: &str = ami_share_key_policies::GET_KEY_POLICY;
pub(crate) const LIST_GRANTS: &str = ami_share_key_grants::LIST_GRANTS;

/// How many grants are looked for at a time.
const CONCURRENCY: usize = 16;

/// As far as it concerns the targets at hand.
#[derive(Debug, Default)]
pub(crate) struct SourceState {
    /// Whether it has the image, be it disabled.
    pub(crate) image_found: bool,
    /// Of the snapshots that a permission is noted of, those that it still has.
    pub(crate) snapshots: BTreeSet<SnapshotId>,
    /// Who has a launch permission of the image.
    pub(crate) permitted: BTreeSet<AccountId>,
    /// Accounts that our statements name in the policy of a key of theirs.
    pub(crate) statements: BTreeSet<(AccountId, KeyArn)>,
    /// Accounts with grants of ours on a key of theirs, and those that made grants there, where that is looked for.
    pub(crate) grants: BTreeSet<(AccountId, KeyArn)>,
    /// Keys that are not there any more, and nothing can be taken from.
    pub(crate) gone_keys: BTreeSet<KeyArn>,
}

impl SourceState {
    pub(crate) fn statements(&self, account: &AccountId) -> BTreeSet<KeyArn> {
        of(&self.statements, account)
    }

    pub(crate) fn grants(&self, account: &AccountId) -> BTreeSet<KeyArn> {
        of(&self.grants, account)
    }
}

fn of(pairs: &BTreeSet<(AccountId, KeyArn)>, account: &AccountId) -> BTreeSet<KeyArn> {
    pairs.iter().filter(|(named, _)| named == account).map(|(_, key)| key.clone()).collect()
}

/// A key's policy, as far as it can be told.
enum PolicyState {
    Read(KeyPolicy),
    /// It is for UndoShareKey to say why.
    Unreadable,
    Gone,
}

pub(crate) async fn find(
    config: &SdkConfig,
    retiring: &str,
    image: &SourceImage,
    notes: &NotesByTarget,
    needs: &BTreeMap<AccountId, Need>,
    with_issuers: bool,
) -> Result<SourceState, Error> {
    let source = &image.source;
    let (ec2, kms) = (aws_sdk_ec2::Client::new(config), aws_sdk_kms::Client::new(config));
    let mut state = SourceState::default();
    let mut image_keys = BTreeSet::new();
    if let Some(snapshots) = image_snapshots(&ec2, image).await? {
        state.image_found = true;
        image_keys.extend(launchable::keys(&ec2, source, snapshots).await?.into_values());
        state.permitted = permitted(&ec2, image).await?;
    }
    state.snapshots = snapshots(&ec2, image, notes).await?;

    let keys_of = |account: &AccountId, notes: &[Note]| {
        let mut keys = noted_keys(image, needs.get(account), notes);
        keys.extend(image_keys.iter().cloned());
        keys
    };
    let pairs: Vec<(AccountId, KeyArn)> = notes
        .iter()
        .flat_map(|(account, noted)| keys_of(account, &noted.notes).into_iter().map(|key| (account.clone(), key)))
        .collect();
    let mut policies = BTreeMap::new();
    for key in pairs.iter().map(|(_, key)| key).collect::<BTreeSet<_>>() {
        policies.insert(key.clone(), policy(&kms, key).await?);
    }
    let gone = policies.iter().filter(|(_, policy)| matches!(policy, PolicyState::Gone));
    state.gone_keys = gone.map(|(key, _)| key.clone()).collect();
    let in_policy = |(account, key): &&(AccountId, KeyArn)| match &policies[key] {
        PolicyState::Read(policy) => policy.without([account]).is_some(),
        PolicyState::Unreadable => true,
        PolicyState::Gone => false,
    };
    state.statements = pairs.iter().filter(in_policy).cloned().collect();
    let (kms, gone_keys) = (&kms, &state.gone_keys);
    let mut issuers: BTreeSet<(AccountId, KeyArn)> = BTreeSet::new();
    for key in policies.keys().filter(|key| with_issuers && !gone_keys.contains(*key)) {
        match ami_share_key_grants::issuers(kms, key).await {
            Ok(accounts) => issuers.extend(accounts.into_iter().map(|account| (account, key.clone()))),
            // As below.
            Err(Error::AccessDenied { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let granted: Vec<Option<(AccountId, KeyArn)>> =
        stream::iter(pairs.clone().into_iter().filter(|(_, key)| !gone_keys.contains(key)))
            .map(|(account, key)| async move {
                let found = KeyGrant { key: &key, account: &account, retiring }.find(kms).await;
                match found {
                    Ok(grants) => Ok((!grants.is_empty()).then_some((account, key))),
                    // Where none can be listed, none can have been given by this role: a note says it.
                    Err(Error::AccessDenied { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
    let made = pairs.into_iter().filter(|pair| issuers.contains(pair));
    state.grants = granted.into_iter().flatten().chain(made).collect();
    Ok(state)
}

/// The keys at hand that the target may have access to for the sake of the image, or of images that are gone, by what is
/// noted.
fn noted_keys(image: &SourceImage, need: Option<&Need>, notes: &[Note]) -> BTreeSet<KeyArn> {
    let mut keys = BTreeSet::new();
    for note in notes.iter().filter(|note| note.gift.source == image.source) {
        let gone = need.is_none_or(|need| need.is_gone(&note.gift.source, note.image()));
        if note.is_going() || gone {
            let changes = &note.gift.target.source_changes;
            keys.extend(changes.key_arns.iter().chain(&changes.grant_key_arns).cloned());
        }
        if is_of(image, note) {
            keys.extend(note.gift.image.keys());
        }
    }
    keys
}

/// The snapshots under the image; nothing where the source account does not have it.
async fn image_snapshots(ec2: &aws_sdk_ec2::Client, image: &SourceImage) -> Result<Option<Vec<String>>, Error> {
    let SourceImage { image_id, source } = image;
    let answer = ec2.describe_images().owners("self").image_ids(image_id.as_str()).include_disabled(true).send().await;
    let images = match answer {
        Ok(answer) => answer.images.unwrap_or_default(),
        Err(error) if matches!(error.code(), Some("InvalidAMIID.NotFound" | "InvalidAMIID.Unavailable")) => vec![],
        Err(error) => return Err(aws::failure(&source.account_id, DESCRIBE_IMAGES, error)),
    };
    // EC2 goes on naming an image for some time after it was deregistered.
    let image = images.iter().find(|image| image.state() != Some(&ImageState::Deregistered));
    Ok(image.map(launchable::snapshots))
}

/// What is not there any more cannot be taken from: EC2 would not even say that it is not there, as the role is
/// allowed to change what is the account's own.
async fn snapshots(
    ec2: &aws_sdk_ec2::Client,
    image: &SourceImage,
    notes: &NotesByTarget,
) -> Result<BTreeSet<SnapshotId>, Error> {
    let notes = notes.values().flat_map(|noted| &noted.notes).filter(|note| is_of(image, note));
    let noted: BTreeSet<String> =
        notes.flat_map(|note| &note.gift.target.source_changes.snapshot_ids).map(ToString::to_string).collect();
    if noted.is_empty() {
        return Ok(BTreeSet::new());
    }
    let noted = Filter::builder().name("snapshot-id").set_values(Some(noted.into_iter().collect())).build();
    let mut pages = ec2.describe_snapshots().owner_ids("self").filters(noted).into_paginator().items().send();
    let mut found = BTreeSet::new();
    while let Some(snapshot) = pages.next().await {
        let snapshot = snapshot.map_err(|error| aws::failure(&image.source.account_id, DESCRIBE_SNAPSHOTS, error))?;
        found.extend(snapshot.snapshot_id().and_then(|id| SnapshotId::parse(id).ok()));
    }
    Ok(found)
}

async fn permitted(ec2: &aws_sdk_ec2::Client, image: &SourceImage) -> Result<BTreeSet<AccountId>, Error> {
    let attribute = ec2
        .describe_image_attribute()
        .image_id(image.image_id.as_str())
        .attribute(ImageAttributeName::LaunchPermission);
    match attribute.send().await {
        Ok(answer) => {
            let accounts = answer.launch_permissions().iter().filter_map(|permission| permission.user_id());
            Ok(accounts.filter_map(|account| AccountId::parse(account).ok()).collect())
        }
        // A disabled image has none.
        Err(error) if matches!(error.code(), Some("InvalidAMIID.NotFound" | "InvalidAMIID.Unavailable")) => {
            Ok(BTreeSet::new())
        }
        Err(error) => Err(aws::failure(&image.source.account_id, DESCRIBE_IMAGE_ATTRIBUTE, error)),
    }
}

async fn policy(kms: &aws_sdk_kms::Client, key: &KeyArn) -> Result<PolicyState, Error> {
    match ami_share_key_policies::find(kms, key).await {
        Ok(None) => Ok(PolicyState::Gone),
        Ok(Some(text)) => Ok(KeyPolicy::parse(key, &text).map_or(PolicyState::Unreadable, PolicyState::Read)),
        Err(Error::AccessDenied { .. }) => Ok(PolicyState::Unreadable),
        Err(error) => Err(error),
    }
}
