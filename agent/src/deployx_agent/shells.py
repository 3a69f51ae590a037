"""Which shells this device has, and the argument vector that runs a command in one of them. Starts nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SHELLS = ("sh", "bash", "zsh", "pwsh", "powershell", "cmd")
INLINE_CHARACTERS = 8_000
"""Longer commands become a script: cmd takes 8191 characters, Linux 128 KiB in one argument."""


class CannotStart(Exception):
    """A command cannot be started; the sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """How to start a command; `script` is a file to delete afterwards."""

    argv: list[str]
    script: Path | None = None

    def discard(self) -> None:
        if self.script is not None:
            with contextlib.suppress(OSError):
                self.script.unlink(missing_ok=True)


def available_shells() -> list[str]:
    return [name for name in SHELLS if shutil.which(name)]


def usual_shell() -> str:
    """What `auto` means here: cmd on Windows; zsh on macOS, bash elsewhere, sh where there is none."""
    if sys.platform == "win32":
        return "cmd"
    preferred = "zsh" if sys.platform == "darwin" else "bash"
    return preferred if shutil.which(preferred) else "sh"


def command_line(
    shell: str, command: str, *, give_to: Callable[[Path], None] = lambda script: None
) -> CommandLine:  # fmt: skip
    """The argument vector for a command in a shell; several lines become a script file. Raises CannotStart.

    `give_to` makes a script readable for the user who will run it.
    """
    name = usual_shell() if shell == "auto" else shell
    program = shutil.which(name) if name in SHELLS else None
    if program is None:
        has = ", ".join(available_shells()) or "none"
        raise CannotStart(f"This device has no shell {name!r}. It has: {has}.")
    lines = command.strip("\r\n")
    if "\n" not in lines and len(lines) < INLINE_CHARACTERS:
        return CommandLine([program, *_inline_arguments(name, lines)])
    try:
        script = _write_script(name, lines)
        give_to(script)
    except (OSError, ValueError) as error:
        raise CannotStart(f"The command could not be written to a script file: {error}.") from None
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
    """A new file that only this user may read; a command may hold what others should not see."""
    suffix = {"cmd": ".cmd", "powershell": ".ps1", "pwsh": ".ps1"}.get(shell, ".sh")
    newline = "\r\n" if shell == "cmd" else "\n"
    text = ("@echo off\r\n" if shell == "cmd" else "") + lines.replace("\r\n", "\n").replace("\n", newline) + newline
    # Windows PowerShell reads a script as the ANSI code page unless a byte order mark says otherwise.
    encoded = text.encode("utf-8-sig" if shell == "powershell" else "utf-8")
    handle, name = tempfile.mkstemp(prefix="deployx-", suffix=suffix)
    with os.fdopen(handle, "wb") as file:
        file.write(encoded)
    return Path(name)
