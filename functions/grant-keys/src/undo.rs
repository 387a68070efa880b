//! UndoGrantKeys: retires the grants that GrantKeys was to give. Of a revoke, it says what the targets passed on by them.

use std::collections::BTreeSet;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{ExecutionName, KeyArn},
    share::{KeyChange, Source},
    take_back::{Foreign, Left, Taken},
};
use ami_share_key_grants::{GET_KEY_POLICY, KeyGrant, LIST_GRANTS, foreign_grants, only_administrators_end, that_stay};
use aws_sdk_kms::{Client, error::ProvideErrorMetadata, types::GrantListEntry};
use serde::{Deserialize, Serialize};

/// Not kms:RevokeGrant, which would let the role end anybody's grants: the grant itself says that this
/// role may retire it ("Retiring and revoking grants", KMS developer guide).
pub const UNDO_ACTIONS: Actions = Actions { source: &[LIST_GRANTS, RETIRE_GRANT, GET_KEY_POLICY], ..Actions::NONE };

const RETIRE_GRANT: &str = "kms:RetireGrant";

/// The longest cause, in characters, as the states cut theirs.
const MAX_CAUSE: usize = 500;

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
    /// When the state was entered, in ISO 8601, from Step Functions' context.
    pub entered: String,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Undone {
    pub taken: Vec<Taken>,
    /// What nobody could say of grants that the targets passed on.
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
    let mut undone = Undone { taken, ..Undone::default() };
    if !input.of_execution {
        for change in &input.keys {
            undone.look_for_foreign(&kms, &retiring, change).await?;
        }
    }
    Ok(undone)
}

impl Undone {
    /// What cannot be told is left: it must not look as if there were nothing.
    async fn look_for_foreign(&mut self, kms: &Client, retiring: &str, change: &KeyChange) -> Result<(), Error> {
        let going: BTreeSet<_> = change.account_ids.iter().cloned().collect();
        match foreign_grants(kms, &change.key_arn, retiring, &going).await {
            Ok(found) => self.foreign.add(that_stay(&change.key_arn, &found, false)),
            Err(error) if error.passes() => return Err(error),
            Err(error) => self.left.push(not_told(&change.key_arn, &error)),
        }
        Ok(())
    }
}

fn not_told(key: &KeyArn, error: &Error) -> Left {
    let cause = format!("nobody can say which grants on key {key} the targets passed on: {error}");
    Left {
        account_id: None,
        state: "UndoGrantKeys".to_owned(),
        error: error.name().to_owned(),
        cause: cause.chars().take(MAX_CAUSE).collect(),
    }
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
