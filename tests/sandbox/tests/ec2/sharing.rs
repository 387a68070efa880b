//! Launch permissions and create-volume permissions: who may change them, what is
//! refused, and who then sees what.

use super::stage::*;
use ami_share_sandbox::{ec2, world::Organization};
use aws_sdk_ec2::types::{CreateVolumePermission, CreateVolumePermissionModifications, LaunchPermission};
use aws_sdk_ec2::types::{ImageBlockPublicAccessEnabledState, SnapshotBlockPublicAccessState};
use aws_sdk_ec2::types::{LaunchPermissionModifications, OperationType, SnapshotAttributeName};
use serde_json::json;

const ORGANIZATION: &str = "arn:aws:organizations::999999999999:organization/o-abcdefghij";
const UNIT: &str = "arn:aws:organizations::999999999999:ou/o-abcdefghij/ou-ab12-11111111";

async fn plain_image(stage: &Stage) -> String {
    let snapshot = stage.snapshot(&stage.a, None).await;
    stage.image(&stage.a, "plain", &[&snapshot]).await
}

fn accounts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{:012}", 300_000_000_000 + number)).collect()
}

fn add(
    ec2: &aws_sdk_ec2::Client,
    image: &str,
) -> aws_sdk_ec2::operation::modify_image_attribute::builders::ModifyImageAttributeFluentBuilder {
    ec2.modify_image_attribute().image_id(image).attribute("launchPermission").operation_type(OperationType::Add)
}

async fn sees(ec2: &aws_sdk_ec2::Client, image: &str) -> bool {
    ec2.describe_images().image_ids(image).send().await.is_ok()
}

#[tokio::test]
async fn a_share_shows_the_image_and_taking_it_back_hides_it() {
    let stage = Stage::new().await;
    let image = plain_image(&stage).await;
    assert!(!sees(&stage.b, &image).await);
    stage.share_image(&image, B).await;
    assert!(sees(&stage.b, &image).await);
    assert_eq!(launch_permissions(&stage, &image).await, [B]);
    stage.unshare_image(&image, B).await;
    assert!(!sees(&stage.b, &image).await);
}

#[tokio::test]
async fn sharing_again_changes_nothing() {
    let stage = Stage::new().await;
    let image = plain_image(&stage).await;
    stage.share_image(&image, B).await;
    stage.sandbox.world().journal.clear();
    stage.share_image(&image, B).await;
    let world = stage.sandbox.world();
    let entry = world.journal.entries().last().unwrap();
    assert_eq!((entry.action.as_str(), entry.changed), ("ec2:ModifyImageAttribute", false));
    assert_eq!(entry.resources, [format!("arn:aws:ec2:{REGION}::image/{image}")]);
}

#[tokio::test]
async fn organizations_and_units_see_what_is_shared_with_them() {
    for (permission, arn) in [
        (LaunchPermission::builder().organization_arn(ORGANIZATION).build(), ORGANIZATION),
        (LaunchPermission::builder().organizational_unit_arn(UNIT).build(), UNIT),
    ] {
        let stage = Stage::new().await;
        let image = plain_image(&stage).await;
        let changes = LaunchPermissionModifications::builder().add(permission).build();
        stage.a.modify_image_attribute().image_id(&image).launch_permission(changes).send().await.unwrap();
        assert_eq!(launch_permissions(&stage, &image).await, [arn]);
        assert!(!sees(&stage.b, &image).await);
        let member = Organization {
            organization_arn: ORGANIZATION.to_owned(),
            unit_arns: vec![UNIT.to_owned()],
            ..Organization::default()
        };
        stage.sandbox.world().set_organization(B, Some(member));
        assert!(sees(&stage.b, &image).await);
    }
}

#[tokio::test]
async fn one_bad_entry_fails_the_whole_call() {
    let stage = Stage::new().await;
    let image = plain_image(&stage).await;
    for call in [
        add(&stage.a, &image).user_ids(B).user_ids("12345"),
        add(&stage.a, &image).user_ids(B).organization_arns("o-abcdefghij"),
        add(&stage.a, &image).user_ids(B).organizational_unit_arns(ORGANIZATION),
        add(&stage.a, &image).user_ids(B).user_groups("everyone"),
    ] {
        assert_eq!(code(call.send().await), "InvalidAMIAttributeItemValue");
    }
    assert!(launch_permissions(&stage, &image).await.is_empty());
}

#[tokio::test]
async fn an_image_is_shared_with_at_most_a_thousand() {
    let stage = Stage::new().await;
    let image = plain_image(&stage).await;
    add(&stage.a, &image).set_user_ids(Some(accounts(1000))).send().await.unwrap();
    assert_eq!(code(add(&stage.a, &image).user_ids(B).send().await), "ResourceLimitExceeded");
    assert!(!sees(&stage.b, &image).await);
    let changes = LaunchPermissionModifications::builder()
        .remove(LaunchPermission::builder().user_id(&accounts(1)[0]).build())
        .add(LaunchPermission::builder().user_id(B).build())
        .build();
    stage.a.modify_image_attribute().image_id(&image).launch_permission(changes).send().await.unwrap();
    assert!(sees(&stage.b, &image).await);
}

#[tokio::test]
async fn only_the_owner_of_an_available_image_shares_it() {
    let stage = Stage::new().await;
    let image = plain_image(&stage).await;
    assert_eq!(code(add(&stage.b, &image).user_ids(B).send().await), "InvalidAMIID.NotFound");
    stage.share_image(&image, B).await;
    assert_eq!(code(add(&stage.b, &image).user_ids(B).send().await), "AuthFailure");
    let asked = stage.b.describe_image_attribute().image_id(&image).attribute("launchPermission".into());
    assert_eq!(code(asked.send().await), "AuthFailure");
    stage.set_image_state(&image, ec2::ImageState::Pending);
    assert_eq!(code(add(&stage.a, &image).user_ids(B).send().await), "InvalidAMIID.Unavailable");
    assert!(!sees(&stage.b, &image).await);
}

#[tokio::test]
async fn nothing_under_the_aws_managed_key_is_shared() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, Some("alias/aws/ebs")).await;
    let image = stage.image(&stage.a, "default-key", &[&snapshot]).await;
    let refused = add(&stage.a, &image).user_ids(B).send().await;
    assert_eq!(message(refused), "Snapshots encrypted with the AWS Managed CMK can't be shared");
    assert_eq!(code(add(&stage.a, &image).user_ids(B).send().await), "InvalidParameter");
    let share = || {
        stage
            .a
            .modify_snapshot_attribute()
            .snapshot_id(&snapshot)
            .attribute(SnapshotAttributeName::CreateVolumePermission)
            .operation_type(OperationType::Add)
            .user_ids(B)
            .send()
    };
    assert_eq!(message(share().await), "Encrypted snapshots with EBS default key cannot be shared");
    assert_eq!(code(share().await), "OperationNotPermitted");
}

#[tokio::test]
async fn encrypted_images_are_not_made_public() {
    let stage = Stage::new().await;
    let key = stage.key(A).await;
    let snapshot = stage.snapshot(&stage.a, Some(&key)).await;
    let image = stage.image(&stage.a, "golden", &[&snapshot]).await;
    assert_eq!(code(add(&stage.a, &image).user_groups("all").send().await), "InvalidParameter");
}

#[tokio::test]
async fn nothing_is_made_public_where_block_public_access_is_on() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let image = stage.image(&stage.a, "plain", &[&snapshot]).await;
    let states = async || {
        let images = stage.a.get_image_block_public_access_state().send().await.unwrap();
        let snapshots = stage.a.get_snapshot_block_public_access_state().send().await.unwrap();
        let of_snapshots = snapshots.state().unwrap().as_str().to_owned();
        (images.image_block_public_access_state.unwrap(), of_snapshots)
    };
    assert_eq!(states().await, ("unblocked".to_owned(), "unblocked".to_owned()));
    let block = stage.a.enable_image_block_public_access();
    let block = block.image_block_public_access_state(ImageBlockPublicAccessEnabledState::BlockNewSharing);
    block.send().await.unwrap();
    let block = stage.a.enable_snapshot_block_public_access();
    block.state(SnapshotBlockPublicAccessState::BlockAllSharing).send().await.unwrap();
    assert_eq!(states().await, ("block-new-sharing".to_owned(), "block-all-sharing".to_owned()));
    assert_eq!(code(add(&stage.a, &image).user_groups("all").send().await), "OperationNotPermitted");
    let public = stage.a.modify_snapshot_attribute().snapshot_id(&snapshot).operation_type(OperationType::Add);
    assert_eq!(code(public.group_names("all").send().await), "OperationNotPermitted");
    // An account may still be let in.
    stage.share_image(&image, B).await;
    stage.share_snapshot(&snapshot, B).await;
}

#[tokio::test]
async fn disabling_an_image_drops_every_share_for_good() {
    let stage = Stage::new().await;
    let image = plain_image(&stage).await;
    stage.share_image(&image, B).await;
    stage.a.disable_image().image_id(&image).send().await.unwrap();
    assert!(!sees(&stage.b, &image).await);
    assert_eq!(code(launch(&stage.a, &image).send().await), "InvalidAMIID.Unavailable");
    let hidden = stage.a.describe_images().image_ids(&image).send().await.unwrap();
    assert!(hidden.images().is_empty());
    let shown = stage.a.describe_images().image_ids(&image).include_disabled(true).send().await.unwrap();
    assert_eq!(shown.images()[0].state().unwrap().as_str(), "disabled");
    stage.a.enable_image().image_id(&image).send().await.unwrap();
    assert!(launch_permissions(&stage, &image).await.is_empty());
    assert!(!sees(&stage.b, &image).await);
}

#[tokio::test]
async fn a_snapshot_permission_shows_the_snapshot_with_its_key() {
    let stage = Stage::new().await;
    let key = stage.key(A).await;
    let snapshot = stage.snapshot(&stage.a, Some(&key)).await;
    let ask = || stage.b.describe_snapshots().snapshot_ids(&snapshot).send();
    assert_eq!(code(ask().await), "InvalidSnapshot.NotFound");
    stage.share_snapshot(&snapshot, B).await;
    let seen = ask().await.unwrap();
    assert_eq!(seen.snapshots()[0].kms_key_id(), Some(key.as_str()));
    assert_eq!(seen.snapshots()[0].owner_id(), Some(A));
    let permissions = stage
        .a
        .describe_snapshot_attribute()
        .snapshot_id(&snapshot)
        .attribute(SnapshotAttributeName::CreateVolumePermission)
        .send()
        .await
        .unwrap();
    assert_eq!(permissions.create_volume_permissions()[0].user_id(), Some(B));
    stage.unshare_snapshot(&snapshot, B).await;
    assert_eq!(code(ask().await), "InvalidSnapshot.NotFound");
}

#[tokio::test]
async fn snapshot_permissions_have_their_own_rules() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let call = |ec2: &aws_sdk_ec2::Client| ec2.modify_snapshot_attribute().snapshot_id(&snapshot);
    let add = |users: Vec<String>| call(&stage.a).operation_type(OperationType::Add).set_user_ids(Some(users));

    assert_eq!(code(add(accounts(501)).send().await), "InvalidParameterValue");
    assert_eq!(code(add(vec![B.to_owned(), ORGANIZATION.to_owned()]).send().await), "InvalidParameterValue");
    let entry = |user: &str| CreateVolumePermission::builder().user_id(user).build();
    let both = CreateVolumePermissionModifications::builder().add(entry(B)).remove(entry(A)).build();
    assert_eq!(code(call(&stage.a).create_volume_permission(both).send().await), "InvalidParameterCombination");
    assert_eq!(code(stage.b.describe_snapshots().snapshot_ids(&snapshot).send().await), "InvalidSnapshot.NotFound");

    add(accounts(500)).send().await.unwrap();
    stage.share_snapshot(&snapshot, B).await;
    let foreign = call(&stage.b).operation_type(OperationType::Add).user_ids(B);
    assert_eq!(code(foreign.send().await), "AuthFailure");
}

/// As a Deny that leaves removals alone limits it; neither key is there for what the call does not do.
#[tokio::test]
async fn conditions_say_to_whom_a_snapshot_permission_is_given() {
    let stage = Stage::new().await;
    let snapshot = stage.snapshot(&stage.a, None).await;
    let policy = json!([
        { "Effect": "Allow", "Action": "ec2:ModifySnapshotAttribute", "Resource": "*" },
        { "Effect": "Deny", "Action": "ec2:ModifySnapshotAttribute", "Resource": "*",
          "Condition": { "ForAnyValue:StringNotEquals": { "ec2:Add/userId": [B, "333333333333"] } } },
        { "Effect": "Deny", "Action": "ec2:ModifySnapshotAttribute", "Resource": "*",
          "Condition": { "StringEquals": { "ec2:Add/group": "all" } } },
        { "Effect": "Deny", "Action": "ec2:ModifySnapshotAttribute", "Resource": "*",
          "Condition": { "StringEquals": { "ec2:Remove/userId": "333333333333" } } },
    ]);
    let sharer = stage.role(A, "sharer", policy).await;
    let modify = |operation: OperationType, accounts: &[&str]| {
        let accounts = accounts.iter().map(|account| (*account).to_owned()).collect();
        sharer.modify_snapshot_attribute().snapshot_id(&snapshot).operation_type(operation).set_user_ids(Some(accounts))
    };
    for (operation, accounts, expected) in [
        (OperationType::Add, [B].as_slice(), "no error"),
        (OperationType::Add, &[B, "333333333333"], "no error"),
        (OperationType::Add, &[B, "444444444444"], "UnauthorizedOperation"),
        (OperationType::Add, &["444444444444"], "UnauthorizedOperation"),
        (OperationType::Remove, &["444444444444"], "no error"),
        (OperationType::Remove, &["333333333333"], "UnauthorizedOperation"),
    ] {
        let modified = modify(operation.clone(), accounts).send().await;
        assert_eq!(code(modified), expected, "{operation:?} {accounts:?}");
    }
    let structured = |account: &str| {
        let permission = CreateVolumePermission::builder().user_id(account).build();
        let change = CreateVolumePermissionModifications::builder().add(permission).build();
        sharer.modify_snapshot_attribute().snapshot_id(&snapshot).create_volume_permission(change)
    };
    assert_eq!(code(structured(B).send().await), "no error");
    assert_eq!(code(structured("444444444444").send().await), "UnauthorizedOperation");
    let everybody = sharer.modify_snapshot_attribute().snapshot_id(&snapshot).operation_type(OperationType::Add);
    assert_eq!(code(everybody.group_names("all").send().await), "UnauthorizedOperation");
}
