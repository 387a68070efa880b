//! Faults on demand.

use crate::auth::Caller;
use crate::world::World;

#[derive(Debug, Default)]
pub struct Faults {}

/// The reason a `fail` fault gives for the thing that `action` (such as
/// `ec2:CopyImage` or `ec2:RunInstances`) has just started: the call itself
/// succeeds, what it started shall fail. Uses the fault up.
pub fn take_failure(_world: &mut World, _caller: &Caller, _action: &str) -> Option<String> {
    None
}
