//! The target's default EBS key is its own: new volumes of a shared image come under it, and whoever launches needs it.

use ami_share_machine::{Record, Status, root::Caller};
use ami_share_sandbox::{
    World,
    faults::{Hook, Matcher, RootCall, When},
};
use ami_share_tests::{REGION, TARGET};
use serde_json::{Value, json};

use crate::{deployed, world, world::Stage};

fn default_key(world: &mut World, policy: &Value) -> String {
    let root = Caller::root(TARGET);
    let policy = json!({ "Version": "2012-10-17", "Statement": policy });
    let key = json!({ "Policy": policy.to_string(), "Tags": [world::usable()] });
    let made = root.call_kms(world, "CreateKey", &key).unwrap();
    let key = made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned();
    root.call(world, "ec2", "ModifyEbsDefaultKmsKeyId", &[("KmsKeyId", &key)]).unwrap();
    key
}

/// A key that is left to the account's IAM, but for that.
fn left_to_iam_but(not: &str) -> Value {
    json!([{
        "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{TARGET}:root") }, "NotAction": not, "Resource": "*",
    }])
}

fn share(stage: &Stage, name: &str, target: &Value) -> Record {
    let mut asked = json!({ "accountId": TARGET });
    asked.as_object_mut().unwrap().extend(target.as_object().unwrap().clone());
    let request = json!({ "imageId": stage.images[0].id, "targets": [asked] });
    let arn = stage.machine.start("ShareAmi", name, request, 0).unwrap();
    stage.machine.run().unwrap();
    stage.machine.record(&arn)
}

fn assert_says(record: &Record, error: &str, said: &[&str]) {
    let cause = record.cause.clone().unwrap_or_default();
    assert_eq!(record.error.as_deref(), Some(error), "{cause}");
    for said in said {
        assert!(cause.contains(said), "{said}: {cause}");
    }
}

/// What somebody does in the target right before that call.
fn before(stage: &Stage, call: &str, service: &str, action: &str, params: Value) {
    stage.machine.world().faults.add_hook(Hook {
        when: When::Before,
        matcher: Matcher::action(call).in_account(TARGET),
        skip: 0,
        calls: vec![RootCall {
            account: TARGET.to_owned(),
            region: REGION.to_owned(),
            service: service.to_owned(),
            action: action.to_owned(),
            params,
        }],
    });
}

#[test]
fn a_default_ebs_key_that_the_launcher_may_use_is_the_one_that_volumes_come_under() {
    let stage = world::crowd(deployed::deployment(false), 1);
    let key = default_key(&mut stage.machine.world(), &left_to_iam_but("kms:Nothing"));
    let record = share(&stage, "open", &json!({}));
    assert_eq!(record.status, Status::Succeeded, "{:?}", record.cause);
    let report = record.output.unwrap();
    let volumes = report["targets"][0]["volumes"].as_array().unwrap().clone();
    assert!(volumes.iter().any(|volume| volume["keyArn"] == key.as_str()), "{volumes:?}");
}

#[test]
fn a_default_ebs_key_that_the_launcher_may_not_use_is_refused_before_anything_is_changed() {
    let stage = world::crowd(deployed::deployment(false), 2);
    let key = default_key(&mut stage.machine.world(), &left_to_iam_but("kms:CreateGrant"));
    let record = share(&stage, "closed", &json!({}));
    assert_says(&record, "KeyNotUsable", &[&key, "default EBS key", TARGET, "kms:CreateGrant"]);
    assert!(!record.entered("RecordShare"));
    // What puts no volume under it has nothing to do with it.
    let own = world::make_key(&mut stage.machine.world(), TARGET, REGION);
    let reencrypt = json!({ "reencrypt": { "mode": "atLaunch", "kmsKeyId": own } });
    for (name, target) in [("never", json!({ "launch": { "prove": "never" } })), ("own", reencrypt)] {
        let record = share(&stage, name, &target);
        assert_eq!(record.status, Status::Succeeded, "{name}: {:?}", record.cause);
    }
    // What is shared without a proof lacks that.
    assert_says(&share(&stage, "unproved", &json!({})), "KeyNotUsable", &[&key]);
    // What is proved already, and is not proved again, has nothing to do with it either.
    let stage = world::crowd(deployed::deployment(false), 7);
    assert_eq!(share(&stage, "before", &json!({})).status, Status::Succeeded);
    default_key(&mut stage.machine.world(), &left_to_iam_but("kms:CreateGrant"));
    let record = share(&stage, "after", &json!({}));
    assert_eq!(record.output.unwrap()["status"], "alreadyShared", "{:?}", record.cause);
}

#[test]
fn an_instance_that_dies_of_the_default_ebs_key_is_explained_by_that_key_and_the_action() {
    let stage = world::crowd(deployed::deployment(false), 3);
    let key = default_key(&mut stage.machine.world(), &left_to_iam_but("kms:Nothing"));
    let closed = json!({ "Version": "2012-10-17", "Statement": left_to_iam_but("kms:ReEncryptTo") });
    let put = json!({ "KeyId": key, "PolicyName": "default", "Policy": closed.to_string() });
    before(&stage, "ec2:RunInstances", "kms", "PutKeyPolicy", put);
    let record = share(&stage, "dies", &json!({}));
    assert_says(&record, "InstanceDied", &[&key, "default EBS key", "kms:ReEncryptTo"]);
}

/// Its policy is not for the roles of ami-share to read, so the proof is the judge.
#[test]
fn a_default_ebs_key_that_nobody_may_look_at_is_named_when_the_instance_dies() {
    let stage = world::crowd(deployed::deployment(false), 4);
    let policy = json!([{
        "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{TARGET}:root") }, "Action": "kms:PutKeyPolicy",
        "Resource": "*",
    }]);
    let key = default_key(&mut stage.machine.world(), &policy);
    let record = share(&stage, "hidden", &json!({}));
    assert_says(&record, "InstanceDied", &[&key, "default EBS key", "could not be judged"]);
}

#[test]
fn volumes_that_are_not_under_the_default_ebs_key_are_no_proof() {
    let stage = world::crowd(deployed::deployment(false), 5);
    let launched = default_key(&mut stage.machine.world(), &left_to_iam_but("kms:Nothing"));
    let other = world::make_key(&mut stage.machine.world(), TARGET, REGION);
    before(&stage, "ec2:DescribeVolumes", "ec2", "ModifyEbsDefaultKmsKeyId", json!({ "KmsKeyId": other }));
    let record = share(&stage, "other", &json!({}));
    assert_says(&record, "VolumeNotReencrypted", &[&launched, &other, "default EBS key"]);
}

#[test]
fn a_key_of_the_target_that_the_launcher_was_not_given_is_refused_before_anything_is_changed() {
    let stage = world::crowd(deployed::deployment(false), 6);
    let key = default_key(&mut stage.machine.world(), &left_to_iam_but("kms:Nothing"));
    let untag = json!({ "KeyId": key, "TagKeys": ["ami-share:usable"] });
    Caller::root(TARGET).call_kms(&mut stage.machine.world(), "UntagResource", &untag).unwrap();
    let reencrypt = |mode: &str| json!({ "reencrypt": { "mode": mode, "kmsKeyId": key } });
    for (name, target) in [("default", json!({})), ("launch", reencrypt("atLaunch")), ("copy", reencrypt("copyImage"))]
    {
        let record = share(&stage, name, &target);
        let said = ["IAM policy", "AmiShareLauncher", "kms:Decrypt", "ami-share:usable", "LauncherKeyArns", &key];
        assert_says(&record, "KeyNotUsable", &said);
        assert!(!record.entered("RecordShare"), "{name}");
    }
    let tag = json!({ "KeyId": key, "Tags": [world::usable()] });
    Caller::root(TARGET).call_kms(&mut stage.machine.world(), "TagResource", &tag).unwrap();
    assert_eq!(share(&stage, "tagged", &json!({})).status, Status::Succeeded);
}
