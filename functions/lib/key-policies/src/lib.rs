//! Key policies as KMS gives them, and what the states of keys mean.

#![warn(missing_docs)]

pub mod state;

use ami_share_core::{Error, aws, ids::KeyArn, key_policy};
use aws_sdk_kms::{
    Client,
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};

/// What reading a policy calls in the key's account.
pub const GET_KEY_POLICY: &str = "kms:GetKeyPolicy";

/// The policy of `key`.
///
/// # Errors
/// As [`failure`].
pub async fn read(kms: &Client, key: &KeyArn) -> Result<String, Error> {
    find(kms, key).await?.ok_or_else(|| Error::KeyNotUsable {
        key: key.to_string(),
        reason: format!("it does not exist ({GET_KEY_POLICY})"),
    })
}

/// The policy of `key`; nothing where the key does not exist.
///
/// # Errors
/// As [`failure`].
pub async fn find(kms: &Client, key: &KeyArn) -> Result<Option<String>, Error> {
    named(kms, key, "default").await
}

/// The second policy of a `key` that is shared through AWS Resource Access Manager, which only that writes
/// ("GetKeyPolicy", KMS API reference); nothing where there is none.
///
/// # Errors
/// As [`failure`].
pub async fn of_ram(kms: &Client, key: &KeyArn) -> Result<Option<String>, Error> {
    named(kms, key, "AWS_RAM").await
}

async fn named(kms: &Client, key: &KeyArn, name: &str) -> Result<Option<String>, Error> {
    match kms.get_key_policy().key_id(key.as_str()).policy_name(name).send().await {
        Ok(answer) => Ok(Some(answer.policy.unwrap_or_default())),
        Err(error) if error.code() == Some("NotFoundException") => Ok(None),
        Err(error) => Err(failure(key, GET_KEY_POLICY, error)),
    }
}

/// The error of `call`, which has to do with the policy of `key`: [`Error::KeyNotUsable`] for a key that is not there or
/// whose state forbids it; whatever else AWS answers, with what to do where it was refused.
pub fn failure<E>(key: &KeyArn, call: &'static str, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    match error.code() {
        Some("NotFoundException" | "KMSInvalidStateException") => Error::KeyNotUsable {
            key: key.to_string(),
            reason: format!("{call}: {}", error.message().unwrap_or_default()),
        },
        _ => key_policy::explained(key, aws::failure(&key.account_id(), call, error)),
    }
}
