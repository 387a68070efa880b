//! RewriteNotes: has the notes of a share say what is left of it, after the undos, and says what became of all.

use ami_share_core::{
    Error, Hub,
    hub::Actions,
    ids::{ExecutionName, ImageId},
    share::Kept,
    take_back::{Foreign, Left, NoteChange, Taken, TakenBack, Unlisted},
};
use ami_share_record::Record;
use futures_util::{StreamExt, stream};
use serde::Deserialize;

pub use ami_share_record::REWRITE_ACTIONS as HUB_ACTIONS;

pub const ACTIONS: Actions = Actions::NONE;

/// How many notes are written at a time.
const CONCURRENCY: usize = 16;

/// The longest cause, in characters, as the states cut theirs.
const MAX_CAUSE: usize = 500;

/// The steps that decide what may be taken: what they leave is in the notes as they are to be.
const DECIDING: [&str; 2] = ["ResolveUndo", "ResolveRevoke"];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Input {
    pub execution: ExecutionName,
    /// The image whose shares are taken back.
    pub image_id: ImageId,
    pub notes: Vec<NoteChange>,
    pub taken: Vec<Taken>,
    pub left: Vec<Left>,
    pub kept: Vec<Kept>,
    /// Grants that targets passed on, and that stay.
    pub foreign: Foreign,
}

/// What is to be done to a note.
#[derive(Debug, PartialEq, Eq)]
enum Rewrite {
    /// It stays as it is: something of it is left, and the next one who takes it back tries all of it again.
    Nothing,
    /// It stays, and its target, which can still launch the image, needs what it needs for that.
    Unmark,
    Change(String),
    Forget,
}

/// Rewrites each note, or removes it, where it is still marked as it was. What cannot be written is left.
///
/// # Errors
/// [`Error::Throttled`] and [`Error::Unavailable`]: everything can be done again.
#[tracing::instrument(skip_all, fields(execution = %input.execution))]
pub async fn rewrite_notes(hub: &Hub, input: Input) -> Result<TakenBack, Error> {
    let Input { execution, image_id, notes, taken, mut left, kept, foreign } = input;
    left.extend(write(hub, &execution, &image_id, &notes, &left).await?);
    let mut answer = TakenBack::default();
    let unlisted = Unlisted { foreign_grants: foreign.unlisted, ..Unlisted::default() };
    answer.add(TakenBack { taken, left, kept, foreign_grants: foreign.grants, unlisted });
    Ok(answer)
}

/// What could not be written.
async fn write(
    hub: &Hub,
    execution: &ExecutionName,
    image: &ImageId,
    notes: &[NoteChange],
    left: &[Left],
) -> Result<Vec<Left>, Error> {
    let rewrites = notes.iter().map(|note| (note, rewrite_of(execution, image, note, left)));
    let rewrites: Vec<_> = rewrites.filter(|(_, rewrite)| *rewrite != Rewrite::Nothing).collect();
    if rewrites.is_empty() {
        return Ok(Vec::new());
    }
    let record = &Record::open(hub)?;
    let written: Vec<Result<(), (&NoteChange, Error)>> = stream::iter(rewrites)
        .map(|(note, rewrite)| async move {
            let written = match rewrite {
                Rewrite::Nothing => Ok(()),
                Rewrite::Unmark => record.unmark(note).await,
                Rewrite::Change(gift) => record.rewrite(note, &gift).await,
                Rewrite::Forget => record.forget(note, hub.now_ms()).await,
            };
            written.map_err(|error| (note, error))
        })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    let mut left = Vec::new();
    for (note, error) in written.into_iter().filter_map(Result::err) {
        if matches!(error, Error::Throttled { .. } | Error::Unavailable { .. }) {
            return Err(error);
        }
        left.push(Left {
            account_id: Some(note.account_id.clone()),
            state: "RewriteNotes".to_owned(),
            error: error.name().to_owned(),
            cause: error.to_string().chars().take(MAX_CAUSE).collect(),
        });
    }
    Ok(left)
}

fn rewrite_of(execution: &ExecutionName, image: &ImageId, note: &NoteChange, left: &[Left]) -> Rewrite {
    let undone = left.iter().filter(|left| !DECIDING.contains(&left.state.as_str()));
    let of_note: Vec<&Left> =
        undone.filter(|left| left.account_id.as_ref().is_none_or(|account| *account == note.account_id)).collect();
    if of_note.iter().any(|left| left.state == "UndoShareImage") {
        // Others' notes only lose what nobody needs any more.
        return if note.going.is_by(execution) && note.image_id == *image { Rewrite::Unmark } else { Rewrite::Nothing };
    }
    if !of_note.is_empty() {
        return Rewrite::Nothing;
    }
    match &note.gift {
        Some(gift) => Rewrite::Change(gift.clone()),
        None => Rewrite::Forget,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ami_share_core::{
        ids::{AccountId, ImageId},
        mark::Mark,
    };
    use ami_share_mocked::Aws;
    use serde_json::{Value, json};

    fn account(digit: u8) -> AccountId {
        AccountId::parse(digit.to_string().repeat(12)).unwrap()
    }

    fn note(gift: Option<&str>) -> NoteChange {
        NoteChange {
            account_id: account(2),
            image_id: ImageId::parse("ami-0123abcd").unwrap(),
            execution: ExecutionName::parse("nightly").unwrap(),
            going: Mark::noted("undo-1 1764273600000"),
            gift: gift.map(str::to_owned),
        }
    }

    fn left(state: &str, of: Option<u8>) -> Left {
        Left { account_id: of.map(account), state: state.into(), error: "AccessDenied".into(), cause: String::new() }
    }

    fn changed(gift: &str) -> Rewrite {
        Rewrite::Change(gift.to_owned())
    }

    /// For the take-back of undo-1.
    fn rewrite_of(note: &NoteChange, left: &[Left]) -> Rewrite {
        super::rewrite_of(
            &ExecutionName::parse("undo-1").unwrap(),
            &ImageId::parse("ami-0123abcd").unwrap(),
            note,
            left,
        )
    }

    #[test]
    fn a_note_says_what_its_target_still_has_or_goes() {
        assert_eq!(rewrite_of(&note(None), &[]), Rewrite::Forget);
        assert_eq!(rewrite_of(&note(Some("{}")), &[]), changed("{}"));
    }

    #[test]
    fn a_note_stays_as_it_is_where_something_of_it_was_left() {
        for state in ["UndoShareSnapshots", "UndoGrantKeys", "UndoShareKey"] {
            assert_eq!(rewrite_of(&note(None), &[left(state, None)]), Rewrite::Nothing, "{state}");
        }
        for state in ["UndoLaunchInstance", "UndoCopyImage", "UndoGrantPrincipals"] {
            assert_eq!(rewrite_of(&note(Some("{}")), &[left(state, Some(2))]), Rewrite::Nothing, "{state}");
            assert_eq!(rewrite_of(&note(None), &[left(state, Some(3))]), Rewrite::Forget, "{state} of another target");
        }
    }

    #[test]
    fn a_note_whose_launch_permission_was_left_counts_again() {
        let image = left("UndoShareImage", None);
        assert_eq!(rewrite_of(&note(None), &[left("UndoShareKey", None), image.clone()]), Rewrite::Unmark);
        assert_eq!(rewrite_of(&note(Some("{}")), &[image]), Rewrite::Unmark);
        let of_another = NoteChange { going: Mark::noted("undo-2 1764273600000"), ..note(Some("{}")) };
        assert_eq!(rewrite_of(&of_another, &[left("UndoShareImage", None)]), Rewrite::Nothing);
        // A revoke of all images has taken that image back in another round.
        let of_another_image = NoteChange { image_id: ImageId::parse("ami-0000abcd").unwrap(), ..note(Some("{}")) };
        assert_eq!(rewrite_of(&of_another_image, &[left("UndoShareImage", None)]), Rewrite::Nothing);
    }

    #[test]
    fn what_was_decided_to_stay_is_in_the_note_already() {
        for state in DECIDING {
            for of in [None, Some(2)] {
                assert_eq!(rewrite_of(&note(Some("{}")), &[left(state, of)]), changed("{}"), "{state}");
            }
        }
    }

    /// What is left of take-back undo-1, whose one note the table has, marked by it.
    async fn rewritten(aws: &Aws, gift: Option<&str>, left: Vec<Left>) -> Result<TakenBack, Error> {
        let noted = json!({
            "execution": "nightly", "image": { "imageId": "ami-0123abcd" }, "target": { "accountId": account(2) },
        });
        aws.note(&noted, &json!({ "going": { "S": note(gift).going } }));
        let input = Input {
            execution: ExecutionName::parse("undo-1").unwrap(),
            image_id: ImageId::parse("ami-0123abcd").unwrap(),
            notes: vec![note(gift)],
            taken: vec![taken()],
            left,
            kept: vec![kept()],
            foreign: Foreign::default(),
        };
        rewrite_notes(&aws.hub, input).await
    }

    fn taken() -> Taken {
        let (call, resource) = ("kms:PutKeyPolicy".to_owned(), "key".to_owned());
        Taken { call, account_id: account(1), resource, from: vec![] }
    }

    fn kept() -> Kept {
        Kept { account_id: account(2), image_id: ImageId::parse("ami-0000abcd").unwrap() }
    }

    /// What the table has under that name in its one note; nothing where that is gone.
    fn noted(aws: &Aws, name: &str) -> Option<Value> {
        aws.table().items().next()?.get(name).cloned()
    }

    #[tokio::test]
    async fn notes_become_what_they_are_to_be_and_all_that_was_done_is_told() {
        let aws = Aws::with_table();
        let undecided = left("ResolveUndo", Some(2));
        let told = rewritten(&aws, None, vec![undecided.clone()]).await.unwrap();
        assert_eq!((noted(&aws, "gift"), told.taken, told.left), (None, vec![taken()], vec![undecided]));
        assert_eq!(told.kept, [kept()]);
        rewritten(&aws, Some("{}"), vec![]).await.unwrap();
        assert_eq!(noted(&aws, "gift"), Some(json!({ "S": "{}" })));
        rewritten(&aws, Some("{}"), vec![left("UndoShareImage", None)]).await.unwrap();
        assert!(noted(&aws, "gift").is_some() && noted(&aws, "going").is_none());
    }

    #[tokio::test]
    async fn the_table_is_not_asked_where_all_notes_stay() {
        let aws = Aws::with_table();
        rewritten(&aws, None, vec![left("UndoShareKey", None)]).await.unwrap();
        assert!(noted(&aws, "going").is_some());
        assert_eq!(aws.calls_of("UpdateItem").len(), 0);
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_left_and_what_passes_is_tried_again() {
        let aws = Aws::answering(|_| Some(Err("AccessDeniedException")));
        let told = rewritten(&aws, None, vec![]).await.unwrap();
        let [left] = &told.left[..] else { panic!("{told:?}") };
        assert_eq!((&left.account_id, left.state.as_str()), (&Some(account(2)), "RewriteNotes"));
        assert_eq!(left.error, "AccessDenied");
        let aws = Aws::answering(|_| Some(Err("ThrottlingException")));
        assert!(matches!(rewritten(&aws, None, vec![]).await, Err(Error::Throttled { .. })));
    }
}
