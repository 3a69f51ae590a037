"""What rules owe around the transitions of the zones' clocks, against an oracle that tries every minute.

The ordinary run takes a sample, the long one every transition of every zone from 2020 to 2040.
"""

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, time, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest

from deployx.timing.recurrence import parse
from deployx.timing.rules import Recurrence
from deployx.timing.zones import find_zone, shifts_between
from tests.timing import oracle
from tests.timing.oracle import MINUTE, DayPredicate, Transition, WallClock, fresh_random, utc

TWO_DAYS = timedelta(days=2)
TWENTY_EIGHT_YEARS = (datetime(2020, 1, 1), datetime(2048, 1, 1))  # noqa: DTZ001 - wall times
# The coarse probe would miss a zone that shifts to and fro within a week; the fine one is for the long run.
COARSE, FINE = timedelta(days=7), timedelta(hours=6)

# What begins with `*` in minute or hour follows elapsed time.
ELAPSED = """
*/15 * * * *|*/15 2 * * *|*/30 1-3 * * *|*/7 */5 * * *|0 * * * *|30 * * * *|45 * * * *|0 */2 * * *|30 */3 * * *
*/20 0,2,23 * * *|*/59 * * * *|0 */23 * * *|*,5 2 * * *|59 *,3 * * *|* 2 * * 0|*/10 2 * * 7|0 */2 L * *
*/30 2 8-14 * 0|15 * 1-7 3,10,11 *|0,30 * * * sun#2|*/45 1,2 * * sun#1,0#2,5#5|*/30 0,23 * * *|* 3 * * *
0 */3 */2 * 0|*/25 1-4 L * sun|17 * 31 3,10 *|*/60 * * * *
"""
BY_THE_WALL = """
30 2 * * *|0 2 * * *|0 3 * * *|30 1 * * *|30 0 * * *|0 0 * * *|59 23 * * *|1 0 * * *|0,30 2,3 * * *|59 1 * * *
59 2 * * *|0-59 2 * * *|0-59/7 1-3 * * *|5,* 2 * * *|0 0-23/2 * * *|30 0-23 * * *|15 1,2,3 * * *|15,45 22,23 * * *
10-10/2 2 * * *|2-2 2 * * *|30 2 * * 0|30 2 * * 7|30 2 * * sun#2|0 2 L * *|0 3 L * 0|30 2 1-7 * 0|30 2 */2 * 0
30 2 * 3,10 0|30 2 29-31 3,10 *|30 2 25-31 * 0|0 0 * * 5|0 0 * * sat|59 23 31 * *|0 4 * * mon-fri|30 2 * * 1#1,0
15 2 15,L * *|2,32 0-23/3 * * *|0 0 1 * *|45 2,3 * * *|30 0,*/2 * * *|0 1,* * * *|30 23 * * fri,sat|50 21-23 * * *
"""
MANY_A_DAY = ("* * * * *", "0-59 0-23 * * *", "* 0-4,21-23 * * *", "0-59 0-4,21-23 * * 0-7", "*/2 * */3 * *")
TRICKY = [*ELAPSED.strip().replace("\n", "|").split("|"), *BY_THE_WALL.strip().replace("\n", "|").split("|")]

YEAR_ZONES = ["Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns"]
SPARSE_OVER_A_YEAR = ["30 2 * * *", "0 2 * * 0", "15 2 L * *", "*/30 2 * * 7", "0 */6 1-7 * sun"]
OVER_A_YEAR = [
    *SPARSE_OVER_A_YEAR,
    *("15 * * * *", "*/20 * * * *", "0 */2 * * *", "0 1,2,3 * * *", "45 1 * * *", "15 2 * 4,10 *", "0-59 2 * * *"),
    *("30 2 13 * fri", "30 2 13 * *", "30 2 */3 * 0", "0 0 29 2 *", "0 0 31 * *", "59 23 * * 0#1", "1 0 * * 1#5,wed#1"),
    *("0 12 1 1,7 *", "* 2 L * *", "0,30 0-23 * * *"),
]


def random_crons(rng: random.Random, number: int, most_a_day: int = 60) -> Iterator[str]:
    """Yield expressions that fall due in most weeks: half of them every day, most in all months."""
    while number > 0:
        minute, hour, day, month, weekday = oracle.random_cron(rng).split()
        days = ("* * *", f"{day} * {weekday}", f"{day} * *", f"* * {weekday}", f"{day} {month} {weekday}")
        expression = f"{minute} {hour} {days[rng.choice((0, 0, 0, 0, 1, 1, 2, 3, 4))]}"
        # What fires on no day of the calendar, which repeats after 28 years, is refused.
        fires = next(oracle.cron_walls(expression, *TWENTY_EIGHT_YEARS), None) is not None
        if fires and len(oracle.times_of_day(minute, hour)) <= most_a_day:
            number -= 1
            yield expression


class Stretch:
    """Two days before a transition to two days after it, in one of the zones that have it."""

    def __init__(self, zone: str, transition: Transition, rng: random.Random) -> None:
        self.zone, self.transition, self.rng = zone, transition, rng
        at, before, after = transition
        self.clock = WallClock(zone, at - TWO_DAYS, at + TWO_DAYS)
        low, high = ((at + offset).replace(tzinfo=None) for offset in sorted((before, after)))
        self.day, self.first_wall = low.date(), low
        # The ends of the gap or overlap, what lies just outside, and its middle.
        self.walls = [low - MINUTE, low, low + (high - low) // 2, high - MINUTE, high]
        random_seconds = (rng.randrange(-10_800, 10_800) for _ in range(2))
        self.moments = [at - timedelta(microseconds=1), at, *(at + timedelta(seconds=s) for s in random_seconds)]

    def __str__(self) -> str:
        at, before, after = self.transition
        hour = timedelta(hours=1)
        return f"{self.zone}, {at:%Y-%m-%dT%H:%M:%SZ} from UTC{before / hour:+g} h to UTC{after / hour:+g} h"

    def check_crons(self, expressions: Iterable[str]) -> int:
        """Compare each; answers how many instants they owed here."""
        compared = 0
        for expression in expressions:
            rule = parse("custom", {"cron_expression": expression}, scheduled_for=None, timezone=self.zone)
            owed = self.clock.owed_by_cron(expression)
            check(f"{self}, cron '{expression}'", rule, self.clock, owed, self.moments)
            compared += len(owed)
        return compared

    def crons_in_the_shift(self) -> Iterator[str]:
        for wall in self.walls:
            minute, hour, day, weekday = wall.minute, wall.hour, wall.day, wall.isoweekday()
            yield f"{minute} {hour} {day} {wall.month} *"
            yield f"{minute} {hour} * * {weekday}#{(day - 1) // 7 + 1}"
            yield f"{minute} * {day} * *"
            yield f"*/{self.rng.randint(1, 30)} {hour} * * {weekday}"
            yield f"{minute},{(minute + self.rng.randrange(60)) % 60} {hour},{(hour + 1) % 24} {day},L * {weekday}"

    def check_days(self) -> int:
        """Compare daily, weekly and monthly rules at the edges; answers how many instants they owed here."""
        compared = 0
        seconds = timedelta(seconds=self.rng.choice((0, 1, 59)))
        for wall in (*self.walls, self.walls[2] + seconds, self.first_wall + seconds):
            start_at = self.transition.at - timedelta(seconds=self.rng.randrange(-3600, 30 * 86_400))
            for kind, config, is_day in self._rules_on_days(start_at):
                definition = {**config, "time": f"{wall:%H:%M:%S}"}
                rule = parse(kind, definition, scheduled_for=start_at, timezone=self.zone)
                owed = [at for at in self.clock.owed_on_days(wall.time(), is_day) if at >= start_at]
                check(f"{self}, {kind} {definition} from {start_at}", rule, self.clock, owed, self.moments)
                compared += len(owed)
        return compared

    def _rules_on_days(self, start_at: datetime) -> list[tuple[str, Mapping[str, object], DayPredicate]]:
        day, weekday, nth = self.day, self.day.weekday(), (self.day.day - 1) // 7 + 1
        some_days = sorted({weekday, self.rng.randrange(7)})
        start_day = start_at.astimezone(ZoneInfo(self.zone)).date()
        monday = start_day - timedelta(days=start_day.weekday())
        return [
            ("daily", {}, lambda _: True),
            ("weekly", {"days_of_week": some_days}, lambda d: d.weekday() in some_days),
            (
                "weekly",
                {"days_of_week": some_days, "every": 2},
                lambda d: d.weekday() in some_days and (d - monday).days // 7 % 2 == 0,
            ),
            ("monthly", {"day_of_month": day.day}, lambda d: d.day == day.day),
            ("monthly", {"day_of_month": -1}, lambda d: (d + timedelta(days=1)).day == 1),
            (
                "monthly",
                {"weekday": weekday, "ordinal": nth},
                lambda d: d.weekday() == weekday and (d.day - 1) // 7 + 1 == nth,
            ),
            (
                "monthly",
                {"weekday": weekday, "ordinal": -1},
                lambda d: d.weekday() == weekday and (d + timedelta(days=7)).month != d.month,
            ),
        ]


def check(what: str, rule: Recurrence, clock: WallClock, owed: list[datetime], moments: Iterable[datetime]) -> None:
    """Fail unless the rule names these instants of the stretch, one after the other and from moments in between."""
    found = list(islice(rule.between(clock.after, clock.until), len(owed) + 1))
    if found != owed:
        same = next((n for n, (one, other) in enumerate(zip(found, owed, strict=False)) if one != other), None)
        place = min(len(found), len(owed)) if same is None else same
        named, expected = (str(at[place]) if place < len(at) else "nothing more" for at in (found, owed))
        pytest.fail(f"{what}: instant {place} is {named}, by the oracle {expected}")
    for moment in moments:
        answer, place = rule.next_after(moment), bisect_right(owed, moment)
        if place < len(owed):
            assert answer == owed[place], f"{what}: after {moment} follows {answer}, by the oracle {owed[place]}"
        else:
            assert answer is None or answer > clock.until, f"{what}: after {moment} follows {answer}, which is not owed"


def test_the_wall_clock_of_the_oracle_says_what_trying_every_minute_says() -> None:
    rng = fresh_random()
    for transition in rng.sample(list(oracle.zones_by_transition(COARSE)), 3):
        zone = oracle.zones_by_transition(COARSE)[transition][0]
        clock = WallClock(zone, transition.at - TWO_DAYS, transition.at + TWO_DAYS)
        minutes = oracle.real_minutes(zone, clock.after, clock.until)
        for expression in (*rng.sample(TRICKY, 5), *random_crons(rng, 3, most_a_day=1440)):
            elapsed = any(field.startswith("*") for field in expression.split()[:2])
            owes = oracle.owed_by_elapsed_time if elapsed else oracle.owed_by_the_wall
            expected = owes(minutes, lambda wall, cron=expression: oracle.cron_matches(cron, wall))  # type: ignore[misc]
            assert clock.owed_by_cron(expression) == expected, (zone, transition, expression)


def test_rules_agree_with_the_minute_matcher_around_sampled_transitions() -> None:
    rng = fresh_random()
    zones = oracle.zones_by_transition(COARSE)
    by_shape: dict[tuple[time, timedelta], list[Transition]] = {}
    for transition in zones:
        shape = ((transition.at + transition.before).time(), transition.after - transition.before)
        by_shape.setdefault(shape, []).append(transition)
    for alike in by_shape.values():
        transition = rng.choice(alike)
        stretch = Stretch(rng.choice(zones[transition]), transition, rng)
        crons = [*rng.sample(TRICKY, 30), *random_crons(rng, 15), *stretch.crons_in_the_shift()]
        assert stretch.check_crons(crons) > 100
        assert stretch.check_days() > 10
        if rng.random() < 0.3:
            stretch.check_crons([rng.choice(MANY_A_DAY)])


@pytest.mark.long
@pytest.mark.parametrize("year", range(2020, 2041))
def test_rules_agree_with_the_minute_matcher_around_every_transition_of(year: int) -> None:
    rng = fresh_random()
    expressions = [*TRICKY, *random_crons(rng, 250)]
    of_year = {
        transition: zones
        for transition, zones in oracle.zones_by_transition(FINE).items()
        if transition.at.year == year
    }
    assert of_year
    for transition, zones in of_year.items():
        stretch = Stretch(rng.choice(zones), transition, rng)
        crons = [*expressions, *stretch.crons_in_the_shift(), rng.choice(MANY_A_DAY)]
        assert stretch.check_crons(crons) > 1000
        assert stretch.check_days() > 10


@pytest.mark.long
def test_every_zone_shifts_when_its_clock_probed_every_few_hours_does() -> None:
    shifts: dict[str, list[Transition]] = {}
    for transition, zones in oracle.zones_by_transition(FINE).items():
        for zone in zones:
            shifts.setdefault(zone, []).append(transition)
    for zone in oracle.zone_names():
        found = shifts_between(utc(2020, 1, 1), utc(2041, 1, 1), find_zone(zone))
        assert [Transition(*shift) for shift in found] == shifts.get(zone, []), zone


@pytest.mark.parametrize("zone", YEAR_ZONES)
def test_a_year_of_sparse_crons_is_that_of_the_minute_matcher(zone: str) -> None:
    assert check_year(zone, SPARSE_OVER_A_YEAR) > 100


@pytest.mark.long
@pytest.mark.parametrize("zone", YEAR_ZONES)
def test_a_year_of_crons_is_that_of_the_minute_matcher(zone: str) -> None:
    assert check_year(zone, OVER_A_YEAR) > 1000


def check_year(zone: str, expressions: Iterable[str]) -> int:
    compared = 0
    clock = WallClock(zone, utc(2027, 1, 1), utc(2028, 1, 1))
    for expression in expressions:
        rule = parse("custom", {"cron_expression": expression}, scheduled_for=None, timezone=zone)
        owed = clock.owed_by_cron(expression)
        check(f"{zone}, 2027, cron '{expression}'", rule, clock, owed, [])
        compared += len(owed)
    return compared
