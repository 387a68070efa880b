//! The lock on the key policies of a source account and Region.
//!
//! KMS has no version on a key policy: whoever writes one writes the whole, and of two at once one is lost. So one
//! function at a time writes the policies of an account and Region. The lock is an item of the hub's record table, taken
//! and given back by conditional updates. The holder is the invocation, not the execution: a call that Step Functions
//! gave up on, and its retry, are two.
//!
//! The item also says what was [written](Writes) lately, so that the next holder knows a read that is out of date.

#![warn(missing_docs)]

mod writes;

use std::time::Duration;

use ami_share_core::{
    Error, Hub, aws,
    hub::millis,
    ids::{ExecutionName, KeyArn},
    key_policy::KeyPolicy,
    settings::RecordTable,
    share::Source,
};
use aws_sdk_dynamodb::{Client, error::ProvideErrorMetadata, types::AttributeValue};

use writes::Writes;

/// What a function that takes the lock calls in the hub.
pub const HUB_ACTIONS: [&str; 1] = [UPDATE];

const UPDATE: &str = "dynamodb:UpdateItem";

/// The lock of a holder that died is free so long after the holder's time-out.
const AFTER_TIMEOUT: Duration = Duration::from_secs(60);

/// No write begins later than this before the time-out. One attempt of a call takes less: [`ATTEMPT`].
const LAST_WRITE: Duration = Duration::from_secs(15);

/// The longest that one attempt of a call under the lock may take.
pub const ATTEMPT: Duration = Duration::from_secs(10);

/// The lock, held by this invocation.
pub struct KeyLock<'h> {
    hub: &'h Hub,
    client: Client,
    table: &'h RecordTable,
    source: Source,
    execution: ExecutionName,
    me: String,
    writes: Writes,
}

impl<'h> KeyLock<'h> {
    /// Takes the lock of `source` for one invocation, in the name of `execution`.
    ///
    /// # Errors
    /// [`Error::KeyPoliciesLocked`] while somebody else has it; whatever DynamoDB answers.
    pub async fn take(hub: &'h Hub, execution: &ExecutionName, source: &Source) -> Result<Self, Error> {
        let invocation = hub.invocation();
        let mut lock = Self {
            hub,
            client: Client::new(hub.config()),
            table: hub.record_table()?,
            source: source.clone(),
            execution: execution.clone(),
            me: format!("{execution}#{}", invocation.id),
            writes: Writes::default(),
        };
        let number = |ms: i64| AttributeValue::N(ms.to_string());
        let update = lock
            .update("SET heldBy = :me, heldUntil = :until")
            .condition_expression("attribute_not_exists(heldBy) OR heldBy = :me OR heldUntil < :now")
            .expression_attribute_values(":now", number(hub.now_ms()))
            .expression_attribute_values(":until", number(millis(invocation.deadline + AFTER_TIMEOUT)))
            .return_values(aws_sdk_dynamodb::types::ReturnValue::AllNew);
        let taken = update.send().await.map_err(|error| lock.failure(error))?;
        let text = taken.attributes().and_then(|item| item.get("writes")?.as_s().ok()).map(String::as_str);
        lock.writes = Writes::parse(text.unwrap_or("{}"), hub.settings.stale_reads).map_err(|error| Error::Aws {
            account: lock.table.account.clone(),
            call: UPDATE,
            reason: format!(
                "the item {}, lock of table {} cannot be read ({error}); remove its attribute writes when no execution \
                 is under way",
                lock.id(),
                lock.table.name
            ),
            source: None,
        })?;
        Ok(lock)
    }

    /// Looks whether `policy`, as it was just read, is the key's policy of today, and settles what was written and not
    /// known to be there.
    ///
    /// # Errors
    /// [`Error::NotYetVisible`] for a policy that was replaced lately, or may have been.
    pub fn look(&mut self, key: &KeyArn, policy: &KeyPolicy) -> Result<(), Error> {
        if self.writes.is_current(key, &policy.digest(), self.hub.now_ms()) {
            return Ok(());
        }
        Err(Error::NotYetVisible {
            what: format!("the present policy of key {key} (an earlier one is still read)"),
            account: key.account_id(),
            call: "kms:GetKeyPolicy",
        })
    }

    /// Whether this execution has written `policy` to the key.
    pub fn has_written(&self, key: &KeyArn, policy: &KeyPolicy) -> bool {
        self.writes.has_written(&self.execution, key, &policy.digest())
    }

    /// Notes that `before` is about to be replaced by `after`. To be called right before the write.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the invocation has no time for it; [`Error::KeyPoliciesLocked`] where somebody has
    /// taken the lock away; whatever DynamoDB answers. Nothing may be written then.
    pub async fn begin(&mut self, key: &KeyArn, before: &KeyPolicy, after: &KeyPolicy) -> Result<(), Error> {
        let now = self.hub.now_ms();
        self.writes.begin(&self.execution, key, &before.digest(), &after.digest(), now);
        let update = self
            .update("SET writes = :writes")
            .condition_expression("heldBy = :me")
            .expression_attribute_values(":writes", AttributeValue::S(self.writes.to_text()));
        let noted = update.send().await.map_err(|error| self.failure(error));
        let noted = noted.map(drop).and_then(|()| self.has_time(key));
        if noted.is_err() {
            self.writes.refused(key);
        }
        noted
    }

    fn has_time(&self, key: &KeyArn) -> Result<(), Error> {
        if self.hub.now() + LAST_WRITE < self.hub.invocation().deadline {
            return Ok(());
        }
        let source = Some("the function has no time left for it, and has not begun it".into());
        Err(Error::Unavailable { account: key.account_id(), call: "kms:PutKeyPolicy", source })
    }

    /// KMS has said that the write that was begun last is done.
    pub fn done(&mut self, key: &KeyArn) {
        self.writes.done(key);
    }

    /// KMS has refused the write that was begun last. Not to be called where it may be done all the same, such as after
    /// a server error.
    pub fn refused(&mut self, key: &KeyArn) {
        self.writes.refused(key);
    }

    /// Gives the lock back. Where that fails it ends by itself, and what was written is settled by whoever reads it.
    pub async fn give_back(self) {
        let update = self
            .update("SET writes = :writes REMOVE heldBy, heldUntil")
            .condition_expression("heldBy = :me")
            .expression_attribute_values(":writes", AttributeValue::S(self.writes.to_text()));
        if let Err(error) = update.send().await.map_err(|error| self.failure(error)) {
            tracing::warn!(%error, "the lock on key policies was not given back, and ends by itself");
        }
    }

    fn id(&self) -> String {
        let Source { account_id, region } = &self.source;
        format!("keys#{account_id}#{region}")
    }

    fn update(&self, expression: &str) -> aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&self.table.name)
            .key("id", AttributeValue::S(self.id()))
            .key("part", AttributeValue::S("lock".to_owned()))
            .update_expression(expression)
            .expression_attribute_values(":me", AttributeValue::S(self.me.clone()))
    }

    fn failure<E>(
        &self,
        error: aws_sdk_dynamodb::error::SdkError<E, aws_sdk_dynamodb::config::http::HttpResponse>,
    ) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let Source { account_id: account, region } = self.source.clone();
        match error.code() {
            Some("ConditionalCheckFailedException") => Error::KeyPoliciesLocked { account, region },
            _ => aws::failure(&self.table.account, UPDATE, error),
        }
    }
}

#[cfg(test)]
mod tests;
