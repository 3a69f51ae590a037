"""A start after a long outage: 1,000 tasks with 10,000 missed instants each, while one task is due now (SQLite).

Measures how long a server process takes until it listens, when everything is accounted for, and how late a task
starts that falls due meanwhile. Usage: bench_backlog.py [tasks, default 1000] [missed instants, default 10000]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import text

from benchmarks.bench_clock import COLUMNS, process_startup, store_owner
from benchmarks.machine import report
from deployx.clock import SystemClock
from deployx.db import migrate
from deployx.db.bulk import insert_rows
from deployx.db.database import Database
from deployx.db.schema import scheduled_tasks, task_target_devices
from deployx.engine.clock import TaskClock
from deployx.events import Hints
from deployx.work.executions import Server

RULES = (
    ("custom", '{"cron_expression":"* * * * *","type":"custom"}', "UTC", 60),
    ("custom", '{"cron_expression":"*/5 * * * *","type":"custom"}', "Europe/Berlin", 300),
    ("interval", '{"every_seconds":30,"type":"interval"}', "UTC", 30),
    ("custom", '{"cron_expression":"* * * * *","type":"custom"}', "America/New_York", 60),
)
DUE_NOW_EVERY = timedelta(seconds=1)


async def store(database: Database, tasks: int, missed: int) -> int:
    """Store tasks that stood still for `missed` instants, and tasks due once in each of the next 30 seconds."""
    now = datetime.now(UTC).replace(microsecond=0)
    async with database.write() as session:
        await store_owner(session, now)
        rows: list[tuple[object, ...]] = []
        for task_id in range(1, tasks + 1):
            kind, config, zone, seconds = RULES[task_id % len(RULES)]
            since = (now - timedelta(seconds=missed * seconds)).replace(second=0)
            since -= timedelta(minutes=since.minute % 5)
            rows.append(
                (task_id, f"task {task_id}", "command", "pending", 1, 1, since, kind, config, zone, 300, "latest", 3,
                 "wait", 300, 600, False, {}, since, since, 0, 1, since, since)
            )  # fmt: skip
        for second in range(30):
            task_id, due_at = tasks + 1 + second, now + second * DUE_NOW_EVERY + timedelta(seconds=2)
            rows.append(
                (task_id, "due now", "command", "pending", 1, 1, due_at, "once", None, "UTC", 300, "latest", 3, "wait",
                 300, 600, False, {}, due_at, due_at, 0, 1, now, now)
            )  # fmt: skip
        await insert_rows(session, scheduled_tasks, COLUMNS, rows)
        links = [(task_id, 1) for task_id in range(1, tasks + 31)]
        await insert_rows(session, task_target_devices, ("task_id", "device_id"), links)
    return tasks


async def accounted(database: Database, tasks: int) -> tuple[float, int]:
    """Run the clock until no task stands in the past; answers the seconds that took and the occurrences written."""
    clock = TaskClock(database, SystemClock(), Hints(), Server("bench"))
    began = time.perf_counter()
    running = asyncio.create_task(clock.run())
    count = 1
    while count:
        await asyncio.sleep(0.05)
        async with database.read() as session:
            behind = int((datetime.now(UTC) - timedelta(seconds=300)).timestamp() * 1e6)
            query = text("SELECT count(*) FROM scheduled_tasks WHERE next_execution < :behind AND id <= :most")
            count = (await session.execute(query, {"behind": behind, "most": tasks})).scalar_one()
    seconds = time.perf_counter() - began
    await asyncio.sleep(max(0.0, 6 - seconds))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    async with database.read() as session:
        query = text("SELECT sum(occurrences) FROM scheduled_task_executions WHERE task_id <= :most")
        return seconds, (await session.execute(query, {"most": tasks})).scalar_one()


async def lateness(database: Database, tasks: int) -> float:
    """The worst lateness, in milliseconds, of the tasks that fell due meanwhile."""
    async with database.read() as session:
        query = text(
            "SELECT max(execution_time - due_at) FROM scheduled_task_executions WHERE task_id > :most"
            " AND execution_time IS NOT NULL"
        )
        return float((await session.execute(query, {"most": tasks})).scalar_one()) / 1000


async def main(tasks: int, missed: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="deployx-bench-"))
    database = Database(f"sqlite:///{folder / 'bench.db'}", SystemClock())
    await database.open()
    await migrate.upgrade(database)
    await store(database, tasks, missed)
    seconds, occurrences = await accounted(database, tasks)
    late = await lateness(database, tasks)
    await database.close()

    other = Path(tempfile.mkdtemp(prefix="deployx-bench-"))
    database = Database(f"sqlite:///{other / 'bench.db'}", SystemClock())
    await database.open()
    await migrate.upgrade(database)
    await store(database, tasks, missed)
    await database.close()
    startup = process_startup(other)
    figures = {
        "tasks": tasks,
        "missed_each": missed,
        "startup_seconds": round(startup, 2),
        "accounted_seconds": round(seconds, 2),
        "occurrences": occurrences,
        "worst_lateness_of_due_now_ms": round(late),
    }
    report("backlog", figures)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(main(*(given or [1000, 10_000])))
