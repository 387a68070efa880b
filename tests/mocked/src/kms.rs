//! Answers of KMS for keys of a source account: their policies, and ami-share's grants on them.

use ami_share_core::{
    arns::{account_root, role_arn},
    ids::{AccountId, KeyArn},
    key_policy::KeyPolicy,
};
use serde_json::{Value, json};

use crate::{Answer, Call};

/// A key, and whom ami-share has given its use.
#[derive(Debug, Clone)]
pub struct SharedKey {
    pub arn: &'static str,
    /// Accounts in the statements of its policy.
    pub by_policy: Vec<&'static str>,
    /// Accounts with a grant.
    pub by_grant: Vec<&'static str>,
}

/// What KMS answers of `keys`; nothing of calls that are about something else.
pub fn answer(keys: &[SharedKey], call: &Call) -> Option<Answer> {
    if call.service != "kms" {
        return None;
    }
    let Some(key) = keys.iter().find(|key| key.arn == call.text("KeyId")) else {
        return Some(Err("NotFoundException"));
    };
    match call.operation.as_str() {
        "GetKeyPolicy" => Some(Ok(json!({ "Policy": policy(key) }).to_string())),
        "ListGrants" => {
            let grants = key.by_grant.iter().map(|account| grant(key, account));
            let asked = |grant: &Value| grant["GranteePrincipal"] == call.arguments["GranteePrincipal"];
            Some(Ok(json!({ "Grants": grants.filter(asked).collect::<Vec<Value>>(), "Truncated": false }).to_string()))
        }
        _ => None,
    }
}

fn policy(key: &SharedKey) -> String {
    let arn = KeyArn::parse(key.arn).unwrap();
    let administrators = json!({ "Effect": "Allow", "Principal": { "AWS": account_root(&arn.account_id(), &arn.region()) }, "Action": "kms:*", "Resource": "*" });
    let administrators = json!({ "Version": "2012-10-17", "Statement": [administrators] });
    let before = KeyPolicy::parse(&arn, &administrators.to_string()).unwrap();
    let accounts: Vec<AccountId> = key.by_policy.iter().map(|account| AccountId::parse(*account).unwrap()).collect();
    let with = if accounts.is_empty() { None } else { before.with(&accounts).unwrap() };
    with.unwrap_or(before).to_text().unwrap()
}

/// As ami-share makes it.
fn grant(key: &SharedKey, account: &str) -> Value {
    let arn = KeyArn::parse(key.arn).unwrap();
    json!({
        "GrantId": format!("grant-of-{account}"),
        "Name": format!("ami-share-{account}"),
        "GranteePrincipal": account_root(&AccountId::parse(account).unwrap(), &arn.region()),
        "RetiringPrincipal": role_arn(&arn.account_id(), &arn.region(), "SOURCE_ROLE_NAME"),
        "Operations": [
            "CreateGrant", "Decrypt", "DescribeKey", "Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext",
            "ReEncryptFrom", "ReEncryptTo",
        ],
    })
}
