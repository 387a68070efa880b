//! DescribeCopy: looks whether the target's copy is there, or why it failed.

use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{ExecutionName, ImageId},
    polling::COPY,
    share::{EXECUTION_TAG, Image, Source, Target},
};
use ami_share_explain::{Attempt, COPY_ACTIONS, explain_copy};
use aws_sdk_ec2::{
    Client,
    primitives::{DateTime, DateTimeFormat},
    types::{Filter, ImageState},
};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions = Actions {
    source_reader: COPY_ACTIONS.source_reader,
    target: COPY_ACTIONS.target,
    launcher: &[DESCRIBE_IMAGES, DESCRIBE_SNAPSHOTS],
    ..Actions::NONE
};

const DESCRIBE_IMAGES: &str = "ec2:DescribeImages";
const DESCRIBE_SNAPSHOTS: &str = "ec2:DescribeSnapshots";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub source: Source,
    pub image: Image,
    pub target: Target,
    pub copy_id: ImageId,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub state: State,
    /// Until the next look.
    pub wait_seconds: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    Pending,
    Available,
}

/// # Errors
/// [`Error::CopyFailed`] with the likely cause, also when it has been pending for 12 hours;
/// [`Error::NotYetVisible`].
#[tracing::instrument(skip_all, fields(
    execution = %input.execution, account = %input.target.account_id, copy = %input.copy_id
))]
pub async fn describe_copy(hub: &Hub, input: Input) -> Result<Output, Error> {
    let Input { execution, source, image, target, copy_id } = &input;
    let account = &target.account_id;
    let config = hub.as_launcher(account, &source.region, execution, ACTIONS).await?;
    let ec2 = Client::new(&config);
    let found = match ec2.describe_images().image_ids(copy_id.as_str()).send().await {
        Ok(answer) => answer.images.unwrap_or_default().into_iter().next(),
        Err(error) if aws::hides_image(&error) => None,
        Err(error) => return Err(aws::failure(account, DESCRIBE_IMAGES, error)),
    };
    let Some(copy) = found else {
        return Err(Error::NotYetVisible {
            what: format!("copy {copy_id} of image {}", image.image_id),
            account: account.clone(),
            call: DESCRIBE_IMAGES,
        });
    };
    let failed = |reason| Error::CopyFailed { image: image.image_id.clone(), account: account.clone(), reason };
    match copy.state() {
        Some(ImageState::Available) => Ok(Output { state: State::Available, wait_seconds: 0 }),
        Some(ImageState::Pending | ImageState::Transient) => {
            let age = age(copy.creation_date(), DateTime::from(hub.now()));
            if age > COPY.patience {
                return Err(failed(format!(
                    "copy {copy_id} has been pending since {}, over 12 hours; look at its snapshots in account {account}",
                    copy.creation_date().unwrap_or_default()
                )));
            }
            Ok(Output { state: State::Pending, wait_seconds: COPY.wait(age) })
        }
        state => {
            let state = state.map_or("in no state", ImageState::as_str);
            let mut said: Vec<String> =
                copy.state_reason().and_then(|reason| reason.message()).map(str::to_owned).into_iter().collect();
            match snapshot_errors(&ec2, &input).await {
                Ok(messages) => said.extend(messages),
                Err(error) => said.push(format!("its snapshots could not be asked: {error}")),
            }
            let attempt = Attempt { hub, execution, source, image, target };
            let explanation = explain_copy(attempt).await;
            Err(failed(format!("copy {copy_id} is {state} ({}); {explanation}", said.join("; "))))
        }
    }
}

/// What EC2 says of each snapshot of this execution's copy that came to nothing.
async fn snapshot_errors(ec2: &Client, input: &Input) -> Result<Vec<String>, Error> {
    let of_execution = Filter::builder().name(format!("tag:{EXECUTION_TAG}")).values(input.execution.as_str()).build();
    let answer = ec2
        .describe_snapshots()
        .owner_ids("self")
        .filters(of_execution)
        .send()
        .await
        .map_err(|error| aws::failure(&input.target.account_id, DESCRIBE_SNAPSHOTS, error))?;
    let said = answer.snapshots().iter().filter_map(|snapshot| {
        let message = snapshot.state_message().filter(|message| !message.is_empty())?;
        Some(format!("snapshot {}: {message}", snapshot.snapshot_id().unwrap_or_default()))
    });
    Ok(said.collect())
}

/// `created` as EC2 writes it: `2026-11-24T03:00:00.000Z`.
/// In seconds; of a copy whose date cannot be read, nothing.
fn age(created: Option<&str>, now: DateTime) -> u64 {
    created
        .and_then(|created| DateTime::from_str(created, DateTimeFormat::DateTime).ok())
        .map_or(0, |created| u64::try_from(now.secs() - created.secs()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_as_old_as_its_creation_date_says() {
        let now = DateTime::from_str("2026-11-24T04:00:00.000Z", DateTimeFormat::DateTime).unwrap();
        assert_eq!(age(Some("2026-11-24T03:00:00.000Z"), now), 3600);
        assert_eq!(age(Some("2026-11-24T05:00:00.000Z"), now), 0);
        assert_eq!(age(Some("today"), now), 0);
        assert_eq!(age(None, now), 0);
    }
}
