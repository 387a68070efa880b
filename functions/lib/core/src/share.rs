//! What the states of share-ami pass to each other.
//!
//! All of it is camelCase JSON; fields with their default value are left out, so that a request
//! with many targets stays well under Step Functions' 262,144 bytes of payload.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{AccountId, ExecutionName, ImageId, InstanceId, KeyArn, PlanHash, PrincipalArn, Region, SnapshotId};

/// The tag that names the execution that made a resource.
pub const EXECUTION_TAG: &str = "ami-share:execution";
/// The tag that names the image that a copy or an instance was made from.
pub const SOURCE_IMAGE_TAG: &str = "ami-share:source-image";
/// The tag that names the key that a copy was asked to be under, by its ARN.
pub const KEY_TAG: &str = "ami-share:kms-key";

/// What was put right of our statements in a policy, so that it can be put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Repair {
    /// The `kms:ViaService` of `AmiShareUse`, where there was such a statement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub using: Option<String>,
    /// That of `AmiShareCreateGrant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granting: Option<String>,
    /// A digest of our statements before it.
    pub before: String,
}

/// Where the image is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// The image's owner.
    pub account_id: AccountId,
    /// The image's, and that of all keys and copies.
    pub region: Region,
}

/// An image, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceImage {
    /// Where it is, or was.
    pub source: Source,
    /// It may be gone.
    pub image_id: ImageId,
}

/// The image, and the EBS volumes that an instance of it will have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// In the source account.
    pub image_id: ImageId,
    /// As its owner has named it: a copy's name begins with it.
    pub name: String,
    /// As EC2 spells it: `x86_64`, `arm64`.
    pub architecture: String,
    /// Its EBS volumes that have a snapshot; ephemeral and other devices are left out.
    pub volumes: Vec<Volume>,
    /// The device names of its EBS volumes that start empty. There is nothing of them to share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub empty_volumes: Vec<String>,
}

/// An EBS entry of the image's block device mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// Such as `/dev/xvda`.
    pub device_name: String,
    /// In the source account.
    pub snapshot_id: SnapshotId,
    /// The key that the snapshot is encrypted with; nothing when it is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_arn: Option<KeyArn>,
}

impl Image {
    /// The device names of volumes whose snapshots are not encrypted.
    pub fn unencrypted(&self) -> Vec<String> {
        let plain = self.volumes.iter().filter(|volume| volume.key_arn.is_none());
        plain.map(|volume| volume.device_name.clone()).collect()
    }

    /// Every distinct key under the volumes.
    pub fn keys(&self) -> Vec<KeyArn> {
        let mut keys: Vec<KeyArn> = self.volumes.iter().filter_map(|volume| volume.key_arn.clone()).collect();
        keys.sort();
        keys.dedup();
        keys
    }
}

/// How a target comes to own its encryption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reencrypt {
    /// When volumes come under the key.
    pub mode: ReencryptMode,
    /// The target's key: key id, key ARN, alias name or alias ARN.
    pub kms_key_id: String,
}

/// When volumes come under the target's own key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ReencryptMode {
    /// The volumes of the launched instance are put under the key, by the launch itself.
    AtLaunch,
    /// The target makes a copy of the image under the key, and launches the copy.
    CopyImage,
}

/// The proof: an instance launched in the target from the shared image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Launch {
    /// Nothing: `t3.micro`, or `t4g.micro` for an arm64 image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// Nothing: the account's default VPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet_id: Option<String>,
    /// Empty: the VPC's default group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub security_group_ids: Vec<String>,
    /// Of the instance and its volumes, besides our own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Whether the instance stays after the proof.
    #[serde(default, skip_serializing_if = "is_default")]
    pub keep: bool,
    /// Whether a proof is launched where nothing was changed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prove: Prove,
}

/// When to launch a proof.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Prove {
    /// When this execution changes something for the target.
    #[default]
    OnChange,
    /// Also when everything was shared already.
    Always,
    /// Not at all: nobody can say then that the target can launch it.
    Never,
}

/// How a principal in the target gets at the source account's keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PrincipalAccess {
    /// The target's own managed policy is attached. ami-share needs no right to write policies.
    #[default]
    Attach,
    /// An inline policy for each key. Whoever may write policies may become anybody: the target's
    /// owner must have allowed it in `accounts/target.yaml`.
    Inline,
}

/// What an execution is to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Share, and prove it.
    #[default]
    Apply,
    /// Say what would be changed, and change nothing.
    Plan,
}

/// How a target gets at the source account's keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KeyAccess {
    /// Statements in the keys' policies.
    #[default]
    Policy,
    /// A grant on each key for each target: for keys whose policy nobody may touch, or has no room.
    Grant,
}

/// What becomes of the share when a target's part of it fails. The execution fails all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnFailure {
    /// What this execution added for the targets that failed is taken back; the others stay shared.
    #[default]
    Undo,
    /// Everything that this execution added is taken back, for every target.
    UndoAll,
    /// It stays, for a look at what is wrong.
    Keep,
}

/// What ResolveImage found, and what is left to do: the input of every later state.
///
/// The lists of changes are made before anything is changed, and hold only what was not there: an
/// undo takes back exactly what they name, even when the reply of the forward step was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resolution {
    /// What sessions, tags and client tokens are made of.
    pub execution: ExecutionName,
    /// Where the image is.
    pub source: Source,
    /// As EC2 described it before any change.
    pub image: Image,
    /// Keys whose policy lacks something of ours.
    pub key_changes: Vec<KeyChange>,
    /// Keys that accounts lack a grant of ours on.
    #[serde(default)]
    pub grant_changes: Vec<KeyChange>,
    /// Snapshots that an account is to copy from and may not yet.
    pub snapshot_changes: Vec<SnapshotChange>,
    /// Accounts without launch permission.
    pub launch_permissions: Vec<AccountId>,
    /// Targets that something is to be done for.
    pub targets: Vec<Target>,
    /// Targets that have everything: nothing is done for them.
    pub already_shared: Vec<AccountId>,
    /// What is known of each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub standing: Vec<Standing>,
    /// How the targets get to use the keys.
    #[serde(default, skip_serializing_if = "is_default")]
    pub key_access: KeyAccess,
    /// How principals get to use the keys.
    pub principal_access: PrincipalAccess,
    /// What becomes of the share when a target fails.
    pub on_failure: OnFailure,
    /// How many characters of the cause of each target that fails are handed on, so that there is room for all of them.
    #[serde(default)]
    pub most_of_cause: usize,
    /// Whether changes are made, or only said.
    #[serde(default, skip_serializing_if = "is_default")]
    pub action: Action,
    /// A hash of what the request asks for: the same for two plans of one request.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub asked: String,
    /// The plan that this is to be, and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<PlanHash>,
}

/// What is known of a target that has everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Standing {
    /// Never the source account.
    pub account_id: AccountId,
    /// What it launches: the image, or its own copy.
    pub image_id: ImageId,
    /// The key that it re-encrypts with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key_id: Option<KeyArn>,
    /// The last execution that proved that; nothing where no proof was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proved_by: Option<ExecutionName>,
    /// What it noted; nothing where an earlier version did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// A proof, as the target's last state notes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Proof {
    /// ISO 8601, from Step Functions' context.
    pub at: String,
    /// What ran.
    pub instance_id: InstanceId,
    /// Whether it was to stay.
    pub instance_stays: bool,
    /// As they were.
    pub volumes: Vec<EncryptedVolume>,
}

/// One key, and accounts that lack its use or lose it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyChange {
    /// In the source account.
    pub key_arn: KeyArn,
    /// Accounts that our statements do not name yet, or that have no grant of ours. Empty when only
    /// the statements themselves are not as they should be.
    pub account_ids: Vec<AccountId>,
    /// What of the statements is not as it should be, and is put right or put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
}

/// One snapshot, and accounts that lack its copy permission or lose it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotChange {
    /// In the source account.
    pub snapshot_id: SnapshotId,
    /// Account ids, as ec2:ModifySnapshotAttribute takes them.
    pub account_ids: Vec<AccountId>,
}

impl SnapshotChange {
    /// The most accounts of one call (EC2 API reference, ModifySnapshotAttribute).
    const BATCH: usize = 500;

    /// The accounts of each call.
    pub fn batches(&self) -> impl Iterator<Item = &[AccountId]> {
        self.account_ids.chunks(Self::BATCH)
    }
}

/// One target that something is to be done for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// Never the source account.
    pub account_id: AccountId,
    /// Principals without access to the keys: the launcher and the request's own.
    pub principal_changes: Vec<PrincipalChange>,
    /// What it lacks in the source account.
    #[serde(default, skip_serializing_if = "is_default")]
    pub source_changes: SourceChanges,
    /// `none`, `atLaunch` or `copyImage`: what the Choice state looks at.
    pub mode: Mode,
    /// The ARN of the key to re-encrypt with; nothing when the mode is `none`. Not an alias: an
    /// alias may be another key tomorrow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key_id: Option<KeyArn>,
    /// A copy that an earlier execution made, under the same key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_id: Option<ImageId>,
    /// How the proof is launched.
    pub launch: Launch,
}

impl Target {
    /// Of the proof: the smallest type of the image's architecture, where the request names none.
    pub fn instance_type(&self, image: &Image) -> &str {
        let default = if image.architecture == "arm64" { "t4g.micro" } else { "t3.micro" };
        self.launch.instance_type.as_deref().unwrap_or(default)
    }
}

/// A target's part of the changes in the source account, which are made for all targets together.
/// With the target's own changes it is what ami-share gave it: what revoke-share may take back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceChanges {
    /// Whether it cannot launch the image yet.
    #[serde(default, skip_serializing_if = "is_default")]
    pub launch_permission: bool,
    /// Snapshots that it cannot copy yet, where it is to copy them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshot_ids: Vec<SnapshotId>,
    /// Keys whose policies do not name it yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_arns: Vec<KeyArn>,
    /// Keys that it has no grant of ours on yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grant_key_arns: Vec<KeyArn>,
}

impl SourceChanges {
    /// Whether it has no access to `key`, in the way that was asked for.
    pub fn lacks_key(&self, key: &KeyArn) -> bool {
        self.key_arns.contains(key) || self.grant_key_arns.contains(key)
    }
}

/// [`ReencryptMode`], or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Volumes stay under the keys that EC2 gives them.
    #[default]
    None,
    /// Each launch puts its volumes under the key.
    AtLaunch,
    /// A copy of the image is made under the key, and launched.
    CopyImage,
}

impl From<Option<ReencryptMode>> for Mode {
    fn from(mode: Option<ReencryptMode>) -> Self {
        match mode {
            None => Self::None,
            Some(ReencryptMode::AtLaunch) => Self::AtLaunch,
            Some(ReencryptMode::CopyImage) => Self::CopyImage,
        }
    }
}

/// One principal, and what it lacks or loses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrincipalChange {
    /// A user or role of the target.
    pub principal: PrincipalArn,
    /// Keys that it lacks an inline policy for; empty where the managed policy is to be attached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_arns: Vec<KeyArn>,
}

/// A target that keeps access to keys when an execution is taken back, as another image needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kept {
    /// A target that something is not taken back from.
    pub account_id: AccountId,
    /// One of the images that the target can launch with that access.
    pub image_id: ImageId,
}

/// A volume of the proof, and the key that it is really encrypted with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncryptedVolume {
    /// Such as `/dev/xvda`.
    pub device_name: String,
    /// `vol-` and hexadecimal digits.
    pub volume_id: String,
    /// As ec2:DescribeVolumes says; nothing for a volume that is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_arn: Option<KeyArn>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn key(n: u8) -> KeyArn {
        KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/{n}")).unwrap()
    }

    fn target() -> Value {
        json!({ "accountId": "222222222222", "principalChanges": [], "mode": "none", "launch": {} })
    }

    fn image(architecture: &str, keys: &[Option<u8>]) -> Image {
        let volume = |key_number: &Option<u8>| {
            let mut volume = json!({ "deviceName": "/dev/xvda", "snapshotId": "snap-0123abcd" });
            if let Some(n) = key_number {
                volume["keyArn"] = json!(key(*n));
            }
            volume
        };
        let volumes: Vec<Value> = keys.iter().map(volume).collect();
        let image =
            json!({ "imageId": "ami-0123abcd", "name": "web", "architecture": architecture, "volumes": volumes });
        serde_json::from_value(image).unwrap()
    }

    #[test]
    fn an_image_has_each_key_once() {
        assert_eq!(image("x86_64", &[Some(2), None, Some(1), Some(2)]).keys(), [key(1), key(2)]);
        assert!(image("x86_64", &[None]).keys().is_empty());
    }

    #[test]
    fn a_proof_is_of_the_smallest_type_unless_one_is_named() {
        let mut asked = target();
        let proof = |asked: &Value, architecture: &str| {
            let target: Target = serde_json::from_value(asked.clone()).unwrap();
            target.instance_type(&image(architecture, &[])).to_owned()
        };
        assert_eq!((proof(&asked, "x86_64"), proof(&asked, "arm64")), ("t3.micro".to_owned(), "t4g.micro".to_owned()));
        asked["launch"]["instanceType"] = json!("m7i.large");
        assert_eq!(proof(&asked, "arm64"), "m7i.large");
    }

    #[test]
    fn a_key_is_lacked_in_one_way_or_the_other() {
        let by_policy = SourceChanges { key_arns: vec![key(1)], ..SourceChanges::default() };
        let by_grant = SourceChanges { grant_key_arns: vec![key(1)], ..SourceChanges::default() };
        for changes in [by_policy, by_grant] {
            assert!(changes.lacks_key(&key(1)) && !changes.lacks_key(&key(2)));
        }
    }

    #[test]
    fn a_snapshot_is_changed_for_500_accounts_at_a_time() {
        let account_ids = (0..501).map(|n| AccountId::parse(format!("2{n:011}")).unwrap()).collect();
        let change = SnapshotChange { snapshot_id: SnapshotId::parse("snap-0123abcd").unwrap(), account_ids };
        assert_eq!(change.batches().map(<[AccountId]>::len).collect::<Vec<_>>(), [500, 1]);
        assert_eq!(change.batches().flatten().collect::<Vec<_>>(), change.account_ids.iter().collect::<Vec<_>>());
    }

    #[test]
    fn each_way_to_reencrypt_is_a_mode() {
        assert_eq!(Mode::from(None), Mode::None);
        assert_eq!(Mode::from(Some(ReencryptMode::AtLaunch)), Mode::AtLaunch);
        assert_eq!(Mode::from(Some(ReencryptMode::CopyImage)), Mode::CopyImage);
    }

    /// Payloads and notes are bounded, and most targets have little.
    #[test]
    fn what_is_as_usual_is_left_out_and_what_is_not_is_said() {
        let read = |target: &Value| json!(serde_json::from_value::<Target>(target.clone()).unwrap());
        assert_eq!(read(&target()), target());
        let mut more = target();
        more["sourceChanges"] = json!({ "launchPermission": true });
        more["launch"] = json!({ "keep": true });
        assert_eq!(read(&more), more);
    }
}
