"""The rule that an active administrator remains, also when two changes meet."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select

from deployx.db.database import Database
from deployx.db.schema import users as table
from deployx.errors import Conflict
from deployx.people import users
from deployx.people.principal import Role

NOW = datetime(2026, 11, 23, tzinfo=UTC)
LONG_ENOUGH_SECONDS = 0.5
"""For a change that nothing holds up to be through; one that waits for another is not."""


@pytest.mark.parametrize("change", [{"role": "viewer"}, {"is_active": False}, {"deleted_at": NOW}])
async def test_of_two_administrators_taken_away_at_once_one_remains(database: Database, change: dict[str, Any]) -> None:
    async with database.write() as session:
        first, second = [await users.create(session, name, "-", Role.ADMIN, now=NOW) for name in ("anna", "olga")]

    async def take_the_second_away() -> None:
        async with database.write() as session:
            await users.change(session, second, role="operator")

    async with database.write() as session:
        await users.change(session, first, **change)
        meanwhile = asyncio.create_task(take_the_second_away())
        await asyncio.wait({meanwhile}, timeout=LONG_ENOUGH_SECONDS)
    with pytest.raises(Conflict, match="last active administrator"):
        await meanwhile
    async with database.read() as session:
        left = select(func.count()).where(table.c.role == "admin", table.c.is_active, table.c.deleted_at.is_(None))
        assert (await session.execute(left)).scalar_one() == 1
