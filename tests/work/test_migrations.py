"""The schema that migrations make is the one that the code reads; and an older database keeps what it has."""

from __future__ import annotations

from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from deployx.clock import SystemClock
from deployx.db import migrate
from deployx.db.database import Database
from deployx.db.schema import metadata


async def test_the_migrations_make_the_schema_of_the_code(database: Database) -> None:
    def differences(connection: Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata))

    async with database.write() as session:
        assert await session.run_sync(differences) == []


async def test_a_database_of_the_first_schema_keeps_its_tasks(database_url: str) -> None:
    database = Database(database_url, SystemClock())
    await database.open()
    try:
        async with database.write() as session:
            await session.run_sync(lambda connection: _to(connection, "0001"))
            moment = "1" if database.is_sqlite else "'2026-11-23T00:00:00Z'"
            for statement in (
                "INSERT INTO users (id, username, password_hash, role, is_active, created_at)"
                f" VALUES (1, 'u', '-', 'admin', true, {moment})",
                "INSERT INTO payloads (id, kind, body) VALUES (1, 'command', '{}')",
                "INSERT INTO scheduled_tasks (id, task_name, task_type, status, version, payload_id, recurrence_type,"
                " timezone, misfire_grace_seconds, catch_up, max_instances, offline_policy, offline_deadline_seconds,"
                " lost_after_seconds, pause_on_failure, labels, execution_count, created_by, created_at, updated_at)"
                " VALUES (1, 't', 'command', 'paused', 2, 1, 'once', 'UTC', 300, 'latest', 3, 'wait', 300, 600, false,"
                f" '{{}}', 0, 1, {moment}, {moment})",
                "INSERT INTO task_versions (task_id, version, effective_at, action, definition)"
                f" VALUES (1, 1, {moment}, 'create', '{{}}'), (1, 2, {moment}, 'pause', '{{}}')",
            ):
                await session.execute(text(statement))
        await migrate.upgrade(database)
        async with database.read() as session:
            kept = (
                await session.execute(text("SELECT overlap_policy, jitter_seconds, waiting FROM scheduled_tasks"))
            ).one()
            statuses = (
                (await session.execute(text("SELECT status FROM task_versions ORDER BY version"))).scalars().all()
            )
        assert (kept.overlap_policy, kept.jitter_seconds, bool(kept.waiting)) == ("skip", 0, False)
        assert statuses == ["pending", "paused"]
    finally:
        await database.close()


def _to(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate.MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
