"""Contents on disk, each once under its digest; which of them are wanted is in the database (`files`, `sweeping`).

A content is written into `incoming/`, hashed meanwhile, and renamed to `ab/abcd…` when it is whole and on disk: what
stands under a digest is always the whole content of that digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from deployx.errors import NotFound, NotReady, StartupRefused, StorageFull

SENT_PIECE_BYTES = 256 * 1024
"""Less than what is written at once: many agents fetch together, and TLS holds each piece several times."""
PIECE_BYTES = 1024 * 1024
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DIGEST_CHARACTERS = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Blob:
    """One stored content: its SHA-256 in 64 hexadecimal digits, and its size."""

    sha256: str
    size_bytes: int


class BlobStore:
    """The folder `blobs` below `root`. All methods block, except those that say otherwise."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._incoming = self._blobs / "incoming"

    def prepare(self) -> None:
        """Make the folders. Raises StartupRefused where that is not possible."""
        try:
            self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.check()
        except OSError as error:
            raise StartupRefused(
                f"The storage {self._blobs} cannot be used: {error.strerror} (STORAGE_URL or --data-dir)."
            ) from None

    def check(self) -> None:
        """Raise OSError where nothing could be stored now."""
        probe = self._incoming / f"probe-{uuid4().hex}"
        probe.touch(mode=0o600)
        probe.unlink()

    def receive(self) -> Incoming:
        """A new content, to be written in pieces, then placed or discarded. Raises StorageFull, NotReady."""
        return Incoming(self._incoming / uuid4().hex)

    def place(self, incoming: Incoming) -> None:
        """Put a finished content under its digest, durably; safe where the same content comes twice at once."""
        blob = incoming.blob
        target = self._path(blob.sha256)
        with _storage_errors():
            new_folder = not target.parent.exists()
            target.parent.mkdir(exist_ok=True, mode=0o700)
            if _size(target) == blob.size_bytes:
                incoming.discard()
            else:
                os.replace(incoming.path, target)
            # Also where another one placed it: its rename may not be on disk yet.
            _sync_folder(target.parent)
            if new_folder:
                _sync_folder(self._blobs)

    def open(self, sha256: str) -> BinaryIO:
        """The content, for reading. Raises NotFound where it is gone."""
        try:
            return self._path(sha256).open("rb")
        except FileNotFoundError:
            raise NotFound("The content of this file is gone from the storage.") from None

    def remove(self, sha256: str) -> None:
        """Take a content away; one that is not there is no error."""
        self._path(sha256).unlink(missing_ok=True)

    def stored(self, *, before: datetime) -> list[Blob]:
        """Contents that lie there since before an instant."""
        return [
            Blob(path.name, status.st_size)
            for folder in self._blobs.glob("[0-9a-f][0-9a-f]")
            for path, status in _older(folder, before)
            if is_digest(path.name)
        ]

    def remove_left_over(self, *, before: datetime) -> int:
        """Remove unfinished contents that nobody has written to since `before`; answers how many."""
        old = [path for path, _ in _older(self._incoming, before)]
        for path in old:
            path.unlink(missing_ok=True)
        return len(old)

    def _path(self, sha256: str) -> Path:
        if not is_digest(sha256):
            raise NotFound
        return self._blobs / sha256[:2] / sha256


class Incoming:
    """A content on its way in. Every method blocks; after an error, or when it is not wanted, `discard` it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        with _storage_errors():
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)

    def write(self, piece: bytes) -> None:
        """Append. Raises StorageFull where no room is left."""
        self._hash.update(piece)
        self.size_bytes += len(piece)
        rest = memoryview(piece)
        with _storage_errors():
            while rest:
                rest = rest[self._file.write(rest) :]

    def finish(self) -> Blob:
        """Bring what was written to disk; it can be placed then."""
        with _storage_errors():
            os.fsync(self._file.fileno())
            self._file.close()
        return self.blob

    @property
    def blob(self) -> Blob:
        return Blob(self._hash.hexdigest(), self.size_bytes)

    def discard(self) -> None:
        """Leave nothing behind; safe to repeat, and after it was placed."""
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


async def pieces(file: BinaryIO, start: int, length: int) -> AsyncIterator[bytes]:
    """The part of an open content, piece by piece, read off the event loop. Raises OSError where it is cut short."""
    await asyncio.to_thread(file.seek, start)
    left = length
    while left:
        piece = await asyncio.to_thread(file.read, min(SENT_PIECE_BYTES, left))
        if not piece:
            raise OSError(f"a stored content ended {left} bytes early")
        left -= len(piece)
        yield piece


def is_digest(text: str) -> bool:
    """True for a SHA-256 as it is written here: 64 hexadecimal digits in lower case."""
    return len(text) == 64 and _DIGEST_CHARACTERS.issuperset(text)


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull("No room is left in the storage: free some, or make it larger.") from None
        raise NotReady(f"The storage cannot be written to ({error.strerror}): try again later.") from None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _older(folder: Path, before: datetime) -> Iterator[tuple[Path, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # finished or removed meanwhile
                status = entry.stat(follow_symlinks=False)
                if status.st_mtime < before.timestamp():
                    yield Path(entry.path), status


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no such call; renames are journalled there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
