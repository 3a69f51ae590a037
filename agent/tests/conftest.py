"""What the agent's tests share: a server to talk to, and agents inside this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from agent.tests.local_agent import LocalAgent
from agent.tests.ordering_server import OrderingServer

from deployx_agent import link


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[OrderingServer]:
    made = OrderingServer()
    await made.start()
    made.enrolled(tmp_path)
    yield made
    await made.stop()


@pytest.fixture
async def agent(server: OrderingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalAgent]:
    """An agent that is connected, and comes back quickly when it is cut off."""
    monkeypatch.setattr(link, "SHORTEST_DELAY_SECONDS", 0.02)
    async with LocalAgent(tmp_path).running() as running:
        await server.message("hello")
        yield running
