//! What becomes of notes that are taken back. Each write is conditional on the mark: a note that somebody has written or
//! marked anew since is theirs, and stays as they made it.

use ami_share_core::{Error, aws, take_back::NoteChange};
use aws_sdk_dynamodb::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    operation::update_item::builders::UpdateItemFluentBuilder,
    types::AttributeValue,
};

use crate::{Record, TARGET_PREFIX, UPDATE};

/// What a function calls that rewrites notes.
pub const REWRITE_ACTIONS: [&str; 1] = [UPDATE];

/// For how long EC2 may name an image whose launch permission was taken, in milliseconds: far longer than it takes to
/// begin.
pub const LAGGING: i64 = 3_600_000;

const AS_MARKED: &str = "going = :going AND attribute_exists(gift)";

impl Record {
    /// The note says `gift` from now on; the rest of it stays, the mark too.
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub async fn rewrite(&self, note: &NoteChange, gift: &str) -> Result<(), Error> {
        let update = self.update(note, "SET gift = :gift");
        let update = update.expression_attribute_values(":gift", AttributeValue::S(gift.to_owned()));
        self.unless_changed(UPDATE, update.send().await)
    }

    /// The note stays as it is, and counts again.
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub async fn unmark(&self, note: &NoteChange) -> Result<(), Error> {
        self.unless_changed(UPDATE, self.update(note, "REMOVE going").send().await)
    }

    /// The target has nothing of it any more, since `now`, in milliseconds since 1970. The table removes the item when EC2
    /// must have followed, or some days later ("Using time to live (TTL)", DynamoDB developer guide).
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub async fn forget(&self, note: &NoteChange, now: i64) -> Result<(), Error> {
        let update = self
            .update(note, "SET went = gift, wentAt = :now, expiresAt = :expiresAt REMOVE gift, imageId")
            .expression_attribute_values(":now", AttributeValue::N(now.to_string()))
            .expression_attribute_values(":expiresAt", AttributeValue::N(((now + LAGGING) / 1000).to_string()));
        self.unless_changed(UPDATE, update.send().await)
    }

    fn update(&self, note: &NoteChange, expression: &str) -> UpdateItemFluentBuilder {
        let (id, part, going) = values(note);
        self.client
            .update_item()
            .table_name(&self.table)
            .key("id", id)
            .key("part", part)
            .condition_expression(AS_MARKED)
            .update_expression(expression)
            .expression_attribute_values(":going", going)
    }

    /// A retry after a lost reply finds the mark or the gift gone as well: it was this call that did it.
    fn unless_changed<T, E>(
        &self,
        call: &'static str,
        result: Result<T, SdkError<E, HttpResponse>>,
    ) -> Result<(), Error>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let Err(error) = result else { return Ok(()) };
        match error.code() {
            Some("ConditionalCheckFailedException") => Ok(()),
            Some("ProvisionedThroughputExceededException") => {
                Err(Error::Throttled { account: self.account.clone(), call, source: Some(error.into()) })
            }
            _ => Err(aws::failure(&self.account, call, error)),
        }
    }
}

/// The note's keys, and its mark.
fn values(note: &NoteChange) -> (AttributeValue, AttributeValue, AttributeValue) {
    (
        AttributeValue::S(format!("{TARGET_PREFIX}{}", note.account_id)),
        AttributeValue::S(format!("{}#{}", note.image_id, note.execution)),
        AttributeValue::S(note.going.to_string()),
    )
}
