"""A real server process and real agent processes, killed and restarted as a test wants."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

PASSWORD = "correct horse battery"
Found = TypeVar("Found")


class Fleet:
    """One server on a database, and agents by name; everything lives in one folder."""

    def __init__(self, folder: Path, database_url: str, certificate: Path | None = None) -> None:
        self._certificate = certificate
        self.folder = folder
        self.database_url = database_url
        self.signing_key: Path | None = None
        self.port = 0
        self._server: subprocess.Popen[str] | None = None
        self._agents: dict[str, subprocess.Popen[Any]] = {}
        trust = ssl.create_default_context(cafile=certificate) if certificate else True
        self.client = httpx.Client(timeout=10, verify=trust)

    def start_server(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DEPLOYX_")}
        environment |= {"DEPLOYX_ADMIN_PASSWORD": PASSWORD, "DEPLOYX_DATABASE_URL": self.database_url}
        environment |= {} if self.signing_key is None else {"DEPLOYX_SIGNING_KEY_FILE": str(self.signing_key)}
        command = [sys.executable, "-m", "deployx", "server", "--port", str(self.port), "--data-dir", "server"]
        if self._certificate:
            command += ["--tls-cert", str(self._certificate), "--tls-key", str(self._certificate.with_suffix(".key"))]
        with (self.folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=environment, cwd=self.folder, text=True
            )
        assert self._server.stdout is not None
        url = next((line.split()[-1] for line in self._server.stdout if "listens on" in line), None)
        assert url is not None, (self.folder / "server.log").read_text()
        self.port = int(url.rpartition(":")[2])
        self.client.base_url = httpx.URL(url)
        if "Authorization" not in self.client.headers:
            login = {"username": "admin", "password": PASSWORD}
            token = self.good(self.client.post("/api/auth/login", json=login))["access_token"]
            self.client.headers["Authorization"] = f"Bearer {token}"

    def kill_server(self) -> None:
        assert self._server is not None
        self._server.kill()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()

    def enroll(self, name: str) -> int:
        key = self.good(self.client.post("/api/activation-keys", json={}))["key"]
        command = [sys.executable, "-m", "deployx_agent", "enroll", "--server", str(self.client.base_url)]
        command += ["--name", name, "--data-dir", name]
        if self._certificate:
            command += ["--ca-file", str(self._certificate)]
        done = subprocess.run(
            command,
            env={**os.environ, "DEPLOYX_KEY": key},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return int(self.good(self.client.get("/api/devices", params={"search": name}))["items"][0]["id"])

    def start_agent(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "deployx_agent", "run", "--data-dir", name]
            self._agents[name] = subprocess.Popen(command, stderr=log, cwd=self.folder)

    def kill_agent(self, name: str) -> None:
        self._agents[name].kill()
        self._agents[name].wait()

    def device(self, name: str) -> int:
        """Enrol, start, and wait until it is online."""
        device_id = self.enroll(name)
        self.start_agent(name)
        self.wait_for(lambda: self.get(f"/api/devices/{device_id}")["status"] == "online")
        return device_id

    def get(self, path: str) -> dict[str, Any]:
        return self.good(self.client.get(path))

    def good(self, answer: httpx.Response) -> dict[str, Any]:
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def run(self, command: str, device_ids: list[int], **more: Any) -> int:
        """Start an ad-hoc deployment; answers its id."""
        payload = {"command": command, "shell": "sh"} | more.pop("payload", {})
        body = {"deployment_type": "command", "command_payload": payload, "device_ids": device_ids} | more
        return int(self.good(self.client.post("/api/deployments", json=body))["id"])

    def only_run(self, deployment_id: int) -> dict[str, Any]:
        (run,) = self.get(f"/api/deployments/{deployment_id}/devices")["items"]
        found: dict[str, Any] = run
        return found

    def ended_run(self, deployment_id: int) -> dict[str, Any]:
        self.wait_for(lambda: self.get(f"/api/deployments/{deployment_id}")["completed_at"] is not None)
        return self.only_run(deployment_id)

    def output(self, run_id: int) -> str:
        return self.client.get(f"/api/device-runs/{run_id}/output", headers={"Accept": "text/plain"}).text

    def wait_for(self, condition: Callable[[], Found], seconds: float = 30) -> Found:
        """Ask until it is so; other processes give no signal to wait on."""
        give_up_at = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                found = condition()
                if found:
                    return found
            assert time.monotonic() < give_up_at, f"it did not come about within {seconds} s"
            time.sleep(0.05)

    def stop(self) -> None:
        running = [*self._agents.values(), *([self._server] if self._server else [])]
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.client.close()


@contextlib.contextmanager
def fleet(folder: Path, database_url: str, certificate: Path | None = None) -> Iterator[Fleet]:
    made = Fleet(folder, database_url, certificate)
    try:
        made.start_server()
        yield made
    finally:
        made.stop()
