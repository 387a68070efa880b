//! What is taken back, and what became of it: the input and the answer of the state machine take-back.
//!
//! ResolveUndo and ResolveRevoke decide what may be taken, and answer with a [`TakeBack`]; how it is taken is take-back's.
//! Step Functions hands a child's input back beside its output, and states pass 262,144 bytes at most: so both are bounded,
//! and what is larger is taken back in several children.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    ids::{AccountId, ExecutionName, ImageId, InstanceId, KeyArn},
    mark::Mark,
    share::{Kept, KeyChange, PrincipalChange, SnapshotChange, Source},
    words,
};

/// The longest [`TakeBack`], in bytes of JSON.
pub const MOST_TO_TAKE: usize = 120_000;

/// The longest [`TakenBack`], in bytes of JSON. Report is given two of them.
pub const MOST_TO_TELL: usize = 40_000;

/// What one child execution takes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TakeBack {
    /// Who takes back: what sessions are named after.
    pub execution: ExecutionName,
    /// Where the image is, or was.
    pub source: Source,
    /// It may be gone.
    pub image_id: ImageId,
    /// The ARN of the execution of share-ami whose note is to name the child; nothing for a revoke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Accounts that lose the launch permission.
    pub launch_permissions: Vec<AccountId>,
    /// Copy permissions to remove.
    pub snapshot_changes: Vec<SnapshotChange>,
    /// What is to be done in target accounts.
    pub targets: Vec<FromTarget>,
    /// Our grants to retire.
    pub grant_changes: Vec<KeyChange>,
    /// Whether grants that these accounts passed on are revoked too.
    #[serde(default)]
    pub revoke_foreign_grants: bool,
    /// Accounts to take out of key policies.
    pub key_changes: Vec<KeyChange>,
    /// Notes that say less from now on.
    pub notes: Vec<NoteChange>,
    /// What stays, as something else needs it.
    pub kept: Vec<Kept>,
    /// What stays, as nobody could say whether something else needs it.
    pub left: Vec<Left>,
}

impl TakeBack {
    /// Whether it calls anything that changes something.
    pub fn is_something(&self) -> bool {
        !(self.launch_permissions.is_empty()
            && self.snapshot_changes.is_empty()
            && self.targets.is_empty()
            && self.grant_changes.is_empty()
            && self.key_changes.is_empty()
            && self.notes.is_empty())
    }
}

/// What is taken back in one target account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FromTarget {
    /// The target.
    pub account_id: AccountId,
    /// Whose instances are terminated.
    pub instances: Vec<MadeInstance>,
    /// Whose copies are removed, with their snapshots.
    pub copies: Vec<MadeCopy>,
    /// The managed policy is detached where no keys are named; otherwise the inline policies for them are deleted.
    pub principal_changes: Vec<PrincipalChange>,
}

/// The proof of an execution in one target: found by its client tokens, or by its id where that was noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MadeInstance {
    /// Whose client tokens it was launched with.
    pub execution: ExecutionName,
    /// As the target's last state noted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
}

/// The copy that an execution had one target make: known by its id where that was noted. Otherwise its reply was lost: then
/// it has the execution's tag, is made of the image, and is younger than the execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MadeCopy {
    /// Whose tag it has.
    pub execution: ExecutionName,
    /// The image that it was made of.
    pub of: ImageId,
    /// When it was noted that a copy is to be made, in milliseconds since 1970: none is older.
    pub noted_at: i64,
    /// As the target's last state noted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_id: Option<ImageId>,
}

/// The input of an undo of something in a target account.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoInput {
    /// Who takes back: what sessions are named after.
    pub execution: ExecutionName,
    /// Where the image is, or was.
    pub source: Source,
    /// All that is taken back there, by whichever undo.
    pub target: FromTarget,
}

/// A note of what a target was given, as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NoteChange {
    /// The target of the note.
    pub account_id: AccountId,
    /// The image of the note.
    pub image_id: ImageId,
    /// The note's execution.
    pub execution: ExecutionName,
    /// The note's mark, as it was read or made: nobody has changed the note since, or marked it anew.
    pub going: Mark,
    /// What the target still has, as JSON; nothing where that is nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gift: Option<String>,
}

/// One call that took something back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Taken {
    /// Such as `kms:PutKeyPolicy`.
    pub call: String,
    /// The account that it was made in.
    pub account_id: AccountId,
    /// The ARN or id, or the name, of what it changed.
    pub resource: String,
    /// The accounts or principals that lost something by it; nobody where something was removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
}

/// The answer of an undo.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Undone {
    /// In the order of the calls; nothing where there was nothing to take.
    pub taken: Vec<Taken>,
}

/// A state that failed, with its error as Step Functions gives it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Failure {
    /// The name of the state.
    pub state: String,
    /// The error's name, as Step Functions matches it.
    pub error: String,
    /// As [`Left::cause`].
    pub cause: Option<String>,
}

impl Failure {
    /// What a function said, or Step Functions.
    pub fn message(&self) -> String {
        words::message(self.cause.as_deref().unwrap_or_default())
    }
}

/// What could not be taken back, with its error as Step Functions gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Left {
    /// The target; nothing where it is in the source account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<AccountId>,
    /// The state that failed, such as `UndoShareKey`.
    pub state: String,
    /// The error's name, as Step Functions matches it.
    pub error: String,
    /// JSON of a function's error, or plain text of Step Functions' own; states cut it.
    #[serde(default)]
    pub cause: String,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.account_id.as_ref().map(|account| format!(" in account {account}")).unwrap_or_default();
        let message = words::message(&self.cause);
        let message = words::without_full_stop(&message);
        write!(f, "{}{place} failed with {}: {message}", self.state, self.error)?;
        match (&self.account_id, self.state.as_str()) {
            // What it cannot say of a target is in that target's cause.
            (None, "ResolveUndo") => f.write_str(" (so nothing more was taken back)"),
            _ => Ok(()),
        }
    }
}

/// What a grant is for that somebody made who had the use of a key, and not the key's account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PassedOn {
    /// EBS's own, for a volume that is attached ("How Amazon EBS uses AWS KMS", KMS developer guide).
    Ebs,
    /// To a service-linked role, such as Auto Scaling's.
    ServiceLinkedRole,
    /// To a service.
    Service,
    /// To anybody else.
    Other,
}

/// Grants of one account on one key that stay, though the target that passed its own on loses that: it made them itself, or
/// somebody did whom only these let use the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForeignGrants {
    /// In the source account.
    pub key_arn: KeyArn,
    /// Who made them.
    pub account_id: AccountId,
    /// What they are for.
    pub kind: PassedOn,
    /// Why they stay.
    pub stay: Stay,
    /// The first of them; none of EBS's.
    pub grants: Vec<ForeignGrant>,
    /// How many more there are.
    pub more: usize,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForeignGrant {
    /// As kms:RevokeGrant takes it.
    pub grant_id: String,
    /// Whom it is to.
    pub grantee: String,
}

/// Why grants stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stay {
    /// Nobody asked to revoke them.
    NotAsked,
    /// A volume is attached by each of them: without it, what runs there would fail.
    InUse,
    /// Whoever made them has the use of the key in another way too.
    OtherAccess,
}

/// The grants that stay, as far as one look has room for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Foreign {
    /// By key, account and kind.
    pub grants: Vec<ForeignGrants>,
    /// How many more of these there are.
    pub unlisted: usize,
}

/// The longest list of [`Foreign`], in bytes of JSON: states hand it on beside what is taken.
const MOST_OF_FOREIGN: usize = 10_000;

impl Foreign {
    /// Adds these, as far as there is room.
    pub fn add(&mut self, grants: Vec<ForeignGrants>) {
        let mut room = MOST_OF_FOREIGN.saturating_sub(bytes_of(&self.grants));
        add(&mut self.grants, &mut self.unlisted, grants, &mut room, 0);
    }
}

/// What became of it: the answer of one take-back, or of several one after the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TakenBack {
    /// The calls that took something back.
    pub taken: Vec<Taken>,
    /// What could not be taken, or what nobody could say is needed.
    pub left: Vec<Left>,
    /// Targets that keep access to keys, each with an image that needs it.
    pub kept: Vec<Kept>,
    /// Grants that targets passed on, and that stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign_grants: Vec<ForeignGrants>,
    /// How many more of these there are than are listed.
    pub unlisted: Unlisted,
}

/// What a [`TakenBack`] has no room for, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Unlisted {
    /// Of [`TakenBack::taken`].
    pub taken: usize,
    /// Of [`TakenBack::left`].
    pub left: usize,
    /// Of [`TakenBack::kept`].
    pub kept: usize,
    /// Of [`TakenBack::foreign_grants`].
    #[serde(default)]
    pub foreign_grants: usize,
}

impl Unlisted {
    /// Of all together.
    pub fn all(self) -> usize {
        self.taken + self.left + self.kept + self.foreign_grants
    }
}

impl TakenBack {
    /// Whether everything was taken back that was to be.
    pub fn is_whole(&self) -> bool {
        self.left.is_empty() && self.unlisted.left == 0
    }

    /// Adds what another one has, as far as there is room. What is left comes first: it is what somebody must look at.
    pub fn add(&mut self, other: Self) {
        let mut room = MOST_TO_TELL.saturating_sub(bytes_of(self));
        add(&mut self.left, &mut self.unlisted.left, other.left, &mut room, 0);
        // What is listed last leaves room for what is left in the next one.
        add(&mut self.kept, &mut self.unlisted.kept, other.kept, &mut room, MOST_TO_TELL / 3);
        add(
            &mut self.foreign_grants,
            &mut self.unlisted.foreign_grants,
            other.foreign_grants,
            &mut room,
            MOST_TO_TELL / 3,
        );
        add(&mut self.taken, &mut self.unlisted.taken, other.taken, &mut room, MOST_TO_TELL / 2);
        self.unlisted.taken += other.unlisted.taken;
        self.unlisted.left += other.unlisted.left;
        self.unlisted.kept += other.unlisted.kept;
        self.unlisted.foreign_grants += other.unlisted.foreign_grants;
    }
}

fn add<T: Serialize>(list: &mut Vec<T>, unlisted: &mut usize, more: Vec<T>, room: &mut usize, spare: usize) {
    for item in more {
        let bytes = bytes_of(&item) + 1;
        if bytes + spare <= *room {
            *room -= bytes;
            list.push(item);
        } else {
            *unlisted += 1;
        }
    }
}

/// In JSON.
pub fn bytes_of(value: &impl Serialize) -> usize {
    json!(value).to_string().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(n: usize) -> AccountId {
        AccountId::parse(format!("{n:012}")).unwrap()
    }

    fn left(n: usize, cause: usize) -> Left {
        let cause = "x".repeat(cause);
        Left { account_id: Some(account(n)), state: "UndoGrantPrincipals".into(), error: "AccessDenied".into(), cause }
    }

    fn taken(n: usize) -> Taken {
        Taken {
            call: "iam:DetachRolePolicy".into(),
            account_id: account(n),
            resource: "AmiShareKeyAccess".into(),
            from: (0..21).map(|principal| format!("role/{}{principal}", "r".repeat(60))).collect(),
        }
    }

    #[test]
    fn whatever_is_taken_is_something_and_what_is_only_said_is_not() {
        let nothing = json!({
            "execution": "undo-1", "source": { "accountId": account(1), "region": "eu-west-1" }, "imageId": "ami-0123abcd",
            "launchPermissions": [], "snapshotChanges": [], "targets": [], "grantChanges": [], "keyChanges": [],
            "notes": [], "kept": [], "left": []
        });
        let is_something = |field: &str, value: serde_json::Value| {
            let mut take_back = nothing.clone();
            take_back[field] = json!([value]);
            serde_json::from_value::<TakeBack>(take_back).unwrap().is_something()
        };
        let key = json!({ "keyArn": "arn:aws:kms:eu-west-1:111111111111:key/1", "accountIds": [account(2)] });
        let target = json!({ "accountId": account(2), "instances": [], "copies": [], "principalChanges": [] });
        let note =
            json!({ "accountId": account(2), "imageId": "ami-0123abcd", "execution": "nightly", "going": "undo-1 17" });
        for (field, value) in [
            ("launchPermissions", json!(account(2))),
            ("snapshotChanges", json!({ "snapshotId": "snap-0123abcd", "accountIds": [account(2)] })),
            ("targets", target),
            ("grantChanges", key.clone()),
            ("keyChanges", key),
            ("notes", note),
        ] {
            assert!(is_something(field, value), "{field}");
        }
        assert!(!is_something("kept", json!({ "accountId": account(2), "imageId": "ami-0123abcd" })));
        assert!(!is_something("left", json!({ "state": "ResolveUndo", "error": "Aws" })));
    }

    #[test]
    fn what_is_left_says_where_and_why() {
        let cause = r#"{"errorType":"AccessDenied","errorMessage":"role x cannot be assumed."}"#.to_owned();
        let mut left = Left { cause, ..left(222, 0) };
        let said = "UndoGrantPrincipals in account 000000000222 failed with AccessDenied: role x cannot be assumed";
        assert_eq!(left.to_string(), said);
        left = Left { state: "ResolveUndo".into(), cause: "what it was given stays".into(), ..left };
        let said = "ResolveUndo in account 000000000222 failed with AccessDenied: what it was given stays";
        assert_eq!(left.to_string(), said);
        left = Left { account_id: None, cause: "no role".into(), ..left };
        let said = "ResolveUndo failed with AccessDenied: no role (so nothing more was taken back)";
        assert_eq!(left.to_string(), said);
    }

    #[test]
    fn an_answer_is_cut_to_fit_and_counts_the_rest() {
        let mut whole = TakenBack::default();
        for _ in 0..10 {
            let one = TakenBack {
                taken: (0..50).map(taken).collect(),
                left: (0..155).map(|n| left(n, 500)).collect(),
                ..TakenBack::default()
            };
            whole.add(one);
            assert!(bytes_of(&whole) <= MOST_TO_TELL, "{}", bytes_of(&whole));
        }
        assert_eq!((whole.taken.len() + whole.unlisted.taken, whole.left.len() + whole.unlisted.left), (500, 1550));
        assert!(whole.left.len() > 50 && !whole.is_whole());
    }

    #[test]
    fn many_small_things_fit_with_what_stands_between_them() {
        let mut whole = TakenBack::default();
        whole.add(TakenBack { left: (0..1_000).map(|n| left(n, 0)).collect(), ..TakenBack::default() });
        assert!(whole.unlisted.left > 0 && bytes_of(&whole) <= MOST_TO_TELL, "{}", bytes_of(&whole));
    }

    #[test]
    fn what_is_left_has_room_after_a_lot_was_taken_or_kept() {
        let kept = |n| Kept { account_id: account(n), image_id: ImageId::parse("ami-0123abcd").unwrap() };
        for much in [
            TakenBack { taken: (0..200).map(taken).collect(), ..TakenBack::default() },
            TakenBack { kept: (0..1_000).map(kept).collect(), ..TakenBack::default() },
        ] {
            let mut whole = TakenBack::default();
            whole.add(much);
            assert!(bytes_of(&whole) > MOST_TO_TELL / 3, "{}", bytes_of(&whole));
            assert!(whole.unlisted.taken + whole.unlisted.kept > 0 && whole.is_whole());
            whole.add(TakenBack { left: (0..10).map(|n| left(n, 500)).collect(), ..TakenBack::default() });
            assert_eq!(whole.left.len(), 10);
        }
    }

    #[test]
    fn grants_that_stay_are_listed_as_far_as_there_is_room_and_the_rest_is_counted() {
        let grants = |n| {
            let grantee = format!("arn:aws:iam::{}:role/{}", account(n), "r".repeat(60));
            ForeignGrants {
                key_arn: KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1").unwrap(),
                account_id: account(n),
                kind: PassedOn::Other,
                stay: Stay::NotAsked,
                grants: vec![ForeignGrant { grant_id: "f".repeat(64), grantee }; 5],
                more: 7,
            }
        };
        let mut foreign = Foreign::default();
        for _ in 0..3 {
            foreign.add((0..50).map(grants).collect());
            assert!(bytes_of(&foreign.grants) <= MOST_OF_FOREIGN, "{}", bytes_of(&foreign.grants));
        }
        assert!(foreign.grants.len() > 5);
        assert_eq!(foreign.grants.len() + foreign.unlisted, 150);
        let mut whole = TakenBack { foreign_grants: foreign.grants.clone(), ..TakenBack::default() };
        for _ in 0..10 {
            whole.add(TakenBack { foreign_grants: foreign.grants.clone(), ..TakenBack::default() });
            assert!(bytes_of(&whole) <= MOST_TO_TELL, "{}", bytes_of(&whole));
        }
        assert_eq!(whole.foreign_grants.len() + whole.unlisted.foreign_grants, 11 * foreign.grants.len());
    }

    #[test]
    fn what_others_could_not_list_is_counted_on() {
        let mut whole = TakenBack::default();
        let unlisted = Unlisted { taken: 1, left: 2, kept: 3, foreign_grants: 4 };
        let other = TakenBack { unlisted, ..TakenBack::default() };
        whole.add(other.clone());
        whole.add(other);
        assert_eq!(whole.unlisted, Unlisted { taken: 2, left: 4, kept: 6, foreign_grants: 8 });
        assert_eq!(whole.unlisted.all(), 20);
        assert!(!whole.is_whole());
    }
}
