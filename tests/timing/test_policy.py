"""What becomes of due occurrences: the rules one by one, then all of them on random backlogs."""

import random
from datetime import datetime, timedelta

import pytest

from deployx.timing.policy import CatchUp, Decision, Due, Entry, decide
from tests.timing.oracle import fresh_random, utc

NOW = utc(2026, 11, 23, 12)
GRACE = timedelta(seconds=300)


def late_by(seconds: float) -> Due:
    at = NOW - timedelta(seconds=seconds)
    return Due(at, at)


def decided(*lateness: float, catch_up: CatchUp = CatchUp.LATEST, running: int = 0, max_instances: int = 3) -> Decision:
    due = [late_by(seconds) for seconds in lateness]
    return decide(due, now=NOW, grace=GRACE, catch_up=catch_up, running=running, max_instances=max_instances)


def outcomes(decision: Decision) -> list[str]:
    """Return "start"/"catch_up" for starts, else the reason."""
    return [entry.reason or ("start" if entry.trigger == "schedule" else entry.trigger) for entry in decision.entries]


@pytest.mark.parametrize(
    ("lateness", "catch_up", "running", "expected"),
    [
        # in time, late, at the grace, beyond it
        ([0], CatchUp.LATEST, 0, ["start"]),
        ([5], CatchUp.LATEST, 0, ["start"]),
        ([5.000001], CatchUp.LATEST, 0, ["catch_up"]),
        ([300], CatchUp.LATEST, 0, ["catch_up"]),
        ([300.000001], CatchUp.LATEST, 0, ["misfire"]),
        # of several late ones only the newest starts, what is in time starts as well
        ([180, 120, 60], CatchUp.LATEST, 0, ["coalesced", "coalesced", "catch_up"]),
        ([120, 60, 0], CatchUp.LATEST, 0, ["coalesced", "coalesced", "start"]),
        ([60, 4, 2, 0], CatchUp.LATEST, 0, ["coalesced", "start", "start", "start"]),
        ([400, 310, 299], CatchUp.LATEST, 0, ["misfire", "misfire", "catch_up"]),
        ([400, 310], CatchUp.LATEST, 0, ["misfire", "misfire"]),
        # all start, oldest first
        ([180, 120, 60], CatchUp.ALL, 0, ["catch_up", "catch_up", "catch_up"]),
        ([400, 120, 0], CatchUp.ALL, 0, ["misfire", "catch_up", "start"]),
        # none of the late ones
        ([120, 60, 0], CatchUp.NONE, 0, ["catch_up_none", "catch_up_none", "start"]),
        ([400, 60], CatchUp.NONE, 0, ["misfire", "catch_up_none"]),
        # overlap
        ([0], CatchUp.LATEST, 2, ["start"]),
        ([0], CatchUp.LATEST, 3, ["max_instances"]),
        ([0], CatchUp.LATEST, 9, ["max_instances"]),
        ([60], CatchUp.LATEST, 3, ["max_instances"]),
        ([4, 3, 2, 1], CatchUp.LATEST, 1, ["start", "start", "max_instances", "max_instances"]),
        ([0], CatchUp.ALL, 3, ["max_instances"]),
        # grace comes before catch-up, catch-up before overlap
        ([400, 120, 60], CatchUp.LATEST, 3, ["misfire", "coalesced", "max_instances"]),
        ([400, 120], CatchUp.NONE, 3, ["misfire", "catch_up_none"]),
        ([], CatchUp.LATEST, 0, []),
    ],
)
def test_each_due_occurrence_starts_or_is_recorded_with_its_reason(
    lateness: list[float], catch_up: CatchUp, running: int, expected: list[str]
) -> None:
    decision = decided(*lateness, catch_up=catch_up, running=running)
    assert outcomes(decision) == expected
    assert decision.resume_at is None
    assert [entry.due_at for entry in decision.entries] == [late_by(seconds).due_at for seconds in lateness]


def test_a_start_has_no_status_and_a_record_has_one() -> None:
    started, missed, skipped = (
        decided(0).entries[0],
        decided(301).entries[0],
        decided(0, running=3).entries[0],
    )
    at = NOW - timedelta(seconds=301)
    assert started == Entry("start", NOW, NOW, "schedule")
    assert missed == Entry("record", at, at, "schedule", status="missed", reason="misfire")
    assert skipped == Entry("record", NOW, NOW, "schedule", status="skipped", reason="max_instances")


def test_under_catch_up_all_what_finds_no_place_waits_with_all_that_follows() -> None:
    decision = decided(240, 180, 120, 60, 0, catch_up=CatchUp.ALL, running=1)
    assert outcomes(decision) == ["catch_up", "catch_up"]
    assert decision.resume_at == NOW - timedelta(seconds=120)
    assert decision.admitted_through == NOW


def test_one_that_waited_starts_even_after_its_grace_and_one_that_was_not_looked_at_does_not() -> None:
    due = [late_by(900), late_by(600)]
    decision = decide(
        due,
        now=NOW,
        grace=GRACE,
        catch_up=CatchUp.ALL,
        running=2,
        max_instances=3,
        admitted_through=due[0].planned_for,
    )
    assert outcomes(decision) == ["catch_up", "misfire"]


def test_one_that_waited_goes_on_waiting_though_it_is_not_late_yet() -> None:
    due = [late_by(4)]
    decision = decide(due, now=NOW, grace=GRACE, catch_up=CatchUp.ALL, running=3, max_instances=3, admitted_through=NOW)
    assert decision == Decision([], resume_at=due[0].planned_for, admitted_through=due[0].planned_for)


def test_lateness_is_measured_from_due_at_not_from_the_planned_instant() -> None:
    moved = Due(planned_for=NOW - timedelta(hours=2), due_at=NOW - timedelta(seconds=2))
    decision = decide([moved], now=NOW, grace=GRACE, catch_up=CatchUp.NONE, running=0, max_instances=1)
    assert decision.entries == [Entry("start", moved.planned_for, moved.due_at, "schedule")]


def test_what_is_not_due_yet_is_not_decided() -> None:
    with pytest.raises(ValueError, match="not due"):
        decided(-1)


def test_up_to_100_alike_in_a_row_are_rows_of_their_own_and_more_are_one() -> None:
    hundred = [late_by(10_000 - second) for second in range(100)]
    decision = decide(hundred, now=NOW, grace=GRACE, catch_up=CatchUp.LATEST, running=0, max_instances=1)
    assert [(entry.occurrences, entry.covers_until) for entry in decision.entries] == [(1, None)] * 100

    more = [*hundred, late_by(9_900)]
    decision = decide(more, now=NOW, grace=GRACE, catch_up=CatchUp.LATEST, running=0, max_instances=1)
    first, last = more[0].planned_for, more[-1].planned_for
    assert decision.entries == [
        Entry("record", first, first, "schedule", "missed", "misfire", occurrences=101, covers_until=last)
    ]


def test_stretches_with_different_endings_are_not_joined() -> None:
    due = [late_by(700 - second) for second in range(701)]
    decision = decide(due, now=NOW, grace=GRACE, catch_up=CatchUp.NONE, running=0, max_instances=3)
    stretches = [(entry.reason, entry.occurrences) for entry in decision.entries if entry.occurrences > 1]
    assert stretches == [("misfire", 400), ("catch_up_none", 295)]
    assert outcomes(decision)[2:] == ["start", "start", "start", "max_instances", "max_instances", "max_instances"]


def random_backlog(rng: random.Random) -> list[Due]:
    step = rng.choice((1, 2, 7, 60))
    count = rng.choice((0, 1, 5, 130, 400))
    newest = rng.randrange(0, 400)
    backlog = []
    for index in range(count):
        planned_for = NOW - timedelta(seconds=newest + step * index)
        delay = rng.choice((0, 0, 0, rng.randrange(600)))
        backlog.append(Due(planned_for, min(NOW, planned_for + timedelta(seconds=delay))))
    rng.shuffle(backlog)
    return backlog


def covering(decision: Decision, planned_for: datetime) -> list[Entry]:
    return [
        entry
        for entry in decision.entries
        if entry.planned_for <= planned_for <= (entry.covers_until or entry.planned_for)
    ]


def test_every_due_occurrence_is_covered_by_exactly_one_entry_or_waits() -> None:
    rng = fresh_random()
    for _ in range(250):
        due = random_backlog(rng)
        running, max_instances = rng.randrange(4), rng.randint(1, 5)
        catch_up = rng.choice(list(CatchUp))
        admitted = rng.choice((None, NOW - timedelta(seconds=rng.randrange(900))))
        decision = decide(
            due,
            now=NOW,
            grace=GRACE,
            catch_up=catch_up,
            running=running,
            max_instances=max_instances,
            admitted_through=admitted,
        )
        waiting = [one for one in due if decision.resume_at is not None and one.planned_for >= decision.resume_at]
        for one in due:
            assert len(covering(decision, one.planned_for)) == (0 if one in waiting else 1)
        assert sum(entry.occurrences for entry in decision.entries) == len(due) - len(waiting)
        starts = [entry for entry in decision.entries if entry.action == "start"]
        assert len(starts) <= max(0, max_instances - running)
        assert (decision.resume_at is None) == (not waiting)
        assert decision.resume_at is None or catch_up is CatchUp.ALL
        planned = [entry.planned_for for entry in decision.entries]
        assert planned == sorted(planned)


def test_under_catch_up_all_a_backlog_drains_one_by_one_and_none_is_lost() -> None:
    rng = fresh_random()
    for _ in range(30):
        left = [late_by(seconds) for seconds in rng.sample(range(6, 300), rng.randint(1, 20))]
        planned = sorted(one.planned_for for one in left)
        now, admitted, started = NOW, None, []
        while left:
            decision = decide(
                left,
                now=now,
                grace=GRACE,
                catch_up=CatchUp.ALL,
                running=0,
                max_instances=1,
                admitted_through=admitted,
            )
            started += [entry.planned_for for entry in decision.entries if entry.action == "start"]
            resume_at, admitted = decision.resume_at, decision.admitted_through
            left = [one for one in left if resume_at is not None and one.planned_for >= resume_at]
            now += timedelta(minutes=10)
        assert started == planned
