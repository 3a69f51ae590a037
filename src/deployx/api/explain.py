"""Why something did or did not run, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from deployx.api.context import CallerOf, ServicesOf
from deployx.api.executions import found_execution
from deployx.api.schedule import found_task
from deployx.people.policy import Action
from deployx.timing.instants import format_instant
from deployx.work import explaining
from deployx.work.explaining import Reason

router = APIRouter(prefix="/api/schedule", tags=["schedule"])


def _shown(reasons: Sequence[Reason]) -> dict[str, Any]:
    return {"summary": explaining.summary(reasons), "reasons": [_reason(one) for one in reasons]}


def _reason(one: Reason) -> dict[str, Any]:
    shown: dict[str, Any] = {"rule": one.rule, "text": one.text}
    if one.at is not None:
        shown["at"] = format_instant(one.at)
    if one.value is not None:
        shown["value"] = one.value
    return shown


@router.get("/tasks/{task_id}/explain")
async def explain_task(task_id: int, caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    """Why the task does or does not run, the weightiest reason first."""
    async with services.database.read() as session:
        await found_task(session, caller, task_id, Action.WORK_READ)
        now = await services.database.now(session)
        return _shown(await explaining.task(session, task_id, now=now))


@router.get("/executions/{execution_id}/explain")
async def explain_execution(execution_id: int, caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    """Why the execution is where it is, and what its devices say."""
    async with services.database.read() as session:
        row = await found_execution(session, caller, execution_id, Action.WORK_READ)
        now = await services.database.now(session)
        return _shown(await explaining.execution(session, row, now=now))
