//! The Lambda adapter: what turns a step into a function.
//!
//! The runtime hands over raw JSON and gets back raw JSON, so that a payload that does not fit is
//! [`Error::InvalidRequest`] like any other bad input, not an error of the runtime's own.

use std::{env, time::Instant};

use lambda_runtime::{
    LambdaEvent, service_fn,
    tracing::subscriber::{self, filter::LevelFilter, fmt::format::FmtSpan},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Error, Hub, Problem, hub::Invocation};

/// Runs `step` as the handler of a Lambda function, until the environment is taken away.
///
/// # Errors
/// When the deployment's settings are missing or malformed, or the runtime API cannot be reached.
pub async fn run<I, O>(step: impl AsyncFn(&Hub, I) -> Result<O, Error>) -> Result<(), lambda_runtime::Error>
where
    I: DeserializeOwned,
    O: Serialize,
{
    let started = Instant::now();
    start_logging();
    let hub = Hub::from_env()?;
    tracing::info!(initMs = started.elapsed().as_millis(), "started");
    let (hub, step) = (&hub, &step);
    lambda_runtime::run(service_fn(|event: LambdaEvent<Value>| async move {
        // Boxed: the SDKs' futures nest so deep that rustc gives up on the layout of the whole.
        let LambdaEvent { payload, context, .. } = event;
        let hub = hub.invoked(Invocation { deadline: context.deadline(), id: context.request_id });
        encode(Box::pin(step(&hub, decode(payload)?)).await?)
    }))
    .await
}

/// The same of a step that calls nothing: it needs no settings, and its program has no SDK and no TLS in it.
///
/// # Errors
/// When the runtime API cannot be reached.
pub async fn run_alone<I, O>(step: impl Fn(I) -> Result<O, Error>) -> Result<(), lambda_runtime::Error>
where
    I: DeserializeOwned,
    O: Serialize,
{
    start_logging();
    let step = &step;
    let answer = |event: LambdaEvent<Value>| async move { encode(step(decode(event.payload)?)?) };
    lambda_runtime::run(service_fn(answer)).await
}

/// One JSON object a line, with a timestamp: the runtime's own default writes none.
fn start_logging() {
    subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_current_span(true)
        .with_span_events(FmtSpan::NONE)
        .with_max_level(level(env::var("AWS_LAMBDA_LOG_LEVEL").ok().as_deref()))
        .init();
}

/// Of what Lambda's `ApplicationLogLevel` may be, FATAL alone has no name here.
fn level(name: Option<&str>) -> LevelFilter {
    match name {
        Some("FATAL") => LevelFilter::ERROR,
        name => name.and_then(|name| name.parse().ok()).unwrap_or(LevelFilter::INFO),
    }
}

/// # Errors
/// [`Error::InvalidRequest`], with serde's own words for what does not fit.
pub fn decode<I: DeserializeOwned>(payload: Value) -> Result<I, Error> {
    serde_json::from_value(payload).map_err(|error| {
        Error::InvalidRequest(vec![Problem { field: "payload".to_owned(), value: None, rule: error.to_string() }])
    })
}

/// # Errors
/// [`Error::InvalidRequest`]: no output of a step is so.
pub fn encode<O: Serialize>(output: O) -> Result<Value, Error> {
    serde_json::to_value(output).map_err(|error| {
        Error::InvalidRequest(vec![Problem { field: "output".to_owned(), value: None, rule: error.to_string() }])
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::ids::AccountId;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Input {
        account_id: AccountId,
    }

    #[test]
    fn the_level_of_the_log_is_what_lambda_says() {
        for (name, expected) in [
            (None, LevelFilter::INFO),
            (Some("DEBUG"), LevelFilter::DEBUG),
            (Some("WARN"), LevelFilter::WARN),
            (Some("FATAL"), LevelFilter::ERROR),
            (Some("of no use"), LevelFilter::INFO),
        ] {
            assert_eq!(level(name), expected, "{name:?}");
        }
    }

    #[test]
    fn a_payload_that_does_not_fit_is_an_invalid_request() {
        let error = decode::<Input>(json!({ "accountId": "12" })).unwrap_err();
        assert_eq!(error.name(), "InvalidRequest");
        assert!(error.to_string().contains("12 digits"), "{error}");
        assert_eq!(
            decode::<Input>(json!({ "accountId": "222222222222", "x": 1 })).unwrap_err().name(),
            "InvalidRequest"
        );
        assert_eq!(
            decode::<Input>(json!({ "accountId": "222222222222" })).unwrap().account_id.as_str(),
            "222222222222"
        );
    }
}
