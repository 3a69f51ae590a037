"""What makes this installation itself: its id, its epoch, and the key that signs work orders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, select

from deployx.db.database import Session
from deployx.db.schema import installation
from deployx.errors import StartupRefused


@dataclass(frozen=True, slots=True)
class Installation:
    id: str
    epoch: int
    signing_key: Ed25519PrivateKey


async def ensure(session: Session, key_file: Path, *, now: datetime) -> Installation:
    """The installation of this database, made on first start, with the key in `key_file`."""
    row = (await session.execute(select(installation))).one_or_none()
    if row is None:
        await session.execute(insert(installation).values(id=1, installation_id=uuid4().hex, epoch=1, created_at=now))
        row = (await session.execute(select(installation))).one()
    return Installation(row.installation_id, row.epoch, load_or_create_key(key_file))


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 key as 32 raw bytes in a file of mode 0600, made where it is absent."""
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except FileNotFoundError:
        pass
    except ValueError:
        raise StartupRefused(f"SIGNING_KEY_FILE {path} holds no Ed25519 key of 32 raw bytes.") from None
    key = Ed25519PrivateKey.generate()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(key.private_bytes_raw())
        file.flush()
        os.fsync(file.fileno())
    return key
