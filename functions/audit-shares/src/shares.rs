//! What was found of an image or a key, compared with what should be.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    ids::{AccountId, ImageId, KeyArn, SnapshotId},
    share::Mode,
    words,
};
use ami_share_record::Gift;

use crate::{
    grantee::Grantee,
    keys::{GivenOn, KeyAccess, Way},
    report::{Finding, GivenBy, ImageShares, KeyShare, Kind, Share, SharedWith},
};

/// All that was found of one image.
pub(crate) struct Seen<'a> {
    pub(crate) image_id: &'a ImageId,
    pub(crate) name: &'a str,
    /// Devices whose volumes are under no key.
    pub(crate) unencrypted: Vec<String>,
    pub(crate) launching: &'a BTreeSet<Grantee>,
    pub(crate) snapshots: Vec<(&'a SnapshotId, &'a BTreeSet<Grantee>)>,
    pub(crate) keys: Vec<(&'a KeyArn, &'a KeyAccess)>,
    /// What ami-share noted of it.
    pub(crate) gifts: Vec<&'a Gift>,
}

impl Seen<'_> {
    /// Whom EC2 lets use the image or a snapshot of it, or whom ami-share gave something.
    pub(crate) fn grantees(&self) -> BTreeSet<&Grantee> {
        let copying = self.snapshots.iter().flat_map(|(_, permitted)| *permitted);
        self.launching.iter().chain(copying).collect()
    }

    /// Who has what of it: accounts that have the same are listed together.
    pub(crate) fn shares(&self) -> ImageShares {
        let noted = self.gifts.iter().map(|gift| Grantee::Account(gift.target.account_id.clone()));
        let grantees: BTreeSet<Grantee> = self.grantees().into_iter().cloned().chain(noted).collect();
        let mut shares: Vec<SharedWith> = Vec::new();
        for grantee in grantees {
            let share = self.share(&grantee);
            match shares.iter_mut().find(|other| other.share == share) {
                Some(same) => same.accounts.push(grantee),
                None => shares.push(SharedWith { accounts: vec![grantee], share }),
            }
        }
        ImageShares {
            image_id: self.image_id.clone(),
            name: self.name.to_owned(),
            keys: self.keys.len(),
            snapshots: self.snapshots.len(),
            unencrypted: words::unencrypted(&self.unencrypted),
            shares,
        }
    }

    fn share(&self, grantee: &Grantee) -> Share {
        let gifts: Vec<&Gift> =
            self.gifts.iter().filter(|gift| grantee.account() == Some(&gift.target.account_id)).copied().collect();
        let given_by = |ours: bool| if ours { GivenBy::AmiShare } else { GivenBy::SomebodyElse };
        let launch_permission = self
            .launching
            .contains(grantee)
            .then(|| given_by(gifts.iter().any(|gift| gift.target.source_changes.launch_permission)));
        let mut snapshot_permissions = BTreeMap::new();
        for (snapshot, _) in self.snapshots.iter().filter(|(_, permitted)| permitted.contains(grantee)) {
            let ours = gifts.iter().any(|gift| gift.target.source_changes.snapshot_ids.contains(snapshot));
            *snapshot_permissions.entry(given_by(ours)).or_default() += 1;
        }
        let key_access = |account: &AccountId| {
            let ways = |(key, access): &(&KeyArn, &KeyAccess)| KeyShare {
                key_arn: (*key).clone(),
                ways: access.ways(account),
            };
            self.keys.iter().map(ways).collect()
        };
        let changes = gifts.iter().flat_map(|gift| &gift.target.principal_changes);
        let copied = gifts.iter().filter(|gift| made_a_copy(gift));
        Share {
            launch_permission,
            key_access: grantee.account().map(key_access).unwrap_or_default(),
            snapshot_permissions,
            principals: changes.map(|change| change.principal.name().to_owned()).collect(),
            copied_by: copied.map(|gift| gift.execution.to_string()).collect(),
        }
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        let image = self.image_id;
        let mut findings = Vec::new();
        for (key, access) in &self.keys {
            let has_access = |account: &AccountId| access.ways(account).into_iter().any(Way::is_access);
            let without = self.launching.iter().filter(|grantee| grantee.account().is_some_and(|id| !has_access(id)));
            let without: Vec<Grantee> = without.cloned().collect();
            if !without.is_empty() {
                let finding = Finding::new(Kind::LaunchPermissionWithoutKeyAccess, without, |accounts| {
                    format!(
                        "{accounts} can launch {image}, and nothing that was found lets them use key {key}: \
                         an instance of theirs starts, and is gone."
                    )
                });
                findings.push(finding.of_image(image).of_key(key));
            }
        }
        for (snapshot, permitted) in &self.snapshots {
            let left: Vec<Grantee> = if self.launching.contains(&Grantee::Everybody) {
                vec![]
            } else {
                permitted.difference(self.launching).cloned().collect()
            };
            if !left.is_empty() {
                let finding = Finding::new(Kind::SnapshotPermissionWithoutLaunchPermission, left, |accounts| {
                    format!("{accounts} may copy snapshot {snapshot} of {image}, and have no permission to launch it.")
                });
                findings.push(finding.of_image(image).of_snapshot(snapshot));
            }
        }
        findings
    }
}

/// What ami-share's statements and grants on a key are for: `launching` are the accounts that can launch an image
/// that is under it; nothing where no image is.
pub(crate) fn key_findings(key: &KeyArn, access: &KeyAccess, launching: Option<&BTreeSet<AccountId>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let grantees = |accounts: &BTreeSet<&AccountId>| -> Vec<Grantee> {
        accounts.iter().map(|account| Grantee::Account((*account).clone())).collect()
    };
    if !access.half.is_empty() {
        let half = access.half.iter().collect();
        findings.push(Finding::new(Kind::HalfKeyStatements, grantees(&half), |accounts| {
            format!("Only one of ami-share's two statements in the policy of key {key} names {accounts}.")
        }));
    }
    if !access.foreign.is_empty() {
        let named = access.foreign_accounts.iter().collect();
        findings.push(Finding::new(Kind::KeyStatementNotOurs, grantees(&named), |_| {
            format!(
                "What is under ami-share's Sids in the policy of key {key} is not as ami-share writes it: {}.",
                access.foreign.join("; ")
            )
        }));
    }
    if let Some(problem) = access.unusable.as_ref().filter(|_| launching.is_some()) {
        findings.push(Finding::new(Kind::KeyNotUsable, vec![], |_| {
            format!("Nobody can use what is under key {key}: {problem}.")
        }));
    }
    for GivenOn { issuer, grantee, grant_id } in &access.given_on {
        findings.push(Finding::new(Kind::GrantPassedOn, vec![Grantee::Account(issuer.clone())], |issuer| {
            format!(
                "{issuer} let {grantee} use key {key} by a grant of its own, which a revoke does not take. An administrator \
                 of the key ends it with: {}",
                ami_share_key_grants::revoke_command(key, grant_id)
            )
        }));
    }
    for (account, command) in &access.not_retirable {
        findings.push(Finding::new(Kind::GrantNotRetirable, vec![Grantee::Account(account.clone())], |account| {
            format!(
                "The role that may retire ami-share's grant to {account} on key {key} was deleted; one that was made again \
                 may not. An administrator of the key ends the grant with: {command}"
            )
        }));
    }
    let left = left_over(access, launching);
    if !left.is_empty() {
        let (kind, rest) = match launching {
            Some(_) => (Kind::KeyAccessWithoutLaunchPermission, "can launch no image that is under it"),
            None => (Kind::KeyAccessWithoutImage, "no image is under it"),
        };
        findings.push(Finding::new(kind, grantees(&left), |accounts| {
            format!("ami-share's statements or grants let {accounts} use key {key}, and {rest}.")
        }));
    }
    findings.into_iter().map(|finding| finding.of_key(key)).collect()
}

/// The accounts that ami-share gave the use of a key, and that cannot launch an image that is under it.
pub(crate) fn left_over<'a>(access: &'a KeyAccess, launching: Option<&BTreeSet<AccountId>>) -> BTreeSet<&'a AccountId> {
    let ours = access.ours().into_iter();
    ours.filter(|account| launching.is_none_or(|launching| !launching.contains(*account))).collect()
}

/// Rather than finding one that an earlier execution made.
fn made_a_copy(gift: &Gift) -> bool {
    gift.target.mode == Mode::CopyImage && gift.target.copy_id.is_none()
}

/// What ami-share noted of an image that is gone.
pub(crate) fn note_without_image(image: &ImageId, gifts: &[&Gift]) -> Finding {
    let accounts: BTreeSet<Grantee> =
        gifts.iter().map(|gift| Grantee::Account(gift.target.account_id.clone())).collect();
    let principals: usize = gifts.iter().map(|gift| gift.target.principal_changes.len()).sum();
    let copies = gifts.iter().filter(|gift| made_a_copy(gift)).count();
    let finding = Finding::new(Kind::NoteWithoutImage, accounts.into_iter().collect(), |accounts| {
        format!(
            "{image} is gone, and what ami-share gave {accounts} of it is noted still: the use of keys by {principals} \
             principal(s), {copies} copy or copies."
        )
    });
    finding.of_image(image)
}
