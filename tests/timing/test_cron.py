"""Cron expressions: what is accepted, what is refused, and which wall times match."""

import time
from datetime import datetime, timedelta
from itertools import islice

import pytest

from deployx.timing.cron import CronError, CronExpression, parse_cron
from tests.timing.oracle import cron_walls, fresh_random, random_cron

MONDAY = datetime(2026, 11, 23, 10, 3)  # noqa: DTZ001 - cron is matched on wall times


def wall(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("expression", "next_walls"),
    [
        ("0 2 * * 1-5", ["2026-11-24T02:00", "2026-11-25T02:00", "2026-11-26T02:00", "2026-11-27T02:00"]),
        ("0 2 * * mon-fri", ["2026-11-24T02:00", "2026-11-25T02:00"]),
        ("0 2 * * MON,Wed", ["2026-11-25T02:00", "2026-11-30T02:00"]),
        ("0 0 * * 0", ["2026-11-29T00:00", "2026-12-06T00:00"]),
        ("0 0 * * 7", ["2026-11-29T00:00", "2026-12-06T00:00"]),
        ("0 0 * * 6-7", ["2026-11-28T00:00", "2026-11-29T00:00", "2026-12-05T00:00"]),
        ("0 0 1,15 * 1", ["2026-11-30T00:00", "2026-12-01T00:00", "2026-12-07T00:00", "2026-12-14T00:00"]),
        ("0 0 */2 * 1", ["2026-12-07T00:00", "2026-12-21T00:00"]),
        ("0 0 13 * */5", ["2026-12-13T00:00", "2027-06-13T00:00"]),
        ("0 0 5,* * 1", ["2026-11-24T00:00", "2026-11-25T00:00"]),
        ("10-10/2 * * * *", ["2026-11-23T10:10", "2026-11-23T11:10"]),
        ("5-6/2 * * * *", ["2026-11-23T10:05", "2026-11-23T11:05"]),
        ("*/15 * * * *", ["2026-11-23T10:15", "2026-11-23T10:30"]),
        ("*/45 * * * *", ["2026-11-23T10:45", "2026-11-23T11:00"]),
        ("0 0 29 2 *", ["2028-02-29T00:00", "2032-02-29T00:00"]),
        ("0 0 L * *", ["2026-11-30T00:00", "2026-12-31T00:00", "2027-01-31T00:00", "2027-02-28T00:00"]),
        ("0 0 l 2 *", ["2027-02-28T00:00", "2028-02-29T00:00"]),
        ("0 9 * * 2#2", ["2026-12-08T09:00", "2027-01-12T09:00"]),
        ("0 9 * * TUE#2", ["2026-12-08T09:00"]),
        ("0 0 * * 2#5", ["2026-12-29T00:00", "2027-03-30T00:00"]),
        ("0 0 1 jan *", ["2027-01-01T00:00", "2028-01-01T00:00"]),
        ("59 23 31 12 *", ["2026-12-31T23:59", "2027-12-31T23:59"]),
        ("0 0 31 2 1", ["2027-02-01T00:00"]),
        ("  0\t2  * * * \n", ["2026-11-24T02:00"]),
        ("@hourly", ["2026-11-23T11:00"]),
        ("@daily", ["2026-11-24T00:00"]),
        ("@midnight", ["2026-11-24T00:00"]),
        ("@weekly", ["2026-11-29T00:00"]),
        ("@monthly", ["2026-12-01T00:00"]),
        ("@yearly", ["2027-01-01T00:00"]),
        ("@ANNUALLY", ["2027-01-01T00:00"]),
    ],
)
def test_the_next_matching_wall_times_follow_crontab_5(expression: str, next_walls: list[str]) -> None:
    cron = parse_cron(expression)
    moment: datetime | None = MONDAY
    for expected in next_walls:
        assert moment is not None
        moment = cron.next_after(moment)
        assert moment == wall(expected)


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "0 fields"),
        ("* * * *", "4 fields"),
        ("0 0 0 1 1 *", "6 fields"),
        ("60 * * * *", "minute: '60'"),
        ("0 24 * * *", "hour: '24'"),
        ("0 0 0 * *", "day-of-month: '0'"),
        ("0 0 32 * *", "use 1 to 31"),
        ("0 0 * 13 *", "month: '13'"),
        ("0 0 * * 8", "day-of-week: '8'"),
        ("1-60 * * * *", "60 is out of range"),
        ("5/15 * * * *", "write '5-59/15'"),
        ("*/0 * * * *", "at least 1"),
        ("0 22-2 * * *", "write '22-23,0-2'"),
        ("0 0 * * sat-sun", "write '6-7'"),
        ("0 0 W * *", "nearest working day"),
        ("0 0 15W * *", "nearest working day"),
        ("0 0 LW * *", "'L' stands alone"),
        ("0 0 L-3 * *", "'L' stands alone"),
        ("0 0 * * 5L", "monthly recurrence"),
        ("0 0 * * L", "monthly recurrence"),
        ("L * * * *", "minute: 'L'"),
        ("0 0 * * 2#6", "1 to 5"),
        ("0 0 * * 2#0", "1 to 5"),
        ("0 0 * * 8#1", "out of range"),
        ("0 0 2#2 * *", "day-of-month: '2#2'"),
        ("0 0 * * 1-3#2", "'1-3#2'"),
        ("0,,1 * * * *", "empty place"),
        (", * * * *", "empty place"),
        ("a * * * *", "minute: 'a'"),
        ("0 0 * january *", "names jan to dec"),
        ("0 0 ? * *", "'?'"),
        ("-5 * * * *", "'-5'"),
        ("1- * * * *", "'1-'"),
        ("*-5 * * * *", "cannot begin a range"),
        ("1/2/3 * * * *", "'1/2/3'"),
        ("٣ * * * *", "'٣'"),
        ("0 0 * * ſun", "'ſun'"),
        ("1e1 * * * *", "'1e1'"),
        ("+1 * * * *", "'+1'"),
        ("99999999999999999999999 * * * *", "out of range"),
        ("0 0 * * *\x00", "day-of-week"),
        ("@reboot", "'@reboot' is not a known cron name"),
        ("@every 5m", "not a known cron name"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 2,4,6,9,11 *", "never fires"),
        ("0 0 30,31 2 */2", "never fires"),
        ("0 0 */16 * 2#5", "never fires"),
        ("0 0 */10 4 2#5", "never fires"),
        ("1," * 200 + "1 * * * *", "at most 256"),
    ],
)
def test_what_crontab_5_does_not_know_is_refused_with_field_value_and_advice(expression: str, says: str) -> None:
    with pytest.raises(CronError) as refused:
        parse_cron(expression)
    assert says in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_hopeless_or_huge_expression_is_refused_promptly() -> None:
    began = time.perf_counter()
    for hopeless in ("0 0 30 2 *", "0 0 31 4 */3", "0 0 */16 2 1#5", "0-59," * 100_000 + "0 * * * *"):
        with pytest.raises(CronError):
            parse_cron(hopeless)
    assert time.perf_counter() - began < 0.5


def parsed_if_it_fires(expression: str) -> CronExpression | None:
    try:
        return parse_cron(expression)
    except CronError as error:
        if "never fires" in str(error):
            return None
        raise


def test_random_expressions_match_the_minutes_that_crontab_5_names() -> None:
    rng = fresh_random()
    for _ in range(1500):
        expression = random_cron(rng)
        after = MONDAY + timedelta(minutes=rng.randrange(4 * 366 * 24 * 60), seconds=rng.choice((0, 0, 30)))
        cron = parsed_if_it_fires(expression)
        if cron is None:
            assert not any(cron_walls(expression, after, after + timedelta(days=8 * 366))), expression
            continue
        until = after + timedelta(days=rng.choice((1, 40, 400)))
        for expected in islice(cron_walls(expression, after, until), 40):
            found = cron.next_after(after)
            assert found == expected, f"{expression} after {after}"
            after = found
        if next(cron_walls(expression, after, until), None) is None:
            rest = cron.next_after(after)
            assert rest is not None, expression
            assert rest > until, f"{expression} after {after}"


def test_random_expressions_that_are_accepted_do_fire() -> None:
    rng = fresh_random()
    fired = 0
    while fired < 1500:
        expression = random_cron(rng)
        cron = parsed_if_it_fires(expression)
        if cron is None:
            continue
        assert cron.next_after(MONDAY) is not None, expression
        fired += 1


def test_each_rare_leap_day_is_found() -> None:
    # 29 February falls on a Sunday once in 28 years, and 2100 is no leap year.
    cron = parse_cron("0 0 29 2 */7")
    assert cron.next_after(wall("2032-03-01T00:00")) == wall("2060-02-29T00:00")
    assert cron.next_after(wall("2088-03-01T00:00")) == wall("2128-02-29T00:00")


def test_the_end_of_the_calendar_is_the_end() -> None:
    assert parse_cron("0 0 1 1 *").next_after(wall("9999-06-01T00:00")) is None
    assert parse_cron("* * * * *").next_after(wall("9999-12-31T23:59")) is None


def test_the_text_is_normalised_to_numbers() -> None:
    assert parse_cron("010-010/2 0 l JAN-mar sun,TUE#2").text == "10 0 L 1-3 0,2#2"


def test_a_star_in_minute_or_hour_makes_the_expression_follow_elapsed_time() -> None:
    assert parse_cron("0 */2 * * *").follows_elapsed_time
    assert parse_cron("*/15 2 * * *").follows_elapsed_time
    assert not parse_cron("0-59 2 * * *").follows_elapsed_time
    assert not parse_cron("30 2 * * *").follows_elapsed_time
