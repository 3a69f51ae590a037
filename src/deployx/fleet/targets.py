"""Checks the targets that a request names: that they exist, are visible to the caller, and permit what is asked."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select, union

from deployx.db.database import Session
from deployx.db.schema import devices, group_members
from deployx.errors import Problem
from deployx.people import grants
from deployx.people.grants import Permission
from deployx.people.principal import Principal


async def check(
    session: Session, principal: Principal, device_ids: Sequence[int], group_ids: Sequence[int], needed: Permission
) -> list[Problem]:
    """What is wrong with the targets; an absent one and one that the caller may not see read alike."""
    if not device_ids and not group_ids:
        return [Problem(("body", "device_ids"), "Name at least one device or group.")]
    found: list[Problem] = []
    for what, field, wanted, having in (
        ("Device", "device_ids", device_ids, await grants.on_devices(session, principal, device_ids)),
        ("Group", "group_ids", group_ids, await grants.on_groups(session, principal, group_ids)),
    ):
        for position, target_id in enumerate(wanted):
            permission = having.get(target_id)
            if permission is None:
                why = f"{what} {target_id} does not exist or is not visible to you."
            elif permission < needed:
                why = f"You have `{permission}` on {what.lower()} {target_id}, but this needs `{needed}`."
            else:
                continue
            found.append(Problem(("body", field, position), why))
    return found


async def count(session: Session, device_ids: Sequence[int], group_ids: Sequence[int]) -> int:
    """How many devices these ids and the members of these groups are now, each once."""
    members = (
        select(group_members.c.device_id)
        .join(devices, devices.c.id == group_members.c.device_id)
        .where(group_members.c.group_id.in_(group_ids), devices.c.deleted_at.is_(None))
    )
    named = select(devices.c.id).where(devices.c.id.in_(device_ids), devices.c.deleted_at.is_(None))
    found = await session.execute(select(func.count()).select_from(union(named, members).subquery()))
    return found.scalar_one()
