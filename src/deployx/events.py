"""Hints between the parts of one process: "look again". They carry no truth and may be lost without harm."""

from __future__ import annotations

import asyncio
from enum import StrEnum


class Hint(StrEnum):
    TASKS = "tasks"  # a task may be due sooner than the clock thinks
    RUNS = "runs"  # runs are queued, or are to be cancelled


class Hints:
    """One remembered wake-up per kind: given while its reader is busy, it is found at the next wait."""

    def __init__(self) -> None:
        self._events = {kind: asyncio.Event() for kind in Hint}

    def give(self, *kinds: Hint) -> None:
        for kind in kinds:
            self._events[kind].set()

    async def wait(self, kind: Hint, seconds: float) -> bool:
        """Wait for a hint, at most `seconds` of monotonic time; True if one came."""
        event = self._events[kind]
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        finally:
            event.clear()
        return True
