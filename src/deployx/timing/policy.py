"""Decides what becomes of the due occurrences of one task: start, record as missed or skipped, or let wait.

A pure decision over instants; claiming the task and writing the ledger rows are left to the caller, as are blackouts
and windows, which are checked before, and targets and permission, which are checked after.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from typing import Literal, assert_never

LATE_AFTER = timedelta(seconds=5)
# More instants in a row than this that end alike are one row of the ledger.
MOST_SINGLE_ROWS = 100

Ending = tuple[Literal["missed", "skipped"], str]

MISFIRE: Ending = ("missed", "misfire")
COALESCED: Ending = ("skipped", "coalesced")
NOT_CAUGHT_UP: Ending = ("skipped", "catch_up_none")
AT_CAPACITY: Ending = ("skipped", "max_instances")


class CatchUp(StrEnum):
    """What to start of the occurrences that are found late, but within the grace."""

    LATEST = "latest"
    ALL = "all"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Due:
    """An occurrence that is due: the nominal instant, and the one at which it was to start."""

    planned_for: datetime
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Entry:
    """One row for the ledger.

    `start` has no status yet; `record` has ended as `status` for `reason`. The trigger is `catch_up` for a late start
    and `schedule` for all else. Where `covers_until` is set, the row stands for `occurrences` planned instants, from
    `planned_for` to there.
    """

    action: Literal["start", "record"]
    planned_for: datetime
    due_at: datetime
    trigger: Literal["schedule", "catch_up"]
    status: Literal["missed", "skipped"] | None = None
    reason: str | None = None
    occurrences: int = 1
    covers_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The rows to write, in the order of their planned instants.

    With `resume_at` set, the occurrences planned for that instant and later stay due and wait for a free place. Those
    up to `admitted_through` were in time when they were first looked at: hand that instant to the next decision, or
    waiting would make them miss their grace.
    """

    entries: list[Entry]
    resume_at: datetime | None = None
    admitted_through: datetime | None = None


def decide(
    due: Sequence[Due],
    *,
    now: datetime,
    grace: timedelta,
    catch_up: CatchUp,
    running: int,
    max_instances: int,
    admitted_through: datetime | None = None,
) -> Decision:
    """Decide about occurrences that are due at `now`, in any order.

    Each is covered by exactly one entry, or is planned for `resume_at` or later. The checks come in this order, and
    the first that objects gives the reason: grace, catch-up, overlap. `running` counts the executions under way.
    Raises ValueError for one that is not due yet.
    """
    ordered = sorted(due, key=lambda one: one.planned_for)
    _require_due(ordered, now)
    admitted = {one for one in ordered if _is_admitted(one, admitted_through)}
    in_time = [one for one in ordered if one in admitted or now - one.due_at <= grace]
    late = {one for one in in_time if now - one.due_at > LATE_AFTER}
    endings: dict[Due, Ending] = dict.fromkeys(set(ordered).difference(in_time), MISFIRE)
    endings |= _left_behind(in_time, late, catch_up)

    may_wait = late | admitted if catch_up is CatchUp.ALL else set[Due]()
    places = max_instances - running
    for index, one in enumerate(ordered):
        if one in endings:
            continue
        if places > 0:
            places -= 1
        elif one in may_wait:
            entries = _entries(ordered[:index], endings, late)
            return Decision(entries, resume_at=one.planned_for, admitted_through=in_time[-1].planned_for)
        else:
            endings[one] = AT_CAPACITY
    return Decision(_entries(ordered, endings, late))


def _require_due(ordered: Iterable[Due], now: datetime) -> None:
    for one in ordered:
        if one.due_at > now:
            raise ValueError(f"the occurrence due at {one.due_at} is not due at {now}; decide about it later")


def _is_admitted(one: Due, admitted_through: datetime | None) -> bool:
    return admitted_through is not None and one.planned_for <= admitted_through


def _left_behind(in_time: Sequence[Due], late: set[Due], catch_up: CatchUp) -> dict[Due, Ending]:
    match catch_up:
        case CatchUp.ALL:
            return {}
        case CatchUp.NONE:
            return dict.fromkeys(late, NOT_CAUGHT_UP)
        case CatchUp.LATEST:
            return dict.fromkeys(late.difference(in_time[-1:]), COALESCED)
        case _:
            assert_never(catch_up)


def _entries(ordered: Iterable[Due], endings: Mapping[Due, Ending], late: set[Due]) -> list[Entry]:
    entries: list[Entry] = []
    for ending, alike in groupby(ordered, key=endings.get):
        stretch = list(alike)
        if ending is None:
            entries += [_start(one, one in late) for one in stretch]
        elif len(stretch) > MOST_SINGLE_ROWS:
            entries.append(_record(stretch, ending))
        else:
            entries += [_record([one], ending) for one in stretch]
    return entries


def _start(one: Due, is_late: bool) -> Entry:
    return Entry("start", one.planned_for, one.due_at, "catch_up" if is_late else "schedule")


def _record(stretch: Sequence[Due], ending: Ending) -> Entry:
    status, reason = ending
    return Entry(
        "record",
        stretch[0].planned_for,
        stretch[0].due_at,
        "schedule",
        status=status,
        reason=reason,
        occurrences=len(stretch),
        covers_until=stretch[-1].planned_for if len(stretch) > 1 else None,
    )
