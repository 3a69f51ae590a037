"""`Idempotency-Key`: the same request under the same key is carried out once and answered alike for 24 hours.

Answers may hold what is shown once, such as a token, so they are kept encrypted: the database alone gives none away.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import delete, select, text, update
from starlette.types import ASGIApp

from deployx.api.context import Services
from deployx.db.bulk import moment_parameter
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
    key_of({"idempotency-key": key})
    asked = f"{scope['method']} {scope['path']}?".encode() + scope["query_string"]
    fingerprint = hashlib.sha256(asked + b"\n" + body).digest()
    database, seal = services.database, _Seal(services.installation.signing_key, f"{principal.user_id}:{key}")

    async def claim(session: Session) -> Any:
        return await _claim(session, principal.user_id, key, fingerprint, now=await database.now(session))

    first = await database.transact(claim)
    if first is not None:
        await _answer_again(first, fingerprint, key, seal, send)
        return
    recorded = _Recorder(send)
    try:
        await app(scope, _replay(body), recorded.send)
    finally:
        await database.transact(lambda session: _keep(session, principal.user_id, key, recorded, seal))


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it is kept and given again."""

    status: int
    headers: dict[str, str]
    body: bytes


def key_of(headers: Mapping[str, str]) -> str | None:
    """The key of a request, where it has one. Raises BadRequest for one that cannot be kept."""
    key = headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 200:
        raise BadRequest("Idempotency-Key must have 1 to 200 characters.")
    return key


async def within(
    session: Session, services: Services, principal: Principal, key: str, fingerprint: bytes, now: datetime,
    make: Callable[[Session, datetime], Awaitable[Answer]],
) -> Answer:  # fmt: skip
    """Like `once`, for a route that knows what was asked only after it has read the body: in its own transaction."""
    seal = _Seal(services.installation.signing_key, f"{principal.user_id}:{key}")
    first = await _claim(session, principal.user_id, key, fingerprint, now=now)
    if first is not None:
        return _earlier(first, fingerprint, key, seal)
    made = await make(session, now)
    kept = {name: value for name, value in made.headers.items() if name.lower().encode() in _KEPT_HEADERS}
    mine = (keys.c.user_id == principal.user_id) & (keys.c.key == key)
    values = {"status": made.status, "headers": kept, "body": seal.closed(made.body)}
    await session.execute(update(keys).where(mine).values(values))
    return made


async def _claim(session: Session, user_id: int, key: str, fingerprint: bytes, *, now: datetime) -> Any:
    """Take the key for this request: None, or the earlier row where it is taken. Of two at once, one waits."""
    await session.execute(delete(keys).where(keys.c.created_at <= now - KEPT_FOR))
    values = {"user_id": user_id, "key": key, "fingerprint": fingerprint, "now": moment_parameter(session, now)}
    taken = await session.execute(_TAKE, values)
    if taken.first() is not None:
        return None
    mine = (keys.c.user_id == user_id) & (keys.c.key == key)
    earlier = (await session.execute(select(keys).where(mine))).one_or_none()
    if earlier is None:
        raise Conflict(f"Another request under Idempotency-Key {key!r} was refused just now: send this one again.")
    return earlier


_TAKE = text(
    "INSERT INTO idempotency_keys (user_id, key, fingerprint, created_at) VALUES (:user_id, :key, :fingerprint, :now)"
    " ON CONFLICT DO NOTHING RETURNING user_id"
)


async def _answer_again(first: Any, fingerprint: bytes, key: str, seal: _Seal, send: Send) -> None:
    earlier = _earlier(first, fingerprint, key, seal)
    headers = [(name.encode(), value.encode()) for name, value in earlier.headers.items()]
    await send({"type": "http.response.start", "status": earlier.status, "headers": headers})
    await send({"type": "http.response.body", "body": earlier.body})


def _earlier(first: Any, fingerprint: bytes, key: str, seal: _Seal) -> Answer:
    """What the first request under this key was answered. Raises Conflict where it was another one, or is unknown."""
    if first.fingerprint != fingerprint:
        raise Conflict(f"Idempotency-Key {key!r} was used for another request: use a new key.")
    if first.status is None:
        raise Conflict(
            f"The first request under Idempotency-Key {key!r} has not been answered: look what became of it."
        )
    body = seal.opened(first.body)
    if body is None:
        raise Conflict(f"The first answer under Idempotency-Key {key!r} can no longer be read: look what became of it.")
    return Answer(first.status, first.headers, body)


async def _keep(session: Session, user_id: int, key: str, recorded: _Recorder, seal: _Seal) -> None:
    """Keep a good answer; after a refusal the key is free again.

    A good answer that broke off stays unanswered: the work is done, so the key must not do it again.
    """
    mine = (keys.c.user_id == user_id) & (keys.c.key == key)
    if not 200 <= recorded.status < 300:
        await session.execute(delete(keys).where(mine))
        return
    if not recorded.complete:
        return
    values = {"status": recorded.status, "headers": recorded.headers, "body": seal.closed(bytes(recorded.body))}
    await session.execute(update(keys).where(mine).values(values))


class _Seal:
    """Encrypts the answer to one request with a key that is not in the database."""

    def __init__(self, signing_key: Ed25519PrivateKey, request: str) -> None:
        derived = HKDF(SHA256(), 32, salt=None, info=b"deployx kept answers").derive(signing_key.private_bytes_raw())
        self._cipher = ChaCha20Poly1305(derived)
        self._request = request.encode()

    def closed(self, answer: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + self._cipher.encrypt(nonce, answer, self._request)

    def opened(self, kept: bytes) -> bytes | None:
        """None where another key had closed it."""
        try:
            return self._cipher.decrypt(kept[:12], kept[12:], self._request)
        except InvalidTag:
            return None


class _Recorder:
    """Passes an answer on and remembers it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.complete = False
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
            self.complete = not message.get("more_body", False)
        await self._send(message)


def _replay(body: bytes) -> Callable[[], Awaitable[Message]]:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
