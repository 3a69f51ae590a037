"""Wall clocks and instants where zones shift."""

from datetime import UTC, date, datetime, timedelta

import pytest

from deployx.timing.zones import ZoneError, end_of_day, find_zone, shifts_between, to_instant, to_wall, zone_name
from tests.timing.oracle import utc


def wall(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("zone", "at", "expected"),
    [
        ("UTC", "2026-11-23T02:00", utc(2026, 11, 23, 2)),
        ("Asia/Kolkata", "2026-11-23T02:00", utc(2026, 11, 22, 20, 30)),
        # Berlin skips 02:00-03:00 on 28 March 2027 and repeats it on 31 October.
        ("Europe/Berlin", "2027-03-28T01:59:59", utc(2027, 3, 28, 0, 59, 59)),
        ("Europe/Berlin", "2027-03-28T02:00", utc(2027, 3, 28, 1)),
        ("Europe/Berlin", "2027-03-28T02:30", utc(2027, 3, 28, 1)),
        ("Europe/Berlin", "2027-03-28T02:59:59", utc(2027, 3, 28, 1)),
        ("Europe/Berlin", "2027-03-28T03:00", utc(2027, 3, 28, 1)),
        ("Europe/Berlin", "2027-10-31T02:30", utc(2027, 10, 31, 0, 30)),
        ("Europe/Berlin", "2027-10-31T03:00", utc(2027, 10, 31, 2)),
        # Lord Howe shifts by half an hour: 02:00-02:30 on 3 October 2027, back on 4 April.
        ("Australia/Lord_Howe", "2027-10-03T02:15", utc(2027, 10, 2, 15, 30)),
        ("Australia/Lord_Howe", "2027-10-03T02:30", utc(2027, 10, 2, 15, 30)),
        ("Australia/Lord_Howe", "2027-04-04T01:45", utc(2027, 4, 3, 14, 45)),
        # Samoa left out 30 December 2011.
        ("Pacific/Apia", "2011-12-30T12:00", utc(2011, 12, 30, 10)),
        ("Pacific/Apia", "2011-12-31T00:00", utc(2011, 12, 30, 10)),
        # Sao Paulo skipped midnight on 4 November 2018.
        ("America/Sao_Paulo", "2018-11-04T00:30", utc(2018, 11, 4, 3)),
        ("America/New_York", "9999-12-31T23:59", datetime.max.replace(tzinfo=UTC)),
    ],
)
def test_a_wall_time_is_due_once_even_where_the_clock_skips_or_repeats_it(
    zone: str, at: str, expected: datetime
) -> None:
    assert to_instant(wall(at), find_zone(zone)) == expected


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca"])
def test_later_wall_times_never_give_earlier_instants(zone: str) -> None:
    place = find_zone(zone)
    at, last = wall("2018-01-01T00:00"), utc(2000, 1, 1)
    while at < wall("2019-01-01T00:00"):
        moment = to_instant(at, place)
        assert moment >= last
        at, last = at + timedelta(minutes=15), moment


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Europe/Kyv", "Did you mean 'Europe/Kyiv'?"),
        ("utc", "Did you mean 'UTC'?"),
        ("Mars/Base", "Use a name like"),
        ("", "Use a name like"),
        ("../etc/passwd", "unknown"),
        ("localtime", "unknown"),
        ("Factory", "unknown"),
        ("Europe", "unknown"),
    ],
)
def test_an_unknown_zone_is_refused_with_a_near_name(name: str, says: str) -> None:
    with pytest.raises(ZoneError) as refused:
        find_zone(name)
    assert f"'{name}'" in str(refused.value)
    assert says in str(refused.value)


def test_a_zone_keeps_its_name() -> None:
    for name in ("UTC", "Europe/Berlin", "Etc/GMT+5"):
        assert zone_name(find_zone(name)) == name


def test_the_end_of_a_day_is_its_last_microsecond_there() -> None:
    tick = timedelta(microseconds=1)
    assert end_of_day(date(2026, 11, 23), UTC) == utc(2026, 11, 24) - tick
    assert end_of_day(date(2026, 11, 23), find_zone("Europe/Berlin")) == utc(2026, 11, 23, 23) - tick
    # Sao Paulo set its clocks from midnight back to 23:00 on 17 February 2018: the hour counts to the day, twice.
    assert end_of_day(date(2018, 2, 17), find_zone("America/Sao_Paulo")) == utc(2018, 2, 18, 3) - tick


def test_the_shifts_of_a_stretch_are_told_in_order_with_their_offsets() -> None:
    hour = timedelta(hours=1)
    shifts = list(shifts_between(utc(2027, 1, 1), utc(2028, 1, 1), find_zone("Europe/Berlin")))
    assert shifts == [(utc(2027, 3, 28, 1), hour, 2 * hour), (utc(2027, 10, 31, 1), 2 * hour, hour)]
    assert list(shifts_between(utc(2027, 3, 28, 1), utc(2027, 10, 31), find_zone("Europe/Berlin"))) == []
    assert list(shifts_between(utc(2020, 1, 1), utc(2030, 1, 1), UTC)) == []


def test_the_wall_clock_is_shown_without_zone_and_fold() -> None:
    shown = to_wall(utc(2027, 10, 31, 1, 30), find_zone("Europe/Berlin"))
    assert shown == wall("2027-10-31T02:30")
    assert (shown.tzinfo, shown.fold) == (None, 0)
