//! TerminateInstance: ends the proof, unless it was asked to stay.

use ami_share_core::{
    Error, Hub, authorization,
    hub::Actions,
    ids::{ExecutionName, InstanceId},
    refusal::DECODE,
    share::{Source, Target},
};
use aws_sdk_ec2::{Client, error::ProvideErrorMetadata};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions { launcher: &[TERMINATE, DECODE], ..Actions::NONE };

const TERMINATE: &str = "ec2:TerminateInstances";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    pub target: Target,
    pub instance_id: InstanceId,
}

#[derive(Debug, Serialize)]
pub struct Output {}

/// Terminates the instance, and with it its volumes. One that is gone already is as good as
/// terminated.
///
/// # Errors
/// [`Error::AccessDenied`], and whatever else EC2 refuses with.
#[tracing::instrument(skip_all, fields(
    execution = %input.execution, account = %input.target.account_id, instance = %input.instance_id
))]
pub async fn terminate_instance(hub: &Hub, input: Input) -> Result<Output, Error> {
    let Input { execution, source, target, instance_id } = &input;
    let config = hub.as_launcher(&target.account_id, &source.region, execution, ACTIONS).await?;
    match Client::new(&config).terminate_instances().instance_ids(instance_id.as_str()).send().await {
        Ok(_) => tracing::info!("instance terminated"),
        Err(error) if error.code() == Some("InvalidInstanceID.NotFound") => {}
        Err(error) => return Err(authorization::failure(&config, &target.account_id, TERMINATE, error).await),
    }
    Ok(Output {})
}
