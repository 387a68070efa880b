//! Stopping executions of share-ami where a test wants it, and following the undo-share that
//! Step Functions' event then starts.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use aws_sdk_sfn::{Client, types::HistoryEventType};
use serde_json::{Map, Value, json};
use tokio::sync::Mutex;

use crate::{
    HUB, Result, clients, deploy,
    execution::{self, Ended},
    local::Local,
};

const POLL_INTERVAL: Duration = Duration::from_millis(20);
const TIMEOUT: Duration = Duration::from_secs(60);

/// The name of the state that [`hold_after`] adds.
const HOLD: &str = "Hold";

/// The deployed state machines, in the hands of a test.
#[derive(Debug)]
pub struct Stopper {
    client: Client,
    engine: String,
    share_ami: String,
    undo_share: String,
    take_back: String,
    revoke_share: String,
    table: String,
    /// share-ami's, as it was deployed.
    definition: Value,
    /// Held from when share-ami is given a definition until an execution runs with it.
    starting: Mutex<()>,
    /// The execution of undo-share by the execution of share-ami that it was started for.
    undos: Mutex<BTreeMap<String, Vec<String>>>,
}

impl Stopper {
    pub async fn new(local: &Local) -> Result<Self> {
        let engine = local.engine.endpoint();
        let client = Client::new(&clients::root_of(HUB, &engine));
        let resource = |id: &str| local.hub.stack.resources.get(id).cloned().ok_or(format!("the stack has no {id}"));
        let deployed = client.describe_state_machine().state_machine_arn(&local.hub.state_machine).send().await?;
        Ok(Self {
            client,
            engine,
            share_ami: local.hub.state_machine.clone(),
            undo_share: resource("UndoShareStateMachine")?,
            take_back: resource("TakeBackStateMachine")?,
            revoke_share: local.hub.revoke_share.clone(),
            table: resource("RecordTable")?,
            definition: serde_json::from_str(&deployed.definition)?,
            starting: Mutex::default(),
            undos: Mutex::default(),
        })
    }

    /// share-ami's definition as it was deployed.
    pub fn definition(&self) -> Value {
        self.definition.clone()
    }

    /// take-back's definition as it was deployed.
    pub async fn take_back_definition(&self) -> Result<Value> {
        let deployed = self.client.describe_state_machine().state_machine_arn(&self.take_back).send().await?;
        Ok(serde_json::from_str(&deployed.definition)?)
    }

    /// Makes a state machine with that definition, and has `share_ami` start it where it starts take-back; undo-share still
    /// starts take-back itself. Returns the ARN of what was made.
    pub async fn replace_take_back(&self, share_ami: &mut Value, name: &str, definition: &Value) -> Result<String> {
        let deployed = self.client.describe_state_machine().state_machine_arn(&self.take_back).send().await?;
        let create = self.client.create_state_machine().name(name).definition(definition.to_string());
        let created = create.role_arn(deployed.role_arn).send().await?;
        let started = &mut share_ami["States"]["TakeBack"]["Arguments"]["StateMachineArn"];
        if *started != self.take_back.as_str() {
            return Err(format!("share-ami starts {started}").into());
        }
        *started = json!(created.state_machine_arn);
        Ok(created.state_machine_arn)
    }

    /// Waits for an execution of that state machine, which has one at most.
    pub async fn only_execution_of(&self, machine: &str) -> Result<String> {
        let started = Instant::now();
        loop {
            let listed = self.client.list_executions().state_machine_arn(machine).send().await?;
            if let [execution] = listed.executions.as_slice() {
                return Ok(execution.execution_arn.clone());
            }
            if started.elapsed() > TIMEOUT {
                return Err(format!("{machine} was not started once").into());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Gives share-ami itself that definition for one execution: its rules and its name stay.
    /// Returns the execution's ARN.
    pub async fn start(&self, definition: &Value, name: &str, request: &Value) -> Result<String> {
        let _starting = self.starting.lock().await;
        let update = self.client.update_state_machine().state_machine_arn(&self.share_ami);
        update.definition(definition.to_string()).send().await?;
        let arn = execution::start(&self.engine, &self.share_ami, name, request).await?;
        // The engine reads the definition a moment after it answered.
        self.until(&arn, "has started", |states| !states.is_empty()).await?;
        Ok(arn)
    }

    /// Waits until the execution has entered `state`.
    pub async fn entered(&self, arn: &str, state: &str) -> Result<()> {
        self.until(arn, &format!("has entered {state}"), |states| states.iter().any(|entered| entered == state)).await
    }

    /// Waits until an execution of a definition of [`hold_after`] is held.
    pub async fn held(&self, arn: &str) -> Result<()> {
        self.entered(arn, HOLD).await
    }

    pub async fn stop(&self, arn: &str) -> Result<()> {
        self.client.stop_execution().execution_arn(arn).send().await?;
        Ok(())
    }

    /// Stops an execution that was started with a definition of [`hold_after`], there.
    pub async fn stop_held(&self, arn: &str) -> Result<()> {
        self.held(arn).await?;
        self.stop(arn).await
    }

    /// Waits until the states that the execution has entered are as `wanted`.
    async fn until(&self, arn: &str, what: &str, wanted: impl Fn(&[String]) -> bool) -> Result<()> {
        let started = Instant::now();
        loop {
            let events = execution::history(&self.client, arn).await?;
            let ended = events.last().is_some_and(|event| {
                matches!(event.r#type, HistoryEventType::ExecutionSucceeded | HistoryEventType::ExecutionFailed)
            });
            let entered = events.into_iter().filter_map(|event| event.state_entered_event_details);
            let states: Vec<String> = entered.map(|details| details.name).collect();
            if wanted(&states) {
                return Ok(());
            }
            if ended || started.elapsed() > TIMEOUT {
                return Err(format!("{arn} should wait until it {what}; it entered {states:?}").into());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Follows the undo-share that the end of `arn` started.
    pub async fn follow_undo(&self, arn: &str) -> Result<Ended> {
        let started = Instant::now();
        loop {
            if let [undo] = self.undos_of(arn).await?.as_slice() {
                return execution::follow(&self.engine, undo, |_| {}).await;
            }
            if started.elapsed() > TIMEOUT {
                return Err(format!("undo-share was not started once for {arn}").into());
            }
            tokio::time::sleep(POLL_INTERVAL * 5).await;
        }
    }

    /// The executions of undo-share that were started for `arn`.
    pub async fn undos_of(&self, arn: &str) -> Result<Vec<String>> {
        let mut undos = self.undos.lock().await;
        let listed = self.client.list_executions().state_machine_arn(&self.undo_share).max_results(1000).send().await?;
        for execution in listed.executions {
            if !undos.values().flatten().any(|known| *known == execution.execution_arn) {
                let described = self.client.describe_execution().execution_arn(&execution.execution_arn).send().await?;
                let event: Value = serde_json::from_str(&described.input.unwrap_or_default())?;
                let of = event["detail"]["executionArn"].as_str().unwrap_or_default().to_owned();
                undos.entry(of).or_default().push(execution.execution_arn);
            }
        }
        Ok(undos.get(arn).cloned().unwrap_or_default())
    }

    /// The event that Step Functions sends for an execution that has ended as `status` (Step
    /// Functions developer guide, "Automating Step Functions event delivery with EventBridge").
    pub fn event(&self, arn: &str, status: &str) -> Value {
        json!({
            "version": "0",
            "id": "00000000-0000-0000-0000-000000000000",
            "detail-type": "Step Functions Execution Status Change",
            "source": "aws.states",
            "account": HUB,
            "resources": [arn],
            "detail": {
                "executionArn": arn,
                "stateMachineArn": self.share_ami,
                "name": arn.rsplit(':').next(),
                "status": status,
            },
        })
    }

    /// Starts undo-share as EventBridge does; returns the execution's ARN.
    pub async fn start_undo(&self, name: &str, event: &Value) -> Result<String> {
        execution::start(&self.engine, &self.undo_share, name, event).await
    }

    /// Starts revoke-share; returns the execution's ARN.
    pub async fn start_revoke(&self, name: &str, request: &Value) -> Result<String> {
        execution::start(&self.engine, &self.revoke_share, name, request).await
    }

    pub async fn follow(&self, arn: &str) -> Result<Ended> {
        execution::follow(&self.engine, arn, |_| {}).await
    }

    /// Whether the end of an execution starts undo-share.
    pub fn set_rule(&self, enabled: bool) -> Result<()> {
        let rules = self.aws(&["events", "list-rules"])?;
        let rules = rules["Rules"].as_array().cloned().unwrap_or_default();
        let rule = rules.iter().find(|rule| rule["EventPattern"].as_str().is_some_and(|text| text.contains("ABORTED")));
        let name = rule.and_then(|rule| rule["Name"].as_str()).ok_or_else(|| format!("no rule in {rules:?}"))?;
        self.aws(&["events", if enabled { "enable-rule" } else { "disable-rule" }, "--name", name])?;
        Ok(())
    }

    /// Every item of the record table, as DynamoDB's JSON.
    pub fn records(&self) -> Result<Vec<Value>> {
        let answer = self.aws(&["dynamodb", "scan", "--consistent-read", "--table-name", &self.table])?;
        Ok(answer["Items"].as_array().cloned().unwrap_or_default())
    }

    pub fn put_record(&self, item: &Value) -> Result<()> {
        self.aws(&["dynamodb", "put-item", "--table-name", &self.table, "--item", &item.to_string()])?;
        Ok(())
    }

    /// Empties the record table: for a test that puts the accounts back to what they were before.
    pub fn forget_records(&self) -> Result<()> {
        for record in self.records()? {
            let key = json!({ "id": record["id"], "part": record["part"] });
            self.aws(&["dynamodb", "delete-item", "--table-name", &self.table, "--key", &key.to_string()])?;
        }
        Ok(())
    }

    fn aws(&self, arguments: &[&str]) -> Result<Value> {
        let output = deploy::aws(HUB, &self.engine)?.args(arguments).output()?;
        if !output.status.success() {
            return Err(format!("aws {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)).into());
        }
        if output.stdout.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Changes a definition so that an execution that has left `state`, other than by a Catch, does
/// nothing more for as long as a test lasts.
pub fn hold_after(definition: &mut Value, state: &str) -> Result<()> {
    let states = scope_of(definition, state).ok_or_else(|| format!("the definition has no {state}"))?;
    let mut hold = json!({ "Type": "Wait", "Seconds": 30_000, "End": true });
    let held = &mut states[state];
    for field in ["Next", "Default"] {
        if held[field].is_string() {
            hold = json!({ "Type": "Wait", "Seconds": 30_000, "Next": held[field] });
            held[field] = json!(HOLD);
        }
    }
    for choice in held["Choices"].as_array_mut().into_iter().flatten() {
        choice["Next"] = json!(HOLD);
    }
    if held.get("End").is_some() {
        held["Next"] = json!(HOLD);
        held.as_object_mut().ok_or("a state is an object")?.remove("End");
    }
    states.insert(HOLD.to_owned(), hold);
    Ok(())
}

/// The states that `state` is one of.
fn scope_of<'d>(definition: &'d mut Value, state: &str) -> Option<&'d mut Map<String, Value>> {
    if definition["States"].get(state).is_some() {
        return definition["States"].as_object_mut();
    }
    let states = definition["States"].as_object_mut()?;
    let maps = states.values_mut().filter(|inside| inside["Type"] == "Map");
    maps.filter_map(|map| scope_of(&mut map["ItemProcessor"], state)).next()
}
