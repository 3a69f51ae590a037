"""What all kinds of work share: steps and their results, stopping, running one process to its end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deployx_agent import process
from deployx_agent.output import Emit, OutputReader
from deployx_agent.process import Receipt, Started
from deployx_agent.protocol import REASON_CHARACTERS
from deployx_agent.shells import CannotStart

OUTPUT_AFTER_END_SECONDS = 2.0
REBOOT_CODES = frozenset({3010, 1641})
"""Success, and a restart is required or was begun (Microsoft, "MsiExec.exe and InstMsi.exe error messages")."""

FAILED = ("failed", "timed_out")
"""Statuses of a step that did not do what it was to."""

Take = Callable[[str, bytes], None]
Start = Callable[[Take], Awaitable[Started]]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of one step; `kind` is command, rollback, reboot, download, place, detect, install or uninstall."""

    index: int
    kind: str
    status: str
    exit_code: int | None = None
    duration_seconds: float | None = None
    detail: str | None = None


def skipped(index: int, kind: str, why: str) -> StepResult:
    return StepResult(index, kind, "skipped", detail=why)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the work ended, unless it was stopped; `deciding` is the step that says so."""

    status: str
    deciding: StepResult | None
    reason: str | None = None


class Action(ABC):
    """One order under way. `run` once; `stop` at any time."""

    is_rebooting = False
    """While it is, the end of the agent ends nothing: the order goes on after the restart."""

    def __init__(
        self, *, output_limit_bytes: int, emit: Emit, on_start: Callable[[], None],
        grace_seconds: float = process.KILL_AFTER_SECONDS,
    ) -> None:  # fmt: skip
        self.steps: list[StepResult] = []
        self.stopped = asyncio.Event()
        self.reboot_required = False
        self._reader = OutputReader(output_limit_bytes, emit)
        self._on_start: Callable[[], None] | None = on_start
        self._grace_seconds = grace_seconds
        self._stop_status = "cancelled"
        self._cut_short = False
        self._receipt: Receipt | None = None

    def stop(self, status: str = "cancelled") -> None:
        """End the run as `cancelled` or `interrupted`: the process tree is ended, what comes after does not start."""
        if not self.stopped.is_set():
            self._stop_status = status
            self.stopped.set()

    async def run(self) -> dict[str, Any]:
        """Run the order to its end; answers the fields of the `finished` message."""
        began = time.monotonic()
        outcome = await self.work()
        status = outcome.status
        if self._cut_short:
            status = self._stop_status
            self._receipt = self._receipt or Receipt()
        self._reader.end_run(self.steps[-1].index if self.steps else 0)
        return {
            "status": status,
            "exit_code": outcome.deciding.exit_code if outcome.deciding else None,
            "reason": _reason(status, outcome),
            "duration_seconds": round(time.monotonic() - began, 6),
            "steps": [asdict(one) for one in self.steps],
            "truncated": self._reader.truncated,
            "replaced_bytes": self._reader.replaced_bytes,
            "reboot_required": self.reboot_required,
            "receipt": self._receipt.as_message() if self._receipt else None,
        }

    @abstractmethod
    async def work(self) -> Outcome:
        """Do the work, adding to `steps`; called once."""

    def started(self) -> None:
        """Tell once that the work has begun."""
        if self._on_start is not None:
            self._on_start()
            self._on_start = None

    def cut_short(self) -> None:
        """Something was left undone because of a stop."""
        self._cut_short = True

    def not_reached(self, index: int, kind: str, why: str) -> StepResult:
        """Note a step that does not run: because of a stop, or for the reason given."""
        if self.stopped.is_set():
            self.cut_short()
            why = "stopped before it began"
        self.steps.append(skipped(index, kind, f"Not run: {why}."))
        return self.steps[-1]

    async def process(
        self, index: int, kind: str, start: Start, timeout_seconds: float, success_exit_codes: Sequence[int] = (0,)
    ) -> StepResult:
        """Run one process to its end, its timeout or a stop; answers the step's result."""
        try:
            running = await start(lambda stream, block: self._reader.feed(index, stream, block))
        except CannotStart as error:
            return StepResult(index, kind, "failed", detail=str(error)[:REASON_CHARACTERS])
        began = time.monotonic()
        self.started()
        status, detail = await self._wait(index, running, timeout_seconds, success_exit_codes)
        return StepResult(index, kind, status, running.exit_code, round(time.monotonic() - began, 6), detail)

    async def _wait(
        self, index: int, running: Started, timeout_seconds: float, success_exit_codes: Sequence[int]
    ) -> tuple[str, str | None]:
        """Wait for the process, its timeout or a stop; answers the step's status and its detail."""
        ended, stop = asyncio.create_task(running.exited.wait()), asyncio.create_task(self.stopped.wait())
        try:
            done, _ = await asyncio.wait({ended, stop}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            verdict: tuple[str, str | None] | None = None
            if ended not in done:
                self._cut_short = self._cut_short or stop in done
                left = await self._end_tree(running)
                said = "Stopped." if stop in done else f"Ended after its timeout of {timeout_seconds} s."
                verdict = "failed" if stop in done else "timed_out", said + left
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OUTPUT_AFTER_END_SECONDS):
                    await ended
                    await running.pipes_closed.wait()
        finally:
            for waiting in (ended, stop):
                waiting.cancel()
            running.let_go()
            self._reader.end_step(index)
        return verdict or self._judged(running.exit_code, success_exit_codes)

    async def _end_tree(self, running: Started) -> str:
        """End the processes and note it in the receipt; answers a sentence about those that survived, or nothing."""
        receipt = await process.end_tree(running.tree, grace_seconds=self._grace_seconds)
        self._receipt = self._receipt or Receipt()
        self._receipt.add(receipt)
        if not receipt.survived:
            return ""
        return f" Still there, although killed: process {', '.join(map(str, receipt.survived))}."

    def _judged(self, code: int | None, success_exit_codes: Sequence[int]) -> tuple[str, str | None]:
        if code in success_exit_codes:
            return "succeeded", None
        if sys.platform == "win32" and code in REBOOT_CODES:
            self.reboot_required = True
            return "succeeded", "A restart is required."
        if code is not None and code < 0:
            return "failed", f"Ended by signal {-code}."
        return "failed", None


def _reason(status: str, outcome: Outcome) -> str | None:
    match status:
        case "succeeded":
            return None
        case "cancelled":
            return "Cancelled."
        case "interrupted":
            return "The agent was stopped while this ran."
        case _:
            return (outcome.reason or "")[:REASON_CHARACTERS] or None


class Forbidden(Action):
    """An order that the device's own limits do not allow."""

    def __init__(self, why: str, **shared: Any) -> None:
        super().__init__(output_limit_bytes=0, **shared)
        self._why = why

    async def work(self) -> Outcome:
        return Outcome("failed", None, self._why)
