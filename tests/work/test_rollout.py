"""The decisions of a rollout, of retries and of the pace of returning devices: pure, so checked exhaustively."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise
from math import ceil, floor
from typing import Any

import pytest

from deployx.work.pacing import Pace
from deployx.work.retry import Retry
from deployx.work.rollout import Halt, OpenWave, Pause, Progress, Rollout, next_step
from tests.work.spine import NOW


def _at(rollout: Rollout, **values: Any) -> object:
    somewhere = Progress(devices=10, failed=0, opened=1, busy=0, away=0, unopened=5)
    return next_step(rollout, replace(somewhere, **values), now=NOW)


def test_a_rollout_stops_at_exactly_the_failure_after_those_allowed() -> None:
    for devices in range(1, 201):
        for percent in range(101):
            rollout = Rollout(max_failures=f"{percent}%")
            allowed = floor(Fraction(percent, 100) * devices)
            stops_at = [
                failed
                for failed in range(devices + 1)
                if isinstance(_at(rollout, devices=devices, failed=failed, busy=1), Halt)
            ]
            assert stops_at == list(range(allowed + 1, devices + 1)), (devices, percent)


def test_devices_fail_one_after_the_other_and_no_more_start_than_had_when_the_budget_was_exceeded() -> None:
    """The whole course: one device at a time, all of them fail; as many ran as may fail, and one."""
    for devices in range(1, 201):
        for percent in range(0, 101, 5):
            rollout = Rollout(max_failures=f"{percent}%", batch_size=1)
            opened = failed = 0
            while not isinstance(
                step := _at(rollout, devices=devices, failed=failed, opened=opened, unopened=devices - opened), Halt
            ):
                if step is None:
                    break
                assert isinstance(step, OpenWave)
                opened, failed = opened + 1, failed + 1
            assert failed == min(devices, floor(Fraction(percent, 100) * devices) + 1)


def test_waves_cover_each_device_once_with_the_canary_first_and_percentages_rounded_up() -> None:
    for devices in range(201):
        for percent in (1, 5, 25, 33, 50, 100):
            waves = Rollout(canary=f"{percent}%", batch_size=f"{percent}%").waves(devices)
            size = max(1, ceil(Fraction(percent, 100) * devices))
            assert sum(waves) == devices
            assert all(wave == size for wave in waves[:-1])
            assert all(1 <= wave <= size for wave in waves)
    assert Rollout().waves(7) == [7]
    assert Rollout(canary=2).waves(7) == [2, 5]
    assert Rollout(canary=20).waves(7) == [7]
    assert Rollout(canary=1, batch_size=3).waves(8) == [1, 3, 3, 1]
    assert Rollout(batch_size=3).waves(0) == []


@pytest.mark.parametrize(
    ("rollout", "where", "step"),
    [
        (Rollout(), {"opened": 0}, OpenWave()),
        (Rollout(), {"busy": 1}, None),
        (Rollout(), {}, OpenWave()),
        (Rollout(), {"away": 3}, OpenWave()),
        (Rollout(count_offline=True), {"away": 3}, None),
        (Rollout(), {"unopened": 0}, None),
        (Rollout(pause_seconds=60), {}, Pause(NOW + timedelta(seconds=60))),
        (Rollout(pause_seconds=60), {"busy": 1}, None),
        (Rollout(pause_seconds=60), {"opened": 0}, OpenWave()),
        (Rollout(max_failures=3), {"failed": 3}, OpenWave()),
        (
            Rollout(max_failures=3), {"failed": 4, "unopened": 0},
            Halt("The rollout stopped: 4 of 10 devices failed, and 3 may."),
        ),
    ],
)  # fmt: skip
def test_what_a_rollout_does_next(rollout: Rollout, where: dict[str, int], step: object) -> None:
    assert _at(rollout, **where) == step


def test_a_pause_between_waves_ends_at_its_moment_and_not_before() -> None:
    rollout = Rollout(pause_seconds=60)
    waiting = Progress(devices=4, failed=0, opened=1, busy=0, away=0, unopened=2, next_wave_at=NOW)
    assert next_step(rollout, waiting, now=NOW - timedelta(microseconds=1)) is None
    assert next_step(rollout, waiting, now=NOW) == OpenWave()


def test_a_splay_spreads_its_devices_evenly_and_none_at_its_end() -> None:
    rollout = Rollout(splay_seconds=60)
    moments = [rollout.offset(place, 8) for place in range(8)]
    assert moments[0] == timedelta(0)
    assert {later - earlier for earlier, later in pairwise(moments)} == {timedelta(seconds=7.5)}


def test_delays_grow_up_to_their_maximum_and_jitter_takes_at_most_half() -> None:
    plain = Retry(max_attempts=100, initial_delay_seconds=30, multiplier=2, max_delay_seconds=3600, jitter=False)
    waits = [plain.delay(attempt, "f" * 32).total_seconds() for attempt in (1, 2, 3, 7, 8, 99)]
    assert waits == [30, 60, 120, 1920, 3600, 3600]
    spread = Retry(max_attempts=5, jitter=True)
    for order_id in ("0" * 32, "8" * 32, "f" * 32):
        delay = spread.delay(2, order_id)
        assert timedelta(seconds=30) <= delay <= timedelta(seconds=60)
        assert delay == spread.delay(2, order_id)
    assert spread.delay(2, "0" * 32) != spread.delay(2, "f" * 32)


def test_only_the_endings_named_are_tried_again_and_only_as_often_as_allowed() -> None:
    retry = Retry(max_attempts=3, on=("failed",))
    assert [retry.again("failed", attempt) for attempt in (1, 2, 3)] == [True, True, False]
    assert not retry.again("timed_out", 1)
    assert not Retry().again("failed", 1)


def test_a_minutes_worth_of_devices_goes_at_once_and_the_rest_at_the_pace() -> None:
    pace = Pace(60)
    slots = pace.slots(120, now=NOW)
    assert slots[:60] == [NOW] * 60
    assert slots[60:] == [NOW + timedelta(seconds=place) for place in range(1, 61)]
    assert pace.slots(1, now=NOW + timedelta(seconds=30)) == [NOW + timedelta(seconds=61)]
    assert pace.slots(60, now=NOW + timedelta(hours=1)) == [NOW + timedelta(hours=1)] * 60
