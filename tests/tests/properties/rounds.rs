//! Revokes of many rounds, what is given while one waits, and what no note names.

use ami_share_core::revoke::MAX_ROUNDS;
use ami_share_machine::{Record, Status, root::Caller};
use ami_share_tests::{REGION, TARGET};
use serde_json::{Value, json};

use crate::{
    check,
    deployed::{self, TARGETS, UNLISTED},
    request::Asked,
    world::{self, Stage, role},
};

const OTHER: &str = TARGETS[1];

fn stage(seed: u64, images: &[bool]) -> Stage {
    let stage = world::with_images(deployed::deployment(false), seed, images);
    for account in [TARGET, OTHER] {
        world::make_principals(&mut stage.machine.world(), account, &[REGION]);
    }
    stage
}

fn run(stage: &Stage, machine: &str, name: &str, input: Value) -> Record {
    let arn = stage.machine.start(machine, name, input, 0).unwrap();
    stage.machine.run().unwrap();
    stage.machine.record(&arn)
}

fn share(stage: &Stage, image: usize, account: &str) -> Value {
    json!({ "imageId": stage.images[image].id, "targets": [{ "accountId": account, "principals": [role(account)] }] })
}

fn shared(stage: &Stage, name: &str, image: usize, account: &str) {
    let record = run(stage, "ShareAmi", name, share(stage, image, account));
    assert_eq!(record.status, Status::Succeeded, "{:?} {:?}", record.error, record.cause);
}

fn all_of(account: &str) -> Value {
    json!({ "images": "all", "targets": [account], "force": true })
}

fn assert_error(record: &Record, error: &str) {
    assert_eq!(record.error.as_deref(), Some(error), "{:?} {:?}", record.cause, record.output);
}

fn cause(record: &Record) -> &str {
    record.cause.as_deref().unwrap_or_default()
}

fn assert_usable(stage: &Stage, image: usize, account: &str) {
    let principals = vec![role(account)];
    let asked = Asked { account: account.to_owned(), mode: None, principals, keep: false, always: false };
    check::can_launch(&mut stage.machine.world(), &stage.images[image], &asked).unwrap();
}

/// A report is sent to the topic whole; the cause of an execution that failed has not all of it.
fn reported(stage: &Stage) -> Value {
    let notice = stage.machine.published().pop().unwrap();
    check::report_in(&notice).unwrap()
}

/// A copy was made of each image, the images are gone, and nobody asks for the copies: all these notes stay.
fn note_copy(stage: &Stage, number: usize, template: &Value) {
    let image = format!("ami-{number:017x}");
    let mut gift = template.clone();
    gift["image"]["imageId"] = json!(image);
    gift["target"]["sourceChanges"] = json!({});
    gift["target"]["principalChanges"] = json!([]);
    gift["target"]["mode"] = json!("copyImage");
    gift["execution"] = json!("nightly-1-0123abcd");
    stage.machine.table().put(&json!({
        "id": { "S": format!("target#{TARGET}") },
        "part": { "S": format!("{image}#nightly-1-0123abcd") },
        "imageId": { "S": image },
        "notedAt": { "N": "1" },
        "confirmed": { "BOOL": true },
        "gift": { "S": gift.to_string() },
    }));
}

#[test]
fn images_whose_notes_stay_do_not_keep_a_revoke_of_all_from_those_after_the_two_hundredth() {
    let stage = stage(31, &[false]);
    let before = check::picture(&stage);
    shared(&stage, "share", 0, TARGET);
    let gift = stage.machine.table().items().find_map(|item| item.get("gift")?["S"].as_str().map(str::to_owned));
    let template: Value = serde_json::from_str(&gift.unwrap()).unwrap();
    // All of them are before the image that was shared.
    assert!(stage.images[0].id > format!("ami-{MAX_ROUNDS:017x}"));
    (0..MAX_ROUNDS).for_each(|number| note_copy(&stage, number, &template));
    let first = run(&stage, "RevokeShare", "first", all_of(TARGET));
    assert_error(&first, "RevokeIncomplete");
    assert!(cause(&first).contains("1 shares remain"), "{}", cause(&first));
    assert_usable(&stage, 0, TARGET);
    let second = run(&stage, "RevokeShare", "second", all_of(TARGET));
    check::unchanged(&before, &check::picture(&stage), &check::Kept::new()).unwrap();
    assert_eq!(reported(&stage)["copiesOrInstancesStay"], json!([TARGET]), "{:?}", second.cause);
}

/// Nobody was asked about it.
#[test]
fn what_is_given_while_a_revoke_waits_for_reports_is_not_taken_by_it() {
    for of_all in [false, true] {
        let stage = stage(32, &[false, false]);
        let before = check::picture(&stage);
        shared(&stage, "share", 0, TARGET);
        let revoke = match of_all {
            true => json!({ "images": "all", "targets": [TARGET, OTHER] }),
            false => json!({ "imageId": stage.images[0].id, "targets": "all" }),
        };
        // The proof must not count any more.
        let later = 2 * 3_600_000;
        let revoked = stage.machine.start("RevokeShare", "revoke", revoke.clone(), later).unwrap();
        // A target that had nothing; and, of all, another image.
        let meanwhile = [(0, OTHER), (usize::from(of_all), TARGET)];
        let shares = meanwhile.map(|(image, account)| {
            let name = format!("meanwhile-{account}");
            stage.machine.start("ShareAmi", &name, share(&stage, image, account), later + 5_000).unwrap()
        });
        stage.machine.run().unwrap();
        for (share, (image, account)) in shares.iter().zip(meanwhile) {
            assert_eq!(
                stage.machine.record(share).status,
                Status::Succeeded,
                "{:?}",
                stage.machine.record(share).cause
            );
            if of_all || account == OTHER {
                assert_usable(&stage, image, account);
            }
        }
        let revoked = stage.machine.record(&revoked);
        assert_error(&revoked, "RevokeIncomplete");
        let given: &[&str] = if of_all { &[TARGET, OTHER] } else { &[OTHER] };
        assert!(
            cause(&revoked).contains(&format!("{} targets were given something since", given.len())),
            "{}",
            cause(&revoked)
        );
        assert!(given.iter().all(|account| cause(&revoked).contains(account)), "{}", cause(&revoked));
        let mut forced = revoke;
        forced["force"] = json!(true);
        let rest = run(&stage, "RevokeShare", "rest", forced);
        assert_eq!(rest.status, Status::Succeeded, "{:?}", rest.cause);
        check::unchanged(&before, &check::picture(&stage), &check::Kept::new()).unwrap();
    }
}

#[test]
fn an_image_that_is_mistyped_is_not_found_for_however_many_targets() {
    let stage = stage(33, &[false]);
    let accounts: Vec<String> = (0..60).map(|n| format!("2{n:011}")).collect();
    for (force, targets) in [(false, &accounts[..]), (true, &accounts[..]), (false, &accounts[..1])] {
        let revoke = json!({ "imageId": "ami-0fedcba9876543210", "targets": targets, "force": force });
        let record = run(&stage, "RevokeShare", &format!("revoke-{force}-{}", targets.len()), revoke);
        assert_error(&record, "ImageNotFound");
        assert!(cause(&record).ends_with("Nothing was changed."), "{}", cause(&record));
    }
}

/// Attaches the managed policy to the user, or detaches it, as somebody in the account.
fn by_hand(stage: &Stage, account: &str, call: &str) {
    let policy = format!("arn:aws:iam::{account}:policy/AmiShareKeyAccess");
    let parameters = [("UserName", "app-pipeline"), ("PolicyArn", policy.as_str())];
    Caller::root(account).call(&mut stage.machine.world(), "iam", call, &parameters).unwrap();
}

/// In the revoke that takes the last noted share, and not in one before or after it; and in its plan.
#[test]
fn a_policy_that_somebody_attached_beside_noted_shares_is_found_with_the_last_of_them() {
    let stage = stage(34, &[false, false]);
    for (image, name) in ["first", "second"].into_iter().enumerate() {
        shared(&stage, name, image, TARGET);
    }
    by_hand(&stage, TARGET, "AttachUserPolicy");
    let command = "aws iam detach-user-policy --user-name app-pipeline";
    let mut plan = all_of(TARGET);
    plan["action"] = json!("plan");
    let planned = run(&stage, "RevokeShare", "plan", plan).output.unwrap();
    let left: Vec<&str> = planned["left"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert!(matches!(left[..], [left] if left.contains(command)), "{left:?}");

    let one = json!({ "imageId": stage.images[0].id, "targets": [TARGET], "force": true });
    let one = run(&stage, "RevokeShare", "one", one);
    assert_eq!(one.status, Status::Succeeded, "{:?}", one.cause);
    let rest = run(&stage, "RevokeShare", "rest", all_of(TARGET));
    assert_error(&rest, "RevokeIncomplete");
    assert!(cause(&rest).contains(command), "{}", cause(&rest));
}

/// Of targets that are in no round.
#[test]
fn a_plan_of_all_images_says_what_stays_of_whom_nothing_can_be_told() {
    let stage = stage(35, &[false]);
    shared(&stage, "share", 0, TARGET);
    stage.note_unreadably(TARGET);
    by_hand(&stage, OTHER, "AttachUserPolicy");
    let request = |more: Value| {
        let mut request = json!({ "images": "all", "targets": [TARGET, OTHER], "force": true });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let plan = run(&stage, "RevokeShare", "plan", request(json!({ "action": "plan" }))).output.unwrap();
    let left: Vec<&str> = plan["left"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left[0].contains(TARGET) && left[0].contains("cannot be read"), "{left:?}");
    assert!(left[1].contains(OTHER) && left[1].contains("NotNoted"), "{left:?}");
    // It is a part of what is agreed to.
    by_hand(&stage, OTHER, "DetachUserPolicy");
    let changed = run(&stage, "RevokeShare", "changed", request(json!({ "planHash": plan["planHash"] })));
    assert_error(&changed, "PlanChanged");
}

/// It has no roles of ami-share's, or refuses them: whether somebody has the policy there, nobody knows.
#[test]
fn a_target_that_does_not_say_who_has_the_policy_is_named() {
    let stage = stage(36, &[false]);
    let stranger = "888888888888";
    let request = json!({ "images": "all", "targets": [stranger, UNLISTED], "force": true });
    let record = run(&stage, "RevokeShare", "revoke", request);
    let report = record.output.clone().unwrap();
    assert_eq!((&report["status"], &report["notAsked"]), (&json!("nothingToRevoke"), &json!([stranger])), "{record:?}");
}

/// It has the copy's tags, and is somebody else's: what is launched from it goes on, whatever goes.
#[test]
fn an_instance_of_a_backup_that_inherited_the_tags_of_a_copy_does_not_keep_the_image() {
    let stage = stage(37, &[false]);
    let mut request = share(&stage, 0, TARGET);
    request["targets"][0]["reencrypt"] = json!({ "mode": "copyImage", "kmsKeyId": "alias/app-volumes" });
    let shared = run(&stage, "ShareAmi", "share", request);
    assert_eq!(shared.status, Status::Succeeded, "{:?}", shared.cause);
    let root = Caller::root(TARGET);
    let images = |stage: &Stage| stage.machine.world().snapshot(TARGET)["ec2"][REGION]["images"].clone();
    let copy = images(&stage).as_object().unwrap().keys().next().unwrap().clone();
    let of = copy.clone();
    let by = root.clone();
    stage.machine.meanwhile(1_000, move |world| {
        let of = [("SourceImageId", &*of), ("SourceRegion", REGION), ("Name", "backup"), ("CopyImageTags", "true")];
        by.call(world, "ec2", "CopyImage", &of).unwrap();
    });
    stage.machine.run().unwrap();
    let backup = images(&stage).as_object().unwrap().keys().find(|image| **image != copy).unwrap().clone();
    // When the copy is made, and the proof is long forgotten.
    let (both, by) = ([backup.clone(), copy.clone()], root.clone());
    stage.machine.meanwhile(2 * 3_600_000, move |world| {
        world.snapshot(TARGET);
        for image in &both {
            let launch = [("ImageId", &**image), ("InstanceType", "t3.micro"), ("MinCount", "1"), ("MaxCount", "1")];
            by.call(world, "ec2", "RunInstances", &launch).unwrap();
        }
    });
    stage.machine.run().unwrap();
    let instances = stage.machine.world().snapshot(TARGET)["ec2"][REGION]["instances"].clone();
    let is_of_copy = |(id, instance): (&String, &Value)| {
        (instance["image"] == *copy && instance["state"] != "terminated").then(|| id.clone())
    };
    let of_copy = instances.as_object().unwrap().iter().find_map(is_of_copy);
    let of_copy = of_copy.unwrap_or_else(|| panic!("{instances:#}"));
    let revoke = json!({ "imageId": stage.images[0].id, "targets": [TARGET], "copies": true });
    let refused = run(&stage, "RevokeShare", "in-use", revoke.clone());
    assert_error(&refused, "ImageInUse");
    assert!(cause(&refused).contains(&of_copy) && !cause(&refused).contains(&backup), "{}", cause(&refused));
    root.call(&mut stage.machine.world(), "ec2", "TerminateInstances", &[("InstanceId.1", &of_copy)]).unwrap();
    let revoked = run(&stage, "RevokeShare", "revoke", revoke);
    assert_eq!(revoked.status, Status::Succeeded, "{:?}", revoked.cause);
    let images = images(&stage);
    assert!(images.get(&backup).is_some() && images.get(&copy).is_none(), "{images}");
}
