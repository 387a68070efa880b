//! ShareKey: merges our statements into the policy of every key under the image's volumes.

mod undo;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{ExecutionName, KeyArn},
    key_policy::{self, KeyPolicy},
    plan::PlannedPolicies,
    share::{KeyChange, Source},
};
use ami_share_key_lock::{ATTEMPT, KeyLock};
use aws_sdk_kms::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    error::{ProvideErrorMetadata, SdkError},
};
use serde::{Deserialize, Serialize};

pub use undo::{UNDO_ACTIONS, UndoInput, undo_share_key};

pub const ACTIONS: Actions = Actions { source: &["kms:GetKeyPolicy", "kms:PutKeyPolicy"], target: &[], launcher: &[] };

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    /// The accounts to add to each key's policy. A key without accounts has its statements put right.
    pub keys: Vec<KeyChange>,
    /// What the policies must be; nothing where no plan is applied.
    pub planned: PlannedPolicies,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Keys whose policy was written.
    pub written: Vec<KeyArn>,
}

/// Writes each policy that lacks something of ours, and reads it back, under the lock of the source account and Region.
///
/// Reading, merging and writing again is safe, so a retry after a lost reply changes nothing.
///
/// # Errors
/// [`Error::TargetNotAllowed`]; [`Error::KeyPoliciesLocked`]; [`Error::PlanChanged`], and then nothing of this execution
/// is left in any of the policies; [`Error::KeyPolicyTooLarge`] and [`Error::KeyPolicyConflict`] before a write;
/// [`Error::NotYetVisible`] for a read that is out of date, before or after the write.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn share_key(hub: &Hub, input: Input) -> Result<Output, Error> {
    let accounts = input.keys.iter().flat_map(|change| &change.account_ids);
    ami_share_allow_list::check(hub, &input.execution, accounts).await?;
    if input.keys.is_empty() {
        return Ok(Output { written: vec![] });
    }
    let mut policies = Policies::open(hub, &input.execution, &input.source, ACTIONS).await?;
    let shared = share(&mut policies, &input).await;
    policies.lock.give_back().await;
    Ok(Output { written: shared? })
}

async fn share(policies: &mut Policies<'_>, input: &Input) -> Result<Vec<KeyArn>, Error> {
    keep_to_plan(policies, input).await?;
    let mut written = Vec::new();
    for KeyChange { key_arn, account_ids } in &input.keys {
        let policy = policies.read(key_arn).await?;
        if input.planned.check(key_arn, &policy).is_err() {
            keep_to_plan(policies, input).await?;
            return Err(not_yet_visible(key_arn));
        }
        let Some(merged) = policy.with(account_ids) else { continue };
        policies.write(key_arn, &policy, &merged).await?;
        tracing::info!(key = %key_arn, accounts = account_ids.len(), "key policy written");
        if policies.read(key_arn).await?.with(account_ids).is_some() {
            return Err(not_yet_visible(key_arn));
        }
        written.push(key_arn.clone());
    }
    Ok(written)
}

/// Looks at all policies before any is written, and, where one is not as planned, takes back what this execution has
/// written already.
async fn keep_to_plan(policies: &mut Policies<'_>, input: &Input) -> Result<(), Error> {
    if input.planned.is_empty() {
        return Ok(());
    }
    let (mut refused, mut written) = (None, Vec::new());
    for change in &input.keys {
        let policy = policies.read(&change.key_arn).await?;
        if let Err(error) = input.planned.check(&change.key_arn, &policy) {
            refused.get_or_insert(error);
        } else if policies.lock.has_written(&change.key_arn, &policy) {
            written.push(change);
        }
    }
    let Some(refused) = refused else { return Ok(()) };
    for change in written.into_iter().filter(|change| !change.account_ids.is_empty()) {
        undo::take_back(policies, change).await?;
    }
    Err(refused)
}

/// The policies of a source account's keys, which are read and written under the lock.
struct Policies<'h> {
    kms: Client,
    lock: KeyLock<'h>,
}

impl<'h> Policies<'h> {
    async fn open(hub: &'h Hub, execution: &ExecutionName, source: &Source, actions: Actions) -> Result<Self, Error> {
        let config = hub.as_source(&source.account_id, &source.region, execution, actions).await?;
        // One attempt, so that no write begins later than the lock has looked at the time; the state machine retries.
        let config = aws_sdk_kms::config::Builder::from(&config)
            .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT).build())
            .retry_config(RetryConfig::disabled())
            .build();
        Ok(Self { kms: Client::from_conf(config), lock: KeyLock::take(hub, execution, source).await? })
    }

    async fn read(&mut self, key: &KeyArn) -> Result<KeyPolicy, Error> {
        let answer = self
            .kms
            .get_key_policy()
            .key_id(key.as_str())
            .policy_name("default")
            .send()
            .await
            .map_err(|error| failure(key, "kms:GetKeyPolicy", error))?;
        let policy = KeyPolicy::parse(key, answer.policy().unwrap_or_default())?;
        self.lock.look(key, &policy)?;
        Ok(policy)
    }

    async fn write(&mut self, key: &KeyArn, before: &KeyPolicy, after: &KeyPolicy) -> Result<(), Error> {
        let text = after.to_text()?;
        self.lock.begin(key, before, after).await?;
        let put = self.kms.put_key_policy().key_id(key.as_str()).policy_name("default").policy(text).send().await;
        match &put {
            Ok(_) => self.lock.done(key),
            // KMS has looked at it and said no.
            Err(error) if error.raw_response().is_some_and(|response| response.status().is_client_error()) => {
                self.lock.refused(key);
            }
            Err(_) => {}
        }
        put.map(drop).map_err(|error| failure(key, "kms:PutKeyPolicy", error))
    }
}

fn failure<E>(key: &KeyArn, call: &'static str, error: SdkError<E, aws_sdk_kms::config::http::HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let message = error.message().unwrap_or_default().to_owned();
    match error.code() {
        Some("MalformedPolicyDocumentException") => Error::KeyPolicyConflict {
            key: key.clone(),
            reason: format!(
                "KMS refuses it ({call}: {message}); look for an account or principal that does not exist, or for why \
                 ami-share's role could not write it again"
            ),
        },
        Some("NotFoundException" | "KMSInvalidStateException") => {
            Error::KeyNotUsable { key: key.to_string(), reason: format!("{call}: {message}") }
        }
        _ => key_policy::explained(key, aws::failure(&key.account_id(), call, error)),
    }
}

fn not_yet_visible(key: &KeyArn) -> Error {
    Error::NotYetVisible {
        what: format!("the policy just written to key {key}"),
        account: key.account_id(),
        call: "kms:GetKeyPolicy",
    }
}
