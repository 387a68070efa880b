use ami_share_core::{ids::Region, take_back::NoteChange};
use ami_share_mocked::{Aws, NOW_MS};
use serde_json::{Value, json};

use super::*;

const TARGET: &str = "222222222222";

fn account(id: &str) -> AccountId {
    AccountId::parse(id).unwrap()
}

fn image(id: &str) -> ImageId {
    ImageId::parse(id).unwrap()
}

fn execution() -> ExecutionName {
    ExecutionName::parse("nightly-0123abcd").unwrap()
}

/// As share-ami notes it.
fn gift(account: &str, image: &str) -> Value {
    json!({
        "execution": execution(),
        "source": { "accountId": "111111111111", "region": "eu-west-1" },
        "image": { "imageId": image, "name": "web", "architecture": "x86_64", "volumes": [] },
        "principalAccess": "attach",
        "target": { "accountId": account, "principalChanges": [], "mode": "none", "launch": {} }
    })
}

/// A note of one target, marked by `going`.
fn noted(going: &Mark) -> Aws {
    let aws = Aws::with_table();
    aws.note(&gift(TARGET, "ami-0123abcd"), &json!({ "going": { "S": going.as_str() } }));
    aws
}

async fn noted_of(aws: &Aws) -> Noted {
    Record::open(&aws.hub).unwrap().notes_of(&account(TARGET)).await.unwrap()
}

async fn notes(aws: &Aws) -> Vec<Note> {
    noted_of(aws).await.notes
}

#[test]
fn a_gift_is_what_share_ami_notes() {
    let note = gift(TARGET, "ami-0123abcd");
    let gift: Gift = serde_json::from_value(note.clone()).unwrap();
    assert_eq!(gift.target.account_id.as_str(), TARGET);
    assert_eq!(serde_json::from_str::<Value>(&gift.to_text()).unwrap(), note);
}

#[tokio::test]
async fn the_notes_of_a_target_are_read_with_all_that_was_written_on_them() {
    let aws = Aws::with_table();
    aws.note(&gift(TARGET, "ami-0000000a"), &json!({}));
    let more = json!({
        "notedAt": { "N": "7" },
        "going": { "S": "undo-1 9" },
        "confirmed": { "BOOL": true },
        "stays": { "S": r#"{"instanceId":"i-0123abcd","copyId":"ami-0000000c"}"# },
        "proof": { "S": r#"{"at":"2026-01-01T00:00:00Z","instanceId":"i-0123abcd","instanceStays":true,"volumes":[]}"# },
    });
    aws.note(&gift(TARGET, "ami-0000000b"), &more);
    aws.note(&gift("444444444444", "ami-0000000a"), &json!({}));
    let notes = notes(&aws).await;
    let images: Vec<&ImageId> = notes.iter().map(Note::image).collect();
    assert_eq!(images, [&image("ami-0000000a"), &image("ami-0000000b")]);
    let [plain, full] = &notes[..] else { panic!("{notes:?}") };
    assert_eq!((plain.noted_at, plain.confirmed, &plain.going), (i64::try_from(NOW_MS).unwrap(), false, &None));
    assert_eq!(plain.stays, Stays::default());
    assert_eq!((full.noted_at, full.confirmed, &full.going), (7, true, &Some(Mark::noted("undo-1 9"))));
    assert_eq!(full.stays.instance_id, Some(InstanceId::parse("i-0123abcd").unwrap()));
    assert_eq!(full.stays.copy_id, Some(image("ami-0000000c")));
    let of = |note: &Note| note.proof.as_ref().map(|proof| proof.at.clone());
    assert_eq!((of(plain), of(full)), (None, Some("2026-01-01T00:00:00Z".to_owned())));
    let gifts = Record::open(&aws.hub).unwrap().gifts_of(&account(TARGET)).await.unwrap();
    assert_eq!(gifts, notes.into_iter().map(|note| note.gift).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_notes_for_one_image_are_read_alone() {
    let aws = Aws::with_table();
    aws.note(&gift(TARGET, "ami-0000000a"), &json!({}));
    aws.note(&gift(TARGET, "ami-0000000ab"), &json!({ "gift": { "S": "?" } }));
    aws.note(&gift("444444444444", "ami-0000000a"), &json!({}));
    let notes = Record::open(&aws.hub).unwrap().notes_for(&account(TARGET), &image("ami-0000000a")).await.unwrap();
    let whose: Vec<(&str, &str)> =
        notes.iter().map(|note| (note.gift.target.account_id.as_str(), note.image().as_str())).collect();
    assert_eq!(whose, [(TARGET, "ami-0000000a")]);
}

#[tokio::test]
async fn a_note_tells_what_was_launched_and_whether_that_was_proved() {
    let confirmed = || json!({ "confirmed": { "BOOL": true } });
    let mut made = confirmed();
    made["stays"] = json!({ "S": r#"{"copyId":"ami-0000000c"}"# });
    for (target, more, launched, proved) in [
        (json!({}), confirmed(), "ami-0000000a", true),
        (json!({}), json!({}), "ami-0000000a", false),
        (json!({ "launch": { "prove": "never" } }), confirmed(), "ami-0000000a", false),
        (json!({ "mode": "copyImage" }), made, "ami-0000000c", true),
        (json!({ "mode": "copyImage", "copyId": "ami-0000000b" }), confirmed(), "ami-0000000b", true),
    ] {
        let aws = Aws::with_table();
        let mut gift = gift(TARGET, "ami-0000000a");
        gift["target"].as_object_mut().unwrap().extend(target.as_object().unwrap().clone());
        aws.note(&gift, &more);
        let [note] = &notes(&aws).await[..] else { panic!("{gift}") };
        assert_eq!((note.launched().as_str(), note.is_proved()), (launched, proved), "{gift}, {more}");
    }
}

#[tokio::test]
async fn a_note_that_nobody_can_read_is_named() {
    let aws = Aws::with_table();
    aws.note(&gift(TARGET, "ami-0123abcd"), &json!({ "gift": { "S": "?" } }));
    let error = Record::open(&aws.hub).unwrap().notes_of(&account(TARGET)).await.unwrap_err();
    let note = "target#222222222222, ami-0123abcd#nightly-0123abcd of table records";
    assert!(matches!(&error, Error::Aws { .. }) && error.to_string().contains(note), "{error}");
}

#[tokio::test]
async fn who_was_given_an_image_and_which_images_is_told_once_each() {
    let aws = Aws::with_table();
    for (account, image) in [("444444444444", "ami-0000000a"), (TARGET, "ami-0000000a"), (TARGET, "ami-0000000b")] {
        aws.note(&gift(account, image), &json!({}));
    }
    aws.note(
        &json!({ "execution": "again", "image": { "imageId": "ami-0000000a" }, "target": { "accountId": TARGET } }),
        &json!({}),
    );
    let record = Record::open(&aws.hub).unwrap();
    let both = [account(TARGET), account("444444444444")];
    assert_eq!(record.accounts_given(&image("ami-0000000a")).await.unwrap(), both);
    assert_eq!(record.accounts_given(&image("ami-0000000c")).await.unwrap(), []);
    let given = BTreeMap::from([
        (image("ami-0000000a"), BTreeSet::from(both.clone())),
        (image("ami-0000000b"), BTreeSet::from([account(TARGET)])),
    ]);
    assert_eq!(record.images_given().await.unwrap(), given);
}

#[tokio::test]
async fn a_mark_is_for_a_note_that_is_there() {
    let aws = Aws::with_table();
    aws.note(&gift(TARGET, "ami-0123abcd"), &json!({}));
    let record = Record::open(&aws.hub).unwrap();
    let mark = Mark::noted("undo-1 9");
    record.mark(&account(TARGET), &image("ami-0123abcd"), &execution(), &mark).await.unwrap();
    record.mark(&account(TARGET), &image("ami-0000000b"), &execution(), &mark).await.unwrap();
    let notes = notes(&aws).await;
    assert_eq!(notes.iter().map(|note| note.going.clone()).collect::<Vec<_>>(), [Some(mark)]);
}

#[tokio::test]
async fn a_mark_that_is_refused_is_an_error() {
    let aws = Aws::answering(|call| (call.operation == "UpdateItem").then_some(Err("AccessDeniedException")));
    let mark = Mark::noted("undo-1 9");
    let record = Record::open(&aws.hub).unwrap();
    let marked = record.mark(&account(TARGET), &image("ami-0123abcd"), &execution(), &mark).await;
    assert!(matches!(marked, Err(Error::AccessDenied { call: UPDATE, .. })));
}

fn change(going: &Mark) -> NoteChange {
    NoteChange {
        account_id: account(TARGET),
        image_id: image("ami-0123abcd"),
        execution: execution(),
        going: going.clone(),
        gift: None,
    }
}

#[tokio::test]
async fn a_note_that_is_still_marked_so_is_rewritten_unmarked_or_forgotten() {
    let mark = Mark::noted("undo-1 9");
    let aws = noted(&mark);
    let record = Record::open(&aws.hub).unwrap();
    let less: Gift = serde_json::from_value(gift(TARGET, "ami-0000000d")).unwrap();
    record.rewrite(&change(&mark), &less.to_text()).await.unwrap();
    assert_eq!((&notes(&aws).await[0].gift, &notes(&aws).await[0].going), (&less, &Some(mark.clone())));
    record.unmark(&change(&mark)).await.unwrap();
    assert_eq!(notes(&aws).await[0].going, None);
    let aws = noted(&mark);
    Record::open(&aws.hub).unwrap().forget(&change(&mark), 7_000).await.unwrap();
    assert_eq!(notes(&aws).await, []);
    let expires_at = aws.table().items().next().unwrap()["expiresAt"].clone();
    assert_eq!(expires_at, json!({ "N": "3607" }), "an hour later, in seconds");
}

#[tokio::test]
async fn nobody_relies_on_a_share_that_is_marked_or_will_be() {
    let marked = notes(&noted(&Mark::noted("undo-1 9"))).await.remove(0);
    assert!(marked.is_going());
    let stands = Note { going: None, ..marked };
    assert!(!stands.is_going());
    assert!(Note { goes_before: true, ..stands }.is_going());
}

/// EC2 may name its image for a while.
#[tokio::test]
async fn what_went_is_told_where_its_launch_permission_went_with_it_and_is_no_note_any_more() {
    let mark = Mark::noted("undo-1 9");
    for permission in [true, false] {
        let aws = Aws::with_table();
        let mut gift = gift(TARGET, "ami-0123abcd");
        gift["target"]["sourceChanges"] = json!({ "launchPermission": permission });
        aws.note(&gift, &json!({ "going": { "S": mark.as_str() } }));
        let record = Record::open(&aws.hub).unwrap();
        record.forget(&change(&mark), 7).await.unwrap();
        let source = Source { account_id: account("111111111111"), region: Region::parse("eu-west-1").unwrap() };
        let went = Went { source, image_id: image("ami-0123abcd"), at: 7 };
        let expected = Noted { notes: vec![], went: if permission { vec![went] } else { vec![] } };
        assert_eq!(noted_of(&aws).await, expected);
        // Nothing makes a note of it again, and a second try changes nothing.
        record.mark(&account(TARGET), &image("ami-0123abcd"), &execution(), &Mark::noted("undo-2 10")).await.unwrap();
        record.rewrite(&change(&mark), "{}").await.unwrap();
        record.unmark(&change(&mark)).await.unwrap();
        record.forget(&change(&mark), 8).await.unwrap();
        assert_eq!(noted_of(&aws).await, expected);
        assert_eq!(record.accounts_given(&image("ami-0123abcd")).await.unwrap(), []);
        assert_eq!(record.images_given().await.unwrap(), BTreeMap::new());
    }
}

#[tokio::test]
async fn a_note_that_somebody_has_marked_anew_stays_as_they_made_it() {
    let aws = noted(&Mark::noted("undo-2 10"));
    let before = notes(&aws).await;
    let record = Record::open(&aws.hub).unwrap();
    let change = change(&Mark::noted("undo-1 9"));
    record.rewrite(&change, "{}").await.unwrap();
    record.unmark(&change).await.unwrap();
    record.forget(&change, 7).await.unwrap();
    assert_eq!(notes(&aws).await, before);
}

#[tokio::test]
async fn what_the_table_refuses_is_an_error_and_its_throughput_passes() {
    for (code, passes) in [("ProvisionedThroughputExceededException", true), ("AccessDeniedException", false)] {
        let aws = Aws::answering(move |_| Some(Err(code)));
        let record = Record::open(&aws.hub).unwrap();
        let change = change(&Mark::noted("undo-1 9"));
        for error in [record.unmark(&change).await.unwrap_err(), record.forget(&change, 7).await.unwrap_err()] {
            assert_eq!((error.passes(), matches!(error, Error::AccessDenied { .. })), (passes, !passes), "{error}");
        }
    }
}
