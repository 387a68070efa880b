//! Error names: the enum, the state machines and docs/errors.md.

use ami_share_core::Error;

use crate::{Set, definition, text};

/// Names that Step Functions, Lambda and the integrations of Lambda, DynamoDB and Step Functions itself give errors of
/// their own. Of a limit there are two names: the developer guide's ("Start a new state machine from a running
/// execution"), and the one that all other errors of the integration are named like.
const OF_AWS: [&str; 23] = [
    "States.ALL",
    "States.Timeout",
    "Lambda.ServiceException",
    "Lambda.AWSLambdaException",
    "Lambda.SdkClientException",
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.TooManyRequestsException",
    "Lambda.Unknown",
    "Sandbox.Timedout",
    "Runtime.ExitError",
    "DynamoDB.ConditionalCheckFailedException",
    "DynamoDB.ThrottlingException",
    "DynamoDB.ProvisionedThroughputExceededException",
    "DynamoDB.RequestLimitExceeded",
    "DynamoDB.InternalServerErrorException",
    "DynamoDB.AmazonDynamoDBException",
    "DynamoDB.SdkClientException",
    "StepFunctions.ExecutionLimitExceeded",
    "StepFunctions.ExecutionLimitExceededException",
    "StepFunctions.ThrottlingException",
    "StepFunctions.AWSStepFunctionsException",
    "StepFunctions.InternalServerErrorException",
    "StepFunctions.SdkClientException",
];

#[test]
fn every_error_name_of_a_state_machine_exists() {
    let mut named = Set::new();
    for (state, definition) in definition::all_states() {
        for list in ["Retry", "Catch"] {
            for rule in definition[list].as_array().into_iter().flatten() {
                for name in definition::strings(&rule["ErrorEquals"]) {
                    assert!(Error::NAMES.contains(&name) || OF_AWS.contains(&name), "{state}: {name}");
                    named.insert(name.to_owned());
                }
            }
        }
    }
    for name in OF_AWS {
        assert!(named.contains(name), "{name} is listed here, and no state machine names it");
    }
}

#[test]
fn the_page_explains_every_error_and_no_other() {
    assert_eq!(explained("| error |"), Error::NAMES.map(str::to_owned).into());
}

#[test]
fn the_page_explains_every_finding_of_an_audit_and_no_other() {
    assert_eq!(explained("| finding |"), audit_shares::Kind::ALL.map(|kind| format!("{kind:?}")).into());
}

/// The names in the first column of the table in docs/errors.md that has this heading.
fn explained(heading: &str) -> Set {
    let page = text("docs/errors.md");
    let table = page.split_once(heading).unwrap_or_else(|| panic!("docs/errors.md has no table {heading}")).1;
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.filter_map(|line| line.split('`').nth(1)).map(str::to_owned).collect()
}
