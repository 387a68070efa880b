//! ResolveRevoke: decides what is taken back from the next targets. It changes nothing.
//!
//! What ami-share gave is what its notes say. Our statements in key policies and our grants are ours by
//! definition, noted or not. Keys and principals are shared between images: what another image needs that
//! the target can still launch stays, and stays noted.

mod source;

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{AccountId, ExecutionName},
    mark::Mark,
    revoke::{Phase, Progress, ROUND, RevokeRequest, RevokedAccount, RevokedTargets, Round},
    share::Source,
    take_back::TakenBack,
};
use ami_share_record::{Note, Record};
use ami_share_take_back::{Asked, Asking, FromAccount, Need, from_account, gather, needs};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::Value;

use source::SourceState;

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
    /// What the last take-back has come to.
    pub last: Option<TakenBack>,
}

/// Marks the notes of the image, where something is to be taken back now; reads all notes of the next targets, then the
/// source account, and what the targets need in every Region that their notes name.
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
    progress.add_last(input.last);
    progress.enter(if request.force { Phase::Revoke } else { input.phase });

    let record = &Record::open(hub)?;
    let named = match &request.targets {
        RevokedTargets::All => record.accounts_given(&request.image_id).await?,
        RevokedTargets::Listed(accounts) => accounts.clone(),
    };
    let ahead = Ahead::of(named, &progress);
    if !progress.has_room() {
        progress.remaining = ahead.accounts.len() + ahead.rest + ahead.beyond;
        return Ok(round(&execution, &request, false, &[], false, progress));
    }
    let now = hub.now_ms();
    let mark = &Mark::new(&execution, now);
    let revoking = progress.phase == Phase::Revoke;
    let request_at_hand = &request;
    let read: Vec<Vec<Note>> = stream::iter(&ahead.accounts)
        .map(|account| async move {
            let mut notes = record.notes_of(account).await?;
            let of_it = |note: &&mut Note| is_of(request_at_hand, note);
            if !revoking {
                // As they would be.
                notes.iter_mut().filter(of_it).for_each(|note| note.going = Some(mark.clone()));
                return Ok(notes);
            }
            if !notes.iter().any(|note| is_of(request_at_hand, note)) {
                return Ok(notes);
            }
            for note in notes.iter().filter(|note| is_of(request_at_hand, note)) {
                record.mark(account, note.image(), &note.gift.execution, mark).await?;
            }
            record.notes_of(account).await
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let notes: BTreeMap<AccountId, Vec<Note>> = ahead.accounts.iter().cloned().zip(read).collect();

    let source = &request.source;
    let asking = Asking {
        hub,
        execution: &execution,
        actions: ACTIONS,
        source,
        image: &request.image_id,
        state: "ResolveRevoke",
        patient: true,
    };
    let needs = needs(&asking, &notes).await?;
    let state = source::find(hub, &execution, &request, &notes, &needs).await?;
    let noted = notes.values().flatten().any(|note| is_of(&request, note));
    if !state.image_found && !noted && progress.after.is_none() && ahead.rest + ahead.beyond == 0 {
        let Source { account_id, region } = request.source;
        return Err(Error::ImageNotFound { image: request.image_id, account: account_id, region: region.to_string() });
    }
    let asked = Asked {
        source,
        image: &request.image_id,
        mark,
        begun: now,
        copies: request.copies,
        instances: request.instances,
        with_gone_images: true,
        force: request.force,
    };
    let taken: Vec<FromAccount> =
        notes.iter().map(|(account, notes)| take(asked, &state, account, notes, &needs)).collect();
    let not_ours = |account: &AccountId| {
        state.permitted.contains(account)
            && !notes[account]
                .iter()
                .any(|note| is_of(&request, note) && note.gift.target.source_changes.launch_permission)
    };
    let (_, fitting) = gather(&execution, source, &request.image_id, &taken);
    let taken = &taken[..fitting];
    progress.after = taken.last().map(|taken| taken.account_id.clone()).or(progress.after);
    progress.remaining = ahead.accounts.len() - fitting + ahead.rest + ahead.beyond;
    let something = taken.iter().filter(|taken| taken.is_something());
    progress.revoked.extend(something.map(|taken| taken.account_id.clone()));
    if revoking {
        let accounts = || taken.iter().map(|taken| taken.account_id.clone());
        progress.add_not_ours(accounts().filter(not_ours).collect());
        progress.add_stays(taken.iter().filter(|taken| taken.stays).map(|taken| taken.account_id.clone()).collect());
    }
    let more = ahead.accounts.len() - fitting + ahead.rest > 0 && progress.has_room();
    Ok(round(&execution, &request, state.image_found, taken, more, progress))
}

fn read_request(hub: &Hub, request: &Value) -> Result<RevokeRequest, Error> {
    let region = hub.region().map_err(|rule| Error::invalid("region", "", rule))?;
    let default_source = Source { account_id: hub.settings.source_account.clone(), region };
    RevokeRequest::parse(request, &default_source).map_err(Error::InvalidRequest)
}

/// Whether the note is one of those whose shares are to go.
fn is_of(request: &RevokeRequest, note: &Note) -> bool {
    *note.image() == request.image_id && note.gift.source == request.source
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

/// What the notes of one target say, as far as the source account still has it, and what names it there without a note.
fn take(
    asked: Asked<'_>,
    state: &SourceState,
    account: &AccountId,
    notes: &[Note],
    needs: &BTreeMap<AccountId, Need>,
) -> FromAccount {
    let nothing = Need::default();
    let need = needs.get(account).unwrap_or(&nothing);
    let mut taken = from_account(asked, account, notes, need);
    taken.launch_permission &= state.image_found;
    taken.snapshot_ids.retain(|snapshot| state.snapshots.contains(snapshot));
    taken.with_unnoted(asked, need, state.statements(account), state.grants(account));
    for keys in [&mut taken.key_arns, &mut taken.grant_key_arns] {
        keys.retain(|key| !state.gone_keys.contains(key));
    }
    taken
}

fn round(
    execution: &ExecutionName,
    request: &RevokeRequest,
    image_found: bool,
    taken: &[FromAccount],
    more: bool,
    progress: Progress,
) -> Round {
    let revoking = progress.phase == Phase::Revoke;
    let accounts = taken.iter().filter(|taken| taken.is_something()).map(revoked_account).collect();
    let taken = if revoking { taken } else { &[] };
    let (take_back, _) = gather(execution, &request.source, &request.image_id, taken);
    Round {
        execution: execution.clone(),
        source: request.source.clone(),
        image_id: request.image_id.clone(),
        image_found,
        force: request.force,
        accounts,
        take_back,
        more,
        progress,
    }
}

fn revoked_account(taken: &FromAccount) -> RevokedAccount {
    let target = taken.target.iter();
    RevokedAccount {
        account_id: taken.account_id.clone(),
        copies_of: target.clone().flat_map(|target| &target.copies).map(|copy| copy.execution.clone()).collect(),
        instances_of: target.flat_map(|target| &target.instances).map(|made| made.execution.clone()).collect(),
    }
}

#[cfg(test)]
mod tests;
