//! The plan: the output of a revoke that is asked for one.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error,
    ids::{AccountId, KeyArn, PlanHash},
    key_policy::KeyPolicy,
    plan,
    share::{Kept, KeyChange},
    take_back::{ForeignGrants, Left, TakeBack},
};
use ami_share_plan::{Call, written};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::policies::PolicyChange;

/// What a plan may take: it is handed back beside the next round's [`TakeBack`], and states pass 262,144 bytes to each
/// other.
pub(crate) const MOST_BYTES: usize = 110_000;

/// Of which the accounts that lose access to keys.
const MOST_OF_KEYS: usize = 40_000;

/// And what stays.
const MOST_OF_REST: usize = 15_000;

/// The longest diff of one policy.
const MOST_OF_DIFF: usize = 10_000;

/// For the sentences that say what was cut, and what the summary grows by.
const SENTENCES: usize = 20_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plan {
    status: Status,
    /// Of everything that the plan rests on, whole: of this round's, and the hash of the rounds before.
    plan_hash: PlanHash,
    message: String,
    summary: Summary,
    /// Targets that something would be taken from.
    targets: BTreeSet<AccountId>,
    /// Calls that change something. The targets' are made at the same time, and listed one target after the other.
    calls: Vec<Call>,
    /// The accounts that lose what the policy of each key gives them.
    keys: BTreeMap<KeyArn, Vec<AccountId>>,
    /// Access to keys that stays, as other images need it.
    kept: Vec<Kept>,
    /// What would stay for other reasons.
    left: Vec<String>,
    /// Grants that the targets passed on, and that would stay.
    foreign_grants: Vec<ForeignGrants>,
    /// How many calls, and entries of the last three lists, were left out so that the plan fits.
    unlisted: usize,
    /// Shares that one execution has no room for: they are not in this plan.
    remaining: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Status {
    Planned,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Summary {
    calls: usize,
    calls_by_account: BTreeMap<AccountId, usize>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            status: Status::Planned,
            plan_hash: plan::hash(&Value::Null),
            message: message(0, 0),
            summary: Summary::default(),
            targets: BTreeSet::new(),
            calls: Vec::new(),
            keys: BTreeMap::new(),
            kept: Vec::new(),
            left: Vec::new(),
            foreign_grants: Vec::new(),
            unlisted: 0,
            remaining: 0,
        }
    }
}

impl Plan {
    pub(crate) fn hash(&self) -> &PlanHash {
        &self.plan_hash
    }

    /// In what the plan that was to be applied is not this one.
    pub(crate) fn difference_to(&self, planned: &PlanHash) -> String {
        if self.summary.calls == 0 && planned.has_parts() {
            return format!(
                "plan {planned} was carried out, or the request is another: nothing that it names would be taken back"
            );
        }
        plan::difference(
            planned,
            &self.plan_hash,
            &PARTS.map(|(part, _)| part),
            "what it would take back is no longer the same",
            false,
        )
    }

    /// The accounts that the rounds so far take out of the policy of each key.
    pub(crate) fn lost(&self) -> &BTreeMap<KeyArn, Vec<AccountId>> {
        &self.keys
    }

    /// Adds a round.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where too many accounts lose access to too many keys.
    pub(crate) fn add(
        &mut self,
        take_back: &TakeBack,
        calls: Vec<Call>,
        policies: &[PolicyChange],
        foreign: Vec<ForeignGrants>,
    ) -> Result<(), Error> {
        let round = rests_on(take_back, policies, &calls);
        self.plan_hash = plan::hash_after(&self.plan_hash, &round, &parts(&round["takeBack"], &round["policies"]));
        self.targets.extend(take_back.launch_permissions.iter().cloned());
        self.targets.extend(take_back.targets.iter().map(|target| target.account_id.clone()));
        for KeyChange { key_arn, account_ids, .. } in take_back.grant_changes.iter().chain(&take_back.key_changes) {
            self.targets.extend(account_ids.iter().cloned());
            self.keys.entry(key_arn.clone()).or_default();
        }
        for KeyChange { key_arn, account_ids, .. } in &take_back.key_changes {
            self.keys.entry(key_arn.clone()).or_default().extend(account_ids.iter().cloned());
        }
        if written(&self.keys) > MOST_OF_KEYS {
            let value = format!("{} accounts under {} keys", self.targets.len(), self.keys.len());
            return Err(Error::invalid("targets", value, "must be fewer, for a plan: name some of them"));
        }
        self.summary.calls += calls.len();
        for call in &calls {
            *self.summary.calls_by_account.entry(call.account_id.clone()).or_default() += 1;
        }
        self.message = message(self.summary.calls, self.targets.len());
        // What an image kept before is judged anew.
        let judged = |account: &AccountId| take_back.notes.iter().any(|note| note.account_id == *account);
        self.kept.retain(|kept| !judged(&kept.account_id));
        self.kept.extend(take_back.kept.iter().cloned());
        let left = take_back.left.iter().map(ToString::to_string);
        let new: Vec<String> = left.filter(|left| !self.left.contains(left)).collect();
        self.left.extend(new);
        self.foreign_grants.extend(foreign);
        let mut room = MOST_OF_REST;
        self.unlisted += fit(&mut self.left, &mut room) + fit(&mut self.kept, &mut room);
        self.unlisted += fit(&mut self.foreign_grants, &mut room);
        self.calls.extend(calls);
        for diff in self.calls.iter_mut().filter_map(|call| call.policy.as_mut()) {
            diff.cut(MOST_OF_DIFF);
        }
        let rest = MOST_OF_KEYS + MOST_OF_REST + SENTENCES;
        self.unlisted += fit(&mut self.calls, &mut (MOST_BYTES - rest));
        Ok(())
    }

    /// Adds what stays whatever the rounds take.
    pub(crate) fn stays(&mut self, left: &[Left]) {
        if !left.is_empty() {
            let left_out = without_causes(left);
            let parts = parts(&json!({ "left": left_out }), &Value::Null);
            self.plan_hash = plan::hash_after(&self.plan_hash, &left_out, &parts);
            self.left.extend(left.iter().map(ToString::to_string));
            self.unlisted += fit(&mut self.left, &mut { MOST_OF_REST });
        }
    }

    pub(crate) fn remaining(&mut self, remaining: usize) {
        self.remaining = remaining;
    }
}

/// Keeps the first entries, as many as there is room for; returns how many went.
fn fit<T: Serialize>(list: &mut Vec<T>, room: &mut usize) -> usize {
    let fits = |item: &&T| {
        let bytes = written(item) + 1;
        let fits = bytes <= *room;
        *room = room.saturating_sub(bytes);
        fits
    };
    let fitting = list.iter().take_while(fits).count();
    let over = list.len() - fitting;
    list.truncate(fitting);
    over
}

fn message(calls: usize, targets: usize) -> String {
    if calls == 0 {
        return "Nothing would be taken back.".to_owned();
    }
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    format!(
        "{calls} call{} would take something back, from {targets} target{}. To have these made and no others, start the \
         same request with action apply and this planHash.",
        plural(calls),
        plural(targets)
    )
}

/// Causes have request ids, and the names of sessions.
fn without_causes(left: &[Left]) -> Value {
    left.iter().map(|left| json!([left.account_id, left.state, left.error])).collect()
}

/// The parts of what a plan rests on, by which a plan that is no longer true tells what is another now; and the fields of a
/// take-back that each is of.
const PARTS: [(&str, &[&str]); 6] = [
    ("what was noted of targets", &["notes"]),
    ("who loses launch permissions and copies of snapshots", &["launchPermissions", "snapshotChanges"]),
    ("what is taken in the targets", &["targets"]),
    ("grants on keys", &["grantChanges"]),
    (POLICIES, &["keyChanges"]),
    ("what stays", &["kept", "left"]),
];

/// Among [`PARTS`].
const POLICIES: &str = "the keys' policies";

/// What is hashed of a round for each of [`PARTS`]; nothing where the round has none of it.
fn parts(take_back: &Value, policies: &Value) -> [Option<Value>; PARTS.len()] {
    PARTS.map(|(part, fields)| {
        let found: Vec<&Value> = fields.iter().map(|field| &take_back[*field]).collect();
        let is_there = found.iter().any(|value| value.as_array().is_some_and(|list| !list.is_empty()));
        let policies = if part == POLICIES { policies } else { &Value::Null };
        is_there.then(|| json!([take_back["imageId"], found, policies]))
    })
}

/// Everything that decides what is taken back: not who asks or when, and not how a policy is laid out.
fn rests_on(take_back: &TakeBack, policies: &[PolicyChange], calls: &[Call]) -> Value {
    let mut found = json!(take_back);
    if let Some(fields) = found.as_object_mut() {
        fields.remove("execution");
        fields.insert("left".to_owned(), without_causes(&take_back.left));
    }
    for note in found["notes"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        note.remove("going");
    }
    let policies: Vec<Value> = policies
        .iter()
        .map(|policy| json!([policy.key, policy.before.digest(), policy.after.as_ref().map(KeyPolicy::digest)]))
        .collect();
    let calls: Vec<Value> = calls.iter().map(|call| json!([call.account_id, call.call, call.parameters])).collect();
    json!({ "takeBack": found, "policies": policies, "calls": calls })
}
