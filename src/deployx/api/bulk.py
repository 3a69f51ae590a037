"""Many tasks at once: one action on several, a paused copy of one, and the import of definitions line by line."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, ValidationError

from deployx.api import etags, json_bodies
from deployx.api.context import Caller, CallerOf, ServicesOf
from deployx.api.definitions import DEFAULTS, NewTask, applied
from deployx.api.fields import Body, Description, IdList
from deployx.api.problems import problems_of
from deployx.api.schedule import check_references, found_task, show
from deployx.catalog.payloads import named_files, named_software
from deployx.db.database import Session
from deployx.errors import BadRequest, DeployXError, Invalid, Problem
from deployx.events import Hint
from deployx.people import audit
from deployx.people.policy import Action, Thing
from deployx.work import specs, tasks
from deployx.work.specs import TaskSpec

router = APIRouter(prefix="/api/schedule", tags=["schedule"])

LONGEST_NAME = 200
COPY = " (copy)"


class Bulk(Body):
    task_ids: Annotated[IdList, Field(min_length=1, max_length=1000)]
    action: Literal["pause", "resume", "cancel", "execute", "delete"]
    reason: Description | None = None


@router.post("/tasks/bulk")
async def act_on_many(body: Bulk, caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    """Do the same with several tasks, each on its own: what one refuses keeps no other from it."""
    caller.require(Action.WORK_CHANGE, Thing(permission=None, owner_id=caller.principal.user_id))
    results = [await _act(caller, body, task_id) for task_id in body.task_ids]
    services.hints.give(Hint.TASKS, Hint.RUNS)
    done = sum(result["ok"] for result in results)
    return {"results": results, "succeeded": done, "failed": len(results) - done}


async def _act(caller: Caller, body: Bulk, task_id: int) -> dict[str, Any]:
    async def work(session: Session, now: datetime) -> dict[str, Any]:
        return await _move(session, caller, body, task_id, now)

    try:
        return {"task_id": task_id, "ok": True} | await caller.write(work)
    except DeployXError as error:
        return {"task_id": task_id, "ok": False, "code": error.code, "detail": error.detail}


async def _move(session: Session, caller: Caller, body: Bulk, task_id: int, now: datetime) -> dict[str, Any]:
    """One task's share; answers what became of it."""
    row, spec = await found_task(session, caller, task_id, Action.WORK_CHANGE)
    server, by = caller.services.server, caller.principal.user_id
    result: dict[str, Any] = {}
    match body.action:
        case "pause":
            await tasks.pause(session, server, task_id, body.reason, by=by, now=now)
        case "resume":
            await tasks.resume(session, server, task_id, by=by, now=now)
        case "cancel":
            await tasks.cancel(session, server, task_id, by=by, now=now)
        case "execute":
            result = {"execution_id": await tasks.execute(session, server, task_id, by=by, now=now)}
        case "delete":
            await tasks.remove(session, server, task_id, by=by, now=now)
    if body.action != "delete":
        result["status"] = (await show(session, task_id))["status"]
    before = specs.definition(spec) if body.action == "delete" else {"status": row.status}
    after = None if body.action == "delete" else result | {"reason": body.reason}
    await audit.record(
        session, caller.principal, body.action, "task", task_id, now=now, before=before, after=after
    )  # fmt: skip
    return result


@router.post("/tasks/{task_id}/duplicate", status_code=201)
async def duplicate_task(task_id: int, caller: CallerOf, response: Response) -> dict[str, Any]:
    """Make a copy that is paused, so that it can be changed before it runs."""
    caller.require(Action.WORK_CREATE)

    async def copy(session: Session, now: datetime) -> dict[str, Any]:
        _row, spec = await found_task(session, caller, task_id, Action.WORK_READ)
        await check_references(session, caller, spec)
        named = replace(spec, task_name=spec.task_name[: LONGEST_NAME - len(COPY)] + COPY)
        copy_id = await tasks.create(session, named, by=caller.principal.user_id, now=now, is_paused=True)
        after = specs.definition(named) | {"copy_of": task_id}
        await audit.record(session, caller.principal, "create", "task", copy_id, now=now, after=after)
        return await show(session, copy_id)

    shown = await caller.write(copy)
    response.headers["Location"] = f"/api/schedule/tasks/{shown['id']}"
    etags.put(response, shown["version"])
    return shown


@router.post("/tasks/import", status_code=201)
async def import_tasks(request: Request, caller: CallerOf, services: ServicesOf) -> dict[str, Any]:
    """Create a task for each line of the body, all or none; a refusal names the line."""
    caller.require(Action.WORK_CREATE)
    wanted, lines = await asyncio.to_thread(_read, await request.body())

    async def create(session: Session, now: datetime) -> None:
        await _check(session, caller, wanted, lines)
        try:
            ids = await tasks.create_many(session, wanted, by=caller.principal.user_id, now=now)
        except Invalid as error:
            raise _of_line(lines[error.position or 0], error.problems) from None
        after = {"created": len(ids), "first_id": ids[0], "last_id": ids[-1]}
        await audit.record(session, caller.principal, "import", "task", None, now=now, after=after)

    await caller.write(create)
    services.hints.give(Hint.TASKS)
    return {"created": len(wanted)}


def _read(body: bytes) -> tuple[list[TaskSpec], list[int]]:
    """The definitions, and the line that each stands on; empty lines are passed over."""
    wanted, lines = [], []
    for number, line in enumerate(body.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            wanted.append(applied(NewTask.model_validate(json_bodies.parsed(line)), DEFAULTS))
        except BadRequest as error:
            raise Invalid([Problem(("body", number), f"Line {number}: {error.detail}")]) from None
        except ValidationError as error:
            found = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
            raise _of_line(number, problems_of(found)) from None
        except Invalid as error:
            raise _of_line(number, error.problems) from None
        lines.append(number)
    if not wanted:
        raise Invalid([Problem(("body",), "There is no line with a task: send one JSON object a line.")])
    return wanted, lines


def _of_line(number: int, problems: Sequence[Problem]) -> Invalid:
    return Invalid([Problem(("body", number, *one.loc[1:]), f"Line {number}: {one.msg}") for one in problems])


async def _check(session: Session, caller: Caller, wanted: Sequence[TaskSpec], lines: Sequence[int]) -> None:
    """Check what the definitions name; those that name the same are checked once."""
    seen = set()
    for spec, number in zip(wanted, lines, strict=True):
        named = (
            spec.device_ids, spec.group_ids, spec.window_ids, spec.blackout_ids, tuple(specs.upstream_ids(spec)),
            tuple(named_files(spec.task_type, spec.payload)), tuple(named_software(spec.task_type, spec.payload)),
        )  # fmt: skip
        if named in seen:
            continue
        try:
            await check_references(session, caller, spec)
        except Invalid as error:
            raise _of_line(number, error.problems) from None
        seen.add(named)
