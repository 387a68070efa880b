//! The grants that give targets the use of a key whose policy is not touched: one for each key and
//! target, to the target's account.
//!
//! A grant is ours when all of it is as ami-share makes it, its retiring principal too. So one that
//! somebody else made under the same name is never taken for ours.
//!
//! And the tag of keys that may be shared, which limits both ways.

#![warn(missing_docs)]

mod foreign;
mod tag;

use std::collections::BTreeSet;

use ami_share_core::{
    Error,
    arns::account_root,
    aws,
    ids::{AccountId, KeyArn},
    key_policy::account_in,
    take_back::PassedOn,
};
use aws_sdk_kms::{
    Client,
    types::{GrantConstraints, GrantListEntry, GrantOperation},
};

pub use foreign::{Foreign, GET_KEY_POLICY, foreign_grants, issuers, that_stay};
pub use tag::{LIST_TAGS, SHAREABLE_TAG, is_shareable, tags};

/// What finding grants calls in the source account.
pub const LIST_GRANTS: &str = "kms:ListGrants";

const NAME_PREFIX: &str = "ami-share-";

/// Those of AWS's one example of a grant for launches, which is for Auto Scaling ("Required AWS KMS key policy for use with
/// encrypted volumes", EC2 Auto Scaling user guide). A grant made from a grant allows no more than that one
/// ("Creating grants", KMS developer guide), and of those that EC2 makes of it in a launch only one is documented.
const OPERATIONS: [&str; 8] = [
    "CreateGrant",
    "Decrypt",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
];

/// Those of the grants that earlier versions made: what EC2 calls in the name of whoever launches. They stay ours.
const EARLIER_OPERATIONS: [&str; 5] =
    ["CreateGrant", "Decrypt", "DescribeKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom"];

/// A grant of ours on `key`, as it is or should be.
#[derive(Debug, Clone, Copy)]
pub struct KeyGrant<'a> {
    /// In the source account.
    pub key: &'a KeyArn,
    /// The target.
    pub account: &'a AccountId,
    /// The source account's role: whom the grant names as the one who may retire it.
    pub retiring: &'a str,
}

impl KeyGrant<'_> {
    /// With a name, KMS answers a second kms:CreateGrant that is the same with the same grant
    /// ("CreateGrant", KMS API reference).
    pub fn name(&self) -> String {
        format!("{NAME_PREFIX}{}", self.account)
    }

    /// The target's account, which lets its own principals use the grant, as it does with a statement
    /// of a key policy.
    pub fn grantee(&self) -> String {
        account_root(self.account, &self.key.region())
    }

    /// What a grant that is made now allows.
    pub fn operations() -> Vec<GrantOperation> {
        OPERATIONS.map(GrantOperation::from).to_vec()
    }

    /// Whether a grant of ours allows what one allows that is made now. It takes the place of one that an earlier version
    /// made, which stays until both are taken back: what runs by it must not lose it before the new one works.
    pub fn is_of_this_version(grant: &GrantListEntry) -> bool {
        allowed(grant) == BTreeSet::from(OPERATIONS)
    }

    /// The grants of ours that are there, those of earlier versions too. One is usual; KMS may have made another where it
    /// did not see the first one yet.
    ///
    /// # Errors
    /// Whatever AWS answers.
    pub async fn find(&self, kms: &Client) -> Result<Vec<GrantListEntry>, Error> {
        let mut grants = to_account(kms, self.key, self.account).await?;
        grants.retain(|grant| self.is(grant));
        Ok(grants)
    }

    fn is(&self, grant: &GrantListEntry) -> bool {
        let operations = allowed(grant);
        grant.name() == Some(self.name().as_str())
            && grant.grantee_principal() == Some(self.grantee().as_str())
            && grant.retiring_principal().is_some_and(|principal| self.is_retiring(principal))
            && grant.constraints().is_none_or(is_empty)
            && (operations == BTreeSet::from(OPERATIONS) || operations == BTreeSet::from(EARLIER_OPERATIONS))
    }

    fn is_retiring(&self, principal: &str) -> bool {
        principal == self.retiring || is_unique_id(principal)
    }
}

fn allowed(grant: &GrantListEntry) -> BTreeSet<&str> {
    grant.operations().iter().map(GrantOperation::as_str).collect()
}

/// KMS names a role by its unique id while it does not know it yet, and when it was deleted ("IAM
/// identifiers", IAM user guide).
fn is_unique_id(principal: &str) -> bool {
    principal.starts_with("AROA")
}

/// What ends a grant on `key` whose retiring principal was deleted: a role that was made again under its name is another
/// one, and may not retire it. Nothing for a grant that names its retiring principal.
pub fn only_administrators_end(key: &KeyArn, grant: &GrantListEntry) -> Option<String> {
    grant
        .retiring_principal()
        .filter(|principal| is_unique_id(principal))
        .map(|_| revoke_command(key, grant.grant_id().unwrap_or_default()))
}

/// What an administrator of `key` ends a grant with.
pub fn revoke_command(key: &KeyArn, grant_id: &str) -> String {
    format!("aws kms revoke-grant --region {} --key-id {} --grant-id {grant_id}", key.region(), key.key_id())
}

/// Who made `grant` and what it is for, where that was not the account of `key`.
pub fn passed_on(key: &KeyArn, grant: &GrantListEntry) -> Option<(AccountId, PassedOn)> {
    let issuer = grant.issuing_account().and_then(account_in).filter(|issuer| *issuer != key.account_id())?;
    let grantee = grant.grantee_principal().unwrap_or_default();
    let kind = if grantee.contains(":assumed-role/aws:ec2-infrastructure/") && is_for_a_volume(grant) {
        PassedOn::Ebs
    } else if grantee.contains(":role/aws-service-role/") {
        PassedOn::ServiceLinkedRole
    } else if grantee.ends_with(".amazonaws.com") && !grantee.contains('/') {
        PassedOn::Service
    } else {
        PassedOn::Other
    };
    Some((issuer, kind))
}

fn is_for_a_volume(grant: &GrantListEntry) -> bool {
    let constraints = grant.constraints();
    let contexts = constraints.map(|all| [all.encryption_context_subset(), all.encryption_context_equals()]);
    contexts.into_iter().flatten().flatten().any(|context| context.contains_key("aws:ebs:id"))
}

fn is_empty(constraints: &GrantConstraints) -> bool {
    *constraints == GrantConstraints::builder().build()
}

/// The account that `grant` on `key` gives the use of it, if the grant is ours.
pub fn target_of(key: &KeyArn, retiring: &str, grant: &GrantListEntry) -> Option<AccountId> {
    let account = AccountId::parse(grant.name()?.strip_prefix(NAME_PREFIX)?).ok()?;
    KeyGrant { key, account: &account, retiring }.is(grant).then_some(account)
}

/// `error` of a call that has to do with the grants on `key`, with what to do where it was refused.
pub fn explained(key: &KeyArn, error: Error) -> Error {
    match error {
        Error::AccessDenied { account, call, reason, source } => Error::AccessDenied {
            reason: format!(
                "{reason}; for keyAccess grant, the policy of key {key} must let IAM of account {account} decide about \
                 kms:CreateGrant and {LIST_GRANTS}, or allow them to the role that ami-share assumes there, \
                 and no statement may deny them"
            ),
            account,
            call,
            source,
        },
        other => other,
    }
}

/// Every grant on `key` to `account` itself, whoever made it.
///
/// # Errors
/// Whatever AWS answers.
pub async fn to_account(kms: &Client, key: &KeyArn, account: &AccountId) -> Result<Vec<GrantListEntry>, Error> {
    list(kms, key, Some(account_root(account, &key.region()))).await
}

/// Every grant on `key`, whoever made it for whom: one call for each hundred.
///
/// # Errors
/// Whatever AWS answers.
pub async fn all(kms: &Client, key: &KeyArn) -> Result<Vec<GrantListEntry>, Error> {
    list(kms, key, None).await
}

async fn list(kms: &Client, key: &KeyArn, grantee: Option<String>) -> Result<Vec<GrantListEntry>, Error> {
    let mut pages = kms
        .list_grants()
        .key_id(key.as_str())
        .set_grantee_principal(grantee)
        .into_paginator()
        .page_size(100)
        .items()
        .send();
    let mut grants = Vec::new();
    while let Some(grant) = pages.next().await {
        grants.push(grant.map_err(|error| explained(key, aws::failure(&key.account_id(), LIST_GRANTS, error)))?);
    }
    Ok(grants)
}

#[cfg(test)]
mod tests {
    use ami_share_core::key_actions::SOURCE_KEY_ACTIONS;

    use super::*;

    #[test]
    fn grants_that_others_made_are_told_apart_by_what_they_are_for() {
        let key = KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1").unwrap();
        let of_volume = GrantConstraints::builder().encryption_context_subset("aws:ebs:id", "vol-0123abcd").build();
        let infrastructure = "arn:aws:sts::222222222222:assumed-role/aws:ec2-infrastructure/i-0123abcd";
        for (grantee, constraints, kind) in [
            (infrastructure, Some(of_volume), PassedOn::Ebs),
            (infrastructure, None, PassedOn::Other),
            (
                "arn:aws:iam::222222222222:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling",
                None,
                PassedOn::ServiceLinkedRole,
            ),
            ("rds.eu-west-1.amazonaws.com", None, PassedOn::Service),
            ("arn:aws:iam::333333333333:root", None, PassedOn::Other),
        ] {
            let grant = |issuer: &str| {
                let grant = GrantListEntry::builder().grantee_principal(grantee).set_constraints(constraints.clone());
                grant.issuing_account(issuer).build()
            };
            let target = AccountId::parse("222222222222").unwrap();
            assert_eq!(passed_on(&key, &grant("arn:aws:iam::222222222222:root")), Some((target, kind)), "{grantee}");
            assert_eq!(passed_on(&key, &grant("111111111111")), None, "{grantee}");
        }
    }

    const ROLE: &str = "arn:aws:iam::111111111111:role/AmiShareSource";

    #[test]
    fn a_grant_is_ours_only_when_all_of_it_is() {
        let key = KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1").unwrap();
        let account = AccountId::parse("222222222222").unwrap();
        let ours = KeyGrant { key: &key, account: &account, retiring: ROLE };
        let listed = || {
            GrantListEntry::builder()
                .name("ami-share-222222222222")
                .grantee_principal("arn:aws:iam::222222222222:root")
                .retiring_principal(ROLE)
                .set_operations(Some(KeyGrant::operations()))
        };
        assert!(ours.is(&listed().build()));
        assert_eq!(target_of(&key, ROLE, &listed().build()).as_ref(), Some(&account));
        assert_eq!(target_of(&key, ROLE, &listed().name("ami-share-333333333333").build()), None);
        let backwards = KeyGrant::operations().into_iter().rev().collect();
        assert!(ours.is(&listed().set_operations(Some(backwards)).build()));
        assert!(ours.is(&listed().constraints(GrantConstraints::builder().build()).build()));
        assert!(
            ours.is(&listed().retiring_principal("AROAEXAMPLEID").build()),
            "KMS does not know the role's name yet"
        );
        for other in [
            listed().name("by-hand"),
            listed().set_name(None),
            listed().grantee_principal("arn:aws:iam::222222222222:role/app"),
            listed().set_retiring_principal(None),
            listed().retiring_principal("arn:aws:iam::111111111111:role/other"),
            listed().operations(GrantOperation::Sign),
            listed().set_operations(Some(vec![GrantOperation::Decrypt])),
            listed().constraints(GrantConstraints::builder().encryption_context_subset("a", "b").build()),
        ] {
            assert!(!ours.is(&other.clone().build()), "{other:?}");
        }
    }

    #[test]
    fn a_grant_of_an_earlier_version_is_ours_and_is_not_all_that_one_is_now() {
        let key = KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1").unwrap();
        let account = AccountId::parse("222222222222").unwrap();
        let listed = |operations: &[&str]| {
            GrantListEntry::builder()
                .name("ami-share-222222222222")
                .grantee_principal("arn:aws:iam::222222222222:root")
                .retiring_principal(ROLE)
                .set_operations(Some(operations.iter().map(|name| GrantOperation::from(*name)).collect()))
                .build()
        };
        for (operations, of_this_version) in [(&OPERATIONS[..], true), (&EARLIER_OPERATIONS[..], false)] {
            let grant = listed(operations);
            assert_eq!(target_of(&key, ROLE, &grant).as_ref(), Some(&account), "{operations:?}");
            assert_eq!(KeyGrant::is_of_this_version(&grant), of_this_version, "{operations:?}");
        }
        assert_eq!(target_of(&key, ROLE, &listed(&OPERATIONS[1..])), None, "neither");
    }

    #[test]
    fn a_grant_allows_all_that_ec2_calls_in_the_name_of_whoever_launches() {
        for operations in [&OPERATIONS[..], &EARLIER_OPERATIONS[..]] {
            for action in SOURCE_KEY_ACTIONS {
                assert!(operations.contains(&action.trim_start_matches("kms:")), "{action}");
            }
        }
    }

    #[test]
    fn every_operation_is_one_that_the_sdk_knows() {
        let known = GrantOperation::values();
        assert!(OPERATIONS.iter().chain(&EARLIER_OPERATIONS).all(|operation| known.contains(operation)));
    }
}
