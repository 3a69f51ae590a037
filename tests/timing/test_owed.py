"""What is owed at a moment: enumeration with jitter, moves, skips and limits; and the fast way over long stretches."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from deployx.timing import recurrence
from deployx.timing.jitter import delay, shortest_gap
from deployx.timing.owed import Override, Owed, Plan, owed
from deployx.timing.recurrence import Recurrence
from tests.timing.oracle import fresh_random, random_cron, utc

NOW = utc(2026, 11, 23, 12)
HOUR = timedelta(hours=1)


def cron(expression: str, zone: str = "UTC", **config: Any) -> Recurrence:
    return recurrence.parse(
        "custom", {"cron_expression": expression, **config}, scheduled_for=utc(2026, 1, 1), timezone=zone
    )


def hourly(overrides: dict[datetime, Override] | None = None) -> Plan:
    return Plan(cron("0 * * * *"), overrides=overrides or {})


def look(plan: Plan, cursor: datetime, *, grace: timedelta | None = None, limit: int = 1000) -> Owed:
    missed_before = None if grace is None else NOW - grace
    return owed(plan, cursor, now=NOW, missed_before=missed_before, limit=limit, old_limit=10_000)


def test_all_instants_up_to_now_are_due_and_the_next_one_follows() -> None:
    found = look(hourly(), NOW - 2 * HOUR)
    assert [one.planned_for for one in found.due] == [NOW - 2 * HOUR, NOW - HOUR, NOW]
    assert (found.next_planned, found.following, found.look_at) == (NOW + HOUR, NOW + HOUR, None)


def test_what_is_certainly_missed_is_counted_apart() -> None:
    found = look(hourly(), NOW - 500 * HOUR, grace=HOUR)
    assert found.old is not None
    assert (found.old.first.planned_for, found.old.last.planned_for) == (NOW - 500 * HOUR, NOW - 2 * HOUR)
    assert (found.old.occurrences, len(found.old.singles)) == (499, 101)
    assert [one.planned_for for one in found.due] == [NOW - HOUR, NOW]


def test_a_limit_leaves_the_rest_for_the_next_look_and_says_that_more_is_due() -> None:
    found = look(hourly(), NOW - 5 * HOUR, limit=2)
    assert [one.planned_for for one in found.due] == [NOW - 5 * HOUR, NOW - 4 * HOUR]
    assert (found.next_planned, found.following) == (NOW - 3 * HOUR, NOW - 3 * HOUR)
    long = owed(hourly(), NOW - 500 * HOUR, now=NOW, missed_before=NOW, limit=9, old_limit=200)
    assert long.old is not None
    assert (long.old.occurrences, long.due, long.following) == (200, [], NOW - 300 * HOUR)


def test_jitter_holds_an_occurrence_back_until_its_own_moment() -> None:
    plan = Plan(cron("0 * * * *"), task_id=7, jitter_seconds=3599)
    due_at = NOW + delay(7, NOW, 3599)
    assert look(plan, NOW).due == []
    assert look(plan, NOW).following == due_at
    found = owed(plan, NOW, now=due_at, missed_before=None, limit=10, old_limit=10)
    assert [(one.planned_for, one.due_at) for one in found.due] == [(NOW, due_at)]


def test_what_jitter_held_back_is_not_old_by_its_nominal_instant() -> None:
    plan = Plan(cron("0 * * * *"), task_id=7, jitter_seconds=3599)
    now = plan.due_at(NOW) + timedelta(seconds=10)
    found = owed(plan, NOW, now=now, missed_before=now - timedelta(seconds=10), limit=10, old_limit=10)
    assert (found.old, [one.planned_for for one in found.due]) == (None, [NOW])


def test_jitter_is_the_same_each_time_differs_by_task_and_stays_below_its_bound() -> None:
    delays = [delay(task_id, NOW, 60) for task_id in range(2000)]
    assert delays == [delay(task_id, NOW, 60) for task_id in range(2000)]
    assert timedelta(0) <= min(delays) < timedelta(seconds=1)
    assert timedelta(seconds=59) < max(delays) < timedelta(seconds=60)
    assert len(set(delays)) > 1900


def test_a_skip_is_due_at_its_instant_and_the_clock_is_told_to_look_then() -> None:
    plan = hourly({NOW + HOUR: Override(None), NOW - HOUR: Override(None)})
    found = look(plan, NOW - HOUR)
    assert [(one.planned_for, one.skipped_by_hand) for one in found.due] == [(NOW - HOUR, True), (NOW, False)]
    assert (found.following, found.look_at, found.used) == (NOW + 2 * HOUR, NOW + HOUR, [NOW - HOUR])


@pytest.mark.parametrize("to", [NOW - timedelta(minutes=1), NOW])
def test_a_moved_one_is_due_at_its_new_moment_wherever_its_instant_lies(to: datetime) -> None:
    later = look(hourly({NOW - 3 * HOUR: Override(to)}), NOW + HOUR)
    assert [(one.planned_for, one.due_at, one.after_hole) for one in later.due] == [(NOW - 3 * HOUR, to, True)]
    assert later.used == [NOW - 3 * HOUR]
    ahead = look(hourly({NOW + 3 * HOUR: Override(to)}), NOW + HOUR)
    assert [(one.planned_for, one.due_at) for one in ahead.due] == [(NOW + 3 * HOUR, to)]
    assert (ahead.ahead, ahead.used) == ([NOW + 3 * HOUR], [])


def test_one_that_fired_ahead_is_passed_over_when_its_instant_comes() -> None:
    found = look(hourly({NOW - HOUR: Override(NOW - 4 * HOUR, fired=True)}), NOW - 2 * HOUR)
    assert [(one.planned_for, one.after_hole) for one in found.due] == [(NOW - 2 * HOUR, False), (NOW, True)]
    assert found.used == [NOW - HOUR]


def test_one_that_is_moved_to_later_leaves_a_hole_and_stays_to_come() -> None:
    found = look(hourly({NOW - HOUR: Override(NOW + HOUR / 2)}), NOW - 2 * HOUR)
    assert [(one.planned_for, one.after_hole) for one in found.due] == [(NOW - 2 * HOUR, False), (NOW, True)]
    assert (found.following, found.used) == (NOW + HOUR / 2, [])


def test_between_gives_what_searching_one_by_one_gives() -> None:
    rng = fresh_random()
    for _ in range(150):
        zone = rng.choice(("UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns", "Pacific/Apia"))
        rule = cron(expression, zone) if (expression := _firing(rng)) else cron("0 0 * * *", zone)
        after = utc(2027, 1, 1) + timedelta(minutes=rng.randrange(500_000), seconds=rng.randrange(60))
        until = after + timedelta(days=rng.choice((1, 20, 200)))
        fast: list[datetime] = []
        slow: list[datetime] = []
        moment = rule.next_after(after)
        for instant in rule.between(after, until):
            fast.append(instant)
            if len(fast) == 800:
                break
        while moment is not None and moment <= until and len(slow) < 800:
            slow.append(moment)
            moment = rule.next_after(moment)
        assert fast == slow, (expression, zone, after, until)


def _firing(rng: Any) -> str | None:
    expression = random_cron(rng)
    try:
        cron(expression)
    except recurrence.RecurrenceError:
        return None
    return expression


@pytest.mark.parametrize(
    ("expression", "zone", "seconds"),
    [
        ("* * * * *", "UTC", 60),
        ("*/7 * * * *", "UTC", 240),  # from :56 to the full hour
        ("0,10 3 * * *", "UTC", 600),
        ("55 23 * * *", "UTC", 86_400),
        ("5 0,23 * * *", "UTC", 3600),
        ("5 0,23 * * mon", "UTC", 82_800),
        ("30 1,3 * * *", "Europe/Berlin", 3600),  # on the day on which two o'clock is left out
        ("0 0 1 1 *", "UTC", None),
    ],
)
def test_the_shortest_gap_of_a_cron_is_found_without_walking_the_year(
    expression: str, zone: str, seconds: int | None
) -> None:
    found = shortest_gap(cron(expression, zone), NOW)
    instants = list(cron(expression, zone).between(NOW, NOW + timedelta(days=366)))
    gaps = [later - earlier for earlier, later in pairwise(instants)]
    if seconds is None:
        assert not gaps
    else:
        assert found == min(gaps) == timedelta(seconds=seconds)


def test_max_occurrences_ends_a_rule_after_so_many() -> None:
    rule = recurrence.limited(cron("0 * * * *", max_occurrences=3), counted_from=NOW)
    assert list(rule.between(NOW, NOW + 9 * HOUR)) == [NOW + HOUR, NOW + 2 * HOUR, NOW + 3 * HOUR]
    later = recurrence.limited(cron("0 * * * *", max_occurrences=3), counted_from=NOW, planned_before=2)
    assert list(later.between(NOW, NOW + 9 * HOUR)) == [NOW + HOUR]
    spent = recurrence.limited(cron("0 * * * *", max_occurrences=3), counted_from=NOW, planned_before=3)
    assert spent.next_after(NOW) is None
