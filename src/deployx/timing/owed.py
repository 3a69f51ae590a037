"""Enumerates what a task owes: its nominal instants, when each falls due, and what comes next. Pure.

What becomes of an instant that is due is for `policy` to decide. The same enumeration serves the clock, the preview,
the forecast and the check of the ledger, so that they cannot disagree.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count, islice
from typing import NamedTuple

from deployx.timing.jitter import delay
from deployx.timing.rules import Recurrence

MOST_SINGLE_ROWS = 100
"""More instants in a row than this that end alike are one row of the ledger."""

_TICK = timedelta(microseconds=1)


class Override(NamedTuple):
    """A change of one occurrence: moved to `due_at`, or skipped by hand where that is None.

    `fired` tells that it was moved ahead of its nominal instant and is in the ledger already.
    """

    due_at: datetime | None
    fired: bool = False


class Due(NamedTuple):
    """An occurrence: the nominal instant (None for a dependency, which has a `cause`), and when it is to start.

    `after_hole` tells that an instant between it and the one before is accounted for by a row of its own.
    """

    planned_for: datetime | None
    due_at: datetime
    skipped_by_hand: bool = False
    after_hole: bool = False
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A rule as one task follows it: with the task's jitter, and the changes of single occurrences made by hand."""

    rule: Recurrence
    task_id: int = 0
    jitter_seconds: int = 0
    overrides: Mapping[datetime, Override] = field(default_factory=dict)

    def due_at(self, planned_for: datetime) -> datetime:
        """When an occurrence without an override falls due."""
        if self.jitter_seconds == 0:
            return planned_for
        return planned_for + delay(self.task_id, planned_for, self.jitter_seconds)

    def upcoming(self, after: datetime, until: datetime) -> Iterator[Due]:
        """Yield the occurrences planned for (after, until], in the order of their nominal instants."""
        for planned_for in self.rule.between(after, until):
            override = self.overrides.get(planned_for)
            if override is None:
                yield Due(planned_for, self.due_at(planned_for))
            elif override.due_at is None:
                yield Due(planned_for, planned_for, skipped_by_hand=True)
            else:
                yield Due(planned_for, override.due_at)


@dataclass(slots=True)
class Stretch:
    """Instants in a row: the first hundred, how many there are, and the last."""

    singles: list[Due]
    occurrences: int
    last: Due

    @property
    def first(self) -> Due:
        return self.singles[0]


@dataclass(slots=True)
class Owed:
    """What a task owes at one moment.

    `old` are instants beyond their grace, which can only have been missed; `due` those to decide about, in the order
    of their nominal instants. `next_planned` is the first nominal instant left, `following` when the next occurrence
    falls due: not after now where the limit cut the enumeration short. `look_at` is an earlier moment at which the
    ledger needs a row. `used` names the overrides that are done with, `ahead` those that fire before their instant.
    """

    old: Stretch | None = None
    due: list[Due] = field(default_factory=list)
    next_planned: datetime | None = None
    following: datetime | None = None
    look_at: datetime | None = None
    used: list[datetime] = field(default_factory=list)
    ahead: list[datetime] = field(default_factory=list)


def owed(
    plan: Plan,
    cursor: datetime | None,
    *,
    now: datetime,
    missed_before: datetime | None,
    limit: int,
    old_limit: int,
) -> Owed:
    """Enumerate from the nominal instant `cursor` on what is due at `now`.

    What falls due before `missed_before` was missed, whatever else holds (None: nothing is so certain); of that at
    most `old_limit` instants are taken, of all else `limit`.
    """
    found = Owed(next_planned=cursor)
    if cursor is not None and missed_before is not None and not plan.overrides:
        boundary = missed_before - timedelta(seconds=plan.jitter_seconds)
        if cursor < boundary:
            found.old = _stretch(plan, plan.rule.between(cursor - _TICK, boundary - _TICK), old_limit)
        if found.old is not None and found.old.last.planned_for is not None:
            found.next_planned = cursor = plan.rule.next_after(found.old.last.planned_for)
        if found.old is not None and found.old.occurrences == old_limit:
            found.following = None if cursor is None else plan.due_at(cursor)
            return found
    if not _only_one(plan, found, now):
        _enumerate(plan, found, now, limit)
        _look_ahead(plan, found, now)
    return found


def _only_one(plan: Plan, found: Owed, now: datetime) -> bool:
    """The common case in one step: a single occurrence is due, or none, and nobody has changed any."""
    cursor = found.next_planned
    if plan.overrides or cursor is None:
        return False
    due_at = plan.due_at(cursor)
    if due_at > now:
        found.following = due_at
        return True
    after_it = plan.rule.next_after(cursor)
    if (after_it is not None and after_it <= now) or plan.rule.next_after(cursor - _TICK) != cursor:
        return False
    found.due.append(Due(cursor, due_at))
    found.next_planned = after_it
    found.following = None if after_it is None else plan.due_at(after_it)
    return True


def _stretch(plan: Plan, instants: Iterator[datetime], limit: int) -> Stretch | None:
    singles = [Due(planned, plan.due_at(planned)) for planned in islice(instants, min(limit, MOST_SINGLE_ROWS + 1))]
    if not singles:
        return None
    rest = deque(zip(count(1), islice(instants, max(0, limit - len(singles))), strict=False), maxlen=1)
    if not rest:
        return Stretch(singles, len(singles), singles[-1])
    more, last = rest[0]
    return Stretch(singles, len(singles) + more, Due(last, plan.due_at(last)))


def _enumerate(plan: Plan, found: Owed, now: datetime, limit: int) -> None:
    cursor = found.next_planned
    found.due = _moved(plan, found, before=cursor, now=now)
    hole = bool(found.due)
    if cursor is not None and cursor <= now:
        for planned in plan.rule.between(cursor - _TICK, now):
            override = plan.overrides.get(planned)
            due_at = plan.due_at(planned) if override is None else override.due_at
            if (override is None and due_at is not None and due_at > now) or len(found.due) >= limit:
                found.next_planned = planned
                break
            if override is not None and (override.fired or (due_at is not None and due_at > now)):
                hole = True
                if override.fired:
                    found.used.append(planned)
                continue
            if override is not None:
                found.used.append(planned)
            found.due.append(Due(planned, due_at or planned, skipped_by_hand=due_at is None, after_hole=hole))
            hole = False
        else:
            found.next_planned = plan.rule.next_after(now)
    for planned, override in sorted(plan.overrides.items()):
        ahead = found.next_planned is not None and planned >= found.next_planned and not override.fired
        if ahead and override.due_at is not None and override.due_at <= now:
            found.ahead.append(planned)
            found.due.append(Due(planned, override.due_at, after_hole=True))


def _moved(plan: Plan, found: Owed, *, before: datetime | None, now: datetime) -> list[Due]:
    """Occurrences that were moved, whose nominal instants have passed, and that are due now."""
    due = []
    for planned, override in sorted(plan.overrides.items()):
        if (before is None or planned < before) and override.due_at is not None and override.due_at <= now:
            found.used.append(planned)
            if not override.fired:
                due.append(Due(planned, override.due_at, after_hole=True))
    return due


def _look_ahead(plan: Plan, found: Owed, now: datetime) -> None:
    """Find when the next occurrence falls due, and whether a row is to be written before that."""
    done = {*found.used, *found.ahead}
    pending = {planned: one for planned, one in plan.overrides.items() if planned not in done and not one.fired}
    planned = found.next_planned
    skips = []
    while planned is not None and (planned in plan.overrides or planned in done):
        if planned in pending and pending[planned].due_at is None:
            skips.append(planned)
        planned = plan.rule.next_after(planned)
    moved = [one.due_at for at, one in pending.items() if one.due_at is not None and _counts(plan, found, at)]
    normal = [] if planned is None else [plan.due_at(planned)]
    found.following = min(moved + normal, default=None)
    found.look_at = min((at for at in skips if found.following is None or at < found.following), default=None)


def _counts(plan: Plan, found: Owed, planned: datetime) -> bool:
    """Whether a moved occurrence is one of the rule's: either still to come, or kept while its instant passed."""
    if found.next_planned is None or planned < found.next_planned:
        return True
    return plan.rule.next_after(planned - _TICK) == planned
