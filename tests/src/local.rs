//! Everything on this machine: sandbox, engine, the deployed stacks and their roles.

use std::{collections::BTreeSet, path::PathBuf};

use ami_share_sandbox::Sandbox;

use crate::{
    HUB, Result, SOURCE, TARGET,
    checkout::checkout,
    deploy::{self, Stack, Template},
    engine::{self, Engine},
    roles, template,
};

/// What everything here is deployed with.
pub const EXTERNAL_ID: &str = "ami-share-local";
/// The source of image events here: nobody but AWS may send `aws.ec2`'s.
pub const IMAGE_EVENT_SOURCE: &str = "local.ec2";
/// The same of events about tags.
pub const TAG_EVENT_SOURCE: &str = "local.tag";

/// What is deployed.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The account that owns the images; may be the hub.
    pub source: String,
    /// The target accounts, all of them on the allow-list.
    pub targets: Vec<String>,
    /// Further source accounts, each with a target of its own, for what must not meet.
    pub pairs: Vec<(String, String)>,
    /// Who is allowed besides.
    pub organization: Organization,
    /// `AllowUnencrypted`: many worlds of tests have images that are not.
    pub allow_unencrypted: bool,
    /// `RequirePlan`
    pub require_plan: bool,
    /// Whether the targets' owners allow inline policies.
    pub inline_policies: bool,
    /// `DecodeAuthorizationMessages`
    pub decode_messages: bool,
    /// `LauncherKeyArns`
    pub launcher_keys: String,
    /// `OnlyTaggedImages`
    pub only_tagged_images: bool,
    /// The template that sources deploy, and that of targets.
    pub source_template: String,
    pub target_template: String,
    /// `RevokeForeignGrants`
    pub revoke_foreign_grants: bool,
    /// `SourceIdentity`
    pub source_identity: bool,
    /// `IamPath`, of every stack.
    pub iam_path: String,
    /// `AuditSchedule`
    pub audit_schedule: String,
    /// `ImageSchedule`
    pub image_schedule: String,
    /// For how long functions hold a key policy that was replaced for one that may still be read. Waits of the state
    /// machines are a hundredth of AWS's, and this of theirs.
    pub stale_read_seconds: u32,
    pub sandbox: ami_share_sandbox::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            source: SOURCE.to_owned(),
            targets: vec![TARGET.to_owned()],
            pairs: Vec::new(),
            organization: Organization::default(),
            allow_unencrypted: true,
            require_plan: false,
            inline_policies: false,
            decode_messages: false,
            launcher_keys: String::new(),
            only_tagged_images: false,
            source_template: "accounts/source.yaml".to_owned(),
            target_template: "accounts/target.yaml".to_owned(),
            revoke_foreign_grants: false,
            source_identity: false,
            iam_path: "/".to_owned(),
            audit_schedule: String::new(),
            image_schedule: String::new(),
            stale_read_seconds: 3,
            sandbox: ami_share_sandbox::Settings::default(),
        }
    }
}

/// What the hub's allow-list has besides accounts.
#[derive(Debug, Clone, Default)]
pub struct Organization {
    /// `AllowedOrganizations`
    pub organizations: Vec<String>,
    /// `AllowedOrganizationalUnits`
    pub units: Vec<String>,
    /// The account that has accounts/organization.yaml; without one, the hub asks itself.
    pub asked_in: Option<String>,
    /// Accounts that are ready to be targets, and are not on the list of accounts.
    pub targets: Vec<String>,
}

/// The running whole. It ends when this is dropped.
#[derive(Debug)]
pub struct Local {
    pub engine: Engine,
    pub sandbox: Sandbox,
    pub hub: deploy::Hub,
}

impl Local {
    /// Starts sandbox and engine, deploys `template.yaml` to the hub and `accounts/*.yaml` to the
    /// other accounts, and gives the sandbox's accounts the roles that this made. Takes about two
    /// seconds.
    pub async fn start(settings: Settings) -> Result<Self> {
        let listener = engine::listen()?;
        let port = listener.local_addr()?.port();
        let upstream_sts = Some(engine::endpoint(port));
        let sandbox = Sandbox::start(ami_share_sandbox::Settings { upstream_sts, ..settings.sandbox.clone() }).await?;
        let engine = Engine::start(listener, &sandbox.endpoint(), &directory(port), settings.stale_read_seconds)?;
        let of_source = settings.targets.iter().map(|target| (&settings.source, target));
        let pairs: Vec<(&String, &String)> =
            of_source.chain(settings.pairs.iter().map(|(source, target)| (source, target))).collect();
        let allowed = pairs.iter().map(|(_, target)| target.as_str()).collect::<Vec<_>>().join(",");
        let organization = &settings.organization;
        let (organizations, units) = (organization.organizations.join(","), organization.units.join(","));
        let asked_as = organization
            .asked_in
            .as_ref()
            .map(|account| format!("arn:aws:iam::{account}:role{}AmiShareOrganization", settings.iam_path));
        let sources: BTreeSet<&String> = pairs.iter().map(|(source, _)| *source).chain([&settings.source]).collect();
        let allowed_sources = sources.iter().map(|source| source.as_str()).collect::<Vec<_>>().join(",");
        let parameters = [
            ("AllowedTargetAccounts", allowed.as_str()),
            ("AllowedOrganizations", &organizations),
            ("AllowedOrganizationalUnits", &units),
            ("OrganizationsRoleArn", asked_as.as_deref().unwrap_or_default()),
            ("SourceAccountId", &settings.source),
            ("AllowedSourceAccountIds", &allowed_sources),
            ("ExternalId", EXTERNAL_ID),
            ("AuditSchedule", &settings.audit_schedule),
            ("ImageSchedule", &settings.image_schedule),
            ("AllowUnencrypted", if settings.allow_unencrypted { "true" } else { "false" }),
            ("SourceIdentity", if settings.source_identity { "true" } else { "false" }),
            ("RequirePlan", if settings.require_plan { "true" } else { "false" }),
            ("ImageEventSource", IMAGE_EVENT_SOURCE),
            ("TagEventSource", TAG_EVENT_SOURCE),
            ("IamPath", &settings.iam_path),
        ];
        let hub = deploy::deploy_hub(&engine, &parameters).await?;
        let by_organization = settings.organization.targets.iter().map(String::as_str);
        let ready: Vec<&str> = pairs.iter().map(|(_, target)| target.as_str()).chain(by_organization).collect();
        for source in &sources {
            deploy_source(&engine, source, &ready.join(","), &settings).await?;
        }
        let unlisted = organization.targets.iter().map(|target| (&settings.source, target));
        let pairs: Vec<(&String, &String)> = pairs.into_iter().chain(unlisted).collect();
        for (source, target) in &pairs {
            deploy_target(&engine, source, target, &settings).await?;
        }
        if let Some(account) = &organization.asked_in {
            deploy_organization(&engine, account, &settings).await?;
        }
        let targets = pairs.iter().map(|(_, target)| target.as_str());
        let accounts = targets.chain(sources.iter().map(|source| source.as_str())).chain([HUB]);
        let accounts = accounts.chain(organization.asked_in.as_deref());
        for account in accounts.collect::<BTreeSet<_>>() {
            roles::copy_to_sandbox(account, &engine.endpoint(), &sandbox.endpoint()).await?;
        }
        Ok(Self { engine, sandbox, hub })
    }
}

async fn deploy_source(engine: &Engine, account: &str, targets: &str, settings: &Settings) -> Result<Stack> {
    let parameters = [
        ("HubAccountId", HUB),
        ("ExternalId", EXTERNAL_ID),
        ("AllowedTargetAccounts", targets),
        ("OnlyTaggedImages", if settings.only_tagged_images { "true" } else { "false" }),
        ("RevokeForeignGrants", if settings.revoke_foreign_grants { "true" } else { "false" }),
        ("IamPath", &settings.iam_path),
    ];
    deploy_account(engine, account, "ami-share-source", &settings.source_template, &parameters).await
}

async fn deploy_organization(engine: &Engine, account: &str, settings: &Settings) -> Result<Stack> {
    let parameters = [("HubAccountId", HUB), ("ExternalId", EXTERNAL_ID), ("IamPath", &settings.iam_path)];
    let template = Template::file("accounts/organization.yaml")?;
    deploy::deploy(engine, account, "ami-share-organization", template, &parameters).await
}

async fn deploy_target(engine: &Engine, source: &str, account: &str, settings: &Settings) -> Result<Stack> {
    let parameters = [
        ("HubAccountId", HUB),
        ("SourceAccountId", source),
        ("ExternalId", EXTERNAL_ID),
        ("PrincipalArnPatterns", "arn:aws:iam::*:role/app-*,arn:aws:iam::*:user/app-*"),
        ("AllowInlinePolicies", if settings.inline_policies { "true" } else { "false" }),
        ("DecodeAuthorizationMessages", if settings.decode_messages { "true" } else { "false" }),
        ("LauncherKeyArns", &settings.launcher_keys),
        ("IamPath", &settings.iam_path),
    ];
    deploy_account(engine, account, "ami-share-target", &settings.target_template, &parameters).await
}

/// With those of the parameters that the template has: one of an earlier version has fewer.
async fn deploy_account(
    engine: &Engine,
    account: &str,
    name: &str,
    path: &str,
    parameters: &[(&str, &str)],
) -> Result<Stack> {
    let template = template::read(&checkout().join(path))?;
    let known = |(parameter, _): &(&str, &str)| !template["Parameters"][*parameter].is_null();
    let parameters: Vec<(&str, &str)> = parameters.iter().copied().filter(known).collect();
    deploy::deploy(engine, account, name, Template::Body(template), &parameters).await
}

fn directory(port: u16) -> PathBuf {
    std::env::temp_dir().join(format!("ami-share-{}-{port}", std::process::id()))
}
