"""Where the time comes from: the machine's clock in the product, a hand-moved one in tests."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The present instant, aware UTC."""

    def monotonic(self) -> float:
        """Seconds of a clock that only moves forward."""


class SystemClock:
    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()
