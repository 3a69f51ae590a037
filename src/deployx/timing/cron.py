"""Cron expressions as crontab(5) of Debian means them: checks the five fields, and finds the next matching wall time.

Matching is cronsim's, on naive wall times; what this file adds is the strictness that cronsim lacks and a form of the
fields that can be put into words. Time zones are left to `rules`.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise, takewhile
from typing import NamedTuple

from cronsim import CronSim

MAX_CHARACTERS = 256
_MINUTE = timedelta(minutes=1)
_WHOLE_DAY = timedelta(days=1)
LONGEST_MONTHS = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_MONTH_NAMES = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_WEEKDAY_NAMES = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
_NICKNAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_TERM = re.compile(r"(?P<first>\*|[0-9A-Za-z]+)(?:-(?P<last>[0-9A-Za-z]+))?(?:/(?P<step>[0-9]{1,4}))?", re.ASCII)
_NTH = re.compile(r"(?P<weekday>[0-9A-Za-z]+)#(?P<nth>[0-9]{1,4})", re.ASCII)


class CronError(ValueError):
    """A cron expression that is refused; the message names the field, quotes its value and says what to write."""


@dataclass(frozen=True, slots=True)
class CronExpression:
    """A checked cron expression.

    `text` is the normalised form, in numbers. The sets hold the matching values; `weekdays` counts Sunday as 0, and
    `nth_weekdays` holds (weekday, n) pairs. A `_star` flag tells that the field begins with `*`, which crontab(5)
    gives a meaning of its own.
    """

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    last_day: bool
    months: frozenset[int]
    weekdays: frozenset[int]
    nth_weekdays: frozenset[tuple[int, int]]
    minute_star: bool
    hour_star: bool
    day_star: bool
    weekday_star: bool

    def next_after(self, wall: datetime) -> datetime | None:
        """Return the first matching wall time strictly after a naive one; None where the calendar ends before it."""
        return _next_wall(self.text, wall)

    def between(
        self, after: datetime, until: datetime, to_instant: Callable[[datetime], datetime]
    ) -> Iterator[datetime]:
        """Yield the instants of the matching wall times in (after, until] (naive), in a stretch of one offset.

        `to_instant` turns a midnight into its instant; what follows within the day is added to that.
        """
        times = _times_of_day(self)
        for day in self.days_between(after.replace(hour=0, minute=0, second=0, microsecond=0) - _MINUTE, until):
            midnight = to_instant(day)
            if after < day and day + _WHOLE_DAY <= until:
                for time in times:
                    yield midnight + time
            else:
                yield from (midnight + time for time in times if after < day + time <= until)

    @property
    def shortest_gap_of_a_day(self) -> timedelta:
        """The shortest time between two matching wall times of one day; a whole day where there is only one."""
        times = _times_of_day(self)
        return min((later - earlier for earlier, later in pairwise(times)), default=_WHOLE_DAY)

    @property
    def gap_over_midnight(self) -> timedelta:
        """The time from the last matching wall time of a day to the first one of the next, if that matches too."""
        times = _times_of_day(self)
        return _WHOLE_DAY - times[-1] + times[0]

    def days_between(self, after: datetime, until: datetime) -> Iterator[datetime]:
        """Yield the midnights in (after, until] of the days that match."""
        search = copy.copy(_search(_days_text(self.text)))
        search.dt = after
        try:
            yield from takewhile(lambda day: day <= until, search)
        except OverflowError:  # the next such day lies beyond the year 9999
            return

    @property
    def follows_elapsed_time(self) -> bool:
        """Whether each real minute is matched, also where daylight saving shifts the wall clock."""
        return self.minute_star or self.hour_star

    @property
    def needs_both_days(self) -> bool:
        """Whether a day must match day-of-month and day-of-week; else either of the two suffices (crontab(5))."""
        return self.day_star or self.weekday_star


@lru_cache(maxsize=16_384)
def parse_cron(text: str) -> CronExpression:
    """Check a five-field cron expression or a nickname such as `@daily`. Raises CronError."""
    if len(text) > MAX_CHARACTERS:
        raise CronError(f"The cron expression has {len(text)} characters; use at most {MAX_CHARACTERS}.")
    texts = _field_texts(text)
    minute, hour, day, month, weekday = (_read(field, value) for field, value in zip(_FIELDS, texts, strict=True))
    expression = CronExpression(
        text=" ".join(read.text for read in (minute, hour, day, month, weekday)),
        minutes=minute.values,
        hours=hour.values,
        days=day.values,
        last_day=day.has_last,
        months=month.values,
        weekdays=frozenset(value % 7 for value in weekday.values),
        nth_weekdays=weekday.nths,
        minute_star=minute.text.startswith("*"),
        hour_star=hour.text.startswith("*"),
        day_star=day.text.startswith("*"),
        weekday_star=weekday.text.startswith("*"),
    )
    if not _can_fire(expression):
        raise CronError(f"The cron expression '{text.strip()}' never fires: no month it names has such a day.")
    return expression


class _Field(NamedTuple):
    name: str
    low: int
    high: int
    names: list[str]


_DAY = _Field("day-of-month", 1, 31, [])
_WEEKDAY = _Field("day-of-week", 0, 7, _WEEKDAY_NAMES)
_FIELDS = (_Field("minute", 0, 59, []), _Field("hour", 0, 23, []), _DAY, _Field("month", 1, 12, _MONTH_NAMES), _WEEKDAY)


class _Read(NamedTuple):
    """What a field, or one term of its list, says."""

    text: str
    values: frozenset[int] = frozenset()
    has_last: bool = False
    nths: frozenset[tuple[int, int]] = frozenset()


def _field_texts(text: str) -> list[str]:
    stripped = text.strip()
    if stripped.startswith("@"):
        if stripped.lower() not in _NICKNAMES:
            raise CronError(f"'{stripped}' is not a known cron name; use one of {', '.join(_NICKNAMES)}.")
        stripped = _NICKNAMES[stripped.lower()]
    texts = re.split(r"[ \t]+", stripped) if stripped else []
    if len(texts) != len(_FIELDS):
        raise CronError(
            f"The cron expression '{text}' has {len(texts)} fields; "
            "use five: minute, hour, day-of-month, month, day-of-week."
        )
    return texts


def _read(field: _Field, text: str) -> _Read:
    terms = [_read_term(field, term) for term in text.split(",")]
    return _Read(
        text=",".join(term.text for term in terms),
        values=frozenset[int]().union(*(term.values for term in terms)),
        has_last=any(term.has_last for term in terms),
        nths=frozenset[tuple[int, int]]().union(*(term.nths for term in terms)),
    )


def _read_term(field: _Field, term: str) -> _Read:
    if field is _DAY and term.upper() == "L":
        return _Read("L", has_last=True)
    if field is _WEEKDAY and (nth := _NTH.fullmatch(term)):
        return _read_nth(nth["weekday"], int(nth["nth"]))
    found = _TERM.fullmatch(term)
    if found is None:
        raise _refusal(field, term, _why_malformed(field, term))
    first, last, step = found["first"], found["last"], found["step"]
    if first == "*" and last:
        raise _refusal(field, term, "'*' cannot begin a range")
    if step is not None and int(step) == 0:
        raise _refusal(field, term, "a step must be at least 1")
    every = int(step or 1)
    if first == "*":
        return _Read(f"*/{every}" if step else "*", frozenset(range(field.low, field.high + 1, every)))
    low = _number(field, first, term)
    if last is None:
        if step:
            raise _refusal(field, term, f"a step needs a range; write '{low}-{field.high}/{every}'")
        return _Read(str(low), frozenset({low}))
    return _read_range(field, term, (low, _number(field, last, term)), every)


def _read_nth(weekday: str, nth: int) -> _Read:
    term = f"{weekday}#{nth}"
    number = _number(_WEEKDAY, weekday, term)
    if not 1 <= nth <= 5:
        raise _refusal(_WEEKDAY, term, "the number after '#' must be 1 to 5")
    return _Read(f"{number}#{nth}", nths=frozenset({(number % 7, nth)}))


def _read_range(field: _Field, term: str, ends: tuple[int, int], every: int) -> _Read:
    low, high = ends
    if low > high:
        upwards = f"{low}-7" if field is _WEEKDAY and high == 0 else f"{low}-{field.high},{field.low}-{high}"
        raise _refusal(field, term, f"a range must go upwards; write '{upwards}'")
    # cronsim takes `10-10/2` for `10-59/2`; crontab(5) for 10 alone.
    text = str(low) if low == high else f"{low}-{high}/{every}" if every > 1 else f"{low}-{high}"
    return _Read(text, frozenset(range(low, high + 1, every)))


def _number(field: _Field, text: str, term: str) -> int:
    if text.upper() in field.names:
        return field.names.index(text.upper()) + field.low
    if not text.isdigit():
        raise _refusal(field, term, _why_malformed(field, term))
    if len(text) > 4 or not field.low <= int(text) <= field.high:
        raise _refusal(field, term, f"{text[:20]} is out of range; use {field.low} to {field.high}")
    return int(text)


def _why_malformed(field: _Field, term: str) -> str:
    if not term:
        return "a list has an empty place; write values separated by single commas"
    if field is _DAY and "L" in term.upper():
        return "'L' stands alone, for the last day"
    if field is _DAY and "W" in term.upper():
        return "the nearest working day cannot be written; use a number or 'L'"
    if field is _WEEKDAY and re.fullmatch(r"[0-7]?L", term.upper()):
        return "the last such weekday cannot be written in cron; use a monthly recurrence with 'ordinal' -1"
    names = f", names {field.names[0].lower()} to {field.names[-1].lower()}" if field.names else ""
    return f"use numbers {field.low} to {field.high}{names}, '*', ranges 'a-b', lists and steps 'a-b/n'"


def _refusal(field: _Field, term: str, why: str) -> CronError:
    return CronError(f"Cron field {field.name}: '{term[:40]}' is not accepted: {why}.")


def _can_fire(expression: CronExpression) -> bool:
    """Decide arithmetically: searching for a date that does not exist takes long."""
    if not expression.needs_both_days or expression.last_day:
        return True
    longest = max(LONGEST_MONTHS[month] for month in expression.months)
    days = [day for day in expression.days if day <= longest]
    if expression.weekdays:
        return bool(days)
    return any(nth == (day + 6) // 7 for day in days for nth in _numbers(expression.nth_weekdays))


def _numbers(nth_weekdays: Iterable[tuple[int, int]]) -> set[int]:
    return {nth for _, nth in nth_weekdays}


@lru_cache(maxsize=65_536)
def _next_wall(text: str, wall: datetime) -> datetime | None:
    # Many tasks share an expression and fall due together, so the pair is worth remembering.
    search = copy.copy(_search(text))
    search.dt = wall.replace(microsecond=0)
    try:
        return next(search, None)
    except OverflowError:  # the match lies beyond the year 9999
        return None


_ANY_WALL = datetime(1970, 1, 1)  # noqa: DTZ001 - a wall time has no zone


@lru_cache(maxsize=16_384)
def _search(text: str) -> CronSim:
    """Return a search of which only copies may move; reading the fields is most of a search's cost."""
    return CronSim(text, _ANY_WALL)


@lru_cache(maxsize=16_384)
def _times_of_day(expression: CronExpression) -> tuple[timedelta, ...]:
    """The times of day that match on a day that matches, ascending."""
    return tuple(
        timedelta(hours=hour, minutes=minute)
        for hour in sorted(expression.hours)
        for minute in sorted(expression.minutes)
    )


def _days_text(text: str) -> str:
    """The expression that matches each midnight of the days that `text` matches."""
    return " ".join(["0", "0", *text.split()[2:]])
