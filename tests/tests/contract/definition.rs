//! The definitions of the state machines, flattened.

use serde_json::{Map, Value};

use crate::text;

/// A state machine of statemachine/.
pub(crate) struct Machine {
    pub(crate) path: &'static str,
    /// In template.yaml.
    pub(crate) logical_id: &'static str,
    pub(crate) whole: Value,
}

/// The states of the machine itself, or of one Map.
pub(crate) struct Scope {
    /// The Map's name; nothing for the machine itself.
    pub(crate) map: Option<String>,
    pub(crate) start_at: String,
    pub(crate) states: Map<String, Value>,
}

pub(crate) fn share_ami() -> Machine {
    machine("statemachine/share-ami.asl.json", "ShareAmiStateMachine")
}

pub(crate) fn plan_share() -> Machine {
    machine("statemachine/plan-share.asl.json", "PlanShareStateMachine")
}

pub(crate) fn undo_share() -> Machine {
    machine("statemachine/undo-share.asl.json", "UndoShareStateMachine")
}

pub(crate) fn take_back() -> Machine {
    machine("statemachine/take-back.asl.json", "TakeBackStateMachine")
}

pub(crate) fn revoke_share() -> Machine {
    machine("statemachine/revoke-share.asl.json", "RevokeShareStateMachine")
}

pub(crate) fn audit_shares() -> Machine {
    machine("statemachine/audit-shares.asl.json", "AuditSharesStateMachine")
}

pub(crate) fn machines() -> [Machine; 6] {
    [share_ami(), plan_share(), take_back(), undo_share(), revoke_share(), audit_shares()]
}

fn machine(path: &'static str, logical_id: &'static str) -> Machine {
    let whole = serde_json::from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    Machine { path, logical_id, whole }
}

impl Machine {
    /// The machine itself first, then its Maps.
    pub(crate) fn scopes(&self) -> Vec<Scope> {
        let mut scopes = vec![scope(None, &self.whole)];
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

    /// Every state with its name.
    pub(crate) fn states(&self) -> Vec<(String, Value)> {
        self.scopes().into_iter().flat_map(|scope| scope.states).collect()
    }

    /// Every state that calls a function.
    pub(crate) fn tasks(&self) -> Vec<(String, Value)> {
        self.calls("lambda:invoke")
    }

    /// Every state that makes that call of a service, such as `dynamodb:`.
    pub(crate) fn calls(&self, call: &str) -> Vec<(String, Value)> {
        let prefix = format!("arn:aws:states:::{call}");
        let calls = |state: &Value| state["Resource"].as_str().is_some_and(|resource| resource.starts_with(&prefix));
        self.states().into_iter().filter(|(_, state)| calls(state)).collect()
    }

    pub(crate) fn state(&self, name: &str) -> Value {
        let mut states = self.states().into_iter();
        states.find(|(found, _)| found == name).unwrap_or_else(|| panic!("{} has no {name}", self.path)).1
    }
}

fn scope(map: Option<String>, definition: &Value) -> Scope {
    Scope {
        map,
        start_at: definition["StartAt"].as_str().unwrap().to_owned(),
        states: definition["States"].as_object().unwrap().clone(),
    }
}

/// The states of all machines, with the machine's path.
pub(crate) fn all_states() -> Vec<(String, Value)> {
    labelled(Machine::states)
}

/// The states of all machines that call a function, with the machine's path.
pub(crate) fn all_tasks() -> Vec<(String, Value)> {
    labelled(Machine::tasks)
}

fn labelled(list: fn(&Machine) -> Vec<(String, Value)>) -> Vec<(String, Value)> {
    let of = |machine: &Machine| -> Vec<(String, Value)> {
        list(machine).into_iter().map(|(name, state)| (format!("{}: {name}", machine.path), state)).collect()
    };
    machines().iter().flat_map(of).collect()
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
