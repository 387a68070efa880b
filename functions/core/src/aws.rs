//! From an SDK error to one of ours.

use std::error::Error as StdError;

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::{display::DisplayErrorContext, metadata::ProvideErrorMetadata};

use crate::{Error, ids::AccountId};

/// What EC2, IAM, KMS and STS answer when they are called too often ("Error retries and exponential
/// backoff" in each API's reference; the SDK has tried again already).
const THROTTLING: [&str; 7] = [
    "RequestLimitExceeded",
    "EC2ThrottledException",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestThrottled",
    "TooManyRequestsException",
];

const ACCESS_DENIED: [&str; 5] =
    ["AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthFailure", "OptInRequired"];

const QUOTA: [&str; 6] = [
    "LimitExceeded",
    "LimitExceededException",
    "ResourceLimitExceeded",
    "InstanceLimitExceeded",
    "VcpuLimitExceeded",
    "VolumeLimitExceeded",
];

/// The error of `call` (an IAM action, such as `ec2:RunInstances`) made in `account`.
///
/// A step that knows more about one of its error codes looks at `error.code()` first.
pub fn failure<E>(account: &AccountId, call: &'static str, error: SdkError<E, HttpResponse>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let account = account.clone();
    let message = error.message().unwrap_or_default().to_owned();
    let server_error = error.raw_response().is_some_and(|response| response.status().as_u16() >= 500);
    match error.code().map(str::to_owned) {
        Some(code) if THROTTLING.contains(&code.as_str()) => {
            Error::Throttled { account, call, source: Some(error.into()) }
        }
        Some(code) if ACCESS_DENIED.contains(&code.as_str()) => {
            Error::AccessDenied { account, call, reason: message, source: Some(error.into()) }
        }
        Some(code) if QUOTA.contains(&code.as_str()) => {
            Error::QuotaExceeded { account, call, reason: message, source: Some(error.into()) }
        }
        Some(code) if !server_error => {
            let request_id = error.meta().extra("aws_request_id").unwrap_or("unknown");
            let reason = format!("{code}: {message} (request {request_id})");
            Error::Aws { account, call, reason, source: Some(error.into()) }
        }
        None if matches!(error, SdkError::ConstructionFailure(_)) => {
            Error::Aws { account, call, reason: DisplayErrorContext(&error).to_string(), source: Some(error.into()) }
        }
        _ => Error::Unavailable { account, call, source: Some(error.into()) },
    }
}
