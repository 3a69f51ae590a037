"""What a schedule owes, found by trying every minute; written from crontab(5) and the calendar, not from the code."""

import random
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

MINUTE = timedelta(minutes=1)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")

WallPredicate = Callable[[datetime], bool]


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
    minutes = [value for value in range(60) if _field_has(minute, value, 0, 59, ())]
    times = [time(of_day, value) for of_day in range(24) if _field_has(hour, of_day, 0, 23, ()) for value in minutes]
    today = after.date()
    while today <= until.date():
        if _field_has(month, today.month, 1, 12, MONTHS) and _day_matches(day, weekday, today):
            walls = (datetime.combine(today, at) for at in times)
            yield from (wall for wall in walls if after < wall <= until)
        today += timedelta(days=1)


def real_minutes(zone: str, after: datetime, until: datetime) -> list[tuple[datetime, datetime]]:
    """Return every minute in (after, until] as (instant, what the wall clock shows)."""
    minutes = []
    moment = after.replace(second=0, microsecond=0) + MINUTE
    while moment <= until:
        minutes.append((moment, moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)))
        moment += MINUTE
    return minutes


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
