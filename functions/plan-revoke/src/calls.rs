//! The calls that take something back, as the steps of take-back make them and in their order.

use ami_share_core::{
    Error,
    arns::policy_arn,
    ids::{KeyArn, PrincipalArn, PrincipalKind, Region},
    key_policy::MAX_BYTES,
    principal_policy::inline_policy_name,
    take_back::{FromTarget, TakeBack},
};
use ami_share_key_grants::KeyGrant;
use ami_share_plan::{COPY, Call, INSTANCE, Names, PolicyDiff};
use serde_json::{Value, json};

use crate::policies::PolicyChange;

/// # Errors
/// As [`KeyPolicy::to_text`](ami_share_core::key_policy::KeyPolicy::to_text).
pub(crate) fn calls(
    names: Names<'_>,
    take_back: &TakeBack,
    policies: &[PolicyChange],
    revoked: &[(KeyArn, String)],
) -> Result<Vec<Call>, Error> {
    let TakeBack { source, image_id, .. } = take_back;
    let call = |call: &str, parameters| Call::new(&source.account_id, Some(&source.region), call, parameters);
    let mut calls = Vec::new();
    if !take_back.launch_permissions.is_empty() {
        let permission = json!({ "remove": take_back.launch_permissions });
        calls.push(call("ec2:ModifyImageAttribute", json!({ "imageId": image_id, "launchPermission": permission })));
    }
    for change in &take_back.snapshot_changes {
        for accounts in change.batches() {
            let parameters = json!({
                "snapshotId": change.snapshot_id,
                "attribute": "createVolumePermission",
                "operationType": "remove",
                "userIds": accounts,
            });
            calls.push(call("ec2:ModifySnapshotAttribute", parameters));
        }
    }
    for target in &take_back.targets {
        calls.extend(in_target(names, &source.region, target));
    }
    for change in &take_back.grant_changes {
        for account in &change.account_ids {
            let grant = KeyGrant { key: &change.key_arn, account, retiring: names.source_role };
            calls.push(call("kms:RetireGrant", json!({ "keyId": change.key_arn, "name": grant.name() })));
        }
    }
    for (key, grant_id) in revoked {
        calls.push(call("kms:RevokeGrant", json!({ "keyId": key, "grantId": grant_id })));
    }
    for PolicyChange { key, text, after, .. } in policies {
        if let Some(after) = after {
            let policy = PolicyDiff::new(Some(text), &after.to_text()?, Some(MAX_BYTES))?;
            let parameters = json!({ "keyId": key, "policyName": "default" });
            calls.push(Call { policy: Some(policy), ..call("kms:PutKeyPolicy", parameters) });
        }
    }
    Ok(calls)
}

fn in_target(names: Names<'_>, region: &Region, target: &FromTarget) -> Vec<Call> {
    let account = &target.account_id;
    let call = |region: Option<&Region>, call: &str, parameters| Call::new(account, region, call, parameters);
    let mut calls = Vec::new();
    for made in &target.instances {
        let id = made.instance_id.as_ref().map_or(INSTANCE, |id| id.as_str());
        calls.push(call(Some(region), "ec2:TerminateInstances", json!({ "instanceIds": [id] })));
    }
    for made in &target.copies {
        let id = made.copy_id.as_ref().map_or(COPY, |id| id.as_str());
        calls.push(call(Some(region), "ec2:DeregisterImage", json!({ "imageId": id })));
        let snapshots = format!("each snapshot of {id}");
        calls.push(call(Some(region), "ec2:DeleteSnapshot", json!({ "snapshotId": snapshots })));
    }
    let managed = policy_arn(account, region, names.key_access_policy);
    for change in &target.principal_changes {
        let principal = &change.principal;
        if change.key_arns.is_empty() {
            let action = by_kind(principal, "iam:DetachRolePolicy", "iam:DetachUserPolicy");
            calls.push(call(None, action, of_principal(principal, "policyArn", &managed)));
        }
        for key in &change.key_arns {
            let action = by_kind(principal, "iam:DeleteRolePolicy", "iam:DeleteUserPolicy");
            calls.push(call(None, action, of_principal(principal, "policyName", &inline_policy_name(key))));
        }
    }
    calls
}

fn by_kind<'a>(principal: &PrincipalArn, role: &'a str, user: &'a str) -> &'a str {
    match principal.kind() {
        PrincipalKind::Role => role,
        PrincipalKind::User => user,
    }
}

fn of_principal(principal: &PrincipalArn, policy_field: &str, policy: &str) -> Value {
    json!({ by_kind(principal, "roleName", "userName"): principal.name(), policy_field: policy })
}
