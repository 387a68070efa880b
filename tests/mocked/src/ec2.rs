//! Answers of EC2 for images, and who may launch them.

use crate::{Answer, Call};

/// An image of the source account that is shared. One that is shared with several is there once for each.
#[derive(Debug, Clone)]
pub struct SharedImage {
    pub region: &'static str,
    pub id: &'static str,
    /// Of its only snapshot; nothing where that is not encrypted.
    pub key_arn: Option<&'static str>,
    /// The account, organization or unit that may launch it.
    pub with: &'static str,
}

/// What EC2 answers of `images`; nothing of calls that are about something else.
pub fn answer(images: &[SharedImage], call: &Call) -> Option<Answer> {
    let here = || images.iter().filter(|image| image.region == call.region);
    match call.operation.as_str() {
        "DescribeImages" => {
            let (ids, by) = (call.list("ImageId"), call.text("ExecutableBy.1"));
            if ids.iter().any(|id| !here().any(|image| image.id == *id)) {
                return Some(Err("InvalidAMIID.NotFound"));
            }
            let found = here().filter(|image| ids.is_empty() || ids.contains(&image.id));
            let found = found.filter(|image| by.is_empty() || image.with == by);
            Some(Ok(images_set(found.map(|image| (image.id, "available", vec![snapshot(image)])))))
        }
        "DescribeSnapshots" => {
            let asked = [call.list("SnapshotId"), call.list("Filter.1.Value")].concat();
            let found = here().filter(|image| asked.contains(&snapshot(image).as_str()));
            Some(Ok(snapshot_set(found.map(|image| (snapshot(image), image.key_arn)))))
        }
        "DescribeImageAttribute" => {
            let found = here().filter(|image| image.id == call.text("ImageId"));
            Some(Ok(launch_permission(found.map(|image| image.with))))
        }
        _ => None,
    }
}

fn snapshot(image: &SharedImage) -> String {
    image.id.replace("ami-", "snap-")
}

/// The answer of DescribeImages: each with its state and its snapshots.
pub fn images_set<'a>(images: impl Iterator<Item = (&'a str, &'a str, Vec<String>)>) -> String {
    let device = |snapshot: String| {
        format!("<item><deviceName>/dev/sda</deviceName><ebs><snapshotId>{snapshot}</snapshotId></ebs></item>")
    };
    let images = images.map(|(id, state, snapshots)| {
        let devices: String = snapshots.into_iter().map(device).collect();
        format!(
            "<item><imageId>{id}</imageId><imageState>{state}</imageState>\
             <blockDeviceMapping>{devices}</blockDeviceMapping></item>"
        )
    });
    format!("<DescribeImagesResponse><imagesSet>{}</imagesSet></DescribeImagesResponse>", images.collect::<String>())
}

/// The answer of DescribeSnapshots: each with its key.
pub fn snapshot_set<'a>(snapshots: impl Iterator<Item = (String, Option<&'a str>)>) -> String {
    let snapshots = snapshots.map(|(id, key)| {
        let key = key.map(|key| format!("<kmsKeyId>{key}</kmsKeyId>")).unwrap_or_default();
        format!("<item><snapshotId>{id}</snapshotId>{key}</item>")
    });
    let snapshots: String = snapshots.collect();
    format!("<DescribeSnapshotsResponse><snapshotSet>{snapshots}</snapshotSet></DescribeSnapshotsResponse>")
}

/// The answer of DescribeImageAttribute: accounts, or ARNs of organizations and units.
pub fn launch_permission<'a>(with: impl Iterator<Item = &'a str>) -> String {
    let permissions = with.map(|with| match with {
        unit if unit.contains(":ou/") => format!("<item><organizationalUnitArn>{unit}</organizationalUnitArn></item>"),
        organization if organization.contains(":organization/") => {
            format!("<item><organizationArn>{organization}</organizationArn></item>")
        }
        account => format!("<item><userId>{account}</userId></item>"),
    });
    let permissions: String = permissions.collect();
    format!(
        "<DescribeImageAttributeResponse><launchPermission>{permissions}</launchPermission></DescribeImageAttributeResponse>"
    )
}
