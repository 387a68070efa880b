//! Which accounts may ever be a target: parameters of the hub stack. Empty means nobody.
//!
//! This is what can be said without a question. Whether an account is a member of an organization or in an
//! organizational unit is asked by the library `functions/lib/allow-list`.

use std::fmt;

use crate::{
    Error,
    error::RefusedTarget,
    ids::{AccountId, OrganizationId, OrganizationalUnitId},
};

/// What the hub stack's parameters list, parsed.
#[derive(Debug, Clone, Default)]
pub struct AllowList {
    accounts: Vec<AccountId>,
    organizations: Vec<OrganizationId>,
    units: Vec<OrganizationalUnitId>,
}

impl AllowList {
    /// From a comma-separated list of ids, of accounts, organizations and organizational units.
    ///
    /// # Errors
    /// The entry that is none of these: a list that is half read must not be used.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let read = if entry.starts_with("ou-") {
                OrganizationalUnitId::parse(entry).map(|unit| parsed.units.push(unit))
            } else if entry.starts_with("o-") {
                OrganizationId::parse(entry).map(|organization| parsed.organizations.push(organization))
            } else {
                AccountId::parse(entry).map(|account| parsed.accounts.push(account))
            };
            read.map_err(|rule| format!("{entry:?} must be {rule}"))?;
        }
        Ok(parsed)
    }

    /// Whether an account that is not listed may be allowed all the same.
    pub fn has_organizations(&self) -> bool {
        !self.organizations.is_empty() || !self.units.is_empty()
    }

    /// Whether an organizational unit is listed: an account's parents are asked for only then.
    pub fn has_units(&self) -> bool {
        !self.units.is_empty()
    }

    /// Whether every account of `organization` is allowed.
    pub fn allows_organization(&self, organization: &OrganizationId) -> bool {
        self.organizations.contains(organization)
    }

    /// Whether every account in `unit`, at any depth, is allowed.
    pub fn allows_unit(&self, unit: &OrganizationalUnitId) -> bool {
        self.units.contains(unit)
    }

    /// The accounts that are not listed, each once: AWS Organizations must be asked about them.
    ///
    /// # Errors
    /// [`Error::TargetNotAllowed`] with these accounts where there is nothing to ask, as no organization
    /// and no organizational unit is allowed.
    pub fn unlisted<'a>(&self, accounts: impl IntoIterator<Item = &'a AccountId>) -> Result<Vec<AccountId>, Error> {
        let mut unlisted: Vec<AccountId> =
            accounts.into_iter().filter(|account| !self.accounts.contains(account)).cloned().collect();
        unlisted.sort();
        unlisted.dedup();
        if unlisted.is_empty() || self.has_organizations() {
            return Ok(unlisted);
        }
        let refused = unlisted.into_iter().map(|account_id| RefusedTarget { account_id, reason: None });
        Err(self.refusal(refused.collect()))
    }

    /// Refuses accounts that nothing AWS Organizations may say can allow. It is what a step in a target checks: the
    /// hub's roles may assume roles in allowed accounts only (`AssumeTargetRolePolicy` in template.yaml), so an
    /// account that this lets pass is refused by STS, without a question for each target.
    ///
    /// # Errors
    /// As [`AllowList::unlisted`].
    pub fn check_listed<'a>(&self, accounts: impl IntoIterator<Item = &'a AccountId>) -> Result<(), Error> {
        self.unlisted(accounts).map(drop)
    }

    /// The error about these accounts, with what is allowed.
    pub fn refusal(&self, refused: Vec<RefusedTarget>) -> Error {
        Error::TargetNotAllowed { refused, lists: self.to_string() }
    }
}

/// For whoever was refused: what there is, and where to add to it. Accounts are only counted.
impl fmt::Display for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |ids: Vec<&str>| if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
        write!(
            f,
            "the hub stack allows {} account(s) (AllowedTargetAccounts), the members of organizations: {} \
             (AllowedOrganizations), and the accounts in organizational units: {} (AllowedOrganizationalUnits); add to \
             one of these parameters if it should be allowed",
            self.accounts.len(),
            listed(self.organizations.iter().map(OrganizationId::as_str).collect()),
            listed(self.units.iter().map(OrganizationalUnitId::as_str).collect()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(digit: char) -> AccountId {
        AccountId::parse(digit.to_string().repeat(12)).unwrap()
    }

    #[test]
    fn an_empty_list_allows_nobody() {
        for list in ["", ",,", " , "] {
            let error = AllowList::parse(list).unwrap().unlisted([&account('2')]).unwrap_err();
            assert_eq!(error.name(), "TargetNotAllowed");
        }
    }

    #[test]
    fn every_account_that_is_not_listed_is_named() {
        let list = AllowList::parse("222222222222, 333333333333").unwrap();
        assert!(list.unlisted([&account('2'), &account('3')]).unwrap().is_empty());
        let error = list.unlisted([&account('5'), &account('4'), &account('2'), &account('5')]);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("444444444444; 555555555555;") && !error.contains("222222222222"), "{error}");
        assert!(error.contains("2 account(s) (AllowedTargetAccounts)"), "{error}");
    }

    #[test]
    fn with_an_organization_or_a_unit_only_the_others_are_asked_about() {
        for list in ["222222222222,o-a1b2c3d4e5", "222222222222,,ou-ab12-34cd56ef"] {
            let list = AllowList::parse(list).unwrap();
            assert!(list.unlisted([&account('2')]).unwrap().is_empty());
            assert_eq!(list.unlisted([&account('4'), &account('2'), &account('4')]).unwrap(), [account('4')]);
        }
    }

    #[test]
    fn only_what_is_listed_is_allowed() {
        let list = AllowList::parse("222222222222,o-a1b2c3d4e5,ou-ab12-34cd56ef").unwrap();
        let organization = |id: &str| list.allows_organization(&OrganizationId::parse(id).unwrap());
        let unit = |id: &str| list.allows_unit(&OrganizationalUnitId::parse(id).unwrap());
        assert!(organization("o-a1b2c3d4e5") && !organization("o-a1b2c3d4e6"));
        assert!(unit("ou-ab12-34cd56ef") && !unit("ou-ab12-34cd56ee"));
        assert!(list.has_units() && !AllowList::parse("222222222222,o-a1b2c3d4e5").unwrap().has_units());
        let accounts = AllowList::parse("222222222222").unwrap();
        assert!(accounts.check_listed([&account('2')]).is_ok() && accounts.check_listed([&account('4')]).is_err());
    }

    #[test]
    fn a_refusal_says_which_lists_there_are() {
        let list = AllowList::parse("ou-ab12-34cd56ef").unwrap();
        let reason = Some("its state is SUSPENDED".to_owned());
        let error = list.refusal(vec![RefusedTarget { account_id: account('4'), reason }]).to_string();
        for said in ["444444444444 (its state is SUSPENDED)", "organizations: none", "units: ou-ab12-34cd56ef"] {
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_malformed_entry_refuses_the_whole_list() {
        for wrong in ["*", "o-*", "ou-ab12-*", "o-a1b2c3d4e5/", "r-ab12", "22222222222"] {
            assert!(AllowList::parse(&format!("222222222222,{wrong}")).is_err(), "{wrong:?}");
        }
    }
}
