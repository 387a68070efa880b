//! Whether what a target has was proved, as the executions that shared with it have noted.

use ami_share_core::{Error, ids::ImageId, share::Target};
use ami_share_record::{Note, Record};

/// The last note of a share like this one, which stands: of the same image or copy, in the same mode, under the same key.
/// Nothing where that share was not proved, or is only under way.
///
/// # Errors
/// As [`Record::notes_for`].
pub(crate) async fn last(record: &Record, image: &ImageId, target: &Target) -> Result<Option<Note>, Error> {
    let notes = record.notes_for(&target.account_id, image).await?;
    let launched = target.copy_id.as_ref().unwrap_or(image);
    let is_like_it = |note: &Note| {
        let noted = &note.gift.target;
        (note.launched(), noted.mode, &noted.kms_key_id) == (launched, target.mode, &target.kms_key_id)
    };
    let like_it = notes.into_iter().filter(|note| !note.is_going() && is_like_it(note));
    Ok(like_it.max_by_key(|note| note.noted_at).filter(Note::is_proved))
}
