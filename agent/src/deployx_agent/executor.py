"""Takes orders, runs at most 16 at once, and journals each step before it has an effect.

All journal work happens in one thread of its own, so that an fsync never holds up the link.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from deployx_agent import process
from deployx_agent.journal import Entry, Journal
from deployx_agent.protocol import Order, ProtocolError, parse_order
from deployx_agent.runner import Run

log = logging.getLogger("deployx_agent")

ORDERS_AT_ONCE = 16
OUTPUT_EVERY_SECONDS = 0.03
INTERRUPTED = "The agent ended while this ran; whether the work finished is not known."

Result = TypeVar("Result")


@dataclass(slots=True)
class Active:
    """An order that is accepted and not ended; `run` is set once it may have a process."""

    order: Order
    run: Run | None = None
    cancelled: bool = False
    next_seq: int = 0
    buffer: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)


class Executor:
    """Runs orders. `notify` is called (on the event loop) whenever there is something new to send."""

    def __init__(self, journal: Journal, notify: Callable[[], None]) -> None:
        self._journal = journal
        self._notify = notify
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._places = asyncio.Semaphore(ORDERS_AT_ONCE)
        self._active: dict[str, Active] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.events: list[dict[str, Any]] = []
        """`accepted` and `started` messages to send; they may be lost without harm."""

    async def journalled(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """Run a journal method in the journal's thread; it is carried out even if the caller is cancelled meanwhile."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments))

    async def recover(self) -> None:
        """End what a dead predecessor left: running processes are killed and reported as interrupted."""
        for entry in await self.journalled(self._journal.unacknowledged):
            if entry.state == "starting":
                receipt = await asyncio.to_thread(process.end_tree_now, entry.order_id)
                await self._finish(
                    entry.order_id, entry.run_id, _ending("interrupted", INTERRUPTED, receipt.as_message())
                )
            elif entry.state == "accepted" and entry.body is not None:
                self._begin(parse_order(entry.body))

    async def take(self, order: Order, body: str) -> None:
        """Journal a checked order and run it; one that is known already is answered with what is known."""
        if self._stopping:
            return
        new = await self.journalled(
            self._journal.accept, order.order_id, order.run_id, order.issued_at, order.epoch, body
        )
        if new:
            self._begin(order)
            self._tell("accepted", order)
            return
        entry = await self.journalled(self._journal.find, order.order_id)
        if entry is not None and entry.state == "ended" and entry.acknowledged:
            self.events.append(known_result(entry))
        elif order.order_id in self._active and self._active[order.order_id].run is not None:
            self._tell("started", order)
        self._notify()

    async def cancel(self, order_id: str, run_id: int) -> None:
        """Stop an order; one never seen is journalled as cancelled, so that it cannot start later."""
        active = self._active.get(order_id)
        if active is not None:
            active.cancelled = True
            if active.run is not None:
                active.run.stop("cancelled")
            else:
                await self._finish(order_id, run_id, _ending("cancelled", "Cancelled before it started.", _NOTHING))
            return
        entry = await self.journalled(self._journal.find, order_id)
        if entry is None:
            await self._finish(order_id, run_id, _ending("cancelled", "Cancelled before it arrived.", _NOTHING))
        elif entry.acknowledged:
            self.events.append(known_result(entry))
        self._notify()

    async def stop(self, within_seconds: float) -> None:
        """Take nothing more, let runs finish in time, then end what is left as interrupted."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_seconds)
        for active in list(self._active.values()):
            if active.run is not None:
                active.run.stop("interrupted")
        waiting = [task for task in self._tasks if not task.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=process.KILL_AFTER_SECONDS + 5)
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=True)

    def _begin(self, order: Order) -> None:
        self._active[order.order_id] = Active(order)
        task = asyncio.create_task(self._run(self._active[order.order_id]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, active: Active) -> None:
        order = active.order
        try:
            async with self._places:
                if active.cancelled or self._stopping:
                    return
                active.run = Run(
                    order,
                    emit=lambda step, stream, text: self._emit(active, step, stream, text),
                    on_start=lambda: self._tell("started", order),
                )
                await self.journalled(self._journal.starting, order.order_id)
                _pass_on_cancel(active)
                flusher = asyncio.create_task(self._flush_regularly(active))
                try:
                    result = await active.run.run()
                finally:
                    flusher.cancel()
                await self._flush(active)
                await self._finish(order.order_id, order.run_id, result | {"last_seq": active.next_seq - 1})
        except Exception as error:  # an order that breaks the agent must still end, or its device would look hung
            log.exception("order.broken order=%s", order.order_id)
            await self._finish(order.order_id, order.run_id, _ending("failed", f"The agent failed: {error!r}.", None))
        finally:
            self._active.pop(order.order_id, None)

    def _emit(self, active: Active, step: int, stream: str, text: str) -> None:
        chunk = {"seq": active.next_seq, "step": step, "stream": stream, "text": text}
        active.next_seq += 1
        active.buffer.append((active.order.order_id, chunk))

    async def _flush_regularly(self, active: Active) -> None:
        while True:
            await asyncio.sleep(OUTPUT_EVERY_SECONDS)
            await self._flush(active)

    async def _flush(self, active: Active) -> None:
        if active.buffer:
            chunks, active.buffer = active.buffer, []
            await self.journalled(self._journal.append_output, chunks)
            self._notify()

    async def _finish(self, order_id: str, run_id: int, result: Mapping[str, Any]) -> None:
        await self.journalled(self._journal.finish, order_id, run_id, result)
        log.info("order.finished order=%s status=%s", order_id, result["status"])
        self._notify()

    def _tell(self, kind: str, order: Order) -> None:
        self.events.append({"type": kind, "order_id": order.order_id, "run_id": order.run_id})
        self._notify()


def _pass_on_cancel(active: Active) -> None:
    """A cancellation may have come while the start was written to disk."""
    if active.cancelled and active.run is not None:
        active.run.stop("cancelled")


_NOTHING: dict[str, list[int]] = {"terminated": [], "killed": [], "survived": []}


def _ending(status: str, reason: str, receipt: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "status": status, "exit_code": None, "reason": reason, "duration_seconds": None, "steps": [],
        "truncated": False, "replaced_bytes": False, "receipt": receipt,
    }  # fmt: skip


def finished_message(entry: Entry) -> dict[str, Any]:
    """The `finished` message of an ended order."""
    result = dict(entry.result or {})
    message = {"type": "finished", "order_id": entry.order_id, "run_id": entry.run_id, "last_seq": -1, "known": False}
    return message | result


def known_result(entry: Entry) -> dict[str, Any]:
    """What is left of an order whose result was acknowledged before: its status."""
    return finished_message(entry) | {"known": True}


def check_order(
    body: str, *, installation_id: str, device_id: int, epoch: int, watermark: str, server_now: datetime
) -> Order:
    """Read an order whose signature is good and check that it is meant for this device and this time.

    Raises ProtocolError with the sentence that goes back to the server.
    """
    order = parse_order(body)
    if order.installation_id != installation_id or order.device_id != device_id:
        raise ProtocolError("The order is for another device or installation.")
    if order.epoch < epoch:
        raise ProtocolError(f"The order's epoch {order.epoch} is older than {epoch}, which this device has seen.")
    if order.issued_at.isoformat() < watermark:
        raise ProtocolError("The order is older than this device remembers.")
    if order.expires_at < server_now:
        raise ProtocolError("The order has expired on the way.")
    if order.kind != "command":
        raise ProtocolError(f"This agent cannot run orders of kind {order.kind!r}: update it.")
    return order
