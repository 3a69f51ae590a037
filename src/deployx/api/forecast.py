"""The forecast: how many executions and device runs are planned when, and where a device gets several at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from deployx.api import paging
from deployx.api.context import CallerOf, ServicesOf
from deployx.api.fields import InstantIn, Query
from deployx.errors import Invalid, Problem
from deployx.people.policy import Action
from deployx.timing.forecast import MOST_INSTANTS, TooManyInstants, forecast
from deployx.timing.instants import format_instant
from deployx.work import forecasting

router = APIRouter(prefix="/api/schedule", tags=["schedule"])

MOST_BUCKETS = 10_000
MOST_UNKNOWN = 1_000
SHOWN_AHEAD = timedelta(days=7)


class Span(Query):
    since: InstantIn | None = Field(None, alias="from")
    until: InstantIn | None = Field(None, alias="to")
    bucket_seconds: Annotated[int, Field(ge=1, le=31_622_400)] = 3600


@router.get("/forecast")
async def show_forecast(caller: CallerOf, services: ServicesOf, span: Annotated[Span, paging.QUERY]) -> dict[str, Any]:
    """Count what is planned, by the code that fires it; by default for the next seven days."""
    caller.require(Action.WORK_READ)
    async with services.database.read() as session:
        now = await services.database.now(session)
        since = span.since or now
        until = span.until or since + SHOWN_AHEAD
        bucket = timedelta(seconds=span.bucket_seconds)
        if until <= since:
            raise Invalid([Problem(("query", "to"), f"{format_instant(until)} is not after 'from': give a later one.")])
        buckets = -((since - until) // bucket)
        if buckets > MOST_BUCKETS:
            why = f"This makes {buckets} buckets, more than {MOST_BUCKETS}: choose larger ones or a shorter range."
            raise Invalid([Problem(("query", "bucket_seconds"), why)])
        known = await forecasting.read(session, caller.principal)
    try:
        found = await asyncio.to_thread(forecast, known.planned, since, until, bucket)
    except TooManyInstants:
        why = f"More than {MOST_INSTANTS} occurrences are planned in this range: choose a shorter one."
        raise Invalid([Problem(("query", "to"), why)]) from None
    return {
        "buckets": [
            {"from": format_instant(one.since), "executions": one.executions, "device_runs": one.device_runs}
            for one in found.buckets
        ],
        "collisions": [
            {"at": format_instant(one.at), "device_id": one.device_id, "task_ids": list(one.task_ids)}
            for one in found.collisions
        ],
        "collisions_capped": not found.is_whole,
        "unknown": [{"task_id": task_id, "why": why} for task_id, why in known.unknown[:MOST_UNKNOWN]],
    }
