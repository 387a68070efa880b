//! What a target needs its access to keys for: other images that it can launch, in every Region that a note of it names.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId, KeyArn},
    share::Source,
    take_back::Left,
};
use ami_share_launchable::{self as launchable, Images};
use ami_share_record::{LAGGING, Note, Noted, Went};

/// What is called in each source account.
pub const ACTIONS: [&str; 3] =
    [launchable::DESCRIBE_IMAGES, launchable::DESCRIBE_SNAPSHOTS, launchable::DESCRIBE_IMAGE_ATTRIBUTE];

/// How long a share may be under way, in milliseconds: the time-out of share-ami.
const UNDER_WAY: i64 = 86_400_000;

/// Who asks, and for whose sake.
pub struct Asking<'a> {
    /// For the source account's role, and the time.
    pub hub: &'a Hub,
    /// What sessions are named after.
    pub execution: &'a ExecutionName,
    /// Of the session in a source account; [`ACTIONS`] are among them.
    pub actions: Actions,
    /// Where the share is that goes, and of which image.
    pub source: &'a Source,
    /// The one whose shares are to go: it needs nothing.
    pub image: &'a ImageId,
    /// The state that asks.
    pub state: &'static str,
    /// Whether what passes by itself is an error, so that the state is tried again. Otherwise it is not known.
    pub patient: bool,
}

/// What one target needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// Keys, each with an image that needs it.
    pub keys: BTreeMap<KeyArn, ImageId>,
    /// The images of the source at hand that it can launch.
    pub images: BTreeSet<ImageId>,
    /// Sources that could not be asked, and why.
    pub unknown: BTreeMap<Source, Left>,
}

impl Need {
    /// Whether nobody can launch the image of the source at hand, as far as that was told.
    pub fn is_gone(&self, source: &Source, image: &ImageId) -> bool {
        !self.images.contains(image) && !self.unknown.contains_key(source)
    }

    /// The source that the key is in, and why nobody can say whether the key is needed.
    pub(crate) fn unknown_of(&self, key: &KeyArn) -> Option<(&Source, &Left)> {
        let source = Source { account_id: key.account_id(), region: key.region() };
        self.unknown.get_key_value(&source)
    }
}

/// What each target of `noted` needs, besides the shares whose notes are marked. One call for each target in each Region
/// that a note of it names, and those of [`launchable::by_organization`] for each Region.
///
/// # Errors
/// Where the asking one is patient, what passes by itself.
pub async fn needs(
    asking: &Asking<'_>,
    noted: &BTreeMap<AccountId, Noted>,
) -> Result<BTreeMap<AccountId, Need>, Error> {
    let mut places: BTreeMap<&Source, BTreeSet<AccountId>> = BTreeMap::new();
    for (account, noted) in noted {
        for place in noted.notes.iter().map(|note| &note.gift.source).chain([asking.source]) {
            places.entry(place).or_default().insert(account.clone());
        }
    }
    let now = asking.hub.now_ms();
    let mut needs: BTreeMap<AccountId, Need> =
        noted.iter().map(|(account, noted)| (account.clone(), under_way(asking, &noted.notes, now))).collect();
    for (place, accounts) in places {
        match ask(asking, place, &accounts).await {
            Ok((own, open)) => {
                let open = match open {
                    Ok(open) => open,
                    Err(error) if asking.patient && error.passes() => return Err(error),
                    Err(error) => {
                        leave(asking, place, &accounts, &error, &mut needs);
                        Images::new()
                    }
                };
                for account in &accounts {
                    let (nothing, of_nobody) = (Images::new(), Noted::default());
                    let images = own.get(account).unwrap_or(&nothing).iter();
                    let noted = noted.get(account).unwrap_or(&of_nobody);
                    let images = images.filter(|(image, _)| counts(noted, place, image, now)).chain(&open);
                    let others = images.filter(|(image, _)| place != asking.source || *image != asking.image);
                    needs.entry(account.clone()).or_default().add(others, place == asking.source);
                }
            }
            Err(error) if asking.patient && error.passes() => return Err(error),
            Err(error) => leave(asking, place, &accounts, &error, &mut needs),
        }
    }
    Ok(needs)
}

/// What the accounts need in that place is not known, or not all of it.
fn leave(
    asking: &Asking<'_>,
    place: &Source,
    accounts: &BTreeSet<AccountId>,
    error: &Error,
    needs: &mut BTreeMap<AccountId, Need>,
) {
    for account in accounts {
        let left = Left {
            account_id: Some(account.clone()),
            state: asking.state.to_owned(),
            error: error.name().to_owned(),
            cause: format!(
                "access to keys stays, as nobody can say which images of account {} in {} need it: {error}",
                place.account_id, place.region
            ),
        };
        needs.entry(account.clone()).or_default().unknown.insert(place.clone(), left);
    }
}

async fn ask(
    asking: &Asking<'_>,
    place: &Source,
    accounts: &BTreeSet<AccountId>,
) -> Result<(BTreeMap<AccountId, Images>, Result<Images, Error>), Error> {
    let config =
        asking.hub.as_source_reader(&place.account_id, &place.region, asking.execution, asking.actions).await?;
    let ec2 = aws_sdk_ec2::Client::new(&config);
    let own = launchable::by_account(&ec2, place, accounts).await?;
    Ok((own, launchable::by_organization(&ec2, place).await))
}

/// An image all of whose notes are marked is going, whatever EC2, which lags, still says, and one whose notes went a while
/// ago is gone. Any other that nobody has noted is somebody else's share.
///
/// A take-back takes the launch permission first. So where EC2 names the image long after the mark, it was stopped, or left
/// the permission, and the target relies on it.
fn counts(noted: &Noted, place: &Source, image: &ImageId, now: i64) -> bool {
    let mut of_it = noted.notes.iter().filter(|note| note.image() == image && note.gift.source == *place).peekable();
    let lags = |at: i64| at + LAGGING >= now;
    let goes = |note: &Note| note.going.as_ref().is_some_and(|mark| mark.at().is_none_or(lags));
    let stands = |note: &Note| !note.goes_before && !goes(note);
    let went = |went: &Went| went.image_id == *image && went.source == *place && lags(went.at);
    if of_it.peek().is_none() { !noted.went.iter().any(went) } else { of_it.any(stands) }
}

/// A share that is under way may have found the access there, and given no launch permission yet.
fn under_way(asking: &Asking<'_>, notes: &[Note], now: i64) -> Need {
    let mut need = Need::default();
    let is_under_way = |note: &&Note| {
        let other = note.gift.source != *asking.source || note.image() != asking.image;
        other && !note.is_going() && !note.confirmed && note.noted_at + UNDER_WAY > now
    };
    for note in notes.iter().filter(is_under_way) {
        for key in note.gift.image.keys() {
            need.keys.entry(key).or_insert_with(|| note.image().clone());
        }
    }
    need
}

impl Need {
    fn add<'i>(&mut self, images: impl Iterator<Item = (&'i ImageId, &'i BTreeSet<KeyArn>)>, at_hand: bool) {
        for (image, keys) in images {
            if at_hand {
                self.images.insert(image.clone());
            }
            for key in keys {
                self.keys.entry(key.clone()).or_insert_with(|| image.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests;
