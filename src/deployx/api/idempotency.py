"""`Idempotency-Key`: the same request under the same key is carried out once and answered alike for 24 hours."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select, update
from starlette.types import ASGIApp

from deployx.api.context import Services
from deployx.db.database import Session
from deployx.db.schema import idempotency_keys as keys
from deployx.errors import BadRequest, Conflict
from deployx.people.principal import Principal

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

KEPT_FOR = timedelta(hours=24)
_KEPT_HEADERS = frozenset({b"content-type", b"location", b"etag", b"retry-after"})


async def once(
    services: Services, principal: Principal, key: str, scope: MutableMapping[str, Any], body: bytes,
    app: ASGIApp, send: Send,
) -> None:  # fmt: skip
    """Carry the request out, or answer with what the first one under this key was answered."""
    if not 1 <= len(key) <= 200:
        raise BadRequest("Idempotency-Key must have 1 to 200 characters.")
    fingerprint = hashlib.sha256(f"{scope['method']} {scope['path']}\n".encode() + body).digest()
    database = services.database

    async def claim(session: Session) -> Any:
        return await _claim(session, principal.user_id, key, fingerprint, now=await database.now(session))

    first = await database.transact(claim)
    if first is not None:
        await _answer_again(first, fingerprint, key, send)
        return
    recorded = _Recorder(send)
    try:
        await app(scope, _replay(body), recorded.send)
    finally:
        await database.transact(lambda session: _keep(session, principal.user_id, key, recorded))


async def _claim(session: Session, user_id: int, key: str, fingerprint: bytes, *, now: datetime) -> Any:
    """Take the key for this request; the earlier row where it is taken already."""
    mine = (keys.c.user_id == user_id) & (keys.c.key == key)
    await session.execute(delete(keys).where(mine, keys.c.created_at <= now - KEPT_FOR))
    earlier = (await session.execute(select(keys).where(mine))).one_or_none()
    if earlier is None:
        await session.execute(insert(keys).values(user_id=user_id, key=key, fingerprint=fingerprint, created_at=now))
    return earlier


async def _answer_again(first: Any, fingerprint: bytes, key: str, send: Send) -> None:
    if first.fingerprint != fingerprint:
        raise Conflict(f"Idempotency-Key {key!r} was used for another request: use a new key.")
    if first.status is None:
        raise Conflict(
            f"The first request under Idempotency-Key {key!r} has not been answered: look what became of it."
        )
    headers = [(name.encode(), value.encode()) for name, value in first.headers.items()]
    await send({"type": "http.response.start", "status": first.status, "headers": headers})
    await send({"type": "http.response.body", "body": first.body})


async def _keep(session: Session, user_id: int, key: str, recorded: _Recorder) -> None:
    """Keep a good answer; after a refusal the key is free again."""
    mine = (keys.c.user_id == user_id) & (keys.c.key == key)
    if not 200 <= recorded.status < 300:
        await session.execute(delete(keys).where(mine))
        return
    values = {"status": recorded.status, "headers": recorded.headers, "body": bytes(recorded.body)}
    await session.execute(update(keys).where(mine).values(values))


class _Recorder:
    """Passes an answer on and remembers it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {
                name.decode(): value.decode() for name, value in message["headers"] if name.lower() in _KEPT_HEADERS
            }
        else:
            self.body += message.get("body", b"")
        await self._send(message)


def _replay(body: bytes) -> Callable[[], Awaitable[Message]]:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
