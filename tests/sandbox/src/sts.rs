//! STS: AssumeRole, GetCallerIdentity, DecodeAuthorizationMessage, and whom an access key belongs to.

use crate::auth::{self, Caller, CallerKind, Context, Refusal};
use crate::authorization;
use crate::policy::{NamedAs, Policy, PolicyKind, Verdict, root_arn};
use crate::wire::{ApiError, Params, Reply, Service, Xml};
use crate::world::{World, epoch_seconds};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A session policy's size, in characters.
const SESSION_POLICY_LIMIT: usize = 2_048;
/// How long a session of a role may last that another role's session assumed.
const CHAINED_SESSION_SECONDS: i64 = 3_600;

/// The access keys that the sandbox knows, but for those of root users.
#[derive(Debug, Default)]
pub struct Credentials {
    keys: BTreeMap<String, KnownKey>,
}

#[derive(Debug, Clone)]
struct KnownKey {
    /// Temporary keys must be sent with it; `None` also for keys learned upstream.
    token: Option<String>,
    identity: Identity,
}

#[derive(Debug, Clone)]
enum Identity {
    Root {
        account: String,
    },
    User {
        arn: String,
    },
    Session {
        account: String,
        role_name: String,
        /// The role's unique id when the session began; `None` if learned upstream.
        role_id: Option<String>,
        name: String,
        policy: Option<Arc<Policy>>,
        /// The principal that called AssumeRole.
        assumed_by: Option<String>,
        tags: BTreeMap<String, String>,
    },
}

/// An access key as its owner gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessKey {
    pub id: String,
    pub secret: String,
    /// Of temporary keys.
    pub token: Option<String>,
}

impl Credentials {
    pub(crate) fn forget(&mut self, access_key: &str) {
        self.keys.remove(access_key);
    }

    pub(crate) fn knows(&self, access_key: &str) -> bool {
        is_root_key(access_key) || self.keys.contains_key(access_key)
    }

    /// Remembers what the upstream STS said about an access key: the ARN that
    /// GetCallerIdentity gave. Returns false for an ARN of an unknown form.
    pub fn learn(&mut self, access_key: &str, arn: &str) -> bool {
        let parts: Vec<&str> = arn.split(':').collect();
        let &["arn", _, service, _, account, resource] = parts.as_slice() else {
            return false;
        };
        let identity = match (service, resource.split('/').collect::<Vec<_>>().as_slice()) {
            (_, ["root"]) => Identity::Root { account: account.to_owned() },
            ("sts", ["assumed-role", role, session]) => Identity::Session {
                account: account.to_owned(),
                role_name: (*role).to_owned(),
                role_id: None,
                name: (*session).to_owned(),
                policy: None,
                assumed_by: None,
                tags: BTreeMap::new(),
            },
            ("iam", ["user", ..]) => Identity::User { arn: arn.to_owned() },
            _ => return false,
        };
        self.keys.insert(access_key.to_owned(), KnownKey { token: None, identity });
        true
    }
}

fn is_root_key(access_key: &str) -> bool {
    access_key.len() == 12 && access_key.bytes().all(|byte| byte.is_ascii_digit())
}

/// Who calls with this access key. `None` when the key is unknown, its session
/// token is wrong, or its user or role is gone.
pub fn resolve(world: &World, access_key: &str, token: Option<&str>) -> Option<Caller> {
    if is_root_key(access_key) {
        return Some(Caller::root(access_key));
    }
    let known = world.credentials.keys.get(access_key)?;
    if known.token.is_some() && known.token.as_deref() != token {
        return None;
    }
    match &known.identity {
        Identity::Root { account } => Some(Caller::root(account)),
        Identity::User { arn } => {
            let entity = world.account(arn.split(':').nth(4)?)?.iam.entity(arn)?;
            Some(Caller {
                account: arn.split(':').nth(4)?.to_owned(),
                arn: arn.clone(),
                session_arn: arn.clone(),
                session_name: None,
                session_policy: None,
                assumed_by: None,
                tags: entity.tags.clone(),
                kind: CallerKind::User,
                principal_id: entity.id.clone(),
            })
        }
        Identity::Session { account, role_name, role_id, name, policy, assumed_by, tags } => {
            let role = world.account(account).and_then(|account| account.iam.roles.get(role_name));
            if let Some(role_id) = role_id
                && role.map(|role| &role.entity.id) != Some(role_id)
            {
                return None;
            }
            let mut all_tags = role.map_or_else(BTreeMap::new, |role| role.entity.tags.clone());
            all_tags.extend(tags.clone());
            Some(Caller {
                account: account.clone(),
                // A role that only the upstream knows has no policies here, so it may do nothing.
                arn: role
                    .map_or_else(|| format!("arn:aws:iam::{account}:role/{role_name}"), |role| role.entity.arn.clone()),
                session_arn: format!("arn:aws:sts::{account}:assumed-role/{role_name}/{name}"),
                session_name: Some(name.clone()),
                session_policy: policy.clone(),
                assumed_by: assumed_by.clone(),
                tags: all_tags,
                kind: CallerKind::Role,
                principal_id: role.map_or_else(String::new, |role| role.entity.id.clone()),
            })
        }
    }
}

/// The error for an access key that nobody knows, as the service words it.
pub(crate) fn unknown_key(service: Service) -> ApiError {
    match service {
        Service::Ec2 => {
            ApiError::new(401, "AuthFailure", "AWS was not able to validate the provided access credentials")
        }
        Service::Iam | Service::Sts => {
            ApiError::new(403, "InvalidClientTokenId", "The security token included in the request is invalid.")
        }
        Service::Kms | Service::Organizations => {
            ApiError::new(400, "UnrecognizedClientException", "The security token included in the request is invalid.")
        }
    }
}

/// A new access key of the user `arn`.
pub(crate) fn issue_user_key(world: &mut World, arn: &str) -> AccessKey {
    let key = new_key(world, "AKIA", false);
    let identity = Identity::User { arn: arn.to_owned() };
    world.credentials.keys.insert(key.id.clone(), KnownKey { token: None, identity });
    key
}

/// A session of a role without AssumeRole, as an AWS service that the role trusts
/// gets one: Lambda, or Auto Scaling for its service-linked role. `None` when
/// there is no such role.
pub fn issue_session(world: &mut World, role_arn: &str, session_name: &str) -> Option<AccessKey> {
    issue(world, role_arn, session_name, None, None, BTreeMap::new())
}

fn issue(
    world: &mut World,
    role_arn: &str,
    session_name: &str,
    policy: Option<Arc<Policy>>,
    assumed_by: Option<String>,
    tags: BTreeMap<String, String>,
) -> Option<AccessKey> {
    let account = role_arn.split(':').nth(4)?.to_owned();
    let entity = world.account(&account)?.iam.entity(role_arn)?;
    let identity = Identity::Session {
        role_name: entity.name.clone(),
        role_id: Some(entity.id.clone()),
        account,
        name: session_name.to_owned(),
        policy,
        assumed_by,
        tags,
    };
    let key = new_key(world, "ASIA", true);
    world.credentials.keys.insert(key.id.clone(), KnownKey { token: key.token.clone(), identity });
    Some(key)
}

fn new_key(world: &mut World, prefix: &str, temporary: bool) -> AccessKey {
    let mut number = || format!("{:016X}", world.next_number());
    AccessKey {
        id: format!("{prefix}{}", number()),
        secret: format!("{}{}{}", number(), number(), &number()[..8]),
        token: temporary.then(|| format!("{}{}{}{}", number(), number(), number(), number())),
    }
}

/// Handles one STS call.
pub fn handle(world: &mut World, caller: &Caller, action: &str, params: &Params) -> Reply {
    match action {
        "GetCallerIdentity" => Ok(caller_identity(caller)),
        "AssumeRole" => assume_role(world, caller, params),
        "DecodeAuthorizationMessage" => decode_authorization_message(world, caller, params),
        _ => Err(ApiError::bad_request("InvalidAction", format!("The sandbox has no sts:{action}"))),
    }
}

fn caller_identity(caller: &Caller) -> String {
    let user_id = match &caller.session_name {
        Some(session) => format!("{}:{session}", caller.principal_id),
        None => caller.principal_id.clone(),
    };
    let mut xml = Xml::new();
    xml.elem("Arn", &caller.session_arn).elem("UserId", user_id).elem("Account", &caller.account);
    xml.finish()
}

/// The longest encoded message that STS takes (STS API reference).
const ENCODED_MESSAGE_LIMIT: usize = 10_240;

fn decode_authorization_message(world: &World, caller: &Caller, params: &Params) -> Reply {
    let encoded = params.require("EncodedMessage")?;
    auth::authorize(world, caller, "sts:DecodeAuthorizationMessage", "*", &Context::new())
        .map_err(|denied| Service::Sts.denied(denied))?;
    if encoded.len() > ENCODED_MESSAGE_LIMIT {
        return Err(invalid("1 validation error detected: Value at 'encodedMessage' failed to satisfy constraint"));
    }
    let message = authorization::decode(&caller.account, encoded).ok_or_else(|| {
        ApiError::bad_request("InvalidAuthorizationMessageException", "Invalid authorization message")
    })?;
    let mut xml = Xml::new();
    xml.elem("DecodedMessage", message);
    Ok(xml.finish())
}

fn assume_role(world: &mut World, caller: &Caller, params: &Params) -> Reply {
    let role_arn = params.require("RoleArn")?;
    let session_name = params.require("RoleSessionName")?;
    world.note_resource(role_arn);
    check_session_name(session_name)?;
    let tags = read_tags(params);
    let context = assume_context(params, session_name, &tags);
    authorize_assume(world, caller, "sts:AssumeRole", role_arn, &context)?;
    if !tags.is_empty() {
        authorize_assume(world, caller, "sts:TagSession", role_arn, &context)?;
    }
    let source_identity = params.get("SourceIdentity");
    if let Some(identity) = source_identity {
        check_session_name(identity)?;
        // It has this key, and not those of AssumeRole ("Actions, resources, and condition keys for AWS STS").
        let context = Context::from([("sts:SourceIdentity".to_owned(), vec![identity.to_owned()])]);
        authorize_assume(world, caller, "sts:SetSourceIdentity", role_arn, &context)?;
    }
    let policy = session_policy(params)?;
    let seconds = duration(world, caller, role_arn, params)?;
    let key = issue(world, role_arn, session_name, policy, Some(caller.arn.clone()), tags)
        .ok_or_else(|| refuse_root_or_missing(caller, role_arn))?;
    let assumed =
        resolve(world, &key.id, key.token.as_deref()).ok_or_else(|| refuse_root_or_missing(caller, role_arn))?;
    let expiration = i64::try_from(epoch_seconds()).unwrap_or(0) + seconds;
    let expiration = chrono::DateTime::from_timestamp(expiration, 0).unwrap_or_default().format("%Y-%m-%dT%H:%M:%SZ");
    let mut xml = Xml::new();
    xml.nest("Credentials", |xml| {
        xml.elem("AccessKeyId", &key.id)
            .elem("SecretAccessKey", &key.secret)
            .opt("SessionToken", key.token.as_ref())
            .elem("Expiration", expiration);
    })
    .nest("AssumedRoleUser", |xml| {
        xml.elem("AssumedRoleId", format!("{}:{session_name}", assumed.principal_id)).elem("Arn", &assumed.session_arn);
    })
    .opt("SourceIdentity", source_identity);
    Ok(xml.finish())
}

/// Trust policy, the caller's identity policies and its session policy together.
///
/// From another account the trust policy and the caller's identity policy must
/// both allow; in the same account a trust policy that names the caller itself
/// is enough. Root users cannot assume roles.
fn authorize_assume(
    world: &World,
    caller: &Caller,
    action: &str,
    role_arn: &str,
    context: &Context,
) -> Result<(), ApiError> {
    let refuse = |by, explicit| Err(Service::Sts.denied(auth::denied(caller, action, role_arn, by, explicit)));
    if caller.kind == CallerKind::Root {
        return Err(refuse_root_or_missing(caller, role_arn));
    }
    let account = role_arn.split(':').nth(4).unwrap_or_default();
    let role = world.account(account).and_then(|account| {
        let name = &account.iam.entity(role_arn)?.name;
        account.iam.roles.get(name)
    });
    let Some(role) = role else {
        return refuse(Refusal::TrustPolicy, false);
    };
    let mut context = context.clone();
    for (tag, value) in &role.entity.tags {
        for prefix in ["aws", "iam"] {
            let key = format!("{prefix}:ResourceTag/{tag}");
            context.insert(key, vec![value.clone()]);
        }
    }
    let request = auth::request(world, caller, action, role_arn, &context);
    auth::check_organization(world, caller, &request).map_err(|denied| Service::Sts.denied(denied))?;
    let trust = role.trust.evaluate_for(&request, caller);
    let identity = auth::identity_verdict(world, caller, &request);
    let session = match &caller.session_policy {
        Some(policy) => policy.evaluate(&request),
        None => Verdict { denied: false, allowed: Some(NamedAs::Itself) },
    };
    if trust.denied {
        return refuse(Refusal::TrustPolicy, true);
    }
    if identity.denied {
        return refuse(Refusal::IdentityPolicy, true);
    }
    if session.denied {
        return refuse(Refusal::SessionPolicy, true);
    }
    let needs_identity = match trust.allowed {
        None => return refuse(Refusal::TrustPolicy, false),
        Some(NamedAs::Account) => true,
        Some(NamedAs::Itself) => account != caller.account,
    };
    if needs_identity && identity.allowed.is_none() {
        return refuse(Refusal::IdentityPolicy, false);
    }
    if session.allowed.is_none() {
        return refuse(Refusal::SessionPolicy, false);
    }
    if needs_identity {
        auth::keep_allowed(world, caller, request);
    }
    Ok(())
}

fn refuse_root_or_missing(caller: &Caller, role_arn: &str) -> ApiError {
    if caller.arn == root_arn(&caller.account) {
        let mut error = ApiError::new(403, "AccessDenied", "Roles may not be assumed by root accounts.");
        error.denied = Some(Box::new(auth::denied(caller, "sts:AssumeRole", role_arn, Refusal::TrustPolicy, true)));
        return error;
    }
    Service::Sts.denied(auth::denied(caller, "sts:AssumeRole", role_arn, Refusal::TrustPolicy, false))
}

fn assume_context(params: &Params, session_name: &str, tags: &BTreeMap<String, String>) -> Context {
    let mut context = Context::from([("sts:RoleSessionName".to_owned(), vec![session_name.to_owned()])]);
    if let Some(external_id) = params.get("ExternalId") {
        context.insert("sts:ExternalId".to_owned(), vec![external_id.to_owned()]);
    }
    if let Some(identity) = params.get("SourceIdentity") {
        context.insert("sts:SourceIdentity".to_owned(), vec![identity.to_owned()]);
    }
    for (tag, value) in tags {
        context.insert(format!("aws:RequestTag/{tag}"), vec![value.clone()]);
    }
    context.insert("aws:TagKeys".to_owned(), tags.keys().cloned().collect());
    context
}

fn read_tags(params: &Params) -> BTreeMap<String, String> {
    params
        .structs("Tags")
        .into_iter()
        .filter_map(|tag| {
            let value = tag.get("Value").unwrap_or_default().to_owned();
            Some((tag.get("Key")?.to_owned(), value))
        })
        .collect()
}

fn session_policy(params: &Params) -> Result<Option<Arc<Policy>>, ApiError> {
    if !params.list("PolicyArns").is_empty() || !params.structs("PolicyArns").is_empty() {
        return Err(invalid("The sandbox takes a session policy inline only."));
    }
    let Some(text) = params.get("Policy") else {
        return Ok(None);
    };
    let size = text.chars().count();
    if size > SESSION_POLICY_LIMIT {
        return Err(invalid(format!(
            "1 validation error detected: Value at 'policy' failed to satisfy constraint: \
             Member must have length less than or equal to {SESSION_POLICY_LIMIT} (it has {size})"
        )));
    }
    Policy::parse(text, PolicyKind::Identity)
        .map(|policy| Some(Arc::new(policy)))
        .map_err(|message| ApiError::bad_request("MalformedPolicyDocument", message))
}

fn duration(world: &World, caller: &Caller, role_arn: &str, params: &Params) -> Result<i64, ApiError> {
    let seconds = params.int("DurationSeconds").unwrap_or(3_600);
    let account = role_arn.split(':').nth(4).unwrap_or_default();
    let limit = world
        .account(account)
        .and_then(|account| {
            let name = &account.iam.entity(role_arn)?.name;
            account.iam.roles.get(name)
        })
        .map_or(3_600, |role| role.max_session_duration);
    if caller.kind == CallerKind::Role && seconds > CHAINED_SESSION_SECONDS {
        return Err(invalid(
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
        ));
    }
    if seconds < 900 || seconds > limit {
        return Err(invalid("The requested DurationSeconds exceeds the MaxSessionDuration set for this role."));
    }
    Ok(seconds)
}

fn check_session_name(name: &str) -> Result<(), ApiError> {
    let valid =
        (2..=64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c));
    if valid {
        return Ok(());
    }
    Err(invalid(format!(
        "1 validation error detected: Value '{name}' at 'roleSessionName' failed to satisfy \
         constraint: Member must satisfy regular expression pattern: [\\w+=,.@-]*"
    )))
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::bad_request("ValidationError", message)
}

/// Whether a trust policy lets an AWS service such as `lambda.amazonaws.com`
/// assume the role.
pub fn service_may_assume(world: &World, role_arn: &str, service: &str) -> bool {
    let account = role_arn.split(':').nth(4).unwrap_or_default();
    let Some(role) = world.account(account).and_then(|account| {
        let name = &account.iam.entity(role_arn)?.name;
        account.iam.roles.get(name)
    }) else {
        return false;
    };
    let caller = Caller::root(account);
    let request = auth::request(world, &caller, "sts:AssumeRole", role_arn, &Context::new());
    let verdict = role.trust.evaluate_for_service(&request, service);
    verdict.allowed.is_some() && !verdict.denied
}
