"""The preview of an unsaved definition: its next occurrences, its sentence, and what may surprise."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from deployx.api import paging
from deployx.api.context import CallerOf, ServicesOf
from deployx.api.definitions import DEFAULTS, Preview, applied
from deployx.api.fields import Query
from deployx.errors import Invalid
from deployx.fleet import targets
from deployx.people.grants import Permission
from deployx.people.policy import Action
from deployx.timing import preview as timing_preview
from deployx.timing import words
from deployx.timing.instants import format_instant
from deployx.timing.zones import find_zone
from deployx.work import specs

router = APIRouter(prefix="/api/schedule", tags=["schedule"])


class Count(Query):
    count: Annotated[int, Field(ge=1, le=1000)] = 10


@router.post("/preview")
async def preview(
    body: Preview, caller: CallerOf, services: ServicesOf, query: Annotated[Count, paging.QUERY]
) -> dict[str, Any]:
    """The next instants of a definition, by the code that will fire them."""
    caller.require(Action.WORK_CREATE)
    spec = applied(body, DEFAULTS)
    async with services.database.read() as session:
        now = await services.database.now(session)
        if spec.device_ids or spec.group_ids:
            problems = await targets.check(session, caller.principal, spec.device_ids, spec.group_ids, Permission.RUN)
            if problems:
                raise Invalid(problems)
    rule, _first = specs.plan(spec, now=now)
    zone = find_zone(spec.timezone)
    warnings = timing_preview.warnings(rule, now=now)
    occurrences = []
    moment = now
    for _ in range(query.count):
        following = rule.next_after(moment)
        if following is None:
            break
        moment = following
        instant = format_instant(moment)
        local = moment.astimezone(zone).isoformat()
        occurrences.append({"planned_for": instant, "due_at": instant, "local": local})
    return {
        "occurrences": occurrences,
        "description": words.describe(rule),
        "warnings": [{"code": one.code, "text": one.text} for one in warnings],
    }
