//! GrantPrincipals: lets the launcher and the request's principals use the source account's keys,
//! from the target's side.

mod undo;

use ami_share_core::{
    Error, Hub,
    arns::policy_arn,
    aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, PrincipalArn, PrincipalKind},
    principal_policy::{PrincipalPolicy, inline_policy},
    share::{PrincipalAccess, Source, SourceChanges, Target},
};
use aws_sdk_iam::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
};
use serde::{Deserialize, Serialize};

pub use undo::{UNDO_ACTIONS, undo_grant_principals};

pub const ACTIONS: Actions =
    Actions { target: &[ATTACH_TO_ROLE, ATTACH_TO_USER, PUT_TO_ROLE, PUT_TO_USER], ..Actions::NONE };

const ATTACH_TO_ROLE: &str = "iam:AttachRolePolicy";
const ATTACH_TO_USER: &str = "iam:AttachUserPolicy";
const PUT_TO_ROLE: &str = "iam:PutRolePolicy";
const PUT_TO_USER: &str = "iam:PutUserPolicy";

/// How long a change takes to be seen everywhere. IAM's own are eventually consistent ("Changes that I
/// make are not always immediately visible", IAM user guide), and so are those of key policies ("AWS
/// KMS eventual consistency", KMS developer guide) and of launch permissions ("Eventual consistency in
/// the Amazon EC2 API"). None names a time; a few seconds are usual.
const SETTLE_SECONDS: u32 = 15;

/// The same for grants, "usually less than five minutes" ("Eventual consistency", KMS developer guide).
/// The token that would make one valid at once cannot be given to EC2.
const GRANT_SETTLE_SECONDS: u32 = 300;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    pub target: Target,
    pub principal_access: PrincipalAccess,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub granted: Vec<PrincipalArn>,
    /// How long to wait before the access is relied on; 0 where nothing was changed for the target,
    /// in its account or in the source account.
    pub settle_seconds: u32,
}

/// Attaches the target's own managed policy to each principal that lacks it, or writes each the
/// inline policies that it lacks. Both do nothing to a principal that has them already.
///
/// # Errors
/// [`Error::SourceNotAllowed`]; [`Error::TargetNotAllowed`]; [`Error::PrincipalNotFound`]; [`Error::QuotaExceeded`] when a principal has as many policies as
/// it may; [`Error::AccessDenied`] when the target's owner does not let ami-share manage it.
#[tracing::instrument(skip_all, fields(execution = %input.execution, account = %input.target.account_id))]
pub async fn grant_principals(hub: &Hub, input: Input) -> Result<Output, Error> {
    hub.settings.sources.check(&input.source.account_id)?;
    hub.settings.allow_list.check_listed([&input.target.account_id])?;
    if !input.has_changes() {
        return Ok(Output { granted: Vec::new(), settle_seconds: input.settle_seconds() });
    }
    let account = &input.target.account_id;
    let config = hub.as_target(account, &input.source.region, &input.execution, ACTIONS).await?;
    let iam = Client::new(&config);
    let mut granted = Vec::new();
    for change in &input.target.principal_changes {
        for policy in change.policies(input.principal_access, &input.key_access_policy(hub)) {
            match policy {
                PrincipalPolicy::Managed { arn } => attach(&iam, account, &change.principal, &arn).await?,
                PrincipalPolicy::Inline { name, key_arn } => {
                    put(&iam, account, &change.principal, &name, &inline_policy(&key_arn).to_string()).await?;
                }
            }
        }
        granted.push(change.principal.clone());
    }
    Ok(Output { granted, settle_seconds: input.settle_seconds() })
}

impl Input {
    fn has_changes(&self) -> bool {
        let changes = &self.target.principal_changes;
        match self.principal_access {
            PrincipalAccess::Attach => !changes.is_empty(),
            PrincipalAccess::Inline => changes.iter().any(|change| !change.key_arns.is_empty()),
        }
    }

    fn settle_seconds(&self) -> u32 {
        if !self.target.source_changes.grant_key_arns.is_empty() {
            return GRANT_SETTLE_SECONDS;
        }
        let changed = self.has_changes() || self.target.source_changes != SourceChanges::default();
        if changed { SETTLE_SECONDS } else { 0 }
    }

    /// The ARN of the target's own managed policy.
    fn key_access_policy(&self, hub: &Hub) -> String {
        policy_arn(&self.target.account_id, &self.source.region, &hub.settings.key_access_policy)
    }
}

async fn attach(iam: &Client, account: &AccountId, principal: &PrincipalArn, policy: &str) -> Result<(), Error> {
    match principal.kind() {
        PrincipalKind::Role => iam
            .attach_role_policy()
            .role_name(principal.name())
            .policy_arn(policy)
            .send()
            .await
            .map(drop)
            .map_err(|error| failure(account, principal, ATTACH_TO_ROLE, error)),
        PrincipalKind::User => iam
            .attach_user_policy()
            .user_name(principal.name())
            .policy_arn(policy)
            .send()
            .await
            .map(drop)
            .map_err(|error| failure(account, principal, ATTACH_TO_USER, error)),
    }?;
    tracing::info!(%principal, policy, "policy attached");
    Ok(())
}

async fn put(
    iam: &Client,
    account: &AccountId,
    principal: &PrincipalArn,
    name: &str,
    document: &str,
) -> Result<(), Error> {
    match principal.kind() {
        PrincipalKind::Role => iam
            .put_role_policy()
            .role_name(principal.name())
            .policy_name(name)
            .policy_document(document)
            .send()
            .await
            .map(drop)
            .map_err(|error| failure(account, principal, PUT_TO_ROLE, error)),
        PrincipalKind::User => iam
            .put_user_policy()
            .user_name(principal.name())
            .policy_name(name)
            .policy_document(document)
            .send()
            .await
            .map(drop)
            .map_err(|error| failure(account, principal, PUT_TO_USER, error)),
    }?;
    tracing::info!(%principal, policy = name, "inline policy written");
    Ok(())
}

/// IAM says NoSuchEntity for a principal and for a policy that is not there, and refuses two
/// changes of one principal at the same moment (ConcurrentModification).
fn failure<E>(account: &AccountId, principal: &PrincipalArn, call: &'static str, error: SdkError<E>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let account = account.clone();
    let no_policy = error.message().is_some_and(|message| message.starts_with("Policy "));
    match error.code() {
        Some("NoSuchEntity") if no_policy => match aws::failure(&account, call, error) {
            Error::Aws { account, call, reason, source } => {
                let reason = format!(
                    "{reason}; deploy accounts/target.yaml in account {account}, under the name that the hub's \
                     parameters say"
                );
                Error::Aws { account, call, reason, source }
            }
            other => other,
        },
        Some("NoSuchEntity") => Error::PrincipalNotFound {
            principal: principal.clone(),
            account,
            call,
            remedy: "create it, or take it out of the request",
        },
        Some("ConcurrentModification") => Error::Throttled { account, call, source: Some(error.into()) },
        _ => aws::failure(&account, call, error),
    }
}

#[cfg(test)]
mod tests {
    use ami_share_core::{
        ids::{KeyArn, Region},
        share::{Launch, Mode, PrincipalChange},
    };

    use super::*;

    fn input(principal_changes: Vec<PrincipalChange>, source_changes: SourceChanges) -> Input {
        let account = |digit: &str| AccountId::parse(digit.repeat(12)).unwrap();
        Input {
            execution: ExecutionName::parse("e").unwrap(),
            source: Source { account_id: account("1"), region: Region::parse("eu-west-1").unwrap() },
            target: Target {
                account_id: account("2"),
                principal_changes,
                source_changes,
                mode: Mode::None,
                kms_key_id: None,
                copy_id: None,
                launch: Launch::default(),
            },
            principal_access: PrincipalAccess::Attach,
        }
    }

    #[test]
    fn a_change_in_either_account_is_waited_for() {
        let principal = PrincipalArn::parse("arn:aws:iam::222222222222:role/app").unwrap();
        let attached = vec![PrincipalChange { principal, key_arns: vec![] }];
        let key = KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1").unwrap();
        let permission = SourceChanges { launch_permission: true, ..SourceChanges::default() };
        let key_policy = SourceChanges { key_arns: vec![key.clone()], ..SourceChanges::default() };
        let grant = SourceChanges { grant_key_arns: vec![key], ..SourceChanges::default() };
        assert_eq!(input(vec![], grant).settle_seconds(), GRANT_SETTLE_SECONDS);
        assert_eq!(input(attached, SourceChanges::default()).settle_seconds(), SETTLE_SECONDS);
        assert_eq!(input(vec![], permission).settle_seconds(), SETTLE_SECONDS);
        assert_eq!(input(vec![], key_policy).settle_seconds(), SETTLE_SECONDS);
        assert_eq!(input(vec![], SourceChanges::default()).settle_seconds(), 0);
    }
}
