"""Scheduling policies over HTTP: windows, single occurrences, versions, bulk, import, forecast, preview, explain."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text, update

from deployx.db.schema import alarms, devices, scheduled_tasks
from deployx.work import executions
from tests.api.client import Api, soon, task_body

TASKS = "/api/schedule/tasks"
WINDOW = {"name": "night", "days_of_week": [0, 1, 2, 3, 4, 5, 6], "start": "22:00", "end": "06:00"}
DAILY = {"recurrence_type": "daily", "recurrence_config": {"time": "12:00"}, "scheduled_time": None}
LINES = {"Content-Type": "application/x-ndjson"}


def in_days(days: int, hour: int = 12) -> datetime:
    return datetime.now(UTC).replace(hour=hour, minute=0, second=0, microsecond=0) + timedelta(days=days)


def shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


async def made(api: Api, path: str, body: dict[str, Any]) -> int:
    answer = await api.admin.post(f"/api/schedule/{path}", json=body)
    assert answer.status_code == 201, answer.text
    found: int = answer.json()["id"]
    return found


async def refused(api: Api, body: dict[str, Any], status: int = 422) -> dict[str, Any]:
    answer = await api.admin.post(TASKS, json=task_body(**body))
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()["errors"][0]
    return found


async def fire(api: Api) -> None:
    """Let the clock look once, as its loop would."""
    server = api.services.server

    async def look(session: Any) -> None:
        now = await api.database.now(session)
        await executions.fire(session, server, now=now, limit=100)
        await executions.answer_alarms(session, server, now=now, limit=100)
        await executions.fire(session, server, now=now, limit=100, backlog=True)

    await api.database.transact(look)


async def explained(api: Api, path: str) -> dict[str, str]:
    """Rule → text of an explanation."""
    answer = await api.admin.get(f"/api/schedule/{path}/explain")
    assert answer.status_code == 200, answer.text
    assert answer.json()["summary"]
    return {reason["rule"]: reason["text"] for reason in answer.json()["reasons"]}


# -- policies ---------------------------------------------------------------------------------------------------


async def test_every_policy_is_stored_and_shown_with_its_default(api: Api) -> None:
    await api.device()
    defaults = await api.task()
    expected: dict[str, Any] = {
        "misfire_grace_seconds": 300, "catch_up": "latest", "max_instances": 3, "overlap_policy": "skip",
        "jitter_seconds": 0, "window_ids": [], "blackout_ids": [], "outside_window": "delay",
        "pause_on_failure": False,
    }  # fmt: skip
    assert {name: defaults[name] for name in expected} == expected
    window_id = await made(api, "windows", WINDOW)
    chosen = {
        "misfire_grace_seconds": 60, "catch_up": "all", "max_instances": 1, "overlap_policy": "cancel_running",
        "jitter_seconds": 3599, "window_ids": [window_id], "outside_window": "skip", "pause_on_failure": True,
    }  # fmt: skip
    hourly = {"recurrence_type": "interval", "recurrence_config": {"every_seconds": 3600}}
    task = await api.task(**chosen, **hourly)
    assert {name: task[name] for name in chosen} == chosen
    planned = datetime.fromisoformat(task["scheduled_time"])
    assert planned <= datetime.fromisoformat(task["next_execution"]) < planned + timedelta(seconds=3599)


@pytest.mark.parametrize(
    ("body", "place", "why"),
    [
        ({"catch_up": "newest"}, ["body", "catch_up"], "'latest', 'all' or 'none'"),
        ({"overlap_policy": "wait"}, ["body", "overlap_policy"], "'skip', 'queue' or 'cancel_running'"),
        ({"window_ids": [99]}, ["body", "window_ids", 0], "There is no window 99: see /api/schedule/windows."),
        ({"blackout_ids": [99]}, ["body", "blackout_ids", 0], "There is no blackout 99"),
        (
            {**DAILY, "jitter_seconds": 86_400},
            ["body", "jitter_seconds"],
            "86400 is not less than the shortest gap between two occurrences, 86400 s: use at most 86399.",
        ),
        (
            {
                "recurrence_type": "custom",
                "recurrence_config": {"cron_expression": "0,10 3 * * *"},
                "jitter_seconds": 600,
            },
            ["body", "jitter_seconds"],
            "shortest gap between two occurrences, 600 s: use at most 599.",
        ),
        (
            {**DAILY, "recurrence_config": {"time": "12:00", "max_occurrences": 0}},
            ["body", "recurrence_config", "max_occurrences"],
            "use a whole number from 1 to 10000",
        ),
        (
            {"recurrence_type": "after", "recurrence_config": {"after": {"tasks": [{"task_id": 99}]}}},
            ["body", "recurrence_config", "after", "tasks", 0],
            "Task 99 does not exist or is not visible to you.",
        ),
        (
            {"recurrence_type": "after", "recurrence_config": {"after": {"tasks": []}}},
            ["body", "recurrence_config", "after"],
            "does not name 1 to 100 tasks",
        ),
        (
            {"recurrence_type": "after", "recurrence_config": {"after": {"tasks": [{"task_id": 1, "on": "end"}]}}},
            ["body", "recurrence_config", "after"],
            "on 'end' is not known; use success, failure or completion.",
        ),
    ],
)  # fmt: skip
async def test_a_policy_that_cannot_be_kept_is_refused_with_what_would_be_right(
    api: Api, body: dict[str, Any], place: list[object], why: str
) -> None:
    await api.device()
    await api.task()
    error = await refused(api, body)
    assert error["loc"] == place
    assert why in error["msg"]


async def test_max_occurrences_counts_planned_ones_from_the_creation_on_also_after_an_edit(api: Api) -> None:
    await api.device()
    task = await api.task(**{**DAILY, "recurrence_config": {"time": "12:00", "max_occurrences": 2}})
    listed = (await api.admin.get(f"{TASKS}/{task['id']}/occurrences")).json()["items"]
    assert len(listed) == 2
    assert task["description"] == "Every day at 12:00 UTC, 2 times"
    changed = await api.admin.put(
        f"{TASKS}/{task['id']}", json={"recurrence_config": {"time": "13:00", "max_occurrences": 3}}
    )
    assert changed.status_code == 200, changed.text
    listed = (await api.admin.get(f"{TASKS}/{task['id']}/occurrences")).json()["items"]
    assert [one["planned_for"][11:16] for one in listed] == ["13:00"] * 3


# -- windows and blackouts --------------------------------------------------------------------------------------


async def test_windows_and_blackouts_are_kept_by_name(api: Api) -> None:
    for path, body in (
        ("windows", {**WINDOW, "timezone": "Europe/Berlin"}),
        ("blackouts", {"name": "freeze", "from": "2026-12-20T00:00:00Z", "to": "2027-01-02T00:00:00Z"}),
        ("blackouts", {"name": "holidays", "dates": ["12-25", "12-26"], "timezone": "Europe/Berlin"}),
    ):
        answer = await api.admin.post(f"/api/schedule/{path}", json=body)
        assert answer.status_code == 201, answer.text
        place = answer.headers["location"]
        assert answer.json().items() >= body.items()
        again = await api.admin.post(f"/api/schedule/{path}", json=body)
        assert (again.status_code, "choose another name" in again.json()["detail"]) == (409, True)
        changed = await api.admin.put(
            place, json=body | {"name": "other"}, headers={"If-Match": answer.headers["etag"]}
        )
        assert changed.json() == (await api.admin.get(place)).json() == answer.json() | {"name": "other"}
        stale = await api.admin.put(place, json=body, headers={"If-Match": answer.headers["etag"]})
        assert stale.status_code == 412
        assert (await api.admin.get(f"/api/schedule/{path}")).json()["items"][0]["name"] == "other"
        assert (await api.admin.delete(place)).status_code == 204
        assert (await api.admin.get(place)).status_code == 404


@pytest.mark.parametrize(
    ("path", "change", "place", "why"),
    [
        ("windows", {"days_of_week": []}, ["body", "days_of_week"], "at least 1"),
        ("windows", {"days_of_week": [7]}, ["body", "days_of_week", 0], "less than or equal to 6"),
        ("windows", {"start": "24:00"}, ["body", "start"], "'24:00' is no time of day: write 'HH:MM'"),
        ("windows", {"timezone": "Europe/Berlim"}, ["body", "timezone"], "Did you mean 'Europe/Berlin'?"),
        ("blackouts", {}, ["body", "from"], "add what is missing"),
        (
            "blackouts",
            {"from": "2026-12-20T00:00:00Z", "to": "2026-12-19T00:00:00Z"},
            ["body", "to"],
            "give a later instant",
        ),
        ("blackouts", {"dates": ["13-01"]}, ["body", "dates", 0], "'13-01' is no day of a year"),
        ("blackouts", {"dates": ["1-1"]}, ["body", "dates", 0], "'1-1' is no day of a year: write month and day"),
        (
            "blackouts",
            {"dates": ["12-25"], "from": "2026-12-20T00:00:00Z"},
            ["body", "dates"],
            "keep one of the two ways",
        ),
    ],
)  # fmt: skip
async def test_a_window_that_makes_no_sense_is_refused(
    api: Api, path: str, change: dict[str, Any], place: list[object], why: str
) -> None:
    body = (WINDOW if path == "windows" else {"name": "b"}) | change
    answer = await api.admin.post(f"/api/schedule/{path}", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["loc"] == place
    assert why in answer.json()["errors"][0]["msg"]


async def test_a_window_in_use_is_not_deleted_and_says_who_uses_it(api: Api) -> None:
    device_id = await api.device()
    window_id = await made(api, "windows", WINDOW)
    task = await api.task(window_ids=[window_id])
    group = await api.admin.post("/api/groups", json={"name": "g", "window_ids": [window_id]})
    assert group.json()["window_ids"] == [window_id]
    answer = await api.admin.delete(f"/api/schedule/windows/{window_id}")
    assert answer.status_code == 409
    assert f"task 'Clean up' ({task['id']}), group 'g' ({group.json()['id']})" in answer.json()["detail"]
    assert (await api.admin.delete(f"{TASKS}/{task['id']}")).status_code == 204
    freed = await api.admin.put(f"/api/groups/{group.json()['id']}", json={"name": "g", "window_ids": []})
    assert freed.json()["window_ids"] == []
    assert (await api.admin.delete(f"/api/schedule/windows/{window_id}")).status_code == 204
    assert device_id


async def test_a_maker_may_change_a_window_only_while_it_may_run_on_what_others_do_with_it(api: Api) -> None:
    group_id = await api.group()
    device_id = await api.device(group_id=group_id)
    user_id, maker = await api.user("olga", "operator")
    window_id = (await maker.post("/api/schedule/windows", json=WINDOW)).json()["id"]
    address = f"/api/schedule/windows/{window_id}"
    await api.task(window_ids=[window_id], device_ids=[device_id])
    answer = await maker.put(address, json=WINDOW)
    assert (answer.status_code, "may not run on all" in answer.json()["detail"]) == (403, True)
    await api.admin.put(f"/api/groups/{group_id}/grants/{user_id}", json={"permission": "run"})
    assert (await maker.put(address, json=WINDOW)).status_code == 200


# -- single occurrences and versions ----------------------------------------------------------------------------


async def test_one_occurrence_is_skipped_moved_and_put_back(api: Api) -> None:
    await api.device()
    task = await api.task(**DAILY)
    address = f"{TASKS}/{task['id']}/occurrences"
    first, second = (one["planned_for"] for one in (await api.admin.get(address)).json()["items"][:2])
    assert (await api.admin.post(f"{address}/{first}/skip")).json()["skipped"] is True
    await fire(api)
    assert (await api.admin.get(f"{TASKS}/{task['id']}")).json()["next_execution"] == second
    to = shown(datetime.fromisoformat(second) + timedelta(hours=3))
    moved = await api.admin.post(f"{address}/{second}/move", json={"to": to})
    assert (moved.json()["due_at"], moved.json()["moved"]) == (to, True)
    await fire(api)
    assert (await api.admin.get(f"{TASKS}/{task['id']}")).json()["next_execution"] == to
    items = (await api.admin.get(address)).json()["items"]
    assert [(one["due_at"], one["skipped"]) for one in items[:2]] == [(None, True), (to, False)]
    assert {"skipped_by_hand", "moved_by_hand"} <= (await explained(api, f"tasks/{task['id']}")).keys()
    for one in (first, second):
        back = await api.admin.post(f"{address}/{one}/move", json={"to": one})
        assert (back.json()["skipped"], back.json()["moved"]) == (False, False)
    await fire(api)
    assert (await api.admin.get(f"{TASKS}/{task['id']}")).json()["next_execution"] == first


async def test_occurrences_are_listed_part_by_part(api: Api) -> None:
    await api.device()
    task = await api.task(**DAILY)
    address = f"{TASKS}/{task['id']}/occurrences"
    span = {"from": shown(in_days(1, 0)), "to": shown(in_days(11, 0)), "limit": "4"}
    first = (await api.admin.get(address, params=span)).json()
    assert (first["total"], first["skip"], first["limit"], len(first["items"])) == (10, 0, 4, 4)
    second = (await api.admin.get(address, params=span | {"cursor": first["next_cursor"]})).json()
    skipped = (await api.admin.get(address, params=span | {"skip": "4"})).json()
    assert second["items"] == skipped["items"] != first["items"]
    last = (await api.admin.get(address, params=span | {"skip": "8"})).json()
    assert (len(last["items"]), last["next_cursor"]) == (2, None)
    wrong = await api.admin.get(address, params={"from": span["to"], "to": span["from"]})
    assert (wrong.status_code, wrong.json()["errors"][0]["loc"]) == (422, ["query", "to"])
    every_second = await api.task(recurrence_type="interval", recurrence_config={"every_seconds": 1})
    many = (await api.admin.get(f"{TASKS}/{every_second['id']}/occurrences")).json()
    assert (many["total"], many["total_capped"], len(many["items"])) == (10_000, True, 100)


async def test_only_planned_occurrences_to_come_can_be_changed(api: Api) -> None:
    await api.device()
    task = await api.task(**DAILY)
    address = f"{TASKS}/{task['id']}/occurrences"
    planned = (await api.admin.get(address)).json()["items"][0]["planned_for"]
    wrong = await api.admin.post(f"{address}/2999-01-01T00:00:00Z/skip")
    assert (wrong.status_code, wrong.json()["errors"][0]["loc"]) == (422, ["path", "instant"])
    assert f"the next one is {planned}" in wrong.json()["detail"]
    assert (await api.admin.post(f"{address}/tomorrow/skip")).status_code == 422
    past = await api.admin.post(f"{address}/{planned}/move", json={"to": "2020-01-01T00:00:00Z"})
    assert (past.status_code, past.json()["errors"][0]["loc"]) == (422, ["body", "to"])
    await api.admin.post(f"{TASKS}/{task['id']}/pause")
    paused = await api.admin.post(f"{address}/{planned}/skip")
    assert (paused.status_code, "Resume it first" in paused.json()["detail"]) == (409, True)
    assert (await api.admin.get(address)).json()["items"] == []


async def test_versions_tell_who_changed_what_and_when_it_was_paused(api: Api) -> None:
    await api.device()
    task = await api.task(**DAILY)
    address = f"{TASKS}/{task['id']}"
    await api.admin.put(address, json={"recurrence_config": {"time": "13:00"}})
    await api.admin.post(f"{address}/pause", json={"reason": "holidays"})
    await api.admin.post(f"{address}/resume")
    items = (await api.admin.get(f"{address}/versions")).json()["items"]
    assert [(one["version"], one["action"], one["user_id"], one["changed"]) for one in items] == [
        (4, "resume", 1, ["status"]),
        (3, "pause", 1, ["status"]),
        (2, "update", 1, ["recurrence_config"]),
        (1, "create", 1, []),
    ]
    assert items[2]["before"]["recurrence_config"]["time"] == "12:00"
    assert items[2]["after"]["recurrence_config"]["time"] == "13:00"
    assert items[3]["before"] is None


async def test_a_pause_with_an_end_resumes_by_itself(api: Api) -> None:
    await api.device()
    far_from_now = (datetime.now(UTC) + timedelta(hours=12)).strftime("%H:%M")
    task = await api.task(**DAILY | {"recurrence_config": {"time": far_from_now}})
    address = f"{TASKS}/{task['id']}"
    past = await api.admin.post(f"{address}/pause", json={"until": "2020-01-01T00:00:00Z"})
    assert (past.status_code, past.json()["errors"][0]["loc"]) == (422, ["body", "until"])
    until = datetime.now(UTC) + timedelta(hours=1)
    paused = await api.admin.post(f"{address}/pause", json={"until": until.isoformat()})
    assert (paused.json()["status"], paused.json()["next_execution"]) == ("paused", None)
    await fire(api)
    assert (await api.admin.get(address)).json()["status"] == "paused"
    until -= timedelta(hours=2)  # as if that time had passed
    async with api.database.write() as session:
        await session.execute(update(scheduled_tasks).values(paused_until=until))
        await session.execute(update(alarms).values(at=until))
    await fire(api)
    resumed = (await api.admin.get(address)).json()
    assert (resumed["status"], resumed["next_execution"], resumed["paused_until"]) == (
        "pending", task["next_execution"], None,
    )  # fmt: skip
    newest = (await api.admin.get(f"{address}/versions")).json()["items"][0]
    assert (newest["action"], newest["user_id"], datetime.fromisoformat(newest["at"])) == ("resume", None, until)


# -- many at once -----------------------------------------------------------------------------------------------


async def test_one_action_on_many_tasks_tells_of_each_what_happened(api: Api) -> None:
    await api.device()
    ids = [(await api.task(task_name=f"t{number}", **DAILY))["id"] for number in range(3)]
    await api.admin.post(f"{TASKS}/{ids[2]}/cancel")
    body = {"task_ids": [*ids, 999], "action": "pause", "reason": "freeze"}
    answer = (await api.admin.post(f"{TASKS}/bulk", json=body)).json()
    assert (answer["succeeded"], answer["failed"]) == (2, 2)
    assert [(one["ok"], one.get("status"), one.get("code")) for one in answer["results"]] == [
        (True, "paused", None), (True, "paused", None), (False, None, "conflict"), (False, None, "not-found"),
    ]  # fmt: skip
    assert answer["results"][2]["detail"] == "A task that is cancelled cannot become paused."
    assert (await api.admin.get(f"{TASKS}/{ids[0]}")).json()["paused_reason"] == "freeze"
    executed = (await api.admin.post(f"{TASKS}/bulk", json={"task_ids": ids[:1], "action": "execute"})).json()
    assert executed["results"][0]["execution_id"]
    deleted = (await api.admin.post(f"{TASKS}/bulk", json={"task_ids": ids, "action": "delete"})).json()
    assert (deleted["succeeded"], (await api.admin.get(TASKS)).json()["total"]) == (3, 0)


async def test_a_duplicate_is_paused_and_named_a_copy(api: Api) -> None:
    await api.device()
    task = await api.task(labels={"a": "b"}, **DAILY)
    answer = await api.admin.post(f"{TASKS}/{task['id']}/duplicate")
    assert (answer.status_code, answer.headers["location"]) == (201, f"{TASKS}/{answer.json()['id']}")
    copy = answer.json()
    assert (copy["task_name"], copy["status"], copy["next_execution"]) == ("Clean up (copy)", "paused", None)
    kept = ("labels", "recurrence_config", "command_payload", "device_ids", "misfire_grace_seconds")
    assert {name: copy[name] for name in kept} == {name: task[name] for name in kept}
    assert (await api.admin.post(f"{TASKS}/{copy['id']}/resume")).json()["status"] == "pending"


async def test_tasks_are_imported_line_by_line_all_or_none(api: Api) -> None:
    await api.device()
    lines = [json.dumps(task_body(task_name=f"t{number}")) for number in range(3)]
    done = await api.admin.post(f"{TASKS}/import", content="\n".join([*lines, "", ""]), headers=LINES)
    assert (done.status_code, done.json()) == (201, {"created": 3})
    for bad, place, why in (
        ("{", ["body", 3], "Line 3: The body is not JSON"),
        (json.dumps(task_body(max_instances=0)), ["body", 3, "max_instances"], "Line 3: "),
        (json.dumps(task_body(device_ids=[99])), ["body", 3, "device_ids", 0], "Line 3: Device 99 does not exist"),
        (json.dumps(task_body(scheduled_time="2020-01-01T00:00:00Z")), ["body", 3, "scheduled_time"], "has passed"),
    ):
        answer = await api.admin.post(f"{TASKS}/import", content="\n".join([*lines[:2], bad]), headers=LINES)
        assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, place), answer.text
        assert why in answer.json()["errors"][0]["msg"]
    assert (await api.admin.get(TASKS)).json()["total"] == 3
    assert (await api.admin.post(f"{TASKS}/import", content="", headers=LINES)).status_code == 422
    wrong_type = await api.admin.post(f"{TASKS}/import", content="x", headers={"Content-Type": "image/png"})
    assert wrong_type.status_code == 415


# -- dependencies -----------------------------------------------------------------------------------------------


def after(*task_ids: int, mode: str = "all") -> dict[str, Any]:
    tasks = [{"task_id": task_id} for task_id in task_ids]
    return {
        "recurrence_type": "after",
        "recurrence_config": {"after": {"tasks": tasks, "mode": mode}},
        "scheduled_time": None,
    }


async def test_a_task_after_others_is_described_and_a_circle_is_refused_with_its_path(api: Api) -> None:
    await api.device()
    first = (await api.task(**DAILY))["id"]
    second = await api.task(**after(first))
    assert (second["status"], second["next_execution"]) == ("pending", None)
    assert second["description"] == f"After task {first} has succeeded"
    third = (await api.task(**after(second["id"])))["id"]
    circle = await api.admin.put(f"{TASKS}/{first}", json=after(third))
    assert circle.status_code == 422
    assert circle.json()["errors"][0]["loc"] == ["body", "recurrence_config", "after"]
    assert f"{first} → {third} → {second['id']} → {first}" in circle.json()["errors"][0]["msg"]
    alone = await api.admin.put(f"{TASKS}/{first}", json=after(first))
    assert (alone.status_code, f"{first} → {first}" in alone.json()["detail"]) == (422, True)
    rules = await explained(api, f"tasks/{third}")
    assert "has not ended so since this task last started" in rules["upstream"]


async def test_deleting_an_upstream_names_its_dependents_or_fails_them(api: Api) -> None:
    await api.device()
    first = (await api.task(**DAILY))["id"]
    second = (await api.task(task_name="B", **after(first)))["id"]
    answer = await api.admin.delete(f"{TASKS}/{first}")
    assert (answer.status_code, f"'B' ({second})" in answer.json()["detail"]) == (409, True)
    assert (await api.admin.delete(f"{TASKS}/{first}?detach=true")).status_code == 204
    failed = (await api.admin.get(f"{TASKS}/{second}")).json()
    assert failed["status"] == "failed"
    assert f"task {first} ('Clean up'), which was deleted" in failed["error_message"]


# -- preview and forecast ---------------------------------------------------------------------------------------


async def previewed(api: Api, body: dict[str, Any], count: int = 3) -> dict[str, Any]:
    answer = await api.admin.post(f"/api/schedule/preview?count={count}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_preview_warns_of_what_policies_and_clocks_do(api: Api) -> None:
    window_id = await made(api, "windows", WINDOW)
    noon = {"recurrence_type": "daily", "recurrence_config": {"time": "12:00"}}
    warned = await previewed(api, noon | {"window_ids": [window_id], "jitter_seconds": 60})
    assert [one["code"] for one in warned["warnings"]] == ["jitter", "windows"]
    assert "3 of the next 3 fall outside the windows: they start when a window opens." in warned["warnings"][1]["text"]
    skipping = await previewed(api, noon | {"window_ids": [window_id], "outside_window": "skip"})
    assert "they are skipped" in skipping["warnings"][0]["text"]
    naive = await previewed(
        api, noon | {"timezone": "Asia/Tokyo", "scheduled_time": "2027-01-01T00:00:00"}, 1
    )  # fmt: skip
    assert [one["code"] for one in naive["warnings"]] == ["naive_time"]
    short = await previewed(
        api, {"recurrence_type": "monthly", "recurrence_config": {"time": "12:00", "day_of_month": 31}}
    )
    assert [one["code"] for one in short["warnings"]] == ["short_months"]
    wrong = await api.admin.post("/api/schedule/preview", json=noon | {"window_ids": [99]})
    assert wrong.json()["errors"][0]["loc"] == ["body", "window_ids", 0]


async def test_a_forecast_counts_executions_and_device_runs_and_finds_collisions(api: Api) -> None:
    group_id = await api.group()
    devices = [await api.device(f"d{number}", group_id) for number in range(3)]
    await api.task(**DAILY, device_ids=devices[:1])
    await api.task(**DAILY, device_ids=None, group_ids=[group_id])
    third = await api.task(**after(1), device_ids=devices[:1])
    paused = await api.task(**DAILY, device_ids=devices)
    await api.admin.post(f"{TASKS}/{paused['id']}/pause")
    since, until = shown(in_days(1, 0)), shown(in_days(3, 0))
    answer = await api.admin.get("/api/schedule/forecast", params={"from": since, "to": until, "bucket_seconds": 43200})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert [(one["executions"], one["device_runs"]) for one in found["buckets"]] == [(0, 0), (2, 4), (0, 0), (2, 4)]
    assert found["buckets"][1]["from"] == shown(in_days(1))
    assert found["collisions"] == [
        {"at": shown(in_days(day)), "device_id": devices[0], "task_ids": [1, 2]} for day in (1, 2)
    ]
    assert found["unknown"] == [{"task_id": third["id"], "why": "It starts when other tasks end."}]


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ({"from": "2027-01-01T00:00:00Z", "to": "2027-01-01T00:00:00Z"}, ["query", "to"]),
        (
            {"from": "2027-01-01T00:00:00Z", "to": "2027-02-01T00:00:00Z", "bucket_seconds": "1"},
            ["query", "bucket_seconds"],
        ),
        ({"bucket_seconds": "0"}, ["query", "bucket_seconds"]),
        ({"since": "2027-01-01T00:00:00Z"}, ["query", "since"]),
    ],
)  # fmt: skip
async def test_a_forecast_over_no_or_too_many_buckets_is_refused(
    api: Api, query: dict[str, str], place: list[str]
) -> None:
    answer = await api.admin.get("/api/schedule/forecast", params=query)
    assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, place)


# -- explain: each bullet of the troubleshooting list is one answer -----------------------------------------------


async def test_explain_says_that_a_task_is_paused_cancelled_or_over(api: Api) -> None:
    await api.device()
    task = await api.task(**DAILY)
    await api.admin.post(f"{TASKS}/{task['id']}/pause", json={"reason": "Holidays."})
    assert "The reason given: Holidays." in (await explained(api, f"tasks/{task['id']}"))["paused"]
    await api.admin.post(f"{TASKS}/{task['id']}/cancel")
    assert "was cancelled" in (await explained(api, f"tasks/{task['id']}"))["cancelled"]


async def test_explain_says_that_the_instant_has_passed_or_is_yet_to_come(api: Api) -> None:
    await api.device()
    task = await api.task(scheduled_time=soon(hours=1))
    assert f"not due before {task['next_execution']}" in (await explained(api, f"tasks/{task['id']}"))["not_due"]
    async with api.database.write() as session:
        changed = {"status": "failed", "next_execution": None, "next_planned_for": None}
        past = datetime.now(UTC) - timedelta(hours=1)
        await session.execute(update(scheduled_tasks).values(scheduled_time=past, **changed))
    assert "has passed" in (await explained(api, f"tasks/{task['id']}"))["instant_past"]


async def test_explain_names_missed_and_failed_executions_with_the_setting_that_decided(api: Api) -> None:
    await api.device()
    task = await api.task(recurrence_type="interval", recurrence_config={"every_seconds": 3600}, scheduled_time=soon())
    async with api.database.write() as session:  # as if the server had been down since yesterday
        past = datetime.now(UTC) - timedelta(hours=2.5)
        await session.execute(
            update(scheduled_tasks).values(scheduled_time=past, next_execution=past, next_planned_for=past)
        )
    await fire(api)
    rules = await explained(api, f"tasks/{task['id']}")
    assert "it was found later than its misfire grace allows" in rules["misfire"]
    ledger = (await api.admin.get(f"{TASKS}/{task['id']}/executions")).json()["items"]
    assert {row["reason"] for row in ledger} == {"misfire"}
    one = await explained(api, f"executions/{ledger[0]['id']}")
    assert one["misfire_grace_seconds"] == "The task's misfire_grace_seconds is 300."
    assert "later" in one["found_late"]


async def test_explain_says_what_is_wrong_with_the_targets(api: Api) -> None:
    device_id = await api.device()
    task = await api.task(**DAILY)
    offline = (await explained(api, f"tasks/{task['id']}"))["devices_offline"]
    assert "1 of its 1 devices are offline now: an execution waits up to 300 s for each." in offline
    await api.admin.delete(f"/api/devices/{device_id}")
    gone = (await explained(api, f"tasks/{task['id']}"))["no_access"]
    assert "Device 'web' (id 1) no longer exists." in gone
    failed = (await api.admin.post(f"{TASKS}/{task['id']}/execute")).json()["execution_id"]
    assert "no longer exists" in (await explained(api, f"executions/{failed}"))["failed"]
    group_id = await api.group("empty")
    empty = await api.task(**DAILY, device_ids=None, group_ids=[group_id])
    assert "its groups are empty" in (await explained(api, f"tasks/{empty['id']}"))["no_targets"]


async def test_explain_says_what_the_devices_of_a_running_execution_do(api: Api) -> None:
    await api.device()
    task = await api.task(**DAILY)
    execution_id = (await api.admin.post(f"{TASKS}/{task['id']}/execute")).json()["execution_id"]
    rules = await explained(api, f"tasks/{task['id']}")
    assert "1 waiting (The device is offline.)" in rules["running"]
    async with api.database.write() as session:
        long_ago = datetime.now(UTC) - timedelta(hours=3)
        await session.execute(
            text("UPDATE scheduled_task_executions SET execution_time = :at"),
            {"at": int(long_ago.timestamp() * 1e6) if api.database.is_sqlite else long_ago},
        )
    assert "cancel it if it is not expected" in (await explained(api, f"tasks/{task['id']}"))["running"]
    assert "devices_offline" in await explained(api, f"executions/{execution_id}")


@pytest.mark.parametrize(
    ("reason", "exit_code", "rule", "why"),
    [
        (None, 126, "path_or_permission", "may not be executed"),
        (None, 127, "path_or_permission", "did not find the command"),
        ("The working directory '/x' is missing.", None, "path_or_permission", "missing on the device"),
        ("Permission denied: '/etc/x'", 1, "path_or_permission", "check permissions and run_as"),
        (None, 3, "try_by_hand", "run the command as a deployment on this device alone"),
    ],
)
async def test_explain_says_what_failed_on_the_device_and_what_to_look_at(
    api: Api, reason: str | None, exit_code: int | None, rule: str, why: str
) -> None:
    await api.device()
    task = await api.task(**DAILY)
    execution_id = (await api.admin.post(f"{TASKS}/{task['id']}/execute")).json()["execution_id"]
    async with api.database.write() as session:
        await session.execute(update(devices).values(status="online"))
        await session.execute(
            text(
                "UPDATE device_runs SET status = 'failed', reason = :why, exit_code = :code, completed_at = queued_at"
            ),
            {"why": reason, "code": exit_code},
        )
        now = await api.database.now(session)
        await executions.settle_deployments(session, api.services.server, [1], now=now)
    rules = await explained(api, f"executions/{execution_id}")
    assert why in rules[rule]
    assert "1 of 1 devices failed" in rules["failed"] or "Device 'web'" in rules["failed"]
    assert "Execution" in (await explained(api, f"tasks/{task['id']}"))["failed"]


async def test_explain_says_that_an_execution_waits_for_its_window_or_a_place(api: Api) -> None:
    await api.device()
    now = datetime.now(UTC)
    closed = {"start": shown(now + timedelta(hours=2))[11:16], "end": shown(now + timedelta(hours=3))[11:16]}
    window_id = await made(api, "windows", WINDOW | closed)
    task = await api.task(**DAILY, window_ids=[window_id], overlap_policy="queue", max_instances=1)
    async with api.database.write() as session:
        values = {"next_planned_for": now, "next_execution": now, "scheduled_time": now}
        interval = {"recurrence_type": "interval", "recurrence_config": '{"type":"interval","every_seconds":86400}'}
        await session.execute(update(scheduled_tasks).values(**values, **interval))
    await fire(api)
    waiting = (await api.admin.get(f"{TASKS}/{task['id']}/executions")).json()["items"][0]
    assert waiting["status"] == "delayed"
    said = (await explained(api, f"executions/{waiting['id']}"))["waits_for_window"]
    assert said.startswith(f"Execution {waiting['id']} waits for its window. The next one opens at ")
    cancelled = await api.admin.post(f"/api/schedule/executions/{waiting['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (202, "cancelled")
