"""Warnings about a recurrence before it is saved."""

from collections.abc import Mapping
from datetime import datetime

import pytest

from deployx.timing.preview import warnings
from deployx.timing.recurrence import parse
from tests.timing.oracle import utc

NOW = utc(2026, 11, 23, 12)
START = utc(2026, 11, 23, 2)


def texts(
    recurrence_type: str, config: Mapping[str, object], zone: str = "UTC", start_at: datetime = START
) -> list[str]:
    recurrence = parse(recurrence_type, config, scheduled_for=start_at, timezone=zone)
    return [f"{warning.code}: {warning.text}" for warning in warnings(recurrence, now=NOW)]


def cron_texts(expression: str, zone: str = "UTC") -> list[str]:
    return texts("custom", {"cron_expression": expression}, zone)


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (28, []),
        (-1, []),
        (29, ["short_months: February has a day 29 in leap years only: in other years it is skipped there."]),
        (30, ["short_months: There is no day 30 in February: it is skipped there."]),
        (
            31,
            ["short_months: There is no day 31 in February, April, June, September and November: it is skipped there."],
        ),
    ],
)
def test_a_day_that_some_months_lack_is_warned_of(day: int, expected: list[str]) -> None:
    assert texts("monthly", {"time": "00:00", "day_of_month": day}) == expected


def test_a_fifth_weekday_is_warned_of() -> None:
    assert texts("monthly", {"time": "00:00", "weekday": 1, "ordinal": 4}) == []
    expected = ["short_months: Not every month has a fifth Tuesday: the others are skipped."]
    assert texts("monthly", {"time": "00:00", "weekday": 1, "ordinal": 5}) == expected
    assert cron_texts("0 0 * * 2#5") == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 * * *", []),
        ("0 0 */2 * *", []),
        ("0 0 1-31 * *", []),
        ("0 0 L * *", []),
        ("0 0 31 1,3 *", []),
        ("0 0 15,31 3,4 *", ["short_months: There is no day 31 in April: it is skipped there."]),
        ("0 0 29 2 *", ["short_months: February has a day 29 in leap years only: in other years it is skipped there."]),
    ],
)
def test_a_cron_day_that_its_months_lack_is_warned_of(expression: str, expected: list[str]) -> None:
    assert cron_texts(expression) == expected


SPRING = "daylight_saving: On 2027-03-28 the clock of Europe/Berlin skips from 02:00 to 03:00: what falls in between"
AUTUMN = (
    "daylight_saving: On 2027-10-31 the clock of Europe/Berlin goes back from 03:00 to 02:00: what falls in between"
)


@pytest.mark.parametrize(
    ("recurrence_type", "config", "expected"),
    [
        ("daily", {"time": "01:59"}, []),
        ("daily", {"time": "03:00"}, []),
        ("daily", {"time": "02:00"}, [f"{SPRING} runs once, at 03:00.", f"{AUTUMN} runs once, the first time."]),
        ("weekly", {"time": "02:30", "days_of_week": [0]}, []),
        ("weekly", {"time": "02:30", "days_of_week": [6], "every": 2}, [f"{AUTUMN} runs once, the first time."]),
        ("monthly", {"time": "02:30", "day_of_month": 28}, [f"{SPRING} runs once, at 03:00."]),
        ("custom", {"cron_expression": "30 2 28 3 *"}, [f"{SPRING} runs once, at 03:00."]),
        ("custom", {"cron_expression": "*/15 2 * * *"}, [f"{SPRING} does not run.", f"{AUTUMN} runs twice."]),
        ("daily", {"time": "02:30", "end_date": "2027-01-01"}, []),
        ("daily", {"time": "02:30", "end_date": "2027-03-28T01:30:00Z"}, [f"{SPRING} runs once, at 03:00."]),
        ("interval", {"every_seconds": 1800}, []),
        ("once", {}, []),
    ],
)
def test_a_shift_of_the_zone_is_warned_of_where_the_rule_meets_it(
    recurrence_type: str, config: Mapping[str, object], expected: list[str]
) -> None:
    assert texts(recurrence_type, config, "Europe/Berlin") == expected


def test_a_zone_that_does_not_shift_gives_no_warning() -> None:
    assert texts("daily", {"time": "02:30"}, "Asia/Tokyo") == []
    assert texts("daily", {"time": "02:30"}) == []


def test_a_naive_start_beside_another_zone_is_warned_of() -> None:
    there = parse("once", None, scheduled_for=START, timezone="Europe/Berlin")
    (warning,) = warnings(there, now=NOW, start_was_naive=True)
    assert warning.code == "naive_time"
    assert "2026-11-23 02:00 UTC, which is 2026-11-23 03:00 in Europe/Berlin" in warning.text
    assert warnings(there, now=NOW) == []
    in_utc = parse("once", None, scheduled_for=START)
    assert warnings(in_utc, now=NOW, start_was_naive=True) == []
