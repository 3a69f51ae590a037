"""What uses which file and which software: written with each payload, asked before something is changed or deleted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Table, text

from deployx.catalog.payloads import named_files, named_software
from deployx.db.bulk import any_of, ids_parameter, insert_rows, on_sqlite
from deployx.db.database import Session
from deployx.db.schema import payload_files, payload_software

MOST_NAMED = 10


async def write(session: Session, payloads: Mapping[int, tuple[str, Mapping[str, Any]]]) -> None:
    """Note what new payloads name: payload id → (kind, body). Two statements for any number of them."""
    named = [(one, file_id) for one, (kind, body) in payloads.items() for file_id in named_files(kind, body)]
    await insert_rows(session, payload_files, ("payload_id", "file_id"), named)
    named = [(one, other) for one, (kind, body) in payloads.items() for other in named_software(kind, body)]
    await insert_rows(session, payload_software, ("payload_id", "software_id"), named)


async def of_file(session: Session, file_id: int) -> list[str]:
    """Living tasks, software and open deployments that use a file, in words."""
    rows = await session.execute(
        text(
            "SELECT 'task' AS what, t.id, t.task_name AS name FROM scheduled_tasks t"
            " JOIN payload_files p ON p.payload_id = t.payload_id WHERE p.file_id = :id AND t.deleted_at IS NULL"
            " UNION ALL SELECT 'software', s.id, s.name FROM software s"
            " JOIN software_files f ON f.software_id = s.id WHERE f.file_id = :id"
            " UNION SELECT 'deployment', d.id, d.deployment_name FROM deployments d"
            " JOIN payload_files p ON p.payload_id = d.payload_id WHERE p.file_id = :id AND d.completed_at IS NULL"
            # What it sends was resolved when it started; the catalogue may have changed since.
            " UNION SELECT 'deployment', d.id, d.deployment_name FROM deployments d JOIN files f ON f.id = :id"
            " WHERE d.completed_at IS NULL AND d.work IS NOT NULL AND CAST(d.work AS TEXT) LIKE '%' || f.sha256 || '%'"
        ),
        {"id": file_id},
    )
    return _in_words(rows)


async def of_software(session: Session, software_id: int) -> list[str]:
    """Living tasks, other software and open deployments that use an entry of the catalogue, in words."""
    rows = await session.execute(
        text(
            "SELECT 'task' AS what, t.id, t.task_name AS name FROM scheduled_tasks t"
            " JOIN payload_software p ON p.payload_id = t.payload_id"
            " WHERE p.software_id = :id AND t.deleted_at IS NULL"
            " UNION ALL SELECT 'software', s.id, s.name FROM software s"
            " JOIN software_dependencies n ON n.software_id = s.id WHERE n.depends_on_id = :id"
            " UNION ALL SELECT 'deployment', d.id, d.deployment_name FROM deployments d"
            " JOIN payload_software p ON p.payload_id = d.payload_id"
            " WHERE p.software_id = :id AND d.completed_at IS NULL"
        ),
        {"id": software_id},
    )
    return _in_words(rows)


async def tasks_of_software(session: Session, software_id: int) -> list[int]:
    """Living tasks that use an entry, by name or because what they name needs it."""
    rows = await session.execute(
        text(
            "WITH RECURSIVE needing(id) AS (SELECT CAST(:id AS BIGINT) UNION SELECT n.software_id"
            " FROM software_dependencies n JOIN needing ON n.depends_on_id = needing.id)"
            " SELECT DISTINCT t.id FROM scheduled_tasks t JOIN payload_software p ON p.payload_id = t.payload_id"
            " JOIN needing ON needing.id = p.software_id WHERE t.deleted_at IS NULL ORDER BY t.id"
        ),
        {"id": software_id},
    )
    return list(rows.scalars())


def listed(used_by: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(used_by) - MOST_NAMED} more" if len(used_by) > MOST_NAMED else ""
    return ", ".join(used_by[:MOST_NAMED]) + more


async def existing(session: Session, table: Table, ids: Sequence[int]) -> set[int]:
    """Those of the ids that a table has; on PostgreSQL they cannot be deleted before this transaction ends."""
    if not ids:
        return set()
    # A reading transaction may ask too: there is nothing to hold then, and PostgreSQL allows the lock.
    held = "" if on_sqlite(session) else " FOR KEY SHARE"
    rows = await session.execute(
        text(f"SELECT id FROM {table.name} WHERE {any_of(session, 'id', 'ids')} ORDER BY id{held}"),
        {"ids": ids_parameter(session, ids)},
    )
    return set(rows.scalars())


async def lock(session: Session, table: Table, identity: int) -> None:
    """Before a deletion: wait for those who are about to use it, and let nobody begin to."""
    if not on_sqlite(session):
        await session.execute(text(f"SELECT id FROM {table.name} WHERE id = :id FOR UPDATE"), {"id": identity})


def _in_words(rows: Iterable[Any]) -> list[str]:
    return [f"{row.what} {row.name!r} ({row.id})" for row in rows]
