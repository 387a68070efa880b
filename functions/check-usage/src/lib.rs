//! CheckUsage: asks the targets whether they use the image, or copies of it that are to go. What a target
//! itself says is up to date; for one that cannot be asked there is EC2's report.

use std::collections::BTreeSet;

use ami_share_copies::{self as copies, DESCRIBE_IMAGES, MAX_VALUES};
use ami_share_core::{
    Error, Hub, aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId},
    revoke::{SourceImage, Usage, Use, UsingResource},
    take_back::{FromTarget, MadeInstance},
    tokens::launch_tokens,
};
use aws_sdk_ec2::{
    Client,
    types::{Filter, Instance, InstanceStateName},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;

pub const ACTIONS: Actions =
    Actions { launcher: &[DESCRIBE_IMAGES, DESCRIBE_INSTANCES, DESCRIBE_TEMPLATES], ..Actions::NONE };

const DESCRIBE_INSTANCES: &str = "ec2:DescribeInstances";
const DESCRIBE_TEMPLATES: &str = "ec2:DescribeLaunchTemplateVersions";

/// How many targets are asked at a time.
const CONCURRENCY: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    pub image: SourceImage,
    /// One that is gone can be launched by nobody, revoked or not.
    pub image_found: bool,
    /// Those that something is to be taken back from.
    pub accounts: Vec<AccountId>,
    /// What is to be done in some of them: the copies and instances that go.
    pub targets: Vec<FromTarget>,
    /// What the targets before these have said.
    pub usage: Usage,
}

/// Asks each target, and adds what it says.
///
/// # Errors
/// Whatever AWS answers that may pass: a target that cannot be asked is no error.
#[tracing::instrument(skip_all, fields(execution = %input.execution, image = %input.image.image_id))]
pub async fn check_usage(hub: &Hub, input: Input) -> Result<Usage, Error> {
    let input = &input;
    let answers: Vec<Result<Vec<Use>, Error>> = stream::iter(&input.accounts)
        .map(|account| async move {
            match ask(hub, input, account).await {
                // The account is gone, or its roles are, or they allow less than they should.
                Err(error @ Error::AccessDenied { .. }) => {
                    tracing::info!(%account, %error, "a target cannot be asked");
                    Ok(Err(error))
                }
                Err(error) => Err(error),
                Ok(uses) => Ok(Ok(uses)),
            }
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await?;
    let mut usage = input.usage.clone();
    for (account, answer) in input.accounts.iter().zip(answers) {
        usage.add_account(&input.image, account, answer.is_ok());
        usage.add(answer.unwrap_or_default());
    }
    Ok(usage)
}

async fn ask(hub: &Hub, input: &Input, account: &AccountId) -> Result<Vec<Use>, Error> {
    let SourceImage { source, image_id } = &input.image;
    let config = hub.as_launcher(account, &source.region, &input.execution, ACTIONS).await?;
    let ec2 = Client::new(&config);
    let going = input.targets.iter().find(|target| target.account_id == *account);
    let mut images: Vec<ImageId> = input.image_found.then(|| image_id.clone()).into_iter().collect();
    for made in going.iter().flat_map(|going| going.copies.chunks(MAX_VALUES)) {
        let copies = copies::find(&ec2, account, made).await?;
        images.extend(copies.keys().filter_map(|id| ImageId::parse(id).ok()));
    }
    if images.is_empty() {
        return Ok(vec![]);
    }
    let going = going.map_or(&[][..], |going| going.instances.as_slice());
    let mut uses = instances(&ec2, account, going, &images).await?;
    uses.extend(launch_templates(&ec2, account, &images).await?);
    Ok(uses)
}

/// The instances that are there, be they stopped, but for those that are to go.
async fn instances(
    ec2: &Client,
    account: &AccountId,
    going: &[MadeInstance],
    images: &[ImageId],
) -> Result<Vec<Use>, Error> {
    let tokens: BTreeSet<String> = going.iter().flat_map(|made| launch_tokens(&made.execution, account)).collect();
    let noted: BTreeSet<&str> = going.iter().filter_map(|made| Some(made.instance_id.as_ref()?.as_str())).collect();
    let goes = |instance: &Instance| {
        let launched = instance.client_token().is_some_and(|token| tokens.contains(token));
        launched || instance.instance_id().is_some_and(|id| noted.contains(id))
    };
    let states = [
        InstanceStateName::Pending,
        InstanceStateName::Running,
        InstanceStateName::Stopping,
        InstanceStateName::Stopped,
    ];
    let states = states.iter().map(|state| state.as_str().to_owned()).collect();
    let mut pages = ec2
        .describe_instances()
        .filters(of(images))
        .filters(Filter::builder().name("instance-state-name").set_values(Some(states)).build())
        .into_paginator()
        .items()
        .send();
    let mut found = Vec::new();
    while let Some(reservation) = pages.next().await {
        let reservation = reservation.map_err(|error| aws::failure(account, DESCRIBE_INSTANCES, error))?;
        for instance in reservation.instances().iter().filter(|instance| !goes(instance)) {
            found.push((instance.image_id().map(str::to_owned), instance.instance_id().map(str::to_owned)));
        }
    }
    Ok(uses(account, images, UsingResource::Instance, &found))
}

/// Launch templates whose latest or default version names one of the images. One that names a parameter of
/// Systems Manager is not found by what the parameter holds.
async fn launch_templates(ec2: &Client, account: &AccountId, images: &[ImageId]) -> Result<Vec<Use>, Error> {
    let mut pages = ec2
        .describe_launch_template_versions()
        .versions("$Latest")
        .versions("$Default")
        .filters(of(images))
        .into_paginator()
        .items()
        .send();
    let mut found = Vec::new();
    while let Some(version) = pages.next().await {
        let version = version.map_err(|error| aws::failure(account, DESCRIBE_TEMPLATES, error))?;
        let image = version.launch_template_data().and_then(|data| data.image_id()).map(str::to_owned);
        let template = (image, version.launch_template_id().map(str::to_owned));
        // The latest version may be the default one too.
        if !found.contains(&template) {
            found.push(template);
        }
    }
    Ok(uses(account, images, UsingResource::LaunchTemplate, &found))
}

fn of(images: &[ImageId]) -> Filter {
    let ids = images.iter().map(ToString::to_string).collect();
    Filter::builder().name("image-id").set_values(Some(ids)).build()
}

/// One for each of `images` that anything of `found` uses.
fn uses(
    account: &AccountId,
    images: &[ImageId],
    resource: UsingResource,
    found: &[(Option<String>, Option<String>)],
) -> Vec<Use> {
    let mut uses = Vec::new();
    for image in images {
        let using: Vec<&String> = found
            .iter()
            .filter(|(used, _)| used.as_deref() == Some(image.as_str()))
            .filter_map(|(_, id)| id.as_ref())
            .collect();
        if !using.is_empty() {
            uses.push(Use {
                account_id: account.clone(),
                image_id: image.clone(),
                resource,
                count: using.len() as u64,
                ids: using.into_iter().take(Use::IDS).cloned().collect(),
            });
        }
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_uses_an_image_is_counted_and_some_of_it_named() {
        let account = AccountId::parse("222222222222").unwrap();
        let image = |id: &str| ImageId::parse(id).unwrap();
        let instance = |image: &str, n: usize| (Some(image.to_owned()), Some(format!("i-{n}")));
        let mut found: Vec<_> = (0..7).map(|n| instance("ami-0000000a", n)).collect();
        found.push(instance("ami-0000000b", 8));
        let images = [image("ami-0000000a"), image("ami-0000000b"), image("ami-0000000c")];
        let uses = uses(&account, &images, UsingResource::Instance, &found);
        assert_eq!(
            uses.iter().map(|used| (&used.image_id, used.count)).collect::<Vec<_>>(),
            [(&images[0], 7), (&images[1], 1)]
        );
        assert_eq!(uses[0].ids, ["i-0", "i-1", "i-2", "i-3", "i-4"]);
    }
}
