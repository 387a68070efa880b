//! What no compiler and no linter checks: that state machine, functions, templates, roles, error
//! names and documents agree with each other. Nothing is started; it takes milliseconds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

mod alarms;
mod authorization;
mod circles;
mod data;
mod definition;
mod documents;
mod errors;
mod form;
mod names;
mod notices;
mod payloads;
mod permissions;
mod state_machine;
mod steps;

use std::{collections::BTreeSet, fs};

use ami_share_tests::{engine::checkout, template};
use serde_json::Value;

type Set = BTreeSet<String>;

fn text(path: &str) -> String {
    fs::read_to_string(checkout().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The first JSON of a page after these words.
fn json_after<'p>(page: &'p str, words: &str) -> &'p str {
    let (_, rest) = page.split_once(words).unwrap_or_else(|| panic!("no {words}"));
    let (_, json) = rest.split_once("```json").unwrap_or_else(|| panic!("no JSON after {words}"));
    json.split_once("```").unwrap_or_else(|| panic!("the JSON after {words} has no end")).0
}

/// A CloudFormation template, its intrinsic functions in their long form.
fn template(path: &str) -> Value {
    template::read(&checkout().join(path)).unwrap()
}

/// `share-key` for `ShareKey`.
fn kebab(name: &str) -> String {
    let mut kebab = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(c.to_ascii_lowercase());
    }
    kebab
}
