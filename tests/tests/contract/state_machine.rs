//! The state machine on its own.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{Set, definition, definition::Scope};

/// What JSONata and Step Functions bring along, as far as the definition uses it as a value.
const BUILT_IN: [&str; 2] = ["states", "append"];

fn is_undo(state: &str) -> bool {
    state.starts_with("Undo")
}

#[test]
fn every_transition_has_a_target() {
    for Scope { map, start_at, states } in definition::scopes() {
        assert!(states.contains_key(&start_at), "{map:?} starts at {start_at}, which is not there");
        for (name, state) in &states {
            for target in definition::transitions(state) {
                assert!(states.contains_key(&target), "{name} goes to {target}, which is not in {map:?}");
            }
        }
    }
}

#[test]
fn every_state_is_reachable() {
    for Scope { map, start_at, states } in definition::scopes() {
        let mut reached = BTreeSet::new();
        let mut waiting = vec![start_at];
        while let Some(name) = waiting.pop() {
            if reached.insert(name.clone()) {
                waiting.extend(definition::transitions(&states[&name]));
            }
        }
        let all: Set = states.keys().cloned().collect();
        assert_eq!(all, reached, "in {map:?}");
    }
}

#[test]
fn every_state_says_where_it_goes_or_ends() {
    for (name, state) in definition::states() {
        let ways = ["Next", "End", "Choices"].iter().filter(|way| !state[**way].is_null()).count();
        let last = ["Succeed", "Fail"].contains(&state["Type"].as_str().unwrap());
        assert_eq!(ways, usize::from(!last), "{name}");
    }
}

#[test]
fn every_state_says_why_it_exists() {
    assert!(definition::whole()["Comment"].is_string());
    for (name, state) in definition::states() {
        let comment = state["Comment"].as_str().unwrap_or_default();
        assert!(comment.ends_with('.') && comment.len() > 10, "{name}: {comment:?}");
    }
}

#[test]
fn expressions_are_jsonata_and_whole_strings() {
    let whole = definition::whole();
    assert_eq!(whole["QueryLanguage"], "JSONata");
    for text in definition::strings(&whole) {
        let expression = text.starts_with("{%") && text.ends_with("%}");
        assert_eq!(expression, text.contains("{%") || text.contains("%}"), "{text}");
    }
}

#[test]
fn the_machine_and_every_task_end_in_time() {
    assert!(definition::whole()["TimeoutSeconds"].as_u64().is_some_and(|seconds| seconds <= 31_536_000));
    for (name, state) in definition::states() {
        if state["Type"] == "Task" {
            assert!(state["TimeoutSeconds"].as_u64().is_some_and(|seconds| seconds > 0), "{name}");
        }
    }
}

#[test]
fn every_task_has_a_payload_of_its_own() {
    for (name, state) in definition::tasks() {
        let payload = state["Arguments"]["Payload"].as_object().unwrap_or_else(|| panic!("{name} has no Payload"));
        assert!(payload.contains_key("execution"), "{name} does not say which execution it works for");
    }
}

#[test]
fn every_task_is_retried_with_jitter_and_a_longest_delay() {
    for (name, state) in definition::states() {
        if state["Type"] != "Task" {
            continue;
        }
        let retriers = state["Retry"].as_array().unwrap_or_else(|| panic!("{name} has no Retry"));
        assert!(!retriers.is_empty(), "{name}");
        for retrier in retriers {
            assert_eq!(retrier["JitterStrategy"], "FULL", "{name}");
            assert!(retrier["MaxDelaySeconds"].as_u64().is_some_and(|seconds| seconds <= 60), "{name}");
            assert!(retrier["MaxAttempts"].as_u64().is_some_and(|attempts| attempts <= 10), "{name}");
        }
    }
}

/// AWS's advice for a function that is called by a state machine ("Handle transient Lambda service
/// exceptions", Step Functions developer guide), and ours.
#[test]
fn every_task_is_retried_when_trying_again_may_help() {
    for (name, state) in definition::tasks() {
        let retried = names(&state["Retry"]);
        for error in [
            "Lambda.ServiceException",
            "Lambda.AWSLambdaException",
            "Lambda.SdkClientException",
            "Lambda.TooManyRequestsException",
            "Throttled",
            "Unavailable",
            "NotYetVisible",
        ] {
            assert!(retried.contains(error), "{name} is not retried after {error}");
        }
    }
}

#[test]
fn only_an_undo_is_retried_after_any_error() {
    for (name, state) in definition::tasks() {
        assert_eq!(names(&state["Retry"]).contains("States.ALL"), is_undo(&name), "{name}");
    }
}

#[test]
fn every_failure_is_caught() {
    for (name, state) in definition::states() {
        if ["Task", "Map"].contains(&state["Type"].as_str().unwrap()) {
            assert!(names(&state["Catch"]).contains("States.ALL"), "{name}");
        }
    }
}

/// A call that failed may have acted: the first to be undone is the step itself.
#[test]
fn a_step_that_fails_is_undone_first() {
    let (machine, _) = split(definition::scopes());
    let undone: Vec<&String> = machine.states.keys().filter(|name| is_undo(name)).collect();
    assert!(undone.len() >= 4, "{undone:?}");
    for (name, state) in &machine.states {
        let undo = format!("Undo{name}");
        if machine.states.contains_key(&undo) {
            assert_eq!(state["Catch"][0]["Next"], *undo, "{name}");
        }
    }
}

#[test]
fn an_undo_that_fails_is_remembered_and_the_next_one_runs() {
    for (name, state) in definition::tasks().into_iter().filter(|(name, _)| is_undo(name)) {
        assert_eq!(state["Catch"][0]["Next"], state["Next"], "{name}");
        let remembered = definition::strings(&state["Catch"][0]["Assign"]);
        assert!(remembered.iter().any(|text| text.contains("$states.errorOutput.Error")), "{name}");
    }
}

/// AWS refuses a machine that assigns a variable of an outer scope inside a Map; the local engine
/// does not.
#[test]
fn no_map_assigns_a_variable_of_the_machine() {
    let (machine, maps) = split(definition::scopes());
    let outer = assigned(&machine);
    for map in maps {
        let both: Vec<String> = assigned(&map).intersection(&outer).cloned().collect();
        assert!(both.is_empty(), "{:?} assigns {both:?}", map.map);
    }
}

#[test]
fn every_variable_is_assigned_somewhere() {
    let (machine, maps) = split(definition::scopes());
    let outer = assigned(&machine);
    check_variables(&machine, &outer);
    for map in maps {
        check_variables(&map, &outer.union(&assigned(&map)).cloned().collect());
    }
}

fn check_variables(scope: &Scope, known: &Set) {
    for (name, state) in &scope.states {
        let mut state = state.clone();
        state.as_object_mut().unwrap().remove("ItemProcessor");
        for text in definition::strings(&state) {
            for variable in variables(text) {
                let found = known.contains(&variable) || BUILT_IN.contains(&variable.as_str());
                assert!(found, "{name} reads ${variable}, which nothing assigns: {text}");
            }
        }
    }
}

/// The names after `$` in an expression, but for those of functions that it calls.
fn variables(text: &str) -> Vec<String> {
    if !text.starts_with("{%") {
        return vec![];
    }
    text.split('$')
        .skip(1)
        .filter_map(|rest| {
            let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            (!rest[name.len()..].starts_with('(')).then_some(name)
        })
        .collect()
}

/// Every variable that a state of the scope assigns, in whichever place it may.
fn assigned(scope: &Scope) -> Set {
    let lists = |state: &Value| -> Vec<Value> {
        let rules =
            ["Choices", "Catch"].into_iter().flat_map(|list| state[list].as_array().cloned().unwrap_or_default());
        rules.chain([state.clone()]).map(|place| place["Assign"].clone()).collect()
    };
    scope
        .states
        .values()
        .flat_map(lists)
        .filter_map(|assign| assign.as_object().cloned())
        .flat_map(|assign| assign.into_iter().map(|(name, _)| name))
        .collect()
}

fn names(rules: &Value) -> Set {
    let rules = rules.as_array().into_iter().flatten();
    rules.flat_map(|rule| definition::strings(&rule["ErrorEquals"])).map(str::to_owned).collect()
}

fn split(scopes: Vec<Scope>) -> (Scope, Vec<Scope>) {
    let (mut machine, maps): (Vec<Scope>, Vec<Scope>) = scopes.into_iter().partition(|scope| scope.map.is_none());
    assert_eq!(maps.len(), 2, "ShareWithTargets and UndoTargets");
    (machine.remove(0), maps)
}
