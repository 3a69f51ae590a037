"""One device's run: its record and its output."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from starlette.responses import JSONResponse, StreamingResponse

from deployx.api import paging
from deployx.api.context import Caller, CallerOf, Services, ServicesOf
from deployx.api.fields import Query
from deployx.db.database import Session
from deployx.db.schema import device_runs as table
from deployx.people.grants import Permission
from deployx.people.policy import Action, Thing
from deployx.timing.instants import format_instant
from deployx.work import history, output

router = APIRouter(prefix="/api/device-runs", tags=["deployments"])

CHUNKS_AT_ONCE = 500


class Part(Query):
    after: Annotated[int, Field(ge=-1, le=2**31 - 1)] = -1
    stream: Literal["stdout", "stderr"] | None = None


def shown_run(row: Any) -> dict[str, Any]:
    """A device run as the API shows it."""
    names = (
        "id", "deployment_id", "device_id", "device_name", "attempt", "wave", "status", "reason", "exit_code",
        "duration_seconds", "truncated", "reboot_required", "receipt", "late_result",
    )  # fmt: skip
    shown = {name: getattr(row, name) for name in names}
    shown |= {
        name: format_instant(moment) if (moment := getattr(row, name)) else None
        for name in ("queued_at", "started_at", "completed_at")
    }
    failed = row.completed_at is not None and row.status != "succeeded"
    return shown | {"steps": row.steps or [], "error_message": row.reason if failed else None}


async def _found(session: Session, caller: Caller, run_id: int) -> Any:
    """The run, if the policy lets the caller see it."""
    caller.require(Action.WORK_READ)
    row = (await session.execute(history.runs(caller.principal).where(table.c.id == run_id))).one_or_none()
    caller.require(Action.WORK_READ, Thing(exists=row is not None, permission=Permission.VIEW))
    return row


@router.get("/{run_id}")
async def show_run(run_id: int, caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    async with services.database.read() as session:
        return shown_run(await _found(session, caller, run_id))


@router.get("/{run_id}/output")
async def show_output(
    run_id: int, request: Request, caller: CallerOf, services: ServicesOf, query: Annotated[Part, paging.QUERY]
) -> Response:
    """What the run printed, in order: a page as JSON, or all of it with `Accept: text/plain`."""
    async with services.database.read() as session:
        row = await _found(session, caller, run_id)
        if "text/plain" in request.headers.get("accept", ""):
            return StreamingResponse(_text(services, run_id, query), media_type="text/plain; charset=utf-8")
        part = await output.read(session, run_id, query.after, query.stream, limit=CHUNKS_AT_ONCE)
    items = [
        {"seq": one.seq, "step": one.step, "stream": one.stream, "at": format_instant(one.at), "text": one.text}
        for one in part.rows
    ]
    complete = row.completed_at is not None and len(items) < CHUNKS_AT_ONCE
    return JSONResponse({"items": items, "next": part.next, "complete": complete, "truncated": bool(row.truncated)})


async def _text(services: Services, run_id: int, query: Part) -> AsyncIterator[str]:
    after = query.after
    while True:
        async with services.database.read() as session:
            part = await output.read(session, run_id, after, query.stream, limit=CHUNKS_AT_ONCE)
        if not part.rows:
            return
        for one in part.rows:
            yield one.text
        after = part.next
