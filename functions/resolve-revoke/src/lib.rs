//! ResolveRevoke: decides what is taken back of the next shares. It changes nothing but marks of notes.
//!
//! What ami-share gave is what its notes say. Our statements in key policies and our grants are ours by
//! definition, noted or not. Keys and principals are shared between images: what another image needs that
//! the target can still launch stays, and stays noted.

mod notes;
mod shares;
mod source;
mod target;
mod unnoted;

use std::collections::BTreeMap;

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{AccountId, ExecutionName},
    mark::Mark,
    revoke::{Phase, Progress, RevokeRequest, RevokedAccount, RevokedImages, Round, ShareId, SourceImage},
    share::Source,
    take_back::TakenBack,
};
use ami_share_record::{Note, Record};
use ami_share_take_back::{Asked, Asking, FromAccount, Need, from_account, gather, needs};
use serde::Deserialize;
use serde_json::Value;

use notes::AtHand;
use shares::{Ahead, Shares, is_of};
use source::SourceState;
use unnoted::STATE;

pub const ACTIONS: Actions = Actions {
    source_reader: &[
        source::DESCRIBE_IMAGES,
        source::DESCRIBE_SNAPSHOTS,
        source::DESCRIBE_IMAGE_ATTRIBUTE,
        source::GET_KEY_POLICY,
        source::LIST_GRANTS,
    ],
    target: &[target::LIST_ENTITIES],
    ..Actions::NONE
};

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

/// Marks the notes of the next shares of one image, where something is to be taken back now; reads all notes of their
/// targets, then the source account, and what the targets need in every Region that their notes name.
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
    let looks_first = !request.force || request.is_planned();
    progress.enter(if looks_first { input.phase } else { Phase::Revoke });

    let record = &Record::open(hub)?;
    let Shares { ids, strangers, mut left } = shares::all(record, &request, STATE).await?;
    if progress.phase == Phase::Revoke && progress.rounds == 0 {
        left.extend(unnoted::of_no_share(hub, &execution, &strangers).await?);
        progress.done.add(TakenBack { left, ..TakenBack::default() });
    }
    let ahead = Ahead::of(ids, &progress);
    let image = match &request.images {
        RevokedImages::One(image) => Some(image.clone()),
        RevokedImages::All(_) => ahead.image.clone(),
    };
    let Some(image) = image.filter(|_| progress.has_room()) else {
        progress.remaining = ahead.accounts.len() + ahead.rest + ahead.beyond;
        return Ok(without_image(execution, &request, progress));
    };
    let now = hub.now_ms();
    let mark = &Mark::new(&execution, now);
    let at_hand = &AtHand { request: &request, image: &image, mark, revoking: progress.phase == Phase::Revoke };
    let (notes, unread) = notes::read(record, &ahead.accounts, at_hand, STATE).await?;

    let SourceImage { source, image_id } = &image;
    let (needs, state) = match look(hub, &execution, &image, &notes).await {
        Ok(found) => found,
        // One source that cannot be asked does not keep the others'.
        Err(error @ Error::AccessDenied { .. }) if matches!(request.images, RevokedImages::All(_)) => {
            let taken = ahead.accounts.iter().map(|account| FromAccount::unread(account.clone(), STATE, &error));
            let taken: Vec<FromAccount> = taken.collect();
            return Ok(round(execution, at_hand, &ahead, &SourceState::default(), &notes, &taken, progress));
        }
        Err(error) => return Err(error),
    };
    let noted = notes.values().flatten().any(|note| is_of(&image, note));
    if !state.image_found && !noted && unread.is_empty() && progress.after.is_none() && ahead.rest + ahead.beyond == 0 {
        return Err(not_found(image));
    }
    let asked = Asked {
        source,
        image: image_id,
        mark,
        begun: now,
        copies: request.copies,
        instances: request.instances,
        with_gone_images: true,
        force: request.force,
    };
    let mut taken: Vec<FromAccount> =
        notes.iter().map(|(account, notes)| take(asked, &state, account, notes, &needs)).collect();
    let unnoted = unnoted::of_shares(hub, &execution, &image, &notes, &state, &needs).await?;
    for (taken, left) in taken.iter_mut().zip(unnoted) {
        taken.left.extend(left);
    }
    taken.extend(unread);
    taken.sort_by(|one, other| one.account_id.cmp(&other.account_id));
    Ok(round(execution, at_hand, &ahead, &state, &notes, &taken, progress))
}

/// What the targets need, and how the source account is.
async fn look(
    hub: &Hub,
    execution: &ExecutionName,
    image: &SourceImage,
    notes: &BTreeMap<AccountId, Vec<Note>>,
) -> Result<(BTreeMap<AccountId, Need>, SourceState), Error> {
    let SourceImage { source, image_id } = image;
    let asking = Asking { hub, execution, actions: ACTIONS, source, image: image_id, state: STATE, patient: true };
    let needs = needs(&asking, notes).await?;
    let config = hub.as_source_reader(&source.account_id, &source.region, execution, ACTIONS).await?;
    let role = hub.source_role(&source.account_id, &source.region);
    let state = source::find(&config, &role, image, notes, &needs).await?;
    Ok((needs, state))
}

fn not_found(image: SourceImage) -> Error {
    let SourceImage { source: Source { account_id, region }, image_id } = image;
    Error::ImageNotFound { image: image_id, account: account_id, region: region.to_string() }
}

/// What the round takes back of `taken`, as much as fits, and how far the execution has come with it.
fn round(
    execution: ExecutionName,
    at_hand: &AtHand<'_>,
    ahead: &Ahead,
    state: &SourceState,
    notes: &BTreeMap<AccountId, Vec<Note>>,
    taken: &[FromAccount],
    mut progress: Progress,
) -> Round {
    let AtHand { request, image, revoking, .. } = *at_hand;
    let (take_back, fitting) = gather(&execution, &image.source, &image.image_id, taken);
    let taken = &taken[..fitting];
    let something = || taken.iter().filter(|taken| taken.is_something());
    progress.add_round(image, something().map(|taken| taken.account_id.clone()).collect());
    if let Some(last) = taken.last() {
        progress.after = Some(ShareId { image: image.clone(), account_id: last.account_id.clone() });
    }
    let not_fitting = ahead.accounts.len() - fitting;
    progress.remaining = not_fitting + ahead.rest + ahead.beyond;
    // What an image kept before is judged anew.
    progress.done.kept.retain(|kept| !taken.iter().any(|taken| taken.account_id == kept.account_id));
    if revoking {
        let not_ours = |account: &AccountId| {
            let ours = |note: &Note| is_of(image, note) && note.gift.target.source_changes.launch_permission;
            state.permitted.contains(account) && notes.get(account).is_some_and(|notes| !notes.iter().any(ours))
        };
        let accounts = || taken.iter().map(|taken| taken.account_id.clone());
        progress.add_not_ours(accounts().filter(not_ours).collect());
        progress.add_stays(taken.iter().filter(|taken| taken.stays).map(|taken| taken.account_id.clone()).collect());
    }
    let more = not_fitting + ahead.rest > 0 && progress.has_room();
    let asks = !revoking && !request.force;
    let all_of_image = not_fitting + ahead.rest_of_image == 0 || !more;
    let accounts: Vec<RevokedAccount> = something().map(revoked_account).collect();
    Round {
        execution,
        image_found: state.image_found,
        ask_usage: asks && !accounts.is_empty(),
        report_usage: asks && state.image_found && progress.of_image && all_of_image,
        plan: !revoking && request.is_planned(),
        plan_hash: request.plan_hash.clone(),
        accounts,
        take_back: (take_back.is_something() || !take_back.left.is_empty() || !take_back.kept.is_empty())
            .then_some(take_back),
        more,
        image: Some(image.clone()),
        progress,
    }
}

fn read_request(hub: &Hub, request: &Value) -> Result<RevokeRequest, Error> {
    let region = hub.region().map_err(|rule| Error::invalid("region", "", rule))?;
    let default_source = Source { account_id: hub.settings.source_account.clone(), region };
    RevokeRequest::parse(request, &default_source).map_err(Error::InvalidRequest)
}

/// There is no room for another round, or nothing is noted of the targets.
fn without_image(execution: ExecutionName, request: &RevokeRequest, progress: Progress) -> Round {
    Round {
        execution,
        image: None,
        image_found: false,
        accounts: vec![],
        take_back: None,
        ask_usage: false,
        report_usage: false,
        plan: progress.phase == Phase::Check && request.is_planned(),
        plan_hash: request.plan_hash.clone(),
        more: false,
        progress,
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
    taken.notes.retain(|note| note.going != notes::before());
    taken
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
