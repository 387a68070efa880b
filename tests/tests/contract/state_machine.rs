//! The state machines on their own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::{
    Set,
    definition::{
        self, Machine, Scope, audit_shares, machines, plan_share, revoke_share, share_ami, take_back, undo_share,
    },
};

/// What JSONata and Step Functions bring along, as far as the definition uses it as a value.
const BUILT_IN: [&str; 1] = ["states"];

/// What a lock that is held answers whoever wants it.
const LOCKED: &str = "DynamoDB.ConditionalCheckFailedException";

fn is_undo(state: &str) -> bool {
    state.starts_with("Undo")
}

#[test]
fn every_transition_has_a_target() {
    for Scope { map, start_at, states } in machines().iter().flat_map(Machine::scopes) {
        assert!(states.contains_key(&start_at), "{map:?} starts at {start_at}, which is not there");
        for (name, state) in &states {
            for target in definition::transitions(state) {
                assert!(states.contains_key(&target), "{name} goes to {target}, which is not in {map:?}");
            }
        }
    }
}

#[test]
fn every_state_is_reachable() {
    for Scope { map, start_at, states } in machines().iter().flat_map(Machine::scopes) {
        let all: Set = states.keys().cloned().collect();
        let reached = reached(&Scope { map: map.clone(), start_at: start_at.clone(), states }, &start_at, "");
        assert_eq!(all, reached, "in {map:?}");
    }
}

/// The states at and after `from`, on ways that do not go through `without`.
fn reached(scope: &Scope, from: &str, without: &str) -> Set {
    let mut reached = BTreeSet::new();
    let mut waiting = vec![from.to_owned()];
    while let Some(name) = waiting.pop() {
        if name != without && reached.insert(name.clone()) {
            waiting.extend(definition::transitions(&scope.states[&name]));
        }
    }
    reached
}

/// The states that lead to `to`, also after an error.
fn leading_to(scope: &Scope, to: &str) -> Vec<String> {
    let leads = |state: &Value| definition::transitions(state).iter().any(|next| next == to);
    scope.states.iter().filter(|(_, state)| leads(state)).map(|(name, _)| name.clone()).collect()
}

#[test]
fn every_state_says_where_it_goes_or_ends() {
    for (name, state) in definition::all_states() {
        let ways = ["Next", "End", "Choices"].iter().filter(|way| !state[**way].is_null()).count();
        let last = ["Succeed", "Fail"].contains(&state["Type"].as_str().unwrap());
        assert_eq!(ways, usize::from(!last), "{name}");
    }
}

#[test]
fn expressions_are_jsonata_and_whole_strings() {
    for machine in machines() {
        assert_eq!(machine.whole["QueryLanguage"], "JSONata");
        for text in definition::strings(&machine.whole) {
            let expression = text.starts_with("{%") && text.ends_with("%}");
            assert_eq!(expression, text.contains("{%") || text.contains("%}"), "{text}");
        }
    }
}

#[test]
fn every_machine_and_every_task_ends_in_time() {
    for machine in machines() {
        assert!(machine.whole["TimeoutSeconds"].as_u64().is_some_and(|seconds| seconds <= 31_536_000));
    }
    for (name, state) in definition::all_states() {
        if state["Type"] == "Task" {
            assert!(state["TimeoutSeconds"].as_u64().is_some_and(|seconds| seconds > 0), "{name}");
        }
    }
}

#[test]
fn every_task_has_a_payload_of_its_own() {
    for (name, state) in definition::all_tasks() {
        let payload = state["Arguments"]["Payload"].as_object().unwrap_or_else(|| panic!("{name} has no Payload"));
        // These two make the name that the others are given.
        let first = ["ResolveImage", "ResolveRevoke"].iter().any(|first| name.ends_with(first));
        let field = if first { "id" } else { "execution" };
        assert!(payload.contains_key(field), "{name} does not say which execution it works for");
    }
}

#[test]
fn every_task_is_retried_with_a_longest_delay_and_with_jitter_but_where_time_must_pass() {
    for (name, state) in definition::all_states() {
        if state["Type"] != "Task" {
            continue;
        }
        let retriers = state["Retry"].as_array().unwrap_or_else(|| panic!("{name} has no Retry"));
        assert!(!retriers.is_empty(), "{name}");
        for retrier in retriers {
            let stale = definition::strings(&retrier["ErrorEquals"]).contains(&"NotYetVisible")
                && AFTER_STALE_READS.iter().any(|state| name.ends_with(state));
            assert_eq!(retrier["JitterStrategy"], if stale { "NONE" } else { "FULL" }, "{name}");
            assert!(retrier["MaxDelaySeconds"].as_u64().is_some_and(|seconds| seconds <= 60), "{name}");
            let errors = definition::strings(&retrier["ErrorEquals"]);
            let waits = stale || errors == [LOCKED] || errors == ["KeyPoliciesLocked"];
            assert!(waits || retrier["MaxAttempts"].as_u64().is_some_and(|attempts| attempts <= 10), "{name}");
        }
    }
}

/// AWS's advice for a function that is called by a state machine ("Handle transient Lambda service
/// exceptions", Step Functions developer guide), and ours.
#[test]
fn every_task_is_retried_when_trying_again_may_help() {
    for (name, state) in definition::all_tasks() {
        let retried = names(&state["Retry"]);
        for error in [
            "Lambda.ServiceException",
            "Lambda.AWSLambdaException",
            "Lambda.SdkClientException",
            "Lambda.TooManyRequestsException",
            "Throttled",
            "Unavailable",
            "NotYetVisible",
        ] {
            assert!(retried.contains(error), "{name} is not retried after {error}");
        }
    }
}

/// The optimised integration's names begin with `DynamoDB`, those of the SDK's with `DynamoDb` ("Call DynamoDB APIs with
/// Step Functions", developer guide). What its client has no type for, a 503 for instance, has the name of the client's
/// own exception.
#[test]
fn every_call_of_dynamodb_is_retried_when_trying_again_may_help() {
    for (name, state) in machines().iter().flat_map(|machine| machine.calls("dynamodb:")) {
        let retried = names(&state["Retry"]);
        for error in [
            "DynamoDB.ThrottlingException",
            "DynamoDB.ProvisionedThroughputExceededException",
            "DynamoDB.RequestLimitExceeded",
            "DynamoDB.InternalServerErrorException",
            "DynamoDB.AmazonDynamoDBException",
            "DynamoDB.SdkClientException",
            "States.Timeout",
        ] {
            assert!(retried.contains(error), "{name} is not retried after {error}");
        }
    }
}

#[test]
fn only_an_undo_is_retried_after_any_error() {
    for (name, state) in machines().iter().flat_map(Machine::tasks) {
        assert_eq!(names(&state["Retry"]).contains("States.ALL"), is_undo(&name), "{name}");
    }
}

/// What catches whatever no Catch before it names.
fn last_catch(state: &Value) -> &Value {
    let last = state["Catch"].as_array().and_then(|catches| catches.last()).unwrap();
    assert_eq!(last["ErrorEquals"], json!(["States.ALL"]));
    last
}

/// The Catch that names `error`.
fn catch<'s>(state: &'s Value, error: &str) -> &'s Value {
    let mut catches = state["Catch"].as_array().into_iter().flatten();
    let found = catches.find(|catch| catch["ErrorEquals"] == json!([error]));
    found.unwrap_or_else(|| panic!("{error} is not caught"))
}

/// Where it happens, or by the Map that it happens in.
#[test]
fn every_failure_is_caught() {
    let catches = |state: &Value| names(&state["Catch"]).contains("States.ALL");
    for machine in machines() {
        for Scope { map, states, .. } in machine.scopes() {
            let outside = map.is_some_and(|map| catches(&machine.state(&map)));
            for (name, state) in states {
                let fails = ["Task", "Map"].contains(&state["Type"].as_str().unwrap());
                assert!(!fails || outside || catches(&state), "{}: {name}", machine.path);
            }
        }
    }
}

/// Step Functions cancels the other iterations of a Map that fails: what gives, or takes back, must
/// not fail it.
#[test]
fn no_iteration_that_calls_a_function_fails_its_map() {
    for (name, state) in machines().iter().flat_map(Machine::tasks) {
        assert!(names(&state["Catch"]).contains("States.ALL"), "{name}");
    }
}

#[test]
fn nothing_is_taken_back_but_by_take_back() {
    let mut callers: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for machine in machines() {
        for (_, state) in machine.tasks().into_iter().filter(|(name, _)| is_undo(name)) {
            let function = state["Arguments"]["FunctionName"].as_str().unwrap().to_owned();
            callers.entry(function).or_default().push(machine.path);
        }
    }
    assert!(callers.len() >= 7, "{callers:?}");
    for (function, callers) in callers {
        assert_eq!(callers, [take_back().path], "{function}");
    }
}

#[test]
fn an_undo_that_fails_is_remembered_and_the_next_one_runs() {
    let machine = take_back();
    let (_, maps) = split(&machine);
    let in_targets: Set = maps.iter().flat_map(|map| map.states.keys().cloned()).collect();
    let mut seen = 0;
    for (name, state) in machine.states().into_iter().filter(|(name, _)| is_undo(name)) {
        let caught = last_catch(&state);
        assert_eq!(caught["Next"], state["Next"], "{name}");
        let list = if in_targets.contains(&name) { "targetLeft" } else { "left" };
        let remembered = definition::strings(&caught["Assign"][list]);
        let [remembered] = remembered[..] else { panic!("{name} remembers {remembered:?}") };
        for part in
            ["$states.context.State.Name", "$states.errorOutput.Error", "$states.errorOutput.Cause : '', 0, 500)"]
        {
            assert!(remembered.contains(part), "{name}: {remembered}");
        }
        assert_eq!(remembered.contains("'accountId'"), in_targets.contains(&name), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 8);
}

/// What a target can see, it can use: the image goes first, and the notes say less when all is done.
#[test]
fn a_take_back_goes_from_the_image_to_the_notes_and_always_ends_with_a_result() {
    let machine = take_back();
    let (own, maps) = split(&machine);
    let order = [
        "UndoShareImage",
        "UndoShareSnapshots",
        "UndoTargets",
        "UndoGrantKeys",
        "UndoShareKey",
        "RewriteNotes",
        "FinishTakeBack",
    ];
    for pair in order.windows(2) {
        assert_eq!(definition::transitions(&own.states[pair[0]]), [pair[1], pair[1]], "{}", pair[0]);
    }
    let chain = ["UndoLaunchInstance", "UndoCopyImage", "UndoGrantPrincipals", "FinishTarget"];
    for pair in chain.windows(2) {
        assert_eq!(definition::transitions(&maps[0].states[pair[0]]), [pair[1], pair[1]], "{}", pair[0]);
    }
    assert!(own.states.values().all(|state| state["Type"] != "Fail"));
    // What the functions took is added up.
    for (name, state) in machine.states().into_iter().filter(|(name, _)| is_undo(name)) {
        let list = if chain.contains(&name.as_str()) { "targetTaken" } else { "taken" };
        assert!(definition::strings(&state["Assign"][list])[0].contains("$states.result."), "{name}");
    }
}

/// Nobody knows by then whether something is there to be noted, and two take-backs at once do no harm.
#[test]
fn a_take_back_goes_on_where_it_cannot_be_noted() {
    let note = take_back().state("NoteTakeBack");
    assert_eq!(definition::transitions(&note), ["UndoShareImage", "UndoShareImage"]);
    assert_eq!(note["Arguments"]["ConditionExpression"], "attribute_exists(id)");
    let attribute = note["Arguments"]["UpdateExpression"].as_str().unwrap().split_whitespace().nth(1).unwrap();
    let read = undo_share().state("TakeShare")["Assign"]["child"].clone();
    assert!(read.as_str().unwrap().contains(&format!("$states.result.Attributes.{attribute}.S")), "{read}");
}

/// What may be taken is decided before, each time.
#[test]
fn take_back_is_started_after_a_decision_and_by_all_in_the_same_way() {
    let mut first: Option<Value> = None;
    for (machine, decided, asked, after) in [
        (share_ami(), "ResolveUndo", "ResolveUndo", "CheckTakeBack"),
        (undo_share(), "ResolveUndo", "ResolveUndo", "CheckTakeBack"),
        (revoke_share(), "ChooseRound", "ResolveRevoke", "CheckRound"),
    ] {
        let starts = machine.calls("states:");
        assert_eq!(starts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["TakeBack"], "{}", machine.path);
        let mut state = starts[0].1.clone();
        let (own, _) = split(&machine);
        assert_eq!(leading_to(&own, "TakeBack"), [decided], "{}", machine.path);
        assert_eq!(definition::transitions(&state), [after, after], "{}", machine.path);
        assert_eq!(own.states[after]["Choices"][0]["Next"], asked, "{}", machine.path);
        assert_eq!(state["Arguments"]["StateMachineArn"], "${TakeBackStateMachineArn}");
        // Whoever gives an execution a name cannot start a second one of it.
        assert!(state["Arguments"]["Name"].is_null());
        for field in ["Comment", "Arguments", "Next"] {
            state.as_object_mut().unwrap().remove(field);
        }
        state["Catch"][0]["Next"] = Value::Null;
        assert_eq!(*first.get_or_insert_with(|| state.clone()), state, "{}", machine.path);
    }
    let state = first.unwrap();
    assert_eq!(state["Resource"], "arn:aws:states:::states:startExecution.sync:2");
    assert_eq!(state["Assign"], json!({ "last": "{% $states.result.Output %}" }));
    let caught = last_catch(&state)["Assign"]["last"].clone();
    let left = definition::strings(&caught["left"]);
    assert!(left.len() == 1 && left[0].contains("$states.errorOutput.Cause"), "{left:?}");
    // One that has run is not run again: what it answers, or does not, is what is known of it.
    assert!(names(&state["Retry"]).iter().all(|error| error.starts_with("StepFunctions.")));
}

#[test]
fn a_take_back_ends_before_whoever_waits_for_it() {
    let own = take_back().whole["TimeoutSeconds"].as_u64().unwrap();
    for machine in [share_ami(), undo_share(), revoke_share()] {
        let waits = machine.state("TakeBack")["TimeoutSeconds"].as_u64().unwrap();
        assert!(own < waits && 2 * waits <= machine.whole["TimeoutSeconds"].as_u64().unwrap(), "{}", machine.path);
    }
}

/// What a round was told of the last take-back it has added up: it is not told again.
#[test]
fn no_answer_of_a_take_back_is_counted_twice() {
    for (machine, decides) in
        [(share_ami(), "ResolveUndo"), (undo_share(), "ResolveUndo"), (revoke_share(), "ResolveRevoke")]
    {
        let state = machine.state(decides);
        assert_eq!(state["Arguments"]["Payload"]["last"], "{% $last %}", "{}", machine.path);
        assert_eq!(state["Assign"].get("last"), Some(&Value::Null), "{}", machine.path);
    }
    for machine in [share_ami(), undo_share()] {
        let caught = last_catch(&machine.state("ResolveUndo"))["Assign"]["last"].clone();
        assert!(caught.as_str().unwrap().contains("$append($last.left, "), "{}: {caught}", machine.path);
    }
}

/// What is noted can be taken back; and a permission without a note cannot come about.
#[test]
fn nobody_is_given_anything_before_it_is_noted() {
    let (own, _) = split(&share_ami());
    let gives = ["ShareKey", "GrantKeys", "ShareSnapshots", "ShareImage", "ShareWithTargets"];
    for noted in ["RecordShare", "NoteTargets"] {
        let unnoted = reached(&own, &own.start_at, noted);
        assert!(gives.iter().all(|state| !unnoted.contains(*state)), "not by {noted}: {unnoted:?}");
    }
    assert_eq!(own.states["NoteTargets"]["Items"], own.states["ShareWithTargets"]["Items"]);
}

/// Where shares must be planned, each plan is for one execution, and that keeps it when it is tried again or redriven.
#[test]
fn a_plan_that_must_be_there_is_claimed_before_anything_is_noted() {
    let (own, _) = split(&share_ami());
    let claiming = json!({ "Condition": "{% $claim %}", "Next": "ClaimPlan" });
    assert_eq!(own.states["CheckPlan"]["Choices"][1], claiming);
    let claim = &own.states["ClaimPlan"];
    let condition = "usedBy = :me OR expiresAt > :now AND attribute_not_exists(usedBy)";
    assert_eq!(claim["Arguments"]["ConditionExpression"], condition);
    assert_eq!(claim["Arguments"]["UpdateExpression"], "SET usedBy = :me");
    let caught = catch(claim, LOCKED);
    assert_eq!(caught["Assign"]["failure"]["error"], "PlanRequired");
    assert_eq!((&caught["Next"], &last_catch(claim)["Next"]), (&json!("Report"), &json!("Report")));
    assert_eq!(claim["Next"], "CheckWork");
}

/// Before the Map, and where the Map itself fails, nobody can say how far which target has come.
#[test]
fn what_fails_before_the_targets_fails_for_all_of_them() {
    let (own, _) = split(&share_ami());
    for name in ["NoteTargets", "ShareKey", "GrantKeys", "ShareSnapshots", "ShareImage", "ShareWithTargets"] {
        for caught in own.states[name]["Catch"].as_array().unwrap() {
            assert_eq!(caught["Next"], "ResolveUndo", "{name}");
            assert!(!caught["Assign"]["failure"].is_null(), "{name}");
            assert!(caught["Assign"].get("failed").is_none(), "{name}");
        }
    }
    assert!(own.states["ResolveImage"]["Assign"]["failed"].is_null());
}

#[test]
fn targets_that_failed_are_taken_back_alone_or_with_all_or_not_at_all() {
    let check = share_ami().state("CheckTargets");
    let choices: Vec<(&str, &str)> = check["Choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| (choice["Condition"].as_str().unwrap(), choice["Next"].as_str().unwrap()))
        .collect();
    let expected = [
        ("{% $count($results.failure) = 0 %}", "SettleShare"),
        ("{% $resolution.onFailure = 'keep' %}", "SettleShare"),
        ("{% $resolution.onFailure = 'undoAll' %}", "ResolveUndo"),
    ];
    assert_eq!(choices, expected);
    let failure = json!("{% ($results.failure)[0] %}");
    for choice in 1..=2 {
        assert_eq!(check["Choices"][choice]["Assign"], json!({ "failure": failure }));
    }
    assert_eq!(check["Default"], "ResolveUndo");
    let failed = "{% [$results[$exists(failure)].accountId] %}";
    assert_eq!(check["Assign"], json!({ "failure": failure, "failed": failed }));
}

/// A share and a take-back of one target at once end in an order: the note is there, and nobody has marked it.
#[test]
fn a_target_ends_with_its_note_confirmed_or_fails() {
    let (_, maps) = split(&share_ami());
    let map = maps.iter().find(|map| map.map.as_deref() == Some("ShareWithTargets")).unwrap();
    let ends: Vec<&String> =
        map.states.iter().filter(|(_, state)| state["End"] == true).map(|(name, _)| name).collect();
    assert_eq!(ends, ["ConfirmTarget", "FailTarget"]);
    let confirm = &map.states["ConfirmTarget"];
    let condition = confirm["Arguments"]["ConditionExpression"].as_str().unwrap();
    assert_eq!(condition, "attribute_exists(id) AND attribute_not_exists(going)");
    let caught = catch(confirm, LOCKED);
    assert_eq!((&caught["Next"], &last_catch(confirm)["Next"]), (&json!("FailTarget"), &json!("FailTarget")));
    assert_eq!(caught["Assign"]["targetFailure"]["error"], "ShareUndone");
}

/// An execution that ends FAILED is taken back by undo-share, but where it has said that it has seen to its end itself.
#[test]
fn every_way_to_an_end_after_the_note_passes_settle_share() {
    let (own, _) = split(&share_ami());
    let unsettled = reached(&own, "RecordShare", "SettleShare");
    for name in ["Report", "Notify", "FailShare", "FinishShare"] {
        assert!(!unsettled.contains(name), "{name} is reached without SettleShare");
    }
    let ends = |name: &String| ["Succeed", "Fail"].contains(&own.states[name]["Type"].as_str().unwrap());
    assert!(!unsettled.iter().any(ends), "{unsettled:?}");
    // And where nothing was noted there is nothing to settle: CheckReport goes there only where something was.
    let mut unnoted = own;
    unnoted.states["CheckReport"]["Choices"] = json!([]);
    let unnoted = reached(&unnoted, &unnoted.start_at, "RecordShare");
    assert!(!unnoted.contains("SettleShare") && !unnoted.contains("ResolveUndo"), "{unnoted:?}");
}

/// What cannot be settled may be taken back by somebody else; what is taken back is not settled any more.
#[test]
fn a_share_that_cannot_be_settled_or_reported_is_taken_back() {
    let machine = share_ami();
    let check = machine.state("CheckSettled");
    let choice = &check["Choices"][0];
    assert_eq!((&choice["Condition"], &choice["Next"]), (&json!("{% $failure = null %}"), &json!("ResolveUndo")));
    assert_eq!(choice["Assign"], json!({ "failure": "{% $settleFailure %}", "failed": null }));
    assert_eq!(check["Default"], "Report");
    let settle = machine.state("SettleShare");
    for caught in settle["Catch"].as_array().unwrap() {
        assert!(caught["Next"] == "CheckSettled" && !caught["Assign"]["settleFailure"].is_null(), "{caught}");
    }
    let report = machine.state("CheckReport")["Choices"][0].clone();
    assert_eq!(report["Condition"], "{% $recorded and $failure = null and $resolution.onFailure != 'keep' %}");
    assert_eq!(
        (&report["Next"], &report["Assign"]),
        (&json!("ReopenShare"), &json!({ "failure": "{% $reportFailure %}" }))
    );
    let reopen = machine.state("ReopenShare");
    assert_eq!(reopen["Arguments"]["UpdateExpression"], "REMOVE settled");
    assert_eq!(definition::transitions(&reopen), ["ResolveUndo", "ResolveUndo"]);
}

/// Nobody loses anything while somebody may still be asked.
#[test]
fn a_revoke_asks_before_it_takes_back() {
    let (own, _) = split(&revoke_share());
    let choices = own.states["ChooseRound"]["Choices"].as_array().unwrap();
    let chosen: Vec<(&str, &str)> = choices
        .iter()
        .map(|choice| (choice["Condition"].as_str().unwrap(), choice["Next"].as_str().unwrap()))
        .collect();
    let expected = [
        ("{% $thisRound.askUsage %}", "CheckUsage"),
        ("{% $soFar.phase = 'check' %}", "CheckLooked"),
        ("{% $thisRound.takeBack = null %}", "CheckRound"),
    ];
    assert_eq!(chosen, expected);
    assert_eq!(own.states["ChooseRound"]["Default"], "TakeBack");
    assert_eq!(own.states["CheckPlan"]["Assign"], json!({ "phase": "revoke" }));
    let begins_to_take: Vec<&String> = own
        .states
        .iter()
        .filter(|(_, state)| definition::strings(state).contains(&"revoke"))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(begins_to_take, ["CheckPlan"]);
}

/// How long a state waits before its last attempt after `error`, in seconds, at the least: what has full jitter may not
/// wait at all, but half of its delays on average.
fn waited(state: &Value, error: &str, jittered: bool) -> f64 {
    let retry = state["Retry"].as_array().into_iter().flatten().find(|retry| names_of(retry).contains(&error)).unwrap();
    assert_eq!(retry["JitterStrategy"], if jittered { "FULL" } else { "NONE" }, "{error}");
    let number = |field: &str| retry[field].as_f64().unwrap();
    let delay =
        |attempt: i32| (number("IntervalSeconds") * number("BackoffRate").powi(attempt)).min(number("MaxDelaySeconds"));
    let attempts = retry["MaxAttempts"].as_i64().unwrap() as i32;
    let all: f64 = (0..attempts).map(delay).sum();
    if jittered { all / 2.0 } else { all }
}

fn names_of(retry: &Value) -> Vec<&str> {
    definition::strings(&retry["ErrorEquals"])
}

/// The states whose functions believe what they read, or that nobody answers, only when the time for reads that are out
/// of date is over.
const AFTER_STALE_READS: [&str; 4] = ["ShareKey", "UndoShareKey", "UndoGrantKeys", "ResolveUndo"];

/// The states in which key policies are written; a policy has no version, so the functions take a lock.
const WRITERS: [&str; 2] = ["ShareKey", "UndoShareKey"];

/// Fifty executions want it at once, and one of them may have crashed with it: its lease is over a minute after the
/// function's time-out.
#[test]
fn whoever_waits_for_the_lock_waits_longer_than_many_leases() {
    for (name, state) in machines().iter().flat_map(Machine::tasks).filter(|(name, _)| WRITERS.contains(&name.as_str()))
    {
        let lease = state["TimeoutSeconds"].as_f64().unwrap() + 60.0;
        assert!(waited(&state, "KeyPoliciesLocked", true) > 5.0 * lease, "{name}");
    }
}

/// A read may be out of date for the time that core says, and is believed after it: the last attempt comes later.
#[test]
fn whoever_reads_a_policy_that_may_be_out_of_date_looks_again_after_its_time() {
    let settings = ami_share_core::settings::Settings::from_variables(|name| match name {
        "SOURCE_ACCOUNT_ID" => Some("111111111111".to_owned()),
        "RECORD_TABLE_ARN" | "STALE_READ_SECONDS" | "ALLOWED_SOURCES" | "ALLOWED_TARGETS" | "ORGANIZATIONS_READER" => {
            None
        }
        _ => Some("x".to_owned()),
    });
    let stale_reads = settings.unwrap().stale_reads.as_secs_f64();
    for (name, state) in machines().iter().flat_map(Machine::tasks) {
        if WRITERS.contains(&name.as_str()) {
            assert!(waited(&state, "NotYetVisible", false) > stale_reads + 60.0, "{name}");
        } else if name == "UndoGrantKeys" {
            assert!(waited(&state, "NotYetVisible", false) > stale_reads / 10.0 + 60.0, "{name}");
        } else if name == "ResolveUndo" {
            for error in ["Throttled", "Unavailable", "NotYetVisible"] {
                assert!(waited(&state, error, false) > stale_reads / 2.0 + 60.0, "{name}: {error}");
            }
        }
    }
}

/// It counts the attempts of every retrier, and says nothing of how long ago something was.
#[test]
fn nothing_is_decided_by_how_often_a_state_was_tried() {
    for machine in machines() {
        assert!(!machine.whole.to_string().contains("RetryCount"), "{}", machine.path);
    }
}

/// An execution that is redriven may be taken back at the same time: what undo-share has claimed, and
/// what it has taken back, share-ami does not call shared. What share-ami has settled undo-share does not claim.
#[test]
fn a_redriven_execution_and_its_undo_know_of_each_other() {
    let (share_ami, undo_share) = (share_ami(), undo_share());
    let claim = undo_share.state("ClaimShare");
    assert_eq!(claim["Arguments"]["UpdateExpression"], "SET undoneBy = :me");
    assert_eq!(claim["Arguments"]["ConditionExpression"], "attribute_exists(id) AND attribute_not_exists(settled)");
    assert_eq!(catch(&claim, LOCKED)["Next"], "CheckStopped");
    let check = undo_share.state("CheckShare");
    let stopped = "$status in ['ABORTED', 'TIMED_OUT', 'FAILED']";
    let (same, again) = (&check["Choices"][0], &check["Choices"][1]);
    assert_eq!(same["Condition"], format!("{{% {stopped} and $redriven = $drive %}}"));
    assert_eq!((&same["Next"], &check["Default"]), (&json!("TakeShare"), &json!("ReleaseShare")));
    // Its functions may still run: they are waited for anew.
    assert_eq!(again["Condition"], format!("{{% {stopped} %}}"));
    assert_eq!((&again["Next"], &again["Assign"]["drive"]), (&json!("WaitForFunctions"), &json!("{% $redriven %}")));
    let take = undo_share.state("TakeShare");
    assert_eq!((&take["Next"], &catch(&take, LOCKED)["Next"]), (&json!("ChooseTakeBack"), &json!("FinishUndoShare")));
    assert_eq!(take["Arguments"]["UpdateExpression"], "SET taken = :taken");
    assert_eq!(undo_share.state("ReleaseShare")["Arguments"]["UpdateExpression"], "REMOVE undoneBy");
    for (state, condition) in [
        ("TakeShare", "undoneBy = :me"),
        ("ReleaseShare", "undoneBy = :me AND attribute_not_exists(taken)"),
        ("ForgetShare", "undoneBy = :me"),
    ] {
        let state = undo_share.state(state);
        assert_eq!(state["Arguments"]["ConditionExpression"], condition);
        assert_eq!(catch(&state, LOCKED)["Next"], "FinishUndoShare");
    }

    let condition = |state: &str| share_ami.state(state)["Arguments"]["ConditionExpression"].clone();
    assert_eq!(condition("RecordShare"), "attribute_not_exists(undoneBy)");
    let (noted, unnoted) =
        ("attribute_exists(id) AND attribute_not_exists(undoneBy)", "attribute_not_exists(undoneBy)");
    assert_eq!(condition("SettleShare"), format!("{{% $recorded ? '{noted}' : '{unnoted}' %}}"));
    let settle = share_ami.state("SettleShare");
    assert!(settle["Arguments"]["UpdateExpression"].as_str().unwrap().starts_with("SET settled = "));
    assert_eq!(catch(&settle, LOCKED)["Assign"]["settleFailure"]["error"], "ShareUndone");

    // Each waits for the other: RecordShare and SettleShare longer than an undo-share that lets go.
    let wait = undo_share.state("WaitForFunctions")["Seconds"].as_u64().unwrap();
    for state in ["RecordShare", "SettleShare"] {
        let retry = share_ami.state(state)["Retry"][0].clone();
        assert_eq!(retry["ErrorEquals"], json!([LOCKED]), "{state}");
        let number = |field: &str| retry[field].as_u64().unwrap();
        let waited = number("MaxAttempts") * number("MaxDelaySeconds") / 2;
        assert!(waited > 2 * wait, "{state} waits {waited} s");
    }
}

/// Step Functions stops an execution's children as well as it can, and their functions not at all.
#[test]
fn undo_share_stops_the_take_back_of_the_share_and_waits_for_its_functions() {
    let machine = undo_share();
    let choose = machine.state("ChooseTakeBack");
    assert_eq!(choose["Choices"][0], json!({ "Condition": "{% $child != null %}", "Next": "StopTakeBack" }));
    assert_eq!(choose["Default"], "ResolveUndo");
    let stop = machine.state("StopTakeBack");
    assert_eq!(stop["Arguments"]["ExecutionArn"], "{% $child %}");
    assert_eq!(definition::transitions(&stop), ["WaitForTakeBack", "WaitForTakeBack"]);
    let machines = machines();
    let functions = machines.iter().flat_map(Machine::tasks);
    let longest = functions.map(|(_, state)| state["TimeoutSeconds"].as_u64().unwrap()).max().unwrap();
    for wait in ["WaitForFunctions", "WaitForTakeBack"] {
        assert!(machine.state(wait)["Seconds"].as_u64().unwrap() > longest, "{wait}");
    }
    assert_eq!(machine.state("WaitForTakeBack")["Next"], "ResolveUndo");
}

#[test]
fn an_input_that_names_no_share_is_an_error_by_name() {
    let machine = undo_share();
    assert_eq!(machine.whole["StartAt"], "CheckEvent");
    let check = machine.state("CheckEvent");
    let choice = &check["Choices"][0];
    assert!(choice["Condition"].as_str().unwrap().contains("':execution:${ShareAmiStateMachineName}:'"), "{choice}");
    // Functions may still run while the note is claimed.
    assert_eq!((&choice["Next"], &check["Default"]), (&json!("ClaimShare"), &json!("FailUndoShare")));
    assert_eq!(check["Assign"]["errorName"], "InvalidRequest");
}

#[test]
fn undo_share_says_how_it_ended_and_fails_where_something_is_left() {
    let machine = undo_share();
    let mut ways = 0;
    for (name, state) in machine.states() {
        let places = state["Catch"].as_array().into_iter().flatten().chain([&state]);
        for place in places.filter(|place| place["Next"] == "FinishUndoShare") {
            assert!(!place["Output"].is_null(), "{name}");
            ways += 1;
        }
    }
    assert_eq!(ways, 5);
    let stopped = machine.state("CheckStopped");
    assert_eq!((&stopped["Default"], &stopped["Output"]), (&json!("FinishUndoShare"), &json!("{% $report %}")));
    assert_eq!(machine.state("ForgetShare")["Output"], "{% $report %}");
    let check = machine.state("CheckLeft");
    assert_eq!(check["Choices"], json!([{ "Condition": "{% $report.left = [] %}", "Next": "ForgetShare" }]));
    assert_eq!((&check["Default"], &check["Assign"]["errorName"]), (&json!("FailUndoShare"), &json!("UndoIncomplete")));
}

/// What one state notes is what others look for and remove.
#[test]
fn all_machines_mean_the_same_records() {
    let (share_ami, undo_share) = (share_ami(), undo_share());
    let key = |machine: &Machine, state: &str, field: &str| {
        let arguments = machine.state(state)["Arguments"][field].clone();
        (arguments["id"]["S"].as_str().unwrap().to_owned(), arguments["part"]["S"].as_str().unwrap().to_owned())
    };
    let (id, part) = key(&share_ami, "RecordShare", "Item");
    let of = |arn: &str| (id.replace("$states.context.Execution.Id", arn), part.clone());
    assert_eq!(key(&undo_share, "ClaimShare", "Key"), of("$states.input.detail.executionArn"));
    for state in ["TakeShare", "ReleaseShare", "ForgetShare"] {
        assert_eq!(key(&undo_share, state, "Key"), of("$executionArn"), "{state}");
    }
    for state in ["SettleShare", "ReopenShare"] {
        assert_eq!(key(&share_ami, state, "Key"), of("$states.context.Execution.Id"), "{state}");
    }
    assert_eq!(key(&take_back(), "NoteTakeBack", "Key"), of("$taking.note"));
    let (id, part) = key(&share_ami, "NoteTarget", "Item");
    assert_eq!(key(&share_ami, "ConfirmTarget", "Key"), (id.replace("$states.input", "$target"), part));
    assert_eq!(key(&share_ami, "ClaimPlan", "Key"), key(&plan_share(), "NotePlan", "Item"));
    let noted = share_ami.state("RecordShare")["Arguments"]["Item"]["resolution"]["S"].clone();
    let read = undo_share.state("ClaimShare")["Assign"]["resolution"].clone();
    assert_eq!(noted, "{% $string($resolution) %}");
    assert_eq!(read, "{% $parse($states.result.Attributes.resolution.S) %}");
    for (name, state) in machines().iter().flat_map(|machine| machine.calls("dynamodb:")) {
        assert_eq!(state["Arguments"]["TableName"], "${RecordTableName}", "{name}");
    }
    // Notes of executions go after the same time, whoever made them.
    let expires = share_ami.state("SettleShare")["Arguments"]["ExpressionAttributeValues"][":expiresAt"].clone();
    assert_eq!(share_ami.state("RecordShare")["Arguments"]["Item"]["expiresAt"], expires);
}

/// AWS refuses a machine that assigns a variable of an outer scope inside a Map; the local engine
/// does not.
#[test]
fn no_map_assigns_a_variable_of_the_machine() {
    for machine in machines() {
        let (machine, maps) = split(&machine);
        let outer = assigned(&machine);
        for map in maps {
            let both: Vec<String> = assigned(&map).intersection(&outer).cloned().collect();
            assert!(both.is_empty(), "{:?} assigns {both:?}", map.map);
        }
    }
}

/// Of which of the two an expression would mean, the documents of Step Functions say nothing.
#[test]
fn no_variable_has_the_name_of_a_function_of_jsonata() {
    // The functions of JSONata 2.0.6, and those of Step Functions.
    const FUNCTIONS: &str = "string length substring substringBefore substringAfter uppercase lowercase trim pad \
        contains split join match replace eval base64encode base64decode encodeUrlComponent encodeUrl \
        decodeUrlComponent decodeUrl number abs floor ceil round power sqrt random formatNumber formatBase \
        formatInteger parseInteger sum max min average boolean not exists count append sort reverse shuffle \
        distinct zip keys lookup spread merge sift each error assert type now millis fromMillis toMillis map \
        filter single reduce partition range hash randomSeed uuid parse states";
    let taken: Set = FUNCTIONS.split_whitespace().map(str::to_owned).collect();
    for scope in machines().iter().flat_map(Machine::scopes) {
        let both: Vec<String> = assigned(&scope).intersection(&taken).cloned().collect();
        assert!(both.is_empty(), "{both:?} are assigned");
    }
}

#[test]
fn every_variable_is_assigned_somewhere() {
    for machine in machines() {
        let (machine, maps) = split(&machine);
        let outer = assigned(&machine);
        check_variables(&machine, &outer);
        for map in maps {
            check_variables(&map, &outer.union(&assigned(&map)).cloned().collect());
        }
    }
}

fn check_variables(scope: &Scope, known: &Set) {
    for (name, state) in &scope.states {
        let mut state = state.clone();
        state.as_object_mut().unwrap().remove("ItemProcessor");
        for text in definition::strings(&state) {
            for variable in variables(text) {
                let found = known.contains(&variable) || BUILT_IN.contains(&variable.as_str());
                assert!(found, "{name} reads ${variable}, which nothing assigns: {text}");
            }
        }
    }
}

/// The names after `$` in an expression, but for those of functions that it calls; a `$` alone is the
/// item at hand.
fn variables(text: &str) -> Vec<String> {
    if !text.starts_with("{%") {
        return vec![];
    }
    text.split('$')
        .skip(1)
        .filter_map(|rest| {
            let name: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            (!name.is_empty() && !rest[name.len()..].starts_with('(')).then_some(name)
        })
        .collect()
}

/// Every variable that a state of the scope assigns, in whichever place it may.
fn assigned(scope: &Scope) -> Set {
    let lists = |state: &Value| -> Vec<Value> {
        let rules =
            ["Choices", "Catch"].into_iter().flat_map(|list| state[list].as_array().cloned().unwrap_or_default());
        rules.chain([state.clone()]).map(|place| place["Assign"].clone()).collect()
    };
    scope
        .states
        .values()
        .flat_map(lists)
        .filter_map(|assign| assign.as_object().cloned())
        .flat_map(|assign| assign.into_iter().map(|(name, _)| name))
        .collect()
}

fn names(rules: &Value) -> Set {
    let rules = rules.as_array().into_iter().flatten();
    rules.flat_map(|rule| definition::strings(&rule["ErrorEquals"])).map(str::to_owned).collect()
}

/// The machine's own states, and those of its Maps.
fn split(machine: &Machine) -> (Scope, Vec<Scope>) {
    let mut scopes = machine.scopes();
    let own = scopes.remove(0);
    (own, scopes)
}

/// It has nothing to undo; the notice is all that it sends, and a failure is one of its notices.
#[test]
fn an_audit_ends_with_a_notice_however_it_ends() {
    let machine = audit_shares();
    let caught = last_catch(&machine.state("AuditShares"))["Next"].clone();
    assert_eq!(caught, "NotifyFailure");
    for (state, next) in [("Notify", "FinishAudit"), ("NotifyFailure", "FailAudit")] {
        let state = machine.state(state);
        assert_eq!(state["Resource"], "arn:aws:states:::sns:publish");
        assert_eq!((&state["Next"], &last_catch(&state)["Next"]), (&json!(next), &json!("FailAudit")));
    }
    assert_eq!(machine.state("Notify")["Arguments"]["Message"], "{% $table %}");
    assert_eq!(machine.state("Notify")["Output"], "{% $report %}");
}
