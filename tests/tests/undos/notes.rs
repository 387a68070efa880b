//! RewriteNotes: each note says what is left of it, unless somebody has written or marked it anew.

use super::*;

/// The marks of this take-back, and of another.
const OURS: &str = "undo 1800000000000";
const THEIRS: &str = "other 1800000000000";

const IMAGE: &str = "ami-0123456789abcdef0";

fn put(stage: &Stage, account: &str, going: Option<&str>) {
    let mut item = json!({
        "id": { "S": format!("target#{account}") },
        "part": { "S": format!("{IMAGE}#nightly") },
        "imageId": { "S": IMAGE },
        "notedAt": { "N": "1800000000000" },
        "gift": { "S": "{\"old\":true}" },
    });
    if let Some(going) = going {
        item["going"] = json!({ "S": going });
    }
    stage.machine.table().put(&item);
}

/// The note's gift and mark.
fn note(stage: &Stage, account: &str) -> Option<(String, Option<String>)> {
    let table = stage.machine.table();
    let item = table.items().find(|item| item["id"]["S"] == format!("target#{account}"))?;
    let text = |name: &str| item.get(name).and_then(|value| value["S"].as_str()).map(str::to_owned);
    let note = (text("gift")?, text("going"));
    assert_eq!((item["imageId"]["S"].as_str(), item["notedAt"]["N"].as_str()), (Some(IMAGE), Some("1800000000000")));
    Some(note)
}

fn input(accounts: &[&str], gift: Option<&str>, left: Value) -> Value {
    let notes = accounts.iter().map(|account| {
        let mut note = json!({ "accountId": account, "imageId": IMAGE, "execution": "nightly", "going": OURS });
        if let Some(gift) = gift {
            note["gift"] = json!(gift);
        }
        note
    });
    let taken = json!([{ "call": "kms:PutKeyPolicy", "accountId": SOURCE, "resource": "key", "from": accounts }]);
    let kept = json!([{ "accountId": TARGET, "imageId": IMAGE }]);
    let notes: Vec<Value> = notes.collect();
    let foreign = json!({ "grants": [], "unlisted": 0 });
    json!({
        "execution": "undo", "imageId": IMAGE, "notes": notes, "taken": taken, "left": left, "kept": kept, "foreign": foreign
    })
}

fn marked(gift: &str, going: &str) -> Option<(String, Option<String>)> {
    Some((gift.to_owned(), Some(going.to_owned())))
}

const OLD: &str = "{\"old\":true}";

#[test]
fn notes_go_or_say_less_where_they_are_marked_as_they_were() {
    let stage = Stage::new();
    let others = ["444444444444", "555555555555", "666666666666"];
    put(&stage, TARGET, Some(OURS));
    put(&stage, others[0], Some(THEIRS));
    put(&stage, others[1], None);
    let all = [TARGET, others[0], others[1], others[2]];
    let ended = stage.call("RewriteNotes", &input(&all, Some("{}"), json!([])));
    assert_eq!(ended.error, None);
    assert_eq!(note(&stage, TARGET), marked("{}", OURS));
    assert_eq!(note(&stage, others[0]), marked(OLD, THEIRS));
    assert_eq!(note(&stage, others[1]), Some((OLD.to_owned(), None)));
    assert_eq!(note(&stage, others[2]), None, "nothing is noted that was not");
    assert_eq!(ended.answer["left"], json!([]));
    assert_eq!(ended.answer["taken"][0]["from"], json!(all));
    assert_eq!(ended.answer["kept"], json!([{ "accountId": TARGET, "imageId": IMAGE }]));

    let ended = stage.call("RewriteNotes", &input(&all, None, json!([])));
    assert_eq!(ended.error, None);
    assert_eq!(note(&stage, TARGET), None);
    assert_eq!(note(&stage, others[0]), marked(OLD, THEIRS));
    assert_eq!(note(&stage, others[1]), Some((OLD.to_owned(), None)));
}

#[test]
fn a_note_of_what_was_left_stays_and_counts_again_where_its_target_can_launch() {
    let stage = Stage::new();
    let left = |state: &str| json!([{ "state": state, "error": "AccessDenied", "cause": "no" }]);
    put(&stage, TARGET, Some(OURS));
    let ended = stage.call("RewriteNotes", &input(&[TARGET], None, left("UndoShareKey")));
    assert_eq!(ended.answer["left"], left("UndoShareKey"));
    assert_eq!(note(&stage, TARGET), marked(OLD, OURS));
    stage.call("RewriteNotes", &input(&[TARGET], None, left("UndoShareImage")));
    assert_eq!(note(&stage, TARGET), Some((OLD.to_owned(), None)));

    // The note of a share that another take-back has marked is that one's to unmark.
    put(&stage, TARGET, Some(THEIRS));
    let mut of_another = input(&[TARGET], Some("{}"), left("UndoShareImage"));
    of_another["notes"][0]["going"] = json!(THEIRS);
    stage.call("RewriteNotes", &of_another);
    assert_eq!(note(&stage, TARGET), marked(OLD, THEIRS));
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_left() {
    let stage = Stage::new();
    put(&stage, TARGET, Some(OURS));
    let once = input(&[TARGET], Some("{}"), json!([]));
    for fault in [Fault::Throttled, Fault::Failed, Fault::ReplyLost] {
        stage.machine.set_faults([(1, fault)]);
        let ended = stage.call("RewriteNotes", &once);
        assert!(["Throttled", "Unavailable"].contains(&&*ended.error.unwrap()), "{fault:?}");
    }
    // The table takes no more from this role.
    let deny = json!({ "Version": "2012-10-17", "Statement": [{ "Effect": "Deny", "Action": "dynamodb:*", "Resource": "*" }] });
    let parameters = [("RoleName", "Function"), ("PolicyName", "no"), ("PolicyDocument", &*deny.to_string())];
    Caller::root(HUB).call(&mut stage.machine.world(), "iam", "PutRolePolicy", &parameters).unwrap();
    let ended = stage.call("RewriteNotes", &once);
    assert_eq!(ended.error, None);
    let left = &ended.answer["left"][0];
    assert_eq!((&left["accountId"], &left["state"]), (&json!(TARGET), &json!("RewriteNotes")), "{left}");
    assert_eq!(left["error"], "AccessDenied");
}
