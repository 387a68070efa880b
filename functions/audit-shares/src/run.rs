//! One run: looks at the next images, keys and notes, as many as there are calls for.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, Hub,
    ids::{AccountId, ExecutionName, ImageId, KeyArn, SnapshotId},
    request::AuditRequest,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::{
    allowed::Refused,
    grantee::Grantee,
    images::{self, Inventory, Position},
    keys::{self, KeyAccess},
    notes::Notes,
    pace::CONCURRENCY,
    public_access,
    report::{Finding, Kind, Report, written},
    shares::{self, Seen},
};

/// About how many calls one run makes for images and keys one by one. EC2 lets an account make 20 of a kind a
/// second ("Request throttling for the Amazon EC2 API"), so it takes less than a minute.
const CALLS: usize = 800;

/// Room for what is handed on about keys that are half looked at, in bytes of JSON.
const OPEN_BYTES: usize = 40_000;

/// What no audit looks at.
const NEVER_LOOKED_AT: &str = "conditions and Deny statements of key policies, constraints of grants, service and \
                               resource control policies, and everything in the target accounts";

/// What one run hands on to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Progress {
    stage: Stage,
    /// Keys under images that were looked at and under others that were not yet.
    open: BTreeMap<KeyArn, OpenKey>,
    report: Report,
}

/// What is looked at next, after what was looked at last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Stage {
    Images(Option<Position>),
    /// Keys that no image is under.
    Keys(Option<KeyArn>),
    /// Notes of images that are gone.
    Notes,
    Done,
}

/// Who can launch an image that is under a key, as far as images were looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OpenKey {
    /// Those that ami-share gave the use of the key: nobody asks about the others.
    launching: BTreeSet<AccountId>,
    /// Whether that cannot be told: an image is shared with an organization or unit, whose members nobody asks for, or
    /// with everybody; or there was no room to hand it on.
    unknown: bool,
}

impl Progress {
    pub(crate) fn new(request: &AuditRequest) -> Self {
        let mut report = Report::new(request);
        report.not_looked_at(NEVER_LOOKED_AT.to_owned());
        Self { stage: Stage::Images(None), open: BTreeMap::new(), report }
    }

    /// The report, if there is nothing left to look at; otherwise what is handed on, as far as there is room.
    #[expect(clippy::result_large_err, reason = "neither is an error")]
    pub(crate) fn finished(mut self) -> Result<Report, Self> {
        if self.stage == Stage::Done {
            self.report.finish();
            return Ok(self.report);
        }
        while written(&self.open) > OPEN_BYTES {
            let Some(largest) = self.open.values_mut().max_by_key(|key| key.launching.len()) else { break };
            *largest = OpenKey { launching: BTreeSet::new(), unknown: true };
        }
        Err(self)
    }
}

/// The source account, and who asks.
pub(crate) struct World<'a> {
    pub(crate) hub: &'a Hub,
    pub(crate) execution: &'a ExecutionName,
    pub(crate) request: &'a AuditRequest,
    /// Whom grants of ours name as the one who may retire them.
    pub(crate) source_role: String,
    pub(crate) ec2: aws_sdk_ec2::Client,
    pub(crate) kms: aws_sdk_kms::Client,
    pub(crate) inventory: Inventory,
}

/// Two calls, for the whole audit. A setting that may not be read keeps nothing else from being looked at.
pub(crate) async fn look_at_public_access(world: &World<'_>, progress: &mut Progress) -> Result<(), Error> {
    let (ec2, source) = (&world.ec2, &world.request.source);
    let report = &mut progress.report;
    let mut readable = |read| match read {
        Err(error @ Error::AccessDenied { .. }) => {
            report.not_looked_at(format!("block public access ({error})"));
            Ok(None)
        }
        read => read,
    };
    let images = readable(public_access::of_images(ec2, source).await)?;
    let snapshots = readable(public_access::of_snapshots(ec2, source).await)?;
    (report.public_images, report.public_snapshots) = (images, snapshots);
    Ok(())
}

/// Looks at what is next until everything was looked at, or as many calls were made as one run may make.
pub(crate) async fn run(world: &World<'_>, notes: &mut Notes, progress: &mut Progress) -> Result<(), Error> {
    let mut calls = CALLS;
    while calls > 0 {
        let stage = match progress.stage.clone() {
            Stage::Images(after) => look_at_images(world, notes, progress, after, &mut calls).await?,
            Stage::Keys(after) => look_at_keys(world, progress, after, &mut calls).await?,
            Stage::Notes => look_at_notes(world, notes, progress).await?,
            Stage::Done => return Ok(()),
        };
        progress.stage = stage;
    }
    Ok(())
}

async fn look_at_images(
    world: &World<'_>,
    notes: &mut Notes,
    progress: &mut Progress,
    after: Option<Position>,
    calls: &mut usize,
) -> Result<Stage, Error> {
    let only = world.request.image_id.as_ref();
    if let Some(image) = only.filter(|image| !world.inventory.images.contains_key(image)) {
        return look_at_gone_image(world, notes, progress, image).await;
    }
    let order = world.inventory.order(only);
    let next = order.partition_point(|position| after.as_ref().is_some_and(|after| position <= after));
    let (chunk, rest) = world.chunk(&order[next..], calls);
    let relevant: BTreeMap<&ImageId, Vec<&KeyArn>> =
        order.iter().map(|position| (&position.image_id, world.relevant_keys(&position.image_id))).collect();
    let under = |positions: &[Position]| -> BTreeSet<KeyArn> {
        positions.iter().flat_map(|position| &relevant[&position.image_id]).map(|key| (*key).clone()).collect()
    };
    let mut keys = under(chunk);
    keys.extend(progress.open.keys().cloned());
    let access = keys::read(&world.kms, &world.request.source, &world.source_role, keys).await?;
    // Other images under the keys of the one that was asked for matter only to accounts that nothing else explains.
    let siblings = chunk.first().is_some_and(|position| position.sibling);
    let (chunk, rest) = if siblings && explained(progress, &access) { (&[][..], &[][..]) } else { (chunk, rest) };

    let launching = world.launching(chunk).await?;
    let copying = world.copying(chunk).await?;
    notes.load(chunk.iter().filter(|position| !position.sibling).map(|position| &position.image_id)).await?;
    let nobody = BTreeSet::new();
    let mut seen = Vec::new();
    for position in chunk {
        let image_id = &position.image_id;
        let launching = launching.get(image_id).unwrap_or(&nobody);
        let keys = || relevant[image_id].iter().filter_map(|key| access.get_key_value(*key));
        for (key, access) in keys() {
            progress.open.entry(key.clone()).or_default().add(access, launching);
        }
        if !position.sibling {
            let snapshots = world.inventory.own_snapshots(image_id);
            seen.push(Seen {
                image_id,
                name: world.inventory.images.get(image_id).map_or("", |image| &image.name),
                unencrypted: world.inventory.unencrypted(image_id),
                launching,
                snapshots: snapshots.map(|snapshot| (snapshot, copying.get(snapshot).unwrap_or(&nobody))).collect(),
                keys: keys().collect(),
                gifts: notes.of(image_id, &world.request.source),
            });
        }
    }
    report_on(world, progress, &seen, &under(rest), &access).await?;
    tracing::info!(images = seen.len(), "looked at");
    Ok(match (chunk.last(), rest.is_empty(), only) {
        (Some(last), false, _) => Stage::Images(Some(last.clone())),
        (_, _, None) => Stage::Keys(None),
        (_, _, Some(_)) => Stage::Done,
    })
}

/// Whether every account that an open key names can launch an image under it.
fn explained(progress: &Progress, access: &BTreeMap<KeyArn, KeyAccess>) -> bool {
    progress.open.iter().all(|(key, open)| {
        open.unknown || access.get(key).is_none_or(|access| shares::left_over(access, Some(&open.launching)).is_empty())
    })
}

/// Says what was found of these images, and of the open keys that none of the images to come is under.
async fn report_on(
    world: &World<'_>,
    progress: &mut Progress,
    seen: &[Seen<'_>],
    still_open: &BTreeSet<KeyArn>,
    access: &BTreeMap<KeyArn, KeyAccess>,
) -> Result<(), Error> {
    let closed: Vec<(KeyArn, OpenKey)> = progress.open.extract_if(.., |key, _| !still_open.contains(key)).collect();
    let closed: Vec<(&KeyArn, &KeyAccess, OpenKey)> = closed
        .iter()
        // Where the last image under a key went meanwhile, it is one that no image is under.
        .filter(|(key, _)| world.inventory.all_keys().contains(key))
        .filter_map(|(key, open)| Some((key, access.get(key)?, open.clone())))
        .collect();
    let in_question = seen.iter().flat_map(Seen::grantees).filter_map(Grantee::account).cloned();
    let in_question: BTreeSet<AccountId> = in_question
        .chain(closed.iter().flat_map(|(_, access, open)| outsiders(access, Some(&open.launching))))
        .collect();
    let refused = world.refused(&in_question, &mut progress.report).await?;

    let (list, report) = (&world.hub.settings.allow_list, &mut progress.report);
    for seen in seen {
        report.summary.images += 1;
        report.find(seen.findings());
        let findings = refused.findings(list, seen.grantees(), seen.image_id.as_str());
        report.find(findings.into_iter().map(|finding| finding.of_image(seen.image_id)));
    }
    report.add(seen.iter().map(Seen::shares));
    for (key, access, open) in closed {
        report.summary.keys += 1;
        close(world, report, &refused, key, access, Some(open));
    }
    Ok(())
}

/// What is noted of an image is all that can be said of it when it is gone.
async fn look_at_gone_image(
    world: &World<'_>,
    notes: &mut Notes,
    progress: &mut Progress,
    image: &ImageId,
) -> Result<Stage, Error> {
    let source = &world.request.source;
    notes.load([image]).await?;
    let gifts = notes.of(image, source);
    if gifts.is_empty() {
        return Err(Error::ImageNotFound {
            image: image.clone(),
            account: source.account_id.clone(),
            region: source.region.to_string(),
        });
    }
    progress.report.find([shares::note_without_image(image, &gifts)]);
    Ok(Stage::Done)
}

async fn look_at_keys(
    world: &World<'_>,
    progress: &mut Progress,
    after: Option<KeyArn>,
    calls: &mut usize,
) -> Result<Stage, Error> {
    let under_images = world.inventory.all_keys();
    let all = keys::list(&world.kms, &world.request.source).await?;
    let mut keys: Vec<KeyArn> =
        all.into_iter().filter(|key| !under_images.contains(key) && Some(key) > after.as_ref()).collect();
    let left = keys.split_off(keys.len().min(calls.div_ceil(keys::CALLS)));
    *calls = calls.saturating_sub(keys::CALLS * keys.len());
    let next = keys.last().cloned().filter(|_| !left.is_empty());
    let access = keys::read(&world.kms, &world.request.source, &world.source_role, keys).await?;
    let in_question = access.values().flat_map(|access| outsiders(access, None)).collect();
    let refused = world.refused(&in_question, &mut progress.report).await?;
    for (key, access) in &access {
        progress.report.summary.keys += 1;
        close(world, &mut progress.report, &refused, key, access, None);
    }
    Ok(if next.is_some() { Stage::Keys(next) } else { Stage::Notes })
}

async fn look_at_notes(world: &World<'_>, notes: &mut Notes, progress: &mut Progress) -> Result<Stage, Error> {
    let gone: Vec<ImageId> =
        notes.images().filter(|image| !world.inventory.images.contains_key(*image)).cloned().collect();
    notes.load(&gone).await?;
    for image in &gone {
        // Images of other accounts and Regions are not this audit's.
        let gifts = notes.of(image, &world.request.source);
        if !gifts.is_empty() {
            progress.report.find([shares::note_without_image(image, &gifts)]);
        }
    }
    Ok(Stage::Done)
}

/// Accounts that our statements name, or that have a grant of ours, though they can launch no image under the key.
fn outsiders(access: &KeyAccess, launching: Option<&BTreeSet<AccountId>>) -> BTreeSet<AccountId> {
    let half = access.half.iter().filter(|account| launching.is_none_or(|launching| !launching.contains(*account)));
    shares::left_over(access, launching).into_iter().chain(half).cloned().collect()
}

/// Says what was found of a key when every image under it was looked at. `open`: nothing where there is none.
fn close(
    world: &World<'_>,
    report: &mut Report,
    refused: &Refused,
    key: &KeyArn,
    access: &KeyAccess,
    open: Option<OpenKey>,
) {
    if let Some(reason) = &access.not_read {
        match open {
            Some(_) => report.find([Finding::new(Kind::KeyNotRead, vec![], |_| {
                format!("Who may use key {key} is not known: {reason}.")
            })
            .of_key(key)]),
            None => report.not_looked_at(format!("key {key}, which no image is under: {reason}")),
        }
        return;
    }
    if access.untagged {
        report.untagged(key);
    }
    for unknown in &access.unknown {
        report.not_looked_at(unknown.clone());
    }
    for (kind, count) in &access.passed_on {
        *report.summary.grants_of_others.entry(*kind).or_default() += count;
    }
    let outsiders = outsiders(access, open.as_ref().map(|open| &open.launching));
    let mut launching = open.as_ref().map(|open| open.launching.clone());
    if let Some(launching) = launching.as_mut().filter(|_| open.is_some_and(|open| open.unknown)) {
        if !shares::left_over(access, Some(launching)).is_empty() {
            report.not_looked_at(format!(
                "whether all that ami-share gave the use of key {key} can launch an image that is under it: an image is \
                 shared with an organization, a unit or everybody, or there are too many accounts"
            ));
        }
        launching.extend(access.ours().into_iter().cloned());
    }
    report.find(shares::key_findings(key, access, launching.as_ref()));
    let outsiders: Vec<Grantee> = outsiders.into_iter().map(Grantee::Account).collect();
    let findings = refused.findings(&world.hub.settings.allow_list, &outsiders, &format!("key {key}"));
    report.find(findings.into_iter().map(|finding| finding.of_key(key)));
}

impl OpenKey {
    fn add(&mut self, access: &KeyAccess, launching: &BTreeSet<Grantee>) {
        let ours = access.ours();
        let accounts = launching.iter().filter_map(Grantee::account);
        self.launching
            .extend(accounts.filter(|account| ours.contains(account) || access.half.contains(*account)).cloned());
        self.unknown |= launching.iter().any(|grantee| grantee.account().is_none());
    }
}

impl World<'_> {
    /// What is looked at now, and what is left for later: what there are calls for, but at least one image; and first
    /// the image that was asked for alone.
    fn chunk<'o>(&self, positions: &'o [Position], calls: &mut usize) -> (&'o [Position], &'o [Position]) {
        let mut snapshots = BTreeSet::new();
        let mut taken = 0;
        for position in positions {
            let before = snapshots.len();
            if !position.sibling {
                snapshots.extend(self.inventory.own_snapshots(&position.image_id));
            }
            if *calls == 0 || positions[0].sibling != position.sibling {
                break;
            }
            *calls = calls.saturating_sub(1 + snapshots.len() - before);
            taken += 1;
        }
        positions.split_at(taken)
    }

    /// The keys under an image; of other images than the one that was asked for, those that are also under that one.
    fn relevant_keys(&self, image: &ImageId) -> Vec<&KeyArn> {
        let wanted = self.request.image_id.as_ref().map(|only| self.inventory.keys(only));
        let keys = self.inventory.keys(image).into_iter();
        keys.filter(|key| wanted.as_ref().is_none_or(|wanted| wanted.contains(key))).collect()
    }

    async fn launching(&self, chunk: &[Position]) -> Result<BTreeMap<ImageId, BTreeSet<Grantee>>, Error> {
        stream::iter(chunk.iter().map(|position| position.image_id.clone()).collect::<Vec<_>>())
            .map(|id| async move {
                let permissions = match self.inventory.images.get(&id) {
                    Some(image) => images::launch_permissions(&self.ec2, &self.request.source, &id, image).await?,
                    None => BTreeSet::new(),
                };
                Ok((id, self.without_owner(permissions)))
            })
            .buffered(CONCURRENCY)
            .try_collect()
            .await
    }

    /// Of each snapshot once, also where several images have it.
    async fn copying(&self, chunk: &[Position]) -> Result<BTreeMap<SnapshotId, BTreeSet<Grantee>>, Error> {
        let looked_at = chunk.iter().filter(|position| !position.sibling);
        let snapshots: BTreeSet<SnapshotId> =
            looked_at.flat_map(|position| self.inventory.own_snapshots(&position.image_id)).cloned().collect();
        stream::iter(snapshots)
            .map(|id| async move {
                let permissions = images::snapshot_permissions(&self.ec2, &self.request.source, &id).await?;
                Ok((id, self.without_owner(permissions)))
            })
            .buffered(CONCURRENCY)
            .try_collect()
            .await
    }

    /// A permission of the owner's own means nothing.
    fn without_owner(&self, mut permissions: BTreeSet<Grantee>) -> BTreeSet<Grantee> {
        permissions.remove(&Grantee::Account(self.request.source.account_id.clone()));
        permissions
    }

    async fn refused(&self, accounts: &BTreeSet<AccountId>, report: &mut Report) -> Result<Refused, Error> {
        let refused = Refused::ask(self.hub, self.execution, accounts).await?;
        if let Some(reason) = &refused.unknown {
            report.find_once(Finding::new(Kind::AllowListNotChecked, vec![], |_| {
                format!("Whether accounts that are not listed may be targets is not known: {reason}.")
            }));
        }
        Ok(refused)
    }
}

#[cfg(test)]
mod tests {
    use ami_share_core::{ids::Region, share::Source};

    use super::*;

    fn account(number: usize) -> AccountId {
        AccountId::parse(format!("{number:012}")).unwrap()
    }

    fn progress(keys: usize, accounts: usize) -> Progress {
        let source = Source { account_id: account(1), region: Region::parse("eu-west-1").unwrap() };
        let mut progress = Progress::new(&AuditRequest { image_id: None, source });
        for key in 0..keys {
            let key = KeyArn::parse(format!("arn:aws:kms:eu-west-1:111111111111:key/{key}")).unwrap();
            let launching = (0..accounts).map(account).collect();
            progress.open.insert(key, OpenKey { launching, unknown: false });
        }
        progress
    }

    #[test]
    fn what_is_handed_on_fits_and_what_did_not_is_not_taken_for_nobody() {
        let few = progress(3, 100).finished().unwrap_err();
        assert_eq!(few, progress(3, 100));
        let many = progress(100, 400).finished().unwrap_err();
        assert!(written(&many.open) <= OPEN_BYTES, "{}", written(&many.open));
        assert!(many.open.values().all(|key| key.unknown == key.launching.is_empty()));
        assert_eq!(many.open.len(), 100);
    }

    /// 50,000 images are what EC2 lets an account have in a Region ("AMI quotas", EC2 user guide).
    #[test]
    fn the_rounds_of_the_largest_account_fit_into_the_history_of_an_execution() {
        const IMAGES: usize = 50_000;
        const CALLS_PER_IMAGE: usize = 10;
        const EVENTS_PER_ROUND: usize = 7;
        const RETRIES: usize = 3 * EVENTS_PER_ROUND;
        let rounds = IMAGES * CALLS_PER_IMAGE / CALLS;
        assert!(rounds * (EVENTS_PER_ROUND + RETRIES) < 25_000, "{rounds} rounds");
    }
}
