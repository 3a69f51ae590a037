"""Keeps the moving parts of one server process going: starts them in order, restarts what fails, stops them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from uuid import uuid4

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from deployx.clock import Clock
from deployx.db.bulk import any_of, ids_parameter
from deployx.db.database import Database, Session
from deployx.engine.clock import TaskClock
from deployx.engine.dispatcher import Dispatcher
from deployx.engine.rescuer import Rescuer
from deployx.events import Hints
from deployx.fleet import devices, replicas
from deployx.gateway.connections import Connections
from deployx.gateway.endpoint import AgentEndpoint
from deployx.gateway.inbox import Inbox
from deployx.gateway.orders import OrderSigner
from deployx.work import waiting
from deployx.work.executions import Server
from deployx.work.pacing import Pace

log = structlog.get_logger(__name__)

LEASE = timedelta(seconds=30)
RESTART_AFTER_SECONDS = 1.0


class Engine:
    """The moving parts of one process around one database."""

    def __init__(
        self, database: Database, clock: Clock, hints: Hints, installation_id: str, epoch: int, key: Ed25519PrivateKey,
        returning_per_minute: int,
        more_duties: Sequence[tuple[Callable[[], Awaitable[object]], float]] = (),
    ) -> None:  # fmt: skip
        self.replica_id = uuid4().hex
        self._more_duties = more_duties
        self._database = database
        self._clock = clock
        self._hints = hints
        self.connections = Connections()
        server = Server(installation_id, clock.steps)
        pace = Pace(returning_per_minute)
        self.inbox = Inbox(database, hints, server, pace)
        self.endpoint = AgentEndpoint(database, clock, installation_id, self.replica_id, self.connections, self.inbox)
        self.clock = TaskClock(database, clock, hints, server)
        signer = OrderSigner(installation_id, epoch, key)
        self.dispatcher = Dispatcher(database, clock, hints, self.connections, signer, self.replica_id)
        self.rescuer = Rescuer(database, hints, server, pace)
        self._timer = AsyncIOScheduler(timezone="UTC")
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take the lease, clear what dead processes left, and start everything."""
        await self._renew_lease(first=True)
        for name, run in (("inbox", self.inbox.run), ("dispatcher", self.dispatcher.run), ("clock", self.clock.run)):
            self._tasks.append(asyncio.create_task(_keep_running(name, run), name=name))
        duties: tuple[tuple[Callable[[], Awaitable[object]], float], ...] = (
            (self.rescuer.watch, 1),
            (self.rescuer.settle_left_over, 5),
            (self._renew_lease, 10),
            (self._close_ended_sessions, 3),
            (self._flush_presence, 60),
            *self._more_duties,
        )
        for duty, seconds in duties:
            self._timer.add_job(
                _duty(duty), "interval", seconds=seconds, coalesce=True, max_instances=1, misfire_grace_time=None
            )
        self._timer.start()

    async def stop(self) -> None:
        """Stop firing and sending first, then take in what agents still report, then let go of the devices."""
        if self._timer.running:
            self._timer.shutdown(wait=False)
        for connection in self.connections:
            connection.close(1001, "server stops")
        for task in reversed(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._database.transact(self._let_go)

    async def _let_go(self, session: Session) -> None:
        now = await self._database.now(session)
        gone = await devices.abandon(session, [self.replica_id], now=now)
        await waiting.devices_left(session, gone, now=now)
        await replicas.release(session, self.replica_id)

    async def _renew_lease(self, *, first: bool = False) -> None:
        """Renew this process's lease; devices of processes whose lease ended become offline by one statement."""

        async def renew(session: Session) -> list[int]:
            now = await self._database.now(session)
            await replicas.renew_lease(session, self.replica_id, now + LEASE)
            dead = await self._dead_replicas(session, now, everything=first and self._database.is_sqlite)
            gone = await devices.abandon(session, dead, now=now)
            await waiting.devices_left(session, gone, now=now)
            return gone

        gone = await self._database.transact(renew)
        if gone:
            log.info("devices.abandoned", devices=len(gone))

    async def _dead_replicas(self, session: Session, now: datetime, *, everything: bool) -> list[str]:
        """Replicas that hold devices without a living lease; on SQLite one process owns the file, so all others."""
        rows = await session.execute(
            text("SELECT DISTINCT replica_id FROM devices WHERE replica_id IS NOT NULL AND replica_id <> :me"),
            {"me": self.replica_id},
        )
        holding = set(rows.scalars())
        return sorted(holding if everything else holding - await replicas.living(session, now=now))

    async def _close_ended_sessions(self) -> None:
        """Close sessions of removed devices, and of devices that have since connected to another replica."""
        held = {connection.device_id: connection for connection in self.connections}
        if not held:
            return
        async with self._database.read() as session:
            rows = await session.execute(
                text(
                    "SELECT id, deleted_at IS NOT NULL AS gone, replica_id FROM devices WHERE "
                    + any_of(session, "id", "ids")
                ),
                {"ids": ids_parameter(session, held)},
            )
            found = rows.all()
        for row in found:
            if row.gone:
                held[row.id].send({"type": "refused", "code": "revoked", "detail": "This device was removed."})
                held[row.id].close(1008, "revoked")
            elif row.replica_id is not None and row.replica_id != self.replica_id:
                held[row.id].close(1008, "replaced")

    async def _flush_presence(self) -> None:
        """Write when each connected device was last heard, in one statement."""
        moment, now = self._clock.monotonic(), self._clock.now()
        seen = [(one.device_id, now - timedelta(seconds=moment - one.heard_at)) for one in self.connections]
        if seen:
            await self._database.transact(lambda session: devices.seen(session, seen))


async def _keep_running(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a loop for ever; one that raises is logged and started again."""
    while True:
        try:
            await run()
        except Exception:  # the guard of the loop: nothing above could act on it
            log.exception("engine.restarted", part=name)
            await asyncio.sleep(RESTART_AFTER_SECONDS)


def _duty(duty: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[None]]:
    async def once() -> None:
        try:
            await duty()
        except asyncio.CancelledError:
            return  # the server stops; raised further, the timer would report it as a failure
        except Exception:  # a duty that fails is tried again at its next interval
            log.exception("duty.failed", duty=getattr(duty, "__name__", repr(duty)))

    return once
