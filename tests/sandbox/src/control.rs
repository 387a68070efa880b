//! HTTP control under `/_sandbox/`; all bodies are JSON. See the crate's
//! documentation for the list.

use crate::ec2::ImageState;
use crate::faults::{Fault, Hook};
use crate::http::{Request, Response};
use crate::sts;
use crate::wire::Params;
use crate::world::{Organization, Settings, World};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Handles a request; `path` is what follows `/_sandbox/`.
pub(crate) fn handle(world: &mut World, path: &str, request: &Request) -> Response {
    let (status, body) = match act(world, path, request) {
        Ok(body) => (200, body),
        Err((status, message)) => (status, json!({ "error": message })),
    };
    Response { status, content_type: "application/json", request_id: String::new(), body: body.to_string() }
}

fn act(world: &mut World, path: &str, request: &Request) -> Result<Value, (u16, String)> {
    let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match (request.method.as_str(), segments.as_slice()) {
        ("GET", ["health"]) => Ok(json!({ "status": "ok", "accounts": world.accounts.len() })),
        ("GET", ["journal"]) => {
            let query = Params::parse(request.query.as_bytes());
            let since = query.int("since").and_then(|seq| u64::try_from(seq).ok());
            Ok(json!({
                "entries": world.journal.since(since.unwrap_or(0)),
                "last": world.journal.last_seq(),
            }))
        }
        ("DELETE", ["journal"]) => {
            world.journal.clear();
            Ok(json!({}))
        }
        ("GET", ["faults"]) => Ok(json!({
            "faults": world.faults.faults(),
            "hooks": world.faults.hooks(),
            "failedHooks": world.faults.failed_hooks,
        })),
        ("POST", ["faults"]) => {
            for fault in one_or_many::<Fault>(&request.body)? {
                world.faults.add(fault);
            }
            Ok(json!({}))
        }
        ("DELETE", ["faults"]) => {
            world.faults.clear();
            Ok(json!({}))
        }
        ("POST", ["hooks"]) => {
            for hook in one_or_many::<Hook>(&request.body)? {
                world.faults.add_hook(hook);
            }
            Ok(json!({}))
        }
        ("GET", ["snapshot", account]) => Ok(world.snapshot(account)),
        ("GET", ["settings"]) => Ok(json!(world.settings)),
        ("POST", ["settings"]) => {
            let changes: Value = parse(&request.body)?;
            let mut settings = json!(world.settings);
            for (name, value) in changes.as_object().into_iter().flatten() {
                settings[name] = value.clone();
            }
            world.settings = serde_json::from_value::<Settings>(settings).map_err(|error| (400, error.to_string()))?;
            Ok(json!(world.settings))
        }
        ("POST", ["organization"]) => {
            let membership: Membership = parse(&request.body)?;
            world.set_organization(&membership.account, membership.organization);
            Ok(json!({}))
        }
        ("POST", ["image"]) => {
            let seeded: SeededImage = parse(&request.body)?;
            seed_image(world, &seeded).ok_or_else(|| (404, format!("There is no image {}", seeded.image_id)))?;
            Ok(json!({}))
        }
        ("GET", ["iam", account]) => Ok(world.export_iam(account)),
        ("POST", ["iam", account]) => {
            let iam: Value = parse(&request.body)?;
            world.import_iam(account, &iam).map_err(|message| (400, message))?;
            Ok(json!({}))
        }
        ("POST", ["sessions"]) => {
            let wanted: WantedSession = parse(&request.body)?;
            let key = sts::issue_session(world, &wanted.role_arn, &wanted.session_name)
                .ok_or_else(|| (404, format!("There is no role {}", wanted.role_arn)))?;
            Ok(json!({
                "accessKeyId": key.id,
                "secretAccessKey": key.secret,
                "sessionToken": key.token,
            }))
        }
        ("POST", ["reset"]) => {
            *world = World::new(world.settings.clone());
            Ok(json!({}))
        }
        (method, _) => Err((404, format!("There is no {method} /_sandbox/{path}"))),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Membership {
    account: String,
    /// `null` takes the account out of its organization.
    organization: Option<Organization>,
}

/// What no call can do to an image.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SeededImage {
    account: String,
    region: String,
    image_id: String,
    state: Option<ImageState>,
    /// Marketplace product codes.
    product_codes: Option<Vec<String>>,
}

/// `None` when there is no such image.
fn seed_image(world: &mut World, seeded: &SeededImage) -> Option<()> {
    let ec2 = world.accounts.get_mut(&seeded.account)?.ec2.get_mut(&seeded.region)?;
    let image = ec2.images.get_mut(&seeded.image_id)?;
    if let Some(state) = seeded.state {
        image.state = state;
    }
    if let Some(codes) = &seeded.product_codes {
        image.product_codes.clone_from(codes);
    }
    Some(())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WantedSession {
    role_arn: String,
    session_name: String,
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, (u16, String)> {
    serde_json::from_slice(body).map_err(|error| (400, error.to_string()))
}

fn one_or_many<T: DeserializeOwned>(body: &[u8]) -> Result<Vec<T>, (u16, String)> {
    let value: Value = parse(body)?;
    let values = match value {
        Value::Array(values) => values,
        single => vec![single],
    };
    values.into_iter().map(|value| serde_json::from_value(value).map_err(|error| (400, error.to_string()))).collect()
}
