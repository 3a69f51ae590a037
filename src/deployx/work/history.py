"""What happened, for people to read: tasks, executions, deployments and device runs, as a caller may see them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from deployx.db.database import Session
from deployx.db.schema import (
    deployment_target_devices,
    deployment_target_groups,
    deployments,
    device_runs,
    devices,
    payloads,
    scheduled_task_executions,
    scheduled_tasks,
    task_target_devices,
    task_target_groups,
)
from deployx.lifecycle import TaskStatus
from deployx.people.grants import Permission, covers_all
from deployx.people.principal import Principal


def _permits_task(principal: Principal, permission: Permission) -> ColumnElement[bool]:
    """The caller owns the task, or has the permission on everything it targets."""
    return or_(
        scheduled_tasks.c.created_by == principal.user_id,
        covers_all(
            principal,
            permission,
            (task_target_devices.c.device_id, task_target_devices.c.task_id, scheduled_tasks.c.id),
            (task_target_groups.c.group_id, task_target_groups.c.task_id, scheduled_tasks.c.id),
        ),
    )


def _permits_deployment(principal: Principal, permission: Permission) -> ColumnElement[bool]:
    """Like its task for an execution's deployment; by its own targets for an ad-hoc one."""
    by_hand = and_(
        deployments.c.execution_id.is_(None),
        or_(
            deployments.c.created_by == principal.user_id,
            covers_all(
                principal,
                permission,
                (
                    deployment_target_devices.c.device_id,
                    deployment_target_devices.c.deployment_id,
                    deployments.c.id,
                ),
                (deployment_target_groups.c.group_id, deployment_target_groups.c.deployment_id, deployments.c.id),
            ),
        ),
    )
    of_task = (
        select(scheduled_task_executions.c.id)
        .join(scheduled_tasks, scheduled_tasks.c.id == scheduled_task_executions.c.task_id)
        .where(scheduled_task_executions.c.id == deployments.c.execution_id, _permits_task(principal, permission))
        .exists()
    )
    return or_(by_hand, of_task)


def tasks(principal: Principal, permission: Permission = Permission.VIEW) -> Select[Any]:
    """Living tasks that the caller has the permission for, newest first, each with its payload's body."""
    return (
        select(scheduled_tasks, payloads.c.body)
        .join(payloads, payloads.c.id == scheduled_tasks.c.payload_id)
        .where(scheduled_tasks.c.deleted_at.is_(None), _permits_task(principal, permission))
        .order_by(scheduled_tasks.c.id.desc())
    )


def executions(principal: Principal, permission: Permission = Permission.VIEW) -> Select[Any]:
    """Executions of tasks that the caller may see, deleted tasks included, newest first, with their deployment."""
    return (
        select(scheduled_task_executions, deployments.c.id.label("deployment_id"))
        .join(scheduled_tasks, scheduled_tasks.c.id == scheduled_task_executions.c.task_id)
        .outerjoin(deployments, deployments.c.execution_id == scheduled_task_executions.c.id)
        .where(_permits_task(principal, permission))
        .order_by(scheduled_task_executions.c.id.desc())
    )


def sent(principal: Principal, permission: Permission = Permission.VIEW) -> Select[Any]:
    """Deployments that the caller may see, newest first."""
    return select(deployments).where(_permits_deployment(principal, permission)).order_by(deployments.c.id.desc())


def runs(principal: Principal) -> Select[Any]:
    """Device runs of deployments that the caller may see, newest first, with the device's name."""
    return (
        select(device_runs, devices.c.name.label("device_name"))
        .join(devices, devices.c.id == device_runs.c.device_id)
        .join(deployments, deployments.c.id == device_runs.c.deployment_id)
        .where(_permits_deployment(principal, Permission.VIEW))
        .order_by(device_runs.c.id.desc())
    )


async def statistics(session: Session, principal: Principal, *, now: datetime) -> dict[str, Any]:
    """How many tasks there are by status, what comes next, and how the last day's executions ended."""
    visible = (scheduled_tasks.c.deleted_at.is_(None), _permits_task(principal, Permission.VIEW))
    counted = await session.execute(
        select(scheduled_tasks.c.status, func.count()).where(*visible).group_by(scheduled_tasks.c.status)
    )
    counts: dict[str, int] = dict(counted.all())
    columns = ("id", "task_name", "task_type", "next_execution")
    upcoming = await session.execute(
        select(*(scheduled_tasks.c[name] for name in columns))
        .where(*visible, scheduled_tasks.c.next_execution.is_not(None))
        .order_by(scheduled_tasks.c.next_execution, scheduled_tasks.c.id)
        .limit(10)
    )
    recent = await session.execute(
        select(scheduled_task_executions.c.status, func.count())
        .join(scheduled_tasks, scheduled_tasks.c.id == scheduled_task_executions.c.task_id)
        .where(
            _permits_task(principal, Permission.VIEW),
            func.coalesce(scheduled_task_executions.c.execution_time, scheduled_task_executions.c.completed_time)
            > now - timedelta(days=1),
        )
        .group_by(scheduled_task_executions.c.status)
    )
    return {
        "total_tasks": sum(counts.values()),
        **{f"{status.value}_tasks": counts.get(status.value, 0) for status in TaskStatus},
        "upcoming_tasks": [dict(row._mapping) for row in upcoming],
        "executions_24h": dict(recent.all()),
    }
