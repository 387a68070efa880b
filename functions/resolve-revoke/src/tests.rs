use super::*;

fn account(n: usize) -> AccountId {
    AccountId::parse(format!("2{n:011}")).unwrap()
}

/// The rounds that an execution makes of `named`, each with the targets that it looks at.
fn rounds(phase: Phase, named: usize, progress: &mut Progress) -> Vec<usize> {
    progress.enter(phase);
    let mut rounds = Vec::new();
    loop {
        let ahead = Ahead::of((0..named).map(account).collect(), progress);
        if !progress.has_room() {
            progress.remaining = ahead.accounts.len() + ahead.rest + ahead.beyond;
            return rounds;
        }
        rounds.push(ahead.accounts.len());
        progress.after = ahead.accounts.last().cloned().or(progress.after.take());
        progress.remaining = ahead.rest + ahead.beyond;
        progress.revoked.extend(ahead.accounts);
        if ahead.rest == 0 || !progress.has_room() {
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
