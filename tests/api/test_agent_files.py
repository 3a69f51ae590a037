"""What agents fetch: by the ticket of their order, in ranges, and not after they were removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deployx.catalog import tickets
from tests.api.client import Api
from tests.api.test_files import CONTENT, upload


def ticket(api: Api, device_id: int, *digests: str, hours: float = 24, key: Ed25519PrivateKey | None = None) -> str:
    expires_at = datetime.now(UTC) + timedelta(hours=hours)
    return tickets.issue(key or api.services.installation.signing_key, device_id, digests, expires_at)


async def fetch(api: Api, digest: str, given: str | None, method: str = "GET", **headers: str) -> httpx.Response:
    proof = {} if given is None else {"Authorization": f"Ticket {given}"}
    return await api.client(None).request(method, f"/api/agent/files/{digest}", headers=proof | headers)


async def test_a_ticket_fetches_its_content_whole_and_in_ranges(api: Api) -> None:
    device_id, made = await api.device(), await upload(api.admin)
    good = ticket(api, device_id, made["sha256"])
    answer = await fetch(api, made["sha256"], good)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    answer = await fetch(api, made["sha256"], good, Range="bytes=100-")
    assert (answer.status_code, answer.content) == (206, CONTENT[100:])
    assert (await fetch(api, made["sha256"], good, Range="bytes=10240-")).status_code == 416
    head = await fetch(api, made["sha256"], good, "HEAD")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10240")
    assert (await fetch(api, made["sha256"], good, "POST")).status_code in (401, 405)


async def test_without_a_good_ticket_nothing_is_fetched(api: Api) -> None:
    device_id, made, other = await api.device(), await upload(api.admin), await upload(api.admin, content=b"other")
    digest = made["sha256"]
    for given in (
        None,
        "x",
        ticket(api, device_id, digest, hours=-1),
        ticket(api, device_id, other["sha256"]),
        ticket(api, device_id),
        ticket(api, 999, digest),
        ticket(api, device_id, digest, key=Ed25519PrivateKey.generate()),
        ticket(api, device_id, digest)[:-4],
    ):
        answer = await fetch(api, digest, given)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Ticket"), given
        assert (await fetch(api, digest, given, "HEAD")).status_code == 401
    assert (await api.admin.get(f"/api/agent/files/{digest}")).status_code == 401


async def test_a_removed_device_fetches_nothing_more(api: Api) -> None:
    device_id, made = await api.device(), await upload(api.admin)
    good = ticket(api, device_id, made["sha256"])
    assert (await api.admin.delete(f"/api/devices/{device_id}")).status_code == 204
    answer = await fetch(api, made["sha256"], good)
    assert (answer.status_code, "removed" in answer.json()["detail"]) == (401, True)


async def test_a_content_that_no_file_has_any_more_is_404(api: Api) -> None:
    device_id, made = await api.device(), await upload(api.admin)
    good = ticket(api, device_id, made["sha256"])
    assert (await api.admin.delete(f"/api/files/{made['id']}")).status_code == 204
    assert (await fetch(api, made["sha256"], good)).status_code == 404


@pytest.mark.parametrize("digest", ["a", "%2e%2e%2fsigning.key", "A" * 64])
async def test_what_is_no_digest_is_404(api: Api, digest: str) -> None:
    good = ticket(api, await api.device())
    assert (await fetch(api, digest, good)).status_code == 404
