"""How fast a task reaches a fleet: simulated agents speak the real protocol over real sockets to a real server.

Measured from the due instant: until the last agent has its order, and until the last result is committed. The agents
share one key, so that the benchmark need not enrol thousands. Usage: bench_fanout.py [devices …, default 100 1000 5000]
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.machine import report
from deployx.clock import SystemClock
from deployx.db import migrate
from deployx.db.bulk import insert_rows
from deployx.db.database import Database
from deployx.db.schema import devices, group_members, groups
from deployx_agent import protocol

PASSWORD = "benchmark password"
ROUNDS = 3


class SimulatedAgent:
    """Answers each order at once, as an agent whose command takes no time."""

    def __init__(self, device_id: int, key: Ed25519PrivateKey, received: list[float]) -> None:
        self._device_id = device_id
        self._key = key
        self._received = received

    async def run(self, url: str, ready: asyncio.Semaphore) -> None:
        async with connect(url, compression=None, ping_interval=None, max_size=2**20) as socket:
            await self._greet(socket)
            ready.release()
            async for text in socket:
                message = json.loads(text)
                if message["type"] == "order":
                    self._received.append(time.time())
                    await self._answer(socket, json.loads(message["body"]))

    async def _greet(self, socket: ClientConnection) -> None:
        challenge = json.loads(await socket.recv())
        signed = protocol.session_signing_input(challenge["installation_id"], self._device_id, challenge["nonce"])
        hello = {"type": "hello", "protocol": 1, "device_id": self._device_id, "agent_version": "bench"}
        hello |= {"journal_id": f"j{self._device_id}", "boot_id": None, "facts": {"os": "linux"}, "unfinished": []}
        hello["signature"] = base64.b64encode(self._key.sign(signed)).decode()
        await socket.send(json.dumps(hello))
        assert json.loads(await socket.recv())["type"] == "welcome"

    async def _answer(self, socket: ClientConnection, order: dict[str, Any]) -> None:
        about = {"order_id": order["order_id"], "run_id": order["run_id"]}
        chunk = {"seq": 0, "step": 0, "stream": "stdout", "text": "host\n"}
        step = {"index": 0, "kind": "command", "status": "succeeded", "exit_code": 0, "duration_seconds": 0.001}
        end = {"status": "succeeded", "exit_code": 0, "reason": None, "duration_seconds": 0.001, "steps": [step]}
        for message in (
            {"type": "started"} | about,
            {"type": "output", "chunks": [chunk]} | about,
            {"type": "finished", "last_seq": 0} | about | end,
        ):
            await socket.send(json.dumps(message))


async def prepare(folder: Path, count: int, key: Ed25519PrivateKey) -> None:
    """A database with `count` devices in group 1."""
    now = datetime.now(UTC)
    database = Database(f"sqlite:///{folder / 'deployx.db'}", SystemClock())
    await database.open()
    await migrate.upgrade(database)
    public_key = key.public_key().public_bytes_raw()
    columns = ("id", "name", "public_key", "shells", "facts", "labels", "status", "created_at")
    ids = range(1, count + 1)
    async with database.write() as session:
        await session.execute(insert(groups).values(name="all", description="", created_at=now))
        rows: list[tuple[object, ...]] = [(one, f"d{one}", public_key, [], {}, {}, "offline", now) for one in ids]
        await insert_rows(session, devices, columns, rows)
        await insert_rows(session, group_members, ("group_id", "device_id"), [(1, one) for one in ids])
    await database.close()


def start_server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    environment = {**os.environ, "DEPLOYX_ADMIN_PASSWORD": PASSWORD}
    command = [sys.executable, "-m", "deployx", "server", "--port", "0", "--data-dir", str(folder)]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
    assert server.stdout is not None
    return server, next(line.split()[-1] for line in server.stdout if "listens on" in line)


async def one_round(client: httpx.AsyncClient, count: int, received: list[float]) -> dict[str, float]:
    """Schedule one command for the whole group and wait for its end; seconds from the due instant."""
    received.clear()
    due_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    body = {
        "task_name": "fan-out",
        "task_type": "command",
        "scheduled_time": due_at.isoformat(),
        "group_ids": [1],
        "command_payload": {"command": "hostname"},
    }
    task = (await client.post("/api/schedule/tasks", json=body)).json()
    await asyncio.sleep((due_at - datetime.now(UTC)).total_seconds())
    while True:
        (found, *_) = (await client.get(f"/api/schedule/tasks/{task['id']}")).json()["executions"] or [None]
        if found and found["completed_time"]:
            break
        await asyncio.sleep(0.01)
    seen_at = time.time()  # after the commit, as a caller sees it
    assert found["result"] == {"counts": {"succeeded": count}}, found
    return {"last_start": max(received) - due_at.timestamp(), "last_result": seen_at - due_at.timestamp()}


async def measure(count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="deployx-bench-"))
    key = Ed25519PrivateKey.generate()
    await prepare(folder, count, key)
    server, url = start_server(folder)
    process = psutil.Process(server.pid)
    received: list[float] = []
    ready = asyncio.Semaphore(0)
    address = f"ws{url.removeprefix('http')}/api/agent/connect"
    agents: list[asyncio.Task[None]] = []
    began = time.perf_counter()
    for first in range(1, count + 1, 200):
        ids = range(first, min(first + 200, count + 1))
        agents += [asyncio.create_task(SimulatedAgent(one, key, received).run(address, ready)) for one in ids]
        for _ in ids:
            await ready.acquire()
    connecting = time.perf_counter() - began
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        answer = await client.post("/api/auth/login", json={"username": "admin", "password": PASSWORD})
        client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        client.cookies.clear()
        await asyncio.sleep(2)
        cpu_before = process.cpu_times()
        rounds = [await one_round(client, count, received) for _ in range(ROUNDS)]
        cpu = process.cpu_times()
    middle = sorted(rounds, key=lambda one: one["last_result"])[ROUNDS // 2]
    report(
        "fanout",
        {
            "devices": count,
            "connect_seconds": round(connecting, 2),
            "last_start_seconds": round(middle["last_start"], 3),
            "last_result_seconds": round(middle["last_result"], 3),
            "runs_per_second": round(count / middle["last_result"]),
            "server_cpu_ms_per_run": round(
                1000 * (cpu.user + cpu.system - cpu_before.user - cpu_before.system) / (count * ROUNDS), 2
            ),
            "server_memory_mib": round(process.memory_info().rss / 2**20),
            "rounds": [{name: round(value, 3) for name, value in one.items()} for one in rounds],
        },
    )
    for agent in agents:
        agent.cancel()
    await asyncio.gather(*agents, return_exceptions=True)
    server.terminate()
    server.wait()


if __name__ == "__main__":
    for wanted in [int(one) for one in sys.argv[1:]] or [100, 1_000, 5_000]:
        asyncio.run(measure(wanted))
