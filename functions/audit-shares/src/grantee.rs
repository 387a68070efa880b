//! Whom EC2 can let use an image or a snapshot.

use std::fmt;

use ami_share_core::ids::AccountId;
use serde::{Deserialize, Serialize};

/// As text: an account's id, an ARN, or `all`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Grantee {
    Account(AccountId),
    /// `arn:aws:organizations::<management account>:organization/<organization>`
    Organization(String),
    /// `arn:aws:organizations::<management account>:ou/<organization>/<unit>`
    OrganizationalUnit(String),
    /// The image or snapshot is public.
    Everybody,
}

const EVERYBODY: &str = "all";

impl Grantee {
    pub(crate) fn account(&self) -> Option<&AccountId> {
        match self {
            Self::Account(account) => Some(account),
            Self::Organization(_) | Self::OrganizationalUnit(_) | Self::Everybody => None,
        }
    }
}

impl TryFrom<String> for Grantee {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.splitn(6, ':').nth(5) {
            Some(resource) if resource.starts_with("organization/") => Ok(Self::Organization(text)),
            Some(resource) if resource.starts_with("ou/") => Ok(Self::OrganizationalUnit(text)),
            _ if text == EVERYBODY => Ok(Self::Everybody),
            _ => AccountId::try_from(text).map(Self::Account),
        }
    }
}

impl From<Grantee> for String {
    fn from(grantee: Grantee) -> Self {
        match grantee {
            Grantee::Account(account) => account.into(),
            Grantee::Organization(arn) | Grantee::OrganizationalUnit(arn) => arn,
            Grantee::Everybody => EVERYBODY.to_owned(),
        }
    }
}

impl fmt::Display for Grantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(account) => account.fmt(f),
            Self::Organization(arn) | Self::OrganizationalUnit(arn) => {
                f.write_str(arn.rsplit('/').next().unwrap_or_default())
            }
            Self::Everybody => f.write_str("everybody"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grantee_is_read_as_it_is_written_and_shown_by_its_id() {
        for (text, shown) in [
            ("222222222222", "222222222222"),
            ("arn:aws:organizations::999999999999:organization/o-a1b2c3d4e5", "o-a1b2c3d4e5"),
            ("arn:aws:organizations::999999999999:ou/o-a1b2c3d4e5/ou-ab12-34cd56ef", "ou-ab12-34cd56ef"),
            ("all", "everybody"),
        ] {
            let grantee = Grantee::try_from(text.to_owned()).unwrap();
            assert_eq!(grantee.to_string(), shown);
            assert_eq!(grantee.account().is_some(), text == "222222222222");
            assert_eq!(String::from(grantee), text);
        }
        assert!(Grantee::try_from("arn:aws:iam::222222222222:root".to_owned()).is_err());
    }
}
