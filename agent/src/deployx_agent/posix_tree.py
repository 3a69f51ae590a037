"""The processes of one order on POSIX: how they are started, found again and signalled. Decides nothing.

An order's processes are those of its shell's session, all their descendants, and (Linux) all that carry the order's
marker in their environment. On Linux the shell adopts what is orphaned below it, so that a daemon which forked twice,
left the session and dropped its environment is still found as long as the shell lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

assert sys.platform != "win32"

PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h; kept over execve, not inherited by children (prctl(2))."""


class UnknownUser(Exception):
    """`run_as` cannot be done here; the sentence says why."""


def start_options() -> dict[str, Any]:
    """What starts a command in a session of its own, as the one that adopts its orphans."""
    if sys.platform == "linux":
        return {"start_new_session": True, "preexec_fn": _adopt_orphans}
    else:
        return {"start_new_session": True}


_libc = ctypes.CDLL(None)


def _adopt_orphans() -> None:
    # Runs between fork and exec, where only calls that take no lock are safe; the library is loaded beforehand.
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def user_options(run_as: str) -> dict[str, Any]:
    """What starts a command as another user. Raises UnknownUser."""
    user = _user(run_as)
    if os.geteuid() == user.pw_uid:
        return {}
    if os.geteuid() != 0:
        raise UnknownUser(f"The agent is not root, so it cannot run commands as {run_as!r}.")
    groups = os.getgrouplist(run_as, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": groups}


def user_environment(run_as: str) -> Mapping[str, str]:
    """What a login would set of the environment for this user. Raises UnknownUser."""
    user = _user(run_as)
    return {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name, "SHELL": user.pw_shell}


def give_file(path: Path, run_as: str) -> None:
    """Make a file readable for the user who will need it, and for nobody else."""
    user = _user(run_as)
    if os.geteuid() == 0:
        os.chown(path, user.pw_uid, user.pw_gid)


def _user(run_as: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(run_as)
    except (KeyError, ValueError):
        raise UnknownUser(f"The user {run_as!r} (`run_as`) does not exist on this device.") from None


class Tree:
    """The processes that one order started; what was seen once stays known, wherever it moves."""

    def __init__(self, marker: str, pid: int | None = None) -> None:
        self._marker = marker.encode()
        self._pid = pid
        self._seen: dict[int, int] = {}
        self._strangers: set[tuple[int, int]] = set()

    def living(self) -> set[int]:
        """Those alive now, without zombies; blocks for as long as the system's process list takes to read."""
        table = _process_table()
        table.pop(os.getpid(), None)
        found = {pid for pid, one in table.items() if self._belongs(pid, one)}
        while grown := {pid for pid, one in table.items() if one.parent in found} - found:
            found |= grown
        self._seen |= {pid: table[pid].began for pid in found}
        return found

    def terminate(self, pids: Iterable[int]) -> None:
        _signal(pids, signal.SIGTERM)

    def kill(self, pids: Iterable[int], *, shell_too: bool) -> set[int]:
        """Kill, and answer those that could be signalled. The shell may be spared while it adopts others' orphans."""
        others = {pid for pid in pids if pid != self._pid}
        return _signal(others if others and not shell_too else pids, signal.SIGKILL)

    def release(self) -> None:
        """Nothing is held here; what was left running lives on."""

    def _belongs(self, pid: int, one: _Process) -> bool:
        if self._seen.get(pid) == one.began or (self._pid is not None and self._pid in (pid, one.session)):
            return True
        if (pid, one.began) in self._strangers:
            return False
        if self._marker in _environment(pid):
            return True
        self._strangers.add((pid, one.began))
        return False


def _signal(pids: Iterable[int], number: int) -> set[int]:
    reached = set()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
            reached.add(pid)
    return reached


class _Process:
    """One row of the process table; `began` tells two processes with the same id apart, 0 where it is not known."""

    __slots__ = ("began", "parent", "session")

    def __init__(self, parent: int, session: int, began: int) -> None:
        self.parent = parent
        self.session = session
        self.began = began


def _environment(pid: int) -> list[bytes]:
    try:
        return Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return []


if sys.platform == "linux":

    def _process_table() -> dict[int, _Process]:
        table = {}
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError, IndexError, ValueError):
                # proc(5): the command name stands in brackets and may hold anything, so read after the last one.
                fields = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()
                if fields[0] not in (b"Z", b"X"):
                    table[int(name)] = _Process(int(fields[1]), int(fields[3]), int(fields[19]))
        return table

else:

    def _process_table() -> dict[int, _Process]:
        listing = subprocess.run(["/bin/ps", "-axo", "pid=,ppid=,stat="], capture_output=True, text=True, check=False)
        table = {}
        for line in listing.stdout.splitlines():
            pid, parent, state = line.split(None, 2)
            if not state.startswith("Z"):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    table[int(pid)] = _Process(int(parent), os.getsid(int(pid)), 0)
        return table
