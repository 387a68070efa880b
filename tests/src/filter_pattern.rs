//! Filter patterns of CloudWatch Logs for events in JSON, as far as the template has them ("Filter pattern syntax", CloudWatch
//! Logs user guide): the local engine keeps metric filters, and evaluates none.

use serde_json::Value;

use crate::Result;

/// Whether `pattern` matches a line of a log; no line that is not JSON is matched.
///
/// # Errors
/// What this does not know of the syntax.
pub fn matches(pattern: &str, line: &str) -> Result<bool> {
    let inner = pattern.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    let tokens = tokens(inner.ok_or_else(|| format!("no pattern for JSON: {pattern}"))?)?;
    let event = serde_json::from_str(line).unwrap_or(Value::Null);
    let mut rest = tokens.as_slice();
    let matches = all(&mut rest, &event)?;
    if rest.is_empty() { Ok(matches) } else { Err(format!("not understood from {rest:?}: {pattern}").into()) }
}

/// Strings keep their quotation marks.
fn tokens(text: &str) -> Result<Vec<&str>> {
    let (mut tokens, mut rest) = (Vec::new(), text.trim_start());
    while !rest.is_empty() {
        let length = if let Some(string) = rest.strip_prefix('"') {
            2 + string.find('"').ok_or_else(|| format!("a string has no end: {text}"))?
        } else {
            match ["&&", "||", "(", ")"].iter().find(|token| rest.starts_with(**token)) {
                Some(token) => token.len(),
                None => rest.find([' ', '\n', '(', ')']).unwrap_or(rest.len()),
            }
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

/// Terms with `&&` between all of them, or with `||`: AWS does not say which binds more.
fn all(tokens: &mut &[&str], event: &Value) -> Result<bool> {
    let mut found = one(tokens, event)?;
    let operator = tokens.first().copied();
    while let Some(next @ ("&&" | "||")) = tokens.first().copied() {
        if operator != Some(next) {
            return Err("&& and || without parentheses".into());
        }
        *tokens = &tokens[1..];
        let term = one(tokens, event)?;
        found = if next == "&&" { found && term } else { found || term };
    }
    Ok(found)
}

fn one(tokens: &mut &[&str], event: &Value) -> Result<bool> {
    match **tokens {
        ["(", ..] => {
            *tokens = &tokens[1..];
            let found = all(tokens, event)?;
            *tokens = tokens.strip_prefix(&[")"]).ok_or("a parenthesis has no end")?;
            Ok(found)
        }
        [selector, operator, value, ..] => {
            *tokens = &tokens[3..];
            compare(field(selector, event)?, operator, value)
        }
        _ => Err(format!("no term: {tokens:?}").into()),
    }
}

fn field<'e>(selector: &str, event: &'e Value) -> Result<&'e Value> {
    let path = selector.strip_prefix("$.").ok_or_else(|| format!("no selector: {selector}"))?;
    Ok(path.split('.').fold(event, |value, name| &value[name]))
}

fn compare(found: &Value, operator: &str, value: &str) -> Result<bool> {
    let text = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    match (operator, text) {
        ("=", Some(text)) => Ok(found.as_str().is_some_and(|found| is_like(text, found))),
        (">", None) => {
            let least: f64 = value.parse().map_err(|_| format!("no number: {value}"))?;
            Ok(found.as_f64().is_some_and(|found| found > least))
        }
        _ => Err(format!("{operator} {value} is not known here").into()),
    }
}

/// `*` stands for any text.
fn is_like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| is_like(rest, &text[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pattern_matches_by_fields_with_and_or_and_wildcards() {
        let line =
            json!({ "type": "Ended", "arn": "a:run:b:c", "details": { "error": "One" }, "found": 3 }).to_string();
        for (pattern, expected) in [
            (r#"{ $.type = "Ended" }"#, true),
            (r#"{ $.type = "End" }"#, false),
            (r#"{ $.arn = "*:run:b:*" }"#, true),
            (r#"{ $.arn = "*:run:" }"#, false),
            (r#"{ $.type = "Ended" && ($.details.error = "Two" || $.details.error = "One") }"#, true),
            (r#"{ $.type = "Ended" && ($.details.error = "Two"|| $.details.error = "Three") }"#, false),
            ("{ $.found > 2 }", true),
            ("{ $.found > 3 }", false),
            ("{ $.missing > 0 }", false),
            (r#"{ $.details.missing.deeper = "*" }"#, false),
        ] {
            assert_eq!(matches(pattern, &line).unwrap(), expected, "{pattern}");
        }
        assert!(!matches(r#"{ $.type = "Ended" }"#, "Ended").unwrap());
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        for pattern in [
            r#"$.type = "Ended""#,
            r#"{ $.type = "Ended }"#,
            r#"{ $.type != "Ended" }"#,
            r#"{ ($.type = "Ended" }"#,
            r#"{ $.a = "b" && $.c = "d" || $.e = "f" }"#,
            "{ $.found > many }",
            r#"{ type = "Ended" }"#,
            r#"{ $.type = "Ended" $.a }"#,
        ] {
            assert!(matches(pattern, "{}").is_err(), "{pattern}");
        }
    }
}
