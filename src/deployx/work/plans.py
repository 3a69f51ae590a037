"""What a stored task plans: its rule and policy as values, and the occurrences that are held back for later."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache

from deployx.clock import ClockSteps
from deployx.db.bulk import insert_rows
from deployx.db.database import Session
from deployx.db.schema import scheduled_task_executions
from deployx.lifecycle import TASK_SCHEDULED, TaskStatus
from deployx.timing import recurrence
from deployx.timing.owed import Plan
from deployx.timing.policy import BY_HAND, CatchUp, Outside, Overlap, Policy
from deployx.timing.windows import Calendar
from deployx.work import dependencies, overrides
from deployx.work.task_rows import Task


def rule_of(task: Task) -> recurrence.Recurrence:
    return recurrence.load(
        task["recurrence_type"], task["recurrence_config"], task["scheduled_time"], task["timezone"],
        task["last_planned_for"],
    )  # fmt: skip


def policy_of(task: Task, calendar: Calendar | None, steps: ClockSteps | None = None) -> Policy:
    plain = _policy(
        task["misfire_grace_seconds"], task["catch_up"], task["overlap_policy"], task["max_instances"],
        task["outside_window"],
    )  # fmt: skip
    stepped_over = steps.stepped_over if steps else ()
    if calendar is None and not stepped_over:
        return plain
    return replace(plain, calendar=calendar, stepped_over=stepped_over)


@lru_cache(maxsize=4096)
def _policy(grace_seconds: int, catch_up: str, overlap: str, max_instances: int, outside: str) -> Policy:
    grace = timedelta(seconds=grace_seconds)
    return Policy(grace, CatchUp(catch_up), Overlap(overlap), max_instances, Outside(outside))


async def plan_of(session: Session, task: Task) -> Plan:
    changes = await overrides.of(session, [task["id"]]) if task["overridden"] else {}
    return Plan(rule_of(task), task["id"], task["jitter_seconds"], changes.get(task["id"], {}))


def pending(plan: Plan, task: Task, now: datetime) -> list[datetime]:
    """Nominal instants that have passed, of occurrences that are not in the ledger: held back, or skipped just now."""
    if task["status"] not in TASK_SCHEDULED:
        return []
    held = [one for one, to in plan.overrides.items() if one <= now and not to.fired]
    cursor = task["next_planned_for"]
    if cursor is not None and cursor <= now:
        passed = plan.rule.between(cursor - recurrence.TICK, now)
        held += [one for one in passed if one not in plan.overrides]
    return sorted(held)


async def close_pending(session: Session, task: Task, moved: TaskStatus, *, now: datetime) -> None:
    """Occurrences whose nominal instant has passed, but that have no row yet, end here.

    Jitter or a move by hand holds them back, or they were skipped by hand and the clock has not looked since.
    """
    plan = await plan_of(session, task)
    ending = ("skipped", "paused") if moved == TaskStatus.PAUSED else ("cancelled", None)
    columns = (
        "task_id", "task_version", "trigger", "planned_for", "due_at", "status", "reason", "completed_time",
    )  # fmt: skip
    rows = []
    for planned in pending(plan, task, now):
        override = plan.overrides.get(planned)
        due_at = plan.due_at(planned) if override is None else override.due_at
        ended = ending if due_at is not None else BY_HAND
        rows.append((task["id"], task["version"], "schedule", planned, due_at or planned, *ended, now))
    await insert_rows(session, scheduled_task_executions, columns, rows)
    if plan.overrides:
        await overrides.remove(session, task["id"], [one for one in plan.overrides if one <= now])
    await dependencies.forget_of_tasks(session, [task["id"]])
