//! Images that share keys and targets: an execution that is taken back leaves what another image has
//! come to need, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ami_share_core::{ids::KeyArn, key_policy::KeyPolicy, principal_policy::inline_policy_name};
use ami_share_sandbox::{
    ec2::{Ec2, InstanceState},
    faults::{Fault, FaultKind, Matcher},
    world::Account,
};
use ami_share_tests::{
    REGION, Result, SOURCE, TARGET, clients,
    execution::{self, Ended},
    local::{Local, Settings},
    seed,
    stop::Stopper,
};
use aws_sdk_sfn::types::ExecutionStatus;
use serde_json::{Value, json};

const OTHER_TARGET: &str = "444444444444";
const TIMEOUT: Duration = Duration::from_secs(60);
/// An instance is pending until the test says how it ends.
const NEVER_MS: u64 = 3_600_000;
const ROLES: [&str; 2] = ["AmiShareLauncher", "app-deployer"];

/// Two images for the same target. Every volume of the first is under a key that the second's root
/// volume is under too; its others are under a key of its own.
struct Stage {
    local: Local,
    stopper: Stopper,
    first: seed::Image,
    second: seed::Image,
    shared_key: String,
    own_key: String,
    principal: String,
    seeded: BTreeMap<String, Account>,
}

impl Stage {
    async fn start() -> Result<Self> {
        let targets = [TARGET, OTHER_TARGET].map(str::to_owned).to_vec();
        let local = Local::start(Settings { targets, inline_policies: true, ..Settings::default() }).await?;
        let sandbox = local.sandbox.endpoint();
        let second = seed::image(&sandbox, SOURCE, "second").await?;
        let [shared_key, own_key] = [0, 1].map(|index| second.key_arns()[index].to_owned());
        let first = seed::image_under(&sandbox, SOURCE, "first", &shared_key, &shared_key).await?;
        let principal = seed::target(&sandbox, TARGET).await?.principal;
        let seeded = local.sandbox.world().accounts.clone();
        let stopper = Stopper::new(&local).await?;
        Ok(Self { local, stopper, first, second, shared_key, own_key, principal, seeded })
    }

    fn reset(&self) -> Result<()> {
        self.local.sandbox.world().accounts = self.seeded.clone();
        self.stopper.forget_records()
    }

    fn request(&self, image: &seed::Image, access: &str) -> Value {
        json!({
            "imageId": image.image_id,
            "targets": [{ "accountId": TARGET, "principals": [self.principal] }],
            "principalAccess": access,
        })
    }

    async fn start_share(&self, name: &str, request: &Value) -> Result<String> {
        execution::start(&self.local.engine.endpoint(), &self.local.hub.state_machine, name, request).await
    }

    async fn follow(&self, arn: &str) -> Result<Ended> {
        execution::follow(&self.local.engine.endpoint(), arn, |_| {}).await
    }

    async fn share(&self, name: &str, request: &Value) -> Result<Ended> {
        self.follow(&self.start_share(name, request).await?).await
    }

    /// The proof of `image`, once it is launched; it is pending.
    async fn proof(&self, image: &seed::Image) -> Result<String> {
        let started = Instant::now();
        while started.elapsed() < TIMEOUT {
            let pending = self.with_target(|ec2| {
                let mut instances = ec2.instances.values();
                let of_image = |state, id: &str| state == InstanceState::Pending && id == image.image_id;
                instances.find(|instance| of_image(instance.state, &instance.image_id)).map(|found| found.id.clone())
            });
            if let Some(id) = pending {
                return Ok(id);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(format!("nobody launched {}", image.image_id).into())
    }

    fn with_target<T>(&self, look: impl FnOnce(&mut Ec2) -> T) -> T {
        let mut world = self.local.sandbox.world();
        look(world.account_mut(TARGET).ec2.entry(REGION.to_owned()).or_default())
    }

    fn set_launch_delay(&self, ms: u64) -> u64 {
        std::mem::replace(&mut self.local.sandbox.world().settings.launch_delay_ms, ms)
    }

    /// Somebody ends a proof before it runs.
    async fn kill(&self, instance: &str) -> Result<()> {
        let ec2 = aws_sdk_ec2::Client::new(&clients::root_of(TARGET, &self.local.sandbox.endpoint()));
        ec2.terminate_instances().instance_ids(instance).send().await?;
        Ok(())
    }

    /// Whether the policy of that key names the target.
    async fn key_names_target(&self, key: &str) -> Result<bool> {
        let kms = aws_sdk_kms::Client::new(&clients::root_of(SOURCE, &self.local.sandbox.endpoint()));
        let text = kms.get_key_policy().key_id(key).policy_name("default").send().await?.policy.unwrap_or_default();
        let accounts = KeyPolicy::parse(&KeyArn::parse(key)?, &text)?.accounts();
        Ok(accounts.iter().any(|account| account.as_str() == TARGET))
    }

    /// The policies of ours that a role has: the managed one attached, or inline ones by name.
    fn policies(&self, role: &str) -> Value {
        let snapshot = self.local.sandbox.world().snapshot(TARGET);
        let role = &snapshot["iam"]["roles"][role];
        let ours = |name: &&String| name.starts_with("AmiShare-");
        let inline: Vec<String> =
            role["inline"].as_object().into_iter().flat_map(|map| map.keys()).filter(ours).cloned().collect();
        json!({ "attached": role["attached"], "inline": inline })
    }

    /// Whether there is a note that the target was given something of the image.
    fn is_noted(&self, image: &seed::Image) -> Result<bool> {
        let part = format!("{}#", image.image_id);
        let of_image = |record: &Value| record["part"]["S"].as_str().is_some_and(|found| found.starts_with(&part));
        Ok(self.stopper.records()?.iter().any(|record| of_image(record) && record.get("gift").is_some()))
    }

    fn launch_permissions(&self, image: &seed::Image) -> Value {
        let snapshot = self.local.sandbox.world().snapshot(SOURCE);
        snapshot["ec2"][REGION]["images"][&image.image_id]["launchPermissions"].clone()
    }

    /// The accounts as they are.
    fn snapshots(&self) -> [Value; 2] {
        [SOURCE, TARGET].map(|account| self.local.sandbox.world().snapshot(account))
    }

    /// The first image's share is whole: a second execution changes nothing, and its launch runs.
    async fn assert_first_is_usable(&self, name: &str, access: &str) -> Result<()> {
        let mut request = self.request(&self.first, access);
        request["targets"][0]["launch"] = json!({ "prove": "always" });
        let proof = self.share(&format!("{name}-used"), &request).await?;
        assert_eq!(proof.status, ExecutionStatus::Succeeded, "{name}: {proof:?}");
        assert_eq!(changed(&proof), nothing(), "{name}");
        Ok(())
    }

    /// What an execution for the second image leaves that was taken back while the first was shared.
    async fn assert_only_what_the_first_needs_is_left(&self, name: &str, access: &str) -> Result<()> {
        assert_eq!(self.launch_permissions(&self.first), json!([TARGET]), "{name}");
        assert_eq!(self.launch_permissions(&self.second), json!([]), "{name}");
        assert!(self.key_names_target(&self.shared_key).await?, "{name}");
        assert!(!self.key_names_target(&self.own_key).await?, "{name}");
        let expected = match access {
            "attach" => {
                json!({ "attached": [format!("arn:aws:iam::{TARGET}:policy/AmiShareKeyAccess")], "inline": [] })
            }
            _ => json!({ "attached": [], "inline": [inline_policy_name(&KeyArn::parse(self.shared_key.as_str())?)] }),
        };
        for role in ROLES {
            assert_eq!(self.policies(role), expected, "{name}: {role}");
        }
        Ok(())
    }
}

fn changed(ended: &Ended) -> Value {
    ended.output.as_ref().map(|report| report["changed"].clone()).unwrap_or_default()
}

fn nothing() -> Value {
    json!({ "keys": [], "snapshots": [], "launchPermissions": [], "principals": [] })
}

fn cause(ended: &Ended) -> &str {
    ended.cause.as_deref().unwrap_or_default()
}

fn taken_back() -> &'static str {
    "Everything that this execution had added was taken back."
}

/// The second image's execution adds access; the first's finds it there, and adds its launch
/// permission only; then the second's proof dies.
async fn race(stage: &Stage, access: &str, first_ends_before: bool) -> Result<()> {
    let name = &format!("{access}-{first_ends_before}");
    stage.reset()?;
    let launch_delay = stage.set_launch_delay(NEVER_MS);
    let second = stage.start_share(&format!("{name}-second"), &stage.request(&stage.second, access)).await?;
    let dying = stage.proof(&stage.second).await?;

    if first_ends_before {
        stage.set_launch_delay(launch_delay);
    }
    let first = stage.start_share(&format!("{name}-first"), &stage.request(&stage.first, access)).await?;
    let first = if first_ends_before {
        let ended = stage.follow(&first).await?;
        stage.kill(&dying).await?;
        let second = stage.follow(&second).await?;
        assert_second_is_taken_back(stage, &second, name)?;
        ended
    } else {
        let running = stage.proof(&stage.first).await?;
        stage.kill(&dying).await?;
        let second = stage.follow(&second).await?;
        assert_second_is_taken_back(stage, &second, name)?;
        stage.set_launch_delay(launch_delay);
        stage.with_target(|ec2| {
            ec2.instances.entry(running).and_modify(|instance| instance.state = InstanceState::Running);
        });
        stage.follow(&first).await?
    };
    assert_eq!(first.status, ExecutionStatus::Succeeded, "{name}: {first:?}");
    let mut relied_on = nothing();
    relied_on["launchPermissions"] = json!([TARGET]);
    assert_eq!(changed(&first), relied_on, "{name}: the access was not there already");

    stage.assert_only_what_the_first_needs_is_left(name, access).await?;
    stage.assert_first_is_usable(name, access).await
}

fn assert_second_is_taken_back(stage: &Stage, second: &Ended, name: &str) -> Result<()> {
    assert_eq!(second.error.as_deref(), Some("InstanceDied"), "{name}: {second:?}");
    let first = &stage.first.image_id;
    let kept = format!("Account {TARGET} keeps access to keys, as it can launch {first} too.");
    assert!(cause(second).contains(&kept), "{name}: {}", cause(second));
    assert!(!cause(second).contains("could"), "{name}: {}", cause(second));
    // Noted: what stays is this execution's gift.
    assert!(stage.is_noted(&stage.second)?, "{name}");
    Ok(())
}

#[tokio::test]
async fn what_an_image_found_there_stays_when_the_execution_that_added_it_is_taken_back() -> Result<()> {
    let stage = Stage::start().await?;
    for access in ["attach", "inline"] {
        for first_ends_before in [true, false] {
            race(&stage, access, first_ends_before).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn one_after_the_other_everything_of_the_one_that_fails_is_taken_back() -> Result<()> {
    let stage = Stage::start().await?;
    for access in ["attach", "inline"] {
        stage.reset()?;
        let first = stage.share(&format!("{access}-first"), &stage.request(&stage.first, access)).await?;
        assert_eq!(first.status, ExecutionStatus::Succeeded, "{access}: {first:?}");
        let before = stage.snapshots();
        let name = format!("{access}-second");
        fail_launch(&stage);
        let second = stage.share(&name, &stage.request(&stage.second, access)).await?;
        assert_eq!(second.error.as_deref(), Some("InstanceDied"), "{name}: {second:?}");
        assert!(cause(&second).ends_with(taken_back()), "{name}: {}", cause(&second));
        assert_eq!(stage.snapshots(), before, "{name}");
        stage.assert_only_what_the_first_needs_is_left(&name, access).await?;
        stage.assert_first_is_usable(&name, access).await?;
    }
    Ok(())
}

/// The next proof in the target dies, as often as it is launched.
fn fail_launch(stage: &Stage) {
    let dies = FaultKind::Fail { reason: "Client.InternalError".to_owned() };
    let launch = Matcher::action("ec2:RunInstances").in_account(TARGET);
    stage.local.sandbox.world().faults.add(Fault { count: 3, ..Fault::once(launch, dies) });
}

#[tokio::test]
async fn an_image_that_does_not_need_the_access_keeps_nothing() -> Result<()> {
    let stage = Stage::start().await?;
    let sandbox = stage.local.sandbox.endpoint();
    for other in ["not-shared", "of-another-target", "unencrypted"] {
        stage.reset()?;
        if other != "not-shared" {
            let account = if other == "unencrypted" { TARGET } else { OTHER_TARGET };
            permit(&sandbox, &stage.first, account).await?;
        }
        if other == "unencrypted" {
            let mut world = stage.local.sandbox.world();
            let ec2 = world.account_mut(SOURCE).ec2.entry(REGION.to_owned()).or_default();
            for volume in &stage.first.volumes {
                ec2.snapshots.entry(volume.snapshot_id.clone()).and_modify(|snapshot| snapshot.key = None);
            }
        }
        for access in ["attach", "inline"] {
            let name = format!("{other}-{access}");
            let before = stage.snapshots();
            fail_launch(&stage);
            let second = stage.share(&name, &stage.request(&stage.second, access)).await?;
            assert_eq!(second.error.as_deref(), Some("InstanceDied"), "{name}: {second:?}");
            assert!(cause(&second).ends_with(taken_back()), "{name}: {}", cause(&second));
            assert!(!stage.is_noted(&stage.second)?, "{name}");
            assert_eq!(stage.snapshots(), before, "{name}");
        }
    }
    Ok(())
}

async fn permit(sandbox: &str, image: &seed::Image, account: &str) -> Result<()> {
    use aws_sdk_ec2::types::{LaunchPermission, LaunchPermissionModifications};
    let ec2 = aws_sdk_ec2::Client::new(&clients::root_of(SOURCE, sandbox));
    let permission = LaunchPermission::builder().user_id(account).build();
    let change = LaunchPermissionModifications::builder().add(permission).build();
    ec2.modify_image_attribute().image_id(&image.image_id).launch_permission(change).send().await?;
    Ok(())
}

/// Where nobody can say what other images need, access to keys stays; the rest is taken back.
#[tokio::test]
async fn where_other_images_cannot_be_looked_at_no_access_to_keys_is_taken_back() -> Result<()> {
    let stage = Stage::start().await?;
    for access in ["attach", "inline"] {
        stage.reset()?;
        let denied = FaultKind::Error {
            code: "UnauthorizedOperation".to_owned(),
            message: "A guardrail says no.".to_owned(),
            status: 403,
        };
        // The first such call is ResolveImage's.
        let look = Matcher::action("ec2:DescribeImages").in_account(SOURCE);
        stage.local.sandbox.world().faults.add(Fault::once(look, denied).after(1));
        fail_launch(&stage);
        let second = stage.share(access, &stage.request(&stage.second, access)).await?;
        assert_eq!(second.error.as_deref(), Some("InstanceDied"), "{access}: {second:?}");
        let said = format!(
            "Not everything could be taken back: ResolveUndo in account {TARGET} failed with AccessDenied: access to keys \
             stays"
        );
        assert!(cause(&second).contains(&said), "{access}: {}", cause(&second));
        assert!(stage.is_noted(&stage.second)?, "{access}: no revoke would take it");
        assert_eq!(stage.launch_permissions(&stage.second), json!([]), "{access}");
        assert_eq!(stage.with_target(|ec2| ec2.instances.values().filter(|i| !i.state.is_over()).count()), 0);
        for key in [&stage.shared_key, &stage.own_key] {
            assert!(stage.key_names_target(key).await?, "{access}: {key}");
        }
        for role in ROLES {
            assert_ne!(stage.policies(role), json!({ "attached": [], "inline": [] }), "{access}: {role}");
        }
        // The next execution finds it there.
        let again = stage.share(&format!("{access}-again"), &stage.request(&stage.second, access)).await?;
        assert_eq!(again.status, ExecutionStatus::Succeeded, "{access}: {again:?}");
    }
    Ok(())
}
