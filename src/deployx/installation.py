"""What makes this installation itself: its id, its epoch, and the key that signs work orders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, select, text

from deployx.db.bulk import on_sqlite
from deployx.db.database import Session
from deployx.db.schema import installation
from deployx.errors import StartupRefused


@dataclass(frozen=True, slots=True)
class Installation:
    id: str
    epoch: int
    signing_key: Ed25519PrivateKey


async def ensure(session: Session, key_file: Path, *, now: datetime) -> Installation:
    """The installation of this database, made on first start, with the key in `key_file`.

    Raises StartupRefused where the database is not new and the key is gone: agents obey only the key they know.
    """
    if not on_sqlite(session):
        # Replicas may start together on an empty database; the first one makes the installation.
        await session.execute(text("LOCK TABLE installation IN SHARE ROW EXCLUSIVE MODE"))
    row = (await session.execute(select(installation))).one_or_none()
    if row is None:
        key = load_key(key_file) or create_key(key_file)
        await session.execute(insert(installation).values(id=1, installation_id=uuid4().hex, epoch=1, created_at=now))
        row = (await session.execute(select(installation))).one()
        return Installation(row.installation_id, row.epoch, key)
    known = load_key(key_file)
    if known is None:
        raise StartupRefused(
            f"SIGNING_KEY_FILE {key_file} is not there, but agents of this database obey only that key:"
            " put it back from a backup, or share the file of the replica that started first."
        )
    return Installation(row.installation_id, row.epoch, known)


def load_key(path: Path) -> Ed25519PrivateKey | None:
    """The Ed25519 key in a file of 32 raw bytes; None where there is no file."""
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise StartupRefused(f"SIGNING_KEY_FILE {path} holds no Ed25519 key of 32 raw bytes.") from None


def create_key(path: Path) -> Ed25519PrivateKey:
    """Make a key and put it into a file of mode 0600, whole or not at all."""
    key = Ed25519PrivateKey.generate()
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}")
    handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(key.private_bytes_raw())
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    return key
