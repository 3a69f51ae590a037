"""Signing in, revocation, users and tokens."""

from __future__ import annotations

from tests.api.client import PASSWORD, Api


async def test_a_wrong_name_and_a_wrong_password_read_alike(api: Api) -> None:
    nobody = api.client(None)
    answers = [
        await nobody.post("/api/auth/login", json={"username": name, "password": "wrong password"})
        for name in ("admin", "no-such-user")
    ]
    assert [one.status_code for one in answers] == [401, 401]
    assert answers[0].content == answers[1].content


async def test_after_ten_failures_even_the_right_password_has_to_wait(api: Api) -> None:
    nobody = api.client(None)
    for _ in range(10):
        await nobody.post("/api/auth/login", json={"username": "admin", "password": "wrong password"})
    answer = await nobody.post("/api/auth/login", json={"username": "admin", "password": PASSWORD})
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 300


async def test_logout_revokes_the_session_at_once(api: Api) -> None:
    session = await api.sign_in("admin")
    assert (await session.post("/api/auth/logout")).status_code == 204
    assert (await session.get("/api/auth/me")).status_code == 401


async def test_a_new_password_ends_other_sessions_and_keeps_api_tokens(api: Api) -> None:
    _, first = await api.user("olga", "operator")
    other = await api.sign_in("olga")
    made = await first.post("/api/auth/tokens", json={"name": "ci"})
    token = api.client(made.json()["token"])
    short = {"current_password": PASSWORD, "new_password": "short"}
    assert (await first.post("/api/auth/password", json=short)).status_code == 422
    wrong = {"current_password": "not the password", "new_password": "a new long password"}
    assert (await first.post("/api/auth/password", json=wrong)).status_code == 422
    right = {"current_password": PASSWORD, "new_password": "a new long password"}
    assert (await first.post("/api/auth/password", json=right)).status_code == 204
    assert [(await one.get("/api/auth/me")).status_code for one in (first, other, token)] == [200, 401, 200]


async def test_deactivation_ends_sessions_and_api_tokens(api: Api) -> None:
    user_id, session = await api.user("olga", "operator")
    token = api.client((await session.post("/api/auth/tokens", json={"name": "ci"})).json()["token"])
    assert (await api.admin.patch(f"/api/users/{user_id}", json={"is_active": False})).status_code == 200
    assert [(await one.get("/api/auth/me")).status_code for one in (session, token)] == [401, 401]


async def test_the_last_active_administrator_stays(api: Api) -> None:
    for change in ({"role": "viewer"}, {"is_active": False}):
        answer = await api.admin.patch("/api/users/1", json=change)
        assert (answer.status_code, "last active administrator" in answer.text) == (409, True)
    assert (await api.admin.delete("/api/users/1")).status_code == 409


async def test_a_user_who_owns_tasks_is_deleted_only_after_a_hand_over(api: Api) -> None:
    group_id = await api.group()
    await api.device(group_id=group_id)
    user_id, operator = await api.user("olga", "operator")
    await api.admin.put(f"/api/groups/{group_id}/grants/{user_id}", json={"permission": "run"})
    body = {
        "task_name": "t", "task_type": "command", "recurrence_type": "daily", "recurrence_config": {"time": "02:00"},
        "device_ids": [1], "command_payload": {"command": "true"},
    }  # fmt: skip
    assert (await operator.post("/api/schedule/tasks", json=body)).status_code == 201
    refused = await api.admin.delete(f"/api/users/{user_id}")
    assert (refused.status_code, "hand-over" in refused.json()["detail"]) == (409, True)
    moved = await api.admin.post(f"/api/users/{user_id}/hand-over", json={"to_user_id": 1})
    assert moved.json() == {"tasks": 1}
    assert (await api.admin.delete(f"/api/users/{user_id}")).status_code == 204


async def test_no_secret_stands_in_the_audit(api: Api) -> None:
    _, operator = await api.user("olga", "operator")
    token = (await operator.post("/api/auth/tokens", json={"name": "ci"})).json()["token"]
    key = (await api.admin.post("/api/activation-keys", json={})).json()["key"]
    text = (await api.admin.get("/api/audit?limit=1000")).text
    assert not any(secret in text for secret in (token, key, PASSWORD))


async def test_a_key_for_one_device_makes_one_device_and_names_stay_unique(api: Api) -> None:
    first, second = await api.device("web"), await api.device("web")
    found = (await api.admin.get("/api/devices")).json()["items"]
    assert {one["id"]: one["name"] for one in found} == {first: "web", second: "web-2"}
    key = (await api.admin.post("/api/activation-keys", json={"max_uses": 1})).json()["key"]
    body = {"activation_key": key, "public_key": "A" * 43 + "=", "name": "x"}
    nobody = api.client(None)
    statuses = [(await nobody.post("/api/agent/enroll", json=body)).status_code for _ in range(3)]
    assert statuses == [201, 401, 401]
