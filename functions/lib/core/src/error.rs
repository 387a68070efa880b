//! The one error of ami-share.
//!
//! [`Error::name`] is what Step Functions matches in `ErrorEquals`, and what the table in docs/errors.md
//! explains. A name states a fact about the world; what to do about it (retry, undo, give up) is
//! decided by the state machine. [`Display`](fmt::Display) is one sentence for whoever reads the
//! execution; [`Debug`] is the same with every cause below it, which is what the runtime logs.

use std::{error::Error as StdError, fmt};

use lambda_runtime::Diagnostic;
use serde::{Deserialize, Serialize};

use crate::{
    ids::{AccountId, ImageId, InstanceId, KeyArn, PrincipalArn, Region},
    usage::Use,
    words,
};

/// What an error was caused by.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// One thing that is wrong with a request: which field, its value, and the rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where in the request, such as `targets[0].accountId`.
    pub field: String,
    /// The value as JSON, or nothing where the field is absent.
    pub value: Option<String>,
    /// A sentence without its subject, such as `must be an account id of 12 digits`.
    pub rule: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{} = {value}: {}", self.field, self.rule),
            None => write!(f, "{}: {}", self.field, self.rule),
        }
    }
}

/// An account that may not be a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedTarget {
    /// Twelve digits.
    pub account_id: AccountId,
    /// What AWS Organizations said of it, where it was asked.
    pub reason: Option<String>,
}

impl fmt::Display for RefusedTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{} ({reason})", self.account_id),
            None => self.account_id.fmt(f),
        }
    }
}

/// What went wrong. Each variant's message says what its fields are; docs/errors.md says what to do.
#[derive(thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("the request has {} problem(s): {}", .0.len(), listed(.0))]
    InvalidRequest(Vec<Problem>),

    /// `lists` is a sentence about who may be a target.
    #[error(
        "{} not on this deployment's allow-list of targets: {}; {lists}",
        if refused.len() == 1 { "an account is" } else { "accounts are" }, listed(refused)
    )]
    TargetNotAllowed { refused: Vec<RefusedTarget>, lists: String },

    /// `listed` is what the parameter has.
    #[error(
        "account {account} is not on this deployment's list of sources ({listed}); add it to the hub stack's parameter \
         AllowedSourceAccountIds if its images should be shared"
    )]
    SourceNotAllowed { account: AccountId, listed: String },

    #[error(
        "image {image} was not found by account {account} in {region} (ec2:DescribeImages); \
         check the id, the source account and the Region"
    )]
    ImageNotFound { image: ImageId, account: AccountId, region: String },

    #[error(
        "image {image} of account {account} is {state}, not available; \
         share it once ec2:DescribeImages says available"
    )]
    ImageNotAvailable { image: ImageId, account: AccountId, state: String },

    #[error("image {image} of account {account} cannot be shared: {reason}")]
    ImageNotShareable { image: ImageId, account: AccountId, reason: String },

    #[error(
        "image {image} of account {account} has volumes that are not encrypted ({}): whoever it is shared with needs no key \
         for them; {remedy}", devices.join(", ")
    )]
    ImageNotEncrypted { image: ImageId, account: AccountId, devices: Vec<String>, remedy: &'static str },

    #[error("key {key} cannot be shared: {reason}")]
    KeyNotShareable { key: String, reason: String },

    #[error("key {key} cannot be used: {reason}")]
    KeyNotUsable { key: String, reason: String },

    #[error(
        "the policy of key {key} would have {bytes} bytes, over KMS's limit of {most} (kms:PutKeyPolicy \
         was not called); take targets or statements out of it, use a key of its own for this image, \
         or ask for keyAccess grant, which leaves the policy alone"
    )]
    KeyPolicyTooLarge { key: KeyArn, bytes: usize, most: usize },

    #[error("the policy of key {key} cannot be changed as it is: {reason}")]
    KeyPolicyConflict { key: KeyArn, reason: String },

    #[error(
        "another execution is writing the key policies of account {account} in {region} (kms:PutKeyPolicy was not \
         called); it is waited for"
    )]
    KeyPoliciesLocked { account: AccountId, region: Region },

    #[error("this is not what was planned: {reason}; make a plan again, read it, and apply that one")]
    PlanChanged { reason: String },

    #[error(
        "this deployment shares only what plan-share has planned: {reason}; start plan-share with this request, read the plan, \
         and apply it by its planHash"
    )]
    PlanRequired { reason: &'static str },

    #[error("principal {principal} does not exist in account {account} ({call}); {remedy}")]
    PrincipalNotFound { principal: PrincipalArn, account: AccountId, call: &'static str, remedy: &'static str },

    #[error("account {account} refused {call}: {reason}")]
    AccessDenied {
        account: AccountId,
        call: &'static str,
        reason: String,
        #[source]
        source: Option<Cause>,
    },

    #[error("account {account} throttled {call}; it is tried again")]
    Throttled {
        account: AccountId,
        call: &'static str,
        #[source]
        source: Option<Cause>,
    },

    #[error("{call} in account {account} got no answer, or a server error; it is tried again")]
    Unavailable {
        account: AccountId,
        call: &'static str,
        #[source]
        source: Option<Cause>,
    },

    #[error("{what} is not visible yet in account {account} ({call}); it is looked for again")]
    NotYetVisible { what: String, account: AccountId, call: &'static str },

    #[error("account {account} has reached a quota at {call}: {reason}")]
    QuotaExceeded {
        account: AccountId,
        call: &'static str,
        reason: String,
        #[source]
        source: Option<Cause>,
    },

    #[error("copying image {image} in account {account} failed: {reason}")]
    CopyFailed { image: ImageId, account: AccountId, reason: String },

    #[error("image {image} could not be launched in account {account} (ec2:RunInstances): {reason}")]
    LaunchFailed {
        image: ImageId,
        account: AccountId,
        reason: String,
        #[source]
        source: Option<Cause>,
    },

    #[error("instance {instance} in account {account} died ({state_reason}): {explanation}")]
    InstanceDied { instance: InstanceId, account: AccountId, state_reason: String, explanation: String },

    #[error("volume {volume} in account {account} is not encrypted as asked: it {found}, and should be {expected}")]
    VolumeNotReencrypted { volume: String, account: AccountId, found: String, expected: String },

    #[error(
        "still in use: {}{}; have it replaced there, or revoke with force, which takes it back all the same (what runs \
         goes on running; what is launched from then on fails)",
        listed(uses),
        if *unlisted > 0 { format!("; and {unlisted} more") } else { String::new() }
    )]
    ImageInUse { uses: Vec<Use>, unlisted: usize },

    /// `has` is what follows the account in a sentence; `command` takes it.
    #[error(
        "account {account} {has}, and no note says that ami-share gave it: it stays; if nobody else needs it, take it \
         with: {command}"
    )]
    NotNoted { account: AccountId, has: String, command: String },

    /// `reason` has AWS's code, message and request id.
    #[error("{call} in account {account} failed: {reason}")]
    Aws {
        account: AccountId,
        call: &'static str,
        reason: String,
        #[source]
        source: Option<Cause>,
    },

    /// Several things that are wrong at once; never empty. See [`Error::all_of`].
    #[error("{}", listed(.0))]
    Several(Vec<Self>),
}

impl Error {
    /// The error's name in the state machine. Exhaustive on purpose: a new variant needs a row in
    /// docs/errors.md and a decision in the state machine.
    pub fn name(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "InvalidRequest",
            Self::TargetNotAllowed { .. } => "TargetNotAllowed",
            Self::SourceNotAllowed { .. } => "SourceNotAllowed",
            Self::ImageNotFound { .. } => "ImageNotFound",
            Self::ImageNotAvailable { .. } => "ImageNotAvailable",
            Self::ImageNotShareable { .. } => "ImageNotShareable",
            Self::ImageNotEncrypted { .. } => "ImageNotEncrypted",
            Self::KeyNotShareable { .. } => "KeyNotShareable",
            Self::KeyNotUsable { .. } => "KeyNotUsable",
            Self::KeyPolicyTooLarge { .. } => "KeyPolicyTooLarge",
            Self::KeyPolicyConflict { .. } => "KeyPolicyConflict",
            Self::KeyPoliciesLocked { .. } => "KeyPoliciesLocked",
            Self::PlanChanged { .. } => "PlanChanged",
            Self::PlanRequired { .. } => "PlanRequired",
            Self::PrincipalNotFound { .. } => "PrincipalNotFound",
            Self::AccessDenied { .. } => "AccessDenied",
            Self::Throttled { .. } => "Throttled",
            Self::Unavailable { .. } => "Unavailable",
            Self::NotYetVisible { .. } => "NotYetVisible",
            Self::QuotaExceeded { .. } => "QuotaExceeded",
            Self::CopyFailed { .. } => "CopyFailed",
            Self::LaunchFailed { .. } => "LaunchFailed",
            Self::InstanceDied { .. } => "InstanceDied",
            Self::VolumeNotReencrypted { .. } => "VolumeNotReencrypted",
            Self::ImageInUse { .. } => "ImageInUse",
            Self::NotNoted { .. } => "NotNoted",
            Self::Aws { .. } => "Aws",
            Self::Several(errors) => errors.first().map_or("Aws", Self::name),
        }
    }

    /// Every name there is, for the contract test between this enum, the state machine and docs/errors.md.
    pub const NAMES: [&str; 27] = [
        "InvalidRequest",
        "TargetNotAllowed",
        "SourceNotAllowed",
        "ImageNotFound",
        "ImageNotAvailable",
        "ImageNotShareable",
        "ImageNotEncrypted",
        "KeyNotShareable",
        "KeyNotUsable",
        "KeyPolicyTooLarge",
        "KeyPolicyConflict",
        "KeyPoliciesLocked",
        "PlanChanged",
        "PlanRequired",
        "PrincipalNotFound",
        "AccessDenied",
        "Throttled",
        "Unavailable",
        "NotYetVisible",
        "QuotaExceeded",
        "CopyFailed",
        "LaunchFailed",
        "InstanceDied",
        "VolumeNotReencrypted",
        "ImageInUse",
        "NotNoted",
        "Aws",
    ];

    /// All of `errors` as one, or nothing to report. What passes by itself comes first and names the
    /// whole, so that the state is tried again: the rest may look different then.
    ///
    /// # Errors
    /// The one error, or [`Error::Several`].
    pub fn all_of(mut errors: Vec<Self>) -> Result<(), Self> {
        errors.sort_by_key(|error| !error.passes());
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    /// Whether the same call may succeed a little later, with nothing changed.
    pub fn passes(&self) -> bool {
        match self {
            Self::Several(errors) => errors.iter().any(Self::passes),
            error => matches!(
                error,
                Self::Throttled { .. }
                    | Self::Unavailable { .. }
                    | Self::NotYetVisible { .. }
                    | Self::KeyPoliciesLocked { .. }
            ),
        }
    }

    /// A request with one problem that only a look at the world could find.
    pub fn invalid(field: impl Into<String>, value: impl Into<String>, rule: impl Into<String>) -> Self {
        Self::InvalidRequest(vec![Problem { field: field.into(), value: Some(value.into()), rule: rule.into() }])
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.name())?;
        let mut cause = self.source();
        while let Some(error) = cause {
            write!(f, "; caused by: {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

/// The longest message, in bytes of JSON: what states hand on has an end (see `room`). A refused request, of which there is
/// one, may say more.
const MAX_MESSAGE: usize = 3_000;
pub(crate) const MAX_REFUSAL: usize = 24_000;

const CUT: &str = " (the function's log has it whole)";

impl From<Error> for Diagnostic {
    fn from(error: Error) -> Self {
        let longest = match error {
            Error::InvalidRequest(_)
            | Error::TargetNotAllowed { .. }
            | Error::ImageInUse { .. }
            | Error::Several(_) => MAX_REFUSAL,
            _ => MAX_MESSAGE,
        };
        Self { error_type: error.name().to_owned(), error_message: shortened(error.to_string(), longest) }
    }
}

fn shortened(message: String, longest: usize) -> String {
    match words::cut(&message, longest - CUT.len()) {
        cut if cut == message => message,
        cut => cut + CUT,
    }
}

fn listed<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn throttled() -> Error {
        Error::Throttled {
            account: AccountId::parse("111111111111").unwrap(),
            call: "kms:PutKeyPolicy",
            source: Some("Rate exceeded".into()),
        }
    }

    #[test]
    fn the_name_is_the_error_type_that_step_functions_sees() {
        let diagnostic = Diagnostic::from(throttled());
        assert_eq!(diagnostic.error_type, "Throttled");
        assert!(diagnostic.error_message.contains("111111111111"));
        assert!(Error::NAMES.contains(&diagnostic.error_type.as_str()));
    }

    #[test]
    fn a_message_that_is_too_long_to_pass_on_is_cut_and_says_so() {
        for text in ["é", "\"", "x"] {
            let long = |error: fn(String) -> Error| Diagnostic::from(error(text.repeat(30_000))).error_message;
            let bytes = |message: &str| json!(message).to_string().len();
            let key = long(|reason| Error::KeyNotUsable { key: "k".into(), reason });
            assert!((2_990..=MAX_MESSAGE).contains(&bytes(&key)) && key.ends_with("has it whole)"), "{}", bytes(&key));
            let refusal = long(|value| Error::invalid("imageId", value, "must be shorter"));
            assert!((23_990..=MAX_REFUSAL).contains(&bytes(&refusal)), "{}", bytes(&refusal));
        }
    }

    #[test]
    fn debug_is_the_cause_chain_and_display_leaves_it_out() {
        assert!(format!("{:?}", throttled()).contains("caused by: Rate exceeded"));
        assert!(!throttled().to_string().contains("Rate exceeded"));
    }

    fn not_shareable(reason: &str) -> Error {
        Error::ImageNotShareable {
            image: ImageId::parse("ami-0123abcd").unwrap(),
            account: AccountId::parse("111111111111").unwrap(),
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn several_errors_take_the_name_of_the_first_and_name_all() {
        let denied = Error::AccessDenied {
            account: AccountId::parse("111111111111").unwrap(),
            call: "kms:PutKeyPolicy",
            reason: "no policy allows it".into(),
            source: None,
        };
        let error = Error::all_of(vec![not_shareable("it is instance-store backed"), denied]).unwrap_err();
        assert_eq!(error.name(), "ImageNotShareable");
        let text = error.to_string();
        assert!(text.find("instance-store") < text.find("no policy allows it"), "{text}");
        assert!(Error::all_of(vec![]).is_ok());
    }

    #[test]
    fn what_passes_by_itself_names_the_whole() {
        let account = || AccountId::parse("111111111111").unwrap();
        let unavailable = Error::Unavailable { account: account(), call: "kms:PutKeyPolicy", source: None };
        let not_visible =
            Error::NotYetVisible { what: "a policy".into(), account: account(), call: "kms:GetKeyPolicy" };
        for passing in [throttled(), unavailable, not_visible] {
            let name = passing.name();
            let error = Error::all_of(vec![not_shareable("one"), passing, not_shareable("two")]).unwrap_err();
            assert_eq!(error.name(), name);
            let text = error.to_string();
            assert!(text.find("shared: one") < text.find("shared: two"), "{text}");
        }
    }
}
