//! What rings: the alarms, the metrics that they watch, and the lines of the logs that count for these.

use ami_share_core::Error;
use ami_share_machine::evaluated;
use ami_share_tests::{filter_pattern::matches, template::resources};
use serde_json::{Map, Value, json};

use crate::{
    Set,
    definition::{self, Machine},
    template,
};

const HUB: &str = "template.yaml";

/// The namespace of the stack's own metrics.
fn own() -> Value {
    json!({ "Fn::Sub": "AmiShare/${AWS::StackName}" })
}

/// The pattern of a filter, with a state machine called as its logical id.
fn pattern(filter: &str) -> String {
    let pattern = &template(HUB)["Resources"][filter]["Properties"]["FilterPattern"];
    let pattern = pattern["Fn::Sub"].as_str().or(pattern.as_str()).unwrap_or_else(|| panic!("there is no {filter}"));
    pattern.replace("${", "").replace(".Name}", "")
}

/// The names that a pattern asks for.
fn names(pattern: &str) -> Vec<&str> {
    let parts = pattern.split("$.details.error = \"").skip(1);
    parts.map(|part| part.split_once('"').unwrap().0).collect()
}

/// What Step Functions logs of the end of an execution ("Using CloudWatch Logs to log execution history", Step Functions
/// developer guide).
fn end(machine: &Machine, fail: &str, variables: Map<String, Value>) -> String {
    let state = machine.state(fail);
    let ends = json!({ "error": state["Error"], "cause": state["Cause"] });
    json!({
        "id": "9",
        "type": "ExecutionFailed",
        "details": evaluated(&ends, &variables, json!({})).unwrap(),
        "previous_event_id": "8",
        "event_timestamp": "1790000000000",
        "execution_arn": format!("arn:aws:states:eu-west-1:333333333333:execution:{}:build-7", machine.logical_id)
    })
    .to_string()
}

/// As a state gives it.
fn failure(state: &str, error: &str) -> Value {
    let cause = json!({ "errorType": error, "errorMessage": format!("this is {error}") });
    json!({ "state": state, "error": error, "cause": cause.to_string() })
}

fn reported(report: &impl serde::Serialize) -> Map<String, Value> {
    Map::from_iter([("report".to_owned(), json!(report))])
}

fn end_of_share(failure: &Value, last: &Value) -> String {
    let input = json!({
        "execution": "e", "resolution": null, "results": [], "failure": failure, "failed": null, "soFar": null, "last": last
    });
    let report = report::report(serde_json::from_value(input).unwrap()).unwrap();
    end(&definition::share_ami(), "FailShare", reported(&report))
}

fn end_of_revoke(failure: &Value, phase: &str) -> String {
    let input = json!({
        "execution": "e", "request": { "imageId": "ami-0123abcd", "targets": "all" }, "progress": null, "last": null,
        "phase": phase, "failure": failure
    });
    let report = report_revoke::report_revoke(serde_json::from_value(input).unwrap()).unwrap();
    end(&definition::revoke_share(), "FailRevoke", reported(&report))
}

fn end_of_audit(error: &str) -> String {
    let variables = [("errorName", error), ("cause", "{\"errorMessage\":\"why\"}")];
    let variables = variables.map(|(name, value)| (name.to_owned(), json!(value)));
    end(&definition::audit_shares(), "FailAudit", Map::from_iter(variables))
}

#[test]
fn a_filter_asks_for_errors_that_there_are() {
    let hub = template(HUB);
    let filters: Vec<&str> = resources(&hub, "AWS::Logs::MetricFilter").map(|(id, _)| id).collect();
    assert_eq!(filters.len(), 6);
    for filter in filters {
        // CloudWatch Logs takes 1,024 characters ("PutMetricFilter", CloudWatch Logs API reference), and a state machine's name
        // may have 80 ("CreateStateMachine", Step Functions API reference).
        let pattern = pattern(filter);
        assert!(pattern.len() + 80 <= 1_024, "{filter}: {} characters", pattern.len());
        for name in names(&pattern) {
            assert!(Error::NAMES.contains(&name), "{filter}: {name}");
        }
    }
}

#[test]
fn a_request_that_is_refused_rings_no_alarm_and_whatever_else_fails_does() {
    let (shares, revokes, audits) =
        (pattern("RefusedSharesFilter"), pattern("RefusedRevokesFilter"), pattern("RefusedAuditsFilter"));
    let refused = |pattern: &str, line: &str| matches(pattern, line).unwrap();
    for name in Error::NAMES {
        let by_resolve = end_of_share(&failure("ResolveImage", name), &Value::Null);
        assert_eq!(refused(&shares, &by_resolve), names(&shares).contains(&name), "{by_resolve}");
        // Something may be left.
        let left = json!({ "taken": [], "kept": [], "unlisted": { "taken": 0, "left": 0, "kept": 0 },
            "left": [{ "state": "UndoShareKey", "error": "AccessDenied", "cause": "no" }] });
        let half_way = end_of_share(&failure("ShareImage", name), &left);
        assert!(!refused(&shares, &half_way), "{half_way}");

        let looking = end_of_revoke(&failure("JudgeUsage", name), "check");
        assert_eq!(refused(&revokes, &looking), names(&revokes).contains(&name), "{looking}");
        if name != "InvalidRequest" && name != "ImageNotFound" {
            let marked = end_of_revoke(&failure("ResolveRevoke", name), "revoke");
            assert!(!refused(&revokes, &marked), "{marked}");
        }

        let audit = end_of_audit(name);
        assert_eq!(refused(&audits, &audit), names(&audits).contains(&name), "{audit}");
        assert!(!refused(&shares, &audit) && !refused(&shares, &looking) && !refused(&revokes, &by_resolve));
    }
    let crashed = end_of_share(&failure("ResolveImage", "Runtime.ExitError"), &Value::Null);
    assert!(!refused(&shares, &crashed), "{crashed}");
    for line in [crashed, end_of_audit("States.Timeout")] {
        assert!(matches(&pattern("FailedExecutionsFilter"), &line).unwrap(), "{line}");
    }
}

/// What fails is Step Functions' own metric: an execution of which no log says that it was refused rings.
#[test]
fn what_is_refused_is_taken_from_what_failed() {
    let hub = template(HUB);
    for (alarm, machine, metric, filter) in [
        ("FailedSharesAlarm", "ShareAmiStateMachine", "RefusedShares", "RefusedSharesFilter"),
        ("FailedRevokesAlarm", "RevokeShareStateMachine", "RefusedRevokes", "RefusedRevokesFilter"),
        ("FailedAuditsAlarm", "AuditSharesStateMachine", "RefusedAudits", "RefusedAuditsFilter"),
    ] {
        let metrics = &hub["Resources"][alarm]["Properties"]["Metrics"];
        assert_eq!(metrics[0]["Expression"], "failed - FILL(refused, 0)", "{alarm}");
        let dimensions = json!([{ "Name": "StateMachineArn", "Value": { "Ref": machine } }]);
        let failed = json!({ "Namespace": "AWS/States", "MetricName": "ExecutionsFailed", "Dimensions": dimensions });
        let refused = json!({ "Namespace": own(), "MetricName": metric });
        for (place, id, metric) in [(1, "failed", failed), (2, "refused", refused)] {
            let stat = json!({ "Metric": metric, "Stat": "Sum", "Period": 300 });
            assert_eq!(metrics[place], json!({ "Id": id, "ReturnData": false, "MetricStat": stat }), "{alarm}");
        }
        let transformations = &hub["Resources"][filter]["Properties"]["MetricTransformations"];
        assert_eq!(transformations[0]["MetricName"], metric, "{alarm}");
        assert!(pattern(filter).contains(&format!("*:execution:{machine}:*")), "{alarm}");
    }
}

#[test]
fn every_state_machine_has_an_alarm_for_every_way_to_end_badly() {
    let hub = template(HUB);
    let watched = |metric: &str, machine: &str| {
        let dimensions = json!([{ "Name": "StateMachineArn", "Value": { "Ref": machine } }]);
        resources(&hub, "AWS::CloudWatch::Alarm").any(|(_, alarm)| {
            let properties = &alarm["Properties"];
            let stats = properties["Metrics"].as_array().into_iter().flatten();
            let mut all = stats.map(|metric| &metric["MetricStat"]["Metric"]).chain([properties]);
            all.any(|of| of["MetricName"] == metric && of["Dimensions"] == dimensions)
        })
    };
    // A plan changes nothing: whoever asked for it sees why there is none.
    for machine in definition::machines().into_iter().filter(|machine| machine.logical_id != "PlanShareStateMachine") {
        for metric in ["ExecutionsFailed", "ExecutionsTimedOut", "ExecutionsAborted"] {
            assert!(watched(metric, machine.logical_id), "{metric} of {}", machine.logical_id);
        }
    }
}

/// A metric of a name that nobody writes has no data, and an alarm on it never rings.
#[test]
fn every_metric_of_the_stacks_own_that_something_shows_is_made_by_a_filter() {
    let hub = template(HUB);
    let mut made = Set::new();
    for (id, filter) in resources(&hub, "AWS::Logs::MetricFilter") {
        let transformation = &filter["Properties"]["MetricTransformations"][0];
        assert_eq!(transformation["MetricNamespace"], own(), "{id}");
        // CloudWatch Logs takes no default value beside dimensions.
        assert!(transformation["Dimensions"].is_null() || transformation["DefaultValue"].is_null(), "{id}");
        made.insert(transformation["MetricName"].as_str().unwrap().to_owned());
    }
    let dashboard = &hub["Resources"]["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"];
    let dashboard: Value = serde_json::from_str(dashboard.as_str().unwrap()).unwrap();
    let mut shown = Set::new();
    for (_, alarm) in resources(&hub, "AWS::CloudWatch::Alarm") {
        let properties = &alarm["Properties"];
        let stats = properties["Metrics"].as_array().into_iter().flatten();
        let all = stats.map(|metric| &metric["MetricStat"]["Metric"]).chain([properties]);
        let own = all.filter(|metric| metric["Namespace"] == own());
        shown.extend(own.map(|metric| metric["MetricName"].as_str().unwrap().to_owned()));
    }
    assert_eq!(&made - &shown, Set::from(["FailedExecutions".to_owned()]));
    for name in ["FailedExecutions", "LockWaits", "AuditFindings"] {
        assert!(dashboard.to_string().contains(name), "{name}");
    }
    assert!(shown.is_subset(&made), "{shown:?} {made:?}");
}

/// Step Functions logs each try of a task that fails.
#[test]
fn each_look_at_a_lock_that_somebody_else_has_counts() {
    let failed = |error: &str| {
        let details = json!({ "resourceType": "lambda", "resource": "invoke", "error": error, "cause": "" });
        json!({ "id": "5", "type": "TaskFailed", "details": details }).to_string()
    };
    let pattern = pattern("LockWaitsFilter");
    assert!(matches(&pattern, &failed("KeyPoliciesLocked")).unwrap());
    assert!(!matches(&pattern, &failed("Throttled")).unwrap());
}
