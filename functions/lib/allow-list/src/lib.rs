//! Whether accounts may be targets: the lists of the hub stack, and, for an account that is not listed itself,
//! what AWS Organizations says of it.
//!
//! Every doubt is a refusal: an account that Organizations does not know, that is not ACTIVE, or whose
//! organizational units cannot be followed to the root is not allowed, and where Organizations does not answer
//! nobody is.

#![warn(missing_docs)]

use std::collections::HashMap;

use ami_share_core::{
    Error, Hub,
    allow_list::AllowList,
    aws,
    error::RefusedTarget,
    ids::{AccountId, ExecutionName, KeyArn, OrganizationId, OrganizationalUnitId},
    key_policy::{GRANT_SID, KeyPolicy, USE_SID},
};
use aws_sdk_organizations::{
    Client,
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    types::AccountState,
};
use futures_util::{StreamExt, stream};

/// All that Organizations is asked.
pub const ACTIONS: [&str; 2] = [DESCRIBE_ACCOUNT, LIST_PARENTS];

const DESCRIBE_ACCOUNT: &str = "organizations:DescribeAccount";
const LIST_PARENTS: &str = "organizations:ListParents";

/// How many accounts are asked about at a time: all callers of an organization share the rate of its calls.
const CONCURRENCY: usize = 4;

/// Units nest five deep ("Quotas for AWS Organizations", Organizations user guide).
const DEEPEST: usize = 10;

/// Refuses to put the statements of `policy`, the policy of `key`, right where that would give somebody access who may not
/// be a target, besides `accounts`, which were looked at.
///
/// # Errors
/// [`Error::KeyPolicyConflict`] with every account that is not allowed, and why; whatever else [`check`] answers.
pub async fn check_revived(
    hub: &Hub,
    execution: &ExecutionName,
    key: &KeyArn,
    policy: &KeyPolicy,
    accounts: &[AccountId],
) -> Result<(), Error> {
    let revived = policy.revived();
    match check(hub, execution, revived.iter().filter(|account| !accounts.contains(account))).await {
        Err(refusal @ Error::TargetNotAllowed { .. }) => Err(Error::KeyPolicyConflict {
            key: key.clone(),
            reason: format!(
                "its statements {USE_SID} and {GRANT_SID} have the kms:ViaService of another Region or endpoint, and putting \
                 that right would give accounts access that they do not have; take them out of these statements, or allow \
                 them: {refusal}"
            ),
        }),
        checked => checked,
    }
}

/// Asks about the accounts that are not on the list of accounts: one DescribeAccount for each, and, where units
/// are allowed, ListParents upwards, once for each unit. Nothing is asked where every account is listed, or where
/// neither an organization nor a unit is allowed.
///
/// # Errors
/// [`Error::TargetNotAllowed`] with every account that is not allowed, and why; [`Error::AccessDenied`] where
/// Organizations may not be asked.
pub async fn check<'a>(
    hub: &Hub,
    execution: &ExecutionName,
    accounts: impl IntoIterator<Item = &'a AccountId>,
) -> Result<(), Error> {
    let list = &hub.settings.allow_list;
    let unlisted = list.unlisted(accounts)?;
    if unlisted.is_empty() {
        return Ok(());
    }
    let (account, config) = hub.as_organizations_reader(execution, &ACTIONS).await?;
    let mut organization = Organization { client: Client::new(&config), account, parents: HashMap::new() };
    let found: Vec<Result<Found, Error>> =
        stream::iter(&unlisted).map(|account| organization.find(account, list)).buffered(CONCURRENCY).collect().await;
    let mut refused = Vec::new();
    for (account_id, found) in unlisted.into_iter().zip(found) {
        let reason = match found? {
            Found::Allowed => None,
            Found::Refused(reason) => Some(reason),
            Found::In(unit) if organization.is_inside(&unit, list).await? => None,
            Found::In(_) => Some("in no organizational unit that is allowed".to_owned()),
        };
        match reason {
            Some(_) => refused.push(RefusedTarget { account_id, reason }),
            None => tracing::info!(account = %account_id, "allowed as a member of an organization"),
        }
    }
    if refused.is_empty() { Ok(()) } else { Err(list.refusal(refused)) }
}

/// What is known of an account without following its unit.
enum Found {
    Allowed,
    Refused(String),
    In(OrganizationalUnitId),
}

/// The one organization that answers.
struct Organization {
    client: Client,
    /// The account that asks.
    account: AccountId,
    /// The units above units; nothing above a unit that is right below the root, or that is gone.
    parents: HashMap<OrganizationalUnitId, Option<OrganizationalUnitId>>,
}

impl Organization {
    async fn find(&self, account: &AccountId, list: &AllowList) -> Result<Found, Error> {
        let answer = match self.client.describe_account().account_id(account.as_str()).send().await {
            Ok(answer) => answer.account.unwrap_or_else(|| aws_sdk_organizations::types::Account::builder().build()),
            Err(error) if error.code() == Some("AccountNotFoundException") => {
                let reason = format!("not in the organization that account {} may ask about", self.account);
                return Ok(Found::Refused(reason));
            }
            Err(error) => return Err(self.failure(DESCRIBE_ACCOUNT, error)),
        };
        // `Status`, which says less, is retired since September 2026 (Organizations API reference, Account).
        if answer.state() != Some(&AccountState::Active) {
            let state = answer.state().map_or("unknown", AccountState::as_str);
            return Ok(Found::Refused(format!("its state is {state}")));
        }
        match answer.arn().and_then(|arn| organization_of(arn, account)) {
            Some(organization) if list.allows_organization(&organization) => Ok(Found::Allowed),
            Some(organization) if !list.has_units() => {
                Ok(Found::Refused(format!("in the organization {organization}, which is not allowed")))
            }
            Some(_) => Ok(match self.parent(account.as_str()).await? {
                Some(unit) => Found::In(unit),
                None => Found::Refused("in no organizational unit".to_owned()),
            }),
            None => Err(Error::Unavailable {
                account: self.account.clone(),
                call: DESCRIBE_ACCOUNT,
                source: Some(format!("the answer holds no ARN of account {account}").into()),
            }),
        }
    }

    /// Whether `unit` or one above it is allowed.
    async fn is_inside(&mut self, unit: &OrganizationalUnitId, list: &AllowList) -> Result<bool, Error> {
        let mut unit = unit.clone();
        for _ in 0..DEEPEST {
            if list.allows_unit(&unit) {
                return Ok(true);
            }
            let parent = match self.parents.get(&unit) {
                Some(known) => known.clone(),
                None => {
                    let parent = self.parent(unit.as_str()).await?;
                    self.parents.insert(unit, parent.clone());
                    parent
                }
            };
            match parent {
                Some(parent) => unit = parent,
                None => return Ok(false),
            }
        }
        Ok(false)
    }

    /// The unit that an account or a unit is in; nothing where it is right below the root, or has been moved out
    /// of the organization meanwhile. There is one parent, but a page of the answer may be empty before the one
    /// that has it (Organizations API reference, ListParents).
    async fn parent(&self, child: &str) -> Result<Option<OrganizationalUnitId>, Error> {
        let mut pages = self.client.list_parents().child_id(child).into_paginator().send();
        while let Some(page) = pages.next().await {
            match page {
                Ok(page) => {
                    if let Some(parent) = page.parents().first() {
                        return Ok(parent.id().and_then(|id| OrganizationalUnitId::parse(id).ok()));
                    }
                }
                Err(error) if error.code() == Some("ChildNotFoundException") => return Ok(None),
                Err(error) => return Err(self.failure(LIST_PARENTS, error)),
            }
        }
        Ok(None)
    }

    fn failure<E>(&self, call: &'static str, error: SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let remedy = "only an organization's management account and its delegated administrators may ask about its \
                      accounts: deploy accounts/organization.yaml in one of them, and give its role to the hub stack \
                      as OrganizationsRoleArn";
        let no_organization = error.code() == Some("AWSOrganizationsNotInUseException");
        match aws::failure(&self.account, call, error) {
            Error::AccessDenied { account, call, reason, source } => {
                Error::AccessDenied { reason: format!("{reason}; {remedy}"), account, call, source }
            }
            Error::Aws { account, call, source, .. } if no_organization => {
                Error::AccessDenied { reason: format!("it is in no organization; {remedy}"), account, call, source }
            }
            other => other,
        }
    }
}

/// The organization in the ARN of `account`, `arn:aws:organizations::<management account>:account/<organization>/<account>`
/// (Organizations API reference, Account).
fn organization_of(arn: &str, account: &AccountId) -> Option<OrganizationId> {
    let parts: Vec<&str> = arn.split(':').collect();
    let ["arn", _, "organizations", "", _, resource] = parts.as_slice() else { return None };
    let (organization, id) = resource.strip_prefix("account/")?.split_once('/')?;
    OrganizationId::parse(organization).ok().filter(|_| id == account.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_organization_is_read_from_the_accounts_own_arn_only() {
        let account = AccountId::parse("444444444444").unwrap();
        let of = |arn: &str| organization_of(arn, &account).map(String::from);
        let arn = "arn:aws:organizations::999999999999:account/o-a1b2c3d4e5/444444444444";
        assert_eq!(of(arn).as_deref(), Some("o-a1b2c3d4e5"));
        for other in [
            "",
            "arn:aws:organizations::999999999999:account/o-a1b2c3d4e5/555555555555",
            "arn:aws:organizations::999999999999:account/o-a1b2c3d4e5",
            "arn:aws:organizations::999999999999:organization/o-a1b2c3d4e5",
            "arn:aws:organizations::999999999999:account/o-*/444444444444",
            "arn:aws:iam::999999999999:account/o-a1b2c3d4e5/444444444444",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
