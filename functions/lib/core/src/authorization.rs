//! Which statement refused a call: EC2 adds a message to its refusal of one that acts on resources, which
//! sts:DecodeAuthorizationMessage opens for whoever may call it. It may tell of policies that the caller is not to see.

use std::error::Error as StdError;

use aws_config::SdkConfig;
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use serde::Deserialize;

use crate::{
    Error, aws,
    ids::AccountId,
    refusal::{self, DECODE},
    words,
};

/// How much of one thing that AWS tells is passed on, in bytes of JSON: what states hand on has an end.
const MOST: usize = 700;

/// The error of `call`, which the role in `config` made: as [`aws::failure`], and where AWS encoded why it refused, with
/// what that role is told of it.
pub async fn failure<E>(
    config: &SdkConfig,
    account: &AccountId,
    call: &'static str,
    error: SdkError<E, HttpResponse>,
) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let message = error.message().unwrap_or_default().to_owned();
    match (aws::failure(account, call, error), refusal::split(&message)) {
        (Error::AccessDenied { account, call, source, .. }, (said, Some(encoded))) => {
            let reason = explained(config, &refusal::with_remedy(said), encoded).await;
            Error::AccessDenied { reason, account, call, source }
        }
        (error, _) => error,
    }
}

/// What AWS says of a refusal, and what the role in `config` is told of it, or why it is not.
async fn explained(config: &SdkConfig, said: &str, encoded: &str) -> String {
    const PARAMETER: &str = "DecodeAuthorizationMessages of accounts/target.yaml";
    let answer = aws_sdk_sts::Client::new(config).decode_authorization_message().encoded_message(encoded).send().await;
    let error = match answer {
        Ok(answer) => return with_decoded(said, answer.decoded_message().unwrap_or_default()),
        Err(error) => error,
    };
    let code = error.code().unwrap_or("no answer");
    let message = words::cut(words::without_full_stop(error.message().unwrap_or_default()), MOST);
    if code == "AccessDenied" {
        return format!("{said}; which statement, AWS does not tell ({message}); set {PARAMETER} to true to be told");
    }
    format!("{said}; which statement, AWS could not be asked ({DECODE}: {code}: {message}): see the function's log")
}

/// A list, as it is wrapped there.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct Items<T> {
    items: Vec<T>,
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self { items: Vec::new() }
    }
}

#[derive(Deserialize)]
struct Text {
    value: String,
}

#[derive(Deserialize)]
struct Condition {
    key: String,
    #[serde(default)]
    values: Items<Text>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(default)]
    statement_id: String,
    #[serde(default)]
    actions: Items<Text>,
    #[serde(default)]
    resources: Items<Text>,
    #[serde(default)]
    conditions: Items<Condition>,
}

#[derive(Deserialize)]
struct Asked {
    action: String,
    resource: String,
    #[serde(default)]
    conditions: Items<Condition>,
}

/// As AWS's example has it ("decode-authorization-message", AWS CLI reference).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decoded {
    explicit_deny: bool,
    #[serde(default)]
    matched_statements: Items<Statement>,
    context: Asked,
}

/// The statement comes first: where there is little room, the end is cut.
fn with_decoded(said: &str, message: &str) -> String {
    let decoded: Decoded = match serde_json::from_str(message) {
        Ok(decoded) => decoded,
        Err(error) => {
            let message = words::cut(message, MOST);
            return format!("{said}; the answer to {DECODE} is not as expected ({error}): {message}");
        }
    };
    let asked = &decoded.context;
    if decoded.explicit_deny && !decoded.matched_statements.items.is_empty() {
        let statements = decoded.matched_statements.items.iter().map(|statement| denying(statement, asked));
        let statements: Vec<String> = statements.collect();
        return format!("denied by {}: {said}", words::list(&statements, ", and by ", 0, 2 * MOST));
    }
    let keys: Vec<String> = asked.conditions.items.iter().map(|Condition { key, values }| says(key, values)).collect();
    let nothing = if decoded.explicit_deny { "AWS names no statement that denies" } else { "nothing allows" };
    format!(
        "{said}; {nothing} {} on {} with {}",
        words::cut(&asked.action, MOST),
        words::cut(&asked.resource, MOST),
        words::list(&keys, ", ", 0, MOST)
    )
}

/// A statement, and what of the request its conditions look at.
fn denying(statement: &Statement, asked: &Asked) -> String {
    let name = match statement.statement_id.as_str() {
        "" => {
            let of =
                |texts: &Items<Text>| texts.items.iter().map(|text| text.value.clone()).collect::<Vec<_>>().join(" ");
            let (actions, resources) = (of(&statement.actions), of(&statement.resources));
            format!(
                "a statement without Sid ({} on {})",
                words::cut(&actions, MOST / 2),
                words::cut(&resources, MOST / 2)
            )
        }
        sid => format!("statement {}", words::cut(sid, MOST / 2)),
    };
    let conditions = statement.conditions.items.iter().map(|Condition { key, values }| {
        let same = |condition: &&Condition| condition.key.eq_ignore_ascii_case(key);
        let has = match asked.conditions.items.iter().find(same) {
            Some(Condition { key, values }) => format!("the request has {}", says(key, values)),
            None => format!("the request has no {key}"),
        };
        format!("its condition is on {}, and {has}", says(key, values))
    });
    let conditions: Vec<String> = conditions.collect();
    if conditions.is_empty() { name } else { format!("{name} ({})", words::list(&conditions, "; ", 0, MOST)) }
}

fn says(key: &str, values: &Items<Text>) -> String {
    let values: Vec<String> = values.items.iter().map(|text| text.value.clone()).collect();
    format!("{key} = {}", words::list(&values, " ", 0, MOST / 2))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(explicit: bool, statements: &serde_json::Value) -> String {
        json!({
            "allowed": false,
            "explicitDeny": explicit,
            "matchedStatements": { "items": statements },
            "failures": { "items": [] },
            "context": {
                "principal": { "id": "AROA123456789EXAMPLE:nightly", "arn": "arn:aws:sts::222222222222:assumed-role/x/y" },
                "action": "RunInstances",
                "resource": "arn:aws:ec2:eu-west-1:222222222222:instance/*",
                "conditions": { "items": [
                    { "key": "ec2:MetadataHttpTokens", "values": { "items": [{ "value": "optional" }] } },
                    { "key": "ec2:InstanceType", "values": { "items": [{ "value": "t3.micro" }] } }
                ] }
            }
        })
        .to_string()
    }

    fn statement(sid: &str, key: &str, value: &str) -> serde_json::Value {
        json!({
            "statementId": sid, "effect": "DENY",
            "principals": { "items": [{ "value": "AROA123456789EXAMPLE" }] }, "principalGroups": { "items": [] },
            "actions": { "items": [{ "value": "ec2:RunInstances" }] }, "resources": { "items": [{ "value": "*" }] },
            "conditions": { "items": [{ "key": key, "values": { "items": [{ "value": value }] } }] }
        })
    }

    #[test]
    fn the_statement_that_denied_is_named_with_what_its_conditions_saw() {
        let two = json!([
            statement("RequireImdsV2", "ec2:metadatahttptokens", "required"),
            statement("", "aws:RequestTag/team", "true")
        ]);
        assert_eq!(
            with_decoded("AWS's words", &message(true, &two)),
            "denied by statement RequireImdsV2 (its condition is on ec2:metadatahttptokens = required, and the request has \
             ec2:MetadataHttpTokens = optional), and by a statement without Sid (ec2:RunInstances on *) (its condition is \
             on aws:RequestTag/team = true, and the request has no aws:RequestTag/team): AWS's words"
        );
    }

    #[test]
    fn where_nothing_allowed_action_resource_and_keys_are_named() {
        assert_eq!(
            with_decoded("AWS's words", &message(false, &json!([]))),
            "AWS's words; nothing allows RunInstances on arn:aws:ec2:eu-west-1:222222222222:instance/* with \
             ec2:MetadataHttpTokens = optional, ec2:InstanceType = t3.micro"
        );
    }

    #[test]
    fn what_aws_decodes_has_an_end_however_much_it_is() {
        let long = "x\"".repeat(4_000);
        let many: Vec<_> = (0..200).map(|n| statement(&format!("{n}{long}"), &long, &long)).collect();
        for message in [message(true, &json!(many)), message(false, &json!(many)), long.clone(), "{}".to_owned()] {
            let reason = with_decoded("AWS's words", &message);
            assert!(json!(reason).to_string().len() < 2_500 && reason.contains("AWS's words"), "{reason}");
        }
    }
}
