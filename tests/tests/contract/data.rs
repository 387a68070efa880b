//! Data at rest and in transit: who may send to the hub's topic and queues, and under which keys things are.

use ami_share_tests::template::resources;
use serde_json::{Value, json};

use crate::{Set, definition::strings, json_after, template, text};

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

/// Where the hub keeps something, the property that names the key, and the parameter with a key of the operator's.
const KEPT: [(&str, &str, &str); 4] = [
    ("AWS::DynamoDB::Table", "SSESpecification", "RecordTableKeyArn"),
    ("AWS::SNS::Topic", "KmsMasterKeyId", "TopicKeyArn"),
    ("AWS::SQS::Queue", "KmsMasterKeyId", "QueuesKeyArn"),
    ("AWS::Logs::LogGroup", "KmsKeyId", "LogsKeyArn"),
];

fn names(value: &Value, parameter: &str) -> bool {
    value.to_string().contains(&json!({ "Ref": parameter }).to_string())
}

#[test]
fn whatever_the_hub_keeps_can_be_under_a_key_of_the_operators() {
    let hub = hub();
    for (kind, property, parameter) in KEPT {
        let all: Vec<_> = resources(&hub, kind).collect();
        assert!(!all.is_empty(), "{kind}");
        for (id, resource) in all {
            assert!(names(&resource["Properties"][property], parameter), "{id} cannot be under {parameter}");
        }
    }
    assert!(names(&hub["Globals"]["Function"]["KmsKeyArn"], "FunctionsKeyArn"));
    for parameter in KEPT.map(|(_, _, parameter)| parameter).into_iter().chain(["FunctionsKeyArn"]) {
        assert_eq!(hub["Parameters"][parameter]["Default"], "", "{parameter}");
        let pattern = &hub["Parameters"]["RecordTableKeyArn"]["AllowedPattern"];
        assert_eq!(hub["Parameters"][parameter]["AllowedPattern"], *pattern, "{parameter}");
    }
    // What is kept under SQS's own key cannot be under another.
    for (id, queue) in resources(&hub, "AWS::SQS::Queue") {
        let own = json!({ "Fn::If": ["OwnQueuesKey", false, true] });
        assert_eq!(queue["Properties"]["SqsManagedSseEnabled"], own, "{id}");
    }
}

/// A key that goes with the stack would take the evidence with it.
#[test]
fn what_outlives_the_stack_is_under_no_key_of_the_stack() {
    let hub = hub();
    let retained: Set = hub["Resources"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, resource)| resource["DeletionPolicy"] == "Retain" && resource["UpdateReplacePolicy"] == "Retain")
        .map(|(id, _)| id.clone())
        .collect();
    assert_eq!(retained, Set::from(["RecordTable", "StateMachinesLogGroup"].map(str::to_owned)));
    let keys: Vec<&str> = resources(&hub, "AWS::KMS::Key").map(|(id, _)| id).collect();
    assert_eq!(keys, ["NotificationKey"]);
    for id in retained {
        assert!(!hub["Resources"][&id].to_string().contains("NotificationKey"), "{id}");
    }
}

/// The key policy of docs/permissions.md, by the names of its statements.
fn documented_key_policy() -> Value {
    serde_json::from_str(json_after(&text("docs/permissions.md"), "<!-- key policy of the hub -->")).unwrap()
}

/// Services that act for themselves: those that the policies of topic and queues let in, and CloudWatch Logs ("Encrypt
/// log data in CloudWatch Logs using AWS KMS", CloudWatch Logs user guide; "Key management", SQS and SNS developer guides).
#[test]
fn the_documented_key_policy_lets_in_exactly_the_services_that_use_the_keys() {
    let hub = hub();
    let mut expected = Set::from(["logs.eu-west-1.amazonaws.com".to_owned()]);
    for (_, _, statements) in topic_and_queues(&hub) {
        expected.extend(
            statements.iter().filter_map(|statement| statement["Principal"]["Service"].as_str()).map(str::to_owned),
        );
    }
    let policy = documented_key_policy();
    let statements = policy["Statement"].as_array().unwrap();
    let services: Set = statements
        .iter()
        .filter_map(|statement| statement["Principal"]["Service"].as_str())
        .map(str::to_owned)
        .collect();
    assert_eq!(services, expected);
    // Nobody may use another account's alarms, events, logs or tables to use the key.
    for statement in statements.iter().filter(|statement| statement["Sid"] != "Leave it to IAM") {
        assert!(statement["Condition"].to_string().contains("333333333333"), "{statement}");
    }
    // The stack's own key lets alarms do what the documents say.
    let own = &hub["Resources"]["NotificationKey"]["Properties"]["KeyPolicy"]["Statement"][1];
    let topic = statements.iter().find(|statement| statement["Sid"] == "Topic").unwrap();
    assert_eq!((&own["Action"], &own["Principal"]), (&topic["Action"], &topic["Principal"]));
}

/// What roles of the stack do with a key, they may by IAM: the documented policy leaves it to that.
#[test]
fn roles_of_the_stack_may_use_the_keys_of_what_they_use() {
    let hub = hub();
    for (id, sid, parameter) in [
        ("SendNotificationsPolicy", "EncryptNotifications", "TopicKeyArn"),
        ("StartShareFunctionRole", "EncryptLostEvents", "QueuesKeyArn"),
        ("WriteLogsAndTracesPolicy", "ReadSettings", "FunctionsKeyArn"),
    ] {
        let policies = hub["Resources"][id]["Properties"].to_string();
        assert!(policies.contains(&format!("\"Sid\":\"{sid}\"")), "{id} has no {sid}");
        assert!(policies.contains(&json!({ "Ref": parameter }).to_string()), "{id} does not name {parameter}");
    }
    assert_eq!(documented_key_policy()["Statement"][0]["Action"], "kms:*");
}
