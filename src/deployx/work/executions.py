"""Executions: the ledger. Claims due tasks, decides each occurrence, starts or records it, and ends what has ended.

Over 400 lines because one transaction writes what starts and what ends, and both move the same task.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import RowMapping, text

from deployx.db.bulk import (
    allocate_ids,
    any_of,
    ids_parameter,
    insert_rows,
    moment_parameter,
    row_lock,
    update_rows,
)  # fmt: skip
from deployx.db.database import Session
from deployx.db.schema import scheduled_task_executions, scheduled_tasks
from deployx.fleet.resolution import Owner, Targets, resolve
from deployx.lifecycle import DeploymentStatus, ExecutionStatus, TaskStatus
from deployx.timing import recurrence
from deployx.timing.policy import CatchUp, Decision, Due, Entry, decide
from deployx.work import deployments
from deployx.work.deployments import Ended, Sending

FRESH = timedelta(seconds=300)
"""Tasks due within this are claimed before older backlog, so that what can still run is not kept waiting."""

NO_DEVICES = "There are no target devices."

OCCURRENCES_AT_ONCE = 1000
"""How many instants of one task one claim looks at; the rest of a long backlog follows in later claims."""

_ROW = (
    "id", "task_id", "task_version", "trigger", "planned_for", "covers_until", "occurrences", "due_at", "cause",
    "status", "reason", "execution_time", "completed_time", "result", "error_message", "requested_by",
)  # fmt: skip

_SELECT_TASKS = (
    "SELECT t.id, t.version, t.status, t.task_name, t.task_type, t.payload_id, t.recurrence_type, t.recurrence_config,"
    " t.scheduled_time, t.timezone, t.next_planned_for, t.next_execution, t.misfire_grace_seconds, t.catch_up,"
    " t.max_instances, t.offline_policy, t.offline_deadline_seconds, t.lost_after_seconds, t.pause_on_failure,"
    " t.execution_count, t.last_execution, t.last_result, t.error_message, t.created_by,"
    " u.username, u.role, u.is_active FROM scheduled_tasks t JOIN users u ON u.id = t.created_by"
)
_TYPES = {
    name: scheduled_tasks.c[name].type
    for name in ("scheduled_time", "next_planned_for", "next_execution", "last_execution", "last_result")
}

Task = RowMapping


@dataclass(frozen=True, slots=True)
class Start:
    """Why an execution starts; one by hand has a cause of its own and no planned instant."""

    trigger: str
    planned_for: datetime | None = None
    due_at: datetime | None = None
    cause: str | None = None
    requested_by: int | None = None


@dataclass(slots=True)
class _Outcome:
    """What a claim does to one task: the rows to write and the task's new values."""

    task: Task
    starting: list[Entry] = field(default_factory=list)
    recorded: list[Entry] = field(default_factory=list)
    next_at: datetime | None = None
    failed_to_start: str | None = None


async def fire(session: Session, installation_id: str, *, now: datetime, limit: int, backlog: bool = False) -> int:
    """Claim up to `limit` due tasks and account for what each owes; answers how many were claimed.

    One transaction writes the ledger rows, the deployments with their device runs, and each task's next instant.
    """
    since = now - FRESH
    span = "t.next_execution <= :since" if backlog else "t.next_execution > :since AND t.next_execution <= :now"
    rows = await session.execute(
        text(
            f"{_SELECT_TASKS} WHERE {span} ORDER BY t.next_execution LIMIT :limit {row_lock(session, 't', skip=True)}"
        ).columns(**_TYPES),
        {"since": moment_parameter(session, since), "limit": limit}
        | ({} if backlog else {"now": moment_parameter(session, now)}),
    )
    claimed = list(rows.mappings())
    await _account(session, installation_id, claimed, now=now)
    return len(claimed)


async def next_due(session: Session) -> datetime | None:
    """When the soonest task is due."""
    rows = await session.execute(
        text(
            "SELECT next_execution FROM scheduled_tasks WHERE next_execution IS NOT NULL"
            " ORDER BY next_execution LIMIT 1"
        ).columns(next_execution=scheduled_tasks.c.next_execution.type)
    )  # fmt: skip
    found: datetime | None = rows.scalar()
    return found


async def due_ids(session: Session, *, now: datetime, limit: int) -> list[int]:
    rows = await session.execute(
        text("SELECT id FROM scheduled_tasks WHERE next_execution <= :now ORDER BY next_execution LIMIT :limit"),
        {"now": moment_parameter(session, now), "limit": limit},
    )
    return list(rows.scalars())


async def account_for(session: Session, installation_id: str, task_ids: Sequence[int], *, now: datetime) -> None:
    """Lock these tasks and account for all that was due before `now`: the first step of every change of a task."""
    while True:
        rows = await session.execute(
            text(
                f"{_SELECT_TASKS} WHERE {any_of(session, 't.id', 'ids')} ORDER BY t.id {row_lock(session, 't')}"
            ).columns(**_TYPES),
            {"ids": ids_parameter(session, task_ids)},
        )
        due = [task for task in rows.mappings() if task["next_execution"] and task["next_execution"] <= now]
        if not due:
            return
        await _account(session, installation_id, due, now=now)


async def _account(session: Session, installation_id: str, tasks: Sequence[Task], *, now: datetime) -> None:
    if not tasks:
        return
    running = await _count_running(session, [task["id"] for task in tasks if task["status"] == TaskStatus.RUNNING])
    outcomes = [_decide(task, running.get(task["id"], 0), now) for task in tasks]
    starting = [outcome for outcome in outcomes if outcome.starting]
    targets = await resolve(session, {one.task["id"]: _owner(one.task) for one in starting}) if starting else {}
    await _write(session, installation_id, outcomes, targets, now=now)


async def _count_running(session: Session, task_ids: Sequence[int]) -> dict[int, int]:
    if not task_ids:
        return {}
    rows = await session.execute(
        text(
            "SELECT task_id, count(*) AS n FROM scheduled_task_executions WHERE completed_time IS NULL AND "
            + any_of(session, "task_id", "ids")
            + " GROUP BY task_id"
        ),
        {"ids": ids_parameter(session, task_ids)},
    )
    return {row.task_id: row.n for row in rows}


def _owner(task: Task) -> Owner:
    return Owner(task["created_by"], task["username"], task["role"], bool(task["is_active"]))


def _decide(task: Task, running: int, now: datetime) -> _Outcome:
    """Enumerate what the task owes up to now and let the policy decide each instant. Pure."""
    rule = recurrence.load(task["recurrence_type"], task["recurrence_config"], task["scheduled_time"], task["timezone"])
    due: list[Due] = []
    upcoming = task["next_planned_for"]
    while upcoming is not None and upcoming <= now and len(due) < OCCURRENCES_AT_ONCE:
        due.append(Due(upcoming, upcoming))
        upcoming = rule.next_after(upcoming)
    decision: Decision = decide(
        due,
        now=now,
        grace=timedelta(seconds=task["misfire_grace_seconds"]),
        catch_up=CatchUp(task["catch_up"]),
        running=running,
        max_instances=task["max_instances"],
    )
    outcome = _Outcome(task, next_at=decision.resume_at or upcoming)
    for entry in decision.entries:
        (outcome.starting if entry.action == "start" else outcome.recorded).append(entry)
    return outcome


async def _write(
    session: Session,
    installation_id: str,
    outcomes: Sequence[_Outcome],
    targets: Mapping[int, Targets],
    *,
    now: datetime,
) -> None:
    count = sum(len(one.starting) + len(one.recorded) for one in outcomes)
    ids = iter(await allocate_ids(session, scheduled_task_executions, count))
    rows: list[tuple[Any, ...]] = []
    sendings: list[Sending] = []
    for outcome in outcomes:
        for entry in outcome.recorded:
            rows.append(_recorded_row(next(ids), outcome.task, entry, now))
        for entry in outcome.starting:
            execution_id = next(ids)
            reached = targets[outcome.task["id"]]
            refusal = reached.refusal or (None if reached.devices else NO_DEVICES)
            outcome.failed_to_start = refusal
            start = Start(entry.trigger, entry.planned_for, entry.due_at)
            rows.append(_started_row(execution_id, outcome.task, start, refusal, now))
            if refusal is None:
                run_key = _run_key(outcome.task["id"], entry.planned_for)
                sendings.append(_sending(outcome.task, execution_id, run_key, reached.ordered()))
    await insert_rows(session, scheduled_task_executions, _ROW, rows)
    await deployments.start(session, installation_id, sendings, now=now)
    await _move_tasks(session, outcomes, now=now)
    await settle_deployments(session, await _ended_at_once(session, sendings), now=now)


def _run_key(task_id: int, planned_for: datetime) -> str:
    return f"task:{task_id}:{planned_for.isoformat()}"


def _recorded_row(identity: int, task: Task, entry: Entry, now: datetime) -> tuple[Any, ...]:
    return (
        identity, task["id"], task["version"], entry.trigger, entry.planned_for, entry.covers_until, entry.occurrences,
        entry.due_at, None, entry.status, entry.reason, None, now, None, None, None,
    )  # fmt: skip


def _started_row(identity: int, task: Task, start: Start, refusal: str | None, now: datetime) -> tuple[Any, ...]:
    status = ExecutionStatus.FAILED if refusal else ExecutionStatus.RUNNING
    return (
        identity, task["id"], task["version"], start.trigger, start.planned_for, None, 1, start.due_at, start.cause,
        status.value, None, now, now if refusal else None, {"counts": {}} if refusal else None, refusal,
        start.requested_by,
    )  # fmt: skip


def _sending(task: Task, execution_id: int, run_key: str, devices: Sequence[tuple[int, bool]]) -> Sending:
    return Sending(
        deployment_type=task["task_type"],
        deployment_name=task["task_name"],
        payload_id=task["payload_id"],
        execution_id=execution_id,
        run_key=run_key,
        offline_policy=task["offline_policy"],
        offline_deadline_seconds=task["offline_deadline_seconds"],
        lost_after_seconds=task["lost_after_seconds"],
        created_by=task["created_by"],
        devices=devices,
    )


async def _ended_at_once(session: Session, sendings: Sequence[Sending]) -> list[int]:
    """Deployments of which no device may wait and none was online: their runs were inserted as ended."""
    silent = [
        one.execution_id
        for one in sendings
        if one.execution_id and one.offline_policy == "fail" and not any(online for _, online in one.devices)
    ]
    return await deployments.of_executions(session, silent) if silent else []


async def _move_tasks(session: Session, outcomes: Sequence[_Outcome], *, now: datetime) -> None:
    rows = []
    for one in outcomes:
        task, started = one.task, len(one.starting)
        result, message = _last_result(one)
        status = _status_after_firing(one)
        next_at = None if status == TaskStatus.PAUSED else one.next_at
        rows.append(
            (task["id"], status.value, next_at, next_at, task["execution_count"] + started,
             now if started else task["last_execution"], result, message)
        )  # fmt: skip
    columns = (
        "status", "next_planned_for", "next_execution", "execution_count", "last_execution", "last_result",
        "error_message",
    )  # fmt: skip
    await update_rows(session, scheduled_tasks, columns, rows)


def _status_after_firing(one: _Outcome) -> TaskStatus:
    before = TaskStatus(one.task["status"])
    if one.starting and one.failed_to_start is None:
        return TaskStatus.RUNNING
    if one.failed_to_start and one.task["pause_on_failure"] and one.next_at:
        return TaskStatus.PAUSED
    if one.next_at or before == TaskStatus.RUNNING:
        return before
    return TaskStatus.FAILED


def _last_result(one: _Outcome) -> tuple[dict[str, Any] | None, str | None]:
    """The task's last result and message after this claim: a start that failed, or the newest recorded instant."""
    task = one.task
    if one.failed_to_start:
        return {"status": ExecutionStatus.FAILED.value, "counts": {}}, one.failed_to_start
    if one.recorded and not one.starting:
        entry = one.recorded[-1]
        return {"status": entry.status, "reason": entry.reason, "counts": {}}, _recorded_message(entry)
    return task["last_result"], task["error_message"]


def _recorded_message(entry: Entry) -> str:
    planned = entry.covers_until or entry.planned_for
    return f"The occurrence planned for {planned:%Y-%m-%dT%H:%M:%SZ} was {entry.status}: {entry.reason}."


async def start_by_hand(
    session: Session, installation_id: str, task: Task, targets: Targets, requested_by: int, *, now: datetime
) -> int:
    """Start a manual execution of a locked task; uses up nothing of the schedule. Answers the execution's id."""
    (identity,) = await allocate_ids(session, scheduled_task_executions, 1)
    start = Start("manual", cause=f"manual:{uuid4().hex}", requested_by=requested_by)
    refusal = targets.refusal or (None if targets.devices else NO_DEVICES)
    await insert_rows(session, scheduled_task_executions, _ROW, [_started_row(identity, task, start, refusal, now)])
    before, result, message = TaskStatus(task["status"]), task["last_result"], task["error_message"]
    status: TaskStatus = before if before == TaskStatus.PAUSED else TaskStatus.RUNNING
    if refusal is not None:
        status = (
            before if task["next_execution"] or before in (TaskStatus.PAUSED, TaskStatus.RUNNING) else TaskStatus.FAILED
        )
        result, message = {"status": ExecutionStatus.FAILED.value, "counts": {}}, refusal
    columns = ("status", "execution_count", "last_execution", "last_result", "error_message")
    values = (task["id"], status.value, task["execution_count"] + 1, now, result, message)
    await update_rows(session, scheduled_tasks, columns, [values])
    if refusal is None:
        sending = _sending(task, identity, f"task:{task['id']}:{start.cause}", targets.ordered())
        await deployments.start(session, installation_id, [sending], now=now)
        await settle_deployments(session, await _ended_at_once(session, [sending]), now=now)
    return identity


async def settle_deployments(session: Session, deployment_ids: Sequence[int], *, now: datetime) -> list[Ended]:
    """End deployments whose runs have ended, their executions, and move the tasks on. Safe to repeat."""
    if not deployment_ids:
        return []
    await lock_tasks_of(session, deployment_ids)
    ended = await deployments.settle(session, deployment_ids, now=now)
    await settle(session, ended, now=now)
    return ended


async def lock_tasks_of(session: Session, deployment_ids: Sequence[int]) -> None:
    """On PostgreSQL: lock the tasks above these deployments first, so that all writers lock from the task downward."""
    lock = row_lock(session, "t")
    if lock:
        await session.execute(
            text(
                "SELECT t.id FROM scheduled_tasks t WHERE t.id IN (SELECT e.task_id FROM deployments d"
                " JOIN scheduled_task_executions e ON e.id = d.execution_id WHERE d.id = ANY(:ids)) ORDER BY t.id "
                + lock
            ),
            {"ids": list(deployment_ids)},
        )


_STATUS_OF = {
    DeploymentStatus.COMPLETED: ExecutionStatus.COMPLETED,
    DeploymentStatus.FAILED: ExecutionStatus.FAILED,
    DeploymentStatus.CANCELLED: ExecutionStatus.CANCELLED,
}


async def settle(session: Session, ended: Sequence[Ended], *, now: datetime) -> None:
    """End the executions behind ended deployments, then move their tasks."""
    of_tasks = [one for one in ended if one.execution_id is not None]
    if not of_tasks:
        return
    await update_rows(
        session,
        scheduled_task_executions,
        ("status", "completed_time", "result", "error_message"),
        [
            (one.execution_id, _STATUS_OF[one.status].value, now, {"counts": dict(one.counts)}, one.error_message)
            for one in of_tasks
        ],
        guard="completed_time IS NULL",
    )
    await _settle_tasks(session, of_tasks)


async def _settle_tasks(session: Session, ended: Sequence[Ended]) -> None:
    by_execution = {one.execution_id: one for one in ended}
    rows = await session.execute(
        text(
            "SELECT e.id AS execution_id, e.trigger, t.id, t.status, t.next_execution, t.pause_on_failure,"
            " t.last_result, t.error_message, t.next_planned_for FROM scheduled_task_executions e"
            " JOIN scheduled_tasks t ON t.id = e.task_id WHERE " + any_of(session, "e.id", "ids") + " ORDER BY e.id"
        ).columns(**{name: _TYPES[name] for name in ("next_execution", "next_planned_for", "last_result")}),
        {"ids": ids_parameter(session, [identity for identity in by_execution if identity])},
    )
    newest: dict[int, Any] = {}
    held: dict[int, bool] = defaultdict(bool)
    for row in rows:
        newest[row.id] = row
        failed = by_execution[row.execution_id].status == DeploymentStatus.FAILED
        held[row.id] |= failed and bool(row.pause_on_failure) and row.trigger != "manual"
    running = await _count_running(session, list(newest))
    moves = []
    for task_id, row in newest.items():
        end = by_execution[row.execution_id]
        status = _status_after_ending(row, end, running.get(task_id, 0) > 0, held[task_id])
        next_at = None if status == TaskStatus.PAUSED else row.next_execution
        keep = end.status == DeploymentStatus.CANCELLED
        moves.append(
            (task_id, status.value, None if next_at is None else row.next_planned_for, next_at,
             {"status": _STATUS_OF[end.status].value, "counts": dict(end.counts)},
             row.error_message if keep else end.error_message)
        )  # fmt: skip
    columns = ("status", "next_planned_for", "next_execution", "last_result", "error_message")
    await update_rows(session, scheduled_tasks, columns, moves)


def _status_after_ending(row: Any, end: Ended, still_running: bool, hold: bool) -> TaskStatus:
    """The task's status once an execution ended; see the task lifecycle in the docs. Pure."""
    before = TaskStatus(row.status)
    if before in (TaskStatus.PAUSED, TaskStatus.CANCELLED):
        return before
    if hold and row.next_execution is not None:
        return TaskStatus.PAUSED
    if still_running:
        return TaskStatus.RUNNING
    if row.next_execution is not None:
        return TaskStatus.PENDING
    match end.status:
        case DeploymentStatus.COMPLETED:
            return TaskStatus.COMPLETED
        case DeploymentStatus.CANCELLED:
            return TaskStatus.CANCELLED
        case _:
            return TaskStatus.FAILED


async def cancel(session: Session, execution_ids: Sequence[int], *, now: datetime) -> list[int]:
    """Ask for the end of open executions; answers those that were open. Ended ones are left alone."""
    opened = await deployments.of_executions(session, execution_ids)
    if opened:
        await lock_tasks_of(session, opened)
        await settle(session, await deployments.cancel(session, opened, now=now), now=now)
    return opened


async def open_of_tasks(session: Session, task_ids: Sequence[int]) -> list[int]:
    rows = await session.execute(
        text(
            "SELECT id FROM scheduled_task_executions WHERE completed_time IS NULL AND "
            + any_of(session, "task_id", "ids")
        ),
        {"ids": ids_parameter(session, task_ids)},
    )
    return list(rows.scalars())


async def lock_task(session: Session, task_id: int) -> Task | None:
    """The task as the clock sees it, locked for a new execution; None where it is deleted or never was."""
    rows = await session.execute(
        text(f"{_SELECT_TASKS} WHERE t.id = :id AND t.deleted_at IS NULL {row_lock(session, 't')}").columns(**_TYPES),
        {"id": task_id},
    )
    return rows.mappings().one_or_none()


async def running_of(session: Session, task_id: int) -> int:
    return (await _count_running(session, [task_id])).get(task_id, 0)
