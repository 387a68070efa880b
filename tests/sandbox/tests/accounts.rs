//! SDK clients of simulated accounts.

use ami_share_sandbox::{Sandbox, Settings, sts::AccessKey};
use aws_credential_types::Credentials;
use aws_smithy_http_client::Builder;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::retry::RetryConfig;

pub(crate) const A: &str = "111111111111";
pub(crate) const B: &str = "222222222222";
pub(crate) const HUB: &str = "999999999999";
pub(crate) const REGION: &str = "eu-west-1";

/// The clients of one principal. They do not retry.
pub(crate) struct Clients {
    pub(crate) ec2: aws_sdk_ec2::Client,
    pub(crate) iam: aws_sdk_iam::Client,
    pub(crate) kms: aws_sdk_kms::Client,
    pub(crate) organizations: aws_sdk_organizations::Client,
    pub(crate) sts: aws_sdk_sts::Client,
}

pub(crate) async fn sandbox() -> Sandbox {
    Sandbox::start(Settings::default()).await.expect("a free port")
}

/// The root user of `account`.
pub(crate) fn root(sandbox: &Sandbox, account: &str) -> Clients {
    clients(sandbox, Credentials::new(account, "secret", None, None, "test"))
}

pub(crate) fn with_key(sandbox: &Sandbox, key: &AccessKey) -> Clients {
    clients(sandbox, Credentials::new(&key.id, &key.secret, key.token.clone(), None, "test"))
}

pub(crate) fn with_session(sandbox: &Sandbox, session: &aws_sdk_sts::types::Credentials) -> Clients {
    let token = Some(session.session_token().to_owned());
    let credentials = Credentials::new(session.access_key_id(), session.secret_access_key(), token, None, "test");
    clients(sandbox, credentials)
}

/// A session of a role as an AWS service gets one, without AssumeRole.
pub(crate) fn as_role(sandbox: &Sandbox, role_arn: &str) -> Clients {
    let key = ami_share_sandbox::sts::issue_session(&mut sandbox.world(), role_arn, "session");
    with_key(sandbox, &key.expect("the role exists"))
}

fn clients(sandbox: &Sandbox, credentials: Credentials) -> Clients {
    let endpoint = sandbox.endpoint();
    let region = || aws_sdk_sts::config::Region::new(REGION);
    let retry = RetryConfig::disabled;
    Clients {
        ec2: aws_sdk_ec2::Client::from_conf(
            aws_sdk_ec2::Config::builder()
                .behavior_version_latest()
                .http_client(Builder::new().build_http())
                .endpoint_url(&endpoint)
                .region(region())
                .retry_config(retry())
                .credentials_provider(credentials.clone())
                .build(),
        ),
        iam: aws_sdk_iam::Client::from_conf(
            aws_sdk_iam::Config::builder()
                .behavior_version_latest()
                .http_client(Builder::new().build_http())
                .endpoint_url(&endpoint)
                .region(region())
                .retry_config(retry())
                .credentials_provider(credentials.clone())
                .build(),
        ),
        kms: aws_sdk_kms::Client::from_conf(
            aws_sdk_kms::Config::builder()
                .behavior_version_latest()
                .http_client(Builder::new().build_http())
                .endpoint_url(&endpoint)
                .region(region())
                .retry_config(retry())
                .credentials_provider(credentials.clone())
                .build(),
        ),
        organizations: aws_sdk_organizations::Client::from_conf(
            aws_sdk_organizations::Config::builder()
                .behavior_version_latest()
                .http_client(Builder::new().build_http())
                .endpoint_url(&endpoint)
                .region(region())
                .retry_config(retry())
                .credentials_provider(credentials.clone())
                .build(),
        ),
        sts: aws_sdk_sts::Client::from_conf(
            aws_sdk_sts::Config::builder()
                .behavior_version_latest()
                .http_client(Builder::new().build_http())
                .endpoint_url(&endpoint)
                .region(region())
                .retry_config(retry())
                .credentials_provider(credentials)
                .build(),
        ),
    }
}

/// The code of the error that the call must end with.
pub(crate) fn code<T, E: ProvideErrorMetadata>(result: Result<T, E>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.code().unwrap_or("no code").to_owned(),
    }
}

/// The message of the error that the call must end with.
pub(crate) fn message<T, E: ProvideErrorMetadata>(result: Result<T, E>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.message().unwrap_or("no message").to_owned(),
    }
}

/// A role that trusts the `principal`; its ARN.
pub(crate) async fn role(root: &Clients, name: &str, principal: &str) -> String {
    let trust = serde_json::json!({
        "Version": "2012-10-17",
        "Statement": [{
            "Effect": "Allow",
            "Principal": { "AWS": principal },
            "Action": ["sts:AssumeRole", "sts:TagSession"],
        }],
    });
    let created = root
        .iam
        .create_role()
        .role_name(name)
        .assume_role_policy_document(trust.to_string())
        .send()
        .await
        .expect("the role is new");
    created.role().expect("a role").arn().to_owned()
}

/// An inline policy `access` on the role: these statements.
pub(crate) async fn allow(root: &Clients, role_name: &str, statements: serde_json::Value) {
    let document = serde_json::json!({ "Version": "2012-10-17", "Statement": statements });
    root.iam
        .put_role_policy()
        .role_name(role_name)
        .policy_name("access")
        .policy_document(document.to_string())
        .send()
        .await
        .expect("the role exists");
}
