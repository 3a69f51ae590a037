"""Activation keys: what a machine needs to become a device."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy import delete, select

from deployx.api import paging
from deployx.api.context import Caller, CallerOf, ServicesOf
from deployx.api.fields import Body, IdList
from deployx.api.paging import Page
from deployx.db.database import Session
from deployx.db.schema import activation_key_groups as links
from deployx.db.schema import activation_keys as table
from deployx.errors import Invalid, Problem
from deployx.fleet import enrolment
from deployx.people import audit, grants
from deployx.people.grants import Permission
from deployx.people.policy import Action, Thing
from deployx.timing.instants import format_instant

router = APIRouter(prefix="/api/activation-keys", tags=["fleet"])


class NewKey(Body):
    max_uses: Annotated[int, Field(ge=1, le=100_000)] = 1
    expires_in_seconds: Annotated[int, Field(ge=1, le=2_592_000)] = 86_400
    group_ids: IdList = []


@router.get("")
async def list_keys(caller: CallerOf, services: ServicesOf, page: Annotated[Page, paging.QUERY]) -> dict[str, Any]:
    """Keys without their secret; others than administrators see those they made."""
    caller.require(Action.KEYS)
    query = select(table).order_by(table.c.id.desc())
    if not caller.principal.is_admin:
        query = query.where(table.c.created_by == caller.principal.user_id)
    async with services.database.read() as session:
        rows, envelope = await paging.rows_of(session, query, page, table.c.id)
        found = await session.execute(select(links).where(links.c.activation_key_id.in_([row.id for row in rows])))
        groups: dict[int, list[int]] = {row.id: [] for row in rows}
        for link in found:
            groups[link.activation_key_id].append(link.group_id)
    return {"items": [_shown(row, sorted(groups[row.id])) for row in rows], **envelope}


@router.post("", status_code=201)
async def create_key(caller: CallerOf, response: Response, body: NewKey) -> dict[str, Any]:
    """Make a key; it is shown this once."""
    caller.require(Action.KEYS)

    async def create(session: Session, now: datetime) -> dict[str, Any]:
        await _require_groups(session, caller, body.group_ids)
        expires_in = timedelta(seconds=body.expires_in_seconds)
        key_id, key = await enrolment.create_key(
            session, max_uses=body.max_uses, expires_in=expires_in, group_ids=body.group_ids,
            by=caller.principal.user_id, now=now,
        )  # fmt: skip
        row = (await session.execute(select(table).where(table.c.id == key_id))).one()
        shown = _shown(row, sorted(body.group_ids))
        await audit.record(session, caller.principal, "create", "activation_key", key_id, now=now, after=shown)
        return shown | {"key": key}

    shown = await caller.write(create)
    response.headers["Location"] = f"/api/activation-keys/{shown['id']}"
    return shown


async def _require_groups(session: Session, caller: Caller, group_ids: list[int]) -> None:
    """Each group exists and is visible; others than administrators manage all of them, and name at least one."""
    held = await grants.on_groups(session, caller.principal, group_ids)
    found = [
        Problem(("body", "group_ids", position), f"Group {group_id} does not exist or is not visible to you.")
        for position, group_id in enumerate(group_ids)
        if group_id not in held
    ]
    if found:
        raise Invalid(found)
    permission = min(held.values(), key=lambda one: one.rank) if held else Permission.VIEW
    caller.require(Action.KEYS, Thing(permission=permission))


@router.delete("/{key_id}", status_code=204)
async def delete_key(key_id: int, caller: CallerOf) -> None:
    """Devices that enrolled with it stay."""

    async def remove(session: Session, now: datetime) -> None:
        row = (await session.execute(select(table).where(table.c.id == key_id))).one_or_none()
        caller.require(Action.KEYS, Thing(exists=row is not None, owner_id=row.created_by if row else None))
        await session.execute(delete(links).where(links.c.activation_key_id == key_id))
        await session.execute(delete(table).where(table.c.id == key_id))
        await audit.record(session, caller.principal, "delete", "activation_key", key_id, now=now)

    await caller.write(remove)


def _shown(row: Any, group_ids: list[int]) -> dict[str, Any]:
    return {
        "id": row.id,
        "max_uses": row.max_uses,
        "uses": row.uses,
        "group_ids": group_ids,
        "expires_at": format_instant(row.expires_at),
        "created_by": row.created_by,
        "created_at": format_instant(row.created_at),
    }
