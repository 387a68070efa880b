//! StartShare: starts share-ami for a new image whose tag asks for it.
//!
//! EC2 says that an image has become available (EventBridge, "EC2 AMI State Change"; best effort);
//! the event has no tags, so the image is described. The tag `ami-share:profile` names the request,
//! which is kept, without the image, in an SSM parameter.

mod profile;

use ami_share_core::{
    Error, Hub, Problem, aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId, Region},
    share::{EXECUTION_TAG, Source},
};
use ami_share_record::Record;
use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_ec2::{error::ProvideErrorMetadata, types::Image};
use serde::{Deserialize, Serialize};

use profile::Profile;

pub use profile::PROFILE_TAG;

pub const ACTIONS: Actions = Actions { source_reader: &[DESCRIBE_IMAGES], ..Actions::NONE };

/// What it calls in the hub account, as its own role.
pub const HUB_ACTIONS: [&str; 2] = [GET_PARAMETER, START_EXECUTION];

const DESCRIBE_IMAGES: &str = "ec2:DescribeImages";
const GET_PARAMETER: &str = "ssm:GetParameter";
const START_EXECUTION: &str = "states:StartExecution";

/// What only this function is told by the template.
#[derive(Debug, Clone)]
pub struct Settings {
    pub state_machine_arn: String,
    /// The account that the state machine is in.
    pub account: AccountId,
    /// Starts with a slash and does not end with one.
    pub profile_prefix: String,
}

impl Settings {
    /// # Errors
    /// The variable that is missing or malformed.
    pub fn from_env() -> Result<Self, String> {
        let read = |name: &str| std::env::var(name).map_err(|error| format!("environment variable {name}: {error}"));
        Self::new(read("STATE_MACHINE_ARN")?, read("PROFILE_PARAMETER_PREFIX")?)
    }

    fn new(state_machine_arn: String, profile_prefix: String) -> Result<Self, String> {
        let account = AccountId::parse(state_machine_arn.split(':').nth(4).unwrap_or_default())
            .map_err(|rule| format!("the account in STATE_MACHINE_ARN must be {rule}"))?;
        Ok(Self { state_machine_arn, account, profile_prefix })
    }
}

/// What the event says of the image (EC2 user guide, "Monitor AMI events").
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Detail {
    pub image_id: ImageId,
    pub state: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub image_id: ImageId,
    /// The name of the execution; nothing when the image does not ask to be shared, or is of no source.
    pub execution: Option<ExecutionName>,
}

/// Starts one execution for an image and its profile, however often the event comes.
///
/// The execution is named after both, and Step Functions keeps a name for 90 days: an image that
/// is disabled and enabled again within that time is not shared again.
///
/// # Errors
/// [`Error::InvalidRequest`] for an event without account or Region, a tag that cannot be a
/// profile's name, and a profile that is not there, is no request, or is for another image or source.
#[tracing::instrument(skip_all, fields(image = %event.detail.image_id))]
pub async fn start_share(hub: &Hub, settings: &Settings, event: EventBridgeEvent<Detail>) -> Result<Output, Error> {
    let source = source_of(&event)?;
    let Detail { image_id, state } = event.detail;
    if state != "available" {
        return Ok(Output { image_id, execution: None });
    }
    // The bus of a hub that is not the source has the hub's own images on it, too.
    if let Err(error) = hub.settings.sources.check(&source.account_id) {
        tracing::info!(%error, "not shared");
        return Ok(Output { image_id, execution: None });
    }
    let image = describe_image(hub, &source, &image_id).await?;
    let Some(profile) = profile_of(&image)? else {
        return Ok(Output { image_id, execution: None });
    };
    let text = load(hub, settings, &profile).await?;
    let request = profile.request(&settings.profile_prefix, &text, &image_id, &source)?;
    let execution = profile.execution_name(&image_id)?;
    Record::open(hub)?.note_start(&execution, &request, hub.now_ms()).await?;
    start(hub, settings, &execution, request.to_string()).await?;
    Ok(Output { image_id, execution: Some(execution) })
}

fn source_of(event: &EventBridgeEvent<Detail>) -> Result<Source, Error> {
    let problem = |field: &str, value: &Option<String>, rule| Problem {
        field: field.to_owned(),
        value: value.clone(),
        rule: format!("must be {rule}"),
    };
    let account_id = AccountId::parse(event.account.clone().unwrap_or_default());
    let region = Region::parse(event.region.clone().unwrap_or_default());
    match (account_id, region) {
        (Ok(account_id), Ok(region)) => Ok(Source { account_id, region }),
        (account_id, region) => {
            let account_problem = account_id.err().map(|rule| problem("account", &event.account, rule));
            let region_problem = region.err().map(|rule| problem("region", &event.region, rule));
            Err(Error::InvalidRequest(account_problem.into_iter().chain(region_problem).collect()))
        }
    }
}

/// The session is named after the image, as the execution is, whose name is not known yet.
async fn describe_image(hub: &Hub, source: &Source, image_id: &ImageId) -> Result<Image, Error> {
    let session = ExecutionName::parse(image_id.as_str())
        .map_err(|rule| Error::invalid("detail.ImageId", image_id.as_str(), format!("must be {rule}")))?;
    let config = hub.as_source_reader(&source.account_id, &source.region, &session, ACTIONS).await?;
    let answer = aws_sdk_ec2::Client::new(&config).describe_images().image_ids(image_id.as_str()).send().await;
    let image = match answer {
        Ok(answer) => answer.images.unwrap_or_default().pop(),
        Err(error) if error.code().is_some_and(|code| code.starts_with("InvalidAMIID")) => None,
        Err(error) => return Err(aws::failure(&source.account_id, DESCRIBE_IMAGES, error)),
    };
    image.ok_or_else(|| Error::ImageNotFound {
        image: image_id.clone(),
        account: source.account_id.clone(),
        region: source.region.to_string(),
    })
}

/// Nothing for an image without the tag, and for a copy that ami-share itself made: sharing it
/// could make the next copy.
fn profile_of(image: &Image) -> Result<Option<Profile>, Error> {
    let tag = |key: &str| {
        image.tags().iter().find(|tag| tag.key() == Some(key)).map(|tag| tag.value().unwrap_or_default().to_owned())
    };
    match tag(PROFILE_TAG) {
        Some(name) if tag(EXECUTION_TAG).is_none() => Profile::parse(name).map(Some),
        _ => Ok(None),
    }
}

async fn load(hub: &Hub, settings: &Settings, profile: &Profile) -> Result<String, Error> {
    let parameter = profile.parameter(&settings.profile_prefix);
    let answer = aws_sdk_ssm::Client::new(hub.config()).get_parameter().name(&parameter).send().await;
    let value = match answer {
        Ok(answer) => answer.parameter.and_then(|parameter| parameter.value),
        Err(error) if error.as_service_error().is_some_and(|error| error.is_parameter_not_found()) => None,
        Err(error) => return Err(aws::failure(&settings.account, GET_PARAMETER, error)),
    };
    value.ok_or_else(|| {
        let rule = format!("must name a profile; account {} has no SSM parameter {parameter}", settings.account);
        Error::invalid(PROFILE_TAG, profile.as_str(), rule)
    })
}

async fn start(hub: &Hub, settings: &Settings, execution: &ExecutionName, request: String) -> Result<(), Error> {
    let answer = aws_sdk_sfn::Client::new(hub.config())
        .start_execution()
        .state_machine_arn(&settings.state_machine_arn)
        .name(execution.as_str())
        .input(request)
        .send()
        .await;
    match answer {
        Ok(_) => tracing::info!(%execution, "execution started"),
        Err(error) if error.as_service_error().is_some_and(|error| error.is_execution_already_exists()) => {
            tracing::info!(%execution, "execution was started before");
        }
        Err(error) => return Err(aws::failure(&settings.account, START_EXECUTION, error)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ami_share_core::step;
    use aws_sdk_ec2::types::Tag;
    use serde_json::{Value, json};

    use super::*;

    /// As EC2 sends it (EC2 user guide, "Monitor AMI events").
    fn event() -> Value {
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

    fn image(tags: &[(&str, &str)]) -> Image {
        let tags = tags.iter().map(|(key, value)| Tag::builder().key(*key).value(*value).build()).collect();
        Image::builder().set_tags(Some(tags)).build()
    }

    #[test]
    fn the_event_says_which_image_where() {
        let event: EventBridgeEvent<Detail> = step::decode(event()).unwrap();
        assert_eq!(event.detail.image_id.as_str(), "ami-0123456789abcdef0");
        assert_eq!(event.detail.state, "available");
        let source = source_of(&event).unwrap();
        assert_eq!((source.account_id.as_str(), source.region.as_str()), ("111111111111", "eu-west-1"));
    }

    #[test]
    fn an_event_without_account_and_region_is_refused_with_both_named() {
        let mut event = event();
        event["account"] = json!("1");
        event.as_object_mut().unwrap().remove("region");
        let error = source_of(&step::decode(event).unwrap()).unwrap_err().to_string();
        assert!(error.contains("account = 1") && error.contains("region"), "{error}");
    }

    #[test]
    fn an_event_of_something_else_is_an_invalid_request() {
        let mut event = event();
        event["detail"]["ImageId"] = json!("i-0123456789abcdef0");
        assert_eq!(step::decode::<EventBridgeEvent<Detail>>(event).unwrap_err().name(), "InvalidRequest");
    }

    #[test]
    fn an_image_without_the_tag_asks_for_nothing() {
        assert!(profile_of(&image(&[])).unwrap().is_none());
        assert!(profile_of(&image(&[("Name", "web")])).unwrap().is_none());
    }

    #[test]
    fn the_tag_names_the_profile() {
        let profile = profile_of(&image(&[("Name", "x"), (PROFILE_TAG, "web")])).unwrap().unwrap();
        assert_eq!(profile.as_str(), "web");
        assert_eq!(profile_of(&image(&[(PROFILE_TAG, "../x")])).unwrap_err().name(), "InvalidRequest");
    }

    #[test]
    fn a_copy_that_ami_share_made_starts_nothing() {
        let copy = image(&[(PROFILE_TAG, "web"), (EXECUTION_TAG, "ami-0123456789abcdef0-web")]);
        assert!(profile_of(&copy).unwrap().is_none());
    }

    #[test]
    fn the_hub_is_the_account_of_the_state_machine() {
        let arn = "arn:aws:states:eu-west-1:333333333333:stateMachine:share-ami";
        let settings = Settings::new(arn.to_owned(), "/p".to_owned()).unwrap();
        assert_eq!(settings.account.as_str(), "333333333333");
        assert!(Settings::new("share-ami".to_owned(), "/p".to_owned()).is_err());
    }
}
