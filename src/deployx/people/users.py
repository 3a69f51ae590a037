"""Users: their accounts, and the rule that an active administrator always remains."""

from __future__ import annotations

import os
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError

from deployx.db.database import Session
from deployx.db.schema import deployments, scheduled_tasks, users
from deployx.errors import Conflict, StartupRefused
from deployx.people import passwords, sessions
from deployx.people.principal import Role

INITIAL_PASSWORD_FILE = "initial-admin-password"


async def create(session: Session, username: str, password_hash: str, role: Role, *, now: datetime) -> int:
    """Add a user. Raises Conflict where the name is taken."""
    values = {"username": username, "password_hash": password_hash, "role": role.value, "is_active": True}
    try:
        row = await session.execute(insert(users).values(**values, created_at=now).returning(users.c.id))
    except IntegrityError:
        raise _name_is_taken(username) from None
    return int(row.scalar_one())


async def find(session: Session, username: str) -> Any:
    query = select(users).where(users.c.username == username, users.c.deleted_at.is_(None))
    return (await session.execute(query)).one_or_none()


async def get(session: Session, user_id: int, *, to_sign_in: bool = False) -> Any:
    """The living user, or None; `to_sign_in` keeps the row as it is until the transaction ends.

    Without that, a token made while the account is closed or gets another password would outlive the change.
    """
    query = select(users).where(users.c.id == user_id, users.c.deleted_at.is_(None))
    if to_sign_in:
        query = query.where(users.c.is_active).with_for_update()
    return (await session.execute(query)).one_or_none()


async def change(session: Session, user_id: int, *, keep_session: int | None = None, **values: Any) -> None:
    """Set columns of a user. Deactivation ends all its tokens, a new password its sessions but `keep_session`.

    Raises Conflict where the name is taken, or where no active administrator would remain.
    """
    if not values.keys().isdisjoint({"role", "is_active", "deleted_at"}):
        await _lock_administrators(session)
    try:
        await session.execute(update(users).where(users.c.id == user_id).values(**values))
    except IntegrityError:
        raise _name_is_taken(values.get("username")) from None
    if values.get("is_active") is False:
        await sessions.revoke_all(session, user_id)
    elif "password_hash" in values:
        await sessions.revoke_all(session, user_id, kind="session", besides=keep_session)
    await _require_an_administrator(session)


def _name_is_taken(username: object) -> Conflict:
    return Conflict(f"A user named {username!r} exists: choose another name.")


async def _lock_administrators(session: Session) -> None:
    """Two administrators who remove each other at once must take turns, or none would remain."""
    query = select(users.c.id).where(users.c.role == Role.ADMIN.value, users.c.is_active, users.c.deleted_at.is_(None))
    await session.execute(query.order_by(users.c.id).with_for_update())


async def remove(session: Session, user_id: int, *, now: datetime) -> None:
    """End an account. Raises Conflict while it owns tasks."""
    owned = await session.execute(
        select(func.count()).where(scheduled_tasks.c.created_by == user_id, scheduled_tasks.c.deleted_at.is_(None))
    )
    if count := owned.scalar_one():
        raise Conflict(f"The user owns {count} tasks: hand them over first with POST /api/users/{user_id}/hand-over.")
    await change(session, user_id, deleted_at=now, is_active=False)


async def _require_an_administrator(session: Session) -> None:
    left = await session.execute(
        select(func.count()).where(users.c.role == Role.ADMIN.value, users.c.is_active, users.c.deleted_at.is_(None))
    )
    if left.scalar_one() == 0:
        raise Conflict("This is the last active administrator: make another one first.")


async def hand_over(session: Session, from_user_id: int, to_user_id: int) -> int:
    """Give all tasks and ad-hoc deployments of one user to another; answers how many tasks."""
    moved = await session.execute(
        update(scheduled_tasks).where(scheduled_tasks.c.created_by == from_user_id).values(created_by=to_user_id)
    )
    await session.execute(
        update(deployments).where(deployments.c.created_by == from_user_id).values(created_by=to_user_id)
    )
    return moved.rowcount


async def ensure_first_administrator(
    session: Session, given: str | None, data_dir: Path, *, now: datetime
) -> str | None:
    """On an empty database create `admin`; answers the password where it was made up here, to be printed once."""
    if (await session.execute(select(users.c.id).limit(1))).first() is not None:
        return None
    if given is not None and len(given) < passwords.SHORTEST:
        raise StartupRefused(f"ADMIN_PASSWORD has {len(given)} characters: give at least {passwords.SHORTEST}.")
    password = given or secrets.token_urlsafe(18)
    await create(session, "admin", await passwords.hashed(password), Role.ADMIN, now=now)
    if given:
        return None
    handle = os.open(data_dir / INITIAL_PASSWORD_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(password + "\n")
    return password


async def is_first(session: Session, user_id: int) -> bool:
    """Whether this is the administrator of the first start, whatever its name is now."""
    return bool((await session.execute(select(func.min(users.c.id)))).scalar_one() == user_id)


def forget_initial_password(data_dir: Path) -> None:
    (data_dir / INITIAL_PASSWORD_FILE).unlink(missing_ok=True)
