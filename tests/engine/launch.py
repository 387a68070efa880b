"""Starts ministack, the local engine, corrected where it differs from AWS in a way that matters here.

Each correction below says what AWS does. They replace functions of the pinned version
(requirements.txt) by name, so another version fails at start rather than quietly differing.

Standard input is a lifeline: when its other end closes, however the starter died, ministack, the
functions it runs and the directory TMPDIR go away.
"""

import copy
import json
import os
import shutil
import signal
import sys
import threading

from ministack import app
from ministack.core import iam_evaluator
from ministack.core.responses import now_iso
from ministack.services import stepfunctions


def enforce(access_key_id, iam_action, *arguments, **keywords):
    """The sandbox asks on a function's behalf whom its access key belongs to, and cannot sign for it."""
    if iam_action == "sts:GetCallerIdentity":
        return None
    return engine_enforce(access_key_id, iam_action, *arguments, **keywords)


def apply_state_assign(state_def, raw_input, ctx, result=None, error_output=None):
    """AWS evaluates every expression of one Assign against the variables as they were before it."""
    if ctx is None:
        return
    before = ctx.setdefault("variables", {})
    after = dict(before)
    for name, template in (state_def.get("Assign") or {}).items():
        after[name] = stepfunctions._apply_jsonata_template(
            template, raw_input, ctx, result=result, error_output=error_output
        )
    ctx["variables"] = after


def apply_output_path(state_def, data, ctx=None):
    """On AWS a Succeed state of the JSONata kind has an Output."""
    if state_def.get("Type") == "Succeed" and stepfunctions._state_query_language(state_def, ctx) == "JSONata":
        return stepfunctions._apply_jsonata_output(state_def, data, ctx, default=data)
    return engine_apply_output_path(state_def, data, ctx)


def run_sub_machine(states, start_at, input_data, execution, ctx):
    """AWS records the states inside a Map in the history, and runs no further one after StopExecution."""
    iteration = {"name": ctx["State"]["Name"], "index": ctx.get("Map", {}).get("Item", {}).get("Index", 0)}
    add_event(execution, "MapIterationStarted", {"mapIterationStartedEventDetails": iteration})
    name, value = start_at, copy.deepcopy(input_data)
    while name:
        if execution["status"] != "RUNNING":
            raise stepfunctions._ExecutionError("States.Aborted", "The execution was stopped")
        state, kind = states[name], states[name]["Type"]
        entered = {"name": name, "input": json.dumps(value)}
        add_event(execution, f"{kind}StateEntered", {"stateEnteredEventDetails": entered})
        ctx["State"] = {"Name": name, "EnteredTime": now_iso(), "RetryCount": 0}
        following = None
        if kind in ("Succeed", "Fail"):
            value = engine_run_sub_machine(states, name, value, execution, ctx)
        elif kind in ("Task", "Map", "Parallel"):
            value, following = getattr(stepfunctions, f"_execute_{kind.lower()}")(state, value, execution, ctx)
        else:
            value, following = getattr(stepfunctions, f"_execute_{kind.lower()}")(state, value, ctx)
        exited = {"name": name, "output": json.dumps(value)}
        add_event(execution, f"{kind}StateExited", {"stateExitedEventDetails": exited})
        name = following
    add_event(execution, "MapIterationSucceeded", {"mapIterationSucceededEventDetails": iteration})
    return value


def fail_execution(execution, error, cause):
    """On AWS an execution that was stopped stays ABORTED, whatever its last task still answers."""
    if execution["status"] == "RUNNING":
        engine_fail_execution(execution, error, cause)


def start_execution(data):
    """AWS answers a repeated StartExecution with the running execution if name and input are the same."""
    machine = data.get("stateMachineArn", "")
    name = data.get("name")
    running = stepfunctions._executions.get(f"{machine.replace(':stateMachine:', ':execution:')}:{name}")
    if running and running["status"] == "RUNNING" and running["input"] == data.get("input", "{}"):
        started = {"executionArn": running["executionArn"], "startDate": running["startDate"]}
        return stepfunctions.json_response(started)
    return engine_start_execution(data)


def describe_execution(data):
    """AWS says how often an execution was redriven: here never."""
    status, headers, body = engine_describe_execution(data)
    described = json.loads(body)
    return stepfunctions.json_response(described | {"redriveCount": 0}) if status == 200 else (status, headers, body)


def end_with_the_starter():
    sys.stdin.buffer.read()
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


add_event = stepfunctions._add_event
engine_enforce = iam_evaluator.enforce
engine_apply_output_path = stepfunctions._apply_output_path
engine_run_sub_machine = stepfunctions._run_sub_machine
engine_start_execution = stepfunctions._start_execution
engine_describe_execution = stepfunctions._describe_execution
engine_fail_execution = stepfunctions._fail_execution
iam_evaluator.enforce = enforce
stepfunctions._apply_state_assign = apply_state_assign
stepfunctions._apply_output_path = apply_output_path
stepfunctions._run_sub_machine = run_sub_machine
stepfunctions._start_execution = start_execution
stepfunctions._describe_execution = describe_execution
stepfunctions._fail_execution = fail_execution

if __name__ == "__main__":
    os.setpgrp()
    threading.Thread(target=end_with_the_starter, daemon=True).start()
    app.main()
