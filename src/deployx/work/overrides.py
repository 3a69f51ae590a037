"""Changes of single occurrences, made by hand ahead of time: stored here, understood by `timing.owed`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import delete, insert, select, update

from deployx.db.database import Session
from deployx.db.schema import occurrence_overrides as table
from deployx.db.schema import scheduled_tasks
from deployx.timing.owed import Override


async def of(session: Session, task_ids: Sequence[int]) -> dict[int, Mapping[datetime, Override]]:
    rows = await session.execute(select(table).where(table.c.task_id.in_(task_ids)))
    found: dict[int, dict[datetime, Override]] = defaultdict(dict)
    for row in rows:
        found[row.task_id][row.planned_for] = Override(row.due_at, row.fired)
    return dict(found)


def passed_in_pause(changes: Mapping[datetime, Override], resumed_at: datetime) -> list[datetime]:
    """Changes for the time of a pause: nothing was owed then. One moved into it from later is undone. Pure."""
    return [
        planned_for
        for planned_for, change in changes.items()
        if planned_for <= resumed_at or (change.due_at is not None and change.due_at <= resumed_at and not change.fired)
    ]


async def put(
    session: Session, task_id: int, planned_for: datetime, due_at: datetime | None, *, by: int | None, now: datetime
) -> None:
    """Move an occurrence to `due_at`, or skip it where that is None; replaces an earlier change of the same one."""
    await remove(session, task_id, [planned_for])
    await session.execute(
        insert(table).values(
            task_id=task_id, planned_for=planned_for, due_at=due_at, fired=False, changed_by=by, changed_at=now
        )
    )
    await session.execute(update(scheduled_tasks).where(scheduled_tasks.c.id == task_id).values(overridden=True))


async def remove(session: Session, task_id: int, planned: Sequence[datetime]) -> None:
    await session.execute(delete(table).where(table.c.task_id == task_id, table.c.planned_for.in_(planned)))


async def spend(session: Session, task_id: int, used: Sequence[datetime], ahead: Sequence[datetime]) -> None:
    """Drop those that are done with; keep in mind those that fired ahead of their nominal instant."""
    await remove(session, task_id, used)
    await session.execute(
        update(table).where(table.c.task_id == task_id, table.c.planned_for.in_(ahead)).values(fired=True)
    )
    left = await session.execute(select(table.c.planned_for).where(table.c.task_id == task_id).limit(1))
    overridden = left.first() is not None
    await session.execute(update(scheduled_tasks).where(scheduled_tasks.c.id == task_id).values(overridden=overridden))
