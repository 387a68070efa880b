//! Which accounts may ever be a target: a parameter of the hub stack. Empty means nobody.

use crate::{Error, ids::AccountId};

#[derive(Debug, Clone, Default)]
pub struct AllowList(Vec<AccountId>);

impl AllowList {
    /// From a comma-separated list of account ids, as CloudFormation renders a list parameter.
    ///
    /// # Errors
    /// The entry that is not an account id: a list that is half read must not be used.
    pub fn parse(list: &str) -> Result<Self, String> {
        list.split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(|entry| AccountId::parse(entry).map_err(|rule| format!("{entry:?} must be {rule}")))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// # Errors
    /// [`Error::TargetNotAllowed`] with every account that is not on the list.
    pub fn check<'a>(&self, accounts: impl IntoIterator<Item = &'a AccountId>) -> Result<(), Error> {
        let mut refused: Vec<AccountId> =
            accounts.into_iter().filter(|account| !self.0.contains(account)).cloned().collect();
        refused.sort();
        refused.dedup();
        if refused.is_empty() { Ok(()) } else { Err(Error::TargetNotAllowed(refused)) }
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
        let error = AllowList::parse("").unwrap().check([&account('2')]).unwrap_err();
        assert_eq!(error.name(), "TargetNotAllowed");
    }

    #[test]
    fn every_account_that_is_not_listed_is_named() {
        let list = AllowList::parse("222222222222, 333333333333").unwrap();
        assert!(list.check([&account('2'), &account('3')]).is_ok());
        let error = list.check([&account('4'), &account('2'), &account('5')]).unwrap_err().to_string();
        assert!(error.contains("444444444444; 555555555555") && !error.contains("222222222222"), "{error}");
    }

    #[test]
    fn a_malformed_entry_refuses_the_whole_list() {
        assert!(AllowList::parse("222222222222,*").is_err());
    }
}
