//! What ResolveImage refuses: before anything is changed, under the right name, with every problem
//! named at once.

use ami_share_core::Error;
use ami_share_sandbox::{
    ec2::ImageState,
    kms::{self, KeyState},
};
use ami_share_tests::{REGION, Result, SOURCE, TARGET, clients::root_of, local::Settings, seed};
use serde_json::{Value, json};

use crate::{
    Run, Stage, ec2, image_mut, key_mut,
    key_policies::{old_policy, push_statement},
    merge,
};

/// Neither source nor target of anything.
const STRANGER: &str = "444444444444";

/// What is wrong with the world or the request, and what must be said about it.
struct Case {
    name: &'static str,
    spoil: fn(&Stage),
    /// Of the request's one target.
    target: Value,
    error: &'static str,
    says: Vec<String>,
}

impl Case {
    fn new(name: &'static str, error: &'static str, says: &[&str]) -> Self {
        assert!(Error::NAMES.contains(&error), "{error} is no error of ami-share");
        let says = says.iter().map(|text| (*text).to_owned()).collect();
        Self { name, spoil: |_| {}, target: json!({}), error, says }
    }

    fn spoil(self, spoil: fn(&Stage)) -> Self {
        Self { spoil, ..self }
    }

    fn target(self, target: Value) -> Self {
        Self { target, ..self }
    }
}

/// What is not as it should be of a run that was to be refused.
pub(crate) fn problems(name: &str, run: &Run, error: &str, says: &[String]) -> Vec<String> {
    let mut problems = Vec::new();
    if run.error() != error {
        problems.push(format!("{name}: not {error} but {}", run.summary()));
    }
    let nothing = "Nothing was changed.".to_owned();
    for said in says.iter().chain([&nothing]).filter(|said| !run.cause().contains(said.as_str())) {
        problems.push(format!("{name}: the cause does not say {said:?}: {}", run.cause()));
    }
    if !run.writes().is_empty() {
        problems.push(format!("{name}: calls that write: {:?}", run.writes()));
    }
    if !run.differences().is_empty() {
        problems.push(format!("{name}: {}", run.differences()));
    }
    if run.ended.entered("ShareKey") {
        problems.push(format!("{name}: went on after ResolveImage: {:?}", run.ended.states));
    }
    problems
}

fn image_state(stage: &Stage, state: ImageState) {
    image_mut(&mut stage.local.sandbox.world(), &stage.image).state = state;
}

/// Puts the snapshot under the root volume under another key.
fn root_key(stage: &Stage, key_arn: &str) {
    let mut world = stage.local.sandbox.world();
    let snapshot = &stage.image.volumes[0].snapshot_id;
    ec2(&mut world, SOURCE).snapshots.get_mut(snapshot).expect("it was seeded").key = Some(key_arn.to_owned());
}

fn source_key_state(stage: &Stage, index: usize, state: KeyState) {
    key_mut(&mut stage.local.sandbox.world(), stage.image.key_arns()[index]).state = state;
}

fn own_key_state(stage: &Stage, state: KeyState) {
    key_mut(&mut stage.local.sandbox.world(), &stage.target().key_arn).state = state;
}

fn cases(stage: &Stage) -> Vec<Case> {
    let image = stage.image.image_id.as_str();
    let keys = stage.image.key_arns();
    let own_key = |mode: &str, key: &str| json!({ "reencrypt": { "mode": mode, "kmsKeyId": key } });
    let not_available = |name, state| Case::new(name, "ImageNotAvailable", &[image, SOURCE, state]);
    vec![
        Case::new("image-missing", "ImageNotFound", &[image, SOURCE, REGION]).spoil(|stage| {
            ec2(&mut stage.local.sandbox.world(), SOURCE).images.remove(&stage.image.image_id);
        }),
        not_available("image-pending", "pending").spoil(|stage| image_state(stage, ImageState::Pending)),
        not_available("image-failed", "failed").spoil(|stage| image_state(stage, ImageState::Failed)),
        not_available("image-disabled", "disabled").spoil(|stage| image_state(stage, ImageState::Disabled)),
        Case::new("image-instance-store", "ImageNotShareable", &[image, "instance-store"])
            .spoil(|stage| image_mut(&mut stage.local.sandbox.world(), &stage.image).ebs_backed = false),
        Case::new("image-marketplace", "ImageNotShareable", &[image, "product codes", "abc123", "def456"]).spoil(
            |stage| {
                image_mut(&mut stage.local.sandbox.world(), &stage.image).product_codes =
                    vec!["abc123".to_owned(), "def456".to_owned()];
            },
        ),
        Case::new(
            "key-aws-managed",
            "KeyNotShareable",
            &["AWS-managed", "(it encrypts /dev/xvda)", "copy the image under a customer-managed key", "ec2:CopyImage"],
        )
        .spoil(|stage| {
            let key = kms::ebs_default_key(&mut stage.local.sandbox.world(), SOURCE, REGION);
            root_key(stage, &key);
        }),
        Case::new("key-disabled", "KeyNotUsable", &[keys[0], "Disabled", "/dev/xvda", "kms:EnableKey"])
            .spoil(|stage| source_key_state(stage, 0, KeyState::Disabled)),
        Case::new(
            "key-pending-deletion",
            "KeyNotUsable",
            &[keys[1], "PendingDeletion", "/dev/sdf, /dev/sdg", "kms:CancelKeyDeletion"],
        )
        .spoil(|stage| source_key_state(stage, 1, KeyState::PendingDeletion)),
        Case::new("key-pending-import", "KeyNotUsable", &[keys[0], "PendingImport", "kms:ImportKeyMaterial"])
            .spoil(|stage| source_key_state(stage, 0, KeyState::PendingImport)),
        Case::new("key-unavailable", "KeyNotUsable", &[keys[0], "Unavailable", "kms:ConnectCustomKeyStore"])
            .spoil(|stage| source_key_state(stage, 0, KeyState::Unavailable)),
        Case::new("key-pending-replica-deletion", "KeyNotUsable", &[keys[0], "PendingReplicaDeletion", "replica keys"])
            .spoil(|stage| source_key_state(stage, 0, KeyState::PendingReplicaDeletion)),
        Case::new("key-missing", "KeyNotUsable", &["does not exist", "/dev/xvda"])
            .spoil(|stage| root_key(stage, &format!("arn:aws:kms:{REGION}:{SOURCE}:key/gone"))),
        Case::new("key-of-another-account", "KeyNotShareable", &[STRANGER, "/dev/xvda", "share the copy"])
            .spoil(|stage| root_key(stage, &format!("arn:aws:kms:{REGION}:{STRANGER}:key/theirs"))),
        Case::new("principal-missing", "PrincipalNotFound", &["role/app-nobody", "user/app-nobody", TARGET]).target(
            json!({ "principals": [
                format!("arn:aws:iam::{TARGET}:role/app-nobody"), format!("arn:aws:iam::{TARGET}:user/app-nobody")
            ]}),
        ),
        Case::new("own-key-missing", "KeyNotUsable", &["alias/nothing", TARGET, "does not exist"])
            .target(own_key("atLaunch", "alias/nothing")),
        Case::new("own-key-disabled", "KeyNotUsable", &["alias/app-volumes", TARGET, "Disabled"])
            .spoil(|stage| own_key_state(stage, KeyState::Disabled))
            .target(own_key("copyImage", "alias/app-volumes")),
        Case::new("own-key-pending-deletion", "KeyNotUsable", &["alias/app-volumes", TARGET, "PendingDeletion"])
            .spoil(|stage| own_key_state(stage, KeyState::PendingDeletion))
            .target(own_key("atLaunch", "alias/app-volumes")),
        Case::new("source-without-role", "AccessDenied", &[SOURCE, "AmiShareSourceReader", "accounts/source.yaml"])
            .spoil(|stage| {
                stage.local.sandbox.world().account_mut(SOURCE).iam.roles.remove("AmiShareSourceReader");
            }),
        Case::new("target-without-role", "AccessDenied", &[TARGET, "AmiShareTarget", "accounts/target.yaml"]).spoil(
            |stage| {
                let mut world = stage.local.sandbox.world();
                let roles = &mut world.account_mut(TARGET).iam.roles;
                roles.remove("AmiShareTarget");
                roles.remove("AmiShareLauncher");
            },
        ),
        Case::new(
            "several-at-once",
            "ImageNotAvailable",
            &[
                "disabled",
                "product codes",
                keys[0],
                "Disabled",
                keys[1],
                "has no Resource",
                "app-nobody",
                "alias/nothing",
            ],
        )
        .spoil(|stage| {
            image_state(stage, ImageState::Disabled);
            image_mut(&mut stage.local.sandbox.world(), &stage.image).product_codes = vec!["abc123".to_owned()];
            source_key_state(stage, 1, KeyState::Disabled);
            old_policy(stage, |document| {
                push_statement(document, json!({ "Effect": "Deny", "Principal": "*", "Action": "kms:Encrypt" }));
            });
        })
        .target(json!({
            "principals": [format!("arn:aws:iam::{TARGET}:role/app-nobody")],
            "reencrypt": { "mode": "copyImage", "kmsKeyId": "alias/nothing" },
        })),
    ]
}

#[tokio::test]
async fn what_can_never_work_is_refused_before_anything_is_changed() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let mut found = Vec::new();
    for case in cases(&stage) {
        stage.reset();
        (case.spoil)(&stage);
        let run = stage.run(case.name, &stage.request(case.target)).await?;
        found.extend(problems(case.name, &run, case.error, &case.says));
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}

#[tokio::test]
async fn an_image_of_somebody_else_is_refused_though_it_is_shared_with_the_source() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let sandbox = stage.local.sandbox.endpoint();
    let theirs = seed::image(&sandbox, STRANGER, "their-image").await?;
    let ec2 = aws_sdk_ec2::Client::new(&root_of(STRANGER, &sandbox));
    let permission = aws_sdk_ec2::types::LaunchPermission::builder().user_id(SOURCE).build();
    let change = aws_sdk_ec2::types::LaunchPermissionModifications::builder().add(permission).build();
    ec2.modify_image_attribute().image_id(&theirs.image_id).launch_permission(change).send().await?;
    for with_snapshots in [false, true] {
        let name = format!("snapshots-{with_snapshots}");
        let mut says = vec![theirs.image_id.clone(), format!("it belongs to account {STRANGER}")];
        if with_snapshots {
            for volume in &theirs.volumes {
                ec2.modify_snapshot_attribute()
                    .snapshot_id(&volume.snapshot_id)
                    .attribute(aws_sdk_ec2::types::SnapshotAttributeName::CreateVolumePermission)
                    .operation_type(aws_sdk_ec2::types::OperationType::Add)
                    .user_ids(SOURCE)
                    .send()
                    .await?;
            }
            // Then its keys can be seen too.
            says.extend(theirs.key_arns().into_iter().map(str::to_owned));
        }
        let mut request = stage.request(json!({}));
        request["imageId"] = json!(theirs.image_id);
        let run = stage.run(&name, &request).await?;
        let found = problems(&name, &run, "ImageNotShareable", &says);
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
    Ok(())
}

/// These do not even ask an account.
#[tokio::test]
async fn a_wrong_request_is_refused_without_a_call_to_any_account() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let image = stage.image.image_id.as_str();
    let all_wrong = json!({
        "imageId": "ami-xyz",
        "imgId": image,
        "source": { "accountId": "11111111111", "region": "Ireland" },
        "targets": [
            { "accountId": "22222222222", "launch": { "keep": "yes", "instanceType": "big", "subnetId": "here" } },
            { "accountId": TARGET, "reencrypt": { "mode": "afterLaunch", "kmsKeyId": "alias/app-volumes" } },
            { "accountId": STRANGER, "principals": [format!("arn:aws:iam::{TARGET}:role/app-deployer")] },
        ],
        "onFailure": "ignore",
        "principalAccess": "any",
    });
    let with = |changes: Value| {
        let mut request = stage.request(json!({}));
        merge(&mut request, changes);
        request
    };
    let with_target = |fields: Value| stage.request(fields);
    let rows: Vec<(&str, Value, &str, Vec<&str>)> = vec![
        ("empty", json!({}), "InvalidRequest", vec!["imageId: is required", "targets: is required"]),
        ("no-object", json!([]), "InvalidRequest", vec!["must be an object"]),
        ("unknown-field", with(json!({ "images": [] })), "InvalidRequest", vec!["images = []", "is not a field here"]),
        (
            "eleven-digits",
            json!({ "imageId": image, "targets": [{ "accountId": "22222222222" }] }),
            "InvalidRequest",
            vec!["targets[0].accountId = \"22222222222\"", "12 digits"],
        ),
        (
            "number",
            json!({ "imageId": image, "targets": [{ "accountId": 222_222_222_222_u64 }] }),
            "InvalidRequest",
            vec!["targets[0].accountId = 222222222222", "must be a string"],
        ),
        (
            "after-launch",
            with_target(json!({ "reencrypt": { "mode": "afterLaunch", "kmsKeyId": "alias/app-volumes" } })),
            "InvalidRequest",
            vec!["targets[0].reencrypt.mode", "afterLaunch is not supported by this version"],
        ),
        (
            "audit",
            with(json!({ "action": "audit" })),
            "InvalidRequest",
            vec!["action = \"audit\"", "audit is a state machine of its own, audit-shares"],
        ),
        (
            "plan-of-a-plan",
            with(json!({ "action": "plan", "planHash": "0".repeat(64) })),
            "InvalidRequest",
            vec!["planHash: goes with action apply only"],
        ),
        (
            "no-hash",
            with(json!({ "planHash": "latest" })),
            "InvalidRequest",
            vec!["planHash = \"latest\"", "64 hexadecimal digits"],
        ),
        (
            "plan-with-a-target-not-allowed",
            json!({ "action": "plan", "imageId": image, "targets": [{ "accountId": STRANGER }] }),
            "TargetNotAllowed",
            vec![STRANGER, "AllowedTargetAccounts"],
        ),
        (
            "principal-of-another-account",
            with_target(json!({ "principals": [format!("arn:aws:iam::{STRANGER}:role/app-deployer")] })),
            "InvalidRequest",
            vec!["targets[0].principals[0]", STRANGER, "must be in its target account"],
        ),
        (
            "source-as-target",
            json!({ "imageId": image, "targets": [{ "accountId": SOURCE }] }),
            "InvalidRequest",
            vec![SOURCE, "must not be the source account"],
        ),
        (
            "target-not-allowed",
            json!({ "imageId": image, "targets": [
                { "accountId": STRANGER }, { "accountId": TARGET }, { "accountId": "555555555555" }
            ]}),
            "TargetNotAllowed",
            vec![STRANGER, "555555555555", "AllowedTargetAccounts"],
        ),
        (
            "everything",
            all_wrong,
            "InvalidRequest",
            vec![
                "imageId = \"ami-xyz\"",
                "imgId = ",
                "source.accountId = \"11111111111\"",
                "source.region = \"Ireland\"",
                "targets[0].accountId = \"22222222222\"",
                "targets[0].launch.keep = \"yes\"",
                "targets[0].launch.instanceType = \"big\"",
                "targets[0].launch.subnetId = \"here\"",
                "targets[1].reencrypt.mode = \"afterLaunch\"",
                "targets[2].principals[0] = ",
                "onFailure = \"ignore\"",
                "principalAccess = \"any\"",
                "allow-list",
                STRANGER,
            ],
        ),
    ];
    let mut found = Vec::new();
    for (name, request, error, says) in rows {
        let run = stage.run(name, &request).await?;
        let says: Vec<String> = says.into_iter().map(str::to_owned).collect();
        found.extend(problems(name, &run, error, &says));
        if !run.journal.is_empty() {
            found.push(format!("{name}: calls were made: {:?}", run.journal));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    Ok(())
}
