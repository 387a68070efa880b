//! Settings of the deployment.

use std::time::Duration;

use crate::{
    allow_list::AllowList,
    ids::{AccountId, PrincipalArn},
    sources::Sources,
};

/// The hub stack's parameters, as the template gives them to every function. Roles and policy are named with their path, as in
/// `team/AmiShareSource`, where they have one.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The role of `accounts/source.yaml` that changes things.
    pub source_role: String,
    /// The role of `accounts/source.yaml` that changes nothing.
    pub source_reader_role: String,
    /// The role of `accounts/source.yaml` that ends others' grants on keys.
    pub source_grant_revoker_role: String,
    /// The role of `accounts/target.yaml` that manages principals.
    pub target_role: String,
    /// The role of `accounts/target.yaml` that copies, launches, describes and terminates.
    pub launcher_role: String,
    /// The managed policy of `accounts/target.yaml`: the use of the source account's keys.
    pub key_access_policy: String,
    /// What the roles above ask for in `sts:ExternalId`.
    pub external_id: String,
    /// Whether sessions have the execution's name as their source identity.
    pub source_identity: bool,
    /// The source account of a request that names none.
    pub source_account: AccountId,
    /// Whose images may be shared.
    pub sources: Sources,
    /// Empty in functions that give nobody anything.
    pub allow_list: AllowList,
    /// Of the functions that ask.
    pub organizations_reader: Option<OrganizationsReader>,
    /// Of the functions that use it.
    pub record_table: Option<RecordTable>,
    /// Whether images may be shared whose volumes are not all encrypted.
    pub allow_unencrypted: bool,
    /// Whether a share must carry out what plan-share planned.
    pub require_plan: bool,
    /// For how long after a change AWS may still answer as before it: five minutes, or `STALE_READ_SECONDS`, for
    /// engines whose waits are shorter than AWS's.
    pub stale_reads: Duration,
}

/// For how long KMS may answer with what was before a change: "several minutes" at times (KMS developer guide, "AWS KMS
/// eventual consistency"); nothing longer than seconds was ever reported.
const STALE_READS: Duration = Duration::from_secs(300);

/// The table of notes and locks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordTable {
    /// The hub's.
    pub account: AccountId,
    /// As DynamoDB's calls take it.
    pub name: String,
}

impl RecordTable {
    /// From `arn:aws:dynamodb:<region>:<account>:table/<name>`.
    ///
    /// # Errors
    /// The rule that the ARN breaks.
    pub fn parse(arn: &str) -> Result<Self, String> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        match parts.as_slice() {
            ["arn", _, "dynamodb", _, account, resource] => {
                AccountId::parse(*account).ok().zip(resource.strip_prefix("table/"))
            }
            _ => None,
        }
        .map(|(account, name)| Self { account, name: name.to_owned() })
        .ok_or_else(|| "the ARN of a DynamoDB table".to_owned())
    }
}

/// As whom AWS Organizations is asked about an account that is not listed. It answers its management
/// account and delegated administrators only (Organizations API reference, DescribeAccount).
#[derive(Debug, Clone)]
pub enum OrganizationsReader {
    /// The role that `accounts/organization.yaml` makes, by its ARN.
    Role(PrincipalArn),
    /// The function itself: the hub is such an account.
    Hub(AccountId),
}

impl OrganizationsReader {
    fn parse(value: &str) -> Result<Self, String> {
        AccountId::parse(value).map(Self::Hub).or_else(|_| PrincipalArn::parse(value).map(Self::Role))
    }
}

impl Settings {
    /// From the environment.
    ///
    /// # Errors
    /// Every variable that is missing or malformed.
    pub fn from_env() -> Result<Self, String> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// From variables that were not set for this process.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn from_variables(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut problems = Vec::new();
        let mut read = |name: &str| {
            get(name).unwrap_or_else(|| {
                problems.push(format!("environment variable {name} is not set"));
                String::new()
            })
        };
        let [
            source_role,
            source_reader_role,
            source_grant_revoker_role,
            target_role,
            launcher_role,
            key_access_policy,
            external_id,
            source_account,
        ] = [
            "SOURCE_ROLE_NAME",
            "SOURCE_READER_ROLE_NAME",
            "SOURCE_GRANT_REVOKER_ROLE_NAME",
            "TARGET_ROLE_NAME",
            "LAUNCHER_ROLE_NAME",
            "KEY_ACCESS_POLICY_NAME",
            "EXTERNAL_ID",
            "SOURCE_ACCOUNT_ID",
        ]
        .map(&mut read);
        let in_path = |name: String| name.trim_start_matches('/').to_owned();
        let [source_role, source_reader_role, source_grant_revoker_role, target_role, launcher_role, key_access_policy] =
            [source_role, source_reader_role, source_grant_revoker_role, target_role, launcher_role, key_access_policy]
                .map(in_path);
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        // Only functions that give something are told whom they may give it to: to the others, to nobody.
        let allow_list = AllowList::parse(&get("ALLOWED_TARGETS").unwrap_or_default())
            .map_err(|rule| format!("ALLOWED_TARGETS: {rule}"))?;
        let sources = Sources::parse(&get("ALLOWED_SOURCES").unwrap_or_default())
            .map_err(|rule| format!("ALLOWED_SOURCES: {rule}"))?;
        let organizations_reader = get("ORGANIZATIONS_READER")
            .map(|reader| OrganizationsReader::parse(&reader))
            .transpose()
            .map_err(|rule| format!("ORGANIZATIONS_READER must be an account id, or {rule}"))?;
        Ok(Self {
            source_role,
            source_reader_role,
            source_grant_revoker_role,
            target_role,
            launcher_role,
            key_access_policy,
            external_id,
            source_identity: get("SOURCE_IDENTITY").is_some_and(|named| named == "true"),
            source_account: AccountId::parse(source_account)
                .map_err(|rule| format!("SOURCE_ACCOUNT_ID must be {rule}"))?,
            sources,
            allow_list,
            organizations_reader,
            record_table: get("RECORD_TABLE_ARN")
                .map(|arn| RecordTable::parse(&arn))
                .transpose()
                .map_err(|rule| format!("RECORD_TABLE_ARN must be {rule}"))?,
            allow_unencrypted: get("ALLOW_UNENCRYPTED").is_some_and(|allowed| allowed == "true"),
            require_plan: get("REQUIRE_PLAN").is_some_and(|required| required == "true"),
            stale_reads: get("STALE_READ_SECONDS")
                .map(|seconds| seconds.parse().map(Duration::from_secs))
                .transpose()
                .map_err(|_| "STALE_READ_SECONDS must be a number of seconds".to_owned())?
                .unwrap_or(STALE_READS),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_setting_is_named() {
        let problems = Settings::from_variables(|name| (name != "EXTERNAL_ID").then(|| "x".to_owned())).unwrap_err();
        assert_eq!(problems, "environment variable EXTERNAL_ID is not set");
    }

    #[test]
    fn roles_are_named_with_their_path() {
        let named = |given: &str| told(&[("SOURCE_ROLE_NAME", given)]).unwrap().source_role;
        assert_eq!(named("/AmiShareSource"), "AmiShareSource");
        assert_eq!(named("/team/ami-share/AmiShareSource"), "team/ami-share/AmiShareSource");
    }

    #[test]
    fn a_table_is_known_by_its_arn() {
        let table = RecordTable::parse("arn:aws:dynamodb:eu-west-1:333333333333:table/notes-1X").unwrap();
        assert_eq!((table.account.as_str(), table.name.as_str()), ("333333333333", "notes-1X"));
        for wrong in ["", "notes", "arn:aws:sqs:eu-west-1:333333333333:table/x", "arn:aws:dynamodb:eu-west-1:3:table/x"]
        {
            assert!(RecordTable::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    /// Of a function that is told what every function is, and this.
    fn told(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::from_variables(|name| {
            let told = variables.iter().find(|(variable, _)| *variable == name);
            told.map(|(_, value)| (*value).to_owned()).or_else(|| match name {
                "SOURCE_ACCOUNT_ID" => Some("111111111111".to_owned()),
                "ALLOWED_SOURCES"
                | "ALLOWED_TARGETS"
                | "ALLOW_UNENCRYPTED"
                | "ORGANIZATIONS_READER"
                | "RECORD_TABLE_ARN"
                | "STALE_READ_SECONDS" => None,
                _ => Some("x".to_owned()),
            })
        })
    }

    #[test]
    fn a_function_that_is_told_of_no_allow_list_allows_nobody() {
        let settings = told(&[]).unwrap();
        assert!(settings.allow_list.unlisted([&AccountId::parse("222222222222").unwrap()]).is_err());
    }

    #[test]
    fn volumes_are_to_be_encrypted_unless_the_setting_says_otherwise() {
        let with = |value: Option<&str>| {
            let variable: Vec<_> = value.map(|value| ("ALLOW_UNENCRYPTED", value)).into_iter().collect();
            told(&variable).unwrap().allow_unencrypted
        };
        assert!(with(Some("true")));
        assert!(!with(None) && !with(Some("false")) && !with(Some("")));
    }

    #[test]
    fn organizations_is_asked_by_a_role_or_by_the_hub() {
        let reader = |value| told(&[("ORGANIZATIONS_READER", value)]).map(|settings| settings.organizations_reader);
        assert!(matches!(reader("333333333333"), Ok(Some(OrganizationsReader::Hub(_)))));
        let role = "arn:aws:iam::999999999999:role/AmiShareOrganization";
        assert!(matches!(reader(role), Ok(Some(OrganizationsReader::Role(_)))));
        assert!(reader("").is_err() && reader("everybody").is_err());
    }
}
