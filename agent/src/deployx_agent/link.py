"""The link to the server: opens sessions, takes orders in, sends what the journal holds, and never gives up."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import ssl
import time
from datetime import datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from deployx_agent import __version__, protocol
from deployx_agent.config import Enrolment
from deployx_agent.executor import Executor, check_order, finished_message
from deployx_agent.facts import boot_id, collect
from deployx_agent.journal import Journal
from deployx_agent.protocol import ProtocolError

log = logging.getLogger("deployx_agent")

SHORTEST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 60.0
FACTS_EVERY_SECONDS = 600.0
CHUNKS_AT_ONCE = 8
"""Eight chunks of control characters, each escaped to six bytes in JSON, still fit into one frame."""


class TurnedAway(Exception):
    """The server refused the session."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Link:
    """One agent's connection, through any number of sessions."""

    def __init__(self, enrolment: Enrolment, key: Ed25519PrivateKey, journal: Journal) -> None:
        self._enrolment = enrolment
        self._key = key
        self._journal = journal
        self._something_new = asyncio.Event()
        self.executor = Executor(journal, self._something_new.set)
        self._server_key = Ed25519PublicKey.from_public_bytes(protocol.from_base64(enrolment.server_public_key))

    async def run(self) -> None:
        """Keep a session open for ever; delays between attempts grow, with jitter, and start anew after a success."""
        attempt = 0
        while True:
            try:
                await self._session()
                attempt = 0
            except TurnedAway as error:
                log.warning("refused code=%s detail=%s", error.code, error)
                attempt = 8 if error.code in ("unknown_device", "revoked") else attempt + 1
            except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake, ProtocolError) as error:
                log.info("disconnected reason=%s", str(error) or type(error).__name__)
                attempt += 1
            ceiling = min(LONGEST_DELAY_SECONDS, SHORTEST_DELAY_SECONDS * 2.0**attempt)
            await asyncio.sleep(random.uniform(SHORTEST_DELAY_SECONDS / 2, ceiling))

    async def _session(self) -> None:
        server = self._enrolment.server.rstrip("/")
        address = "ws" + server.removeprefix("http") + "/api/agent/connect"
        context = ssl.create_default_context(cafile=self._enrolment.ca_file) if address.startswith("wss:") else None
        async with connect(
            address, ssl=context, max_size=protocol.FRAME_BYTES, ping_interval=None, compression=None, proxy=True
        ) as socket:
            session = await _Session.open(socket, self)
            log.info("connected server=%s device=%s", server, self._enrolment.device_id)
            await session.run()

    async def greet(self, socket: ClientConnection) -> tuple[datetime, float]:
        """Prove who this is; answers the server's time and the seconds between heartbeats."""
        challenge = await _receive(socket, 10)
        if challenge["type"] != "challenge" or challenge.get("protocol") != protocol.PROTOCOL_VERSION:
            raise ProtocolError(
                f"the server speaks protocol {challenge.get('protocol')!r}, this agent {protocol.PROTOCOL_VERSION}"
            )
        if challenge.get("installation_id") != self._enrolment.installation_id:
            raise TurnedAway("unknown_device", "This is another server than the one this device enrolled with.")
        signed = protocol.session_signing_input(
            self._enrolment.installation_id, self._enrolment.device_id, str(challenge.get("nonce"))
        )
        unfinished = await self.executor.journalled(self._journal.unacknowledged)
        hello = {
            "type": "hello",
            "protocol": protocol.PROTOCOL_VERSION,
            "device_id": self._enrolment.device_id,
            "signature": base64.b64encode(self._key.sign(signed)).decode(),
            "agent_version": __version__,
            "journal_id": self._journal.journal_id,
            "boot_id": boot_id(),
            "facts": await asyncio.to_thread(collect),
            "unfinished": [
                {"order_id": one.order_id, "run_id": one.run_id, "state": _STATES[one.state]} for one in unfinished
            ],
        }
        await socket.send(protocol.encode(hello))
        welcome = await _receive(socket, 10)
        if welcome["type"] != "welcome":
            raise TurnedAway(str(welcome.get("code")), str(welcome.get("detail")))
        return protocol.parse_instant(str(welcome.get("server_time"))), float(welcome.get("heartbeat_seconds", 30))

    async def take_order(self, message: dict[str, Any], server_now: datetime) -> dict[str, Any] | None:
        """Check and start an order; answers a `rejected` message where it is refused."""
        body, signature = str(message.get("body")), str(message.get("signature"))
        try:
            self._server_key.verify(protocol.from_base64(signature), protocol.order_signing_input(body))
        except InvalidSignature:
            raise ProtocolError("an order is not signed by this device's server") from None
        try:
            order = check_order(
                body,
                installation_id=self._enrolment.installation_id,
                device_id=self._enrolment.device_id,
                epoch=self._journal.highest_epoch,
                watermark=self._journal.watermark,
                server_now=server_now,
            )
        except ProtocolError as error:
            known = protocol.decode_object(body)
            return {"type": "rejected", "order_id": known["order_id"], "run_id": known["run_id"], "reason": str(error)}
        await self.executor.take(order, body)
        return None

    async def next_news(self) -> None:
        """Wait until the executor has something to send."""
        await self._something_new.wait()
        self._something_new.clear()

    @property
    def journal(self) -> Journal:
        return self._journal


_STATES = {"accepted": "accepted", "starting": "running", "ended": "ended"}


class _Session:
    """One open session: a reader, a sender and a heartbeat."""

    def __init__(self, socket: ClientConnection, link: Link, server_time: datetime, heartbeat_seconds: float) -> None:
        self._socket = socket
        self._link = link
        self._server_time = server_time
        self._at = time.monotonic()
        self._heartbeat_seconds = heartbeat_seconds
        self._sent_through: dict[str, int] = {}
        self._unacknowledged: dict[str, list[tuple[int, int]]] = {}
        self._results_sent: set[str] = set()
        self._may_send = asyncio.Event()

    @classmethod
    async def open(cls, socket: ClientConnection, link: Link) -> _Session:
        server_time, heartbeat_seconds = await link.greet(socket)
        await link.executor.journalled(link.journal.prune, server_time)
        return cls(socket, link, server_time, heartbeat_seconds)

    async def run(self) -> None:
        """Carry messages until the session ends; raises what ended it."""
        parts = [asyncio.create_task(part) for part in (self._read(), self._send_news(), self._beat())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    def _server_now(self) -> datetime:
        return self._server_time + timedelta(seconds=time.monotonic() - self._at)

    async def _read(self) -> None:
        journal, executor = self._link.journal, self._link.executor
        while True:
            message = await _receive(self._socket, protocol.SILENT_AFTER_SECONDS)
            match message["type"]:
                case "order":
                    refusal = await self._link.take_order(message, self._server_now())
                    if refusal is not None:
                        await self._socket.send(protocol.encode(refusal))
                case "cancel":
                    await executor.cancel(str(message["order_id"]), int(message["run_id"]))
                case "output_ack":
                    order_id, through = str(message["order_id"]), int(message["through"])
                    await executor.journalled(journal.output_acknowledged, order_id, through)
                    self._acknowledged(order_id, through)
                case "finished_ack":
                    await executor.journalled(journal.result_acknowledged, str(message["order_id"]))
                case "heartbeat_ack":
                    self._server_time, self._at = protocol.parse_instant(str(message["server_time"])), time.monotonic()
                case "refused":
                    raise TurnedAway(str(message.get("code")), str(message.get("detail")))
                case other:
                    raise ProtocolError(f"the server sent an unknown message {other!r}")

    def _acknowledged(self, order_id: str, through: int) -> None:
        left = [(seq, size) for seq, size in self._unacknowledged.get(order_id, []) if seq > through]
        self._unacknowledged[order_id] = left
        self._may_send.set()

    async def _send_news(self) -> None:
        while True:
            events, self._link.executor.events = self._link.executor.events, []
            for event in events:
                await self._socket.send(protocol.encode(event))
            for entry in await self._link.executor.journalled(self._link.journal.unacknowledged):
                await self._send_output(entry.order_id, entry.run_id)
                if entry.state == "ended" and entry.order_id not in self._results_sent:
                    self._results_sent.add(entry.order_id)
                    await self._socket.send(protocol.encode(finished_message(entry)))
            await self._link.next_news()

    async def _send_output(self, order_id: str, run_id: int) -> None:
        """Send what the journal holds beyond what this session has sent, within the window."""
        while True:
            after = self._sent_through.get(order_id, -1)
            chunks = await self._link.executor.journalled(
                self._link.journal.output_after, order_id, after, CHUNKS_AT_ONCE
            )
            if not chunks:
                return
            size = sum(len(chunk["text"]) for chunk in chunks)
            while self._waiting_bytes() + size > protocol.UNACKNOWLEDGED_BYTES:
                self._may_send.clear()
                await self._may_send.wait()
            message = {"type": "output", "order_id": order_id, "run_id": run_id, "chunks": chunks}
            self._sent_through[order_id] = chunks[-1]["seq"]
            self._unacknowledged.setdefault(order_id, []).append((chunks[-1]["seq"], size))
            await self._socket.send(protocol.encode(message))

    def _waiting_bytes(self) -> int:
        return sum(size for waiting in self._unacknowledged.values() for _, size in waiting)

    async def _beat(self) -> None:
        since_facts, last = 0.0, await asyncio.to_thread(collect)
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await self._socket.send(protocol.encode({"type": "heartbeat"}))
            since_facts += self._heartbeat_seconds
            if since_facts >= FACTS_EVERY_SECONDS:
                since_facts, facts = 0.0, await asyncio.to_thread(collect)
                if facts != last:
                    last = facts
                    await self._socket.send(protocol.encode({"type": "facts", "facts": facts}))


async def _receive(socket: ClientConnection, seconds: float) -> dict[str, Any]:
    async with asyncio.timeout(seconds):
        text = await socket.recv()
    if not isinstance(text, str):
        raise ProtocolError("the server sent a binary frame")
    return protocol.decode(text)
