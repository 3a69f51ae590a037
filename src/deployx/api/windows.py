"""Execution windows and blackouts: the catalogue of when work may start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, datetime
from typing import Annotated, Any, Self

from fastapi import APIRouter, Response
from pydantic import AfterValidator, Field, model_validator
from sqlalchemy import select

from deployx.api import answerable, etags, paging
from deployx.api.context import Caller, CallerOf
from deployx.api.fields import Body, InstantIn, Name
from deployx.api.paging import Page
from deployx.db.database import Session
from deployx.errors import FieldError, NotPermitted
from deployx.events import Hint
from deployx.people import audit, grants
from deployx.people.grants import Permission
from deployx.people.policy import Action, Thing
from deployx.timing.instants import format_instant
from deployx.timing.zones import ZoneError, find_zone
from deployx.work import catalogue
from deployx.work.catalogue import BLACKOUTS, WINDOWS, Kind

router = APIRouter(prefix="/api/schedule", tags=["windows"])


def _known_zone(value: str) -> str:
    try:
        find_zone(value)
    except ZoneError as error:
        raise ValueError(str(error)) from None
    return value


def _wall_time(value: str) -> str:
    if re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?", value, re.ASCII) is None:
        raise ValueError(f"{value[:40]!r} is no time of day: write 'HH:MM' or 'HH:MM:SS', 00:00 to 23:59:59")
    return value


def _month_and_day(value: str) -> str:
    try:
        if re.fullmatch(r"[0-9]{2}-[0-9]{2}", value, re.ASCII) is None:
            raise ValueError
        date.fromisoformat(f"2024-{value}")  # a leap year: 29 February is a day, though not of every year
    except ValueError:
        raise ValueError(f"{value[:40]!r} is no day of a year: write month and day, like '12-25'") from None
    return value


ZoneName = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_known_zone)]
WallTime = Annotated[str, AfterValidator(_wall_time)]
Weekday = Annotated[int, Field(ge=0, le=6)]
DayOfYear = Annotated[str, AfterValidator(_month_and_day)]


class WindowBody(Body):
    """Open on these weekdays (Monday is 0) from `start` to `end`; an end not after the start is the next day's."""

    name: Name
    days_of_week: Annotated[list[Weekday], Field(min_length=1, max_length=7)]
    start: WallTime
    end: WallTime
    timezone: ZoneName = "UTC"

    def values(self) -> dict[str, Any]:
        return self.model_dump() | {"days_of_week": sorted(set(self.days_of_week))}


class BlackoutBody(Body):
    """Either one stretch, `from` to `to`, or `dates` of each year in a zone."""

    name: Name
    from_at: InstantIn | None = Field(None, alias="from")
    to_at: InstantIn | None = Field(None, alias="to")
    dates: Annotated[list[DayOfYear], Field(min_length=1, max_length=366)] | None = None
    timezone: ZoneName | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.dates is not None:
            if self.from_at is not None or self.to_at is not None:
                raise FieldError(("dates",), "'dates' excludes 'from' and 'to': keep one of the two ways.")
            return self
        if self.from_at is None or self.to_at is None:
            missing = "from" if self.from_at is None else "to"
            raise FieldError((missing,), "A blackout has 'from' and 'to', or 'dates': add what is missing.")
        if self.to_at <= self.from_at:
            raise FieldError(("to",), f"{format_instant(self.to_at)} is not after 'from': give a later instant.")
        if self.timezone is not None:
            raise FieldError(("timezone",), "A stretch of instants has no timezone: leave it out, or give 'dates'.")
        return self

    def values(self) -> dict[str, Any]:
        dates = sorted(set(self.dates)) if self.dates is not None else None
        return {
            "name": self.name,
            "from_at": self.from_at,
            "to_at": self.to_at,
            "dates": dates,
            "timezone": self.timezone or "UTC",
        }


def _shown_window(row: Any) -> dict[str, Any]:
    named = ("id", "name", "days_of_week", "start", "end", "timezone", "created_by")
    return {name: getattr(row, name) for name in named} | {"created_at": format_instant(row.created_at)}


def _shown_blackout(row: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": row.id, "name": row.name}
    if row.dates is None:
        shown |= {"from": format_instant(row.from_at), "to": format_instant(row.to_at)}
    else:
        shown |= {"dates": row.dates, "timezone": row.timezone}
    return shown | {"created_by": row.created_by, "created_at": format_instant(row.created_at)}


_SHOWN = {"window": _shown_window, "blackout": _shown_blackout}


async def _list(caller: Caller, kind: Kind, page: Page) -> dict[str, Any]:
    caller.require(Action.CATALOGUE_READ)
    query = select(kind.table).order_by(kind.table.c.id.desc())
    async with caller.services.database.read() as session:
        return await paging.listing(session, query, page, kind.table.c.id, _SHOWN[kind.name])


async def _found(session: Session, caller: Caller, kind: Kind, identity: int, action: Action) -> Any:
    row = (await session.execute(select(kind.table).where(kind.table.c.id == identity))).one_or_none()
    owner_id = row.created_by if row is not None else None
    caller.require(action, Thing(exists=row is not None, owner_id=owner_id, permission=Permission.VIEW))
    return row


async def _show(caller: Caller, kind: Kind, identity: int, response: Response) -> dict[str, Any]:
    async with caller.services.database.read() as session:
        row = await _found(session, caller, kind, identity, Action.CATALOGUE_READ)
    etags.put(response, row.version)
    return _SHOWN[kind.name](row)


async def _create(caller: Caller, kind: Kind, values: dict[str, Any], response: Response) -> dict[str, Any]:
    caller.require(Action.CATALOGUE_CREATE)

    async def create(session: Session, now: datetime) -> dict[str, Any]:
        identity = await catalogue.create(session, kind, values, by=caller.principal.user_id, now=now)
        shown = _SHOWN[kind.name](await _found(session, caller, kind, identity, Action.CATALOGUE_READ))
        await audit.record(session, caller.principal, "create", kind.name, identity, now=now, after=shown)
        return shown

    shown = await caller.write(create)
    response.headers["Location"] = f"/api/schedule/{kind.name}s/{shown['id']}"
    etags.put(response, 1)
    return shown


async def _change(
    caller: Caller, kind: Kind, identity: int, values: dict[str, Any], response: Response, if_match: str | None
) -> dict[str, Any]:
    async def change(session: Session, now: datetime) -> tuple[dict[str, Any], int]:
        row = await _found(session, caller, kind, identity, Action.CATALOGUE_CHANGE)
        etags.require(if_match, row.version)
        await _require_run_on_users(session, caller, kind, identity)
        await catalogue.change(session, kind, identity, values, now=now)
        before = _SHOWN[kind.name](row)
        after = _SHOWN[kind.name](await _found(session, caller, kind, identity, Action.CATALOGUE_READ))
        await audit.record(
            session, caller.principal, "update", kind.name, identity, now=now, before=before, after=after
        )  # fmt: skip
        return after, row.version + 1

    shown, version = await caller.write(change)
    caller.services.hints.give(Hint.TASKS)
    etags.put(response, version)
    return shown


async def _delete(caller: Caller, kind: Kind, identity: int, if_match: str | None) -> None:
    async def remove(session: Session, now: datetime) -> None:
        row = await _found(session, caller, kind, identity, Action.CATALOGUE_CHANGE)
        etags.require(if_match, row.version)
        await catalogue.remove(session, kind, identity)
        before: Mapping[str, Any] = _SHOWN[kind.name](row)
        await audit.record(session, caller.principal, "delete", kind.name, identity, now=now, before=before)

    await caller.write(remove)


async def _require_run_on_users(session: Session, caller: Caller, kind: Kind, identity: int) -> None:
    """Changing a window changes when others' tasks run: that takes `run` on all that those target."""
    if caller.principal.is_admin:
        return
    task_ids = [task_id for task_id, _name in await catalogue.tasks_using(session, kind, identity)]
    await answerable.require_run(session, caller, task_ids, kind.name)
    group_ids = [group_id for group_id, _name in await catalogue.groups_using(session, kind, identity)]
    managed = await grants.on_groups(session, caller.principal, group_ids)
    if any(managed.get(one, Permission.VIEW) < Permission.MANAGE for one in group_ids):
        raise NotPermitted(f"Groups that you do not manage use this {kind.name}.")


@router.get("/windows")
async def list_windows(caller: CallerOf, page: Annotated[Page, paging.QUERY]) -> dict[str, Any]:
    return await _list(caller, WINDOWS, page)


@router.post("/windows", status_code=201)
async def create_window(body: WindowBody, caller: CallerOf, response: Response) -> dict[str, Any]:
    """Define when work may start; tasks and groups name it by its id."""
    return await _create(caller, WINDOWS, body.values(), response)


@router.get("/windows/{window_id}")
async def show_window(window_id: int, caller: CallerOf, response: Response) -> dict[str, Any]:
    return await _show(caller, WINDOWS, window_id, response)


@router.put("/windows/{window_id}")
async def change_window(
    window_id: int, body: WindowBody, caller: CallerOf, response: Response, if_match: etags.IfMatch = None
) -> dict[str, Any]:
    """Change a window for all that use it; what waits for it is looked at again."""
    return await _change(caller, WINDOWS, window_id, body.values(), response, if_match)


@router.delete("/windows/{window_id}", status_code=204)
async def delete_window(window_id: int, caller: CallerOf, if_match: etags.IfMatch = None) -> None:
    await _delete(caller, WINDOWS, window_id, if_match)


@router.get("/blackouts")
async def list_blackouts(caller: CallerOf, page: Annotated[Page, paging.QUERY]) -> dict[str, Any]:
    return await _list(caller, BLACKOUTS, page)


@router.post("/blackouts", status_code=201)
async def create_blackout(body: BlackoutBody, caller: CallerOf, response: Response) -> dict[str, Any]:
    """Define when nothing may start, whatever the windows say."""
    return await _create(caller, BLACKOUTS, body.values(), response)


@router.get("/blackouts/{blackout_id}")
async def show_blackout(blackout_id: int, caller: CallerOf, response: Response) -> dict[str, Any]:
    return await _show(caller, BLACKOUTS, blackout_id, response)


@router.put("/blackouts/{blackout_id}")
async def change_blackout(
    blackout_id: int, body: BlackoutBody, caller: CallerOf, response: Response, if_match: etags.IfMatch = None
) -> dict[str, Any]:
    return await _change(caller, BLACKOUTS, blackout_id, body.values(), response, if_match)


@router.delete("/blackouts/{blackout_id}", status_code=204)
async def delete_blackout(blackout_id: int, caller: CallerOf, if_match: etags.IfMatch = None) -> None:
    await _delete(caller, BLACKOUTS, blackout_id, if_match)
