"""The processes of one order on Windows: a job object that holds all that its shell starts. Decides nothing.

A job ends with its last handle (kill on close), so that nothing outlives an agent that dies; where a run ended well,
the limit is lifted before the handle is closed, and what it left in the background lives on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from ctypes import wintypes
from pathlib import Path
from typing import Any

assert sys.platform == "win32"

_CREATE_SUSPENDED = 0x00000004
_PROCESS_ALL_ACCESS = 0x1FFFFF
_BASIC_PROCESS_ID_LIST = 3
_EXTENDED_LIMIT_INFORMATION = 9
_KILL_ON_JOB_CLOSE = 0x2000
_IDS_AT_MOST = 4096

_kernel = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel.CreateJobObjectW.restype = wintypes.HANDLE
_kernel.CreateJobObjectW.argtypes = (wintypes.LPVOID, wintypes.LPCWSTR)
_kernel.OpenProcess.restype = wintypes.HANDLE
_kernel.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
_kernel.AssignProcessToJobObject.argtypes = (wintypes.HANDLE, wintypes.HANDLE)
_kernel.SetInformationJobObject.argtypes = (wintypes.HANDLE, ctypes.c_int, wintypes.LPVOID, wintypes.DWORD)
_kernel.QueryInformationJobObject.argtypes = (
    wintypes.HANDLE, ctypes.c_int, wintypes.LPVOID, wintypes.DWORD, wintypes.LPVOID,
)  # fmt: skip
_kernel.TerminateJobObject.argtypes = (wintypes.HANDLE, wintypes.UINT)
_kernel.TerminateProcess.argtypes = (wintypes.HANDLE, wintypes.UINT)
_kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
_resume = ctypes.WinDLL("ntdll").NtResumeProcess
_resume.argtypes = (wintypes.HANDLE,)


class UnknownUser(Exception):
    """`run_as` cannot be done here; the sentence says why."""


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION."""

    _fields_ = (
        ("process_time", ctypes.c_int64), ("job_time", ctypes.c_int64), ("flags", wintypes.DWORD),
        ("least_working_set", ctypes.c_size_t), ("most_working_set", ctypes.c_size_t), ("processes", wintypes.DWORD),
        ("affinity", ctypes.c_size_t), ("priority", wintypes.DWORD), ("scheduling", wintypes.DWORD),
    )  # fmt: skip


class _ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (
        ("basic", _BasicLimits), ("io", ctypes.c_uint64 * 6),
        *((name, ctypes.c_size_t) for name in ("process_memory", "job_memory", "process_peak", "job_peak")),
    )  # fmt: skip


class _ProcessIds(ctypes.Structure):
    """JOBOBJECT_BASIC_PROCESS_ID_LIST with room for many."""

    _fields_ = (("assigned", wintypes.DWORD), ("listed", wintypes.DWORD), ("ids", ctypes.c_size_t * _IDS_AT_MOST))


def start_options() -> dict[str, Any]:
    """What starts a command suspended, so that nothing runs before it is in its job."""
    return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | _CREATE_SUSPENDED}


def user_options(run_as: str) -> dict[str, Any]:
    raise UnknownUser(
        f"`run_as` ({run_as!r}) names a POSIX user; Windows devices run everything as the agent's own user."
    )


def user_environment(run_as: str) -> Mapping[str, str]:
    raise UnknownUser(f"{run_as!r} cannot be used on Windows.")


def give_file(path: Path, run_as: str) -> None:
    raise UnknownUser(f"{path} cannot be given to {run_as!r} on Windows.")


class Tree:
    """The job of a command that was just started suspended; without a process, the job of a dead agent: empty."""

    def __init__(self, marker: str, pid: int | None = None) -> None:
        self._marker = marker
        self._pid = pid
        self._job = None if pid is None else _new_job(pid)

    def living(self) -> set[int]:
        if self._job is None:
            return set()
        found = _ProcessIds()
        size = ctypes.sizeof(found)
        _kernel.QueryInformationJobObject(self._job, _BASIC_PROCESS_ID_LIST, ctypes.byref(found), size, None)
        return {int(pid) for pid in found.ids[: found.listed]}

    def terminate(self, pids: Iterable[int]) -> None:
        """Ask as Ctrl+Break would; only the console's own processes hear it, the others wait to be killed."""
        if self._pid is not None and self._pid in set(pids):
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.CTRL_BREAK_EVENT)

    def kill(self, pids: Iterable[int], *, shell_too: bool) -> set[int]:
        """Kill the whole job at once, whoever is meant."""
        if self._job is not None:
            _kernel.TerminateJobObject(self._job, 1)
        return set(pids)

    def release(self) -> None:
        """Let go of the job; what was left running lives on."""
        if self._job is not None:
            _limit(self._job, 0)
            _kernel.CloseHandle(self._job)
            self._job = None


def _new_job(pid: int) -> int:
    """Put a suspended process into a new job, then let it run. Raises OSError, and then has ended the process."""
    process = _kernel.OpenProcess(_PROCESS_ALL_ACCESS, False, pid)
    if not process:
        raise ctypes.WinError(ctypes.get_last_error())
    try:
        job: int = _kernel.CreateJobObjectW(None, None)
        _limit(job, _KILL_ON_JOB_CLOSE)
        if not _kernel.AssignProcessToJobObject(job, process):
            error = ctypes.WinError(ctypes.get_last_error())
            _kernel.TerminateProcess(process, 1)
            raise error
        _resume(process)
        return job
    finally:
        _kernel.CloseHandle(process)


def _limit(job: int, flags: int) -> None:
    limits = _ExtendedLimits()
    limits.basic.flags = flags
    _kernel.SetInformationJobObject(job, _EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits))
