//! Key policies, read and written under the lock.

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{ExecutionName, KeyArn},
    key_policy::KeyPolicy,
    share::Source,
};
use ami_share_key_lock::{ATTEMPT, KeyLock};
use ami_share_key_policies::GET_KEY_POLICY;
use aws_sdk_kms::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    error::ProvideErrorMetadata,
};

pub(crate) const PUT_KEY_POLICY: &str = "kms:PutKeyPolicy";

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
        let policy = KeyPolicy::parse(key, &ami_share_key_policies::read(&self.kms, key).await?)?;
        self.lock.look(key, &policy)?;
        Ok(policy)
    }

    pub(crate) async fn write(&mut self, key: &KeyArn, before: &KeyPolicy, after: &KeyPolicy) -> Result<(), Error> {
        let Some(reason) = self.offer(key, before, after).await? else { return Ok(()) };
        Err(refusal(key, "it", &reason))
    }

    /// Writes a policy that KMS may refuse, and says why it did, if it did.
    pub(crate) async fn offer(
        &mut self,
        key: &KeyArn,
        before: &KeyPolicy,
        after: &KeyPolicy,
    ) -> Result<Option<String>, Error> {
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
        match put {
            Ok(_) => Ok(None),
            Err(error) if error.code() == Some("MalformedPolicyDocumentException") => {
                Ok(Some(error.message().unwrap_or_default().to_owned()))
            }
            Err(error) => Err(ami_share_key_policies::failure(key, PUT_KEY_POLICY, error)),
        }
    }
}

pub(crate) fn not_yet_visible(key: &KeyArn) -> Error {
    Error::NotYetVisible {
        what: format!("the policy just written to key {key}"),
        account: key.account_id(),
        call: GET_KEY_POLICY,
    }
}

/// KMS did not take `what`, and gave the `reason`.
pub(crate) fn refusal(key: &KeyArn, what: &str, reason: &str) -> Error {
    Error::KeyPolicyConflict {
        key: key.clone(),
        reason: format!(
            "KMS refuses {what} ({PUT_KEY_POLICY}: {reason}); look for an account or principal that does not exist, or for \
             why ami-share's role could not write it again"
        ),
    }
}
