//! Plans: that they change nothing, that they tell the truth, and that one is applied as it was made
//! or not at all.

use std::collections::BTreeMap;

use ami_share_sandbox::{
    faults::{Fault, FaultKind, Hook, Matcher, RootCall, When},
    journal::Entry,
};
use ami_share_tests::{REGION, Result, SOURCE, TARGET, clients::root_of, local::Settings, seed, stop::Stopper};
use aws_sdk_ec2::types::{LaunchPermission, LaunchPermissionModifications};
use serde_json::{Value, json};

use crate::{Run, Stage, merge, modes, refused::problems};

const SECOND: &str = "444444444444";
const THIRD: &str = "555555555555";

/// The request of a plan, or of its application.
fn with(request: &Value, changes: Value) -> Value {
    let mut request = request.clone();
    merge(&mut request, changes);
    request
}

impl Stage {
    /// Runs a plan, which must not have done anything; returns it.
    async fn plan(&self, name: &str, request: &Value) -> Result<Value> {
        let run = self.run(&format!("{name}-plan"), &with(request, json!({ "action": "plan" }))).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
        assert_eq!(run.writes(), [""; 0], "{name}");
        assert_eq!(run.differences(), "", "{name}");
        assert_eq!(run.report()["status"], "planned", "{name}");
        assert!(run.report().get("cut").is_none(), "{name}: {}", run.report()["cut"]);
        let states: Vec<&str> = run.ended.states.iter().map(|entered| entered.state.as_str()).collect();
        assert_eq!(states, ["ResolveImage", "ChoosePlan", "PlanShare", "CheckPlan", "FinishPlan"], "{name}");
        Ok(run.report().clone())
    }

    async fn apply(&self, name: &str, request: &Value, plan: &Value) -> Result<Run> {
        self.run(name, &with(request, json!({ "action": "apply", "planHash": plan["planHash"] }))).await
    }

    /// The key's policy as it is, its text.
    async fn policy(&self, key: &str) -> Result<String> {
        let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &self.local.sandbox.endpoint()));
        Ok(kms.get_key_policy().key_id(key).policy_name("default").send().await?.policy.unwrap_or_default())
    }

    async fn policies(&self) -> Result<BTreeMap<String, String>> {
        let mut policies = BTreeMap::new();
        for key in self.image.key_arns() {
            policies.insert(key.to_owned(), self.policy(key).await?);
        }
        Ok(policies)
    }

    async fn put_policy(&self, key: &str, text: &str) -> Result<()> {
        let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &self.local.sandbox.endpoint()));
        kms.put_key_policy().key_id(key).policy_name("default").policy(text).send().await?;
        Ok(())
    }

    async fn permit(&self, account: &str) -> Result<()> {
        let ec2 = aws_sdk_ec2::Client::new(&root_of(SOURCE, &self.local.sandbox.endpoint()));
        let permission = LaunchPermission::builder().user_id(account).build();
        let change = LaunchPermissionModifications::builder().add(permission).build();
        ec2.modify_image_attribute().image_id(&self.image.image_id).launch_permission(change).send().await?;
        Ok(())
    }
}

fn key_access(account: &str) -> String {
    format!("arn:aws:iam::{account}:policy/AmiShareKeyAccess")
}

/// The policy with one more statement of somebody else's.
fn changed(policy: &str) -> Value {
    let mut document: Value = serde_json::from_str(policy).expect("it is JSON");
    let statement = json!({
        "Sid": "Auditors", "Effect": "Allow", "Action": "kms:List*", "Resource": "*",
        "Principal": { "AWS": format!("arn:aws:iam::{SOURCE}:root") },
    });
    document["Statement"].as_array_mut().expect("a list").push(statement);
    document
}

/// The values of `prefix.1<suffix>`, `prefix.2<suffix>`, … in their order.
fn listed(parameters: &Value, prefix: &str, suffix: &str) -> Vec<Value> {
    (1..).map_while(|number| parameters.get(format!("{prefix}.{number}{suffix}")).cloned()).collect()
}

/// A call that was made, as a plan names it. `ids` says what stands for what no plan can know.
fn as_planned(entry: &Entry, ids: &BTreeMap<String, &str>) -> Value {
    let sent = &entry.parameters;
    let id = |id: &Value| ids.get(id.as_str().unwrap_or_default()).map_or_else(|| id.clone(), |name| json!(name));
    let mut parameters = match entry.action.as_str() {
        "kms:PutKeyPolicy" => json!({ "keyId": sent["KeyId"], "policyName": sent["PolicyName"] }),
        "kms:CreateGrant" => json!({
            "keyId": sent["KeyId"], "name": sent["Name"], "granteePrincipal": sent["GranteePrincipal"],
            "retiringPrincipal": sent["RetiringPrincipal"], "operations": sent["Operations"],
        }),
        "ec2:ModifySnapshotAttribute" => json!({
            "snapshotId": sent["SnapshotId"], "attribute": sent["Attribute"],
            "operationType": sent["OperationType"], "userIds": listed(sent, "UserId", ""),
        }),
        "ec2:ModifyImageAttribute" => json!({
            "imageId": sent["ImageId"],
            "launchPermission": { "add": listed(sent, "LaunchPermission.Add", ".UserId") },
        }),
        "iam:AttachRolePolicy" => json!({ "roleName": sent["RoleName"], "policyArn": sent["PolicyArn"] }),
        "iam:AttachUserPolicy" => json!({ "userName": sent["UserName"], "policyArn": sent["PolicyArn"] }),
        "iam:PutRolePolicy" => json!({ "roleName": sent["RoleName"], "policyName": sent["PolicyName"] }),
        "iam:PutUserPolicy" => json!({ "userName": sent["UserName"], "policyName": sent["PolicyName"] }),
        "ec2:CopyImage" => json!({
            "sourceImageId": sent["SourceImageId"], "sourceRegion": sent["SourceRegion"],
            "encrypted": sent["Encrypted"] == "true", "kmsKeyId": sent["KmsKeyId"],
        }),
        "ec2:RunInstances" => json!({ "imageId": id(&sent["ImageId"]), "instanceType": sent["InstanceType"] }),
        "ec2:TerminateInstances" => {
            json!({ "instanceIds": listed(sent, "InstanceId", "").iter().map(id).collect::<Vec<_>>() })
        }
        other => json!({ "notPlanned": other }),
    };
    if entry.action == "ec2:RunInstances" {
        if let Some(subnet) = sent.get("SubnetId") {
            parameters["subnetId"] = subnet.clone();
        }
        let mut keys = listed(sent, "BlockDeviceMapping", ".Ebs.KmsKeyId");
        keys.dedup();
        if let [key] = keys.as_slice() {
            parameters["kmsKeyId"] = key.clone();
        }
    }
    let mut call = json!({ "accountId": entry.account, "call": entry.action, "parameters": parameters });
    if !entry.action.starts_with("iam:") {
        call["region"] = json!(entry.region);
    }
    call
}

/// What `diff` makes of `before`: it must fit.
fn patched(before: &str, diff: &Value) -> String {
    let old: Vec<&str> = before.lines().collect();
    let (mut new, mut at) = (Vec::new(), 0);
    for line in diff.as_array().into_iter().flatten().filter_map(Value::as_str) {
        if let Some(range) = line.strip_prefix("@@ -") {
            let start = range.split([',', ' ']).next().and_then(|number| number.parse::<usize>().ok());
            let start = start.expect("a hunk says where it starts").saturating_sub(1);
            new.extend_from_slice(&old[at..start]);
            at = start;
            continue;
        }
        let (kind, text) = line.split_at(1);
        if kind != "+" {
            assert_eq!(old[at], text, "the diff does not fit");
            at += 1;
        }
        if kind != "-" {
            new.push(text);
        }
    }
    new.extend_from_slice(&old[at..]);
    new.join("\n")
}

fn pretty(text: &str) -> String {
    let value: Value = serde_json::from_str(text).expect("it is JSON");
    format!("{value:#}")
}

/// By account, in their order.
fn by_account(calls: &[Value]) -> BTreeMap<&str, Vec<&Value>> {
    let mut accounts: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for call in calls {
        accounts.entry(call["accountId"].as_str().unwrap_or_default()).or_default().push(call);
    }
    accounts
}

/// Each call of the plan was made, with its parameters and in its order, and no other.
fn assert_planned(name: &str, plan: &Value, policies: &BTreeMap<String, String>, run: &Run) {
    let mut ids = BTreeMap::new();
    for target in run.report()["targets"].as_array().into_iter().flatten() {
        ids.insert(target["instanceId"].as_str().unwrap_or_default().to_owned(), "the instance");
        let account = &target["accountId"];
        let copies = |entry: &Entry| entry.action == "ec2:CopyImage" && *account == *entry.account;
        if run.journal.iter().any(copies) {
            ids.insert(target["imageId"].as_str().unwrap_or_default().to_owned(), "the copy");
        }
    }
    let entries: Vec<&Entry> = run.journal.iter().filter(|entry| entry.write).collect();
    let made: Vec<Value> = entries.iter().map(|entry| as_planned(entry, &ids)).collect();
    let calls = plan["calls"].as_array().expect("a plan has calls");
    let planned: Vec<Value> = calls
        .iter()
        .map(|call| {
            let mut call = call.clone();
            call.as_object_mut().expect("an object").remove("policy");
            call
        })
        .collect();
    assert_eq!(by_account(&planned), by_account(&made), "{name}");
    let in_source = planned.iter().take_while(|call| call["accountId"] == SOURCE).count();
    assert_eq!(planned[..in_source], made[..in_source], "{name}: the source account comes first");

    let counted: BTreeMap<&str, usize> =
        by_account(&made).into_iter().map(|(account, calls)| (account, calls.len())).collect();
    assert_eq!(plan["summary"], json!({ "calls": made.len(), "callsByAccount": counted }), "{name}");

    for call in calls.iter().filter(|call| call["call"] == "kms:PutKeyPolicy") {
        let key = call["parameters"]["keyId"].as_str().expect("a key");
        let entry = entries.iter().find(|entry| entry.parameters["KeyId"] == key).expect("it was written");
        let after = entry.parameters["Policy"].as_str().expect("a policy");
        let (before, policy) = (&policies[key], &call["policy"]);
        assert_eq!(patched(&pretty(before), &policy["diff"]), pretty(after), "{name}");
        let bytes = [before.len(), after.len(), 32_768];
        assert_eq!(json!([policy["bytesBefore"], policy["bytesAfter"], policy["bytesLimit"]]), json!(bytes), "{name}");
    }
    for entry in entries.iter().filter(|entry| entry.action.starts_with("iam:Put")) {
        let documents = plan["inlinePolicies"].as_array().expect("there are inline policies");
        let named = |document: &&Value| document["policyName"] == entry.parameters["PolicyName"];
        let document = documents.iter().find(named).expect("its document is in the plan");
        let after = entry.parameters["PolicyDocument"].as_str().expect("a policy");
        assert_eq!(patched("", &document["policy"]["diff"]), pretty(after), "{name}");
    }
}

#[tokio::test]
async fn a_plan_is_what_is_then_done() -> Result<()> {
    let targets = [TARGET, SECOND, THIRD].map(str::to_owned).to_vec();
    let mut stage = Stage::start(Settings { targets, inline_policies: true, ..Settings::default() }).await?;
    let user = modes::user(&stage, "app-user").await?;
    stage.keep();
    let principals = json!([stage.target().principal, user]);
    let key = |mode: &str| json!({ "mode": mode, "kmsKeyId": "alias/app-volumes" });
    let (role_of_second, role_of_third) = (&stage.targets[SECOND].principal, &stage.targets[THIRD].principal);
    let several = json!({ "imageId": stage.image.image_id, "targets": [
        { "accountId": THIRD, "principals": [role_of_third], "reencrypt": key("copyImage") },
        { "accountId": TARGET, "principals": principals },
        { "accountId": SECOND, "principals": [role_of_second], "reencrypt": key("atLaunch"), "launch": { "keep": true } },
    ]});
    let scenarios = [
        ("plain", stage.request(json!({ "principals": principals }))),
        (
            "at-launch",
            stage.request(
                json!({ "reencrypt": key("atLaunch"), "launch": { "keep": true, "instanceType": "m7i.large" } }),
            ),
        ),
        ("copy", stage.request(json!({ "reencrypt": key("copyImage"), "principals": principals }))),
        ("inline", with(&stage.request(json!({ "principals": principals })), json!({ "principalAccess": "inline" }))),
        ("grant", with(&several, json!({ "keyAccess": "grant" }))),
        ("several", several.clone()),
        ("half-shared", several),
        ("copied-before", stage.request(json!({ "reencrypt": key("copyImage"), "launch": { "prove": "always" } }))),
    ];
    for (name, request) in scenarios {
        stage.reset();
        match name {
            "half-shared" => {
                stage.permit(TARGET).await?;
                let iam = aws_sdk_iam::Client::new(&root_of(SECOND, &stage.local.sandbox.endpoint()));
                iam.attach_role_policy().role_name("app-deployer").policy_arn(key_access(SECOND)).send().await?;
                let earlier = json!({ "imageId": stage.image.image_id, "targets": [{ "accountId": THIRD }] });
                let run = stage.run("earlier", &earlier).await?;
                assert!(run.succeeded(), "{}", run.summary());
            }
            "copied-before" => {
                let run = stage.run("copied", &stage.request(json!({ "reencrypt": key("copyImage") }))).await?;
                assert!(run.succeeded(), "{}", run.summary());
            }
            _ => {}
        }
        let plan = stage.plan(name, &request).await?;
        let policies = stage.policies().await?;
        let run = stage.apply(name, &request, &plan).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
        assert!(run.ended.entered("PlanShare"), "{name}");
        assert_planned(name, &plan, &policies, &run);

        let settled = with(&request, json!({}));
        let again = stage.plan(&format!("{name}-again"), &settled).await?;
        if name != "copied-before" {
            assert_eq!(again["calls"], json!([]), "{name}");
            assert_eq!(again["message"], "Nothing would be changed: every target has everything that is asked for.");
            let asked = request["targets"].as_array().map_or(0, Vec::len);
            assert_eq!(again["alreadyShared"].as_array().map(Vec::len), Some(asked), "{name}");
            let run = stage.apply(&format!("{name}-nothing"), &request, &again).await?;
            assert_eq!(run.report()["status"], "alreadyShared", "{name}: {}", run.summary());
        }
        if name == "half-shared" {
            let there: Vec<&Value> = plan["alreadyThere"].as_array().into_iter().flatten().collect();
            let accounts: Vec<&str> = there.iter().filter_map(|target| target["accountId"].as_str()).collect();
            assert_eq!(accounts, [THIRD, TARGET], "{there:?}");
            assert_eq!(there[0]["keyArns"].as_array().map(Vec::len), Some(2), "{there:?}");
            assert_eq!(*there[1], json!({ "accountId": TARGET, "launchPermission": true, "keyArns": [] }));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_plan_is_the_same_while_nothing_that_it_rests_on_changes() -> Result<()> {
    let targets = [TARGET, SECOND].map(str::to_owned).to_vec();
    let stage = Stage::start(Settings { targets, ..Settings::default() }).await?;
    let stopper = Stopper::new(&stage.local).await?;
    let records = stopper.records()?;
    let request = json!({ "imageId": stage.image.image_id, "targets": [
        { "accountId": TARGET, "principals": [stage.target().principal] }, { "accountId": SECOND }
    ]});
    let plan = stage.plan("first", &request).await?;
    assert_eq!(stage.plan("second", &request).await?, plan);

    let mut reversed = request.clone();
    reversed["targets"].as_array_mut().ok_or("a list")?.reverse();
    assert_eq!(stage.plan("reversed", &reversed).await?["planHash"], plan["planHash"]);

    let key = stage.image.key_arns()[0];
    let policy = stage.policy(key).await?;
    let mut same: Value = serde_json::from_str(&policy)?;
    same["Statement"][1]["Action"].as_array_mut().ok_or("a list")?.reverse();
    same["Statement"][0]["Principal"]["AWS"] = json!([same["Statement"][0]["Principal"]["AWS"]]);
    stage.put_policy(key, &same.to_string()).await?;
    assert_ne!(stage.policy(key).await?, policy);
    assert_eq!(stage.plan("written-otherwise", &request).await?["planHash"], plan["planHash"]);

    // Somebody else is given the image, and the target has a new role.
    stage.permit(THIRD).await?;
    ami_share_tests::seed::role(&stage.local.sandbox.endpoint(), TARGET, "app-other").await?;
    assert_eq!(stage.plan("unrelated", &request).await?["planHash"], plan["planHash"]);

    assert_eq!(stopper.records()?, records, "a plan is not noted, and takes no lock");
    Ok(())
}

/// Nothing was written but by `others`, and nothing stays locked.
fn assert_refused(name: &str, run: &Run, others: usize) {
    assert_eq!(run.error(), "PlanChanged", "{name}: {}", run.summary());
    assert!(run.cause().ends_with("Nothing was changed."), "{name}: {}", run.cause());
    assert!(run.cause().contains("make a plan again"), "{name}: {}", run.cause());
    let by_hooks = run.journal.iter().filter(|entry| entry.write && entry.via.is_some()).count();
    assert_eq!(by_hooks, others, "{name}");
    assert!(!run.ended.entered("ShareImage"), "{name}: {:?}", run.ended.states);
}

#[tokio::test]
async fn a_plan_is_not_applied_to_another_world_or_request() -> Result<()> {
    let targets = [TARGET, SECOND].map(str::to_owned).to_vec();
    let mut stage = Stage::start(Settings { targets, ..Settings::default() }).await?;
    let iam = aws_sdk_iam::Client::new(&root_of(TARGET, &stage.local.sandbox.endpoint()));
    iam.attach_role_policy().role_name("app-deployer").policy_arn(key_access(TARGET)).send().await?;
    stage.keep();
    let request = json!({ "imageId": stage.image.image_id, "targets": [
        { "accountId": TARGET, "principals": [stage.target().principal] }, { "accountId": SECOND }
    ]});
    let plan = stage.plan("made", &request).await?;
    let key = stage.image.key_arns()[1];
    let (keys, image, principals) =
        ("the keys' policies or grants", "who may launch the image and copy its snapshots", "what principals have");
    let unknown = "the request is not the one of plan 0000";
    let cases = [
        ("key-policy-changed", format!("others: {keys}; the plan is now")),
        ("principal-detached", format!("others: {principals}; the plan is now")),
        ("principal-attached", format!("others: {principals}; the plan is now")),
        ("launch-permission-given", format!("others: {image}; the plan is now")),
        ("target-shared-meanwhile", format!("others: {keys}, {image}, {principals}")),
        ("another-target", format!("others: the request, {keys}, {image}, {principals}")),
        ("another-launch", "others: the request; the plan is now".to_owned()),
        ("another-plan", unknown.to_owned()),
    ];
    for (name, says) in cases {
        stage.reset();
        let mut request = request.clone();
        let mut plan = plan.clone();
        match name {
            "key-policy-changed" => {
                let policy = changed(&stage.policy(key).await?);
                stage.put_policy(key, &policy.to_string()).await?;
            }
            "principal-detached" => {
                iam.detach_role_policy().role_name("app-deployer").policy_arn(key_access(TARGET)).send().await?;
            }
            "principal-attached" => {
                iam.attach_role_policy().role_name("AmiShareLauncher").policy_arn(key_access(TARGET)).send().await?;
            }
            "launch-permission-given" => stage.permit(TARGET).await?,
            "target-shared-meanwhile" => {
                let other = json!({ "imageId": stage.image.image_id, "targets": [{ "accountId": SECOND }] });
                let run = stage.run("meanwhile", &other).await?;
                assert!(run.succeeded(), "{}", run.summary());
            }
            "another-target" => drop(request["targets"].as_array_mut().ok_or("a list")?.pop()),
            "another-launch" => request["targets"][0]["launch"] = json!({ "keep": true }),
            _ => plan["planHash"] = json!("0".repeat(64)),
        }
        let run = stage.apply(name, &request, &plan).await?;
        assert_refused(name, &run, 0);
        assert!(run.cause().contains(&says), "{name}: the cause does not say {says:?}: {}", run.cause());
        assert_eq!(run.writes(), [""; 0], "{name}");
        assert_eq!(run.differences(), "", "{name}");
        for state in ["RecordShare", "ResolveUndo", "TakeBack"] {
            assert!(!run.ended.entered(state), "{name}: {:?}", run.ended.states);
        }
        // Planned anew, it is applied.
        let plan = stage.plan(&format!("{name}-anew"), &request).await?;
        let run = stage.apply(&format!("{name}-applied"), &request, &plan).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
    }
    Ok(())
}

#[tokio::test]
async fn a_plan_that_was_carried_out_says_so() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let request = stage.request(json!({ "principals": [stage.target().principal] }));
    let plan = stage.plan("carried-out", &request).await?;
    let run = stage.apply("first", &request, &plan).await?;
    assert!(run.succeeded(), "{}", run.summary());
    let run = stage.apply("second", &request, &plan).await?;
    assert_refused("second", &run, 0);
    assert!(run.cause().contains("was carried out, or somebody gave the same"), "{}", run.cause());
    assert_eq!(run.writes(), [""; 0]);
    // For another request it was not.
    let other = stage.request(json!({}));
    let run = stage.apply("another", &other, &plan).await?;
    assert_refused("another", &run, 0);
    assert!(!run.cause().contains("carried out") && run.cause().contains("the request"), "{}", run.cause());
    Ok(())
}

/// Somebody writes a key's policy after the plan was compared: before ShareKey's first look, and
/// between its writes of the one key and of the other.
#[tokio::test]
async fn what_slips_in_before_the_write_is_seen_and_stays() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let stopper = Stopper::new(&stage.local).await?;
    let request = stage.request(json!({ "principals": [stage.target().principal] }));
    let keys: Vec<&str> = {
        let mut keys = stage.image.key_arns();
        keys.sort_unstable();
        keys
    };
    // ResolveImage, PlanShare and ShareKey read both; ShareKey then reads, writes and reads the first. After
    // a reset it takes policies for stale, and reads them more often: what counts reads is tried first.
    for (name, reads, index, written) in
        [("between", 8, 1, true), ("before", 4, 1, false), ("before-the-first", 4, 0, false)]
    {
        stage.reset();
        let plan = stage.plan(name, &request).await?;
        let before = stage.policies().await?;
        let policy = changed(&before[keys[index]]).to_string();
        stage.local.sandbox.world().faults.add_hook(Hook {
            when: When::Before,
            matcher: Matcher::action("kms:GetKeyPolicy").in_account(SOURCE),
            skip: reads,
            calls: vec![RootCall {
                account: SOURCE.to_owned(),
                region: REGION.to_owned(),
                service: "kms".to_owned(),
                action: "PutKeyPolicy".to_owned(),
                params: json!({ "KeyId": keys[index], "PolicyName": "default", "Policy": policy }),
            }],
        });
        let run = stage.apply(name, &request, &plan).await?;
        assert!(stage.local.sandbox.world().faults.hooks().is_empty(), "{name}: nothing slipped in");
        assert_refused(name, &run, 1);
        assert!(run.cause().contains(keys[index]), "{name}: {}", run.cause());
        // ShareKey has taken back what it had written itself: all that is left to take back is the note.
        assert!(run.ended.entered("TakeBack"), "{name}: {:?}", run.ended.states);
        let part = format!("{}#{}", stage.image.image_id, run.ended.arn.rsplit(':').next().unwrap_or_default());
        let is_note = |record: &Value| record["part"]["S"] == part.as_str() && record.get("gift").is_some();
        assert!(!stopper.records()?.iter().any(is_note), "{name}: a note is left");
        let ours = run.journal.iter().filter(|entry| entry.write && entry.via.is_none());
        assert_eq!(ours.count(), if written { 2 } else { 0 }, "{name}: {:?}", run.writes());
        let after = stage.policies().await?;
        assert_eq!(pretty(&after[keys[index]]), pretty(&policy), "{name}");
        assert_eq!(after[keys[1 - index]], before[keys[1 - index]], "{name}");
        // The lock is free.
        let run = stage.run(&format!("{name}-without-a-plan"), &request).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
    }
    Ok(())
}

#[tokio::test]
async fn a_plan_is_applied_though_the_reply_to_a_write_is_lost() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let request = stage.request(json!({}));
    let plan = stage.plan("lost", &request).await?;
    // Of each of the two keys: the state's next try finds its policy written.
    let lost =
        Fault { count: 2, ..Fault::once(Matcher::action("kms:PutKeyPolicy").in_account(SOURCE), FaultKind::ReplyLost) };
    stage.local.sandbox.world().faults.add(lost);
    let run = stage.apply("lost", &request, &plan).await?;
    assert!(run.succeeded(), "{}", run.summary());
    assert!(stage.local.sandbox.world().faults.faults().is_empty(), "no reply was lost");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_shared_cannot_be_planned_either() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let key = stage.image.key_arns()[0];
    let mut deleted = changed(&stage.policy(key).await?);
    deleted["Statement"][2]["Principal"] = json!({ "AWS": "*" });
    deleted["Statement"][2]["Sid"] = json!("AmiShareUse");
    stage.put_policy(key, &deleted.to_string()).await?;
    for (name, changes) in
        [("foreign-statement", json!({})), ("no-image", json!({ "imageId": "ami-0000000000000000f" }))]
    {
        let request = with(&stage.request(json!({})), changes);
        let applied = stage.run(&format!("{name}-applied"), &request).await?;
        let planned = stage.run(&format!("{name}-planned"), &with(&request, json!({ "action": "plan" }))).await?;
        assert_eq!(planned.error(), applied.error(), "{name}");
        assert_eq!(planned.cause(), applied.cause(), "{name}");
        assert!(planned.cause().ends_with("Nothing was changed."), "{name}: {}", planned.cause());
        assert_eq!(planned.writes(), [""; 0], "{name}");
    }
    Ok(())
}

/// Managed policies that somebody else has attached.
pub(crate) fn other_policies(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("arn:aws:iam::aws:policy/Other{n}")).collect()
}

/// What the target's owner does not let ami-share do, each with the parameter that says so.
#[tokio::test]
async fn what_the_targets_owner_does_not_allow_is_foreseen() -> Result<()> {
    let mut stage = Stage::start(Settings::default()).await?;
    let (role, user) = (format!("arn:aws:iam::{TARGET}:role/web"), modes::user(&stage, "web").await?);
    seed::role(&stage.local.sandbox.endpoint(), TARGET, "web").await?;
    stage.keep();
    let app = stage.target().principal.clone();
    let own_role = format!("arn:aws:iam::{TARGET}:role/AmiShareTarget");
    let principals = |arns: &[&str]| stage.request(json!({ "principals": arns }));
    let as_it_is = stage.seeded.clone();
    let no_launcher = {
        stage.local.sandbox.world().account_mut(TARGET).iam.roles.remove("AmiShareLauncher");
        stage.local.sandbox.world().accounts.clone()
    };
    stage.reset();
    let other_trust = {
        let mut world = stage.local.sandbox.world();
        let roles = &mut world.account_mut(TARGET).iam.roles;
        let trust = roles["web"].trust.clone();
        roles.get_mut("AmiShareLauncher").expect("it was deployed").trust = trust;
        world.accounts.clone()
    };
    stage.reset();
    let other_policy = {
        let iam = aws_sdk_iam::Client::new(&root_of(TARGET, &stage.local.sandbox.endpoint()));
        let policy = iam.get_role_policy().role_name("AmiShareTarget").policy_name("ManagePrincipals").send().await?;
        let text = form_urlencoded::parse(policy.policy_document.as_bytes()).next().expect("a document").0.into_owned();
        let text = text.replace("policy/AmiShareKeyAccess", "policy/OtherKeyAccess");
        let put = iam.put_role_policy().role_name("AmiShareTarget").policy_name("ManagePrincipals");
        put.policy_document(text).send().await?;
        stage.local.sandbox.world().accounts.clone()
    };
    stage.reset();
    let no_policy = {
        let arn = format!("arn:aws:iam::{TARGET}:policy/AmiShareKeyAccess");
        assert!(stage.local.sandbox.world().account_mut(TARGET).iam.policies.remove(&arn).is_some());
        stage.local.sandbox.world().accounts.clone()
    };
    stage.reset();
    let full = {
        let mut world = stage.local.sandbox.world();
        let iam = &mut world.account_mut(TARGET).iam;
        iam.attached_quota = 12;
        let name = app.rsplit('/').next().expect("a name");
        iam.roles.get_mut(name).expect("it is there").entity.attached.set(other_policies(12), 0, 0);
        world.accounts.clone()
    };
    let rows: [(&str, _, Value, &str, &[&str]); 8] = [
        (
            "no-policy",
            &no_policy,
            stage.request(json!({})),
            "Aws",
            &["AmiShareKeyAccess does not exist", "KeyAccessPolicyName"],
        ),
        (
            "no-room",
            &full,
            principals(&[&app]),
            "QuotaExceeded",
            &[&app, "has 12, and AttachedPoliciesPerRoleQuota is 12"],
        ),
        (
            "outside",
            &as_it_is,
            principals(&[&role, &user]),
            "AccessDenied",
            &["role/web", "user/web", "PrincipalArnPatterns"],
        ),
        (
            "inline",
            &as_it_is,
            with(&principals(&[&app]), json!({ "principalAccess": "inline" })),
            "AccessDenied",
            &[&app, "AmiShareLauncher", "iam:PutRolePolicy", "AllowInlinePolicies"],
        ),
        ("own-role", &as_it_is, principals(&[&own_role]), "InvalidRequest", &[&own_role, "TargetRoleName"]),
        (
            "launcher",
            &other_trust,
            stage.request(json!({})),
            "AccessDenied",
            &["sts:AssumeRole", "AmiShareLauncher", "LauncherRoleName"],
        ),
        (
            "no-launcher",
            &no_launcher,
            stage.request(json!({ "launch": { "prove": "never" } })),
            "PrincipalNotFound",
            &["role/AmiShareLauncher", "LauncherRoleName"],
        ),
        (
            "policy-name",
            &other_policy,
            principals(&[&app]),
            "AccessDenied",
            &["iam:AttachRolePolicy", "KeyAccessPolicyName"],
        ),
    ];
    let mut found = Vec::new();
    for (name, world, request, error, says) in rows {
        for action in ["plan", "apply"] {
            stage.local.sandbox.world().accounts = world.clone();
            let name = format!("{name}-{action}");
            let run = stage.run(&name, &with(&request, json!({ "action": action }))).await?;
            let says: Vec<String> = says.iter().map(|said| (*said).to_owned()).collect();
            found.extend(problems(&name, &run, error, &says));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

#[tokio::test]
async fn a_plan_names_the_keys_that_must_be_tagged_first() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let key = stage.image.key_arns()[1].to_owned();
    let kms = aws_sdk_kms::Client::new(&root_of(SOURCE, &stage.local.sandbox.endpoint()));
    kms.untag_resource().key_id(&key).tag_keys("ami-share:shareable").send().await?;
    for access in ["policy", "grant"] {
        let request = with(&stage.request(json!({})), json!({ "keyAccess": access }));
        let plan = stage.plan(access, &request).await?;
        assert_eq!(plan["untaggedKeys"], json!([key]), "{access}");
        assert!(plan["message"].as_str().is_some_and(|message| message.contains("OnlyTaggedKeys")), "{plan:#}");
        // And that is what becomes of it.
        let run = stage.apply(access, &request, &plan).await?;
        assert_eq!(run.error(), "AccessDenied", "{access}: {}", run.summary());
        assert!(run.cause().contains(&key), "{access}: {}", run.cause());
        assert_eq!(run.differences(), "", "{access}");
    }
    Ok(())
}
