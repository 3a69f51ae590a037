"""Deployments: one sending of a payload to a set of devices, the record behind every execution and ad-hoc run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import RowMapping, text

from deployx.db.bulk import allocate_ids, any_of, ids_parameter, insert_rows, row_lock, update_rows
from deployx.db.database import Session
from deployx.db.schema import deployment_target_devices, deployment_target_groups, deployments, payloads
from deployx.errors import Conflict
from deployx.fleet.resolution import DEPLOYMENT_TARGETS, Owner, resolve
from deployx.lifecycle import RUN_FAILURES, RUN_OPEN, DeploymentStatus, RunStatus
from deployx.work import device_runs

_COLUMNS = (
    "id", "deployment_type", "deployment_name", "status", "payload_id", "execution_id", "run_key", "offline_policy",
    "offline_deadline_seconds", "lost_after_seconds", "created_by", "created_at", "started_at",
)  # fmt: skip

_OPEN_RUNS = ", ".join(f"'{status}'" for status in sorted(RUN_OPEN))


@dataclass(frozen=True, slots=True)
class Sending:
    """A deployment to start; `devices` are (device id, online now). `run_key` is what its order ids derive from."""

    deployment_type: str
    deployment_name: str
    payload_id: int
    execution_id: int | None
    run_key: str
    offline_policy: str
    offline_deadline_seconds: int
    lost_after_seconds: int
    created_by: int
    devices: Sequence[tuple[int, bool]]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a deployment ended, for the execution behind it."""

    deployment_id: int
    execution_id: int | None
    status: DeploymentStatus
    counts: Mapping[str, int]
    error_message: str | None


async def start(session: Session, installation_id: str, sendings: Sequence[Sending], *, now: datetime) -> list[int]:
    """Insert deployments and one run per device of each, in two bulk statements; answers the deployments' ids."""
    ids = await allocate_ids(session, deployments, len(sendings))
    rows = (
        (identity, one.deployment_type, one.deployment_name, DeploymentStatus.RUNNING.value, one.payload_id,
         one.execution_id, one.run_key, one.offline_policy, one.offline_deadline_seconds, one.lost_after_seconds,
         one.created_by, now, now)
        for identity, one in zip(ids, sendings, strict=True)
    )  # fmt: skip
    await insert_rows(session, deployments, _COLUMNS, rows)
    runs = [run for identity, one in zip(ids, sendings, strict=True) for run in _runs(identity, one)]
    await device_runs.queue(session, installation_id, runs, now=now)
    return ids


@dataclass(frozen=True, slots=True)
class Request:
    """An ad-hoc deployment as asked for."""

    deployment_type: str
    deployment_name: str
    payload: Mapping[str, Any]
    device_ids: Sequence[int]
    group_ids: Sequence[int]
    offline_policy: str
    offline_deadline_seconds: int
    lost_after_seconds: int


async def start_by_hand(
    session: Session, installation_id: str, request: Request, owner: Owner, *, now: datetime
) -> int:
    """Run a payload now, without a task; answers the deployment's id. Raises Conflict where no device is left."""
    (payload_id,) = await allocate_ids(session, payloads, 1)
    body = (payload_id, request.deployment_type, dict(request.payload))
    await insert_rows(session, payloads, ("id", "kind", "body"), [body])
    sending = Sending(
        deployment_type=request.deployment_type,
        deployment_name=request.deployment_name,
        payload_id=payload_id,
        execution_id=None,
        run_key=f"adhoc:{uuid4().hex}",
        offline_policy=request.offline_policy,
        offline_deadline_seconds=request.offline_deadline_seconds,
        lost_after_seconds=request.lost_after_seconds,
        created_by=owner.user_id,
        devices=(),
    )
    (deployment_id,) = await start(session, installation_id, [sending], now=now)
    devices = [(deployment_id, device_id) for device_id in request.device_ids]
    await insert_rows(session, deployment_target_devices, ("deployment_id", "device_id"), devices)
    groups = [(deployment_id, group_id) for group_id in request.group_ids]
    await insert_rows(session, deployment_target_groups, ("deployment_id", "group_id"), groups)
    targets = (await resolve(session, {deployment_id: owner}, DEPLOYMENT_TARGETS))[deployment_id]
    if targets.refusal or not targets.devices:
        raise Conflict(targets.refusal or "There are no target devices: the groups are empty.")
    runs = _runs(deployment_id, replace(sending, devices=targets.ordered()))
    await device_runs.queue(session, installation_id, runs, now=now)
    await settle(session, [deployment_id], now=now)
    return deployment_id


def _runs(deployment_id: int, one: Sending) -> list[device_runs.NewRun]:
    return [
        device_runs.NewRun(
            deployment_id, device_id, online, one.run_key, one.offline_policy, one.offline_deadline_seconds
        )
        for device_id, online in one.devices
    ]


async def settle(session: Session, deployment_ids: Iterable[int], *, now: datetime) -> list[Ended]:
    """End those of the deployments whose runs have all ended; safe to repeat."""
    wanted = sorted(set(deployment_ids))
    if not wanted:
        return []
    rows = await session.execute(
        text(
            "SELECT id, execution_id, cancel_requested_at FROM deployments WHERE completed_at IS NULL AND "
            + any_of(session, "id", "ids")
            + " AND NOT EXISTS (SELECT 1 FROM device_runs r WHERE r.deployment_id = deployments.id"
            + f" AND r.status IN ({_OPEN_RUNS})) ORDER BY id "
            + row_lock(session, "deployments")
        ),
        {"ids": ids_parameter(session, wanted)},
    )
    finished = rows.all()
    if not finished:
        return []
    counts = await count_runs(session, [row.id for row in finished])
    reasons = await _commonest_reasons(session, [row.id for row in finished if _failed(counts.get(row.id, {}))])
    ended = [
        _ending(
            row.id, row.execution_id, counts.get(row.id, {}), row.cancel_requested_at is not None, reasons.get(row.id)
        )
        for row in finished
    ]
    await update_rows(
        session,
        deployments,
        ("status", "completed_at", "error_message"),
        [(one.deployment_id, one.status.value, now, one.error_message) for one in ended],
        guard="completed_at IS NULL",
    )
    return ended


async def count_runs(session: Session, deployment_ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """Device runs by status of each deployment, from the index alone."""
    rows = await session.execute(
        text(
            "SELECT deployment_id, status, count(*) AS n FROM device_runs WHERE "
            + any_of(session, "deployment_id", "ids")
            + " GROUP BY deployment_id, status"
        ),
        {"ids": ids_parameter(session, deployment_ids)},
    )
    counts: dict[int, dict[str, int]] = {}
    for row in rows:
        counts.setdefault(row.deployment_id, {})[row.status] = row.n
    return counts


async def _commonest_reasons(session: Session, deployment_ids: Sequence[int]) -> dict[int, str]:
    rows = await session.execute(
        text(
            "SELECT deployment_id, reason, exit_code, count(*) AS n FROM device_runs WHERE status <> 'succeeded' AND "
            + any_of(session, "deployment_id", "ids")
            + " GROUP BY deployment_id, reason, exit_code ORDER BY n, reason"
        ),
        {"ids": ids_parameter(session, deployment_ids)},
    )
    return {row.deployment_id: row.reason or f"Exit code {row.exit_code}." for row in rows}


def _failed(counts: Mapping[str, int]) -> int:
    return sum(number for status, number in counts.items() if status != RunStatus.SUCCEEDED)


def _ending(
    deployment_id: int, execution_id: int | None, counts: Mapping[str, int], cancelled: bool, reason: str | None
) -> Ended:
    """Decide how a deployment ended: completed when nothing failed and something succeeded. Pure."""
    total = Counter(counts).total()
    failures = sum(counts.get(status, 0) for status in RUN_FAILURES)
    unconfirmed = counts.get(RunStatus.CANCEL_UNCONFIRMED, 0)
    stopped = counts.get(RunStatus.CANCELLED, 0) + unconfirmed
    if stopped and (cancelled or stopped == total):
        message = f"Cancelled on {stopped} of {total} devices."
        if unconfirmed:
            message = f"{message[:-1]}; {unconfirmed} did not confirm it."
        return Ended(deployment_id, execution_id, DeploymentStatus.CANCELLED, counts, message)
    if failures == 0 and counts.get(RunStatus.SUCCEEDED, 0) > 0:
        return Ended(deployment_id, execution_id, DeploymentStatus.COMPLETED, counts, None)
    missed = total - counts.get(RunStatus.SUCCEEDED, 0)
    said = "failed" if failures else "were not reached"
    message = f"{failures or missed} of {total} devices {said}. Most often: {reason or 'no reason was given.'}"
    return Ended(deployment_id, execution_id, DeploymentStatus.FAILED, counts, message)


async def cancel(session: Session, deployment_ids: Sequence[int], *, now: datetime) -> list[Ended]:
    """Ask for the end of open deployments; those of which nothing had started end at once."""
    await update_rows(
        session,
        deployments,
        ("cancel_requested_at",),
        [(identity, now) for identity in deployment_ids],
        guard="completed_at IS NULL AND cancel_requested_at IS NULL",
    )
    await device_runs.cancel(session, deployment_ids, now=now)
    return await settle(session, deployment_ids, now=now)


async def unsettled(session: Session, limit: int) -> list[int]:
    """Open deployments without an open run: what a crash between two steps could leave behind."""
    rows = await session.execute(
        text(
            "SELECT id FROM deployments WHERE completed_at IS NULL AND NOT EXISTS (SELECT 1 FROM device_runs r"
            f" WHERE r.deployment_id = deployments.id AND r.status IN ({_OPEN_RUNS})) ORDER BY id LIMIT :limit"
        ),
        {"limit": limit},
    )
    return list(rows.scalars())


async def of_executions(session: Session, execution_ids: Sequence[int]) -> list[int]:
    rows = await session.execute(
        text("SELECT id FROM deployments WHERE completed_at IS NULL AND " + any_of(session, "execution_id", "ids")),
        {"ids": ids_parameter(session, execution_ids)},
    )
    return list(rows.scalars())


async def payloads_of(session: Session, payload_ids: Iterable[int]) -> dict[int, RowMapping]:
    """Kind and body of payloads, for building work orders."""
    statement = text("SELECT id, kind, body FROM payloads WHERE " + any_of(session, "id", "ids"))
    rows = await session.execute(
        statement.columns(body=payloads.c.body.type), {"ids": ids_parameter(session, set(payload_ids))}
    )
    return {row["id"]: row for row in rows.mappings()}
