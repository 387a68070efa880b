//! Policies that were replaced lately: how a stale read is told from the policy of today.
//!
//! kms:GetKeyPolicy may answer, for some seconds, with a policy that was replaced (AWS KMS developer
//! guide, "AWS KMS eventual consistency"). Merged and written back, it would take away what was
//! written since. So each writer hands the next one the digests of what it replaced.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ami_share_core::{Error, ids::KeyArn, key_policy::KeyPolicy};
use serde::{Deserialize, Serialize};

/// For how long a read may be stale: far longer than was ever reported.
const STALE_FOR: Duration = Duration::from_secs(300);

/// Somebody may put an old policy back on purpose, as a tool does that manages the key. A policy
/// that is still read after so many retries of the state, half a minute, is taken at its word.
const RETRIES: u32 = 4;

/// Each key's policies of the last minutes, as digests.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Superseded(BTreeMap<KeyArn, Vec<Version>>);

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Version {
    digest: String,
    /// Seconds since 1970.
    replaced_at: u64,
}

impl Superseded {
    /// # Errors
    /// [`Error::NotYetVisible`] for a policy that was replaced lately, until the last retry.
    pub(crate) fn check(&self, key: &KeyArn, policy: &KeyPolicy, retry: u32) -> Result<(), Error> {
        let digest = policy.digest();
        let stale = self.0.get(key).is_some_and(|versions| {
            versions.iter().any(|version| version.digest == digest && is_recent(version, now()))
        });
        if !stale || retry >= RETRIES {
            return Ok(());
        }
        Err(Error::NotYetVisible {
            what: format!("the present policy of key {key} (an earlier one is still read)"),
            account: key.account_id(),
            call: "kms:GetKeyPolicy",
        })
    }

    /// Notes that `old` was replaced by `new`, and forgets what is too old to be read.
    pub(crate) fn replace(&mut self, key: &KeyArn, old: &KeyPolicy, new: &KeyPolicy) {
        let (now, current) = (now(), new.digest());
        for versions in self.0.values_mut() {
            versions.retain(|version| is_recent(version, now));
        }
        let versions = self.0.entry(key.clone()).or_default();
        versions.push(Version { digest: old.digest(), replaced_at: now });
        versions.retain(|version| version.digest != current);
        self.0.retain(|_, versions| !versions.is_empty());
    }
}

fn is_recent(version: &Version, now: u64) -> bool {
    now.saturating_sub(version.replaced_at) <= STALE_FOR.as_secs()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use ami_share_core::ids::AccountId;

    use super::*;

    fn key() -> KeyArn {
        KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1234").unwrap()
    }

    fn policies() -> (KeyPolicy, KeyPolicy) {
        let admin = r#"{"Statement":[{"Sid":"Admin","Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111111111111:root"},"Action":"kms:*","Resource":"*"}]}"#;
        let old = KeyPolicy::parse(&key(), admin).unwrap();
        let new = old.with([&AccountId::parse("222222222222").unwrap()]).unwrap();
        (old, new)
    }

    #[test]
    fn a_policy_that_was_just_replaced_is_not_yet_visible_and_its_successor_is() {
        let (old, new) = policies();
        let mut superseded = Superseded::default();
        superseded.replace(&key(), &old, &new);
        assert_eq!(superseded.check(&key(), &old, 0).unwrap_err().name(), "NotYetVisible");
        assert!(superseded.check(&key(), &new, 0).is_ok());
    }

    #[test]
    fn a_policy_that_is_written_again_is_no_longer_superseded() {
        let (old, new) = policies();
        let mut superseded = Superseded::default();
        superseded.replace(&key(), &old, &new);
        superseded.replace(&key(), &new, &old);
        assert!(superseded.check(&key(), &old, 0).is_ok());
        assert!(superseded.check(&key(), &new, 0).is_err());
    }

    #[test]
    fn an_old_policy_that_is_still_read_at_the_last_retry_was_put_back_on_purpose() {
        let (old, new) = policies();
        let mut superseded = Superseded::default();
        superseded.replace(&key(), &old, &new);
        assert!(superseded.check(&key(), &old, RETRIES - 1).is_err());
        assert!(superseded.check(&key(), &old, RETRIES).is_ok());
    }

    #[test]
    fn after_five_minutes_an_old_policy_is_forgotten() {
        let (old, new) = policies();
        let mut superseded = Superseded::default();
        superseded.replace(&key(), &old, &new);
        for version in superseded.0.values_mut().flatten() {
            version.replaced_at -= 301;
        }
        assert!(superseded.check(&key(), &old, 0).is_ok());
        let other = KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/5678").unwrap();
        superseded.replace(&other, &old, &new);
        assert!(!superseded.0.contains_key(&key()));
    }
}
