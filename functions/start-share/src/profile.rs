//! A profile: a request without its image, kept under a name.

use ami_share_core::{
    Error, Problem, digest,
    ids::{ExecutionName, ImageId},
    share::Source,
};
use serde_json::{Map, Value, json};

/// The image's tag that names its profile.
pub const PROFILE_TAG: &str = "ami-share:profile";

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

    /// The same for the same image, profile and enabling, and no other. From the second enabling on its number is told
    /// by what is in no id of an image, and follows that.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`], never with an image id and a profile that are well-formed.
    pub(crate) fn execution_name(&self, image: &ImageId, enabling: u32) -> Result<ExecutionName, Error> {
        let mut name = match enabling {
            1 => format!("{image}-{}", self.0),
            _ => format!("{image}_{enabling}-{}", self.0),
        };
        if name.len() > EXECUTION_NAME_LENGTH {
            let hash = digest::sha256(&name);
            name.truncate(EXECUTION_NAME_LENGTH - HASH_LENGTH - 1);
            name = format!("{name}-{}", &hash[..HASH_LENGTH]);
        }
        ExecutionName::parse(name).map_err(|rule| Error::invalid(PROFILE_TAG, &self.0, format!("must make {rule}")))
    }

    /// The request that `text`, the value of the SSM parameter, is for `image` in `source`.
    ///
    /// What else it says is the business of share-ami's first state, which names every problem.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] when it is no JSON object, or says another image, source account
    /// or Region than those that the event came from. It names the parameter and the place in it, and
    /// repeats no more of the text: who may read a log may not read every parameter.
    pub(crate) fn request(&self, prefix: &str, text: &str, image: &ImageId, source: &Source) -> Result<Value, Error> {
        let parameter = format!("SSM parameter {}", self.parameter(prefix));
        let refuse = |field: &str, rule: String| Error::InvalidRequest(vec![problem(&parameter, field, None, rule)]);
        let read: Value = serde_json::from_str(text).map_err(|error| refuse("", format!("must be JSON: {error}")))?;
        let Value::Object(mut request) = read else {
            return Err(refuse("", "must be a JSON object".to_owned()));
        };
        let mut from = match request.remove("source") {
            None => Map::new(),
            Some(Value::Object(from)) => from,
            Some(_) => return Err(refuse("source", "must be an object, or be left out".to_owned())),
        };
        let from_event = [
            ("imageId", request.insert("imageId".to_owned(), json!(image)), image.as_str()),
            (
                "source.accountId",
                from.insert("accountId".to_owned(), json!(source.account_id)),
                source.account_id.as_str(),
            ),
            ("source.region", from.insert("region".to_owned(), json!(source.region)), source.region.as_str()),
        ];
        request.insert("source".to_owned(), json!(from));
        let problems: Vec<Problem> = from_event
            .into_iter()
            .filter_map(|(field, before, value)| {
                let before = before.filter(|before| before != value)?;
                let rule = format!("must be left out, or be {value}, where the event came from");
                Some(problem(&parameter, field, before.is_string().then(|| before.to_string()), rule))
            })
            .collect();
        if problems.is_empty() { Ok(Value::Object(request)) } else { Err(Error::InvalidRequest(problems)) }
    }
}

/// What is wrong at `field` of the request that `parameter` holds, or with the whole.
fn problem(parameter: &str, field: &str, value: Option<String>, rule: String) -> Problem {
    let field = if field.is_empty() { parameter.to_owned() } else { format!("{field} of {parameter}") };
    Problem { field, value, rule }
}

#[cfg(test)]
mod tests {
    use ami_share_core::ids::{AccountId, Region};

    use super::*;

    const PREFIX: &str = "/ami-share/profiles";

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
        assert_eq!(profile("web").execution_name(&image(), 1).unwrap().as_str(), "ami-0123456789abcdef0-web");
        let fits = "p".repeat(58);
        assert_eq!(profile(&fits).execution_name(&image(), 1).unwrap().as_str().len(), 80);
    }

    #[test]
    fn each_enabling_has_an_execution_of_its_own() {
        let name = |profile_name: &str, enabling| profile(profile_name).execution_name(&image(), enabling).unwrap();
        assert_eq!(name("web", 2).as_str(), "ami-0123456789abcdef0_2-web");
        let mut names: Vec<_> = (1..=3).flat_map(|n| [name("web", n), name("2-web", n), name("_2-web", n)]).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 9);
    }

    #[test]
    fn a_long_name_is_cut_and_stays_distinct() {
        let name = |profile_name: String| profile(&profile_name).execution_name(&image(), 1).unwrap();
        let (one, two) = (name(format!("{}1", "p".repeat(100))), name(format!("{}2", "p".repeat(100))));
        assert_eq!(one.as_str().len(), 80);
        assert_ne!(one, two);
        assert!(one.as_str().starts_with("ami-0123456789abcdef0-ppp"), "{one}");
    }

    #[test]
    fn image_and_source_are_put_in() {
        let request = profile("web")
            .request(PREFIX, r#"{ "targets": [{ "accountId": "222222222222" }] }"#, &image(), &source())
            .unwrap();
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
        assert!(profile("web").request(PREFIX, text, &image(), &source()).is_ok());
    }

    #[test]
    fn a_profile_for_something_else_is_refused_with_every_problem() {
        let text = r#"{ "imageId": "ami-0fffffffffffffff0", "source": { "accountId": "9", "region": "eu-west-2" } }"#;
        let error = profile("web").request(PREFIX, text, &image(), &source()).unwrap_err().to_string();
        for part in ["imageId of ", "ami-0fffffffffffffff0", "source.accountId of ", "source.region of ", "eu-west-2"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_profile_that_is_no_request_is_refused_without_repeating_it() {
        let parameter = "SSM parameter /ami-share/profiles/web: ";
        for (wrong, place) in [
            ("", "line 1 column 0"),
            ("hunter2", "line 1 column 1"),
            ("{\n \"targets\": [] \"hunter2\"}", "line 2 column 16"),
            (r#"["hunter2"]"#, "a JSON object"),
            (r#""hunter2""#, "a JSON object"),
            (r#"{ "source": "hunter2" }"#, "source of "),
            (r#"{ "imageId": { "secret": "hunter2" } }"#, "imageId of "),
        ] {
            let error = profile("web").request(PREFIX, wrong, &image(), &source()).unwrap_err();
            assert_eq!(error.name(), "InvalidRequest", "{wrong:?}");
            let text = error.to_string();
            assert!(text.contains(parameter) && text.contains(place), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
