//! What StartShare notes of an execution that it starts: its request, which was kept for images like this one. Where shares
//! must be planned, these are exempt. Whoever else starts an execution gives it name and input, and writes no note.

use ami_share_core::{Error, aws, ids::ExecutionName, plan};
use aws_sdk_dynamodb::types::AttributeValue;
use serde_json::Value;

use crate::{QUERY, Record, number, text};

/// What a function calls that notes what it starts.
pub const PUT: &str = "dynamodb:PutItem";

/// For how long a start may be late, in milliseconds: as long as a plan holds.
const HOLDS: i64 = 24 * 60 * 60 * 1000;

impl Record {
    /// Notes that an execution of that name is started with `request`.
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub async fn note_start(&self, execution: &ExecutionName, request: &Value, now_ms: i64) -> Result<(), Error> {
        let put = self
            .client
            .put_item()
            .table_name(&self.table)
            .item("id", AttributeValue::S(id(execution.as_str())))
            .item("part", AttributeValue::S("start".to_owned()))
            .item("request", AttributeValue::S(digest(request)))
            .item("expiresAt", AttributeValue::N(((now_ms + HOLDS) / 1000).to_string()));
        put.send().await.map(drop).map_err(|error| aws::failure(&self.account, PUT, error))
    }

    /// Whether [`Record::note_start`] has noted an execution of that name, with that request, and not long ago.
    ///
    /// # Errors
    /// Whatever DynamoDB answers.
    pub async fn is_noted_start(&self, execution: &str, request: &Value, now_ms: i64) -> Result<bool, Error> {
        let query = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(true)
            .key_condition_expression("id = :start")
            .expression_attribute_values(":start", AttributeValue::S(id(execution)));
        let items = query.send().await.map_err(|error| aws::failure(&self.account, QUERY, error))?.items;
        // What has expired may stay for days ("Time to Live", DynamoDB developer guide).
        let holds = |item| number(item, "expiresAt") > now_ms / 1000;
        Ok(items.iter().flatten().any(|item| holds(item) && text(item, "request") == Some(&digest(request))))
    }
}

fn id(execution: &str) -> String {
    format!("start#{execution}")
}

fn digest(request: &Value) -> String {
    plan::hash(request).whole().to_owned()
}

#[cfg(test)]
mod tests {
    use ami_share_mocked::{Aws, NOW_MS};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_start_is_known_by_its_name_and_its_request_for_a_day() {
        let aws = Aws::with_table();
        let record = Record::open(&aws.hub).unwrap();
        let now = i64::try_from(NOW_MS).unwrap();
        let (request, other) = (json!({ "imageId": "ami-0123abcd" }), json!({ "imageId": "ami-0123abce" }));
        record.note_start(&ExecutionName::parse("ami-0123abcd-web").unwrap(), &request, now).await.unwrap();
        for (name, request, at, expected) in [
            ("ami-0123abcd-web", &request, now, true),
            ("ami-0123abcd-web", &request, now + HOLDS - 1000, true),
            ("ami-0123abcd-web", &request, now + HOLDS, false),
            ("ami-0123abcd-web", &other, now, false),
            ("ami-0123abcd", &request, now, false),
        ] {
            let found = record.is_noted_start(name, request, at).await.unwrap();
            assert_eq!(found, expected, "{name}, {request}, {at}");
        }
    }
}
