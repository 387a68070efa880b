"""Starts ministack, the local engine, corrected where it differs from AWS in a way that matters here.

Each correction below says what AWS does. They replace functions of the pinned version
(requirements.txt) by name, so another version fails at start rather than quietly differing.

Standard input is a lifeline: when its other end closes, however the starter died, ministack, the
functions it runs and the directory TMPDIR go away. Standard output is the socket to listen on.
"""

import asyncio
import contextvars
import copy
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time

from hypercorn.asyncio import serve
from hypercorn.config import Config
from ministack import app
from ministack.core import iam_evaluator
from ministack.core.responses import now_iso
from ministack.services import cloudformation, stepfunctions
from ministack.services.stepfunctions import _ExecutionError as ExecutionError

# Quotas of Step Functions.
MAX_PAYLOAD = 262_144
MAX_EVENTS = 25_000
MAX_CAUSE = 32_768

ENDS = {"ExecutionSucceeded", "ExecutionFailed", "ExecutionAborted"}

# Of the task that runs: its execution, and when it is given up.
task_of = contextvars.ContextVar("task_of")
task_until = contextvars.ContextVar("task_until")


def enforce(access_key_id, iam_action, *arguments, **keywords):
    """The sandbox asks on a function's behalf whom its access key belongs to, and cannot sign for it."""
    if iam_action == "sts:GetCallerIdentity":
        return None
    return engine_enforce(access_key_id, iam_action, *arguments, **keywords)


def apply_state_assign(state_def, raw_input, ctx, result=None, error_output=None):
    """AWS evaluates every expression of one Assign against the variables as they were before it; together they have at
    most 262,144 bytes."""
    if ctx is None:
        return
    before, assigned = ctx.setdefault("variables", {}), {}
    for name, template in (state_def.get("Assign") or {}).items():
        assigned[name] = stepfunctions._apply_jsonata_template(
            template, raw_input, ctx, result=result, error_output=error_output
        )
    ctx["variables"] = before | within_limit(assigned)


def within_limit(value):
    """On AWS whatever states hand on has at most 262,144 bytes."""
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    if size > MAX_PAYLOAD:
        raise ExecutionError("States.DataLimitExceeded", f"{size} bytes are more than {MAX_PAYLOAD}")
    return value


def apply_jsonata_arguments(state_def, raw_input, ctx=None):
    """So has what a task is called with."""
    return within_limit(engine["apply_jsonata_arguments"](state_def, raw_input, ctx))


def invoke_resource(resource, input_data):
    """So has what it answers."""
    return within_limit(engine["invoke_resource"](resource, input_data))


def apply_jsonata_output(state_def, raw_input, ctx=None, result=None, error_output=None, default=None):
    """So have the results of a Map, and what a state makes of them."""
    within_limit(result)
    return within_limit(engine["apply_jsonata_output"](state_def, raw_input, ctx, result, error_output, default))


def error_matches(error_equals, error):
    """On AWS neither States.ALL nor States.TaskFailed stands for these two."""
    if error in ("States.DataLimitExceeded", "States.Runtime"):
        return error in error_equals
    return engine["error_matches"](error_equals, error)


def add_event(execution, event_type, details=None):
    """AWS fails an execution whose history gets longer than 25,000 events, its last one among them. A task has an event
    more than here."""
    if event_type not in ENDS and len(execution["events"]) >= MAX_EVENTS - 1:
        reached = f"The execution reached the maximum number of history events ({MAX_EVENTS})."
        raise ExecutionError("States.Runtime", reached)
    event = engine["add_event"](execution, event_type, details)
    if event_type == "TaskScheduled":
        add_event(execution, "TaskStarted", {"taskStartedEventDetails": details["taskScheduledEventDetails"]})
    return event


def apply_output_path(state_def, data, ctx=None):
    """On AWS a Succeed state of the JSONata kind has an Output."""
    if state_def.get("Type") == "Succeed" and stepfunctions._state_query_language(state_def, ctx) == "JSONata":
        return stepfunctions._apply_jsonata_output(state_def, data, ctx, default=data)
    return engine["apply_output_path"](state_def, data, ctx)


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
            value = engine["run_sub_machine"](states, name, value, execution, ctx)
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
        engine["fail_execution"](execution, error, cause)


def execute_task(state_def, raw_input, execution, ctx):
    """AWS knows whose task an integration runs for."""
    task_of.set(execution)
    task_until.set(float("inf"))
    return engine["execute_task"](state_def, raw_input, execution, ctx)


def invoke_resource_with_timeout(resource, input_data, timeout):
    """AWS knows until when."""
    task_until.set(time.monotonic() + timeout)
    return engine["invoke_resource_with_timeout"](resource, input_data, timeout)


def nested_start_execution_request(input_data):
    """AWS takes a string for a string, not for JSON."""
    request = engine["nested_start_execution_request"](input_data)
    return request | {"input": json.dumps(input_data.get("Input", {}))}


def invoke_nested_start_execution_sync(resource, input_data):
    """AWS runs a child as any other execution, whose names are unique and whose status changes are events, and answers
    with its description, input and output as JSON. Where it ends otherwise than well, the task fails with
    States.TaskFailed, and the description is the cause. AWS tries to stop it where its parent is stopped, or the task
    times out."""
    if not resource.endswith(".sync:2"):
        raise ExecutionError("States.Runtime", f"what AWS answers to {resource} is not known here")
    parent, until = task_of.get(), task_until.get()
    status, _, body = start_execution(nested_start_execution_request(input_data))
    started = json.loads(body)
    if status >= 400:
        raise ExecutionError(f"StepFunctions.{started['__type']}Exception", started["message"])
    child = stepfunctions._executions[started["executionArn"]]
    try:
        submitted = {"resourceType": "states", "resource": "startExecution.sync:2", "output": json.dumps(started)}
        add_event(parent, "TaskSubmitted", {"taskSubmittedEventDetails": submitted})
        while not has_ended(child):
            if time.monotonic() > until:
                raise ExecutionError("States.Timeout", "The task timed out")
            if parent["status"] != "RUNNING":
                raise ExecutionError("States.Aborted", "The execution was stopped")
            time.sleep(0.02)
    finally:
        if child["status"] == "RUNNING":
            gone = f"The Task state in AWS Step Functions execution [{parent['executionArn']}]"
            cause = f"{gone} which was managing this resource was aborted"
            stepfunctions._stop_execution({"executionArn": child["executionArn"], "cause": cause})
    description = describe_child(child)
    if child["status"] != "SUCCEEDED":
        raise ExecutionError("States.TaskFailed", json.dumps(description, separators=(",", ":"))[:MAX_CAUSE])
    return description | {"Input": json.loads(child["input"]), "Output": json.loads(child["output"])}


def has_ended(execution):
    """And all that is said of it is written: the last event is written last."""
    return execution["status"] != "RUNNING" and any(event["type"] in ENDS for event in reversed(execution["events"]))


def describe_child(child):
    """As DescribeExecution, with other names and with times in milliseconds."""
    _, _, body = describe_execution({"executionArn": child["executionArn"]})
    described = json.loads(body)
    for date in ("startDate", "stopDate"):
        described[date] = stepfunctions._iso_to_epoch_ms(described[date])
    for details in ("inputDetails", "outputDetails"):
        if details in described:
            described[details] = {"Included": True}
    return {name[0].upper() + name[1:]: described[name] for name in sorted(described)}


def prefix_sdk_error(service_name, error_code):
    """AWS names Step Functions' own errors as its SDK for Java does."""
    suffix = "" if service_name != "sfn" or "." in error_code or error_code.endswith("Exception") else "Exception"
    return engine["prefix_sdk_error"](service_name, error_code + suffix)


def start_execution(data):
    """AWS answers a repeated StartExecution with the running execution if name and input are the same."""
    machine = data.get("stateMachineArn", "")
    name = data.get("name")
    running = stepfunctions._executions.get(f"{machine.replace(':stateMachine:', ':execution:')}:{name}")
    if running and running["status"] == "RUNNING" and running["input"] == data.get("input", "{}"):
        started = {"executionArn": running["executionArn"], "startDate": running["startDate"]}
        return stepfunctions.json_response(started)
    return engine["start_execution"](data)


def describe_execution(data):
    """AWS says how often an execution was redriven (here never), gives one that failed no output, and leaves out the
    data where only the rest is asked for."""
    status, headers, body = engine["describe_execution"](data)
    if status != 200:
        return status, headers, body
    described = {name: value for name, value in json.loads(body).items() if value is not None}
    ended, succeeded = described["status"] != "RUNNING", described["status"] == "SUCCEEDED"
    described |= {"redriveCount": 0, "redriveStatus": "REDRIVABLE" if ended and not succeeded else "NOT_REDRIVABLE"}
    if not ended or succeeded:
        described["redriveStatusReason"] = f"Execution is {described['status']} and cannot be redriven"
    left_out = [] if succeeded else ["output", "outputDetails"]
    if data.get("includedData") == "METADATA_ONLY":
        left_out += ["input", "output", "error", "cause"]
        described |= {name: {"included": False} for name in ("inputDetails", "outputDetails") if name in described}
    return stepfunctions.json_response({name: value for name, value in described.items() if name not in left_out})


def create_change_set(params):
    """On AWS an update may not change the type of a resource."""
    known = set(cloudformation._change_sets)
    answer = engine_create_change_set(params)
    for made in set(cloudformation._change_sets) - known:
        change_set = cloudformation._change_sets[made]
        before = cloudformation._stacks[change_set["StackName"]]["_template"].get("Resources", {})
        after = change_set["_template"]["Resources"]
        changed = sorted(name for name in before.keys() & after.keys() if before[name]["Type"] != after[name]["Type"])
        if changed:
            refused = "Update of resource type is not permitted. The new template modifies resource type of the following"
            reason = f"{refused} resources: [{', '.join(changed)}]"
            change_set |= {"Status": "FAILED", "ExecutionStatus": "UNAVAILABLE", "StatusReason": reason, "Changes": []}
    return answer


def evaluate_conditions(template, params):
    """On AWS a condition may join a list. Of a parameter that is a list the engine has the text."""

    def joined(value):
        if isinstance(value, list):
            return [joined(part) for part in value]
        if not isinstance(value, dict):
            return value
        separator, of = value.get("Fn::Join", (None, None))
        if isinstance(of, dict) and of.get("Ref") in params:
            return separator.join(params[of["Ref"]]["Value"].split(","))
        return {name: joined(part) for name, part in value.items()}

    conditions = joined(template.get("Conditions", {}))
    return engine_evaluate_conditions(template | {"Conditions": conditions}, params)


def metric_alarm_record(name, props):
    """On AWS an alarm may watch an expression of metrics. Here it watches the first of these."""
    if "Metrics" in props:
        first = next(metric["MetricStat"] for metric in props["Metrics"] if "MetricStat" in metric)
        others = {name: value for name, value in props.items() if name != "Metrics"}
        props = others | first["Metric"] | {"Statistic": first["Stat"], "Period": first["Period"]}
    return engine_metric_alarm_record(name, props)


def end_with_the_starter():
    sys.stdin.buffer.read()
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def listen():
    """As ministack's own main does, but on the open socket: a port that is only chosen may be another's by then."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    config = Config()
    config.bind = [f"fd://{os.dup(sys.stdout.fileno())}"]
    config.keep_alive_timeout = 75
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    asyncio.run(serve(app.app, config))


CORRECTIONS = [
    add_event,
    apply_jsonata_arguments,
    apply_jsonata_output,
    apply_output_path,
    apply_state_assign,
    describe_execution,
    error_matches,
    execute_task,
    fail_execution,
    invoke_nested_start_execution_sync,
    invoke_resource,
    invoke_resource_with_timeout,
    nested_start_execution_request,
    prefix_sdk_error,
    run_sub_machine,
    start_execution,
]

# As it was. A version that has no function of such a name fails here.
engine = {correction.__name__: getattr(stepfunctions, f"_{correction.__name__}") for correction in CORRECTIONS}
engine_enforce = iam_evaluator.enforce
for correction in CORRECTIONS:
    setattr(stepfunctions, f"_{correction.__name__}", correction)
iam_evaluator.enforce = enforce
engine_create_change_set = cloudformation.handlers._ACTION_HANDLERS["CreateChangeSet"]
cloudformation.handlers._ACTION_HANDLERS["CreateChangeSet"] = create_change_set
engine_evaluate_conditions = cloudformation.engine._evaluate_conditions
for module in (cloudformation.changesets, cloudformation.engine, cloudformation.handlers, cloudformation.stacks):
    assert module._evaluate_conditions is engine_evaluate_conditions
    module._evaluate_conditions = evaluate_conditions
engine_metric_alarm_record = cloudformation.provisioners._cw_metric_alarm_record
cloudformation.provisioners._cw_metric_alarm_record = metric_alarm_record

if __name__ == "__main__":
    os.setpgrp()
    threading.Thread(target=end_with_the_starter, daemon=True).start()
    listen()
