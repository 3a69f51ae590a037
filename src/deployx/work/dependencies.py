"""Dependencies: tasks that start when others end. Notes the endings, and tells when a condition has become true.

Endings are written down in the transaction that ends the execution; the clock uses them up when it looks at the
dependent task. So fan-in needs no lock on the dependent, and a crash between the two loses nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import delete, text

from deployx.db.bulk import any_of, ids_parameter, insert_rows, moment_parameter, on_sqlite
from deployx.db.database import Session
from deployx.db.schema import dependency_events, task_dependencies
from deployx.timing.owed import Due
from deployx.timing.rules import After
from deployx.work import alarms

_ASKED = (
    "(d.on_ending = 'completion' OR (d.on_ending = 'success' AND e.status = 'completed')"
    " OR (d.on_ending = 'failure' AND e.status = 'failed'))"
)


class Event(NamedTuple):
    id: int
    upstream_id: int
    execution_id: int
    at: datetime


async def note_endings(session: Session, execution_ids: Sequence[int], *, now: datetime) -> None:
    """Write down, for the active dependents of these executions' tasks, that they ended; and have the clock look.

    Executions that never started do not count: a missed or skipped occurrence is no ending. Safe to repeat.
    """
    parameters = {"ids": ids_parameter(session, execution_ids), "now": moment_parameter(session, now)}
    noted = await session.execute(
        text(
            "INSERT INTO dependency_events (task_id, upstream_id, execution_id, at)"
            " SELECT d.task_id, d.upstream_id, e.id, :now FROM scheduled_task_executions e"
            " JOIN task_dependencies d ON d.upstream_id = e.task_id JOIN scheduled_tasks t ON t.id = d.task_id"
            f" WHERE {any_of(session, 'e.id', 'ids')} AND e.completed_time IS NOT NULL"
            f" AND e.execution_time IS NOT NULL AND {_ASKED} AND t.deleted_at IS NULL"
            " AND t.status IN ('pending', 'running') ON CONFLICT DO NOTHING RETURNING task_id"
        ),
        parameters,
    )
    waiting = sorted(set(noted.scalars()))
    await alarms.add(session, [(task_id, now) for task_id in waiting])


async def events_of(session: Session, task_ids: Sequence[int]) -> dict[int, list[Event]]:
    """The endings that these tasks have not used up, in the order in which they came."""
    statement = "SELECT id, task_id, upstream_id, execution_id, at FROM dependency_events WHERE " + any_of(
        session, "task_id", "ids"
    )
    rows = await session.execute(
        text(statement + " ORDER BY id").columns(at=dependency_events.c.at.type),
        {"ids": ids_parameter(session, task_ids)},
    )
    found: dict[int, list[Event]] = defaultdict(list)
    for row in rows:
        found[row.task_id].append(Event(row.id, row.upstream_id, row.execution_id, row.at))
    return found


async def forget(session: Session, event_ids: Sequence[int]) -> None:
    await session.execute(
        text("DELETE FROM dependency_events WHERE " + any_of(session, "id", "ids")),
        {"ids": ids_parameter(session, event_ids)},
    )


async def forget_of_tasks(session: Session, task_ids: Sequence[int]) -> None:
    """A task that is paused or ended starts anew when it is resumed: what came before does not count."""
    await session.execute(
        text("DELETE FROM dependency_events WHERE " + any_of(session, "task_id", "ids")),
        {"ids": ids_parameter(session, task_ids)},
    )


def firings(rule: After, events: Sequence[Event]) -> tuple[list[Due], list[int]]:
    """When the condition became true, and which events are used up by that. Pure.

    With `all`, each upstream must have ended as asked since the last firing; endings before a firing count for none
    after it. The ending that made it true names the firing, so that it fires once whatever happens.
    """
    if rule.mode == "any":
        return [_due(event) for event in events], [event.id for event in events]
    missing = wanted = {one.task_id for one in rule.upstreams}
    due, used, pending = [], [], []
    for event in events:
        pending.append(event.id)
        missing = missing - {event.upstream_id}
        if not missing:
            due.append(_due(event))
            used += pending
            pending, missing = [], wanted
    return due, used


def _due(event: Event) -> Due:
    return Due(None, event.at, cause=f"after:{event.execution_id}")


async def write(session: Session, rules: Mapping[int, After]) -> None:
    """Store the links of new or changed tasks."""
    ids = ids_parameter(session, rules)
    await session.execute(
        text("DELETE FROM task_dependencies WHERE " + any_of(session, "task_id", "ids")), {"ids": ids}
    )
    rows = [(task_id, one.task_id, one.on) for task_id, rule in rules.items() for one in rule.upstreams]
    await insert_rows(session, task_dependencies, ("task_id", "upstream_id", "on_ending"), rows)


async def unlink(session: Session, task_id: int) -> None:
    """The task waits for no other any more."""
    await session.execute(delete(task_dependencies).where(task_dependencies.c.task_id == task_id))
    await forget_of_tasks(session, [task_id])


async def lock(session: Session) -> None:
    """On PostgreSQL: let one change of dependencies wait for another, or two could make a cycle together."""
    if not on_sqlite(session):
        await session.execute(text("LOCK TABLE task_dependencies IN SHARE ROW EXCLUSIVE MODE"))


async def find_cycle(session: Session, task_id: int, upstream_ids: Sequence[int]) -> list[int] | None:
    """A path from one of the upstreams back to the task, as ids from the task to the task; None where there is none."""
    came_from: dict[int, int] = dict.fromkeys(upstream_ids, task_id)
    fresh = list(upstream_ids)
    while fresh:
        if task_id in fresh:
            path = [task_id]
            while len(path) == 1 or path[-1] != task_id:
                path.append(came_from[path[-1]])
            return path[::-1]
        rows = await session.execute(
            text("SELECT task_id, upstream_id FROM task_dependencies WHERE " + any_of(session, "task_id", "ids")),
            {"ids": ids_parameter(session, fresh)},
        )
        fresh = []
        for row in rows:
            if row.upstream_id not in came_from:
                came_from[row.upstream_id] = row.task_id
                fresh.append(row.upstream_id)
    return None


async def dependents_of(session: Session, task_id: int) -> list[tuple[int, str]]:
    """Living tasks that wait for this one: ids and names."""
    rows = await session.execute(
        text(
            "SELECT t.id, t.task_name FROM task_dependencies d JOIN scheduled_tasks t ON t.id = d.task_id"
            " WHERE d.upstream_id = :task AND t.deleted_at IS NULL ORDER BY t.id"
        ),
        {"task": task_id},
    )
    return [(row.id, row.task_name) for row in rows]


async def detach(session: Session, task_id: int) -> None:
    """Cut the links of a task that is deleted, in both directions."""
    links, events = task_dependencies.c, dependency_events.c
    await session.execute(delete(task_dependencies).where((links.upstream_id == task_id) | (links.task_id == task_id)))
    await session.execute(
        delete(dependency_events).where((events.upstream_id == task_id) | (events.task_id == task_id))
    )
