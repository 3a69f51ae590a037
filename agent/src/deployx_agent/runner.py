"""Runs one order: its commands in turn, timeouts, rollbacks, and the result that stands in the record."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployx_agent import process
from deployx_agent.output import OutputReader
from deployx_agent.process import CannotStart, Receipt
from deployx_agent.protocol import Order, Step

OUTPUT_AFTER_END_SECONDS = 2.0
REBOOT_CODES = frozenset({3010, 1641})
"""Success, and a restart is required or was begun (Microsoft, "MsiExec.exe and InstMsi.exe error messages")."""


@dataclass(slots=True)
class StepResult:
    """What became of one command."""

    index: int
    kind: str
    status: str
    exit_code: int | None = None
    duration_seconds: float | None = None
    detail: str | None = None

    def as_message(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "kind": self.kind,
            "status": self.status,
            "exit_code": self.exit_code,
            "duration_seconds": self.duration_seconds,
            "detail": self.detail,
        }


class Run:
    """One order under way. `run` once; `cancel` at any time."""

    def __init__(
        self, order: Order, *, emit: Callable[[int, str, str], None], on_start: Callable[[], None],
        grace_seconds: float = process.KILL_AFTER_SECONDS,
    ) -> None:  # fmt: skip
        self._order = order
        self._work = order.work
        self._reader = OutputReader(order.work.output_limit_bytes, emit)
        self._on_start: Callable[[], None] | None = on_start
        self._grace_seconds = grace_seconds
        self._stopped = asyncio.Event()
        self._stop_status = "cancelled"
        self._receipt = Receipt()
        self._steps: list[StepResult] = []

    def stop(self, status: str = "cancelled") -> None:
        """End the run as `cancelled` or `interrupted`: the process tree is ended, what comes after does not start."""
        self._stop_status = status
        self._stopped.set()

    async def run(self) -> dict[str, Any]:
        """Run the order to its end; answers the fields of the `finished` message."""
        began = time.monotonic()
        failed = await self._run_commands()
        last = len(self._work.steps) - 1
        status = self._status(failed)
        if failed and not self._stopped.is_set() and self._work.strategy == "transactional":
            status = await self._roll_back(status)
        self._reader.end_run(last)
        deciding = failed[0] if failed else next((one for one in reversed(self._steps) if one.kind == "command"), None)
        return {
            "status": status,
            "exit_code": deciding.exit_code if deciding else None,
            "reason": self._reason(status, deciding),
            "duration_seconds": round(time.monotonic() - began, 6),
            "steps": [one.as_message() for one in self._steps],
            "truncated": self._reader.truncated,
            "replaced_bytes": self._reader.replaced_bytes,
            "receipt": self._receipt.as_message() if self._stopped.is_set() else None,
        }

    async def _run_commands(self) -> list[StepResult]:
        """Run the commands in order; answers those that did not succeed."""
        failed: list[StepResult] = []
        for step in self._work.steps:
            if self._stopped.is_set() or (failed and self._work.stop_on_failure):
                why = "stopped before it began" if self._stopped.is_set() else "an earlier command failed"
                self._steps.append(StepResult(step.index, "command", "skipped", detail=f"Not run: {why}."))
                continue
            result = await self._run_command(step.index, "command", step.run, step.timeout_seconds)
            self._steps.append(result)
            if result.status != "succeeded":
                failed.append(result)
        return failed

    def _status(self, failed: list[StepResult]) -> str:
        if self._stopped.is_set():
            return self._stop_status
        if not failed:
            return "succeeded"
        return "timed_out" if failed[0].status == "timed_out" else "failed"

    async def _roll_back(self, status: str) -> str:
        """Undo, in reverse order, what was done and what timed out; answers the run's status."""
        begun = {one.index: one.status for one in self._steps if one.status in ("succeeded", "timed_out")}
        undo = [step for step in self._work.steps if step.rollback is not None and step.index in begun]
        results = []
        for step in reversed(undo):
            results.append(await self._run_rollback(step))
        self._steps += results
        if not results:
            return status
        return "rolled_back" if all(one.status == "succeeded" for one in results) else "failed"

    async def _run_rollback(self, step: Step) -> StepResult:
        return await self._run_command(step.index, "rollback", step.rollback or "", step.timeout_seconds)

    async def _run_command(self, index: int, kind: str, command: str, timeout_seconds: float) -> StepResult:
        began = time.monotonic()
        line: process.CommandLine | None = None
        try:
            line = process.command_line(self._work.shell, command)
            started = await process.start(
                line,
                lambda stream, block: self._reader.feed(index, stream, block),
                environment=process.inherited_environment(
                    self._order.order_id, {**self._work.env, **self._order.environment}
                ),
                directory=self._work.working_directory,
                run_as=self._work.run_as,
            )
            began = time.monotonic()
            self._tell_started()
            status = await self._wait(index, started, timeout_seconds)
        except CannotStart as error:
            return StepResult(index, kind, "failed", detail=str(error))
        finally:
            if line is not None and line.script is not None:
                line.script.unlink(missing_ok=True)
        code = started.exit_code
        duration = round(time.monotonic() - began, 6)
        if status == "ended":
            status, detail = self._judged(code)
        else:
            detail = f"Ended after {timeout_seconds} seconds." if status == "timed_out" else "Stopped."
        return StepResult(index, kind, status, code, duration, detail)

    def _tell_started(self) -> None:
        if self._on_start is not None:
            self._on_start()
            self._on_start = None

    def _judged(self, code: int | None) -> tuple[str, str | None]:
        if code in self._work.success_exit_codes:
            return "succeeded", None
        if sys.platform == "win32" and code in REBOOT_CODES:
            return "succeeded", "A restart is required."
        if code is not None and code < 0:
            return "failed", f"Ended by signal {-code}."
        return "failed", None

    async def _wait(self, index: int, started: process.Started, timeout_seconds: float) -> str:
        """Wait for the shell, its timeout or a stop; answers `ended`, `timed_out` or `failed`."""
        shell, stop = asyncio.create_task(started.exited.wait()), asyncio.create_task(self._stopped.wait())
        status = "ended"
        try:
            done, _ = await asyncio.wait({shell, stop}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if shell not in done:
                status = "failed" if stop in done else "timed_out"
                self._receipt.add(
                    await process.end_tree(started.pid, self._order.order_id, grace_seconds=self._grace_seconds)
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(OUTPUT_AFTER_END_SECONDS):
                    await shell
                    await started.pipes_closed.wait()
        finally:
            for waiting in (shell, stop):
                waiting.cancel()
            started.transport.close()  # closes pipes that a child left behind still holds open
            self._reader.end_step(index)
        return status

    def _reason(self, status: str, deciding: StepResult | None) -> str | None:
        if status == "succeeded":
            return None
        if status == "cancelled":
            return "Cancelled."
        if status == "interrupted":
            return "The agent was stopped while this ran."
        if deciding is None:
            return None
        if deciding.detail:
            return deciding.detail if len(self._work.steps) == 1 else f"Command {deciding.index}: {deciding.detail}"
        return f"Command {deciding.index} ended with exit code {deciding.exit_code}."
