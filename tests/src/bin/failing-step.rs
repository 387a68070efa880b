//! A function that fails whatever it is given: tests put it in the place of a step.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use lambda_runtime::{Diagnostic, LambdaEvent, service_fn};
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    lambda_runtime::run(service_fn(|_: LambdaEvent<Value>| async {
        Err::<(), _>(Diagnostic {
            error_type: "InjectedFailure".to_owned(),
            error_message: "This step was made to fail.".to_owned(),
        })
    }))
    .await
}
