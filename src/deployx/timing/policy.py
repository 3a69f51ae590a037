"""Decides what becomes of the due occurrences of one task: start, wait, or record as missed or skipped. Pure.

Claiming the task and writing the ledger rows are left to the caller, as are targets and permission, which are checked
when an execution starts. The checks come in a fixed order, and the first that objects gives the reason: blackout,
window, grace, catch-up, overlap.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal, NamedTuple, assert_never

from deployx.timing.owed import MOST_SINGLE_ROWS, Due, Stretch
from deployx.timing.windows import Calendar, State

LATE_AFTER = timedelta(seconds=5)
_NOT_AT_ALL = timedelta(0)


class Ending(NamedTuple):
    status: Literal["missed", "skipped"]
    reason: str


MISFIRE = Ending("missed", "misfire")
CLOCK_STEP = Ending("missed", "clock_step")
COALESCED = Ending("skipped", "coalesced")
NOT_CAUGHT_UP = Ending("skipped", "catch_up_none")
AT_CAPACITY = Ending("skipped", "max_instances")
OUTSIDE_WINDOW = Ending("skipped", "outside_window")
IN_BLACKOUT = Ending("skipped", "blackout")
WHILE_PAUSED = Ending("skipped", "paused")
BY_HAND = Ending("skipped", "skipped_by_hand")
SUPERSEDED = Ending("skipped", "superseded")


class CatchUp(StrEnum):
    """What to start of the occurrences that are found late, but within the grace."""

    LATEST = "latest"
    ALL = "all"
    NONE = "none"


class Overlap(StrEnum):
    """What to do with an occurrence while as many executions run as the task allows."""

    SKIP = "skip"
    QUEUE = "queue"
    CANCEL_RUNNING = "cancel_running"


class Outside(StrEnum):
    """What to do with an occurrence that falls due outside the task's windows."""

    DELAY = "delay"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a task's definition says about its occurrences.

    `stepped_over` are stretches (from, to] that the server's clock was set past: nothing due in them starts.
    """

    grace: timedelta
    catch_up: CatchUp = CatchUp.LATEST
    overlap: Overlap = Overlap.SKIP
    max_instances: int = 3
    outside: Outside = Outside.DELAY
    calendar: Calendar | None = None
    stepped_over: Sequence[tuple[datetime, datetime]] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One row for the ledger.

    `start`, `queue` (waits for a free place) and `delay` (waits for its window) are open; `record` has ended as
    `status` for `reason`. Where `covers_until` is set, the row stands for `occurrences` instants from `planned_for`.
    """

    action: Literal["start", "queue", "delay", "record"]
    planned_for: datetime | None
    due_at: datetime
    trigger: Literal["schedule", "catch_up", "dependency"]
    status: Literal["missed", "skipped"] | None = None
    reason: str | None = None
    occurrences: int = 1
    covers_until: datetime | None = None
    cause: str | None = None


@dataclass(slots=True)
class Decision:
    """The rows to write, in the order of their instants; and what is to become of executions that are there already.

    With `supersedes`, those that were queued before are replaced; with `cancels_oldest`, the oldest running one ends.
    """

    entries: list[Entry] = field(default_factory=list)
    supersedes: bool = False
    cancels_oldest: bool = False


def decide(
    due: Iterable[Due],
    *,
    now: datetime,
    policy: Policy,
    running: int = 0,
    queued: int = 0,
    following: datetime | None = None,
    old: Stretch | None = None,
) -> Decision:
    """Decide about occurrences that are due at `now`, in the order of their nominal instants.

    `running` and `queued` count the executions under way and those that wait for a place; `following` is when the
    next occurrence falls due, which may be before now where there is more to decide about later. `old` are instants
    known to be missed. Each occurrence is covered by exactly one entry. Raises ValueError for one not due yet.
    """
    due = list(due)
    if old is None and queued == 0 and running < policy.max_instances and _is_plain(due, now, policy):
        (one,) = due
        return Decision([Entry("start", one.planned_for, one.due_at, _trigger(one, late=False), cause=one.cause)])
    rows = _Rows()
    if old is not None:
        rows.add_stretch(old, MISFIRE)
    judged = _judged(due, now=now, policy=policy, following=following)
    in_time = [one for one, verdict in judged if isinstance(verdict, _InTime)]
    newest = in_time[-1] if in_time and (following is None or following > now) else None
    line = _Line(policy, places=policy.max_instances - running, queued=queued)
    for one, verdict in judged:
        match verdict:
            case Ending():
                rows.add(one, verdict)
            case "delay":
                rows.add_open(one, "delay", late=False)
            case _InTime(late=late):
                ending = _left_behind(one, late, newest, policy.catch_up)
                if ending is not None:
                    rows.add(one, ending)
                else:
                    line.place(one, late, rows)
    return Decision(rows.entries(), line.supersedes, line.cancels_oldest)


def _is_plain(due: Sequence[Due], now: datetime, policy: Policy) -> bool:
    """The common case, decided at once: a single occurrence, on time, and nothing that could object."""
    if len(due) != 1 or due[0].skipped_by_hand or policy.calendar is not None or policy.stepped_over:
        return False
    late_by = now - due[0].due_at
    return _NOT_AT_ALL <= late_by <= LATE_AFTER and late_by <= policy.grace


class _InTime(NamedTuple):
    """Within its grace, and allowed to start by blackouts and windows; `late` where more than 5 s after its time."""

    late: bool


_Verdict = Ending | Literal["delay"] | _InTime


def _judged(
    ordered: Sequence[Due], *, now: datetime, policy: Policy, following: datetime | None
) -> list[tuple[Due, _Verdict]]:
    """The verdict of blackout, window and grace on each; each knows when the next one falls due."""
    if policy.calendar is None and not policy.stepped_over:
        return [(one, _by_grace(one, now, policy.grace)) for one in ordered]
    judge = _Judge(policy, now)
    next_due = [*(one.due_at for one in ordered[1:]), following]
    return [(one, judge.verdict(one, next_due[place])) for place, one in enumerate(ordered)]


def _by_grace(one: Due, now: datetime, grace: timedelta) -> _Verdict:
    late_by = now - one.due_at
    if late_by < _NOT_AT_ALL:
        raise ValueError(f"the occurrence due at {one.due_at} is not due at {now}; decide about it later")
    if one.skipped_by_hand:
        return BY_HAND
    return MISFIRE if late_by > grace else _InTime(late_by > LATE_AFTER)


class _Judge:
    """Judges occurrences one after the other; remembers the calendar's state for as long as it lasts."""

    def __init__(self, policy: Policy, now: datetime) -> None:
        self._policy = policy
        self._calendar = policy.calendar
        self._now = now
        self._state_now = self._calendar.state(now)[0] if self._calendar else State.OPEN
        self._state, self._from, self._until = State.OPEN, now, now

    def verdict(self, one: Due, next_due: datetime | None) -> _Verdict:
        if one.due_at > self._now:
            raise ValueError(f"the occurrence due at {one.due_at} is not due at {self._now}; decide about it later")
        if one.skipped_by_hand:
            return BY_HAND
        if any(start < one.due_at <= end for start, end in self._policy.stepped_over):
            return CLOCK_STEP
        starts_at = one.due_at
        if self._calendar is not None:
            state = self._state_at(one.due_at)
            if state is State.BLACKOUT:
                return IN_BLACKOUT
            if state is State.CLOSED:
                found = self._opening(one.due_at, next_due)
                if isinstance(found, Ending):
                    return found
                if found > self._now:
                    return "delay"
                starts_at = found
        if self._now - starts_at > self._policy.grace:
            return MISFIRE
        return self._startable_now(next_due) or _InTime(self._now - starts_at > LATE_AFTER)

    def _startable_now(self, next_due: datetime | None) -> _Verdict | None:
        """What stands in the way at this moment, though nothing did when it fell due."""
        if self._state_now is State.BLACKOUT:
            return IN_BLACKOUT
        if self._state_now is State.CLOSED:
            found = self._opening(self._now, next_due)
            return found if isinstance(found, Ending) else "delay"
        return None

    def _opening(self, moment: datetime, next_due: datetime | None) -> datetime | Ending:
        assert self._calendar is not None
        if self._policy.outside is Outside.SKIP:
            return OUTSIDE_WINDOW
        opens_at = self._calendar.next_open(moment)
        overtaken = next_due is not None and next_due <= self._now
        if opens_at is None or (overtaken and next_due is not None and next_due <= opens_at):
            return OUTSIDE_WINDOW
        return opens_at

    def _state_at(self, moment: datetime) -> State:
        assert self._calendar is not None
        if not self._from <= moment < self._until:
            self._state, self._until = self._calendar.state(moment)
            self._from = moment
        return self._state


def _left_behind(one: Due, late: bool, newest: Due | None, catch_up: CatchUp) -> Ending | None:
    match catch_up:
        case CatchUp.ALL:
            return None
        case CatchUp.NONE:
            return NOT_CAUGHT_UP if late else None
        case CatchUp.LATEST:
            return COALESCED if late and one is not newest else None
        case _:
            assert_never(catch_up)


class _Line:
    """The places that are free, and those who wait for one."""

    def __init__(self, policy: Policy, *, places: int, queued: int) -> None:
        self._policy = policy
        self._places = places
        self._queued = queued
        self._waiting: int | None = None
        self.supersedes = False
        self.cancels_oldest = False

    def place(self, one: Due, late: bool, rows: "_Rows") -> None:
        if self._places > 0 and self._queued == 0:
            self._places -= 1
            rows.add_open(one, "start", late=late)
        elif self._policy.catch_up is CatchUp.ALL and late:
            self._queued += 1
            rows.add_open(one, "queue", late=late)
        elif self._policy.overlap is Overlap.SKIP:
            rows.add(one, AT_CAPACITY)
        else:
            if self._waiting is not None:
                rows.end_open(self._waiting, SUPERSEDED)
            self._waiting = rows.add_open(one, "queue", late=late)
            self._queued += 1
            self.supersedes = True
            self.cancels_oldest |= self._policy.overlap is Overlap.CANCEL_RUNNING


class _Rows:
    """Collects what happens to each occurrence; instants in a row that end alike become one stretch."""

    def __init__(self) -> None:
        self._items: list[tuple[Stretch, Ending] | Entry] = []

    def add(self, one: Due, ending: Ending) -> None:
        last = self._items[-1] if self._items else None
        if isinstance(last, tuple) and last[1] is ending and not one.after_hole and one.cause is None:
            stretch = last[0]
            if len(stretch.singles) <= MOST_SINGLE_ROWS:
                stretch.singles.append(one)
            stretch.occurrences += 1
            stretch.last = one
        else:
            self._items.append((Stretch([one], 1, one), ending))

    def add_stretch(self, stretch: Stretch, ending: Ending) -> None:
        self._items.append((stretch, ending))

    def add_open(self, one: Due, action: Literal["start", "queue", "delay"], *, late: bool) -> int:
        self._items.append(Entry(action, one.planned_for, one.due_at, _trigger(one, late), cause=one.cause))
        return len(self._items) - 1

    def end_open(self, position: int, ending: Ending) -> None:
        entry = self._items[position]
        assert isinstance(entry, Entry)
        one = Due(entry.planned_for, entry.due_at, cause=entry.cause)
        self._items[position] = (Stretch([one], 1, one), ending)

    def entries(self) -> list[Entry]:
        entries: list[Entry] = []
        for item in self._items:
            if isinstance(item, Entry):
                entries.append(item)
            elif item[0].occurrences > MOST_SINGLE_ROWS:
                entries.append(_collapsed(*item))
            else:
                entries += [_recorded(one, item[1]) for one in item[0].singles]
        return entries


def _trigger(one: Due, late: bool) -> Literal["schedule", "catch_up", "dependency"]:
    if one.cause is not None:
        return "dependency"
    return "catch_up" if late else "schedule"


def _recorded(one: Due, ending: Ending) -> Entry:
    trigger = _trigger(one, late=False)
    return Entry("record", one.planned_for, one.due_at, trigger, ending.status, ending.reason, cause=one.cause)


def _collapsed(stretch: Stretch, ending: Ending) -> Entry:
    first = stretch.first
    return Entry(
        "record",
        first.planned_for,
        first.due_at,
        "schedule",
        ending.status,
        ending.reason,
        stretch.occurrences,
        stretch.last.planned_for,
    )
