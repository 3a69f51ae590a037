"""Reads the values of a `recurrence_config` key by key and collects all that is wrong with them.

Which keys make which rule is left to `recurrence`. A reader that finds a problem notes it and returns a value of the
right type, so that reading goes on and one answer names every problem; whoever uses a reader looks at `problems`
before using what it read.
"""

import difflib
import re
from collections.abc import Mapping
from datetime import time, tzinfo

from deployx.timing.cron import CronError, CronExpression, parse_cron
from deployx.timing.instants import InstantError, format_instant, is_date, parse_date, parse_instant
from deployx.timing.rules import End, Upstream
from deployx.timing.zones import end_of_day

_AFTER = "{'tasks': [{'task_id': 7, 'on': 'success'}], 'mode': 'all'}"

Problem = tuple[tuple[str, ...], str]

_ENDS = ("end_date", "max_occurrences")

KEYS_OF_TYPE: Mapping[str, tuple[str, ...]] = {
    "once": (),
    "daily": ("time", *_ENDS),
    "weekly": ("time", "days_of_week", "every", *_ENDS),
    "monthly": ("time", "day_of_month", "weekday", "ordinal", *_ENDS),
    "interval": ("every_seconds", *_ENDS),
    "custom": ("cron_expression", *_ENDS),
    "after": ("after",),
}
MOST_UPSTREAMS = 100

_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?", re.ASCII)


class ConfigReader:
    """One reading of one config. A key whose value is null counts as absent."""

    def __init__(self, recurrence_type: str, config: Mapping[str, object] | None) -> None:
        self.problems: list[Problem] = []
        self._type = recurrence_type
        self._values = {key: value for key, value in (config or {}).items() if value is not None}

    def check_keys(self) -> None:
        """Refuse a `type` that contradicts, and keys that this type does not take."""
        inner = self._values.get("type", self._type)
        if inner != self._type:
            self.refuse(
                "type", f"{_shown(inner)} contradicts recurrence_type '{self._type}'; make them equal or leave it out."
            )
        for key in self._values.keys() - {"type", *KEYS_OF_TYPE[self._type]}:
            self.refuse(key, _why_not_taken(key, self._type))

    def has(self, key: str) -> bool:
        return key in self._values

    def refuse(self, key: str, why: str) -> None:
        self.problems.append((("recurrence_config", key), why))

    def wall_time(self) -> time:
        value = self._required("time", "write it like '02:00' or '02:00:30'")
        if value is None:
            return time.min
        found = _TIME.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            self.refuse(
                "time", f"{_shown(value)} is not a time of day; write 'HH:MM' or 'HH:MM:SS', 00:00 to 23:59:59."
            )
            return time.min
        return time(int(found[1]), int(found[2]), int(found[3] or 0))

    def days_of_week(self) -> tuple[int, ...]:
        value = self._required("days_of_week", "list the weekdays, 0 (Monday) to 6 (Sunday)")
        if value is None:
            return (0,)
        if not isinstance(value, list | tuple) or not value:
            self.refuse(
                "days_of_week",
                f"{_shown(value)} is not a list of weekdays; list at least one, 0 (Monday) to 6 (Sunday).",
            )
            return (0,)
        wrong = [day for day in value if not _is_whole(day, (0, 6))]
        if wrong:
            shown = ", ".join(_shown(day) for day in wrong[:7])
            self.refuse("days_of_week", f"{shown} is not a weekday; use whole numbers 0 (Monday) to 6 (Sunday).")
            return (0,)
        return tuple(sorted(set(value)))

    def number(self, key: str, lowest: int, highest: int, *, default: int | None = None, or_last: bool = False) -> int:
        """Read a whole number; with `or_last`, -1 is allowed for the last; without a default it is required."""
        also = " or -1 for the last" if or_last else ""
        expected = f"a whole number from {lowest} to {highest}{also}"
        if default is not None and not self.has(key):
            return default
        value = self._required(key, f"use {expected}")
        if value is None:
            return lowest
        if isinstance(value, int) and (_is_whole(value, (lowest, highest)) or (or_last and value == -1)):
            return value
        self.refuse(key, f"{_shown(value)} is not accepted; use {expected}.")
        return lowest

    def most(self, highest: int) -> int | None:
        """Read the optional `max_occurrences`."""
        return self.number("max_occurrences", 1, highest) if self.has("max_occurrences") else None

    def cron(self) -> tuple[str, CronExpression]:
        """Return the expression as given, without outer blanks, and as read."""
        value = self._required("cron_expression", "write five fields like '0 2 * * 1-5'")
        try:
            if isinstance(value, str):
                return value.strip(), parse_cron(value)
            if value is not None:
                self.refuse("cron_expression", f"{_shown(value)} is not text; write five fields like '0 2 * * 1-5'.")
        except CronError as error:
            self.refuse("cron_expression", str(error))
        return "@hourly", parse_cron("@hourly")

    def upstreams(self) -> tuple[tuple[Upstream, ...], str]:
        """Read `after`: the tasks to wait for, each with the ending asked for, and whether all or any of them."""
        value = self._required("after", f"write {_AFTER}")
        if value is None:
            return (), "all"
        tasks = value.get("tasks") if isinstance(value, dict) else None
        if not isinstance(value, dict) or not isinstance(tasks, list) or not 1 <= len(tasks) <= MOST_UPSTREAMS:
            self.refuse("after", f"{_shown(value)} does not name 1 to {MOST_UPSTREAMS} tasks; write {_AFTER}.")
            return (), "all"
        for key in value.keys() - {"tasks", "mode"}:
            self.refuse("after", f"'{key[:64]}' is not known in 'after'; it takes tasks and mode.")
        mode = value.get("mode", "all")
        if mode not in ("all", "any"):
            self.refuse("after", f"mode {_shown(mode)} is not known; use all or any.")
        found = tuple(self._upstream(task) for task in tasks)
        if len({one.task_id for one in found}) < len(found):
            self.refuse("after", "a task is named twice; name each once.")
        return tuple(sorted(found, key=lambda one: one.task_id)), str(mode)

    def _upstream(self, task: object) -> Upstream:
        if not isinstance(task, dict) or not _is_whole(task.get("task_id"), (1, 2**63 - 1)):
            self.refuse("after", f"{_shown(task)} names no task; write {{'task_id': 7, 'on': 'success'}}.")
            return Upstream(task_id=1, on="success")
        for key in task.keys() - {"task_id", "on"}:
            self.refuse("after", f"'{str(key)[:64]}' is not known of a task in 'after'; it takes task_id and on.")
        on = task.get("on", "success")
        if on not in ("success", "failure", "completion"):
            self.refuse("after", f"on {_shown(on)} is not known; use success, failure or completion.")
        return Upstream(task_id=task["task_id"], on=str(on))

    def end(self, zone: tzinfo) -> End | None:
        """Read the optional `end_date`: an instant, or a date that means the end of that day in the zone."""
        value = self._values.get("end_date")
        if value is None:
            return None
        if not isinstance(value, str):
            self.refuse("end_date", f"{_shown(value)} is not text; write '2026-12-31' or '2026-12-31T18:00:00Z'.")
            return None
        try:
            if is_date(value):
                return End(end_of_day(parse_date(value), zone), value)
            at = parse_instant(value)
        except InstantError as error:
            self.refuse("end_date", f"{error}, or a date like 2026-12-31.")
            return None
        return End(at, format_instant(at))

    def _required(self, key: str, advice: str) -> object | None:
        value = self._values.get(key)
        if value is None:
            self.refuse(key, f"'{key}' is required for recurrence_type '{self._type}'; {advice}.")
        return value


def _is_whole(value: object, bounds: tuple[int, int]) -> bool:
    # JSON's true and false are ints in Python, but no weekdays.
    return isinstance(value, int) and not isinstance(value, bool) and bounds[0] <= value <= bounds[1]


def _why_not_taken(key: str, recurrence_type: str) -> str:
    takers = [name for name, keys in KEYS_OF_TYPE.items() if key in keys]
    if takers:
        owners = " or ".join(takers)
        return f"'{key}' belongs to recurrence_type {owners}, not {recurrence_type}; remove it or change the type."
    near = difflib.get_close_matches(key[:64], KEYS_OF_TYPE[recurrence_type], n=1)
    if near:
        return f"'{key[:64]}' is not known. Did you mean '{near[0]}'?"
    taken = ", ".join(KEYS_OF_TYPE[recurrence_type])
    advice = f"{recurrence_type} takes {taken}." if taken else f"{recurrence_type} takes no config."
    return f"'{key[:64]}' is not known; {advice}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
