"""What every request passes before a route sees it: an id, who asks, the bounds of its body, and a log line after.

Plain ASGI, so that 401 is decided before a byte of the body is read.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp

from deployx.api import idempotency, json_bodies, problems
from deployx.api.context import Services
from deployx.errors import DeployXError, NotPermitted, NotSignedIn, TooLarge, WrongContentType
from deployx.people import sessions
from deployx.people.principal import Principal

log = structlog.get_logger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

COOKIE = "deployx_session"
BODY_BYTES = 1024 * 1024
OF_LINES = frozenset({"/api/schedule/tasks/import"})
"""Takes many JSON values, one a line."""
LINES_BYTES = 64 * 1024 * 1024
LINES_TYPES = ("application/x-ndjson", "application/jsonl", "application/json", "text/plain")
STREAMED = frozenset({"/api/files"})
"""Its route reads the body itself, in pieces, and keeps its own bounds."""
BY_TICKET = "/api/agent/files/"
"""Below it nobody is signed in: the ticket of a work order is the proof, and the route checks it."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
PUBLIC = frozenset(
    {"/healthz", "/readyz", "/metrics", "/api/openapi.json", "/api/docs", "/api/docs.js", "/api/auth/login",
     "/api/agent/enroll", "/"}
)  # fmt: skip
_REQUEST_ID = re.compile(r"^[A-Za-z0-9._-]{1,64}$")
_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Gate:
    """Wraps the application; WebSockets of agents go to their endpoint."""

    def __init__(self, app: ASGIApp, services: Services, agents: ASGIApp) -> None:
        self._app = app
        self._services = services
        self._agents = agents

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/api/agent/connect":
            await self._agents(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        scope.setdefault("state", {})["request_id"] = request_id
        scope["state"]["address"] = self._address(scope, headers)
        answered = _Answer(send, request_id, without_body=scope["method"] == "HEAD")
        if scope["method"] == "HEAD":
            # A copy: the server behind keeps its own, and knows by it that no body will follow.
            scope = {**scope, "method": "GET"}
            scope["state"]["without_body"] = True
        try:
            await self._admit(scope, headers, receive, answered.send)
        except DeployXError as error:
            await problems.answer(error)(scope, receive, answered.send)
        finally:
            seconds = round(time.perf_counter() - began, 4)
            log.debug(
                "request.answered", method=scope["method"], path=scope["path"], status=answered.status, seconds=seconds
            )
            structlog.contextvars.unbind_contextvars("request_id")

    async def _admit(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        principal, by_cookie = await self._principal(scope, headers)
        scope["state"]["principal"] = principal
        if principal is None and scope["path"] not in PUBLIC and not scope["path"].startswith(BY_TICKET):
            raise NotSignedIn("Sign in first: send a session or API token as `Authorization: Bearer …`.")
        if by_cookie and scope["method"] not in SAFE:
            self._require_own_origin(scope, headers)
        if scope["method"] in SAFE:
            await self._app(scope, receive, send)
            return
        if scope["method"] == "POST" and scope["path"] in STREAMED:
            await self._app(scope, receive, send)
            return
        body = await _body(scope["path"], headers, receive)
        if scope["method"] == "POST" and principal is not None and "idempotency-key" in headers:
            key = headers["idempotency-key"]
            await idempotency.once(self._services, principal, key, scope, body, self._app, send)
            return
        await self._app(scope, replay(body), send)

    async def _principal(self, scope: Scope, headers: Headers) -> tuple[Principal | None, bool]:
        """Whose request this is, and whether only a cookie says so."""
        token, by_cookie = _bearer(headers), False
        if token is None and "authorization" not in headers:
            token, by_cookie = _cookie(headers), True
        if token is None:
            return None, False
        state = scope["state"]
        async with self._services.database.read() as session:
            now = await self._services.database.now(session)
            principal = await sessions.principal_of(
                session, token, now=now, address=state["address"], request_id=state["request_id"]
            )
        return principal, by_cookie and principal is not None

    def _require_own_origin(self, scope: Scope, headers: Headers) -> None:
        """A cookie travels with any site's request, so a change must come from this site's own pages."""
        own = self._services.settings.public_url or f"{scope['scheme']}://{headers.get('host', '')}"
        if headers.get("origin") != own.rstrip("/"):
            raise NotPermitted("A request that changes something by cookie must carry this site's own Origin.")

    def _address(self, scope: Scope, headers: Headers) -> str | None:
        """The caller's address; that of a trusted proxy's header where one is in front."""
        peer = scope["client"][0] if scope.get("client") else None
        trusted = self._services.settings.trusted_proxies
        if peer is None or not trusted or not _within(peer, trusted):
            return peer
        forwarded = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
        return forwarded[:64] if _is_address(forwarded) else peer


class _Answer:
    """Adds the headers of every answer, and leaves out the body of one to HEAD."""

    def __init__(self, send: Send, request_id: str, *, without_body: bool) -> None:
        self._send = send
        self._request_id = request_id
        self._without_body = without_body
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            for name, value in _SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        elif self._without_body and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.match(given) else uuid4().hex


def _bearer(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def _cookie(headers: Headers) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return found.value if found else None


def _within(address: str, networks: str) -> bool:
    try:
        return any(
            ipaddress.ip_address(address) in ipaddress.ip_network(one.strip(), strict=False)
            for one in networks.split(",")
        )
    except ValueError:
        return False


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


async def _body(path: str, headers: Headers, receive: Receive) -> bytes:
    """The whole body, within its bounds; where there is one it must be JSON, or lines of it where those are taken."""
    most = LINES_BYTES if path in OF_LINES else BODY_BYTES
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most:
        raise TooLarge(f"The body has {declared} bytes, more than {most}.")
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise TooLarge(f"The body has more than {most} bytes.")
        if not message.get("more_body", False):
            break
    body = b"".join(parts)
    if path in OF_LINES:
        _require_lines(headers.get("content-type", ""))
    elif body:
        _require_json(headers.get("content-type", ""), body)
    return body


def _require_json(content_type: str, body: bytes) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise WrongContentType(f"Content-Type {media_type or 'none'!r}: send application/json.")
    json_bodies.parsed(body)


def _require_lines(content_type: str) -> None:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in LINES_TYPES:
        raise WrongContentType(f"Content-Type {media_type or 'none'!r}: send {LINES_TYPES[0]}.")


def replay(body: bytes) -> Receive:
    """A `receive` that gives a body that was read already."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
