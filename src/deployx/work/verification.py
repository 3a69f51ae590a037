"""Checks the ledger: recomputes from the versions of each definition what was owed, and compares.

The enumeration is by version: a definition owes the nominal instants of the time in which it was active. Rows of the
ledger must cover each of them once, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import select

from deployx.db.database import Session
from deployx.db.schema import occurrence_overrides, scheduled_task_executions, scheduled_tasks, task_versions
from deployx.lifecycle import TASK_SCHEDULED
from deployx.timing import recurrence
from deployx.timing.instants import format_instant, parse_instant
from deployx.timing.recurrence import Recurrence

SETTLES_WITHIN = timedelta(seconds=60)
"""How long after its grace the newest occurrence may still lack its row: the clock may be busy."""
MOST_NAMED = 3

_ACTIVE = {status.value for status in TASK_SCHEDULED}


@dataclass(slots=True)
class Verified:
    """What the check of one task found; `problems` are sentences."""

    task_id: int
    owed: int
    problems: list[str]


@dataclass(slots=True)
class _Row:
    """One row of the ledger, and how many owed instants were found in it."""

    first: datetime
    last: datetime
    occurrences: int
    is_ahead: bool
    found: int = 0


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Time in which one version was active: what it plans in (after, until] is owed."""

    after: datetime
    until: datetime
    rule: Recurrence


async def verify(session: Session, *, now: datetime) -> AsyncIterator[Verified]:
    """Check all tasks, deleted ones included, one after the other."""
    ids = await session.execute(select(scheduled_tasks.c.id).order_by(scheduled_tasks.c.id))
    for task_id in ids.scalars().all():
        yield await verify_task(session, task_id, now=now)


async def verify_task(session: Session, task_id: int, *, now: datetime) -> Verified:
    query = select(task_versions).where(task_versions.c.task_id == task_id).order_by(task_versions.c.version)
    versions = (await session.execute(query)).all()
    until = now - SETTLES_WITHIN - max((_patience(row.definition) for row in versions), default=timedelta(0))
    pending = await session.execute(
        select(occurrence_overrides.c.planned_for).where(
            occurrence_overrides.c.task_id == task_id,
            occurrence_overrides.c.due_at > until,
            occurrence_overrides.c.fired.is_(False),
        )
    )
    rows = await _rows(session, task_id)
    return _compare(task_id, list(_stretches(versions, until)), rows, set(pending.scalars()), until)


def _patience(definition: dict[str, Any]) -> timedelta:
    return timedelta(seconds=definition["misfire_grace_seconds"] + definition.get("jitter_seconds", 0))


def _stretches(versions: Sequence[Any], until: datetime) -> Iterator[_Stretch]:
    ends = [*(row.effective_at for row in versions[1:]), until]
    for row, end in zip(versions, ends, strict=True):
        if row.status in _ACTIVE and row.effective_at < min(end, until):
            yield _Stretch(row.effective_at, min(end, until), _rule(row))


def _rule(row: Any) -> Recurrence:
    definition = row.definition
    config = definition["recurrence_config"]
    start = definition["scheduled_time"]
    return recurrence.load(
        definition["recurrence_type"],
        None if config is None else json.dumps(config, separators=(",", ":"), sort_keys=True),
        parse_instant(start) if start else row.effective_at,
        definition["timezone"],
        row.last_planned_for,
    )


async def _rows(session: Session, task_id: int) -> list[_Row]:
    table = scheduled_task_executions
    found = await session.execute(
        select(table.c.planned_for, table.c.covers_until, table.c.occurrences, table.c.due_at)
        .where(table.c.task_id == task_id, table.c.planned_for.is_not(None))
        .order_by(table.c.planned_for)
    )
    return [
        _Row(row.planned_for, row.covers_until or row.planned_for, row.occurrences, row.due_at < row.planned_for)
        for row in found
    ]


def _compare(
    task_id: int, stretches: Sequence[_Stretch], rows: Sequence[_Row], pending: set[datetime], until: datetime
) -> Verified:
    """Walk owed instants and rows side by side."""
    owed, missing, place = 0, [], 0
    for stretch in stretches:
        for instant in stretch.rule.between(stretch.after, stretch.until):
            owed += 1
            while place < len(rows) and rows[place].last < instant:
                place += 1
            if place < len(rows) and rows[place].first <= instant:
                rows[place].found += 1
            elif instant not in pending:
                missing.append(instant)
    problems = []
    if missing:
        problems.append(f"Task {task_id}: {_named(missing)} not in the ledger.")
    wrong = [row.first for row in rows if row.last <= until and row.found != row.occurrences and not row.is_ahead]
    if wrong:
        problems.append(f"Task {task_id}: the rows of {_named(wrong)} cover more or less than was owed.")
    # One that was moved ahead and had started before an edit may lie among the instants of the new definition.
    in_order = [row for row in rows if not row.is_ahead]
    overlapping = [later.first for earlier, later in pairwise(in_order) if later.first <= earlier.last]
    if overlapping:
        problems.append(f"Task {task_id}: the rows of {_named(overlapping)} overlap others.")
    return Verified(task_id, owed, problems)


def _named(instants: Sequence[datetime]) -> str:
    shown = ", ".join(format_instant(one) for one in instants[:MOST_NAMED])
    more = f" and {len(instants) - MOST_NAMED} more" if len(instants) > MOST_NAMED else ""
    return f"{len(instants)} {'occurrences' if len(instants) > 1 else 'occurrence'} ({shown}{more})"
