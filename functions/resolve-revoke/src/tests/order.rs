use std::collections::BTreeSet;

use shares::Targets;

use super::*;

/// So many images, each with so many targets, in their order.
fn of_images(counts: &[usize]) -> Targets {
    let accounts = |count: usize| (0..count).map(account).collect();
    counts.iter().enumerate().map(|(n, count)| (image(n), accounts(*count))).collect()
}

/// What an execution begins with.
fn begun(targets: &Targets) -> Progress {
    Progress { order: targets.keys().take(MAX_ROUNDS).cloned().collect(), ..Progress::default() }
}

/// The rounds that an execution makes of `targets`, each with the image's number of targets.
fn rounds(phase: Phase, targets: &Targets, progress: &mut Progress) -> Vec<usize> {
    progress.enter(phase);
    let mut rounds = Vec::new();
    loop {
        let ahead = Ahead::of(targets, progress);
        let Some(image) = ahead.image.filter(|_| progress.has_room()) else {
            progress.remaining = ahead.remaining();
            return rounds;
        };
        rounds.push(ahead.accounts.len());
        progress.add_round(image, ahead.accounts.clone());
        progress.after = ahead.accounts.last().map(|last| Place { image, account_id: last.clone() });
        progress.remaining = ahead.rest + ahead.beyond;
    }
}

#[test]
fn targets_are_gone_through_in_rounds_and_once_more_to_take_back() {
    let targets = of_images(&[120]);
    let mut progress = begun(&targets);
    assert_eq!(rounds(Phase::Check, &targets, &mut progress), [50, 50, 20]);
    assert_eq!(progress.remaining, 0);
    assert_eq!(rounds(Phase::Revoke, &targets, &mut progress), [50, 50, 20]);
    assert_eq!((progress.remaining, progress.revoked.len()), (0, 120));
}

#[test]
fn a_round_is_of_one_image() {
    let targets = of_images(&[1, 2, 3]);
    let mut progress = begun(&targets);
    assert_eq!(rounds(Phase::Check, &targets, &mut progress), [1, 2, 3]);
    let after = Some(Place { image: 1, account_id: account(0) });
    let ahead = Ahead::of(&targets, &Progress { after, ..begun(&targets) });
    assert_eq!(ahead.image, Some(1));
    assert_eq!((ahead.accounts, ahead.rest_of_image, ahead.rest, ahead.beyond), (vec![account(1)], 0, 3, 0));
}

/// Whoever was not asked loses nothing in the same execution.
#[test]
fn what_one_execution_has_no_room_for_remains() {
    let targets = of_images(&[2_000]);
    let mut progress = begun(&targets);
    assert_eq!(rounds(Phase::Check, &targets, &mut progress).iter().sum::<usize>(), 500);
    assert_eq!(progress.remaining, 1_500);
    // It may be named anew meanwhile, and another one before it.
    let more = of_images(&[2_100]);
    let revoked = rounds(Phase::Revoke, &more, &mut progress).iter().sum::<usize>();
    assert_eq!((revoked, progress.remaining), (500, 1_600));
    assert_eq!(progress.until, Some(Place { image: 0, account_id: account(499) }));
    let mut forced = begun(&targets);
    assert_eq!(rounds(Phase::Revoke, &targets, &mut forced).iter().sum::<usize>(), 500);
    assert_eq!(forced.remaining, 1_500);
    let many_images = of_images(&[1; MAX_ROUNDS + 7]);
    let mut of_all = begun(&many_images);
    assert_eq!(rounds(Phase::Check, &many_images, &mut of_all).len(), MAX_ROUNDS);
    assert_eq!(of_all.remaining, 7);
    // What was found first is what is taken.
    let fewer: Targets = many_images.into_iter().skip(3).collect();
    assert_eq!(rounds(Phase::Revoke, &fewer, &mut of_all).len(), MAX_ROUNDS - 3);
    assert_eq!(of_all.remaining, 7);
}

pub(super) fn note(n: usize, noted_at: i64, going: Option<&str>) -> Note {
    Note {
        gift: serde_json::from_value(json!({
            "execution": "nightly-1-0123abcd",
            "source": image(n).source,
            "image": { "imageId": image(n).image_id, "name": "web", "architecture": "x86_64", "volumes": [] },
            "principalAccess": "attach",
            "target": { "accountId": account(0), "principalChanges": [], "mode": "none", "launch": {} }
        }))
        .unwrap(),
        noted_at,
        going: going.map(Mark::noted),
        goes_before: false,
        confirmed: true,
        stays: ami_share_record::Stays::default(),
        proof: None,
    }
}

fn noted(notes: &[(usize, Vec<Note>)]) -> Shares {
    let request = json!({ "images": "all", "targets": ["222222222222"] });
    let request = RevokeRequest::parse(&request, &image(0).source).unwrap();
    let noted = |notes: &[Note]| Noted { notes: notes.to_vec(), went: vec![] };
    let by_target = notes.iter().map(|(n, notes)| (account(*n), noted(notes))).collect();
    shares::noted(Notes { by_target, ..Notes::default() }, &request, 100)
}

/// Of over 200 images whose notes stay, the next execution goes on with those that the last had no room for.
#[test]
fn images_that_were_tried_come_after_those_that_were_not_and_the_last_tried_come_last() {
    let tried = |n: usize, at: usize| note(n, 1, Some(&format!("revoke-1 {at}")));
    let shares = noted(&[
        (0, vec![tried(0, 70), tried(1, 50), note(2, 1, None), tried(3, 60)]),
        // Of one target it was not tried.
        (1, vec![tried(1, 60), note(3, 1, None)]),
        (2, vec![]),
    ]);
    assert_eq!(shares.order, [image(2), image(3), image(1), image(0)]);
    assert_eq!(shares.targets[&image(3)].len(), 2);
    assert_eq!(shares.strangers, [account(2)]);
    let many: Vec<Note> = (0..MAX_ROUNDS + 50).map(|n| tried(n, 1_000 - n)).collect();
    let shares = noted(&[(0, many)]);
    assert_eq!((shares.order.len(), &shares.order[0]), (MAX_ROUNDS, &image(MAX_ROUNDS + 49)));
}

/// Nobody was asked about it.
#[test]
fn what_was_given_since_the_execution_began_is_not_asked_for() {
    let shares = noted(&[
        (0, vec![note(0, 99, None), note(1, 100, None)]),
        (1, vec![note(0, 99, None), note(0, 101, None), note(2, 99, None)]),
    ]);
    assert_eq!(shares.order, [image(0), image(2)]);
    assert_eq!(shares.targets[&image(0)], BTreeSet::from([account(0)]));
    assert_eq!(shares.given_since, [account(0), account(1)]);
}

/// As they will be when the round is at hand in earnest.
#[test]
fn a_look_ahead_sees_the_notes_of_the_images_before_as_marked() {
    let seen = |before: &[SourceImage]| -> Vec<(Option<Mark>, bool)> {
        let notes = vec![
            note(0, 1, Some("theirs")),
            note(1, 1, None),
            note(2, 1, Some("theirs")),
            note(3, 1, None),
            note(4, 1, None),
            note(4, 100, None),
        ];
        let at_hand = AtHand { image: &image(2), before, mark: &Mark::noted("mine"), begun: 100 };
        notes::as_marked(notes, &at_hand).into_iter().map(|note| (note.going, note.goes_before)).collect()
    };
    let [theirs, mine] = ["theirs", "mine"].map(|mark| Some(Mark::noted(mark)));
    let stands = (None, false);
    // The last image is given anew.
    let of_all =
        [(theirs.clone(), true), (None, true), (mine.clone(), false), stands.clone(), stands.clone(), stands.clone()];
    assert_eq!(seen(&[image(0), image(1), image(4)]), of_all);
    let of_one = [(theirs, false), stands.clone(), (mine, false), stands.clone(), stands.clone(), stands];
    assert_eq!(seen(&[]), of_one);
}
