//! The shares that are asked for, and how an execution goes through them.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error,
    ids::AccountId,
    revoke::{MAX_ROUNDS, Place, Progress, ROUND, RevokeRequest, RevokedImages, RevokedTargets, SourceImage},
};
use ami_share_record::{Noted, Record};
use ami_share_take_back::FromAccount;

use crate::notes::{self, Notes, image_of, is_given_since};

/// The targets of each image.
pub(crate) type Targets = BTreeMap<SourceImage, BTreeSet<AccountId>>;

/// Every share that is asked for.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    /// Of one image, whoever is named, noted or not; of all images, those that are noted.
    pub(crate) targets: Targets,
    /// The images, as they are gone through.
    pub(crate) order: Vec<SourceImage>,
    /// Where all images are asked for: the notes of all targets, which only they could be found by.
    pub(crate) noted: Option<Notes>,
    /// Targets that nothing at all is noted of, where all images are asked for.
    pub(crate) strangers: Vec<AccountId>,
    /// What stays of targets that have a note which nobody can read, where their shares cannot be told for it.
    pub(crate) unread: Vec<FromAccount>,
    /// Targets that were given something since the execution began, where all images are asked for.
    pub(crate) given_since: Vec<AccountId>,
}

/// Finds them. What was noted since `begun` is not asked for.
///
/// # Errors
/// Whatever DynamoDB answers.
pub(crate) async fn all(record: &Record, request: &RevokeRequest, begun: i64) -> Result<Shares, Error> {
    match (&request.images, &request.targets) {
        (RevokedImages::One(image), targets) => {
            let accounts = match targets {
                RevokedTargets::All => record.accounts_given(&image.image_id).await?,
                RevokedTargets::Listed(accounts) => accounts.clone(),
            };
            let targets = BTreeMap::from([(image.clone(), accounts.into_iter().collect())]);
            Ok(Shares { targets, order: vec![image.clone()], ..Shares::default() })
        }
        (RevokedImages::All(_), RevokedTargets::Listed(accounts)) => {
            Ok(noted(notes::read(record, accounts).await?, request, begun))
        }
        // The request would have been refused.
        (RevokedImages::All(_), RevokedTargets::All) => Ok(Shares::default()),
    }
}

/// What of `read` is asked for. Images that nobody has tried to take back come first, then those that were tried the
/// longest ago: one execution may have no room for all, and of some the notes stay.
pub(crate) fn noted(read: Notes, request: &RevokeRequest, begun: i64) -> Shares {
    let mut shares = Shares { unread: read.unread.clone(), ..Shares::default() };
    let mut tried: BTreeMap<SourceImage, Option<i64>> = BTreeMap::new();
    for (account, Noted { notes, .. }) in &read.by_target {
        if notes.is_empty() {
            shares.strangers.push(account.clone());
        }
        let asked = notes.iter().map(|note| (image_of(note), note)).filter(|(image, _)| request.is_of(image));
        let (since, before): (Vec<_>, Vec<_>) = asked.partition(|(image, _)| is_given_since(begun, image, notes));
        if !since.is_empty() {
            shares.given_since.push(account.clone());
        }
        for (image, note) in before {
            let at = note.going.as_ref().and_then(|mark| mark.at());
            let earliest = tried.entry(image.clone()).or_insert(at);
            *earliest = at.min(*earliest);
            shares.targets.entry(image).or_default().insert(account.clone());
        }
    }
    let mut order: Vec<(Option<i64>, SourceImage)> = tried.into_iter().map(|(image, at)| (at, image)).collect();
    order.sort();
    shares.order = order.into_iter().map(|(_, image)| image).take(MAX_ROUNDS).collect();
    shares.noted = Some(read);
    shares
}

/// The shares that have not been looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    /// The image of this round, by its place in the order; nothing where none is ahead.
    pub(crate) image: Option<usize>,
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
    pub(crate) fn of(targets: &Targets, progress: &Progress) -> Self {
        let of_image = |(image, of): (usize, &SourceImage)| {
            let accounts = targets.get(of).into_iter().flatten();
            accounts.map(|account_id| Place { image, account_id: account_id.clone() }).collect::<Vec<Place>>()
        };
        let places = progress.order.iter().enumerate().flat_map(of_image);
        let ahead = places.filter(|place| progress.after.as_ref().is_none_or(|after| place > after));
        let (ahead, beyond): (Vec<Place>, Vec<Place>) =
            ahead.partition(|place| progress.until.as_ref().is_none_or(|until| place <= until));
        let order: BTreeSet<&SourceImage> = progress.order.iter().collect();
        let others = targets.iter().filter(|(image, _)| !order.contains(image)).map(|(_, accounts)| accounts.len());
        let beyond = beyond.len() + others.sum::<usize>();

        let image = ahead.first().map(|place| place.image);
        let of_image = ahead.iter().filter(|place| Some(place.image) == image);
        let mut accounts: Vec<AccountId> = of_image.map(|place| place.account_id.clone()).collect();
        let rest_of_image = accounts.len().saturating_sub(ROUND);
        accounts.truncate(ROUND);
        Self { image, rest: ahead.len() - accounts.len(), accounts, rest_of_image, beyond }
    }

    /// How many shares have not been looked at, those of this round included.
    pub(crate) fn remaining(&self) -> usize {
        self.accounts.len() + self.rest + self.beyond
    }
}
