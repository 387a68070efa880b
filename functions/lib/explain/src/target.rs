//! What the target says: its own key, and what the launcher's IAM policies allow on each key.

use ami_share_core::{
    Error, aws,
    hub::Actions,
    ids::{KeyArn, PrincipalArn},
    key_actions::{OWN_KEY_ACTIONS, SOURCE_KEY_ACTIONS},
};
use aws_sdk_iam::types::{ContextEntry, ContextKeyTypeEnum, EvaluationResult, PolicyEvaluationDecisionType};
use aws_sdk_kms::{error::ProvideErrorMetadata, types::KeySpec};

use crate::{
    attempt::Attempt,
    findings::{Findings, by_clause, grouped},
    key_access::Call,
    source::{policy_findings, state_problem},
};

/// `with_source_keys` when the source account's keys were needed: not for a launch of the target's
/// own copy.
pub(crate) async fn examine(attempt: Attempt<'_>, actions: Actions, with_source_keys: bool, findings: &mut Findings) {
    let target = &attempt.target.account_id;
    let principal = match attempt.hub.launcher(target, &attempt.source.region) {
        Ok(principal) => principal,
        Err(error) => return findings.doubts.push(error.to_string()),
    };
    let mut needed: Vec<(KeyArn, Vec<&str>)> = Vec::new();
    if with_source_keys {
        needed.extend(attempt.image.keys().into_iter().map(|key| (key, SOURCE_KEY_ACTIONS.to_vec())));
    }
    if let Some(key) = &attempt.target.kms_key_id {
        let actions = examine_own_key(attempt, &principal, key, findings).await;
        needed.extend(actions.map(|actions| (key.clone(), actions)));
    }
    if needed.iter().all(|(_, actions)| actions.is_empty()) {
        return;
    }
    let asked = attempt.hub.as_target(target, &attempt.source.region, attempt.execution, actions).await;
    let iam = match asked {
        Ok(config) => aws_sdk_iam::Client::new(&config),
        Err(error) => return findings.doubts.push(format!("the launcher's IAM policies ({error})")),
    };
    let mut refusals = Vec::new();
    for (key, actions) in needed {
        match simulate(attempt, &iam, &principal, &key, &actions).await {
            Ok(refused) if refused.is_empty() => {}
            Ok(refused) => refusals.push((key.to_string(), grouped(refused).join(", and "))),
            Err(error) => findings.doubts.push(format!("the launcher's IAM policies for key {key} ({error})")),
        }
    }
    for (keys, clause) in by_clause(refusals) {
        findings.causes.push(format!("IAM policy: of {principal} for key {}, {clause}", keys.join(" and key ")));
    }
}

/// State and policy of the key that the target re-encrypts with, and the actions on it that the
/// launcher's IAM policies must allow.
async fn examine_own_key(
    attempt: Attempt<'_>,
    principal: &PrincipalArn,
    key: &KeyArn,
    findings: &mut Findings,
) -> Option<Vec<&'static str>> {
    let target = &attempt.target.account_id;
    let kms = aws_sdk_kms::Client::new(attempt.launcher);
    let metadata = match kms.describe_key().key_id(key.as_str()).send().await {
        Ok(answer) => answer.key_metadata,
        Err(error) if error.code() == Some("NotFoundException") => {
            findings.causes.push(format!(
                "key state: there is no key {key} in account {target} and Region {}; name another in reencrypt.kmsKeyId",
                attempt.source.region
            ));
            return None;
        }
        Err(error) => {
            let error = aws::failure(target, "kms:DescribeKey", error);
            findings.doubts.push(format!("the target's own key {key} ({error})"));
            return None;
        }
    }?;
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
    Some(actions)
}

/// The actions that the principal's IAM policies do not allow EC2 on `key`, and why not.
async fn simulate<'a>(
    attempt: Attempt<'_>,
    iam: &aws_sdk_iam::Client,
    principal: &PrincipalArn,
    key: &KeyArn,
    actions: &[&'a str],
) -> Result<Vec<(&'a str, String)>, Error> {
    let via = format!("ec2.{}.amazonaws.com", key.region());
    let account = principal.account_id().to_string();
    let (grant, use_of_key): (Vec<&str>, Vec<&str>) = actions.iter().partition(|action| **action == "kms:CreateGrant");
    let missing = what_to_do(attempt, key);
    let mut refused = Vec::new();
    for actions in [use_of_key, grant].iter().filter(|actions| !actions.is_empty()) {
        let mut entries = vec![
            ("kms:ViaService", via.as_str(), ContextKeyTypeEnum::String),
            ("kms:CallerAccount", &account, ContextKeyTypeEnum::String),
        ];
        if actions.contains(&"kms:CreateGrant") {
            entries.push(("kms:GrantIsForAWSResource", "true", ContextKeyTypeEnum::Boolean));
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
            .map_err(|error| aws::failure(&attempt.target.account_id, "iam:SimulatePrincipalPolicy", error))?;
        for action in actions {
            let result = answer.evaluation_results().iter().find(|result| result.eval_action_name() == *action);
            refused.extend(result.and_then(|result| refusal(result, &missing)).map(|clause| (*action, clause)));
        }
    }
    Ok(refused)
}

/// Why the simulator refuses, if it does, and what to do about it; `missing` is what to do where nothing
/// allows the action. In a simulation across accounts the whole decision counts a key policy that the
/// simulator was not given; then that of the IAM policies is read ("EvaluationResult", IAM API reference).
fn refusal(result: &EvaluationResult, missing: &str) -> Option<String> {
    if result.organizations_decision_detail().is_some_and(|detail| !detail.allowed_by_organizations()) {
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

fn what_to_do(attempt: Attempt<'_>, key: &KeyArn) -> String {
    if key.account_id() == attempt.source.account_id {
        format!("attach policy {} to it, or start the execution again", attempt.hub.settings.key_access_policy)
    } else {
        "allow it in accounts/target.yaml, or name it in the key's policy".to_owned()
    }
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
