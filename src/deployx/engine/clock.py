"""The clock: one coroutine that turns due tasks into executions, in batches, and sleeps until the next is due."""

from __future__ import annotations

from datetime import datetime

import structlog

from deployx import metrics
from deployx.db.database import Database, Session
from deployx.events import Hint, Hints
from deployx.work import executions, tasks

log = structlog.get_logger(__name__)

TASKS_AT_ONCE = 500
LONGEST_SLEEP_SECONDS = 1.0


class TaskClock:
    """Fires what is due. Any number of replicas may run one: claiming keeps them apart."""

    def __init__(self, database: Database, hints: Hints, installation_id: str) -> None:
        self._database = database
        self._hints = hints
        self._installation_id = installation_id
        self._sleep_seconds = 0.0

    async def run(self) -> None:
        while True:
            await self.tick()
            await self._hints.wait(Hint.TASKS, self._sleep_seconds)

    async def tick(self) -> int:
        """Fire all that is due now, and one batch of older backlog; answers how many tasks were claimed."""
        if not await self._is_due():
            return 0
        total = 0
        while claimed := await self._fire(backlog=False):
            total += claimed
            if claimed < TASKS_AT_ONCE:
                break
        return total + await self._fire(backlog=True)

    async def _fire(self, *, backlog: bool) -> int:
        async def claim(session: Session) -> int:
            now = await self._database.now(session)
            return await executions.fire(session, self._installation_id, now=now, limit=TASKS_AT_ONCE, backlog=backlog)

        try:
            claimed = await self._database.transact(claim)
        except Exception:  # one task that cannot be fired must not stop the others
            log.exception("clock.batch_failed")
            claimed = await self._fire_singly()
        if claimed:
            metrics.FIRED.inc(claimed)
            self._hints.give(Hint.RUNS)
            log.info("clock.fired", tasks=claimed, backlog=backlog)
        return claimed

    async def _fire_singly(self) -> int:
        """Fire the due tasks one by one; one that raises is failed, with the reason, and moved out of the way."""
        async with self._database.read() as session:
            now = await self._database.now(session)
            due = await executions.due_ids(session, now=now, limit=TASKS_AT_ONCE)
        fired = 0
        for task_id in due:
            try:
                await self._database.transact(lambda session, one=task_id: self._account(session, one, now))  # type: ignore[misc]
                fired += 1
            except Exception as error:
                log.exception("clock.task_failed", task=task_id)
                reason = f"The task could not be fired: {type(error).__name__}. The server's log has the details."
                await self._database.transact(
                    lambda session, one=task_id, why=reason: tasks.set_aside(session, one, why)  # type: ignore[misc]
                )
        return fired

    async def _account(self, session: Session, task_id: int, now: datetime) -> None:
        await executions.account_for(session, self._installation_id, [task_id], now=now)

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
