//! Data at rest and in transit: who may send to the hub's topic and queues, and under which keys things are.

use ami_share_tests::template::resources;
use serde_json::{Value, json};

use crate::{definition::strings, template};

fn hub() -> Value {
    template("template.yaml")
}

/// The statements of the one policy that is about `member`.
fn policy_of(hub: &Value, kind: &str, members: &str, member: &str) -> Vec<Value> {
    let about = |(_, policy): &(&str, &Value)| policy["Properties"][members] == json!([{ "Ref": member }]);
    let policies: Vec<&Value> = resources(hub, kind).filter(about).map(|(_, policy)| policy).collect();
    assert_eq!(policies.len(), 1, "{member} has {} policies", policies.len());
    policies[0]["Properties"]["PolicyDocument"]["Statement"].as_array().unwrap().clone()
}

/// Topic and queues, each with its kind of policy.
fn topic_and_queues(hub: &Value) -> Vec<(String, Value, Vec<Value>)> {
    let topics = resources(hub, "AWS::SNS::Topic").map(|(id, _)| {
        let statements = policy_of(hub, "AWS::SNS::TopicPolicy", "Topics", id);
        (id.to_owned(), json!({ "Ref": id }), statements)
    });
    let queues = resources(hub, "AWS::SQS::Queue").map(|(id, _)| {
        let statements = policy_of(hub, "AWS::SQS::QueuePolicy", "Queues", id);
        (id.to_owned(), json!({ "Fn::GetAtt": [id, "Arn"] }), statements)
    });
    topics.chain(queues).collect()
}

/// As AWS's documents have it ("Amazon SNS security best practices" and "Amazon SQS security best practices", the
/// developer guides). A topic policy takes no action but the topic's own: `sns:*` is refused.
#[test]
fn topic_and_queues_take_nothing_that_does_not_come_by_tls() {
    let hub = hub();
    let all = topic_and_queues(&hub);
    assert_eq!(all.len(), 3);
    for (id, arn, statements) in all {
        let expected = json!({
            "Sid": "RefuseWithoutTls",
            "Effect": "Deny",
            "Principal": "*",
            "Action": if id.ends_with("Topic") { "sns:Publish" } else { "sqs:*" },
            "Resource": arn,
            "Condition": { "Bool": { "aws:SecureTransport": "false" } }
        });
        assert!(statements.contains(&expected), "{id}: {statements:#?}");
    }
}

/// A topic policy replaces the one that SNS makes, which lets the account publish: without its own statement every alarm
/// falls silent. The roles of the state machines are of this account: their own policies are enough.
#[test]
fn whoever_publishes_or_sends_is_let_in_by_name_and_for_this_account_only() {
    let hub = hub();
    let mut alarms = resources(&hub, "AWS::CloudWatch::Alarm");
    assert!(alarms.all(|(_, alarm)| alarm["Properties"]["AlarmActions"] == json!([{ "Ref": "NotificationTopic" }])));
    for (id, arn, statements) in topic_and_queues(&hub) {
        let (service, action) =
            if id.ends_with("Topic") { ("cloudwatch", "sns:Publish") } else { ("events", "sqs:SendMessage") };
        let allowing: Vec<&Value> = statements.iter().filter(|statement| statement["Effect"] == "Allow").collect();
        assert_eq!(allowing.len(), 1, "{id}");
        assert_eq!(allowing[0]["Principal"], json!({ "Service": format!("{service}.amazonaws.com") }), "{id}");
        assert_eq!(strings(&allowing[0]["Action"]), [action], "{id}");
        assert_eq!(allowing[0]["Resource"], arn, "{id}");
        let account = json!({ "StringEquals": { "aws:SourceAccount": { "Ref": "AWS::AccountId" } } });
        assert_eq!(allowing[0]["Condition"], account, "{id}");
    }
}
