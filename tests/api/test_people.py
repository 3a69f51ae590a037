"""Signing in, revocation, users and tokens."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from deployx.db.schema import access_tokens
from deployx.people import users
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


async def _wrong_login(api: Api, username: str = "admin") -> int:
    body = {"username": username, "password": "wrong password"}
    return (await api.client(None).post("/api/auth/login", json=body)).status_code


async def test_attempts_made_all_at_once_get_no_more_than_ten(api: Api) -> None:
    statuses = await asyncio.gather(*(_wrong_login(api) for _ in range(25)))
    assert sorted(statuses) == [401] * 10 + [429] * 15


async def test_right_passwords_are_not_counted_and_other_accounts_not_held_back(api: Api) -> None:
    for _ in range(12):
        await api.sign_in("admin")
    for _ in range(10):
        assert await _wrong_login(api, "no-such-user") == 401
    assert await _wrong_login(api, "no-such-user") == 429
    await api.sign_in("admin")


async def test_guessing_the_current_password_with_a_stolen_session_is_held_back(api: Api) -> None:
    guess = {"current_password": "a guess", "new_password": "a new long password"}
    statuses = [(await api.admin.post("/api/auth/password", json=guess)).status_code for _ in range(11)]
    assert statuses == [422] * 10 + [429]


async def test_a_password_set_by_an_administrator_ends_the_users_sessions_and_keeps_api_tokens(api: Api) -> None:
    user_id, session = await api.user("olga", "operator")
    token = api.client((await session.post("/api/auth/tokens", json={"name": "ci"})).json()["token"])
    changed = await api.admin.patch(f"/api/users/{user_id}", json={"password": "a new long password"})
    assert changed.status_code == 200
    assert [(await one.get("/api/auth/me")).status_code for one in (session, token)] == [401, 200]
    own = await api.admin.patch("/api/users/1", json={"password": "a new long password"})
    assert (own.status_code, (await api.admin.get("/api/auth/me")).status_code) == (200, 200)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/auth/password", {"current_password": PASSWORD, "new_password": "a new long password"}),
        ("PATCH", "/api/users/1", {"username": "root", "password": "a new long password"}),
    ],
)
async def test_the_first_password_is_kept_until_the_first_administrators_is_changed(
    api: Api, tmp_path: Path, method: str, path: str, body: dict[str, str]
) -> None:
    (tmp_path / users.INITIAL_PASSWORD_FILE).write_text("made up\n")
    user_id, _ = await api.user("olga", "viewer")
    other = await api.admin.patch(f"/api/users/{user_id}", json={"password": "a new long password"})
    assert other.status_code == 200
    await api.admin.patch("/api/users/1", json={"username": "anna"})
    assert (tmp_path / users.INITIAL_PASSWORD_FILE).exists()
    assert (await api.admin.request(method, path, json=body)).is_success
    assert not (tmp_path / users.INITIAL_PASSWORD_FILE).exists()


async def test_a_demotion_takes_effect_on_the_next_request(api: Api) -> None:
    user_id, admin = await api.user("anna", "admin")
    assert (await admin.get("/api/users")).status_code == 200
    await api.admin.patch(f"/api/users/{user_id}", json={"role": "viewer"})
    assert (await admin.get("/api/users")).status_code == 403


async def test_a_name_is_given_once_though_asked_for_at_once(api: Api) -> None:
    body = {"username": "olga", "password": PASSWORD, "role": "viewer"}
    answers = await asyncio.gather(*(api.admin.post("/api/users", json=body) for _ in range(4)))
    assert sorted(one.status_code for one in answers) == [201, 409, 409, 409]
    other_id, _ = await api.user("anna", "viewer")
    renamed = await api.admin.patch(f"/api/users/{other_id}", json={"username": "olga"})
    assert (renamed.status_code, "olga" in renamed.json()["detail"]) == (409, True)


async def test_no_sign_in_outlives_a_deactivation_that_races_it(api: Api) -> None:
    user_id, _ = await api.user("olga", "operator")
    body = {"username": "olga", "password": PASSWORD}
    for _ in range(4):
        signed_in, _closed = await asyncio.gather(
            api.client(None).post("/api/auth/login", json=body),
            api.admin.patch(f"/api/users/{user_id}", json={"is_active": False}),
        )
        await api.admin.patch(f"/api/users/{user_id}", json={"is_active": True})
        token = signed_in.json().get("access_token", "none")
        assert (await api.client(token).get("/api/auth/me")).status_code == 401


async def test_the_use_of_an_api_token_is_noted_once_a_minute(api: Api) -> None:
    made = (await api.admin.post("/api/auth/tokens", json={"name": "ci"})).json()
    assert made["last_used_at"] is None
    token = api.client(made["token"])

    async def noted() -> str | None:
        (found,) = (await api.admin.get("/api/auth/tokens")).json()["items"]
        last: str | None = found["last_used_at"]
        return last

    assert await noted() is None
    await token.get("/api/auth/me")
    first = await noted()
    assert first is not None
    await token.get("/api/auth/me")
    assert await noted() == first
    async with api.database.write() as session:
        long_ago = await api.database.now(session) - timedelta(seconds=61)
        await session.execute(
            update(access_tokens).where(access_tokens.c.id == made["id"]).values(last_used_at=long_ago)
        )
    await token.get("/api/auth/me")
    later = await noted()
    assert later is not None
    assert later > first


async def test_an_ended_session_or_token_signs_nobody_in(api: Api) -> None:
    soon_over = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    made = (await api.admin.post("/api/auth/tokens", json={"name": "ci", "expires_at": soon_over})).json()
    session_, token = await api.sign_in("admin"), api.client(made["token"])
    assert [(await one.get("/api/auth/me")).status_code for one in (session_, token)] == [200, 200]
    async with api.database.write() as session:
        now = await api.database.now(session)
        await session.execute(update(access_tokens).values(expires_at=now))
    assert [(await one.get("/api/auth/me")).status_code for one in (session_, token)] == [401, 401]
    passed = {"name": "late", "expires_at": "2020-01-01T00:00:00Z"}
    fresh = await api.sign_in("admin")
    assert (await fresh.post("/api/auth/tokens", json=passed)).status_code == 422


async def test_nobody_sees_or_revokes_another_users_token(api: Api) -> None:
    _, olga = await api.user("olga", "operator")
    made = (await olga.post("/api/auth/tokens", json={"name": "ci"})).json()
    assert (await api.admin.get("/api/auth/tokens")).json()["total"] == 0
    assert (await api.admin.delete(f"/api/auth/tokens/{made['id']}")).status_code == 404
    assert (await olga.delete(f"/api/auth/tokens/{made['id']}")).status_code == 204
    assert (await api.client(made["token"]).get("/api/auth/me")).status_code == 401


async def test_me_shows_the_user_and_its_grants(api: Api) -> None:
    user_id, olga = await api.user("olga", "operator")
    group_id = await api.group()
    await api.admin.put(f"/api/groups/{group_id}/grants/{user_id}", json={"permission": "run"})
    assert (await olga.get("/api/auth/me")).json() == {
        "id": user_id,
        "username": "olga",
        "role": "operator",
        "is_active": True,
        "grants": [{"group_id": group_id, "group_name": "servers", "permission": "run"}],
    }


async def test_the_audit_tells_sign_ins_and_changes_with_before_and_after(api: Api) -> None:
    user_id, olga = await api.user("olga", "operator")
    await _wrong_login(api, "olga")
    await api.admin.patch(f"/api/users/{user_id}", json={"role": "viewer"})
    await olga.post("/api/auth/logout")
    of_user = (await api.admin.get(f"/api/audit?object_type=user&object_id={user_id}")).json()["items"]
    assert [one["action"] for one in of_user] == ["logout", "update", "login", "create"]
    assert (of_user[1]["before"]["role"], of_user[1]["after"]["role"]) == ("operator", "viewer")
    assert all(one["request_id"] and one["at"].endswith("Z") for one in of_user)
    own = (await api.admin.get(f"/api/audit?user_id={user_id}")).json()["items"]
    assert [one["action"] for one in own] == ["logout", "login"]
    failed = [one for one in (await api.admin.get("/api/audit")).json()["items"] if one["action"] == "login_failed"]
    assert [(one["user_id"], one["after"]) for one in failed] == [(None, {"username": "olga"})]
