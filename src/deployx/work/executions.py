"""Executions: fires what is due, starts by hand, ends what has ended or is to end. One transaction, one look at a task.

What a look decides is in `looks`, what it writes in `ledger`, and how endings move tasks in `settling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import uuid4

from sqlalchemy import text

from deployx.clock import ClockSteps
from deployx.db.bulk import any_of, ids_parameter, moment_parameter, update_rows
from deployx.db.database import Session
from deployx.db.schema import scheduled_tasks
from deployx.fleet.resolution import Owner, Targets
from deployx.lifecycle import ExecutionStatus, TaskStatus
from deployx.work import (
    alarms,
    attempts,
    dependencies,
    deployments,
    ledger,
    looks,
    plans,
    reaching,
    rollouts,
    settling,
    superseding,
    task_rows,
    versions,
    waiting,
)  # fmt: skip
from deployx.work.again import Earlier
from deployx.work.deployments import Ended, Sending
from deployx.work.looks import Outcome
from deployx.work.task_rows import Task


@dataclass(frozen=True, slots=True)
class Server:
    """What firing needs to know of the server: its installation, and where its clock was stepped."""

    installation_id: str
    steps: ClockSteps = field(default_factory=ClockSteps)


async def fire(session: Session, server: Server, *, now: datetime, limit: int, backlog: bool = False) -> int:
    """Claim up to `limit` tasks whose next occurrence is due, and account for each; answers how many were claimed.

    One transaction writes the ledger rows, the deployments with their device runs, and each task's next instant.
    """
    claimed = await task_rows.claim(session, now=now, limit=limit, backlog=backlog)
    await _account(session, server, claimed, now=now)
    return len(claimed)


async def answer_alarms(session: Session, server: Server, *, now: datetime, limit: int) -> int:
    """Look at the tasks whose alarms are due; answers how many alarms were used up."""
    rung = await alarms.due(session, now=now, limit=limit)
    if not rung:
        return 0
    tasks = await task_rows.lock_all(session, sorted(set(rung.values())))
    looked_at = await _account(session, server, tasks, now=now)
    left = {task["id"] for task in tasks} - looked_at
    done = [alarm_id for alarm_id, task_id in rung.items() if task_id not in left]
    await alarms.forget(session, done)
    return len(done)


async def next_due(session: Session) -> datetime | None:
    """When the soonest task is due, or the soonest alarm."""
    instant = scheduled_tasks.c.next_execution.type
    rows = await session.execute(
        text(
            "SELECT (SELECT next_execution FROM scheduled_tasks WHERE next_execution IS NOT NULL"
            " ORDER BY next_execution LIMIT 1) AS due, (SELECT at FROM alarms ORDER BY at LIMIT 1) AS alarm"
        ).columns(due=instant, alarm=instant)
    )
    return min((moment for moment in rows.one() if moment is not None), default=None)


async def due_ids(session: Session, *, now: datetime, limit: int) -> list[int]:
    """Tasks that a batch would claim, to be taken one by one."""
    rows = await session.execute(
        text("SELECT id FROM scheduled_tasks WHERE next_execution <= :now ORDER BY next_execution LIMIT :limit"),
        {"now": moment_parameter(session, now), "limit": limit},
    )
    return list(rows.scalars())


async def account_for(session: Session, server: Server, task_ids: Sequence[int], *, now: datetime) -> None:
    """Account for all that these tasks owe up to now, whatever it takes: before a change of one, for example."""
    left = list(task_ids)
    while left:
        tasks = await task_rows.lock_all(session, left)
        await _account(session, server, tasks, now=now)
        rows = await session.execute(
            text(f"SELECT id FROM scheduled_tasks WHERE next_execution <= :now AND {any_of(session, 'id', 'ids')}"),
            {"now": moment_parameter(session, now), "ids": ids_parameter(session, left)},
        )
        left = list(rows.scalars())


async def _account(session: Session, server: Server, tasks: Sequence[Task], *, now: datetime) -> set[int]:
    """Account for what these locked tasks owe up to now, as far as the budget of one transaction goes.

    Answers the ids of the tasks that were looked at.
    """
    if not tasks:
        return set()
    around = await looks.surroundings(session, tasks)
    outcomes: list[Outcome] = []
    budget = looks.BUDGET
    for task in tasks:
        if budget <= 0:
            break
        outcome = looks.look(task, around, server.steps, now)
        outcomes.append(outcome)
        budget -= outcome.cost
    await ledger.write_resumed(session, [one for one in outcomes if one.is_resumed], resumed_at=now)
    starting = [one.task for one in outcomes if one.started]
    targets = await reaching.of_tasks(session, starting)
    written = await ledger.write(session, server.installation_id, outcomes, targets, now=now)
    if written.failed:
        await dependencies.note_endings(session, written.failed, now=now)
        await _hold(session, [one for one in outcomes if one.refusal], now=now)
    at_once = await _ended_at_once(session, written.sendings)
    await settle_deployments(session, server, [*at_once, *written.superseded], now=now)
    for one in outcomes:
        if one.cancels_oldest:
            await _cancel_oldest(session, server, one.task, now=now)
    return {one.task["id"] for one in outcomes}


async def _hold(session: Session, outcomes: Sequence[Outcome], *, now: datetime) -> None:
    """Pause tasks whose execution could not start, where their definition says so."""
    for one in outcomes:
        task = await task_rows.lock(session, one.task["id"])
        if task is not None and task["pause_on_failure"] and one.has_more:
            await _pause(session, task, now=now)


async def _pause(session: Session, task: Task, *, now: datetime) -> None:
    """Pause a locked task, of which all that was due is accounted for."""
    task_id = task["id"]
    await plans.close_pending(session, task, TaskStatus.PAUSED, now=now)
    version = scheduled_tasks.c.version + 1
    moved = await session.execute(
        scheduled_tasks.update()
        .where(scheduled_tasks.c.id == task_id, scheduled_tasks.c.status.in_(("pending", "running")))
        .values(
            status="paused", version=version, next_planned_for=None, next_execution=None, updated_at=now,
            paused_reason="Paused because an execution failed.",
        )
        .returning(scheduled_tasks.c.version)
    )  # fmt: skip
    new_version = moved.scalar_one_or_none()
    if new_version is not None:
        await versions.add_move(session, task_id, new_version, "pause", "paused", by=None, at=now)


async def _ended_at_once(session: Session, sendings: Sequence[Sending]) -> list[int]:
    """Deployments of which no device may wait and none may be under way: absent devices' runs ended as they began."""
    silent = [
        one.execution_id
        for one in sendings
        if one.execution_id
        and one.offline_policy == "fail"
        and (one.rollout is not None or not any(online for _, online in one.devices))
    ]
    return await deployments.of_executions(session, silent) if silent else []


async def _cancel_oldest(session: Session, server: Server, task: Task, *, now: datetime) -> None:
    """Make place for the newest execution: unless one is being cancelled already, end the oldest that runs."""
    rows = await session.execute(
        text(
            "SELECT e.id, d.cancel_requested_at FROM scheduled_task_executions e"
            " JOIN deployments d ON d.execution_id = e.id WHERE e.task_id = :task AND e.completed_time IS NULL"
            " AND e.status = 'running' ORDER BY e.id"
        ),
        {"task": task["id"]},
    )
    running = [row.id for row in rows if row.cancel_requested_at is None]
    if len(running) >= task["max_instances"]:
        await cancel(session, server, running[:1], now=now)


async def start_by_hand(
    session: Session, server: Server, task: Task, targets: Targets, requested_by: int, *, now: datetime
) -> int:
    """Start a manual execution of a locked task; uses up nothing of the schedule. Answers the execution's id."""
    start = ledger.Start("manual", cause=f"manual:{uuid4().hex}", requested_by=requested_by)
    written = await ledger.write_started(session, task, start, targets, now=now)
    before, result, message = TaskStatus(task["status"]), task["last_result"], task["error_message"]
    status: TaskStatus = before if before == TaskStatus.PAUSED else TaskStatus.RUNNING
    if written.failed:
        more = task["next_execution"] or task["waiting"] or task["recurrence_type"] == "after"
        status = before if more or before in (TaskStatus.PAUSED, TaskStatus.RUNNING) else TaskStatus.FAILED
        result, message = {"status": ExecutionStatus.FAILED.value, "counts": {}}, ledger.refusal_of(targets)
    columns = ("status", "execution_count", "last_execution", "last_result", "error_message")
    values = (task["id"], status.value, task["execution_count"] + 1, now, result, message)
    await update_rows(session, scheduled_tasks, columns, [values])
    if written.failed:
        await dependencies.note_endings(session, written.failed, now=now)
        return written.failed[0]
    (sending,) = written.sendings
    assert sending.execution_id is not None
    started = await deployments.start(session, server.installation_id, [sending], now=now)
    superseded = await superseding.replace_older(session, started, now=now)
    await settle_deployments(session, server, [*started, *superseded], now=now)
    return sending.execution_id


async def start_again(
    session: Session, server: Server, task: Task, earlier: Earlier, owner: Owner, requested_by: int, *, now: datetime
) -> int:
    """Start an execution of a locked task that sends an earlier deployment again; answers the execution's id."""
    start = ledger.Start("retry", cause=f"retry:{uuid4().hex}", requested_by=requested_by)
    execution_id = await ledger.write_retry(session, task, start, now=now)
    sending = replace(earlier.sending, execution_id=execution_id, created_by=owner.user_id)
    deployment_id = await deployments.start_on(
        session, server.installation_id, sending, owner, device_ids=earlier.device_ids, now=now
    )
    status = TaskStatus.PAUSED if task["status"] == TaskStatus.PAUSED else TaskStatus.RUNNING
    values = (task["id"], status.value, task["execution_count"] + 1, now)
    await update_rows(session, scheduled_tasks, ("status", "execution_count", "last_execution"), [values])
    await settle_deployments(session, server, [deployment_id], now=now)
    return execution_id


async def settle_deployments(
    session: Session, server: Server, deployment_ids: Sequence[int], *, now: datetime
) -> list[Ended]:
    """End deployments whose runs have ended, their executions, and move the tasks on. Safe to repeat."""
    if not deployment_ids:
        return []
    await settling.lock_tasks_of(session, deployment_ids)
    policed = await deployments.with_policies(session, deployment_ids)
    if policed:
        await attempts.arrange(session, server.installation_id, policed, now=now)
        await rollouts.advance(session, policed, now=now)
    ended = await deployments.settle(session, deployment_ids, now=now)
    await settle(session, server, ended, now=now)
    return ended


async def go_on(session: Session, server: Server, *, now: datetime) -> None:
    """Let go on what waited for a moment that has come: windows, delays, turns and waves of rollouts."""
    dated = await rollouts.take_due(session, now=now)
    opened = await waiting.open_due(session, now=now)
    await settle_deployments(session, server, sorted({*dated, *opened}), now=now)


async def settle(session: Session, server: Server, ended: Sequence[Ended], *, now: datetime) -> None:
    """End the executions behind ended deployments; a task to be paused for it first gets what it owes till now."""
    for task_id in await settling.settle(session, ended, now=now):
        task = await task_rows.lock(session, task_id)
        if task is not None and task["next_execution"] is not None and task["next_execution"] <= now:
            await account_for(session, server, [task_id], now=now)
            task = await task_rows.lock(session, task_id)
        if task is not None and (task["next_execution"] or task["waiting"] or task["recurrence_type"] == "after"):
            await _pause(session, task, now=now)


async def cancel(session: Session, server: Server, execution_ids: Sequence[int], *, now: datetime) -> list[int]:
    """Ask for the end of open executions: one that waits ends at once, one that runs when its devices confirm.

    Answers the deployments that were open. Ended ones are left alone.
    """
    ended = await session.execute(
        text(
            "UPDATE scheduled_task_executions SET status = 'cancelled', completed_time = :now"
            f" WHERE status IN ('queued', 'delayed') AND {any_of(session, 'id', 'ids')} RETURNING task_id"
        ),
        {"ids": ids_parameter(session, execution_ids), "now": moment_parameter(session, now)},
    )
    waited = sorted(set(ended.scalars()))
    if waited:
        result = {"status": ExecutionStatus.CANCELLED.value, "counts": {}}
        await update_rows(session, scheduled_tasks, ("last_result",), [(task_id, result) for task_id in waited])
        await _account(session, server, await task_rows.lock_all(session, waited), now=now)
    opened = await deployments.of_executions(session, execution_ids)
    if opened:
        await settling.lock_tasks_of(session, opened)
        await settle(session, server, await deployments.cancel(session, opened, now=now), now=now)
    return opened


async def open_of_tasks(session: Session, task_ids: Sequence[int]) -> list[int]:
    rows = await session.execute(
        text(
            "SELECT id FROM scheduled_task_executions WHERE completed_time IS NULL AND "
            + any_of(session, "task_id", "ids")
        ),
        {"ids": ids_parameter(session, task_ids)},
    )
    return list(rows.scalars())


async def running_of(session: Session, task_id: int) -> int:
    return (await settling.count_running(session, [task_id])).get(task_id, 0)
