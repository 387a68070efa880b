//! Who calls, and whether they may.

use crate::{policy::Policy, world::World};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Condition context: keys as AWS spells them, each with its values.
pub type Context = BTreeMap<String, Vec<String>>;

/// What kind of principal calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerKind {
    /// The account itself; identity policies do not limit it.
    Root,
    User,
    /// A session of a role, service-linked roles included.
    Role,
}

/// The caller of an API call.
#[derive(Debug, Clone)]
pub struct Caller {
    pub account: String,
    /// The principal: `arn:aws:iam::A:root`, `…:user/x` or `…:role/x`.
    pub arn: String,
    /// As GetCallerIdentity shows it; for a role `arn:aws:sts::A:assumed-role/x/session`.
    pub session_arn: String,
    pub session_name: Option<String>,
    pub session_policy: Option<Arc<Policy>>,
    pub tags: BTreeMap<String, String>,
    pub kind: CallerKind,
    /// The unique id: the account id, `AIDA…`, or `AROA…`.
    pub principal_id: String,
}

impl Caller {
    /// The root user of `account`.
    pub fn root(account: &str) -> Self {
        let arn = format!("arn:aws:iam::{account}:root");
        Self {
            account: account.to_owned(),
            session_arn: arn.clone(),
            arn,
            session_name: None,
            session_policy: None,
            tags: BTreeMap::new(),
            kind: CallerKind::Root,
            principal_id: account.to_owned(),
        }
    }
}

/// Which side refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    IdentityPolicy,
    SessionPolicy,
    KeyPolicy,
    TrustPolicy,
}

/// A call that no policy allows, or that one denies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The principal's session ARN.
    pub principal: String,
    pub action: String,
    pub resource: String,
    pub by: Refusal,
    /// A Deny statement matched; otherwise no Allow did.
    pub explicit: bool,
}

impl Denied {
    /// AWS's sentence about it.
    pub fn message(&self) -> String {
        String::new()
    }
}

/// Whether the caller's identity policies and session policy allow `action` on
/// `resource` (an ARN or `*`). Resource policies are the caller's business,
/// except a key's: see [`authorize_key`].
///
/// The keys about the caller and the region are added to `context`.
pub fn authorize(
    _world: &World,
    _caller: &Caller,
    _action: &str,
    _resource: &str,
    _context: &Context,
) -> Result<(), Denied> {
    Ok(())
}

/// Whether `action` on the key is allowed: key policy, grants, identity policies
/// and session policy together.
pub fn authorize_key(
    _world: &World,
    _caller: &Caller,
    _action: &str,
    _key_arn: &str,
    _context: &Context,
) -> Result<(), Denied> {
    Ok(())
}
