use ami_share_core::{
    ids::{ExecutionName, ImageId, KeyArn, Region, SnapshotId},
    share::{Image, Launch, PrincipalAccess, Source},
};
use serde_json::{Value, json};

use super::*;

fn account(digit: u8) -> AccountId {
    AccountId::parse(digit.to_string().repeat(12)).unwrap()
}

fn target(digit: u8) -> Target {
    Target {
        account_id: account(digit),
        principal_changes: vec![],
        source_changes: SourceChanges {
            launch_permission: true,
            snapshot_ids: vec![SnapshotId::parse("snap-0123abcd").unwrap()],
            key_arns: vec![KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1").unwrap()],
            grant_key_arns: vec![],
        },
        mode: Mode::CopyImage,
        kms_key_id: None,
        copy_id: None,
        launch: Launch { keep: true, ..Launch::default() },
    }
}

/// The payload of share-ami for three targets, changed by `changes`.
fn input(changes: Value) -> Input {
    let resolution = json!({
        "execution": "nightly-0123abcd",
        "source": { "accountId": "111111111111", "region": "eu-west-1" },
        "image": { "imageId": "ami-0123abcd", "name": "web", "architecture": "x86_64", "volumes": [] },
        "keyChanges": [], "snapshotChanges": [], "launchPermissions": [],
        "targets": [target(4), target(2), target(3)],
        "alreadyShared": [], "principalAccess": "attach", "onFailure": "undo",
    });
    let mut input = json!({
        "execution": "nightly-0123abcd",
        "executionArn": "arn:aws:states:eu-west-1:333333333333:execution:ShareAmi:nightly",
        "begun": "2026-11-27T20:00:00.000Z",
        "resolution": resolution,
        "failed": null, "failure": null, "entered": "2026-11-27T20:10:00.000Z",
        "after": null, "soFar": null, "last": null,
    });
    for (name, value) in changes.as_object().unwrap() {
        input[name] = value.clone();
    }
    serde_json::from_value(input).unwrap()
}

fn accounts(input: &Input) -> Vec<&AccountId> {
    ahead(input).into_iter().map(|target| &target.account_id).collect()
}

#[test]
fn the_targets_that_failed_are_taken_back_or_all() {
    assert_eq!(accounts(&input(json!({}))), [&account(2), &account(3), &account(4)]);
    let failed = input(json!({ "failed": ["444444444444", "222222222222"] }));
    assert_eq!(accounts(&failed), [&account(2), &account(4)]);
    let rest = input(json!({ "failed": ["444444444444", "222222222222"], "after": "222222222222" }));
    assert_eq!(accounts(&rest), [&account(4)]);
}

fn mine() -> Mark {
    Mark::noted("me 1")
}

fn note(going: Option<&str>) -> Note {
    let gift = Gift {
        execution: ExecutionName::parse("nightly-0123abcd").unwrap(),
        source: Source { account_id: account(1), region: Region::parse("eu-west-1").unwrap() },
        image: Image {
            image_id: ImageId::parse("ami-0123abcd").unwrap(),
            name: "web".to_owned(),
            architecture: "x86_64".to_owned(),
            volumes: vec![],
            empty_volumes: vec![],
        },
        principal_access: PrincipalAccess::Attach,
        target: Target { source_changes: SourceChanges::default(), ..target(2) },
    };
    let going = going.map(Mark::noted);
    Note { gift, noted_at: 1, going, goes_before: false, confirmed: false, stays: Stays::default() }
}

fn failure(state: &str, error: &str) -> Failure {
    Failure { state: state.to_owned(), error: error.to_owned() }
}

/// What an earlier take-back has taken counts again, as a redriven execution may have given it again.
#[test]
fn a_note_of_its_own_says_what_the_execution_was_to_give() {
    let own = given(note(Some("me 1")), &target(2), &mine(), None);
    assert_eq!(own.gift.target.source_changes, target(2).source_changes);
    assert!(!own.gift.target.launch.keep, "its instance goes whatever was to become of it");
    let others = given(note(Some("me 0")), &target(2), &mine(), None);
    assert_eq!(others, note(Some("me 0")));
}

#[test]
fn what_the_share_has_not_come_to_was_not_given() {
    let given_after = |state: &str, error: &str| {
        let failure = failure(state, error);
        let target = given(note(Some("me 1")), &target(2), &mine(), Some(&failure)).gift.target;
        let SourceChanges { launch_permission, snapshot_ids, key_arns, .. } = target.source_changes;
        (key_arns.len(), snapshot_ids.len(), launch_permission, target.mode)
    };
    assert_eq!(given_after("NoteTargets", "States.Timeout"), (0, 0, false, Mode::None));
    assert_eq!(given_after("ShareKey", "PlanChanged"), (0, 0, false, Mode::None));
    assert_eq!(given_after("ShareKey", "AccessDenied"), (1, 0, false, Mode::None));
    assert_eq!(given_after("ShareSnapshots", "AccessDenied"), (1, 1, false, Mode::None));
    assert_eq!(given_after("ShareImage", "AccessDenied"), (1, 1, true, Mode::None));
    assert_eq!(given_after("DescribeInstance", "InstanceDied"), (1, 1, true, Mode::CopyImage));
}

#[test]
fn what_was_made_goes_where_its_note_is_gone() {
    let input = input(json!({}));
    let mut taken = FromAccount::new(account(2));
    with_what_was_made(&mut taken, &input, &target(2), 7);
    let made = taken.target.clone().unwrap();
    assert_eq!((made.instances.len(), made.copies.len(), made.copies[0].noted_at), (1, 1, 7));
    with_what_was_made(&mut taken, &input, &target(2), 7);
    assert_eq!(taken.target.unwrap(), made, "once is enough");
    let unnoted = unnoted(&input.resolution, &target(2), &mine(), 7);
    assert_eq!((unnoted.noted_at, unnoted.going, unnoted.confirmed), (7, Some(mine()), false));
}
