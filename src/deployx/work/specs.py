"""Definitions of tasks: a whole one as a value, what it plans, and its way into and out of the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select

from deployx.db.bulk import insert_rows
from deployx.db.database import Session
from deployx.db.schema import (
    payloads,
    scheduled_tasks,
    task_target_devices,
    task_target_groups,
)  # fmt: skip
from deployx.errors import Invalid, Problem
from deployx.timing import recurrence
from deployx.timing.instants import format_instant
from deployx.timing.jitter import shortest_gap
from deployx.timing.recurrence import After, Recurrence, RecurrenceError
from deployx.work import calendars, dependencies

_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """A whole definition, as asked for: what may be written into a task. Instants are aware UTC."""

    task_name: str
    task_type: str
    scheduled_time: datetime | None
    recurrence_type: str
    recurrence_config: Mapping[str, Any] | None
    timezone: str
    device_ids: tuple[int, ...]
    group_ids: tuple[int, ...]
    payload: Mapping[str, Any]
    misfire_grace_seconds: int = 300
    catch_up: str = "latest"
    max_instances: int = 3
    overlap_policy: str = "skip"
    jitter_seconds: int = 0
    offline_policy: str = "wait"
    offline_deadline_seconds: int = 300
    lost_after_seconds: int = 600
    window_ids: tuple[int, ...] = ()
    blackout_ids: tuple[int, ...] = ()
    outside_window: str = "delay"
    pause_on_failure: bool = False
    labels: Mapping[str, str] | None = None
    rollout: Mapping[str, Any] | None = None
    retry: Mapping[str, Any] | None = None


AS_COLUMNS = (
    "task_name", "task_type", "recurrence_type", "timezone", "misfire_grace_seconds", "catch_up", "max_instances",
    "overlap_policy", "jitter_seconds", "offline_policy", "offline_deadline_seconds", "lost_after_seconds",
    "outside_window", "pause_on_failure", "rollout", "retry",
)  # fmt: skip
"""Fields that are stored under their own names as they are."""


@dataclass(frozen=True, slots=True)
class Counted:
    """From when on `max_occurrences` counts, and how many were planned before that by earlier definitions."""

    counted_from: datetime
    planned_before: int = 0


def plan(
    spec: TaskSpec, *, now: datetime, counted: Counted | None = None, start_kept: bool = False
) -> tuple[Recurrence, datetime | None]:
    """The recurrence of a definition and its first nominal instant after `now`. Pure.

    Raises Invalid for a rule that is wrong, and where nothing is left to come unless `start_kept` says that the task
    had it before.
    """
    try:
        rule = recurrence.parse(
            spec.recurrence_type,
            spec.recurrence_config,
            scheduled_for=spec.scheduled_time or (None if spec.recurrence_type == "once" else now),
            timezone=spec.timezone,
        )
    except RecurrenceError as error:
        raise Invalid([Problem(("body", *loc), why) for loc, why in error.problems]) from None
    counted = counted or Counted(now)
    rule = recurrence.limited(rule, counted_from=counted.counted_from, planned_before=counted.planned_before)
    first = rule.next_after(now)
    if first is None and not start_kept and not isinstance(rule, After):
        raise Invalid([_never_again(spec, now)])
    _check_jitter(spec, rule, now)
    return rule, first


def _never_again(spec: TaskSpec, now: datetime) -> Problem:
    if spec.recurrence_type == "once" and spec.scheduled_time is not None:
        given, present = format_instant(spec.scheduled_time), format_instant(now)
        return Problem(("body", "scheduled_time"), f"{given} has passed (it is {present}): give a future instant.")
    return Problem(
        ("body", "recurrence_config"), "This schedule has no occurrence in the future: move its end or its count."
    )


def _check_jitter(spec: TaskSpec, rule: Recurrence, now: datetime) -> None:
    if spec.jitter_seconds == 0:
        return
    if isinstance(rule, After):
        why = "A task that starts when others end has no instants to move: leave jitter_seconds out."
        raise Invalid([Problem(("body", "jitter_seconds"), why)])
    gap = shortest_gap(rule, now)
    if gap is not None and timedelta(seconds=spec.jitter_seconds) >= gap:
        most = max(0, int((gap - _TICK).total_seconds()))
        raise Invalid(
            [
                Problem(
                    ("body", "jitter_seconds"),
                    f"{spec.jitter_seconds} is not less than the shortest gap between two occurrences,"
                    f" {gap.total_seconds():.0f} s: use at most {most}.",
                )
            ]
        )


def row_values(spec: TaskSpec, rule: Recurrence, now: datetime) -> dict[str, Any]:
    """The columns of a task that its definition decides."""
    return {name: getattr(spec, name) for name in AS_COLUMNS} | {
        "scheduled_time": spec.scheduled_time or (None if spec.recurrence_type == "once" else now),
        "recurrence_config": None
        if spec.recurrence_type == "once"
        else json.dumps(recurrence.dump(rule), separators=(",", ":"), sort_keys=True),
        "last_planned_for": last_planned_for(rule),
        "restricted": bool(spec.window_ids or spec.blackout_ids),
        "labels": dict(spec.labels or {}),
        "updated_at": now,
    }


def last_planned_for(rule: Recurrence) -> datetime | None:
    found: datetime | None = getattr(rule, "last_at", None)
    return found


def definition(spec: TaskSpec, rule: Recurrence | None = None, now: datetime | None = None) -> dict[str, Any]:
    """A definition as JSON values, for versions and the audit; with its rule, in normal form with the start filled in.

    `now` is the creation, which is the start of a recurring task that names none.
    """
    values = asdict(spec)
    start_at = spec.scheduled_time or (None if spec.recurrence_type == "once" else now)
    values["scheduled_time"] = format_instant(start_at) if start_at else None
    if rule is not None:
        values["recurrence_config"] = recurrence.dump(rule)
    return values


def upstream_ids(spec: TaskSpec) -> list[int]:
    """The tasks that an `after` definition names, in its order; whatever else may be wrong with it."""
    config = spec.recurrence_config or {}
    after = config.get("after") if spec.recurrence_type == "after" else None
    named = after.get("tasks") if isinstance(after, Mapping) else None
    ids = [one.get("task_id") for one in named if isinstance(one, Mapping)] if isinstance(named, list) else []
    return [one for one in ids if isinstance(one, int) and not isinstance(one, bool) and 0 < one < 2**63]


async def write_links(session: Session, specs: Mapping[int, TaskSpec], rules: Mapping[int, Recurrence]) -> None:
    """Store what new tasks point at: targets, windows, blackouts, tasks that they wait for."""
    await write_targets(session, specs, replace=False)
    await attach_calendars(session, specs, replace=False)
    waiting = {task_id: rule for task_id, rule in rules.items() if isinstance(rule, After)}
    if waiting:
        await dependencies.write(session, waiting)


async def write_targets(session: Session, specs: Mapping[int, TaskSpec], *, replace: bool) -> None:
    if replace:
        for table in (task_target_devices, task_target_groups):
            await session.execute(delete(table).where(table.c.task_id.in_(specs)))
    devices = [(task_id, device_id) for task_id, spec in specs.items() for device_id in spec.device_ids]
    await insert_rows(session, task_target_devices, ("task_id", "device_id"), devices)
    groups = [(task_id, group_id) for task_id, spec in specs.items() for group_id in spec.group_ids]
    await insert_rows(session, task_target_groups, ("task_id", "group_id"), groups)


async def attach_calendars(session: Session, specs: Mapping[int, TaskSpec], *, replace: bool) -> None:
    links = [(task_id, spec.window_ids, spec.blackout_ids) for task_id, spec in specs.items()]
    await calendars.attach(session, calendars.TASKS, links, replace=replace)


async def stored(session: Session, task_ids: Sequence[int]) -> dict[int, TaskSpec]:
    """The stored definitions of these tasks, in a constant number of queries."""
    table = scheduled_tasks
    rows = (
        await session.execute(
            select(table, payloads.c.body)
            .join(payloads, payloads.c.id == table.c.payload_id)
            .where(table.c.id.in_(task_ids))
        )
    ).mappings()
    devices, groups = await targets_of(session, task_ids)
    opened, closed = await calendars.ids_of(session, calendars.TASKS, task_ids)
    return {
        row["id"]: _spec(row, devices[row["id"]], groups[row["id"]], opened[row["id"]], closed[row["id"]])
        for row in rows
    }


async def targets_of(
    session: Session, task_ids: Sequence[int]
) -> tuple[dict[int, tuple[int, ...]], dict[int, tuple[int, ...]]]:
    """Device ids and group ids that these tasks name, ascending."""
    found: list[dict[int, tuple[int, ...]]] = []
    for table, column in ((task_target_devices, "device_id"), (task_target_groups, "group_id")):
        named: dict[int, tuple[int, ...]] = dict.fromkeys(task_ids, ())
        query = select(table.c.task_id, table.c[column]).where(table.c.task_id.in_(task_ids)).order_by(table.c[column])
        for task_id, target_id in await session.execute(query):
            named[task_id] += (target_id,)
        found.append(named)
    return found[0], found[1]


def _spec(
    row: Mapping[Any, Any],
    device_ids: tuple[int, ...],
    group_ids: tuple[int, ...],
    window_ids: tuple[int, ...],
    blackout_ids: tuple[int, ...],
) -> TaskSpec:
    return TaskSpec(
        **{name: row[name] for name in AS_COLUMNS},
        scheduled_time=row["scheduled_time"],
        recurrence_config=json.loads(row["recurrence_config"]) if row["recurrence_config"] else None,
        device_ids=device_ids,
        group_ids=group_ids,
        window_ids=window_ids,
        blackout_ids=blackout_ids,
        payload=row["body"],
        labels=row["labels"],
    )
