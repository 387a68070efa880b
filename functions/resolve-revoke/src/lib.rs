//! ResolveRevoke: decides what is taken back of the next shares. It changes nothing but marks of notes.
//!
//! What ami-share gave is what its notes say. Our statements in key policies and our grants are ours by
//! definition, noted or not. Keys and principals are shared between images: what another image needs that
//! the target can still launch stays, and stays noted.

mod shares;
mod source;
mod target;

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, Hub,
    arns::policy_arn,
    hub::Actions,
    ids::{AccountId, ExecutionName, KeyArn, Region},
    mark::Mark,
    revoke::{
        Phase, Progress, RevokeRequest, RevokedAccount, RevokedImages, RevokedTargets, Round, ShareId, SourceImage,
    },
    share::Source,
    take_back::{Left, TakenBack},
};
use ami_share_record::{Note, Record};
use ami_share_take_back::{Asked, Asking, FromAccount, Need, from_account, gather, needs};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;
use serde_json::Value;

use shares::{Ahead, is_of};
use source::SourceState;

pub const ACTIONS: Actions = Actions {
    source: &[
        source::DESCRIBE_IMAGES,
        source::DESCRIBE_SNAPSHOTS,
        source::DESCRIBE_IMAGE_ATTRIBUTE,
        source::GET_KEY_POLICY,
        source::LIST_GRANTS,
    ],
    target: &[target::LIST_ENTITIES],
    launcher: &[],
};

/// The name of the state, of what it leaves.
const STATE: &str = "ResolveRevoke";

/// How many targets are looked at at a time.
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
    let shares = shares::all(record, &request).await?;
    if progress.phase == Phase::Revoke && progress.rounds == 0 {
        let left = of_no_share(hub, &execution, &request, &shares).await?;
        progress.done.add(TakenBack { left, ..TakenBack::default() });
    }
    let ahead = Ahead::of(shares, &progress);
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
    let revoking = progress.phase == Phase::Revoke;
    let at_hand = &AtHand { request: &request, image: &image, mark };
    let read: Vec<Result<Vec<Note>, Error>> = stream::iter(&ahead.accounts)
        .map(|account| async move {
            let notes = record.notes_of(account).await?;
            if revoking { marked(record, account, notes, at_hand).await } else { Ok(as_marked(notes, at_hand)) }
        })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    let (notes, unread) = readable(ahead.accounts.iter().zip(read))?;

    let SourceImage { source, image_id } = &image;
    let asking =
        Asking { hub, execution: &execution, actions: ACTIONS, source, image: image_id, state: STATE, patient: true };
    let needs = needs(&asking, &notes).await?;
    let config = hub.as_source(&source.account_id, &source.region, &execution, ACTIONS).await?;
    let role = hub.source_role(&source.account_id, &source.region);
    let state = source::find(&config, &role, &image, &notes, &needs).await?;
    let noted = notes.values().flatten().any(|note| is_of(&image, note));
    if !state.image_found && !noted && unread.is_empty() && progress.after.is_none() && ahead.rest + ahead.beyond == 0 {
        let Source { account_id, region } = image.source;
        return Err(Error::ImageNotFound { image: image.image_id, account: account_id, region: region.to_string() });
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
    let unnoted = unnoted(hub, &execution, &image, &notes, &state, &taken).await?;
    for (taken, left) in taken.iter_mut().zip(unnoted) {
        taken.left.extend(left);
    }
    taken.extend(unread);
    taken.sort_by(|one, other| one.account_id.cmp(&other.account_id));
    let not_ours = |account: &AccountId| {
        let ours = |note: &Note| is_of(&image, note) && note.gift.target.source_changes.launch_permission;
        state.permitted.contains(account) && notes.get(account).is_some_and(|notes| !notes.iter().any(ours))
    };
    let (take_back, fitting) = gather(&execution, source, image_id, &taken);
    let taken = &taken[..fitting];
    let something = || taken.iter().filter(|taken| taken.is_something());
    progress.add_round(&image, something().map(|taken| taken.account_id.clone()).collect());
    if let Some(last) = taken.last() {
        progress.after = Some(ShareId { image: image.clone(), account_id: last.account_id.clone() });
    }
    let left_of_image = ahead.accounts.len() - fitting + ahead.rest_of_image;
    let rest = ahead.accounts.len() - fitting + ahead.rest;
    progress.remaining = rest + ahead.beyond;
    if revoking {
        let accounts = || taken.iter().map(|taken| taken.account_id.clone());
        progress.add_not_ours(accounts().filter(not_ours).collect());
        progress.add_stays(taken.iter().filter(|taken| taken.stays).map(|taken| taken.account_id.clone()).collect());
    }
    let more = rest > 0 && progress.has_room();
    let asks = !revoking && !request.force;
    let accounts: Vec<RevokedAccount> = something().map(revoked_account).collect();
    Ok(Round {
        execution,
        image_found: state.image_found,
        ask_usage: asks && !accounts.is_empty(),
        report_usage: asks && state.image_found && progress.of_image && (left_of_image == 0 || !more),
        plan: !revoking && request.is_planned(),
        plan_hash: request.plan_hash.clone(),
        accounts,
        take_back: (take_back.is_something() || !take_back.left.is_empty()).then_some(take_back),
        more,
        image: Some(image),
        progress,
    })
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

/// What targets that nothing at all is noted of have of ami-share's making.
async fn of_no_share(
    hub: &Hub,
    execution: &ExecutionName,
    request: &RevokeRequest,
    shares: &BTreeSet<ShareId>,
) -> Result<Vec<Left>, Error> {
    let (RevokedImages::All(_), RevokedTargets::Listed(accounts)) = (&request.images, &request.targets) else {
        return Ok(vec![]);
    };
    let region = hub.region().map_err(|rule| Error::invalid("region", "", rule))?;
    let mut left = Vec::new();
    for account in accounts.iter().filter(|account| !shares.iter().any(|share| share.account_id == **account)) {
        match unnoted_principals(hub, execution, &region, account, &[]).await {
            Ok(found) => left.extend(found),
            Err(error) if error.passes() => return Err(error),
            Err(error) => tracing::info!(%account, %error, "a target that nothing is noted of cannot be asked"),
        }
    }
    Ok(left)
}

/// The image whose shares are to go in this round.
struct AtHand<'a> {
    request: &'a RevokeRequest,
    image: &'a SourceImage,
    mark: &'a Mark,
}

/// The notes by target, and what stays of those targets that have a note which nobody can read: somebody has to look into
/// it, and the others need not wait for that.
fn readable<'a>(
    read: impl Iterator<Item = (&'a AccountId, Result<Vec<Note>, Error>)>,
) -> Result<(BTreeMap<AccountId, Vec<Note>>, Vec<FromAccount>), Error> {
    let (mut notes, mut unread) = (BTreeMap::new(), Vec::new());
    for (account, read) in read {
        match read {
            Ok(read) => {
                notes.insert(account.clone(), read);
            }
            Err(error @ Error::Aws { .. }) => unread.push(FromAccount::unread(account.clone(), STATE, &error)),
            Err(error) => return Err(error),
        }
    }
    Ok((notes, unread))
}

/// The notes of a target, after those of the image at hand were marked.
async fn marked(
    record: &Record,
    account: &AccountId,
    notes: Vec<Note>,
    at_hand: &AtHand<'_>,
) -> Result<Vec<Note>, Error> {
    if !notes.iter().any(|note| is_of(at_hand.image, note)) {
        return Ok(notes);
    }
    for note in notes.iter().filter(|note| is_of(at_hand.image, note)) {
        record.mark(account, note.image(), &note.gift.execution, at_hand.mark).await?;
    }
    record.notes_of(account).await
}

/// The notes of a target, as they would be when the image is at hand: those of images before it would be marked by then.
fn as_marked(mut notes: Vec<Note>, at_hand: &AtHand<'_>) -> Vec<Note> {
    for note in &mut notes {
        let image = shares::image_of(note);
        if image == *at_hand.image {
            note.going = Some(at_hand.mark.clone());
        } else if image < *at_hand.image && at_hand.request.is_of(&image) {
            note.going.get_or_insert_with(|| Mark::noted("before"));
        }
    }
    notes
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

/// What each target has that is plainly of ami-share's making, and that no note names: it may be what others rely on. Only
/// targets that nothing is noted of for the image are looked at.
async fn unnoted(
    hub: &Hub,
    execution: &ExecutionName,
    image: &SourceImage,
    notes: &BTreeMap<AccountId, Vec<Note>>,
    state: &SourceState,
    taken: &[FromAccount],
) -> Result<Vec<Vec<Left>>, Error> {
    stream::iter(notes.iter().zip(taken))
        .map(|((account, notes), taken)| async move {
            if notes.iter().any(|note| is_of(image, note)) {
                return Ok(vec![]);
            }
            let access = taken.key_arns.iter().chain(&taken.grant_key_arns).next();
            let permitted = access.filter(|_| state.permitted.contains(account));
            let mut left: Vec<Left> =
                permitted.map(|key| unnoted_permission(image, account, key)).into_iter().collect();
            match unnoted_principals(hub, execution, &image.source.region, account, notes).await {
                Ok(principals) => left.extend(principals),
                Err(error) if error.passes() => return Err(error),
                // Where nothing is ami-share's, it need not have roles.
                Err(error) => left.extend(access.map(|_| not_noted(account, &error))),
            }
            Ok(left)
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await
}

/// Beside access to keys that ami-share gave, a launch permission is hardly anybody else's.
fn unnoted_permission(image: &SourceImage, account: &AccountId, key: &KeyArn) -> Left {
    let SourceImage { source, image_id } = image;
    let error = Error::NotNoted {
        account: account.clone(),
        has: format!("has a launch permission of image {image_id}, beside ami-share's access to key {key}"),
        command: format!(
            "aws ec2 modify-image-attribute --region {} --image-id {image_id} --launch-permission \
             'Remove=[{{UserId={account}}}]' (in account {})",
            source.region, source.account_id
        ),
    };
    not_noted(account, &error)
}

/// What `account` has of the managed policy, and no note of it says.
async fn unnoted_principals(
    hub: &Hub,
    execution: &ExecutionName,
    region: &Region,
    account: &AccountId,
    notes: &[Note],
) -> Result<Option<Left>, Error> {
    let config = hub.as_target(account, region, execution, ACTIONS).await?;
    let policy = policy_arn(account, region, &hub.settings.key_access_policy);
    let found = target::unnoted_principals(&config, account, &policy, notes).await?;
    Ok(found.map(|error| not_noted(account, &error)))
}

fn not_noted(account: &AccountId, error: &Error) -> Left {
    Left {
        account_id: Some(account.clone()),
        state: STATE.to_owned(),
        error: error.name().to_owned(),
        cause: error.to_string(),
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
