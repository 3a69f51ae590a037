"""The link to the server: opens sessions, proves who this is, checks what is ordered, and never gives up.

What travels within a session is the business of `session`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import sqlite3
import ssl
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from deployx_agent import __version__, protocol
from deployx_agent.admission import check_order
from deployx_agent.config import Enrolment
from deployx_agent.device import Device
from deployx_agent.executor import Executor, NotTaken
from deployx_agent.facts import boot_id, collect
from deployx_agent.journal import Journal
from deployx_agent.protocol import Challenge, ProtocolError, Refused, SignedOrder, Welcome, parse_server_message
from deployx_agent.reports import rejected, unfinished
from deployx_agent.session import Session, TurnedAway

log = logging.getLogger("deployx_agent")

SHORTEST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 60.0
GREETING_SECONDS = 10.0
HOPELESS = ("unknown_device", "revoked")


class Link:
    """One agent's connection, through any number of sessions."""

    def __init__(self, enrolment: Enrolment, key: Ed25519PrivateKey, journal: Journal, device: Device) -> None:
        self._enrolment = enrolment
        self._key = key
        self._journal = journal
        self._news = asyncio.Event()
        self._session: Session | None = None
        self._attempt = 0
        self._server_time: datetime | None = None
        self._server_time_read_at = 0.0
        self.executor = Executor(journal, self._news.set, device)
        self._device = device
        self._server_key = Ed25519PublicKey.from_public_bytes(protocol.from_base64(enrolment.server_public_key))

    async def run(self) -> None:
        """Keep a session open for ever; delays between attempts grow, with jitter, and start anew after a success."""
        while True:
            try:
                await self._one_session()
            except TurnedAway as error:
                log.warning("refused code=%s detail=%r", error.code, str(error))
                if error.code in HOPELESS:
                    await asyncio.sleep(random.uniform(LONGEST_DELAY_SECONDS / 2, LONGEST_DELAY_SECONDS))
                    continue
            except (OSError, WebSocketException, ProtocolError, sqlite3.Error, ImportError) as error:
                # ImportError: the environment names a SOCKS proxy, for which websockets wants another library.
                log.info("disconnected reason=%r", str(error) or type(error).__name__)
            await asyncio.sleep(delay_seconds(self._attempt))
            self._attempt += 1

    async def drain(self, within_seconds: float) -> None:
        """Wait until the server has acknowledged every result, as long as a session is open and time is left."""
        try:
            async with asyncio.timeout(within_seconds):
                while self._session is not None and await self._unacknowledged_results():
                    await self._session.next_acknowledgement()
        except TimeoutError:
            log.info("results.kept reason='the server has not acknowledged them yet'")

    async def _unacknowledged_results(self) -> bool:
        entries = await self.executor.journalled(self._journal.unacknowledged)
        return any(entry.state == "ended" for entry in entries)

    async def _one_session(self) -> None:
        server = self._enrolment.server.rstrip("/")
        address = "ws" + server.removeprefix("http") + "/api/agent/connect"
        context = ssl.create_default_context(cafile=self._enrolment.ca_file) if address.startswith("wss:") else None
        async with connect(
            address, ssl=context, max_size=protocol.FRAME_BYTES, ping_interval=None, compression=None, proxy=True
        ) as socket:
            facts = await asyncio.to_thread(self._facts)
            welcome = await self._greet(socket, facts)
            self._attempt = 0
            self.learn_time(welcome.server_time)
            log.info("connected server=%s device=%s", server, self._enrolment.device_id)
            await self.executor.journalled(self._journal.prune, welcome.server_time)
            self._session = Session(socket, self, self.executor, self._journal, self._news, self._facts)
            try:
                await self._session.run(welcome.heartbeat_seconds, facts)
            finally:
                self._session.close()
                self._session = None

    def _facts(self) -> dict[str, Any]:
        return collect(self._device.installed.told)

    async def _greet(self, socket: ClientConnection, facts: Mapping[str, Any]) -> Welcome:
        """Prove who this is. Raises TurnedAway where this server is another one, or does not want this device."""
        challenge = await _receive(socket)
        if isinstance(challenge, Refused):
            raise TurnedAway(challenge.code, challenge.detail)
        if not isinstance(challenge, Challenge) or challenge.protocol != protocol.PROTOCOL_VERSION:
            raise ProtocolError(f"the server opens with {challenge}; this agent speaks {protocol.PROTOCOL_VERSION}")
        if challenge.installation_id != self._enrolment.installation_id:
            raise TurnedAway("unknown_device", "This is another server than the one this device enrolled with.")
        await socket.send(protocol.encode(await self._hello(challenge.nonce, facts)))
        answer = await _receive(socket)
        if isinstance(answer, Refused):
            raise TurnedAway(answer.code, answer.detail)
        if not isinstance(answer, Welcome):
            raise ProtocolError(f"the server answers a hello with {type(answer).__name__}")
        return answer

    async def _hello(self, nonce: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        signed = protocol.session_signing_input(self._enrolment.installation_id, self._enrolment.device_id, nonce)
        entries = await self.executor.journalled(self._journal.unacknowledged)
        return {
            "type": "hello",
            "protocol": protocol.PROTOCOL_VERSION,
            "device_id": self._enrolment.device_id,
            "signature": base64.b64encode(self._key.sign(signed)).decode(),
            "agent_version": __version__,
            "journal_id": self._journal.journal_id,
            "boot_id": boot_id(),
            "facts": facts,
            "unfinished": unfinished(entries),
        }

    async def take_order(self, message: SignedOrder) -> dict[str, Any] | None:
        """Check and start an order; answers a `rejected` message where it is refused."""
        try:
            await self._check_and_take(message)
        except (ProtocolError, NotTaken) as error:
            order_id, run_id = protocol.order_ids(message.body)
            log.warning("order.rejected order=%r reason=%r", order_id[:40], str(error))
            return rejected(order_id, run_id, str(error))
        return None

    async def _check_and_take(self, message: SignedOrder) -> None:
        try:
            signature = protocol.from_base64(message.signature)
            self._server_key.verify(signature, protocol.order_signing_input(message.body))
        except InvalidSignature:
            raise ProtocolError("The order is not signed by the server that this device enrolled with.") from None
        epoch, watermark = await self.executor.journalled(self._journal.lowest_accepted)
        order = check_order(
            message.body,
            installation_id=self._enrolment.installation_id,
            device_id=self._enrolment.device_id,
            epoch=epoch,
            watermark=watermark,
            server_now=self.server_now(),
        )
        await self.executor.take(order, message.body)

    def learn_time(self, server_time: datetime) -> None:
        self._server_time, self._server_time_read_at = server_time, time.monotonic()

    def server_now(self) -> datetime:
        """The server's time, advanced by this device's monotonic clock; only after a welcome."""
        assert self._server_time is not None
        return self._server_time + timedelta(seconds=time.monotonic() - self._server_time_read_at)


def delay_seconds(attempt: int) -> float:
    """How long to wait before the next attempt: spread over a span that doubles from half a second to a minute."""
    ceiling = min(LONGEST_DELAY_SECONDS, SHORTEST_DELAY_SECONDS * 2.0 ** min(attempt + 1, 10))
    return random.uniform(SHORTEST_DELAY_SECONDS / 2, ceiling)


async def _receive(socket: ClientConnection) -> protocol.ServerMessage:
    async with asyncio.timeout(GREETING_SECONDS):
        text = await socket.recv()
    if not isinstance(text, str):
        raise ProtocolError("the server sent a binary frame")
    return parse_server_message(text)
