//! Random accounts: what they hold before anything is shared, some of it half shared already.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ami_share_core::{
    ids::{AccountId, KeyArn},
    key_actions::SOURCE_KEY_ACTIONS,
    key_policy::KeyPolicy,
    principal_policy::{inline_policy, inline_policy_name},
    share::{EXECUTION_TAG, KEY_TAG, SOURCE_IMAGE_TAG},
};
use ami_share_machine::{
    Deployment, Machine,
    root::{Caller, element},
};
use ami_share_sandbox::{
    World,
    ec2::{ImageState, Instance, InstanceState},
};
use ami_share_tests::{REGION, SOURCE};
use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};

use crate::{
    deployed::{self, TARGETS},
    request::Request,
};

/// An account that has nothing to do with ami-share, and something to do with the keys and images.
pub(crate) const OTHER: &str = "777777777777";

/// The other Region that images may be in; the hub is not in it.
pub(crate) const ELSEWHERE: &str = "us-east-1";

const DEVICES: [&str; 5] = ["/dev/xvda", "/dev/sdf", "/dev/sdg", "/dev/sdh", "/dev/sdi"];

/// What the accounts hold.
#[derive(Debug, Clone)]
pub(crate) struct WorldPlan {
    pub(crate) inline_policies: bool,
    keys: Vec<KeyPlan>,
    images: Vec<ImagePlan>,
    /// One for each of [`TARGETS`].
    targets: Vec<TargetPlan>,
    slow: Slow,
    /// When the targets' owners back up what is there then, in milliseconds.
    backup: Option<u64>,
    seed: u64,
}

/// How long changes take to become effective.
#[derive(Debug, Clone, Copy)]
enum Slow {
    No,
    /// Less than GrantPrincipals has the execution wait for.
    WithinTheWait,
    /// So many seconds: longer than that wait, and shorter than all launches of a proof.
    Longer(u64),
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
    /// The key of each volume, of those in its Region; nothing for one that is not encrypted.
    volumes: Vec<Option<usize>>,
    ephemeral: bool,
    /// Somebody else may launch it, and copy its snapshots.
    others: bool,
    /// Whether it is in the other Region.
    elsewhere: bool,
    /// An organization or unit, which may have any account in it, may launch it: which of [`ORGANIZATIONS`].
    open: Option<usize>,
}

const ORGANIZATIONS: [(&str, &str); 2] = [
    ("OrganizationArn", "arn:aws:organizations::999999999999:organization/o-abcdefghij"),
    ("OrganizationalUnitArn", "arn:aws:organizations::999999999999:ou/o-abcdefghij/ou-ab12-cdefghij"),
];

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
    let slow = prop_oneof![
        5 => Just(Slow::No),
        4 => Just(Slow::WithinTheWait),
        1 => (20..=75_u64).prop_map(Slow::Longer),
    ];
    let backup = prop::option::weighted(0.2, 0..250_000_u64);
    (images, vec(target(), TARGETS.len()), any::<bool>(), slow, backup, any::<u64>()).prop_map(
        |((keys, images), targets, inline_policies, slow, backup, seed)| WorldPlan {
            inline_policies,
            keys,
            images,
            targets,
            slow,
            backup,
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
    let open = prop::option::weighted(0.15, 0..ORGANIZATIONS.len());
    let volumes = vec(volume, 1..=DEVICES.len());
    (volumes, any::<bool>(), any::<bool>(), prop::bool::weighted(0.3), open).prop_map(
        |(volumes, ephemeral, others, elsewhere, open)| ImagePlan { volumes, ephemeral, others, elsewhere, open },
    )
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
    backups: Arc<Mutex<Vec<Backup>>>,
}

impl Stage {
    /// What the targets' owners have made of what was there.
    pub(crate) fn backups(&self) -> MutexGuard<'_, Vec<Backup>> {
        self.backups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes of the target what nobody can read, as somebody has done by hand.
    pub(crate) fn note_unreadably(&self, account: &str) {
        let image = &self.images[0].id;
        self.machine.table().put(&json!({
            "id": { "S": format!("target#{account}") },
            "part": { "S": format!("{image}#{UNREADABLE}") },
            "imageId": { "S": image },
            "notedAt": { "N": "1700000000000" },
            "gift": { "S": "{\"execution\":" },
        }));
    }

    pub(crate) fn remove_unreadable(&self, account: &str) {
        let part = format!("{}#{UNREADABLE}", self.images[0].id);
        self.machine.table().remove(&format!("target#{account}"), &part);
    }
}

/// The execution that a note is of which nobody can read.
const UNREADABLE: &str = "by-hand-0123abcd";

pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) region: &'static str,
    pub(crate) devices: Vec<String>,
    /// Who of [`ORGANIZATIONS`] may launch it.
    open: Option<usize>,
}

/// An image or a snapshot that a target's owner has made of what was there, with its tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backup {
    pub(crate) account: &'static str,
    pub(crate) region: &'static str,
    /// `images` or `snapshots`, as in an account's snapshot.
    pub(crate) kind: &'static str,
    pub(crate) id: String,
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
        let regions = self.regions();
        for account in TARGETS {
            make_principals(&mut world, account, regions);
        }
        // The inline policies of a user have room for three keys, and the last one is the other Region's.
        let here = if regions.contains(&ELSEWHERE) { (self.keys.len() - 1).max(1) } else { self.keys.len() };
        let plans = self.keys[..here].iter().map(|plan| (plan, REGION));
        let plans = plans.chain(regions[1..].iter().flat_map(|region| self.keys.last().map(|plan| (plan, *region))));
        let keys: Vec<String> =
            plans.map(|(plan, region)| plan.make(&mut world, &source.clone().in_region(region))).collect();
        let of = |plan: &ImagePlan| if plan.elsewhere { &keys[here..] } else { &keys[..here] };
        let images: Vec<Image> =
            self.images.iter().enumerate().map(|(index, plan)| plan.make(&mut world, index, of(plan))).collect();
        for (account, plan) in TARGETS.iter().zip(&self.targets) {
            plan.make(&mut world, account, &images, &keys);
        }
        let (policies, grants) = match self.slow {
            Slow::No => ((0, 0), 0),
            Slow::WithinTheWait => ((12_000, 14_000), 250_000),
            Slow::Longer(seconds) => ((seconds * 1_000, seconds * 1_000), 250_000),
        };
        (world.settings.iam_policy_delay_ms, world.settings.key_policy_delay_ms) = policies;
        world.settings.grant_delay_ms = grants;
        world.journal.clear();
        let machine = Machine::new(deployment, world, self.seed).unwrap();
        let backups: Arc<Mutex<Vec<Backup>>> = Arc::default();
        if let Some(when) = self.backup {
            let made = Arc::clone(&backups);
            machine.meanwhile(when, move |world| {
                let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
                let accounts = TARGETS.iter().flat_map(|account| regions.iter().map(move |region| (*account, *region)));
                made.extend(accounts.flat_map(|(account, region)| back_up(world, account, region)));
            });
        }
        Stage { machine, images, keys, backups }
    }

    fn regions(&self) -> &'static [&'static str] {
        if self.images.iter().any(|image| image.elsewhere) { &[REGION, ELSEWHERE] } else { &[REGION] }
    }

    /// Whether a copy may fail, as the access to its key is not effective yet. Proofs are launched again then, and
    /// copies are not.
    pub(crate) fn copies_too_early(&self, request: &Request) -> bool {
        let copies = request.targets.iter().any(|target| target.mode == Some("copyImage"));
        copies && matches!(self.slow, Slow::Longer(_))
    }
}

/// One image under two keys that many write; the targets are the deployment's.
pub(crate) fn crowd(deployment: &Deployment, seed: u64) -> Stage {
    with_images(deployment, seed, &[false])
}

/// Images under the same two keys, or for those that are elsewhere under two others; the targets are the deployment's.
pub(crate) fn with_images(deployment: &Deployment, seed: u64, elsewhere: &[bool]) -> Stage {
    let (world, images, keys) = crowded(deployment, elsewhere);
    Stage { machine: Machine::new(deployment, world, seed).unwrap(), images, keys, backups: Arc::default() }
}

/// The same before anything runs.
pub(crate) fn crowded(deployment: &Deployment, elsewhere: &[bool]) -> (World, Vec<Image>, Vec<String>) {
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
    let plans = [plan(vec![2, 0], vec![1, 3]), plan(vec![], vec![5])];
    let regions = if elsewhere.contains(&true) { &[REGION, ELSEWHERE][..] } else { &[REGION] };
    let mut keys = Vec::new();
    for region in regions {
        let source = source.clone().in_region(region);
        keys.extend(plans.iter().map(|plan| plan.make(&mut world, &source)));
    }
    let make = |(index, elsewhere): (usize, &bool)| {
        let volumes = vec![Some(0), Some(1), Some(1)];
        let plan = ImagePlan { volumes, ephemeral: true, others: true, elsewhere: *elsewhere, open: None };
        plan.make(&mut world, index, if *elsewhere { &keys[plans.len()..] } else { &keys[..plans.len()] })
    };
    let images = elsewhere.iter().enumerate().map(make).collect();
    (world, images, keys)
}

pub(crate) fn make_role(world: &mut World, account: &str, name: &str) {
    let trust = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "AWS": format!("arn:aws:iam::{account}:root") }, "Action": "sts:AssumeRole",
    }]});
    let trust = trust.to_string();
    let parameters = [("RoleName", name), ("AssumeRolePolicyDocument", trust.as_str())];
    Caller::root(account).call(world, "iam", "CreateRole", &parameters).unwrap();
}

/// A role and a user that may launch instances, and a key of the account's own in each of the Regions.
pub(crate) fn make_principals(world: &mut World, account: &str, regions: &[&str]) {
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
    for region in regions {
        make_key(world, account, region);
    }
}

/// The tag of a target's key that the launcher may use.
pub(crate) fn usable() -> Value {
    json!({ "TagKey": "ami-share:usable", "TagValue": "true" })
}

/// A key of the account's own, with the alias that requests name.
pub(crate) fn make_key(world: &mut World, account: &str, region: &str) -> String {
    let root = Caller::root(account).in_region(region);
    let key = root.call_kms(world, "CreateKey", &json!({ "Tags": [usable()] })).unwrap();
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
        let tags = [json!({ "TagKey": "ami-share:shareable", "TagValue": "true" })];
        let key = json!({ "Policy": policy.to_string(), "Tags": tags });
        let key = source.call_kms(world, "CreateKey", &key).unwrap();
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
fn snapshot(world: &mut World, owner: &Caller, region: &str, key: Option<&str>) -> String {
    let zone = format!("{region}a");
    let mut parameters = vec![("AvailabilityZone", zone.as_str()), ("Size", "8")];
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
    /// `keys` are those of its Region.
    fn make(&self, world: &mut World, index: usize, keys: &[String]) -> Image {
        let region = if self.elsewhere { ELSEWHERE } else { REGION };
        let source = &Caller::root(SOURCE).in_region(region);
        let mut devices = Vec::new();
        for (device, key) in DEVICES.iter().zip(&self.volumes) {
            devices.push((
                (*device).to_owned(),
                snapshot(world, source, region, key.map(|key| keys[key % keys.len()].as_str())),
            ));
        }
        let ebs: Vec<String> = devices.iter().map(|(device, _)| device.clone()).collect();
        let snapshots: Vec<String> = devices.iter().map(|(_, snapshot)| snapshot.clone()).collect();
        if self.ephemeral {
            devices.push(("/dev/sdb".to_owned(), "ephemeral0".to_owned()));
        }
        let id = register(world, source, &format!("golden-{index}"), &devices);
        let image = Image { id, region, devices: ebs, open: self.open };
        if self.others {
            image.permit(world, "Add", "UserId", OTHER);
            snapshots.iter().for_each(|snapshot| permit_copy(world, source, snapshot, OTHER));
        }
        image.open(world);
        image
    }
}

impl Image {
    fn permit(&self, world: &mut World, add_or_remove: &str, kind: &str, whom: &str) {
        let permission = format!("LaunchPermission.{add_or_remove}.1.{kind}");
        let parameters = [("ImageId", self.id.as_str()), (&permission, whom)];
        let source = Caller::root(SOURCE).in_region(self.region);
        source.call(world, "ec2", "ModifyImageAttribute", &parameters).unwrap();
    }

    /// Whether an organization, or a unit of one, can launch it.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Shares it with the organization or unit that is to have it.
    pub(crate) fn open(&self, world: &mut World) {
        if let Some((kind, arn)) = self.open.map(|open| ORGANIZATIONS[open]) {
            self.permit(world, "Add", kind, arn);
        }
    }

    pub(crate) fn close(&self, world: &mut World) {
        if let Some((kind, arn)) = self.open.map(|open| ORGANIZATIONS[open]) {
            self.permit(world, "Remove", kind, arn);
        }
    }

    /// Where it is, as a request says it.
    pub(crate) fn source(&self) -> Value {
        json!({ "accountId": SOURCE, "region": self.region })
    }
}

fn permit_copy(world: &mut World, source: &Caller, snapshot: &str, account: &str) {
    let parameters = [("SnapshotId", snapshot), ("CreateVolumePermission.Add.1.UserId", account)];
    source.call(world, "ec2", "ModifySnapshotAttribute", &parameters).unwrap();
}

/// The root of the key's account, in the key's Region.
pub(crate) fn owner_of(key: &str) -> Caller {
    Caller::root(SOURCE).in_region(key.split(':').nth(3).unwrap_or_default())
}

/// The policy of a key, as it is read.
pub(crate) fn put_key_policy(world: &mut World, key: &str, policy: &str) {
    let put = json!({ "KeyId": key, "PolicyName": "default", "Policy": policy });
    owner_of(key).call_kms(world, "PutKeyPolicy", &put).unwrap();
}

pub(crate) fn key_policy(world: &mut World, key: &str) -> String {
    let read = json!({ "KeyId": key, "PolicyName": "default" });
    let answer = owner_of(key).call_kms(world, "GetKeyPolicy", &read).unwrap();
    answer["Policy"].as_str().unwrap().to_owned()
}

impl TargetPlan {
    fn make(&self, world: &mut World, account: &str, images: &[Image], keys: &[String]) {
        let root = Caller::root(account);
        for (image, _) in images.iter().zip(&self.launch).filter(|(_, there)| **there) {
            image.permit(world, "Add", "UserId", account);
        }
        for (key, _) in keys.iter().zip(&self.statements).filter(|(_, there)| **there) {
            let arn = KeyArn::parse(key.as_str()).unwrap();
            let policy = KeyPolicy::parse(&arn, &key_policy(world, key)).unwrap();
            if let Some(merged) = policy.with(&[AccountId::parse(account).unwrap()]).unwrap() {
                put_key_policy(world, key, &merged.to_text().unwrap());
            }
        }
        for (key, _) in keys.iter().zip(&self.grants).filter(|(_, there)| **there) {
            let operations = SOURCE_KEY_ACTIONS.map(|action| action.trim_start_matches("kms:"));
            let grant = json!({ "KeyId": key, "Name": format!("ami-share-{account}"), "Operations": operations,
                "GranteePrincipal": format!("arn:aws:iam::{account}:root"),
                "RetiringPrincipal": format!("arn:aws:iam::{SOURCE}:role/AmiShareSource") });
            owner_of(key).call_kms(world, "CreateGrant", &grant).unwrap();
        }
        if self.snapshots {
            let source = Caller::root(SOURCE).in_region(images[0].region);
            for snapshot in snapshots_of(world, &images[0]) {
                permit_copy(world, &source, &snapshot, account);
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
            let (root, region) = (root.clone().in_region(image.region), image.region);
            let alias = json!({ "KeyId": "alias/app-volumes" });
            let own_key = root.call_kms(world, "DescribeKey", &alias).unwrap()["KeyMetadata"]["Arn"].clone();
            let own_key = own_key.as_str().unwrap();
            let snapshot = |world: &mut World| snapshot(world, &root, region, Some(own_key));
            let devices: Vec<(String, String)> =
                image.devices.iter().map(|device| (device.clone(), snapshot(world))).collect();
            let copy = register(world, &root, &format!("copy-of-{}", image.id), &devices);
            // As CopyImage tells of what it makes.
            let own = world.account_mut(account).ec2.get_mut(region).unwrap();
            own.images.get_mut(&copy).unwrap().source_image = Some((image.id.clone(), region.to_owned()));
            for made in devices.iter().map(|(_, snapshot)| snapshot).chain([&copy]) {
                let tags = [
                    ("ResourceId.1", made.as_str()),
                    ("Tag.1.Key", SOURCE_IMAGE_TAG),
                    ("Tag.1.Value", &image.id),
                    ("Tag.2.Key", KEY_TAG),
                    ("Tag.2.Value", own_key),
                    ("Tag.3.Key", EXECUTION_TAG),
                    ("Tag.3.Value", "before"),
                ];
                root.call(world, "ec2", "CreateTags", &tags).unwrap();
            }
        }
    }
}

pub(crate) fn snapshots_of(world: &mut World, image: &Image) -> Vec<String> {
    let snapshot = world.snapshot(SOURCE);
    let snapshots = &snapshot["ec2"][image.region]["images"][&image.id]["snapshots"];
    snapshots.as_array().into_iter().flatten().filter_map(|id| id.as_str().map(str::to_owned)).collect()
}

/// The target's owner backs up what ami-share has made there: snapshots of what runs and copies of images, both with
/// the tags of what they are of.
fn back_up(world: &mut World, account: &'static str, region: &'static str) -> Vec<Backup> {
    // What is due by now has happened.
    let before = world.snapshot(account);
    let root = Caller::root(account).in_region(region);
    let Some(ec2) = world.account(account).and_then(|account| account.ec2.get(region)) else { return Vec::new() };
    let runs = |instance: &&Instance| instance.state == InstanceState::Running;
    let instances: Vec<String> = ec2.instances.values().filter(runs).map(|instance| instance.id.clone()).collect();
    let is_ours = |image: &&ami_share_sandbox::ec2::Image| {
        image.state == ImageState::Available && image.tags.contains_key(EXECUTION_TAG)
    };
    let images: Vec<String> = ec2.images.values().filter(is_ours).map(|image| image.id.clone()).collect();
    for instance in instances {
        let of = [("InstanceSpecification.InstanceId", instance.as_str()), ("CopyTagsFromSource", "volume")];
        root.call(world, "ec2", "CreateSnapshots", &of).unwrap();
    }
    for image in images {
        let name = format!("backup of {image}");
        let of =
            [("SourceImageId", image.as_str()), ("SourceRegion", region), ("Name", &name), ("CopyImageTags", "true")];
        root.call(world, "ec2", "CopyImage", &of).unwrap();
    }
    let after = world.snapshot(account);
    let made = |kind: &'static str| {
        let of = |picture: &Value| picture["ec2"][region][kind].as_object().cloned().unwrap_or_default();
        let before = of(&before);
        of(&after).into_iter().filter(move |(id, _)| !before.contains_key(id)).map(move |(id, _)| (kind, id))
    };
    let made = made("images").chain(made("snapshots"));
    made.map(|(kind, id)| Backup { account, region, kind, id }).collect()
}
