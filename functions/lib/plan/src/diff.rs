//! What changes in a policy, to be read by people.

use ami_share_core::Error;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use similar::TextDiff;

/// Lines around a change.
const CONTEXT: usize = 3;

/// What changes in a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyDiff {
    /// Nothing where there is no policy yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_before: Option<usize>,
    /// As it would be written.
    pub bytes_after: usize,
    /// AWS's limit for `bytes_after`, where the policy stands alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_limit: Option<usize>,
    /// A unified diff of the documents, each laid out anew; one element a line, which is how a
    /// console shows it best.
    pub diff: Vec<String>,
}

impl PolicyDiff {
    /// # Errors
    /// [`Error::InvalidRequest`], never with documents that are JSON.
    pub fn new(before: Option<&str>, after: &str, bytes_limit: Option<usize>) -> Result<Self, Error> {
        let diff = unified(&before.map(lay_out).transpose()?.unwrap_or_default(), &lay_out(after)?);
        Ok(Self { bytes_before: before.map(str::len), bytes_after: after.len(), bytes_limit, diff })
    }

    /// Keeps as many lines as fit into `bytes` of JSON, and says how many were left out.
    pub fn cut(&mut self, bytes: usize) {
        let mut used = 0;
        let fits = |line: &&String| {
            used += written(line);
            used <= bytes
        };
        let kept = self.diff.iter().take_while(fits).count();
        let left_out = self.diff.len() - kept;
        if left_out > 0 {
            self.diff.truncate(kept);
            self.diff.push(format!("... {left_out} more lines"));
        }
    }

    /// What its lines take, in bytes of JSON.
    pub fn bytes(&self) -> usize {
        self.diff.iter().map(|line| written(line)).sum()
    }
}

/// The bytes that a line takes in a JSON list.
fn written(line: &str) -> usize {
    Value::from(line).to_string().len() + 1
}

fn lay_out(document: &str) -> Result<String, Error> {
    let laid_out = serde_json::from_str::<Value>(document).and_then(|value| serde_json::to_string_pretty(&value));
    laid_out
        .map(|text| text + "\n")
        .map_err(|error| Error::invalid("policy", document, format!("must be JSON: {error}")))
}

fn unified(before: &str, after: &str) -> Vec<String> {
    let diff = TextDiff::from_lines(before, after);
    diff.unified_diff().context_radius(CONTEXT).to_string().lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = r#"{"Version":"2012-10-17","Statement":[{"Sid":"A","Action":"kms:*"}]}"#;
    const AFTER: &str = r#"{"Version":"2012-10-17","Statement":[{"Sid":"A","Action":"kms:*"},{"Sid":"B"}]}"#;

    #[test]
    fn a_diff_has_what_is_added_and_the_lines_around_it() {
        let diff = PolicyDiff::new(Some(BEFORE), AFTER, Some(100)).unwrap();
        assert_eq!((diff.bytes_before, diff.bytes_after), (Some(BEFORE.len()), AFTER.len()));
        let expected = [
            "@@ -4,6 +4,9 @@",
            r#"     {"#,
            r#"       "Sid": "A","#,
            r#"       "Action": "kms:*""#,
            r#"+    },"#,
            r#"+    {"#,
            r#"+      "Sid": "B""#,
            r#"     }"#,
            r#"   ]"#,
            r#" }"#,
        ];
        assert_eq!(diff.diff, expected);
    }

    #[test]
    fn how_a_policy_is_laid_out_is_no_difference() {
        let laid_out = serde_json::to_string_pretty(&serde_json::from_str::<Value>(BEFORE).unwrap()).unwrap();
        assert!(PolicyDiff::new(Some(&laid_out), BEFORE, None).unwrap().diff.is_empty());
    }

    #[test]
    fn a_policy_that_was_not_there_is_new_from_its_first_line() {
        let diff = PolicyDiff::new(None, BEFORE, None).unwrap();
        assert_eq!(diff.bytes_before, None);
        assert!(diff.diff[1..].iter().all(|line| line.starts_with('+')), "{:?}", diff.diff);
    }

    #[test]
    fn a_diff_that_is_cut_says_how_much_is_missing() {
        let mut diff = PolicyDiff::new(Some(BEFORE), AFTER, None).unwrap();
        let whole = diff.clone();
        diff.cut(whole.bytes());
        assert_eq!(diff.diff, whole.diff);
        diff.cut(40);
        assert_eq!(diff.diff, ["@@ -4,6 +4,9 @@", "     {", "... 8 more lines"]);
        diff.cut(0);
        assert_eq!(diff.diff, ["... 3 more lines"]);
    }
}
