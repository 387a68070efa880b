//! The hub: the roles that a step assumes in other accounts, and the clock.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_config::SdkConfig;
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_types::date_time::{DateTime, Format};
use serde_json::json;

use crate::{
    Error,
    arns::role_arn,
    aws, digest, environment,
    ids::{AccountId, ExecutionName, PrincipalArn, Region},
    settings::{OrganizationsReader, RecordTable, Settings},
};

/// Every AWS action that a step calls, or has EC2 call on its behalf, by the role it calls it as.
/// They are the step's session policies, and all that the roles in `accounts/` are allowed.
#[derive(Debug, Clone, Copy)]
pub struct Actions {
    /// As the role of `accounts/source.yaml` that changes things.
    pub source: &'static [&'static str],
    /// As the role of `accounts/source.yaml` that changes nothing.
    pub source_reader: &'static [&'static str],
    /// As the role of `accounts/source.yaml` that ends others' grants on keys, where its owner asked for one.
    pub source_grant_revoker: &'static [&'static str],
    /// As the role of `accounts/target.yaml` that manages principals.
    pub target: &'static [&'static str],
    /// As the role of `accounts/target.yaml` that launches and copies.
    pub launcher: &'static [&'static str],
}

impl Actions {
    /// Nothing at all.
    pub const NONE: Self =
        Self { source: &[], source_reader: &[], source_grant_revoker: &[], target: &[], launcher: &[] };
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
    /// Shared by every run of the function: they are read once.
    pub settings: Arc<Settings>,
    config: SdkConfig,
    /// Made when a role is first assumed: making it takes more than all else that a start does.
    sts: Arc<OnceLock<aws_sdk_sts::Client>>,
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

    /// For tests and engines that make settings and clients' configuration themselves.
    pub fn new(settings: Settings, config: SdkConfig) -> Self {
        Self { settings: Arc::new(settings), config, sts: Arc::default(), invocation: Invocation::default() }
    }

    /// The same hub, seen from one run of the function.
    #[must_use]
    pub fn invoked(&self, invocation: Invocation) -> Self {
        Self { invocation, ..self.clone() }
    }

    /// The run that this hub is seen from; one that is over, where none was given.
    pub fn invocation(&self) -> &Invocation {
        &self.invocation
    }

    /// The time by the clock of the clients' configuration, which tests set.
    pub fn now(&self) -> SystemTime {
        self.config.time_source().map_or_else(SystemTime::now, |clock| clock.now())
    }

    /// The same in milliseconds since 1970.
    pub fn now_ms(&self) -> i64 {
        millis(self.now())
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

    /// The ARN of the source account's role that changes things, which may retire our grants; `region` says the partition.
    pub fn source_role(&self, account: &AccountId, region: &Region) -> String {
        role_arn(account, region, &self.settings.source_role)
    }

    /// The source account's role that changes things, allowed its part of `actions` and nothing else.
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
        self.assume(account, region, ("SourceRoleName", &self.settings.source_role), execution, actions.source).await
    }

    /// The source account's role that changes nothing, allowed its part of `actions` and nothing else.
    ///
    /// # Errors
    /// As [`Hub::assume`].
    pub async fn as_source_reader(
        &self,
        account: &AccountId,
        region: &Region,
        execution: &ExecutionName,
        actions: Actions,
    ) -> Result<SdkConfig, Error> {
        self.assume(
            account,
            region,
            ("SourceReaderRoleName", &self.settings.source_reader_role),
            execution,
            actions.source_reader,
        )
        .await
    }

    /// The source account's role that ends others' grants on keys, allowed its part of `actions` and nothing else.
    ///
    /// # Errors
    /// As [`Hub::assume_role`].
    pub async fn as_source_grant_revoker(
        &self,
        account: &AccountId,
        region: &Region,
        execution: &ExecutionName,
        actions: Actions,
    ) -> Result<SdkConfig, Error> {
        let role = &self.settings.source_grant_revoker_role;
        let remedy = "deploy accounts/source.yaml there with RevokeForeignGrants=true, which makes it, or revoke without \
                      foreignGrants";
        self.assume_in(account, region, role, execution, actions.source_grant_revoker, remedy).await
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
        self.assume(account, region, ("TargetRoleName", &self.settings.target_role), execution, actions.target).await
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
        self.assume(account, region, ("LauncherRoleName", &self.settings.launcher_role), execution, actions.launcher)
            .await
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

    /// Configuration for clients that act in `account` and `region` as the role that the parameter says.
    ///
    /// # Errors
    /// As [`Hub::assume_role`].
    async fn assume(
        &self,
        account: &AccountId,
        region: &Region,
        (parameter, role): (&str, &str),
        execution: &ExecutionName,
        actions: &[&str],
    ) -> Result<SdkConfig, Error> {
        let remedy = format!(
            "deploy this version's accounts/source.yaml or accounts/target.yaml there, with this deployment's hub account, \
             ExternalId, FunctionRolePrefix and {parameter} (and the hub stack must list the account, as a source or as a \
             target)"
        );
        self.assume_in(account, region, role, execution, actions, &remedy).await
    }

    /// The same as the role of that name, with what to do where it cannot be assumed.
    ///
    /// # Errors
    /// As [`Hub::assume_role`].
    async fn assume_in(
        &self,
        account: &AccountId,
        region: &Region,
        role: &str,
        execution: &ExecutionName,
        actions: &[&str],
        remedy: &str,
    ) -> Result<SdkConfig, Error> {
        let config = self.assume_role(account, &role_arn(account, region, role), execution, actions, remedy).await?;
        Ok(config.to_builder().region(aws_config::Region::new(region.to_string())).build())
    }

    /// Configuration for clients that act as the role of that ARN in the hub's Region.
    ///
    /// The session is named after the execution, so that CloudTrail in any account points back to
    /// it, and its session policy allows `actions` only. The same name may be its source identity, which takes the same
    /// characters (STS API reference, AssumeRole), and which CloudTrail tells of every call. The call goes to STS in the
    /// hub's Region: an opt-in Region's own STS may not be enabled.
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
            .get_or_init(|| aws_sdk_sts::Client::new(&self.config))
            .assume_role()
            .role_arn(role)
            .role_session_name(session_name(execution))
            .set_source_identity(self.settings.source_identity.then(|| session_name(execution)))
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

/// In milliseconds since 1970, as notes and locks say a time.
pub fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
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
    format!("{kept}-{}", &digest::sha256(name)[..12])
}

fn session_policy(actions: &[&str]) -> String {
    json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Allow", "Action": actions, "Resource": "*" }],
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> ExecutionName {
        ExecutionName::parse(name).unwrap()
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
}
