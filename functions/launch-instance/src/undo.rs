//! UndoLaunchInstance: terminates the instances that an execution launched.

use ami_share_core::{
    Error, Hub, aws,
    hub::{Actions, launch_tokens},
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

/// The most values of a filter ("List and filter using the CLI and API", EC2 user guide).
const MAX_VALUES: usize = 200;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UndoOutput {
    /// Ids of the instances that were terminated.
    pub terminated: Vec<String>,
}

/// Finds the instances of each execution by their client tokens, which are known even when the answer of a
/// launch was lost, and terminates them. None, or one that is gone already, is as good as terminated.
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
    let tokens: Vec<String> = made_by.iter().flat_map(|execution| launch_tokens(execution, account)).collect();
    let mut instances = Vec::new();
    for tokens in tokens.chunks(MAX_VALUES) {
        let answer = ec2
            .describe_instances()
            .filters(Filter::builder().name("client-token").set_values(Some(tokens.to_vec())).build())
            .send()
            .await
            .map_err(|error| aws::failure(account, DESCRIBE, error))?;
        instances
            .extend(answer.reservations.unwrap_or_default().into_iter().flat_map(|r| r.instances.unwrap_or_default()));
    }
    let (mut terminated, mut errors) = (Vec::new(), Vec::new());
    for instance in instances.iter().filter(|instance| is_alive(instance)) {
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
