//! The local engine, where ami-share relies on it and where launch.py corrects it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::{fs, net::TcpListener, time::Duration};

use ami_share_machine::CHILD_DESCRIPTION;
use ami_share_tests::{
    HUB, REGION, Result,
    clients::root_of,
    deploy,
    engine::{self, Engine},
    execution,
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

fn start() -> Result<Engine> {
    let listener = engine::listen()?;
    let directory = std::env::temp_dir().join(format!("ami-share-engine-{}", listener.local_addr()?.port()));
    Engine::start(listener, "http://127.0.0.1:9", &directory, 3)
}

/// The port is held from the moment it is chosen: a socket of somebody else would keep the engine from starting.
#[test]
fn nobody_takes_the_engines_port_before_it_is_there() -> Result<()> {
    let listener = engine::listen()?;
    let address = listener.local_addr()?;
    assert!(TcpListener::bind(address).is_err(), "{address} is free before the engine starts");
    let directory = std::env::temp_dir().join(format!("ami-share-engine-{}", address.port()));
    let _engine = Engine::start(listener, "http://127.0.0.1:9", &directory, 3)?;
    assert!(TcpListener::bind(address).is_err(), "{address} is free while the engine runs");
    Ok(())
}

async fn machine(engine: &Engine, definition: Value) -> Result<String> {
    let [machine] = machines(engine, [("machine", definition)]).await?;
    Ok(machine)
}

/// Their ARNs.
async fn machines<const N: usize>(engine: &Engine, definitions: [(&str, Value); N]) -> Result<[String; N]> {
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
    let mut arns = [const { String::new() }; N];
    for (arn, (name, definition)) in arns.iter_mut().zip(definitions) {
        let machine = client.create_state_machine().name(name).definition(definition.to_string());
        *arn = machine.role_arn(&stack.outputs["Arn"]).send().await?.state_machine_arn;
    }
    Ok(arns)
}

async fn run(engine: &Engine, machine: &str, input: Value) -> Result<execution::Ended> {
    let arn = execution::start(&engine.endpoint(), machine, "run", &input).await?;
    execution::follow(&engine.endpoint(), &arn, |_| {}).await
}

#[tokio::test]
async fn an_empty_list_is_empty_in_a_condition() -> Result<()> {
    let engine = start()?;
    let template = json!({
        "Parameters": { "Names": { "Type": "CommaDelimitedList", "Default": "" } },
        "Conditions": { "Some": { "Fn::Not": [{ "Fn::Equals": [{ "Fn::Join": ["", { "Ref": "Names" }] }, ""] }] } },
        "Resources": { "Topic": { "Type": "AWS::SNS::Topic" } },
        "Outputs": { "Are": { "Value": { "Fn::If": ["Some", "some", "none"] } } },
    });
    for (names, are) in [("", "none"), ("a,b", "some")] {
        let body = deploy::Template::Body(template.clone());
        let stack = deploy::deploy(&engine, HUB, &format!("with-{are}"), body, &[("Names", names)]).await?;
        assert_eq!(stack.outputs["Are"], are);
    }
    Ok(())
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

fn task(resource: &str, arguments: Value) -> Value {
    json!({
        "Type": "Task",
        "Resource": format!("arn:aws:states:::{resource}"),
        "Arguments": arguments,
        "TimeoutSeconds": 60,
        "Catch": [{
            "ErrorEquals": ["States.ALL"],
            "Output": "{% $merge([$states.errorOutput, { 'caught': true }]) %}",
            "Next": "Done",
        }],
        "Output": "{% $states.result %}",
        "Next": "Done",
    })
}

fn definition(first: Value) -> Value {
    json!({ "QueryLanguage": "JSONata", "StartAt": "First", "States": {
        "First": first,
        "Fail": { "Type": "Fail", "Error": "ChildError", "Cause": "it was to fail" },
        "Done": { "Type": "Succeed" },
    }})
}

/// A parent that runs a child.
async fn parent_and_child(engine: &Engine, child: Value) -> Result<[String; 2]> {
    // The engine makes ARNs of names.
    let child_arn = format!("arn:aws:states:{REGION}:{HUB}:stateMachine:child");
    let arguments = json!({ "StateMachineArn": child_arn, "Input": "{% $states.input %}" });
    let parent = definition(task("states:startExecution.sync:2", arguments));
    machines(engine, [("parent", parent), ("child", definition(child))]).await
}

async fn executions(engine: &Engine, machine: &str) -> Result<Vec<String>> {
    let client = aws_sdk_sfn::Client::new(&root_of(HUB, &engine.endpoint()));
    let listed = client.list_executions().state_machine_arn(machine).send().await?;
    Ok(listed.executions.into_iter().map(|execution| execution.execution_arn).collect())
}

#[tokio::test]
async fn a_child_is_answered_with_its_description() -> Result<()> {
    let engine = start()?;
    let child = json!({ "Type": "Pass", "Output": { "doubled": "{% $states.input.n * 2 %}" }, "Next": "Done" });
    let [parent, child] = parent_and_child(&engine, child).await?;
    let output = run(&engine, &parent, json!({ "n": 4 })).await?.output.ok_or("no output")?;
    let names: Vec<&str> = output.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, CHILD_DESCRIPTION);
    assert_eq!(executions(&engine, &child).await?, [output["ExecutionArn"].as_str().unwrap_or_default()]);
    assert_eq!(output["StateMachineArn"], child);
    assert_eq!((&output["Input"], &output["Output"]), (&json!({ "n": 4 }), &json!({ "doubled": 8 })));
    assert!(output["StartDate"].as_u64() < output["StopDate"].as_u64(), "{output}");
    Ok(())
}

#[tokio::test]
async fn a_child_that_fails_fails_the_task_and_its_description_is_the_cause() -> Result<()> {
    let engine = start()?;
    let [parent, _] = parent_and_child(&engine, json!({ "Type": "Pass", "Next": "Fail" })).await?;
    let output = run(&engine, &parent, json!({ "n": 4 })).await?.output.ok_or("no output")?;
    assert_eq!((&output["Error"], &output["caught"]), (&json!("States.TaskFailed"), &json!(true)));
    let cause: Value = serde_json::from_str(output["Cause"].as_str().unwrap_or_default())?;
    assert_eq!(
        (&cause["Status"], &cause["Error"], &cause["Cause"]),
        (&json!("FAILED"), &json!("ChildError"), &json!("it was to fail"))
    );
    assert_eq!((&cause["RedriveStatus"], cause.get("Output")), (&json!("REDRIVABLE"), None));
    assert_eq!(serde_json::from_str::<Value>(cause["Input"].as_str().unwrap_or_default())?, json!({ "n": 4 }));
    Ok(())
}

/// Waits until a state machine has so many executions.
async fn started(engine: &Engine, machine: &str, count: usize) -> Result<Vec<String>> {
    for _ in 0..200 {
        let all = executions(engine, machine).await?;
        if all.len() == count {
            return Ok(all);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("{machine} should have {count} executions").into())
}

#[tokio::test]
async fn a_child_is_stopped_with_its_parent_and_when_its_task_times_out() -> Result<()> {
    let engine = start()?;
    let [parent, child] =
        parent_and_child(&engine, json!({ "Type": "Wait", "Seconds": 3_000, "Next": "Done" })).await?;
    let client = aws_sdk_sfn::Client::new(&root_of(HUB, &engine.endpoint()));
    let stopped = execution::start(&engine.endpoint(), &parent, "stopped", &json!({})).await?;
    started(&engine, &child, 1).await?;
    client.stop_execution().execution_arn(&stopped).send().await?;
    let arguments = json!({ "StateMachineArn": child, "Input": {} });
    let mut impatient = definition(task("states:startExecution.sync:2", arguments));
    impatient["States"]["First"]["TimeoutSeconds"] = json!(1);
    client.update_state_machine().state_machine_arn(&parent).definition(impatient.to_string()).send().await?;
    let impatient = execution::start(&engine.endpoint(), &parent, "impatient", &json!({})).await?;
    let ended = execution::follow(&engine.endpoint(), &impatient, |_| {}).await?;
    assert_eq!(ended.output.ok_or("no output")?["Error"], "States.Timeout");
    let mut causes = Vec::new();
    for arn in started(&engine, &child, 2).await? {
        let ended = execution::follow(&engine.endpoint(), &arn, |_| {}).await?;
        assert_eq!(ended.status, ExecutionStatus::Aborted);
        causes.push(ended.cause.ok_or("no cause")?);
    }
    for parent in [stopped, impatient] {
        let aborted = format!("[{parent}] which was managing this resource was aborted");
        assert!(causes.iter().any(|cause| cause.ends_with(&aborted)), "{causes:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_name_is_given_once_even_to_a_child() -> Result<()> {
    let engine = start()?;
    let [parent, child] = parent_and_child(&engine, json!({ "Type": "Pass", "Next": "Done" })).await?;
    let client = aws_sdk_sfn::Client::new(&root_of(HUB, &engine.endpoint()));
    let named = definition(task(
        "states:startExecution.sync:2",
        json!({ "StateMachineArn": child, "Name": "named", "Input": {} }),
    ));
    client.update_state_machine().state_machine_arn(&parent).definition(named.to_string()).send().await?;
    let mut errors = Vec::new();
    for name in ["first", "second"] {
        let arn = execution::start(&engine.endpoint(), &parent, name, &json!({})).await?;
        let ended = execution::follow(&engine.endpoint(), &arn, |_| {}).await?;
        errors.push(ended.output.ok_or("no output")?["Error"].clone());
    }
    assert_eq!(errors, [json!(null), json!("StepFunctions.ExecutionAlreadyExistsException")]);
    let again = execution::start(&engine.endpoint(), &parent, "first", &json!({})).await;
    assert!(again.is_err_and(|error| format!("{error:?}").contains("ExecutionAlreadyExists")));
    Ok(())
}

#[tokio::test]
async fn what_is_handed_on_has_an_end_and_so_has_a_history() -> Result<()> {
    let engine = start()?;
    let [parent, child] = parent_and_child(&engine, json!({ "Type": "Pass", "Next": "Done" })).await?;
    for (size, status) in [(130_000, ExecutionStatus::Succeeded), (132_000, ExecutionStatus::Failed)] {
        let arn = execution::start(&engine.endpoint(), &parent, &size.to_string(), &json!("x".repeat(size))).await?;
        let ended = execution::follow(&engine.endpoint(), &arn, |_| {}).await?;
        assert_eq!(ended.status, status, "{size}: {:?}", ended.error);
        let expected = (status == ExecutionStatus::Failed).then_some("States.DataLimitExceeded");
        assert_eq!(ended.error.as_deref(), expected, "{size}");
    }
    let client = aws_sdk_sfn::Client::new(&root_of(HUB, &engine.endpoint()));
    for (size, status) in [(130_000, ExecutionStatus::Succeeded), (132_000, ExecutionStatus::Failed)] {
        let assigns =
            json!({ "Type": "Pass", "Assign": { "a": "x".repeat(size), "b": "x".repeat(size) }, "Next": "Done" });
        let update =
            client.update_state_machine().state_machine_arn(&child).definition(definition(assigns).to_string());
        update.send().await?;
        let arn = execution::start(&engine.endpoint(), &child, &format!("assigns-{size}"), &json!({})).await?;
        let ended = execution::follow(&engine.endpoint(), &arn, |_| {}).await?;
        assert_eq!(ended.status, status, "two variables of {size}: {:?}", ended.error);
    }
    let endless = definition(json!({ "Type": "Pass", "Next": "First" }));
    client.update_state_machine().state_machine_arn(&child).definition(endless.to_string()).send().await?;
    let arn = execution::start(&engine.endpoint(), &child, "endless", &json!({})).await?;
    loop {
        let described = client.describe_execution().execution_arn(&arn).send().await?;
        if described.status != ExecutionStatus::Running {
            assert_eq!(described.error.as_deref(), Some("States.Runtime"));
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let last = client.get_execution_history().execution_arn(&arn).reverse_order(true).max_results(1).send().await?;
    assert_eq!(last.events.first().map(|event| event.id), Some(25_000));
    Ok(())
}

#[tokio::test]
async fn an_execution_can_describe_another_one_and_stop_it() -> Result<()> {
    let engine = start()?;
    let stops = json!({ "ExecutionArn": "{% $states.input %}", "Error": "Replaced", "Cause": "by another" });
    let describes = json!({ "ExecutionArn": "{% $states.input %}", "IncludedData": "METADATA_ONLY" });
    let [stop, describe, child] = machines(
        &engine,
        [
            ("stop", definition(task("aws-sdk:sfn:stopExecution", stops))),
            ("describe", definition(task("aws-sdk:sfn:describeExecution", describes))),
            ("child", definition(json!({ "Type": "Wait", "Seconds": 3_000, "Next": "Done" }))),
        ],
    )
    .await?;
    let child = execution::start(&engine.endpoint(), &child, "child", &json!({})).await?;
    let output = async |machine: &str, name: &str, arn: &str| -> Result<Value> {
        let started = execution::start(&engine.endpoint(), machine, name, &json!(arn)).await?;
        let ended = execution::follow(&engine.endpoint(), &started, |_| {}).await?;
        Ok(ended.output.ok_or_else(|| format!("{:?}: {:?}", ended.error, ended.cause))?)
    };
    assert!(output(&stop, "stop", &child).await?["StopDate"].is_string());
    let described = output(&describe, "describe", &child).await?;
    assert_eq!((&described["Status"], described.get("Input")), (&json!("ABORTED"), None), "{described}");
    assert_eq!((&described["RedriveCount"], &described["RedriveStatus"]), (&json!(0), &json!("REDRIVABLE")));
    for (machine, name) in [(&stop, "stop-nobody"), (&describe, "describe-nobody")] {
        let error = output(machine, name, &format!("{child}-nobody")).await?;
        assert_eq!(error["Error"], "Sfn.ExecutionDoesNotExistException");
    }
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
