//! Identifiers, checked when they are made: a value of one of these types is well-formed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest;

/// Why a string is not the identifier it should be: a rule, worded to follow "must be".
pub type Rule = String;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// # Errors
            /// The rule that `value` breaks.
            pub fn parse(value: impl Into<String>) -> Result<Self, Rule> {
                let value = value.into();
                let check: fn(&str) -> Result<(), Rule> = $parse;
                check(&value).map(|()| Self(value))
            }

            /// As AWS writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Rule;

            fn try_from(value: String) -> Result<Self, Rule> {
                Self::parse(value.clone()).map_err(|rule| format!("{value:?} must be {rule}"))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier!(
    /// A 12-digit AWS account id.
    AccountId,
    |value| {
        let digits = value.len() == 12 && value.bytes().all(|b| b.is_ascii_digit());
        rule(digits, "an account id of 12 digits")
    }
);

identifier!(
    /// `ami-` and 8 or 17 hexadecimal digits.
    ImageId,
    |value| rule(is_resource_id(value, "ami-"), "an image id (ami- and 8 or 17 hexadecimal digits)")
);

identifier!(
    /// `snap-` and 8 or 17 hexadecimal digits.
    SnapshotId,
    |value| rule(is_resource_id(value, "snap-"), "a snapshot id (snap- and 8 or 17 hexadecimal digits)")
);

identifier!(
    /// `i-` and 8 or 17 hexadecimal digits.
    InstanceId,
    |value| rule(is_resource_id(value, "i-"), "an instance id (i- and 8 or 17 hexadecimal digits)")
);

identifier!(
    /// A Region's name, such as `eu-west-1`.
    Region,
    |value| {
        let parts: Vec<&str> = value.split('-').collect();
        let number = parts.last().is_some_and(|last| !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()));
        let words = parts.len() >= 3
            && parts[..parts.len() - 1].iter().all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_lowercase()));
        rule(number && words, "the name of a Region, such as eu-west-1")
    }
);

identifier!(
    /// The ARN of a KMS key: `arn:aws:kms:<region>:<account>:key/<id>`.
    KeyArn,
    |value| {
        let parts: Vec<&str> = value.splitn(6, ':').collect();
        let whole = matches!(parts.as_slice(), ["arn", partition, "kms", region, account, resource]
            if partition.starts_with("aws")
                && Region::parse(*region).is_ok()
                && AccountId::parse(*account).is_ok()
                && resource.strip_prefix("key/").is_some_and(|id| !id.is_empty() && !id.contains('/')));
        rule(whole, "the ARN of a KMS key (arn:aws:kms:<region>:<account>:key/<id>)")
    }
);

identifier!(
    /// The ARN of an IAM user or role: `arn:aws:iam::<account>:role/<path and name>`.
    PrincipalArn,
    |value| {
        let parts: Vec<&str> = value.splitn(6, ':').collect();
        let whole = matches!(parts.as_slice(), ["arn", partition, "iam", "", account, resource]
            if partition.starts_with("aws")
                && AccountId::parse(*account).is_ok()
                && resource.split_once('/').is_some_and(|(kind, path)| {
                    matches!(kind, "role" | "user")
                        && path.rsplit('/').next().is_some_and(|name| !name.is_empty())
                        && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/_+=,.@-".contains(&b))
                }));
        rule(whole, "the ARN of an IAM role or user (arn:aws:iam::<account>:role/<name>)")
    }
);

identifier!(
    /// The id of an organization: `o-` and 10 to 32 lowercase letters or digits (Organizations API
    /// reference, Organization).
    OrganizationId,
    |value| {
        let right = value.strip_prefix("o-").is_some_and(|rest| is_lowercase_id(rest, 10));
        rule(right, "the id of an organization (o- and 10 to 32 lowercase letters or digits)")
    }
);

identifier!(
    /// The id of an organizational unit: `ou-`, 4 to 32 lowercase letters or digits, a dash, and 8 to
    /// 32 more (Organizations API reference, OrganizationalUnit).
    OrganizationalUnitId,
    |value| {
        let parts = value.strip_prefix("ou-").and_then(|rest| rest.split_once('-'));
        let right = parts.is_some_and(|(root, own)| is_lowercase_id(root, 4) && is_lowercase_id(own, 8));
        rule(right, "the id of an organizational unit (such as ou-ab12-34cd56ef)")
    }
);

identifier!(
    /// What tells an execution from every other, for good: see [`ExecutionName::unique`].
    ExecutionName,
    |value| rule((1..=128).contains(&value.chars().count()), "the name of an execution, of 1 to 128 characters")
);

identifier!(
    /// The hash of a plan: 64 hexadecimal digits, which decide whether two plans are the same. Those of its parts may follow,
    /// which only tell in what two plans differ.
    PlanHash,
    |value| {
        let (whole, parts) = value.split_once('-').unwrap_or((value, ""));
        let are_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let is_hash = whole.len() == 64 && parts.len() <= 64 && are_digits(whole) && are_digits(parts);
        rule(is_hash, "the hash of a plan (64 hexadecimal digits, and what followed them in the plan)")
    }
);

impl KeyArn {
    /// The owner's.
    pub fn account_id(&self) -> AccountId {
        AccountId(self.part(4).to_owned())
    }

    /// Where the key is; one of several Regions has an ARN in each.
    pub fn region(&self) -> Region {
        Region(self.part(3).to_owned())
    }

    /// What follows `key/`.
    pub fn key_id(&self) -> &str {
        self.part(5).trim_start_matches("key/")
    }

    fn part(&self, index: usize) -> &str {
        self.0.splitn(6, ':').nth(index).unwrap_or_default()
    }
}

impl ExecutionName {
    /// Step Functions keeps a name unique in one state machine and for 90 days only (API reference,
    /// StartExecution). Tags and client tokens outlive both, so the name of up to 80 characters is
    /// told apart by its execution's ARN and start time.
    pub fn unique(name: &str, arn: &str, start_time: &str) -> Result<Self, Rule> {
        let digest = digest::sha256(format!("{arn}\n{start_time}"));
        Self::parse(format!("{name}-{}", &digest[..8]))
    }
}

impl PlanHash {
    /// How many digits each part has. Of 4,096 changes of a part, one goes untold: whether the plan is the same is not theirs
    /// to say.
    const DIGITS_OF_PART: usize = 3;

    pub(crate) fn of(text: &str) -> Self {
        Self(digest::sha256(text))
    }

    pub(crate) fn with_parts(&self, parts: &[String]) -> Self {
        let digits: String = parts.iter().map(|part| Self::digits_of(part)).collect();
        Self(format!("{}-{digits}", self.whole()))
    }

    /// The same of a plan that goes on with one of `earlier`: a part that nothing was added to keeps its hash.
    pub(crate) fn with_more_of_parts(&self, earlier: &Self, parts: &[Option<String>]) -> Self {
        let before = earlier.parts().unwrap_or_default();
        let of = |(n, part): (usize, &Option<String>)| {
            let before =
                before.get(n).map_or_else(|| Self::digits_of(""), |digits| String::from_utf8_lossy(digits).into());
            part.as_ref().map_or(before.clone(), |part| Self::digits_of(&format!("{before} {part}")))
        };
        let digits: String = parts.iter().enumerate().map(of).collect();
        Self(format!("{}-{digits}", self.whole()))
    }

    fn digits_of(part: &str) -> String {
        digest::sha256(part)[..Self::DIGITS_OF_PART].to_owned()
    }

    /// What decides whether it is the same plan.
    pub fn whole(&self) -> &str {
        self.0.split('-').next().unwrap_or_default()
    }

    /// Whether it tells of its parts: those of earlier versions do not.
    pub fn has_parts(&self) -> bool {
        self.parts().is_some()
    }

    /// Which parts have another hash in `other`, by their number; nothing where either has none.
    pub fn differing_parts(&self, other: &Self) -> Vec<usize> {
        let (Some(ours), Some(theirs)) = (self.parts(), other.parts()) else { return Vec::new() };
        (0..ours.len().min(theirs.len())).filter(|part| ours[*part] != theirs[*part]).collect()
    }

    fn parts(&self) -> Option<Vec<&[u8]>> {
        let (_, parts) = self.0.split_once('-')?;
        Some(parts.as_bytes().chunks(Self::DIGITS_OF_PART).collect())
    }
}

/// What kind of principal a [`PrincipalArn`] names: IAM has a call of its own for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrincipalKind {
    /// `role/`; an assumed role is none.
    Role,
    /// `user/`.
    User,
}

impl PrincipalArn {
    /// The account that it is a user or role of.
    pub fn account_id(&self) -> AccountId {
        AccountId(self.0.split(':').nth(4).unwrap_or_default().to_owned())
    }

    /// By what stands before the first slash of the resource.
    pub fn kind(&self) -> PrincipalKind {
        if self.resource().starts_with("user/") { PrincipalKind::User } else { PrincipalKind::Role }
    }

    /// The name without its path: what IAM's calls take.
    pub fn name(&self) -> &str {
        self.resource().rsplit('/').next().unwrap_or_default()
    }

    /// Whether only AWS may change the role's policies.
    pub fn is_service_linked(&self) -> bool {
        self.resource().starts_with("role/aws-service-role/")
    }

    /// Whether it is a role that IAM Identity Center makes of a permission set: only that may change it.
    pub fn is_of_identity_center(&self) -> bool {
        self.resource().starts_with("role/aws-reserved/")
    }

    fn resource(&self) -> &str {
        self.0.splitn(6, ':').nth(5).unwrap_or_default()
    }
}

fn rule(holds: bool, rule: &str) -> Result<(), Rule> {
    if holds { Ok(()) } else { Err(rule.to_owned()) }
}

fn is_lowercase_id(value: &str, least: usize) -> bool {
    (least..=32).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
}

fn is_resource_id(value: &str, prefix: &str) -> bool {
    value.strip_prefix(prefix).is_some_and(|hex| {
        matches!(hex.len(), 8 | 17) && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_ids_have_twelve_digits() {
        assert!(AccountId::parse("012345678901").is_ok());
        for wrong in ["", "12345678901", "1234567890123", "12345678901a", " 12345678901"] {
            assert!(AccountId::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn image_ids_have_eight_or_seventeen_hexadecimal_digits() {
        assert!(ImageId::parse("ami-0123abcd").is_ok());
        assert!(ImageId::parse("ami-0123456789abcdef0").is_ok());
        for wrong in ["ami-", "ami-xyz12345", "ami-0123456789", "i-0123abcd", "AMI-0123abcd", "ami-0123ABCD"] {
            assert!(ImageId::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn organizations_and_their_units_are_told_apart() {
        assert!(OrganizationId::parse("o-a1b2c3d4e5").is_ok());
        for wrong in ["o-", "o-short", "o-A1B2C3D4E5", "ou-ab12-34cd56ef", "*", "o-*", "o-a1b2c3d4e5/", "r-ab12"] {
            assert!(OrganizationId::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(OrganizationalUnitId::parse("ou-ab12-34cd56ef").is_ok());
        for wrong in ["ou-", "ou-ab12", "ou-ab12-", "ou-ab12-*", "ou-a-34cd56ef", "ou-ab12-34cd56ef-x", "o-a1b2c3d4e5"]
        {
            assert!(OrganizationalUnitId::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn regions_are_words_and_a_number() {
        for right in ["eu-west-1", "us-gov-east-1", "ap-southeast-12"] {
            assert!(Region::parse(right).is_ok(), "{right:?}");
        }
        for wrong in ["", "eu", "eu-west", "eu-west-", "EU-west-1", "eu--1", "eu west 1"] {
            assert!(Region::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_principal_knows_its_account_kind_and_name() {
        let role = PrincipalArn::parse("arn:aws:iam::222222222222:role/team/app-deployer").unwrap();
        assert_eq!(role.account_id().as_str(), "222222222222");
        assert_eq!(role.kind(), PrincipalKind::Role);
        assert_eq!(role.name(), "app-deployer");
        let user = PrincipalArn::parse("arn:aws:iam::222222222222:user/ann").unwrap();
        assert_eq!(user.kind(), PrincipalKind::User);
    }

    #[test]
    fn an_assumed_role_or_an_account_is_not_a_principal_to_attach_a_policy_to() {
        for wrong in [
            "arn:aws:iam::222222222222:root",
            "arn:aws:sts::222222222222:assumed-role/app/session",
            "arn:aws:iam::22222222222:role/app",
            "arn:aws:iam::222222222222:role/",
            "arn:aws:iam::222222222222:group/ops",
            "222222222222",
        ] {
            assert!(PrincipalArn::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_key_knows_its_account_region_and_id() {
        let key = KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:key/1234-abcd").unwrap();
        assert_eq!(key.account_id().as_str(), "111111111111");
        assert_eq!(key.region().as_str(), "eu-west-1");
        assert_eq!(key.key_id(), "1234-abcd");
        assert!(KeyArn::parse("arn:aws:kms:eu-west-1:111111111111:alias/app").is_err());
    }

    #[test]
    fn an_execution_of_the_same_name_is_another_execution() {
        let named = |arn, start| ExecutionName::unique("nightly", arn, start).unwrap();
        let first = named("arn:1", "2026-01-01T00:00:00Z");
        assert!(first.as_str().starts_with("nightly-"), "{first}");
        assert_eq!(first, named("arn:1", "2026-01-01T00:00:00Z"));
        assert_ne!(first, named("arn:1", "2026-06-01T00:00:00Z"));
        assert_ne!(first, named("arn:2", "2026-01-01T00:00:00Z"));
    }

    #[test]
    fn a_malformed_id_in_json_names_the_value_and_the_rule() {
        let error = serde_json::from_str::<AccountId>("\"12\"").unwrap_err().to_string();
        assert!(error.contains("\"12\" must be an account id of 12 digits"), "{error}");
    }
}
