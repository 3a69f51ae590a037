"""What becomes of due tasks: the ledger, the moves of tasks, and what must not happen twice."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import update

from deployx.clock import SystemClock
from deployx.db.database import Database
from deployx.db.schema import devices, scheduled_tasks, users
from deployx.engine.clock import TaskClock
from deployx.errors import Conflict
from deployx.events import Hints
from deployx.lifecycle import RunStatus
from deployx.work import deployments, device_runs, executions, specs, tasks, waiting
from deployx.work.pacing import Pace
from tests.work.spine import NOW, SERVER, Spine

MINUTE = timedelta(minutes=1)


@pytest.fixture
async def spine(database: Database) -> Spine:
    spine = Spine(database)
    await spine.set_up(online=2, offline=1)
    return spine


async def test_a_due_task_fires_once_and_completes_when_its_device_has(spine: Spine) -> None:
    task_id = await spine.task()
    assert await spine.fire(NOW + timedelta(seconds=59)) == 0
    assert await spine.fire(NOW + MINUTE) == 1
    assert await spine.fire(NOW + MINUTE) == 0
    assert await spine.ledger(task_id) == [(NOW + MINUTE, "schedule", "running", None)]
    assert (await spine.shown(task_id))["status"] == "running"
    await spine.end(NOW + MINUTE + timedelta(seconds=2))
    assert await spine.ledger(task_id) == [(NOW + MINUTE, "schedule", "completed", None)]
    shown = await spine.shown(task_id)
    assert (shown["status"], shown["next_execution"], shown["execution_count"]) == ("completed", None, 1)
    assert shown["last_result"] == {"status": "completed", "counts": {"succeeded": 1}}


async def test_an_execution_is_not_completed_before_all_its_devices_are(spine: Spine) -> None:
    task_id = await spine.task(device_ids=(1, 2))
    await spine.fire(NOW + MINUTE)
    first, second = [run["id"] for run in await spine.runs()]
    await spine.end(NOW + MINUTE, only=[first])
    assert [row[2] for row in await spine.ledger(task_id)] == ["running"]
    await spine.end(NOW + MINUTE, only=[second])
    assert [row[2] for row in await spine.ledger(task_id)] == ["completed"]


@pytest.mark.parametrize(
    ("late_seconds", "expected"),
    [
        (5, ("schedule", "running", None)),
        (6, ("catch_up", "running", None)),
        (300, ("catch_up", "running", None)),
        (301, ("schedule", "missed", "misfire")),
    ],
)
async def test_lateness_is_measured_against_the_grace(
    spine: Spine, late_seconds: int, expected: tuple[str, str, str | None]
) -> None:
    task_id = await spine.task()
    await spine.fire(NOW + MINUTE + timedelta(seconds=late_seconds))
    assert (await spine.ledger(task_id))[0][1:] == expected


async def test_a_missed_one_time_task_is_failed_and_says_why(spine: Spine) -> None:
    task_id = await spine.task()
    await spine.fire(NOW + timedelta(hours=1))
    shown = await spine.shown(task_id)
    assert shown["status"] == "failed"
    assert "misfire" in shown["error_message"]


async def test_of_several_late_occurrences_the_latest_starts_and_all_are_accounted_for(spine: Spine) -> None:
    task_id = await spine.every_minute()
    await spine.fire(NOW + 8 * MINUTE + timedelta(seconds=30))
    ledger = await spine.ledger(task_id)
    assert [planned for planned, *_ in ledger] == [NOW + n * MINUTE for n in range(1, 9)]
    endings = [(status, reason) for _, _, status, reason in ledger]
    assert endings == [("missed", "misfire")] * 3 + [("skipped", "coalesced")] * 4 + [("running", None)]
    assert (await spine.shown(task_id))["next_execution"] == NOW + 9 * MINUTE


async def test_a_fourth_execution_at_once_is_skipped(spine: Spine) -> None:
    task_id = await spine.every_minute()
    for minute in range(1, 5):
        await spine.fire(NOW + minute * MINUTE)
    assert [(s, r) for _, _, s, r in await spine.ledger(task_id)] == [("running", None)] * 3 + [
        ("skipped", "max_instances")
    ]


async def test_a_manual_run_does_not_use_up_the_schedule(spine: Spine) -> None:
    task_id = await spine.task()
    await spine.execute(task_id, NOW)
    await spine.end(NOW)
    shown = await spine.shown(task_id)
    assert (shown["status"], shown["next_execution"]) == ("pending", NOW + MINUTE)
    await spine.fire(NOW + MINUTE)
    assert [(trigger, status) for _, trigger, status, _ in await spine.ledger(task_id)] == [
        ("manual", "completed"),
        ("schedule", "running"),
    ]


async def test_a_failed_manual_run_leaves_the_schedule_alone(spine: Spine) -> None:
    task_id = await spine.every_minute(pause_on_failure=True)
    await spine.execute(task_id, NOW)
    await spine.end(NOW, RunStatus.FAILED)
    assert (await spine.shown(task_id))["status"] == "pending"


async def test_a_failed_execution_pauses_a_task_that_asks_for_it(spine: Spine) -> None:
    task_id = await spine.every_minute(pause_on_failure=True)
    await spine.fire(NOW + MINUTE)
    await spine.end(NOW + MINUTE, RunStatus.FAILED)
    shown = await spine.shown(task_id)
    assert (shown["status"], shown["next_execution"]) == ("paused", None)
    assert "1 of 1 devices failed" in shown["error_message"]


async def test_more_manual_runs_than_allowed_are_refused(spine: Spine) -> None:
    task_id = await spine.task(max_instances=1)
    await spine.execute(task_id, NOW)
    with pytest.raises(Conflict, match="allows 1 at once"):
        await spine.execute(task_id, NOW)


async def test_an_edit_first_accounts_for_what_was_due(spine: Spine) -> None:
    task_id = await spine.every_minute()
    async with spine.database.write() as session:
        before = (await specs.stored(session, [task_id]))[task_id]
        after = specs.TaskSpec(
            **{name: getattr(before, name) for name in specs.TaskSpec.__slots__} | {"task_name": "n"}
        )
        now = NOW + MINUTE + timedelta(seconds=1)
        await tasks.change(session, SERVER, task_id, before, after, None, by=1, now=now)
    rows = await spine.executions(task_id)
    assert [(row["planned_for"], row["task_version"]) for row in rows] == [(NOW + MINUTE, 1)]
    shown = await spine.shown(task_id)
    assert (shown["version"], shown["next_execution"], shown["status"]) == (2, NOW + 2 * MINUTE, "running")


async def test_time_spent_paused_owes_nothing(spine: Spine) -> None:
    task_id = await spine.every_minute()
    async with spine.database.write() as session:
        await tasks.pause(session, SERVER, task_id, by=1, now=NOW + timedelta(seconds=10))
        await tasks.resume(session, SERVER, task_id, by=1, now=NOW + 10 * MINUTE + timedelta(seconds=10))
    assert await spine.ledger(task_id) == []
    assert (await spine.shown(task_id))["next_execution"] == NOW + 11 * MINUTE


async def test_a_completed_task_becomes_pending_again_with_a_future_instant(spine: Spine) -> None:
    task_id = await spine.task()
    await spine.fire(NOW + MINUTE)
    await spine.end(NOW + MINUTE)
    later = NOW + timedelta(days=1)
    async with spine.database.write() as session:
        before = (await specs.stored(session, [task_id]))[task_id]
        values = {name: getattr(before, name) for name in specs.TaskSpec.__slots__} | {"scheduled_time": later}
        await tasks.change(
            session, SERVER, task_id, before, specs.TaskSpec(**values), "pending", by=1, now=NOW + 2 * MINUTE
        )
    shown = await spine.shown(task_id)
    assert (shown["status"], shown["next_execution"]) == ("pending", later)


async def test_a_target_that_is_gone_fails_the_execution_and_sends_nothing(spine: Spine) -> None:
    task_id = await spine.task(device_ids=(1, 2))
    async with spine.database.write() as session:
        await session.execute(update(devices).where(devices.c.id == 2).values(deleted_at=NOW))
    await spine.fire(NOW + MINUTE)
    (row,) = await spine.executions(task_id)
    assert (row["status"], row["error_message"]) == ("failed", "Device 'd1' (id 2) no longer exists.")
    assert await spine.count("deployments") == await spine.count("device_runs") == 0
    assert (await spine.shown(task_id))["status"] == "failed"


async def test_a_demoted_owners_task_fails_and_names_the_owner(spine: Spine) -> None:
    task_id = await spine.task()
    async with spine.database.write() as session:
        await session.execute(update(users).values(role="operator"))
    await spine.fire(NOW + MINUTE)
    assert "'owner' no longer has `run` on device 'd0'" in (await spine.executions(task_id))[0]["error_message"]


async def test_a_run_for_an_absent_device_waits_runs_on_return_and_expires_at_the_deadline(spine: Spine) -> None:
    await spine.task(device_ids=(3,))
    await spine.fire(NOW + MINUTE)
    (run,) = await spine.runs()
    assert (run["status"], run["reason"], run["deadline_at"]) == (
        "waiting", "The device is offline.", NOW + MINUTE + timedelta(seconds=300),
    )  # fmt: skip
    async with spine.database.write() as session:
        assert await waiting.overdue(session, now=NOW + 6 * MINUTE - timedelta(seconds=1)) == []
        (late,) = await waiting.overdue(session, now=NOW + 6 * MINUTE)
        assert late[2] is RunStatus.EXPIRED
        assert await waiting.device_came(session, [3], Pace(1000), now=NOW + 6 * MINUTE) == []
    (run,) = await spine.runs()
    assert (run["status"], run["deadline_at"]) == ("queued", None)


async def test_a_device_that_may_not_be_waited_for_ends_the_execution_at_once(spine: Spine) -> None:
    task_id = await spine.task(device_ids=(3,), offline_policy="fail")
    await spine.fire(NOW + MINUTE)
    (row,) = await spine.executions(task_id)
    assert (row["status"], row["result"]) == ("failed", {"counts": {"expired": 1}})


async def test_order_ids_name_the_occurrence_not_the_row(spine: Spine) -> None:
    task_id = await spine.task()
    await spine.fire(NOW + MINUTE)
    (run,) = await spine.runs()
    key = f"task:{task_id}:{(NOW + MINUTE).isoformat()}"
    assert run["order_id"] == device_runs.order_id(SERVER.installation_id, key, 1, 1)


async def test_a_device_back_with_its_journal_gets_its_order_again_and_with_another_journal_not(spine: Spine) -> None:
    await spine.task(device_ids=(1, 2))
    await spine.fire(NOW + MINUTE)
    async with spine.database.write() as session:
        await device_runs.claim_queued(session, "r1", 10, now=NOW + MINUTE)
        back = [device_runs.Returned(1, "j", frozenset()), device_runs.Returned(2, "another", frozenset())]
        touched = await device_runs.reconcile(session, back, now=NOW + 2 * MINUTE)
        await executions.settle_deployments(session, SERVER, touched, now=NOW + 2 * MINUTE)
    assert [run["status"] for run in await spine.runs()] == ["queued", "lost"]


async def test_a_late_result_is_kept_and_changes_nothing(spine: Spine) -> None:
    task_id = await spine.task()
    await spine.fire(NOW + MINUTE)
    (run,) = await spine.runs()
    async with spine.database.write() as session:
        await device_runs.claim_queued(session, "r1", 10, now=NOW + MINUTE)
        await device_runs.end(session, [run["id"]], RunStatus.LOST, "silent", now=NOW + 2 * MINUTE)
        await executions.settle_deployments(session, SERVER, [run["deployment_id"]], now=NOW + 2 * MINUTE)
        ending = device_runs.Ending(run["id"], RunStatus.SUCCEEDED, 0, None, 1.0, [], truncated=False)
        await device_runs.finish(session, [ending], {run["id"]: "lost"}, now=NOW + 3 * MINUTE)
    (run,) = await spine.runs()
    assert (run["status"], run["late_result"]["status"]) == ("lost", "succeeded")
    assert (await spine.ledger(task_id))[0][2] == "failed"


async def test_cancelling_a_task_ends_what_waits_and_asks_devices_to_stop(spine: Spine) -> None:
    task_id = await spine.task(device_ids=(1, 3))
    await spine.fire(NOW + MINUTE)
    async with spine.database.write() as session:
        await device_runs.claim_queued(session, "r1", 10, now=NOW + MINUTE)
        await tasks.cancel(session, SERVER, task_id, by=1, now=NOW + 2 * MINUTE)
    assert [run["status"] for run in await spine.runs()] == ["cancelling", "cancelled"]
    async with spine.database.write() as session:
        (late,) = await waiting.overdue(session, now=NOW + 3 * MINUTE)
        assert late[2] is RunStatus.CANCEL_UNCONFIRMED
        await device_runs.end(session, [late[0]], late[2], late[3], now=NOW + 3 * MINUTE)
        await executions.settle_deployments(session, SERVER, [late[1]], now=NOW + 3 * MINUTE)
    (row,) = await spine.executions(task_id)
    assert row["status"] == "cancelled"
    assert "1 did not confirm it" in row["error_message"]
    assert (await spine.shown(task_id))["status"] == "cancelled"


async def test_concurrent_clocks_fire_each_task_once(spine: Spine) -> None:
    ids = [await spine.task() for _ in range(30)]

    async def claim() -> int:
        return await spine.database.transact(
            lambda session: executions.fire(session, SERVER, now=NOW + MINUTE, limit=5)
        )

    assert sum(await asyncio.gather(*(claim() for _ in range(12)))) == 30
    assert [len(await spine.ledger(task_id)) for task_id in ids] == [1] * 30


async def test_a_task_that_cannot_be_fired_is_set_aside_and_holds_up_no_other(spine: Spine) -> None:
    broken, good = await spine.task(), await spine.task()
    async with spine.database.write() as session:
        statement = update(scheduled_tasks).where(scheduled_tasks.c.id == broken)
        await session.execute(statement.values(recurrence_type="custom", recurrence_config="not json"))
    clock = TaskClock(spine.database, SystemClock(), Hints(), SERVER)
    await clock.tick()
    shown = await spine.shown(broken)
    assert shown["status"] == "failed"
    assert "could not be fired" in shown["error_message"]
    assert len(await spine.ledger(good)) == 1


async def test_what_a_crash_left_unsettled_is_found_and_settled(spine: Spine) -> None:
    task_id = await spine.task()
    await spine.fire(NOW + MINUTE)
    (run,) = await spine.runs()
    async with spine.database.write() as session:
        await device_runs.end(session, [run["id"]], RunStatus.FAILED, "refused", now=NOW + MINUTE)
        assert await deployments.unsettled(session, 10) == [run["deployment_id"]]
        await executions.settle_deployments(session, SERVER, [run["deployment_id"]], now=NOW + MINUTE)
        assert await deployments.unsettled(session, 10) == []
    assert (await spine.ledger(task_id))[0][2] == "failed"
