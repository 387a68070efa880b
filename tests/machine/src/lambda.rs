//! Lambda: one invocation of a step, with the environment, the role and the time limit of the deployed function.

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use ami_share_core::{Error, Hub, hub::Invocation, settings::Settings};
use ami_share_sandbox::sts;
use aws_config::{
    BehaviorVersion, Region, SdkConfig, retry::RetryConfig, stalled_stream_protection::StalledStreamProtectionConfig,
};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_runtime_api::client::http::{SharedHttpConnector, http_client_fn};
use futures_util::future::{Either, select};
use lambda_runtime::Diagnostic;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    REGION,
    services::{Answer, Connector, Control, Services, tell},
    simulation::Simulation,
    steps::Step,
};

/// A function as CloudFormation made it.
#[derive(Debug, Clone)]
pub struct Function {
    pub role_arn: String,
    pub timeout_seconds: u64,
    pub environment: BTreeMap<String, String>,
}

/// Invokes a function; it runs to its end, whether or not anybody waits for its answer.
pub(crate) fn invoke(
    simulation: &Simulation,
    services: &Services,
    control: &Arc<Control>,
    (step, function): (Rc<Step>, Function),
    payload: Value,
) -> oneshot::Receiver<Result<Value, (String, String)>> {
    let (answer, answered) = oneshot::channel();
    let answer: Answer = Arc::new(Mutex::new(Some(answer)));
    let (services, control) = (services.clone(), Arc::clone(control));
    simulation.spawn(async move {
        let clock = services.clock.clone();
        clock.sleep(clock.latency()).await;
        let result = run(&services, &control, &step, &function, payload, &answer).await;
        clock.sleep(clock.latency()).await;
        tell(&answer, result);
    });
    answered
}

async fn run(
    services: &Services,
    control: &Arc<Control>,
    step: &Step,
    function: &Function,
    payload: Value,
    answer: &Answer,
) -> Result<Value, (String, String)> {
    let (crash, crashed) = oneshot::channel();
    let connector = Connector {
        services: services.clone(),
        control: Arc::clone(control),
        crash: Arc::new(Mutex::new(Some(crash))),
        answer: Arc::clone(answer),
    };
    let hub = hub(services, connector, step, function).map_err(|error| ("Runtime.ExitError".to_owned(), error))?;
    let time_limit = services.clock.sleep(function.timeout_seconds * 1_000);
    match select(step.run(&hub, payload), select(time_limit, crashed)).await {
        Either::Left((Ok(output), _)) => {
            Ok(json!({ "ExecutedVersion": "$LATEST", "Payload": output, "StatusCode": 200 }))
        }
        Either::Left((Err(error), _)) => Err(failure(error)),
        Either::Right((Either::Left(_), _)) => {
            let message = format!("Task timed out after {}.00 seconds", function.timeout_seconds);
            Err((
                "Sandbox.Timedout".to_owned(),
                json!({ "errorType": "Sandbox.Timedout", "errorMessage": message }).to_string(),
            ))
        }
        Either::Right((Either::Right(_), _)) => {
            let seen = services.clock.chance(|random| random.below(2));
            let name = if seen == 0 { "Runtime.ExitError" } else { "Lambda.Unknown" };
            Err((name.to_owned(), json!({ "errorType": name, "errorMessage": "the function has exited" }).to_string()))
        }
    }
}

/// As Step Functions gives the error of a function: its type is the name, and its JSON the cause.
fn failure(error: Error) -> (String, String) {
    let Diagnostic { error_type, error_message } = error.into();
    let cause = json!({ "errorType": error_type, "errorMessage": error_message });
    (error_type, cause.to_string())
}

fn hub(services: &Services, connector: Connector, step: &Step, function: &Function) -> Result<Hub, String> {
    let key = sts::issue_session(&mut services.world(), &function.role_arn, step.state)
        .ok_or_else(|| format!("there is no role {}", function.role_arn))?;
    let credentials = Credentials::new(key.id, key.secret, key.token, None, "function");
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .http_client(http_client_fn(move |_, _| SharedHttpConnector::new(connector.clone())))
        .sleep_impl(services.clock.clone())
        .time_source(services.clock.clone())
        // Each client of a process draws its retries from one budget, so that what one simulation does would depend
        // on the others. Every fault reaches the state machine, whose retries are the ones to look at.
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .build();
    let settings = Settings::from_variables(|name| function.environment.get(name).cloned())?;
    let clock = &services.clock;
    let deadline = UNIX_EPOCH + Duration::from_millis(clock.epoch_ms() + function.timeout_seconds * 1_000);
    let id = format!("{:016x}", clock.chance(|random| random.below(u64::MAX)));
    Ok(Hub::new(settings, config).invoked(Invocation { id, deadline }))
}
