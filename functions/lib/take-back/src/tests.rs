use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
};

use ami_share_core::{
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
    Note { gift, noted_at: 100, going, goes_before: false, confirmed: true, stays: Stays::default() }
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
