"""Retries, by policy and by hand, and what gives way to a newer execution."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from deployx.db.database import Database
from deployx.errors import Conflict
from deployx.lifecycle import RunStatus
from deployx.work import attempts, executions, tasks
from deployx.work import device_runs as runs
from tests.work.spine import NOW, SERVER, Spine

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
START = NOW + MINUTE


@pytest.fixture
async def spine(database: Database) -> Spine:
    spine = Spine(database)
    await spine.set_up(online=2, offline=1)
    return spine


def retry(**changes: Any) -> dict[str, Any]:
    return {
        "max_attempts": 3, "initial_delay_seconds": 60, "multiplier": 2.0, "max_delay_seconds": 3600, "jitter": False,
        "on": ["failed", "timed_out", "interrupted", "lost", "expired"],
    } | changes  # fmt: skip


async def story(spine: Spine) -> list[tuple[int, int, str]]:
    """Device, attempt and status of each run in the order they were written."""
    return [(run["device_id"], run["attempt"], run["waits_for"] or run["status"]) for run in await spine.runs()]


async def lose(spine: Spine, now: datetime, run_id: int) -> None:
    async with spine.database.write() as session:
        await runs.end(session, [run_id], RunStatus.LOST, "silent", now=now)
        await executions.settle_deployments(session, SERVER, [1], now=now)


async def dispatched(spine: Spine, now: datetime) -> list[Any]:
    async with spine.database.write() as session:
        return list(await runs.claim_queued(session, "r1", 100, now=now))


async def test_only_the_devices_that_failed_run_again_after_delays_that_grow(spine: Spine) -> None:
    task_id = await spine.task(device_ids=(1, 2), retry=retry())
    await spine.fire(START)
    first, second = await spine.runs()
    await spine.end(START, RunStatus.FAILED, only=[first["id"]])
    await spine.end(START, only=[second["id"]])
    assert await story(spine) == [(1, 1, "failed"), (2, 1, "succeeded"), (1, 2, "retry")]
    again = (await spine.runs())[2]
    assert again["reason"] == "Attempt 2 of 3 starts at 2026-11-23T02:02:00Z."
    assert again["order_id"] != first["order_id"]
    assert (await spine.executions(task_id))[0]["status"] == "running"
    await spine.go_on(START + MINUTE - SECOND)
    assert (await story(spine))[2] == (1, 2, "retry")
    await spine.go_on(START + MINUTE)
    await spine.end(START + MINUTE, RunStatus.TIMED_OUT)
    assert (await spine.runs())[3]["opens_at"] == START + 3 * MINUTE
    await spine.go_on(START + 3 * MINUTE)
    await spine.end(START + 3 * MINUTE)
    (row,) = await spine.executions(task_id)
    assert (row["status"], row["result"]) == ("completed", {"counts": {"succeeded": 2}})


async def test_when_no_attempt_is_left_the_device_has_failed(spine: Spine) -> None:
    task_id = await spine.task(retry=retry(max_attempts=2, initial_delay_seconds=0))
    await spine.fire(START)
    await spine.end(START, RunStatus.FAILED)
    await spine.go_on(START)
    await spine.end(START, RunStatus.FAILED)
    assert await story(spine) == [(1, 1, "failed"), (1, 2, "failed")]
    (row,) = await spine.executions(task_id)
    assert (row["status"], row["result"]) == ("failed", {"counts": {"failed": 1}})


async def test_an_ending_that_is_not_named_is_not_tried_again(spine: Spine) -> None:
    await spine.task(retry=retry(on=["timed_out"]))
    await spine.fire(START)
    await spine.end(START, RunStatus.FAILED)
    assert await story(spine) == [(1, 1, "failed")]


async def test_a_rollout_counts_a_device_as_failed_only_when_no_attempt_is_left(spine: Spine) -> None:
    policy = {"batch_size": 1, "canary": None, "max_concurrent": None, "max_failures": 0, "count_offline": False,
              "pause_seconds": 0, "splay_seconds": 0}  # fmt: skip
    await spine.task(device_ids=(1, 2), retry=retry(max_attempts=2), rollout=policy)
    await spine.fire(START)
    await spine.end(START, RunStatus.FAILED)
    assert await story(spine) == [(1, 1, "failed"), (2, 1, "wave"), (1, 2, "retry")]
    await spine.go_on(START + MINUTE)
    await spine.end(START + MINUTE)
    assert (await story(spine))[1:] == [(2, 1, "queued"), (1, 2, "succeeded")]


async def test_a_cancelled_execution_is_not_tried_again(spine: Spine) -> None:
    task_id = await spine.task(retry=retry())
    await spine.fire(START)
    await spine.end(START, RunStatus.FAILED)
    async with spine.database.write() as session:
        opened = await executions.open_of_tasks(session, [task_id])
        await executions.cancel(session, SERVER, opened, now=START)
    assert await story(spine) == [(1, 1, "failed"), (1, 2, "cancelled")]
    assert (await spine.executions(task_id))[0]["status"] == "cancelled"


async def test_after_a_loss_the_next_attempt_waits_until_the_device_says_it_never_started(spine: Spine) -> None:
    await spine.task(retry=retry())
    await spine.fire(START)
    (order,) = await dispatched(spine, START)
    await spine.leave(1, START)
    await lose(spine, START + 11 * MINUTE, order["run_id"])
    assert await story(spine) == [(1, 1, "lost"), (1, 2, "earlier")]
    await spine.go_on(START + 13 * MINUTE)
    assert (await story(spine))[1] == (1, 2, "earlier")
    await spine.come(1, START + 14 * MINUTE)
    assert (await spine.runs())[0]["late_result"]["status"] == "not_started"
    await spine.go_on(START + 14 * MINUTE)
    assert (await story(spine))[1] == (1, 2, "queued")


async def test_after_a_loss_the_late_result_decides_whether_it_runs_again(spine: Spine) -> None:
    for late, then in ((RunStatus.SUCCEEDED, "succeeded"), (RunStatus.FAILED, "retry")):
        task_id = await spine.task(retry=retry())
        await spine.fire(START)
        (order,) = await dispatched(spine, START)
        run_id, deployment_id = order["run_id"], order["deployment_id"]
        async with spine.database.write() as session:
            await runs.end(session, [run_id], RunStatus.LOST, "silent", now=START + 11 * MINUTE)
            await executions.settle_deployments(session, SERVER, [deployment_id], now=START + 11 * MINUTE)
        await spine.come(1, START + 12 * MINUTE, unfinished=[order["order_id"]])
        assert (await story(spine))[-1] == (1, 2, "earlier")
        async with spine.database.write() as session:
            ending = runs.Ending(run_id, late, 0, None, 1.0, [], truncated=False)
            await runs.finish(session, [ending], {run_id: "lost"}, now=START + 13 * MINUTE)
            now = START + 13 * MINUTE
            touched = await attempts.take_late_results(session, {run_id: late is RunStatus.SUCCEEDED}, now=now)
            await executions.settle_deployments(session, SERVER, touched, now=now)
        assert (await story(spine))[-1] == (1, 2, then)
        status = "completed" if late is RunStatus.SUCCEEDED else "running"
        assert (await spine.executions(task_id))[0]["status"] == status


async def test_what_was_lost_with_the_devices_journal_is_never_run_again(spine: Spine) -> None:
    task_id = await spine.task(retry=retry())
    await spine.fire(START)
    (order,) = await dispatched(spine, START)
    await lose(spine, START + 11 * MINUTE, order["run_id"])
    await spine.come(1, START + 12 * MINUTE, journal="another")
    assert await story(spine) == [(1, 1, "lost"), (1, 2, "lost")]
    assert (await spine.executions(task_id))[0]["status"] == "failed"


async def test_a_device_that_never_comes_to_tell_ends_the_attempt_at_its_deadline(spine: Spine) -> None:
    await spine.task(retry=retry(max_attempts=2))
    await spine.fire(START)
    (order,) = await dispatched(spine, START)
    await lose(spine, START + 11 * MINUTE, order["run_id"])
    await spine.go_on(START + 17 * MINUTE)
    (_, again) = await spine.runs()
    assert (again["status"], again["reason"]) == (
        "expired", "The device did not come back before the deadline to tell what became of the earlier attempt.",
    )  # fmt: skip


# -- by hand ----------------------------------------------------------------------------------------------------


async def test_trying_again_by_hand_runs_the_same_payload_where_it_did_not_succeed(spine: Spine) -> None:
    task_id = await spine.task(device_ids=(1, 2), scheduled_time=NOW + MINUTE)
    await spine.fire(START)
    first, second = await spine.runs()
    await spine.end(START, only=[first["id"]])
    with pytest.raises(Conflict, match="still running"):
        await _again(spine, task_id, 1)
    await spine.end(START, RunStatus.FAILED, only=[second["id"]])
    assert (await spine.shown(task_id))["status"] == "failed"
    execution_id = await _again(spine, task_id, 1)
    assert await story(spine) == [(1, 1, "succeeded"), (2, 1, "failed"), (2, 1, "queued")]
    row = (await spine.executions(task_id))[1]
    assert (row["id"], row["trigger"], row["planned_for"]) == (execution_id, "retry", None)
    await spine.end(START + MINUTE)
    assert (await spine.shown(task_id))["status"] == "completed"
    with pytest.raises(Conflict, match="succeeded on every device"):
        await _again(spine, task_id, execution_id)


async def test_what_never_reached_a_device_cannot_be_tried_again(spine: Spine) -> None:
    task_id = await spine.every_minute()
    await spine.fire(NOW + 30 * MINUTE)
    missed = next(row for row in await spine.executions(task_id) if row["status"] == "missed")
    with pytest.raises(Conflict, match="never reached a device"):
        await _again(spine, task_id, missed["id"])


async def _again(spine: Spine, task_id: int, execution_id: int) -> int:
    async with spine.database.write() as session:
        return await tasks.retry(session, SERVER, task_id, execution_id, by=1, now=START + MINUTE)


# -- newer executions -------------------------------------------------------------------------------------------


async def test_a_newer_execution_replaces_what_still_waits_for_an_absent_device(spine: Spine) -> None:
    task_id = await spine.every_minute(device_ids=(1, 3))
    await spine.fire(START)
    await spine.end(START)
    await spine.fire(START + MINUTE)
    assert await story(spine) == [(1, 1, "succeeded"), (3, 1, "superseded"), (1, 1, "queued"), (3, 1, "device")]
    assert [row["status"] for row in await spine.executions(task_id)] == ["completed", "running"]


async def test_an_execution_of_which_everything_was_replaced_counts_as_skipped(spine: Spine) -> None:
    task_id = await spine.every_minute(device_ids=(3,))
    await spine.fire(START)
    await spine.fire(START + MINUTE)
    first, second = await spine.executions(task_id)
    assert (first["status"], first["reason"], second["status"]) == ("skipped", "superseded", "running")
    assert (await spine.shown(task_id))["status"] == "running"


async def test_with_catch_up_all_nothing_is_replaced(spine: Spine) -> None:
    await spine.every_minute(device_ids=(3,), catch_up="all")
    await spine.fire(START)
    await spine.fire(START + MINUTE)
    assert await story(spine) == [(3, 1, "device"), (3, 1, "device")]


async def test_another_tasks_work_for_the_device_stays(spine: Spine) -> None:
    await spine.task(device_ids=(3,))
    await spine.task(device_ids=(3,), scheduled_time=NOW + 2 * MINUTE)
    await spine.fire(START)
    await spine.fire(START + MINUTE)
    assert await story(spine) == [(3, 1, "device"), (3, 1, "device")]


async def test_many_devices_that_return_together_get_their_work_at_the_pace(database: Database) -> None:
    spine = Spine(database)
    await spine.set_up(online=0, offline=30)
    spine.pace = type(spine.pace)(10)
    await spine.task(device_ids=tuple(range(1, 31)))
    await spine.fire(START)
    for device_id in range(1, 31):
        await spine.come(device_id, START)
    waiting = [run["waits_for"] for run in await spine.runs()]
    assert waiting == [None] * 10 + ["return"] * 20
    assert (await spine.runs())[29]["opens_at"] == START + 2 * MINUTE
    await spine.go_on(START + MINUTE)
    assert [run["status"] for run in await spine.runs()].count("queued") == 20


async def test_work_that_may_not_wait_survives_a_short_loss_of_the_connection(spine: Spine) -> None:
    await spine.task(offline_policy="fail")
    await spine.fire(START)
    await spine.leave(1, START)
    await spine.go_on(START + 74 * SECOND)
    assert await story(spine) == [(1, 1, "device")]
    await spine.come(1, START + 74 * SECOND)
    assert await story(spine) == [(1, 1, "queued")]
    await spine.leave(1, START + 80 * SECOND)
    await spine.go_on(START + 155 * SECOND)
    assert await story(spine) == [(1, 1, "expired")]
