//! Somebody of the hub account who holds some of the stack's policies for operators, and nothing else: the engine
//! authorizes what they call.

use aws_config::SdkConfig;
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_sfn::error::ProvideErrorMetadata;
use serde_json::Value;

use crate::{HUB, Result, clients::root_of, local::Local};

/// A user of the hub account.
#[derive(Debug)]
pub struct Operator {
    /// Makes calls as the user.
    pub config: SdkConfig,
}

impl Operator {
    /// Makes the user, with the policies of these logical ids, such as `PlanSharesPolicy`.
    pub async fn hire(local: &Local, name: &str, policies: &[&str]) -> Result<Self> {
        let root = root_of(HUB, &local.engine.endpoint());
        let iam = aws_sdk_iam::Client::new(&root);
        iam.create_user().user_name(name).send().await?;
        for policy in policies {
            let arn = local.hub.stack.outputs.get(&format!("{policy}Arn")).ok_or_else(|| format!("no {policy}Arn"))?;
            iam.attach_user_policy().user_name(name).policy_arn(arn).send().await?;
        }
        let key = iam.create_access_key().user_name(name).send().await?.access_key.ok_or("there is no access key")?;
        let credentials = Credentials::new(key.access_key_id, key.secret_access_key, None, None, "operator");
        let provider = SharedCredentialsProvider::new(credentials);
        Ok(Self { config: root.to_builder().credentials_provider(provider).build() })
    }

    /// Starts an execution; its ARN, or the name of the error.
    pub async fn start(&self, machine: &str, name: &str, request: &Value) -> Result<String, String> {
        let client = aws_sdk_sfn::Client::new(&self.config);
        let call = client.start_execution().state_machine_arn(machine).name(name).input(request.to_string());
        match call.send().await {
            Ok(started) => Ok(started.execution_arn),
            Err(error) => Err(error.code().unwrap_or_default().to_owned()),
        }
    }
}
