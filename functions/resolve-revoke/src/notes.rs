//! The notes of the targets at hand, marked, or as they would be.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error,
    ids::{AccountId, KeyArn},
    mark::Mark,
    revoke::{RevokeRequest, SourceImage},
    share::Target,
};
use ami_share_record::{Note, Record};
use ami_share_take_back::FromAccount;
use futures_util::{StreamExt, stream};

use crate::shares::{self, is_of};

/// How many targets' notes are read at a time.
const CONCURRENCY: usize = 16;

/// The image whose shares are to go in this round.
pub(crate) struct AtHand<'a> {
    pub(crate) request: &'a RevokeRequest,
    pub(crate) image: &'a SourceImage,
    pub(crate) mark: &'a Mark,
    /// Whether something is taken back now, or only looked at.
    pub(crate) revoking: bool,
}

type NotesByTarget = BTreeMap<AccountId, Vec<Note>>;

/// The notes by target, and what stays of those targets that have a note which nobody can read: somebody has to look into
/// it, and the others need not wait for that.
///
/// # Errors
/// Whatever DynamoDB answers.
pub(crate) async fn read(
    record: &Record,
    accounts: &[AccountId],
    at_hand: &AtHand<'_>,
    state: &str,
) -> Result<(NotesByTarget, Vec<FromAccount>), Error> {
    let read: Vec<Result<Vec<Note>, Error>> = stream::iter(accounts)
        .map(|account| async move {
            let notes = record.notes_of(account).await?;
            if at_hand.revoking { marked(record, account, notes, at_hand).await } else { Ok(as_marked(notes, at_hand)) }
        })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    let (mut notes, mut unread) = (BTreeMap::new(), Vec::new());
    for (account, read) in accounts.iter().zip(read) {
        match read {
            Ok(read) => {
                notes.insert(account.clone(), read);
            }
            Err(error @ Error::Aws { .. }) => unread.push(FromAccount::unread(account.clone(), state, &error)),
            Err(error) => return Err(error),
        }
    }
    Ok((notes, unread))
}

/// The notes of a target, after those of the image at hand were marked.
async fn marked(
    record: &Record,
    account: &AccountId,
    notes: Vec<Note>,
    at_hand: &AtHand<'_>,
) -> Result<Vec<Note>, Error> {
    if !notes.iter().any(|note| is_of(at_hand.image, note)) {
        return Ok(notes);
    }
    for note in notes.iter().filter(|note| is_of(at_hand.image, note)) {
        record.mark(account, note.image(), &note.gift.execution, at_hand.mark).await?;
    }
    record.notes_of(account).await
}

/// The mark of notes whose image is before the one at hand.
pub(crate) fn before() -> Mark {
    Mark::noted("before")
}

/// The notes of a target, as they would be when the image is at hand: those of images before it would be marked by then,
/// and would name nothing more but what this image needed too.
pub(crate) fn as_marked(mut notes: Vec<Note>, at_hand: &AtHand<'_>) -> Vec<Note> {
    let of_image = notes.iter().filter(|note| is_of(at_hand.image, note));
    let keys: BTreeSet<KeyArn> = of_image.flat_map(|note| note.gift.image.keys()).collect();
    for note in &mut notes {
        let image = shares::image_of(note);
        if image == *at_hand.image {
            note.going = Some(at_hand.mark.clone());
        } else if image < *at_hand.image && at_hand.request.is_of(&image) {
            note.going = Some(before());
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
