"""Enrolment: activation keys, and a machine becoming a device with one."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, select, update

from deployx.db.database import Session
from deployx.db.schema import activation_key_groups, activation_keys, devices, groups
from deployx.errors import NotSignedIn
from deployx.fleet.devices import TOLD, printable, told
from deployx.fleet.groups import add_member


@dataclass(frozen=True, slots=True)
class Enrolled:
    device_id: int
    device_name: str


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def create_key(
    session: Session, *, max_uses: int, expires_in: timedelta, group_ids: Sequence[int], by: int, now: datetime
) -> tuple[int, str]:
    """Make an activation key (256 bits); answers its id and the key, which is not stored."""
    key = f"dxk_{secrets.token_urlsafe(32)}"
    values = {"key_hash": _digest(key), "max_uses": max_uses, "uses": 0, "expires_at": now + expires_in}
    row = await session.execute(
        insert(activation_keys).values(**values, created_by=by, created_at=now).returning(activation_keys.c.id)
    )
    key_id = int(row.scalar_one())
    for group_id in group_ids:
        await session.execute(insert(activation_key_groups).values(activation_key_id=key_id, group_id=group_id))
    return key_id, key


async def enroll(
    session: Session, key: str, public_key: bytes, name: str, facts: Mapping[str, Any], *, now: datetime
) -> Enrolled:
    """Use a key once and add the device. Unknown, used-up and expired keys are refused alike (NotSignedIn)."""
    used = await session.execute(
        update(activation_keys)
        .where(
            activation_keys.c.key_hash == _digest(key),
            activation_keys.c.uses < activation_keys.c.max_uses,
            activation_keys.c.expires_at > now,
        )
        .values(uses=activation_keys.c.uses + 1)
        .returning(activation_keys.c.id)
    )
    key_id = used.scalar_one_or_none()
    if key_id is None:
        raise NotSignedIn("The activation key is unknown, used up or expired: ask for a new one.")
    wanted = printable(name).strip()[:200] or "device"
    free_name = await _free_name(session, wanted)
    values: dict[str, Any] = {
        "name": free_name,
        "public_key": public_key,
        "status": "offline",
        "labels": {},
        "created_at": now,
    }
    values |= dict(zip(TOLD, told(facts), strict=True))
    row = await session.execute(insert(devices).values(**values).returning(devices.c.id))
    device_id = int(row.scalar_one())
    joined = await session.execute(
        select(groups.c.id)
        .join(activation_key_groups, activation_key_groups.c.group_id == groups.c.id)
        .where(activation_key_groups.c.activation_key_id == key_id, groups.c.deleted_at.is_(None))
    )
    for group_id in joined.scalars().all():
        await add_member(session, group_id, device_id)
    return Enrolled(device_id, free_name)


async def _free_name(session: Session, wanted: str) -> str:
    """The name itself, or with the lowest number from 2 that makes it free."""
    query = select(devices.c.name).where(
        devices.c.deleted_at.is_(None), devices.c.name.startswith(wanted, autoescape=True)
    )
    taken = set((await session.execute(query)).scalars())
    if wanted not in taken:
        return wanted
    return next(name for number in range(2, len(taken) + 3) if (name := f"{wanted}-{number}") not in taken)
