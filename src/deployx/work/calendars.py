"""Windows and blackouts as they are stored: read for tasks and devices; what they mean is in `timing.windows`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time
from typing import Any

from sqlalchemy import delete, select, text

from deployx.db.bulk import any_of, ids_parameter, insert_rows, moment_parameter
from deployx.db.database import Session
from deployx.db.schema import (
    blackouts,
    group_blackouts,
    group_windows,
    task_blackouts,
    task_windows,
    windows,
)  # fmt: skip
from deployx.timing.windows import Blackout, Calendar, Days, Range, State, Window
from deployx.timing.zones import find_zone
from deployx.work import alarms


@dataclass(frozen=True, slots=True)
class Owner:
    """What windows and blackouts are attached to: a task or a group."""

    windows: Any
    blackouts: Any
    column: str


TASKS = Owner(task_windows, task_blackouts, "task_id")
GROUPS = Owner(group_windows, group_blackouts, "group_id")


def window(row: Any) -> Window:
    return Window(frozenset(row.days_of_week), _time(row.start), _time(row.end), find_zone(row.timezone))


def blackout(row: Any) -> Blackout:
    if row.dates is None:
        return Range(row.from_at, row.to_at)
    days = (text.split("-") for text in row.dates)
    return Days(frozenset((int(month), int(day)) for month, day in days), find_zone(row.timezone))


def _time(written: str) -> time:
    return time.fromisoformat(written)


async def of(session: Session, owner: Owner, ids: Sequence[int]) -> dict[int, Calendar]:
    """The calendar of each of these tasks or groups that has one."""
    opened: dict[int, list[Window]] = defaultdict(list)
    closed: dict[int, list[Blackout]] = defaultdict(list)
    link = owner.windows
    query = select(link.c[owner.column].label("owner_id"), windows).join(windows, windows.c.id == link.c.window_id)
    for row in await session.execute(query.where(link.c[owner.column].in_(ids))):
        opened[row.owner_id].append(window(row))
    link = owner.blackouts
    query = select(link.c[owner.column].label("owner_id"), blackouts).join(
        blackouts, blackouts.c.id == link.c.blackout_id
    )
    for row in await session.execute(query.where(link.c[owner.column].in_(ids))):
        closed[row.owner_id].append(blackout(row))
    return {one: Calendar(tuple(opened[one]), tuple(closed[one])) for one in {*opened, *closed}}


@dataclass(slots=True)
class DeviceCalendars:
    """The calendars of all groups of a device: each of them must be open."""

    names: list[str] = field(default_factory=list)
    calendars: list[Calendar] = field(default_factory=list)

    def closed_until(self, now: datetime) -> tuple[datetime | None, str] | None:
        """None where all are open; else when all may be open again (None: not for two years), and what is closed."""
        closed = [
            (calendar, name)
            for calendar, name in zip(self.calendars, self.names, strict=True)
            if calendar.state(now)[0] is not State.OPEN
        ]
        if not closed:
            return None
        openings = [calendar.next_open(now) for calendar, _ in closed]
        known = [one for one in openings if one is not None]
        return (max(known) if len(known) == len(openings) else None), ", ".join(name for _, name in closed)


async def of_devices(session: Session, device_ids: Sequence[int]) -> dict[int, DeviceCalendars]:
    """The calendars that decide for these devices; those without any are left out."""
    rows = await session.execute(
        text(
            "SELECT m.device_id, m.group_id, g.name FROM group_members m"
            " JOIN groups g ON g.id = m.group_id AND g.deleted_at IS NULL"
            f" WHERE {any_of(session, 'm.device_id', 'ids')} AND (EXISTS (SELECT 1 FROM group_windows w"
            " WHERE w.group_id = m.group_id) OR EXISTS (SELECT 1 FROM group_blackouts b WHERE b.group_id = m.group_id))"
            " ORDER BY m.group_id"
        ),
        {"ids": ids_parameter(session, device_ids)},
    )
    members = rows.all()
    calendars = await of(session, GROUPS, sorted({row.group_id for row in members})) if members else {}
    found: dict[int, DeviceCalendars] = defaultdict(DeviceCalendars)
    for row in members:
        found[row.device_id].names.append(repr(row.name))
        found[row.device_id].calendars.append(calendars[row.group_id])
    return dict(found)


async def attach(
    session: Session, owner: Owner, links: Iterable[tuple[int, Sequence[int], Sequence[int]]], *, replace: bool
) -> None:
    """Set the windows and blackouts of tasks or groups: (id, window ids, blackout ids) each."""
    given = list(links)
    if replace:
        for table in (owner.windows, owner.blackouts):
            await session.execute(delete(table).where(table.c[owner.column].in_([one for one, _, _ in given])))
    opened = [(one, window_id) for one, window_ids, _ in given for window_id in window_ids]
    await insert_rows(session, owner.windows, (owner.column, "window_id"), opened)
    closed = [(one, blackout_id) for one, _, blackout_ids in given for blackout_id in blackout_ids]
    await insert_rows(session, owner.blackouts, (owner.column, "blackout_id"), closed)


async def ids_of(
    session: Session, owner: Owner, ids: Sequence[int]
) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]]:
    """Window ids and blackout ids attached to each, ascending."""
    found = []
    for table, column in ((owner.windows, "window_id"), (owner.blackouts, "blackout_id")):
        attached: dict[int, tuple[int, ...]] = dict.fromkeys(ids, ())
        query = select(table.c[owner.column], table.c[column]).where(table.c[owner.column].in_(ids))
        for one, other in await session.execute(query.order_by(table.c[column])):
            attached[one] += (other,)
        found.append(attached)
    return found[0], found[1]


async def changed(session: Session, owner: Owner, column: str, identity: int, *, now: datetime) -> None:
    """A window or blackout was changed: what waits for it is looked at again."""
    if owner is GROUPS:
        await look_again_at_runs(session, now=now)
        return
    table = owner.windows if column == "window_id" else owner.blackouts
    rows = await session.execute(select(table.c.task_id).where(table.c[column] == identity))
    await alarms.of_waiting(session, list(rows.scalars()), now=now)


async def look_again_at_runs(session: Session, *, now: datetime) -> None:
    """Device runs that wait for a window of their groups are to be looked at now."""
    await session.execute(
        text("UPDATE device_runs SET opens_at = :now WHERE status = 'waiting' AND waits_for = 'window'"),
        {"now": moment_parameter(session, now)},
    )
