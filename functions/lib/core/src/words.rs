//! What reports say: the same words for the same thing, and no more of them than there is room for.

use serde_json::{Deserializer, Value, json};

/// What went wrong, from an error's cause as Step Functions gives it: a function's error is JSON with `errorMessage`, which
/// a state machine may have cut; Step Functions' own errors are plain text.
pub fn message(cause: &str) -> String {
    if cause.is_empty() {
        return "no cause was given".to_owned();
    }
    if let Some(message) =
        serde_json::from_str::<Value>(cause).ok().as_ref().and_then(|all| all["errorMessage"].as_str())
    {
        return message.to_owned();
    }
    cause.split_once("\"errorMessage\":").and_then(|(_, rest)| first_string(rest)).unwrap_or_else(|| cause.to_owned())
}

/// The JSON string that `json` begins with, and that may end too early.
fn first_string(json: &str) -> Option<String> {
    if let Some(Ok(whole)) = Deserializer::from_str(json).into_iter().next() {
        return Some(whole);
    }
    // What was cut may end in the middle of an escape: of two of \uXXXX, at most.
    let ends = json.char_indices().map(|(end, _)| end).chain([json.len()]).rev().take(12);
    let closed = ends.filter_map(|end| serde_json::from_str::<String>(&format!("{}\"", &json[..end])).ok());
    closed.map(|start| start + "...").next()
}

/// What is to be known of volumes that are not encrypted; nothing where all are.
pub fn unencrypted(devices: &[String]) -> Option<String> {
    let what = match devices {
        [] => return None,
        [one] => format!("volume {one} of the image is not encrypted"),
        several => format!("volumes {} of the image are not encrypted", several.join(", ")),
    };
    Some(format!("{what}: whoever it is shared with needs no key for that"))
}

/// A sentence that others may follow.
pub fn with_full_stop(text: &str) -> String {
    if text.ends_with('.') { text.to_owned() } else { format!("{text}.") }
}

/// What was cut keeps its dots.
pub fn without_full_stop(text: &str) -> &str {
    text.strip_suffix('.').filter(|rest| !rest.ends_with('.')).unwrap_or(text)
}

/// As much of the beginning of `text` as a JSON string of so many bytes has room for.
pub fn cut(text: &str, most: usize) -> String {
    const DOTS: &str = "...";
    let mut bytes = 2;
    let mut end = 0;
    for (index, char) in text.char_indices() {
        bytes += json!(char).to_string().len() - 2;
        if bytes + DOTS.len() <= most {
            end = index + char.len_utf8();
        }
        if bytes > most {
            return text[..end].to_owned() + DOTS;
        }
    }
    text.to_owned()
}

/// The first of `items`, as many as a JSON string of so many bytes has room for, and the number of the rest, of which
/// `unlisted` are not among the items.
pub fn list(items: &[String], separator: &str, unlisted: usize, most: usize) -> String {
    let mut room = most.saturating_sub(40);
    let listed = items.iter().take_while(|item| {
        let bytes = json!(item).to_string().len() - 2 + separator.len();
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    });
    let mut listed: Vec<String> = listed.cloned().collect();
    match items.len() - listed.len() + unlisted {
        0 => {}
        more => listed.push(format!("and {more} more")),
    }
    listed.join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_read_wherever_it_was_cut() {
        let message_of = "the \"first\"\nof \u{1f600} many";
        let whole = json!({ "errorType": "Aws", "errorMessage": message_of, "stackTrace": ["a", "b"] });
        let whole = whole.to_string().replace('\u{1f600}', "\\ud83d\\ude00");
        assert_eq!(message(&whole), message_of);
        let begins = whole.find("the ").unwrap();
        for end in begins..whole.len() {
            let said = message(&whole[..end]);
            let start = said.strip_suffix("...").unwrap_or(&said);
            assert!(message_of.starts_with(start), "{said}");
            assert!(start.len() + 12 > (end - begins).min(message_of.len()), "too little of it is left: {said}");
        }
    }

    #[test]
    fn other_causes_are_told_as_they_are() {
        assert_eq!(message("The request timed out."), "The request timed out.");
        assert_eq!(message("{\"Status\":\"FAILED\"}"), "{\"Status\":\"FAILED\"}");
        assert_eq!(message(""), "no cause was given");
    }

    #[test]
    fn sentences_have_one_full_stop_and_what_was_cut_keeps_its_dots() {
        assert_eq!((with_full_stop("so"), with_full_stop("so.")), ("so.".to_owned(), "so.".to_owned()));
        assert_eq!(
            (without_full_stop("so."), without_full_stop("so..."), without_full_stop("so")),
            ("so", "so...", "so")
        );
    }

    #[test]
    fn what_is_cut_fits_as_json() {
        for text in ["x".repeat(200), "\"\n".repeat(100), "\u{1f600}\u{1}".repeat(40)] {
            for most in 6..100 {
                let cut = cut(&text, most);
                let bytes = json!(cut).to_string().len();
                assert!(bytes <= most && bytes + 8 >= most, "{bytes} of {most}: {cut}");
                assert!(text.starts_with(cut.strip_suffix("...").unwrap()), "{cut}");
            }
        }
        assert_eq!(cut("four", 6), "four");
    }

    #[test]
    fn what_a_list_has_no_room_for_is_counted() {
        let items: Vec<String> = (0..50).map(|n| format!("{n:010}")).collect();
        assert_eq!(list(&items[..2], "; ", 0, 100), "0000000000; 0000000001");
        let said = list(&items, "; ", 3, 100);
        assert_eq!(said, "0000000000; 0000000001; 0000000002; 0000000003; 0000000004; and 48 more");
    }
}
