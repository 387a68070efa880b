//! Filters and pages of the Describe calls.

use super::Tags;
use crate::wire::{ApiError, Params};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

/// One `Filter.N`: the item's value must match any of the filter's values.
#[derive(Debug)]
struct Filter {
    name: String,
    values: Vec<String>,
}

/// The filters of a call; an item must match all of them.
#[derive(Debug)]
pub(super) struct Filters(Vec<Filter>);

impl Filters {
    /// The call's filters; `InvalidParameterValue` for one that is neither in
    /// `known` nor about tags.
    pub(super) fn parse(params: &Params, known: &[&str]) -> Result<Self, ApiError> {
        params
            .structs("Filter")
            .iter()
            .map(|filter| {
                let name = filter.require("Name")?.to_owned();
                let about_tags = name == "tag-key" || name.starts_with("tag:");
                if !about_tags && !known.contains(&name.as_str()) {
                    return Err(ApiError::bad_request(
                        "InvalidParameterValue",
                        format!("The filter '{name}' is invalid"),
                    ));
                }
                Ok(Filter { name, values: filter.list("Value") })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether an item matches; `field` gives its values for a known filter.
    pub(super) fn match_item(&self, tags: &Tags, field: impl Fn(&str) -> Vec<String>) -> bool {
        self.0.iter().all(|filter| {
            let values = if let Some(key) = filter.name.strip_prefix("tag:") {
                tags.get(key).cloned().into_iter().collect()
            } else if filter.name == "tag-key" {
                tags.keys().cloned().collect()
            } else {
                field(&filter.name)
            };
            values.iter().any(|value| filter.values.iter().any(|pattern| glob(pattern, value)))
        })
    }
}

/// Whether `text` matches `pattern`, in which `*` is any text, `?` any character
/// and a backslash makes the next character plain.
fn glob(pattern: &str, text: &str) -> bool {
    fn matches(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['*', rest @ ..] => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
            ['?', rest @ ..] => !text.is_empty() && matches(rest, &text[1..]),
            ['\\', plain, rest @ ..] | [plain, rest @ ..] => text.first() == Some(plain) && matches(rest, &text[1..]),
        }
    }
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    matches(&pattern, &text)
}

/// The page of `items` that the call asks for, and the token of the next one.
///
/// `ids` is the name of the list of ids as AWS's message has it, if the call gave
/// one: ids and `MaxResults` exclude each other.
pub(super) fn page<T>(
    params: &Params,
    mut items: Vec<T>,
    ids: Option<&str>,
) -> Result<(Vec<T>, Option<String>), ApiError> {
    let Some(size) = params.get("MaxResults") else {
        return Ok((items, None));
    };
    if let Some(ids) = ids {
        return Err(ApiError::bad_request(
            "InvalidParameterCombination",
            format!("The parameter {ids} cannot be used with the parameter maxResults"),
        ));
    }
    let size = size.parse().ok().filter(|size| (5..=1000).contains(size)).ok_or_else(|| {
        ApiError::bad_request(
            "InvalidParameterValue",
            format!(
                "Value ( {size} ) for parameter maxResults is invalid. Expecting a value \
                     between 5 and 1000."
            ),
        )
    })?;
    let start = match params.get("NextToken") {
        Some(token) => parse_token(token)
            .ok_or_else(|| ApiError::bad_request("InvalidParameterValue", "Unable to parse pagination token"))?,
        None => 0,
    };
    let rest = items.split_off(start.min(items.len()));
    let more = rest.len() > size;
    let token = more.then(|| BASE64.encode(format!("{}", start + size)));
    Ok((rest.into_iter().take(size).collect(), token))
}

fn parse_token(token: &str) -> Option<usize> {
    let bytes = BASE64.decode(token).ok()?;
    String::from_utf8(bytes).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_match_as_in_ec2() {
        assert!(glob("web-*", "web-"));
        assert!(glob("*-2026-??", "web-2026-01"));
        assert!(!glob("web", "web-1"));
        assert!(glob("a\\*", "a*"));
        assert!(!glob("a\\*", "ab"));
    }

    #[test]
    fn pages_follow_each_other() {
        let first = Params::from_pairs([("MaxResults", "5")]);
        let (items, token) = page(&first, (0..7).collect(), None).unwrap();
        assert_eq!(items, [0, 1, 2, 3, 4]);
        let second = Params::from_pairs([("MaxResults", "5".to_owned()), ("NextToken", token.unwrap())]);
        let (items, token) = page(&second, (0..7).collect(), None).unwrap();
        assert_eq!((items, token), (vec![5, 6], None));
    }
}
