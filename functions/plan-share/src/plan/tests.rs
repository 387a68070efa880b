use ami_share_core::{key_policy::MAX_BYTES, share::KeyChange};

use super::*;

const NAMES: Names<'_> =
    Names { key_access_policy: "AmiShareKeyAccess", source_role: "arn:aws:iam::111111111111:role/AmiShareSource" };

const ADMIN: &str = r#"{"Sid":"Admin","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111111111111:root"},"Action":"kms:*","Resource":"*"}"#;

fn key(number: usize) -> String {
    format!("arn:aws:kms:eu-west-1:111111111111:key/1234abcd-12ab-34cd-56ef-12345678900{number}")
}

/// Nobody has anything yet. Every target of `accounts` has as many principals besides its launcher.
fn resolution(keys: usize, accounts: &[&str], principals: usize) -> Value {
    let volumes: Vec<Value> = (0..keys)
        .map(|n| json!({ "deviceName": format!("/dev/sd{n}"), "snapshotId": "snap-0123456789abcdef0", "keyArn": key(n) }))
        .collect();
    let key_arns: Vec<String> = (0..keys).map(key).collect();
    let targets: Vec<Value> = accounts
        .iter()
        .map(|account| {
            let roles = (0..=principals).map(|n| format!("arn:aws:iam::{account}:role/a-role-of-some-length-{n}"));
            let changes: Vec<Value> = roles.map(|role| json!({ "principal": role })).collect();
            json!({
                "accountId": account, "mode": "none", "launch": {}, "principalChanges": changes,
                "sourceChanges": { "launchPermission": true, "keyArns": key_arns },
            })
        })
        .collect();
    let changes: Vec<Value> = key_arns.iter().map(|key| json!({ "keyArn": key, "accountIds": accounts })).collect();
    json!({
        "execution": "one-0123abcd",
        "source": { "accountId": "111111111111", "region": "eu-west-1" },
        "image": { "imageId": "ami-0123abcd", "name": "web", "architecture": "x86_64", "volumes": volumes },
        "keyChanges": changes, "snapshotChanges": [], "launchPermissions": accounts, "targets": targets,
        "alreadyShared": [], "principalAccess": "attach", "onFailure": "undo",
    })
}

/// The plan for a world where each key has the policy of `statements`.
fn plan_with(resolution: &Value, statements: &str) -> Plan {
    let resolution: Resolution = serde_json::from_value(resolution.clone()).unwrap();
    let text = format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#);
    let policies: Vec<PolicyChange<'_>> = resolution
        .key_changes
        .iter()
        .map(|change: &KeyChange| PolicyChange::new(change, text.clone()).unwrap())
        .collect();
    Plan::new(NAMES, &resolution, &policies).unwrap()
}

fn plan(resolution: &Value) -> Plan {
    plan_with(resolution, ADMIN)
}

fn many() -> Vec<String> {
    (0..50).map(|n| format!("2222222222{n:02}")).collect()
}

/// Somebody else's statements, of `bytes` and a little more.
fn statements(bytes: usize) -> String {
    let statement = |n: usize| ADMIN.replace("Admin", &format!("Foreign{n}"));
    (0..=bytes / ADMIN.len()).map(statement).collect::<Vec<_>>().join(",")
}

#[test]
fn the_calls_are_those_of_the_steps_in_their_order() {
    let plan = plan(&resolution(2, &["222222222222", "333333333333"], 1));
    let calls: Vec<(&str, &str)> =
        plan.calls.iter().map(|call| (call.account_id.as_str(), call.call.as_str())).collect();
    let target = |account| {
        [
            (account, "iam:AttachRolePolicy"),
            (account, "iam:AttachRolePolicy"),
            (account, "ec2:RunInstances"),
            (account, "ec2:TerminateInstances"),
        ]
    };
    let source =
        ["kms:PutKeyPolicy", "kms:PutKeyPolicy", "ec2:ModifyImageAttribute"].map(|call| ("111111111111", call));
    assert_eq!(calls, [&source[..], &target("222222222222"), &target("333333333333")].concat());
    let summary = json!(plan.summary);
    assert_eq!(
        summary,
        json!({ "calls": 11, "callsByAccount": {
            "111111111111": 3, "222222222222": 4, "333333333333": 4
        }})
    );
    assert!(plan.message.starts_with("11 calls would change something, in 3 accounts."), "{}", plan.message);
}

#[test]
fn a_plan_with_nothing_to_do_says_so() {
    let mut nothing = resolution(0, &[], 0);
    nothing["alreadyShared"] = json!(["222222222222"]);
    let plan = plan(&nothing);
    assert!(plan.calls.is_empty());
    assert_eq!(plan.message, "Nothing would be changed: every target has everything that is asked for.");
    assert_eq!(json!(plan.already_shared), json!(["222222222222"]));
}

#[test]
fn who_plans_and_how_a_policy_is_laid_out_and_the_order_of_targets_do_not_change_the_hash() {
    let first = resolution(1, &["222222222222", "333333333333"], 1);
    let hash = plan(&first).plan_hash;
    let mut later = first.clone();
    later["execution"] = json!("two-4567abcd");
    later["planHash"] = json!(hash);
    later["mostOfCause"] = json!(17);
    later["standing"] = json!([{ "accountId": "444444444444", "imageId": "ami-0123abcd", "provedBy": "before" }]);
    assert_eq!(plan(&later).plan_hash, hash);
    later["action"] = json!("plan");
    assert_eq!(plan(&later).plan_hash, hash);
    assert_eq!(plan(&resolution(1, &["333333333333", "222222222222"], 1)).plan_hash, hash);
    assert_eq!(
        plan_with(
            &first,
            &ADMIN
                .replace(':', " : ")
                .replace("arn : aws : iam :  : ", "arn:aws:iam::")
                .replace(" : root", ":root")
                .replace("kms : *", "kms:*")
        )
        .plan_hash,
        hash
    );
}

#[test]
fn whatever_decides_what_is_changed_changes_the_hash() {
    let first = resolution(1, &["222222222222"], 1);
    let hash = plan(&first).plan_hash;
    let mut hashes = vec![hash];
    let mut add = |change: &dyn Fn(&mut Value)| {
        let mut other = first.clone();
        change(&mut other);
        hashes.push(plan(&other).plan_hash);
    };
    add(&|r| r["image"]["imageId"] = json!("ami-4567abcd"));
    add(&|r| r["image"]["volumes"][0]["snapshotId"] = json!("snap-4567abcd"));
    add(&|r| r["launchPermissions"] = json!([]));
    add(&|r| r["targets"][0]["principalChanges"] = json!([]));
    add(&|r| r["targets"][0]["launch"] = json!({ "keep": true }));
    add(&|r| r["targets"][0]["launch"] = json!({ "subnetId": "subnet-0abc" }));
    add(&|r| r["alreadyShared"] = json!(["333333333333"]));
    add(&|r| r["onFailure"] = json!("keep"));
    add(&|r| r["onFailure"] = json!("undoAll"));
    add(&|r| r["keyChanges"][0]["accountIds"] = json!(["222222222222", "333333333333"]));
    hashes.push(plan_with(&first, &ADMIN.replace("kms:*", "kms:Put*")).plan_hash);
    hashes.push(plan_with(&first, &format!("{ADMIN},{}", ADMIN.replace("Admin", "More"))).plan_hash);
    let distinct: BTreeSet<_> = hashes.iter().collect();
    assert_eq!(distinct.len(), hashes.len());
}

#[test]
fn what_a_target_has_of_what_it_needs_is_named() {
    let mut half = resolution(2, &["222222222222"], 0);
    half["targets"][0]["sourceChanges"] = json!({ "keyArns": [key(1)] });
    assert_eq!(
        json!(plan(&half).already_there),
        json!([{ "accountId": "222222222222", "launchPermission": true, "keyArns": [key(0)] }])
    );
    assert!(plan(&resolution(2, &["222222222222"], 0)).already_there.is_empty());
}

#[test]
fn fifty_targets_and_four_keys_with_full_policies_fit_whole() {
    let accounts = many();
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    let resolution = resolution(4, &accounts, 1);
    let plan = plan_with(&resolution, &statements(26_000));
    let policy = plan.calls[0].policy.clone().unwrap();
    assert!(policy.bytes_after > 31_000 && policy.bytes_after < MAX_BYTES, "{}", policy.bytes_after);
    let fitted = plan.clone().fitted(MOST_BYTES);
    assert_eq!(json!(fitted), json!(plan), "{} bytes are too many", plan.bytes());
}

#[test]
fn what_does_not_fit_is_cut_and_said_diffs_first() {
    let accounts = many();
    let accounts: Vec<&str> = accounts.iter().map(String::as_str).collect();
    let whole = plan_with(&resolution(4, &accounts, 20), &statements(26_000));
    let all = whole.calls.len();
    let most = whole.bytes() - 1;
    let fitted = whole.clone().fitted(most);
    assert!(fitted.bytes() <= most && fitted.bytes() > most * 9 / 10, "{}", fitted.bytes());
    assert_eq!(fitted.calls.len(), all);
    assert!(fitted.cut.iter().any(|what| what.starts_with("diffs of policies")), "{:?}", fitted.cut);
    assert_eq!(fitted.plan_hash, whole.plan_hash);
    assert_eq!(json!(fitted.summary), json!(whole.summary));

    let fitted = whole.clone().fitted(most / 2);
    assert!(fitted.bytes() <= most / 2, "{}", fitted.bytes());
    let left_out = all - fitted.calls.len();
    assert!(left_out > 100, "{left_out}");
    let said = format!("the last {left_out} of {all} calls: the summary counts them by account");
    assert!(fitted.cut.contains(&said), "{:?}", fitted.cut);
    let diff = &fitted.calls[0].policy.as_ref().unwrap().diff;
    assert_eq!(diff.len(), 1, "{diff:?}");
    assert_eq!(fitted.plan_hash, whole.plan_hash);
}
