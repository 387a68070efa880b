//! Which key a new volume or snapshot gets, and what its maker must be allowed
//! to do on the keys.

use super::Request;
use crate::auth::{Caller, Context};
use crate::kms;
use crate::wire::{ApiError, Params, Reply, Xml};
use crate::world::World;

/// KMS actions that a launch or copy takes on the key that the source is
/// encrypted with. The last one is a conservative assumption: EBS's own list of
/// permissions has it, and field reports name it, but not on which key.
const ON_SOURCE_KEY: [&str; 5] =
    ["kms:DescribeKey", "kms:CreateGrant", "kms:Decrypt", "kms:ReEncryptFrom", "kms:GenerateDataKeyWithoutPlaintext"];

/// KMS actions that it takes on the key that the result is encrypted with.
const ON_DESTINATION_KEY: [&str; 5] =
    ["kms:DescribeKey", "kms:CreateGrant", "kms:Decrypt", "kms:ReEncryptTo", "kms:GenerateDataKeyWithoutPlaintext"];

/// KMS actions for a volume that starts empty or from plain data.
const ON_KEY_OF_PLAIN_DATA: [&str; 4] =
    ["kms:DescribeKey", "kms:CreateGrant", "kms:Decrypt", "kms:GenerateDataKeyWithoutPlaintext"];

/// KMS actions for starting an instance with a volume that exists.
const ON_KEY_OF_VOLUME: [&str; 2] = ["kms:CreateGrant", "kms:Decrypt"];

/// How a new volume or snapshot is to be encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Encryption {
    Plain,
    /// Under the key of this ARN.
    Key(String),
    /// Under something that is no key. EBS finds out only after the call.
    NoSuchKey(String),
}

impl Encryption {
    /// What DescribeVolumes and DescribeSnapshots say.
    pub(super) fn key(&self) -> Option<&str> {
        match self {
            Self::Plain => None,
            Self::Key(arn) => Some(arn),
            Self::NoSuchKey(given) => Some(given),
        }
    }
}

/// What the caller said about encryption.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    pub(super) encrypted: Option<bool>,
    pub(super) kms_key_id: Option<String>,
}

impl Wish {
    /// From parameters `Encrypted` and `KmsKeyId`.
    pub(super) fn parse(params: &Params) -> Result<Self, ApiError> {
        let wish = Self {
            encrypted: params.bool("Encrypted"),
            kms_key_id: params.get("KmsKeyId").filter(|id| !id.is_empty()).map(String::from),
        };
        if wish.kms_key_id.is_some() && wish.encrypted != Some(true) {
            return Err(ApiError::bad_request(
                "InvalidParameterDependency",
                "The parameter KmsKeyId requires the parameter Encrypted to be set.",
            ));
        }
        Ok(wish)
    }
}

/// Where the data of a new volume or snapshot comes from.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    /// The key's ARN, if it is encrypted.
    pub(super) key: Option<String>,
    /// Whether the snapshot belongs to another account.
    pub(super) foreign: bool,
    /// The snapshot's region, when that is another one.
    pub(super) other_region: Option<String>,
}

/// How a new volume or snapshot of the caller is encrypted, by the rules of EBS:
/// a key that is asked for; else the key of an own encrypted source; else, for
/// someone else's encrypted source or wherever encryption is asked for or the
/// account's default, the account's default key ("Use encryption with EBS-backed AMIs", EC2 user guide; "Amazon EBS
/// encryption examples", EBS user guide).
pub(super) fn decide(world: &mut World, caller: &Caller, region: &str, wish: &Wish, source: &Source) -> Encryption {
    if let Some(key_id) = &wish.kms_key_id {
        return match kms::resolve_key(world, &caller.account, region, key_id) {
            Some(arn) => Encryption::Key(arn),
            None => Encryption::NoSuchKey(key_id.clone()),
        };
    }
    if let Some(key) = &source.key
        && !source.foreign
        && source.other_region.is_none()
    {
        return Encryption::Key(key.clone());
    }
    let by_default = world
        .account(&caller.account)
        .and_then(|account| account.ec2.get(region))
        .is_some_and(|ec2| ec2.encryption_by_default);
    if source.key.is_some() || wish.encrypted == Some(true) || by_default {
        return default_key(world, &caller.account, region);
    }
    Encryption::Plain
}

/// The account's default EBS key: its own choice, else `alias/aws/ebs`.
fn default_key(world: &mut World, account: &str, region: &str) -> Encryption {
    let chosen =
        world.account(account).and_then(|account| account.ec2.get(region)).and_then(|ec2| ec2.default_key.clone());
    match chosen {
        None => Encryption::Key(kms::ebs_default_key(world, account, region)),
        Some(chosen) => match kms::resolve_key(world, account, region, &chosen) {
            Some(arn) => Encryption::Key(arn),
            None => Encryption::NoSuchKey(chosen),
        },
    }
}

/// Why EBS cannot use a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyFault {
    /// The caller lacks a permission, or there is no such key.
    NotAccessible,
    /// The key is not Enabled.
    WrongState,
}

/// Whether the caller may have EBS turn `source` into `destination`, the resource
/// of id `made`. Every use is evaluated as EC2's on the caller's behalf.
pub(super) fn check_conversion(
    world: &mut World,
    caller: &Caller,
    region: &str,
    source: &Source,
    destination: &Encryption,
    made: &str,
) -> Result<(), KeyFault> {
    let source_region = source.other_region.as_deref().unwrap_or(region);
    if let Some(key) = &source.key {
        check_key(world, caller, source_region, key, &ON_SOURCE_KEY, made)?;
    }
    match destination {
        Encryption::Plain => Ok(()),
        Encryption::NoSuchKey(_) => Err(KeyFault::NotAccessible),
        Encryption::Key(key) if source.key.is_none() => {
            check_key(world, caller, region, key, &ON_KEY_OF_PLAIN_DATA, made)
        }
        Encryption::Key(key) => check_key(world, caller, region, key, &ON_DESTINATION_KEY, made),
    }
}

/// Whether the caller may have EBS use a volume's key for an instance.
pub(super) fn check_volume(
    world: &mut World,
    caller: &Caller,
    region: &str,
    key: &str,
    volume_id: &str,
) -> Result<(), KeyFault> {
    check_key(world, caller, region, key, &ON_KEY_OF_VOLUME, volume_id)
}

fn check_key(
    world: &mut World,
    caller: &Caller,
    region: &str,
    key: &str,
    actions: &[&str],
    made: &str,
) -> Result<(), KeyFault> {
    for action in actions {
        let mut context = Context::new();
        context.insert("kms:EncryptionContext:aws:ebs:id".to_owned(), vec![made.to_owned()]);
        context.insert("kms:EncryptionContextKeys".to_owned(), vec!["aws:ebs:id".to_owned()]);
        kms::use_as_aws_service(world, caller, key, action, region, &context).map_err(|_| KeyFault::NotAccessible)?;
    }
    match kms::key_facts(world, key) {
        None => Err(KeyFault::NotAccessible),
        Some(facts) if facts.state.is_usable() => Ok(()),
        Some(_) => Err(KeyFault::WrongState),
    }
}

pub(super) fn get_default_key(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    request.end_dry_run()?;
    let chosen = request.ec2().and_then(|ec2| ec2.default_key.clone());
    Ok(key_reply(chosen.as_deref()))
}

pub(super) fn modify_default_key(request: &mut Request<'_>) -> Reply {
    let key_id = request.params.require("KmsKeyId")?;
    request.authorize("*", &Context::new())?;
    request.end_dry_run()?;
    let (account, region) = (&request.caller.account, request.region);
    // Like AWS, takes what names no key too; whoever uses it finds out.
    let key = kms::resolve_key(request.world, account, region, key_id).unwrap_or_else(|| key_id.to_owned());
    set_default_key(request, Some(key.clone()));
    Ok(key_reply(Some(&key)))
}

pub(super) fn reset_default_key(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    request.end_dry_run()?;
    set_default_key(request, None);
    Ok(key_reply(None))
}

fn set_default_key(request: &mut Request<'_>, key: Option<String>) {
    let ec2 = request.ec2_mut();
    if ec2.default_key != key {
        ec2.default_key = key;
        request.world.note_change();
    }
}

fn key_reply(chosen: Option<&str>) -> String {
    let mut xml = Xml::new();
    xml.elem("kmsKeyId", chosen.unwrap_or("alias/aws/ebs"));
    xml.finish()
}

pub(super) fn get_by_default(request: &mut Request<'_>) -> Reply {
    request.authorize("*", &Context::new())?;
    request.end_dry_run()?;
    let enabled = request.ec2().is_some_and(|ec2| ec2.encryption_by_default);
    let mut xml = Xml::new();
    xml.elem("ebsEncryptionByDefault", enabled);
    Ok(xml.finish())
}

pub(super) fn set_by_default(request: &mut Request<'_>, enabled: bool) -> Reply {
    request.authorize("*", &Context::new())?;
    request.end_dry_run()?;
    let ec2 = request.ec2_mut();
    if ec2.encryption_by_default != enabled {
        ec2.encryption_by_default = enabled;
        request.world.note_change();
    }
    let mut xml = Xml::new();
    xml.elem("ebsEncryptionByDefault", enabled);
    Ok(xml.finish())
}
