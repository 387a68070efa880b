//! From an SDK error to one of ours.

use std::error::Error as StdError;

use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::{display::DisplayErrorContext, metadata::ProvideErrorMetadata};

use crate::{
    Error,
    ids::{AccountId, ImageId},
    refusal,
    share::Source,
    words,
};

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

/// Whether EC2 says that there is no such image, or that it is somebody else's and the caller may not use it.
///
/// The second is `AuthFailure`, a code that bad credentials have too: the message tells them apart. EC2's documents say
/// that using an image without permission has this code ("Error codes for the Amazon EC2 API", EC2 developer guide); the
/// message is from field reports, such as hashicorp/terraform #5408.
pub fn hides_image(error: &impl ProvideErrorMetadata) -> bool {
    match error.code() {
        Some("InvalidAMIID.NotFound") => true,
        Some("AuthFailure") => error.message().is_some_and(|message| message.starts_with("Not authorized for image")),
        _ => false,
    }
}

/// Says which images of others an account allows itself to see.
pub const ALLOWED_IMAGES: &str = "ec2:GetAllowedImagesSettings";

/// The error of `call` for an image that `source` has shared with `account`, where EC2 does not let it be used: right
/// after the share that passes. `doubt` is what else may be the reason, and `said` what EC2 says.
pub fn not_shared_yet(
    image: &ImageId,
    source: &Source,
    account: &AccountId,
    call: &'static str,
    doubt: &str,
    said: &str,
) -> Error {
    Error::NotYetVisible {
        what: format!(
            "image {image} of account {owner} (what it takes is launch permission for account {account}; where it stays \
             so, see that ec2:DescribeImageAttribute in account {owner} still lists it, and start the execution \
             again{doubt}; EC2 says: {said})",
            owner = source.account_id,
            said = words::without_full_stop(said),
        ),
        account: account.clone(),
        call,
    }
}

/// The error of `call` (an IAM action, such as `ec2:RunInstances`) made in `account`.
///
/// A step that knows more about one of its error codes looks at `error.code()` first. One that acts on resources of EC2
/// as the launcher asks why it was refused: [`crate::authorization::failure`].
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
            let reason = refusal::reason(&account, &message);
            Error::AccessDenied { account, call, reason, source: Some(error.into()) }
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

#[cfg(test)]
mod tests {
    use aws_sdk_sts::operation::assume_role::AssumeRoleError;
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    use super::*;

    #[test]
    fn an_image_that_may_not_be_used_is_told_from_bad_credentials() {
        let hides = |code, message| hides_image(&ErrorMetadata::builder().code(code).message(message).build());
        assert!(hides("AuthFailure", "Not authorized for images: [ami-0123abcd]"));
        assert!(hides("AuthFailure", "Not authorized for image:ami-0123abcd"));
        assert!(hides("InvalidAMIID.NotFound", "The image id '[ami-0123abcd]' does not exist"));
        assert!(!hides("AuthFailure", "AWS was not able to validate the provided access credentials"));
        assert!(!hides("UnauthorizedOperation", "Not authorized for images"));
    }

    #[test]
    fn what_aws_encoded_is_in_the_log_and_not_in_the_message() {
        let message = "No. Encoded authorization failure message: A_-9";
        let refused = ErrorMetadata::builder().code("UnauthorizedOperation").message(message).build();
        let response = HttpResponse::new(403.try_into().unwrap(), SdkBody::empty());
        let error = SdkError::service_error(AssumeRoleError::generic(refused), response);
        let error = failure(&AccountId::parse("222222222222").unwrap(), "ec2:RunInstances", error);
        assert_eq!(error.name(), "AccessDenied");
        assert!(!error.to_string().contains("A_-9"), "{error}");
        assert!(format!("{error:?}").contains("A_-9"), "{error:?}");
    }

    #[test]
    fn what_is_not_shared_yet_says_which_permission_of_whom_and_what_to_do() {
        let source = Source {
            account_id: AccountId::parse("111111111111").unwrap(),
            region: crate::ids::Region::parse("eu-west-1").unwrap(),
        };
        let target = AccountId::parse("222222222222").unwrap();
        let image = ImageId::parse("ami-0123abcd").unwrap();
        let error =
            not_shared_yet(&image, &source, &target, "ec2:RunInstances", "; or else", "Ask: https://corp.example.");
        assert_eq!(error.name(), "NotYetVisible");
        let said = error.to_string();
        for part in [
            "ami-0123abcd of account 111111111111",
            "launch permission for account 222222222222",
            "ec2:RunInstances",
            "ec2:DescribeImageAttribute",
            "start the execution again; or else; EC2 says: Ask: https://corp.example)",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
