"""Waiting of device runs: for a device that is away, for a window to open; and what has waited or been silent too long.

Every move is one guarded, set-based statement, as in `device_runs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, text

from deployx.db.bulk import any_of, ids_parameter, moment_parameter, update_rows
from deployx.db.database import Session
from deployx.db.schema import device_runs
from deployx.lifecycle import RunStatus
from deployx.work import calendars

CANCEL_RECEIPT_WITHIN = timedelta(seconds=60)
DEVICE_OFFLINE = "The device is offline."
NEVER = timedelta(days=800)

_INSTANT = device_runs.c.queued_at.type


async def device_came(session: Session, device_ids: Sequence[int]) -> int:
    """Work that waited for these devices is queued now; answers how many runs."""
    return await _move_waiting(
        session, any_of(session, "device_id", "ids"), {"ids": ids_parameter(session, device_ids)}
    )


async def any_overlooked(session: Session) -> bool:
    """Whether something waits for a device that is online."""
    rows = await session.execute(
        text(
            "SELECT 1 FROM device_runs r JOIN devices d ON d.id = r.device_id"
            " WHERE r.status = 'waiting' AND r.opens_at IS NULL AND d.status = 'online' LIMIT 1"
        )
    )
    return rows.first() is not None


async def queue_overlooked(session: Session) -> int:
    """Queue what waits for a device that is online: on PostgreSQL a run may be queued while its device connects."""
    return await _move_waiting(
        session, "opens_at IS NULL AND device_id IN (SELECT id FROM devices WHERE status = 'online')", {}
    )


async def _move_waiting(session: Session, condition: str, parameters: dict[str, Any]) -> int:
    moved = await session.execute(
        text(
            "UPDATE device_runs SET status = 'queued', reason = NULL, deadline_at = NULL, opens_at = NULL"
            f" WHERE status = 'waiting' AND {condition}"
        ),
        parameters,
    )
    return moved.rowcount


async def devices_left(session: Session, device_ids: Sequence[int], *, now: datetime) -> None:
    """Work queued for these devices waits for them again, each for its deployment's offline deadline from now."""
    rows = await session.execute(
        text(
            "SELECT r.id, p.offline_policy, p.offline_deadline_seconds FROM device_runs r"
            " JOIN deployments p ON p.id = r.deployment_id WHERE r.status = 'queued' AND "
            + any_of(session, "r.device_id", "ids")
        ),
        {"ids": ids_parameter(session, device_ids)},
    )
    moves = [
        (
            row.id,
            RunStatus.WAITING.value,
            DEVICE_OFFLINE,
            now + _patience(row.offline_policy, row.offline_deadline_seconds),
        )
        for row in rows
    ]
    await update_rows(session, device_runs, ("status", "reason", "deadline_at"), moves, guard="status = 'queued'")


def _patience(offline_policy: str, deadline_seconds: int) -> timedelta:
    return timedelta(0) if offline_policy == "fail" else timedelta(seconds=deadline_seconds)


async def wait_for_windows(session: Session, runs: Sequence[RowMapping], *, now: datetime) -> set[int]:
    """Put back what a window or blackout of the device's groups forbids now, until it opens or the deadline comes."""
    used = await session.execute(
        text("SELECT EXISTS (SELECT 1 FROM group_windows) OR EXISTS (SELECT 1 FROM group_blackouts)")
    )
    if not runs or not used.scalar():
        return set()
    deciding = await calendars.of_devices(session, sorted({run["device_id"] for run in runs}))
    moves = []
    for run in runs:
        gate = deciding.get(run["device_id"])
        closed = gate.closed_until(now) if gate else None
        if closed is not None:
            opens_at, groups = closed
            deadline_at = run["queued_at"] + timedelta(seconds=run["offline_deadline_seconds"])
            reason = f"Outside the windows, or in a blackout, of the group {groups}."
            moves.append((run["run_id"], RunStatus.WAITING.value, reason, opens_at or now + NEVER, deadline_at))
    columns = ("status", "reason", "opens_at", "deadline_at")
    await update_rows(session, device_runs, columns, moves, guard="status = 'queued'")
    return {move[0] for move in moves}


async def windows_opened(session: Session, *, now: datetime) -> int:
    """Queue what waited for a window that opens now; answers how many runs."""
    moment = {"now": moment_parameter(session, now), "offline": DEVICE_OFFLINE}
    online = "device_id IN (SELECT id FROM devices WHERE status = 'online')"
    opened = await _move_waiting(session, f"opens_at <= :now AND {online}", {"now": moment["now"]})
    await session.execute(
        text("UPDATE device_runs SET opens_at = NULL, reason = :offline WHERE status = 'waiting' AND opens_at <= :now"),
        moment,
    )
    return opened


async def any_window_opens(session: Session, *, now: datetime) -> bool:
    rows = await session.execute(
        text("SELECT 1 FROM device_runs WHERE status = 'waiting' AND opens_at <= :now LIMIT 1"),
        {"now": moment_parameter(session, now)},
    )
    return rows.first() is not None


async def any_to_watch(session: Session) -> bool:
    """Whether any run waits, is being cancelled, or is on an offline device: one cheap question for each second."""
    rows = await session.execute(
        text(
            "SELECT EXISTS (SELECT 1 FROM device_runs WHERE status = 'waiting')"
            " OR EXISTS (SELECT 1 FROM device_runs WHERE status = 'cancelling')"
            " OR EXISTS (SELECT 1 FROM devices d JOIN device_runs r ON r.device_id = d.id AND r.completed_at IS NULL"
            " WHERE d.status = 'offline' AND r.status IN ('dispatched', 'running'))"
        )
    )
    return bool(rows.scalar())


async def overdue(session: Session, *, now: datetime) -> list[tuple[int, int, RunStatus, str]]:
    """Open runs that are to end from this side: (run, deployment, status, reason).

    Waiting past its deadline: expired. On a device that has been silent too long: lost. Cancelled without a receipt.
    """
    found: list[tuple[int, int, RunStatus, str]] = []
    moment = moment_parameter(session, now)
    waiting = await session.execute(
        text("SELECT id, deployment_id, opens_at FROM device_runs WHERE status = 'waiting' AND deadline_at <= :now"),
        {"now": moment},
    )
    for row in waiting:
        what = "The device did not come online" if row.opens_at is None else "No window of the device's groups opened"
        found.append((row.id, row.deployment_id, RunStatus.EXPIRED, f"{what} before the deadline."))
    cancelling = await session.execute(
        text("SELECT id, deployment_id FROM device_runs WHERE status = 'cancelling' AND cancel_requested_at <= :since"),
        {"since": moment_parameter(session, now - CANCEL_RECEIPT_WITHIN)},
    )
    reason = "The device did not confirm the cancellation within 60 seconds."
    found += [(row.id, row.deployment_id, RunStatus.CANCEL_UNCONFIRMED, reason) for row in cancelling]
    silent = await session.execute(
        text(
            "SELECT r.id, r.deployment_id, d.last_seen, r.dispatched_at, p.lost_after_seconds FROM devices d"
            " JOIN device_runs r ON r.device_id = d.id AND r.completed_at IS NULL"
            " JOIN deployments p ON p.id = r.deployment_id"
            " WHERE d.status = 'offline' AND r.status IN ('dispatched', 'running')"
            " AND (d.last_seen IS NULL OR d.last_seen <= :now)"
        ).columns(last_seen=_INSTANT, dispatched_at=_INSTANT),
        {"now": moment},
    )
    for row in silent:
        heard_at = max(row.dispatched_at, row.last_seen or row.dispatched_at)
        if now - heard_at > timedelta(seconds=row.lost_after_seconds):
            reason = f"The device has been silent for more than {row.lost_after_seconds} seconds while it had the work."
            found.append((row.id, row.deployment_id, RunStatus.LOST, reason))
    return found
