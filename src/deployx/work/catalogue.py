"""Windows and blackouts as people keep them: made, changed and removed by name; and who uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from deployx.db.database import Session
from deployx.db.schema import (
    blackouts,
    group_blackouts,
    group_windows,
    groups,
    scheduled_tasks,
    task_blackouts,
    task_windows,
    windows,
)  # fmt: skip
from deployx.errors import Conflict, Problem
from deployx.work import calendars


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing in the catalogue, with the tables that point at it."""

    name: str
    table: Table
    of_tasks: Table
    of_groups: Table
    column: str


WINDOWS = Kind("window", windows, task_windows, group_windows, "window_id")
BLACKOUTS = Kind("blackout", blackouts, task_blackouts, group_blackouts, "blackout_id")


async def check(session: Session, window_ids: Sequence[int], blackout_ids: Sequence[int]) -> list[Problem]:
    """What is wrong with the windows and blackouts that a body names."""
    problems = []
    for kind, wanted in ((WINDOWS, window_ids), (BLACKOUTS, blackout_ids)):
        known = await session.execute(select(kind.table.c.id).where(kind.table.c.id.in_(wanted)))
        found = set(known.scalars())
        for position, identity in enumerate(wanted):
            if identity not in found:
                why = f"There is no {kind.name} {identity}: see /api/schedule/{kind.name}s."
                problems.append(Problem(("body", f"{kind.name}_ids", position), why))
    return problems


async def create(session: Session, kind: Kind, values: dict[str, Any], *, by: int, now: datetime) -> int:
    """Add one. Raises Conflict where the name is taken."""
    try:
        row = await session.execute(
            insert(kind.table).values(**values, created_by=by, created_at=now).returning(kind.table.c.id)
        )
    except IntegrityError:
        raise _name_is_taken(kind, values) from None
    return int(row.scalar_one())


async def change(session: Session, kind: Kind, identity: int, values: dict[str, Any], *, now: datetime) -> None:
    """Change one; what waits for it is looked at again. Raises Conflict where the name is taken."""
    table = kind.table
    try:
        await session.execute(update(table).where(table.c.id == identity).values(**values, version=table.c.version + 1))
    except IntegrityError:
        raise _name_is_taken(kind, values) from None
    for owner in (calendars.TASKS, calendars.GROUPS):
        await calendars.changed(session, owner, kind.column, identity, now=now)


def _name_is_taken(kind: Kind, values: dict[str, Any]) -> Conflict:
    return Conflict(f"A {kind.name} named {values['name']!r} exists: choose another name.")


async def remove(session: Session, kind: Kind, identity: int) -> None:
    """Remove one. Raises Conflict while a task or group uses it, and names them."""
    tasks = await session.execute(
        select(scheduled_tasks.c.id, scheduled_tasks.c.task_name)
        .join(kind.of_tasks, kind.of_tasks.c.task_id == scheduled_tasks.c.id)
        .where(kind.of_tasks.c[kind.column] == identity, scheduled_tasks.c.deleted_at.is_(None))
        .order_by(scheduled_tasks.c.id)
        .limit(10)
    )
    used_by = [f"task {row.task_name!r} ({row.id})" for row in tasks]
    of_groups = await session.execute(
        select(groups.c.id, groups.c.name)
        .join(kind.of_groups, kind.of_groups.c.group_id == groups.c.id)
        .where(kind.of_groups.c[kind.column] == identity, groups.c.deleted_at.is_(None))
        .order_by(groups.c.id)
        .limit(10)
    )
    used_by += [f"group {row.name!r} ({row.id})" for row in of_groups]
    if used_by:
        raise Conflict(f"This {kind.name} is used by {', '.join(used_by)}: take it off there first.")
    for link in (kind.of_tasks, kind.of_groups):  # what deleted tasks and groups left
        await session.execute(delete(link).where(link.c[kind.column] == identity))
    await session.execute(delete(kind.table).where(kind.table.c.id == identity))


async def tasks_using(session: Session, kind: Kind, identity: int) -> list[int]:
    """Living tasks that use it."""
    rows = await session.execute(
        select(scheduled_tasks.c.id)
        .join(kind.of_tasks, kind.of_tasks.c.task_id == scheduled_tasks.c.id)
        .where(kind.of_tasks.c[kind.column] == identity, scheduled_tasks.c.deleted_at.is_(None))
        .order_by(scheduled_tasks.c.id)
    )
    return list(rows.scalars())


async def groups_using(session: Session, kind: Kind, identity: int) -> list[int]:
    """Living groups that use it."""
    rows = await session.execute(
        select(groups.c.id)
        .join(kind.of_groups, kind.of_groups.c.group_id == groups.c.id)
        .where(kind.of_groups.c[kind.column] == identity, groups.c.deleted_at.is_(None))
        .order_by(groups.c.id)
    )
    return list(rows.scalars())
