//! One target: what it has of ours, and what of that goes.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    ids::{AccountId, ExecutionName, KeyArn, PrincipalArn, SnapshotId},
    revoke::{NoteChange, RevokeRequest, RevokedAccount, RevokedTarget},
    share::{Kept, Launch, Mode, PrincipalAccess, PrincipalChange, SourceChanges, Target},
};
use ami_share_launchable::Launchable;
use ami_share_record::Gift;

use crate::source::SourceState;

/// What is taken back from one target.
#[derive(Debug, Clone)]
pub(crate) struct TakenBack {
    pub(crate) account_id: AccountId,
    pub(crate) launch_permission: bool,
    pub(crate) snapshot_ids: BTreeSet<SnapshotId>,
    pub(crate) key_arns: BTreeSet<KeyArn>,
    pub(crate) grant_key_arns: BTreeSet<KeyArn>,
    pub(crate) targets: Vec<RevokedTarget>,
    pub(crate) notes: Vec<NoteChange>,
    /// Another image that needs access to keys which therefore stays.
    pub(crate) kept: Option<Kept>,
    /// Whether it has a launch permission that no note knows of.
    pub(crate) not_ours: bool,
    /// Whether it has copies or instances that nobody asked to remove.
    pub(crate) stays: bool,
}

impl TakenBack {
    pub(crate) fn is_something(&self) -> bool {
        self.launch_permission
            || !self.snapshot_ids.is_empty()
            || !self.key_arns.is_empty()
            || !self.grant_key_arns.is_empty()
            || !self.targets.is_empty()
    }

    pub(crate) fn account(&self) -> RevokedAccount {
        let all = |of: fn(&RevokedTarget) -> &Vec<ExecutionName>| self.targets.iter().flat_map(of).cloned().collect();
        RevokedAccount {
            account_id: self.account_id.clone(),
            copies_of: all(|target| &target.copies_of),
            instances_of: all(|target| &target.instances_of),
        }
    }
}

/// Whether the share that `gift` is of is to go, or has gone: it is of the image, or of one that the target
/// cannot launch any more, which has left only what the image needed.
pub(crate) fn goes(request: &RevokeRequest, launchable: &Launchable, gift: &Gift) -> bool {
    gift.image.image_id == request.image_id || !launchable.images.contains(&gift.image.image_id)
}

/// The keys that the target may have access to for the sake of the image, by what is noted.
pub(crate) fn noted_keys(request: &RevokeRequest, launchable: &Launchable, gifts: &[Gift]) -> BTreeSet<KeyArn> {
    let mut keys = BTreeSet::new();
    for gift in gifts.iter().filter(|gift| goes(request, launchable, gift)) {
        let SourceChanges { key_arns, grant_key_arns, .. } = &gift.target.source_changes;
        keys.extend(key_arns.iter().chain(grant_key_arns).cloned());
        if gift.image.image_id == request.image_id {
            keys.extend(gift.image.keys());
        }
    }
    keys
}

pub(crate) fn take_back(
    request: &RevokeRequest,
    source: &SourceState,
    account_id: AccountId,
    gifts: Vec<Gift>,
) -> TakenBack {
    let nothing = Launchable::default();
    let launchable = source.others.get(&account_id).unwrap_or(&nothing);
    let permitted = source.permitted.contains(&account_id);
    let given = gifts
        .iter()
        .any(|gift| gift.image.image_id == request.image_id && gift.target.source_changes.launch_permission);
    let (mut key_arns, mut grant_key_arns) = (source.statements(&account_id), source.grants(&account_id));
    let mut kept = key_arns.iter().chain(&grant_key_arns).find_map(|key| launchable.keys.get(key)).cloned();
    let (mut snapshot_ids, mut notes, mut stays) = (BTreeSet::new(), Vec::new(), false);
    let mut attached: BTreeSet<PrincipalArn> = BTreeSet::new();
    let mut inline: BTreeMap<PrincipalArn, BTreeSet<KeyArn>> = BTreeMap::new();
    let (mut copies_of, mut instances_of) = (Vec::new(), Vec::new());

    for gift in gifts.into_iter().filter(|gift| goes(request, launchable, gift)) {
        let this_image = gift.image.image_id == request.image_id;
        let mut stay = gift.clone();
        let Target { source_changes, principal_changes, mode, copy_id, launch, .. } = &mut stay.target;
        if this_image {
            snapshot_ids.extend(source_changes.snapshot_ids.drain(..).filter(|id| source.snapshots.contains(id)));
            source_changes.launch_permission = false;
        }
        for (noted, taken) in
            [(&mut source_changes.key_arns, &mut key_arns), (&mut source_changes.grant_key_arns, &mut grant_key_arns)]
        {
            taken.extend(noted.iter().cloned());
            noted.retain(|key| launchable.keys.contains_key(key));
            kept = kept.or_else(|| noted.first().and_then(|key| launchable.keys.get(key)).cloned());
        }
        principal_changes.retain_mut(|change| match gift.principal_access {
            PrincipalAccess::Attach => {
                // The managed policy is for every key of the source account.
                let needed_by = launchable.keys.values().next();
                if needed_by.is_none() {
                    attached.insert(change.principal.clone());
                }
                kept = kept.take().or_else(|| needed_by.cloned());
                needed_by.is_some()
            }
            PrincipalAccess::Inline => {
                let (needed, taken): (Vec<KeyArn>, Vec<KeyArn>) =
                    change.key_arns.drain(..).partition(|key| launchable.keys.contains_key(key));
                if !taken.is_empty() {
                    inline.entry(change.principal.clone()).or_default().extend(taken);
                }
                kept = kept.take().or_else(|| needed.first().and_then(|key| launchable.keys.get(key)).cloned());
                change.key_arns = needed;
                !change.key_arns.is_empty()
            }
        });
        if *mode == Mode::CopyImage && copy_id.is_none() {
            if this_image && request.copies {
                copies_of.push(gift.execution.clone());
                *mode = Mode::None;
            } else {
                stays |= this_image;
            }
        }
        if launch.keep {
            if this_image && request.instances {
                instances_of.push(gift.execution.clone());
                launch.keep = false;
            } else {
                stays |= this_image;
            }
        }
        let made = (*mode == Mode::CopyImage && copy_id.is_none()) || launch.keep;
        let nothing_stays = !made && principal_changes.is_empty() && *source_changes == SourceChanges::default();
        if nothing_stays || stay != gift {
            notes.push(NoteChange {
                account_id: account_id.clone(),
                image_id: gift.image.image_id.clone(),
                execution: gift.execution.clone(),
                gift: (!nothing_stays).then(|| stay.to_text()),
            });
        }
    }
    for keys in [&mut key_arns, &mut grant_key_arns] {
        keys.retain(|key| !launchable.keys.contains_key(key) && !source.gone_keys.contains(key));
    }
    let targets = items(&account_id, attached, inline, copies_of, instances_of);
    TakenBack {
        launch_permission: given && source.image_found,
        snapshot_ids,
        key_arns,
        grant_key_arns,
        targets,
        notes,
        kept: kept.map(|image_id| Kept { account_id: account_id.clone(), image_id }),
        not_ours: permitted && !given,
        stays,
        account_id,
    }
}

/// One for each way in which principals have access; the first takes what was made with it.
fn items(
    account_id: &AccountId,
    attached: BTreeSet<PrincipalArn>,
    inline: BTreeMap<PrincipalArn, BTreeSet<KeyArn>>,
    copies_of: Vec<ExecutionName>,
    instances_of: Vec<ExecutionName>,
) -> Vec<RevokedTarget> {
    let attached: Vec<PrincipalChange> =
        attached.into_iter().map(|principal| PrincipalChange { principal, key_arns: vec![] }).collect();
    let inline: Vec<PrincipalChange> = inline
        .into_iter()
        .map(|(principal, keys)| PrincipalChange { principal, key_arns: keys.into_iter().collect() })
        .collect();
    let item = |principal_changes, principal_access| RevokedTarget {
        target: Target {
            account_id: account_id.clone(),
            principal_changes,
            source_changes: SourceChanges::default(),
            mode: Mode::None,
            kms_key_id: None,
            copy_id: None,
            launch: Launch::default(),
        },
        principal_access,
        copies_of: vec![],
        instances_of: vec![],
    };
    let mut items = Vec::new();
    if !attached.is_empty() || !copies_of.is_empty() || !instances_of.is_empty() {
        items.push(RevokedTarget { copies_of, instances_of, ..item(attached, PrincipalAccess::Attach) });
    }
    if !inline.is_empty() {
        items.push(item(inline, PrincipalAccess::Inline));
    }
    items
}
