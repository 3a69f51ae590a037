"""The real application over its real database, spoken to in process; and short words for what tests do with it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from deployx.api.app import create_app, gated
from deployx.api.context import Services
from deployx.clock import SystemClock
from deployx.db.database import Database
from deployx.events import Hints
from deployx.installation import ensure
from deployx.people import users
from deployx.settings import Settings

PASSWORD = "correct horse battery"


class Api:
    """The application with a client per user."""

    def __init__(self, application: FastAPI, services: Services, transport: httpx.ASGITransport, token: str) -> None:
        self.application = application
        self.services = services
        self.database = services.database
        self.transport = transport
        self.admin = self.client(token)

    def client(self, token: str | None) -> httpx.AsyncClient:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.AsyncClient(transport=self.transport, base_url="http://test", headers=headers)

    async def sign_in(self, username: str) -> httpx.AsyncClient:
        answer = await self.client(None).post("/api/auth/login", json={"username": username, "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        return self.client(answer.json()["access_token"])

    async def user(self, username: str, role: str) -> tuple[int, httpx.AsyncClient]:
        body = {"username": username, "password": PASSWORD, "role": role}
        made = await self.admin.post("/api/users", json=body)
        assert made.status_code == 201, made.text
        return made.json()["id"], await self.sign_in(username)

    async def group(self, name: str = "servers") -> int:
        made = await self.admin.post("/api/groups", json={"name": name})
        assert made.status_code == 201, made.text
        found: int = made.json()["id"]
        return found

    async def device(self, name: str = "web", group_id: int | None = None) -> int:
        body = {"group_ids": [] if group_id is None else [group_id]}
        key = (await self.admin.post("/api/activation-keys", json=body)).json()["key"]
        public_key = base64.b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
        body_ = {"activation_key": key, "public_key": public_key, "name": name, "facts": {"os": "linux"}}
        made = await self.client(None).post("/api/agent/enroll", json=body_)
        assert made.status_code == 201, made.text
        found: int = made.json()["device_id"]
        return found

    async def task(self, **changes: Any) -> dict[str, Any]:
        made = await self.admin.post("/api/schedule/tasks", json=task_body(**changes))
        assert made.status_code == 201, made.text
        found: dict[str, Any] = made.json()
        return found


def soon(**delta: float) -> str:
    return (datetime.now(UTC) + timedelta(**(delta or {"hours": 1}))).isoformat()


def task_body(**changes: Any) -> dict[str, Any]:
    """A good body for `POST /tasks`, with changes; a change to None takes the field away."""
    body: dict[str, Any] = {
        "task_name": "Clean up",
        "task_type": "command",
        "scheduled_time": soon(hours=1),
        "device_ids": [1],
        "command_payload": {"command": "true"},
    }
    body |= changes
    return {name: value for name, value in body.items() if value is not None}


async def _no_agents(_scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": 1008})


@asynccontextmanager
async def opened_api(database: Database, folder: Path, **settings: Any) -> AsyncIterator[Api]:
    async with database.write() as session:
        now = await database.now(session)
        installation = await ensure(session, folder / "signing.key", now=now)
        await users.ensure_first_administrator(session, PASSWORD, folder, now=now)
    services = Services(Settings(data_dir=folder, **settings), SystemClock(), database, installation, Hints())
    services.blobs.prepare()
    application = create_app(services)
    transport = httpx.ASGITransport(gated(application, services, _no_agents), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/api/auth/login", json={"username": "admin", "password": PASSWORD})
    yield Api(application, services, transport, answer.json()["access_token"])
