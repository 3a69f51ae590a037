"""Installs and removes software: looks whether it is there, fetches, runs the installer, and looks again.

Which command line a kind of installer takes is in `installers`, what the device's tools tell in `presence`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from deployx_agent import process
from deployx_agent.actions import installers, presence
from deployx_agent.actions.action import FAILED, Action, Outcome, Start, StepResult
from deployx_agent.actions.archive import BadArchive, unpack
from deployx_agent.actions.presence import CannotTell, Package
from deployx_agent.device import Device
from deployx_agent.download import CannotFetch, OutOfTime
from deployx_agent.facts import SYSTEMS
from deployx_agent.process import Surroundings
from deployx_agent.protocol import Order
from deployx_agent.work import Installer, SoftwareItem, SoftwareWork

SYSTEM = SYSTEMS.get(sys.platform, sys.platform)
_ARCHITECTURES = {
    "amd64": "x86_64", "x64": "x86_64", "aarch64": "arm64", "i386": "x86", "i586": "x86", "i686": "x86",
    "armhf": "armv7l", "armv7": "armv7l",
}  # fmt: skip
_UNSAFE = re.compile(r"[^A-Za-z0-9._+~-]")


class _Failed(Exception):
    """The step that was just noted failed: the item cannot go on."""


class Software(Action):
    """The software of one order."""

    def __init__(self, order: Order, work: SoftwareWork, device: Device, **shared: Any) -> None:
        super().__init__(output_limit_bytes=work.output_limit_bytes, **shared)
        self._order = order
        self._work = work
        self._device = device
        self._folder = device.work_dir / order.order_id

    async def work(self) -> Outcome:
        self.started()
        is_failed = False
        try:
            for number, item in enumerate(self._work.items):
                if is_failed or self.stopped.is_set():
                    self.not_reached(self._next, self._work.action, f"{item.name}: an earlier one failed")
                    continue
                try:
                    await self._item(item, self._folder / str(number))
                except _Failed:
                    is_failed = True
        finally:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        failed = next((one for one in self.steps if one.status in FAILED), None)
        done = next((one for one in reversed(self.steps) if one.kind == self._work.action), None)
        return Outcome(failed.status if failed else "succeeded", failed or done, failed.detail if failed else None)

    @property
    def _next(self) -> int:
        return len(self.steps)

    async def _item(self, item: SoftwareItem, folder: Path) -> None:
        """Take one software from what it is to what it is to be. Raises _Failed."""
        installer = self._chosen(item)
        is_install = self._work.action == "install"
        async with contextlib.AsyncExitStack() as held:
            path: Path | None = None
            package: Package | None = None
            if installer.detect_command is None and installer.kind in presence.TOLD_BY_FILE:
                path = await self._fetched(item, installer, folder, held)
                package = await self._identified(item, installer, path)
            there = await self._detect(item, installer, package, path, in_version=is_install)
            if there is is_install and there is not None:
                await self._nothing_to_do(item, installer)
                return
            if path is None and is_install and installer.package_name is None:
                path = await self._fetched(item, installer, folder, held)
            if is_install:
                await self._install(item, installer, path, folder)
            else:
                await self._uninstall(item, installer, package, path)
            now = await self._detect(item, installer, package, path, in_version=is_install)
            if now is not None and now is not is_install:
                why = "is not there after the install" if is_install else "is still there after the uninstall"
                self._fail("detect", f"{item.name} {why}, whatever the exit code says.")
        await self._record(item, installer)

    def _chosen(self, item: SoftwareItem) -> Installer:
        own = normalised(platform.machine())
        fitting = (None, own)
        for one in item.installers:
            if one.os == SYSTEM and (one.arch and normalised(one.arch)) in fitting:
                return one
        has = ", ".join(f"{one.os}/{one.arch or 'any'}" for one in item.installers) or "none"
        return self._fail(self._work.action, f"{item.name} has no installer for {SYSTEM}/{own}. It has: {has}.")

    async def _fetched(
        self, item: SoftwareItem, installer: Installer, folder: Path, held: contextlib.AsyncExitStack
    ) -> Path:
        """A checked copy with a name of its own, since tools go by suffixes; there until the item is done."""
        began = time.monotonic()
        if installer.file is not None:
            name = installer.file.name
            wanted = self._device.downloads.of_server(installer.file, self._order.ticket or "")
        else:
            assert installer.url is not None
            assert installer.sha256 is not None
            name = installer.url.partition("?")[0].rpartition("/")[2]
            wanted = self._device.downloads.of_address(installer.url, installer.sha256)
        try:
            content = await held.enter_async_context(
                self._device.downloads.held(wanted, stopped=self.stopped, timeout_seconds=self._work.timeout_seconds)
            )
            path = folder / (_UNSAFE.sub("_", name).lstrip(".-") or "file")
            await asyncio.to_thread(_copy, content, path)
        except (CannotFetch, OSError) as error:
            if self.stopped.is_set():
                self.cut_short()
            status = "timed_out" if isinstance(error, OutOfTime) else "failed"
            self._note("download", status, f"{item.name}: {error}", began)
            raise _Failed from None
        self._note("download", "succeeded", f"{item.name}: {name}", began)
        return path

    async def _identified(self, item: SoftwareItem, installer: Installer, path: Path) -> Package:
        try:
            return await presence.package_in(installer.kind, path)
        except CannotTell as error:
            self._fail("detect", f"{item.name}: {error}")

    async def _detect(
        self, item: SoftwareItem, installer: Installer, package: Package | None, path: Path | None, *, in_version: bool
    ) -> bool | None:
        """Whether it is there; None where nothing can tell."""
        began = time.monotonic()
        if installer.detect_command is not None:
            return await self._detect_by_command(item, installer.detect_command, path)
        try:
            if package is not None:
                there = await presence.is_there(installer.kind, package, in_version=in_version)
            elif installer.package_name is not None:
                there = await presence.is_package_there(self._manager(item), installer.package_name)
            else:
                return None
        except CannotTell as error:
            self._fail("detect", f"{item.name}: {error}", began)
        self._note("detect", "succeeded", f"{item.name}: {'there' if there else 'not there'}", began)
        return there

    async def _detect_by_command(self, item: SoftwareItem, command: str, path: Path | None) -> bool:
        start = self._shell(command, path, None)
        result = await self.process(self._next, "detect", start, self._work.timeout_seconds)
        if result.exit_code is None or result.status == "timed_out" or self.stopped.is_set():
            self.steps.append(result)
            raise _Failed
        there = result.exit_code == 0
        said = f"{item.name}: {'there' if there else 'not there'}"
        self.steps.append(
            StepResult(result.index, "detect", "succeeded", result.exit_code, result.duration_seconds, said)
        )
        return there

    async def _install(self, item: SoftwareItem, installer: Installer, path: Path | None, folder: Path) -> None:
        directory: Path | None = None
        if installer.kind == "archive":
            assert path is not None
            directory = await self._unpacked(item, path, folder / "unpacked")
        if installer.install_command is not None:
            start = self._shell(installer.install_command, path, directory)
        elif installer.package_name is not None:
            manager = self._manager(item)
            await self._refresh(manager, installer.package_name)
            start = self._program(manager.line(manager.install, installer.package_name))
        else:
            line = installers.install_line(installer.kind, str(path))
            if line is None:
                self._fail("install", f"{item.name}: an installer of kind {installer.kind!r} needs an install_command.")
            start = self._program(line)
        await self._carry_out(item, installer, start)

    async def _uninstall(
        self, item: SoftwareItem, installer: Installer, package: Package | None, path: Path | None
    ) -> None:
        line: list[str] | None = None
        if installer.package_name is not None:
            manager = self._manager(item)
            line = manager.line(manager.remove, installer.package_name)
        elif package is not None:
            line = installers.uninstall_line(installer.kind, package.name)
        if installer.uninstall_command is not None:
            start = self._shell(installer.uninstall_command, path, None)
        elif line is not None:
            start = self._program(line)
        else:
            why = f"{item.name}: nothing tells how to uninstall it. Give its installer an uninstall_command."
            self._fail("uninstall", why)
        await self._carry_out(item, installer, start)

    async def _carry_out(self, item: SoftwareItem, installer: Installer, start: Start) -> None:
        result = await self.process(
            self._next, self._work.action, start, self._work.timeout_seconds, installer.success_exit_codes
        )
        detail = result.detail or ("" if result.status == "succeeded" else f"Exit code {result.exit_code}.")
        said = f"{item.name}: {detail}".removesuffix(": ")
        self.steps.append(
            StepResult(result.index, result.kind, result.status, result.exit_code, result.duration_seconds, said)
        )
        if result.status != "succeeded":
            raise _Failed

    async def _unpacked(self, item: SoftwareItem, path: Path, into: Path) -> Path:
        stopped = threading.Event()
        unpacking = asyncio.create_task(asyncio.to_thread(unpack, path, into, stopped))
        stop = asyncio.create_task(self.stopped.wait())
        try:
            await asyncio.wait({unpacking, stop}, return_when=asyncio.FIRST_COMPLETED)
            stopped.set()
            await unpacking
        except (BadArchive, OSError) as error:
            if self.stopped.is_set():
                self.cut_short()
            self._fail("install", f"{item.name}: {error}")
        finally:
            stop.cancel()
        return into

    async def _refresh(self, manager: installers.Manager, package: str) -> None:
        """Let apt read its lists where it does not know the package: a new system has none."""
        if not manager.refresh:
            return
        with contextlib.suppress(CannotTell):
            code, said = await presence.ask("apt-cache", "show", "--no-all-versions", "--", package)
            if code == 0 and said:
                return
        await self.process(self._next, "install", self._program(list(manager.refresh)), self._work.timeout_seconds)

    def _manager(self, item: SoftwareItem) -> installers.Manager:
        found = installers.manager(SYSTEM)
        if found is None:
            known = ", ".join(one.program for one in installers.MANAGERS.get(SYSTEM, ()))
            self._fail(self._work.action, f"{item.name}: this device has none of the package managers {known}.")
        return found

    def _shell(self, command: str, path: Path | None, directory: Path | None) -> Start:
        around = self._around(path, directory)
        return lambda take: process.start("auto", command, around, take)

    def _program(self, line: list[str]) -> Start:
        around = self._around(None, None)
        return lambda take: process.start_program(line, around, take)

    def _around(self, path: Path | None, directory: Path | None) -> Surroundings:
        given = {**installers.QUIET, **self._order.environment}
        if path is not None:
            given["DEPLOYX_FILE"] = str(path)
        return Surroundings(self._order.order_id, given, str(directory) if directory else None, None)

    async def _nothing_to_do(self, item: SoftwareItem, installer: Installer) -> None:
        is_install = self._work.action == "install"
        self._note(self._work.action, "skipped", f"{item.name}: {'already' if is_install else 'not'} installed")
        if not is_install:
            await self._record(item, installer)

    async def _record(self, item: SoftwareItem, installer: Installer) -> None:
        """Note it among what DeployX installed; that a full disk keeps it from being noted does not undo the work."""
        with contextlib.suppress(OSError):
            if self._work.action == "install":
                await asyncio.to_thread(self._device.installed.add, item, installer.kind)
            else:
                await asyncio.to_thread(self._device.installed.remove, item)

    def _fail(self, kind: str, why: str, began: float | None = None) -> NoReturn:
        self._note(kind, "failed", why, began)
        raise _Failed

    def _note(self, kind: str, status: str, detail: str, began: float | None = None) -> None:
        seconds = None if began is None else round(time.monotonic() - began, 6)
        self.steps.append(StepResult(self._next, kind, status, None, seconds, detail[:2000]))


def normalised(architecture: str) -> str:
    """One name for each architecture, whatever the system calls it."""
    name = architecture.lower()
    return _ARCHITECTURES.get(name, name)


def _copy(content: Path, path: Path) -> None:
    """A second name for the content, or a copy where the file system has no such thing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.link(content, path)
    except OSError:
        shutil.copyfile(content, path)
