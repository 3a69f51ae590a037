"""Instants as text."""

from datetime import UTC, date, datetime, timedelta

import pytest

from deployx.timing.instants import InstantError, format_instant, is_date, parse_date, parse_instant
from tests.timing.oracle import fresh_random, utc


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-23T02:00:00Z", utc(2026, 11, 23, 2)),
        ("2026-11-23t02:00:00z", utc(2026, 11, 23, 2)),
        ("2026-11-23 02:00:00Z", utc(2026, 11, 23, 2)),
        ("2026-11-23T02:00:00", utc(2026, 11, 23, 2)),
        ("2026-11-23T02:00", utc(2026, 11, 23, 2)),
        ("2026-11-23T02:00:00+01:00", utc(2026, 11, 23, 1)),
        ("2026-11-23T02:00:00-05:30", utc(2026, 11, 23, 7, 30)),
        ("2026-01-01T00:30:00+01:00", utc(2025, 12, 31, 23, 30)),
        ("2026-11-23T02:00:00-00:00", utc(2026, 11, 23, 2)),
        ("2026-11-23T02:00:00.5Z", utc(2026, 11, 23, 2) + timedelta(milliseconds=500)),
        ("2026-11-23T02:00:00.123456789Z", utc(2026, 11, 23, 2) + timedelta(microseconds=123456)),
        ("1970-01-01T00:00:00Z", utc(1970, 1, 1)),
        ("9999-12-31T23:59:59Z", utc(9999, 12, 31, 23, 59, 59)),
        ("2028-02-29T12:00:00Z", utc(2028, 2, 29, 12)),
    ],
)
def test_an_instant_is_read_as_utc(text: str, expected: datetime) -> None:
    read = parse_instant(text)
    assert read == expected
    assert read.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2026-11-23", "a date without a time"),
        ("", "not an instant"),
        ("tomorrow", "not an instant"),
        ("1763863200", "not an instant"),
        ("2026-11-23T02:00:00Z ", "not an instant"),
        ("2026-11-23T02:00:00Z\n", "not an instant"),
        ("2026-11-23T02Z", "not an instant"),
        ("20261123T020000Z", "not an instant"),
        ("2026-W48-1T02:00:00Z", "not an instant"),
        ("٢٠٢٦-11-23T02:00:00Z", "not an instant"),
        ("2026-11-23T02:00:00+0100", "not an instant"),
        ("2026-02-29T02:00:00Z", "day"),
        ("2026-13-01T02:00:00Z", "month"),
        ("2026-11-23T24:00:00Z", "hour"),
        ("2026-11-23T23:59:60Z", "second"),
        ("2026-11-23T02:00:00+24:00", "+24:00"),
        ("2026-11-23T02:00:00+01:60", "+01:60"),
        ("1969-12-31T23:59:59Z", "before 1970"),
        ("1970-01-01T00:30:00+01:00", "before 1970"),
        ("0001-01-01T00:30:00+01:00", "not an instant"),
        ("9999-12-31T23:59:59-01:00", "not an instant"),
    ],
)
def test_what_is_no_instant_is_refused_with_its_text_and_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InstantError) as refused:
        parse_instant(text)
    assert f"'{text[:60]}" in str(refused.value)
    assert says in str(refused.value)


def test_a_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(InstantError) as refused:
        parse_instant("x" * 100_000)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (utc(2026, 11, 23, 2), "2026-11-23T02:00:00Z"),
        (utc(2026, 11, 23, 2).replace(microsecond=1500), "2026-11-23T02:00:00.001500Z"),
        (datetime.fromisoformat("2026-11-23T02:00:00+05:00"), "2026-11-22T21:00:00Z"),
    ],
)
def test_an_instant_is_written_with_z_and_microseconds_only_where_it_has_some(moment: datetime, expected: str) -> None:
    assert format_instant(moment) == expected


def test_a_naive_datetime_is_not_written() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        format_instant(datetime(2026, 11, 23))  # noqa: DTZ001


def test_what_is_written_is_read_back() -> None:
    rng = fresh_random()
    for _ in range(2000):
        micro = rng.choice((0, 0, rng.randrange(10**6)))
        moment = utc(1970, 1, 1) + timedelta(seconds=rng.randrange(253402300799), microseconds=micro)
        assert parse_instant(format_instant(moment)) == moment


def test_a_bare_date_is_told_by_its_shape_and_read() -> None:
    assert is_date("2026-12-31")
    assert not is_date("2026-12-31T00:00:00Z")
    assert parse_date("2026-12-31") == date(2026, 12, 31)


@pytest.mark.parametrize("text", ["2026-02-29", "2026-1-1", "1969-12-31", "x", "2026-12-31T00:00:00Z"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(InstantError, match=text):
        parse_date(text)
