//! What a target's owner does not let ami-share do, found out before anybody is given anything, and which parameter of
//! the target's stack says so.

use std::collections::BTreeMap;

use ami_share_core::{
    Error, Hub,
    arns::{policy_arn, role_arn},
    aws,
    ids::{AccountId, PrincipalArn, PrincipalKind},
    request::Request,
    share::{PrincipalAccess, PrincipalChange},
};
use ami_share_explain::{is_refused_by_organization, refusal};
use aws_sdk_iam::{
    Client,
    error::ProvideErrorMetadata,
    types::{ContextEntry, ContextKeyTypeEnum, SummaryKeyType},
};

pub(super) const SIMULATE: &str = "iam:SimulatePrincipalPolicy";
pub(super) const ENTITIES: &str = "iam:ListEntitiesForPolicy";
pub(super) const SUMMARY: &str = "iam:GetAccountSummary";

/// How many managed policies a role or a user may have where nobody has asked for more ("IAM and AWS STS quotas", IAM user
/// guide): the account's quotas are never fewer.
const ATTACHED_BY_DEFAULT: usize = 10;

const SAME_LAUNCHER: &str = "let LauncherRoleName be the same in the hub stack and in the target's";

/// The error of a look at `principal`, with what to do about it: its account lets ami-share look at those only whom it
/// lets it change.
pub(super) fn named(error: Error, principal: &PrincipalArn, launcher: &PrincipalArn) -> Error {
    let is_launcher = principal == launcher;
    match error {
        Error::AccessDenied { account, call, reason, source } => {
            let remedy = if is_launcher {
                SAME_LAUNCHER.to_owned()
            } else {
                format!(
                    "let PrincipalArnPatterns of the target's stack match {principal}, or take it out of the request"
                )
            };
            Error::AccessDenied { account, call, reason: format!("{remedy} ({reason})"), source }
        }
        Error::PrincipalNotFound { principal, account, call, .. } if is_launcher => {
            Error::PrincipalNotFound { principal, account, call, remedy: SAME_LAUNCHER }
        }
        other => other,
    }
}

/// That `principal` is the role that gives the others access: its own policy never lets it change itself.
pub(super) fn own_role(hub: &Hub, request: &Request, principal: &PrincipalArn) -> Option<Error> {
    let role = role_arn(&principal.account_id(), &request.source.region, &hub.settings.target_role);
    let rule = "must be others than ami-share's own role (TargetRoleName), which cannot be changed by itself";
    (principal.as_str() == role).then(|| Error::invalid("targets[].principals", role, rule))
}

/// The changes that IAM will refuse, asked of its simulator ("SimulatePrincipalPolicy", IAM API reference): one error for
/// all principals that are refused for the same reason.
///
/// What a service control policy says is left to the call: the simulator is not told of every key that one may ask about,
/// such as `aws:RequestedRegion`, and ends there.
pub(super) async fn refusals(
    hub: &Hub,
    iam: &Client,
    request: &Request,
    launcher: &PrincipalArn,
    changes: &[PrincipalChange],
) -> Result<Vec<Error>, Error> {
    let (account, region) = (launcher.account_id(), &request.source.region);
    let role = role_arn(&account, region, &hub.settings.target_role);
    let policy = policy_arn(&account, region, &hub.settings.key_access_policy);
    let mut refused: BTreeMap<(&str, String), Vec<&str>> = BTreeMap::new();
    for change in changes {
        // Those of one principal are refused alike.
        let Some(given) = change.policies(request.principal_access, &policy).into_iter().next() else { continue };
        let principal = &change.principal;
        let call = given.action(principal.kind());
        let attached = ContextEntry::builder()
            .context_key_name("iam:PolicyARN")
            .context_key_values(&policy)
            .context_key_type(ContextKeyTypeEnum::String)
            .build();
        let answer = iam
            .simulate_principal_policy()
            .policy_source_arn(&role)
            .action_names(call)
            .resource_arns(principal.as_str())
            .set_context_entries((request.principal_access == PrincipalAccess::Attach).then(|| vec![attached]))
            .send()
            .await
            .map_err(|error| aws::failure(&account, SIMULATE, error))?;
        let remedy = remedy(request.principal_access, principal == launcher);
        let results = answer.evaluation_results().iter().filter(|result| !is_refused_by_organization(result));
        for clause in results.filter_map(|result| refusal(result, remedy)) {
            refused.entry((call, clause)).or_default().push(principal.as_str());
        }
    }
    let error = |((call, clause), principals): ((&'static str, String), Vec<&str>)| Error::AccessDenied {
        account: account.clone(),
        call,
        reason: format!("role {} may not change {}: {clause}", hub.settings.target_role, principals.join(", ")),
        source: None,
    };
    Ok(refused.into_iter().map(error).collect())
}

/// Why IAM will not attach the policy to those of `lacking` all the same, each with the number of managed policies that it
/// has: the policy is gone, or there is no room for it.
pub(super) async fn not_attachable(
    iam: &Client,
    account: &AccountId,
    policy: &str,
    lacking: &[(&PrincipalArn, usize)],
) -> Vec<Error> {
    if lacking.is_empty() {
        return Vec::new();
    }
    let mut errors = Vec::new();
    if let Err(error) = is_there(iam, account, policy).await {
        errors.push(error);
    }
    let full = lacking.iter().filter(|(_, attached)| *attached >= ATTACHED_BY_DEFAULT).copied();
    match without_room(iam, account, policy, &full.collect::<Vec<_>>()).await {
        Ok(without_room) => errors.extend(without_room),
        Err(error) => errors.push(error),
    }
    errors
}

async fn is_there(iam: &Client, account: &AccountId, policy: &str) -> Result<(), Error> {
    match iam.list_entities_for_policy().policy_arn(policy).max_items(1).send().await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("NoSuchEntity") => Err(Error::Aws {
            account: account.clone(),
            call: ENTITIES,
            reason: format!(
                "policy {policy} does not exist; deploy accounts/target.yaml in account {account} again, with the hub's \
                 KeyAccessPolicyName"
            ),
            source: Some(error.into()),
        }),
        Err(error) => Err(aws::failure(account, ENTITIES, error)),
    }
}

/// The error for those of `full` that have as many policies as the account's quotas allow.
async fn without_room(
    iam: &Client,
    account: &AccountId,
    policy: &str,
    full: &[(&PrincipalArn, usize)],
) -> Result<Option<Error>, Error> {
    if full.is_empty() {
        return Ok(None);
    }
    let summary = iam.get_account_summary().send().await.map_err(|error| aws::failure(account, SUMMARY, error))?;
    let quotas = summary.summary_map();
    let quota = |key: &SummaryKeyType| quotas.and_then(|quotas| usize::try_from(*quotas.get(key)?).ok());
    let says = |(principal, attached): &(&PrincipalArn, usize)| {
        let key = match principal.kind() {
            PrincipalKind::Role => SummaryKeyType::AttachedPoliciesPerRoleQuota,
            PrincipalKind::User => SummaryKeyType::AttachedPoliciesPerUserQuota,
        };
        let quota = quota(&key).unwrap_or(ATTACHED_BY_DEFAULT);
        (*attached >= quota).then(|| format!("{principal} has {attached}, and {key} is {quota}"))
    };
    let said: Vec<String> = full.iter().filter_map(says).collect();
    Ok((!said.is_empty()).then(|| Error::QuotaExceeded {
        account: account.clone(),
        call: SUMMARY,
        reason: format!(
            "there is no room to attach {policy}: of managed policies, {}; detach one, or ask for a higher quota of IAM",
            said.join("; ")
        ),
        source: None,
    }))
}

/// For what nothing allows.
fn remedy(access: PrincipalAccess, is_launcher: bool) -> &'static str {
    match (access, is_launcher) {
        (PrincipalAccess::Inline, _) => {
            "let AllowInlinePolicies of the target's stack be true, or ask for principalAccess attach"
        }
        (PrincipalAccess::Attach, true) => {
            "let KeyAccessPolicyName and LauncherRoleName be the same in the hub stack and in the target's"
        }
        (PrincipalAccess::Attach, false) => {
            "let KeyAccessPolicyName be the same in the hub stack and in the target's, and PrincipalArnPatterns match it"
        }
    }
}
