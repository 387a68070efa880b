//! GrantKeys: gives each target a grant on each key under the image's volumes, and leaves the keys'
//! policies alone.

mod foreign;
mod undo;

use std::collections::BTreeSet;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, KeyArn},
    share::{KeyChange, Source},
};
use ami_share_key_grants::{KeyGrant, explained};
use aws_sdk_kms::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
};
use serde::{Deserialize, Serialize};

pub use undo::{UNDO_ACTIONS, UndoInput, Undone, undo_grant_keys};

pub const ACTIONS: Actions = Actions { source: &[CREATE_GRANT], ..Actions::NONE };

const CREATE_GRANT: &str = "kms:CreateGrant";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    /// The accounts that have no grant of ours on each key, or one of an earlier version.
    pub keys: Vec<KeyChange>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// How many grants there are more.
    pub grants: usize,
}

/// Makes each grant. A grant takes nothing away from anybody, so no lock is needed; a retry is
/// answered with the grant that is there.
///
/// # Errors
/// [`Error::SourceNotAllowed`]; [`Error::TargetNotAllowed`]; [`Error::AccessDenied`] for a key whose policy does not let IAM decide
/// about grants; [`Error::QuotaExceeded`] for one that has as many as it may; [`Error::KeyNotUsable`]; [`Error::Aws`] with every
/// account that KMS refuses as a grantee.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn grant_keys(hub: &Hub, input: Input) -> Result<Output, Error> {
    let accounts = input.keys.iter().flat_map(|change| &change.account_ids);
    hub.settings.sources.check(&input.source.account_id)?;
    ami_share_allow_list::check(hub, &input.execution, accounts).await?;
    let mut grants = 0;
    if input.keys.is_empty() {
        return Ok(Output { grants });
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, ACTIONS).await?;
    let kms = Client::new(&config);
    let retiring = hub.source_role(&source.account_id, &source.region);
    let (mut refused, mut reason) = (BTreeSet::new(), String::new());
    for KeyChange { key_arn, account_ids, .. } in &input.keys {
        for account in account_ids {
            let grant = KeyGrant { key: key_arn, account, retiring: &retiring };
            let created = kms
                .create_grant()
                .key_id(key_arn.as_str())
                .name(grant.name())
                .grantee_principal(grant.grantee())
                .retiring_principal(&retiring)
                .set_operations(Some(KeyGrant::operations()))
                .send()
                .await;
            match created {
                Ok(_) => grants += 1,
                Err(error) if error.code() == Some("InvalidArnException") => {
                    refused.insert(account);
                    reason = error.message().unwrap_or_default().to_owned();
                }
                Err(error) => return Err(failure(key_arn, error)),
            }
        }
        tracing::info!(key = %key_arn, accounts = account_ids.len(), "grants given");
    }
    if refused.is_empty() {
        return Ok(Output { grants });
    }
    let refused: Vec<&str> = refused.into_iter().map(AccountId::as_str).collect();
    Err(Error::Aws {
        account: source.account_id.clone(),
        call: CREATE_GRANT,
        reason: format!(
            "KMS refuses {} as grantees ({reason}); look whether these accounts exist, are not closed and have the Region of \
             the keys enabled, or leave them out",
            refused.join(", ")
        ),
        source: None,
    })
}

fn failure<E>(key: &KeyArn, error: SdkError<E, aws_sdk_kms::config::http::HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let message = error.message().unwrap_or_default().to_owned();
    if matches!(error.code(), Some("NotFoundException" | "KMSInvalidStateException" | "DisabledException")) {
        return Error::KeyNotUsable { key: key.to_string(), reason: format!("{CREATE_GRANT}: {message}") };
    }
    match aws::failure(&key.account_id(), CREATE_GRANT, error) {
        Error::QuotaExceeded { account, call, reason, source } => Error::QuotaExceeded {
            reason: format!(
                "{reason}; key {key} has as many grants as it may (50,000 unless AWS raised it, those of EBS for \
                 attached volumes among them): retire some, have the quota raised, or ask for keyAccess policy"
            ),
            account,
            call,
            source,
        },
        other => explained(key, other),
    }
}
