"""The sweep: contents that no file names any more, and leftovers of broken uploads, go a day later.

An upload announces its content (`files.announce`) before it places it. Announcing and sweeping write the same row, so
one waits for the other; a content is taken from the disk inside the transaction that removes its row. So an upload
either finds the content untouched, or gone and places it again: it is never taken away from under a new file.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import structlog
from sqlalchemy import text

from deployx.catalog.blobs import Blob, BlobStore
from deployx.db.bulk import any_of, ids_parameter, insert_rows, moment_parameter
from deployx.db.database import Database, Session
from deployx.db.schema import blobs

log = structlog.get_logger(__name__)

KEPT_FOR = timedelta(days=1)
AT_ONCE = 20
"""Contents removed in one transaction: on SQLite everything else that writes waits for it."""
ROWS_AT_ONCE = 1000


async def sweep(database: Database, store: BlobStore) -> int:
    """Remove what has not been wanted for a day; answers how many contents and leftovers went. Safe to repeat."""
    async with database.read() as session:
        before = await database.now(session) - KEPT_FOR
    removed = await asyncio.to_thread(store.remove_left_over, before=before)
    stored = await asyncio.to_thread(lambda: store.stored(before=before))
    for first in range(0, len(stored), ROWS_AT_ONCE):
        await _adopt(database, stored[first : first + ROWS_AT_ONCE], before)
    while gone := await database.transact(lambda session: _remove_some(session, store, before)):
        removed += gone
    if removed:
        log.info("storage.swept", removed=removed)
    return removed


async def _adopt(database: Database, found: list[Blob], before: datetime) -> None:
    """Contents that the database does not know (it was put back from a backup) get a row, and go like the others."""
    async with database.read() as session:
        condition = any_of(session, "sha256", "digests")
        values = {"digests": ids_parameter(session, [one.sha256 for one in found])}
        known = set((await session.execute(text(f"SELECT sha256 FROM blobs WHERE {condition}"), values)).scalars())
    rows = [(one.sha256, one.size_bytes, before - KEPT_FOR) for one in found if one.sha256 not in known]
    if not rows:
        return

    async def work(session: Session) -> None:
        await insert_rows(session, blobs, ("sha256", "size_bytes", "created_at"), rows, keep_existing=True)

    await database.transact(work)


async def _remove_some(session: Session, store: BlobStore, before: datetime) -> int:
    rows = await session.execute(
        text(
            "DELETE FROM blobs WHERE created_at < :before AND sha256 IN (SELECT b.sha256 FROM blobs b"
            " WHERE b.created_at < :before AND NOT EXISTS (SELECT 1 FROM files f WHERE f.sha256 = b.sha256)"
            " ORDER BY b.sha256 LIMIT :most) RETURNING sha256"
        ),
        {"before": moment_parameter(session, before), "most": AT_ONCE},
    )
    gone = list(rows.scalars())
    for sha256 in gone:
        await asyncio.to_thread(store.remove, sha256)
    return len(gone)
