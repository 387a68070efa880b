//! Random accounts: what they hold before anything is shared, some of it half shared already.

use std::collections::BTreeMap;

use ami_share_core::{
    hub::SOURCE_KEY_ACTIONS,
    ids::{AccountId, KeyArn},
    key_policy::KeyPolicy,
    principal_policy::{inline_policy, inline_policy_name},
    share::{KEY_TAG, SOURCE_IMAGE_TAG},
};
use ami_share_machine::{
    Deployment, Machine,
    root::{Caller, element},
};
use ami_share_sandbox::World;
use ami_share_tests::{REGION, SOURCE};
use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};

use crate::deployed::{self, TARGETS};

/// An account that has nothing to do with ami-share, and something to do with the keys and images.
pub(crate) const OTHER: &str = "777777777777";

const DEVICES: [&str; 5] = ["/dev/xvda", "/dev/sdf", "/dev/sdg", "/dev/sdh", "/dev/sdi"];

/// What the accounts hold.
#[derive(Debug, Clone)]
pub(crate) struct WorldPlan {
    pub(crate) inline_policies: bool,
    keys: Vec<KeyPlan>,
    images: Vec<ImagePlan>,
    /// One for each of [`TARGETS`].
    targets: Vec<TargetPlan>,
    /// Whether changes become effective only after some time.
    slow: bool,
    seed: u64,
}

#[derive(Debug, Clone)]
struct KeyPlan {
    /// How its policy leaves the key to its account: the form of that statement.
    owner: usize,
    /// Which of [`foreign_statements`] it has besides, before the owner's or after it.
    before: Vec<usize>,
    after: Vec<usize>,
    version: bool,
    id: bool,
    /// A single statement is not in a list.
    bare: bool,
    /// Somebody else's grant on it.
    grant: bool,
}

#[derive(Debug, Clone)]
struct ImagePlan {
    /// The key of each volume; nothing for one that is not encrypted.
    volumes: Vec<Option<usize>>,
    ephemeral: bool,
    /// Somebody else may launch it, and copy its snapshots.
    others: bool,
}

/// What of a share is there already.
#[derive(Debug, Clone)]
struct TargetPlan {
    launch: Vec<bool>,
    statements: Vec<bool>,
    grants: Vec<bool>,
    snapshots: bool,
    /// Of the launcher, the role and the user.
    attached: Vec<bool>,
    inline: Vec<bool>,
    copies: Vec<bool>,
}

pub(crate) fn worlds() -> impl Strategy<Value = WorldPlan> {
    let keys = vec(keys(), 1..=3);
    let images = keys.prop_flat_map(|keys| {
        let images = vec(image(keys.len()), 1..=2);
        (Just(keys), images)
    });
    (images, vec(target(), TARGETS.len()), any::<bool>(), any::<bool>(), any::<u64>()).prop_map(
        |((keys, images), targets, inline_policies, slow, seed)| WorldPlan {
            inline_policies,
            keys,
            images,
            targets,
            slow,
            seed,
        },
    )
}

/// With nothing of a share there yet.
pub(crate) fn untouched_worlds() -> impl Strategy<Value = WorldPlan> {
    worlds().prop_map(|world| {
        let nothing = |most: usize| vec![false; most];
        let target = TargetPlan {
            launch: nothing(2),
            statements: nothing(3),
            grants: nothing(3),
            snapshots: false,
            attached: nothing(3),
            inline: nothing(3),
            copies: nothing(2),
        };
        WorldPlan { targets: vec![target; TARGETS.len()], ..world }
    })
}

fn keys() -> impl Strategy<Value = KeyPlan> {
    let some = || vec(0..foreign_statements().len(), 0..3);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (0..owner_statements().len(), some(), some(), flags).prop_map(
        |(owner, before, after, (version, id, bare, grant))| KeyPlan { owner, before, after, version, id, bare, grant },
    )
}

fn image(keys: usize) -> impl Strategy<Value = ImagePlan> {
    let volume = prop::option::weighted(0.85, 0..keys);
    (vec(volume, 1..=DEVICES.len()), any::<bool>(), any::<bool>()).prop_map(|(volumes, ephemeral, others)| ImagePlan {
        volumes,
        ephemeral,
        others,
    })
}

fn target() -> impl Strategy<Value = TargetPlan> {
    let there = |most: usize| vec(prop::bool::weighted(0.2), most);
    (there(2), there(3), there(3), prop::bool::weighted(0.2), there(3), there(3), there(2)).prop_map(
        |(launch, statements, grants, snapshots, attached, inline, copies)| TargetPlan {
            launch,
            statements,
            grants,
            snapshots,
            attached,
            inline,
            copies,
        },
    )
}

fn owner_statements() -> Vec<Value> {
    let root = format!("arn:aws:iam::{SOURCE}:root");
    vec![
        json!({ "Sid": "Enable IAM User Permissions", "Effect": "Allow", "Principal": { "AWS": root }, "Action": "kms:*", "Resource": "*" }),
        json!({ "Effect": "Allow", "Principal": { "AWS": [root] }, "Action": ["kms:*"], "Resource": ["*"] }),
        json!({ "Sid": "ByNumber", "Effect": "Allow", "Principal": { "AWS": SOURCE }, "Action": "kms:*", "Resource": "*" }),
        json!({ "Effect": "Allow", "Principal": { "AWS": root }, "NotAction": "kms:CreateCustomKeyStore", "Resource": "*" }),
    ]
}

fn foreign_statements() -> Vec<Value> {
    let admin = format!("arn:aws:iam::{SOURCE}:role/key-admin");
    vec![
        json!({ "Sid": "Key administrators", "Effect": "Allow", "Principal": { "AWS": admin },
            "Action": ["kms:Describe*", "kms:Put*", "kms:Get*"], "Resource": "*",
            "Condition": { "StringEquals": { "kms:CallerAccount": SOURCE } } }),
        json!({ "Effect": "Allow", "Principal": { "Service": ["logs.amazonaws.com", "ec2.amazonaws.com"] },
            "Action": "kms:Describe*", "Resource": "*" }),
        json!({ "Sid": "NoDeletion", "Effect": "Deny", "Principal": "*",
            "Action": ["kms:ScheduleKeyDeletion", "kms:DeleteImportedKeyMaterial"], "Resource": "*" }),
        json!({ "Sid": "Partner", "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{OTHER}:root") },
            "Action": ["kms:Decrypt", "kms:DescribeKey"], "Resource": "*" }),
        // Of a target, and not ours.
        json!({ "Sid": "Backups", "Effect": "Allow",
            "Principal": { "AWS": [format!("arn:aws:iam::{}:root", TARGETS[0]), admin] },
            "Action": "kms:Decrypt", "Resource": "*" }),
        json!({ "Effect": "Allow", "Principal": { "AWS": "*" }, "NotAction": "kms:*Key*", "Resource": "*",
            "Condition": { "StringEquals": { "kms:CallerAccount": [OTHER], "kms:ViaService": "s3.eu-west-1.amazonaws.com" } } }),
    ]
}

/// The accounts, and what in them can be named.
pub(crate) struct Stage {
    pub(crate) machine: Machine,
    pub(crate) images: Vec<Image>,
    pub(crate) keys: Vec<String>,
}

pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) devices: Vec<String>,
}

pub(crate) fn role(account: &str) -> String {
    format!("arn:aws:iam::{account}:role/app-deployer")
}

pub(crate) fn user(account: &str) -> String {
    format!("arn:aws:iam::{account}:user/app-pipeline")
}

pub(crate) fn launcher(account: &str) -> String {
    format!("arn:aws:iam::{account}:role/AmiShareLauncher")
}

impl WorldPlan {
    /// Makes it.
    pub(crate) fn stage(&self) -> Stage {
        let deployment = deployed::deployment(self.inline_policies);
        let mut world = deployed::world(self.inline_policies);
        world.set_now_ms(0);
        let source = Caller::root(SOURCE);
        world.account_mut(OTHER);
        make_role(&mut world, SOURCE, "key-admin");
        let mut own_keys = BTreeMap::new();
        for account in TARGETS {
            own_keys.insert(account.to_owned(), make_principals(&mut world, account));
        }
        let keys: Vec<String> = self.keys.iter().map(|plan| plan.make(&mut world, &source)).collect();
        let images: Vec<Image> =
            self.images.iter().enumerate().map(|(index, plan)| plan.make(&mut world, &source, index, &keys)).collect();
        for (account, plan) in TARGETS.iter().zip(&self.targets) {
            plan.make(&mut world, account, &images, &keys, &own_keys[*account]);
        }
        if self.slow {
            // Less than GrantPrincipals has the execution wait for.
            world.settings.iam_policy_delay_ms = 12_000;
            world.settings.key_policy_delay_ms = 14_000;
            world.settings.grant_delay_ms = 250_000;
        }
        world.journal.clear();
        Stage { machine: Machine::new(deployment, world, self.seed).unwrap(), images, keys }
    }
}

/// One image under two keys that many write; the targets are the deployment's.
pub(crate) fn crowd(deployment: &Deployment, seed: u64) -> Stage {
    let (world, images, keys) = crowded(deployment);
    Stage { machine: Machine::new(deployment, world, seed).unwrap(), images, keys }
}

/// The same before anything runs.
pub(crate) fn crowded(deployment: &Deployment) -> (World, Vec<Image>, Vec<String>) {
    let mut world = deployment.world(ami_share_sandbox::Settings::default()).unwrap();
    world.set_now_ms(0);
    world.account_mut(OTHER);
    make_role(&mut world, SOURCE, "key-admin");
    let source = Caller::root(SOURCE);
    let plan = |before: Vec<usize>, after: Vec<usize>| KeyPlan {
        owner: 0,
        before,
        after,
        version: true,
        id: true,
        bare: false,
        grant: false,
    };
    let keys =
        [plan(vec![2, 0], vec![1, 3]), plan(vec![], vec![5])].map(|plan| plan.make(&mut world, &source)).to_vec();
    let image = ImagePlan { volumes: vec![Some(0), Some(1), Some(1)], ephemeral: true, others: true };
    let images = vec![image.make(&mut world, &source, 0, &keys)];
    (world, images, keys)
}

fn make_role(world: &mut World, account: &str, name: &str) {
    let trust = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{account}:root") }, "Action": "sts:AssumeRole",
    }]});
    let trust = trust.to_string();
    let parameters = [("RoleName", name), ("AssumeRolePolicyDocument", trust.as_str())];
    Caller::root(account).call(world, "iam", "CreateRole", &parameters).unwrap();
}

/// A role and a user that may launch instances, and a key of the account's own, whose ARN is returned.
fn make_principals(world: &mut World, account: &str) -> String {
    let root = Caller::root(account);
    make_role(world, account, "app-deployer");
    root.call(world, "iam", "CreateUser", &[("UserName", "app-pipeline")]).unwrap();
    let launch = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": "ec2:*", "Resource": "*" },
        { "Effect": "Allow", "Action": "kms:*", "Resource": format!("arn:aws:kms:*:{account}:key/*") },
    ]});
    let launch = launch.to_string();
    root.call(world, "iam", "CreatePolicy", &[("PolicyName", "launch"), ("PolicyDocument", &launch)]).unwrap();
    let policy = format!("arn:aws:iam::{account}:policy/launch");
    for (kind, name) in [("Role", "app-deployer"), ("User", "app-pipeline")] {
        let parameters = [(&*format!("{kind}Name"), name), ("PolicyArn", policy.as_str())];
        root.call(world, "iam", &format!("Attach{kind}Policy"), &parameters).unwrap();
    }
    make_key(world, account)
}

/// Returns its ARN.
pub(crate) fn make_key(world: &mut World, account: &str) -> String {
    let root = Caller::root(account);
    let key = root.call_kms(world, "CreateKey", &json!({})).unwrap();
    let key = key["KeyMetadata"]["Arn"].as_str().unwrap().to_owned();
    root.call_kms(world, "CreateAlias", &json!({ "AliasName": "alias/app-volumes", "TargetKeyId": key })).unwrap();
    key
}

impl KeyPlan {
    fn make(&self, world: &mut World, source: &Caller) -> String {
        let foreign = foreign_statements();
        let pick = |indices: &[usize]| indices.iter().map(|index| foreign[*index].clone()).collect::<Vec<_>>();
        let mut statements = pick(&self.before);
        statements.push(owner_statements()[self.owner].clone());
        statements.extend(pick(&self.after));
        let mut policy = json!({});
        if self.version {
            policy["Version"] = json!("2012-10-17");
        }
        if self.id {
            policy["Id"] = json!("of-the-factory");
        }
        let bare = self.bare && statements.len() == 1;
        policy["Statement"] = if bare { statements.remove(0) } else { json!(statements) };
        let key = source.call_kms(world, "CreateKey", &json!({ "Policy": policy.to_string() })).unwrap();
        let key = key["KeyMetadata"]["Arn"].as_str().unwrap().to_owned();
        if self.grant {
            let grant = json!({ "KeyId": key, "Name": "theirs", "Operations": ["Decrypt"],
                "GranteePrincipal": role(TARGETS[0]) });
            source.call_kms(world, "CreateGrant", &grant).unwrap();
        }
        key
    }
}

/// A snapshot under that key, or under none.
fn snapshot(world: &mut World, owner: &Caller, key: Option<&str>) -> String {
    let mut parameters = vec![("AvailabilityZone", "eu-west-1a"), ("Size", "8")];
    parameters.extend(key.iter().flat_map(|key| [("Encrypted", "true"), ("KmsKeyId", *key)]));
    let volume = element(&owner.call(world, "ec2", "CreateVolume", &parameters).unwrap(), "volumeId").unwrap();
    let snapshot = owner.call(world, "ec2", "CreateSnapshot", &[("VolumeId", &volume)]).unwrap();
    element(&snapshot, "snapshotId").unwrap()
}

fn register(world: &mut World, owner: &Caller, name: &str, devices: &[(String, String)]) -> String {
    // Snapshots take a moment.
    let later = world.now_ms() + 1_000;
    world.set_now_ms(later);
    let mut parameters = vec![
        ("Name".to_owned(), name.to_owned()),
        ("Architecture".to_owned(), "x86_64".to_owned()),
        ("VirtualizationType".to_owned(), "hvm".to_owned()),
        ("RootDeviceName".to_owned(), DEVICES[0].to_owned()),
    ];
    for (index, (device, what)) in devices.iter().enumerate() {
        let of = format!("BlockDeviceMapping.{}", index + 1);
        let field = if what.starts_with("snap-") { "Ebs.SnapshotId" } else { "VirtualName" };
        parameters.push((format!("{of}.DeviceName"), device.clone()));
        parameters.push((format!("{of}.{field}"), what.clone()));
    }
    let parameters: Vec<(&str, &str)> =
        parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    element(&owner.call(world, "ec2", "RegisterImage", &parameters).unwrap(), "imageId").unwrap()
}

impl ImagePlan {
    fn make(&self, world: &mut World, source: &Caller, index: usize, keys: &[String]) -> Image {
        let mut devices = Vec::new();
        for (device, key) in DEVICES.iter().zip(&self.volumes) {
            devices.push(((*device).to_owned(), snapshot(world, source, key.map(|key| keys[key].as_str()))));
        }
        let ebs: Vec<String> = devices.iter().map(|(device, _)| device.clone()).collect();
        let snapshots: Vec<String> = devices.iter().map(|(_, snapshot)| snapshot.clone()).collect();
        if self.ephemeral {
            devices.push(("/dev/sdb".to_owned(), "ephemeral0".to_owned()));
        }
        let id = register(world, source, &format!("golden-{index}"), &devices);
        if self.others {
            permit_launch(world, &id, OTHER);
            snapshots.iter().for_each(|snapshot| permit_copy(world, snapshot, OTHER));
        }
        Image { id, devices: ebs }
    }
}

fn permit_launch(world: &mut World, image: &str, account: &str) {
    let parameters = [("ImageId", image), ("LaunchPermission.Add.1.UserId", account)];
    Caller::root(SOURCE).call(world, "ec2", "ModifyImageAttribute", &parameters).unwrap();
}

fn permit_copy(world: &mut World, snapshot: &str, account: &str) {
    let parameters = [("SnapshotId", snapshot), ("CreateVolumePermission.Add.1.UserId", account)];
    Caller::root(SOURCE).call(world, "ec2", "ModifySnapshotAttribute", &parameters).unwrap();
}

/// The policy of a key, as it is read.
pub(crate) fn put_key_policy(world: &mut World, key: &str, policy: &str) {
    let put = json!({ "KeyId": key, "PolicyName": "default", "Policy": policy });
    Caller::root(SOURCE).call_kms(world, "PutKeyPolicy", &put).unwrap();
}

pub(crate) fn key_policy(world: &mut World, key: &str) -> String {
    let read = json!({ "KeyId": key, "PolicyName": "default" });
    let answer = Caller::root(SOURCE).call_kms(world, "GetKeyPolicy", &read).unwrap();
    answer["Policy"].as_str().unwrap().to_owned()
}

impl TargetPlan {
    fn make(&self, world: &mut World, account: &str, images: &[Image], keys: &[String], own_key: &str) {
        let (source, root) = (Caller::root(SOURCE), Caller::root(account));
        for (image, _) in images.iter().zip(&self.launch).filter(|(_, there)| **there) {
            permit_launch(world, &image.id, account);
        }
        for (key, _) in keys.iter().zip(&self.statements).filter(|(_, there)| **there) {
            let arn = KeyArn::parse(key.as_str()).unwrap();
            let policy = KeyPolicy::parse(&arn, &key_policy(world, key)).unwrap();
            if let Some(merged) = policy.with(&[AccountId::parse(account).unwrap()]) {
                let put = json!({ "KeyId": key, "PolicyName": "default", "Policy": merged.to_text().unwrap() });
                source.call_kms(world, "PutKeyPolicy", &put).unwrap();
            }
        }
        for (key, _) in keys.iter().zip(&self.grants).filter(|(_, there)| **there) {
            let operations = SOURCE_KEY_ACTIONS.map(|action| action.trim_start_matches("kms:"));
            let grant = json!({ "KeyId": key, "Name": format!("ami-share-{account}"), "Operations": operations,
                "GranteePrincipal": format!("arn:aws:iam::{account}:root"),
                "RetiringPrincipal": format!("arn:aws:iam::{SOURCE}:role/AmiShareSource") });
            source.call_kms(world, "CreateGrant", &grant).unwrap();
        }
        if self.snapshots {
            for snapshot in snapshots_of(world, &images[0].id) {
                permit_copy(world, &snapshot, account);
            }
        }
        let policy = format!("arn:aws:iam::{account}:policy/AmiShareKeyAccess");
        let principals = [("Role", "AmiShareLauncher"), ("Role", "app-deployer"), ("User", "app-pipeline")];
        for ((kind, name), _) in principals.iter().zip(&self.attached).filter(|(_, there)| **there) {
            let parameters = [(&*format!("{kind}Name"), *name), ("PolicyArn", policy.as_str())];
            root.call(world, "iam", &format!("Attach{kind}Policy"), &parameters).unwrap();
        }
        for ((kind, name), _) in principals.iter().zip(&self.inline).filter(|(_, there)| **there) {
            for key in keys {
                let arn = KeyArn::parse(key.as_str()).unwrap();
                let (policy, document) = (inline_policy_name(&arn), inline_policy(&arn).to_string());
                let parameters =
                    [(&*format!("{kind}Name"), *name), ("PolicyName", &policy), ("PolicyDocument", &document)];
                root.call(world, "iam", &format!("Put{kind}Policy"), &parameters).unwrap();
            }
        }
        for (image, _) in images.iter().zip(&self.copies).filter(|(_, there)| **there) {
            let devices: Vec<(String, String)> =
                image.devices.iter().map(|device| (device.clone(), snapshot(world, &root, Some(own_key)))).collect();
            let copy = register(world, &root, &format!("copy-of-{}", image.id), &devices);
            let tags = [
                ("ResourceId.1", copy.as_str()),
                ("Tag.1.Key", SOURCE_IMAGE_TAG),
                ("Tag.1.Value", &image.id),
                ("Tag.2.Key", KEY_TAG),
                ("Tag.2.Value", own_key),
            ];
            root.call(world, "ec2", "CreateTags", &tags).unwrap();
        }
    }
}

pub(crate) fn snapshots_of(world: &mut World, image: &str) -> Vec<String> {
    let snapshot = world.snapshot(SOURCE);
    let snapshots = &snapshot["ec2"][REGION]["images"][image]["snapshots"];
    snapshots.as_array().into_iter().flatten().filter_map(|id| id.as_str().map(str::to_owned)).collect()
}
