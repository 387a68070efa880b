//! What executions ask of Step Functions itself: to run, describe and stop others.

use std::{rc::Rc, sync::Arc};

use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::{
    HUB, REGION, Runner,
    execution::{Execution, Failed, Status, failed},
    services::{Control, Stop},
    simulation::{self, Clock, Random},
    start,
    table::Refused,
};

/// The characters that the cause of an error may have ("TaskFailedEventDetails", Step Functions API reference).
const MAX_CAUSE: usize = 32_768;

/// The fields of what is said of a child that succeeded, here and on the local engine.
pub const CHILD_DESCRIPTION: [&str; 13] = [
    "ExecutionArn",
    "Input",
    "InputDetails",
    "Name",
    "Output",
    "OutputDetails",
    "RedriveCount",
    "RedriveStatus",
    "RedriveStatusReason",
    "StartDate",
    "StateMachineArn",
    "Status",
    "StopDate",
];

/// `startExecution.sync:2`: starts an execution and waits for its end.
///
/// What succeeded is answered with the child's description, its input and output as JSON. Whatever else it ends as
/// fails the task with States.TaskFailed, and the description as the cause, whose input is text (as recorded on AWS;
/// "Integrate with Step Functions", Step Functions developer guide, says less).
pub(crate) async fn run_child(parent: &Execution, runner: &Rc<Runner>, arguments: Value) -> Result<Value, Failed> {
    let Child { machine, name, input } = Child::read(arguments).map_err(|cause| failed("States.Runtime", cause))?;
    let name = name.unwrap_or_else(|| runner.services.clock.chance(generated_name));
    let act = || start_child(runner, &machine, &name, input);
    let started = runner.services.call(&parent.control, "StepFunctions", act).await;
    let started = started.map_err(|(error, cause)| failed(&error, cause))?;
    let child = runner.execution(started["ExecutionArn"].as_str().unwrap_or_default());
    let child = child.ok_or_else(|| failed("States.Runtime", "the child has vanished"))?;
    let managed = Managed { clock: &runner.services.clock, child: &child, parent: &parent.arn };
    if let Some(ended) = managed.child.ended() {
        // Whoever could have told has told everybody.
        let _ = ended.await;
    }
    drop(managed);
    // By an event.
    runner.services.clock.sleep(runner.services.clock.latency()).await;
    let mut description = describe(&child, |epoch_ms| json!(epoch_ms));
    let record = child.record.borrow();
    if record.status != Status::Succeeded {
        let cause = Value::Object(description).to_string();
        return Err(failed("States.TaskFailed", cause.chars().take(MAX_CAUSE).collect::<String>()));
    }
    description["Input"] = child.input.clone();
    description["Output"] = json!(record.output);
    Ok(Value::Object(description))
}

struct Child {
    machine: String,
    name: Option<String>,
    input: Value,
}

impl Child {
    fn read(arguments: Value) -> Result<Self, String> {
        let Value::Object(mut fields) = arguments else { return Err("the arguments are not an object".to_owned()) };
        let text = |value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
            Some(other) => Err(format!("{other} is neither the ARN of a state machine nor a name")),
        };
        let machine = text(fields.remove("StateMachineArn"))?.ok_or("StateMachineArn is missing")?;
        let name = text(fields.remove("Name"))?;
        let input = fields.remove("Input").unwrap_or_else(|| json!({}));
        match fields.keys().next() {
            Some(field) => Err(format!("{field} of a startExecution is not known here")),
            None => Ok(Self { machine, name, input }),
        }
    }
}

/// Step Functions names an execution by a UUID where nobody does.
fn generated_name(random: &mut Random) -> String {
    format!("{:016x}{:016x}", random.below(u64::MAX), random.below(u64::MAX))
}

fn start_child(runner: &Rc<Runner>, machine: &str, name: &str, input: Value) -> Result<Value, Refused> {
    let machine = machine.strip_suffix("StateMachineArn").unwrap_or(machine);
    if !runner.definitions.contains_key(machine) {
        let message = format!("there is no state machine {machine}");
        return Err(Refused { name: "StateMachineDoesNotExistException", message });
    }
    let arn = execution_arn(machine, name);
    // The same name and input while it runs is the same execution (StartExecution, API reference).
    if let Some(there) = runner.execution(&arn) {
        if there.record.borrow().status != Status::Running || there.input != input {
            let message = format!("there is an execution {arn}");
            return Err(Refused { name: "ExecutionAlreadyExistsException", message });
        }
    } else if let Err(message) = start(runner, machine, name, input, 0) {
        return Err(Refused { name: "ValidationException", message });
    }
    Ok(json!({ "ExecutionArn": arn }))
}

pub(crate) fn execution_arn(machine: &str, name: &str) -> String {
    format!("arn:aws:states:{REGION}:{HUB}:execution:{machine}:{name}")
}

pub(crate) fn machine_arn(machine: &str) -> String {
    format!("arn:aws:states:{REGION}:{HUB}:stateMachine:{machine}")
}

/// An execution that a task waits for. Where nobody waits any more (the parent is stopped, fails or times out, or the
/// task does), Step Functions tries to stop it, "best effort" ("Run a job", Step Functions developer guide): here it
/// comes about or not.
struct Managed<'a> {
    clock: &'a Clock,
    child: &'a Execution,
    parent: &'a str,
}

impl Drop for Managed<'_> {
    fn drop(&mut self) {
        if self.child.record.borrow().status != Status::Running || self.clock.chance(|random| random.below(2)) == 0 {
            return;
        }
        let control: Arc<Control> = Arc::clone(&self.child.control);
        let cause = format!(
            "The Task state in AWS Step Functions execution [{}] which was managing this resource was aborted",
            self.parent
        );
        let stop = Stop { cause: Some(cause), ..Stop::default() };
        self.clock.after(self.clock.latency(), move || control.stop(stop));
    }
}

impl Execution {
    /// Is told when it ends; nothing where it has.
    fn ended(&self) -> Option<oneshot::Receiver<()>> {
        if self.record.borrow().status != Status::Running {
            return None;
        }
        let (tell, told) = oneshot::channel();
        self.waiting.borrow_mut().push(tell);
        Some(told)
    }
}

fn found(runner: &Runner, arguments: &Value) -> Result<Rc<Execution>, Refused> {
    let arn = arguments["ExecutionArn"].as_str().unwrap_or_default();
    runner.execution(arn).ok_or_else(|| Refused {
        name: "ExecutionDoesNotExistException",
        message: format!("there is no execution {arn}"),
    })
}

fn known(arguments: &Value, fields: &[&str]) -> Result<(), Refused> {
    let given = arguments.as_object().into_iter().flat_map(Map::keys);
    match given.into_iter().find(|field| !fields.contains(&field.as_str())) {
        None => Ok(()),
        Some(field) => Err(Refused { name: "ValidationException", message: format!("{field} is not known here") }),
    }
}

pub(crate) fn describe_execution(runner: &Runner, arguments: &Value) -> Result<Value, Refused> {
    known(arguments, &["ExecutionArn", "IncludedData"])?;
    let mut description = describe(&*found(runner, arguments)?, |epoch_ms| json!(simulation::timestamp(epoch_ms)));
    if arguments["IncludedData"] == "METADATA_ONLY" {
        for data in ["Input", "Output", "Error", "Cause"] {
            description.shift_remove(data);
        }
        for details in ["InputDetails", "OutputDetails"].into_iter() {
            if let Some(details) = description.get_mut(details) {
                *details = json!({ "Included": false });
            }
        }
    }
    Ok(Value::Object(description))
}

/// As DescribeExecution describes it, in the order of the fields' names.
fn describe(execution: &Execution, date: impl Fn(u64) -> Value) -> Map<String, Value> {
    let record = execution.record.borrow();
    let (ended, succeeded) = (record.status != Status::Running, record.status == Status::Succeeded);
    let status = record.status.name();
    let redrivable = ended && !succeeded;
    let fields = [
        ("Cause", record.cause.as_ref().map(|cause| json!(cause))),
        ("Error", record.error.as_ref().map(|error| json!(error))),
        ("ExecutionArn", Some(json!(execution.arn))),
        ("Input", Some(json!(execution.input.to_string()))),
        ("InputDetails", Some(json!({ "Included": true }))),
        ("Name", Some(json!(execution.name))),
        ("Output", record.output.as_ref().map(|output| json!(output.to_string()))),
        ("OutputDetails", succeeded.then(|| json!({ "Included": true }))),
        ("RedriveCount", Some(json!(record.redrives))),
        ("RedriveStatus", Some(json!(if redrivable { "REDRIVABLE" } else { "NOT_REDRIVABLE" }))),
        ("RedriveStatusReason", (!redrivable).then(|| json!(format!("Execution is {status} and cannot be redriven")))),
        ("StartDate", Some(date(execution.started_ms))),
        ("StateMachineArn", Some(json!(machine_arn(&execution.machine)))),
        ("Status", Some(json!(status))),
        ("StopDate", record.stopped_ms.map(date)),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Of one that has ended otherwise than by being stopped, AWS's documents do not say whether it is an error: here it
/// is at times.
pub(crate) fn stop_execution(runner: &Runner, arguments: &Value) -> Result<Value, Refused> {
    known(arguments, &["ExecutionArn", "Error", "Cause"])?;
    let execution = found(runner, arguments)?;
    let clock = &runner.services.clock;
    let text = |field: &str| arguments[field].as_str().map(str::to_owned);
    let record = execution.record.borrow();
    let stopped_ms = match record.status {
        Status::Running => {
            execution.control.stop(Stop { failed: false, error: text("Error"), cause: text("Cause") });
            clock.epoch_ms()
        }
        Status::Succeeded | Status::Failed | Status::TimedOut if clock.chance(|random| random.below(2)) == 0 => {
            let message = format!("the execution {} is not running", execution.arn);
            return Err(Refused { name: "ValidationException", message });
        }
        _ => record.stopped_ms.unwrap_or_default(),
    };
    Ok(json!({ "StopDate": simulation::timestamp(stopped_ms) }))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use ami_share_sandbox::{Settings, World};

    use super::*;
    use crate::{Deployment, Machine, Record, Rule};

    fn task(resource: &str, arguments: Value) -> Value {
        json!({
            "Type": "Task",
            "Resource": format!("arn:aws:states:::{resource}"),
            "Arguments": arguments,
            "TimeoutSeconds": 500,
            "Catch": [{
                "ErrorEquals": ["States.ALL"],
                "Assign": { "error": "{% $states.errorOutput %}" },
                "Next": "Caught",
            }],
            "Assign": { "error": null },
            "Output": "{% $states.result %}",
            "Next": "Done",
        })
    }

    fn run_child() -> Value {
        let arguments = json!({ "StateMachineArn": "${ChildStateMachineArn}", "Input": "{% $states.input %}" });
        task("states:startExecution.sync:2", arguments)
    }

    fn definition(first: Value) -> Value {
        json!({ "QueryLanguage": "JSONata", "StartAt": "First", "TimeoutSeconds": 900, "States": {
            "First": first,
            "Caught": { "Type": "Pass", "Output": "{% $error %}", "Next": "Done" },
            "Fail": { "Type": "Fail", "Error": "ChildError", "Cause": "it was to fail" },
            "Done": { "Type": "Succeed" },
        }})
    }

    fn wait() -> Value {
        definition(json!({ "Type": "Wait", "Seconds": 60, "Next": "Done" }))
    }

    fn machine(definitions: &[(&str, Value)], seed: u64) -> Machine {
        let definitions = definitions.iter().map(|(name, definition)| ((*name).to_owned(), definition.to_string()));
        let rule = |of: &str, statuses: &[&str], starts: &str| Rule {
            of: of.to_owned(),
            statuses: statuses.iter().map(|status| (*status).to_owned()).collect(),
            starts: starts.to_owned(),
        };
        let deployment = Deployment {
            functions: BTreeMap::new(),
            definitions: definitions.collect(),
            rules: vec![rule("Parent", &["ABORTED", "FAILED"], "Hears")],
            table_arn: format!("arn:aws:dynamodb:{REGION}:{HUB}:table/records"),
            accounts: BTreeMap::new(),
        };
        Machine::new(&deployment, World::new(Settings::default()), seed).unwrap()
    }

    fn hears() -> (&'static str, Value) {
        ("Hears", definition(json!({ "Type": "Pass", "Next": "Done" })))
    }

    fn run(machine: &Machine, name: &str, input: Value) -> Record {
        let arn = machine.start(name, "it", input, 0).unwrap();
        machine.run().unwrap();
        machine.record(&arn)
    }

    #[test]
    fn a_child_that_succeeds_is_answered_with_its_description() {
        let child =
            definition(json!({ "Type": "Pass", "Output": { "doubled": "{% $states.input.n * 2 %}" }, "Next": "Done" }));
        let machine = machine(&[("Parent", definition(run_child())), ("Child", child)], 1);
        let record = run(&machine, "Parent", json!({ "n": 4 }));
        assert_eq!(record.status, Status::Succeeded, "{:?}", record.cause);
        let output = record.output.unwrap();
        let names: Vec<&String> = output.as_object().unwrap().keys().collect();
        assert_eq!(names, CHILD_DESCRIPTION);
        assert_eq!(output["ExecutionArn"], machine.executions("Child")[0].as_str());
        assert_eq!(output["StateMachineArn"], "arn:aws:states:eu-west-1:333333333333:stateMachine:Child");
        assert_eq!((&output["Input"], &output["Output"]), (&json!({ "n": 4 }), &json!({ "doubled": 8 })));
        assert!(output["StartDate"].as_u64() < output["StopDate"].as_u64(), "{output}");
    }

    #[test]
    fn a_child_that_does_not_succeed_fails_the_task_and_its_description_is_the_cause() {
        let fails = definition(json!({ "Type": "Pass", "Next": "Fail" }));
        let times_out = json!({ "TimeoutSeconds": 30 });
        let mut slow = wait();
        slow.as_object_mut().unwrap().extend(times_out.as_object().unwrap().clone());
        for (child, status, error) in [(fails, "FAILED", json!("ChildError")), (slow, "TIMED_OUT", json!(null))] {
            let machine = machine(&[("Parent", definition(run_child())), ("Child", child), hears()], 1);
            let caught = run(&machine, "Parent", json!({ "n": 4 })).output.unwrap();
            assert_eq!(caught["Error"], "States.TaskFailed");
            let cause: Value = serde_json::from_str(caught["Cause"].as_str().unwrap()).unwrap();
            assert_eq!(
                (&cause["Status"], &cause["Error"], &cause["Input"]),
                (&json!(status), &error, &json!("{\"n\":4}"))
            );
            assert_eq!((cause.get("Output"), &cause["RedriveStatus"]), (None, &json!("REDRIVABLE")));
        }
    }

    #[test]
    fn a_cause_has_room_for_so_much() {
        let child = definition(json!({ "Type": "Pass", "Next": "Fail" }));
        let machine = machine(&[("Parent", definition(run_child())), ("Child", child), hears()], 1);
        let caught = run(&machine, "Parent", json!("x".repeat(100_000))).output.unwrap();
        assert_eq!(caught["Cause"].as_str().unwrap().chars().count(), MAX_CAUSE);
    }

    #[test]
    fn input_and_output_together_have_room_in_a_result_or_the_execution_fails() {
        let child = || definition(json!({ "Type": "Pass", "Next": "Done" }));
        for (size, status) in [(130_000, Status::Succeeded), (132_000, Status::Failed), (262_200, Status::Failed)] {
            let machine = machine(&[("Parent", definition(run_child())), ("Child", child()), hears()], 1);
            let record = run(&machine, "Parent", json!("x".repeat(size)));
            assert_eq!(record.status, status, "{size}");
            let expected = (status == Status::Failed).then_some("States.DataLimitExceeded");
            assert_eq!(record.error.as_deref(), expected, "{size}");
            assert!(!record.entered("Caught"), "States.ALL does not catch it");
            assert_eq!(machine.executions("Child").len(), usize::from(size < 262_000), "{size}");
        }
    }

    #[test]
    fn the_variables_of_one_assign_have_room_together_or_the_execution_fails() {
        for (size, status) in [(130_000, Status::Succeeded), (132_000, Status::Failed)] {
            let assigns = json!({ "a": "x".repeat(size), "b": "x".repeat(size) });
            let assigns = definition(json!({ "Type": "Pass", "Assign": assigns, "Next": "Done" }));
            let record = run(&machine(&[("Child", assigns)], 1), "Child", json!({}));
            assert_eq!(record.status, status, "{size}: {:?}", record.error);
        }
    }

    #[test]
    fn a_childs_events_are_its_parents_too() {
        let mut parent = definition(run_child());
        parent["States"]["First"]["Next"] = json!("First");
        parent["States"]["First"]["Output"] = json!({});
        parent["TimeoutSeconds"] = json!(900_000);
        let child = definition(json!({ "Type": "Pass", "Next": "Done" }));
        let machine = machine(&[("Parent", parent), ("Child", child), hears()], 1);
        let record = run(&machine, "Parent", json!({}));
        assert_eq!(record.error.as_deref(), Some("States.Runtime"));
        // Entered, exited, and four of the task.
        assert_eq!(machine.executions("Child").len(), 24_999 / 6);
    }

    /// What became of the children of a parent that ended while it waited.
    fn orphans(end: impl Fn(&Machine, &str)) -> BTreeSet<&'static str> {
        let mut ended = BTreeSet::new();
        for seed in 0..30 {
            let mut parent = definition(run_child());
            parent["TimeoutSeconds"] = json!(50);
            let machine = machine(&[("Parent", parent), ("Child", wait()), hears()], seed);
            let arn = machine.start("Parent", "it", json!({}), 0).unwrap();
            end(&machine, &arn);
            machine.run().unwrap();
            for child in machine.executions("Child") {
                let record = machine.record(&child);
                let cause = record.cause.unwrap_or_default();
                assert_eq!(record.status == Status::Aborted, cause.contains(&format!("[{arn}]")), "{cause}");
                ended.insert(record.status.name());
            }
        }
        ended
    }

    #[test]
    fn a_child_is_stopped_with_its_parent_or_outlives_it() {
        let both = BTreeSet::from(["ABORTED", "SUCCEEDED"]);
        assert_eq!(orphans(|_, _| {}), both, "of one that timed out");
        assert_eq!(orphans(|machine, arn| stop_after(machine, arn, 20_000)), both, "of one that was stopped");
        let task_times_out = |seed| {
            let mut parent = definition(run_child());
            parent["States"]["First"]["TimeoutSeconds"] = json!(10);
            let machine = machine(&[("Parent", parent), ("Child", wait())], seed);
            let caught = run(&machine, "Parent", json!({})).output.unwrap();
            assert_eq!(caught, json!({ "Error": "States.Timeout" }));
            machine.record(&machine.executions("Child")[0]).status.name()
        };
        assert_eq!((0..30).map(task_times_out).collect::<BTreeSet<_>>(), both);
    }

    fn stop_after(machine: &Machine, arn: &str, delay: u64) {
        let control = Arc::clone(&machine.runner.execution(arn).unwrap().control);
        machine.runner.services.clock.after(delay, move || control.stop(Stop::default()));
    }

    #[test]
    fn an_execution_can_describe_another_one_and_stop_it() {
        let arguments = |more: Value| {
            let mut arguments = json!({ "ExecutionArn": "{% $states.input %}" });
            arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            arguments
        };
        let stops = task("aws-sdk:sfn:stopExecution", arguments(json!({ "Error": "Replaced", "Cause": "by another" })));
        let describes = task("aws-sdk:sfn:describeExecution", arguments(json!({ "IncludedData": "METADATA_ONLY" })));
        let definitions = [("Stops", definition(stops)), ("Describes", definition(describes)), ("Child", wait())];
        let machine = machine(&definitions, 1);
        let child = machine.start("Child", "child", json!({}), 0).unwrap();
        let stops = |name: &str, arn: &str, delay| machine.start("Stops", name, json!(arn), delay).unwrap();
        let (stop, again) = (stops("stop", &child, 20_000), stops("again", &child, 40_000));
        let nobody = stops("nobody", "arn:aws:states:eu-west-1:333333333333:execution:Child:nobody", 0);
        let describe = machine.start("Describes", "describe", json!(child), 30_000).unwrap();
        machine.run().unwrap();
        let stopped = machine.record(&child);
        assert_eq!((stopped.status, stopped.error.as_deref()), (Status::Aborted, Some("Replaced")));
        assert!(!stopped.entered("Done"));
        let output = |arn: &str| machine.record(arn).output.unwrap();
        assert!(output(&stop)["StopDate"].is_string());
        assert!(output(&again)["StopDate"].is_string(), "it is stopped already");
        assert_eq!(output(&nobody)["Error"], "Sfn.ExecutionDoesNotExistException");
        let described = output(&describe);
        assert_eq!((&described["Status"], described.get("Input")), (&json!("ABORTED"), None), "{described}");
        assert!(described["StopDate"].as_str().unwrap() > described["StartDate"].as_str().unwrap());
    }

    #[test]
    fn a_name_is_given_once() {
        let mut parent = definition(run_child());
        parent["States"]["First"]["Arguments"]["Name"] = json!("named");
        let machine = machine(&[("Parent", parent), ("Child", wait())], 1);
        let start = |name: &str, delay| machine.start("Parent", name, json!({}), delay).unwrap();
        let (first, beside, later) = (start("first", 0), start("beside", 10_000), start("later", 100_000));
        machine.run().unwrap();
        let output = |arn: &str| machine.record(arn).output.unwrap();
        assert_eq!(output(&first)["ExecutionArn"], output(&beside)["ExecutionArn"]);
        assert_eq!(output(&later)["Error"], "StepFunctions.ExecutionAlreadyExistsException");
    }

    #[test]
    fn an_execution_that_fails_without_a_catch_is_heard_of() {
        let deliveries = |seed| {
            let machine = machine(&[("Parent", definition(run_child())), ("Child", wait()), hears()], seed);
            let arn = machine.start("Parent", "it", json!({}), 0).unwrap();
            machine.fail_at(&arn, 1);
            machine.run().unwrap();
            let record = machine.record(&arn);
            assert_eq!((record.status, record.error.as_deref()), (Status::Failed, Some("States.Runtime")));
            assert!(!record.entered("Caught"));
            let heard = machine.executions("Hears");
            let event = machine.record(&heard[0]).output.unwrap();
            assert_eq!((&event["detail"]["executionArn"], &event["detail"]["status"]), (&json!(arn), &json!("FAILED")));
            heard.len()
        };
        assert_eq!((0..20).map(deliveries).collect::<BTreeSet<_>>(), BTreeSet::from([1, 2]));
        let machine = machine(&[("Parent", definition(run_child())), ("Child", wait()), hears()], 1);
        assert_eq!(run(&machine, "Parent", json!({})).status, Status::Succeeded);
        assert!(machine.executions("Hears").is_empty(), "the rule says nothing of SUCCEEDED");
    }

    #[test]
    fn a_child_that_is_still_to_be_started_can_be_made_to_end() {
        let machine = machine(&[("Parent", definition(run_child())), ("Child", wait()), hears()], 1);
        machine.fail_next_at("Child", 1);
        machine.stop_next_at("Child", 1);
        let ends = |name: &str| {
            let arn = machine.start("Parent", name, json!({}), 0).unwrap();
            machine.run().unwrap();
            machine.record(&arn).output.unwrap()["Cause"].as_str().map(|cause| {
                let cause: Value = serde_json::from_str(cause).unwrap();
                cause["Status"].as_str().unwrap().to_owned()
            })
        };
        let ended = ["first", "second", "third"].map(ends);
        assert_eq!(ended, [Some("FAILED".to_owned()), Some("ABORTED".to_owned()), None]);
    }
}
