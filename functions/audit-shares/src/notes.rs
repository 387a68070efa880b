//! What ami-share noted of the images that are looked at.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error,
    ids::{AccountId, ImageId},
    request::AuditRequest,
    share::Source,
};
use ami_share_record::{Gift, Record};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::pace::CONCURRENCY;

pub(crate) struct Notes {
    record: Record,
    /// Who was given anything of which image.
    noted: BTreeMap<ImageId, BTreeSet<AccountId>>,
    gifts: BTreeMap<AccountId, Vec<Gift>>,
}

impl Notes {
    /// Of the image that is asked for, or of every image.
    pub(crate) async fn read(record: Record, request: &AuditRequest) -> Result<Self, Error> {
        let noted = match &request.image_id {
            Some(image) => BTreeMap::from([(image.clone(), record.accounts_given(image).await?.into_iter().collect())]),
            None => record.images_given().await?,
        };
        Ok(Self { record, noted, gifts: BTreeMap::new() })
    }

    /// Every image that anything is noted of, of whatever account and Region.
    pub(crate) fn images(&self) -> impl Iterator<Item = &ImageId> {
        self.noted.keys()
    }

    /// Reads what the targets of these images were given.
    pub(crate) async fn load(&mut self, images: impl IntoIterator<Item = &ImageId>) -> Result<(), Error> {
        let accounts: BTreeSet<&AccountId> =
            images.into_iter().filter_map(|image| self.noted.get(image)).flatten().collect();
        let missing = accounts.into_iter().filter(|account| !self.gifts.contains_key(*account));
        let record = &self.record;
        let read: Vec<(AccountId, Vec<Gift>)> = stream::iter(missing.cloned().collect::<Vec<_>>())
            .map(|account| async move {
                let gifts = record.gifts_of(&account).await?;
                Ok::<_, Error>((account, gifts))
            })
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        self.gifts.extend(read);
        Ok(())
    }

    /// What was given of an image, after [`Notes::load`].
    pub(crate) fn of(&self, image: &ImageId, source: &Source) -> Vec<&Gift> {
        let accounts = self.noted.get(image).into_iter().flatten();
        let gifts = accounts.filter_map(|account| self.gifts.get(account)).flatten();
        gifts.filter(|gift| gift.image.image_id == *image && gift.source == *source).collect()
    }
}
