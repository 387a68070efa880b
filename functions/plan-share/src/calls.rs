//! The calls that change something, as the steps make them and in their order.

use ami_share_core::{
    Error,
    arns::policy_arn,
    ids::{PrincipalArn, PrincipalKind, Region},
    key_policy::MAX_BYTES,
    principal_policy::PrincipalPolicy,
    share::{Image, KeyChange, Mode, Prove, Resolution, Target},
};
use ami_share_key_grants::KeyGrant;
use ami_share_plan::{COPY, Call, INSTANCE, Names, PolicyDiff};
use aws_sdk_kms::types::GrantOperation;
use serde_json::{Value, json};

use crate::policies::PolicyChange;

/// # Errors
/// As [`KeyPolicy::to_text`](ami_share_core::key_policy::KeyPolicy::to_text).
pub(crate) fn calls(
    names: Names<'_>,
    resolution: &Resolution,
    policies: &[PolicyChange<'_>],
) -> Result<Vec<Call>, Error> {
    let mut calls = in_source(names, resolution, policies)?;
    for target in &resolution.targets {
        let managed = policy_arn(&target.account_id, &resolution.source.region, names.key_access_policy);
        calls.extend(in_target(resolution, target, &managed));
    }
    Ok(calls)
}

fn in_source(names: Names<'_>, resolution: &Resolution, policies: &[PolicyChange<'_>]) -> Result<Vec<Call>, Error> {
    let source = &resolution.source;
    let call = |call: &str, parameters| Call::new(&source.account_id, Some(&source.region), call, parameters);
    let mut calls = Vec::new();
    for PolicyChange { change, text, after, .. } in policies {
        if let Some(after) = after {
            let parameters = json!({ "keyId": change.key_arn, "policyName": "default" });
            let policy = PolicyDiff::new(Some(text), &after.to_text()?, Some(MAX_BYTES))?;
            calls.push(Call { policy: Some(policy), ..call("kms:PutKeyPolicy", parameters) });
        }
    }
    for KeyChange { key_arn, account_ids, .. } in &resolution.grant_changes {
        for account in account_ids {
            let grant = KeyGrant { key: key_arn, account, retiring: names.source_role };
            let operations = KeyGrant::operations();
            let parameters = json!({
                "keyId": key_arn,
                "name": grant.name(),
                "granteePrincipal": grant.grantee(),
                "retiringPrincipal": grant.retiring,
                "operations": operations.iter().map(GrantOperation::as_str).collect::<Vec<_>>(),
            });
            calls.push(call("kms:CreateGrant", parameters));
        }
    }
    for change in &resolution.snapshot_changes {
        for accounts in change.batches() {
            calls.push(call(
                "ec2:ModifySnapshotAttribute",
                json!({
                    "snapshotId": change.snapshot_id,
                    "attribute": "createVolumePermission",
                    "operationType": "add",
                    "userIds": accounts,
                }),
            ));
        }
    }
    if !resolution.launch_permissions.is_empty() {
        let parameters = json!({
            "imageId": resolution.image.image_id,
            "launchPermission": { "add": resolution.launch_permissions },
        });
        calls.push(call("ec2:ModifyImageAttribute", parameters));
    }
    Ok(calls)
}

fn in_target(resolution: &Resolution, target: &Target, managed: &str) -> Vec<Call> {
    let Resolution { source, image, .. } = resolution;
    let call =
        |region: Option<&Region>, call: &str, parameters| Call::new(&target.account_id, region, call, parameters);
    let region = Some(&source.region);
    let mut calls = Vec::new();
    for change in &target.principal_changes {
        for policy in change.policies(resolution.principal_access, managed) {
            let action = policy.action(change.principal.kind());
            calls.push(call(None, action, principal_parameters(&change.principal, policy)));
        }
    }
    let copies = target.mode == Mode::CopyImage && target.copy_id.is_none();
    if copies {
        let parameters = json!({
            "sourceImageId": image.image_id,
            "sourceRegion": source.region,
            "encrypted": true,
            "kmsKeyId": target.kms_key_id,
        });
        calls.push(call(region, "ec2:CopyImage", parameters));
    }
    if target.launch.prove != Prove::Never {
        calls.push(call(region, "ec2:RunInstances", launch_parameters(image, target)));
        if !target.launch.keep {
            calls.push(call(region, "ec2:TerminateInstances", json!({ "instanceIds": [INSTANCE] })));
        }
    }
    calls
}

fn principal_parameters(principal: &PrincipalArn, policy: PrincipalPolicy) -> Value {
    let name = match principal.kind() {
        PrincipalKind::Role => "roleName",
        PrincipalKind::User => "userName",
    };
    match policy {
        PrincipalPolicy::Managed { arn } => json!({ name: principal.name(), "policyArn": arn }),
        PrincipalPolicy::Inline { name: policy, .. } => json!({ name: principal.name(), "policyName": policy }),
    }
}

fn launch_parameters(image: &Image, target: &Target) -> Value {
    let image_id = match (target.mode, &target.copy_id) {
        (Mode::CopyImage, None) => COPY,
        (Mode::CopyImage, Some(copy_id)) => copy_id.as_str(),
        (Mode::None | Mode::AtLaunch, _) => image.image_id.as_str(),
    };
    let mut parameters = json!({ "imageId": image_id, "instanceType": target.instance_type(image) });
    if let Some(subnet_id) = &target.launch.subnet_id {
        parameters["subnetId"] = json!(subnet_id);
    }
    if !target.launch.security_group_ids.is_empty() {
        parameters["securityGroupIds"] = json!(target.launch.security_group_ids);
    }
    if !target.launch.tags.is_empty() {
        parameters["tags"] = json!(target.launch.tags);
    }
    if target.mode == Mode::AtLaunch {
        parameters["kmsKeyId"] = json!(target.kms_key_id);
    }
    parameters
}
