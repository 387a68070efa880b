//! The lock on the key policies of a source account: see `LockKeys` in statemachine/share-ami.asl.json.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ami_share_core::{Error, share::Source};
use serde::Deserialize;

/// No write begins in the last minute of the lease: a call may take that long with its retries.
const MARGIN: Duration = Duration::from_secs(60);

/// The lock, as the state machine got it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lock {
    /// The end of the lease, in milliseconds since 1970.
    pub until: u64,
    /// How often the execution was redriven when it took the lock.
    pub redrive: u32,
    /// Whether this execution has held, and lost, the lock before.
    pub again: bool,
}

impl Lock {
    /// The lock of `source` in the hands of an execution that was redriven so often.
    ///
    /// # Errors
    /// [`Error::LockLost`] when it was taken before the execution was redriven: between its stop and
    /// its redrive others may have had it. Step Functions runs the state that was stopped again, and
    /// not the one before it that took the lock.
    pub(crate) fn held(&self, source: &Source, redrive: u32) -> Result<HeldLock, Error> {
        let lock = HeldLock { source: source.clone(), until: UNIX_EPOCH + Duration::from_millis(self.until) };
        if self.redrive == redrive { Ok(lock) } else { Err(lock.lost()) }
    }

    /// How often the policies may have been written before: what was tried under a lost lock counts.
    pub(crate) fn tried(&self, retry: u32) -> u32 {
        retry + u32::from(self.again)
    }
}

/// A lock with the end of its lease.
pub(crate) struct HeldLock {
    source: Source,
    until: SystemTime,
}

impl HeldLock {
    /// # Errors
    /// [`Error::LockLost`] when the lease is over, or about to be.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if SystemTime::now() + MARGIN < self.until { Ok(()) } else { Err(self.lost()) }
    }

    fn lost(&self) -> Error {
        let Source { account_id, region } = self.source.clone();
        Error::LockLost { account: account_id, region }
    }
}

#[cfg(test)]
mod tests {
    use ami_share_core::ids::{AccountId, Region};

    use super::*;

    fn source() -> Source {
        Source { account_id: AccountId::parse("111111111111").unwrap(), region: Region::parse("eu-west-1").unwrap() }
    }

    fn lock(seconds: u64, redrive: u32) -> Lock {
        let until = (SystemTime::now() + Duration::from_secs(seconds)).duration_since(UNIX_EPOCH).unwrap();
        Lock { until: until.as_millis().try_into().unwrap(), redrive, again: false }
    }

    #[test]
    fn a_lease_that_ends_within_a_minute_is_lost() {
        assert!(lock(900, 0).held(&source(), 0).unwrap().check().is_ok());
        for seconds in [0, 50] {
            let error = lock(seconds, 0).held(&source(), 0).unwrap().check().unwrap_err();
            assert_eq!(error.name(), "LockLost");
            assert!(error.to_string().contains("111111111111 in eu-west-1"), "{error}");
        }
    }

    #[test]
    fn a_lock_that_was_taken_before_the_execution_was_redriven_is_lost() {
        assert!(lock(900, 0).held(&source(), 1).is_err());
        assert!(lock(900, 1).held(&source(), 1).is_ok());
    }

    #[test]
    fn what_was_tried_under_a_lost_lock_counts_as_a_try() {
        let lost = Lock { again: true, ..lock(900, 0) };
        assert_eq!((lock(900, 0).tried(2), lost.tried(0)), (2, 1));
    }
}
