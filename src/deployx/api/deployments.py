"""Deployments: run something now, and see what became of any sending, device by device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response

from deployx.api import paging
from deployx.api.context import Caller, CallerOf, ServicesOf
from deployx.api.definitions import NewDeployment, TaskType
from deployx.api.device_runs import shown_run
from deployx.api.paging import Page
from deployx.catalog import references
from deployx.catalog.payloads import stored
from deployx.db.database import Session
from deployx.db.schema import deployments as table
from deployx.db.schema import device_runs as runs_table
from deployx.errors import Conflict, Invalid
from deployx.events import Hint
from deployx.fleet import targets
from deployx.fleet.resolution import Owner
from deployx.lifecycle import RUN_OPEN, DeploymentStatus, RunStatus
from deployx.people import audit
from deployx.people.grants import Permission
from deployx.people.policy import Action, Thing
from deployx.timing.instants import format_instant
from deployx.work import again, deployments, executions, history, rollouts, settling

router = APIRouter(prefix="/api/deployments", tags=["deployments"])


class Filter(Page):
    status: DeploymentStatus | None = None
    deployment_type: TaskType | None = None


class RunFilter(Page):
    status: RunStatus | None = None


Waves = Sequence[tuple[int, dict[str, int]]]


def _shown(row: Any, waves: Waves) -> dict[str, Any]:
    """A deployment as the API shows it."""
    counts = sum((Counter(of_wave) for _, of_wave in waves), Counter[str]())
    instants = ("created_at", "started_at", "completed_at")
    return (
        {
            name: getattr(row, name)
            for name in (
                "id", "deployment_type", "deployment_name", "status", "execution_id", "created_by", "error_message",
                "rollout", "retry", "halted_reason",
            )
        }
        | {name: format_instant(moment) if (moment := getattr(row, name)) else None for name in instants}
        | {"counts": dict(counts), "waves": [_shown_wave(number, of_wave) for number, of_wave in waves]}
    )  # fmt: skip


def _shown_wave(number: int, counts: dict[str, int]) -> dict[str, Any]:
    """A wave is pending until a device of it has started, and ended when all have."""
    is_open = any(status in RUN_OPEN for status in counts)
    has_begun = any(status not in (RunStatus.WAITING, RunStatus.HALTED) for status in counts)
    status = "ended" if not is_open else "running" if has_begun else "pending"
    return {"wave": number, "status": status, "devices": sum(counts.values()), "counts": counts}


async def _found(session: Session, caller: Caller, deployment_id: int, action: Action) -> Any:
    """The deployment, if the policy lets the caller do this with it."""
    caller.require(action)
    query = history.sent(caller.principal).where(table.c.id == deployment_id)
    row = (await session.execute(query)).one_or_none()
    managed = history.sent(caller.principal, Permission.MANAGE).where(table.c.id == deployment_id)
    held = Permission.MANAGE if (await session.execute(managed)).first() else Permission.VIEW
    caller.require(action, Thing(exists=row is not None, permission=held if row is not None else None))
    return row


async def _show(session: Session, caller: Caller, deployment_id: int) -> dict[str, Any]:
    row = await _found(session, caller, deployment_id, Action.WORK_READ)
    return _shown(row, (await rollouts.waves_of(session, [deployment_id])).get(deployment_id, []))


@router.post("", status_code=202)
async def create_deployment(
    body: NewDeployment, caller: CallerOf, services: ServicesOf, response: Response
) -> dict[str, Any]:
    """Run a payload now on devices and groups."""
    caller.require(Action.WORK_CREATE)
    who = caller.principal
    request = deployments.Request(
        deployment_type=body.deployment_type,
        deployment_name=_name(body),
        payload=stored(body.payload),
        device_ids=body.device_ids,
        group_ids=body.group_ids,
        offline_policy=body.offline_policy,
        offline_deadline_seconds=body.offline_deadline_seconds,
        lost_after_seconds=body.lost_after_seconds,
        rollout=body.rollout.model_dump(mode="json") if body.rollout else None,
        retry=body.retry.model_dump(mode="json") if body.retry else None,
    )

    async def create(session: Session, now: datetime) -> dict[str, Any]:
        problems = await targets.check(session, who, body.device_ids, body.group_ids, Permission.RUN)
        problems += await references.check(session, body.deployment_type, request.payload)
        if problems:
            raise Invalid(problems)
        deployment_id = await deployments.start_by_hand(
            session, services.installation.id, request, _owner(caller), now=now
        )
        await executions.settle_deployments(session, services.server, [deployment_id], now=now)
        shown = await _show(session, caller, deployment_id)
        after = {"payload": dict(request.payload), "device_ids": body.device_ids, "group_ids": body.group_ids}
        await audit.record(session, who, "create", "deployment", deployment_id, now=now, after=after)
        return shown

    shown = await caller.write(create)
    services.hints.give(Hint.RUNS)
    response.headers["Location"] = f"/api/deployments/{shown['id']}"
    return shown


def _owner(caller: Caller) -> Owner:
    who = caller.principal
    return Owner(who.user_id, who.username, who.role.value, is_active=True)


@router.post("/{deployment_id}/retry", status_code=202)
async def retry_deployment(
    deployment_id: int, caller: CallerOf, services: ServicesOf, response: Response
) -> dict[str, Any]:
    """Send an ended deployment again to the devices that did not succeed; answers the new deployment."""

    async def retry(session: Session, now: datetime) -> dict[str, Any]:
        row = await _found(session, caller, deployment_id, Action.WORK_CHANGE)
        if row.execution_id is not None:
            where = f"/api/schedule/executions/{row.execution_id}/retry"
            raise Conflict(f"Deployment {deployment_id} belongs to an execution: try that again, by POST {where}.")
        earlier = await again.of(session, deployment_id=deployment_id)
        sending = replace(earlier.sending, created_by=caller.principal.user_id)
        new_id = await deployments.start_on(
            session, services.installation.id, sending, _owner(caller), device_ids=earlier.device_ids, now=now
        )
        await executions.settle_deployments(session, services.server, [new_id], now=now)
        after = {"deployment_id": new_id, "device_ids": earlier.device_ids}
        await audit.record(session, caller.principal, "retry", "deployment", deployment_id, now=now, after=after)
        return await _show(session, caller, new_id)

    shown = await caller.write(retry)
    services.hints.give(Hint.RUNS)
    response.headers["Location"] = f"/api/deployments/{shown['id']}"
    return shown


_USUAL_NAMES = {"command": "Command", "software_deployment": "Software", "file_deployment": "Files"}


def _name(body: NewDeployment) -> str:
    of_payload: str | None = getattr(body.payload, "deployment_name", None)
    return body.deployment_name or of_payload or _USUAL_NAMES[body.deployment_type]


@router.get("")
async def list_deployments(
    caller: CallerOf, services: ServicesOf, page: Annotated[Filter, paging.QUERY]
) -> dict[str, Any]:
    caller.require(Action.WORK_READ)
    query = history.sent(caller.principal)
    if page.status is not None:
        query = query.where(table.c.status == page.status.value)
    if page.deployment_type is not None:
        query = query.where(table.c.deployment_type == page.deployment_type)
    async with services.database.read() as session:
        rows, envelope = await paging.rows_of(session, query, page, table.c.id)
        waves = await rollouts.waves_of(session, [row.id for row in rows])
    return {"items": [_shown(row, waves.get(row.id, [])) for row in rows], **envelope}


@router.get("/{deployment_id}")
async def show_deployment(deployment_id: int, caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    async with services.database.read() as session:
        return await _show(session, caller, deployment_id)


@router.get("/{deployment_id}/devices")
async def list_runs(
    deployment_id: int, caller: CallerOf, services: ServicesOf, page: Annotated[RunFilter, paging.QUERY]
) -> dict[str, Any]:
    """What happens or happened on each device."""
    query = history.runs(caller.principal).where(runs_table.c.deployment_id == deployment_id)
    if page.status is not None:
        query = query.where(runs_table.c.status == page.status.value)
    async with services.database.read() as session:
        await _found(session, caller, deployment_id, Action.WORK_READ)
        return await paging.listing(session, query, page, runs_table.c.id, shown_run)


@router.post("/{deployment_id}/cancel", status_code=202)
async def cancel_deployment(deployment_id: int, caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    """Ask for the end of a deployment; devices confirm what they stopped."""

    async def cancel(session: Session, now: datetime) -> dict[str, Any]:
        row = await _found(session, caller, deployment_id, Action.WORK_CHANGE)
        if row.completed_at is not None:
            raise Conflict(f"Deployment {deployment_id} has ended ({row.status}): there is nothing to cancel.")
        await settling.lock_tasks_of(session, [deployment_id])
        await executions.settle(
            session, services.server, await deployments.cancel(session, [deployment_id], now=now), now=now
        )
        await audit.record(session, caller.principal, "cancel", "deployment", deployment_id, now=now)
        return await _show(session, caller, deployment_id)

    shown = await caller.write(cancel)
    services.hints.give(Hint.RUNS)
    return shown
