//! A definition as a graph, and which of its states are the way that everything goes when nothing is amiss.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// The states of a machine, or of one Map, as they stand in the file.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) states: Vec<State>,
    pub(super) start: usize,
    /// From the start to an end: the longest way without a failure.
    pub(super) path: Vec<usize>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Where it goes by itself: Next, Choices, Default.
    pub(super) ways: Vec<usize>,
    /// Where its errors go, if that is somewhere else.
    pub(super) caught: Vec<usize>,
    /// After an error it goes where it would have gone without.
    pub(super) goes_on: bool,
    pub(super) place: Place,
    /// Of a Map.
    pub(super) inside: Option<Graph>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Task,
    /// A Task that is an execution of another machine.
    Execution,
    Choice,
    Map,
    /// Pass and Wait.
    Other,
    Succeed,
    Fail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Path,
    /// Left out on the path, but no failure.
    Branch,
    /// Comes only after a failure.
    Failure,
}

impl Graph {
    pub(super) fn read(definition: &Value) -> Result<Self, String> {
        let written = definition["States"].as_object().ok_or("no States")?;
        let index = |name: &Value| {
            let name = name.as_str().unwrap_or_default();
            written.keys().position(|key| key == name).ok_or_else(|| format!("there is no state {name:?}"))
        };
        let mut states = vec![];
        for (name, state) in written {
            states.push(State::read(name, state, &index).map_err(|error| format!("{name}: {error}"))?);
        }
        let mut graph = Self { states, start: index(&definition["StartAt"])?, path: vec![] };
        let failures = graph.failures();
        graph.path = graph.longest(graph.start, &failures, &mut BTreeMap::new()).unwrap_or_else(|| vec![graph.start]);
        for (at, state) in graph.states.iter_mut().enumerate() {
            state.place = match (graph.path.contains(&at), failures.contains(&at)) {
                (true, _) => Place::Path,
                (false, true) => Place::Failure,
                (false, false) => Place::Branch,
            };
        }
        Ok(graph)
    }

    /// Whether `to` comes again after it was left for `from`: a loop, such as that of Wait, look, Choice.
    fn is_back(&self, from: usize, to: usize) -> bool {
        to <= from && self.reached(to, &BTreeSet::new()).contains(&from)
    }

    /// What an error leads to and nothing else does, or only what is a failure itself. What all come to in the end, error
    /// or not, such as a report, is none: there is an end that is reached by way of it only. Nor is what an error leads
    /// back to, to do it again.
    fn failures(&self) -> BTreeSet<usize> {
        let possible = self.reached(self.start, &BTreeSet::new());
        let leads_aside = |from: usize, to: usize| {
            let without = BTreeSet::from([to]);
            let back = possible.contains(&from) && !self.reached(self.start, &without).contains(&from);
            let ends = |without: &BTreeSet<usize>| -> Vec<usize> {
                let end = |at: &usize| self.states[*at].ways.is_empty() && self.states[*at].kind != Kind::Fail;
                self.reached(from, without).into_iter().filter(end).collect()
            };
            !back && ends(&without) == ends(&BTreeSet::new())
        };
        let is_failure = |&to: &usize| {
            let state = &self.states[to];
            let mut caught = (0..self.states.len()).filter(|&from| self.states[from].caught.contains(&to)).peekable();
            let is_caught = caught.peek().is_some() && caught.all(|from| leads_aside(from, to));
            state.kind == Kind::Fail || is_caught && to != self.start && state.kind != Kind::Succeed
        };
        let failures = (0..self.states.len()).filter(is_failure).collect();
        let sound = self.reached(self.start, &failures);
        (0..self.states.len()).filter(|at| !sound.contains(at)).collect()
    }

    /// Every state that `from` leads to without an error, itself included, and not by way of `without`.
    fn reached(&self, from: usize, without: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        let mut waiting = vec![from];
        while let Some(at) = waiting.pop() {
            if !without.contains(&at) && reached.insert(at) {
                waiting.extend(&self.states[at].ways);
            }
        }
        reached
    }

    /// `known` are those that were found before.
    fn longest(
        &self,
        from: usize,
        without: &BTreeSet<usize>,
        known: &mut BTreeMap<usize, Option<Vec<usize>>>,
    ) -> Option<Vec<usize>> {
        if let Some(known) = known.get(&from) {
            return known.clone();
        }
        let ways = &self.states[from].ways;
        let mut longest = ways.is_empty().then(Vec::new);
        for &to in ways.iter().filter(|&&to| !without.contains(&to) && !self.is_back(from, to)) {
            let rest = self.longest(to, without, known);
            if rest.as_ref().map(Vec::len) > longest.as_ref().map(Vec::len) {
                longest = rest;
            }
        }
        let longest = longest.map(|rest| [vec![from], rest].concat());
        known.insert(from, longest.clone());
        longest
    }
}

impl State {
    fn read(name: &str, state: &Value, index: &impl Fn(&Value) -> Result<usize, String>) -> Result<Self, String> {
        let targets = |list: &str| state[list].as_array().into_iter().flatten().map(|rule| index(&rule["Next"]));
        let single = ["Next", "Default"].into_iter().map(|field| &state[field]).filter(|next| !next.is_null());
        let ways = distinct(targets("Choices").chain(single.map(index)).collect::<Result<_, _>>()?);
        let caught = distinct(targets("Catch").collect::<Result<_, _>>()?);
        let resource = state["Resource"].as_str().unwrap_or_default();
        let kind = match state["Type"].as_str().unwrap_or_default() {
            "Task" if resource.starts_with("arn:aws:states:::states:startExecution") => Kind::Execution,
            "Task" => Kind::Task,
            "Choice" => Kind::Choice,
            "Map" => Kind::Map,
            "Pass" | "Wait" => Kind::Other,
            "Succeed" => Kind::Succeed,
            "Fail" => Kind::Fail,
            other => return Err(format!("no picture of the type {other:?}")),
        };
        let inside = (kind == Kind::Map).then(|| Graph::read(&state["ItemProcessor"])).transpose()?;
        Ok(Self {
            name: name.to_owned(),
            kind,
            goes_on: caught.iter().any(|to| ways.contains(to)),
            caught: caught.into_iter().filter(|to| !ways.contains(to)).collect(),
            ways,
            place: Place::Branch,
            inside,
        })
    }
}

fn distinct(states: Vec<usize>) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    states.into_iter().filter(|&state| seen.insert(state)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_path_is_the_longest_way_without_a_failure() {
        let caught = json!([{ "ErrorEquals": ["States.ALL"], "Next": "TakeBack" }]);
        let graph = Graph::read(&json!({ "StartAt": "Choose", "States": {
            "Choose": { "Type": "Choice", "Choices": [{ "Next": "Give" }, { "Next": "Plan" }], "Default": "Report" },
            "Plan": { "Type": "Task", "Catch": [{ "Next": "Report" }], "Next": "CheckPlan" },
            "CheckPlan": { "Type": "Choice", "Choices": [{ "Next": "Planned" }], "Default": "Give" },
            "Planned": { "Type": "Succeed" },
            "Give": { "Type": "Task", "Catch": caught, "Next": "Wait" },
            "Wait": { "Type": "Wait", "Next": "Look" },
            "Look": { "Type": "Task", "Catch": caught, "Next": "Check" },
            "Check": { "Type": "Choice", "Choices": [{ "Next": "Report" }], "Default": "Wait" },
            "TakeBack": { "Type": "Task", "Catch": [{ "Next": "Tidy" }], "Next": "Tidy" },
            "Tidy": { "Type": "Task", "Next": "Report" },
            "Report": { "Type": "Task", "Catch": [{ "Next": "Fail" }], "Next": "Succeed" },
            "Fail": { "Type": "Fail" },
            "Succeed": { "Type": "Succeed" },
        } }))
        .unwrap();
        let names = |place: Place| -> Vec<&str> {
            graph.states.iter().filter(|state| state.place == place).map(|state| state.name.as_str()).collect()
        };
        let path: Vec<&str> = graph.path.iter().map(|&at| graph.states[at].name.as_str()).collect();
        assert_eq!(path, ["Choose", "Plan", "CheckPlan", "Give", "Wait", "Look", "Check", "Report", "Succeed"]);
        assert_eq!(names(Place::Branch), ["Planned"]);
        assert_eq!(names(Place::Failure), ["TakeBack", "Tidy", "Fail"]);
        assert!(graph.states[8].goes_on && graph.states[8].caught.is_empty());
        assert!(graph.is_back(7, 5) && !graph.is_back(5, 6));
    }
}
