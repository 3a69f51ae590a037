"""Attempts: runs a device's share again where the retry policy says so, and never over one whose end is not known.

Which ending is tried again, and when, is decided in `retry`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text

from deployx.db.bulk import allocate_ids, any_of, ids_parameter, insert_rows, update_rows
from deployx.db.database import Session
from deployx.db.schema import deployments, device_runs
from deployx.lifecycle import RunStatus
from deployx.timing.instants import format_instant
from deployx.work.device_runs import LOST_FOR_EVER, order_id
from deployx.work.retry import Retry

SUCCEEDED_LATE = "An earlier attempt had succeeded: its result came late."
NOT_STARTED = {"status": "not_started", "reason": "The device does not know this order: it never started."}

_ENDED = ("status", "reason", "completed_at", "waits_for", "opens_at", "deadline_at")
_TYPES = {"retry": deployments.c.retry.type} | {
    name: device_runs.c[name].type for name in ("completed_at", "late_result")
}
_COLUMNS = (
    "id", "deployment_id", "device_id", "attempt", "wave", "order_id", "status", "reason", "queued_at", "deadline_at",
    "waits_for", "opens_at", "truncated",
)  # fmt: skip


async def arrange(session: Session, installation_id: str, deployment_ids: Sequence[int], *, now: datetime) -> None:
    """Write the next attempt of each run of these deployments that ended and is to be tried again. Safe to repeat."""
    rows = await session.execute(
        text(
            "SELECT r.id, r.deployment_id, r.device_id, r.attempt, r.wave, r.order_id, r.status, r.completed_at,"
            " r.late_result, p.retry, p.run_key, p.offline_deadline_seconds,"
            " EXISTS (SELECT 1 FROM device_runs l WHERE l.deployment_id = r.deployment_id"
            " AND l.device_id = r.device_id AND l.status = 'lost' AND l.late_result IS NULL) AS unknown"
            " FROM deployments p JOIN device_runs r ON r.deployment_id = p.id"
            " WHERE p.retry IS NOT NULL AND p.completed_at IS NULL AND p.cancel_requested_at IS NULL"
            " AND p.halted_reason IS NULL AND r.completed_at IS NOT NULL AND r.is_last AND r.status <> 'succeeded' AND "
            + any_of(session, "p.id", "ids")
        ).columns(**_TYPES),
        {"ids": ids_parameter(session, deployment_ids)},
    )
    again = [row for row in rows if Retry.of(row.retry).again(row.status, row.attempt) and not _is_unknowable(row)]
    if not again:
        return
    ids = await allocate_ids(session, device_runs, len(again))
    attempts = [_next(identity, row, installation_id) for identity, row in zip(ids, again, strict=True)]
    await insert_rows(session, device_runs, _COLUMNS, attempts)
    await update_rows(session, device_runs, ("is_last",), [(row.id, False) for row in again])


def _is_unknowable(row: Any) -> bool:
    """Lost with the device's journal: nobody can tell any more whether it ran, so it must not run again."""
    return bool(row.late_result) and row.late_result["status"] == LOST_FOR_EVER["status"]


def _next(identity: int, row: Any, installation_id: str) -> tuple[Any, ...]:
    """The row of the attempt after `row`, whose delay counts from the end of that."""
    policy, attempt = Retry.of(row.retry), row.attempt + 1
    order = order_id(installation_id, row.run_key, row.device_id, attempt)
    starts_at = row.completed_at + policy.delay(row.attempt, order)
    reason = f"Attempt {attempt} of {policy.max_attempts} starts at {format_instant(starts_at)}."
    deadline_at = None
    if row.unknown:
        reason = f"Attempt {attempt} of {policy.max_attempts} waits for news of the one that was lost."
        deadline_at = starts_at + timedelta(seconds=row.offline_deadline_seconds)
    return (
        identity, row.deployment_id, row.device_id, attempt, row.wave, order, RunStatus.WAITING.value, reason,
        row.completed_at, deadline_at, "earlier" if row.unknown else "retry", starts_at, False,
    )  # fmt: skip


async def waiting_for_news(session: Session, device_ids: Iterable[int]) -> list[Any]:
    """Attempts on these devices that wait for news of an earlier one: with the lost order's id and journal."""
    rows = await session.execute(
        text(
            "SELECT r.id, r.deployment_id, r.device_id, r.attempt, l.id AS lost_id, l.order_id, l.journal_id"
            " FROM device_runs r JOIN device_runs l ON l.deployment_id = r.deployment_id"
            " AND l.device_id = r.device_id AND l.status = 'lost' AND l.late_result IS NULL"
            " WHERE r.status = 'waiting' AND r.waits_for = 'earlier' AND "
            + any_of(session, "r.device_id", "ids")
            + " ORDER BY r.id"
        ),
        {"ids": ids_parameter(session, device_ids)},
    )
    return list(rows.all())


@dataclass(frozen=True, slots=True)
class News:
    """What a returned device knows: its journal, and the orders that it has not finished or not reported."""

    journal_id: str
    unfinished: frozenset[str]


async def hear(session: Session, news: Mapping[int, News], *, now: datetime) -> list[int]:
    """Devices came back: what they do not know never started; what another journal knew stays unknown for ever.

    Answers the deployments that may have ended with that.
    """
    told, unknown, touched = [], [], []
    for row in await waiting_for_news(session, news):
        known = news[row.device_id]
        touched.append(row.deployment_id)
        if row.journal_id != known.journal_id:
            unknown.append((row.id, *_ended(RunStatus.LOST, LOST_FOR_EVER["reason"], now), LOST_FOR_EVER))
            told.append((row.lost_id, LOST_FOR_EVER))
        elif row.order_id not in known.unfinished:
            told.append((row.lost_id, NOT_STARTED))
    await update_rows(session, device_runs, ("late_result",), told, guard="late_result IS NULL")
    await update_rows(session, device_runs, (*_ENDED, "late_result"), unknown, guard="status = 'waiting'")
    await _release(session, touched, now=now)
    return touched


async def take_late_results(session: Session, succeeded: Mapping[int, bool], *, now: datetime) -> list[int]:
    """Late results came of these lost runs, which succeeded or not: attempts that waited for them go on, or succeed.

    Answers the deployments that may have ended with that.
    """
    rows = await session.execute(
        text(
            "SELECT r.id, r.deployment_id, l.id AS lost_id FROM device_runs l JOIN device_runs r"
            " ON r.deployment_id = l.deployment_id AND r.device_id = l.device_id"
            " AND r.status = 'waiting' AND r.waits_for = 'earlier' WHERE " + any_of(session, "l.id", "ids")
        ),
        {"ids": ids_parameter(session, succeeded)},
    )
    found = rows.all()
    ending = _ended(RunStatus.SUCCEEDED, SUCCEEDED_LATE, now)
    done = [(row.id, *ending) for row in found if succeeded[row.lost_id]]
    await update_rows(session, device_runs, _ENDED, done, guard="status = 'waiting'")
    touched = sorted({row.deployment_id for row in found})
    await _release(session, touched, now=now)
    return touched


def _ended(status: RunStatus, reason: str, now: datetime) -> tuple[Any, ...]:
    return status.value, reason, now, None, None, None


async def _release(session: Session, deployment_ids: Sequence[int], *, now: datetime) -> None:
    """Let attempts go on of which every earlier one is known."""
    if deployment_ids:
        await session.execute(
            text(
                "UPDATE device_runs SET waits_for = 'retry', deadline_at = NULL WHERE status = 'waiting'"
                " AND waits_for = 'earlier' AND NOT EXISTS (SELECT 1 FROM device_runs l"
                " WHERE l.deployment_id = device_runs.deployment_id AND l.device_id = device_runs.device_id"
                f" AND l.status = 'lost' AND l.late_result IS NULL) AND {any_of(session, 'deployment_id', 'ids')}"
            ),
            {"ids": ids_parameter(session, deployment_ids)},
        )
