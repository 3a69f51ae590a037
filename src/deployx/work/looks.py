"""One look at tasks: reads what is around them, then decides for each what it owes, what waits, and what comes next.

Deciding is pure; writing what was decided is for `ledger`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import text

from deployx.clock import ClockSteps
from deployx.db.bulk import any_of, ids_parameter
from deployx.db.database import Session
from deployx.db.schema import scheduled_task_executions
from deployx.lifecycle import TASK_SCHEDULED, ExecutionStatus, TaskStatus
from deployx.timing import recurrence
from deployx.timing.owed import Override, Owed, Plan, owed
from deployx.timing.policy import CatchUp, Decision, Ending, Entry, Policy, decide
from deployx.timing.turns import Turns, Waiting, take_turns
from deployx.timing.windows import Calendar
from deployx.timing.words import reason_in_words
from deployx.work import calendars, dependencies, overrides, plans, settling
from deployx.work.task_rows import Task

JUDGED_AT_ONCE = 5_000
"""How many instants of one task one look decides about; the rest of a long backlog follows in later looks."""
COUNTED_AT_ONCE = 200_000
"""How many instants that are certainly missed one look counts: that costs little for each."""
BUDGET = 1_000_000
"""What one transaction may spend on instants, about a tenth of a second: 1 for one counted, 50 for one judged."""
COST_OF_JUDGING = 50

_ACTIVE = frozenset(status.value for status in TASK_SCHEDULED)
_MAY_RUN = frozenset({TaskStatus.RUNNING.value, TaskStatus.PAUSED.value})


MOST_WAITING = 200
"""How many of those that wait for a place one look reads: more than can start at once."""


@dataclass(slots=True)
class Surroundings:
    """What else a look at some tasks needs, read for all of them at once; mostly empty."""

    running: Mapping[int, int] = field(default_factory=dict)
    waiting: Mapping[int, list[Waiting]] = field(default_factory=dict)
    calendars: Mapping[int, Calendar] = field(default_factory=dict)
    overrides: Mapping[int, Mapping[datetime, Override]] = field(default_factory=dict)
    events: Mapping[int, list[dependencies.Event]] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    """What a look does to one task: rows to write, waiting executions that move, and the task's new values.

    `refusal` is why what is to start cannot: known when its targets are resolved.
    """

    task: Task
    owed: Owed
    decision: Decision
    turns: Turns
    running: int
    next_at: datetime | None = None
    alarm_at: datetime | None = None
    events_used: list[int] = field(default_factory=list)
    refusal: str | None = None
    is_resumed: bool = False
    passed_overrides: list[datetime] = field(default_factory=list)
    more_wait: bool = False
    """Whether more may wait than were read."""
    closes_at: datetime | None = None
    """When the task's windows may close on what starts now."""
    started: int = field(init=False)
    """How many executions start, new ones and those that waited."""

    def __post_init__(self) -> None:
        self.started = len([1 for entry in self.decision.entries if entry.action == "start"])
        if self.turns.changed:
            self.started += sum(turn.outcome == "start" for turn in self.turns.changed)

    @property
    def is_waiting(self) -> bool:
        """Whether executions of the task wait for a place or a window after this."""
        if self.more_wait or any(one.action in ("queue", "delay") for one in self.decision.entries):
            return True
        return bool(self.turns.delayed) or any(not self._is_superseded(one) for one in self.turns.queued)

    @property
    def has_more(self) -> bool:
        return self.next_at is not None or self.is_waiting or self.task["recurrence_type"] == "after"

    @property
    def cost(self) -> int:
        """What the look took of a transaction's budget."""
        return len(self.owed.due) * COST_OF_JUDGING + (self.owed.old.occurrences if self.owed.old else 0)

    @property
    def cancels_oldest(self) -> bool:
        return self.decision.cancels_oldest or self.turns.cancels_oldest

    def superseded(self) -> list[int]:
        return [one.id for one in self.turns.queued if self._is_superseded(one)]

    def _is_superseded(self, one: Waiting) -> bool:
        stays = self.task["catch_up"] == CatchUp.ALL and one.is_catch_up
        return self.decision.supersedes and not stays


async def surroundings(session: Session, tasks: Sequence[Task]) -> Surroundings:
    waiting_ids = [task["id"] for task in tasks if task["waiting"]]
    busy_ids = [task["id"] for task in tasks if task["status"] in _MAY_RUN or task["waiting"]]
    restricted_ids = [task["id"] for task in tasks if task["restricted"]]
    overridden_ids = [task["id"] for task in tasks if task["overridden"]]
    after_ids = [task["id"] for task in tasks if task["recurrence_type"] == "after"]
    return Surroundings(
        running=await settling.count_running(session, busy_ids) if busy_ids else {},
        waiting=await _waiting_of(session, waiting_ids) if waiting_ids else {},
        calendars=await calendars.of(session, calendars.TASKS, restricted_ids) if restricted_ids else {},
        overrides=await overrides.of(session, overridden_ids) if overridden_ids else {},
        events=await dependencies.events_of(session, after_ids) if after_ids else {},
    )


async def _waiting_of(session: Session, task_ids: Sequence[int]) -> dict[int, list[Waiting]]:
    """What waits, oldest first. Under `catch_up: all` thousands may stand in line: of those only the first are read."""
    rows = await session.execute(
        text(
            "SELECT id, task_id, status, due_at, is_catch_up FROM (SELECT id, task_id, status, due_at,"
            " trigger = 'catch_up' AS is_catch_up,"
            " row_number() OVER (PARTITION BY task_id ORDER BY due_at, id) AS place"
            " FROM scheduled_task_executions WHERE completed_time IS NULL AND status IN ('queued', 'delayed')"
            f" AND {any_of(session, 'task_id', 'ids')}) AS waiting"
            " WHERE place <= :most OR status = 'delayed' OR NOT is_catch_up ORDER BY id"
        ).columns(due_at=scheduled_task_executions.c.due_at.type),
        {"ids": ids_parameter(session, task_ids), "most": MOST_WAITING},
    )
    found: dict[int, list[Waiting]] = defaultdict(list)
    for row in rows:
        found[row.task_id].append(Waiting(row.id, row.status, row.due_at, bool(row.is_catch_up)))
    return found


def look(task: Task, around: Surroundings, steps: ClockSteps, now: datetime) -> Outcome:
    """Enumerate what the task owes up to now and let the policy decide each instant. Pure."""
    resumed = _resumed(task, around, now)
    task = resumed or task
    task_id = task["id"]
    rule = plans.rule_of(task)
    policy = plans.policy_of(task, around.calendars.get(task_id), steps)
    changes = around.overrides.get(task_id, {})
    passed = overrides.passed_in_pause(changes, resumed["resumed_at"]) if resumed else []
    changes = {planned_for: change for planned_for, change in changes.items() if planned_for not in passed}
    plan = Plan(rule, task_id, task["jitter_seconds"], changes)
    certain = policy.calendar is None and not policy.stepped_over
    is_active = task["status"] in _ACTIVE
    if is_active and (task["next_planned_for"] is not None or plan.overrides):
        found = owed(
            plan, task["next_planned_for"], now=now, missed_before=now - policy.grace if certain else None,
            limit=JUDGED_AT_ONCE, old_limit=COUNTED_AT_ONCE,
        )  # fmt: skip
    else:
        found = Owed()
    events = around.events.get(task_id, [])
    events_used: list[int] = []
    if isinstance(rule, recurrence.After):
        found.due, events_used = dependencies.firings(rule, events) if is_active else ([], [one.id for one in events])
    running = around.running.get(task_id, 0)
    waiting = around.waiting.get(task_id)
    turns = Turns() if waiting is None else take_turns(
        waiting, now=now, policy=policy, running=running, is_paused=not is_active,
        next_due=found.due[0].due_at if found.due else found.following,
    )  # fmt: skip
    if turns.changed:
        running += sum(turn.outcome == "start" for turn in turns.changed)
    decision = decide(
        found.due, now=now, policy=policy, running=running, queued=len(turns.queued), following=found.following,
        old=found.old,
    )  # fmt: skip
    outcome = Outcome(task, found, decision, turns, running, next_at=found.following, events_used=events_used)
    outcome.passed_overrides, outcome.is_resumed = passed, resumed is not None
    outcome.more_wait = waiting is not None and len(waiting) >= MOST_WAITING
    outcome.alarm_at = _alarm(outcome, policy, now)
    if policy.calendar is not None and outcome.started:
        outcome.closes_at = policy.calendar.state(now)[1]
    return outcome


def _alarm(outcome: Outcome, policy: Policy, now: datetime) -> datetime | None:
    """When the clock has to look at the task, besides its next occurrence."""
    moments = [outcome.owed.look_at]
    if outcome.more_wait and outcome.turns.changed and not outcome.started:
        moments.append(now)  # what was read ended without starting: the next in line are to be read
    if policy.calendar is not None:
        delays = any(entry.action == "delay" for entry in outcome.decision.entries)
        moments += [policy.calendar.next_open(now)] if delays or outcome.turns.delayed else []
    if outcome.task["status"] == TaskStatus.PAUSED:
        moments.append(outcome.task["paused_until"])
    return min((moment for moment in moments if moment is not None), default=None)


def _resumed(task: Task, around: Surroundings, now: datetime) -> Task | None:
    """The task as it goes on after a pause that has run out; None where none has."""
    if task["status"] != TaskStatus.PAUSED or task["paused_until"] is None or task["paused_until"] > now:
        return None
    first = plans.rule_of(task).next_after(task["paused_until"])
    status = TaskStatus.RUNNING if around.running.get(task["id"]) else TaskStatus.PENDING
    return dict(task) | {
        "status": status.value, "version": task["version"] + 1, "next_planned_for": first,
        "resumed_at": task["paused_until"], "paused_until": None,
    }  # fmt: skip


def status_after(one: Outcome) -> TaskStatus:
    if one.task["status"] not in _ACTIVE:
        return TaskStatus(one.task["status"])
    if one.started and one.refusal is None:
        return TaskStatus.RUNNING
    started = sum(turn.outcome == "start" for turn in one.turns.changed)
    if one.running - (started if one.refusal else 0) > 0:
        return TaskStatus.RUNNING
    if one.has_more:
        return TaskStatus.PENDING
    match (last_result(one)[0] or {}).get("status"):
        case ExecutionStatus.COMPLETED:
            return TaskStatus.COMPLETED
        case ExecutionStatus.CANCELLED:
            return TaskStatus.CANCELLED
        case _:
            return TaskStatus.FAILED


def last_result(one: Outcome) -> tuple[dict[str, Any] | None, str | None]:
    """The task's last result and message after this look: a start that failed, or the newest recorded instant."""
    task = one.task
    if one.started and one.refusal:
        return {"status": ExecutionStatus.FAILED.value, "counts": {}}, one.refusal
    recorded = [entry for entry in one.decision.entries if entry.action == "record"]
    if recorded and not one.started:
        entry = recorded[-1]
        return {"status": entry.status, "reason": entry.reason, "counts": {}}, _recorded_message(entry)
    ended = [turn.outcome for turn in one.turns.changed if isinstance(turn.outcome, Ending)]
    if ended and not one.started:
        ending = ended[-1]
        message = f"An occurrence that waited was {ending.status}: {reason_in_words(ending.reason)}"
        return {"status": ending.status, "reason": ending.reason, "counts": {}}, message
    if one.is_resumed and not one.has_more and task["last_result"] is None:
        return None, "Its occurrences passed while it was paused."
    return task["last_result"], task["error_message"]


def _recorded_message(entry: Entry) -> str:
    planned = entry.covers_until or entry.planned_for or entry.due_at
    return (
        f"The occurrence planned for {planned:%Y-%m-%dT%H:%M:%SZ} was {entry.status}:"
        f" {reason_in_words(entry.reason or '')}"
    )
