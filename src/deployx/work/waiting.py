"""Waiting of device runs: for a device, a window, a retry; and what has waited or been silent for too long.

What a run waits for (`waits_for`): `device` that is away; `return`, its place among the devices that came back;
`window` of the device's groups; `retry`, its delay; `earlier`, news of an attempt that was lost; in a rollout `wave`
and `turn`, which `rollouts` moves. Every move is one guarded, set-based statement, as in `device_runs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping, text

from deployx.db.bulk import any_of, ids_parameter, moment_parameter, row_lock, update_rows
from deployx.db.database import Session
from deployx.db.schema import device_runs
from deployx.lifecycle import RunStatus
from deployx.timing.instants import format_instant
from deployx.work import calendars
from deployx.work.pacing import Pace

CANCEL_RECEIPT_WITHIN = timedelta(seconds=60)
RECONNECTS_WITHIN = timedelta(seconds=75)
"""Work that may not wait for its device still waits this long when a connection breaks or the server restarts."""
DEVICE_OFFLINE = "The device is offline."
MAY_NOT_WAIT = "The device was offline, and the task does not wait for it."
IN_ROLLOUT = "It waits for its turn in the rollout."
NEVER = timedelta(days=800)
OPENED_AT_ONCE = 1000

_INSTANT = device_runs.c.queued_at.type
_OPENS = "waits_for IN ('return', 'window', 'retry')"
"""What moves at its `opens_at` by itself."""
_MOVED = ("status", "reason", "deadline_at", "completed_at", "waits_for", "opens_at")


def state_of_absent(
    offline_policy: str, deadline_seconds: int, *, now: datetime
) -> tuple[str, str, datetime | None, datetime | None, str | None]:
    """Status, reason, deadline_at, completed_at and waits_for of a run whose turn has come while its device is away."""
    if offline_policy == "fail":
        return RunStatus.EXPIRED.value, MAY_NOT_WAIT, None, now, None
    return RunStatus.WAITING.value, DEVICE_OFFLINE, now + timedelta(seconds=deadline_seconds), None, "device"


async def reach(session: Session, runs: Sequence[Any], *, now: datetime) -> None:
    """The turn of these waiting runs has come: queued where the device is online, else they wait for it.

    Each of `runs` has id, waits_for, deadline_at, online, offline_policy and offline_deadline_seconds.
    """
    moves: list[tuple[Any, ...]] = []
    for run in runs:
        if run.online:
            moves.append((run.id, RunStatus.QUEUED.value, None, None, None, None, None))
        elif run.waits_for == "window":  # counted on: it has waited for its device's window since its turn came
            moves.append((run.id, RunStatus.WAITING.value, DEVICE_OFFLINE, run.deadline_at, None, "device", None))
        else:
            state = state_of_absent(run.offline_policy, run.offline_deadline_seconds, now=now)
            moves.append((run.id, *state, None))
    await update_rows(session, device_runs, _MOVED, moves, guard="status = 'waiting'")
    began = [(run.id, now) for run in runs if run.waits_for != "window"]
    await update_rows(session, device_runs, ("queued_at",), began, guard="completed_at IS NULL")


async def device_came(session: Session, device_ids: Sequence[int], pace: Pace, *, now: datetime) -> list[int]:
    """Work that waited for these devices is queued at the pace; answers deployments whose rollouts look again."""
    rows = await session.execute(
        text(
            "SELECT r.id, r.device_id, r.deployment_id, p.rollout IS NOT NULL AS in_rollout FROM device_runs r"
            " JOIN deployments p ON p.id = r.deployment_id WHERE r.status = 'waiting' AND r.waits_for = 'device' AND "
            + any_of(session, "r.device_id", "ids")
            + " ORDER BY r.id "
            + row_lock(session, "r")
        ),
        {"ids": ids_parameter(session, device_ids)},
    )
    found = rows.all()
    returned = sorted({row.device_id for row in found})
    slots = dict(zip(returned, pace.slots(len(returned), now=now), strict=True))
    moves = [_returned(row, slots[row.device_id], now) for row in found]
    await update_rows(session, device_runs, _MOVED, moves, guard="status = 'waiting'")
    return sorted({row.deployment_id for row in found if row.in_rollout})


def _returned(row: Any, slot: datetime, now: datetime) -> tuple[Any, ...]:
    if row.in_rollout:
        return row.id, RunStatus.WAITING.value, IN_ROLLOUT, None, None, "turn", slot
    if slot <= now:
        return row.id, RunStatus.QUEUED.value, None, None, None, None, None
    reason = f"The device is back; with many others, it gets its work at {format_instant(slot)}."
    return row.id, RunStatus.WAITING.value, reason, None, None, "return", slot


async def any_overlooked(session: Session) -> bool:
    """Whether something waits for a device that is online."""
    rows = await session.execute(
        text(
            "SELECT 1 FROM device_runs r JOIN devices d ON d.id = r.device_id"
            " WHERE r.status = 'waiting' AND r.waits_for = 'device' AND d.status = 'online' LIMIT 1"
        )
    )
    return rows.first() is not None


async def overlooked(session: Session) -> list[int]:
    """Devices that are online and for which something waits: on PostgreSQL one may connect while a run is queued."""
    rows = await session.execute(
        text(
            "SELECT DISTINCT r.device_id FROM device_runs r JOIN devices d ON d.id = r.device_id"
            " WHERE r.status = 'waiting' AND r.waits_for = 'device' AND d.status = 'online'"
        )
    )
    return sorted(rows.scalars())


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
    waits = RunStatus.WAITING.value
    moves = [(row.id, waits, DEVICE_OFFLINE, now + _patience(row), None, "device", None) for row in rows]
    await update_rows(session, device_runs, _MOVED, moves, guard="status = 'queued'")


def _patience(row: Any) -> timedelta:
    if row.offline_policy == "fail":
        return RECONNECTS_WITHIN
    return timedelta(seconds=row.offline_deadline_seconds)


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
            opening = opens_at or now + NEVER
            moves.append((run["run_id"], RunStatus.WAITING.value, reason, deadline_at, None, "window", opening))
    await update_rows(session, device_runs, _MOVED, moves, guard="status = 'queued'")
    return {move[0] for move in moves}


async def any_opens(session: Session, *, now: datetime) -> bool:
    """Whether a window opens, a delay is over or a returned device's place has come."""
    rows = await session.execute(
        text(f"SELECT 1 FROM device_runs WHERE status = 'waiting' AND opens_at <= :now AND {_OPENS} LIMIT 1"),
        {"now": moment_parameter(session, now)},
    )
    return rows.first() is not None


async def reachable(
    session: Session, condition: str, parameters: dict[str, Any], *, limit: int | None = None
) -> list[Any]:
    """Waiting runs for `reach`, in the order of their devices' ids; in `condition`, r is the run and d the device."""
    rows = await session.execute(
        text(
            "SELECT r.id, r.deployment_id, r.waits_for, r.deadline_at, d.status = 'online' AS online, p.offline_policy,"
            " p.offline_deadline_seconds, p.rollout IS NOT NULL AS in_rollout FROM device_runs r"
            " JOIN devices d ON d.id = r.device_id JOIN deployments p ON p.id = r.deployment_id"
            f" WHERE r.status = 'waiting' AND {condition} ORDER BY r.device_id, r.id"
            f" {'' if limit is None else 'LIMIT :limit'} {row_lock(session, 'r')}"
        ).columns(deadline_at=_INSTANT),
        parameters if limit is None else parameters | {"limit": limit},
    )
    return list(rows.all())


async def open_due(session: Session, *, now: datetime) -> list[int]:
    """Move what any_opens asks about; answers deployments that may have ended, or whose rollouts are to go on."""
    opens = f"r.opens_at <= :now AND r.{_OPENS}"
    rows = await reachable(session, opens, {"now": moment_parameter(session, now)}, limit=OPENED_AT_ONCE)
    in_rollouts = [row for row in rows if row.in_rollout and row.waits_for == "retry"]
    await reach(session, [row for row in rows if row not in in_rollouts], now=now)
    turns = [(row.id, IN_ROLLOUT, "turn") for row in in_rollouts]
    await update_rows(session, device_runs, ("reason", "waits_for"), turns, guard="status = 'waiting'")
    return sorted({row.deployment_id for row in rows})


async def any_to_watch(session: Session) -> bool:
    """Whether any run waits, is being cancelled, or is on an offline device, or a rollout has a date: one question."""
    rows = await session.execute(
        text(
            "SELECT EXISTS (SELECT 1 FROM device_runs WHERE status = 'waiting')"
            " OR EXISTS (SELECT 1 FROM device_runs WHERE status = 'cancelling')"
            " OR EXISTS (SELECT 1 FROM deployments WHERE look_at IS NOT NULL)"
            " OR EXISTS (SELECT 1 FROM devices d JOIN device_runs r ON r.device_id = d.id AND r.completed_at IS NULL"
            " WHERE d.status = 'offline' AND r.status IN ('dispatched', 'running'))"
        )
    )
    return bool(rows.scalar())


_NOBODY_CAME = {
    "window": "No window of the device's groups opened before the deadline.",
    "earlier": "The device did not come back before the deadline to tell what became of the earlier attempt.",
}


async def overdue(session: Session, *, now: datetime) -> list[tuple[int, int, RunStatus, str]]:
    """Open runs that are to end from this side: (run, deployment, status, reason).

    Waiting past its deadline: expired. On a device that has been silent too long: lost. Cancelled without a receipt.
    """
    found: list[tuple[int, int, RunStatus, str]] = []
    moment = moment_parameter(session, now)
    waiting = await session.execute(
        text("SELECT id, deployment_id, waits_for FROM device_runs WHERE status = 'waiting' AND deadline_at <= :now"),
        {"now": moment},
    )
    for row in waiting:
        why = _NOBODY_CAME.get(row.waits_for, "The device did not come online before the deadline.")
        found.append((row.id, row.deployment_id, RunStatus.EXPIRED, why))
    cancelling = await session.execute(
        text("SELECT id, deployment_id FROM device_runs WHERE status = 'cancelling' AND cancel_requested_at <= :since"),
        {"since": moment_parameter(session, now - CANCEL_RECEIPT_WITHIN)},
    )
    reason = "The device did not confirm the cancellation within 60 seconds."
    found += [(row.id, row.deployment_id, RunStatus.CANCEL_UNCONFIRMED, reason) for row in cancelling]
    return found + await _silent(session, now=now)


async def _silent(session: Session, *, now: datetime) -> list[tuple[int, int, RunStatus, str]]:
    rows = await session.execute(
        text(
            "SELECT r.id, r.deployment_id, d.last_seen, r.dispatched_at, p.lost_after_seconds FROM devices d"
            " JOIN device_runs r ON r.device_id = d.id AND r.completed_at IS NULL"
            " JOIN deployments p ON p.id = r.deployment_id"
            " WHERE d.status = 'offline' AND r.status IN ('dispatched', 'running')"
            " AND (d.last_seen IS NULL OR d.last_seen <= :now)"
        ).columns(last_seen=_INSTANT, dispatched_at=_INSTANT),
        {"now": moment_parameter(session, now)},
    )
    found = []
    for row in rows:
        heard_at = max(row.dispatched_at, row.last_seen or row.dispatched_at)
        if now - heard_at > timedelta(seconds=row.lost_after_seconds):
            reason = f"The device has been silent for more than {row.lost_after_seconds} seconds while it had the work."
            found.append((row.id, row.deployment_id, RunStatus.LOST, reason))
    return found
