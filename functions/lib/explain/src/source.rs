//! What the source account says: permissions on the image and its snapshots, state and policy of
//! each key.

use ami_share_core::{Error, aws, hub::Actions, ids::KeyArn, key_actions::SOURCE_KEY_ACTIONS};
use ami_share_key_policies::state;
use aws_config::SdkConfig;
use aws_sdk_ec2::types::{ImageAttributeName, PermissionGroup, SnapshotAttributeName};
use aws_sdk_kms::types::{GrantOperation, KeyState};
use serde_json::{Value, json};

use crate::{
    attempt::Attempt,
    findings::{Findings, grouped},
    key_access::{Call, Through, Verdict, judge},
};

pub(crate) const SNAPSHOT_ATTRIBUTE: &str = "ec2:DescribeSnapshotAttribute";

/// `actions` are those of a copy or those of a launch, which needs no snapshot permission.
pub(crate) async fn examine(attempt: Attempt<'_>, actions: Actions, findings: &mut Findings) {
    let Attempt { hub, source, execution, .. } = attempt;
    let config = match hub.as_source_reader(&source.account_id, &source.region, execution, actions).await {
        Ok(config) => config,
        Err(error) => return findings.doubts.push(format!("the source account's side ({error})")),
    };
    let ec2 = aws_sdk_ec2::Client::new(&config);
    if let Err(error) = launch_permission(attempt, &ec2, findings).await {
        findings.doubts.push(format!("launch permission ({error})"));
    }
    if actions.source_reader.contains(&SNAPSHOT_ATTRIBUTE)
        && let Err(error) = snapshot_permissions(attempt, &ec2, findings).await
    {
        findings.doubts.push(format!("snapshot permission ({error})"));
    }
    for key in attempt.image.keys() {
        examine_key(attempt, &config, &key, findings).await;
    }
}

async fn launch_permission(
    attempt: Attempt<'_>,
    ec2: &aws_sdk_ec2::Client,
    findings: &mut Findings,
) -> Result<(), Error> {
    let (source, image, target) = (&attempt.source.account_id, &attempt.image.image_id, &attempt.target.account_id);
    let attribute = ec2
        .describe_image_attribute()
        .image_id(image.as_str())
        .attribute(ImageAttributeName::LaunchPermission)
        .send()
        .await
        .map_err(|error| aws::failure(source, "ec2:DescribeImageAttribute", error))?;
    let permissions = attribute.launch_permissions();
    let permitted = permissions.iter().any(|permission| {
        permission.user_id() == Some(target.as_str()) || permission.group() == Some(&PermissionGroup::All)
    });
    let organizations: Vec<&str> =
        permissions.iter().filter_map(|p| p.organization_arn().or(p.organizational_unit_arn())).collect();
    if permitted {
        return Ok(());
    }
    if organizations.is_empty() {
        findings.causes.push(format!(
            "launch permission: account {target} has none on image {image} of account {source} \
             (ec2:ModifyImageAttribute gives it; start the execution again)"
        ));
    } else {
        findings.doubts.push(format!(
            "launch permission: image {image} is shared with {}, and whether account {target} is in there cannot be \
             seen from here",
            organizations.join(", ")
        ));
    }
    Ok(())
}

async fn snapshot_permissions(
    attempt: Attempt<'_>,
    ec2: &aws_sdk_ec2::Client,
    findings: &mut Findings,
) -> Result<(), Error> {
    let (source, target) = (&attempt.source.account_id, &attempt.target.account_id);
    let mut lacking = Vec::new();
    for volume in &attempt.image.volumes {
        let attribute = ec2
            .describe_snapshot_attribute()
            .snapshot_id(volume.snapshot_id.as_str())
            .attribute(SnapshotAttributeName::CreateVolumePermission)
            .send()
            .await
            .map_err(|error| aws::failure(source, SNAPSHOT_ATTRIBUTE, error))?;
        let permitted = attribute.create_volume_permissions().iter().any(|permission| {
            permission.user_id() == Some(target.as_str()) || permission.group() == Some(&PermissionGroup::All)
        });
        if !permitted {
            lacking.push(volume.snapshot_id.as_str());
        }
    }
    if !lacking.is_empty() {
        findings.causes.push(format!(
            "snapshot permission: account {target} has no createVolumePermission on {} of account {source} \
             (ec2:ModifySnapshotAttribute gives it; start the execution again)",
            lacking.join(", ")
        ));
    }
    Ok(())
}

async fn examine_key(attempt: Attempt<'_>, config: &SdkConfig, key: &KeyArn, findings: &mut Findings) {
    let source = &attempt.source.account_id;
    let kms = aws_sdk_kms::Client::new(config);
    match kms.describe_key().key_id(key.as_str()).send().await {
        Err(error) => {
            let error = aws::failure(source, "kms:DescribeKey", error);
            findings.doubts.push(format!("the state of key {key} ({error})"));
        }
        Ok(answer) => {
            let state = answer.key_metadata().and_then(|key| key.key_state());
            findings.causes.extend(state_problem(key.as_str(), state));
        }
    }
    let policy = match ami_share_key_policies::read(&kms, key).await {
        Ok(policy) => policy,
        Err(error) => return findings.doubts.push(format!("the policy of key {key} ({error})")),
    };
    let policy = match ami_share_key_policies::of_ram(&kms, key).await {
        Ok(second) => both(policy, second),
        // Access that the first one does not give may come from it.
        Err(error) => return findings.doubts.push(format!("the second policy of key {key}, of AWS RAM ({error})")),
    };
    let principal = match attempt.hub.launcher(&attempt.target.account_id, &attempt.source.region) {
        Ok(principal) => principal,
        Err(error) => return findings.doubts.push(error.to_string()),
    };
    let calls = SOURCE_KEY_ACTIONS.map(|action| Call { principal: &principal, key, action });
    let grants = match ami_share_key_grants::to_account(&kms, key, &attempt.target.account_id).await {
        Ok(grants) => grants,
        Err(error) => {
            findings.doubts.push(format!("the grants on key {key} ({error})"));
            Vec::new()
        }
    };
    let operations: Vec<&str> =
        grants.iter().flat_map(|grant| grant.operations()).map(GrantOperation::as_str).collect();
    let by_grant = attempt.target.source_changes.grant_key_arns.contains(key) || !grants.is_empty();
    key_findings(&policy, &calls, by_grant.then_some(&operations), findings);
}

/// A key that is shared through AWS RAM has two policies. What either allows is allowed, and what either denies is denied.
fn both(policy: String, second: Option<String>) -> String {
    let Some(second) = second else { return policy };
    let statements = |text: &str| {
        let document: Value = serde_json::from_str(text).ok()?;
        match &document["Statement"] {
            Value::Array(statements) => Some(statements.clone()),
            Value::Null => None,
            one => Some(vec![one.clone()]),
        }
    };
    match (statements(&policy), statements(&second)) {
        (Some(mut statements), Some(second)) => {
            statements.extend(second);
            json!({ "Statement": statements }).to_string()
        }
        // Whoever judges it says that it cannot be read.
        (None, _) => policy,
        (_, None) => second,
    }
}

/// Judges one key's policy and, where the target's account has or should have grants, their `operations`.
/// A grant makes up for what a policy does not allow, and not for what it denies ("Troubleshooting key
/// access", KMS developer guide).
fn key_findings(policy: &str, calls: &[Call<'_>], operations: Option<&Vec<&str>>, findings: &mut Findings) {
    let Some(operations) = operations else {
        policy_findings(policy, calls, findings);
        return;
    };
    let granted = |call: &Call<'_>| operations.iter().any(|operation| call.action == format!("kms:{operation}"));
    let lacking = |call: &Call<'_>| !granted(call) && matches!(judge(policy, *call), Ok(Verdict::Refused(_)));
    let missing: Vec<&str> = calls.iter().filter(|call| lacking(call)).map(|call| call.action).collect();
    if let Some(Call { principal, key, .. }) = calls.first().filter(|_| !missing.is_empty()) {
        findings.causes.push(format!(
            "key grant: no grant on key {key} to account {} allows {}, and its policy does not either \
             (kms:CreateGrant mends it; a new execution gives the grant of ami-share again)",
            principal.account_id(),
            missing.join(", ")
        ));
    }
    let in_question = |call: &&Call<'_>| {
        let allowed = granted(call) && !matches!(judge(policy, **call), Ok(Verdict::Denied(_) | Verdict::Unclear(_)));
        !allowed && !missing.contains(&call.action)
    };
    let rest: Vec<Call<'_>> = calls.iter().filter(in_question).copied().collect();
    policy_findings(policy, &rest, findings);
}

/// What is wrong with the state of a key, if anything is.
pub(crate) fn state_problem(key: &str, state: Option<&KeyState>) -> Option<String> {
    state.and_then(state::problem).map(|problem| format!("key state: of key {key}, {problem}"))
}

/// Judges one key's policy for `calls`, and returns the actions that the principal's own policies
/// must allow too.
pub(crate) fn policy_findings(policy: &str, calls: &[Call<'_>], findings: &mut Findings) -> Vec<&'static str> {
    let (mut refused, mut unclear, mut for_iam) = (Vec::new(), Vec::new(), Vec::new());
    for call in calls {
        let verdict = match judge(policy, *call) {
            Ok(verdict) => verdict,
            Err(error) => {
                findings.doubts.push(format!("the policy of key {}: {error}", call.key));
                return calls.iter().map(|call| call.action).collect();
            }
        };
        // Within one account, a key policy that names the principal itself is enough.
        let one_account = call.key.account_id() == call.principal.account_id();
        if !(one_account && verdict == Verdict::Allowed(Through::Itself)) {
            for_iam.push(call.action);
        }
        match verdict {
            Verdict::Allowed(_) => {}
            Verdict::Denied(clause) | Verdict::Refused(clause) => refused.push((call.action, clause)),
            Verdict::Unclear(clause) => unclear.push((call.action, clause)),
        }
    }
    let about = |clauses: Vec<String>| {
        let key = calls.first().map(|call| call.key.to_string()).unwrap_or_default();
        format!("key policy: of key {key}, {}", clauses.join(", and "))
    };
    if !refused.is_empty() {
        findings.causes.push(format!(
            "{} (kms:PutKeyPolicy mends it; remove statements of ami-share's that somebody changed, and start again)",
            about(grouped(refused))
        ));
    }
    if !unclear.is_empty() {
        findings.doubts.push(about(grouped(unclear)));
    }
    for_iam
}

#[cfg(test)]
mod tests {
    use ami_share_core::ids::PrincipalArn;

    use super::*;

    fn key() -> KeyArn {
        KeyArn::parse("arn:aws:kms:eu-west-1:222222222222:key/own").unwrap()
    }

    fn found(policy: &str) -> (Vec<&'static str>, Findings) {
        let principal = PrincipalArn::parse("arn:aws:iam::222222222222:role/AmiShareLauncher").unwrap();
        let key = key();
        let calls = ["kms:Decrypt", "kms:DescribeKey"].map(|action| Call { principal: &principal, key: &key, action });
        let mut findings = Findings::default();
        let actions = policy_findings(policy, &calls, &mut findings);
        (actions, findings)
    }

    #[test]
    fn the_policy_of_an_own_key_that_names_the_launcher_is_enough() {
        let (iam, findings) = found(
            r#"{"Statement":[
                {"Effect":"Allow","Principal":{"AWS":"222222222222"},"Action":"kms:*","Resource":"*"},
                {"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::222222222222:role/AmiShareLauncher"},"Action":"kms:Decrypt","Resource":"*"}]}"#,
        );
        assert_eq!(iam, ["kms:DescribeKey"]);
        assert!(findings.causes.is_empty() && findings.doubts.is_empty(), "{findings:?}");
    }

    #[test]
    fn what_the_second_policy_of_a_key_allows_is_not_missing() {
        let allow = |action: &str| {
            json!({ "Statement": [{
                "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::222222222222:role/AmiShareLauncher" },
                "Action": action, "Resource": "*",
            }] })
            .to_string()
        };
        let (_, findings) = found(&both(allow("kms:Decrypt"), None));
        assert!(findings.causes.iter().any(|cause| cause.contains("kms:DescribeKey not allowed")), "{findings:?}");
        let (_, findings) = found(&both(allow("kms:Decrypt"), Some(allow("kms:DescribeKey"))));
        assert!(findings.causes.is_empty() && findings.doubts.is_empty(), "{findings:?}");
        let (_, findings) = found(&both(allow("kms:*"), Some("{".to_owned())));
        assert_eq!((findings.causes.len(), findings.doubts.len()), (0, 1));
    }

    #[test]
    fn a_grant_makes_up_for_what_the_policy_does_not_allow_and_not_for_what_it_denies() {
        let principal = PrincipalArn::parse("arn:aws:iam::222222222222:role/AmiShareLauncher").unwrap();
        let key = KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1").unwrap();
        let calls = ["kms:Decrypt", "kms:DescribeKey"].map(|action| Call { principal: &principal, key: &key, action });
        let causes = |policy: &str, operations: &[&str]| {
            let mut findings = Findings::default();
            key_findings(policy, &calls, Some(&operations.to_vec()), &mut findings);
            assert!(findings.doubts.is_empty(), "{findings:?}");
            findings.causes
        };
        let silent = r#"{"Statement":[]}"#;
        assert_eq!(causes(silent, &["Decrypt", "DescribeKey"]), [""; 0]);
        let [cause] = causes(silent, &["Decrypt"]).try_into().unwrap();
        assert!(cause.contains("key grant: no grant on key") && cause.contains("kms:DescribeKey"), "{cause}");
        assert!(!cause.contains("kms:Decrypt"), "{cause}");
        let deny =
            r#"{"Statement":[{"Sid":"No","Effect":"Deny","Principal":"*","Action":"kms:Decrypt","Resource":"*"}]}"#;
        let [cause] = causes(deny, &["Decrypt", "DescribeKey"]).try_into().unwrap();
        assert!(cause.contains("key policy") && cause.contains("kms:Decrypt denied by statement No"), "{cause}");
    }

    #[test]
    fn the_key_and_the_missing_actions_are_named() {
        let (_, findings) = found(r#"{"Statement":[]}"#);
        assert_eq!(findings.causes.len(), 1);
        assert!(
            findings.causes[0].starts_with(
                "key policy: of key arn:aws:kms:eu-west-1:222222222222:key/own, kms:Decrypt, kms:DescribeKey not allowed"
            ),
            "{findings:?}"
        );
    }

    #[test]
    fn a_policy_that_cannot_be_read_is_a_doubt() {
        let (iam, findings) = found("{");
        assert_eq!(iam.len(), 2);
        assert!(findings.causes.is_empty());
        assert_eq!(findings.doubts.len(), 1);
    }
}
