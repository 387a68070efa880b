//! A journal of every call: who, what, on what, and what came of it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Permitted and done (or a dry run that would have been).
    Allowed,
    /// No policy allows it, or one denies it.
    Denied,
    /// Permitted, but refused for another reason, or a fault.
    Error,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Counts from 1 and never repeats.
    pub seq: u64,
    /// Milliseconds since the sandbox started.
    pub time_ms: u64,
    /// The caller's account, which is the one the call acts in.
    pub account: String,
    /// `arn:aws:iam::A:root`, `…:user/x` or `…:role/x`.
    pub principal: String,
    pub session_name: Option<String>,
    /// Who assumed the role that calls: the principal that made the session.
    pub assumed_by: Option<String>,
    /// IAM-style: `ec2:DescribeImages`.
    pub action: String,
    /// Other actions that the caller needed for this call, such as `ec2:CreateTags` for the tags
    /// of what it makes.
    pub implied: Vec<String>,
    /// ARNs or ids of what the call was about.
    pub resources: Vec<String>,
    pub region: String,
    /// As they came over the wire: by name, in the Query protocol with the numbers of list items.
    pub parameters: Value,
    /// The kind of call: one that can change state.
    pub write: bool,
    pub outcome: Outcome,
    /// The error's code, if the answer was an error.
    pub code: Option<String>,
    /// Why it was denied or failed.
    pub reason: Option<String>,
    /// Whether any state really changed.
    pub changed: bool,
    pub request_id: String,
    /// `ec2` for what EC2 did with a key in the caller's name, `hook` for a hook's call.
    pub via: Option<String>,
}

/// All calls since the start or the last [`Journal::clear`].
#[derive(Debug, Default)]
pub struct Journal {
    entries: Vec<Entry>,
    last_seq: u64,
}

impl Journal {
    /// Adds an entry and gives it its number.
    pub fn push(&mut self, mut entry: Entry) -> u64 {
        self.last_seq += 1;
        entry.seq = self.last_seq;
        self.entries.push(entry);
        self.last_seq
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The number of the latest entry; pass it to [`Journal::since`] later.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// The entries after number `seq`.
    pub fn since(&self, seq: u64) -> &[Entry] {
        let start = self.entries.partition_point(|entry| entry.seq <= seq);
        &self.entries[start..]
    }

    /// Forgets the entries; numbers go on.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}

/// Whether an action's name says that it only reads.
pub fn is_read(action: &str) -> bool {
    let name = action.split_once(':').map_or(action, |(_, name)| name);
    ["Describe", "Get", "List", "Simulate"].iter().any(|prefix| name.starts_with(prefix))
        || matches!(
            name,
            "AssumeRole"
                | "DecodeAuthorizationMessage"
                | "Encrypt"
                | "Decrypt"
                | "ReEncryptFrom"
                | "ReEncryptTo"
                | "ReEncrypt"
                | "GenerateDataKey"
                | "GenerateDataKeyWithoutPlaintext"
        )
}
