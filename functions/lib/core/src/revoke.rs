//! What revoke-share is asked for, and what its states pass to each other.
//!
//! It goes through the targets in rounds: twice, first to look whether the image is still in use, then to take back, each
//! round in a child execution.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::Problem,
    ids::{AccountId, ExecutionName, ImageId},
    request::{Fields, Problems, collected, read_source},
    share::Source,
    take_back::{TakeBack, TakenBack},
};

/// The most targets of one round.
pub const ROUND: usize = 50;

/// The most targets that one execution takes something back from.
pub const MAX_REVOKED: usize = 500;

/// The most targets of one request by name, and entries of the longest lists that grow from round to round: what states
/// pass to each other ends at 262,144 bytes. More entries are counted only.
pub const MAX_LISTED_TARGETS: usize = 2_000;
pub const LISTED: usize = 200;

/// The input of revoke-share, parsed as [`crate::request::Request`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokeRequest {
    pub image_id: ImageId,
    pub source: Source,
    pub targets: RevokedTargets,
    /// Whether copies that ami-share had a target make of the image go too.
    pub copies: bool,
    /// Whether instances that ami-share launched, and kept, go too.
    pub instances: bool,
    /// Whether it is taken back even where it is in use.
    pub force: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevokedTargets {
    /// Whoever was given anything of the image.
    All,
    Listed(Vec<AccountId>),
}

impl RevokeRequest {
    /// Reads a request; what it does not say of its source is taken from `default_source`.
    ///
    /// # Errors
    /// Every problem.
    pub fn parse(request: &Value, default_source: &Source) -> Result<Self, Vec<Problem>> {
        collected(|problems| read_request(request, default_source, problems))
    }
}

fn read_request(request: &Value, default_source: &Source, problems: &Problems) -> Option<RevokeRequest> {
    let fields = Fields::of(request, "", problems)?;
    let image_id = fields.required("imageId", ImageId::parse);
    let source = read_source(&fields, default_source);
    let targets = match fields.get("targets") {
        Some(Value::String(all)) if all == "all" => Some(RevokedTargets::All),
        Some(Value::Array(list)) => read_targets(&fields, list, source.as_ref()).map(RevokedTargets::Listed),
        other => {
            let rule = "must be a list of account ids, or \"all\": revoking everything must be said".to_owned();
            fields.problem("targets", other.map(Value::to_string), rule);
            None
        }
    };
    let [copies, instances, force] = ["copies", "instances", "force"].map(|field| fields.flag(field));
    fields.refuse_others(&["imageId", "source", "targets", "copies", "instances", "force"]);
    Some(RevokeRequest {
        image_id: image_id?,
        source: source?,
        targets: targets?,
        copies: copies?,
        instances: instances?,
        force: force?,
    })
}

fn read_targets(fields: &Fields, list: &[Value], source: Option<&Source>) -> Option<Vec<AccountId>> {
    if list.is_empty() || list.len() > MAX_LISTED_TARGETS {
        let rule = format!("must be 1 to {MAX_LISTED_TARGETS}, or \"all\"");
        fields.problem("targets", Some(format!("{} accounts", list.len())), rule);
    }
    let mut accounts = Vec::new();
    for (index, value) in list.iter().enumerate() {
        let rule = match value.as_str().ok_or("a string".to_owned()).and_then(AccountId::parse) {
            Err(rule) => format!("must be {rule}"),
            Ok(account) if source.is_some_and(|source| source.account_id == account) => {
                "must not be the source account".to_owned()
            }
            Ok(account) if accounts.contains(&account) => "must be named once".to_owned(),
            Ok(account) => {
                accounts.push(account);
                continue;
            }
        };
        fields.problem(&format!("targets[{index}]"), Some(value.to_string()), rule);
    }
    Some(accounts)
}

/// What the targets are gone through for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// To look whether the image is in use; nothing is changed.
    #[default]
    Check,
    /// To take back.
    Revoke,
}

/// What one round takes back, and how far the execution has come with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Round {
    pub execution: ExecutionName,
    pub source: Source,
    pub image_id: ImageId,
    /// Whether the source account still has the image.
    pub image_found: bool,
    pub force: bool,
    /// Targets that something is taken back from.
    pub accounts: Vec<RevokedAccount>,
    pub take_back: TakeBack,
    /// Whether another round follows.
    pub more: bool,
    pub progress: Progress,
}

/// A target that something is taken back from, and what it has that goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokedAccount {
    pub account_id: AccountId,
    /// The executions whose copies go too.
    pub copies_of: Vec<ExecutionName>,
    /// The executions whose instances go too.
    pub instances_of: Vec<ExecutionName>,
}

/// How far an execution has come. It is handed from round to round, and to the report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Progress {
    pub phase: Phase,
    /// The last target that was looked at.
    pub after: Option<AccountId>,
    /// The last target that is looked at, where the first time through found as many as one execution can do.
    pub until: Option<AccountId>,
    /// Targets after those that this execution looks at.
    pub remaining: usize,
    /// Targets that something was to be taken back from.
    pub revoked: Vec<AccountId>,
    /// Targets with a launch permission that ami-share did not give.
    pub not_ours: Vec<AccountId>,
    /// Targets that have copies or instances which nobody asked to remove.
    pub stays: Vec<AccountId>,
    /// How many more of these two there are than are listed.
    pub unlisted: usize,
    /// What the rounds have come to, but for the last.
    pub done: TakenBack,
}

impl Progress {
    /// Begins `phase`, if it is not the one at hand.
    pub fn enter(&mut self, phase: Phase) {
        if self.phase != phase {
            *self = Self { phase, until: self.after.take().filter(|_| self.remaining > 0), ..Self::default() };
        }
    }

    /// Adds what the round at hand has come to.
    pub fn add_last(&mut self, last: Option<TakenBack>) {
        self.done.add(last.unwrap_or_default());
    }

    pub fn add_not_ours(&mut self, accounts: Vec<AccountId>) {
        add(&mut self.not_ours, &mut self.unlisted, LISTED, accounts);
    }

    pub fn add_stays(&mut self, accounts: Vec<AccountId>) {
        add(&mut self.stays, &mut self.unlisted, LISTED, accounts);
    }

    /// Whether this execution can go through another round.
    pub fn has_room(&self) -> bool {
        self.revoked.len() + ROUND <= MAX_REVOKED
    }
}

fn add<T>(list: &mut Vec<T>, unlisted: &mut usize, most: usize, more: Vec<T>) {
    let room = most.saturating_sub(list.len());
    *unlisted += more.len().saturating_sub(room);
    list.extend(more.into_iter().take(room));
}

/// Who uses the image, as far as it has been asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Usage {
    /// Targets that answered.
    pub asked: Vec<AccountId>,
    /// Targets that could not be asked.
    pub unasked: Vec<AccountId>,
    pub uses: Vec<Use>,
    /// How many more uses there are than are listed.
    pub unlisted: usize,
}

impl Usage {
    /// The most uses that are named.
    pub const LISTED: usize = 200;

    pub fn add(&mut self, uses: Vec<Use>) {
        add(&mut self.uses, &mut self.unlisted, Self::LISTED, uses);
    }
}

/// Resources of one kind in one account that use an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Use {
    pub account_id: AccountId,
    /// The image, or a copy of it that is to go.
    pub image_id: ImageId,
    pub resource: UsingResource,
    pub count: u64,
    /// Some of them; none where only EC2's usage report names them.
    pub ids: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UsingResource {
    Instance,
    LaunchTemplate,
}

impl UsingResource {
    /// As EC2's usage reports name it ("ImageUsageResourceType", EC2 API reference).
    pub fn name(self) -> &'static str {
        match self {
            Self::Instance => "ec2:Instance",
            Self::LaunchTemplate => "ec2:LaunchTemplate",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::Instance, Self::LaunchTemplate].into_iter().find(|resource| resource.name() == name)
    }
}

impl Use {
    /// The most ids that are named.
    pub const IDS: usize = 5;
}

impl std::fmt::Display for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let resource = match self.resource {
            UsingResource::Instance => "instance",
            UsingResource::LaunchTemplate => "launch template",
        };
        let plural = if self.count == 1 { "" } else { "s" };
        write!(f, "account {} has {} {resource}{plural} of {}", self.account_id, self.count, self.image_id)?;
        match self.ids.as_slice() {
            [] => write!(f, " (says EC2's usage report)"),
            ids if (ids.len() as u64) < self.count => write!(f, " ({}, ...)", ids.join(", ")),
            ids => write!(f, " ({})", ids.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        ids::Region,
        take_back::{MOST_TO_TAKE, MOST_TO_TELL},
    };

    fn parse(request: Value) -> Result<RevokeRequest, Vec<Problem>> {
        let source = Source {
            account_id: AccountId::parse("111111111111").unwrap(),
            region: Region::parse("eu-west-1").unwrap(),
        };
        RevokeRequest::parse(&request, &source)
    }

    fn fields(request: Value) -> Vec<String> {
        parse(request).unwrap_err().into_iter().map(|problem| problem.field).collect()
    }

    fn account(n: usize) -> AccountId {
        AccountId::parse(format!("2{n:011}")).unwrap()
    }

    #[test]
    fn an_image_and_its_targets_are_enough() {
        let request = parse(json!({ "imageId": "ami-0123abcd", "targets": ["222222222222"] })).unwrap();
        assert_eq!(request.targets, RevokedTargets::Listed(vec![AccountId::parse("222222222222").unwrap()]));
        assert_eq!(request.source.region.as_str(), "eu-west-1");
        assert!(!request.copies && !request.instances && !request.force);
        let request = parse(json!({ "imageId": "ami-0123abcd", "targets": "all", "copies": true })).unwrap();
        assert_eq!((request.targets, request.copies), (RevokedTargets::All, true));
    }

    #[test]
    fn everything_is_revoked_only_where_it_is_said() {
        for targets in [Value::Null, json!("*"), json!([]), json!({}), json!("")] {
            let mut request = json!({ "imageId": "ami-0123abcd", "targets": targets });
            assert_eq!(fields(request.clone()), ["targets"], "{targets}");
            request.as_object_mut().unwrap().remove("targets");
            assert_eq!(fields(request), ["targets"]);
        }
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let problems = fields(json!({
            "imageId": "ami-1",
            "source": { "accountId": "1" },
            "targets": ["22", "333333333333", "333333333333", 4],
            "copies": "yes",
            "instances": 1,
            "onFailure": "undo"
        }));
        let expected = [
            "imageId",
            "source.accountId",
            "targets[0]",
            "targets[2]",
            "targets[3]",
            "copies",
            "instances",
            "onFailure",
        ];
        assert_eq!(problems, expected);
        assert_eq!(fields(json!({ "imageId": "ami-0123abcd", "targets": ["111111111111"] })), ["targets[0]"]);
    }

    #[test]
    fn one_execution_takes_back_from_five_hundred_targets() {
        let mut progress = Progress::default();
        for phase in [Phase::Check, Phase::Revoke] {
            progress.enter(phase);
            let mut looked = 0;
            while progress.has_room() {
                progress.revoked.extend((0..ROUND).map(account));
                looked += ROUND;
            }
            assert_eq!(looked, MAX_REVOKED);
        }
    }

    /// A round is a handful of events; what takes long is looked at for as often as core says.
    #[test]
    fn the_history_of_an_execution_is_long_enough() {
        let rounds = 2 * MAX_LISTED_TARGETS.max(MAX_REVOKED) / ROUND;
        let polling = crate::polling::USAGE_REPORT.looks() * crate::polling::EVENTS_PER_LOOK;
        // Three calls with two retries each, and three states besides.
        let of_round = 3 * (5 + 2 * 3) + 3 * 2;
        assert!(rounds as u64 * of_round + polling + 200 < 25_000);
    }

    /// What ResolveRevoke answers, and is given again: the longest there can be.
    #[test]
    fn a_round_fits_into_what_states_pass_to_each_other() {
        let mut progress = Progress::default();
        for _ in 0..20 {
            progress.add_not_ours(vec![account(0); ROUND]);
            progress.add_stays(vec![account(0); ROUND]);
        }
        progress.revoked = (0..MAX_REVOKED).map(account).collect();
        assert_eq!(progress.unlisted, 2 * (20 * ROUND - LISTED));
        let progress = serde_json::to_string(&progress).unwrap().len() + MOST_TO_TELL;
        let accounts = ROUND * 300;
        assert!(progress + MOST_TO_TAKE + accounts < 250_000, "{progress}");
        let request = MAX_LISTED_TARGETS * "\"222222222222\",".len();
        assert!(request + progress + MOST_TO_TELL < 250_000, "{progress}");
    }

    #[test]
    fn uses_say_who_has_what() {
        let mut usage = Use {
            account_id: AccountId::parse("222222222222").unwrap(),
            image_id: ImageId::parse("ami-0123abcd").unwrap(),
            resource: UsingResource::Instance,
            count: 2,
            ids: vec!["i-1".to_owned(), "i-2".to_owned()],
        };
        assert_eq!(usage.to_string(), "account 222222222222 has 2 instances of ami-0123abcd (i-1, i-2)");
        usage.count = 7;
        assert!(usage.to_string().ends_with("(i-1, i-2, ...)"), "{usage}");
        usage = Use { resource: UsingResource::LaunchTemplate, count: 1, ids: vec![], ..usage };
        assert!(usage.to_string().ends_with("1 launch template of ami-0123abcd (says EC2's usage report)"), "{usage}");
    }
}
