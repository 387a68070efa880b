//! What is taken back of a target, and what is kept.

use ami_share_record::LAGGING;

use super::*;

#[tokio::test]
async fn all_that_is_noted_is_taken_back_after_it_was_marked() {
    let aws = world().aws();
    note_all(&aws, &[gift(A, TARGET)]);
    let round = revoke(&aws, one_image(json!({}))).await;
    let TakeBack { launch_permissions, snapshot_changes, targets, key_changes, grant_changes, notes, .. } =
        take_back(&round);
    assert_eq!(*launch_permissions, [named(TARGET)]);
    assert_eq!((&snapshot_changes[0].snapshot_id, snapshot_changes.len()), (&snapshot(A), 1));
    assert_eq!((&key_changes[0].key_arn, key_changes.len(), grant_changes.len()), (&key(KEY), 1, 0));
    assert_eq!((targets.len(), &targets[0].principal_changes), (1, &gift(A, TARGET).target.principal_changes));
    assert_eq!((notes.len(), &notes[0].gift), (1, &None));
    assert_eq!(round.accounts, [named(TARGET)]);
    assert_eq!(marked(&aws), [(TARGET.to_owned(), A.to_owned())]);
    let calls: Vec<String> = aws.calls().into_iter().map(|call| call.operation).collect();
    let first = |operation: &str| calls.iter().position(|call| call == operation).unwrap();
    assert!(first("UpdateItem") < first("DescribeImages"), "{calls:?}");
    let read_again = calls.iter().rposition(|call| call == "Query").unwrap();
    assert!(first("UpdateItem") < read_again && read_again < first("DescribeImages"), "{calls:?}");
}

#[tokio::test]
async fn a_look_changes_nothing_and_foresees_what_will_be_taken() {
    let aws = world().aws();
    note_all(&aws, &[gift(A, TARGET)]);
    let looked = look_first(&aws, one_image(json!({}))).await;
    assert_eq!(marked(&aws), []);
    assert_eq!(looked.take_back, revoke(&aws, one_image(json!({}))).await.take_back);
}

#[tokio::test]
async fn notes_of_other_images_and_regions_are_neither_marked_nor_taken() {
    let aws = world().aws();
    let elsewhere = gift_but(A, TARGET, |gift| {
        gift.source = source_in("us-east-1");
        gift.execution = ExecutionName::parse("elsewhere").unwrap();
    });
    note_all(&aws, &[gift(B, TARGET), elsewhere]);
    let round = revoke(&aws, one_image(json!({}))).await;
    assert_eq!(marked(&aws), []);
    let TakeBack { launch_permissions, snapshot_changes, notes, .. } = take_back(&round);
    assert!(launch_permissions.is_empty() && snapshot_changes.is_empty() && notes.is_empty());
}

/// EC2 and KMS would refuse to take what is not there.
#[tokio::test]
async fn what_the_source_account_does_not_have_any_more_is_not_taken_from_it() {
    let taken = |world: World| async move {
        let aws = world.aws();
        note_all(&aws, &[gift_but(A, TARGET, |gift| gift.target.source_changes.grant_key_arns = vec![key(KEY)])]);
        let round = revoke(&aws, one_image(json!({}))).await;
        let TakeBack { launch_permissions, snapshot_changes, key_changes, grant_changes, notes, .. } =
            take_back(&round);
        assert_eq!(notes.len(), 1, "it is noted no longer");
        (launch_permissions.len(), snapshot_changes.len(), key_changes.len(), grant_changes.len())
    };
    assert_eq!(taken(world()).await, (1, 1, 1, 1));
    assert_eq!(taken(World { deregistered: vec![A], ..world() }).await, (0, 1, 1, 1));
    assert_eq!(taken(World { images: vec![], ..world() }).await, (0, 0, 1, 1));
    assert_eq!(taken(World { keys: vec![], ..world() }).await, (1, 1, 0, 0));
}

#[tokio::test]
async fn only_what_is_noted_as_given_is_taken_of_the_image() {
    let aws = world().aws();
    note_all(
        &aws,
        &[gift_but(A, TARGET, |gift| {
            gift.target.source_changes = SourceChanges { key_arns: vec![key(KEY)], ..SourceChanges::default() };
        })],
    );
    let round = revoke(&aws, one_image(json!({}))).await;
    let TakeBack { launch_permissions, snapshot_changes, key_changes, .. } = take_back(&round);
    assert_eq!((launch_permissions.len(), snapshot_changes.len(), key_changes.len()), (0, 0, 1));
}

/// They are ours by what they are.
#[tokio::test]
async fn statements_and_grants_of_ours_are_taken_from_whom_they_name_though_no_note_does() {
    let key_of_image = SharedKey { arn: KEY, by_policy: vec![TARGET], by_grant: vec![OTHER] };
    let aws = World { keys: vec![key_of_image], ..world() }.aws();
    let round = revoke(&aws, one_image(json!({ "targets": [TARGET, OTHER] }))).await;
    let TakeBack { key_changes, grant_changes, notes, .. } = take_back(&round);
    assert_eq!((&key_changes[0].key_arn, &key_changes[0].account_ids), (&key(KEY), &vec![named(TARGET)]));
    assert_eq!((&grant_changes[0].key_arn, &grant_changes[0].account_ids), (&key(KEY), &vec![named(OTHER)]));
    assert_eq!((key_changes.len(), grant_changes.len(), notes.len()), (1, 1, 0));
    let nobody = SharedKey { arn: KEY, by_policy: vec![], by_grant: vec![] };
    let aws = World { keys: vec![nobody], ..world() }.aws();
    let round = revoke(&aws, one_image(json!({}))).await;
    assert_eq!((round.take_back, round.accounts), (None, vec![]));
}

/// The share of image B is somebody else's: nobody has noted it.
#[tokio::test]
async fn what_another_image_needs_is_kept_and_stays_noted() {
    let aws = World { images: vec![shared(A, TARGET), shared(B, TARGET)], ..world() }.aws();
    note_all(&aws, &[gift(A, TARGET)]);
    let round = revoke(&aws, one_image(json!({}))).await;
    let TakeBack { launch_permissions, key_changes, targets, notes, kept, .. } = take_back(&round);
    assert_eq!((launch_permissions.len(), key_changes.len(), targets.len()), (1, 0, 0));
    assert_eq!((kept.len(), kept[0].image_id.as_str()), (1, B));
    let stays: Gift = serde_json::from_str(notes[0].gift.as_ref().unwrap()).unwrap();
    assert_eq!(stays.target.source_changes.key_arns, [key(KEY)]);
    // The note says so already.
    note_all(&aws, &[stays]);
    let round = revoke(&aws, one_image(json!({}))).await;
    assert!(!take_back(&round).is_something() && round.accounts.is_empty());
    assert_eq!(take_back(&round).kept.len(), 1);
}

/// EC2 goes on naming its image for a while.
#[tokio::test]
async fn a_share_that_went_a_moment_ago_needs_nothing() {
    for (ago, kept) in [(0, 0), (LAGGING + 1, 1)] {
        let aws = World { images: vec![shared(A, TARGET), shared(B, TARGET)], ..world() }.aws();
        note_all(&aws, &[gift(A, TARGET)]);
        aws.table().put(&json!({
            "id": { "S": format!("target#{TARGET}") },
            "part": { "S": format!("{B}#nightly") },
            "went": { "S": json!(gift(B, TARGET)).to_string() },
            "wentAt": { "N": (aws.hub.now_ms() - ago).to_string() },
        }));
        let round = revoke(&aws, one_image(json!({}))).await;
        assert_eq!((take_back(&round).kept.len(), take_back(&round).key_changes.len()), (kept, 1 - kept));
    }
}

/// IAM is global in an account: an image in another Region may need a principal.
#[tokio::test]
async fn access_stays_that_nobody_can_say_is_needed_but_by_force() {
    let elsewhere = gift_but(B, TARGET, |gift| gift.source.account_id = named("555555555555"));
    for (force, principals) in [(false, 0), (true, 1)] {
        let aws = World { refused: vec![("AssumeRole:555555555555", "AccessDenied")], ..world() }.aws();
        note_all(&aws, &[gift(A, TARGET), elsewhere.clone()]);
        let round = revoke(&aws, one_image(json!({ "force": force }))).await;
        assert_eq!(take_back(&round).targets.len(), principals);
        assert_eq!(take_back(&round).launch_permissions.len(), 1);
        let about_it = left(&round).iter().filter(|(_, _, cause)| cause.contains("555555555555")).count();
        assert_eq!(about_it, 1 - principals, "{:?}", left(&round));
    }
}

/// Nobody was asked about it.
#[tokio::test]
async fn who_was_given_something_of_the_image_since_keeps_all_of_it() {
    let aws = world().aws();
    note_all(&aws, &[gift(A, TARGET), gift(A, OTHER)]);
    let again = gift_but(A, TARGET, |gift| gift.execution = ExecutionName::parse("again").unwrap());
    note(&aws, &again, &noted_since());
    let round = revoke(&aws, one_image(json!({ "targets": [TARGET, OTHER] }))).await;
    assert_eq!(take_back(&round).launch_permissions, [named(OTHER)]);
    assert_eq!(marked(&aws), [(OTHER.to_owned(), A.to_owned())]);
    assert_eq!((round.progress.given_since, round.progress.remaining), (vec![named(TARGET)], 0));
}

#[tokio::test]
async fn copies_and_instances_stay_unless_they_are_asked_for() {
    let made = gift_but(A, TARGET, |gift| {
        gift.target.mode = Mode::CopyImage;
        gift.target.launch.keep = true;
    });
    for (copies, instances, stays) in [(false, true, true), (true, false, true), (true, true, false)] {
        let aws = world().aws();
        note_all(&aws, std::slice::from_ref(&made));
        let round = revoke(&aws, one_image(json!({ "copies": copies, "instances": instances }))).await;
        let target = &take_back(&round).targets[0];
        assert_eq!((target.copies.len(), target.instances.len()), (usize::from(copies), usize::from(instances)));
        assert_eq!(!round.progress.stays.is_empty(), stays);
    }
}

#[tokio::test]
async fn a_launch_permission_that_no_note_says_is_ours_is_told_of() {
    let found_in_place = gift_but(A, TARGET, |gift| gift.target.source_changes.launch_permission = false);
    for (permitted, gifts, not_ours) in [
        (TARGET, vec![gift(A, TARGET)], 0),
        (TARGET, vec![found_in_place.clone()], 1),
        (TARGET, vec![gift(B, TARGET)], 1),
        (TARGET, vec![], 1),
        (OTHER, vec![found_in_place], 0),
    ] {
        let aws = World { images: vec![shared(A, permitted)], ..world() }.aws();
        note_all(&aws, &gifts);
        assert_eq!(look_first(&aws, one_image(json!({}))).await.progress.not_ours, []);
        let round = revoke(&aws, one_image(json!({}))).await;
        assert_eq!(round.progress.not_ours.len(), not_ours, "{permitted}: {gifts:?}");
    }
}

/// Keys and principals go with the last of the images that need them.
#[test]
fn a_look_ahead_sees_what_the_images_before_will_have_left_to_this_one() {
    let inline = |keys: &[&str]| {
        let key_arns: Vec<KeyArn> = keys.iter().map(|arn| key(arn)).collect();
        let change =
            PrincipalChange { key_arns: key_arns.clone(), ..gift(B, TARGET).target.principal_changes[0].clone() };
        let source_changes = SourceChanges { grant_key_arns: key_arns.clone(), key_arns, ..SourceChanges::default() };
        gift_but(B, TARGET, |gift| {
            gift.target.principal_changes = vec![change];
            gift.target.source_changes = source_changes;
        })
    };
    // What a note of the image before names, the key of the image at hand, and what is left of it.
    for (before, key_at_hand, keys, principals) in [
        (gift(B, TARGET), Some(KEY), vec![KEY], 1),
        (gift(B, TARGET), Some(KEY_2), vec![], 1),
        (gift(B, TARGET), None, vec![], 0),
        (inline(&[KEY, KEY_2]), Some(KEY_2), vec![KEY_2, KEY_2, KEY_2], 1),
        (inline(&[KEY]), Some(KEY_2), vec![], 0),
        (inline(&[KEY]), None, vec![], 0),
    ] {
        let at_hand = gift_but(A, TARGET, |gift| gift.image.volumes[0].key_arn = key_at_hand.map(key));
        let [at_hand, before] = [at_hand, before].map(|gift| Note { gift, ..super::order::note(0, 1, None) });
        let [image, image_before] = [&at_hand, &before].map(notes::image_of);
        let mark = Mark::noted("mine");
        let hand = AtHand { image: &image, before: &[image_before], mark: &mark, begun: 100 };
        let [at_hand, before] = &notes::as_marked(vec![at_hand, before], &hand)[..] else { panic!() };
        assert_eq!((at_hand.going.as_ref(), before.goes_before), (Some(&mark), true));
        let Target { source_changes: changes, principal_changes, .. } = &before.gift.target;
        let inline = principal_changes.iter().flat_map(|change| &change.key_arns);
        let left: Vec<&str> =
            changes.key_arns.iter().chain(&changes.grant_key_arns).chain(inline).map(KeyArn::as_str).collect();
        assert_eq!((left, principal_changes.len()), (keys, principals), "{before:?}");
    }
}
