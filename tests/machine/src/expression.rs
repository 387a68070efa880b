//! JSONata, as Step Functions has it: `{% … %}` in a string, the variables of the state machine, and `$states`.

use std::collections::BTreeSet;

use jsonata_core::{
    ast::AstNode,
    evaluator::{Context, Evaluator, EvaluatorError},
    parser,
    value::JValue,
};
use serde_json::{Map, Value};

/// What an expression can see.
pub(crate) struct Scope<'a> {
    pub(crate) variables: &'a Map<String, Value>,
    /// `$states`
    pub(crate) states: Value,
    /// For `$millis`: simulated time.
    pub(crate) epoch_ms: u64,
}

/// JSON whose strings may be expressions.
#[derive(Debug, Clone)]
pub(crate) enum Template {
    Literal(Value),
    Expression { text: String, node: AstNode, names: BTreeSet<String> },
    Array(Vec<Self>),
    Object(Vec<(String, Self)>),
}

/// Functions that the definitions hand on as values, besides calling them.
const FUNCTIONS: [&str; 1] = ["append"];

impl Template {
    pub(crate) fn parse(value: &Value) -> Result<Self, String> {
        Ok(match value {
            Value::String(text) => match text.strip_prefix("{%").and_then(|rest| rest.strip_suffix("%}")) {
                Some(text) => {
                    let text = text.trim().to_owned();
                    let node = parser::parse(&text).map_err(|error| format!("{text}: {error}"))?;
                    Self::Expression { node, names: names_in(&text), text }
                }
                None => Self::Literal(value.clone()),
            },
            Value::Array(items) => Self::Array(items.iter().map(Self::parse).collect::<Result<_, _>>()?),
            Value::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| Ok::<_, String>((name.clone(), Self::parse(value)?)));
                Self::Object(fields.collect::<Result<_, _>>()?)
            }
            other => Self::Literal(other.clone()),
        })
    }

    /// # Errors
    /// What Step Functions calls States.QueryEvaluationError: an expression that fails, has no result, or names a
    /// variable that nobody assigned ("Transforming data with JSONata", Step Functions developer guide).
    pub(crate) fn evaluate(&self, scope: &Scope<'_>) -> Result<Value, String> {
        Ok(match self {
            Self::Literal(value) => value.clone(),
            Self::Array(items) => {
                Value::Array(items.iter().map(|item| item.evaluate(scope)).collect::<Result<_, _>>()?)
            }
            Self::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| Ok::<_, String>((name.clone(), value.evaluate(scope)?)));
                Value::Object(fields.collect::<Result<_, _>>()?)
            }
            Self::Expression { text, node, names } => {
                evaluate(node, names, scope).map_err(|error| format!("{text}: {error}"))?
            }
        })
    }
}

fn evaluate(node: &AstNode, names: &BTreeSet<String>, scope: &Scope<'_>) -> Result<Value, String> {
    let mut context = Context::new();
    for name in names {
        let value = match name.as_str() {
            "states" => &scope.states,
            name => scope.variables.get(name).ok_or_else(|| format!("no variable ${name} was assigned"))?,
        };
        context.bind(name.clone(), JValue::from(value.clone()));
    }
    let mut evaluator = Evaluator::with_context(context);
    // Step Functions adds it to JSONata's own functions.
    evaluator.register_fn("parse", parse).map_err(|error| error.to_string())?;
    let now = scope.epoch_ms;
    evaluator
        .register_fn_override("millis", move |_: &[JValue]| Ok(JValue::from(now)))
        .map_err(|error| error.to_string())?;
    let result = evaluator.evaluate(node, &JValue::Undefined).map_err(|error| error.to_string())?;
    if result.is_undefined() || result.is_function() {
        return Err("it has no result".to_owned());
    }
    Ok(with_integers(Value::from(&result)))
}

/// JSONata knows one kind of number, and JSON has none that is 1.0.
fn with_integers(value: Value) -> Value {
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float) if float.fract() == 0.0 && float.abs() < 9e15 => Value::from(float as i64),
            _ => Value::Number(number),
        },
        Value::Array(items) => items.into_iter().map(with_integers).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, with_integers(value))).collect(),
        other => other,
    }
}

fn parse(arguments: &[JValue]) -> Result<JValue, EvaluatorError> {
    let failed = |message: String| EvaluatorError::EvaluationError(message);
    let text = arguments.first().and_then(JValue::as_str).ok_or_else(|| failed("$parse takes a string".to_owned()))?;
    let value: Value = serde_json::from_str(text).map_err(|error| failed(error.to_string()))?;
    Ok(JValue::from(value))
}

/// The variables in an expression: what follows a dollar sign and is neither a function nor in quotes.
fn names_in(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '$') => {
                let name: String =
                    text[at + 1..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                let called = text[at + 1 + name.len()..].starts_with('(');
                if !name.is_empty() && !called && !FUNCTIONS.contains(&name.as_str()) {
                    names.insert(name);
                }
            }
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn evaluated(text: &str, variables: Value, states: Value) -> Result<Value, String> {
        let template = Template::parse(&json!(format!("{{% {text} %}}"))).unwrap();
        let variables = variables.as_object().cloned().unwrap_or_default();
        template.evaluate(&Scope { variables: &variables, states, epoch_ms: 1_800_000_000_000 })
    }

    /// Where JSONata makes a list of one into what it holds, and where it does not.
    #[test]
    fn lists_of_none_one_and_two_stay_lists_where_the_definitions_rely_on_it() {
        for list in [json!([]), json!([{ "a": 1 }]), json!([{ "a": 1 }, { "a": 2 }])] {
            let of = json!({ "r": { "left": list } });
            assert_eq!(evaluated("$r.left", of.clone(), json!(null)).unwrap(), list);
            assert_eq!(evaluated("$r.left = []", of, json!(null)).unwrap(), json!(list == json!([])));
            for text in ["$append($left, [{'state': 'S'}])", "$append($left[[0..59]], [{'state': 'S'}])"] {
                let appended = evaluated(text, json!({ "left": list }), json!(null)).unwrap();
                assert_eq!(appended.as_array().unwrap().len(), list.as_array().unwrap().len() + 1, "{text}");
            }
            let states = json!({ "result": { "Payload": { "taken": list } } });
            let added = evaluated("$append($taken, $states.result.Payload.taken)", json!({ "taken": [] }), states);
            assert_eq!(added.unwrap(), list);
        }
        let many: Vec<Value> = (0..70).map(|n| json!({ "n": n })).collect();
        let cut = evaluated("$append($left[[0..59]], [{'state': 'S'}])", json!({ "left": many }), json!(null)).unwrap();
        assert_eq!(
            (cut.as_array().unwrap().len(), &cut[59], &cut[60]),
            (61, &json!({ "n": 59 }), &json!({ "state": "S" }))
        );
        for (results, taken) in [
            (json!([]), json!([])),
            (json!([{ "taken": [] }]), json!([])),
            (json!([{ "taken": [{ "a": 1 }] }, { "taken": [] }]), json!([{ "a": 1 }])),
            (json!([{ "taken": [] }, { "taken": [{ "a": 1 }, { "a": 2 }] }]), json!([{ "a": 1 }, { "a": 2 }])),
        ] {
            let states = json!({ "result": results });
            assert_eq!(evaluated("$append($taken, $states.result.taken)", json!({ "taken": [] }), states), Ok(taken));
        }
        assert_eq!(evaluated("$r.left = []", json!({ "r": {} }), json!(null)).unwrap(), json!(false));
    }

    #[test]
    fn an_answer_that_is_not_there_is_begun_and_one_that_is_there_is_added_to() {
        let text = "$merge([$last = null ? {'taken': []} : $last, {'left': $append($last.left, [{'state': 'S'}])}])";
        let begun = evaluated(text, json!({ "last": null }), json!(null)).unwrap();
        assert_eq!(begun, json!({ "taken": [], "left": [{ "state": "S" }] }));
        let last = json!({ "taken": [{ "a": 1 }], "left": [{ "b": 1 }] });
        let added = evaluated(text, json!({ "last": last }), json!(null)).unwrap();
        assert_eq!(added, json!({ "taken": [{ "a": 1 }], "left": [{ "b": 1 }, { "state": "S" }] }));
    }

    #[test]
    fn only_a_text_that_names_an_execution_of_the_machine_does_so() {
        let text = "$type($states.input.detail.executionArn) = 'string' \
            ? $contains($states.input.detail.executionArn, ':execution:ShareAmi:') : false";
        let arn = |machine: &str| json!(format!("arn:aws:states:eu-west-1:333333333333:execution:{machine}:n"));
        let named = |input: Value| evaluated(text, json!({}), json!({ "input": input })).unwrap();
        assert_eq!(named(json!({ "detail": { "executionArn": arn("ShareAmi") } })), json!(true));
        for other in [
            json!({ "detail": { "executionArn": arn("UndoShare") } }),
            json!({ "detail": { "executionArn": 3 } }),
            json!({ "detail": "x" }),
            json!({}),
            json!([]),
            json!("x"),
            json!(null),
        ] {
            assert_eq!(named(other.clone()), json!(false), "{other}");
        }
    }

    #[test]
    fn what_stays_is_noted_as_json_and_said_in_words() {
        let text = "$string($merge([$t.keep = true ? {'instanceId': $i} : {}, \
            $t.mode = 'copyImage' and $not($exists($t.copyId)) ? {'copyId': $c} : {}]))";
        let noted =
            |target: Value| evaluated(text, json!({ "t": target, "i": "i-1", "c": "ami-1" }), json!(null)).unwrap();
        assert_eq!(noted(json!({ "mode": "none" })), json!("{}"));
        assert_eq!(noted(json!({ "mode": "copyImage", "copyId": "ami-2" })), json!("{}"));
        assert_eq!(
            noted(json!({ "mode": "copyImage", "keep": true })),
            json!(r#"{"instanceId":"i-1","copyId":"ami-1"}"#)
        );
        let text = "$last = null ? ($recorded ? 'all' : 'none') : ($failed = null ? 'none' : 'all but ' & $join($failed, ', '))";
        for (last, recorded, failed, said) in [
            (json!(null), true, json!(null), "all"),
            (json!(null), false, json!(null), "none"),
            (json!({ "left": [] }), true, json!(null), "none"),
            (json!({ "left": [] }), true, json!(["1", "2"]), "all but 1, 2"),
        ] {
            let variables = json!({ "last": last, "recorded": recorded, "failed": failed });
            assert_eq!(evaluated(text, variables, json!(null)).unwrap(), json!(said));
        }
        let failed = |results: Value| {
            evaluated("[$r[$exists(failure)].accountId]", json!({ "r": results }), json!(null)).unwrap()
        };
        assert_eq!(failed(json!([{ "accountId": "1" }, { "accountId": "2", "failure": {} }])), json!(["2"]));
        assert_eq!(
            failed(json!([{ "accountId": "1", "failure": {} }, { "accountId": "2", "failure": {} }])),
            json!(["1", "2"])
        );
    }

    #[test]
    fn failures_of_a_map_are_counted_and_the_first_is_taken() {
        let failures = |results: Value| evaluated("$count($r.failure)", json!({ "r": results }), json!(null)).unwrap();
        assert_eq!(failures(json!([])), json!(0));
        assert_eq!(failures(json!([{ "a": 1 }])), json!(0));
        assert_eq!(failures(json!([{ "failure": { "error": "A" } }])), json!(1));
        let two = json!({ "r": [{ "a": 1 }, { "failure": { "error": "A" } }, { "failure": { "error": "B" } }] });
        assert_eq!(evaluated("($r.failure)[0]", two, json!(null)).unwrap(), json!({ "error": "A" }));
    }

    #[test]
    fn json_in_strings_time_and_absent_fields_are_as_step_functions_has_them() {
        let round = json!({ "é": [1, 1.5, [[]], {}], "n": null });
        let text = evaluated("$string($r)", json!({ "r": round }), json!(null)).unwrap();
        assert_eq!(text, json!(round.to_string()));
        assert_eq!(evaluated("$parse($t)", json!({ "t": text }), json!(null)).unwrap(), round);
        assert_eq!(evaluated("$string($millis() + 900000)", json!({}), json!(null)).unwrap(), json!("1800000900000"));
        let cause = "$exists($states.errorOutput.Cause) ? $states.errorOutput.Cause : ''";
        assert_eq!(evaluated(cause, json!({}), json!({ "errorOutput": { "Error": "E" } })).unwrap(), json!(""));
        assert_eq!(evaluated("$f = null and $f.x = 1", json!({ "f": null }), json!(null)).unwrap(), json!(false));
    }

    #[test]
    fn nothing_is_an_error_and_so_is_a_variable_that_nobody_assigned() {
        assert!(evaluated("$states.input.b", json!({}), json!({ "input": {} })).unwrap_err().contains("no result"));
        assert!(evaluated("$count($missing) = 0", json!({}), json!(null)).unwrap_err().contains("$missing"));
    }
}
