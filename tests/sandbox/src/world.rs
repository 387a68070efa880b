//! Everything the sandbox knows: accounts, journal, faults, settings, clock and ids.

use crate::ec2::{self, Ec2, Schedule};
use crate::faults::Faults;
use crate::iam::{self, Iam};
use crate::journal::Journal;
use crate::kms::{self, Kms};
use crate::policy::{Policy, PolicyKind, Request};
use crate::sts::Credentials;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The partition of every ARN in the sandbox.
pub const PARTITION: &str = "aws";

/// How the sandbox behaves. Every field has a default; `POST /_sandbox/settings`
/// changes the ones it names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// An STS endpoint such as `http://127.0.0.1:4566` that is asked who an
    /// unknown access key belongs to.
    pub upstream_sts: Option<String>,
    /// Milliseconds until a new role or user can be named in a policy or grant.
    pub principal_delay_ms: u64,
    /// Milliseconds until a change to IAM policies is effective.
    pub iam_policy_delay_ms: u64,
    /// Milliseconds until a change to a key policy is effective.
    pub key_policy_delay_ms: u64,
    /// Milliseconds until a new or revoked grant is effective.
    pub grant_delay_ms: u64,
    /// The most grants that a key can have.
    pub grants_per_key: usize,
    /// Milliseconds from RunInstances (or StartInstances) to running or terminated.
    pub launch_delay_ms: u64,
    /// Milliseconds from a copy's, snapshot's or usage report's start to its end.
    pub copy_delay_ms: u64,
    /// Token buckets, each per account, region and action. Off when empty.
    pub rate_limits: Vec<RateLimit>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            port: 0,
            upstream_sts: None,
            principal_delay_ms: 0,
            iam_policy_delay_ms: 0,
            key_policy_delay_ms: 0,
            grant_delay_ms: 0,
            grants_per_key: 50_000,
            launch_delay_ms: 5,
            copy_delay_ms: 5,
            rate_limits: Vec::new(),
        }
    }
}

/// One token bucket's size, for each action that matches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// IAM-style action, with wildcards: `ec2:Describe*`.
    pub action: String,
    /// How many calls a full bucket allows at once.
    pub burst: f64,
    /// Tokens added each second.
    pub per_second: f64,
}

/// One simulated account.
#[derive(Debug, Clone)]
pub struct Account {
    pub id: String,
    pub iam: Iam,
    /// By region.
    pub kms: BTreeMap<String, Kms>,
    /// By region.
    pub ec2: BTreeMap<String, Ec2>,
    pub organization: Option<Organization>,
}

impl Account {
    fn new(id: &str) -> Self {
        Self { id: id.to_owned(), iam: Iam::new(id), kms: BTreeMap::new(), ec2: BTreeMap::new(), organization: None }
    }
}

/// The organization an account belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Organization {
    /// `arn:aws:organizations::<management account>:organization/o-…`
    pub organization_arn: String,
    /// `arn:aws:organizations::<management account>:ou/o-…/ou-…`, of every unit
    /// the account is in, from the innermost to the outermost.
    #[serde(default)]
    pub unit_arns: Vec<String>,
    /// Of the account; without one it is ACTIVE.
    #[serde(default)]
    pub state: Option<String>,
    /// Whether the account may ask about the others, as the management account may.
    #[serde(default)]
    pub delegated_administrator: bool,
    /// At each level, from the root to the account itself, those that are attached there. Organizations attaches
    /// [`ServiceControlPolicy::full_access`] everywhere until somebody takes it away. Without levels nothing is limited.
    #[serde(default)]
    pub service_control_policies: Vec<Vec<ServiceControlPolicy>>,
}

/// A service control policy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "WrittenPolicy", into = "WrittenPolicy")]
pub struct ServiceControlPolicy {
    id: String,
    document: Arc<Policy>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenPolicy {
    id: String,
    document: Value,
}

impl ServiceControlPolicy {
    /// `id` is `p-…`. The error is AWS's kind of sentence.
    pub fn new(id: &str, document: &Value) -> Result<Self, String> {
        let document = Policy::parse(&document.to_string(), PolicyKind::Identity)?;
        Ok(Self { id: id.to_owned(), document: Arc::new(document) })
    }

    /// What Organizations attaches by itself.
    pub fn full_access() -> Self {
        let everything = json!({ "Effect": "Allow", "Action": "*", "Resource": "*" });
        let document = json!({ "Version": "2012-10-17", "Statement": [everything] });
        Self::new("p-FullAWSAccess", &document).expect("AWS's own policy is one")
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn document(&self) -> &Policy {
        &self.document
    }

    pub fn has_conditions(&self) -> bool {
        let document = self.document.json();
        match &document["Statement"] {
            Value::Array(statements) => statements.iter().any(|statement| statement.get("Condition").is_some()),
            single => single.get("Condition").is_some(),
        }
    }
}

impl TryFrom<WrittenPolicy> for ServiceControlPolicy {
    type Error = String;

    fn try_from(written: WrittenPolicy) -> Result<Self, String> {
        Self::new(&written.id, &written.document)
    }
}

impl From<ServiceControlPolicy> for WrittenPolicy {
    fn from(policy: ServiceControlPolicy) -> Self {
        Self { document: policy.document.json(), id: policy.id }
    }
}

impl PartialEq for ServiceControlPolicy {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.document.text == other.document.text
    }
}

impl Eq for ServiceControlPolicy {}

/// What is known of the call being handled; handlers add to it for the journal.
#[derive(Debug, Clone, Default)]
pub struct Call {
    pub region: String,
    pub request_id: String,
    /// ARNs (or ids) of what the call is about.
    pub resources: Vec<String>,
    /// Actions that the caller needs for it besides its own.
    pub implied: Vec<String>,
    /// Whether any state really changed.
    pub changed: bool,
}

/// A request that the identity policies of a role had to allow, and did.
#[derive(Debug)]
pub struct Allowed {
    /// The role's ARN.
    pub role: String,
    pub request: Request,
}

/// All accounts and what belongs to the sandbox itself.
#[derive(Debug)]
pub struct World {
    pub accounts: BTreeMap<String, Account>,
    pub settings: Settings,
    pub journal: Journal,
    pub faults: Faults,
    /// Accounts that KMS does not take for principals: they do not exist, were closed, or have not enabled its Region.
    pub unknown_to_kms: BTreeSet<String>,
    pub credentials: Credentials,
    /// The call being handled.
    pub call: Call,
    /// Where somebody wants to know, and put a list here.
    pub allowed: Option<RefCell<Vec<Allowed>>>,
    pub(crate) schedule: Schedule,
    pub(crate) buckets: BTreeMap<String, (f64, u64)>,
    clock: Clock,
    /// The time of day when the clock began, in milliseconds since 1970.
    began_ms: u64,
    ids: u64,
}

/// What tells the time since the sandbox started.
#[derive(Debug)]
enum Clock {
    Running(Instant),
    /// In milliseconds, as it was last set.
    Set(u64),
}

impl World {
    pub fn new(settings: Settings) -> Self {
        Self {
            accounts: BTreeMap::new(),
            settings,
            journal: Journal::default(),
            faults: Faults::default(),
            unknown_to_kms: BTreeSet::new(),
            credentials: Credentials::default(),
            call: Call::default(),
            allowed: None,
            schedule: Schedule::default(),
            buckets: BTreeMap::new(),
            clock: Clock::Running(Instant::now()),
            began_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(0)),
            ids: 0,
        }
    }

    pub fn account(&self, id: &str) -> Option<&Account> {
        self.accounts.get(id)
    }

    /// The account of that id, created on first use.
    pub fn account_mut(&mut self, id: &str) -> &mut Account {
        self.accounts.entry(id.to_owned()).or_insert_with(|| Account::new(id))
    }

    /// Milliseconds since the sandbox started.
    pub fn now_ms(&self) -> u64 {
        match self.clock {
            Clock::Running(started) => u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            Clock::Set(now_ms) => now_ms,
        }
    }

    /// Stops the clock at a time: for a simulation, whose time is not that of this machine. Sessions and key ages go by
    /// this machine's all the same.
    pub fn set_now_ms(&mut self, now_ms: u64) {
        self.clock = Clock::Set(now_ms);
    }

    /// The time of day when a simulation began, in milliseconds since 1970.
    pub fn set_began_ms(&mut self, began_ms: u64) {
        self.began_ms = began_ms;
    }

    /// The time of day, in milliseconds since 1970.
    pub fn epoch_ms(&self) -> u64 {
        self.began_ms + self.now_ms()
    }

    /// The time of day as AWS writes it, `2026-01-31T23:59:59.000Z`.
    pub fn timestamp(&self) -> String {
        chrono::DateTime::from_timestamp(i64::try_from(self.epoch_ms() / 1_000).unwrap_or(0), 0)
            .unwrap_or_default()
            .format("%Y-%m-%dT%H:%M:%S.000Z")
            .to_string()
    }

    /// A new id such as `ami-0…` with 17 hexadecimal digits, unique in this world.
    pub fn next_id(&mut self, prefix: &str) -> String {
        format!("{prefix}-0{:016x}", self.next_number())
    }

    /// A new number; the same sequence in every world.
    pub fn next_number(&mut self) -> u64 {
        self.ids += 1;
        // Multiplying by an odd number maps different counters to different numbers.
        self.ids.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// A new id in the form of a UUID.
    pub fn next_uuid(&mut self) -> String {
        let high = self.next_number();
        let low = self.next_number();
        format!(
            "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            (low >> 48) & 0xfff,
            low & 0xffff_ffff_ffff
        )
    }

    /// A new unique id of IAM: `AROA`, `AIDA`, `ANPA` and the like, and 17 characters.
    pub fn next_iam_id(&mut self, prefix: &str) -> String {
        format!("{prefix}{:016X}Q", self.next_number())
    }

    /// Notes for the journal that the call being handled is about `resource`.
    pub fn note_resource(&mut self, resource: impl Into<String>) {
        self.call.resources.push(resource.into());
    }

    /// Notes for the journal that the call being handled needs another action too.
    pub fn note_implied(&mut self, action: &str) {
        if !self.call.implied.iter().any(|noted| noted == action) {
            self.call.implied.push(action.to_owned());
        }
    }

    /// Notes for the journal that the call being handled changed state.
    pub fn note_change(&mut self) {
        self.call.changed = true;
    }

    /// An account's whole state in canonical form, without the times and ids that
    /// do not matter: two snapshots are equal exactly when nothing was changed, or
    /// everything was changed back. Regions without anything in them are left out.
    pub fn snapshot(&mut self, account: &str) -> Value {
        ec2::settle(self);
        let Some(account) = self.account(account) else {
            return Value::Null;
        };
        let nothing = ec2::snapshot(&Ec2::default());
        let ec2: BTreeMap<&String, Value> = account
            .ec2
            .iter()
            .map(|(region, ec2)| (region, ec2::snapshot(ec2)))
            .filter(|(_, snapshot)| *snapshot != nothing)
            .collect();
        let kms: BTreeMap<&String, Value> = account
            .kms
            .iter()
            .map(|(region, kms)| (region, kms::snapshot(kms)))
            .filter(|(_, snapshot)| *snapshot != json!({}))
            .collect();
        json!({
            "iam": iam::snapshot(&account.iam),
            "kms": kms,
            "ec2": ec2,
            "organization": account.organization,
        })
    }

    /// An account's users, roles and policies; the `iam` part of its snapshot.
    pub fn export_iam(&self, account: &str) -> Value {
        self.account(account).map_or(Value::Null, |account| iam::snapshot(&account.iam))
    }

    /// Makes the users, roles and policies of an export, and replaces those that
    /// exist; others stay. A role keeps its unique id.
    pub fn import_iam(&mut self, account: &str, exported: &Value) -> Result<(), String> {
        iam::import(self, account, exported)
    }

    pub fn set_organization(&mut self, account: &str, organization: Option<Organization>) {
        self.account_mut(account).organization = organization;
    }
}

/// A value whose changes become effective only after a delay.
#[derive(Debug, Clone)]
pub struct Versioned<T> {
    latest: T,
    /// Earlier values with the time, in milliseconds, until which they are effective.
    earlier: Vec<(T, u64)>,
}

impl<T> Versioned<T> {
    pub fn new(value: T) -> Self {
        Self { latest: value, earlier: Vec::new() }
    }

    /// What was written last.
    pub fn latest(&self) -> &T {
        &self.latest
    }

    /// What is effective at `now_ms`.
    pub fn effective(&self, now_ms: u64) -> &T {
        self.earlier.iter().find(|(_, until)| *until > now_ms).map_or(&self.latest, |(value, _)| value)
    }

    /// Writes a value that becomes effective `delay_ms` after `now_ms`.
    pub fn set(&mut self, value: T, now_ms: u64, delay_ms: u64) {
        let before = std::mem::replace(&mut self.latest, value);
        self.earlier.retain(|(_, until)| *until > now_ms);
        if delay_ms > 0 {
            self.earlier.push((before, now_ms + delay_ms));
        }
    }
}

/// Seconds since 1970.
pub fn epoch_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
