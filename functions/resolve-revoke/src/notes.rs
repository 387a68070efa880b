//! The notes of targets; of those at hand marked, or as they would be.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error,
    ids::{AccountId, KeyArn},
    mark::Mark,
    revoke::SourceImage,
    share::Target,
};
use ami_share_record::{Note, Noted, Record};
use ami_share_take_back::FromAccount;
use futures_util::{StreamExt, stream};

/// The name of the state, of what it leaves.
pub(crate) const STATE: &str = "ResolveRevoke";

/// How many targets' notes are read at a time.
const CONCURRENCY: usize = 16;

pub(crate) fn is_of(image: &SourceImage, note: &Note) -> bool {
    *note.image() == image.image_id && note.gift.source == image.source
}

pub(crate) fn image_of(note: &Note) -> SourceImage {
    SourceImage { source: note.gift.source.clone(), image_id: note.image().clone() }
}

/// Whether `notes`, which are all of a target, say that somebody has given it something of the image since: then it keeps
/// what it has of that image.
pub(crate) fn is_given_since(begun: i64, image: &SourceImage, notes: &[Note]) -> bool {
    notes.iter().any(|note| is_of(image, note) && note.noted_at >= begun)
}

pub(crate) type NotesByTarget = BTreeMap<AccountId, Noted>;

/// The notes of some targets.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) by_target: NotesByTarget,
    /// What stays of those targets that have a note which nobody can read: somebody has to look into it, and the others
    /// need not wait for that.
    pub(crate) unread: Vec<FromAccount>,
    /// Those that were given something of the image at hand since the execution began, and are left alone.
    pub(crate) given_since: Vec<AccountId>,
}

impl Notes {
    /// Those of `accounts` only.
    pub(crate) fn of(mut self, accounts: &[AccountId]) -> Self {
        self.by_target.retain(|account, _| accounts.contains(account));
        self.unread.clear();
        self
    }

    /// Whether anything is noted of the image, readably or not.
    pub(crate) fn say_anything_of(&self, image: &SourceImage) -> bool {
        let noted = self.by_target.values().flat_map(|noted| &noted.notes).any(|note| is_of(image, note));
        noted || !self.unread.is_empty() || !self.given_since.is_empty()
    }

    /// # Errors
    /// Whatever DynamoDB answers.
    fn add(&mut self, account: AccountId, read: Result<Noted, Error>) -> Result<(), Error> {
        match read {
            Ok(noted) => {
                self.by_target.insert(account, noted);
            }
            Err(error @ Error::Aws { .. }) => self.unread.push(FromAccount::unread(account, STATE, &error)),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// # Errors
/// Whatever DynamoDB answers.
pub(crate) async fn read(record: &Record, accounts: &[AccountId]) -> Result<Notes, Error> {
    let mut read = stream::iter(accounts)
        .map(|account| async move { (account.clone(), record.notes_of(account).await) })
        .buffered(CONCURRENCY);
    let mut notes = Notes::default();
    while let Some((account, read)) = read.next().await {
        notes.add(account, read)?;
    }
    Ok(notes)
}

/// The image whose shares are to go in this round.
pub(crate) struct AtHand<'a> {
    pub(crate) image: &'a SourceImage,
    /// The images that the execution goes through before it.
    pub(crate) before: &'a [SourceImage],
    pub(crate) mark: &'a Mark,
    /// When the execution began, in milliseconds since 1970: what was noted since stays.
    pub(crate) begun: i64,
}

/// The notes of `accounts`, those at hand marked; where nothing is taken back yet, as they would be.
///
/// # Errors
/// Whatever DynamoDB answers.
pub(crate) async fn at_hand(
    record: &Record,
    known: Option<Notes>,
    accounts: &[AccountId],
    at_hand: &AtHand<'_>,
    revoking: bool,
) -> Result<Notes, Error> {
    let mut notes = match known {
        Some(notes) => notes,
        None => read(record, accounts).await?,
    };
    let is_since = |noted: &Noted| is_given_since(at_hand.begun, at_hand.image, &noted.notes);
    let given_since = notes.by_target.iter().filter(|(_, noted)| is_since(noted));
    notes.given_since = given_since.map(|(account, _)| account.clone()).collect();
    notes.by_target.retain(|account, _| !notes.given_since.contains(account));
    let by_target = std::mem::take(&mut notes.by_target);
    if !revoking {
        let as_marked = |Noted { notes, went }| Noted { notes: as_marked(notes, at_hand), went };
        let by_target = by_target.into_iter().map(|(account, noted)| (account, as_marked(noted))).collect();
        return Ok(Notes { by_target, ..notes });
    }
    let mut marked = stream::iter(by_target)
        .map(|(account, noted)| async move {
            let marked = marked(record, &account, noted, at_hand).await;
            (account, marked)
        })
        .buffered(CONCURRENCY);
    while let Some((account, marked)) = marked.next().await {
        notes.add(account, marked)?;
    }
    Ok(notes)
}

/// Marks the notes of a target that are at hand, and reads all of its notes again: what was noted or marked meanwhile counts.
async fn marked(record: &Record, account: &AccountId, noted: Noted, at_hand: &AtHand<'_>) -> Result<Noted, Error> {
    let of_image: Vec<&Note> = noted.notes.iter().filter(|note| is_of(at_hand.image, note)).collect();
    if of_image.is_empty() {
        return Ok(noted);
    }
    for note in of_image {
        record.mark(account, note.image(), &note.gift.execution, at_hand.mark).await?;
    }
    record.notes_of(account).await
}

/// The notes of a target that was given nothing of the image since, as they would be when that is at hand: those of images
/// before it would be marked by then, and would name nothing more but what this image needed too.
pub(crate) fn as_marked(mut notes: Vec<Note>, at_hand: &AtHand<'_>) -> Vec<Note> {
    let of_image = notes.iter().filter(|note| is_of(at_hand.image, note));
    let keys: BTreeSet<KeyArn> = of_image.flat_map(|note| note.gift.image.keys()).collect();
    let goes_before = |image: &&SourceImage| !is_given_since(at_hand.begun, image, &notes);
    let before: Vec<&SourceImage> = at_hand.before.iter().filter(goes_before).collect();
    for note in &mut notes {
        if is_of(at_hand.image, note) {
            note.going = Some(at_hand.mark.clone());
        } else if before.iter().any(|image| is_of(image, note)) {
            note.goes_before = true;
            let Target { source_changes, principal_changes, .. } = &mut note.gift.target;
            source_changes.key_arns.retain(|key| keys.contains(key));
            source_changes.grant_key_arns.retain(|key| keys.contains(key));
            principal_changes.retain_mut(|change| {
                let attached = change.key_arns.is_empty();
                change.key_arns.retain(|key| keys.contains(key));
                !keys.is_empty() && (attached || !change.key_arns.is_empty())
            });
        }
    }
    notes
}
