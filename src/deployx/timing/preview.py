"""Warns of what a recurrence does that its author may not expect; the sentence for it is in `words`."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo

from deployx.timing.cron import LONGEST_MONTHS
from deployx.timing.rules import After, Custom, Interval, MonthDay, Monthly, MonthWeekday, Once, OnDays, Recurrence
from deployx.timing.words import MONTHS, WEEKDAYS, listed
from deployx.timing.zones import Shift, shifts_between, to_wall, zone_name

LOOK_AHEAD = timedelta(days=366)

_SHORTEST_MONTH = 28
_FIFTH = 5
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Warning:
    """A stable code (`short_months`, `daylight_saving`, `naive_time`) and a sentence for people."""

    code: str
    text: str


def warnings(recurrence: Recurrence, *, now: datetime, start_was_naive: bool = False) -> list[Warning]:
    """Return what to say before the recurrence is saved; shifts of its zone are looked for in the 366 days after `now`.

    `start_was_naive` tells that the request named its `scheduled_time` without an offset.
    """
    found = [Warning("short_months", text) for text in _short_months(recurrence)]
    found += [Warning("daylight_saving", text) for text in _daylight_saving(recurrence, now)]
    start_at = _start_of(recurrence)
    if start_was_naive and start_at is not None and to_wall(start_at, recurrence.zone) != to_wall(start_at, UTC):
        found.append(Warning("naive_time", _naive_time(start_at, recurrence.zone)))
    return found


def _start_of(recurrence: Recurrence) -> datetime | None:
    match recurrence:
        case After():
            return None
        case Once(at=at):
            return at
        case _:
            return recurrence.start_at


def _short_months(recurrence: Recurrence) -> list[str]:
    match recurrence:
        case Monthly(on=MonthDay(day_of_month=day)):
            return _lacking([day], range(1, 13))
        case Monthly(on=MonthWeekday(weekday=weekday, ordinal=ordinal)):
            return _no_fifth([weekday] if ordinal == _FIFTH else [])
        case Custom(cron=cron):
            days = [] if cron.day_star or len(cron.days) == max(LONGEST_MONTHS) else sorted(cron.days)
            fifths = sorted((weekday - 1) % 7 for weekday, nth in cron.nth_weekdays if nth == _FIFTH)
            return _lacking(days, sorted(cron.months)) + _no_fifth(fifths)
        case _:
            return []


def _lacking(days: Iterable[int], months: Iterable[int]) -> list[str]:
    texts = []
    months = list(months)
    for day in days:
        without = [MONTHS[month - 1] for month in months if LONGEST_MONTHS[month] < day]
        if without:
            texts.append(f"There is no day {day} in {listed(without)}: it is skipped there.")
        elif day > _SHORTEST_MONTH and 2 in months:
            texts.append(f"February has a day {day} in leap years only: in other years it is skipped there.")
    return texts


def _no_fifth(weekdays: Iterable[int]) -> list[str]:
    return [f"Not every month has a fifth {WEEKDAYS[weekday]}: the others are skipped." for weekday in weekdays]


def _daylight_saving(recurrence: Recurrence, now: datetime) -> list[str]:
    if isinstance(recurrence, After | Once | Interval):
        return []
    since = max(now, recurrence.start_at or now)
    until = now + LOOK_AHEAD if recurrence.end is None else min(now + LOOK_AHEAD, recurrence.end.at)
    shifts = shifts_between(since, until, recurrence.zone)
    return [_shift_sentence(recurrence, shift) for shift in shifts if _touches(recurrence, shift)]


def _touches(recurrence: OnDays | Custom, shift: Shift) -> bool:
    """Tell whether the recurrence names a wall time that the shift swallows or repeats."""
    on_the_wall = replace(
        recurrence,
        zone=UTC,
        start_at=_as_utc(recurrence.start_at, recurrence.zone),
        end=None,
    )
    low, high = sorted((shift.at + shift.before, shift.at + shift.after))
    found = on_the_wall.next_after(low - _TICK)
    return found is not None and found < high


def _as_utc(moment: datetime | None, zone: tzinfo) -> datetime | None:
    return None if moment is None else to_wall(moment, zone).replace(tzinfo=UTC)


def _shift_sentence(recurrence: OnDays | Custom, shift: Shift) -> str:
    by_elapsed_time = isinstance(recurrence, Custom) and recurrence.cron.follows_elapsed_time
    old, new = shift.at + shift.before, shift.at + shift.after
    forward = new > old
    how = "skips from" if forward else "goes back from"
    if by_elapsed_time:
        outcome = "does not run" if forward else "runs twice"
    else:
        outcome = f"runs once, at {new:%H:%M}" if forward else "runs once, the first time"
    clock = f"On {old:%Y-%m-%d} the clock of {zone_name(recurrence.zone)} {how} {old:%H:%M} to {new:%H:%M}"
    return f"{clock}: what falls in between {outcome}."


def _naive_time(start_at: datetime, zone: tzinfo) -> str:
    wall = to_wall(start_at, zone)
    return (
        f"'scheduled_time' has no offset, so it was read as {start_at:%Y-%m-%d %H:%M} UTC, "
        f"which is {wall:%Y-%m-%d %H:%M} in {zone_name(zone)}; add an offset if you meant the clock there."
    )
