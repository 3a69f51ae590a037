"""Alarms: when the clock is to look at a task for another reason than its next occurrence.

A window opens, a pause ends, a place became free, another task ended. Rows are only added, and the clock deletes those
that it has seen: one that is added meanwhile is never lost. Too many do no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import text

from deployx.db.bulk import any_of, ids_parameter, insert_rows, moment_parameter
from deployx.db.database import Session
from deployx.db.schema import alarms


async def add(session: Session, wanted: Iterable[tuple[int, datetime]]) -> None:
    """Add (task id, instant) pairs."""
    await insert_rows(session, alarms, ("task_id", "at"), wanted)


async def due(session: Session, *, now: datetime, limit: int) -> dict[int, int]:
    """Due alarms, the oldest first: alarm id → task id."""
    rows = await session.execute(
        text("SELECT id, task_id FROM alarms WHERE at <= :now ORDER BY at LIMIT :limit"),
        {"now": moment_parameter(session, now), "limit": limit},
    )
    return {row.id: row.task_id for row in rows}


async def forget(session: Session, alarm_ids: Sequence[int]) -> None:
    await session.execute(
        text("DELETE FROM alarms WHERE " + any_of(session, "id", "ids")), {"ids": ids_parameter(session, alarm_ids)}
    )


async def later_of(session: Session, task_ids: Sequence[int], *, now: datetime) -> set[tuple[int, datetime]]:
    """The alarms that these tasks have after now, so that none is added twice; those before are being used up."""
    statement = text(f"SELECT task_id, at FROM alarms WHERE at > :now AND {any_of(session, 'task_id', 'ids')}")
    rows = await session.execute(
        statement.columns(at=alarms.c.at.type),
        {"ids": ids_parameter(session, task_ids), "now": moment_parameter(session, now)},
    )
    return {(row.task_id, row.at) for row in rows}


async def of_waiting(session: Session, task_ids: Sequence[int], *, now: datetime) -> None:
    """Have the clock look at those of these tasks whose executions wait for something."""
    statement = "SELECT id FROM scheduled_tasks WHERE waiting AND deleted_at IS NULL AND " + any_of(
        session, "id", "ids"
    )
    rows = await session.execute(text(statement), {"ids": ids_parameter(session, task_ids)})
    await add(session, [(task_id, now) for task_id in rows.scalars()])
