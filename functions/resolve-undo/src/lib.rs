//! ResolveUndo: decides what is taken back of what an execution gave. It marks the execution's notes, and changes
//! nothing in any other account.
//!
//! What the notes say is what was given. Of it stays what others have come to need, as the library `take-back` finds out.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, Hub,
    hub::{Actions, millis},
    ids::{AccountId, ExecutionName, ImageId},
    mark::Mark,
    share::{KeyChange, Mode, Resolution, SourceChanges, Target},
    take_back::{FromTarget, MadeCopy, MadeInstance, TakeBack, TakenBack},
};
use ami_share_record::{Gift, Note, Noted, Record, Stays};
use ami_share_take_back::{Asked, Asking, FromAccount, Need, from_account, gather, needs};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions { source_reader: &ami_share_take_back::ACTIONS, ..Actions::NONE };

/// How many targets' notes are read at a time.
const CONCURRENCY: usize = 16;

/// The name of the state, of what it leaves.
const STATE: &str = "ResolveUndo";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// The ARN of the execution whose share is taken back.
    pub execution_arn: String,
    /// When it began, in ISO 8601, from Step Functions' context.
    pub begun: String,
    pub resolution: Resolution,
    /// The targets that failed; nothing where all are taken back.
    pub failed: Option<Vec<AccountId>>,
    /// What ended the share; nothing where that is not known, or was at a target.
    pub failure: Option<Failure>,
    /// When this state was entered, in ISO 8601.
    pub entered: String,
    /// The last target that an earlier take-back of this execution has dealt with.
    pub after: Option<AccountId>,
    pub so_far: Option<TakenBack>,
    /// The answer of the last take-back.
    pub last: Option<TakenBack>,
}

/// A state that failed.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    pub state: String,
    pub error: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub take_back: TakeBack,
    /// Whether more targets follow.
    pub more: bool,
    pub after: Option<AccountId>,
    /// What earlier take-backs of this execution have come to.
    pub so_far: TakenBack,
}

/// Marks the notes of the targets first, of as many as fit into one take-back; then reads all their notes, and looks in
/// every Region that they name what other images need.
///
/// What cannot be asked is asked again for the time that a read may be out of date; then it is not known, and what it
/// might be needed for stays, and is reported.
///
/// # Errors
/// What passes by itself, in that time.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn resolve_undo(hub: &Hub, input: Input) -> Result<Output, Error> {
    let patient = hub.since("entered", &input.entered)? <= hub.settings.stale_reads / 2;
    let Input { execution, resolution, failure, .. } = &input;
    let Resolution { source, image, .. } = resolution;
    let record = &Record::open(hub)?;
    let ahead = ahead(&input);
    let mark = &Mark::new(execution, hub.now_ms());

    let age = hub.since("begun", &input.begun)?;
    let begun = hub.now().checked_sub(age).map_or(0, millis);
    let mut noted: BTreeMap<AccountId, Noted> = BTreeMap::new();
    let mut unread = BTreeMap::new();
    for (target, read) in marked(record, execution, &image.image_id, mark, &ahead).await {
        match read {
            Ok(Noted { mut notes, went }) => {
                if !notes.iter().any(|note| note.going.as_ref() == Some(mark)) {
                    notes.push(unnoted(resolution, target, mark, begun));
                }
                let notes = notes.into_iter().map(|note| given(note, target, mark, failure.as_ref())).collect();
                noted.insert(target.account_id.clone(), Noted { notes, went });
            }
            Err(error) if patient && error.passes() => return Err(error),
            Err(error) => {
                unread.insert(target.account_id.clone(), error);
            }
        }
    }
    let mut losing = noted.clone();
    losing.retain(|_, noted| loses_access(&noted.notes));
    let asking = Asking { hub, execution, actions: ACTIONS, source, image: &image.image_id, state: STATE, patient };
    let needs: BTreeMap<AccountId, Need> = needs(&asking, &losing).await?;

    let asked = asked(resolution, mark, begun);
    let taken: Vec<FromAccount> = ahead
        .iter()
        .map(|target| {
            let account = &target.account_id;
            let need = needs.get(account).cloned().unwrap_or_default();
            let mut taken = match unread.get(account) {
                None => from_account(asked, account, &noted[account].notes, &need),
                Some(error) => FromAccount::unread(account.clone(), STATE, error),
            };
            if reached(failure.as_ref()) == Reached::Targets {
                with_what_was_made(&mut taken, &input, target, asked.begun);
            }
            if let Some(kept) = &taken.kept {
                tracing::info!(%account, needed_by = %kept.image_id, "access is kept");
            }
            taken
        })
        .collect();
    let (mut take_back, fitting) = gather(execution, source, &image.image_id, &taken);
    let stays = |target: &Target| input.failed.as_ref().is_some_and(|failed| !failed.contains(&target.account_id));
    let everything = !resolution.targets.iter().any(stays) && reached(failure.as_ref()) >= Reached::Keys;
    if everything && fitting == taken.len() {
        put_back_repairs(&mut take_back, resolution);
    }
    take_back.note = Some(input.execution_arn);
    let mut so_far = input.so_far.unwrap_or_default();
    so_far.add(input.last.unwrap_or_default());
    let after = taken[..fitting].last().map(|taken| taken.account_id.clone());
    Ok(Output { take_back, more: fitting < taken.len(), after, so_far })
}

/// Where everything goes, statements of ours are again as they were. The last take-back does it: what the ones before it
/// have not taken relies on them.
fn put_back_repairs(take_back: &mut TakeBack, resolution: &Resolution) {
    for repaired in resolution.key_changes.iter().filter(|change| change.repair.is_some()) {
        match take_back.key_changes.iter_mut().find(|change| change.key_arn == repaired.key_arn) {
            Some(change) => change.repair.clone_from(&repaired.repair),
            None => take_back.key_changes.push(KeyChange { account_ids: vec![], ..repaired.clone() }),
        }
    }
}

/// Each target with all its notes, after that of the execution was marked.
async fn marked<'t>(
    record: &Record,
    execution: &ExecutionName,
    image: &ImageId,
    mark: &Mark,
    targets: &[&'t Target],
) -> Vec<(&'t Target, Result<Noted, Error>)> {
    stream::iter(targets)
        .map(|target| async move {
            let account = &target.account_id;
            let notes = match record.mark(account, image, execution, mark).await {
                Ok(()) => record.notes_of(account).await,
                Err(error) => Err(error),
            };
            (*target, notes)
        })
        .buffered(CONCURRENCY)
        .collect()
        .await
}

/// What the execution gave and made, and nothing else.
fn asked<'a>(resolution: &'a Resolution, mark: &'a Mark, begun: i64) -> Asked<'a> {
    Asked {
        source: &resolution.source,
        image: &resolution.image.image_id,
        mark,
        begun,
        copies: true,
        instances: true,
        with_gone_images: false,
        force: false,
    }
}

/// The targets that have not been dealt with, in the order of their accounts.
fn ahead(input: &Input) -> Vec<&Target> {
    let is_asked = |target: &&Target| input.failed.as_ref().is_none_or(|failed| failed.contains(&target.account_id));
    let is_ahead = |target: &&Target| input.after.as_ref().is_none_or(|after| target.account_id > *after);
    let mut ahead: Vec<&Target> = input.resolution.targets.iter().filter(is_asked).filter(is_ahead).collect();
    ahead.sort_by(|one, other| one.account_id.cmp(&other.account_id));
    ahead
}

/// How far the share has come: the state that failed may have acted, and none after it has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reached {
    Notes,
    Keys,
    Snapshots,
    Image,
    Targets,
}

fn reached(failure: Option<&Failure>) -> Reached {
    match failure.map(|failure| failure.state.as_str()) {
        Some("NoteTargets") => Reached::Notes,
        Some("ShareKey" | "GrantKeys") => Reached::Keys,
        Some("ShareSnapshots") => Reached::Snapshots,
        Some("ShareImage") => Reached::Image,
        _ => Reached::Targets,
    }
}

/// As it was noted, where the note is gone: an execution that was taken back and redriven may have given it again.
fn unnoted(resolution: &Resolution, target: &Target, mark: &Mark, begun: i64) -> Note {
    let Resolution { execution, source, image, principal_access, .. } = resolution.clone();
    let gift = Gift { execution, source, image, principal_access, target: target.clone() };
    let going = Some(mark.clone());
    Note { gift, noted_at: begun, going, goes_before: false, confirmed: false, stays: Stays::default(), proof: None }
}

/// The note of this execution, without what it has not come to. What an earlier take-back has taken from it counts again:
/// an execution that was redriven since may have given it again.
fn given(mut note: Note, target: &Target, mark: &Mark, failure: Option<&Failure>) -> Note {
    if note.going.as_ref() != Some(mark) {
        return note;
    }
    note.gift.target = target.clone();
    let reached = reached(failure);
    let Target { source_changes, principal_changes, mode, launch, .. } = &mut note.gift.target;
    let SourceChanges { launch_permission, snapshot_ids, key_arns, grant_key_arns } = source_changes;
    if reached < Reached::Keys {
        key_arns.clear();
        grant_key_arns.clear();
    }
    if reached < Reached::Snapshots {
        snapshot_ids.clear();
    }
    if reached < Reached::Image {
        *launch_permission = false;
    }
    if reached < Reached::Targets {
        principal_changes.clear();
        *mode = Mode::None;
    }
    // Its instance is terminated whatever was to become of it.
    launch.keep = false;
    note
}

fn loses_access(notes: &[Note]) -> bool {
    notes.iter().filter(|note| note.going.is_some()).any(|note| {
        let SourceChanges { key_arns, grant_key_arns, .. } = &note.gift.target.source_changes;
        !(key_arns.is_empty() && grant_key_arns.is_empty() && note.gift.target.principal_changes.is_empty())
    })
}

/// What the execution made in the target goes whatever its note says: it may be gone.
fn with_what_was_made(taken: &mut FromAccount, input: &Input, target: &Target, begun: i64) {
    let (execution, image) = (&input.execution, &input.resolution.image);
    let account_id = target.account_id.clone();
    let made = taken.target.get_or_insert_with(|| FromTarget {
        account_id,
        instances: vec![],
        copies: vec![],
        principal_changes: vec![],
    });
    let known: BTreeSet<_> = made.instances.iter().map(|instance| instance.execution.clone()).collect();
    if !known.contains(execution) {
        made.instances.push(MadeInstance { execution: execution.clone(), instance_id: None });
    }
    let copies = target.mode == Mode::CopyImage && target.copy_id.is_none();
    if copies && !made.copies.iter().any(|copy| copy.execution == *execution) {
        made.copies.push(MadeCopy {
            execution: execution.clone(),
            of: image.image_id.clone(),
            noted_at: begun,
            copy_id: None,
        });
    }
}

#[cfg(test)]
mod tests;
