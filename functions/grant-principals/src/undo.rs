//! UndoGrantPrincipals: takes back what GrantPrincipals was to give.

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{PrincipalArn, PrincipalKind},
    principal_policy::inline_policy_name,
    share::PrincipalAccess,
};
use aws_sdk_iam::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::AttachedPolicy,
};
use serde::Serialize;

use crate::{Input, failure};

pub const UNDO_ACTIONS: Actions = Actions {
    source: &[],
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
    launcher: &[],
};

const DETACH_FROM_ROLE: &str = "iam:DetachRolePolicy";
const DETACH_FROM_USER: &str = "iam:DetachUserPolicy";
const DELETE_FROM_ROLE: &str = "iam:DeleteRolePolicy";
const DELETE_FROM_USER: &str = "iam:DeleteUserPolicy";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UndoOutput {
    /// Principals that had something of what is taken back.
    pub revoked: Vec<PrincipalArn>,
}

/// Detaches the policy from, or deletes the inline policies of, exactly the principals that lacked
/// them before this execution. A policy or principal that is not there is as good as taken back; one
/// principal that fails does not keep the others from being tried.
///
/// # Errors
/// [`Error::AccessDenied`], and whatever else IAM refuses with.
#[tracing::instrument(skip_all, fields(execution = %input.execution, account = %input.target.account_id))]
pub async fn undo_grant_principals(hub: &Hub, input: Input) -> Result<UndoOutput, Error> {
    if !input.has_changes() {
        return Ok(UndoOutput { revoked: Vec::new() });
    }
    let config = hub.as_target(&input.target.account_id, &input.source.region, &input.execution, UNDO_ACTIONS).await?;
    let iam = Client::new(&config);
    let (mut revoked, mut errors) = (Vec::new(), Vec::new());
    for change in &input.target.principal_changes {
        let principal = &change.principal;
        let mut had = false;
        match input.principal_access {
            PrincipalAccess::Attach => {
                let policy = input.key_access_policy(hub);
                match detach(&iam, &input, principal, &policy).await {
                    Ok(detached) => had = detached,
                    Err(error) if was_refused(&error) && lacks_attached(&iam, principal, &policy).await => {}
                    Err(error) => errors.push(error),
                }
            }
            PrincipalAccess::Inline => {
                for name in change.key_arns.iter().map(inline_policy_name) {
                    match delete(&iam, &input, principal, &name).await {
                        Ok(deleted) => had |= deleted,
                        Err(error) if was_refused(&error) && lacks_inline(&iam, principal, &name).await => {}
                        Err(error) => errors.push(error),
                    }
                }
            }
        }
        if had {
            revoked.push(principal.clone());
        }
    }
    Error::all_of(errors)?;
    Ok(UndoOutput { revoked })
}

/// Where the target's owner lets ami-share take nothing away, it could give nothing either: then a
/// look tells whether there is anything to take back. It is not looked at first, because a list may
/// lack for some seconds what was just given.
fn was_refused(error: &Error) -> bool {
    matches!(error, Error::AccessDenied { .. })
}

/// Whether there was something to detach.
async fn detach(iam: &Client, input: &Input, principal: &PrincipalArn, policy: &str) -> Result<bool, Error> {
    let had = match principal.kind() {
        PrincipalKind::Role => {
            let call = iam.detach_role_policy().role_name(principal.name()).policy_arn(policy);
            was_there(input, principal, DETACH_FROM_ROLE, call.send().await)
        }
        PrincipalKind::User => {
            let call = iam.detach_user_policy().user_name(principal.name()).policy_arn(policy);
            was_there(input, principal, DETACH_FROM_USER, call.send().await)
        }
    }?;
    if had {
        tracing::info!(%principal, policy, "policy detached");
    }
    Ok(had)
}

/// Whether there was something to delete.
async fn delete(iam: &Client, input: &Input, principal: &PrincipalArn, name: &str) -> Result<bool, Error> {
    let had = match principal.kind() {
        PrincipalKind::Role => {
            let call = iam.delete_role_policy().role_name(principal.name()).policy_name(name);
            was_there(input, principal, DELETE_FROM_ROLE, call.send().await)
        }
        PrincipalKind::User => {
            let call = iam.delete_user_policy().user_name(principal.name()).policy_name(name);
            was_there(input, principal, DELETE_FROM_USER, call.send().await)
        }
    }?;
    if had {
        tracing::info!(%principal, policy = name, "inline policy deleted");
    }
    Ok(had)
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
    input: &Input,
    principal: &PrincipalArn,
    call: &'static str,
    result: Result<T, SdkError<E>>,
) -> Result<bool, Error>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Some("NoSuchEntity") => Ok(false),
        Err(error) => Err(failure(input, principal, call, error)),
    }
}
