//! DescribeInstance: looks whether the proof runs, and explains it when it is dead.

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{ExecutionName, ImageId, InstanceId},
    polling::{INSTANCE, PAUSES},
    share::{Image, Source, SourceChanges, Target},
};
use ami_share_explain::{Attempt, LAUNCH_ACTIONS, explain_launch, may_pass};
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{Instance, InstanceStateName},
};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions {
    source_reader: LAUNCH_ACTIONS.source_reader,
    target: LAUNCH_ACTIONS.target,
    launcher: &[DESCRIBE],
    ..Actions::NONE
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
    pub launch_image_id: ImageId,
    /// How many this execution has launched in the target, with this one.
    pub launches: u64,
    /// How often it has looked at any of them.
    pub looks: u64,
    /// What the last look at this one found.
    pub seen: State,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub state: State,
    /// Until the next look.
    pub wait_seconds: u64,
    /// With this one.
    pub looks: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Pending,
    Running,
    /// It is on its way out, and another is to be launched after the wait.
    Dead,
    /// It is gone, and another is to be launched now.
    Again,
}

/// An instance that died for what may be a change that is not seen everywhere yet is not the end, where this execution
/// has changed something: another is launched. Only the last one's death is explained.
///
/// # Errors
/// [`Error::InstanceDied`] with the state reason and the likely cause; [`Error::LaunchFailed`] when
/// it is pending, and there were looks for over 10 minutes; [`Error::NotYetVisible`].
#[tracing::instrument(skip_all, fields(
    execution = %input.execution, account = %input.target.account_id, instance = %input.instance_id
))]
pub async fn describe_instance(hub: &Hub, input: Input) -> Result<Output, Error> {
    let Input { execution, source, image, target, instance_id, launch_image_id, launches, .. } = &input;
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
    let looks = input.looks + 1;
    let answer = |state, wait_seconds| Ok(Output { state, wait_seconds, looks });
    match instance.state().and_then(|state| state.name()) {
        Some(InstanceStateName::Running) => answer(State::Running, 0),
        Some(InstanceStateName::Pending) => match INSTANCE.wait_after(looks) {
            Some(wait_seconds) => answer(State::Pending, wait_seconds),
            None => Err(Error::LaunchFailed {
                image: launch_image_id.clone(),
                account: account.clone(),
                reason: format!(
                    "instance {instance_id} is pending, and the {launches} launched here were looked at for over 10 \
                     minutes; look at its volumes"
                ),
                source: None,
            }),
        },
        state => {
            let state_reason = state_reason(&instance);
            if let Some((state, wait_seconds)) = next_launch(&input, state, &state_reason) {
                return answer(state, wait_seconds);
            }
            let attempt = Attempt { hub, execution, source, image, target };
            let explanation = explain_launch(attempt, launch_image_id, &state_reason).await;
            Err(Error::InstanceDied {
                instance: instance_id.clone(),
                account: account.clone(),
                state_reason,
                explanation: match launches {
                    1 => explanation,
                    _ => format!("it is the last of {launches} that were launched one after the other; {explanation}"),
                },
            })
        }
    }
}

/// How another instance comes to be launched after one that is dead: when it is seen dead for the second time, so that
/// what was changed has had a pause to be seen everywhere. Nothing where another would die as well.
fn next_launch(input: &Input, state: Option<&InstanceStateName>, state_reason: &str) -> Option<(State, u64)> {
    let over = matches!(state, Some(InstanceStateName::ShuttingDown | InstanceStateName::Terminated));
    let Target { principal_changes, source_changes, .. } = &input.target;
    let changed = !principal_changes.is_empty() || *source_changes != SourceChanges::default();
    if !over || !changed || !may_pass(state_reason) {
        return None;
    }
    let before = usize::try_from(input.launches).ok()?.checked_sub(1)?;
    let pause = *PAUSES.get(before)?;
    INSTANCE.wait_after(input.looks + 1)?;
    Some(if input.seen == State::Dead { (State::Again, 0) } else { (State::Dead, pause) })
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

#[cfg(test)]
mod tests {
    use ami_share_core::{
        ids::{AccountId, PrincipalArn, Region},
        share::{Launch, Mode, PrincipalChange},
    };
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

    fn looked(launches: u64, looks: u64, seen: State, source_changes: SourceChanges) -> Input {
        Input {
            execution: ExecutionName::parse("nightly").unwrap(),
            source: Source {
                account_id: AccountId::parse("111111111111").unwrap(),
                region: Region::parse("eu-west-1").unwrap(),
            },
            image: Image {
                image_id: ImageId::parse("ami-0123abcd").unwrap(),
                name: "golden".to_owned(),
                architecture: "x86_64".to_owned(),
                volumes: Vec::new(),
                empty_volumes: vec![],
            },
            target: Target {
                account_id: AccountId::parse("222222222222").unwrap(),
                principal_changes: Vec::new(),
                source_changes,
                mode: Mode::None,
                kms_key_id: None,
                copy_id: None,
                launch: Launch::default(),
            },
            instance_id: InstanceId::parse("i-0123abcd").unwrap(),
            launch_image_id: ImageId::parse("ami-0123abcd").unwrap(),
            launches,
            looks,
            seen,
        }
    }

    fn changed() -> SourceChanges {
        SourceChanges { launch_permission: true, ..SourceChanges::default() }
    }

    const KEY: &str = "Client.InternalError: Client error on launch";

    #[test]
    fn a_dead_one_is_seen_twice_with_a_pause_before_the_next_launch() {
        let gone = Some(&InstanceStateName::Terminated);
        let next = |launches, seen| next_launch(&looked(launches, 1, seen, changed()), gone, KEY);
        assert_eq!(next(1, State::Pending), Some((State::Dead, 30)));
        assert_eq!(next(1, State::Dead), Some((State::Again, 0)));
        assert_eq!(next(2, State::Pending), Some((State::Dead, 60)));
        assert_eq!(next(2, State::Dead), Some((State::Again, 0)));
        assert_eq!((next(3, State::Pending), next(3, State::Dead)), (None, None));
        let going = next_launch(&looked(1, 0, State::Pending, changed()), Some(&InstanceStateName::ShuttingDown), KEY);
        assert_eq!(going, Some((State::Dead, 30)));
    }

    #[test]
    fn what_another_launch_would_not_change_is_the_end() {
        let gone = Some(&InstanceStateName::Terminated);
        let fresh = || looked(1, 1, State::Pending, changed());
        assert_eq!(next_launch(&looked(1, 1, State::Pending, SourceChanges::default()), gone, KEY), None);
        assert_eq!(next_launch(&fresh(), gone, "Client.UserInitiatedShutdown: User initiated shutdown"), None);
        assert_eq!(next_launch(&fresh(), gone, "Server.InsufficientInstanceCapacity"), None);
        assert_eq!(next_launch(&fresh(), Some(&InstanceStateName::Stopped), KEY), None);
        let overdue = looked(1, INSTANCE.looks() - 1, State::Pending, changed());
        assert_eq!(next_launch(&overdue, gone, KEY), None);
    }

    #[test]
    fn a_principals_change_counts_as_the_source_accounts() {
        let mut input = looked(1, 1, State::Pending, SourceChanges::default());
        let principal = PrincipalArn::parse("arn:aws:iam::222222222222:role/AmiShareLauncher").unwrap();
        input.target.principal_changes = vec![PrincipalChange { principal, key_arns: Vec::new() }];
        let next = next_launch(&input, Some(&InstanceStateName::Terminated), "Client.InvalidKMSKey.InvalidState");
        assert_eq!(next, Some((State::Dead, 30)));
    }
}
