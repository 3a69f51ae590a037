"""Definitions as the API spells them: what is refused and how, and the normal form."""

import json
from collections.abc import Mapping
from datetime import datetime, time, timedelta

import pytest

from deployx.timing.recurrence import RecurrenceError, dump, load, parse
from deployx.timing.rules import Custom, Daily, Interval, MonthDay, Monthly, MonthWeekday, Once, Recurrence, Weekly
from deployx.timing.zones import find_zone
from tests.timing.oracle import fresh_random, random_cron, utc

START = utc(2026, 11, 23, 2)

Config = Mapping[str, object] | None


@pytest.mark.parametrize(
    ("recurrence_type", "config", "expected"),
    [
        ("once", None, Once(at=START)),
        ("once", {}, Once(at=START)),
        ("once", {"type": "once"}, Once(at=START)),
        ("daily", {"type": "daily", "time": "03:00"}, Daily(start_at=START, wall_time=time(3))),
        ("daily", {"time": "03:00:30", "end_date": None}, Daily(start_at=START, wall_time=time(3, 0, 30))),
        (
            "weekly",
            {"type": "weekly", "days_of_week": [4, 0, 2, 0], "time": "02:00"},
            Weekly(start_at=START, wall_time=time(2), days_of_week=(0, 2, 4)),
        ),
        (
            "monthly",
            {"day_of_month": -1, "time": "00:00"},
            Monthly(start_at=START, wall_time=time(0), on=MonthDay(day_of_month=-1)),
        ),
        (
            "monthly",
            {"weekday": 1, "ordinal": 2, "time": "23:59:59"},
            Monthly(start_at=START, wall_time=time(23, 59, 59), on=MonthWeekday(weekday=1, ordinal=2)),
        ),
        ("interval", {"every_seconds": 90}, Interval(start_at=START, every_seconds=90)),
    ],
)
def test_a_good_definition_gives_its_rule(recurrence_type: str, config: Config, expected: Recurrence) -> None:
    assert parse(recurrence_type, config, scheduled_for=START) == expected


def test_a_cron_keeps_the_words_it_was_given_in() -> None:
    rule = parse("custom", {"cron_expression": " 0 2 * * MON-fri "}, scheduled_for=START)
    assert isinstance(rule, Custom)
    assert rule.expression == "0 2 * * MON-fri"
    assert rule.cron.text == "0 2 * * 1-5"


@pytest.mark.parametrize(
    ("recurrence_type", "config", "loc", "says"),
    [
        ("dayly", None, "recurrence_type", "'dayly' is unknown. Did you mean 'daily'?"),
        ("every_full_moon", {"after": {}}, "recurrence_type", "'every_full_moon' is unknown. Use one of once, daily"),
        ("", None, "recurrence_type", "unknown"),
        ("once", {"time": "02:00"}, "recurrence_config.time", "belongs to recurrence_type daily or weekly or monthly"),
        ("once", {"colour": "red"}, "recurrence_config.colour", "once takes no config"),
        ("daily", None, "recurrence_config.time", "'time' is required"),
        ("daily", {"time": None}, "recurrence_config.time", "'time' is required"),
        ("daily", {"type": "weekly", "time": "02:00"}, "recurrence_config.type", "'weekly' contradicts"),
        ("daily", {"type": 5, "time": "02:00"}, "recurrence_config.type", "5 contradicts"),
        ("daily", {"time": "25:00"}, "recurrence_config.time", "'25:00' is not a time of day"),
        ("daily", {"time": "24:00"}, "recurrence_config.time", "'24:00'"),
        ("daily", {"time": "2:00"}, "recurrence_config.time", "'2:00'"),
        ("daily", {"time": "02:60"}, "recurrence_config.time", "'02:60'"),
        ("daily", {"time": "02:00:60"}, "recurrence_config.time", "'02:00:60'"),
        ("daily", {"time": "02:00\n"}, "recurrence_config.time", "not a time of day"),
        ("daily", {"time": "02:00Z"}, "recurrence_config.time", "not a time of day"),
        ("daily", {"time": "٠٢:٠٠"}, "recurrence_config.time", "not a time of day"),
        ("daily", {"time": 200}, "recurrence_config.time", "200 is not a time of day"),
        ("daily", {"time": "02:00", "day_of_month": 1}, "recurrence_config.day_of_month", "belongs to"),
        ("daily", {"time": "02:00", "every": 2}, "recurrence_config.every", "belongs to recurrence_type weekly"),
        ("daily", {"time": "02:00", "tiem": "x"}, "recurrence_config.tiem", "Did you mean 'time'?"),
        ("daily", {"time": "02:00", "max_occurrences": 0}, "recurrence_config.max_occurrences", "1 to 10000"),
        ("daily", {"time": "02:00", "jitter_seconds": 3}, "recurrence_config.jitter_seconds", "not known"),
        ("weekly", {"time": "02:00"}, "recurrence_config.days_of_week", "required"),
        ("weekly", {"time": "02:00", "days_of_week": []}, "recurrence_config.days_of_week", "at least one"),
        ("weekly", {"time": "02:00", "days_of_week": 1}, "recurrence_config.days_of_week", "1 is not a list"),
        ("weekly", {"time": "02:00", "days_of_week": "01"}, "recurrence_config.days_of_week", "not a list"),
        ("weekly", {"time": "02:00", "days_of_week": [7]}, "recurrence_config.days_of_week", "7 is not a weekday"),
        ("weekly", {"time": "02:00", "days_of_week": [-1]}, "recurrence_config.days_of_week", "-1 is not"),
        ("weekly", {"time": "02:00", "days_of_week": [True]}, "recurrence_config.days_of_week", "true is not"),
        ("weekly", {"time": "02:00", "days_of_week": [1.0]}, "recurrence_config.days_of_week", "1.0 is not"),
        ("weekly", {"time": "02:00", "days_of_week": [[]]}, "recurrence_config.days_of_week", "[] is not"),
        ("weekly", {"time": "02:00", "days_of_week": [1], "every": 0}, "recurrence_config.every", "from 1 to 520"),
        ("weekly", {"time": "02:00", "days_of_week": [1], "every": 2.5}, "recurrence_config.every", "2.5"),
        ("monthly", {"time": "02:00"}, "recurrence_config.day_of_month", "add one of the two"),
        ("monthly", {"time": "02:00", "day_of_month": 0}, "recurrence_config.day_of_month", "0 is not accepted"),
        ("monthly", {"time": "02:00", "day_of_month": 32}, "recurrence_config.day_of_month", "1 to 31 or -1"),
        ("monthly", {"time": "02:00", "day_of_month": -2}, "recurrence_config.day_of_month", "-2"),
        ("monthly", {"time": "02:00", "day_of_month": True}, "recurrence_config.day_of_month", "true"),
        ("monthly", {"time": "02:00", "day_of_month": "1"}, "recurrence_config.day_of_month", "'1'"),
        ("monthly", {"time": "02:00", "weekday": 1}, "recurrence_config.ordinal", "'ordinal' is required"),
        ("monthly", {"time": "02:00", "ordinal": 1}, "recurrence_config.weekday", "'weekday' is required"),
        ("monthly", {"time": "02:00", "weekday": 7, "ordinal": 1}, "recurrence_config.weekday", "0 to 6"),
        ("monthly", {"time": "02:00", "weekday": 1, "ordinal": 6}, "recurrence_config.ordinal", "1 to 5 or -1"),
        (
            "monthly",
            {"time": "02:00", "weekday": 1, "ordinal": 1, "day_of_month": 1},
            "recurrence_config.day_of_month",
            "keep one of the two",
        ),
        ("interval", {}, "recurrence_config.every_seconds", "required"),
        ("interval", {"every_seconds": 0}, "recurrence_config.every_seconds", "0 is not accepted"),
        ("interval", {"every_seconds": 1.5}, "recurrence_config.every_seconds", "1.5"),
        ("interval", {"every_seconds": 10**30}, "recurrence_config.every_seconds", "not accepted"),
        ("custom", {}, "recurrence_config.cron_expression", "required"),
        ("custom", {"cron_expression": 5}, "recurrence_config.cron_expression", "5 is not text"),
        ("custom", {"cron_expression": "0 0 30 2 *"}, "recurrence_config.cron_expression", "never fires"),
        ("custom", {"cron_expression": "0 0 0 1 1 *"}, "recurrence_config.cron_expression", "6 fields"),
        ("daily", {"time": "02:00", "end_date": "soon"}, "recurrence_config.end_date", "'soon'"),
        ("daily", {"time": "02:00", "end_date": 5}, "recurrence_config.end_date", "5 is not text"),
        ("daily", {"time": "02:00", "end_date": "2027-02-29"}, "recurrence_config.end_date", "2027-02-29"),
        (
            "daily",
            {"time": "02:00", "end_date": "2026-11-23T01:59:59Z"},
            "recurrence_config.end_date",
            "before the first occurrence",
        ),
    ],
)
def test_a_bad_definition_is_refused_with_place_value_and_advice(
    recurrence_type: str, config: Config, loc: str, says: str
) -> None:
    with pytest.raises(RecurrenceError) as refused:
        parse(recurrence_type, config, scheduled_for=START)
    assert ".".join(refused.value.loc) == loc
    assert [place for place, _ in refused.value.problems] == [refused.value.loc]
    assert says in refused.value.problems[0][1]
    assert says in str(refused.value)


def test_every_problem_is_told_at_once() -> None:
    config = {"type": "daily", "days_of_week": [9], "every": 0, "day_of_month": 1, "end_date": "x"}
    with pytest.raises(RecurrenceError) as refused:
        parse("weekly", config, scheduled_for=None, timezone="Europe/Kyv")
    assert {loc[-1] for loc, _ in refused.value.problems} == {
        "timezone",
        "type",
        "day_of_month",
        "end_date",
        "time",
        "days_of_week",
        "every",
    }
    assert "Did you mean 'Europe/Kyiv'?" in str(refused.value)


@pytest.mark.parametrize(
    ("recurrence_type", "config"),
    [
        ("once", None),
        ("interval", {"every_seconds": 60}),
        ("weekly", {"time": "02:00", "days_of_week": [1], "every": 2}),
    ],
)
def test_what_is_counted_from_scheduled_time_requires_it(recurrence_type: str, config: Config) -> None:
    with pytest.raises(RecurrenceError) as refused:
        parse(recurrence_type, config, scheduled_for=None)
    assert refused.value.loc == ("scheduled_time",)


def test_a_daily_rule_needs_no_scheduled_time() -> None:
    rule = parse("daily", {"time": "02:00"}, scheduled_for=None)
    assert rule.next_after(START) == START + timedelta(days=1)


def test_an_end_exactly_at_the_only_occurrence_is_accepted() -> None:
    rule = parse("daily", {"time": "02:00", "end_date": "2026-11-23T02:00:00Z"}, scheduled_for=START)
    assert rule.next_after(START - timedelta(days=1)) == START
    assert rule.next_after(START) is None


def test_a_naive_scheduled_time_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        parse("once", None, scheduled_for=datetime(2026, 11, 23))  # noqa: DTZ001


def test_a_scheduled_time_with_an_offset_is_kept_in_utc() -> None:
    rule = parse("once", None, scheduled_for=datetime.fromisoformat("2026-11-23T03:00:00+01:00"))
    assert isinstance(rule, Once)
    assert rule.at.isoformat() == "2026-11-23T02:00:00+00:00"


@pytest.mark.parametrize(
    ("recurrence_type", "config", "expected"),
    [
        ("once", None, {"type": "once"}),
        ("daily", {"time": "03:00:00"}, {"type": "daily", "time": "03:00"}),
        ("daily", {"time": "03:00:05"}, {"type": "daily", "time": "03:00:05"}),
        (
            "weekly",
            {"time": "02:00", "days_of_week": [2, 0, 2]},
            {"type": "weekly", "time": "02:00", "days_of_week": [0, 2], "every": 1},
        ),
        ("monthly", {"time": "02:00", "day_of_month": -1}, {"type": "monthly", "time": "02:00", "day_of_month": -1}),
        (
            "monthly",
            {"time": "02:00", "weekday": 1, "ordinal": -1},
            {"type": "monthly", "time": "02:00", "weekday": 1, "ordinal": -1},
        ),
        ("interval", {"every_seconds": 60}, {"type": "interval", "every_seconds": 60}),
        ("custom", {"cron_expression": "@daily"}, {"type": "custom", "cron_expression": "@daily"}),
        (
            "daily",
            {"time": "03:00", "end_date": "2027-01-01"},
            {"type": "daily", "time": "03:00", "end_date": "2027-01-01"},
        ),
        (
            "daily",
            {"time": "03:00", "end_date": "2027-01-01T01:00:00+01:00"},
            {"type": "daily", "time": "03:00", "end_date": "2027-01-01T00:00:00Z"},
        ),
    ],
)
def test_the_normal_form_has_type_and_defaults_and_reads_back_equal(
    recurrence_type: str, config: Config, expected: dict[str, object]
) -> None:
    rule = parse(recurrence_type, config, scheduled_for=START, timezone="Europe/Berlin")
    assert dump(rule) == expected
    assert parse(recurrence_type, dump(rule), scheduled_for=START, timezone="Europe/Berlin") == rule
    assert load(recurrence_type, json.dumps(dump(rule)), START, "Europe/Berlin") == rule


def test_a_stored_definition_is_read_once_for_all_starts() -> None:
    text = json.dumps({"type": "weekly", "time": "02:00", "days_of_week": [0], "every": 2})
    first, second = load("weekly", text, START), load("weekly", text, START + timedelta(days=7))
    assert isinstance(first, Weekly)
    assert isinstance(second, Weekly)
    assert first.days_of_week is second.days_of_week
    assert first.next_after(START) == utc(2026, 12, 7, 2)
    assert second.next_after(START) == utc(2026, 11, 30, 2)


def test_a_stored_once_needs_its_instant() -> None:
    assert load("once", None, START, "Europe/Berlin") == Once(at=START, zone=find_zone("Europe/Berlin"))
    with pytest.raises(RecurrenceError, match="scheduled_time"):
        load("once", None, None)


def test_random_definitions_read_back_from_their_normal_form() -> None:
    rng = fresh_random()
    for _ in range(500):
        at = f"{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.choice((0, 7)):02}"
        cases: list[tuple[str, dict[str, object]]] = [
            ("daily", {"time": at}),
            ("weekly", {"time": at, "days_of_week": rng.choices(range(7), k=5), "every": rng.randint(1, 9)}),
            ("monthly", {"time": at, "day_of_month": rng.choice((-1, rng.randint(1, 31)))}),
            ("monthly", {"time": at, "weekday": rng.randrange(7), "ordinal": rng.choice((-1, 1, 5))}),
            ("interval", {"every_seconds": rng.randint(1, 10**6)}),
            ("custom", {"cron_expression": "0 0 " + random_cron(rng).split()[2] + ",1 * *"}),
        ]
        recurrence_type, config = rng.choice(cases)
        rule = parse(recurrence_type, config, scheduled_for=START)
        assert parse(recurrence_type, dump(rule), scheduled_for=START) == rule
