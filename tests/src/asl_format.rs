//! The format of the definitions in statemachine/, in which a machine reads as its states: what fits into a line
//! stands on one, and retriers, and what a Catch makes of an error, do so however long they are.

use std::{fs, io, path::PathBuf};

use serde_json::Value;

use crate::{Result, engine::checkout};

const WIDTH: usize = 130;
/// What a Catch assigns of an error: always the same fields, which nobody wants to read one by one.
const ONE_LINE: [&str; 6] = ["failure", "left", "targetFailure", "targetLeft", "reportFailure", "settleFailure"];
/// Their members have lines of their own, however short.
const LISTS: [&str; 4] = ["States", "Retry", "Catch", "Choices"];

/// Every definition, by name.
pub fn definitions() -> io::Result<Vec<PathBuf>> {
    let files = fs::read_dir(checkout().join("statemachine"))?.collect::<io::Result<Vec<_>>>()?;
    let mut paths: Vec<PathBuf> = files.into_iter().map(|file| file.path()).collect();
    paths.retain(|path| path.to_string_lossy().ends_with(".asl.json"));
    paths.sort();
    Ok(paths)
}

/// A definition in the repository's format.
pub fn format(definition: &str) -> Result<String> {
    Ok(block(&serde_json::from_str(definition)?, 0, "") + "\n")
}

/// `value`, the member `key` of something that is indented by `indent`, on as many lines as it needs.
fn block(value: &Value, indent: usize, key: &str) -> String {
    let line = line(value);
    let before = if key.is_empty() { 0 } else { key.chars().count() + r#""": "#.len() };
    let fits = indent + before + line.chars().count() <= WIDTH;
    if is_retrier(value) || ONE_LINE.contains(&key) || fits && !LISTS.contains(&key) && !has_list(value) {
        return line;
    }
    let inner = indent + 2;
    let (open, close, members): (_, _, Vec<String>) = match value {
        Value::Object(fields) if !fields.is_empty() => {
            let member = |(key, value): (&String, &Value)| format!("{}: {}", quoted(key), block(value, inner, key));
            ('{', '}', fields.iter().map(member).collect())
        }
        Value::Array(items) if !items.is_empty() => {
            ('[', ']', items.iter().map(|item| block(item, inner, "")).collect())
        }
        _ => return line,
    };
    let separator = format!(",\n{:inner$}", "");
    format!("{open}\n{:inner$}{}\n{:indent$}{close}", "", members.join(&separator), "")
}

fn line(value: &Value) -> String {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let members: Vec<String> =
                fields.iter().map(|(key, value)| format!("{}: {}", quoted(key), line(value))).collect();
            format!("{{ {} }}", members.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(line).collect::<Vec<_>>().join(", ")),
        _ => value.to_string(),
    }
}

fn is_retrier(value: &Value) -> bool {
    value.get("ErrorEquals").is_some() && value.get("Next").is_none()
}

/// Whether one of [`LISTS`], with members, is somewhere inside.
fn has_list(value: &Value) -> bool {
    let is_empty = |value: &Value| {
        value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
    };
    match value {
        Value::Object(fields) => {
            fields.iter().any(|(key, value)| LISTS.contains(&key.as_str()) && !is_empty(value) || has_list(value))
        }
        Value::Array(items) => items.iter().any(has_list),
        _ => false,
    }
}

fn quoted(key: &str) -> String {
    Value::from(key).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_stands_on_one_line_but_for_states_and_rules() {
        let definition = r#"{"States":{"Look":{"Type":"Task","Arguments":{"id":"a","empty":{},"none":[]},
            "Retry":[{"ErrorEquals":["Throttled"],"MaxAttempts":2}],"Catch":[],"Next":"Choose"},
            "Choose":{"Type":"Choice","Choices":[{"Condition":"x","Next":"End"}],"Default":"Look"},
            "End":{"Type":"Succeed"}}}"#;
        let expected = r#"{
  "States": {
    "Look": {
      "Type": "Task",
      "Arguments": { "id": "a", "empty": {}, "none": [] },
      "Retry": [
        { "ErrorEquals": ["Throttled"], "MaxAttempts": 2 }
      ],
      "Catch": [],
      "Next": "Choose"
    },
    "Choose": {
      "Type": "Choice",
      "Choices": [
        { "Condition": "x", "Next": "End" }
      ],
      "Default": "Look"
    },
    "End": { "Type": "Succeed" }
  }
}
"#;
        assert_eq!(format(definition).unwrap(), expected);
        assert_eq!(format(expected).unwrap(), expected);
    }

    #[test]
    fn retriers_and_failures_stand_on_one_line_however_long() {
        let long = "é".repeat(WIDTH);
        let catch = format!(r#"{{ "error": "{long}", "state": "Look" }}"#);
        let retrier = format!(r#"{{ "ErrorEquals": ["{long}"], "MaxAttempts": 2 }}"#);
        let definition = format!(
            r#"{{"Retry":[{retrier}],"Catch":[{{"ErrorEquals":["States.ALL"],"Assign":{{"failure":{catch}}},"Next":"End"}}]}}"#
        );
        let formatted = format(&definition).unwrap();
        assert!(formatted.contains(&format!("\n    {retrier}\n")), "{formatted}");
        assert!(formatted.contains(&format!("\n        \"failure\": {catch}\n")), "{formatted}");
    }

    #[test]
    fn a_line_has_room_for_its_key() {
        let fits = |length: usize| {
            let definition = format!(r#"{{"key":{{"k":"{}"}},"other":"{}"}}"#, "é".repeat(length), "x".repeat(WIDTH));
            format(&definition).unwrap().lines().count() == 4
        };
        let most = WIDTH - r#"  "key": { "k": "" }"#.len();
        assert!(fits(most) && !fits(most + 1));
    }
}
