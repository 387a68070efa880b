//! The definition of share-ami, flattened.

use serde_json::{Map, Value};

use crate::text;

pub(crate) const PATH: &str = "statemachine/share-ami.asl.json";

/// The states of the machine itself, or of one Map.
pub(crate) struct Scope {
    /// The Map's name; nothing for the machine itself.
    pub(crate) map: Option<String>,
    pub(crate) start_at: String,
    pub(crate) states: Map<String, Value>,
}

pub(crate) fn whole() -> Value {
    serde_json::from_str(&text(PATH)).unwrap()
}

/// The machine itself first, then its Maps.
pub(crate) fn scopes() -> Vec<Scope> {
    let mut scopes = vec![scope(None, &whole())];
    let mut next = 0;
    while next < scopes.len() {
        let maps: Vec<Scope> = scopes[next]
            .states
            .iter()
            .filter(|(_, state)| state["Type"] == "Map")
            .map(|(name, state)| scope(Some(name.clone()), &state["ItemProcessor"]))
            .collect();
        scopes.extend(maps);
        next += 1;
    }
    scopes
}

fn scope(map: Option<String>, definition: &Value) -> Scope {
    Scope {
        map,
        start_at: definition["StartAt"].as_str().unwrap().to_owned(),
        states: definition["States"].as_object().unwrap().clone(),
    }
}

/// Every state with its name.
pub(crate) fn states() -> Vec<(String, Value)> {
    scopes().into_iter().flat_map(|scope| scope.states).collect()
}

/// Every state that calls a function.
pub(crate) fn tasks() -> Vec<(String, Value)> {
    states().into_iter().filter(|(_, state)| state["Resource"] == "arn:aws:states:::lambda:invoke").collect()
}

/// The names after `Next` and `Default` of a state, wherever they may stand.
pub(crate) fn transitions(state: &Value) -> Vec<String> {
    let rules = ["Choices", "Catch"].into_iter().flat_map(|list| state[list].as_array().into_iter().flatten());
    rules
        .map(|rule| &rule["Next"])
        .chain([&state["Next"], &state["Default"]])
        .filter_map(|target| target.as_str().map(str::to_owned))
        .collect()
}

/// Every string in `value`, at any depth.
pub(crate) fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(items) => items.iter().flat_map(strings).collect(),
        Value::Object(fields) => fields.values().flat_map(strings).collect(),
        _ => vec![],
    }
}
