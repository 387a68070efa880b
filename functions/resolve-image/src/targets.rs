//! The targets: whether their principals and keys are there, what they lack, and whether their owners let ami-share give
//! it.

mod foreseen;

use std::collections::BTreeMap;

use ami_share_core::{
    Error, Hub,
    arns::policy_arn,
    aws,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId, KeyArn, PrincipalArn, PrincipalKind},
    principal_policy::inline_policy_name,
    request::{Request, RequestedTarget},
    share::{Image, KEY_TAG, PrincipalAccess, PrincipalChange, Prove, ReencryptMode, SOURCE_IMAGE_TAG},
};
use ami_share_default_key::{BY_DEFAULT, DEFAULT_KEY};
use ami_share_key_grants::LIST_TAGS;
use ami_share_key_policies::{GET_KEY_POLICY, state};
use aws_config::SdkConfig;
use aws_sdk_ec2::types::{self, Filter, ImageState};
use aws_sdk_iam::error::ProvideErrorMetadata;
use aws_sdk_kms::types::KeySpec;
use futures_util::{StreamExt, stream};

/// What is asked in a target by the role that manages principals.
pub(crate) const ACTIONS: [&str; 12] = [
    "iam:ListAttachedRolePolicies",
    "iam:ListAttachedUserPolicies",
    "iam:ListRolePolicies",
    "iam:ListUserPolicies",
    DEFAULT_KEY,
    BY_DEFAULT,
    foreseen::SIMULATE,
    foreseen::ENTITIES,
    foreseen::SUMMARY,
    "kms:DescribeKey",
    GET_KEY_POLICY,
    LIST_TAGS,
];

/// By the one that copies and launches.
pub(crate) const LAUNCHER_ACTIONS: [&str; 2] = ["ec2:DescribeImages", DESCRIBE_SNAPSHOTS];

const DESCRIBE_SNAPSHOTS: &str = "ec2:DescribeSnapshots";

/// How many targets are asked at a time.
const CONCURRENCY: usize = 16;

/// What is there in a target.
#[derive(Debug, Default)]
pub(crate) struct TargetState {
    pub(crate) principal_changes: Vec<PrincipalChange>,
    /// The ARN of the request's key.
    pub(crate) kms_key_id: Option<KeyArn>,
    pub(crate) copy_id: Option<ImageId>,
    /// Why its proof or its copy would die.
    pub(crate) not_makeable: Option<Error>,
}

/// The state of each of the request's targets, in their order; what stands in the way goes to
/// `problems`.
pub(crate) async fn find(
    hub: &Hub,
    execution: &ExecutionName,
    request: &Request,
    image: &Image,
    problems: &mut Vec<Error>,
) -> Vec<TargetState> {
    let found: Vec<Result<TargetState, Vec<Error>>> = stream::iter(&request.targets)
        .map(|target| find_one(hub, execution, request, target, image))
        .buffered(CONCURRENCY)
        .collect()
        .await;
    found
        .into_iter()
        .map(|state| {
            state.unwrap_or_else(|errors| {
                problems.extend(errors);
                TargetState::default()
            })
        })
        .collect()
}

async fn find_one(
    hub: &Hub,
    execution: &ExecutionName,
    request: &Request,
    target: &RequestedTarget,
    image: &Image,
) -> Result<TargetState, Vec<Error>> {
    let account = &target.account_id;
    let region = &request.source.region;
    let actions = Actions { target: &ACTIONS, launcher: &LAUNCHER_ACTIONS, ..Actions::NONE };
    let config = hub.as_target(account, region, execution, actions).await.map_err(|error| vec![error])?;
    let iam = aws_sdk_iam::Client::new(&config);
    let mut errors = Vec::new();
    let mut state = TargetState::default();

    // Also where it is asked nothing: that it cannot be assumed is better known before anything is given.
    let copies = target.reencrypt.as_ref().is_some_and(|reencrypt| reencrypt.mode == ReencryptMode::CopyImage);
    let proves = target.launch.prove != Prove::Never;
    let mut as_launcher = None;
    if copies || proves {
        match hub.as_launcher(account, region, execution, actions).await {
            Ok(config) => as_launcher = Some(config),
            Err(error) => errors.push(error),
        }
    }
    let launcher = hub.launcher(account, region).map_err(|error| vec![error])?;
    let mut principals = vec![launcher.clone()];
    principals.extend(target.principals.iter().filter(|principal| **principal != launcher).cloned());
    let keys = image.keys();
    let mut attached = BTreeMap::new();
    for principal in principals {
        if let Some(error) = foreseen::own_role(hub, request, &principal) {
            errors.push(error);
            continue;
        }
        let lacking = match request.principal_access {
            PrincipalAccess::Attach => attached_policies(&iam, &principal).await.map(|policies| {
                let policy = policy_arn(account, region, &hub.settings.key_access_policy);
                let lacks = !policies.contains(&policy);
                attached.insert(principal.clone(), policies.len());
                lacks.then(Vec::new)
            }),
            PrincipalAccess::Inline => lacks_inline(&iam, &principal, &keys).await,
        };
        match lacking {
            Ok(Some(key_arns)) if !keys.is_empty() => {
                state.principal_changes.push(PrincipalChange { principal, key_arns });
            }
            Ok(_) => {}
            Err(error) => errors.push(foreseen::named(error, &principal, &launcher)),
        }
    }
    match foreseen::refusals(hub, &iam, request, &launcher, &state.principal_changes).await {
        // Who may not change them is not let ask more, either.
        Ok(refusals) if refusals.is_empty() && request.principal_access == PrincipalAccess::Attach => {
            let policy = policy_arn(account, region, &hub.settings.key_access_policy);
            let lacking = state.principal_changes.iter().map(|change| &change.principal);
            let lacking = lacking.map(|principal| (principal, attached[principal])).collect::<Vec<_>>();
            errors.extend(foreseen::not_attachable(&iam, account, &policy, &lacking).await);
        }
        Ok(refusals) => errors.extend(refusals),
        Err(error) => errors.push(error),
    }
    if let Some(reencrypt) = &target.reencrypt {
        let kms = aws_sdk_kms::Client::new(&config);
        match find_key(&kms, account, &reencrypt.kms_key_id).await {
            Ok(key_arn) => {
                if let Some(config) = as_launcher.as_ref().filter(|_| copies) {
                    let ec2 = aws_sdk_ec2::Client::new(config);
                    match find_copy(&ec2, account, &image.image_id, &key_arn).await {
                        Ok(copy_id) => state.copy_id = copy_id,
                        Err(error) => errors.push(error),
                    }
                }
                let is_to_copy = copies && state.copy_id.is_none();
                if is_to_copy || proves {
                    let problems = ami_share_explain::own_key_problems(&config, &launcher, &key_arn).await;
                    state.not_makeable = not_usable(&launcher, &key_arn, &problems, "reencrypt.kmsKeyId");
                }
                state.kms_key_id = Some(key_arn);
            }
            Err(error) => errors.push(error),
        }
    } else if proves {
        match default_key_problem(&config, &launcher, image).await {
            Ok(problem) => state.not_makeable = problem,
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(state) } else { Err(errors) }
}

/// The ARNs of the managed policies that `principal` has.
async fn attached_policies(iam: &aws_sdk_iam::Client, principal: &PrincipalArn) -> Result<Vec<String>, Error> {
    let mut arns = Vec::new();
    match principal.kind() {
        PrincipalKind::Role => {
            let mut pages =
                iam.list_attached_role_policies().role_name(principal.name()).into_paginator().items().send();
            while let Some(found) = pages.next().await {
                let found = found.map_err(|error| failure(principal, "iam:ListAttachedRolePolicies", error))?;
                arns.extend(found.policy_arn().map(str::to_owned));
            }
        }
        PrincipalKind::User => {
            let mut pages =
                iam.list_attached_user_policies().user_name(principal.name()).into_paginator().items().send();
            while let Some(found) = pages.next().await {
                let found = found.map_err(|error| failure(principal, "iam:ListAttachedUserPolicies", error))?;
                arns.extend(found.policy_arn().map(str::to_owned));
            }
        }
    }
    Ok(arns)
}

/// The keys that `principal` has no inline policy of ours for; nothing when it has them all.
async fn lacks_inline(
    iam: &aws_sdk_iam::Client,
    principal: &PrincipalArn,
    keys: &[KeyArn],
) -> Result<Option<Vec<KeyArn>>, Error> {
    let mut names = Vec::new();
    match principal.kind() {
        PrincipalKind::Role => {
            let mut pages = iam.list_role_policies().role_name(principal.name()).into_paginator().items().send();
            while let Some(name) = pages.next().await {
                names.push(name.map_err(|error| failure(principal, "iam:ListRolePolicies", error))?);
            }
        }
        PrincipalKind::User => {
            let mut pages = iam.list_user_policies().user_name(principal.name()).into_paginator().items().send();
            while let Some(name) = pages.next().await {
                names.push(name.map_err(|error| failure(principal, "iam:ListUserPolicies", error))?);
            }
        }
    }
    let lacking: Vec<KeyArn> = keys.iter().filter(|key| !names.contains(&inline_policy_name(key))).cloned().collect();
    Ok((!lacking.is_empty()).then_some(lacking))
}

fn failure<E>(
    principal: &PrincipalArn,
    call: &'static str,
    error: aws_sdk_iam::error::SdkError<E, aws_sdk_iam::config::http::HttpResponse>,
) -> Error
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let account = principal.account_id();
    match error.code() {
        Some("NoSuchEntity") => Error::PrincipalNotFound {
            principal: principal.clone(),
            account,
            call,
            remedy: "create it, or take it out of the request",
        },
        _ => aws::failure(&account, call, error),
    }
}

/// The ARN of a key that EBS can use: in a state for it, and symmetric ("Amazon EBS encryption", EBS user
/// guide).
async fn find_key(kms: &aws_sdk_kms::Client, account: &AccountId, key_id: &str) -> Result<KeyArn, Error> {
    let not_usable = |reason: String| Error::KeyNotUsable { key: key_id.to_owned(), reason };
    let metadata = match kms.describe_key().key_id(key_id).send().await {
        Ok(described) => described.key_metadata,
        Err(error) if error.code() == Some("NotFoundException") => {
            return Err(not_usable(format!("it does not exist in account {account} (kms:DescribeKey)")));
        }
        Err(error) => return Err(aws::failure(account, "kms:DescribeKey", error)),
    };
    if let Some(problem) = metadata.as_ref().and_then(|key| key.key_state()).and_then(state::problem) {
        return Err(not_usable(format!("in account {account}, {problem}")));
    }
    let spec = metadata.as_ref().and_then(|key| key.key_spec());
    if let Some(spec) = spec.filter(|spec| **spec != KeySpec::SymmetricDefault) {
        return Err(not_usable(format!("it is {spec} in account {account}; EBS takes symmetric encryption keys only")));
    }
    metadata
        .and_then(|key| KeyArn::parse(key.arn?).ok())
        .ok_or_else(|| not_usable(format!("kms:DescribeKey gives no ARN for it in account {account}")))
}

/// What keeps the launcher from making volumes under the account's default EBS key, where those of the image come under
/// it.
async fn default_key_problem(
    config: &SdkConfig,
    launcher: &PrincipalArn,
    image: &Image,
) -> Result<Option<Error>, Error> {
    let account = launcher.account_id();
    let default = ami_share_default_key::find(&aws_sdk_ec2::Client::new(config), &account, image).await?;
    let Some(key) = default.key else { return Ok(None) };
    let problems = ami_share_explain::own_key_problems(config, launcher, &key).await;
    let which = "the account's default EBS key, which volumes come under that no reencrypt.kmsKeyId puts elsewhere";
    Ok(not_usable(launcher, &key, &problems, which))
}

/// The error for a key that the launcher may not make volumes under.
fn not_usable(launcher: &PrincipalArn, key: &KeyArn, problems: &[String], which: &str) -> Option<Error> {
    (!problems.is_empty()).then(|| Error::KeyNotUsable {
        key: key.to_string(),
        reason: format!("{launcher} may not make volumes under it, and it is {which}; {}", problems.join("; ")),
    })
}

/// A copy of the image that an earlier execution made, all of whose snapshots are under the key. Tags only find it: whoever
/// may tag images can say anything by them. Copies of that copy, and images of its instances, may have inherited them, and
/// are somebody else's.
async fn find_copy(
    ec2: &aws_sdk_ec2::Client,
    account: &AccountId,
    image: &ImageId,
    key_arn: &KeyArn,
) -> Result<Option<ImageId>, Error> {
    let filter = |name: String, value: &str| Filter::builder().name(name).values(value).build();
    let answer = ec2
        .describe_images()
        .owners("self")
        .filters(filter(format!("tag:{SOURCE_IMAGE_TAG}"), image.as_str()))
        .filters(filter(format!("tag:{KEY_TAG}"), key_arn.as_str()))
        .filters(filter("state".to_owned(), ImageState::Available.as_str()))
        .send()
        .await
        .map_err(|error| aws::failure(account, "ec2:DescribeImages", error))?;
    let is_copy =
        |copy: &&types::Image| copy.source_image_id() == Some(image.as_str()) && copy.source_instance_id().is_none();
    let mut copies: Vec<&types::Image> = answer.images().iter().filter(is_copy).collect();
    copies.sort_by_key(|copy| copy.image_id());
    for copy in copies {
        if is_under(ec2, account, copy, key_arn).await? {
            return Ok(copy.image_id().and_then(|id| ImageId::parse(id).ok()));
        }
    }
    Ok(None)
}

/// Whether the copy has snapshots, and all of them are encrypted with the key.
async fn is_under(
    ec2: &aws_sdk_ec2::Client,
    account: &AccountId,
    copy: &types::Image,
    key: &KeyArn,
) -> Result<bool, Error> {
    let ebs = copy.block_device_mappings().iter().filter_map(|mapping| mapping.ebs());
    let ids = ebs.filter_map(|ebs| ebs.snapshot_id()).filter(|id| !id.is_empty());
    let snapshots: Vec<String> = ids.map(str::to_owned).collect();
    if snapshots.is_empty() {
        return Ok(false);
    }
    match ec2.describe_snapshots().set_snapshot_ids(Some(snapshots)).send().await {
        Ok(answer) => Ok(answer.snapshots().iter().all(|snapshot| snapshot.kms_key_id() == Some(key.as_str()))),
        // Nobody can launch it any more.
        Err(error) if error.code() == Some("InvalidSnapshot.NotFound") => Ok(false),
        Err(error) => Err(aws::failure(account, DESCRIBE_SNAPSHOTS, error)),
    }
}
