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
    request::{Fields, Problems, collected, one_of, read_action, read_source},
    share::{Action, Source},
    take_back::{Left, TakeBack, TakenBack},
};

pub use crate::{
    share::SourceImage,
    usage::{Usage, Use, UsingResource},
};

/// The most targets of one round.
pub const ROUND: usize = 50;

/// The most targets that one execution takes something back from.
pub const MAX_REVOKED: usize = 500;

/// The most targets of one request by name: what states pass to each other ends at 262,144 bytes.
pub const MAX_LISTED_TARGETS: usize = 2_000;

/// The most entries of the lists that grow from round to round. More are counted only.
pub const LISTED: usize = 200;

/// The most targets of a request for all their images: their notes are all read in each round.
pub const MAX_TARGETS_OF_ALL_IMAGES: usize = ROUND;

/// The most rounds of each phase: each is some 40 events of the 25,000 of an execution's history.
pub const MAX_ROUNDS: usize = 200;

/// Where a share stands in the order in which an execution goes through them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    /// Its image, by its place in [`Progress::order`].
    pub image: usize,
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
    /// Whether grants on keys that targets passed on are revoked, or only told.
    pub revoke_foreign_grants: bool,
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
    let revoke_foreign_grants =
        fields.or("foreignGrants", false, |v: String| one_of(&v, &[("report", false), ("revoke", true)], &[]));
    let (action, plan_hash) = read_action(&fields, Action::Apply);
    fields.refuse_others(&[
        "imageId",
        "images",
        "source",
        "targets",
        "copies",
        "instances",
        "force",
        "foreignGrants",
        "action",
        "planHash",
    ]);
    Some(RevokeRequest {
        images: images?,
        targets: targets?,
        copies: copies?,
        instances: instances?,
        force: force?,
        revoke_foreign_grants: revoke_foreign_grants?,
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
    pub accounts: Vec<AccountId>,
    /// What is taken back, or would be; nothing where that is nothing.
    pub take_back: Option<TakeBack>,
    /// Whether the targets are asked what uses the image.
    pub ask_usage: bool,
    /// Whether EC2 is to report who uses the image: all its targets have been asked.
    pub report_usage: bool,
    /// Whether a plan is made of it.
    pub plan: bool,
    /// What the plan says besides, of targets that have no share at hand.
    pub left: Vec<Left>,
    /// The plan that is to be applied.
    pub plan_hash: Option<PlanHash>,
    /// Whether another round follows.
    pub more: bool,
    /// Handed to the next round, and to the report.
    pub progress: Progress,
}

/// How far an execution has come. It is handed from round to round, and to the report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Progress {
    /// Each phase goes through the targets from the first.
    pub phase: Phase,
    /// When the execution first looked, in milliseconds since 1970; nothing before. What was noted since is not its to take:
    /// nobody was asked about it.
    pub begun: Option<i64>,
    /// The images that both phases go through, in this order: as many as there is room for.
    pub order: Vec<SourceImage>,
    /// The last share that was looked at.
    pub after: Option<Place>,
    /// The last share that is looked at, where the first time through found as many as one execution can do.
    pub until: Option<Place>,
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
    /// Targets that were given something of an image since the execution began, and keep what they have of that image.
    pub given_since: Vec<AccountId>,
    /// Targets that do not say who has the managed policy, where no note names anybody any more.
    pub not_asked: Vec<AccountId>,
    /// How many more of these four there are than are listed.
    pub unlisted: usize,
    /// What the rounds have come to, but for the last.
    pub done: TakenBack,
}

impl Progress {
    /// Begins `phase`, if it is not the one at hand.
    pub fn enter(&mut self, phase: Phase) {
        if self.phase != phase {
            let order = std::mem::take(&mut self.order);
            let until = self.after.take().filter(|_| self.remaining > 0);
            *self = Self { phase, begun: self.begun, order, until, ..Self::default() };
        }
    }

    /// Counts a round for the image at that place, and what it takes back from `accounts` of it.
    pub fn add_round(&mut self, image: usize, accounts: Vec<AccountId>) {
        self.rounds += 1;
        let same = self.after.as_ref().is_some_and(|after| after.image == image);
        self.of_image = !accounts.is_empty() || (same && self.of_image);
        let image_id = &self.order[image].image_id;
        if !accounts.is_empty() && self.images.last() != Some(image_id) {
            self.images.push(image_id.clone());
        }
        let known: BTreeSet<AccountId> = self.revoked.iter().cloned().collect();
        self.revoked.extend(accounts.into_iter().filter(|account| !known.contains(account)));
    }

    /// Adds what the round at hand has come to.
    pub fn add_last(&mut self, last: Option<TakenBack>) {
        self.done.add(last.unwrap_or_default());
    }

    /// As many as there is room for; the rest are counted.
    pub fn add_not_ours(&mut self, accounts: Vec<AccountId>) {
        add(&mut self.not_ours, &mut self.unlisted, accounts);
    }

    /// As many as there is room for; the rest are counted.
    pub fn add_stays(&mut self, accounts: Vec<AccountId>) {
        add(&mut self.stays, &mut self.unlisted, accounts);
    }

    /// As many as there is room for; the rest are counted.
    pub fn add_given_since(&mut self, accounts: Vec<AccountId>) {
        add(&mut self.given_since, &mut self.unlisted, accounts);
    }

    /// As many as there is room for; the rest are counted.
    pub fn add_not_asked(&mut self, accounts: Vec<AccountId>) {
        add(&mut self.not_asked, &mut self.unlisted, accounts);
    }

    /// Whether this execution can go through another round.
    pub fn has_room(&self) -> bool {
        self.revoked.len() + ROUND <= MAX_REVOKED && self.rounds < MAX_ROUNDS
    }
}

fn add(list: &mut Vec<AccountId>, unlisted: &mut usize, mut accounts: Vec<AccountId>) {
    accounts.retain(|account| !list.contains(account));
    let room = LISTED.saturating_sub(list.len());
    *unlisted += accounts.len().saturating_sub(room);
    list.extend(accounts.into_iter().take(room));
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
        assert!(!request.revoke_foreign_grants);
        let revoking = json!({ "imageId": "ami-0123abcd", "targets": "all", "foreignGrants": "revoke" });
        assert!(parse(revoking).unwrap().revoke_foreign_grants);
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
        let order = ["a", "b", "c"].map(|of| image("eu-west-1", &format!("ami-0000000{of}"))).to_vec();
        let mut progress = Progress { order, ..Progress::default() };
        for (image, accounts) in [(0, vec![1, 2]), (1, vec![]), (1, vec![2]), (2, vec![])] {
            progress.add_round(image, accounts.into_iter().map(account).collect());
            progress.after = Some(Place { image, account_id: account(2) });
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
            "foreignGrants": true,
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
            "foreignGrants",
            "onFailure",
        ];
        assert_eq!(problems, expected);
        assert_eq!(fields(json!({ "imageId": "ami-0123abcd", "targets": ["111111111111"] })), ["targets[0]"]);
    }

    #[test]
    fn one_execution_takes_back_from_five_hundred_targets() {
        let order = vec![image("eu-west-1", "ami-0123abcd")];
        let mut progress = Progress { order, begun: Some(7), ..Progress::default() };
        for phase in [Phase::Check, Phase::Revoke] {
            progress.enter(phase);
            assert_eq!((progress.begun, progress.order.len()), (Some(7), 1));
            let mut looked = 0;
            while progress.has_room() {
                progress.add_round(0, (looked..looked + ROUND).map(account).collect());
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
            progress.add_given_since((0..ROUND).map(|n| account(round * ROUND + n)).collect());
            progress.add_not_asked((0..ROUND).map(|n| account(round * ROUND + n)).collect());
        }
        progress.order = vec![image("ap-southeast-10", "ami-0123456789abcdef0"); MAX_ROUNDS];
        progress.revoked = (0..MAX_REVOKED).map(account).collect();
        progress.images = vec![ImageId::parse("ami-0123456789abcdef0").unwrap(); MAX_ROUNDS];
        assert_eq!(progress.unlisted, 4 * (20 * ROUND - LISTED));
        let progress = serde_json::to_string(&progress).unwrap().len() + MOST_TO_TELL;
        let accounts = ROUND * "\"222222222222\",".len();
        assert!(progress + MOST_TO_TAKE + accounts < 250_000, "{progress}");
        let request = MAX_LISTED_TARGETS * "\"222222222222\",".len();
        assert!(request + progress + MOST_TO_TELL < 250_000, "{progress}");
    }
}
