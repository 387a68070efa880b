//! Encoded authorization failure messages: what EC2 adds to a refusal, and sts:DecodeAuthorizationMessage opens.

use crate::auth::{self, Caller, CallerKind, Context, Denied};
use crate::policy::Request;
use crate::world::World;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// The message of a refusal, encoded.
///
/// It is not to be read by whoever was refused, so its bytes are not those of the text.
pub(crate) fn encode(world: &World, caller: &Caller, denied: &Denied, context: &Context) -> String {
    let message = json!({ "account": caller.account, "message": message(world, caller, denied, context) });
    URL_SAFE_NO_PAD.encode(stirred(message.to_string().into_bytes()))
}

/// What [`encode`] was told. Nothing for what is no message, and for one of another account: AWS's documents do not say who
/// else might decode it.
pub(crate) fn decode(account: &str, encoded: &str) -> Option<String> {
    let message: Value = serde_json::from_slice(&stirred(URL_SAFE_NO_PAD.decode(encoded).ok()?)).ok()?;
    (message["account"] == account).then(|| message["message"].to_string())
}

fn stirred(bytes: Vec<u8>) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let stir = |byte| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        byte ^ state.to_be_bytes()[0]
    };
    bytes.into_iter().map(stir).collect()
}

/// As in the example of AWS's documents ("DecodeAuthorizationMessage", STS API reference and CLI examples).
fn message(world: &World, caller: &Caller, denied: &Denied, context: &Context) -> Value {
    let context = auth::full_context(world, caller, &denied.resource, context);
    let request = Request::new(&denied.action, &denied.resource, &context);
    let matched = auth::denying_statements(world, caller, &request, denied.by);
    let matched = matched.iter().map(|statement| matched_statement(caller, statement));
    let id = match (&caller.kind, &caller.session_name) {
        (CallerKind::Role, Some(session)) => format!("{}:{session}", caller.principal_id),
        _ => caller.principal_id.clone(),
    };
    let keys = context.iter().map(|(key, values)| json!({ "key": key, "values": items(values.iter().map(value)) }));
    json!({
        "allowed": false,
        "explicitDeny": denied.explicit,
        "matchedStatements": items(matched),
        "failures": items([]),
        "context": {
            "principal": { "id": id, "arn": caller.session_arn },
            "action": denied.action,
            "resource": denied.resource,
            "conditions": items(keys),
        },
    })
}

/// Conditions without their operators, as AWS shows them.
fn matched_statement(caller: &Caller, statement: &Value) -> Value {
    let listed = |name: &str| items(strings(&statement[name]).iter().map(value));
    let operators = statement["Condition"].as_object().into_iter().flatten();
    let conditions = operators.flat_map(|(_, keys)| keys.as_object().into_iter().flatten());
    let conditions =
        conditions.map(|(key, values)| json!({ "key": key, "values": items(strings(values).iter().map(value)) }));
    json!({
        "statementId": statement["Sid"].as_str().unwrap_or_default(),
        "effect": "DENY",
        "principals": items([value(&caller.principal_id)]),
        "principalGroups": items([]),
        "actions": listed("Action"),
        "resources": listed("Resource"),
        "conditions": items(conditions),
    })
}

fn items(items: impl IntoIterator<Item = Value>) -> Value {
    json!({ "items": items.into_iter().collect::<Vec<_>>() })
}

fn value(text: &String) -> Value {
    json!({ "value": text })
}

/// One text or a list of them.
fn strings(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Null => Vec::new(),
        Value::Array(values) => values.iter().map(text).collect(),
        single => vec![text(single)],
    }
}
