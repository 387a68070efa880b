//! DescribeInstance: looks whether the proof runs, and explains it when it is dead.

use std::time::SystemTime;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{ExecutionName, ImageId, InstanceId},
    polling::INSTANCE,
    share::{Image, Source, Target},
};
use ami_share_explain::{Attempt, LAUNCH_ACTIONS, explain_launch};
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    primitives::DateTime,
    types::{Instance, InstanceStateName},
};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions {
    source: LAUNCH_ACTIONS.source,
    target: LAUNCH_ACTIONS.target,
    launcher: &[DESCRIBE, "kms:DescribeKey", "kms:GetKeyPolicy"],
};

const DESCRIBE: &str = "ec2:DescribeInstances";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    pub image: Image,
    pub target: Target,
    pub instance_id: InstanceId,
    /// What it was launched from: the image, or the target's own copy of it.
    pub image_id: ImageId,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub state: State,
    /// Until the next look.
    pub wait_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Pending,
    Running,
}

/// # Errors
/// [`Error::InstanceDied`] with the state reason and the likely cause; [`Error::LaunchFailed`] when
/// it has been pending for 10 minutes; [`Error::NotYetVisible`].
#[tracing::instrument(skip_all, fields(
    execution = %input.execution, account = %input.target.account_id, instance = %input.instance_id
))]
pub async fn describe_instance(hub: &Hub, input: Input) -> Result<Output, Error> {
    let Input { execution, source, image, target, instance_id, image_id } = &input;
    let account = &target.account_id;
    let config = hub.as_launcher(account, &source.region, execution, ACTIONS).await?;
    let found = match Client::new(&config).describe_instances().instance_ids(instance_id.as_str()).send().await {
        Ok(answer) => {
            answer.reservations.unwrap_or_default().into_iter().flat_map(|r| r.instances.unwrap_or_default()).next()
        }
        Err(error) if error.code() == Some("InvalidInstanceID.NotFound") => None,
        Err(error) => return Err(aws::failure(account, DESCRIBE, error)),
    };
    let Some(instance) = found else {
        return Err(Error::NotYetVisible {
            what: format!("instance {instance_id}"),
            account: account.clone(),
            call: DESCRIBE,
        });
    };
    match instance.state().and_then(|state| state.name()) {
        Some(InstanceStateName::Running) => Ok(Output { state: State::Running, wait_seconds: 0 }),
        Some(InstanceStateName::Pending) => {
            let age = age(&instance, DateTime::from(SystemTime::now()));
            if age > INSTANCE.patience {
                return Err(Error::LaunchFailed {
                    image: image_id.clone(),
                    account: account.clone(),
                    reason: format!("instance {instance_id} has been pending for over 10 minutes; look at its volumes"),
                    source: None,
                });
            }
            Ok(Output { state: State::Pending, wait_seconds: INSTANCE.wait(age) })
        }
        _ => {
            let state_reason = state_reason(&instance);
            let attempt = Attempt { hub, launcher: &config, execution, source, image, target };
            let explanation = explain_launch(attempt, image_id, &state_reason).await;
            Err(Error::InstanceDied {
                instance: instance_id.clone(),
                account: account.clone(),
                state_reason,
                explanation,
            })
        }
    }
}

/// What EC2 says of an instance's end, such as `Client.InternalError: Client error on launch`: the
/// message repeats the code, or does not.
fn state_reason(instance: &Instance) -> String {
    let reason = instance.state_reason();
    let code = reason.and_then(|reason| reason.code()).unwrap_or_default();
    let message = reason.and_then(|reason| reason.message()).unwrap_or_default();
    match (code, message) {
        ("", "") => match instance.state_transition_reason() {
            None | Some("") => "EC2 gives no reason".to_owned(),
            Some(reason) => reason.to_owned(),
        },
        (code, "") => code.to_owned(),
        (code, message) if message.contains(code) => message.to_owned(),
        (code, message) => format!("{code}: {message}"),
    }
}

/// In seconds; of an instance without a launch time, nothing.
fn age(instance: &Instance, now: DateTime) -> u64 {
    instance.launch_time().map_or(0, |launched| u64::try_from(now.secs() - launched.secs()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::StateReason;

    use super::*;

    fn died(code: &str, message: &str) -> Instance {
        Instance::builder().state_reason(StateReason::builder().code(code).message(message).build()).build()
    }

    #[test]
    fn the_state_reason_is_code_and_message_each_once() {
        let repeated = died("Client.InternalError", "Client.InternalError: Client error on launch");
        assert_eq!(state_reason(&repeated), "Client.InternalError: Client error on launch");
        assert_eq!(state_reason(&died("Server.InternalError", "oops")), "Server.InternalError: oops");
        assert_eq!(state_reason(&died("Server.InternalError", "")), "Server.InternalError");
        let stopped = Instance::builder().state_transition_reason("User initiated (2026-11-24)").build();
        assert_eq!(state_reason(&stopped), "User initiated (2026-11-24)");
        assert_eq!(state_reason(&Instance::builder().build()), "EC2 gives no reason");
    }

    #[test]
    fn an_instance_is_as_old_as_its_launch_time_says() {
        let instance = Instance::builder().launch_time(DateTime::from_secs(1_000)).build();
        assert_eq!(age(&instance, DateTime::from_secs(1_060)), 60);
        assert_eq!(age(&instance, DateTime::from_secs(900)), 0);
        assert_eq!(age(&Instance::builder().build(), DateTime::from_secs(900)), 0);
    }

    #[test]
    fn the_launcher_may_do_what_the_explanation_asks() {
        for action in LAUNCH_ACTIONS.launcher {
            assert!(ACTIONS.launcher.contains(action), "{action}");
        }
    }
}
