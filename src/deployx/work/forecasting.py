"""Reads what a forecast needs: the active tasks that the caller may see, their plans, and whom they reach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select

from deployx.db.database import Session
from deployx.db.schema import (
    devices,
    group_members,
    groups,
    scheduled_tasks,
    task_target_devices,
    task_target_groups,
)  # fmt: skip
from deployx.lifecycle import TASK_SCHEDULED
from deployx.people.principal import Principal
from deployx.timing.forecast import Planned
from deployx.timing.owed import Plan
from deployx.work import calendars, history, overrides, plans

TASKS_AT_ONCE = 500
"""Reading one part takes some milliseconds of the event loop."""

_NEEDED = (
    "id", "status", "recurrence_type", "recurrence_config", "scheduled_time", "timezone", "last_planned_for",
    "next_planned_for", "misfire_grace_seconds", "catch_up", "overlap_policy", "max_instances", "outside_window",
    "jitter_seconds", "waiting", "restricted", "overridden",
)  # fmt: skip


@dataclass(slots=True)
class Known:
    """What can be foretold, and the tasks of which nobody knows when they start, each with the reason."""

    planned: list[Planned] = field(default_factory=list)
    unknown: list[tuple[int, str]] = field(default_factory=list)


async def read(session: Session, principal: Principal) -> Known:
    """All active tasks that the caller may see, in parts, so that no single answer of the database is huge."""
    known = Known()
    last_id = 0
    while True:
        query = history.tasks(principal).with_only_columns(*(scheduled_tasks.c[name] for name in _NEEDED))
        query = query.where(scheduled_tasks.c.id > last_id)  # the status is looked at below: its index sorts badly
        found = await session.execute(query.order_by(None).order_by(scheduled_tasks.c.id).limit(TASKS_AT_ONCE))
        rows = [dict(zip(_NEEDED, row, strict=True)) for row in found]
        if not rows:
            return known
        await _add(session, known, [row for row in rows if row["status"] in TASK_SCHEDULED])
        last_id = rows[-1]["id"]


async def _add(session: Session, known: Known, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    reached = await _devices_of(session, rows[0]["id"], rows[-1]["id"])
    restricted = [row["id"] for row in rows if row["restricted"]]
    opened = await calendars.of(session, calendars.TASKS, restricted) if restricted else {}
    overridden = [row["id"] for row in rows if row["overridden"]]
    changes = await overrides.of(session, overridden) if overridden else {}
    for row in rows:
        task_id = row["id"]
        if row["recurrence_type"] == "after":
            known.unknown.append((task_id, "It starts when other tasks end."))
            continue
        if row["waiting"]:
            known.unknown.append((task_id, "An execution of it waits for a free place or a window."))
        cursor: datetime | None = row["next_planned_for"]
        if cursor is None:
            continue
        plan = Plan(plans.rule_of(row), task_id, row["jitter_seconds"], changes.get(task_id, {}))
        policy = plans.policy_of(row, opened.get(task_id))
        known.planned.append(Planned(task_id, plan, policy, cursor, tuple(sorted(reached.get(task_id, ())))))


async def _devices_of(session: Session, first_id: int, last_id: int) -> dict[int, set[int]]:
    """The living devices that each task in this range of ids reaches, each once."""
    found: dict[int, set[int]] = defaultdict(set)
    direct = (
        select(task_target_devices.c.task_id, devices.c.id)
        .join(devices, devices.c.id == task_target_devices.c.device_id)
        .where(task_target_devices.c.task_id.between(first_id, last_id), devices.c.deleted_at.is_(None))
    )
    through_groups = (
        select(task_target_groups.c.task_id, devices.c.id)
        .join(groups, groups.c.id == task_target_groups.c.group_id)
        .join(group_members, group_members.c.group_id == groups.c.id)
        .join(devices, devices.c.id == group_members.c.device_id)
        .where(task_target_groups.c.task_id.between(first_id, last_id))
        .where(devices.c.deleted_at.is_(None), groups.c.deleted_at.is_(None))
    )
    for query in (direct, through_groups):
        for task_id, device_id in await session.execute(query):
            found[task_id].add(device_id)
    return found
