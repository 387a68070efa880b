//! Ways of sharing: principals, policies, re-encryption, the proof, and images of other shapes.

use std::collections::BTreeSet;

use ami_share_core::{ids::KeyArn, principal_policy::inline_policy_name};
use ami_share_sandbox::{
    ec2::{DeviceKind, InstanceState},
    faults::{Hook, Matcher, RootCall, When},
    sts::{AccessKey, issue_session},
};
use ami_share_tests::{REGION, Result, SOURCE, TARGET, clients::root_of, local::Settings, seed};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_ec2::{
    error::ProvideErrorMetadata,
    types::{InstanceStateName, VolumeState},
};
use serde_json::{Value, json};

use crate::{Run, Stage, ec2, image_mut};

const OWN_KEY: &str = "alias/app-volumes";

/// Makes a user in the target; returns its ARN.
pub(crate) async fn user(stage: &Stage, name: &str) -> Result<String> {
    let iam = aws_sdk_iam::Client::new(&root_of(TARGET, &stage.local.sandbox.endpoint()));
    let created = iam.create_user().user_name(name).send().await?;
    Ok(created.user.ok_or("CreateUser answered no user")?.arn)
}

/// Device and key of each volume of the target's running instances.
fn volumes(stage: &Stage) -> Vec<(String, Option<String>)> {
    let mut world = stage.local.sandbox.world();
    let ec2 = ec2(&mut world, TARGET);
    let runs = |id: &str| ec2.instances.get(id).is_some_and(|instance| instance.state == InstanceState::Running);
    let mut volumes: Vec<_> = ec2
        .volumes
        .values()
        .filter_map(|volume| {
            let attachment = volume.attachment.as_ref().filter(|attachment| runs(&attachment.instance_id))?;
            Some((attachment.device.clone(), volume.key.clone()))
        })
        .collect();
    volumes.sort();
    volumes
}

/// The same, as a target's report has them.
fn reported_volumes(run: &Run) -> Vec<(String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let volumes = run.report()["targets"][0]["volumes"].as_array().into_iter().flatten();
    volumes.map(|volume| (text(&volume["deviceName"]).unwrap_or_default(), text(&volume["keyArn"]))).collect()
}

/// The target's own key `aws/ebs`, which volumes are put under that ask for no other.
fn default_key(stage: &Stage) -> Option<String> {
    let world = stage.local.sandbox.world();
    let kms = world.account(TARGET)?.kms.get(REGION)?;
    Some(kms.keys.get(kms.aliases.get("alias/aws/ebs")?)?.arn.clone())
}

fn reencrypt(mode: &str) -> Value {
    if mode == "none" { Value::Null } else { json!({ "mode": mode, "kmsKeyId": OWN_KEY }) }
}

#[tokio::test]
async fn without_a_proof_nothing_is_launched_and_nothing_is_said_to_be_proved() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    for mode in ["none", "copyImage"] {
        stage.reset();
        let request = stage.request(json!({ "reencrypt": reencrypt(mode), "launch": { "prove": "never" } }));
        let run = stage.run(&format!("never-{mode}"), &request).await?;
        assert!(run.succeeded(), "{mode}: {}", run.summary());
        assert_eq!(run.report()["targets"][0]["status"], "shared", "{mode}");
        assert!(!run.report().to_string().contains("proved"), "{}", run.report());
        assert!(!run.writes().contains(&"ec2:RunInstances"), "{:?}", run.writes());
        let again = stage.run(&format!("never-{mode}-again"), &request).await?;
        assert_eq!(again.report()["status"], "alreadyShared", "{mode}: {}", again.summary());
    }
    Ok(())
}

#[tokio::test]
async fn a_proof_has_the_tags_and_groups_that_are_asked_for_and_no_public_address() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let launch = json!({ "keep": true, "securityGroupIds": ["sg-0abc"], "tags": { "team": "red" } });
    let run = stage.run("asked", &stage.request(json!({ "launch": launch }))).await?;
    assert!(run.succeeded(), "{}", run.summary());
    let mut world = stage.local.sandbox.world();
    let ec2 = ec2(&mut world, TARGET);
    let instance = ec2.instances.values().next().ok_or("there is no instance")?;
    assert_eq!((&instance.security_groups, instance.public_address), (&vec!["sg-0abc".to_owned()], Some(false)));
    assert_eq!(instance.metadata_tokens, "required");
    assert_eq!(instance.tags["team"], "red");
    assert!(ec2.volumes.values().all(|volume| volume.tags["team"] == "red"));
    Ok(())
}

#[tokio::test]
async fn a_volume_that_starts_empty_goes_with_the_proof_and_is_under_the_key() -> Result<()> {
    let mut stage = Stage::start(Settings::default()).await?;
    {
        let mut world = stage.local.sandbox.world();
        let devices = &mut image_mut(&mut world, &stage.image).devices;
        let mut empty = devices[0].clone();
        empty.name = "/dev/sdx".to_owned();
        if let DeviceKind::Ebs(ebs) = &mut empty.kind {
            (ebs.snapshot_id, ebs.encrypted, ebs.delete_on_termination) = (None, false, false);
        }
        devices.push(empty);
    }
    stage.keep();
    for mode in ["none", "atLaunch", "copyImage"] {
        stage.reset();
        let request = stage.request(json!({ "reencrypt": reencrypt(mode) }));
        let run = stage.run(&format!("empty-{mode}"), &request).await?;
        assert!(run.succeeded(), "{mode}: {}", run.summary());
        let left = run.after[TARGET]["ec2"][REGION]["volumes"].as_object().map_or(0, serde_json::Map::len);
        assert_eq!(left, 0, "{mode}: {}", run.differences());
        let reported = reported_volumes(&run);
        let empty = reported.iter().find(|(device, _)| device == "/dev/sdx").ok_or("there is no such volume")?;
        assert_eq!(empty.1, (mode != "none").then(|| stage.target().key_arn.clone()), "{mode}");
    }
    Ok(())
}

#[tokio::test]
async fn an_image_that_is_not_wholly_encrypted_is_refused_unless_hub_and_request_allow_it() -> Result<()> {
    for allow_unencrypted in [false, true] {
        let mut stage = Stage::start(Settings { allow_unencrypted, ..Settings::default() }).await?;
        let snapshot = stage.image.volumes[1].snapshot_id.clone();
        if let Some(snapshot) = ec2(&mut stage.local.sandbox.world(), SOURCE).snapshots.get_mut(&snapshot) {
            snapshot.key = None;
        }
        stage.keep();
        for (name, require_encryption) in [("allowed", false), ("required", true)] {
            stage.reset();
            let mut request = stage.request(json!({}));
            request["requireEncryption"] = json!(require_encryption);
            let run = stage.run(name, &request).await?;
            if allow_unencrypted && !require_encryption {
                assert!(run.succeeded(), "{}", run.summary());
                let said = "volume /dev/sdf of the image is not encrypted";
                assert!(
                    run.report()["unencrypted"].as_str().is_some_and(|text| text.contains(said)),
                    "{}",
                    run.report()
                );
            } else {
                assert_eq!(run.error(), "ImageNotEncrypted", "{}", run.summary());
                let remedy = if require_encryption { "requireEncryption" } else { "AllowUnencrypted" };
                assert!(["/dev/sdf", remedy].iter().all(|said| run.cause().contains(said)), "{}", run.cause());
                assert!(run.differences().is_empty(), "{}", run.differences());
            }
            request["action"] = json!("plan");
            let plan = stage.run(&format!("{name}-plan"), &request).await?;
            assert_eq!(plan.succeeded(), run.succeeded(), "{}", plan.summary());
            assert_eq!(plan.report()["unencrypted"].is_string(), run.succeeded());
        }
    }
    Ok(())
}

#[tokio::test]
async fn volumes_are_under_the_key_that_the_mode_says_and_the_proof_stays_if_asked() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    for (mode, keep) in [("none", false), ("none", true), ("atLaunch", true), ("copyImage", true)] {
        let name = format!("{mode}-{keep}");
        stage.reset();
        let request = stage.request(json!({ "reencrypt": reencrypt(mode), "launch": { "keep": keep } }));
        let run = stage.run(&name, &request).await?;
        assert!(run.succeeded(), "{name}: {}", run.summary());
        let key = if mode == "none" { default_key(&stage) } else { Some(stage.target().key_arn.clone()) };
        assert!(key.is_some(), "{name}: there is no default key");
        // The image has an ephemeral and a NoDevice entry too.
        let expected: Vec<(String, Option<String>)> =
            ["/dev/sdf", "/dev/sdg", "/dev/xvda"].map(|device| (device.to_owned(), key.clone())).into();
        assert_eq!(reported_volumes(&run), expected, "{name}");
        assert_eq!(volumes(&stage), if keep { expected } else { Vec::new() }, "{name}");
        assert_eq!(run.report()["targets"][0]["instanceStays"], keep, "{name}");
        let instances = &run.after[TARGET]["ec2"][REGION]["instances"];
        let running: Vec<&Value> = instances.as_object().into_iter().flat_map(|map| map.values()).collect();
        assert_eq!(running.len(), usize::from(keep), "{name}: {instances:#}");
        assert!(running.iter().all(|instance| instance["state"] == "running"), "{name}: {instances:#}");
        let copies = ec2(&mut stage.local.sandbox.world(), TARGET).images.len();
        assert_eq!(copies, usize::from(mode == "copyImage"), "{name}");
    }
    Ok(())
}

/// Launches the shared image as somebody of the target, and says how that ended.
/// EC2 of the target, as whoever has that key.
fn ec2_with(stage: &Stage, key: &AccessKey) -> aws_sdk_ec2::Client {
    let credentials = Credentials::new(&key.id, &key.secret, key.token.clone(), None, "principal");
    let config = root_of(TARGET, &stage.local.sandbox.endpoint())
        .into_builder()
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .build();
    aws_sdk_ec2::Client::new(&config)
}

async fn launch(stage: &Stage, key: &AccessKey) -> Result<String> {
    let ec2 = ec2_with(stage, key);
    let launched = ec2
        .run_instances()
        .image_id(&stage.image.image_id)
        .instance_type(aws_sdk_ec2::types::InstanceType::T3Micro)
        .min_count(1)
        .max_count(1)
        .send()
        .await;
    let id = match launched {
        Ok(launched) => launched.instances()[0].instance_id().unwrap_or_default().to_owned(),
        Err(error) => return Ok(error.code().unwrap_or_default().to_owned()),
    };
    loop {
        let answer = ec2.describe_instances().instance_ids(&id).send().await?;
        let instance = answer.reservations()[0].instances()[0].clone();
        match instance.state().and_then(|state| state.name()) {
            Some(InstanceStateName::Pending) => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
            state => return Ok(state.map(|state| state.as_str().to_owned()).unwrap_or_default()),
        }
    }
}

#[tokio::test]
async fn roles_and_users_can_launch_the_image_once_they_are_principals_of_a_request() -> Result<()> {
    let mut stage = Stage::start(Settings { inline_policies: true, ..Settings::default() }).await?;
    let iam = aws_sdk_iam::Client::new(&root_of(TARGET, &stage.local.sandbox.endpoint()));
    let may_launch = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": ["ec2:RunInstances", "ec2:DescribeInstances"], "Resource": "*" },
    ]})
    .to_string();
    let (role, user) = (stage.target().principal.clone(), user(&stage, "app-user").await?);
    iam.put_role_policy().role_name("app-deployer").policy_name("launch").policy_document(&may_launch).send().await?;
    iam.put_user_policy().user_name("app-user").policy_name("launch").policy_document(&may_launch).send().await?;
    let created = iam.create_access_key().user_name("app-user").send().await?.access_key.ok_or("no key")?;
    let users_key = AccessKey { id: created.access_key_id, secret: created.secret_access_key, token: None };
    let roles_key = issue_session(&mut stage.local.sandbox.world(), &role, "session").ok_or("no role")?;
    stage.keep();
    let keys: Vec<KeyArn> = stage.image.key_arns().into_iter().map(KeyArn::parse).collect::<Result<_, _>>()?;
    let key_access = format!("arn:aws:iam::{TARGET}:policy/AmiShareKeyAccess");
    let inline: BTreeSet<String> = keys.iter().map(inline_policy_name).collect();
    assert_eq!(inline.len(), 2);

    for access in ["attach", "inline"] {
        for principal in [&role, &user] {
            let name = format!("{access}-{}", principal.rsplit('/').next().unwrap_or_default());
            stage.reset();
            let mut request = stage.request(json!({ "principals": [principal] }));
            request["principalAccess"] = json!(access);
            let run = stage.run(&name, &request).await?;
            assert!(run.succeeded(), "{name}: {}", run.summary());
            for (arn, entity, key) in [
                (role.as_str(), &run.after[TARGET]["iam"]["roles"]["app-deployer"], &roles_key),
                (user.as_str(), &run.after[TARGET]["iam"]["users"]["app-user"], &users_key),
            ] {
                let given = |kind| arn == principal && access == kind;
                let attached = if given("attach") { json!([key_access]) } else { json!([]) };
                assert_eq!(entity["attached"], attached, "{name}: {arn}");
                let mut expected = if given("inline") { inline.clone() } else { BTreeSet::new() };
                expected.insert("launch".to_owned());
                let policies = entity["inline"].as_object().ok_or("no inline policies")?;
                assert_eq!(policies.keys().cloned().collect::<BTreeSet<_>>(), expected, "{name}: {arn}");
                let outcome = launch(&stage, key).await?;
                assert_eq!(outcome, if arn == principal { "running" } else { "terminated" }, "{name}: {arn}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_the_targets_owner_stops_allowing_after_the_look_is_taken_back() -> Result<()> {
    let stage = Stage::start(Settings { inline_policies: true, ..Settings::default() }).await?;
    let mut inline = stage.request(json!({}));
    inline["principalAccess"] = json!("inline");
    let deny = json!({ "Statement": [{ "Effect": "Deny", "Action": "iam:PutRolePolicy", "Resource": "*" }] });
    stage.local.sandbox.world().faults.add_hook(Hook {
        when: When::Before,
        matcher: Matcher::action("iam:PutRolePolicy").in_account(TARGET),
        skip: 0,
        calls: vec![RootCall {
            account: TARGET.to_owned(),
            region: REGION.to_owned(),
            service: "iam".to_owned(),
            action: "PutRolePolicy".to_owned(),
            params: json!({
                "RoleName": "AmiShareTarget", "PolicyName": "Lately", "PolicyDocument": deny.to_string()
            }),
        }],
    });
    let run = stage.run("inline", &inline).await?;
    assert_eq!(run.error(), "AccessDenied", "{}", run.summary());
    for said in
        ["GrantPrincipals", TARGET, "iam:PutRolePolicy", "Everything that this execution had added was taken back"]
    {
        assert!(run.cause().contains(said), "the cause does not say {said:?}: {}", run.cause());
    }
    assert!(run.writes().contains(&"ec2:ModifyImageAttribute"), "{:?}", run.writes());
    assert_eq!(run.before[SOURCE], run.after[SOURCE]);
    Ok(())
}

/// How the seeded image is changed; which of its devices are encrypted then, under how many keys;
/// and of how many snapshots it is made.
struct Shape {
    name: &'static str,
    change: fn(&Stage),
    modes: &'static [&'static str],
    encrypted: &'static [&'static str],
    keys: usize,
    snapshots: usize,
}

const DEVICES: [&str; 3] = ["/dev/sdf", "/dev/sdg", "/dev/xvda"];

const SHAPES: [Shape; 3] = [
    Shape {
        name: "unencrypted",
        change: |stage| decrypt(stage, &DEVICES),
        modes: &["none", "atLaunch", "copyImage"],
        encrypted: &[],
        keys: 0,
        snapshots: 3,
    },
    Shape {
        name: "partly-encrypted",
        change: |stage| decrypt(stage, &["/dev/xvda"]),
        modes: &["none", "copyImage"],
        encrypted: &["/dev/sdf", "/dev/sdg"],
        keys: 1,
        snapshots: 3,
    },
    Shape {
        name: "one-snapshot-twice",
        change: share_snapshot,
        modes: &["none", "copyImage"],
        encrypted: &DEVICES,
        keys: 2,
        snapshots: 2,
    },
];

fn decrypt(stage: &Stage, devices: &[&str]) {
    let mut world = stage.local.sandbox.world();
    for volume in stage.image.volumes.iter().filter(|volume| devices.contains(&volume.device)) {
        ec2(&mut world, SOURCE).snapshots.get_mut(&volume.snapshot_id).expect("it was seeded").key = None;
    }
    for device in &mut image_mut(&mut world, &stage.image).devices {
        if let DeviceKind::Ebs(ebs) = &mut device.kind
            && devices.contains(&device.name.as_str())
        {
            ebs.encrypted = false;
        }
    }
}

/// Both data volumes are made of one snapshot.
fn share_snapshot(stage: &Stage) {
    let mut world = stage.local.sandbox.world();
    for device in &mut image_mut(&mut world, &stage.image).devices {
        if let DeviceKind::Ebs(ebs) = &mut device.kind
            && device.name == "/dev/sdg"
        {
            ebs.snapshot_id = Some(stage.image.volumes[1].snapshot_id.clone());
        }
    }
}

#[tokio::test]
async fn images_of_other_shapes_are_shared_as_far_as_they_need_it() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    for shape in SHAPES {
        for &mode in shape.modes {
            let name = format!("{}-{mode}", shape.name);
            stage.reset();
            (shape.change)(&stage);
            let request = stage.request(json!({ "reencrypt": reencrypt(mode), "launch": { "keep": true } }));
            let run = stage.run(&name, &request).await?;
            assert!(run.succeeded(), "{name}: {}", run.summary());
            let changed = &run.report()["changed"];
            assert_eq!(changed["keys"].as_array().map(Vec::len), Some(shape.keys), "{name}: {changed}");
            assert_eq!(changed["principals"].as_array().map(Vec::len), Some(shape.keys.min(1)), "{name}: {changed}");
            let snapshots = if mode == "copyImage" { shape.snapshots } else { 0 };
            assert_eq!(changed["snapshots"].as_array().map(Vec::len), Some(snapshots), "{name}: {changed}");
            let expected: Vec<(String, Option<String>)> = DEVICES
                .into_iter()
                .map(|device| {
                    let key = match mode {
                        "none" => default_key(&stage).filter(|_| shape.encrypted.contains(&device)),
                        _ => Some(stage.target().key_arn.clone()),
                    };
                    (device.to_owned(), key)
                })
                .collect();
            assert_eq!(volumes(&stage), expected, "{name}");
            assert_eq!(reported_volumes(&run), expected, "{name}");
            let again = stage.run(&format!("{name}-again"), &request).await?;
            assert_eq!(again.report()["status"], "alreadyShared", "{name}: {}", again.summary());
            assert_eq!(again.writes(), [""; 0], "{name}");
        }
    }
    Ok(())
}

/// Whoever restores volumes or copies snapshots by itself needs more than a launch permission. An image that was shared
/// without gets only that.
#[tokio::test]
async fn a_target_that_asks_for_snapshots_makes_volumes_of_them_until_they_are_revoked() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let iam = aws_sdk_iam::Client::new(&root_of(TARGET, &stage.local.sandbox.endpoint()));
    let may_make = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": ["ec2:CreateVolume", "ec2:DescribeVolumes"], "Resource": "*" },
    ]});
    let principal = stage.target().principal.clone();
    let policy = iam.put_role_policy().role_name("app-deployer").policy_name("volumes");
    policy.policy_document(may_make.to_string()).send().await?;
    let key = issue_session(&mut stage.local.sandbox.world(), &principal, "session").ok_or("no role")?;
    let made_by = ec2_with(&stage, &key);
    let create = |volume: &seed::Volume| {
        made_by.create_volume().snapshot_id(&volume.snapshot_id).availability_zone(format!("{REGION}a"))
    };
    let before = stage.snapshots();
    let mut request = stage.request(json!({ "principals": [principal] }));
    let run = stage.run("without", &request).await?;
    assert!(run.succeeded() && !run.ended.entered("ShareSnapshots"), "{}", run.summary());
    for volume in &stage.image.volumes {
        assert_eq!(create(volume).send().await.unwrap_err().code(), Some("InvalidSnapshot.NotFound"));
    }

    request["targets"][0]["snapshots"] = json!(true);
    let mut plan = request.clone();
    plan["action"] = json!("plan");
    let planned = stage.run("plan", &plan).await?;
    let planned: BTreeSet<(&str, &str)> = planned.report()["calls"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|call| Some((call["call"].as_str()?, call["parameters"]["snapshotId"].as_str()?)))
        .collect();
    let snapshots: BTreeSet<&str> = stage.image.volumes.iter().map(|volume| volume.snapshot_id.as_str()).collect();
    assert_eq!(planned, snapshots.iter().map(|id| ("ec2:ModifySnapshotAttribute", *id)).collect());
    let run = stage.run("with", &request).await?;
    assert!(run.succeeded(), "{}", run.summary());
    let changed = run.report()["changed"]["snapshots"].as_array().cloned().unwrap_or_default();
    assert_eq!(changed.len(), snapshots.len(), "{}", run.summary());
    for volume in &stage.image.volumes {
        let id = create(volume).send().await?.volume_id.unwrap_or_default();
        let state = loop {
            let made = made_by.describe_volumes().volume_ids(&id).send().await?.volumes.unwrap_or_default();
            match made.first().and_then(|volume| volume.state.clone()) {
                Some(VolumeState::Creating) => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
                state => break state,
            }
        };
        assert_eq!(state, Some(VolumeState::Available), "{}", volume.device);
        ec2(&mut stage.local.sandbox.world(), TARGET).volumes.remove(&id);
    }
    let again = stage.run("again", &request).await?;
    assert_eq!(again.report()["status"], "alreadyShared", "{}", again.summary());
    assert_eq!(again.writes(), [""; 0]);

    let run = Run { before, ..stage.revoke("revoked", json!({})).await? };
    assert_eq!(run.differences(), "");
    Ok(())
}
