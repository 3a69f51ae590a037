"""Takes orders, runs at most 16 at once, and journals each step before it has an effect.

All journal work happens in one thread of its own, so that an fsync never holds up the link. Where the journal cannot
be written nothing new starts, and the end of what runs is written as soon as the journal can be again.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, assert_never

from deployx_agent import limits, process
from deployx_agent.actions.action import Action, Forbidden
from deployx_agent.actions.commands import Commands, Progress, Rebooting
from deployx_agent.actions.files import Files
from deployx_agent.actions.software import Software
from deployx_agent.device import Device
from deployx_agent.facts import collect
from deployx_agent.journal import Chunk, Entry, Journal
from deployx_agent.process import Receipt
from deployx_agent.protocol import Order, ProtocolError, parse_order
from deployx_agent.reports import ending, finished, progress
from deployx_agent.spool import AGAIN_SECONDS, Spool
from deployx_agent.work import CommandWork, FileWork, SoftwareWork

log = logging.getLogger("deployx_agent")

ORDERS_AT_ONCE = 16
AFTER_KILL_SECONDS = 5.0
INTERRUPTED = "The agent ended while this ran; whether the work finished is not known."
NEVER_STARTED = "The agent was away until the order had expired; nothing was started."

Result = TypeVar("Result")


class NotTaken(Exception):
    """An order was not started, and will not be; the sentence says why."""


@dataclass(slots=True)
class Active:
    """An order that is accepted and not ended; `run` is set once it may have a process."""

    order: Order
    body: str
    run: Action | None = None
    task: asyncio.Task[None] | None = None
    next_seq: int = 0
    progress: Progress | None = None


class Executor:
    """Runs orders. `notify` is called (on the event loop) whenever there is something new to send."""

    def __init__(
        self, journal: Journal, notify: Callable[[], None], device: Device, *,
        grace_seconds: float = process.KILL_AFTER_SECONDS,
    ) -> None:  # fmt: skip
        self._journal = journal
        self._device = device
        self._notify = notify
        self._grace_seconds = grace_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._spool = Spool(partial(self.journalled, journal.append_output), notify)
        self._one_decision = asyncio.Lock()
        self._free_places = ORDERS_AT_ONCE
        self._queue: deque[Active] = deque()
        self._active: dict[str, Active] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unstarted: list[Entry] = []
        self._stopping = False
        self.events: list[Mapping[str, Any]] = []
        """Messages to send that may be lost without harm: the next session says the same in other words."""

    async def journalled(self, work: Callable[..., Result], *arguments: Any, **more: Any) -> Result:
        """Run a journal method in the journal's thread; it is carried out even if the caller is cancelled meanwhile."""
        call = partial(work, *arguments, **more)
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, call))

    async def recover(self) -> None:
        """End what a dead predecessor left: running processes are killed and reported as interrupted.

        What was to go on after a restart of the device goes on.
        """
        await asyncio.to_thread(self._device.tidy)
        for entry in await self.journalled(self._journal.unacknowledged):
            match entry.state:
                case "starting":
                    receipt = await asyncio.to_thread(process.end_what_is_left, entry.order_id)
                    await self._end_early(entry.order_id, entry.run_id, "interrupted", INTERRUPTED, receipt)
                case "accepted":
                    self._unstarted.append(entry)
                case "rebooting":
                    await self._go_on(entry)

    async def _go_on(self, entry: Entry) -> None:
        try:
            order = parse_order(entry.body or "")
        except ProtocolError as error:
            await self._end_early(entry.order_id, entry.run_id, "interrupted", f"Not readable any more: {error}.")
            return
        active = self._activate(order, entry.body or "")
        active.next_seq = await self.journalled(self._journal.last_seq, entry.order_id) + 1
        active.progress = Progress.of(entry.progress or {})
        self._free_places -= 1
        self._begin(active, journalled=True)

    async def resume(self, server_now: datetime) -> None:
        """Run what a predecessor had accepted and never started, as far as it has not expired since."""
        async with self._one_decision:
            entries, self._unstarted = self._unstarted, []
            for entry in entries:
                try:
                    order = parse_order(entry.body or "")
                except ProtocolError as error:
                    await self._end_early(entry.order_id, entry.run_id, "failed", f"Not readable: {error}.")
                    continue
                if order.expires_at < server_now:
                    await self._end_early(entry.order_id, entry.run_id, "interrupted", NEVER_STARTED)
                else:
                    self._queue.append(self._activate(order, entry.body or ""))
            self._start_waiting()

    async def take(self, order: Order, body: str) -> None:
        """Journal a checked order and run it; one that is known already is answered with what is known.

        Raises NotTaken where the journal cannot be written. Goes on to its end if the caller is cancelled.
        """
        await self._to_its_end(self._take(order, body))

    async def cancel(self, order_id: str, run_id: int) -> None:
        """Stop an order; one never seen is journalled as cancelled, so that it cannot start later."""
        await self._to_its_end(self._cancel(order_id, run_id))

    async def stop(self, within_seconds: float) -> None:
        """Take nothing more, let runs finish in time, then end what is left as interrupted."""
        self._stopping = True
        ending = self._ending_tasks()
        if ending:
            await asyncio.wait(ending, timeout=within_seconds)
        for active in self._active.values():
            if active.run is not None and not active.run.is_rebooting:
                active.run.stop("interrupted")
        ending = self._ending_tasks()
        if ending:
            await asyncio.wait(ending, timeout=self._grace_seconds + AFTER_KILL_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._spool.close()

    def _ending_tasks(self) -> set[asyncio.Task[None]]:
        """All that is under way, but for orders that go on after a restart of the device."""
        rebooting = {one.task for one in self._active.values() if one.run is not None and one.run.is_rebooting}
        return {task for task in self._tasks if task not in rebooting}

    def close(self) -> None:
        """Let the journal's thread end; for after the link has ended too."""
        self._thread.shutdown(wait=True)

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """A session that ends in the middle of a decision must not leave an order accepted that nobody runs."""
        await asyncio.shield(self._keep(asyncio.create_task(work)))

    def _keep(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        self._tasks.add(task)
        task.add_done_callback(self._drop)
        return task

    def _drop(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, NotTaken):
            log.error("work.broken", exc_info=error)

    async def _take(self, order: Order, body: str) -> None:
        async with self._one_decision:
            if self._stopping:
                return
            at_once = self._free_places > 0 and not self._queue
            self._free_places -= at_once
            try:
                known = await self.journalled(
                    self._journal.accept, order.order_id, order.run_id,
                    issued_at=order.issued_at, epoch=order.epoch, body=body, at_once=at_once,
                )  # fmt: skip
            except (sqlite3.Error, OSError) as error:
                self._free_places += at_once
                log.error("order.refused order=%s error=%r", order.order_id, str(error))
                raise NotTaken(f"The device cannot write its journal ({error}): nothing was started.") from None
            if known is not None:
                self._free_places += at_once
                self._answer_known(known)
                return
            log.info("order.accepted order=%s run=%s", order.order_id, order.run_id)
            self._tell(progress("accepted", order.order_id, order.run_id))
            active = self._activate(order, body)
            if at_once:
                self._begin(active, journalled=True)
            else:
                self._queue.append(active)

    def _answer_known(self, entry: Entry) -> None:
        """Say what is known; a result that is not acknowledged yet is sent with the journal's news."""
        active = self._active.get(entry.order_id)
        if active is not None:
            kind = "accepted" if active.run is None else "started"
            self._tell(progress(kind, entry.order_id, entry.run_id))
        elif entry.state == "ended" and entry.acknowledged:
            self._tell(finished(entry))
        self._notify()

    async def _cancel(self, order_id: str, run_id: int) -> None:
        async with self._one_decision:
            active = self._active.get(order_id)
            if active is not None and active.run is not None:
                active.run.stop("cancelled")
                return
            entry = await self.journalled(self._journal.find, order_id)
            if active is not None:
                self._queue.remove(active)
                self._active.pop(order_id)
                await self._end_early(order_id, run_id, "cancelled", "Cancelled before it started.", Receipt())
            elif entry is None:
                await self._end_early(order_id, run_id, "cancelled", "Cancelled before it arrived.", Receipt())
            elif entry.acknowledged:
                self._tell(finished(entry))
            elif entry.state == "accepted":
                self._unstarted = [one for one in self._unstarted if one.order_id != order_id]
                await self._end_early(order_id, run_id, "cancelled", "Cancelled before it started.", Receipt())
            self._notify()

    def _activate(self, order: Order, body: str) -> Active:
        active = self._active[order.order_id] = Active(order, body)
        return active

    def _start_waiting(self) -> None:
        while self._queue and self._free_places and not self._stopping:
            self._free_places -= 1
            self._begin(self._queue.popleft(), journalled=False)

    def _begin(self, active: Active, *, journalled: bool) -> None:
        """Start an order whose place is reserved."""
        active.run = run = self._action(active)
        active.task = self._keep(asyncio.create_task(self._run(active, run, journalled=journalled)))

    def _action(self, active: Active) -> Action:
        """What carries out the order, within the limits of this device."""
        order = active.order
        shared: dict[str, Any] = {
            "emit": partial(self._emit, active), "on_start": partial(self._started, order),
            "grace_seconds": self._grace_seconds,
        }  # fmt: skip
        try:
            allowed = limits.load(self._device.data_dir)
            allowed.check(order.work)
        except limits.NotAllowed as error:
            return Forbidden(str(error), **shared)
        match order.work:
            case CommandWork() as work:
                return Commands(order, work, self._rebooting(active), active.progress, **shared)
            case FileWork() as work:
                return Files(work, order.ticket or "", self._device, allowed, **shared)
            case SoftwareWork() as work:
                return Software(order, work, self._device, **shared)
            case _:
                assert_never(order.work)

    def _rebooting(self, active: Active) -> Rebooting:
        order_id = active.order.order_id

        async def write_down(progress: Mapping[str, Any]) -> None:
            await self._spool.write_all(partial(self.journalled, self._journal.append_output))
            await self.journalled(self._journal.rebooting, order_id, active.body, progress)

        go_on = partial(self.journalled, self._journal.starting, order_id)
        return Rebooting(self._device.boot_id, self._device.restart, write_down, go_on)

    async def _run(self, active: Active, run: Action, *, journalled: bool) -> None:
        order_id = active.order.order_id
        try:
            result = await self._result(active, run, journalled=journalled)
            await self._finish(order_id, active.order.run_id, result)
            if isinstance(run, Software):  # the server asks for facts too seldom for what was installed just now
                facts = await asyncio.to_thread(collect, self._device.installed.told)
                self._tell({"type": "facts", "facts": facts})
        finally:
            self._active.pop(order_id, None)
            self._free_places += 1
            self._start_waiting()

    async def _result(self, active: Active, run: Action, *, journalled: bool) -> Mapping[str, Any]:
        try:
            if not journalled:
                await self.journalled(self._journal.starting, active.order.order_id)
        except (sqlite3.Error, OSError) as error:
            return ending("failed", f"The device cannot write its journal ({error}): nothing was started.")
        try:
            return await run.run() | {"last_seq": active.next_seq - 1}
        except Exception as error:  # an order that breaks the agent must still end, or its device would look hung
            log.exception("order.broken order=%s", active.order.order_id)
            left = await asyncio.to_thread(process.end_what_is_left, active.order.order_id)
            return ending("failed", f"The agent failed: {error!r}.", left, last_seq=active.next_seq - 1)

    def _emit(self, active: Active, step: int, stream: str, text: str) -> None:
        self._spool.add(
            active.order.order_id, {"seq": active.next_seq, "step": step, "stream": stream, "text": text}
        )  # fmt: skip
        active.next_seq += 1

    def _started(self, order: Order) -> None:
        log.info("order.started order=%s run=%s", order.order_id, order.run_id)
        self._tell(progress("started", order.order_id, order.run_id))

    async def _end_early(
        self, order_id: str, run_id: int, status: str, reason: str, receipt: Receipt | None = None
    ) -> None:
        last_seq = await self.journalled(self._journal.last_seq, order_id)
        await self._finish(order_id, run_id, ending(status, reason, receipt, last_seq=last_seq))

    async def _finish(self, order_id: str, run_id: int, result: Mapping[str, Any]) -> None:
        """Write a result with all output that waits, however long the journal refuses; then it may be sent."""

        async def write(chunks: Sequence[tuple[str, Chunk]]) -> None:
            while True:
                try:
                    return await self.journalled(self._journal.finish, order_id, run_id, result, chunks)
                except sqlite3.Error as error:
                    log.error("order.not_written order=%s error=%r", order_id, str(error))
                    await asyncio.sleep(AGAIN_SECONDS)

        await self._spool.write_all(write)
        log.info("order.finished order=%s run=%s status=%s", order_id, run_id, result["status"])
        self._notify()

    def _tell(self, message: Mapping[str, Any]) -> None:
        self.events.append(message)
        self._notify()
