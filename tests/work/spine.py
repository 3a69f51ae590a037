"""Short words for tests of the spine: people, devices and tasks written straight into a database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, insert, select, text, update

from deployx.db.database import Database, Session
from deployx.db.schema import device_runs, devices, scheduled_task_executions, scheduled_tasks, users
from deployx.lifecycle import RunStatus
from deployx.work import attempts, executions, rollouts, tasks, waiting
from deployx.work import device_runs as runs
from deployx.work.executions import Server
from deployx.work.pacing import Pace
from deployx.work.specs import TaskSpec

NOW = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)  # a Monday
SERVER = Server("test-installation")
PAYLOAD = {
    "command": "true", "shell": "auto", "strategy": "transactional", "stop_on_failure": True, "env": {},
    "working_directory": None, "run_as": None, "timeout_seconds": 60, "success_exit_codes": [0],
}  # fmt: skip


class Spine:
    """One owner, some devices, and the verbs of the engine with `now` given by hand."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.owner_id = 0
        self.pace = Pace(1000)

    async def set_up(self, online: int = 1, offline: int = 0, role: str = "admin") -> None:
        async with self.database.write() as session:
            values = {"username": "owner", "password_hash": "-", "role": role, "is_active": True, "created_at": NOW}
            self.owner_id = (await session.execute(insert(users).values(**values).returning(users.c.id))).scalar_one()
            for number in range(online + offline):
                row: dict[str, Any] = {
                    "name": f"d{number}",
                    "public_key": b"k" * 32,
                    "shells": [],
                    "facts": {},
                    "labels": {},
                }
                row |= {"status": "online" if number < online else "offline", "created_at": NOW}
                row |= {"replica_id": "r1" if number < online else None, "journal_id": "j"}
                await session.execute(insert(devices).values(**row))

    async def task(self, *, now: datetime = NOW, device_ids: Sequence[int] = (1,), **changes: Any) -> int:
        spec = TaskSpec(
            task_name="t", task_type="command", scheduled_time=now + timedelta(minutes=1), recurrence_type="once",
            recurrence_config=None, timezone="UTC", device_ids=tuple(device_ids), group_ids=(), payload=PAYLOAD,
        )  # fmt: skip
        values = {name: getattr(spec, name) for name in TaskSpec.__slots__} | changes
        async with self.database.write() as session:
            return await tasks.create(session, TaskSpec(**values), by=self.owner_id, now=now)

    async def every_minute(self, **changes: Any) -> int:
        config = {"cron_expression": "* * * * *"}
        return await self.task(recurrence_type="custom", recurrence_config=config, scheduled_time=None, **changes)

    async def fire(self, now: datetime) -> int:
        async with self.database.write() as session:
            looked_at = await executions.fire(session, SERVER, now=now, limit=100)
            looked_at += await executions.answer_alarms(session, SERVER, now=now, limit=100)
            return looked_at + await executions.fire(session, SERVER, now=now, limit=100, backlog=True)

    async def go_on(self, now: datetime) -> None:
        """What the rescuer does each second: moments that have come, runs that are overdue."""
        async with self.database.write() as session:
            if await waiting.any_opens(session, now=now) or await rollouts.any_due(session, now=now):
                await executions.go_on(session, SERVER, now=now)
            overdue = await waiting.overdue(session, now=now)
            for run_id, _, status, reason in overdue:
                await runs.end(session, [run_id], status, reason, now=now)
            touched = sorted({deployment_id for _, deployment_id, _, _ in overdue})
            await executions.settle_deployments(session, SERVER, touched, now=now)

    async def come(self, device_id: int, now: datetime, *, journal: str = "j", unfinished: Sequence[str] = ()) -> None:
        """A device opens a session and says what it knows."""
        async with self.database.write() as session:
            values = {"status": "online", "replica_id": "r1", "journal_id": journal, "last_seen": now}
            await session.execute(update(devices).where(devices.c.id == device_id).values(**values))
            known = frozenset(unfinished)
            touched = await runs.reconcile(session, [runs.Returned(device_id, journal, known)], now=now)
            touched += await attempts.hear(session, {device_id: attempts.News(journal, known)}, now=now)
            touched += await waiting.device_came(session, [device_id], self.pace, now=now)
            await executions.settle_deployments(session, SERVER, touched, now=now)

    async def leave(self, device_id: int, now: datetime) -> None:
        async with self.database.write() as session:
            values = {"status": "offline", "replica_id": None, "last_seen": now}
            await session.execute(update(devices).where(devices.c.id == device_id).values(**values))
            await waiting.devices_left(session, [device_id], now=now)

    async def execute(self, task_id: int, now: datetime) -> int:
        async with self.database.write() as session:
            return await tasks.execute(session, SERVER, task_id, by=self.owner_id, now=now)

    async def end(
        self, now: datetime, status: RunStatus = RunStatus.SUCCEEDED, only: Sequence[int] | None = None
    ) -> None:
        """The devices report an end for all open runs, or for those named."""
        async with self.database.write() as session:
            await runs.claim_queued(session, "r1", 1000, now=now)
            open_runs = await self._open(session, only)
            before = {run["id"]: run["status"] for run in open_runs}
            ended = [runs.Ending(run_id, status, 0, None, 0.1, [], truncated=False) for run_id in before]
            await runs.finish(session, ended, before, now=now)
            touched = sorted({run["deployment_id"] for run in open_runs})
            await executions.settle_deployments(session, SERVER, touched, now=now)

    async def _open(self, session: Session, only: Sequence[int] | None) -> Sequence[RowMapping]:
        query = select(device_runs).where(device_runs.c.completed_at.is_(None), device_runs.c.status != "waiting")
        if only is not None:
            query = query.where(device_runs.c.id.in_(only))
        return (await session.execute(query)).mappings().all()

    async def shown(self, task_id: int) -> RowMapping:
        async with self.database.read() as session:
            query = select(scheduled_tasks).where(scheduled_tasks.c.id == task_id)
            return (await session.execute(query)).mappings().one()

    async def ledger(self, task_id: int) -> list[tuple[datetime | None, str, str, str | None]]:
        """Planned instant, trigger, status and reason of each row, in the order they were written."""
        async with self.database.read() as session:
            table = scheduled_task_executions
            query = select(table).where(table.c.task_id == task_id).order_by(table.c.id)
            rows = (await session.execute(query)).all()
        return [(row.planned_for, row.trigger, row.status, row.reason) for row in rows]

    async def executions(self, task_id: int) -> Sequence[RowMapping]:
        async with self.database.read() as session:
            table = scheduled_task_executions
            query = select(table).where(table.c.task_id == task_id).order_by(table.c.id)
            return (await session.execute(query)).mappings().all()

    async def runs(self) -> Sequence[RowMapping]:
        async with self.database.read() as session:
            return (await session.execute(select(device_runs).order_by(device_runs.c.id))).mappings().all()

    async def count(self, table: str) -> int:
        async with self.database.read() as session:
            found: int = (await session.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
            return found
