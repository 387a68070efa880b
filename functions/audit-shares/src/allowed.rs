//! Who of those that can use an image or a key is not on the hub's allow-list.

use std::collections::{BTreeMap, BTreeSet};

use ami_share_core::{
    Error, Hub,
    allow_list::AllowList,
    error::RefusedTarget,
    ids::{AccountId, ExecutionName, OrganizationId, OrganizationalUnitId},
};

use crate::{
    grantee::Grantee,
    report::{Finding, Kind},
};

/// The accounts that may not be targets, each with what AWS Organizations said of it.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    accounts: BTreeMap<AccountId, Option<String>>,
    /// Why that is not known of accounts that are not listed.
    pub(crate) unknown: Option<String>,
}

impl Refused {
    /// Which of `accounts` may not be targets. Where Organizations cannot be asked, that is said of the accounts that it
    /// would have to be asked about: it is no reason to say nothing of the rest.
    pub(crate) async fn ask(
        hub: &Hub,
        execution: &ExecutionName,
        accounts: &BTreeSet<AccountId>,
    ) -> Result<Self, Error> {
        match ami_share_allow_list::check(hub, execution, accounts).await {
            Ok(()) => Ok(Self::default()),
            Err(Error::TargetNotAllowed { refused, .. }) => Ok(Self::of(refused)),
            Err(error @ Error::AccessDenied { .. }) => Ok(Self::unknown(&error)),
            Err(error) => Err(error),
        }
    }

    fn of(refused: Vec<RefusedTarget>) -> Self {
        Self { accounts: refused.into_iter().map(|target| (target.account_id, target.reason)).collect(), unknown: None }
    }

    fn unknown(error: &Error) -> Self {
        Self { accounts: BTreeMap::new(), unknown: Some(error.to_string()) }
    }

    /// One finding for each reason. `what` is what they can use.
    pub(crate) fn findings<'g>(
        &self,
        list: &AllowList,
        grantees: impl IntoIterator<Item = &'g Grantee>,
        what: &str,
    ) -> Vec<Finding> {
        let mut by_reason: BTreeMap<&str, Vec<Grantee>> = BTreeMap::new();
        for grantee in grantees {
            if let Some(reason) = self.reason(list, grantee) {
                by_reason.entry(reason).or_default().push(grantee.clone());
            }
        }
        let finding = |(reason, grantees): (&str, Vec<Grantee>)| {
            let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
            Finding::new(Kind::NotOnAllowList, grantees, |accounts| {
                format!("The hub's allow-list does not allow {accounts}{reason}, and something lets them use {what}.")
            })
        };
        by_reason.into_iter().map(finding).collect()
    }

    /// Why not; nothing for whoever is allowed.
    fn reason(&self, list: &AllowList, grantee: &Grantee) -> Option<&str> {
        match grantee {
            Grantee::Account(account) => self.accounts.get(account).map(|reason| reason.as_deref().unwrap_or_default()),
            Grantee::Organization(arn) => (!allows(list, arn)).then_some("an organization"),
            Grantee::OrganizationalUnit(arn) => {
                (!allows(list, arn)).then_some("an organizational unit; whether it is inside one is not looked at")
            }
            Grantee::Everybody => Some("it is public"),
        }
    }
}

/// Whether the organization or the unit of that ARN is listed, or the unit's organization.
fn allows(list: &AllowList, arn: &str) -> bool {
    arn.split('/').skip(1).any(|id| {
        OrganizationId::parse(id).is_ok_and(|organization| list.allows_organization(&organization))
            || OrganizationalUnitId::parse(id).is_ok_and(|unit| list.allows_unit(&unit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORGANIZATION: &str = "arn:aws:organizations::999999999999:organization/o-a1b2c3d4e5";
    const UNIT: &str = "arn:aws:organizations::999999999999:ou/o-a1b2c3d4e5/ou-ab12-34cd56ef";

    fn refused(refused: &Refused, list: &str) -> Vec<Vec<String>> {
        let grantees: Vec<Grantee> = ["222222222222", "333333333333", ORGANIZATION, UNIT, "all"]
            .map(|text| Grantee::try_from(text.to_owned()).unwrap())
            .into();
        let findings = refused.findings(&AllowList::parse(list).unwrap(), &grantees, "ami-0123abcd");
        findings.iter().map(|finding| finding.accounts.iter().map(ToString::to_string).collect()).collect()
    }

    #[test]
    fn whoever_is_refused_is_found_with_the_reason() {
        let reason = Some("its state is SUSPENDED".to_owned());
        let account_id = AccountId::parse("333333333333").unwrap();
        let suspended = Refused::of(vec![RefusedTarget { account_id, reason }]);
        let (unit, organization, everybody) = ("ou-ab12-34cd56ef", "o-a1b2c3d4e5", "everybody");
        assert_eq!(refused(&suspended, ""), [vec![organization], vec![unit], vec![everybody], vec!["333333333333"]]);
        assert_eq!(refused(&suspended, organization), [[everybody], ["333333333333"]]);
        assert_eq!(refused(&Refused::default(), unit), [[organization], [everybody]]);
    }
}
