//! Faults on demand, and hooks: calls made before or after another call.

use crate::auth::Caller;
use crate::world::{Account, World};
use iam_rs::Arn;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// How many earlier states of an account are kept for stale reads.
const HISTORY: usize = 32;

/// Which calls a fault or hook is about; a field left out matches every call.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Matcher {
    /// The caller's account.
    pub account: Option<String>,
    /// IAM-style action with wildcards, case ignored: `ec2:Describe*`.
    pub action: Option<String>,
    /// The caller's principal ARN, with wildcards.
    pub principal: Option<String>,
    /// The session name, with wildcards.
    pub session: Option<String>,
}

impl Matcher {
    pub fn action(action: &str) -> Self {
        Self { action: Some(action.to_owned()), ..Self::default() }
    }

    pub fn in_account(mut self, account: &str) -> Self {
        self.account = Some(account.to_owned());
        self
    }

    pub fn by_principal(mut self, principal: &str) -> Self {
        self.principal = Some(principal.to_owned());
        self
    }

    fn matches(&self, caller: &Caller, action: &str) -> bool {
        let session = caller.session_name.as_deref().unwrap_or_default();
        self.account.as_ref().is_none_or(|account| *account == caller.account)
            && self
                .action
                .as_ref()
                .is_none_or(|pattern| Arn::wildcard_match(&action.to_ascii_lowercase(), &pattern.to_ascii_lowercase()))
            && self.principal.as_ref().is_none_or(|pattern| Arn::wildcard_match(&caller.arn, pattern))
            && self.session.as_ref().is_none_or(|pattern| Arn::wildcard_match(session, pattern))
    }
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "kind")]
pub enum FaultKind {
    /// The service's own throttling error; nothing is done.
    Throttle,
    /// Status 500 or 503 with an internal error; nothing is done.
    ServerError,
    /// An error of that code and status; nothing is done.
    Error { code: String, message: String, status: u16 },
    /// The call waits so many milliseconds before it is done.
    Delay { ms: u64 },
    /// The change is made, then the connection is closed without an answer.
    ReplyLost,
    /// The change is made, then the answer is status 500.
    ReplyFailed,
    /// The caller's account is read as it was before its latest `writes` changes
    /// (counted from when the fault was set).
    Stale { writes: usize },
    /// The call succeeds; the copy, launch or report that it starts fails for that reason.
    Fail { reason: String },
}

/// A fault and when it strikes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fault {
    #[serde(rename = "match", default)]
    pub matcher: Matcher,
    /// How many matching calls pass before the first that is struck.
    #[serde(default)]
    pub skip: u32,
    /// How many calls are struck.
    #[serde(default = "one")]
    pub count: u32,
    #[serde(flatten)]
    pub kind: FaultKind,
}

fn one() -> u32 {
    1
}

impl Fault {
    /// Strikes the first matching call only.
    pub fn once(matcher: Matcher, kind: FaultKind) -> Self {
        Self { matcher, skip: 0, count: 1, kind }
    }

    /// Strikes every matching call.
    pub fn always(matcher: Matcher, kind: FaultKind) -> Self {
        Self { count: u32::MAX, ..Self::once(matcher, kind) }
    }

    /// Lets `skip` matching calls pass first.
    pub fn after(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }
}

/// Whether a hook's calls are made before or after the call that it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum When {
    Before,
    After,
}

/// One API call, made as root of an account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RootCall {
    pub account: String,
    pub region: String,
    /// `ec2`, `iam`, `sts` or `kms`.
    pub service: String,
    /// `DetachRolePolicy`
    pub action: String,
    /// Query parameters by their wire names (`{"UserId.1": "…"}`), or KMS's JSON.
    #[serde(default)]
    pub params: serde_json::Value,
}

/// Calls made once, just before or after the n-th matching call, under the same
/// lock, so that nothing comes in between.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hook {
    pub when: When,
    #[serde(rename = "match", default)]
    pub matcher: Matcher,
    /// How many matching calls pass first.
    #[serde(default)]
    pub skip: u32,
    pub calls: Vec<RootCall>,
}

/// The faults and hooks that are set.
#[derive(Debug, Default)]
pub struct Faults {
    faults: Vec<Fault>,
    hooks: Vec<Hook>,
    /// What hooks' calls failed with: a hook that fails makes a test lie.
    pub failed_hooks: Vec<String>,
    /// Earlier states of the accounts that a stale read is set for, oldest first.
    history: BTreeMap<String, VecDeque<Account>>,
}

impl Faults {
    pub fn add(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    pub fn add_hook(&mut self, hook: Hook) {
        self.hooks.push(hook);
    }

    /// Removes every fault and hook.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    /// The fault that strikes this call, of those that `wanted` accepts.
    fn strike(&mut self, caller: &Caller, action: &str, wanted: impl Fn(&FaultKind) -> bool) -> Option<FaultKind> {
        let mut struck = None;
        for fault in &mut self.faults {
            if !wanted(&fault.kind) || !fault.matcher.matches(caller, action) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if struck.is_none() && fault.count > 0 {
                if fault.count != u32::MAX {
                    fault.count -= 1;
                }
                struck = Some(fault.kind.clone());
            }
        }
        self.faults.retain(|fault| fault.count > 0);
        struck
    }

    /// The fault that strikes this call.
    pub(crate) fn strike_call(&mut self, caller: &Caller, action: &str) -> Option<FaultKind> {
        self.strike(caller, action, |kind| !matches!(kind, FaultKind::Fail { .. }))
    }

    /// The hooks whose call this is; each is used up.
    pub(crate) fn take_hooks(&mut self, when: When, caller: &Caller, action: &str) -> Vec<Hook> {
        let mut taken = Vec::new();
        self.hooks.retain_mut(|hook| {
            if hook.when != when || !hook.matcher.matches(caller, action) {
                return true;
            }
            if hook.skip > 0 {
                hook.skip -= 1;
                return true;
            }
            taken.push(hook.clone());
            false
        });
        taken
    }

    /// Whether a stale read is set that could concern `account`.
    pub(crate) fn needs_history(&self, account: &str) -> bool {
        self.faults.iter().any(|fault| {
            matches!(fault.kind, FaultKind::Stale { .. })
                && fault.matcher.account.as_ref().is_none_or(|wanted| wanted == account)
        })
    }

    /// Keeps the state that an account had before a change.
    pub(crate) fn remember(&mut self, before: Account) {
        let history = self.history.entry(before.id.clone()).or_default();
        history.push_back(before);
        if history.len() > HISTORY {
            history.pop_front();
        }
    }

    /// The account as it was before its latest `writes` changes.
    pub(crate) fn earlier(&self, account: &str, writes: usize) -> Option<Account> {
        let history = self.history.get(account)?;
        let index = history.len().saturating_sub(writes);
        history.get(index).cloned()
    }
}

/// The reason that a `fail` fault gives for what `action` (`ec2:CopyImage`,
/// `ec2:RunInstances`, `ec2:CopySnapshot`) has just started: the call itself
/// succeeds, what it started is to fail. Uses the fault up.
pub fn take_failure(world: &mut World, caller: &Caller, action: &str) -> Option<String> {
    let fault = world.faults.strike(caller, action, |kind| matches!(kind, FaultKind::Fail { .. }));
    match fault {
        Some(FaultKind::Fail { reason }) => Some(reason),
        _ => None,
    }
}
