"""Execution windows and blackouts: when work may start. Pure; attaching them to tasks and groups is left to `work`.

A window is open on some weekdays from one wall time to another, which may lie on the next day. A blackout is a range
of instants, or some days of each year. Of several windows any open one suffices; a blackout beats every window.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import StrEnum

from deployx.timing.zones import to_instant, to_wall

_DAY = timedelta(days=1)
_FAR = timedelta(days=800)
"""Nothing opens later than this: a yearly blackout of each day of a leap year leaves no day at all."""


class State(StrEnum):
    OPEN = "open"
    CLOSED = "closed"
    BLACKOUT = "blackout"


@dataclass(frozen=True, slots=True)
class Window:
    """Open from `start` on each of `days` (Monday is 0) until `end`; an end not after the start is the next day's."""

    days: frozenset[int]
    start: time
    end: time
    zone: tzinfo = UTC

    def openings(self, moment: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Yield the spans [from, to) that end after `moment`, in order, for the nine days after it."""
        today = to_wall(moment, self.zone).date()
        for offset in range(-2, 10):
            day = today + offset * _DAY
            if day.weekday() not in self.days:
                continue
            last = day if self.end > self.start else day + _DAY
            opens_at = to_instant(datetime.combine(day, self.start), self.zone)
            closes_at = to_instant(datetime.combine(last, self.end), self.zone)
            if closes_at > moment and closes_at > opens_at:
                yield opens_at, closes_at


@dataclass(frozen=True, slots=True)
class Range:
    """A blackout of one stretch: [start_at, end_at)."""

    start_at: datetime
    end_at: datetime

    def spans(self, moment: datetime) -> Iterator[tuple[datetime, datetime]]:
        if self.end_at > moment:
            yield self.start_at, self.end_at


@dataclass(frozen=True, slots=True)
class Days:
    """A blackout of whole days of each year, given as (month, day), in a zone."""

    dates: frozenset[tuple[int, int]]
    zone: tzinfo = UTC

    def spans(self, moment: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Yield the spans that end after `moment`, in order, for more than a year."""
        today = to_wall(moment, self.zone).date()
        years = (today.year - 1, today.year, today.year + 1, today.year + 2)
        days = sorted(found for year in years for month, day in self.dates if (found := _date(year, month, day)))
        for day in days:
            start_at, end_at = _midnight(day, self.zone), _midnight(day + _DAY, self.zone)
            if end_at > moment:
                yield start_at, end_at


Blackout = Range | Days


@dataclass(frozen=True, slots=True)
class Calendar:
    """The windows and blackouts of one task or device, all together."""

    windows: tuple[Window, ...] = ()
    blackouts: tuple[Blackout, ...] = ()

    def state(self, moment: datetime) -> tuple[State, datetime]:
        """Return the state at `moment`, and an instant until which it certainly stays so."""
        covered, until = _at(moment, (blackout.spans(moment) for blackout in self.blackouts))
        if covered:
            return State.BLACKOUT, until
        if not self.windows:
            return State.OPEN, until
        opened, change_at = _at(moment, (window.openings(moment) for window in self.windows))
        return (State.OPEN if opened else State.CLOSED), min(until, change_at)

    def next_open(self, moment: datetime) -> datetime | None:
        """Return the first instant from `moment` on at which work may start; None where there is none for two years."""
        limit = moment + _FAR
        while moment < limit:
            state, until = self.state(moment)
            if state is State.OPEN:
                return moment
            moment = until
        return None


def _at(moment: datetime, several: Iterable[Iterator[tuple[datetime, datetime]]]) -> tuple[bool, datetime]:
    """Whether any of the spans holds `moment`, and when that may change at the earliest."""
    far = moment + 9 * _DAY
    ends: list[datetime] = []
    starts: list[datetime] = []
    for spans in several:
        for start_at, end_at in spans:
            if start_at <= moment:
                ends.append(end_at)
            else:
                starts.append(start_at)
                break
    if ends:
        return True, max(ends)
    return False, min(starts, default=far)


def _date(year: int, month: int, day: int) -> date | None:
    try:
        return date(year, month, day)
    except ValueError:  # 29 February
        return None


def _midnight(day: date, zone: tzinfo) -> datetime:
    return to_instant(datetime.combine(day, time.min), zone)
