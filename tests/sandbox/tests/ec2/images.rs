//! Images: what can be registered, and what DescribeImages shows to whom.

use super::stage::*;
use aws_sdk_ec2::types::{ArchitectureValues, BlockDeviceMapping, CopyTagsFromSource, EbsBlockDevice};
use aws_sdk_ec2::types::{InstanceSpecification, ResourceType, SnapshotReturnCodes, Tag, TagSpecification};

#[tokio::test]
async fn every_kind_of_device_reads_back() {
    let stage = Stage::new().await;
    let key = stage.key(A).await;
    let root = stage.snapshot(&stage.a, Some(&key)).await;
    let data = stage.snapshot(&stage.a, None).await;
    let ebs = |snapshot: &str| EbsBlockDevice::builder().snapshot_id(snapshot).build();
    let device = |name: &str| BlockDeviceMapping::builder().device_name(name);
    let registered = stage
        .a
        .register_image()
        .name("devices")
        .architecture(ArchitectureValues::Arm64)
        .root_device_name("/dev/xvda")
        .block_device_mappings(device("/dev/xvda").ebs(ebs(&root)).build())
        .block_device_mappings(device("/dev/sdb").virtual_name("ephemeral0").build())
        .block_device_mappings(device("/dev/sdc").no_device("").build())
        .block_device_mappings(device("/dev/sdf").ebs(ebs(&data)).build())
        .send()
        .await
        .unwrap();
    let image = settled_image(&stage.a, registered.image_id().unwrap()).await;
    assert_eq!(image.root_device_type().unwrap().as_str(), "ebs");
    assert_eq!(image.architecture(), Some(&ArchitectureValues::Arm64));
    let devices = image.block_device_mappings();
    let root_ebs = devices[0].ebs().unwrap();
    assert_eq!((root_ebs.snapshot_id(), root_ebs.encrypted()), (Some(root.as_str()), Some(true)));
    // The key is on the snapshot, not on the image.
    assert_eq!(root_ebs.kms_key_id(), None);
    assert_eq!(devices[1].virtual_name(), Some("ephemeral0"));
    assert_eq!(devices[2].no_device(), Some(""));
    let data_ebs = devices[3].ebs().unwrap();
    assert_eq!((data_ebs.snapshot_id(), data_ebs.encrypted()), (Some(data.as_str()), Some(false)));
}

#[tokio::test]
async fn instance_store_images_have_no_snapshots() {
    let stage = Stage::new().await;
    let registered = stage.a.register_image().image_location("bucket/image.manifest.xml").send().await.unwrap();
    let image = settled_image(&stage.a, registered.image_id().unwrap()).await;
    assert_eq!(image.root_device_type().unwrap().as_str(), "instance-store");
    assert!(image.block_device_mappings().is_empty());
}

#[tokio::test]
async fn registering_checks_snapshots_roots_and_names() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let mapping = |snapshot: &str| {
        let ebs = EbsBlockDevice::builder().snapshot_id(snapshot).build();
        BlockDeviceMapping::builder().device_name("/dev/xvda").ebs(ebs).build()
    };
    let call = |name: &str, ec2: &aws_sdk_ec2::Client| {
        ec2.register_image().name(name).root_device_name("/dev/xvda").block_device_mappings(mapping(&snapshot))
    };
    assert_eq!(code(call("image", &stage.b).send().await), "InvalidSnapshot.NotFound");
    assert_eq!(code(call("x", &stage.a).send().await), "InvalidAMIName.Malformed");
    let no_root = stage.a.register_image().name("image").root_device_name("/dev/sda1");
    assert_eq!(code(no_root.send().await), "InvalidBlockDeviceMapping");
    call("image", &stage.a).send().await.unwrap();
    assert_eq!(code(call("image", &stage.a).send().await), "InvalidAMIName.Duplicate");
}

#[tokio::test]
async fn a_tag_is_the_business_of_the_account_that_set_it() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "plain", &[&snapshot]).await;
    stage.share_image(&image, B).await;
    let tag = |value: &str| Tag::builder().key("owner").value(value).build();
    stage.a.create_tags().resources(&image).tags(tag("team-a")).send().await.unwrap();
    let tags = async |ec2: &aws_sdk_ec2::Client| settled_image(ec2, &image).await.tags.unwrap_or_default();
    assert!(tags(&stage.b).await.is_empty());
    let by_tag = stage.b.describe_images().filters(filter("tag:owner", "team-a")).send().await.unwrap();
    assert!(by_tag.images().is_empty());

    stage.b.create_tags().resources(&image).tags(tag("team-b")).send().await.unwrap();
    assert_eq!(tags(&stage.a).await, [tag("team-a")]);
    assert_eq!(tags(&stage.b).await, [tag("team-b")]);
    stage.b.delete_tags().resources(&image).tags(Tag::builder().key("owner").build()).send().await.unwrap();
    assert!(tags(&stage.b).await.is_empty());
    assert_eq!(tags(&stage.a).await, [tag("team-a")]);
}

#[tokio::test]
async fn filters_and_owners_choose_images() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let web = stage.image(&stage.a, "web-2026-01", &[&snapshot]).await;
    let db = stage.image(&stage.a, "db-2026-01", &[&snapshot]).await;
    stage.make_public(&db).await;
    stage.share_image(&web, B).await;
    let tag = Tag::builder().key("profile").value("prod").build();
    stage.a.create_tags().resources(&web).tags(tag).send().await.unwrap();

    let ids = |found: aws_sdk_ec2::operation::describe_images::DescribeImagesOutput| -> Vec<String> {
        found.images().iter().filter_map(|image| image.image_id().map(String::from)).collect()
    };
    for (name, value, expected) in [
        ("image-id", web.as_str(), &web),
        ("name", "web-*", &web),
        ("is-public", "true", &db),
        ("tag:profile", "prod", &web),
        ("tag-key", "profile", &web),
    ] {
        let found = stage.a.describe_images().owners("self").filters(filter(name, value)).send().await.unwrap();
        assert_eq!(ids(found), std::slice::from_ref(expected), "{name}={value}");
    }
    let available = stage.a.describe_images().filters(filter("state", "available")).send().await.unwrap();
    assert_eq!(ids(available).len(), 2);
    let of_a = stage.b.describe_images().owners(A).filters(filter("owner-id", A)).send().await.unwrap();
    assert_eq!(ids(of_a).len(), 2);
    let own = stage.b.describe_images().owners("self").send().await.unwrap();
    assert!(own.images().is_empty());
    let explicit = stage.b.describe_images().executable_users("self").send().await.unwrap();
    assert_eq!(ids(explicit), std::slice::from_ref(&web));
    let public = stage.b.describe_images().executable_users("all").send().await.unwrap();
    assert_eq!(ids(public), std::slice::from_ref(&db));
    let shared_with_b = stage.a.describe_images().executable_users(B).send().await.unwrap();
    assert_eq!(ids(shared_with_b), [web]);
    let unknown = stage.a.describe_images().filters(filter("colour", "red")).send().await;
    assert_eq!(code(unknown), "InvalidParameterValue");
}

#[tokio::test]
async fn pages_are_complete() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    for number in 0..7 {
        stage.image(&stage.a, &format!("image-{number}"), &[&snapshot]).await;
    }
    let pages = stage.a.describe_images().owners("self").max_results(5).into_paginator().send();
    let pages: Vec<_> = pages.try_collect().await.unwrap();
    let sizes: Vec<usize> = pages.iter().map(|page| page.images().len()).collect();
    assert_eq!(sizes, [5, 2]);
    let both = stage.a.describe_images().image_ids("ami-12345678").max_results(5);
    assert_eq!(code(both.send().await), "InvalidAMIID.NotFound");
}

#[tokio::test]
async fn product_codes_show_and_stop_foreign_copies() {
    let stage = Stage::new().await;
    let shared = stage.shared_image().await;
    stage.set_product_code(&shared.image, "abc123");
    let image = settled_image(&stage.b, &shared.image).await;
    assert_eq!(image.product_codes()[0].product_code_id(), Some("abc123"));
    let copy = stage.b.copy_image().source_image_id(&shared.image).source_region(REGION).name("copy");
    assert_eq!(code(copy.send().await), "InvalidRequest");
}

#[tokio::test]
async fn deregistered_images_vanish_and_may_take_their_snapshots() {
    let stage = Stage::new().await;
    let one = stage.snapshot(&stage.a, None).await;
    let other = stage.snapshot(&stage.a, None).await;
    let both = stage.image(&stage.a, "both", &[&one, &other]).await;
    let alone = stage.image(&stage.a, "alone", &[&other]).await;
    stage.share_image(&both, B).await;
    let in_use = stage.a.delete_snapshot().snapshot_id(&one).send().await;
    assert_eq!(code(in_use), "InvalidSnapshot.InUse");

    let gone = stage.a.deregister_image().image_id(&both).delete_associated_snapshots(true).send().await.unwrap();
    let results: Vec<_> = gone.delete_snapshot_results().iter().map(|result| result.return_code().cloned()).collect();
    assert_eq!(results, [Some(SnapshotReturnCodes::Success), Some(SnapshotReturnCodes::WarnSkipped)]);
    for ec2 in [&stage.a, &stage.b] {
        let asked = ec2.describe_images().image_ids(&both).send().await;
        assert_eq!(code(asked), "InvalidAMIID.NotFound");
    }
    stage.a.deregister_image().image_id(&alone).send().await.unwrap();
    stage.a.delete_snapshot().snapshot_id(&other).send().await.unwrap();
}

#[tokio::test]
async fn an_image_is_made_from_an_instance() {
    let stage = Stage::new().await;
    let key = stage.key(A).await;
    let root = stage.snapshot(&stage.a, Some(&key)).await;
    let data = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "first", &[&root, &data]).await;
    let instance = outcome(&stage.a, launch(&stage.a, &image)).await;
    let tags = TagSpecification::builder()
        .resource_type(ResourceType::Image)
        .tags(Tag::builder().key("made").value("yes").build())
        .build();
    let created = stage
        .a
        .create_image()
        .instance_id(instance.instance_id().unwrap())
        .name("second")
        .tag_specifications(tags)
        .send()
        .await
        .unwrap();
    let image = settled_image(&stage.a, created.image_id().unwrap()).await;
    assert_eq!(image.state().unwrap().as_str(), "available");
    assert_eq!(image.tags()[0].key(), Some("made"));
    let snapshots: Vec<_> =
        image.block_device_mappings().iter().map(|device| device.ebs().unwrap().snapshot_id().unwrap()).collect();
    assert_eq!(snapshots.len(), 2);
    let found = stage.a.describe_snapshots().snapshot_ids(snapshots[0]).send().await.unwrap();
    assert_eq!(found.snapshots()[0].kms_key_id(), Some(key.as_str()));
    let (instance_id, image_id) = (instance.instance_id().unwrap(), image.image_id().unwrap());
    let description = format!("Created by CreateImage({instance_id}) for {image_id}");
    assert_eq!(found.snapshots()[0].description(), Some(description.as_str()));
    assert_eq!((image.source_image_id(), image.source_image_region()), (instance.image_id(), Some(REGION)));
    assert_eq!(image.source_instance_id(), Some(instance_id));
}

#[tokio::test]
async fn snapshots_of_an_instance_may_have_its_volumes_tags() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "plain", &[&snapshot]).await;
    let tag = Tag::builder().key("made").value("by us").build();
    let tags = TagSpecification::builder().resource_type(ResourceType::Volume).tags(tag.clone()).build();
    let launched = launch(&stage.a, &image).tag_specifications(tags);
    let instance = outcome(&stage.a, launched).await;
    let create = |copies: Option<CopyTagsFromSource>| {
        let of = InstanceSpecification::builder().instance_id(instance.instance_id().unwrap()).build();
        stage.a.create_snapshots().instance_specification(of).set_copy_tags_from_source(copies).send()
    };
    let created = create(Some(CopyTagsFromSource::Volume)).await.unwrap();
    assert_eq!(created.snapshots().len(), 1);
    assert_eq!(created.snapshots()[0].tags(), [tag]);
    assert!(create(None).await.unwrap().snapshots()[0].tags().is_empty());
}
