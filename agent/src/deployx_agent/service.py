"""The running agent: puts journal, link and signals together, and ends them in order. Knows no command line."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

from deployx_agent import identity
from deployx_agent.config import Enrolment
from deployx_agent.device import Device
from deployx_agent.journal import Journal
from deployx_agent.link import Link

log = logging.getLogger("deployx_agent")

LAST_WORDS_SECONDS = 3.0
"""How long an ending agent waits for the acknowledgement of its last results; they are kept in any case."""


def run(data_dir: Path, enrolment: Enrolment, *, stop_timeout_seconds: float) -> None:
    """Run until SIGTERM or SIGINT; one log line for each event, on stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("websockets").setLevel(logging.WARNING)
    asyncio.run(_serve(data_dir, enrolment, stop_timeout_seconds))


async def _serve(data_dir: Path, enrolment: Enrolment, stop_timeout_seconds: float) -> None:
    key = identity.load(data_dir)
    journal = Journal(data_dir / "journal.db")
    device = Device.at(data_dir, enrolment.server, enrolment.ca_file)
    link = Link(enrolment, key, journal, device)
    stop = _stop_signal()
    try:
        await link.executor.recover()
        running = asyncio.create_task(link.run())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        log.info("stopping timeout_seconds=%s", stop_timeout_seconds)
        await link.executor.stop(stop_timeout_seconds)
        if running.done():
            running.result()  # it never ends by itself, so this raises what broke it
        await link.drain(LAST_WORDS_SECONDS)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    finally:
        link.executor.close()
        journal.close()


def _stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        if sys.platform == "win32":
            signal.signal(name, lambda *_: loop.call_soon_threadsafe(stop.set))
        else:
            loop.add_signal_handler(name, stop.set)
    return stop
