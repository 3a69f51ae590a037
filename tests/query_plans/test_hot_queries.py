"""The queries that run every second, or for every batch, use their indexes and never walk a whole table."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from deployx.db.database import Database

HOT = {
    "SELECT id FROM scheduled_tasks WHERE next_execution > 1 AND next_execution <= 2"
    " ORDER BY next_execution LIMIT 500": "ix_scheduled_tasks_due",
    "SELECT next_execution FROM scheduled_tasks WHERE next_execution IS NOT NULL"
    " ORDER BY next_execution LIMIT 1": "ix_scheduled_tasks_due",
    "SELECT 1 FROM device_runs WHERE status = 'queued' LIMIT 1": "ix_device_runs_queued",
    "SELECT 1 FROM device_runs WHERE status = 'waiting' LIMIT 1": "ix_device_runs_waiting",
    "SELECT id FROM device_runs WHERE status = 'waiting' AND deadline_at <= 5": "ix_device_runs_waiting",
    "SELECT id FROM device_runs WHERE status = 'cancelling' AND cancel_requested_at <= 5": "ix_device_runs_cancelling",
    "SELECT id FROM device_runs WHERE status = 'cancelling'": "ix_device_runs_cancelling",
    "SELECT deployment_id, status, count(*) FROM device_runs WHERE deployment_id IN (1, 2)"
    " GROUP BY deployment_id, status": "ix_device_runs_deployment",
    "SELECT task_id FROM scheduled_task_executions WHERE completed_time IS NULL AND task_id IN (1, 2)": (
        "ix_executions_open"
    ),
    "SELECT at FROM alarms ORDER BY at LIMIT 1": "ix_alarms_at",
    "SELECT id, task_id FROM alarms WHERE at <= 5 ORDER BY at LIMIT 500": "ix_alarms_at",
    "SELECT id FROM device_runs WHERE status = 'waiting' AND opens_at <= 5 LIMIT 1": "ix_device_runs_opening",
    "SELECT task_id, count(*) FROM scheduled_task_executions WHERE completed_time IS NULL AND status = 'running'"
    " AND task_id IN (1, 2) GROUP BY task_id": "ix_executions_open",
    "SELECT d.task_id FROM scheduled_task_executions e JOIN task_dependencies d ON d.upstream_id = e.task_id"
    " JOIN scheduled_tasks t ON t.id = d.task_id WHERE e.id IN (1, 2)": "ix_task_dependencies_upstream",
    "SELECT id FROM dependency_events WHERE task_id IN (1, 2)": "uq_dependency_events_task_execution",
    "SELECT seq FROM output_chunks WHERE run_id = 1 AND seq > 5 ORDER BY seq": "autoindex_output_chunks",
}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("query", HOT)
async def test_a_hot_query_uses_its_index(database: Database, query: str) -> None:
    async with database.read() as session:
        plan = " / ".join(row.detail for row in await session.execute(text(f"EXPLAIN QUERY PLAN {query}")))
    assert HOT[query] in plan
    assert "SCAN device_runs" not in plan
    assert "USE TEMP B-TREE FOR ORDER BY" not in plan
