"""Runs one order: its commands in turn, timeouts, rollbacks, and the result that stands in the record."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from deployx_agent import process
from deployx_agent.output import Emit, OutputReader
from deployx_agent.process import Receipt, Started, Surroundings
from deployx_agent.protocol import REASON_CHARACTERS, Order
from deployx_agent.shells import CannotStart

OUTPUT_AFTER_END_SECONDS = 2.0
REBOOT_CODES = frozenset({3010, 1641})
"""Success, and a restart is required or was begun (Microsoft, "MsiExec.exe and InstMsi.exe error messages")."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What became of one command; `kind` is command or rollback."""

    index: int
    kind: str
    status: str
    exit_code: int | None = None
    duration_seconds: float | None = None
    detail: str | None = None


class Run:
    """One order under way. `run` once; `stop` at any time."""

    def __init__(
        self, order: Order, *, emit: Emit, on_start: Callable[[], None],
        grace_seconds: float = process.KILL_AFTER_SECONDS,
    ) -> None:  # fmt: skip
        self._work = order.work
        self._around = Surroundings(
            order.order_id, {**order.work.env, **order.environment}, order.work.working_directory, order.work.run_as
        )
        self._reader = OutputReader(order.work.output_limit_bytes, emit)
        self._on_start: Callable[[], None] | None = on_start
        self._grace_seconds = grace_seconds
        self._stopped = asyncio.Event()
        self._stop_status = "cancelled"
        self._cut_short = False
        self._receipt: Receipt | None = None
        self._steps: list[StepResult] = []

    def stop(self, status: str = "cancelled") -> None:
        """End the run as `cancelled` or `interrupted`: the process tree is ended, what comes after does not start."""
        if not self._stopped.is_set():
            self._stop_status = status
            self._stopped.set()

    async def run(self) -> dict[str, Any]:
        """Run the order to its end; answers the fields of the `finished` message."""
        began = time.monotonic()
        failed = await self._run_commands()
        status = self._status(failed)
        if failed and not self._cut_short and self._work.strategy == "transactional":
            status = await self._roll_back(status)
        if self._cut_short:
            status = self._stop_status
            self._receipt = self._receipt or Receipt()
        self._reader.end_run(self._work.steps[-1].index if self._work.steps else 0)
        deciding = failed[0] if failed else next((one for one in reversed(self._steps) if one.kind == "command"), None)
        return {
            "status": status,
            "exit_code": deciding.exit_code if deciding else None,
            "reason": self._reason(status, deciding),
            "duration_seconds": round(time.monotonic() - began, 6),
            "steps": [asdict(one) for one in self._steps],
            "truncated": self._reader.truncated,
            "replaced_bytes": self._reader.replaced_bytes,
            "receipt": self._receipt.as_message() if self._receipt else None,
        }

    async def _run_commands(self) -> list[StepResult]:
        """Run the commands in order; answers those that did not succeed."""
        failed: list[StepResult] = []
        for step in self._work.steps:
            if self._stopped.is_set():
                self._skip(step.index, "command", "stopped before it began")
            elif failed and self._work.stop_on_failure:
                self._steps.append(_skipped(step.index, "command", "an earlier command failed"))
            else:
                result = await self._run_command(step.index, "command", step.run, step.timeout_seconds)
                self._steps.append(result)
                if result.status != "succeeded":
                    failed.append(result)
        return failed

    def _skip(self, index: int, kind: str, why: str) -> None:
        self._cut_short = True
        self._steps.append(_skipped(index, kind, why))

    def _status(self, failed: list[StepResult]) -> str:
        if not failed:
            return "succeeded"
        return "timed_out" if failed[0].status == "timed_out" else "failed"

    async def _roll_back(self, status: str) -> str:
        """Undo, in reverse order, what was done and what timed out; answers the run's status."""
        begun = {one.index for one in self._steps if one.status in ("succeeded", "timed_out")}
        results = []
        for step in reversed(self._work.steps):
            if step.rollback is None or step.index not in begun:
                continue
            if self._stopped.is_set():
                self._skip(step.index, "rollback", "stopped before it began")
                continue
            results.append(await self._run_command(step.index, "rollback", step.rollback, step.timeout_seconds))
            self._steps.append(results[-1])
        if not results:
            return status
        return "rolled_back" if all(one.status == "succeeded" for one in results) else "failed"

    async def _run_command(self, index: int, kind: str, command: str, timeout_seconds: float) -> StepResult:
        try:
            started = await process.start(
                self._work.shell, command, self._around, lambda stream, block: self._reader.feed(index, stream, block)
            )
        except CannotStart as error:
            return StepResult(index, kind, "failed", detail=str(error)[:REASON_CHARACTERS])
        began = time.monotonic()
        if self._on_start is not None:
            self._on_start()
            self._on_start = None
        status, detail = await self._wait(index, started, timeout_seconds)
        return StepResult(index, kind, status, started.exit_code, round(time.monotonic() - began, 6), detail)

    async def _wait(self, index: int, started: Started, timeout_seconds: float) -> tuple[str, str | None]:
        """Wait for the shell, its timeout or a stop; answers the step's status and its detail."""
        shell, stop = asyncio.create_task(started.exited.wait()), asyncio.create_task(self._stopped.wait())
        try:
            done, _ = await asyncio.wait({shell, stop}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            verdict: tuple[str, str | None] | None = None
            if shell not in done:
                self._cut_short = self._cut_short or stop in done
                left = await self._end_tree(started)
                ended = "Stopped." if stop in done else f"Ended after its timeout of {timeout_seconds} s."
                verdict = "failed" if stop in done else "timed_out", ended + left
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OUTPUT_AFTER_END_SECONDS):
                    await shell
                    await started.pipes_closed.wait()
        finally:
            for waiting in (shell, stop):
                waiting.cancel()
            started.let_go()
            self._reader.end_step(index)
        return verdict or self._judged(started.exit_code)

    async def _end_tree(self, started: Started) -> str:
        """End the processes and note it in the receipt; answers a sentence about those that survived, or nothing."""
        receipt = await process.end_tree(started.tree, grace_seconds=self._grace_seconds)
        self._receipt = self._receipt or Receipt()
        self._receipt.add(receipt)
        if not receipt.survived:
            return ""
        return f" Still there, although killed: process {', '.join(map(str, receipt.survived))}."

    def _judged(self, code: int | None) -> tuple[str, str | None]:
        if code in self._work.success_exit_codes:
            return "succeeded", None
        if sys.platform == "win32" and code in REBOOT_CODES:
            return "succeeded", "A restart is required."
        if code is not None and code < 0:
            return "failed", f"Ended by signal {-code}."
        return "failed", None

    def _reason(self, status: str, deciding: StepResult | None) -> str | None:
        match status:
            case "succeeded":
                return None
            case "cancelled":
                return "Cancelled."
            case "interrupted":
                return "The agent was stopped while this ran."
            case _ if deciding is None:
                return None
            case _ if not deciding.detail:
                return f"Command {deciding.index} ended with exit code {deciding.exit_code}."
            case _:
                return deciding.detail if len(self._work.steps) == 1 else f"Command {deciding.index}: {deciding.detail}"


def _skipped(index: int, kind: str, why: str) -> StepResult:
    return StepResult(index, kind, "skipped", detail=f"Not run: {why}.")
