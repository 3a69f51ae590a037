"""Device runs: one device's share of a deployment, from queued to its end.

Every move is one guarded, set-based statement; a run that somebody else moved first is left alone.
Waiting, for a device or a window, is in `waiting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import RowMapping, text

from deployx.db.bulk import allocate_ids, any_of, ids_parameter, insert_rows, moment_parameter, row_lock, update_rows
from deployx.db.database import Session
from deployx.db.schema import device_runs
from deployx.lifecycle import RUN_MOVES, RUN_OPEN, RunStatus, sources
from deployx.work import waiting

LOST_FOR_EVER = {
    "status": "unknown",
    "reason": "The device came back without the journal that it had when this was sent: it may or may not have run.",
}

_INSTANT = device_runs.c.queued_at.type

_COLUMNS = (
    "id", "deployment_id", "device_id", "attempt", "wave", "order_id",
    "status", "reason", "queued_at", "deadline_at", "completed_at", "waits_for", "opens_at", "truncated",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to queue; `run_key` names the occurrence (or the manual run) that it belongs to."""

    deployment_id: int
    device_id: int
    online: bool
    run_key: str
    offline_policy: str
    offline_deadline_seconds: int
    wave: int | None = None
    """None: starts at once; a number: when the rollout opens that wave."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What an agent reported about a run."""

    run_id: int
    status: RunStatus
    exit_code: int | None
    reason: str | None
    duration_seconds: float | None
    steps: Sequence[Mapping[str, Any]]
    truncated: bool
    reboot_required: bool = False
    receipt: Mapping[str, Any] | None = None


def order_id(installation_id: str, run_key: str, device_id: int, attempt: int) -> str:
    """The id under which a device will run this at most once; the same after a restart or a restore."""
    return sha256(f"{installation_id}\n{run_key}\n{device_id}\n{attempt}".encode()).hexdigest()[:32]


async def queue(session: Session, installation_id: str, runs: Sequence[NewRun], *, now: datetime) -> None:
    """Insert first attempts.

    Queued where the device is online, else waiting, or ended where it may not wait; in a rollout, waiting for its wave.
    """
    ids = await allocate_ids(session, device_runs, len(runs))
    rows = (
        (
            *(identity, run.deployment_id, run.device_id, 1, run.wave or 0),
            order_id(installation_id, run.run_key, run.device_id, 1),
            *_first_state(run, now),
            None,
            False,
        )
        for identity, run in zip(ids, runs, strict=True)
    )
    await insert_rows(session, device_runs, _COLUMNS, rows)


def _first_state(run: NewRun, now: datetime) -> tuple[Any, ...]:
    """Status, reason, queued_at, deadline_at, completed_at and waits_for of a new run."""
    if run.wave is not None:
        return RunStatus.WAITING.value, "The rollout has not reached it yet.", now, None, None, "wave"
    if run.online:
        return RunStatus.QUEUED.value, None, now, None, None, None
    status, reason, deadline_at, completed_at, waits_for = waiting.state_of_absent(
        run.offline_policy, run.offline_deadline_seconds, now=now
    )
    return status, reason, now, deadline_at, completed_at, waits_for


async def claim_queued(session: Session, replica_id: str, limit: int, *, now: datetime) -> Sequence[RowMapping]:
    """Mark up to `limit` queued runs of devices connected to this replica as dispatched, and tell what to send.

    A run whose device is in a group with a closed window waits for that instead.
    """
    queued = (
        (
            await session.execute(
                text(
                    "SELECT r.id AS run_id, r.order_id, r.attempt, r.device_id, d.name AS device_name, d.journal_id,"
                    " r.deployment_id, r.queued_at, p.payload_id, p.execution_id, p.offline_deadline_seconds,"
                    " e.task_id, e.planned_for"
                    " FROM device_runs r JOIN devices d ON d.id = r.device_id"
                    " JOIN deployments p ON p.id = r.deployment_id"
                    " LEFT JOIN scheduled_task_executions e ON e.id = p.execution_id"
                    " WHERE r.status = 'queued' AND d.replica_id = :replica ORDER BY r.id LIMIT :limit "
                    + row_lock(session, "r", skip=True)
                ).columns(planned_for=_INSTANT, queued_at=_INSTANT),
                {"replica": replica_id, "limit": limit},
            )
        )
        .mappings()
        .all()
    )
    closed = await waiting.wait_for_windows(session, queued, now=now)
    found = [run for run in queued if run["run_id"] not in closed]
    await update_rows(
        session,
        device_runs,
        ("status", "reason", "deadline_at", "dispatched_at", "journal_id"),
        [(run["run_id"], RunStatus.DISPATCHED.value, None, None, now, run["journal_id"]) for run in found],
        guard="status = 'queued'",
    )
    return found


async def known(session: Session, run_ids: Iterable[int]) -> dict[int, RowMapping]:
    """The runs with these ids: what an agent's message about one has to match."""
    statement = (
        "SELECT id, order_id, device_id, deployment_id, status, journal_id FROM device_runs WHERE "
        + any_of(session, "id", "ids")
        + " ORDER BY id "
        + row_lock(session, "device_runs")
    )
    rows = await session.execute(text(statement), {"ids": ids_parameter(session, run_ids)})
    return {row["id"]: row for row in rows.mappings()}


async def deployments_of(session: Session, run_ids: Iterable[int]) -> list[int]:
    rows = await session.execute(
        text("SELECT DISTINCT deployment_id FROM device_runs WHERE " + any_of(session, "id", "ids")),
        {"ids": ids_parameter(session, run_ids)},
    )
    return sorted(rows.scalars())


async def start(session: Session, run_ids: Sequence[int], *, now: datetime) -> None:
    """Dispatched runs whose first process started; anything else is left as it is."""
    await update_rows(
        session,
        device_runs,
        ("status", "started_at"),
        [(run_id, RunStatus.RUNNING.value, now) for run_id in run_ids],
        guard="status = 'dispatched'",
    )


async def finish(
    session: Session, endings: Sequence[Ending], status_before: Mapping[int, str], *, now: datetime
) -> None:
    """Record what agents reported: an open run ends, a run that had ended keeps its status and gets a late result."""
    ended, late = [], []
    for ending in endings:
        before = status_before[ending.run_id]
        if before not in RUN_OPEN:
            late.append((ending.run_id, _late_result(ending, now)))
        elif ending.status in RUN_MOVES[RunStatus(before)]:
            ended.append(
                (ending.run_id, ending.status.value, ending.reason, now, ending.duration_seconds, ending.exit_code,
                 list(ending.steps), ending.truncated, ending.reboot_required, ending.receipt)
            )  # fmt: skip
    columns = (
        "status", "reason", "completed_at", "duration_seconds", "exit_code", "steps", "truncated",
        "reboot_required", "receipt",
    )  # fmt: skip
    await update_rows(session, device_runs, columns, ended, guard="completed_at IS NULL")
    await update_rows(session, device_runs, ("late_result",), late, guard="completed_at IS NOT NULL")


def _late_result(ending: Ending, now: datetime) -> dict[str, Any]:
    return {
        "status": ending.status.value,
        "exit_code": ending.exit_code,
        "reason": ending.reason,
        "received_at": now.isoformat(),
        "receipt": ending.receipt,
    }


async def end(session: Session, run_ids: Sequence[int], status: RunStatus, reason: str, *, now: datetime) -> None:
    """End runs from this side (lost, refused by the device, nothing to wait for any more)."""
    allowed = ", ".join(f"'{state}'" for state in sources(RUN_MOVES, status))
    await update_rows(
        session,
        device_runs,
        ("status", "reason", "completed_at", "waits_for", "opens_at"),
        [(run_id, status.value, reason, now, None, None) for run_id in run_ids],
        guard=f"status IN ({allowed})",
    )


@dataclass(frozen=True, slots=True)
class Returned:
    """A device that opened a session: its journal, and the orders it says it has not finished."""

    device_id: int
    journal_id: str
    unfinished: frozenset[str]


async def reconcile(session: Session, returned: Sequence[Returned], *, now: datetime) -> list[int]:
    """Compare what was sent to these devices with what they know of it; answers deployments that may have ended.

    What a device does not know is sent again under the same id if its journal is the one it was sent to; a device
    with another journal (wiped, or put back to an older state) may have run it, so there it ends as lost.
    """
    by_device = {one.device_id: one for one in returned}
    rows = await session.execute(
        text(
            "SELECT id, deployment_id, device_id, order_id, status, journal_id FROM device_runs"
            " WHERE completed_at IS NULL AND journal_id IS NOT NULL AND "
            + any_of(session, "device_id", "ids")
            + " ORDER BY id "
            + row_lock(session, "device_runs")
        ),
        {"ids": ids_parameter(session, by_device)},
    )
    again, lost, touched = [], [], []
    for row in rows:
        device = by_device[row.device_id]
        if row.journal_id != device.journal_id:
            lost.append(row.id)
            touched.append(row.deployment_id)
        elif row.order_id not in device.unfinished and row.status in (RunStatus.DISPATCHED, RunStatus.RUNNING):
            again.append((row.id, RunStatus.QUEUED.value))
    await update_rows(session, device_runs, ("status",), again, guard="status IN ('dispatched', 'running')")
    await end(session, lost, RunStatus.LOST, LOST_FOR_EVER["reason"], now=now)
    told = [(run_id, LOST_FOR_EVER) for run_id in lost]
    await update_rows(session, device_runs, ("late_result",), told, guard="status = 'lost'")
    return touched


async def to_send(session: Session) -> tuple[bool, bool]:
    """Whether anything is queued, and whether anything is being cancelled: one question for each tick."""
    rows = await session.execute(
        text(
            "SELECT EXISTS (SELECT 1 FROM device_runs WHERE status = 'queued'),"
            " EXISTS (SELECT 1 FROM device_runs WHERE status = 'cancelling')"
        )
    )
    queued, cancelling = rows.one()
    return bool(queued), bool(cancelling)


async def cancelling_on(session: Session, replica_id: str) -> Sequence[RowMapping]:
    """Runs whose devices are connected to this replica and have yet to confirm a cancellation."""
    rows = await session.execute(
        text(
            "SELECT r.id, r.order_id, r.device_id FROM device_runs r JOIN devices d ON d.id = r.device_id"
            " WHERE r.status = 'cancelling' AND d.replica_id = :replica ORDER BY r.id"
        ),
        {"replica": replica_id},
    )
    return rows.mappings().all()


async def cancel(session: Session, deployment_ids: Sequence[int], *, now: datetime) -> None:
    """End what has not started, and ask the devices to stop what may have."""
    parameters = {"ids": ids_parameter(session, deployment_ids), "now": moment_parameter(session, now)}
    of_these = any_of(session, "deployment_id", "ids")
    await session.execute(
        text(
            "UPDATE device_runs SET status = 'cancelled', reason = 'Cancelled before it started.', completed_at = :now,"
            " deadline_at = NULL, waits_for = NULL, opens_at = NULL"
            f" WHERE status IN ('queued', 'waiting') AND {of_these}"
        ),
        parameters,
    )
    await session.execute(
        text(
            "UPDATE device_runs SET status = 'cancelling', cancel_requested_at = :now"
            f" WHERE status IN ('dispatched', 'running') AND {of_these}"
        ),
        parameters,
    )


async def cancel_of_device(session: Session, device_id: int, *, now: datetime) -> list[int]:
    """A device is removed: its open runs end; answers the deployments that may have ended with them."""
    rows = await session.execute(
        text(
            "UPDATE device_runs SET status = 'cancelled', reason = 'The device was removed.', completed_at = :now"
            " WHERE device_id = :device AND completed_at IS NULL RETURNING deployment_id"
        ),
        {"device": device_id, "now": moment_parameter(session, now)},
    )
    return sorted(set(rows.scalars()))
