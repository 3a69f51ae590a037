"""What a first start makes, and what a later one refuses to make again."""

from __future__ import annotations

import asyncio
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select

from deployx import installation
from deployx.db.database import Database
from deployx.db.schema import users as table
from deployx.errors import StartupRefused
from deployx.installation import Installation
from deployx.people import passwords, users

NOW = datetime(2026, 11, 23, tzinfo=UTC)


async def ensure(database: Database, key_file: Path) -> Installation:
    async with database.write() as session:
        return await installation.ensure(session, key_file, now=NOW)


async def first_administrator(database: Database, given: str | None, folder: Path) -> str | None:
    async with database.write() as session:
        return await users.ensure_first_administrator(session, given, folder, now=NOW)


async def test_the_installation_and_its_key_survive_a_restart(database: Database, tmp_path: Path) -> None:
    made, found = [await ensure(database, tmp_path / "key") for _ in range(2)]
    assert (made.id, made.epoch) == (found.id, found.epoch)
    assert made.signing_key.private_bytes_raw() == found.signing_key.private_bytes_raw()
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


async def test_replicas_that_start_together_share_one_installation(database: Database, tmp_path: Path) -> None:
    found = await asyncio.gather(*(ensure(database, tmp_path / "key") for _ in range(5)))
    assert len({one.id for one in found}) == 1
    assert len({one.signing_key.private_bytes_raw() for one in found}) == 1


async def test_a_lost_key_is_said_and_not_replaced(database: Database, tmp_path: Path) -> None:
    await ensure(database, tmp_path / "key")
    (tmp_path / "key").unlink()
    with pytest.raises(StartupRefused, match="obey only that key"):
        await ensure(database, tmp_path / "key")
    assert not (tmp_path / "key").exists()


async def test_a_file_that_is_no_key_is_said(database: Database, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"too short")
    with pytest.raises(StartupRefused, match="no Ed25519 key"):
        await ensure(database, tmp_path / "key")


async def test_a_made_up_password_is_answered_once_and_kept_for_its_owner_alone(
    database: Database, tmp_path: Path
) -> None:
    password = await first_administrator(database, None, tmp_path)
    file = tmp_path / users.INITIAL_PASSWORD_FILE
    assert file.read_text() == f"{password}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert await first_administrator(database, None, tmp_path) is None
    async with database.read() as session:
        admin = await users.find(session, "admin")
    assert password is not None
    assert await passwords.matches(admin.password_hash, password)
    assert not await passwords.matches(admin.password_hash, password + " ")


async def test_a_given_password_is_neither_answered_nor_written(database: Database, tmp_path: Path) -> None:
    assert await first_administrator(database, "a long enough one", tmp_path) is None
    assert not (tmp_path / users.INITIAL_PASSWORD_FILE).exists()


async def test_a_short_given_password_is_refused_and_makes_no_user(database: Database, tmp_path: Path) -> None:
    with pytest.raises(StartupRefused, match="at least 12"):
        await first_administrator(database, "short", tmp_path)
    async with database.read() as session:
        assert (await session.execute(select(func.count()).select_from(table))).scalar_one() == 0


async def test_no_password_matches_an_absent_user() -> None:
    assert not await passwords.matches(None, "nobody has this password")
    assert not await passwords.matches("not a hash", "x")
