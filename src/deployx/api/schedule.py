"""Scheduled tasks: create, list, show, change, delete, and the moves by hand."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field
from sqlalchemy import select

from deployx.api import etags, paging
from deployx.api.context import Caller, CallerOf, ServicesOf
from deployx.api.definitions import DEFAULTS, NewTask, RecurrenceType, TaskChange, TaskType, applied
from deployx.api.executions import shown_execution
from deployx.api.fields import Body, Description, Id, IdList, InstantIn, Query
from deployx.api.paging import Page
from deployx.catalog import references
from deployx.catalog.payloads import FIELDS
from deployx.db.database import Session
from deployx.db.schema import scheduled_task_executions, scheduled_tasks, task_target_devices, task_target_groups
from deployx.errors import Invalid, Problem
from deployx.events import Hint
from deployx.fleet import targets
from deployx.lifecycle import TaskStatus
from deployx.people import audit, grants
from deployx.people.grants import Permission
from deployx.people.policy import Action, Thing
from deployx.timing import recurrence, words
from deployx.timing.instants import format_instant
from deployx.work import catalogue, history, specs, tasks
from deployx.work.specs import TaskSpec

router = APIRouter(prefix="/api/schedule", tags=["schedule"])


class Filter(Page):
    task_type: TaskType | None = None
    status: TaskStatus | None = None
    recurrence_type: RecurrenceType | None = None
    group_id: Id | None = None
    device_id: Id | None = None
    search: str | None = None
    label: list[str] = []


class Pause(Body):
    reason: Description | None = None
    until: InstantIn | None = None


class Deletion(Query):
    detach: bool = False


class Part(Body):
    device_ids: Annotated[IdList, Field(min_length=1)] | None = None


class Nothing(Body):
    """An empty body."""


_AS_STORED = (
    "id", "version", "task_name", "task_type", "status", "recurrence_type", "timezone", "misfire_grace_seconds",
    "catch_up", "max_instances", "overlap_policy", "jitter_seconds", "offline_policy", "offline_deadline_seconds",
    "lost_after_seconds", "outside_window", "rollout", "retry",
    "labels", "execution_count", "last_result", "error_message", "created_by",
    "paused_reason",
)  # fmt: skip
_INSTANTS = ("scheduled_time", "created_at", "updated_at", "last_execution", "next_execution", "paused_until")


def shown_task(row: Any, spec: TaskSpec) -> dict[str, Any]:
    """A task as the API shows it."""
    rule = recurrence.load(row.recurrence_type, row.recurrence_config, row.scheduled_time, row.timezone)
    instants = {name: getattr(row, name) for name in _INSTANTS}
    return (
        {name: getattr(row, name) for name in _AS_STORED}
        | {name: format_instant(moment) if moment else None for name, moment in instants.items()}
        | {
            "recurrence_config": spec.recurrence_config,
            "device_ids": list(spec.device_ids),
            "group_ids": list(spec.group_ids),
            "window_ids": list(spec.window_ids),
            "blackout_ids": list(spec.blackout_ids),
            "pause_on_failure": bool(row.pause_on_failure),
            FIELDS[spec.task_type]: shown_payload(spec),
            "description": words.describe(rule),
        }
    )


def shown_payload(spec: TaskSpec) -> dict[str, Any]:
    """A payload as the API shows it; a sending without a name of its own has the task's."""
    shown = dict(spec.payload)
    if "deployment_name" in shown:
        shown["deployment_name"] = shown["deployment_name"] or spec.task_name
    return shown


async def found_task(session: Session, caller: Caller, task_id: int, action: Action) -> tuple[Any, TaskSpec]:
    """The task and its definition, if the policy lets the caller do this with it."""
    caller.require(action, Thing(permission=Permission.MANAGE))
    query = select(scheduled_tasks).where(scheduled_tasks.c.id == task_id, scheduled_tasks.c.deleted_at.is_(None))
    row = (await session.execute(query)).one_or_none()
    if row is None:
        caller.require(action, Thing(exists=False))
    spec = (await specs.stored(session, [task_id]))[task_id]
    held = await grants.least_on_targets(
        session, caller.principal, device_ids=spec.device_ids, group_ids=spec.group_ids
    )
    caller.require(action, Thing(owner_id=row.created_by, permission=held))  # type: ignore[union-attr]
    return row, spec


async def show(session: Session, task_id: int) -> dict[str, Any]:
    row = (await session.execute(select(scheduled_tasks).where(scheduled_tasks.c.id == task_id))).one()
    return shown_task(row, (await specs.stored(session, [task_id]))[task_id])


async def check_references(session: Session, caller: Caller, spec: TaskSpec, *, with_targets: bool = True) -> None:
    """Check that what a definition names exists, is visible, and permits it. Raises Invalid."""
    problems: list[Problem] = []
    if with_targets or spec.device_ids or spec.group_ids:
        problems += await targets.check(session, caller.principal, spec.device_ids, spec.group_ids, Permission.RUN)
    problems += await references.check(session, spec.task_type, spec.payload)
    problems += await catalogue.check(session, spec.window_ids, spec.blackout_ids)
    problems += await _check_upstreams(session, caller, spec)
    if problems:
        raise Invalid(problems)


async def _check_upstreams(session: Session, caller: Caller, spec: TaskSpec) -> list[Problem]:
    named = specs.upstream_ids(spec)
    if not named:
        return []
    visible = history.tasks(caller.principal).with_only_columns(scheduled_tasks.c.id).order_by(None)
    found = set((await session.execute(visible.where(scheduled_tasks.c.id.in_(named)))).scalars())
    place = ("body", "recurrence_config", "after", "tasks")
    return [
        Problem((*place, position), f"Task {task_id} does not exist or is not visible to you.")
        for position, task_id in enumerate(named)
        if task_id not in found
    ]


@router.post("/tasks", status_code=201)
async def create_task(body: NewTask, caller: CallerOf, services: ServicesOf, response: Response) -> dict[str, Any]:
    """Define a task; from then on each of its occurrences is accounted for."""
    caller.require(Action.WORK_CREATE)
    spec = applied(body, DEFAULTS)

    async def create(session: Session, now: datetime) -> dict[str, Any]:
        await check_references(session, caller, spec)
        task_id = await tasks.create(session, spec, by=caller.principal.user_id, now=now)
        await audit.record(session, caller.principal, "create", "task", task_id, now=now, after=specs.definition(spec))
        return await show(session, task_id)

    shown = await caller.write(create)
    services.hints.give(Hint.TASKS)
    response.headers["Location"] = f"/api/schedule/tasks/{shown['id']}"
    etags.put(response, shown["version"])
    return shown


@router.get("/tasks")
async def list_tasks(caller: CallerOf, services: ServicesOf, page: Annotated[Filter, paging.QUERY]) -> dict[str, Any]:
    caller.require(Action.WORK_READ)
    query = _filtered(history.tasks(caller.principal), page)
    async with services.database.read() as session:
        rows, envelope = await paging.rows_of(session, query, page, scheduled_tasks.c.id)
        stored = await specs.stored(session, [row.id for row in rows])
    return {"items": [shown_task(row, stored[row.id]) for row in rows], **envelope}


def _filtered(query: Any, page: Filter) -> Any:
    table = scheduled_tasks
    for name in ("task_type", "status", "recurrence_type"):
        wanted = getattr(page, name)
        if wanted is not None:
            query = query.where(table.c[name] == str(wanted))
    if page.search:
        query = query.where(table.c.task_name.icontains(page.search, autoescape=True))
    if page.device_id is not None:
        links = select(task_target_devices.c.task_id).where(task_target_devices.c.device_id == page.device_id)
        query = query.where(table.c.id.in_(links))
    if page.group_id is not None:
        links = select(task_target_groups.c.task_id).where(task_target_groups.c.group_id == page.group_id)
        query = query.where(table.c.id.in_(links))
    for label in page.label:
        name, equals, value = label.partition("=")
        found = table.c.labels[name].as_string()
        query = query.where(found == value if equals else found.is_not(None))
    return query


@router.get("/tasks/{task_id}")
async def show_task(task_id: int, caller: CallerOf, services: ServicesOf, response: Response) -> dict[str, Any]:
    """The task with its latest ten executions."""
    async with services.database.read() as session:
        row, spec = await found_task(session, caller, task_id, Action.WORK_READ)
        query = history.executions(caller.principal).where(scheduled_task_executions.c.task_id == task_id).limit(10)
        latest = (await session.execute(query)).all()
    etags.put(response, row.version)
    return shown_task(row, spec) | {"executions": [shown_execution(one) for one in latest]}


@router.put("/tasks/{task_id}")
async def change_task(
    task_id: int, body: TaskChange, caller: CallerOf, services: ServicesOf, response: Response,
    if_match: etags.IfMatch = None,
) -> dict[str, Any]:  # fmt: skip
    """Change any part of a definition, or ask for another status; takes effect from the next occurrence."""

    async def change(session: Session, now: datetime) -> dict[str, Any]:
        row, before = await found_task(session, caller, task_id, Action.WORK_CHANGE)
        etags.require(if_match, row.version)
        after = applied(body, before)
        if body.model_fields_set - {"status"}:
            await check_references(session, caller, after)
        if body.status == "paused" and after == before:
            await tasks.pause(session, services.server, task_id, by=caller.principal.user_id, now=now)
        else:
            await tasks.change(
                session, services.server, task_id, before, after, body.status, by=caller.principal.user_id, now=now
            )
        await audit.record(
            session, caller.principal, "update", "task", task_id, now=now,
            before=specs.definition(before) | {"status": row.status},
            after=specs.definition(after) | {"status": body.status or row.status},
        )  # fmt: skip
        return await show(session, task_id)

    shown = await caller.write(change)
    services.hints.give(Hint.TASKS, Hint.RUNS)
    etags.put(response, shown["version"])
    return shown


@router.delete("/tasks/{task_id}", status_code=204)
async def delete_task(
    task_id: int, caller: CallerOf, services: ServicesOf, query: Annotated[Deletion, paging.QUERY],
    if_match: etags.IfMatch = None,
) -> None:  # fmt: skip
    """Delete a task; what is open is cancelled. Tasks that start after it are in the way, or with `detach` fail."""

    async def remove(session: Session, now: datetime) -> None:
        row, spec = await found_task(session, caller, task_id, Action.WORK_CHANGE)
        etags.require(if_match, row.version)
        by = caller.principal.user_id
        await tasks.remove(session, services.server, task_id, by=by, now=now, detach=query.detach)
        await audit.record(session, caller.principal, "delete", "task", task_id, now=now, before=specs.definition(spec))

    await caller.write(remove)
    services.hints.give(Hint.RUNS)


Move = Callable[[Session, datetime], Awaitable[None]]


async def _moved(caller: Caller, task_id: int, action: str, move: Move) -> dict[str, Any]:
    """Carry out one move by hand, with its audit row; answers the task."""

    async def work(session: Session, now: datetime) -> dict[str, Any]:
        row, _spec = await found_task(session, caller, task_id, Action.WORK_CHANGE)
        await move(session, now)
        shown = await show(session, task_id)
        await audit.record(
            session, caller.principal, action, "task", task_id, now=now, before={"status": row.status},
            after={"status": shown["status"], "reason": shown["paused_reason"]},
        )  # fmt: skip
        return shown

    shown = await caller.write(work)
    caller.services.hints.give(Hint.TASKS, Hint.RUNS)
    return shown


@router.post("/tasks/{task_id}/pause")
async def pause_task(task_id: int, caller: CallerOf, body: Pause | None = None) -> dict[str, Any]:
    """Start nothing more on schedule, until the task is resumed or `until` comes."""
    asked, server = body or Pause(), caller.services.server

    async def move(session: Session, now: datetime) -> None:
        by = caller.principal.user_id
        await tasks.pause(session, server, task_id, asked.reason, asked.until, by=by, now=now)

    return await _moved(caller, task_id, "pause", move)


@router.post("/tasks/{task_id}/resume")
async def resume_task(task_id: int, caller: CallerOf, body: Nothing | None = None) -> dict[str, Any]:
    async def move(session: Session, now: datetime) -> None:
        await tasks.resume(session, caller.services.server, task_id, by=caller.principal.user_id, now=now)

    return await _moved(caller, task_id, "resume", move)


@router.post("/tasks/{task_id}/cancel")
async def cancel_task(task_id: int, caller: CallerOf, body: Nothing | None = None) -> dict[str, Any]:
    async def move(session: Session, now: datetime) -> None:
        await tasks.cancel(session, caller.services.server, task_id, by=caller.principal.user_id, now=now)

    return await _moved(caller, task_id, "cancel", move)


@router.post("/tasks/{task_id}/execute", status_code=202)
async def execute_task(
    task_id: int, caller: CallerOf, services: ServicesOf, body: Part | None = None
) -> dict[str, Any]:
    """Run the task now, whatever its schedule says, on all its devices or on some of them."""
    only = body.device_ids if body else None

    async def run(session: Session, now: datetime) -> int:
        await found_task(session, caller, task_id, Action.WORK_CHANGE)
        by = caller.principal.user_id
        execution_id = await tasks.execute(session, services.server, task_id, only=only, by=by, now=now)
        after = {"execution_id": execution_id, "device_ids": only}
        await audit.record(session, caller.principal, "execute", "task", task_id, now=now, after=after)
        return execution_id

    execution_id = await caller.write(run)
    services.hints.give(Hint.RUNS)
    return {"execution_id": execution_id, "message": f"Execution {execution_id} of task {task_id} was started."}


@router.get("/stats")
async def stats(caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    """How many tasks in which status, what comes next, how the last day went."""
    caller.require(Action.WORK_READ)
    async with services.database.read() as session:
        found = await history.statistics(session, caller.principal, now=await services.database.now(session))
    for one in found["upcoming_tasks"]:
        one["next_execution"] = format_instant(one["next_execution"])
    return found
