"""A whole agent inside the test's process, on a folder that is enrolled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from deployx_agent import identity
from deployx_agent.config import load
from deployx_agent.device import Device
from deployx_agent.journal import Journal
from deployx_agent.link import Link


class LocalAgent:
    """Runs as long as its block; what still runs then is ended."""

    def __init__(self, data_dir: Path, journal: Journal | None = None) -> None:
        self.journal = journal or Journal(data_dir / "journal.db")
        enrolment = load(data_dir)
        device = Device.at(data_dir, enrolment.server)
        self.link = Link(enrolment, identity.load(data_dir), self.journal, device)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LocalAgent]:
        await self.link.executor.recover()
        task = asyncio.create_task(self.link.run())
        try:
            yield self
        finally:
            await self.link.executor.stop(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self.link.executor.close()
            self.journal.close()
