"""The three types of work: each with exactly its own payload, checked, stored and shown."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from deployx.db.schema import payload_files, payload_software
from tests.api.client import Api, soon, task_body
from tests.api.test_files import upload
from tests.api.test_software import made

TASKS = "/api/schedule/tasks"
FILE = {"file_ids": [1], "target_path": "/t"}


async def stocked(api: Api, files: int = 1, software: int = 1) -> None:
    await api.device(group_id=await api.group())
    for number in range(files):
        await upload(api.admin, f"f{number}", b"content")
    for number in range(software):
        await made(api.admin, f"s{number}")


def of_type(task_type: str, **payloads: Any) -> dict[str, Any]:
    return task_body(task_type=task_type, **({"command_payload": None} | payloads))


REFERENCE: list[dict[str, Any]] = [
    {
        "task_name": "Weekly System Update", "task_type": "software_deployment", "recurrence_type": "weekly",
        "recurrence_config": {"type": "weekly", "days_of_week": [0, 2, 4], "time": "02:00"},
        "device_ids": [1, 2, 3], "group_ids": [1],
        "software_payload": {"software_ids": [5, 8], "deployment_name": "Scheduled Weekly Update"},
    },
    {
        "task_type": "software_deployment", "device_ids": [1],
        "software_payload": {
            "software_ids": [1, 2, 3], "deployment_name": "Monthly Software Update", "custom_software": None,
        },
    },
    {
        "task_type": "file_deployment", "device_ids": [1],
        "file_payload": {
            "file_ids": [10, 11], "target_path": "C:\\Deployment\\Files", "create_path_if_not_exists": True,
            "deployment_name": "Config File Update",
        },
    },
    {
        "task_name": "Weekly Patch Tuesday", "task_type": "software_deployment", "recurrence_type": "weekly",
        "recurrence_config": {"type": "weekly", "days_of_week": [0], "time": "03:00"}, "group_ids": [1, 2],
        "software_payload": {"software_ids": [10, 11, 12], "deployment_name": "Weekly Security Updates"},
    },
    {
        "task_name": "Monthly Config Backup", "task_type": "file_deployment", "recurrence_type": "monthly",
        "recurrence_config": {"type": "monthly", "day_of_month": 1, "time": "00:00"}, "device_ids": [5, 10, 15],
        "file_payload": {
            "file_ids": [20, 21], "target_path": "D:\\Backups\\Config", "create_path_if_not_exists": True,
            "deployment_name": "Monthly Backup",
        },
    },
]  # fmt: skip


async def test_every_documented_request_is_accepted_as_printed(api: Api) -> None:
    for number in range(1, 3):
        await api.group(f"g{number}")
    for number in range(1, 16):
        await api.device(f"d{number}")
    await stocked(api, files=21, software=12)
    for body in REFERENCE:
        answer = await api.admin.post(TASKS, json={"task_name": "t", "scheduled_time": soon()} | body)
        assert answer.status_code == 201, answer.text
        shown = answer.json()
        names = ("command_payload", "software_payload", "file_payload")
        (own,) = [name for name in names if name in body]
        assert [name for name in names if name in shown] == [own]
        assert body[own].items() <= shown[own].items()


async def test_each_type_is_shown_with_its_payload_alone_and_all_defaults(api: Api) -> None:
    await stocked(api)
    shown = (await api.admin.post(TASKS, json=of_type("file_deployment", file_payload=FILE))).json()
    assert shown["file_payload"] == {
        "file_ids": [1], "target_path": "/t", "create_path_if_not_exists": True, "mode": None, "owner": None,
        "overwrite": True, "backup": False, "follow_links": False, "deployment_name": "Clean up",
        "timeout_seconds": 3600,
    }  # fmt: skip
    given = {"custom_software": "curl", "timeout_seconds": 60}
    shown = (await api.admin.post(TASKS, json=of_type("software_deployment", software_payload=given))).json()
    assert shown["software_payload"] == {
        "software_ids": [], "custom_software": "curl", "action": "install", "deployment_name": "Clean up",
        "timeout_seconds": 60,
    }  # fmt: skip
    renamed = await api.admin.put(f"{TASKS}/{shown['id']}", json={"task_name": "Renamed"})
    assert renamed.json()["software_payload"]["deployment_name"] == "Renamed"
    listed = (await api.admin.get(f"{TASKS}?task_type=software_deployment")).json()["items"]
    assert listed == [renamed.json()]


URL = {"name": "x", "url": "https://e.org/x.deb", "sha256": "ab" * 32}


@pytest.mark.parametrize(
    ("field", "payload"),
    [
        ("file_payload", FILE | {"target_path": "\\\\server\\share\\x", "mode": "755", "owner": "u"}),
        ("file_payload", FILE | {"target_path": "c:/x", "mode": "04755", "owner": ":g"}),
        ("file_payload", FILE | {"target_path": "/", "mode": "0640", "owner": "root:app", "file_ids": [1, 1]}),
        ("software_payload", {"software_ids": [1], "action": "uninstall"}),
        ("software_payload", {"custom_software": URL}),
        ("software_payload", {"custom_software": URL | {"url": "http://e.org/a/X.TAR.GZ?q", "install_command": "i"}}),
        ("software_payload", {"custom_software": "lib/x@1:2+b_c.d-e"}),
        (
            "command_payload",
            {"commands": ["a", {"reboot": True}, {"run": "b"}, {"reboot": True, "timeout_seconds": 5}]},
        ),
    ],
)
async def test_a_payload_that_fits_is_accepted(api: Api, field: str, payload: dict[str, Any]) -> None:
    await stocked(api)
    types = {"file_payload": "file_deployment", "software_payload": "software_deployment"}
    body = of_type(types.get(field, "command"), **{field: payload})
    answer = await api.admin.post(TASKS, json=body)
    assert answer.status_code == 201, answer.text
    deployment = {"deployment_type": body["task_type"], "device_ids": [1], field: payload}
    answer = await api.admin.post("/api/deployments", json=deployment)
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize(
    ("field", "payload", "place", "words"),
    [
        ("file_payload", {"target_path": "/t"}, ["file_ids"], "required"),
        ("file_payload", FILE | {"file_ids": []}, ["file_ids"], "at least 1"),
        ("file_payload", FILE | {"file_ids": [9]}, ["file_ids", 0], "File 9 does not exist"),
        ("file_payload", FILE | {"file_ids": [1, 9]}, ["file_ids", 1], "File 9 does not exist"),
        ("file_payload", FILE | {"file_ids": [True]}, ["file_ids", 0], "integer"),
        ("file_payload", FILE | {"target_path": "etc/app"}, ["target_path"], "absolute"),
        ("file_payload", FILE | {"target_path": "C:x"}, ["target_path"], "absolute"),
        ("file_payload", FILE | {"target_path": ""}, ["target_path"], "absolute"),
        ("file_payload", FILE | {"target_path": "/a\0b"}, ["target_path"], "NUL"),
        ("file_payload", FILE | {"target_path": "/" + "x" * 4096}, ["target_path"], "4096"),
        ("file_payload", FILE | {"mode": "0888"}, ["mode"], "pattern"),
        ("file_payload", FILE | {"mode": "64"}, ["mode"], "pattern"),
        ("file_payload", FILE | {"mode": 640}, ["mode"], "string"),
        ("file_payload", FILE | {"owner": "a:b:c"}, ["owner"], "pattern"),
        ("file_payload", FILE | {"owner": ":"}, ["owner"], "pattern"),
        ("file_payload", FILE | {"owner": "-u"}, ["owner"], "pattern"),
        ("file_payload", FILE | {"timeout_seconds": 0}, ["timeout_seconds"], "greater"),
        ("file_payload", FILE | {"surprise": 1}, ["surprise"], "no field"),
        ("software_payload", {}, ["software_ids"], "at least one"),
        ("software_payload", {"software_ids": [], "custom_software": None}, ["software_ids"], "at least one"),
        ("software_payload", {"software_ids": [9]}, ["software_ids", 0], "Software 9 does not exist"),
        ("software_payload", {"custom_software": "-y"}, ["custom_software"], "pattern"),
        ("software_payload", {"custom_software": 5}, ["custom_software"], "name of a package"),
        ("software_payload", {"custom_software": URL | {"url": "https://e.org/x"}}, ["custom_software", "url"], ".deb"),
        ("software_payload", {"custom_software": URL | {"url": "ftp://e.org/x.deb"}}, ["custom_software", "url"],
         "http"),
        ("software_payload", {"custom_software": {"name": "x"} | {"url": URL["url"]}}, ["custom_software", "sha256"],
         "required"),
        ("software_payload", {"custom_software": URL | {"url": "https://e.org/x.exe"}},
         ["custom_software", "install_command"], "needs"),
        ("software_payload", {"custom_software": "x", "action": "remove"}, ["action"], "install"),
        ("command_payload", {"commands": [{"reboot": False}]}, ["commands", 0, "reboot"], "True"),
        ("command_payload", {"commands": [{"reboot": True, "run": "x"}]}, ["commands", 0, "run"], "no field"),
        ("command_payload", {"commands": ["a", {"run": ""}]}, ["commands", 1, "run"], "empty"),
        ("command_payload", {"commands": [5]}, ["commands", 0], "A step is"),
        ("command_payload", {"commands": [""]}, ["commands", 0], "empty"),
    ],
)  # fmt: skip
async def test_a_payload_that_does_not_fit_is_refused_at_its_field(
    api: Api, field: str, payload: dict[str, Any], place: list[str | int], words: str
) -> None:
    await stocked(api)
    types = {"file_payload": "file_deployment", "software_payload": "software_deployment"}
    kind = types.get(field, "command")
    deployment = {"deployment_type": kind, "device_ids": [1], field: payload}
    for path, body in ((TASKS, of_type(kind, **{field: payload})), ("/api/deployments", deployment)):
        answer = await api.admin.post(path, json=body)
        assert answer.status_code == 422, answer.text
        (problem,) = answer.json()["errors"]
        assert problem["loc"] == ["body", field, *place]
        assert words in problem["msg"]


@pytest.mark.parametrize(
    ("kind", "payloads", "field", "words"),
    [
        ("file_deployment", {}, "file_payload", "needs a file_payload"),
        ("software_deployment", {}, "software_payload", "needs a software_payload"),
        ("file_deployment", {"file_payload": FILE, "command_payload": {"command": "x"}}, "command_payload", "has no"),
        ("command", {"command_payload": {"command": "x"}, "file_payload": FILE}, "file_payload", "has no"),
        ("software_deployment", {"file_payload": FILE}, "file_payload", "give software_payload"),
    ],
)
async def test_each_type_takes_exactly_its_own_payload(
    api: Api, kind: str, payloads: dict[str, Any], field: str, words: str
) -> None:
    await stocked(api)
    deployment = {"deployment_type": kind, "device_ids": [1], **payloads}
    for path, body in ((TASKS, of_type(kind, **payloads)), ("/api/deployments", deployment)):
        answer = await api.admin.post(path, json=body)
        assert answer.status_code == 422, answer.text
        (problem,) = answer.json()["errors"]
        assert (problem["loc"], words in problem["msg"]) == (["body", field], True)


async def test_a_change_of_type_brings_the_new_payload(api: Api) -> None:
    await stocked(api)
    task = await api.task()
    path = f"{TASKS}/{task['id']}"
    for change, field in (
        ({"task_type": "file_deployment"}, "file_payload"),
        ({"file_payload": FILE}, "file_payload"),
        ({"task_type": "file_deployment", "command_payload": {"command": "x"}}, "command_payload"),
    ):
        answer = await api.admin.put(path, json=change)
        assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["body", field])
    answer = await api.admin.put(path, json={"task_type": "file_deployment", "file_payload": FILE})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["task_type"], "command_payload" in answer.json()) == ("file_deployment", False)
    assert answer.json()["file_payload"]["target_path"] == "/t"
    back = await api.admin.put(path, json={"task_type": "command", "command_payload": {"command": "x"}})
    assert back.json()["command_payload"]["command"] == "x"
    versions = (await api.admin.get(f"{path}/versions")).json()
    assert versions["total"] == 3


async def test_a_preview_takes_any_type_with_or_without_its_payload(api: Api) -> None:
    await stocked(api)
    bodies: list[dict[str, Any]] = [
        {"task_type": "file_deployment"}, {"task_type": "file_deployment", "file_payload": FILE},
        {"task_type": "software_deployment"}, {"file_payload": FILE}, {},
    ]  # fmt: skip
    for body in bodies:
        answer = await api.admin.post("/api/schedule/preview", json=body | {"scheduled_time": soon()})
        assert answer.status_code == 200, answer.text
    wrong: list[tuple[dict[str, Any], list[str | int]]] = [
        ({"task_type": "command", "file_payload": FILE}, ["file_payload"]),
        ({"command_payload": {"command": "x"}, "file_payload": FILE}, ["file_payload"]),
        ({"file_payload": FILE | {"file_ids": [9]}}, ["file_payload", "file_ids", 0]),
    ]
    for body, place in wrong:
        answer = await api.admin.post("/api/schedule/preview", json=body | {"scheduled_time": soon()})
        assert (answer.status_code, answer.json()["errors"][0]["loc"]) == (422, ["body", *place])


async def test_what_a_payload_names_is_written_down_with_it(api: Api) -> None:
    await stocked(api, files=2, software=2)
    task = await api.admin.post(TASKS, json=of_type("file_deployment", file_payload=FILE))
    change = {"file_payload": FILE | {"file_ids": [2, 1]}}
    assert (await api.admin.put(f"{TASKS}/{task.json()['id']}", json=change)).status_code == 200
    body = {"deployment_type": "software_deployment", "device_ids": [1], "software_payload": {"software_ids": [2, 1]}}
    assert (await api.admin.post("/api/deployments", json=body)).status_code == 202
    copy = await api.admin.post(f"{TASKS}/{task.json()['id']}/duplicate")
    assert copy.status_code == 201, copy.text
    async with api.database.read() as session:
        rows = await session.execute(
            select(payload_files).order_by(payload_files.c.payload_id, payload_files.c.file_id)
        )
        assert [tuple(row) for row in rows] == [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2)]
        rows = await session.execute(select(payload_software).order_by(payload_software.c.software_id))
        assert [tuple(row) for row in rows] == [(3, 1), (3, 2)]


async def test_an_import_names_the_line_whose_file_does_not_exist(api: Api) -> None:
    await stocked(api)
    lines = [of_type("file_deployment", file_payload=FILE | {"file_ids": [one]}) for one in (1, 1, 9)]
    client = api.admin
    text = "\n".join(client.build_request("POST", TASKS, json=one).content.decode() for one in lines)
    headers = {"Content-Type": "application/x-ndjson"}
    answer = await client.post(f"{TASKS}/import", content=text, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["body", 3, "file_payload", "file_ids", 0]


async def test_a_deployment_is_named_by_its_body_else_its_payload_else_its_type(api: Api) -> None:
    await stocked(api)
    body = {"deployment_type": "file_deployment", "device_ids": [1]}
    for more, name in (
        ({"deployment_name": "A", "file_payload": FILE | {"deployment_name": "B"}}, "A"),
        ({"file_payload": FILE | {"deployment_name": "B"}}, "B"),
        ({"file_payload": FILE}, "Files"),
    ):
        answer = await api.admin.post("/api/deployments", json=body | more)
        assert (answer.status_code, answer.json()["deployment_name"]) == (202, name)
        assert answer.json()["deployment_type"] == "file_deployment"
