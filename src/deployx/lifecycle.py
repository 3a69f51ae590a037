"""The one table of states and of the moves between them; the diagrams in the docs are drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar


class TaskStatus(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"


class ExecutionStatus(StrEnum):
    QUEUED = "queued"
    DELAYED = "delayed"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    MISSED = "missed"
    SKIPPED = "skipped"


class DeploymentStatus(StrEnum):
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RunStatus(StrEnum):
    """A device run: one device's share of a deployment."""

    QUEUED = "queued"
    WAITING = "waiting"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    CANCEL_UNCONFIRMED = "cancel_unconfirmed"
    INTERRUPTED = "interrupted"
    LOST = "lost"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    HALTED = "halted"


_R = RunStatus
_ENDED_ON_DEVICE = frozenset({_R.SUCCEEDED, _R.FAILED, _R.ROLLED_BACK, _R.TIMED_OUT, _R.CANCELLED, _R.INTERRUPTED})

RUN_MOVES: Mapping[RunStatus, frozenset[RunStatus]] = {
    _R.QUEUED: frozenset({_R.WAITING, _R.DISPATCHED, _R.CANCELLED, _R.FAILED, _R.EXPIRED, _R.LOST, _R.HALTED}),
    _R.WAITING: frozenset({_R.QUEUED, _R.CANCELLED, _R.EXPIRED, _R.LOST, _R.SUPERSEDED, _R.HALTED, _R.SUCCEEDED}),
    _R.DISPATCHED: frozenset({_R.QUEUED, _R.RUNNING, _R.CANCELLING, _R.LOST, _R.EXPIRED, _R.CANCELLED})
    | _ENDED_ON_DEVICE,
    _R.RUNNING: frozenset({_R.QUEUED, _R.CANCELLING, _R.LOST, _R.CANCELLED}) | _ENDED_ON_DEVICE,
    _R.CANCELLING: frozenset({_R.CANCEL_UNCONFIRMED, _R.LOST}) | _ENDED_ON_DEVICE,
}
"""What a device run may become; a status without an entry is an end.

Dispatched and running go back to queued when a device returns that does not know the order: it is sent again under
the same id, which the device's journal starts at most once. A later attempt that waits for news of one that was lost
succeeds when it turns out that the lost one had.
"""

TASK_MOVES: Mapping[TaskStatus, frozenset[TaskStatus]] = {
    TaskStatus.PENDING: frozenset(
        {TaskStatus.RUNNING, TaskStatus.PAUSED, TaskStatus.CANCELLED, TaskStatus.COMPLETED, TaskStatus.FAILED}
    ),
    TaskStatus.RUNNING: frozenset(
        {TaskStatus.PENDING, TaskStatus.PAUSED, TaskStatus.CANCELLED, TaskStatus.COMPLETED, TaskStatus.FAILED}
    ),
    TaskStatus.PAUSED: frozenset({TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.CANCELLED}),
    TaskStatus.COMPLETED: frozenset({TaskStatus.PENDING, TaskStatus.RUNNING}),
    TaskStatus.FAILED: frozenset({TaskStatus.PENDING, TaskStatus.RUNNING}),
    TaskStatus.CANCELLED: frozenset({TaskStatus.PENDING}),
}

_E = ExecutionStatus
EXECUTION_MOVES: Mapping[ExecutionStatus, frozenset[ExecutionStatus]] = {
    _E.QUEUED: frozenset({_E.RUNNING, _E.DELAYED, _E.SKIPPED, _E.FAILED, _E.CANCELLED}),
    _E.DELAYED: frozenset({_E.RUNNING, _E.QUEUED, _E.SKIPPED, _E.FAILED, _E.CANCELLED}),
    _E.RUNNING: frozenset({_E.COMPLETED, _E.FAILED, _E.CANCELLED, _E.SKIPPED}),
}

DEPLOYMENT_MOVES: Mapping[DeploymentStatus, frozenset[DeploymentStatus]] = {
    DeploymentStatus.RUNNING: frozenset(
        {DeploymentStatus.COMPLETED, DeploymentStatus.FAILED, DeploymentStatus.CANCELLED}
    ),
}

RUN_OPEN = frozenset(RUN_MOVES)
EXECUTION_WAITING = frozenset({ExecutionStatus.QUEUED, ExecutionStatus.DELAYED})
RUN_ON_DEVICE = frozenset({RunStatus.DISPATCHED, RunStatus.RUNNING, RunStatus.CANCELLING})
RUN_FAILURES = frozenset(
    {RunStatus.FAILED, RunStatus.ROLLED_BACK, RunStatus.TIMED_OUT, RunStatus.INTERRUPTED, RunStatus.LOST}
)
RUN_NOT_REACHED = frozenset({RunStatus.EXPIRED, RunStatus.SUPERSEDED})
TASK_SCHEDULED = frozenset({TaskStatus.PENDING, TaskStatus.RUNNING})

State = TypeVar("State", bound=StrEnum)


def sources(moves: Mapping[State, frozenset[State]], target: State) -> tuple[str, ...]:
    """The states from which `target` may be entered, sorted: the guard of a move's UPDATE."""
    return tuple(sorted(state.value for state, targets in moves.items() if target in targets))
