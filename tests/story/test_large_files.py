"""Large files through a real server process: never whole in its memory, and nothing left of what broke off."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.story.fleet import Fleet, fleet

PIECE = hashlib.sha256(b"large").digest() * 32_768  # 1 MiB
PIECES = 200
GROWTH_BYTES = 100 * 1024 * 1024


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Fleet]:
    with fleet(tmp_path, f"sqlite:///{tmp_path / 'server.db'}") as made:
        yield made


class Watched:
    """The most memory that a process had while the block ran."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self.most = self._process.memory_info().rss

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            self.most = max(self.most, self._process.memory_info().rss)

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()


def form() -> Iterator[bytes]:
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
    for _ in range(PIECES):
        yield PIECE
    yield b"\r\n--b--\r\n"


def server_pid(fleet: Fleet) -> int:
    assert fleet._server is not None
    return fleet._server.pid


def incoming(fleet: Fleet) -> list[Path]:
    return list((fleet.folder / "server" / "blobs" / "incoming").iterdir())


def test_a_large_file_goes_up_and_down_without_growing_the_server(running: Fleet) -> None:
    digest = hashlib.sha256()
    with Watched(server_pid(running)) as watched:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        made = running.good(running.client.post("/api/files", content=form(), headers=headers, timeout=120))
        path, received = f"/api/files/{made['id']}/content", 0
        with running.client.stream("GET", path, timeout=120) as answer:
            assert answer.headers["content-length"] == str(PIECES * len(PIECE))
            for piece in answer.iter_bytes():
                digest.update(piece)
                received += len(piece)
    assert (received, digest.hexdigest()) == (PIECES * len(PIECE), made["sha256"])
    assert watched.most - watched.before < GROWTH_BYTES
    half = PIECES * len(PIECE) // 2
    rest = running.client.get(path, headers={"Range": f"bytes={half}-{half + 99}"})
    assert (rest.status_code, rest.content) == (206, PIECE[:100])


def test_head_is_answered_and_the_connection_stays_good(running: Fleet) -> None:
    made = running.good(running.client.post("/api/files", files={"file": ("f", b"content")}))
    for path, length in ((f"/api/files/{made['id']}/content", 7), ("/healthz", 15)):
        head = running.client.head(path)
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(length), b"")
    assert running.client.get(f"/api/files/{made['id']}/content").content == b"content"
    assert "Traceback" not in (running.folder / "server.log").read_text()


def test_a_file_over_the_limit_is_refused_without_growing_the_server(running: Fleet) -> None:
    running.kill_server()
    (running.folder / "deployx.toml").write_text("max_upload_bytes = 1000000\n")
    running.start_server()
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with Watched(server_pid(running)) as watched:
        answer = running.client.post("/api/files", content=form(), headers=headers, timeout=120)
    assert answer.status_code == 413
    assert watched.most - watched.before < GROWTH_BYTES
    assert incoming(running) == []


def test_an_upload_whose_connection_breaks_leaves_nothing_behind(running: Fleet) -> None:
    token = running.client.headers["Authorization"]
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        head = f"POST /api/files HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: 5000000\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        head += '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        connection.sendall(head.encode() + b"x" * 2_000_000)
        running.wait_for(lambda: any(path.stat().st_size > 1_000_000 for path in incoming(running)))
    running.wait_for(lambda: incoming(running) == [])
    assert running.get("/api/files")["total"] == 0
    assert "Traceback" not in (running.folder / "server.log").read_text()


def test_a_download_whose_connection_breaks_harms_nothing(running: Fleet) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    made = running.good(running.client.post("/api/files", content=form(), headers=headers, timeout=120))
    path = f"/api/files/{made['id']}/content"
    process = psutil.Process(server_pid(running))
    other = httpx.Client(base_url=running.client.base_url, headers=running.client.headers)
    with other, other.stream("GET", path) as answer:
        next(answer.iter_bytes())
    blob = made["sha256"]
    running.wait_for(lambda: not any(blob in one.path for one in process.open_files()))
    assert running.client.head(path).status_code == 200
    assert "Traceback" not in (running.folder / "server.log").read_text()
