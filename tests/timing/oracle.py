"""What a schedule owes, found by trying every minute; written from crontab(5) and the calendar, not from the code."""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

MINUTE = timedelta(minutes=1)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

WallPredicate = Callable[[datetime], bool]
DayPredicate = Callable[[date], bool]


class Transition(NamedTuple):
    """A zone's clock goes from one offset to another; equal ones of several zones are one."""

    at: datetime
    before: timedelta
    after: timedelta


def fresh_random() -> random.Random:
    """Return a generator whose seed is shown when the test fails."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


def cron_matches(expression: str, wall: datetime) -> bool:
    minute, hour, day, month, weekday = expression.lower().split()
    return (
        _field_has(minute, wall.minute, 0, 59, ())
        and _field_has(hour, wall.hour, 0, 23, ())
        and _field_has(month, wall.month, 1, 12, MONTHS)
        and _day_matches(day, weekday, wall.date())
    )


def cron_walls(expression: str, after: datetime, until: datetime) -> Iterator[datetime]:
    """Yield the matching wall minutes in (after, until]; whole days without a match are passed over."""
    minute, hour, day, month, weekday = expression.lower().split()
    times = times_of_day(minute, hour)
    today = after.date()
    while today <= until.date():
        if _field_has(month, today.month, 1, 12, MONTHS) and _day_matches(day, weekday, today):
            walls = (datetime.combine(today, at) for at in times)
            yield from (wall for wall in walls if after < wall <= until)
        today += timedelta(days=1)


@lru_cache(maxsize=4096)
def times_of_day(minute: str, hour: str) -> tuple[time, ...]:
    """Return the times that these two fields name, in order."""
    minutes = [value for value in range(60) if _field_has(minute, value, 0, 59, ())]
    hours = [value for value in range(24) if _field_has(hour, value, 0, 23, ())]
    return tuple(time(of_day, of_hour) for of_day in hours for of_hour in minutes)


def each_real_minute(zone: str, after: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """Yield every minute in (after, until] as (instant, what the wall clock shows)."""
    place = ZoneInfo(zone)
    moment = after.replace(second=0, microsecond=0) + MINUTE
    while moment <= until:
        yield moment, moment.astimezone(place).replace(tzinfo=None, fold=0)
        moment += MINUTE


def real_minutes(zone: str, after: datetime, until: datetime) -> list[tuple[datetime, datetime]]:
    return list(each_real_minute(zone, after, until))


def owed_by_elapsed_time(minutes: list[tuple[datetime, datetime]], matches: WallPredicate) -> list[datetime]:
    return [moment for moment, wall in minutes if matches(wall)]


def owed_by_the_wall(minutes: list[tuple[datetime, datetime]], matches: WallPredicate) -> list[datetime]:
    """Each wall time once: a repeated one the first time, a swallowed one at the first instant after the gap."""
    owed = []
    furthest = minutes[0][1] - MINUTE
    for moment, wall in minutes:
        passed = furthest + MINUTE
        due = False
        while passed <= wall:
            due = due or matches(passed)
            passed += MINUTE
        furthest = max(furthest, wall)
        if due:
            owed.append(moment)
    return owed


class WallClock:
    """All minutes of a stretch, to be looked up by what the wall clock shows: for many rules over one stretch.

    It says what `owed_by_elapsed_time` and `owed_by_the_wall` say. No shift may lie at the very ends of the stretch.
    """

    def __init__(self, zone: str, after: datetime, until: datetime) -> None:
        self.after, self.until = after, until
        self._shown: dict[datetime, datetime] = {}
        self._shown_again: dict[datetime, datetime] = {}
        self._swallowed: dict[datetime, datetime] = {}
        passed: datetime | None = None
        for moment, wall in each_real_minute(zone, after - MINUTE, until):
            if wall in self._shown:
                self._shown_again[wall] = moment
                continue
            self._shown[wall] = moment
            passed = passed or wall
            while passed < wall:
                self._swallowed[passed] = moment
                passed += MINUTE
            passed += MINUTE
        self._walls = min(self._shown), max(self._shown)

    def owed_by_cron(self, expression: str) -> list[datetime]:
        minute, hour = expression.split()[:2]
        first, last = self._walls
        walls = list(cron_walls(expression, first - MINUTE, last))
        if minute.startswith("*") or hour.startswith("*"):
            instants = {shown[wall] for shown in (self._shown, self._shown_again) for wall in walls if wall in shown}
        else:
            instants = {self._first_due(wall) for wall in walls}
        return self._in_stretch(instants)

    def owed_on_days(self, at: time, is_day: DayPredicate) -> list[datetime]:
        """Return what a wall time (with seconds) on the days of a rule owes."""
        (first, last), to_the_minute = self._walls, at.replace(second=0)
        days = (first.date() + timedelta(days=days) for days in range((last.date() - first.date()).days + 1))
        walls = [datetime.combine(day, to_the_minute) for day in days if is_day(day)]
        return self._in_stretch({self._first_due(wall, at.second) for wall in walls if first <= wall <= last})

    def _first_due(self, wall: datetime, seconds: int = 0) -> datetime:
        shown = self._shown.get(wall)
        return self._swallowed[wall] if shown is None else shown + timedelta(seconds=seconds)

    def _in_stretch(self, instants: set[datetime]) -> list[datetime]:
        return sorted(moment for moment in instants if self.after < moment <= self.until)


def zone_names() -> list[str]:
    return sorted(available_timezones() - {"localtime", "Factory"})


def transitions(zone: str, first: datetime, last: datetime, probe: timedelta) -> tuple[Transition, ...]:
    """Return a zone's transitions; of two that lie between two probes and cancel each other out nothing is seen."""
    place = ZoneInfo(zone)

    def offset(moment: datetime) -> timedelta:
        return moment.astimezone(place).utcoffset() or timedelta(0)

    probes = [first + step * probe for step in range((last - first) // probe + 1)]
    found = []
    for (low, before), (high, after) in pairwise((moment, offset(moment)) for moment in probes):
        if before != after:
            while high - low > timedelta(seconds=1):
                middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
                low, high = (middle, high) if offset(middle) == before else (low, middle)
            found.append(Transition(high, before, after))
    return tuple(found)


@lru_cache(maxsize=2)
def zones_by_transition(probe: timedelta) -> dict[Transition, list[str]]:
    """Return the distinct transitions of 2020 to 2040 in order, each with the zones that have it."""
    zones: dict[Transition, list[str]] = {}
    for zone in zone_names():
        for transition in transitions(zone, utc(2020, 1, 1), utc(2041, 1, 1), probe):
            zones.setdefault(transition, []).append(zone)
    return dict(sorted(zones.items()))


def random_cron(rng: random.Random) -> str:
    fields = (
        _random_field(rng, 0, 59, ()),
        _random_field(rng, 0, 23, ()),
        _random_field(rng, 1, 31, ()) if rng.random() < 0.9 else "L",
        _random_field(rng, 1, 12, MONTHS),
        _random_field(rng, 0, 7, WEEKDAYS) if rng.random() < 0.9 else f"{rng.randint(0, 7)}#{rng.randint(1, 5)}",
    )
    return " ".join(fields)


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)


def _day_matches(day: str, weekday: str, today: date) -> bool:
    last = (today + timedelta(days=1)).month != today.month
    by_month = any(term == "l" and last for term in day.split(",")) or _field_has(day, today.day, 1, 31, ())
    sunday_first = today.isoweekday() % 7
    by_week = any(_field_has(weekday, number, 0, 7, WEEKDAYS) for number in {sunday_first, sunday_first or 7})
    for term in weekday.split(","):
        if "#" in term:
            name, nth = term.split("#")
            number = WEEKDAYS.index(name) if name in WEEKDAYS else int(name) % 7
            by_week = by_week or (number == sunday_first and int(nth) == (today.day - 1) // 7 + 1)
    if day.startswith("*") or weekday.startswith("*"):
        return by_month and by_week
    return by_month or by_week


@lru_cache(maxsize=65_536)
def _field_has(field: str, value: int, low: int, high: int, names: tuple[str, ...]) -> bool:
    return any(_term_has(term, value, low, high, names) for term in field.split(",") if term != "l" and "#" not in term)


def _term_has(term: str, value: int, low: int, high: int, names: tuple[str, ...]) -> bool:
    span, _, step = term.partition("/")
    if span != "*":
        first, _, last = span.partition("-")
        low, high = (names.index(end) + low if end in names else int(end) for end in (first, last or first))
    return low <= value <= high and (value - low) % int(step or 1) == 0


def _random_field(rng: random.Random, low: int, high: int, names: tuple[str, ...]) -> str:
    terms = [_random_term(rng, low, high, names) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    return ",".join(terms)


def _random_term(rng: random.Random, low: int, high: int, names: tuple[str, ...]) -> str:
    first, last = sorted((rng.randint(low, high), rng.randint(low, high)))
    named = [name for name in (first, last) if names and name - low < len(names) and rng.random() < 0.4]
    first_text, last_text = (names[end - low] if end in named else str(end) for end in (first, last))
    match rng.randrange(6):
        case 0 | 1:
            return "*"
        case 2:
            return f"*/{rng.randint(1, 12)}"
        case 3:
            return f"{first_text}-{last_text}"
        case 4:
            return f"{first_text}-{last_text}/{rng.randint(1, 9)}"
        case _:
            return first_text
