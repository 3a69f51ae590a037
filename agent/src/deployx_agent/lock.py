"""One agent per data folder: a lock that lives as long as its process."""

from __future__ import annotations

import os
import sys
from pathlib import Path


class Held(Exception):
    """Another agent uses this data folder."""


def take(data_dir: Path) -> int:
    """Lock the folder for this process and return the handle to keep open. Raises Held."""
    handle = os.open(data_dir / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(handle)
    except OSError:
        os.close(handle)
        raise Held(f"Another agent uses {data_dir}: stop it, or name another folder with --data-dir.") from None
    return handle


def is_held(data_dir: Path) -> bool:
    try:
        os.close(take(data_dir))
    except Held:
        return True
    return False


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
