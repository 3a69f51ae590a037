"""The examples of docs/scheduling.md: each section is a server of its own, and its commands print what stands there.

To write an example, leave the lines below `$` empty and run `python -m tests.architecture.test_examples`, which fills
them in. Read them before you believe them.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deployx.api.definitions import DEFAULTS, NewTask, applied
from deployx.api.windows import BlackoutBody, WindowBody
from deployx.cli import simulate as command
from deployx.clock import SystemClock
from deployx.db import migrate
from deployx.db.database import Database
from deployx.engine.simulation import simulate
from deployx.timing.instants import parse_instant
from deployx.work import catalogue, tasks
from tests.work.spine import Spine

PAGE = Path(__file__).parents[2] / "docs" / "scheduling.md"
CREATED_AT = parse_instant("2026-12-30T00:00:00Z")
BLOCK = re.compile(r"^```(json|console) ?(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
USUAL = {"task_name": "Clean up", "task_type": "command", "command_payload": {"command": "true"}, "device_ids": [1]}


class Example(NamedTuple):
    title: str
    given: list[tuple[str, dict[str, Any]]]
    console: str


def examples() -> list[Example]:
    found = []
    for section in PAGE.read_text().split("\n## ")[1:]:
        blocks = BLOCK.findall(section)
        given = [(kind, json.loads(body)) for language, kind, body in blocks if language == "json"]
        consoles = [body for language, _, body in blocks if language == "console"]
        if consoles:
            found.append(Example(section.partition("\n")[0], given, consoles[0]))
    return found


async def printed(example: Example, folder: Path) -> str:
    """What the console block of an example should say."""
    database = Database(f"sqlite:///{folder / 'example.db'}", SystemClock())
    await database.open()
    await migrate.upgrade(database)
    await Spine(database).set_up(online=1)
    async with database.write() as session:
        for kind, body in example.given:
            if kind == "task":
                spec = applied(NewTask.model_validate(USUAL | body), DEFAULTS)
                await tasks.create(session, spec, by=1, now=CREATED_AT)
            elif kind == "window":
                values = WindowBody.model_validate(body).values()
                await catalogue.create(session, catalogue.WINDOWS, values, by=1, now=CREATED_AT)
            else:
                values = BlackoutBody.model_validate(body).values()
                await catalogue.create(session, catalogue.BLACKOUTS, values, by=1, now=CREATED_AT)
    lines: list[str] = []
    for number, asked in enumerate(line for line in example.console.splitlines() if line.startswith("$ ")):
        place = folder / str(number)
        place.mkdir()
        lines += [asked, *await _run(database, place, shlex.split(asked)[3:])]
    await database.close()
    return "\n".join(lines) + "\n"


async def _run(database: Database, folder: Path, options: list[str]) -> list[str]:
    given = dict(zip(options[::2], options[1::2], strict=True))
    downs = command.downs([given["--down"]] if "--down" in given else [])
    since, until = parse_instant(given["--from"]), parse_instant(given["--to"])
    return [command.line(row) async for row in simulate(database, folder, since, until, downs)]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.title)
async def test_an_example_of_the_scheduling_page_is_true(example: Example, tmp_path: Path) -> None:
    assert await printed(example, tmp_path) == example.console


def test_the_page_has_an_example_for_each_recurrence_type() -> None:
    types = {body["recurrence_type"] for one in examples() for kind, body in one.given if kind == "task"}
    assert types == {"daily", "weekly", "monthly", "interval", "custom", "after"}


def _fill_in() -> None:
    sections = PAGE.read_text().split("\n## ")
    for example in examples():
        place = next(number for number, text in enumerate(sections) if text.startswith(f"{example.title}\n"))
        with tempfile.TemporaryDirectory() as folder:
            told = asyncio.run(printed(example, Path(folder)))
        sections[place] = sections[place].replace(example.console, told)
    PAGE.write_text("\n## ".join(sections))


if __name__ == "__main__":
    _fill_in()
