"""Rollouts under way: opens waves, gives turns, stops what has failed too often or whose window has closed.

What is to be done is decided in `rollout`. Each step is taken under the deployment's lock, so that of two processes
one takes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text

from deployx.db.bulk import any_of, ids_parameter, moment_parameter, row_lock, update_rows
from deployx.db.database import Session
from deployx.db.schema import deployments, device_runs
from deployx.lifecycle import RUN_FAILURES, RUN_NOT_REACHED, RUN_ON_DEVICE, RUN_OPEN, RunStatus
from deployx.timing.windows import State as Window
from deployx.work import calendars, waiting
from deployx.work.rollout import Halt, OpenWave, Pause, Progress, Rollout, next_step

WINDOW_CLOSED = "The execution's window closed before this device had started."

_NOT_STARTED = "'queued', 'waiting'"
_AWAY = ("device", "earlier")
_BUSY = RUN_ON_DEVICE | {RunStatus.QUEUED}
_INSTANTS = {name: deployments.c[name].type for name in ("next_wave_at", "closes_at")}

State = dict[str, Any]
"""A deployment's row, as a dict that follows the steps taken."""


async def advance(session: Session, deployment_ids: Iterable[int], *, now: datetime) -> list[int]:
    """Take every step that is due in the rollouts of these deployments; answers those in which runs were moved."""
    touched = []
    for state in await _lock(session, sorted(set(deployment_ids)), now=now):
        if await _closed(session, state, now=now):
            await _halt(session, state, WINDOW_CLOSED, now=now)
            touched.append(state["id"])
        elif state["rollout"] is not None and await _advance(session, state, now=now):
            touched.append(state["id"])
        await _note_next_look(session, state, now=now)
    return touched


async def any_due(session: Session, *, now: datetime) -> bool:
    """Whether a deployment has a date: a pause is over, a device's turn has come, a window closes."""
    rows = await session.execute(
        text("SELECT 1 FROM deployments WHERE look_at <= :now LIMIT 1"), {"now": moment_parameter(session, now)}
    )
    return rows.first() is not None


async def take_due(session: Session, *, now: datetime) -> list[int]:
    """Deployments that have a date, which is used up by this: `advance` gives those a new one that need it.

    One in which nothing is left to decide would else be asked for again and again, and hold up others.
    """
    rows = await session.execute(
        text(
            "UPDATE deployments SET look_at = NULL WHERE look_at <= :now AND id IN"
            " (SELECT id FROM deployments WHERE look_at <= :now ORDER BY look_at LIMIT 500) RETURNING id"
        ),
        {"now": moment_parameter(session, now)},
    )
    return sorted(rows.scalars())


async def waves_of(session: Session, deployment_ids: Sequence[int]) -> dict[int, list[tuple[int, dict[str, int]]]]:
    """The waves of each deployment in their order, each with its devices by the status of their last attempt."""
    rows = await session.execute(
        text(
            "SELECT deployment_id, wave, status, count(*) AS n FROM device_runs WHERE is_last AND "
            + any_of(session, "deployment_id", "ids")
            + " GROUP BY deployment_id, wave, status ORDER BY deployment_id, wave, status"
        ),
        {"ids": ids_parameter(session, deployment_ids)},
    )
    found: dict[int, dict[int, dict[str, int]]] = {}
    for row in rows:
        found.setdefault(row.deployment_id, {}).setdefault(row.wave, {})[row.status] = row.n
    return {deployment_id: list(waves.items()) for deployment_id, waves in found.items()}


async def _lock(session: Session, deployment_ids: Sequence[int], *, now: datetime) -> list[State]:
    """Those in which something has yet to start: all that a rollout can still decide about."""
    if not deployment_ids:
        return []
    rows = await session.execute(
        text(
            "SELECT id, execution_id, rollout, opened_wave, next_wave_at, closes_at"
            " FROM deployments WHERE completed_at IS NULL AND cancel_requested_at IS NULL"
            " AND halted_reason IS NULL AND (rollout IS NOT NULL OR closes_at <= :now)"
            " AND EXISTS (SELECT 1 FROM device_runs r WHERE r.deployment_id = deployments.id"
            f" AND r.status IN ({_NOT_STARTED})) AND "
            + any_of(session, "id", "ids")
            + " ORDER BY id "
            + row_lock(session, "deployments")
        ).columns(rollout=deployments.c.rollout.type, **_INSTANTS),
        {"ids": ids_parameter(session, deployment_ids), "now": moment_parameter(session, now)},
    )
    return [dict(row) for row in rows.mappings()]


async def _advance(session: Session, state: State, *, now: datetime) -> bool:
    rollout = Rollout.of(state["rollout"])
    moved = False
    while True:
        moved |= await _give_turns(session, state, rollout, now=now)
        match next_step(rollout, await _progress(session, state), now=now):
            case Halt(reason):
                await _halt(session, state, reason, now=now)
                return True
            case OpenWave():
                await _open_wave(session, state, rollout, now=now)
                moved = True
            case Pause(until):
                state["next_wave_at"] = until
                return moved
            case None:
                return moved


async def _progress(session: Session, state: State) -> Progress:
    rows = await session.execute(
        text(
            "SELECT wave, status, waits_for, count(*) AS n FROM device_runs WHERE deployment_id = :id AND is_last"
            " GROUP BY wave, status, waits_for"
        ),
        {"id": state["id"]},
    )
    return _summed(state, rows.all())


def _summed(state: Mapping[str, Any], rows: Sequence[Any]) -> Progress:
    """The counts that the decision reads. Pure."""
    opened = state["opened_wave"]
    counts: Counter[str] = Counter()
    for row in rows:
        counts["devices"] += row.n
        counts["unopened"] += row.n * (row.wave >= opened)
        failed = row.status in RUN_FAILURES
        failed |= bool(state["rollout"]["count_offline"]) and row.status in RUN_NOT_REACHED
        counts["failed"] += row.n * failed
        if row.wave == opened - 1 and row.status in RUN_OPEN:
            away = row.status == RunStatus.WAITING and row.waits_for in _AWAY
            counts["away" if away else "busy"] += row.n
    names = ("devices", "failed", "busy", "away", "unopened")
    return Progress(opened=opened, next_wave_at=state["next_wave_at"], **{name: counts[name] for name in names})


async def _open_wave(session: Session, state: State, rollout: Rollout, *, now: datetime) -> None:
    """Give the devices of the next wave their moments: now, or spread over the splay."""
    rows = await session.execute(
        text(
            "SELECT id FROM device_runs WHERE deployment_id = :id AND wave = :wave AND status = 'waiting'"
            " AND waits_for = 'wave' ORDER BY device_id"
        ),
        {"id": state["id"], "wave": state["opened_wave"]},
    )
    ids = list(rows.scalars())
    turns = [
        (run_id, waiting.IN_ROLLOUT, "turn", now + rollout.offset(place, len(ids))) for place, run_id in enumerate(ids)
    ]
    await update_rows(session, device_runs, ("reason", "waits_for", "opens_at"), turns, guard="status = 'waiting'")
    state["opened_wave"] += 1
    state["next_wave_at"] = None


async def _give_turns(session: Session, state: State, rollout: Rollout, *, now: datetime) -> bool:
    """Let devices start whose moment has come, as many at once as the rollout allows; answers whether any did.

    Those that are away take no place.
    """
    places: int | None = None
    if rollout.max_concurrent is not None:
        places = max(0, rollout.max_concurrent - await _busy(session, state))
    turn = "r.deployment_id = :id AND r.waits_for = 'turn' AND r.opens_at <= :now"
    about = {"id": state["id"], "now": moment_parameter(session, now)}
    chosen = await waiting.reachable(session, f"{turn} AND d.status <> 'online'", about)
    chosen += await waiting.reachable(session, f"{turn} AND d.status = 'online'", about, limit=places)
    await waiting.reach(session, chosen, now=now)
    return bool(chosen)


async def _busy(session: Session, state: State) -> int:
    statuses = ", ".join(f"'{status}'" for status in sorted(_BUSY))
    rows = await session.execute(
        text(f"SELECT count(*) FROM device_runs WHERE deployment_id = :id AND status IN ({statuses})"),
        {"id": state["id"]},
    )
    return int(rows.scalar_one())


async def _halt(session: Session, state: State, reason: str, *, now: datetime) -> None:
    """No further device starts; those running finish."""
    state["halted_reason"] = reason
    await session.execute(
        text(
            "UPDATE device_runs SET status = 'halted', reason = :reason, completed_at = :now, waits_for = NULL,"
            " opens_at = NULL, deadline_at = NULL WHERE deployment_id = :id"
            f" AND status IN ({_NOT_STARTED})"
        ),
        {"id": state["id"], "reason": reason, "now": moment_parameter(session, now)},
    )


async def _closed(session: Session, state: State, *, now: datetime) -> bool:
    """Whether the windows of the task have closed; where they were changed meanwhile, notes when they do now."""
    if state["closes_at"] is None or state["closes_at"] > now:
        return False
    rows = await session.execute(
        text("SELECT task_id FROM scheduled_task_executions WHERE id = :id"), {"id": state["execution_id"]}
    )
    task_id = rows.scalar_one()
    calendar = (await calendars.of(session, calendars.TASKS, [task_id])).get(task_id)
    is_open, until = (Window.OPEN, None) if calendar is None else calendar.state(now)
    state["closes_at"] = until if is_open is Window.OPEN else None
    return is_open is not Window.OPEN


async def _note_next_look(session: Session, state: State, *, now: datetime) -> None:
    moments = [state["closes_at"], state["next_wave_at"]]
    if state["rollout"] is not None:
        moments.append(await _next_turn(session, state, now=now))
    halted = state.get("halted_reason")
    look_at = None if halted else min((moment for moment in moments if moment is not None), default=None)
    values = (state["id"], state["opened_wave"], state["next_wave_at"], state["closes_at"], halted, look_at)
    columns = ("opened_wave", "next_wave_at", "closes_at", "halted_reason", "look_at")
    await update_rows(session, deployments, columns, [values])


async def _next_turn(session: Session, state: State, *, now: datetime) -> datetime | None:
    rows = await session.execute(
        text(
            "SELECT min(opens_at) AS at FROM device_runs WHERE deployment_id = :id AND status = 'waiting'"
            " AND waits_for = 'turn' AND opens_at > :now"
        ).columns(at=device_runs.c.opens_at.type),
        {"id": state["id"], "now": moment_parameter(session, now)},
    )
    found: datetime | None = rows.scalar_one()
    return found
