//! The documents' own commands deploy, as often as one likes, whichever of the accounts are one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
};

use ami_share_tests::{
    HUB, Result, SOURCE, TARGET,
    checkout::checkout,
    clients::root_of,
    deploy,
    engine::{self, Engine},
    template,
};

/// The management account, as docs/operate.md calls it.
const ORGANIZATION: &str = "999999999999";

/// An engine, and a checkout as `make build` leaves it.
struct Machine {
    engine: Engine,
    checkout: PathBuf,
}

impl Machine {
    fn start(test: &str) -> Result<Self> {
        let listener = engine::listen()?;
        let port = listener.local_addr()?.port();
        let directory = std::env::temp_dir().join(format!("ami-share-deploying-{test}-{port}"));
        let engine = Engine::start(listener, "http://127.0.0.1:9", &directory, 3)?;
        let copy = directory.join("checkout");
        fs::create_dir_all(&copy)?;
        for name in ["accounts", ".venv", "template.yaml"] {
            symlink(checkout().join(name), copy.join(name))?;
        }
        fs::copy(checkout().join("samconfig.toml"), copy.join("samconfig.toml"))?;
        deploy::build(&copy.join(".aws-sam/build"), template::read(&checkout().join("template.yaml"))?)?;
        Ok(Self { engine, checkout: copy })
    }

    /// Gives a command as the root of `account`, and says yes to what it asks; returns what it said, and whether it
    /// went well.
    fn run(&self, account: &str, command: &str) -> Result<(bool, String)> {
        let mut shell = Command::new("sh");
        deploy::act_as(&mut shell, account, &self.engine.endpoint());
        let mut shell = shell
            .args(["-c", &format!("exec 2>&1; PATH=$PWD/.venv/bin:$PATH; {command}")])
            .current_dir(&self.checkout)
            .env("HOME", self.engine.directory())
            .env("SAM_CLI_TELEMETRY", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        shell.stdin.take().ok_or("the shell has no input")?.write_all(b"y\n")?;
        let output = shell.wait_with_output()?;
        Ok((output.status.success(), String::from_utf8(output.stdout)?))
    }

    fn succeeds(&self, account: &str, command: &str) -> Result<()> {
        let (well, said) = self.run(account, command)?;
        if well { Ok(()) } else { Err(format!("{command}\n{said}").into()) }
    }

    fn fails(&self, account: &str, command: &str) -> Result<String> {
        let (well, said) = self.run(account, command)?;
        if well { Err(format!("{command}\n{said}").into()) } else { Ok(said) }
    }

    /// Every resource of every stack, and every role that there is.
    async fn resources(&self, accounts: &BTreeSet<&str>) -> Result<BTreeSet<[String; 4]>> {
        let mut found = BTreeSet::new();
        for account in accounts {
            let config = root_of(account, &self.engine.endpoint());
            let cloudformation = aws_sdk_cloudformation::Client::new(&config);
            for stack in cloudformation.describe_stacks().send().await?.stacks.unwrap_or_default() {
                let name = stack.stack_name.unwrap_or_default();
                let resources = cloudformation.describe_stack_resources().stack_name(&name).send().await?;
                found.extend(resources.stack_resources.unwrap_or_default().into_iter().map(|resource| {
                    let ids =
                        [resource.logical_resource_id, resource.physical_resource_id].map(Option::unwrap_or_default);
                    let [logical, physical] = ids;
                    [(*account).to_owned(), name.clone(), logical, physical]
                }));
            }
            let roles = aws_sdk_iam::Client::new(&config).list_roles().send().await?.roles;
            found.extend(
                roles.into_iter().map(|role| [(*account).to_owned(), "IAM".to_owned(), role.role_name, role.role_id]),
            );
        }
        Ok(found)
    }

    async fn parameters_of_the_hub(&self, hub: &str) -> Result<BTreeMap<String, String>> {
        let client = aws_sdk_cloudformation::Client::new(&root_of(hub, &self.engine.endpoint()));
        let stacks = client.describe_stacks().stack_name("ami-share").send().await?.stacks.unwrap_or_default();
        let parameters = stacks.into_iter().next().and_then(|stack| stack.parameters).unwrap_or_default();
        let pairs = parameters.into_iter().filter_map(|each| Some((each.parameter_key?, each.parameter_value?)));
        Ok(pairs.collect())
    }
}

/// The commands of a document that deploy, in their order: what each deploys, and the command in these accounts.
fn commands(document: &str, [source, target, hub]: [&str; 3]) -> Result<Vec<(&'static str, String)>> {
    let text = fs::read_to_string(checkout().join(document))?;
    let code = text.split("```").skip(1).step_by(2).filter_map(|code| code.strip_prefix("sh\n"));
    let plain = code.map(|code| code.replace("\\\n", " ")).collect::<String>();
    let deploying = plain.lines().filter(|line| line.contains(" deploy ")).map(|line| {
        let templates = ["accounts/source.yaml", "accounts/target.yaml", "accounts/organization.yaml"];
        let deploys = templates.into_iter().find(|template| line.contains(template)).unwrap_or("template.yaml");
        let line = line.replace(SOURCE, source).replace(TARGET, target).replace(HUB, hub).replace("<word>", "a-word");
        (deploys, line)
    });
    Ok(deploying.collect())
}

/// Deploys what the README says, twice, and then what docs/operate.md says of a deployment that is there.
async fn deploy_twice(test: &str, accounts: [&str; 3]) -> Result<Machine> {
    let machine = Machine::start(test)?;
    let [source, target, hub] = accounts;
    let readme = commands("README.md", accounts)?;
    let deployed: Vec<&str> = readme.iter().map(|(template, _)| *template).collect();
    assert_eq!(deployed, ["accounts/source.yaml", "accounts/target.yaml", "template.yaml"]);
    let mut before = BTreeSet::new();
    for _ in 0..2 {
        for (account, (_, command)) in [source, target, hub].iter().zip(&readme) {
            machine.succeeds(account, command)?;
        }
        let there = machine.resources(&accounts.into()).await?;
        for role in [
            "AmiShareSource",
            "AmiShareSourceReader",
            "AmiShareTarget",
            "AmiShareLauncher",
            "AmiShareReportFunctionRole",
        ] {
            assert!(there.iter().any(|[_, kind, name, _]| kind == "IAM" && name == role), "{role}: {there:#?}");
        }
        let gone: Vec<_> = before.difference(&there).collect();
        assert!(gone.is_empty(), "{gone:#?}");
        before = there;
    }
    Ok(machine)
}

#[tokio::test]
async fn a_hub_that_is_the_source_keeps_both_stacks() -> Result<()> {
    let machine = deploy_twice("source", [HUB, TARGET, HUB]).await?;

    // Nor does a slip of the pen take one for the other.
    let readme = commands("README.md", [HUB, TARGET, HUB])?;
    let there = machine.resources(&[HUB].into()).await?;
    for ((_, command), stack) in [(&readme[0], "ami-share"), (&readme[2], "ami-share-source")] {
        let (before, after) = command.split_once("--stack-name ").ok_or("no stack is named")?;
        let (_, after) = after.split_once(' ').ok_or("nothing follows the stack's name")?;
        let said = machine.fails(HUB, &format!("{before}--stack-name {stack} {after}"))?;
        assert!(said.contains("modifies resource type of the following resources: [SourceRole]"), "{said}");
    }
    assert_eq!(machine.resources(&[HUB].into()).await?, there);
    Ok(())
}

#[tokio::test]
async fn a_hub_that_is_a_target_keeps_both_stacks() -> Result<()> {
    let machine = deploy_twice("target", [SOURCE, HUB, HUB]).await?;
    let (_, target) = &commands("README.md", [SOURCE, HUB, HUB])?[1];
    let said = machine.fails(SOURCE, target)?;
    assert!(said.contains("SourceAccountId is this account"), "{said}");
    let said = machine.fails(HUB, &format!("{target} LauncherRoleName=AmiShareTarget"))?;
    assert!(said.contains("two roles of one account"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_hub_apart_keeps_its_parameters() -> Result<()> {
    let accounts = [SOURCE, TARGET, HUB];
    let machine = deploy_twice("apart", accounts).await?;
    let mut expected = machine.parameters_of_the_hub(HUB).await?;
    assert_eq!(expected["AllowedTargetAccounts"], TARGET);
    let tracked = fs::read(machine.checkout.join("samconfig.toml"))?;

    fs::write(machine.checkout.join("hub.parameters.yaml"), yaml("docs/operate.md")?)?;
    for (template, command) in commands("docs/operate.md", accounts)? {
        let account = if template == "template.yaml" { HUB } else { ORGANIZATION };
        machine.succeeds(account, &command)?;
    }
    for (name, value) in [
        ("AllowedTargetAccounts", "222222222222,444444444444"),
        ("NotificationEmail", "images@example.com"),
        ("AllowedOrganizationalUnits", "ou-ab12-34cd56ef"),
        ("OrganizationsRoleArn", "arn:aws:iam::999999999999:role/AmiShareOrganization"),
    ] {
        expected.insert(name.to_owned(), value.to_owned());
    }
    assert_eq!(machine.parameters_of_the_hub(HUB).await?, expected);
    assert_eq!(fs::read(machine.checkout.join("samconfig.toml"))?, tracked);
    Ok(())
}

/// Without it, sam would pack the whole checkout for each function.
#[tokio::test]
async fn a_hub_that_was_not_built_is_not_deployed() -> Result<()> {
    let machine = Machine::start("unbuilt")?;
    fs::remove_dir_all(machine.checkout.join(".aws-sam"))?;
    let before = machine.resources(&[HUB].into()).await?;
    let (_, hub) = &commands("README.md", [SOURCE, TARGET, HUB])?[2];
    let said = machine.fails(HUB, hub)?;
    assert!(said.contains("Template file not found"), "{said}");
    assert_eq!(machine.resources(&[HUB].into()).await?, before);
    Ok(())
}

/// The one file of YAML in a document.
fn yaml(document: &str) -> Result<String> {
    let text = fs::read_to_string(checkout().join(document))?;
    let file = text.split("```").find_map(|code| code.strip_prefix("yaml\n")).ok_or("there is no YAML")?;
    Ok(file.to_owned())
}
