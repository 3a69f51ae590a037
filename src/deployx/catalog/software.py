"""The software catalogue as it is stored: entries with their installers, what each needs, what each uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping, delete, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from deployx.catalog import uses
from deployx.db.bulk import any_of, ids_parameter, insert_rows, on_sqlite
from deployx.db.database import Session
from deployx.db.schema import files, software, software_dependencies, software_files
from deployx.errors import Conflict, Invalid, Problem


async def create(session: Session, values: Mapping[str, Any], *, by: int, now: datetime) -> int:
    """Add an entry. Raises Conflict where name and version are taken, Invalid for what does not exist."""
    await _check(session, None, values)
    row = {name: values[name] for name in ("name", "version", "description", "installers")}
    statement = insert(software).values(row | {"created_by": by, "created_at": now}).returning(software.c.id)
    try:
        software_id = int((await session.execute(statement)).scalar_one())
    except IntegrityError:
        raise _taken(values) from None
    await _link(session, software_id, values)
    return software_id


async def change(session: Session, software_id: int, values: Mapping[str, Any]) -> None:
    """Give an entry other values, whole. Raises Conflict and Invalid as `create` does, Invalid also for a cycle."""
    await _check(session, software_id, values)
    row = {name: values[name] for name in ("name", "version", "description", "installers")}
    statement = update(software).where(software.c.id == software_id)
    try:
        await session.execute(statement.values(row | {"revision": software.c.revision + 1}))
    except IntegrityError:
        raise _taken(values) from None
    await _unlink(session, software_id)
    await _link(session, software_id, values)


async def remove(session: Session, software_id: int) -> None:
    """Remove an entry. Raises Conflict while something uses it, and names it."""
    await uses.lock(session, software, software_id)
    used_by = await uses.of_software(session, software_id)
    if used_by:
        raise Conflict(f"Software {software_id} is used by {uses.listed(used_by)}: take it off there first.")
    await _unlink(session, software_id)
    await session.execute(delete(software).where(software.c.id == software_id))


async def find(session: Session, software_id: int) -> RowMapping | None:
    return (await session.execute(select(software).where(software.c.id == software_id))).mappings().one_or_none()


async def needs(session: Session, software_ids: Sequence[int]) -> dict[int, list[int]]:
    """What each of these entries names in `depends_on`, ascending."""
    found: dict[int, list[int]] = {one: [] for one in software_ids}
    rows = await session.execute(
        text(
            "SELECT software_id, depends_on_id FROM software_dependencies WHERE "
            + any_of(session, "software_id", "ids")
            + " ORDER BY software_id, depends_on_id"
        ),
        {"ids": ids_parameter(session, software_ids)},
    )
    for row in rows:
        found[row.software_id].append(row.depends_on_id)
    return found


async def _check(session: Session, software_id: int | None, values: Mapping[str, Any]) -> None:
    """Check what an entry names; a cycle is told by the names on its path."""
    depends_on, file_ids = values["depends_on"], [one["file_id"] for one in values["installers"]]
    known = await uses.existing(session, software, depends_on)
    problems = [
        Problem(("body", "depends_on", place), f"There is no software {one}: see /api/software.")
        for place, one in enumerate(depends_on)
        if one not in known
    ]
    stored = await uses.existing(session, files, [one for one in file_ids if one is not None])
    problems += [
        Problem(("body", "installers", place, "file_id"), f"There is no file {one}: see /api/files.")
        for place, one in enumerate(file_ids)
        if one is not None and one not in stored
    ]
    if problems:
        raise Invalid(problems)
    if software_id is not None and depends_on:
        await _refuse_cycle(session, software_id, depends_on, values["name"])


async def _refuse_cycle(session: Session, software_id: int, depends_on: Sequence[int], name: str) -> None:
    if not on_sqlite(session):  # two changes at once could make a cycle together
        await session.execute(text("LOCK TABLE software_dependencies IN SHARE ROW EXCLUSIVE MODE"))
    rows = await session.execute(select(software_dependencies).order_by(software_dependencies.c.depends_on_id))
    edges: dict[int, list[int]] = {}
    for row in rows:
        edges.setdefault(row.software_id, []).append(row.depends_on_id)
    path = path_back(software_id, edges | {software_id: list(depends_on)})
    if path is None:
        return
    found = await session.execute(select(software.c.id, software.c.name).where(software.c.id.in_(path)))
    names = dict(found.all()) | {software_id: name}
    shown = " → ".join(names[one] for one in path)
    why = f"These would need each other in a circle: {shown}. Leave one of them out."
    raise Invalid([Problem(("body", "depends_on"), why)])


def path_back(start: int, edges: Mapping[int, Sequence[int]]) -> list[int] | None:
    """The way from a node over its edges back to itself, both ends included; None where there is none. Pure."""
    came_from: dict[int, int] = {}
    waiting = [start]
    while waiting:
        node = waiting.pop()
        for other in edges.get(node, ()):
            if other == start:
                path = [start, node]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1] if node != start else [start, start]
            if other not in came_from:
                came_from[other] = node
                waiting.append(other)
    return None


async def _link(session: Session, software_id: int, values: Mapping[str, Any]) -> None:
    needed = [(software_id, one) for one in dict.fromkeys(values["depends_on"])]
    await insert_rows(session, software_dependencies, ("software_id", "depends_on_id"), needed)
    named = dict.fromkeys(one["file_id"] for one in values["installers"] if one["file_id"] is not None)
    await insert_rows(session, software_files, ("software_id", "file_id"), [(software_id, one) for one in named])


async def _unlink(session: Session, software_id: int) -> None:
    for link in (software_dependencies, software_files):
        await session.execute(delete(link).where(link.c.software_id == software_id))


def _taken(values: Mapping[str, Any]) -> Conflict:
    version = f" in version {values['version']!r}" if values["version"] else " without a version"
    return Conflict(f"Software {values['name']!r}{version} exists: choose another name or version.")
