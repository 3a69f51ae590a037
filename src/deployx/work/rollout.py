"""How a deployment goes out: its waves, how many failures it bears, when each device starts. Pure.

What it reads of a deployment's runs, and what it does to them, is in `rollouts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

Share = int | str
"""A number of devices, or a whole percentage of them such as "25%"."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """The policy as it is stored; without one, all devices start at once and nothing stops them."""

    canary: Share | None = None
    batch_size: Share | None = None
    max_failures: Share = 0
    count_offline: bool = False
    pause_seconds: int = 0
    max_concurrent: int | None = None
    splay_seconds: int = 0

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Rollout:
        return cls(**stored)

    def waves(self, devices: int) -> list[int]:
        """The sizes of the waves in their order; the devices fill them in the order of their ids."""
        sizes: list[int] = []
        left = devices
        if self.canary is not None and left:
            sizes.append(min(left, _part_of(self.canary, devices)))
            left -= sizes[0]
        size = left if self.batch_size is None else _part_of(self.batch_size, devices)
        while left:
            sizes.append(min(left, size))
            left -= sizes[-1]
        return sizes

    def allowed_failures(self, devices: int) -> int:
        """How many devices may fail; one more stops the rollout."""
        if isinstance(self.max_failures, str):
            return int(self.max_failures.removesuffix("%")) * devices // 100
        return self.max_failures

    def offset(self, place: int, devices: int) -> timedelta:
        """How long after its wave was opened the device at `place` (from 0) of `devices` starts: evenly spread."""
        return timedelta(seconds=self.splay_seconds * place / devices)


def _part_of(share: Share, devices: int) -> int:
    """Percentages of devices round up, and are at least one device."""
    if isinstance(share, str):
        return max(1, -(-int(share.removesuffix("%")) * devices // 100))
    return share


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a deployment's devices are, each counted once, by its last attempt.

    `opened` waves may start; of the newest of them `busy` devices have neither ended nor wait offline, and `away` wait
    offline. `unopened` are the devices of later waves.
    """

    devices: int
    failed: int
    opened: int
    busy: int
    away: int
    unopened: int
    next_wave_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Halt:
    """No further device starts."""

    reason: str


@dataclass(frozen=True, slots=True)
class OpenWave:
    """The next wave may start."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The wave has ended; the next one opens at `until`."""

    until: datetime


Step = Halt | OpenWave | Pause | None


def next_step(rollout: Rollout, progress: Progress, *, now: datetime) -> Step:
    """What is to be done now; None where only time or a device's end can change anything."""
    allowed = rollout.allowed_failures(progress.devices)
    if progress.failed > allowed:
        of = f"{progress.failed} of {progress.devices} devices failed"
        return Halt(f"The rollout stopped: {of}, and {allowed} may.")
    if not progress.unopened:
        return None
    if progress.opened == 0:
        return OpenWave()
    if progress.busy or (rollout.count_offline and progress.away):
        return None
    if progress.next_wave_at is not None:
        return OpenWave() if progress.next_wave_at <= now else None
    return Pause(now + timedelta(seconds=rollout.pause_seconds)) if rollout.pause_seconds else OpenWave()
