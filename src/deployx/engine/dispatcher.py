"""The dispatcher: sends queued runs to the devices connected here, and cancellations to those that run."""

from __future__ import annotations

from datetime import datetime

import structlog
from sqlalchemy import RowMapping

from deployx.catalog.payloads import COMMAND
from deployx.clock import Clock
from deployx.db.database import Database, Session
from deployx.events import Hint, Hints
from deployx.gateway.connections import Connections
from deployx.gateway.orders import OrderSigner, Work
from deployx.work import deployments, device_runs

log = structlog.get_logger(__name__)

RUNS_AT_ONCE = 500
LONGEST_SLEEP_SECONDS = 1.0
REPEAT_CANCEL_AFTER_SECONDS = 5.0


class Dispatcher:
    """Claims in batches, commits, then sends: a crash in between is made good when the device reconnects."""

    def __init__(
        self, database: Database, clock: Clock, hints: Hints, connections: Connections, signer: OrderSigner,
        replica_id: str,
    ) -> None:  # fmt: skip
        self._database = database
        self._clock = clock
        self._hints = hints
        self._connections = connections
        self._signer = signer
        self._replica_id = replica_id
        self._cancels_sent: dict[int, float] = {}

    async def run(self) -> None:
        while True:
            await self.tick()
            await self._hints.wait(Hint.RUNS, LONGEST_SLEEP_SECONDS)

    async def tick(self) -> None:
        async with self._database.read() as session:
            queued, cancelling = await device_runs.to_send(session)
        while queued and await self._send_queued() == RUNS_AT_ONCE:
            pass
        if cancelling:
            await self._send_cancels()

    async def _send_queued(self) -> int:
        runs, now = await self._database.transact(self._claim)
        if runs:
            await self._send_orders(runs, now)
        return len(runs)

    async def _claim(self, session: Session) -> tuple[list[RowMapping], datetime]:
        now = await self._database.now(session)
        return list(await device_runs.claim_queued(session, self._replica_id, RUNS_AT_ONCE, now=now)), now

    async def _send_orders(self, runs: list[RowMapping], now: datetime) -> None:
        async with self._database.read() as session:
            works = await self._works(session, runs)
        for run in runs:
            order = self._signer.order(run, works[run["deployment_id"]], now=now)
            if not self._connections.send(run["device_id"], order):
                log.info("order.not_sent", device=run["device_id"], run=run["run_id"])
        log.info("orders.sent", runs=len(runs))

    async def _works(self, session: Session, runs: list[RowMapping]) -> dict[int, Work]:
        """The work of each deployment; a payload that many deployments share is encoded once."""
        payloads = await deployments.payloads_of(session, {run["payload_id"] for run in runs})
        not_commands = {run["deployment_id"] for run in runs if payloads[run["payload_id"]]["kind"] != COMMAND}
        resolved = await deployments.works_of(session, not_commands) if not_commands else {}
        commands = {one: Work.of(payload, None) for one, payload in payloads.items() if payload["kind"] == COMMAND}
        return {
            deployment_id: commands.get(payload_id) or Work.of(payloads[payload_id], resolved[deployment_id])
            for deployment_id, payload_id in {(run["deployment_id"], run["payload_id"]) for run in runs}
        }

    async def _send_cancels(self) -> None:
        async with self._database.read() as session:
            open_cancels = await device_runs.cancelling_on(session, self._replica_id)
        moment = self._clock.monotonic()
        known = {run["id"] for run in open_cancels}
        self._cancels_sent = {run_id: at for run_id, at in self._cancels_sent.items() if run_id in known}
        for run in open_cancels:
            if moment - self._cancels_sent.get(run["id"], -REPEAT_CANCEL_AFTER_SECONDS) < REPEAT_CANCEL_AFTER_SECONDS:
                continue
            message = {"type": "cancel", "order_id": run["order_id"], "run_id": run["id"]}
            if self._connections.send(run["device_id"], message):
                self._cancels_sent[run["id"]] = moment
