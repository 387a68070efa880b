//! UndoGrantPrincipals: takes back what GrantPrincipals was to give.

use std::collections::BTreeMap;

use ami_share_core::{
    Error, Hub,
    arns::policy_arn,
    hub::Actions,
    ids::{AccountId, PrincipalArn, PrincipalKind},
    principal_policy::inline_policy_name,
    share::PrincipalChange,
    take_back::{Taken, UndoInput, Undone},
};
use aws_sdk_iam::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::AttachedPolicy,
};

use crate::failure;

pub const UNDO_ACTIONS: Actions = Actions {
    target: &[
        DETACH_FROM_ROLE,
        DETACH_FROM_USER,
        DELETE_FROM_ROLE,
        DELETE_FROM_USER,
        "iam:ListAttachedRolePolicies",
        "iam:ListAttachedUserPolicies",
        "iam:ListRolePolicies",
        "iam:ListUserPolicies",
    ],
    ..Actions::NONE
};

const DETACH_FROM_ROLE: &str = "iam:DetachRolePolicy";
const DETACH_FROM_USER: &str = "iam:DetachUserPolicy";
const DELETE_FROM_ROLE: &str = "iam:DeleteRolePolicy";
const DELETE_FROM_USER: &str = "iam:DeleteUserPolicy";

/// Detaches the policy from, or deletes the inline policies of, exactly the principals that are named. A policy or
/// principal that is not there is as good as taken back; one principal that fails does not keep the others from being
/// tried. To one that only AWS may change nothing was given.
///
/// # Errors
/// [`Error::AccessDenied`], and whatever else IAM refuses with.
#[tracing::instrument(skip_all, fields(execution = %input.execution, account = %input.target.account_id))]
pub async fn undo_grant_principals(hub: &Hub, input: UndoInput) -> Result<Undone, Error> {
    let UndoInput { execution, source, target } = &input;
    if target.principal_changes.is_empty() {
        return Ok(Undone::default());
    }
    let account = &target.account_id;
    let config = hub.as_target(account, &source.region, execution, UNDO_ACTIONS).await?;
    let iam = Client::new(&config);
    let managed = &hub.settings.key_access_policy;
    let managed_arn = policy_arn(account, &source.region, managed);
    let (mut lost, mut errors) = (Lost::default(), Vec::new());
    for PrincipalChange { principal, key_arns } in &target.principal_changes {
        if key_arns.is_empty() {
            match detach(&iam, account, principal, &managed_arn).await {
                Ok(call) => lost.add(call, managed, principal),
                Err(error) if was_refused(&error) && lacks_attached(&iam, principal, &managed_arn).await => {}
                Err(error) => errors.push(error),
            }
        }
        for name in key_arns.iter().map(inline_policy_name) {
            match delete(&iam, account, principal, &name).await {
                Ok(call) => lost.add(call, &name, principal),
                Err(error) if was_refused(&error) && lacks_inline(&iam, principal, &name).await => {}
                Err(error) => errors.push(error),
            }
        }
    }
    Error::all_of(errors)?;
    Ok(Undone { taken: lost.by(account) })
}

/// The principals that lost a policy, by the call and the policy's name: IAM has no call for several principals, and
/// a report has no room for each.
#[derive(Default)]
struct Lost(BTreeMap<(&'static str, String), Vec<String>>);

impl Lost {
    fn add(&mut self, call: Option<&'static str>, policy: &str, principal: &PrincipalArn) {
        let Some(call) = call else { return };
        // `role/...`, since the account is said once.
        let resource = principal.as_str().splitn(6, ':').nth(5).unwrap_or_default();
        self.0.entry((call, policy.to_owned())).or_default().push(resource.to_owned());
    }

    fn by(self, account: &AccountId) -> Vec<Taken> {
        let taken = self.0.into_iter().map(|((call, resource), from)| Taken {
            call: call.to_owned(),
            account_id: account.clone(),
            resource,
            from,
        });
        taken.collect()
    }
}

/// Where the target's owner lets ami-share take nothing away, it could give nothing either: then a
/// look tells whether there is anything to take back. It is not looked at first, because a list may
/// lack for some seconds what was just given.
fn was_refused(error: &Error) -> bool {
    matches!(error, Error::AccessDenied { .. })
}

/// The call, where there was something to detach.
async fn detach(
    iam: &Client,
    account: &AccountId,
    principal: &PrincipalArn,
    policy: &str,
) -> Result<Option<&'static str>, Error> {
    let call = match principal.kind() {
        PrincipalKind::Role => {
            let call = iam.detach_role_policy().role_name(principal.name()).policy_arn(policy);
            was_there(account, principal, DETACH_FROM_ROLE, call.send().await)
        }
        PrincipalKind::User => {
            let call = iam.detach_user_policy().user_name(principal.name()).policy_arn(policy);
            was_there(account, principal, DETACH_FROM_USER, call.send().await)
        }
    }?;
    if call.is_some() {
        tracing::info!(%principal, policy, "policy detached");
    }
    Ok(call)
}

/// The call, where there was something to delete.
async fn delete(
    iam: &Client,
    account: &AccountId,
    principal: &PrincipalArn,
    name: &str,
) -> Result<Option<&'static str>, Error> {
    let call = match principal.kind() {
        PrincipalKind::Role => {
            let call = iam.delete_role_policy().role_name(principal.name()).policy_name(name);
            was_there(account, principal, DELETE_FROM_ROLE, call.send().await)
        }
        PrincipalKind::User => {
            let call = iam.delete_user_policy().user_name(principal.name()).policy_name(name);
            was_there(account, principal, DELETE_FROM_USER, call.send().await)
        }
    }?;
    if call.is_some() {
        tracing::info!(%principal, policy = name, "inline policy deleted");
    }
    Ok(call)
}

/// Whether the policy is surely not attached.
async fn lacks_attached(iam: &Client, principal: &PrincipalArn, policy: &str) -> bool {
    let lacks = |attached: Vec<AttachedPolicy>| attached.iter().all(|attached| attached.policy_arn() != Some(policy));
    match principal.kind() {
        PrincipalKind::Role => {
            let pages = iam.list_attached_role_policies().role_name(principal.name()).into_paginator().items();
            pages.send().try_collect().await.is_ok_and(lacks)
        }
        PrincipalKind::User => {
            let pages = iam.list_attached_user_policies().user_name(principal.name()).into_paginator().items();
            pages.send().try_collect().await.is_ok_and(lacks)
        }
    }
}

/// Whether there is surely no inline policy of that name.
async fn lacks_inline(iam: &Client, principal: &PrincipalArn, name: &str) -> bool {
    let lacks = |names: Vec<String>| names.iter().all(|known| known != name);
    match principal.kind() {
        PrincipalKind::Role => {
            let pages = iam.list_role_policies().role_name(principal.name()).into_paginator().items();
            pages.send().try_collect().await.is_ok_and(lacks)
        }
        PrincipalKind::User => {
            let pages = iam.list_user_policies().user_name(principal.name()).into_paginator().items();
            pages.send().try_collect().await.is_ok_and(lacks)
        }
    }
}

fn was_there<T, E>(
    account: &AccountId,
    principal: &PrincipalArn,
    call: &'static str,
    result: Result<T, SdkError<E>>,
) -> Result<Option<&'static str>, Error>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match result {
        Ok(_) => Ok(Some(call)),
        // Nobody but AWS can have given to a role that nobody but AWS may change.
        Err(error) if matches!(error.code(), Some("NoSuchEntity" | "UnmodifiableEntity")) => Ok(None),
        Err(error) => Err(failure(account, principal, call, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_many_principals_lost_is_said_once_for_each_call_and_policy() {
        let principal = |name: &str| PrincipalArn::parse(format!("arn:aws:iam::222222222222:{name}")).unwrap();
        let mut lost = Lost::default();
        for name in ["role/app", "role/ops/deploy"] {
            lost.add(Some(DETACH_FROM_ROLE), "AmiShareKeyAccess", &principal(name));
        }
        lost.add(None, "AmiShareKeyAccess", &principal("role/other"));
        lost.add(Some(DETACH_FROM_USER), "AmiShareKeyAccess", &principal("user/ci"));
        let taken = lost.by(&AccountId::parse("222222222222").unwrap());
        let said: Vec<(&str, &str, &[String])> =
            taken.iter().map(|one| (one.call.as_str(), one.resource.as_str(), one.from.as_slice())).collect();
        let (roles, users) = (["role/app".to_owned(), "role/ops/deploy".to_owned()], ["user/ci".to_owned()]);
        assert_eq!(
            said,
            [
                (DETACH_FROM_ROLE, "AmiShareKeyAccess", roles.as_slice()),
                (DETACH_FROM_USER, "AmiShareKeyAccess", users.as_slice()),
            ]
        );
    }
}
