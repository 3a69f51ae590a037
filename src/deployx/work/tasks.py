"""Tasks: what, where and when. Creating, changing and ending a definition; the clock turns it into executions.

Every change first accounts, in its own transaction, for what was due before it, then makes a new version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import select, update

from deployx.catalog import uses
from deployx.db.bulk import allocate_ids, insert_rows
from deployx.db.database import Session
from deployx.db.schema import (
    payloads,
    scheduled_tasks,
)  # fmt: skip
from deployx.errors import Conflict, Invalid, NotFound, Problem
from deployx.fleet.resolution import Targets
from deployx.lifecycle import TASK_MOVES, TASK_SCHEDULED, TaskStatus
from deployx.timing import recurrence
from deployx.timing.instants import format_instant
from deployx.timing.jitter import delay
from deployx.timing.recurrence import MOST_OCCURRENCES, After, Recurrence
from deployx.work import (
    again,
    alarms,
    dependencies,
    executions,
    overrides,
    plans,
    reaching,
    specs,
    task_rows,
    versions,
)  # fmt: skip
from deployx.work.executions import Server
from deployx.work.specs import Counted, TaskSpec
from deployx.work.task_rows import Task
from deployx.work.versions import Version


async def create(session: Session, spec: TaskSpec, *, by: int, now: datetime, is_paused: bool = False) -> int:
    """Store a task with its first due instant; permission on the targets is the caller's to check. Answers its id."""
    (task_id,) = await create_many(session, [spec], by=by, now=now, is_paused=is_paused)
    return task_id


async def create_many(
    session: Session, wanted: Sequence[TaskSpec], *, by: int, now: datetime, is_paused: bool = False
) -> list[int]:
    """Store tasks in a handful of bulk statements, all or none. Raises Invalid, naming the place in `wanted`."""
    planned = []
    for position, spec in enumerate(wanted):
        try:
            planned.append(specs.plan(spec, now=now, start_kept=is_paused))
        except Invalid as error:
            error.position = position
            raise
    ids = await allocate_ids(session, scheduled_tasks, len(wanted))
    payload_ids = await allocate_ids(session, payloads, len(wanted))
    await insert_rows(
        session,
        payloads,
        ("id", "kind", "body"),
        [
            (payload_id, spec.task_type, dict(spec.payload))
            for payload_id, spec in zip(payload_ids, wanted, strict=True)
        ],
    )
    await uses.write(
        session, {one: (spec.task_type, spec.payload) for one, spec in zip(payload_ids, wanted, strict=True)}
    )
    status = (TaskStatus.PAUSED if is_paused else TaskStatus.PENDING).value
    values = [
        specs.row_values(spec, rule, now) | {"id": task_id, "payload_id": payload_id, "status": status}
        | {"version": 1, "created_by": by, "created_at": now, "execution_count": 0, "counted_from": now}
        | _next(task_id, None if is_paused else first, spec.jitter_seconds)
        for spec, (rule, first), task_id, payload_id in zip(wanted, planned, ids, payload_ids, strict=True)
    ]  # fmt: skip
    await insert_rows(session, scheduled_tasks, list(values[0]), [tuple(row.values()) for row in values])
    rules = {task_id: rule for task_id, (rule, _) in zip(ids, planned, strict=True)}
    await specs.write_links(session, dict(zip(ids, wanted, strict=True)), rules)
    created = (
        Version(task_id, 1, now, by, "create", specs.definition(spec, rule, now), status, specs.last_planned_for(rule))
        for task_id, spec, (rule, _) in zip(ids, wanted, planned, strict=True)
    )
    await versions.add(session, created)
    return ids


def _next(task_id: int, first: datetime | None, jitter_seconds: int) -> dict[str, datetime | None]:
    """The nominal instant that comes next, and when it falls due."""
    due_at = None if first is None else first + delay(task_id, first, jitter_seconds)
    return {"next_planned_for": first, "next_execution": due_at}


async def change(
    session: Session, server: Server, task_id: int, before: TaskSpec, after: TaskSpec, status: str | None, *,
    by: int, now: datetime,
) -> None:  # fmt: skip
    """Give a task another definition, and with `status` another state; takes effect from the next occurrence."""
    task = await locked(session, server, task_id, now=now)
    start_kept = after.scheduled_time == before.scheduled_time and after.recurrence_type == before.recurrence_type
    wanted = TaskStatus(status) if status is not None and status != task["status"] else None
    created_at, counted = await _counted(session, task, before, after, now=now)
    rule, first = specs.plan(after, now=now, counted=counted, start_kept=start_kept and wanted is None)
    await _link_upstreams(session, task_id, rule)
    moved = _moved(task, wanted, first, rule) if wanted else TaskStatus(task["status"])
    if moved == TaskStatus.PENDING and await executions.running_of(session, task_id):
        moved = TaskStatus.RUNNING
    if task["status"] not in TASK_SCHEDULED:
        await _begin_anew(session, task_id, now=now)
    if moved in TASK_SCHEDULED:
        await _carry_over(session, task, now=now)
    else:
        await plans.close_pending(session, task, moved, now=now)
    await _drop_stale(session, task_id, rule, now=now)
    values = specs.row_values(after, rule, now) | {
        "counted_from": counted.counted_from, "planned_before": counted.planned_before,
    }  # fmt: skip
    if dict(after.payload) != dict(before.payload):
        (values["payload_id"],) = await allocate_ids(session, payloads, 1)
        body = (values["payload_id"], after.task_type, dict(after.payload))
        await insert_rows(session, payloads, ("id", "kind", "body"), [body])
        await uses.write(session, {values["payload_id"]: (after.task_type, after.payload)})
    values |= {"status": moved.value}
    values |= _next(task_id, first if moved in TASK_SCHEDULED else None, after.jitter_seconds)
    values |= {} if moved == TaskStatus.PAUSED else {"paused_reason": None, "paused_until": None}
    await _store(session, task, values)
    if (after.device_ids, after.group_ids) != (before.device_ids, before.group_ids):
        await specs.write_targets(session, {task_id: after}, replace=True)
    await specs.attach_calendars(session, {task_id: after}, replace=True)
    changed = specs.definition(after, rule, created_at)
    last = specs.last_planned_for(rule)
    await versions.add(session, [Version(task_id, task["version"] + 1, now, by, "update", changed, moved, last)])
    await alarms.add(session, [(task_id, now)])
    if moved == TaskStatus.CANCELLED:
        await _cancel_open(session, server, task_id, now=now)


async def pause(
    session: Session, server: Server, task_id: int, reason: str | None = None, until: datetime | None = None, *,
    by: int, now: datetime,
) -> None:  # fmt: skip
    """Start nothing more on schedule, until it is resumed or `until` comes; executions under way finish."""
    if until is not None and until <= now:
        raise Invalid([Problem(("body", "until"), f"{format_instant(until)} has passed: give a future instant.")])
    task = await locked(session, server, task_id, now=now)
    values = {"paused_reason": reason, "paused_until": until, "updated_at": now}
    if task["status"] == TaskStatus.PAUSED:
        await session.execute(update(scheduled_tasks).where(scheduled_tasks.c.id == task_id).values(values))
    else:
        moved = _moved(task, TaskStatus.PAUSED, None, None)
        await plans.close_pending(session, task, moved, now=now)
        await _store(session, task, values | {"status": moved.value, "next_planned_for": None, "next_execution": None})
        await versions.add_move(session, task_id, task["version"] + 1, "pause", moved, by=by, at=now)
    await alarms.add(session, [] if until is None else [(task_id, until)])


async def resume(session: Session, server: Server, task_id: int, *, by: int, now: datetime) -> None:
    """Schedule a paused or ended task again, from its next future occurrence; the time between owes nothing."""
    task = await locked(session, server, task_id, now=now)
    if task["status"] in TASK_SCHEDULED:
        return
    rule = plans.rule_of(task)
    first = rule.next_after(now)
    moved = _moved(task, TaskStatus.PENDING, first, rule)
    if await executions.running_of(session, task_id):
        moved = TaskStatus.RUNNING
    values = {"status": moved.value, "paused_reason": None, "paused_until": None, "updated_at": now}
    await _store(session, task, values | _next(task_id, first, task["jitter_seconds"]))
    await versions.add_move(session, task_id, task["version"] + 1, "resume", moved, by=by, at=now)
    await _begin_anew(session, task_id, now=now)
    await alarms.add(session, [(task_id, now)])


async def _begin_anew(session: Session, task_id: int, *, now: datetime) -> None:
    """What was changed by hand for the time in which the task was not active does not count."""
    changes = (await overrides.of(session, [task_id])).get(task_id, {})
    await overrides.remove(session, task_id, overrides.passed_in_pause(changes, now))


async def cancel(session: Session, server: Server, task_id: int, *, by: int, now: datetime) -> None:
    """End a task for good, and with it what is under way."""
    task = await locked(session, server, task_id, now=now)
    if task["status"] == TaskStatus.CANCELLED:
        return
    moved = _moved(task, TaskStatus.CANCELLED, None, None)
    await plans.close_pending(session, task, moved, now=now)
    values = {"status": moved.value, "next_planned_for": None, "next_execution": None, "updated_at": now}
    await _store(session, task, values | {"paused_until": None})
    await versions.add_move(session, task_id, task["version"] + 1, "cancel", moved, by=by, at=now)
    await _cancel_open(session, server, task_id, now=now)


async def remove(
    session: Session, server: Server, task_id: int, *, by: int, now: datetime, detach: bool = False
) -> None:
    """Delete a task: what is open is cancelled, its executions stay readable by their ids.

    Raises Conflict while other tasks wait for it, unless `detach` asks for their failure.
    """
    task = await locked(session, server, task_id, now=now)
    dependents = await dependencies.dependents_of(session, task_id)
    if dependents and not detach:
        named = ", ".join(f"{name!r} ({one})" for one, name in dependents)
        raise Conflict(
            f"Other tasks start after task {task_id}: {named}. Change them first, or delete with ?detach=true."
        )
    for dependent_id, _name in dependents:
        why = f"It was to start after task {task_id} ({task['task_name']!r}), which was deleted."
        await _fail(session, dependent_id, why, by=by, now=now)
    await dependencies.detach(session, task_id)
    moved = TaskStatus(task["status"])
    if moved in TASK_SCHEDULED or moved == TaskStatus.PAUSED:
        moved = TaskStatus.CANCELLED
    await plans.close_pending(session, task, moved, now=now)
    values = {"next_planned_for": None, "next_execution": None, "deleted_at": now, "status": moved.value}
    await _store(session, task, values)
    await versions.add_move(session, task_id, task["version"] + 1, "delete", moved, by=by, at=now)
    await _cancel_open(session, server, task_id, now=now)


async def set_aside(session: Session, task_id: int, why: str, *, now: datetime) -> None:
    """Fail a task that the clock cannot fire, so that it holds up no other."""
    await _fail(session, task_id, why, by=None, now=now)


async def _fail(session: Session, task_id: int, why: str, *, by: int | None, now: datetime) -> None:
    table = scheduled_tasks
    values = {"status": TaskStatus.FAILED.value, "error_message": why, "next_planned_for": None, "next_execution": None}
    moved = await session.execute(
        update(table)
        .where(table.c.id == task_id)
        .values(version=table.c.version + 1, **values)
        .returning(table.c.version)
    )
    await versions.add_move(session, task_id, moved.scalar_one(), "fail", TaskStatus.FAILED, by=by, at=now)


async def execute(
    session: Session, server: Server, task_id: int, *, by: int, now: datetime, only: Sequence[int] | None = None
) -> int:
    """Start a task now, whatever its schedule says; answers the execution's id.

    `only` names some of its target devices; raises Invalid where one is not among them. Raises Conflict where the task
    is cancelled, or where as many executions run as it allows.
    """
    task = await _with_a_place(session, server, task_id, "executing", now=now)
    targets = (await reaching.of_tasks(session, [task]))[task_id]
    if only is not None:
        targets = _part_of(targets, only)
    return await executions.start_by_hand(session, server, task, targets, by, now=now)


async def retry(session: Session, server: Server, task_id: int, execution_id: int, *, by: int, now: datetime) -> int:
    """Run an ended execution again on the devices that did not succeed; answers the new execution's id.

    It runs what that execution ran. Raises Conflict where it runs still, all succeeded, or the task may not start.
    """
    task = await _with_a_place(session, server, task_id, "trying it again", now=now)
    earlier = await again.of(session, execution_id)
    owner = task_rows.owner_of(task)
    return await executions.start_again(session, server, task, earlier, owner, by, now=now)


async def _with_a_place(session: Session, server: Server, task_id: int, doing: str, *, now: datetime) -> Task:
    """The task, locked, if one more execution of it may start now."""
    task = await locked(session, server, task_id, now=now)
    if task["status"] == TaskStatus.CANCELLED:
        raise Conflict(f"Task {task_id} is cancelled: resume it before {doing}.")
    running = await executions.running_of(session, task_id)
    if running >= task["max_instances"]:
        allowed = task["max_instances"]
        raise Conflict(
            f"{running} executions of task {task_id} run already, and it allows {allowed} at once: wait or cancel one."
        )
    return task


def _part_of(targets: Targets, only: Sequence[int]) -> Targets:
    strangers = [device_id for device_id in only if device_id not in targets.devices]
    if strangers and not targets.refusal:
        why = "is no target of this task: name some of its own devices."
        raise Invalid(
            [
                Problem(("body", "device_ids", only.index(device_id)), f"Device {device_id} {why}")
                for device_id in strangers
            ]
        )
    return replace(targets, devices={one: online for one, online in targets.devices.items() if one in set(only)})


async def locked(session: Session, server: Server, task_id: int, *, now: datetime) -> Task:
    """The task, locked, with all that was due before `now` accounted for."""
    if await task_rows.lock(session, task_id) is None:
        raise NotFound
    await executions.account_for(session, server, [task_id], now=now)
    task = await task_rows.lock(session, task_id)
    if task is None:
        raise NotFound
    return task


def _moved(task: Task, wanted: TaskStatus, first: datetime | None, rule: Recurrence | None) -> TaskStatus:
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
    if wanted == TaskStatus.PENDING and first is None and not isinstance(rule, After):
        raise Conflict(
            f"A task that is {before} cannot become pending: it has no future occurrence. Give it one first."
        )
    return wanted


async def _counted(
    session: Session, task: Task, before: TaskSpec, after: TaskSpec, *, now: datetime
) -> tuple[datetime, Counted]:
    """The task's creation, and how many occurrences were planned so far: what `max_occurrences` counts."""
    table = scheduled_tasks.c
    query = select(table.created_at, table.counted_from, table.planned_before).where(table.id == task["id"])
    row = (await session.execute(query)).one()
    counted = Counted(row.counted_from or row.created_at, row.planned_before)
    same = ("recurrence_type", "recurrence_config", "timezone", "scheduled_time")
    if all(getattr(before, name) == getattr(after, name) for name in same):
        return row.created_at, counted
    rule = plans.rule_of(task)
    planned = sum(1 for _ in islice(rule.between(counted.counted_from, now), MOST_OCCURRENCES))
    return row.created_at, Counted(now, min(counted.planned_before + planned, MOST_OCCURRENCES))


async def _link_upstreams(session: Session, task_id: int, rule: Recurrence) -> None:
    """Store whom the task waits for. Raises Invalid for a cycle, and names the path."""
    if isinstance(rule, After):
        await dependencies.lock(session)
        path = await dependencies.find_cycle(session, task_id, [one.task_id for one in rule.upstreams])
        if path is not None:
            shown = " → ".join(str(one) for one in path)
            why = f"These tasks would wait for each other in a circle: {shown}. Leave one of them out."
            raise Invalid([Problem(("body", "recurrence_config", "after"), why)])
        await dependencies.write(session, {task_id: rule})
    else:
        await dependencies.unlink(session, task_id)


async def _carry_over(session: Session, task: Task, *, now: datetime) -> None:
    """An edit keeps what the old definition planned before it: occurrences that jitter holds back still start."""
    plan = await plans.plan_of(session, task)
    for planned in plans.pending(plan, task, now):
        if planned not in plan.overrides:
            await overrides.put(session, task["id"], planned, plan.due_at(planned), by=None, now=now)


async def _drop_stale(session: Session, task_id: int, rule: Recurrence, *, now: datetime) -> None:
    """Changes of single occurrences stay where the new definition has those too."""
    changes = (await overrides.of(session, [task_id])).get(task_id, {})
    stale = [one for one in changes if one > now and rule.next_after(one - recurrence.TICK) != one]
    await overrides.remove(session, task_id, stale)


async def _store(session: Session, task: Task, values: Mapping[str, Any]) -> None:
    statement = update(scheduled_tasks).where(scheduled_tasks.c.id == task["id"])
    await session.execute(statement.values(version=task["version"] + 1, **values))


async def _cancel_open(session: Session, server: Server, task_id: int, *, now: datetime) -> None:
    await executions.cancel(session, server, await executions.open_of_tasks(session, [task_id]), now=now)
