//! Who may start what: the stack's policies for operators, as the engine authorizes whoever holds one.

use ami_share_tests::{HUB, Result, deploy, execution, local::Settings, operator::Operator};
use serde_json::{Value, json};

use crate::{Stage, merge};

const REFUSED: &str = "AccessDeniedException";

/// Each policy, and the state machines that its holder may start.
const POLICIES: [(&str, &[&str]); 4] = [
    ("PlanSharesPolicy", &["PlanShare"]),
    ("ShareImagesPolicy", &["ShareAmi"]),
    ("RevokeSharesPolicy", &["RevokeShare", "UndoShare"]),
    ("AuditSharesPolicy", &["AuditShares"]),
];

#[tokio::test]
async fn each_policy_for_operators_starts_its_state_machines_and_no_other() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let resources = &stage.local.hub.stack.resources;
    let machines: Vec<(&str, &String)> =
        resources.iter().filter_map(|(id, arn)| Some((id.strip_suffix("StateMachine")?, arn))).collect();
    assert_eq!(machines.len(), 6);
    for (policy, starts) in POLICIES {
        let operator = Operator::hire(&stage.local, policy, &[policy]).await?;
        for (machine, arn) in &machines {
            // It is no request, so whoever starts it does no harm.
            let started = operator.start(arn, policy, &json!({ "imageId": 1 })).await;
            let expected = if starts.contains(machine) { Ok(()) } else { Err(REFUSED) };
            assert_eq!(started.as_ref().map(drop).map_err(String::as_str), expected, "{policy}: {machine}");
        }
        let outputs = aws_sdk_cloudformation::Client::new(&operator.config).describe_stacks().stack_name("ami-share");
        assert!(!outputs.send().await?.stacks()[0].outputs().is_empty(), "{policy}");
    }
    Ok(())
}

#[tokio::test]
async fn an_operator_who_may_only_plan_gets_the_plan_of_a_share_and_cannot_share() -> Result<()> {
    let stage = Stage::start(Settings::default()).await?;
    let engine = stage.local.engine.endpoint();
    let (share_ami, plan_share) =
        (&stage.local.hub.state_machine, &stage.local.hub.stack.outputs["PlanShareStateMachineArn"]);
    let request = stage.request(json!({ "principals": [stage.target().principal] }));
    let mut planned = request.clone();
    merge(&mut planned, json!({ "action": "plan" }));
    let of_share_ami = stage.run("by-share-ami", &planned).await?.report().clone();

    let operator = Operator::hire(&stage.local, "planner", &["PlanSharesPolicy"]).await?;
    let seen = stage.local.sandbox.world().journal.last_seq();
    for (name, request) in [("unsaid", &request), ("said", &planned)] {
        let arn = operator.start(plan_share, name, request).await?;
        let ended = execution::follow(&engine, &arn, |_| {}).await?;
        let states: Vec<&str> = ended.states.iter().map(|entered| entered.state.as_str()).collect();
        assert_eq!(states, ["ResolveImage", "PlanShare", "NotePlan", "FinishPlan"], "{:?}", ended.cause);
        let own = aws_sdk_sfn::Client::new(&operator.config);
        let output = own.describe_execution().execution_arn(&arn).send().await?.output;
        assert_eq!(serde_json::from_str::<Value>(&output.unwrap())?, of_share_ami, "{name}");
    }
    assert!(stage.local.sandbox.world().journal.since(seen).iter().all(|entry| !entry.write));
    assert_eq!(operator.start(share_ami, "shared", &planned).await, Err(REFUSED.to_owned()));

    // What would change something is refused before anything is looked at.
    let seen = stage.local.sandbox.world().journal.last_seq();
    merge(&mut planned, json!({ "action": "apply" }));
    let arn = operator.start(plan_share, "applied", &planned).await?;
    let ended = execution::follow(&engine, &arn, |_| {}).await?;
    assert_eq!(ended.error.as_deref(), Some("InvalidRequest"));
    let cause = ended.cause.unwrap_or_default();
    assert!(cause.contains("action") && cause.contains("apply is what share-ami does"), "{cause}");
    assert_eq!(stage.local.sandbox.world().journal.since(seen).len(), 0);
    Ok(())
}

#[tokio::test]
async fn where_plans_are_required_a_share_carries_out_one_of_plan_share_within_its_time_and_once() -> Result<()> {
    let stage = Stage::start(Settings { require_plan: true, ..Settings::default() }).await?;
    let plan_share = &stage.local.hub.stack.outputs["PlanShareStateMachineArn"];
    let request = stage.request(json!({ "principals": [stage.target().principal] }));
    let with = |changes: Value| {
        let mut request = request.clone();
        merge(&mut request, changes);
        request
    };
    let apply = |hash: &Value| with(json!({ "planHash": hash }));
    let refused = async |name: &str, request: &Value, error: &str| -> Result<String> {
        let run = stage.run(name, request).await?;
        assert_eq!(run.ended.error.as_deref(), Some(error), "{name}: {}", run.summary());
        assert_eq!((run.differences(), run.writes().len()), (String::new(), 0), "{name}");
        Ok(run.ended.cause.unwrap_or_default())
    };

    refused("unplanned", &request, "PlanRequired").await?;
    let own = stage.run("own-plan", &with(json!({ "action": "plan" }))).await?.report()["planHash"].clone();
    refused("by-own-plan", &apply(&own), "PlanRequired").await?;
    // Whoever may share and guesses is not told of what.
    let cause = refused("guessed", &apply(&json!("0".repeat(64))), "PlanChanged").await?;
    let whole = &own.as_str().unwrap()[..64];
    assert!(cause.contains("the request is not the one of plan") && !cause.contains(whole), "{cause}");

    let plan = async |name: &str| -> Result<Value> {
        Ok(stage.run_on(plan_share, name, &request).await?.report()["planHash"].clone())
    };
    assert_eq!(plan("late-plan").await?, own);
    let key = json!({ "id": { "S": format!("plan#{whole}") }, "part": { "S": "plan" } });
    let table = &stage.local.hub.stack.resources["RecordTable"];
    let expired = deploy::aws(HUB, &stage.local.engine.endpoint())?
        .args(["dynamodb", "update-item", "--table-name", table, "--key", &key.to_string()])
        .args(["--update-expression", "SET expiresAt = :past"])
        .args(["--expression-attribute-values", r#"{":past":{"N":"1"}}"#])
        .status()?;
    assert!(expired.success());
    refused("too-late", &apply(&own), "PlanRequired").await?;

    for round in ["first", "second"] {
        let hash = plan(&format!("{round}-plan")).await?;
        let shared = stage.run(round, &apply(&hash)).await?;
        assert_eq!(shared.report()["status"], "shared", "{round}: {}", shared.summary());
        stage.reset();
        // The world is as it was, and the plan as true as before.
        refused(&format!("{round}-again"), &apply(&hash), "PlanRequired").await?;
    }
    Ok(())
}
