"""The WebSocket that agents open, as plain ASGI: proves who they are, then carries messages both ways."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from uuid import uuid4

import msgspec
import structlog
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import select

from deployx.clock import Clock
from deployx.db.database import Database
from deployx.db.schema import devices as devices_table
from deployx.fleet import devices
from deployx.gateway.connections import Connection, Connections
from deployx.gateway.inbox import Came, Inbox, Left, Reported
from deployx.gateway.messages import Heartbeat, Hello, decode, decode_hello, encode
from deployx.timing.instants import format_instant
from deployx.work.device_runs import Returned
from deployx_agent import protocol

log = structlog.get_logger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

AUTHENTICATE_WITHIN_SECONDS = 5
SILENT_AFTER_SECONDS = 75
HEARTBEAT_SECONDS = 30
FRAME_BYTES_BEFORE = 256 * 1024
FRAME_BYTES_AFTER = 1024 * 1024
UNAUTHENTICATED_AT_MOST = 2000


class Refused(Exception):
    """The other side is no agent that may connect; `code` tells an agent how to go on."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


class AgentEndpoint:
    """The ASGI application behind `/api/agent/connect`."""

    def __init__(
        self, database: Database, clock: Clock, installation_id: str, replica_id: str, connections: Connections,
        inbox: Inbox,
    ) -> None:  # fmt: skip
        self._database = database
        self._clock = clock
        self._installation_id = installation_id
        self._replica_id = replica_id
        self._connections = connections
        self._inbox = inbox

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        names = {name for name, _ in scope["headers"]}
        if b"origin" in names or self._connections.unauthenticated >= UNAUTHENTICATED_AT_MOST:
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "websocket.accept"})
        hello = await self._authenticate(receive, send)
        if hello is not None:
            await self._serve(hello, receive, send)

    async def _authenticate(self, receive: Receive, send: Send) -> Hello | None:
        """Challenge the other side; None where it is gone or was refused."""
        self._connections.unauthenticated += 1
        try:
            async with asyncio.timeout(AUTHENTICATE_WITHIN_SECONDS):
                nonce = base64.b64encode(secrets.token_bytes(32)).decode()
                await _send(send, self._challenge(nonce))
                text = await _next_text(receive, FRAME_BYTES_BEFORE)
                return None if text is None else await self._verified(decode_hello(text), nonce)
        except Refused as refusal:
            log.info("agent.refused", code=refusal.code, detail=refusal.detail)
            await _send(send, {"type": "refused", "code": refusal.code, "detail": refusal.detail})
        except (TimeoutError, msgspec.DecodeError) as error:
            log.info("agent.refused", detail=str(error) or "no hello in time")
        finally:
            self._connections.unauthenticated -= 1
        await send({"type": "websocket.close", "code": 1008})
        return None

    def _challenge(self, nonce: str) -> dict[str, Any]:
        return {
            "type": "challenge",
            "protocol": protocol.PROTOCOL_VERSION,
            "nonce": nonce,
            "installation_id": self._installation_id,
            "server_time": format_instant(self._clock.now()),
        }

    async def _verified(self, hello: Hello, nonce: str) -> Hello:
        if hello.protocol != protocol.PROTOCOL_VERSION:
            raise Refused("protocol", f"This server speaks protocol {protocol.PROTOCOL_VERSION}, not {hello.protocol}.")
        async with self._database.read() as session:
            query = select(devices_table.c.public_key, devices_table.c.deleted_at)
            row = (await session.execute(query.where(devices_table.c.id == hello.device_id))).one_or_none()
        if row is None:
            raise Refused("unknown_device", f"There is no device {hello.device_id}: enrol it again.")
        signed = protocol.session_signing_input(self._installation_id, hello.device_id, nonce)
        try:
            Ed25519PublicKey.from_public_bytes(row.public_key).verify(base64.b64decode(hello.signature), signed)
        except (InvalidSignature, ValueError):
            raise Refused("unknown_device", "The signature is not this device's.") from None
        if row.deleted_at is not None:
            raise Refused("revoked", f"Device {hello.device_id} was removed: enrol it again.")
        return hello

    async def _serve(self, hello: Hello, receive: Receive, send: Send) -> None:
        session_id = uuid4().hex
        connection = Connection(hello.device_id, session_id, hello.journal_id, self._clock.monotonic())
        connection.send(
            {
                "type": "welcome",
                "session": session_id,
                "server_time": format_instant(self._clock.now()),
                "heartbeat_seconds": HEARTBEAT_SECONDS,
            }
        )
        self._connections.add(connection)
        writer = asyncio.create_task(_write(connection, send))
        reader = asyncio.create_task(self._read(connection, hello, receive))
        try:
            await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connections.remove(connection)
            for task in (writer, reader):
                task.cancel()
            await asyncio.gather(writer, reader, return_exceptions=True)
            await self._inbox.put(Left(connection))
        log.info("agent.disconnected", device=connection.device_id)

    async def _read(self, connection: Connection, hello: Hello, receive: Receive) -> None:
        recorded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        unfinished = frozenset(one.order_id for one in hello.unfinished)
        returned = Returned(hello.device_id, hello.journal_id, unfinished)
        await self._inbox.put(Came(connection, self._connected(connection, hello), returned, recorded))
        await recorded
        log.info("agent.connected", device=connection.device_id)
        try:
            while True:
                async with asyncio.timeout(SILENT_AFTER_SECONDS):
                    text = await _next_text(receive, FRAME_BYTES_AFTER)
                if text is None:
                    return
                connection.heard_at = self._clock.monotonic()
                await self._take(connection, text)
        except TimeoutError:
            connection.close(1001, "silent")
        except msgspec.DecodeError as error:
            log.warning("agent.unreadable", device=connection.device_id, error=str(error))
            connection.close(1008, "unreadable message")
        await asyncio.sleep(1)  # lets the writer say goodbye; it ends this session first

    def _connected(self, connection: Connection, hello: Hello) -> devices.Connected:
        return devices.Connected(
            device_id=hello.device_id,
            session_id=connection.session_id,
            replica_id=self._replica_id,
            journal_id=hello.journal_id,
            agent_version=hello.agent_version,
            facts=hello.facts,
        )

    async def _take(self, connection: Connection, text: str) -> None:
        message = decode(text)
        if isinstance(message, Heartbeat):
            connection.send({"type": "heartbeat_ack", "server_time": format_instant(self._clock.now())})
        else:
            await self._inbox.put(Reported(connection, message))


async def _write(connection: Connection, send: Send) -> None:
    while (text := await connection.next_text()) is not None:
        await send({"type": "websocket.send", "text": text})
    code, reason = connection.closing or (1000, "")
    await send({"type": "websocket.close", "code": code, "reason": reason})


async def _send(send: Send, message: dict[str, Any]) -> None:
    await send({"type": "websocket.send", "text": encode(message).decode()})


async def _next_text(receive: Receive, limit_bytes: int) -> str | None:
    """The next text frame, None at the end; raises DecodeError for one that is binary or too long."""
    message = await receive()
    if message["type"] == "websocket.disconnect":
        return None
    text = message.get("text")
    if not isinstance(text, str):
        raise msgspec.DecodeError("a frame that is not text")
    if len(text) > limit_bytes:
        raise msgspec.DecodeError(f"a frame of more than {limit_bytes} bytes")
    return text
