"""`deployx demo`: a whole installation on this machine, and a scheduled command that really runs on three agents."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from deployx.cli.server import listen
from deployx.settings import Settings

AGENTS = ("demo-north", "demo-south", "demo-west")
DUE_IN = timedelta(seconds=5)
GIVE_UP_AFTER_SECONDS = 50.0
COMMAND = 'echo "hello from $DEPLOYX_DEVICE_NAME"; uname -sr'
COMMAND_WINDOWS = "echo hello from %DEPLOYX_DEVICE_NAME% & ver"


class DemoFailed(Exception):
    """The sentence says what did not happen."""


def run(*, once: bool, port: int, data_dir: Path | None) -> int:
    """Set everything up, say what happens, and stay until Ctrl-C or, with `once`, until the first execution ended."""
    listen(Settings(port=port)).close()
    folder = data_dir.absolute() if data_dir else Path(tempfile.mkdtemp(prefix="deployx-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _stop_on_signal(), contextlib.ExitStack() as processes:
            return _play(folder, port, processes, once=once)
    except DemoFailed as error:
        print(f"deployx demo: {error} The logs are in {folder}.", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        _say("Stopped.")
        return 0
    finally:
        if data_dir is None:
            shutil.rmtree(folder, ignore_errors=True)


def _play(folder: Path, port: int, processes: contextlib.ExitStack, *, once: bool) -> int:
    password = secrets.token_urlsafe(12)
    url = _start_server(folder, port, password, processes)
    with httpx.Client(base_url=url, timeout=10) as client:
        _sign_in(client, password)
        _say(f"Server: {url}  (SQLite in {folder})")
        group_id = _ensure_group(client)
        device_ids = _start_agents(client, folder, url, group_id, processes)
        _say(f"Agents: {', '.join(AGENTS)} are online, in the group 'demo' (devices {device_ids}).")
        task = _create_task(client, group_id)
        _say(f"Task {task['id']} {task['task_name']!r}: {task['description']}.")
        execution = _followed(client, task["id"])
        _show(client, execution)
        if once:
            return 0 if execution["status"] == "completed" else 1
        _say(f"API docs: {url}/api/docs  Sign in as admin with {password}  (Ctrl-C ends the demo)")
        while True:
            time.sleep(3600)


def _say(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", flush=True)  # noqa: T201 - a command line prints


def _start_server(folder: Path, port: int, password: str, processes: contextlib.ExitStack) -> str:
    """Start `deployx server`; answers its address once it listens."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEPLOYX_")}
    environment |= {"DEPLOYX_ADMIN_PASSWORD": password, "DEPLOYX_CONFIG": os.devnull}
    arguments = ["server", "--port", str(port), "--data-dir", str(folder / "server")]
    log = processes.enter_context((folder / "server.log").open("ab"))
    server = subprocess.Popen(
        [sys.executable, "-m", "deployx", *arguments], stdout=subprocess.PIPE, stderr=log, env=environment, text=True
    )
    processes.callback(_end, [server])
    assert server.stdout is not None
    for line in server.stdout:
        if "listens on" in line:
            return line.rpartition(" ")[2].strip()
    said = (folder / "server.log").read_text(errors="replace").strip().splitlines()
    raise DemoFailed(f"The server did not start: {said[-1] if said else 'it said nothing.'}")


def _end(running: list[subprocess.Popen[Any]]) -> None:
    for process in running:
        process.terminate()
    for process in running:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _sign_in(client: httpx.Client, password: str) -> None:
    answer = client.post("/api/auth/login", json={"username": "admin", "password": password})
    if answer.status_code == 401:
        raise DemoFailed("The data folder belongs to an earlier demo with another password: name another folder.")
    client.headers["Authorization"] = f"Bearer {_good(answer)['access_token']}"
    client.cookies.clear()


def _good(answer: httpx.Response) -> dict[str, Any]:
    if answer.is_error:
        raise DemoFailed(f"{answer.request.method} {answer.request.url.path}: {answer.text}")
    found: dict[str, Any] = answer.json()
    return found


def _ensure_group(client: httpx.Client) -> int:
    name = f"demo {secrets.token_hex(3)}"
    return int(_good(client.post("/api/groups", json={"name": name}))["id"])


def _start_agents(
    client: httpx.Client, folder: Path, url: str, group_id: int, processes: contextlib.ExitStack
) -> list[int]:
    """Enrol and start the agents; answers the devices' ids once all are online."""
    wanted = {"max_uses": len(AGENTS), "group_ids": [group_id]}
    key = _good(client.post("/api/activation-keys", json=wanted))["key"]
    running: list[subprocess.Popen[Any]] = []
    processes.callback(_end, running)
    for name in AGENTS:
        data_dir = str(folder / name)
        command = [sys.executable, "-m", "deployx_agent"]
        log = processes.enter_context((folder / f"{name}.log").open("ab"))
        if not (folder / name / "agent.json").exists():
            enrol = [*command, "enroll", "--server", url, "--name", name, "--data-dir", data_dir]
            done = subprocess.run(
                enrol, env={**os.environ, "DEPLOYX_KEY": key}, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise DemoFailed(f"{name} could not enrol: {done.stderr.strip()}")
        running.append(subprocess.Popen([*command, "run", "--data-dir", data_dir], stderr=log))
    return _online(client, group_id)


def _online(client: httpx.Client, group_id: int) -> list[int]:
    give_up_at = time.monotonic() + 20
    while time.monotonic() < give_up_at:
        found = _good(client.get("/api/devices", params={"status": "online", "group_id": group_id}))
        if found["total"] >= len(AGENTS):
            return sorted(device["id"] for device in found["items"])
        time.sleep(0.1)
    raise DemoFailed("Not all agents came online within 20 seconds.")


def _create_task(client: httpx.Client, group_id: int) -> dict[str, Any]:
    due_at = datetime.now(UTC).replace(microsecond=0) + DUE_IN
    command = COMMAND_WINDOWS if sys.platform == "win32" else COMMAND
    return _good(
        client.post(
            "/api/schedule/tasks",
            json={
                "task_name": "Say hello",
                "task_type": "command",
                "scheduled_time": due_at.isoformat(),
                "group_ids": [group_id],
                "command_payload": {"command": command},
            },
        )
    )


def _followed(client: httpx.Client, task_id: int) -> dict[str, Any]:
    """Wait for the task's first execution, saying what changes; answers it once it has ended."""
    give_up_at, told = time.monotonic() + GIVE_UP_AFTER_SECONDS, ""
    while time.monotonic() < give_up_at:
        items = _good(client.get(f"/api/schedule/tasks/{task_id}/executions"))["items"]
        if items:
            state = f"Execution {items[0]['id']} (planned for {items[0]['planned_for']}) is {items[0]['status']}."
            if state != told:
                told = state
                _say(state)
            if items[0]["completed_time"] is not None:
                found: dict[str, Any] = items[0]
                return found
        time.sleep(0.1)
    raise DemoFailed(f"The task was not done within {GIVE_UP_AFTER_SECONDS:.0f} seconds.")


def _show(client: httpx.Client, execution: dict[str, Any]) -> None:
    if execution["deployment_id"] is None:
        return
    runs = _good(client.get(f"/api/deployments/{execution['deployment_id']}/devices"))["items"]
    for run in sorted(runs, key=lambda one: str(one["device_name"])):
        text = client.get(f"/api/device-runs/{run['id']}/output", headers={"Accept": "text/plain"}).text
        _say(
            f"  {run['device_name']}: {run['status']}, exit code {run['exit_code']}: {' | '.join(text.split(chr(10)))}"
        )


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does, so that its processes end with it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
