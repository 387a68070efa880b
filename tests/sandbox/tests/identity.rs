//! Who a caller is, and what assuming a role takes.

use crate::accounts::{A, B, Clients, HUB, allow, as_role, code, message, role, root, sandbox, with_session};
use ami_share_sandbox::{Sandbox, Settings};
use aws_sdk_sts::types::Tag;
use serde_json::{Value, json};

/// A role in the hub and a role in B that trusts it.
async fn hub_and_target(sandbox: &Sandbox) -> (String, String) {
    let function = role(&root(sandbox, HUB), "function", &format!("arn:aws:iam::{HUB}:root")).await;
    let target = role(&root(sandbox, B), "target", &function).await;
    let statement = json!([{ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": target }]);
    allow(&root(sandbox, HUB), "function", statement).await;
    (function, target)
}

/// One statement, or a list of them.
async fn set_trust(sandbox: &Sandbox, statements: Value) {
    let document = json!({ "Version": "2012-10-17", "Statement": statements });
    root(sandbox, B)
        .iam
        .update_assume_role_policy()
        .role_name("target")
        .policy_document(document.to_string())
        .send()
        .await
        .expect("a good trust policy");
}

async fn try_assume(caller: &Clients, target: &str) -> String {
    code(caller.sts.assume_role().role_arn(target).role_session_name("run-1").send().await)
}

#[tokio::test]
async fn a_twelve_digit_key_is_the_root_of_its_account() {
    let sandbox = sandbox().await;
    let identity = root(&sandbox, A).sts.get_caller_identity().send().await.unwrap();
    assert_eq!(identity.account(), Some(A));
    assert_eq!(identity.arn(), Some("arn:aws:iam::111111111111:root"));
}

#[tokio::test]
async fn an_unknown_key_is_refused_in_each_services_words() {
    let sandbox = sandbox().await;
    let key = ami_share_sandbox::sts::AccessKey { id: "ASIAUNKNOWN".to_owned(), secret: "x".to_owned(), token: None };
    let stranger = crate::accounts::with_key(&sandbox, &key);
    assert_eq!(code(stranger.sts.get_caller_identity().send().await), "InvalidClientTokenId");
    assert_eq!(code(stranger.kms.list_keys().send().await), "UnrecognizedClientException");
    assert_eq!(code(stranger.ec2.describe_images().send().await), "AuthFailure");
    let world = sandbox.world();
    assert!(world.journal.entries().iter().all(|entry| entry.principal.contains("ASIAUNKNOWN")));
    assert_eq!(world.journal.entries().len(), 3);
}

#[tokio::test]
async fn an_assumed_role_is_itself_with_its_session_name() {
    let sandbox = sandbox().await;
    let (function, target) = hub_and_target(&sandbox).await;
    let assumed = as_role(&sandbox, &function)
        .sts
        .assume_role()
        .role_arn(&target)
        .role_session_name("run-1")
        .send()
        .await
        .unwrap();
    let session = with_session(&sandbox, assumed.credentials().unwrap());
    let identity = session.sts.get_caller_identity().send().await.unwrap();
    assert_eq!(identity.account(), Some(B));
    assert_eq!(identity.arn(), Some("arn:aws:sts::222222222222:assumed-role/target/run-1"));
    let world = sandbox.world();
    let last = world.journal.entries().last().unwrap();
    assert_eq!(last.account, B);
    assert_eq!(last.principal, target);
    assert_eq!(last.session_name.as_deref(), Some("run-1"));
    assert_eq!(last.assumed_by.as_deref(), Some(function.as_str()));
}

#[tokio::test]
async fn a_session_needs_its_token() {
    let sandbox = sandbox().await;
    let (function, _) = hub_and_target(&sandbox).await;
    let mut key = ami_share_sandbox::sts::issue_session(&mut sandbox.world(), &function, "s").unwrap();
    key.token = Some("another".to_owned());
    let forged = crate::accounts::with_key(&sandbox, &key);
    assert_eq!(code(forged.sts.get_caller_identity().send().await), "InvalidClientTokenId");
}

#[tokio::test]
async fn across_accounts_trust_and_identity_policy_must_both_allow() {
    let sandbox = sandbox().await;
    let (function, target) = hub_and_target(&sandbox).await;
    let caller = as_role(&sandbox, &function);
    assert_eq!(try_assume(&caller, &target).await, "no error");

    allow(&root(&sandbox, HUB), "function", json!([{ "Effect": "Allow", "Action": "ec2:*", "Resource": "*" }])).await;
    let refused = caller.sts.assume_role().role_arn(&target).role_session_name("run-1").send().await;
    assert!(message(refused).contains("no identity-based policy allows"));

    allow(&root(&sandbox, HUB), "function", json!([{ "Effect": "Allow", "Action": "sts:*", "Resource": "*" }])).await;
    assert_eq!(try_assume(&caller, &target).await, "no error");
    let other = role(&root(&sandbox, HUB), "other", &format!("arn:aws:iam::{HUB}:root")).await;
    set_trust(&sandbox, json!({ "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": { "AWS": other } })).await;
    let refused = caller.sts.assume_role().role_arn(&target).role_session_name("run-1").send().await;
    assert!(message(refused).contains("no resource-based policy allows"));
}

/// "Permissions required to set source identity" (IAM user guide): both sides allow it, besides that the role is assumed.
#[tokio::test]
async fn a_source_identity_is_set_where_trust_policy_and_caller_both_allow_it() {
    let sandbox = sandbox().await;
    let (function, target) = hub_and_target(&sandbox).await;
    let caller = as_role(&sandbox, &function);
    let principal = json!({ "AWS": format!("arn:aws:iam::{HUB}:root") });
    let statement = |action: &str| json!({ "Effect": "Allow", "Action": action, "Principal": principal });
    let condition = json!({ "StringEquals": { "sts:ExternalId": "word" } });
    let mut with_external_id = statement("sts:SetSourceIdentity");
    with_external_id["Condition"] = condition;
    for (named, allowed, expected) in [
        (json!([]), "sts:*", "AccessDenied"),
        (json!([with_external_id]), "sts:*", "AccessDenied"),
        (json!([statement("sts:SetSourceIdentity")]), "sts:AssumeRole", "AccessDenied"),
        (json!([statement("sts:SetSourceIdentity")]), "sts:*", "no error"),
    ] {
        let mut trust = vec![statement("sts:AssumeRole")];
        trust.extend(named.as_array().unwrap().iter().cloned());
        set_trust(&sandbox, json!(trust)).await;
        let policy = json!([{ "Effect": "Allow", "Action": allowed, "Resource": "*" }]);
        allow(&root(&sandbox, HUB), "function", policy).await;
        assert_eq!(try_assume(&caller, &target).await, "no error", "{trust:?}");
        let call = caller.sts.assume_role().role_arn(&target).role_session_name("run-1").external_id("word");
        assert_eq!(code(call.source_identity("run-1").send().await), expected, "{trust:?}, {allowed}");
    }
}

#[tokio::test]
async fn in_one_account_a_trust_policy_that_names_the_role_is_enough() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let caller = role(&admin, "caller", &format!("arn:aws:iam::{B}:root")).await;
    let named = role(&admin, "named", &caller).await;
    let by_account = role(&admin, "by-account", &format!("arn:aws:iam::{B}:root")).await;
    let session = as_role(&sandbox, &caller);
    assert_eq!(try_assume(&session, &named).await, "no error");
    assert_eq!(try_assume(&session, &by_account).await, "AccessDenied");
    allow(&admin, "caller", json!([{ "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": by_account }])).await;
    assert_eq!(try_assume(&session, &by_account).await, "no error");
}

#[tokio::test]
async fn the_external_id_is_checked() {
    let sandbox = sandbox().await;
    let (function, target) = hub_and_target(&sandbox).await;
    set_trust(
        &sandbox,
        json!({
            "Effect": "Allow",
            "Action": "sts:AssumeRole",
            "Principal": { "AWS": format!("arn:aws:iam::{HUB}:root") },
            "Condition": {
                "StringEquals": { "sts:ExternalId": "team-42" },
                "ArnLike": { "aws:PrincipalArn": format!("arn:aws:iam::{HUB}:role/func*") },
            },
        }),
    )
    .await;
    let caller = as_role(&sandbox, &function);
    let request = || caller.sts.assume_role().role_arn(&target).role_session_name("run-1");
    assert_eq!(code(request().send().await), "AccessDenied");
    assert_eq!(code(request().external_id("team-43").send().await), "AccessDenied");
    assert_eq!(code(request().external_id("team-42").send().await), "no error");
}

#[tokio::test]
async fn the_session_policy_limits() {
    let sandbox = sandbox().await;
    let (function, target) = hub_and_target(&sandbox).await;
    let admin = root(&sandbox, B);
    allow(&admin, "target", json!([{ "Effect": "Allow", "Action": "iam:*", "Resource": "*" }])).await;
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Allow", "Action": "iam:GetRole", "Resource": "*" }],
    });
    let assumed = as_role(&sandbox, &function)
        .sts
        .assume_role()
        .role_arn(&target)
        .role_session_name("run-1")
        .policy(policy.to_string())
        .send()
        .await
        .unwrap();
    let session = with_session(&sandbox, assumed.credentials().unwrap());
    assert_eq!(code(session.iam.get_role().role_name("target").send().await), "no error");
    let refused = session.iam.delete_role().role_name("target").send().await;
    assert!(message(refused).contains("no session policy allows the iam:DeleteRole action"));
}

#[tokio::test]
async fn a_session_policy_has_at_most_2048_characters() {
    let sandbox = sandbox().await;
    let (function, target) = hub_and_target(&sandbox).await;
    let policy = |length: usize| {
        let document = json!({
            "Version": "2012-10-17",
            "Statement": [{ "Effect": "Allow", "Action": "ec2:*", "Resource": "*" }],
        })
        .to_string();
        format!("{document}{}", " ".repeat(length - document.len()))
    };
    let caller = as_role(&sandbox, &function);
    let request = || caller.sts.assume_role().role_arn(&target).role_session_name("run-1");
    assert_eq!(code(request().policy(policy(2_048)).send().await), "no error");
    assert_eq!(code(request().policy(policy(2_049)).send().await), "ValidationError");
}

#[tokio::test]
async fn session_names_are_checked() {
    let sandbox = sandbox().await;
    let (function, target) = hub_and_target(&sandbox).await;
    let caller = as_role(&sandbox, &function);
    for (name, expected) in [
        ("ab", "no error"),
        ("a", "ValidationError"),
        ("with space", "ValidationError"),
        (&"x".repeat(64), "no error"),
        (&"x".repeat(65), "ValidationError"),
    ] {
        let result = caller.sts.assume_role().role_arn(&target).role_session_name(name).send().await;
        assert_eq!(code(result), expected, "{name}");
    }
}

#[tokio::test]
async fn session_tags_are_context() {
    let sandbox = sandbox().await;
    let (function, target) = hub_and_target(&sandbox).await;
    allow(
        &root(&sandbox, B),
        "target",
        json!([{
            "Effect": "Allow", "Action": "iam:GetRole", "Resource": "*",
            "Condition": { "StringEquals": { "aws:PrincipalTag/execution": "run-1" } },
        }]),
    )
    .await;
    allow(&root(&sandbox, HUB), "function", json!([{ "Effect": "Allow", "Action": "sts:*", "Resource": "*" }])).await;
    let caller = as_role(&sandbox, &function);
    for (value, expected) in [("run-1", "no error"), ("run-2", "AccessDenied")] {
        let tag = Tag::builder().key("execution").value(value).build().unwrap();
        let assumed =
            caller.sts.assume_role().role_arn(&target).role_session_name("run-1").tags(tag).send().await.unwrap();
        let session = with_session(&sandbox, assumed.credentials().unwrap());
        assert_eq!(code(session.iam.get_role().role_name("target").send().await), expected);
    }
}

#[tokio::test]
async fn root_assumes_no_role() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let target = role(&admin, "target", &format!("arn:aws:iam::{B}:root")).await;
    assert_eq!(try_assume(&admin, &target).await, "AccessDenied");
}

#[tokio::test]
async fn a_service_assumes_only_a_role_that_trusts_it() {
    let sandbox = sandbox().await;
    let (_, target) = hub_and_target(&sandbox).await;
    let may = |service: &str| ami_share_sandbox::sts::service_may_assume(&sandbox.world(), &target, service);
    assert!(!may("lambda.amazonaws.com"));
    set_trust(
        &sandbox,
        json!({ "Effect": "Allow", "Action": "sts:AssumeRole", "Principal": { "Service": ["lambda.amazonaws.com"] } }),
    )
    .await;
    assert!(may("lambda.amazonaws.com"));
    assert!(!may("ec2.amazonaws.com"));
}

#[tokio::test]
async fn a_role_made_anew_is_another_role() {
    let sandbox = sandbox().await;
    let (function, target) = hub_and_target(&sandbox).await;
    let session = as_role(&sandbox, &function);
    let admin = root(&sandbox, HUB);
    admin.iam.delete_role_policy().role_name("function").policy_name("access").send().await.unwrap();
    admin.iam.delete_role().role_name("function").send().await.unwrap();
    assert_eq!(code(session.sts.get_caller_identity().send().await), "InvalidClientTokenId");

    let again = role(&admin, "function", &format!("arn:aws:iam::{HUB}:root")).await;
    assert_eq!(again, function);
    allow(&admin, "function", json!([{ "Effect": "Allow", "Action": "sts:*", "Resource": "*" }])).await;
    // The trust policy was written for the role that is gone.
    assert_eq!(try_assume(&as_role(&sandbox, &again), &target).await, "AccessDenied");
}

#[tokio::test]
async fn a_user_calls_with_its_access_key() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    admin.iam.create_user().user_name("deployer").send().await.unwrap();
    let created = admin.iam.create_access_key().user_name("deployer").send().await.unwrap();
    let key = created.access_key().unwrap();
    let user = crate::accounts::with_key(
        &sandbox,
        &ami_share_sandbox::sts::AccessKey {
            id: key.access_key_id().to_owned(),
            secret: key.secret_access_key().to_owned(),
            token: None,
        },
    );
    let identity = user.sts.get_caller_identity().send().await.unwrap();
    assert_eq!(identity.arn(), Some("arn:aws:iam::222222222222:user/deployer"));
    assert_eq!(code(user.iam.get_user().user_name("deployer").send().await), "AccessDenied");
}

#[tokio::test]
async fn an_explicit_deny_wins() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let arn = role(&admin, "worker", &format!("arn:aws:iam::{B}:root")).await;
    allow(
        &admin,
        "worker",
        json!([
            { "Effect": "Allow", "Action": "iam:*", "Resource": "*" },
            { "Effect": "Deny", "Action": "IAM:getrole", "Resource": "arn:aws:iam::*:role/work*" },
        ]),
    )
    .await;
    let worker = as_role(&sandbox, &arn);
    let refused = worker.iam.get_role().role_name("worker").send().await;
    assert!(message(refused).contains("explicit deny in an identity-based policy"));
    assert_eq!(code(worker.iam.list_roles().send().await), "no error");
}

#[tokio::test]
async fn an_unknown_key_is_asked_for_upstream_and_remembered() {
    let upstream = sandbox().await;
    let function = role(&root(&upstream, HUB), "function", &format!("arn:aws:iam::{HUB}:root")).await;
    let key = ami_share_sandbox::sts::issue_session(&mut upstream.world(), &function, "share").unwrap();
    let settings = Settings { upstream_sts: Some(upstream.endpoint()), ..Settings::default() };
    let sandbox = Sandbox::start(settings).await.unwrap();
    let caller = crate::accounts::with_key(&sandbox, &key);
    for _ in 0..2 {
        let identity = caller.sts.get_caller_identity().send().await.unwrap();
        assert_eq!(identity.arn(), Some("arn:aws:sts::999999999999:assumed-role/function/share"));
    }
    assert_eq!(upstream.world().journal.entries().len(), 2, "CreateRole, and one GetCallerIdentity");

    // The role has no policies here until it is mirrored.
    let target = role(&root(&sandbox, B), "target", &format!("arn:aws:iam::{HUB}:root")).await;
    assert_eq!(try_assume(&caller, &target).await, "AccessDenied");
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": target },
    ] });
    let mut exported = upstream.world().export_iam(HUB);
    exported["roles"]["function"]["inline"] = json!({ "assume": policy });
    sandbox.world().import_iam(HUB, &exported).unwrap();
    assert_eq!(try_assume(&caller, &target).await, "no error");
}
