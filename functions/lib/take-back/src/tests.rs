use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use ami_share_core::{
    Error,
    ids::{AccountId, ExecutionName, ImageId, KeyArn, PrincipalArn, Region, SnapshotId},
    mark::Mark,
    share::{Image, Kept, Launch, Mode, PrincipalAccess, PrincipalChange, Source, SourceChanges, Target, Volume},
    take_back::{Left, MOST_TO_TAKE, bytes_of},
};
use ami_share_record::{Gift, Note, Stays};

use crate::{Asked, FromAccount, Need, from_account, gather};

fn account(n: usize) -> AccountId {
    AccountId::parse(format!("2{n:011}")).unwrap()
}

fn image(id: &str) -> ImageId {
    ImageId::parse(format!("ami-0000000{id}")).unwrap()
}

fn key(id: &str) -> KeyArn {
    KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/{id}")).unwrap()
}

fn source_in(region: &str) -> Source {
    Source { account_id: AccountId::parse("111111111111").unwrap(), region: Region::parse(region).unwrap() }
}

fn principal() -> PrincipalArn {
    PrincipalArn::parse(format!("arn:aws:iam::{}:role/app", account(0))).unwrap()
}

fn execution(of: &str) -> ExecutionName {
    ExecutionName::parse(format!("of-{of}")).unwrap()
}

/// Everything that an execution may give for an image whose one volume is under key 1, noted at 100 and confirmed.
fn note(of: &str, going: Option<&str>) -> Note {
    let snapshot = SnapshotId::parse("snap-0123abcd").unwrap();
    let volume = Volume { device_name: "/dev/xvda".to_owned(), snapshot_id: snapshot.clone(), key_arn: Some(key("1")) };
    let gift = Gift {
        execution: execution(of),
        source: source_in("eu-west-1"),
        image: Image {
            image_id: image(of),
            name: "web".to_owned(),
            architecture: "x86_64".to_owned(),
            volumes: vec![volume],
            empty_volumes: vec![],
        },
        principal_access: PrincipalAccess::Attach,
        target: Target {
            account_id: account(0),
            principal_changes: vec![PrincipalChange { principal: principal(), key_arns: vec![] }],
            source_changes: SourceChanges {
                launch_permission: true,
                snapshot_ids: vec![snapshot],
                key_arns: vec![key("1")],
                grant_key_arns: vec![],
            },
            mode: Mode::CopyImage,
            kms_key_id: None,
            copy_id: None,
            launch: Launch { keep: true, ..Launch::default() },
        },
    };
    let going = going.map(Mark::noted);
    Note { gift, noted_at: 100, going, goes_before: false, confirmed: true, stays: Stays::default(), proof: None }
}

const MINE: &str = "me 200";

fn mine() -> &'static Mark {
    static MARK: LazyLock<Mark> = LazyLock::new(|| Mark::noted(MINE));
    &MARK
}

fn asked(source: &Source) -> Asked<'_> {
    static IMAGE: std::sync::OnceLock<ImageId> = std::sync::OnceLock::new();
    Asked {
        source,
        image: IMAGE.get_or_init(|| image("a")),
        mark: mine(),
        begun: 200,
        copies: true,
        instances: true,
        with_gone_images: false,
        force: false,
    }
}

fn take_asked(asked: Asked<'_>, notes: &[Note], need: &Need) -> FromAccount {
    from_account(asked, &account(0), notes, need)
}

fn take(notes: &[Note], need: &Need) -> FromAccount {
    take_asked(asked(&source_in("eu-west-1")), notes, need)
}

/// It can launch `others`, each with the key under it.
fn need(others: &[(&str, &str)]) -> Need {
    Need {
        images: others.iter().map(|(id, _)| image(id)).collect(),
        keys: others.iter().map(|(id, under)| (key(under), image(id))).collect(),
        unknown: BTreeMap::new(),
    }
}

fn unknown(region: &str) -> Need {
    let left = Left {
        account_id: Some(account(0)),
        state: "ResolveUndo".to_owned(),
        error: "AccessDenied".to_owned(),
        cause: format!("nobody can say in {region}"),
    };
    Need { unknown: BTreeMap::from([(source_in(region), left)]), ..Need::default() }
}

/// What a note says from now on; nothing where it goes.
fn noted(taken: &FromAccount, of: &str) -> Option<Gift> {
    let note = taken.notes.iter().find(|note| note.image_id == image(of)).expect("the note does not change");
    note.gift.as_ref().map(|gift| serde_json::from_str(gift).unwrap())
}

fn principals(taken: &FromAccount) -> &[PrincipalChange] {
    taken.target.as_ref().map_or(&[], |target| &target.principal_changes)
}

#[test]
fn all_of_a_marked_note_goes_where_nobody_needs_it() {
    let taken = take(&[note("a", Some(MINE))], &Need::default());
    assert!(taken.launch_permission && !taken.stays);
    assert_eq!((taken.snapshot_ids.len(), &taken.key_arns), (1, &BTreeSet::from([key("1")])));
    assert_eq!(principals(&taken), note("a", None).gift.target.principal_changes);
    let target = taken.target.as_ref().unwrap();
    assert_eq!((&target.instances[0].execution, &target.copies[0].execution), (&execution("a"), &execution("a")));
    assert_eq!((&target.copies[0].of, target.copies[0].noted_at), (&image("a"), 100));
    assert_eq!(noted(&taken, "a"), None);
    assert_eq!(taken.notes[0].going.as_str(), MINE);
}

#[test]
fn what_nobody_asked_to_remove_stays_noted() {
    let source = source_in("eu-west-1");
    let asked = Asked { copies: false, instances: false, ..asked(&source) };
    let taken = take_asked(asked, &[note("a", Some(MINE))], &Need::default());
    assert!(taken.stays);
    let stays = noted(&taken, "a").unwrap();
    assert_eq!(stays.target.source_changes, SourceChanges::default());
    assert_eq!((stays.target.mode, stays.target.launch.keep), (Mode::CopyImage, true));
    // Read again, it says nothing that could be taken.
    let again = take_asked(asked, &[Note { gift: stays, ..note("a", Some(MINE)) }], &Need::default());
    assert!(!again.is_something() && again.notes.is_empty());
}

/// It found in place what a share of another image gave, which was kept for its sake when that one went.
#[test]
fn an_older_share_of_the_image_keeps_what_others_gave() {
    let others = note("b", Some("other 150"));
    let mut own = note("a", Some(MINE));
    own.gift.target.source_changes.key_arns = vec![];
    own.gift.target.principal_changes = vec![];
    let mut older = note("a", None);
    (older.gift.execution, older.noted_at) = (execution("older"), 50);
    let with_older = take(&[others.clone(), own.clone(), older], &Need::default());
    assert!(with_older.key_arns.is_empty() && with_older.notes.iter().all(|note| note.image_id == image("a")));
    assert!(with_older.target.unwrap().principal_changes.is_empty());
    let alone = take(&[others, own], &Need::default());
    assert_eq!((alone.key_arns, alone.notes.len()), (BTreeSet::from([key("1")]), 2));
}

#[test]
fn a_copy_that_an_execution_found_is_not_its_own() {
    let mut found = note("a", Some(MINE));
    found.gift.target.copy_id = Some(image("c"));
    let taken = take(&[found], &Need::default());
    assert!(taken.target.as_ref().unwrap().copies.is_empty() && !taken.stays);
    assert_eq!(noted(&taken, "a"), None);
}

#[test]
fn ids_that_were_noted_are_handed_on() {
    let mut with_ids = note("a", Some(MINE));
    with_ids.stays.copy_id = Some(image("c"));
    let taken = take(&[with_ids], &Need::default());
    assert_eq!(taken.target.unwrap().copies[0].copy_id, Some(image("c")));
}

#[test]
fn what_another_image_needs_stays_and_stays_noted() {
    let taken = take(&[note("a", Some(MINE)), note("b", None)], &need(&[("b", "1")]));
    assert!(taken.launch_permission && taken.key_arns.is_empty() && principals(&taken).is_empty());
    assert_eq!(taken.kept, Some(Kept { account_id: account(0), image_id: image("b") }));
    let stays = noted(&taken, "a").unwrap();
    assert_eq!(stays.target.source_changes.key_arns, [key("1")]);
    assert_eq!(stays.target.principal_changes, note("a", None).gift.target.principal_changes);
    // The other image's share is not touched.
    assert!(taken.notes.iter().all(|note| note.image_id == image("a")));
}

#[test]
fn the_managed_policy_stays_for_any_key_and_an_inline_one_for_its_own() {
    let taken = take(&[note("a", Some(MINE))], &need(&[("b", "9")]));
    assert_eq!((taken.key_arns.len(), principals(&taken).len()), (1, 0));
    let mut inline = note("a", Some(MINE));
    inline.gift.principal_access = PrincipalAccess::Inline;
    inline.gift.target.principal_changes[0].key_arns = vec![key("1"), key("9")];
    let taken = take(&[inline], &need(&[("b", "9")]));
    assert_eq!(principals(&taken)[0].key_arns, [key("1")]);
    assert_eq!(noted(&taken, "a").unwrap().target.principal_changes[0].key_arns, [key("9")]);
}

/// The share of the other image was taken back before, and left what this one needed.
#[test]
fn what_stayed_for_this_image_goes_with_it() {
    let rest = note("b", Some("somebody 150"));
    let taken = take(&[note("a", Some(MINE)), rest], &Need::default());
    assert_eq!((taken.key_arns.len(), principals(&taken).len()), (1, 1));
    // Its permissions, copies and instances are for whoever has marked it.
    assert_eq!(taken.target.as_ref().unwrap().copies.len(), 1);
    let stays = noted(&taken, "b").unwrap();
    assert!(stays.target.source_changes.launch_permission && stays.target.source_changes.key_arns.is_empty());
    assert_eq!(taken.notes.iter().find(|note| note.image_id == image("b")).unwrap().going.as_str(), "somebody 150");
}

#[test]
fn what_another_execution_gave_since_is_theirs() {
    let mut other = note("a", None);
    other.gift.execution = execution("other");
    let before = take(&[note("a", Some(MINE)), other.clone()], &Need::default());
    assert!(before.launch_permission, "what was noted before the execution began was missing since");
    other.noted_at = 200;
    let since = take(&[note("a", Some(MINE)), other], &Need::default());
    assert!(!since.launch_permission && since.snapshot_ids.is_empty() && since.key_arns.is_empty());
    assert!(principals(&since).is_empty());
    assert_eq!(noted(&since, "a"), None);
}

/// IAM is global, and a key is not.
#[test]
fn where_one_region_cannot_be_asked_the_managed_policy_stays_and_keys_of_others_go() {
    let taken = take(&[note("a", Some(MINE))], &unknown("us-east-1"));
    assert_eq!((taken.key_arns.len(), principals(&taken).len()), (1, 0));
    assert!(taken.left[0].cause.contains("us-east-1"));
    let taken = take(&[note("a", Some(MINE))], &unknown("eu-west-1"));
    assert_eq!((taken.key_arns.len(), principals(&taken).len(), taken.left.len()), (0, 0, 1));
    assert!(taken.launch_permission);
    assert_eq!(noted(&taken, "a").unwrap().target.source_changes.key_arns, [key("1")]);
    let source = source_in("eu-west-1");
    let forced = take_asked(Asked { force: true, ..asked(&source) }, &[note("a", Some(MINE))], &unknown("eu-west-1"));
    assert_eq!((forced.key_arns.len(), principals(&forced).len(), forced.left.len()), (1, 1, 0));
}

/// A note of another Region: its principals may be the last that need the policy, its keys are for its own Region.
#[test]
fn keys_of_another_region_stay_noted_there() {
    let mut there = note("b", Some("somebody 150"));
    there.gift.source = source_in("us-east-1");
    there.gift.target.source_changes.key_arns =
        vec![KeyArn::parse("arn:aws:kms:us-east-1:111111111111:key/1").unwrap()];
    let taken = take(&[note("a", Some(MINE)), there], &Need::default());
    assert_eq!(taken.key_arns, BTreeSet::from([key("1")]));
    let stays = noted(&taken, "b").unwrap();
    assert_eq!((stays.target.source_changes.key_arns.len(), stays.target.principal_changes.len()), (1, 0));
}

/// A deregistered image may come back from the Recycle Bin: its note stays until it is revoked.
#[test]
fn what_only_a_gone_image_has_noted_goes_and_its_note_stays() {
    let mut found = note("a", Some(MINE));
    found.gift.target.source_changes.key_arns.clear();
    found.gift.target.principal_changes.clear();
    let source = source_in("eu-west-1");
    let asked = Asked { with_gone_images: true, ..asked(&source) };
    let taken = take_asked(asked, &[found.clone(), note("b", None)], &Need::default());
    assert_eq!((taken.key_arns.len(), principals(&taken).len()), (1, 1));
    assert!(taken.notes.iter().all(|note| note.image_id == image("a")));
    let needed = take_asked(asked, &[found, note("b", None)], &need(&[("b", "1")]));
    assert_eq!((needed.key_arns.len(), principals(&needed).len()), (0, 0));
}

/// Of whoever looks ahead: that note will be marked by then.
#[test]
fn what_a_note_names_that_goes_before_goes_with_the_image_at_hand() {
    let mut found = note("a", Some(MINE));
    found.gift.target.source_changes.key_arns.clear();
    found.gift.target.principal_changes.clear();
    for goes_before in [true, false] {
        let before = Note { goes_before, ..note("b", None) };
        let taken = take(&[found.clone(), before], &Need::default());
        let count = usize::from(goes_before);
        assert_eq!((taken.key_arns.len(), principals(&taken).len()), (count, count));
    }
}

#[test]
fn statements_and_grants_of_ours_go_whatever_is_noted() {
    let source = source_in("eu-west-1");
    let mut taken = FromAccount::new(account(0));
    let statements = BTreeSet::from([key("1"), key("2")]);
    taken.with_unnoted(asked(&source), &need(&[("b", "2")]), statements.clone(), BTreeSet::from([key("4")]));
    assert_eq!((&taken.key_arns, &taken.grant_key_arns), (&BTreeSet::from([key("1")]), &BTreeSet::from([key("4")])));
    assert_eq!(taken.kept, Some(Kept { account_id: account(0), image_id: image("b") }));
    let mut unsure = FromAccount::new(account(0));
    unsure.with_unnoted(asked(&source), &unknown("eu-west-1"), statements, BTreeSet::new());
    assert_eq!((unsure.key_arns.len(), unsure.left.len()), (0, 1));
}

#[test]
fn a_take_back_has_as_many_targets_as_fit_and_one_at_least() {
    let large = |n: usize| {
        let mut taken = take(&[note("a", Some(MINE))], &Need::default());
        let name = |p: usize| format!("arn:aws:iam::{}:role/{}{p}", account(n), "r".repeat(60));
        let target = taken.target.as_mut().unwrap();
        target.principal_changes = (0..21)
            .map(|p| PrincipalChange { principal: PrincipalArn::parse(name(p)).unwrap(), key_arns: vec![] })
            .collect();
        FromAccount { account_id: account(n), ..taken }
    };
    let taken: Vec<FromAccount> = (0..50).map(large).collect();
    let (take_back, fitting) = gather(&execution("a"), &source_in("eu-west-1"), &image("a"), &taken);
    assert!((10..50).contains(&fitting), "{fitting}");
    assert!(bytes_of(&take_back) <= MOST_TO_TAKE, "{}", bytes_of(&take_back));
    assert_eq!((take_back.launch_permissions.len(), take_back.targets.len()), (fitting, fitting));
    assert_eq!((take_back.key_changes.len(), take_back.key_changes[0].account_ids.len()), (1, fitting));
    let (nothing, none) = gather(&execution("a"), &source_in("eu-west-1"), &image("a"), &[]);
    assert!(!nothing.is_something() && none == 0);
}

#[test]
fn each_thing_that_is_taken_is_something_and_what_stays_is_not() {
    let with = |change: fn(&mut FromAccount)| {
        let mut taken = FromAccount::new(account(0));
        change(&mut taken);
        taken.is_something()
    };
    assert!(with(|taken| taken.launch_permission = true));
    assert!(with(|taken| taken.snapshot_ids = BTreeSet::from([SnapshotId::parse("snap-0123abcd").unwrap()])));
    assert!(with(|taken| taken.key_arns = BTreeSet::from([key("1")])));
    assert!(with(|taken| taken.grant_key_arns = BTreeSet::from([key("1")])));
    assert!(with(|taken| taken.target = take(&[note("a", Some(MINE))], &Need::default()).target));
    assert!(!with(|taken| taken.kept = Some(Kept { account_id: account(0), image_id: image("b") })));
    assert!(!with(|_| ()));
}

#[test]
fn a_target_whose_notes_cannot_be_read_keeps_what_it_has() {
    let taken = FromAccount::unread(account(0), "ResolveUndo", &Error::invalid("gift", "?", "must be JSON"));
    assert!(!taken.is_something());
    let [left] = &taken.left[..] else { panic!("{taken:?}") };
    assert_eq!((&left.account_id, left.state.as_str()), (&Some(account(0)), "ResolveUndo"));
    assert_eq!(left.error, "InvalidRequest");
    assert!(left.cause.contains("must be JSON"), "{}", left.cause);
}

#[test]
fn what_was_not_given_is_not_taken() {
    let mut of_keys = note("a", Some(MINE));
    of_keys.gift.target.source_changes.launch_permission = false;
    assert!(!take(&[of_keys], &Need::default()).launch_permission);
}

/// A note of another kind of gift each.
#[test]
fn what_is_done_in_a_target_may_be_one_thing() {
    let with = |change: fn(&mut Target)| {
        let mut noted = note("a", Some(MINE));
        noted.gift.target.principal_changes.clear();
        noted.gift.target.mode = Mode::None;
        noted.gift.target.launch.keep = false;
        change(&mut noted.gift.target);
        let target = take(&[noted], &Need::default()).target;
        target.map(|target| (target.principal_changes.len(), target.copies.len(), target.instances.len()))
    };
    let principals = |target: &mut Target| target.principal_changes = note("a", None).gift.target.principal_changes;
    assert_eq!(with(principals), Some((1, 0, 0)));
    assert_eq!(with(|target| target.mode = Mode::CopyImage), Some((0, 1, 0)));
    assert_eq!(with(|target| target.launch.keep = true), Some((0, 0, 1)));
    assert_eq!(with(|_| ()), None);
}

#[test]
fn a_copy_or_an_instance_that_stays_alone_stays_noted() {
    let source = source_in("eu-west-1");
    for (copies, instances) in [(false, true), (true, false)] {
        let asked = Asked { copies, instances, ..asked(&source) };
        let taken = take_asked(asked, &[note("a", Some(MINE))], &Need::default());
        let stays = noted(&taken, "a").unwrap();
        assert_eq!((stays.target.mode == Mode::CopyImage, stays.target.launch.keep), (!copies, !instances));
    }
}

/// Its keys go, and the principal stays for another image.
#[test]
fn a_principal_that_stays_alone_stays_noted() {
    let taken = take(&[note("a", Some(MINE))], &need(&[("b", "9")]));
    let stays = noted(&taken, "a").unwrap();
    assert_eq!((stays.target.principal_changes.len(), stays.target.source_changes), (1, SourceChanges::default()));
}

#[test]
fn grants_go_as_statements_do() {
    let mut by_grant = note("a", Some(MINE));
    let changes = &mut by_grant.gift.target.source_changes;
    changes.grant_key_arns = std::mem::take(&mut changes.key_arns);
    let taken = take(std::slice::from_ref(&by_grant), &Need::default());
    assert_eq!((taken.grant_key_arns, taken.key_arns), (BTreeSet::from([key("1")]), BTreeSet::new()));
    let kept = take(&[by_grant], &need(&[("b", "1")]));
    assert!(kept.grant_key_arns.is_empty());
    assert_eq!(noted(&kept, "a").unwrap().target.source_changes.grant_key_arns, [key("1")]);
}

/// A note of another execution for the same image, since then.
fn given_since(change: impl Fn(&mut Gift)) -> Note {
    let mut other = note("a", None);
    other.gift.execution = execution("other");
    other.noted_at = 200;
    other.gift.target.source_changes = SourceChanges::default();
    change(&mut other.gift);
    other
}

fn other_principal() -> PrincipalArn {
    PrincipalArn::parse(format!("arn:aws:iam::{}:role/other", account(0))).unwrap()
}

#[test]
fn what_another_execution_gave_another_principal_does_not_count() {
    let mine = note("a", Some(MINE));
    let of_another = given_since(|gift| gift.target.principal_changes[0].principal = other_principal());
    assert_eq!(principals(&take(&[mine.clone(), of_another], &Need::default())).len(), 1);
    // By an inline policy of its own, the same principal has keys, and not the managed policy.
    let inline = given_since(|gift| gift.target.principal_changes[0].key_arns = vec![key("1")]);
    assert_eq!(principals(&take(&[mine, inline], &Need::default())).len(), 1);
}

#[test]
fn of_inline_policies_the_same_key_of_the_same_principal_is_theirs() {
    let inline = |gift: &mut Gift| {
        gift.principal_access = PrincipalAccess::Inline;
        gift.target.principal_changes[0].key_arns = vec![key("1"), key("2")];
    };
    let mut mine = note("a", Some(MINE));
    inline(&mut mine.gift);
    let theirs = given_since(|gift| {
        inline(gift);
        gift.target.principal_changes[0].key_arns = vec![key("1")];
    });
    let taken = take(&[mine.clone(), theirs], &Need::default());
    assert_eq!(principals(&taken)[0].key_arns, [key("2")]);
    assert_eq!(noted(&taken, "a"), None, "what is theirs is in their note");
    let of_another = given_since(|gift| {
        inline(gift);
        gift.target.principal_changes[0].principal = other_principal();
    });
    assert_eq!(principals(&take(&[mine, of_another], &Need::default()))[0].key_arns, [key("1"), key("2")]);
}

#[test]
fn only_a_share_that_stands_of_another_image_here_that_nobody_can_launch_is_gone() {
    let source = source_in("eu-west-1");
    let revoke = Asked { with_gone_images: true, ..asked(&source) };
    let takes = |asked: Asked<'_>, note: Note, need: &Need| take_asked(asked, &[note], need).is_something();
    let gone = note("b", None);
    assert!(takes(revoke, gone.clone(), &Need::default()));
    assert!(!takes(asked(&source), gone.clone(), &Need::default()), "an undo takes what its own execution gave");
    assert!(!takes(revoke, Note { confirmed: false, ..gone.clone() }, &Need::default()), "it is under way");
    assert!(!takes(revoke, note("a", None), &Need::default()), "somebody else's share of the image at hand");
    let elsewhere = Gift { source: source_in("us-east-1"), ..gone.gift.clone() };
    assert!(!takes(revoke, Note { gift: elsewhere, ..gone.clone() }, &Need::default()));
    let there = Need { images: BTreeSet::from([image("b")]), ..Need::default() };
    assert!(!takes(revoke, gone.clone(), &there), "it can be launched");
    assert!(!takes(Asked { force: true, ..revoke }, gone, &unknown("eu-west-1")), "nobody can say");
}

/// Each with one kind of thing; how many fit is told by the longest that a take-back may be.
#[test]
fn everything_that_is_taken_or_told_takes_room() {
    let fitting = |change: &dyn Fn(&mut FromAccount)| {
        let with = |n| {
            let mut taken = FromAccount::new(account(n));
            change(&mut taken);
            taken
        };
        let taken: Vec<FromAccount> = (0..3_000).map(with).collect();
        let (take_back, fitting) = gather(&execution("a"), &source_in("eu-west-1"), &image("a"), &taken);
        assert!(bytes_of(&take_back) <= MOST_TO_TAKE, "{} bytes of {fitting}", bytes_of(&take_back));
        fitting
    };
    let keys = || (0..20).map(|n| key(&n.to_string())).collect::<BTreeSet<_>>();
    let snapshots = || (0..20).map(|n| SnapshotId::parse(format!("snap-{n:08x}")).unwrap()).collect();
    let long = "x".repeat(1_000);
    let one = note("a", Some(MINE));
    let one = &take(&[one], &need(&[("b", "1")]));
    let left = Left { account_id: None, state: String::new(), error: String::new(), cause: long.clone() };
    assert!((2_000..2_900).contains(&fitting(&|taken| taken.launch_permission = true)));
    assert!((130..150).contains(&fitting(&|taken| taken.snapshot_ids = snapshots())));
    assert!((65..80).contains(&fitting(&|taken| taken.key_arns = keys())));
    assert!((65..80).contains(&fitting(&|taken| taken.grant_key_arns = keys())));
    assert!((450..800).contains(&fitting(&|taken| taken.target.clone_from(&one.target))));
    assert!((90..120).contains(&fitting(&|taken| {
        taken.notes.clone_from(&one.notes);
        taken.notes[0].gift = Some(long.clone());
    })));
    assert!((900..1_500).contains(&fitting(&|taken| taken.kept.clone_from(&one.kept))));
    assert!((90..120).contains(&fitting(&|taken| taken.left = vec![left.clone()])));
}
