//! KMS: keys, aliases, key policies and grants.

use crate::auth::{self, Caller, CallerKind, Context, Denied, Refusal};
use crate::iam;
use crate::journal::{Entry, Outcome};
use crate::policy::{NamedAs, Policy, PolicyKind};
use crate::wire::{ApiError, Reply, Service};
use crate::world::{Versioned, World, epoch_seconds};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

/// The size of a key policy, in bytes.
const KEY_POLICY_LIMIT: usize = 32_768;

/// What a grant can allow.
const GRANT_OPERATIONS: [&str; 17] = [
    "CreateGrant",
    "Decrypt",
    "DeriveSharedSecret",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyPair",
    "GenerateDataKeyPairWithoutPlaintext",
    "GenerateDataKeyWithoutPlaintext",
    "GenerateMac",
    "GetPublicKey",
    "ReEncryptFrom",
    "ReEncryptTo",
    "RetireGrant",
    "Sign",
    "Verify",
    "VerifyMac",
];

/// KMS of one account and region.
#[derive(Debug, Clone, Default)]
pub struct Kms {
    /// By key id.
    pub keys: BTreeMap<String, Key>,
    /// Key ids by alias name (`alias/…`).
    pub aliases: BTreeMap<String, String>,
}

/// State of a key, as `KeyState` spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    Enabled,
    Disabled,
    PendingDeletion,
    /// The rest come about by calls that the sandbox does not have.
    Updating,
    PendingImport,
    PendingReplicaDeletion,
    Unavailable,
}

impl KeyState {
    /// Whether the key can be used ("Key states of AWS KMS keys", AWS KMS developer guide).
    pub fn is_usable(self) -> bool {
        matches!(self, Self::Enabled | Self::Updating)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
            Self::Updating => "Updating",
            Self::PendingImport => "PendingImport",
            Self::PendingReplicaDeletion => "PendingReplicaDeletion",
            Self::Unavailable => "Unavailable",
        }
    }
}

/// One key.
#[derive(Debug, Clone)]
pub struct Key {
    pub id: String,
    pub arn: String,
    pub account: String,
    pub region: String,
    pub description: String,
    /// Seconds since 1970.
    pub created: u64,
    pub state: KeyState,
    /// Seconds since 1970, while pending deletion.
    pub deletion: Option<u64>,
    pub aws_managed: bool,
    pub policy: Versioned<Arc<Policy>>,
    /// The text of the policy `AWS_RAM`, of a key that is shared through AWS Resource Access Manager. It is shown only:
    /// nothing is allowed by it here.
    pub ram_policy: Option<String>,
    pub grants: Vec<Grant>,
    /// Revoked and retired grants with the time, in milliseconds, until which
    /// they are still effective.
    ended_grants: Vec<(Grant, u64)>,
    pub tags: BTreeMap<String, String>,
    /// Names, `alias/…`.
    pub aliases: Vec<String>,
}

/// One grant.
#[derive(Debug, Clone)]
pub struct Grant {
    pub id: String,
    pub token: String,
    pub name: Option<String>,
    pub grantee: String,
    /// The grantee's unique id when the grant was made.
    grantee_id: Option<String>,
    pub retiring: Option<String>,
    /// Its unique id when the grant was made.
    retiring_id: Option<String>,
    /// Sorted.
    pub operations: Vec<String>,
    pub constraints: Option<Value>,
    /// Root of the account it was made from.
    pub issuing_account: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Milliseconds since the sandbox started.
    effective_from: u64,
}

impl Grant {
    /// A grant to an account is a principal of the account's as a statement of a
    /// key policy is: the account's own policies must allow the call too. That
    /// is an assumption; AWS says that an account can be a grantee, and no more.
    fn is_for(&self, caller: &Caller) -> Option<NamedAs> {
        let same = self.grantee == caller.arn && self.grantee_id.as_ref().is_none_or(|id| *id == caller.principal_id);
        if same || self.grantee == caller.session_arn {
            return Some(NamedAs::Itself);
        }
        (self.grantee == format!("arn:aws:iam::{}:root", caller.account)).then_some(NamedAs::Account)
    }

    fn allows(&self, action: &str, context: &Context) -> bool {
        let operation = action.strip_prefix("kms:").unwrap_or(action);
        if !self.operations.iter().any(|allowed| allowed == operation) {
            return false;
        }
        match operation {
            // A grant can be passed on, but not widened.
            "CreateGrant" => context
                .get("kms:GrantOperations")
                .is_none_or(|wanted| wanted.iter().all(|operation| self.operations.contains(operation))),
            "DescribeKey" | "RetireGrant" | "GetPublicKey" => true,
            _ => self.constraints_hold(context),
        }
    }

    fn constraints_hold(&self, context: &Context) -> bool {
        let Some(constraints) = &self.constraints else {
            return true;
        };
        let used: BTreeMap<&str, &str> = context
            .iter()
            .filter_map(|(key, values)| {
                let name = key.strip_prefix("kms:EncryptionContext:")?;
                Some((name, values.first()?.as_str()))
            })
            .collect();
        let pairs = |name: &str| constraints.get(name).and_then(Value::as_object);
        let holds = |wanted: &serde_json::Map<String, Value>| {
            wanted.iter().all(|(key, value)| used.get(key.as_str()).copied() == value.as_str())
        };
        pairs("EncryptionContextSubset").is_none_or(holds)
            && pairs("EncryptionContextEquals").is_none_or(|wanted| holds(wanted) && wanted.len() == used.len())
    }
}

impl Key {
    /// How a grant that allows this names the caller, if one does.
    pub(crate) fn grants_allow(
        &self,
        caller: &Caller,
        action: &str,
        context: &Context,
        tokens: &[String],
        now_ms: u64,
    ) -> Option<NamedAs> {
        let current = self.grants.iter().filter(|grant| {
            grant.effective_from <= now_ms || tokens.contains(&grant.token) || tokens.contains(&grant.id)
        });
        let ended = self.ended_grants.iter().filter(|(_, until)| *until > now_ms).map(|(grant, _)| grant);
        let allowing = current.chain(ended).filter(|grant| grant.allows(action, context));
        allowing.filter_map(|grant| grant.is_for(caller)).max()
    }
}

/// What other services need to know of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFacts {
    pub arn: String,
    /// The account that owns the key.
    pub account: String,
    pub state: KeyState,
    /// `alias/aws/…`: made and owned by AWS in the account; cannot be shared.
    pub aws_managed: bool,
}

/// The key of that ARN.
pub fn find<'a>(world: &'a World, key_arn: &str) -> Option<&'a Key> {
    let (account, region, id) = split_key_arn(key_arn)?;
    world.account(account)?.kms.get(region)?.keys.get(id)
}

fn find_mut<'a>(world: &'a mut World, key_arn: &str) -> Option<&'a mut Key> {
    let (account, region, id) = split_key_arn(key_arn)?;
    world.accounts.get_mut(account)?.kms.get_mut(region)?.keys.get_mut(id)
}

fn split_key_arn(arn: &str) -> Option<(&str, &str, &str)> {
    let mut parts = arn.splitn(6, ':');
    if (parts.next(), parts.next(), parts.next()) != (Some("arn"), Some("aws"), Some("kms")) {
        return None;
    }
    let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
    Some((account, region, resource.strip_prefix("key/")?))
}

/// The ARN of the key that `key_id` names as seen from (account, region): a key
/// id, a key ARN (of any account), an alias name or an alias ARN (of the account
/// itself). `None` when it names no key of the region. `alias/aws/ebs` of the
/// account is made on first use.
pub fn resolve_key(world: &mut World, account: &str, region: &str, key_id: &str) -> Option<String> {
    let alias_prefix = format!("arn:aws:kms:{region}:{account}:");
    let name = key_id.strip_prefix(&alias_prefix).unwrap_or(key_id);
    if name == "alias/aws/ebs" {
        return Some(ebs_default_key(world, account, region));
    }
    if name.starts_with("alias/") {
        let kms = world.account(account)?.kms.get(region)?;
        let id = kms.aliases.get(name)?;
        return kms.keys.get(id).map(|key| key.arn.clone());
    }
    if key_id.starts_with("arn:") {
        let key = find(world, key_id)?;
        return (key.region == region).then(|| key.arn.clone());
    }
    let kms = world.account(account)?.kms.get(region)?;
    kms.keys.get(key_id).map(|key| key.arn.clone())
}

/// Facts about the key of that ARN, if there is one.
pub fn key_facts(world: &World, key_arn: &str) -> Option<KeyFacts> {
    find(world, key_arn).map(|key| KeyFacts {
        arn: key.arn.clone(),
        account: key.account.clone(),
        state: key.state,
        aws_managed: key.aws_managed,
    })
}

/// The ARN of `alias/aws/ebs` of (account, region), made on first use.
pub fn ebs_default_key(world: &mut World, account: &str, region: &str) -> String {
    let existing = world
        .account(account)
        .and_then(|account| account.kms.get(region))
        .and_then(|kms| kms.keys.get(kms.aliases.get("alias/aws/ebs")?))
        .map(|key| key.arn.clone());
    if let Some(arn) = existing {
        return arn;
    }
    // AWS's own policy for this key, as KMS shows it.
    let policy = json!({
        "Version": "2012-10-17",
        "Id": "auto-ebs-2",
        "Statement": [
            {
                "Sid": "Allow access through EBS for all principals in the account that are authorized to use EBS",
                "Effect": "Allow",
                "Principal": { "AWS": "*" },
                "Action": [
                    "kms:Encrypt", "kms:Decrypt", "kms:ReEncrypt*", "kms:GenerateDataKey*",
                    "kms:CreateGrant", "kms:DescribeKey"
                ],
                "Resource": "*",
                "Condition": { "StringEquals": {
                    "kms:CallerAccount": account,
                    "kms:ViaService": format!("ec2.{region}.amazonaws.com"),
                } }
            },
            {
                "Sid": "Allow direct access to key metadata to the account",
                "Effect": "Allow",
                "Principal": { "AWS": format!("arn:aws:iam::{account}:root") },
                "Action": ["kms:Describe*", "kms:Get*", "kms:List*", "kms:RevokeGrant"],
                "Resource": "*"
            }
        ]
    });
    let policy = stored_policy(world, &policy)
        .unwrap_or_else(|error| unreachable!("AWS's own policy is well formed: {}", error.message));
    let mut key = new_key(world, account, region, policy);
    key.aws_managed = true;
    key.description = "Default key that protects my EBS volumes when no other key is defined".to_owned();
    key.aliases.push("alias/aws/ebs".to_owned());
    let arn = key.arn.clone();
    let kms = world.account_mut(account).kms.entry(region.to_owned()).or_default();
    kms.aliases.insert("alias/aws/ebs".to_owned(), key.id.clone());
    kms.keys.insert(key.id.clone(), key);
    arn
}

fn new_key(world: &mut World, account: &str, region: &str, policy: Arc<Policy>) -> Key {
    let id = world.next_uuid();
    Key {
        arn: format!("arn:aws:kms:{region}:{account}:key/{id}"),
        id,
        account: account.to_owned(),
        region: region.to_owned(),
        description: String::new(),
        created: epoch_seconds(),
        state: KeyState::Enabled,
        deletion: None,
        aws_managed: false,
        policy: Versioned::new(policy),
        ram_policy: None,
        grants: Vec::new(),
        ended_grants: Vec::new(),
        tags: BTreeMap::new(),
        aliases: Vec::new(),
    }
}

/// Whether `caller` may do `action` (such as `kms:CreateGrant`) on the key
/// through EC2: evaluated with `kms:ViaService` of EC2 in `region` and, for
/// CreateGrant, with the grant that EC2 makes for a volume
/// (`kms:GrantIsForAWSResource`, operation Decrypt, an encryption context
/// constraint). Written to the journal with `via: ec2`. `context` is added.
pub fn use_as_aws_service(
    world: &mut World,
    caller: &Caller,
    key_arn: &str,
    action: &str,
    region: &str,
    context: &Context,
) -> Result<(), Denied> {
    let mut all = context.clone();
    let mut add = |key: &str, value: &str| {
        all.entry(key.to_owned()).or_insert_with(|| vec![value.to_owned()]);
    };
    add("kms:ViaService", &format!("ec2.{region}.amazonaws.com"));
    add("aws:ViaAWSService", "true");
    add("aws:RequestedRegion", region);
    if action == "kms:CreateGrant" {
        add("kms:GrantIsForAWSResource", "true");
        add("kms:GrantOperations", "Decrypt");
        add("kms:GrantConstraintType", "EncryptionContextSubset");
        add(
            "kms:GranteePrincipal",
            &format!("arn:aws:sts::{}:assumed-role/aws:ec2-infrastructure/volume", caller.account),
        );
    }
    let result = auth::authorize_key(world, caller, action, key_arn, &all);
    let entry = Entry {
        seq: 0,
        time_ms: world.now_ms(),
        account: caller.account.clone(),
        principal: caller.arn.clone(),
        session_name: caller.session_name.clone(),
        assumed_by: caller.assumed_by.clone(),
        action: action.to_owned(),
        implied: Vec::new(),
        resources: vec![key_arn.to_owned()],
        region: region.to_owned(),
        parameters: Value::Null,
        write: false,
        outcome: if result.is_ok() { Outcome::Allowed } else { Outcome::Denied },
        code: result.as_ref().err().map(|_| "AccessDeniedException".to_owned()),
        reason: result.as_ref().err().map(Denied::message),
        changed: false,
        request_id: world.call.request_id.clone(),
        via: Some("ec2".to_owned()),
    };
    world.journal.push(entry);
    result
}

/// Handles one KMS call. `body` is the JSON request.
pub fn handle(world: &mut World, caller: &Caller, region: &str, action: &str, body: &Value) -> Reply {
    let mut call = Call { world, caller, region, action, body };
    match action {
        "CreateKey" => call.create_key(),
        "DescribeKey" => call.describe_key(),
        "ListKeys" => call.list_keys(),
        "GetKeyPolicy" => call.get_key_policy(),
        "PutKeyPolicy" => call.put_key_policy(),
        "EnableKey" => call.set_state(KeyState::Enabled),
        "DisableKey" => call.set_state(KeyState::Disabled),
        "ScheduleKeyDeletion" => call.schedule_deletion(),
        "CancelKeyDeletion" => call.cancel_deletion(),
        "CreateAlias" => call.create_alias(),
        "DeleteAlias" => call.delete_alias(),
        "ListAliases" => call.list_aliases(),
        "TagResource" => call.tag(),
        "UntagResource" => call.untag(),
        "ListResourceTags" => call.list_tags(),
        "Encrypt" => call.encrypt(),
        "Decrypt" => call.decrypt(),
        "ReEncrypt" => call.re_encrypt(),
        "GenerateDataKey" | "GenerateDataKeyWithoutPlaintext" => call.generate_data_key(),
        "CreateGrant" => call.create_grant(),
        "ListGrants" => call.list_grants(),
        "RevokeGrant" => call.revoke_grant(),
        "RetireGrant" => call.retire_grant(),
        _ => Err(ApiError::bad_request("UnknownOperationException", format!("The sandbox has no kms:{action}"))),
    }
}

/// One call on the way through its handler.
struct Call<'a> {
    world: &'a mut World,
    caller: &'a Caller,
    region: &'a str,
    action: &'a str,
    body: &'a Value,
}

impl Call<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.body.get(name).and_then(Value::as_str)
    }

    fn require(&self, name: &str) -> Result<&str, ApiError> {
        self.text(name).ok_or_else(|| {
            validation(format!(
                "1 validation error detected: Value null at '{name}' failed to satisfy constraint: Member must not be null"
            ))
        })
    }

    fn flag(&self, name: &str) -> bool {
        self.body.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    fn strings(&self, name: &str) -> Vec<String> {
        self.body
            .get(name)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect()
    }

    fn kms_mut(&mut self) -> &mut Kms {
        self.world.account_mut(&self.caller.account).kms.entry(self.region.to_owned()).or_default()
    }

    /// The key that the parameter names, for an operation that works across accounts.
    fn key_named(&mut self, parameter: &str) -> Result<String, ApiError> {
        let key_id = self.require(parameter)?.to_owned();
        let found = resolve_key(self.world, &self.caller.account, self.region, &key_id);
        let Some(arn) = found else {
            self.world.note_resource(key_id.as_str());
            return Err(not_found(&missing_key_message(&key_id, self.region, &self.caller.account)));
        };
        self.world.note_resource(arn.as_str());
        Ok(arn)
    }

    /// As [`Call::key_named`], for an operation that is refused across accounts.
    fn own_key(&mut self) -> Result<String, ApiError> {
        let arn = self.key_named("KeyId")?;
        if split_key_arn(&arn).is_some_and(|(account, ..)| account != self.caller.account) {
            let denied = auth::denied(self.caller, &format!("kms:{}", self.action), &arn, Refusal::KeyPolicy, false);
            return Err(Service::Kms.denied(denied));
        }
        Ok(arn)
    }

    fn authorize(&mut self, action: &str, arn: &str, context: &Context) -> Result<(), ApiError> {
        auth::authorize_key_with_tokens(self.world, self.caller, action, arn, context, &self.strings("GrantTokens"))
            .map_err(|denied| Service::Kms.denied(denied))
    }

    fn authorize_call(&mut self, arn: &str) -> Result<(), ApiError> {
        self.authorize(&format!("kms:{}", self.action), arn, &Context::new())
    }

    /// Authorizes an operation that has no key.
    fn authorize_identity(&mut self, resource: &str, context: &Context) -> Result<(), ApiError> {
        auth::authorize(self.world, self.caller, &format!("kms:{}", self.action), resource, context)
            .map_err(|denied| Service::Kms.denied(denied))
    }

    fn key(&self, arn: &str) -> Result<&Key, ApiError> {
        find(self.world, arn).ok_or_else(|| not_found(&format!("Key '{arn}' does not exist")))
    }

    fn key_mut(&mut self, arn: &str) -> Result<&mut Key, ApiError> {
        find_mut(self.world, arn).ok_or_else(|| not_found(&format!("Key '{arn}' does not exist")))
    }

    /// Refuses a key that cannot be used because of its state.
    fn check_usable(&self, arn: &str) -> Result<(), ApiError> {
        match self.key(arn)?.state {
            state if state.is_usable() => Ok(()),
            KeyState::Disabled => Err(ApiError::bad_request("DisabledException", format!("{arn} is disabled."))),
            KeyState::PendingDeletion => Err(pending_deletion(arn)),
            state => Err(invalid_state(format!("{arn} is {}.", state.name()))),
        }
    }

    /// The error that a dry run ends with when everything would have worked.
    fn check_dry_run(&self) -> Result<(), ApiError> {
        if self.flag("DryRun") {
            return Err(ApiError::bad_request(
                "DryRunOperationException",
                "The request would have succeeded, but the DryRun option is set.",
            ));
        }
        Ok(())
    }

    fn create_key(&mut self) -> Reply {
        let tags = read_tags(self.body);
        let mut context: Context =
            tags.iter().map(|(key, value)| (format!("aws:RequestTag/{key}"), vec![value.clone()])).collect();
        context.insert("aws:TagKeys".to_owned(), tags.keys().cloned().collect());
        self.authorize_identity("*", &context)?;
        let policy = match self.text("Policy") {
            Some(text) => self.checked_policy(text)?,
            None => stored_policy(self.world, &default_policy(&self.caller.account))?,
        };
        let mut key = new_key(self.world, &self.caller.account, self.region, policy);
        key.description = self.text("Description").unwrap_or_default().to_owned();
        key.tags = tags;
        if self.text("Policy").is_some() && !self.flag("BypassPolicyLockoutSafetyCheck") {
            let policy = key.policy.latest().clone();
            self.check_lockout(&key, &policy)?;
        }
        let metadata = metadata(&key);
        self.world.note_resource(key.arn.as_str());
        self.kms_mut().keys.insert(key.id.clone(), key);
        self.world.note_change();
        Ok(json!({ "KeyMetadata": metadata }).to_string())
    }

    fn describe_key(&mut self) -> Reply {
        let arn = self.key_named("KeyId")?;
        self.authorize_call(&arn)?;
        Ok(json!({ "KeyMetadata": metadata(self.key(&arn)?) }).to_string())
    }

    fn list_keys(&mut self) -> Reply {
        self.authorize_identity("*", &Context::new())?;
        let keys: Vec<Value> =
            self.kms_mut().keys.values().map(|key| json!({ "KeyId": key.id, "KeyArn": key.arn })).collect();
        self.page("Keys", &keys)
    }

    fn check_policy_name(&self) -> Result<(), ApiError> {
        match self.text("PolicyName") {
            None | Some("default") => Ok(()),
            Some(other) => Err(not_found(&format!("No such policy exists: {other}"))),
        }
    }

    fn get_key_policy(&mut self) -> Reply {
        let arn = self.own_key()?;
        self.authorize_call(&arn)?;
        if let Some(text) = self.key(&arn)?.ram_policy.as_ref().filter(|_| self.text("PolicyName") == Some("AWS_RAM")) {
            return Ok(json!({ "Policy": text, "PolicyName": "AWS_RAM" }).to_string());
        }
        self.check_policy_name()?;
        let text = self.key(&arn)?.policy.latest().text_with_dead_principals(|arn| iam::unique_id(self.world, arn));
        Ok(json!({ "Policy": text, "PolicyName": "default" }).to_string())
    }

    fn put_key_policy(&mut self) -> Reply {
        let arn = self.own_key()?;
        let bypass = self.flag("BypassPolicyLockoutSafetyCheck");
        let context = Context::from([("kms:BypassPolicyLockoutSafetyCheck".to_owned(), vec![bypass.to_string()])]);
        self.authorize("kms:PutKeyPolicy", &arn, &context)?;
        self.check_policy_name()?;
        let text = self.require("Policy")?.to_owned();
        let policy = self.checked_policy(&text)?;
        if !bypass {
            self.check_lockout(self.key(&arn)?, &policy)?;
        }
        let now = self.world.now_ms();
        let delay = self.world.settings.key_policy_delay_ms;
        let key = self.key_mut(&arn)?;
        let changed = key.policy.latest().text != policy.text;
        key.policy.set(policy, now, delay);
        if changed {
            self.world.note_change();
        }
        Ok(String::new())
    }

    /// A policy as it is stored, checked as KMS checks one.
    fn checked_policy(&self, text: &str) -> Result<Arc<Policy>, ApiError> {
        if text.len() > KEY_POLICY_LIMIT {
            return Err(ApiError::bad_request(
                "LimitExceededException",
                format!("Key policy size {} exceeds the maximum of {KEY_POLICY_LIMIT} bytes", text.len()),
            ));
        }
        let latin = |c: char| matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{ff}');
        if !text.chars().all(latin) {
            return Err(validation(
                "1 validation error detected: Value at 'policy' failed to satisfy constraint: \
                 Member must satisfy regular expression pattern: [\\u0009\\u000A\\u000D\\u0020-\\u00FF]+",
            ));
        }
        let document: Value = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        if !statements(&document).into_iter().all(is_about_this_key) {
            return Err(malformed("Policy contains a statement with a Resource other than \"*\"."));
        }
        stored_policy(self.world, &document)
    }

    /// The caller must be able to write the policy again under the new one.
    fn check_lockout(&self, key: &Key, policy: &Policy) -> Result<(), ApiError> {
        let context = auth::key_context(self.caller, key);
        let request = auth::request(self.world, self.caller, "kms:PutKeyPolicy", &key.arn, &context);
        let verdict = policy.evaluate_for(&request, self.caller);
        let allowed = match verdict.allowed {
            None => false,
            Some(NamedAs::Itself) => true,
            Some(NamedAs::Account) => auth::identity_verdict(self.world, self.caller, &request).allowed.is_some(),
        };
        if allowed && !verdict.denied {
            return Ok(());
        }
        Err(malformed("The new key policy will not allow you to update the key policy in the future."))
    }

    fn set_state(&mut self, state: KeyState) -> Reply {
        let arn = self.own_key()?;
        self.authorize_call(&arn)?;
        let key = self.key_mut(&arn)?;
        if key.state == KeyState::PendingDeletion {
            return Err(pending_deletion(&arn));
        }
        let changed = key.state != state;
        key.state = state;
        if changed {
            self.world.note_change();
        }
        Ok(String::new())
    }

    fn schedule_deletion(&mut self) -> Reply {
        let arn = self.own_key()?;
        self.authorize_call(&arn)?;
        let days = self.body.get("PendingWindowInDays").and_then(Value::as_u64).unwrap_or(30);
        if !(7..=30).contains(&days) {
            return Err(validation("PendingWindowInDays must be 7 to 30"));
        }
        let deletion = epoch_seconds() + days * 86_400;
        let key = self.key_mut(&arn)?;
        if key.state == KeyState::PendingDeletion {
            return Err(pending_deletion(&arn));
        }
        key.state = KeyState::PendingDeletion;
        key.deletion = Some(deletion);
        self.world.note_change();
        Ok(json!({
            "KeyId": arn, "DeletionDate": deletion, "KeyState": "PendingDeletion",
            "PendingWindowInDays": days,
        })
        .to_string())
    }

    fn cancel_deletion(&mut self) -> Reply {
        let arn = self.own_key()?;
        self.authorize_call(&arn)?;
        let key = self.key_mut(&arn)?;
        if key.state != KeyState::PendingDeletion {
            return Err(invalid_state(format!("{arn} is not pending deletion.")));
        }
        key.state = KeyState::Disabled;
        key.deletion = None;
        self.world.note_change();
        Ok(json!({ "KeyId": arn }).to_string())
    }

    fn create_alias(&mut self) -> Reply {
        let name = self.require("AliasName")?.to_owned();
        self.body.get("TargetKeyId").ok_or_else(|| validation("TargetKeyId is missing"))?;
        let arn = self.key_named("TargetKeyId")?;
        let alias_arn = format!("arn:aws:kms:{}:{}:{name}", self.region, self.caller.account);
        self.authorize_identity(&alias_arn, &Context::new())?;
        self.authorize_call(&arn)?;
        if !name.starts_with("alias/") || name.len() <= "alias/".len() {
            return Err(ApiError::bad_request(
                "InvalidAliasNameException",
                "Alias must start with the prefix \"alias/\".",
            ));
        }
        if name.starts_with("alias/aws/") {
            return Err(ApiError::bad_request("NotAuthorizedException", ""));
        }
        let key = self.key(&arn)?;
        if key.account != self.caller.account {
            return Err(not_found(&format!("Key '{arn}' does not exist")));
        }
        let id = key.id.clone();
        let kms = self.kms_mut();
        if kms.aliases.contains_key(&name) {
            return Err(ApiError::bad_request(
                "AlreadyExistsException",
                format!("An alias with the name {alias_arn} already exists"),
            ));
        }
        kms.aliases.insert(name.clone(), id);
        self.key_mut(&arn)?.aliases.push(name);
        self.world.note_change();
        Ok(String::new())
    }

    fn delete_alias(&mut self) -> Reply {
        let name = self.require("AliasName")?.to_owned();
        let alias_arn = format!("arn:aws:kms:{}:{}:{name}", self.region, self.caller.account);
        self.authorize_identity(&alias_arn, &Context::new())?;
        let found = resolve_key(self.world, &self.caller.account, self.region, &name);
        let arn = found.ok_or_else(|| not_found(&format!("Alias {alias_arn} is not found.")))?;
        self.authorize_call(&arn)?;
        self.kms_mut().aliases.remove(&name);
        self.key_mut(&arn)?.aliases.retain(|alias| *alias != name);
        self.world.note_change();
        Ok(String::new())
    }

    fn list_aliases(&mut self) -> Reply {
        self.authorize_identity("*", &Context::new())?;
        let only = match self.text("KeyId") {
            Some(_) => Some(self.key_named("KeyId")?),
            None => None,
        };
        let prefix = format!("arn:aws:kms:{}:{}:", self.region, self.caller.account);
        let aliases: Vec<Value> = self
            .kms_mut()
            .aliases
            .iter()
            .filter(|(_, id)| only.as_ref().is_none_or(|arn| arn.ends_with(&format!("/{id}"))))
            .map(|(name, id)| json!({ "AliasName": name, "AliasArn": format!("{prefix}{name}"), "TargetKeyId": id }))
            .collect();
        self.page("Aliases", &aliases)
    }

    fn tag(&mut self) -> Reply {
        let arn = self.own_key()?;
        self.authorize_call(&arn)?;
        let tags = read_tags(self.body);
        self.key_mut(&arn)?.tags.extend(tags);
        self.world.note_change();
        Ok(String::new())
    }

    fn untag(&mut self) -> Reply {
        let arn = self.own_key()?;
        self.authorize_call(&arn)?;
        let keys = self.strings("TagKeys");
        self.key_mut(&arn)?.tags.retain(|key, _| !keys.contains(key));
        self.world.note_change();
        Ok(String::new())
    }

    fn list_tags(&mut self) -> Reply {
        let arn = self.own_key()?;
        self.authorize_call(&arn)?;
        let tags: Vec<Value> =
            self.key(&arn)?.tags.iter().map(|(key, value)| json!({ "TagKey": key, "TagValue": value })).collect();
        self.page("Tags", &tags)
    }

    fn crypto_context(&self, name: &str) -> Context {
        encryption_context(self.body.get(name))
    }

    fn encrypt(&mut self) -> Reply {
        let arn = self.key_named("KeyId")?;
        let context = self.crypto_context("EncryptionContext");
        self.authorize("kms:Encrypt", &arn, &context)?;
        self.check_usable(&arn)?;
        self.check_dry_run()?;
        let blob = seal(&arn, self.require("Plaintext")?, self.body.get("EncryptionContext"));
        Ok(json!({
            "CiphertextBlob": blob, "KeyId": arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        })
        .to_string())
    }

    /// The key and the plaintext of the ciphertext in the request.
    fn open(&self, context_name: &str) -> Result<(String, String), ApiError> {
        let invalid = || ApiError::bad_request("InvalidCiphertextException", "");
        let blob = self.require("CiphertextBlob")?;
        let bytes = BASE64.decode(blob).map_err(|_| invalid())?;
        let sealed: Value = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        let context = self.body.get(context_name).cloned().unwrap_or(json!({}));
        if sealed["context"] != context {
            return Err(invalid());
        }
        match (sealed["key"].as_str(), sealed["plaintext"].as_str()) {
            (Some(key), Some(plaintext)) => Ok((key.to_owned(), plaintext.to_owned())),
            _ => Err(invalid()),
        }
    }

    fn decrypt(&mut self) -> Reply {
        // A dry run needs no ciphertext here when it names the key.
        let opened = self.open("EncryptionContext");
        let arn = match (&opened, self.text("KeyId")) {
            (_, Some(_)) => self.key_named("KeyId")?,
            (Ok((arn, _)), None) => {
                let arn = arn.clone();
                self.world.note_resource(arn.as_str());
                arn
            }
            (Err(error), None) => return Err(error.clone()),
        };
        let context = self.crypto_context("EncryptionContext");
        self.authorize("kms:Decrypt", &arn, &context)?;
        self.check_usable(&arn)?;
        self.check_dry_run()?;
        let (sealed_with, plaintext) = opened?;
        if sealed_with != arn {
            return Err(ApiError::bad_request(
                "IncorrectKeyException",
                "The key ID in the request does not identify a CMK that can perform this operation.",
            ));
        }
        Ok(json!({
            "Plaintext": plaintext, "KeyId": arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        })
        .to_string())
    }

    fn re_encrypt(&mut self) -> Reply {
        let opened = self.open("SourceEncryptionContext");
        let source = match (&opened, self.text("SourceKeyId")) {
            (_, Some(_)) => self.key_named("SourceKeyId")?,
            (Ok((arn, _)), None) => {
                let arn = arn.clone();
                self.world.note_resource(arn.as_str());
                arn
            }
            (Err(error), None) => return Err(error.clone()),
        };
        let destination = self.key_named("DestinationKeyId")?;
        let context = self.crypto_context("SourceEncryptionContext");
        self.authorize("kms:ReEncryptFrom", &source, &context)?;
        let context = self.crypto_context("DestinationEncryptionContext");
        self.authorize("kms:ReEncryptTo", &destination, &context)?;
        self.check_usable(&source)?;
        self.check_usable(&destination)?;
        self.check_dry_run()?;
        let (_, plaintext) = opened?;
        let blob = seal(&destination, &plaintext, self.body.get("DestinationEncryptionContext"));
        Ok(json!({
            "CiphertextBlob": blob, "SourceKeyId": source, "KeyId": destination,
            "SourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
            "DestinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        })
        .to_string())
    }

    fn generate_data_key(&mut self) -> Reply {
        let arn = self.key_named("KeyId")?;
        let context = self.crypto_context("EncryptionContext");
        self.authorize(&format!("kms:{}", self.action), &arn, &context)?;
        self.check_usable(&arn)?;
        self.check_dry_run()?;
        let random = [self.world.next_number(); 4];
        let plaintext = BASE64.encode(random.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>());
        let blob = seal(&arn, &plaintext, self.body.get("EncryptionContext"));
        let mut answer = json!({ "CiphertextBlob": blob, "KeyId": arn });
        if self.action == "GenerateDataKey" {
            answer["Plaintext"] = json!(plaintext);
        }
        Ok(answer.to_string())
    }

    fn create_grant(&mut self) -> Reply {
        let arn = self.key_named("KeyId")?;
        let grantee = self.require("GranteePrincipal")?.to_owned();
        let retiring = self.text("RetiringPrincipal").map(str::to_owned);
        let mut operations = self.strings("Operations");
        operations.sort();
        operations.dedup();
        if operations.is_empty() || !operations.iter().all(|operation| GRANT_OPERATIONS.contains(&operation.as_str())) {
            return Err(validation(format!(
                "1 validation error detected: Value '{operations:?}' at 'operations' failed to satisfy constraint"
            )));
        }
        let constraints = self.body.get("Constraints").cloned();
        let context = self.grant_context(&grantee, retiring.as_deref(), &operations);
        self.authorize("kms:CreateGrant", &arn, &context)?;
        self.check_usable(&arn)?;
        for principal in std::iter::once(&grantee).chain(&retiring) {
            if !principal_exists(self.world, principal) {
                return Err(ApiError::bad_request(
                    "InvalidArnException",
                    format!("Could not find the principal {principal}"),
                ));
            }
        }
        self.check_dry_run()?;
        let token = format!("{:016x}{:016x}", self.world.next_number(), self.world.next_number());
        let name = self.text("Name").map(str::to_owned);
        let now = self.world.now_ms();
        let grant = Grant {
            id: format!("{token}{:032x}", self.world.next_number()),
            token,
            grantee_id: iam::unique_id(self.world, &grantee),
            grantee,
            name,
            retiring_id: retiring.as_deref().and_then(|retiring| iam::unique_id(self.world, retiring)),
            retiring,
            operations,
            constraints,
            issuing_account: format!("arn:aws:iam::{}:root", self.caller.account),
            created: epoch_seconds(),
            effective_from: now + self.world.settings.grant_delay_ms,
        };
        let limit = self.world.settings.grants_per_key;
        let key = self.key_mut(&arn)?;
        // With a name, the same request gives the same grant.
        let same = key.grants.iter().find(|other| {
            grant.name.is_some()
                && other.name == grant.name
                && other.grantee == grant.grantee
                && other.retiring == grant.retiring
                && other.operations == grant.operations
                && other.constraints == grant.constraints
        });
        if let Some(same) = same {
            return Ok(json!({ "GrantId": same.id, "GrantToken": same.token }).to_string());
        }
        if key.grants.len() >= limit {
            let message = format!("Grants quota for key {arn} exceeded: {limit}");
            return Err(ApiError::bad_request("LimitExceededException", message));
        }
        let answer = json!({ "GrantId": grant.id, "GrantToken": grant.token });
        key.grants.push(grant);
        self.world.note_change();
        Ok(answer.to_string())
    }

    fn grant_context(&self, grantee: &str, retiring: Option<&str>, operations: &[String]) -> Context {
        let mut context = Context::from([
            ("kms:GrantOperations".to_owned(), operations.to_vec()),
            ("kms:GranteePrincipal".to_owned(), vec![grantee.to_owned()]),
            ("kms:GrantIsForAWSResource".to_owned(), vec!["false".to_owned()]),
        ]);
        if let Some(retiring) = retiring {
            context.insert("kms:RetiringPrincipal".to_owned(), vec![retiring.to_owned()]);
        }
        let constraint =
            self.body.get("Constraints").and_then(Value::as_object).and_then(|constraints| constraints.keys().next());
        if let Some(kind) = constraint {
            context.insert("kms:GrantConstraintType".to_owned(), vec![kind.clone()]);
        }
        context
    }

    fn list_grants(&mut self) -> Reply {
        let arn = self.key_named("KeyId")?;
        self.authorize_call(&arn)?;
        let id = self.text("GrantId");
        let grantee = self.text("GranteePrincipal");
        let grants: Vec<Value> = self
            .key(&arn)?
            .grants
            .iter()
            .filter(|grant| id.is_none_or(|id| id == grant.id))
            .filter(|grant| grantee.is_none_or(|grantee| grantee == grant.grantee))
            .map(|grant| grant_entry(self.world, &arn, grant))
            .collect();
        self.page("Grants", &grants)
    }

    /// Takes the grant away, now or after the delay for grants.
    fn end_grant(&mut self, arn: &str, grant_id: &str) -> Result<(), ApiError> {
        let until = self.world.now_ms() + self.world.settings.grant_delay_ms;
        let key = self.key_mut(arn)?;
        let index = key
            .grants
            .iter()
            .position(|grant| grant.id == grant_id)
            .ok_or_else(|| not_found(&format!("Grant ID {grant_id} not found")))?;
        let grant = key.grants.remove(index);
        key.ended_grants.push((grant, until));
        self.world.note_change();
        Ok(())
    }

    fn revoke_grant(&mut self) -> Reply {
        let arn = self.key_named("KeyId")?;
        self.authorize_call(&arn)?;
        let grant_id = self.require("GrantId")?.to_owned();
        if !self.key(&arn)?.grants.iter().any(|grant| grant.id == grant_id) {
            return Err(not_found(&format!("Grant ID {grant_id} not found")));
        }
        self.check_dry_run()?;
        self.end_grant(&arn, &grant_id)?;
        Ok(String::new())
    }

    /// May be done by the retiring principal, by a grantee with that operation,
    /// and by the account that the grant was made from, which can delegate it; a
    /// session policy limits them all. A key policy cannot allow it ("Retiring
    /// and revoking grants", KMS developer guide).
    fn retire_grant(&mut self) -> Reply {
        let (arn, grant) = match self.text("GrantToken") {
            Some(token) => self.grant_of_token(token)?,
            None => {
                let arn = self.key_named("KeyId")?;
                let id = self.require("GrantId")?.to_owned();
                let grant = self
                    .key(&arn)?
                    .grants
                    .iter()
                    .find(|grant| grant.id == id)
                    .cloned()
                    .ok_or_else(|| not_found(&format!("Grant ID {id} not found")))?;
                (arn, grant)
            }
        };
        let retiring = grant.retiring.as_deref();
        let same = grant.retiring_id.as_ref().is_none_or(|id| *id == self.caller.principal_id);
        let is_retiring = (retiring == Some(&self.caller.arn) && same)
            || retiring == Some(&self.caller.session_arn)
            || (self.caller.kind == CallerKind::Root && retiring == Some(&self.caller.account));
        let is_grantee = grant.is_for(self.caller).is_some() && grant.operations.iter().any(|op| op == "RetireGrant");
        let issued_it = grant.issuing_account == format!("arn:aws:iam::{}:root", self.caller.account);
        if !is_retiring && !is_grantee && !issued_it {
            let denied = auth::denied(self.caller, "kms:RetireGrant", &arn, Refusal::KeyPolicy, false);
            return Err(Service::Kms.denied(denied));
        }
        auth::authorize_retirement(self.world, self.caller, &arn, is_retiring || is_grantee)
            .map_err(|denied| Service::Kms.denied(denied))?;
        self.check_dry_run()?;
        self.end_grant(&arn, &grant.id)?;
        Ok(String::new())
    }

    fn grant_of_token(&self, token: &str) -> Result<(String, Grant), ApiError> {
        self.world
            .accounts
            .values()
            .filter_map(|account| account.kms.get(self.region))
            .flat_map(|kms| kms.keys.values())
            .find_map(|key| {
                let grant = key.grants.iter().find(|grant| grant.token == token)?;
                Some((key.arn.clone(), grant.clone()))
            })
            .ok_or_else(|| ApiError::bad_request("InvalidGrantTokenException", "Grant token is not valid"))
    }

    /// One page of a list, as `Limit` and `Marker` ask.
    fn page(&self, name: &str, items: &[Value]) -> Reply {
        let number = |value: Option<u64>| value.and_then(|value| usize::try_from(value).ok());
        let start = match self.text("Marker") {
            None => 0,
            Some(marker) => marker
                .parse::<usize>()
                .ok()
                .filter(|start| *start <= items.len())
                .ok_or_else(|| ApiError::bad_request("InvalidMarkerException", "Marker is not valid"))?,
        };
        let limit = number(self.body.get("Limit").and_then(Value::as_u64)).unwrap_or(100);
        let end = items.len().min(start + limit.max(1));
        let mut answer = json!({ "Truncated": end < items.len() });
        answer[name] = json!(items[start..end]);
        if end < items.len() {
            answer["NextMarker"] = json!(end.to_string());
        }
        Ok(answer.to_string())
    }
}

/// The policy of a key for which none was given: the account decides.
fn default_policy(account: &str) -> Value {
    json!({
        "Version": "2012-10-17",
        "Id": "key-default-1",
        "Statement": [{
            "Sid": "Enable IAM User Permissions",
            "Effect": "Allow",
            "Principal": { "AWS": format!("arn:aws:iam::{account}:root") },
            "Action": "kms:*",
            "Resource": "*",
        }],
    })
}

/// The document as KMS keeps it and gives it back: account ids as root ARNs,
/// laid out anew, its principals checked and bound to their unique ids.
fn stored_policy(world: &World, document: &Value) -> Result<Arc<Policy>, ApiError> {
    let mut document = document.clone();
    spell_out_accounts(&mut document);
    let mut text = String::new();
    write_json(&mut text, &document, 0);
    let mut policy = Policy::parse(&text, PolicyKind::Key).map_err(malformed)?;
    if policy.aws_principals().any(|principal| !principal_exists(world, principal)) {
        return Err(malformed("Policy contains a statement with one or more invalid principals."));
    }
    policy.bind(|arn| iam::unique_id(world, arn));
    Ok(Arc::new(policy))
}

fn principal_exists(world: &World, principal: &str) -> bool {
    let account = principal.split(':').nth(4).unwrap_or(principal);
    iam::principal_exists(world, principal) && !world.unknown_to_kms.contains(account)
}

fn statements(document: &Value) -> Vec<&Value> {
    match document.get("Statement") {
        Some(Value::Array(statements)) => statements.iter().collect(),
        Some(single) => vec![single],
        None => Vec::new(),
    }
}

/// What KMS asks of statements that are written since August 2025, by AWS's notice to owners of such keys; those from
/// before stay. The text of its refusal is made up.
fn is_about_this_key(statement: &Value) -> bool {
    let resource = &statement["Resource"];
    let all = resource == "*" || resource.as_array().is_some_and(|resources| resources.iter().all(|one| one == "*"));
    statement.get("NotResource").is_none() && (resource.is_null() || all)
}

fn spell_out_accounts(document: &mut Value) {
    let statements = match document.get_mut("Statement") {
        Some(Value::Array(statements)) => statements.iter_mut().collect(),
        Some(single) => vec![single],
        None => Vec::new(),
    };
    let spell_out = |principal: &mut Value| {
        if let Some(id) = principal.as_str()
            && id.len() == 12
            && id.bytes().all(|byte| byte.is_ascii_digit())
        {
            *principal = json!(format!("arn:aws:iam::{id}:root"));
        }
    };
    for statement in statements {
        for element in ["Principal", "NotPrincipal"] {
            match statement.get_mut(element).and_then(|principal| principal.get_mut("AWS")) {
                Some(Value::Array(principals)) => principals.iter_mut().for_each(spell_out),
                Some(single) => spell_out(single),
                None => {}
            }
        }
    }
}

/// JSON in the layout that KMS answers with: `"Name" : value`, two spaces, lists
/// on one line.
fn write_json(text: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if map.is_empty() => text.push_str("{ }"),
        Value::Object(map) => {
            text.push('{');
            for (index, (name, value)) in map.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                let indent = "  ".repeat(depth + 1);
                // Writing to a String cannot fail.
                let _ = write!(text, "{comma}\n{indent}{} : ", json!(name));
                write_json(text, value, depth + 1);
            }
            let _ = write!(text, "\n{}}}", "  ".repeat(depth));
        }
        Value::Array(values) if values.is_empty() => text.push_str("[ ]"),
        Value::Array(values) => {
            text.push_str("[ ");
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    text.push_str(", ");
                }
                write_json(text, value, depth);
            }
            text.push_str(" ]");
        }
        other => text.push_str(&other.to_string()),
    }
}

fn metadata(key: &Key) -> Value {
    let mut metadata = json!({
        "AWSAccountId": key.account,
        "KeyId": key.id,
        "Arn": key.arn,
        "CreationDate": key.created,
        "Enabled": key.state == KeyState::Enabled,
        "Description": key.description,
        "KeyUsage": "ENCRYPT_DECRYPT",
        "KeyState": key.state.name(),
        "Origin": "AWS_KMS",
        "KeyManager": if key.aws_managed { "AWS" } else { "CUSTOMER" },
        "CustomerMasterKeySpec": "SYMMETRIC_DEFAULT",
        "KeySpec": "SYMMETRIC_DEFAULT",
        "EncryptionAlgorithms": ["SYMMETRIC_DEFAULT"],
        "MultiRegion": false,
    });
    if let Some(deletion) = key.deletion {
        metadata["DeletionDate"] = json!(deletion);
    }
    metadata
}

fn grant_entry(world: &World, arn: &str, grant: &Grant) -> Value {
    let grantee = shown(world, &grant.grantee, grant.grantee_id.as_ref());
    let mut entry = json!({
        "KeyId": arn,
        "GrantId": grant.id,
        "CreationDate": grant.created,
        "GranteePrincipal": grantee,
        "IssuingAccount": grant.issuing_account,
        "Operations": grant.operations,
    });
    if let Some(name) = &grant.name {
        entry["Name"] = json!(name);
    }
    if let Some(retiring) = &grant.retiring {
        entry["RetiringPrincipal"] = json!(shown(world, retiring, grant.retiring_id.as_ref()));
    }
    if let Some(constraints) = &grant.constraints {
        entry["Constraints"] = constraints.clone();
    }
    entry
}

/// A principal that is gone is shown by its unique id, also where another one has its name now ("Unique identifiers", IAM
/// user guide).
fn shown<'p>(world: &World, principal: &'p String, id: Option<&'p String>) -> &'p String {
    match id {
        Some(id) if iam::unique_id(world, principal).as_ref() != Some(id) => id,
        _ => principal,
    }
}

fn encryption_context(pairs: Option<&Value>) -> Context {
    let mut context = Context::new();
    let mut keys = Vec::new();
    for (key, value) in pairs.and_then(Value::as_object).into_iter().flatten() {
        keys.push(key.clone());
        context.insert(format!("kms:EncryptionContext:{key}"), vec![value.as_str().unwrap_or_default().to_owned()]);
    }
    context.insert("kms:EncryptionContextKeys".to_owned(), keys);
    context
}

/// A ciphertext is its own record of key, plaintext and context: nothing here is secret.
fn seal(arn: &str, plaintext: &str, context: Option<&Value>) -> String {
    let sealed = json!({
        "key": arn,
        "plaintext": plaintext,
        "context": context.cloned().unwrap_or(json!({})),
    });
    BASE64.encode(sealed.to_string())
}

fn read_tags(body: &Value) -> BTreeMap<String, String> {
    body.get("Tags")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|tag| {
            let text = |name: &str| tag.get(name).and_then(Value::as_str).map(str::to_owned);
            Some((text("TagKey")?, text("TagValue").unwrap_or_default()))
        })
        .collect()
}

fn missing_key_message(key_id: &str, region: &str, account: &str) -> String {
    if key_id.starts_with("alias/") {
        return format!("Alias arn:aws:kms:{region}:{account}:{key_id} is not found.");
    }
    if key_id.contains(":alias/") {
        return format!("Alias {key_id} is not found.");
    }
    if key_id.starts_with("arn:") {
        if key_id.split(':').nth(3) != Some(region) {
            return format!("Invalid arn {}", key_id.split(':').nth(3).unwrap_or_default());
        }
        return format!("Key '{key_id}' does not exist");
    }
    if key_id.len() == 36 {
        return format!("Key 'arn:aws:kms:{region}:{account}:key/{key_id}' does not exist");
    }
    format!("Invalid keyId '{key_id}'")
}

fn not_found(message: &str) -> ApiError {
    ApiError::bad_request("NotFoundException", message)
}

fn malformed(message: impl Into<String>) -> ApiError {
    ApiError::bad_request("MalformedPolicyDocumentException", message)
}

fn validation(message: impl Into<String>) -> ApiError {
    ApiError::bad_request("ValidationException", message)
}

fn invalid_state(message: String) -> ApiError {
    ApiError::bad_request("KMSInvalidStateException", message)
}

fn pending_deletion(arn: &str) -> ApiError {
    invalid_state(format!("{arn} is pending deletion."))
}

/// The keys of one account and region in canonical form. The AWS-managed key is
/// left out: it comes into being by being looked at, and nobody can change it.
pub(crate) fn snapshot(kms: &Kms) -> Value {
    let keys: BTreeMap<&String, Value> = kms
        .keys
        .values()
        .filter(|key| !key.aws_managed)
        .map(|key| {
            let mut grants: Vec<Value> = key
                .grants
                .iter()
                .map(|grant| {
                    json!({
                        "grantee": grant.grantee,
                        "name": grant.name,
                        "retiring": grant.retiring,
                        "operations": grant.operations,
                        "constraints": grant.constraints,
                        "issuingAccount": grant.issuing_account,
                    })
                })
                .collect();
            grants.sort_by_key(Value::to_string);
            let mut aliases = key.aliases.clone();
            aliases.sort();
            let value = json!({
                "state": key.state.name(),
                "policy": key.policy.latest().json(),
                "grants": grants,
                "aliases": aliases,
                "tags": key.tags,
            });
            (&key.arn, value)
        })
        .collect();
    json!(keys)
}
