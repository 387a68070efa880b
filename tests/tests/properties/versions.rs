//! A hub of today with accounts of before, and the other way round: nothing is changed, and the error says which role.

use ami_share_machine::{Record, Status, root::Caller};
use ami_share_tests::{HUB, SOURCE, TARGET, local::Settings};
use serde_json::{Value, json};

use crate::{
    deployed,
    world::{Stage, crowded, with_images},
};

const EARLIER_SOURCE: &str = "tests/earlier/source.yaml";
const EARLIER_TARGET: &str = "tests/earlier/target.yaml";

fn stage(settings: Settings) -> Stage {
    with_images(&deployed::start(settings), 51, &[false])
}

/// How it ends, and that it has changed nothing.
fn run(stage: &Stage, machine: &str, input: Value) -> Record {
    let arn = stage.machine.start(machine, "one", input, 0).unwrap();
    stage.machine.run().unwrap();
    let world = stage.machine.world();
    let ours = world.journal.entries().iter().filter(|entry| entry.principal.contains("AmiShare"));
    let changes: Vec<&str> = ours.filter(|entry| entry.changed).map(|entry| entry.action.as_str()).collect();
    assert_eq!(changes, Vec::<&str>::new(), "{machine}");
    stage.machine.record(&arn)
}

fn share(stage: &Stage) -> Value {
    let image = &stage.images[0];
    json!({ "imageId": image.id, "source": image.source(), "targets": [{ "accountId": TARGET }] })
}

fn assert_refused(record: &Record, says: &str) {
    assert_eq!((record.status, record.error.as_deref()), (Status::Failed, Some("AccessDenied")), "{:?}", record.cause);
    let cause = record.cause.clone().unwrap_or_default();
    assert!(cause.contains(says), "{cause}");
}

#[test]
fn a_hub_of_today_changes_nothing_in_a_source_of_before() {
    for target_template in ["accounts/target.yaml", EARLIER_TARGET].map(str::to_owned) {
        let source_template = EARLIER_SOURCE.to_owned();
        let stage = stage(Settings { source_template, target_template, ..Settings::default() });
        let source = stage.images[0].source();
        let revoke = json!({ "imageId": stage.images[0].id, "source": source, "targets": [TARGET] });
        let requests =
            [("ShareAmi", share(&stage)), ("RevokeShare", revoke), ("AuditShares", json!({ "source": source }))];
        for (machine, request) in requests {
            let record = run(&stage, machine, request);
            assert_refused(
                &record,
                "role AmiShareSourceReader cannot be assumed; deploy this version's accounts/source.yaml",
            );
        }
    }
}

#[test]
fn a_hub_of_today_changes_nothing_in_a_target_of_before() {
    let stage = stage(Settings { target_template: EARLIER_TARGET.to_owned(), ..Settings::default() });
    let refusal = format!("account {TARGET} refused ec2:GetEbsDefaultKmsKeyId");
    assert_refused(&run(&stage, "ShareAmi", share(&stage)), &refusal);
}

/// Each looked as `AmiShareSource` before it changed anything. Whatever the hub's own roles allow, the source refuses.
#[test]
fn a_hub_of_before_is_refused_its_first_look_at_a_source_of_today() {
    let deployment = deployed::deployment(false);
    let external_id = &deployment.functions["ShareKey"].environment["EXTERNAL_ID"];
    let (mut world, _, _) = crowded(deployment, &[false]);
    let anything = json!({
        "Version": "2012-10-17",
        "Statement": { "Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*" },
    });
    let mut refused = Vec::new();
    for function in ["ResolveImage", "ResolveRevoke", "ResolveUndo", "AuditShares", "ShareKey"] {
        let role = format!("AmiShare{function}FunctionRole");
        let policy = [("RoleName", role.as_str()), ("PolicyName", "Before"), ("PolicyDocument", &anything.to_string())];
        Caller::root(HUB).call(&mut world, "iam", "PutRolePolicy", &policy).unwrap();
        let caller = Caller::role(&mut world, &format!("arn:aws:iam::{HUB}:role/{role}")).unwrap();
        let source = format!("arn:aws:iam::{SOURCE}:role/AmiShareSource");
        if caller.assume(&mut world, &source, external_id).is_err() {
            refused.push(function);
        }
    }
    assert_eq!(refused, ["ResolveImage", "ResolveRevoke", "ResolveUndo", "AuditShares"]);
}
