"""Contents are fetched whole or not used: resumed, checked, shared, guarded, and stopped at once."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent.tests.file_server import FileServer, file_server
from agent.tests.waiting import until

from deployx_agent import download
from deployx_agent.download import CannotFetch, Downloads, OutOfTime, Wanted
from deployx_agent.source import Source
from deployx_agent.work import FileRef

CONTENT = os.urandom(3_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = FileRef("a.bin", DIGEST, len(CONTENT))
PATH = f"/api/agent/files/{DIGEST}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SHORTEST_DELAY_SECONDS", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as made:
        made.contents[PATH] = CONTENT
        yield made


@pytest.fixture
def downloads(tmp_path: Path, server: FileServer) -> Downloads:
    return Downloads(tmp_path / "downloads", server.url)


async def get(downloads: Downloads, wanted: Wanted, seconds: float = 10) -> bytes:
    async with downloads.held(wanted, stopped=asyncio.Event(), timeout_seconds=seconds) as path:
        return await asyncio.to_thread(path.read_bytes)


async def test_a_file_is_fetched_by_ticket_and_gone_when_nobody_holds_it(
    downloads: Downloads, server: FileServer, tmp_path: Path
) -> None:
    assert await get(downloads, downloads.of_server(FILE, "the-ticket")) == CONTENT
    assert server.asked == [(PATH, None, "Ticket the-ticket")]
    assert list((tmp_path / "downloads").iterdir()) == []


async def test_what_breaks_off_goes_on_where_it_broke(downloads: Downloads, server: FileServer) -> None:
    server.breaks = [1_000_000, 500_000, 0]
    assert await get(downloads, downloads.of_server(FILE, "t")) == CONTENT
    assert [asked[1] for asked in server.asked] == [None, "bytes=1000000-", "bytes=1500000-", "bytes=1500000-"]


async def test_what_an_earlier_agent_had_fetched_is_not_fetched_again(
    downloads: Downloads, server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / f"{DIGEST}.part").write_bytes(CONTENT[:2_999_999])
    assert await get(downloads, downloads.of_server(FILE, "t")) == CONTENT
    assert server.asked[0][1] == "bytes=2999999-"


async def test_another_content_than_ordered_is_never_used(
    downloads: Downloads, server: FileServer, tmp_path: Path
) -> None:
    server.contents[PATH] = CONTENT[:-1] + b"?"
    with pytest.raises(CannotFetch, match="has another SHA-256"):
        await get(downloads, downloads.of_server(FILE, "t"))
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("status", "said"), [(401, "no longer takes this order's ticket"), (404, "not there any more")]
)
async def test_a_refusal_is_final(downloads: Downloads, server: FileServer, status: int, said: str) -> None:
    server.statuses[PATH] = status
    with pytest.raises(CannotFetch, match=said):
        await get(downloads, downloads.of_server(FILE, "t"))
    assert len(server.asked) == 1


async def test_a_server_that_is_away_is_asked_until_the_time_is_over(downloads: Downloads, server: FileServer) -> None:
    server.statuses[PATH] = 503
    asking = asyncio.create_task(get(downloads, downloads.of_server(FILE, "t")))
    await until(lambda: len(server.asked) > 2)
    del server.statuses[PATH]
    assert await asking == CONTENT
    server.statuses[PATH] = 503
    with pytest.raises(OutOfTime, match="could not be fetched in time"):
        await get(downloads, downloads.of_server(FILE, "t"), seconds=0.2)


async def test_two_orders_that_want_one_content_fetch_it_once(downloads: Downloads, server: FileServer) -> None:
    wanted = downloads.of_server(FILE, "t")
    assert await asyncio.gather(*(get(downloads, wanted) for _ in range(5))) == [CONTENT] * 5
    assert len(server.asked) == 1


async def test_a_stop_ends_a_download_at_once(downloads: Downloads, server: FileServer) -> None:
    server.breaks, server.hold, stopped = [1000], threading.Event(), asyncio.Event()
    holding = downloads.held(downloads.of_server(FILE, "t"), stopped=stopped, timeout_seconds=60)
    entering = asyncio.create_task(holding.__aenter__())
    await until(lambda: server.asked)
    began = time.monotonic()
    stopped.set()
    with pytest.raises(CannotFetch, match="Stopped"):
        await entering
    assert time.monotonic() - began < 5
    server.hold.set()


async def test_leftovers_are_removed_when_they_are_old(downloads: Downloads, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name, age in (("old.part", 2 * 86_400), ("young.part", 60)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    downloads.tidy()
    assert [path.name for path in folder.iterdir()] == ["young.part"]


async def test_an_address_may_send_on_but_not_to_what_is_no_web_address(
    downloads: Downloads, server: FileServer
) -> None:
    server.contents["/there"] = CONTENT
    server.redirects = {"/here": "/there", "/odd": "file:///etc/passwd", "/round": "/round"}
    assert await get(downloads, downloads.of_address(f"{server.url}/here", DIGEST)) == CONTENT
    for path, said in (("/odd", "is no http or https address"), ("/round", "sends on more than 10 times")):
        with pytest.raises(CannotFetch, match=said):
            await get(downloads, downloads.of_address(f"{server.url}{path}", DIGEST))


async def test_link_local_addresses_are_not_asked_not_even_by_way_of_another(
    downloads: Downloads, server: FileServer
) -> None:
    server.redirects = {"/sly": "http://169.254.169.254/latest/meta-data"}
    for url in (
        f"{server.url}/sly",
        "http://169.254.169.254/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fe80::1]/",
    ):
        with pytest.raises(CannotFetch, match="is the link-local address"):
            await get(downloads, downloads.of_address(url, DIGEST))


def test_the_servers_own_answers_send_nobody_on(server: FileServer) -> None:
    server.redirects = {"/x": "/y"}
    with Source(f"{server.url}/x").open(0) as answer:
        assert answer.status == 302


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system: needs root")
async def test_a_full_disk_ends_the_download_and_frees_what_it_took(
    downloads: Downloads, server: FileServer, tmp_path: Path
) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    await asyncio.to_thread(_run, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    try:
        with pytest.raises(CannotFetch, match="The disk is full"):
            await get(downloads, downloads.of_server(FILE, "t"))
        assert list(folder.iterdir()) == []
    finally:
        await asyncio.to_thread(_run, "umount", str(folder))


async def test_a_proxy_of_the_environment_is_used(
    downloads: Downloads, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", server.url)
    url = "http://files.example/a.bin"
    server.contents[url] = CONTENT
    assert await get(downloads, downloads.of_address(url, DIGEST)) == CONTENT
    assert server.asked[0][0] == url
