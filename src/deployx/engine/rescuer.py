"""The rescuer: ends what nobody else will end, and settles what a crash left between two steps."""

from __future__ import annotations

from collections import defaultdict

import structlog

from deployx.db.database import Database, Session
from deployx.events import Hint, Hints
from deployx.lifecycle import RunStatus
from deployx.work import deployments, device_runs, executions, rollouts, settling, waiting
from deployx.work.executions import Server
from deployx.work.pacing import Pace

log = structlog.get_logger(__name__)

DEPLOYMENTS_AT_ONCE = 500


class Rescuer:
    """A background duty; each call does what there is to do now and is safe to repeat."""

    def __init__(self, database: Database, hints: Hints, server: Server, pace: Pace) -> None:
        self._database = database
        self._hints = hints
        self._server = server
        self._pace = pace

    async def watch(self) -> int:
        """End runs whose device did not come, fell silent or did not confirm a cancellation; let those go on whose
        moment has come. Mostly one question to the database, and no more."""
        async with self._database.read() as session:
            if not await waiting.any_to_watch(session):
                return 0
            now = await self._database.now(session)
            opens = await waiting.any_opens(session, now=now)
            dated = await rollouts.any_due(session, now=now)
            overdue = await waiting.overdue(session, now=now)
        if opens or dated:
            await self._database.transact(self._go_on)
            self._hints.give(Hint.RUNS)
        return await self._database.transact(self._end_overdue) if overdue else 0

    async def _end_overdue(self, session: Session) -> int:
        now = await self._database.now(session)
        found = await waiting.overdue(session, now=now)
        by_ending: dict[tuple[RunStatus, str], list[int]] = defaultdict(list)
        for run_id, _, status, reason in found:
            by_ending[status, reason].append(run_id)
        touched = sorted({deployment_id for _, deployment_id, _, _ in found})
        await settling.lock_tasks_of(session, touched)
        for (status, reason), run_ids in by_ending.items():
            await device_runs.end(session, run_ids, status, reason, now=now)
            log.info("runs.ended", status=status.value, runs=len(run_ids))
        await executions.settle_deployments(session, self._server, touched, now=now)
        return len(found)

    async def _go_on(self, session: Session) -> None:
        await executions.go_on(session, self._server, now=await self._database.now(session))

    async def settle_left_over(self) -> int:
        """Settle deployments whose runs have all ended, and queue runs that missed their device's arrival."""
        async with self._database.read() as session:
            left = await deployments.unsettled(session, DEPLOYMENTS_AT_ONCE)
            overlooked = await waiting.any_overlooked(session)
        if left:
            await self._database.transact(lambda session: self._settle(session, left))
        if overlooked:
            await self._database.transact(self._queue_overlooked)
            self._hints.give(Hint.RUNS)
        return len(left)

    async def _queue_overlooked(self, session: Session) -> None:
        now = await self._database.now(session)
        rolling = await waiting.device_came(session, await waiting.overlooked(session), self._pace, now=now)
        await executions.settle_deployments(session, self._server, rolling, now=now)

    async def _settle(self, session: Session, deployment_ids: list[int]) -> None:
        await executions.settle_deployments(
            session, self._server, deployment_ids, now=await self._database.now(session)
        )
