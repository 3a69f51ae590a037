"""Recurrences as sentences."""

from collections.abc import Mapping
from datetime import timedelta

import pytest

from deployx.timing.cron import CronError, parse_cron
from deployx.timing.recurrence import parse
from deployx.timing.words import describe, describe_cron
from tests.timing.oracle import fresh_random, random_cron, utc

START = utc(2026, 11, 23, 2)


@pytest.mark.parametrize(
    ("recurrence_type", "config", "zone", "sentence"),
    [
        ("once", {}, "UTC", "Once at 2026-11-23 02:00 UTC"),
        ("once", {}, "Europe/Berlin", "Once at 2026-11-23 03:00 Europe/Berlin"),
        ("daily", {"time": "02:00"}, "UTC", "Every day at 02:00 UTC"),
        ("daily", {"time": "02:00:05"}, "Asia/Tokyo", "Every day at 02:00:05 Asia/Tokyo"),
        ("daily", {"time": "02:00", "end_date": "2026-12-31"}, "UTC", "Every day at 02:00 UTC, until 2026-12-31"),
        (
            "daily",
            {"time": "02:00", "end_date": "2026-12-31T12:00:00Z"},
            "Europe/Berlin",
            "Every day at 02:00 Europe/Berlin, until 2026-12-31 13:00 Europe/Berlin",
        ),
        (
            "weekly",
            {"time": "02:00", "days_of_week": [0, 2, 4]},
            "UTC",
            "On Monday, Wednesday and Friday at 02:00 UTC",
        ),
        ("weekly", {"time": "02:00", "days_of_week": [6]}, "UTC", "On Sunday at 02:00 UTC"),
        ("weekly", {"time": "02:00", "days_of_week": list(range(7))}, "UTC", "Every day at 02:00 UTC"),
        (
            "weekly",
            {"time": "02:00", "days_of_week": [0, 1], "every": 2},
            "UTC",
            "On Monday and Tuesday of every 2nd week at 02:00 UTC",
        ),
        (
            "weekly",
            {"time": "02:00", "days_of_week": list(range(7)), "every": 13},
            "UTC",
            "On every day of every 13th week at 02:00 UTC",
        ),
        ("monthly", {"time": "00:00", "day_of_month": 1}, "UTC", "On day 1 of every month at 00:00 UTC"),
        ("monthly", {"time": "00:00", "day_of_month": -1}, "UTC", "On the last day of every month at 00:00 UTC"),
        (
            "monthly",
            {"time": "00:00", "weekday": 1, "ordinal": 2},
            "UTC",
            "On the second Tuesday of every month at 00:00 UTC",
        ),
        (
            "monthly",
            {"time": "00:00", "weekday": 4, "ordinal": -1},
            "UTC",
            "On the last Friday of every month at 00:00 UTC",
        ),
        ("interval", {"every_seconds": 1}, "UTC", "Every second from 2026-11-23 02:00 UTC"),
        ("interval", {"every_seconds": 90}, "UTC", "Every 90 seconds from 2026-11-23 02:00 UTC"),
        ("interval", {"every_seconds": 7200}, "UTC", "Every 2 hours from 2026-11-23 02:00 UTC"),
        ("custom", {"cron_expression": "0 2 * * 1-5"}, "UTC", "At 02:00, on Monday through Friday, UTC"),
    ],
)
def test_a_recurrence_is_one_sentence(
    recurrence_type: str, config: Mapping[str, object], zone: str, sentence: str
) -> None:
    assert describe(parse(recurrence_type, config, scheduled_for=START, timezone=zone)) == sentence


def test_seconds_of_an_instant_are_shown_where_it_has_some() -> None:
    once = parse("once", None, scheduled_for=START + timedelta(seconds=7))
    assert describe(once) == "Once at 2026-11-23 02:00:07 UTC"


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("* * * * *", "Every minute"),
        ("*/15 * * * *", "Every 15 minutes"),
        ("@hourly", "Every hour"),
        ("30 14 * * *", "At 14:30"),
        ("0 0 * * 0", "At 00:00, on Sunday"),
        ("0 0 * * 6,7", "At 00:00, on Saturday and Sunday"),
        ("0 0 * * 1-5/2", "At 00:00, on Monday, Wednesday and Friday"),
        ("0 0 1,15 * 1", "At 00:00, on day 1 and 15 of the month or on Monday"),
        ("0 0 1 * mon-fri", "At 00:00, on day 1 of the month or on Monday through Friday"),
        ("0 0 */10 * 1", "At 00:00, on day 1, 11, 21 and 31 of the month, and only on Monday"),
        ("0 0 1-31 * 1", "At 00:00"),
        ("0 0 1,L * *", "At 00:00, on day 1 and the last day of the month"),
        ("0 0 * * 1,3#2", "At 00:00, on Monday and the second Wednesday of the month"),
        ("0 0 1 1 *", "At 00:00, on day 1 of the month, only in January"),
        ("10-10/2 3 * * *", "At 03:10"),
        ("*/25 * * * *", "At 0, 25, and 50 minutes past the hour"),
    ],
)
def test_a_cron_is_told_truly_in_the_24_hour_clock(expression: str, sentence: str) -> None:
    assert describe_cron(parse_cron(expression)) == sentence


def test_every_accepted_cron_has_words() -> None:
    rng = fresh_random()
    for _ in range(500):
        expression = random_cron(rng)
        try:
            cron = parse_cron(expression)
        except CronError:
            continue
        sentence = describe_cron(cron)
        assert sentence[0].isupper(), expression
        assert "  " not in sentence, expression
        assert "rror" not in sentence, expression
