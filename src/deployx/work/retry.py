"""Which ended run is tried again, and when. Pure; writing the attempts is for `attempts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

RETRIED = ("failed", "timed_out", "interrupted", "lost", "expired")


@dataclass(frozen=True, slots=True)
class Retry:
    """The policy as it is stored; without one, there is one attempt."""

    max_attempts: int = 1
    initial_delay_seconds: int = 30
    multiplier: float = 2
    max_delay_seconds: int = 3600
    jitter: bool = True
    on: tuple[str, ...] = RETRIED

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Retry:
        return cls(**(dict(stored) | {"on": tuple(stored["on"])}))

    def again(self, status: str, attempt: int) -> bool:
        """Whether a run that ended so at this attempt (from 1) is tried again."""
        return attempt < self.max_attempts and status in self.on

    def delay(self, attempt: int, order_id: str) -> timedelta:
        """How long to wait after the end of `attempt`: it grows from attempt to attempt up to its maximum.

        With jitter it is between half of that and the whole, the same for the same order after a restart.
        """
        seconds = float(self.initial_delay_seconds)
        for _ in range(attempt - 1):
            seconds = min(seconds * self.multiplier, self.max_delay_seconds)
        seconds = min(seconds, self.max_delay_seconds)
        if self.jitter:
            seconds *= 0.5 + int(order_id[:8], 16) / 2**33
        return timedelta(seconds=seconds)
