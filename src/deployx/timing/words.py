"""Puts a recurrence into one English sentence; what deserves a warning is left to `preview`."""

from collections.abc import Callable, Sequence
from datetime import datetime, time, tzinfo
from typing import assert_never

from cron_descriptor import DescriptionTypeEnum, ExpressionDescriptor, Options

from deployx.timing.cron import CronExpression
from deployx.timing.rules import (
    LAST_ORDINAL,
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
    Upstream,
    Weekly,
)
from deployx.timing.zones import to_wall, zone_name

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
ORDINALS = {1: "first", 2: "second", 3: "third", 4: "fourth", 5: "fifth", LAST_ORDINAL: "last"}

_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
_ALL_MINUTES, _ALL_HOURS, _ALL_DAYS, _ALL_MONTHS = range(60), range(24), range(1, 32), range(1, 13)


def describe(recurrence: Recurrence) -> str:
    """Return a sentence without a full stop, such as "On Monday and Friday at 02:00 UTC"."""
    zone = recurrence.zone
    match recurrence:
        case Once(at=at):
            return f"Once at {_instant_in(zone, at)}"
        case After(upstreams=upstreams, mode=mode):
            return _after(upstreams, mode)
        case Daily(wall_time=at):
            sentence = f"Every day at {_clock(at)} {zone_name(zone)}"
        case Weekly(wall_time=at):
            sentence = f"{_weeks(recurrence)} at {_clock(at)} {zone_name(zone)}"
        case Monthly(wall_time=at, on=on):
            sentence = f"On {month_day(on)} of every month at {_clock(at)} {zone_name(zone)}"
        case Interval(every_seconds=seconds):
            sentence = f"Every {_duration(seconds)}{_from(zone, recurrence.start_at)}"
        case Custom(cron=cron):
            sentence = f"{describe_cron(cron)}, {zone_name(zone)}"
        case _:
            assert_never(recurrence)
    return sentence + _until(zone, recurrence.end) + _at_most(recurrence.max_occurrences)


def describe_cron(cron: CronExpression) -> str:
    """Return what a cron expression means, in the 24-hour clock and without a zone."""
    # The descriptor's own words for days are left out: it reads a step over weekdays as weeks, takes no account of
    # the exception of crontab(5) for `*`, and drops the numbers of a list such as `1#1,3#2`.
    options = Options(use_24hour_time_format=True, locale_code="en_US")
    # `*/7` starts afresh every hour, so only steps that divide the hour or the day are handed over as steps.
    minutes, hours = _steps_or_list(cron.minutes, _ALL_MINUTES), _steps_or_list(cron.hours, _ALL_HOURS)
    months = _steps_or_list(cron.months, _ALL_MONTHS)
    at_times = ExpressionDescriptor(f"{minutes} {hours} * * *", options).get_full_description()
    in_months = ExpressionDescriptor(f"0 0 * {months} *", options).get_description(DescriptionTypeEnum.MONTH)
    return f"{at_times}{_days(cron)}{in_months}"


def month_day(on: MonthDay | MonthWeekday) -> str:
    """Return "day 31", "the last day" or "the second Tuesday"."""
    match on:
        case MonthDay(day_of_month=day):
            return "the last day" if day == LAST_ORDINAL else f"day {day}"
        case MonthWeekday(weekday=weekday, ordinal=ordinal):
            return f"the {ORDINALS[ordinal]} {WEEKDAYS[weekday]}"
        case _:
            assert_never(on)


def listed(words: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _weeks(rule: Weekly) -> str:
    every_day = len(rule.days_of_week) == len(WEEKDAYS)
    days = "every day" if every_day else listed([WEEKDAYS[day] for day in rule.days_of_week])
    if rule.every == 1:
        return "Every day" if every_day else f"On {days}"
    return f"On {days} of every {_nth(rule.every)} week"


def _nth(number: int) -> str:
    teens = 11 <= number % 100 <= 13
    return f"{number}{'th' if teens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def _clock(at: time) -> str:
    return at.isoformat("seconds" if at.second else "minutes")


def _instant_in(zone: tzinfo, moment: datetime) -> str:
    wall = to_wall(moment, zone)
    precision = "minutes" if wall.second == 0 and wall.microsecond == 0 else "seconds"
    return f"{wall.isoformat(' ', precision)} {zone_name(zone)}"


def _duration(seconds: int) -> str:
    count, unit = next((seconds // size, unit) for size, unit in _UNITS if seconds % size == 0)
    return unit if count == 1 else f"{count} {unit}s"


def _from(zone: tzinfo, start_at: datetime | None) -> str:
    return "" if start_at is None else f" from {_instant_in(zone, start_at)}"


def _until(zone: tzinfo, end: End | None) -> str:
    if end is None:
        return ""
    return f", until {_instant_in(zone, end.at)}" if "T" in end.text else f", until {end.text}"


def _at_most(count: int | None) -> str:
    if count is None:
        return ""
    return ", once" if count == 1 else f", {count} times"


_ENDINGS = {"success": "has succeeded", "failure": "has failed", "completion": "has ended"}


def _after(upstreams: Sequence[Upstream], mode: str) -> str:
    """Return "After task 7 has succeeded and task 8 has failed"; with mode `any`, "or" instead of "and"."""
    asked = [f"task {one.task_id} {_ENDINGS[one.on]}" for one in upstreams]
    joint = " and " if mode == "all" else " or "
    return f"After {joint.join(asked)}"


def _steps_or_list(values: frozenset[int], full: range) -> str:
    ordered = sorted(values)
    if ordered == list(full):
        return "*"
    for step in range(2, len(full) // 2 + 1):
        if full.start == 0 and len(full) % step == 0 and ordered == list(full[::step]):
            return f"*/{step}"
    runs = _runs(ordered)
    return f"{runs[0][0]}-{runs[0][1]}" if len(runs) == 1 and len(ordered) > 1 else ",".join(map(str, ordered))


def _days(cron: CronExpression) -> str:
    by_month, by_week = _days_of_month(cron), _days_of_week(cron)
    every_month_day, every_weekday = len(cron.days) == len(_ALL_DAYS), len(cron.weekdays) == len(WEEKDAYS)
    if cron.needs_both_days:
        named = [text for text, is_all in ((by_month, every_month_day), (by_week, every_weekday)) if not is_all]
        return "".join(f", {text}" for text in named[:1]) + "".join(f", and only {text}" for text in named[1:])
    return "" if every_month_day or every_weekday else f", {by_month} or {by_week}"


def _days_of_month(cron: CronExpression) -> str:
    words = [_run(first, last, str) for first, last in _runs(sorted(cron.days))]
    numbered = [f"day {listed(words)}"] if words else []
    return f"on {listed([*numbered, *(['the last day'] if cron.last_day else [])])} of the month"


def _days_of_week(cron: CronExpression) -> str:
    from_monday = sorted((weekday - 1) % 7 for weekday in cron.weekdays)
    words = [_run(first, last, WEEKDAYS.__getitem__) for first, last in _runs(from_monday)]
    nths = sorted((nth, (weekday - 1) % 7) for weekday, nth in cron.nth_weekdays)
    words += [f"the {ORDINALS[nth]} {WEEKDAYS[weekday]} of the month" for nth, weekday in nths]
    return f"on {listed(words)}"


def _runs(ordered: Sequence[int]) -> list[tuple[int, int]]:
    """Join neighbours into (first, last); two alone stay two, as nobody says "Monday through Tuesday"."""
    runs: list[tuple[int, int]] = []
    for value in ordered:
        if runs and value == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return [part for run in runs for part in _split_pair(run)]


def _split_pair(run: tuple[int, int]) -> list[tuple[int, int]]:
    first, last = run
    return [(first, first), (last, last)] if last == first + 1 else [run]


def _run(first: int, last: int, name: Callable[[int], str]) -> str:
    return name(first) if first == last else f"{name(first)} through {name(last)}"


_REASONS = {
    "misfire": "it was found later than its misfire grace allows.",
    "clock_step": "the server's clock was set past it.",
    "coalesced": "it was found late, and a newer one was due as well (catch_up: latest).",
    "catch_up_none": "it was found late, and late ones do not start (catch_up: none).",
    "max_instances": "as many executions ran as the task allows at once.",
    "outside_window": "it fell outside the task's windows.",
    "blackout": "it fell into a blackout.",
    "paused": "the task was paused when its turn came.",
    "skipped_by_hand": "somebody skipped it ahead of time.",
    "superseded": "a newer occurrence took its place.",
}


def reason_in_words(reason: str) -> str:
    """Return why an occurrence did not start, as the end of a sentence."""
    return _REASONS.get(reason, reason)
