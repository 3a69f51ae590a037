"""What the agents report, committed in groups: one transaction for all that arrived while the last one was written.

Acknowledgements leave after the commit. A report about another device's run, or about an order that this server never
sent, is dropped with a log line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import msgspec
import structlog
from sqlalchemy import RowMapping

from deployx import metrics
from deployx.db.database import Database, Session
from deployx.events import Hint, Hints
from deployx.fleet import devices
from deployx.gateway.connections import Connection
from deployx.gateway.messages import Accepted, Facts, Finished, Output, Rejected, Report, Started
from deployx.lifecycle import RunStatus
from deployx.work import attempts, device_runs, executions, output, settling, waiting
from deployx.work.executions import Server
from deployx.work.pacing import Pace

log = structlog.get_logger(__name__)

REPORTS_AT_ONCE = 2000
WAITING_REPORTS = 10_000
"""Beyond this, the sessions wait with reading: the agents keep what they have."""


@dataclass(frozen=True, slots=True)
class Came:
    """A device opened a session; `recorded` is resolved once the database knows."""

    connection: Connection
    connected: devices.Connected
    returned: device_runs.Returned
    recorded: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class Left:
    connection: Connection


@dataclass(frozen=True, slots=True)
class Reported:
    connection: Connection
    message: Report | Facts


Event = Came | Left | Reported


@dataclass(slots=True)
class _Batch:
    """Events sorted by what is done with them; reports that concern no run of their sender are left out."""

    came: list[Came] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    facts: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    reports: list[tuple[Connection, Report]] = field(default_factory=list)

    @classmethod
    def of(cls, events: Sequence[Event]) -> _Batch:
        batch = cls()
        for event in events:
            match event:
                case Came():
                    batch.came.append(event)
                case Left():
                    batch.left.append(event)
                case Reported(connection=connection) if connection.closing is not None:
                    # What was not acknowledged comes again with the next session. Taking it now could acknowledge
                    # output beyond a chunk that the database has just refused.
                    pass
                case Reported(connection=connection, message=Facts(facts=facts)):
                    batch.facts.append((connection.device_id, facts))
                case Reported(connection=connection, message=message) if not isinstance(message, Facts):
                    batch.reports.append((connection, message))
        return batch


class Inbox:
    """The one writer of what agents report; run `run` as a task."""

    def __init__(self, database: Database, hints: Hints, server: Server, pace: Pace) -> None:
        self._database = database
        self._hints = hints
        self._server = server
        self._pace = pace
        self._events: asyncio.Queue[Event] = asyncio.Queue(WAITING_REPORTS)

    async def put(self, event: Event) -> None:
        await self._events.put(event)

    async def run(self) -> None:
        while True:
            await self.take_one_batch()

    async def take_one_batch(self) -> None:
        """Wait for at least one event and commit it with all others that are there."""
        events = [await self._events.get()]
        while not self._events.empty() and len(events) < REPORTS_AT_ONCE:
            events.append(self._events.get_nowait())
        await self._commit(events)

    async def _commit(self, events: Sequence[Event]) -> None:
        batch = _Batch.of(events)
        try:
            after, ended = await self._database.transact(lambda session: self._record(session, batch))
        except Exception:  # one report that the database refuses must not lose the others
            log.exception("inbox.refused", events=len(events))
            if len(events) == 1:
                _cut_off(events[0])
                return
            for event in events:
                await self._commit([event])
            return
        for came in batch.came:
            if not came.recorded.done():
                came.recorded.set_result(None)
        for acknowledge in after:
            acknowledge()
        if batch.came or after:
            self._hints.give(Hint.RUNS)
        if ended:
            self._hints.give(Hint.TASKS)

    async def _record(self, session: Session, batch: _Batch) -> tuple[list[Callable[[], object]], bool]:
        """Write a batch; answers what to acknowledge after the commit, and whether a deployment ended."""
        now = await self._database.now(session)
        touched = await _record_arrivals(session, batch.came, self._pace, now)
        runs = await self._runs_of(session, batch.reports)
        valid = [(connection, report) for connection, report in batch.reports if _concerns(connection, report, runs)]
        after = await _record_reports(session, valid, runs, touched, now)
        ended = await executions.settle_deployments(session, self._server, sorted(touched), now=now)
        if batch.facts:
            await devices.update_facts(session, batch.facts, now=now)
        await _record_departures(session, batch.left, now)
        return after, bool(ended)

    async def _runs_of(
        self, session: Session, reports: Sequence[tuple[Connection, Report]]
    ) -> Mapping[int, RowMapping]:
        """The reported runs; where some end, their tasks are locked first, since all writers lock downward."""
        ids = {report.run_id for _, report in reports}
        if not ids:
            return {}
        ending = {report.run_id for _, report in reports if isinstance(report, Finished | Rejected)}
        if ending and not self._database.is_sqlite:
            await settling.lock_tasks_of(session, await device_runs.deployments_of(session, ending))
        return await device_runs.known(session, ids)


def _cut_off(event: Event) -> None:
    match event:
        case Came(connection=connection, recorded=recorded):
            if not recorded.done():
                recorded.cancel()
            connection.close(1011, "refused")
        case Reported(connection=connection):
            connection.close(1011, "refused")
        case Left():
            pass


def _concerns(connection: Connection, report: Report, runs: Mapping[int, RowMapping]) -> bool:
    run = runs.get(report.run_id)
    if run is not None and run["order_id"] == report.order_id and run["device_id"] == connection.device_id:
        return True
    log.warning("report.dropped", device=connection.device_id, run=report.run_id, order=report.order_id)
    if isinstance(report, Finished):  # nobody waits for it: let the agent forget it
        connection.send({"type": "finished_ack", "order_id": report.order_id})
    return False


async def _record_arrivals(session: Session, came: Sequence[Came], pace: Pace, now: datetime) -> set[int]:
    """Devices are back: what they know is compared, and what waited for them goes on. Answers deployments to settle."""
    if not came:
        return set()
    newest = {one.connected.device_id: one for one in came}
    await devices.connect(session, [one.connected for one in newest.values()], now=now)
    touched = await device_runs.reconcile(session, [one.returned for one in newest.values()], now=now)
    news = {
        device_id: attempts.News(one.returned.journal_id, one.returned.unfinished) for device_id, one in newest.items()
    }
    touched += await attempts.hear(session, news, now=now)
    touched += await waiting.device_came(session, list(newest), pace, now=now)
    return set(touched)


async def _record_departures(session: Session, left: Sequence[Left], now: datetime) -> None:
    if not left:
        return
    sessions = [(one.connection.device_id, one.connection.session_id) for one in left]
    gone = await devices.disconnect(session, sessions, now=now)
    await waiting.devices_left(session, gone, now=now)


async def _record_reports(
    session: Session,
    reports: Sequence[tuple[Connection, Report]],
    runs: Mapping[int, RowMapping],
    touched: set[int],
    now: datetime,
) -> list[Callable[[], object]]:
    """Write the reports, in the order of their effects; answers what to send once they are committed."""
    started: list[int] = []
    chunks: list[output.Chunk] = []
    endings: dict[int, device_runs.Ending] = {}
    refused: list[tuple[int, str]] = []
    after: list[Callable[[], object]] = []
    for connection, report in reports:
        match report:
            case Accepted():
                pass
            case Started():
                started.append(report.run_id)
            case Output():
                chunks += [
                    output.Chunk(report.run_id, one.seq, one.step, one.stream, one.text) for one in report.chunks
                ]
                through = max((one.seq for one in report.chunks), default=-1)
                after.append(_ack(connection, {"type": "output_ack", "order_id": report.order_id, "through": through}))
            case Finished():
                endings.setdefault(report.run_id, _ending(report))
                metrics.RUNS_ENDED.labels(report.status).inc()
                after.append(_ack(connection, {"type": "finished_ack", "order_id": report.order_id}))
            case Rejected():
                refused.append((report.run_id, report.reason))
    await device_runs.start(session, started, now=now)
    await output.append(session, chunks, now=now)
    await device_runs.finish(
        session, list(endings.values()), {run_id: str(runs[run_id]["status"]) for run_id in endings}, now=now
    )
    for run_id, reason in refused:
        await device_runs.end(session, [run_id], RunStatus.FAILED, f"The device refused the work: {reason}", now=now)
    late = {run_id: one.status == RunStatus.SUCCEEDED for run_id, one in endings.items()
            if runs[run_id]["status"] == RunStatus.LOST}  # fmt: skip
    if late:
        touched |= set(await attempts.take_late_results(session, late, now=now))
    touched |= {runs[run_id]["deployment_id"] for run_id in [*endings, *(run_id for run_id, _ in refused)]}
    return after


def _ack(connection: Connection, message: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: connection.send(message)


def _ending(report: Finished) -> device_runs.Ending:
    reason = report.reason
    if report.replaced_bytes:
        note = "Bytes of the output that are no text were replaced."
        reason = f"{reason} {note}" if reason else note
    return device_runs.Ending(
        run_id=report.run_id,
        status=RunStatus(report.status),
        exit_code=report.exit_code,
        reason=reason,
        duration_seconds=report.duration_seconds,
        steps=[msgspec.to_builtins(step) for step in report.steps],
        truncated=report.truncated,
        reboot_required=report.reboot_required,
        receipt=report.receipt,
    )
