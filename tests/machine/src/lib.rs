//! Runs the state machines of statemachine/ and the functions that they call inside a test: in simulated time, on the
//! sandbox, without a process, a socket or a wait.
//!
//! What ministack runs takes a second or two for each execution. Here it takes some milliseconds, and whatever happens
//! at the same time happens in an order that a seed decides: thousands of worlds, faults and interleavings can be
//! tried, and each one again.
//!
//! # Layout
//! - [`simulation`]: simulated time, tasks, chance
//! - `definition`, `expression`, `execution`: the language of the definitions, JSONata, the interpreter
//! - [`steps`]: the functions; `lambda`: how they are invoked
//! - `nested`: executions that run, describe and stop others
//! - [`services`]: their calls, and what goes wrong with them; [`table`]: the record table
//!
//! # What it does not model
//!
//! The permissions of the state machines' own roles (the functions' roles are evaluated, call by call); the SDKs'
//! retries; Lambda's queues and limits; EventBridge but for rules that start a state machine when an execution of
//! another one ends; when a history has too many events, to the event. What is not known of the language is an error.
//!
//! It must not run inside a task of tokio, whose budget for such a task would never be renewed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

mod definition;
mod execution;
mod expression;
mod lambda;
mod nested;
pub mod root;
pub mod services;
pub mod simulation;
pub mod steps;

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::{Arc, MutexGuard},
};

use ami_share_mocked::table::{Refused, Table};
use ami_share_sandbox::World;
use serde_json::{Map, Value, json};

pub use ami_share_mocked::table;
pub use definition::Definition;
pub use execution::{Record, Status};
pub use lambda::Function;
pub use nested::CHILD_DESCRIPTION;

use execution::{Execution, Scope};
use services::{Control, Fault, Services, Stop};
use simulation::{Random, Simulation, Time};
use steps::Step;

/// What a state makes of `arguments`, whose expressions see `variables` and `$states`.
///
/// # Errors
/// What Step Functions calls States.QueryEvaluationError.
pub fn evaluated(arguments: &Value, variables: &Map<String, Value>, states: Value) -> Result<Value, String> {
    expression::Template::parse(arguments)?.evaluate(&expression::Scope { variables, states, epoch_ms: 0 })
}

/// Of everything that runs here.
const REGION: &str = "eu-west-1";
const HUB: &str = "333333333333";

/// The most steps of one simulation: what takes more does not come to an end.
const MAX_STEPS: u64 = 4_000_000;

/// What was deployed, as far as it is needed to run it here.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// By their state's name, such as `ShareKey`.
    pub functions: BTreeMap<String, Function>,
    /// By their name, such as `ShareAmi`.
    pub definitions: BTreeMap<String, String>,
    pub rules: Vec<Rule>,
    pub table_arn: String,
    /// The roles and policies of each account, as [`World::export_iam`] gives them.
    pub accounts: BTreeMap<String, Value>,
}

/// A rule of EventBridge: executions of `of` that end with one of `statuses` start one of `starts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// A state machine's name, such as `ShareAmi`.
    pub of: String,
    pub statuses: Vec<String>,
    pub starts: String,
}

impl Deployment {
    /// Accounts that have their roles, and nothing else.
    ///
    /// # Errors
    /// Where they cannot be made.
    pub fn world(&self, settings: ami_share_sandbox::Settings) -> Result<World, String> {
        let mut world = World::new(settings);
        // Before anything that a simulation does.
        world.set_now_ms(0);
        for (account, iam) in &self.accounts {
            world.import_iam(account, iam)?;
        }
        Ok(world)
    }
}

/// What executions need of each other and of what was deployed.
pub(crate) struct Runner {
    pub(crate) simulation: Simulation,
    pub(crate) services: Services,
    functions: BTreeMap<String, Function>,
    steps: BTreeMap<&'static str, Rc<Step>>,
    definitions: BTreeMap<String, Rc<Definition>>,
    rules: Vec<Rule>,
    executions: RefCell<BTreeMap<String, Rc<Execution>>>,
    published: RefCell<Vec<Value>>,
    /// How the next executions of a state machine end, and at which point.
    planned: RefCell<BTreeMap<String, VecDeque<(u64, Stop)>>>,
}

impl Runner {
    /// By its substitution's name, such as `ShareKeyFunctionArn`.
    fn function(&self, substitution: &str) -> Result<(Rc<Step>, Function), String> {
        let state = substitution.strip_suffix("FunctionArn").unwrap_or(substitution);
        let step = self.steps.get(state).ok_or_else(|| format!("there is no step {state}"))?;
        let function = self.functions.get(state).ok_or_else(|| format!("no function {state} was deployed"))?;
        Ok((Rc::clone(step), function.clone()))
    }

    fn publish(&self, notice: Value) -> Result<Value, Refused> {
        self.published.borrow_mut().push(notice);
        Ok(json!({ "MessageId": "0" }))
    }

    fn execution(&self, arn: &str) -> Option<Rc<Execution>> {
        self.executions.borrow().get(arn).cloned()
    }
}

/// State machines, functions and accounts, and the time that they run in.
pub struct Machine {
    runner: Rc<Runner>,
}

impl Machine {
    /// # Errors
    /// What of a definition is not known here.
    pub fn new(deployment: &Deployment, world: World, seed: u64) -> Result<Self, String> {
        let simulation = Simulation::new(seed);
        let mut definitions = BTreeMap::new();
        for (name, text) in &deployment.definitions {
            let definition = definition::parsed(text).map_err(|error| format!("{name}: {error}"))?;
            definitions.insert(name.clone(), definition);
        }
        let runner = Runner {
            services: Services::new(simulation.clock.clone(), world, &deployment.table_arn),
            simulation,
            functions: deployment.functions.clone(),
            steps: steps::steps().into_iter().map(|step| (step.state, Rc::new(step))).collect(),
            definitions,
            rules: deployment.rules.clone(),
            executions: RefCell::default(),
            published: RefCell::default(),
            planned: RefCell::default(),
        };
        Ok(Self { runner: Rc::new(runner) })
    }

    /// The accounts, now.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.runner.services.world()
    }

    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.runner.services.table()
    }

    /// What was sent to the topic.
    pub fn published(&self) -> Vec<Value> {
        self.runner.published.borrow().clone()
    }

    pub fn now(&self) -> Time {
        self.runner.simulation.clock.now()
    }

    /// The time of day, in milliseconds since 1970, by which functions and state machines go.
    pub fn time_of_day_ms(&self) -> u64 {
        self.runner.simulation.clock.epoch_ms()
    }

    /// How many calls functions and state machines have made.
    pub fn calls(&self) -> u64 {
        self.runner.services.traffic().calls
    }

    /// The numbers of the calls that functions made of an operation of KMS or DynamoDB, such as `PutKeyPolicy`.
    pub fn calls_of(&self, operation: &str) -> Vec<u64> {
        let traffic = self.runner.services.traffic();
        let of = |target: &&String| services::operation(target) == operation;
        traffic.targets.iter().filter(|(_, target)| of(target)).map(|(number, _)| *number).collect()
    }

    /// Strikes calls by their number, counted from the next one.
    pub fn set_faults(&self, faults: impl IntoIterator<Item = (u64, Fault)>) {
        let mut traffic = self.runner.services.traffic();
        let calls = traffic.calls;
        traffic.faults = faults.into_iter().map(|(number, fault)| (calls + number, fault)).collect();
    }

    /// Strikes calls that functions make of an operation of KMS or DynamoDB, by their number, counted from the next one.
    pub fn set_faults_of(&self, operation: &str, faults: impl IntoIterator<Item = (u64, Fault)>) {
        let faults = faults.into_iter().map(|(number, fault)| (number - 1, fault)).collect();
        self.runner.services.traffic().of_operations.insert(operation.to_owned(), faults);
    }

    /// The faults that have struck, and when.
    pub fn struck(&self) -> Vec<(Time, Fault)> {
        self.runner.services.traffic().struck.clone()
    }

    /// Lets somebody do something to the accounts after `delay`, whatever is under way then.
    pub fn meanwhile(&self, delay: Time, act: impl FnOnce(&mut World) + Send + 'static) {
        let services = self.runner.services.clone();
        self.runner.simulation.clock.after(delay, move || act(&mut services.world()));
    }

    /// Starts an execution of that state machine after `delay`; returns its ARN.
    ///
    /// # Errors
    /// Where there is no such state machine, or an execution of that name.
    pub fn start(&self, machine: &str, name: &str, input: Value, delay: Time) -> Result<String, String> {
        start(&self.runner, machine, name, input, delay)
    }

    /// Stops an execution when it enters that state.
    pub fn stop_in(&self, arn: &str, state: &str) {
        *self.execution(arn).stop_in.borrow_mut() = Some((state.to_owned(), Stop::default()));
    }

    /// Stops an execution at its point of that number: each state that it enters is one, and each call that it or a
    /// function of it makes.
    pub fn stop_at(&self, arn: &str, point: u64) {
        self.execution(arn).control.stop_at(point, Stop::default());
    }

    /// Fails an execution at its point of that number, by a limit that its definition cannot see: it runs no Catch.
    pub fn fail_at(&self, arn: &str, point: u64) {
        self.execution(arn).control.stop_at(point, execution::failure());
    }

    /// Fails an execution when it enters that state, as [`Machine::fail_at`] does.
    pub fn fail_in(&self, arn: &str, state: &str) {
        *self.execution(arn).stop_in.borrow_mut() = Some((state.to_owned(), execution::failure()));
    }

    /// Stops an execution that is still to be started, by whomever, at its point of that number: the next one of that
    /// state machine, after those that were planned before.
    pub fn stop_next_at(&self, machine: &str, point: u64) {
        self.plan(machine, point, Stop::default());
    }

    /// Fails it there, as [`Machine::fail_at`] does.
    pub fn fail_next_at(&self, machine: &str, point: u64) {
        self.plan(machine, point, execution::failure());
    }

    fn plan(&self, machine: &str, point: u64, stop: Stop) {
        self.runner.planned.borrow_mut().entry(machine.to_owned()).or_default().push_back((point, stop));
    }

    /// How many such points it has passed.
    pub fn points(&self, arn: &str) -> u64 {
        self.execution(arn).control.passed()
    }

    /// Lets an execution that has failed, was aborted or has timed out go on in the state where it ended, `delay` after
    /// it has ended, or now if that was before ("Restarting state machine executions with redrive", Step Functions
    /// developer guide).
    pub fn redrive(&self, arn: &str, delay: Time) {
        let (runner, execution) = (Rc::clone(&self.runner), self.execution(arn));
        self.runner.simulation.spawn(async move {
            while execution.record.borrow().status == Status::Running {
                runner.services.clock.sleep(100).await;
            }
            runner.services.clock.sleep(delay).await;
            if execution.redrive() {
                run(&runner, execution).await;
            }
        });
    }

    /// Runs until everything has ended.
    ///
    /// # Errors
    /// Where it does not end.
    pub fn run(&self) -> Result<(), String> {
        self.runner.simulation.run(MAX_STEPS)
    }

    /// # Panics
    /// Where there is none: a test that names one has started it.
    pub fn record(&self, arn: &str) -> Record {
        self.execution(arn).record.borrow().clone()
    }

    /// The ARNs of all executions of a state machine.
    pub fn executions(&self, machine: &str) -> Vec<String> {
        let executions = self.runner.executions.borrow();
        executions.values().filter(|execution| execution.machine == machine).map(|one| one.arn.clone()).collect()
    }

    fn execution(&self, arn: &str) -> Rc<Execution> {
        self.runner.execution(arn).unwrap_or_else(|| panic!("there is no execution {arn}"))
    }
}

fn start(runner: &Rc<Runner>, machine: &str, name: &str, input: Value, delay: Time) -> Result<String, String> {
    let definition = runner.definitions.get(machine).ok_or_else(|| format!("there is no state machine {machine}"))?;
    let arn = nested::execution_arn(machine, name);
    if runner.executions.borrow().contains_key(&arn) {
        return Err(format!("there is an execution {arn}"));
    }
    let execution = Rc::new(Execution {
        arn: arn.clone(),
        name: name.to_owned(),
        machine: machine.to_owned(),
        definition: Rc::clone(definition),
        scope: Rc::new(RefCell::new(Scope::start(&definition.states, input.clone()))),
        input,
        started_ms: runner.services.clock.epoch_ms(),
        control: Arc::new(Control::new()),
        stop_in: RefCell::default(),
        record: RefCell::new(Record::new()),
        waiting: RefCell::default(),
    });
    if let Some((point, stop)) = runner.planned.borrow_mut().get_mut(machine).and_then(VecDeque::pop_front) {
        execution.control.stop_at(point, stop);
    }
    runner.executions.borrow_mut().insert(arn.clone(), Rc::clone(&execution));
    let of = Rc::clone(runner);
    runner.simulation.spawn(async move {
        of.services.clock.sleep(delay).await;
        run(&of, execution).await;
    });
    Ok(arn)
}

/// Runs an execution to its end, tells who waits for it, and starts what EventBridge starts then.
async fn run(runner: &Rc<Runner>, execution: Rc<Execution>) {
    execution.run(runner).await;
    for waiting in execution.waiting.take() {
        // Who was told may have ended.
        let _ = waiting.send(());
    }
    let record = execution.record.borrow().clone();
    let status = record.status.name();
    let heard = |rule: &&Rule| rule.of == execution.machine && rule.statuses.iter().any(|heard| heard == status);
    for rule in runner.rules.iter().filter(heard) {
        let drive = record.redrives;
        let detail = json!({
            "executionArn": execution.arn,
            "stateMachineArn": nested::machine_arn(&execution.machine),
            "name": execution.name,
            "status": status,
            "redriveCount": drive,
            "error": record.error,
            "cause": record.cause,
        });
        let event = json!({ "source": "aws.states", "detail-type": "Step Functions Execution Status Change", "detail": detail });
        // At least once ("Amazon EventBridge event delivery").
        let deliveries = 1 + u64::from(runner.services.clock.chance(|random| random.below(4) == 0));
        for delivery in 0..deliveries {
            let delay = runner.services.clock.chance(Random::latency) * (1 + delivery * 100);
            let name = format!("{}-undo-{drive}-{delivery}", execution.name);
            if let Err(error) = start(runner, &rule.starts, &name, event.clone(), delay) {
                // A name is given once only: there is such an execution for each end of this one.
                execution.record.borrow_mut().cause = Some(error);
            }
        }
    }
}
