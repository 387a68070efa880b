//! Whose images may be shared: a parameter of the hub stack. Empty means nobody's.

use std::fmt;

use crate::{Error, ids::AccountId};

/// What the hub stack's parameter `AllowedSourceAccountIds` lists, or `SourceAccountId` alone.
#[derive(Debug, Clone, Default)]
pub struct Sources(Vec<AccountId>);

impl Sources {
    /// From account ids, separated by commas.
    ///
    /// # Errors
    /// The entry that is none: a list that is half read must not be used.
    pub fn parse(list: &str) -> Result<Self, String> {
        let entries = list.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let accounts = entries.map(|entry| AccountId::parse(entry).map_err(|rule| format!("{entry:?} must be {rule}")));
        accounts.collect::<Result<_, _>>().map(Self)
    }

    /// Every account of the list.
    pub fn accounts(&self) -> &[AccountId] {
        &self.0
    }

    /// Refuses an account that is not listed: whoever may start an execution would run an image of their own in a target.
    ///
    /// # Errors
    /// [`Error::SourceNotAllowed`].
    pub fn check(&self, account: &AccountId) -> Result<(), Error> {
        if self.0.contains(account) {
            return Ok(());
        }
        Err(Error::SourceNotAllowed { account: account.clone(), listed: self.to_string() })
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accounts: Vec<&str> = self.0.iter().map(AccountId::as_str).collect();
        if accounts.is_empty() { f.write_str("none") } else { f.write_str(&accounts.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(digit: char) -> AccountId {
        AccountId::parse(digit.to_string().repeat(12)).unwrap()
    }

    #[test]
    fn an_account_that_is_not_listed_is_refused_with_what_is() {
        let sources = Sources::parse("111111111111, 444444444444").unwrap();
        assert!(sources.check(&account('1')).is_ok() && sources.check(&account('4')).is_ok());
        let error = sources.check(&account('5')).unwrap_err();
        assert_eq!(error.name(), "SourceNotAllowed");
        for said in ["555555555555", "111111111111, 444444444444", "AllowedSourceAccountIds"] {
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn an_empty_list_allows_nobody() {
        for list in ["", ",", " , "] {
            let error = Sources::parse(list).unwrap().check(&account('1')).unwrap_err();
            assert!(error.to_string().contains("(none)"), "{error}");
        }
    }

    #[test]
    fn a_malformed_entry_refuses_the_whole_list() {
        for wrong in ["*", "11111111111", "o-a1b2c3d4e5"] {
            assert!(Sources::parse(&format!("111111111111,{wrong}")).is_err(), "{wrong:?}");
        }
    }
}
