//! AWS, as functions and state machines call it: the sandbox and a table, in this process, at simulated moments, and
//! with faults.

use std::{
    collections::BTreeMap,
    fmt, future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ami_share_sandbox::{
    World, auth,
    faults::{Fault as SandboxFault, FaultKind, Matcher},
    http::{Request, Response},
    sts,
};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture},
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
    },
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    simulation::{Clock, Time},
    table::{self, Refused, Table},
};

/// What goes wrong with one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Refused for its rate; nothing is done.
    Throttled,
    /// A server error; nothing is done.
    Failed,
    /// It is done, and the answer is a server error.
    ReplyFailed,
    /// It is done, and the connection breaks before the answer comes.
    ReplyLost,
    /// It arrives some seconds after it was sent.
    Late,
    /// It is done, and no answer comes: the function runs into its time limit.
    Hangs,
    /// The function crashes just before it sends it.
    CrashBefore,
    /// The function crashes just after it was done.
    CrashAfter,
    /// Step Functions gives up on the function, which runs on.
    GivenUp,
}

/// The longest that a call is under way, in milliseconds: less than undo-share waits for.
const LATE_MS: u64 = 5_000;

/// The calls of a simulation.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) calls: u64,
    /// By the number of the call, from 1.
    pub(crate) faults: BTreeMap<u64, Fault>,
    /// What strikes calls of an operation: by its name, and how many of them are still to be made before.
    pub(crate) of_operations: BTreeMap<String, BTreeMap<u64, Fault>>,
    /// Those that have struck, and when.
    pub(crate) struck: Vec<(Time, Fault)>,
    /// What functions called in JSON, such as `TrentService.PutKeyPolicy`, by the number of the call.
    pub(crate) targets: BTreeMap<u64, String>,
}

impl Traffic {
    /// The fault that strikes the next call of that operation.
    fn fault_of(&mut self, operation: &str) -> Option<Fault> {
        let faults = self.of_operations.get_mut(operation)?;
        let fault = faults.remove(&0);
        *faults = std::mem::take(faults).into_iter().map(|(ahead, fault)| (ahead - 1, fault)).collect();
        fault
    }
}

#[derive(Clone)]
pub(crate) struct Services {
    pub(crate) clock: Clock,
    world: Arc<Mutex<World>>,
    table: Arc<Mutex<Table>>,
    traffic: Arc<Mutex<Traffic>>,
    table_arn: Arc<str>,
}

/// Of `TrentService.PutKeyPolicy`, `PutKeyPolicy`.
pub(crate) fn operation(target: &str) -> &str {
    target.rsplit('.').next().unwrap_or_default()
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Services {
    pub(crate) fn new(clock: Clock, mut world: World, table_arn: &str) -> Self {
        world.set_began_ms(clock.epoch_ms() - clock.now());
        Self {
            clock,
            world: Arc::new(Mutex::new(world)),
            table: Arc::default(),
            traffic: Arc::default(),
            table_arn: table_arn.into(),
        }
    }

    /// At the simulation's time.
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        let mut world = lock(&self.world);
        world.set_now_ms(self.clock.now());
        world
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub(crate) fn traffic(&self) -> MutexGuard<'_, Traffic> {
        lock(&self.traffic)
    }

    /// A call begins: the fault that strikes it.
    fn begin(&self, control: &Control, target: Option<&str>) -> Option<Fault> {
        control.pass();
        let now = self.clock.now();
        let mut traffic = self.traffic();
        traffic.calls += 1;
        let number = traffic.calls;
        if let Some(target) = target {
            traffic.targets.insert(number, target.to_owned());
        }
        let of_operation = target.and_then(|target| traffic.fault_of(operation(target)));
        let fault = traffic.faults.get(&number).copied().or(of_operation);
        traffic.struck.extend(fault.map(|fault| (now, fault)));
        fault
    }

    /// A call that the state machine itself makes, of a service whose name its errors start with.
    ///
    /// # Errors
    /// The error's name, and what it says.
    pub(crate) async fn call(
        &self,
        control: &Control,
        service: &str,
        act: impl FnOnce() -> Result<Value, Refused>,
    ) -> Result<Value, (String, String)> {
        let failed = |name: &str| Err((format!("{service}.{name}"), "it was to fail".to_owned()));
        let fault = self.begin(control, None);
        self.clock.sleep(self.clock.latency()).await;
        if matches!(fault, Some(Fault::Throttled)) {
            return failed("ThrottlingException");
        }
        if matches!(fault, Some(Fault::Failed | Fault::CrashBefore)) {
            return failed("InternalServerErrorException");
        }
        let result = act();
        if matches!(fault, Some(Fault::Hangs)) {
            future::pending::<()>().await;
        }
        self.clock.sleep(self.clock.latency()).await;
        if matches!(fault, Some(Fault::ReplyLost | Fault::ReplyFailed | Fault::CrashAfter)) {
            return failed("SdkClientException");
        }
        result.map_err(|refused| (format!("{service}.{}", refused.name), refused.message))
    }

    /// The answer to a function's call; nothing where the connection breaks.
    fn answer(&self, request: &Request, fault: Option<Fault>) -> Option<Response> {
        let mut world = self.world();
        let scope = request.header("authorization").and_then(|header| header.split("Credential=").nth(1));
        let mut scope = scope.unwrap_or_default().split('/');
        let (key, service) = (scope.next().unwrap_or_default(), scope.nth(2).unwrap_or_default());
        if service == "dynamodb" {
            return self.answer_from_the_table(&world, key, request, fault);
        }
        let kind = match fault {
            Some(Fault::Throttled) => Some(FaultKind::Throttle),
            Some(Fault::Failed) => Some(FaultKind::ServerError),
            Some(Fault::ReplyFailed) => Some(FaultKind::ReplyFailed),
            Some(Fault::ReplyLost) => Some(FaultKind::ReplyLost),
            _ => None,
        };
        if let Some(kind) = kind {
            world.faults.add(SandboxFault::once(Matcher::default(), kind));
        }
        ami_share_sandbox::respond_at_once(&mut world, request)
    }

    /// What functions call of DynamoDB, with their own roles.
    fn answer_from_the_table(
        &self,
        world: &World,
        key: &str,
        request: &Request,
        fault: Option<Fault>,
    ) -> Option<Response> {
        let refuse = |status: u16, name: &str, message: &str| {
            Some(respond(status, &json!({ "__type": format!("com.amazonaws.dynamodb#{name}"), "message": message })))
        };
        match fault {
            Some(Fault::Throttled) => return refuse(400, "ThrottlingException", "Rate exceeded"),
            Some(Fault::Failed) => return refuse(500, "InternalServerError", "It was to fail"),
            _ => {}
        }
        let operation = operation(request.header("x-amz-target").unwrap_or_default());
        let Some(caller) = sts::resolve(world, key, request.header("x-amz-security-token")) else {
            return refuse(400, "UnrecognizedClientException", "The security token is invalid.");
        };
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let resource = match body["IndexName"].as_str() {
            Some(index) => format!("{}/index/{index}", self.table_arn),
            None => self.table_arn.to_string(),
        };
        let action = format!("dynamodb:{operation}");
        let leading_keys = table::leading_key(&body).map(|key| ("dynamodb:LeadingKeys".to_owned(), vec![key]));
        let context = auth::Context::from_iter(leading_keys);
        if let Err(denied) = auth::authorize(world, &caller, &action, &resource, &context) {
            return refuse(400, "AccessDeniedException", &denied.message());
        }
        let answer = self.table().call(operation, &body);
        match fault {
            Some(Fault::ReplyFailed) => return refuse(500, "InternalServerError", "It was to fail"),
            Some(Fault::ReplyLost) => return None,
            _ => {}
        }
        match answer {
            Ok(found) => Some(respond(200, &found)),
            Err(Refused { name, message }) => refuse(400, name, &message),
        }
    }
}

fn respond(status: u16, body: &Value) -> Response {
    Response { status, content_type: "application/x-amz-json-1.0", request_id: String::new(), body: body.to_string() }
}

/// How an execution ends that does not come to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stop {
    /// Not by StopExecution: it fails, and no Catch sees it.
    pub(crate) failed: bool,
    pub(crate) error: Option<String>,
    pub(crate) cause: Option<String>,
}

/// How an execution is stopped from outside.
#[derive(Debug)]
pub(crate) struct Control(Mutex<Points>);

#[derive(Debug)]
struct Points {
    passed: u64,
    /// The number of the point at which it is stopped.
    stop_at: Option<(u64, Stop)>,
    /// Tells the execution.
    stop: Option<oneshot::Sender<Stop>>,
    /// Of an execution that has not begun yet.
    stopped: Option<oneshot::Receiver<Stop>>,
}

impl Control {
    pub(crate) fn new() -> Self {
        let (stop, stopped) = oneshot::channel();
        Self(Mutex::new(Points { passed: 0, stop_at: None, stop: Some(stop), stopped: Some(stopped) }))
    }

    /// The execution is at a point where it may be stopped: it enters a state, or calls somebody, itself or by a
    /// function.
    pub(crate) fn pass(&self) {
        let mut points = lock(&self.0);
        points.passed += 1;
        let passed = points.passed;
        if let Some((_, stop)) = points.stop_at.take_if(|(at, _)| passed >= *at) {
            drop(points);
            self.stop(stop);
        }
    }

    pub(crate) fn passed(&self) -> u64 {
        lock(&self.0).passed
    }

    /// Stops it at the point of that number, or at the next one if that is behind it.
    pub(crate) fn stop_at(&self, number: u64, stop: Stop) {
        lock(&self.0).stop_at = Some((number, stop));
    }

    pub(crate) fn stop(&self, how: Stop) {
        if let Some(stop) = lock(&self.0).stop.take() {
            // Where nobody listens, the execution has ended.
            let _ = stop.send(how);
        }
    }

    /// Is told when it is stopped.
    pub(crate) fn stopped(&self) -> oneshot::Receiver<Stop> {
        let mut points = lock(&self.0);
        if let Some(stopped) = points.stopped.take() {
            return stopped;
        }
        let (stop, stopped) = oneshot::channel();
        points.stop = Some(stop);
        stopped
    }
}

/// The HTTP client of one invocation of a function.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) services: Services,
    pub(crate) control: Arc<Control>,
    /// Ends the invocation.
    pub(crate) crash: Arc<Mutex<Option<oneshot::Sender<()>>>>,
    /// Who waits for the invocation's answer.
    pub(crate) answer: Answer,
}

/// Where the answer of an invocation goes, unless it has one.
pub(crate) type Answer = Arc<Mutex<Option<oneshot::Sender<Result<Value, (String, String)>>>>>;

/// The execution may have ended, or waited for long enough.
pub(crate) fn tell(answer: &Answer, result: Result<Value, (String, String)>) {
    if let Some(waiting) = lock(answer).take() {
        let _ = waiting.send(result);
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    fn crash(&self) {
        if let Some(crash) = lock(&self.crash).take() {
            // Where nobody listens, the invocation has ended.
            let _ = crash.send(());
        }
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let fault = self.services.begin(&self.control, request.headers().get("x-amz-target"));
        if fault == Some(Fault::CrashBefore) {
            self.crash();
            return HttpConnectorFuture::new(future::pending());
        }
        if fault == Some(Fault::GivenUp) {
            tell(&self.answer, Err(("Lambda.Unknown".to_owned(), "the connection to the function broke".to_owned())));
        }
        let clock = self.services.clock.clone();
        let late = if fault == Some(Fault::Late) { clock.chance(|random| random.below(LATE_MS)) } else { 0 };
        let (reply, replied) = oneshot::channel::<Option<Response>>();
        let connector = self.clone();
        let request = read(&request);
        // What was sent arrives, also where whoever sent it has ended meanwhile.
        clock.after(clock.latency() + late, move || {
            let response = connector.services.answer(&request, fault);
            let clock = &connector.services.clock;
            match fault {
                Some(Fault::CrashAfter) => connector.crash(),
                Some(Fault::Hangs) => drop(reply),
                _ => clock.after(clock.latency(), move || {
                    let _ = reply.send(response);
                }),
            }
        });
        HttpConnectorFuture::new(async move {
            match replied.await {
                Ok(Some(response)) => write(&response),
                Ok(None) => Err(ConnectorError::io("the connection broke".into())),
                // The invocation ends before this is known.
                Err(_) => future::pending().await,
            }
        })
    }
}

fn read(request: &HttpRequest) -> Request {
    let uri = request.uri();
    let after_host = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let target = after_host.find('/').map_or("/", |at| &after_host[at..]);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = request.headers().iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    Request {
        method: request.method().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: headers.collect(),
        body: request.body().bytes().unwrap_or_default().to_vec(),
    }
}

fn write(response: &Response) -> Result<HttpResponse, ConnectorError> {
    let status = StatusCode::try_from(response.status).map_err(|error| ConnectorError::other(error.into(), None))?;
    let mut written = HttpResponse::new(status, SdkBody::from(response.body.clone()));
    written.headers_mut().insert("content-type", response.content_type);
    written.headers_mut().insert("x-amzn-requestid", response.request_id.clone());
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HUB, root::Caller, simulation::Simulation};

    /// A function that may do so much with items of its own kind, and what the table answers it.
    struct Function {
        services: Services,
        key: sts::AccessKey,
    }

    impl Function {
        fn with(statement: &Value) -> Self {
            let mut world = World::new(ami_share_sandbox::Settings::default());
            let (hub, policy) = (Caller::root(HUB), json!({ "Version": "2012-10-17", "Statement": [statement] }));
            let trust = json!({ "Version": "2012-10-17", "Statement": [{
                "Effect": "Allow", "Principal": { "Service": "lambda.amazonaws.com" }, "Action": "sts:AssumeRole" }] });
            let (trust, policy) = (trust.to_string(), policy.to_string());
            for (action, name, document) in
                [("CreateRole", "AssumeRolePolicyDocument", &trust), ("PutRolePolicy", "PolicyDocument", &policy)]
            {
                let parameters = [("RoleName", "function"), ("PolicyName", "items"), (name, document.as_str())];
                hub.call(&mut world, "iam", action, &parameters).unwrap();
            }
            let role = format!("arn:aws:iam::{HUB}:role/function");
            let key = sts::issue_session(&mut world, &role, "session").unwrap();
            let table = format!("arn:aws:dynamodb:eu-west-1:{HUB}:table/records");
            Self { services: Services::new(Simulation::new(1).clock, world, &table), key }
        }

        fn call(&self, action: &str, arguments: &Value) -> Result<Value, String> {
            let scope = format!("AWS4-HMAC-SHA256 Credential={}/20260101/eu-west-1/dynamodb/aws4_request", self.key.id);
            let headers = [
                ("authorization", scope),
                ("x-amz-target", format!("DynamoDB_20120810.{action}")),
                ("x-amz-security-token", self.key.token.clone().unwrap_or_default()),
            ];
            let request = Request {
                method: "POST".to_owned(),
                path: "/".to_owned(),
                headers: headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
                body: arguments.to_string().into_bytes(),
                ..Request::default()
            };
            let answer = self.services.answer(&request, None).unwrap();
            let body: Value = serde_json::from_str(&answer.body).unwrap();
            if answer.status == 200 { Ok(body) } else { Err(body["__type"].as_str().unwrap_or_default().to_owned()) }
        }
    }

    #[test]
    fn a_function_puts_reads_and_deletes_items_on_conditions() {
        let table = format!("arn:aws:dynamodb:eu-west-1:{HUB}:table/records");
        let function = Function::with(&json!({ "Effect": "Allow", "Action": "dynamodb:*", "Resource": table }));
        let key = json!({ "id": { "S": "keys#1" }, "part": { "S": "lock" } });
        let item = json!({ "id": { "S": "keys#1" }, "part": { "S": "lock" }, "heldBy": { "S": "me" } });
        let put = json!({ "TableName": "records", "Item": item, "ConditionExpression": "attribute_not_exists(id)" });
        assert!(function.call("PutItem", &put).is_ok());
        assert_eq!(
            function.call("PutItem", &put).unwrap_err(),
            "com.amazonaws.dynamodb#ConditionalCheckFailedException"
        );
        let get = json!({ "TableName": "records", "Key": key, "ConsistentRead": true });
        assert_eq!(function.call("GetItem", &get).unwrap()["Item"], item);
        let delete = |who: &str| {
            json!({ "TableName": "records", "Key": key, "ConditionExpression": "heldBy = :me",
                "ExpressionAttributeValues": { ":me": { "S": who } } })
        };
        assert!(function.call("DeleteItem", &delete("somebody")).is_err());
        assert!(function.call("DeleteItem", &delete("me")).is_ok());
        assert_eq!(function.call("GetItem", &get).unwrap(), json!({}));
    }

    #[test]
    fn a_role_can_be_limited_to_items_by_their_partition_key() {
        let table = format!("arn:aws:dynamodb:eu-west-1:{HUB}:table/records");
        let function = Function::with(&json!({
            "Effect": "Allow",
            "Action": ["dynamodb:UpdateItem", "dynamodb:GetItem", "dynamodb:Query"],
            "Resource": table,
            "Condition": { "ForAllValues:StringLike": { "dynamodb:LeadingKeys": ["keys#*", "locks"] } },
        }));
        let refused = "com.amazonaws.dynamodb#AccessDeniedException";
        for (id, allowed) in [("keys#1", true), ("locks", true), ("target#2", false), ("key", false)] {
            let key = json!({ "id": { "S": id }, "part": { "S": "lock" } });
            let calls = [
                ("GetItem", json!({ "TableName": "records", "Key": key })),
                (
                    "UpdateItem",
                    json!({ "TableName": "records", "Key": key, "UpdateExpression": "SET a = :id",
                    "ExpressionAttributeValues": { ":id": { "S": id } } }),
                ),
                (
                    "Query",
                    json!({ "TableName": "records", "KeyConditionExpression": "id = :id",
                    "ExpressionAttributeValues": { ":id": { "S": id } } }),
                ),
            ];
            for (action, arguments) in calls {
                let answer = function.call(action, &arguments);
                assert_eq!(answer.is_ok(), allowed, "{action} {id}: {answer:?}");
                assert!(answer.is_ok() || answer.is_err_and(|name| name == refused), "{action} {id}");
            }
        }
        let delete = json!({ "TableName": "records", "Key": { "id": { "S": "locks" }, "part": { "S": "lock" } } });
        assert_eq!(function.call("DeleteItem", &delete).unwrap_err(), refused);
    }
}
