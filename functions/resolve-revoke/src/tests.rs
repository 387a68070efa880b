use ami_share_core::{
    ids::{ImageId, PrincipalArn, Region},
    share::{Image, Kept, Launch, Mode, PrincipalAccess, PrincipalChange, SourceChanges, Target, Volume},
};
use ami_share_launchable::Launchable;

use super::*;
use crate::source::SourceState;

fn account(n: usize) -> AccountId {
    AccountId::parse(format!("2{n:011}")).unwrap()
}

fn image(id: &str) -> ImageId {
    ImageId::parse(format!("ami-0000000{id}")).unwrap()
}

fn key(id: &str) -> KeyArn {
    KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/{id}")).unwrap()
}

fn source() -> Source {
    Source { account_id: AccountId::parse("111111111111").unwrap(), region: Region::parse("eu-west-1").unwrap() }
}

fn principal() -> PrincipalArn {
    PrincipalArn::parse(format!("arn:aws:iam::{}:role/app", account(0))).unwrap()
}

fn request() -> RevokeRequest {
    RevokeRequest {
        image_id: image("a"),
        source: source(),
        targets: RevokedTargets::All,
        copies: false,
        instances: false,
        force: false,
    }
}

/// Everything that an execution may give for an image whose one volume is under key 1.
fn gift(of: &str) -> Gift {
    let snapshot = SnapshotId::parse("snap-0123abcd").unwrap();
    Gift {
        execution: ExecutionName::parse(format!("of-{of}")).unwrap(),
        source: source(),
        image: Image {
            image_id: image(of),
            name: "web".to_owned(),
            architecture: "x86_64".to_owned(),
            volumes: vec![Volume {
                device_name: "/dev/xvda".to_owned(),
                snapshot_id: snapshot.clone(),
                key_arn: Some(key("1")),
            }],
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
    }
}

/// The source account, where the target can launch `others` besides, each with the key under it.
fn state(others: &[(&str, &str)]) -> SourceState {
    let launchable = Launchable {
        images: others.iter().map(|(id, _)| image(id)).collect(),
        keys: others.iter().map(|(id, under)| (key(under), image(id))).collect(),
    };
    SourceState {
        image_found: true,
        snapshots: BTreeSet::from([SnapshotId::parse("snap-0123abcd").unwrap()]),
        permitted: BTreeSet::from([account(0)]),
        others: BTreeMap::from([(account(0), launchable)]),
        ..SourceState::default()
    }
}

fn take(request: &RevokeRequest, state: &SourceState, gifts: Vec<Gift>) -> TakenBack {
    target::take_back(request, state, account(0), gifts)
}

/// What a note says from now on; nothing where it goes.
fn noted(taken: &TakenBack, of: &str) -> Option<Gift> {
    let note = taken.notes.iter().find(|note| note.image_id == image(of)).expect("the note does not change");
    note.gift.as_ref().map(|gift| serde_json::from_str(gift).unwrap())
}

#[test]
fn what_is_noted_goes_and_what_nobody_asked_to_remove_stays_noted() {
    let taken = take(&request(), &state(&[]), vec![gift("a")]);
    assert!(taken.launch_permission && taken.is_something() && taken.stays && !taken.not_ours);
    assert_eq!((taken.snapshot_ids.len(), &taken.key_arns), (1, &BTreeSet::from([key("1")])));
    assert_eq!(taken.targets[0].target.principal_changes, gift("a").target.principal_changes);
    assert_eq!((&taken.targets[0].copies_of, &taken.targets[0].instances_of), (&vec![], &vec![]));
    let stays = noted(&taken, "a").unwrap();
    assert_eq!(stays.target.source_changes, SourceChanges::default());
    assert_eq!((stays.target.mode, stays.target.launch.keep), (Mode::CopyImage, true));
    // Read again, it says nothing that could be taken.
    let again = take(&request(), &state(&[]), vec![stays]);
    assert!(!again.is_something() && again.notes.is_empty() && again.not_ours);
}

#[test]
fn with_copies_and_instances_everything_goes_and_nothing_stays_noted() {
    let request = RevokeRequest { copies: true, instances: true, ..request() };
    let taken = take(&request, &state(&[]), vec![gift("a")]);
    let by = vec![ExecutionName::parse("of-a").unwrap()];
    assert_eq!((&taken.targets[0].copies_of, &taken.targets[0].instances_of), (&by, &by));
    assert_eq!((noted(&taken, "a"), taken.stays), (None, false));
    assert_eq!(taken.account().copies_of, by);
}

#[test]
fn a_copy_that_an_execution_found_is_not_its_own() {
    let request = RevokeRequest { copies: true, ..request() };
    let mut found = gift("a");
    found.target.copy_id = Some(image("c"));
    found.target.launch.keep = false;
    let taken = take(&request, &state(&[]), vec![found]);
    assert!(taken.targets.iter().all(|target| target.copies_of.is_empty()));
    assert_eq!(noted(&taken, "a"), None);
}

#[test]
fn what_another_image_needs_stays_and_stays_noted() {
    let taken = take(&request(), &state(&[("b", "1")]), vec![gift("a"), gift("b")]);
    assert!(taken.launch_permission && taken.key_arns.is_empty() && taken.targets.is_empty());
    assert_eq!(taken.kept, Some(Kept { account_id: account(0), image_id: image("b") }));
    let stays = noted(&taken, "a").unwrap();
    assert_eq!(stays.target.source_changes.key_arns, [key("1")]);
    assert_eq!(stays.target.principal_changes, gift("a").target.principal_changes);
    // The other image's share is not touched.
    assert!(taken.notes.iter().all(|note| note.image_id == image("a")));
}

#[test]
fn the_managed_policy_stays_for_any_key_and_an_inline_one_for_its_own() {
    let taken = take(&request(), &state(&[("b", "9")]), vec![gift("a")]);
    assert_eq!((taken.key_arns.len(), taken.targets.len()), (1, 0));
    let mut inline = gift("a");
    inline.principal_access = PrincipalAccess::Inline;
    inline.target.principal_changes[0].key_arns = vec![key("1"), key("9")];
    let taken = take(&request(), &state(&[("b", "9")]), vec![inline]);
    assert_eq!(taken.targets[0].principal_access, PrincipalAccess::Inline);
    assert_eq!(taken.targets[0].target.principal_changes[0].key_arns, [key("1")]);
    assert_eq!(noted(&taken, "a").unwrap().target.principal_changes[0].key_arns, [key("9")]);
}

/// The share of the other image was revoked before, and left what this one needed.
#[test]
fn what_stayed_for_this_image_goes_with_it() {
    let mut rest = gift("b");
    rest.target.source_changes.launch_permission = false;
    rest.target.source_changes.snapshot_ids.clear();
    rest.target.mode = Mode::None;
    rest.target.launch.keep = false;
    let taken = take(&request(), &state(&[]), vec![rest]);
    assert!(!taken.launch_permission);
    assert_eq!((taken.key_arns.len(), taken.targets.len()), (1, 1));
    assert_eq!(noted(&taken, "b"), None);
}

#[test]
fn statements_and_grants_of_ours_go_whatever_is_noted() {
    let mut state = state(&[("b", "2")]);
    state.permitted.clear();
    state.statements = BTreeSet::from([(account(0), key("1")), (account(0), key("2")), (account(1), key("3"))]);
    state.grants = BTreeSet::from([(account(0), key("4")), (account(0), key("5"))]);
    state.gone_keys = BTreeSet::from([key("5")]);
    let taken = take(&request(), &state, vec![]);
    assert_eq!((taken.key_arns, taken.grant_key_arns), (BTreeSet::from([key("1")]), BTreeSet::from([key("4")])));
    assert_eq!(taken.kept, Some(Kept { account_id: account(0), image_id: image("b") }));
}

#[test]
fn an_image_that_is_gone_has_no_permissions_to_take() {
    let state = SourceState { image_found: false, snapshots: BTreeSet::new(), ..state(&[]) };
    let taken = take(&request(), &state, vec![gift("a")]);
    assert!(!taken.launch_permission && taken.snapshot_ids.is_empty() && taken.is_something());
}

/// The rounds that an execution makes of `named`, each with the targets that it looks at.
fn rounds(phase: Phase, named: usize, progress: &mut Progress) -> Vec<usize> {
    progress.enter(phase);
    let mut rounds = Vec::new();
    loop {
        let ahead = Ahead::of((0..named).map(account).collect(), progress);
        let taken = |account_id: &AccountId| TakenBack {
            account_id: account_id.clone(),
            ..take(&request(), &state(&[]), vec![gift("a")])
        };
        let taken: Vec<TakenBack> = ahead.accounts.iter().map(taken).collect();
        let round = round(ExecutionName::parse("e").unwrap(), request(), true, taken, ahead, progress.clone());
        rounds.push(round.accounts.len());
        *progress = round.progress;
        if !round.more {
            return rounds;
        }
    }
}

#[test]
fn targets_are_gone_through_in_rounds_and_once_more_to_take_back() {
    let mut progress = Progress::default();
    assert_eq!(rounds(Phase::Check, 120, &mut progress), [50, 50, 20]);
    assert_eq!(progress.remaining, 0);
    assert_eq!(rounds(Phase::Revoke, 120, &mut progress), [50, 50, 20]);
    assert_eq!((progress.remaining, progress.revoked.len()), (0, 120));
}

/// Whoever was not asked loses nothing in the same execution.
#[test]
fn what_one_execution_has_no_room_for_remains() {
    let mut progress = Progress::default();
    assert_eq!(rounds(Phase::Check, 2_000, &mut progress).iter().sum::<usize>(), 500);
    assert_eq!(progress.remaining, 1_500);
    // It may be named anew meanwhile, and another one before it.
    let revoked = rounds(Phase::Revoke, 2_100, &mut progress).iter().sum::<usize>();
    assert_eq!((revoked, progress.remaining), (500, 1_600));
    assert_eq!(progress.until, Some(account(499)));
    let mut forced = Progress::default();
    assert_eq!(rounds(Phase::Revoke, 2_000, &mut forced).iter().sum::<usize>(), 500);
    assert_eq!(forced.remaining, 1_500);
}
