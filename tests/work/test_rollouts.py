"""Rollouts on a database: waves, budgets, turns, windows that close, devices that are away."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from deployx.db.database import Database
from deployx.db.schema import deployments
from deployx.lifecycle import RunStatus
from deployx.work import rollouts, tasks
from deployx.work.pacing import Pace
from tests.work.spine import NOW, SERVER, Spine
from tests.work.test_policies import window

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
START = NOW + MINUTE
ALL = dict.fromkeys(
    ("canary", "batch_size", "max_concurrent"), None
) | {"max_failures": 0, "count_offline": False, "pause_seconds": 0, "splay_seconds": 0}  # fmt: skip


@pytest.fixture
async def spine(database: Database) -> Spine:
    spine = Spine(database)
    await spine.set_up(online=10, offline=2)
    return spine


def rollout(**changes: Any) -> dict[str, Any]:
    return ALL | changes


async def started(spine: Spine, **policy: Any) -> int:
    devices = policy.pop("device_ids", tuple(range(1, 11)))
    task_id = await spine.task(device_ids=devices, rollout=rollout(**policy))
    await spine.fire(START)
    return task_id


async def statuses(spine: Spine) -> list[str]:
    """Of each device in the order of their ids, by the last attempt: its status, or what it waits for."""
    runs = sorted((run for run in await spine.runs() if run["is_last"]), key=lambda run: int(run["device_id"]))
    return [run["waits_for"] or run["status"] for run in runs]


async def fail(spine: Spine, now: datetime, *device_ids: int) -> None:
    """These devices report a failure, others that have the work a success."""
    runs = {run["device_id"]: run["id"] for run in await spine.runs() if run["status"] != "waiting"}
    for device_id in device_ids:
        await spine.end(now, RunStatus.FAILED, only=[runs[device_id]])


async def the_deployment(spine: Spine) -> Any:
    async with spine.database.read() as session:
        return (await session.execute(select(deployments).order_by(deployments.c.id))).all()[-1]


async def test_the_canary_goes_first_and_the_batches_follow_in_the_order_of_the_ids(spine: Spine) -> None:
    task_id = await started(spine, canary=1, batch_size=4)
    assert await statuses(spine) == ["queued"] + ["wave"] * 9
    await spine.end(START)
    assert await statuses(spine) == ["succeeded"] + ["queued"] * 4 + ["wave"] * 5
    await spine.end(START)
    await spine.end(START)
    assert await statuses(spine) == ["succeeded"] * 9 + ["queued"]
    await spine.end(START)
    (row,) = await spine.executions(task_id)
    assert (row["status"], row["result"]) == ("completed", {"counts": {"succeeded": 10}})


async def test_a_wave_waits_for_every_device_of_the_one_before(spine: Spine) -> None:
    await started(spine, batch_size=2)
    runs = await spine.runs()
    await spine.end(START, only=[runs[0]["id"]])
    assert await statuses(spine) == ["succeeded", "dispatched"] + ["wave"] * 8


async def test_one_failure_more_than_allowed_halts_what_has_not_started_and_what_runs_finishes(spine: Spine) -> None:
    task_id = await started(spine, batch_size=5, max_failures="20%")
    await fail(spine, START, 1, 2)
    assert (await statuses(spine))[5:] == ["wave"] * 5
    await fail(spine, START, 3)
    assert await statuses(spine) == ["failed"] * 3 + ["dispatched"] * 2 + ["halted"] * 5
    await spine.end(START)
    (row,) = await spine.executions(task_id)
    assert row["status"] == "failed"
    assert row["result"] == {"counts": {"failed": 3, "succeeded": 2, "halted": 5}}
    assert row["error_message"] == (
        "The rollout stopped: 3 of 10 devices failed, and 2 may. 5 had not started. Most often: Exit code 0."
    )
    halted = (await spine.runs())[-1]
    assert halted["reason"] == "The rollout stopped: 3 of 10 devices failed, and 2 may."


async def test_failures_within_the_budget_let_the_execution_complete(spine: Spine) -> None:
    task_id = await started(spine, batch_size=5, max_failures=2)
    await fail(spine, START, 1, 2)
    await spine.end(START)
    await spine.end(START)
    (row,) = await spine.executions(task_id)
    assert (row["status"], row["error_message"]) == ("completed", None)


async def test_a_rollout_for_all_at_once_stops_those_that_are_still_away(spine: Spine) -> None:
    await started(spine, device_ids=(1, 2, 11, 12))
    await fail(spine, START, 1)
    assert await statuses(spine) == ["failed", "dispatched", "halted", "halted"]


async def test_a_pause_between_waves_is_kept_in_the_database(spine: Spine) -> None:
    await started(spine, batch_size=5, pause_seconds=60)
    await spine.end(START)
    assert (await statuses(spine))[5:] == ["wave"] * 5
    assert (await the_deployment(spine)).look_at == START + MINUTE
    await spine.go_on(START + MINUTE - SECOND)
    assert (await statuses(spine))[5:] == ["wave"] * 5
    await spine.go_on(START + MINUTE)
    assert (await statuses(spine))[5:] == ["queued"] * 5


async def test_at_most_so_many_devices_work_at_once_and_the_next_gets_the_free_place(spine: Spine) -> None:
    await started(spine, max_concurrent=3)
    assert await statuses(spine) == ["queued"] * 3 + ["turn"] * 7
    runs = await spine.runs()
    await spine.end(START, only=[runs[1]["id"]])
    assert await statuses(spine) == ["dispatched", "succeeded", "dispatched", "queued"] + ["turn"] * 6


async def test_a_device_that_is_away_takes_no_place_and_waits_its_turn_when_it_returns(spine: Spine) -> None:
    await started(spine, device_ids=(8, 9, 10, 11), max_concurrent=1)
    assert await statuses(spine) == ["queued", "turn", "turn", "device"]
    await spine.come(11, START)
    assert await statuses(spine) == ["queued", "turn", "turn", "turn"]
    for _ in range(3):
        await spine.end(START)
    assert await statuses(spine) == ["succeeded"] * 3 + ["queued"]


async def test_a_splay_starts_each_device_at_its_own_moment(spine: Spine) -> None:
    await started(spine, splay_seconds=100)
    assert await statuses(spine) == ["queued"] + ["turn"] * 9
    assert (await the_deployment(spine)).look_at == START + 10 * SECOND
    await spine.go_on(START + 35 * SECOND)
    assert await statuses(spine) == ["queued"] * 4 + ["turn"] * 6
    await spine.go_on(START + 90 * SECOND)
    assert await statuses(spine) == ["queued"] * 10


async def test_a_wave_ends_when_its_devices_have_ended_or_wait_offline(spine: Spine) -> None:
    await started(spine, device_ids=(9, 10, 11, 12), batch_size=3)
    assert await statuses(spine) == ["queued", "queued", "device", "wave"]
    await spine.end(START)
    assert await statuses(spine) == ["succeeded", "succeeded", "device", "device"]


async def test_with_count_offline_a_wave_waits_for_the_absent_and_they_count_as_failures(spine: Spine) -> None:
    task_id = await started(spine, device_ids=(10, 11, 12), batch_size=2, count_offline=True)
    await spine.end(START)
    assert await statuses(spine) == ["succeeded", "device", "wave"]
    await spine.go_on(START + 6 * MINUTE)
    assert await statuses(spine) == ["succeeded", "expired", "halted"]
    assert (await spine.executions(task_id))[0]["status"] == "failed"


async def test_the_deadline_of_an_absent_device_counts_from_when_its_wave_reaches_it(spine: Spine) -> None:
    await started(spine, device_ids=(10, 11), batch_size=1)
    await spine.end(START + 30 * MINUTE)
    (_, absent) = await spine.runs()
    assert absent["deadline_at"] == START + 35 * MINUTE


async def test_waves_go_on_after_a_restart_and_whoever_looks_again_changes_nothing(spine: Spine) -> None:
    await started(spine, batch_size=5)
    before = await statuses(spine)
    for _ in range(3):
        await spine.go_on(START)
    assert await statuses(spine) == before
    await spine.end(START)
    assert (await statuses(spine))[5:] == ["queued"] * 5


async def test_a_window_that_closes_halts_what_has_not_started(spine: Spine) -> None:
    window_id = await window(spine, "02:00", "02:30")
    task_id = await spine.task(device_ids=(1, 2, 11), rollout=rollout(batch_size=1), window_ids=(window_id,))
    await spine.fire(START)
    await spine.go_on(NOW + 29 * MINUTE)
    assert await statuses(spine) == ["queued", "wave", "wave"]
    async with spine.database.write() as session:  # the first is at work when the window closes
        await session.execute(text("UPDATE device_runs SET status = 'running' WHERE device_id = 1"))
    await spine.go_on(NOW + 30 * MINUTE)
    assert await statuses(spine) == ["running", "halted", "halted"]
    assert (await spine.runs())[1]["reason"] == "The execution's window closed before this device had started."
    await spine.end(NOW + 31 * MINUTE)
    assert (await spine.executions(task_id))[0]["result"] == {"counts": {"succeeded": 1, "halted": 2}}


async def test_without_a_rollout_a_closing_window_halts_the_absent_too_but_never_a_manual_run(spine: Spine) -> None:
    window_id = await window(spine, "02:00", "02:30")
    by_clock = await spine.task(device_ids=(11,), window_ids=(window_id,), offline_deadline_seconds=7200)
    by_hand = await spine.task(device_ids=(11,), window_ids=(window_id,), offline_deadline_seconds=7200)
    await spine.execute(by_hand, NOW + SECOND)
    async with spine.database.write() as session:
        await tasks.pause(session, SERVER, by_hand, by=1, now=NOW + SECOND * 30)
    await spine.fire(START)
    await spine.go_on(NOW + 30 * MINUTE)
    assert Counter(run["status"] for run in await spine.runs()) == {"waiting": 1, "halted": 1}
    assert (await spine.executions(by_clock))[0]["status"] == "failed"


async def test_a_closed_window_is_asked_about_once_while_the_last_device_is_at_work(spine: Spine) -> None:
    window_id = await window(spine, "02:00", "02:30")
    await spine.task(device_ids=(1,), window_ids=(window_id,))
    await spine.fire(START)
    async with spine.database.write() as session:
        await session.execute(text("UPDATE device_runs SET status = 'running'"))
    await spine.go_on(NOW + 30 * MINUTE)
    async with spine.database.read() as session:
        assert not await rollouts.any_due(session, now=NOW + 31 * MINUTE)
    await spine.end(NOW + 32 * MINUTE)
    assert (await spine.runs())[0]["status"] == "succeeded"


async def test_a_device_that_returns_among_many_gets_its_turn_at_the_pace(spine: Spine) -> None:
    await started(spine, device_ids=(11, 12), batch_size=5)
    spine.pace = Pace(1)
    for device_id in (11, 12):
        await spine.come(device_id, START)
    assert await statuses(spine) == ["queued", "turn"]
    await spine.go_on(START + MINUTE)
    assert await statuses(spine) == ["queued", "queued"]


async def test_a_rollout_that_an_absent_canary_stops_ends_with_its_start(spine: Spine) -> None:
    await spine.leave(1, NOW)
    policy = rollout(batch_size=1, count_offline=True)
    task_id = await spine.task(device_ids=(1, 2), offline_policy="fail", rollout=policy)
    await spine.fire(START)
    (row,) = await spine.executions(task_id)
    assert (row["status"], row["result"]) == ("failed", {"counts": {"expired": 1, "halted": 1}})


async def test_a_rollout_that_stopped_holds_its_task_where_it_is_to_pause_on_failure(spine: Spine) -> None:
    task_id = await spine.every_minute(device_ids=(1, 2), rollout=rollout(batch_size=1), pause_on_failure=True)
    await spine.fire(START)
    await fail(spine, START, 1)
    assert (await spine.shown(task_id))["status"] == "paused"
    await spine.fire(START + MINUTE)
    assert len(await spine.executions(task_id)) == 1


async def test_a_cancelled_rollout_opens_no_further_wave(spine: Spine) -> None:
    task_id = await started(spine, batch_size=5)
    async with spine.database.write() as session:
        await tasks.cancel(session, SERVER, task_id, by=1, now=START)
    assert set(await statuses(spine)) == {"cancelled"}
    assert (await spine.executions(task_id))[0]["status"] == "cancelled"
