//! What StartShare is told by EventBridge.

use ami_share_core::{
    Error, Problem,
    ids::{AccountId, ImageId, Region},
    share::Source,
    step,
};
use aws_lambda_events::eventbridge::EventBridgeEvent;
use serde::Deserialize;
use serde_json::Value;

/// The types of events, as rules name them.
pub const IMAGE_STATE: &str = "EC2 AMI State Change";
pub const TAGS: &str = "Tag Change on Resource";
pub const SCHEDULE: &str = "Scheduled Event";

/// An event that is understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// An image has come into a state.
    State { source: Source, image_id: ImageId, state: String },
    /// The tags of an image have changed.
    Tagged { source: Source, image_id: ImageId },
    /// It is time to look at every image of a Region.
    Look { region: Region },
}

/// What EC2 says of an image ("Monitor AMI events", EC2 user guide).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StateDetail {
    image_id: ImageId,
    state: String,
}

impl Event {
    /// # Errors
    /// [`Error::InvalidRequest`] for what is none of these, or has no account, Region or image.
    pub(crate) fn read(event: EventBridgeEvent<Value>) -> Result<Self, Error> {
        match event.detail_type.as_str() {
            IMAGE_STATE => {
                let source = source_of(&event)?;
                let StateDetail { image_id, state } = step::decode(event.detail)?;
                Ok(Self::State { source, image_id, state })
            }
            TAGS => Ok(Self::Tagged { source: source_of(&event)?, image_id: tagged_image(&event)? }),
            SCHEDULE => {
                let region = region_of(&event).map_err(|problem| Error::InvalidRequest(vec![problem]))?;
                Ok(Self::Look { region })
            }
            other => {
                let rule = format!("must be one of {IMAGE_STATE}, {TAGS} and {SCHEDULE}");
                Err(Error::invalid("detail-type", other, rule))
            }
        }
    }
}

fn source_of(event: &EventBridgeEvent<Value>) -> Result<Source, Error> {
    let account_id = AccountId::parse(event.account.clone().unwrap_or_default())
        .map_err(|rule| problem("account", event.account.as_deref(), &rule));
    match (account_id, region_of(event)) {
        (Ok(account_id), Ok(region)) => Ok(Source { account_id, region }),
        (account_id, region) => Err(Error::InvalidRequest(account_id.err().into_iter().chain(region.err()).collect())),
    }
}

fn region_of(event: &EventBridgeEvent<Value>) -> Result<Region, Problem> {
    let region = Region::parse(event.region.clone().unwrap_or_default());
    region.map_err(|rule| problem("region", event.region.as_deref(), &rule))
}

fn problem(field: &str, value: Option<&str>, rule: &str) -> Problem {
    Problem { field: field.to_owned(), value: value.map(str::to_owned), rule: format!("must be {rule}") }
}

/// `arn:aws:ec2:eu-west-1::image/ami-...`: it is the only place that names what was tagged ("Monitor tag changes with
/// serverless workflows and Amazon EventBridge", Tagging AWS resources user guide, of instances; no document tells of images).
fn tagged_image(event: &EventBridgeEvent<Value>) -> Result<ImageId, Error> {
    let arn = event.resources.iter().flatten().next().map_or("", String::as_str);
    let (_, id) = arn.rsplit_once(":image/").unwrap_or_default();
    ImageId::parse(id).map_err(|_| Error::invalid("resources[0]", arn, "must be the ARN of an image"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const IMAGE: &str = "ami-0123456789abcdef0";

    fn read(event: Value) -> Result<Event, Error> {
        Event::read(step::decode(event)?)
    }

    fn source() -> Source {
        Source { account_id: AccountId::parse("111111111111").unwrap(), region: Region::parse("eu-west-1").unwrap() }
    }

    /// As EC2 sends it (EC2 user guide, "Monitor AMI events").
    fn state_event() -> Value {
        json!({
            "version": "0",
            "id": "example-9f07-51db-246b-d8b8441bcdf0",
            "detail-type": "EC2 AMI State Change",
            "source": "aws.ec2",
            "account": "111111111111",
            "time": "2026-11-24T03:00:00Z",
            "region": "eu-west-1",
            "resources": ["arn:aws:ec2:eu-west-1::image/ami-0123456789abcdef0"],
            "detail": {
                "RequestId": "example-9dcc-40a6-aa77-7ce457d5442b",
                "ImageId": "ami-0123456789abcdef0",
                "State": "available",
                "ErrorMessage": ""
            }
        })
    }

    /// As it is sent of an instance (Tagging AWS resources user guide, "Monitor tag changes with serverless workflows and
    /// Amazon EventBridge").
    fn tag_event() -> Value {
        json!({
            "version": "0",
            "id": "bddcf1d6-0251-35a1-aab0-adc1fb47c11c",
            "detail-type": "Tag Change on Resource",
            "source": "aws.tag",
            "account": "111111111111",
            "time": "2026-11-24T03:00:00Z",
            "region": "eu-west-1",
            "resources": ["arn:aws:ec2:eu-west-1::image/ami-0123456789abcdef0"],
            "detail": {
                "changed-tag-keys": ["ami-share:profile"],
                "service": "ec2",
                "resource-type": "image",
                "version": 1,
                "tags": { "ami-share:profile": "web" }
            }
        })
    }

    #[test]
    fn a_change_of_state_says_which_image_where() {
        let image_id = ImageId::parse(IMAGE).unwrap();
        let expected = Event::State { source: source(), image_id, state: "available".to_owned() };
        assert_eq!(read(state_event()).unwrap(), expected);
    }

    #[test]
    fn a_change_of_tags_says_which_image_where() {
        let mut event = tag_event();
        let expected = Event::Tagged { source: source(), image_id: ImageId::parse(IMAGE).unwrap() };
        assert_eq!(read(event.clone()).unwrap(), expected);
        // EC2 writes ARNs of images with and without their owner.
        event["resources"] = json!([format!("arn:aws:ec2:eu-west-1:111111111111:image/{IMAGE}")]);
        assert_eq!(read(event).unwrap(), expected);
    }

    #[test]
    fn a_schedule_says_which_region_is_looked_at() {
        let event = json!({ "detail-type": SCHEDULE, "source": "aws.events", "region": "eu-west-2", "detail": {} });
        assert_eq!(read(event).unwrap(), Event::Look { region: Region::parse("eu-west-2").unwrap() });
    }

    #[test]
    fn an_event_without_account_and_region_is_refused_with_both_named() {
        for mut event in [state_event(), tag_event()] {
            event["account"] = json!("1");
            event.as_object_mut().unwrap().remove("region");
            let error = read(event).unwrap_err().to_string();
            assert!(error.contains("account = 1") && error.contains("region"), "{error}");
        }
    }

    #[test]
    fn an_event_of_something_else_is_an_invalid_request() {
        let mut instance = state_event();
        instance["detail"]["ImageId"] = json!("i-0123456789abcdef0");
        let mut snapshot = tag_event();
        snapshot["resources"] = json!(["arn:aws:ec2:eu-west-1::snapshot/snap-0123456789abcdef0"]);
        let mut nothing = tag_event();
        nothing["resources"] = json!([]);
        let mut unknown = state_event();
        unknown["detail-type"] = json!("EC2 Instance State-change Notification");
        for wrong in [instance, snapshot, nothing, unknown] {
            assert_eq!(read(wrong.clone()).unwrap_err().name(), "InvalidRequest", "{wrong}");
        }
    }
}
