"""Fetches contents into the agent's own folder: from the server by ticket, or from an address; checked by SHA-256.

What broke off is gone on with, also after the agent's end. A content stays as long as an order holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import random
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from deployx_agent.source import Answer, Refused, Source
from deployx_agent.work import FileRef

PIECE_BYTES = 1024 * 1024
LEFT_OVER_SECONDS = 86_400.0
_SHORTEST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.5, 15.0
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_WHY = {
    401: "the server no longer takes this order's ticket",
    403: "access is refused there",
    404: "it is not there any more",
}


class CannotFetch(Exception):
    """A content is not to be had; the sentence says why."""


class OutOfTime(CannotFetch):
    """The step's time was over before the content was there."""


class _Stopped(Exception):
    """The order was stopped meanwhile."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A content: what to call it in words, its digest and size (None where it is not known), and where it is."""

    name: str
    sha256: str
    size_bytes: int | None
    source: Source


class Downloads:
    """The contents that this agent holds; one for all its orders."""

    def __init__(self, folder: Path, server: str, ca_file: str | None = None) -> None:
        self._folder = folder
        self._server = server.rstrip("/")
        self._ca_file = ca_file
        self._holders: Counter[str] = Counter()
        self._one_at_a_time: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def tidy(self) -> None:
        """Remove what earlier runs of the agent left, unless it is young enough to be gone on with. Blocks."""
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                if time.time() - path.stat().st_mtime > LEFT_OVER_SECONDS:
                    path.unlink(missing_ok=True)

    def of_server(self, file: FileRef, ticket: str) -> Wanted:
        headers = {"Authorization": f"Ticket {ticket}"}
        context = ssl.create_default_context(cafile=self._ca_file) if self._server.startswith("https:") else None
        source = Source(f"{self._server}/api/agent/files/{file.sha256}", headers, context)
        return Wanted(file.name, file.sha256, file.size_bytes, source)

    def of_address(self, url: str, sha256: str) -> Wanted:
        """A content at an http or https address, which may send on to another; link-local ones are refused."""
        return Wanted(url, sha256, None, Source(url, guarded=True))

    @contextlib.asynccontextmanager
    async def held(self, wanted: Wanted, *, stopped: asyncio.Event, timeout_seconds: float) -> AsyncIterator[Path]:
        """The path of the checked content, as long as the block lasts. Raises CannotFetch."""
        path = self._folder / wanted.sha256
        self._holders[wanted.sha256] += 1
        try:
            async with self._one_at_a_time[wanted.sha256]:
                await self._fetch(wanted, path, stopped, time.monotonic() + timeout_seconds)
            yield path
        finally:
            self._holders[wanted.sha256] -= 1
            if not self._holders[wanted.sha256]:
                del self._holders[wanted.sha256]
                self._one_at_a_time.pop(wanted.sha256, None)
                await asyncio.to_thread(path.unlink, missing_ok=True)

    async def _fetch(self, wanted: Wanted, path: Path, stopped: asyncio.Event, give_up_at: float) -> None:
        """Try until it is there, the time is over or the order was stopped."""
        attempt = 0
        if await asyncio.to_thread(_is_there, path, wanted):
            return
        while (why := await _to_its_end(_Transfer(wanted, path), stopped, give_up_at)) is not None:
            attempt += 1
            delay = random.uniform(0.5, 1) * _delay_seconds(attempt)
            left = give_up_at - time.monotonic()
            if left <= 0:
                raise OutOfTime(f"{wanted.name!r} could not be fetched in time: {why}.")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(delay, left)):
                    await stopped.wait()


def _delay_seconds(attempt: int) -> float:
    return min(_LONGEST_DELAY_SECONDS, _SHORTEST_DELAY_SECONDS * 2.0 ** min(attempt, 10))


async def _to_its_end(transfer: _Transfer, stopped: asyncio.Event, give_up_at: float) -> str | None:
    """Run a transfer in a thread; answers why it broke off, None where it did not. Raises CannotFetch."""
    if stopped.is_set():
        raise CannotFetch("Stopped.")
    running = asyncio.create_task(asyncio.to_thread(transfer.run))
    stop = asyncio.create_task(stopped.wait())
    try:
        left = max(0.0, give_up_at - time.monotonic())
        done, _ = await asyncio.wait({running, stop}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if running not in done:
            transfer.abort()
            with contextlib.suppress(_Stopped, CannotFetch):
                await running
            raise (
                CannotFetch("Stopped.")
                if stop in done
                else OutOfTime(f"{transfer.name!r} could not be fetched in time: it was still on its way.")
            )
        return running.result()
    finally:
        stop.cancel()


def _is_there(path: Path, wanted: Wanted) -> bool:
    """Whether an earlier holder's content is still there, and whole."""
    try:
        return _digest_of(path).hexdigest() == wanted.sha256
    except FileNotFoundError:
        return False


def _digest_of(path: Path) -> hashlib._Hash:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest


class _Transfer:
    """One connection's worth of a download, run in a thread."""

    def __init__(self, wanted: Wanted, path: Path) -> None:
        self._wanted = wanted
        self._path = path
        self._part = path.with_suffix(".part")
        self._aborted = threading.Event()
        self._answer: Answer | None = None
        self.name = wanted.name

    def abort(self) -> None:
        """End it from another thread; `run` then raises."""
        self._aborted.set()
        if self._answer is not None:
            self._answer.break_off()

    def run(self) -> str | None:
        """Fetch what is missing; answers why it broke off. Raises CannotFetch where trying again is of no use."""
        try:
            self._part.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._receive()
        except Refused as error:
            raise CannotFetch(str(error)) from None
        except (OSError, HTTPException) as error:
            if self._aborted.is_set():
                raise _Stopped from None
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                self._part.unlink(missing_ok=True)
                raise CannotFetch(f"The disk is full: {self.name!r} does not fit into {self._part.parent}.") from None
            if isinstance(error, PermissionError):
                raise CannotFetch(f"{self._part} cannot be written: {error.strerror}.") from None
            return str(error) or type(error).__name__

    def _receive(self) -> str | None:
        known = self._part.stat().st_size if self._part.exists() else 0
        digest = _digest_of(self._part) if known else hashlib.sha256()
        with self._wanted.source.open(known) as self._answer:
            if self._aborted.is_set():  # while it connected
                raise _Stopped
            status = self._answer.status
            if status in _RETRIED:
                return f"the other side answered {status}"
            if status == 416:
                self._part.unlink(missing_ok=True)
                return "what was there already was more than there is"
            if status not in (200, 206):
                raise CannotFetch(f"{self.name!r} cannot be fetched: {_WHY.get(status, f'status {status}')}.")
            if status == 200:
                known, digest = 0, hashlib.sha256()
            with self._part.open("ab" if known else "wb") as file:
                while piece := self._answer.read(PIECE_BYTES):
                    if self._aborted.is_set():
                        raise _Stopped
                    file.write(piece)
                    digest.update(piece)
        # Not synced: it is hashed again where a later agent finds it, and mostly gone before it reaches the disk.
        return self._check(digest.hexdigest())

    def _check(self, digest: str) -> str | None:
        size, expected = self._part.stat().st_size, self._wanted.size_bytes
        if expected is not None and size < expected:
            return f"the connection ended after {size} of {expected} bytes"
        if digest != self._wanted.sha256:
            self._part.unlink(missing_ok=True)
            raise CannotFetch(f"{self.name!r} has another SHA-256 ({digest}) than the order says: it was not used.")
        self._part.replace(self._path)
        return None
