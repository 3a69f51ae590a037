"""Policies over time, on the real tables: what waits, what overtakes what, what is cancelled, and in whose name."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select, update

from deployx.clock import ManualClock
from deployx.db.database import Database, Session
from deployx.db.schema import (
    blackouts,
    device_runs,
    group_members,
    group_windows,
    groups,
    scheduled_task_executions,
    windows,
)  # fmt: skip
from deployx.engine.clock import TaskClock
from deployx.events import Hints
from deployx.lifecycle import RunStatus
from deployx.work import device_runs as runs
from deployx.work import executions, occurrences, settling, specs, tasks, verification, waiting
from deployx.work.executions import Server
from tests.work.spine import NOW, SERVER, Spine

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@pytest.fixture
async def spine(database: Database) -> Spine:
    spine = Spine(database)
    await spine.set_up(online=2, offline=1)
    return spine


def hourly(**changes: Any) -> dict[str, Any]:
    every = {"recurrence_type": "interval", "recurrence_config": {"every_seconds": 3600}, "scheduled_time": NOW}
    return every | changes


async def window(spine: Spine, start: str, end: str) -> int:
    """A window of every day; the tests' NOW is two o'clock."""
    values = {"name": f"{start}-{end}", "days_of_week": list(range(7)), "start": start, "end": end, "timezone": "UTC"}
    async with spine.database.write() as session:
        row = await session.execute(
            insert(windows).values(**values, created_by=spine.owner_id, created_at=NOW).returning(windows.c.id)
        )
        found: int = row.scalar_one()
        return found


async def grouped(spine: Spine, window_id: int) -> None:
    """Put the first device into a group that has this window."""
    async with spine.database.write() as session:
        await session.execute(insert(groups).values(name="g", description="", created_at=NOW))
        await session.execute(insert(group_members).values(group_id=1, device_id=1))
        await session.execute(insert(group_windows).values(group_id=1, window_id=window_id))


async def live(spine: Spine, until: datetime, *, since: datetime = NOW, end: bool = True) -> None:
    """Let the clock look every quarter of an hour, and let what runs succeed at once."""
    at = since
    while at <= until:
        while await spine.fire(at):
            if end:
                await spine.end(at)
        at += timedelta(minutes=15)


def endings(ledger: list[tuple[datetime | None, str, str, str | None]]) -> list[tuple[int, str]]:
    """Hours after NOW, and status or reason."""
    return [(int((planned - NOW) / HOUR), reason or status) for planned, _, status, reason in ledger if planned]


# -- windows ----------------------------------------------------------------------------------------------------


async def test_outside_its_window_the_newest_occurrence_waits_until_it_opens(spine: Spine) -> None:
    window_id = await window(spine, "06:00", "08:00")
    task_id = await spine.task(**hourly(window_ids=(window_id,)))
    await live(spine, NOW + 3.5 * HOUR)
    assert endings(await spine.ledger(task_id)) == [(1, "outside_window"), (2, "outside_window"), (3, "delayed")]
    assert (await spine.shown(task_id))["status"] == "pending"
    await live(spine, NOW + 7 * HOUR, since=NOW + 3.75 * HOUR)
    assert endings(await spine.ledger(task_id)) == [
        (1, "outside_window"), (2, "outside_window"), (3, "outside_window"), (4, "completed"), (5, "completed"),
        (6, "outside_window"), (7, "delayed"),
    ]  # fmt: skip


async def test_a_task_that_runs_once_starts_when_its_window_opens(spine: Spine) -> None:
    window_id = await window(spine, "06:00", "08:00")
    task_id = await spine.task(window_ids=(window_id,))
    await spine.fire(NOW + MINUTE)
    assert (await spine.shown(task_id))["status"] == "pending"
    await spine.fire(NOW + 4 * HOUR)
    (row,) = await spine.executions(task_id)
    assert (row["status"], row["planned_for"], row["execution_time"]) == ("running", NOW + MINUTE, NOW + 4 * HOUR)
    await spine.end(NOW + 4 * HOUR)
    assert (await spine.shown(task_id))["status"] == "completed"


async def test_a_task_paused_when_its_window_opens_skips_what_waited(spine: Spine) -> None:
    window_id = await window(spine, "06:00", "08:00")
    task_id = await spine.task(**hourly(window_ids=(window_id,), recurrence_config={"every_seconds": 86_400}))
    await spine.fire(NOW + 24 * HOUR)
    async with spine.database.write() as session:
        await tasks.pause(session, SERVER, task_id, by=1, now=NOW + 25 * HOUR)
    await spine.fire(NOW + 28 * HOUR)
    assert [(row[2], row[3]) for row in await spine.ledger(task_id)] == [("skipped", "paused")]


async def test_a_blackout_skips_whatever_the_window_says(spine: Spine) -> None:
    async with spine.database.write() as session:
        values = {"from_at": NOW + 1.5 * HOUR, "to_at": NOW + 2.5 * HOUR, "timezone": "UTC"}
        await session.execute(
            insert(blackouts).values(name="b", created_by=spine.owner_id, created_at=NOW, **values)
        )  # fmt: skip
    task_id = await spine.task(**hourly(blackout_ids=(1,)))
    await live(spine, NOW + 3 * HOUR)
    assert endings(await spine.ledger(task_id)) == [(1, "completed"), (2, "blackout"), (3, "completed")]


async def test_a_device_waits_for_the_windows_of_all_its_groups(spine: Spine) -> None:
    window_id = await window(spine, "03:00", "04:00")
    await grouped(spine, window_id)
    await spine.task(device_ids=(1, 2), offline_deadline_seconds=7200)
    await spine.fire(NOW + MINUTE)
    async with spine.database.write() as session:
        sent = await runs.claim_queued(session, "r1", 10, now=NOW + MINUTE)
    assert [run["device_id"] for run in sent] == [2]
    run = (await spine.runs())[0]
    assert (run["status"], run["opens_at"]) == ("waiting", NOW + HOUR)
    assert run["reason"] == "Outside the windows, or in a blackout, of the group 'g'."
    assert run["deadline_at"] == NOW + MINUTE + 2 * HOUR
    async with spine.database.write() as session:
        assert await waiting.open_due(session, now=NOW + HOUR) == [1]
        assert len(await runs.claim_queued(session, "r1", 10, now=NOW + HOUR)) == 1


async def test_a_device_whose_window_stays_shut_expires_and_says_so(spine: Spine) -> None:
    window_id = await window(spine, "03:00", "04:00")
    await grouped(spine, window_id)
    await spine.task()
    await spine.fire(NOW + MINUTE)
    async with spine.database.write() as session:
        await runs.claim_queued(session, "r1", 10, now=NOW + MINUTE)
        found = await waiting.overdue(session, now=NOW + 7 * MINUTE)
    assert [(status, reason) for _, _, status, reason in found] == [
        (RunStatus.EXPIRED, "No window of the device's groups opened before the deadline.")
    ]


# -- overlap ----------------------------------------------------------------------------------------------------


async def test_queued_work_starts_when_a_place_is_free_and_only_the_newest_waits(spine: Spine) -> None:
    task_id = await spine.every_minute(overlap_policy="queue", max_instances=1)
    for minute in (1, 2, 3):
        await spine.fire(NOW + minute * MINUTE)
    assert [(row[2], row[3]) for row in await spine.ledger(task_id)] == [
        ("running", None), ("skipped", "superseded"), ("queued", None),
    ]  # fmt: skip
    await spine.end(NOW + 3.5 * MINUTE)
    await spine.fire(NOW + 3.5 * MINUTE)
    waited = (await spine.executions(task_id))[2]
    assert (waited["status"], waited["execution_time"]) == ("running", NOW + 3.5 * MINUTE)
    assert (await spine.shown(task_id))["execution_count"] == 2


async def test_the_oldest_execution_is_cancelled_for_the_newest(spine: Spine) -> None:
    task_id = await spine.every_minute(overlap_policy="cancel_running", max_instances=1, device_ids=(3,))
    await spine.fire(NOW + MINUTE)  # its device is offline, so that it ends as soon as it is cancelled
    await spine.fire(NOW + 2 * MINUTE)
    assert [row[2] for row in await spine.ledger(task_id)] == ["cancelled", "running"]


async def test_the_newest_waits_until_the_cancelled_one_has_ended(spine: Spine) -> None:
    task_id = await spine.every_minute(overlap_policy="cancel_running", max_instances=1)
    await spine.fire(NOW + MINUTE)
    async with spine.database.write() as session:
        await runs.claim_queued(session, "r1", 10, now=NOW + MINUTE)
    await spine.fire(NOW + 2 * MINUTE)
    assert [row[2] for row in await spine.ledger(task_id)] == ["running", "queued"]
    assert [one["status"] for one in await spine.runs()] == ["cancelling"]
    await spine.end(NOW + 2.1 * MINUTE, RunStatus.CANCELLED)
    await spine.fire(NOW + 2.1 * MINUTE)
    assert [row[2] for row in await spine.ledger(task_id)] == ["cancelled", "running"]


async def test_under_catch_up_all_each_late_one_starts_oldest_first(spine: Spine) -> None:
    task_id = await spine.every_minute(catch_up="all", max_instances=1, misfire_grace_seconds=600)
    await spine.fire(NOW + 4 * MINUTE + timedelta(seconds=30))
    assert [row[2] for row in await spine.ledger(task_id)] == ["running", "queued", "queued", "queued"]
    started = []
    for second in range(31, 36):
        at = NOW + 4 * MINUTE + timedelta(seconds=second)
        await spine.end(at)
        await spine.fire(at)
        running = [row[0] for row in await spine.ledger(task_id) if row[2] == "running"]
        started += [int((one - NOW) / MINUTE) for one in running if one]
    assert started == [2, 3, 4]
    assert {row[1] for row in await spine.ledger(task_id)} == {"catch_up"}


async def test_a_line_longer_than_one_look_reads_is_gone_through_to_its_end(spine: Spine) -> None:
    task_id = await spine.every_minute(catch_up="all", max_instances=1, misfire_grace_seconds=36_000)
    at = NOW + 500 * MINUTE + timedelta(seconds=30)
    while await spine.fire(at):
        pass
    assert Counter(row[2] for row in await spine.ledger(task_id)) == {"running": 1, "queued": 499}
    await spine.end(at)
    while await spine.fire(at):
        pass
    started = [row["planned_for"] for row in await spine.executions(task_id) if row["execution_time"]]
    assert started == [NOW + MINUTE, NOW + 2 * MINUTE]
    async with spine.database.write() as session:
        await tasks.pause(session, SERVER, task_id, by=1, now=at)
    await spine.end(at)
    while await spine.fire(at):
        pass
    assert Counter((row[2], row[3]) for row in await spine.ledger(task_id)) == {
        ("completed", None): 2, ("skipped", "paused"): 498,
    }  # fmt: skip
    assert not (await spine.shown(task_id))["waiting"]


async def test_what_waits_is_cancelled_by_hand_at_once_and_with_its_task(spine: Spine) -> None:
    task_id = await spine.every_minute(overlap_policy="queue", max_instances=1)
    await spine.fire(NOW + MINUTE)
    await spine.fire(NOW + 2 * MINUTE)
    queued_id = (await spine.executions(task_id))[1]["id"]
    async with spine.database.write() as session:
        await executions.cancel(session, SERVER, [queued_id], now=NOW + 2 * MINUTE)
    assert [row[2] for row in await spine.ledger(task_id)] == ["running", "cancelled"]
    assert (await spine.shown(task_id))["status"] == "running"
    await spine.fire(NOW + 3 * MINUTE)
    async with spine.database.write() as session:
        await tasks.cancel(session, SERVER, task_id, by=1, now=NOW + 3.5 * MINUTE)
    assert [row[2] for row in await spine.ledger(task_id)][2] == "cancelled"


async def test_a_pause_on_failure_is_a_version_and_what_was_due_before_is_in_the_ledger(spine: Spine) -> None:
    task_id = await spine.every_minute(pause_on_failure=True)
    await spine.fire(NOW + MINUTE)
    await spine.end(NOW + 3 * MINUTE, RunStatus.FAILED)
    shown = await spine.shown(task_id)
    assert (shown["status"], shown["next_execution"]) == ("paused", None)
    assert shown["paused_reason"] == "Paused because an execution failed."
    assert len(await spine.ledger(task_id)) == 3
    async with spine.database.read() as session:
        assert (await verification.verify_task(session, task_id, now=NOW + HOUR)).problems == []


async def test_a_pause_on_failure_keeps_an_occurrence_that_was_skipped_by_hand_just_before(spine: Spine) -> None:
    task_id = await spine.every_minute(pause_on_failure=True)
    await spine.fire(NOW + MINUTE)
    async with spine.database.write() as session:
        await occurrences.skip(session, SERVER, task_id, NOW + 2 * MINUTE, by=1, now=NOW + MINUTE)
    await spine.fire(NOW + MINUTE)  # the next one to start is that of the third minute now
    await spine.end(NOW + 2 * MINUTE + timedelta(seconds=1), RunStatus.FAILED)
    assert (await spine.shown(task_id))["status"] == "paused"
    assert [(row[2], row[3]) for row in await spine.ledger(task_id)] == [
        ("failed", None), ("skipped", "skipped_by_hand"),
    ]  # fmt: skip


# -- single occurrences -----------------------------------------------------------------------------------------


async def test_a_moved_occurrence_starts_at_its_new_time_and_a_skipped_one_never(spine: Spine) -> None:
    task_id = await spine.task(**hourly())
    async with spine.database.write() as session:
        await occurrences.skip(session, SERVER, task_id, NOW + HOUR, by=1, now=NOW)
        await occurrences.move(session, SERVER, task_id, NOW + 2 * HOUR, NOW + 4.5 * HOUR, by=1, now=NOW)
        await occurrences.move(session, SERVER, task_id, NOW + 5 * HOUR, NOW + 1.5 * HOUR, by=1, now=NOW)
    await live(spine, NOW + 6 * HOUR)
    table = scheduled_task_executions
    async with spine.database.read() as session:
        rows = (await session.execute(select(table).order_by(table.c.planned_for))).all()
    started = [(row.execution_time - NOW) / HOUR if row.execution_time else row.reason for row in rows]
    assert started == ["skipped_by_hand", 4.5, 3, 4, 1.5, 6]


async def test_a_change_by_hand_within_a_pause_does_not_outlive_it_however_the_pause_ends(spine: Spine) -> None:
    for ends_by_edit in (False, True):
        task_id = await spine.task(**hourly())
        async with spine.database.write() as session:
            await occurrences.move(session, SERVER, task_id, NOW + 2 * HOUR, NOW + 4.5 * HOUR, by=1, now=NOW)
            await tasks.pause(session, SERVER, task_id, by=1, now=NOW + HOUR / 2)
            if ends_by_edit:
                spec = (await specs.stored(session, [task_id]))[task_id]
                await tasks.change(session, SERVER, task_id, spec, spec, "pending", by=1, now=NOW + 3.5 * HOUR)
            else:
                await tasks.resume(session, SERVER, task_id, by=1, now=NOW + 3.5 * HOUR)
        await live(spine, NOW + 5 * HOUR, since=NOW + 3.5 * HOUR)
        assert endings(await spine.ledger(task_id)) == [(4, "completed"), (5, "completed")]


async def test_a_change_by_hand_goes_with_the_occurrence_that_an_edit_during_a_pause_takes_away(spine: Spine) -> None:
    task_id = await spine.task(**hourly())
    async with spine.database.write() as session:
        await occurrences.skip(session, SERVER, task_id, NOW + 2 * HOUR, by=1, now=NOW)
        await tasks.pause(session, SERVER, task_id, by=1, now=NOW + HOUR / 2)
        spec = (await specs.stored(session, [task_id]))[task_id]
        later = replace(spec, scheduled_time=NOW + HOUR / 4)
        await tasks.change(session, SERVER, task_id, spec, later, None, by=1, now=NOW + HOUR / 2)
        await tasks.resume(session, SERVER, task_id, by=1, now=NOW + HOUR / 2)
    await live(spine, NOW + 3 * HOUR, since=NOW + HOUR / 2)
    async with spine.database.write() as session:
        await tasks.pause(session, SERVER, task_id, by=1, now=NOW + 3 * HOUR)
    assert endings(await spine.ledger(task_id)) == [(1, "completed"), (2, "completed")]


async def test_one_that_ran_ahead_of_an_edit_may_lie_among_what_the_new_definition_missed(spine: Spine) -> None:
    task_id = await spine.task(**hourly())
    async with spine.database.write() as session:
        await occurrences.move(session, SERVER, task_id, NOW + 2 * HOUR, NOW + HOUR / 2, by=1, now=NOW)
    await live(spine, NOW + HOUR / 2)
    async with spine.database.write() as session:
        spec = (await specs.stored(session, [task_id]))[task_id]
        start_at = NOW + timedelta(seconds=2701)
        often = replace(spec, recurrence_config={"every_seconds": 45}, scheduled_time=start_at)
        await tasks.change(session, SERVER, task_id, spec, often, None, by=1, now=start_at)
    await spine.fire(NOW + 5 * HOUR)  # an outage until then: one row covers hundreds
    async with spine.database.read() as session:
        found = await verification.verify_task(session, task_id, now=NOW + 5.5 * HOUR)
    assert [problem for problem in found.problems if "overlap" in problem] == []


async def test_jitter_holds_back_the_start_but_not_the_plan_and_is_the_same_each_time(spine: Spine) -> None:
    task_id = await spine.task(**hourly(jitter_seconds=3599))
    due_at = (await spine.shown(task_id))["next_execution"]
    assert NOW + HOUR < due_at < NOW + 2 * HOUR
    assert await spine.fire(due_at - timedelta(milliseconds=1)) == 0
    await spine.fire(due_at)
    (row,) = await spine.executions(task_id)
    assert (row["planned_for"], row["due_at"], row["execution_time"]) == (NOW + HOUR, due_at, due_at)


async def test_a_task_paused_between_the_plan_and_its_jittered_start_says_so(spine: Spine) -> None:
    task_id = await spine.task(**hourly(jitter_seconds=3599))
    due_at = (await spine.shown(task_id))["next_execution"]
    async with spine.database.write() as session:
        await tasks.pause(session, SERVER, task_id, by=1, now=due_at - timedelta(seconds=1))
    assert [(row[0], row[2], row[3]) for row in await spine.ledger(task_id)] == [(NOW + HOUR, "skipped", "paused")]


# -- dependencies -----------------------------------------------------------------------------------------------


def after(*upstreams: tuple[int, str], mode: str = "all") -> dict[str, Any]:
    named = [{"task_id": task_id, "on": on} for task_id, on in upstreams]
    return {"recurrence_type": "after", "recurrence_config": {"after": {"tasks": named, "mode": mode}}}


async def run(spine: Spine, task_id: int, at: datetime, status: RunStatus = RunStatus.SUCCEEDED) -> None:
    """Execute by hand, end it, and let the clock look."""
    await spine.execute(task_id, at)
    await spine.end(at, status)
    while await spine.fire(at):
        pass


async def started(spine: Spine, task_id: int) -> int:
    return len(await spine.executions(task_id))


async def test_with_all_a_task_starts_once_each_upstream_has_ended_as_asked_since(spine: Spine) -> None:
    first, second = await spine.task(), await spine.task()
    last = await spine.task(scheduled_time=None, **after((first, "success"), (second, "success")))
    await run(spine, first, NOW)
    await run(spine, first, NOW)
    assert await started(spine, last) == 0
    await run(spine, second, NOW, RunStatus.FAILED)
    assert await started(spine, last) == 0
    await run(spine, second, NOW)
    assert await started(spine, last) == 1
    await run(spine, second, NOW)
    assert await started(spine, last) == 1
    (row,) = await spine.executions(last)
    assert (row["trigger"], row["planned_for"], row["status"]) == ("dependency", None, "completed")


@pytest.mark.parametrize(
    ("on", "succeeded", "failed"), [("success", 1, 0), ("failure", 0, 1), ("completion", 1, 1)]
)  # fmt: skip
async def test_with_any_each_ending_that_was_asked_for_starts_it(
    spine: Spine, on: str, succeeded: int, failed: int
) -> None:
    first, second = await spine.task(), await spine.task()
    last = await spine.task(
        scheduled_time=None, max_instances=10, **after((first, on), (second, on), mode="any")
    )  # fmt: skip
    await run(spine, first, NOW)
    assert await started(spine, last) == succeeded
    await run(spine, second, NOW, RunStatus.FAILED)
    assert await started(spine, last) == succeeded + failed


async def test_both_upstreams_that_end_in_one_transaction_start_it_once(spine: Spine) -> None:
    first, second = await spine.task(), await spine.task()
    last = await spine.task(scheduled_time=None, **after((first, "completion"), (second, "completion")))
    await spine.fire(NOW + MINUTE)
    await spine.end(NOW + MINUTE)
    while await spine.fire(NOW + MINUTE):
        pass
    assert await started(spine, last) == 1
    assert await spine.count("dependency_events") == 0


async def test_upstreams_that_end_at_the_same_time_start_it_once(spine: Spine) -> None:
    upstreams = [await spine.task() for _ in range(4)]
    last = await spine.task(scheduled_time=None, **after(*((one, "completion") for one in upstreams)))
    await spine.fire(NOW + MINUTE)
    async with spine.database.write() as session:
        await runs.claim_queued(session, "r1", 100, now=NOW + MINUTE)

    async def end(run_id: int) -> None:
        async def work(session: Session) -> None:
            at = NOW + MINUTE
            await settling.lock_tasks_of(session, await runs.deployments_of(session, [run_id]))
            ending = runs.Ending(run_id, RunStatus.SUCCEEDED, 0, None, 0.1, [], truncated=False)
            await runs.finish(session, [ending], {run_id: "dispatched"}, now=at)
            deployments = await runs.deployments_of(session, [run_id])
            await executions.settle_deployments(session, SERVER, deployments, now=at)

        await spine.database.transact(work)

    async def look() -> None:
        for _ in range(5):
            await spine.database.transact(
                lambda session: executions.answer_alarms(session, SERVER, now=NOW + MINUTE, limit=10)
            )

    await asyncio.gather(*(end(run["id"]) for run in await spine.runs()), look(), look())
    await look()
    assert await started(spine, last) == 1


async def test_missed_and_skipped_occurrences_start_nothing(spine: Spine) -> None:
    first = await spine.every_minute()
    last = await spine.task(scheduled_time=None, **after((first, "completion")))
    await spine.fire(NOW + 10 * HOUR + timedelta(seconds=30))
    await spine.fire(NOW + 10 * HOUR + timedelta(seconds=30))
    assert await started(spine, last) == 0


async def test_what_ended_while_the_dependent_was_paused_does_not_count(spine: Spine) -> None:
    first = await spine.task()
    last = await spine.task(scheduled_time=None, **after((first, "success")))
    async with spine.database.write() as session:
        await tasks.pause(session, SERVER, last, by=1, now=NOW)
    await run(spine, first, NOW)
    async with spine.database.write() as session:
        await tasks.resume(session, SERVER, last, by=1, now=NOW)
    await spine.fire(NOW)
    assert await started(spine, last) == 0
    await run(spine, first, NOW)
    assert await started(spine, last) == 1


async def test_a_chain_goes_on_from_an_execution_that_could_not_start(spine: Spine) -> None:
    first = await spine.task(device_ids=())
    last = await spine.task(scheduled_time=None, **after((first, "failure")))
    await spine.fire(NOW + MINUTE)
    await spine.fire(NOW + MINUTE)
    assert await started(spine, last) == 1


# -- after a long outage ------------------------------------------------------------------------------------------


async def test_a_long_outage_is_accounted_for_whole_and_the_newest_occurrence_starts(spine: Spine) -> None:
    ids = [await spine.every_minute() for _ in range(20)]
    at = NOW + 10_000 * MINUTE + timedelta(seconds=30)
    while await spine.fire(at):
        pass
    async with spine.database.read() as session:
        table = scheduled_task_executions
        written = await session.execute(
            select(table.c.task_id, func.sum(table.c.occurrences), func.count())
            .group_by(table.c.task_id)
            .order_by(table.c.task_id)
        )
        assert [tuple(row) for row in written] == [(task_id, 10_000, 6) for task_id in ids]
        for task_id in ids[:2]:
            found = await verification.verify_task(session, task_id, now=at + HOUR / 12)
            assert (found.problems, found.owed) == ([], 9999)
    newest = (await spine.ledger(ids[0]))[-1]
    assert newest == (NOW + 10_000 * MINUTE, "catch_up", "running", None)


# -- the server's clock -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_step_of_the_clock_is_held_for_ten_seconds_and_recorded(spine: Spine) -> None:
    clock = ManualClock(NOW)
    spine.database._clock = clock
    task_id = await spine.every_minute()
    server = Server("test-installation", clock.steps)
    task_clock = TaskClock(spine.database, clock, Hints(), server)
    assert await task_clock.tick() == 0
    clock.set_to(NOW + 3 * MINUTE + timedelta(seconds=20))
    assert await task_clock.tick() == 0
    assert await spine.ledger(task_id) == []
    clock.pass_to(clock.now() + timedelta(seconds=11))
    assert await task_clock.tick() == 1
    assert [(row[2], row[3]) for row in await spine.ledger(task_id)] == [("missed", "clock_step")] * 3

    clock.set_to(NOW)  # back: nothing fires twice
    await task_clock.tick()
    clock.pass_to(NOW + 3 * MINUTE + timedelta(seconds=59))
    await task_clock.tick()
    assert len(await spine.ledger(task_id)) == 3
    clock.pass_to(NOW + 4 * MINUTE)
    assert await task_clock.tick() == 1


async def test_verify_names_what_is_missing_and_what_is_too_much(spine: Spine) -> None:
    task_id = await spine.task(**hourly())
    await live(spine, NOW + 6 * HOUR)
    async with spine.database.write() as session:
        table = scheduled_task_executions
        await session.execute(update(device_runs).values(reason="kept"))
        await session.execute(
            update(table)
            .where(table.c.planned_for == NOW + 2 * HOUR)
            .values(planned_for=NOW + 2.5 * HOUR, due_at=NOW + 2.5 * HOUR)
        )
        found = await verification.verify_task(session, task_id, now=NOW + 6.5 * HOUR)
    assert found.problems == [
        f"Task {task_id}: 1 occurrence (2026-11-23T04:00:00Z) not in the ledger.",
        f"Task {task_id}: the rows of 1 occurrence (2026-11-23T04:30:00Z) cover more or less than was owed.",
    ]
