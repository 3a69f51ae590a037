"""What every route has in common: ids, headers, problems, parameters, keys that make a request happen once."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from deployx.clock import SystemClock
from deployx.db import migrate
from deployx.db.database import Database
from deployx.db.schema import idempotency_keys
from tests.api.client import Api, opened_api, task_body
from tests.api.test_matrix import MATRIX
from tests.servers.postgres import PostgresServer


async def test_no_route_takes_a_query_parameter_it_does_not_know(api: Api) -> None:
    await api.device(group_id=await api.group())
    await api.task()
    for method, path in MATRIX:
        address = re.sub(r"\{.*?\}", "1", path) + "?no_such=1"
        answer = await api.admin.request(method, address, json=None if method == "GET" else {})
        assert (method, path, answer.status_code) == (method, path, 422)
        assert ["query", "no_such"] in [one["loc"] for one in answer.json()["errors"]]


@pytest.mark.parametrize(("given", "kept"), [("deploy-7.A_b", True), ("", False), ("a b", False), ("x" * 65, False)])
async def test_a_sane_request_id_is_kept_and_another_is_replaced(api: Api, given: str, kept: bool) -> None:
    answer = await api.admin.get("/healthz", headers={"X-Request-ID": given})
    assert (answer.headers["x-request-id"] == given) is kept
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/api/docs", 200),
        ("GET", "/api/auth/me", 401),
        ("GET", "/no/such/route", 401),
        ("PUT", "/healthz", 405),
    ],
)
async def test_every_answer_carries_its_id_and_the_headers_that_bind_browsers(
    api: Api, method: str, path: str, status: int
) -> None:
    answer = await api.client(None).request(method, path)
    assert answer.status_code == status
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("GET", "/api/users/999", 404),
        ("PUT", "/api/auth/me", 405),
        ("POST", "/api/users", 400),
        ("GET", "/api/users?limit=0", 422),
        ("GET", "/api/users?limit=1001", 422),
        ("GET", "/api/users?cursor=nonsense", 422),
        ("GET", "/api/users?skip=-1", 422),
    ],
)
async def test_every_error_is_a_problem_of_one_sentence(api: Api, method: str, path: str, status: int) -> None:
    answer = await api.admin.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem["status"] == status
    assert {"type", "title", "detail"} <= problem.keys()
    assert problem["detail"].endswith(".")


async def test_the_documentation_is_open_and_asks_no_other_site(api: Api) -> None:
    nobody = api.client(None)
    page = (await nobody.get("/api/docs")).text
    assert "<script>" not in page
    assert "//" not in page.replace("<!doctype", "")
    described = (await nobody.get("/api/openapi.json")).json()
    assert described["openapi"].startswith("3.1")
    assert described["paths"]["/api/auth/login"]["post"]["security"] == []
    assert described["security"] == [{"bearer": []}, {"cookie": []}]
    problems = described["paths"]["/api/users"]["post"]["responses"]["default"]
    assert list(problems["content"]) == ["application/problem+json"]
    undescribed = {path for _, path in MATRIX} - described["paths"].keys()
    assert undescribed == {"/", "/api/docs", "/api/docs.js"}


async def test_a_user_has_an_etag_and_a_stale_one_changes_nothing(api: Api) -> None:
    user_id, _ = await api.user("olga", "operator")
    path = f"/api/users/{user_id}"
    etag = (await api.admin.get(path)).headers["etag"]
    assert (await api.admin.patch(path, json={"role": "viewer"}, headers={"If-Match": etag})).status_code == 200
    for stale in (
        await api.admin.patch(path, json={"role": "admin"}, headers={"If-Match": etag}),
        await api.admin.delete(path, headers={"If-Match": etag}),
    ):
        assert stale.status_code == 412
    assert (await api.admin.get(path)).json()["role"] == "viewer"


async def test_requests_under_one_key_at_once_create_once(api: Api) -> None:
    await api.device()
    body, headers = task_body(), {"Idempotency-Key": "k"}
    answers = await asyncio.gather(
        *(api.admin.post("/api/schedule/tasks", json=body, headers=headers) for _ in range(8))
    )
    assert {one.status_code for one in answers} <= {201, 409}
    assert len({one.content for one in answers if one.status_code == 201}) == 1
    assert (await api.admin.get("/api/schedule/tasks")).json()["total"] == 1


async def test_a_key_belongs_to_its_user_and_to_its_whole_request(api: Api) -> None:
    _, olga = await api.user("olga", "operator")
    headers = {"Idempotency-Key": "k"}
    first = await api.admin.post("/api/auth/tokens", json={"name": "t"}, headers=headers)
    assert (await olga.post("/api/auth/tokens", json={"name": "t"}, headers=headers)).json() != first.json()
    again = await api.admin.post("/api/auth/tokens", json={"name": "t"}, headers=headers)
    assert (again.content, again.headers["location"]) == (first.content, first.headers["location"])
    for path, name in (("/api/auth/tokens", "u"), ("/api/groups", "t"), ("/api/auth/tokens?x=1", "t")):
        answer = await api.admin.post(path, json={"name": name}, headers=headers)
        assert (path, name, answer.status_code) == (path, name, 409)


async def test_a_refused_request_leaves_its_key_free(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    assert (await api.admin.post("/api/groups", json={"name": ""}, headers=headers)).status_code == 422
    assert (await api.admin.post("/api/groups", json={"name": "g"}, headers=headers)).status_code == 201


async def test_a_key_is_free_again_after_a_day(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    assert (await api.admin.post("/api/groups", json={"name": "g"}, headers=headers)).status_code == 201
    async with api.database.write() as session:
        now = await api.database.now(session)
        await session.execute(update(idempotency_keys).values(created_at=now.replace(year=now.year - 1)))
    assert (await api.admin.post("/api/groups", json={"name": "h"}, headers=headers)).status_code == 201


async def test_an_answer_that_is_kept_gives_no_secret_away_in_the_database(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    token = (await api.admin.post("/api/auth/tokens", json={"name": "t"}, headers=headers)).json()["token"]
    async with api.database.read() as session:
        (row,) = await session.execute(select(idempotency_keys))
    assert row.status == 201
    assert token.encode() not in row.body


async def test_a_server_without_its_data_folder_is_not_ready_and_says_so(api: Api, tmp_path: Path) -> None:
    nobody = api.client(None)
    assert (await nobody.get("/readyz")).json()["status"] == "ready"
    elsewhere = f"{tmp_path}-elsewhere"
    os.rename(tmp_path, elsewhere)
    try:
        answer = await nobody.get("/readyz")
    finally:
        os.rename(elsewhere, tmp_path)
    assert (answer.status_code, "data folder" in answer.json()["detail"]) == (503, True)
    assert (await nobody.get("/healthz")).status_code == 200


@pytest.fixture
def database_that_goes_away(postgres: PostgresServer) -> Iterator[tuple[str, str]]:
    url = postgres.create()
    name = url.rpartition("/")[2]
    yield url, name
    postgres.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


async def test_a_server_that_lost_its_database_is_not_ready_and_says_so(
    database_that_goes_away: tuple[str, str], postgres: PostgresServer, tmp_path: Path
) -> None:
    url, name = database_that_goes_away
    database = Database(url, SystemClock())
    await database.open()
    await migrate.upgrade(database)
    async with opened_api(database, tmp_path) as api:
        postgres.execute(f"DROP DATABASE {name} WITH (FORCE)")
        nobody = api.client(None)
        answer = await nobody.get("/readyz")
        assert (answer.status_code, "database" in answer.json()["detail"]) == (503, True)
        login = await nobody.post("/api/auth/login", json={"username": "admin", "password": "x"})
        assert (login.status_code, login.headers["content-type"]) == (503, "application/problem+json")
    await database.close()


async def test_metrics_open_to_their_own_token_which_opens_nothing_else(database: Database, tmp_path: Path) -> None:
    async with opened_api(database, tmp_path, metrics_token="scrape me") as api:
        scraper = api.client("scrape me")
        page = await scraper.get("/metrics")
        assert (page.status_code, page.text.startswith("# HELP")) == (200, True)
        assert (await scraper.get("/api/auth/me")).status_code == 401
        assert (await api.client("something else").get("/metrics")).status_code == 401


async def test_a_list_with_a_cursor_misses_nothing_while_rows_are_added(api: Api) -> None:
    for number in range(4):
        await api.group(f"g{number}")
    page = (await api.admin.get("/api/groups?limit=2")).json()
    await api.group("later")
    following = (await api.admin.get(f"/api/groups?limit=2&cursor={page['next_cursor']}")).json()
    names = [one["name"] for one in page["items"] + following["items"]]
    assert names == ["g3", "g2", "g1", "g0"]
    assert following["next_cursor"] is None


async def test_a_total_beyond_ten_thousand_is_capped_and_says_so(api: Api) -> None:
    async with api.database.write() as session:
        await session.execute(
            text(
                "INSERT INTO audit_events (at, action, object_type)"
                " WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10001)"
                " SELECT (SELECT at FROM audit_events LIMIT 1), 'update', 'task' FROM n"
            )
        )
    found = (await api.admin.get("/api/audit?limit=1")).json()
    assert (found["total"], found["total_capped"]) == (10_000, True)
    few = (await api.admin.get("/api/audit?limit=1&object_type=user")).json()
    assert few["total"] == 1
    assert "total_capped" not in few
