"""Tasks through the HTTP interface: the documented requests, bad input, moves by hand."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, select

from deployx.db.schema import scheduled_tasks
from tests.api.client import Api, soon, task_body

DAILY = {"recurrence_type": "daily", "recurrence_config": {"type": "daily", "time": "02:00"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"command_payload": {"command": "systeminfo", "shell": "cmd", "strategy": "transactional"}},
        {
            "command_payload": {
                "commands": ["ipconfig", "netstat -an", "tasklist"], "shell": "cmd", "stop_on_failure": True,
            }
        },
        DAILY | {"command_payload": {"command": "del /q /f /s %TEMP%\\*", "shell": "cmd"}},
        {
            "recurrence_type": "weekly",
            "recurrence_config": {"type": "weekly", "days_of_week": [0, 2, 4], "time": "02:00"},
        },
        {
            "recurrence_type": "monthly",
            "recurrence_config": {"type": "monthly", "day_of_month": 1, "time": "00:00"},
        },
        {
            "recurrence_type": "custom",
            "recurrence_config": {"type": "custom", "cron_expression": "0 9 * * 1-5"},
            "device_ids": None,
            "group_ids": [1],
        },
    ],
)  # fmt: skip
async def test_every_documented_command_request_is_accepted(api: Api, changes: dict[str, Any]) -> None:
    await api.device(group_id=await api.group())
    task = await api.task(**changes)
    assert task["status"] == "pending"
    assert task["next_execution"].endswith("Z")
    assert (await api.admin.get(f"/api/schedule/tasks/{task['id']}")).json()["executions"] == []


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        ({"scheduld_time": 1}, ["scheduld_time"], "no field"),
        ({"command_payload": {"command": "a", "commands": ["b"]}}, ["command_payload"], "both"),
        ({"command_payload": {}}, ["command_payload"], "neither"),
        ({"command_payload": None}, ["command_payload"], "needs a command_payload"),
        ({"command_payload": {"command": "a\0b"}}, ["command_payload", "command"], "NUL"),
        ({"command_payload": {"command": "true", "shell": "fish"}}, ["command_payload", "shell"], "fish"),
        ({"device_ids": [999]}, ["device_ids", 0], "does not exist"),
        ({"device_ids": None}, ["device_ids"], "at least one"),
        ({"device_ids": []}, ["device_ids"], "at least one"),
        ({"device_ids": ["1"]}, ["device_ids", 0], "integer"),
        ({"device_ids": [True]}, ["device_ids", 0], "integer"),
        ({"group_ids": [7]}, ["group_ids", 0], "does not exist"),
        ({"scheduled_time": "2020-01-01T00:00:00"}, ["scheduled_time"], "has passed"),
        ({"scheduled_time": "tomorrow"}, ["scheduled_time"], "tomorrow"),
        ({"scheduled_time": None}, ["scheduled_time"], "required"),
        ({"task_name": "  "}, ["task_name"], "empty"),
        ({"task_name": "x" * 201}, ["task_name"], "200"),
        ({"task_type": "file_deployment"}, ["command_payload"], "has no command_payload"),
        ({"max_instances": 0}, ["max_instances"], "greater"),
        ({"misfire_grace_seconds": 2_592_001}, ["misfire_grace_seconds"], "less"),
        (DAILY | {"recurrence_config": {"time": "25:00"}}, ["recurrence_config", "time"], "25:00"),
        (DAILY | {"recurrence_config": {}}, ["recurrence_config", "time"], "time"),
        (DAILY | {"recurrence_config": {"type": "weekly", "time": "02:00"}}, ["recurrence_config", "type"], "weekly"),
        (DAILY | {"recurrence_config": {"time": "02:00", "days_of_week": [1]}},
         ["recurrence_config", "days_of_week"], ""),
        ({"recurrence_type": "weekly", "recurrence_config": {"time": "02:00", "days_of_week": []}},
         ["recurrence_config", "days_of_week"], ""),
        ({"recurrence_type": "weekly", "recurrence_config": {"time": "02:00", "days_of_week": [7]}},
         ["recurrence_config", "days_of_week"], ""),
        ({"recurrence_type": "custom", "recurrence_config": {"cron_expression": "0 0 30 2 *"}},
         ["recurrence_config", "cron_expression"], "never"),
        ({"recurrence_type": "custom", "recurrence_config": {"cron_expression": "0 0 2 * * 1"}},
         ["recurrence_config", "cron_expression"], ""),
        ({"recurrence_type": "custom", "recurrence_config": {"cron_expression": "61 * * * *"}},
         ["recurrence_config", "cron_expression"], "61"),
        ({"timezone": "Europe/Kyvi"}, ["timezone"], "Europe/Kyvi"),
    ],
)  # fmt: skip
async def test_bad_input_is_refused_with_its_place_and_stores_nothing(
    api: Api, changes: dict[str, Any], place: list[Any], words: str
) -> None:
    await api.device()
    answer = await api.admin.post("/api/schedule/tasks", json=task_body(**changes))
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = {tuple(one["loc"]): one["msg"] for one in answer.json()["errors"]}
    matching = [msg for loc, msg in found.items() if list(loc[1 : 1 + len(place)]) == place]
    assert matching, found
    assert any(words.lower() in msg.lower() for msg in matching), found
    async with api.database.read() as session:
        assert (await session.execute(select(func.count()).select_from(scheduled_tasks))).scalar_one() == 0


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {}, 400),
        (b"{", {"content-type": "application/json"}, 400),
        (b'{"a": NaN}', {"content-type": "application/json"}, 400),
        (b'{"a":' + b"[" * 33 + b"]" * 33 + b"}", {"content-type": "application/json"}, 400),
        (b'{"task_name": "\\ud800"}', {"content-type": "application/json"}, 400),
        (b"\xff", {"content-type": "application/json"}, 400),
        (b"a=1", {"content-type": "application/x-www-form-urlencoded"}, 415),
        (b'{"a": "' + b"x" * 1_048_576 + b'"}', {"content-type": "application/json"}, 413),
    ],
)
async def test_a_body_out_of_bounds_is_refused(api: Api, content: bytes, headers: dict[str, str], status: int) -> None:
    answer = await api.admin.post("/api/schedule/tasks", content=content, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (status, status)


async def test_a_naive_instant_is_utc_and_an_offset_is_converted(api: Api) -> None:
    await api.device()
    assert (await api.task(scheduled_time="2099-01-01T10:00:00"))["next_execution"] == "2099-01-01T10:00:00Z"
    assert (await api.task(scheduled_time="2099-01-01T10:00:00+02:00"))["next_execution"] == "2099-01-01T08:00:00Z"


async def test_a_nul_is_refused_wherever_text_is_taken(api: Api) -> None:
    for path in ("/api/schedule/tasks?search=%00", "/api/devices?search=a%00", "/api/schedule/tasks?label=%00"):
        assert (path, (await api.admin.get(path)).status_code) == (path, 422)
    login = {"username": "a\0", "password": "x"}
    assert (await api.client(None).post("/api/auth/login", json=login)).status_code == 422


async def test_an_unknown_query_parameter_is_refused(api: Api) -> None:
    for path in ("/api/schedule/tasks?statuss=pending", "/api/schedule/stats?x=1", "/api/auth/me?token=abc"):
        answer = await api.admin.get(path)
        assert (path, answer.status_code) == (path, 422)


async def test_an_id_that_is_no_positive_64_bit_integer_is_not_found(api: Api) -> None:
    for wrong in ("0", "-1", "abc", str(2**63), "1.5"):
        assert (await api.admin.get(f"/api/schedule/tasks/{wrong}")).status_code == 404, wrong


async def test_moves_by_hand_follow_the_lifecycle_and_name_both_states(api: Api) -> None:
    await api.device()
    task = await api.task(**DAILY)
    path = f"/api/schedule/tasks/{task['id']}"
    paused = (await api.admin.post(f"{path}/pause", json={"reason": "release"})).json()
    assert (paused["status"], paused["next_execution"], paused["paused_reason"]) == ("paused", None, "release")
    assert (await api.admin.post(f"{path}/resume")).json()["status"] == "pending"
    assert (await api.admin.post(f"{path}/cancel")).json()["status"] == "cancelled"
    refused = await api.admin.post(f"{path}/pause")
    assert refused.status_code == 409
    assert "cancelled" in refused.json()["detail"]
    assert "paused" in refused.json()["detail"]
    assert (await api.admin.post(f"{path}/execute")).status_code == 409
    assert (await api.admin.put(path, json={"status": "pending"})).json()["status"] == "pending"
    assert (await api.admin.put(path, json={"status": "running"})).status_code == 409


async def test_a_change_is_validated_as_a_whole_and_makes_a_new_version(api: Api) -> None:
    await api.device()
    task = await api.task()
    path = f"/api/schedule/tasks/{task['id']}"
    assert (await api.admin.put(path, json={"recurrence_type": "daily"})).status_code == 422
    changed = await api.admin.put(path, json={"task_name": "Renamed", "scheduled_time": soon(days=2)})
    assert (changed.json()["task_name"], changed.json()["version"]) == ("Renamed", 2)
    stale = await api.admin.put(path, json={"task_name": "Again"}, headers={"If-Match": '"1"'})
    assert stale.status_code == 412
    fresh = await api.admin.put(path, json={"task_name": "Again"}, headers={"If-Match": changed.headers["etag"]})
    assert fresh.status_code == 200


async def test_the_same_idempotency_key_creates_once(api: Api) -> None:
    await api.device()
    headers, body = {"Idempotency-Key": "k1"}, task_body()
    first = await api.admin.post("/api/schedule/tasks", json=body, headers=headers)
    second = await api.admin.post("/api/schedule/tasks", json=body, headers=headers)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    other = await api.admin.post("/api/schedule/tasks", json=body | {"task_name": "Other"}, headers=headers)
    assert other.status_code == 409
    assert (await api.admin.get("/api/schedule/tasks")).json()["total"] == 1


async def test_lists_filter_page_and_continue_by_cursor(api: Api) -> None:
    await api.device(group_id=await api.group())
    for number in range(5):
        await api.task(task_name=f"Task_{number}", labels={"team": "a" if number % 2 else "b"}, group_ids=[1])
    found = (await api.admin.get("/api/schedule/tasks?limit=2")).json()
    assert [one["task_name"] for one in found["items"]] == ["Task_4", "Task_3"]
    assert (found["total"], found["skip"], found["limit"]) == (5, 0, 2)
    following = (await api.admin.get(f"/api/schedule/tasks?limit=2&cursor={found['next_cursor']}")).json()
    assert [one["task_name"] for one in following["items"]] == ["Task_2", "Task_1"]
    for query, total in (
        ("search=TASK_1", 1), ("search=%25", 0), ("label=team%3Da", 2), ("label=team", 5), ("label=x", 0),
        ("group_id=1", 5), ("device_id=2", 0), ("status=pending", 5), ("status=paused", 0), ("task_type=command", 5),
    ):  # fmt: skip
        assert (query, (await api.admin.get(f"/api/schedule/tasks?{query}")).json()["total"]) == (query, total)


async def test_a_preview_names_the_next_instants_and_stores_nothing(api: Api) -> None:
    body = {"recurrence_type": "custom", "recurrence_config": {"cron_expression": "0 0 31 * *"}}
    answer = await api.admin.post("/api/schedule/preview?count=3", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert len(found["occurrences"]) == 3
    assert all("-31T00:00:00Z" in one["planned_for"] for one in found["occurrences"])
    assert [one["code"] for one in found["warnings"]] == ["short_months"]
    assert (await api.admin.get("/api/schedule/stats")).json()["total_tasks"] == 0


async def test_deleting_a_task_hides_it(api: Api) -> None:
    await api.device()
    task = await api.task()
    assert (await api.admin.delete(f"/api/schedule/tasks/{task['id']}")).status_code == 204
    assert (await api.admin.get(f"/api/schedule/tasks/{task['id']}")).status_code == 404
    assert (await api.admin.get("/api/schedule/tasks")).json()["total"] == 0


async def test_each_change_of_a_task_leaves_an_audit_row_in_order(api: Api) -> None:
    await api.device()
    task = await api.task(**DAILY)
    path = f"/api/schedule/tasks/{task['id']}"
    await api.admin.post(f"{path}/pause")
    await api.admin.post(f"{path}/resume")
    await api.admin.delete(path)
    rows = (await api.admin.get(f"/api/audit?object_type=task&object_id={task['id']}")).json()["items"]
    assert [row["action"] for row in rows] == ["delete", "resume", "pause", "create"]
    assert all(row["request_id"] and row["user_id"] == 1 for row in rows)


async def test_an_operator_sees_and_changes_what_its_grants_allow(api: Api) -> None:
    group_id = await api.group()
    await api.device(group_id=group_id)
    user_id, operator = await api.user("olga", "operator")
    task = await api.task()
    path = f"/api/schedule/tasks/{task['id']}"
    assert (await operator.get(path)).status_code == 404
    assert (await operator.post("/api/schedule/tasks", json=task_body())).status_code == 422
    for permission, read, change, create in (
        ("view", 200, 403, 422),
        ("run", 200, 403, 201),
        ("manage", 200, 200, 201),
    ):
        grant = {"permission": permission}
        assert (await api.admin.put(f"/api/groups/{group_id}/grants/{user_id}", json=grant)).status_code == 204
        assert (await operator.get(path)).status_code == read
        assert (await operator.put(path, json={"task_name": "Mine"})).status_code == change
        assert (await operator.post("/api/schedule/tasks", json=task_body())).status_code == create
