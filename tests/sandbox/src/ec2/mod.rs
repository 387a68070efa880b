//! EC2: images, snapshots, volumes and instances.

use crate::auth::Caller;
use crate::wire::{ApiError, Params, Reply};
use crate::world::World;

/// EC2 of one account and region.
#[derive(Debug, Clone, Default)]
pub struct Ec2 {}

/// Handles one EC2 call; returns what goes inside `<ActionResponse>`.
pub fn handle(
    _world: &mut World,
    _caller: &Caller,
    _region: &str,
    action: &str,
    _params: &Params,
) -> Reply {
    Err(ApiError::bad_request(
        "InvalidAction",
        format!("The action {action} is not valid for this web service."),
    ))
}

/// Lets everything happen whose time has come (launches, copies). Called before
/// every API call and every snapshot.
pub fn settle(_world: &mut World) {}

/// The state in canonical form, without timestamps and ids that do not matter.
pub fn snapshot(_ec2: &Ec2) -> serde_json::Value {
    serde_json::Value::Null
}
