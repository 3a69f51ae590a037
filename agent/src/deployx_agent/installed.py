"""What DeployX installed on this device: a small file, written whole, told with the device's facts."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from deployx_agent.work import SoftwareItem

TOLD_AT_MOST = 500


class Installed:
    """The list, the newest last; several orders may write it at once, each from a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._one_writer = threading.Lock()

    def told(self) -> list[dict[str, Any]]:
        """What stands in the facts: the newest, as many as a message bears."""
        return self._all()[-TOLD_AT_MOST:]

    def add(self, item: SoftwareItem, kind: str) -> None:
        """The software is there now; an entry of the same name goes."""
        entry = {"software_id": item.software_id, "name": item.name, "version": item.version, "kind": kind}
        at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        with self._one_writer:
            self._write([*self._others(item), entry | {"installed_at": at}])

    def remove(self, item: SoftwareItem) -> None:
        with self._one_writer:
            self._write(self._others(item))

    def _others(self, item: SoftwareItem) -> list[dict[str, Any]]:
        return [one for one in self._all() if one.get("name") != item.name]

    def _all(self) -> list[dict[str, Any]]:
        """A file that is no list counts as none."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return []
        return found if isinstance(found, list) else []

    def _write(self, entries: list[dict[str, Any]]) -> None:
        beside = self._path.with_suffix(".new")
        with beside.open("w", encoding="utf-8") as file:
            json.dump(entries, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
