"""Unpacks archives into a new folder: plain files and folders only, nothing outside of it, nothing without bounds.

Blocks; run it in a thread. What is refused leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

ENTRIES_AT_MOST = 100_000
BYTES_AT_MOST = 20 * 2**30
RATIO_AT_MOST = 200
RATIO_COUNTS_FROM_BYTES = 100 * 2**20
PIECE_BYTES = 1024 * 1024


class BadArchive(Exception):
    """An archive that is not unpacked; the sentence names the entry."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry; `open` is None for a folder."""

    name: str
    is_executable: bool
    open: Callable[[], IO[bytes]] | None


def unpack(archive: Path, into: Path, stopped: threading.Event) -> None:
    """Unpack a zip or tar (also gz, bz2, xz) into a folder that does not exist yet. Raises BadArchive, OSError."""
    into.mkdir(mode=0o700, parents=True)
    try:
        _unpack(archive, into, stopped)
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise


def _unpack(archive: Path, into: Path, stopped: threading.Event) -> None:
    most = min(BYTES_AT_MOST, max(RATIO_COUNTS_FROM_BYTES, archive.stat().st_size * RATIO_AT_MOST))
    try:
        with contextlib.closing(_entries(archive)) as entries:
            _write_all(entries, into, most, stopped)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError) as error:
        raise BadArchive(f"The archive cannot be read: {error}.") from None
    except (ValueError, RuntimeError, OverflowError) as error:  # encrypted, or numbers beyond all bounds
        raise BadArchive(f"The archive cannot be read: {error}.") from None


def _write_all(entries: Iterator[_Entry], into: Path, most: int, stopped: threading.Event) -> None:
    left = most
    for number, entry in enumerate(entries):
        if number >= ENTRIES_AT_MOST:
            raise BadArchive(f"The archive has more than {ENTRIES_AT_MOST} entries.")
        target = into / _inside(entry.name)
        if entry.open is None:
            target.mkdir(mode=0o755, parents=True, exist_ok=True)
            continue
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        left -= _write(entry, target, left, stopped)
        if left < 0:
            raise BadArchive(f"The archive unpacks to more than {most} bytes, at {entry.name!r}.")


def _write(entry: _Entry, target: Path, most: int, stopped: threading.Event) -> int:
    assert entry.open is not None
    written = 0
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    except FileExistsError:
        raise BadArchive(f"The archive has {entry.name!r} twice.") from None
    with os.fdopen(handle, "wb") as file, entry.open() as content:
        while piece := content.read(PIECE_BYTES):
            if stopped.is_set():
                raise BadArchive("Stopped.")
            written += len(piece)
            if written > most:
                return written
            file.write(piece)
    target.chmod(0o755 if entry.is_executable else 0o644)
    return written


def _inside(name: str) -> PurePosixPath:
    """The entry's path below the folder. Raises BadArchive for one that leads elsewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
        raise BadArchive(f"The archive's entry {name[:200]!r} leads out of its folder.")
    return path


def _entries(archive: Path) -> Generator[_Entry, None, None]:
    if zipfile.is_zipfile(archive):
        yield from _of_zip(archive)
    else:
        yield from _of_tar(archive)


def _of_zip(archive: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            mode = info.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise BadArchive(f"The archive's entry {info.filename[:200]!r} is no plain file or folder.")
            yield _Entry(info.filename, bool(mode & 0o111), None if info.is_dir() else partial(opened.open, info))


def _of_tar(archive: Path) -> Iterator[_Entry]:
    with tarfile.open(archive, "r:*") as opened:
        for info in opened:
            if not info.isdir() and not info.isreg():
                raise BadArchive(f"The archive's entry {info.name[:200]!r} is no plain file or folder.")
            yield _Entry(info.name, bool(info.mode & 0o111), partial(_content, opened, info) if info.isreg() else None)


def _content(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    found = opened.extractfile(info)
    assert found is not None
    return found
