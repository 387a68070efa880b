//! The shares that are asked for, and how an execution goes through them.

use std::collections::BTreeSet;

use ami_share_core::{
    Error,
    ids::AccountId,
    revoke::{Progress, ROUND, RevokeRequest, RevokedImages, RevokedTargets, ShareId, SourceImage},
    take_back::Left,
};
use ami_share_record::{Note, Record};
use ami_share_take_back::FromAccount;
use futures_util::{StreamExt, stream};

/// How many targets' notes are read at a time.
const CONCURRENCY: usize = 16;

pub(crate) fn is_of(image: &SourceImage, note: &Note) -> bool {
    *note.image() == image.image_id && note.gift.source == image.source
}

pub(crate) fn image_of(note: &Note) -> SourceImage {
    SourceImage { source: note.gift.source.clone(), image_id: note.image().clone() }
}

/// Every share that is asked for.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// Of one image, one for each target, noted or not; of all images, those that are noted.
    pub(crate) ids: BTreeSet<ShareId>,
    /// Targets that nothing at all is noted of, where all images are asked for.
    pub(crate) strangers: Vec<AccountId>,
    /// What stays of the targets that have a note which nobody can read, where their shares cannot be told for it.
    pub(crate) left: Vec<Left>,
}

/// Finds them.
///
/// # Errors
/// Whatever DynamoDB answers.
pub(crate) async fn all(record: &Record, request: &RevokeRequest, state: &str) -> Result<Shares, Error> {
    match (&request.images, &request.targets) {
        (RevokedImages::One(image), targets) => {
            let accounts = match targets {
                RevokedTargets::All => record.accounts_given(&image.image_id).await?,
                RevokedTargets::Listed(accounts) => accounts.clone(),
            };
            let share = |account_id| ShareId { image: image.clone(), account_id };
            Ok(Shares { ids: accounts.into_iter().map(share).collect(), ..Shares::default() })
        }
        (RevokedImages::All(_), RevokedTargets::Listed(accounts)) => noted(record, request, accounts, state).await,
        // The request would have been refused.
        (RevokedImages::All(_), RevokedTargets::All) => Ok(Shares::default()),
    }
}

async fn noted(record: &Record, request: &RevokeRequest, accounts: &[AccountId], state: &str) -> Result<Shares, Error> {
    let read: Vec<Result<Vec<Note>, Error>> =
        stream::iter(accounts).map(|account| record.notes_of(account)).buffered(CONCURRENCY).collect().await;
    let mut shares = Shares::default();
    for (account, read) in accounts.iter().zip(read) {
        match read {
            Ok(notes) if notes.is_empty() => shares.strangers.push(account.clone()),
            Ok(notes) => {
                let images = notes.iter().map(image_of).filter(|image| request.is_of(image));
                shares.ids.extend(images.map(|image| ShareId { image, account_id: account.clone() }));
            }
            Err(error @ Error::Aws { .. }) => {
                shares.left.extend(FromAccount::unread(account.clone(), state, &error).left);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(shares)
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
