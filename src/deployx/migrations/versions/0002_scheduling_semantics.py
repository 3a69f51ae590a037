"""Windows, blackouts, dependencies, overrides, alarms, and the policies that came with them."""

import sqlalchemy as sa
from alembic import op

from deployx.db.types import Instant

revision = "0002"
down_revision = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _extend_tasks()
    _calendars()
    _links()
    _occurrences()
    _dependencies()


def _extend_tasks() -> None:
    skip, delay, pending = (sa.text(f"'{word}'") for word in ("skip", "delay", "pending"))
    for column in (
        sa.Column("overlap_policy", sa.String(20), nullable=False, server_default=skip),
        sa.Column("jitter_seconds", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("outside_window", sa.String(10), nullable=False, server_default=delay),
        sa.Column("last_planned_for", Instant()),
        sa.Column("planned_before", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("counted_from", Instant()),
        sa.Column("waiting", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("restricted", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("overridden", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("paused_until", Instant()),
    ):
        op.add_column("scheduled_tasks", column)
    op.add_column("task_versions", sa.Column("status", sa.String(10), nullable=False, server_default=pending))
    op.add_column("task_versions", sa.Column("last_planned_for", Instant()))
    op.execute(
        "UPDATE task_versions SET status = CASE action WHEN 'pause' THEN 'paused' WHEN 'cancel' THEN 'cancelled'"
        " ELSE 'pending' END"
    )
    op.add_column("device_runs", sa.Column("opens_at", Instant()))
    waits = sa.text("status = 'waiting' AND opens_at IS NOT NULL")
    op.create_index(
        "ix_device_runs_opening", "device_runs", ["status", "opens_at"], sqlite_where=waits, postgresql_where=waits
    )  # fmt: skip


def _named(table: str, *columns: sa.Column[object]) -> None:
    op.create_table(
        table,
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        *columns,
        sa.Column("timezone", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_by", _ID, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=f"fk_{table}_created_by_users"),
        sa.PrimaryKeyConstraint("id", name=f"pk_{table}"),
        sa.UniqueConstraint("name", name=f"uq_{table}_name"),
        sqlite_autoincrement=True,
    )


def _calendars() -> None:
    _named(
        "windows",
        sa.Column("days_of_week", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("start", sa.String(8), nullable=False),
        sa.Column("end", sa.String(8), nullable=False),
    )
    _named(
        "blackouts",
        sa.Column("from_at", Instant()),
        sa.Column("to_at", Instant()),
        sa.Column("dates", sa.JSON(none_as_null=True)),
    )


def _links() -> None:
    for table, left, left_table, right, right_table in (
        ("task_windows", "task_id", "scheduled_tasks", "window_id", "windows"),
        ("task_blackouts", "task_id", "scheduled_tasks", "blackout_id", "blackouts"),
        ("group_windows", "group_id", "groups", "window_id", "windows"),
        ("group_blackouts", "group_id", "groups", "blackout_id", "blackouts"),
    ):
        op.create_table(
            table,
            sa.Column(left, _ID, nullable=False),
            sa.Column(right, _ID, nullable=False),
            sa.ForeignKeyConstraint([left], [f"{left_table}.id"], name=f"fk_{table}_{left}_{left_table}"),
            sa.ForeignKeyConstraint([right], [f"{right_table}.id"], name=f"fk_{table}_{right}_{right_table}"),
            sa.PrimaryKeyConstraint(left, right, name=f"pk_{table}"),
        )
        op.create_index(f"ix_{table}_{right}", table, [right])


def _task_reference(table: str, column: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], ["scheduled_tasks.id"], name=f"fk_{table}_{column}_scheduled_tasks")


def _occurrences() -> None:
    op.create_table(
        "alarms",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("at", Instant(), nullable=False),
        _task_reference("alarms", "task_id"),
        sa.PrimaryKeyConstraint("id", name="pk_alarms"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alarms_task_id", "alarms", ["task_id"])
    op.create_index("ix_alarms_at", "alarms", ["at"])
    op.create_table(
        "occurrence_overrides",
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("planned_for", Instant(), nullable=False),
        sa.Column("due_at", Instant()),
        sa.Column("fired", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("changed_by", _ID),
        sa.Column("changed_at", Instant(), nullable=False),
        _task_reference("occurrence_overrides", "task_id"),
        sa.PrimaryKeyConstraint("task_id", "planned_for", name="pk_occurrence_overrides"),
    )


def _dependencies() -> None:
    op.create_table(
        "task_dependencies",
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("upstream_id", _ID, nullable=False),
        sa.Column("on_ending", sa.String(10), nullable=False),
        _task_reference("task_dependencies", "task_id"),
        _task_reference("task_dependencies", "upstream_id"),
        sa.PrimaryKeyConstraint("task_id", "upstream_id", name="pk_task_dependencies"),
    )
    op.create_index("ix_task_dependencies_upstream", "task_dependencies", ["upstream_id"])
    op.create_table(
        "dependency_events",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("upstream_id", _ID, nullable=False),
        sa.Column("execution_id", _ID, nullable=False),
        sa.Column("at", Instant(), nullable=False),
        _task_reference("dependency_events", "task_id"),
        _task_reference("dependency_events", "upstream_id"),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["scheduled_task_executions.id"],
            name="fk_dependency_events_execution_id_scheduled_task_executions",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_dependency_events"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_dependency_events_task_execution", "dependency_events", ["task_id", "execution_id"], unique=True
    )


def downgrade() -> None:
    for table in (
        "dependency_events", "task_dependencies", "occurrence_overrides", "alarms", "group_blackouts",
        "group_windows", "task_blackouts", "task_windows", "blackouts", "windows",
    ):  # fmt: skip
        op.drop_table(table)
    op.drop_index("ix_device_runs_opening", "device_runs")
    op.drop_column("device_runs", "opens_at")
    for column in ("status", "last_planned_for"):
        op.drop_column("task_versions", column)
    for column in (
        "overlap_policy", "jitter_seconds", "outside_window", "last_planned_for", "planned_before", "counted_from",
        "waiting", "restricted", "overridden", "paused_until",
    ):  # fmt: skip
        op.drop_column("scheduled_tasks", column)
