//! The plan: the output of an execution that is asked for one.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use ami_share_core::{
    Error,
    ids::{AccountId, ImageId, KeyArn, PlanHash},
    plan,
    principal_policy::{inline_policy, inline_policy_name},
    share::{PrincipalAccess, Resolution, Source, Target},
    words,
};
use ami_share_key_grants::SHAREABLE_TAG;
use ami_share_plan::{Call, Names, PolicyDiff, written};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    calls::calls,
    policies::{PolicyChange, planned},
};

/// What a plan may take of the 262,144 bytes that states pass to each other: the call of a function has
/// some of its own around it.
pub(crate) const MOST_BYTES: usize = 240_000;

/// For the sentences that say what was cut.
const SENTENCES: usize = 1_000;

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    status: Status,
    /// Of everything that the plan rests on, whole: see [`rests_on`].
    pub(crate) plan_hash: PlanHash,
    message: String,
    image_id: ImageId,
    source: Source,
    summary: Summary,
    /// Targets that have everything, and that nothing would be done for.
    already_shared: Vec<AccountId>,
    /// What the other targets have of what they need.
    already_there: Vec<AlreadyThere>,
    /// In words, where volumes of the image are not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    unencrypted: Option<String>,
    /// Calls that change something. The targets' are made at the same time, and listed one target
    /// after the other.
    pub(crate) calls: Vec<Call>,
    /// The documents of the inline policies that calls name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inline_policies: Vec<InlinePolicy>,
    /// Keys that calls change, and that do not have the tag of keys that may be shared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    untagged_keys: Vec<KeyArn>,
    /// What was left out so that the plan fits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cut: Vec<String>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
enum Status {
    Planned,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    calls: usize,
    calls_by_account: BTreeMap<AccountId, usize>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct AlreadyThere {
    account_id: AccountId,
    launch_permission: bool,
    /// Keys whose policies name the account, or that it has a grant of ours on.
    key_arns: Vec<KeyArn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_id: Option<ImageId>,
}

/// ResolveImage found no policy of that name, so there is nothing before it.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct InlinePolicy {
    policy_name: String,
    key_arn: KeyArn,
    policy: PolicyDiff,
}

impl Plan {
    /// # Errors
    /// As [`calls`].
    pub(crate) fn new(names: Names<'_>, resolution: &Resolution, policies: &[PolicyChange<'_>]) -> Result<Self, Error> {
        let calls = calls(names, resolution, policies)?;
        let mut by_account: BTreeMap<AccountId, usize> = BTreeMap::new();
        for call in &calls {
            *by_account.entry(call.account_id.clone()).or_default() += 1;
        }
        Ok(Self {
            status: Status::Planned,
            plan_hash: plan::hash_with_parts(&rests_on(resolution, policies, &calls), &parts(resolution, policies)),
            message: message(calls.len(), by_account.len()),
            image_id: resolution.image.image_id.clone(),
            source: resolution.source.clone(),
            summary: Summary { calls: calls.len(), calls_by_account: by_account },
            already_shared: resolution.already_shared.clone(),
            unencrypted: words::unencrypted(&resolution.image.unencrypted()),
            already_there: resolution.targets.iter().filter_map(|target| already_there(resolution, target)).collect(),
            calls,
            inline_policies: inline_policies(resolution)?,
            untagged_keys: Vec::new(),
            cut: Vec::new(),
        })
    }

    /// In what the plan that was to be applied is not this one. Where plans are required, nobody learns the hash of one that
    /// nobody has read.
    pub(crate) fn difference_to(&self, planned: &PlanHash, is_secret: bool) -> String {
        let differing = planned.differing_parts(&self.plan_hash);
        if self.calls.is_empty() && planned.has_parts() && !differing.contains(&REQUEST) {
            return format!(
                "plan {planned} was carried out, or somebody gave the same: every target has everything that this request \
                 asks for"
            );
        }
        let otherwise = "what it would change was changed by somebody since";
        plan::difference(planned, &self.plan_hash, &PARTS, otherwise, is_secret)
    }

    /// Says which keys must have the tag first, where the source is deployed with `OnlyTaggedKeys`. The calls are the same.
    pub(crate) fn naming(self, untagged_keys: Vec<KeyArn>) -> Self {
        if untagged_keys.is_empty() {
            return self;
        }
        let message = format!(
            "{} Keys in untaggedKeys do not have the tag {SHAREABLE_TAG} = true: where the source is deployed with \
             OnlyTaggedKeys, tag them first, or the calls on them are refused.",
            self.message
        );
        Self { message, untagged_keys, ..self }
    }

    /// Cut so that it takes no more than `most` bytes: the diffs first, all to the same length, then
    /// the last calls. The hash and the summary stay those of the whole.
    pub(crate) fn fitted(mut self, most: usize) -> Self {
        if self.bytes() <= most {
            return self;
        }
        let mut rest = self.bytes() + SENTENCES;
        let diffs = self.diffs().map(|diff| diff.bytes()).collect::<Vec<_>>();
        rest -= diffs.iter().sum::<usize>();
        let each = most.saturating_sub(rest) / diffs.len().max(1);
        if diffs.iter().any(|bytes| *bytes > each) {
            self.cut.push("diffs of policies: the whole plan would not fit into the output of an execution".to_owned());
            self.diffs().for_each(|diff| diff.cut(each));
        }
        if self.bytes() > most {
            self.cut_calls(most);
        }
        self
    }

    fn cut_calls(&mut self, most: usize) {
        let mut calls = mem::take(&mut self.calls);
        let all = calls.len();
        let mut used = self.bytes() + SENTENCES;
        let fits = |call: &&Call| {
            used += written(call) + 1;
            used <= most
        };
        calls.truncate(calls.iter().take_while(fits).count());
        let left_out = all - calls.len();
        self.cut.push(format!("the last {left_out} of {all} calls: the summary counts them by account"));
        self.calls = calls;
    }

    fn diffs(&mut self) -> impl Iterator<Item = &mut PolicyDiff> {
        let of_calls = self.calls.iter_mut().filter_map(|call| call.policy.as_mut());
        of_calls.chain(self.inline_policies.iter_mut().map(|inline| &mut inline.policy))
    }

    fn bytes(&self) -> usize {
        written(self)
    }
}

fn message(calls: usize, accounts: usize) -> String {
    if calls == 0 {
        return "Nothing would be changed: every target has everything that is asked for.".to_owned();
    }
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    format!(
        "{calls} call{} would change something, in {accounts} account{}. To have these made and no others, start the \
         same request with action apply and this planHash.",
        plural(calls),
        plural(accounts)
    )
}

/// The parts of what a plan rests on, by which a plan that is no longer true tells what is another now.
const PARTS: [&str; 6] = [
    "the request",
    "the image",
    "the keys' policies or grants",
    "who may launch the image and copy its snapshots",
    "what principals have",
    "the targets' own keys and copies",
];

/// Among [`PARTS`].
const REQUEST: usize = 0;

/// What is hashed for each of [`PARTS`].
fn parts(resolution: &Resolution, policies: &[PolicyChange<'_>]) -> [Value; PARTS.len()] {
    let targets = &resolution.targets;
    let principals: BTreeMap<_, _> =
        targets.iter().map(|target| (&target.account_id, &target.principal_changes)).collect();
    let own: Vec<_> =
        targets.iter().map(|target| json!([target.account_id, target.kms_key_id, target.copy_id])).collect();
    [
        json!(resolution.asked),
        json!(resolution.image),
        json!([planned(policies), resolution.key_changes, resolution.grant_changes]),
        json!([resolution.launch_permissions, resolution.snapshot_changes]),
        json!(principals),
        json!(own),
    ]
}

/// Everything of the request and of the world that decides what is changed: not who asks or when,
/// not how a policy is laid out, and not what was proved of targets that nothing is done for.
fn rests_on(resolution: &Resolution, policies: &[PolicyChange<'_>], calls: &[Call]) -> Value {
    let mut found = json!(resolution);
    if let Some(fields) = found.as_object_mut() {
        for field in ["execution", "action", "asked", "planHash", "mostOfCause", "standing"] {
            fields.remove(field);
        }
    }
    let calls: Vec<Value> = calls
        .iter()
        .map(|call| json!({ "accountId": call.account_id, "call": call.call, "parameters": call.parameters }))
        .collect();
    json!({ "resolution": found, "policies": planned(policies), "calls": calls })
}

fn already_there(resolution: &Resolution, target: &Target) -> Option<AlreadyThere> {
    let changes = &target.source_changes;
    let there = AlreadyThere {
        account_id: target.account_id.clone(),
        launch_permission: !changes.launch_permission,
        key_arns: resolution.image.keys().into_iter().filter(|key| !changes.lacks_key(key)).collect(),
        copy_id: target.copy_id.clone(),
    };
    (there.launch_permission || !there.key_arns.is_empty() || there.copy_id.is_some()).then_some(there)
}

fn inline_policies(resolution: &Resolution) -> Result<Vec<InlinePolicy>, Error> {
    if resolution.principal_access != PrincipalAccess::Inline {
        return Ok(Vec::new());
    }
    let changes = resolution.targets.iter().flat_map(|target| &target.principal_changes);
    let keys: BTreeSet<&KeyArn> = changes.flat_map(|change| &change.key_arns).collect();
    keys.into_iter()
        .map(|key| {
            let policy = PolicyDiff::new(None, &inline_policy(key).to_string(), None)?;
            Ok(InlinePolicy { policy_name: inline_policy_name(key), key_arn: key.clone(), policy })
        })
        .collect()
}

#[cfg(test)]
mod tests;
