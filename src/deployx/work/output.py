"""What device runs printed: stored in order by sequence number, each chunk once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from deployx.db.bulk import insert_rows
from deployx.db.database import Session
from deployx.db.schema import output_chunks

_COLUMNS = ("run_id", "seq", "step", "stream", "at", "text")


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one stream; `seq` counts over both streams of the run, in the order they were read."""

    run_id: int
    seq: int
    step: int
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class Part:
    """A page of output in order; `next` is the last seq in it, or what was asked after."""

    rows: Sequence[Any]
    next: int


async def read(session: Session, run_id: int, after: int, stream: str | None, *, limit: int) -> Part:
    """Chunks after a sequence number, of both streams or of one."""
    query = select(output_chunks).where(output_chunks.c.run_id == run_id, output_chunks.c.seq > after)
    if stream is not None:
        query = query.where(output_chunks.c.stream == stream)
    rows = (await session.execute(query.order_by(output_chunks.c.seq).limit(limit))).all()
    return Part(rows, rows[-1].seq if rows else after)


async def append(session: Session, chunks: Sequence[Chunk], *, now: datetime) -> None:
    """Store chunks; one that is there already is passed over, so an agent may send again what was not acknowledged."""
    rows = [(one.run_id, one.seq, one.step, one.stream, now, one.text.replace("\0", "\ufffd")) for one in chunks]
    await insert_rows(session, output_chunks, _COLUMNS, rows, keep_existing=True)
