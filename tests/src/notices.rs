//! What the hub's topic tells its subscribers.

use serde_json::{Value, json};

use crate::{
    HUB, Result,
    deploy::{self, Hub, Template},
    engine::Engine,
};

/// A queue that every notice comes into from now on.
#[derive(Debug)]
pub struct Inbox {
    queue: String,
}

/// A notice, as it comes by e-mail.
#[derive(Debug, Clone)]
pub struct Notice {
    pub subject: String,
    pub message: String,
}

impl Notice {
    /// The report behind the text, for programs.
    pub fn report(&self) -> Result<Value> {
        let (_, report) = self.message.split_once("\n\n").ok_or("the notice has a text only")?;
        Ok(serde_json::from_str(report)?)
    }
}

impl Inbox {
    pub async fn open(engine: &Engine, hub: &Hub) -> Result<Self> {
        let topic = hub.stack.outputs.get("NotificationTopicArn").ok_or("the hub stack has no topic")?;
        let template = json!({ "Resources": {
            "Queue": { "Type": "AWS::SQS::Queue" },
            "QueuePolicy": { "Type": "AWS::SQS::QueuePolicy", "Properties": {
                "Queues": [{ "Ref": "Queue" }],
                "PolicyDocument": { "Version": "2012-10-17", "Statement": [{
                    "Effect": "Allow", "Principal": { "Service": "sns.amazonaws.com" }, "Action": "sqs:SendMessage",
                    "Resource": { "Fn::GetAtt": ["Queue", "Arn"] },
                    "Condition": { "ArnEquals": { "aws:SourceArn": topic } },
                }]},
            }},
            "Subscription": { "Type": "AWS::SNS::Subscription", "Properties": {
                "TopicArn": topic, "Protocol": "sqs", "Endpoint": { "Fn::GetAtt": ["Queue", "Arn"] },
            }},
        }});
        let stack = deploy::deploy(engine, HUB, "inbox", Template::Body(template), &[]).await?;
        Ok(Self { queue: stack.resources.get("Queue").ok_or("there is no queue")?.clone() })
    }

    /// The oldest notice that was not received yet.
    pub fn receive(&self, engine: &Engine) -> Result<Notice> {
        // The AWS CLI takes SQS's endpoint from nowhere else.
        let output = deploy::aws(HUB, &engine.endpoint())?
            .args(["--endpoint-url", &engine.endpoint()])
            .args(["sqs", "receive-message", "--wait-time-seconds", "5", "--visibility-timeout", "3600"])
            .args(["--query", "Messages[0].Body", "--output", "text", "--queue-url", &self.queue])
            .output()?;
        let body: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("there is no notice: {error}: {}", String::from_utf8_lossy(&output.stderr)))?;
        let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
        Ok(Notice { subject: text("Subject"), message: text("Message") })
    }
}
