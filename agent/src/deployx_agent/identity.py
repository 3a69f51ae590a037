"""This device's key: made here once, never leaves, proves who opens a session."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class BrokenKey(Exception):
    """The key file is not what it should be; the sentence says what to do."""


def load_or_create(data_dir: Path) -> Ed25519PrivateKey:
    """The Ed25519 key in `device.key` (32 raw bytes, mode 0600). Raises BrokenKey."""
    if (data_dir / "device.key").exists():
        return load(data_dir)
    key = Ed25519PrivateKey.generate()
    _store(data_dir / "device.key", key.private_bytes_raw())
    return key


def load(data_dir: Path) -> Ed25519PrivateKey:
    """The key that is there. Raises BrokenKey where it is not, or not whole."""
    path = data_dir / "device.key"
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except FileNotFoundError:
        raise BrokenKey(f"{path} is missing: restore it, or remove this folder and enrol again.") from None
    except ValueError:
        raise BrokenKey(
            f"{path} is not an Ed25519 key of 32 bytes: restore it, or remove it and enrol again."
        ) from None


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _store(path: Path, content: bytes) -> None:
    """Write beside, fsync and rename, so that a crash leaves no half a key."""
    beside = path.with_suffix(".key.new")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
