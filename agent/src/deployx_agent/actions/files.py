"""Deploys files: all are fetched first, then each is put in its place; what fails leaves what was there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

from deployx_agent.actions.action import FAILED, Action, Outcome, StepResult
from deployx_agent.actions.placing import CannotPlace, Folder, Rights, Stopped, check_name, open_folder
from deployx_agent.device import Device
from deployx_agent.download import CannotFetch, OutOfTime
from deployx_agent.limits import Limits, NotAllowed
from deployx_agent.work import FileRef, FileWork


class Files(Action):
    """The files of one order."""

    def __init__(self, work: FileWork, ticket: str, device: Device, limits: Limits, **shared: Any) -> None:
        super().__init__(output_limit_bytes=0, **shared)
        self._work = work
        self._ticket = ticket
        self._device = device
        self._downloads = device.downloads
        self._limits = limits

    async def work(self) -> Outcome:
        self.started()
        async with contextlib.AsyncExitStack() as held:
            sources: list[Path] = []
            for index, file in enumerate(self._work.files):
                path = await self._fetch(index, file, held)
                if path is not None:
                    sources.append(path)
            if len(sources) == len(self._work.files):
                await self._place_all(sources)
            else:
                self._leave_the_rest(0)
        failed = [one for one in self.steps if one.status in FAILED]
        status = "succeeded" if not failed else failed[0].status
        deciding = failed[0] if failed else None
        return Outcome(status, deciding, deciding.detail if deciding else None)

    async def _fetch(self, index: int, file: FileRef, held: contextlib.AsyncExitStack) -> Path | None:
        """Fetch one file, unless an earlier one failed; answers its path until the run has ended."""
        if self.stopped.is_set() or any(one.status in FAILED for one in self.steps):
            self.not_reached(index, "download", "an earlier file could not be fetched")
            return None
        began = time.monotonic()
        try:
            check_name(file.name)
            wanted = self._downloads.of_server(file, self._ticket)
            path = await held.enter_async_context(
                self._downloads.held(wanted, stopped=self.stopped, timeout_seconds=self._work.timeout_seconds)
            )
        except (CannotFetch, CannotPlace) as error:
            status = "timed_out" if isinstance(error, OutOfTime) else "failed"
            self._note(index, "download", status, began, str(error))
            return None
        self._note(index, "download", "succeeded", began, f"{file.name}: {file.size_bytes} bytes")
        return path

    async def _place_all(self, sources: list[Path]) -> None:
        began = time.monotonic()
        first = len(self._work.files)
        try:
            rights = Rights.of(self._work.mode, self._work.owner, self._limits)
            folder = await asyncio.to_thread(self._open)
        except (CannotPlace, NotAllowed) as error:
            self._note(first, "place", "failed", began, str(error))
            self._leave_the_rest(1)
            return
        try:
            await self._place_each(folder, rights, sources)
        finally:
            await asyncio.to_thread(folder.close)

    def _open(self) -> Folder:
        folder = open_folder(
            self._work.target_path, create=self._work.create_path_if_not_exists,
            follow_links=self._work.follow_links, limits=self._limits,
            own_folder=self._device.data_dir,
        )  # fmt: skip
        folder.tidy()
        return folder

    async def _place_each(self, folder: Folder, rights: Rights, sources: list[Path]) -> None:
        first = len(self._work.files)
        for place, (file, source) in enumerate(zip(self._work.files, sources, strict=True)):
            if self.stopped.is_set():
                self._leave_the_rest(place)
                break
            began = time.monotonic()
            try:
                is_placed = await self._place(folder, file, source, rights)
            except Stopped:
                self.cut_short()
                self._note(first + place, "place", "failed", began, f"{file.name}: stopped while it was written.")
                self._leave_the_rest(place + 1)
                break
            except CannotPlace as error:
                self._note(first + place, "place", "failed", began, str(error))
                self._leave_the_rest(place + 1)
                break
            status, what = ("succeeded", "placed") if is_placed else ("skipped", "a file is there, and it stays")
            self._note(first + place, "place", status, began, f"{file.name}: {what}")
        else:
            await asyncio.to_thread(folder.commit)
            return
        try:
            await asyncio.to_thread(folder.undo)
        except CannotPlace as error:
            self._note(first, "place", "failed", time.monotonic(), f"What was there could not be restored: {error}")

    async def _place(self, folder: Folder, file: FileRef, source: Path, rights: Rights) -> bool:
        """Write one file in a thread, which a stop reaches in the middle."""
        stopped = threading.Event()
        writing = asyncio.create_task(
            asyncio.to_thread(
                folder.place,
                file.name,
                source,
                rights,
                overwrite=self._work.overwrite,
                backup=self._work.backup,
                stopped=stopped,
            )
        )
        stop = asyncio.create_task(self.stopped.wait())
        try:
            await asyncio.wait({writing, stop}, return_when=asyncio.FIRST_COMPLETED)
            stopped.set()
            return await writing
        finally:
            stop.cancel()

    def _leave_the_rest(self, first_left: int) -> None:
        for place in range(first_left, len(self._work.files)):
            self.not_reached(len(self._work.files) + place, "place", "an earlier file failed")

    def _note(self, index: int, kind: str, status: str, began: float, detail: str) -> None:
        if status == "failed" and self.stopped.is_set():
            self.cut_short()
        self.steps.append(StepResult(index, kind, status, None, round(time.monotonic() - began, 6), detail[:2000]))
