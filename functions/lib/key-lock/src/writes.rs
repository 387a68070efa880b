//! What was written to key policies lately: how a read that is out of date is told from the policy of today.
//!
//! kms:GetKeyPolicy may answer with a policy that was replaced, for seconds as a rule and minutes at times (KMS developer
//! guide, "AWS KMS eventual consistency"). Merged and written back, it would take away what was written since. And a
//! writer that gets no answer from kms:PutKeyPolicy, or crashes, cannot tell the next one how it ended. So each write is
//! noted before it begins, as pending.

use std::{collections::BTreeMap, time::Duration};

use ami_share_core::ids::{ExecutionName, KeyArn};
use serde::{Deserialize, Serialize};

/// For how long a write is known at all: longer than an execution tries again.
const KNOWN_FOR: Duration = Duration::from_secs(3_600);

/// Each key's writes, the oldest first. Times are in milliseconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct Writes {
    by_key: BTreeMap<KeyArn, Vec<Write>>,
    /// For how long after a write the policy before it may still be read.
    stale_reads: Duration,
}

/// One write, with digests of the policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Write {
    by: ExecutionName,
    before: String,
    after: String,
    /// When it was begun.
    begun_at: i64,
    /// Whether nobody knows how it ended.
    pending: bool,
}

impl Writes {
    pub(crate) fn parse(text: &str, stale_reads: Duration) -> Result<Self, serde_json::Error> {
        Ok(Self { by_key: serde_json::from_str(text)?, stale_reads })
    }

    pub(crate) fn to_text(&self) -> String {
        serde_json::json!(self.by_key).to_string()
    }

    /// Whether a policy of that digest, read now, is the key's policy. What a pending write leads to settles it. What a
    /// write replaced is out of date until the time for that is over; then it is believed, as somebody may have put it
    /// back, and a pending write that it should have been replaced by has not come about.
    pub(crate) fn is_current(&mut self, key: &KeyArn, digest: &str, now: i64) -> bool {
        let Some(writes) = self.by_key.get_mut(key) else { return true };
        for write in writes.iter_mut().filter(|write| write.after == digest) {
            write.pending = false;
        }
        if writes.last().is_some_and(|write| write.after == digest) {
            return true;
        }
        let may_be_stale = |write: &Write| write.before == digest && age(write, now) <= self.stale_reads;
        if writes.iter().any(may_be_stale) {
            return false;
        }
        writes.retain(|write| !(write.pending && write.before == digest));
        true
    }

    pub(crate) fn has_written(&self, execution: &ExecutionName, key: &KeyArn, digest: &str) -> bool {
        let writes = self.by_key.get(key).map_or(&[][..], Vec::as_slice);
        writes.iter().any(|write| write.by == *execution && write.after == digest)
    }

    /// Notes a write as pending, and forgets what is old.
    pub(crate) fn begin(&mut self, by: &ExecutionName, key: &KeyArn, before: &str, after: &str, now: i64) {
        for writes in self.by_key.values_mut() {
            writes.retain(|write| age(write, now) <= KNOWN_FOR);
        }
        self.by_key.retain(|_, writes| !writes.is_empty());
        self.by_key.entry(key.clone()).or_default().push(Write {
            by: by.clone(),
            before: before.to_owned(),
            after: after.to_owned(),
            begun_at: now,
            pending: true,
        });
    }

    /// The write that was begun last is done.
    pub(crate) fn done(&mut self, key: &KeyArn) {
        if let Some(write) = self.by_key.get_mut(key).and_then(|writes| writes.last_mut()) {
            write.pending = false;
        }
    }

    /// The write that was begun last has not come about.
    pub(crate) fn refused(&mut self, key: &KeyArn) {
        if let Some(writes) = self.by_key.get_mut(key) {
            writes.pop();
        }
    }
}

fn age(write: &Write, now: i64) -> Duration {
    Duration::from_millis(u64::try_from(now - write.begun_at).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALE_READS: Duration = Duration::from_secs(300);

    fn key(id: &str) -> KeyArn {
        KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/{id}")).unwrap()
    }

    fn execution(name: &str) -> ExecutionName {
        ExecutionName::parse(name).unwrap()
    }

    fn at(seconds: i64) -> i64 {
        (1_000_000 + seconds) * 1_000
    }

    /// One write from `a` to `b`, begun at second 0.
    fn begun() -> Writes {
        let mut writes = Writes { stale_reads: STALE_READS, ..Writes::default() };
        writes.begin(&execution("e"), &key("1"), "a", "b", at(0));
        writes
    }

    fn is_current(writes: &mut Writes, digest: &str, seconds: i64) -> bool {
        writes.is_current(&key("1"), digest, at(seconds))
    }

    #[test]
    fn what_was_just_replaced_is_not_current_and_its_successor_is() {
        let mut writes = begun();
        writes.done(&key("1"));
        assert!(!is_current(&mut writes, "a", 1));
        assert!(is_current(&mut writes, "b", 1));
        assert!(writes.is_current(&key("2"), "a", at(1)), "another key");
    }

    #[test]
    fn a_pending_write_is_settled_by_reading_what_it_leads_to() {
        let mut writes = begun();
        assert!(is_current(&mut writes, "b", 1));
        assert!(!writes.by_key[&key("1")][0].pending);
        assert!(!is_current(&mut writes, "a", 1), "the policy before it is out of date from then on");
    }

    #[test]
    fn a_pending_write_that_is_not_seen_until_its_time_is_over_has_not_come_about() {
        let mut writes = begun();
        assert!(!is_current(&mut writes, "a", 300));
        assert!(is_current(&mut writes, "a", 301));
        assert_eq!(writes.by_key[&key("1")], []);
    }

    #[test]
    fn an_old_policy_that_is_still_read_when_the_time_is_over_was_put_back() {
        let mut writes = begun();
        writes.done(&key("1"));
        assert!(!is_current(&mut writes, "a", 300));
        assert!(is_current(&mut writes, "a", 301));
    }

    #[test]
    fn a_refused_write_leaves_the_policy_as_it_was() {
        let mut writes = begun();
        writes.refused(&key("1"));
        assert!(is_current(&mut writes, "a", 1));
    }

    #[test]
    fn a_policy_that_is_written_again_is_current_and_what_came_between_is_not() {
        let mut writes = begun();
        writes.done(&key("1"));
        writes.begin(&execution("f"), &key("1"), "b", "a", at(10));
        assert!(!is_current(&mut writes, "b", 11), "pending");
        assert!(is_current(&mut writes, "a", 11));
        assert!(!is_current(&mut writes, "b", 12));
    }

    #[test]
    fn of_a_chain_of_writes_none_before_the_last_is_current() {
        let mut writes = begun();
        writes.done(&key("1"));
        writes.begin(&execution("f"), &key("1"), "b", "c", at(10));
        assert!(!is_current(&mut writes, "a", 11));
        assert!(!is_current(&mut writes, "b", 11));
        assert!(is_current(&mut writes, "somebody else's", 11));
    }

    #[test]
    fn an_execution_knows_its_own_writes_for_an_hour() {
        let mut writes = begun();
        assert!(writes.has_written(&execution("e"), &key("1"), "b"));
        assert!(!writes.has_written(&execution("f"), &key("1"), "b"));
        assert!(!writes.has_written(&execution("e"), &key("1"), "a"));
        writes.begin(&execution("f"), &key("2"), "x", "y", at(3_600));
        assert!(writes.has_written(&execution("e"), &key("1"), "b"));
        writes.begin(&execution("f"), &key("2"), "y", "z", at(3_601));
        assert!(!writes.by_key.contains_key(&key("1")));
    }

    #[test]
    fn what_is_handed_on_is_read_again() {
        let writes = begun();
        let mut read = Writes::parse(&writes.to_text(), STALE_READS).unwrap();
        assert_eq!(read.by_key, writes.by_key);
        assert!(!is_current(&mut read, "a", 1));
        assert!(Writes::parse("[]", STALE_READS).is_err());
    }
}
