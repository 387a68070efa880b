//! Who calls, and whether they may.

use crate::iam;
use crate::kms;
use crate::policy::{NamedAs, Policy, Request, Verdict};
use crate::world::{Allowed, ServiceControlPolicy, World};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Condition context: keys as AWS spells them, each with its values.
pub type Context = BTreeMap<String, Vec<String>>;

/// What kind of principal calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerKind {
    /// The account itself; identity policies do not limit it.
    Root,
    User,
    /// A session of a role, service-linked roles included.
    Role,
}

/// The caller of an API call.
#[derive(Debug, Clone)]
pub struct Caller {
    pub account: String,
    /// The principal: `arn:aws:iam::A:root`, `…:user/x` or `…:role/x`.
    pub arn: String,
    /// As GetCallerIdentity shows it; for a role `arn:aws:sts::A:assumed-role/x/session`.
    pub session_arn: String,
    pub session_name: Option<String>,
    pub session_policy: Option<Arc<Policy>>,
    /// The principal that made the session with AssumeRole.
    pub assumed_by: Option<String>,
    /// Tags of the session and of the principal.
    pub tags: BTreeMap<String, String>,
    pub kind: CallerKind,
    /// The unique id: the account id, `AIDA…`, or `AROA…`.
    pub principal_id: String,
}

impl Caller {
    /// The root user of `account`.
    pub fn root(account: &str) -> Self {
        let arn = format!("arn:aws:iam::{account}:root");
        Self {
            account: account.to_owned(),
            session_arn: arn.clone(),
            arn,
            session_name: None,
            session_policy: None,
            assumed_by: None,
            tags: BTreeMap::new(),
            kind: CallerKind::Root,
            principal_id: account.to_owned(),
        }
    }
}

/// Which side refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    ServiceControlPolicy,
    IdentityPolicy,
    SessionPolicy,
    KeyPolicy,
    TrustPolicy,
}

/// A call that no policy allows, or that one denies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The principal's session ARN.
    pub principal: String,
    pub action: String,
    pub resource: String,
    pub by: Refusal,
    /// A Deny statement matched; otherwise no Allow did.
    pub explicit: bool,
    /// The ARN of the policy whose statement that is, where AWS says it.
    pub policy: Option<String>,
}

impl Denied {
    /// AWS's sentence about it; the ARN of a policy since 2026 ("Enhanced access denied error messages with policy ARNs", AWS
    /// Security Blog), and a resource only where the action has one.
    pub fn message(&self) -> String {
        let (article, policy) = match self.by {
            Refusal::ServiceControlPolicy => ("a", "service control policy"),
            Refusal::IdentityPolicy => ("an", "identity-based policy"),
            Refusal::SessionPolicy => ("a", "session policy"),
            Refusal::KeyPolicy | Refusal::TrustPolicy => ("a", "resource-based policy"),
        };
        let why = if self.explicit {
            let arn = self.policy.as_ref().map(|arn| format!(": {arn}")).unwrap_or_default();
            format!("with an explicit deny in {article} {policy}{arn}")
        } else {
            format!("because no {policy} allows the {} action", self.action)
        };
        let resource = if self.resource == "*" { String::new() } else { format!(" on resource: {}", self.resource) };
        format!("User: {} is not authorized to perform: {}{resource} {why}", self.principal, self.action)
    }
}

/// Whether the caller's identity policies and session policy allow `action` on
/// `resource` (an ARN, or `*` for an action without one). Resource policies are
/// not looked at; for a key's there is [`authorize_key`].
///
/// The keys about the caller, the region and the time are added to `context`.
pub fn authorize(
    world: &World,
    caller: &Caller,
    action: &str,
    resource: &str,
    context: &Context,
) -> Result<(), Denied> {
    let request = request(world, caller, action, resource, context);
    let refuse = |by, explicit| Err(denied(caller, action, resource, by, explicit));
    let identity = identity_verdict(world, caller, &request);
    let session = session_verdict(caller, &request);
    check_organization(world, caller, &request)?;
    if identity.denied {
        return refuse(Refusal::IdentityPolicy, true);
    }
    if session.denied {
        return refuse(Refusal::SessionPolicy, true);
    }
    if identity.allowed.is_none() {
        return refuse(Refusal::IdentityPolicy, false);
    }
    if session.allowed.is_none() {
        return refuse(Refusal::SessionPolicy, false);
    }
    keep_allowed(world, caller, request);
    Ok(())
}

/// Whether `action` on the key is allowed by key policy, grants, identity
/// policies and session policy together.
///
/// In the key's own account the key policy must allow the caller itself, or the
/// account and then an identity policy must. From another account key policy and
/// identity policy must both allow. A grant stands for both. A session policy
/// always limits, an explicit deny always wins.
pub fn authorize_key(
    world: &World,
    caller: &Caller,
    action: &str,
    key_arn: &str,
    context: &Context,
) -> Result<(), Denied> {
    authorize_key_with_tokens(world, caller, action, key_arn, context, &[])
}

/// As [`authorize_key`]; the grants of these tokens are effective at once.
pub fn authorize_key_with_tokens(
    world: &World,
    caller: &Caller,
    action: &str,
    key_arn: &str,
    context: &Context,
    grant_tokens: &[String],
) -> Result<(), Denied> {
    let refuse = |by, explicit| Err(denied(caller, action, key_arn, by, explicit));
    let Some(key) = kms::find(world, key_arn) else {
        return refuse(Refusal::KeyPolicy, false);
    };
    let mut context = context.clone();
    context.extend(key_context(caller, key));
    let request = request(world, caller, action, key_arn, &context);
    let key_policy = key.policy.effective(world.now_ms()).evaluate_for(&request, caller);
    let identity = identity_verdict(world, caller, &request);
    let session = session_verdict(caller, &request);
    check_organization(world, caller, &request)?;
    if key_policy.denied {
        return refuse(Refusal::KeyPolicy, true);
    }
    if identity.denied {
        return refuse(Refusal::IdentityPolicy, true);
    }
    if session.denied {
        return refuse(Refusal::SessionPolicy, true);
    }
    let granted = key.grants_allow(caller, action, &context, grant_tokens, world.now_ms());
    let mut needs_identity = false;
    if granted != Some(NamedAs::Itself) {
        needs_identity = match key_policy.allowed.max(granted) {
            None => return refuse(Refusal::KeyPolicy, false),
            Some(NamedAs::Account) => true,
            Some(NamedAs::Itself) => key.account != caller.account,
        };
        if needs_identity && identity.allowed.is_none() {
            return refuse(Refusal::IdentityPolicy, false);
        }
    }
    if session.allowed.is_none() {
        return refuse(Refusal::SessionPolicy, false);
    }
    if needs_identity {
        keep_allowed(world, caller, request);
    }
    Ok(())
}

/// What conditions can say about a key in any call.
pub(crate) fn key_context(caller: &Caller, key: &kms::Key) -> Context {
    let mut context = Context::from([("kms:CallerAccount".to_owned(), vec![caller.account.clone()])]);
    context.extend(key.tags.iter().map(|(tag, value)| (format!("aws:ResourceTag/{tag}"), vec![value.clone()])));
    if !key.aliases.is_empty() {
        context.insert("kms:ResourceAliases".to_owned(), key.aliases.clone());
    }
    context
}

/// Whether the caller may retire a grant on a key: one that names it (`named`)
/// unless its policies deny it, another when they allow it.
pub(crate) fn authorize_retirement(world: &World, caller: &Caller, key_arn: &str, named: bool) -> Result<(), Denied> {
    const ACTION: &str = "kms:RetireGrant";
    let request = request(world, caller, ACTION, key_arn, &Context::new());
    let (identity, session) = (identity_verdict(world, caller, &request), session_verdict(caller, &request));
    check_organization(world, caller, &request)?;
    if identity.denied || (!named && identity.allowed.is_none()) {
        return Err(denied(caller, ACTION, key_arn, Refusal::IdentityPolicy, identity.denied));
    }
    if session.denied || session.allowed.is_none() {
        return Err(denied(caller, ACTION, key_arn, Refusal::SessionPolicy, session.denied));
    }
    if !named {
        keep_allowed(world, caller, request);
    }
    Ok(())
}

/// For whoever wants to know what of a role's policies is needed.
pub(crate) fn keep_allowed(world: &World, caller: &Caller, request: Request) {
    if let (Some(allowed), CallerKind::Role) = (&world.allowed, caller.kind) {
        allowed.borrow_mut().push(Allowed { role: caller.arn.clone(), request });
    }
}

/// The service control policies that hold for the caller: at each level, from the root to its account, those that are
/// attached there. They hold for users and roles of member accounts, their root users too, and not for service-linked
/// roles ("Service control policies (SCPs)", Organizations user guide).
fn organization_policies<'w>(world: &'w World, caller: &Caller) -> &'w [Vec<ServiceControlPolicy>] {
    let organization = world.account(&caller.account).and_then(|account| account.organization.as_ref());
    match organization {
        Some(place) if place.management_account() != caller.account && !iam::is_service_linked(&caller.arn) => {
            &place.service_control_policies
        }
        _ => &[],
    }
}

/// Whether the caller's organization lets it: nothing denies, and at each level something allows ("SCP evaluation",
/// Organizations user guide).
pub(crate) fn check_organization(world: &World, caller: &Caller, request: &Request) -> Result<(), Denied> {
    let levels = organization_policies(world, caller);
    let refuse = |explicit| denied(caller, &request.action, &request.resource, Refusal::ServiceControlPolicy, explicit);
    if let Some(denying) = levels.iter().flatten().find(|policy| policy.document().evaluate(request).denied) {
        let arn = world
            .account(&caller.account)
            .and_then(|account| account.organization.as_ref())
            .map(|place| place.policy_arn(denying.id()));
        return Err(Denied { policy: arn, ..refuse(true) });
    }
    let allows = |policy: &ServiceControlPolicy| policy.document().evaluate(request).allowed.is_some();
    if levels.iter().all(|level| level.iter().any(allows)) { Ok(()) } else { Err(refuse(false)) }
}

/// What IAM's simulator says of them: it leaves out those that have any conditions ("Testing IAM policies with the IAM
/// policy simulator", IAM user guide). Nothing where there are none.
pub(crate) fn simulate_organization(world: &World, caller: &Caller, request: &Request) -> Option<bool> {
    let levels = organization_policies(world, caller);
    if levels.is_empty() {
        return None;
    }
    let verdicts = |level: &Vec<ServiceControlPolicy>| {
        let evaluated = level.iter().filter(|policy| !policy.has_conditions());
        evaluated.map(|policy| policy.document().evaluate(request)).collect::<Vec<_>>()
    };
    let levels: Vec<Vec<Verdict>> = levels.iter().map(verdicts).collect();
    let denied = levels.iter().flatten().any(|verdict| verdict.denied);
    Some(!denied && levels.iter().all(|level| level.iter().any(|verdict| verdict.allowed.is_some())))
}

/// The statements that deny the request, of the policies of that kind.
pub(crate) fn denying_statements(
    world: &World,
    caller: &Caller,
    request: &Request,
    by: Refusal,
) -> Vec<serde_json::Value> {
    match by {
        Refusal::ServiceControlPolicy => {
            let policies = organization_policies(world, caller).iter().flatten();
            policies.flat_map(|policy| policy.document().denying(request)).collect()
        }
        Refusal::IdentityPolicy => iam::denying_statements(world, &caller.arn, request),
        Refusal::SessionPolicy => caller.session_policy.iter().flat_map(|policy| policy.denying(request)).collect(),
        Refusal::KeyPolicy | Refusal::TrustPolicy => Vec::new(),
    }
}

/// A request with the keys about the caller, the region and the time.
pub(crate) fn request(world: &World, caller: &Caller, action: &str, resource: &str, context: &Context) -> Request {
    Request::new(action, resource, &full_context(world, caller, resource, context))
}

/// The keys about the caller, the region and the time, and those of the call.
pub(crate) fn full_context(world: &World, caller: &Caller, resource: &str, context: &Context) -> Context {
    let mut all = context.clone();
    let mut add = |key: &str, value: String| {
        all.entry(key.to_owned()).or_insert_with(|| vec![value]);
    };
    add("aws:PrincipalArn", caller.arn.clone());
    add("aws:PrincipalAccount", caller.account.clone());
    add(
        "aws:PrincipalType",
        match caller.kind {
            CallerKind::Root => "Account",
            CallerKind::User => "User",
            CallerKind::Role => "AssumedRole",
        }
        .to_owned(),
    );
    add("aws:PrincipalIsAWSService", "false".to_owned());
    add("aws:SecureTransport", "true".to_owned());
    add("aws:CurrentTime", world.timestamp());
    add("aws:EpochTime", crate::world::epoch_seconds().to_string());
    if !world.call.region.is_empty() {
        add("aws:RequestedRegion", world.call.region.clone());
    }
    match (&caller.kind, &caller.session_name) {
        (CallerKind::Role, Some(session)) => {
            add("aws:userid", format!("{}:{session}", caller.principal_id));
        }
        _ => add("aws:userid", caller.principal_id.clone()),
    }
    if let (CallerKind::User, Some((_, name))) = (&caller.kind, caller.arn.rsplit_once('/')) {
        add("aws:username", name.to_owned());
    }
    let organization = |account: &str| world.account(account).and_then(|account| account.organization.as_ref());
    if let Some(account) = resource.split(':').nth(4).filter(|id| !id.is_empty()) {
        add("aws:ResourceAccount", account.to_owned());
        if let Some(organization) = organization(account) {
            add("aws:ResourceOrgID", organization.id().to_owned());
            add("aws:ResourceOrgPaths", organization.path());
        }
    }
    if let Some(organization) = organization(&caller.account) {
        add("aws:PrincipalOrgID", organization.id().to_owned());
    }
    for (tag, value) in &caller.tags {
        add(&format!("aws:PrincipalTag/{tag}"), value.clone());
    }
    all
}

/// What the caller's own policies say; root is allowed everything.
pub(crate) fn identity_verdict(world: &World, caller: &Caller, request: &Request) -> Verdict {
    if caller.kind == CallerKind::Root {
        return Verdict { denied: false, allowed: Some(NamedAs::Itself) };
    }
    iam::identity_verdict(world, &caller.arn, request)
}

fn session_verdict(caller: &Caller, request: &Request) -> Verdict {
    match &caller.session_policy {
        Some(policy) => policy.evaluate(request),
        None => Verdict { denied: false, allowed: Some(NamedAs::Itself) },
    }
}

pub(crate) fn denied(caller: &Caller, action: &str, resource: &str, by: Refusal, explicit: bool) -> Denied {
    Denied {
        principal: caller.session_arn.clone(),
        action: action.to_owned(),
        resource: resource.to_owned(),
        by,
        explicit,
        policy: None,
    }
}
