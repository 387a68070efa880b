//! What the target says: its own key, and what the launcher's IAM policies allow on each key.

use ami_share_core::{
    Error, aws,
    hub::Actions,
    ids::{KeyArn, PrincipalArn},
    key_actions::{OWN_KEY_ACTIONS, SOURCE_KEY_ACTIONS},
};
use aws_config::SdkConfig;
use aws_sdk_iam::types::{ContextEntry, ContextKeyTypeEnum, EvaluationResult, PolicyEvaluationDecisionType};
use aws_sdk_kms::{
    error::ProvideErrorMetadata,
    types::{KeyManagerType, KeySpec, Tag},
};

use crate::{
    attempt::Attempt,
    findings::{Findings, by_clause, grouped},
    key_access::Call,
    source::{policy_findings, state_problem},
};

/// `with_source_keys` when the source account's keys were needed: not for a launch of the target's
/// own copy.
pub(crate) async fn examine(attempt: Attempt<'_>, actions: Actions, with_source_keys: bool, findings: &mut Findings) {
    let Attempt { hub, source, target, execution, .. } = attempt;
    let principal = match hub.launcher(&target.account_id, &source.region) {
        Ok(principal) => principal,
        Err(error) => return findings.doubts.push(error.to_string()),
    };
    let config = match hub.as_target(&target.account_id, &source.region, execution, actions).await {
        Ok(config) => config,
        Err(error) => return findings.doubts.push(format!("the launcher's IAM policies and own key ({error})")),
    };
    let mut needed = Vec::new();
    if with_source_keys {
        let missing = format!("attach policy {} to it, or start the execution again", hub.settings.key_access_policy);
        let needs =
            |key| Needed { key, actions: SOURCE_KEY_ACTIONS.to_vec(), missing: missing.clone(), tags: Vec::new() };
        needed.extend(attempt.image.keys().into_iter().map(needs));
    }
    match own_key(attempt, &config, findings).await {
        Ok(Some(key)) => needed.extend(examine_own_key(&config, &principal, &key, findings).await),
        Ok(None) => {}
        Err(error) => findings.doubts.push(format!("the default EBS key of account {} ({error})", target.account_id)),
    }
    examine_policies(&config, &principal, needed, findings).await;
}

/// What keeps `launcher` from making volumes under a key of its own account, asked with the role of the target in
/// `config`.
pub(crate) async fn own_key_findings(config: &SdkConfig, launcher: &PrincipalArn, key: &KeyArn) -> Findings {
    let mut findings = Findings::default();
    let needed = examine_own_key(config, launcher, key, &mut findings).await;
    examine_policies(config, launcher, needed.into_iter().collect(), &mut findings).await;
    findings
}

/// The key of the target that the volumes or snapshots are put under: the one that was asked for, or its default EBS key.
async fn own_key(attempt: Attempt<'_>, config: &SdkConfig, findings: &mut Findings) -> Result<Option<KeyArn>, Error> {
    if let Some(asked) = &attempt.target.kms_key_id {
        return Ok(Some(asked.clone()));
    }
    let ec2 = aws_sdk_ec2::Client::new(config);
    let default = ami_share_default_key::find(&ec2, &attempt.target.account_id, attempt.image).await?;
    findings.default_key.clone_from(&default.key);
    Ok(default.key)
}

/// What IAM policies of the launcher must allow.
struct Needed {
    key: KeyArn,
    actions: Vec<&'static str>,
    /// What to do where none of them does.
    missing: String,
    /// Of the key, which the simulator does not look up.
    tags: Vec<Tag>,
}

async fn examine_policies(config: &SdkConfig, principal: &PrincipalArn, needed: Vec<Needed>, findings: &mut Findings) {
    let iam = aws_sdk_iam::Client::new(config);
    let mut refusals = Vec::new();
    for needed in needed {
        let key = &needed.key;
        match simulate(&iam, principal, &needed).await {
            Ok(refused) if refused.is_empty() => {}
            Ok(refused) => refusals.push((key.to_string(), grouped(refused).join(", and "))),
            Err(error) => findings.doubts.push(format!("the launcher's IAM policies for key {key} ({error})")),
        }
    }
    for (keys, clause) in by_clause(refusals) {
        findings.causes.push(format!("IAM policy: of {principal} for key {}, {clause}", keys.join(" and key ")));
    }
}

/// State and policy of a key of the launcher's account, and the actions on it that the launcher's IAM policies must allow.
async fn examine_own_key(
    config: &SdkConfig,
    principal: &PrincipalArn,
    key: &KeyArn,
    findings: &mut Findings,
) -> Option<Needed> {
    let account = principal.account_id();
    let kms = aws_sdk_kms::Client::new(config);
    let needed = |actions, tags| {
        let missing = "tag the key with ami-share:usable = true, or name it in LauncherKeyArns of accounts/target.yaml";
        Some(Needed { key: key.clone(), actions, missing: missing.to_owned(), tags })
    };
    let metadata = match kms.describe_key().key_id(key.as_str()).send().await {
        Ok(answer) => answer.key_metadata?,
        Err(error) if error.code() == Some("NotFoundException") => {
            findings.causes.push(format!(
                "key state: there is no key {key} in account {account} and Region {}; name another in \
                 reencrypt.kmsKeyId, or set another default EBS key",
                key.region()
            ));
            return None;
        }
        Err(error) => {
            let error = aws::failure(&account, "kms:DescribeKey", error);
            findings.doubts.push(format!("the target's own key {key} ({error})"));
            return None;
        }
    };
    // Its policy lets everybody in the account use it through EC2.
    if metadata.key_manager() == Some(&KeyManagerType::Aws) {
        return None;
    }
    findings.causes.extend(state_problem(key.as_str(), metadata.key_state()));
    if metadata.key_spec().is_some_and(|spec| *spec != KeySpec::SymmetricDefault) {
        findings.causes.push(format!("key state: key {key} is not symmetric, and EBS takes no other; name another"));
    }
    let actions = match ami_share_key_policies::read(&kms, key).await {
        Ok(policy) => {
            let calls = OWN_KEY_ACTIONS.map(|action| Call { principal, key, action });
            policy_findings(&policy, &calls, findings)
        }
        Err(error) => {
            findings.doubts.push(format!("the policy of key {key} ({error})"));
            OWN_KEY_ACTIONS.to_vec()
        }
    };
    match ami_share_key_grants::tags(&kms, key).await {
        Ok(tags) => needed(actions, tags),
        Err(error) => {
            findings.doubts.push(format!("the launcher's IAM policies for key {key} ({error})"));
            None
        }
    }
}

/// The actions that the principal's IAM policies do not allow EC2 on the key, and why not.
async fn simulate(
    iam: &aws_sdk_iam::Client,
    principal: &PrincipalArn,
    Needed { key, actions, missing, tags }: &Needed,
) -> Result<Vec<(&'static str, String)>, Error> {
    let region = key.region();
    let via = format!("ec2.{region}.amazonaws.com");
    let (account, owner) = (principal.account_id(), key.account_id());
    let (grant, use_of_key): (Vec<&str>, Vec<&str>) = actions.iter().partition(|action| **action == "kms:CreateGrant");
    let mut refused = Vec::new();
    for actions in [use_of_key, grant].iter().filter(|actions| !actions.is_empty()) {
        let mut entries = vec![
            ("kms:ViaService".to_owned(), via.as_str(), ContextKeyTypeEnum::String),
            ("aws:RequestedRegion".to_owned(), region.as_str(), ContextKeyTypeEnum::String),
            ("kms:CallerAccount".to_owned(), account.as_str(), ContextKeyTypeEnum::String),
            ("aws:ResourceAccount".to_owned(), owner.as_str(), ContextKeyTypeEnum::String),
        ];
        entries
            .extend(tags.iter().map(|tag| {
                (format!("aws:ResourceTag/{}", tag.tag_key()), tag.tag_value(), ContextKeyTypeEnum::String)
            }));
        if actions.contains(&"kms:CreateGrant") {
            entries.push(("kms:GrantIsForAWSResource".to_owned(), "true", ContextKeyTypeEnum::Boolean));
        }
        let entries = entries.into_iter().map(|(name, value, kind)| {
            ContextEntry::builder().context_key_name(name).context_key_values(value).context_key_type(kind).build()
        });
        let answer = iam
            .simulate_principal_policy()
            .policy_source_arn(principal.as_str())
            .set_action_names(Some(actions.iter().map(|action| (*action).to_owned()).collect()))
            .resource_arns(key.as_str())
            .set_context_entries(Some(entries.collect()))
            .send()
            .await
            .map_err(|error| aws::failure(&account, "iam:SimulatePrincipalPolicy", error))?;
        for action in actions {
            let result = answer.evaluation_results().iter().find(|result| result.eval_action_name() == *action);
            refused.extend(result.and_then(|result| refusal(result, missing)).map(|clause| (*action, clause)));
        }
    }
    Ok(refused)
}

/// Why IAM's simulator refuses, if it does, and what to do about it; `missing` is what to do where nothing
/// allows the action. In a simulation across accounts the whole decision counts a key policy that the
/// simulator was not given; then that of the IAM policies is read ("EvaluationResult", IAM API reference).
pub fn refusal(result: &EvaluationResult, missing: &str) -> Option<String> {
    if is_refused_by_organization(result) {
        return Some("refused by a service control policy (who manages the organization can lift it)".to_owned());
    }
    if result.permissions_boundary_decision_detail().is_some_and(|detail| !detail.allowed_by_permissions_boundary()) {
        return Some("refused by its permissions boundary (widen it)".to_owned());
    }
    let by_policy_type = result.eval_decision_details().and_then(|details| {
        details.iter().find(|(kind, _)| kind.to_ascii_lowercase().contains("iam")).map(|(_, decision)| decision)
    });
    match by_policy_type.unwrap_or(result.eval_decision()) {
        PolicyEvaluationDecisionType::Allowed => None,
        PolicyEvaluationDecisionType::ExplicitDeny => {
            let policy = result.matched_statements().first().and_then(|statement| statement.source_policy_id());
            let policy = policy.map_or("one of its policies".to_owned(), |policy| format!("its policy {policy}"));
            Some(format!("denied by {policy} (take the Deny out)"))
        }
        _ => Some(format!("not allowed by any of its policies ({missing})")),
    }
}

/// Whether a service control policy refuses, as far as the simulator was told what it asks about.
pub fn is_refused_by_organization(result: &EvaluationResult) -> bool {
    result.organizations_decision_detail().is_some_and(|detail| !detail.allowed_by_organizations())
}

#[cfg(test)]
mod tests {
    use aws_sdk_iam::types::{OrganizationsDecisionDetail, Statement};

    use super::*;

    fn result(decision: PolicyEvaluationDecisionType) -> aws_sdk_iam::types::builders::EvaluationResultBuilder {
        EvaluationResult::builder().eval_action_name("kms:Decrypt").eval_decision(decision)
    }

    #[test]
    fn what_the_simulator_allows_is_no_refusal() {
        assert_eq!(refusal(&result(PolicyEvaluationDecisionType::Allowed).build().unwrap(), ""), None);
    }

    #[test]
    fn a_missing_and_a_denied_action_are_told_apart() {
        let missing =
            refusal(&result(PolicyEvaluationDecisionType::ImplicitDeny).build().unwrap(), "attach it").unwrap();
        assert_eq!(missing, "not allowed by any of its policies (attach it)");
        let denied = result(PolicyEvaluationDecisionType::ExplicitDeny)
            .matched_statements(Statement::builder().source_policy_id("Guard").build())
            .build()
            .unwrap();
        assert_eq!(refusal(&denied, "").unwrap(), "denied by its policy Guard (take the Deny out)");
    }

    #[test]
    fn across_accounts_only_the_iam_part_of_the_decision_counts() {
        let across = |iam| {
            result(PolicyEvaluationDecisionType::ImplicitDeny)
                .eval_decision_details("IAM Policies", iam)
                .eval_decision_details("Resource Policies", PolicyEvaluationDecisionType::ImplicitDeny)
                .build()
                .unwrap()
        };
        assert_eq!(refusal(&across(PolicyEvaluationDecisionType::Allowed), ""), None);
        assert!(refusal(&across(PolicyEvaluationDecisionType::ImplicitDeny), "").is_some());
    }

    #[test]
    fn a_service_control_policy_is_named() {
        let refused = result(PolicyEvaluationDecisionType::ImplicitDeny)
            .organizations_decision_detail(
                OrganizationsDecisionDetail::builder().allowed_by_organizations(false).build(),
            )
            .build()
            .unwrap();
        assert!(refusal(&refused, "").unwrap().contains("service control policy"));
    }
}
