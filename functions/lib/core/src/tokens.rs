//! Tokens of calls that are idempotent by token.

use crate::{
    digest,
    ids::{AccountId, ExecutionName},
    polling::MAX_LAUNCHES,
};

/// A token for calls that are idempotent by token: one per execution, account and purpose, 64
/// characters of hexadecimal (the longest that ec2:RunInstances takes).
pub fn client_token(execution: &ExecutionName, account: &AccountId, purpose: &str) -> String {
    digest::sha256(format!("{execution}\n{account}\n{purpose}"))
}

/// The token of the instance that an execution launches in `account` after `before` others, by which it is found again.
pub fn launch_token(execution: &ExecutionName, account: &AccountId, before: u64) -> String {
    match before {
        0 => client_token(execution, account, "launch"),
        _ => client_token(execution, account, &format!("launch {}", before + 1)),
    }
}

/// The tokens of all instances that an execution may have launched in `account`.
pub fn launch_tokens(execution: &ExecutionName, account: &AccountId) -> Vec<String> {
    (0..MAX_LAUNCHES).map(|before| launch_token(execution, account, before)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> ExecutionName {
        ExecutionName::parse(name).unwrap()
    }

    #[test]
    fn tokens_differ_by_execution_account_and_purpose() {
        let account = AccountId::parse("222222222222").unwrap();
        let token = client_token(&named("one"), &account, "launch");
        assert_eq!(token.len(), 64);
        assert_eq!(token, client_token(&named("one"), &account, "launch"));
        assert_ne!(token, client_token(&named("two"), &account, "launch"));
        assert_ne!(token, client_token(&named("one"), &account, "copy"));
    }

    #[test]
    fn each_launch_has_a_token_and_the_first_one_that_of_old() {
        let (execution, account) = (named("one"), AccountId::parse("222222222222").unwrap());
        let tokens = launch_tokens(&execution, &account);
        assert_eq!(tokens[0], client_token(&execution, &account, "launch"));
        assert_eq!(tokens[2], launch_token(&execution, &account, 2));
        assert_eq!(tokens.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    }
}
