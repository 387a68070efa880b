//! UndoGrantKeys: retires the grants that GrantKeys was to give. Of a revoke, it says what the targets passed on by them, or
//! revokes it.

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::ExecutionName,
    share::{KeyChange, Source},
    take_back::{Foreign, Left, Taken},
};
use ami_share_key_grants::{GET_KEY_POLICY, KeyGrant, LIST_GRANTS, only_administrators_end};
use aws_sdk_kms::{Client, error::ProvideErrorMetadata, types::GrantListEntry};
use serde::{Deserialize, Serialize};

use crate::foreign::{self, Asked};

/// Ours need no kms:RevokeGrant, which would let the role end anybody's: the grant itself says that this role may retire it
/// ("Retiring and revoking grants", KMS developer guide). Others' need it, and a role of its own.
pub const UNDO_ACTIONS: Actions = Actions { source: &[LIST_GRANTS, RETIRE_GRANT, GET_KEY_POLICY], ..foreign::ACTIONS };

const RETIRE_GRANT: &str = "kms:RetireGrant";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoInput {
    pub execution: ExecutionName,
    pub source: Source,
    /// The accounts that each key's grants are to be taken from.
    pub keys: Vec<KeyChange>,
    /// Whether it is what one execution of share-ami gave: then grants of earlier versions were there before it. A revoke takes
    /// them too.
    pub of_execution: bool,
    /// Whether grants that the accounts passed on are revoked, or only told.
    pub revoke_foreign: bool,
    /// When the state was entered, in ISO 8601, from Step Functions' context.
    pub entered: String,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Undone {
    pub taken: Vec<Taken>,
    /// What nobody could say of grants that the targets passed on, and which could not be revoked.
    pub left: Vec<Left>,
    /// Those that they did, and that stay.
    pub foreign: Foreign,
}

/// Retires the grants of ours to the accounts. One that is not there is as good as retired; one that
/// fails does not keep the others from being tried.
///
/// # Errors
/// [`Error::NotYetVisible`] for a grant that is not listed, as long as it may still come to be; whatever
/// AWS answers.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn undo_grant_keys(hub: &Hub, input: UndoInput) -> Result<Undone, Error> {
    let changes: Vec<&KeyChange> = input.keys.iter().filter(|change| !change.account_ids.is_empty()).collect();
    if changes.is_empty() {
        return Ok(Undone::default());
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, UNDO_ACTIONS).await?;
    let kms = Client::new(&config);
    let retiring = hub.source_role(&source.account_id, &source.region);
    let (mut taken, mut errors) = (Vec::new(), Vec::new());
    let mut unseen = None;
    // What was made just before may not be listed yet ("Eventual consistency", KMS developer guide).
    let may_come = hub.since("entered", &input.entered)? <= hub.settings.stale_reads / 10;
    for KeyChange { key_arn, account_ids, .. } in changes {
        let mut from = Vec::new();
        for account in account_ids {
            let grant = KeyGrant { key: key_arn, account, retiring: &retiring };
            match retire(&kms, grant, input.of_execution).await {
                Ok(Found::Nothing) => unseen = Some(grant),
                Ok(Found::Gone) => {}
                Ok(Found::Retired) => from.push(account.to_string()),
                Err(error) => errors.push(error),
            }
        }
        if !from.is_empty() {
            let (account_id, resource) = (source.account_id.clone(), key_arn.to_string());
            taken.push(Taken { call: RETIRE_GRANT.to_owned(), account_id, resource, from });
        }
    }
    if let Some(grant) = unseen.filter(|_| may_come) {
        errors.push(Error::NotYetVisible {
            what: format!("the grant {} on key {}, if it was made", grant.name(), grant.key),
            account: source.account_id.clone(),
            call: LIST_GRANTS,
        });
    }
    Error::all_of(errors)?;
    if input.of_execution {
        return Ok(Undone { taken, ..Undone::default() });
    }
    let UndoInput { execution, source, keys, revoke_foreign, .. } = &input;
    let asked = Asked { execution, source, keys, revokes: *revoke_foreign };
    let seen = foreign::see_to(hub, &kms, &retiring, asked).await?;
    taken.extend(seen.taken);
    Ok(Undone { taken, left: seen.left, foreign: seen.staying })
}

/// What became of an account's grants.
enum Found {
    /// None is listed.
    Nothing,
    /// What is listed is retired already.
    Gone,
    Retired,
}

async fn retire(kms: &Client, grant: KeyGrant<'_>, of_execution: bool) -> Result<Found, Error> {
    let mut found = Found::Nothing;
    let mut entries = grant.find(kms).await?;
    entries.retain(|entry| !of_execution || KeyGrant::is_of_this_version(entry));
    for entry in entries {
        match kms.retire_grant().key_id(grant.key.as_str()).set_grant_id(entry.grant_id.clone()).send().await {
            Ok(_) => {
                tracing::info!(key = %grant.key, account = %grant.account, "grant retired");
                found = Found::Retired;
            }
            Err(error) if error.code() == Some("NotFoundException") => {
                if matches!(found, Found::Nothing) {
                    found = Found::Gone;
                }
            }
            Err(error) => {
                return Err(explained(grant, &entry, aws::failure(&grant.key.account_id(), RETIRE_GRANT, error)));
            }
        }
    }
    Ok(found)
}

/// What to do comes first: what is left is told in 500 characters.
fn explained(grant: KeyGrant<'_>, entry: &GrantListEntry, error: Error) -> Error {
    match (error, only_administrators_end(grant.key, entry)) {
        (Error::AccessDenied { account, call, reason, source }, Some(command)) => Error::AccessDenied {
            account,
            call,
            reason: format!(
                "the role that may retire grant {} was deleted, and one that was made again is another; an administrator \
                 of the key ends it: {command} ({reason})",
                grant.name()
            ),
            source,
        },
        (error, _) => error,
    }
}
