"""Versions of definitions, and of activity: what was valid from when on, so that what was owed can be recomputed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from deployx.db.bulk import insert_rows, moment_parameter
from deployx.db.database import Session
from deployx.db.schema import task_versions

_COLUMNS = (
    "task_id", "version", "effective_at", "changed_by", "action", "definition", "status", "last_planned_for",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Version:
    """A whole definition and the status it left the task in; `by` is None where the system did it."""

    task_id: int
    version: int
    effective_at: datetime
    by: int | None
    action: str
    definition: Mapping[str, Any]
    status: str
    last_planned_for: datetime | None


async def add(session: Session, versions: Iterable[Version]) -> None:
    rows = (
        (one.task_id, one.version, one.effective_at, one.by, one.action, dict(one.definition), one.status,
         one.last_planned_for)
        for one in versions
    )  # fmt: skip
    await insert_rows(session, task_versions, _COLUMNS, rows)


async def add_move(
    session: Session, task_id: int, version: int, action: str, status: str, *, by: int | None, at: datetime
) -> None:
    """Write down another status under the definition that the task has."""
    await session.execute(
        text(
            "INSERT INTO task_versions (task_id, version, effective_at, changed_by, action, definition, status,"
            " last_planned_for) SELECT task_id, :version, :at, :by, :action, definition, :status, last_planned_for"
            " FROM task_versions WHERE task_id = :task ORDER BY version DESC LIMIT 1"
        ),
        {
            "task": task_id, "version": version, "at": moment_parameter(session, at), "by": by, "action": action,
            "status": status,
        },
    )  # fmt: skip
