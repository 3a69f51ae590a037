"""The software catalogue over HTTP: what fits together, what needs what, who may change it, what is in use."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.api.client import Api, task_body

PACKAGE = {"os": "linux", "kind": "package", "package_name": "tool"}
DIGEST = "ab" * 32
URL = {"url": "https://example.org/tool", "sha256": DIGEST}


def body(name: str = "tool", *installers: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "installers": list(installers) or [PACKAGE]} | more


async def made(client: httpx.AsyncClient, name: str = "tool", *installers: dict[str, Any], **more: Any) -> Any:
    answer = await client.post("/api/software", json=body(name, *installers, **more))
    assert answer.status_code == 201, answer.text
    return answer.json()


def software_task(*software_ids: int, **more: Any) -> dict[str, Any]:
    payload = {"software_ids": list(software_ids)}
    return task_body(task_type="software_deployment", command_payload=None, software_payload=payload, **more)


async def test_an_entry_is_stored_shown_listed_and_audited_with_its_defaults(api: Api) -> None:
    answer = await api.admin.post("/api/software", json=body())
    shown = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/api/software/{shown['id']}")
    nothing = dict.fromkeys(
        ("arch", "file_id", "url", "sha256", "install_command", "uninstall_command", "detect_command")
    )
    expected: dict[str, Any] = {
        "name": "tool", "version": None, "description": "", "depends_on": [],
        "installers": [PACKAGE | nothing | {"success_exit_codes": [0]}],
    }  # fmt: skip
    assert {name: shown[name] for name in expected} == expected
    again = await api.admin.get(f"/api/software/{shown['id']}")
    assert (again.json(), again.headers["etag"]) == (shown, '"1"')
    needing = await made(api.admin, "Needing", depends_on=[shown["id"], shown["id"]])
    assert needing["depends_on"] == [shown["id"]]
    assert (await api.admin.get("/api/software")).json()["items"] == [needing, shown]
    assert (await api.admin.get("/api/software?search=NEED")).json()["items"] == [needing]
    audit = (await api.admin.get("/api/audit", params={"object_type": "software"})).json()["items"]
    assert [one["after"] for one in audit] == [needing, shown]


@pytest.mark.parametrize(
    "installer",
    [
        {"os": "linux", "kind": "deb"} | URL, {"os": "linux", "kind": "rpm", "arch": "x86_64"} | URL,
        {"os": "windows", "kind": "msi", "success_exit_codes": [0, 3010]} | URL,
        {"os": "windows", "kind": "exe", "install_command": "%DEPLOYX_FILE% /S"} | URL,
        {"os": "windows", "kind": "ps1"} | URL, {"os": "macos", "kind": "pkg"} | URL,
        {"os": "linux", "kind": "sh"} | URL, {"os": "macos", "kind": "sh"} | URL,
        {"os": "windows", "kind": "archive", "install_command": "setup"} | URL,
        {"os": "macos", "kind": "package", "package_name": "a+b/c@1.2:x"},
        {"os": "linux", "kind": "deb", "url": "http://[::1]:8000/x", "sha256": "AB" * 32},
    ],
)  # fmt: skip
async def test_an_installer_that_fits_is_accepted(api: Api, installer: dict[str, Any]) -> None:
    shown = (await made(api.admin, "tool", installer))["installers"][0]
    assert shown["sha256"] in (DIGEST, None)


@pytest.mark.parametrize(
    ("installer", "field", "words"),
    [
        ({"os": "windows", "kind": "deb"} | URL, "os", "is for linux"),
        ({"os": "macos", "kind": "rpm"} | URL, "os", "is for linux"),
        ({"os": "linux", "kind": "msi"} | URL, "os", "is for windows"),
        ({"os": "linux", "kind": "pkg"} | URL, "os", "is for macos"),
        ({"os": "windows", "kind": "sh"} | URL, "os", "linux or macos"),
        ({"os": "macos", "kind": "ps1"} | URL, "os", "windows"),
        ({"os": "linux", "kind": "exe", "install_command": "x"} | URL, "os", "windows"),
        ({"os": "windows", "kind": "exe"} | URL, "install_command", "needs an install_command"),
        ({"os": "linux", "kind": "archive"} | URL, "install_command", "needs an install_command"),
        ({"os": "linux", "kind": "deb"}, "file_id", "needs file_id or url"),
        ({"os": "linux", "kind": "package"}, "package_name", "needs package_name"),
        ({"os": "linux", "kind": "deb", "file_id": 1} | URL, "url", "keep one"),
        ({"os": "linux", "kind": "deb", "package_name": "x"}, "package_name", "has no package_name"),
        ({"os": "linux", "kind": "package", "package_name": "x"} | URL, "url", "has no url"),
        ({"os": "linux", "kind": "deb", "url": URL["url"]}, "sha256", "SHA-256"),
        ({"os": "linux", "kind": "deb", "file_id": 1, "sha256": DIGEST}, "url", "SHA-256"),
        ({"os": "linux", "kind": "deb"} | URL | {"sha256": "ab"}, "sha256", "pattern"),
        ({"os": "linux", "kind": "deb"} | URL | {"url": "file:///etc/passwd"}, "url", "https"),
        ({"os": "linux", "kind": "deb"} | URL | {"url": "ftp://example.org/x"}, "url", "https"),
        ({"os": "linux", "kind": "deb"} | URL | {"url": "https://"}, "url", "https"),
        ({"os": "linux", "kind": "deb"} | URL | {"url": "https://u:p@example.org/x"}, "url", "password"),
        ({"os": "linux", "kind": "deb"} | URL | {"url": "https://example.org/a b"}, "url", "https"),
        ({"os": "linux", "kind": "deb"} | URL | {"url": "https://[/x"}, "url", "https"),
        ({"os": "linux", "kind": "deb", "file_id": 99}, "file_id", "There is no file 99"),
        ({"os": "linux", "kind": "package", "package_name": "-rf"}, "package_name", "pattern"),
        ({"os": "linux", "kind": "package", "package_name": "a b"}, "package_name", "pattern"),
        ({"os": "linux", "kind": "package", "package_name": "a\n"}, "package_name", "pattern"),
        ({"os": "solaris", "kind": "package", "package_name": "a"}, "os", "linux"),
        ({"os": "linux", "kind": "snap", "package_name": "a"}, "kind", "deb"),
        (PACKAGE | {"surprise": 1}, "surprise", "no field"),
        (PACKAGE | {"success_exit_codes": []}, "success_exit_codes", "at least 1"),
    ],
)  # fmt: skip
async def test_an_installer_that_does_not_fit_is_refused_at_its_field(
    api: Api, installer: dict[str, Any], field: str, words: str
) -> None:
    answer = await api.admin.post("/api/software", json=body("tool", PACKAGE, installer))
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["errors"]
    assert problem["loc"] == ["body", "installers", 1, field]
    assert words in problem["msg"]


async def test_name_and_version_together_are_unique(api: Api) -> None:
    await made(api.admin)
    first = await made(api.admin, version="1")
    assert (await api.admin.post("/api/software", json=body())).status_code == 409
    answer = await api.admin.post("/api/software", json=body(version="1"))
    assert (answer.status_code, "'tool' in version '1' exists" in answer.json()["detail"]) == (409, True)
    for version in ("1", None):
        other = await made(api.admin, "other", version=version)
        answer = await api.admin.put(f"/api/software/{other['id']}", json={"name": "tool"})
        assert answer.status_code == 409
    assert (await api.admin.put(f"/api/software/{first['id']}", json={"version": "1"})).status_code == 200


async def test_a_change_of_a_part_keeps_the_rest_and_null_is_the_default(api: Api) -> None:
    base = await made(api.admin, "base")
    whole = await made(api.admin, version="1", description="d", depends_on=[base["id"]])
    path = f"/api/software/{whole['id']}"
    changed = await api.admin.put(path, json={"description": "e"})
    assert (changed.json(), changed.headers["etag"]) == (whole | {"description": "e"}, '"2"')
    assert (await api.admin.put(path, json={"name": None, "installers": None})).json() == changed.json()
    changed = await api.admin.put(path, json={"version": None, "description": None, "depends_on": None})
    assert changed.json() == whole | {"version": None, "description": "", "depends_on": []}
    stale = await api.admin.put(path, json={"name": "x"}, headers={"If-Match": '"2"'})
    assert stale.status_code == 412
    assert (await api.admin.put(path, json={"name": "x"}, headers={"If-Match": '"4"'})).status_code == 200
    assert (await api.admin.delete(path, headers={"If-Match": '"4"'})).status_code == 412
    assert (await api.admin.delete(path, headers={"If-Match": '"5"'})).status_code == 204
    assert (await api.admin.get(path)).status_code == 404


async def test_a_circle_of_needs_is_refused_with_the_names_on_its_way(api: Api) -> None:
    first = await made(api.admin, "first")
    second = await made(api.admin, "second", depends_on=[first["id"]])
    third = await made(api.admin, "third", depends_on=[second["id"]])
    path = f"/api/software/{first['id']}"
    for change, shown in (
        ({"depends_on": [third["id"]]}, "first → third → second → first"),
        ({"depends_on": [first["id"]], "name": "new"}, "new → new"),
    ):
        answer = await api.admin.put(path, json=change)
        (problem,) = answer.json()["errors"]
        assert (answer.status_code, problem["loc"]) == (422, ["body", "depends_on"])
        assert shown in problem["msg"]
    answer = await api.admin.put(path, json={"depends_on": [second["id"] + 100]})
    assert answer.json()["errors"][0]["loc"] == ["body", "depends_on", 0]


async def test_what_others_need_or_tasks_use_is_not_deleted(api: Api) -> None:
    await api.device()
    base = await made(api.admin, "base")
    top = await made(api.admin, "top", depends_on=[base["id"]])
    refused = await api.admin.delete(f"/api/software/{base['id']}")
    assert (refused.status_code, f"software 'top' ({top['id']})" in refused.json()["detail"]) == (409, True)
    task = await api.admin.post("/api/schedule/tasks", json=software_task(top["id"], task_name="Weekly"))
    assert task.status_code == 201, task.text
    refused = await api.admin.delete(f"/api/software/{top['id']}")
    assert (refused.status_code, "task 'Weekly'" in refused.json()["detail"]) == (409, True)
    assert (await api.admin.delete(f"/api/schedule/tasks/{task.json()['id']}")).status_code == 204
    for one in (top, base):
        assert (await api.admin.delete(f"/api/software/{one['id']}")).status_code == 204


async def test_changing_what_others_tasks_use_takes_run_on_all_that_they_target(api: Api) -> None:
    group_id = await api.group()
    device_id = await api.device(group_id=group_id)
    user_id, olga = await api.user("olga", "operator")
    base = await made(olga, "base")
    top = await made(olga, "top", depends_on=[base["id"]])
    other = await made(olga, "unused")
    task = await api.admin.post("/api/schedule/tasks", json=software_task(top["id"], device_ids=[device_id]))
    assert task.status_code == 201
    for one, status in ((base, 403), (top, 403), (other, 200)):
        answer = await olga.put(f"/api/software/{one['id']}", json={"description": "changed"})
        assert answer.status_code == status, one["name"]
    for permission, status in (("view", 403), ("run", 200)):
        grant = {"permission": permission}
        await api.admin.put(f"/api/groups/{group_id}/grants/{user_id}", json=grant)
        answer = await olga.put(f"/api/software/{base['id']}", json={"description": permission})
        assert answer.status_code == status


async def test_only_the_maker_and_administrators_change_an_entry(api: Api) -> None:
    entry = await made(api.admin)
    _, olga = await api.user("olga", "operator")
    _, vera = await api.user("vera", "viewer")
    path = f"/api/software/{entry['id']}"
    for client, status in ((olga, 403), (vera, 403)):
        assert (await client.put(path, json={"name": "x"})).status_code == status
        assert (await client.delete(path)).status_code == status
        assert (await client.get(path)).json() == entry
    assert (await vera.post("/api/software", json=body("new"))).status_code == 403
