//! Which accounts KMS refuses as principals. It refuses a policy as a whole and does not say for whom ("PutKeyPolicy",
//! KMS API reference: MalformedPolicyDocumentException), and nothing else of KMS says so without a write. So the accounts
//! are offered again in halves.
//!
//! Each offer is the policy as KMS has it with some more of the accounts that were to be added anyway, under the same
//! lock and noted like any other write. Nobody else's statement is ever missing from one, none gives what was not asked
//! for, and none takes back what the one before gave: the undo of the execution does.

use ami_share_core::{
    Error,
    ids::{AccountId, KeyArn},
    key_policy::KeyPolicy,
};

use crate::policies::{self, PUT_KEY_POLICY, Policies, not_yet_visible};

/// Names those of `accounts` that keep KMS from storing `policy` with them, for which it gave the `reason`. Whoever calls
/// this again after an error goes on where that ended, as the accounts that KMS took are in the policy by then.
///
/// # Errors
/// What [`Policies::offer`] answers; [`Error::NotYetVisible`] where somebody else has changed the policy meanwhile, or KMS
/// does not show yet what it stored.
pub(crate) async fn name_refused(
    policies: &mut Policies<'_>,
    key: &KeyArn,
    policy: &KeyPolicy,
    accounts: &[AccountId],
    reason: &str,
) -> Result<Error, Error> {
    let conflict = |what: String| Error::KeyPolicyConflict { key: key.clone(), reason: what };
    check_unchanged(policies, key, policy).await?;
    if let Some(reason) = policies.offer(key, policy, policy).await? {
        return Ok(policies::refusal(key, "it as it is, without anybody new", &reason));
    }
    let mut stored = policy.clone();
    let mut refused = Vec::new();
    let mut groups = vec![accounts];
    while let Some(group) = groups.pop() {
        let Some(more) = stored.with(group)? else { continue };
        check_unchanged(policies, key, &stored).await?;
        match (policies.offer(key, &stored, &more).await?, group) {
            (None, _) => stored = more,
            (Some(_), [] | [_]) => refused.extend(group.iter().map(ToString::to_string)),
            (Some(_), _) => {
                let (first, second) = group.split_at(group.len() / 2);
                groups.extend([second, first]);
            }
        }
    }
    tracing::info!(key = %key, refused = refused.len(), "KMS refuses accounts");
    if refused.is_empty() {
        return Ok(conflict(format!(
            "KMS refuses it, and no account by itself ({PUT_KEY_POLICY}: {reason}); start again"
        )));
    }
    Ok(conflict(format!(
        "KMS refuses {} as principals ({PUT_KEY_POLICY}: {reason}); look whether these accounts exist, are not closed and have \
         the key's Region enabled, or leave them out",
        refused.join(", ")
    )))
}

/// Each offer replaces the whole, so nobody else may have written since the one before.
async fn check_unchanged(policies: &mut Policies<'_>, key: &KeyArn, stored: &KeyPolicy) -> Result<(), Error> {
    if policies.read(key).await?.digest() == stored.digest() { Ok(()) } else { Err(not_yet_visible(key)) }
}
