"""Superseding: work that still waits for an absent device gives way to a newer execution of the same task."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import text

from deployx.db.bulk import any_of, ids_parameter, moment_parameter
from deployx.db.database import Session

REASON = "A newer execution of the task replaced it while the device was away."


async def replace_older(session: Session, deployment_ids: Sequence[int], *, now: datetime) -> list[int]:
    """End what waits for devices in older executions of the tasks behind these new deployments, device by device.

    Answers the older deployments that may have ended with that. Late ones that are all to run (`catch_up: all`) stay.
    """
    older = (
        "SELECT r.id FROM deployments n JOIN scheduled_task_executions ne ON ne.id = n.execution_id"
        " JOIN scheduled_task_executions oe ON oe.task_id = ne.task_id AND oe.completed_time IS NULL AND oe.id <> ne.id"
        " JOIN deployments o ON o.execution_id = oe.id AND o.completed_at IS NULL AND o.supersedable AND o.id < n.id"
        " JOIN device_runs r ON r.deployment_id = o.id AND r.status = 'waiting' AND r.waits_for = 'device'"
        " WHERE EXISTS (SELECT 1 FROM device_runs nr WHERE nr.deployment_id = n.id AND nr.device_id = r.device_id) AND "
    )
    ended = await session.execute(
        text(
            "UPDATE device_runs SET status = 'superseded', reason = :reason, completed_at = :now, deadline_at = NULL,"
            f" waits_for = NULL WHERE status = 'waiting' AND id IN ({older}{any_of(session, 'n.id', 'ids')})"
            " RETURNING deployment_id"
        ),
        {"ids": ids_parameter(session, deployment_ids), "now": moment_parameter(session, now), "reason": REASON},
    )
    return sorted(set(ended.scalars()))
