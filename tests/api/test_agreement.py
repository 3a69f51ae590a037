"""Preview, forecast, simulation and the clock itself agree about the same definitions."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from deployx.db.schema import scheduled_task_executions
from deployx.engine.simulation import simulate
from deployx.work import executions
from tests.api.client import Api, task_body

HOUR = timedelta(hours=1)
WINDOW = {
    "name": "w",
    "days_of_week": [0, 1, 2, 3, 4, 5, 6],
    "start": "05:30",
    "end": "19:10",
    "timezone": "Asia/Tokyo",
}
DEFINITIONS: list[dict[str, Any]] = [
    {"recurrence_type": "interval", "recurrence_config": {"every_seconds": 3607}},
    {"recurrence_type": "daily", "recurrence_config": {"time": "04:30"}, "timezone": "America/New_York"},
    {"recurrence_type": "weekly", "recurrence_config": {"time": "23:59:30", "days_of_week": [0, 2, 3, 4, 6]}},
    {
        "recurrence_type": "custom",
        "recurrence_config": {"cron_expression": "*/20 1-5,13 * * *"},
        "timezone": "Asia/Kolkata",
    },
    {"recurrence_type": "custom", "recurrence_config": {"cron_expression": "7 * * * *"}, "jitter_seconds": 1800},
    {"recurrence_type": "custom", "recurrence_config": {"cron_expression": "0 * * * *"}, "window_ids": [1]},
    {"recurrence_type": "custom", "recurrence_config": {"cron_expression": "5 */6 * * *"}, "window_ids": [1]},
    {
        "recurrence_type": "custom",
        "recurrence_config": {"cron_expression": "0 * * * *", "max_occurrences": 9},
        "window_ids": [1],
        "outside_window": "skip",
    },
    {"recurrence_type": "custom", "recurrence_config": {"cron_expression": "30 * * * *"}, "blackout_ids": [1]},
]  # fmt: skip

Started = set[tuple[int, datetime, datetime]]
"""Task, nominal instant and start of each execution."""


async def _clock(api: Api, until: datetime) -> Started:
    """The clock on the server's own database, with the time passed in by hand."""
    server = api.services.server

    async def look(session: Any, now: datetime) -> int:
        looked_at = await executions.fire(session, server, now=now, limit=100)
        return looked_at + await executions.answer_alarms(session, server, now=now, limit=100)

    while True:
        async with api.database.read() as session:
            now = await executions.next_due(session)
        if now is None or now > until:
            break
        async with api.database.write() as session:
            while await look(session, now):
                pass
    table = scheduled_task_executions
    async with api.database.read() as session:
        rows = await session.execute(select(table).where(table.c.execution_time.is_not(None)))
        return {(row.task_id, row.planned_for, row.execution_time) for row in rows}


async def test_preview_forecast_simulation_and_the_clock_agree(api: Api, tmp_path: Path) -> None:
    await api.device()
    now = datetime.now(UTC)
    assert (await api.admin.post("/api/schedule/windows", json=WINDOW)).status_code == 201
    freeze = {"name": "b", "from": (now + 9.2 * HOUR).isoformat(), "to": (now + 20.7 * HOUR).isoformat()}
    assert (await api.admin.post("/api/schedule/blackouts", json=freeze)).status_code == 201
    since, until = now + timedelta(seconds=30), now + 48 * HOUR
    previewed: set[tuple[int, datetime]] = set()
    for definition in DEFINITIONS:
        # At most 100 at once, so that nothing but the plan decides: no device ever answers here.
        body = task_body(scheduled_time=since.isoformat(), max_instances=100, **definition)
        shown = await api.admin.post("/api/schedule/preview?count=200", json=body)
        task = await api.admin.post("/api/schedule/tasks", json=body)
        assert (shown.status_code, task.status_code) == (200, 201), shown.text + task.text
        planned = (datetime.fromisoformat(one["planned_for"]) for one in shown.json()["occurrences"])
        previewed |= {(task.json()["id"], at) for at in planned if at <= until}

    rows = [row async for row in simulate(api.database, tmp_path, now, until)]
    simulated = {(row["task_id"], row["planned_for"], row["execution_time"]) for row in rows if row["execution_time"]}
    query = {"from": now.isoformat(), "to": until.isoformat(), "bucket_seconds": "3600"}
    forecast = (await api.admin.get("/api/schedule/forecast", params=query)).json()
    fired = await _clock(api, until)

    assert fired == simulated
    assert {(row["task_id"], row["planned_for"]) for row in rows} == {
        (task_id, at) for task_id, at in previewed if not _held_back(at, until, rows, task_id)
    }
    counted = Counter(int((start - now) / HOUR) for _, _, start in fired if start < until)
    assert [one["executions"] for one in forecast["buckets"]] == [counted[number] for number in range(48)]
    assert sum(counted.values()) > 150
    assert {row["reason"] for row in rows} == {None, "outside_window", "blackout"}


def _held_back(planned: datetime, until: datetime, rows: list[Any], task_id: int) -> bool:
    """Planned before the end, but moved beyond it by jitter, so that it is not due yet."""
    known = {(row["task_id"], row["planned_for"]) for row in rows}
    return (task_id, planned) not in known and planned > until - HOUR
