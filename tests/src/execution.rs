//! Starting executions and following them.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use aws_sdk_sfn::types::{ExecutionStatus, HistoryEvent};
use serde_json::Value;

use crate::{HUB, Result, clients, deploy};

const POLL_INTERVAL: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(120);

/// A state as it was entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entered {
    pub state: String,
    /// Since the execution started.
    pub after: Duration,
}

/// How an execution ended.
#[derive(Debug, Clone)]
pub struct Ended {
    pub arn: String,
    pub status: ExecutionStatus,
    pub output: Option<Value>,
    pub error: Option<String>,
    pub cause: Option<String>,
    /// In the order of the history; those of a Map's iterations are interleaved.
    pub states: Vec<Entered>,
    pub duration: Duration,
}

impl Ended {
    pub fn entered(&self, state: &str) -> bool {
        self.states.iter().any(|entered| entered.state == state)
    }
}

/// Starts an execution with the AWS CLI, as a user would; returns its ARN.
pub fn start_with_cli(engine: &str, state_machine: &str, name: &str, request: &Value) -> Result<String> {
    let output = deploy::aws(HUB, engine)?
        .args(["stepfunctions", "start-execution", "--query", "executionArn", "--output", "text"])
        .args(["--state-machine-arn", state_machine, "--name", name, "--input", &request.to_string()])
        .output()?;
    if !output.status.success() {
        std::io::stderr().write_all(&output.stderr)?;
        return Err(format!("aws stepfunctions start-execution ended with {}", output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Starts an execution; returns its ARN.
pub async fn start(engine: &str, state_machine: &str, name: &str, request: &Value) -> Result<String> {
    let client = aws_sdk_sfn::Client::new(&clients::root_of(HUB, engine));
    let started =
        client.start_execution().state_machine_arn(state_machine).name(name).input(request.to_string()).send().await?;
    Ok(started.execution_arn)
}

/// Follows an execution to its end, telling `on_state` of every state as it is entered.
pub async fn follow(engine: &str, arn: &str, mut on_state: impl FnMut(&Entered)) -> Result<Ended> {
    let client = aws_sdk_sfn::Client::new(&clients::root_of(HUB, engine));
    let waiting_since = Instant::now();
    let mut states = Vec::new();
    let mut seen = 0;
    loop {
        // The status first: the history read after it is then complete.
        let description = client.describe_execution().execution_arn(arn).send().await?;
        let events = history(&client, arn).await?;
        let started = events.first().map_or(0.0, |event| event.timestamp.as_secs_f64());
        for event in &events[seen..] {
            if let Some(details) = &event.state_entered_event_details {
                let after = Duration::try_from_secs_f64(event.timestamp.as_secs_f64() - started).unwrap_or_default();
                let entered = Entered { state: details.name.clone(), after };
                on_state(&entered);
                states.push(entered);
            }
        }
        seen = events.len();
        if description.status != ExecutionStatus::Running {
            let ended = events.last().map_or(started, |event| event.timestamp.as_secs_f64());
            return Ok(Ended {
                arn: arn.to_owned(),
                status: description.status,
                output: description.output.as_deref().and_then(|output| serde_json::from_str(output).ok()),
                error: description.error,
                cause: description.cause,
                states,
                duration: Duration::try_from_secs_f64(ended - started).unwrap_or_default(),
            });
        }
        if waiting_since.elapsed() > TIMEOUT {
            return Err(format!("{arn} did not end in {TIMEOUT:?}; its last state is {:?}", states.last()).into());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// All events of its history so far.
pub(crate) async fn history(client: &aws_sdk_sfn::Client, arn: &str) -> Result<Vec<HistoryEvent>> {
    let mut events = Vec::new();
    let mut token = None;
    loop {
        let page =
            client.get_execution_history().execution_arn(arn).max_results(1000).set_next_token(token).send().await?;
        events.extend(page.events);
        token = page.next_token;
        if token.is_none() {
            return Ok(events);
        }
    }
}
