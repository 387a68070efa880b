//! Accounts, clients and what the tests put into them.

pub(super) use crate::accounts::{A, B, REGION, code, message};
use crate::accounts::{as_role, root};
use ami_share_sandbox::{Sandbox, Settings, ec2};
use aws_sdk_ec2::config::Region;
use aws_sdk_ec2::operation::run_instances::builders::RunInstancesFluentBuilder;
use aws_sdk_ec2::types::{
    BlockDeviceMapping, EbsBlockDevice, Image, Instance, InstanceStateName, InstanceType, PermissionGroup,
    SnapshotAttributeName, Volume, VolumeType,
};
use serde_json::{Value, json};
use std::time::Duration;

/// What a launch or copy takes on the key of its source.
pub(super) const ON_SOURCE_KEY: [&str; 5] =
    ["kms:DescribeKey", "kms:CreateGrant", "kms:Decrypt", "kms:ReEncryptFrom", "kms:GenerateDataKeyWithoutPlaintext"];

/// What it takes on the key of its result.
pub(super) const ON_DESTINATION_KEY: [&str; 5] =
    ["kms:DescribeKey", "kms:CreateGrant", "kms:Decrypt", "kms:ReEncryptTo", "kms:GenerateDataKeyWithoutPlaintext"];

/// A running sandbox and root clients in A and B.
pub(super) struct Stage {
    pub(super) sandbox: Sandbox,
    pub(super) a: aws_sdk_ec2::Client,
    pub(super) b: aws_sdk_ec2::Client,
}

impl Stage {
    pub(super) async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub(super) async fn with(settings: Settings) -> Self {
        let sandbox = Sandbox::start(settings).await.expect("the sandbox should start");
        Self { a: root(&sandbox, A).ec2, b: root(&sandbox, B).ec2, sandbox }
    }

    /// EC2 as root of the account, in another region.
    pub(super) fn root_in(&self, region: &'static str, account: &str) -> aws_sdk_ec2::Client {
        let here = root(&self.sandbox, account).ec2;
        let there = here.config().to_builder().region(Region::new(region)).build();
        aws_sdk_ec2::Client::from_conf(there)
    }

    pub(super) fn kms(&self, account: &str) -> aws_sdk_kms::Client {
        root(&self.sandbox, account).kms
    }

    pub(super) fn iam(&self, account: &str) -> aws_sdk_iam::Client {
        root(&self.sandbox, account).iam
    }

    /// A customer-managed key; returns its ARN.
    pub(super) async fn key(&self, account: &str) -> String {
        let created = self.kms(account).create_key().send().await.expect("CreateKey");
        created.key_metadata.and_then(|key| key.arn).expect("a key has an ARN")
    }

    /// Lets the account itself do everything with its key, and account `user` the
    /// actions through EC2, grants only for AWS resources.
    pub(super) async fn set_key_policy(&self, key: &str, user: &str, actions: &[&str]) {
        let owner = key.split(':').nth(4).expect("a key ARN has an account");
        let (grant, plain): (Vec<&str>, Vec<&str>) = actions.iter().partition(|action| **action == "kms:CreateGrant");
        let mut statements = vec![allow(&root_arn(owner), &["kms:*"])];
        if !plain.is_empty() {
            statements.push(allow(&root_arn(user), &plain));
        }
        if !grant.is_empty() {
            let mut statement = allow(&root_arn(user), &grant);
            statement["Condition"] = json!({
                "Bool": { "kms:GrantIsForAWSResource": "true" },
                "StringEquals": { "kms:ViaService": format!("ec2.{REGION}.amazonaws.com") },
            });
            statements.push(statement);
        }
        let policy = json!({ "Version": "2012-10-17", "Statement": statements });
        self.kms(owner).put_key_policy().key_id(key).policy(policy.to_string()).send().await.expect("PutKeyPolicy");
    }

    /// A role of the account with an inline policy of these statements; returns EC2
    /// as a session of it.
    pub(super) async fn role(&self, account: &str, name: &str, statements: Value) -> aws_sdk_ec2::Client {
        let trust = json!({
            "Version": "2012-10-17",
            "Statement": [{ "Effect": "Allow", "Principal": { "AWS": root_arn(account) }, "Action": "sts:AssumeRole" }],
        });
        self.iam(account)
            .create_role()
            .role_name(name)
            .assume_role_policy_document(trust.to_string())
            .send()
            .await
            .expect("CreateRole");
        self.set_role_policy(account, name, statements).await;
        self.session(&format!("arn:aws:iam::{account}:role/{name}"))
    }

    pub(super) async fn set_role_policy(&self, account: &str, name: &str, statements: Value) {
        let policy = json!({ "Version": "2012-10-17", "Statement": statements });
        self.iam(account)
            .put_role_policy()
            .role_name(name)
            .policy_name("test")
            .policy_document(policy.to_string())
            .send()
            .await
            .expect("PutRolePolicy");
    }

    /// EC2 as a session of a role.
    pub(super) fn session(&self, role_arn: &str) -> aws_sdk_ec2::Client {
        as_role(&self.sandbox, role_arn).ec2
    }

    /// A completed snapshot of 8 GiB, encrypted under `key` or not; returns its id.
    pub(super) async fn snapshot(&self, ec2: &aws_sdk_ec2::Client, key: Option<&str>) -> String {
        let volume = ec2
            .create_volume()
            .availability_zone(format!("{REGION}a"))
            .size(8)
            .volume_type(VolumeType::Gp3)
            .set_encrypted(key.map(|_| true))
            .set_kms_key_id(key.map(String::from))
            .send()
            .await
            .expect("CreateVolume");
        let snapshot = ec2
            .create_snapshot()
            .volume_id(volume.volume_id.expect("a volume has an id"))
            .send()
            .await
            .expect("CreateSnapshot");
        let id = snapshot.snapshot_id.expect("a snapshot has an id");
        eventually(async || snapshot_state(ec2, &id).await, |state| state != "pending").await;
        id
    }

    /// An image with one EBS device per snapshot, the first of them the root;
    /// returns its id.
    pub(super) async fn image(&self, ec2: &aws_sdk_ec2::Client, name: &str, snapshots: &[&str]) -> String {
        let devices = snapshots.iter().enumerate().map(|(index, snapshot)| {
            let ebs = EbsBlockDevice::builder().snapshot_id(*snapshot).build();
            BlockDeviceMapping::builder().device_name(device_name(index)).ebs(ebs).build()
        });
        ec2.register_image()
            .name(name)
            .root_device_name(device_name(0))
            .set_block_device_mappings(Some(devices.collect()))
            .send()
            .await
            .expect("RegisterImage")
            .image_id
            .expect("an image has an id")
    }

    /// An image of A with two volumes under two keys, shared with B in every way
    /// but for IAM policies in B.
    pub(super) async fn shared_image(&self) -> Shared {
        let keys = [self.key(A).await, self.key(A).await];
        let mut snapshots = Vec::new();
        for key in &keys {
            let snapshot = self.snapshot(&self.a, Some(key)).await;
            self.share_snapshot(&snapshot, B).await;
            self.set_key_policy(key, B, &ON_SOURCE_KEY).await;
            snapshots.push(snapshot);
        }
        let image = self.image(&self.a, "golden", &[&snapshots[0], &snapshots[1]]).await;
        self.share_image(&image, B).await;
        Shared { image, snapshots, keys }
    }

    pub(super) async fn share_image(&self, image: &str, account: &str) {
        self.a
            .modify_image_attribute()
            .image_id(image)
            .attribute("launchPermission")
            .operation_type("add".into())
            .user_ids(account)
            .send()
            .await
            .expect("ModifyImageAttribute");
    }

    pub(super) async fn unshare_image(&self, image: &str, account: &str) {
        self.a
            .modify_image_attribute()
            .image_id(image)
            .attribute("launchPermission")
            .operation_type("remove".into())
            .user_ids(account)
            .send()
            .await
            .expect("ModifyImageAttribute");
    }

    pub(super) async fn make_public(&self, image: &str) {
        self.a
            .modify_image_attribute()
            .image_id(image)
            .attribute("launchPermission")
            .operation_type("add".into())
            .user_groups("all")
            .send()
            .await
            .expect("ModifyImageAttribute");
    }

    pub(super) async fn share_snapshot(&self, snapshot: &str, account: &str) {
        self.a
            .modify_snapshot_attribute()
            .snapshot_id(snapshot)
            .attribute(SnapshotAttributeName::CreateVolumePermission)
            .operation_type("add".into())
            .user_ids(account)
            .send()
            .await
            .expect("ModifySnapshotAttribute");
    }

    pub(super) async fn unshare_snapshot(&self, snapshot: &str, account: &str) {
        self.a
            .modify_snapshot_attribute()
            .snapshot_id(snapshot)
            .attribute(SnapshotAttributeName::CreateVolumePermission)
            .operation_type("remove".into())
            .user_ids(account)
            .send()
            .await
            .expect("ModifySnapshotAttribute");
    }

    /// Puts an image of A into a state that no call leads to.
    pub(super) fn set_image_state(&self, image: &str, state: ec2::ImageState) {
        self.change_image(image, |image| image.state = state);
    }

    /// Gives an image of A a Marketplace product code.
    pub(super) fn set_product_code(&self, image: &str, code: &str) {
        self.change_image(image, |image| image.product_codes.push(code.to_owned()));
    }

    fn change_image(&self, image: &str, change: impl FnOnce(&mut ec2::Image)) {
        let mut world = self.sandbox.world();
        let ec2 = world.account_mut(A).ec2.get_mut(REGION).expect("A has an image");
        change(ec2.images.get_mut(image).expect("the image exists"));
    }
}

/// An image of A that B may use.
pub(super) struct Shared {
    pub(super) image: String,
    pub(super) snapshots: Vec<String>,
    /// The key of each snapshot.
    pub(super) keys: [String; 2],
}

/// Statements that allow every EC2 action, and the KMS actions on the keys.
pub(super) fn launcher_policy(keys: &[&str], kms_actions: &[&str]) -> Value {
    let ec2 = json!({ "Effect": "Allow", "Action": "ec2:*", "Resource": "*" });
    if kms_actions.is_empty() {
        return json!([ec2]);
    }
    json!([ec2, { "Effect": "Allow", "Action": kms_actions, "Resource": keys }])
}

fn allow(principal: &str, actions: &[&str]) -> Value {
    json!({ "Effect": "Allow", "Principal": { "AWS": principal }, "Action": actions, "Resource": "*" })
}

fn root_arn(account: &str) -> String {
    format!("arn:aws:iam::{account}:root")
}

pub(super) fn device_name(index: usize) -> String {
    match index {
        0 => "/dev/sda1".to_owned(),
        _ => format!("/dev/sd{}", char::from(b'e' + u8::try_from(index).expect("few devices"))),
    }
}

/// Asks again until the answer is as wanted, for at most five seconds.
pub(super) async fn eventually<T: std::fmt::Debug>(ask: impl AsyncFn() -> T, wanted: impl Fn(&T) -> bool) -> T {
    for _ in 0..2500 {
        let answer = ask().await;
        if wanted(&answer) {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("still not as wanted after five seconds: {:?}", ask().await);
}

pub(super) async fn snapshot_state(ec2: &aws_sdk_ec2::Client, id: &str) -> String {
    let found = ec2.describe_snapshots().snapshot_ids(id).send().await.expect("DescribeSnapshots");
    found.snapshots()[0].state().expect("a snapshot has a state").as_str().to_owned()
}

/// The image as soon as it is no longer pending.
pub(super) async fn settled_image(ec2: &aws_sdk_ec2::Client, id: &str) -> Image {
    eventually(
        async || {
            let found = ec2.describe_images().image_ids(id).send().await.expect("DescribeImages");
            found.images()[0].clone()
        },
        |image| image.state().is_none_or(|state| state.as_str() != "pending"),
    )
    .await
}

/// The instance as it is now.
pub(super) async fn instance(ec2: &aws_sdk_ec2::Client, id: &str) -> Instance {
    let found = ec2.describe_instances().instance_ids(id).send().await.expect("DescribeInstances");
    found.reservations()[0].instances()[0].clone()
}

pub(super) fn state(instance: &Instance) -> InstanceStateName {
    instance.state().and_then(|state| state.name()).expect("an instance has a state").clone()
}

/// The instance as soon as it is in a state that lasts.
pub(super) async fn settled(ec2: &aws_sdk_ec2::Client, id: &str) -> Instance {
    eventually(
        async || instance(ec2, id).await,
        |instance| {
            matches!(
                state(instance),
                InstanceStateName::Running | InstanceStateName::Terminated | InstanceStateName::Stopped
            )
        },
    )
    .await
}

/// The call that launches one instance of an image.
pub(super) fn launch(ec2: &aws_sdk_ec2::Client, image: &str) -> RunInstancesFluentBuilder {
    ec2.run_instances().image_id(image).instance_type(InstanceType::T3Micro).min_count(1).max_count(1)
}

/// Launches and waits until it is known how that ends.
pub(super) async fn outcome(ec2: &aws_sdk_ec2::Client, call: RunInstancesFluentBuilder) -> Instance {
    let started = call.send().await.expect("RunInstances");
    let id = started.instances()[0].instance_id().expect("an instance has an id");
    settled(ec2, id).await
}

/// The volumes attached to an instance, by device name.
pub(super) async fn volumes_of(ec2: &aws_sdk_ec2::Client, instance: &Instance) -> Vec<Volume> {
    let filter = aws_sdk_ec2::types::Filter::builder()
        .name("attachment.instance-id")
        .values(instance.instance_id().expect("an instance has an id"))
        .build();
    let found = ec2.describe_volumes().filters(filter).send().await.expect("DescribeVolumes");
    let mut volumes = found.volumes.unwrap_or_default();
    volumes.sort_by_key(|volume| volume.attachments()[0].device().map(String::from));
    volumes
}

/// The keys of an instance's volumes, by device name.
pub(super) async fn keys_of(ec2: &aws_sdk_ec2::Client, instance: &Instance) -> Vec<Option<String>> {
    volumes_of(ec2, instance).await.into_iter().map(|volume| volume.kms_key_id).collect()
}

pub(super) fn filter(name: &str, value: &str) -> aws_sdk_ec2::types::Filter {
    aws_sdk_ec2::types::Filter::builder().name(name).values(value).build()
}

/// A mapping that has the volume at a device encrypted, under `key` if given.
pub(super) fn encrypted_as(device: &str, key: Option<&str>) -> BlockDeviceMapping {
    let ebs = EbsBlockDevice::builder().encrypted(true).set_kms_key_id(key.map(String::from)).build();
    BlockDeviceMapping::builder().device_name(device).ebs(ebs).build()
}

/// Who may launch an image of A: account ids, ARNs, `all`.
pub(super) async fn launch_permissions(stage: &Stage, image: &str) -> Vec<String> {
    let found = stage
        .a
        .describe_image_attribute()
        .image_id(image)
        .attribute("launchPermission".into())
        .send()
        .await
        .expect("DescribeImageAttribute");
    found
        .launch_permissions()
        .iter()
        .filter_map(|permission| {
            let all = permission.group().filter(|group| **group == PermissionGroup::All).map(|_| "all".to_owned());
            permission
                .user_id()
                .or(permission.organization_arn())
                .or(permission.organizational_unit_arn())
                .map(String::from)
                .or(all)
        })
        .collect()
}
