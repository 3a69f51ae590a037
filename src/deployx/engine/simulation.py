"""Runs the production clock on virtual time over a copy of the real definitions, and tells the ledger it would write.

Nothing is sent to any device: each execution is taken to succeed at once, so what depends on how long executions take
is not shown. Real are the clock, the policies and the writing of the ledger.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import RowMapping, Table, delete, insert, select, update

from deployx.clock import ManualClock
from deployx.db import migrate, schema
from deployx.db.database import Database, Session
from deployx.engine.clock import TaskClock
from deployx.events import Hints
from deployx.fleet.resolution import resolve
from deployx.lifecycle import TASK_SCHEDULED, RunStatus, TaskStatus
from deployx.timing.owed import Plan
from deployx.work import alarms, device_runs, executions, plans, task_rows
from deployx.work.executions import Server
from deployx.work.task_rows import Task

REPLICA = "simulation"
ROWS_AT_ONCE = 1000

_COPIED: tuple[Table, ...] = (
    schema.users, schema.groups, schema.devices, schema.group_members, schema.grants, schema.payloads, schema.windows,
    schema.blackouts, schema.scheduled_tasks, schema.task_target_devices, schema.task_target_groups,
    schema.task_windows, schema.task_blackouts, schema.group_windows, schema.group_blackouts,
    schema.occurrence_overrides, schema.task_dependencies,
)  # fmt: skip
"""The definitions, in the order in which they point at each other."""

Down = tuple[datetime, datetime]


async def simulate(
    source: Database, folder: Path, since: datetime, until: datetime, downs: Sequence[Down] = ()
) -> AsyncIterator[RowMapping]:
    """Yield the rows that the ledger would have of [since, until], with `task_name`, in the order they are written.

    During `downs` (from, to) the server is taken to be away. The copy lives in `folder`.
    """
    clock = ManualClock(since)
    async with _copy(source, folder, clock) as copy:
        await _start_from(copy, since)
        task_clock = TaskClock(copy, clock, Hints(), Server("simulation", clock.steps))
        while (moment := await _next_moment(copy)) is not None and moment <= until:
            moment = max(moment, clock.now())
            back = max((up for down, up in downs if down <= moment < up), default=moment)
            if back > until:
                break
            clock.pass_to(back)
            while await task_clock.tick():
                await _succeed(copy, clock.now())
        async for row in _ledger(copy):
            yield row


@asynccontextmanager
async def _copy(source: Database, folder: Path, clock: ManualClock) -> AsyncIterator[Database]:
    copy = Database(f"sqlite:///{folder / 'simulation.db'}", clock)
    await copy.open()
    try:
        await migrate.upgrade(copy)
        async with source.read() as real, copy.write() as session:
            for table in _COPIED:
                await _copy_table(real, session, table)
        yield copy
    finally:
        await copy.close()


async def _copy_table(real: Session, session: Session, table: Table) -> None:
    rows = (await real.execute(select(table))).mappings().all()
    for start in range(0, len(rows), ROWS_AT_ONCE):
        await session.execute(insert(table), [dict(row) for row in rows[start : start + ROWS_AT_ONCE]])


async def _start_from(copy: Database, since: datetime) -> None:
    """Put every task to where it would stand at `since` with nothing under way, and every device within reach."""
    table = schema.scheduled_tasks
    async with copy.write() as session:
        await session.execute(update(schema.devices).values(status="online", replica_id=REPLICA, journal_id="j"))
        await session.execute(delete(schema.alarms))
        rows = (await session.execute(select(table).where(table.c.deleted_at.is_(None)))).mappings().all()
        for task in rows:
            status = TaskStatus(task["status"])
            values: dict[str, Any] = {"waiting": False, "last_result": None, "error_message": None}
            if status in TASK_SCHEDULED or status is TaskStatus.PAUSED:
                values |= _standing(task, status, since)
            await session.execute(update(table).where(table.c.id == task["id"]).values(**values))
            if task["overridden"]:
                await alarms.add(session, [(task["id"], since)])
            if status is TaskStatus.PAUSED and task["paused_until"] is not None:
                await alarms.add(session, [(task["id"], max(since, task["paused_until"]))])
        await _lighten(session, [task["id"] for task in rows])


def _standing(task: Task, status: TaskStatus, since: datetime) -> dict[str, Any]:
    if status is TaskStatus.PAUSED:
        return {"status": status.value, "next_planned_for": None, "next_execution": None}
    rule = plans.rule_of(task)
    first = rule.next_after(max(since, task["created_at"]))
    due_at = None if first is None else Plan(rule, task["id"], task["jitter_seconds"]).due_at(first)
    return {"status": TaskStatus.PENDING.value, "next_planned_for": first, "next_execution": due_at}


async def _lighten(session: Session, task_ids: Sequence[int]) -> None:
    """Give tasks that may start one device instead of all of theirs: the ledger has a row whatever their number.

    Those that cannot start, for want of devices or permission, keep their targets and fail as they would.
    """
    owners = {task["id"]: task_rows.owner_of(task) for task in await task_rows.read_all(session, task_ids)}
    devices, groups = schema.task_target_devices, schema.task_target_groups
    through_groups = set((await session.execute(select(groups.c.task_id).distinct())).scalars())
    for task_id, targets in (await resolve(session, owners)).items():
        if targets.devices and not targets.refusal and task_id not in through_groups:
            others = devices.c.device_id != min(targets.devices)
            await session.execute(delete(devices).where(devices.c.task_id == task_id, others))


async def _next_moment(copy: Database) -> datetime | None:
    async with copy.read() as session:
        return await executions.next_due(session)


async def _succeed(copy: Database, now: datetime) -> None:
    """All that was sent succeeds at once."""
    async with copy.write() as session:
        server = Server("simulation")
        while runs := await device_runs.claim_queued(session, REPLICA, ROWS_AT_ONCE, now=now):
            before = {run["run_id"]: RunStatus.DISPATCHED.value for run in runs}
            endings = [
                device_runs.Ending(run_id, RunStatus.SUCCEEDED, 0, None, 0.0, [], truncated=False) for run_id in before
            ]
            await device_runs.finish(session, endings, before, now=now)
            touched = sorted({run["deployment_id"] for run in runs})
            await executions.settle_deployments(session, server, touched, now=now)


async def _ledger(copy: Database) -> AsyncIterator[RowMapping]:
    table, tasks = schema.scheduled_task_executions, schema.scheduled_tasks
    query = select(table, tasks.c.task_name).join(tasks, tasks.c.id == table.c.task_id).order_by(table.c.id)
    last_id = 0
    while True:
        async with copy.read() as session:
            rows = (await session.execute(query.where(table.c.id > last_id).limit(ROWS_AT_ONCE))).mappings().all()
        if not rows:
            return
        for row in rows:
            yield row
        last_id = rows[-1]["id"]
