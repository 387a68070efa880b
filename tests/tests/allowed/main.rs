//! Who may be a target: by account, by organization and by organizational unit. Nobody else gets anything, whichever
//! function is asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

mod calls;
mod executions;
mod membership;

use ami_share_sandbox::{World, journal::Entry, world::Organization};
use ami_share_tests::{HUB, Result, execution, local::Local};
use serde_json::Value;

/// The organization's management account.
const MANAGEMENT: &str = "999999999999";
const ORGANIZATION: &str = "o-a1b2c3d4e5";
/// Units inside each other, and one beside them.
const OUTER: &str = "ou-ab12-11111111";
const MIDDLE: &str = "ou-ab12-22222222";
const INNER: &str = "ou-ab12-33333333";
const ASIDE: &str = "ou-ab12-44444444";

/// A place in the organization that `management` manages, below these units, the innermost first.
fn place(management: &str, units: &[&str]) -> Organization {
    Organization {
        organization_arn: format!("arn:aws:organizations::{management}:organization/{ORGANIZATION}"),
        unit_arns: units
            .iter()
            .map(|unit| format!("arn:aws:organizations::{management}:ou/{ORGANIZATION}/{unit}"))
            .collect(),
        ..Organization::default()
    }
}

fn put(world: &mut World, account: &str, place: Organization) {
    world.set_organization(account, Some(place));
}

/// How an execution ended, as its error and cause (both empty when it succeeded), and every call of anybody while it
/// ran.
async fn run(local: &Local, name: &str, request: &Value) -> Result<(String, String, Vec<Entry>)> {
    let seen = local.sandbox.world().journal.last_seq();
    let engine = local.engine.endpoint();
    let arn = execution::start(&engine, &local.hub.state_machine, name, request).await?;
    let ended = execution::follow(&engine, &arn, |_| {}).await?;
    let journal = local.sandbox.world().journal.since(seen).to_vec();
    Ok((ended.error.unwrap_or_default(), ended.cause.unwrap_or_default(), journal))
}

/// Questions to Organizations, in the order in which they were asked: the action, and about what.
fn questions(journal: &[Entry]) -> Vec<(&str, &str)> {
    let asked = journal.iter().filter(|entry| entry.action.starts_with("organizations:"));
    asked.map(|entry| (entry.action.as_str(), entry.resources.first().map_or("", String::as_str))).collect()
}

/// The calls that are not part of asking Organizations as the role of accounts/organization.yaml.
fn others(journal: &[Entry]) -> Vec<&Entry> {
    let assumes = |entry: &Entry| {
        entry.account == HUB
            && entry.action == "sts:AssumeRole"
            && entry.resources == [format!("arn:aws:iam::{MANAGEMENT}:role/AmiShareOrganization")]
    };
    let asks = |entry: &Entry| entry.account == MANAGEMENT && entry.action.starts_with("organizations:");
    journal.iter().filter(|entry| !assumes(entry) && !asks(entry)).collect()
}
