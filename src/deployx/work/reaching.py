"""Whom an execution reaches, and with what: targets as far as the owner may, files and software as they are now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deployx.catalog import resolution
from deployx.catalog.payloads import COMMAND
from deployx.db.database import Session
from deployx.fleet.resolution import Targets, resolve
from deployx.work import deployments, task_rows
from deployx.work.task_rows import Task


async def of_tasks(session: Session, tasks: Sequence[Task]) -> dict[int, Targets]:
    """The targets of tasks that are to start; a constant number of queries for any number of them."""
    if not tasks:
        return {}
    targets = await resolve(session, {task["id"]: task_rows.owner_of(task) for task in tasks})
    bodies = await _bodies(session, [task["payload_id"] for task in tasks if task["task_type"] != COMMAND])
    works = await resolution.work_of(session, bodies) if bodies else {}
    for task in tasks:
        found = works.get(task["payload_id"])
        if found is not None:
            reached = targets[task["id"]]
            reached.work, reached.sent_as = found.work, bodies[task["payload_id"]][1]["deployment_name"]
            reached.refusal = reached.refusal or found.refusal
    return targets


async def _bodies(session: Session, payload_ids: Sequence[int]) -> dict[int, tuple[str, Mapping[str, Any]]]:
    """Kind and body of payloads of files or software."""
    rows = await deployments.payloads_of(session, payload_ids) if payload_ids else {}
    return {one: (row["kind"], row["body"]) for one, row in rows.items()}
