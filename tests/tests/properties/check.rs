//! What must hold whatever happened: each a check with a sentence for who breaks it.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    ids::KeyArn,
    key_policy::{GRANT_SID, USE_SID},
    principal_policy::inline_policy_name,
};
use ami_share_machine::{
    root::{Caller, element},
    table::Item,
};
use ami_share_sandbox::{
    World,
    journal::{Entry, Outcome},
};
use ami_share_tests::{HUB, SOURCE};
use serde_json::{Value, json};

use crate::{
    deployed::{self, UNLISTED},
    request::{Asked, Request},
    world::{Backup, Image, OTHER, Stage, launcher, owner_of},
};

pub(crate) type Checked = Result<(), String>;

/// Every account as it is, without what the targets' owners have backed up.
pub(crate) fn picture(stage: &Stage) -> BTreeMap<String, Value> {
    let accounts: Vec<&str> = deployed::accounts().chain([OTHER]).collect();
    let mut world = stage.machine.world();
    let mut picture: BTreeMap<String, Value> =
        accounts.into_iter().map(|account| (account.to_owned(), world.snapshot(account))).collect();
    for Backup { account, region, kind, id } in stage.backups().iter() {
        let regions = picture.get_mut(*account).map(|picture| &mut picture["ec2"]);
        let Some(regions) = regions.and_then(Value::as_object_mut) else { continue };
        if let Some(all) = regions.get_mut(*region).and_then(|region| region[kind].as_object_mut()) {
            all.remove(id);
        }
        let nothing = |value: &Value| {
            value.is_null() || value == &json!(false) || value.as_object().is_some_and(serde_json::Map::is_empty)
        };
        regions.retain(|_, region| region.as_object().is_none_or(|region| !region.values().all(nothing)));
    }
    picture
}

/// What the targets' owners have backed up is there, whatever tags it has inherited.
pub(crate) fn backups_stay(stage: &Stage) -> Checked {
    let mut world = stage.machine.world();
    let gone =
        |Backup { account, region, kind, id }: &&Backup| world.snapshot(account)["ec2"][region][kind][id].is_null();
    match stage.backups().iter().find(gone) {
        Some(backup) => Err(format!("{backup:?} is gone")),
        None => Ok(()),
    }
}

/// All accounts before and after.
pub(crate) type Pictures<'a> = (&'a BTreeMap<String, Value>, &'a BTreeMap<String, Value>);

/// What the take-backs so far have come to. An execution that is stopped once it has settled its note sends no report.
fn taken_back(stage: &Stage) -> Vec<Value> {
    let ended = stage.machine.executions("TakeBack").into_iter();
    ended.filter_map(|arn| stage.machine.record(&arn).output).collect()
}

/// The accounts that a take-back or a report says something is left in, as the state of that name could not judge it.
pub(crate) fn left_by(stage: &Stage, state: &str) -> BTreeSet<String> {
    let taken_back = taken_back(stage);
    let left = taken_back.iter().flat_map(|result| listed(&result["left"])).filter(|left| left["state"] == state);
    let left = left.filter_map(|left| left["accountId"].as_str().map(str::to_owned));
    let of_account = format!("{state} in account ");
    let said = reports(stage).flat_map(|report| report["left"].as_array().cloned().unwrap_or_default());
    let said = said.filter_map(|said| said.as_str()?.strip_prefix(&of_account)?.get(..12).map(str::to_owned));
    left.chain(said).collect()
}

/// Which accounts keep access, and to which keys.
pub(crate) type Kept = BTreeMap<String, BTreeSet<String>>;

/// Invariant 3: as it was before, everywhere, but for the access to keys of those who keep it, as another image needs it
/// (docs/decisions.md, "Marks before any look").
pub(crate) fn unchanged(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>, kept: &Kept) -> Checked {
    for (account, was) in before {
        let (was, is) = (without_access_of(was, account, kept), without_access_of(&after[account], account, kept));
        if let Some(difference) = difference(&was, &is, account) {
            return Err(format!("not as before: {difference}"));
        }
    }
    Ok(())
}

/// The report that a notice has behind its text.
pub(crate) fn report_in(notice: &Value) -> Option<Value> {
    let (_, report) = notice["Message"].as_str()?.split_once("\n\n")?;
    serde_json::from_str(report).ok()
}

fn reports(stage: &Stage) -> impl Iterator<Item = Value> {
    let notices = stage.machine.published().into_iter();
    notices.filter_map(|notice| report_in(&notice))
}

/// The accounts that the take-backs and reports so far say keep access, with the keys under what they can launch.
pub(crate) fn kept(stage: &Stage) -> Kept {
    let said = reports(stage).chain(taken_back(stage));
    let kept = said.flat_map(|said| said["kept"].as_array().cloned().unwrap_or_default());
    let accounts: BTreeSet<String> = kept.filter_map(|kept| kept["accountId"].as_str().map(str::to_owned)).collect();
    let source = stage.machine.world().snapshot(SOURCE);
    let needed = |account: &String| needed_keys(&source, account);
    accounts.into_iter().map(|account| (account.clone(), needed(&account))).collect()
}

/// The keys under the images that the account can launch, or that are shared with an organization which it may be in.
fn needed_keys(source: &Value, account: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for region in source["ec2"].as_object().into_iter().flat_map(|regions| regions.values()) {
        let permits = |whom: &Value| whom == account || whom.as_str().is_some_and(|whom| whom.starts_with("arn:"));
        let images = region["images"].as_object().into_iter().flat_map(|images| images.values());
        let open = images.filter(|image| listed(&image["launchPermissions"]).iter().any(permits));
        let snapshots = open.flat_map(|image| listed(&image["snapshots"]));
        let key = |snapshot: Value| region["snapshots"][snapshot.as_str()?]["key"].as_str().map(str::to_owned);
        keys.extend(snapshots.filter_map(key));
    }
    keys
}

/// The targets that the last report of an execution says stand, proved, although others failed.
pub(crate) fn standing(stage: &Stage, name: &str) -> BTreeSet<String> {
    let of_it = |report: &Value| report["execution"].as_str().is_some_and(|execution| execution.starts_with(name));
    let last = reports(stage).filter(of_it).last().unwrap_or_default();
    let targets = last["targets"].as_array().cloned().unwrap_or_default();
    let proved = targets.into_iter().filter(|target| target["status"] == "proved");
    proved.filter_map(|target| target["accountId"].as_str().map(str::to_owned)).collect()
}

/// The targets that the execution's note says it has settled to stand; nobody where undo-share has taken it back.
pub(crate) fn settled_for(stage: &Stage, arn: &str, request: &Request) -> BTreeSet<String> {
    let table = stage.machine.table();
    let id = format!("execution#{arn}");
    let note = table.items().find(|item| item["id"]["S"] == id.as_str());
    let settled = note.and_then(|item| item.get("settled")?["S"].as_str().map(str::to_owned));
    let stands = |account: &&String| match settled.as_deref() {
        None | Some("none") => false,
        Some(all) => !all.contains(account.as_str()),
    };
    request.targets.iter().map(|target| &target.account).filter(stands).cloned().collect()
}

/// Of an execution that failed: what stands can be used, and everything else is as before.
pub(crate) fn partly(
    before: &BTreeMap<String, Value>,
    after: &BTreeMap<String, Value>,
    stage: &Stage,
    request: &Request,
    standing: &BTreeSet<String>,
) -> Checked {
    let kept = kept(stage);
    if standing.is_empty() {
        return unchanged(before, after, &kept);
    }
    others_unchanged(before, after, stage, &kept.into_keys().chain(standing.iter().cloned()).collect())?;
    let mut stands = request.clone();
    stands.targets.retain(|target| standing.contains(&target.account));
    usable(&mut stage.machine.world(), stage, &stands)
}

fn without_access_of(picture: &Value, account: &str, kept: &Kept) -> Value {
    let mut picture = picture.clone();
    for (arn, key) in keys_mut(&mut picture) {
        let keeps = |account: &str| kept.get(account).is_some_and(|keys| keys.contains(arn));
        let mut statements = listed(&key["policy"]["Statement"].take());
        for statement in statements.iter_mut().filter(|statement| is_ours(statement)) {
            let mut named = listed(&statement["Principal"]["AWS"]);
            named.retain(|arn| !keeps(arn.as_str().and_then(|arn| arn.split(':').nth(4)).unwrap_or_default()));
            statement["Principal"]["AWS"] = json!(named);
        }
        statements.retain(|statement| !is_ours(statement) || statement["Principal"]["AWS"] != json!([]));
        key["policy"]["Statement"] = json!(statements);
        if let Some(grants) = key["grants"].as_array_mut() {
            grants.retain(|grant| {
                !grant["name"].as_str().and_then(|name| name.strip_prefix("ami-share-")).is_some_and(keeps)
            });
        }
    }
    if let Some(keys) = kept.get(account).filter(|keys| !keys.is_empty()) {
        let names: BTreeSet<String> = keys
            .iter()
            .filter_map(|key| KeyArn::parse(key.as_str()).ok())
            .map(|key| inline_policy_name(&key))
            .collect();
        without_policies_of_ours(&mut picture, |name| names.contains(name));
    }
    picture
}

/// Of all Regions, each with its ARN.
fn keys_mut(picture: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    let regions = picture["kms"].as_object_mut().into_iter().flat_map(|regions| regions.values_mut());
    regions.filter_map(Value::as_object_mut).flatten()
}

/// Without the managed policy, and without the inline ones of those names.
fn without_policies_of_ours(picture: &mut Value, is_meant: impl Fn(&str) -> bool) {
    for kind in ["roles", "users"] {
        for principal in picture["iam"][kind].as_object_mut().into_iter().flat_map(|all| all.values_mut()) {
            if let Some(attached) = principal["attached"].as_array_mut() {
                attached.retain(|arn| !arn.as_str().is_some_and(|arn| arn.ends_with("policy/AmiShareKeyAccess")));
            }
            if let Some(inline) = principal["inline"].as_object_mut() {
                inline.retain(|name, _| !(name.starts_with("AmiShare-") && is_meant(name)));
            }
        }
    }
}

/// As [`unchanged`], but for all that the accounts `shared` have.
pub(crate) fn others_unchanged(
    before: &BTreeMap<String, Value>,
    after: &BTreeMap<String, Value>,
    stage: &Stage,
    shared: &BTreeSet<String>,
) -> Checked {
    let targets: BTreeSet<&str> = shared.iter().map(String::as_str).collect();
    let all: BTreeSet<String> = stage.keys.iter().cloned().collect();
    let kept: Kept = shared.iter().map(|account| (account.clone(), all.clone())).collect();
    for (account, was) in before.iter().filter(|(account, _)| !shared.contains(*account)) {
        let [was, is] = [was, &after[account]].map(|picture| {
            let mut picture = without_access_of(picture, account, &kept);
            without_permissions_of(&mut picture, &targets);
            picture
        });
        if let Some(difference) = difference(&was, &is, account) {
            return Err(format!("not as before, and nobody's share: {difference}"));
        }
    }
    Ok(())
}

/// The lock on key policies is nobody's once everything has ended.
pub(crate) fn locks_are_free(stage: &Stage) -> Checked {
    match stage.machine.table().items().find(|item| item.contains_key("heldBy")) {
        Some(lock) => Err(format!("a lock is still held: {lock:?}")),
        None => Ok(()),
    }
}

/// Whoever crashed with the lock, or could not give it back, has it no longer than its time-out and a minute.
pub(crate) fn locks_end(stage: &Stage) -> Checked {
    let until = stage.machine.time_of_day_ms() + 170_000;
    let ends = |lock: &Item| lock["heldUntil"]["N"].as_str().and_then(|end| end.parse::<u64>().ok());
    match stage.machine.table().items().filter(|item| item.contains_key("heldBy")).find(|lock| ends(lock) > Some(until))
    {
        Some(lock) => Err(format!("a lock is held for too long: {lock:?}")),
        None => Ok(()),
    }
}

/// The first place where the two are not the same.
fn difference(was: &Value, is: &Value, place: &str) -> Option<String> {
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
            let nothing = Value::Null;
            let of =
                |fields: &serde_json::Map<String, Value>, name: &String| fields.get(name).unwrap_or(&nothing).clone();
            names.into_iter().find_map(|name| difference(&of(was, name), &of(is, name), &format!("{place}/{name}")))
        }
        (was, is) if was == is => None,
        (was, is) => Some(format!("{place} was {was}, and is {is}")),
    }
}

/// Invariant 1: nobody else's statement, permission, grant or policy was changed or removed; what is ours may be, for
/// the targets of these requests.
pub(crate) fn foreign_is_kept(
    before: &BTreeMap<String, Value>,
    after: &BTreeMap<String, Value>,
    requests: &[&Request],
) -> Checked {
    let targets: BTreeSet<&str> =
        requests.iter().flat_map(|request| &request.targets).map(|target| target.account.as_str()).collect();
    for (account, was) in before {
        let (was, is) = (foreign(account, was, was, &targets), foreign(account, &after[account], was, &targets));
        if let Some(difference) = difference(&was, &is, account) {
            return Err(format!("somebody else's was changed: {difference}"));
        }
    }
    let text = |picture: &BTreeMap<String, Value>| foreign_statements(&picture[SOURCE]);
    if text(before) != text(after) {
        return Err(format!("a foreign statement is not what it was: {:?}, {:?}", text(before), text(after)));
    }
    Ok(())
}

/// What is not ours of an account, and of what was there before.
fn foreign(account: &str, picture: &Value, before: &Value, targets: &BTreeSet<&str>) -> Value {
    let mut picture = picture.clone();
    for (_, key) in keys_mut(&mut picture) {
        let statements = key["policy"]["Statement"].take();
        let kept: Vec<Value> = listed(&statements).into_iter().filter(|statement| !is_ours(statement)).collect();
        key["policy"]["Statement"] = json!(kept);
        if let Some(grants) = key["grants"].as_array_mut() {
            grants.retain(|grant| !grant["name"].as_str().is_some_and(|name| name.starts_with("ami-share-")));
        }
    }
    without_permissions_of(&mut picture, targets);
    if targets.contains(account) {
        without_what_was_made(&mut picture, before);
        without_policies_of_ours(&mut picture, |_| true);
    }
    picture
}

/// Of a target's EC2, what was there before.
fn without_what_was_made(picture: &mut Value, before: &Value) {
    let nothing = serde_json::Map::new();
    let there = before["ec2"].as_object().unwrap_or(&nothing);
    if let Some(regions) = picture["ec2"].as_object_mut() {
        regions.retain(|region, _| there.contains_key(region));
    }
    for (region, before) in there {
        let picture = &mut picture["ec2"][region];
        if picture.is_null() {
            *picture = before.clone();
        }
        picture["defaultKey"] = before["defaultKey"].clone();
        for kind in ["images", "snapshots", "instances", "volumes"] {
            if let Some(found) = picture[kind].as_object_mut() {
                found.retain(|id, _| before[kind].get(id).is_some());
            }
        }
    }
}

/// Without the launch and snapshot permissions of these accounts.
fn without_permissions_of(picture: &mut Value, accounts: &BTreeSet<&str>) {
    for (kind, permissions) in [("images", "launchPermissions"), ("snapshots", "createVolumePermissions")] {
        let regions = picture["ec2"].as_object_mut().into_iter().flat_map(|regions| regions.values_mut());
        let all = regions.filter_map(|region| region[kind].as_object_mut());
        for thing in all.flat_map(|all| all.values_mut()) {
            if let Some(list) = thing[permissions].as_array_mut() {
                list.retain(|entry| !accounts.contains(entry.as_str().unwrap_or_default()));
            }
        }
    }
}

fn listed(statements: &Value) -> Vec<Value> {
    match statements {
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    }
}

fn is_ours(statement: &Value) -> bool {
    statement["Sid"] == USE_SID || statement["Sid"] == GRANT_SID
}

/// Everybody else's statements as they are written, by key, in their order.
fn foreign_statements(source: &Value) -> BTreeMap<String, Vec<String>> {
    let regions = source["kms"].as_object().into_iter().flat_map(|regions| regions.values());
    let keys = regions.filter_map(Value::as_object).flatten();
    let foreign = |key: &Value| {
        listed(&key["policy"]["Statement"]).iter().filter(|one| !is_ours(one)).map(Value::to_string).collect()
    };
    keys.map(|(arn, key)| (arn.clone(), foreign(key))).collect()
}

/// Invariant 5: nobody who is not on the allow-list has anything.
pub(crate) fn outsiders_have_nothing(after: &BTreeMap<String, Value>) -> Checked {
    // What the source's roles say of it is about whom they may give something.
    if ["ec2", "kms"].iter().any(|service| after[SOURCE][service].to_string().contains(UNLISTED)) {
        return Err(format!("{UNLISTED} is not on the allow-list, and was given something"));
    }
    Ok(())
}

/// Invariant 6: the account that owns the keys can still read and write their policies.
pub(crate) fn administrators_keep_access(world: &mut World, stage: &Stage) -> Checked {
    for key in &stage.keys {
        let root = owner_of(key);
        let read = root.call_kms(world, "GetKeyPolicy", &json!({ "KeyId": key, "PolicyName": "default" }));
        let policy = read.map_err(|error| format!("the policy of {key} cannot be read any more: {error}"))?;
        let put = json!({ "KeyId": key, "PolicyName": "default", "Policy": policy["Policy"] });
        root.call_kms(world, "PutKeyPolicy", &put).map_err(|error| format!("{key} is locked: {error}"))?;
    }
    Ok(())
}

/// Invariant 7, as far as a journal shows it: no role of ours was refused by its own policy or session.
pub(crate) fn roles_suffice(journal: &[Entry]) -> Checked {
    let refused = journal.iter().find(|entry| {
        let ours = entry.principal.contains("AmiShare") || entry.principal.starts_with(&format!("arn:aws:iam::{HUB}:"));
        let own = entry.reason.as_deref().is_some_and(|reason| !reason.contains("resource-based"));
        ours && own && entry.via.is_none() && entry.outcome == Outcome::Denied && !was_removed(journal, entry)
    });
    match refused {
        Some(entry) => Err(format!("a role of ours may not do what its step does: {entry:?}")),
        None => Ok(()),
    }
}

/// What is gone has no tag that would allow anything: two undos of one execution remove the same, and what is redriven may
/// launch a copy that was taken back.
fn was_removed(journal: &[Entry], refused: &Entry) -> bool {
    journal.iter().any(|entry| {
        entry.seq < refused.seq
            && entry.changed
            && (entry.action == refused.action || entry.action == "ec2:DeregisterImage")
            && refused.resources.iter().all(|resource| entry.resources.contains(resource))
    })
}

/// Whoever was to be able to launch the image can do it.
pub(crate) fn usable(world: &mut World, stage: &Stage, request: &Request) -> Checked {
    let image = &stage.images[request.image];
    // Everything that was changed is effective by now.
    let later = world.now_ms() + 300_000;
    world.set_now_ms(later);
    for target in &request.targets {
        can_launch(world, image, target)?;
        if target.mode == Some("copyImage") {
            let own = world.snapshot(&target.account);
            let copies = own["ec2"][image.region]["images"].as_object().into_iter().flatten();
            let is_copy = |copy: &Value| {
                let tags = copy["tags"].as_object();
                copy["state"] == "available"
                    && tags.is_some_and(|tags| tags.values().any(|tag| *tag == image.id.as_str()))
            };
            if !copies.into_iter().any(|(_, copy)| is_copy(copy)) {
                return Err(format!("{} has no copy of {}, and the share succeeded", target.account, image.id));
            }
        }
    }
    Ok(())
}

/// The launcher and each principal that was asked for.
pub(crate) fn can_launch(world: &mut World, image: &Image, target: &Asked) -> Checked {
    for principal in target.principals.iter().chain([&launcher(&target.account)]) {
        launch(world, image, target, principal)
            .map_err(|why| format!("{principal} cannot launch {}, and the share succeeded: {why}", image.id))?;
    }
    Ok(())
}

/// Launches, waits, and looks; what was launched is terminated.
fn launch(world: &mut World, image: &Image, target: &Asked, principal: &str) -> Checked {
    let caller =
        if principal.contains(":user/") { Caller::user(world, principal) } else { Caller::role(world, principal) }?;
    let caller = caller.in_region(image.region);
    let mut parameters = vec![
        ("ImageId".to_owned(), image.id.clone()),
        ("InstanceType".to_owned(), "t3.micro".to_owned()),
        ("MinCount".to_owned(), "1".to_owned()),
        ("MaxCount".to_owned(), "1".to_owned()),
        // The launcher may not give a public address.
        ("NetworkInterface.1.DeviceIndex".to_owned(), "0".to_owned()),
        ("NetworkInterface.1.AssociatePublicIpAddress".to_owned(), "false".to_owned()),
    ];
    // The launcher may launch only what it tags, and so be found and terminated.
    for (index, kind) in ["instance", "volume"].into_iter().enumerate() {
        let of = format!("TagSpecification.{}", index + 1);
        parameters.push((format!("{of}.ResourceType"), kind.to_owned()));
        parameters.push((format!("{of}.Tag.1.Key"), ami_share_core::share::EXECUTION_TAG.to_owned()));
        parameters.push((format!("{of}.Tag.1.Value"), "check".to_owned()));
    }
    if target.mode == Some("atLaunch") {
        for (index, device) in image.devices.iter().enumerate() {
            let of = format!("BlockDeviceMapping.{}", index + 1);
            parameters.push((format!("{of}.DeviceName"), device.clone()));
            parameters.push((format!("{of}.Ebs.Encrypted"), "true".to_owned()));
            parameters.push((format!("{of}.Ebs.KmsKeyId"), "alias/app-volumes".to_owned()));
        }
    }
    let parameters: Vec<(&str, &str)> =
        parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let launched = caller.call(world, "ec2", "RunInstances", &parameters)?;
    let instance = element(&launched, "instanceId").ok_or("no instance")?;
    let later = world.now_ms() + 60_000;
    world.set_now_ms(later);
    let root = Caller::root(&target.account).in_region(image.region);
    let described = root.call(world, "ec2", "DescribeInstances", &[("InstanceId.1", &instance)])?;
    root.call(world, "ec2", "TerminateInstances", &[("InstanceId.1", &instance)])?;
    if described.contains("<name>running</name>") {
        return Ok(());
    }
    let journal =
        world.journal.entries().iter().rev().filter(|entry| entry.via.is_some() && entry.outcome == Outcome::Denied);
    let refused: Vec<String> = journal.filter_map(|entry| entry.reason.clone()).take(2).collect();
    Err(format!("the instance died: {}", refused.join("; ")))
}
