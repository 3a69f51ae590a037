"""Bring a database to the newest schema at start, one process at a time."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from deployx.db.database import Database
from deployx.errors import StartupRefused

MIGRATIONS = Path(__file__).parent.parent / "migrations"

ADVISORY_LOCK = 0x6465706C6F7978
"""Held while migrating, so that replicas started together do not race ("deployx" in ASCII)."""


async def upgrade(database: Database) -> None:
    """Apply what is missing, in one transaction. Refuses a schema newer than this program."""
    async with database.write() as session:
        await session.run_sync(_upgrade)


async def require_newest(database: Database) -> None:
    """Raise StartupRefused unless the schema is this program's: what only reads does not migrate."""
    async with database.read() as session:
        heads = await session.run_sync(lambda connection: MigrationContext.configure(connection).get_current_heads())
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    if set(heads) != set(ScriptDirectory.from_config(config).get_heads()):
        raise StartupRefused(
            f"The database is at schema {', '.join(heads) or 'none'}, not at this version's: start the server once."
        )


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    for revision in MigrationContext.configure(connection).get_current_heads():
        if revision not in known:
            raise StartupRefused(
                f"The database is at schema {revision!r}, which this version does not know: start the newer version."
            )
    command.upgrade(config, "head")
