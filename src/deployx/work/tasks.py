"""Tasks: what, where and when. Creating, changing and ending a definition; the clock turns it into executions.

Every change first accounts, in its own transaction, for what was due before it, then makes a new version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, insert, select, update

from deployx.db.bulk import allocate_ids, insert_rows
from deployx.db.database import Session
from deployx.db.schema import (
    payloads,
    scheduled_tasks,
    task_target_devices,
    task_target_groups,
    task_versions,
)  # fmt: skip
from deployx.errors import Conflict, Invalid, NotFound, Problem
from deployx.fleet.resolution import Owner, resolve
from deployx.lifecycle import TASK_MOVES, TASK_SCHEDULED, TaskStatus
from deployx.timing import recurrence
from deployx.timing.instants import format_instant
from deployx.timing.recurrence import Recurrence, RecurrenceError
from deployx.work import executions


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A whole definition, as asked for: what may be written into a task. Instants are aware UTC."""

    task_name: str
    task_type: str
    scheduled_time: datetime | None
    recurrence_type: str
    recurrence_config: Mapping[str, Any] | None
    timezone: str
    device_ids: tuple[int, ...]
    group_ids: tuple[int, ...]
    payload: Mapping[str, Any]
    misfire_grace_seconds: int = 300
    catch_up: str = "latest"
    max_instances: int = 3
    offline_policy: str = "wait"
    offline_deadline_seconds: int = 300
    lost_after_seconds: int = 600
    pause_on_failure: bool = False
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Installed:
    """The two facts of the server that firing needs."""

    installation_id: str


def plan(spec: TaskSpec, *, now: datetime, start_kept: bool = False) -> tuple[Recurrence, datetime | None]:
    """The recurrence of a definition and its first instant after `now`. Pure.

    Raises Invalid for a rule that is wrong, and for a one-time instant that has passed unless `start_kept` says that
    the task had it before.
    """
    try:
        rule = recurrence.parse(
            spec.recurrence_type,
            spec.recurrence_config,
            scheduled_for=spec.scheduled_time or (None if spec.recurrence_type == "once" else now),
            timezone=spec.timezone,
        )
    except RecurrenceError as error:
        raise Invalid([Problem(("body", *loc), why) for loc, why in error.problems]) from None
    first = rule.next_after(now)
    if first is None and not start_kept:
        raise Invalid([_never_again(spec, now)])
    return rule, first


def _never_again(spec: TaskSpec, now: datetime) -> Problem:
    if spec.recurrence_type == "once" and spec.scheduled_time is not None:
        given, present = format_instant(spec.scheduled_time), format_instant(now)
        return Problem(("body", "scheduled_time"), f"{given} has passed (it is {present}): give a future instant.")
    return Problem(("body", "recurrence_config"), "This schedule has no occurrence in the future: change it.")


async def create(session: Session, spec: TaskSpec, *, by: int, now: datetime) -> int:
    """Store a task with its first due instant; permission on the targets is the caller's to check. Answers its id."""
    (task_id,) = await create_many(session, [spec], by=by, now=now)
    return task_id


async def create_many(session: Session, specs: Sequence[TaskSpec], *, by: int, now: datetime) -> list[int]:
    """Store tasks in a handful of bulk statements, all or none."""
    planned = [plan(spec, now=now) for spec in specs]
    ids = await allocate_ids(session, scheduled_tasks, len(specs))
    payload_ids = await allocate_ids(session, payloads, len(specs))
    await insert_rows(
        session,
        payloads,
        ("id", "kind", "body"),
        [(payload_id, spec.task_type, dict(spec.payload)) for payload_id, spec in zip(payload_ids, specs, strict=True)],
    )
    values = [
        _values(spec, rule, now) | {"id": task_id, "payload_id": payload_id, "status": TaskStatus.PENDING.value}
        | {"version": 1, "created_by": by, "created_at": now, "execution_count": 0}
        | {"next_planned_for": first, "next_execution": first}
        for spec, (rule, first), task_id, payload_id in zip(specs, planned, ids, payload_ids, strict=True)
    ]  # fmt: skip
    await insert_rows(session, scheduled_tasks, list(values[0]), [tuple(row.values()) for row in values])
    for task_id, spec in zip(ids, specs, strict=True):
        await _write_targets(session, task_id, spec)
    versions = [(task_id, 1, now, by, "create", definition(spec)) for task_id, spec in zip(ids, specs, strict=True)]
    await insert_rows(session, task_versions, _VERSION, versions)
    return ids


_VERSION = ("task_id", "version", "effective_at", "changed_by", "action", "definition")


def _values(spec: TaskSpec, rule: Recurrence, now: datetime) -> dict[str, Any]:
    return {
        "task_name": spec.task_name,
        "task_type": spec.task_type,
        "scheduled_time": spec.scheduled_time or (None if spec.recurrence_type == "once" else now),
        "recurrence_type": spec.recurrence_type,
        "recurrence_config": None
        if spec.recurrence_type == "once"
        else json.dumps(recurrence.dump(rule), separators=(",", ":"), sort_keys=True),
        "timezone": spec.timezone,
        "misfire_grace_seconds": spec.misfire_grace_seconds,
        "catch_up": spec.catch_up,
        "max_instances": spec.max_instances,
        "offline_policy": spec.offline_policy,
        "offline_deadline_seconds": spec.offline_deadline_seconds,
        "lost_after_seconds": spec.lost_after_seconds,
        "pause_on_failure": spec.pause_on_failure,
        "labels": dict(spec.labels or {}),
        "updated_at": now,
    }


def definition(spec: TaskSpec) -> dict[str, Any]:
    """A definition as JSON values, for versions and the audit."""
    values = asdict(spec)
    values["scheduled_time"] = format_instant(spec.scheduled_time) if spec.scheduled_time else None
    return values


async def _write_targets(session: Session, task_id: int, spec: TaskSpec) -> None:
    devices = [(task_id, device_id) for device_id in spec.device_ids]
    await insert_rows(session, task_target_devices, ("task_id", "device_id"), devices)
    groups = [(task_id, group_id) for group_id in spec.group_ids]
    await insert_rows(session, task_target_groups, ("task_id", "group_id"), groups)


async def change(
    session: Session, server: Installed, task_id: int, before: TaskSpec, after: TaskSpec, status: str | None, *,
    by: int, now: datetime,
) -> None:  # fmt: skip
    """Give a task another definition, and with `status` another state; takes effect from the next occurrence."""
    task = await _locked(session, server, task_id, now=now)
    start_kept = after.scheduled_time == before.scheduled_time and after.recurrence_type == before.recurrence_type
    wanted = TaskStatus(status) if status is not None and status != task["status"] else None
    rule, first = plan(after, now=now, start_kept=start_kept and wanted is None)
    moved = _moved(task, wanted, first) if wanted else TaskStatus(task["status"])
    if moved == TaskStatus.PENDING and await executions.running_of(session, task_id):
        moved = TaskStatus.RUNNING
    values = _values(after, rule, now)
    if dict(after.payload) != dict(before.payload):
        (values["payload_id"],) = await allocate_ids(session, payloads, 1)
        body = (values["payload_id"], after.task_type, dict(after.payload))
        await insert_rows(session, payloads, ("id", "kind", "body"), [body])
    next_at = first if moved in TASK_SCHEDULED else None
    values |= {"status": moved.value, "next_planned_for": next_at, "next_execution": next_at}
    values |= {} if moved == TaskStatus.PAUSED else {"paused_reason": None}
    await _store(session, task, values)
    if (after.device_ids, after.group_ids) != (before.device_ids, before.group_ids):
        await session.execute(delete(task_target_devices).where(task_target_devices.c.task_id == task_id))
        await session.execute(delete(task_target_groups).where(task_target_groups.c.task_id == task_id))
        await _write_targets(session, task_id, after)
    await _add_version(session, task, "update", definition(after), by=by, now=now)
    if moved == TaskStatus.CANCELLED:
        await _cancel_open(session, task_id, now=now)


async def pause(
    session: Session, server: Installed, task_id: int, spec: TaskSpec, reason: str | None, *, by: int, now: datetime
) -> None:
    """Start nothing more on schedule; executions under way finish."""
    task = await _locked(session, server, task_id, now=now)
    if task["status"] == TaskStatus.PAUSED:
        return
    moved = _moved(task, TaskStatus.PAUSED, None)
    values = {"status": moved.value, "next_planned_for": None, "next_execution": None, "paused_reason": reason}
    await _store(session, task, values | {"updated_at": now})
    await _add_version(session, task, "pause", definition(spec), by=by, now=now)


async def resume(session: Session, server: Installed, task_id: int, spec: TaskSpec, *, by: int, now: datetime) -> None:
    """Schedule a paused or ended task again, from its next future occurrence; the time between owes nothing."""
    task = await _locked(session, server, task_id, now=now)
    if task["status"] in TASK_SCHEDULED:
        return
    _rule, first = plan(spec, now=now, start_kept=True)
    moved = _moved(task, TaskStatus.PENDING, first)
    if await executions.running_of(session, task_id):
        moved = TaskStatus.RUNNING
    values = {"status": moved.value, "next_planned_for": first, "next_execution": first, "paused_reason": None}
    await _store(session, task, values | {"updated_at": now})
    await _add_version(session, task, "resume", definition(spec), by=by, now=now)


async def cancel(session: Session, server: Installed, task_id: int, spec: TaskSpec, *, by: int, now: datetime) -> None:
    """End a task for good, and with it what is under way."""
    task = await _locked(session, server, task_id, now=now)
    if task["status"] == TaskStatus.CANCELLED:
        return
    moved = _moved(task, TaskStatus.CANCELLED, None)
    values = {"status": moved.value, "next_planned_for": None, "next_execution": None, "updated_at": now}
    await _store(session, task, values)
    await _add_version(session, task, "cancel", definition(spec), by=by, now=now)
    await _cancel_open(session, task_id, now=now)


async def remove(session: Session, server: Installed, task_id: int, *, now: datetime) -> None:
    """Delete a task: what is open is cancelled, its executions stay readable by their ids."""
    task = await _locked(session, server, task_id, now=now)
    values: dict[str, Any] = {"next_planned_for": None, "next_execution": None, "deleted_at": now}
    if task["status"] in TASK_SCHEDULED or task["status"] == TaskStatus.PAUSED:
        values["status"] = TaskStatus.CANCELLED.value
    await session.execute(update(scheduled_tasks).where(scheduled_tasks.c.id == task_id).values(values))
    await _cancel_open(session, task_id, now=now)


async def set_aside(session: Session, task_id: int, why: str) -> None:
    """Fail a task that the clock cannot fire, so that it holds up no other."""
    values = {"status": TaskStatus.FAILED.value, "error_message": why, "next_planned_for": None, "next_execution": None}
    await session.execute(update(scheduled_tasks).where(scheduled_tasks.c.id == task_id).values(values))


async def execute(session: Session, server: Installed, task_id: int, *, by: int, now: datetime) -> int:
    """Start a task now, whatever its schedule says; answers the execution's id.

    Raises Conflict where the task is cancelled, or where as many executions run as it allows.
    """
    task = await _locked(session, server, task_id, now=now)
    if task["status"] == TaskStatus.CANCELLED:
        raise Conflict(f"Task {task_id} is cancelled: resume it before executing it.")
    running = await executions.running_of(session, task_id)
    if running >= task["max_instances"]:
        allowed = task["max_instances"]
        raise Conflict(
            f"{running} executions of task {task_id} run already, and it allows {allowed} at once: wait or cancel one."
        )
    owner = Owner(task["created_by"], task["username"], task["role"], bool(task["is_active"]))
    targets = await resolve(session, {task_id: owner})
    return await executions.start_by_hand(session, server.installation_id, task, targets[task_id], by, now=now)


async def _locked(session: Session, server: Installed, task_id: int, *, now: datetime) -> executions.Task:
    """The task, locked, with all that was due before `now` accounted for."""
    if await executions.lock_task(session, task_id) is None:
        raise NotFound
    await executions.account_for(session, server.installation_id, [task_id], now=now)
    task = await executions.lock_task(session, task_id)
    if task is None:
        raise NotFound
    return task


def _moved(task: executions.Task, wanted: TaskStatus, first: datetime | None) -> TaskStatus:
    """Check a move by hand against the lifecycle; raises Conflict that names both states."""
    before = TaskStatus(task["status"])
    by_hand = {TaskStatus.PENDING, TaskStatus.PAUSED, TaskStatus.CANCELLED}
    finished = {TaskStatus.COMPLETED, TaskStatus.FAILED}
    if (
        wanted not in by_hand
        or wanted not in TASK_MOVES[before]
        or (before in finished and wanted != TaskStatus.PENDING)
    ):
        raise Conflict(f"A task that is {before} cannot become {wanted}.")
    if before == TaskStatus.RUNNING and wanted == TaskStatus.PENDING:
        raise Conflict("A task that is running cannot become pending: it does by itself when its executions end.")
    if wanted == TaskStatus.PENDING and first is None:
        raise Conflict(
            f"A task that is {before} cannot become pending: it has no future occurrence. Give it one first."
        )
    return wanted


async def _store(session: Session, task: executions.Task, values: Mapping[str, Any]) -> None:
    statement = update(scheduled_tasks).where(scheduled_tasks.c.id == task["id"])
    await session.execute(statement.values(version=task["version"] + 1, **values))


async def _add_version(
    session: Session, task: executions.Task, action: str, values: Mapping[str, Any], *, by: int, now: datetime
) -> None:
    row = (task["id"], task["version"] + 1, now, by, action, dict(values))
    await session.execute(insert(task_versions).values(dict(zip(_VERSION, row, strict=True))))


async def _cancel_open(session: Session, task_id: int, *, now: datetime) -> None:
    await executions.cancel(session, await executions.open_of_tasks(session, [task_id]), now=now)


async def specs(session: Session, task_ids: Sequence[int]) -> dict[int, TaskSpec]:
    """The stored definitions of these tasks, in a constant number of queries."""
    table = scheduled_tasks
    rows = (
        await session.execute(
            select(table, payloads.c.body)
            .join(payloads, payloads.c.id == table.c.payload_id)
            .where(table.c.id.in_(task_ids))
        )
    ).mappings()
    devices, groups = await targets_of(session, task_ids)
    return {row["id"]: _spec(row, devices[row["id"]], groups[row["id"]]) for row in rows}


async def targets_of(
    session: Session, task_ids: Sequence[int]
) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]]:
    """Device ids and group ids that these tasks name, ascending."""
    found: list[dict[int, tuple[int, ...]]] = []
    for table, column in ((task_target_devices, "device_id"), (task_target_groups, "group_id")):
        named: dict[int, tuple[int, ...]] = dict.fromkeys(task_ids, ())
        query = select(table.c.task_id, table.c[column]).where(table.c.task_id.in_(task_ids)).order_by(table.c[column])
        for task_id, target_id in await session.execute(query):
            named[task_id] += (target_id,)
        found.append(named)
    return found[0], found[1]


def _spec(row: Mapping[Any, Any], device_ids: tuple[int, ...], group_ids: tuple[int, ...]) -> TaskSpec:
    return TaskSpec(
        task_name=row["task_name"],
        task_type=row["task_type"],
        scheduled_time=row["scheduled_time"],
        recurrence_type=row["recurrence_type"],
        recurrence_config=json.loads(row["recurrence_config"]) if row["recurrence_config"] else None,
        timezone=row["timezone"],
        device_ids=device_ids,
        group_ids=group_ids,
        payload=row["body"],
        misfire_grace_seconds=row["misfire_grace_seconds"],
        catch_up=row["catch_up"],
        max_instances=row["max_instances"],
        offline_policy=row["offline_policy"],
        offline_deadline_seconds=row["offline_deadline_seconds"],
        lost_after_seconds=row["lost_after_seconds"],
        pause_on_failure=row["pause_on_failure"],
        labels=row["labels"],
    )
