"""Rollouts, retries, and trying again, as callers of the API see them."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from sqlalchemy import text, update

from deployx.db.schema import device_runs, devices
from deployx.work import executions
from tests.api.client import Api, task_body


async def fleet(api: Api, count: int) -> list[int]:
    ids = [await api.device(f"d{number}") for number in range(count)]
    async with api.database.write() as session:
        await session.execute(update(devices).values(status="online", replica_id="r1", journal_id="j"))
    return ids


async def end(api: Api, status: str, *device_ids: int) -> None:
    """The devices named end what they have to do."""
    async with api.database.write() as session:
        now = await api.database.now(session)
        values = {"status": status, "completed_at": now, "exit_code": 0 if status == "succeeded" else 1}
        of_these = device_runs.c.device_id.in_(device_ids) & device_runs.c.completed_at.is_(None)
        rows = await session.execute(
            update(device_runs).where(of_these).values(**values).returning(text("deployment_id"))
        )
        await executions.settle_deployments(session, api.services.server, sorted(set(rows.scalars())), now=now)


@pytest.mark.parametrize(
    ("policy", "place", "said"),
    [
        ({"rollout": {"canary": 0}}, ["rollout", "canary"], "'0' is no number of devices"),
        ({"rollout": {"canary": "0%"}}, ["rollout", "canary"], "or a percentage like '5%'"),
        ({"rollout": {"batch_size": "101%"}}, ["rollout", "batch_size"], "'101%' is no number of devices"),
        ({"rollout": {"batch_size": "many"}}, ["rollout", "batch_size"], "'many' is no number of devices"),
        ({"rollout": {"max_failures": -1}}, ["rollout", "max_failures"], "give a number from 0"),
        ({"rollout": {"max_failures": True}}, ["rollout", "max_failures"], "'True' is no number of devices"),
        ({"rollout": {"pause_seconds": -1}}, ["rollout", "pause_seconds"], "greater than or equal to 0"),
        ({"rollout": {"batches": 1}}, ["rollout", "batches"], "There is no field 'batches'"),
        ({"retry": {"max_attempts": 0}}, ["retry", "max_attempts"], "greater than or equal to 1"),
        ({"retry": {"max_attempts": 101}}, ["retry", "max_attempts"], "less than or equal to 100"),
        ({"retry": {"on": []}}, ["retry", "on"], "at least 1 item"),
        ({"retry": {"on": ["succeeded"]}}, ["retry", "on", 0], "'failed'"),
        (
            {"retry": {"initial_delay_seconds": 90, "max_delay_seconds": 60}},
            ["retry", "max_delay_seconds"],
            "60 is less than initial_delay_seconds, 90",
        ),
    ],
)
async def test_a_policy_that_makes_no_sense_is_refused_at_its_field(
    api: Api, policy: dict[str, Any], place: list[str], said: str
) -> None:
    await api.device()
    answer = await api.admin.post("/api/schedule/tasks", json=task_body(**policy))
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert (error["loc"], said in error["msg"]) == (["body", *place], True), error


async def test_a_task_shows_its_policies_with_their_defaults_and_loses_them_with_null(api: Api) -> None:
    await api.device()
    task = await api.task(rollout={"canary": "5%"}, retry={"max_attempts": 3})
    assert task["rollout"] == {
        "canary": "5%", "batch_size": None, "max_failures": 0, "count_offline": False, "pause_seconds": 0,
        "max_concurrent": None, "splay_seconds": 0,
    }  # fmt: skip
    assert task["retry"]["on"] == ["failed", "timed_out", "interrupted", "lost", "expired"]
    where = f"/api/schedule/tasks/{task['id']}"
    changed = await api.admin.put(where, json={"rollout": None, "retry": {"max_attempts": 2}})
    assert (changed.json()["rollout"], changed.json()["retry"]["max_attempts"]) == (None, 2)


async def test_the_preview_says_how_many_may_fail(api: Api) -> None:
    ids = await fleet(api, 3)
    body = {"recurrence_type": "daily", "recurrence_config": {"time": "02:00"}, "device_ids": ids}
    policy = {"canary": 1, "batch_size": 1, "max_failures": "50%"}
    answer = (await api.admin.post("/api/schedule/preview", json=body | {"rollout": policy})).json()
    assert answer["rollout"] == {"devices": 3, "waves": [1, 1, 1], "allowed_failures": 1}
    said = "3 devices in 3 waves: 1 of them may fail, one more stops the rollout."
    assert {"code": "rollout", "text": said} in answer["warnings"]


async def test_a_deployment_shows_its_waves_and_why_it_stopped(api: Api) -> None:
    ids = await fleet(api, 3)
    body = {
        "deployment_type": "command", "command_payload": {"command": "true"}, "device_ids": ids,
        "rollout": {"batch_size": 1},
    }  # fmt: skip
    started = (await api.admin.post("/api/deployments", json=body)).json()
    assert [(wave["status"], wave["devices"]) for wave in started["waves"]] == [
        ("running", 1), ("pending", 1), ("pending", 1),
    ]  # fmt: skip
    await end(api, "failed", ids[0])
    shown = (await api.admin.get(f"/api/deployments/{started['id']}")).json()
    assert (shown["status"], shown["counts"]) == ("failed", {"failed": 1, "halted": 2})
    assert shown["halted_reason"] == "The rollout stopped: 1 of 3 devices failed, and 0 may."


async def test_a_task_is_tried_on_one_of_its_devices_first(api: Api) -> None:
    ids = await fleet(api, 3)
    task = await api.task(device_ids=ids[:2])
    where = f"/api/schedule/tasks/{task['id']}/execute"
    stranger = await api.admin.post(where, json={"device_ids": [ids[0], ids[2]]})
    assert stranger.status_code == 422
    (error,) = stranger.json()["errors"]
    assert error == {
        "loc": ["body", "device_ids", 1],
        "msg": f"Device {ids[2]} is no target of this task: name some of its own devices.",
    }
    assert (await api.admin.post(where, json={"device_ids": []})).status_code == 422
    started = await api.admin.post(where, json={"device_ids": [ids[1]]})
    assert started.status_code == 202
    execution = (await api.admin.get(f"/api/schedule/executions/{started.json()['execution_id']}")).json()
    runs = (await api.admin.get(f"/api/deployments/{execution['deployment_id']}/devices")).json()["items"]
    assert [run["device_id"] for run in runs] == [ids[1]]
    after = (await api.admin.get(f"/api/schedule/tasks/{task['id']}")).json()
    assert after["next_execution"] == task["next_execution"]


async def test_an_execution_is_tried_again_where_it_did_not_succeed(api: Api) -> None:
    ids = await fleet(api, 2)
    task = await api.task(device_ids=ids)
    started = (await api.admin.post(f"/api/schedule/tasks/{task['id']}/execute")).json()["execution_id"]
    where = f"/api/schedule/executions/{started}/retry"
    early = await api.admin.post(where)
    assert (early.status_code, "wait for its end" in early.json()["detail"]) == (409, True)
    await end(api, "succeeded", ids[0])
    await end(api, "failed", ids[1])
    again = await api.admin.post(where)
    assert again.status_code == 202
    execution = (await api.admin.get(f"/api/schedule/executions/{again.json()['execution_id']}")).json()
    assert execution["trigger"] == "retry"
    deployment = f"/api/deployments/{execution['deployment_id']}"
    assert [run["device_id"] for run in (await api.admin.get(f"{deployment}/devices")).json()["items"]] == [ids[1]]
    refused = await api.admin.post(f"{deployment}/retry")
    assert refused.status_code == 409
    assert f"/api/schedule/executions/{execution['id']}/retry" in refused.json()["detail"]
    await end(api, "succeeded", ids[1])
    done = await api.admin.post(f"/api/schedule/executions/{execution['id']}/retry")
    assert (done.status_code, "succeeded on every device" in done.json()["detail"]) == (409, True)


async def test_an_ad_hoc_deployment_is_tried_again_as_a_new_one(api: Api) -> None:
    ids = await fleet(api, 2)
    body = {"deployment_type": "command", "command_payload": {"command": "true"}, "device_ids": ids}
    first = (await api.admin.post("/api/deployments", json=body)).json()
    await end(api, "succeeded", ids[0])
    await end(api, "timed_out", ids[1])
    again = await api.admin.post(f"/api/deployments/{first['id']}/retry")
    assert again.status_code == 202
    assert again.headers["Location"] == f"/api/deployments/{again.json()['id']}"
    assert (again.json()["id"] != first["id"], again.json()["counts"]) == (True, {"queued": 1})


async def test_results_are_a_row_for_each_device_in_which_no_formula_lives(api: Api) -> None:
    ids = await fleet(api, 2)
    task = await api.task(device_ids=ids)
    started = (await api.admin.post(f"/api/schedule/tasks/{task['id']}/execute")).json()["execution_id"]
    await api.admin.patch(f"/api/devices/{ids[0]}", json={"name": "=HYPERLINK(1)"})
    await end(api, "succeeded", ids[0])
    answer = await api.admin.get(f"/api/schedule/executions/{started}/results.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["device_name"], row["status"], row["exit_code"]) for row in rows] == [
        ("'=HYPERLINK(1)", "succeeded", "0"), ("d1", "queued", ""),
    ]  # fmt: skip
