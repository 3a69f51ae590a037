"""Executions: the ledger of a task, one execution, and its cancellation."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from starlette.responses import StreamingResponse

from deployx.api import paging
from deployx.api.context import Caller, CallerOf, ServicesOf
from deployx.api.paging import Page
from deployx.db.database import Session
from deployx.db.schema import scheduled_task_executions as table
from deployx.db.schema import scheduled_tasks
from deployx.errors import Conflict
from deployx.events import Hint
from deployx.lifecycle import ExecutionStatus
from deployx.people import audit
from deployx.people.grants import Permission
from deployx.people.policy import Action, Thing
from deployx.timing.instants import format_instant
from deployx.work import executions, history, results, tasks

router = APIRouter(prefix="/api/schedule", tags=["schedule"])

_INSTANTS = ("planned_for", "due_at", "execution_time", "completed_time")


class Filter(Page):
    status: ExecutionStatus | None = None
    trigger: Literal["schedule", "catch_up", "manual", "dependency", "retry"] | None = None


def shown_execution(row: Any) -> dict[str, Any]:
    """An execution as the API shows it; one row may stand for several planned instants."""
    shown = {
        name: getattr(row, name)
        for name in ("id", "task_id", "task_version", "trigger", "status", "reason", "deployment_id", "result",
                     "error_message")
    }  # fmt: skip
    shown |= {name: format_instant(moment) if (moment := getattr(row, name)) else None for name in _INSTANTS}
    if row.covers_until is not None:
        shown |= {"covers_until": format_instant(row.covers_until), "occurrences": row.occurrences}
    return shown


async def found_execution(session: Session, caller: Caller, execution_id: int, action: Action) -> Any:
    """The execution, if the policy lets the caller do this with it."""
    caller.require(action)
    found: dict[Permission, Any] = {}
    for permission in (Permission.VIEW, Permission.MANAGE):
        query = history.executions(caller.principal, permission).where(table.c.id == execution_id)
        found[permission] = (await session.execute(query)).one_or_none()
    held = Permission.MANAGE if found[Permission.MANAGE] else Permission.VIEW if found[Permission.VIEW] else None
    caller.require(action, Thing(exists=held is not None, permission=held))
    return found[Permission.VIEW]


@router.get("/tasks/{task_id}/executions")
async def list_executions(
    task_id: int, caller: CallerOf, services: ServicesOf, page: Annotated[Filter, paging.QUERY]
) -> dict[str, Any]:
    """The task's ledger, newest first."""
    caller.require(Action.WORK_READ)
    query = history.executions(caller.principal).where(table.c.task_id == task_id)
    if page.status is not None:
        query = query.where(table.c.status == page.status.value)
    if page.trigger is not None:
        query = query.where(table.c.trigger == page.trigger)
    async with services.database.read() as session:
        visible = history.tasks(caller.principal).with_only_columns(scheduled_tasks.c.id)
        exists = (await session.execute(visible.where(scheduled_tasks.c.id == task_id))).first() is not None
        caller.require(Action.WORK_READ, Thing(exists=exists, permission=Permission.VIEW))
        return await paging.listing(session, query, page, table.c.id, shown_execution)


@router.get("/executions/{execution_id}")
async def show_execution(execution_id: int, caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    async with services.database.read() as session:
        return shown_execution(await found_execution(session, caller, execution_id, Action.WORK_READ))


@router.post("/executions/{execution_id}/cancel", status_code=202)
async def cancel_execution(execution_id: int, caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    """Ask for the end of an execution; devices confirm what they stopped."""

    async def cancel(session: Session, now: datetime) -> dict[str, Any]:
        row = await found_execution(session, caller, execution_id, Action.WORK_CHANGE)
        if row.completed_time is not None:
            raise Conflict(f"Execution {execution_id} has ended ({row.status}): there is nothing to cancel.")
        await executions.cancel(session, services.server, [execution_id], now=now)
        await audit.record(session, caller.principal, "cancel", "execution", execution_id, now=now)
        after = history.executions(caller.principal).where(table.c.id == execution_id)
        return shown_execution((await session.execute(after)).one())

    shown = await caller.write(cancel)
    services.hints.give(Hint.RUNS)
    return shown


@router.post("/executions/{execution_id}/retry", status_code=202)
async def retry_execution(execution_id: int, caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    """Run an ended execution again on the devices that did not succeed."""

    async def retry(session: Session, now: datetime) -> int:
        row = await found_execution(session, caller, execution_id, Action.WORK_CHANGE)
        if row.completed_time is None:
            raise Conflict(f"Execution {execution_id} is {row.status}: wait for its end, or cancel it.")
        by = caller.principal.user_id
        new_id = await tasks.retry(session, services.server, row.task_id, execution_id, by=by, now=now)
        after = {"execution_id": new_id}
        await audit.record(session, caller.principal, "retry", "execution", execution_id, now=now, after=after)
        return new_id

    new_id = await caller.write(retry)
    services.hints.give(Hint.RUNS)
    return {"execution_id": new_id, "message": f"Execution {new_id} tries execution {execution_id} again."}


@router.get("/executions/{execution_id}/results.csv")
async def results_as_csv(execution_id: int, caller: CallerOf, services: ServicesOf) -> Response:
    """A row for each device, by its last attempt."""
    async with services.database.read() as session:
        row = await found_execution(session, caller, execution_id, Action.WORK_READ)
    name = f"execution-{execution_id}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
    text = results.as_csv(services.database, row.deployment_id)
    return StreamingResponse(text, media_type="text/csv; charset=utf-8", headers=headers)
