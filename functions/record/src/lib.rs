//! The notes of what ami-share gave each target, as share-ami's RecordTarget writes them into the
//! hub's record table: one for each execution, image and target, until it is taken back.
//!
//! A note is kept under its target (`target#<account>`, then image and execution), so that all notes
//! of a target are one query; the index `ByImage` answers which targets have any for an image.

mod rewrite;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ami_share_core::{
    Error, Hub, aws,
    hub::RecordTable,
    ids::{AccountId, ExecutionName, ImageId},
    share::{Image, PrincipalAccess, Source, Target},
};
use aws_sdk_dynamodb::{Client, error::ProvideErrorMetadata, types::AttributeValue};
use serde::{Deserialize, Serialize};

pub use rewrite::REWRITE_ACTIONS;

/// What a function that reads the notes calls in the hub.
pub const HUB_ACTIONS: [&str; 1] = [QUERY];

/// What a function calls besides that takes back what is noted.
pub const UPDATE: &str = "dynamodb:UpdateItem";

/// What a function that looks for every note calls besides, on the index.
pub const SCAN: &str = "dynamodb:Scan";

const QUERY: &str = "dynamodb:Query";

/// The index of the table that knows notes by their image.
const BY_IMAGE: &str = "ByImage";

const TARGET_PREFIX: &str = "target#";

/// What one execution gave one target: all that was not there before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gift {
    pub execution: ExecutionName,
    pub source: Source,
    pub image: Image,
    pub principal_access: PrincipalAccess,
    pub target: Target,
}

impl Gift {
    /// As it is noted.
    pub fn to_text(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// A gift, and whether the execution that gave it is taking it back.
struct Note {
    gift: Gift,
    /// In milliseconds since 1970; nothing of a note that revoke-share has rewritten.
    noted_at: Option<i64>,
    given_up: bool,
}

/// The record table, as far as it can be read.
pub struct Record {
    client: Client,
    table: String,
    /// The hub's: whom an error names.
    account: AccountId,
}

impl Record {
    /// The table of this deployment.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] in a function that is not told which table that is.
    pub fn open(hub: &Hub) -> Result<Self, Error> {
        let RecordTable { account, name: table } = hub.record_table()?.clone();
        Ok(Self { client: Client::new(hub.config()), table, account })
    }

    /// Everything that is noted of `account`, for whatever image; the latest writes included.
    ///
    /// # Errors
    /// Whatever DynamoDB answers, and [`Error::Aws`] for a note that nobody can read.
    pub async fn gifts_of(&self, account: &AccountId) -> Result<Vec<Gift>, Error> {
        Ok(self.notes_of(account).await?.into_iter().map(|note| note.gift).collect())
    }

    /// Notes that what `execution` gave `account` of `image` is being taken back: nobody else can rely on it from
    /// here on. Nothing where that was not noted yet.
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub async fn give_up(&self, account: &AccountId, image: &ImageId, execution: &ExecutionName) -> Result<(), Error> {
        let update = self
            .client
            .update_item()
            .table_name(&self.table)
            .key("id", AttributeValue::S(format!("{TARGET_PREFIX}{account}")))
            .key("part", AttributeValue::S(format!("{image}#{execution}")))
            .condition_expression("attribute_exists(id)")
            .update_expression("SET givenUp = :givenUp")
            .expression_attribute_values(":givenUp", AttributeValue::Bool(true));
        match update.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(()),
            Err(error) => Err(aws::failure(&self.account, UPDATE, error)),
        }
    }

    /// What executions other than `execution` gave `account` of `image` since it began, in milliseconds since 1970, and
    /// have not given up. What was noted before then, and was missing all the same, somebody has taken away.
    ///
    /// # Errors
    /// As [`Record::gifts_of`].
    pub async fn given_by_others(
        &self,
        account: &AccountId,
        image: &ImageId,
        execution: &ExecutionName,
        begun: i64,
    ) -> Result<Vec<Gift>, Error> {
        let notes = self.notes_of(account).await?.into_iter();
        let others = notes.filter(|Note { gift, noted_at, given_up }| {
            let meanwhile = noted_at.is_some_and(|noted_at| noted_at >= begun);
            meanwhile && !given_up && gift.image.image_id == *image && gift.execution != *execution
        });
        Ok(others.map(|note| note.gift).collect())
    }

    async fn notes_of(&self, account: &AccountId) -> Result<Vec<Note>, Error> {
        let mut notes = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression("id = :target")
            .expression_attribute_values(":target", AttributeValue::S(format!("{TARGET_PREFIX}{account}")))
            .into_paginator()
            .items()
            .send();
        let mut read = Vec::new();
        while let Some(note) = notes.next().await {
            let note = note.map_err(|error| aws::failure(&self.account, QUERY, error))?;
            let text = note.get("gift").and_then(|gift| gift.as_s().ok()).map_or("", String::as_str);
            let gift = serde_json::from_str(text).map_err(|error| self.unreadable(account, &note, &error))?;
            let noted_at = note.get("notedAt").and_then(|at| at.as_n().ok()?.parse().ok());
            read.push(Note { gift, noted_at, given_up: note.contains_key("givenUp") });
        }
        Ok(read)
    }

    /// The accounts that anything is noted of for `image`, in their order. An index follows its table
    /// after a moment only ("Global secondary indexes", DynamoDB developer guide).
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub async fn accounts_given(&self, image: &ImageId) -> Result<Vec<AccountId>, Error> {
        let mut keys = self
            .client
            .query()
            .table_name(&self.table)
            .index_name(BY_IMAGE)
            .key_condition_expression("imageId = :image")
            .expression_attribute_values(":image", AttributeValue::S(image.to_string()))
            .into_paginator()
            .items()
            .send();
        let mut accounts: Vec<AccountId> = Vec::new();
        while let Some(key) = keys.next().await {
            let key = key.map_err(|error| aws::failure(&self.account, QUERY, error))?;
            accounts.extend(account_of(&key));
        }
        accounts.sort();
        accounts.dedup();
        Ok(accounts)
    }

    /// Every image that anything is noted of, with the accounts, from the index only.
    ///
    /// # Errors
    /// As [`Record::accounts_given`].
    pub async fn images_given(&self) -> Result<BTreeMap<ImageId, BTreeSet<AccountId>>, Error> {
        let mut keys = self.client.scan().table_name(&self.table).index_name(BY_IMAGE).into_paginator().items().send();
        let mut given: BTreeMap<ImageId, BTreeSet<AccountId>> = BTreeMap::new();
        while let Some(key) = keys.next().await {
            let key = key.map_err(|error| aws::failure(&self.account, SCAN, error))?;
            let image = key.get("imageId").and_then(|image| ImageId::parse(image.as_s().ok()?.as_str()).ok());
            if let Some((image, account)) = image.zip(account_of(&key)) {
                given.entry(image).or_default().insert(account);
            }
        }
        Ok(given)
    }

    fn unreadable(
        &self,
        account: &AccountId,
        note: &HashMap<String, AttributeValue>,
        error: &serde_json::Error,
    ) -> Error {
        let part = note.get("part").and_then(|part| part.as_s().ok()).map_or("?", String::as_str);
        Error::Aws {
            account: self.account.clone(),
            call: QUERY,
            reason: format!(
                "the note {TARGET_PREFIX}{account}, {part} of table {} cannot be read ({error}); put it right, or \
                 remove it and take back by hand what it names",
                self.table
            ),
            source: None,
        }
    }
}

/// The target that a note is of.
fn account_of(note: &HashMap<String, AttributeValue>) -> Option<AccountId> {
    AccountId::parse(note.get("id")?.as_s().ok()?.strip_prefix(TARGET_PREFIX)?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As RecordTarget writes it.
    #[test]
    fn a_gift_is_what_share_ami_notes() {
        let note = json!({
            "execution": "nightly-0123abcd",
            "source": { "accountId": "111111111111", "region": "eu-west-1" },
            "image": { "imageId": "ami-0123abcd", "name": "web", "architecture": "x86_64", "volumes": [] },
            "principalAccess": "attach",
            "target": { "accountId": "222222222222", "principalChanges": [], "mode": "none", "launch": {} }
        });
        let gift: Gift = serde_json::from_value(note.clone()).unwrap();
        assert_eq!(gift.target.account_id.as_str(), "222222222222");
        assert_eq!(serde_json::to_value(gift).unwrap(), note);
    }
}
