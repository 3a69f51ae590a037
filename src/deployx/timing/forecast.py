"""Forecasts how many executions start when, and where a device gets several at once. Pure, and made for a thread.

It asks the policy that the clock asks, so it cannot disagree with it; what depends on how long executions take (a
queue, a place under `max_instances`) is not foretold. Tasks that share a recurrence are counted together.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain, pairwise

from deployx.timing.owed import Due, Plan
from deployx.timing.policy import Policy, decide
from deployx.timing.rules import After, Interval, Once, Weekly

MOST_INSTANTS = 5_000_000
MOST_COLLISIONS = 1_000
COLLISION_STEPS = 3_000_000
"""After so many instants compared the search for collisions ends, and says so."""

_TICK = timedelta(microseconds=1)
_LOOK_FURTHER = timedelta(days=1)


class TooManyInstants(ValueError):
    """The range holds more occurrences than a forecast counts."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One task to forecast: what it plans from `cursor` on, and the ids of the devices it reaches now."""

    task_id: int
    plan: Plan
    policy: Policy
    cursor: datetime
    device_ids: tuple[int, ...]


@dataclass(slots=True)
class Bucket:
    since: datetime
    executions: int = 0
    device_runs: int = 0


@dataclass(frozen=True, slots=True)
class Collision:
    at: datetime
    device_id: int
    task_ids: tuple[int, ...]


@dataclass(slots=True)
class Forecast:
    buckets: list[Bucket]
    collisions: list[Collision] = field(default_factory=list)
    is_whole: bool = True
    """Whether all collisions were looked for."""


def starts(planned: Planned, since: datetime, until: datetime) -> Iterator[datetime]:
    """Yield when the occurrences that start in [since, until) do, with jitter, moves and windows."""
    plan, calendar = planned.plan, planned.policy.calendar
    after = max(since - _reach(planned), planned.cursor) - _TICK
    if calendar is None and plan.jitter_seconds == 0 and not plan.overrides:
        yield from plan.rule.between(max(after, since - _TICK), until - _TICK)
        return
    held = [
        Due(at, to.due_at)
        for at, to in plan.overrides.items()
        if to.due_at is not None and not to.fired and at < planned.cursor
    ]
    upcoming = plan.upcoming(after, until - _TICK)
    fired = {at for at, to in plan.overrides.items() if to.fired}
    following = plan.upcoming(until - _TICK, until + _LOOK_FURTHER)
    ordered = chain(sorted(held), (one for one in upcoming if one.planned_for not in fired), (next(following, None),))
    for one, after_it in pairwise(chain(ordered, (None,))):
        if one is None:
            return
        start_at = expected_start(one, after_it.due_at if after_it else None, planned.policy)
        if start_at is not None and since <= start_at < until:
            yield start_at


def _reach(planned: Planned) -> timedelta:
    """How long before its start an occurrence may be planned."""
    moved = [to.due_at - at for at, to in planned.plan.overrides.items() if to.due_at is not None]
    window = timedelta(days=8) if planned.policy.calendar is not None else timedelta(0)
    return max([timedelta(0), *moved]) + timedelta(seconds=planned.plan.jitter_seconds) + window


def expected_start(one: Due, next_due: datetime | None, policy: Policy) -> datetime | None:
    """When an occurrence starts on a server that is up, with a place free; None where a policy keeps it from that."""
    (entry,) = decide([one], now=one.due_at, policy=policy, following=next_due).entries
    match entry.action:
        case "start":
            return one.due_at
        case "delay" if policy.calendar is not None:
            opens_at = policy.calendar.next_open(one.due_at)
            return None if opens_at is None or (next_due is not None and next_due <= opens_at) else opens_at
        case _:
            return None


def forecast(tasks: Iterable[Planned], since: datetime, until: datetime, bucket: timedelta) -> Forecast:
    """Count by bucket of [since, until). Raises TooManyInstants."""
    buckets = [Bucket(since + number * bucket) for number in range(-((since - until) // bucket))]
    groups: dict[object, list[Planned]] = defaultdict(list)
    for planned in tasks:
        groups[_key(planned, since)].append(planned)
    width, left = bucket.total_seconds(), MOST_INSTANTS
    zero = since.timestamp()
    for alike in groups.values():
        runs = sum(len(planned.device_ids) for planned in alike)
        counted = Counter(int((at.timestamp() - zero) // width) for at in starts(alike[0], since, until))
        left -= counted.total()
        if left < 0:
            raise TooManyInstants
        for number, count in counted.items():
            buckets[number].executions += count * len(alike)
            buckets[number].device_runs += count * runs
    found = Forecast(buckets)
    _collide(found, list(groups.values()), since, until)
    return found


def _key(planned: Planned, since: datetime) -> object:
    """Equal for tasks whose starts are equal; a task with settings of its own stands alone."""
    plan, rule = planned.plan, planned.plan.rule
    if plan.jitter_seconds or plan.overrides or planned.policy.calendar is not None or isinstance(rule, After | Once):
        return planned.task_id
    counts_from_start = isinstance(rule, Interval) or (isinstance(rule, Weekly) and rule.every > 1)
    if counts_from_start or rule.last_at is not None or planned.cursor > since:
        return (rule, planned.cursor)
    start_matters = rule.start_at is not None and rule.start_at > since
    return (type(rule), str(rule.zone), rule.end, rule.start_at if start_matters else None, _shape(rule))


def _shape(rule: object) -> tuple[object, ...]:
    names = ("wall_time", "days_of_week", "on", "expression")
    return tuple(getattr(rule, name, None) for name in names)


def _collide(found: Forecast, groups: Sequence[list[Planned]], since: datetime, until: datetime) -> None:
    """Find devices that get several executions within one second."""
    by_device: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, alike in enumerate(groups):
        for planned in alike:
            for device_id in planned.device_ids:
                by_device[device_id].append((number, planned.task_id))
    seconds: dict[int, list[int]] = {}
    steps = COLLISION_STEPS
    for device_id, members in sorted(by_device.items()):
        if len(members) < 2:
            continue
        tasks_at: dict[int, list[int]] = defaultdict(list)
        for number, task_id in members:
            if number not in seconds:
                seconds[number] = [int(at.timestamp()) for at in starts(groups[number][0], since, until)]
            steps -= len(seconds[number])
            for second in seconds[number]:
                tasks_at[second].append(task_id)
        found.collisions += _of_device(device_id, tasks_at, since)
        if steps < 0 or len(found.collisions) > MOST_COLLISIONS:
            found.is_whole = False
            break
    found.collisions.sort(key=lambda one: (one.at, one.device_id))
    del found.collisions[MOST_COLLISIONS:]


def _of_device(device_id: int, tasks_at: Mapping[int, list[int]], since: datetime) -> list[Collision]:
    return [
        Collision(datetime.fromtimestamp(second, since.tzinfo), device_id, tuple(sorted(task_ids)))
        for second, task_ids in sorted(tasks_at.items())
        if len(task_ids) > 1
    ]
