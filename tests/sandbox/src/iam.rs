//! IAM: users, roles, policies, access keys.

/// IAM of one account.
#[derive(Debug, Clone)]
pub struct Iam {
    pub account: String,
}

impl Iam {
    pub fn new(account: &str) -> Self {
        Self {
            account: account.to_owned(),
        }
    }
}
