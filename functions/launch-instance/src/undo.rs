//! UndoLaunchInstance: terminates the instances that executions launched.

use std::collections::BTreeSet;

use ami_share_core::{
    Error, Hub, authorization, aws,
    hub::Actions,
    refusal::DECODE,
    take_back::{FromTarget, Taken, UndoInput, Undone},
    tokens::launch_tokens,
};
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{Filter, InstanceState, InstanceStateName},
};

pub const UNDO_ACTIONS: Actions = Actions { launcher: &[DESCRIBE, TERMINATE, DECODE], ..Actions::NONE };

const DESCRIBE: &str = "ec2:DescribeInstances";
const TERMINATE: &str = "ec2:TerminateInstances";

/// The most values of a filter ("List and filter using the CLI and API", EC2 user guide).
const MAX_VALUES: usize = 200;

/// Finds the instances of each execution by their client tokens, which are known even when the answer of a launch was
/// lost and which nothing inherits, and by the ids that were noted, and terminates them. None, or one that is gone
/// already, is as good as terminated.
///
/// For some seconds after a launch whose answer was lost, EC2 may list no such instance. They have
/// passed: share-ami tries the launch again, with the same token, before it gives up, and undo-share
/// begins with a wait.
///
/// # Errors
/// [`Error::AccessDenied`], and whatever else EC2 refuses with.
#[tracing::instrument(skip_all, fields(execution = %input.execution, account = %input.target.account_id))]
pub async fn undo_launch_instance(hub: &Hub, input: UndoInput) -> Result<Undone, Error> {
    let UndoInput { execution, source, target } = &input;
    if target.instances.is_empty() {
        return Ok(Undone::default());
    }
    let account = &target.account_id;
    let config = hub.as_launcher(account, &source.region, execution, UNDO_ACTIONS).await?;
    let ec2 = Client::new(&config);
    let mut ids = alive(&ec2, target).await?;
    ids.extend(target.instances.iter().filter_map(|made| made.instance_id.as_ref().map(ToString::to_string)));
    let (mut taken, mut errors) = (Vec::new(), Vec::new());
    for id in ids {
        match ec2.terminate_instances().instance_ids(&id).send().await {
            // One that was noted may have been terminated by somebody else.
            Ok(answer) if answer.terminating_instances().iter().all(|change| is_going(change.previous_state())) => {}
            Ok(_) => {
                tracing::info!(instance = id, "instance terminated");
                let call = TERMINATE.to_owned();
                taken.push(Taken { call, account_id: account.clone(), resource: id, from: Vec::new() });
            }
            Err(error) if error.code() == Some("InvalidInstanceID.NotFound") => {}
            Err(error) => errors.push(authorization::failure(&config, account, TERMINATE, error).await),
        }
    }
    Error::all_of(errors)?;
    Ok(Undone { taken })
}

/// The instances of the executions' client tokens that are not on their way out.
async fn alive(ec2: &Client, target: &FromTarget) -> Result<BTreeSet<String>, Error> {
    let account = &target.account_id;
    let tokens: Vec<String> =
        target.instances.iter().flat_map(|made| launch_tokens(&made.execution, account)).collect();
    let mut ids = BTreeSet::new();
    for tokens in tokens.chunks(MAX_VALUES) {
        let answer = ec2
            .describe_instances()
            .filters(Filter::builder().name("client-token").set_values(Some(tokens.to_vec())).build())
            .send()
            .await
            .map_err(|error| aws::failure(account, DESCRIBE, error))?;
        let instances = answer.reservations().iter().flat_map(|reservation| reservation.instances());
        let alive = instances.filter(|instance| !is_going(instance.state()));
        ids.extend(alive.filter_map(|instance| instance.instance_id().map(str::to_owned)));
    }
    Ok(ids)
}

fn is_going(state: Option<&InstanceState>) -> bool {
    let state = state.and_then(|state| state.name());
    matches!(state, Some(InstanceStateName::ShuttingDown | InstanceStateName::Terminated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_out_is_left_alone() {
        let state = |name| InstanceState::builder().name(name).build();
        for alive in [InstanceStateName::Pending, InstanceStateName::Running, InstanceStateName::Stopped] {
            assert!(!is_going(Some(&state(alive))));
        }
        for gone in [InstanceStateName::ShuttingDown, InstanceStateName::Terminated] {
            assert!(is_going(Some(&state(gone))));
        }
        assert!(!is_going(None), "it is not known");
    }
}
