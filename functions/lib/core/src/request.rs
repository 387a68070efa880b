//! The inputs of the state machines, parsed with every problem named at once.
//!
//! serde stops at the first problem and an operator would meet the rest one execution at a time, so
//! the request is read field by field.

use std::{cell::RefCell, collections::BTreeMap};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    error::Problem,
    ids::{AccountId, ImageId, KeyArn, PlanHash, PrincipalArn, Region},
    plan,
    share::{Action, KeyAccess, Launch, OnFailure, PrincipalAccess, Prove, Reencrypt, ReencryptMode, Source},
};

/// The most targets of one request, for the execution's history: see [`crate::polling`].
pub const MAX_TARGETS: usize = 50;

/// The most targets of one request that copy the image, which takes more looks than a launch.
pub const MAX_COPIES: usize = 20;

/// The most principals of one target: what states pass to each other ends at 262,144 bytes.
pub const MAX_PRINCIPALS: usize = 20;

/// The most security groups of a network interface ("Amazon VPC quotas", VPC user guide).
const MAX_SECURITY_GROUPS: usize = 16;

/// The most tags of a proof's instance besides ours: a resource has 50 at most.
const MAX_TAGS: usize = 40;

/// The input of share-ami, every field of it checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Request {
    /// The image to share.
    pub image_id: ImageId,
    /// Where the image is; the hub's Region and the parameter `SourceAccountId` where it names none.
    pub source: Source,
    /// 1 to [`MAX_TARGETS`], each account once.
    pub targets: Vec<RequestedTarget>,
    /// `policy` where it says nothing.
    pub key_access: KeyAccess,
    /// `attach` where it says nothing.
    pub principal_access: PrincipalAccess,
    /// Whether an image is refused whose volumes are not all encrypted, whatever the hub allows.
    pub require_encryption: bool,
    /// `undo` where it says nothing.
    pub on_failure: OnFailure,
    /// `apply` where it says nothing.
    #[serde(skip)]
    pub action: Action,
    /// The plan that is applied, and none other.
    #[serde(skip)]
    pub plan_hash: Option<PlanHash>,
}

/// One entry of `targets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestedTarget {
    /// Never the source account.
    pub account_id: AccountId,
    /// Those that launch the image besides the launcher; at most [`MAX_PRINCIPALS`], all of the target.
    pub principals: Vec<PrincipalArn>,
    /// Nothing where volumes stay under the keys that EC2 gives them.
    pub reencrypt: Option<Reencrypt>,
    /// How the proof is launched.
    pub launch: Launch,
    /// Whether it gets the permission to make volumes of the image's snapshots, and to copy them. Left out of the hash where
    /// it is not asked for, so that plans of before stay true.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub snapshots: bool,
}

/// The input of audit-shares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRequest {
    /// Nothing: every image that the source account owns in the Region.
    pub image_id: Option<ImageId>,
    /// As in a [`Request`].
    pub source: Source,
}

impl AuditRequest {
    /// # Errors
    /// As [`Request::parse`].
    pub fn parse(request: &Value, default_source: &Source) -> Result<Self, Vec<Problem>> {
        collected(|problems| {
            let fields = Fields::of(request, "", problems)?;
            let image_id = fields.optional("imageId", ImageId::parse);
            let source = read_source(&fields, default_source);
            fields.refuse_others(&["imageId", "source"]);
            Some(Self { image_id: image_id?, source: source? })
        })
    }
}

impl Request {
    /// Reads a request; what it does not say of its source is taken from `default_source`.
    ///
    /// # Errors
    /// Every problem: unknown and missing fields, values of a wrong type or form, values that
    /// contradict each other, and what this version does not do.
    pub fn parse(request: &Value, default_source: &Source) -> Result<Self, Vec<Problem>> {
        collected(|problems| read_request(request, default_source, Action::Apply, problems))
    }

    /// The same for a state machine that makes plans only: that is what it does of a request that does not say.
    ///
    /// # Errors
    /// As [`Request::parse`], and of a request that asks for more than a plan.
    pub fn parse_plan(request: &Value, default_source: &Source) -> Result<Self, Vec<Problem>> {
        collected(|problems| read_request(request, default_source, Action::Plan, problems))
    }

    /// A hash of what it asks for, which is the same whether that is planned or applied.
    pub fn asked(&self) -> String {
        plan::hash(&json!(self)).to_string()
    }
}

pub(crate) type Problems = RefCell<Vec<Problem>>;

pub(crate) fn collected<T>(read: impl FnOnce(&Problems) -> Option<T>) -> Result<T, Vec<Problem>> {
    let problems = RefCell::default();
    let parsed = read(&problems);
    let problems = problems.into_inner();
    match parsed {
        Some(request) if problems.is_empty() => Ok(request),
        _ => Err(problems),
    }
}

fn read_request(request: &Value, default_source: &Source, most: Action, problems: &Problems) -> Option<Request> {
    let fields = Fields::of(request, "", problems)?;
    let image_id = fields.required("imageId", ImageId::parse);
    let source = read_source(&fields, default_source);
    let targets = read_targets(&fields, source.as_ref(), problems);
    let (action, plan_hash) = read_action(&fields, most);
    let key_access = fields.or("keyAccess", KeyAccess::Policy, |v| {
        one_of(&v, &[("policy", KeyAccess::Policy), ("grant", KeyAccess::Grant)], &[])
    });
    let principal_access = fields.or("principalAccess", PrincipalAccess::Attach, |v| {
        one_of(&v, &[("attach", PrincipalAccess::Attach), ("inline", PrincipalAccess::Inline)], &[])
    });
    let on_failure = fields.or("onFailure", OnFailure::Undo, |v| {
        one_of(&v, &[("undo", OnFailure::Undo), ("undoAll", OnFailure::UndoAll), ("keep", OnFailure::Keep)], &[])
    });
    let require_encryption = fields.flag("requireEncryption");
    fields.empty_list("organizationArns");
    fields.empty_list("organizationalUnitArns");
    fields.refuse_others(&[
        "imageId",
        "source",
        "targets",
        "action",
        "planHash",
        "keyAccess",
        "principalAccess",
        "requireEncryption",
        "onFailure",
        "organizationArns",
        "organizationalUnitArns",
    ]);
    Some(Request {
        image_id: image_id?,
        source: source?,
        targets: targets?,
        key_access: key_access?,
        principal_access: principal_access?,
        require_encryption: require_encryption?,
        on_failure: on_failure?,
        action: action?,
        plan_hash: plan_hash?,
    })
}

/// The action, and the plan that it is to apply. `most` is what the state machine does at most, and of a request that does
/// not say.
pub(crate) fn read_action(fields: &Fields, most: Action) -> (Option<Action>, Option<Option<PlanHash>>) {
    let action = fields.or("action", most, |v| match most {
        Action::Apply => one_of(&v, &[("apply", Action::Apply), ("plan", Action::Plan)], &[("audit", ELSEWHERE)]),
        Action::Plan => one_of(&v, &[("plan", Action::Plan)], &[("apply", APPLIES), ("audit", ELSEWHERE)]),
    });
    let plan_hash = fields.optional("planHash", PlanHash::parse);
    if action == Some(Action::Plan) && fields.get("planHash").is_some() {
        fields.problem("planHash", None, "goes with action apply only: a plan is made of what is there now".to_owned());
    }
    (action, plan_hash)
}

pub(crate) fn read_source(fields: &Fields, default_source: &Source) -> Option<Source> {
    let Some(value) = fields.get("source") else { return Some(default_source.clone()) };
    let fields = Fields::of(value, "source", fields.problems)?;
    let account_id = fields.or("accountId", default_source.account_id.clone(), AccountId::parse);
    let region = fields.or("region", default_source.region.clone(), Region::parse);
    fields.refuse_others(&["accountId", "region"]);
    Some(Source { account_id: account_id?, region: region? })
}

const LATER: &str = "is not supported by this version";
const ELSEWHERE: &str = "is a state machine of its own, audit-shares";
const APPLIES: &str = "is what share-ami does: plan-share makes plans and nothing else";

fn read_targets(fields: &Fields, source: Option<&Source>, problems: &Problems) -> Option<Vec<RequestedTarget>> {
    let list = fields.list("targets")?;
    if list.is_empty() || list.len() > MAX_TARGETS {
        fields.problem("targets", Some(format!("{} targets", list.len())), format!("must be 1 to {MAX_TARGETS}"));
    }
    let targets: Vec<Option<RequestedTarget>> = list
        .iter()
        .enumerate()
        .map(|(index, value)| read_target(value, &format!("targets[{index}]"), source, problems))
        .collect();
    let copies = targets
        .iter()
        .flatten()
        .filter(|target| target.reencrypt.as_ref().is_some_and(|reencrypt| reencrypt.mode == ReencryptMode::CopyImage));
    let copies = copies.count();
    if copies > MAX_COPIES {
        let rule = format!("must be at most {MAX_COPIES}; spread them over several requests");
        fields.problem("targets", Some(format!("{copies} targets with copyImage")), rule);
    }
    let mut seen = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        let Some(account_id) = target.as_ref().map(|target| &target.account_id) else { continue };
        if seen.contains(&account_id) {
            fields.problem(
                &format!("targets[{index}].accountId"),
                Some(format!("\"{account_id}\"")),
                "must be named once: another target is the same account".to_owned(),
            );
        }
        seen.push(account_id);
    }
    targets.into_iter().collect()
}

fn read_target(value: &Value, path: &str, source: Option<&Source>, problems: &Problems) -> Option<RequestedTarget> {
    let fields = Fields::of(value, path, problems)?;
    let account_id = fields.required("accountId", AccountId::parse);
    if let (Some(account_id), Some(source)) = (&account_id, source)
        && *account_id == source.account_id
    {
        fields.problem("accountId", Some(format!("\"{account_id}\"")), "must not be the source account".to_owned());
    }
    let principals = read_principals(&fields, account_id.as_ref());
    fields.empty_list("serviceLinkedRoles");
    let reencrypt = match fields.get("reencrypt") {
        None | Some(Value::Null) => Some(None),
        Some(value) => {
            read_reencrypt(value, &fields.path("reencrypt"), account_id.as_ref(), source, problems).map(Some)
        }
    };
    let launch = match fields.get("launch") {
        None => Some(Launch::default()),
        Some(value) => read_launch(value, &fields.path("launch"), problems),
    };
    let snapshots = fields.flag("snapshots");
    fields.refuse_others(&["accountId", "principals", "serviceLinkedRoles", "reencrypt", "launch", "snapshots"]);
    Some(RequestedTarget {
        account_id: account_id?,
        principals: principals?,
        reencrypt: reencrypt?,
        launch: launch?,
        snapshots: snapshots?,
    })
}

fn read_principals(fields: &Fields, account_id: Option<&AccountId>) -> Option<Vec<PrincipalArn>> {
    let Some(list) = fields.get("principals") else { return Some(Vec::new()) };
    let Some(list) = list.as_array() else {
        fields.problem("principals", Some(list.to_string()), "must be a list of ARNs".to_owned());
        return None;
    };
    if list.len() > MAX_PRINCIPALS {
        let rule = format!("must be at most {MAX_PRINCIPALS}");
        fields.problem("principals", Some(format!("{} principals", list.len())), rule);
    }
    let mut principals = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let field = format!("principals[{index}]");
        let rule = match value.as_str().ok_or("a string".to_owned()).and_then(PrincipalArn::parse) {
            Err(rule) => format!("must be {rule}"),
            Ok(arn) if arn.is_service_linked() => {
                "must not be a service-linked role: only AWS changes its policies; give it a grant on the image's keys, in \
                 the target (kms:CreateGrant)"
                    .to_owned()
            }
            Ok(arn) if arn.is_of_identity_center() => {
                "must not be a role of IAM Identity Center: only its permission set changes it; put AmiShareKeyAccess into \
                 that, as a customer managed policy"
                    .to_owned()
            }
            Ok(arn) if account_id.is_some_and(|account| arn.account_id() != *account) => {
                format!("must be in its target account: {} is not", arn.account_id())
            }
            Ok(arn) => {
                if !principals.contains(&arn) {
                    principals.push(arn);
                }
                continue;
            }
        };
        fields.problem(&field, Some(value.to_string()), rule);
    }
    Some(principals)
}

fn read_reencrypt(
    value: &Value,
    path: &str,
    account_id: Option<&AccountId>,
    source: Option<&Source>,
    problems: &Problems,
) -> Option<Reencrypt> {
    let fields = Fields::of(value, path, problems)?;
    let mode = fields.required("mode", |mode| {
        one_of(
            &mode,
            &[("atLaunch", ReencryptMode::AtLaunch), ("copyImage", ReencryptMode::CopyImage)],
            &[("afterLaunch", LATER)],
        )
    });
    let kms_key_id = fields.required("kmsKeyId", |id| check_key_id(id, account_id, source));
    fields.refuse_others(&["mode", "kmsKeyId"]);
    Some(Reencrypt { mode: mode?, kms_key_id: kms_key_id? })
}

/// A key id, a key ARN, an alias name or an alias ARN ("KeyId" in the KMS API reference).
fn check_key_id(id: String, account_id: Option<&AccountId>, source: Option<&Source>) -> Result<String, String> {
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_-".contains(&b));
    if let Some(alias) = id.strip_prefix("alias/") {
        return if word(alias) { Ok(id) } else { Err("an alias name (alias/<name>)".to_owned()) };
    }
    if !id.starts_with("arn:") {
        return if word(&id) && !id.contains('/') { Ok(id) } else { Err("a key id, key ARN or alias".to_owned()) };
    }
    let (head, resource) = id.rsplit_once(':').unwrap_or_default();
    // An alias's ARN is a key's but for its last part, which may have slashes.
    let arn = match resource.strip_prefix("alias/").filter(|alias| word(alias)) {
        Some(alias) => KeyArn::parse(format!("{head}:key/{}", alias.replace('/', "-"))),
        None => KeyArn::parse(id.as_str()),
    };
    let arn = arn.map_err(|_| "a key id, key ARN or alias".to_owned())?;
    if account_id.is_some_and(|account| arn.account_id() != *account) {
        return Err(format!("a key of the target account, not of {}", arn.account_id()));
    }
    if source.is_some_and(|source| arn.region() != source.region) {
        return Err(format!("a key in the image's Region, not in {}", arn.region()));
    }
    Ok(id)
}

fn read_launch(value: &Value, path: &str, problems: &Problems) -> Option<Launch> {
    let fields = Fields::of(value, path, problems)?;
    let instance_type = fields.optional("instanceType", |id| {
        let whole = id.split_once('.').is_some_and(|(family, size)| {
            let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            word(family) && word(size)
        });
        if whole { Ok(id) } else { Err("an instance type, such as t3.micro".to_owned()) }
    });
    let subnet_id = fields.optional("subnetId", |id| {
        let whole =
            id.strip_prefix("subnet-").is_some_and(|hex| !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()));
        if whole { Ok(id) } else { Err("a subnet id (subnet-…)".to_owned()) }
    });
    let security_group_ids = read_security_groups(&fields);
    let tags = read_tags(&fields);
    let keep = fields.flag("keep");
    let prove = fields.or("prove", Prove::OnChange, |v| {
        one_of(&v, &[("onChange", Prove::OnChange), ("always", Prove::Always), ("never", Prove::Never)], &[])
    });
    if keep == Some(true) && prove == Some(Prove::Never) {
        fields.problem(
            "keep",
            None,
            "goes with a proof only: with prove never there is no instance to keep".to_owned(),
        );
    }
    if fields.get("roleArn").is_some() {
        fields.problem("roleArn", None, LATER.to_owned());
    }
    fields.refuse_others(&["instanceType", "subnetId", "securityGroupIds", "tags", "keep", "prove", "roleArn"]);
    Some(Launch {
        instance_type: instance_type?,
        subnet_id: subnet_id?,
        security_group_ids: security_group_ids?,
        tags: tags?,
        keep: keep?,
        prove: prove?,
    })
}

fn read_security_groups(fields: &Fields) -> Option<Vec<String>> {
    if fields.get("securityGroupIds").is_none() {
        return Some(Vec::new());
    }
    let is_group = |id: &&str| {
        id.strip_prefix("sg-").is_some_and(|hex| !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let list = fields.list("securityGroupIds")?;
    let ids: Option<Vec<String>> = list.iter().map(|id| id.as_str().filter(is_group).map(str::to_owned)).collect();
    if ids.is_none() || list.len() > MAX_SECURITY_GROUPS {
        let rule = format!("must be at most {MAX_SECURITY_GROUPS} ids of security groups (sg-…)");
        fields.problem("securityGroupIds", Some(Value::Array(list.clone()).to_string()), rule);
        return None;
    }
    ids
}

/// What EC2 takes as tags ("Tag your Amazon EC2 resources", EC2 user guide), and not ours, which tell what to take back.
fn read_tags(fields: &Fields) -> Option<BTreeMap<String, String>> {
    let Some(value) = fields.get("tags") else { return Some(BTreeMap::new()) };
    let tag = |(key, value): (&String, &Value)| {
        let value = value.as_str().filter(|value| value.chars().count() <= 256)?;
        let reserved = ["aws:", "ami-share:"].iter().any(|prefix| key.to_ascii_lowercase().starts_with(prefix));
        let fits = (1..=128).contains(&key.chars().count()) && !reserved;
        fits.then(|| (key.clone(), value.to_owned()))
    };
    let tags: Option<BTreeMap<String, String>> =
        value.as_object().filter(|tags| tags.len() <= MAX_TAGS).and_then(|tags| tags.iter().map(tag).collect());
    if tags.is_none() {
        let rule = format!(
            "must be an object of at most {MAX_TAGS} tags: keys of 1 to 128 characters that do not begin with aws: or \
             ami-share:, values of at most 256"
        );
        fields.problem("tags", Some(value.to_string()), rule);
    }
    tags
}

/// `Err` holds a rule to follow "must be", or a whole sentence from `refused`.
pub(crate) fn one_of<T: Copy>(value: &str, known: &[(&str, T)], refused: &[(&str, &str)]) -> Result<T, String> {
    if let Some((_, found)) = known.iter().find(|(name, _)| *name == value) {
        return Ok(*found);
    }
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let reason = refused.iter().find(|(name, _)| *name == value).map(|(name, reason)| format!(": {name} {reason}"));
    Err(format!("{}{}", names.join(" or "), reason.unwrap_or_default()))
}

/// The fields of one JSON object, and where to note what is wrong with them.
pub(crate) struct Fields<'a> {
    path: &'a str,
    object: &'a Map<String, Value>,
    problems: &'a Problems,
}

impl<'a> Fields<'a> {
    pub(crate) fn of(value: &'a Value, path: &'a str, problems: &'a Problems) -> Option<Self> {
        if let Some(object) = value.as_object() {
            return Some(Self { path, object, problems });
        }
        problems.borrow_mut().push(Problem {
            field: if path.is_empty() { "request".to_owned() } else { path.to_owned() },
            value: Some(value.to_string()),
            rule: "must be an object".to_owned(),
        });
        None
    }

    fn path(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    pub(crate) fn problem(&self, field: &str, value: Option<String>, rule: String) {
        self.problems.borrow_mut().push(Problem { field: self.path(field), value, rule });
    }

    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.object.get(field)
    }

    /// `None` when there is a problem, which is noted.
    pub(crate) fn required<T>(&self, field: &str, parse: impl FnOnce(String) -> Result<T, String>) -> Option<T> {
        let Some(value) = self.get(field) else {
            self.problem(field, None, "is required".to_owned());
            return None;
        };
        match value.as_str().ok_or("a string".to_owned()).and_then(|text| parse(text.to_owned())) {
            Ok(parsed) => Some(parsed),
            Err(rule) => {
                self.problem(field, Some(value.to_string()), format!("must be {rule}"));
                None
            }
        }
    }

    fn optional<T>(&self, field: &str, parse: impl FnOnce(String) -> Result<T, String>) -> Option<Option<T>> {
        if self.get(field).is_none() { Some(None) } else { self.required(field, parse).map(Some) }
    }

    pub(crate) fn or<T>(&self, field: &str, default: T, parse: impl FnOnce(String) -> Result<T, String>) -> Option<T> {
        self.optional(field, parse).map(|value| value.unwrap_or(default))
    }

    /// `false` where it is not there.
    pub(crate) fn flag(&self, field: &str) -> Option<bool> {
        match self.get(field) {
            None => Some(false),
            Some(Value::Bool(flag)) => Some(*flag),
            Some(other) => {
                self.problem(field, Some(other.to_string()), "must be true or false".to_owned());
                None
            }
        }
    }

    fn list(&self, field: &str) -> Option<&'a Vec<Value>> {
        match self.get(field) {
            Some(Value::Array(list)) => Some(list),
            Some(other) => {
                self.problem(field, Some(other.to_string()), "must be a list".to_owned());
                None
            }
            None => {
                self.problem(field, None, "is required".to_owned());
                None
            }
        }
    }

    /// A list that the design has and this version does not: allowed while it is empty.
    fn empty_list(&self, field: &str) {
        match self.get(field) {
            None => {}
            Some(Value::Array(list)) if list.is_empty() => {}
            Some(other) => {
                let rule =
                    format!("{LATER}; must be empty: name each account in targets, whoever the hub stack allows");
                self.problem(field, Some(other.to_string()), rule);
            }
        }
    }

    pub(crate) fn refuse_others(&self, known: &[&str]) {
        for (field, value) in self.object.iter().filter(|(field, _)| !known.contains(&field.as_str())) {
            let rule = format!("is not a field here; known are {}", known.join(", "));
            self.problem(field, Some(value.to_string()), rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(request: Value) -> Result<Request, Vec<Problem>> {
        let source = Source {
            account_id: AccountId::parse("111111111111").unwrap(),
            region: Region::parse("eu-west-1").unwrap(),
        };
        Request::parse(&request, &source)
    }

    fn fields(request: Value) -> Vec<String> {
        parse(request).unwrap_err().into_iter().map(|problem| problem.field).collect()
    }

    fn with_target(target: Value) -> Value {
        json!({ "imageId": "ami-0123abcd", "targets": [target] })
    }

    #[test]
    fn an_image_and_a_target_are_enough() {
        let request = parse(with_target(json!({ "accountId": "222222222222" }))).unwrap();
        assert_eq!(request.source.account_id.as_str(), "111111111111");
        assert_eq!(request.source.region.as_str(), "eu-west-1");
        assert_eq!(request.on_failure, OnFailure::Undo);
        assert_eq!(request.principal_access, PrincipalAccess::Attach);
        assert_eq!(request.targets[0].reencrypt, None);
        assert_eq!(request.targets[0].launch, Launch::default());
    }

    #[test]
    fn snapshots_are_asked_for_by_target_and_a_plan_of_before_stays_true() {
        let target = |snapshots: Option<Value>| {
            let mut target = json!({ "accountId": "222222222222" });
            if let Some(snapshots) = snapshots {
                target["snapshots"] = snapshots;
            }
            parse(with_target(target))
        };
        let (unsaid, no, yes) = (target(None), target(Some(json!(false))), target(Some(json!(true))));
        let [unsaid, no, yes] = [unsaid, no, yes].map(Result::unwrap);
        assert_eq!((unsaid.targets[0].snapshots, yes.targets[0].snapshots), (false, true));
        assert_eq!(unsaid.asked(), no.asked());
        assert_ne!(unsaid.asked(), yes.asked());
        assert!(!json!(unsaid)["targets"][0].as_object().unwrap().contains_key("snapshots"));
        assert_eq!(target(Some(json!("all"))).unwrap_err()[0].field, "targets[0].snapshots");
    }

    #[test]
    fn a_proof_that_is_never_made_leaves_no_instance_to_keep() {
        let launch = |keep: bool| {
            let launch = json!({ "prove": "never", "keep": keep });
            parse(with_target(json!({ "accountId": "222222222222", "launch": launch })))
        };
        assert_eq!(launch(false).unwrap().targets[0].launch.prove, Prove::Never);
        assert_eq!(launch(true).unwrap_err()[0].field, "targets[0].launch.keep");
    }

    #[test]
    fn a_launch_takes_security_groups_and_tags_that_ec2_takes() {
        let launch = |field: &str, value: Value| {
            let mut target = json!({ "accountId": "222222222222", "launch": {} });
            target["launch"][field] = value;
            parse(with_target(target)).map(|mut request| request.targets.remove(0).launch)
        };
        assert_eq!(launch("securityGroupIds", json!(["sg-0abc"])).unwrap().security_group_ids, ["sg-0abc"]);
        let tags = launch("tags", json!({ "team": "red", "empty": "" })).unwrap().tags;
        assert_eq!((tags["team"].as_str(), tags["empty"].as_str()), ("red", ""));
        let many: Map<String, Value> = (0..41).map(|n| (n.to_string(), json!("x"))).collect();
        for (field, wrong) in [
            ("securityGroupIds", json!("sg-0abc")),
            ("securityGroupIds", json!(["default"])),
            ("securityGroupIds", json!(vec!["sg-0abc"; 17])),
            ("tags", json!(["team"])),
            ("tags", json!({ "team": 1 })),
            ("tags", json!({ "": "x" })),
            ("tags", json!({ "aws:x": "x" })),
            ("tags", json!({ "AMI-Share:execution": "x" })),
            ("tags", json!({ "team": "x".repeat(257) })),
            ("tags", Value::Object(many)),
        ] {
            let problems = launch(field, wrong.clone()).unwrap_err();
            assert_eq!(problems.len(), 1, "{wrong}");
            assert_eq!(problems[0].field, format!("targets[0].launch.{field}"));
        }
    }

    #[test]
    fn what_becomes_of_a_share_that_fails_is_as_it_is_said() {
        let on_failure = |value: &str| {
            let mut request = with_target(json!({ "accountId": "222222222222" }));
            request["onFailure"] = json!(value);
            parse(request).map(|request| request.on_failure)
        };
        for (value, expected) in [("undo", OnFailure::Undo), ("undoAll", OnFailure::UndoAll), ("keep", OnFailure::Keep)]
        {
            assert_eq!(on_failure(value), Ok(expected));
            // A resolution says it as the request did.
            assert_eq!(json!(expected), json!(value));
        }
        let problem = on_failure("shrug").unwrap_err().remove(0).to_string();
        assert_eq!(problem, "onFailure = \"shrug\": must be undo or undoAll or keep");
    }

    #[test]
    fn every_problem_is_named_at_once_by_field_value_and_rule() {
        let problems = parse(json!({
            "imageId": "ami-1",
            "imgId": "ami-0123abcd",
            "source": { "accountId": 1, "region": "west" },
            "targets": [
                { "accountId": "22", "launch": { "keep": "yes", "roleArn": "x" } },
                { "accountId": "333333333333", "reencrypt": { "mode": "later" } }
            ],
            "onFailure": "shrug"
        }))
        .unwrap_err();
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        for field in [
            "imageId",
            "imgId",
            "source.accountId",
            "source.region",
            "targets[0].accountId",
            "targets[0].launch.keep",
            "targets[0].launch.roleArn",
            "targets[1].reencrypt.mode",
            "targets[1].reencrypt.kmsKeyId",
            "onFailure",
        ] {
            assert!(fields.contains(&field), "{field} is not in {fields:?}");
        }
        assert_eq!(problems.len(), 10, "{problems:?}");
        let image = problems.iter().find(|problem| problem.field == "imageId").unwrap().to_string();
        assert!(image.contains("\"ami-1\"") && image.contains("must be an image id"), "{image}");
    }

    #[test]
    fn what_is_not_an_object_is_refused() {
        assert_eq!(fields(json!("ami-0123abcd")), ["request"]);
        assert_eq!(fields(with_target(json!("222222222222"))), ["targets[0]"]);
    }

    #[test]
    fn a_principal_is_in_its_target_account() {
        let problems = fields(with_target(json!({
            "accountId": "222222222222",
            "principals": ["arn:aws:iam::333333333333:role/app", "arn:aws:iam::222222222222:role/app", 3]
        })));
        assert_eq!(problems, ["targets[0].principals[0]", "targets[0].principals[2]"]);
    }

    #[test]
    fn a_service_linked_role_is_no_principal() {
        let role =
            "arn:aws:iam::222222222222:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling";
        assert_eq!(
            fields(with_target(json!({ "accountId": "222222222222", "principals": [role] }))),
            ["targets[0].principals[0]"]
        );
    }

    #[test]
    fn a_role_of_identity_center_is_refused_with_what_to_do_instead() {
        let role = "arn:aws:iam::222222222222:role/aws-reserved/sso.amazonaws.com/eu-west-1/AWSReservedSSO_Ops_0123456789abcdef";
        let request = with_target(json!({ "accountId": "222222222222", "principals": [role] }));
        let problems = parse(request).unwrap_err();
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        assert_eq!(problem.field, "targets[0].principals[0]");
        assert!(
            problem.rule.contains("permission set") && problem.rule.contains("customer managed policy"),
            "{problem}"
        );
    }

    #[test]
    fn targets_are_not_the_source_and_are_named_once() {
        let problems = fields(json!({ "imageId": "ami-0123abcd", "targets": [
            { "accountId": "111111111111" }, { "accountId": "222222222222" }, { "accountId": "222222222222" }
        ]}));
        assert_eq!(problems, ["targets[0].accountId", "targets[2].accountId"]);
    }

    #[test]
    fn there_are_one_to_fifty_targets() {
        assert_eq!(fields(json!({ "imageId": "ami-0123abcd", "targets": [] })), ["targets"]);
        let many: Vec<Value> = (0..=MAX_TARGETS).map(|n| json!({ "accountId": format!("2{n:011}") })).collect();
        assert_eq!(fields(json!({ "imageId": "ami-0123abcd", "targets": many })), ["targets"]);
    }

    #[test]
    fn twenty_targets_may_copy_and_a_target_may_have_twenty_principals() {
        let reencrypt = json!({ "mode": "copyImage", "kmsKeyId": "alias/x" });
        let request = |copies: usize, principals: usize| {
            let arns: Vec<String> = (0..principals).map(|n| format!("arn:aws:iam::200000000000:role/r{n}")).collect();
            let targets: Vec<Value> = (0..copies)
                .map(|n| {
                    json!({ "accountId": format!("2{n:011}"), "reencrypt": reencrypt,
                                 "principals": if n == 0 { arns.clone() } else { Vec::new() } })
                })
                .collect();
            json!({ "imageId": "ami-0123abcd", "targets": targets })
        };
        assert!(parse(request(MAX_COPIES, MAX_PRINCIPALS)).is_ok());
        assert_eq!(fields(request(MAX_COPIES + 1, MAX_PRINCIPALS)), ["targets"]);
        assert_eq!(fields(request(1, MAX_PRINCIPALS + 1)), ["targets[0].principals"]);
    }

    #[test]
    fn a_key_is_an_id_an_arn_or_an_alias_of_the_target() {
        let with_key = |key: &str| {
            with_target(json!({ "accountId": "222222222222", "reencrypt": { "mode": "copyImage", "kmsKeyId": key } }))
        };
        for right in [
            "alias/app-volumes",
            "alias/aws/ebs",
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms:eu-west-1:222222222222:key/1234",
            "arn:aws:kms:eu-west-1:222222222222:alias/app-volumes",
            "arn:aws:kms:eu-west-1:222222222222:alias/aws/ebs",
            "arn:aws:kms:eu-west-1:222222222222:alias/app/volumes",
            "alias/app/volumes",
        ] {
            assert!(parse(with_key(right)).is_ok(), "{right}");
        }
        for wrong in [
            "",
            "alias/",
            "arn:aws:kms:eu-west-1:111111111111:key/1234",
            "arn:aws:kms:us-east-1:222222222222:key/1234",
            "arn:aws:iam::222222222222:role/x",
            "a key",
        ] {
            assert_eq!(fields(with_key(wrong)), ["targets[0].reencrypt.kmsKeyId"], "{wrong}");
        }
    }

    #[test]
    fn a_plan_is_asked_for_or_one_is_applied() {
        let request = |action: Value, plan_hash: Value| {
            let mut request = with_target(json!({ "accountId": "222222222222" }));
            for (field, value) in [("action", action), ("planHash", plan_hash)] {
                if !value.is_null() {
                    request[field] = value;
                }
            }
            request
        };
        let hash = json!("0123456789abcdef".repeat(4));
        assert_eq!(parse(request(Value::Null, Value::Null)).unwrap().action, Action::Apply);
        assert_eq!(parse(request(json!("plan"), Value::Null)).unwrap().action, Action::Plan);
        for action in [json!("apply"), Value::Null] {
            let applied = parse(request(action, hash.clone())).unwrap();
            assert_eq!(json!(applied.plan_hash), hash);
        }
        assert_eq!(fields(request(json!("plan"), hash.clone())), ["planHash"]);
        for wrong in [json!("0123"), json!(hash.as_str().unwrap().to_uppercase()), json!(1), json!("")] {
            assert_eq!(fields(request(json!("apply"), wrong.clone())), ["planHash"], "{wrong}");
        }
    }

    #[test]
    fn where_plans_are_made_only_a_request_is_for_one_and_may_not_be_applied() {
        let parse = |action: Option<&str>| {
            let source = Source {
                account_id: AccountId::parse("111111111111").unwrap(),
                region: Region::parse("eu-west-1").unwrap(),
            };
            let mut request = with_target(json!({ "accountId": "222222222222" }));
            if let Some(action) = action {
                request["action"] = json!(action);
            }
            let other = parse(request.clone()).map(|request| request.asked());
            let parsed = Request::parse_plan(&request, &source);
            (parsed.as_ref().map(Request::asked).ok(), other.ok(), parsed)
        };
        for action in [None, Some("plan")] {
            let (asked, by_share_ami, parsed) = parse(action);
            assert_eq!(parsed.unwrap().action, Action::Plan);
            assert_eq!(asked, by_share_ami);
        }
        let problem = parse(Some("apply")).2.unwrap_err().remove(0);
        assert_eq!(problem.field, "action");
        assert!(problem.rule.contains("apply is what share-ami does"), "{problem}");
    }

    #[test]
    fn an_audit_is_asked_for_elsewhere() {
        let mut request = with_target(json!({ "accountId": "222222222222" }));
        request["action"] = json!("audit");
        let problem = parse(request).unwrap_err().remove(0);
        assert!(problem.rule.contains("audit is a state machine of its own, audit-shares"), "{problem}");
    }

    #[test]
    fn what_comes_later_is_refused_by_name() {
        let after =
            json!({ "accountId": "222222222222", "reencrypt": { "mode": "afterLaunch", "kmsKeyId": "alias/x" } });
        let problem = parse(with_target(after)).unwrap_err().remove(0);
        assert!(problem.rule.contains("afterLaunch is not supported by this version"), "{problem}");
        for (field, value) in
            [("action", json!("audit")), ("organizationArns", json!(["arn:aws:organizations::1:organization/o-1"]))]
        {
            let mut request = with_target(json!({ "accountId": "222222222222" }));
            request[field] = value;
            assert_eq!(fields(request), [field]);
        }
    }

    #[test]
    fn an_audit_is_of_every_image_unless_one_is_named() {
        let source = Source {
            account_id: AccountId::parse("111111111111").unwrap(),
            region: Region::parse("eu-west-1").unwrap(),
        };
        let audit = |request: Value| AuditRequest::parse(&request, &source);
        assert_eq!(audit(json!({})).unwrap(), AuditRequest { image_id: None, source: source.clone() });
        let one = audit(json!({ "imageId": "ami-0123abcd", "source": { "region": "us-east-1" } })).unwrap();
        assert_eq!(one.image_id.unwrap().as_str(), "ami-0123abcd");
        assert_eq!((one.source.account_id.as_str(), one.source.region.as_str()), ("111111111111", "us-east-1"));
        let problems = audit(json!({ "imageId": "ami-1", "source": { "accountId": 1, "zone": "a" }, "targets": [] }));
        let fields: Vec<String> = problems.unwrap_err().into_iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["imageId", "source.accountId", "source.zone", "targets"]);
        assert_eq!(audit(json!([])).unwrap_err()[0].field, "request");
    }
}
