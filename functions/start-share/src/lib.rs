//! StartShare: starts share-ami for images whose tag asks for it.
//!
//! It hears three things: EC2 says that an image has become available, somebody has tagged an image, and it is time to look
//! at all of them. The first two come by EventBridge as best they can ("Events from AWS services", EventBridge user guide),
//! so what must not be missed is found by the third. Events are believed in that something happened; the image is described.
//! Its tag `ami-share:profile` names the request, which is kept, without the image, in an SSM parameter.

mod event;
mod profile;
mod starts;

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId, Region},
    share::{EXECUTION_TAG, Source},
};
use ami_share_record::Record;
use aws_lambda_events::eventbridge::EventBridgeEvent;
use aws_sdk_ec2::{
    Client,
    error::ProvideErrorMetadata,
    types::{Filter, Image, ImageState},
};
use serde::Serialize;
use serde_json::Value;

use event::Event;
use profile::Profile;
use starts::Starts;

pub use event::{IMAGE_STATE, SCHEDULE, TAGS};
pub use profile::PROFILE_TAG;

pub const ACTIONS: Actions = Actions { source_reader: &[DESCRIBE_IMAGES], ..Actions::NONE };

/// What it calls in the hub account, as its own role.
pub const HUB_ACTIONS: [&str; 4] = [GET_PARAMETER, START_EXECUTION, starts::QUERY, starts::UPDATE];

const DESCRIBE_IMAGES: &str = "ec2:DescribeImages";
const GET_PARAMETER: &str = "ssm:GetParameter";
const START_EXECUTION: &str = "states:StartExecution";

/// How many executions one look starts. Those that change the policy of one key wait for each other, and not for ever.
const MOST_STARTS: usize = 50;

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

#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    /// The names of the executions that were started now.
    pub started: Vec<ExecutionName>,
}

/// Starts one execution for an image, its profile, and each time that it becomes available, whatever tells of it, and
/// however often.
///
/// # Errors
/// [`Error::InvalidRequest`] for an event that is none of ours, a tag that cannot be a profile's name, and a profile that
/// is not there, is no request, or is for another image or source. A look goes on with the other images, and ends with one
/// of the errors.
#[tracing::instrument(skip_all)]
pub async fn start_share(hub: &Hub, settings: &Settings, event: EventBridgeEvent<Value>) -> Result<Output, Error> {
    let started = match Event::read(event)? {
        Event::Look { region } => return look(hub, settings, &region).await,
        Event::State { source, .. } | Event::Tagged { source, .. } if is_elsewhere(hub, &source) => None,
        Event::State { source, image_id, state } => match state.as_str() {
            "available" => {
                let image = describe_image(hub, &source, &image_id).await?;
                let image = image.ok_or_else(|| not_found(&source, &image_id))?;
                start_if_due(hub, settings, &Starts::open(hub)?, &source, &image_id, &image).await?
            }
            "disabled" => {
                Starts::open(hub)?.disabled(&image_id).await?;
                None
            }
            _ => None,
        },
        // The tag may have gone, and the image with it. One that is not available yet will be told of.
        Event::Tagged { source, image_id } => match describe_image(hub, &source, &image_id).await? {
            Some(image) if image.state() == Some(&ImageState::Available) => {
                start_if_due(hub, settings, &Starts::open(hub)?, &source, &image_id, &image).await?
            }
            _ => None,
        },
    };
    Ok(Output { started: started.into_iter().collect() })
}

/// The bus of a hub that is not the source has the hub's own images on it, too.
fn is_elsewhere(hub: &Hub, source: &Source) -> bool {
    let checked = hub.settings.sources.check(&source.account_id);
    if let Err(error) = &checked {
        tracing::info!(%error, "not shared");
    }
    checked.is_err()
}

/// Finds what no event told of: images that ask to be shared and that nothing was started for, and those that were disabled.
async fn look(hub: &Hub, settings: &Settings, region: &Region) -> Result<Output, Error> {
    let starts = Starts::open(hub)?;
    let mut started = Vec::new();
    let mut errors = Vec::new();
    for account_id in hub.settings.sources.accounts() {
        let source = Source { account_id: account_id.clone(), region: region.clone() };
        let images = tagged_images(hub, &source).await.unwrap_or_else(|error| {
            errors.push(error);
            Vec::new()
        });
        for (image_id, image) in images {
            let looked = match image.state() {
                Some(ImageState::Disabled) => starts.disabled(&image_id).await.map(|()| None),
                Some(ImageState::Available) if started.len() < MOST_STARTS => {
                    start_if_due(hub, settings, &starts, &source, &image_id, &image).await
                }
                _ => Ok(None),
            };
            match looked {
                Ok(execution) => started.extend(execution),
                Err(error) => errors.push(error),
            }
        }
    }
    if started.len() == MOST_STARTS {
        tracing::warn!("as many executions were started as one look may start; the next look goes on");
    }
    let Some(last) = errors.pop() else { return Ok(Output { started }) };
    for error in errors {
        tracing::error!(%error, "an image was not looked at");
    }
    Err(last)
}

/// The execution that was started for the image, if it asks for one and none was before.
async fn start_if_due(
    hub: &Hub,
    settings: &Settings,
    starts: &Starts,
    source: &Source,
    image_id: &ImageId,
    image: &Image,
) -> Result<Option<ExecutionName>, Error> {
    let Some(profile) = profile_of(image)? else { return Ok(None) };
    let Some(enabling) = starts.due(image_id, &profile).await? else { return Ok(None) };
    let text = load(hub, settings, &profile).await?;
    let request = profile.request(&settings.profile_prefix, &text, image_id, source)?;
    let execution = profile.execution_name(image_id, enabling)?;
    starts.begin(image_id, &profile, enabling).await?;
    Record::open(hub)?.note_start(&execution, &request, hub.now_ms()).await?;
    let is_new = start(hub, settings, &execution, request.to_string()).await?;
    starts.started(image_id, &profile, enabling, &execution).await?;
    Ok(is_new.then_some(execution))
}

fn not_found(source: &Source, image_id: &ImageId) -> Error {
    Error::ImageNotFound {
        image: image_id.clone(),
        account: source.account_id.clone(),
        region: source.region.to_string(),
    }
}

/// The session is named after the image, as the execution is, whose name is not known yet.
async fn describe_image(hub: &Hub, source: &Source, image_id: &ImageId) -> Result<Option<Image>, Error> {
    let ec2 = as_reader(hub, source, image_id.as_str()).await?;
    match ec2.describe_images().image_ids(image_id.as_str()).include_disabled(true).send().await {
        Ok(answer) => Ok(answer.images.unwrap_or_default().pop()),
        Err(error) if error.code().is_some_and(|code| code.starts_with("InvalidAMIID")) => Ok(None),
        Err(error) => Err(aws::failure(&source.account_id, DESCRIBE_IMAGES, error)),
    }
}

/// Every image of the account that has a profile's tag, also those that are disabled.
async fn tagged_images(hub: &Hub, source: &Source) -> Result<Vec<(ImageId, Image)>, Error> {
    let ec2 = as_reader(hub, source, "new-images").await?;
    let tagged = Filter::builder().name("tag-key").values(PROFILE_TAG).build();
    let request = ec2.describe_images().owners("self").filters(tagged).include_disabled(true);
    let mut pages = request.into_paginator().page_size(1000).items().send();
    let mut images = Vec::new();
    while let Some(image) = pages.next().await {
        let image = image.map_err(|error| aws::failure(&source.account_id, DESCRIBE_IMAGES, error))?;
        if let Some(Ok(image_id)) = image.image_id().map(ImageId::parse) {
            images.push((image_id, image));
        }
    }
    Ok(images)
}

async fn as_reader(hub: &Hub, source: &Source, session: &str) -> Result<Client, Error> {
    let session = ExecutionName::parse(session)
        .map_err(|rule| Error::invalid("detail.ImageId", session, format!("must be {rule}")))?;
    let config = hub.as_source_reader(&source.account_id, &source.region, &session, ACTIONS).await?;
    Ok(Client::new(&config))
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

/// Whether it was not started before.
async fn start(hub: &Hub, settings: &Settings, execution: &ExecutionName, request: String) -> Result<bool, Error> {
    let answer = aws_sdk_sfn::Client::new(hub.config())
        .start_execution()
        .state_machine_arn(&settings.state_machine_arn)
        .name(execution.as_str())
        .input(request)
        .send()
        .await;
    match answer {
        Ok(_) => {
            tracing::info!(%execution, "execution started");
            Ok(true)
        }
        Err(error) if error.as_service_error().is_some_and(|error| error.is_execution_already_exists()) => {
            tracing::info!(%execution, "execution was started before");
            Ok(false)
        }
        Err(error) => Err(aws::failure(&settings.account, START_EXECUTION, error)),
    }
}

#[cfg(test)]
mod tests;
