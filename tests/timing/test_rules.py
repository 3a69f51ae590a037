"""The next instants of each kind of recurrence, in UTC and where zones shift."""

from collections.abc import Container, Mapping
from datetime import UTC, datetime, time, timedelta

import pytest

from deployx.timing.recurrence import parse
from deployx.timing.rules import LAST_INSTANT, Interval, Recurrence, Weekly
from tests.timing import oracle
from tests.timing.oracle import fresh_random, utc

MONDAY = utc(2026, 11, 23, 10, 3)


def rule(
    recurrence_type: str, config: Mapping[str, object], zone: str = "UTC", start_at: datetime | None = None
) -> Recurrence:
    return parse(recurrence_type, config, scheduled_for=start_at, timezone=zone)


def cron(expression: str, zone: str = "UTC") -> Recurrence:
    return rule("custom", {"cron_expression": expression}, zone)


@pytest.mark.parametrize(
    ("recurrence", "after", "expected"),
    [
        (rule("daily", {"time": "03:00"}), MONDAY, ["2026-11-24T03:00", "2026-11-25T03:00"]),
        (rule("daily", {"time": "10:03"}), MONDAY, ["2026-11-24T10:03"]),
        (rule("daily", {"time": "10:03:01"}), MONDAY, ["2026-11-23T10:03:01"]),
        (rule("daily", {"time": "00:00"}), utc(2026, 12, 31, 12), ["2027-01-01T00:00"]),
        (
            rule("weekly", {"time": "02:00", "days_of_week": [4, 0, 2]}),
            MONDAY,
            ["2026-11-25T02:00", "2026-11-27T02:00", "2026-11-30T02:00"],
        ),
        (rule("weekly", {"time": "02:00", "days_of_week": [0]}), MONDAY, ["2026-11-30T02:00", "2026-12-07T02:00"]),
        (rule("weekly", {"time": "11:00", "days_of_week": [0]}), MONDAY, ["2026-11-23T11:00", "2026-11-30T11:00"]),
        (rule("weekly", {"time": "02:00", "days_of_week": [6]}), utc(2026, 12, 31), ["2027-01-03T02:00"]),
        (rule("monthly", {"time": "00:00", "day_of_month": 1}), MONDAY, ["2026-12-01T00:00", "2027-01-01T00:00"]),
        (
            rule("monthly", {"time": "00:00", "day_of_month": 31}),
            MONDAY,
            ["2026-12-31T00:00", "2027-01-31T00:00", "2027-03-31T00:00"],
        ),
        (rule("monthly", {"time": "00:00", "day_of_month": 30}), utc(2027, 1, 31), ["2027-03-30T00:00"]),
        (rule("monthly", {"time": "00:00", "day_of_month": 29}), utc(2027, 1, 31), ["2027-03-29T00:00"]),
        (rule("monthly", {"time": "00:00", "day_of_month": 29}), utc(2028, 1, 31), ["2028-02-29T00:00"]),
        (
            rule("monthly", {"time": "12:00", "day_of_month": -1}),
            utc(2028, 1, 31, 12),
            ["2028-02-29T12:00", "2028-03-31T12:00", "2028-04-30T12:00"],
        ),
        (
            rule("monthly", {"time": "03:00", "weekday": 1, "ordinal": 2}),
            MONDAY,
            ["2026-12-08T03:00", "2027-01-12T03:00"],
        ),
        (
            rule("monthly", {"time": "03:00", "weekday": 4, "ordinal": -1}),
            MONDAY,
            ["2026-11-27T03:00", "2026-12-25T03:00"],
        ),
        (
            rule("monthly", {"time": "03:00", "weekday": 0, "ordinal": 5}),
            MONDAY,
            ["2026-11-30T03:00", "2027-03-29T03:00"],
        ),
        (cron("0 2 * * 1-5"), utc(2026, 11, 27, 2), ["2026-11-30T02:00", "2026-12-01T02:00"]),
    ],
)
def test_the_next_instants_of_a_rule_in_utc(recurrence: Recurrence, after: datetime, expected: list[str]) -> None:
    for text in expected:
        found = recurrence.next_after(after)
        assert found == datetime.fromisoformat(text).replace(tzinfo=UTC)
        assert found.tzinfo is UTC
        after = found


def test_weekdays_count_monday_as_0_in_days_of_week_but_sunday_as_0_in_cron() -> None:
    weekly = rule("weekly", {"time": "02:00", "days_of_week": [1, 2, 3, 4, 5]})
    by_cron = cron("0 2 * * 1-5")
    week = (utc(2026, 11, 23), utc(2026, 11, 30))
    assert [f"{at:%a}" for at in weekly.between(*week)] == ["Tue", "Wed", "Thu", "Fri", "Sat"]
    assert [f"{at:%a}" for at in by_cron.between(*week)] == ["Mon", "Tue", "Wed", "Thu", "Fri"]


def test_once_occurs_once() -> None:
    once = parse("once", None, scheduled_for=MONDAY)
    assert list(once.between(utc(2020, 1, 1), utc(2030, 1, 1))) == [MONDAY]
    assert once.next_after(MONDAY) is None


def test_nothing_occurs_before_the_start_but_an_occurrence_exactly_at_it_does() -> None:
    start_at = utc(2026, 12, 1, 2)
    for config in ({"time": "02:00"}, {"time": "02:00", "end_date": "2026-12-31"}):
        assert rule("daily", config, start_at=start_at).next_after(MONDAY) == start_at
    later = start_at + timedelta(microseconds=1)
    assert rule("daily", {"time": "02:00"}, start_at=later).next_after(MONDAY) == utc(2026, 12, 2, 2)
    at_start = rule("custom", {"cron_expression": "0 2 * * *"}, start_at=start_at)
    assert at_start.next_after(MONDAY) == start_at


def test_an_end_is_inclusive_and_a_bare_date_means_the_end_of_that_day_there() -> None:
    inclusive = rule("daily", {"time": "02:00", "end_date": "2026-11-25T02:00:00Z"})
    assert list(inclusive.between(MONDAY, utc(2027, 1, 1))) == [utc(2026, 11, 24, 2), utc(2026, 11, 25, 2)]
    before = rule("daily", {"time": "02:00", "end_date": "2026-11-25T01:59:59Z"})
    assert list(before.between(MONDAY, utc(2027, 1, 1))) == [utc(2026, 11, 24, 2)]
    # 23:00 on the 24th in New York is 04:00 UTC on the 25th.
    there = rule("daily", {"time": "23:00", "end_date": "2026-11-24"}, "America/New_York")
    assert list(there.between(MONDAY, utc(2027, 1, 1))) == [utc(2026, 11, 24, 4), utc(2026, 11, 25, 4)]


def test_every_other_week_is_counted_in_monday_weeks_from_the_start() -> None:
    # The start is a Wednesday: its week is the first, and the Monday in it has passed.
    config = {"time": "02:00", "days_of_week": [0, 4], "every": 2}
    recurrence = rule("weekly", config, start_at=utc(2026, 11, 25))
    expected = [utc(2026, 11, 27, 2), utc(2026, 12, 7, 2), utc(2026, 12, 11, 2), utc(2026, 12, 21, 2)]
    assert list(recurrence.between(utc(2020, 1, 1), utc(2026, 12, 24))) == expected
    # In Auckland that start is already Monday the 30th, so its week is another one.
    there = rule("weekly", config, "Pacific/Auckland", utc(2026, 11, 29, 12))
    assert list(there.between(MONDAY, utc(2026, 12, 14))) == [
        utc(2026, 11, 29, 13),
        utc(2026, 12, 3, 13),
        utc(2026, 12, 13, 13),
    ]


def test_every_third_week_is_the_third_from_wherever_one_asks() -> None:
    recurrence = rule("weekly", {"time": "02:00", "days_of_week": [2], "every": 3}, start_at=utc(2026, 11, 23))
    for days in range(60):
        found = recurrence.next_after(utc(2026, 11, 25, 2) + timedelta(days=days))
        assert found == utc(2026, 11, 25, 2) + timedelta(days=21 * (days // 21 + 1))


def test_an_interval_counts_elapsed_time_from_the_start_through_a_shift() -> None:
    start_at = utc(2027, 3, 27, 12).replace(microsecond=250_000)
    recurrence = rule("interval", {"every_seconds": 7 * 3600}, "Europe/Berlin", start_at)
    expected = [start_at + timedelta(hours=7 * step) for step in range(6)]
    assert list(recurrence.between(utc(2020, 1, 1), start_at + timedelta(hours=36))) == expected
    assert recurrence.next_after(expected[3]) == expected[4]
    assert recurrence.next_after(expected[3] - timedelta(microseconds=1)) == expected[3]


@pytest.mark.parametrize(
    "recurrence", [Weekly(wall_time=MONDAY.time(), days_of_week=(0,), every=2), Interval(every_seconds=5)]
)
def test_what_is_counted_from_a_start_does_not_work_without_one(recurrence: Recurrence) -> None:
    with pytest.raises(ValueError, match="counts from a start"):
        recurrence.next_after(MONDAY)


@pytest.mark.parametrize(
    ("recurrence", "after", "expected"),
    [
        # Berlin, 28 March 2027: 02:00 becomes 03:00 at 01:00 UTC.
        (
            rule("daily", {"time": "02:30"}, "Europe/Berlin"),
            utc(2027, 3, 27, 12),
            [utc(2027, 3, 28, 1), utc(2027, 3, 29, 0, 30)],
        ),
        (cron("30 2 * * *", "Europe/Berlin"), utc(2027, 3, 27, 12), [utc(2027, 3, 28, 1), utc(2027, 3, 29, 0, 30)]),
        (cron("0,30 2,3 * * *", "Europe/Berlin"), utc(2027, 3, 28), [utc(2027, 3, 28, 1), utc(2027, 3, 28, 1, 30)]),
        (cron("*/15 2 * * *", "Europe/Berlin"), utc(2027, 3, 28), [utc(2027, 3, 29)]),
        (cron("0 */2 * * *", "Europe/Berlin"), utc(2027, 3, 27, 23), [utc(2027, 3, 28, 2), utc(2027, 3, 28, 4)]),
        (cron("0 * * * *", "Europe/Berlin"), utc(2027, 3, 28), [utc(2027, 3, 28, 1), utc(2027, 3, 28, 2)]),
        # 31 October 2027: 03:00 becomes 02:00 at 01:00 UTC.
        (
            rule("daily", {"time": "02:30"}, "Europe/Berlin"),
            utc(2027, 10, 31),
            [utc(2027, 10, 31, 0, 30), utc(2027, 11, 1, 1, 30)],
        ),
        (cron("30 2 * * *", "Europe/Berlin"), utc(2027, 10, 31), [utc(2027, 10, 31, 0, 30), utc(2027, 11, 1, 1, 30)]),
        (cron("30 * * * *", "Europe/Berlin"), utc(2027, 10, 31), [utc(2027, 10, 31, 0, 30), utc(2027, 10, 31, 1, 30)]),
        (
            cron("*/30 2 * * *", "Europe/Berlin"),
            utc(2027, 10, 31),
            [utc(2027, 10, 31, 0, 30), utc(2027, 10, 31, 1), utc(2027, 10, 31, 1, 30), utc(2027, 11, 1, 1)],
        ),
        # Lord Howe shifts by 30 minutes.
        (
            rule("daily", {"time": "02:15"}, "Australia/Lord_Howe"),
            utc(2027, 10, 2),
            [utc(2027, 10, 2, 15, 30), utc(2027, 10, 3, 15, 15)],
        ),
        (
            cron("15 * * * *", "Australia/Lord_Howe"),
            utc(2027, 10, 2, 14),
            [utc(2027, 10, 2, 14, 45), utc(2027, 10, 2, 16, 15)],
        ),
        (
            cron("45 * * * *", "Australia/Lord_Howe"),
            utc(2027, 4, 3, 14),
            [utc(2027, 4, 3, 14, 45), utc(2027, 4, 3, 15, 15), utc(2027, 4, 3, 16, 15)],
        ),
        # Samoa had no 30 December 2011: that day's run and the next day's midnight are one occurrence.
        (
            rule("daily", {"time": "00:00"}, "Pacific/Apia"),
            utc(2011, 12, 29),
            [utc(2011, 12, 29, 10), utc(2011, 12, 30, 10), utc(2011, 12, 31, 10)],
        ),
        (cron("* * 29 2 *", "Asia/Tokyo"), MONDAY, [utc(2028, 2, 28, 15), utc(2028, 2, 28, 15, 1)]),
    ],
)
def test_the_next_instants_where_the_zone_shifts(
    recurrence: Recurrence, after: datetime, expected: list[datetime]
) -> None:
    for moment in expected:
        found = recurrence.next_after(after)
        assert found == moment
        after = found


SHIFTING = [
    ("Europe/Berlin", utc(2027, 3, 28, 1)),
    ("Europe/Berlin", utc(2027, 10, 31, 1)),
    ("America/New_York", utc(2026, 11, 1, 6)),
    ("Australia/Lord_Howe", utc(2027, 10, 2, 15, 30)),
    ("Australia/Lord_Howe", utc(2027, 4, 3, 15)),
    ("America/Sao_Paulo", utc(2018, 11, 4, 3)),
    ("America/Sao_Paulo", utc(2018, 2, 18, 2)),
    ("Pacific/Apia", utc(2011, 12, 30, 10)),
    ("Africa/Casablanca", utc(2027, 2, 7, 2)),
    ("Antarctica/Troll", utc(2027, 3, 28, 1)),
    ("Asia/Pyongyang", utc(2015, 8, 14, 15)),
    ("Asia/Kathmandu", utc(1985, 12, 31, 18, 30)),
]


def named(
    times: Container[time], *, days_of_week: Container[int] = range(7), day_of_month: int | None = None
) -> oracle.WallPredicate:
    def matches(wall: datetime) -> bool:
        return (
            wall.time() in times
            and wall.weekday() in days_of_week
            and (day_of_month is None or wall.day == day_of_month)
        )

    return matches


@pytest.mark.parametrize(("zone", "shift_at"), SHIFTING)
def test_random_rules_owe_around_a_shift_what_every_minute_tried_owes(zone: str, shift_at: datetime) -> None:
    rng = fresh_random()
    after, until = shift_at - timedelta(days=2), shift_at + timedelta(days=2)
    minutes = oracle.real_minutes(zone, after, until)
    for _ in range(25):
        expression = " ".join(oracle.random_cron(rng).split()[:2]) + " * * *"
        minute, hour = expression.split()[:2]
        owes = (
            oracle.owed_by_elapsed_time if minute.startswith("*") or hour.startswith("*") else oracle.owed_by_the_wall
        )
        times = set(oracle.cron_walls(expression, datetime(1999, 12, 31, 23, 59), datetime(2000, 1, 1, 23, 59)))  # noqa: DTZ001
        due = {at.time() for at in times}
        expected = owes(minutes, named(due))
        assert list(cron(expression, zone).between(after, until)) == expected, expression


@pytest.mark.parametrize(("zone", "shift_at"), SHIFTING)
def test_daily_weekly_and_monthly_rules_owe_around_a_shift_what_every_minute_tried_owes(
    zone: str, shift_at: datetime
) -> None:
    rng = fresh_random()
    after, until = shift_at - timedelta(days=2), shift_at + timedelta(days=2)
    minutes = oracle.real_minutes(zone, after, until)
    for _ in range(25):
        at = (oracle.utc(2000, 1, 1) + timedelta(minutes=rng.choice((rng.randrange(1440), rng.randrange(240))))).time()
        days = rng.sample(range(7), rng.randint(1, 7))
        day = rng.randint(1, 31)
        time_text = f"{at:%H:%M}"
        cases = [
            (rule("daily", {"time": time_text}, zone), named({at})),
            (rule("weekly", {"time": time_text, "days_of_week": days}, zone), named({at}, days_of_week=days)),
            (rule("monthly", {"time": time_text, "day_of_month": day}, zone), named({at}, day_of_month=day)),
        ]
        for recurrence, matches in cases:
            assert list(recurrence.between(after, until)) == oracle.owed_by_the_wall(minutes, matches), recurrence


def test_the_next_instant_is_the_same_from_wherever_one_asks() -> None:
    rng = fresh_random()
    for zone, shift_at in SHIFTING:
        recurrence = cron("7,37 1,2,3,23 * * *", zone)
        instants = list(recurrence.between(shift_at - timedelta(days=2), shift_at + timedelta(days=2)))
        for _ in range(100):
            moment = shift_at + timedelta(seconds=rng.randrange(-86_400, 86_400))
            assert recurrence.next_after(moment) == next(at for at in instants if at > moment)


def test_instants_between_are_found_only_when_asked_for() -> None:
    endless = cron("* * * * *").between(MONDAY, utc(9000, 1, 1))
    assert next(endless) == utc(2026, 11, 23, 10, 4)
    assert next(endless) == utc(2026, 11, 23, 10, 5)


def test_between_excludes_its_beginning_and_includes_its_end() -> None:
    daily = rule("daily", {"time": "02:00"})
    assert list(daily.between(utc(2026, 11, 23, 2), utc(2026, 11, 25, 2))) == [
        utc(2026, 11, 24, 2),
        utc(2026, 11, 25, 2),
    ]


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "America/New_York", "Pacific/Pago_Pago"])
def test_no_rule_leads_out_of_the_calendar(zone: str) -> None:
    start_at = utc(9999, 1, 1)
    rules = [
        rule("daily", {"time": "23:59"}, zone, start_at),
        rule("weekly", {"time": "23:59", "days_of_week": [5], "every": 3}, zone, start_at),
        rule("monthly", {"time": "23:59", "day_of_month": 31}, zone, start_at),
        rule("monthly", {"time": "23:59", "weekday": 0, "ordinal": 5}, zone, start_at),
        rule("interval", {"every_seconds": 86_399}, zone, start_at),
        cron("* * * * *", zone),
        cron("59 23 31 12 *", zone),
    ]
    for recurrence in rules:
        for moment in (utc(9999, 11, 30), utc(9999, 12, 31), LAST_INSTANT, datetime.max.replace(tzinfo=UTC)):
            found = recurrence.next_after(moment)
            assert found is None or moment < found <= LAST_INSTANT
