"""Every route and method × every kind of caller: who is let in, and who is told what.

A route of the application that has no row here fails the test. To add a route, add its row: the answers' statuses for
an administrator, an operator with `manage`, an operator without grants, a viewer with `view`, and nobody; and, where
it takes one, a body.
"""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute

from tests.api.client import Api

IN = (200, 201, 202, 204, 400, 409, 422)
"""The caller may do this; what follows depends on the body and the state."""
CALLERS = ("admin", "manager", "stranger", "viewer", "nobody")

OPEN = (IN, IN, IN, IN, IN)
SIGNED_IN = (IN, IN, IN, IN, 401)
ADMIN = (IN, 403, 403, 403, 401)
OPERATOR = (IN, IN, IN, 403, 401)
READ = (IN, IN, 404, IN, 401)
MANAGE = (IN, IN, 404, 403, 401)

MATRIX: dict[tuple[str, str], tuple[object, ...]] = {
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/metrics"): ADMIN,
    ("GET", "/"): ((307,),) * 5,
    ("GET", "/api/docs"): OPEN,
    ("GET", "/api/docs.js"): OPEN,
    ("POST", "/api/auth/login"): (401,) * 5,
    ("GET", "/api/auth/me"): SIGNED_IN,
    ("POST", "/api/auth/password"): SIGNED_IN,
    ("GET", "/api/auth/tokens"): SIGNED_IN,
    ("POST", "/api/auth/tokens"): SIGNED_IN,
    ("DELETE", "/api/auth/tokens/{token_id}"): (404, 404, 404, 404, 401),
    ("GET", "/api/users"): ADMIN,
    ("POST", "/api/users"): ADMIN,
    ("GET", "/api/users/{user_id}"): ADMIN,
    ("PATCH", "/api/users/{user_id}"): ADMIN,
    ("POST", "/api/users/{user_id}/hand-over"): ADMIN,
    ("GET", "/api/audit"): ADMIN,
    ("GET", "/api/groups"): SIGNED_IN,
    ("POST", "/api/groups"): ADMIN,
    ("GET", "/api/groups/{group_id}"): READ,
    ("PUT", "/api/groups/{group_id}"): MANAGE,
    ("PUT", "/api/groups/{group_id}/devices/{device_id}"): MANAGE,
    ("GET", "/api/groups/{group_id}/grants"): MANAGE,
    ("PUT", "/api/groups/{group_id}/grants/{user_id}"): MANAGE,
    ("DELETE", "/api/groups/{group_id}/grants/{user_id}"): MANAGE,
    ("GET", "/api/devices"): SIGNED_IN,
    ("GET", "/api/devices/{device_id}"): READ,
    ("PATCH", "/api/devices/{device_id}"): MANAGE,
    ("GET", "/api/activation-keys"): OPERATOR,
    ("POST", "/api/activation-keys"): (IN, 403, 403, 403, 401),
    ("DELETE", "/api/activation-keys/{key_id}"): (IN, 404, 404, 403, 401),
    ("POST", "/api/agent/enroll"): OPEN,
    ("GET", "/api/schedule/tasks"): SIGNED_IN,
    ("POST", "/api/schedule/tasks"): OPERATOR,
    ("GET", "/api/schedule/tasks/{task_id}"): READ,
    ("PUT", "/api/schedule/tasks/{task_id}"): MANAGE,
    ("POST", "/api/schedule/tasks/{task_id}/pause"): MANAGE,
    ("POST", "/api/schedule/tasks/{task_id}/resume"): MANAGE,
    ("POST", "/api/schedule/tasks/{task_id}/execute"): MANAGE,
    ("GET", "/api/schedule/tasks/{task_id}/executions"): READ,
    ("GET", "/api/schedule/executions/{execution_id}"): READ,
    ("POST", "/api/schedule/executions/{execution_id}/cancel"): MANAGE,
    ("POST", "/api/schedule/executions/{execution_id}/retry"): MANAGE,
    ("GET", "/api/schedule/executions/{execution_id}/results.csv"): READ,
    ("POST", "/api/deployments/{deployment_id}/retry"): MANAGE,
    ("POST", "/api/schedule/tasks/{task_id}/cancel"): MANAGE,
    ("POST", "/api/schedule/tasks/bulk"): OPERATOR,
    ("POST", "/api/schedule/tasks/import"): (422, 422, 422, 403, 401),
    ("POST", "/api/schedule/tasks/{task_id}/duplicate"): (IN, IN, 404, 403, 401),
    ("GET", "/api/schedule/tasks/{task_id}/occurrences"): READ,
    ("POST", "/api/schedule/tasks/{task_id}/occurrences/{instant}/skip"): MANAGE,
    ("POST", "/api/schedule/tasks/{task_id}/occurrences/{instant}/move"): MANAGE,
    ("GET", "/api/schedule/tasks/{task_id}/versions"): READ,
    ("GET", "/api/schedule/tasks/{task_id}/explain"): READ,
    ("GET", "/api/schedule/executions/{execution_id}/explain"): READ,
    ("GET", "/api/schedule/forecast"): SIGNED_IN,
    ("GET", "/api/schedule/windows"): SIGNED_IN,
    ("POST", "/api/schedule/windows"): OPERATOR,
    ("GET", "/api/schedule/windows/{window_id}"): SIGNED_IN,
    ("PUT", "/api/schedule/windows/{window_id}"): (IN, 403, 403, 403, 401),
    ("DELETE", "/api/schedule/windows/{window_id}"): (IN, 403, 403, 403, 401),
    ("GET", "/api/schedule/blackouts"): SIGNED_IN,
    ("POST", "/api/schedule/blackouts"): OPERATOR,
    ("GET", "/api/schedule/blackouts/{blackout_id}"): SIGNED_IN,
    ("PUT", "/api/schedule/blackouts/{blackout_id}"): (IN, 403, 403, 403, 401),
    ("DELETE", "/api/schedule/blackouts/{blackout_id}"): (IN, 403, 403, 403, 401),
    ("GET", "/api/schedule/stats"): SIGNED_IN,
    ("POST", "/api/schedule/preview"): OPERATOR,
    # Uploads take forms, not the JSON that this test sends; whoever may not upload is told so first.
    ("POST", "/api/files"): (415, 415, 415, 403, 401),
    ("GET", "/api/files"): SIGNED_IN,
    ("GET", "/api/files/{file_id}"): (IN, IN, IN, 404, 401),
    ("GET", "/api/files/{file_id}/content"): (IN, IN, IN, 404, 401),
    ("GET", "/api/agent/files/{sha256}"): (401,) * 5,
    ("GET", "/api/software"): SIGNED_IN,
    ("POST", "/api/software"): OPERATOR,
    ("GET", "/api/software/{software_id}"): SIGNED_IN,
    ("PUT", "/api/software/{software_id}"): (IN, 403, 403, 403, 401),
    ("GET", "/api/deployments"): SIGNED_IN,
    ("POST", "/api/deployments"): OPERATOR,
    ("GET", "/api/deployments/{deployment_id}"): READ,
    ("GET", "/api/deployments/{deployment_id}/devices"): READ,
    ("POST", "/api/deployments/{deployment_id}/cancel"): MANAGE,
    ("GET", "/api/device-runs/{run_id}"): READ,
    ("GET", "/api/device-runs/{run_id}/output"): READ,
    # What takes things away comes last, so that the rows before find them.
    ("DELETE", "/api/software/{software_id}"): (IN, 403, 403, 403, 401),
    ("DELETE", "/api/files/{file_id}"): (IN, 403, 403, 403, 401),
    ("DELETE", "/api/schedule/tasks/{task_id}"): (404, IN, 404, 403, 401),
    # The manager may, and with the last group loses sight of the device.
    ("DELETE", "/api/groups/{group_id}/devices/{device_id}"): MANAGE,
    ("DELETE", "/api/devices/{device_id}"): ADMIN,
    ("DELETE", "/api/groups/{group_id}"): ADMIN,
    ("DELETE", "/api/users/{user_id}"): ADMIN,
    ("POST", "/api/auth/logout"): SIGNED_IN,
}


GOOD_PASSWORD = "another long password"
PAYLOAD = {"command": "true"}
WINDOW: dict[str, object] = {"name": "night", "days_of_week": [0], "start": "22:00", "end": "06:00"}
BLACKOUT: dict[str, object] = {"name": "holidays", "dates": ["12-25"]}
SOFTWARE: dict[str, object] = {
    "name": "tool", "installers": [{"os": "linux", "kind": "package", "package_name": "tool"}],
}  # fmt: skip
BODIES: dict[tuple[str, str], dict[str, object]] = {
    ("POST", "/api/auth/login"): {"username": "x", "password": "x"},
    ("POST", "/api/auth/password"): {"current_password": "x", "new_password": GOOD_PASSWORD},
    ("POST", "/api/auth/tokens"): {"name": "t"},
    ("POST", "/api/users"): {"username": "new", "password": GOOD_PASSWORD, "role": "viewer"},
    ("PATCH", "/api/users/{user_id}"): {},
    ("POST", "/api/users/{user_id}/hand-over"): {"to_user_id": 1},
    ("POST", "/api/groups"): {"name": "new"},
    ("PUT", "/api/groups/{group_id}"): {"name": "renamed"},
    ("PUT", "/api/groups/{group_id}/grants/{user_id}"): {"permission": "view"},
    ("PATCH", "/api/devices/{device_id}"): {"labels": {}},
    ("POST", "/api/activation-keys"): {},
    ("POST", "/api/agent/enroll"): {"activation_key": "x", "public_key": "x", "name": "x"},
    ("POST", "/api/schedule/tasks"): {"task_name": "t", "task_type": "command", "command_payload": PAYLOAD},
    ("PUT", "/api/schedule/tasks/{task_id}"): {"labels": {}},
    ("POST", "/api/schedule/preview"): {},
    ("POST", "/api/schedule/tasks/import"): {},
    ("POST", "/api/schedule/tasks/bulk"): {"task_ids": [10**6], "action": "pause"},
    ("POST", "/api/schedule/tasks/{task_id}/occurrences/{instant}/move"): {"to": "2999-01-02T02:00:00Z"},
    ("POST", "/api/schedule/windows"): WINDOW,
    ("PUT", "/api/schedule/windows/{window_id}"): WINDOW,
    ("POST", "/api/schedule/blackouts"): BLACKOUT,
    ("PUT", "/api/schedule/blackouts/{blackout_id}"): BLACKOUT,
    ("POST", "/api/software"): SOFTWARE,
    ("PUT", "/api/software/{software_id}"): {"description": "d"},
    ("POST", "/api/deployments"): {"deployment_type": "command", "command_payload": PAYLOAD, "device_ids": [1]},
}


def _routes(api: Api) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for outer in api.application.routes:
        for route in getattr(outer, "original_router", api.application).routes:
            if isinstance(route, APIRoute):
                found |= {(method, route.path) for method in route.methods or ()}
    return found


async def test_every_route_has_a_row_and_every_row_a_route(api: Api) -> None:
    assert _routes(api) == set(MATRIX)


async def test_every_caller_is_let_in_or_refused_as_the_matrix_says(api: Api) -> None:
    group_id = await api.group()
    device_id = await api.device(group_id=group_id)
    manager_id, manager = await api.user("manager", "operator")
    _, stranger = await api.user("stranger", "operator")
    viewer_id, viewer = await api.user("viewer", "viewer")
    other_id, _ = await api.user("other", "viewer")
    for user_id, permission in ((manager_id, "manage"), (viewer_id, "manage")):  # a viewer's ceiling is view
        grant = {"permission": permission}
        assert (await api.admin.put(f"/api/groups/{group_id}/grants/{user_id}", json=grant)).status_code == 204
    task = await api.task(
        recurrence_type="daily", recurrence_config={"time": "02:00"}, device_ids=[device_id], scheduled_time=None
    )
    started = await api.admin.post(f"/api/schedule/tasks/{task['id']}/execute")
    key = await api.admin.post("/api/activation-keys", json={})
    window = (await api.admin.post("/api/schedule/windows", json=WINDOW | {"name": "w"})).json()
    blackout = (await api.admin.post("/api/schedule/blackouts", json=BLACKOUT | {"name": "b"})).json()
    file = (await api.admin.post("/api/files", files={"file": ("f.txt", b"content")})).json()
    software = (await api.admin.post("/api/software", json=SOFTWARE | {"name": "s"})).json()
    ids = {
        "file_id": file["id"], "sha256": file["sha256"], "software_id": software["id"],
        "group_id": group_id, "device_id": device_id, "user_id": other_id, "task_id": task["id"],
        "key_id": key.json()["id"],
        "execution_id": started.json()["execution_id"], "deployment_id": 1, "run_id": 1, "token_id": 10**6,
        "instant": "2999-01-01T02:00:00Z", "window_id": window["id"], "blackout_id": blackout["id"],
    }  # fmt: skip
    callers = dict(zip(CALLERS, (api.admin, manager, stranger, viewer, api.client(None)), strict=True))
    wrong = []
    for (method, path), expected in MATRIX.items():
        # The administrator last: what it is allowed to take away must be there for the others.
        for name, wanted in reversed(list(zip(CALLERS, expected, strict=True))):
            address = path.format_map(ids)
            for asked in (method, "HEAD") if method == "GET" else (method,):
                answer = await callers[name].request(asked, address, json=BODIES.get((method, path)))
                if answer.status_code not in (wanted if isinstance(wanted, tuple) else (wanted,)):
                    wrong.append((asked, path, name, answer.status_code, wanted))
                if asked == "HEAD":
                    assert answer.content == b""
    assert wrong == [], "\n".join(map(str, wrong))


async def test_an_absent_and_a_foreign_object_answer_with_the_same_body(api: Api) -> None:
    await api.device(group_id=await api.group())
    task = await api.task()
    _, stranger = await api.user("stranger", "operator")
    foreign = await stranger.get(f"/api/schedule/tasks/{task['id']}")
    absent = await stranger.get("/api/schedule/tasks/999")
    assert (foreign.status_code, foreign.content) == (404, absent.content)


@pytest.mark.parametrize("scheme", ["Basic", "Bearer not-a-token", "Bearer"])
async def test_nothing_but_a_known_token_signs_in(api: Api, scheme: str) -> None:
    answer = await api.client(None).get("/api/auth/me", headers={"Authorization": scheme})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")


async def test_a_cookie_changes_something_only_from_this_sites_own_pages(api: Api) -> None:
    token = api.admin.headers["Authorization"].removeprefix("Bearer ")
    browser = api.client(None)
    browser.cookies.set("deployx_session", token)
    assert (await browser.get("/api/auth/me")).status_code == 200
    body = {"name": "g"}
    assert (await browser.post("/api/groups", json=body)).status_code == 403
    assert (await browser.post("/api/groups", json=body, headers={"Origin": "http://evil"})).status_code == 403
    assert (await browser.post("/api/groups", json=body, headers={"Origin": "http://test"})).status_code == 201
