//! How the definitions of the state machines are written, and how much of them there is.

use std::fs;

use ami_share_tests::{asl_format, engine::checkout, pictures};

use crate::definition;

/// Of all definitions together.
const MOST_LINES: usize = 2_400;
const MOST_STATES: usize = 115;

#[test]
fn every_definition_is_in_the_repositorys_format() {
    for path in asl_format::definitions().unwrap() {
        let definition = fs::read_to_string(&path).unwrap();
        let formatted = asl_format::format(&definition).unwrap();
        assert!(definition == formatted, "{}: run `make format`", path.display());
    }
}

#[test]
fn the_state_machines_stay_small() {
    let paths = asl_format::definitions().unwrap();
    let lines: usize = paths.iter().map(|path| fs::read_to_string(path).unwrap().lines().count()).sum();
    let states = definition::all_states().len();
    println!("{} state machines: {lines} lines, {states} states", paths.len());
    assert!(lines <= MOST_LINES, "{lines} lines");
    assert!(states <= MOST_STATES, "{states} states");
    let page = fs::read_to_string(checkout().join("ARCHITECTURE.md")).unwrap();
    assert!(
        page.contains(&format!("Now there are {states}.")),
        "ARCHITECTURE.md says something else than {states} states"
    );
}

#[test]
fn every_picture_is_that_of_its_definition() {
    for (path, picture) in pictures::pictures().unwrap() {
        let drawn = fs::read_to_string(&path).unwrap_or_default();
        assert!(drawn == picture, "{}: run `make pictures`", path.display());
    }
}

#[test]
fn no_picture_is_left_of_a_definition_that_is_gone() {
    let expected: Vec<_> = pictures::pictures().unwrap().into_iter().map(|(path, _)| path).collect();
    for file in fs::read_dir(checkout().join("docs/machines")).unwrap() {
        let path = file.unwrap().path();
        assert!(expected.contains(&path), "{}", path.display());
    }
}
