//! Who uses an image: launch templates, and the reports on other accounts.

use super::stage::*;
use ami_share_sandbox::ec2::Recipe;
use ami_share_sandbox::faults::{Fault, FaultKind, Matcher};
use aws_sdk_ec2::types::{
    Filter, ImageUsageReport, ImageUsageReportEntry, ImageUsageResourceTypeRequest, RequestLaunchTemplateData,
};

fn naming(image: &str) -> RequestLaunchTemplateData {
    RequestLaunchTemplateData::builder().image_id(image).build()
}

async fn template(ec2: &aws_sdk_ec2::Client, name: &str, image: &str) -> String {
    let created = ec2.create_launch_template().launch_template_name(name).launch_template_data(naming(image));
    created.send().await.unwrap().launch_template.unwrap().launch_template_id.unwrap()
}

async fn report(ec2: &aws_sdk_ec2::Client, image: &str) -> String {
    let kind = |name: &str| ImageUsageResourceTypeRequest::builder().resource_type(name).build();
    let created = ec2
        .create_image_usage_report()
        .image_id(image)
        .resource_types(kind("ec2:Instance"))
        .resource_types(kind("ec2:LaunchTemplate"))
        .resource_types(kind("imagebuilder:ImageRecipe"))
        .resource_types(kind("imagebuilder:ContainerRecipe"))
        .client_token("once");
    created.send().await.unwrap().report_id.unwrap()
}

async fn ended(ec2: &aws_sdk_ec2::Client, id: &str) -> ImageUsageReport {
    loop {
        let reports = ec2.describe_image_usage_reports().report_ids(id).send().await.unwrap();
        let report = reports.image_usage_reports.unwrap().remove(0);
        if report.state() != Some("pending") {
            return report;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

async fn entries(ec2: &aws_sdk_ec2::Client, id: &str) -> Vec<ImageUsageReportEntry> {
    ec2.describe_image_usage_report_entries().report_ids(id).send().await.unwrap().image_usage_report_entries.unwrap()
}

#[tokio::test]
async fn launch_templates_are_found_by_the_image_of_their_latest_and_default_version() {
    let stage = Stage::new().await;
    let (old, new) = ("ami-0000000a", "ami-0000000b");
    let moved = template(&stage.b, "moved", old).await;
    let other = template(&stage.b, "other", new).await;
    let next = stage
        .b
        .create_launch_template_version()
        .launch_template_id(&moved)
        .launch_template_data(naming("ami-0000000c"));
    next.send().await.unwrap();
    let next = stage.b.create_launch_template_version().launch_template_id(&moved).launch_template_data(naming(new));
    next.send().await.unwrap();
    let found = async |image: &str| {
        let of = Filter::builder().name("image-id").values(image).build();
        let call = stage.b.describe_launch_template_versions().versions("$Latest").versions("$Default").filters(of);
        let versions = call.send().await.unwrap().launch_template_versions.unwrap();
        versions
            .into_iter()
            .map(|version| (version.launch_template_id.unwrap(), version.version_number.unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(found(old).await, [(moved.clone(), 1)]);
    assert_eq!(found("ami-0000000c").await, []);
    let mut both = [(moved, 3), (other, 1)];
    both.sort();
    assert_eq!(found(new).await, both);
    let all = stage.b.describe_launch_template_versions().versions("1");
    assert_eq!(code(all.send().await), "InvalidParameterValue");
}

#[tokio::test]
async fn a_report_says_after_a_while_which_other_accounts_use_an_image() {
    let settings = ami_share_sandbox::Settings { copy_delay_ms: 50, ..Default::default() };
    let stage = Stage::with(settings).await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "shared", &[&snapshot]).await;
    stage.share_image(&image, B).await;
    outcome(&stage.b, launch(&stage.b, &image)).await;
    // The owner's own do not count.
    outcome(&stage.a, launch(&stage.a, &image)).await;
    template(&stage.a, "own", &image).await;
    template(&stage.b, "theirs", &image).await;
    for of_images in [true, false] {
        let recipe = Recipe { of_images, image_id: image.clone() };
        stage.sandbox.world().account_mut(B).ec2.get_mut(REGION).unwrap().recipes.push(recipe);
    }

    let id = report(&stage.a, &image).await;
    assert_eq!(report(&stage.a, &image).await, id);
    let reports = stage.a.describe_image_usage_reports().report_ids(&id).send().await.unwrap();
    assert_eq!(reports.image_usage_reports()[0].state(), Some("pending"));
    assert_eq!(entries(&stage.a, &id).await, []);
    assert_eq!(ended(&stage.a, &id).await.state(), Some("available"));
    let mut said: Vec<_> = entries(&stage.a, &id)
        .await
        .into_iter()
        .map(|entry| (entry.account_id.unwrap(), entry.resource_type.unwrap(), entry.usage_count.unwrap()))
        .collect();
    said.sort();
    let used = |kind: &str| (B.to_owned(), kind.to_owned(), 1);
    assert_eq!(
        said,
        [
            used("ec2:Instance"),
            used("ec2:LaunchTemplate"),
            used("imagebuilder:ContainerRecipe"),
            used("imagebuilder:ImageRecipe")
        ]
    );
    // A kind that EC2 does not know is refused, and none.
    let unknown = ImageUsageResourceTypeRequest::builder().resource_type("imagebuilder:Pipeline").build();
    let unknown = stage.a.create_image_usage_report().image_id(&image).resource_types(unknown);
    assert_eq!(code(unknown.send().await), "InvalidParameterValue");
    // Nobody else has it made, or sees it.
    let kind = ImageUsageResourceTypeRequest::builder().resource_type("ec2:Instance").build();
    let theirs = stage.b.create_image_usage_report().image_id(&image).resource_types(kind);
    assert_eq!(code(theirs.send().await), "AuthFailure");
    let unknown = stage.b.describe_image_usage_reports().report_ids(&id);
    assert_eq!(code(unknown.send().await), "InvalidImageUsageReportId.NotFound");
}

#[tokio::test]
async fn a_report_can_come_to_nothing() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "shared", &[&snapshot]).await;
    let kind = FaultKind::Fail { reason: "An internal error occurred.".to_owned() };
    stage.sandbox.world().faults.add(Fault::once(Matcher::action("ec2:CreateImageUsageReport"), kind));
    let id = report(&stage.a, &image).await;
    let report = ended(&stage.a, &id).await;
    assert_eq!((report.state(), report.state_reason()), (Some("error"), Some("An internal error occurred.")));
}
