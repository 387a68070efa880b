//! Policy documents: validated and parsed once, evaluated with iam-rs.
//!
//! iam-rs matches actions, resources and conditions. Three things are done
//! around it here, because AWS's semantics need more than one request:
//!
//! - Principals. Whether a statement names the caller itself, its whole account
//!   or everyone decides who else must allow the call, and a principal that is
//!   deleted and made again under the same name is not the same principal.
//! - `Bool` conditions are compared as text and `ArnEquals` as `ArnLike`, as AWS
//!   does, so that a context value is always a string.
//! - Policy variables in conditions, which iam-rs replaces in resources only.

use crate::auth::{Caller, Context};
use iam_rs::{
    Arn, ContextValue, Decision, IAMPolicy, IAMRequest, IAMStatement, PolicyEvaluator, Principal, PrincipalId,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What a document is for; decides which elements it must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyKind {
    /// Attached to a user or role, passed to AssumeRole, or a service control policy: no principal.
    Identity,
    /// A role's trust policy: a principal, no resource.
    Trust,
    /// A key policy: principal, action and resource.
    Key,
}

/// A parsed policy document.
#[derive(Debug)]
pub struct Policy {
    /// The document as it was given.
    pub text: String,
    statements: Vec<Statement>,
    /// Every `AWS` principal that is an ARN of a user or role, with the unique id
    /// it had when the document was written.
    bound: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Statement {
    allow: bool,
    principals: Option<Principals>,
    not_action: bool,
    /// Lower-case patterns; a cheap filter before iam-rs is asked.
    actions: Vec<String>,
    evaluator: PolicyEvaluator,
    /// The statement itself, when its conditions hold policy variables.
    with_variables: Option<Value>,
}

#[derive(Debug)]
struct Principals {
    /// `NotPrincipal`
    negated: bool,
    everyone: bool,
    /// Account ids, ARNs and unique ids.
    aws: Vec<String>,
    services: Vec<String>,
}

/// How a resource policy's statement names the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamedAs {
    /// Through its account (`arn:aws:iam::B:root`): the account's own identity
    /// policies must allow the call too.
    Account,
    /// Itself, or as one of everyone.
    Itself,
}

/// What one document says about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    pub denied: bool,
    pub allowed: Option<NamedAs>,
}

/// One request, in the form that iam-rs evaluates.
#[derive(Debug)]
pub struct Request {
    inner: IAMRequest,
    /// As it was called; compared in lower case.
    pub action: String,
    lower_action: String,
    pub resource: String,
}

impl Request {
    /// `resource` is an ARN, or `*` for an action without a resource.
    pub fn new(action: &str, resource: &str, context: &Context) -> Self {
        let arn = Arn::parse(resource).unwrap_or_else(|_| Arn {
            // Matches no pattern but "*".
            partition: "aws".to_owned(),
            service: "none".to_owned(),
            region: String::new(),
            account_id: String::new(),
            resource: "none".to_owned(),
        });
        let data = context
            .iter()
            .filter(|(_, values)| !values.is_empty())
            .map(|(key, values)| {
                let value = match values.as_slice() {
                    [single] => ContextValue::String(single.clone()),
                    several => ContextValue::StringList(several.to_vec()),
                };
                (key.clone(), value)
            })
            .collect();
        Self {
            inner: IAMRequest::new_with_context(
                Principal::Aws(PrincipalId::String("000000000000".to_owned())),
                action,
                arn,
                iam_rs::Context::with_data(data),
            ),
            action: action.to_owned(),
            lower_action: action.to_ascii_lowercase(),
            resource: resource.to_owned(),
        }
    }
}

impl Policy {
    /// Parses and checks a document. The error is AWS's kind of sentence.
    pub fn parse(text: &str, kind: PolicyKind) -> Result<Self, String> {
        let document: Value =
            serde_json::from_str(text).map_err(|error| format!("Syntax errors in policy. {error}"))?;
        let Some(document) = document.as_object() else {
            return Err("Syntax errors in policy. The document is not a JSON object.".to_owned());
        };
        for (name, value) in document {
            match (name.as_str(), value) {
                ("Version", Value::String(version)) if version == "2012-10-17" || version == "2008-10-17" => {}
                ("Id", Value::String(_)) | ("Statement", _) => {}
                _ => return Err(format!("Syntax errors in policy. Bad element {name}.")),
            }
        }
        let statements = match document.get("Statement") {
            Some(Value::Array(statements)) => statements.iter().collect(),
            Some(single @ Value::Object(_)) => vec![single],
            _ => Vec::new(),
        };
        if statements.is_empty() {
            return Err("Syntax errors in policy. There is no Statement.".to_owned());
        }
        let mut sids = Vec::new();
        let mut parsed = Vec::with_capacity(statements.len());
        for statement in statements {
            if let Some(sid) = statement.get("Sid").and_then(Value::as_str)
                && !sid.is_empty()
            {
                if kind == PolicyKind::Identity && !sid.chars().all(|c| c.is_ascii_alphanumeric()) {
                    return Err(format!("Statement IDs (SID) should be alpha-numeric, {sid} is not."));
                }
                if kind != PolicyKind::Key && sids.contains(&sid) {
                    return Err("Statement IDs (SID) in a single policy must be unique.".to_owned());
                }
                sids.push(sid);
            }
            parsed.push(Statement::parse(statement, kind)?);
        }
        Ok(Self { text: text.to_owned(), statements: parsed, bound: BTreeMap::new() })
    }

    /// The document as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    /// Every `AWS` principal of every statement, as written.
    pub fn aws_principals(&self) -> impl Iterator<Item = &str> {
        self.statements
            .iter()
            .filter_map(|statement| statement.principals.as_ref())
            .flat_map(|principals| principals.aws.iter().map(String::as_str))
    }

    /// Remembers which unique id each user's or role's ARN stands for.
    pub fn bind(&mut self, unique_id: impl Fn(&str) -> Option<String>) {
        let bound = self
            .aws_principals()
            .filter(|principal| principal.contains(":role/") || principal.contains(":user/"))
            .filter_map(|arn| Some((arn.to_owned(), unique_id(arn)?)))
            .collect();
        self.bound = bound;
    }

    /// The text as AWS gives it back: a principal that no longer is the one the
    /// document was written for is shown by its unique id.
    pub fn text_with_dead_principals(&self, unique_id: impl Fn(&str) -> Option<String>) -> String {
        let dead: Vec<(&String, &String)> =
            self.bound.iter().filter(|(arn, id)| unique_id(arn).as_ref() != Some(id)).collect();
        if dead.is_empty() {
            return self.text.clone();
        }
        dead.into_iter()
            .fold(self.text.clone(), |text, (arn, id)| text.replace(&format!("\"{arn}\""), &format!("\"{id}\"")))
    }

    /// What an identity or session policy says.
    pub fn evaluate(&self, request: &Request) -> Verdict {
        self.verdict(request, |_| Some(NamedAs::Itself))
    }

    /// What a resource policy says about `caller`.
    pub fn evaluate_for(&self, request: &Request, caller: &Caller) -> Verdict {
        self.verdict(request, |statement| {
            statement.principals.as_ref().and_then(|principals| principals.names(caller, &self.bound))
        })
    }

    /// What a trust policy says about an AWS service such as `lambda.amazonaws.com`.
    pub fn evaluate_for_service(&self, request: &Request, service: &str) -> Verdict {
        self.verdict(request, |statement| {
            let principals = statement.principals.as_ref()?;
            let named = principals.everyone || principals.services.iter().any(|s| s == service);
            (named != principals.negated).then_some(NamedAs::Itself)
        })
    }

    /// The Deny statements that match, as they are written.
    pub fn denying(&self, request: &Request) -> Vec<Value> {
        let written = self.json();
        let written = match &written["Statement"] {
            Value::Array(statements) => statements.clone(),
            single => vec![single.clone()],
        };
        let pairs = self.statements.iter().zip(written);
        pairs
            .filter(|(statement, _)| !statement.allow && statement.matches(request))
            .map(|(_, written)| written)
            .collect()
    }

    fn verdict(&self, request: &Request, named: impl Fn(&Statement) -> Option<NamedAs>) -> Verdict {
        let mut verdict = Verdict::default();
        for statement in &self.statements {
            let Some(named_as) = named(statement) else {
                continue;
            };
            if !statement.matches(request) {
                continue;
            }
            if statement.allow {
                verdict.allowed = verdict.allowed.max(Some(named_as));
            } else {
                verdict.denied = true;
            }
        }
        verdict
    }
}

impl Statement {
    fn parse(statement: &Value, kind: PolicyKind) -> Result<Self, String> {
        let Some(statement) = statement.as_object() else {
            return Err("Syntax errors in policy. A statement is not an object.".to_owned());
        };
        for name in statement.keys() {
            let known = [
                "Sid",
                "Effect",
                "Principal",
                "NotPrincipal",
                "Action",
                "NotAction",
                "Resource",
                "NotResource",
                "Condition",
            ];
            if !known.contains(&name.as_str()) {
                return Err(format!("Syntax errors in policy. Unknown element {name}."));
            }
        }
        let allow = match statement.get("Effect").and_then(Value::as_str) {
            Some("Allow") => true,
            Some("Deny") => false,
            _ => return Err("Syntax errors in policy. Effect must be Allow or Deny.".to_owned()),
        };
        let principals = Principals::parse(statement)?;
        match (kind, &principals) {
            (PolicyKind::Identity, Some(_)) => {
                return Err("Policy document should not specify a principal.".to_owned());
            }
            (PolicyKind::Trust | PolicyKind::Key, None) => {
                return Err("Policy statement must contain principals.".to_owned());
            }
            _ => {}
        }
        let not_action = statement.contains_key("NotAction");
        let actions = strings(statement, "Action")?
            .or(strings(statement, "NotAction")?)
            .filter(|actions| !actions.is_empty())
            .ok_or("Policy statement must contain actions.")?;
        for action in &actions {
            let prefaced = action.split_once(':').is_some_and(|(service, name)| {
                !name.is_empty() && service.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            });
            if action != "*" && !prefaced {
                return Err(format!(
                    "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc. ({action})"
                ));
            }
        }
        let resources = strings(statement, "Resource")?
            .or(strings(statement, "NotResource")?)
            .filter(|resources| !resources.is_empty());
        match (kind, &resources) {
            (PolicyKind::Trust, Some(_)) => return Err("Has prohibited field Resource".to_owned()),
            (PolicyKind::Identity | PolicyKind::Key, None) => {
                return Err("Policy statement must contain resources.".to_owned());
            }
            _ => {}
        }
        for resource in resources.iter().flatten() {
            if resource != "*" && Arn::parse(resource).is_err() {
                return Err(format!("Resource {resource} must be in ARN format or \"*\"."));
            }
        }
        let normal = normalized(statement)?;
        let has_variables = normal.get("Condition").is_some_and(|condition| condition.to_string().contains("${"));
        Ok(Self {
            allow,
            principals,
            not_action,
            actions: actions.iter().map(|action| action.to_ascii_lowercase()).collect(),
            evaluator: evaluator(&normal)?,
            with_variables: has_variables.then_some(normal),
        })
    }

    fn matches(&self, request: &Request) -> bool {
        let named = self.actions.iter().any(|pattern| Arn::wildcard_match(&request.lower_action, pattern));
        if named == self.not_action {
            return false;
        }
        let replaced = self.with_variables.as_ref().map(|statement| {
            let mut statement = statement.clone();
            if let Some(condition) = statement.get_mut("Condition") {
                replace_variables(condition, &request.inner.context);
            }
            evaluator(&statement)
        });
        let evaluator = match &replaced {
            Some(Ok(evaluator)) => evaluator,
            Some(Err(_)) => return false,
            None => &self.evaluator,
        };
        // A statement that cannot be evaluated (a text where a number belongs)
        // matches nothing, as in AWS.
        evaluator.evaluate(&request.inner).is_ok_and(|result| result.decision == Decision::Allow)
    }
}

impl Principals {
    fn parse(statement: &Map<String, Value>) -> Result<Option<Self>, String> {
        let (negated, principal) = match (statement.get("Principal"), statement.get("NotPrincipal")) {
            (None, None) => return Ok(None),
            (Some(principal), None) => (false, principal),
            (None, Some(principal)) => (true, principal),
            (Some(_), Some(_)) => {
                return Err("Syntax errors in policy. Principal and NotPrincipal.".to_owned());
            }
        };
        let mut parsed = Self { negated, everyone: principal == "*", aws: Vec::new(), services: Vec::new() };
        match principal {
            Value::String(text) if text == "*" => {}
            Value::Object(map) if !map.is_empty() => {
                for kind in map.keys() {
                    let values = strings(map, kind)?.unwrap_or_default();
                    if values.is_empty() {
                        return Err("Policy statement must contain principals.".to_owned());
                    }
                    match kind.as_str() {
                        "AWS" => parsed.aws = values,
                        "Service" => parsed.services = values,
                        "Federated" | "CanonicalUser" => {}
                        _ => return Err(format!("Invalid principal in policy: {kind}")),
                    }
                }
                if let Some(index) = parsed.aws.iter().position(|principal| principal == "*") {
                    parsed.aws.swap_remove(index);
                    parsed.everyone = true;
                }
            }
            _ => return Err(format!("Invalid principal in policy: {principal}")),
        }
        Ok(Some(parsed))
    }

    /// How the statement names the caller, if it does.
    fn names(&self, caller: &Caller, bound: &BTreeMap<String, String>) -> Option<NamedAs> {
        let named = self
            .aws
            .iter()
            .filter_map(|principal| named_by(principal, caller, bound))
            .max()
            .max(self.everyone.then_some(NamedAs::Itself));
        if self.negated {
            return named.is_none().then_some(NamedAs::Itself);
        }
        named
    }
}

fn named_by(principal: &str, caller: &Caller, bound: &BTreeMap<String, String>) -> Option<NamedAs> {
    if principal == caller.account || principal == root_arn(&caller.account) {
        return Some(NamedAs::Account);
    }
    if principal == caller.session_arn {
        return Some(NamedAs::Itself);
    }
    let same = principal == caller.arn && bound.get(principal).is_none_or(|id| *id == caller.principal_id);
    same.then_some(NamedAs::Itself)
}

/// `arn:aws:iam::<account>:root`
pub fn root_arn(account: &str) -> String {
    format!("arn:aws:iam::{account}:root")
}

/// The element as a list; a single string is a list of one.
fn strings(object: &Map<String, Value>, name: &str) -> Result<Option<Vec<String>>, String> {
    match object.get(name) {
        None => Ok(None),
        Some(Value::String(single)) => Ok(Some(vec![single.clone()])),
        Some(Value::Array(values)) => values
            .iter()
            .map(|value| {
                value.as_str().map(str::to_owned).ok_or_else(|| format!("Syntax errors in policy. {name} is not text."))
            })
            .collect::<Result<_, _>>()
            .map(Some),
        Some(_) => Err(format!("Syntax errors in policy. {name} is not text.")),
    }
}

/// The statement as iam-rs is to see it: always Allow (so that "allowed" means
/// "matched"), no principal, a resource, and conditions on text only.
fn normalized(statement: &Map<String, Value>) -> Result<Value, String> {
    let mut normal = Map::new();
    normal.insert("Effect".to_owned(), json!("Allow"));
    for name in ["Action", "NotAction", "Resource", "NotResource"] {
        if let Some(value) = statement.get(name) {
            normal.insert(name.to_owned(), value.clone());
        }
    }
    if !normal.contains_key("Resource") && !normal.contains_key("NotResource") {
        normal.insert("Resource".to_owned(), json!("*"));
    }
    let Some(condition) = statement.get("Condition") else {
        return Ok(Value::Object(normal));
    };
    let syntax = || "Syntax errors in policy. Condition.".to_owned();
    let mut conditions = Map::new();
    for (operator, keys) in condition.as_object().ok_or_else(syntax)? {
        let mut values_by_key = Map::new();
        for (key, values) in keys.as_object().ok_or_else(syntax)? {
            let values = match values {
                Value::Array(values) => values.iter().map(as_text).collect::<Option<Vec<_>>>(),
                single => as_text(single).map(|text| vec![text]),
            };
            values_by_key.insert(key.clone(), json!(values.ok_or_else(syntax)?));
        }
        merge(&mut conditions, text_operator(operator), values_by_key)?;
    }
    normal.insert("Condition".to_owned(), Value::Object(conditions));
    Ok(Value::Object(normal))
}

/// Two operators may become one (`Bool` and `StringEqualsIgnoreCase`); all their
/// keys still have to match.
fn merge(conditions: &mut Map<String, Value>, operator: String, keys: Map<String, Value>) -> Result<(), String> {
    let Some(existing) = conditions.get_mut(&operator).and_then(Value::as_object_mut) else {
        conditions.insert(operator, Value::Object(keys));
        return Ok(());
    };
    for (key, values) in keys {
        if existing.contains_key(&key) {
            return Err(format!("Syntax errors in policy. The sandbox cannot compare {key} twice with {operator}."));
        }
        existing.insert(key, values);
    }
    Ok(())
}

fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        _ => None,
    }
}

fn text_operator(operator: &str) -> String {
    let (set, plain) = match operator.split_once(':') {
        Some((set, plain)) => (format!("{set}:"), plain),
        None => (String::new(), operator),
    };
    let (plain, if_exists) = match plain.strip_suffix("IfExists") {
        Some(plain) => (plain, "IfExists"),
        None => (plain, ""),
    };
    let plain = match plain {
        "Bool" => "StringEqualsIgnoreCase",
        "ArnEquals" => "ArnLike",
        "ArnNotEquals" => "ArnNotLike",
        other => other,
    };
    format!("{set}{plain}{if_exists}")
}

fn evaluator(statement: &Value) -> Result<PolicyEvaluator, String> {
    let statement: IAMStatement =
        serde_json::from_value(statement.clone()).map_err(|error| format!("Syntax errors in policy. {error}"))?;
    Ok(PolicyEvaluator::with_policies(vec![IAMPolicy::new().add_statement(statement)]))
}

fn replace_variables(value: &mut Value, context: &iam_rs::Context) {
    match value {
        Value::String(text) if text.contains("${") => {
            if let Ok(replaced) = iam_rs::interpolate_variables(text, context) {
                *text = replaced;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| replace_variables(value, context)),
        Value::Object(map) => map.values_mut().for_each(|value| replace_variables(value, context)),
        _ => {}
    }
}
