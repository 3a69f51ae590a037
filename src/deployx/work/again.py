"""What an ended deployment left undone: what it sent, and to whom, for trying it again by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import select, text

from deployx.db.database import Session
from deployx.db.schema import deployments
from deployx.errors import Conflict
from deployx.work.deployments import Sending


@dataclass(frozen=True, slots=True)
class Earlier:
    """An ended deployment that is to be tried again: what it sent, and the devices that did not succeed."""

    sending: Sending
    device_ids: list[int]


async def of(session: Session, execution_id: int | None = None, *, deployment_id: int | None = None) -> Earlier:
    """What is left to do of an execution's deployment, or of one of its own.

    Raises Conflict where it runs still, never reached a device, or all succeeded.
    """
    column, value = ("execution_id", execution_id) if deployment_id is None else ("id", deployment_id)
    what = f"Execution {value}" if deployment_id is None else f"Deployment {value}"
    found = await session.execute(select(deployments).where(deployments.c[column] == value))
    row = found.one_or_none()
    if row is None:
        raise Conflict(f"{what} never reached a device, so there is nothing to try again: execute the task.")
    if row.completed_at is None:
        raise Conflict(f"{what} is still running: wait for its end, or cancel it.")
    runs = await session.execute(
        text(
            "SELECT device_id FROM device_runs WHERE deployment_id = :id AND is_last AND status <> 'succeeded'"
            " ORDER BY device_id"
        ),
        {"id": row.id},
    )
    device_ids = list(runs.scalars())
    if not device_ids:
        raise Conflict(f"{what} succeeded on every device: there is nothing to try again.")
    return Earlier(_again(row), device_ids)


def _again(row: Any) -> Sending:
    return Sending(
        deployment_type=row.deployment_type,
        deployment_name=row.deployment_name,
        payload_id=row.payload_id,
        execution_id=None,
        run_key=f"retry:{uuid4().hex}",
        offline_policy=row.offline_policy,
        offline_deadline_seconds=row.offline_deadline_seconds,
        lost_after_seconds=row.lost_after_seconds,
        created_by=row.created_by,
        devices=(),
        rollout=row.rollout,
        retry=row.retry,
        work=row.work,
        supersedable=row.supersedable,
    )
