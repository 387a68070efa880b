use std::collections::BTreeSet;

use ami_share_core::{
    ids::{ImageId, Region},
    revoke::MAX_ROUNDS,
};
use serde_json::json;

use super::*;

fn account(n: usize) -> AccountId {
    AccountId::parse(format!("2{n:011}")).unwrap()
}

fn image(n: usize) -> SourceImage {
    let source =
        Source { account_id: AccountId::parse("111111111111").unwrap(), region: Region::parse("eu-west-1").unwrap() };
    SourceImage { source, image_id: ImageId::parse(format!("ami-{n:08x}")).unwrap() }
}

fn share(image_number: usize, account_number: usize) -> ShareId {
    ShareId { image: image(image_number), account_id: account(account_number) }
}

/// The rounds that an execution makes of `shares`, each with the image's number of targets.
fn rounds(phase: Phase, shares: &BTreeSet<ShareId>, progress: &mut Progress) -> Vec<usize> {
    progress.enter(phase);
    let mut rounds = Vec::new();
    loop {
        let ahead = Ahead::of(shares.clone(), progress);
        let Some(image) = ahead.image.filter(|_| progress.has_room()) else {
            progress.remaining = ahead.accounts.len() + ahead.rest + ahead.beyond;
            return rounds;
        };
        rounds.push(ahead.accounts.len());
        progress.add_round(&image, ahead.accounts.clone());
        progress.after = ahead.accounts.last().map(|last| ShareId { image, account_id: last.clone() });
        progress.remaining = ahead.rest + ahead.beyond;
    }
}

fn of_one_image(accounts: std::ops::Range<usize>) -> BTreeSet<ShareId> {
    accounts.map(|n| share(1, n)).collect()
}

#[test]
fn targets_are_gone_through_in_rounds_and_once_more_to_take_back() {
    let mut progress = Progress::default();
    assert_eq!(rounds(Phase::Check, &of_one_image(0..120), &mut progress), [50, 50, 20]);
    assert_eq!(progress.remaining, 0);
    assert_eq!(rounds(Phase::Revoke, &of_one_image(0..120), &mut progress), [50, 50, 20]);
    assert_eq!((progress.remaining, progress.revoked.len()), (0, 120));
}

#[test]
fn a_round_is_of_one_image() {
    let shares = (1..4).flat_map(|image| (0..image).map(move |account| share(image, account))).collect();
    let mut progress = Progress::default();
    assert_eq!(rounds(Phase::Check, &shares, &mut progress), [1, 2, 3]);
    let ahead = Ahead::of(shares, &Progress { after: Some(share(2, 0)), ..Progress::default() });
    assert_eq!(ahead.image, Some(image(2)));
    assert_eq!((ahead.accounts, ahead.rest_of_image, ahead.rest, ahead.beyond), (vec![account(1)], 0, 3, 0));
}

/// Whoever was not asked loses nothing in the same execution.
#[test]
fn what_one_execution_has_no_room_for_remains() {
    let mut progress = Progress::default();
    assert_eq!(rounds(Phase::Check, &of_one_image(0..2_000), &mut progress).iter().sum::<usize>(), 500);
    assert_eq!(progress.remaining, 1_500);
    // It may be named anew meanwhile, and another one before it.
    let revoked = rounds(Phase::Revoke, &of_one_image(0..2_100), &mut progress).iter().sum::<usize>();
    assert_eq!((revoked, progress.remaining), (500, 1_600));
    assert_eq!(progress.until, Some(share(1, 499)));
    let mut forced = Progress::default();
    assert_eq!(rounds(Phase::Revoke, &of_one_image(0..2_000), &mut forced).iter().sum::<usize>(), 500);
    assert_eq!(forced.remaining, 1_500);
    let many_images = (0..MAX_ROUNDS + 7).map(|n| share(n, 0)).collect();
    let mut of_all = Progress::default();
    assert_eq!(rounds(Phase::Revoke, &many_images, &mut of_all).len(), MAX_ROUNDS);
    assert_eq!(of_all.remaining, 7);
}

/// As they will be when the round is at hand in earnest.
#[test]
fn a_look_ahead_sees_the_notes_of_the_images_before_as_marked() {
    let note = |n: usize, going: Option<&str>| Note {
        gift: serde_json::from_value(json!({
            "execution": "nightly-1-0123abcd",
            "source": image(n).source,
            "image": { "imageId": image(n).image_id, "name": "web", "architecture": "x86_64", "volumes": [] },
            "principalAccess": "attach",
            "target": { "accountId": account(0), "principalChanges": [], "mode": "none", "launch": {} }
        }))
        .unwrap(),
        noted_at: 0,
        going: going.map(Mark::noted),
        confirmed: true,
        stays: ami_share_record::Stays::default(),
    };
    let default_source = image(0).source;
    let parse = |request: Value| RevokeRequest::parse(&request, &default_source).unwrap();
    let going = |request: &RevokeRequest, notes: Vec<Note>| -> Vec<Option<Mark>> {
        let at_hand = AtHand { request, image: &image(2), mark: &Mark::noted("mine"), revoking: false };
        notes::as_marked(notes, &at_hand).into_iter().map(|note| note.going).collect()
    };
    let notes = || vec![note(0, Some("theirs")), note(1, None), note(2, Some("theirs")), note(3, None)];
    let all = parse(json!({ "images": "all", "targets": [account(0)] }));
    let expected = [Some("before"), Some("before"), Some("mine"), None];
    assert_eq!(going(&all, notes()), expected.map(|going| going.map(Mark::noted)));
    let one = parse(json!({ "imageId": image(2).image_id, "targets": [account(0)] }));
    let expected = [Some("theirs"), None, Some("mine"), None];
    assert_eq!(going(&one, notes()), expected.map(|going| going.map(Mark::noted)));
}
