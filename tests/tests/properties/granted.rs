//! What the roles of the templates may do is what functions do as them: every action on every resource under every
//! condition. That a function may do all that it needs, the other properties show.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use ami_share_sandbox::{
    faults::{Fault, FaultKind, Matcher},
    policy::{Policy, PolicyKind},
    world::Allowed,
};
use ami_share_tests::{HUB, SOURCE, TARGET};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngSeed, TestRunner},
};
use serde_json::{Value, json};

use crate::{
    deployed,
    request::good_requests,
    world::{Stage, worlds},
};

/// Enough for every way that a share, its undo and its revoke can go.
const WORLDS: usize = 50;

/// Conditions whose values are the owner's choice: one value that is used is enough.
const CHOSEN: [&str; 3] = ["aws:ResourceAccount", "ec2:InstanceType", "kms:GranteePrincipal"];

/// What is granted and not seen to be used here, by words of it, and why it is granted.
const UNSEEN: [(&[&str], &str); 7] = [
    (&["iam:GetAccountSummary"], "principals have few policies here: tests/tests/share/plan.rs"),
    (&["AmiShareStartShareFunctionRole"], "it needs a parameter, and Step Functions: tests/tests/start_share.rs"),
    (&["AmiShareGrantRevoker"], "no target passes a grant on here: tests/tests/revoke/foreign.rs"),
    (&["logs:"], "functions write no logs here"),
    (&["xray:"], "functions write no traces here"),
    (&["RolePolic", ":user/"], "PrincipalArnPatterns has roles and users in one list"),
    (&["UserPolic", ":role/"], "PrincipalArnPatterns has roles and users in one list"),
];

/// One action on one resource under one condition that a policy of a role allows.
struct Grant {
    name: String,
    policy: Policy,
}

fn listed(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_else(|| vec![value.clone()])
}

fn grants(role: &str, document: &Value) -> Vec<Grant> {
    let mut grants = Vec::new();
    for statement in listed(&document["Statement"]).into_iter().filter(|statement| statement["Effect"] == "Allow") {
        for action in listed(&statement["Action"]) {
            for resource in listed(&statement["Resource"]) {
                for condition in conditions(&statement["Condition"]) {
                    let mut one = json!({ "Effect": "Allow", "Action": action, "Resource": resource });
                    if !condition.is_null() {
                        one["Condition"] = condition.clone();
                    }
                    let document = json!({ "Version": "2012-10-17", "Statement": one }).to_string();
                    let policy = Policy::parse(&document, PolicyKind::Identity).unwrap();
                    grants.push(Grant { name: format!("{role}: {action} on {resource} where {condition}"), policy });
                }
            }
        }
    }
    grants
}

/// A condition with each of the values that it lists, where any one of them is enough.
fn conditions(condition: &Value) -> Vec<Value> {
    let mut all = vec![condition.clone()];
    for (operator, keys) in condition.as_object().into_iter().flatten() {
        for (key, values) in keys.as_object().into_iter().flatten() {
            let any = !operator.contains("Not") && !operator.contains("All") && !CHOSEN.contains(&key.as_str());
            let Some(values) = values.as_array().filter(|_| any) else { continue };
            let with = |one: &Value, value: &Value| {
                let mut one = one.clone();
                one[operator][key] = value.clone();
                one
            };
            all = all.iter().flat_map(|one| values.iter().map(move |value| with(one, value))).collect();
        }
    }
    all
}

fn run(stage: &Stage, machine: &str, name: &str, input: Value) {
    stage.machine.start(machine, name, input, 0).unwrap();
    stage.machine.run().unwrap();
}

/// A share that is planned, stopped, made, made once more and audited; a revoke that asks, one that is planned and one
/// that is made; and shares that fail where the target copies or launches.
fn everything_is_done(stage: &Stage, request: &Value, stopped_at: u64) {
    let (image, source) = (&request["imageId"], &request["source"]);
    let mut plan = request.clone();
    plan["action"] = json!("plan");
    run(stage, "ShareAmi", "plan", plan);
    let stopped = stage.machine.start("ShareAmi", "stopped", request.clone(), 0).unwrap();
    stage.machine.stop_at(&stopped, stopped_at);
    stage.machine.run().unwrap();
    run(stage, "ShareAmi", "first", request.clone());
    run(stage, "ShareAmi", "again", request.clone());
    run(stage, "AuditShares", "audit", json!({ "source": source }));
    run(stage, "AuditShares", "audit-one", json!({ "source": source, "imageId": image }));
    run(stage, "RevokeShare", "asked", json!({ "imageId": image, "source": source, "targets": "all" }));
    let forced = json!({
        "imageId": image, "source": source, "targets": "all", "force": true, "copies": true, "instances": true,
    });
    let mut planned = forced.clone();
    planned["action"] = json!("plan");
    run(stage, "RevokeShare", "planned", planned);
    run(stage, "RevokeShare", "forced", forced);
    for (name, code, message) in [
        // The launcher asks whether Allowed AMIs are the reason, and what EC2 has encoded.
        ("hidden", "AuthFailure", "Not authorized for images: [ami-0123abcd]"),
        ("refused", "UnauthorizedOperation", "Encoded authorization failure message: made-up"),
    ] {
        for action in ["ec2:CopyImage", "ec2:RunInstances"] {
            let kind = FaultKind::Error { code: code.to_owned(), message: message.to_owned(), status: 403 };
            stage.machine.world().faults.add(Fault::once(Matcher::action(action), kind));
        }
        run(stage, "ShareAmi", name, request.clone());
    }
    for action in ["ec2:CopyImage", "ec2:RunInstances"] {
        let kind = FaultKind::Fail { reason: "Client.InternalError".to_owned() };
        stage.machine.world().faults.add(Fault::always(Matcher::action(action), kind));
    }
    run(stage, "ShareAmi", "fails", request.clone());
}

#[test]
fn everything_that_a_role_may_do_is_done() {
    let mut runner = TestRunner::new(Config { rng_seed: RngSeed::Fixed(20_260_111), ..Config::default() });
    let mut done: BTreeMap<String, Vec<Allowed>> = BTreeMap::new();
    for _ in 0..WORLDS {
        let plans = (worlds(), good_requests(), 1..200_u64).new_tree(&mut runner).unwrap();
        let (world, request, stopped_at) = plans.current();
        let stage = world.stage();
        let request = request.request(&stage);
        stage.machine.world().allowed = Some(RefCell::default());
        everything_is_done(&stage, &request.json, stopped_at);
        let allowed = stage.machine.world().allowed.take().unwrap().into_inner();
        allowed.into_iter().for_each(|allowed| done.entry(allowed.role.clone()).or_default().push(allowed));
    }
    let world = deployed::world(true);
    let roles = [HUB, SOURCE, TARGET].into_iter().flat_map(|account| world.accounts[account].iam.roles.values());
    let ours = roles.filter(|role| role.entity.name.starts_with("AmiShare"));
    let (mut granted, mut unneeded) = (0, Vec::new());
    for role in ours {
        let iam = &world.accounts[role.entity.arn.split(':').nth(4).unwrap()].iam;
        let attached = role.entity.attached.effective(0).iter().filter_map(|arn| iam.policies.get(arn));
        let attached = attached.map(|policy| policy.document.effective(0));
        let policies = role.entity.inline.effective(0).values().chain(attached);
        let grants: Vec<Grant> = policies.flat_map(|policy| grants(&role.entity.name, &policy.json())).collect();
        granted += grants.len();
        let mut needed = BTreeSet::new();
        for Allowed { request, .. } in done.get(&role.entity.arn).into_iter().flatten() {
            let allowing = |(_, grant): &(usize, &Grant)| grant.policy.evaluate(request).allowed.is_some();
            let mut allowing = grants.iter().enumerate().filter(allowing).map(|(index, _)| index);
            if let (Some(only), None) = (allowing.next(), allowing.next()) {
                needed.insert(only);
            }
        }
        let others = grants.into_iter().enumerate().filter(|(index, _)| !needed.contains(index));
        unneeded.extend(others.map(|(_, grant)| grant.name));
    }
    let calls: usize = done.values().map(Vec::len).sum();
    println!("{calls} calls needed a role's policy; of {granted} grants these allow none that no other allows:");
    let is_of = |name: &str, words: &[&str]| words.iter().all(|word| name.contains(word));
    for (words, why) in UNSEEN {
        let of_these = unneeded.iter().filter(|name| is_of(name, words)).count();
        println!("{of_these} with {}: {why}", words.join(" and "));
        assert!(of_these > 0, "{words:?} is needed, and needs no excuse");
    }
    unneeded.retain(|name| !UNSEEN.iter().any(|(words, _)| is_of(name, words)));
    assert!(unneeded.is_empty(), "nothing needs\n{}", unneeded.join("\n"));
}
