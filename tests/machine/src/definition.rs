//! Amazon States Language, as much of it as the definitions use. What is not known here is an error: a state machine
//! that is run half understood would prove nothing.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use serde::Deserialize;
use serde_json::Value;

use crate::expression::Template;

/// A state machine.
#[derive(Debug)]
pub struct Definition {
    pub(crate) timeout_seconds: u64,
    pub(crate) states: States,
}

#[derive(Debug)]
pub(crate) struct States {
    pub(crate) start_at: String,
    pub(crate) states: BTreeMap<String, State>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) kind: Kind,
    pub(crate) retry: Vec<Retrier>,
    pub(crate) catch: Vec<Rule>,
    pub(crate) after: After,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Task { resource: String, arguments: Template, timeout_seconds: u64 },
    Choice { rules: Vec<(Template, After)> },
    Wait { seconds: Template },
    Pass,
    Succeed,
    Fail { error: Template, cause: Template },
    Map { items: Template, max_concurrency: usize, inside: States },
}

/// What follows: the variables that are assigned, the output, and the next state, or none.
#[derive(Debug, Default)]
pub(crate) struct After {
    pub(crate) assign: Vec<(String, Template)>,
    pub(crate) output: Option<Template>,
    pub(crate) next: Option<String>,
}

/// A Catch.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) errors: Vec<String>,
    pub(crate) after: After,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(crate) struct Retrier {
    #[serde(rename = "ErrorEquals")]
    pub(crate) errors: Vec<String>,
    #[serde(default = "one")]
    pub(crate) interval_seconds: f64,
    #[serde(default = "two")]
    pub(crate) backoff_rate: f64,
    #[serde(default = "three")]
    pub(crate) max_attempts: u32,
    pub(crate) max_delay_seconds: Option<f64>,
    #[serde(default)]
    pub(crate) jitter_strategy: Jitter,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Jitter {
    Full,
    #[default]
    None,
}

fn one() -> f64 {
    1.0
}

fn two() -> f64 {
    2.0
}

fn three() -> u32 {
    3
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct WrittenMachine {
    #[serde(rename = "Comment")]
    _comment: Option<String>,
    query_language: String,
    start_at: String,
    timeout_seconds: u64,
    states: BTreeMap<String, WrittenState>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct WrittenState {
    #[serde(rename = "Comment")]
    _comment: Option<String>,
    r#type: String,
    resource: Option<String>,
    arguments: Option<Value>,
    timeout_seconds: Option<u64>,
    #[serde(default)]
    retry: Vec<Retrier>,
    #[serde(default)]
    catch: Vec<WrittenRule>,
    #[serde(default)]
    choices: Vec<WrittenRule>,
    default: Option<String>,
    seconds: Option<Value>,
    error: Option<Value>,
    cause: Option<Value>,
    items: Option<Value>,
    max_concurrency: Option<usize>,
    item_processor: Option<WrittenProcessor>,
    #[serde(default)]
    assign: serde_json::Map<String, Value>,
    output: Option<Value>,
    next: Option<String>,
    #[serde(default)]
    end: bool,
}

/// Of a Choice or a Catch.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct WrittenRule {
    #[serde(rename = "Comment")]
    _comment: Option<String>,
    condition: Option<Value>,
    error_equals: Option<Vec<String>>,
    #[serde(default)]
    assign: serde_json::Map<String, Value>,
    output: Option<Value>,
    next: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct WrittenProcessor {
    processor_config: WrittenConfig,
    start_at: String,
    states: BTreeMap<String, WrittenState>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct WrittenConfig {
    mode: String,
}

impl Definition {
    /// Reads a file of statemachine/. A substitution, such as `${ShareKeyFunctionArn}`, becomes its name: there is
    /// nothing but the name to find here. `${ShareAmiStateMachineName}`, inside a text, is the name of a state machine
    /// here: `ShareAmi`.
    ///
    /// # Errors
    /// What of it is not known here.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut whole: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        substitute(&mut whole);
        let written: WrittenMachine = serde_json::from_value(whole).map_err(|error| error.to_string())?;
        if written.query_language != "JSONata" {
            return Err(format!("the query language {} is not known", written.query_language));
        }
        let states = States::of(written.start_at, written.states)?;
        states.check_variables(&BTreeSet::new())?;
        Ok(Self { timeout_seconds: written.timeout_seconds, states })
    }

    /// The names of all states, those inside Maps after their Map.
    pub fn state_names(&self) -> Vec<String> {
        self.states.names()
    }
}

/// A definition that this thread has read before is not read again: that takes longer than to run it.
pub(crate) fn parsed(text: &str) -> Result<Rc<Definition>, String> {
    thread_local! {
        static PARSED: RefCell<BTreeMap<String, Rc<Definition>>> = RefCell::default();
    }
    let known = PARSED.with_borrow(|parsed| parsed.get(text).cloned());
    if let Some(definition) = known {
        return Ok(definition);
    }
    let definition = Rc::new(Definition::parse(text)?);
    PARSED.with_borrow_mut(|parsed| parsed.insert(text.to_owned(), Rc::clone(&definition)));
    Ok(definition)
}

fn substitute(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
                *text = name.to_owned();
            } else if let Some((before, rest)) = text.split_once("${")
                && let Some((name, after)) = rest.split_once("StateMachineName}")
            {
                *text = format!("{before}{name}{after}");
            }
        }
        Value::Array(items) => items.iter_mut().for_each(substitute),
        Value::Object(fields) => fields.values_mut().for_each(substitute),
        _ => {}
    }
}

impl States {
    fn of(start_at: String, written: BTreeMap<String, WrittenState>) -> Result<Self, String> {
        let mut states = BTreeMap::new();
        for (name, state) in written {
            let state = State::of(state).map_err(|error| format!("{name}: {error}"))?;
            states.insert(name, state);
        }
        Ok(Self { start_at, states })
    }

    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (name, state) in &self.states {
            names.push(name.clone());
            if let Kind::Map { inside, .. } = &state.kind {
                names.extend(inside.names());
            }
        }
        names
    }

    /// A variable inside a Map may not have the name of one outside of it ("Passing data between states with
    /// variables", Step Functions developer guide).
    fn check_variables(&self, outside: &BTreeSet<&str>) -> Result<(), String> {
        let assigned: BTreeSet<&str> = self
            .states
            .values()
            .flat_map(State::afters)
            .flat_map(|after| after.assign.iter().map(|(name, _)| name.as_str()))
            .collect();
        if let Some(name) = assigned.intersection(outside).next() {
            return Err(format!("${name} is assigned inside of a Map and outside of it"));
        }
        let all: BTreeSet<&str> = assigned.union(outside).copied().collect();
        for state in self.states.values() {
            if let Kind::Map { inside, .. } = &state.kind {
                inside.check_variables(&all)?;
            }
        }
        Ok(())
    }
}

impl State {
    fn of(written: WrittenState) -> Result<Self, String> {
        let given = written.given();
        let kind = written.r#type.clone();
        let allowed: &[&str] = match kind.as_str() {
            "Task" => &["Resource", "Arguments", "TimeoutSeconds", "Retry", "Catch", "Assign", "Output", "Next", "End"],
            "Choice" => &["Choices", "Default", "Assign", "Output"],
            "Wait" => &["Seconds", "Assign", "Output", "Next", "End"],
            "Pass" => &["Assign", "Output", "Next", "End"],
            "Succeed" => &["Output"],
            "Fail" => &["Error", "Cause"],
            "Map" => &["Items", "MaxConcurrency", "ItemProcessor", "Retry", "Catch", "Assign", "Output", "Next", "End"],
            other => return Err(format!("the type {other} is not known")),
        };
        if let Some(field) = given.iter().find(|field| !allowed.contains(field)) {
            return Err(format!("{field} is not known in a {kind}"));
        }
        let end = written.end || matches!(kind.as_str(), "Succeed" | "Fail");
        let next = if kind == "Choice" { written.default } else { written.next };
        if next.is_some() == end {
            return Err("it needs either a next state or an end".to_owned());
        }
        let needed = |field: &str, value: Option<Value>| match value {
            Some(value) => Template::parse(&value),
            None => Err(format!("{field} is missing")),
        };
        let kind = match kind.as_str() {
            "Task" => Kind::Task {
                resource: written.resource.ok_or("Resource is missing")?,
                arguments: needed("Arguments", written.arguments)?,
                timeout_seconds: written.timeout_seconds.ok_or("TimeoutSeconds is missing")?,
            },
            "Choice" => Kind::Choice {
                rules: written
                    .choices
                    .into_iter()
                    .map(|rule| {
                        let condition = needed("Condition", rule.condition)?;
                        Ok::<_, String>((condition, After::of(rule.assign, rule.output, Some(rule.next))?))
                    })
                    .collect::<Result<_, _>>()?,
            },
            "Wait" => Kind::Wait { seconds: needed("Seconds", written.seconds)? },
            "Pass" => Kind::Pass,
            "Succeed" => Kind::Succeed,
            "Fail" => Kind::Fail { error: needed("Error", written.error)?, cause: needed("Cause", written.cause)? },
            _ => {
                let processor = written.item_processor.ok_or("ItemProcessor is missing")?;
                if processor.processor_config.mode != "INLINE" {
                    return Err(format!("the mode {} is not known", processor.processor_config.mode));
                }
                Kind::Map {
                    items: needed("Items", written.items)?,
                    max_concurrency: written.max_concurrency.ok_or("MaxConcurrency is missing")?,
                    inside: States::of(processor.start_at, processor.states)?,
                }
            }
        };
        let catch = written
            .catch
            .into_iter()
            .map(|rule| {
                let errors = rule.error_equals.ok_or("ErrorEquals is missing")?;
                Ok::<_, String>(Rule { errors, after: After::of(rule.assign, rule.output, Some(rule.next))? })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { kind, retry: written.retry, catch, after: After::of(written.assign, written.output, next)? })
    }

    fn afters(&self) -> Vec<&After> {
        let mut afters = vec![&self.after];
        afters.extend(self.catch.iter().map(|rule| &rule.after));
        if let Kind::Choice { rules } = &self.kind {
            afters.extend(rules.iter().map(|(_, after)| after));
        }
        afters
    }
}

impl WrittenState {
    /// The fields that are there.
    fn given(&self) -> Vec<&'static str> {
        let fields = [
            ("Resource", self.resource.is_some()),
            ("Arguments", self.arguments.is_some()),
            ("TimeoutSeconds", self.timeout_seconds.is_some()),
            ("Retry", !self.retry.is_empty()),
            ("Catch", !self.catch.is_empty()),
            ("Choices", !self.choices.is_empty()),
            ("Default", self.default.is_some()),
            ("Seconds", self.seconds.is_some()),
            ("Error", self.error.is_some()),
            ("Cause", self.cause.is_some()),
            ("Items", self.items.is_some()),
            ("MaxConcurrency", self.max_concurrency.is_some()),
            ("ItemProcessor", self.item_processor.is_some()),
            ("Assign", !self.assign.is_empty()),
            ("Output", self.output.is_some()),
            ("Next", self.next.is_some()),
            ("End", self.end),
        ];
        fields.into_iter().filter(|(_, given)| *given).map(|(field, _)| field).collect()
    }
}

impl After {
    fn of(assign: serde_json::Map<String, Value>, output: Option<Value>, next: Option<String>) -> Result<Self, String> {
        let assign = assign.iter().map(|(name, value)| Ok::<_, String>((name.clone(), Template::parse(value)?)));
        Ok(Self {
            assign: assign.collect::<Result<_, _>>()?,
            output: output.as_ref().map(Template::parse).transpose()?,
            next,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(state: Value) -> Result<Definition, String> {
        let states = json!({ "A": state, "B": { "Type": "Succeed" } });
        let machine = json!({ "QueryLanguage": "JSONata", "StartAt": "A", "TimeoutSeconds": 9, "States": states });
        Definition::parse(&machine.to_string())
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(parsed(json!({ "Type": "Pass", "Next": "B" })).is_ok());
        for unknown in [
            json!({ "Type": "Parallel", "Next": "B" }),
            json!({ "Type": "Pass", "Next": "B", "ResultPath": "$" }),
            json!({ "Type": "Pass", "Next": "B", "Seconds": 1 }),
            json!({ "Type": "Pass" }),
            json!({ "Type": "Choice", "Choices": [{ "Condition": true, "Next": "B", "Not": 1 }], "Default": "B" }),
            json!({ "Type": "Pass", "Next": "B", "Output": "{% $ah ( %}" }),
        ] {
            assert!(parsed(unknown.clone()).is_err(), "{unknown}");
        }
    }

    #[test]
    fn a_substitution_becomes_its_name_and_that_of_a_state_machine_what_it_is_called_here() {
        let mut value = json!(["${ShareKeyFunctionArn}", "{% $contains($a, ':${ShareAmiStateMachineName}:') %}", "$x"]);
        substitute(&mut value);
        assert_eq!(value, json!(["ShareKeyFunctionArn", "{% $contains($a, ':ShareAmi:') %}", "$x"]));
    }

    #[test]
    fn a_variable_of_a_map_is_not_one_of_the_machine() {
        let map = |name: &str| {
            json!({ "Type": "Map", "Items": [1], "MaxConcurrency": 2, "Assign": { "outer": 1 }, "Next": "B",
                "ItemProcessor": { "ProcessorConfig": { "Mode": "INLINE" }, "StartAt": "C", "States": {
                    "C": { "Type": "Pass", "Assign": { name: 1 }, "End": true } } } })
        };
        assert!(parsed(map("inner")).is_ok());
        assert!(parsed(map("outer")).unwrap_err().contains("$outer"));
    }
}
