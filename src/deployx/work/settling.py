"""Settling: ends executions whose deployments have ended, and moves their tasks on.

Starting is in `executions`. Whoever settles locks from the task downward, so that all writers take the same order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text

from deployx.db.bulk import any_of, ids_parameter, row_lock, update_rows
from deployx.db.database import Session
from deployx.db.schema import scheduled_task_executions, scheduled_tasks
from deployx.lifecycle import DeploymentStatus, ExecutionStatus, TaskStatus
from deployx.work import alarms, dependencies
from deployx.work.deployments import Ended

_TYPES = {name: scheduled_tasks.c[name].type for name in ("next_execution", "last_result")}

_ENDING = {
    DeploymentStatus.COMPLETED: ExecutionStatus.COMPLETED,
    DeploymentStatus.FAILED: ExecutionStatus.FAILED,
    DeploymentStatus.CANCELLED: ExecutionStatus.CANCELLED,
}


def _status_of(end: Ended) -> ExecutionStatus:
    """A reason stands only with an execution that counts as skipped."""
    return ExecutionStatus.SKIPPED if end.reason else _ENDING[end.status]


async def lock_tasks_of(session: Session, deployment_ids: Sequence[int]) -> None:
    """On PostgreSQL: lock the tasks above these deployments first."""
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


async def settle(session: Session, ended: Sequence[Ended], *, now: datetime) -> list[int]:
    """End the executions behind ended deployments, then move their tasks; answers tasks that are to be paused now.

    Those failed, and their definition says so; the caller accounts for what else they owe before that.
    """
    of_tasks = [one for one in ended if one.execution_id is not None]
    if not of_tasks:
        return []
    await update_rows(
        session,
        scheduled_task_executions,
        ("status", "reason", "completed_time", "result", "error_message"),
        [
            (one.execution_id, _status_of(one).value, one.reason, now, {"counts": dict(one.counts)}, one.error_message)
            for one in of_tasks
        ],
        guard="completed_time IS NULL",
    )
    held = await _move_tasks(session, of_tasks, now=now)
    counted = [one.execution_id for one in of_tasks if one.execution_id and not one.reason]
    await dependencies.note_endings(session, counted, now=now)
    return held


async def _move_tasks(session: Session, ended: Sequence[Ended], *, now: datetime) -> list[int]:
    by_execution = {one.execution_id: one for one in ended}
    rows = await session.execute(
        text(
            "SELECT e.id AS execution_id, e.trigger, t.id, t.status, t.next_execution, t.pause_on_failure, t.waiting,"
            " t.recurrence_type, t.last_result, t.error_message FROM scheduled_task_executions e"
            " JOIN scheduled_tasks t ON t.id = e.task_id WHERE " + any_of(session, "e.id", "ids") + " ORDER BY e.id"
        ).columns(**_TYPES),
        {"ids": ids_parameter(session, [identity for identity in by_execution if identity])},
    )
    newest: dict[int, Any] = {}
    held: dict[int, bool] = defaultdict(bool)
    for row in rows:
        newest[row.id] = row
        failed = by_execution[row.execution_id].status == DeploymentStatus.FAILED
        held[row.id] |= failed and bool(row.pause_on_failure) and row.trigger != "manual"
    running = await count_running(session, list(newest))
    moves = []
    for task_id, row in newest.items():
        end = by_execution[row.execution_id]
        status = _status_after_ending(row, end, running.get(task_id, 0) > 0)
        keep = end.status == DeploymentStatus.CANCELLED and end.reason is None
        moves.append(
            (task_id, status.value, {"status": _status_of(end).value, "counts": dict(end.counts)},
             row.error_message if keep else end.error_message)
        )  # fmt: skip
    await update_rows(session, scheduled_tasks, ("status", "last_result", "error_message"), moves)
    await alarms.add(session, [(task_id, now) for task_id, row in newest.items() if row.waiting])
    return [task_id for task_id, hold in held.items() if hold and newest[task_id].status != TaskStatus.PAUSED]


def _status_after_ending(row: Any, end: Ended, still_running: bool) -> TaskStatus:
    """The task's status once an execution ended; see the task lifecycle in the docs. Pure."""
    before = TaskStatus(row.status)
    if before in (TaskStatus.PAUSED, TaskStatus.CANCELLED):
        return before
    if still_running:
        return TaskStatus.RUNNING
    if row.next_execution is not None or row.waiting or row.recurrence_type == "after":
        return TaskStatus.PENDING
    match end.status:
        case DeploymentStatus.COMPLETED:
            return TaskStatus.COMPLETED
        case DeploymentStatus.CANCELLED if end.reason is None:
            return TaskStatus.CANCELLED
        case _:
            return TaskStatus.FAILED


async def count_running(session: Session, task_ids: Sequence[int]) -> dict[int, int]:
    """Executions of these tasks that have started and not ended."""
    if not task_ids:
        return {}
    rows = await session.execute(
        text(
            "SELECT task_id, count(*) AS n FROM scheduled_task_executions WHERE completed_time IS NULL"
            f" AND status = 'running' AND {any_of(session, 'task_id', 'ids')} GROUP BY task_id"
        ),
        {"ids": ids_parameter(session, task_ids)},
    )
    return {row.task_id: row.n for row in rows}
