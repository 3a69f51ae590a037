"""What this device allows, whatever the server orders: `limits.toml` in the data folder, read at each order."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from deployx_agent.work import CommandWork, FileWork, SoftwareWork, Work

FILE = "limits.toml"


class NotAllowed(Exception):
    """The device's own limits forbid this; the sentence names the limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The device's limits; the defaults allow all but setuid files."""

    allow_commands: bool = True
    allowed_commands: tuple[str, ...] = ()
    """Regular expressions, of which one must match each whole command; none given: any command."""
    allowed_environment: tuple[str, ...] = ()
    """With `allowed_commands`: the variables that an order may set; others could make another command of one."""
    allow_reboot: bool = True
    allow_software: bool = True
    allow_files: bool = True
    allowed_roots: tuple[str, ...] = ()
    """Folders below which files may be put; none given: anywhere."""
    allow_setuid: bool = False
    refuse_root: bool = False

    def check(self, work: Work) -> None:
        """Raise NotAllowed unless the work stays within the limits; paths are checked again where links are known."""
        is_root = getattr(os, "geteuid", lambda: 1)() == 0
        runs_as_other = isinstance(work, CommandWork) and work.run_as not in (None, "root")
        if self.refuse_root and is_root and not runs_as_other:
            raise NotAllowed(f"This device refuses work as root (refuse_root in {FILE}).")
        if isinstance(work, CommandWork):
            self._check_commands(work)
        elif isinstance(work, FileWork):
            if not self.allow_files:
                raise NotAllowed(f"This device takes no files (allow_files in {FILE}).")
            self.check_path(work.target_path)
        else:
            self._check_software(work)

    def check_path(self, path: str) -> None:
        """Raise NotAllowed unless files may be put into this folder."""
        wanted = os.path.normpath(path)
        for root in self.allowed_roots:
            base = os.path.normpath(root)
            if wanted == base or wanted.startswith(base.rstrip(os.sep) + os.sep):
                return
        if self.allowed_roots:
            allowed = ", ".join(self.allowed_roots)
            raise NotAllowed(f"{path!r} is not below a folder that this device allows: {allowed} ({FILE}).")

    def _check_software(self, work: SoftwareWork) -> None:
        if not self.allow_software:
            raise NotAllowed(f"This device installs no software (allow_software in {FILE}).")
        for item in work.items:
            for one in item.installers:
                for command in (one.install_command, one.uninstall_command, one.detect_command):
                    self._check_command(command)

    def _check_commands(self, work: CommandWork) -> None:
        strange = sorted(set(work.env) - set(self.allowed_environment)) if self.allowed_commands else []
        if strange:
            raise NotAllowed(
                f"This device does not let orders set {', '.join(strange)} (allowed_environment in {FILE})."
            )
        for step in work.steps:
            if step.run is None:
                if not self.allow_reboot:
                    raise NotAllowed(f"This device is not restarted by orders (allow_reboot in {FILE}).")
                continue
            if not self.allow_commands:
                raise NotAllowed(f"This device runs no commands (allow_commands in {FILE}).")
            for command in (step.run, step.rollback):
                self._check_command(command)

    def _check_command(self, command: str | None) -> None:
        if command is None or not self.allowed_commands:
            return
        if not any(re.fullmatch(pattern, command) for pattern in self.allowed_commands):
            raise NotAllowed(f"This device does not allow the command {command[:100]!r} (allowed_commands in {FILE}).")


def load(data_dir: Path) -> Limits:
    """Read the limits; no file: the defaults. Raises NotAllowed for one that is not understood: better no work."""
    path = data_dir / FILE
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Limits()
    except OSError as error:
        raise NotAllowed(f"This device's {FILE} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise NotAllowed(f"This device's {FILE} is not TOML: {error}.") from None
    known = {one.name: one.default for one in fields(Limits)}
    return Limits(**{name: _value(name, value, known) for name, value in found.items()})


def _value(name: str, value: Any, known: dict[str, Any]) -> Any:
    if name not in known:
        raise NotAllowed(f"This device's {FILE} sets {name!r}, which is no limit: {', '.join(known)}.")
    if isinstance(known[name], bool):
        if not isinstance(value, bool):
            raise NotAllowed(f"This device's {FILE} sets {name} to {value!r}: write true or false.")
        return value
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise NotAllowed(f"This device's {FILE} sets {name} to {value!r}: write a list of texts.")
    if name == "allowed_commands":
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise NotAllowed(f"This device's {FILE} has {pattern!r}, no regular expression: {error}.") from None
    return tuple(value)
