//! Deploys templates to the local engine through its CloudFormation.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use aws_sdk_cloudformation::types::{Capability, Parameter, ResourceStatus, StackStatus};
use serde_json::{Value, json};

use crate::{
    HUB, REGION, Result,
    checkout::{built, checkout},
    clients::{self, SECRET},
    engine::{self, Engine},
    template,
};

const BUCKET: &str = "artifacts";

/// Where a template is.
#[derive(Debug, Clone)]
pub enum Template {
    Body(Value),
    Url(String),
}

impl Template {
    /// A template of the checkout, such as `accounts/source.yaml`.
    pub fn file(path: &str) -> Result<Self> {
        Ok(Self::Body(template::read(&checkout().join(path))?))
    }
}

/// A deployed stack.
#[derive(Debug, Clone, Default)]
pub struct Stack {
    pub outputs: BTreeMap<String, String>,
    /// Physical ids by logical id.
    pub resources: BTreeMap<String, String>,
}

/// Deploys `template` to `account`.
///
/// # Errors
/// With the reason CloudFormation gives for each resource that could not be made.
pub async fn deploy(
    engine: &Engine,
    account: &str,
    name: &str,
    template: Template,
    parameters: &[(&str, &str)],
) -> Result<Stack> {
    let client = aws_sdk_cloudformation::Client::new(&clients::root_of(account, &engine.endpoint()));
    let parameters = parameters
        .iter()
        .map(|(key, value)| Parameter::builder().parameter_key(*key).parameter_value(*value).build())
        .collect();
    let request = client.create_stack().stack_name(name);
    let request = match template {
        Template::Body(body) => request.template_body(body.to_string()),
        Template::Url(url) => request.template_url(url),
    };
    request
        .set_parameters(Some(parameters))
        .capabilities(Capability::CapabilityNamedIam)
        .capabilities(Capability::CapabilityAutoExpand)
        .send()
        .await
        .map_err(|error| format!("stack {name} in {account}: {}", error.into_service_error()))?;
    let stack = loop {
        let answer = client.describe_stacks().stack_name(name).send().await?;
        let stack = answer.stacks.unwrap_or_default().pop().ok_or("DescribeStacks answered no stack")?;
        match stack.stack_status {
            Some(StackStatus::CreateComplete) => break stack,
            Some(StackStatus::CreateInProgress) => tokio::time::sleep(Duration::from_millis(20)).await,
            status => return Err(explain(&client, name, status).await),
        }
    };
    let resources = client.describe_stack_resources().stack_name(name).send().await?.stack_resources;
    Ok(Stack {
        outputs: stack
            .outputs
            .unwrap_or_default()
            .into_iter()
            .filter_map(|output| Some((output.output_key?, output.output_value?)))
            .collect(),
        resources: resources
            .unwrap_or_default()
            .into_iter()
            .filter_map(|resource| Some((resource.logical_resource_id?, resource.physical_resource_id?)))
            .collect(),
    })
}

async fn explain(
    client: &aws_sdk_cloudformation::Client,
    name: &str,
    status: Option<StackStatus>,
) -> Box<dyn std::error::Error + Send + Sync> {
    let events = match client.describe_stack_events().stack_name(name).send().await {
        Ok(answer) => answer.stack_events.unwrap_or_default(),
        Err(error) => return error.into(),
    };
    let reasons: Vec<String> = events
        .into_iter()
        .filter(|event| event.resource_status == Some(ResourceStatus::CreateFailed))
        .map(|event| {
            format!(
                "{}: {}",
                event.logical_resource_id.unwrap_or_default(),
                event.resource_status_reason.unwrap_or_default()
            )
        })
        .collect();
    format!("stack {name} ended in {status:?}: {}", reasons.join("; ")).into()
}

/// Makes the bucket that the hub's artifacts go to.
pub async fn deploy_bucket(engine: &Engine) -> Result<()> {
    let template = json!({ "Resources": { "Bucket": {
        "Type": "AWS::S3::Bucket",
        "Properties": { "BucketName": BUCKET },
    }}});
    deploy(engine, HUB, BUCKET, Template::Body(template), &[]).await?;
    Ok(())
}

/// The hub stack, deployed.
#[derive(Debug, Clone)]
pub struct Hub {
    pub stack: Stack,
    /// The ARN of share-ami.
    pub state_machine: String,
    /// The ARN of revoke-share.
    pub revoke_share: String,
}

/// Deploys `template.yaml`, its functions built by `make build-functions`.
pub async fn deploy_hub(engine: &Engine, parameters: &[(&str, &str)]) -> Result<Hub> {
    deploy_bucket(engine).await?;
    let template = template::read(&checkout().join("template.yaml"))?;
    let stack = deploy(engine, HUB, "ami-share", package(engine, "hub", template)?, parameters).await?;
    let machine = |id: &str| stack.resources.get(id).cloned().ok_or_else(|| format!("the hub stack has no {id}"));
    let (state_machine, revoke_share) = (machine("ShareAmiStateMachine")?, machine("RevokeShareStateMachine")?);
    Ok(Hub { state_machine, revoke_share, stack })
}

impl Hub {
    /// The ARN of the function with that logical id.
    pub fn function(&self, logical_id: &str) -> Result<String> {
        let name = self.stack.resources.get(logical_id).ok_or_else(|| format!("the hub stack has no {logical_id}"))?;
        Ok(function_arn(name))
    }

    /// Makes a state machine that is share-ami but for one function: wherever the definition has
    /// the substitution `${<logical_id>Arn}`, it gets `replacement` instead. Returns its ARN.
    pub async fn share_ami_with(
        &self,
        engine: &Engine,
        name: &str,
        logical_id: &str,
        replacement: &str,
    ) -> Result<String> {
        self.machine_with(engine, &self.state_machine, name, logical_id, replacement).await
    }

    /// The same of any of the deployed state machines.
    pub async fn machine_with(
        &self,
        engine: &Engine,
        machine: &str,
        name: &str,
        logical_id: &str,
        replacement: &str,
    ) -> Result<String> {
        let function = self.function(logical_id)?;
        copy_with(engine, machine, name, &function, replacement).await
    }

    /// Makes a state machine that is `machine`, which starts take-back, but for one function of take-back: it starts a
    /// copy of that with `replacement` instead. Returns its ARN, and that of the copy.
    pub async fn taking_back_with(
        &self,
        engine: &Engine,
        machine: &str,
        name: &str,
        logical_id: &str,
        replacement: &str,
    ) -> Result<(String, String)> {
        let id = "TakeBackStateMachine";
        let take_back = self.stack.resources.get(id).ok_or_else(|| format!("the hub stack has no {id}"))?;
        let child = format!("{name}-take-back");
        let child = self.machine_with(engine, take_back, &child, logical_id, replacement).await?;
        Ok((copy_with(engine, machine, name, take_back, &child).await?, child))
    }
}

/// Makes a state machine that is `machine` but for one ARN in its definition; returns its ARN.
async fn copy_with(engine: &Engine, machine: &str, name: &str, arn: &str, replacement: &str) -> Result<String> {
    let client = aws_sdk_sfn::Client::new(&clients::root_of(HUB, &engine.endpoint()));
    let deployed = client.describe_state_machine().state_machine_arn(machine).send().await?;
    if !deployed.definition.contains(arn) {
        return Err(format!("{machine} does not use {arn}").into());
    }
    let created = client
        .create_state_machine()
        .name(name)
        .definition(deployed.definition.replace(arn, replacement))
        .role_arn(deployed.role_arn)
        .send()
        .await?;
    Ok(created.state_machine_arn)
}

/// Deploys a function that always fails, with the error `InjectedFailure`; returns its ARN.
pub async fn deploy_failing_function(engine: &Engine) -> Result<String> {
    let template = json!({
        "Transform": "AWS::Serverless-2016-10-31",
        "Resources": { "FailingFunction": {
            "Type": "AWS::Serverless::Function",
            "Metadata": { "BuildMethod": "rust-cargolambda", "BuildProperties": { "Binary": "failing-step" } },
            "Properties": { "Runtime": "provided.al2023", "Handler": "bootstrap", "CodeUri": "." },
        }},
    });
    let stack = deploy(engine, HUB, "failing", package(engine, "failing", template)?, &[]).await?;
    Ok(function_arn(stack.resources.get("FailingFunction").ok_or("there is no FailingFunction")?))
}

fn function_arn(name: &str) -> String {
    format!("arn:aws:lambda:{REGION}:{HUB}:function:{name}")
}

/// What `sam build` does to a template: each function's CodeUri becomes the folder of its built artifact. Makes
/// `template.yaml` in `folder`, as `sam deploy` finds it in `.aws-sam/build`, and returns its path.
///
/// The artifact's `bootstrap` is one line that runs the binary where Cargo built it: a debug build
/// of all functions is a gigabyte, which would be copied for every engine that is started.
pub fn build(folder: &Path, mut template: Value) -> Result<PathBuf> {
    let functions: Vec<(String, String)> = template::resources(&template, "AWS::Serverless::Function")
        .map(|(id, resource)| match resource["Metadata"]["BuildProperties"]["Binary"].as_str() {
            Some(binary) => Ok((id.to_owned(), binary.to_owned())),
            None => Err(format!("{id} has no Metadata.BuildProperties.Binary")),
        })
        .collect::<Result<_, _>>()?;
    for (id, binary) in functions {
        let artifact = folder.join(&id);
        write_bootstrap(&artifact, &binary)?;
        template["Resources"][&id]["Properties"]["CodeUri"] = json!(artifact);
    }
    let machines: Vec<String> =
        template::resources(&template, "AWS::Serverless::StateMachine").map(|(id, _)| id.to_owned()).collect();
    for id in machines {
        let definition = &mut template["Resources"][&id]["Properties"]["DefinitionUri"];
        *definition = json!(checkout().join(definition.as_str().ok_or_else(|| format!("{id} has no DefinitionUri"))?));
    }
    // The engine is called without TLS, and holds a topic to its policy.
    if let Some(statements) =
        template.pointer_mut("/Resources/NotificationTopicPolicy/Properties/PolicyDocument/Statement")
    {
        let statements = statements.as_array_mut().ok_or("the topic's policy has no list of statements")?;
        statements.retain(|statement| statement["Sid"] != "RefuseWithoutTls");
    }
    let path = folder.join("template.yaml");
    fs::write(&path, template.to_string())?;
    Ok(path)
}

/// What `sam package` does besides: every local file is put into a bucket.
fn package(engine: &Engine, name: &str, template: Value) -> Result<Template> {
    let stage = engine.directory().join("package").join(name);
    let built = build(&stage, template)?;
    // The template itself is one of the files: it may be larger than a call's body.
    let parent = json!({ "Resources": { "Stack": {
        "Type": "AWS::CloudFormation::Stack",
        "Properties": { "TemplateURL": built },
    }}});
    fs::write(stage.join("parent.json"), parent.to_string())?;
    let output = aws(HUB, &engine.endpoint())?
        .args(["cloudformation", "package", "--use-json", "--s3-bucket", BUCKET, "--template-file"])
        .arg(stage.join("parent.json"))
        .arg("--output-template-file")
        .arg(stage.join("packaged.json"))
        .output()?;
    if !output.status.success() {
        return Err(format!("aws cloudformation package: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let packaged: Value = serde_json::from_slice(&fs::read(stage.join("packaged.json"))?)?;
    let url = packaged["Resources"]["Stack"]["Properties"]["TemplateURL"].as_str();
    Ok(Template::Url(url.ok_or("aws cloudformation package left the template where it was")?.to_owned()))
}

fn write_bootstrap(artifact: &Path, binary: &str) -> Result<()> {
    let built =
        built(binary).ok_or_else(|| format!("the function {binary} is not built: run `make build-functions`"))?;
    fs::create_dir_all(artifact)?;
    let bootstrap = artifact.join("bootstrap");
    fs::write(&bootstrap, format!("#!/bin/sh\nexec '{}'\n", built.display()))?;
    fs::set_permissions(&bootstrap, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The AWS CLI as the root of `account`, for `endpoint`.
pub fn aws(account: &str, endpoint: &str) -> Result<Command> {
    let mut command = engine::tool("aws")?;
    act_as(&mut command, account, endpoint);
    Ok(command)
}

/// Lets `command` and what it starts make their calls as the root of `account`, to `endpoint`.
pub fn act_as(command: &mut Command, account: &str, endpoint: &str) {
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("AWS_ENDPOINT_URL", endpoint)
        .env("AWS_ACCESS_KEY_ID", account)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_DEFAULT_REGION", REGION);
}
