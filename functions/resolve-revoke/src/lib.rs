//! ResolveRevoke: decides what is taken back from the next targets. It changes nothing.
//!
//! What ami-share gave is what its notes say. Our statements in key policies and our grants are ours by
//! definition, noted or not. Keys and principals are shared between images: what another image needs that
//! the target can still launch stays, and stays noted.

mod source;
mod target;

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{AccountId, ExecutionName, KeyArn, SnapshotId},
    revoke::{
        Left, NoteChange, Phase, Progress, ROUND, ROUND_BYTES, RevokeRequest, RevokedAccount, RevokedTargets, Round,
        history,
    },
    share::{KeyChange, SnapshotChange, Source},
};
use ami_share_record::{Gift, Record};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use target::TakenBack;

pub const ACTIONS: Actions = Actions {
    source: &[
        source::DESCRIBE_IMAGES,
        source::DESCRIBE_SNAPSHOTS,
        source::DESCRIBE_IMAGE_ATTRIBUTE,
        source::GET_KEY_POLICY,
        source::LIST_GRANTS,
    ],
    target: &[],
    launcher: &[],
};

/// How many targets' notes are read at a time.
const CONCURRENCY: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    /// Of the execution, from Step Functions' context: its name, ARN and start time.
    pub name: String,
    pub id: String,
    pub start_time: String,
    /// The input of the execution, as it was given.
    pub request: Value,
    pub phase: Phase,
    /// As the last round left it; nothing before the first.
    pub progress: Option<Progress>,
    /// What the last round could not take back.
    pub left: Vec<Left>,
}

/// Reads the notes of the next targets, then the source account.
///
/// # Errors
/// [`Error::InvalidRequest`] before any account is asked; [`Error::ImageNotFound`] for an image that is not
/// there and that nothing is noted of: it may be another one that was meant; [`Error::NotYetVisible`] when an
/// image goes while it is looked at.
#[tracing::instrument(skip_all, fields(execution = %input.name))]
pub async fn resolve_revoke(hub: &Hub, input: Input) -> Result<Round, Error> {
    let execution = ExecutionName::unique(&input.name, &input.id, &input.start_time)
        .map_err(|rule| Error::invalid("name", &input.name, format!("must be {rule}")))?;
    let request = read_request(hub, &input.request)?;
    let mut progress = input.progress.unwrap_or_default();
    progress.add_left(input.left);
    progress.enter(if request.force { Phase::Revoke } else { input.phase });

    let record = Record::open(hub)?;
    let named = match &request.targets {
        RevokedTargets::All => record.accounts_given(&request.image_id).await?,
        RevokedTargets::Listed(accounts) => accounts.clone(),
    };
    let ahead = Ahead::of(named, &progress);
    let read: Vec<Vec<Gift>> = stream::iter(&ahead.accounts)
        .map(|account| record.gifts_of(account))
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let mut gifts: BTreeMap<AccountId, Vec<Gift>> = ahead.accounts.iter().cloned().zip(read).collect();
    gifts.values_mut().for_each(|gifts| gifts.retain(|gift| gift.source == request.source));

    let source = source::find(hub, &execution, &request, &gifts).await?;
    let noted = gifts.values().flatten().any(|gift| gift.image.image_id == request.image_id);
    if !source.image_found && !noted && progress.after.is_none() && ahead.rest + ahead.beyond == 0 {
        let Source { account_id, region } = request.source;
        return Err(Error::ImageNotFound { image: request.image_id, account: account_id, region: region.to_string() });
    }
    let taken: Vec<TakenBack> =
        gifts.into_iter().map(|(account, gifts)| target::take_back(&request, &source, account, gifts)).collect();
    Ok(round(execution, request, source.image_found, taken, ahead, progress))
}

fn read_request(hub: &Hub, request: &Value) -> Result<RevokeRequest, Error> {
    let region = hub.region().map_err(|rule| Error::invalid("region", "", rule))?;
    let default_source = Source { account_id: hub.settings.source_account.clone(), region };
    RevokeRequest::parse(request, &default_source).map_err(Error::InvalidRequest)
}

/// The targets that have not been looked at.
struct Ahead {
    /// Those of this round, in their order.
    accounts: Vec<AccountId>,
    /// How many follow.
    rest: usize,
    /// How many are left to the next execution.
    beyond: usize,
}

impl Ahead {
    fn of(named: Vec<AccountId>, progress: &Progress) -> Self {
        let named: BTreeSet<AccountId> = named.into_iter().collect();
        let ahead = named.into_iter().filter(|account| progress.after.as_ref().is_none_or(|after| account > after));
        let (mut accounts, beyond): (Vec<AccountId>, Vec<AccountId>) =
            ahead.partition(|account| progress.until.as_ref().is_none_or(|until| account <= until));
        let rest = accounts.len().saturating_sub(ROUND);
        accounts.truncate(ROUND);
        Self { accounts, rest, beyond: beyond.len() }
    }
}

/// All that is taken back in one round. What this execution has no room for is left to the next.
fn round(
    execution: ExecutionName,
    request: RevokeRequest,
    image_found: bool,
    mut taken: Vec<TakenBack>,
    mut ahead: Ahead,
    mut progress: Progress,
) -> Round {
    let fitting = fitting(&taken);
    ahead.rest += taken.len() - fitting;
    ahead.accounts.truncate(fitting);
    taken.truncate(fitting);
    let nothing = |progress: Progress| Round {
        execution: execution.clone(),
        source: request.source.clone(),
        image_id: request.image_id.clone(),
        image_found,
        force: request.force,
        accounts: vec![],
        launch_permissions: vec![],
        snapshot_changes: vec![],
        targets: vec![],
        key_changes: vec![],
        grant_changes: vec![],
        notes: vec![],
        more: false,
        progress,
    };
    let revoking = progress.phase == Phase::Revoke;
    let accounts: Vec<RevokedAccount> =
        taken.iter().filter(|taken| taken.is_something()).map(TakenBack::account).collect();
    let events = if revoking { events(&taken) } else { history::LOOK };
    if !progress.has_room(events) {
        progress.remaining = ahead.accounts.len() + ahead.rest + ahead.beyond;
        return nothing(progress);
    }
    progress.spent += events;
    progress.after = ahead.accounts.last().cloned().or(progress.after);
    progress.remaining = ahead.rest + ahead.beyond;
    progress.revoked.extend(accounts.iter().map(|account| account.account_id.clone()));
    let more = ahead.rest > 0 && progress.has_room(history::LOOK);
    if !revoking {
        return Round { accounts, more, ..nothing(progress) };
    }
    progress.add_kept(taken.iter().flat_map(|taken| taken.kept.clone()).collect());
    let those = |which: fn(&TakenBack) -> bool| {
        taken.iter().filter(move |taken| which(taken)).map(|taken| taken.account_id.clone())
    };
    progress.add_not_ours(those(|taken| taken.not_ours).collect());
    progress.add_stays(those(|taken| taken.stays).collect());
    let launch_permissions = those(|taken| taken.launch_permission).collect();
    Round {
        accounts,
        launch_permissions,
        snapshot_changes: by(&taken, |taken| &taken.snapshot_ids)
            .into_iter()
            .map(|(snapshot_id, account_ids): (SnapshotId, _)| SnapshotChange { snapshot_id, account_ids })
            .collect(),
        key_changes: key_changes(&taken, |taken| &taken.key_arns),
        grant_changes: key_changes(&taken, |taken| &taken.grant_key_arns),
        targets: taken.iter().flat_map(|taken| taken.targets.clone()).collect(),
        notes: notes(&taken),
        more,
        ..nothing(progress)
    }
}

/// How many of the targets, but one at least, fit into what states pass to each other.
fn fitting(taken: &[TakenBack]) -> usize {
    let mut bytes = 0;
    let fits = |taken: &&TakenBack| {
        bytes += bytes_of(&taken.targets) + bytes_of(&taken.notes);
        bytes <= ROUND_BYTES
    };
    taken.iter().take_while(fits).count().max(taken.len().min(1))
}

/// The notes that one round can rewrite; the others stay as they are until the image is revoked again.
fn notes(taken: &[TakenBack]) -> Vec<NoteChange> {
    let mut bytes = 0;
    let fits = |note: &&NoteChange| {
        bytes += bytes_of(note);
        bytes <= ROUND_BYTES
    };
    taken.iter().flat_map(|taken| &taken.notes).take(history::NOTES).take_while(fits).cloned().collect()
}

fn bytes_of(value: &impl Serialize) -> usize {
    json!(value).to_string().len()
}

/// The accounts that lose each of what `of` names.
fn by<T: Ord + Clone>(taken: &[TakenBack], of: fn(&TakenBack) -> &BTreeSet<T>) -> BTreeMap<T, Vec<AccountId>> {
    let mut accounts: BTreeMap<T, Vec<AccountId>> = BTreeMap::new();
    for taken in taken {
        for thing in of(taken) {
            accounts.entry(thing.clone()).or_default().push(taken.account_id.clone());
        }
    }
    accounts
}

fn key_changes(taken: &[TakenBack], of: fn(&TakenBack) -> &BTreeSet<KeyArn>) -> Vec<KeyChange> {
    by(taken, of).into_iter().map(|(key_arn, account_ids)| KeyChange { key_arn, account_ids }).collect()
}

/// Of a round that takes this back.
fn events(taken: &[TakenBack]) -> u64 {
    let items = taken.iter().flat_map(|taken| &taken.targets);
    let undos = items.clone().map(|item| {
        let made =
            [&item.copies_of, &item.instances_of].into_iter().filter(|executions| !executions.is_empty()).count();
        made + usize::from(!item.target.principal_changes.is_empty())
    });
    let notes = taken.iter().map(|taken| taken.notes.len()).sum::<usize>().min(history::NOTES);
    if notes == 0 && !taken.iter().any(TakenBack::is_something) {
        return history::LOOK;
    }
    history::of_round(items.count(), undos.sum(), notes)
}

#[cfg(test)]
mod tests;
