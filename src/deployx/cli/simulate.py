"""`deployx simulate`: what the clock would do with the real definitions, printed as the ledger it would write."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import RowMapping

from deployx import log
from deployx.cli.admin import reading
from deployx.engine.simulation import Down, simulate
from deployx.errors import StartupRefused
from deployx.settings import Settings
from deployx.timing.instants import InstantError, format_instant, parse_instant
from deployx.timing.words import reason_in_words

_INSTANTS = ("planned_for", "covers_until", "due_at", "execution_time", "completed_time")


def instant(option: str, text: str) -> datetime:
    try:
        return parse_instant(text)
    except InstantError as error:
        raise StartupRefused(f"{option}: {error}.") from None


def downs(texts: Sequence[str]) -> list[Down]:
    """Read `A..B` stretches in which the server is away."""
    found = []
    for text in texts:
        start, dots, end = text.partition("..")
        if not dots:
            raise StartupRefused(
                f"--down {text!r} is no stretch: write it like 2026-12-01T00:00:00Z..2026-12-01T06:00:00Z."
            )
        down, up = instant("--down", start), instant("--down", end)
        if up <= down:
            raise StartupRefused(f"--down {text!r} ends before it begins: give the earlier instant first.")
        found.append((down, up))
    return found


async def run(settings: Settings, since: datetime, until: datetime, away: Sequence[Down], *, as_json: bool) -> int:
    """Print one line for each row of the ledger; the definitions stay as they are."""
    if until <= since:
        raise StartupRefused(f"--to {format_instant(until)} is not after --from: give a later instant.")
    log.configure("console", "warning")
    rows = occurrences = 0
    with tempfile.TemporaryDirectory(prefix="deployx-simulate-") as folder:
        async with reading(settings) as database:
            async for row in simulate(database, Path(folder), since, until, away):
                rows, occurrences = rows + 1, occurrences + row["occurrences"]
                print(json.dumps(_shown(row)) if as_json else line(row))  # noqa: T201 - a command line prints
    if not as_json:
        print(f"{occurrences} occurrences in {rows} rows; each execution is taken to succeed at once.")  # noqa: T201
    return 0


def _shown(row: RowMapping) -> dict[str, Any]:
    named = ("task_id", "task_name", "trigger", "status", "reason", "occurrences", "error_message")
    instants = {name: format_instant(row[name]) if row[name] else None for name in _INSTANTS}
    return {name: row[name] for name in named} | instants


def line(row: RowMapping) -> str:
    planned = row["planned_for"] or row["due_at"]
    until = f" to {format_instant(row['covers_until'])} ({row['occurrences']})" if row["covers_until"] else ""
    text = f"{format_instant(planned)}{until}  {row['task_name']} ({row['task_id']})  {row['status']}"
    if row["execution_time"]:
        started = f", started {format_instant(row['execution_time'])}" if row["execution_time"] != planned else ""
        return text + started + (f": {row['error_message']}" if row["error_message"] else "")
    return text + (f": {reason_in_words(row['reason'])}" if row["reason"] else "")
