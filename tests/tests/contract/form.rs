//! How the definitions of the state machines are written, and how much of them there is.

use std::fs;

use ami_share_tests::asl_format;

use crate::definition;

/// Of all definitions together. The limit to come is 2,400.
const MOST_LINES: usize = 2_800;

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
}
