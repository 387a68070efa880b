//! IAM: users, roles, policies, access keys, service-linked roles, simulation.
//!
//! Limits are those of IAM's quota page: trust policy and a user's inline
//! policies 2,048 characters, a group's 5,120 (there are no groups here), a
//! role's inline policies 10,240, a managed policy 6,144, white space not
//! counted; ten managed policies on a role or user; five versions of a policy.

use crate::auth::{self, Caller, CallerKind, Context};
use crate::policy::{Policy, PolicyKind, Request, Verdict};
use crate::wire::{ApiError, Params, Reply, Service, Xml};
use crate::world::{Versioned, World};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

const TRUST_POLICY_LIMIT: usize = 2_048;
const USER_INLINE_LIMIT: usize = 2_048;
const ROLE_INLINE_LIMIT: usize = 10_240;
const MANAGED_POLICY_LIMIT: usize = 6_144;
/// An account may ask for more.
const ATTACHED_QUOTA: usize = 10;
const VERSION_LIMIT: usize = 5;

/// IAM of one account.
#[derive(Debug, Clone)]
pub struct Iam {
    pub account: String,
    /// By name.
    pub roles: BTreeMap<String, Role>,
    /// By name.
    pub users: BTreeMap<String, User>,
    /// By ARN.
    pub policies: BTreeMap<String, ManagedPolicy>,
    /// How many managed policies a role may have, and a user.
    pub attached_quota: usize,
}

impl Iam {
    pub fn new(account: &str) -> Self {
        Self {
            account: account.to_owned(),
            roles: BTreeMap::new(),
            users: BTreeMap::new(),
            policies: BTreeMap::new(),
            attached_quota: ATTACHED_QUOTA,
        }
    }

    /// The user or role of that ARN.
    pub fn entity(&self, arn: &str) -> Option<&Entity> {
        let resource = arn.split(':').nth(5)?;
        let name = resource.rsplit('/').next()?;
        let entity =
            if resource.starts_with("role/") { &self.roles.get(name)?.entity } else { &self.users.get(name)?.entity };
        (entity.arn == arn).then_some(entity)
    }
}

/// What users and roles have in common.
#[derive(Debug, Clone)]
pub struct Entity {
    pub name: String,
    pub path: String,
    pub arn: String,
    /// `AIDA…` or `AROA…`
    pub id: String,
    pub created: String,
    /// When, in milliseconds, other services can see it.
    pub visible_from: u64,
    pub tags: BTreeMap<String, String>,
    pub inline: Versioned<BTreeMap<String, Arc<Policy>>>,
    /// ARNs of managed policies.
    pub attached: Versioned<Vec<String>>,
}

#[derive(Debug, Clone)]
pub struct Role {
    pub entity: Entity,
    pub trust: Arc<Policy>,
    pub description: Option<String>,
    pub max_session_duration: i64,
    /// `autoscaling.amazonaws.com`, of a service-linked role.
    pub service: Option<String>,
}

#[derive(Debug, Clone)]
pub struct User {
    pub entity: Entity,
    /// Access key ids.
    pub access_keys: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct ManagedPolicy {
    pub arn: String,
    pub name: String,
    pub path: String,
    pub id: String,
    pub description: Option<String>,
    pub created: String,
    /// By number.
    pub versions: BTreeMap<u32, Arc<Policy>>,
    pub default_version: u32,
    /// The default version's document.
    pub document: Versioned<Arc<Policy>>,
}

/// What the identity policies of the user or role `arn` say.
pub(crate) fn identity_verdict(world: &World, arn: &str, request: &Request) -> Verdict {
    let mut verdict = Verdict::default();
    each_identity_policy(world, arn, |policy| {
        let said = policy.evaluate(request);
        verdict.denied |= said.denied;
        verdict.allowed = verdict.allowed.max(said.allowed);
    });
    verdict
}

/// The statements of the identity policies of the user or role `arn` that deny the request.
pub(crate) fn denying_statements(world: &World, arn: &str, request: &Request) -> Vec<Value> {
    let mut statements = Vec::new();
    each_identity_policy(world, arn, |policy| statements.extend(policy.denying(request)));
    statements
}

fn each_identity_policy(world: &World, arn: &str, mut look: impl FnMut(&Policy)) {
    let Some((iam, entity)) = lookup(world, arn) else {
        return;
    };
    let now = world.now_ms();
    for policy in entity.inline.effective(now).values() {
        look(policy);
    }
    for policy_arn in entity.attached.effective(now) {
        if let Some(policy) = iam.policies.get(policy_arn) {
            look(policy.document.effective(now));
        } else if let Some(policy) = aws_managed_policy(policy_arn) {
            look(&policy);
        }
    }
    if is_service_linked(arn)
        && let Some(policy) = aws_managed_policy(SERVICE_ROLE_POLICY)
    {
        look(&policy);
    }
}

fn lookup<'a>(world: &'a World, arn: &str) -> Option<(&'a Iam, &'a Entity)> {
    let iam = &world.account(arn.split(':').nth(4)?)?.iam;
    Some((iam, iam.entity(arn)?))
}

/// The unique id of the user or role of that ARN, if it exists.
pub fn unique_id(world: &World, arn: &str) -> Option<String> {
    lookup(world, arn).map(|(_, entity)| entity.id.clone())
}

/// Whether a policy or grant may name this principal: an account, a user or role
/// that exists and has become visible, or a session of such a role.
pub fn principal_exists(world: &World, principal: &str) -> bool {
    if is_account_id(principal) {
        return true;
    }
    let parts: Vec<&str> = principal.split(':').collect();
    let &["arn", "aws", service, "", account, resource] = parts.as_slice() else {
        return false;
    };
    if !is_account_id(account) {
        return false;
    }
    match (service, resource.split('/').collect::<Vec<_>>().as_slice()) {
        ("iam", ["root"]) => true,
        ("iam", _) => lookup(world, principal).is_some_and(|(_, entity)| entity.visible_from <= world.now_ms()),
        ("sts", ["assumed-role", role, _]) => {
            world.account(account).is_some_and(|account| account.iam.roles.contains_key(*role))
        }
        _ => false,
    }
}

fn is_account_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether the ARN is a service-linked role's.
pub fn is_service_linked(arn: &str) -> bool {
    arn.contains(":role/aws-service-role/")
}

/// Whether the ARN is that of a role which Identity Center makes of a permission set.
fn is_of_identity_center(arn: &str) -> bool {
    arn.contains(":role/aws-reserved/")
}

/// What every service-linked role of the sandbox may do; its real policy is
/// AWS's own and holds no access to keys either.
const SERVICE_ROLE_POLICY: &str = "arn:aws:iam::aws:policy/aws-service-role/ServiceRolePolicy";

/// The documents of AWS's own managed policies that tests and role templates use.
fn aws_managed_policy(arn: &str) -> Option<Arc<Policy>> {
    static POLICIES: LazyLock<BTreeMap<&'static str, Arc<Policy>>> = LazyLock::new(|| {
        [
            ("arn:aws:iam::aws:policy/AdministratorAccess", json!(["*"])),
            ("arn:aws:iam::aws:policy/AmazonEC2FullAccess", json!(["ec2:*"])),
            (SERVICE_ROLE_POLICY, json!(["ec2:*", "iam:PassRole"])),
            (
                "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole",
                json!(["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"]),
            ),
            (
                "arn:aws:iam::aws:policy/AWSXRayDaemonWriteAccess",
                json!(["xray:PutTraceSegments", "xray:PutTelemetryRecords"]),
            ),
        ]
        .into_iter()
        .filter_map(|(arn, actions)| {
            let document = json!({
                "Version": "2012-10-17",
                "Statement": [{ "Effect": "Allow", "Action": actions, "Resource": "*" }],
            });
            let policy = Policy::parse(&document.to_string(), PolicyKind::Identity).ok()?;
            Some((arn, Arc::new(policy)))
        })
        .collect()
    });
    POLICIES.get(arn).cloned()
}

/// Handles one IAM call.
pub fn handle(world: &mut World, caller: &Caller, action: &str, params: &Params) -> Reply {
    let mut call = Call { world, caller, action, params };
    match action {
        "CreateRole" => call.create_role(),
        "GetRole" => call.get_role(),
        "DeleteRole" => call.delete_role(),
        "ListRoles" => call.list_roles(),
        "UpdateAssumeRolePolicy" => call.update_assume_role_policy(),
        "CreateServiceLinkedRole" => call.create_service_linked_role(),
        "CreateUser" => call.create_user(),
        "GetUser" => call.get_user(),
        "DeleteUser" => call.delete_user(),
        "ListUsers" => call.list_users(),
        "CreateAccessKey" => call.create_access_key(),
        "DeleteAccessKey" => call.delete_access_key(),
        "ListAccessKeys" => call.list_access_keys(),
        "CreatePolicy" => call.create_policy(),
        "GetPolicy" => call.get_policy(),
        "DeletePolicy" => call.delete_policy(),
        "ListPolicies" => call.list_policies(),
        "CreatePolicyVersion" => call.create_policy_version(),
        "GetPolicyVersion" => call.get_policy_version(),
        "ListPolicyVersions" => call.list_policy_versions(),
        "SetDefaultPolicyVersion" => call.set_default_policy_version(),
        "DeletePolicyVersion" => call.delete_policy_version(),
        "ListEntitiesForPolicy" => call.list_entities_for_policy(),
        "AttachRolePolicy" | "AttachUserPolicy" => call.attach_policy(),
        "DetachRolePolicy" | "DetachUserPolicy" => call.detach_policy(),
        "ListAttachedRolePolicies" | "ListAttachedUserPolicies" => call.list_attached(),
        "PutRolePolicy" | "PutUserPolicy" => call.put_inline(),
        "GetRolePolicy" | "GetUserPolicy" => call.get_inline(),
        "DeleteRolePolicy" | "DeleteUserPolicy" => call.delete_inline(),
        "ListRolePolicies" | "ListUserPolicies" => call.list_inline(),
        "TagRole" | "TagUser" => call.tag(),
        "UntagRole" | "UntagUser" => call.untag(),
        "ListRoleTags" | "ListUserTags" => call.list_tags(),
        "SimulatePrincipalPolicy" => call.simulate(),
        "GetAccountSummary" => call.get_account_summary(),
        _ => Err(ApiError::bad_request("InvalidAction", format!("The sandbox has no iam:{action}"))),
    }
}

/// One call on the way through its handler.
struct Call<'a> {
    world: &'a mut World,
    caller: &'a Caller,
    action: &'a str,
    params: &'a Params,
}

impl Call<'_> {
    fn iam(&self) -> Result<&Iam, ApiError> {
        self.world.account(&self.caller.account).map(|account| &account.iam).ok_or_else(|| no_such("The account"))
    }

    fn iam_mut(&mut self) -> &mut Iam {
        &mut self.world.account_mut(&self.caller.account).iam
    }

    fn arn(&self, resource: &str) -> String {
        format!("arn:aws:iam::{}:{resource}", self.caller.account)
    }

    /// Notes the resource and asks the policies.
    fn authorize(&mut self, resource: &str, context: &Context) -> Result<(), ApiError> {
        self.world.note_resource(resource);
        let action = format!("iam:{}", self.action);
        auth::authorize(self.world, self.caller, &action, resource, context)
            .map_err(|denied| Service::Iam.denied(denied))
    }

    /// Whether the call is about a role rather than a user.
    fn about_role(&self) -> bool {
        self.action.contains("Role")
    }

    fn entity_name(&self) -> Result<&str, ApiError> {
        if self.about_role() { self.params.require("RoleName") } else { self.params.require("UserName") }
    }

    fn entity(&self) -> Result<&Entity, ApiError> {
        let name = self.entity_name()?;
        let iam = self.iam().ok();
        if self.about_role() {
            iam.and_then(|iam| iam.roles.get(name)).map(|role| &role.entity).ok_or_else(|| no_such_entity("role", name))
        } else {
            iam.and_then(|iam| iam.users.get(name)).map(|user| &user.entity).ok_or_else(|| no_such_entity("user", name))
        }
    }

    fn entity_mut(&mut self) -> Result<&mut Entity, ApiError> {
        let name = self.entity_name()?.to_owned();
        let about_role = self.about_role();
        let iam = self.iam_mut();
        if about_role {
            iam.roles.get_mut(&name).map(|role| &mut role.entity).ok_or_else(|| no_such_entity("role", &name))
        } else {
            iam.users.get_mut(&name).map(|user| &mut user.entity).ok_or_else(|| no_such_entity("user", &name))
        }
    }

    /// Authorizes a call about the named user or role, whether or not it exists:
    /// who may not ask is not told.
    fn authorize_entity(&mut self, mut context: Context) -> Result<(), ApiError> {
        let name = self.entity_name()?.to_owned();
        let kind = if self.about_role() { "role" } else { "user" };
        let mut arn = self.arn(&format!("{kind}/{name}"));
        if let Ok(entity) = self.entity() {
            arn.clone_from(&entity.arn);
            for (tag, value) in &entity.tags {
                context.insert(format!("aws:ResourceTag/{tag}"), vec![value.clone()]);
                context.insert(format!("iam:ResourceTag/{tag}"), vec![value.clone()]);
            }
        }
        self.authorize(&arn, &context)
    }

    fn refuse_protected(&self) -> Result<(), ApiError> {
        let entity = self.entity()?;
        if is_service_linked(&entity.arn) || is_of_identity_center(&entity.arn) {
            return Err(ApiError::bad_request(
                "UnmodifiableEntity",
                format!(
                    "Cannot perform the operation on the protected role '{}' - this role is only modifiable by AWS",
                    entity.name
                ),
            ));
        }
        Ok(())
    }

    fn tags_context(&self) -> Context {
        let tags = read_tags(self.params);
        let mut context: Context =
            tags.iter().map(|(key, value)| (format!("aws:RequestTag/{key}"), vec![value.clone()])).collect();
        let keys: Vec<String> = tags.into_keys().chain(self.params.list("TagKeys")).collect();
        context.insert("aws:TagKeys".to_owned(), keys);
        context
    }

    fn new_entity(&mut self, kind: &str, id_prefix: &str, name: &str) -> Entity {
        let path = self.params.get("Path").unwrap_or("/").to_owned();
        Entity {
            arn: self.arn(&format!("{kind}{path}{name}")),
            name: name.to_owned(),
            path,
            id: self.world.next_iam_id(id_prefix),
            created: self.world.timestamp(),
            visible_from: self.world.now_ms() + self.world.settings.principal_delay_ms,
            tags: read_tags(self.params),
            inline: Versioned::new(BTreeMap::new()),
            attached: Versioned::new(Vec::new()),
        }
    }

    /// A trust policy from the request, its principals checked and bound.
    fn trust_policy(&self, parameter: &str) -> Result<Arc<Policy>, ApiError> {
        let text = self.params.require(parameter)?;
        check_size(text, TRUST_POLICY_LIMIT, "AssumeRolePolicy")?;
        parse_trust(self.world, text).map(Arc::new)
    }

    fn create_role(&mut self) -> Reply {
        let name = self.params.require("RoleName")?.to_owned();
        check_name(&name, 64)?;
        let path = self.params.get("Path").unwrap_or("/");
        let arn = self.arn(&format!("role{path}{name}"));
        let context = self.tags_context();
        self.authorize(&arn, &context)?;
        if self.iam().is_ok_and(|iam| iam.roles.contains_key(&name)) {
            return Err(already_exists("Role", &name));
        }
        let trust = self.trust_policy("AssumeRolePolicyDocument")?;
        let role = Role {
            entity: self.new_entity("role", "AROA", &name),
            trust,
            description: self.params.get("Description").map(str::to_owned),
            max_session_duration: self.params.int("MaxSessionDuration").unwrap_or(3600),
            service: None,
        };
        let mut xml = Xml::new();
        xml.nest("Role", |xml| write_role(xml, &role));
        self.iam_mut().roles.insert(name, role);
        self.world.note_change();
        Ok(xml.finish())
    }

    fn create_service_linked_role(&mut self) -> Reply {
        let service = self.params.require("AWSServiceName")?.to_owned();
        let name = service_linked_role_name(&service, self.params.get("CustomSuffix"));
        let path = format!("/aws-service-role/{service}/");
        let arn = self.arn(&format!("role{path}{name}"));
        let context = Context::from([("iam:AWSServiceName".to_owned(), vec![service.clone()])]);
        self.authorize(&arn, &context)?;
        if self.iam().is_ok_and(|iam| iam.roles.contains_key(&name)) {
            return Err(ApiError::bad_request(
                "InvalidInput",
                format!("Service role name {name} has been taken in this account, please try a different suffix."),
            ));
        }
        let trust = json!({
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow",
                "Action": "sts:AssumeRole",
                "Principal": { "Service": service },
            }],
        });
        let mut entity = self.new_entity("role", "AROA", &name);
        entity.path = path;
        entity.arn = arn;
        let role = Role {
            entity,
            trust: Arc::new(parse_trust(self.world, &trust.to_string())?),
            description: self.params.get("Description").map(str::to_owned),
            max_session_duration: 3600,
            service: Some(service),
        };
        let mut xml = Xml::new();
        xml.nest("Role", |xml| write_role(xml, &role));
        self.iam_mut().roles.insert(name, role);
        self.world.note_change();
        Ok(xml.finish())
    }

    fn get_role(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        let name = self.params.require("RoleName")?;
        let role = self.iam()?.roles.get(name).ok_or_else(|| no_such_entity("role", name))?;
        let mut xml = Xml::new();
        xml.nest("Role", |xml| write_role(xml, role));
        Ok(xml.finish())
    }

    fn delete_role(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        check_deletable(self.entity()?)?;
        let name = self.params.require("RoleName")?.to_owned();
        self.iam_mut().roles.remove(&name);
        self.world.note_change();
        Ok(String::new())
    }

    fn list_roles(&mut self) -> Reply {
        let resource = self.arn("role/");
        self.authorize(&resource, &Context::new())?;
        let prefix = self.params.get("PathPrefix").unwrap_or("/");
        let roles: Vec<&Role> = self.iam().map_or_else(
            |_| Vec::new(),
            |iam| iam.roles.values().filter(|role| role.entity.path.starts_with(prefix)).collect(),
        );
        page(self.params, "Roles", &roles, |xml, role| {
            write_role(xml, role);
        })
    }

    fn update_assume_role_policy(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        self.refuse_protected()?;
        let trust = self.trust_policy("PolicyDocument")?;
        let name = self.params.require("RoleName")?.to_owned();
        if let Some(role) = self.iam_mut().roles.get_mut(&name) {
            role.trust = trust;
        }
        self.world.note_change();
        Ok(String::new())
    }

    fn create_user(&mut self) -> Reply {
        let name = self.params.require("UserName")?.to_owned();
        check_name(&name, 64)?;
        let path = self.params.get("Path").unwrap_or("/");
        let arn = self.arn(&format!("user{path}{name}"));
        let context = self.tags_context();
        self.authorize(&arn, &context)?;
        if self.iam().is_ok_and(|iam| iam.users.contains_key(&name)) {
            return Err(already_exists("User", &name));
        }
        let user = User { entity: self.new_entity("user", "AIDA", &name), access_keys: Vec::new() };
        let mut xml = Xml::new();
        xml.nest("User", |xml| write_user(xml, &user));
        self.iam_mut().users.insert(name, user);
        self.world.note_change();
        Ok(xml.finish())
    }

    fn get_user(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        let name = self.params.require("UserName")?;
        let user = self.iam()?.users.get(name).ok_or_else(|| no_such_entity("user", name))?;
        let mut xml = Xml::new();
        xml.nest("User", |xml| write_user(xml, user));
        Ok(xml.finish())
    }

    fn delete_user(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        check_deletable(self.entity()?)?;
        let name = self.params.require("UserName")?.to_owned();
        let keys = self.iam()?.users.get(&name).map_or(0, |user| user.access_keys.len());
        if keys > 0 {
            return Err(ApiError::new(409, "DeleteConflict", "Cannot delete entity, must delete access keys first."));
        }
        self.iam_mut().users.remove(&name);
        self.world.note_change();
        Ok(String::new())
    }

    fn list_users(&mut self) -> Reply {
        let resource = self.arn("user/");
        self.authorize(&resource, &Context::new())?;
        let users: Vec<&User> = self.iam().map_or_else(|_| Vec::new(), |iam| iam.users.values().collect());
        page(self.params, "Users", &users, |xml, user| {
            write_user(xml, user);
        })
    }

    /// The quotas that are known here, of all that it tells.
    fn get_account_summary(&mut self) -> Reply {
        self.authorize("*", &Context::new())?;
        let quota = self.iam().map_or(ATTACHED_QUOTA, |iam| iam.attached_quota);
        let mut xml = Xml::new();
        xml.nest("SummaryMap", |xml| {
            for key in ["AttachedPoliciesPerRoleQuota", "AttachedPoliciesPerUserQuota"] {
                xml.nest("entry", |xml| {
                    xml.elem("key", key).elem("value", quota);
                });
            }
        });
        Ok(xml.finish())
    }

    fn create_access_key(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        let arn = self.entity()?.arn.clone();
        let name = self.params.require("UserName")?.to_owned();
        let key = crate::sts::issue_user_key(self.world, &arn);
        if let Some(user) = self.iam_mut().users.get_mut(&name) {
            user.access_keys.push(key.id.clone());
        }
        self.world.note_change();
        let created = self.world.timestamp();
        let mut xml = Xml::new();
        xml.nest("AccessKey", |xml| {
            xml.elem("UserName", &name)
                .elem("AccessKeyId", &key.id)
                .elem("Status", "Active")
                .elem("SecretAccessKey", &key.secret)
                .elem("CreateDate", created);
        });
        Ok(xml.finish())
    }

    fn delete_access_key(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        self.entity()?;
        let name = self.params.require("UserName")?.to_owned();
        let id = self.params.require("AccessKeyId")?.to_owned();
        let keys = self.iam_mut().users.get_mut(&name).map(|user| &mut user.access_keys);
        let Some((keys, index)) = keys.and_then(|keys| keys.iter().position(|key| *key == id).map(|i| (keys, i)))
        else {
            return Err(no_such(&format!("The Access Key with id {id}")));
        };
        keys.remove(index);
        self.world.credentials.forget(&id);
        self.world.note_change();
        Ok(String::new())
    }

    fn list_access_keys(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        let name = self.entity()?.name.clone();
        let keys = self.iam()?.users.get(&name).map(|user| user.access_keys.clone()).unwrap_or_default();
        page(self.params, "AccessKeyMetadata", &keys, |xml, key| {
            xml.elem("UserName", &name).elem("AccessKeyId", key).elem("Status", "Active");
        })
    }

    fn create_policy(&mut self) -> Reply {
        let name = self.params.require("PolicyName")?.to_owned();
        check_name(&name, 128)?;
        let path = self.params.get("Path").unwrap_or("/").to_owned();
        let arn = self.arn(&format!("policy{path}{name}"));
        let context = self.tags_context();
        self.authorize(&arn, &context)?;
        let document = managed_document(self.params)?;
        if self.iam().is_ok_and(|iam| iam.policies.contains_key(&arn)) {
            return Err(ApiError::new(
                409,
                "EntityAlreadyExists",
                format!("A policy called {name} already exists. Duplicate names are not allowed."),
            ));
        }
        let policy = ManagedPolicy {
            arn: arn.clone(),
            name,
            path,
            id: self.world.next_iam_id("ANPA"),
            description: self.params.get("Description").map(str::to_owned),
            created: self.world.timestamp(),
            versions: BTreeMap::from([(1, document.clone())]),
            default_version: 1,
            document: Versioned::new(document),
        };
        let mut xml = Xml::new();
        xml.nest("Policy", |xml| write_policy(xml, &policy, 0));
        self.iam_mut().policies.insert(arn, policy);
        self.world.note_change();
        Ok(xml.finish())
    }

    fn policy(&self) -> Result<&ManagedPolicy, ApiError> {
        let arn = self.params.require("PolicyArn")?;
        self.iam().ok().and_then(|iam| iam.policies.get(arn)).ok_or_else(|| no_such(&format!("Policy {arn}")))
    }

    fn policy_mut(&mut self) -> Result<&mut ManagedPolicy, ApiError> {
        let arn = self.params.require("PolicyArn")?.to_owned();
        self.iam_mut().policies.get_mut(&arn).ok_or_else(|| no_such(&format!("Policy {arn}")))
    }

    fn authorize_policy(&mut self) -> Result<(), ApiError> {
        let arn = self.params.require("PolicyArn")?.to_owned();
        self.authorize(&arn, &Context::new())
    }

    /// The users and roles that the policy is attached to.
    fn entities_for(&self, policy_arn: &str) -> Vec<&Entity> {
        let Ok(iam) = self.iam() else {
            return Vec::new();
        };
        iam.roles
            .values()
            .map(|role| &role.entity)
            .chain(iam.users.values().map(|user| &user.entity))
            .filter(|entity| entity.attached.latest().iter().any(|arn| arn == policy_arn))
            .collect()
    }

    fn get_policy(&mut self) -> Reply {
        self.authorize_policy()?;
        let policy = self.policy()?;
        let attachments = self.entities_for(&policy.arn).len();
        let mut xml = Xml::new();
        xml.nest("Policy", |xml| write_policy(xml, policy, attachments));
        Ok(xml.finish())
    }

    fn delete_policy(&mut self) -> Reply {
        self.authorize_policy()?;
        let policy = self.policy()?;
        let arn = policy.arn.clone();
        let versions = policy.versions.len();
        if !self.entities_for(&arn).is_empty() {
            return Err(ApiError::new(409, "DeleteConflict", "Cannot delete a policy attached to entities."));
        }
        if versions > 1 {
            return Err(ApiError::new(
                409,
                "DeleteConflict",
                "This policy has more than one version. Before you delete a policy, you must delete the policy's versions.",
            ));
        }
        self.iam_mut().policies.remove(&arn);
        self.world.note_change();
        Ok(String::new())
    }

    fn list_policies(&mut self) -> Reply {
        let resource = self.arn("policy/");
        self.authorize(&resource, &Context::new())?;
        let policies: Vec<&ManagedPolicy> =
            self.iam().map_or_else(|_| Vec::new(), |iam| iam.policies.values().collect());
        page(self.params, "Policies", &policies, |xml, policy| {
            write_policy(xml, policy, self.entities_for(&policy.arn).len());
        })
    }

    fn create_policy_version(&mut self) -> Reply {
        self.authorize_policy()?;
        let document = managed_document(self.params)?;
        let set_default = self.params.bool("SetAsDefault").unwrap_or(false);
        let now = self.world.now_ms();
        let delay = self.world.settings.iam_policy_delay_ms;
        let created = self.world.timestamp();
        let policy = self.policy_mut()?;
        if policy.versions.len() >= VERSION_LIMIT {
            return Err(ApiError::new(
                409,
                "LimitExceeded",
                "A managed policy can have up to 5 versions. Before you create a new version, you must delete an existing version.",
            ));
        }
        let number = policy.versions.keys().next_back().map_or(1, |last| last + 1);
        policy.versions.insert(number, document.clone());
        if set_default {
            policy.default_version = number;
            policy.document.set(document, now, delay);
        }
        self.world.note_change();
        let mut xml = Xml::new();
        xml.nest("PolicyVersion", |xml| {
            xml.elem("VersionId", format!("v{number}"))
                .elem("IsDefaultVersion", set_default)
                .elem("CreateDate", created);
        });
        Ok(xml.finish())
    }

    fn version_number(&self) -> Result<u32, ApiError> {
        let version = self.params.require("VersionId")?;
        let policy = self.policy()?;
        version
            .strip_prefix('v')
            .and_then(|number| number.parse().ok())
            .filter(|number| policy.versions.contains_key(number))
            .ok_or_else(|| no_such(&format!("Policy {} version {version}", policy.arn)))
    }

    fn get_policy_version(&mut self) -> Reply {
        self.authorize_policy()?;
        let number = self.version_number()?;
        let policy = self.policy()?;
        let document = policy.versions.get(&number).ok_or_else(|| no_such("It"))?;
        let mut xml = Xml::new();
        xml.nest("PolicyVersion", |xml| {
            xml.elem("Document", url_encoded(&document.text))
                .elem("VersionId", format!("v{number}"))
                .elem("IsDefaultVersion", number == policy.default_version)
                .elem("CreateDate", &policy.created);
        });
        Ok(xml.finish())
    }

    fn list_policy_versions(&mut self) -> Reply {
        self.authorize_policy()?;
        let policy = self.policy()?;
        let numbers: Vec<&u32> = policy.versions.keys().rev().collect();
        page(self.params, "Versions", &numbers, |xml, number| {
            xml.elem("VersionId", format!("v{number}"))
                .elem("IsDefaultVersion", **number == policy.default_version)
                .elem("CreateDate", &policy.created);
        })
    }

    fn set_default_policy_version(&mut self) -> Reply {
        self.authorize_policy()?;
        let number = self.version_number()?;
        let now = self.world.now_ms();
        let delay = self.world.settings.iam_policy_delay_ms;
        let policy = self.policy_mut()?;
        if let Some(document) = policy.versions.get(&number).cloned() {
            policy.default_version = number;
            policy.document.set(document, now, delay);
        }
        self.world.note_change();
        Ok(String::new())
    }

    fn delete_policy_version(&mut self) -> Reply {
        self.authorize_policy()?;
        let number = self.version_number()?;
        let policy = self.policy_mut()?;
        if number == policy.default_version {
            return Err(ApiError::new(409, "DeleteConflict", "Cannot delete the default version of a policy."));
        }
        policy.versions.remove(&number);
        self.world.note_change();
        Ok(String::new())
    }

    fn list_entities_for_policy(&mut self) -> Reply {
        self.authorize_policy()?;
        let arn = self.params.require("PolicyArn")?;
        if aws_managed_policy(arn).is_none() {
            self.policy()?;
        }
        let (roles, users): (Vec<&Entity>, Vec<&Entity>) =
            self.entities_for(arn).into_iter().partition(|entity| entity.arn.contains(":role/"));
        let mut xml = Xml::new();
        xml.members("PolicyGroups", Vec::<()>::new(), |_, ()| {})
            .members("PolicyRoles", roles, |xml, role| {
                xml.elem("RoleName", &role.name).elem("RoleId", &role.id);
            })
            .members("PolicyUsers", users, |xml, user| {
                xml.elem("UserName", &user.name).elem("UserId", &user.id);
            })
            .elem("IsTruncated", false);
        Ok(xml.finish())
    }

    fn policy_arn_context(&self) -> Result<Context, ApiError> {
        let arn = self.params.require("PolicyArn")?.to_owned();
        Ok(Context::from([("iam:PolicyARN".to_owned(), vec![arn])]))
    }

    fn attach_policy(&mut self) -> Reply {
        let context = self.policy_arn_context()?;
        self.authorize_entity(context)?;
        self.refuse_protected()?;
        let arn = self.params.require("PolicyArn")?.to_owned();
        if aws_managed_policy(&arn).is_none() && self.policy().is_err() {
            return Err(ApiError::new(
                404,
                "NoSuchEntity",
                format!("Policy {arn} does not exist or is not attachable."),
            ));
        }
        let (now, delay) = self.policy_times();
        let kind = if self.about_role() { "Role" } else { "User" };
        let quota = self.iam()?.attached_quota;
        let entity = self.entity_mut()?;
        let mut attached = entity.attached.latest().clone();
        if attached.contains(&arn) {
            return Ok(String::new());
        }
        if attached.len() >= quota {
            return Err(ApiError::new(
                409,
                "LimitExceeded",
                format!("Cannot exceed quota for PoliciesPer{kind}: {quota}"),
            ));
        }
        attached.push(arn);
        entity.attached.set(attached, now, delay);
        self.world.note_change();
        Ok(String::new())
    }

    fn detach_policy(&mut self) -> Reply {
        let context = self.policy_arn_context()?;
        self.authorize_entity(context)?;
        self.refuse_protected()?;
        let arn = self.params.require("PolicyArn")?.to_owned();
        let (now, delay) = self.policy_times();
        let entity = self.entity_mut()?;
        let mut attached = entity.attached.latest().clone();
        let Some(index) = attached.iter().position(|other| *other == arn) else {
            return Err(ApiError::new(404, "NoSuchEntity", format!("Policy {arn} was not found.")));
        };
        attached.remove(index);
        entity.attached.set(attached, now, delay);
        self.world.note_change();
        Ok(String::new())
    }

    fn policy_times(&self) -> (u64, u64) {
        (self.world.now_ms(), self.world.settings.iam_policy_delay_ms)
    }

    fn list_attached(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        let entity = self.entity()?;
        let prefix = self.params.get("PathPrefix").unwrap_or("/");
        let attached: Vec<&String> =
            entity.attached.latest().iter().filter(|arn| policy_path(arn).starts_with(prefix)).collect();
        page(self.params, "AttachedPolicies", &attached, |xml, arn| {
            xml.elem("PolicyName", arn.rsplit('/').next().unwrap_or_default()).elem("PolicyArn", arn);
        })
    }

    fn put_inline(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        self.refuse_protected()?;
        let name = self.params.require("PolicyName")?.to_owned();
        check_name(&name, 128)?;
        let text = self.params.require("PolicyDocument")?.to_owned();
        let policy = Policy::parse(&text, PolicyKind::Identity).map_err(malformed)?;
        let (now, delay) = self.policy_times();
        let (limit, kind) = if self.about_role() { (ROLE_INLINE_LIMIT, "role") } else { (USER_INLINE_LIMIT, "user") };
        let entity = self.entity_mut()?;
        let mut inline = entity.inline.latest().clone();
        let before = inline.insert(name, Arc::new(policy));
        let size: usize = inline.values().map(|policy| size_of(&policy.text)).sum();
        if size > limit {
            return Err(ApiError::new(
                409,
                "LimitExceeded",
                format!("Maximum policy size of {limit} bytes exceeded for {kind} {}", entity.name),
            ));
        }
        if before.is_some_and(|before| before.text == text) {
            return Ok(String::new());
        }
        entity.inline.set(inline, now, delay);
        self.world.note_change();
        Ok(String::new())
    }

    fn inline_policy(&self) -> Result<Arc<Policy>, ApiError> {
        let name = self.params.require("PolicyName")?;
        let kind = if self.about_role() { "role" } else { "user" };
        self.entity()?.inline.latest().get(name).cloned().ok_or_else(|| {
            ApiError::new(404, "NoSuchEntity", format!("The {kind} policy with name {name} cannot be found."))
        })
    }

    fn get_inline(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        let policy = self.inline_policy()?;
        let field = if self.about_role() { "RoleName" } else { "UserName" };
        let mut xml = Xml::new();
        xml.elem(field, self.entity_name()?)
            .elem("PolicyName", self.params.require("PolicyName")?)
            .elem("PolicyDocument", url_encoded(&policy.text));
        Ok(xml.finish())
    }

    fn delete_inline(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        self.refuse_protected()?;
        self.inline_policy()?;
        let name = self.params.require("PolicyName")?.to_owned();
        let (now, delay) = self.policy_times();
        let entity = self.entity_mut()?;
        let mut inline = entity.inline.latest().clone();
        inline.remove(&name);
        entity.inline.set(inline, now, delay);
        self.world.note_change();
        Ok(String::new())
    }

    fn list_inline(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        let names: Vec<&String> = self.entity()?.inline.latest().keys().collect();
        page(self.params, "PolicyNames", &names, |xml, name| {
            xml.text(name);
        })
    }

    fn tag(&mut self) -> Reply {
        let context = self.tags_context();
        self.authorize_entity(context)?;
        let tags = read_tags(self.params);
        self.entity_mut()?.tags.extend(tags);
        self.world.note_change();
        Ok(String::new())
    }

    fn untag(&mut self) -> Reply {
        let context = self.tags_context();
        self.authorize_entity(context)?;
        let keys = self.params.list("TagKeys");
        self.entity_mut()?.tags.retain(|key, _| !keys.contains(key));
        self.world.note_change();
        Ok(String::new())
    }

    fn list_tags(&mut self) -> Reply {
        self.authorize_entity(Context::new())?;
        let tags: Vec<(&String, &String)> = self.entity()?.tags.iter().collect();
        page(self.params, "Tags", &tags, |xml, (key, value)| {
            xml.elem("Key", key).elem("Value", value);
        })
    }

    /// Identity and service control policies: AWS does not simulate resource policies for roles.
    fn simulate(&mut self) -> Reply {
        let source = self.params.require("PolicySourceArn")?.to_owned();
        self.authorize(&source, &Context::new())?;
        let (_, entity) = lookup(self.world, &source).ok_or_else(|| no_such(&format!("The principal {source}")))?;
        let principal = Caller {
            account: self.caller.account.clone(),
            arn: source.clone(),
            session_arn: source.clone(),
            session_name: None,
            session_policy: None,
            assumed_by: None,
            tags: entity.tags.clone(),
            kind: if source.contains(":role/") { CallerKind::Role } else { CallerKind::User },
            principal_id: entity.id.clone(),
        };
        let extra = self
            .params
            .list("PolicyInputList")
            .iter()
            .map(|text| Policy::parse(text, PolicyKind::Identity).map_err(malformed))
            .collect::<Result<Vec<_>, _>>()?;
        let context: Context = self
            .params
            .structs("ContextEntries")
            .into_iter()
            .filter_map(|entry| {
                let key = entry.get("ContextKeyName")?.to_owned();
                Some((key, entry.list("ContextKeyValues")))
            })
            .collect();
        let mut resources = self.params.list("ResourceArns");
        if resources.is_empty() {
            resources.push("*".to_owned());
        }
        let mut results = Vec::new();
        for action in self.params.list("ActionNames") {
            for resource in &resources {
                let request = auth::request(self.world, &principal, &action, resource, &context);
                let mut verdict = identity_verdict(self.world, &source, &request);
                for policy in &extra {
                    let said = policy.evaluate(&request);
                    verdict.denied |= said.denied;
                    verdict.allowed = verdict.allowed.max(said.allowed);
                }
                let organization = auth::simulate_organization(self.world, &principal, &request);
                let decision = match (organization, verdict.denied, verdict.allowed) {
                    (Some(false), ..) | (_, false, None) => "implicitDeny",
                    (_, true, _) => "explicitDeny",
                    (_, false, Some(_)) => "allowed",
                };
                results.push((action.clone(), resource.clone(), decision, organization));
            }
        }
        page(self.params, "EvaluationResults", &results, |xml, (action, resource, decision, organization)| {
            if let Some(allowed) = organization {
                xml.nest("OrganizationsDecisionDetail", |xml| {
                    xml.elem("AllowedByOrganizations", allowed);
                });
            }
            xml.elem("EvalActionName", action)
                .elem("EvalResourceName", resource)
                .elem("EvalDecision", decision)
                .members("MatchedStatements", Vec::<()>::new(), |_, ()| {})
                .members("MissingContextValues", Vec::<()>::new(), |_, ()| {});
        })
    }
}

/// A trust policy, its principals checked and bound to their unique ids.
pub(crate) fn parse_trust(world: &World, text: &str) -> Result<Policy, ApiError> {
    let mut policy = Policy::parse(text, PolicyKind::Trust).map_err(malformed)?;
    if let Some(unknown) = policy.aws_principals().find(|principal| !principal_exists(world, principal)) {
        return Err(malformed(format!("Invalid principal in policy: \"AWS\":\"{unknown}\"")));
    }
    policy.bind(|arn| unique_id(world, arn));
    Ok(policy)
}

fn managed_document(params: &Params) -> Result<Arc<Policy>, ApiError> {
    let text = params.require("PolicyDocument")?;
    let policy = Policy::parse(text, PolicyKind::Identity).map_err(malformed)?;
    check_size(text, MANAGED_POLICY_LIMIT, "PolicySize")?;
    Ok(Arc::new(policy))
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

/// `AWSServiceRoleForAutoScaling`, with `_suffix` if there is one.
pub fn service_linked_role_name(service: &str, suffix: Option<&str>) -> String {
    let name = match service.split('.').next().unwrap_or_default() {
        "autoscaling" => "AutoScaling".to_owned(),
        "spot" => "EC2Spot".to_owned(),
        "spotfleet" => "EC2SpotFleet".to_owned(),
        other => {
            let (first, rest) = other.split_at(other.len().min(1));
            format!("{}{rest}", first.to_ascii_uppercase())
        }
    };
    match suffix {
        Some(suffix) => format!("AWSServiceRoleFor{name}_{suffix}"),
        None => format!("AWSServiceRoleFor{name}"),
    }
}

/// The number of characters that count against IAM's limits.
fn size_of(text: &str) -> usize {
    text.chars().filter(|c| !c.is_whitespace()).count()
}

fn check_size(text: &str, limit: usize, quota: &str) -> Result<(), ApiError> {
    if size_of(text) > limit {
        return Err(ApiError::new(409, "LimitExceeded", format!("Cannot exceed quota for {quota}: {limit}")));
    }
    Ok(())
}

fn check_name(name: &str, limit: usize) -> Result<(), ApiError> {
    let valid = !name.is_empty()
        && name.len() <= limit
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c));
    if valid {
        return Ok(());
    }
    Err(ApiError::bad_request("ValidationError", format!("The specified value for the name is invalid: {name}")))
}

fn check_deletable(entity: &Entity) -> Result<(), ApiError> {
    let what = if !entity.attached.latest().is_empty() {
        "detach all policies"
    } else if !entity.inline.latest().is_empty() {
        "delete policies"
    } else {
        return Ok(());
    };
    Err(ApiError::new(409, "DeleteConflict", format!("Cannot delete entity, must {what} first.")))
}

fn policy_path(arn: &str) -> &str {
    let resource = arn.split(':').nth(5).unwrap_or_default();
    let path = resource.strip_prefix("policy").unwrap_or_default();
    path.rfind('/').map_or("/", |end| &path[..=end])
}

fn no_such(what: &str) -> ApiError {
    ApiError::new(404, "NoSuchEntity", format!("{what} does not exist or is not attachable."))
}

fn no_such_entity(kind: &str, name: &str) -> ApiError {
    ApiError::new(404, "NoSuchEntity", format!("The {kind} with name {name} cannot be found."))
}

fn already_exists(kind: &str, name: &str) -> ApiError {
    ApiError::new(409, "EntityAlreadyExists", format!("{kind} with name {name} already exists."))
}

fn malformed(message: String) -> ApiError {
    ApiError::bad_request("MalformedPolicyDocument", message)
}

/// The text as IAM gives policy documents back: percent-encoded.
fn url_encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

fn write_role(xml: &mut Xml, role: &Role) {
    let entity = &role.entity;
    xml.elem("Path", &entity.path)
        .elem("RoleName", &entity.name)
        .elem("RoleId", &entity.id)
        .elem("Arn", &entity.arn)
        .elem("CreateDate", &entity.created)
        .elem("AssumeRolePolicyDocument", url_encoded(&role.trust.text))
        .opt("Description", role.description.as_ref())
        .elem("MaxSessionDuration", role.max_session_duration);
    write_tags(xml, &entity.tags);
}

fn write_user(xml: &mut Xml, user: &User) {
    let entity = &user.entity;
    xml.elem("Path", &entity.path)
        .elem("UserName", &entity.name)
        .elem("UserId", &entity.id)
        .elem("Arn", &entity.arn)
        .elem("CreateDate", &entity.created);
    write_tags(xml, &entity.tags);
}

fn write_tags(xml: &mut Xml, tags: &BTreeMap<String, String>) {
    if !tags.is_empty() {
        xml.members("Tags", tags, |xml, (key, value)| {
            xml.elem("Key", key).elem("Value", value);
        });
    }
}

fn write_policy(xml: &mut Xml, policy: &ManagedPolicy, attachments: usize) {
    xml.elem("PolicyName", &policy.name)
        .elem("PolicyId", &policy.id)
        .elem("Arn", &policy.arn)
        .elem("Path", &policy.path)
        .elem("DefaultVersionId", format!("v{}", policy.default_version))
        .elem("AttachmentCount", attachments)
        .elem("IsAttachable", true)
        .opt("Description", policy.description.as_ref())
        .elem("CreateDate", &policy.created)
        .elem("UpdateDate", &policy.created);
}

/// One page of a list, with `IsTruncated` and `Marker`.
fn page<T>(params: &Params, name: &str, items: &[T], mut write: impl FnMut(&mut Xml, &T)) -> Reply {
    let start = match params.get("Marker") {
        None => 0,
        Some(marker) => marker
            .parse::<usize>()
            .ok()
            .filter(|start| *start <= items.len())
            .ok_or_else(|| ApiError::bad_request("ValidationError", format!("Invalid Marker: {marker}")))?,
    };
    let size = params.int("MaxItems").and_then(|size| usize::try_from(size).ok()).unwrap_or(100).max(1);
    let end = items.len().min(start + size);
    let mut xml = Xml::new();
    xml.members(name, &items[start..end], |xml, item| write(xml, item)).elem("IsTruncated", end < items.len());
    if end < items.len() {
        xml.elem("Marker", end);
    }
    Ok(xml.finish())
}

/// The account's users, roles and policies in canonical form.
pub(crate) fn snapshot(iam: &Iam) -> Value {
    let entity = |entity: &Entity| {
        let mut attached = entity.attached.latest().clone();
        attached.sort();
        let inline: BTreeMap<&String, Value> =
            entity.inline.latest().iter().map(|(name, policy)| (name, policy.json())).collect();
        json!({
            "arn": entity.arn,
            "tags": entity.tags,
            "attached": attached,
            "inline": inline,
        })
    };
    let roles: BTreeMap<&String, Value> = iam
        .roles
        .iter()
        .map(|(name, role)| {
            let mut value = entity(&role.entity);
            value["trust"] = role.trust.json();
            (name, value)
        })
        .collect();
    let users: BTreeMap<&String, Value> = iam
        .users
        .iter()
        .map(|(name, user)| {
            let mut value = entity(&user.entity);
            value["accessKeys"] = json!(user.access_keys.len());
            (name, value)
        })
        .collect();
    let policies: BTreeMap<&String, Value> =
        iam.policies.iter().map(|(arn, policy)| (arn, policy.document.latest().json())).collect();
    json!({ "roles": roles, "users": users, "policies": policies })
}

/// Makes what a snapshot holds; see [`World::import_iam`].
pub(crate) fn import(world: &mut World, account: &str, exported: &Value) -> Result<(), String> {
    let part = |name: &str| {
        let entries = exported.get(name).and_then(Value::as_object);
        entries.cloned().unwrap_or_default()
    };
    for (arn, document) in part("policies") {
        let policy = Arc::new(Policy::parse(&document.to_string(), PolicyKind::Identity)?);
        let imported = ManagedPolicy {
            name: arn.rsplit('/').next().unwrap_or_default().to_owned(),
            path: policy_path(&arn).to_owned(),
            id: world.next_iam_id("ANPA"),
            description: None,
            created: world.timestamp(),
            versions: BTreeMap::from([(1, policy.clone())]),
            default_version: 1,
            document: Versioned::new(policy),
            arn: arn.clone(),
        };
        let policies = &mut world.account_mut(account).iam.policies;
        policies.insert(arn, imported);
    }
    for (name, user) in part("users") {
        let existing = world.account_mut(account).iam.users.get(&name).cloned();
        let id = existing.as_ref().map(|user| user.entity.id.clone());
        let entity = import_entity(world, account, &name, &user, "user", id)?;
        let access_keys = existing.map_or_else(Vec::new, |user| user.access_keys);
        let user = User { entity, access_keys };
        world.account_mut(account).iam.users.insert(name, user);
    }
    let roles = part("roles");
    for (name, role) in &roles {
        let existing = world.account_mut(account).iam.roles.get(name).cloned();
        let id = existing.as_ref().map(|role| role.entity.id.clone());
        let entity = import_entity(world, account, name, role, "role", id)?;
        let trust = Policy::parse(&role["trust"].to_string(), PolicyKind::Trust)?;
        let service =
            is_service_linked(&entity.arn).then(|| entity.path.split('/').nth(2).unwrap_or_default().to_owned());
        let role = Role { entity, trust: Arc::new(trust), description: None, max_session_duration: 3600, service };
        let roles = &mut world.account_mut(account).iam.roles;
        roles.insert(name.clone(), role);
    }
    // Roles may trust each other, so ids are bound when all of them are there.
    for (name, role) in &roles {
        let mut trust = Policy::parse(&role["trust"].to_string(), PolicyKind::Trust)?;
        trust.bind(|arn| unique_id(world, arn));
        if let Some(role) = world.account_mut(account).iam.roles.get_mut(name) {
            role.trust = Arc::new(trust);
        }
    }
    Ok(())
}

fn import_entity(
    world: &mut World,
    account: &str,
    name: &str,
    exported: &Value,
    kind: &str,
    id: Option<String>,
) -> Result<Entity, String> {
    let arn = match exported.get("arn").and_then(Value::as_str) {
        Some(arn) => arn.to_owned(),
        None => format!("arn:aws:iam::{account}:{kind}/{name}"),
    };
    let path = arn
        .split_once(&format!(":{kind}"))
        .and_then(|(_, rest)| rest.strip_suffix(name))
        .ok_or_else(|| format!("{arn} is not the ARN of a {kind} called {name}"))?
        .to_owned();
    let mut inline = BTreeMap::new();
    for (policy_name, document) in exported.get("inline").and_then(Value::as_object).into_iter().flatten() {
        let policy = Policy::parse(&document.to_string(), PolicyKind::Identity)?;
        inline.insert(policy_name.clone(), Arc::new(policy));
    }
    let texts = |value: Option<&Value>| -> Vec<String> {
        value
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect()
    };
    let tags = exported
        .get("tags")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect();
    Ok(Entity {
        name: name.to_owned(),
        path,
        arn,
        id: id.unwrap_or_else(|| world.next_iam_id(if kind == "role" { "AROA" } else { "AIDA" })),
        created: world.timestamp(),
        visible_from: world.now_ms(),
        tags,
        inline: Versioned::new(inline),
        attached: Versioned::new(texts(exported.get("attached"))),
    })
}
