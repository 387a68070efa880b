//! What of a target's notes may be taken back. ResolveUndo and ResolveRevoke mark the notes whose shares are to go, read
//! all notes of the target, and ask here what of them nobody needs.
//!
//! Keys and principals are shared between images, Regions and executions, and IAM in a target is global. So what a marked
//! note names stays where something that is not marked needs it, and stays noted there; whoever takes the last of what
//! needs it takes it along. All marks are made before any look, so that of any number at once the last to look takes it.

#![warn(missing_docs)]

mod account;
mod needs;

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    ids::{AccountId, ExecutionName, ImageId, KeyArn, SnapshotId},
    share::{KeyChange, SnapshotChange, Source},
    take_back::{MOST_TO_TAKE, TakeBack, bytes_of},
};

#[cfg(test)]
mod tests;

pub use account::{Asked, FromAccount, from_account};
pub use needs::{ACTIONS, Asking, Need, needs};

/// All that is taken back at once from the first accounts of `taken`, which are as many as fit into one take-back, and
/// one at least; and how many they are.
pub fn gather(execution: &ExecutionName, source: &Source, image: &ImageId, taken: &[FromAccount]) -> (TakeBack, usize) {
    let mut bytes = 0;
    let fits = |taken: &&FromAccount| {
        bytes += taken.bytes();
        bytes <= MOST_TO_TAKE
    };
    let fitting = taken.iter().take_while(fits).count().max(taken.len().min(1));
    let taken = &taken[..fitting];
    let those = |which: fn(&FromAccount) -> bool| {
        taken.iter().filter(move |taken| which(taken)).map(|taken| taken.account_id.clone()).collect()
    };
    let take_back = TakeBack {
        execution: execution.clone(),
        source: source.clone(),
        image_id: image.clone(),
        note: None,
        launch_permissions: those(|taken| taken.launch_permission),
        snapshot_changes: by(taken, |taken| &taken.snapshot_ids)
            .into_iter()
            .map(|(snapshot_id, account_ids): (SnapshotId, _)| SnapshotChange { snapshot_id, account_ids })
            .collect(),
        targets: taken.iter().filter_map(|taken| taken.target.clone()).collect(),
        grant_changes: key_changes(taken, |taken| &taken.grant_key_arns),
        revoke_foreign_grants: false,
        key_changes: key_changes(taken, |taken| &taken.key_arns),
        notes: taken.iter().flat_map(|taken| taken.notes.clone()).collect(),
        kept: taken.iter().filter_map(|taken| taken.kept.clone()).collect(),
        left: taken.iter().flat_map(|taken| taken.left.clone()).collect(),
    };
    (take_back, fitting)
}

/// The accounts that lose each of what `of` names.
fn by<T: Ord + Clone>(taken: &[FromAccount], of: fn(&FromAccount) -> &BTreeSet<T>) -> BTreeMap<T, Vec<AccountId>> {
    let mut accounts: BTreeMap<T, Vec<AccountId>> = BTreeMap::new();
    for taken in taken {
        for thing in of(taken) {
            accounts.entry(thing.clone()).or_default().push(taken.account_id.clone());
        }
    }
    accounts
}

fn key_changes(taken: &[FromAccount], of: fn(&FromAccount) -> &BTreeSet<KeyArn>) -> Vec<KeyChange> {
    by(taken, of).into_iter().map(|(key_arn, account_ids)| KeyChange { key_arn, account_ids, repair: None }).collect()
}

impl FromAccount {
    fn bytes(&self) -> usize {
        let ids = 40 * (self.snapshot_ids.len() + 2 * self.key_arns.len() + 2 * self.grant_key_arns.len() + 1);
        ids + bytes_of(&self.target) + bytes_of(&self.notes) + bytes_of(&self.kept) + bytes_of(&self.left)
    }
}
