//! KMS: who may use a key, and what a key policy may say.

use crate::accounts::{A, B, Clients, REGION, allow, as_role, code, message, role, root, sandbox, with_session};
use ami_share_sandbox::auth::{Caller, CallerKind, Context, Refusal};
use ami_share_sandbox::{Sandbox, kms as keys};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{GrantConstraints, GrantOperation, KeyManagerType, KeyState};
use serde_json::{Value, json};

const A_ROOT: &str = "arn:aws:iam::111111111111:root";
const B_ROOT: &str = "arn:aws:iam::222222222222:root";

/// A new key in A; its ARN.
async fn key(sandbox: &Sandbox) -> String {
    let created = root(sandbox, A).kms.create_key().send().await.unwrap();
    created.key_metadata().unwrap().arn().unwrap().to_owned()
}

/// A role in B that may do everything with keys as far as B is concerned.
async fn user_of_keys(sandbox: &Sandbox) -> String {
    let admin = root(sandbox, B);
    let arn = role(&admin, "app", B_ROOT).await;
    allow(&admin, "app", json!([{ "Effect": "Allow", "Action": "kms:*", "Resource": "*" }])).await;
    arn
}

fn account_statement() -> Value {
    json!({ "Sid": "Enable IAM User Permissions", "Effect": "Allow", "Principal": { "AWS": A_ROOT }, "Action": "kms:*", "Resource": "*" })
}

fn document(statements: Value) -> String {
    json!({ "Version": "2012-10-17", "Statement": statements }).to_string()
}

async fn put(clients: &Clients, key: &str, statements: Value) -> String {
    code(clients.kms.put_key_policy().key_id(key).policy(document(statements)).send().await)
}

async fn get(clients: &Clients, key: &str) -> String {
    clients.kms.get_key_policy().key_id(key).send().await.unwrap().policy().unwrap().to_owned()
}

/// The code that a dry run of Decrypt ends with.
async fn try_decrypt(clients: &Clients, key: &str) -> String {
    let blob = Blob::new("any");
    code(clients.kms.decrypt().key_id(key).ciphertext_blob(blob).dry_run(true).send().await)
}

const ALLOWED: &str = "DryRunOperationException";
const DENIED: &str = "AccessDeniedException";

#[tokio::test]
async fn in_its_own_account_the_key_policy_must_allow() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let direct = role(&admin, "direct", A_ROOT).await;
    let delegated = role(&admin, "delegated", A_ROOT).await;
    let (direct, delegated) = (as_role(&sandbox, &direct), as_role(&sandbox, &delegated));

    // The account decides: an identity policy is needed, and enough.
    assert_eq!(try_decrypt(&delegated, &key).await, DENIED);
    allow(&admin, "delegated", json!([{ "Effect": "Allow", "Action": "kms:Decrypt", "Resource": key }])).await;
    assert_eq!(try_decrypt(&delegated, &key).await, ALLOWED);

    // Named itself: no identity policy is needed.
    let named = json!({ "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::111111111111:role/direct" }, "Action": "kms:Decrypt", "Resource": "*" });
    assert_eq!(put(&admin, &key, json!([account_statement(), named])).await, "no error");
    assert_eq!(try_decrypt(&direct, &key).await, ALLOWED);

    // Without the account's statement an identity policy is worth nothing.
    let admin_only = json!({ "Effect": "Allow", "Principal": { "AWS": A_ROOT }, "Action": ["kms:PutKeyPolicy", "kms:GetKeyPolicy"], "Resource": "*" });
    assert_eq!(put(&admin, &key, json!([admin_only, named])).await, "no error");
    assert_eq!(try_decrypt(&delegated, &key).await, DENIED);
    assert_eq!(try_decrypt(&direct, &key).await, ALLOWED);
}

#[tokio::test]
async fn from_another_account_both_sides_must_allow() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let app = user_of_keys(&sandbox).await;
    let app_session = as_role(&sandbox, &app);
    let blob = Blob::new("any");
    let refused = app_session.kms.decrypt().key_id(&key).ciphertext_blob(blob.clone()).dry_run(true).send().await;
    assert!(message(refused).contains("no resource-based policy allows the kms:Decrypt action"));

    for principal in [json!(B_ROOT), json!("222222222222"), json!([app, A_ROOT]), json!("*")] {
        let statement =
            json!({ "Effect": "Allow", "Principal": { "AWS": principal }, "Action": "kms:Decrypt", "Resource": "*" });
        assert_eq!(put(&admin, &key, json!([account_statement(), statement])).await, "no error");
        assert_eq!(try_decrypt(&app_session, &key).await, ALLOWED, "{principal}");
    }
    allow(&root(&sandbox, B), "app", json!([{ "Effect": "Allow", "Action": "ec2:*", "Resource": "*" }])).await;
    let refused = app_session.kms.decrypt().key_id(&key).ciphertext_blob(blob).dry_run(true).send().await;
    assert!(message(refused).contains("no identity-based policy allows the kms:Decrypt action"));
}

#[tokio::test]
async fn a_session_policy_limits_the_use_of_keys() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let app = user_of_keys(&sandbox).await;
    let caller = role(&root(&sandbox, B), "caller", B_ROOT).await;
    allow(&root(&sandbox, B), "caller", json!([{ "Effect": "Allow", "Action": "sts:*", "Resource": "*" }])).await;
    let statement = json!({ "Effect": "Allow", "Principal": { "AWS": app }, "Action": "kms:*", "Resource": "*" });
    assert_eq!(put(&admin, &key, json!([account_statement(), statement])).await, "no error");
    for (action, expected) in [("kms:Decrypt", ALLOWED), ("kms:Encrypt", DENIED)] {
        let policy = document(json!([{ "Effect": "Allow", "Action": action, "Resource": "*" }]));
        let request = as_role(&sandbox, &caller).sts.assume_role().role_arn(&app).role_session_name("run-1");
        let assumed = request.policy(policy).send().await.unwrap();
        let session = with_session(&sandbox, assumed.credentials().unwrap());
        assert_eq!(try_decrypt(&session, &key).await, expected, "{action}");
    }
}

#[tokio::test]
async fn a_denial_in_the_key_policy_wins_and_not_principal_excludes() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let app = user_of_keys(&sandbox).await;
    let session = as_role(&sandbox, &app);
    let use_statement =
        json!({ "Effect": "Allow", "Principal": { "AWS": B_ROOT }, "Action": "kms:Decrypt", "Resource": "*" });
    let deny = json!({ "Effect": "Deny", "Principal": "*", "Action": "kms:*", "Resource": "*",
        "Condition": { "StringNotEquals": { "kms:CallerAccount": A } } });
    assert_eq!(put(&admin, &key, json!([account_statement(), use_statement, deny])).await, "no error");
    assert_eq!(try_decrypt(&session, &key).await, DENIED);
    let except = |who: &str| json!({ "Effect": "Deny", "NotPrincipal": { "AWS": [A_ROOT, who] }, "Action": "kms:Decrypt", "Resource": "*" });
    assert_eq!(put(&admin, &key, json!([account_statement(), use_statement, except(&app)])).await, "no error");
    assert_eq!(try_decrypt(&session, &key).await, ALLOWED);
    let other = role(&root(&sandbox, B), "other", B_ROOT).await;
    assert_eq!(put(&admin, &key, json!([account_statement(), use_statement, except(&other)])).await, "no error");
    assert_eq!(try_decrypt(&session, &key).await, DENIED);
}

#[tokio::test]
async fn a_mixed_principal_element_is_understood() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let app = as_role(&sandbox, &user_of_keys(&sandbox).await);
    let mixed = json!({ "Effect": "Allow", "Principal": { "AWS": [B_ROOT], "Service": "ec2.amazonaws.com" }, "Action": ["kms:Decrypt"], "Resource": "*" });
    assert_eq!(put(&admin, &key, json!([account_statement(), mixed])).await, "no error");
    assert_eq!(try_decrypt(&app, &key).await, ALLOWED);
}

#[tokio::test]
async fn the_key_policy_is_its_own_accounts_business() {
    let sandbox = sandbox().await;
    let key = key(&sandbox).await;
    let all = json!({ "Effect": "Allow", "Principal": { "AWS": B_ROOT }, "Action": "kms:*", "Resource": "*" });
    let statements = json!([account_statement(), all]);
    assert_eq!(put(&root(&sandbox, A), &key, statements.clone()).await, "no error");
    let stranger = root(&sandbox, B);
    assert_eq!(code(stranger.kms.get_key_policy().key_id(&key).send().await), DENIED);
    assert_eq!(put(&stranger, &key, statements).await, DENIED);
    assert_eq!(code(stranger.kms.describe_key().key_id(&key).send().await), "no error");
}

#[tokio::test]
async fn a_key_policy_comes_back_as_kms_writes_it() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let statement = json!({ "Sid": "B", "Effect": "Allow", "Principal": { "AWS": ["222222222222"] }, "Action": "kms:Decrypt", "Resource": "*" });
    assert_eq!(put(&admin, &key, json!([account_statement(), statement])).await, "no error");
    let expected = r#"{
  "Version" : "2012-10-17",
  "Statement" : [ {
    "Sid" : "Enable IAM User Permissions",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : "arn:aws:iam::111111111111:root"
    },
    "Action" : "kms:*",
    "Resource" : "*"
  }, {
    "Sid" : "B",
    "Effect" : "Allow",
    "Principal" : {
      "AWS" : [ "arn:aws:iam::222222222222:root" ]
    },
    "Action" : "kms:Decrypt",
    "Resource" : "*"
  } ]
}"#;
    let text = get(&admin, &key).await;
    assert_eq!(text, expected);
    // What was read can be written, and that changes nothing.
    assert_eq!(code(admin.kms.put_key_policy().key_id(&key).policy(&text).send().await), "no error");
    assert!(!sandbox.world().journal.entries().last().unwrap().changed);
}

#[tokio::test]
async fn bad_key_policies_are_refused_and_change_nothing() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let before = sandbox.world().snapshot(A);
    let other = |change: fn(&mut Value)| {
        let mut statement =
            json!({ "Effect": "Allow", "Principal": { "AWS": B_ROOT }, "Action": "kms:Decrypt", "Resource": "*" });
        change(&mut statement);
        document(json!([account_statement(), statement]))
    };
    let without = |name: &'static str| {
        let mut statement =
            json!({ "Effect": "Allow", "Principal": { "AWS": B_ROOT }, "Action": "kms:Decrypt", "Resource": "*" });
        statement.as_object_mut().unwrap().remove(name);
        document(json!([account_statement(), statement]))
    };
    let malformed = "MalformedPolicyDocumentException";
    let cases = [
        ("{".to_owned(), malformed),
        (without("Action"), malformed),
        (without("Resource"), malformed),
        (without("Principal"), malformed),
        (without("Effect"), malformed),
        (other(|s| s["Principal"] = json!({ "AWS": "arn:aws:iam::222222222222:role/nobody" })), malformed),
        (other(|s| s["Principal"] = json!({ "AWS": "AROA0123456789ABCDEFQ" })), malformed),
        (other(|s| s["Sid"] = json!("Ÿ")), "ValidationException"),
        (
            document(
                json!([{ "Effect": "Allow", "Principal": { "AWS": B_ROOT }, "Action": "kms:*", "Resource": "*" }]),
            ),
            malformed,
        ),
        (format!("{}{}", other(|_| ()), " ".repeat(32_768)), "LimitExceededException"),
    ];
    for (policy, expected) in cases {
        let result = admin.kms.put_key_policy().key_id(&key).policy(&policy).send().await;
        assert_eq!(code(result), expected, "{policy:.300}");
    }
    assert_eq!(sandbox.world().snapshot(A), before);
    let full = other(|_| ());
    let full = format!("{full}{}", " ".repeat(32_768 - full.len()));
    assert_eq!(code(admin.kms.put_key_policy().key_id(&key).policy(full).send().await), "no error");
    assert_ne!(sandbox.world().snapshot(A), before);
}

#[tokio::test]
async fn a_deleted_principal_reads_back_as_its_id_and_blocks_the_next_write() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let app = user_of_keys(&sandbox).await;
    let statement = json!({ "Effect": "Allow", "Principal": { "AWS": app }, "Action": "kms:Decrypt", "Resource": "*" });
    assert_eq!(put(&admin, &key, json!([account_statement(), statement])).await, "no error");
    let in_b = root(&sandbox, B);
    let id = in_b.iam.get_role().role_name("app").send().await.unwrap().role().unwrap().role_id().to_owned();
    in_b.iam.delete_role_policy().role_name("app").policy_name("access").send().await.unwrap();
    in_b.iam.delete_role().role_name("app").send().await.unwrap();
    let text = get(&admin, &key).await;
    assert!(text.contains(&format!("\"{id}\"")) && !text.contains(&app), "{text}");
    let refused = admin.kms.put_key_policy().key_id(&key).policy(&text).send().await;
    assert!(message(refused).contains("invalid principals"));

    // A role of the same name is somebody else.
    let again = user_of_keys(&sandbox).await;
    assert!(get(&admin, &key).await.contains(&id));
    assert_eq!(try_decrypt(&as_role(&sandbox, &again), &key).await, DENIED);
}

#[tokio::test]
async fn via_ec2_conditions_hold_for_ec2_only() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let app = user_of_keys(&sandbox).await;
    let via = json!({ "StringEquals": { "kms:ViaService": format!("ec2.{REGION}.amazonaws.com") } });
    let grant = json!({ "Bool": { "kms:GrantIsForAWSResource": "true" }, "StringEquals": { "kms:ViaService": format!("ec2.{REGION}.amazonaws.com") } });
    let statements = json!([
        account_statement(),
        { "Effect": "Allow", "Principal": { "AWS": B_ROOT }, "Action": "kms:Decrypt", "Resource": "*", "Condition": via },
        { "Effect": "Allow", "Principal": { "AWS": B_ROOT }, "Action": "kms:CreateGrant", "Resource": "*", "Condition": grant },
    ]);
    assert_eq!(put(&admin, &key, statements).await, "no error");
    let session = as_role(&sandbox, &app);
    assert_eq!(try_decrypt(&session, &key).await, DENIED);
    let own_grant = session.kms.create_grant().key_id(&key).grantee_principal(&app).operations(GrantOperation::Decrypt);
    assert_eq!(code(own_grant.send().await), DENIED);

    let world = &mut sandbox.world();
    let caller = role_caller(world, &app);
    let mut through_ec2 =
        |action: &str, region: &str| keys::use_as_aws_service(world, &caller, &key, action, region, &Context::new());
    assert_eq!(through_ec2("kms:Decrypt", REGION), Ok(()));
    assert_eq!(through_ec2("kms:CreateGrant", REGION), Ok(()));
    assert_eq!(through_ec2("kms:Decrypt", "us-east-1").unwrap_err().by, Refusal::KeyPolicy);
    assert_eq!(through_ec2("kms:DescribeKey", REGION).unwrap_err().action, "kms:DescribeKey");
    let internal: Vec<_> = world.journal.entries().iter().filter(|entry| entry.via.as_deref() == Some("ec2")).collect();
    assert_eq!(internal.len(), 4);
    assert!(internal[3].reason.as_ref().unwrap().contains("kms:DescribeKey"));
}

fn role_caller(world: &ami_share_sandbox::World, arn: &str) -> Caller {
    Caller {
        kind: CallerKind::Role,
        arn: arn.to_owned(),
        session_arn: "arn:aws:sts::222222222222:assumed-role/app/session".to_owned(),
        session_name: Some("session".to_owned()),
        principal_id: ami_share_sandbox::iam::unique_id(world, arn).unwrap(),
        ..Caller::root(B)
    }
}

#[tokio::test]
async fn the_default_ebs_key_is_awss_own() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let described = admin.kms.describe_key().key_id("alias/aws/ebs").send().await.unwrap();
    let metadata = described.key_metadata().unwrap();
    assert_eq!(metadata.key_manager(), Some(&KeyManagerType::Aws));
    let arn = metadata.arn().unwrap().to_owned();
    let policy = get(&admin, &arn).await;
    assert!(policy.contains("kms:ViaService"));
    assert_eq!(code(admin.kms.put_key_policy().key_id(&arn).policy(policy).send().await), DENIED);

    // Nobody in the account needs a KMS permission to use it through EC2; nobody else may.
    let bare = role(&admin, "bare", B_ROOT).await;
    let stranger = role(&root(&sandbox, A), "stranger", A_ROOT).await;
    let world = &mut sandbox.world();
    let bare =
        Caller { principal_id: ami_share_sandbox::iam::unique_id(world, &bare).unwrap(), ..role_caller(world, &bare) };
    let stranger = Caller { account: A.to_owned(), ..role_caller(world, &stranger) };
    let mut try_it = |caller: &Caller| {
        keys::use_as_aws_service(world, caller, &arn, "kms:CreateGrant", REGION, &Context::new()).is_ok()
    };
    assert!(try_it(&bare));
    assert!(!try_it(&stranger));
}

#[tokio::test]
async fn a_grant_allows_what_it_names_and_no_more() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let arn = role(&root(&sandbox, B), "app", B_ROOT).await;
    let app = as_role(&sandbox, &arn);
    assert_eq!(try_decrypt(&app, &key).await, DENIED);
    let constraints = GrantConstraints::builder().encryption_context_subset("disk", "1").build();
    let grant = admin
        .kms
        .create_grant()
        .key_id(&key)
        .grantee_principal(&arn)
        .operations(GrantOperation::Decrypt)
        .operations(GrantOperation::CreateGrant)
        .constraints(constraints)
        .send()
        .await
        .unwrap();
    let decrypt = |disk: &str| {
        let request = app.kms.decrypt().key_id(&key).ciphertext_blob(Blob::new("any"));
        request.encryption_context("disk", disk).encryption_context("more", "x").dry_run(true).send()
    };
    assert_eq!(code(decrypt("1").await), ALLOWED);
    assert_eq!(code(decrypt("2").await), DENIED);
    assert_eq!(code(app.kms.describe_key().key_id(&key).send().await), DENIED);
    // It can be passed on, not widened.
    let pass_on = |operation: GrantOperation| {
        app.kms.create_grant().key_id(&key).grantee_principal(B_ROOT).operations(operation).send()
    };
    assert_eq!(code(pass_on(GrantOperation::Decrypt).await), "no error");
    assert_eq!(code(pass_on(GrantOperation::Encrypt).await), DENIED);
    admin.kms.revoke_grant().key_id(&key).grant_id(grant.grant_id().unwrap()).send().await.unwrap();
    assert_eq!(code(decrypt("1").await), DENIED);
}

#[tokio::test]
async fn a_named_grant_is_made_once() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let arn = role(&root(&sandbox, B), "app", B_ROOT).await;
    let create = |name: Option<&str>, operation: GrantOperation| {
        let request = admin.kms.create_grant().key_id(&key).grantee_principal(&arn);
        request.set_name(name.map(str::to_owned)).operations(operation).send()
    };
    let first = create(Some("share"), GrantOperation::Decrypt).await.unwrap();
    let second = create(Some("share"), GrantOperation::Decrypt).await.unwrap();
    assert_eq!(first.grant_id(), second.grant_id());
    let other = create(Some("share"), GrantOperation::Encrypt).await.unwrap();
    assert_ne!(first.grant_id(), other.grant_id());
    for _ in 0..2 {
        create(None, GrantOperation::Decrypt).await.unwrap();
    }
    let mut pages = admin.kms.list_grants().key_id(&key).limit(3).into_paginator().send();
    let mut counts = Vec::new();
    while let Some(page) = pages.next().await {
        counts.push(page.unwrap().grants().len());
    }
    assert_eq!(counts, [3, 1]);
}

#[tokio::test]
async fn a_grantee_must_exist() {
    let sandbox = sandbox().await;
    let key = key(&sandbox).await;
    let request = root(&sandbox, A).kms.create_grant().key_id(&key).operations(GrantOperation::Decrypt);
    let result = request.grantee_principal("arn:aws:iam::222222222222:role/nobody").send().await;
    assert_eq!(code(result), "InvalidArnException");
}

#[tokio::test]
async fn a_service_linked_role_gets_its_grant_from_its_own_account() {
    let sandbox = sandbox().await;
    let key = key(&sandbox).await;
    let manager = user_of_keys(&sandbox).await;
    let in_b = root(&sandbox, B);
    let created =
        in_b.iam.create_service_linked_role().aws_service_name("autoscaling.amazonaws.com").send().await.unwrap();
    let service_role = created.role().unwrap().arn().to_owned();
    let grant_statement = json!({
        "Effect": "Allow", "Principal": { "AWS": B_ROOT },
        "Action": ["kms:CreateGrant", "kms:ListGrants", "kms:RevokeGrant"], "Resource": "*",
        "Condition": {
            "ForAllValues:StringEquals": { "kms:GrantOperations": ["Decrypt", "CreateGrant"] },
            "StringEquals": { "kms:GranteePrincipal": service_role },
        },
    });
    assert_eq!(put(&root(&sandbox, A), &key, json!([account_statement(), grant_statement])).await, "no error");
    let manager = as_role(&sandbox, &manager);
    let create = |grantee: &str, operations: Vec<GrantOperation>| {
        manager.kms.create_grant().key_id(&key).grantee_principal(grantee).set_operations(Some(operations)).send()
    };
    assert_eq!(code(create(&service_role, vec![GrantOperation::Encrypt]).await), DENIED);
    assert_eq!(code(create(B_ROOT, vec![GrantOperation::Decrypt]).await), DENIED);
    let operations = vec![GrantOperation::Decrypt, GrantOperation::CreateGrant];
    assert_eq!(code(create(&service_role, operations).await), "no error");
    let session = as_role(&sandbox, &service_role);
    assert_eq!(try_decrypt(&session, &key).await, ALLOWED);
}

#[tokio::test]
async fn retiring_is_for_the_retiring_principal() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let app = role(&root(&sandbox, B), "app", B_ROOT).await;
    let cleaner = role(&root(&sandbox, B), "cleaner", B_ROOT).await;
    let grant = admin
        .kms
        .create_grant()
        .key_id(&key)
        .grantee_principal(&app)
        .retiring_principal(&cleaner)
        .operations(GrantOperation::Decrypt)
        .send()
        .await
        .unwrap();
    let retire = |clients: Clients| {
        let request = clients.kms.retire_grant().key_id(&key).grant_id(grant.grant_id().unwrap());
        async move { code(request.send().await) }
    };
    assert_eq!(retire(as_role(&sandbox, &app)).await, DENIED);
    assert_eq!(retire(as_role(&sandbox, &cleaner)).await, "no error");
    assert_eq!(retire(as_role(&sandbox, &cleaner)).await, "NotFoundException");
}

#[tokio::test]
async fn states_are_kept_and_checked() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let encrypt = || async { code(admin.kms.encrypt().key_id(&key).plaintext(Blob::new("x")).send().await) };
    assert_eq!(encrypt().await, "no error");
    admin.kms.disable_key().key_id(&key).send().await.unwrap();
    assert_eq!(encrypt().await, "DisabledException");
    admin.kms.enable_key().key_id(&key).send().await.unwrap();
    assert_eq!(encrypt().await, "no error");
    admin.kms.schedule_key_deletion().key_id(&key).pending_window_in_days(7).send().await.unwrap();
    assert_eq!(encrypt().await, "KMSInvalidStateException");
    assert_eq!(code(admin.kms.enable_key().key_id(&key).send().await), "KMSInvalidStateException");
    let described = admin.kms.describe_key().key_id(&key).send().await.unwrap();
    assert_eq!(described.key_metadata().unwrap().key_state(), Some(&KeyState::PendingDeletion));
    admin.kms.cancel_key_deletion().key_id(&key).send().await.unwrap();
    assert_eq!(encrypt().await, "DisabledException");
}

#[tokio::test]
async fn data_goes_round_and_under_another_key() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let (first, second) = (key(&sandbox).await, key(&sandbox).await);
    let sealed = admin
        .kms
        .encrypt()
        .key_id(&first)
        .plaintext(Blob::new("secret"))
        .encryption_context("disk", "1")
        .send()
        .await
        .unwrap();
    let sealed = sealed.ciphertext_blob().unwrap().clone();
    let wrong = admin.kms.decrypt().ciphertext_blob(sealed.clone()).send().await;
    assert_eq!(code(wrong), "InvalidCiphertextException");
    let moved = admin
        .kms
        .re_encrypt()
        .ciphertext_blob(sealed)
        .source_encryption_context("disk", "1")
        .destination_key_id(&second)
        .send()
        .await
        .unwrap();
    assert_eq!(moved.source_key_id(), Some(first.as_str()));
    let opened = admin.kms.decrypt().ciphertext_blob(moved.ciphertext_blob().unwrap().clone()).send().await.unwrap();
    assert_eq!(opened.plaintext().unwrap().as_ref(), b"secret");
    assert_eq!(opened.key_id(), Some(second.as_str()));
}

#[tokio::test]
async fn re_encrypt_asks_both_keys() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let (from, to) = (key(&sandbox).await, key(&sandbox).await);
    let mover = role(&admin, "mover", A_ROOT).await;
    let session = as_role(&sandbox, &mover);
    let allow_on = |from_action: &str, to_action: &str| {
        json!([
            { "Effect": "Allow", "Action": from_action, "Resource": from },
            { "Effect": "Allow", "Action": to_action, "Resource": to },
        ])
    };
    let cases = [
        ("kms:ReEncryptFrom", "kms:ReEncryptTo", ALLOWED),
        ("kms:ReEncrypt*", "kms:ReEncrypt*", ALLOWED),
        ("kms:ReEncryptFrom", "kms:ReEncryptFrom", DENIED),
        ("kms:ReEncryptTo", "kms:ReEncryptTo", DENIED),
    ];
    for (from_action, to_action, expected) in cases {
        allow(&admin, "mover", allow_on(from_action, to_action)).await;
        let request = session.kms.re_encrypt().source_key_id(&from).destination_key_id(&to);
        let result = request.ciphertext_blob(Blob::new("any")).dry_run(true).send().await;
        assert_eq!(code(result), expected, "{from_action} {to_action}");
    }
}

#[tokio::test]
async fn keys_are_found_by_id_arn_and_alias_of_their_own_account() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let arn = key(&sandbox).await;
    let id = arn.rsplit('/').next().unwrap();
    let alias = "alias/images";
    let alias_arn = format!("arn:aws:kms:{REGION}:{A}:{alias}");
    admin.kms.create_alias().alias_name(alias).target_key_id(id).send().await.unwrap();
    for name in [id, &arn, alias, &alias_arn] {
        let described = admin.kms.describe_key().key_id(name).send().await.unwrap();
        assert_eq!(described.key_metadata().unwrap().arn(), Some(arn.as_str()));
    }
    let stranger = root(&sandbox, B);
    for name in [id, alias, &alias_arn] {
        assert_eq!(code(stranger.kms.describe_key().key_id(name).send().await), "NotFoundException", "{name}");
    }
    let missing = format!("arn:aws:kms:us-east-1:{A}:key/{id}");
    assert_eq!(code(admin.kms.describe_key().key_id(missing).send().await), "NotFoundException");
    let listed = admin.kms.list_aliases().send().await.unwrap();
    assert_eq!(listed.aliases()[0].target_key_id(), Some(id));
}

/// As a role that may change tagged keys only.
#[tokio::test]
async fn a_policy_can_be_written_by_whom_a_tag_of_the_key_lets_write_it() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let writer = role(&admin, "writer", "arn:aws:iam::111111111111:root").await;
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": "kms:PutKeyPolicy", "Resource": "*",
          "Condition": { "StringEquals": { "aws:ResourceTag/shareable": "true" } } },
    ]});
    let put_policy = admin.iam.put_role_policy().role_name("writer").policy_name("tagged");
    put_policy.policy_document(policy.to_string()).send().await.unwrap();
    let writer = as_role(&sandbox, &writer);
    assert_eq!(put(&writer, &key, json!([account_statement()])).await, DENIED);
    let tag = aws_sdk_kms::types::Tag::builder().tag_key("shareable").tag_value("true").build().unwrap();
    admin.kms.tag_resource().key_id(&key).tags(tag).send().await.unwrap();
    assert_eq!(put(&writer, &key, json!([account_statement()])).await, "no error");
}
