"""Deployments: one sending of a payload to a set of devices, the record behind every execution and ad-hoc run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import RowMapping, text

from deployx.catalog import resolution, uses
from deployx.catalog.payloads import COMMAND
from deployx.db.bulk import allocate_ids, any_of, ids_parameter, insert_rows, row_lock, update_rows
from deployx.db.database import Session
from deployx.db.schema import deployment_target_devices, deployment_target_groups, deployments, payloads
from deployx.errors import Conflict
from deployx.fleet.resolution import DEPLOYMENT_TARGETS, Owner, resolve
from deployx.lifecycle import RUN_FAILURES, RUN_NOT_REACHED, RUN_OPEN, DeploymentStatus, RunStatus
from deployx.work import device_runs, rollouts
from deployx.work.rollout import Rollout

_COLUMNS = (
    "id", "deployment_type", "deployment_name", "status", "payload_id", "execution_id", "run_key", "offline_policy",
    "offline_deadline_seconds", "lost_after_seconds", "rollout", "retry", "work", "supersedable",
    "closes_at", "look_at", "created_by", "created_at", "started_at",
)  # fmt: skip

MOST_NAMED = 10

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
    rollout: Mapping[str, Any] | None = None
    retry: Mapping[str, Any] | None = None
    work: Mapping[str, Any] | None = None
    supersedable: bool = True
    closes_at: datetime | None = None

    def waves(self) -> list[int] | None:
        """The sizes of its waves; None where all devices start at once."""
        if self.rollout is None:
            return None
        rollout, devices = Rollout.of(self.rollout), len(self.devices)
        sizes = rollout.waves(devices)
        at_once = rollout.max_concurrent is None or rollout.max_concurrent >= devices
        return None if len(sizes) <= 1 and at_once and not rollout.splay_seconds else sizes


@dataclass(frozen=True, slots=True)
class Ended:
    """How a deployment ended, for the execution behind it; `reason` is set where that counts as skipped."""

    deployment_id: int
    execution_id: int | None
    status: DeploymentStatus
    counts: Mapping[str, int]
    error_message: str | None
    reason: str | None = None


async def start(session: Session, installation_id: str, sendings: Sequence[Sending], *, now: datetime) -> list[int]:
    """Insert deployments and one run per device of each, in two bulk statements; answers the deployments' ids.

    Those in waves have nothing queued yet: their first step is for `rollouts.advance`.
    """
    ids = await allocate_ids(session, deployments, len(sendings))
    rows = (
        (identity, one.deployment_type, one.deployment_name, DeploymentStatus.RUNNING.value, one.payload_id,
         one.execution_id, one.run_key, one.offline_policy, one.offline_deadline_seconds, one.lost_after_seconds,
         one.rollout, one.retry, one.work, one.supersedable, one.closes_at, one.closes_at, one.created_by, now, now)
        for identity, one in zip(ids, sendings, strict=True)
    )  # fmt: skip
    await insert_rows(session, deployments, _COLUMNS, rows)
    await _send_out(session, installation_id, dict(zip(ids, sendings, strict=True)), now=now)
    return ids


async def _send_out(
    session: Session, installation_id: str, sendings: Mapping[int, Sending], *, now: datetime
) -> None:  # fmt: skip
    waves = {identity: one.waves() for identity, one in sendings.items()}
    runs = [run for identity, one in sendings.items() for run in _runs(identity, one, waves[identity])]
    await device_runs.queue(session, installation_id, runs, now=now)
    in_waves = [identity for identity, sizes in waves.items() if sizes is not None]
    if in_waves:
        await rollouts.advance(session, in_waves, now=now)


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
    rollout: Mapping[str, Any] | None = None
    retry: Mapping[str, Any] | None = None


async def start_by_hand(
    session: Session, installation_id: str, request: Request, owner: Owner, *, now: datetime
) -> int:
    """Run a payload now, without a task; answers the deployment's id. Raises Conflict where no device is left."""
    (payload_id,) = await allocate_ids(session, payloads, 1)
    body = (payload_id, request.deployment_type, dict(request.payload))
    await insert_rows(session, payloads, ("id", "kind", "body"), [body])
    await uses.write(session, {payload_id: (request.deployment_type, request.payload)})
    resolved = None
    if request.deployment_type != COMMAND:
        found = await resolution.work_of(session, {payload_id: (request.deployment_type, request.payload)})
        resolved = found[payload_id]
        if resolved.refusal:
            raise Conflict(resolved.refusal)
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
        rollout=request.rollout,
        retry=request.retry,
        work=resolved.work if resolved else None,
    )
    return await start_on(
        session, installation_id, sending, owner, device_ids=request.device_ids, group_ids=request.group_ids, now=now
    )


async def start_on(
    session: Session, installation_id: str, sending: Sending, owner: Owner, *, device_ids: Iterable[int],
    group_ids: Iterable[int] = (), now: datetime,
) -> int:  # fmt: skip
    """Start a deployment on targets of its own, as far as its owner may; answers its id.

    Raises Conflict where one is gone or not permitted, or no device is left.
    """
    (deployment_id,) = await start(session, installation_id, [sending], now=now)
    devices = [(deployment_id, device_id) for device_id in device_ids]
    await insert_rows(session, deployment_target_devices, ("deployment_id", "device_id"), devices)
    groups = [(deployment_id, group_id) for group_id in group_ids]
    await insert_rows(session, deployment_target_groups, ("deployment_id", "group_id"), groups)
    targets = (await resolve(session, {deployment_id: owner}, DEPLOYMENT_TARGETS))[deployment_id]
    if targets.refusal or not targets.devices:
        raise Conflict(targets.refusal or "There are no target devices: the groups are empty.")
    reached = replace(sending, devices=targets.ordered())
    await _send_out(session, installation_id, {deployment_id: reached}, now=now)
    return deployment_id


def _runs(deployment_id: int, one: Sending, waves: Sequence[int] | None) -> list[device_runs.NewRun]:
    numbers = [None] * len(one.devices) if waves is None else [n for n, size in enumerate(waves) for _ in range(size)]
    return [
        device_runs.NewRun(
            deployment_id, device_id, online, one.run_key, one.offline_policy, one.offline_deadline_seconds, wave
        )
        for (device_id, online), wave in zip(one.devices, numbers, strict=True)
    ]


async def settle(session: Session, deployment_ids: Iterable[int], *, now: datetime) -> list[Ended]:
    """End those of the deployments whose runs have all ended; safe to repeat."""
    wanted = sorted(set(deployment_ids))
    if not wanted:
        return []
    rows = await session.execute(
        text(
            "SELECT id, execution_id, cancel_requested_at, rollout, halted_reason FROM deployments"
            " WHERE completed_at IS NULL AND "
            + any_of(session, "id", "ids")
            + " AND NOT EXISTS (SELECT 1 FROM device_runs r WHERE r.deployment_id = deployments.id"
            + f" AND r.status IN ({_OPEN_RUNS})) ORDER BY id "
            + row_lock(session, "deployments")
        ).columns(rollout=deployments.c.rollout.type),
        {"ids": ids_parameter(session, wanted)},
    )
    finished = rows.all()
    if not finished:
        return []
    counts = await count_runs(session, [row.id for row in finished])
    reasons = await _commonest_reasons(session, [row.id for row in finished if _failed(counts.get(row.id, {}))])
    silent = [row.id for row in finished if counts.get(row.id, {}).get(RunStatus.CANCEL_UNCONFIRMED)]
    names = await _unconfirmed(session, silent) if silent else {}
    ended = [_ending(row, counts.get(row.id, {}), reasons.get(row.id), names.get(row.id, [])) for row in finished]
    await update_rows(
        session,
        deployments,
        ("status", "completed_at", "error_message", "look_at"),
        [(one.deployment_id, one.status.value, now, one.error_message, None) for one in ended],
        guard="completed_at IS NULL",
    )
    return ended


async def count_runs(session: Session, deployment_ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """Devices by the status of their last attempt, of each deployment, from the index alone."""
    rows = await session.execute(
        text(
            "SELECT deployment_id, status, count(*) AS n FROM device_runs WHERE is_last AND "
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
            "SELECT deployment_id, reason, exit_code, count(*) AS n FROM device_runs WHERE status NOT IN"
            " ('succeeded', 'halted') AND is_last AND "
            + any_of(session, "deployment_id", "ids")
            + " GROUP BY deployment_id, reason, exit_code ORDER BY n, reason"
        ),
        {"ids": ids_parameter(session, deployment_ids)},
    )
    return {row.deployment_id: row.reason or f"Exit code {row.exit_code}." for row in rows}


async def _unconfirmed(session: Session, deployment_ids: Sequence[int]) -> dict[int, list[str]]:
    """The names of devices that did not confirm a cancellation."""
    rows = await session.execute(
        text(
            "SELECT r.deployment_id, d.name FROM device_runs r JOIN devices d ON d.id = r.device_id"
            " WHERE r.status = 'cancel_unconfirmed' AND r.is_last AND "
            + any_of(session, "r.deployment_id", "ids")
            + " ORDER BY d.name"
        ),
        {"ids": ids_parameter(session, deployment_ids)},
    )
    names: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        names[row.deployment_id].append(row.name)
    return names


def _failed(counts: Mapping[str, int]) -> int:
    return sum(number for status, number in counts.items() if status != RunStatus.SUCCEEDED)


def _ending(row: Any, counts: Mapping[str, int], commonest: str | None, unconfirmed: Sequence[str]) -> Ended:
    """Decide how a deployment ended: completed when no more failed than may and something succeeded. Pure."""
    total = Counter(counts).total()
    rollout = Rollout.of(row.rollout) if row.rollout else Rollout()
    failures = sum(counts.get(status, 0) for status in RUN_FAILURES)
    missed = sum(counts.get(status, 0) for status in RUN_NOT_REACHED)
    stopped = counts.get(RunStatus.CANCELLED, 0) + len(unconfirmed)
    if stopped and (row.cancel_requested_at is not None or stopped == total):
        message = f"Cancelled on {stopped} of {total} devices."
        if unconfirmed:
            shown = ", ".join(unconfirmed[:MOST_NAMED]) + (" and others" if len(unconfirmed) > MOST_NAMED else "")
            message = f"{message[:-1]}; {len(unconfirmed)} did not confirm it: {shown}."
        return Ended(row.id, row.execution_id, DeploymentStatus.CANCELLED, counts, message)
    if total and counts.get(RunStatus.SUPERSEDED, 0) == total:
        message = "A newer execution replaced it while its devices were away."
        return Ended(row.id, row.execution_id, DeploymentStatus.CANCELLED, counts, message, "superseded")
    counted = failures + (missed if rollout.count_offline else 0)
    if counted <= rollout.allowed_failures(total) and counts.get(RunStatus.SUCCEEDED, 0) > 0:
        return Ended(row.id, row.execution_id, DeploymentStatus.COMPLETED, counts, None)
    message = _failure(counts, total, failures, row.halted_reason, commonest)
    return Ended(row.id, row.execution_id, DeploymentStatus.FAILED, counts, message)


def _failure(
    counts: Mapping[str, int], total: int, failures: int, halted_reason: str | None, commonest: str | None
) -> str:
    """How many of how many, what stopped the rest, and the commonest reason."""
    missed = total - counts.get(RunStatus.SUCCEEDED, 0) - counts.get(RunStatus.HALTED, 0)
    said = f"{failures} of {total} devices failed." if failures else f"{missed} of {total} devices were not reached."
    halted = counts.get(RunStatus.HALTED, 0)
    if halted_reason and halted:
        said = f"{halted_reason} {halted} had not started." if failures else f"{halted_reason} {said}"
    return f"{said} Most often: {commonest}" if commonest or not halted else said


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


async def with_policies(session: Session, deployment_ids: Sequence[int]) -> list[int]:
    """The open ones of these that have a rollout or a retry policy, or whose windows close."""
    rows = await session.execute(
        text(
            "SELECT id FROM deployments WHERE completed_at IS NULL AND (rollout IS NOT NULL OR retry IS NOT NULL"
            f" OR closes_at IS NOT NULL) AND {any_of(session, 'id', 'ids')} ORDER BY id"
        ),
        {"ids": ids_parameter(session, deployment_ids)},
    )
    return list(rows.scalars())


async def of_executions(session: Session, execution_ids: Sequence[int]) -> list[int]:
    rows = await session.execute(
        text("SELECT id FROM deployments WHERE completed_at IS NULL AND " + any_of(session, "execution_id", "ids")),
        {"ids": ids_parameter(session, execution_ids)},
    )
    return list(rows.scalars())


async def works_of(session: Session, deployment_ids: Iterable[int]) -> dict[int, Mapping[str, Any]]:
    """What these deployments of files or software send, as it was when each started."""
    statement = text("SELECT id, work FROM deployments WHERE work IS NOT NULL AND " + any_of(session, "id", "ids"))
    rows = await session.execute(
        statement.columns(work=deployments.c.work.type), {"ids": ids_parameter(session, set(deployment_ids))}
    )
    return {row.id: row.work for row in rows}


async def payloads_of(session: Session, payload_ids: Iterable[int]) -> dict[int, RowMapping]:
    """Kind and body of payloads, for building work orders."""
    statement = text("SELECT id, kind, body FROM payloads WHERE " + any_of(session, "id", "ids"))
    rows = await session.execute(
        statement.columns(body=payloads.c.body.type), {"ids": ids_parameter(session, set(payload_ids))}
    )
    return {row["id"]: row for row in rows.mappings()}
