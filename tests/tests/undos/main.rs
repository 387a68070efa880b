//! Each undo by itself, as take-back calls it: what it takes, what it says that it took, and what it leaves to others.
//!
//! The real functions run on the machine of tests/machine, without a state machine around them: their roles may do
//! anything, so that it is their session policies that keep them to their actions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

mod copies;
mod instances;
mod notes;
mod principals;
mod source;

use std::collections::BTreeMap;

use ami_share_machine::{
    Deployment, Function, Machine, Status,
    root::{Caller, element},
    services::Fault,
    steps::undos,
};
use ami_share_sandbox::{Settings, World};
use ami_share_tests::{HUB, REGION, SOURCE, TARGET};
use serde_json::{Value, json};

const TABLE: &str = "arn:aws:dynamodb:eu-west-1:333333333333:table/records";

/// An account that nothing is taken from.
const BYSTANDER: &str = "444444444444";

struct Stage {
    machine: Machine,
    calls: std::cell::Cell<u32>,
}

/// How a step ended.
#[derive(Debug)]
struct Ended {
    error: Option<String>,
    answer: Value,
}

impl Stage {
    fn new() -> Self {
        let mut world = World::new(Settings::default());
        world.set_now_ms(0);
        for (account, role) in [
            (HUB, "Function"),
            (SOURCE, "AmiShareSource"),
            (TARGET, "AmiShareTarget"),
            (TARGET, "AmiShareLauncher"),
            (TARGET, "app"),
        ] {
            make_role(&mut world, account, role);
        }
        world.account_mut(BYSTANDER);
        let variables = [
            ("SOURCE_ROLE_NAME", "AmiShareSource"),
            ("SOURCE_READER_ROLE_NAME", "AmiShareSourceReader"),
            ("SOURCE_GRANT_REVOKER_ROLE_NAME", "AmiShareGrantRevoker"),
            ("TARGET_ROLE_NAME", "AmiShareTarget"),
            ("LAUNCHER_ROLE_NAME", "AmiShareLauncher"),
            ("KEY_ACCESS_POLICY_NAME", "AmiShareKeyAccess"),
            ("EXTERNAL_ID", "external"),
            ("SOURCE_ACCOUNT_ID", SOURCE),
            ("ALLOWED_SOURCES", SOURCE),
            ("ALLOWED_TARGETS", TARGET),
            ("RECORD_TABLE_ARN", TABLE),
        ];
        let function = Function {
            role_arn: format!("arn:aws:iam::{HUB}:role/Function"),
            timeout_seconds: 60,
            environment: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        };
        let steps = || undos().chain(["CopyImage", "LaunchInstance", "RewriteNotes"]);
        let deployment = Deployment {
            functions: steps().map(|step| (step.to_owned(), function.clone())).collect(),
            definitions: steps().map(|step| (step.to_owned(), machine_of(step))).collect(),
            rules: Vec::new(),
            table_arn: TABLE.to_owned(),
            accounts: BTreeMap::new(),
        };
        Self { machine: Machine::new(&deployment, world, 7).unwrap(), calls: Default::default() }
    }

    /// Calls a step once.
    fn call(&self, step: &str, input: &Value) -> Ended {
        self.calls.set(self.calls.get() + 1);
        let name = format!("{step}-{}", self.calls.get());
        let arn = self.machine.start(step, &name, input.clone(), 1).unwrap();
        self.machine.run().unwrap();
        let record = self.machine.record(&arn);
        Ended {
            error: (record.status != Status::Succeeded).then(|| record.error.unwrap_or_default()),
            answer: record.output.unwrap_or_default(),
        }
    }

    /// Calls an undo, which does what it is to do; returns what it took: call, resource, from whom.
    fn undo(&self, step: &str, input: &Value) -> Vec<(String, String, Vec<String>)> {
        let ended = self.call(step, input);
        assert_eq!(ended.error, None, "{step}");
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let taken = ended.answer["taken"].as_array().unwrap().iter().map(|taken| {
            let from = taken["from"].as_array().into_iter().flatten().map(text).collect();
            (text(&taken["call"]), text(&taken["resource"]), from)
        });
        taken.collect()
    }

    /// Calls an undo that crashes right after its call of that number, counted from 1.
    fn crash(&self, step: &str, input: &Value, call: u64) {
        self.machine.set_faults([(call, Fault::CrashAfter)]);
        let ended = self.call(step, input);
        self.machine.set_faults([]);
        assert!(ended.error.is_some(), "{step} has not crashed");
    }

    fn ec2(&self, account: &str, action: &str, parameters: &[(&str, &str)]) -> String {
        Caller::root(account).call(&mut self.machine.world(), "ec2", action, parameters).unwrap()
    }

    fn iam(&self, action: &str, parameters: &[(&str, &str)]) {
        Caller::root(TARGET).call(&mut self.machine.world(), "iam", action, parameters).unwrap();
    }

    /// An image with two volumes that are not encrypted, which the target may launch and copy.
    fn shared_image(&self) -> Value {
        let mut parameters = vec![
            ("Name".to_owned(), "golden".to_owned()),
            ("Architecture".to_owned(), "x86_64".to_owned()),
            ("VirtualizationType".to_owned(), "hvm".to_owned()),
            ("RootDeviceName".to_owned(), "/dev/xvda".to_owned()),
        ];
        let mut volumes = Vec::new();
        for (index, device) in ["/dev/xvda", "/dev/sdf"].into_iter().enumerate() {
            let volume = self.ec2(SOURCE, "CreateVolume", &[("AvailabilityZone", "eu-west-1a"), ("Size", "8")]);
            let volume = element(&volume, "volumeId").unwrap();
            let snapshot =
                element(&self.ec2(SOURCE, "CreateSnapshot", &[("VolumeId", &volume)]), "snapshotId").unwrap();
            let permission = [("SnapshotId", snapshot.as_str()), ("CreateVolumePermission.Add.1.UserId", TARGET)];
            self.ec2(SOURCE, "ModifySnapshotAttribute", &permission);
            let of = format!("BlockDeviceMapping.{}", index + 1);
            parameters.push((format!("{of}.DeviceName"), device.to_owned()));
            parameters.push((format!("{of}.Ebs.SnapshotId"), snapshot.clone()));
            volumes.push(json!({ "deviceName": device, "snapshotId": snapshot }));
        }
        self.pass(1_000);
        let parameters: Vec<(&str, &str)> = parameters.iter().map(|(name, value)| (&**name, &**value)).collect();
        let id = element(&self.ec2(SOURCE, "RegisterImage", &parameters), "imageId").unwrap();
        let permission = [("ImageId", id.as_str()), ("LaunchPermission.Add.1.UserId", TARGET)];
        self.ec2(SOURCE, "ModifyImageAttribute", &permission);
        json!({ "imageId": id, "name": "golden", "architecture": "x86_64", "volumes": volumes })
    }

    /// Lets time go by.
    fn pass(&self, ms: u64) {
        let at = self.machine.now() + ms;
        let wait = json!({ "execution": "wait", "imageId": "ami-0123abcd", "notes": [], "taken": [], "left": [], "kept": [],
                "foreign": { "grants": [], "unlisted": 0 } });
        let arn = self.machine.start("RewriteNotes", &format!("wait-{at}"), wait, ms).unwrap();
        self.machine.run().unwrap();
        assert_eq!(self.machine.record(&arn).status, Status::Succeeded);
    }

    /// The ids of what the target has of that kind, such as `images`.
    fn has(&self, kind: &str) -> Vec<String> {
        let mut world = self.machine.world();
        let Some(ec2) = world.account_mut(TARGET).ec2.get(REGION) else { return Vec::new() };
        match kind {
            "images" => ec2.images.keys().cloned().collect(),
            "snapshots" => ec2.snapshots.keys().cloned().collect(),
            other => panic!("{other} is not counted here"),
        }
    }
}

fn source() -> Value {
    json!({ "accountId": SOURCE, "region": REGION })
}

/// A state machine of that one step, which tries it once.
fn machine_of(step: &str) -> String {
    let task = json!({
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke",
        "Arguments": { "FunctionName": format!("${{{step}FunctionArn}}"), "Payload": "{% $states.input %}" },
        "TimeoutSeconds": 120,
        "Output": "{% $states.result.Payload %}",
        "End": true,
    });
    json!({ "QueryLanguage": "JSONata", "StartAt": step, "TimeoutSeconds": 7200, "States": { step: task } }).to_string()
}

/// A role that the hub may assume, and that may do anything.
fn make_role(world: &mut World, account: &str, name: &str) {
    let statement = json!({
        "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{HUB}:root") }, "Action": "sts:AssumeRole",
    });
    let trust = json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string();
    let root = Caller::root(account);
    let parameters = [("RoleName", name), ("AssumeRolePolicyDocument", trust.as_str())];
    root.call(world, "iam", "CreateRole", &parameters).unwrap();
    let all = json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Allow", "Action": "*", "Resource": "*" }] });
    let all = all.to_string();
    let parameters = [("RoleName", name), ("PolicyName", "all"), ("PolicyDocument", all.as_str())];
    root.call(world, "iam", "PutRolePolicy", &parameters).unwrap();
}

/// The undos and RewriteNotes, each with an input that has nothing in it.
#[test]
fn who_has_nothing_to_do_calls_nobody() {
    let target = json!({ "accountId": TARGET, "instances": [], "copies": [], "principalChanges": [] });
    let of_target = json!({ "execution": "undo", "source": source(), "target": target });
    let of_keys = json!({ "execution": "undo", "source": source(), "keys": [] });
    let mut of_grants = of_keys.clone();
    of_grants["ofExecution"] = json!(false);
    of_grants["revokeForeign"] = json!(false);
    of_grants["entered"] = json!("2026-11-27T20:00:00.000Z");
    let stage = Stage::new();
    stage.machine.world().journal.clear();
    for (step, input) in [
        (
            "UndoShareImage",
            json!({ "execution": "undo", "source": source(), "imageId": "ami-0123abcd", "accountIds": [] }),
        ),
        ("UndoShareSnapshots", json!({ "execution": "undo", "source": source(), "snapshots": [] })),
        ("UndoLaunchInstance", of_target.clone()),
        ("UndoCopyImage", of_target.clone()),
        ("UndoGrantPrincipals", of_target),
        ("UndoGrantKeys", of_grants),
        ("UndoShareKey", of_keys),
    ] {
        assert_eq!(stage.undo(step, &input), []);
    }
    stage.pass(1_000);
    assert_eq!(stage.machine.calls(), 0);
    assert_eq!(stage.machine.world().journal.since(0), []);
}
