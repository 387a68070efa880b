//! The server: from an HTTP request to a handler and back, with everything that
//! surrounds a call: identity, rate limits, faults, hooks, the journal.

use crate::auth::Caller;
use crate::control;
use crate::ec2;
use crate::faults::{FaultKind, RootCall, When};
use crate::http::{self, Request, Response};
use crate::iam;
use crate::journal::{self, Entry, Outcome};
use crate::kms;
use crate::organizations;
use crate::sts;
use crate::wire::{self, ApiError, Params, Reply, Service};
use crate::world::{Call, Settings, World};
use iam_rs::Arn;
use serde_json::Value;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// A running sandbox. It has a thread of its own, so a test may block, and stops
/// when dropped.
#[derive(Debug)]
pub struct Sandbox {
    world: Arc<Mutex<World>>,
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sandbox {
    /// Listens on 127.0.0.1, on the port of the settings or a free one.
    pub async fn start(settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", settings.port))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let world = Arc::new(Mutex::new(World::new(settings)));
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::clone(&world);
        let thread = std::thread::Builder::new().name("sandbox".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, shared) => {}
                }
            });
        })?;
        Ok(Self { world, port, stop: Some(stop), thread: Some(thread) })
    }

    /// `http://127.0.0.1:<port>`
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Everything the sandbox knows; no call is handled while the guard is held.
    pub fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, world: Arc<Mutex<World>>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        let world = Arc::clone(&world);
        tokio::spawn(async move {
            // The client has gone away; nobody is left to tell.
            let _ = serve(stream, &world).await;
        });
    }
}

async fn serve(mut stream: TcpStream, world: &Mutex<World>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    while let Some(request) = http::read_request(&mut stream, &mut buffer).await? {
        let Some(response) = answer(world, &request).await else {
            return Ok(());
        };
        http::write_response(&mut stream, &response).await?;
        if request.wants_close() {
            return Ok(());
        }
    }
    Ok(())
}

/// The answer to one request; `None` closes the connection without one.
async fn answer(world: &Mutex<World>, request: &Request) -> Option<Response> {
    if let Some(path) = request.path.strip_prefix("/_sandbox/") {
        return Some(control::handle(&mut lock(world), path, request));
    }
    let call = match ApiCall::read(request) {
        Ok(call) => call,
        Err(error) => return Some(respond(Service::Sts, "", Err(error), String::new())),
    };
    if let Err(error) = learn_caller(world, &call).await {
        let world = &mut lock(world);
        let request_id = world.next_uuid();
        journal_unknown(world, &call, &error, &request_id);
        return Some(respond(call.service, &call.action, Err(error), request_id));
    }
    let arrived = match Arrived::of(&mut lock(world), call) {
        Ok(arrived) => arrived,
        Err(refused) => return Some(refused),
    };
    if let Some(FaultKind::Delay { ms }) = arrived.fault {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
    arrived.perform(&mut lock(world))
}

/// The answer to one request by a caller in this process, at once; `None` is a connection that is closed without
/// one. A fault cannot delay it, and an access key that nobody here issued is asked about nowhere.
pub fn respond_at_once(world: &mut World, request: &Request) -> Option<Response> {
    match ApiCall::read(request) {
        Ok(call) => match Arrived::of(world, call) {
            Ok(arrived) => arrived.perform(world),
            Err(refused) => Some(refused),
        },
        Err(error) => Some(respond(Service::Sts, "", Err(error), String::new())),
    }
}

/// A call of somebody who is known, and the fault that strikes it.
struct Arrived {
    call: ApiCall,
    caller: Caller,
    fault: Option<FaultKind>,
    request_id: String,
}

impl Arrived {
    fn of(world: &mut World, call: ApiCall) -> Result<Self, Response> {
        let request_id = world.next_uuid();
        let Some(caller) = sts::resolve(world, &call.access_key, call.token.as_deref()) else {
            let error = sts::unknown_key(call.service);
            journal_unknown(world, &call, &error, &request_id);
            return Err(respond(call.service, &call.action, Err(error), request_id));
        };
        let fault = world.faults.strike_call(&caller, &call.iam_action());
        Ok(Self { call, caller, fault, request_id })
    }

    fn perform(self, world: &mut World) -> Option<Response> {
        let Self { call, caller, fault, request_id } = self;
        let reply = perform_with_fault(world, &caller, &call, fault.as_ref(), &request_id);
        match fault {
            Some(FaultKind::ReplyLost) => None,
            Some(FaultKind::ReplyFailed) if reply.is_ok() => {
                Some(respond(call.service, &call.action, Err(internal_error(call.service)), request_id))
            }
            _ => Some(respond(call.service, &call.action, reply, request_id)),
        }
    }
}

/// One API call, whichever protocol it came by.
#[derive(Debug, Clone)]
pub(crate) struct ApiCall {
    access_key: String,
    token: Option<String>,
    pub(crate) region: String,
    pub(crate) service: Service,
    pub(crate) action: String,
    input: Input,
}

#[derive(Debug, Clone)]
enum Input {
    Query(Params),
    Json(Value),
}

impl Input {
    /// For the journal.
    fn parameters(&self) -> Value {
        match self {
            Self::Query(params) => params.to_json(),
            Self::Json(body) => body.clone(),
        }
    }
}

impl ApiCall {
    fn read(request: &Request) -> Result<Self, ApiError> {
        let query = Params::parse(request.query.as_bytes());
        let scope = request
            .header("authorization")
            .and_then(|header| header.split("Credential=").nth(1))
            .and_then(|rest| rest.split([',', ' ']).next())
            .or(query.get("X-Amz-Credential"))
            .ok_or_else(|| {
                ApiError::new(403, "MissingAuthenticationToken", "Request is missing Authentication Token")
            })?;
        let parts: Vec<&str> = scope.split('/').collect();
        let &[access_key, _, region, service, _] = parts.as_slice() else {
            return Err(ApiError::new(
                400,
                "IncompleteSignature",
                format!("Credential scope {scope} is not of the form key/date/region/service/aws4_request"),
            ));
        };
        let service = Service::parse(service)
            .ok_or_else(|| ApiError::bad_request("InvalidAction", format!("The sandbox has no {service}")))?;
        let (action, input) = if service.speaks_json() {
            let target = request.header("x-amz-target").unwrap_or_default();
            let action = target.rsplit('.').next().unwrap_or_default().to_owned();
            let body = if request.body.is_empty() {
                Value::Object(serde_json::Map::new())
            } else {
                serde_json::from_slice(&request.body)
                    .map_err(|error| ApiError::bad_request("SerializationException", error.to_string()))?
            };
            (action, Input::Json(body))
        } else {
            let params = if request.body.is_empty() { query.clone() } else { Params::parse(&request.body) };
            let action = params.get("Action").unwrap_or_default().to_owned();
            (action, Input::Query(params))
        };
        Ok(Self {
            access_key: access_key.to_owned(),
            token: request.header("x-amz-security-token").or(query.get("X-Amz-Security-Token")).map(str::to_owned),
            region: region.to_owned(),
            service,
            action,
            input,
        })
    }

    fn iam_action(&self) -> String {
        format!("{}:{}", self.service.name(), self.action)
    }

    /// A call made as root of an account, by a hook.
    fn of_root(call: &RootCall) -> Result<Self, ApiError> {
        let service = Service::parse(&call.service)
            .ok_or_else(|| ApiError::bad_request("InvalidAction", format!("The sandbox has no {}", call.service)))?;
        let input = if service.speaks_json() {
            Input::Json(call.params.clone())
        } else {
            let params = call.params.as_object().into_iter().flatten();
            Input::Query(Params::from_pairs(params.map(|(name, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                (name.clone(), text)
            })))
        };
        Ok(Self {
            access_key: call.account.clone(),
            token: None,
            region: call.region.clone(),
            service,
            action: call.action.clone(),
            input,
        })
    }
}

/// Asks the upstream STS about a key that nobody here issued.
async fn learn_caller(world: &Mutex<World>, call: &ApiCall) -> Result<(), ApiError> {
    let upstream = {
        let world = lock(world);
        if world.credentials.knows(&call.access_key) { None } else { world.settings.upstream_sts.clone() }
    };
    if let Some(endpoint) = upstream {
        let arn = ask_upstream(&endpoint, call).await.map_err(|error| {
            ApiError::new(500, "InternalFailure", format!("The upstream STS at {endpoint} did not answer: {error}"))
        })?;
        if let Some(arn) = arn {
            lock(world).credentials.learn(&call.access_key, &arn);
        }
    }
    Ok(())
}

/// The ARN that the upstream's GetCallerIdentity gives for the caller's key. The
/// request cannot be signed without the secret; the local engine does not check.
async fn ask_upstream(endpoint: &str, call: &ApiCall) -> io::Result<Option<String>> {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/20260101/us-east-1/sts/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature=00",
        call.access_key
    );
    let mut headers = vec![("Authorization", authorization.as_str())];
    if let Some(token) = &call.token {
        headers.push(("X-Amz-Security-Token", token));
    }
    let form = "Action=GetCallerIdentity&Version=2011-06-15";
    let answer = http::post_form(endpoint, &headers, form).await?;
    let arn = answer
        .split_once("<Arn>")
        .and_then(|(_, rest)| rest.split_once("</Arn>"))
        .map(|(arn, _)| arn.trim().to_owned());
    Ok(arn)
}

/// Performs a call as the fault says, with the hooks around it.
fn perform_with_fault(
    world: &mut World,
    caller: &Caller,
    call: &ApiCall,
    fault: Option<&FaultKind>,
    request_id: &str,
) -> Reply {
    let action = call.iam_action();
    run_hooks(world, When::Before, caller, &action);
    begin(world, call, request_id);
    let refused = match fault {
        Some(FaultKind::Throttle) => Some(throttled(call.service)),
        Some(FaultKind::ServerError) => Some(internal_error(call.service)),
        Some(FaultKind::Error { code, message, status }) => Some(ApiError::new(*status, code, message.clone())),
        _ => over_rate_limit(world, caller, call).then(|| throttled(call.service)),
    };
    let reply = if let Some(error) = refused {
        let reply = Err(error);
        write_journal(world, caller, call, &reply, None);
        reply
    } else {
        // What comes due happens to the account, and not to an earlier state of it that a stale read is answered from.
        ec2::settle(world);
        let earlier = match fault {
            Some(FaultKind::Stale { writes }) if journal::is_read(&action) => {
                world.faults.earlier(&caller.account, *writes)
            }
            _ => None,
        };
        match earlier {
            Some(earlier) => {
                let now = world.accounts.insert(caller.account.clone(), earlier);
                let reply = perform(world, caller, call, None);
                if let Some(now) = now {
                    world.accounts.insert(caller.account.clone(), now);
                }
                reply
            }
            None => perform(world, caller, call, None),
        }
    };
    run_hooks(world, When::After, caller, &action);
    reply
}

fn begin(world: &mut World, call: &ApiCall, request_id: &str) {
    world.call = Call { region: call.region.clone(), request_id: request_id.to_owned(), ..Call::default() };
}

/// Hands the call to its service and writes the journal.
fn perform(world: &mut World, caller: &Caller, call: &ApiCall, via: Option<&str>) -> Reply {
    world.account_mut(&caller.account);
    let before = world.faults.needs_history(&caller.account).then(|| world.account(&caller.account).cloned()).flatten();
    let reply = match (&call.service, &call.input) {
        (Service::Ec2, Input::Query(params)) => ec2::handle(world, caller, &call.region, &call.action, params),
        (Service::Iam, Input::Query(params)) => iam::handle(world, caller, &call.action, params),
        (Service::Sts, Input::Query(params)) => sts::handle(world, caller, &call.action, params),
        (Service::Kms, Input::Json(body)) => kms::handle(world, caller, &call.region, &call.action, body),
        (Service::Organizations, Input::Json(body)) => organizations::handle(world, caller, &call.action, body),
        _ => Err(ApiError::bad_request("InvalidAction", "This protocol is not the service's")),
    };
    if let Some(before) = before.filter(|_| world.call.changed) {
        world.faults.remember(before);
    }
    write_journal(world, caller, call, &reply, via);
    reply
}

fn run_hooks(world: &mut World, when: When, caller: &Caller, action: &str) {
    for hook in world.faults.take_hooks(when, caller, action) {
        for root_call in &hook.calls {
            let root = Caller::root(&root_call.account);
            let reply = ApiCall::of_root(root_call).and_then(|call| {
                let request_id = world.next_uuid();
                begin(world, &call, &request_id);
                ec2::settle(world);
                perform(world, &root, &call, Some("hook"))
            });
            if let Err(error) = reply {
                // The journal holds it too, but a hook that fails makes a test lie.
                world.faults.failed_hooks.push(format!(
                    "{}:{} in {}: {}: {}",
                    root_call.service, root_call.action, root_call.account, error.code, error.message
                ));
            }
        }
    }
}

fn write_journal(world: &mut World, caller: &Caller, call: &ApiCall, reply: &Reply, via: Option<&str>) {
    let action = call.iam_action();
    let (outcome, code, reason) = describe_outcome(reply);
    let entry = Entry {
        seq: 0,
        time_ms: world.now_ms(),
        account: caller.account.clone(),
        principal: caller.arn.clone(),
        session_name: caller.session_name.clone(),
        assumed_by: caller.assumed_by.clone(),
        write: !journal::is_read(&action),
        action,
        implied: std::mem::take(&mut world.call.implied),
        resources: std::mem::take(&mut world.call.resources),
        region: call.region.clone(),
        parameters: call.input.parameters(),
        outcome,
        code,
        reason,
        changed: world.call.changed,
        request_id: world.call.request_id.clone(),
        via: via.map(str::to_owned),
    };
    world.journal.push(entry);
}

fn journal_unknown(world: &mut World, call: &ApiCall, error: &ApiError, request_id: &str) {
    let action = call.iam_action();
    let entry = Entry {
        seq: 0,
        time_ms: world.now_ms(),
        account: String::new(),
        principal: format!("unknown access key {}", call.access_key),
        session_name: None,
        assumed_by: None,
        write: !journal::is_read(&action),
        action,
        implied: Vec::new(),
        resources: Vec::new(),
        region: call.region.clone(),
        parameters: call.input.parameters(),
        outcome: Outcome::Error,
        code: Some(error.code.clone()),
        reason: Some(error.message.clone()),
        changed: false,
        request_id: request_id.to_owned(),
        via: None,
    };
    world.journal.push(entry);
}

fn describe_outcome(reply: &Reply) -> (Outcome, Option<String>, Option<String>) {
    let Err(error) = reply else {
        return (Outcome::Allowed, None, None);
    };
    let outcome = if error.code.starts_with("DryRunOperation") {
        Outcome::Allowed
    } else if error.denied.is_some() {
        Outcome::Denied
    } else {
        Outcome::Error
    };
    let reason = error.denied.as_ref().map_or_else(|| error.message.clone(), |denied| denied.message());
    (outcome, Some(error.code.clone()), Some(reason))
}

/// Takes a token for the call; true when the bucket is empty.
fn over_rate_limit(world: &mut World, caller: &Caller, call: &ApiCall) -> bool {
    let action = call.iam_action();
    let lower = action.to_ascii_lowercase();
    let Some(limit) = world
        .settings
        .rate_limits
        .iter()
        .find(|limit| Arn::wildcard_match(&lower, &limit.action.to_ascii_lowercase()))
        .cloned()
    else {
        return false;
    };
    let now = world.now_ms();
    let bucket =
        world.buckets.entry(format!("{}/{}/{action}", caller.account, call.region)).or_insert((limit.burst, now));
    let (tokens, last) = *bucket;
    let seconds = Duration::from_millis(now - last).as_secs_f64();
    let tokens = (tokens + seconds * limit.per_second).min(limit.burst);
    let empty = tokens < 1.0;
    *bucket = (if empty { tokens } else { tokens - 1.0 }, now);
    empty
}

fn throttled(service: Service) -> ApiError {
    let status = if service == Service::Ec2 { 503 } else { 400 };
    ApiError::new(status, service.throttling_code(), "Request limit exceeded.")
}

fn internal_error(service: Service) -> ApiError {
    let code = match service {
        Service::Ec2 => "InternalError",
        Service::Iam | Service::Sts => "ServiceFailure",
        Service::Kms => "KMSInternalException",
        Service::Organizations => "ServiceException",
    };
    ApiError::new(500, code, "An internal error has occurred")
}

fn respond(service: Service, action: &str, reply: Reply, request_id: String) -> Response {
    let (status, body) = match reply {
        Ok(body) => (200, wire::render(service, action, &body, &request_id)),
        Err(error) => (error.status, error.render(service, &request_id)),
    };
    Response {
        status,
        content_type: if service.speaks_json() { "application/x-amz-json-1.1" } else { "text/xml;charset=UTF-8" },
        request_id,
        body,
    }
}
