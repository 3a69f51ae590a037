"""Who changes what others' tasks use answers for what these do: that takes `run` on everything they target."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from deployx.api.context import Caller
from deployx.db.database import Session
from deployx.db.schema import scheduled_tasks
from deployx.errors import NotPermitted
from deployx.people import grants
from deployx.people.grants import Permission
from deployx.work import specs


async def require_run(session: Session, caller: Caller, task_ids: Sequence[int], what: str) -> None:
    """Raise NotPermitted unless the caller may run on all targets of those of the tasks that are others'."""
    if caller.principal.is_admin or not task_ids:
        return
    query = select(scheduled_tasks.c.id).where(
        scheduled_tasks.c.id.in_(task_ids), scheduled_tasks.c.created_by != caller.principal.user_id
    )
    foreign = list((await session.execute(query.order_by(scheduled_tasks.c.id))).scalars())
    devices, groups = await specs.targets_of(session, foreign)
    for task_id in foreign:
        held = await grants.least_on_targets(
            session, caller.principal, device_ids=devices[task_id], group_ids=groups[task_id]
        )
        if held is None or held < Permission.RUN:
            raise NotPermitted(f"Others' tasks use this {what}, and you may not run on all that they target.")
