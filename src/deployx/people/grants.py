"""Grants: what a user may do with groups, and through them with devices."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, literal, select

from deployx.db.database import Session
from deployx.db.schema import devices, grants, group_members, groups
from deployx.people.principal import Principal, Role


class Permission(StrEnum):
    """Each includes the ones before it."""

    VIEW = "view"
    RUN = "run"
    MANAGE = "manage"

    @property
    def rank(self) -> int:
        return list(Permission).index(self)

    def __lt__(self, other: str) -> bool:
        return self.rank < Permission(other).rank

    def __ge__(self, other: str) -> bool:
        return not self < other


def _including(principal: Principal, permission: Permission) -> list[str]:
    """The stored permissions that include `permission` for this user; a viewer never has more than view."""
    if principal.role is Role.VIEWER and permission is not Permission.VIEW:
        return []
    return [one.value for one in Permission if one >= permission]


def visible_groups(principal: Principal, permission: Permission = Permission.VIEW) -> Select[Any]:
    """Ids of the living groups on which the user has the permission, as a sub-select."""
    query = select(groups.c.id).where(groups.c.deleted_at.is_(None))
    if principal.is_admin:
        return query
    granted = select(grants.c.group_id).where(
        grants.c.user_id == principal.user_id, grants.c.permission.in_(_including(principal, permission))
    )
    return query.where(groups.c.id.in_(granted))


def visible_devices(principal: Principal, permission: Permission = Permission.VIEW) -> Select[Any]:
    """Ids of the living devices on which the user has the permission through any group, as a sub-select."""
    query = select(devices.c.id).where(devices.c.deleted_at.is_(None))
    if principal.is_admin:
        return query
    members = select(group_members.c.device_id).where(
        group_members.c.group_id.in_(visible_groups(principal, permission))
    )
    return query.where(devices.c.id.in_(members))


def covers_all(principal: Principal, permission: Permission, *links: tuple[Any, Any, Any]) -> ColumnElement[bool]:
    """True for things of which every target permits it; a link is (target id column, thing id column, thing id).

    A thing without any target is covered by nobody but administrators.
    """
    if principal.is_admin:
        return literal(True)
    conditions: list[ColumnElement[bool]] = []
    some: list[ColumnElement[bool]] = []
    for target, owner, thing in links:
        allowed = visible_devices if target.name == "device_id" else visible_groups
        of_thing = select(target).where(owner == thing)
        conditions.append(~of_thing.where(target.not_in(allowed(principal, permission))).exists())
        some.append(of_thing.exists())
    return and_(*conditions, some[0] | some[1])


async def on_groups(session: Session, principal: Principal, group_ids: Sequence[int]) -> dict[int, Permission]:
    """The user's permission on each of these groups; what is absent or invisible is not in the answer."""
    return await _held(session, principal, group_ids, groups.c.id, visible_groups)


async def on_devices(session: Session, principal: Principal, device_ids: Sequence[int]) -> dict[int, Permission]:
    """The user's best permission on each of these devices through its groups."""
    return await _held(session, principal, device_ids, devices.c.id, visible_devices)


async def _held(
    session: Session, principal: Principal, ids: Sequence[int], column: Any, visible: Any
) -> dict[int, Permission]:
    held: dict[int, Permission] = {}
    for permission in [Permission.MANAGE] if principal.is_admin else Permission:
        if ids:
            found = await session.execute(
                select(column).where(column.in_(ids), column.in_(visible(principal, permission)))
            )
            held |= dict.fromkeys(found.scalars(), permission)
    return held


async def least_on_targets(
    session: Session, principal: Principal, *, device_ids: Sequence[int], group_ids: Sequence[int]
) -> Permission | None:
    """The least permission over all targets; None where one is absent or invisible, or there is none at all."""
    of_devices = await on_devices(session, principal, device_ids)
    of_groups = await on_groups(session, principal, group_ids)
    held = [of_devices.get(one) for one in device_ids] + [of_groups.get(one) for one in group_ids]
    known = [one for one in held if one is not None]
    if not held or len(known) < len(held):
        return None
    return min(known, key=lambda one: one.rank)


async def of_user(session: Session, user_id: int) -> list[dict[str, Any]]:
    """A user's grants, as `GET /api/auth/me` shows them."""
    rows = await session.execute(
        select(grants.c.group_id, groups.c.name, grants.c.permission)
        .join(groups, (groups.c.id == grants.c.group_id) & groups.c.deleted_at.is_(None))
        .where(grants.c.user_id == user_id)
        .order_by(grants.c.group_id)
    )
    return [{"group_id": row.group_id, "group_name": row.name, "permission": row.permission} for row in rows]
