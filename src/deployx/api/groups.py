"""Groups, their members and grants."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy import select

from deployx.api import etags, paging
from deployx.api.context import Caller, CallerOf, ServicesOf
from deployx.api.devices import found_device
from deployx.api.fields import Body, Description, IdList, Name
from deployx.api.paging import Page
from deployx.db.database import Session
from deployx.db.schema import groups as table
from deployx.errors import Invalid, NotFound
from deployx.fleet import groups
from deployx.people import audit, users
from deployx.people.grants import Permission, on_groups
from deployx.people.policy import Action, Thing
from deployx.timing.instants import format_instant
from deployx.work import calendars, catalogue

router = APIRouter(prefix="/api/groups", tags=["fleet"])


class GroupBody(Body):
    name: Name
    description: Description = ""
    window_ids: Annotated[IdList, Field(max_length=100)] | None = None
    blackout_ids: Annotated[IdList, Field(max_length=100)] | None = None


class GrantBody(Body):
    permission: Annotated[Permission, Field(strict=False)]


class Filter(Page):
    search: str | None = None


async def found_group(session: Session, caller: Caller, group_id: int, action: Action) -> Any:
    """The group, if the policy lets the caller do this with it."""
    row = (
        await session.execute(select(table).where(table.c.id == group_id, table.c.deleted_at.is_(None)))
    ).one_or_none()
    held = await on_groups(session, caller.principal, [group_id])
    caller.require(action, Thing(exists=row is not None, permission=held.get(group_id)))
    return row


async def _shown(session: Session, rows: Sequence[Any]) -> list[dict[str, Any]]:
    ids = [row.id for row in rows]
    counts = await groups.device_counts(session, ids)
    opened, closed = await calendars.ids_of(session, calendars.GROUPS, ids)
    return [
        {
            "id": row.id,
            "name": row.name,
            "description": row.description,
            "device_count": counts[row.id],
            "window_ids": list(opened[row.id]),
            "blackout_ids": list(closed[row.id]),
            "created_at": format_instant(row.created_at),
        }
        for row in rows
    ]


async def _show(session: Session, group_id: int) -> dict[str, Any]:
    row = (await session.execute(select(table).where(table.c.id == group_id))).one()
    (shown,) = await _shown(session, [row])
    return shown


async def _attach(session: Session, group_id: int, body: GroupBody, now: datetime) -> None:
    """Set the group's windows and blackouts; a list that the body leaves out stays as it is."""
    if body.window_ids is None and body.blackout_ids is None:
        return
    problems = await catalogue.check(session, body.window_ids or (), body.blackout_ids or ())
    if problems:
        raise Invalid(problems)
    opened, closed = await calendars.ids_of(session, calendars.GROUPS, [group_id])
    window_ids = opened[group_id] if body.window_ids is None else body.window_ids
    blackout_ids = closed[group_id] if body.blackout_ids is None else body.blackout_ids
    links = [(group_id, window_ids, blackout_ids)]
    await calendars.attach(session, calendars.GROUPS, links, replace=True)
    await calendars.look_again_at_runs(session, now=now)


@router.get("")
async def list_groups(caller: CallerOf, services: ServicesOf, page: Annotated[Filter, paging.QUERY]) -> dict[str, Any]:
    caller.require(Action.GROUP_READ)
    async with services.database.read() as session:
        query = groups.listed(caller.principal, search=page.search)
        rows, envelope = await paging.rows_of(session, query, page, table.c.id)
        return {"items": await _shown(session, rows), **envelope}


@router.post("", status_code=201)
async def create_group(body: GroupBody, caller: CallerOf, response: Response) -> dict[str, Any]:
    caller.require(Action.GROUP_ADMIN)

    async def create(session: Session, now: datetime) -> dict[str, Any]:
        group_id = await groups.create(session, body.name, body.description, now=now)
        await _attach(session, group_id, body, now)
        shown = await _show(session, group_id)
        await audit.record(session, caller.principal, "create", "group", group_id, now=now, after=shown)
        return shown

    shown = await caller.write(create)
    response.headers["Location"] = f"/api/groups/{shown['id']}"
    return shown


@router.get("/{group_id}")
async def show_group(group_id: int, caller: CallerOf, services: ServicesOf, response: Response) -> dict[str, Any]:
    async with services.database.read() as session:
        row = await found_group(session, caller, group_id, Action.GROUP_READ)
        etags.put(response, row.version)
        return await _show(session, group_id)


@router.put("/{group_id}")
async def change_group(
    group_id: int, body: GroupBody, caller: CallerOf, response: Response, if_match: etags.IfMatch = None
) -> dict[str, Any]:
    async def change(session: Session, now: datetime) -> dict[str, Any]:
        row = await found_group(session, caller, group_id, Action.GROUP_MANAGE)
        etags.require(if_match, row.version)
        before = await _show(session, group_id)
        await groups.change(session, group_id, body.name, body.description)
        await _attach(session, group_id, body, now)
        after = await _show(session, group_id)
        await audit.record(session, caller.principal, "update", "group", group_id, now=now, before=before, after=after)
        etags.put(response, row.version + 1)
        return after

    return await caller.write(change)


@router.delete("/{group_id}", status_code=204)
async def delete_group(group_id: int, caller: CallerOf, if_match: etags.IfMatch = None) -> None:
    async def remove(session: Session, now: datetime) -> None:
        row = await found_group(session, caller, group_id, Action.GROUP_ADMIN)
        etags.require(if_match, row.version)
        before = await _show(session, group_id)
        await groups.remove(session, group_id, now=now)
        await audit.record(session, caller.principal, "delete", "group", group_id, now=now, before=before)

    await caller.write(remove)


@router.put("/{group_id}/devices/{device_id}", status_code=204)
async def add_device(group_id: int, device_id: int, caller: CallerOf) -> None:
    await _member(caller, group_id, device_id, joins=True)


@router.delete("/{group_id}/devices/{device_id}", status_code=204)
async def remove_device(group_id: int, device_id: int, caller: CallerOf) -> None:
    await _member(caller, group_id, device_id, joins=False)


async def _member(caller: Caller, group_id: int, device_id: int, *, joins: bool) -> None:
    async def change(session: Session, now: datetime) -> None:
        await found_group(session, caller, group_id, Action.GROUP_MANAGE)
        await found_device(session, caller, device_id, Action.DEVICE_MANAGE)
        await (groups.add_member if joins else groups.remove_member)(session, group_id, device_id)
        action = "add_device" if joins else "remove_device"
        member = {"device_id": device_id}
        await audit.record(session, caller.principal, action, "group", group_id, now=now, after=member)

    await caller.write(change)


@router.get("/{group_id}/grants")
async def list_grants(
    group_id: int, caller: CallerOf, services: ServicesOf, page: Annotated[Page, paging.QUERY]
) -> dict[str, Any]:
    async with services.database.read() as session:
        await found_group(session, caller, group_id, Action.GROUP_MANAGE)
        query = groups.granted(group_id)
        by = query.selected_columns.user_id
        return await paging.listing(session, query, page, by, lambda row: dict(row._mapping))


@router.put("/{group_id}/grants/{user_id}", status_code=204)
async def put_grant(group_id: int, user_id: int, body: GrantBody, caller: CallerOf) -> None:
    async def change(session: Session, now: datetime) -> None:
        await found_group(session, caller, group_id, Action.GROUP_MANAGE)
        if await users.get(session, user_id) is None:
            raise NotFound
        await groups.grant(session, group_id, user_id, body.permission.value)
        after = {"user_id": user_id, "permission": body.permission.value}
        await audit.record(session, caller.principal, "grant", "group", group_id, now=now, after=after)

    await caller.write(change)


@router.delete("/{group_id}/grants/{user_id}", status_code=204)
async def delete_grant(group_id: int, user_id: int, caller: CallerOf) -> None:
    async def change(session: Session, now: datetime) -> None:
        await found_group(session, caller, group_id, Action.GROUP_MANAGE)
        await groups.revoke(session, group_id, user_id)
        await audit.record(session, caller.principal, "revoke", "group", group_id, now=now, before={"user_id": user_id})

    await caller.write(change)
