"""Single occurrences of a task: what is planned, and changing one of them ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice

from deployx.db.database import Session
from deployx.errors import Conflict, Invalid, Problem
from deployx.lifecycle import TASK_SCHEDULED
from deployx.timing.instants import format_instant
from deployx.timing.owed import Override, Plan
from deployx.timing.recurrence import TICK
from deployx.work import alarms, overrides, plans, tasks
from deployx.work.executions import Server
from deployx.work.task_rows import Task


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A planned one; `due_at` is None where it was skipped by hand."""

    planned_for: datetime
    due_at: datetime | None
    is_moved: bool


def planned(plan: Plan, task: Task, since: datetime, until: datetime, limit: int) -> list[Occurrence]:
    """Occurrences still to come that are planned for [since, until], in their order; none where it is not active.

    One that was moved to a later time stays in the list until then.
    """
    if task["status"] not in TASK_SCHEDULED:
        return []
    cursor = task["next_planned_for"]
    held = [
        Occurrence(at, change.due_at, is_moved=True)
        for at, change in sorted(plan.overrides.items())
        if change.due_at is not None and not change.fired and since <= change.due_at <= until
        if cursor is None or at < cursor
    ]
    if cursor is None:
        return held[:limit]
    return list(islice(chain(held, _occurrences(plan, max(since, cursor) - TICK, until)), limit))


def _occurrences(plan: Plan, after: datetime, until: datetime) -> Iterator[Occurrence]:
    for one in plan.upcoming(after, until):
        assert one.planned_for is not None
        change = plan.overrides.get(one.planned_for)
        if change is None or not change.fired:
            due_at = None if one.skipped_by_hand else one.due_at
            yield Occurrence(one.planned_for, due_at, change is not None and change.due_at is not None)


async def skip(
    session: Session, server: Server, task_id: int, planned_for: datetime, *, by: int, now: datetime
) -> Occurrence:
    """Have one occurrence recorded as skipped by hand when its time comes. Safe to repeat."""
    task, _plan = await _changeable(session, server, task_id, planned_for, now=now)
    await overrides.put(session, task["id"], planned_for, None, by=by, now=now)
    await alarms.add(session, [(task_id, now)])
    return Occurrence(planned_for, None, is_moved=False)


async def move(
    session: Session, server: Server, task_id: int, planned_for: datetime, to: datetime, *, by: int, now: datetime
) -> Occurrence:
    """Have one occurrence start at another instant; moved to its own it is as before, also after it was skipped."""
    if to <= now:
        why = f"{format_instant(to)} has passed (it is {format_instant(now)}): give a future instant."
        raise Invalid([Problem(("body", "to"), why)])
    task, plan = await _changeable(session, server, task_id, planned_for, now=now)
    if to == planned_for:
        await overrides.remove(session, task_id, [planned_for])
        await overrides.spend(session, task_id, [], [])
        due_at = plan.due_at(planned_for)
    else:
        await overrides.put(session, task["id"], planned_for, to, by=by, now=now)
        due_at = to
    await alarms.add(session, [(task_id, now)])
    return Occurrence(planned_for, due_at, is_moved=to != planned_for)


async def _changeable(
    session: Session, server: Server, task_id: int, planned_for: datetime, *, now: datetime
) -> tuple[Task, Plan]:
    """The locked task and its plan, if that is one of its occurrences to come. Raises Conflict or Invalid."""
    task = await tasks.locked(session, server, task_id, now=now)
    shown = format_instant(planned_for)
    if task["status"] not in TASK_SCHEDULED:
        raise Conflict(f"Task {task_id} is {task['status']}: it has no planned occurrences. Resume it first.")
    plan = await plans.plan_of(session, task)
    change = plan.overrides.get(planned_for)
    if change is not None and _is_pending(change, planned_for, now):
        return task, plan
    if plan.rule.next_after(planned_for - TICK) != planned_for:
        following = plan.rule.next_after(now)
        advice = f"the next one is {format_instant(following)}" if following else "nothing more is planned"
        why = f"{shown} is not a planned occurrence of task {task_id}; {advice}."
        raise Invalid([Problem(("path", "instant"), why)])
    cursor = task["next_planned_for"]
    if cursor is None or planned_for < cursor or (change is not None and change.fired):
        raise Conflict(f"The occurrence planned for {shown} has fallen due already: see the task's executions.")
    return task, plan


def _is_pending(change: Override, planned_for: datetime, now: datetime) -> bool:
    """Whether a changed occurrence can be changed again."""
    if change.fired:
        return False
    return planned_for > now if change.due_at is None else change.due_at > now
