"""Answers "why did it not run?" and "what will happen next?" in words, with the rule, the value and the instants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from deployx.db.database import Session
from deployx.db.schema import (
    dependency_events,
    deployments,
    device_runs,
    devices,
    scheduled_task_executions,
    scheduled_tasks,
    task_dependencies,
)  # fmt: skip
from deployx.fleet.resolution import resolve
from deployx.lifecycle import EXECUTION_WAITING, ExecutionStatus, TaskStatus
from deployx.timing.forecast import expected_start
from deployx.timing.instants import format_instant
from deployx.timing.owed import Due
from deployx.timing.policy import Policy
from deployx.timing.windows import Calendar
from deployx.timing.words import reason_in_words
from deployx.work import calendars, plans, task_rows
from deployx.work.task_rows import Task

LATEST = 5
LONG_RUNNING = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Reason:
    """One rule that bears on the question; `at` is when it applies, `value` what the rule looked at."""

    rule: str
    text: str
    at: datetime | None = None
    value: Any = None


def summary(reasons: Sequence[Reason]) -> str:
    return reasons[0].text if reasons else "Nothing stands in the way."


# -- a task -----------------------------------------------------------------------------------------------------


async def task(session: Session, task_id: int, *, now: datetime) -> list[Reason]:
    """Why a task does or does not run, the weightiest first. Raises nothing for a task that is there."""
    found = await task_rows.read(session, task_id)
    assert found is not None
    calendar = (await calendars.of(session, calendars.TASKS, [task_id])).get(task_id) if found["restricted"] else None
    reasons = await _activity(session, found, now)
    reasons += await _waiting(session, found, calendar, now)
    reasons += await _next(session, found, calendar, now)
    reasons += await _upstreams(session, found)
    reasons += await _targets(session, found)
    return reasons + await _history(session, task_id)


async def _activity(session: Session, task: Task, now: datetime) -> list[Reason]:
    """What the status says: paused, ended, nothing left to come, or running."""
    match TaskStatus(task["status"]):
        case TaskStatus.PAUSED:
            row = await _of_row(session, task["id"])
            why = f" The reason given: {row.paused_reason}" if row.paused_reason else ""
            until = task["paused_until"]
            then = (
                f" It resumes by itself at {format_instant(until)}." if until else " It starts nothing until resumed."
            )
            return [Reason("paused", f"The task is paused.{then}{why}", until, "paused")]
        case TaskStatus.CANCELLED:
            return [Reason("cancelled", "The task was cancelled: it starts nothing. Resume it to schedule it again.")]
        case TaskStatus.COMPLETED | TaskStatus.FAILED as status:
            return [_nothing_left(task, status, now)]
        case TaskStatus.RUNNING:
            return await _running(session, task, now)
        case _:
            return []


def _nothing_left(task: Task, status: TaskStatus, now: datetime) -> Reason:
    planned = task["scheduled_time"]
    if task["recurrence_type"] == "once" and planned is not None and planned <= now:
        text = f"Its one instant, {format_instant(planned)}, has passed: give it a future one to run it again."
        return Reason("instant_past", text, planned, status)
    text = "Its recurrence has no occurrence left: it has reached its end date or its number of occurrences."
    if task["error_message"]:
        text = f"The task has failed: {task['error_message']}"
    return Reason("nothing_left", text, task["last_planned_for"], status)


async def _running(session: Session, task: Task, now: datetime) -> list[Reason]:
    """Executions under way, and what each device of theirs does: the answer to "stuck in running"."""
    table = scheduled_task_executions
    query = select(table.c.id, table.c.execution_time).where(table.c.task_id == task["id"], table.c.status == "running")
    reasons = []
    for row in await session.execute(query.order_by(table.c.id).limit(LATEST)):
        since = row.execution_time or now
        devices_say = await _devices_say(session, row.id)
        long = (
            " That is long: cancel it if it is not expected, and it can run again."
            if now - since > LONG_RUNNING
            else ""
        )
        text = f"Execution {row.id} has been running since {format_instant(since)}: {devices_say}.{long}"
        reasons.append(Reason("running", text, since, row.id))
    return reasons


async def _devices_say(session: Session, execution_id: int) -> str:
    table = device_runs
    query = (
        select(table.c.status, table.c.reason, func.count().label("n"))
        .join(deployments, deployments.c.id == table.c.deployment_id)
        .where(deployments.c.execution_id == execution_id)
        .group_by(table.c.status, table.c.reason)
        .order_by(func.count().desc(), table.c.status)
        .limit(LATEST)
    )
    said = [f"{row.n} {row.status}{f' ({row.reason})' if row.reason else ''}" for row in await session.execute(query)]
    return ", ".join(said) if said else "no device has anything to do"


async def _of_row(session: Session, task_id: int) -> Any:
    return (await session.execute(select(scheduled_tasks).where(scheduled_tasks.c.id == task_id))).one()


async def _waiting(session: Session, task: Task, calendar: Calendar | None, now: datetime) -> list[Reason]:
    """Executions that wait for a free place, or for a window."""
    table = scheduled_task_executions
    query = select(table).where(table.c.task_id == task["id"], table.c.completed_time.is_(None))
    query = query.where(table.c.status.in_([status.value for status in EXECUTION_WAITING])).order_by(table.c.id)
    return [_waits(row, task, calendar, now) for row in await session.execute(query.limit(LATEST))]


def _waits(row: Any, task: Task, calendar: Calendar | None, now: datetime) -> Reason:
    if row.status == ExecutionStatus.QUEUED:
        most = task["max_instances"]
        text = f"Execution {row.id} waits for a free place: {most} run already, as many as max_instances allows."
        return Reason("queued", text, row.due_at, most)
    opens_at = calendar.next_open(now) if calendar else None
    when = f" The next one opens at {format_instant(opens_at)}." if opens_at else ""
    return Reason("waits_for_window", f"Execution {row.id} waits for its window.{when}", opens_at, row.id)


async def _next(session: Session, task: Task, calendar: Calendar | None, now: datetime) -> list[Reason]:
    """When it starts next, and what windows, jitter and changes by hand do to that."""
    following = task["next_execution"]
    if following is None:
        return []
    if following <= now:
        return [Reason("due", "An occurrence is due now: the clock starts it within a second.", following)]
    reasons = [Reason("not_due", f"It is not due before {format_instant(following)}.", following, task["status"])]
    if calendar is not None:
        policy = plans.policy_of(task, calendar)
        reasons += _window(following, calendar, policy)
    plan = await plans.plan_of(session, task)
    for planned_for, change in sorted(plan.overrides.items())[:LATEST]:
        if change.due_at is None:
            reasons.append(
                Reason(
                    "skipped_by_hand",
                    f"The occurrence of {format_instant(planned_for)} was skipped by hand.",
                    planned_for,
                )
            )
        elif not change.fired:
            text = f"The occurrence of {format_instant(planned_for)} was moved to {format_instant(change.due_at)}."
            reasons.append(Reason("moved_by_hand", text, change.due_at, format_instant(planned_for)))
    return reasons


def _window(following: datetime, calendar: Calendar, policy: Policy) -> list[Reason]:
    state, _until = calendar.state(following)
    if state == "open":
        return []
    start_at = expected_start(Due(following, following), None, policy)
    rule = "blackout" if state == "blackout" else "waits_for_window"
    what = "in a blackout" if state == "blackout" else "outside its windows"
    then = f"it starts when a window opens, at {format_instant(start_at)}" if start_at else "it will be skipped"
    return [Reason(rule, f"Its next occurrence falls {what}: {then}.", start_at, policy.outside.value)]


async def _upstreams(session: Session, task: Task) -> list[Reason]:
    """Which of the tasks that it waits for have ended as asked since it last started."""
    if task["recurrence_type"] != "after":
        return []
    table, event = task_dependencies, dependency_events
    query = (
        select(table.c.upstream_id, table.c.on_ending, func.max(event.c.at).label("at"))
        .outerjoin(event, (event.c.task_id == table.c.task_id) & (event.c.upstream_id == table.c.upstream_id))
        .where(table.c.task_id == task["id"])
        .group_by(table.c.upstream_id, table.c.on_ending)
        .order_by(table.c.upstream_id)
    )
    reasons = []
    for row in await session.execute(query):
        has = f"ended so at {format_instant(row.at)}" if row.at else "has not ended so since this task last started"
        text = f"It waits for the {row.on_ending} of task {row.upstream_id}, which {has}."
        reasons.append(Reason("upstream", text, row.at, row.upstream_id))
    return reasons


async def _targets(session: Session, task: Task) -> list[Reason]:
    """Whether its devices and groups exist, its owner may run on them, and they are online."""
    reached = (await resolve(session, {task["id"]: task_rows.owner_of(task)}))[task["id"]]
    if reached.refusal:
        return [Reason("no_access", f"An execution would fail: {reached.refusal}", value=reached.refusal)]
    if not reached.devices:
        return [Reason("no_targets", "An execution would fail: there are no target devices, its groups are empty.")]
    offline = sum(not online for online in reached.devices.values())
    if not offline:
        return []
    wait = (
        f"waits up to {task['offline_deadline_seconds']} s for each"
        if task["offline_policy"] == "wait"
        else "does not wait"
    )
    text = f"{offline} of its {len(reached.devices)} devices are offline now: an execution {wait}."
    return [Reason("devices_offline", text, value=offline)]


async def _history(session: Session, task_id: int) -> list[Reason]:
    """How its latest executions ended, where not well."""
    table = scheduled_task_executions
    query = select(table).where(table.c.task_id == task_id, table.c.completed_time.is_not(None))
    rows = await session.execute(query.order_by(table.c.id.desc()).limit(LATEST))
    return [_ended(row) for row in rows if row.status != ExecutionStatus.COMPLETED]


def _ended(row: Any) -> Reason:
    planned = row.planned_for or row.due_at or row.execution_time
    when = f" planned for {format_instant(planned)}" if planned else ""
    if row.reason:
        several = f" ({row.occurrences} in a row)" if row.occurrences > 1 else ""
        text = f"Execution {row.id}{when} was {row.status}{several}: {reason_in_words(row.reason)}"
        return Reason(row.reason, text, planned, row.status)
    text = (
        f"Execution {row.id}{when} {'failed' if row.status == 'failed' else 'was cancelled'}: {row.error_message or ''}"
    )
    return Reason(
        row.status, text.rstrip(": ") + ("" if text.endswith(".") else "."), row.completed_time, row.error_message
    )


# -- an execution -----------------------------------------------------------------------------------------------


async def execution(session: Session, row: Any, *, now: datetime) -> list[Reason]:
    """Why an execution is where it is: what kept it from starting, or what its devices say."""
    task = await _task_of(session, row.task_id)
    calendar = (await calendars.of(session, calendars.TASKS, [row.task_id])).get(row.task_id)
    match ExecutionStatus(row.status):
        case ExecutionStatus.QUEUED | ExecutionStatus.DELAYED:
            return [_waits(row, task, calendar, now)]
        case ExecutionStatus.MISSED | ExecutionStatus.SKIPPED:
            return [_ended(row), *_measures(row, task)]
        case ExecutionStatus.COMPLETED:
            return [Reason("completed", f"It completed: {await _devices_say(session, row.id)}.", row.completed_time)]
        case ExecutionStatus.RUNNING:
            since = row.execution_time
            text = f"It has been running since {format_instant(since)}: {await _devices_say(session, row.id)}."
            return [Reason("running", text, since, row.id), *await _of_devices(session, row.id)]
        case _:
            return [_ended(row), *await _of_devices(session, row.id)]


async def _task_of(session: Session, task_id: int) -> Task:
    query = select(scheduled_tasks).where(scheduled_tasks.c.id == task_id)
    return (await session.execute(query)).mappings().one()


def _measures(row: Any, task: Task) -> list[Reason]:
    """The setting that decided, with its value now."""
    settings = {
        "misfire": "misfire_grace_seconds", "coalesced": "catch_up", "catch_up_none": "catch_up",
        "max_instances": "max_instances", "outside_window": "outside_window", "superseded": "overlap_policy",
    }  # fmt: skip
    name = settings.get(row.reason)
    late = row.completed_time - row.due_at if row.due_at and row.reason == "misfire" else None
    found = [Reason(name, f"The task's {name} is {task[name]}.", value=task[name])] if name else []
    if late is not None:
        found.append(
            Reason("found_late", f"It was due at {format_instant(row.due_at)} and found {late} later.", row.due_at)
        )
    return found


_ADVICE = (
    (
        "permission denied",
        "path_or_permission",
        "The agent's user may not do this there: check permissions and run_as.",
    ),
    ("no such file", "path_or_permission", "A path does not exist on the device: check it there."),
    ("working directory", "path_or_permission", "The working directory is missing on the device."),
    ("not found", "path_or_permission", "The command or shell is not on the device, or not in the agent's PATH."),
)


async def _of_devices(session: Session, execution_id: int) -> list[Reason]:
    """The devices that did not succeed, most alike first, with what to look at."""
    table = device_runs
    query = (
        select(
            table.c.status, table.c.reason, table.c.exit_code, func.count().label("n"),
            func.min(devices.c.name).label("device"), func.min(table.c.id).label("run_id"),
        )
        .join(deployments, deployments.c.id == table.c.deployment_id)
        .join(devices, devices.c.id == table.c.device_id)
        .where(deployments.c.execution_id == execution_id, table.c.status != "succeeded")
        .group_by(table.c.status, table.c.reason, table.c.exit_code)
        .order_by(func.count().desc())
        .limit(LATEST)
    )  # fmt: skip
    reasons: list[Reason] = []
    for row in await session.execute(query):
        others = f" and {row.n - 1} more" if row.n > 1 else ""
        why = row.reason or (f"exit code {row.exit_code}" if row.exit_code is not None else "no reason was given")
        rule = "devices_offline" if row.status in ("expired", "waiting", "lost") else row.status
        text = f"Device {row.device!r}{others}: {row.status}, {why.rstrip('.')}."
        reasons.append(
            Reason(rule, text, value={"device_run_id": row.run_id, "devices": row.n, "exit_code": row.exit_code})
        )
        reasons += _advice(why, row.exit_code)
    return reasons


def _advice(why: str, exit_code: int | None) -> list[Reason]:
    if exit_code == 126:
        return [
            Reason("path_or_permission", "Exit code 126: the command is there, but may not be executed.", value=126)
        ]
    if exit_code == 127:
        return [Reason("path_or_permission", "Exit code 127: the shell did not find the command.", value=127)]
    found = next((advice for advice in _ADVICE if advice[0] in why.lower()), None)
    if found:
        return [Reason(found[1], found[2], value=why)]
    if exit_code:
        return [
            Reason(
                "try_by_hand",
                "Read its output, or run the command as a deployment on this device alone.",
                value=exit_code,
            )
        ]
    return []
