"""The clock: one coroutine that turns due tasks into executions, in batches, and sleeps until the next is due."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog

from deployx import metrics
from deployx.clock import Clock
from deployx.db.database import Database, Session
from deployx.events import Hint, Hints
from deployx.work import alarms, executions, tasks
from deployx.work.executions import Server

log = structlog.get_logger(__name__)

TASKS_AT_ONCE = 500
LONGEST_SLEEP_SECONDS = 1.0

Batch = Callable[[Session, datetime], Awaitable[int]]


class TaskClock:
    """Fires what is due. Any number of replicas may run one: claiming keeps them apart."""

    def __init__(self, database: Database, clock: Clock, hints: Hints, server: Server) -> None:
        self._database = database
        self._clock = clock
        self._hints = hints
        self._server = server
        self._sleep_seconds = 0.0
        self._held = False

    async def run(self) -> None:
        while True:
            await self.tick()
            await self._hints.wait(Hint.TASKS, self._sleep_seconds)

    async def tick(self) -> int:
        """Fire all that is due now, answer alarms, and one batch of older backlog; answers how many were looked at."""
        if self._is_held() or not await self._is_due():
            return 0
        total = 0
        while claimed := await self._batch("due", self._fire_fresh):
            total += claimed
            if claimed < TASKS_AT_ONCE:
                break
        total += await self._batch("alarms", self._answer_alarms)
        return total + await self._batch("backlog", self._fire_backlog)

    def _is_held(self) -> bool:
        """Whether the clock was stepped just now: then nothing fires for a while. PostgreSQL has a clock of its own."""
        if not self._database.is_sqlite:
            return False
        steps, monotonic = self._clock.steps, self._clock.monotonic()
        steps.observe(self._clock.now(), monotonic)
        self._sleep_seconds = min(steps.holds(monotonic), LONGEST_SLEEP_SECONDS)
        was_held, self._held = self._held, self._sleep_seconds > 0
        if self._held and not was_held:
            log.warning("clock.stepped", hold_seconds=round(steps.holds(monotonic), 1))
        return self._held

    async def _fire_fresh(self, session: Session, now: datetime) -> int:
        return await executions.fire(session, self._server, now=now, limit=TASKS_AT_ONCE)

    async def _fire_backlog(self, session: Session, now: datetime) -> int:
        return await executions.fire(session, self._server, now=now, limit=TASKS_AT_ONCE, backlog=True)

    async def _answer_alarms(self, session: Session, now: datetime) -> int:
        return await executions.answer_alarms(session, self._server, now=now, limit=TASKS_AT_ONCE)

    async def _batch(self, name: str, work: Batch) -> int:
        async def claim(session: Session) -> int:
            return await work(session, await self._database.now(session))

        try:
            claimed = await self._database.transact(claim)
        except Exception:  # one task that cannot be fired must not stop the others
            log.exception("clock.batch_failed", batch=name)
            claimed = await self._fire_singly()
        if claimed:
            metrics.FIRED.inc(claimed)
            self._hints.give(Hint.RUNS)
            log.info("clock.fired", tasks=claimed, batch=name)
        return claimed

    async def _fire_singly(self) -> int:
        """Look at the due tasks one by one; one that raises is failed, with the reason, and moved out of the way."""
        async with self._database.read() as session:
            now = await self._database.now(session)
            due = set(await executions.due_ids(session, now=now, limit=TASKS_AT_ONCE))
            rung = await alarms.due(session, now=now, limit=TASKS_AT_ONCE)
        for task_id in sorted(due | set(rung.values())):
            mine = [alarm_id for alarm_id, owner in rung.items() if owner == task_id]
            try:
                await self._database.transact(lambda session, one=task_id: self._account(session, one, now))  # type: ignore[misc]
            except Exception as error:
                log.exception("clock.task_failed", task=task_id)
                reason = f"The task could not be fired: {type(error).__name__}. The server's log has the details."
                await self._database.transact(
                    lambda session, one=task_id, why=reason: tasks.set_aside(session, one, why, now=now)  # type: ignore[misc]
                )
            await self._database.transact(lambda session, used=mine: alarms.forget(session, used))  # type: ignore[misc]
        return len(due)

    async def _account(self, session: Session, task_id: int, now: datetime) -> None:
        await executions.account_for(session, self._server, [task_id], now=now)

    async def _is_due(self) -> bool:
        """Whether something is due; sets how long to sleep, from the same read. After a tick that fired, not at all."""
        async with self._database.read() as session:
            due_at = await executions.next_due(session)
            if due_at is None:
                self._sleep_seconds = LONGEST_SLEEP_SECONDS
                return False
            left = (due_at - await self._database.now(session)).total_seconds()
        self._sleep_seconds = min(max(left, 0.0), LONGEST_SLEEP_SECONDS)
        return left <= 0
