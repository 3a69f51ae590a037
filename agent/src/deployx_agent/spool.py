"""Output on its way to the journal: collected for a moment, written in groups, kept when a write fails."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence

from deployx_agent.journal import Chunk

log = logging.getLogger("deployx_agent")

COLLECT_SECONDS = 0.03
AGAIN_SECONDS = 1.0

Write = Callable[[Sequence[tuple[str, Chunk]]], Awaitable[None]]


class Spool:
    """The chunks of all runs that are not on disk yet, as (order id, chunk) in the order they were read."""

    def __init__(self, write: Write, on_written: Callable[[], None]) -> None:
        self._write = write
        self._on_written = on_written
        self._waiting: list[tuple[str, Chunk]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._one_writer = asyncio.Lock()

    def add(self, order_id: str, chunk: Chunk) -> None:
        self._waiting.append((order_id, chunk))
        self._flush_in(COLLECT_SECONDS)

    async def write_all(self, write: Write) -> None:
        """Hand all that waits to `write`, once what is being written is on disk; put it back if it raises."""
        async with self._one_writer:
            chunks, self._waiting = self._waiting, []
            try:
                await write(chunks)
            except BaseException:
                self._waiting[:0] = chunks
                raise

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _flush_in(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._begin_flush)

    def _begin_flush(self) -> None:
        self._timer = None
        self._flushing = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        if not self._waiting:
            return
        try:
            await self.write_all(self._write)
        except sqlite3.Error as error:
            log.error("output.not_written error=%r", str(error))
            self._flush_in(AGAIN_SECONDS)
        else:
            self._on_written()
