//! What plans consist of: the calls that would change something, and what changes in policies. PlanShare and PlanRevoke
//! make them.

#![warn(missing_docs)]

mod diff;

use ami_share_core::ids::{AccountId, Region};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use diff::PolicyDiff;

/// What stands for an id that only the call will give, or find.
pub const COPY: &str = "the copy";
/// The same for an instance.
pub const INSTANCE: &str = "the instance";

/// One call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Call {
    /// Where it is made.
    pub account_id: AccountId,
    /// Nothing for IAM, which is global.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Region>,
    /// As an IAM action.
    pub call: String,
    /// Those that matter, under the names that AWS gives them.
    pub parameters: Value,
    /// What it changes in a key policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyDiff>,
}

impl Call {
    /// One that changes no policy of a key.
    pub fn new(account: &AccountId, region: Option<&Region>, call: &str, parameters: Value) -> Self {
        Self { account_id: account.clone(), region: region.cloned(), call: call.to_owned(), parameters, policy: None }
    }
}

/// Names that calls have of the deployment.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// The targets' managed policy.
    pub key_access_policy: &'a str,
    /// The ARN of the source account's role.
    pub source_role: &'a str,
}

/// The bytes that `value` takes as JSON.
pub fn written(value: &impl Serialize) -> usize {
    serde_json::to_string(value).map_or(0, |text| text.len())
}
