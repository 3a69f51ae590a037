"""The sessions that agents have with this process: who is connected, and a bounded way to send to each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from deployx import metrics
from deployx.gateway.messages import encode

QUEUED_MESSAGES = 2000
"""A device that lets more than this pile up is cut off; after its reconnect it is told what it missed."""


class Connection:
    """One authenticated session. Messages leave in the order they were given."""

    def __init__(self, device_id: int, session_id: str, journal_id: str, heard_at: float) -> None:
        self.device_id = device_id
        self.session_id = session_id
        self.journal_id = journal_id
        self.heard_at = heard_at
        self.closing: tuple[int, str] | None = None
        self._outbox: asyncio.Queue[str | None] = asyncio.Queue(QUEUED_MESSAGES)

    def send(self, message: Mapping[str, Any]) -> bool:
        """Queue a message; False where the session ends instead, since the device does not keep up."""
        if self.closing is not None:
            return False
        try:
            self._outbox.put_nowait(encode(message).decode())
        except asyncio.QueueFull:
            self.close(1013, "slow")
            return False
        return True

    def close(self, code: int, reason: str) -> None:
        """End the session after what is queued; a full queue is dropped."""
        if self.closing is not None:
            return
        self.closing = (code, reason)
        if self._outbox.full():
            self._outbox.get_nowait()
        self._outbox.put_nowait(None)

    async def next_text(self) -> str | None:
        """The next message to write; None when the session is to be closed."""
        return await self._outbox.get()


class Connections:
    """All sessions of this process, one per device: the newest authenticated one."""

    def __init__(self) -> None:
        self._by_device: dict[int, Connection] = {}
        self.unauthenticated = 0

    def __len__(self) -> int:
        return len(self._by_device)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._by_device.values()))

    def add(self, connection: Connection) -> None:
        older = self._by_device.get(connection.device_id)
        self._by_device[connection.device_id] = connection
        metrics.AGENTS.set(len(self._by_device))
        if older is not None:
            older.send({"type": "refused", "code": "replaced", "detail": "A newer session of this device was opened."})
            older.close(1008, "replaced")

    def remove(self, connection: Connection) -> None:
        if self._by_device.get(connection.device_id) is connection:
            del self._by_device[connection.device_id]
            metrics.AGENTS.set(len(self._by_device))

    def get(self, device_id: int) -> Connection | None:
        return self._by_device.get(device_id)

    def send(self, device_id: int, message: Mapping[str, Any]) -> bool:
        connection = self._by_device.get(device_id)
        return connection is not None and connection.send(message)
