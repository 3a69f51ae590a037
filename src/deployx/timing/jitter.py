"""Jitter: moves each occurrence later by an amount that depends on nothing but the task and the nominal instant.

So that tasks planned for one instant do not start at once, and a restart moves none of them again.
"""

from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import pairwise

from deployx.timing.rules import After, Custom, Interval, Once, Recurrence
from deployx.timing.zones import shifts_between, to_wall

LOOK_AHEAD = timedelta(days=366)
_DAY = timedelta(days=1)


def delay(task_id: int, planned_for: datetime, jitter_seconds: int) -> timedelta:
    """Return the delay of one occurrence: whole milliseconds in [0, jitter)."""
    if jitter_seconds == 0:
        return timedelta(0)
    text = f"{task_id}:{planned_for.isoformat()}"
    number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
    return timedelta(milliseconds=number % (jitter_seconds * 1000))


def shortest_gap(rule: Recurrence, since: datetime) -> timedelta | None:
    """Return the shortest time between two occurrences in the 366 days after `since`; None where there are no two."""
    match rule:
        case Once() | After():
            return None
        case Interval(every_seconds=seconds):
            first = rule.next_after(since)
            alone = first is None or rule.next_after(first) is None
            return None if alone else timedelta(seconds=seconds)
        case Custom():
            return _of_cron(rule, since)
        case _:
            instants = rule.between(since, since + LOOK_AHEAD)
            return min((later - earlier for earlier, later in pairwise(instants)), default=None)


def _of_cron(rule: Custom, since: datetime) -> timedelta | None:
    """A cron may have half a million instants a year: its days are alike, so one of them and the shifts are looked at.

    The result may be too short where `end_date` or `max_occurrences` ends the rule after a few occurrences.
    """
    first = rule.next_after(since)
    if first is None or rule.next_after(first) is None:
        return None
    until = since + LOOK_AHEAD
    gaps = [rule.cron.shortest_gap_of_a_day]
    days = list(rule.cron.days_between(to_wall(since, rule.zone) - _DAY, to_wall(until, rule.zone)))
    if any(later - earlier == _DAY for earlier, later in pairwise(days)):
        gaps.append(rule.cron.gap_over_midnight)
    for shift in shifts_between(since, until, rule.zone):
        around = rule.between(shift.at - _DAY, shift.at + _DAY)
        gaps += [later - earlier for earlier, later in pairwise(around)]
    return min(gaps)
