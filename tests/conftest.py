"""Fixtures of all tests: a database on each engine, and the real application on top of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deployx.clock import SystemClock
from deployx.db import migrate
from deployx.db.database import Database
from tests.api.client import Api, opened_api
from tests.servers import postgres as postgres_server
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database on each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.create()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """Open and migrated."""
    database = Database(database_url, SystemClock())
    await database.open()
    await migrate.upgrade(database)
    yield database
    await database.close()


@pytest.fixture
async def api(database: Database, tmp_path: Path) -> AsyncIterator[Api]:
    """The application on the database, with an administrator signed in."""
    async with opened_api(database, tmp_path) as api:
        yield api
