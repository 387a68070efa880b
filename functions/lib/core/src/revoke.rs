//! What revoke-share is asked for, and what its states pass to each other.
//!
//! It goes through the targets in rounds: twice, first to look whether the image is still in use, then to take back, each
//! round in a child execution.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::Problem,
    ids::{AccountId, ExecutionName, ImageId, PlanHash},
    request::{Fields, Problems, collected, read_action, read_source},
    share::{Action, Source},
    take_back::{TakeBack, TakenBack},
};

pub use crate::usage::{Use, UsingResource};

/// The most targets of one round.
pub const ROUND: usize = 50;

/// The most targets that one execution takes something back from.
pub const MAX_REVOKED: usize = 500;

/// The most targets of one request by name, and entries of the longest lists that grow from round to round: what states
/// pass to each other ends at 262,144 bytes. More entries are counted only.
pub const MAX_LISTED_TARGETS: usize = 2_000;
/// The most entries of the lists that grow from round to round.
pub const LISTED: usize = 200;

/// The most targets of a request for all their images: their notes are all read in each round.
pub const MAX_TARGETS_OF_ALL_IMAGES: usize = ROUND;

/// The most rounds of each phase: each is some 40 events of the 25,000 of an execution's history.
pub const MAX_ROUNDS: usize = 200;

/// An image, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourceImage {
    /// Where it is, or was.
    pub source: Source,
    /// It may be gone.
    pub image_id: ImageId,
}

/// One share: an image, and a target that was given it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ShareId {
    /// What was shared.
    pub image: SourceImage,
    /// The target.
    pub account_id: AccountId,
}

/// The input of revoke-share, parsed as [`crate::request::Request`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevokeRequest {
    /// One image, or all of a source.
    pub images: RevokedImages,
    /// Whom it is taken from.
    pub targets: RevokedTargets,
    /// Whether copies that ami-share had a target make of the image go too.
    pub copies: bool,
    /// Whether instances that ami-share launched, and kept, go too.
    pub instances: bool,
    /// Whether it is taken back even where it is in use.
    pub force: bool,
    /// Whether it is taken back, or only said.
    pub action: Action,
    /// The plan that is applied, and none other.
    pub plan_hash: Option<PlanHash>,
}

/// The images that a revoke is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevokedImages {
    /// The image that the request names.
    One(SourceImage),
    /// Every image that the targets were given: of one source account and Region, where one is named.
    All(Option<Source>),
}

/// The targets that a revoke is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RevokedTargets {
    /// Whoever was given anything of the image.
    All,
    /// Each once, and never the source account.
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

    /// Whether what is taken back of the image is asked for.
    pub fn is_of(&self, image: &SourceImage) -> bool {
        match &self.images {
            RevokedImages::One(one) => image == one,
            RevokedImages::All(source) => source.as_ref().is_none_or(|source| image.source == *source),
        }
    }

    /// Whether a plan is made: to be shown, or to be compared with the one that is to be applied.
    pub fn is_planned(&self) -> bool {
        self.action == Action::Plan || self.plan_hash.is_some()
    }
}

fn read_request(request: &Value, default_source: &Source, problems: &Problems) -> Option<RevokeRequest> {
    let fields = Fields::of(request, "", problems)?;
    let source = read_source(&fields, default_source);
    let images = read_images(&fields, source.as_ref());
    let all_images = fields.get("images").is_some();
    let targets = match fields.get("targets") {
        Some(Value::String(all)) if all == "all" && !all_images => Some(RevokedTargets::All),
        Some(Value::Array(list)) => {
            let most = if all_images { MAX_TARGETS_OF_ALL_IMAGES } else { MAX_LISTED_TARGETS };
            read_targets(&fields, list, source.as_ref(), most).map(RevokedTargets::Listed)
        }
        other => {
            let rule = match all_images {
                true => "must be a list of account ids, where images is \"all\"",
                false => "must be a list of account ids, or \"all\": revoking everything must be said",
            };
            fields.problem("targets", other.map(Value::to_string), rule.to_owned());
            None
        }
    };
    let [copies, instances, force] = ["copies", "instances", "force"].map(|field| fields.flag(field));
    let (action, plan_hash) = read_action(&fields);
    fields.refuse_others(&[
        "imageId",
        "images",
        "source",
        "targets",
        "copies",
        "instances",
        "force",
        "action",
        "planHash",
    ]);
    Some(RevokeRequest {
        images: images?,
        targets: targets?,
        copies: copies?,
        instances: instances?,
        force: force?,
        action: action?,
        plan_hash: plan_hash?,
    })
}

fn read_images(fields: &Fields, source: Option<&Source>) -> Option<RevokedImages> {
    let Some(images) = fields.get("images") else {
        let image_id = fields.required("imageId", ImageId::parse)?;
        return Some(RevokedImages::One(SourceImage { source: source?.clone(), image_id }));
    };
    if fields.get("imageId").is_some() {
        fields.problem("images", None, "must not stand beside imageId".to_owned());
        return None;
    }
    if images != "all" {
        let rule = "must be \"all\": everything that the targets were given; for one image there is imageId".to_owned();
        fields.problem("images", Some(images.to_string()), rule);
        return None;
    }
    let named = fields.get("source").is_some();
    Some(RevokedImages::All(source.filter(|_| named).cloned()))
}

fn read_targets(fields: &Fields, list: &[Value], source: Option<&Source>, most: usize) -> Option<Vec<AccountId>> {
    if list.is_empty() || list.len() > most {
        let rule = format!("must be 1 to {most} accounts");
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
    /// What sessions are named after.
    pub execution: ExecutionName,
    /// The image at hand; nothing where no target was given any.
    pub image: Option<SourceImage>,
    /// Whether the source account still has the image.
    pub image_found: bool,
    /// Targets that something is taken back from.
    pub accounts: Vec<RevokedAccount>,
    /// What is taken back, or would be; nothing where that is nothing.
    pub take_back: Option<TakeBack>,
    /// Whether the targets are asked what uses the image.
    pub ask_usage: bool,
    /// Whether EC2 is to report who uses the image: all its targets have been asked.
    pub report_usage: bool,
    /// Whether a plan is made of it.
    pub plan: bool,
    /// The plan that is to be applied.
    pub plan_hash: Option<PlanHash>,
    /// Whether another round follows.
    pub more: bool,
    /// Handed to the next round, and to the report.
    pub progress: Progress,
}

/// A target that something is taken back from, and what it has that goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevokedAccount {
    /// The target.
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
    /// Each phase goes through the targets from the first.
    pub phase: Phase,
    /// The last share that was looked at.
    pub after: Option<ShareId>,
    /// The last share that is looked at, where the first time through found as many as one execution can do.
    pub until: Option<ShareId>,
    /// Of this phase, with the one at hand.
    pub rounds: usize,
    /// Whether anything of the image at hand is to be taken back.
    pub of_image: bool,
    /// Shares after those that this execution looks at.
    pub remaining: usize,
    /// Targets that something was to be taken back from.
    pub revoked: Vec<AccountId>,
    /// The images that it was to be taken back of.
    pub images: Vec<ImageId>,
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

    /// Counts a round for `image`, and what it takes back from `accounts` of it.
    pub fn add_round(&mut self, image: &SourceImage, accounts: Vec<AccountId>) {
        self.rounds += 1;
        let same = self.after.as_ref().is_some_and(|after| after.image == *image);
        self.of_image = !accounts.is_empty() || (same && self.of_image);
        if !accounts.is_empty() && self.images.last() != Some(&image.image_id) {
            self.images.push(image.image_id.clone());
        }
        let known: BTreeSet<AccountId> = self.revoked.iter().cloned().collect();
        self.revoked.extend(accounts.into_iter().filter(|account| !known.contains(account)));
    }

    /// Adds what the round at hand has come to.
    pub fn add_last(&mut self, last: Option<TakenBack>) {
        self.done.add(last.unwrap_or_default());
    }

    /// As many as there is room for; the rest are counted.
    pub fn add_not_ours(&mut self, mut accounts: Vec<AccountId>) {
        accounts.retain(|account| !self.not_ours.contains(account));
        add(&mut self.not_ours, &mut self.unlisted, LISTED, accounts);
    }

    /// As many as there is room for; the rest are counted.
    pub fn add_stays(&mut self, mut accounts: Vec<AccountId>) {
        accounts.retain(|account| !self.stays.contains(account));
        add(&mut self.stays, &mut self.unlisted, LISTED, accounts);
    }

    /// Whether this execution can go through another round.
    pub fn has_room(&self) -> bool {
        self.revoked.len() + ROUND <= MAX_REVOKED && self.rounds < MAX_ROUNDS
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
    /// The first [`Usage::LISTED`] of them.
    pub uses: Vec<Use>,
    /// How many more uses there are than are listed.
    pub unlisted: usize,
}

impl Usage {
    /// The most uses that are named.
    pub const LISTED: usize = 200;

    /// The most targets of a request for all their images: their notes are all read in each round.
    pub const MAX_TARGETS_OF_ALL_IMAGES: usize = ROUND;

    /// The most rounds of each phase: each is some 40 events of the 25,000 of an execution's history.
    pub const MAX_ROUNDS: usize = 200;

    /// As many as there is room for; the rest are counted.
    pub fn add(&mut self, uses: Vec<Use>) {
        add(&mut self.uses, &mut self.unlisted, Self::LISTED, uses);
    }

    /// Adds what EC2's report says. For instances, what a target itself says counts: the report may lack the last 24
    /// hours, and counts instances for some time after they were terminated, the proofs of ami-share among them. It counts
    /// for targets that could not be asked; and for launch templates, of which it looks at more versions than the latest
    /// and the default one.
    pub fn add_reported(&mut self, reported: Vec<Use>) {
        let counts =
            |used: &Use| self.unasked.contains(&used.account_id) || used.resource == UsingResource::LaunchTemplate;
        // The target has named it already, by its id.
        let named = |used: &Use| {
            let same = |said: &Use| {
                said.account_id == used.account_id && said.image_id == used.image_id && said.resource == used.resource
            };
            self.uses.iter().any(same)
        };
        let more = reported.into_iter().filter(|used| counts(used) && !named(used)).collect();
        self.add(more);
    }

    /// Adds a target that answered, or could not be asked.
    pub fn add_account(&mut self, account: &AccountId, answered: bool) {
        let accounts = if answered { &mut self.asked } else { &mut self.unasked };
        if !accounts.contains(account) {
            accounts.push(account.clone());
        }
    }
}

/// A report of EC2 on who uses an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UsageReport {
    /// The image that it is of.
    pub image: SourceImage,
    /// As ec2:CreateImageUsageReport answers it.
    pub report_id: String,
}

#[cfg(test)]
mod tests {
    use UsingResource::{Instance, LaunchTemplate};
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

    fn image(region: &str, id: &str) -> SourceImage {
        let (account_id, region) = (AccountId::parse("111111111111").unwrap(), Region::parse(region).unwrap());
        SourceImage { source: Source { account_id, region }, image_id: ImageId::parse(id).unwrap() }
    }

    #[test]
    fn an_image_and_its_targets_are_enough() {
        let request = parse(json!({ "imageId": "ami-0123abcd", "targets": ["222222222222"] })).unwrap();
        assert_eq!(request.targets, RevokedTargets::Listed(vec![AccountId::parse("222222222222").unwrap()]));
        assert_eq!(request.images, RevokedImages::One(image("eu-west-1", "ami-0123abcd")));
        assert!(!request.copies && !request.instances && !request.force && !request.is_planned());
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
    fn all_images_of_some_targets_may_be_asked_for() {
        let all = |more: Value| {
            let mut request = json!({ "images": "all", "targets": ["222222222222"] });
            for (name, value) in more.as_object().unwrap() {
                request[name] = value.clone();
            }
            request
        };
        let request = parse(all(json!({}))).unwrap();
        assert_eq!(request.images, RevokedImages::All(None));
        let (here, there) = (image("eu-west-1", "ami-0123abcd"), image("eu-north-1", "ami-0123abcd"));
        assert!(request.is_of(&here) && request.is_of(&there));
        let request = parse(all(json!({ "source": { "region": "eu-north-1" } }))).unwrap();
        assert!(!request.is_of(&here) && request.is_of(&there));
        for (more, wrong) in [
            (json!({ "targets": "all" }), "targets"),
            (json!({ "targets": vec!["222222222222"; 51] }), "targets"),
            (json!({ "images": ["ami-0123abcd"] }), "images"),
            (json!({ "imageId": "ami-0123abcd" }), "images"),
        ] {
            let fields = fields(all(more.clone()));
            assert!(!fields.is_empty() && fields[0].starts_with(wrong), "{more}: {fields:?}");
        }
        assert_eq!(fields(json!({ "targets": "all" })), ["imageId"]);
    }

    #[test]
    fn a_plan_is_made_or_applied() {
        let request = |action: &str| json!({ "imageId": "ami-0123abcd", "targets": "all", "action": action });
        assert!(parse(request("plan")).unwrap().is_planned() && !parse(request("apply")).unwrap().is_planned());
        let mut planned = request("apply");
        planned["planHash"] = json!("0123456789abcdef".repeat(4));
        assert!(parse(planned.clone()).unwrap().is_planned());
        planned["action"] = json!("plan");
        assert_eq!(fields(planned), ["planHash"]);
    }

    #[test]
    fn rounds_count_targets_and_images_once() {
        let mut progress = Progress::default();
        for (of, accounts) in [("a", vec![1, 2]), ("b", vec![]), ("b", vec![2]), ("c", vec![])] {
            let image = image("eu-west-1", &format!("ami-0000000{of}"));
            progress.add_round(&image, accounts.into_iter().map(account).collect());
            progress.after = Some(ShareId { image, account_id: account(2) });
        }
        assert_eq!((progress.rounds, progress.of_image), (4, false));
        assert_eq!(progress.revoked, [account(1), account(2)]);
        assert_eq!(progress.images.len(), 2);
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
            "source.accountId",
            "imageId",
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
                progress
                    .add_round(&image("eu-west-1", "ami-0123abcd"), (looked..looked + ROUND).map(account).collect());
                looked += ROUND;
            }
            assert_eq!(looked, MAX_REVOKED);
        }
    }

    /// A round is a handful of events; what takes long is looked at for as often as core says.
    #[test]
    fn the_history_of_an_execution_is_long_enough() {
        let polling = crate::polling::USAGE_REPORT.looks() * crate::polling::EVENTS_PER_LOOK;
        // A call with two retries, and a choice.
        let (call, choice) = (5 + 2 * 3, 2);
        // ResolveRevoke, CheckUsage, PlanRevoke, CreateUsageReport; ChooseRound, and CheckLooked after three of them.
        let looked_at = 4 * call + 4 * choice;
        // ResolveRevoke, TakeBack; ChooseRound, CheckRound.
        let taken_back = 2 * call + 2 * choice;
        assert!(MAX_ROUNDS as u64 * (looked_at + taken_back) + polling + 200 < 25_000);
    }

    /// What ResolveRevoke answers, and is given again: the longest there can be.
    #[test]
    fn a_round_fits_into_what_states_pass_to_each_other() {
        let mut progress = Progress::default();
        for round in 0..20 {
            progress.add_not_ours((0..ROUND).map(|n| account(round * ROUND + n)).collect());
            progress.add_stays((0..ROUND).map(|n| account(round * ROUND + n)).collect());
        }
        progress.revoked = (0..MAX_REVOKED).map(account).collect();
        progress.images = vec![ImageId::parse("ami-0123456789abcdef0").unwrap(); MAX_ROUNDS];
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

    const ASKED: &str = "222222222222";
    const GONE: &str = "444444444444";

    fn used(account: &str, resource: UsingResource, ids: &[&str]) -> Use {
        Use {
            account_id: AccountId::parse(account).unwrap(),
            image_id: ImageId::parse("ami-0123abcd").unwrap(),
            resource,
            count: 1,
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    /// All uses, after the targets and the report have spoken.
    fn uses(said: Vec<Use>, reported: Vec<Use>) -> Vec<Use> {
        let mut usage = Usage::default();
        for (account, answered) in [(ASKED, true), (GONE, false), (ASKED, true)] {
            usage.add_account(&AccountId::parse(account).unwrap(), answered);
        }
        assert_eq!((usage.asked.len(), usage.unasked.len()), (1, 1));
        usage.add(said);
        usage.add_reported(reported);
        usage.uses
    }

    #[test]
    fn what_a_target_says_of_its_instances_counts_and_not_what_is_reported() {
        let instance = used(ASKED, Instance, &["i-1"]);
        assert_eq!(uses(vec![instance.clone()], vec![]), [instance]);
        assert_eq!(uses(vec![], vec![used(ASKED, Instance, &[])]), []);
    }

    #[test]
    fn the_report_counts_for_who_could_not_be_asked_and_for_launch_templates() {
        let reported = [used(GONE, Instance, &[]), used(GONE, LaunchTemplate, &[]), used(ASKED, LaunchTemplate, &[])];
        assert_eq!(uses(vec![], reported.to_vec()), reported);
    }

    #[test]
    fn what_both_name_is_named_once_and_of_another_image_twice() {
        let template = used(ASKED, LaunchTemplate, &["lt-1"]);
        let reported = used(ASKED, LaunchTemplate, &[]);
        assert_eq!(uses(vec![template.clone()], vec![reported.clone()]), std::slice::from_ref(&template));
        let other = Use { image_id: ImageId::parse("ami-0000abcd").unwrap(), ..reported };
        assert_eq!(uses(vec![template.clone()], vec![other.clone()]), [template, other]);
    }
}
