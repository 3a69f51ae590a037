"""The agent's command line: what it answers, where it refuses, and its exit codes."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployx_agent import __version__, config, identity, lock
from deployx_agent.cli import main
from deployx_agent.journal import Journal

ANSWER = {"device_id": 3, "device_name": "web-1", "installation_id": "inst", "server_public_key": "a2V5"}


class Enroller:
    """A server that answers one request for enrolment as it is told."""

    def __init__(self) -> None:
        self.status, self.answer = 201, json.dumps(ANSWER)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        outer = self

        class Answering(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append((self.path, json.loads(body)))
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(outer.answer.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Answering)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def enroller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Enroller]:
    monkeypatch.delenv("DEPLOYX_KEY", raising=False)
    made = Enroller()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_enrolment_sends_the_public_key_and_keeps_what_it_is_given(enroller: Enroller, tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    code = main(["enroll", "--server", enroller.url, "--key", "dxk_1", "--name", "web", "--data-dir", str(folder)])
    assert code == 0
    ((path, asked),) = enroller.asked
    assert (path, asked["activation_key"], asked["name"]) == ("/api/agent/enroll", "dxk_1", "web")
    own = identity.load(folder).public_key().public_bytes_raw()
    assert base64.b64decode(asked["public_key"]) == own
    assert {"os", "arch", "hostname", "shells", "memory_bytes", "cpu_count"} <= set(asked["facts"])
    kept = config.load(folder)
    assert (kept.server, kept.device_id, kept.installation_id) == (enroller.url, 3, "inst")
    assert (folder / "device.key").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_key_may_stand_in_a_file_or_in_the_environment(
    enroller: Enroller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("dxk_file\n")
    enrol = ["enroll", "--server", enroller.url]
    assert main([*enrol, "--data-dir", str(tmp_path / "a"), "--key-file", str(key_file)]) == 0
    monkeypatch.setenv("DEPLOYX_KEY", "dxk_environment")
    assert main([*enrol, "--data-dir", str(tmp_path / "b")]) == 0
    assert [asked["activation_key"] for _, asked in enroller.asked] == ["dxk_file", "dxk_environment"]


@pytest.mark.parametrize(
    ("status", "answer", "code", "words"),
    [
        (401, '{"detail": "The key is used up."}', 3, "refused (401): The key is used up."),
        (403, "{}", 3, "refused (403)"),
        (500, "boom", 1, "refused (500): boom"),
        (200, "<html>", 1, "does not answer as a DeployX server"),
        (200, '{"device_id": "3"}', 1, "device_id is '3', not int"),
    ],
)
def test_a_refused_enrolment_says_why_and_keeps_nothing(
    status: int, answer: str, code: int, words: str, enroller: Enroller, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    enroller.status, enroller.answer = status, answer
    assert main(["enroll", "--server", enroller.url, "--key", "k", "--data-dir", str(tmp_path)]) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "agent.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--server", "http://deployx.example", "--key", "k"], 2, "has no TLS and is not this machine"),
        (["--server", "ftp://127.0.0.1", "--key", "k"], 2, "no http or https URL"),
        (["--server", "http://[", "--key", "k"], 2, "is no URL"),
        (["--server", "http://127.0.0.1:1", "--key", "k"], 4, "could not be reached"),
        (["--server", "http://127.0.0.1:1"], 2, "No activation key"),
        (
            ["--server", "http://127.0.0.1:1", "--key-file", "/nowhere"],
            2,
            "/nowhere cannot be read: No such file",
        ),
        (["--server", "https://127.0.0.1:1", "--key", "k", "--ca-file", "/nowhere"], 2, "'/nowhere' cannot be used"),
        (["--key", "k"], 2, "--server"),
    ],
)
def test_what_is_wrong_with_an_enrolment_is_said_in_one_line(
    arguments: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("DEPLOYX_KEY", raising=False)
    assert main(["enroll", *arguments, "--data-dir", str(tmp_path)], prog="deployx agent") == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "agent.json").exists()


def test_a_folder_that_is_enrolled_is_not_enrolled_again(
    enroller: Enroller, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    enrol = ["enroll", "--server", enroller.url, "--key", "k", "--data-dir", str(tmp_path)]
    assert (main(enrol), main(enrol)) == (0, 1)
    assert "holds an enrolment already" in capsys.readouterr().err


def test_a_key_survives_a_refused_enrolment(enroller: Enroller, tmp_path: Path) -> None:
    enrol = ["enroll", "--server", enroller.url, "--key", "k", "--data-dir", str(tmp_path)]
    enroller.status = 401
    assert main(enrol) == 3
    enroller.status = 201
    assert main(enrol) == 0
    assert enroller.asked[0][1]["public_key"] == enroller.asked[1][1]["public_key"]


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_folder_without_enrolment_is_named(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--data-dir", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"deployx-agent: No enrolment in {tmp_path}: run `enroll` with this data folder first.\n"
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("agent.json", b"{", "agent.json is not readable"),
        ("agent.json", b'{"server": 1}', "server is 1, not str"),
        ("device.key", b"short", "is not an Ed25519 key of 32 bytes"),
        ("device.key", None, "device.key is missing"),
        ("journal.db", b"no database at all" * 100, "The journal in"),
    ],
)
def test_a_damaged_file_is_named_when_the_agent_starts(
    name: str, content: bytes | None, words: str, enroller: Enroller, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    main(["enroll", "--server", enroller.url, "--key", "k", "--data-dir", str(tmp_path)])
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    capsys.readouterr()
    assert main(["run", "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_status_tells_who_this_is_and_what_is_left_to_do(
    enroller: Enroller, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["enroll", "--server", enroller.url, "--key", "k", "--data-dir", str(tmp_path)])
    journal = Journal(tmp_path / "journal.db")
    journal.finish("a", 1, {"status": "cancelled"})
    journal.close()
    handle = lock.take(tmp_path)
    capsys.readouterr()
    assert main(["status", "--json", "--data-dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "device_id": 3, "device_name": "web-1", "server": enroller.url, "running": True,
        "unfinished_orders": 0, "unacknowledged_results": 1, "version": __version__,
    }  # fmt: skip
    os.close(handle)
    assert main(["status", "--data-dir", str(tmp_path)]) == 0
    assert "running: False" in capsys.readouterr().out


def test_version_and_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"deployx-agent {__version__}\n"
    assert main([]) == 2
    assert main(["run", "--stop-timeout", "-1"]) == 2
    assert "'-1' is not a number of seconds" in capsys.readouterr().err
