//! ShareKey: merges our statements into the policy of every key under the image's volumes.

mod lock;
mod superseded;
mod undo;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{ExecutionName, KeyArn},
    key_policy::{self, KeyPolicy},
    plan::PlannedPolicies,
    share::{KeyChange, Source},
};
use aws_sdk_kms::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
};
use serde::{Deserialize, Serialize};

use lock::HeldLock;
pub use lock::Lock;
pub use superseded::Superseded;
pub use undo::{UNDO_ACTIONS, UndoInput, undo_share_key};

pub const ACTIONS: Actions = Actions { source: &["kms:GetKeyPolicy", "kms:PutKeyPolicy"], target: &[], launcher: &[] };

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    /// The accounts to add to each key's policy. A key without accounts has its statements put right.
    pub keys: Vec<KeyChange>,
    /// As the last execution that held the lock left it.
    pub superseded: Superseded,
    /// How often the state was tried before.
    pub retry: u32,
    pub lock: Lock,
    /// How often the execution was redriven.
    pub redrive: u32,
    /// What the policies must be; nothing where no plan is applied.
    pub planned: PlannedPolicies,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// Keys whose policy was written.
    pub written: Vec<KeyArn>,
    /// For the next execution that holds the lock.
    pub superseded: Superseded,
}

/// Writes each policy that lacks something of ours, and reads it back.
///
/// KMS has no version on a key policy: what is read just before is merged and written as a whole.
/// The state machine's lock keeps other executions away meanwhile. Reading, merging and writing
/// again is safe, so a retry after a lost reply changes nothing; what that first try replaced is
/// told from what it wrote.
///
/// # Errors
/// [`Error::TargetNotAllowed`]; [`Error::PlanChanged`], and then nothing of this execution is left in
/// any of the policies; [`Error::LockLost`], [`Error::KeyPolicyTooLarge`] and [`Error::KeyPolicyConflict`]
/// before a write; [`Error::NotYetVisible`] for a stale read, before or after the write.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn share_key(hub: &Hub, input: Input) -> Result<Output, Error> {
    let accounts = input.keys.iter().flat_map(|change| &change.account_ids);
    ami_share_allow_list::check(hub, &input.execution, accounts).await?;
    let mut written = Vec::new();
    let mut superseded = input.superseded;
    if input.keys.is_empty() {
        return Ok(Output { written, superseded });
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, ACTIONS).await?;
    let policies = Policies { kms: Client::new(&config), lock: input.lock.held(source, input.redrive)? };
    let tried = input.lock.tried(input.retry);
    keep_to_plan(&policies, &input.keys, &input.planned, tried, false, &mut superseded).await?;
    for KeyChange { key_arn, account_ids } in &input.keys {
        let policy = policies.read(key_arn).await?;
        superseded.check(key_arn, &policy, tried)?;
        if input.planned.check(key_arn, &policy).is_err() {
            let begun = !written.is_empty();
            keep_to_plan(&policies, &input.keys, &input.planned, tried, begun, &mut superseded).await?;
            return Err(not_yet_visible(key_arn));
        }
        let Some(merged) = policy.with(account_ids) else {
            if let Some(before) = policy.without(account_ids).filter(|_| tried > 0) {
                superseded.replace(key_arn, &before, &policy);
            }
            continue;
        };
        policies.write(key_arn, &merged).await?;
        superseded.replace(key_arn, &policy, &merged);
        tracing::info!(key = %key_arn, accounts = account_ids.len(), "key policy written");
        if policies.read(key_arn).await?.with(account_ids).is_some() {
            return Err(not_yet_visible(key_arn));
        }
        written.push(key_arn.clone());
    }
    Ok(Output { written, superseded })
}

/// Looks at all policies before any is written, and, where one is not as planned, takes back what
/// may be `begun`: what this try, or one before it, has written already.
async fn keep_to_plan(
    policies: &Policies,
    keys: &[KeyChange],
    planned: &PlannedPolicies,
    tried: u32,
    begun: bool,
    superseded: &mut Superseded,
) -> Result<(), Error> {
    if planned.is_empty() {
        return Ok(());
    }
    let (mut refused, mut written) = (None, Vec::new());
    for change in keys {
        let policy = policies.read(&change.key_arn).await?;
        superseded.check(&change.key_arn, &policy, tried)?;
        if let Err(error) = planned.check(&change.key_arn, &policy) {
            refused.get_or_insert(error);
        } else if (begun || tried > 0) && planned.is_written(&change.key_arn, &policy) {
            written.push(change);
        }
    }
    let Some(refused) = refused else { return Ok(()) };
    for change in written.into_iter().filter(|change| !change.account_ids.is_empty()) {
        undo::take_back(policies, change, tried, superseded).await?;
    }
    Err(refused)
}

/// The policies of keys, which are written only while the lock is this execution's.
struct Policies {
    kms: Client,
    lock: HeldLock,
}

impl Policies {
    async fn read(&self, key: &KeyArn) -> Result<KeyPolicy, Error> {
        let answer = self
            .kms
            .get_key_policy()
            .key_id(key.as_str())
            .policy_name("default")
            .send()
            .await
            .map_err(|error| failure(key, "kms:GetKeyPolicy", error))?;
        KeyPolicy::parse(key, answer.policy().unwrap_or_default())
    }

    async fn write(&self, key: &KeyArn, policy: &KeyPolicy) -> Result<(), Error> {
        let text = policy.to_text()?;
        self.lock.check()?;
        self.kms
            .put_key_policy()
            .key_id(key.as_str())
            .policy_name("default")
            .policy(text)
            .send()
            .await
            .map_err(|error| failure(key, "kms:PutKeyPolicy", error))?;
        Ok(())
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
