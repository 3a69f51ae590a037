"""Connections to the one database: readers, the writing transaction, the lock on a SQLite file.

On SQLite one process owns the file and one connection writes; every writing transaction is `BEGIN IMMEDIATE`, so it
never has to be upgraded and never fails half-way for a lock. On PostgreSQL each transaction has its own connection.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, event, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, StaticPool

from deployx.clock import Clock
from deployx.errors import StartupRefused

Session = AsyncConnection
"""What the nouns take as `session`: a connection inside a transaction."""

Result = TypeVar("Result")

RETRIED_SQLSTATES = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock (PostgreSQL, appendix A): the transaction changed nothing and may be run again."""


class Database:
    """The database of one server process; `open` it before use and `close` it at the end."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.url = _async_url(url)
        self._clock = clock
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._file_lock: int | None = None
        self._writer_turn = asyncio.Lock()
        self._writer: AsyncEngine
        self._readers: AsyncEngine

    async def open(self, *, for_reading: bool = False) -> None:
        """Connect; a SQLite file is taken for this process alone, unless it is only `for_reading` beside a server."""
        if self.is_sqlite:
            if not for_reading:
                self._file_lock = _lock_file(Path(self.url.database or ""))
            self._writer = _sqlite_engine(self.url, writer=True)
            self._readers = _sqlite_engine(self.url, writer=False)
        else:
            self._writer = create_async_engine(self.url, pool_size=10, max_overflow=10, pool_pre_ping=True)
            self._readers = self._writer

    async def close(self) -> None:
        await self._writer.dispose()
        await self._readers.dispose()
        if self._file_lock is not None:
            os.close(self._file_lock)
            self._file_lock = None

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Session]:
        """A connection for reading: one consistent moment on SQLite, each statement's own on PostgreSQL."""
        async with self._readers.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Session]:
        """One writing transaction: committed at the end of the block, rolled back when it raises."""
        if not self.is_sqlite:
            async with self._writer.begin() as connection:
                yield connection
            return
        async with self._writer_turn, self._writer.begin() as connection:
            yield connection

    async def transact(self, work: Callable[[Session], Awaitable[Result]]) -> Result:
        """Run `work` in a writing transaction, again where PostgreSQL chose it as a deadlock's victim."""
        for _ in range(5):
            try:
                async with self.write() as session:
                    return await work(session)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in RETRIED_SQLSTATES:
                    raise
        async with self.write() as session:
            return await work(session)

    async def now(self, session: Session) -> datetime:
        """The instant that decides what is due: the database's on PostgreSQL, so that replicas agree.

        On SQLite it is the process's clock, which is watched for steps each time that it decides something.
        """
        if self.is_sqlite:
            moment = self._clock.now()
            self._clock.steps.observe(moment, self._clock.monotonic())
            return moment
        told: datetime = (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
        return told.astimezone(UTC)


def _async_url(url: str) -> URL:
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise StartupRefused(
                    f"DATABASE_URL {url!r} names no file: SQLite needs one, such as sqlite:////var/lib/x.db."
                )
            return parsed.set(drivername="sqlite+aiosqlite")
        case "postgresql":
            return parsed.set(drivername="postgresql+asyncpg")
        case other:
            raise StartupRefused(f"DATABASE_URL has the scheme {other!r}; use sqlite:///FILE or postgresql://….")


def _sqlite_engine(url: URL, *, writer: bool) -> AsyncEngine:
    arguments: dict[str, Any] = {"timeout": 30, "isolation_level": None, "cached_statements": 512}
    if writer:
        engine = create_async_engine(url, connect_args=arguments, poolclass=StaticPool)
    else:
        engine = create_async_engine(
            url, connect_args=arguments, poolclass=AsyncAdaptedQueuePool, pool_size=4, max_overflow=4
        )

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.execute("PRAGMA cache_size=-65536" if writer else "PRAGMA query_only=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")

    return engine


def _lock_file(path: Path) -> int:
    """Take the database file for this process; a second process gets one sentence instead of a slow fight."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock_exclusively(handle)
    except OSError:
        os.close(handle)
        raise StartupRefused(
            f"The database {path} is in use by another process: one server owns a SQLite file. "
            "Stop it, or use PostgreSQL for several replicas."
        ) from None
    return handle


if sys.platform == "win32":
    import msvcrt

    def _lock_exclusively(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock_exclusively(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
