"""Windows and blackouts: open or not at each minute, and when the next opening is, against an oracle of minutes."""

import random
from datetime import datetime, time, timedelta

import pytest

from deployx.timing.windows import Calendar, Days, Range, State, Window
from deployx.timing.zones import find_zone
from tests.timing.oracle import fresh_random, utc

MINUTE = timedelta(minutes=1)
BERLIN = find_zone("Europe/Berlin")
NIGHT = Window(frozenset({4}), time(22), time(6), BERLIN)  # Friday night


@pytest.mark.parametrize(
    ("moment", "state"),
    [
        (utc(2026, 11, 27, 20, 59), State.CLOSED),
        (utc(2026, 11, 27, 21, 0), State.OPEN),  # 22:00 in Berlin
        (utc(2026, 11, 28, 4, 59), State.OPEN),
        (utc(2026, 11, 28, 5, 0), State.CLOSED),
        (utc(2026, 11, 28, 21, 0), State.CLOSED),  # Saturday night
        (utc(2026, 11, 26, 21, 0), State.CLOSED),
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins(moment: datetime, state: State) -> None:
    assert Calendar((NIGHT,)).state(moment)[0] is state


def test_equal_start_and_end_are_a_whole_day() -> None:
    day = Calendar((Window(frozenset({0}), time(0), time(0)),))
    assert [day.state(utc(2026, 11, 23, hour))[0] for hour in (0, 12, 23)] == [State.OPEN] * 3
    assert day.state(utc(2026, 11, 24))[0] is State.CLOSED
    assert day.next_open(utc(2026, 11, 24)) == utc(2026, 11, 30)


def test_daylight_saving_shortens_or_lengthens_a_window_and_never_closes_it_early() -> None:
    window = Calendar((Window(frozenset(range(7)), time(1), time(4), BERLIN),))
    for day, hours in ((utc(2027, 3, 27), 3), (utc(2027, 3, 28), 2), (utc(2027, 10, 31), 4)):
        opened = sum(window.state(day - timedelta(hours=3) + minute * MINUTE)[0] is State.OPEN for minute in range(600))
        assert opened == hours * 60


def test_a_blackout_beats_a_window_and_of_several_windows_one_suffices() -> None:
    noon = Window(frozenset(range(7)), time(12), time(13))
    christmas = Days(frozenset({(12, 25)}), BERLIN)
    calendar = Calendar((NIGHT, noon), (christmas, Range(utc(2026, 11, 23, 12), utc(2026, 11, 23, 12, 30))))
    assert calendar.state(utc(2026, 11, 23, 12))[0] is State.BLACKOUT
    assert calendar.state(utc(2026, 11, 23, 12, 30))[0] is State.OPEN
    assert calendar.next_open(utc(2026, 11, 23, 9)) == utc(2026, 11, 23, 12, 30)
    assert calendar.state(utc(2026, 12, 24, 22, 59))[0] is State.CLOSED
    assert calendar.state(utc(2026, 12, 24, 23, 0))[0] is State.BLACKOUT  # Christmas in Berlin
    assert calendar.next_open(utc(2026, 12, 24, 23)) == utc(2026, 12, 25, 23)  # the rest of Friday night


def test_what_never_opens_says_so_promptly() -> None:
    every_day = frozenset((month, day) for month in range(1, 13) for day in range(1, 32))
    assert Calendar((), (Days(every_day),)).next_open(utc(2026, 11, 23)) is None


def test_29_february_is_a_blackout_of_leap_years_alone() -> None:
    leap = Calendar((), (Days(frozenset({(2, 29)})),))
    assert leap.state(utc(2028, 2, 29))[0] is State.BLACKOUT
    assert leap.state(utc(2027, 3, 1))[0] is State.OPEN


def _random_calendar(rng: random.Random) -> Calendar:
    zones = [find_zone(name) for name in ("UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns")]
    windows = tuple(
        Window(
            frozenset(rng.sample(range(7), rng.randint(1, 7))),
            time(rng.randrange(24), rng.randrange(60)),
            time(rng.randrange(24), rng.randrange(60)),
            rng.choice(zones),
        )
        for _ in range(rng.randrange(3))
    )
    start_at = utc(2027, 3, 20) + rng.randrange(20_000) * MINUTE
    blackouts = (
        Range(start_at, start_at + rng.randint(1, 5000) * MINUTE),
        Days(frozenset({(rng.randint(1, 12), rng.randint(1, 28)), (3, 28)}), rng.choice(zones)),
    )
    return Calendar(windows, blackouts[: rng.randrange(3)])


def _is_open(calendar: Calendar, moment: datetime) -> bool:
    """By the wall clock of each window, written from the rule."""
    for blackout in calendar.blackouts:
        if isinstance(blackout, Range) and blackout.start_at <= moment < blackout.end_at:
            return False
        if isinstance(blackout, Days):
            wall = moment.astimezone(blackout.zone)
            if (wall.month, wall.day) in blackout.dates:
                return False
    if not calendar.windows:
        return True
    for window in calendar.windows:
        wall = moment.astimezone(window.zone)
        today, now = wall.weekday(), wall.time()
        if window.start < window.end:
            if today in window.days and window.start <= now < window.end:
                return True
        elif (today in window.days and now >= window.start) or ((today - 1) % 7 in window.days and now < window.end):
            return True
    return False


def test_states_and_openings_agree_with_the_wall_clock_minute_by_minute() -> None:
    rng = fresh_random()
    for _ in range(60):
        calendar = _random_calendar(rng)
        begin = utc(2027, 4, 2) + rng.randrange(200_000) * MINUTE  # from after the spring shifts on
        shifts = {utc(2027, 10, 31).date(), utc(2027, 10, 3).date(), utc(2027, 11, 7).date(), utc(2027, 10, 2).date()}
        minutes = [begin + number * MINUTE for number in range(3000)]
        known = [one for one in minutes if one.date() not in shifts and (one + timedelta(days=1)).date() not in shifts]
        for moment in known:
            state, until = calendar.state(moment)
            assert (state is State.OPEN) == _is_open(calendar, moment), (calendar, moment)
            assert until > moment
        opened = calendar.next_open(begin)
        expected = next((moment for moment in minutes if _is_open(calendar, moment)), None)
        if len(known) == len(minutes) and expected is not None:
            assert opened == expected
