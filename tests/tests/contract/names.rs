//! One thing has one name: directory, package and binary `share-key`, logical id
//! `ShareKeyFunction`, substitution `${ShareKeyFunctionArn}`, state `ShareKey`, Rust function
//! `share_key`. An undo is the second binary of its step's package.

use std::fs;

use ami_share_tests::{engine::checkout, template::resources};
use serde_json::json;

use crate::{
    Set,
    definition::{self, Machine},
    kebab,
    steps::{functions, steps},
    template, text,
};

/// `share-key` for `ShareKey` and `UndoShareKey`.
fn package(name: &str) -> String {
    kebab(name.strip_prefix("Undo").unwrap_or(name))
}

#[test]
fn the_template_has_exactly_the_functions_that_there_are() {
    let template = template("template.yaml");
    let deployed: Set = resources(&template, "AWS::Serverless::Function").map(|(id, _)| id.to_owned()).collect();
    let known: Set = functions().into_iter().map(|(name, _)| format!("{name}Function")).collect();
    assert_eq!(deployed, known);
}

#[test]
fn each_function_is_built_from_the_binary_of_its_name() {
    let template = template("template.yaml");
    for (name, _) in functions() {
        let metadata = &template["Resources"][format!("{name}Function")]["Metadata"];
        assert_eq!(metadata["BuildMethod"], "rust-cargolambda", "{name}");
        assert_eq!(metadata["BuildProperties"]["Binary"], kebab(name), "{name}");
        let directory = format!("functions/{}/src", package(name));
        let main = if name.starts_with("Undo") {
            text(&format!("{directory}/bin/{}.rs", kebab(name)))
        } else {
            text(&format!("{directory}/main.rs"))
        };
        assert!(main.contains(&kebab(name).replace('-', "_")), "{name}: {main}");
        assert!(main.lines().count() < 15, "the main of {name} does more than wire");
    }
}

/// The folders in that folder.
fn folders(path: &str) -> Set {
    fs::read_dir(checkout().join(path))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn each_folder_is_a_package_of_its_name_with_the_functions_of_its_name() {
    let template = template("template.yaml");
    let mut packages: Set = resources(&template, "AWS::Serverless::Function")
        .map(|(id, _)| package(id.strip_suffix("Function").unwrap()))
        .collect();
    for name in &packages {
        let manifest = text(&format!("functions/{name}/Cargo.toml"));
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name}");
    }
    packages.insert("lib".to_owned());
    assert_eq!(folders("functions"), packages);
}

#[test]
fn each_folder_of_lib_is_a_library_of_its_name() {
    for name in folders("functions/lib") {
        let manifest = text(&format!("functions/lib/{name}/Cargo.toml"));
        assert!(manifest.contains(&format!("name = \"ami-share-{name}\"\n")), "{name}");
        let sources = folders(&format!("functions/lib/{name}/src"));
        assert!(text(&format!("functions/lib/{name}/src/lib.rs")).contains("\n#![warn(missing_docs)]\n"), "{name}");
        assert!(sources.contains("lib.rs") && !sources.contains("main.rs") && !sources.contains("bin"), "{name}");
    }
}

#[test]
fn each_rust_function_has_the_name_of_its_state() {
    for step in steps() {
        let snake = |name: String| name.replace('-', "_");
        let segments: Vec<&str> = step.path.split("::").collect();
        assert_eq!(segments.first(), Some(&snake(package(step.state)).as_str()), "{}", step.path);
        assert_eq!(segments.last(), Some(&snake(kebab(step.state)).as_str()), "{}", step.path);
    }
}

#[test]
fn each_state_calls_the_function_of_its_name() {
    let mut called = Set::new();
    for (state, definition) in definition::machines().iter().flat_map(Machine::tasks) {
        assert_eq!(definition["Arguments"]["FunctionName"], format!("${{{state}FunctionArn}}"));
        called.insert(state);
    }
    let known: Set = steps().into_iter().map(|step| step.state.to_owned()).collect();
    assert_eq!(called, known);
}

#[test]
fn the_template_has_exactly_the_state_machines_that_there_are() {
    let template = template("template.yaml");
    let deployed: Set = resources(&template, "AWS::Serverless::StateMachine").map(|(id, _)| id.to_owned()).collect();
    let known: Set = definition::machines().iter().map(|machine| machine.logical_id.to_owned()).collect();
    assert_eq!(deployed, known);
    let files: Set = fs::read_dir(checkout().join("statemachine"))
        .unwrap()
        .map(|entry| format!("statemachine/{}", entry.unwrap().file_name().into_string().unwrap()))
        .collect();
    assert_eq!(files, definition::machines().iter().map(|machine| machine.path.to_owned()).collect());
}

#[test]
fn every_substitution_is_defined_and_used_and_is_the_function_of_its_name() {
    let template = template("template.yaml");
    for machine in definition::machines() {
        let definition = text(machine.path);
        let used: Set = definition
            .split("${")
            .skip(1)
            .filter_map(|rest| rest.split_once('}'))
            .map(|(name, _)| name.to_owned())
            .collect();
        let properties = &template["Resources"][machine.logical_id]["Properties"];
        assert_eq!(properties["DefinitionUri"], machine.path);
        let substitutions = properties["DefinitionSubstitutions"].as_object().unwrap();
        assert_eq!(substitutions.keys().cloned().collect::<Set>(), used, "{}", machine.path);
        for (name, value) in substitutions {
            let expected = match (name.as_str(), name.strip_suffix("FunctionArn")) {
                (_, Some(step)) => json!({ "Fn::GetAtt": [format!("{step}Function"), "Arn"] }),
                ("NotificationTopicArn", _) => json!({ "Ref": "NotificationTopic" }),
                ("RecordTableName", _) => json!({ "Ref": "RecordTable" }),
                ("TakeBackStateMachineArn", _) => json!({ "Ref": "TakeBackStateMachine" }),
                ("ShareAmiStateMachineName", _) => json!({ "Fn::GetAtt": ["ShareAmiStateMachine", "Name"] }),
                _ => panic!("{}: nobody knows the substitution {name}", machine.path),
            };
            assert_eq!(*value, expected, "{name}");
        }
    }
}

#[test]
fn a_function_gives_up_before_its_state_does() {
    let template = template("template.yaml");
    let default = &template["Globals"]["Function"]["Timeout"];
    for (state, definition) in definition::machines().iter().flat_map(Machine::tasks) {
        let own = &template["Resources"][format!("{state}Function")]["Properties"]["Timeout"];
        let function = own.as_u64().or(default.as_u64()).unwrap();
        let state_timeout = definition["TimeoutSeconds"].as_u64().unwrap();
        assert!(function < state_timeout, "{state}: {function} s, state {state_timeout} s");
    }
}

/// CloudFormation lets no update change a resource's type.
#[test]
fn no_template_can_take_the_place_of_another() {
    let files = ["template.yaml", "accounts/source.yaml", "accounts/target.yaml", "accounts/organization.yaml"];
    let templates = files.map(|file| (file, template(file)));
    for (i, (one, ours)) in templates.iter().enumerate() {
        for (other, theirs) in &templates[i + 1..] {
            let refuses = ours["Resources"].as_object().unwrap().iter().any(|(id, resource)| {
                theirs["Resources"].get(id).is_some_and(|theirs| theirs["Type"] != resource["Type"])
            });
            assert!(refuses, "{one} and {other}");
        }
    }
}
