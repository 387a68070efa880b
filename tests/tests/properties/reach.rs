//! Suppose that the hub's functions are taken over. What whoever has a target's roles can reach there, past the code and
//! its session policies: docs/security.md says what of it is shown here.

use ami_share_machine::{
    Deployment,
    root::{Caller, element},
};
use ami_share_sandbox::World;
use ami_share_tests::{REGION, SOURCE, TARGET, local::Settings};
use serde_json::json;

use crate::{
    deployed,
    world::{OTHER, crowded, make_principals, make_role, snapshots_of, usable},
};

const TAG: &str = "ami-share:execution";

/// The source's image, which the target may launch and copy, and the target's roles.
struct Accounts {
    world: World,
    image: String,
    launcher: Caller,
    target: Caller,
}

type Parameters<'a> = Vec<(&'a str, &'a str)>;

impl Accounts {
    fn new() -> Self {
        Self::of(deployed::deployment(false))
    }

    fn of(deployment: &Deployment) -> Self {
        let (mut world, images, _) = crowded(deployment, &[false]);
        make_principals(&mut world, TARGET, &[REGION]);
        let (source, image) = (Caller::root(SOURCE), images[0].id.clone());
        let launch = [("ImageId", image.as_str()), ("LaunchPermission.Add.1.UserId", TARGET)];
        source.call(&mut world, "ec2", "ModifyImageAttribute", &launch).unwrap();
        for snapshot in snapshots_of(&mut world, &images[0]) {
            let copy = [("SnapshotId", snapshot.as_str()), ("CreateVolumePermission.Add.1.UserId", TARGET)];
            source.call(&mut world, "ec2", "ModifySnapshotAttribute", &copy).unwrap();
        }
        let mut role = |name: &str| Caller::role(&mut world, &format!("arn:aws:iam::{TARGET}:role/{name}")).unwrap();
        let (launcher, target) = (role("AmiShareLauncher"), role("AmiShareTarget"));
        Self { world, image, launcher, target }
    }

    /// An image of an account that lets everybody launch it.
    fn image_of(&mut self, account: &str, tagged: bool) -> String {
        let (world, owner) = (&mut self.world, Caller::root(account));
        let zone = format!("{REGION}a");
        let made = owner.call(world, "ec2", "CreateVolume", &[("AvailabilityZone", &zone), ("Size", "8")]).unwrap();
        let volume = element(&made, "volumeId").unwrap();
        let made = owner.call(world, "ec2", "CreateSnapshot", &[("VolumeId", &volume)]).unwrap();
        let snapshot = element(&made, "snapshotId").unwrap();
        let later = world.now_ms() + 1_000;
        world.set_now_ms(later);
        // Names are an account's own.
        let name = format!("of {snapshot}");
        let register = [
            ("Name", name.as_str()),
            ("Architecture", "x86_64"),
            ("VirtualizationType", "hvm"),
            ("RootDeviceName", "/dev/xvda"),
            ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
            ("BlockDeviceMapping.1.Ebs.SnapshotId", snapshot.as_str()),
        ];
        let image = element(&owner.call(world, "ec2", "RegisterImage", &register).unwrap(), "imageId").unwrap();
        let public = [("ImageId", image.as_str()), ("LaunchPermission.Add.1.Group", "all")];
        owner.call(world, "ec2", "ModifyImageAttribute", &public).unwrap();
        if tagged {
            let tags = [
                ("ResourceId.1", image.as_str()),
                ("ResourceId.2", snapshot.as_str()),
                ("Tag.1.Key", TAG),
                ("Tag.1.Value", "x"),
            ];
            owner.call(world, "ec2", "CreateTags", &tags).unwrap();
        }
        image
    }

    /// Whether the launcher may make that call.
    fn may(&mut self, action: &str, parameters: &[(&str, &str)]) -> bool {
        let parameters: Parameters<'_> = parameters.iter().copied().chain([("DryRun", "true")]).collect();
        let answer = self.launcher.call(&mut self.world, "ec2", action, &parameters).unwrap_err();
        assert!(["DryRunOperation", "UnauthorizedOperation"].iter().any(|code| answer.contains(code)), "{answer}");
        answer.contains("DryRunOperation")
    }
}

/// What LaunchInstance asks for.
fn launch(image: &str) -> Parameters<'_> {
    vec![
        ("ImageId", image),
        ("InstanceType", "t3.micro"),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("NetworkInterface.1.DeviceIndex", "0"),
        ("NetworkInterface.1.AssociatePublicIpAddress", "false"),
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.1.Tag.1.Key", TAG),
        ("TagSpecification.1.Tag.1.Value", "x"),
        ("TagSpecification.2.ResourceType", "volume"),
        ("TagSpecification.2.Tag.1.Key", TAG),
        ("TagSpecification.2.Tag.1.Value", "x"),
    ]
}

/// The same call with one parameter as it is here, or without it.
fn with<'a>(call: &[(&'a str, &'a str)], name: &'a str, value: Option<&'a str>) -> Parameters<'a> {
    let others = call.iter().copied().filter(|(other, _)| *other != name);
    others.chain(value.map(|value| (name, value))).collect()
}

#[test]
fn the_launcher_launches_images_of_the_source_and_own_copies_only() {
    let mut accounts = Accounts::new();
    let of_source = accounts.image.clone();
    assert!(accounts.may("RunInstances", &launch(&of_source)));
    for (account, tagged, may) in [(OTHER, false, false), (TARGET, false, false), (TARGET, true, true)] {
        let image = accounts.image_of(account, tagged);
        assert_eq!(accounts.may("RunInstances", &launch(&image)), may, "of {account}, tagged {tagged}");
    }
    // A tag of the target's own on somebody else's image makes it no copy.
    let foreign = accounts.image_of(OTHER, false);
    let tag = [("ResourceId.1", foreign.as_str()), ("Tag.1.Key", TAG), ("Tag.1.Value", "x")];
    Caller::root(TARGET).call(&mut accounts.world, "ec2", "CreateTags", &tag).unwrap();
    assert!(!accounts.may("RunInstances", &launch(&foreign)));
}

#[test]
fn the_launcher_copies_images_of_the_source_only() {
    let mut accounts = Accounts::new();
    let may = |accounts: &mut Accounts, image: &str| {
        let copy = vec![
            ("SourceImageId", image),
            ("SourceRegion", REGION),
            ("Name", "copy"),
            ("TagSpecification.1.ResourceType", "image"),
            ("TagSpecification.1.Tag.1.Key", TAG),
            ("TagSpecification.1.Tag.1.Value", "x"),
        ];
        accounts.may("CopyImage", &copy)
    };
    let of_source = accounts.image.clone();
    assert!(may(&mut accounts, &of_source));
    for (account, tagged) in [(OTHER, false), (TARGET, false), (TARGET, true)] {
        let image = accounts.image_of(account, tagged);
        assert!(!may(&mut accounts, &image), "of {account}, tagged {tagged}");
    }
}

#[test]
fn what_the_launcher_launches_is_tagged_small_and_without_a_public_address() {
    let mut accounts = Accounts::new();
    let image = accounts.image.clone();
    let asked = launch(&image);
    let address = "NetworkInterface.1.AssociatePublicIpAddress";
    assert!(accounts.may("RunInstances", &with(&asked, "InstanceType", Some("m5.large"))));
    for (name, value) in [
        (address, Some("true")),
        (address, None),
        ("InstanceType", Some("p5.48xlarge")),
        ("TagSpecification.1.Tag.1.Key", Some("other")),
        ("TagSpecification.2.Tag.1.Key", Some("other")),
        // Of others it knows nothing.
        ("KeyName", Some("somebody")),
    ] {
        assert!(!accounts.may("RunInstances", &with(&asked, name, value)), "{name} {value:?}");
    }
}

#[test]
fn the_launcher_uses_own_keys_only_that_are_tagged_or_named() {
    let named = Settings { launcher_keys: format!("arn:aws:kms:*:{TARGET}:key/*"), ..Settings::default() };
    let (tag, other) = (usable(), json!({ "TagKey": "ami-share:shareable", "TagValue": "true" }));
    for (mut accounts, tags, may) in [
        (Accounts::new(), vec![], false),
        (Accounts::new(), vec![other], false),
        (Accounts::new(), vec![tag], true),
        (Accounts::of(&deployed::start(named)), vec![], true),
    ] {
        let key = Caller::root(TARGET).call_kms(&mut accounts.world, "CreateKey", &json!({ "Tags": tags })).unwrap();
        let key = key["KeyMetadata"]["Arn"].as_str().unwrap();
        let image = accounts.image_of(TARGET, true);
        let mut asked = launch(&image);
        asked.extend([
            ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
            ("BlockDeviceMapping.1.Ebs.Encrypted", "true"),
            ("BlockDeviceMapping.1.Ebs.KmsKeyId", key),
        ]);
        let launched = accounts.launcher.call(&mut accounts.world, "ec2", "RunInstances", &asked).unwrap();
        let later = accounts.world.now_ms() + 600_000;
        accounts.world.set_now_ms(later);
        let instance =
            &accounts.world.snapshot(TARGET)["ec2"][REGION]["instances"][element(&launched, "instanceId").unwrap()];
        assert_eq!(instance["state"] == "running", may, "{tags:?}: {instance}");
    }
}

#[test]
fn the_target_role_asks_about_principals_that_may_be_named_only() {
    let mut accounts = Accounts::new();
    let key = format!("arn:aws:kms:{REGION}:{TARGET}:key/k");
    // What no function asks is not allowed.
    for (name, listed, simulated) in [
        ("AmiShareLauncher", true, true),
        ("AmiShareTarget", false, true),
        ("app-deployer", true, false),
        ("admin", false, false),
    ] {
        if name == "admin" {
            make_role(&mut accounts.world, TARGET, name);
        }
        let arn = format!("arn:aws:iam::{TARGET}:role/{name}");
        let simulate = [
            ("PolicySourceArn", arn.as_str()),
            ("ActionNames.member.1", "kms:Decrypt"),
            ("ResourceArns.member.1", key.as_str()),
        ];
        for (action, parameters, may) in [
            ("ListAttachedRolePolicies", &[("RoleName", name)][..], listed),
            ("ListRolePolicies", &[("RoleName", name)][..], listed),
            ("SimulatePrincipalPolicy", &simulate[..], simulated),
        ] {
            let answer = accounts.target.call(&mut accounts.world, "iam", action, parameters);
            assert_eq!(answer.is_ok(), may, "{action} of {name}: {answer:?}");
        }
    }
}
