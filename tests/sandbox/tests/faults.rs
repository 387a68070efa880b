//! Faults, hooks, slow propagation, rate limits, the journal and snapshots.

use crate::accounts::{A, B, allow, as_role, code, role, root, sandbox};
use ami_share_sandbox::faults::{Fault, FaultKind, Hook, Matcher, RootCall, When};
use ami_share_sandbox::journal::Outcome;
use ami_share_sandbox::world::{Organization, RateLimit};
use ami_share_sandbox::{Sandbox, Settings};
use aws_sdk_ec2::types::VolumeState;
use aws_sdk_kms::types::GrantOperation;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const A_ROOT: &str = "arn:aws:iam::111111111111:root";
const B_ROOT: &str = "arn:aws:iam::222222222222:root";

fn policy_for(account_root: &str) -> String {
    json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": { "AWS": A_ROOT }, "Action": "kms:*", "Resource": "*" },
        { "Effect": "Allow", "Principal": { "AWS": account_root }, "Action": "kms:DescribeKey", "Resource": "*" },
    ] })
    .to_string()
}

async fn key(sandbox: &Sandbox) -> String {
    let created = root(sandbox, A).kms.create_key().send().await.unwrap();
    created.key_metadata().unwrap().arn().unwrap().to_owned()
}

#[tokio::test]
async fn throttling_has_each_services_code() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    sandbox.world().faults.add(Fault::always(Matcher::default(), FaultKind::Throttle));
    assert_eq!(code(admin.ec2.describe_images().send().await), "RequestLimitExceeded");
    assert_eq!(code(admin.kms.list_keys().send().await), "ThrottlingException");
    assert_eq!(code(admin.iam.list_roles().send().await), "Throttling");
    sandbox.world().faults.clear();
    assert_eq!(code(admin.iam.list_roles().send().await), "no error");
}

#[tokio::test]
async fn a_fault_strikes_the_calls_it_names() {
    let sandbox = sandbox().await;
    let (in_a, in_b) = (root(&sandbox, A), root(&sandbox, B));
    let fault =
        Fault { count: 2, ..Fault::once(Matcher::action("KMS:list*").in_account(A), FaultKind::ServerError).after(1) };
    sandbox.world().faults.add(fault);
    assert_eq!(code(in_a.iam.list_roles().send().await), "no error");
    assert_eq!(code(in_b.kms.list_keys().send().await), "no error");
    let mut codes = Vec::new();
    for _ in 0..4 {
        codes.push(code(in_a.kms.list_keys().send().await));
    }
    assert_eq!(codes, ["no error", "KMSInternalException", "KMSInternalException", "no error"]);
}

#[tokio::test]
async fn a_lost_reply_leaves_the_change() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    for kind in [FaultKind::ReplyLost, FaultKind::ReplyFailed] {
        sandbox.world().faults.add(Fault::once(Matcher::action("iam:CreateUser"), kind));
        assert_ne!(code(admin.iam.create_user().user_name("u").send().await), "no error");
        assert_eq!(code(admin.iam.create_user().user_name("u").send().await), "EntityAlreadyExists");
        admin.iam.delete_user().user_name("u").send().await.unwrap();
    }
}

#[tokio::test]
async fn a_delayed_call_takes_its_time_and_others_do_not() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    sandbox.world().faults.add(Fault::once(Matcher::action("iam:ListRoles"), FaultKind::Delay { ms: 200 }));
    let start = Instant::now();
    let delayed = admin.iam.list_roles().send();
    let quick = async {
        admin.iam.list_users().send().await.unwrap();
        start.elapsed()
    };
    let (delayed, quick) = tokio::join!(delayed, quick);
    delayed.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert!(quick < Duration::from_millis(200));
}

#[tokio::test]
async fn a_stale_read_shows_what_was_before_the_latest_writes() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    let fault =
        |writes| Fault::once(Matcher::action("kms:GetKeyPolicy").in_account(A), FaultKind::Stale { writes }).after(1);
    sandbox.world().faults.add(fault(1));
    sandbox.world().faults.add(fault(2));
    let read = || async {
        let policy = admin.kms.get_key_policy().key_id(&key).send().await.unwrap();
        policy.policy().unwrap().to_owned()
    };
    let original = read().await;
    for account in ["333333333333", "444444444444"] {
        let policy = policy_for(&format!("arn:aws:iam::{account}:root"));
        admin.kms.put_key_policy().key_id(&key).policy(policy).send().await.unwrap();
    }
    let one_write_ago = read().await;
    assert!(one_write_ago.contains("333333333333") && !one_write_ago.contains("444444444444"));
    assert_eq!(read().await, original);
    assert!(read().await.contains("444444444444"));
}

/// A stale read is answered from an earlier state, and what comes due meanwhile happens to the account all the same.
#[tokio::test]
async fn what_comes_due_at_a_stale_read_is_not_lost() {
    let sandbox = sandbox().await;
    let ec2 = root(&sandbox, A).ec2;
    sandbox.world().set_now_ms(0);
    let stale = Fault::once(Matcher::action("ec2:DescribeVolumes"), FaultKind::Stale { writes: 1 });
    sandbox.world().faults.add(stale);
    ec2.create_volume().availability_zone("eu-west-1a").size(8).send().await.unwrap();
    sandbox.world().set_now_ms(60_000);
    let states = async || {
        let volumes = ec2.describe_volumes().send().await.unwrap().volumes.unwrap_or_default();
        volumes.into_iter().filter_map(|volume| volume.state).collect::<Vec<_>>()
    };
    assert_eq!(states().await, []);
    assert_eq!(states().await, [VolumeState::Available]);
}

#[tokio::test]
async fn hooks_call_before_and_after_the_nth_matching_call() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    role(&admin, "worker", B_ROOT).await;
    let delete = |name: &str| RootCall {
        account: B.to_owned(),
        region: "us-east-1".to_owned(),
        service: "iam".to_owned(),
        action: "DeleteRole".to_owned(),
        params: json!({ "RoleName": name }),
    };
    role(&admin, "other", B_ROOT).await;
    let hook = |when, name| Hook { when, matcher: Matcher::action("iam:GetRole"), skip: 1, calls: vec![delete(name)] };
    sandbox.world().faults.add_hook(hook(When::Before, "worker"));
    sandbox.world().faults.add_hook(hook(When::After, "other"));
    let get = |name: &str| admin.iam.get_role().role_name(name).send();
    assert_eq!(code(get("worker").await), "no error");
    assert_eq!(code(get("worker").await), "NoSuchEntity");
    assert_eq!(code(get("other").await), "NoSuchEntity");
    let world = sandbox.world();
    let calls: Vec<_> =
        world.journal.entries().iter().map(|entry| (entry.action.as_str(), entry.via.as_deref())).collect();
    assert_eq!(
        calls[2..],
        [
            ("iam:GetRole", None),
            ("iam:DeleteRole", Some("hook")),
            ("iam:GetRole", None),
            ("iam:DeleteRole", Some("hook")),
            ("iam:GetRole", None),
        ]
    );
    assert!(world.faults.failed_hooks.is_empty());
}

#[tokio::test]
async fn changes_become_effective_after_their_delay() {
    let delay = 300;
    let settings = Settings {
        principal_delay_ms: delay,
        iam_policy_delay_ms: delay,
        key_policy_delay_ms: delay,
        grant_delay_ms: delay,
        ..Settings::default()
    };
    let sandbox = Sandbox::start(settings).await.unwrap();
    let wait = || tokio::time::sleep(Duration::from_millis(delay + 20));
    let (in_a, in_b) = (root(&sandbox, A), root(&sandbox, B));
    let key = key(&sandbox).await;
    let app = role(&in_b, "app", B_ROOT).await;

    // A new role cannot be named yet.
    let put = || in_a.kms.put_key_policy().key_id(&key).policy(policy_for(&app)).send();
    assert_eq!(code(put().await), "MalformedPolicyDocumentException");
    wait().await;
    // The key policy can be read back at once, but is not effective.
    allow(&in_b, "app", json!([{ "Effect": "Allow", "Action": "kms:*", "Resource": "*" }])).await;
    wait().await;
    assert_eq!(code(put().await), "no error");
    let read = in_a.kms.get_key_policy().key_id(&key).send().await.unwrap();
    assert!(read.policy().unwrap().contains(&app));
    let session = as_role(&sandbox, &app);
    let describe = || async { code(session.kms.describe_key().key_id(&key).send().await) };
    assert_eq!(describe().await, "AccessDeniedException");
    wait().await;
    assert_eq!(describe().await, "no error");
    // An IAM policy taken away stays effective for the delay.
    in_b.iam.delete_role_policy().role_name("app").policy_name("access").send().await.unwrap();
    assert_eq!(describe().await, "no error");
    wait().await;
    assert_eq!(describe().await, "AccessDeniedException");
    // A grant too; its token bridges the delay.
    let grant = in_a
        .kms
        .create_grant()
        .key_id(&key)
        .grantee_principal(&app)
        .operations(GrantOperation::DescribeKey)
        .send()
        .await
        .unwrap();
    assert_eq!(describe().await, "AccessDeniedException");
    let with_token = session.kms.describe_key().key_id(&key).grant_tokens(grant.grant_token().unwrap());
    assert_eq!(code(with_token.send().await), "no error");
    wait().await;
    assert_eq!(describe().await, "no error");
    in_a.kms.revoke_grant().key_id(&key).grant_id(grant.grant_id().unwrap()).send().await.unwrap();
    assert_eq!(describe().await, "no error");
    wait().await;
    assert_eq!(describe().await, "AccessDeniedException");
}

#[tokio::test]
async fn a_rate_limit_is_per_account_region_and_action() {
    let settings = Settings {
        rate_limits: vec![RateLimit { action: "ec2:Describe*".to_owned(), burst: 2.0, per_second: 10.0 }],
        ..Settings::default()
    };
    let sandbox = Sandbox::start(settings).await.unwrap();
    let (in_a, in_b) = (root(&sandbox, A), root(&sandbox, B));
    let mut codes = Vec::new();
    for _ in 0..3 {
        codes.push(code(in_a.ec2.describe_images().send().await));
    }
    assert_eq!(codes, ["no error", "no error", "RequestLimitExceeded"]);
    assert_eq!(code(in_a.ec2.describe_snapshots().send().await), "no error");
    assert_eq!(code(in_b.ec2.describe_images().send().await), "no error");
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(code(in_a.ec2.describe_images().send().await), "no error");
}

#[tokio::test]
async fn the_journal_says_who_did_what_and_why_not() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let arn = role(&admin, "worker", B_ROOT).await;
    let start = sandbox.world().journal.last_seq();
    let worker = as_role(&sandbox, &arn);
    let refused = worker.iam.get_role().role_name("worker").send().await.unwrap_err();
    admin.iam.get_role().role_name("nobody").send().await.unwrap_err();
    let world = sandbox.world();
    let [denied, missing] = world.journal.since(start) else {
        panic!("two calls");
    };
    assert_eq!((denied.account.as_str(), denied.principal.as_str()), (B, arn.as_str()));
    assert_eq!(denied.action, "iam:GetRole");
    assert_eq!(denied.resources, [arn]);
    assert_eq!(denied.outcome, Outcome::Denied);
    assert!(denied.reason.as_ref().unwrap().contains("no identity-based policy allows"));
    assert!(!denied.write && !denied.changed);
    assert_eq!(
        Some(denied.request_id.as_str()),
        aws_sdk_iam::operation::RequestId::request_id(&refused),
        "the request id of the answer"
    );
    assert_eq!(missing.outcome, Outcome::Error);
    assert_eq!(missing.code.as_deref(), Some("NoSuchEntity"));
}

#[tokio::test]
async fn a_snapshot_is_as_before_when_everything_is_undone() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, A);
    let key = key(&sandbox).await;
    role(&admin, "worker", A_ROOT).await;
    let before = sandbox.world().snapshot(A);
    let original = admin.kms.get_key_policy().key_id(&key).send().await.unwrap();

    admin.kms.put_key_policy().key_id(&key).policy(policy_for(B_ROOT)).send().await.unwrap();
    assert_ne!(sandbox.world().snapshot(A), before);
    admin.kms.put_key_policy().key_id(&key).policy(original.policy().unwrap()).send().await.unwrap();
    assert_eq!(sandbox.world().snapshot(A), before);

    allow(&admin, "worker", json!([{ "Effect": "Allow", "Action": "ec2:*", "Resource": "*" }])).await;
    assert_ne!(sandbox.world().snapshot(A), before);
    admin.iam.delete_role_policy().role_name("worker").policy_name("access").send().await.unwrap();
    assert_eq!(sandbox.world().snapshot(A), before);

    let grant = admin
        .kms
        .create_grant()
        .key_id(&key)
        .grantee_principal(B_ROOT)
        .operations(GrantOperation::Decrypt)
        .send()
        .await
        .unwrap();
    assert_ne!(sandbox.world().snapshot(A), before);
    admin.kms.revoke_grant().key_id(&key).grant_id(grant.grant_id().unwrap()).send().await.unwrap();
    assert_eq!(sandbox.world().snapshot(A), before);
}

/// A request to the control API; the status and the answer.
async fn control(sandbox: &Sandbox, method: &str, path: &str, body: Value) -> (u16, Value) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = sandbox.endpoint().replace("http://", "");
    let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    let request = format!(
        "{method} /_sandbox/{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

#[tokio::test]
async fn everything_can_be_controlled_over_http() {
    let sandbox = sandbox().await;
    let admin = root(&sandbox, B);
    let call = |method: &'static str, path: &str, body| {
        let (sandbox, path) = (&sandbox, path.to_owned());
        async move { control(sandbox, method, &path, body).await }
    };
    assert_eq!(call("GET", "health", Value::Null).await.0, 200);
    let arn = role(&admin, "worker", B_ROOT).await;

    let (_, journal) = call("GET", "journal?since=0", Value::Null).await;
    assert_eq!(journal["entries"][0]["action"], "iam:CreateRole");
    assert_eq!(journal["entries"][0]["outcome"], "allowed");
    let last = journal["last"].as_u64().unwrap();
    let (_, journal) = call("GET", &format!("journal?since={last}"), Value::Null).await;
    assert_eq!(journal["entries"], json!([]));

    let fault = json!({ "match": { "action": "iam:ListRoles" }, "kind": "error", "code": "Odd", "message": "m", "status": 400 });
    assert_eq!(call("POST", "faults", json!([fault])).await.0, 200);
    assert_eq!(code(admin.iam.list_roles().send().await), "Odd");
    assert_eq!(code(admin.iam.list_roles().send().await), "no error");
    let unknown = json!({ "match": { "verb": "x" }, "kind": "throttle" });
    assert_eq!(call("POST", "faults", unknown).await.0, 400);

    let hook = json!({ "when": "before", "match": { "action": "iam:ListRoles" }, "calls": [
        { "account": B, "region": "us-east-1", "service": "iam", "action": "CreateUser", "params": { "UserName": "hooked" } },
    ] });
    assert_eq!(call("POST", "hooks", hook).await.0, 200);
    admin.iam.list_roles().send().await.unwrap();
    assert_eq!(code(admin.iam.get_user().user_name("hooked").send().await), "no error");

    let (_, snapshot) = call("GET", &format!("snapshot/{B}"), Value::Null).await;
    assert_eq!(snapshot["iam"]["roles"]["worker"]["arn"], arn.as_str());
    let (_, session) = call("POST", "sessions", json!({ "roleArn": arn, "sessionName": "by-hand" })).await;
    assert!(session["accessKeyId"].as_str().unwrap().starts_with("ASIA"));

    assert_eq!(call("POST", "settings", json!({ "launchDelayMs": 7 })).await.0, 200);
    assert_eq!(sandbox.world().settings.launch_delay_ms, 7);
    assert_eq!(call("POST", "settings", json!({ "launchDelay": 7 })).await.0, 400);
    let organization = json!({ "organizationArn": "arn:aws:organizations::999999999999:organization/o-1" });
    assert_eq!(call("POST", "organization", json!({ "account": B, "organization": organization })).await.0, 200);
    let expected = Organization {
        organization_arn: "arn:aws:organizations::999999999999:organization/o-1".to_owned(),
        ..Organization::default()
    };
    assert_eq!(sandbox.world().account(B).unwrap().organization, Some(expected));
    let (_, exported) = call("GET", &format!("iam/{B}"), Value::Null).await;
    assert_eq!(call("POST", "reset", Value::Null).await.0, 200);
    assert_eq!(call("POST", &format!("iam/{B}"), exported.clone()).await.0, 200);
    assert_eq!(sandbox.world().export_iam(B), exported);

    assert_eq!(call("POST", "reset", Value::Null).await.0, 200);
    assert!(sandbox.world().accounts.is_empty());
    assert_eq!(sandbox.world().settings.launch_delay_ms, 7);
    assert_eq!(call("GET", "nothing", Value::Null).await.0, 404);
}

#[tokio::test]
async fn a_sandbox_stops_when_it_is_dropped() {
    let sandbox = sandbox().await;
    let address = sandbox.endpoint().replace("http://", "");
    assert!(tokio::net::TcpStream::connect(&address).await.is_ok());
    drop(sandbox);
    assert!(tokio::net::TcpStream::connect(&address).await.is_err());
}
