//! Random requests.

use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};

use crate::{
    deployed::{TARGETS, UNLISTED},
    world::{Stage, role, user},
};

#[derive(Debug, Clone)]
pub(crate) struct RequestPlan {
    image: prop::sample::Index,
    targets: Vec<(usize, TargetRequest)>,
    /// A target that may not be one, besides the others.
    unlisted: bool,
    grants: bool,
    inline: bool,
    pub(crate) keep: bool,
    /// Whether one target's failure takes back everybody's.
    all: bool,
    /// What is wrong with it.
    wrong: Option<usize>,
}

#[derive(Debug, Clone)]
struct TargetRequest {
    mode: usize,
    role: bool,
    user: bool,
    keep: bool,
    always: bool,
}

const MODES: [Option<&str>; 3] = [None, Some("atLaunch"), Some("copyImage")];

/// Of any kind.
pub(crate) fn requests() -> impl Strategy<Value = RequestPlan> {
    let unlisted = prop::bool::weighted(0.1);
    let wrong = prop::option::weighted(0.1, 0..WRONG.len());
    (good_requests(), unlisted, wrong).prop_map(|(good, unlisted, wrong)| RequestPlan { unlisted, wrong, ..good })
}

/// Of a kind that is not refused.
pub(crate) fn good_requests() -> impl Strategy<Value = RequestPlan> {
    let target = (0..MODES.len(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2))
        .prop_map(|(mode, role, user, keep, always)| TargetRequest { mode, role, user, keep, always });
    let accounts = prop::sample::subsequence((0..TARGETS.len()).collect::<Vec<_>>(), 1..=TARGETS.len());
    let flags = (prop::bool::weighted(0.3), prop::bool::weighted(0.3), prop::bool::weighted(0.15), any::<bool>());
    (any::<prop::sample::Index>(), accounts, vec(target, TARGETS.len()), flags).prop_map(
        |(image, accounts, targets, (grants, inline, keep, all))| RequestPlan {
            image,
            targets: accounts.into_iter().zip(targets).collect(),
            unlisted: false,
            grants,
            inline,
            keep,
            all,
            wrong: None,
        },
    )
}

/// Fields that a request may not have, with their value.
const WRONG: [(&str, &str); 5] = [
    ("imageId", r#""ami-0123456789abcdef0""#),
    ("imageId", r#""ami""#),
    ("targets", "[]"),
    ("keyAccess", r#""magic""#),
    ("colour", r#""blue""#),
];

/// A request, and what the properties need to know of it.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) json: Value,
    /// The index of its image.
    pub(crate) image: usize,
    /// Allowed ones; nobody where it is to be refused.
    pub(crate) targets: Vec<Asked>,
    /// It names a target that may not be one.
    pub(crate) unlisted: bool,
    pub(crate) wrong: bool,
    pub(crate) inline: bool,
    pub(crate) keep: bool,
    pub(crate) all: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) account: String,
    pub(crate) mode: Option<&'static str>,
    pub(crate) principals: Vec<String>,
    pub(crate) keep: bool,
    pub(crate) always: bool,
}

impl RequestPlan {
    pub(crate) fn request(&self, stage: &Stage) -> Request {
        let image = self.image.index(stage.images.len());
        let targets: Vec<Asked> =
            self.targets.iter().map(|(account, target)| target.asked(TARGETS[*account])).collect();
        let mut listed: Vec<Value> = targets.iter().map(Asked::json).collect();
        if self.unlisted {
            listed.push(json!({ "accountId": UNLISTED }));
        }
        let mut json = json!({
            "imageId": stage.images[image].id,
            "source": stage.images[image].source(),
            "targets": listed,
            "keyAccess": if self.grants { "grant" } else { "policy" },
            "principalAccess": if self.inline { "inline" } else { "attach" },
            "onFailure": if self.keep { "keep" } else if self.all { "undoAll" } else { "undo" },
        });
        if let Some(wrong) = self.wrong {
            let (field, value) = WRONG[wrong];
            json[field] = serde_json::from_str(value).unwrap();
        }
        Request {
            json,
            image,
            targets,
            unlisted: self.unlisted && self.wrong != Some(2),
            wrong: self.wrong.is_some(),
            inline: self.inline,
            keep: self.keep,
            all: self.all,
        }
    }
}

impl TargetRequest {
    fn asked(&self, account: &'static str) -> Asked {
        let principals = [(self.role, role(account)), (self.user, user(account))];
        Asked {
            account: account.to_owned(),
            mode: MODES[self.mode],
            principals: principals.into_iter().filter(|(asked, _)| *asked).map(|(_, arn)| arn).collect(),
            keep: self.keep,
            always: self.always,
        }
    }
}

impl Asked {
    fn json(&self) -> Value {
        let mut json = json!({
            "accountId": self.account,
            "principals": self.principals,
            "launch": { "keep": self.keep, "prove": if self.always { "always" } else { "onChange" } },
        });
        if let Some(mode) = self.mode {
            json["reencrypt"] = json!({ "mode": mode, "kmsKeyId": "alias/app-volumes" });
        }
        json
    }
}
