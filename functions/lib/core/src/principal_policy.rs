//! The policies that let a principal of a target use keys: the target's own managed policy, or inline
//! ones (`principalAccess: "inline"`).
//!
//! An inline policy says of one key what the managed policy of `accounts/target.yaml` says of all the source
//! account's keys. Whether a principal has it is known by its name.

use serde_json::{Value, json};

use crate::{
    ids::{KeyArn, PrincipalKind},
    key_policy::{GRANT_ACTION, GRANT_SID, USE_ACTIONS, USE_SID},
    share::{PrincipalAccess, PrincipalChange},
};

/// What one call gives a principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrincipalPolicy {
    /// The target's managed policy, to be attached: for every key of the source account.
    Managed {
        /// Of the target, as `accounts/target.yaml` makes it.
        arn: String,
    },
    /// A policy for one key, to be put.
    Inline {
        /// By the key: see [`inline_policy_name`].
        name: String,
        /// The one key that it allows.
        key_arn: KeyArn,
    },
}

impl PrincipalPolicy {
    /// The call, as an IAM action.
    pub fn action(&self, kind: PrincipalKind) -> &'static str {
        match (self, kind) {
            (Self::Managed { .. }, PrincipalKind::Role) => "iam:AttachRolePolicy",
            (Self::Managed { .. }, PrincipalKind::User) => "iam:AttachUserPolicy",
            (Self::Inline { .. }, PrincipalKind::Role) => "iam:PutRolePolicy",
            (Self::Inline { .. }, PrincipalKind::User) => "iam:PutUserPolicy",
        }
    }
}

impl PrincipalChange {
    /// What the principal is given, one call for each; `managed` is the ARN of the target's policy.
    pub fn policies(&self, access: PrincipalAccess, managed: &str) -> Vec<PrincipalPolicy> {
        match access {
            PrincipalAccess::Attach => vec![PrincipalPolicy::Managed { arn: managed.to_owned() }],
            PrincipalAccess::Inline => self
                .key_arns
                .iter()
                .map(|key| PrincipalPolicy::Inline { name: inline_policy_name(key), key_arn: key.clone() })
                .collect(),
        }
    }
}

/// `AmiShare-<key id>`; the Region follows for a multi-Region key, whose id is the same in all of
/// its Regions.
pub fn inline_policy_name(key: &KeyArn) -> String {
    let id = key.key_id();
    if id.starts_with("mrk-") { format!("AmiShare-{id}-{}", key.region()) } else { format!("AmiShare-{id}") }
}

/// The document: the use of `key` by EC2 in its Region, and grants on it that EC2 makes.
pub fn inline_policy(key: &KeyArn) -> Value {
    let via = format!("ec2.{}.amazonaws.com", key.region());
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": USE_SID,
                "Effect": "Allow",
                "Action": USE_ACTIONS,
                "Resource": key,
                "Condition": { "StringEquals": { "kms:ViaService": via } },
            },
            {
                "Sid": GRANT_SID,
                "Effect": "Allow",
                "Action": GRANT_ACTION,
                "Resource": key,
                "Condition": {
                    "StringEquals": { "kms:ViaService": via },
                    "Bool": { "kms:GrantIsForAWSResource": "true" },
                },
            },
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(region: &str, id: &str) -> KeyArn {
        KeyArn::parse(format!("arn:aws:kms:{region}:111111111111:key/{id}")).unwrap()
    }

    #[test]
    fn a_policy_is_named_after_its_key() {
        assert_eq!(inline_policy_name(&key("eu-west-1", "1234-abcd")), "AmiShare-1234-abcd");
    }

    #[test]
    fn the_replicas_of_a_multi_region_key_have_policies_of_their_own() {
        assert_ne!(inline_policy_name(&key("eu-west-1", "mrk-12")), inline_policy_name(&key("us-east-1", "mrk-12")));
    }

    #[test]
    fn a_policy_allows_its_key_only_and_only_through_ec2_of_its_region() {
        let key = key("eu-west-1", "1234-abcd");
        let document = inline_policy(&key);
        let statements = document["Statement"].as_array().unwrap();
        assert_eq!(statements.len(), 2);
        for statement in statements {
            assert_eq!(statement["Resource"], key.as_str());
            assert_eq!(statement["Condition"]["StringEquals"]["kms:ViaService"], "ec2.eu-west-1.amazonaws.com");
        }
        assert_eq!(statements[1]["Action"], "kms:CreateGrant");
        assert_eq!(statements[1]["Condition"]["Bool"]["kms:GrantIsForAWSResource"], "true");
        assert!(document.to_string().len() < 2_048, "the limit of a user's inline policies");
    }
}
