//! AWS for the tests beside the functions: what the clients send is read, and a test's closure answers it.
//!
//! DynamoDB is the [`table`], which evaluates conditions, and every role can be assumed; both unless the closure answers.
//! No permission is evaluated: that is the sandbox's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

pub mod ec2;
pub mod iam;
pub mod kms;
pub mod table;

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ami_share_core::{Hub, hub::Invocation, settings::Settings};
use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn},
        orchestrator::{HttpRequest, HttpResponse},
    },
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;
use serde_json::{Map, Value, json};

use table::Table;

/// The account of the functions and their table.
pub const HUB: &str = "333333333333";

/// When every test begins: 2026-11-27T20:00:00Z.
pub const NOW_MS: u64 = 1_795_809_600_000;

/// How long an invocation may take.
pub const TIME_LIMIT: Duration = Duration::from_secs(110);

/// A call, as a client sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Whose role makes it.
    pub account: String,
    pub region: String,
    /// As endpoints name it, such as `ec2`.
    pub service: String,
    pub operation: String,
    /// The fields of a service that speaks JSON; of the others the parameters, such as `Owner.1`.
    pub arguments: Value,
}

impl Call {
    /// The parameters of a list, such as `SnapshotId.1` and what follows.
    pub fn list(&self, name: &str) -> Vec<&str> {
        let of_list = |parameter: &str| parameter.rsplit_once('.').is_some_and(|(of, _)| of == name);
        let parameters = self.arguments.as_object().into_iter().flatten();
        parameters.filter(|(parameter, _)| of_list(parameter)).filter_map(|(_, value)| value.as_str()).collect()
    }

    /// An argument that is text; empty where there is none.
    pub fn text(&self, name: &str) -> &str {
        self.arguments[name].as_str().unwrap_or_default()
    }
}

/// The body of an answer, or the code of an error.
pub type Answer = Result<String, &'static str>;

type Answering = dyn Fn(&Call) -> Option<Answer> + Send + Sync;

/// AWS, and a hub whose clients call it.
pub struct Aws {
    pub hub: Hub,
    shared: Arc<Shared>,
}

struct Shared {
    answer: Box<Answering>,
    table: Mutex<Table>,
    calls: Mutex<Vec<Call>>,
    now: Mutex<SystemTime>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Aws {
    /// Where `answer` has none, the table and STS answer, and nobody else does.
    pub fn answering(answer: impl Fn(&Call) -> Option<Answer> + Send + Sync + 'static) -> Self {
        let now = UNIX_EPOCH + Duration::from_millis(NOW_MS);
        let shared = Arc::new(Shared {
            answer: Box::new(answer),
            table: Mutex::default(),
            calls: Mutex::default(),
            now: Mutex::new(now),
        });
        let (connector, clock) = (Connector(Arc::clone(&shared)), Clock(Arc::clone(&shared)));
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials(HUB)))
            .http_client(http_client_fn(move |_, _| SharedHttpConnector::new(connector.clone())))
            .time_source(clock)
            .retry_config(RetryConfig::disabled())
            .build();
        let invocation = Invocation { id: "1".to_owned(), deadline: now + TIME_LIMIT };
        Self { hub: Hub::new(settings(), config).invoked(invocation), shared }
    }

    /// With the table only.
    pub fn with_table() -> Self {
        Self::answering(|_| None)
    }

    pub fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.shared.table)
    }

    /// Notes `gift`, as share-ami does, with the attributes of `more`.
    pub fn note(&self, gift: &Value, more: &Value) {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (execution, image) = (text(&gift["execution"]), text(&gift["image"]["imageId"]));
        let mut item = json!({
            "id": { "S": format!("target#{}", text(&gift["target"]["accountId"])) },
            "part": { "S": format!("{image}#{execution}") },
            "imageId": { "S": image },
            "notedAt": { "N": NOW_MS.to_string() },
            "gift": { "S": gift.to_string() },
        });
        item.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.table().put(&item);
    }

    /// What was called, in its order.
    pub fn calls(&self) -> Vec<Call> {
        lock(&self.shared.calls).clone()
    }

    /// What was called of `operation`.
    pub fn calls_of(&self, operation: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.operation == operation).collect()
    }

    /// Calls in other accounts that the policy of no session there allows, such as `ec2:DescribeImages`.
    pub fn calls_beyond_sessions(&self) -> BTreeSet<String> {
        let allowed = |account: &str, action: &str| {
            self.calls_of("AssumeRole").iter().filter(|call| account_of(call.text("RoleArn")) == account).any(|call| {
                let policy: Value = serde_json::from_str(call.text("Policy")).unwrap();
                policy["Statement"][0]["Action"].as_array().unwrap().iter().any(|allowed| allowed == action)
            })
        };
        let elsewhere = self.calls().into_iter().filter(|call| call.account != HUB);
        let actions = elsewhere.map(|call| (call.account, format!("{}:{}", call.service, call.operation)));
        actions.filter(|(account, action)| !allowed(account, action)).map(|(_, action)| action).collect()
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        *lock(&self.shared.now) += time;
    }
}

fn credentials(account: &str) -> Credentials {
    Credentials::new(account, "secret", None, None, "mocked")
}

fn settings() -> Settings {
    let table = format!("arn:aws:dynamodb:eu-west-1:{HUB}:table/records");
    let of = |name: &str| match name {
        "RECORD_TABLE_ARN" => Some(table.clone()),
        "SOURCE_ACCOUNT_ID" => Some("111111111111".to_owned()),
        name if name.ends_with("_NAME") || name == "EXTERNAL_ID" => Some(name.to_owned()),
        _ => None,
    };
    Settings::from_variables(of).unwrap()
}

#[derive(Debug, Clone)]
struct Clock(Arc<Shared>);

impl TimeSource for Clock {
    fn now(&self) -> SystemTime {
        *lock(&self.0.now)
    }
}

#[derive(Debug, Clone)]
struct Connector(Arc<Shared>);

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let call = read(&request);
        lock(&self.0.calls).push(call.clone());
        let answer = (self.0.answer)(&call).unwrap_or_else(|| match call.service.as_str() {
            "dynamodb" => {
                let answer = lock(&self.0.table).call(&call.operation, &call.arguments);
                answer.map(|answer| answer.to_string()).map_err(|refused| refused.name)
            }
            "sts" => Ok(session(call.text("RoleArn"))),
            _ => panic!("nobody answers {call:?}"),
        });
        HttpConnectorFuture::ready(Ok(write(&call.service, answer)))
    }
}

/// Who calls what is in the scope of the signature.
fn read(request: &HttpRequest) -> Call {
    let scope = request.headers().get("authorization").and_then(|header| header.split("Credential=").nth(1));
    let scope: Vec<&str> = scope.unwrap_or_default().split('/').collect();
    let [account, _, region, service, ..] = scope[..] else { panic!("{request:?} is not signed") };
    let body = request.body().bytes().unwrap_or_default();
    let (operation, arguments) = match request.headers().get("x-amz-target") {
        Some(target) => {
            (target.rsplit('.').next().unwrap_or_default().to_owned(), serde_json::from_slice(body).unwrap())
        }
        None => {
            let parameters = form_urlencoded::parse(body).map(|(name, value)| (name.into_owned(), json!(value)));
            let parameters: Map<String, Value> = parameters.collect();
            (parameters["Action"].as_str().unwrap_or_default().to_owned(), Value::Object(parameters))
        }
    };
    let [account, region, service] = [account, region, service].map(str::to_owned);
    Call { account, region, service, operation, arguments }
}

fn write(service: &str, answer: Answer) -> HttpResponse {
    let (status, body) = match (answer, service) {
        (Ok(body), _) => (200, body),
        (Err(code), "dynamodb" | "kms" | "ssm" | "states") => {
            (400, json!({ "__type": code, "message": code }).to_string())
        }
        (Err(code), "ec2") => (
            400,
            format!(
                "<Response><Errors><Error><Code>{code}</Code><Message>{code}</Message></Error></Errors></Response>"
            ),
        ),
        (Err(code), _) => {
            (400, format!("<ErrorResponse><Error><Code>{code}</Code><Message>{code}</Message></Error></ErrorResponse>"))
        }
    };
    HttpResponse::new(StatusCode::try_from(status).unwrap(), SdkBody::from(body))
}

fn account_of(role: &str) -> &str {
    role.split(':').nth(4).unwrap_or_default()
}

/// Of a role, with its account's credentials.
fn session(role: &str) -> String {
    let account = account_of(role);
    format!(
        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>{account}</AccessKeyId>\
         <SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken>\
         <Expiration>2100-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )
}
