//! The keys under the image: whether they can be shared at all, and what their policies lack.

use ami_share_core::{
    Error, Hub, aws,
    ids::{AccountId, ExecutionName, KeyArn},
    key_policy::{self, KeyPolicy},
    share::{KeyAccess, KeyChange, Source},
};
use ami_share_key_grants::KeyGrant;
use ami_share_key_policies::state;
use aws_sdk_kms::{Client, error::ProvideErrorMetadata, types::KeyManagerType};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::image::Found;

/// How many grants are looked for at a time.
const CONCURRENCY: usize = 16;

/// Who is to use the keys, and how.
pub(crate) struct Keys<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) execution: &'a ExecutionName,
    pub(crate) kms: &'a Client,
    pub(crate) source: &'a Source,
    pub(crate) access: KeyAccess,
    pub(crate) accounts: &'a [AccountId],
    /// The source account's role, which may retire grants of ours.
    pub(crate) retiring: &'a str,
}

impl Keys<'_> {
    /// The keys whose policy lacks something for the accounts, or that lack grants to them; what stands
    /// in the way goes to `problems`. Each way is looked at by itself: whoever asked for one can rely on
    /// it when the other is taken back.
    ///
    /// # Errors
    /// Whatever AWS answers and cannot be explained.
    pub(crate) async fn lacking(&self, found: &Found, problems: &mut Vec<Error>) -> Result<Vec<KeyChange>, Error> {
        let source = &self.source.account_id;
        let mut changes = Vec::new();
        for (key, devices) in &found.devices {
            let Ok(key_arn) = KeyArn::parse(key.as_str()) else {
                problems.push(not_shareable(key, devices, "EC2 names no key that could be shared"));
                continue;
            };
            if key_arn.account_id() != *source {
                let reason = format!(
                    "it belongs to account {}, whose key policy is not ours to change; \
                     copy the image under a key of account {source} and share the copy",
                    key_arn.account_id(),
                );
                problems.push(not_shareable(key, devices, &reason));
                continue;
            }
            match self.change(&key_arn, devices).await {
                Ok(change) => changes.extend(change),
                Err(error @ (Error::Throttled { .. } | Error::Unavailable { .. })) => return Err(error),
                Err(problem) => problems.push(problem),
            }
        }
        Ok(changes)
    }

    async fn change(&self, key: &KeyArn, devices: &[String]) -> Result<Option<KeyChange>, Error> {
        shareable(self.kms, key, devices).await?;
        match self.access {
            KeyAccess::Policy => self.policy_change(key).await,
            KeyAccess::Grant => self.grant_change(key).await,
        }
    }

    async fn policy_change(&self, key: &KeyArn) -> Result<Option<KeyChange>, Error> {
        let policy = KeyPolicy::parse(key, &ami_share_key_policies::read(self.kms, key).await?)?;
        let Some(merged) = policy.with(self.accounts)? else { return Ok(None) };
        // What ShareKey could not write, or would not, is refused here, before anything is changed.
        merged.to_text()?;
        ami_share_allow_list::check_revived(self.hub, self.execution, key, &policy, self.accounts).await?;
        let named = policy.accounts();
        let account_ids = self.accounts.iter().filter(|account| !named.contains(account)).cloned().collect();
        Ok(Some(KeyChange { key_arn: key.clone(), account_ids, repair: policy.repair() }))
    }

    async fn grant_change(&self, key: &KeyArn) -> Result<Option<KeyChange>, Error> {
        let found: Vec<Option<AccountId>> = stream::iter(self.accounts)
            .map(|account| async move {
                let grants = KeyGrant { key, account, retiring: self.retiring }.find(self.kms).await?;
                Ok::<_, Error>((!grants.iter().any(KeyGrant::is_of_this_version)).then(|| account.clone()))
            })
            .buffered(CONCURRENCY)
            .try_collect()
            .await?;
        let account_ids: Vec<AccountId> = found.into_iter().flatten().collect();
        Ok((!account_ids.is_empty()).then(|| KeyChange { key_arn: key.clone(), account_ids, repair: None }))
    }
}

/// Refuses a key that no other account could use.
async fn shareable(kms: &Client, key: &KeyArn, devices: &[String]) -> Result<(), Error> {
    let account = key.account_id();
    let not_usable =
        |reason: String| Error::KeyNotUsable { key: key.to_string(), reason: with_devices(&reason, devices) };
    let described = match kms.describe_key().key_id(key.as_str()).send().await {
        Ok(described) => described,
        Err(error) if error.code() == Some("NotFoundException") => {
            return Err(not_usable("it does not exist".to_owned()));
        }
        Err(error) => return Err(key_policy::explained(key, aws::failure(&account, "kms:DescribeKey", error))),
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
    match metadata.and_then(|key| key.key_state()).and_then(state::problem) {
        None => Ok(()),
        Some(problem) => Err(not_usable(problem)),
    }
}

fn not_shareable(key: &str, devices: &[String], reason: &str) -> Error {
    Error::KeyNotShareable { key: key.to_owned(), reason: with_devices(reason, devices) }
}

fn with_devices(reason: &str, devices: &[String]) -> String {
    format!("{reason} (it encrypts {})", devices.join(", "))
}
