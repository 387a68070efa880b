use ami_share_core::{
    ids::Region,
    mark::Mark,
    share::{Image, Launch, Mode, PrincipalAccess, SourceChanges, Target, Volume},
};
use ami_share_mocked::{
    Answer, Aws, Call, NOW_MS,
    ec2::{self, SharedImage},
};
use ami_share_record::{Gift, Stays};

use super::*;

const TARGET: &str = "222222222222";
const ORGANIZATION: &str = "arn:aws:organizations::999999999999:organization/o-0123456789";
const KEY: &str = "arn:aws:kms:eu-west-1:111111111111:key/1";
const ELSEWHERE: &str = "arn:aws:kms:us-east-1:111111111111:key/1";

fn account() -> AccountId {
    AccountId::parse(TARGET).unwrap()
}

fn source(region: &str) -> Source {
    Source { account_id: AccountId::parse("111111111111").unwrap(), region: Region::parse(region).unwrap() }
}

fn image(id: &str) -> ImageId {
    ImageId::parse(id).unwrap()
}

fn key(arn: &str) -> KeyArn {
    KeyArn::parse(arn).unwrap()
}

fn ago(ms: i64) -> i64 {
    i64::try_from(NOW_MS).unwrap() - ms
}

fn going_since(ms: i64) -> Option<Mark> {
    Some(Mark::new(&ExecutionName::parse("undo-1").unwrap(), ago(ms)))
}

/// Of an image in eu-west-1 with one volume under a key; confirmed long ago.
fn note(id: &str) -> Note {
    let volume = Volume {
        device_name: "/dev/xvda".to_owned(),
        snapshot_id: ami_share_core::ids::SnapshotId::parse("snap-0123abcd").unwrap(),
        key_arn: Some(key(KEY)),
    };
    let (name, architecture) = ("web".to_owned(), "x86_64".to_owned());
    let gift = Gift {
        execution: ExecutionName::parse("nightly-0123abcd").unwrap(),
        source: source("eu-west-1"),
        image: Image { image_id: image(id), name, architecture, volumes: vec![volume], empty_volumes: vec![] },
        principal_access: PrincipalAccess::Attach,
        target: Target {
            account_id: account(),
            principal_changes: vec![],
            source_changes: SourceChanges::default(),
            mode: Mode::None,
            kms_key_id: None,
            copy_id: None,
            launch: Launch::default(),
        },
    };
    Note { gift, noted_at: 1, going: None, goes_before: false, confirmed: true, stays: Stays::default(), proof: None }
}

fn note_in(region: &str, id: &str) -> Note {
    let note = note(id);
    Note { gift: Gift { source: source(region), ..note.gift }, ..note }
}

fn shared(region: &'static str, id: &'static str, with: &'static str) -> SharedImage {
    let key = if region == "us-east-1" { ELSEWHERE } else { KEY };
    SharedImage { region, id, key_arn: Some(key), with }
}

/// What the target of `notes` needs when its share of ami-0000000a in eu-west-1 goes.
async fn asked(
    answer: impl Fn(&Call) -> Option<Answer> + Send + Sync + 'static,
    notes: Vec<Note>,
    patient: bool,
) -> Result<Need, Error> {
    asked_of(answer, Noted { notes, went: vec![] }, patient).await
}

async fn asked_of(
    answer: impl Fn(&Call) -> Option<Answer> + Send + Sync + 'static,
    noted: Noted,
    patient: bool,
) -> Result<Need, Error> {
    let aws = Aws::answering(answer);
    let asking = Asking {
        hub: &aws.hub,
        execution: &ExecutionName::parse("undo-1").unwrap(),
        actions: Actions::NONE,
        source: &source("eu-west-1"),
        image: &image("ami-0000000a"),
        state: "ResolveUndo",
        patient,
    };
    let mut needs = needs(&asking, &BTreeMap::from([(account(), noted)])).await?;
    assert_eq!(needs.len(), 1);
    Ok(needs.remove(&account()).unwrap())
}

async fn need(images: &[SharedImage], notes: Vec<Note>) -> Need {
    let images = images.to_vec();
    asked(move |call| ec2::answer(&images, call), notes, true).await.unwrap()
}

/// The images that keys are needed for.
fn for_images(need: &Need) -> Vec<&str> {
    need.keys.values().map(ImageId::as_str).collect()
}

#[tokio::test]
async fn an_image_that_it_can_launch_needs_its_key_and_the_one_at_hand_needs_nothing() {
    let images = [shared("eu-west-1", "ami-0000000a", TARGET), shared("eu-west-1", "ami-0000000b", TARGET)];
    let found = need(&images, vec![note("ami-0000000a")]).await;
    assert_eq!(found.keys, BTreeMap::from([(key(KEY), image("ami-0000000b"))]));
    assert_eq!(found.images, BTreeSet::from([image("ami-0000000b")]));
    let others = [shared("eu-west-1", "ami-0000000b", "444444444444")];
    assert_eq!(need(&others, vec![note("ami-0000000a")]).await, Need::default());
}

#[tokio::test]
async fn an_image_that_is_open_to_an_organization_counts_for_everybody() {
    let images = [shared("eu-west-1", "ami-0000000b", ORGANIZATION)];
    assert_eq!(for_images(&need(&images, vec![note("ami-0000000a")]).await), ["ami-0000000b"]);
}

#[tokio::test]
async fn every_region_that_a_note_names_is_asked() {
    let images = [shared("us-east-1", "ami-0000000a", TARGET)];
    assert_eq!(need(&images, vec![note("ami-0000000a")]).await, Need::default());
    let found = need(&images, vec![note("ami-0000000a"), note_in("us-east-1", "ami-0000000c")]).await;
    // It has the id of the image at hand, and is another one.
    assert_eq!(found.keys, BTreeMap::from([(key(ELSEWHERE), image("ami-0000000a"))]));
    assert_eq!(found.images, BTreeSet::new(), "those of the Region at hand");
}

#[tokio::test]
async fn an_image_all_of_whose_notes_are_marked_is_going_whatever_ec2_says() {
    let images = [shared("eu-west-1", "ami-0000000b", TARGET)];
    let marked = |ms| Note { going: going_since(ms), ..note("ami-0000000b") };
    assert_eq!(need(&images, vec![marked(1_000)]).await, Need::default());
    assert_eq!(for_images(&need(&images, vec![marked(1_000), note("ami-0000000b")]).await), ["ami-0000000b"]);
    // What stands of another image, or of the same id elsewhere, does not make it stay.
    assert_eq!(need(&images, vec![marked(1_000), note("ami-0000000c")]).await, Need::default());
    let elsewhere = note_in("us-east-1", "ami-0000000b");
    assert_eq!(need(&images, vec![marked(1_000), elsewhere]).await, Need::default());
}

#[tokio::test]
async fn an_image_that_is_still_there_an_hour_after_the_mark_counts_again() {
    let images = [shared("eu-west-1", "ami-0000000b", TARGET)];
    let marked = |ms| vec![Note { going: going_since(ms), ..note("ami-0000000b") }];
    assert_eq!(need(&images, marked(LAGGING)).await, Need::default());
    assert_eq!(for_images(&need(&images, marked(LAGGING + 1)).await), ["ami-0000000b"]);
}

#[tokio::test]
async fn an_image_whose_notes_went_a_while_ago_is_gone_whatever_ec2_says() {
    let found = async |notes: Vec<Note>, went: Vec<Went>| {
        let images = [shared("eu-west-1", "ami-0000000b", TARGET)];
        asked_of(move |call| ec2::answer(&images, call), Noted { notes, went }, true).await.unwrap()
    };
    let went = |ms| Went { source: source("eu-west-1"), image_id: image("ami-0000000b"), at: ago(ms) };
    assert_eq!(found(vec![], vec![went(LAGGING)]).await, Need::default());
    // Somebody has shared it since, without a note.
    assert_eq!(for_images(&found(vec![], vec![went(LAGGING + 1)]).await), ["ami-0000000b"]);
    // It was shared again, or what went is another image.
    assert_eq!(for_images(&found(vec![note("ami-0000000b")], vec![went(1)]).await), ["ami-0000000b"]);
    for another in
        [Went { source: source("us-east-1"), ..went(1) }, Went { image_id: image("ami-0000000c"), ..went(1) }]
    {
        assert_eq!(for_images(&found(vec![], vec![another]).await), ["ami-0000000b"]);
    }
}

#[tokio::test]
async fn a_share_that_is_under_way_needs_its_keys_for_a_day() {
    let under_way = Note { confirmed: false, noted_at: ago(1_000), ..note("ami-0000000b") };
    let found = need(&[], vec![under_way.clone()]).await;
    assert_eq!((for_images(&found), found.images.len()), (vec!["ami-0000000b"], 0));
    let old = |ms| Note { noted_at: ago(ms), ..under_way.clone() };
    assert_eq!(for_images(&need(&[], vec![old(UNDER_WAY - 1)]).await), ["ami-0000000b"]);
    assert_eq!(need(&[], vec![old(UNDER_WAY)]).await, Need::default());
    let confirmed = Note { confirmed: true, ..under_way.clone() };
    assert_eq!(need(&[], vec![confirmed]).await, Need::default(), "it stands, and EC2 would name it");
    let going = Note { going: going_since(1), ..under_way.clone() };
    assert_eq!(need(&[], vec![going]).await, Need::default());
}

#[tokio::test]
async fn the_image_at_hand_is_another_one_elsewhere_also_under_way() {
    let under_way = |note: Note| Note { confirmed: false, noted_at: ago(1_000), ..note };
    assert_eq!(need(&[], vec![under_way(note("ami-0000000a"))]).await, Need::default());
    let elsewhere = under_way(note_in("us-east-1", "ami-0000000a"));
    assert_eq!(for_images(&need(&[], vec![elsewhere]).await), ["ami-0000000a"]);
}

#[tokio::test]
async fn a_region_that_refuses_to_answer_is_unknown_and_the_others_are_not() {
    let images = [shared("eu-west-1", "ami-0000000b", TARGET)];
    let answer = move |call: &Call| match call.region.as_str() {
        "us-east-1" if call.service == "ec2" => Some(Err("UnauthorizedOperation")),
        _ => ec2::answer(&images, call),
    };
    let notes = vec![note("ami-0000000a"), note_in("us-east-1", "ami-0000000c")];
    let found = asked(answer, notes, true).await.unwrap();
    assert_eq!(for_images(&found), ["ami-0000000b"]);
    assert_eq!(found.unknown.keys().collect::<Vec<_>>(), [&source("us-east-1")]);
    let left = &found.unknown[&source("us-east-1")];
    assert_eq!((&left.account_id, left.state.as_str()), (&Some(account()), "ResolveUndo"));
    assert_eq!(left.error, "AccessDenied");
}

/// What is shared with the target alone is known then.
#[tokio::test]
async fn where_nobody_can_say_what_organizations_share_in_the_own_images_count() {
    for (code, passes) in [("UnauthorizedOperation", false), ("RequestLimitExceeded", true)] {
        let answer = move |call: &Call| {
            let images = [shared("eu-west-1", "ami-0000000b", TARGET)];
            let refused = call.operation == "DescribeImageAttribute";
            if refused { Some(Err(code)) } else { ec2::answer(&images, call) }
        };
        let found = asked(answer, vec![note("ami-0000000a")], false).await.unwrap();
        assert_eq!((for_images(&found), found.unknown.len()), (vec!["ami-0000000b"], 1), "{code}");
        assert_eq!(asked(answer, vec![note("ami-0000000a")], true).await.is_err(), passes, "{code}");
    }
}

#[tokio::test]
async fn whoever_is_patient_asks_again_what_passes_by_itself() {
    let answer = |call: &Call| (call.service == "ec2").then_some(Err("RequestLimitExceeded"));
    assert!(matches!(asked(answer, vec![note("ami-0000000a")], true).await, Err(Error::Throttled { .. })));
    let found = asked(answer, vec![note("ami-0000000a")], false).await.unwrap();
    assert_eq!(found.unknown[&source("eu-west-1")].error, "Throttled");
}
