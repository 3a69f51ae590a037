"""Tasks as the clock sees them: rows of `scheduled_tasks` with what it needs of their owner, claimed or locked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Result, RowMapping, text

from deployx.db.bulk import any_of, ids_parameter, moment_parameter, row_lock
from deployx.db.database import Session
from deployx.db.schema import scheduled_tasks
from deployx.fleet.resolution import Owner

Task = RowMapping | dict[str, Any]

FRESH = timedelta(seconds=300)
"""Tasks due within this are claimed before older backlog, so that what can still run is not kept waiting."""
_SELECT_TASKS = (
    "SELECT t.id, t.version, t.status, t.task_name, t.task_type, t.payload_id, t.recurrence_type, t.recurrence_config,"
    " t.scheduled_time, t.timezone, t.last_planned_for, t.next_planned_for, t.next_execution, t.misfire_grace_seconds,"
    " t.catch_up, t.max_instances, t.overlap_policy, t.jitter_seconds, t.outside_window, t.waiting, t.restricted,"
    " t.overridden, t.paused_until, t.offline_policy, t.offline_deadline_seconds, t.lost_after_seconds,"
    " t.pause_on_failure, t.rollout, t.retry,"
    " t.execution_count, t.last_execution, t.last_result, t.error_message, t.created_by,"
    " u.username, u.role, u.is_active FROM scheduled_tasks t JOIN users u ON u.id = t.created_by"
)
_TYPES = {
    name: scheduled_tasks.c[name].type
    for name in (
        "scheduled_time", "last_planned_for", "next_planned_for", "next_execution", "paused_until", "last_execution",
        "last_result", "rollout", "retry",
    )
}  # fmt: skip


async def claim(session: Session, *, now: datetime, limit: int, backlog: bool) -> list[Task]:
    """Lock up to `limit` due tasks, the soonest first: those that are fresh, or those that have been due for longer."""
    since = now - FRESH
    span = "t.next_execution <= :since" if backlog else "t.next_execution > :since AND t.next_execution <= :now"
    rows = await session.execute(
        text(
            f"{_SELECT_TASKS} WHERE {span} ORDER BY t.next_execution LIMIT :limit {row_lock(session, 't', skip=True)}"
        ).columns(**_TYPES),
        {"since": moment_parameter(session, since), "limit": limit}
        | ({} if backlog else {"now": moment_parameter(session, now)}),
    )
    return _tasks(rows)


async def lock(session: Session, task_id: int) -> Task | None:
    """The task, locked for a new execution; None where it is deleted or never was."""
    found = await lock_all(session, [task_id])
    return found[0] if found else None


async def lock_all(session: Session, task_ids: Sequence[int]) -> list[Task]:
    """The living ones of these tasks, locked in the order of their ids."""
    return await _living(session, task_ids, row_lock(session, "t"))


async def read(session: Session, task_id: int) -> Task | None:
    """The task, for reading."""
    found = await read_all(session, [task_id])
    return found[0] if found else None


async def read_all(session: Session, task_ids: Sequence[int]) -> list[Task]:
    """The living ones of these tasks, for reading."""
    return await _living(session, task_ids)


async def _living(session: Session, task_ids: Sequence[int], locking: str = "") -> list[Task]:
    living = f"t.deleted_at IS NULL AND {any_of(session, 't.id', 'ids')}"
    rows = await session.execute(
        text(f"{_SELECT_TASKS} WHERE {living} ORDER BY t.id {locking}").columns(**_TYPES),
        {"ids": ids_parameter(session, task_ids)},
    )
    return _tasks(rows)


def _tasks(rows: Result[Any]) -> list[Task]:
    """Rows as dicts: their values are asked for dozens of times, and a mapping over a row costs more each time."""
    names = tuple(rows.keys())
    return [dict(zip(names, row, strict=True)) for row in rows]


def owner_of(task: Task) -> Owner:
    return Owner(task["created_by"], task["username"], task["role"], bool(task["is_active"]))
