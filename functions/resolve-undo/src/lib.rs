//! ResolveUndo: looks which of the changes that are to be taken back others have come to need. It changes
//! nothing in any account; the undos after it take back only what it leaves.
//!
//! Keys and principals are shared between images, and the same image may be shared with the same target
//! twice at once. Another execution may have found there what this one added, or missed it too and added the
//! same, and have relied on it.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{AccountId, ExecutionName, ImageId, KeyArn},
    share::{Image, Kept, KeyChange, SnapshotChange, Source, Target},
};
use ami_share_launchable as launchable;
use ami_share_record::{Gift, Record};
use aws_smithy_types::date_time::{DateTime, Format};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

pub const ACTIONS: Actions =
    Actions { source: &[launchable::DESCRIBE_IMAGES, launchable::DESCRIBE_SNAPSHOTS], target: &[], launcher: &[] };

/// How many targets' notes are read at a time.
const CONCURRENCY: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// When the execution began, in ISO 8601, from Step Functions' context.
    pub begun: String,
    pub source: Source,
    /// The image whose share is taken back.
    pub image: Image,
    pub targets: Vec<Target>,
    pub key_changes: Vec<KeyChange>,
    pub grant_changes: Vec<KeyChange>,
    pub snapshot_changes: Vec<SnapshotChange>,
    pub launch_permissions: Vec<AccountId>,
}

/// What is to be taken back: the input's lists, without what others need.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Output {
    pub targets: Vec<Target>,
    pub key_changes: Vec<KeyChange>,
    pub grant_changes: Vec<KeyChange>,
    pub snapshot_changes: Vec<SnapshotChange>,
    pub launch_permissions: Vec<AccountId>,
    /// What stays for another image; what stays for this one is noted by the execution that gave it too.
    pub kept: Vec<Kept>,
}

/// For each account, the keys of the source account under other images that it can launch, each with
/// one of these images.
type Needs = BTreeMap<AccountId, BTreeMap<KeyArn, ImageId>>;

/// What other executions gave each account of this image too.
type GivenByOthers = BTreeMap<AccountId, Vec<Gift>>;

/// Gives up what this execution has noted, and looks what others have; then asks the source account for
/// the other images that each target can launch, and for the keys under them: one call for each target that
/// something of its keys or principals would be taken from, and one for each 200 snapshots.
///
/// Each of two executions that fail at once gives up its own first: whoever looks last finds nobody else, and
/// takes back what both gave.
///
/// # Errors
/// [`Error::NotYetVisible`] when an image goes while it is looked at; whatever AWS answers.
#[tracing::instrument(skip_all, fields(execution = %input.execution, image = %input.image.image_id))]
pub async fn resolve_undo(hub: &Hub, input: Input) -> Result<Output, Error> {
    let given = given_by_others(hub, &input).await?;
    let input = without_gifts(input, &given);
    let accounts = concerned(&input);
    if accounts.is_empty() {
        return Ok(narrowed(input, &Needs::new()));
    }
    let source = &input.source;
    let config = hub.as_source(&source.account_id, &source.region, &input.execution, ACTIONS).await?;
    let ec2 = aws_sdk_ec2::Client::new(&config);
    let others = launchable::besides(&ec2, source, &input.image.image_id, accounts).await?;
    let needs = others.into_iter().map(|(account, launchable)| (account, launchable.keys)).collect();
    let output = narrowed(input, &needs);
    for Kept { account_id, image_id } in &output.kept {
        tracing::info!(account = %account_id, needed_by = %image_id, "access is kept");
    }
    Ok(output)
}

async fn given_by_others(hub: &Hub, input: &Input) -> Result<GivenByOthers, Error> {
    let record = &Record::open(hub)?;
    let Input { execution, begun, source, image, .. } = input;
    let time = DateTime::from_str(begun, Format::DateTime).ok().and_then(|time| time.to_millis().ok());
    let begun = time.ok_or_else(|| Error::invalid("begun", begun, "must be a time in ISO 8601"))?;
    stream::iter(&input.targets)
        .map(|target| async move {
            let account = &target.account_id;
            record.give_up(account, &image.image_id, execution).await?;
            let mut gifts = record.given_by_others(account, &image.image_id, execution, begun).await?;
            gifts.retain(|gift| gift.source == *source);
            for gift in &gifts {
                tracing::info!(%account, execution = %gift.execution, "given by another execution too");
            }
            Ok((account.clone(), gifts))
        })
        .buffered(CONCURRENCY)
        .try_collect()
        .await
}

/// What others gave too is theirs to take back.
fn without_gifts(mut input: Input, given: &GivenByOthers) -> Input {
    let gifts = |account: &AccountId| given.get(account).map_or(&[][..], Vec::as_slice);
    let changes = |gift: &Gift| gift.target.source_changes.clone();
    input.launch_permissions.retain(|account| !gifts(account).iter().any(|gift| changes(gift).launch_permission));
    for SnapshotChange { snapshot_id, account_ids } in &mut input.snapshot_changes {
        account_ids
            .retain(|account| !gifts(account).iter().any(|gift| changes(gift).snapshot_ids.contains(snapshot_id)));
    }
    for KeyChange { key_arn, account_ids } in &mut input.key_changes {
        account_ids.retain(|account| !gifts(account).iter().any(|gift| changes(gift).key_arns.contains(key_arn)));
    }
    for KeyChange { key_arn, account_ids } in &mut input.grant_changes {
        account_ids.retain(|account| !gifts(account).iter().any(|gift| changes(gift).grant_key_arns.contains(key_arn)));
    }
    input.snapshot_changes.retain(|change| !change.account_ids.is_empty());
    for changes in [&mut input.key_changes, &mut input.grant_changes] {
        changes.retain(|change| !change.account_ids.is_empty());
    }
    for Target { account_id, principal_changes, .. } in &mut input.targets {
        for given in gifts(account_id).iter().flat_map(|gift| &gift.target.principal_changes) {
            principal_changes.retain_mut(|change| {
                if change.principal != given.principal || change.key_arns.is_empty() != given.key_arns.is_empty() {
                    return true;
                }
                change.key_arns.retain(|key| !given.key_arns.contains(key));
                !change.key_arns.is_empty()
            });
        }
    }
    input
}

/// Accounts that a key's policy or grants would lose, or whose principals would lose a policy.
fn concerned(input: &Input) -> BTreeSet<AccountId> {
    let losing = input.targets.iter().filter(|target| !target.principal_changes.is_empty());
    let named = input.key_changes.iter().chain(&input.grant_changes).flat_map(|change| &change.account_ids);
    losing.map(|target| &target.account_id).chain(named).cloned().collect()
}

fn narrowed(input: Input, needs: &Needs) -> Output {
    let none = BTreeMap::new();
    let needed = |account: &AccountId| needs.get(account).unwrap_or(&none);
    let mut kept: BTreeMap<AccountId, ImageId> = BTreeMap::new();

    let (mut key_changes, mut grant_changes) = (input.key_changes, input.grant_changes);
    for KeyChange { key_arn, account_ids } in key_changes.iter_mut().chain(&mut grant_changes) {
        account_ids.retain(|account| {
            let image = needed(account).get(key_arn);
            kept.extend(image.map(|image| (account.clone(), image.clone())));
            image.is_none()
        });
    }
    for changes in [&mut key_changes, &mut grant_changes] {
        changes.retain(|change| !change.account_ids.is_empty());
    }

    let mut targets = input.targets;
    for Target { account_id, principal_changes, .. } in &mut targets {
        let needed = needed(account_id);
        principal_changes.retain_mut(|change| {
            if change.key_arns.is_empty() {
                // The managed policy is for every key of the source account.
                kept.extend(needed.values().next().map(|image| (account_id.clone(), image.clone())));
                return needed.is_empty();
            }
            change.key_arns.retain(|key| {
                kept.extend(needed.get(key).map(|image| (account_id.clone(), image.clone())));
                !needed.contains_key(key)
            });
            !change.key_arns.is_empty()
        });
    }
    let kept = kept.into_iter().map(|(account_id, image_id)| Kept { account_id, image_id }).collect();
    let Input { snapshot_changes, launch_permissions, .. } = input;
    Output { targets, key_changes, grant_changes, snapshot_changes, launch_permissions, kept }
}

#[cfg(test)]
mod tests {
    use ami_share_core::{
        ids::{PrincipalArn, Region, SnapshotId},
        share::{Launch, Mode, PrincipalAccess, PrincipalChange, SourceChanges},
    };

    use super::*;

    fn account(digit: u8) -> AccountId {
        AccountId::parse(digit.to_string().repeat(12)).unwrap()
    }

    fn key(id: u8) -> KeyArn {
        KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/{id}")).unwrap()
    }

    fn other_image() -> ImageId {
        ImageId::parse("ami-0000000b").unwrap()
    }

    /// Two targets, each with one principal, and two keys that both were added to.
    fn input(inline: &[KeyArn]) -> Input {
        let target = |digit: u8| Target {
            account_id: account(digit),
            principal_changes: vec![PrincipalChange {
                principal: PrincipalArn::parse(format!("arn:aws:iam::{}:role/app", account(digit))).unwrap(),
                key_arns: inline.to_vec(),
            }],
            source_changes: SourceChanges::default(),
            mode: Mode::None,
            kms_key_id: None,
            copy_id: None,
            launch: Launch::default(),
        };
        let change = |id: u8| KeyChange { key_arn: key(id), account_ids: vec![account(2), account(3)] };
        Input {
            execution: ExecutionName::parse("e").unwrap(),
            begun: "2026-11-25T03:00:00.000Z".to_owned(),
            source: Source { account_id: account(1), region: Region::parse("eu-west-1").unwrap() },
            image: Image {
                image_id: ImageId::parse("ami-0000000a").unwrap(),
                name: "web".to_owned(),
                architecture: "x86_64".to_owned(),
                volumes: vec![],
            },
            targets: vec![target(2), target(3)],
            key_changes: vec![change(1), change(2)],
            grant_changes: vec![],
            snapshot_changes: vec![SnapshotChange {
                snapshot_id: SnapshotId::parse("snap-0000000a").unwrap(),
                account_ids: vec![account(2), account(3)],
            }],
            launch_permissions: vec![account(2), account(3)],
        }
    }

    /// Another execution, for the same image, gave account 2 what `changes` says, and its principal the policy.
    fn given(source_changes: SourceChanges, principal_changes: Vec<PrincipalChange>) -> GivenByOthers {
        let Input { source, image, mut targets, .. } = input(&[]);
        let target = Target { source_changes, principal_changes, ..targets.remove(0) };
        let execution = ExecutionName::parse("other").unwrap();
        let gift = Gift { execution, source, image, principal_access: PrincipalAccess::Attach, target };
        GivenByOthers::from([(account(2), vec![gift])])
    }

    fn needs(account_id: AccountId, keys: &[KeyArn]) -> Needs {
        Needs::from([(account_id, keys.iter().map(|key| (key.clone(), other_image())).collect())])
    }

    /// The keys that each account would be taken out of.
    fn losing(output: &Output, account: &AccountId) -> Vec<KeyArn> {
        let changes = output.key_changes.iter().filter(|change| change.account_ids.contains(account));
        changes.map(|change| change.key_arn.clone()).collect()
    }

    #[test]
    fn without_another_image_everything_is_taken_back() {
        let output = narrowed(input(&[]), &Needs::new());
        assert_eq!(output.key_changes, input(&[]).key_changes);
        assert_eq!(output.targets, input(&[]).targets);
        assert_eq!(output.kept, []);
    }

    #[test]
    fn an_account_stays_in_the_policies_of_the_keys_that_another_image_is_under() {
        let output = narrowed(input(&[]), &needs(account(2), &[key(1)]));
        assert_eq!(losing(&output, &account(2)), [key(2)]);
        assert_eq!(losing(&output, &account(3)), [key(1), key(2)]);
        assert_eq!(output.kept, [Kept { account_id: account(2), image_id: other_image() }]);
    }

    #[test]
    fn grants_stay_where_another_image_is_under_the_key_as_statements_do() {
        let mut by_grant = input(&[]);
        by_grant.grant_changes = std::mem::take(&mut by_grant.key_changes);
        assert_eq!(concerned(&by_grant), BTreeSet::from([account(2), account(3)]));
        let output = narrowed(by_grant, &needs(account(2), &[key(1)]));
        assert_eq!(output.key_changes, []);
        assert_eq!(output.grant_changes[0].account_ids, [account(3)]);
        assert_eq!(output.grant_changes[1].account_ids, [account(2), account(3)]);
        assert_eq!(output.kept, [Kept { account_id: account(2), image_id: other_image() }]);
    }

    #[test]
    fn a_key_that_keeps_every_account_is_left_out() {
        let mut needs = needs(account(2), &[key(1)]);
        needs.extend(self::needs(account(3), &[key(1)]));
        let output = narrowed(input(&[]), &needs);
        assert_eq!(output.key_changes.iter().map(|change| &change.key_arn).collect::<Vec<_>>(), [&key(2)]);
        assert_eq!(output.kept.len(), 2);
    }

    #[test]
    fn the_managed_policy_stays_for_whatever_key_another_image_is_under() {
        let output = narrowed(input(&[]), &needs(account(2), &[key(9)]));
        assert_eq!(output.targets[0].principal_changes, []);
        assert_eq!(output.targets[1].principal_changes, input(&[]).targets[1].principal_changes);
        assert_eq!(losing(&output, &account(2)), [key(1), key(2)]);
        assert_eq!(output.kept, [Kept { account_id: account(2), image_id: other_image() }]);
    }

    #[test]
    fn inline_policies_stay_for_the_keys_that_another_image_is_under() {
        let output = narrowed(input(&[key(1), key(2)]), &needs(account(2), &[key(2), key(9)]));
        assert_eq!(output.targets[0].principal_changes[0].key_arns, [key(1)]);
        assert_eq!(output.targets[1].principal_changes[0].key_arns, [key(1), key(2)]);
        let output = narrowed(input(&[key(1)]), &needs(account(2), &[key(1)]));
        assert_eq!(output.targets[0].principal_changes, []);
    }

    #[test]
    fn a_target_is_still_undone_when_it_keeps_its_access() {
        let output = narrowed(input(&[]), &needs(account(2), &[key(1), key(2)]));
        let accounts: Vec<&AccountId> = output.targets.iter().map(|target| &target.account_id).collect();
        assert_eq!(accounts, [&account(2), &account(3)]);
    }

    #[test]
    fn what_another_execution_gave_the_same_target_too_stays() {
        let everything = SourceChanges {
            launch_permission: true,
            snapshot_ids: vec![SnapshotId::parse("snap-0000000a").unwrap()],
            key_arns: vec![key(1), key(2)],
            grant_key_arns: vec![],
        };
        let principals = input(&[]).targets[0].principal_changes.clone();
        let left = without_gifts(input(&[]), &given(everything, principals));
        assert_eq!(left.launch_permissions, [account(3)]);
        assert_eq!(left.snapshot_changes[0].account_ids, [account(3)]);
        assert!(left.key_changes.iter().all(|change| change.account_ids == [account(3)]), "{left:?}");
        assert_eq!((left.targets[0].principal_changes.len(), left.targets[1].principal_changes.len()), (0, 1));
    }

    #[test]
    fn what_only_this_execution_gave_goes() {
        let one_key = SourceChanges { key_arns: vec![key(1)], ..SourceChanges::default() };
        let left = without_gifts(input(&[]), &given(one_key, vec![]));
        assert_eq!(left.launch_permissions, [account(2), account(3)]);
        assert_eq!(left.key_changes[0].account_ids, [account(3)]);
        assert_eq!(left.key_changes[1].account_ids, [account(2), account(3)]);
        assert_eq!(left.targets, input(&[]).targets);
        let nothing = without_gifts(input(&[key(1)]), &GivenByOthers::new());
        assert_eq!(nothing.targets, input(&[key(1)]).targets);
    }

    #[test]
    fn of_inline_policies_those_for_the_same_keys_stay() {
        let mut principals = input(&[key(1)]).targets[0].principal_changes.clone();
        let left = without_gifts(input(&[key(1), key(2)]), &given(SourceChanges::default(), principals.clone()));
        assert_eq!(left.targets[0].principal_changes[0].key_arns, [key(2)]);
        // The managed policy is another thing.
        principals[0].key_arns.clear();
        let left = without_gifts(input(&[key(1)]), &given(SourceChanges::default(), principals));
        assert_eq!(left.targets, input(&[key(1)]).targets);
    }

    #[test]
    fn only_accounts_that_would_lose_something_are_looked_at() {
        let mut input = input(&[]);
        assert_eq!(concerned(&input), BTreeSet::from([account(2), account(3)]));
        input.targets[0].principal_changes.clear();
        input.key_changes.iter_mut().for_each(|change| change.account_ids.retain(|id| *id != account(2)));
        assert_eq!(concerned(&input), BTreeSet::from([account(3)]));
    }
}
