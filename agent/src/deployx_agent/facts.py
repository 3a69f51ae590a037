"""What this device tells of itself: system, version, architecture, shells, memory, disk."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployx_agent import __version__
from deployx_agent.shells import available_shells

SYSTEMS = {"linux": "linux", "win32": "windows", "darwin": "macos"}


def collect(installed: Callable[[], list[dict[str, Any]]] = list) -> dict[str, Any]:
    """The facts; `installed` tells what DeployX installed here."""
    disk = shutil.disk_usage(Path.home().anchor or "/")
    return {
        "os": SYSTEMS.get(sys.platform, sys.platform),
        "os_version": _os_version(),
        "arch": platform.machine(),
        "hostname": platform.node(),
        "shells": available_shells(),
        "memory_bytes": _memory_bytes(),
        "disk_total_bytes": disk.total,
        # In steps of 100 MB, so that ordinary writing does not make a new message every time.
        "disk_free_bytes": disk.free // 100_000_000 * 100_000_000,
        "cpu_count": os.cpu_count(),
        "agent_version": __version__,
        "python_version": platform.python_version(),
        "installed": installed(),
    }


def boot_id() -> str | None:
    """Changes with every start of the system; None where the system has no such id."""
    try:
        return _boot_id() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _os_version() -> str:
    if sys.platform == "linux":
        try:
            return platform.freedesktop_os_release().get("PRETTY_NAME", platform.release())
        except OSError:
            return platform.release()
    else:
        return f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else platform.platform()


if sys.platform == "win32":

    class _MemoryStatus(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = (
            ("length", ctypes.c_ulong), ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "page", "page_free")),
            *((name, ctypes.c_ulonglong) for name in ("virtual", "virtual_free", "extended")),
        )  # fmt: skip

    def _memory_bytes() -> int | None:
        status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
        return status.total if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None

else:

    def _memory_bytes() -> int | None:
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return None


if sys.platform == "win32":
    import winreg

    def _boot_id() -> str:
        """The number of boots that Windows keeps for its prefetcher."""
        place = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
            return str(winreg.QueryValueEx(key, "BootId")[0])

elif sys.platform == "darwin":

    def _boot_id() -> str:
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

else:

    def _boot_id() -> str:
        """proc_sys_kernel(5)."""
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
