//! The state machines on their own.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{
    Set,
    definition::{self, Machine, Scope, audit_shares, machines, revoke_share, share_ami, undo_share},
};

/// What JSONata and Step Functions bring along, as far as the definition uses it as a value.
const BUILT_IN: [&str; 2] = ["states", "append"];

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
        let mut reached = BTreeSet::new();
        let mut waiting = vec![start_at];
        while let Some(name) = waiting.pop() {
            if reached.insert(name.clone()) {
                waiting.extend(definition::transitions(&states[&name]));
            }
        }
        let all: Set = states.keys().cloned().collect();
        assert_eq!(all, reached, "in {map:?}");
    }
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
fn every_task_is_retried_with_jitter_and_a_longest_delay() {
    for (name, state) in definition::all_states() {
        if state["Type"] != "Task" {
            continue;
        }
        let retriers = state["Retry"].as_array().unwrap_or_else(|| panic!("{name} has no Retry"));
        assert!(!retriers.is_empty(), "{name}");
        for retrier in retriers {
            assert_eq!(retrier["JitterStrategy"], "FULL", "{name}");
            assert!(retrier["MaxDelaySeconds"].as_u64().is_some_and(|seconds| seconds <= 60), "{name}");
            let waits = retrier["ErrorEquals"] == json!([LOCKED]);
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

/// It has left nothing: an undo would take away what somebody else gave the same account meanwhile.
#[test]
fn a_plan_that_does_not_hold_is_not_undone_and_gives_the_lock_back() {
    let machine = share_ami();
    assert_eq!(catch(&machine.state("ShareKey"), "PlanChanged")["Next"], "UnlockKeys");
    let unlock = machine.state("UnlockKeys");
    assert_eq!((&unlock["Next"], &last_catch(&unlock)["Next"]), (&json!("ChooseSnapshots"), &json!("ChooseSnapshots")));
    let choice = machine.state("ChooseSnapshots")["Choices"][0].clone();
    assert_eq!((&choice["Condition"], &choice["Next"]), (&json!("{% $failure != null %}"), &json!("Report")));
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

/// A call that failed may have acted: the first to be undone is the step itself.
#[test]
fn a_step_that_fails_is_undone_first() {
    let (machine, _) = split(&share_ami());
    let undone: Vec<&String> = machine.states.keys().filter(|name| is_undo(name)).collect();
    assert!(undone.len() >= 4, "{undone:?}");
    for (name, state) in &machine.states {
        let undo = format!("Undo{name}");
        if machine.states.contains_key(&undo) {
            let caught = last_catch(state)["Next"].as_str().unwrap();
            assert_eq!(first_undo(&machine, caught, name), undo, "{name}");
        }
    }
}

/// The first undo at or after `state`, where `failed` is the state that failed: before the keys'
/// stands their lock.
fn first_undo(machine: &Scope, state: &str, failed: &str) -> String {
    let mut name = state.to_owned();
    while !is_undo(&name) {
        let state = &machine.states[&name];
        let next = if name == "ChooseUndo" {
            let after_this = format!("{{% $failure.state = '{failed}' %}}");
            let mut choices = state["Choices"].as_array().into_iter().flatten();
            choices.find(|choice| choice["Condition"] == after_this).map_or(&state["Default"], |choice| &choice["Next"])
        } else {
            [&state["Next"], &state["Choices"][0]["Next"]].into_iter().find(|next| next.is_string()).unwrap_or(state)
        };
        let next = next.as_str();
        name = next.unwrap_or_else(|| panic!("{name} does not lead to an undo")).to_owned();
    }
    name
}

#[test]
fn an_undo_that_fails_is_remembered_and_the_next_one_runs() {
    for (name, state) in machines().iter().flat_map(Machine::tasks).filter(|(name, _)| is_undo(name)) {
        let caught = last_catch(&state);
        assert_eq!(caught["Next"], state["Next"], "{name}");
        let remembered = definition::strings(&caught["Assign"]);
        assert!(remembered.iter().any(|text| text.contains("$states.errorOutput.Error")), "{name}");
    }
}

/// An execution that was stopped is taken back as one that failed.
#[test]
fn both_machines_undo_the_same_way() {
    let chain = |machine: &Machine| {
        let states = machine.whole["States"].as_object().unwrap().clone();
        let chain = states.into_iter().skip_while(|(name, _)| name != "ResolveUndo");
        chain.take_while(|(name, _)| name != "Report").collect::<Vec<_>>()
    };
    let (share_ami, undo_share) = (chain(&share_ami()), chain(&undo_share()));
    assert!(share_ami.len() >= 7, "{share_ami:?}");
    assert!(share_ami.iter().any(|(name, _)| name == "UnlockUndoneKeys"), "{share_ami:?}");
    assert_eq!(share_ami, undo_share);
}

/// What other images have come to need is known before anything is taken back, and stays.
#[test]
fn nothing_is_taken_back_but_what_resolve_undo_leaves() {
    for machine in [share_ami(), undo_share()] {
        let (own, _) = split(&machine);
        let chain: Vec<&String> = own.states.keys().skip_while(|name| *name != "ResolveUndo").collect();
        let chain: Set = chain.into_iter().take_while(|name| *name != "Report").cloned().collect();
        assert!(own.states.keys().filter(|name| is_undo(name)).all(|name| chain.contains(name)), "{chain:?}");
        for (name, state) in own.states.iter().filter(|(name, _)| !chain.contains(*name)) {
            for next in definition::transitions(state).iter().filter(|next| chain.contains(*next)) {
                assert_eq!(next, "ResolveUndo", "{}: {name} goes past it", machine.path);
            }
        }
        assert_eq!(own.states["UndoTargets"]["Items"], "{% $undo.targets %}");
        let payload = |state: &str| own.states[state]["Arguments"]["Payload"].clone();
        assert_eq!(payload("UndoShareKey")["keys"], "{% $undo.keyChanges %}");
        assert_eq!(payload("UndoGrantKeys")["keys"], "{% $undo.grantChanges %}");
        assert_eq!(payload("UndoShareSnapshots")["snapshots"], "{% $undo.snapshotChanges %}");
        assert_eq!(payload("UndoShareImage")["accountIds"], "{% $undo.launchPermissions %}");
    }
}

/// revoke-share undoes with the same states, but for whose changes they are and in which order.
#[test]
fn what_is_revoked_is_undone_as_what_failed() {
    let mut compared = 0;
    for (name, state) in
        revoke_share().states().into_iter().filter(|(name, _)| is_undo(name) || name.to_lowercase().contains("lock"))
    {
        if name == "UndoTargets" {
            continue;
        }
        let undone = share_ami().state(&name);
        for field in ["Type", "Resource", "TimeoutSeconds", "Retry", "Assign"] {
            let (undone, revoked) = (&undone[field], &state[field]);
            assert!(undone == revoked || (field == "Assign" && name == "UndoLaunchInstance"), "{name}: {field}");
        }
        let source = |text: String| text.replace("$resolution.", "$thisRound.").replace("$undo.", "$thisRound.");
        if state["Resource"] != "arn:aws:states:::lambda:invoke" {
            assert_eq!(state["Arguments"].to_string(), source(undone["Arguments"].to_string()), "{name}");
        }
        compared += 1;
    }
    assert!(compared >= 8, "{compared}");
}

/// What a target can see, it can use; and nobody loses anything while somebody may still be asked.
#[test]
fn a_revoke_takes_the_image_first_and_asks_before() {
    let machine = revoke_share();
    let order =
        ["UndoShareImage", "UndoShareSnapshots", "UndoTargets", "UndoGrantKeys", "UndoShareKey", "RewriteNotes"];
    let (own, _) = split(&machine);
    let mut states = own.states.keys();
    for name in order {
        assert!(states.any(|state| state == name), "{name} does not come in its order");
    }
    let to_the_first: Vec<&String> = own
        .states
        .iter()
        .filter(|(_, state)| definition::transitions(state).iter().any(|next| next == order[0]))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(to_the_first, ["ChooseRound"]);
    for (choice, next) in [(0, "CheckUsage"), (1, "CheckLooked")] {
        let choice = &own.states["ChooseRound"]["Choices"][choice];
        assert!(choice["Condition"].as_str().unwrap().contains("$soFar.phase = 'check'"));
        assert_eq!(choice["Next"], next);
    }
    assert_eq!(own.states["JudgeUsage"]["Assign"], json!({ "phase": "revoke" }));
}

/// The history of an execution is counted in Rust by what the states are.
#[test]
fn a_round_has_the_states_that_its_events_are_counted_for() {
    let (own, maps) = split(&revoke_share());
    let names: Vec<&String> = own.states.keys().collect();
    let from = names.iter().position(|name| *name == "UndoShareImage").unwrap();
    let to = names.iter().position(|name| *name == "CheckRound").unwrap();
    let of_kind = |scope: &[&String], states: &serde_json::Map<String, Value>, kind: &str| {
        scope.iter().filter(|name| states[**name]["Type"] == kind).count()
    };
    let round = &names[from..=to];
    let kinds = ["Task", "Choice", "Map"].map(|kind| of_kind(round, &own.states, kind));
    // And ChooseRound.
    assert_eq!(kinds, [6, 3, 2]);
    let inside = |map: &str| maps.iter().find(|scope| scope.map.as_deref() == Some(map)).unwrap();
    let count = |map: &str| {
        let scope = inside(map);
        let names: Vec<&String> = scope.states.keys().collect();
        ["Task", "Choice", "Pass"].map(|kind| of_kind(&names, &scope.states, kind))
    };
    assert_eq!(count("UndoTargets"), [3, 3, 2]);
    // One of the two.
    assert_eq!(count("RewriteNotes"), [2, 1, 0]);
}

/// A key policy is written as a whole and has no version.
#[test]
fn key_policies_are_written_only_under_the_lock() {
    for machine in machines() {
        let (own, _) = split(&machine);
        for (writer, lock, unlock) in
            [("ShareKey", "LockKeys", "UnlockKeys"), ("UndoShareKey", "LockKeysToUndo", "UnlockUndoneKeys")]
        {
            let Some(state) = own.states.get(writer) else { continue };
            let before: Vec<&String> = own
                .states
                .iter()
                .filter(|(_, state)| definition::transitions(state).iter().any(|next| next == writer))
                .map(|(name, _)| name)
                .collect();
            assert_eq!(before, [lock], "{}: {writer}", machine.path);
            assert_eq!(own.states[lock]["Next"], writer);
            assert_eq!(state["Next"], unlock);
            let caught = last_catch(state)["Next"].as_str().unwrap();
            let unlocked = caught == unlock || first_undo(&own, caught, writer) == "UndoShareKey";
            assert!(unlocked, "{writer} keeps the lock");
        }
    }
}

/// What a lock that was lost, and taken again, is held in is another name: of the drive that took it. An
/// undo takes the lock over from the drive of the execution that it has seen stopped, and from nobody
/// else: not even from another undo of the same one.
#[test]
fn each_drive_of_an_execution_holds_the_lock_in_its_own_name() {
    let taken = share_ami().state("ResolveImage")["Assign"].clone();
    assert_eq!((&taken["taker"], &taken["stopped"]), (&taken["execution"], &json!("nobody")));
    let claimed = undo_share().state("ClaimShare")["Assign"].clone();
    assert_eq!(claimed["taker"], "{% $states.context.Execution.Id %}");
    let begun = revoke_share().state("BeginRevoke")["Assign"].clone();
    assert_eq!((&begun["taker"], &begun["stopped"]), (&claimed["taker"], &json!("nobody")));
    let stopped = undo_share().state("DescribeShare")["Assign"]["stopped"].clone();
    assert_eq!(stopped, "{% $execution & '#' & $states.result.RedriveCount %}");
    let redrive = "$exists($states.context.Execution.RedriveCount) ? $states.context.Execution.RedriveCount : 0";
    for machine in machines() {
        for (name, state) in machine.calls("dynamodb:updateItem") {
            let values = &state["Arguments"]["ExpressionAttributeValues"];
            if name.starts_with("LockKeys") {
                assert_eq!(values[":me"]["S"], format!("{{% $taker & '#' & ({redrive}) %}}"), "{name}");
                let taken_over = if name == "LockKeysToUndo" { json!("{% $stopped %}") } else { Value::Null };
                assert_eq!(values[":stopped"]["S"], taken_over, "{name}");
                let lock = &state["Assign"];
                assert_eq!(lock["holder"], "{% $states.result.Attributes.heldBy.S %}", "{name}");
                assert_eq!(lock["lock"]["redrive"], format!("{{% {redrive} %}}"), "{name}");
            } else if name.starts_with("Unlock") {
                assert_eq!(values[":me"]["S"], "{% $holder %}", "{name}");
            }
        }
    }
}

/// Step Functions goes on in the state that was stopped, not in the one that took the lock.
#[test]
fn a_lock_that_was_lost_is_taken_again() {
    for machine in machines() {
        for (writer, lock) in [("ShareKey", "LockKeys"), ("UndoShareKey", "LockKeysToUndo")] {
            let (own, _) = split(&machine);
            let Some(state) = own.states.get(writer) else { continue };
            let lost = catch(state, "LockLost");
            assert_eq!((&lost["Next"], &lost["Assign"]["lockLost"]), (&json!(lock), &json!(true)), "{writer}");
            assert_eq!(own.states[lock]["Assign"]["lock"]["again"], "{% $lockLost %}");
            assert_eq!(state["Arguments"]["Payload"]["lock"], "{% $lock %}");
        }
    }
    // Who does not get it back takes back what was written under it.
    let machine = share_ami();
    assert_eq!(last_catch(&machine.state("LockKeys"))["Next"], "CheckLock");
    let check = machine.state("CheckLock");
    assert_eq!((&check["Choices"][0]["Condition"], &check["Default"]), (&json!("{% $lockLost %}"), &json!("Report")));
    let (own, _) = split(&machine);
    assert_eq!(first_undo(&own, check["Choices"][0]["Next"].as_str().unwrap(), "LockKeys"), "UndoShareKey");
}

/// An execution that is redriven may be taken back at the same time: what undo-share has claimed, and
/// what it has taken back, share-ami does not call shared.
#[test]
fn a_redriven_execution_and_its_undo_know_of_each_other() {
    let (share_ami, undo_share) = (share_ami(), undo_share());
    let claim = undo_share.state("ClaimShare");
    assert_eq!(claim["Arguments"]["UpdateExpression"], "SET undoneBy = :me");
    assert_eq!(undo_share.whole["StartAt"], "ClaimShare", "functions may still run while the note is claimed");
    assert_eq!(catch(&claim, LOCKED)["Next"], "FinishUndoShare");
    let check = undo_share.state("CheckShare");
    let stopped = "$status = 'ABORTED' or $status = 'TIMED_OUT'";
    let (same, again) = (&check["Choices"][0], &check["Choices"][1]);
    assert_eq!(same["Condition"], format!("{{% ({stopped}) and $redriven = $drive %}}"));
    assert_eq!((&same["Next"], &check["Default"]), (&json!("TakeShare"), &json!("ReleaseShare")));
    // Its functions may still run: they are waited for anew.
    assert_eq!(again["Condition"], format!("{{% {stopped} %}}"));
    assert_eq!((&again["Next"], &again["Assign"]["drive"]), (&json!("WaitForFunctions"), &json!("{% $redriven %}")));
    let take = undo_share.state("TakeShare");
    assert_eq!((&take["Next"], &catch(&take, LOCKED)["Next"]), (&json!("ResolveUndo"), &json!("FinishUndoShare")));
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
    assert_eq!(condition("ConfirmShare"), "attribute_exists(id) AND attribute_not_exists(undoneBy)");
    let confirm = share_ami.state("ConfirmShare");
    assert!(confirm["Catch"].as_array().unwrap().iter().all(|catch| catch["Next"] == "ResolveUndo"));
    assert_eq!(catch(&confirm, LOCKED)["Assign"]["failure"]["error"], "ShareUndone");
    assert_eq!(share_ami.state("CheckOutcome")["Choices"][1]["Next"], "ConfirmShare");
    // Nothing comes after it that could still be stopped and redriven.
    assert_eq!(share_ami.state(confirm["Next"].as_str().unwrap())["Type"], "Succeed");

    // Each waits for the other: RecordShare and ConfirmShare longer than an undo-share that lets go.
    let wait = undo_share.state("WaitForFunctions")["Seconds"].as_u64().unwrap();
    for state in ["RecordShare", "ConfirmShare"] {
        let retry = share_ami.state(state)["Retry"][0].clone();
        assert_eq!(retry["ErrorEquals"], json!([LOCKED]), "{state}");
        let number = |field: &str| retry[field].as_u64().unwrap();
        let waited = number("MaxAttempts") * number("MaxDelaySeconds") / 2;
        assert!(waited > 2 * wait, "{state} waits {waited} s");
    }
}

/// Who waits must outlive a holder that died: the delays between the attempts are on average half
/// of the longest (full jitter).
#[test]
fn whoever_waits_for_the_lock_waits_longer_than_a_lease() {
    for (machine, name) in [
        (share_ami(), "LockKeys"),
        (share_ami(), "LockKeysToUndo"),
        (undo_share(), "LockKeysToUndo"),
        (revoke_share(), "LockKeysToUndo"),
    ] {
        let state = machine.state(name);
        let until = state["Arguments"]["ExpressionAttributeValues"][":until"]["N"].as_str().unwrap();
        let lease: u64 = until.split_once("$millis() + ").unwrap().1.split_once(')').unwrap().0.parse().unwrap();
        let wait = &state["Retry"][0];
        assert_eq!(wait["ErrorEquals"], json!([LOCKED]));
        let number = |field: &str| wait[field].as_u64().unwrap();
        let waited = number("MaxAttempts") * number("MaxDelaySeconds") * 1000 / 2;
        assert!(waited > lease, "{}: {name} waits {waited} ms for a lease of {lease} ms", machine.path);
    }
}

/// What one state notes is what others look for and remove.
#[test]
fn both_machines_mean_the_same_records() {
    let (share_ami, undo_share) = (share_ami(), undo_share());
    let key = |machine: &Machine, state: &str, field: &str| {
        let arguments = machine.state(state)["Arguments"][field].clone();
        (arguments["id"]["S"].as_str().unwrap().to_owned(), arguments["part"]["S"].as_str().unwrap().to_owned())
    };
    let (id, part) = key(&share_ami, "RecordShare", "Item");
    let of = |arn: &str| (id.replace("$states.context.Execution.Id", arn), part.clone());
    assert_eq!(key(&undo_share, "ClaimShare", "Key"), of("$states.input.detail.executionArn"));
    assert_eq!(key(&undo_share, "TakeShare", "Key"), of("$executionArn"));
    assert_eq!(key(&undo_share, "ReleaseShare", "Key"), of("$executionArn"));
    assert_eq!(key(&undo_share, "ForgetShare", "Key"), of("$executionArn"));
    assert_eq!(key(&share_ami, "ConfirmShare", "Key"), of("$states.context.Execution.Id"));
    assert_eq!(key(&share_ami, "RecordTarget", "Item"), key(&share_ami, "ForgetTarget", "Key"));
    let lock = key(&share_ami, "LockKeys", "Key");
    for state in ["UnlockKeys", "LockKeysToUndo", "UnlockUndoneKeys"] {
        assert_eq!(key(&share_ami, state, "Key"), lock, "{state}");
    }
    let noted = share_ami.state("RecordShare")["Arguments"]["Item"]["resolution"]["S"].clone();
    let read = undo_share.state("ClaimShare")["Assign"]["resolution"].clone();
    assert_eq!(noted, "{% $string($resolution) %}");
    assert_eq!(read, "{% $parse($states.result.Attributes.resolution.S) %}");
    for (name, state) in machines().iter().flat_map(|machine| machine.calls("dynamodb:")) {
        assert_eq!(state["Arguments"]["TableName"], "${RecordTableName}", "{name}");
    }
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
    assert_eq!(scopes.is_empty(), machine.path == audit_shares().path, "{} and Maps", machine.path);
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
