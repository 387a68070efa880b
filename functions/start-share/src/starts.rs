//! What StartShare has started, in the hub's record table: an item for each image and profile, kept under the image.
//!
//! The item is written before the execution is started, so that a disabling that comes meanwhile finds it, and says after
//! it that it was. Whoever finds one that does not say so starts the same execution: its name says which it is.

use std::collections::HashMap;

use ami_share_core::{
    Error, Hub, aws,
    ids::{AccountId, ExecutionName, ImageId},
    settings::RecordTable,
};
use aws_sdk_dynamodb::{
    Client,
    operation::update_item::{UpdateItemError, builders::UpdateItemFluentBuilder},
    types::AttributeValue,
};

use crate::profile::Profile;

pub(crate) const QUERY: &str = "dynamodb:Query";
pub(crate) const UPDATE: &str = "dynamodb:UpdateItem";

const PREFIX: &str = "start#";

pub(crate) struct Starts {
    client: Client,
    table: String,
    /// The hub's: whom an error names.
    account: AccountId,
}

/// What is noted of an image and a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Noted {
    /// How often the image has become available, as far as it was asked to be shared then.
    enablings: u32,
    /// Whether the execution for the last of these was started.
    started: bool,
    /// Whether the image was disabled since: EC2 has taken its launch permissions.
    disabled: bool,
}

impl Noted {
    fn read(item: &HashMap<String, AttributeValue>) -> Self {
        let number = item.get("enablings").and_then(|value| value.as_n().ok()?.parse().ok());
        Self {
            enablings: number.unwrap_or_default(),
            started: item.contains_key("execution"),
            disabled: item.contains_key("disabled"),
        }
    }

    /// The enabling that an execution is to be started for now; nothing where one was.
    fn due(self) -> Option<u32> {
        if self.disabled {
            return Some(self.enablings + 1);
        }
        (!self.started).then_some(self.enablings)
    }
}

impl Starts {
    /// # Errors
    /// [`Error::InvalidRequest`] in a function that is not told which table that is.
    pub(crate) fn open(hub: &Hub) -> Result<Self, Error> {
        let RecordTable { account, name: table } = hub.record_table()?.clone();
        Ok(Self { client: Client::new(hub.config()), table, account })
    }

    /// Which enabling of the image an execution is to be started for, where it is available: 1 for a new one.
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub(crate) async fn due(&self, image: &ImageId, profile: &Profile) -> Result<Option<u32>, Error> {
        Ok(self.noted(image).await?.get(profile.as_str()).map_or(Some(1), |noted| noted.due()))
    }

    /// Notes that an execution is going to be started for this enabling. Whoever was first has noted the same.
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub(crate) async fn begin(&self, image: &ImageId, profile: &Profile, enabling: u32) -> Result<(), Error> {
        let update = self
            .update(image, profile.as_str(), "SET enablings = :enabling REMOVE disabled, execution")
            .condition_expression("attribute_not_exists(enablings) OR enablings < :enabling")
            .expression_attribute_values(":enabling", AttributeValue::N(enabling.to_string()));
        self.send(update).await
    }

    /// Notes that it was started, unless the image has been enabled once more since.
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub(crate) async fn started(
        &self,
        image: &ImageId,
        profile: &Profile,
        enabling: u32,
        execution: &ExecutionName,
    ) -> Result<(), Error> {
        let update = self
            .update(image, profile.as_str(), "SET execution = :execution")
            .condition_expression("enablings = :enabling")
            .expression_attribute_values(":enabling", AttributeValue::N(enabling.to_string()))
            .expression_attribute_values(":execution", AttributeValue::S(execution.to_string()));
        self.send(update).await
    }

    /// Notes that the image was disabled, with whatever profiles it was ever started.
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub(crate) async fn disabled(&self, image: &ImageId) -> Result<(), Error> {
        for (profile, _) in self.noted(image).await?.iter().filter(|(_, noted)| !noted.disabled) {
            let update = self
                .update(image, profile, "SET disabled = :disabled")
                .condition_expression("attribute_exists(enablings)")
                .expression_attribute_values(":disabled", AttributeValue::Bool(true));
            self.send(update).await?;
        }
        Ok(())
    }

    /// By the name of the profile; the latest writes included.
    async fn noted(&self, image: &ImageId) -> Result<HashMap<String, Noted>, Error> {
        let mut items = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression("id = :image")
            .expression_attribute_values(":image", AttributeValue::S(format!("{PREFIX}{image}")))
            .into_paginator()
            .items()
            .send();
        let mut noted = HashMap::new();
        while let Some(item) = items.next().await {
            let item = item.map_err(|error| aws::failure(&self.account, QUERY, error))?;
            let profile = item.get("part").and_then(|part| part.as_s().ok()).cloned().unwrap_or_default();
            noted.insert(profile, Noted::read(&item));
        }
        Ok(noted)
    }

    fn update(&self, image: &ImageId, profile: &str, expression: &str) -> UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&self.table)
            .key("id", AttributeValue::S(format!("{PREFIX}{image}")))
            .key("part", AttributeValue::S(profile.to_owned()))
            .update_expression(expression)
    }

    /// A condition that does not hold says that somebody else was first.
    async fn send(&self, update: UpdateItemFluentBuilder) -> Result<(), Error> {
        match update.send().await {
            Ok(_) => Ok(()),
            Err(error)
                if error.as_service_error().is_some_and(UpdateItemError::is_conditional_check_failed_exception) =>
            {
                Ok(())
            }
            Err(error) => Err(aws::failure(&self.account, UPDATE, error)),
        }
    }
}
