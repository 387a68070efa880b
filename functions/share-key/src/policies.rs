//! Key policies, read and written under the lock.

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{ExecutionName, KeyArn},
    key_policy::{self, KeyPolicy},
    share::Source,
};
use ami_share_key_lock::{ATTEMPT, KeyLock};
use aws_sdk_kms::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    error::{ProvideErrorMetadata, SdkError},
};

/// The policies of a source account's keys, which are read and written under the lock.
pub(crate) struct Policies<'h> {
    kms: Client,
    pub(crate) lock: KeyLock<'h>,
}

impl<'h> Policies<'h> {
    pub(crate) async fn open(
        hub: &'h Hub,
        execution: &ExecutionName,
        source: &Source,
        actions: Actions,
    ) -> Result<Self, Error> {
        let config = hub.as_source(&source.account_id, &source.region, execution, actions).await?;
        // One attempt, so that no write begins later than the lock has looked at the time; the state machine retries.
        let config = aws_sdk_kms::config::Builder::from(&config)
            .timeout_config(TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT).build())
            .retry_config(RetryConfig::disabled())
            .build();
        Ok(Self { kms: Client::from_conf(config), lock: KeyLock::take(hub, execution, source).await? })
    }

    pub(crate) async fn read(&mut self, key: &KeyArn) -> Result<KeyPolicy, Error> {
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

    pub(crate) async fn write(&mut self, key: &KeyArn, before: &KeyPolicy, after: &KeyPolicy) -> Result<(), Error> {
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

pub(crate) fn not_yet_visible(key: &KeyArn) -> Error {
    Error::NotYetVisible {
        what: format!("the policy just written to key {key}"),
        account: key.account_id(),
        call: "kms:GetKeyPolicy",
    }
}
