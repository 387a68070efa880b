//! KMS: keys, aliases, key policies and grants.

use crate::auth::{Caller, Context, Denied};
use crate::wire::Reply;
use crate::world::World;

/// KMS of one account and region.
#[derive(Debug, Clone, Default)]
pub struct Kms {}

/// State of a key, as `KeyState` spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
}

/// What other services need to know of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFacts {
    pub arn: String,
    /// The account that owns the key.
    pub account: String,
    pub state: KeyState,
    /// `alias/aws/…`: made and owned by AWS in the account; cannot be shared.
    pub aws_managed: bool,
}

/// The ARN of the key that `key_id` names as seen from (account, region): a key
/// id, a key ARN, an alias name or an alias ARN. `None` when it names no key.
/// `alias/aws/ebs` of the account is made on first use.
pub fn resolve_key(
    _world: &mut World,
    _account: &str,
    _region: &str,
    _key_id: &str,
) -> Option<String> {
    None
}

/// Facts about the key of that ARN, if there is one.
pub fn key_facts(_world: &World, _key_arn: &str) -> Option<KeyFacts> {
    None
}

/// The ARN of `alias/aws/ebs` of (account, region), made on first use.
pub fn ebs_default_key(_world: &mut World, _account: &str, _region: &str) -> String {
    String::new()
}

/// Whether `caller` may do `action` (such as `kms:CreateGrant`) on the key
/// through EC2: evaluated with `kms:ViaService` of EC2 in `region` and, for
/// CreateGrant, `kms:GrantIsForAWSResource`, and written to the journal as an
/// internal call. `context` is added.
pub fn use_as_aws_service(
    _world: &mut World,
    _caller: &Caller,
    _key_arn: &str,
    _action: &str,
    _region: &str,
    _context: &Context,
) -> Result<(), Denied> {
    Ok(())
}

/// Handles one KMS call. `body` is the JSON request.
pub fn handle(
    _world: &mut World,
    _caller: &Caller,
    _region: &str,
    _action: &str,
    _body: &serde_json::Value,
) -> Reply {
    Ok("{}".to_owned())
}
