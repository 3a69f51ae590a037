"""Wall clocks to instants and back: IANA zones, the gaps and repeats of daylight saving, and when a zone shifts.

What a recurrence names on the wall clock is the business of `rules`. Naive datetimes here are wall times, aware ones
instants in UTC.
"""

import difflib
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

# In the zone database, but names of a machine's own setting or of none.
_NOT_PLACES = frozenset({"localtime", "Factory", "posixrules"})
_DAY = timedelta(days=1)
_SECOND = timedelta(seconds=1)
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_LAST_PROBE = date(9999, 12, 29)
_NO_SHIFT = timedelta(0)


class ZoneError(ValueError):
    """A name that is no IANA time zone; the message quotes it and suggests a near one."""


class Shift(NamedTuple):
    """A change of a zone's offset: from `at` (aware UTC) on, `after` is valid instead of `before`."""

    at: datetime
    before: timedelta
    after: timedelta


def find_zone(name: str) -> tzinfo:
    """Return the IANA zone of that exact name; UTC is `datetime.UTC`. Raises ZoneError."""
    if name == "UTC":
        return UTC
    if name not in _zone_names():
        raise ZoneError(_unknown_zone(name))
    return ZoneInfo(name)


def zone_name(zone: tzinfo) -> str:
    """Return the name that `find_zone` takes."""
    return zone.key if isinstance(zone, ZoneInfo) else "UTC"


def to_wall(moment: datetime, zone: tzinfo) -> datetime:
    """Return what a clock on the wall shows at an instant."""
    return moment.astimezone(zone).replace(tzinfo=None, fold=0)


def to_instant(wall: datetime, zone: tzinfo) -> datetime:
    """Return the instant at which a wall time is due.

    A repeated wall time is due the first time; one that a gap swallows is due at the first instant after the gap.
    Later wall times never give earlier instants.
    """
    if zone is UTC:
        return wall.replace(tzinfo=UTC)
    before, after = _offsets(wall, zone)
    if before < after:
        return _shift_between(_minus(wall, after), _minus(wall, before), zone)
    return _minus(wall, before)


def end_of_day(day: date, zone: tzinfo) -> datetime:
    """Return the last instant at which the wall clock shows that date, to the microsecond."""
    wall = datetime.combine(day, time.max)
    before, after = _offsets(wall, zone)
    return _minus(wall, after) if before > after else to_instant(wall, zone)


def shifts_between(after: datetime, until: datetime, zone: tzinfo) -> Iterator[Shift]:
    """Yield the zone's changes of offset in (after, until], in order."""
    if zone is UTC:
        return
    for year in range(after.year, until.year + 1):
        for shift in _shifts_of_year(zone, year):
            if after < shift.at <= until:
                yield shift


def _unknown_zone(name: str) -> str:
    by_lower = {known.lower(): known for known in sorted(_zone_names())}
    near = difflib.get_close_matches(name[:64].lower(), by_lower, n=1, cutoff=0.7)
    advice = f"Did you mean '{by_lower[near[0]]}'?" if near else "Use a name like 'Europe/Berlin', or 'UTC'."
    return f"Timezone '{name[:64]}' is unknown. {advice}"


@lru_cache(maxsize=1)
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones()) - _NOT_PLACES


def _offsets(wall: datetime, zone: tzinfo) -> tuple[timedelta, timedelta]:
    """Return the offsets valid before and after a shift at that wall time; equal where there is none (PEP 495)."""
    local = wall.replace(tzinfo=zone)
    before, after = local.utcoffset(), local.replace(fold=1).utcoffset()
    return before or _NO_SHIFT, after or _NO_SHIFT


def _minus(wall: datetime, offset: timedelta) -> datetime:
    """Turn a wall time into an instant, held at the ends of the calendar."""
    try:
        return (wall - offset).replace(tzinfo=UTC)
    except OverflowError:
        return _LAST if offset < _NO_SHIFT else _FIRST


def _shift_between(low: datetime, high: datetime, zone: tzinfo) -> datetime:
    """Return the first instant, to the second, whose offset differs from the one valid at `low`."""
    before = low.astimezone(zone).utcoffset()
    low, high = low.replace(microsecond=0), high.replace(microsecond=0)
    while high - low > _SECOND:
        middle = low + (high - low) // _SECOND // 2 * _SECOND
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=4096)
def _shifts_of_year(zone: tzinfo, year: int) -> tuple[Shift, ...]:
    # A probe a day is enough: no zone of the database has shifted twice within a week since 1970.
    shifts = []
    low = datetime(year, 1, 1, tzinfo=UTC)
    before = low.astimezone(zone).utcoffset() or _NO_SHIFT
    while low.year == year and low.date() < _LAST_PROBE:
        high = low + _DAY
        after = high.astimezone(zone).utcoffset() or _NO_SHIFT
        if after != before:
            shifts.append(Shift(_shift_between(low, high, zone), before, after))
        low, before = high, after
    return tuple(shifts)
