//! The undos in the source account: what each says that it took is what was there.

use ami_share_core::{
    ids::{AccountId, KeyArn},
    key_actions::SOURCE_KEY_ACTIONS,
    key_policy::KeyPolicy,
};

use super::*;

const SHARED_ELSEWHERE: &str = "555555555555";

fn told(call: &str, resource: &str, from: &[&str]) -> Vec<(String, String, Vec<String>)> {
    vec![(call.to_owned(), resource.to_owned(), from.iter().map(|account| (*account).to_owned()).collect())]
}

#[test]
fn the_permissions_that_were_there_are_told_and_others_stay() {
    let stage = Stage::new();
    let image = stage.shared_image();
    let (id, snapshot) = (image["imageId"].as_str().unwrap(), image["volumes"][0]["snapshotId"].as_str().unwrap());
    let theirs = [("ImageId", id), ("LaunchPermission.Add.1.UserId", SHARED_ELSEWHERE)];
    stage.ec2(SOURCE, "ModifyImageAttribute", &theirs);
    let theirs = [("SnapshotId", snapshot), ("CreateVolumePermission.Add.1.UserId", SHARED_ELSEWHERE)];
    stage.ec2(SOURCE, "ModifySnapshotAttribute", &theirs);

    let accounts = json!([TARGET, BYSTANDER]);
    let of_image = json!({ "execution": "undo", "source": source(), "imageId": id, "accountIds": accounts });
    assert_eq!(stage.undo("UndoShareImage", &of_image), told("ec2:ModifyImageAttribute", id, &[TARGET]));
    assert_eq!(stage.undo("UndoShareImage", &of_image), []);
    let changes = json!([
        { "snapshotId": snapshot, "accountIds": accounts },
        { "snapshotId": "snap-0123456789abcdef0", "accountIds": accounts },
    ]);
    let of_snapshots = json!({ "execution": "undo", "source": source(), "snapshots": changes });
    assert_eq!(
        stage.undo("UndoShareSnapshots", &of_snapshots),
        told("ec2:ModifySnapshotAttribute", snapshot, &[TARGET])
    );
    assert_eq!(stage.undo("UndoShareSnapshots", &of_snapshots), []);
    for (call, name, id, attribute) in [
        ("DescribeImageAttribute", "ImageId", id, "launchPermission"),
        ("DescribeSnapshotAttribute", "SnapshotId", snapshot, "createVolumePermission"),
    ] {
        let listed = stage.ec2(SOURCE, call, &[(name, id), ("Attribute", attribute)]);
        assert!(listed.contains(SHARED_ELSEWHERE) && !listed.contains(TARGET), "{listed}");
    }
    stage.ec2(SOURCE, "DeregisterImage", &[("ImageId", id)]);
    assert_eq!(stage.undo("UndoShareImage", &of_image), []);
}

fn key(stage: &Stage) -> String {
    let made = Caller::root(SOURCE).call_kms(&mut stage.machine.world(), "CreateKey", &json!({})).unwrap();
    made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
}

#[test]
fn the_accounts_that_a_key_policy_named_are_told() {
    let stage = Stage::new();
    let [ours, untouched] = [key(&stage), key(&stage)];
    let root = Caller::root(SOURCE);
    let policy = |stage: &Stage| {
        let read = json!({ "KeyId": ours, "PolicyName": "default" });
        let answer = root.call_kms(&mut stage.machine.world(), "GetKeyPolicy", &read).unwrap();
        KeyPolicy::parse(&KeyArn::parse(ours.as_str()).unwrap(), answer["Policy"].as_str().unwrap()).unwrap()
    };
    let [target, elsewhere] = [TARGET, SHARED_ELSEWHERE].map(|account| AccountId::parse(account).unwrap());
    let shared = policy(&stage).with([&target, &elsewhere]).unwrap().unwrap();
    let put = json!({ "KeyId": ours, "PolicyName": "default", "Policy": shared.to_text().unwrap() });
    root.call_kms(&mut stage.machine.world(), "PutKeyPolicy", &put).unwrap();
    let change = |key: &str| json!({ "keyArn": key, "accountIds": [TARGET, BYSTANDER] });
    let input = json!({ "execution": "undo", "source": source(), "keys": [change(&ours), change(&untouched)] });
    assert_eq!(stage.undo("UndoShareKey", &input), told("kms:PutKeyPolicy", &ours, &[TARGET]));
    assert_eq!(policy(&stage).accounts(), [elsewhere].into());
    assert_eq!(stage.undo("UndoShareKey", &input), []);
}

#[test]
fn the_accounts_that_had_a_grant_are_told() {
    let stage = Stage::new();
    let key = key(&stage);
    let operations = SOURCE_KEY_ACTIONS.map(|action| action.trim_start_matches("kms:"));
    let grant = |account: &str| {
        json!({ "KeyId": key, "Name": format!("ami-share-{account}"), "Operations": operations,
            "GranteePrincipal": format!("arn:aws:iam::{account}:root"),
            "RetiringPrincipal": format!("arn:aws:iam::{SOURCE}:role/AmiShareSource") })
    };
    let root = Caller::root(SOURCE);
    stage.machine.world().account_mut(SHARED_ELSEWHERE);
    for account in [TARGET, SHARED_ELSEWHERE] {
        root.call_kms(&mut stage.machine.world(), "CreateGrant", &grant(account)).unwrap();
    }
    let keys = json!([{ "keyArn": key, "accountIds": [TARGET, BYSTANDER] }]);
    // Long ago: what is not listed will not come any more.
    let mut input = json!({
        "execution": "undo", "source": source(), "keys": keys, "ofExecution": true, "revokeForeign": false,
        "entered": "2020-01-01T00:00:00.000Z",
    });
    // They are of an earlier version, so no execution of this one gave them. A revoke takes them.
    assert_eq!(stage.undo("UndoGrantKeys", &input), []);
    input["ofExecution"] = json!(false);
    assert_eq!(stage.undo("UndoGrantKeys", &input), told("kms:RetireGrant", &key, &[TARGET]));
    let listed = root.call_kms(&mut stage.machine.world(), "ListGrants", &json!({ "KeyId": key })).unwrap();
    let names: Vec<&str> = listed["Grants"].as_array().unwrap().iter().filter_map(|one| one["Name"].as_str()).collect();
    assert_eq!(names, [format!("ami-share-{SHARED_ELSEWHERE}")]);
    assert_eq!(stage.undo("UndoGrantKeys", &input), []);
}
