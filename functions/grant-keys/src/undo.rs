//! UndoGrantKeys: retires the grants that GrantKeys was to give.

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::ExecutionName,
    share::{KeyChange, Source},
};
use ami_share_key_grants::{KeyGrant, LIST_GRANTS};
use aws_sdk_kms::{Client, error::ProvideErrorMetadata};
use serde::Deserialize;

use crate::Output;

/// Not kms:RevokeGrant, which would let the role end anybody's grants: the grant itself says that this
/// role may retire it ("Retiring and revoking grants", KMS developer guide).
pub const UNDO_ACTIONS: Actions = Actions { source: &[LIST_GRANTS, RETIRE_GRANT], target: &[], launcher: &[] };

const RETIRE_GRANT: &str = "kms:RetireGrant";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoInput {
    pub execution: ExecutionName,
    pub source: Source,
    /// The accounts that each key's grants are to be taken from.
    pub keys: Vec<KeyChange>,
    /// When the state was entered, in ISO 8601, from Step Functions' context.
    pub entered: String,
}

/// Retires every grant of ours to the accounts. One that is not there is as good as retired; one that
/// fails does not keep the others from being tried.
///
/// # Errors
/// [`Error::NotYetVisible`] for a grant that is not listed, as long as it may still come to be; whatever
/// AWS answers.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn undo_grant_keys(hub: &Hub, input: UndoInput) -> Result<Output, Error> {
    let mut grants = 0;
    if input.keys.iter().all(|change| change.account_ids.is_empty()) {
        return Ok(Output { grants });
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, UNDO_ACTIONS).await?;
    let kms = Client::new(&config);
    let retiring = hub.source_role(&source.account_id, &source.region);
    let mut errors = Vec::new();
    let mut unseen = None;
    // What was made just before may not be listed yet ("Eventual consistency", KMS developer guide).
    let may_come = hub.since("entered", &input.entered)? <= hub.settings.stale_reads / 10;
    for KeyChange { key_arn, account_ids } in &input.keys {
        for account in account_ids {
            let grant = KeyGrant { key: key_arn, account, retiring: &retiring };
            match retire(&kms, grant).await {
                Ok(0) => unseen = Some(grant),
                Ok(retired) => grants += retired,
                Err(error) => errors.push(error),
            }
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
    Ok(Output { grants })
}

/// How many grants were retired.
async fn retire(kms: &Client, grant: KeyGrant<'_>) -> Result<usize, Error> {
    let mut retired = 0;
    for id in grant.find(kms).await? {
        match kms.retire_grant().key_id(grant.key.as_str()).grant_id(id).send().await {
            Ok(_) => {
                tracing::info!(key = %grant.key, account = %grant.account, "grant retired");
                retired += 1;
            }
            Err(error) if error.code() == Some("NotFoundException") => retired += 1,
            Err(error) => return Err(aws::failure(&grant.key.account_id(), RETIRE_GRANT, error)),
        }
    }
    Ok(retired)
}
