//! ResolveRevoke: decides what is taken back of the next shares. It changes nothing but marks of notes.
//!
//! What ami-share gave is what its notes say. Our statements in key policies and our grants are ours by
//! definition, noted or not. Keys and principals are shared between images: what another image needs that
//! the target can still launch stays, and stays noted.

mod actions;
mod notes;
mod shares;
mod source;
mod target;
mod unnoted;

use std::collections::BTreeMap;

use ami_share_core::{
    Error, Hub,
    ids::{AccountId, ExecutionName},
    mark::Mark,
    revoke::{Phase, Place, Progress, RevokeRequest, RevokedImages, Round, SourceImage},
    share::Source,
    take_back::{Left, TakenBack},
};
use ami_share_record::{Note, Record};
use ami_share_take_back::{Asked, Asking, FromAccount, Need, from_account, gather, needs};
use serde::Deserialize;
use serde_json::Value;

use notes::{AtHand, Notes, NotesByTarget, STATE, is_of};
use shares::{Ahead, Shares};
use source::SourceState;
use unnoted::{Looking, Unnoted};

pub use actions::ACTIONS;

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
    let now = hub.now_ms();
    let mut progress = input.progress.unwrap_or_default();
    progress.add_last(input.last);
    let looks_first = !request.force || request.is_planned();
    progress.enter(if looks_first { input.phase } else { Phase::Revoke });
    let begun = *progress.begun.get_or_insert(now);

    let record = &Record::open(hub)?;
    let shares = shares::all(record, &request, begun).await?;
    if progress.order.is_empty() {
        progress.order = shares.order.clone();
    }
    progress.add_given_since(shares.given_since.clone());
    // Only who is told what stays needs it looked for.
    let tells = progress.phase == Phase::Revoke || request.is_planned();
    let mut left = Vec::new();
    if tells && progress.rounds == 0 {
        left = left_of_no_share(hub, &execution, &shares, &mut progress).await?;
    }
    if progress.phase == Phase::Revoke {
        progress.done.add(TakenBack { left: std::mem::take(&mut left), ..TakenBack::default() });
    }
    let ahead = Ahead::of(&shares.targets, &progress);
    // One image is looked at also where no target is noted.
    let place = if matches!(request.images, RevokedImages::One(_)) { Some(0) } else { ahead.image };
    let Some(place) = place.filter(|_| progress.has_room()) else {
        progress.remaining = ahead.remaining();
        return Ok(without_image(execution, &request, left, progress));
    };
    let order = progress.order.clone();
    let (image, mark) = (&order[place], &Mark::new(&execution, now));
    let at_hand = &AtHand { image, before: &order[..place], mark, begun };
    let known = shares.noted.map(|noted| noted.of(&ahead.accounts));
    let notes = notes::at_hand(record, known, &ahead.accounts, at_hand, progress.phase == Phase::Revoke).await?;
    progress.add_given_since(notes.given_since.clone());
    let looking = Looking { hub, execution: &execution, region: &image.source.region };
    let (needs, state) = match look(&looking, image, &notes.by_target, request.revoke_foreign_grants).await {
        Ok(found) => found,
        // One source that cannot be asked does not keep the others'.
        Err(error @ Error::AccessDenied { .. }) if matches!(request.images, RevokedImages::All(_)) => {
            let looked =
                Looked { request: &request, left, place, ahead: &ahead, notes: &notes, state: &SourceState::default() };
            return Ok(looked.round(execution, &unasked(&ahead.accounts, &error), progress));
        }
        Err(error) => return Err(error),
    };
    if !state.image_found && progress.after.is_none() && !notes.say_anything_of(image) {
        refuse_unknown(record, image).await?;
    }
    let mut taken = taken(&request, at_hand, &notes, &state, &needs);
    if tells {
        let Unnoted { mut left, not_asked } =
            unnoted::of_shares(&looking, image, &notes.by_target, &state, &needs).await?;
        progress.add_not_asked(not_asked);
        // Where notes stay, each round of them is the last one.
        left.retain(|left| !progress.done.left.contains(left));
        for taken in &mut taken {
            let of_target = left.iter().filter(|left| left.account_id.as_ref() == Some(&taken.account_id));
            taken.left.extend(of_target.cloned());
        }
    }
    let looked = Looked { request: &request, left, place, ahead: &ahead, notes: &notes, state: &state };
    Ok(looked.round(execution, &taken, progress))
}

/// What stays of targets that have no share at hand: of those that have an unreadable note, and of those that have none.
async fn left_of_no_share(
    hub: &Hub,
    execution: &ExecutionName,
    shares: &Shares,
    progress: &mut Progress,
) -> Result<Vec<Left>, Error> {
    let region = &hub.region().map_err(|rule| Error::invalid("region", "", rule))?;
    let unnoted = unnoted::of_no_share(&Looking { hub, execution, region }, &shares.strangers).await?;
    progress.add_not_asked(unnoted.not_asked);
    let unread = shares.unread.iter().flat_map(|unread| unread.left.clone());
    Ok(unread.chain(unnoted.left).collect())
}

/// What the targets need, and how the source account is; with issuers, also on which keys the targets made grants.
async fn look(
    looking: &Looking<'_>,
    image: &SourceImage,
    notes: &NotesByTarget,
    with_issuers: bool,
) -> Result<(BTreeMap<AccountId, Need>, SourceState), Error> {
    let Looking { hub, execution, .. } = *looking;
    let SourceImage { source, image_id } = image;
    let asking = Asking { hub, execution, actions: ACTIONS, source, image: image_id, state: STATE, patient: true };
    let needs = needs(&asking, notes).await?;
    let config = hub.as_source_reader(&source.account_id, &source.region, execution, ACTIONS).await?;
    let role = hub.source_role(&source.account_id, &source.region);
    let state = source::find(&config, &role, image, notes, &needs, with_issuers).await?;
    Ok((needs, state))
}

/// An image that is not there, and that nothing is noted of for anybody, may not be the one that was meant.
async fn refuse_unknown(record: &Record, image: &SourceImage) -> Result<(), Error> {
    let SourceImage { source: Source { account_id, region }, image_id } = image;
    if record.accounts_given(image_id).await?.is_empty() {
        let (image, account) = (image_id.clone(), account_id.clone());
        return Err(Error::ImageNotFound { image, account, region: region.to_string() });
    }
    Ok(())
}

/// What a round has looked at.
struct Looked<'a> {
    request: &'a RevokeRequest,
    /// What a plan says of targets that have no share at hand.
    left: Vec<Left>,
    /// The place of the image at hand.
    place: usize,
    ahead: &'a Ahead,
    notes: &'a Notes,
    state: &'a SourceState,
}

impl Looked<'_> {
    /// What the round takes back of `taken`, as much as fits, and how far the execution has come with it.
    fn round(self, execution: ExecutionName, taken: &[FromAccount], mut progress: Progress) -> Round {
        let Self { request, left, place, ahead, notes, state } = self;
        let image = progress.order[place].clone();
        let revoking = progress.phase == Phase::Revoke;
        let (mut take_back, fitting) = gather(&execution, &image.source, &image.image_id, taken);
        take_back.revoke_foreign_grants = request.revoke_foreign_grants;
        let taken = &taken[..fitting];
        let something = taken.iter().filter(|taken| taken.is_something());
        let accounts: Vec<AccountId> = something.map(|taken| taken.account_id.clone()).collect();
        progress.add_round(place, accounts.clone());
        if let Some(last) = taken.last() {
            progress.after = Some(Place { image: place, account_id: last.account_id.clone() });
        }
        let not_fitting = ahead.accounts.len() - fitting;
        progress.remaining = not_fitting + ahead.rest + ahead.beyond;
        // What an image kept before is judged anew.
        progress.done.kept.retain(|kept| !taken.iter().any(|taken| taken.account_id == kept.account_id));
        if revoking {
            let not_ours = |account: &AccountId| {
                let ours = |note: &Note| is_of(&image, note) && note.gift.target.source_changes.launch_permission;
                let notes = notes.by_target.get(account);
                state.permitted.contains(account) && notes.is_some_and(|noted| !noted.notes.iter().any(ours))
            };
            let looked_at = taken.iter().map(|taken| taken.account_id.clone());
            progress.add_not_ours(looked_at.filter(not_ours).collect());
            let stays = taken.iter().filter(|taken| taken.stays);
            progress.add_stays(stays.map(|taken| taken.account_id.clone()).collect());
        }
        let more = not_fitting + ahead.rest > 0 && progress.has_room();
        let asks = !revoking && !request.force;
        let all_of_image = not_fitting + ahead.rest_of_image == 0 || !more;
        Round {
            execution,
            image_found: state.image_found,
            ask_usage: asks && !accounts.is_empty(),
            report_usage: asks && state.image_found && progress.of_image && all_of_image,
            plan: !revoking && request.is_planned(),
            left,
            plan_hash: request.plan_hash.clone(),
            accounts,
            take_back: (take_back.is_something() || !take_back.left.is_empty() || !take_back.kept.is_empty())
                .then_some(take_back),
            more,
            image: Some(image),
            progress,
        }
    }
}

fn read_request(hub: &Hub, request: &Value) -> Result<RevokeRequest, Error> {
    let region = hub.region().map_err(|rule| Error::invalid("region", "", rule))?;
    let default_source = Source { account_id: hub.settings.source_account.clone(), region };
    RevokeRequest::parse(request, &default_source).map_err(Error::InvalidRequest)
}

/// There is no room for another round, or nothing is noted of the targets.
fn without_image(execution: ExecutionName, request: &RevokeRequest, left: Vec<Left>, progress: Progress) -> Round {
    Round {
        execution,
        image: None,
        image_found: false,
        accounts: vec![],
        take_back: None,
        ask_usage: false,
        report_usage: false,
        plan: progress.phase == Phase::Check && request.is_planned(),
        left,
        plan_hash: request.plan_hash.clone(),
        more: false,
        progress,
    }
}

/// Nothing is taken of these targets.
fn unasked(accounts: &[AccountId], error: &Error) -> Vec<FromAccount> {
    accounts.iter().map(|account| FromAccount::unasked(account.clone(), STATE, error)).collect()
}

/// What is taken back of each target at hand, in their order.
fn taken(
    request: &RevokeRequest,
    at_hand: &AtHand<'_>,
    notes: &Notes,
    state: &SourceState,
    needs: &BTreeMap<AccountId, Need>,
) -> Vec<FromAccount> {
    let asked = Asked {
        source: &at_hand.image.source,
        image: &at_hand.image.image_id,
        mark: at_hand.mark,
        begun: at_hand.begun,
        copies: request.copies,
        instances: request.instances,
        with_gone_images: true,
        force: request.force,
    };
    let taken = notes.by_target.iter().map(|(account, noted)| take(asked, state, account, &noted.notes, needs));
    let given_since = notes.given_since.iter().cloned().map(FromAccount::new);
    let mut taken: Vec<FromAccount> = taken.chain(notes.unread.iter().cloned()).chain(given_since).collect();
    taken.sort_by(|one, other| one.account_id.cmp(&other.account_id));
    taken
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

#[cfg(test)]
mod tests;
