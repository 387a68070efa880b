use ami_share_core::{
    ids::{AccountId, ExecutionName, KeyArn},
    key_policy::KeyPolicy,
    take_back::TakeBack,
};
use ami_share_plan::Names;
use serde_json::{Value, json};

use crate::{
    calls::calls,
    plan::{MOST_BYTES, Plan},
    policies::PolicyChange,
};

fn account(n: usize) -> AccountId {
    AccountId::parse(format!("2{n:011}")).unwrap()
}

fn key(n: usize) -> KeyArn {
    KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/{n:036}")).unwrap()
}

fn take_back(accounts: std::ops::Range<usize>, keys: usize, principals: usize) -> TakeBack {
    let accounts: Vec<AccountId> = accounts.map(account).collect();
    let of_keys: Vec<Value> = (0..keys).map(|n| json!({ "keyArn": key(n), "accountIds": accounts })).collect();
    let target = |account: &AccountId| {
        let changes = (0..principals).map(|n| json!({ "principal": format!("arn:aws:iam::{account}:role/r{n}") }));
        let changes: Vec<Value> = changes.collect();
        json!({ "accountId": account, "instances": [], "copies": [], "principalChanges": changes })
    };
    let note = |account: &AccountId| json!({ "accountId": account, "imageId": "ami-0123abcd", "execution": "nightly-1", "going": "revoke-1 17" });
    serde_json::from_value(json!({
        "execution": "revoke-1",
        "source": { "accountId": "111111111111", "region": "eu-west-1" },
        "imageId": "ami-0123abcd",
        "launchPermissions": accounts,
        "snapshotChanges": [],
        "targets": accounts.iter().map(target).collect::<Vec<_>>(),
        "grantChanges": [],
        "keyChanges": of_keys,
        "notes": accounts.iter().map(note).collect::<Vec<_>>(),
        "kept": [],
        "left": []
    }))
    .unwrap()
}

/// As the keys' policies are when `there` are named, and those before are not any more.
fn policies(take_back: &TakeBack, there: std::ops::Range<usize>) -> Vec<PolicyChange> {
    let accounts: Vec<AccountId> = there.map(account).collect();
    let policy = |change: &ami_share_core::share::KeyChange| {
        let before = KeyPolicy::parse(&change.key_arn, r#"{"Version":"2012-10-17","Statement":[]}"#).unwrap();
        let before = before.with(&accounts).unwrap().unwrap();
        let after = before.without(&change.account_ids);
        PolicyChange { key: change.key_arn.clone(), text: before.to_text().unwrap(), before, after }
    };
    take_back.key_changes.iter().map(policy).collect()
}

fn add(plan: &mut Plan, take_back: &TakeBack, there: std::ops::Range<usize>) -> Result<(), ami_share_core::Error> {
    let names = Names { key_access_policy: "AmiShareKeyAccess", source_role: "arn:aws:iam::111111111111:role/s" };
    let policies = policies(take_back, there);
    let calls = calls(names, take_back, &policies, &[]).unwrap();
    plan.add(take_back, calls, &policies, vec![])
}

fn plan(rounds: &[(std::ops::Range<usize>, std::ops::Range<usize>)]) -> Plan {
    let mut plan = Plan::default();
    for (taken, there) in rounds {
        add(&mut plan, &take_back(taken.clone(), 2, 1), there.clone()).unwrap();
    }
    plan
}

#[test]
fn a_plan_says_the_calls_in_their_order_and_who_loses_which_key() {
    let said = json!(plan(&[(0..2, 0..3), (2..3, 2..3)]));
    let names: Vec<&str> =
        said["calls"].as_array().unwrap().iter().map(|call| call["call"].as_str().unwrap()).collect();
    let round = |targets: usize| {
        let detached = vec!["iam:DetachRolePolicy"; targets];
        [&["ec2:ModifyImageAttribute"][..], &detached, &["kms:PutKeyPolicy", "kms:PutKeyPolicy"]].concat()
    };
    assert_eq!(names, [round(2), round(1)].concat());
    assert_eq!(said["keys"][key(0).as_str()], json!([account(0), account(1), account(2)]));
    assert_eq!(said["targets"], json!([account(0), account(1), account(2)]));
    assert_eq!((&said["summary"]["calls"], &said["unlisted"]), (&json!(9), &json!(0)));
    assert_eq!(said["summary"]["callsByAccount"]["111111111111"], 6);
}

#[test]
fn who_asks_and_when_do_not_change_the_hash_and_what_is_taken_does() {
    let hash = |plan: &Plan| json!(plan)["planHash"].clone();
    let first = plan(&[(0..2, 0..3)]);
    let mut later = take_back(0..2, 2, 1);
    later.execution = ExecutionName::parse("revoke-2").unwrap();
    later.notes.iter_mut().for_each(|note| note.going = ami_share_core::mark::Mark::noted("revoke-2 18"));
    let mut again = Plan::default();
    add(&mut again, &later, 0..3).unwrap();
    assert_eq!(hash(&again), hash(&first));
    let mut others: Vec<Value> = [
        plan(&[]),
        plan(&[(0..3, 0..3)]),
        // The policy names somebody else, too.
        plan(&[(0..2, 0..4)]),
        plan(&[(0..2, 0..3), (2..3, 2..3)]),
        plan(&[(2..3, 0..3), (0..2, 0..2)]),
    ]
    .iter()
    .map(hash)
    .collect();
    others.push(hash(&first));
    let distinct: std::collections::BTreeSet<String> = others.iter().map(Value::to_string).collect();
    assert_eq!(distinct.len(), others.len());
}

#[test]
fn a_plan_that_is_no_longer_true_says_what_is_another_now() {
    let planned = plan(&[(0..2, 0..3)]);
    for (now, parts) in [
        // The policy names somebody else, too.
        (plan(&[(0..2, 0..4)]), "the keys' policies"),
        (
            plan(&[(0..3, 0..3)]),
            "what was noted of targets, who loses launch permissions and copies of snapshots, what is taken in the \
             targets, the keys' policies",
        ),
    ] {
        let said = now.difference_to(planned.hash());
        let expected =
            format!("since plan {}, these are others: {parts}; the plan is now {}", planned.hash(), now.hash());
        assert_eq!(said, expected);
    }
    let mut stays = plan(&[]);
    let left = json!([{ "accountId": account(7), "state": "ResolveRevoke", "error": "AccessDenied", "cause": "c" }]);
    stays.stays(&serde_json::from_value::<Vec<_>>(left).unwrap());
    add(&mut stays, &take_back(0..2, 2, 1), 0..3).unwrap();
    let said = stays.difference_to(planned.hash());
    assert!(said.contains("these are others: what stays; "), "{said}");
}

#[test]
fn a_plan_that_was_carried_out_says_so() {
    let planned = plan(&[(0..2, 0..3)]);
    let said = Plan::default().difference_to(planned.hash());
    assert!(said.starts_with(&format!("plan {} was carried out", planned.hash())), "{said}");
}

/// Earlier versions have made hashes without parts.
#[test]
fn a_plan_of_an_earlier_version_is_still_compared() {
    let now = plan(&[(0..2, 0..3)]);
    let earlier = ami_share_core::ids::PlanHash::parse(now.hash().whole()).unwrap();
    assert_eq!(earlier.whole(), now.hash().whole());
    let other = plan(&[(0..3, 0..3)]).difference_to(&earlier);
    assert!(other.contains("or what it would take back is no longer the same"), "{other}");
}

/// It is handed back beside the next round's take-back.
#[test]
fn a_plan_is_cut_and_says_so_and_its_hash_is_that_of_the_whole() {
    let mut whole = Plan::default();
    let mut calls = 0;
    for round in 0..10 {
        let taken = round * 50..round * 50 + 50;
        add(&mut whole, &take_back(taken.clone(), 2, 21), taken).unwrap();
        calls += 1 + 50 * 21 + 2;
        let said = json!(whole);
        assert!(said.to_string().len() <= MOST_BYTES, "{}", said.to_string().len());
        assert_eq!(said["summary"]["calls"], calls);
        let listed = said["calls"].as_array().unwrap().len();
        assert_eq!(said["unlisted"], calls - listed, "round {round}");
    }
    let error = add(&mut whole, &take_back(0..300, 10, 0), 0..300).unwrap_err();
    assert_eq!(error.name(), "InvalidRequest");
}
