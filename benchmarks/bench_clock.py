"""How many tasks fire a second, how late, and what a million stored tasks cost while nothing is due (SQLite).

A firing is an execution, its deployment and its device run committed, and the task's next instant computed. Lateness is
from the due instant to the commit. Usage: bench_clock.py [stored tasks, default 1000000]
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, text

from benchmarks.machine import percentile, report
from deployx.clock import SystemClock
from deployx.db import migrate
from deployx.db.bulk import insert_rows
from deployx.db.database import Database, Session
from deployx.db.schema import devices, payloads, scheduled_tasks, task_target_devices, users
from deployx.db.types import to_microseconds
from deployx.engine.clock import Batch, TaskClock
from deployx.engine.supervisor import Engine
from deployx.events import Hints
from deployx.work.executions import Server

BURST = 10_000
SMALL_BURST = 1_000
IDLE_SECONDS = 10
RULES = (
    '{"time":"02:00:00","type":"daily"}',
    '{"days_of_week":[0,2,4],"time":"02:00:00","type":"weekly"}',
    '{"day_of_month":1,"time":"00:00:00","type":"monthly"}',
    '{"cron_expression":"0 2 * * 1-5","type":"custom"}',
)
TYPES = ("daily", "weekly", "monthly", "custom")
COLUMNS = (
    "id", "task_name", "task_type", "status", "version", "payload_id", "scheduled_time", "recurrence_type",
    "recurrence_config", "timezone", "misfire_grace_seconds", "catch_up", "max_instances", "offline_policy",
    "offline_deadline_seconds", "lost_after_seconds", "pause_on_failure", "labels", "next_planned_for",
    "next_execution", "execution_count", "created_by", "created_at", "updated_at",
)  # fmt: skip


class MeasuredClock(TaskClock):
    """Notes when each batch was committed, and of how many tasks."""

    commits: list[tuple[float, int]]

    async def _batch(self, name: str, work: Batch) -> int:
        claimed = await super()._batch(name, work)
        if claimed:
            self.commits.append((time.time(), claimed))
        return claimed


async def store_owner(session: Session, now: datetime) -> None:
    """A user, an offline device and a payload, which all tasks share."""
    user = {"username": "u", "password_hash": "-", "role": "admin", "is_active": True, "created_at": now}
    await session.execute(insert(users).values(**user))
    device = {"name": "d", "public_key": b"k" * 32, "shells": [], "facts": {}, "labels": {}, "status": "offline"}
    await session.execute(insert(devices).values(**device, created_at=now))
    await session.execute(insert(payloads).values(kind="command", body={"command": "true"}))


async def store(database: Database, count: int) -> None:
    """Store tasks of four recurrences, one device each, due at random instants of the next year."""
    now = datetime.now(UTC).replace(microsecond=0)
    dice = random.Random(1)
    async with database.write() as session:
        await store_owner(session, now)
    for first in range(1, count + 1, 20_000):
        ids = range(first, min(first + 20_000, count + 1))
        rows: list[tuple[object, ...]] = []
        for task_id in ids:
            due_at = now + timedelta(seconds=dice.randrange(86_400, 366 * 86_400))
            rule = task_id % len(RULES)
            rows.append(
                (task_id, f"task {task_id}", "command", "pending", 1, 1, now, TYPES[rule], RULES[rule], "UTC", 300,
                 "latest", 3, "wait", 300, 600, False, {}, due_at, due_at, 0, 1, now, now)
            )  # fmt: skip
        async with database.write() as session:
            await insert_rows(session, scheduled_tasks, COLUMNS, rows)
            await insert_rows(session, task_target_devices, ("task_id", "device_id"), [(one, 1) for one in ids])


async def burst(database: Database, count: int, offset: int) -> tuple[dict[str, float], float]:
    """Make `count` tasks due at one instant and let the clock fire them; answers the figures and its CPU seconds."""
    due_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    async with database.write() as session:
        await session.execute(
            text(
                "UPDATE scheduled_tasks SET next_execution = :at, next_planned_for = :at, scheduled_time = :at,"
                " recurrence_type = 'interval', recurrence_config = :config WHERE id > :low AND id <= :high"
            ),
            {
                "at": to_microseconds(due_at),
                "low": offset,
                "high": offset + count,
                "config": '{"every_seconds":86400,"type":"interval"}',
            },
        )
    clock = MeasuredClock(database, SystemClock(), Hints(), Server("bench"))
    clock.commits = []
    running = asyncio.create_task(clock.run())
    await asyncio.sleep((due_at - datetime.now(UTC)).total_seconds() - 0.2)
    before = time.process_time()
    while sum(claimed for _, claimed in clock.commits) < count:  # noqa: ASYNC110 - the clock gives no event
        await asyncio.sleep(0.005)
    cpu = time.process_time() - before
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    lateness = [at - due_at.timestamp() for at, claimed in clock.commits for _ in range(claimed)]
    figures = {
        "firings_per_second": round(count / max(lateness)),
        "p50_ms": round(percentile(lateness, 0.5) * 1000),
        "p99_ms": round(percentile(lateness, 0.99) * 1000),
        "max_ms": round(max(lateness) * 1000),
        "cpu_seconds": round(cpu, 2),
    }
    return figures, cpu


def process_startup(folder: Path) -> float:
    """Seconds from starting the server's process on the stored tasks until it listens."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "deployx", "server", "--port", "0", "--data-dir", str(folder)]
    command += ["--database-url", f"sqlite:///{folder / 'bench.db'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        next(line for line in server.stdout if "listens on" in line)
        seconds = time.perf_counter() - began
        server.terminate()
    return seconds


async def main(stored: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="deployx-bench-"))
    url = f"sqlite:///{folder / 'bench.db'}"
    database = Database(url, SystemClock())
    await database.open()
    await migrate.upgrade(database)
    began = time.perf_counter()
    await store(database, stored)
    storing = time.perf_counter() - began
    await database.close()
    process = sorted(process_startup(folder) for _ in range(3))[1]

    began = time.perf_counter()
    database = Database(url, SystemClock())
    await database.open()
    await migrate.upgrade(database)
    engine = Engine(database, SystemClock(), Hints(), "bench", 1, Ed25519PrivateKey.generate(), 1000)
    await engine.start()
    startup = time.perf_counter() - began
    await asyncio.sleep(2)
    before = time.process_time()
    await asyncio.sleep(IDLE_SECONDS)
    idle = (time.process_time() - before) / IDLE_SECONDS
    await engine.stop()

    small = [(await burst(database, SMALL_BURST, number * SMALL_BURST))[0] for number in range(5)]
    large = [(await burst(database, BURST, 100_000 + number * BURST))[0] for number in range(3)]
    async with database.read() as session:
        fired = (await session.execute(text("SELECT count(*) FROM device_runs"))).scalar_one()
    assert fired == 5 * SMALL_BURST + 3 * BURST, fired
    report(
        "clock",
        {
            "stored": stored,
            "stored_per_second": round(stored / storing),
            "startup_seconds": round(process, 2),
            "startup_of_database_and_engine_seconds": round(startup, 3),
            "idle_cpu_percent": round(idle * 100, 2),
            "memory_mib": round(psutil.Process().memory_info().rss / 2**20),
            "burst_of_1000": sorted(small, key=lambda one: one["p99_ms"])[len(small) // 2],
            "burst_of_10000": sorted(large, key=lambda one: one["firings_per_second"])[len(large) // 2],
            "runs": {"1000": small, "10000": large},
        },
    )
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
