//! What goes wrong while executions run: faults of calls, crashes, an instance that dies, a stop at any moment.

use ami_share_machine::services::Fault;
use ami_share_sandbox::{
    World,
    faults::{Fault as SandboxFault, FaultKind, Matcher},
};
use proptest::{collection::vec, prelude::*};

/// Faults by the number of the call that they strike. Fewer than the state machine's retries: none of them is for good.
pub(crate) fn faults(most: usize) -> impl Strategy<Value = Vec<(u64, Fault)>> {
    let kind = prop::sample::select(vec![
        Fault::Throttled,
        Fault::Failed,
        Fault::ReplyFailed,
        Fault::ReplyLost,
        Fault::Late,
        Fault::Hangs,
        Fault::CrashBefore,
        Fault::CrashAfter,
        Fault::GivenUp,
    ]);
    vec((1..150_u64, kind), 0..=most)
}

/// What is broken for good, so that a share cannot come about: a call that only a share makes, and no undo.
pub(crate) const BROKEN: [(&str, &str); 6] = [
    ("ec2:RunInstances", "InsufficientInstanceCapacity"),
    ("ec2:RunInstances", ""),
    ("ec2:CopyImage", ""),
    ("ec2:CopyImage", "InvalidRequest"),
    ("iam:AttachRolePolicy", "AccessDenied"),
    ("kms:CreateGrant", "AccessDeniedException"),
];

pub(crate) fn broken() -> impl Strategy<Value = Option<usize>> {
    prop::option::weighted(0.4, 0..BROKEN.len())
}

/// Breaks it for ami-share's roles, in one account where one is named; without a code, what the call starts fails later.
pub(crate) fn break_call(world: &mut World, broken: usize, account: Option<&str>) {
    let (action, code) = BROKEN[broken];
    let kind = if code.is_empty() {
        FaultKind::Fail { reason: "it was to fail".to_owned() }
    } else {
        FaultKind::Error { code: code.to_owned(), message: "it was to fail".to_owned(), status: 400 }
    };
    let ours = Matcher::action(action).by_principal("*/AmiShare*");
    let matcher = account.into_iter().fold(ours, Matcher::in_account);
    world.faults.add(SandboxFault::always(matcher, kind));
}
