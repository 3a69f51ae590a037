"""A small server that speaks the real protocol with real keys, for the tests of the agent. It keeps what it hears."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from deployx_agent import config, identity, protocol
from deployx_agent.config import Enrolment

INSTALLATION = "inst"
DEVICE_ID = 3
Message = dict[str, Any]


class OrderingServer:
    """Opens sessions, sends what a test says, acknowledges unless told otherwise, and keeps every message."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.device_key: Ed25519PublicKey | None = None
        self.acknowledges = True
        self.answers_heartbeats = True
        self.installation_id = INSTALLATION
        self.heartbeat_seconds = 30
        self.refusal: Message | None = None
        self.heard: list[Message] = []
        self.sessions: list[list[Message]] = []
        """What was heard in each session, beginning with its hello."""
        self.port = 0
        self._socket: ServerConnection | None = None
        self._server: Server | None = None
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        self._server = await serve(self._serve, "127.0.0.1", self.port, max_size=protocol.FRAME_BYTES)
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def cut(self) -> None:
        """End the session as a broken network would."""
        assert self._socket is not None
        self._socket.transport.abort()
        await self._socket.wait_closed()

    def enrolled(self, data_dir: Path) -> Enrolment:
        """Make the folder that of an agent which enrolled here."""
        data_dir.mkdir(exist_ok=True)
        self.device_key = identity.load_or_create(data_dir).public_key()
        public_key = base64.b64encode(self.key.public_key().public_bytes_raw()).decode()
        enrolment = Enrolment(f"http://127.0.0.1:{self.port}", DEVICE_ID, "web-1", INSTALLATION, public_key)
        config.save(data_dir, enrolment)
        return enrolment

    def order(self, *commands: str, **changes: Any) -> Message:
        """The body of an order, not yet sent; `changes` go to the body, or to its work where they belong there."""
        now = datetime.now(UTC)
        work: Message = {
            "shell": "sh", "strategy": "transactional", "stop_on_failure": True, "env": {}, "working_directory": None,
            "run_as": None, "success_exit_codes": [0], "output_limit_bytes": 1_048_576,
            "steps": [
                {"index": index, "run": command, "rollback": None, "timeout_seconds": 60}
                for index, command in enumerate(commands)
            ],
        }  # fmt: skip
        body: Message = {
            "order_id": os.urandom(16).hex(), "run_id": 812, "installation_id": INSTALLATION, "device_id": DEVICE_ID,
            "epoch": 1, "issued_at": now.isoformat(), "expires_at": (now + timedelta(minutes=10)).isoformat(),
            "kind": "command", "work": work, "environment": {"DEPLOYX_DEVICE_ID": str(DEVICE_ID)},
        }  # fmt: skip
        for name, value in changes.items():
            (work if name in work else body)[name] = value
        return body

    def signed(self, body: Message, key: Ed25519PrivateKey | None = None) -> Message:
        text = json.dumps(body)
        signature = (key or self.key).sign(protocol.order_signing_input(text))
        return {"type": "order", "body": text, "signature": base64.b64encode(signature).decode()}

    async def send(self, message: Message) -> None:
        assert self._socket is not None
        await self._socket.send(json.dumps(message))

    async def give(self, *commands: str, **changes: Any) -> str:
        """Send an order; answers its id."""
        await self.until(lambda: self._socket is not None)
        body = self.order(*commands, **changes)
        await self.send(self.signed(body))
        return str(body["order_id"])

    async def cancel(self, order_id: str) -> None:
        await self.send({"type": "cancel", "order_id": order_id, "run_id": 812})

    async def until(self, condition: Callable[[], Any], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)

    async def message(self, kind: str, order_id: str | None = None) -> Message:
        """The first message of a kind, about an order if one is named; waits for it."""
        await self.until(lambda: self.all(kind, order_id))
        return self.all(kind, order_id)[0]

    def all(self, kind: str, order_id: str | None = None) -> list[Message]:
        return [one for one in self.heard if one["type"] == kind and order_id in (None, one.get("order_id"))]

    def text(self, order_id: str, stream: str = "stdout") -> str:
        """What an order printed, each chunk once, as a server would store it."""
        chunks = {chunk["seq"]: chunk for one in self.all("output", order_id) for chunk in one["chunks"]}
        return "".join(chunks[seq]["text"] for seq in sorted(chunks) if chunks[seq]["stream"] == stream)

    async def _serve(self, socket: ServerConnection) -> None:
        try:
            await self._greet(socket)
            async for text in socket:
                message = json.loads(text)
                self.sessions[-1].append(message)
                await self._hear(message)
                await self._answer(socket, message)
        except ConnectionClosed:
            pass
        finally:
            if self._socket is socket:
                self._socket = None

    async def _greet(self, socket: ServerConnection) -> None:
        nonce = base64.b64encode(os.urandom(32)).decode()
        opening = {"type": "challenge", "protocol": 1, "nonce": nonce, "installation_id": self.installation_id}
        await socket.send(json.dumps(opening | {"server_time": datetime.now(UTC).isoformat()}))
        hello = json.loads(await socket.recv())
        signed = protocol.session_signing_input(INSTALLATION, DEVICE_ID, nonce)
        assert self.device_key is not None
        self.device_key.verify(base64.b64decode(hello["signature"]), signed)
        if self.refusal is not None:
            await socket.send(json.dumps(self.refusal))
            await self._hear(hello)
            await socket.close(1008)
            return
        welcome = {"type": "welcome", "session": "s", "server_time": datetime.now(UTC).isoformat()}
        await socket.send(json.dumps(welcome | {"heartbeat_seconds": self.heartbeat_seconds}))
        self.sessions.append([hello])
        self._socket = socket
        await self._hear(hello)

    async def _hear(self, message: Message) -> None:
        async with self._changed:
            self.heard.append(message)
            self._changed.notify_all()

    async def _answer(self, socket: ServerConnection, message: Message) -> None:
        match message["type"]:
            case "output" if self.acknowledges:
                through = message["chunks"][-1]["seq"]
                answer = {"type": "output_ack", "order_id": message["order_id"], "through": through}
            case "finished" if self.acknowledges:
                answer = {"type": "finished_ack", "order_id": message["order_id"]}
            case "heartbeat" if self.answers_heartbeats:
                answer = {"type": "heartbeat_ack", "server_time": datetime.now(UTC).isoformat()}
            case _:
                return
        await socket.send(json.dumps(answer))
