"""Where the time comes from: the machine's clock in the product, a hand-moved one in tests and simulations.

Also notices that the machine's clock was set: wall time then moved by more than monotonic time did.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

STEP_AFTER = timedelta(seconds=60)
HOLD_SECONDS = 10.0
REMEMBER_STEPS = 16


class Clock(Protocol):
    steps: ClockSteps

    def now(self) -> datetime:
        """The present instant, aware UTC."""

    def monotonic(self) -> float:
        """Seconds of a clock that only moves forward."""


class ClockSteps:
    """Compares wall with monotonic time at each look; after a step nothing fires for ten seconds.

    `stepped_over` holds the newest stretches (from, to] that the clock was set past. A step back leaves none: what
    was accounted for stays so, and the time that comes twice owes nothing new.
    """

    def __init__(self) -> None:
        self._last: tuple[datetime, float] | None = None
        self._hold_until = float("-inf")
        self._spans: list[tuple[datetime, datetime]] = []

    @property
    def stepped_over(self) -> Sequence[tuple[datetime, datetime]]:
        return self._spans

    def observe(self, wall: datetime, monotonic: float) -> timedelta:
        """Note what the clocks show; answers how far the wall clock was stepped since the last look, mostly zero."""
        last, self._last = self._last, (wall, monotonic)
        if last is None:
            return timedelta(0)
        expected = last[0] + timedelta(seconds=monotonic - last[1])
        step = wall - expected
        if abs(step) <= STEP_AFTER:
            return timedelta(0)
        self._hold_until = monotonic + HOLD_SECONDS
        if step > timedelta(0):
            self._spans = [*self._spans, (expected, wall)][-REMEMBER_STEPS:]
        return step

    def holds(self, monotonic: float) -> float:
        """For how many seconds nothing is to fire yet."""
        return max(0.0, self._hold_until - monotonic)


class SystemClock:
    def __init__(self) -> None:
        self.steps = ClockSteps()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves by hand; wall and monotonic time apart, so that a step can be shown."""

    def __init__(self, now: datetime) -> None:
        self.steps = ClockSteps()
        self._now = now
        self._monotonic = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def pass_to(self, moment: datetime) -> None:
        """Let time pass until `moment`."""
        self._monotonic += (moment - self._now).total_seconds()
        self._now = moment

    def set_to(self, moment: datetime) -> None:
        """Set the wall clock, as an administrator would: no time passes."""
        self._now = moment
