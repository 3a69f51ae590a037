"""Runs commands: one after the other, with rollbacks in reverse order, and restarts of the device in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from deployx_agent import process
from deployx_agent.actions.action import Action, Outcome, StepResult
from deployx_agent.process import Surroundings
from deployx_agent.protocol import Order
from deployx_agent.work import CommandWork, Step

BOOT_LOOKED_AT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What stands in the journal while the device restarts: the results so far, and the step that restarts it.

    `began` is the system's monotonic time, which tells something only while the boot id is the same.
    """

    boot_id: str | None
    index: int
    began: float
    steps: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Progress:
        return cls(**stored)


@dataclass(frozen=True, slots=True)
class Rebooting:
    """How this device restarts: what tells one boot from another, what begins a restart, what writes it down first."""

    boot_id: Callable[[], str | None]
    restart: Callable[[], Awaitable[str | None]]
    """Begins the restart; answers in words why it cannot."""
    write_down: Callable[[Mapping[str, Any]], Awaitable[None]]
    go_on: Callable[[], Awaitable[None]]
    """Writes down that commands run again: from here on the end of the agent is the end of the order."""


class Commands(Action):
    """The commands of one order."""

    def __init__(
        self, order: Order, work: CommandWork, rebooting: Rebooting, progress: Progress | None = None, **shared: Any
    ) -> None:
        super().__init__(output_limit_bytes=work.output_limit_bytes, **shared)
        self._work = work
        self._around = Surroundings(
            order.order_id, {**work.env, **order.environment}, work.working_directory, work.run_as
        )
        self._rebooting = rebooting
        self._progress = progress

    async def work(self) -> Outcome:
        failed = await self._run_commands()
        status = _status(failed)
        if failed and not self._cut_short and self._work.strategy == "transactional":
            status = await self._roll_back(status)
        done = [one for one in self.steps if one.kind in ("command", "reboot") and one.status != "skipped"]
        deciding = failed[0] if failed else next(reversed(done), None)
        return Outcome(status, deciding, self._reason(deciding))

    async def _run_commands(self) -> list[StepResult]:
        """Run the commands in order, from where a restart left off; answers those that did not succeed."""
        failed: list[StepResult] = []
        for step in self._work.steps:
            kind = "reboot" if step.is_reboot else "command"
            earlier = self._done_before(step)
            if earlier is not None:
                result = earlier
                self.steps.append(result)
            elif self.stopped.is_set() or (failed and self._work.stop_on_failure):
                self.not_reached(step.index, kind, "an earlier command failed")
                continue
            else:
                result = await self._run_step(step)
                self.steps.append(result)
            if result.status not in ("succeeded", "skipped"):
                failed.append(result)
        return failed

    def _done_before(self, step: Step) -> StepResult | None:
        """The result that the step had before the device restarted."""
        stored = [] if self._progress is None else self._progress.steps
        found = next((one for one in stored if one["index"] == step.index), None)
        return None if found is None else StepResult(**found)

    async def _run_step(self, step: Step) -> StepResult:
        if step.is_reboot:
            result = await self._reboot(step)
            await self._rebooting.go_on()
            return result
        assert step.run is not None
        return await self._run_command(step.index, "command", step.run, step.timeout_seconds)

    async def _run_command(self, index: int, kind: str, command: str, timeout_seconds: float) -> StepResult:
        return await self.process(
            index, kind, lambda take: process.start(self._work.shell, command, self._around, take), timeout_seconds,
            self._work.success_exit_codes,
        )  # fmt: skip

    async def _reboot(self, step: Step) -> StepResult:
        """Restart the device and wait: this process does not see the end of a restart that works, the next one does."""
        known = self._progress if self._progress and self._progress.index == step.index else None
        now_id = self._rebooting.boot_id()
        if known is not None and known.boot_id != now_id:
            return StepResult(step.index, "reboot", "succeeded", detail="The device has restarted.")
        if now_id is None:
            return StepResult(step.index, "reboot", "failed", detail="This device does not tell its boots apart.")
        began = known.began if known else time.monotonic()
        self.is_rebooting = True
        try:
            if known is None:
                done = [asdict(one) for one in self.steps]
                await self._rebooting.write_down(asdict(Progress(now_id, step.index, began, done)))
                self.started()
                refusal = await self._rebooting.restart()
                if refusal is not None:
                    return StepResult(step.index, "reboot", "failed", detail=refusal)
            return await self._wait_for_the_end(step, began)
        finally:
            self.is_rebooting = False

    async def _wait_for_the_end(self, step: Step, began: float) -> StepResult:
        while (left := began + step.timeout_seconds - time.monotonic()) > 0 and not self.stopped.is_set():
            try:
                async with asyncio.timeout(min(left, BOOT_LOOKED_AT_SECONDS)):
                    await self.stopped.wait()
            except TimeoutError:
                continue
        if self.stopped.is_set():
            self.cut_short()
            return StepResult(step.index, "reboot", "failed", detail="Stopped while the device was to restart.")
        detail = f"The device did not restart within {step.timeout_seconds} s."
        return StepResult(step.index, "reboot", "timed_out", detail=detail)

    async def _roll_back(self, status: str) -> str:
        """Undo, in reverse order, what was done and what timed out; answers the run's status."""
        begun = {one.index for one in self.steps if one.status in ("succeeded", "timed_out")}
        results = []
        for step in reversed(self._work.steps):
            if step.rollback is None or step.index not in begun:
                continue
            if self.stopped.is_set():
                self.not_reached(step.index, "rollback", "stopped before it began")
                continue
            results.append(await self._run_command(step.index, "rollback", step.rollback, step.timeout_seconds))
            self.steps.append(results[-1])
        if not results:
            return status
        return "rolled_back" if all(one.status == "succeeded" for one in results) else "failed"

    def _reason(self, deciding: StepResult | None) -> str | None:
        if deciding is None:
            return None
        what = f"{'Restart' if deciding.kind == 'reboot' else 'Command'} {deciding.index}"
        if not deciding.detail:
            return f"{what} ended with exit code {deciding.exit_code}."
        return deciding.detail if len(self._work.steps) == 1 else f"{what}: {deciding.detail}"


def _status(failed: list[StepResult]) -> str:
    if not failed:
        return "succeeded"
    return "timed_out" if failed[0].status == "timed_out" else "failed"
