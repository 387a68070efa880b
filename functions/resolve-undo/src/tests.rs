use ami_share_core::{
    ids::{ExecutionName, ImageId, KeyArn, PrincipalArn, Region, SnapshotId},
    share::{Image, Kept, Launch, PrincipalAccess, PrincipalChange, Source},
};
use ami_share_mocked::{
    Aws, NOW_MS,
    ec2::{self, SharedImage},
};
use serde_json::{Value, json};

use super::*;

fn account(digit: u8) -> AccountId {
    AccountId::parse(digit.to_string().repeat(12)).unwrap()
}

fn key() -> KeyArn {
    KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1").unwrap()
}

fn target(digit: u8) -> Target {
    Target {
        account_id: account(digit),
        principal_changes: vec![],
        source_changes: SourceChanges {
            launch_permission: true,
            snapshot_ids: vec![SnapshotId::parse("snap-0123abcd").unwrap()],
            key_arns: vec![key()],
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
    Note { gift, noted_at: 1, going, goes_before: false, confirmed: false, stays: Stays::default(), proof: None }
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
    assert_eq!(given_after("ShareKey", "PlanChanged"), (1, 0, false, Mode::None));
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

#[test]
fn what_was_made_goes_beside_what_others_made_and_only_what_was_made() {
    let input = input(json!({}));
    let execution = ExecutionName::parse("other").unwrap();
    let others_copy = MadeCopy {
        execution: execution.clone(),
        of: input.resolution.image.image_id.clone(),
        noted_at: 1,
        copy_id: None,
    };
    let mut taken = FromAccount::new(account(2));
    taken.target = Some(FromTarget {
        account_id: account(2),
        instances: vec![MadeInstance { execution, instance_id: None }],
        copies: vec![others_copy],
        principal_changes: vec![],
    });
    with_what_was_made(&mut taken, &input, &target(2), 7);
    let made = taken.target.unwrap();
    assert_eq!((made.instances.len(), made.copies.len()), (2, 2));
    let copy = Some(ImageId::parse("ami-0000000c").unwrap());
    for without in [Target { mode: Mode::None, ..target(2) }, Target { copy_id: copy, ..target(2) }] {
        let mut taken = FromAccount::new(account(2));
        with_what_was_made(&mut taken, &input, &without, 7);
        assert_eq!(taken.target.unwrap().copies, []);
    }
}

#[test]
fn what_a_target_needs_is_asked_where_it_loses_access_of_any_kind() {
    let losing = |going: Option<&str>, change: fn(&mut Target)| {
        let mut note = note(going);
        change(&mut note.gift.target);
        loses_access(&[note])
    };
    let by_policy = |target: &mut Target| target.source_changes.key_arns = vec![key()];
    let by_grant = |target: &mut Target| target.source_changes.grant_key_arns = vec![key()];
    let principal = |target: &mut Target| target.principal_changes = vec![principal()];
    assert!(losing(Some("me 1"), by_policy) && losing(Some("me 1"), by_grant) && losing(Some("me 1"), principal));
    assert!(!losing(Some("me 1"), |_| ()) && !losing(None, by_policy));
}

fn principal() -> PrincipalChange {
    let principal = PrincipalArn::parse("arn:aws:iam::222222222222:role/app").unwrap();
    PrincipalChange { principal, key_arns: vec![] }
}

/// Notes what the execution of [`input`] was to give the target of that digit.
fn noted(aws: &Aws, digit: u8) {
    aws.note(&json!(Gift { target: target(digit), ..note(None).gift }), &json!({}));
}

/// Where EC2 has no other images.
fn alone() -> Aws {
    Aws::answering(|call| ec2::answer(&[], call))
}

/// The input for targets 2, 3 and 4, as the state is entered now.
fn entered_now(changes: Value) -> Input {
    let mut now = json!({ "entered": "2026-11-27T20:00:00.000Z" });
    now.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    input(now)
}

fn marks(aws: &Aws) -> Vec<String> {
    let table = aws.table();
    table.items().filter_map(|item| item.get("going")?["S"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn all_that_was_given_is_taken_back_after_its_notes_were_marked() {
    let aws = alone();
    (2..5).for_each(|digit| noted(&aws, digit));
    let kept = |digit| {
        let kept = Kept { account_id: account(digit), image_id: ImageId::parse("ami-0000000a").unwrap() };
        json!(TakenBack { kept: vec![kept], ..TakenBack::default() })
    };
    let (so_far, last) = (kept(1), kept(2));
    let output = resolve_undo(&aws.hub, entered_now(json!({ "soFar": so_far, "last": last }))).await.unwrap();
    assert_eq!(marks(&aws), vec![format!("nightly-0123abcd {NOW_MS}"); 3]);
    let all = [account(2), account(3), account(4)];
    let TakeBack { launch_permissions, key_changes, snapshot_changes, targets, notes, .. } = &output.take_back;
    assert_eq!(*launch_permissions, all);
    assert_eq!((&key_changes[0].account_ids[..], &snapshot_changes[0].account_ids[..]), (&all[..], &all[..]));
    assert!(targets.iter().all(|target| target.instances.len() == 1 && target.copies.len() == 1));
    assert_eq!((targets.len(), notes.len(), notes.iter().filter(|note| note.gift.is_none()).count()), (3, 3, 3));
    assert!(output.take_back.note.as_ref().is_some_and(|arn| arn.ends_with(":nightly")));
    assert_eq!((output.more, output.after, output.so_far.kept.len()), (false, Some(account(4)), 2));
}

#[tokio::test]
async fn what_was_given_is_taken_back_where_its_notes_are_gone() {
    let aws = alone();
    let output = resolve_undo(&aws.hub, entered_now(json!({ "failed": [account(2)] }))).await.unwrap();
    let TakeBack { launch_permissions, key_changes, notes, .. } = output.take_back;
    assert_eq!((launch_permissions, key_changes.len(), notes.len()), (vec![account(2)], 1, 1));
    assert_eq!(aws.table().items().count(), 0, "a mark makes no note");
}

/// What others still have relies on a statement as it is now.
#[tokio::test]
async fn statements_that_were_put_right_are_put_back_where_everything_goes_and_with_the_last_of_it() {
    let (key, other_key) = (key(), "arn:aws:kms:eu-west-1:111111111111:key/2");
    let repair = json!({ "using": "ec2.us-east-1.amazonaws.com", "before": "0123" });
    let repaired = |arn: &str| json!({ "keyArn": arn, "accountIds": ["222222222222"], "repair": repair });
    let before_keys = json!({ "state": "NoteTargets", "error": "States.Timeout" });
    let at_keys = json!({ "state": "ShareKey", "error": "AccessDenied" });
    let all = ["222222222222", "333333333333", "444444444444"];
    for (failed, failure, put_back) in [
        (Value::Null, Value::Null, true),
        (json!(all), Value::Null, true),
        (Value::Null, at_keys, true),
        (json!(all[..2]), Value::Null, false),
        (Value::Null, before_keys, false),
    ] {
        let aws = alone();
        let mut input = entered_now(json!({ "failed": failed, "failure": failure }));
        let third = json!({ "keyArn": "arn:aws:kms:eu-west-1:111111111111:key/3", "accountIds": ["222222222222"] });
        let changes = json!([repaired(other_key), repaired(key.as_str()), third]);
        input.resolution.key_changes = serde_json::from_value(changes).unwrap();
        let changes = resolve_undo(&aws.hub, input).await.unwrap().take_back.key_changes;
        let repaired = changes.iter().filter(|change| change.repair.is_some());
        let repaired: Vec<_> = repaired.map(|change| (change.key_arn.as_str(), change.account_ids.len())).collect();
        let expected = [(key.as_str(), 3), (other_key, 0)];
        assert_eq!(repaired, if put_back { &expected[..] } else { &[] }, "{failed}, {failure}");
    }
}

#[tokio::test]
async fn what_has_not_been_given_is_neither_taken_nor_asked_about() {
    // EC2 answers nothing.
    let aws = Aws::with_table();
    noted(&aws, 2);
    let failure = json!({ "state": "NoteTargets", "error": "States.Timeout" });
    let changes = json!({ "failed": [account(2)], "failure": failure });
    let take_back = resolve_undo(&aws.hub, entered_now(changes)).await.unwrap().take_back;
    assert!(take_back.launch_permissions.is_empty() && take_back.key_changes.is_empty());
    assert_eq!((take_back.targets, take_back.notes.len()), (vec![], 1));
}

#[tokio::test]
async fn what_another_image_needs_is_kept() {
    let key_arn = Some("arn:aws:kms:eu-west-1:111111111111:key/1");
    let other = SharedImage { region: "eu-west-1", id: "ami-0000000b", key_arn, with: "222222222222" };
    let aws = Aws::answering(move |call| ec2::answer(std::slice::from_ref(&other), call));
    noted(&aws, 2);
    let take_back = resolve_undo(&aws.hub, entered_now(json!({ "failed": [account(2)] }))).await.unwrap().take_back;
    assert_eq!((take_back.launch_permissions.len(), take_back.key_changes.len()), (1, 0));
    assert_eq!(take_back.kept[0].image_id.as_str(), "ami-0000000b");
    assert_eq!(aws.calls_beyond_sessions(), BTreeSet::new(), "the policies of its sessions allow what it calls");
}

/// Half of the time that a read may be out of date: longer than a function runs that hangs.
#[tokio::test]
async fn notes_that_cannot_be_read_are_asked_for_again_for_a_while_and_then_stay() {
    for (code, seconds, tried_again) in
        [("ThrottlingException", 150, true), ("ThrottlingException", 151, false), ("AccessDeniedException", 0, false)]
    {
        let aws = Aws::answering(move |call| match call.service.as_str() {
            "dynamodb" => Some(Err(code)),
            _ => ec2::answer(&[], call),
        });
        aws.pass(std::time::Duration::from_secs(seconds));
        match resolve_undo(&aws.hub, entered_now(json!({ "failed": [account(2)] }))).await {
            Err(error) => assert!(tried_again && error.passes(), "{code} after {seconds} s: {error}"),
            Ok(output) => {
                assert!(!tried_again, "{code} after {seconds} s");
                let TakeBack { launch_permissions, left, targets, .. } = output.take_back;
                assert_eq!((launch_permissions, left.len()), (vec![], 1));
                assert_eq!(targets[0].instances.len(), 1, "what the execution made is its own, whatever is noted");
            }
        }
    }
}

#[tokio::test]
async fn more_targets_than_one_take_back_has_room_for_follow() {
    let aws = alone();
    let name = |n: usize, p: usize| format!("arn:aws:iam::2{n:011}:role/{}{p}", "r".repeat(60));
    let many = |n: usize| {
        let principal = |p| PrincipalChange { principal: PrincipalArn::parse(name(n, p)).unwrap(), key_arns: vec![] };
        let account_id = AccountId::parse(format!("2{n:011}")).unwrap();
        Target { account_id, principal_changes: (0..21).map(principal).collect(), ..target(2) }
    };
    let mut input = entered_now(json!({}));
    input.resolution.targets = (0..50).map(many).collect();
    let repaired = json!([{ "keyArn": key(), "accountIds": [], "repair": { "before": "0123" } }]);
    input.resolution.key_changes = serde_json::from_value(repaired).unwrap();
    let output = resolve_undo(&aws.hub, input).await.unwrap();
    assert_eq!(output.take_back.key_changes[0].repair, None, "the last take-back puts it back");
    let fitting = output.take_back.targets.len();
    assert!(output.more && (10..50).contains(&fitting), "{fitting}");
    assert_eq!(output.after, output.take_back.targets.last().map(|target| target.account_id.clone()));
}
