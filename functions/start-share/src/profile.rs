//! A profile: a request without its image, kept under a name.

use ami_share_core::{
    Error, Problem,
    ids::{ExecutionName, ImageId},
    share::Source,
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::PROFILE_TAG;

/// The longest name of an execution (Step Functions API reference, StartExecution).
const EXECUTION_NAME_LENGTH: usize = 80;
/// Hexadecimal digits that tell names apart that had to be cut.
const HASH_LENGTH: usize = 12;

/// A profile's name: 1 to 128 of letters, digits and `_.-`, which mean nothing to Parameter Store
/// (a slash would lead elsewhere, a colon to another version) and are good in an execution's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile(String);

impl Profile {
    /// # Errors
    /// [`Error::InvalidRequest`] for anything but such a name.
    pub(crate) fn parse(name: String) -> Result<Self, Error> {
        let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        let only_dots = name.bytes().all(|b| b == b'.');
        if fits && !only_dots && name.len() <= 128 {
            Ok(Self(name))
        } else {
            let rule = "must be the name of a profile: 1 to 128 letters, digits or _.-, and not only dots";
            Err(Error::invalid(PROFILE_TAG, name, rule))
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The SSM parameter that holds the request.
    pub(crate) fn parameter(&self, prefix: &str) -> String {
        format!("{prefix}/{}", self.0)
    }

    /// The same for the same image and profile, and no other.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`], never with an image id and a profile that are well-formed.
    pub(crate) fn execution_name(&self, image: &ImageId) -> Result<ExecutionName, Error> {
        let mut name = format!("{image}-{}", self.0);
        if name.len() > EXECUTION_NAME_LENGTH {
            let hash: String = Sha256::digest(&name).iter().map(|byte| format!("{byte:02x}")).collect();
            name.truncate(EXECUTION_NAME_LENGTH - HASH_LENGTH - 1);
            name = format!("{name}-{}", &hash[..HASH_LENGTH]);
        }
        ExecutionName::parse(name).map_err(|rule| Error::invalid(PROFILE_TAG, &self.0, format!("must make {rule}")))
    }

    /// The request that `text` is, for `image` in `source`.
    ///
    /// What else it says is the business of share-ami's first state, which names every problem.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] when it is no JSON object, or says another image, source account
    /// or Region than those that the event came from.
    pub(crate) fn request(&self, text: &str, image: &ImageId, source: &Source) -> Result<Value, Error> {
        let refuse = |problem: &str| Error::invalid(format!("profile {}", self.0), text, problem);
        let mut request: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| refuse(&format!("must be a JSON object: {error}")))?;
        let mut from = match request.remove("source") {
            None => Map::new(),
            Some(Value::Object(from)) => from,
            Some(_) => return Err(refuse("must have an object as its source, or none")),
        };
        let mut problems = Vec::new();
        problems.extend(set(&mut request, "imageId", image.as_str()));
        problems.extend(set(&mut from, "accountId", source.account_id.as_str()));
        problems.extend(set(&mut from, "region", source.region.as_str()));
        request.insert("source".to_owned(), json!(from));
        if problems.is_empty() { Ok(Value::Object(request)) } else { Err(Error::InvalidRequest(problems)) }
    }
}

/// Sets `field`, which is absent or has that value already.
fn set(object: &mut Map<String, Value>, field: &str, value: &str) -> Option<Problem> {
    let before = object.insert(field.to_owned(), json!(value)).filter(|before| *before != json!(value))?;
    Some(Problem {
        field: field.to_owned(),
        value: Some(before.to_string()),
        rule: format!("must be left out of a profile, or be {value}, where the event came from"),
    })
}

#[cfg(test)]
mod tests {
    use ami_share_core::ids::{AccountId, Region};

    use super::*;

    fn image() -> ImageId {
        ImageId::parse("ami-0123456789abcdef0").unwrap()
    }

    fn source() -> Source {
        Source { account_id: AccountId::parse("111111111111").unwrap(), region: Region::parse("eu-west-1").unwrap() }
    }

    fn profile(name: &str) -> Profile {
        Profile::parse(name.to_owned()).unwrap()
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        for wrong in ["", ".", "..", "a/b", "../a", "a:1", "a b", "ä", "a\n", &"a".repeat(129)] {
            assert!(Profile::parse(wrong.to_owned()).is_err(), "{wrong:?}");
        }
        assert_eq!(profile("web-1.2_x").parameter("/ami-share/profiles"), "/ami-share/profiles/web-1.2_x");
    }

    #[test]
    fn an_execution_is_named_after_image_and_profile() {
        assert_eq!(profile("web").execution_name(&image()).unwrap().as_str(), "ami-0123456789abcdef0-web");
        let fits = "p".repeat(58);
        assert_eq!(profile(&fits).execution_name(&image()).unwrap().as_str().len(), 80);
    }

    #[test]
    fn a_long_name_is_cut_and_stays_distinct() {
        let name = |profile_name: String| profile(&profile_name).execution_name(&image()).unwrap();
        let (one, two) = (name(format!("{}1", "p".repeat(100))), name(format!("{}2", "p".repeat(100))));
        assert_eq!(one.as_str().len(), 80);
        assert_ne!(one, two);
        assert!(one.as_str().starts_with("ami-0123456789abcdef0-ppp"), "{one}");
    }

    #[test]
    fn image_and_source_are_put_in() {
        let request =
            profile("web").request(r#"{ "targets": [{ "accountId": "222222222222" }] }"#, &image(), &source()).unwrap();
        assert_eq!(
            request,
            json!({
                "targets": [{ "accountId": "222222222222" }],
                "imageId": "ami-0123456789abcdef0",
                "source": { "accountId": "111111111111", "region": "eu-west-1" }
            })
        );
    }

    #[test]
    fn what_says_the_same_as_the_event_is_taken() {
        let text = r#"{ "imageId": "ami-0123456789abcdef0", "source": { "region": "eu-west-1" } }"#;
        assert!(profile("web").request(text, &image(), &source()).is_ok());
    }

    #[test]
    fn a_profile_for_something_else_is_refused_with_every_problem() {
        let text = r#"{ "imageId": "ami-0fffffffffffffff0", "source": { "accountId": "9", "region": "eu-west-2" } }"#;
        let error = profile("web").request(text, &image(), &source()).unwrap_err().to_string();
        for part in ["ami-0fffffffffffffff0", "\"9\"", "eu-west-2"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_profile_that_is_no_request_is_refused() {
        for wrong in ["", "[]", "null", "{", r#"{ "source": "eu-west-1" }"#] {
            let error = profile("web").request(wrong, &image(), &source()).unwrap_err();
            assert_eq!(error.name(), "InvalidRequest", "{wrong:?}");
        }
    }
}
