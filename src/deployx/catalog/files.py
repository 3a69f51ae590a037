"""Stored files: a name for a content, who uploaded it, and who may see it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, insert, select, text

from deployx.catalog import uses
from deployx.catalog.blobs import Blob
from deployx.db.bulk import moment_parameter
from deployx.db.database import Session
from deployx.db.schema import blobs, files
from deployx.errors import Conflict

_TOUCH = text(
    "INSERT INTO blobs (sha256, size_bytes, created_at) VALUES (:sha256, :size_bytes, :now)"
    " ON CONFLICT (sha256) DO UPDATE SET created_at = excluded.created_at"
)


async def announce(session: Session, blob: Blob, *, now: datetime) -> None:
    """Say that a content is wanted, in a transaction that ends before it is placed.

    From then on the sweep leaves it alone for a day, and it has finished with it if it had begun.
    """
    values = {"sha256": blob.sha256, "size_bytes": blob.size_bytes, "now": moment_parameter(session, now)}
    await session.execute(_TOUCH, values)


async def add(session: Session, filename: str, blob: Blob, *, by: int, now: datetime) -> int:
    """Name a content that was announced and placed; answers the file's id."""
    values = {"filename": filename, "sha256": blob.sha256, "uploaded_by": by, "created_at": now}
    row = await session.execute(insert(files).values(values).returning(files.c.id))
    return int(row.scalar_one())


def visible(user_id: int, *, own_only: bool) -> Select[Any]:
    """Files with their sizes, newest first: all of them, or the user's own."""
    query = select(files, blobs.c.size_bytes).join(blobs, blobs.c.sha256 == files.c.sha256)
    query = query.where(files.c.uploaded_by == user_id) if own_only else query
    return query.order_by(files.c.id.desc())


async def remove(session: Session, file_id: int) -> None:
    """Remove a file; its content goes with the sweep. Raises Conflict while it is used, and names by what."""
    await uses.lock(session, files, file_id)
    used_by = await uses.of_file(session, file_id)
    if used_by:
        raise Conflict(f"File {file_id} is used by {uses.listed(used_by)}: take it off there first.")
    await session.execute(delete(files).where(files.c.id == file_id))


async def known(session: Session, sha256: str) -> int | None:
    """The size of a content that some file has; None where there is none."""
    query = select(blobs.c.size_bytes).join(files, files.c.sha256 == blobs.c.sha256)
    size: int | None = (await session.execute(query.where(blobs.c.sha256 == sha256).limit(1))).scalar_one_or_none()
    return size


async def existing(session: Session, file_ids: Sequence[int]) -> set[int]:
    """Those of these files that exist; they cannot be deleted before this transaction ends."""
    return await uses.existing(session, files, file_ids)
