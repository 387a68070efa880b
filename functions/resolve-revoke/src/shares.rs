//! The shares that are asked for, and how an execution goes through them.

use std::collections::BTreeSet;

use ami_share_core::{
    Error,
    ids::AccountId,
    revoke::{Progress, ROUND, RevokeRequest, RevokedImages, RevokedTargets, ShareId, SourceImage},
};
use ami_share_record::{Note, Record};
use futures_util::{StreamExt, TryStreamExt, stream};

/// How many targets' notes are read at a time.
const CONCURRENCY: usize = 16;

pub(crate) fn is_of(image: &SourceImage, note: &Note) -> bool {
    *note.image() == image.image_id && note.gift.source == image.source
}

pub(crate) fn image_of(note: &Note) -> SourceImage {
    SourceImage { source: note.gift.source.clone(), image_id: note.image().clone() }
}

/// Every share that is asked for: of one image, one for each target, noted or not; of all images, those that are noted.
///
/// # Errors
/// Whatever DynamoDB answers.
pub(crate) async fn all(record: &Record, request: &RevokeRequest) -> Result<BTreeSet<ShareId>, Error> {
    match (&request.images, &request.targets) {
        (RevokedImages::One(image), targets) => {
            let accounts = match targets {
                RevokedTargets::All => record.accounts_given(&image.image_id).await?,
                RevokedTargets::Listed(accounts) => accounts.clone(),
            };
            Ok(accounts.into_iter().map(|account_id| ShareId { image: image.clone(), account_id }).collect())
        }
        (RevokedImages::All(_), RevokedTargets::Listed(accounts)) => noted(record, request, accounts).await,
        // The request would have been refused.
        (RevokedImages::All(_), RevokedTargets::All) => Ok(BTreeSet::new()),
    }
}

async fn noted(record: &Record, request: &RevokeRequest, accounts: &[AccountId]) -> Result<BTreeSet<ShareId>, Error> {
    let notes: Vec<Vec<Note>> =
        stream::iter(accounts).map(|account| record.notes_of(account)).buffered(CONCURRENCY).try_collect().await?;
    let shares = accounts.iter().zip(notes).flat_map(|(account, notes)| {
        let share = |note: &Note| ShareId { image: image_of(note), account_id: account.clone() };
        notes.iter().map(share).collect::<Vec<_>>()
    });
    Ok(shares.filter(|share| request.is_of(&share.image)).collect())
}

/// The shares that have not been looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// Of this round; nothing where none is ahead.
    pub(crate) image: Option<SourceImage>,
    /// Those of this round, in their order.
    pub(crate) accounts: Vec<AccountId>,
    /// How many of the same image follow.
    pub(crate) rest_of_image: usize,
    /// How many follow, those included.
    pub(crate) rest: usize,
    /// How many are left to the next execution.
    pub(crate) beyond: usize,
}

impl Ahead {
    pub(crate) fn of(shares: BTreeSet<ShareId>, progress: &Progress) -> Self {
        let ahead = shares.into_iter().filter(|share| progress.after.as_ref().is_none_or(|after| share > after));
        let (ahead, beyond): (Vec<ShareId>, Vec<ShareId>) =
            ahead.partition(|share| progress.until.as_ref().is_none_or(|until| share <= until));
        let image = ahead.first().map(|share| share.image.clone());
        let of_image = ahead.iter().filter(|share| Some(&share.image) == image.as_ref());
        let mut accounts: Vec<AccountId> = of_image.map(|share| share.account_id.clone()).collect();
        let rest_of_image = accounts.len().saturating_sub(ROUND);
        accounts.truncate(ROUND);
        Self { image, rest: ahead.len() - accounts.len(), accounts, rest_of_image, beyond: beyond.len() }
    }
}
