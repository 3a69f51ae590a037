"""Gives executions that wait their turn: queued ones when a place is free, delayed ones when a window opens. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from deployx.timing.policy import (
    AT_CAPACITY,
    IN_BLACKOUT,
    OUTSIDE_WINDOW,
    SUPERSEDED,
    WHILE_PAUSED,
    CatchUp,
    Ending,
    Outside,
    Overlap,
    Policy,
)  # fmt: skip
from deployx.timing.windows import State


class Waiting(NamedTuple):
    """An execution that waits: `queued` for a place, or `delayed` for its window."""

    id: int
    status: Literal["queued", "delayed"]
    due_at: datetime
    is_catch_up: bool


Outcome = Literal["start", "queued", "delayed"] | Ending


class Turn(NamedTuple):
    """What becomes of a waiting execution: it starts, it waits for something else now, or it has ended."""

    id: int
    outcome: Outcome


@dataclass(slots=True)
class Turns:
    """Only those that change. `waiting` tells what the rest, and those that wait on, wait for."""

    changed: list[Turn] = field(default_factory=list)
    cancels_oldest: bool = False
    queued: list[Waiting] = field(default_factory=list)
    delayed: list[Waiting] = field(default_factory=list)


def take_turns(
    waiting: Sequence[Waiting],
    *,
    now: datetime,
    policy: Policy,
    running: int,
    is_paused: bool,
    next_due: datetime | None,
) -> Turns:
    """Give waiting executions their turn, oldest first: a queued one when a place is free, a delayed one when its
    window opens. Pause, window and overlap are checked again then, the grace is not.

    `next_due` is when the next occurrence of the task fell or falls due: a delayed one that it overtakes is skipped.
    """
    turns = Turns()
    outcomes: dict[int, Outcome] = {}
    places = policy.max_instances - running
    state = policy.calendar.state(now)[0] if policy.calendar else State.OPEN
    for one in sorted(waiting, key=lambda one: (one.due_at, one.id)):
        outcome = _turn(one, now, policy, state, places, is_paused, next_due)
        if outcome is not None:
            outcomes[one.id] = outcome
        if outcome == "start":
            places -= 1
        elif outcome is None or not isinstance(outcome, Ending):
            (turns.queued if (outcome or one.status) == "queued" else turns.delayed).append(one)
    if "queued" in outcomes.values():
        turns.cancels_oldest = policy.overlap is Overlap.CANCEL_RUNNING
        for replaced in _replaced(turns.queued, policy):
            outcomes[replaced.id] = SUPERSEDED
            turns.queued.remove(replaced)
    for older in turns.delayed[:-1]:  # the newest waits for the window
        outcomes[older.id] = OUTSIDE_WINDOW
    turns.delayed = turns.delayed[-1:]
    turns.changed = [Turn(identity, outcome) for identity, outcome in outcomes.items()]
    return turns


def _replaced(queued: Sequence[Waiting], policy: Policy) -> list[Waiting]:
    """All but the newest: one waits at a time. But those that wait because all late ones are to start stay in line."""
    return [one for one in queued if not (policy.catch_up is CatchUp.ALL and one.is_catch_up)][:-1]


def _turn(
    one: Waiting,
    now: datetime,
    policy: Policy,
    state: State,
    places: int,
    is_paused: bool,
    next_due: datetime | None,
) -> Outcome | None:
    overtaken = next_due is not None and next_due <= now
    if one.status == "queued":
        if places <= 0:
            return None
        if is_paused:
            return WHILE_PAUSED
        if state is State.BLACKOUT:
            return IN_BLACKOUT
        if state is State.CLOSED:
            return OUTSIDE_WINDOW if policy.outside is Outside.SKIP or overtaken else "delayed"
        return "start"
    if overtaken and (state is not State.OPEN or _opened_later(one, policy, next_due)):
        return OUTSIDE_WINDOW
    if state is not State.OPEN:
        return None
    if is_paused:
        return WHILE_PAUSED
    if places > 0:
        return "start"
    return AT_CAPACITY if policy.overlap is Overlap.SKIP else "queued"


def _opened_later(one: Waiting, policy: Policy, next_due: datetime | None) -> bool:
    """Whether the next occurrence fell due before this one's window opened, or just then."""
    opened_at = policy.calendar.next_open(one.due_at) if policy.calendar else None
    return opened_at is not None and next_due is not None and next_due <= opened_at
