"""One task's occurrences to come, changing one of them by hand, and the versions of its definition."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from sqlalchemy import select

from deployx.api import paging
from deployx.api.context import Caller, CallerOf, ServicesOf
from deployx.api.fields import Body, InstantIn
from deployx.api.paging import Page
from deployx.api.schedule import found_task
from deployx.db.database import Session
from deployx.db.schema import task_versions
from deployx.db.types import to_microseconds
from deployx.errors import Invalid, NotFound, Problem
from deployx.events import Hint
from deployx.people import audit
from deployx.people.policy import Action
from deployx.timing.instants import InstantError, format_instant, parse_instant
from deployx.timing.zones import find_zone
from deployx.work import occurrences, plans, task_rows
from deployx.work.occurrences import Occurrence

router = APIRouter(prefix="/api/schedule", tags=["schedule"])

SHOWN_AHEAD = timedelta(days=31)


class Span(Page):
    since: InstantIn | None = Field(None, alias="from")
    until: InstantIn | None = Field(None, alias="to")


class Target(Body):
    to: InstantIn


def _shown(one: Occurrence, zone_name: str) -> dict[str, Any]:
    return {
        "planned_for": format_instant(one.planned_for),
        "due_at": format_instant(one.due_at) if one.due_at else None,
        "local": (one.due_at or one.planned_for).astimezone(find_zone(zone_name)).isoformat(),
        "skipped": one.due_at is None,
        "moved": one.is_moved,
    }


@router.get("/tasks/{task_id}/occurrences")
async def list_occurrences(
    task_id: int, caller: CallerOf, services: ServicesOf, span: Annotated[Span, paging.QUERY]
) -> dict[str, Any]:
    """Planned occurrences in their order, by default of the next 31 days; what has fallen due is in the executions."""
    async with services.database.read() as session:
        await found_task(session, caller, task_id, Action.WORK_READ)
        task = await task_rows.read(session, task_id)
        if task is None:
            raise NotFound
        now = await services.database.now(session)
        plan = await plans.plan_of(session, task)
    since = span.since or now
    until = span.until or since + SHOWN_AHEAD
    if until <= since:
        raise Invalid([Problem(("query", "to"), f"{format_instant(until)} is not after 'from': give a later one.")])
    found = occurrences.planned(plan, task, since, until, paging.COUNTED_TO + 1)
    shown, envelope = paging.part_of(found, span, lambda one: to_microseconds(one.planned_for))
    return {"items": [_shown(one, task["timezone"]) for one in shown], **envelope}


async def _changed(caller: Caller, task_id: int, instant: str, to: datetime | None) -> dict[str, Any]:
    try:
        planned_for = parse_instant(instant)
    except InstantError as error:
        raise Invalid([Problem(("path", "instant"), f"{error}.")]) from None

    async def change(session: Session, now: datetime) -> dict[str, Any]:
        row, _spec = await found_task(session, caller, task_id, Action.WORK_CHANGE)
        by, server = caller.principal.user_id, caller.services.server
        if to is None:
            one = await occurrences.skip(session, server, task_id, planned_for, by=by, now=now)
        else:
            one = await occurrences.move(session, server, task_id, planned_for, to, by=by, now=now)
        shown = _shown(one, row.timezone)
        action = "skip_occurrence" if to is None else "move_occurrence"
        await audit.record(session, caller.principal, action, "task", task_id, now=now, after=shown)
        return shown

    shown = await caller.write(change)
    caller.services.hints.give(Hint.TASKS)
    return shown


@router.post("/tasks/{task_id}/occurrences/{instant}/skip")
async def skip_occurrence(task_id: int, instant: str, caller: CallerOf) -> dict[str, Any]:
    """Have one planned occurrence recorded as skipped by hand when its time comes."""
    return await _changed(caller, task_id, instant, None)


@router.post("/tasks/{task_id}/occurrences/{instant}/move")
async def move_occurrence(task_id: int, instant: str, body: Target, caller: CallerOf) -> dict[str, Any]:
    """Have one planned occurrence start at another instant; moved to its own it is as before."""
    return await _changed(caller, task_id, instant, body.to)


@router.get("/tasks/{task_id}/versions")
async def list_versions(
    task_id: int, caller: CallerOf, services: ServicesOf, page: Annotated[Page, paging.QUERY]
) -> dict[str, Any]:
    """Who changed what and when, newest first, pauses and resumes included."""
    table, before = task_versions, task_versions.alias("before")
    query = (
        select(table, before.c.definition.label("definition_before"), before.c.status.label("status_before"))
        .outerjoin(before, (before.c.task_id == table.c.task_id) & (before.c.version == table.c.version - 1))
        .where(table.c.task_id == task_id)
        .order_by(table.c.version.desc())
    )
    async with services.database.read() as session:
        await found_task(session, caller, task_id, Action.WORK_READ)
        return await paging.listing(session, query, page, table.c.version, _shown_version)


def _shown_version(row: Any) -> dict[str, Any]:
    after = row.definition | {"status": row.status}
    before = None if row.definition_before is None else row.definition_before | {"status": row.status_before}
    changed = [name for name in after if before is not None and after[name] != before.get(name)]
    return {
        "version": row.version,
        "at": format_instant(row.effective_at),
        "user_id": row.changed_by,
        "action": row.action,
        "changed": changed,
        "before": before,
        "after": after,
    }
