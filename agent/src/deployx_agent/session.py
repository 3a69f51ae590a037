"""One open session: takes the server's messages in, sends what the journal holds, and beats. Opened by the link."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol, assert_never

from websockets.asyncio.client import ClientConnection

from deployx_agent import protocol
from deployx_agent.executor import Executor
from deployx_agent.journal import Journal
from deployx_agent.protocol import (
    Cancel,
    Challenge,
    FinishedAck,
    HeartbeatAck,
    OutputAck,
    ProtocolError,
    Refused,
    SignedOrder,
    Welcome,
)  # fmt: skip
from deployx_agent.reports import finished

FACTS_EVERY_SECONDS = 600.0
PRUNED_EVERY_SECONDS = 86_400.0
CHUNKS_AT_ONCE = 8
"""Eight chunks of control characters, each escaped to six bytes in JSON, still fit into one frame."""


class TurnedAway(Exception):
    """The server refused or ended the session; `code` tells how to go on."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Orders(Protocol):
    """What checks orders, and knows the server's time."""

    async def take_order(self, message: SignedOrder) -> dict[str, Any] | None: ...
    def learn_time(self, server_time: datetime) -> None: ...
    def server_now(self) -> datetime: ...


class Session:
    """A reader, a sender and a heartbeat on one socket."""

    def __init__(
        self, socket: ClientConnection, orders: Orders, executor: Executor, journal: Journal, news: asyncio.Event,
        facts: Callable[[], dict[str, Any]],
    ) -> None:  # fmt: skip
        self._socket = socket
        self._facts = facts
        self._orders = orders
        self._executor = executor
        self._journal = journal
        self._news = news
        self._sent_through: dict[str, int] = {}
        self._on_the_wire: dict[str, list[tuple[int, int]]] = {}
        self._results_sent: set[str] = set()
        self._acknowledged = asyncio.Event()

    async def run(self, heartbeat_seconds: float, told: Mapping[str, Any]) -> None:
        """Carry messages until the session ends, which raises what ended it; `told` are the facts of the hello."""
        beat = self._beat(heartbeat_seconds, told)
        parts = [asyncio.create_task(part) for part in (self._read(), self._send_news(), beat)]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    def close(self) -> None:
        """Wake whoever waits for an acknowledgement: none will come."""
        self._acknowledged.set()

    async def next_acknowledgement(self) -> None:
        self._acknowledged.clear()
        await self._acknowledged.wait()

    async def _read(self) -> None:
        while True:
            async with asyncio.timeout(protocol.SILENT_AFTER_SECONDS):
                text = await self._socket.recv()
            if not isinstance(text, str):
                raise ProtocolError("the server sent a binary frame")
            await self._take(protocol.parse_server_message(text))

    async def _take(self, message: protocol.ServerMessage) -> None:
        match message:
            case SignedOrder():
                refusal = await self._orders.take_order(message)
                if refusal is not None:
                    await self._send(refusal)
            case Cancel(order_id, run_id):
                await self._executor.cancel(order_id, run_id)
            case OutputAck(order_id, through):
                await self._executor.journalled(self._journal.output_acknowledged, order_id, through)
                self._note_output(order_id, through)
            case FinishedAck(order_id):
                await self._executor.journalled(self._journal.result_acknowledged, order_id)
                self._on_the_wire.pop(order_id, None)
                self._acknowledged.set()
            case HeartbeatAck(server_time):
                self._orders.learn_time(server_time)
            case Refused(code, detail):
                raise TurnedAway(code, detail)
            case Challenge() | Welcome():
                raise ProtocolError(f"the server sent a {type(message).__name__.lower()} in the middle of a session")
            case _:
                assert_never(message)

    def _note_output(self, order_id: str, through: int) -> None:
        left = [(seq, size) for seq, size in self._on_the_wire.get(order_id, []) if seq > through]
        if left:
            self._on_the_wire[order_id] = left
        else:
            self._on_the_wire.pop(order_id, None)
        self._acknowledged.set()

    async def _send_news(self) -> None:
        """Send what happened; first of all what a predecessor left to do, and what earlier sessions left to say."""
        await self._executor.resume(self._orders.server_now())
        while True:
            self._news.clear()
            while self._executor.events:
                await self._send(self._executor.events[0])
                self._executor.events.pop(0)
            entries = await self._executor.journalled(self._journal.unacknowledged)
            self._forget_all_but({entry.order_id for entry in entries})
            for entry in entries:
                await self._send_output(entry.order_id, entry.run_id)
                if entry.state == "ended" and entry.order_id not in self._results_sent:
                    self._results_sent.add(entry.order_id)
                    await self._send(finished(entry))
            await self._news.wait()

    def _forget_all_but(self, order_ids: set[str]) -> None:
        """Only what the journal no longer shows may be forgotten: an earlier look at it may still be on its way."""
        self._results_sent &= order_ids
        self._sent_through = {one: seq for one, seq in self._sent_through.items() if one in order_ids}

    async def _send_output(self, order_id: str, run_id: int) -> None:
        """Send what the journal holds beyond what this session has sent, within the window."""
        while True:
            after = self._sent_through.get(order_id, -1)
            chunks = await self._executor.journalled(self._journal.output_after, order_id, after, CHUNKS_AT_ONCE)
            if not chunks:
                return
            size = sum(len(chunk["text"].encode()) for chunk in chunks)
            while self._on_the_wire and self._bytes_on_the_wire() + size > protocol.UNACKNOWLEDGED_BYTES:
                await self.next_acknowledgement()
            self._sent_through[order_id] = chunks[-1]["seq"]
            self._on_the_wire.setdefault(order_id, []).append((chunks[-1]["seq"], size))
            await self._send({"type": "output", "order_id": order_id, "run_id": run_id, "chunks": chunks})

    def _bytes_on_the_wire(self) -> int:
        return sum(size for waiting in self._on_the_wire.values() for _, size in waiting)

    async def _beat(self, heartbeat_seconds: float, told: Mapping[str, Any]) -> None:
        since_facts = since_pruned = 0.0
        while True:
            await asyncio.sleep(heartbeat_seconds)
            await self._send({"type": "heartbeat"})
            since_facts += heartbeat_seconds
            since_pruned += heartbeat_seconds
            if since_facts >= FACTS_EVERY_SECONDS:
                since_facts, found = 0.0, await asyncio.to_thread(self._facts)
                if found != told:
                    await self._send({"type": "facts", "facts": found})
                    told = found
            if since_pruned >= PRUNED_EVERY_SECONDS:
                since_pruned = 0.0
                await self._executor.journalled(self._journal.prune, self._orders.server_now())

    async def _send(self, message: Mapping[str, Any]) -> None:
        await self._socket.send(protocol.encode(message))
