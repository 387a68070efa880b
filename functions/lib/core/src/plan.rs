//! What a plan and the steps that carry it out agree on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Error,
    ids::{KeyArn, PlanHash},
    key_policy::{KeyPolicy, canonical},
};

/// The same for plans that mean the same: the order of fields and of lists does not count.
pub fn hash(plan: &Value) -> PlanHash {
    PlanHash::of(&canonical(plan).to_string())
}

/// The same, with short hashes of the plan's parts behind it: so a plan that is no longer true says in what.
pub fn hash_with_parts(plan: &Value, parts: &[Value]) -> PlanHash {
    hash(plan).with_parts(&parts.iter().map(|part| canonical(part).to_string()).collect::<Vec<_>>())
}

/// The hash of a plan that goes on with the one of `earlier`, round by round. A part of a round is nothing where that has
/// none of it.
pub fn hash_after(earlier: &PlanHash, round: &Value, parts: &[Option<Value>]) -> PlanHash {
    let parts: Vec<Option<String>> =
        parts.iter().map(|part| part.as_ref().map(|part| canonical(part).to_string())).collect();
    hash(&json!([earlier.whole(), round])).with_more_of_parts(earlier, &parts)
}

/// In what `now` is not the plan that was `planned`, by the names of its parts, for [`Error::PlanChanged`]; `otherwise`
/// where neither tells. Where plans are required `is_secret`: nobody learns the hash of one that nobody has read.
pub fn difference(planned: &PlanHash, now: &PlanHash, parts: &[&str], otherwise: &str, is_secret: bool) -> String {
    let hash = if is_secret { String::new() } else { format!("; the plan is now {now}") };
    let differing = planned.differing_parts(now);
    let differing: Vec<&str> = differing.into_iter().filter_map(|part| parts.get(part).copied()).collect();
    if differing.is_empty() {
        return format!("the request is not the one of plan {planned}, or {otherwise}{hash}");
    }
    format!("since plan {planned}, these are others: {}{hash}", differing.join(", "))
}

/// The key policies that a plan was made from and those that it leads to, as digests. Empty where
/// nobody asked for a certain plan to be applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlannedPolicies(BTreeMap<KeyArn, PlannedPolicy>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PlannedPolicy {
    before: String,
    after: String,
}

impl PlannedPolicies {
    /// What ShareKey must find at `key`, and what it is to leave there, as digests.
    pub fn add(&mut self, key: &KeyArn, before: &KeyPolicy, after: &KeyPolicy) {
        self.0.insert(key.clone(), PlannedPolicy { before: before.digest(), after: after.digest() });
    }

    /// Whether no plan is applied, or it writes no policy.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// # Errors
    /// [`Error::PlanChanged`] for a policy that is neither what the plan was made from nor what it
    /// leads to. The latter is what a retry finds after a lost reply.
    pub fn check(&self, key: &KeyArn, policy: &KeyPolicy) -> Result<(), Error> {
        let digest = policy.digest();
        match self.0.get(key) {
            Some(planned) if digest != planned.before && digest != planned.after => Err(Error::PlanChanged {
                reason: format!("the policy of key {key} was changed by somebody since (kms:GetKeyPolicy)"),
            }),
            _ => Ok(()),
        }
    }

    /// Whether the policy is what the plan leads to, and not what it was made from.
    pub fn is_written(&self, key: &KeyArn, policy: &KeyPolicy) -> bool {
        self.0.get(key).is_some_and(|planned| planned.before != planned.after && planned.after == policy.digest())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::ids::AccountId;

    fn key() -> KeyArn {
        KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1234").unwrap()
    }

    fn policy(sid: &str) -> KeyPolicy {
        let statement = json!({ "Sid": sid, "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*" });
        KeyPolicy::parse(&key(), &json!({ "Statement": [statement] }).to_string()).unwrap()
    }

    #[test]
    fn the_order_of_lists_and_fields_does_not_change_the_hash_and_a_value_does() {
        let one = hash(&json!({ "a": ["1", "2"], "b": true }));
        assert_eq!(one, hash(&json!({ "b": true, "a": ["2", "1"] })));
        assert_ne!(one, hash(&json!({ "a": ["1", "2", "3"], "b": true })));
        assert_ne!(one, hash(&json!({ "a": ["1", "2"], "b": false })));
    }

    #[test]
    fn a_hash_tells_in_which_parts_two_plans_differ() {
        let hash_of = |second: &str| hash_with_parts(&json!([1, second]), &[json!(1), json!([second, "b"])]);
        let (one, other) = (hash_of("a"), hash_of("c"));
        assert_eq!(PlanHash::parse(one.as_str()).unwrap(), one);
        assert_ne!(one.whole(), other.whole());
        assert_eq!((one.differing_parts(&other), one.differing_parts(&one)), (vec![1], vec![]));
        assert_eq!(one.differing_parts(&hash(&json!("of an earlier version"))), [0; 0]);
        assert!(PlanHash::parse(format!("{}-latest", one.whole())).is_err());
    }

    #[test]
    fn a_hash_that_goes_on_tells_in_which_parts_two_plans_differ() {
        let begun = hash(&Value::Null);
        let round = |before: &PlanHash, n: u32, second: Option<Value>| {
            hash_after(before, &json!([n, second]), &[Some(json!(n)), second, None])
        };
        let one = round(&round(&begun, 1, Some(json!("a"))), 2, None);
        assert_eq!(PlanHash::parse(one.as_str()).unwrap(), one);
        assert_eq!(one, round(&round(&begun, 1, Some(json!("a"))), 2, None));
        for (other, differing) in [
            (round(&round(&begun, 1, Some(json!("b"))), 2, None), vec![1]),
            (round(&round(&begun, 1, Some(json!("a"))), 2, Some(json!("b"))), vec![1]),
            (round(&round(&begun, 1, None), 2, Some(json!("b"))), vec![1]),
            (round(&begun, 1, Some(json!("a"))), vec![0]),
            (round(&round(&begun, 2, Some(json!("a"))), 1, None), vec![0]),
        ] {
            assert_ne!(one.whole(), other.whole());
            assert_eq!(one.differing_parts(&other), differing);
        }
        // As earlier versions, whose hashes have no parts, have hashed it.
        let first = hash(&json!([begun, [1, "a"]]));
        assert_eq!(round(&begun, 1, Some(json!("a"))).whole(), first.whole());
    }

    #[test]
    fn only_the_planned_policy_and_what_it_becomes_are_as_planned() {
        let (before, other) = (policy("Admin"), policy("Changed"));
        let after = before.with([&AccountId::parse("222222222222").unwrap()]).unwrap().unwrap();
        let mut planned = PlannedPolicies::default();
        assert!(planned.check(&key(), &other).is_ok(), "nothing was planned");
        planned.add(&key(), &before, &after);
        assert!(planned.check(&key(), &before).is_ok() && planned.check(&key(), &after).is_ok());
        let error = planned.check(&key(), &other).unwrap_err();
        assert_eq!(error.name(), "PlanChanged");
        assert!(error.to_string().contains(key().as_str()), "{error}");
        assert!(planned.is_written(&key(), &after) && !planned.is_written(&key(), &before));
        planned.add(&key(), &before, &before);
        assert!(!planned.is_written(&key(), &before), "nothing was to be written");
    }
}
