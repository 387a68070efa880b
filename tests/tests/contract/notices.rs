//! What the topic's subscribers read: the notice of every way to end.

use ami_share_machine::evaluated;
use serde_json::{Map, Value, json};

use crate::definition::{self, Machine};

/// SNS takes subjects of ASCII, shorter than 100 characters ("Publish", SNS API reference).
const MOST_OF_SUBJECT: usize = 99;

fn notice(machine: &Machine, report: Value) -> (String, String) {
    let variables = Map::from_iter([("report".to_owned(), report), ("table".to_owned(), json!("a table"))]);
    let arn = "arn:aws:states:eu-west-1:333333333333:execution:ShareAmi:build-7";
    let states = json!({ "context": { "Execution": { "Id": arn } } });
    let arguments = machine.state("Notify")["Arguments"].clone();
    let told = evaluated(&arguments, &variables, states).unwrap();
    let [subject, message] = ["Subject", "Message"].map(|name| told[name].as_str().unwrap().to_owned());
    assert!(subject.is_ascii() && subject.len() <= MOST_OF_SUBJECT && !subject.contains('\n'), "{subject}");
    (subject, message)
}

fn assert_says(message: &str, said: &[&str]) {
    for said in said {
        assert!(message.contains(said), "{said}: {message}");
    }
}

#[test]
fn the_notice_of_a_failed_share_names_image_accounts_region_cause_and_what_to_do() {
    let report = json!({
        "status": "failed", "execution": "build-7", "imageId": "ami-0123456789abcdef0",
        "source": { "accountId": "111111111111", "region": "eu-west-1" },
        "targets": [
            { "accountId": "222222222222", "status": "failed" }, { "accountId": "444444444444", "status": "proved" }
        ],
        "error": "LaunchFailed", "cause": "LaunchInstance: no room \u{2019}",
        "takenBack": [{ "call": "kms:PutKeyPolicy" }], "left": []
    });
    for (machine, how) in [(definition::share_ami(), ""), (definition::undo_share(), ", by undo-share")] {
        let (subject, message) = notice(&machine, report.clone());
        assert_eq!(subject, format!("ami-share: ami-0123456789abcdef0 failed{how}"));
        let (text, json) = message.split_once("\n\n").unwrap();
        assert_says(
            text,
            &[
                "Source: account 111111111111 in eu-west-1\n",
                "Targets: 222222222222 failed, 444444444444 proved\n",
                "Why: LaunchFailed: LaunchInstance: no room",
                "Taken back: 1 calls. Left: 0.\n",
                "What to do: see LaunchFailed in docs/errors.md, mend the reason, and start it again.",
            ],
        );
        assert_eq!(serde_json::from_str::<Value>(json).unwrap(), report);
        let mut left = report.clone();
        left["left"] = json!(["UndoShareKey failed with AccessDenied"]);
        assert_says(&notice(&machine, left).1, &["Left: 1.\n", "What to do: see docs/recover.md"]);
    }
}

#[test]
fn the_notice_of_a_share_says_that_there_is_nothing_to_do() {
    let report = json!({
        "status": "shared", "imageId": "ami-0123abcd", "source": { "accountId": "111111111111", "region": "eu-west-1" },
        "targets": [{ "accountId": "222222222222", "status": "proved" }], "takenBack": [], "left": []
    });
    let (subject, message) = notice(&definition::share_ami(), report);
    assert_eq!(subject, "ami-share: ami-0123abcd shared");
    assert_says(&message, &["Targets: 222222222222 proved\n", "What to do: nothing.\n\n{"]);
}

/// What a state itself says where the function that reports fails.
#[test]
fn a_notice_can_be_made_where_there_is_no_report() {
    let report = json!({ "status": "failed", "error": "States.Timeout", "cause": "" });
    for machine in [definition::share_ami(), definition::undo_share(), definition::revoke_share()] {
        let (subject, message) = notice(&machine, report.clone());
        assert!(subject.starts_with("ami-share: unknown failed"), "{subject}");
        assert_says(&message, &["Execution: arn:aws:states:eu-west-1:", "Why: States.Timeout: \n", "What to do: see "]);
    }
}

#[test]
fn the_notice_of_a_revoke_names_whom_it_was_taken_from() {
    let report = json!({
        "status": "revoked", "imageId": "ami-0123abcd", "revoked": ["222222222222", "444444444444"],
        "takenBack": [], "left": []
    });
    let (subject, message) = notice(&definition::revoke_share(), report.clone());
    assert_eq!(subject, "ami-share: ami-0123abcd revoked");
    assert_says(&message, &["Taken from: 222222222222, 444444444444\n", "What to do: nothing.\n\n{"]);
    let mut all = report;
    all.as_object_mut().unwrap().remove("imageId");
    all["images"] = json!(["ami-0123abcd", "ami-0123abce"]);
    assert_eq!(notice(&definition::revoke_share(), all).0, "ami-share: all, 2 revoked");
}

#[test]
fn the_subject_of_an_audit_says_where_and_whether_something_was_found() {
    let report = json!({ "status": "findings", "source": { "accountId": "111111111111", "region": "eu-west-1" } });
    let audit = definition::machines().into_iter().find(|machine| machine.path.contains("audit")).unwrap();
    let (subject, message) = notice(&audit, report);
    assert_eq!(
        (subject.as_str(), message.as_str()),
        ("ami-share audit: findings in 111111111111, eu-west-1", "a table")
    );
}
