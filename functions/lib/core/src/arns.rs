//! ARNs in IAM, and the partition that they begin with.

use crate::ids::{AccountId, Region};

/// The ARN of a role of `account`; `name` is with its path, if it has one, as in `team/AmiShareSource`; `region` says the
/// partition.
pub fn role_arn(account: &AccountId, region: &Region, name: &str) -> String {
    format!("arn:{}:iam::{account}:role/{name}", partition(region))
}

/// The ARN that stands for all of `account`; `region` says the partition.
pub fn account_root(account: &AccountId, region: &Region) -> String {
    format!("arn:{}:iam::{account}:root", partition(region))
}

/// The ARN of a managed policy of `account`; `name` is with its path, if it has one; `region` says the partition.
pub fn policy_arn(account: &AccountId, region: &Region, name: &str) -> String {
    format!("arn:{}:iam::{account}:policy/{name}", partition(region))
}

/// The partition that a Region is in ("Amazon Resource Names", AWS General Reference).
pub fn partition(region: &Region) -> &'static str {
    if region.as_str().starts_with("cn-") {
        "aws-cn"
    } else if region.as_str().starts_with("us-gov-") {
        "aws-us-gov"
    } else {
        "aws"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_of_china_and_govcloud_are_in_partitions_of_their_own() {
        assert_eq!(partition(&Region::parse("cn-north-1").unwrap()), "aws-cn");
        assert_eq!(partition(&Region::parse("us-gov-west-1").unwrap()), "aws-us-gov");
        assert_eq!(partition(&Region::parse("eu-west-1").unwrap()), "aws");
    }
}
