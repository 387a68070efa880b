//! UndoGrantPrincipals: the managed policy where no keys are named, inline policies where some are.

use ami_share_core::{
    ids::KeyArn,
    principal_policy::{inline_policy, inline_policy_name},
};

use super::*;

#[test]
fn principals_lose_what_is_named_and_nothing_else() {
    let stage = Stage::new();
    let policy =
        json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "kms:*", "Resource": "*" }] });
    stage.iam("CreatePolicy", &[("PolicyName", "AmiShareKeyAccess"), ("PolicyDocument", &policy.to_string())]);
    stage.iam("CreateUser", &[("UserName", "ci")]);
    let managed = format!("arn:aws:iam::{TARGET}:policy/AmiShareKeyAccess");
    for role in ["app", "AmiShareLauncher"] {
        stage.iam("AttachRolePolicy", &[("RoleName", role), ("PolicyArn", &managed)]);
    }
    stage.iam("AttachUserPolicy", &[("UserName", "ci"), ("PolicyArn", &managed)]);
    let keys = ["1", "2"].map(|id| KeyArn::parse(format!("arn:aws:kms:{REGION}:{SOURCE}:key/{id}")).unwrap());
    for key in &keys {
        let (name, document) = (inline_policy_name(key), inline_policy(key).to_string());
        stage.iam("PutRolePolicy", &[("RoleName", "app"), ("PolicyName", &name), ("PolicyDocument", &document)]);
    }
    let principal = |name: &str| format!("arn:aws:iam::{TARGET}:{name}");
    let input = |changes: Value| {
        let target = json!({ "accountId": TARGET, "instances": [], "copies": [], "principalChanges": changes });
        json!({ "execution": "undo", "source": source(), "target": target })
    };
    let changes = json!([
        { "principal": principal("role/app") },
        { "principal": principal("role/AmiShareLauncher") },
        { "principal": principal("role/that-is-gone") },
        { "principal": principal("user/ci") },
        { "principal": principal("role/app"), "keyArns": [keys[0]] },
    ]);
    let taken = stage.undo("UndoGrantPrincipals", &input(changes.clone()));
    let told = |call: &str, resource: &str, from: &[&str]| {
        (call.to_owned(), resource.to_owned(), from.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(
        taken,
        [
            told("iam:DeleteRolePolicy", "AmiShare-1", &["role/app"]),
            told("iam:DetachRolePolicy", "AmiShareKeyAccess", &["role/app", "role/AmiShareLauncher"]),
            told("iam:DetachUserPolicy", "AmiShareKeyAccess", &["user/ci"]),
        ]
    );
    let listed = Caller::root(TARGET)
        .call(&mut stage.machine.world(), "iam", "ListRolePolicies", &[("RoleName", "app")])
        .unwrap();
    assert!(listed.contains("AmiShare-2") && !listed.contains("AmiShare-1"), "{listed}");
    assert_eq!(stage.undo("UndoGrantPrincipals", &input(changes)), []);
}
