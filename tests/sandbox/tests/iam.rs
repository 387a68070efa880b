//! IAM: policies, their limits, and who may change them.

use crate::accounts::{B, Clients, allow, as_role, code, message, role, root, sandbox};
use aws_sdk_iam::types::{ContextEntry, PolicyEvaluationDecisionType};
use serde_json::{Value, json};

const ACCOUNT_ROOT: &str = "arn:aws:iam::222222222222:root";

fn document(action: &str) -> String {
    json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Allow", "Action": action, "Resource": "*" }],
    })
    .to_string()
}

/// A valid document of exactly so many characters that count.
fn document_of_size(size: usize) -> String {
    let with_action = |filler: usize| document(&format!("ec2:{}", "x".repeat(filler)));
    let smallest = with_action(1).len();
    with_action(size - smallest + 1)
}

async fn policy(admin: &Clients, name: &str) -> String {
    let created =
        admin.iam.create_policy().policy_name(name).policy_document(document("kms:Decrypt")).send().await.unwrap();
    created.policy().unwrap().arn().unwrap().to_owned()
}

#[tokio::test]
async fn a_role_is_made_read_and_deleted() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let arn = role(&admin, "worker", ACCOUNT_ROOT).await;
    assert_eq!(arn, "arn:aws:iam::222222222222:role/worker");
    let read = admin.iam.get_role().role_name("worker").send().await.unwrap();
    let read = read.role().unwrap();
    assert!(read.role_id().starts_with("AROA"));
    // IAM gives documents back percent-encoded.
    let trust = read.assume_role_policy_document().unwrap();
    assert!(trust.starts_with("%7B%22Version%22"), "{trust}");
    assert_eq!(
        code(admin.iam.create_role().role_name("worker").assume_role_policy_document("{}").send().await),
        "EntityAlreadyExists"
    );
    admin.iam.delete_role().role_name("worker").send().await.unwrap();
    assert_eq!(code(admin.iam.get_role().role_name("worker").send().await), "NoSuchEntity");
}

#[tokio::test]
async fn a_managed_policy_is_attached_used_and_detached() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let arn = role(&admin, "worker", ACCOUNT_ROOT).await;
    let created =
        admin.iam.create_policy().policy_name("reader").policy_document(document("iam:GetRole")).send().await.unwrap();
    let policy_arn = created.policy().unwrap().arn().unwrap();
    let worker = as_role(&sandbox, &arn);
    let try_it = || async { code(worker.iam.get_role().role_name("worker").send().await) };
    assert_eq!(try_it().await, "AccessDenied");
    for changes in [true, false] {
        admin.iam.attach_role_policy().role_name("worker").policy_arn(policy_arn).send().await.unwrap();
        assert_eq!(sandbox.world().journal.entries().last().unwrap().changed, changes);
    }
    assert_eq!(try_it().await, "no error");
    admin
        .iam
        .create_policy_version()
        .policy_arn(policy_arn)
        .policy_document(document("iam:ListRoles"))
        .set_as_default(true)
        .send()
        .await
        .unwrap();
    assert_eq!(try_it().await, "AccessDenied");
    admin.iam.set_default_policy_version().policy_arn(policy_arn).version_id("v1").send().await.unwrap();
    assert_eq!(try_it().await, "no error");
    assert_eq!(code(admin.iam.delete_policy().policy_arn(policy_arn).send().await), "DeleteConflict");
    admin.iam.detach_role_policy().role_name("worker").policy_arn(policy_arn).send().await.unwrap();
    assert_eq!(try_it().await, "AccessDenied");
    let again = admin.iam.detach_role_policy().role_name("worker").policy_arn(policy_arn).send().await;
    assert_eq!(code(again), "NoSuchEntity");
}

#[tokio::test]
async fn ten_policies_can_be_attached_and_no_more() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    admin.iam.create_user().user_name("deployer").send().await.unwrap();
    for number in 0..11 {
        let arn = policy(&admin, &format!("policy-{number}")).await;
        let result = admin.iam.attach_user_policy().user_name("deployer").policy_arn(arn).send().await;
        assert_eq!(code(result), if number < 10 { "no error" } else { "LimitExceeded" });
    }
    let mut names = Vec::new();
    let mut pages = admin.iam.list_attached_user_policies().user_name("deployer").into_paginator().page_size(4).send();
    let mut count = 0;
    while let Some(page) = pages.next().await {
        count += 1;
        names.extend(page.unwrap().attached_policies().iter().map(|policy| policy.policy_name().unwrap().to_owned()));
    }
    assert_eq!(count, 3);
    assert_eq!(names.len(), 10);
    assert_eq!(names[9], "policy-9");
}

#[tokio::test]
async fn documents_have_their_size_limits() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    role(&admin, "worker", ACCOUNT_ROOT).await;
    admin.iam.create_user().user_name("deployer").send().await.unwrap();
    let managed =
        |size| admin.iam.create_policy().policy_name(format!("p{size}")).policy_document(document_of_size(size)).send();
    assert_eq!(code(managed(6_144).await), "no error");
    assert_eq!(code(managed(6_145).await), "LimitExceeded");
    let inline = |name: &str, size| {
        admin.iam.put_role_policy().role_name("worker").policy_name(name).policy_document(document_of_size(size)).send()
    };
    // The limit is on all of a role's inline policies together.
    assert_eq!(code(inline("one", 5_120).await), "no error");
    assert_eq!(code(inline("two", 5_121).await), "LimitExceeded");
    assert_eq!(code(inline("two", 5_120).await), "no error");
    let user = |size| {
        admin
            .iam
            .put_user_policy()
            .user_name("deployer")
            .policy_name("one")
            .policy_document(document_of_size(size))
            .send()
    };
    assert_eq!(code(user(2_048).await), "no error");
    assert_eq!(code(user(2_049).await), "LimitExceeded");
    // White space does not count.
    let spaced = document_of_size(2_048).replace(',', ", ");
    let result =
        admin.iam.put_user_policy().user_name("deployer").policy_name("one").policy_document(spaced).send().await;
    assert_eq!(code(result), "no error");
}

#[tokio::test]
async fn bad_documents_are_refused() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let statement = |change: fn(&mut Value)| {
        let mut statement = json!({ "Effect": "Allow", "Action": "ec2:*", "Resource": "*" });
        change(&mut statement);
        json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string()
    };
    let bad = [
        "not json".to_owned(),
        json!({ "Version": "2012-10-17" }).to_string(),
        json!({ "Version": "2020-01-01", "Statement": [] }).to_string(),
        statement(|s| s["Effect"] = json!("allow")),
        statement(|s| s["Action"] = json!("ec2")),
        statement(|s| s["Resource"] = json!("everything")),
        statement(|s| s["Principal"] = json!("*")),
        statement(|s| s["Sid"] = json!("with space")),
        statement(|s| s["Extra"] = json!(1)),
        statement(|s| s["Condition"] = json!({ "StringAlike": { "aws:username": "x" } })),
        statement(|s| {
            s.as_object_mut().unwrap().remove("Action");
        }),
        statement(|s| {
            s.as_object_mut().unwrap().remove("Resource");
        }),
    ];
    for text in bad {
        let result = admin.iam.create_policy().policy_name("bad").policy_document(&text).send().await;
        assert_eq!(code(result), "MalformedPolicyDocument", "{text}");
    }
    let result = admin.iam.create_policy().policy_name("good").policy_document(statement(|_| ())).send().await;
    assert_eq!(code(result), "no error");
}

#[tokio::test]
async fn a_trust_policy_names_principals_that_exist() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let create = |principal: &str| {
        let trust = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": { "AWS": principal } },
        ] });
        admin.iam.create_role().role_name("worker").assume_role_policy_document(trust.to_string()).send()
    };
    let refused = create("arn:aws:iam::222222222222:role/nobody").await;
    assert!(message(refused).contains("Invalid principal in policy"));
    assert_eq!(code(create("222222222222").await), "no error");
}

#[tokio::test]
async fn attaching_can_be_limited_to_one_policy_and_some_principals() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let manager = role(&admin, "manager", ACCOUNT_ROOT).await;
    role(&admin, "app-deployer", ACCOUNT_ROOT).await;
    role(&admin, "admin", ACCOUNT_ROOT).await;
    let access = policy(&admin, "KeyAccess").await;
    let other = policy(&admin, "Other").await;
    allow(
        &admin,
        "manager",
        json!([{
            "Effect": "Allow",
            "Action": ["iam:AttachRolePolicy", "iam:DetachRolePolicy"],
            "Resource": "arn:aws:iam::222222222222:role/app-*",
            "Condition": { "ArnEquals": { "iam:PolicyARN": access } },
        }]),
    )
    .await;
    let manager = as_role(&sandbox, &manager);
    let attach = |role: &str, policy: &str| manager.iam.attach_role_policy().role_name(role).policy_arn(policy).send();
    assert_eq!(code(attach("app-deployer", &access).await), "no error");
    assert_eq!(code(attach("app-deployer", &other).await), "AccessDenied");
    assert_eq!(code(attach("admin", &access).await), "AccessDenied");
}

#[tokio::test]
async fn service_linked_roles_are_aws_own() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let create = || admin.iam.create_service_linked_role().aws_service_name("autoscaling.amazonaws.com").send();
    let created = create().await.unwrap();
    let arn = created.role().unwrap().arn().to_owned();
    assert_eq!(
        arn,
        "arn:aws:iam::222222222222:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
    );
    assert_eq!(code(create().await), "InvalidInput");
    let attach = admin
        .iam
        .attach_role_policy()
        .role_name("AWSServiceRoleForAutoScaling")
        .policy_arn("arn:aws:iam::aws:policy/AdministratorAccess")
        .send()
        .await;
    assert_eq!(code(attach), "UnmodifiableEntity");
    // Its policy is AWS's: it may use EC2, but no key.
    let service = as_role(&sandbox, &arn);
    assert_eq!(code(service.kms.list_keys().send().await), "AccessDeniedException");
    assert_eq!(code(service.ec2.describe_images().send().await), "no error");
}

#[tokio::test]
async fn simulation_gives_what_evaluation_would() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let arn = role(&admin, "worker", ACCOUNT_ROOT).await;
    let key = "arn:aws:kms:eu-west-1:111111111111:key/0";
    allow(
        &admin,
        "worker",
        json!([
            {
                "Effect": "Allow", "Action": ["kms:Decrypt", "kms:ReEncrypt*"], "Resource": key,
                "Condition": { "StringEquals": { "kms:ViaService": "ec2.eu-west-1.amazonaws.com" } },
            },
            { "Effect": "Deny", "Action": "kms:ReEncryptTo", "Resource": "*" },
        ]),
    )
    .await;
    let via = ContextEntry::builder()
        .context_key_name("kms:ViaService")
        .context_key_type(aws_sdk_iam::types::ContextKeyTypeEnum::String)
        .context_key_values("ec2.eu-west-1.amazonaws.com")
        .build();
    let simulated = admin
        .iam
        .simulate_principal_policy()
        .policy_source_arn(&arn)
        .action_names("kms:Decrypt")
        .action_names("kms:ReEncryptTo")
        .action_names("kms:CreateGrant")
        .resource_arns(key)
        .context_entries(via)
        .send()
        .await
        .unwrap();
    let decisions: Vec<_> =
        simulated.evaluation_results().iter().map(|result| result.eval_decision().clone()).collect();
    assert_eq!(
        decisions,
        [
            PolicyEvaluationDecisionType::Allowed,
            PolicyEvaluationDecisionType::ExplicitDeny,
            PolicyEvaluationDecisionType::ImplicitDeny
        ]
    );
    let without =
        admin.iam.simulate_principal_policy().policy_source_arn(&arn).action_names("kms:Decrypt").resource_arns(key);
    let results = without.send().await.unwrap();
    assert_eq!(results.evaluation_results()[0].eval_decision(), &PolicyEvaluationDecisionType::ImplicitDeny);
}

#[tokio::test]
async fn conditions_mean_what_they_mean_in_aws() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let arn = role(&admin, "worker", ACCOUNT_ROOT).await;
    let worker = as_role(&sandbox, &arn);
    let cases = [
        (json!({ "StringEquals": { "aws:PrincipalAccount": "222222222222" } }), true),
        (json!({ "StringEquals": { "AWS:principalaccount": "222222222222" } }), true),
        (json!({ "StringEquals": { "aws:PrincipalAccount": ["1", "222222222222"] } }), true),
        (json!({ "StringNotEquals": { "aws:PrincipalAccount": "222222222222" } }), false),
        (json!({ "StringLike": { "aws:PrincipalArn": "*:role/w?rker" } }), true),
        (json!({ "ArnEquals": { "aws:PrincipalArn": "arn:aws:iam::*:role/worker" } }), true),
        (json!({ "ArnNotLike": { "aws:PrincipalArn": "arn:aws:iam::*:role/worker" } }), false),
        (json!({ "Bool": { "aws:SecureTransport": "true" } }), true),
        (json!({ "Bool": { "aws:SecureTransport": true } }), true),
        (json!({ "Bool": { "aws:ViaAWSService": "true" } }), false),
        (json!({ "BoolIfExists": { "aws:ViaAWSService": "true" } }), true),
        (json!({ "StringEquals": { "sts:ExternalId": "x" } }), false),
        (json!({ "StringEqualsIfExists": { "sts:ExternalId": "x" } }), true),
        (json!({ "Null": { "sts:ExternalId": "true" } }), true),
        (json!({ "ForAllValues:StringEquals": { "aws:TagKeys": ["a"] } }), true),
        (json!({ "ForAnyValue:StringEquals": { "aws:TagKeys": ["a"] } }), false),
        (json!({ "DateGreaterThan": { "aws:CurrentTime": "2020-01-01T00:00:00Z" } }), true),
        (json!({ "StringEquals": { "aws:PrincipalArn": "arn:aws:iam::${aws:PrincipalAccount}:role/worker" } }), true),
        (json!({ "StringEquals": { "aws:PrincipalArn": "arn:aws:iam::${aws:userid}:role/worker" } }), false),
        (
            json!({
                "StringEquals": { "aws:PrincipalAccount": "222222222222" },
                "StringLike": { "aws:PrincipalArn": "*/other" },
            }),
            false,
        ),
    ];
    for (condition, allowed) in cases {
        let statement =
            json!([{ "Effect": "Allow", "Action": "iam:GetRole", "Resource": "*", "Condition": condition }]);
        allow(&admin, "worker", statement).await;
        let expected = if allowed { "no error" } else { "AccessDenied" };
        assert_eq!(code(worker.iam.get_role().role_name("worker").send().await), expected, "{condition}");
    }
}

#[tokio::test]
async fn not_action_and_not_resource_exclude() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let arn = role(&admin, "worker", ACCOUNT_ROOT).await;
    role(&admin, "other", ACCOUNT_ROOT).await;
    allow(
        &admin,
        "worker",
        json!([{ "Effect": "Allow", "NotAction": "iam:Delete*", "NotResource": "arn:aws:iam::*:role/other" }]),
    )
    .await;
    let worker = as_role(&sandbox, &arn);
    assert_eq!(code(worker.iam.get_role().role_name("worker").send().await), "no error");
    assert_eq!(code(worker.iam.get_role().role_name("other").send().await), "AccessDenied");
    assert_eq!(code(worker.iam.delete_role().role_name("worker").send().await), "AccessDenied");
}

#[tokio::test]
async fn what_is_exported_can_be_imported() {
    let first = sandbox().await;
    let admin = root(&first, B);
    role(&admin, "worker", ACCOUNT_ROOT).await;
    allow(&admin, "worker", json!([{ "Effect": "Allow", "Action": "iam:*", "Resource": "*" }])).await;
    let access = policy(&admin, "KeyAccess").await;
    admin.iam.attach_role_policy().role_name("worker").policy_arn(access).send().await.unwrap();
    admin.iam.create_user().user_name("deployer").path("/ci/").send().await.unwrap();
    let exported = first.world().export_iam(B);

    let second = sandbox().await;
    second.world().import_iam(B, &exported).unwrap();
    assert_eq!(second.world().export_iam(B), exported);
    let worker = as_role(&second, "arn:aws:iam::222222222222:role/worker");
    assert_eq!(code(worker.iam.get_user().user_name("deployer").send().await), "no error");
}
