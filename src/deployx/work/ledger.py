"""Writes what a look decided: rows of the ledger, turns of what waited, the tasks' new values, what is left to tidy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select

from deployx.db.bulk import allocate_ids, insert_rows, update_rows
from deployx.db.database import Session
from deployx.db.schema import scheduled_task_executions, scheduled_tasks
from deployx.fleet.resolution import Targets
from deployx.lifecycle import ExecutionStatus
from deployx.timing.policy import SUPERSEDED, CatchUp, Ending, Entry
from deployx.timing.turns import Turn
from deployx.work import alarms, dependencies, deployments, looks, overrides, superseding, versions
from deployx.work.deployments import Sending
from deployx.work.looks import Outcome
from deployx.work.task_rows import Task

NO_DEVICES = "There are no target devices."
_ROW = (
    "id", "task_id", "task_version", "trigger", "planned_for", "covers_until", "occurrences", "due_at", "cause",
    "status", "reason", "execution_time", "completed_time", "result", "error_message", "requested_by",
)  # fmt: skip
_STATUS_OF = {"queue": ExecutionStatus.QUEUED, "delay": ExecutionStatus.DELAYED}


@dataclass(frozen=True, slots=True)
class Start:
    """Why an execution starts; one by hand has a cause of its own and no planned instant."""

    trigger: str
    planned_for: datetime | None = None
    due_at: datetime | None = None
    cause: str | None = None
    requested_by: int | None = None


@dataclass(slots=True)
class Written:
    """What is under way after a look was written, and the executions that ended at once, since they could not start."""

    sendings: list[Sending] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    superseded: list[int] = field(default_factory=list)
    """Older deployments of which runs were superseded."""


async def write(
    session: Session, installation_id: str, outcomes: Sequence[Outcome], targets: Mapping[int, Targets], *,
    now: datetime,
) -> Written:  # fmt: skip
    """Write what a look decided. `targets` are those of the tasks of which something starts."""
    count = sum(len(one.decision.entries) for one in outcomes)
    ids = iter(await allocate_ids(session, scheduled_task_executions, count))
    written = Written()
    rows: list[tuple[Any, ...]] = []
    for outcome in outcomes:
        reached = targets.get(outcome.task["id"])
        outcome.refusal = refusal_of(reached) if reached else None
        rows += [_row(next(ids), outcome, entry, reached, written, now) for entry in outcome.decision.entries]
    await insert_rows(session, scheduled_task_executions, _ROW, rows)
    turned = [one for one in outcomes if one.turns.changed or one.superseded()]
    if turned:
        await _take_turns(session, turned, targets, written, now=now)
    started = await deployments.start(session, installation_id, written.sendings, now=now)
    if any(one.running for one in outcomes):
        written.superseded = await superseding.replace_older(session, started, now=now)
    await _move_tasks(session, outcomes, now=now)
    await _tidy(session, outcomes, now=now)
    return written


def refusal_of(targets: Targets) -> str | None:
    """Why an execution on these targets cannot start."""
    return targets.refusal or (None if targets.devices else NO_DEVICES)


def _row(
    identity: int, one: Outcome, entry: Entry, reached: Targets | None, written: Written, now: datetime
) -> tuple[Any, ...]:
    if entry.action == "record":
        return _recorded_row(identity, one.task, entry, now)
    if entry.action in _STATUS_OF:
        return _waiting_row(identity, one.task, entry)
    assert reached is not None
    start = Start(entry.trigger, entry.planned_for, entry.due_at, entry.cause)
    if one.refusal is None:
        written.sendings.append(_sending(one.task, identity, start, reached, one.closes_at))
    else:
        written.failed.append(identity)
    return _started_row(identity, one.task, start, one.refusal, now)


async def write_started(session: Session, task: Task, start: Start, targets: Targets, *, now: datetime) -> Written:
    """Write one execution that starts by hand, or fails since it cannot; the deployment is left to the caller."""
    (identity,) = await allocate_ids(session, scheduled_task_executions, 1)
    refusal = refusal_of(targets)
    await insert_rows(session, scheduled_task_executions, _ROW, [_started_row(identity, task, start, refusal, now)])
    return Written(failed=[identity]) if refusal else Written([_sending(task, identity, start, targets)])


async def write_retry(session: Session, task: Task, start: Start, *, now: datetime) -> int:
    """Write an execution that tries an earlier one again; its deployment is the caller's. Answers its id."""
    (identity,) = await allocate_ids(session, scheduled_task_executions, 1)
    await insert_rows(session, scheduled_task_executions, _ROW, [_started_row(identity, task, start, None, now)])
    return identity


def _run_key(task: Task, start: Start) -> str:
    what = start.cause if start.planned_for is None else start.planned_for.isoformat()
    return f"task:{task['id']}:{what}"


def _recorded_row(identity: int, task: Task, entry: Entry, now: datetime) -> tuple[Any, ...]:
    return (
        identity, task["id"], task["version"], entry.trigger, entry.planned_for, entry.covers_until, entry.occurrences,
        entry.due_at, entry.cause, entry.status, entry.reason, None, now, None, None, None,
    )  # fmt: skip


def _waiting_row(identity: int, task: Task, entry: Entry) -> tuple[Any, ...]:
    return (
        identity, task["id"], task["version"], entry.trigger, entry.planned_for, None, 1, entry.due_at, entry.cause,
        _STATUS_OF[entry.action].value, None, None, None, None, None, None,
    )  # fmt: skip


def _started_row(identity: int, task: Task, start: Start, refusal: str | None, now: datetime) -> tuple[Any, ...]:
    status = ExecutionStatus.FAILED if refusal else ExecutionStatus.RUNNING
    return (
        identity, task["id"], task["version"], start.trigger, start.planned_for, None, 1, start.due_at, start.cause,
        status.value, None, now, now if refusal else None, {"counts": {}} if refusal else None, refusal,
        start.requested_by,
    )  # fmt: skip


def _sending(
    task: Task, execution_id: int, start: Start, targets: Targets, closes_at: datetime | None = None
) -> Sending:
    return Sending(
        deployment_type=task["task_type"],
        deployment_name=targets.sent_as or task["task_name"],
        payload_id=task["payload_id"],
        execution_id=execution_id,
        run_key=_run_key(task, start),
        offline_policy=task["offline_policy"],
        offline_deadline_seconds=task["offline_deadline_seconds"],
        lost_after_seconds=task["lost_after_seconds"],
        created_by=task["created_by"],
        devices=targets.ordered(),
        rollout=task["rollout"],
        retry=task["retry"],
        supersedable=task["catch_up"] != CatchUp.ALL,
        closes_at=closes_at,
        work=targets.work,
    )


async def _take_turns(
    session: Session, outcomes: Sequence[Outcome], targets: Mapping[int, Targets], written: Written, *, now: datetime
) -> None:
    """Move executions that waited: some start, some wait for something else, some end without having started."""
    turns = {turn.id: (one, turn) for one in outcomes for turn in one.turns.changed}
    turns |= {row: (one, Turn(row, SUPERSEDED)) for one in outcomes for row in one.superseded()}
    table = scheduled_task_executions
    query = select(table.c.id, table.c.planned_for, table.c.cause, table.c.trigger).where(table.c.id.in_(turns))
    moves: list[tuple[Any, ...]] = []
    for row in await session.execute(query.order_by(table.c.id)):
        one, turn = turns[row.id]
        version = one.task["version"]
        if turn.outcome == "start":
            status = ExecutionStatus.FAILED if one.refusal else ExecutionStatus.RUNNING
            ended_at = now if one.refusal else None
            result: dict[str, Any] | None = {"counts": {}} if one.refusal else None
            moves.append((row.id, status.value, None, version, now, ended_at, result, one.refusal))
            if one.refusal:
                written.failed.append(row.id)
            else:
                start = Start(row.trigger, row.planned_for, cause=row.cause)
                written.sendings.append(_sending(one.task, row.id, start, targets[one.task["id"]], one.closes_at))
        elif isinstance(turn.outcome, Ending):
            moves.append((row.id, turn.outcome.status, turn.outcome.reason, version, None, now, None, None))
        else:
            moves.append((row.id, turn.outcome, None, version, None, None, None, None))
    columns = (
        "status", "reason", "task_version", "execution_time", "completed_time", "result", "error_message",
    )  # fmt: skip
    await update_rows(session, table, columns, moves, guard="completed_time IS NULL")


async def _move_tasks(session: Session, outcomes: Sequence[Outcome], *, now: datetime) -> None:
    rows = []
    for one in outcomes:
        task = one.task
        result, message = looks.last_result(one)
        rows.append(
            (task["id"], looks.status_after(one).value, one.owed.next_planned, one.next_at,
             task["execution_count"] + one.started, now if one.started else task["last_execution"], result, message,
             one.is_waiting)
        )  # fmt: skip
    columns = (
        "status", "next_planned_for", "next_execution", "execution_count", "last_execution", "last_result",
        "error_message", "waiting",
    )  # fmt: skip
    await update_rows(session, scheduled_tasks, columns, rows)


async def _tidy(session: Session, outcomes: Sequence[Outcome], *, now: datetime) -> None:
    """Write what else a look leaves behind: alarms, used overrides, used endings of upstream tasks."""
    wanted = {(one.task["id"], one.alarm_at) for one in outcomes if one.alarm_at is not None}
    if wanted:
        known = await alarms.later_of(session, sorted({task_id for task_id, _ in wanted}), now=now)
        await alarms.add(session, sorted(wanted - known))
    for one in outcomes:
        if one.owed.used or one.owed.ahead:
            await overrides.spend(session, one.task["id"], one.owed.used, one.owed.ahead)
    events_used = [event for one in outcomes for event in one.events_used]
    if events_used:
        await dependencies.forget(session, events_used)


async def write_resumed(session: Session, outcomes: Sequence[Outcome], *, resumed_at: datetime) -> None:
    rows = [(one.task["id"], one.task["version"], None, None, resumed_at) for one in outcomes]
    columns = ("version", "paused_reason", "paused_until", "updated_at")
    await update_rows(session, scheduled_tasks, columns, rows)
    for one in outcomes:
        task = one.task
        at = task["resumed_at"]
        await versions.add_move(session, task["id"], task["version"], "resume", "pending", by=None, at=at)
        if task["overridden"]:
            await overrides.remove(session, task["id"], one.passed_overrides)
