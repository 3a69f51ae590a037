"""Waiting for what gives no signal: another process, or a file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any


async def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    """Ask again and again until it is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def written(file: Path) -> str:
    """The text of a file, once it is there and ends with a line."""
    await until(lambda: file.exists() and file.read_text().endswith("\n"))
    return await asyncio.to_thread(file.read_text)


def lives(pid: int) -> bool:
    """Whether a process runs; one that ended and is not collected yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
