"""Devices: list, show, rename, label, remove."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from sqlalchemy import select

from deployx.api import etags, paging
from deployx.api.context import Caller, CallerOf, ServicesOf
from deployx.api.fields import Body, Id, Labels, Name
from deployx.api.paging import Page
from deployx.db.database import Session
from deployx.db.schema import devices as table
from deployx.events import Hint
from deployx.fleet import devices
from deployx.people import audit
from deployx.people.grants import on_devices
from deployx.people.policy import Action, Thing
from deployx.people.principal import Principal
from deployx.timing.instants import format_instant
from deployx.work import device_runs, executions

router = APIRouter(prefix="/api/devices", tags=["fleet"])


class DeviceChange(Body):
    name: Name | None = None
    labels: Labels | None = None


class Filter(Page):
    status: Literal["online", "offline"] | None = None
    group_id: Id | None = None
    os: Literal["linux", "windows", "macos"] | None = None
    search: str | None = None


async def found_device(session: Session, caller: Caller, device_id: int, action: Action) -> Any:
    """The device, if the policy lets the caller do this with it."""
    query = select(table).where(table.c.id == device_id, table.c.deleted_at.is_(None))
    row = (await session.execute(query)).one_or_none()
    held = await on_devices(session, caller.principal, [device_id])
    caller.require(action, Thing(exists=row is not None, permission=held.get(device_id)))
    return row


def _shown(row: Any, group_ids: list[int]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "os": row.os,
        "os_version": row.os_version,
        "arch": row.arch,
        "shells": row.shells,
        "agent_version": row.agent_version,
        "status": row.status,
        "last_seen": format_instant(row.last_seen) if row.last_seen else None,
        "group_ids": group_ids,
        "labels": row.labels,
        "facts": row.facts,
    }


async def _show(session: Session, principal: Principal, device_id: int) -> dict[str, Any]:
    row = (await session.execute(select(table).where(table.c.id == device_id))).one()
    return _shown(row, (await devices.groups_of(session, principal, [device_id]))[device_id])


@router.get("")
async def list_devices(caller: CallerOf, services: ServicesOf, page: Annotated[Filter, paging.QUERY]) -> dict[str, Any]:
    caller.require(Action.DEVICE_READ)
    who = caller.principal
    query = devices.listed(who, status=page.status, group_id=page.group_id, os=page.os, search=page.search)
    async with services.database.read() as session:
        rows, envelope = await paging.rows_of(session, query, page, table.c.id)
        member_of = await devices.groups_of(session, who, [row.id for row in rows])
    return {"items": [_shown(row, member_of[row.id]) for row in rows], **envelope}


@router.get("/{device_id}")
async def show_device(device_id: int, caller: CallerOf, services: ServicesOf, response: Response) -> dict[str, Any]:
    async with services.database.read() as session:
        row = await found_device(session, caller, device_id, Action.DEVICE_READ)
        etags.put(response, row.version)
        return await _show(session, caller.principal, device_id)


@router.patch("/{device_id}")
async def change_device(
    device_id: int, body: DeviceChange, caller: CallerOf, response: Response, if_match: etags.IfMatch = None
) -> dict[str, Any]:
    async def change(session: Session, now: datetime) -> dict[str, Any]:
        action = Action.DEVICE_NAME if body.name is not None else Action.DEVICE_MANAGE
        row = await found_device(session, caller, device_id, action)
        etags.require(if_match, row.version)
        before = {"name": row.name, "labels": row.labels}
        if body.name is not None:
            await devices.rename(session, device_id, body.name)
        if body.labels is not None:
            await devices.relabel(session, device_id, body.labels)
        shown = await _show(session, caller.principal, device_id)
        after = {"name": shown["name"], "labels": shown["labels"]}
        await audit.record(
            session, caller.principal, "update", "device", device_id, now=now, before=before, after=after
        )
        return shown

    return await caller.write(change)


@router.delete("/{device_id}", status_code=204)
async def delete_device(device_id: int, caller: CallerOf, services: ServicesOf, if_match: etags.IfMatch = None) -> None:
    """Revoke a device's key, end its session and its open runs."""

    async def remove(session: Session, now: datetime) -> None:
        row = await found_device(session, caller, device_id, Action.DEVICE_NAME)
        etags.require(if_match, row.version)
        await devices.revoke(session, device_id, now=now)
        touched = await device_runs.cancel_of_device(session, device_id, now=now)
        await executions.settle_deployments(session, services.server, touched, now=now)
        before = {"name": row.name, "labels": row.labels}
        await audit.record(session, caller.principal, "delete", "device", device_id, now=now, before=before)

    await caller.write(remove)
    services.hints.give(Hint.RUNS)
