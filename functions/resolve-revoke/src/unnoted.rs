//! What targets have that is plainly of ami-share's making, and that no note names: others may rely on it. It stays, and is
//! named with what takes it.

use std::collections::BTreeMap;

use ami_share_core::{
    Error, Hub,
    arns::policy_arn,
    hub::Actions,
    ids::{AccountId, ExecutionName, KeyArn, Region},
    revoke::SourceImage,
    take_back::Left,
};
use ami_share_record::Note;
use ami_share_take_back::Need;
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    shares::is_of,
    source::SourceState,
    target::{self, LIST_ENTITIES},
};

/// The name of the state, of what it leaves.
pub(crate) const STATE: &str = "ResolveRevoke";

/// How many targets are looked at at a time.
const CONCURRENCY: usize = 16;

const ACTIONS: Actions = Actions { target: &[LIST_ENTITIES], ..Actions::NONE };

/// What targets that nothing at all is noted of have of ami-share's making.
pub(crate) async fn of_no_share(
    hub: &Hub,
    execution: &ExecutionName,
    accounts: &[AccountId],
) -> Result<Vec<Left>, Error> {
    let region = hub.region().map_err(|rule| Error::invalid("region", "", rule))?;
    let mut left = Vec::new();
    for account in accounts {
        match unnoted_principals(hub, execution, &region, account, &[]).await {
            Ok(found) => left.extend(found),
            Err(error) if error.passes() => return Err(error),
            Err(error) => tracing::info!(%account, %error, "a target that nothing is noted of cannot be asked"),
        }
    }
    Ok(left)
}

/// What each target has that is plainly of ami-share's making, and that no note names: it may be what others rely on. Only
/// targets that nothing is noted of for the image are looked at.
pub(crate) async fn of_shares(
    hub: &Hub,
    execution: &ExecutionName,
    image: &SourceImage,
    notes: &BTreeMap<AccountId, Vec<Note>>,
    state: &SourceState,
    needs: &BTreeMap<AccountId, Need>,
) -> Result<Vec<Vec<Left>>, Error> {
    stream::iter(notes)
        .map(|(account, notes)| async move {
            if notes.iter().any(|note| is_of(image, note)) {
                return Ok(vec![]);
            }
            let access = state.statements(account).into_iter().chain(state.grants(account)).next();
            let access = access.as_ref();
            let permitted = access.filter(|_| state.permitted.contains(account));
            let mut left: Vec<Left> =
                permitted.map(|key| unnoted_permission(image, account, key)).into_iter().collect();
            // What gives a principal the keys of one image gives it those of all.
            if needs.get(account).is_some_and(|need| !need.keys.is_empty()) {
                return Ok(left);
            }
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
