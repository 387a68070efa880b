//! UndoLaunchInstance: terminates the instance that an execution launched.

use ami_share_core::{
    Error, Hub, aws,
    hub::{Actions, launch_token},
    share::UndoInput,
};
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{Filter, Instance, InstanceStateName},
};
use serde::Serialize;

pub const UNDO_ACTIONS: Actions = Actions { source: &[], target: &[], launcher: &[DESCRIBE, TERMINATE] };

const DESCRIBE: &str = "ec2:DescribeInstances";
const TERMINATE: &str = "ec2:TerminateInstances";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UndoOutput {
    /// Ids of the instances that were terminated.
    pub terminated: Vec<String>,
}

/// Finds the instance of each execution by its client token, which is known even when the answer of the
/// launch was lost, and terminates it. None, or one that is gone already, is as good as terminated.
///
/// For some seconds after a launch whose answer was lost, EC2 may list no such instance. They have
/// passed: share-ami tries the launch again, with the same token, before it gives up, and undo-share
/// begins with a wait.
///
/// # Errors
/// [`Error::AccessDenied`], and whatever else EC2 refuses with.
#[tracing::instrument(skip_all, fields(execution = %input.execution, account = %input.target.account_id))]
pub async fn undo_launch_instance(hub: &Hub, input: UndoInput) -> Result<UndoOutput, Error> {
    let UndoInput { execution, made_by, source, target } = &input;
    let account = &target.account_id;
    let config = hub.as_launcher(account, &source.region, execution, UNDO_ACTIONS).await?;
    let ec2 = Client::new(&config);
    let tokens = made_by.iter().map(|execution| launch_token(execution, account)).collect();
    let answer = ec2
        .describe_instances()
        .filters(Filter::builder().name("client-token").set_values(Some(tokens)).build())
        .send()
        .await
        .map_err(|error| aws::failure(account, DESCRIBE, error))?;
    let (mut terminated, mut errors) = (Vec::new(), Vec::new());
    let instances = answer.reservations().iter().flat_map(|reservation| reservation.instances());
    for instance in instances.filter(|instance| is_alive(instance)) {
        let id = instance.instance_id().unwrap_or_default();
        match ec2.terminate_instances().instance_ids(id).send().await {
            Ok(_) => {
                tracing::info!(instance = id, "instance terminated");
                terminated.push(id.to_owned());
            }
            Err(error) if error.code() == Some("InvalidInstanceID.NotFound") => {}
            Err(error) => errors.push(aws::failure(account, TERMINATE, error)),
        }
    }
    Error::all_of(errors)?;
    Ok(UndoOutput { terminated })
}

fn is_alive(instance: &Instance) -> bool {
    let state = instance.state().and_then(|state| state.name());
    !matches!(state, Some(InstanceStateName::ShuttingDown | InstanceStateName::Terminated))
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::InstanceState;

    use super::*;

    #[test]
    fn what_is_on_its_way_out_is_left_alone() {
        let instance = |name| Instance::builder().state(InstanceState::builder().name(name).build()).build();
        for alive in [InstanceStateName::Pending, InstanceStateName::Running, InstanceStateName::Stopped] {
            assert!(is_alive(&instance(alive)));
        }
        for gone in [InstanceStateName::ShuttingDown, InstanceStateName::Terminated] {
            assert!(!is_alive(&instance(gone)));
        }
    }
}
