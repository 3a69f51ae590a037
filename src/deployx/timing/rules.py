"""The kinds of recurrence as values, and the next instant of each; reading and writing them is left to `recurrence`.

Every rule answers `next_after(moment)`: the first instant strictly after an aware UTC one, in UTC, or None where
nothing follows; and `between(after, until)`: all instants in (after, until], much faster than one search for each. No
rule names an instant before its `start_at`, after its `end`, or after its `last_at`.
"""

from abc import ABC, abstractmethod
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cached_property

from deployx.timing.cron import CronExpression
from deployx.timing.zones import shifts_between, to_instant, to_wall

# Nothing recurs later than this, so that neither an offset nor the rest of a week leads out of the calendar.
LAST_DAY = date(9999, 11, 30)
LAST_INSTANT = datetime.combine(LAST_DAY, time.max, UTC)
LAST_ORDINAL = -1

_TICK = timedelta(microseconds=1)
_FIRST_PROBE = datetime(1970, 1, 3, tzinfo=UTC)
_DAY = timedelta(days=1)
_WEEK = timedelta(weeks=1)
_AROUND_A_SHIFT = timedelta(days=2)


@dataclass(frozen=True)
class End:
    """The last instant that a recurrence may name, and the text that gave it (an instant or a bare date)."""

    at: datetime
    text: str


@dataclass(frozen=True, kw_only=True)
class Once:
    """One instant. `zone` is only for showing it."""

    at: datetime
    zone: tzinfo = UTC

    def next_after(self, moment: datetime) -> datetime | None:
        return self.at if self.at > moment else None

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        if after < self.at <= until:
            yield self.at


@dataclass(frozen=True, kw_only=True)
class Repeating(ABC):
    """What every recurring rule has: a zone for its wall times, a start (None: unbounded) and an end.

    `max_occurrences` is what the definition says; where that ends the rule (`last_at`) is for `recurrence.limited` to
    find.
    """

    zone: tzinfo = UTC
    start_at: datetime | None = None
    end: End | None = None
    max_occurrences: int | None = None
    last_at: datetime | None = None

    def next_after(self, moment: datetime) -> datetime | None:
        after = self._from_start(moment)
        if after > LAST_INSTANT:
            return None
        found = self._next(after)
        if found is None or found > self._last_instant:
            return None
        return found

    def between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        return self._instants(self._from_start(after), min(until, self._last_instant))

    def _from_start(self, moment: datetime) -> datetime:
        if self.start_at is not None and moment < self.start_at:
            return self.start_at - _TICK
        return moment

    @cached_property
    def _last_instant(self) -> datetime:
        ends = [LAST_INSTANT, self.end.at if self.end else LAST_INSTANT, self.last_at or LAST_INSTANT]
        return min(ends)

    def _instants(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the instants in (after, until], without regard to start and end."""
        found = self._next(after)
        while found is not None and found <= until:
            yield found
            found = self._next(found)

    @abstractmethod
    def _next(self, after: datetime) -> datetime | None:
        """Find the next instant, without regard to start and end."""


@dataclass(frozen=True, kw_only=True)
class OnDays(Repeating):
    """A wall time on certain days: what daily, weekly and monthly rules share."""

    wall_time: time

    def _next(self, after: datetime) -> datetime | None:
        day = self._day_from(to_wall(after, self.zone).date())
        while day is not None and day <= LAST_DAY:
            found = to_instant(datetime.combine(day, self.wall_time), self.zone)
            if found > after:
                return found
            day = self._day_from(day + _DAY)
        return None

    @abstractmethod
    def _day_from(self, day: date) -> date | None:
        """Return the first day of the rule that is not before that one."""


@dataclass(frozen=True, kw_only=True)
class Daily(OnDays):
    def _day_from(self, day: date) -> date | None:
        return day


@dataclass(frozen=True, kw_only=True)
class Weekly(OnDays):
    """On some weekdays (Monday is 0, ascending) of every n-th week; weeks begin on Monday, the start's is the first."""

    days_of_week: tuple[int, ...]
    every: int = 1

    def _day_from(self, day: date) -> date | None:
        monday = day - timedelta(days=day.weekday())
        skipped = -self._weeks_since_start(monday) % self.every
        if skipped == 0:
            for weekday in self.days_of_week:
                if weekday >= day.weekday():
                    return monday + timedelta(days=weekday)
            skipped = self.every
        if (LAST_DAY - monday) < skipped * _WEEK:
            return None
        return monday + skipped * _WEEK + timedelta(days=self.days_of_week[0])

    def _weeks_since_start(self, monday: date) -> int:
        if self.every == 1:
            return 0
        return (monday - self._first_monday).days // 7

    @cached_property
    def _first_monday(self) -> date:
        if self.start_at is None:
            raise ValueError(f"every {self.every} weeks counts from a start; give the rule its start_at")
        first = to_wall(self.start_at, self.zone).date()
        return first - timedelta(days=first.weekday())


@dataclass(frozen=True, kw_only=True)
class MonthDay:
    """A day of the month by its number; -1 is the last."""

    day_of_month: int

    def day_in(self, year: int, month: int) -> int | None:
        if 1 <= self.day_of_month <= 28:
            return self.day_of_month
        days = monthrange(year, month)[1]
        if self.day_of_month == LAST_ORDINAL:
            return days
        return self.day_of_month if self.day_of_month <= days else None


@dataclass(frozen=True, kw_only=True)
class MonthWeekday:
    """The n-th of a weekday in the month (Monday is 0); -1 is the last."""

    weekday: int
    ordinal: int

    def day_in(self, year: int, month: int) -> int | None:
        first_weekday, days = monthrange(year, month)
        first = 1 + (self.weekday - first_weekday) % 7
        if self.ordinal == LAST_ORDINAL:
            return first + (days - first) // 7 * 7
        day = first + (self.ordinal - 1) * 7
        return day if day <= days else None


@dataclass(frozen=True, kw_only=True)
class Monthly(OnDays):
    """On one day of the month; a month without it is skipped."""

    on: MonthDay | MonthWeekday

    def _day_from(self, day: date) -> date | None:
        year, month, earliest = day.year, day.month, day.day
        while year <= LAST_DAY.year:
            found = self.on.day_in(year, month)
            if found is not None and found >= earliest:
                return date(year, month, found)
            year, month, earliest = (year + 1, 1, 1) if month == 12 else (year, month + 1, 1)
        return None


@dataclass(frozen=True, kw_only=True)
class Interval(Repeating):
    """From the start, every so many seconds of elapsed time, whatever the wall clock does."""

    every_seconds: int

    def _next(self, after: datetime) -> datetime | None:
        if self.start_at is None:
            raise ValueError(f"every {self.every_seconds} s counts from a start; give the rule its start_at")
        period = timedelta(seconds=self.every_seconds)
        steps = (after - self.start_at) // period + 1
        if LAST_INSTANT - self.start_at < steps * period:
            return None
        return self.start_at + steps * period

    def _instants(self, after: datetime, until: datetime) -> Iterator[datetime]:
        period = timedelta(seconds=self.every_seconds)
        found = self._next(after)
        while found is not None and found <= until:
            yield found
            found += period


@dataclass(frozen=True, kw_only=True)
class Custom(Repeating):
    """A cron expression. `expression` keeps the words that it was given in."""

    expression: str
    cron: CronExpression

    def _next(self, after: datetime) -> datetime | None:
        if self.zone is UTC:
            return _in_utc(self.cron.next_after(after.replace(tzinfo=None)))
        if self.cron.follows_elapsed_time:
            return self._next_by_real_minutes(after)
        wall = self.cron.next_after(to_wall(after, self.zone))
        while wall is not None and wall.date() <= LAST_DAY:
            found = to_instant(wall, self.zone)
            if found > after:
                return found
            wall = self.cron.next_after(wall)
        return None

    def _next_by_real_minutes(self, after: datetime) -> datetime | None:
        """Search stretch by stretch between the zone's shifts: within one, wall clock and elapsed time go alike."""
        moment = after
        while True:
            wall_here = to_wall(moment, self.zone)
            wall = self.cron.next_after(wall_here)
            if wall is None or wall.date() > LAST_DAY:
                return None
            found = moment + (wall - wall_here)
            shift = next(shifts_between(moment, found, self.zone), None)
            if shift is None:
                return found
            if self._matches(shift.at):
                return shift.at
            moment = shift.at

    def _matches(self, moment: datetime) -> bool:
        wall = to_wall(moment, self.zone)
        return self.cron.next_after(wall - _TICK) == wall

    def _instants(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Day by day where the zone's offset stays as it is, instant by instant around its shifts."""
        moment = after
        for shift in shifts_between(max(after, _FIRST_PROBE) - _AROUND_A_SHIFT, until + _AROUND_A_SHIFT, self.zone):
            calm_until = min(until, shift.at - _AROUND_A_SHIFT)
            if moment < calm_until:
                yield from self._calm(moment, calm_until)
                moment = calm_until
            rough_until = min(until, shift.at + _AROUND_A_SHIFT)
            if moment < rough_until:
                yield from super()._instants(moment, rough_until)
                moment = rough_until
        if moment < until:
            yield from self._calm(moment, until)

    def _calm(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """The instants of a stretch in which wall clock and elapsed time go alike."""
        offset = after.astimezone(self.zone).utcoffset() or timedelta(0)
        from_wall, until_wall = (after + offset).replace(tzinfo=None), (until + offset).replace(tzinfo=None)
        return self.cron.between(from_wall, until_wall, lambda midnight: midnight.replace(tzinfo=UTC) - offset)


def _in_utc(wall: datetime | None) -> datetime | None:
    return None if wall is None else wall.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A task that another one waits for, and how it is to end: `success`, `failure` or `completion` (either)."""

    task_id: int
    on: str


@dataclass(frozen=True, kw_only=True)
class After:
    """When other tasks end: once `all` or `any` of them has ended as asked since the last time. Names no instant."""

    upstreams: tuple[Upstream, ...]
    mode: str
    zone: tzinfo = UTC

    def next_after(self, _moment: datetime) -> None:
        return None

    def between(self, _after: datetime, _until: datetime) -> Iterator[datetime]:
        return iter(())


Recurrence = After | Once | Daily | Weekly | Monthly | Interval | Custom
