//! How long to wait between two looks at what takes its time.
//!
//! An execution's history ends at 25,000 events (Step Functions service quotas), and then the
//! execution fails without a Catch. One look is nine events, so what takes long is looked at seldom.

/// Events of one look: Wait 2, Task 5, Choice 2.
pub const EVENTS_PER_LOOK: u64 = 9;

/// How often to look, and for how long at most. All in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Polling {
    /// The first wait, in seconds.
    pub shortest: u64,
    /// No wait is longer, in seconds.
    pub longest: u64,
    /// After this it is overdue: the step that looks gives up.
    pub patience: u64,
}

/// An instance runs, or dies, within a minute or two. All that are launched for one target share one patience.
pub const INSTANCE: Polling = Polling { shortest: 10, longest: 60, patience: 10 * 60 };

/// The pauses before a proof that died is launched again, each after the look that has found it dead: IAM's and KMS's
/// changes are mostly seen within seconds, at times after a minute or two.
pub const PAUSES: [u64; 2] = [30, 60];

/// The most instances that an execution launches in a target, one after the other.
pub const MAX_LAUNCHES: u64 = 1 + PAUSES.len() as u64;

/// A copy under another key is a full copy; of terabytes it takes hours.
pub const COPY: Polling = Polling { shortest: 30, longest: 15 * 60, patience: 12 * 60 * 60 };

/// A report on who uses an image takes minutes; how long at most, EC2's documents do not say.
pub const USAGE_REPORT: Polling = Polling { shortest: 15, longest: 5 * 60, patience: 6 * 60 * 60 };

impl Polling {
    /// The next wait, for what has taken `age` so far: a fifth of it.
    pub fn wait(self, age: u64) -> u64 {
        (age / 5).clamp(self.shortest, self.longest)
    }

    /// The wait after the `look`-th look, counted from 1; nothing when it is overdue then. For what has no age of its
    /// own, being one thing after another.
    pub fn wait_after(self, look: u64) -> Option<u64> {
        let age = (0..look).fold(0, |age, _| age + self.wait(age));
        (age <= self.patience).then(|| self.wait(age))
    }

    /// The most looks before it is overdue.
    pub fn looks(self) -> u64 {
        let (mut age, mut looks) = (0, 0);
        while age <= self.patience {
            age += self.wait(age);
            looks += 1;
        }
        looks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{MAX_COPIES, MAX_TARGETS};

    #[test]
    fn waits_grow_with_the_time_it_takes() {
        assert_eq!(COPY.wait(0), 30);
        assert_eq!(COPY.wait(3600), 720);
        assert_eq!(COPY.wait(40_000), 900);
    }

    #[test]
    fn the_last_look_is_the_first_that_is_overdue() {
        let last = (1..).find(|look| INSTANCE.wait_after(*look).is_none());
        assert_eq!(last, Some(INSTANCE.looks()));
        assert_eq!(INSTANCE.wait_after(1), Some(INSTANCE.shortest));
        assert!(INSTANCE.wait_after(INSTANCE.looks() - 1) > Some(INSTANCE.shortest));
    }

    #[test]
    fn the_largest_request_fits_into_the_history_at_its_slowest() {
        const HISTORY: u64 = 25_000;
        // Entering and leaving a target's other states, at most two retries each, and the undo.
        const OTHER_EVENTS: u64 = 150;
        const OUTER_EVENTS: u64 = 300;
        // One more Task, with two retries.
        const EVENTS_PER_LAUNCH: u64 = 11;
        let (targets, copies) = (MAX_TARGETS as u64, MAX_COPIES as u64);
        // However many instances there are, they share the looks.
        let proof = INSTANCE.looks() * EVENTS_PER_LOOK + (MAX_LAUNCHES - 1) * EVENTS_PER_LAUNCH;
        let launches = targets * (OTHER_EVENTS + proof);
        assert!(OUTER_EVENTS + launches < HISTORY, "{launches}");
        let copied = copies * (OTHER_EVENTS + COPY.looks() * EVENTS_PER_LOOK + proof);
        assert!(OUTER_EVENTS + copied < HISTORY, "{copied}");
    }
}
