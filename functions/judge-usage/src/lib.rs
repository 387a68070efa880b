//! JudgeUsage: refuses to take back what is still in use. Calls nothing.

use ami_share_core::{Error, hub::Actions, ids::ExecutionName, revoke::Usage};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions::NONE;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// What the targets have said, and EC2's reports.
    pub usage: Usage,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {}

/// # Errors
/// [`Error::ImageInUse`], with everybody who uses what.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub fn judge_usage(input: Input) -> Result<Output, Error> {
    let Usage { uses, unlisted, .. } = input.usage;
    if uses.is_empty() { Ok(Output {}) } else { Err(Error::ImageInUse { uses, unlisted }) }
}
