"""`deployx admin …`: changes made on the server machine, directly on its database."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deployx.clock import SystemClock
from deployx.db import migrate
from deployx.db.database import Database
from deployx.errors import StartupRefused
from deployx.people import audit, passwords, sessions, users
from deployx.people.principal import Role
from deployx.settings import Settings
from deployx.work import verification


async def create_user(settings: Settings, name: str, role: str, password: str | None) -> int:
    """Add a user. Raises StartupRefused for an unknown role or a short password, Conflict for a taken name."""
    if role not in list(Role):
        raise StartupRefused(f"The role {role!r} is unknown: use admin, operator or viewer.")
    chosen = _chosen(password)
    async with _database(settings) as database, database.write() as session:
        now = await database.now(session)
        user_id = await users.create(session, name, await passwords.hashed(chosen), Role(role), now=now)
        after = {"username": name, "role": role}
        await audit.record(session, None, "create", "user", user_id, now=now, after=after, address="server machine")
    _tell(name, None if password else chosen)
    return 0


async def reset_password(settings: Settings, name: str, password: str | None) -> int:
    """Set a password anew and end the user's sessions."""
    chosen = _chosen(password)
    async with _database(settings) as database, database.write() as session:
        user = await users.find(session, name)
        if user is None:
            raise StartupRefused(f"There is no user named {name!r}.")
        await users.change(session, user.id, password_hash=await passwords.hashed(chosen))
        await sessions.revoke_all(session, user.id, kind="session")
        now = await database.now(session)
        after = {"password": "reset"}
        await audit.record(session, None, "update", "user", user.id, now=now, after=after, address="server machine")
    if name == "admin":
        users.forget_initial_password(settings.data_dir)
    _tell(name, None if password else chosen)
    return 0


async def verify(settings: Settings) -> int:
    """Compare the ledger with what was owed; answers 1 where something is missing or too much."""
    checked, owed, wrong = 0, 0, 0
    async with reading(settings) as database, database.read() as session:
        async for found in verification.verify(session, now=await database.now(session)):
            checked, owed, wrong = checked + 1, owed + found.owed, wrong + bool(found.problems)
            for problem in found.problems:
                print(problem)  # noqa: T201 - a command line prints
    verdict = "every one is in the ledger once" if wrong == 0 else f"the ledger is wrong for {_count(wrong, 'task')}"
    print(f"{_count(checked, 'task')}, {_count(owed, 'owed occurrence')}: {verdict}.")  # noqa: T201
    return 1 if wrong else 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _chosen(password: str | None) -> str:
    if password is None:
        return secrets.token_urlsafe(18)
    if len(password) < passwords.SHORTEST:
        raise StartupRefused(f"A password has at least {passwords.SHORTEST} characters; this one has {len(password)}.")
    return password


def _tell(name: str, made_up: str | None) -> None:
    print(f"{name}: {made_up}" if made_up else f"{name}: done")  # noqa: T201 - a command line prints


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Database]:
    """The server's database for reading, also beside a running server. Raises StartupRefused where there is none."""
    database = Database(settings.database, SystemClock())
    file = database.url.database
    if database.is_sqlite and not os.access(file or "", os.R_OK):
        raise StartupRefused(f"There is no database at {file}: name the server's --data-dir or --database-url.")
    await database.open(for_reading=True)
    try:
        await migrate.require_newest(database)
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(settings.database, SystemClock())
    await database.open()
    try:
        await migrate.upgrade(database)
        yield database
    finally:
        await database.close()
