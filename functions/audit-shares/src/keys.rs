//! Who may use a key, as far as its policy and its grants name them.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, aws,
    ids::{AccountId, KeyArn},
    key_policy::{KeyPolicy, Others, account_in},
    share::Source,
    take_back::PassedOn,
};
use ami_share_key_grants::{all, is_shareable, only_administrators_end, passed_on, target_of};
use ami_share_key_policies::state;
use aws_sdk_kms::{Client, types::GrantListEntry};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::pace::CONCURRENCY;

pub(crate) const DESCRIBE_KEY: &str = "kms:DescribeKey";
pub(crate) const LIST_KEYS: &str = "kms:ListKeys";

/// How many calls it takes to look at a key, as long as its grants fit on a page.
pub(crate) const CALLS: usize = 4;

/// How an account may come to use a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Way {
    /// Both of ami-share's statements name it.
    AmiShareStatements,
    /// One of them does, which is of no use to it.
    OneAmiShareStatement,
    /// ami-share's grant to it is there.
    AmiShareGrant,
    /// Somebody else's statement that allows kms:Decrypt names it, or a principal of it.
    OthersStatement,
    /// Somebody else's grant of kms:Decrypt is to it, or to a principal of it.
    OthersGrant,
    /// Somebody else's statement names everybody; its conditions are not looked at.
    StatementForEverybody,
    /// The policy or the grants could not be read.
    NotRead,
}

impl Way {
    /// Whether it may be access to the key.
    pub(crate) fn is_access(self) -> bool {
        self != Self::OneAmiShareStatement
    }
}

/// What a key's policy and grants say.
#[derive(Debug, Default)]
pub(crate) struct KeyAccess {
    /// Accounts that both of our statements name.
    statements: BTreeSet<AccountId>,
    /// Accounts that one of our statements names.
    pub(crate) half: BTreeSet<AccountId>,
    /// Accounts with a grant of ours.
    grants: BTreeSet<AccountId>,
    /// Those of them whose grant ami-share cannot retire, with the command that ends it.
    pub(crate) not_retirable: BTreeMap<AccountId, String>,
    /// What is under ami-share's Sids and not as it writes it, and the accounts that it names.
    pub(crate) foreign: Vec<String>,
    pub(crate) foreign_accounts: BTreeSet<AccountId>,
    /// Why the key cannot be used, by its state.
    pub(crate) unusable: Option<String>,
    /// Of the grants that others than the source account made: what they are for, and how many.
    pub(crate) passed_on: BTreeMap<PassedOn, usize>,
    /// Those of them that are for neither EBS nor another service: who made each, for whom, and its id.
    pub(crate) given_on: Vec<GivenOn>,
    others: Others,
    others_grants: BTreeSet<AccountId>,
    /// Whether it has something of ours, and not the tag of keys that may be shared.
    pub(crate) untagged: bool,
    /// What else of it is not known, and why.
    pub(crate) unknown: Vec<String>,
    /// Why nothing of it is known.
    pub(crate) not_read: Option<String>,
}

/// A grant that somebody gave on who had the use of the key: it stays when that is taken back.
#[derive(Debug)]
pub(crate) struct GivenOn {
    pub(crate) issuer: AccountId,
    pub(crate) grantee: String,
    pub(crate) grant_id: String,
}

impl GivenOn {
    fn new(issuer: AccountId, grant: &GrantListEntry) -> Self {
        Self {
            issuer,
            grantee: grant.grantee_principal().unwrap_or_default().to_owned(),
            grant_id: grant.grant_id().unwrap_or_default().to_owned(),
        }
    }
}

impl KeyAccess {
    fn not_read(reason: impl ToString) -> Self {
        Self { not_read: Some(reason.to_string()), ..Self::default() }
    }

    fn add_second(&mut self, key: &KeyArn, text: Option<&str>) {
        match text.map(|text| KeyPolicy::parse(key, text)) {
            None => {}
            Some(Ok(policy)) => {
                let Others { accounts, everybody } = policy.others();
                self.others.accounts.extend(accounts);
                self.others.everybody |= everybody;
            }
            Some(Err(error)) => self.unknown.push(second_not_read(key, &error)),
        }
    }

    /// Accounts that ami-share's statements or grants give the use of the key.
    pub(crate) fn ours(&self) -> BTreeSet<&AccountId> {
        self.statements.iter().chain(&self.grants).collect()
    }

    fn has_ours(&self) -> bool {
        !self.statements.is_empty() || !self.half.is_empty() || !self.grants.is_empty()
    }

    pub(crate) fn ways(&self, account: &AccountId) -> Vec<Way> {
        let ways = [
            (Way::AmiShareStatements, self.statements.contains(account)),
            (Way::OneAmiShareStatement, self.half.contains(account)),
            (Way::AmiShareGrant, self.grants.contains(account)),
            (Way::OthersStatement, self.others.accounts.contains(account)),
            (Way::OthersGrant, self.others_grants.contains(account)),
            (Way::StatementForEverybody, self.others.everybody),
            (Way::NotRead, self.not_read.is_some()),
        ];
        ways.into_iter().filter_map(|(way, found)| found.then_some(way)).collect()
    }
}

/// What is known of each of `keys`.
pub(crate) async fn read(
    kms: &Client,
    source: &Source,
    retiring: &str,
    keys: impl IntoIterator<Item = KeyArn>,
) -> Result<BTreeMap<KeyArn, KeyAccess>, Error> {
    stream::iter(keys)
        .map(|key| async move {
            let access = read_one(kms, source, retiring, &key).await?;
            Ok::<_, Error>((key, access))
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await
}

/// A key that may not be looked at does not keep the others from being.
async fn read_one(kms: &Client, source: &Source, retiring: &str, key: &KeyArn) -> Result<KeyAccess, Error> {
    if key.account_id() != source.account_id {
        return Ok(KeyAccess::not_read(format!("it belongs to account {}", key.account_id())));
    }
    let policy = match ami_share_key_policies::find(kms, key).await {
        Ok(Some(text)) => KeyPolicy::parse(key, &text),
        Ok(None) => return Ok(KeyAccess::not_read("it is not there any more")),
        Err(error) => Err(error),
    };
    let grants = match &policy {
        Ok(_) => all(kms, key).await,
        Err(_) => Ok(vec![]),
    };
    let (policy, grants) = match (policy, grants) {
        (Ok(policy), Ok(grants)) => (policy, grants),
        (Err(error), _) | (_, Err(error)) => {
            return match error {
                Error::AccessDenied { .. } | Error::KeyPolicyConflict { .. } => Ok(KeyAccess::not_read(error)),
                error => Err(error),
            };
        }
    };
    let mut access = KeyAccess {
        statements: policy.accounts(),
        half: policy.half_named(),
        foreign: policy.foreign(),
        foreign_accounts: &policy.named() - &policy.accounts(),
        others: policy.others(),
        ..KeyAccess::default()
    };
    match state_problem(kms, key).await {
        Ok(problem) => access.unusable = problem,
        Err(error) if error.passes() => return Err(error),
        Err(error) => access.unknown.push(format!("the state of key {key}: {error}")),
    }
    match ami_share_key_policies::of_ram(kms, key).await {
        Ok(second) => access.add_second(key, second.as_deref()),
        Err(error) if error.passes() => return Err(error),
        Err(error) => access.unknown.push(second_not_read(key, &error)),
    }
    for grant in grants {
        if let Some((issuer, kind)) = passed_on(key, &grant) {
            *access.passed_on.entry(kind).or_default() += 1;
            if kind == PassedOn::Other {
                access.given_on.push(GivenOn::new(issuer, &grant));
            }
        }
        match target_of(key, retiring, &grant) {
            Some(account) => {
                if let Some(command) = only_administrators_end(key, &grant) {
                    access.not_retirable.insert(account.clone(), command);
                }
                access.grants.insert(account);
            }
            None if lets_decrypt(&grant) => {
                access.others_grants.extend(grant.grantee_principal().and_then(account_in));
            }
            None => {}
        }
    }
    if access.has_ours() {
        match is_shareable(kms, key).await {
            Ok(tagged) => access.untagged = !tagged,
            Err(error @ Error::AccessDenied { .. }) => {
                access.unknown.push(format!("the tags of key {key}: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(access)
}

fn second_not_read(key: &KeyArn, error: &Error) -> String {
    format!("the second policy of key {key}, which AWS RAM makes: {error}")
}

/// Why the key cannot be used, by its state.
async fn state_problem(kms: &Client, key: &KeyArn) -> Result<Option<String>, Error> {
    let described = kms.describe_key().key_id(key.as_str()).send().await;
    let answer = described.map_err(|error| ami_share_key_policies::failure(key, DESCRIBE_KEY, error))?;
    Ok(answer.key_metadata().and_then(|key| key.key_state()).and_then(state::problem))
}

/// EBS makes a grant for each volume that is attached, in the name of whoever launched the instance, to a role of
/// AWS's own in that account ("How Amazon EBS uses AWS KMS", KMS developer guide): that is use, and no access.
fn lets_decrypt(grant: &GrantListEntry) -> bool {
    let for_ec2 = grant.grantee_principal().is_some_and(|grantee| grantee.contains(":assumed-role/aws:"));
    !for_ec2 && grant.operations().iter().any(|operation| operation.as_str() == "Decrypt")
}

/// Every key of the source account in the Region.
pub(crate) async fn list(kms: &Client, source: &Source) -> Result<BTreeSet<KeyArn>, Error> {
    let mut pages = kms.list_keys().into_paginator().page_size(1000).items().send();
    let mut keys = BTreeSet::new();
    while let Some(key) = pages.next().await {
        let key = key.map_err(|error| aws::failure(&source.account_id, LIST_KEYS, error))?;
        keys.extend(key.key_arn().and_then(|arn| KeyArn::parse(arn).ok()));
    }
    Ok(keys)
}
