"""The equation of the ledger: whatever happens, each owed occurrence is covered once, and nothing fires twice.

A world of tasks with every combination of policies lives through outages, restarts, edits, pauses, moved and skipped
occurrences and runs that end at random; what was owed is computed here from the test's own diary.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from deployx.db.database import Database
from deployx.db.schema import blackouts, device_runs, scheduled_task_executions, windows
from deployx.errors import Conflict, Invalid
from deployx.lifecycle import RunStatus
from deployx.work import executions, occurrences, specs, tasks, verification
from tests.timing.oracle import fresh_random
from tests.work.spine import NOW, SERVER, Spine

CATCH_UP, OVERLAP, OUTSIDE = ("latest", "all", "none"), ("skip", "queue", "cancel_running"), ("delay", "skip")
ENDED_UNSTARTED = ("missed", "skipped")


@dataclass
class Diary:
    """What the test knows of one task: from when to when it was active, with which period."""

    task_id: int
    period: int
    start_at: datetime
    active_since: datetime | None
    stretches: list[tuple[datetime, datetime, datetime, int]] = field(default_factory=list)
    spec: Any = None

    def stop(self, now: datetime) -> None:
        if self.active_since is not None:
            self.stretches.append((self.active_since, now, self.start_at, self.period))
        self.active_since = None

    def owed(self) -> Iterator[datetime]:
        """By stepping through the seconds, not by the code under test."""
        for since, until, start_at, period in self.stretches:
            at = start_at
            if at <= since:
                at += timedelta(seconds=period) * (int((since - start_at).total_seconds()) // period)
            while at <= until:
                if at > since:
                    yield at
                at += timedelta(seconds=period)


class World:
    """Tasks of all policies on one database, and a time that moves by steps."""

    def __init__(self, spine: Spine, rng: random.Random) -> None:
        self.spine = spine
        self.rng = rng
        self.now = NOW
        self.diaries: dict[int, Diary] = {}
        self.moved: set[tuple[int, datetime]] = set()

    async def found(self, count: int) -> None:
        async with self.spine.database.write() as session:
            shared = {"timezone": "UTC", "created_by": 1, "created_at": NOW}
            window = {"name": "w", "days_of_week": list(range(7)), "start": "06:00", "end": "20:00"}
            await session.execute(insert(windows).values(**window, **shared))
            lunch = {"from_at": NOW + timedelta(hours=9), "to_at": NOW + timedelta(hours=10)}
            await session.execute(insert(blackouts).values(name="b", **lunch, **shared))
        combinations = list(product(CATCH_UP, OVERLAP, OUTSIDE, (False, True)))
        self.rng.shuffle(combinations)
        for catch_up, overlap, outside, restricted in combinations[:count]:
            period = self.rng.choice((20, 45, 60, 300, 900))
            policies: dict[str, Any] = {
                "catch_up": catch_up, "overlap_policy": overlap, "outside_window": outside,
                "window_ids": (1,) if restricted else (), "blackout_ids": (1,) if restricted else (),
                "max_instances": self.rng.choice((1, 1, 2, 3)), "pause_on_failure": self.rng.random() < 0.1,
                "misfire_grace_seconds": self.rng.choice((1, 60, 300, 7200)),
                "jitter_seconds": self.rng.choice((0, 0, 0, period - 1)),
                "offline_policy": self.rng.choice(("wait", "wait", "fail")),
                "device_ids": self.rng.choice(((1,), (1, 2), (3,))),
            }  # fmt: skip
            task_id = await self.spine.task(now=self.now, **_every(period, self.now), **policies)
            self.diaries[task_id] = Diary(task_id, period, self.now, self.now)

    async def tick(self) -> None:
        """Let the clock look until nothing is left to do, as its loop does."""
        while await self.spine.fire(self.now):
            pass
        await self._note_own_pauses()

    async def _note_own_pauses(self) -> None:
        """`pause_on_failure` and `until` change the status without the test's doing: the versions tell when."""
        async with self.spine.database.read() as session:
            rows = await session.execute(
                text(
                    "SELECT task_id, action, effective_at FROM task_versions"
                    " WHERE changed_by IS NULL AND action IN ('pause', 'resume') ORDER BY task_id, version"
                ).columns(effective_at=scheduled_task_executions.c.due_at.type)
            )
            moves = rows.all()
        for row in moves:
            diary = self.diaries[row.task_id]
            if (row.action, row.effective_at) in diary.__dict__.setdefault("noted", set()):
                continue
            diary.__dict__["noted"].add((row.action, row.effective_at))
            if row.action == "pause":
                diary.stop(row.effective_at)
            else:
                diary.active_since = row.effective_at

    async def act(self) -> None:
        """One random thing that a person or the world does."""
        diary = self.rng.choice(list(self.diaries.values()))
        name = self.rng.choice(
            (
                "pause",
                "pause_until",
                "resume",
                "edit",
                "skip",
                "move",
                "execute",
                "end",
                "end",
                "end",
                "end_all",
                "cancel",
            )
        )
        try:
            await getattr(self, f"_{name}")(diary)
        except (Conflict, Invalid):
            return  # what the state does not allow changes nothing
        await self._note_own_pauses()

    async def _write(self, work: Any) -> Any:
        return await self.spine.database.transact(work)

    async def _pause(self, diary: Diary) -> None:
        await self._write(lambda session: tasks.pause(session, SERVER, diary.task_id, by=1, now=self.now))
        diary.stop(self.now)

    async def _pause_until(self, diary: Diary) -> None:
        until = self.now + timedelta(seconds=self.rng.randint(1, 3000))
        await self._write(lambda session: tasks.pause(session, SERVER, diary.task_id, None, until, by=1, now=self.now))
        diary.stop(self.now)

    async def _resume(self, diary: Diary) -> None:
        await self._write(lambda session: tasks.resume(session, SERVER, diary.task_id, by=1, now=self.now))
        await self._note_own_pauses()
        diary.active_since = diary.active_since or self.now

    async def _edit(self, diary: Diary) -> None:
        period = self.rng.choice((20, 45, 60, 300, 900))
        start_at = self.now - timedelta(seconds=self.rng.randint(0, 100))
        status = self.rng.choice((None, None, "pending", "paused"))

        async def change(session: Any) -> None:
            before = (await specs.stored(session, [diary.task_id]))[diary.task_id]
            after = replace(before, **(_every(period, start_at) | {"jitter_seconds": self.rng.choice((0, period - 1))}))
            await tasks.change(session, SERVER, diary.task_id, before, after, status, by=1, now=self.now)

        await self._write(change)
        await self._note_own_pauses()
        was_active = diary.active_since is not None
        diary.stop(self.now)
        diary.period, diary.start_at = period, start_at
        is_active = was_active if status is None else status == "pending"
        diary.active_since = self.now if is_active else None

    def _upcoming(self, diary: Diary) -> datetime:
        ahead = int((self.now - diary.start_at).total_seconds()) // diary.period + self.rng.randint(1, 3)
        return diary.start_at + timedelta(seconds=diary.period * ahead)

    async def _skip(self, diary: Diary) -> None:
        planned = self._upcoming(diary)
        await self._write(lambda session: occurrences.skip(session, SERVER, diary.task_id, planned, by=1, now=self.now))

    async def _move(self, diary: Diary) -> None:
        planned, to = self._upcoming(diary), self.now + timedelta(seconds=self.rng.randint(1, 2000))
        await self._write(
            lambda session: occurrences.move(session, SERVER, diary.task_id, planned, to, by=1, now=self.now)
        )
        self.moved.add((diary.task_id, planned))

    async def _execute(self, diary: Diary) -> None:
        await self.spine.execute(diary.task_id, self.now)

    async def _end(self, _diary: Diary) -> None:
        async with self.spine.database.read() as session:
            found = await session.execute(select(device_runs.c.id).where(device_runs.c.completed_at.is_(None)))
            runs = sorted(found.scalars())
        chosen = self.rng.sample(runs, min(len(runs), 10))
        await self.spine.end(self.now, self.rng.choice((RunStatus.SUCCEEDED, RunStatus.FAILED)), only=chosen)

    async def _end_all(self, _diary: Diary) -> None:
        await self.spine.end(self.now)

    async def _cancel(self, diary: Diary) -> None:
        async def cancel(session: Any) -> None:
            opened = await executions.open_of_tasks(session, [diary.task_id])
            await executions.cancel(session, SERVER, opened[:1], now=self.now)

        await self._write(cancel)

    async def live(self, steps: int) -> None:
        for _ in range(steps):
            if self.rng.random() < 0.04:
                self.now += timedelta(seconds=self.rng.randint(600, 30_000))  # an outage
                await self.tick()
            elif self.rng.random() < 0.02:
                await self.restart()
            else:
                self.now += timedelta(seconds=self.rng.randint(1, 60))
                if self.rng.random() < 0.9:
                    await self.tick()
            await self.act()
            await self._check_places()
        self.now += timedelta(hours=3)
        await self.tick()

    async def restart(self) -> None:
        database = self.spine.database
        await database.close()
        await database.open()

    async def _check_places(self) -> None:
        """Never more at once than allowed; of those that wait, one for a window and, without `all`, one for a place."""
        async with self.spine.database.read() as session:
            rows = await session.execute(
                text(
                    "SELECT e.task_id, e.status, t.max_instances, t.catch_up, count(*) AS n"
                    " FROM scheduled_task_executions e JOIN scheduled_tasks t ON t.id = e.task_id"
                    " WHERE e.completed_time IS NULL GROUP BY e.task_id, e.status, t.max_instances, t.catch_up"
                )
            )
            for row in rows:
                most = row.max_instances if row.status == "running" else 1
                assert row.n <= most or (row.status == "queued" and row.catch_up == "all"), row

    async def recorded(self) -> int:
        async with self.spine.database.read() as session:
            rows = await session.execute(
                text("SELECT sum(occurrences) FROM scheduled_task_executions WHERE planned_for IS NOT NULL")
            )
            return rows.scalar() or 0

    async def check(self) -> int:
        """The equation, for every task; answers how many occurrences it was checked over."""
        total = 0
        for diary in self.diaries.values():
            diary.stop(self.now)
            total += await self._check_task(diary)
        async with self.spine.database.read() as session:
            orders = list((await session.execute(select(device_runs.c.order_id))).scalars())
            problems = [one async for one in verification.verify(session, now=self.now) if one.problems]
        assert len(orders) == len(set(orders)), "an occurrence was sent to a device twice"
        assert problems == []
        return total

    async def _check_task(self, diary: Diary) -> int:
        rows = [row for row in await self.spine.executions(diary.task_id) if row["planned_for"] is not None]
        owed = list(diary.owed())
        settled = self.now - timedelta(hours=3)  # beyond any grace, jitter and move
        covered: Counter[datetime] = Counter()
        for row in rows:
            until = row["covers_until"] or row["planned_for"]
            inside = [one for one in owed if row["planned_for"] <= one <= until]
            ahead = row["due_at"] < row["planned_for"]  # moved ahead, then paused or edited before its instant
            assert len(inside) == row["occurrences"] or ahead, (diary, dict(row), inside)
            covered.update(inside)
            assert (row["reason"] is not None) == (row["status"] in ENDED_UNSTARTED), dict(row)
        wrong = [one for one in owed if covered[one] > 1 or (covered[one] == 0 and one <= settled)]
        assert wrong == [], (diary, wrong[:5])
        return len(owed)


def _every(period: int, start_at: datetime) -> dict[str, Any]:
    config = {"every_seconds": period}
    return {"recurrence_type": "interval", "recurrence_config": config, "scheduled_time": start_at}


async def _live(database: Database, tasks_count: int, steps: int, *, at_least: int) -> int:
    """Live for `steps`, then on until the ledger has `at_least` occurrences, and check them all; answers how many."""
    spine = Spine(database)
    await spine.set_up(online=2, offline=1)
    world = World(spine, fresh_random())
    await world.found(tasks_count)
    await world.live(steps)
    while await world.recorded() < at_least:
        await world.live(steps // 10)
    return await world.check()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_every_owed_occurrence_is_covered_once_and_none_fires_twice(database: Database) -> None:
    assert await _live(database, 36, 450, at_least=50_000) >= 50_000


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_the_same_holds_on_postgresql(database: Database) -> None:
    assert await _live(database, 10, 60, at_least=500) >= 500
