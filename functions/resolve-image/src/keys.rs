//! The keys under the image: whether they can be shared at all, and what their policies lack.

use ami_share_core::{
    Error, aws,
    ids::{AccountId, KeyArn},
    key_policy::KeyPolicy,
    share::{KeyChange, Source},
};
use aws_sdk_kms::{
    Client,
    error::ProvideErrorMetadata,
    types::{KeyManagerType, KeyState},
};

use crate::image::Found;

/// The keys whose policy lacks something for `accounts`; what stands in the way goes to `problems`.
///
/// # Errors
/// Whatever AWS answers and cannot be explained.
pub(crate) async fn find(
    kms: &Client,
    source: &Source,
    found: &Found,
    accounts: &[AccountId],
    problems: &mut Vec<Error>,
) -> Result<Vec<KeyChange>, Error> {
    let mut changes = Vec::new();
    for (key, devices) in &found.devices {
        let Ok(key_arn) = KeyArn::parse(key.as_str()) else {
            problems.push(not_shareable(key, devices, "EC2 names no key that could be shared"));
            continue;
        };
        if key_arn.account_id() != source.account_id {
            let reason = format!(
                "it belongs to account {}, whose key policy is not ours to change; \
                 copy the image under a key of account {} and share the copy",
                key_arn.account_id(),
                source.account_id
            );
            problems.push(not_shareable(key, devices, &reason));
            continue;
        }
        match key_change(kms, &key_arn, devices, accounts).await {
            Ok(change) => changes.extend(change),
            Err(error @ (Error::Throttled { .. } | Error::Unavailable { .. })) => return Err(error),
            Err(problem) => problems.push(problem),
        }
    }
    Ok(changes)
}

async fn key_change(
    kms: &Client,
    key: &KeyArn,
    devices: &[String],
    accounts: &[AccountId],
) -> Result<Option<KeyChange>, Error> {
    let account = key.account_id();
    let not_usable =
        |reason: String| Error::KeyNotUsable { key: key.to_string(), reason: with_devices(&reason, devices) };
    let described = match kms.describe_key().key_id(key.as_str()).send().await {
        Ok(described) => described,
        Err(error) if error.code() == Some("NotFoundException") => {
            return Err(not_usable("it does not exist".to_owned()));
        }
        Err(error) => return Err(aws::failure(&account, "kms:DescribeKey", error)),
    };
    let metadata = described.key_metadata();
    if metadata.and_then(|key| key.key_manager()) == Some(&KeyManagerType::Aws) {
        return Err(not_shareable(
            key.as_str(),
            devices,
            "it is the AWS-managed key aws/ebs, whose policy nobody can change; copy the image under a \
             customer-managed key (ec2:CopyImage with Encrypted and KmsKeyId) and share the copy",
        ));
    }
    match metadata.and_then(|key| key.key_state()) {
        Some(KeyState::Enabled) => {}
        Some(KeyState::PendingDeletion) => {
            return Err(not_usable(
                "it is pending deletion; cancel that (kms:CancelKeyDeletion) and enable it".to_owned(),
            ));
        }
        state => {
            let state = state.map_or("in an unknown state", KeyState::as_str);
            return Err(not_usable(format!("it is {state}, not Enabled; enable it (kms:EnableKey)")));
        }
    }
    let answer = kms
        .get_key_policy()
        .key_id(key.as_str())
        .policy_name("default")
        .send()
        .await
        .map_err(|error| aws::failure(&account, "kms:GetKeyPolicy", error))?;
    let policy = KeyPolicy::parse(key, answer.policy().unwrap_or_default())?;
    let Some(merged) = policy.with(accounts) else { return Ok(None) };
    // What ShareKey could not write is refused here, before anything is changed.
    merged.to_text()?;
    let named = policy.accounts();
    let account_ids = accounts.iter().filter(|account| !named.contains(account)).cloned().collect();
    Ok(Some(KeyChange { key_arn: key.clone(), account_ids }))
}

fn not_shareable(key: &str, devices: &[String], reason: &str) -> Error {
    Error::KeyNotShareable { key: key.to_owned(), reason: with_devices(reason, devices) }
}

fn with_devices(reason: &str, devices: &[String]) -> String {
    format!("{reason} (it encrypts {})", devices.join(", "))
}
