"""One HTTP request over http.client: through the environment's proxies, and guarded where it goes to strange places."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from urllib.parse import SplitResult, urljoin, urlsplit

SILENT_AFTER_SECONDS = 30.0
REDIRECTS_AT_MOST = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Refused(Exception):
    """A request that is not made; the sentence says why."""


class Answer:
    """An open answer; read in one thread, broken off from another."""

    def __init__(self, sock: socket.socket, response: HTTPResponse) -> None:
        self._sock = sock
        self._response = response
        self.status = response.status

    def read(self, size: int) -> bytes:
        return self._response.read(size)

    def break_off(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a content is; `guarded` follows redirects, and refuses what is link-local at each step."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    context: ssl.SSLContext | None = None
    guarded: bool = False

    @contextlib.contextmanager
    def open(self, first_byte: int) -> Iterator[Answer]:
        """Ask for the content from a byte on. Raises Refused, OSError or HTTPException."""
        url = self.url
        headers = {**self.headers, "Accept-Encoding": "identity", "User-Agent": "deployx-agent"}
        if first_byte:
            headers["Range"] = f"bytes={first_byte}-"
        for _ in range(REDIRECTS_AT_MOST + 1):
            connection = _connection(url, self.context, guarded=self.guarded)
            with contextlib.closing(connection):
                connection.request("GET", _target(url, connection), headers=headers)
                sock = connection.sock  # which the connection forgets with an answer that is to be the last
                with contextlib.closing(connection.getresponse()) as response:
                    location = response.getheader("Location")
                    if not (self.guarded and response.status in _REDIRECTS and location):
                        yield Answer(sock, response)
                        return
            url = urljoin(url, location)
        raise Refused(f"{self.url!r} sends on more than {REDIRECTS_AT_MOST} times: give the last address.")


def _connection(url: str, context: ssl.SSLContext | None, *, guarded: bool) -> HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(f"{url!r} is no http or https address.")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    proxy = None if urllib.request.proxy_bypass(parts.hostname) else urllib.request.getproxies().get(parts.scheme)
    if proxy:
        return _through(urlsplit(proxy if "//" in proxy else f"//{proxy}"), parts, port, context)
    own = _GuardedTLS if parts.scheme == "https" else _Guarded
    made = own(parts.hostname, port, timeout=SILENT_AFTER_SECONDS)
    made.is_guarded = guarded
    if isinstance(made, _GuardedTLS):
        made.tls = context or ssl.create_default_context()
    return made


def _through(proxy: SplitResult, to: SplitResult, port: int, context: ssl.SSLContext | None) -> HTTPConnection:
    host, proxy_port = proxy.hostname or "", proxy.port or 80
    if to.scheme == "http":
        return HTTPConnection(host, proxy_port, timeout=SILENT_AFTER_SECONDS)
    tls = context or ssl.create_default_context()
    made = HTTPSConnection(host, proxy_port, timeout=SILENT_AFTER_SECONDS, context=tls)
    made.set_tunnel(to.hostname or "", port)
    return made


def _target(url: str, connection: HTTPConnection) -> str:
    """What stands in the request line: the path, or for a proxy the whole address."""
    parts = urlsplit(url)
    if not isinstance(connection, _Guarded | HTTPSConnection):
        return url
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


class _Guarded(HTTPConnection):
    """Looks at each address before it connects: a name may lead to the device's own link, where clouds keep secrets."""

    is_guarded = False

    def connect(self) -> None:
        self.sock = self._reach()

    def _reach(self) -> socket.socket:
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        if self.is_guarded:
            for _, _, _, _, address in found:
                if _is_link_local(str(address[0])):
                    raise Refused(f"{self.host!r} is the link-local address {address[0]}: it is not asked.")
        failed: OSError | None = None
        for family, kind, protocol, _, address in found:
            made = socket.socket(family, kind, protocol)
            made.settimeout(SILENT_AFTER_SECONDS)
            try:
                made.connect(address)
            except OSError as error:
                made.close()
                failed = error
                continue
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        raise failed or OSError(f"{self.host!r} has no address")


def _is_link_local(text: str) -> bool:
    """169.254/16 and fe80::/10, also where the former is written as an IPv6 address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address.is_link_local or (mapped is not None and mapped.is_link_local)


class _GuardedTLS(_Guarded):
    tls: ssl.SSLContext

    def connect(self) -> None:
        plain = self._reach()
        try:
            self.sock = self.tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
