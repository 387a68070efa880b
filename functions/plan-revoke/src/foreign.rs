//! The grants that the targets passed on by those that would be retired: which would be revoked, and which would stay.

use std::collections::BTreeSet;

use ami_share_core::{
    Error,
    ids::KeyArn,
    take_back::{ForeignGrants, Left, TakeBack},
};
use ami_share_key_grants::{SHAREABLE_TAG, foreign_grants, is_shareable, that_stay};
use aws_sdk_kms::Client;

/// As UndoGrantKeys would see to them, once ours are retired.
#[derive(Debug, Default)]
pub(crate) struct PassedOn {
    /// Each by its key and its id, in the order of the calls.
    pub(crate) revoked: Vec<(KeyArn, String)>,
    pub(crate) stay: Vec<ForeignGrants>,
    /// What the role that revokes them would be refused.
    pub(crate) left: Vec<Left>,
}

/// # Errors
/// As [`foreign_grants`].
pub(crate) async fn find(kms: &Client, take_back: &TakeBack, source_role: &str) -> Result<PassedOn, Error> {
    let revokes = take_back.revoke_foreign_grants;
    let mut passed_on = PassedOn::default();
    for change in &take_back.grant_changes {
        let key = &change.key_arn;
        let going: BTreeSet<_> = change.account_ids.iter().cloned().collect();
        let found = foreign_grants(kms, key, source_role, &going).await?;
        passed_on.stay.extend(that_stay(key, &found, revokes));
        let revoked = found.into_iter().filter(|foreign| revokes && foreign.stay.is_none());
        let revoked: Vec<(KeyArn, String)> = revoked.map(|foreign| (key.clone(), foreign.grant.grant_id)).collect();
        if !revoked.is_empty() && !is_shareable(kms, key).await? {
            passed_on.left.push(untagged(key));
        }
        passed_on.revoked.extend(revoked);
    }
    Ok(passed_on)
}

fn untagged(key: &KeyArn) -> Left {
    let cause =
        format!("key {key} has no tag {SHAREABLE_TAG}=true, without which nothing that targets passed on is revoked");
    Left { account_id: None, state: "UndoGrantKeys".to_owned(), error: "AccessDenied".to_owned(), cause }
}
