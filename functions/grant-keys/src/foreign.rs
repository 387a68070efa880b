//! What targets passed on by the grants that UndoGrantKeys retires. It is told, and revoked where that is asked for.

use std::collections::BTreeSet;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{ExecutionName, KeyArn},
    share::{KeyChange, Source},
    take_back::{Foreign as Staying, Left, Taken},
};
use ami_share_key_grants::{Foreign, SHAREABLE_TAG, foreign_grants, revoke_command, that_stay};
use aws_sdk_kms::{Client, error::ProvideErrorMetadata};

pub(crate) const ACTIONS: Actions = Actions { source_grant_revoker: &[REVOKE_GRANT], ..Actions::NONE };

const REVOKE_GRANT: &str = "kms:RevokeGrant";

/// The most grants that one call of the function revokes: its answer has an end, and so has its time.
const MOST: usize = 100;

/// The longest cause, in characters, as the states cut theirs.
const MAX_CAUSE: usize = 500;

/// What was asked of UndoGrantKeys.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) execution: &'a ExecutionName,
    pub(crate) source: &'a Source,
    pub(crate) keys: &'a [KeyChange],
    /// Whether they are revoked, or only told.
    pub(crate) revokes: bool,
}

/// What became of them.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) taken: Vec<Taken>,
    pub(crate) left: Vec<Left>,
    pub(crate) staying: Staying,
}

/// Looks for them, now that ours are retired: nobody can make another.
///
/// # Errors
/// What passes by itself. What cannot be told or revoked is left: it must not look as if there were nothing.
pub(crate) async fn see_to(hub: &Hub, kms: &Client, retiring: &str, asked: Asked<'_>) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    let mut found = Vec::new();
    for change in asked.keys {
        let going: BTreeSet<_> = change.account_ids.iter().cloned().collect();
        match foreign_grants(kms, &change.key_arn, retiring, &going).await {
            Ok(grants) => found.push((&change.key_arn, grants)),
            Err(error) if error.passes() => return Err(error),
            Err(error) => {
                let what = format!("nobody can say which grants on key {} the targets passed on", change.key_arn);
                seen.left.push(left(&what, &error));
            }
        }
    }
    for (key, grants) in &found {
        seen.staying.add(that_stay(key, grants, asked.revokes));
    }
    found.retain(|(_, grants)| grants.iter().any(goes));
    if !asked.revokes || found.is_empty() {
        return Ok(seen);
    }
    let Asked { source, execution, .. } = asked;
    let revoker = hub.as_source_grant_revoker(&source.account_id, &source.region, execution, ACTIONS).await;
    let revoker = match revoker {
        Ok(config) => Client::new(&config),
        Err(error) if error.passes() => return Err(error),
        Err(error) => {
            seen.left.push(left("grants that the targets passed on stay", &error));
            return Ok(seen);
        }
    };
    let mut room = MOST;
    for (key, grants) in found {
        match revoke(&revoker, key, grants.iter().filter(|grant| goes(grant)), &mut room, &mut seen).await {
            Ok(()) => {}
            Err(error) if error.passes() => return Err(error),
            Err(error) => seen.left.push(left("grants that the targets passed on stay", &error)),
        }
    }
    Ok(seen)
}

fn goes(grant: &Foreign) -> bool {
    grant.stay.is_none()
}

/// In their order; one that is gone is as good as revoked.
async fn revoke(
    kms: &Client,
    key: &KeyArn,
    grants: impl Iterator<Item = &Foreign>,
    room: &mut usize,
    seen: &mut Seen,
) -> Result<(), Error> {
    let mut from = Vec::new();
    let mut ended = Ok(());
    for Foreign { grant, issuer, .. } in grants {
        if *room == 0 {
            ended = Err(Error::Aws {
                account: key.account_id(),
                call: REVOKE_GRANT,
                reason: format!("one revoke has room for {MOST} grants, and key {key} has more; start it again"),
                source: None,
            });
            break;
        }
        *room -= 1;
        match kms.revoke_grant().key_id(key.as_str()).grant_id(&grant.grant_id).send().await {
            Ok(_) => {
                tracing::info!(%key, %issuer, grantee = grant.grantee, "grant revoked");
                from.push(grant.grantee.clone());
            }
            Err(error) if error.code() == Some("NotFoundException") => {}
            Err(error) => {
                let error = aws::failure(&key.account_id(), REVOKE_GRANT, error);
                ended = Err(explained(key, &grant.grant_id, error));
                break;
            }
        }
    }
    if !from.is_empty() {
        let (account_id, resource) = (key.account_id(), key.to_string());
        seen.taken.push(Taken { call: REVOKE_GRANT.to_owned(), account_id, resource, from });
    }
    ended
}

/// What to do comes first: what is left is told in 500 characters.
fn explained(key: &KeyArn, grant_id: &str, error: Error) -> Error {
    match error {
        Error::AccessDenied { account, call, reason, source } => Error::AccessDenied {
            account,
            call,
            reason: format!(
                "the key must have the tag {SHAREABLE_TAG}=true, and leave it to IAM; tag it and start the same request \
                 again, or have an administrator of the key run {} ({reason})",
                revoke_command(key, grant_id)
            ),
            source,
        },
        other => other,
    }
}

fn left(what: &str, error: &Error) -> Left {
    Left {
        account_id: None,
        state: "UndoGrantKeys".to_owned(),
        error: error.name().to_owned(),
        cause: format!("{what}: {error}").chars().take(MAX_CAUSE).collect(),
    }
}
