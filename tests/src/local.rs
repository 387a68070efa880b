//! Everything on this machine: sandbox, engine, the deployed stacks and their roles.

use std::path::PathBuf;

use ami_share_sandbox::Sandbox;

use crate::{
    HUB, Result, SOURCE, TARGET,
    deploy::{self, Template},
    engine::{self, Engine},
    roles,
};

const EXTERNAL_ID: &str = "ami-share-local";
/// The source of image events here: nobody but AWS may send `aws.ec2`'s.
pub const IMAGE_EVENT_SOURCE: &str = "local.ec2";

/// What is deployed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The target accounts, all of them on the allow-list.
    pub targets: Vec<String>,
    /// Whether the targets' owners allow inline policies.
    pub inline_policies: bool,
    pub sandbox: ami_share_sandbox::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            targets: vec![TARGET.to_owned()],
            inline_policies: false,
            sandbox: ami_share_sandbox::Settings::default(),
        }
    }
}

/// The running whole. It ends when this is dropped.
#[derive(Debug)]
pub struct Local {
    pub engine: Engine,
    pub sandbox: Sandbox,
    pub hub: deploy::Hub,
}

impl Local {
    /// Starts sandbox and engine, and deploys `template.yaml` to the hub and `accounts/*.yaml` to
    /// the other accounts. Takes about two seconds.
    pub async fn start(settings: Settings) -> Result<Self> {
        let port = engine::free_port()?;
        let upstream_sts = Some(engine::endpoint(port));
        let sandbox = Sandbox::start(ami_share_sandbox::Settings { upstream_sts, ..settings.sandbox }).await?;
        let engine = Engine::start(port, &sandbox.endpoint(), &directory(port))?;
        let allowed = settings.targets.join(",");
        let parameters = [
            ("AllowedTargetAccounts", allowed.as_str()),
            ("SourceAccountId", SOURCE),
            ("ExternalId", EXTERNAL_ID),
            ("ImageEventSource", IMAGE_EVENT_SOURCE),
        ];
        let hub = deploy::deploy_hub(&engine, &parameters).await?;
        let local = Self { engine, sandbox, hub };
        roles::copy_to_sandbox(HUB, &local.engine.endpoint(), &local.sandbox.endpoint()).await?;
        local.add_source().await?;
        for target in &settings.targets {
            local.add_target(target, settings.inline_policies).await?;
        }
        Ok(local)
    }

    async fn add_source(&self) -> Result<()> {
        let parameters = [("HubAccountId", HUB), ("ExternalId", EXTERNAL_ID)];
        self.add(SOURCE, "accounts/source.yaml", &parameters).await
    }

    async fn add_target(&self, account: &str, inline_policies: bool) -> Result<()> {
        let patterns = format!("arn:aws:iam::{account}:role/app-*,arn:aws:iam::{account}:user/app-*");
        let parameters = [
            ("HubAccountId", HUB),
            ("SourceAccountId", SOURCE),
            ("ExternalId", EXTERNAL_ID),
            ("PrincipalArnPatterns", &patterns),
            ("AllowInlinePolicies", if inline_policies { "true" } else { "false" }),
        ];
        self.add(account, "accounts/target.yaml", &parameters).await
    }

    async fn add(&self, account: &str, template: &str, parameters: &[(&str, &str)]) -> Result<()> {
        deploy::deploy(&self.engine, account, "ami-share", Template::file(template)?, parameters).await?;
        roles::copy_to_sandbox(account, &self.engine.endpoint(), &self.sandbox.endpoint()).await
    }
}

fn directory(port: u16) -> PathBuf {
    std::env::temp_dir().join(format!("ami-share-{}-{port}", std::process::id()))
}
