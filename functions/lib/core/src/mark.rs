//! What a take-back writes on a note before it looks.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::ExecutionName;

/// Who takes a share back, and when that began: the name of the execution, a space, and milliseconds since 1970.
///
/// A mark is compared as a whole. One that somebody else has written in another form is nobody's of ours, and no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(String);

impl Mark {
    /// Of a take-back that begins at that time, in milliseconds since 1970.
    pub fn new(by: &ExecutionName, at: i64) -> Self {
        Self(format!("{by} {at}"))
    }

    /// As a note has it.
    pub fn noted(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether a take-back of that execution has written it.
    pub fn is_by(&self, execution: &ExecutionName) -> bool {
        self.0.rsplit_once(' ').is_some_and(|(by, _)| by == execution.as_str())
    }

    /// When that take-back began, in milliseconds since 1970; nothing of a mark in another form.
    pub fn at(&self) -> Option<i64> {
        self.0.rsplit_once(' ')?.1.parse().ok()
    }

    /// As notes and states say it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_says_whose_it_is() {
        let named = |name: &str| ExecutionName::parse(name).unwrap();
        let mark = Mark::new(&named("undo 1"), 1_764_273_600_000);
        assert_eq!(mark.as_str(), "undo 1 1764273600000");
        assert!(mark.is_by(&named("undo 1")) && !mark.is_by(&named("undo")));
        assert!(!Mark::noted("undo").is_by(&named("undo")));
        assert_eq!((mark.at(), Mark::noted("undo 1x").at()), (Some(1_764_273_600_000), None));
    }
}
