//! A target account: who has the managed policy that ami-share attaches.

use std::collections::BTreeSet;

use ami_share_core::{
    Error, aws,
    ids::{AccountId, PrincipalArn, PrincipalKind},
};
use ami_share_record::Note;
use aws_config::SdkConfig;
use aws_sdk_iam::{Client, error::ProvideErrorMetadata};

pub(crate) const LIST_ENTITIES: &str = "iam:ListEntitiesForPolicy";

/// The most principals that are named.
const NAMED: usize = 3;

/// Names the principals of `account` that the managed policy is attached to, and that none of `notes`, which are all of the
/// account, says were given it; nothing where there are none.
///
/// # Errors
/// What the target answers: it may have no such roles, or be gone.
pub(crate) async fn unnoted_principals(
    config: &SdkConfig,
    account: &AccountId,
    policy: &str,
    notes: &[Note],
) -> Result<Option<Error>, Error> {
    let iam = Client::new(config);
    let mut pages = iam.list_entities_for_policy().policy_arn(policy).into_paginator().send();
    let mut attached = BTreeSet::new();
    while let Some(page) = pages.next().await {
        let page = match page {
            Ok(page) => page,
            Err(error) if error.code() == Some("NoSuchEntity") => return Ok(None),
            Err(error) => return Err(aws::failure(account, LIST_ENTITIES, error)),
        };
        attached.extend(page.policy_roles().iter().filter_map(|role| Some(format!("role {}", role.role_name()?))));
        attached.extend(page.policy_users().iter().filter_map(|user| Some(format!("user {}", user.user_name()?))));
    }
    for change in notes.iter().flat_map(|note| &note.gift.target.principal_changes) {
        attached.remove(&named(&change.principal));
    }
    let Some(one) = attached.first() else { return Ok(None) };
    let more = attached.len().saturating_sub(NAMED);
    let mut names: Vec<String> = attached.iter().take(NAMED).cloned().collect();
    names.extend((more > 0).then(|| format!("{more} more")));
    let (kind, name) = one.split_once(' ').unwrap_or_default();
    let others = if attached.len() > 1 { " (and the same for the others)" } else { "" };
    Ok(Some(Error::NotNoted {
        account: account.clone(),
        has: format!("has {policy} attached to {}", names.join(", ")),
        command: format!("aws iam detach-{kind}-policy --{kind}-name {name} --policy-arn {policy}{others}"),
    }))
}

/// As IAM lists it: without its path.
fn named(principal: &PrincipalArn) -> String {
    let kind = match principal.kind() {
        PrincipalKind::Role => "role",
        PrincipalKind::User => "user",
    };
    format!("{kind} {}", principal.name())
}
