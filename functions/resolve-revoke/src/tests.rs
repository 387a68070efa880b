mod asked;
mod order;
mod rounds;
mod taken;
mod told;

use ami_share_core::{
    ids::{ImageId, KeyArn, PrincipalArn, Region, SnapshotId},
    revoke::MAX_ROUNDS,
    share::{Image, Launch, Mode, PrincipalAccess, PrincipalChange, SourceChanges, Target, Volume},
    take_back::TakeBack,
};
use ami_share_mocked::{
    Answer, Aws, Call, NOW_MS,
    ec2::{self, SharedImage},
    iam,
    kms::{self, SharedKey},
};
use ami_share_record::{Gift, Noted};
use serde_json::json;

use super::*;

const SOURCE: &str = "111111111111";
const TARGET: &str = "222222222222";
const OTHER: &str = "444444444444";
const A: &str = "ami-0000000a";
const B: &str = "ami-0000000b";
const KEY: &str = "arn:aws:kms:eu-west-1:111111111111:key/1";
const KEY_2: &str = "arn:aws:kms:eu-west-1:111111111111:key/2";

fn account(n: usize) -> AccountId {
    AccountId::parse(format!("2{n:011}")).unwrap()
}

fn named(account: &str) -> AccountId {
    AccountId::parse(account).unwrap()
}

fn key(arn: &str) -> KeyArn {
    KeyArn::parse(arn).unwrap()
}

fn source_in(region: &str) -> Source {
    Source { account_id: named(SOURCE), region: Region::parse(region).unwrap() }
}

fn image(n: usize) -> SourceImage {
    SourceImage { source: source_in("eu-west-1"), image_id: ImageId::parse(format!("ami-{n:08x}")).unwrap() }
}

fn snapshot(image: &str) -> SnapshotId {
    SnapshotId::parse(image.replace("ami", "snap")).unwrap()
}

/// Everything that an execution gives a target for an image with one volume under the key.
fn gift(image: &str, account: &str) -> Gift {
    let principal = PrincipalArn::parse(format!("arn:aws:iam::{account}:role/app")).unwrap();
    let volume = Volume { device_name: "/dev/xvda".to_owned(), snapshot_id: snapshot(image), key_arn: Some(key(KEY)) };
    Gift {
        execution: ExecutionName::parse("nightly").unwrap(),
        source: source_in("eu-west-1"),
        image: Image {
            image_id: ImageId::parse(image).unwrap(),
            name: "web".to_owned(),
            architecture: "x86_64".to_owned(),
            volumes: vec![volume],
            empty_volumes: vec![],
        },
        principal_access: PrincipalAccess::Attach,
        target: Target {
            account_id: named(account),
            principal_changes: vec![PrincipalChange { principal, key_arns: vec![] }],
            source_changes: SourceChanges {
                launch_permission: true,
                snapshot_ids: vec![snapshot(image)],
                key_arns: vec![key(KEY)],
                grant_key_arns: vec![],
            },
            mode: Mode::None,
            kms_key_id: None,
            copy_id: None,
            launch: Launch::default(),
        },
    }
}

/// That changed by `change`.
fn gift_but(image: &str, account: &str, change: impl FnOnce(&mut Gift)) -> Gift {
    let mut gift = gift(image, account);
    change(&mut gift);
    gift
}

/// Notes it as given and confirmed some time ago, with the attributes of `more`.
fn note(aws: &Aws, gift: &Gift, more: &Value) {
    let mut attributes = json!({ "notedAt": { "N": "1" }, "confirmed": { "BOOL": true } });
    attributes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    aws.note(&json!(gift), &attributes);
}

fn note_all(aws: &Aws, gifts: &[Gift]) {
    gifts.iter().for_each(|gift| note(aws, gift, &json!({})));
}

/// What share-ami would have noted of a share since.
fn noted_since() -> Value {
    json!({ "notedAt": { "N": NOW_MS.to_string() } })
}

/// A mark that another take-back has made a minute ago.
fn going() -> Value {
    json!({ "going": { "S": format!("undo-1 {}", NOW_MS - 60_000) } })
}

/// The marks of this test's execution: target and image of each.
fn marked(aws: &Aws) -> Vec<(String, String)> {
    let table = aws.table();
    let text =
        |item: &serde_json::Map<String, Value>, name: &str| item[name]["S"].as_str().unwrap_or_default().to_owned();
    let by_us = |item: &&serde_json::Map<String, Value>| {
        item.get("going").is_some_and(|mark| mark["S"].as_str().unwrap().starts_with("revoke-1"))
    };
    let marked = table.items().filter(by_us);
    marked.map(|item| (text(item, "id").replace("target#", ""), text(item, "imageId"))).collect()
}

/// What is in the accounts.
#[derive(Debug, Clone, Default)]
struct World {
    images: Vec<SharedImage>,
    /// Images that are gone, though their snapshots are not.
    deregistered: Vec<&'static str>,
    keys: Vec<SharedKey>,
    /// Accounts that have the managed policy, each with the roles that it is attached to.
    attached: Vec<(&'static str, Vec<String>)>,
    /// Calls that fail, by service and operation, with the error; assumed roles by their account.
    refused: Vec<(&'static str, &'static str)>,
}

impl World {
    fn answer(&self, call: &Call) -> Option<Answer> {
        let name = match call.text("RoleArn").split(':').nth(4) {
            Some(account) => format!("{}:{account}", call.operation),
            None => format!("{}:{}", call.service, call.operation),
        };
        if let Some((_, error)) = self.refused.iter().find(|(refused, _)| *refused == name) {
            return Some(Err(error));
        }
        if call.operation == "ListEntitiesForPolicy" {
            let attached = self.attached.iter().find(|(account, _)| *account == call.account);
            return Some(attached.map(|(_, roles)| iam::entities(roles, &[])).ok_or("NoSuchEntity"));
        }
        let mut images = self.images.clone();
        if call.operation.starts_with("DescribeImage") {
            images.retain(|image| !self.deregistered.contains(&image.id));
        }
        ec2::answer(&images, call).or_else(|| kms::answer(&self.keys, call))
    }

    fn aws(self) -> Aws {
        Aws::answering(move |call| self.answer(call))
    }
}

/// An image under the key, in the source account and its usual Region.
fn shared(id: &'static str, with: &'static str) -> SharedImage {
    SharedImage { region: "eu-west-1", id, key_arn: Some(KEY), with }
}

/// Where image A is shared with the target, and nothing else is shared with anybody.
fn world() -> World {
    World {
        images: vec![shared(A, TARGET)],
        keys: vec![SharedKey { arn: KEY, by_policy: vec![TARGET], by_grant: vec![] }],
        ..World::default()
    }
}

fn one_image(more: Value) -> Value {
    request(json!({ "imageId": A, "targets": [TARGET] }), more)
}

fn all_images(more: Value) -> Value {
    request(json!({ "images": "all", "targets": [TARGET] }), more)
}

fn request(mut request: Value, more: Value) -> Value {
    let Value::Object(more) = more else { unreachable!("{more}") };
    request.as_object_mut().unwrap().extend(more);
    request
}

async fn round(aws: &Aws, request: &Value, phase: Phase, progress: Progress) -> Result<Round, Error> {
    let input = Input {
        name: "revoke-1".to_owned(),
        id: "arn:aws:states:eu-west-1:333333333333:execution:RevokeShare:revoke-1".to_owned(),
        start_time: "2026-11-27T20:00:00.000Z".to_owned(),
        request: request.clone(),
        phase,
        progress: Some(progress),
        last: None,
    };
    resolve_revoke(&aws.hub, input).await
}

/// The first round of looking.
async fn look_first(aws: &Aws, request: Value) -> Round {
    round(aws, &request, Phase::Check, Progress::default()).await.unwrap()
}

/// The first round of taking back.
async fn revoke(aws: &Aws, request: Value) -> Round {
    round(aws, &request, Phase::Revoke, Progress::default()).await.unwrap()
}

fn take_back(round: &Round) -> &TakeBack {
    round.take_back.as_ref().expect("something to take back")
}

/// Error and cause of each, with the target.
fn left(round: &Round) -> Vec<(&str, &str, &str)> {
    let left = round.take_back.iter().flat_map(|take_back| &take_back.left);
    left.map(|left| (left.account_id.as_ref().map_or("", AccountId::as_str), left.error.as_str(), left.cause.as_str()))
        .collect()
}
