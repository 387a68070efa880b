//! The hub: settings of the deployment, and the roles a step assumes in other accounts.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_config::SdkConfig;
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_types::date_time::{DateTime, Format};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    Error,
    allow_list::AllowList,
    aws, environment,
    ids::{AccountId, ExecutionName, PrincipalArn, Region},
    polling::MAX_LAUNCHES,
};

/// The hub stack's parameters, as the template gives them to every function.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The role that `accounts/source.yaml` makes.
    pub source_role: String,
    /// The role of `accounts/target.yaml` that manages principals.
    pub target_role: String,
    /// The role of `accounts/target.yaml` that copies, launches, describes and terminates.
    pub launcher_role: String,
    /// The managed policy of `accounts/target.yaml`: the use of the source account's keys.
    pub key_access_policy: String,
    /// What the roles above ask for in `sts:ExternalId`.
    pub external_id: String,
    /// The source account of a request that names none.
    pub source_account: AccountId,
    /// Empty in functions that give nobody anything.
    pub allow_list: AllowList,
    /// Of the functions that ask.
    pub organizations_reader: Option<OrganizationsReader>,
    /// Of the functions that use it.
    pub record_table: Option<RecordTable>,
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
    pub account: AccountId,
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
        let [source_role, target_role, launcher_role, key_access_policy, external_id, source_account] = [
            "SOURCE_ROLE_NAME",
            "TARGET_ROLE_NAME",
            "LAUNCHER_ROLE_NAME",
            "KEY_ACCESS_POLICY_NAME",
            "EXTERNAL_ID",
            "SOURCE_ACCOUNT_ID",
        ]
        .map(&mut read);
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        // Only functions that give something are told whom they may give it to: to the others, to nobody.
        let allow_list = AllowList::parse(&get("ALLOWED_TARGETS").unwrap_or_default())
            .map_err(|rule| format!("ALLOWED_TARGETS: {rule}"))?;
        let organizations_reader = get("ORGANIZATIONS_READER")
            .map(|reader| OrganizationsReader::parse(&reader))
            .transpose()
            .map_err(|rule| format!("ORGANIZATIONS_READER must be an account id, or {rule}"))?;
        Ok(Self {
            source_role,
            target_role,
            launcher_role,
            key_access_policy,
            external_id,
            source_account: AccountId::parse(source_account)
                .map_err(|rule| format!("SOURCE_ACCOUNT_ID must be {rule}"))?,
            allow_list,
            organizations_reader,
            record_table: get("RECORD_TABLE_ARN")
                .map(|arn| RecordTable::parse(&arn))
                .transpose()
                .map_err(|rule| format!("RECORD_TABLE_ARN must be {rule}"))?,
            stale_reads: get("STALE_READ_SECONDS")
                .map(|seconds| seconds.parse().map(Duration::from_secs))
                .transpose()
                .map_err(|_| "STALE_READ_SECONDS must be a number of seconds".to_owned())?
                .unwrap_or(STALE_READS),
        })
    }
}

/// Every AWS action that a step calls, or has EC2 call on its behalf, by the role it calls it as.
/// They are the step's session policies, and all that the roles in `accounts/` are allowed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Actions {
    pub source: &'static [&'static str],
    pub target: &'static [&'static str],
    pub launcher: &'static [&'static str],
}

/// What EC2 calls in the launcher's name on a key that a snapshot of the image is encrypted with ("How
/// Amazon EBS encryption works" and "Requirements", EBS user guide).
pub const SOURCE_KEY_ACTIONS: [&str; 5] =
    ["kms:DescribeKey", "kms:CreateGrant", "kms:Decrypt", "kms:ReEncryptFrom", "kms:GenerateDataKeyWithoutPlaintext"];

/// The same on the target's own key, which volumes are put under and copies are read from.
pub const OWN_KEY_ACTIONS: [&str; 6] = {
    let [describe, grant, decrypt, from, generate] = SOURCE_KEY_ACTIONS;
    [describe, grant, decrypt, from, "kms:ReEncryptTo", generate]
};

/// The launcher's actions for `call`, which makes something of encrypted snapshots and tags it.
pub const fn making_encrypted(call: &'static str) -> [&'static str; 8] {
    let [describe, grant, decrypt, from, to, generate] = OWN_KEY_ACTIONS;
    [call, "ec2:CreateTags", describe, grant, decrypt, from, to, generate]
}

/// One run of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Lambda's request id: another one for each retry.
    pub id: String,
    /// When Lambda ends it.
    pub deadline: SystemTime,
}

/// Over already, so that nobody begins anything who was not told of one.
impl Default for Invocation {
    fn default() -> Self {
        Self { id: String::new(), deadline: UNIX_EPOCH }
    }
}

/// The hub account's side of a step.
#[derive(Clone)]
pub struct Hub {
    pub settings: Arc<Settings>,
    config: SdkConfig,
    sts: aws_sdk_sts::Client,
    invocation: Invocation,
}

impl Hub {
    /// With the function's own environment and credentials: done once, in `main`.
    ///
    /// # Errors
    /// Every setting that is missing or malformed.
    pub fn from_env() -> Result<Self, String> {
        Ok(Self::new(Settings::from_env()?, environment::config()?))
    }

    pub fn new(settings: Settings, config: SdkConfig) -> Self {
        let sts = aws_sdk_sts::Client::new(&config);
        Self { settings: Arc::new(settings), config, sts, invocation: Invocation::default() }
    }

    /// The same hub, seen from one run of the function.
    #[must_use]
    pub fn invoked(&self, invocation: Invocation) -> Self {
        Self { invocation, ..self.clone() }
    }

    pub fn invocation(&self) -> &Invocation {
        &self.invocation
    }

    /// The time by the clock of the clients' configuration, which tests set.
    pub fn now(&self) -> SystemTime {
        self.config.time_source().map_or_else(SystemTime::now, |clock| clock.now())
    }

    /// For clients that act in the hub account, as the function's own role.
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// For how long it has been since `time`, in ISO 8601, as Step Functions' context gives it in `field`.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for what is no time.
    pub fn since(&self, field: &str, time: &str) -> Result<Duration, Error> {
        let then = DateTime::from_str(time, Format::DateTime).ok().and_then(|time| SystemTime::try_from(time).ok());
        let then = then.ok_or_else(|| Error::invalid(field, time, "must be a time in ISO 8601"))?;
        Ok(self.now().duration_since(then).unwrap_or_default())
    }

    /// The table of notes and locks.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] in a function that is not told which table that is.
    pub fn record_table(&self) -> Result<&RecordTable, Error> {
        let table = self.settings.record_table.as_ref();
        table.ok_or_else(|| Error::invalid("RECORD_TABLE_ARN", "", "must be the ARN of a DynamoDB table"))
    }

    /// The hub's own Region: the default of a request that names none.
    ///
    /// # Errors
    /// A sentence, where neither the environment nor the configuration says which Region this is.
    pub fn region(&self) -> Result<Region, String> {
        let region = self.config.region().map(ToString::to_string).unwrap_or_default();
        Region::parse(region).map_err(|rule| format!("the hub's Region must be {rule}"))
    }

    /// The principal that launches the proof in `account`; `region` says the partition.
    pub fn launcher(&self, account: &AccountId, region: &Region) -> Result<PrincipalArn, Error> {
        PrincipalArn::parse(role_arn(account, region, &self.settings.launcher_role))
            .map_err(|rule| Error::invalid("LauncherRoleName", &self.settings.launcher_role, format!("must be {rule}")))
    }

    /// The ARN of the source account's role; `region` says the partition.
    pub fn source_role(&self, account: &AccountId, region: &Region) -> String {
        role_arn(account, region, &self.settings.source_role)
    }

    /// The source account's role, allowed its part of `actions` and nothing else.
    ///
    /// # Errors
    /// As [`Hub::assume`].
    pub async fn as_source(
        &self,
        account: &AccountId,
        region: &Region,
        execution: &ExecutionName,
        actions: Actions,
    ) -> Result<SdkConfig, Error> {
        self.assume(account, region, &self.settings.source_role, execution, actions.source).await
    }

    /// The target account's role that manages principals, allowed its part of `actions` and nothing else.
    ///
    /// # Errors
    /// As [`Hub::assume`].
    pub async fn as_target(
        &self,
        account: &AccountId,
        region: &Region,
        execution: &ExecutionName,
        actions: Actions,
    ) -> Result<SdkConfig, Error> {
        self.assume(account, region, &self.settings.target_role, execution, actions.target).await
    }

    /// The target account's role that copies, launches, describes and terminates, allowed its part of
    /// `actions` and nothing else.
    ///
    /// # Errors
    /// As [`Hub::assume`].
    pub async fn as_launcher(
        &self,
        account: &AccountId,
        region: &Region,
        execution: &ExecutionName,
        actions: Actions,
    ) -> Result<SdkConfig, Error> {
        self.assume(account, region, &self.settings.launcher_role, execution, actions.launcher).await
    }

    /// Whoever may ask AWS Organizations, allowed `actions` and nothing else where that is a role; and the account
    /// that it asks from.
    ///
    /// # Errors
    /// [`Error::AccessDenied`] when that role cannot be assumed, and where the deployment has nobody to ask.
    pub async fn as_organizations_reader(
        &self,
        execution: &ExecutionName,
        actions: &[&str],
    ) -> Result<(AccountId, SdkConfig), Error> {
        match &self.settings.organizations_reader {
            Some(OrganizationsReader::Hub(account)) => Ok((account.clone(), self.config.clone())),
            Some(OrganizationsReader::Role(role)) => {
                let account = role.account_id();
                let remedy = "deploy accounts/organization.yaml in the organization's management account or a \
                              delegated administrator, with this deployment's hub account and external id, and give \
                              its role to the hub stack as OrganizationsRoleArn";
                let config = self.assume_role(&account, role.as_str(), execution, actions, remedy).await?;
                Ok((account, config))
            }
            None => Err(Error::AccessDenied {
                account: self.settings.source_account.clone(),
                call: "organizations:DescribeAccount",
                reason: "this deployment does not say who may ask AWS Organizations (OrganizationsRoleArn)".to_owned(),
                source: None,
            }),
        }
    }

    /// Configuration for clients that act as `role` in `account` and `region`.
    ///
    /// # Errors
    /// As [`Hub::assume_role`].
    async fn assume(
        &self,
        account: &AccountId,
        region: &Region,
        role: &str,
        execution: &ExecutionName,
        actions: &[&str],
    ) -> Result<SdkConfig, Error> {
        let remedy = "deploy accounts/source.yaml or accounts/target.yaml there, with this deployment's hub account \
                      and external id (and a target must be on the hub stack's allow-list)";
        let config = self.assume_role(account, &role_arn(account, region, role), execution, actions, remedy).await?;
        Ok(config.to_builder().region(aws_config::Region::new(region.to_string())).build())
    }

    /// Configuration for clients that act as the role of that ARN in the hub's Region.
    ///
    /// The session is named after the execution, so that CloudTrail in any account points back to
    /// it, and its session policy allows `actions` only. The call goes to STS in the hub's Region:
    /// an opt-in Region's own STS may not be enabled.
    ///
    /// # Errors
    /// [`Error::AccessDenied`] when the role is not there, does not trust this function, or asks
    /// for another external id: STS does not say which. `remedy` is what to do about it.
    async fn assume_role(
        &self,
        account: &AccountId,
        role: &str,
        execution: &ExecutionName,
        actions: &[&str],
        remedy: &str,
    ) -> Result<SdkConfig, Error> {
        let assumed = self
            .sts
            .assume_role()
            .role_arn(role)
            .role_session_name(session_name(execution))
            .external_id(&self.settings.external_id)
            .policy(session_policy(actions))
            .send()
            .await
            .map_err(|error| match aws::failure(account, "sts:AssumeRole", error) {
                Error::AccessDenied { account, call, source, .. } => {
                    let name = role.rsplit('/').next().unwrap_or_default();
                    Error::AccessDenied {
                        reason: format!("role {name} cannot be assumed; {remedy}"),
                        account,
                        call,
                        source,
                    }
                }
                other => other,
            })?;
        let credentials = assumed.credentials().ok_or_else(|| Error::Unavailable {
            account: account.clone(),
            call: "sts:AssumeRole",
            source: Some("the answer holds no credentials".into()),
        })?;
        let credentials = Credentials::new(
            credentials.access_key_id(),
            credentials.secret_access_key(),
            Some(credentials.session_token().to_owned()),
            None,
            "ami-share",
        );
        Ok(self.config.to_builder().credentials_provider(SharedCredentialsProvider::new(credentials)).build())
    }
}

fn role_arn(account: &AccountId, region: &Region, name: &str) -> String {
    format!("arn:{}:iam::{account}:role/{name}", partition(region))
}

/// The ARN that stands for all of `account`; `region` says the partition.
pub fn account_root(region: &Region, account: &AccountId) -> String {
    format!("arn:{}:iam::{account}:root", partition(region))
}

/// The ARN of a managed policy of `account`; `region` says the partition.
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

/// A token for calls that are idempotent by token: one per execution, account and purpose, 64
/// characters of hexadecimal (the longest that ec2:RunInstances takes).
pub fn client_token(execution: &ExecutionName, account: &AccountId, purpose: &str) -> String {
    hexadecimal(&Sha256::digest(format!("{execution}\n{account}\n{purpose}")))
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

/// The execution's name as a session name: 2 to 64 characters of `[\w+=,.@-]` (STS API reference,
/// AssumeRole). A name that does not fit is cut and told apart by a hash.
fn session_name(execution: &ExecutionName) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
    let name = execution.as_str();
    if (2..=64).contains(&name.len()) && name.chars().all(fits) {
        return name.to_owned();
    }
    let kept: String = name.chars().map(|c| if fits(c) { c } else { '-' }).take(51).collect();
    format!("{kept}-{}", &hexadecimal(&Sha256::digest(name))[..12])
}

fn session_policy(actions: &[&str]) -> String {
    json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Allow", "Action": actions, "Resource": "*" }],
    })
    .to_string()
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> ExecutionName {
        ExecutionName::parse(name).unwrap()
    }

    #[test]
    fn every_missing_setting_is_named() {
        let problems = Settings::from_variables(|name| (name != "EXTERNAL_ID").then(|| "x".to_owned())).unwrap_err();
        assert_eq!(problems, "environment variable EXTERNAL_ID is not set");
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

    fn allowed(targets: Option<&str>, reader: Option<&str>) -> Result<Settings, String> {
        Settings::from_variables(|name| match name {
            "ALLOWED_TARGETS" => targets.map(str::to_owned),
            "ORGANIZATIONS_READER" => reader.map(str::to_owned),
            "SOURCE_ACCOUNT_ID" => Some("111111111111".to_owned()),
            "RECORD_TABLE_ARN" | "STALE_READ_SECONDS" => None,
            _ => Some("x".to_owned()),
        })
    }

    #[test]
    fn a_function_that_is_told_of_no_allow_list_allows_nobody() {
        let settings = allowed(None, None).unwrap();
        assert!(settings.allow_list.unlisted([&AccountId::parse("222222222222").unwrap()]).is_err());
    }

    #[test]
    fn organizations_is_asked_by_a_role_or_by_the_hub() {
        let reader = |value| allowed(None, Some(value)).map(|settings| settings.organizations_reader);
        assert!(matches!(reader("333333333333"), Ok(Some(OrganizationsReader::Hub(_)))));
        let role = "arn:aws:iam::999999999999:role/AmiShareOrganization";
        assert!(matches!(reader(role), Ok(Some(OrganizationsReader::Role(_)))));
        assert!(reader("").is_err() && reader("everybody").is_err());
    }

    #[test]
    fn a_session_is_named_after_its_execution() {
        assert_eq!(session_name(&named("nightly-2026.11.24")), "nightly-2026.11.24");
    }

    #[test]
    fn a_name_that_is_no_session_name_is_cut_and_stays_distinct() {
        let long = session_name(&named(&"a".repeat(80)));
        assert_eq!(long.len(), 64);
        assert_ne!(session_name(&named("a b")), session_name(&named("a:b")));
        assert!(session_name(&named("é")).len() >= 2);
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

    #[test]
    fn regions_of_china_and_govcloud_are_in_partitions_of_their_own() {
        assert_eq!(partition(&Region::parse("cn-north-1").unwrap()), "aws-cn");
        assert_eq!(partition(&Region::parse("us-gov-west-1").unwrap()), "aws-us-gov");
        assert_eq!(partition(&Region::parse("eu-west-1").unwrap()), "aws");
    }
}
