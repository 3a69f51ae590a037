"""At what pace devices that return get the work that waited for them. Pure but for what it remembers."""

from __future__ import annotations

from datetime import datetime, timedelta

MINUTE = timedelta(minutes=1)


class Pace:
    """So many devices a minute; after a quiet minute, that many at once."""

    def __init__(self, per_minute: int) -> None:
        self._gap = MINUTE / per_minute
        self._taken_until: datetime | None = None

    def slots(self, devices: int, *, now: datetime) -> list[datetime]:
        """When each of these devices gets its work: now, or as much later as the pace asks."""
        taken = max(self._taken_until or now - MINUTE, now - MINUTE)
        slots = []
        for _ in range(devices):
            taken += self._gap
            slots.append(max(now, taken))
        self._taken_until = taken
        return slots
