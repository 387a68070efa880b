//! The notes of what ami-share gave each target, as share-ami's RecordTarget writes them into the
//! hub's record table: one for each execution, image and target, until it is taken back.
//! What went is told for [`LAGGING`] longer.
//!
//! A note is kept under its target (`target#<account>`, then image and execution), so that all notes
//! of a target are one query; the index `ByImage` answers which targets have any for an image.

#![warn(missing_docs)]

mod rewrite;
mod starts;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ami_share_core::{
    Error, Hub, aws,
    ids::{AccountId, ExecutionName, ImageId, InstanceId},
    mark::Mark,
    settings::RecordTable,
    share::{Image, PrincipalAccess, Proof, Prove, Source, Target},
};
use aws_sdk_dynamodb::{
    Client, error::ProvideErrorMetadata, operation::query::builders::QueryFluentBuilder, types::AttributeValue,
};
use serde::{Deserialize, Serialize};

pub use rewrite::{LAGGING, REWRITE_ACTIONS};
pub use starts::PUT;

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
    /// Who gave it.
    pub execution: ExecutionName,
    /// Where the image is, or was.
    pub source: Source,
    /// As it was described when it was noted.
    pub image: Image,
    /// By which policy principals were given access.
    pub principal_access: PrincipalAccess,
    /// What was missing, and therefore given.
    pub target: Target,
}

impl Gift {
    /// As it is noted.
    pub fn to_text(&self) -> String {
        serde_json::json!(self).to_string()
    }
}

/// A note, as it stands in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What the target still has of it.
    pub gift: Gift,
    /// In milliseconds since 1970.
    pub noted_at: i64,
    /// Who is taking it back, and since when; nothing of a share that stands.
    pub going: Option<Mark>,
    /// Whether it will be marked when the share at hand is: of whoever looks ahead, and not in the table.
    pub goes_before: bool,
    /// Whether the target's last state has confirmed it: until then the share is under way.
    pub confirmed: bool,
    /// What the target's last state has noted of what stays.
    pub stays: Stays,
    /// The proof that it has noted; nothing where none was asked for, and in notes of earlier versions.
    pub proof: Option<Proof>,
}

impl Note {
    /// The image that was shared.
    pub fn image(&self) -> &ImageId {
        &self.gift.image.image_id
    }

    /// What the proof is launched of: the image, or the target's copy, where that is known.
    pub fn launched(&self) -> &ImageId {
        let copy = self.stays.copy_id.as_ref().or(self.gift.target.copy_id.as_ref());
        copy.unwrap_or_else(|| self.image())
    }

    /// Whether it tells of a target that was shared with, and of a proof of that.
    pub fn is_proved(&self) -> bool {
        self.confirmed && self.gift.target.launch.prove != Prove::Never
    }

    /// Whether nobody can rely on it any more.
    pub fn is_going(&self) -> bool {
        self.goes_before || self.going.is_some()
    }
}

/// A share whose launch permission was taken back a while ago: EC2, which lags, may still name its image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Went {
    /// Where the image is, or was.
    pub source: Source,
    /// The image that was shared.
    pub image_id: ImageId,
    /// When its note went, in milliseconds since 1970.
    pub at: i64,
}

/// All that stands in the table of one target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noted {
    /// What it has.
    pub notes: Vec<Note>,
    /// What it had until a while ago.
    pub went: Vec<Went>,
}

/// The ids of what an execution has made in a target, and left there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stays {
    /// The proof, where it was to stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// The target's copy, where one was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_id: Option<ImageId>,
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
        Ok(self.notes_of(account).await?.notes.into_iter().map(|note| note.gift).collect())
    }

    /// Marks what `execution` gave `account` of `image` as going: nobody else can rely on it from here on. Nothing where
    /// that is not noted.
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub async fn mark(
        &self,
        account: &AccountId,
        image: &ImageId,
        execution: &ExecutionName,
        mark: &Mark,
    ) -> Result<(), Error> {
        let update = self
            .client
            .update_item()
            .table_name(&self.table)
            .key("id", AttributeValue::S(format!("{TARGET_PREFIX}{account}")))
            .key("part", AttributeValue::S(format!("{image}#{execution}")))
            .condition_expression("attribute_exists(gift)")
            .update_expression("SET going = :going")
            .expression_attribute_values(":going", AttributeValue::S(mark.to_string()));
        match update.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("ConditionalCheckFailedException") => Ok(()),
            Err(error) => Err(aws::failure(&self.account, UPDATE, error)),
        }
    }

    /// Every note of `account`, of all images and Regions; the latest writes included.
    ///
    /// # Errors
    /// As [`Record::gifts_of`].
    pub async fn notes_of(&self, account: &AccountId) -> Result<Noted, Error> {
        self.read(account, self.query(account, "id = :target")).await
    }

    /// Every note of `account` for `image`; the latest writes included.
    ///
    /// # Errors
    /// As [`Record::gifts_of`].
    pub async fn notes_for(&self, account: &AccountId, image: &ImageId) -> Result<Vec<Note>, Error> {
        let query = self
            .query(account, "id = :target AND begins_with(part, :image)")
            .expression_attribute_values(":image", AttributeValue::S(format!("{image}#")));
        Ok(self.read(account, query).await?.notes)
    }

    fn query(&self, account: &AccountId, condition: &str) -> QueryFluentBuilder {
        self.client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression(condition)
            .expression_attribute_values(":target", AttributeValue::S(format!("{TARGET_PREFIX}{account}")))
    }

    async fn read(&self, account: &AccountId, query: QueryFluentBuilder) -> Result<Noted, Error> {
        let mut items = query.into_paginator().items().send();
        let mut noted = Noted::default();
        while let Some(item) = items.next().await {
            let item = item.map_err(|error| aws::failure(&self.account, QUERY, error))?;
            let read = noted.add(&item);
            read.map_err(|error| self.unreadable(account, &item, &error))?;
        }
        Ok(noted)
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

impl Noted {
    fn add(&mut self, item: &HashMap<String, AttributeValue>) -> Result<(), serde_json::Error> {
        let Some(went) = text(item, "went") else {
            self.notes.push(note_of(item)?);
            return Ok(());
        };
        let Gift { source, image, target, .. } = serde_json::from_str(went)?;
        // Where it was somebody else's permission, EC2 is right.
        if target.source_changes.launch_permission {
            self.went.push(Went { source, image_id: image.image_id, at: number(item, "wentAt") });
        }
        Ok(())
    }
}

fn text<'i>(item: &'i HashMap<String, AttributeValue>, name: &str) -> Option<&'i str> {
    item.get(name).and_then(|value| value.as_s().ok()).map(String::as_str)
}

fn number(item: &HashMap<String, AttributeValue>, name: &str) -> i64 {
    item.get(name).and_then(|value| value.as_n().ok()?.parse().ok()).unwrap_or_default()
}

fn note_of(item: &HashMap<String, AttributeValue>) -> Result<Note, serde_json::Error> {
    let text = |name: &str| text(item, name);
    Ok(Note {
        gift: serde_json::from_str(text("gift").unwrap_or_default())?,
        noted_at: number(item, "notedAt"),
        going: text("going").map(Mark::noted),
        goes_before: false,
        confirmed: item.contains_key("confirmed"),
        stays: text("stays").map_or(Ok(Stays::default()), serde_json::from_str)?,
        proof: text("proof").map_or(Ok(None), serde_json::from_str)?,
    })
}

/// The target that a note is of.
fn account_of(note: &HashMap<String, AttributeValue>) -> Option<AccountId> {
    AccountId::parse(note.get("id")?.as_s().ok()?.strip_prefix(TARGET_PREFIX)?).ok()
}

#[cfg(test)]
mod tests;
