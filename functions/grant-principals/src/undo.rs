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
};
use serde::Serialize;

use crate::{Input, failure};

pub const UNDO_ACTIONS: Actions = Actions {
    source: &[],
    target: &[DETACH_FROM_ROLE, DETACH_FROM_USER, DELETE_FROM_ROLE, DELETE_FROM_USER],
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
/// them before this execution. A policy or principal that is not there is as good as taken back.
///
/// # Errors
/// [`Error::AccessDenied`], and whatever else IAM refuses with.
#[tracing::instrument(skip_all, fields(execution = %input.execution, account = %input.target.account_id))]
pub async fn undo_grant_principals(hub: &Hub, input: Input) -> Result<UndoOutput, Error> {
    if !input.has_changes() {
        return Ok(UndoOutput { revoked: Vec::new() });
    }
    let config =
        hub.as_target(&input.target.account_id, &input.source.region, &input.execution, UNDO_ACTIONS.target).await?;
    let iam = Client::new(&config);
    let mut revoked = Vec::new();
    for change in &input.target.principal_changes {
        let mut had = false;
        match input.principal_access {
            PrincipalAccess::Attach => had = detach(&iam, hub, &input, &change.principal).await?,
            PrincipalAccess::Inline => {
                for key in &change.key_arns {
                    had |= delete(&iam, &input, &change.principal, &inline_policy_name(key)).await?;
                }
            }
        }
        if had {
            revoked.push(change.principal.clone());
        }
    }
    Ok(UndoOutput { revoked })
}

/// Whether there was something to detach.
async fn detach(iam: &Client, hub: &Hub, input: &Input, principal: &PrincipalArn) -> Result<bool, Error> {
    let policy = input.key_access_policy(hub);
    let had = match principal.kind() {
        PrincipalKind::Role => {
            let call = iam.detach_role_policy().role_name(principal.name()).policy_arn(&policy);
            was_there(input, principal, DETACH_FROM_ROLE, call.send().await)
        }
        PrincipalKind::User => {
            let call = iam.detach_user_policy().user_name(principal.name()).policy_arn(&policy);
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
