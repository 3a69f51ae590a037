"""Recurrences as the API spells them: checks type and config as a whole, and reads and writes their normal form.

The rules themselves, with the next instant of each, are in `rules`; deciding what happens to a due one is in `policy`.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import lru_cache
from itertools import islice
from typing import TypedDict, assert_never

from deployx.timing.config import KEYS_OF_TYPE, ConfigReader, Problem
from deployx.timing.rules import (
    LAST_INSTANT,
    After,
    Custom,
    Daily,
    End,
    Interval,
    MonthDay,
    Monthly,
    MonthWeekday,
    Once,
    Recurrence,
    Weekly,
)
from deployx.timing.zones import ZoneError, find_zone

__all__ = [
    "LAST_INSTANT",
    "TICK",
    "After",
    "Custom",
    "Daily",
    "Interval",
    "Monthly",
    "Once",
    "Recurrence",
    "RecurrenceError",
    "Weekly",
    "dump",
    "limited",
    "load",
    "parse",
]

MOST_WEEKS = 520
MOST_OCCURRENCES = 10_000
LONGEST_INTERVAL_SECONDS = 366 * 86_400

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TICK = timedelta(microseconds=1)


class RecurrenceError(ValueError):
    """A definition that is refused: every problem with its place in the request; `loc` is the place of the first."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(loc)}: {why}" for loc, why in problems))
        self.problems = problems

    @property
    def loc(self) -> tuple[str, ...]:
        return self.problems[0][0]


def parse(
    recurrence_type: str,
    config: Mapping[str, object] | None,
    *,
    scheduled_for: datetime | None,
    timezone: str = "UTC",
) -> Recurrence:
    """Check a definition as a whole and return its rule.

    `scheduled_for` (aware) is the instant of a `once`, else the start: nothing occurs before it, and weeks and
    intervals are counted from it. Whether an instant lies in the future is left to the caller, who knows the time.
    Raises RecurrenceError with all problems.
    """
    if scheduled_for is not None and scheduled_for.utcoffset() is None:
        raise ValueError(f"scheduled_for {scheduled_for!r} has no time zone; pass an aware datetime")
    start_at = None if scheduled_for is None else scheduled_for.astimezone(UTC)
    rule = _build(recurrence_type, config, start_at, timezone)
    if (
        not isinstance(rule, After | Once)
        and rule.end is not None
        and rule.next_after((start_at or _EPOCH) - TICK) is None
    ):
        why = f"'{rule.end.text}' lies before the first occurrence; choose a later end or leave it out."
        raise RecurrenceError([(("recurrence_config", "end_date"), why)])
    return rule


@lru_cache(maxsize=20_000)
def load(
    recurrence_type: str,
    config_json: str | None,
    start_at: datetime | None,
    timezone: str = "UTC",
    last_at: datetime | None = None,
) -> Recurrence:
    """Return the rule of a stored definition: the JSON text of its config, its start and last instant (aware UTC).

    Rules are remembered, so that it may be called for every task that falls due.
    Raises RecurrenceError.
    """
    rule = _template(recurrence_type, config_json, timezone)
    if isinstance(rule, After):
        return rule
    if not isinstance(rule, Once):
        return replace(rule, start_at=start_at, last_at=last_at)
    if start_at is None:
        raise RecurrenceError([_NEEDS_INSTANT])
    return replace(rule, at=start_at)


def limited(rule: Recurrence, *, counted_from: datetime, planned_before: int = 0) -> Recurrence:
    """Return the rule with the end that its `max_occurrences` gives it, if it has one.

    `planned_before` instants were planned up to `counted_from` (by earlier definitions of the task); those after it
    count on.
    """
    if isinstance(rule, After | Once) or rule.max_occurrences is None:
        return rule
    left = rule.max_occurrences - planned_before
    endless = replace(rule, last_at=None)
    last_at = None if left <= 0 else _nth(endless.between(counted_from, LAST_INSTANT), left)
    if left > 0 and last_at is None:
        return endless  # the calendar or `end_date` ends it earlier
    return replace(rule, last_at=last_at or counted_from)


def _nth(instants: Iterator[datetime], n: int) -> datetime | None:
    return next(islice(instants, n - 1, None), None)


def dump(recurrence: Recurrence) -> dict[str, object]:
    """Return the normal form of the config, with its type and all defaults; reading it back gives an equal rule."""
    config = _own_keys(recurrence)
    if not isinstance(recurrence, After | Once) and recurrence.end is not None:
        config["end_date"] = recurrence.end.text
    if not isinstance(recurrence, After | Once) and recurrence.max_occurrences is not None:
        config["max_occurrences"] = recurrence.max_occurrences
    return config


_NEEDS_INSTANT: Problem = (
    ("scheduled_time",),
    "'scheduled_time' is required for recurrence_type 'once'; write an instant like 2026-11-23T02:00:00Z.",
)


def _build(
    recurrence_type: str, config: Mapping[str, object] | None, start_at: datetime | None, timezone: str
) -> Recurrence:
    problems: list[Problem] = []
    zone: tzinfo = UTC
    try:
        zone = find_zone(timezone)
    except ZoneError as error:
        problems.append((("timezone",), str(error)))
    if recurrence_type not in KEYS_OF_TYPE:
        raise RecurrenceError([(("recurrence_type",), _unknown_type(recurrence_type)), *problems])
    reader = ConfigReader(recurrence_type, config)
    reader.check_keys()
    rule = _read_rule(recurrence_type, reader, zone, start_at)
    problems += reader.problems
    if problems:
        raise RecurrenceError(problems)
    return rule


@lru_cache(maxsize=100_000)
def _template(recurrence_type: str, config_json: str | None, timezone: str) -> Recurrence:
    config = None if config_json is None else json.loads(config_json)
    return _build(recurrence_type, config, _EPOCH, timezone)


def _unknown_type(recurrence_type: str) -> str:
    near = difflib.get_close_matches(recurrence_type[:64].lower(), KEYS_OF_TYPE, n=1)
    advice = f"Did you mean '{near[0]}'?" if near else f"Use one of {', '.join(KEYS_OF_TYPE)}."
    return f"Recurrence type '{recurrence_type[:64]}' is unknown. {advice}"


class _Ends(TypedDict):
    """What every recurring rule takes."""

    zone: tzinfo
    start_at: datetime | None
    end: End | None
    max_occurrences: int | None


def _read_rule(recurrence_type: str, reader: ConfigReader, zone: tzinfo, start_at: datetime | None) -> Recurrence:
    if recurrence_type == "once":
        if start_at is None:
            reader.problems.append(_NEEDS_INSTANT)
        return Once(at=start_at or _EPOCH, zone=zone)
    if recurrence_type == "after":
        upstreams, mode = reader.upstreams()
        return After(upstreams=upstreams, mode=mode, zone=zone)
    ends = _Ends(zone=zone, start_at=start_at, end=reader.end(zone), max_occurrences=reader.most(MOST_OCCURRENCES))
    match recurrence_type:
        case "daily":
            return Daily(**ends, wall_time=reader.wall_time())
        case "weekly":
            return Weekly(
                **ends,
                wall_time=reader.wall_time(),
                days_of_week=reader.days_of_week(),
                every=_counted_from(start_at, reader.number("every", 1, MOST_WEEKS, default=1), reader),
            )
        case "monthly":
            wall_time = reader.wall_time()
            return Monthly(**ends, wall_time=wall_time, on=_read_month_day(reader))
        case "interval":
            seconds = reader.number("every_seconds", 1, LONGEST_INTERVAL_SECONDS)
            if start_at is None:
                reader.problems.append(_needs_start("An interval"))
            return Interval(**ends, every_seconds=seconds)
        case "custom":
            expression, cron = reader.cron()
            return Custom(**ends, expression=expression, cron=cron)
    raise AssertionError(f"no reader for recurrence type {recurrence_type}")


def _counted_from(start_at: datetime | None, every: int, reader: ConfigReader) -> int:
    if every > 1 and start_at is None:
        reader.problems.append(_needs_start(f"Every {every} weeks"))
    return every


def _needs_start(what: str) -> Problem:
    return ("scheduled_time",), f"{what} is counted from 'scheduled_time'; write an instant like 2026-11-23T02:00:00Z."


def _read_month_day(reader: ConfigReader) -> MonthDay | MonthWeekday:
    by_weekday = reader.has("weekday") or reader.has("ordinal")
    if by_weekday and reader.has("day_of_month"):
        reader.refuse("day_of_month", "'day_of_month' excludes 'weekday' and 'ordinal'; keep one of the two ways.")
    if not by_weekday and not reader.has("day_of_month"):
        reader.refuse("day_of_month", "monthly needs 'day_of_month', or 'weekday' with 'ordinal'; add one of the two.")
        return MonthDay(day_of_month=1)
    if by_weekday:
        ordinal = reader.number("ordinal", 1, 5, or_last=True)
        return MonthWeekday(weekday=reader.number("weekday", 0, 6), ordinal=ordinal)
    return MonthDay(day_of_month=reader.number("day_of_month", 1, 31, or_last=True))


def _own_keys(recurrence: Recurrence) -> dict[str, object]:
    match recurrence:
        case Once():
            return {"type": "once"}
        case After(upstreams=upstreams, mode=mode):
            named = [{"task_id": one.task_id, "on": one.on} for one in upstreams]
            return {"type": "after", "after": {"tasks": named, "mode": mode}}
        case Daily(wall_time=at):
            return {"type": "daily", "time": _time_text(at)}
        case Weekly(wall_time=at, days_of_week=days, every=every):
            return {"type": "weekly", "time": _time_text(at), "days_of_week": list(days), "every": every}
        case Monthly(wall_time=at, on=on):
            return {"type": "monthly", "time": _time_text(at), **_month_day_keys(on)}
        case Interval(every_seconds=seconds):
            return {"type": "interval", "every_seconds": seconds}
        case Custom(expression=expression):
            return {"type": "custom", "cron_expression": expression}
        case _:
            assert_never(recurrence)


def _month_day_keys(on: MonthDay | MonthWeekday) -> dict[str, object]:
    match on:
        case MonthDay(day_of_month=day):
            return {"day_of_month": day}
        case MonthWeekday(weekday=weekday, ordinal=ordinal):
            return {"weekday": weekday, "ordinal": ordinal}
        case _:
            assert_never(on)


def _time_text(at: time) -> str:
    return at.isoformat("seconds" if at.second else "minutes")
