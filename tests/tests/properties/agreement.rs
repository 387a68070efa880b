//! The machine and ministack run the same definitions and come to the same: the states, the output, the error.

use ami_share_machine::{Machine, Record};
use ami_share_sandbox::World;
use ami_share_tests::{
    REGION, Result, SOURCE, TARGET, execution,
    local::{Local, Settings},
    sabotage, seed,
};
use serde_json::{Value, json};

use crate::deployed::{self, UNLISTED};

struct Scenario {
    name: &'static str,
    request: Value,
    /// Somebody takes the launcher's access away just before the proof.
    sabotaged: bool,
    status: &'static str,
}

fn scenarios(image: &str, principal: &str) -> Vec<Scenario> {
    let request = |target: Value| json!({ "imageId": image, "targets": [target] });
    let scenario = |name, request, status| Scenario { name, request, sabotaged: false, status };
    let reencrypted = |mode: &str| json!({ "mode": mode, "kmsKeyId": "alias/app-volumes" });
    vec![
        scenario("refused", request(json!({ "accountId": UNLISTED })), "FAILED"),
        Scenario {
            sabotaged: true,
            ..scenario("undone", request(json!({ "accountId": TARGET, "principals": [principal] })), "FAILED")
        },
        scenario("plain", request(json!({ "accountId": TARGET, "principals": [principal] })), "SUCCEEDED"),
        scenario("already-shared", request(json!({ "accountId": TARGET })), "SUCCEEDED"),
        scenario(
            "at-launch",
            request(json!({ "accountId": "444444444444", "reencrypt": reencrypted("atLaunch") })),
            "SUCCEEDED",
        ),
        scenario(
            "copy-image",
            request(json!({ "accountId": TARGET, "reencrypt": reencrypted("copyImage"), "launch": { "keep": true } })),
            "SUCCEEDED",
        ),
    ]
}

#[test]
fn the_machine_and_ministack_come_to_the_same() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let (local, image, principal) = runtime.block_on(seeded())?;
    let mut world = World::new(ami_share_sandbox::Settings::default());
    world.accounts.clone_from(&local.sandbox.world().accounts);
    // Ids that the other world has given are not given again.
    for _ in 0..10_000 {
        world.next_number();
    }
    let machine = Machine::new(&deployed::of(&local)?, world, 1)?;
    for Scenario { name, request, sabotaged, status } in scenarios(&image, &principal) {
        if sabotaged {
            local.sandbox.world().faults.add_hook(sabotage::detach_before_launch());
            machine.world().faults.add_hook(sabotage::detach_before_launch());
        }
        let theirs = runtime.block_on(async {
            let engine = local.engine.endpoint();
            let arn = execution::start(&engine, &local.hub.state_machine, name, &request).await?;
            execution::follow(&engine, &arn, |_| {}).await
        })?;
        // Later than anything there was made by the other sandbox's clock.
        let arn = machine.start("ShareAmi", name, request, 3_600_000)?;
        machine.run()?;
        let ours = machine.record(&arn);
        assert_eq!(theirs.status.as_str(), status, "{name}: {:?}", theirs.cause);
        assert_eq!(ours.status.name(), status, "{name}: {:?}", ours.cause);
        let states: Vec<String> = theirs.states.into_iter().map(|entered| entered.state).collect();
        let why = (&ours.error, &ours.cause);
        assert_eq!(without_looks(&ours.entered), without_looks(&states), "{name}: {why:?}");
        assert_eq!(ours.error, theirs.error, "{name}");
        let Record { output, cause, .. } = ours;
        assert_eq!(cause.as_deref().map(without_ids), theirs.cause.as_deref().map(without_ids), "{name}");
        let comparable =
            |output: Option<Value>| output.map(without_times).map(|output| without_ids(&output.to_string()));
        // ministack gives a failed execution an output, which AWS does not.
        let their_output = theirs.output.filter(|_| status == "SUCCEEDED");
        assert_eq!(comparable(output), comparable(their_output), "{name}");
    }
    let (ours, theirs) = (left(&mut machine.world()), left(&mut local.sandbox.world()));
    assert_eq!(ours, theirs);
    Ok(())
}

/// The image and a principal of the target.
async fn seeded() -> Result<(Local, String, String)> {
    let targets = vec![TARGET.to_owned(), "444444444444".to_owned()];
    let local = Local::start(Settings { targets, ..Settings::default() }).await?;
    let sandbox = local.sandbox.endpoint();
    let image = seed::image(&sandbox, SOURCE, "golden-image").await?.image_id;
    let principal = seed::target(&sandbox, TARGET).await?.principal;
    seed::target(&sandbox, "444444444444").await?;
    Ok((local, image, principal))
}

/// How often it is looked whether an instance runs depends on the time that passes.
fn without_looks(states: &[String]) -> Vec<&str> {
    let mut states: Vec<&str> = states.iter().map(String::as_str).collect();
    while let Some(at) =
        states.windows(2).position(|pair| pair[0].starts_with("Check") && pair[1].starts_with("WaitFor"))
    {
        states.drain(at..at + 3);
    }
    states
}

fn without_times(mut output: Value) -> Value {
    for target in output["targets"].as_array_mut().into_iter().flatten() {
        target["durationSeconds"] = json!(null);
        target["provedAt"] = json!(null);
    }
    output
}

/// With every id and hash as `#`: what has eight hexadecimal digits or more, and hyphens.
fn without_ids(text: &str) -> String {
    let mut masked = String::new();
    let mut digits = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_hexdigit() || c == '-' {
            digits.push(c);
            continue;
        }
        masked.push_str(if digits.len() >= 8 { "#" } else { &digits });
        digits.clear();
        masked.push(c);
    }
    masked
}

/// Both accounts; of what was made in the target, how much it is.
fn left(world: &mut World) -> Vec<String> {
    let (source, mut target) = (world.snapshot(SOURCE), world.snapshot(TARGET));
    for kind in target["ec2"][REGION].as_object_mut().into_iter().flat_map(|kinds| kinds.values_mut()) {
        *kind = json!(kind.as_object().map(serde_json::Map::len));
    }
    [source, target].map(|account| account.to_string()).to_vec()
}
