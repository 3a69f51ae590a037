"""Groups of devices: their members, and who may do what with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, insert, select, update

from deployx.db.database import Session
from deployx.db.schema import devices, grants, group_members, groups, users
from deployx.errors import Conflict
from deployx.people.grants import visible_groups
from deployx.people.principal import Principal


async def create(session: Session, name: str, description: str, *, now: datetime) -> int:
    """Add a group. Raises Conflict where the name is taken."""
    await _require_free(session, name, besides=None)
    row = await session.execute(
        insert(groups).values(name=name, description=description, created_at=now).returning(groups.c.id)
    )
    return int(row.scalar_one())


async def change(session: Session, group_id: int, name: str, description: str) -> None:
    await _require_free(session, name, besides=group_id)
    statement = update(groups).where(groups.c.id == group_id)
    await session.execute(statement.values(name=name, description=description, version=groups.c.version + 1))


async def remove(session: Session, group_id: int, *, now: datetime) -> None:
    """End a group; tasks that name it fail when they fire, and say so."""
    await session.execute(update(groups).where(groups.c.id == group_id).values(deleted_at=now))
    await session.execute(delete(grants).where(grants.c.group_id == group_id))


async def _require_free(session: Session, name: str, *, besides: int | None) -> None:
    query = select(groups.c.id).where(groups.c.name == name, groups.c.deleted_at.is_(None))
    taken = (await session.execute(query)).scalar_one_or_none()
    if taken is not None and taken != besides:
        raise Conflict(f"Another group is named {name!r}: choose another name.")


def listed(principal: Principal, *, search: str | None = None) -> Select[Any]:
    """The groups a caller may see, newest first."""
    query = select(groups).where(groups.c.id.in_(visible_groups(principal))).order_by(groups.c.id.desc())
    return query.where(groups.c.name.icontains(search, autoescape=True)) if search else query


async def device_counts(session: Session, group_ids: Sequence[int]) -> dict[int, int]:
    rows = await session.execute(
        select(group_members.c.group_id, func.count())
        .join(devices, (devices.c.id == group_members.c.device_id) & devices.c.deleted_at.is_(None))
        .where(group_members.c.group_id.in_(group_ids))
        .group_by(group_members.c.group_id)
    )
    return dict.fromkeys(group_ids, 0) | dict(rows.all())


async def add_member(session: Session, group_id: int, device_id: int) -> None:
    """Safe to repeat."""
    query = select(group_members).where(group_members.c.group_id == group_id, group_members.c.device_id == device_id)
    if (await session.execute(query)).first() is None:
        await session.execute(insert(group_members).values(group_id=group_id, device_id=device_id))


async def remove_member(session: Session, group_id: int, device_id: int) -> None:
    await session.execute(
        delete(group_members).where(group_members.c.group_id == group_id, group_members.c.device_id == device_id)
    )


def granted(group_id: int) -> Select[Any]:
    """Who has which permission on a group, newest user first."""
    return (
        select(grants.c.user_id, users.c.username, grants.c.permission)
        .join(users, (users.c.id == grants.c.user_id) & users.c.deleted_at.is_(None))
        .where(grants.c.group_id == group_id)
        .order_by(grants.c.user_id.desc())
    )


async def grant(session: Session, group_id: int, user_id: int, permission: str) -> None:
    """Set a user's permission on a group, in place of the one before."""
    await revoke(session, group_id, user_id)
    await session.execute(insert(grants).values(group_id=group_id, user_id=user_id, permission=permission))


async def revoke(session: Session, group_id: int, user_id: int) -> None:
    await session.execute(delete(grants).where(grants.c.group_id == group_id, grants.c.user_id == user_id))
