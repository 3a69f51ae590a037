"""What becomes of due occurrences: the rules one by one, then all of them on random backlogs."""

import random
from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import Any

import pytest

from deployx.timing.owed import Due
from deployx.timing.policy import (
    CatchUp,
    Decision,
    Entry,
    Outside,
    Overlap,
    Policy,
    decide,
)  # fmt: skip
from deployx.timing.turns import Turns, Waiting, take_turns
from deployx.timing.windows import Calendar, Range, Window
from tests.timing.oracle import fresh_random, utc

NOW = utc(2026, 11, 23, 12)  # a Monday
GRACE = timedelta(seconds=300)
MINUTE = timedelta(minutes=1)
NIGHT = Calendar((Window(frozenset(range(7)), time(22), time(6)),))
DAY = Calendar((Window(frozenset(range(7)), time(8), time(18)),))


def late_by(seconds: float) -> Due:
    at = NOW - timedelta(seconds=seconds)
    return Due(at, at)


def policy(**changes: Any) -> Policy:
    return Policy(**({"grace": GRACE} | changes))


def decided(*lateness: float, running: int = 0, queued: int = 0, **changes: Any) -> Decision:
    due = [late_by(seconds) for seconds in lateness]
    return decide(due, now=NOW, policy=policy(**changes), running=running, queued=queued, following=NOW + MINUTE)


def outcomes(decision: Decision) -> list[str]:
    """Return "start"/"catch_up" for starts, "queue" or "delay" for what waits, else the reason."""
    return [
        entry.reason or (entry.trigger if entry.action == "start" and entry.trigger == "catch_up" else entry.action)
        for entry in decision.entries
    ]


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
        # all start, oldest first; what finds no place waits for one
        ([180, 120, 60], CatchUp.ALL, 0, ["catch_up", "catch_up", "catch_up"]),
        ([400, 120, 0], CatchUp.ALL, 0, ["misfire", "catch_up", "start"]),
        ([240, 180, 120, 60], CatchUp.ALL, 1, ["catch_up", "catch_up", "queue", "queue"]),
        ([120, 0], CatchUp.ALL, 3, ["queue", "max_instances"]),
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
def test_each_due_occurrence_starts_waits_or_is_recorded_with_its_reason(
    lateness: list[float], catch_up: CatchUp, running: int, expected: list[str]
) -> None:
    decision = decided(*lateness, catch_up=catch_up, running=running)
    assert outcomes(decision) == expected
    assert [entry.due_at for entry in decision.entries] == [late_by(seconds).due_at for seconds in lateness]


def test_a_start_has_no_status_and_a_record_has_one() -> None:
    started, missed, skipped = decided(0).entries[0], decided(301).entries[0], decided(0, running=3).entries[0]
    at = NOW - timedelta(seconds=301)
    assert started == Entry("start", NOW, NOW, "schedule")
    assert missed == Entry("record", at, at, "schedule", status="missed", reason="misfire")
    assert skipped == Entry("record", NOW, NOW, "schedule", status="skipped", reason="max_instances")


@pytest.mark.parametrize(
    ("overlap", "expected", "supersedes", "cancels"),
    [
        (Overlap.SKIP, ["start", "max_instances", "max_instances"], False, False),
        (Overlap.QUEUE, ["start", "superseded", "queue"], True, False),
        (Overlap.CANCEL_RUNNING, ["start", "superseded", "queue"], True, True),
    ],
)
def test_what_finds_no_place_follows_the_overlap_policy(
    overlap: Overlap, expected: list[str], supersedes: bool, cancels: bool
) -> None:
    decision = decided(2, 1, 0, overlap=overlap, running=2)
    assert outcomes(decision) == expected
    assert (decision.supersedes, decision.cancels_oldest) == (supersedes, cancels)


def test_nothing_overtakes_what_waits_for_a_place() -> None:
    assert outcomes(decided(0, queued=1)) == ["max_instances"]
    assert outcomes(decided(60, queued=1, catch_up=CatchUp.ALL)) == ["queue"]


def test_a_grace_shorter_than_the_five_seconds_of_lateness_is_kept() -> None:
    assert outcomes(decided(3, grace=timedelta(seconds=3))) == ["start"]
    assert outcomes(decided(3, grace=timedelta(seconds=2))) == ["misfire"]


def test_the_newest_of_a_batch_is_not_the_newest_while_more_is_due() -> None:
    due = [late_by(120), late_by(60)]
    decision = decide(due, now=NOW, policy=policy(), following=NOW - timedelta(seconds=30))
    assert outcomes(decision) == ["coalesced", "coalesced"]


def test_lateness_is_measured_from_due_at_not_from_the_planned_instant() -> None:
    moved = Due(planned_for=NOW - timedelta(hours=2), due_at=NOW - timedelta(seconds=2))
    decision = decide([moved], now=NOW, policy=policy(catch_up=CatchUp.NONE))
    assert decision.entries == [Entry("start", moved.planned_for, moved.due_at, "schedule")]


def test_what_is_not_due_yet_is_not_decided() -> None:
    with pytest.raises(ValueError, match="not due"):
        decided(-1)


def test_an_occurrence_that_was_skipped_by_hand_says_so_before_anything_else() -> None:
    due = Due(NOW - 2 * GRACE, NOW - 2 * GRACE, skipped_by_hand=True)
    assert outcomes(decide([due], now=NOW, policy=policy(calendar=NIGHT))) == ["skipped_by_hand"]


def test_what_the_clock_was_set_past_is_missed_even_inside_its_grace() -> None:
    stepped = [(NOW - timedelta(hours=1), NOW - timedelta(seconds=90))]
    assert outcomes(decided(120, 90, 60, stepped_over=stepped)) == ["clock_step", "clock_step", "catch_up"]


@pytest.mark.parametrize(
    ("due", "now", "following", "outside", "expected"),
    [
        # outside at noon; the night's window opens at ten
        (12, 12, None, Outside.SKIP, ["outside_window"]),
        (12, 12, None, Outside.DELAY, ["delay"]),
        (12, 12, 21, Outside.DELAY, ["delay"]),
        # the next one came first, or just when the window opened
        (12, 22.05, 21, Outside.DELAY, ["outside_window"]),
        (12, 22.05, 22, Outside.DELAY, ["outside_window"]),
        # found only after the window had opened: the grace counts from the opening
        (12, 22.05, None, Outside.DELAY, ["catch_up"]),
        (12, 22.2, None, Outside.DELAY, ["misfire"]),
        (12, 22.05, None, Outside.SKIP, ["outside_window"]),
        # inside
        (23, 23, None, Outside.SKIP, ["start"]),
        (23, 23.2, None, Outside.SKIP, ["misfire"]),
        # in time for the window, but found after it closed
        (29.99, 30.02, None, Outside.SKIP, ["outside_window"]),
        (29.99, 30.02, None, Outside.DELAY, ["delay"]),
        (29.99, 30.02, 30.01, Outside.DELAY, ["outside_window"]),
        # beyond the grace the window is still the first reason
        (12, 13, None, Outside.SKIP, ["outside_window"]),
    ],
)
def test_a_window_lets_start_delays_or_skips(
    due: float, now: float, following: float | None, outside: Outside, expected: list[str]
) -> None:
    midnight = utc(2026, 11, 23)
    at, present = midnight + timedelta(hours=due), midnight + timedelta(hours=now)
    after = None if following is None else midnight + timedelta(hours=following)
    decision = decide(
        [Due(at, at)], now=present, policy=policy(calendar=NIGHT, outside=outside), following=after
    )  # fmt: skip
    assert outcomes(decision) == expected


def test_of_several_outside_the_window_only_the_newest_waits_for_it() -> None:
    assert outcomes(decide([late_by(7200), late_by(3600), late_by(0)], now=NOW, policy=policy(calendar=NIGHT))) == [
        "outside_window",
        "outside_window",
        "delay",
    ]


def test_a_blackout_beats_the_window_and_the_grace_and_also_counts_when_it_began_meanwhile() -> None:
    blackout = Range(NOW - timedelta(hours=2), NOW - timedelta(hours=1))
    within = late_by(5400)
    assert outcomes(decide([within], now=NOW, policy=policy(calendar=Calendar((), (blackout,))))) == ["blackout"]
    begun = Range(NOW - timedelta(seconds=30), NOW + GRACE)
    assert outcomes(decided(60, calendar=Calendar(DAY.windows, (begun,)))) == ["blackout"]


def test_up_to_100_alike_in_a_row_are_rows_of_their_own_and_more_are_one() -> None:
    hundred = [late_by(10_000 - second) for second in range(100)]
    decision = decide(hundred, now=NOW, policy=policy())
    assert [(entry.occurrences, entry.covers_until) for entry in decision.entries] == [(1, None)] * 100

    more = [*hundred, late_by(9_900)]
    first, last = more[0].planned_for, more[-1].planned_for
    assert decide(more, now=NOW, policy=policy()).entries == [
        Entry("record", first, more[0].due_at, "schedule", "missed", "misfire", occurrences=101, covers_until=last)
    ]


def test_stretches_with_different_endings_are_not_joined() -> None:
    due = [late_by(700 - second) for second in range(701)]
    decision = decide(due, now=NOW, policy=policy(catch_up=CatchUp.NONE), following=NOW + MINUTE)
    stretches = [(entry.reason, entry.occurrences) for entry in decision.entries if entry.occurrences > 1]
    assert stretches == [("misfire", 400), ("catch_up_none", 295)]
    assert outcomes(decision)[2:] == ["start", "start", "start", "max_instances", "max_instances", "max_instances"]


def test_a_stretch_ends_where_an_instant_has_a_row_of_its_own() -> None:
    due = [late_by(10_000 - second) for second in range(300)]
    due[150] = due[150]._replace(after_hole=True)
    decision = decide(due, now=NOW, policy=policy())
    assert [entry.occurrences for entry in decision.entries] == [150, 150]


def random_backlog(rng: random.Random) -> list[Due]:
    step = rng.choice((1, 2, 7, 60))
    newest = rng.randrange(0, 400)
    planned = [NOW - timedelta(seconds=newest + step * index) for index in range(rng.choice((0, 1, 5, 130, 400)))]
    delays = [timedelta(seconds=rng.choice((0, 0, 0, rng.randrange(600)))) for _ in planned]
    moved = [Due(at, min(NOW, at + delay)) for at, delay in zip(planned, delays, strict=True)]
    return moved[::-1]


def covering(decision: Decision, planned_for: datetime | None) -> list[Entry]:
    assert planned_for is not None
    return [
        entry
        for entry in decision.entries
        if entry.planned_for is not None
        and entry.planned_for <= planned_for <= (entry.covers_until or entry.planned_for)
    ]


def test_every_due_occurrence_is_covered_by_exactly_one_entry() -> None:
    rng = fresh_random()
    for _ in range(250):
        due = random_backlog(rng)
        running, most = rng.randrange(4), rng.randint(1, 5)
        chosen = policy(
            catch_up=rng.choice(list(CatchUp)), overlap=rng.choice(list(Overlap)), outside=rng.choice(list(Outside)),
            max_instances=most, calendar=rng.choice((None, None, DAY, NIGHT)),
        )  # fmt: skip
        following = rng.choice((None, NOW + MINUTE))
        decision = decide(due, now=NOW, policy=chosen, running=running, following=following)
        for one in due:
            assert len(covering(decision, one.planned_for)) == 1
        assert sum(entry.occurrences for entry in decision.entries) == len(due)
        starts = [entry for entry in decision.entries if entry.action == "start"]
        assert len(starts) <= max(0, most - running)
        assert sum(entry.action == "delay" for entry in decision.entries) <= 1
        if chosen.catch_up is not CatchUp.ALL:
            assert sum(entry.action == "queue" for entry in decision.entries) <= 1
        planned = [entry.planned_for for entry in decision.entries]
        assert planned == [one.planned_for for one in due if one.planned_for in set(planned)]


def turns(
    *waiting: Waiting, running: int = 0, is_paused: bool = False, overtaken: bool = False, **changes: Any
) -> Turns:
    next_due = NOW if overtaken else NOW + timedelta(days=2)
    return take_turns(
        waiting, now=NOW, policy=policy(**changes), running=running, is_paused=is_paused, next_due=next_due
    )  # fmt: skip


def queued(number: int, *, is_catch_up: bool = False) -> Waiting:
    return Waiting(number, "queued", NOW - timedelta(hours=2) + number * MINUTE, is_catch_up)


def delayed(number: int) -> Waiting:
    return Waiting(number, "delayed", NOW - timedelta(hours=6), False)  # six in the morning


def shown(given: Turns) -> list[tuple[int, str]]:
    return [(turn.id, turn.outcome if isinstance(turn.outcome, str) else turn.outcome.reason) for turn in given.changed]


@pytest.mark.parametrize(
    ("waiting", "options", "expected"),
    [
        ([queued(1)], {}, [(1, "start")]),
        ([queued(2), queued(1)], {"max_instances": 2, "running": 1}, [(1, "start")]),
        ([queued(1)], {"running": 3}, []),
        ([queued(1)], {"running": 3, "is_paused": True}, []),
        ([queued(1)], {"is_paused": True}, [(1, "paused")]),
        ([queued(1)], {"calendar": NIGHT}, [(1, "delayed")]),
        ([queued(1)], {"calendar": NIGHT, "outside": Outside.SKIP}, [(1, "outside_window")]),
        ([queued(1)], {"calendar": Calendar((), (Range(NOW, NOW + GRACE),))}, [(1, "blackout")]),
        ([delayed(1)], {"calendar": DAY}, [(1, "start")]),
        ([delayed(1)], {"calendar": NIGHT}, []),
        ([delayed(1)], {"calendar": NIGHT, "overtaken": True}, [(1, "outside_window")]),
        ([delayed(1)], {"calendar": DAY, "overtaken": True}, [(1, "start")]),
        ([delayed(1)], {"calendar": DAY, "is_paused": True}, [(1, "paused")]),
        ([delayed(1)], {"calendar": DAY, "running": 3}, [(1, "max_instances")]),
        ([delayed(1)], {"calendar": DAY, "running": 3, "overlap": Overlap.QUEUE}, [(1, "queued")]),
        ([delayed(9), queued(1)], {"calendar": DAY, "running": 3, "overlap": Overlap.QUEUE}, [(9, "superseded")]),
        (
            [queued(1, is_catch_up=True), delayed(9), queued(2)],
            {"calendar": DAY, "running": 3, "overlap": Overlap.QUEUE, "catch_up": CatchUp.ALL},
            [(9, "superseded")],
        ),
        ([queued(1), queued(2)], {"calendar": NIGHT}, [(1, "outside_window"), (2, "delayed")]),
    ],
)
def test_what_waits_gets_its_turn(
    waiting: Sequence[Waiting], options: dict[str, Any], expected: list[tuple[int, str]]
) -> None:
    assert shown(turns(*waiting, **options)) == expected


def test_a_turn_outside_the_window_begins_when_it_opens_unless_the_next_one_comes_just_then() -> None:
    opens_at = utc(2026, 11, 23, 8)
    given = take_turns(
        [delayed(1)], now=opens_at, policy=policy(calendar=DAY), running=0, is_paused=False, next_due=opens_at
    )
    assert shown(given) == [(1, "outside_window")]


def test_cancel_running_makes_place_for_what_waited_for_its_window() -> None:
    given = turns(delayed(1), calendar=DAY, running=3, overlap=Overlap.CANCEL_RUNNING)
    assert (shown(given), given.cancels_oldest) == ([(1, "queued")], True)
