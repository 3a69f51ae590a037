"""The results of a deployment as CSV (RFC 4180): a row for each device, read and given in parts."""

from __future__ import annotations

import csv
import io
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import select

from deployx.db.database import Database
from deployx.db.schema import device_runs, devices
from deployx.timing.instants import format_instant

COLUMNS = (
    "device_id", "device_name", "status", "attempt", "wave", "exit_code", "started_at", "completed_at",
    "duration_seconds", "reason",
)  # fmt: skip
AT_ONCE = 1000

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for a formula (OWASP, "CSV Injection"); such a text gets an apostrophe in front."""


async def as_csv(database: Database, deployment_id: int | None) -> AsyncIterator[str]:
    """Yield the text in parts, in the order of the devices' ids, each device by its last attempt."""
    yield _lines([COLUMNS])
    after = 0
    while deployment_id is not None:
        query = (
            select(device_runs, devices.c.name.label("device_name"))
            .join(devices, devices.c.id == device_runs.c.device_id)
            .where(device_runs.c.deployment_id == deployment_id, device_runs.c.is_last)
            .where(device_runs.c.device_id > after)
            .order_by(device_runs.c.device_id)
            .limit(AT_ONCE)
        )
        async with database.read() as session:
            rows = (await session.execute(query)).all()
        if not rows:
            return
        yield _lines([[_cell(getattr(row, name)) for name in COLUMNS] for row in rows])
        after = rows[-1].device_id


def _lines(rows: Any) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if hasattr(value, "isoformat"):
        return format_instant(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
