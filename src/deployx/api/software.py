"""The software catalogue: what can be installed, from where, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy import select

from deployx.api import answerable, etags, paging
from deployx.api.context import Caller, CallerOf, ServicesOf
from deployx.api.fields import Body, Description, IdList, Name
from deployx.api.paging import Page
from deployx.catalog import software, uses
from deployx.catalog.installers import Installer
from deployx.db.database import Session
from deployx.db.schema import software as table
from deployx.people import audit
from deployx.people.grants import Permission
from deployx.people.policy import Action, Thing
from deployx.timing.instants import format_instant

router = APIRouter(prefix="/api/software", tags=["software"])

Installers = Annotated[list[Installer], Field(min_length=1, max_length=50)]
Needed = Annotated[IdList, Field(max_length=100)]


class NewSoftware(Body):
    """What `POST /api/software` takes."""

    name: Name
    version: Name | None = None
    description: Description = ""
    installers: Installers
    depends_on: Needed = []


class SoftwareChange(Body):
    """What `PUT /api/software/{id}` takes: any subset; null goes back to the default."""

    name: Name | None = None
    version: Name | None = None
    description: Description | None = None
    installers: Installers | None = None
    depends_on: Needed | None = None


class Filter(Page):
    search: str | None = None


def _values(body: NewSoftware | SoftwareChange) -> dict[str, Any]:
    """The fields that the body names, as they are stored."""
    values = {name: getattr(body, name) for name in body.model_fields_set}
    if values.get("installers") is not None:
        values["installers"] = [one.values() for one in values["installers"]]
    return values


def _whole(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": values["name"],
        "version": values.get("version") or "",
        "description": values.get("description") or "",
        "installers": values["installers"],
        "depends_on": sorted(values.get("depends_on") or []),
    }


def _shown(row: Mapping[Any, Any], depends_on: list[int]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "name": row["name"],
        "version": row["version"] or None,
        "description": row["description"],
        "installers": row["installers"],
        "depends_on": depends_on,
        "created_by": row["created_by"],
        "created_at": format_instant(row["created_at"]),
    }


async def _found(session: Session, caller: Caller, software_id: int, action: Action) -> Mapping[Any, Any]:
    row = await software.find(session, software_id)
    owner_id = row["created_by"] if row is not None else None
    caller.require(action, Thing(exists=row is not None, owner_id=owner_id, permission=Permission.VIEW))
    assert row is not None
    return row


async def _show(session: Session, caller: Caller, software_id: int) -> dict[str, Any]:
    row = await _found(session, caller, software_id, Action.CATALOGUE_READ)
    return _shown(row, (await software.needs(session, [software_id]))[software_id])


@router.get("")
async def list_software(
    caller: CallerOf, services: ServicesOf, page: Annotated[Filter, paging.QUERY]
) -> dict[str, Any]:
    caller.require(Action.CATALOGUE_READ)
    query = select(table).order_by(table.c.id.desc())
    if page.search:
        query = query.where(table.c.name.icontains(page.search, autoescape=True))
    async with services.database.read() as session:
        rows, envelope = await paging.rows_of(session, query, page, table.c.id)
        needs = await software.needs(session, [row.id for row in rows])
    return {"items": [_shown(row._mapping, needs[row.id]) for row in rows], **envelope}


@router.post("", status_code=201)
async def create_software(body: NewSoftware, caller: CallerOf, response: Response) -> dict[str, Any]:
    """Add an entry; payloads name it by its id."""
    caller.require(Action.CATALOGUE_CREATE)

    async def create(session: Session, now: datetime) -> dict[str, Any]:
        values = _whole(_values(body))
        software_id = await software.create(session, values, by=caller.principal.user_id, now=now)
        shown = await _show(session, caller, software_id)
        await audit.record(session, caller.principal, "create", "software", software_id, now=now, after=shown)
        return shown

    shown = await caller.write(create)
    response.headers["Location"] = f"/api/software/{shown['id']}"
    etags.put(response, 1)
    return shown


@router.get("/{software_id}")
async def show_software(software_id: int, caller: CallerOf, services: ServicesOf, response: Response) -> dict[str, Any]:
    async with services.database.read() as session:
        row = await _found(session, caller, software_id, Action.CATALOGUE_READ)
        shown = _shown(row, (await software.needs(session, [software_id]))[software_id])
    etags.put(response, row["revision"])
    return shown


@router.put("/{software_id}")
async def change_software(
    software_id: int, body: SoftwareChange, caller: CallerOf, response: Response, if_match: etags.IfMatch = None
) -> dict[str, Any]:
    """Change an entry for all that use it, from their next execution on."""

    async def change(session: Session, now: datetime) -> tuple[dict[str, Any], int]:
        await _found(session, caller, software_id, Action.CATALOGUE_CHANGE)
        await uses.lock(session, table, software_id)
        row = await _found(session, caller, software_id, Action.CATALOGUE_CHANGE)
        etags.require(if_match, row["revision"])
        tasks = await uses.tasks_of_software(session, software_id)
        await answerable.require_run(session, caller, tasks, "software")
        before = await _show(session, caller, software_id)
        await software.change(session, software_id, _changed(before, _values(body)))
        after = await _show(session, caller, software_id)
        await audit.record(
            session, caller.principal, "update", "software", software_id, now=now, before=before, after=after
        )  # fmt: skip
        return after, row["revision"] + 1

    shown, revision = await caller.write(change)
    etags.put(response, revision)
    return shown


def _changed(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The whole entry after a change; its name and installers have no default to go back to."""
    kept = {name: value for name, value in given.items() if value is not None or name not in ("name", "installers")}
    return _whole(dict(before) | kept)


@router.delete("/{software_id}", status_code=204)
async def delete_software(software_id: int, caller: CallerOf, if_match: etags.IfMatch = None) -> None:
    """Remove an entry that no task, other software or open deployment uses."""

    async def remove(session: Session, now: datetime) -> None:
        row = await _found(session, caller, software_id, Action.CATALOGUE_CHANGE)
        etags.require(if_match, row["revision"])
        before = await _show(session, caller, software_id)
        await software.remove(session, software_id)
        await audit.record(session, caller.principal, "delete", "software", software_id, now=now, before=before)

    await caller.write(remove)
