//! ResolveImage: looks at the request and at the world, refuses what can never work, and decides
//! what is missing. It changes nothing; every later state changes only what it found missing.

mod image;
mod keys;
mod proofs;
mod targets;

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId},
    request::{Request, RequestedTarget},
    room,
    settings::Settings,
    share::{
        Action, Image, KeyAccess, KeyChange, Mode, Prove, Resolution, SnapshotChange, Source, SourceChanges, Standing,
        Target,
    },
};
use ami_share_record::Record;
use serde::Deserialize;
use serde_json::Value;

use targets::TargetState;

pub const ACTIONS: Actions = Actions {
    source_reader: &[
        "ec2:DescribeImages",
        "ec2:DescribeSnapshots",
        "ec2:DescribeImageAttribute",
        "ec2:DescribeSnapshotAttribute",
        "kms:DescribeKey",
        ami_share_key_policies::GET_KEY_POLICY,
        "kms:ListGrants",
    ],
    target: &targets::ACTIONS,
    launcher: &targets::LAUNCHER_ACTIONS,
    ..Actions::NONE
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    /// Of the execution, from Step Functions' context: its name, ARN and start time.
    pub name: String,
    pub id: String,
    pub start_time: String,
    /// The input of the execution, as it was given.
    pub request: Value,
    /// Whether the state machine makes plans only.
    pub plan_only: bool,
}

/// Reads the request, then the source account, then every target.
///
/// # Errors
/// [`Error::InvalidRequest`], [`Error::SourceNotAllowed`] and [`Error::TargetNotAllowed`] before any account is asked but the one that knows
/// who is in the organization; then everything that stands in the way, as one [`Error::Several`].
#[tracing::instrument(skip_all, fields(execution = %input.name))]
pub async fn resolve_image(hub: &Hub, input: Input) -> Result<Resolution, Error> {
    let execution = ExecutionName::unique(&input.name, &input.id, &input.start_time)
        .map_err(|rule| Error::invalid("name", &input.name, format!("must be {rule}")))?;
    let request = read_request(hub, &input)?;
    check_planned(hub, &input, &request).await?;
    let accounts: Vec<AccountId> = request.targets.iter().map(|target| target.account_id.clone()).collect();
    ami_share_allow_list::check(hub, &execution, &accounts).await?;
    let source = &request.source;
    let config = hub.as_source_reader(&source.account_id, &source.region, &execution, ACTIONS).await?;
    let ec2 = aws_sdk_ec2::Client::new(&config);
    let kms = aws_sdk_kms::Client::new(&config);

    let mut problems = Vec::new();
    let found = image::find(&ec2, source, &request.image_id, &mut problems).await?;
    problems.extend(not_encrypted(hub, &request, &found.image));
    let retiring = hub.source_role(&source.account_id, &source.region);
    let keys = keys::Keys {
        hub,
        execution: &execution,
        kms: &kms,
        source,
        access: request.key_access,
        accounts: &accounts,
        retiring: &retiring,
    };
    let changes = keys.lacking(&found, &mut problems).await?;
    let (key_changes, grant_changes) = match request.key_access {
        KeyAccess::Policy => (changes, vec![]),
        KeyAccess::Grant => (vec![], changes),
    };
    let states = targets::find(hub, &execution, &request, &found.image, &mut problems).await;
    refuse(problems)?;

    let launch_permissions = image::without_launch_permission(&ec2, source, &request.image_id, &accounts).await?;
    let copying: Vec<AccountId> = request
        .targets
        .iter()
        .zip(&states)
        .filter(|(target, state)| target.snapshots || (mode(target) == Mode::CopyImage && state.copy_id.is_none()))
        .map(|(target, _)| target.account_id.clone())
        .collect();
    let snapshot_changes = image::without_snapshot_permission(&ec2, source, &found.image, &copying).await?;
    let lacking = Lacking { key_changes, grant_changes, snapshot_changes, launch_permissions };
    fitting(resolution(&Record::open(hub)?, execution, request, found.image, states, lacking).await?)
}

fn read_request(hub: &Hub, Input { request, plan_only, .. }: &Input) -> Result<Request, Error> {
    let region = hub.region().map_err(|rule| Error::invalid("region", "", rule))?;
    let default_source = Source { account_id: hub.settings.source_account.clone(), region };
    let parse = if *plan_only { Request::parse_plan } else { Request::parse };
    let parsed = parse(request, &default_source);
    // Also of a request that is otherwise wrong: an operator should not meet this one run later.
    let accounts: Vec<AccountId> = request["targets"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|target| AccountId::parse(target["accountId"].as_str()?).ok())
        .collect();
    let source = match &request["source"]["accountId"] {
        Value::Null => Some(default_source.account_id),
        named => named.as_str().and_then(|id| AccountId::parse(id).ok()),
    };
    let Settings { sources, allow_list, .. } = &*hub.settings;
    let of_source = source.and_then(|source| sources.check(&source).err());
    let not_allowed = of_source.into_iter().chain(allow_list.check_listed(&accounts).err());
    match parsed {
        Ok(request) => Error::all_of(not_allowed.collect()).map(|()| request),
        Err(problems) => {
            Err(Error::Several([Error::InvalidRequest(problems)].into_iter().chain(not_allowed).collect()))
        }
    }
}

/// Where shares must be planned, one says which plan it carries out, or is as StartShare has noted it. Whether there is such
/// a plan the state machine knows, which uses it up.
async fn check_planned(hub: &Hub, input: &Input, request: &Request) -> Result<(), Error> {
    if !hub.settings.require_plan || request.action == Action::Plan || request.plan_hash.is_some() {
        return Ok(());
    }
    let is_of_a_profile = Record::open(hub)?.is_noted_start(&input.name, &input.request, hub.now_ms()).await?;
    if is_of_a_profile { Ok(()) } else { Err(Error::PlanRequired { reason: "the request names no plan" }) }
}

/// A volume without a key is open to whoever has the image, so somebody must have said that it may be.
fn not_encrypted(hub: &Hub, request: &Request, image: &Image) -> Option<Error> {
    let remedy = match (request.require_encryption, hub.settings.allow_unencrypted) {
        (false, true) => return None,
        (true, _) => "copy it under a key, or leave requireEncryption out",
        (false, false) => "copy it under a key, or let the hub stack's parameter AllowUnencrypted be true",
    };
    let devices = image.unencrypted();
    (!devices.is_empty()).then(|| Error::ImageNotEncrypted {
        image: image.image_id.clone(),
        account: request.source.account_id.clone(),
        devices,
        remedy,
    })
}

/// What has no room in one execution would end it without a Catch.
fn fitting(mut resolution: Resolution) -> Result<Resolution, Error> {
    if room::longest_cause(&resolution).is_err() {
        // What was seen before is told only where there is room.
        let proofs = resolution.standing.iter_mut().filter_map(|shared| shared.proof.as_mut());
        proofs.for_each(|proof| proof.volumes.clear());
    }
    let excess = match room::longest_cause(&resolution) {
        Ok(most_of_cause) => return Ok(Resolution { most_of_cause, ..resolution }),
        Err(excess) => excess,
    };
    let (targets, volumes) = (resolution.targets.len(), resolution.image.volumes.len());
    let principals: usize = resolution.targets.iter().map(|target| target.principal_changes.len()).sum();
    let found = format!("{targets} targets with {principals} principals, for an image of {volumes} volumes");
    let rule = format!(
        "must be fewer, or have fewer principals: their names are {excess} bytes too long for one execution; use several \
         requests"
    );
    Err(Error::invalid("targets", found, rule))
}

/// A passing fault hides what else may be wrong: it is reported alone, and tried again.
fn refuse(mut problems: Vec<Error>) -> Result<(), Error> {
    match problems.iter().position(|error| matches!(error, Error::Throttled { .. } | Error::Unavailable { .. })) {
        Some(passing) => Err(problems.swap_remove(passing)),
        None => Error::all_of(problems),
    }
}

/// What the accounts lack in the source account.
struct Lacking {
    key_changes: Vec<KeyChange>,
    grant_changes: Vec<KeyChange>,
    snapshot_changes: Vec<SnapshotChange>,
    launch_permissions: Vec<AccountId>,
}

impl Lacking {
    /// Whether the target has everything.
    fn has_nothing_of(&self, target: &Target) -> bool {
        // Statements that are not as they should be concern whoever they name.
        let concerns_all = |change: &KeyChange| change.account_ids.is_empty() || change.repair.is_some();
        !self.key_changes.iter().any(concerns_all)
            && target.source_changes == SourceChanges::default()
            && target.principal_changes.is_empty()
            && (target.mode != Mode::CopyImage || target.copy_id.is_some())
    }

    /// What of it is one account's.
    fn of(&self, account: &AccountId) -> SourceChanges {
        let keys_of = |changes: &[KeyChange]| {
            let changes = changes.iter().filter(|change| change.account_ids.contains(account));
            changes.map(|change| change.key_arn.clone()).collect()
        };
        let snapshots = self.snapshot_changes.iter().filter(|change| change.account_ids.contains(account));
        SourceChanges {
            launch_permission: self.launch_permissions.contains(account),
            snapshot_ids: snapshots.map(|change| change.snapshot_id.clone()).collect(),
            key_arns: keys_of(&self.key_changes),
            grant_key_arns: keys_of(&self.grant_changes),
        }
    }
}

/// What there is to do.
///
/// # Errors
/// What proofs and copies would die of, and whatever DynamoDB answers.
async fn resolution(
    record: &Record,
    execution: ExecutionName,
    request: Request,
    image: Image,
    states: Vec<TargetState>,
    lacking: Lacking,
) -> Result<Resolution, Error> {
    let asked = request.asked();
    let mut targets = Vec::new();
    let mut standing = Vec::new();
    let mut not_makeable = Vec::new();
    for (requested, state) in request.targets.into_iter().zip(states) {
        let target = Target {
            source_changes: lacking.of(&requested.account_id),
            principal_changes: state.principal_changes,
            mode: mode(&requested),
            kms_key_id: state.kms_key_id,
            copy_id: state.copy_id,
            account_id: requested.account_id,
            launch: requested.launch,
        };
        let shared =
            if lacking.has_nothing_of(&target) { shared(record, &image.image_id, &target).await? } else { None };
        if let Some(shared) = shared {
            standing.push(shared);
        } else {
            not_makeable.extend(state.not_makeable);
            targets.push(target);
        }
    }
    Error::all_of(not_makeable)?;
    let Lacking { key_changes, grant_changes, snapshot_changes, launch_permissions } = lacking;
    Ok(Resolution {
        execution,
        source: request.source,
        image,
        key_changes,
        grant_changes,
        snapshot_changes,
        launch_permissions,
        targets,
        already_shared: standing.iter().map(|shared| shared.account_id.clone()).collect(),
        standing,
        key_access: request.key_access,
        principal_access: request.principal_access,
        on_failure: request.on_failure,
        most_of_cause: 0,
        action: request.action,
        asked,
        plan_hash: request.plan_hash,
    })
}

/// What is known of a target that has everything; nothing where it is to be proved.
async fn shared(record: &Record, image: &ImageId, target: &Target) -> Result<Option<Standing>, Error> {
    if target.launch.prove == Prove::Always {
        return Ok(None);
    }
    let (proved_by, proof) = match proofs::last(record, image, target).await? {
        Some(note) => (Some(note.gift.execution), note.proof),
        None if target.launch.prove == Prove::Never => (None, None),
        None => return Ok(None),
    };
    Ok(Some(Standing {
        account_id: target.account_id.clone(),
        image_id: target.copy_id.as_ref().unwrap_or(image).clone(),
        kms_key_id: target.kms_key_id.clone(),
        proved_by,
        proof,
    }))
}

fn mode(target: &RequestedTarget) -> Mode {
    target.reencrypt.as_ref().map(|reencrypt| reencrypt.mode).into()
}

#[cfg(test)]
mod tests {
    use ami_share_core::{
        ids::{InstanceId, KeyArn, PrincipalArn, Region, SnapshotId},
        request::{MAX_PRINCIPALS, MAX_TARGETS},
        share::{EncryptedVolume, Launch, OnFailure, PrincipalAccess, PrincipalChange, Proof, Volume},
    };

    use super::*;

    /// For the most targets, each with the most principals, whose names are so long, and for four keys under
    /// eight volumes. Nothing of it is there yet.
    fn resolution(name: usize, inline: bool) -> Resolution {
        let region = Region::parse("eu-west-1").unwrap();
        let account = |index: usize| AccountId::parse(format!("2{index:011}")).unwrap();
        let key = |index: usize| {
            KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/0123abcd-0123-abcd-0123-0123abcd{index:04}"))
        };
        let keys: Vec<KeyArn> = (0..4).map(|index| key(index).unwrap()).collect();
        let accounts: Vec<AccountId> = (0..MAX_TARGETS).map(account).collect();
        let change = |key: &KeyArn| KeyChange { key_arn: key.clone(), account_ids: accounts.clone(), repair: None };
        let principal = |account: &AccountId, index: usize| PrincipalChange {
            principal: PrincipalArn::parse(format!("arn:aws:iam::{account}:role/{index:0name$}")).unwrap(),
            key_arns: if inline { keys.clone() } else { vec![] },
        };
        let target = |account: &AccountId| Target {
            account_id: account.clone(),
            principal_changes: (0..=MAX_PRINCIPALS).map(|index| principal(account, index)).collect(),
            source_changes: SourceChanges {
                launch_permission: true,
                snapshot_ids: vec![],
                key_arns: keys.clone(),
                grant_key_arns: vec![],
            },
            mode: Mode::None,
            kms_key_id: None,
            copy_id: None,
            launch: Launch::default(),
        };
        let volume = |index: usize| Volume {
            device_name: format!("/dev/xvd{index}"),
            snapshot_id: SnapshotId::parse(format!("snap-0123456789abcde{index:02}")).unwrap(),
            key_arn: Some(keys[index % 4].clone()),
        };
        Resolution {
            execution: ExecutionName::parse("nightly-0123abcd").unwrap(),
            source: Source { account_id: AccountId::parse("111111111111").unwrap(), region },
            image: Image {
                image_id: ImageId::parse("ami-0123456789abcdef0").unwrap(),
                name: "web".to_owned(),
                architecture: "x86_64".to_owned(),
                volumes: (0..8).map(volume).collect(),
                empty_volumes: vec![],
            },
            key_changes: keys.iter().map(change).collect(),
            grant_changes: vec![],
            snapshot_changes: vec![],
            launch_permissions: accounts.clone(),
            targets: accounts.iter().map(target).collect(),
            already_shared: vec![],
            standing: vec![],
            key_access: KeyAccess::Policy,
            principal_access: if inline { PrincipalAccess::Inline } else { PrincipalAccess::Attach },
            on_failure: OnFailure::Undo,
            most_of_cause: 0,
            action: Action::Apply,
            asked: "0".repeat(64),
            plan_hash: None,
        }
    }

    #[test]
    fn what_would_end_an_execution_without_a_catch_is_refused() {
        for (name, inline) in [(64, false), (8, true)] {
            let error = fitting(resolution(name, inline)).unwrap_err();
            assert_eq!(error.name(), "InvalidRequest");
            let text = error.to_string();
            assert!(text.contains("50 targets with 1050 principals, for an image of 8 volumes"), "{text}");
        }
        let mut fewer = resolution(64, false);
        fewer.targets.truncate(25);
        assert!(fitting(fewer).is_ok());
    }

    #[test]
    fn what_was_seen_by_earlier_proofs_keeps_nobody_from_what_is_missing() {
        let volume = || EncryptedVolume {
            device_name: "/dev/xvda".to_owned(),
            volume_id: "vol-0123456789abcdef0".to_owned(),
            key_arn: Some(KeyArn::parse("arn:aws:kms:eu-west-1:222222222222:key/own").unwrap()),
        };
        let mut resolution = resolution(64, false);
        let has_it = resolution.targets.split_off(25).into_iter();
        resolution.standing = has_it
            .map(|target| Standing {
                account_id: target.account_id,
                image_id: resolution.image.image_id.clone(),
                kms_key_id: None,
                proved_by: Some(resolution.execution.clone()),
                proof: Some(Proof {
                    at: "2026-01-01T00:00:00.000Z".to_owned(),
                    instance_id: InstanceId::parse("i-0123456789abcdef0").unwrap(),
                    instance_stays: false,
                    volumes: (0..20).map(|_| volume()).collect(),
                }),
            })
            .collect();
        let volumes = |resolution: &Resolution| -> usize {
            let proofs = resolution.standing.iter().filter_map(|shared| shared.proof.as_ref());
            proofs.map(|proof| proof.volumes.len()).sum()
        };
        let mut few = resolution.clone();
        few.standing.truncate(1);
        assert_eq!(volumes(&fitting(few).unwrap()), 20);
        let fitted = fitting(resolution).unwrap();
        assert_eq!((fitted.standing.len(), volumes(&fitted)), (25, 0));
    }
}
