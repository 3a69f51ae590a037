"""What an order may use of this device: its folders, its downloads, its limits, and how it restarts."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from deployx_agent.download import Downloads
from deployx_agent.facts import boot_id
from deployx_agent.installed import Installed

RESTART_ANSWERS_SECONDS = 60


async def restart() -> str | None:
    """Begin a restart of this device; answers in words why that is not possible."""
    return await asyncio.to_thread(_restart)


@dataclass(frozen=True, slots=True)
class Device:
    """One for all orders of an agent; `work_dir` is for what an order needs while it runs."""

    data_dir: Path
    downloads: Downloads
    installed: Installed
    boot_id: Callable[[], str | None] = boot_id
    restart: Callable[[], Awaitable[str | None]] = restart

    @classmethod
    def at(cls, data_dir: Path, server: str, ca_file: str | None = None) -> Device:
        data_dir = data_dir.absolute()
        downloads = Downloads(data_dir / "downloads", server, ca_file)
        return cls(data_dir, downloads, Installed(data_dir / "installed.json"))

    @property
    def work_dir(self) -> Path:
        return self.data_dir / "work"

    def tidy(self) -> None:
        """Remove what a predecessor left lying about. Blocks."""
        self.downloads.tidy()
        shutil.rmtree(self.work_dir, ignore_errors=True)


def _restart() -> str | None:
    if sys.platform == "win32":
        command = ["shutdown", "/r", "/t", "0"]
    elif sys.platform == "linux" and shutil.which("systemctl"):
        command = ["systemctl", "reboot"]
    else:
        command = ["shutdown", "-r", "now"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=RESTART_ANSWERS_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"The device could not be restarted: {error}."
    if done.returncode == 0:
        return None
    said = (done.stderr or done.stdout).strip()[:500]
    return f"The device could not be restarted: {' '.join(command)} ended with exit code {done.returncode}. {said}"
