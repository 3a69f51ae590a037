"""Files, the software catalogue, rollouts, retries, and what a device run waits for."""

import sqlalchemy as sa
from alembic import op

from deployx.db.types import Instant

revision = "0003"
down_revision = "0002"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_JSON = sa.JSON(none_as_null=True)


def upgrade() -> None:
    _files()
    _software()
    _uses()
    _rollouts()
    _runs()


def _identity() -> sa.Column[int]:
    return sa.Column("id", _ID, autoincrement=True, nullable=False)


def _files() -> None:
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_blobs"),
    )
    op.create_table(
        "files",
        _identity(),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("uploaded_by", _ID, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name="fk_files_sha256_blobs"),
        sa.ForeignKeyConstraint(["uploaded_by"], ["users.id"], name="fk_files_uploaded_by_users"),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_files_sha256", "files", ["sha256"])
    op.create_index("ix_files_uploaded_by", "files", ["uploaded_by", "id"])


def _software() -> None:
    op.create_table(
        "software",
        _identity(),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("version", sa.String(200), nullable=False),
        sa.Column("description", sa.String(2000), nullable=False),
        sa.Column("installers", _JSON, nullable=False),
        sa.Column("revision", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_by", _ID, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name="fk_software_created_by_users"),
        sa.PrimaryKeyConstraint("id", name="pk_software"),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_software_name_version", "software", ["name", "version"], unique=True)


def _link(table: str, owner: str, owner_table: str, used: str, used_table: str | None) -> None:
    keys = [sa.ForeignKeyConstraint([owner], [f"{owner_table}.id"], name=f"fk_{table}_{owner}_{owner_table}")]
    if used_table is not None:
        keys.append(sa.ForeignKeyConstraint([used], [f"{used_table}.id"], name=f"fk_{table}_{used}_{used_table}"))
    op.create_table(
        table,
        sa.Column(owner, _ID, nullable=False),
        sa.Column(used, _ID, nullable=False),
        *keys,
        sa.PrimaryKeyConstraint(owner, used, name=f"pk_{table}"),
    )
    op.create_index(f"ix_{table}_{used}", table, [used])


def _uses() -> None:
    _link("software_dependencies", "software_id", "software", "depends_on_id", "software")
    _link("software_files", "software_id", "software", "file_id", "files")
    _link("payload_files", "payload_id", "payloads", "file_id", None)
    _link("payload_software", "payload_id", "payloads", "software_id", None)


def _rollouts() -> None:
    for table in ("scheduled_tasks", "deployments"):
        op.add_column(table, sa.Column("rollout", _JSON))
        op.add_column(table, sa.Column("retry", _JSON))
    for column in (
        sa.Column("work", _JSON),
        sa.Column("supersedable", sa.Boolean(), nullable=False, server_default=sa.text("true")),
        sa.Column("opened_wave", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("next_wave_at", Instant()),
        sa.Column("halted_reason", sa.Text()),
        sa.Column("look_at", Instant()),
        sa.Column("closes_at", Instant()),
    ):
        op.add_column("deployments", column)
    looked_at = sa.text("look_at IS NOT NULL")
    op.create_index(
        "ix_deployments_look", "deployments", ["look_at"], sqlite_where=looked_at, postgresql_where=looked_at
    )  # fmt: skip


def _runs() -> None:
    op.add_column("device_runs", sa.Column("is_last", sa.Boolean(), nullable=False, server_default=sa.text("true")))
    op.add_column("device_runs", sa.Column("waits_for", sa.String(10)))
    false = sa.text("false")
    op.add_column("device_runs", sa.Column("reboot_required", sa.Boolean(), nullable=False, server_default=false))
    op.execute(
        "UPDATE device_runs SET waits_for = CASE WHEN opens_at IS NULL THEN 'device' ELSE 'window' END"
        " WHERE status = 'waiting'"
    )
    op.drop_index("ix_device_runs_deployment", "device_runs")
    op.create_index("ix_device_runs_deployment", "device_runs", ["deployment_id", "status", "is_last"])


def downgrade() -> None:
    op.drop_index("ix_device_runs_deployment", "device_runs")
    op.create_index("ix_device_runs_deployment", "device_runs", ["deployment_id", "status"])
    op.drop_column("device_runs", "reboot_required")
    op.drop_column("device_runs", "waits_for")
    op.drop_column("device_runs", "is_last")
    op.drop_index("ix_deployments_look", "deployments")
    for name in ("closes_at", "look_at", "halted_reason", "next_wave_at", "opened_wave", "supersedable", "work"):
        op.drop_column("deployments", name)
    for table in ("scheduled_tasks", "deployments"):
        op.drop_column(table, "rollout")
        op.drop_column(table, "retry")
    for table in (
        "payload_software", "payload_files", "software_files", "software_dependencies", "software", "files", "blobs",
    ):  # fmt: skip
        op.drop_table(table)
