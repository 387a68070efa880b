//! The local engine, where ami-share relies on it and where launch.py corrects it.

use std::{fs, time::Duration};

use ami_share_tests::{
    HUB, Result,
    clients::root_of,
    deploy,
    engine::{self, Engine},
    execution,
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

fn start() -> Result<Engine> {
    let port = engine::free_port()?;
    let directory = std::env::temp_dir().join(format!("ami-share-engine-{port}"));
    Engine::start(port, "http://127.0.0.1:9", &directory, 3)
}

async fn machine(engine: &Engine, definition: Value) -> Result<String> {
    let role = json!({ "Resources": { "Role": {
        "Type": "AWS::IAM::Role",
        "Properties": { "AssumeRolePolicyDocument": { "Version": "2012-10-17", "Statement": [{
            "Effect": "Allow",
            "Principal": { "Service": "states.amazonaws.com" },
            "Action": "sts:AssumeRole",
        }]}},
    }}, "Outputs": { "Arn": { "Value": { "Fn::GetAtt": ["Role", "Arn"] } } } });
    let stack = deploy::deploy(engine, HUB, "machine-role", deploy::Template::Body(role), &[]).await?;
    let client = aws_sdk_sfn::Client::new(&root_of(HUB, &engine.endpoint()));
    let created = client
        .create_state_machine()
        .name("machine")
        .definition(definition.to_string())
        .role_arn(&stack.outputs["Arn"])
        .send()
        .await?;
    Ok(created.state_machine_arn)
}

async fn run(engine: &Engine, machine: &str, input: Value) -> Result<execution::Ended> {
    let arn = execution::start(&engine.endpoint(), machine, "run", &input).await?;
    execution::follow(&engine.endpoint(), &arn, |_| {}).await
}

#[tokio::test]
async fn a_failed_function_is_caught_and_its_error_can_be_told() -> Result<()> {
    let engine = start()?;
    deploy::deploy_bucket(&engine).await?;
    let function = deploy::deploy_failing_function(&engine).await?;
    let definition = json!({ "QueryLanguage": "JSONata", "StartAt": "Fails", "States": {
        "Fails": {
            "Type": "Task",
            "Resource": "arn:aws:states:::lambda:invoke",
            "Arguments": { "FunctionName": function, "Payload": {} },
            "Catch": [{
                "ErrorEquals": ["InjectedFailure"],
                "Assign": { "error": "{% $states.errorOutput %}" },
                "Next": "Fail",
            }],
            "End": true,
        },
        "Fail": { "Type": "Fail", "Error": "{% $error.Error %}", "Cause": "{% $parse($error.Cause).errorMessage %}" },
    }});
    let ended = run(&engine, &machine(&engine, definition).await?, json!({})).await?;
    assert_eq!(ended.status, ExecutionStatus::Failed);
    assert_eq!(ended.error.as_deref(), Some("InjectedFailure"));
    assert_eq!(ended.cause.as_deref(), Some("This step was made to fail."));
    Ok(())
}

#[tokio::test]
async fn the_history_shows_the_states_inside_a_map() -> Result<()> {
    let engine = start()?;
    let definition = json!({ "QueryLanguage": "JSONata", "StartAt": "Each", "States": {
        "Each": { "Type": "Map", "Items": "{% $states.input %}", "ItemProcessor": { "StartAt": "Inside", "States": {
            "Inside": { "Type": "Pass", "Output": "{% $states.input * 2 %}", "End": true },
        }}, "Next": "Done" },
        "Done": { "Type": "Succeed", "Output": { "doubled": "{% $states.input %}" } },
    }});
    let ended = run(&engine, &machine(&engine, definition).await?, json!([1, 2])).await?;
    let states: Vec<&str> = ended.states.iter().map(|entered| entered.state.as_str()).collect();
    assert_eq!(states, ["Each", "Inside", "Inside", "Done"]);
    assert_eq!(ended.output, Some(json!({ "doubled": [2, 4] })));
    Ok(())
}

#[tokio::test]
async fn one_assign_sees_the_variables_as_they_were_before_it() -> Result<()> {
    let engine = start()?;
    let definition = json!({ "QueryLanguage": "JSONata", "StartAt": "First", "States": {
        "First": { "Type": "Pass", "Assign": { "a": 1, "b": 2 }, "Next": "Swap" },
        "Swap": { "Type": "Pass", "Assign": { "a": "{% $b %}", "b": "{% $a %}" }, "Next": "Last" },
        "Last": { "Type": "Pass", "Output": ["{% $a %}", "{% $b %}"], "End": true },
    }});
    let ended = run(&engine, &machine(&engine, definition).await?, json!({})).await?;
    assert_eq!(ended.output, Some(json!([2, 1])));
    Ok(())
}

#[tokio::test]
async fn an_execution_that_is_stopped_enters_no_further_state() -> Result<()> {
    let engine = start()?;
    let definition = json!({ "QueryLanguage": "JSONata", "StartAt": "Each", "States": {
        "Each": { "Type": "Map", "Items": [1], "ItemProcessor": { "StartAt": "Hold", "States": {
            "Hold": { "Type": "Wait", "Seconds": 50, "Next": "After" },
            "After": { "Type": "Pass", "End": true },
        }}, "End": true },
    }});
    let machine = machine(&engine, definition).await?;
    let client = aws_sdk_sfn::Client::new(&root_of(HUB, &engine.endpoint()));
    let arn = execution::start(&engine.endpoint(), &machine, "run", &json!({})).await?;
    let again = execution::start(&engine.endpoint(), &machine, "run", &json!({})).await?;
    assert_eq!(arn, again, "the same name and input while it runs is the same execution");
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.stop_execution().execution_arn(&arn).send().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ended = execution::follow(&engine.endpoint(), &arn, |_| {}).await?;
    assert_eq!(ended.status, ExecutionStatus::Aborted);
    assert!(ended.entered("Hold") && !ended.entered("After"), "{:?}", ended.states);
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_when_the_engine_is_dropped() -> Result<()> {
    let engine = start()?;
    let directory = engine.directory().to_owned();
    deploy::deploy_bucket(&engine).await?;
    let function = deploy::deploy_failing_function(&engine).await?;
    let output = deploy::aws(HUB, &engine.endpoint())?
        .args(["lambda", "invoke", "--function-name", &function, "--payload", "{}", "/dev/stdout"])
        .output()?;
    assert!(String::from_utf8_lossy(&output.stdout).contains("InjectedFailure"), "{output:?}");
    let marker = directory.display().to_string();
    assert_eq!(processes_with(&marker)?, 2, "the engine and one function");
    drop(engine);
    assert_eq!(processes_with(&marker)?, 0);
    assert!(!directory.exists());
    Ok(())
}

/// How many processes have `text` in their environment.
fn processes_with(text: &str) -> Result<usize> {
    let ours = std::process::id().to_string();
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let environment = fs::read(path.join("environ")).unwrap_or_default();
        if !path.ends_with(&ours) && String::from_utf8_lossy(&environment).contains(text) {
            count += 1;
        }
    }
    Ok(count)
}
