"""Files over HTTP: uploads as they come, downloads in ranges, who sees what, what is in use."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployx.api.contents import disposition
from deployx.api.definitions import DEFAULTS
from deployx.catalog import files, references
from deployx.db.database import Database
from deployx.work import tasks
from tests.api.client import Api, opened_api, task_body

FORM = {"Content-Type": "multipart/form-data; boundary=b"}
CONTENT = bytes(range(256)) * 40


async def upload(client: httpx.AsyncClient, name: str = "f.txt", content: bytes = CONTENT, **headers: str) -> Any:
    answer = await client.post("/api/files", files={"file": (name, content)}, headers=headers)
    assert answer.status_code == 201, answer.text
    return answer.json()


def part(disposition: str, content: bytes = b"x") -> bytes:
    return b"--b\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


def stored(api: Api) -> list[str]:
    folder = api.services.settings.storage / "blobs"
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# -- uploads ----------------------------------------------------------------------------------------------------


async def test_an_upload_is_shown_listed_found_and_audited(api: Api) -> None:
    answer = await api.admin.post("/api/files", files={"file": ("f.txt", CONTENT)})
    shown = answer.json()
    me = (await api.admin.get("/api/auth/me")).json()["id"]
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/api/files/{shown['id']}")
    assert {name: shown[name] for name in ("filename", "size", "sha256", "uploaded_by")} == {
        "filename": "f.txt", "size": len(CONTENT), "sha256": digest, "uploaded_by": me,
    }  # fmt: skip
    again = await api.admin.get(f"/api/files/{shown['id']}")
    assert (again.json(), again.headers["etag"]) == (shown, answer.headers["etag"])
    await upload(api.admin, "second_100%.conf")
    assert [one["filename"] for one in (await api.admin.get("/api/files")).json()["items"]] == [
        "second_100%.conf", "f.txt",
    ]  # fmt: skip
    for search, found in (("F.T", 1), ("_100%", 1), ("%", 1), ("nothing", 0)):
        assert (await api.admin.get("/api/files", params={"search": search})).json()["total"] == found
    audit = (await api.admin.get("/api/audit", params={"object_type": "file"})).json()["items"]
    assert audit[-1]["after"] == shown


async def test_the_same_content_twice_is_two_files_and_one_blob(api: Api) -> None:
    first, second = await upload(api.admin), await upload(api.admin, "other.txt")
    assert first["id"] != second["id"]
    assert first["sha256"] == second["sha256"]
    assert stored(api) == [f"{first['sha256'][:2]}/{first['sha256']}"]


async def test_an_empty_file_is_a_file(api: Api) -> None:
    made = await upload(api.admin, content=b"")
    assert made["size"] == 0
    answer = await api.admin.get(f"/api/files/{made['id']}/content")
    assert (answer.status_code, answer.content) == (200, b"")
    asked = await api.admin.get(f"/api/files/{made['id']}/content", headers={"Range": "bytes=0-"})
    assert asked.status_code == 416


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "C:\\Windows\\system.ini", "a/b\\c", "ünïcödé ☃.txt", 'quo"te', "a;b=c.txt", "x" * 255, "..",
     "\\\\server\\share\\f", "&lt;", "100%.txt"],
)  # fmt: skip
async def test_a_name_is_kept_as_it_came(api: Api, name: str) -> None:
    made = await upload(api.admin, name)
    assert made["filename"] == name
    answer = await api.admin.get(f"/api/files/{made['id']}/content")
    assert answer.headers["content-disposition"] == disposition(name)
    assert answer.content == CONTENT


def test_a_download_is_named_plainly_for_old_programs_and_truly_for_the_others() -> None:
    assert disposition('a"b\\ü.txt') == "attachment; filename=\"a_b__.txt\"; filename*=UTF-8''a%22b%5C%C3%BC.txt"


async def test_a_name_with_single_backslashes_as_browsers_send_it_is_kept(api: Api) -> None:
    body = part('form-data; name="file"; filename="C:\\data\\f.txt"') + b"--b--\r\n"
    answer = await api.admin.post("/api/files", content=body, headers=FORM)
    assert answer.json()["filename"] == "C:\\data\\f.txt"


GOOD = 'form-data; name="file"; filename="f"'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no part"),
        (b"--b--\r\n", "no part"),
        (b"nonsense", "multipart"),
        (part('form-data; name="other"; filename="f"') + b"--b--\r\n", "'other'"),
        (part('form-data; name="file"') + b"--b--\r\n", "no filename"),
        (part('form-data; name="file"; filename=""') + b"--b--\r\n", "no filename"),
        (part("form-data") + b"--b--\r\n", "a part named ''"),
        (part(GOOD) + part(GOOD) + b"--b--\r\n", "more than one"),
        (part(GOOD) + part('form-data; name="x"') + b"--b--\r\n", "more than one"),
        (part(GOOD), "breaks off"),
        (part(GOOD)[:-2], "breaks off"),
        (part('form-data; name="file"; filename="' + "x" * 256 + '"') + b"--b--\r\n", "256 characters"),
        (part('form-data; name="file"; filename="a%0Ab"') + b"--b--\r\n", "control"),
        (part('form-data; name="file"; filename="a\x01b"') + b"--b--\r\n", "control"),
        (part('form-data; name="file"; filename="a\x85b"') + b"--b--\r\n", "control"),
        (part(GOOD).replace(b'"f"', b'"\xff"') + b"--b--\r\n", "UTF-8"),
        (b"--b\r\n" + b"X: " + b"y" * 10_000 + b"\r\n\r\nz\r\n--b--\r\n", "multipart"),
    ],
)  # fmt: skip
async def test_another_form_is_refused_and_leaves_nothing_behind(api: Api, body: bytes, words: str) -> None:
    answer = await api.admin.post("/api/files", content=body, headers=FORM)
    assert answer.status_code == 422, answer.text
    (problem,) = answer.json()["errors"]
    assert problem["loc"] == ["body", "file"]
    assert words in problem["msg"]
    assert stored(api) == []


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "", "multipart/mixed; boundary=b"])
async def test_another_content_type_is_415(api: Api, kind: str) -> None:
    answer = await api.admin.post("/api/files", content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415
    assert stored(api) == []


async def test_a_form_without_a_boundary_is_refused(api: Api) -> None:
    answer = await api.admin.post("/api/files", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert answer.status_code == 422
    assert "boundary" in answer.json()["errors"][0]["msg"]


async def test_a_form_in_pieces_of_any_size_is_the_same_form(api: Api) -> None:
    content = b"\r\n--b\r\n-" * 50 + b"\r\n--"
    body = part(GOOD.replace('"f"', '"ü.txt"'), content.replace(b"--b\r\n", b"--c\r\n")) + b"--b--\r\n"
    for size in (1, 2, 3, 7, 64, len(body)):

        async def pieces(size: int = size) -> AsyncIterator[bytes]:
            for start in range(0, len(body), size):
                yield body[start : start + size]

        answer = await api.admin.post("/api/files", content=pieces(), headers=FORM)
        assert answer.status_code == 201, answer.text
        assert answer.json()["filename"] == "ü.txt"
        assert answer.json()["sha256"] == hashlib.sha256(content.replace(b"--b\r\n", b"--c\r\n")).hexdigest()


async def test_an_upload_may_be_larger_than_a_json_body_and_that_alone(api: Api) -> None:
    content = os.urandom(3 * 1024 * 1024)
    made = await upload(api.admin, content=content)
    assert (await api.admin.get(f"/api/files/{made['id']}/content")).content == content
    answer = await api.admin.post("/api/groups", json={"name": "x" * 2 * 1024 * 1024})
    assert answer.status_code == 413


@pytest.mark.parametrize("declared", [True, False])
async def test_a_file_over_the_limit_is_413_and_leaves_nothing_behind(
    database: Database, tmp_path: Path, declared: bool
) -> None:
    asked = 0
    async with opened_api(database, tmp_path, max_upload_bytes=3_000_000) as api:
        assert (await upload(api.admin, content=b"x" * 3_000_000))["size"] == 3_000_000
        before = stored(api)

        async def endless() -> AsyncIterator[bytes]:
            nonlocal asked
            yield part(GOOD)[:-3]
            for _ in range(1000):
                asked += 1
                yield b"x" * 100_000

        headers = FORM | ({"Content-Length": "100000000"} if declared else {})
        answer = await api.admin.post("/api/files", files={"file": ("f", b"x" * 3_000_001)})
        assert answer.status_code == 413
        answer = await api.admin.post("/api/files", content=endless(), headers=headers)
        assert answer.status_code == 413
        assert "3000000" in answer.json()["detail"]
        assert stored(api) == before
    assert asked < 60


async def test_an_upload_that_breaks_off_leaves_nothing_behind(api: Api) -> None:
    came: list[dict[str, Any]] = [
        {"type": "http.request", "body": part(GOOD)[:-3], "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return came.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = {**api.admin.headers, **FORM}
    scope = {
        "type": "http", "method": "POST", "path": "/api/files", "query_string": b"", "scheme": "http",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await api.transport.app(scope, receive, send)
    assert (sent[0]["status"], b"broke off" in sent[1]["body"]) == (400, True)
    assert stored(api) == []
    assert (await api.admin.get("/api/files")).json()["total"] == 0


async def test_a_full_disk_answers_507_and_leaves_nothing_behind(
    database: Database, tmp_path: Path, small_disk: Path
) -> None:
    async with opened_api(database, tmp_path, storage_url=small_disk.as_uri()) as api:
        assert api.services.settings.storage == small_disk
        answer = await api.admin.post("/api/files", files={"file": ("f", b"x" * 4 * 1024 * 1024)})
        assert (answer.status_code, answer.headers["content-type"]) == (507, "application/problem+json")
        assert stored(api) == []
        assert (await upload(api.admin, content=b"small"))["size"] == 5


async def test_a_storage_that_is_gone_is_told_by_readyz_and_by_uploads(api: Api) -> None:
    shutil.rmtree(api.services.settings.storage / "blobs")
    answer = await api.client(None).get("/readyz")
    assert (answer.status_code, "storage" in answer.json()["detail"]) == (503, True)
    answer = await api.admin.post("/api/files", files={"file": ("f", b"x")})
    assert (answer.status_code, "storage" in answer.json()["detail"]) == (503, True)


async def test_the_same_upload_under_one_key_is_one_file(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    first, second = [
        await api.admin.post("/api/files", files={"file": ("f", CONTENT)}, headers=headers) for _ in range(2)
    ]
    assert (second.status_code, second.json()) == (201, first.json())
    for name in ("etag", "location", "content-type"):
        assert second.headers[name] == first.headers[name]
    assert (await api.admin.get("/api/files")).json()["total"] == 1
    for other in (("g", CONTENT), ("f", b"another")):
        answer = await api.admin.post("/api/files", files={"file": other}, headers=headers)
        assert answer.status_code == 409
    answer = await api.admin.post("/api/files", files={"file": ("f", b"")}, headers={"Idempotency-Key": "k" * 201})
    assert answer.status_code == 400


async def test_many_uploads_at_once_under_one_key_are_one_file(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    asked = [api.admin.post("/api/files", files={"file": ("f", CONTENT)}, headers=headers) for _ in range(8)]
    answers = await asyncio.gather(*asked)
    assert {one.status_code for one in answers} == {201}
    assert len({one.json()["id"] for one in answers}) == 1
    assert (await api.admin.get("/api/files")).json()["total"] == 1


# -- downloads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-9", 0, 10), ("bytes=10-", 10, 10_240), ("bytes=-5", 10_235, 10_240), ("bytes=0-0", 0, 1),
        ("bytes=10239-99999", 10_239, 10_240), ("bytes=-99999", 0, 10_240), ("BYTES=5-6", 5, 7),
    ],
)  # fmt: skip
async def test_a_range_is_answered_with_that_part(api: Api, asked: str, start: int, end: int) -> None:
    made = await upload(api.admin)
    answer = await api.admin.get(f"/api/files/{made['id']}/content", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/10240"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "asked", ["bytes=9-2", "bytes=-", "lines=1-2", "bytes=a-b", "bytes=0-1,5-6", "bytes=٣-", "0-1"]
)
async def test_a_range_that_is_none_is_passed_over(api: Api, asked: str) -> None:
    made = await upload(api.admin)
    headers = {"Range": asked.encode()}
    answer = await api.admin.get(f"/api/files/{made['id']}/content", headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=99999-99999999999", "bytes=-0"])
async def test_a_range_beyond_the_end_is_416_and_tells_the_size(api: Api, asked: str) -> None:
    made = await upload(api.admin)
    answer = await api.admin.get(f"/api/files/{made['id']}/content", headers={"Range": asked})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10240")
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_range_of_another_content_is_answered_with_the_whole(api: Api) -> None:
    made = await upload(api.admin)
    for given, status in ((f'"{made["sha256"]}"', 206), ('"other"', 200), (f'W/"{made["sha256"]}"', 200)):
        headers = {"Range": "bytes=0-1", "If-Range": given}
        answer = await api.admin.get(f"/api/files/{made['id']}/content", headers=headers)
        assert answer.status_code == status


async def test_a_content_is_never_shown_as_anything_but_bytes(api: Api) -> None:
    made = await upload(api.admin, "page.html", b"<script>alert(1)</script>")
    answer = await api.admin.get(f"/api/files/{made['id']}/content")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["etag"] == f'"{made["sha256"]}"'
    assert answer.headers["accept-ranges"] == "bytes"


async def test_head_answers_as_get_without_the_content(api: Api) -> None:
    made = await upload(api.admin)
    for headers in ({}, {"Range": "bytes=5-9"}, {"Range": "bytes=99999-"}):
        got = await api.admin.get(f"/api/files/{made['id']}/content", headers=headers)
        head = await api.admin.head(f"/api/files/{made['id']}/content", headers=headers)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert {**head.headers, "x-request-id": ""} == {**got.headers, "x-request-id": ""}


# -- who sees what, and what is in use --------------------------------------------------------------------------


async def test_a_viewer_sees_its_own_files_alone_and_uploads_none(api: Api) -> None:
    foreign = await upload(api.admin)
    user_id, _ = await api.user("once", "operator")
    own = await upload(await api.sign_in("once"), "own")
    assert (await api.admin.patch(f"/api/users/{user_id}", json={"role": "viewer"})).status_code == 200
    viewer = await api.sign_in("once")
    assert [one["id"] for one in (await viewer.get("/api/files")).json()["items"]] == [own["id"]]
    assert (await viewer.get(f"/api/files/{own['id']}/content")).content == CONTENT
    absent = await viewer.get("/api/files/999")
    for path in (f"/api/files/{foreign['id']}", f"/api/files/{foreign['id']}/content"):
        answer = await viewer.get(path)
        assert (answer.status_code, answer.content) == (404, absent.content)
    assert (await viewer.post("/api/files", files={"file": ("f", b"")})).status_code == 403
    for file_id in (own["id"], foreign["id"], 999):
        assert (await viewer.delete(f"/api/files/{file_id}")).status_code == 403


async def test_an_operator_sees_all_files_and_deletes_its_own(api: Api) -> None:
    foreign = await upload(api.admin)
    _, operator = await api.user("olga", "operator")
    own = await upload(operator, "own")
    assert (await operator.get("/api/files")).json()["total"] == 2
    assert (await operator.delete(f"/api/files/{foreign['id']}")).status_code == 403
    shown = await operator.get(f"/api/files/{own['id']}")
    stale = await operator.delete(f"/api/files/{own['id']}", headers={"If-Match": '"0"'})
    assert stale.status_code == 412
    gone = await operator.delete(f"/api/files/{own['id']}", headers={"If-Match": shown.headers["etag"]})
    assert gone.status_code == 204
    assert (await operator.get(f"/api/files/{own['id']}/content")).status_code == 404
    assert (await operator.delete(f"/api/files/{own['id']}")).status_code == 404


def file_task(*file_ids: int, **more: Any) -> dict[str, Any]:
    payload = {"file_ids": list(file_ids), "target_path": "/t"}
    return task_body(task_type="file_deployment", command_payload=None, file_payload=payload, **more)


async def test_a_file_that_a_task_uses_stays_until_the_task_lets_go(api: Api) -> None:
    await api.device()
    first, second = await upload(api.admin), await upload(api.admin, "second")
    made = await api.admin.post("/api/schedule/tasks", json=file_task(first["id"], task_name="Configs"))
    assert made.status_code == 201, made.text
    task_id = made.json()["id"]
    refused = await api.admin.delete(f"/api/files/{first['id']}")
    assert (refused.status_code, f"task 'Configs' ({task_id})" in refused.json()["detail"]) == (409, True)
    change = {"file_payload": {"file_ids": [second["id"]], "target_path": "/t"}}
    assert (await api.admin.put(f"/api/schedule/tasks/{task_id}", json=change)).status_code == 200
    assert (await api.admin.delete(f"/api/files/{first['id']}")).status_code == 204
    assert (await api.admin.delete(f"/api/files/{second['id']}")).status_code == 409
    assert (await api.admin.delete(f"/api/schedule/tasks/{task_id}")).status_code == 204
    assert (await api.admin.delete(f"/api/files/{second['id']}")).status_code == 204


async def test_a_file_that_software_or_an_open_deployment_uses_stays(api: Api) -> None:
    await api.device()
    file = await upload(api.admin)
    installer = {"os": "linux", "kind": "deb", "file_id": file["id"]}
    software = (await api.admin.post("/api/software", json={"name": "tool", "installers": [installer]})).json()
    refused = await api.admin.delete(f"/api/files/{file['id']}")
    assert (refused.status_code, "software 'tool'" in refused.json()["detail"]) == (409, True)
    assert (await api.admin.delete(f"/api/software/{software['id']}")).status_code == 204
    body: dict[str, Any] = {"deployment_type": "file_deployment", "device_ids": [1]}
    body |= {"file_payload": {"file_ids": [file["id"]], "target_path": "/t"}, "deployment_name": "Now"}
    started = await api.admin.post("/api/deployments", json=body)
    assert started.status_code == 202, started.text
    refused = await api.admin.delete(f"/api/files/{file['id']}")
    assert (refused.status_code, "deployment 'Now'" in refused.json()["detail"]) == (409, True)
    await api.admin.post(f"/api/deployments/{started.json()['id']}/cancel")
    assert (await api.admin.delete(f"/api/files/{file['id']}")).status_code == 204


async def test_what_an_open_deployment_sends_stays_although_the_catalogue_has_changed(api: Api) -> None:
    device_id = await api.device()
    old, new = await upload(api.admin, "old.deb", b"old"), await upload(api.admin, "new.deb", b"new")
    installer = {"os": "linux", "kind": "deb"}
    body = {"name": "tool", "installers": [installer | {"file_id": old["id"]}]}
    software_id = (await api.admin.post("/api/software", json=body)).json()["id"]
    sent = {"deployment_type": "software_deployment", "device_ids": [device_id], "deployment_name": "Under way"}
    sending = await api.admin.post(
        "/api/deployments", json=sent | {"software_payload": {"software_ids": [software_id]}}
    )
    assert sending.status_code == 202, sending.text
    changed = {"installers": [installer | {"file_id": new["id"]}]}
    assert (await api.admin.put(f"/api/software/{software_id}", json=changed)).status_code == 200
    refused = await api.admin.delete(f"/api/files/{old['id']}")
    assert (refused.status_code, "deployment 'Under way'" in refused.json()["detail"]) == (409, True)
    await api.admin.post(f"/api/deployments/{sending.json()['id']}/cancel")
    assert (await api.admin.delete(f"/api/files/{old['id']}")).status_code == 204


async def test_a_file_that_work_is_about_to_use_is_not_deleted_meanwhile(api: Api) -> None:
    await api.device()
    file = await upload(api.admin)
    payload = {"file_ids": [file["id"]], "target_path": "/t"}
    async with api.database.write() as session:
        assert await references.check(session, "file_deployment", payload) == []
        deletion = asyncio.create_task(api.admin.delete(f"/api/files/{file['id']}"))
        _, waiting = await asyncio.wait({deletion}, timeout=0.5)
        assert waiting == {deletion}
        spec = replace(DEFAULTS, task_name="t", task_type="file_deployment", payload=payload, device_ids=(1,))
        now = await api.database.now(session)
        await tasks.create(session, replace(spec, scheduled_time=now + timedelta(hours=1)), by=1, now=now)
    assert (await deletion).status_code == 409


async def test_a_file_whose_deletion_has_begun_is_no_longer_there_for_new_work(api: Api) -> None:
    await api.device()
    file = await upload(api.admin)
    body = {"deployment_type": "file_deployment", "device_ids": [1]} | {
        "file_payload": {"file_ids": [file["id"]], "target_path": "/t"}
    }
    async with api.database.write() as session:
        await files.remove(session, file["id"])
        creation = asyncio.create_task(api.admin.post("/api/deployments", json=body))
        _, waiting = await asyncio.wait({creation}, timeout=0.5)
        assert waiting == {creation}
    assert (await creation).status_code == 422
