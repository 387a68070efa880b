//! Who may start what: the stack's policies for operators, as the engine authorizes whoever holds one.

use ami_share_tests::{Result, execution, local::Settings, operator::Operator};
use serde_json::json;

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
        assert_eq!(states, ["ResolveImage", "PlanShare", "FinishPlan"], "{:?}", ended.cause);
        let own = aws_sdk_sfn::Client::new(&operator.config);
        let output = own.describe_execution().execution_arn(&arn).send().await?.output;
        assert_eq!(serde_json::from_str::<serde_json::Value>(&output.unwrap())?, of_share_ami, "{name}");
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
