//! The interpreter: how one execution goes from state to state.

use std::{cell::RefCell, collections::BTreeMap, future::Future, pin::Pin, rc::Rc, sync::Arc};

use futures_util::{
    StreamExt, TryStreamExt,
    future::{Either, select},
    stream,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::{
    Runner,
    definition::{After, Definition, Jitter, Kind, Retrier, Rule, State, States},
    expression::{self, Template},
    lambda, nested,
    services::{Control, Stop},
    simulation,
    table::Refused,
};

/// What states pass on, arguments, and the variables of one Assign may have at most ("Service quotas", Step Functions
/// developer guide).
const MAX_PAYLOAD: usize = 262_144;
/// The events of a history ("Service quotas").
const MAX_EVENTS: u64 = 25_000;
/// What an execution fails with that has more of them.
const TOO_MANY_EVENTS: &str = "The execution reached the maximum number of history events (25000).";

/// Runs an execution of another state machine.
const START_CHILD: &str = "arn:aws:states:::states:startExecution.sync:2";

/// How an execution ends that has come to a limit which its definition cannot see.
pub(crate) fn failure() -> Stop {
    Stop { failed: true, error: Some("States.Runtime".to_owned()), cause: Some(TOO_MANY_EVENTS.to_owned()) }
}

/// An error as states see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) error: String,
    pub(crate) cause: Option<String>,
    /// Nothing in the definition can catch it.
    terminal: bool,
}

pub(crate) fn failed(error: &str, cause: impl Into<String>) -> Failed {
    Failed { error: error.to_owned(), cause: Some(cause.into()), terminal: false }
}

fn query_failed(cause: String) -> Failed {
    failed("States.QueryEvaluationError", cause)
}

impl Failed {
    /// Whether a Retry or a Catch for `errors` is one for it ("Handling errors in Step Functions workflows").
    fn is_of(&self, errors: &[String]) -> bool {
        let all = self.error != "States.DataLimitExceeded" && self.error != "States.Runtime";
        !self.terminal
            && errors.iter().any(|name| match name.as_str() {
                "States.ALL" => all,
                "States.TaskFailed" => all && self.error != "States.Timeout",
                name => name == self.error,
            })
    }

    fn output(&self) -> Value {
        let mut output = json!({ "Error": self.error });
        if let Some(cause) = &self.cause {
            output["Cause"] = json!(cause);
        }
        output
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Running,
    Succeeded,
    Failed,
    Aborted,
    TimedOut,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Aborted => "ABORTED",
            Self::TimedOut => "TIMED_OUT",
        }
    }
}

/// An execution as it stands.
#[derive(Debug, Clone)]
pub struct Record {
    pub status: Status,
    pub output: Option<Value>,
    pub error: Option<String>,
    pub cause: Option<String>,
    /// The states as they were entered; those of a Map's iterations are interleaved.
    pub entered: Vec<String>,
    /// When each of them was, by the time of day.
    pub entered_ms: Vec<u64>,
    pub redrives: u64,
    /// The most bytes that each state had in one piece: what a task was given or answered, what was handed on, or assigned.
    pub largest: BTreeMap<String, usize>,
    /// Of its history.
    pub events: u64,
    /// When it ended, by the time of day.
    pub stopped_ms: Option<u64>,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self {
            status: Status::Running,
            output: None,
            error: None,
            cause: None,
            entered: Vec::new(),
            entered_ms: Vec::new(),
            redrives: 0,
            largest: BTreeMap::new(),
            events: 0,
            stopped_ms: None,
        }
    }

    pub fn entered(&self, state: &str) -> bool {
        self.entered.iter().any(|entered| entered == state)
    }
}

/// Where it is among the states of the machine, or of one iteration of a Map. This is what a redrive goes on from.
#[derive(Debug)]
pub(crate) struct Scope {
    at: String,
    input: Value,
    variables: Map<String, Value>,
    /// Of the Map that it is at.
    iterations: Option<Vec<Rc<RefCell<Iteration>>>>,
}

#[derive(Debug)]
enum Iteration {
    At(Rc<RefCell<Scope>>),
    Done(Value),
}

impl Scope {
    pub(crate) fn start(states: &States, input: Value) -> Self {
        Self { at: states.start_at.clone(), input, variables: Map::new(), iterations: None }
    }
}

pub(crate) struct Execution {
    pub(crate) arn: String,
    pub(crate) name: String,
    /// The state machine's name, such as `ShareAmi`.
    pub(crate) machine: String,
    pub(crate) definition: Rc<Definition>,
    pub(crate) input: Value,
    /// By the time of day.
    pub(crate) started_ms: u64,
    pub(crate) scope: Rc<RefCell<Scope>>,
    pub(crate) control: Arc<Control>,
    pub(crate) stop_in: RefCell<Option<(String, Stop)>>,
    pub(crate) record: RefCell<Record>,
    /// Who is to be told of its end.
    pub(crate) waiting: RefCell<Vec<oneshot::Sender<()>>>,
}

type Running<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failed>> + 'a>>;

/// How a state ends: its output, the variables that it assigns, and the next state.
type Done = (Value, Map<String, Value>, Option<String>);

/// What the context object says of the state that runs.
#[derive(Clone)]
struct Entered {
    state: String,
    at: String,
    retries: u64,
    /// The index and the value of a Map's iteration.
    item: Option<(usize, Value)>,
}

impl Execution {
    /// Whether it may go on where it ended.
    pub(crate) fn redrive(&self) -> bool {
        let mut record = self.record.borrow_mut();
        let redrivable = matches!(record.status, Status::Failed | Status::Aborted | Status::TimedOut);
        if redrivable {
            record.status = Status::Running;
            record.redrives += 1;
            (record.error, record.cause, record.stopped_ms) = (None, None, None);
        }
        redrivable
    }

    /// Runs from where it is to its end.
    pub(crate) async fn run(&self, runner: &Rc<Runner>) {
        let stopped = self.control.stopped();
        let clock = &runner.services.clock;
        let run = self.run_states(runner, &self.definition.states, Rc::clone(&self.scope), None);
        let time_limit = clock.sleep(self.definition.timeout_seconds * 1_000);
        // Whoever is stopped does nothing more: it is looked at first.
        let ended = select(stopped, select(time_limit, run)).await;
        let mut record = self.record.borrow_mut();
        record.stopped_ms = Some(clock.epoch_ms());
        match ended {
            Either::Left((stopped, _)) => {
                let Stop { failed, error, cause } = stopped.unwrap_or_default();
                record.status = if failed { Status::Failed } else { Status::Aborted };
                (record.error, record.cause) = (error, cause);
            }
            Either::Right((Either::Left(_), _)) => record.status = Status::TimedOut,
            Either::Right((Either::Right((Ok(output), _)), _)) => {
                record.status = Status::Succeeded;
                record.output = Some(output);
            }
            Either::Right((Either::Right((Err(failed), _)), _)) => {
                record.status = Status::Failed;
                record.error = Some(failed.error);
                record.cause = failed.cause;
            }
        }
    }

    fn run_states<'a>(
        &'a self,
        runner: &'a Rc<Runner>,
        states: &'a States,
        scope: Rc<RefCell<Scope>>,
        item: Option<(usize, Value)>,
    ) -> Running<'a, Value> {
        Box::pin(async move {
            loop {
                let at = scope.borrow().at.clone();
                let state = states
                    .states
                    .get(&at)
                    .ok_or_else(|| failed("States.Runtime", format!("there is no state {at}")))?;
                let clock = &runner.services.clock;
                self.enter(&at, clock.epoch_ms())?;
                let entered = Entered { state: at, at: clock.timestamp(), retries: 0, item: item.clone() };
                // One that ends the execution takes no time: nobody can stop it there.
                if !matches!(state.kind, Kind::Succeed | Kind::Fail { .. }) {
                    self.stop_here(&entered.state);
                    clock.sleep(1 + clock.latency() / 4).await;
                }
                let (output, assigned, next) = self.run_state(runner, state, &scope, entered.clone()).await?;
                self.check_size(&entered.state, &output)?;
                self.check_size(&entered.state, &assigned)?;
                let mut scope = scope.borrow_mut();
                scope.iterations = None;
                scope.variables.extend(assigned);
                match next {
                    Some(next) => {
                        scope.at = next;
                        scope.input = output;
                    }
                    None => return Ok(output),
                }
            }
        })
    }

    fn enter(&self, state: &str, now_ms: u64) -> Result<(), Failed> {
        {
            let mut record = self.record.borrow_mut();
            record.entered.push(state.to_owned());
            record.entered_ms.push(now_ms);
        }
        self.count_events(2)
    }

    fn stop_here(&self, state: &str) {
        if let Some((_, stop)) = self.stop_in.borrow_mut().take_if(|(at, _)| at == state) {
            self.control.stop(stop);
        }
        self.control.pass();
    }

    /// What a history would have no room for ends an execution without a Catch.
    fn count_events(&self, events: u64) -> Result<(), Failed> {
        let mut record = self.record.borrow_mut();
        record.events += events;
        if record.events < MAX_EVENTS {
            return Ok(());
        }
        Err(Failed { terminal: true, ..failed("States.Runtime", TOO_MANY_EVENTS) })
    }

    fn check_size(&self, state: &str, value: &impl Serialize) -> Result<(), Failed> {
        let size = serde_json::to_string(value).map_or(0, |text| text.len());
        let mut record = self.record.borrow_mut();
        let largest = record.largest.entry(state.to_owned()).or_default();
        *largest = size.max(*largest);
        if size <= MAX_PAYLOAD {
            return Ok(());
        }
        Err(failed("States.DataLimitExceeded", format!("{size} bytes are more than {MAX_PAYLOAD}")))
    }

    async fn run_state(
        &self,
        runner: &Rc<Runner>,
        state: &State,
        scope: &Rc<RefCell<Scope>>,
        mut entered: Entered,
    ) -> Result<Done, Failed> {
        let (input, variables) = {
            let scope = scope.borrow();
            (scope.input.clone(), scope.variables.clone())
        };
        let mut attempts = vec![0_u32; state.retry.len()];
        loop {
            let view = View { execution: self, runner, input: &input, variables: &variables };
            let tried = self.try_state(&view, state, scope, &entered).await;
            let error = match tried {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let retrier = state.retry.iter().position(|retrier| error.is_of(&retrier.errors));
            if let Some(index) = retrier.filter(|index| attempts[*index] < state.retry[*index].max_attempts) {
                let wait = delay(runner, &state.retry[index], attempts[index]);
                attempts[index] += 1;
                entered.retries += 1;
                runner.services.clock.sleep(wait).await;
                continue;
            }
            let Some(Rule { after, .. }) = state.catch.iter().find(|rule| error.is_of(&rule.errors)) else {
                return Err(error);
            };
            let output = error.output();
            let states = view.states(&entered, &[("errorOutput", &output)]);
            return view.after(after, states, output);
        }
    }

    async fn try_state(
        &self,
        view: &View<'_>,
        state: &State,
        scope: &Rc<RefCell<Scope>>,
        entered: &Entered,
    ) -> Result<Done, Failed> {
        let runner = view.runner;
        let before = view.states(entered, &[]);
        let text = |template: &Template| match view.evaluate(template, &before)? {
            Value::String(text) => Ok(text),
            other => Err(query_failed(format!("{other} is not a string"))),
        };
        match &state.kind {
            Kind::Pass | Kind::Succeed => view.after(&state.after, before, view.input.clone()),
            Kind::Fail { error, cause } => {
                Err(Failed { error: text(error)?, cause: Some(text(cause)?), terminal: true })
            }
            Kind::Wait { seconds } => {
                let seconds = view.evaluate(seconds, &before)?;
                let seconds =
                    seconds.as_u64().ok_or_else(|| query_failed(format!("{seconds} is not a time to wait")))?;
                runner.services.clock.sleep(seconds * 1_000).await;
                view.after(&state.after, before, view.input.clone())
            }
            Kind::Choice { rules } => {
                for (condition, after) in rules {
                    match view.evaluate(condition, &before)? {
                        Value::Bool(true) => return view.after(after, before, view.input.clone()),
                        Value::Bool(false) => {}
                        other => return Err(query_failed(format!("{other} is not a condition"))),
                    }
                }
                view.after(&state.after, before, view.input.clone())
            }
            Kind::Task { resource, arguments, timeout_seconds } => {
                self.count_events(if resource == START_CHILD { 4 } else { 3 })?;
                let arguments = view.evaluate(arguments, &before)?;
                self.check_size(&entered.state, &arguments)?;
                let task = self.task(runner, resource, arguments);
                let time_limit = runner.services.clock.sleep(timeout_seconds * 1_000);
                let result = match select(task, time_limit).await {
                    Either::Left((result, _)) => result?,
                    Either::Right(_) => return Err(Failed { cause: None, ..failed("States.Timeout", "") }),
                };
                self.check_size(&entered.state, &result)?;
                view.after(&state.after, view.states(entered, &[("result", &result)]), result)
            }
            Kind::Map { items, max_concurrency, inside } => {
                let Value::Array(items) = view.evaluate(items, &before)? else {
                    return Err(query_failed("the items are not an array".to_owned()));
                };
                let result = Value::Array(self.map(view, &items, *max_concurrency, inside, scope).await?);
                self.check_size(&entered.state, &result)?;
                view.after(&state.after, view.states(entered, &[("result", &result)]), result)
            }
        }
    }

    /// Where an iteration fails, the others are cancelled; their functions run on. A redrive finds those that are done.
    async fn map(
        &self,
        view: &View<'_>,
        items: &[Value],
        max_concurrency: usize,
        inside: &States,
        scope: &Rc<RefCell<Scope>>,
    ) -> Result<Vec<Value>, Failed> {
        let iterations = scope
            .borrow_mut()
            .iterations
            .get_or_insert_with(|| {
                let start =
                    |item: &Value| Scope { variables: view.variables.clone(), ..Scope::start(inside, item.clone()) };
                items
                    .iter()
                    .map(|item| Rc::new(RefCell::new(Iteration::At(Rc::new(RefCell::new(start(item)))))))
                    .collect()
            })
            .clone();
        let runs = iterations.iter().zip(items).enumerate().map(|(index, (iteration, item))| async move {
            let scope = match &*iteration.borrow() {
                Iteration::Done(_) => return Ok::<_, Failed>(()),
                Iteration::At(scope) => Rc::clone(scope),
            };
            self.count_events(2)?;
            let output = self.run_states(view.runner, inside, scope, Some((index, item.clone()))).await?;
            *iteration.borrow_mut() = Iteration::Done(output);
            Ok(())
        });
        stream::iter(runs).buffer_unordered(max_concurrency.max(1)).try_collect::<()>().await?;
        let output = |iteration: &Rc<RefCell<Iteration>>| match &*iteration.borrow() {
            Iteration::Done(output) => output.clone(),
            Iteration::At(_) => Value::Null,
        };
        Ok(iterations.iter().map(output).collect())
    }

    fn task<'a>(&'a self, runner: &'a Rc<Runner>, resource: &'a str, arguments: Value) -> Running<'a, Value> {
        Box::pin(async move {
            let services = &runner.services;
            let call = |service: &'static str, act: Box<dyn FnOnce() -> Result<Value, Refused> + 'a>| async move {
                let called = services.call(&self.control, service, act).await;
                called.map_err(|(error, cause)| failed(&error, cause))
            };
            match resource {
                "arn:aws:states:::lambda:invoke" => {
                    let (function, payload) =
                        invocation(&arguments).map_err(|cause| failed("States.Runtime", cause))?;
                    let function = runner.function(&function).map_err(|cause| failed("States.Runtime", cause))?;
                    let answer = lambda::invoke(&runner.simulation, services, &self.control, function, payload);
                    let answer = answer.await.map_err(|_| failed("Lambda.Unknown", "the function has vanished"))?;
                    answer.map_err(|(error, cause)| failed(&error, cause))
                }
                "arn:aws:states:::dynamodb:putItem" => {
                    call("DynamoDB", Box::new(move || services.table().put_item(&arguments))).await
                }
                "arn:aws:states:::dynamodb:getItem" => {
                    call("DynamoDB", Box::new(move || services.table().get_item(&arguments))).await
                }
                "arn:aws:states:::dynamodb:updateItem" => {
                    call("DynamoDB", Box::new(move || services.table().update_item(&arguments))).await
                }
                "arn:aws:states:::dynamodb:deleteItem" => {
                    call("DynamoDB", Box::new(move || services.table().delete_item(&arguments))).await
                }
                "arn:aws:states:::sns:publish" => call("SNS", Box::new(move || runner.publish(arguments))).await,
                START_CHILD => nested::run_child(self, runner, arguments).await,
                "arn:aws:states:::aws-sdk:sfn:describeExecution" => {
                    call("Sfn", Box::new(move || nested::describe_execution(runner, &arguments))).await
                }
                "arn:aws:states:::aws-sdk:sfn:stopExecution" => {
                    call("Sfn", Box::new(move || nested::stop_execution(runner, &arguments))).await
                }
                other => Err(failed("States.Runtime", format!("the resource {other} is not known here"))),
            }
        })
    }
}

/// The name of the function, and what it is given.
fn invocation(arguments: &Value) -> Result<(String, Value), String> {
    let fields = arguments.as_object().ok_or("the arguments are not an object")?;
    if let Some(field) = fields.keys().find(|field| !["FunctionName", "Payload"].contains(&field.as_str())) {
        return Err(format!("{field} of an invocation is not known here"));
    }
    let function = fields.get("FunctionName").and_then(Value::as_str).ok_or("FunctionName is missing")?;
    Ok((function.to_owned(), fields.get("Payload").cloned().ok_or("Payload is missing")?))
}

fn delay(runner: &Runner, retrier: &Retrier, attempts: u32) -> u64 {
    let grown = retrier.interval_seconds * retrier.backoff_rate.powf(f64::from(attempts));
    let seconds = retrier.max_delay_seconds.map_or(grown, |longest| grown.min(longest));
    let share = match retrier.jitter_strategy {
        Jitter::Full => runner.services.clock.chance(crate::simulation::Random::fraction),
        Jitter::None => 1.0,
    };
    (seconds * share * 1_000.0) as u64
}

/// What the expressions of a state see.
struct View<'a> {
    execution: &'a Execution,
    runner: &'a Rc<Runner>,
    input: &'a Value,
    variables: &'a Map<String, Value>,
}

impl View<'_> {
    /// `$states`
    fn states(&self, entered: &Entered, more: &[(&str, &Value)]) -> Value {
        let execution = self.execution;
        let mut states = json!({
            "input": self.input,
            "context": {
                "Execution": {
                    "Id": execution.arn,
                    "Name": execution.name,
                    "Input": execution.input,
                    "StartTime": simulation::timestamp(execution.started_ms),
                    "RedriveCount": execution.record.borrow().redrives,
                },
                "State": { "Name": entered.state, "EnteredTime": entered.at, "RetryCount": entered.retries },
                "StateMachine": { "Name": execution.machine },
            },
        });
        if let Some((index, value)) = &entered.item {
            states["context"]["Map"] = json!({ "Item": { "Index": index, "Value": value } });
        }
        for (name, value) in more {
            states[*name] = (*value).clone();
        }
        states
    }

    fn evaluate(&self, template: &Template, states: &Value) -> Result<Value, Failed> {
        let epoch_ms = self.runner.services.clock.epoch_ms();
        let scope = expression::Scope { variables: self.variables, states: states.clone(), epoch_ms };
        template.evaluate(&scope).map_err(query_failed)
    }

    /// Every expression of an Assign, and the Output, sees the variables as they were before.
    fn after(&self, after: &After, states: Value, output: Value) -> Result<Done, Failed> {
        let mut assigned = Map::new();
        for (name, template) in &after.assign {
            assigned.insert(name.clone(), self.evaluate(template, &states)?);
        }
        let output = match &after.output {
            Some(template) => self.evaluate(template, &states)?,
            None => output,
        };
        Ok((output, assigned, after.next.clone()))
    }
}
