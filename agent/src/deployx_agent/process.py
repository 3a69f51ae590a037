"""Processes of this system: starts a command in a tree of its own, and ends whole trees.

The one file that chooses between the operating systems; `posix_tree` and `windows_tree` know the details of each.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deployx_agent.shells import CannotStart, CommandLine, command_line

if sys.platform == "win32":
    from deployx_agent import windows_tree as system
else:
    from deployx_agent import posix_tree as system

MARKER = "DEPLOYX_ORDER_ID"
"""In the environment of all that an order starts, so that what daemonised away is found again (Linux)."""

KEPT_BACK = ("DEPLOYX_KEY",)
"""The agent's own secrets, which no command needs."""

KILL_AFTER_SECONDS = 10.0
KILL_ROUNDS = 50
SHELL_LAST_ROUNDS = 5
_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.02, 0.2


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


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a command runs in: `given` variables come on top of the agent's own."""

    order_id: str
    given: Mapping[str, str]
    directory: str | None
    run_as: str | None


class Started(asyncio.SubprocessProtocol):
    """A started command: what it prints as it is read, its exit, and the end of its pipes, each on its own.

    asyncio's `Process.wait` waits for the pipes too, which a child left in the background may hold open for ever.
    """

    def __init__(self, take: Callable[[str, bytes], None]) -> None:
        self._take = take
        self._open_pipes = {1, 2}
        self.exited = asyncio.Event()
        self.pipes_closed = asyncio.Event()
        self.tree: system.Tree
        self.line: CommandLine
        self._transport: asyncio.SubprocessTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

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
        return self._transport.get_pid()

    @property
    def exit_code(self) -> int | None:
        return self._transport.get_returncode()

    def let_go(self) -> None:
        """Close the pipes, which a child left behind may still hold open, and whatever holds the tree together."""
        self._transport.close()
        self.tree.release()
        self.line.discard()


async def start(shell: str, command: str, around: Surroundings, take: Callable[[str, bytes], None]) -> Started:
    """Start a command with empty input, in a session (POSIX) or job (Windows) of its own; `take` gets its output.

    Raises CannotStart where shell, directory, user or program are not to be had.
    """
    return await _start(lambda give: command_line(shell, command, give_to=give), around, take)


async def start_program(argv: Sequence[str], around: Surroundings, take: Callable[[str, bytes], None]) -> Started:
    """Start a program without a shell, else as `start` does. Raises CannotStart."""
    return await _start(lambda give: CommandLine(list(argv)), around, take)


async def _start(
    line_for: Callable[[Callable[[Path], None]], CommandLine], around: Surroundings, take: Callable[[str, bytes], None]
) -> Started:
    directory = around.directory
    if directory is not None and not await asyncio.to_thread(os.path.isdir, directory):
        raise CannotStart(f"The working directory {directory!r} does not exist on this device.")
    line: CommandLine | None = None
    try:
        options = system.start_options() | {"stdin": subprocess.DEVNULL, "cwd": directory, "env": _environment(around)}
        if around.run_as is not None:
            options |= system.user_options(around.run_as)
        line = line_for(lambda script: _give(script, around.run_as))
        started = await _spawn(line, take, options)
        started.line, line = line, None
        started.tree = system.Tree(_marker(around.order_id), started.pid)
        return started
    except system.UnknownUser as error:
        raise CannotStart(str(error)) from None
    except (OSError, ValueError) as error:
        raise CannotStart(f"The command could not be started: {getattr(error, 'strerror', None) or error}.") from None
    finally:
        if line is not None:
            line.discard()


async def _spawn(line: CommandLine, take: Callable[[str, bytes], None], options: dict[str, Any]) -> Started:
    loop = asyncio.get_running_loop()
    if Path(line.argv[0]).name.lower() == "cmd.exe":
        # cmd reads its own quoting from the raw command line; list quoting would escape it once more.
        text = " ".join([subprocess.list2cmdline(line.argv[:1]), *line.argv[1:]])
        _, started = await loop.subprocess_shell(lambda: Started(take), text, executable=line.argv[0], **options)
    else:
        _, started = await loop.subprocess_exec(lambda: Started(take), *line.argv, **options)
    return started


def _environment(around: Surroundings) -> dict[str, str]:
    """The agent's environment, the user's, what the order gives (which wins), and the marker."""
    own = {name: value for name, value in os.environ.items() if name not in KEPT_BACK}
    login = system.user_environment(around.run_as) if around.run_as is not None else {}
    return {**own, **login, **around.given, MARKER: around.order_id}


def _give(script: Path, run_as: str | None) -> None:
    if run_as is not None:
        system.give_file(script, run_as)


def _marker(order_id: str) -> str:
    return f"{MARKER}={order_id}"


def end_what_is_left(order_id: str) -> Receipt:
    """Kill what a dead agent's order left running; blocks, for the start of an agent."""
    tree = system.Tree(_marker(order_id))
    killed: set[int] = set()
    seen = living = tree.living()
    for _ in range(KILL_ROUNDS):
        if not living:
            break
        killed |= tree.kill(living, shell_too=True)
        time.sleep(_FIRST_LOOK_SECONDS)
        living = tree.living()
        seen = seen | living
    return _receipt(seen, killed, living)


async def end_tree(tree: system.Tree, *, grace_seconds: float = KILL_AFTER_SECONDS) -> Receipt:
    """Terminate an order's processes, kill what is left after the grace, and tell what became of each."""
    seen = living = await asyncio.to_thread(tree.living)
    tree.terminate(living)
    clock, look = asyncio.get_running_loop().time, _FIRST_LOOK_SECONDS
    deadline = clock() + grace_seconds
    while living and (left := deadline - clock()) > 0:
        await asyncio.sleep(min(look, left))
        look = min(look * 1.5, _LONGEST_LOOK_SECONDS)
        living = await asyncio.to_thread(tree.living)
        seen = seen | living
    killed: set[int] = set()
    for number in range(KILL_ROUNDS):  # what forks while it is killed is caught by the next round
        if not living:
            break
        killed |= tree.kill(living, shell_too=number >= SHELL_LAST_ROUNDS)
        await asyncio.sleep(_FIRST_LOOK_SECONDS)
        living = await asyncio.to_thread(tree.living)
        seen = seen | living
    return _receipt(seen, killed, living)


def _receipt(seen: set[int], killed: set[int], living: set[int]) -> Receipt:
    """What is gone without having been killed ended because it was asked to, or because another one did."""
    return Receipt(sorted(seen - killed - living), sorted(killed - living), sorted(living))
