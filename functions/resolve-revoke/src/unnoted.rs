//! What targets have that is plainly of ami-share's making, and that no note names: others may rely on it. It stays, and is
//! named with what takes it.

use std::collections::BTreeMap;

use ami_share_core::{
    Error, Hub,
    arns::policy_arn,
    ids::{AccountId, ExecutionName, KeyArn, Region},
    revoke::SourceImage,
    take_back::Left,
};
use ami_share_record::{Note, Noted};
use ami_share_take_back::Need;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    actions::ACTIONS,
    notes::{NotesByTarget, STATE, is_of},
    source::SourceState,
    target,
};

/// How many targets are looked at at a time.
const CONCURRENCY: usize = 16;

/// What is found of one target, or of several.
#[derive(Debug, Default)]
pub(crate) struct Unnoted {
    pub(crate) left: Vec<Left>,
    /// Targets that do not say who has the managed policy.
    pub(crate) not_asked: Vec<AccountId>,
}

impl Unnoted {
    /// Looks who has the managed policy, and no note of `notes`, which are all of the account, says so. Where nothing is
    /// plainly `given` without a note, the account need not have roles to be asked with.
    ///
    /// # Errors
    /// What passes.
    async fn look_for_principals(
        &mut self,
        looking: &Looking<'_>,
        account: &AccountId,
        notes: &[Note],
        given: bool,
    ) -> Result<(), Error> {
        match unnoted_principals(looking, account, notes).await {
            Ok(found) => self.left.extend(found),
            Err(error) if error.passes() => return Err(error),
            Err(error) if given => self.left.push(not_noted(account, &error)),
            Err(error) => {
                tracing::info!(%account, %error, "a target cannot be asked who has the managed policy");
                self.not_asked.push(account.clone());
            }
        }
        Ok(())
    }
}

/// Who looks.
pub(crate) struct Looking<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) execution: &'a ExecutionName,
    pub(crate) region: &'a Region,
}

/// What targets that nothing at all is noted of have of ami-share's making.
pub(crate) async fn of_no_share(looking: &Looking<'_>, accounts: &[AccountId]) -> Result<Unnoted, Error> {
    let mut unnoted = Unnoted::default();
    for account in accounts {
        unnoted.look_for_principals(looking, account, &[], false).await?;
    }
    Ok(unnoted)
}

/// What each target has that is plainly of ami-share's making, and that no note names: it may be what others rely on.
pub(crate) async fn of_shares(
    looking: &Looking<'_>,
    image: &SourceImage,
    notes: &NotesByTarget,
    state: &SourceState,
    needs: &BTreeMap<AccountId, Need>,
) -> Result<Unnoted, Error> {
    let found: Vec<Unnoted> = stream::iter(notes)
        .map(|(account, Noted { notes, .. })| async move {
            let mut unnoted = Unnoted::default();
            let access = state.statements(account).into_iter().chain(state.grants(account)).next();
            let access = access.filter(|_| !notes.iter().any(|note| is_of(image, note)));
            let permitted = access.iter().filter(|_| state.permitted.contains(account));
            unnoted.left.extend(permitted.map(|key| unnoted_permission(image, account, key)));
            // What gives a principal the keys of one image gives it those of all: it goes with the last.
            let is_needed = needs.get(account).is_some_and(|need| !need.keys.is_empty());
            if !is_needed && notes.iter().all(Note::is_going) {
                unnoted.look_for_principals(looking, account, notes, access.is_some()).await?;
            }
            Ok::<_, Error>(unnoted)
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let mut all = Unnoted::default();
    for Unnoted { left, not_asked } in found {
        all.left.extend(left);
        all.not_asked.extend(not_asked);
    }
    Ok(all)
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
async fn unnoted_principals(looking: &Looking<'_>, account: &AccountId, notes: &[Note]) -> Result<Option<Left>, Error> {
    let Looking { hub, execution, region } = looking;
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
