"""The preview of an unsaved definition: its next occurrences, its sentence, and what may surprise."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from itertools import islice, pairwise
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from sqlalchemy import select

from deployx.api import paging
from deployx.api.context import CallerOf, ServicesOf
from deployx.api.definitions import DEFAULTS, Preview, applied
from deployx.api.fields import Query
from deployx.api.schedule import check_references
from deployx.db.database import Session
from deployx.db.schema import blackouts, windows
from deployx.fleet import targets
from deployx.people.policy import Action
from deployx.timing import preview as timing_preview
from deployx.timing import words
from deployx.timing.forecast import expected_start
from deployx.timing.instants import format_instant
from deployx.timing.owed import Due, Plan
from deployx.timing.policy import Outside, Policy
from deployx.timing.preview import Warning
from deployx.timing.recurrence import LAST_INSTANT, Recurrence
from deployx.timing.windows import Calendar
from deployx.timing.zones import find_zone
from deployx.work import calendars, specs
from deployx.work.rollout import Rollout
from deployx.work.specs import TaskSpec

router = APIRouter(prefix="/api/schedule", tags=["schedule"])

_OFFSET = re.compile(r"([Zz]|[+-]\d{2}:\d{2})$")


class Count(Query):
    count: Annotated[int, Field(ge=1, le=1000)] = 10


@router.post("/preview")
async def preview(
    request: Request, body: Preview, caller: CallerOf, services: ServicesOf, query: Annotated[Count, paging.QUERY]
) -> dict[str, Any]:
    """The next instants of a definition, by the code that will fire them."""
    caller.require(Action.WORK_CREATE)
    spec = applied(body, DEFAULTS)
    async with services.database.read() as session:
        now = await services.database.now(session)
        await check_references(session, caller, spec, with_targets=False)
        calendar = await _calendar(session, spec)
        devices = await targets.count(session, spec.device_ids, spec.group_ids) if spec.rollout else 0
    rule, _first = specs.plan(spec, now=now)
    given = (await request.json()).get("scheduled_time")
    naive = isinstance(given, str) and _OFFSET.search(given) is None
    warnings = timing_preview.warnings(rule, now=now, start_was_naive=naive)
    plan = Plan(rule, 0, spec.jitter_seconds)
    found = list(islice(plan.upcoming(now, LAST_INSTANT), query.count + 1))
    warnings += _of_policies(spec, rule, calendar, found, now, query.count)
    zone = find_zone(spec.timezone)
    going_out = _rollout(spec, devices) if devices else None
    if going_out is not None:
        warnings.append(Warning("rollout", going_out.pop("text")))
    return {
        "occurrences": [
            {
                "planned_for": format_instant(one.planned_for),
                "due_at": format_instant(one.due_at),
                "local": one.planned_for.astimezone(zone).isoformat(),
            }
            for one in found[: query.count]
            if one.planned_for is not None
        ],
        "description": words.describe(rule),
        "warnings": [{"code": one.code, "text": one.text} for one in warnings],
        "rollout": going_out,
    }


def _rollout(spec: TaskSpec, devices: int) -> dict[str, Any]:
    """How a deployment to as many devices as are targeted now would go out, in numbers and in words."""
    assert spec.rollout is not None
    rollout = Rollout.of(spec.rollout)
    waves, allowed = rollout.waves(devices), rollout.allowed_failures(devices)
    plan = f"{devices} devices in {len(waves)} {'wave' if len(waves) == 1 else 'waves'}"
    text = f"{plan}: {allowed} of them may fail, one more stops the rollout."
    return {"devices": devices, "waves": waves, "allowed_failures": allowed, "text": text}


async def _calendar(session: Session, spec: TaskSpec) -> Calendar | None:
    if not spec.window_ids and not spec.blackout_ids:
        return None
    opened = await session.execute(select(windows).where(windows.c.id.in_(spec.window_ids)))
    closed = await session.execute(select(blackouts).where(blackouts.c.id.in_(spec.blackout_ids)))
    return Calendar(
        tuple(calendars.window(row) for row in opened), tuple(calendars.blackout(row) for row in closed)
    )  # fmt: skip


def _of_policies(
    spec: TaskSpec, rule: Recurrence, calendar: Calendar | None, found: list[Due], now: datetime, shown: int
) -> list[Warning]:
    """What jitter, windows and blackouts do to the first `shown` instants."""
    warnings = []
    if spec.jitter_seconds:
        why = (
            f"Each start is moved later by up to {spec.jitter_seconds} s; by how much is known once the task is saved."
        )
        warnings.append(Warning("jitter", why))
    if calendar is None or not found:
        return warnings
    grace = timedelta(seconds=spec.misfire_grace_seconds)
    policy = Policy(grace, outside=Outside(spec.outside_window), calendar=calendar)
    following = rule.next_after(found[-1].planned_for or now)
    dues = [one.due_at for one in found] + ([following] if following else [])
    last = [] if following else [(found[-1], None)]
    pairs = [*zip(found, [after for _, after in pairwise(dues)], strict=False), *last]
    starts = [(one, expected_start(one, after, policy)) for one, after in pairs[:shown]]
    skipped = sum(start_at is None for _, start_at in starts)
    delayed = sum(start_at is not None and start_at > one.due_at for one, start_at in starts)
    of = f"of the next {len(starts)}"
    if skipped:
        why = f"{skipped} {of} fall outside the windows or into a blackout: they are skipped."
        warnings.append(Warning("windows", why))
    if delayed:
        why = f"{delayed} {of} fall outside the windows: they start when a window opens."
        warnings.append(Warning("windows", why))
    return warnings
