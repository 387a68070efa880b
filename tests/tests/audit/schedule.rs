//! Audits that nobody starts.

use std::time::{Duration, Instant};

use super::*;

/// EventBridge's shortest schedule is a minute.
const PATIENCE: Duration = Duration::from_secs(300);

#[tokio::test]
async fn an_audit_of_every_image_is_started_as_the_schedule_says() -> Result<()> {
    let stage = Stage::start(Settings { audit_schedule: "rate(1 minute)".to_owned(), ..Settings::default() }).await?;
    let machine = stage.local.hub.stack.resources.get("AuditSharesStateMachine").ok_or("there is no audit")?;
    let engine = stage.local.engine.endpoint();
    let client = aws_sdk_sfn::Client::new(&root_of(HUB, &engine));
    let waiting_since = Instant::now();
    let started = loop {
        let executions = client.list_executions().state_machine_arn(machine).send().await?.executions;
        if let Some(execution) = executions.into_iter().next() {
            break execution.execution_arn;
        }
        assert!(waiting_since.elapsed() < PATIENCE, "no audit was started");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let ended = execution::follow(&engine, &started, |_| {}).await?;
    assert_eq!(ended.status, ExecutionStatus::Succeeded, "{:?} {:?}", ended.error, ended.cause);
    let report = ended.output.unwrap_or_default();
    assert_eq!((&report["summary"]["images"], &report["source"]["accountId"]), (&json!(1), &json!(SOURCE)));
    assert!(stage.inbox.receive(&stage.local.engine)?.message.contains("looked at 1 image(s)"));
    Ok(())
}
