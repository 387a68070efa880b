//! One target: what its marked notes say that it has, and what of that goes.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error,
    ids::{AccountId, ImageId, KeyArn, PrincipalArn, SnapshotId},
    mark::Mark,
    share::{Kept, Mode, PrincipalAccess, PrincipalChange, Source, SourceChanges, Target},
    take_back::{FromTarget, Left, MadeCopy, MadeInstance, NoteChange},
};
use ami_share_record::{Gift, Note};

use crate::Need;

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Where the image is, or was.
    pub source: &'a Source,
    /// The one whose shares are to go.
    pub image: &'a ImageId,
    /// Of the notes whose shares are to go.
    pub mark: &'a Mark,
    /// In milliseconds since 1970: what others have noted for the image since then, and not marked, they have given too.
    /// What was noted before, and was missing all the same, somebody has taken away.
    pub begun: i64,
    /// Whether copies go too.
    pub copies: bool,
    /// Whether instances that stayed go too.
    pub instances: bool,
    /// Whether nobody can launch the image: then what only notes of such images name goes as well.
    pub with_gone_images: bool,
    /// Whether what nobody can say is needed goes.
    pub force: bool,
}

impl Asked<'_> {
    /// Whether the note is of the image.
    fn is_about(&self, note: &Note) -> bool {
        note.image() == self.image && note.gift.source == *self.source
    }
}

/// What is taken back from one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromAccount {
    /// The target.
    pub account_id: AccountId,
    /// Whether it loses that of the image at hand.
    pub launch_permission: bool,
    /// Snapshots that it loses the copy permission of.
    pub snapshot_ids: BTreeSet<SnapshotId>,
    /// Keys whose policies are not to name it any more.
    pub key_arns: BTreeSet<KeyArn>,
    /// Keys whose grants of ours for it are retired.
    pub grant_key_arns: BTreeSet<KeyArn>,
    /// What is to be done in the target; nothing where that is nothing.
    pub target: Option<FromTarget>,
    /// Its notes, as they are to be afterwards.
    pub notes: Vec<NoteChange>,
    /// An image that needs access to keys which therefore stays.
    pub kept: Option<Kept>,
    /// What stays as nobody could say whether it is needed.
    pub left: Vec<Left>,
    /// Whether it has copies or instances that nobody asked to remove.
    pub stays: bool,
}

impl FromAccount {
    /// Nothing.
    pub fn new(account_id: AccountId) -> Self {
        Self {
            account_id,
            launch_permission: false,
            snapshot_ids: BTreeSet::new(),
            key_arns: BTreeSet::new(),
            grant_key_arns: BTreeSet::new(),
            target: None,
            notes: Vec::new(),
            kept: None,
            left: Vec::new(),
            stays: false,
        }
    }

    /// Nothing, as its notes cannot be read.
    pub fn unread(account_id: AccountId, state: &str, error: &Error) -> Self {
        Self::untouched(account_id, state, error, "its notes, and what others need of it, cannot be told")
    }

    /// Nothing, as the source account cannot be asked.
    pub fn unasked(account_id: AccountId, state: &str, error: &Error) -> Self {
        Self::untouched(account_id, state, error, "nobody can say what the source account still has of it")
    }

    fn untouched(account_id: AccountId, state: &str, error: &Error, why: &str) -> Self {
        let cause = format!("what it was given stays, as {why}: {error}");
        let (state, error) = (state.to_owned(), error.name().to_owned());
        let left = vec![Left { account_id: Some(account_id.clone()), state, error, cause }];
        Self { left, ..Self::new(account_id) }
    }

    /// Adds statements and grants that are ours by what they are, noted or not.
    pub fn with_unnoted(
        &mut self,
        asked: Asked<'_>,
        need: &Need,
        statements: BTreeSet<KeyArn>,
        grants: BTreeSet<KeyArn>,
    ) {
        for (found, taken) in [(statements, &mut self.key_arns), (grants, &mut self.grant_key_arns)] {
            for key in found {
                if let Some(image) = need.keys.get(&key) {
                    let account_id = self.account_id.clone();
                    self.kept.get_or_insert_with(|| Kept { account_id, image_id: image.clone() });
                } else if let Some((_, left)) = need.unknown_of(&key).filter(|_| !asked.force) {
                    if !self.left.contains(left) {
                        self.left.push(left.clone());
                    }
                } else {
                    taken.insert(key);
                }
            }
        }
    }

    /// Whether anything is taken from it.
    pub fn is_something(&self) -> bool {
        self.launch_permission
            || !self.snapshot_ids.is_empty()
            || !self.key_arns.is_empty()
            || !self.grant_key_arns.is_empty()
            || self.target.is_some()
    }
}

/// What goes of what `notes` says of `account`, the whole of its notes; and what the notes say then.
pub fn from_account(asked: Asked<'_>, account: &AccountId, notes: &[Note], need: &Need) -> FromAccount {
    let mut decision = Decision::new(asked, account, notes, need);
    let stands = notes.iter().any(|note| asked.is_about(note) && !note.is_going());
    for note in notes {
        match &note.going {
            _ if note.goes_before => drop(decision.access(note.gift.clone())),
            // What others gave may be what another share of the image, which stands, has found in place.
            Some(going) if stands && going != asked.mark => {}
            Some(going) => decision.take(note, going),
            None if asked.with_gone_images && decision.is_gone(note) => drop(decision.access(note.gift.clone())),
            None => {}
        }
    }
    decision.end()
}

struct Decision<'a> {
    asked: Asked<'a>,
    need: &'a Need,
    /// What others gave for the image too.
    others: Vec<&'a Target>,
    taken: FromAccount,
    attached: BTreeSet<PrincipalArn>,
    inline: BTreeMap<PrincipalArn, BTreeSet<KeyArn>>,
    instances: Vec<MadeInstance>,
    copies: Vec<MadeCopy>,
    unknown: BTreeMap<&'a Source, &'a Left>,
}

/// What becomes of one thing that a note names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Goes,
    /// Another execution gave it too: it is theirs.
    Theirs,
    Stays,
}

impl<'a> Decision<'a> {
    fn new(asked: Asked<'a>, account: &AccountId, notes: &'a [Note], need: &'a Need) -> Self {
        let gave_too = |note: &&Note| note.going.is_none() && note.noted_at >= asked.begun && asked.is_about(note);
        Self {
            asked,
            need,
            others: notes.iter().filter(gave_too).map(|note| &note.gift.target).collect(),
            taken: FromAccount::new(account.clone()),
            attached: BTreeSet::new(),
            inline: BTreeMap::new(),
            instances: Vec::new(),
            copies: Vec::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// It stands, but the image is gone. It may come back from the Recycle Bin, with what it was shared with: the note stays.
    fn is_gone(&self, note: &Note) -> bool {
        note.confirmed
            && note.gift.source == *self.asked.source
            && note.image() != self.asked.image
            && self.need.is_gone(&note.gift.source, note.image())
    }

    fn take(&mut self, note: &Note, going: &Mark) {
        let mut stay = note.gift.clone();
        if going == self.asked.mark {
            self.permissions(&mut stay.target.source_changes);
            self.made(note, &mut stay.target);
        }
        let stay = self.access(stay);
        let gift = (!says_nothing(&stay)).then(|| stay.to_text());
        if gift.is_none() || stay != note.gift {
            self.taken.notes.push(NoteChange {
                account_id: self.taken.account_id.clone(),
                image_id: note.image().clone(),
                execution: note.gift.execution.clone(),
                going: going.clone(),
                gift,
            });
        }
    }

    fn permissions(&mut self, changes: &mut SourceChanges) {
        let given = std::mem::take(&mut changes.launch_permission);
        self.taken.launch_permission |=
            given && !self.others.iter().any(|other| other.source_changes.launch_permission);
        for snapshot in std::mem::take(&mut changes.snapshot_ids) {
            if !self.others.iter().any(|other| other.source_changes.snapshot_ids.contains(&snapshot)) {
                self.taken.snapshot_ids.insert(snapshot);
            }
        }
    }

    fn made(&mut self, note: &Note, target: &mut Target) {
        let execution = &note.gift.execution;
        if target.mode == Mode::CopyImage && target.copy_id.is_none() {
            if self.asked.copies {
                self.copies.push(MadeCopy {
                    execution: execution.clone(),
                    of: note.image().clone(),
                    noted_at: note.noted_at,
                    copy_id: note.stays.copy_id.clone(),
                });
                target.mode = Mode::None;
            } else {
                self.taken.stays = true;
            }
        }
        if target.launch.keep {
            if self.asked.instances {
                let instance_id = note.stays.instance_id.clone();
                self.instances.push(MadeInstance { execution: execution.clone(), instance_id });
                target.launch.keep = false;
            } else {
                self.taken.stays = true;
            }
        }
    }

    /// Takes the access to keys that nobody needs; returns what stays of the gift.
    fn access(&mut self, mut gift: Gift) -> Gift {
        let changes = &mut gift.target.source_changes;
        for (noted, by_grant) in [(&mut changes.key_arns, false), (&mut changes.grant_key_arns, true)] {
            noted.retain(|key| {
                let at_hand =
                    key.account_id() == self.asked.source.account_id && key.region() == self.asked.source.region;
                let theirs = |other: &&Target| {
                    let changes = &other.source_changes;
                    if by_grant { changes.grant_key_arns.contains(key) } else { changes.key_arns.contains(key) }
                };
                let fate = match self.fate_of(key, theirs) {
                    Fate::Goes if !at_hand => Fate::Stays,
                    fate => fate,
                };
                if fate == Fate::Goes {
                    let taken = if by_grant { &mut self.taken.grant_key_arns } else { &mut self.taken.key_arns };
                    taken.insert(key.clone());
                }
                fate == Fate::Stays
            });
        }
        gift.target.principal_changes.retain_mut(|change| match gift.principal_access {
            PrincipalAccess::Attach => {
                let fate = self.fate_of_attached(change);
                if fate == Fate::Goes {
                    self.attached.insert(change.principal.clone());
                }
                fate == Fate::Stays
            }
            PrincipalAccess::Inline => {
                let principal = change.principal.clone();
                change.key_arns.retain(|key| {
                    let theirs = |other: &&Target| {
                        let given =
                            |theirs: &PrincipalChange| theirs.principal == principal && theirs.key_arns.contains(key);
                        other.principal_changes.iter().any(given)
                    };
                    let fate = self.fate_of(key, theirs);
                    if fate == Fate::Goes {
                        self.inline.entry(principal.clone()).or_default().insert(key.clone());
                    }
                    fate == Fate::Stays
                });
                !change.key_arns.is_empty()
            }
        });
        gift
    }

    fn fate_of(&mut self, key: &KeyArn, theirs: impl Fn(&&Target) -> bool) -> Fate {
        if self.others.iter().any(theirs) {
            return Fate::Theirs;
        }
        if let Some(image) = self.need.keys.get(key) {
            return self.keep(image);
        }
        match self.need.unknown_of(key) {
            Some(unknown) if !self.asked.force => self.leave([unknown]),
            _ => Fate::Goes,
        }
    }

    /// The managed policy is for every key of the source account, in every Region.
    fn fate_of_attached(&mut self, change: &PrincipalChange) -> Fate {
        let gave_too = |theirs: &PrincipalChange| theirs.principal == change.principal && theirs.key_arns.is_empty();
        if self.others.iter().any(|other| other.principal_changes.iter().any(gave_too)) {
            return Fate::Theirs;
        }
        if let Some(image) = self.need.keys.values().next() {
            return self.keep(image);
        }
        if self.need.unknown.is_empty() || self.asked.force {
            return Fate::Goes;
        }
        self.leave(&self.need.unknown)
    }

    fn keep(&mut self, image: &ImageId) -> Fate {
        let account_id = self.taken.account_id.clone();
        self.taken.kept.get_or_insert_with(|| Kept { account_id, image_id: image.clone() });
        Fate::Stays
    }

    fn leave(&mut self, unknown: impl IntoIterator<Item = (&'a Source, &'a Left)>) -> Fate {
        self.unknown.extend(unknown);
        Fate::Stays
    }

    fn end(self) -> FromAccount {
        let Self { mut taken, attached, inline, instances, copies, unknown, .. } = self;
        let attached = attached.into_iter().map(|principal| PrincipalChange { principal, key_arns: vec![] });
        let inline = inline
            .into_iter()
            .map(|(principal, keys)| PrincipalChange { principal, key_arns: keys.into_iter().collect() });
        let principal_changes: Vec<PrincipalChange> = attached.chain(inline).collect();
        if !(principal_changes.is_empty() && instances.is_empty() && copies.is_empty()) {
            let account_id = taken.account_id.clone();
            taken.target = Some(FromTarget { account_id, instances, copies, principal_changes });
        }
        taken.left.extend(unknown.into_values().cloned());
        taken
    }
}

/// Whether a note of it says nothing that could be taken.
fn says_nothing(gift: &Gift) -> bool {
    let Target { source_changes, principal_changes, mode, copy_id, launch, .. } = &gift.target;
    let made = (*mode == Mode::CopyImage && copy_id.is_none()) || launch.keep;
    !made && principal_changes.is_empty() && *source_changes == SourceChanges::default()
}
