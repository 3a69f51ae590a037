"""Executions: the ledger. Claims due tasks, decides each occurrence, and starts, delays, queues or records it.

Over 400 lines because one transaction decides and writes all that one look at a task brings about; what ends an
execution is in `settling`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Result, select, text

from deployx.clock import ClockSteps
from deployx.db.bulk import (
    allocate_ids,
    any_of,
    ids_parameter,
    insert_rows,
    moment_parameter,
    row_lock,
    update_rows,
)  # fmt: skip
from deployx.db.database import Session
from deployx.db.schema import scheduled_task_executions, scheduled_tasks
from deployx.fleet.resolution import Owner, Targets, resolve
from deployx.lifecycle import TASK_SCHEDULED, ExecutionStatus, TaskStatus
from deployx.timing import recurrence
from deployx.timing.owed import Override, Owed, Plan, owed
from deployx.timing.policy import (
    CatchUp,
    Decision,
    Ending,
    Entry,
    Policy,
    decide,
)  # fmt: skip
from deployx.timing.turns import Turn, Turns, Waiting, take_turns
from deployx.timing.windows import Calendar
from deployx.timing.words import reason_in_words
from deployx.work import alarms, calendars, dependencies, deployments, overrides, plans, settling, versions
from deployx.work.deployments import Ended, Sending
from deployx.work.plans import Task

FRESH = timedelta(seconds=300)
"""Tasks due within this are claimed before older backlog, so that what can still run is not kept waiting."""

NO_DEVICES = "There are no target devices."

JUDGED_AT_ONCE = 5_000
"""How many instants of one task one look decides about; the rest of a long backlog follows in later looks."""
COUNTED_AT_ONCE = 200_000
"""How many instants that are certainly missed one look counts: that costs little for each."""
BUDGET = 1_000_000
"""What one transaction may spend on instants, about a tenth of a second: 1 for one counted, 50 for one judged."""
COST_OF_JUDGING = 50

_ROW = (
    "id", "task_id", "task_version", "trigger", "planned_for", "covers_until", "occurrences", "due_at", "cause",
    "status", "reason", "execution_time", "completed_time", "result", "error_message", "requested_by",
)  # fmt: skip

_SELECT_TASKS = (
    "SELECT t.id, t.version, t.status, t.task_name, t.task_type, t.payload_id, t.recurrence_type, t.recurrence_config,"
    " t.scheduled_time, t.timezone, t.last_planned_for, t.next_planned_for, t.next_execution, t.misfire_grace_seconds,"
    " t.catch_up, t.max_instances, t.overlap_policy, t.jitter_seconds, t.outside_window, t.waiting, t.restricted,"
    " t.overridden, t.paused_until, t.offline_policy, t.offline_deadline_seconds, t.lost_after_seconds,"
    " t.pause_on_failure, t.execution_count, t.last_execution, t.last_result, t.error_message, t.created_by,"
    " u.username, u.role, u.is_active FROM scheduled_tasks t JOIN users u ON u.id = t.created_by"
)
_TYPES = {
    name: scheduled_tasks.c[name].type
    for name in (
        "scheduled_time", "last_planned_for", "next_planned_for", "next_execution", "paused_until", "last_execution",
        "last_result",
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Server:
    """What firing needs to know of the server: its installation, and where its clock was stepped."""

    installation_id: str
    steps: ClockSteps = field(default_factory=ClockSteps)


@dataclass(frozen=True, slots=True)
class Start:
    """Why an execution starts; one by hand has a cause of its own and no planned instant."""

    trigger: str
    planned_for: datetime | None = None
    due_at: datetime | None = None
    cause: str | None = None
    requested_by: int | None = None


# -- claiming ---------------------------------------------------------------------------------------------------


async def fire(session: Session, server: Server, *, now: datetime, limit: int, backlog: bool = False) -> int:
    """Claim up to `limit` tasks whose next occurrence is due, and account for each; answers how many were claimed.

    One transaction writes the ledger rows, the deployments with their device runs, and each task's next instant.
    """
    since = now - FRESH
    span = "t.next_execution <= :since" if backlog else "t.next_execution > :since AND t.next_execution <= :now"
    rows = await session.execute(
        text(
            f"{_SELECT_TASKS} WHERE {span} ORDER BY t.next_execution LIMIT :limit {row_lock(session, 't', skip=True)}"
        ).columns(**_TYPES),
        {"since": moment_parameter(session, since), "limit": limit}
        | ({} if backlog else {"now": moment_parameter(session, now)}),
    )
    claimed = _tasks(rows)
    await _account(session, server, claimed, now=now)
    return len(claimed)


async def answer_alarms(session: Session, server: Server, *, now: datetime, limit: int) -> int:
    """Look at the tasks whose alarms are due; answers how many alarms were used up."""
    rung = await alarms.due(session, now=now, limit=limit)
    if not rung:
        return 0
    tasks = await _locked(session, sorted(set(rung.values())))
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


async def lock_task(session: Session, task_id: int) -> Task | None:
    """The task as the clock sees it, locked for a new execution; None where it is deleted or never was."""
    found = await _locked(session, [task_id])
    return found[0] if found else None


async def unlocked_task(session: Session, task_id: int) -> Task | None:
    """The task as the clock sees it, for reading."""
    rows = await session.execute(
        text(f"{_SELECT_TASKS} WHERE t.deleted_at IS NULL AND t.id = :id").columns(**_TYPES), {"id": task_id}
    )
    return rows.mappings().one_or_none()


async def _locked(session: Session, task_ids: Sequence[int]) -> list[Task]:
    statement = f"{_SELECT_TASKS} WHERE t.deleted_at IS NULL AND {any_of(session, 't.id', 'ids')} ORDER BY t.id"
    rows = await session.execute(
        text(f"{statement} {row_lock(session, 't')}").columns(**_TYPES), {"ids": ids_parameter(session, task_ids)}
    )
    return _tasks(rows)


def _tasks(rows: Result[Any]) -> list[Task]:
    """Rows as dicts: their values are asked for dozens of times, and a mapping over a row costs more each time."""
    names = tuple(rows.keys())
    return [dict(zip(names, row, strict=True)) for row in rows]


async def account_for(session: Session, server: Server, task_ids: Sequence[int], *, now: datetime) -> None:
    """Account for all that these tasks owe up to now, whatever it takes: before a change of one, for example."""
    left = list(task_ids)
    while left:
        tasks = await _locked(session, left)
        await _account(session, server, tasks, now=now)
        rows = await session.execute(
            text(f"SELECT id FROM scheduled_tasks WHERE next_execution <= :now AND {any_of(session, 'id', 'ids')}"),
            {"now": moment_parameter(session, now), "ids": ids_parameter(session, left)},
        )
        left = list(rows.scalars())


_ACTIVE = frozenset(status.value for status in TASK_SCHEDULED)
_MAY_RUN = frozenset({TaskStatus.RUNNING.value, TaskStatus.PAUSED.value})

# -- deciding ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Surroundings:
    """What else a look at some tasks needs, read for all of them at once; mostly empty."""

    running: Mapping[int, int] = field(default_factory=dict)
    waiting: Mapping[int, list[Waiting]] = field(default_factory=dict)
    calendars: Mapping[int, Calendar] = field(default_factory=dict)
    overrides: Mapping[int, Mapping[datetime, Override]] = field(default_factory=dict)
    events: Mapping[int, list[dependencies.Event]] = field(default_factory=dict)


@dataclass(slots=True)
class _Outcome:
    """What a look does to one task: rows to write, waiting executions that move, and the task's new values."""

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
    started: int = field(init=False)
    """How many executions start, new ones and those that waited."""

    def __post_init__(self) -> None:
        self.started = len([1 for entry in self.decision.entries if entry.action == "start"])
        if self.turns.changed:
            self.started += sum(turn.outcome == "start" for turn in self.turns.changed)

    @property
    def is_waiting(self) -> bool:
        """Whether executions of the task wait for a place or a window after this."""
        if any(one.action in _STATUS_OF for one in self.decision.entries):
            return True
        return bool(self.turns.delayed) or any(not self._is_superseded(one) for one in self.turns.queued)

    @property
    def has_more(self) -> bool:
        return self.next_at is not None or self.is_waiting or self.task["recurrence_type"] == "after"

    def superseded(self) -> list[int]:
        return [one.id for one in self.turns.queued if self._is_superseded(one)]

    def _is_superseded(self, one: Waiting) -> bool:
        stays = self.task["catch_up"] == CatchUp.ALL and one.is_catch_up
        return self.decision.supersedes and not stays


async def _account(session: Session, server: Server, tasks: Sequence[Task], *, now: datetime) -> set[int]:
    """Account for what these locked tasks owe up to now, as far as the budget of one transaction goes.

    Answers the ids of the tasks that were looked at.
    """
    if not tasks:
        return set()
    around = await _surroundings(session, tasks)
    resumed = {task["id"]: changed for task in tasks if (changed := _resumed(task, around, now)) is not None}
    outcomes: list[_Outcome] = []
    budget = BUDGET
    for task in tasks:
        if budget <= 0:
            break
        outcome = _look(resumed.get(task["id"], task), around, server, now)
        outcome.is_resumed = task["id"] in resumed
        outcomes.append(outcome)
        budget -= len(outcome.owed.due) * COST_OF_JUDGING + (outcome.owed.old.occurrences if outcome.owed.old else 0)
    await _resume(session, [one for one in outcomes if one.is_resumed], resumed_at=now)
    starting = [one for one in outcomes if one.started]
    targets = await resolve(session, {one.task["id"]: owner_of(one.task) for one in starting}) if starting else {}
    await _write(session, server, outcomes, targets, now=now)
    return {one.task["id"] for one in outcomes}


async def _surroundings(session: Session, tasks: Sequence[Task]) -> _Surroundings:
    waiting_ids = [task["id"] for task in tasks if task["waiting"]]
    busy_ids = [task["id"] for task in tasks if task["status"] in _MAY_RUN or task["waiting"]]
    restricted_ids = [task["id"] for task in tasks if task["restricted"]]
    overridden_ids = [task["id"] for task in tasks if task["overridden"]]
    after_ids = [task["id"] for task in tasks if task["recurrence_type"] == "after"]
    return _Surroundings(
        running=await settling.count_running(session, busy_ids) if busy_ids else {},
        waiting=await _waiting_of(session, waiting_ids) if waiting_ids else {},
        calendars=await calendars.of(session, calendars.TASKS, restricted_ids) if restricted_ids else {},
        overrides=await overrides.of(session, overridden_ids) if overridden_ids else {},
        events=await dependencies.events_of(session, after_ids) if after_ids else {},
    )


async def _waiting_of(session: Session, task_ids: Sequence[int]) -> dict[int, list[Waiting]]:
    table = scheduled_task_executions
    rows = await session.execute(
        select(table.c.id, table.c.task_id, table.c.status, table.c.due_at, table.c.trigger)
        .where(table.c.completed_time.is_(None), table.c.task_id.in_(task_ids))
        .where(table.c.status.in_(("queued", "delayed")))
        .order_by(table.c.id)
    )
    found: dict[int, list[Waiting]] = defaultdict(list)
    for row in rows:
        found[row.task_id].append(Waiting(row.id, row.status, row.due_at, row.trigger == "catch_up"))
    return found


def _look(task: Task, around: _Surroundings, server: Server, now: datetime) -> _Outcome:
    """Enumerate what the task owes up to now and let the policy decide each instant. Pure."""
    task_id = task["id"]
    rule = plans.rule_of(task)
    policy = plans.policy_of(task, around.calendars.get(task_id), server.steps)
    changes = around.overrides.get(task_id, {})
    passed = overrides.passed_in_pause(changes, task["resumed_at"]) if "resumed_at" in task else []
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
    outcome = _Outcome(task, found, decision, turns, running, next_at=found.following, events_used=events_used)
    outcome.passed_overrides = passed
    outcome.alarm_at = _alarm(outcome, policy, now)
    return outcome


def _alarm(outcome: _Outcome, policy: Policy, now: datetime) -> datetime | None:
    """When the clock has to look at the task, besides its next occurrence."""
    moments = [outcome.owed.look_at]
    if policy.calendar is not None:
        delays = any(entry.action == "delay" for entry in outcome.decision.entries)
        moments += [policy.calendar.next_open(now)] if delays or outcome.turns.delayed else []
    if outcome.task["status"] == TaskStatus.PAUSED:
        moments.append(outcome.task["paused_until"])
    return min((moment for moment in moments if moment is not None), default=None)


def _resumed(task: Task, around: _Surroundings, now: datetime) -> Task | None:
    """The task as it goes on after a pause that has run out; None where none has."""
    if task["status"] != TaskStatus.PAUSED or task["paused_until"] is None or task["paused_until"] > now:
        return None
    first = plans.rule_of(task).next_after(task["paused_until"])
    status = TaskStatus.RUNNING if around.running.get(task["id"]) else TaskStatus.PENDING
    return dict(task) | {
        "status": status.value, "version": task["version"] + 1, "next_planned_for": first,
        "resumed_at": task["paused_until"], "paused_until": None,
    }  # fmt: skip


async def _resume(session: Session, outcomes: Sequence[_Outcome], *, resumed_at: datetime) -> None:
    rows = [(one.task["id"], one.task["version"], None, None, resumed_at) for one in outcomes]
    columns = ("version", "paused_reason", "paused_until", "updated_at")
    await update_rows(session, scheduled_tasks, columns, rows)
    for one in outcomes:
        task = one.task
        at = task["resumed_at"]
        await versions.add_move(session, task["id"], task["version"], "resume", "pending", by=None, at=at)
        if task["overridden"]:
            await overrides.remove(session, task["id"], one.passed_overrides)


# -- writing ----------------------------------------------------------------------------------------------------

_STATUS_OF = {"queue": ExecutionStatus.QUEUED, "delay": ExecutionStatus.DELAYED}


async def _write(
    session: Session, server: Server, outcomes: Sequence[_Outcome], targets: Mapping[int, Targets], *, now: datetime
) -> None:
    ids = iter(
        await allocate_ids(session, scheduled_task_executions, sum(len(one.decision.entries) for one in outcomes))
    )
    rows: list[tuple[Any, ...]] = []
    sendings: list[Sending] = []
    failed: list[int] = []
    for outcome in outcomes:
        task, reached = outcome.task, targets.get(outcome.task["id"])
        outcome.refusal = None if reached is None else reached.refusal or (None if reached.devices else NO_DEVICES)
        for entry in outcome.decision.entries:
            execution_id = next(ids)
            if entry.action == "record":
                rows.append(_recorded_row(execution_id, task, entry, now))
            elif entry.action in _STATUS_OF:
                rows.append(_waiting_row(execution_id, task, entry))
            else:
                assert reached is not None
                start = Start(entry.trigger, entry.planned_for, entry.due_at, entry.cause)
                rows.append(_started_row(execution_id, task, start, outcome.refusal, now))
                if outcome.refusal is None:
                    sendings.append(_sending(task, execution_id, _run_key(task, start), reached.ordered()))
                else:
                    failed.append(execution_id)
    await insert_rows(session, scheduled_task_executions, _ROW, rows)
    turned = [one for one in outcomes if one.turns.changed or one.superseded()]
    if turned:
        sendings += await _take_turns(session, turned, targets, failed, now=now)
    await deployments.start(session, server.installation_id, sendings, now=now)
    await _move_tasks(session, outcomes, now=now)
    await _tidy(session, outcomes)
    if failed:
        await dependencies.note_endings(session, failed, now=now)
        await _hold(session, [one for one in outcomes if one.refusal], now=now)
    await settle_deployments(session, server, await _ended_at_once(session, sendings), now=now)
    for one in outcomes:
        if one.decision.cancels_oldest or one.turns.cancels_oldest:
            await _cancel_oldest(session, server, one.task, now=now)


def _run_key(task: Task, start: Start) -> str:
    what = start.cause if start.planned_for is None else start.planned_for.isoformat()
    return f"task:{task['id']}:{what}"


def _recorded_row(identity: int, task: Task, entry: Entry, now: datetime) -> tuple[Any, ...]:
    return (
        identity, task["id"], task["version"], entry.trigger, entry.planned_for, entry.covers_until, entry.occurrences,
        entry.due_at, entry.cause, entry.status, entry.reason, None, now, None, None, None,
    )  # fmt: skip


def _waiting_row(identity: int, task: Task, entry: Entry) -> tuple[Any, ...]:
    return (
        identity, task["id"], task["version"], entry.trigger, entry.planned_for, None, 1, entry.due_at, entry.cause,
        _STATUS_OF[entry.action].value, None, None, None, None, None, None,
    )  # fmt: skip


def _started_row(identity: int, task: Task, start: Start, refusal: str | None, now: datetime) -> tuple[Any, ...]:
    status = ExecutionStatus.FAILED if refusal else ExecutionStatus.RUNNING
    return (
        identity, task["id"], task["version"], start.trigger, start.planned_for, None, 1, start.due_at, start.cause,
        status.value, None, now, now if refusal else None, {"counts": {}} if refusal else None, refusal,
        start.requested_by,
    )  # fmt: skip


def _sending(task: Task, execution_id: int, run_key: str, devices: Sequence[tuple[int, bool]]) -> Sending:
    return Sending(
        deployment_type=task["task_type"],
        deployment_name=task["task_name"],
        payload_id=task["payload_id"],
        execution_id=execution_id,
        run_key=run_key,
        offline_policy=task["offline_policy"],
        offline_deadline_seconds=task["offline_deadline_seconds"],
        lost_after_seconds=task["lost_after_seconds"],
        created_by=task["created_by"],
        devices=devices,
    )


async def _take_turns(
    session: Session, outcomes: Sequence[_Outcome], targets: Mapping[int, Targets], failed: list[int], *, now: datetime
) -> list[Sending]:
    """Move executions that waited: some start, some wait for something else, some end without having started."""
    turns = {turn.id: (one, turn) for one in outcomes for turn in one.turns.changed}
    turns |= {row: (one, Turn(row, Ending("skipped", "superseded"))) for one in outcomes for row in one.superseded()}
    table = scheduled_task_executions
    query = select(table.c.id, table.c.planned_for, table.c.cause, table.c.trigger).where(table.c.id.in_(turns))
    sendings: list[Sending] = []
    moves: list[tuple[Any, ...]] = []
    for row in await session.execute(query.order_by(table.c.id)):
        one, turn = turns[row.id]
        version = one.task["version"]
        if turn.outcome == "start":
            status = ExecutionStatus.FAILED if one.refusal else ExecutionStatus.RUNNING
            ended_at = now if one.refusal else None
            result: dict[str, Any] | None = {"counts": {}} if one.refusal else None
            moves.append((row.id, status.value, None, version, now, ended_at, result, one.refusal))
            if one.refusal:
                failed.append(row.id)
            else:
                run_key = _run_key(one.task, Start(row.trigger, row.planned_for, cause=row.cause))
                sendings.append(_sending(one.task, row.id, run_key, targets[one.task["id"]].ordered()))
        elif isinstance(turn.outcome, Ending):
            moves.append((row.id, turn.outcome.status, turn.outcome.reason, version, None, now, None, None))
        else:
            moves.append((row.id, turn.outcome, None, version, None, None, None, None))
    columns = (
        "status", "reason", "task_version", "execution_time", "completed_time", "result", "error_message",
    )  # fmt: skip
    await update_rows(session, table, columns, moves, guard="completed_time IS NULL")
    return sendings


async def _move_tasks(session: Session, outcomes: Sequence[_Outcome], *, now: datetime) -> None:
    rows = []
    for one in outcomes:
        task = one.task
        result, message = _last_result(one)
        rows.append(
            (task["id"], _status_after_look(one).value, one.owed.next_planned, one.next_at,
             task["execution_count"] + one.started, now if one.started else task["last_execution"], result, message,
             one.is_waiting)
        )  # fmt: skip
    columns = (
        "status", "next_planned_for", "next_execution", "execution_count", "last_execution", "last_result",
        "error_message", "waiting",
    )  # fmt: skip
    await update_rows(session, scheduled_tasks, columns, rows)


def _status_after_look(one: _Outcome) -> TaskStatus:
    if one.task["status"] not in _ACTIVE:
        return TaskStatus(one.task["status"])
    if one.started and one.refusal is None:
        return TaskStatus.RUNNING
    started = sum(turn.outcome == "start" for turn in one.turns.changed)
    if one.running - (started if one.refusal else 0) > 0:
        return TaskStatus.RUNNING
    if one.has_more:
        return TaskStatus.PENDING
    match (_last_result(one)[0] or {}).get("status"):
        case ExecutionStatus.COMPLETED:
            return TaskStatus.COMPLETED
        case ExecutionStatus.CANCELLED:
            return TaskStatus.CANCELLED
        case _:
            return TaskStatus.FAILED


def _last_result(one: _Outcome) -> tuple[dict[str, Any] | None, str | None]:
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


async def _tidy(session: Session, outcomes: Sequence[_Outcome]) -> None:
    """Write what else a look leaves behind: alarms, used overrides, used endings of upstream tasks."""
    wanted = {(one.task["id"], one.alarm_at) for one in outcomes if one.alarm_at is not None}
    if wanted:
        known = await alarms.instants_of(session, sorted({task_id for task_id, _ in wanted}))
        await alarms.add(session, sorted(wanted - known))
    for one in outcomes:
        if one.owed.used or one.owed.ahead:
            await overrides.spend(session, one.task["id"], one.owed.used, one.owed.ahead)
        if one.events_used:
            await dependencies.forget(session, one.events_used)


async def _hold(session: Session, outcomes: Sequence[_Outcome], *, now: datetime) -> None:
    """Pause tasks whose execution could not start, where their definition says so."""
    for one in outcomes:
        task = await lock_task(session, one.task["id"])
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


def owner_of(task: Task) -> Owner:
    return Owner(task["created_by"], task["username"], task["role"], bool(task["is_active"]))


async def _ended_at_once(session: Session, sendings: Sequence[Sending]) -> list[int]:
    """Deployments of which no device may wait and none was online: their runs were inserted as ended."""
    silent = [
        one.execution_id
        for one in sendings
        if one.execution_id and one.offline_policy == "fail" and not any(online for _, online in one.devices)
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


# -- by hand, and endings ---------------------------------------------------------------------------------------


async def start_by_hand(
    session: Session, server: Server, task: Task, targets: Targets, requested_by: int, *, now: datetime
) -> int:
    """Start a manual execution of a locked task; uses up nothing of the schedule. Answers the execution's id."""
    (identity,) = await allocate_ids(session, scheduled_task_executions, 1)
    start = Start("manual", cause=f"manual:{uuid4().hex}", requested_by=requested_by)
    refusal = targets.refusal or (None if targets.devices else NO_DEVICES)
    await insert_rows(session, scheduled_task_executions, _ROW, [_started_row(identity, task, start, refusal, now)])
    before, result, message = TaskStatus(task["status"]), task["last_result"], task["error_message"]
    status: TaskStatus = before if before == TaskStatus.PAUSED else TaskStatus.RUNNING
    if refusal is not None:
        more = task["next_execution"] or task["waiting"] or task["recurrence_type"] == "after"
        status = before if more or before in (TaskStatus.PAUSED, TaskStatus.RUNNING) else TaskStatus.FAILED
        result, message = {"status": ExecutionStatus.FAILED.value, "counts": {}}, refusal
    columns = ("status", "execution_count", "last_execution", "last_result", "error_message")
    values = (task["id"], status.value, task["execution_count"] + 1, now, result, message)
    await update_rows(session, scheduled_tasks, columns, [values])
    if refusal is not None:
        await dependencies.note_endings(session, [identity], now=now)
        return identity
    sending = _sending(task, identity, _run_key(task, start), targets.ordered())
    await deployments.start(session, server.installation_id, [sending], now=now)
    await settle_deployments(session, server, await _ended_at_once(session, [sending]), now=now)
    return identity


async def settle_deployments(
    session: Session, server: Server, deployment_ids: Sequence[int], *, now: datetime
) -> list[Ended]:
    """End deployments whose runs have ended, their executions, and move the tasks on. Safe to repeat."""
    if not deployment_ids:
        return []
    await settling.lock_tasks_of(session, deployment_ids)
    ended = await deployments.settle(session, deployment_ids, now=now)
    await settle(session, server, ended, now=now)
    return ended


async def settle(session: Session, server: Server, ended: Sequence[Ended], *, now: datetime) -> None:
    """End the executions behind ended deployments; a task to be paused for it first gets what it owes till now."""
    for task_id in await settling.settle(session, ended, now=now):
        task = await lock_task(session, task_id)
        if task is not None and task["next_execution"] is not None and task["next_execution"] <= now:
            await account_for(session, server, [task_id], now=now)
            task = await lock_task(session, task_id)
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
        await _account(session, server, await _locked(session, waited), now=now)
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
