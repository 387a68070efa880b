//! What all calls have in common.

use super::stage::*;
use aws_sdk_ec2::types::{InstanceType, Tag};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn calls_without_permission_are_refused_with_and_without_dry_run() {
    let stage = Stage::new().await;
    let nobody = stage.role(B, "nobody", json!([{ "Effect": "Allow", "Action": "s3:*", "Resource": "*" }])).await;
    for dry_run in [true, false] {
        let images = nobody.describe_images().dry_run(dry_run).send().await;
        assert_eq!(code(images), "UnauthorizedOperation");
    }
    let tags = nobody.create_tags().resources("ami-12345678").tags(Tag::builder().key("a").build());
    assert_eq!(code(tags.send().await), "InvalidAMIID.NotFound");
    assert_eq!(code(stage.b.describe_images().dry_run(true).send().await), "DryRunOperation");
}

#[tokio::test]
async fn conditions_on_tags_hold() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.b, None).await;
    let image = stage.image(&stage.b, "plain", &[&snapshot]).await;
    let policy = json!([
        { "Effect": "Allow", "Action": ["ec2:RunInstances", "ec2:Describe*"], "Resource": "*" },
        { "Effect": "Allow", "Action": "ec2:TerminateInstances", "Resource": "*",
          "Condition": { "StringEquals": { "aws:ResourceTag/made-by": "ami-share" } } },
    ]);
    let launcher = stage.role(B, "launcher", policy).await;
    let instance = outcome(&launcher, launch(&launcher, &image)).await;
    let id = instance.instance_id().unwrap();
    let end = || launcher.terminate_instances().instance_ids(id).send();
    assert_eq!(code(end().await), "UnauthorizedOperation");
    let tag = Tag::builder().key("made-by").value("ami-share").build();
    stage.b.create_tags().resources(id).tags(tag).send().await.unwrap();
    end().await.unwrap();
}

#[tokio::test]
async fn the_state_is_as_before_when_everything_is_undone() {
    let stage = Stage::new().await;
    let shared = stage.shared_image().await;
    stage.sandbox.world().account_mut(B);
    let picture = |account: &str| stage.sandbox.world().snapshot(account);
    let before = (picture(A), picture(B));
    assert_eq!(before.0["ec2"][REGION]["images"][&shared.image]["launchPermissions"], json!([B]));

    let instance = outcome(&stage.b, launch(&stage.b, &shared.image)).await;
    assert_ne!(picture(B), before.1);
    stage.b.terminate_instances().instance_ids(instance.instance_id().unwrap()).send().await.unwrap();
    let copy = stage.b.copy_image().source_image_id(&shared.image).source_region(REGION).name("copy");
    let copy = copy.send().await.unwrap();
    settled_image(&stage.b, copy.image_id().unwrap()).await;
    let undo = stage.b.deregister_image().image_id(copy.image_id().unwrap()).delete_associated_snapshots(true);
    undo.send().await.unwrap();
    stage.share_image(&shared.image, "333333333333").await;
    assert_ne!(picture(A), before.0);
    stage.unshare_image(&shared.image, "333333333333").await;
    assert_eq!((picture(A), picture(B)), before);
}

#[tokio::test]
async fn images_can_be_put_into_other_states_over_http() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "plain", &[&snapshot]).await;
    let body = json!({
        "account": A, "region": REGION, "imageId": image, "state": "pending", "productCodes": ["abc123"],
    })
    .to_string();
    let endpoint = stage.sandbox.endpoint();
    let mut stream = tokio::net::TcpStream::connect(endpoint.trim_start_matches("http://")).await.unwrap();
    let request = format!(
        "POST /_sandbox/image HTTP/1.1\r\nHost: sandbox\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    let found = stage.a.describe_images().image_ids(&image).send().await.unwrap();
    assert_eq!(found.images()[0].state().unwrap().as_str(), "pending");
    assert_eq!(found.images()[0].product_codes()[0].product_code_id(), Some("abc123"));
}

#[tokio::test]
async fn instance_types_and_subnets_can_be_listed() {
    let stage = Stage::new().await;
    let types = stage.b.describe_instance_types().instance_types(InstanceType::T4gMicro).send().await.unwrap();
    let architectures = types.instance_types()[0].processor_info().unwrap().supported_architectures();
    assert_eq!(architectures[0].as_str(), "arm64");
    let subnets = stage.b.describe_subnets().filters(filter("default-for-az", "true")).send().await.unwrap();
    assert_eq!(subnets.subnets().len(), 3);
}

#[tokio::test]
async fn a_call_costs_well_under_a_millisecond_with_a_thousand_accounts() {
    let stage = Stage::new().await;
    let shared = stage.shared_image().await;
    for number in 0..1000 {
        let account = format!("{:012}", 400_000_000_000_u64 + number);
        stage.sandbox.world().account_mut(&account).ec2.entry(REGION.to_owned()).or_default();
    }
    let mut world = stage.sandbox.world();
    let caller = ami_share_sandbox::auth::Caller::root(B);
    let params = ami_share_sandbox::wire::Params::from_pairs([("ImageId.1", shared.image.as_str())]);
    let started = std::time::Instant::now();
    for _ in 0..100 {
        let reply = ami_share_sandbox::ec2::handle(&mut world, &caller, REGION, "DescribeImages", &params);
        assert!(reply.unwrap().contains("<name>golden</name>"));
    }
    assert!(started.elapsed().as_millis() < 100, "100 calls took {:?}", started.elapsed());
}
