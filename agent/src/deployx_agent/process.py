"""Processes of this system: shells, starting a command in a tree of its own, ending whole trees.

The one file that branches on the operating system.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MARKER = "DEPLOYX_ORDER_ID"
"""In the environment of all that an order starts, so that what daemonised away is found again (Linux)."""

KILL_AFTER_SECONDS = 10.0
SHELLS = ("sh", "bash", "zsh", "pwsh", "powershell", "cmd")
WINDOWS = sys.platform == "win32"


class CannotStart(Exception):
    """A command cannot be started; the sentence says why and what to do."""


@dataclass(slots=True)
class Receipt:
    """What ending a tree did, by process id."""

    terminated: list[int] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    survived: list[int] = field(default_factory=list)

    def add(self, other: Receipt) -> None:
        self.terminated += other.terminated
        self.killed += other.killed
        self.survived += other.survived

    def as_message(self) -> dict[str, list[int]]:
        return {"terminated": self.terminated, "killed": self.killed, "survived": self.survived}


def available_shells() -> list[str]:
    return [name for name in SHELLS if shutil.which(name)]


def usual_shell() -> str:
    """What `auto` means here: cmd on Windows; zsh on macOS, bash elsewhere, sh where there is none."""
    if WINDOWS:
        return "cmd"
    preferred = "zsh" if sys.platform == "darwin" else "bash"
    return preferred if shutil.which(preferred) else "sh"


@dataclass(frozen=True, slots=True)
class CommandLine:
    """How to start a command; `script` is a file to delete afterwards."""

    argv: list[str]
    script: Path | None = None


def command_line(shell: str, command: str) -> CommandLine:
    """The argument vector for a command in a shell; several lines become a script file. Raises CannotStart."""
    name = usual_shell() if shell == "auto" else shell
    program = shutil.which(name)
    if program is None:
        has = ", ".join(available_shells()) or "none"
        raise CannotStart(f"This device has no shell {name!r}. It has: {has}.")
    lines = command.strip("\r\n")
    if "\n" not in lines:
        return CommandLine([program, *_inline_arguments(name, lines)])
    script = _write_script(name, lines)
    return CommandLine([program, *_script_arguments(name, script)], script)


def _inline_arguments(shell: str, command: str) -> list[str]:
    match shell:
        case "cmd":
            return ["/d", "/s", "/c", f'"{command}"']
        case "powershell" | "pwsh":
            return ["-NoLogo", "-NoProfile", "-NonInteractive", "-Command", command]
        case _:
            return ["-c", command]


def _script_arguments(shell: str, script: Path) -> list[str]:
    match shell:
        case "cmd":
            return ["/d", "/s", "/c", f'"{script}"']
        case "powershell":
            return ["-NoLogo", "-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-File", str(script)]
        case "pwsh":
            return ["-NoLogo", "-NoProfile", "-NonInteractive", "-File", str(script)]
        case _:
            return [str(script)]


def _write_script(shell: str, lines: str) -> Path:
    suffix = {"cmd": ".cmd", "powershell": ".ps1", "pwsh": ".ps1"}.get(shell, ".sh")
    newline = "\r\n" if shell == "cmd" else "\n"
    text = ("@echo off\r\n" if shell == "cmd" else "") + lines.replace("\r\n", "\n").replace("\n", newline) + newline
    handle, name = tempfile.mkstemp(prefix="deployx-", suffix=suffix)
    with os.fdopen(handle, "wb") as file:
        # Windows PowerShell reads a script as the ANSI code page unless a byte order mark says otherwise.
        file.write(text.encode("utf-8-sig" if shell == "powershell" else "utf-8"))
    os.chmod(name, 0o755)  # run_as: another user may have to read it
    return Path(name)


class Started(asyncio.SubprocessProtocol):
    """A started command: what it prints as it is read, its exit, and the end of its pipes, each on its own.

    asyncio's `Process.wait` waits for the pipes too, which a child left in the background may hold open for ever.
    """

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        self._take = take
        self._open_pipes = {1, 2}
        self.exited = asyncio.Event()
        self.pipes_closed = asyncio.Event()
        self.transport: asyncio.SubprocessTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self.transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._take("stdout" if fd == 1 else "stderr", data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open_pipes.discard(fd)
        if not self._open_pipes:
            self.pipes_closed.set()

    def process_exited(self) -> None:
        self.exited.set()

    @property
    def pid(self) -> int:
        return self.transport.get_pid()

    @property
    def exit_code(self) -> int | None:
        return self.transport.get_returncode()


async def start(
    line: CommandLine,
    take: Callable[[str, bytes], None],
    *,
    environment: Mapping[str, str],
    directory: str | None,
    run_as: str | None,
) -> Started:
    """Start a command with empty input, in a session (POSIX) or job (Windows) of its own; `take` gets its output.

    Raises CannotStart where directory, user or program are not to be had.
    """
    if directory is not None and not await asyncio.to_thread(os.path.isdir, directory):
        raise CannotStart(f"The working directory {directory!r} does not exist on this device.")
    options: dict[str, Any] = _identity(run_as)
    options |= {"creationflags": _NEW_GROUP | _SUSPENDED} if WINDOWS else {"start_new_session": True}
    options |= {"stdin": subprocess.DEVNULL, "env": dict(environment), "cwd": directory}
    loop = asyncio.get_running_loop()
    try:
        if WINDOWS and Path(line.argv[0]).name.lower() == "cmd.exe":
            # cmd reads its own quoting from the raw command line; list quoting would escape it once more.
            text = " ".join([subprocess.list2cmdline(line.argv[:1]), *line.argv[1:]])
            _, started = await loop.subprocess_shell(lambda: Started(take), text, executable=line.argv[0], **options)
        else:
            _, started = await loop.subprocess_exec(lambda: Started(take), *line.argv, **options)
    except OSError as error:
        raise CannotStart(f"{line.argv[0]} could not be started: {error.strerror or error}.") from None
    if WINDOWS:
        _Jobs.adopt(started.pid)
    return started


def _identity(run_as: str | None) -> dict[str, Any]:
    if run_as is None:
        return {}
    if WINDOWS:
        raise CannotStart("`run_as` names a POSIX user; Windows devices run everything as the agent's own user.")
    return _posix_identity(run_as)


def inherited_environment(order_id: str, given: Mapping[str, str]) -> dict[str, str]:
    """The agent's environment, what the order gives, and the marker; `given` wins."""
    return {**os.environ, **given, MARKER: order_id}


def end_tree_now(order_id: str) -> Receipt:
    """Kill what an earlier agent's order left running; for the start of an agent."""
    receipt = Receipt()
    for pid in _tree(None, order_id):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            _kill(pid)
            receipt.killed.append(pid)
    return receipt


async def end_tree(pid: int, order_id: str, *, grace_seconds: float = KILL_AFTER_SECONDS) -> Receipt:
    """Terminate a process and all its descendants, kill what is left after the grace, and tell what became of each.

    Descendants that left the session or were reparented are found by their environment's marker (Linux).
    """
    receipt = Receipt()
    if WINDOWS:
        _Jobs.terminate(pid)
        receipt.killed.append(pid)
        return receipt
    asked = _tree(pid, order_id)
    for one in asked:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGTERM)
    deadline = asyncio.get_running_loop().time() + grace_seconds
    left = asked
    while left and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
        left = _tree(pid, order_id)
    killed: set[int] = set()
    for _ in range(50):  # what forks while it is killed is caught by the next round
        if not left:
            break
        for one in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                _kill(one)
                killed.add(one)
        await asyncio.sleep(0.02)
        left = _tree(pid, order_id)
    receipt.killed = sorted(killed - set(left))
    receipt.survived = sorted(left)
    receipt.terminated = sorted(asked - killed - left)
    return receipt


def _tree(pid: int | None, order_id: str) -> set[int]:
    """The living processes of an order: of the session of `pid`, its descendants, and those that carry the marker."""
    parents, sessions = _process_table()
    found = {one for one, session in sessions.items() if pid is not None and session == pid}
    if pid is not None and pid in parents:
        found.add(pid)
    found |= {one for one in parents if _carries_marker(one, order_id)}
    grown = True
    while grown:
        children = {one for one, parent in parents.items() if parent in found} - found
        found |= children
        grown = bool(children)
    return found - {os.getpid()}


if sys.platform == "win32":
    from ctypes import wintypes

    _NEW_GROUP, _SUSPENDED = subprocess.CREATE_NEW_PROCESS_GROUP, 0x00000004

    def _posix_identity(run_as: str) -> dict[str, Any]:
        raise CannotStart(f"{run_as!r} cannot be used on Windows.")

    def _kill(pid: int) -> None:
        os.kill(pid, signal.SIGTERM)

    def _process_table() -> tuple[dict[int, int], dict[int, int]]:
        return {}, {}

    def _carries_marker(pid: int, order_id: str) -> bool:
        return False

    class _Jobs:
        """Job objects that end with their handle: whatever a command starts ends with its job."""

        _handles: dict[int, int] = {}
        _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        _nt = ctypes.WinDLL("ntdll")

        @classmethod
        def adopt(cls, pid: int) -> None:
            """Put a process that was started suspended into a new job, then let it run."""
            all_access, limits, kill_on_close = 0x1FFFFF, 9, 0x2000
            job = cls._kernel.CreateJobObjectW(None, None)
            information = (ctypes.c_byte * 144)()  # JOBOBJECT_EXTENDED_LIMIT_INFORMATION on 64-bit Windows
            ctypes.c_uint32.from_buffer(information, 16).value = kill_on_close
            cls._kernel.SetInformationJobObject(job, limits, information, len(information))
            process = cls._kernel.OpenProcess(all_access, False, wintypes.DWORD(pid))
            cls._kernel.AssignProcessToJobObject(job, process)
            cls._nt.NtResumeProcess(process)
            cls._kernel.CloseHandle(process)
            cls._handles[pid] = job

        @classmethod
        def terminate(cls, pid: int) -> None:
            job = cls._handles.pop(pid, None)
            if job:
                cls._kernel.TerminateJobObject(job, 1)
                cls._kernel.CloseHandle(job)

else:
    import grp
    import pwd

    _NEW_GROUP = _SUSPENDED = 0

    class _Jobs:
        """Windows only."""

        @classmethod
        def adopt(cls, pid: int) -> None:
            raise RuntimeError(f"process {pid}: job objects exist on Windows only")

        @classmethod
        def terminate(cls, pid: int) -> None:
            raise RuntimeError(f"process {pid}: job objects exist on Windows only")

    def _posix_identity(run_as: str) -> dict[str, Any]:
        try:
            user = pwd.getpwnam(run_as)
        except KeyError:
            raise CannotStart(f"The user {run_as!r} (`run_as`) does not exist on this device.") from None
        if os.geteuid() == user.pw_uid:
            return {}
        if os.geteuid() != 0:
            raise CannotStart(f"The agent is not root, so it cannot run commands as {run_as!r}.")
        groups = [one.gr_gid for one in grp.getgrall() if run_as in one.gr_mem]
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [user.pw_gid, *groups]}

    def _kill(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def _process_table() -> tuple[dict[int, int], dict[int, int]]:
        """Parent and session of each living process; zombies do not count."""
        return _linux_table() if sys.platform == "linux" else _ps_table()

    def _ps_table() -> tuple[dict[int, int], dict[int, int]]:
        listing = subprocess.run(["/bin/ps", "-axo", "pid=,ppid=,stat="], capture_output=True, text=True, check=False)
        parents, sessions = {}, {}
        for line in listing.stdout.splitlines():
            pid, parent, state = line.split(None, 2)
            if not state.startswith("Z"):
                parents[int(pid)] = int(parent)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    sessions[int(pid)] = os.getsid(int(pid))
        return parents, sessions

    def _linux_table() -> tuple[dict[int, int], dict[int, int]]:
        parents, sessions = {}, {}
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            with contextlib.suppress(OSError, IndexError, ValueError):
                # proc(5): the command name stands in brackets and may hold anything, so read after the last one.
                fields = Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    parents[int(name)], sessions[int(name)] = int(fields[1]), int(fields[3])
        return parents, sessions

    def _carries_marker(pid: int, order_id: str) -> bool:
        try:
            return f"{MARKER}={order_id}".encode() in Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
        except OSError:
            return False
