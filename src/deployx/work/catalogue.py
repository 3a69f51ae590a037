"""Windows and blackouts as people keep them: made, changed and removed by name; and who uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Table, delete, insert, select, update
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


MOST_NAMED = 10

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
    used_by = [f"task {name!r} ({task_id})" for task_id, name in await tasks_using(session, kind, identity)]
    used_by += [f"group {name!r} ({group_id})" for group_id, name in await groups_using(session, kind, identity)]
    if used_by:
        more = f" and {len(used_by) - MOST_NAMED} more" if len(used_by) > MOST_NAMED else ""
        raise Conflict(f"This {kind.name} is used by {', '.join(used_by[:MOST_NAMED])}{more}: take it off there first.")
    for link in (kind.of_tasks, kind.of_groups):  # what deleted tasks and groups left
        await session.execute(delete(link).where(link.c[kind.column] == identity))
    await session.execute(delete(kind.table).where(kind.table.c.id == identity))


async def tasks_using(session: Session, kind: Kind, identity: int) -> list[tuple[int, str]]:
    """Living tasks that use it: ids and names."""
    names = scheduled_tasks.c.task_name
    return await _using(session, kind, identity, kind.of_tasks, kind.of_tasks.c.task_id, names)


async def groups_using(session: Session, kind: Kind, identity: int) -> list[tuple[int, str]]:
    """Living groups that use it: ids and names."""
    return await _using(session, kind, identity, kind.of_groups, kind.of_groups.c.group_id, groups.c.name)


async def _using(
    session: Session, kind: Kind, identity: int, link: Table, owner_id: Column[int], name: Column[str]
) -> list[tuple[int, str]]:
    owners = name.table
    rows = await session.execute(
        select(owners.c.id, name)
        .join(link, owner_id == owners.c.id)
        .where(link.c[kind.column] == identity, owners.c.deleted_at.is_(None))
        .order_by(owners.c.id)
    )
    return [(row[0], row[1]) for row in rows]
