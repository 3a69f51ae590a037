"""The first schema, as it landed: later revisions change it, so it never reads the present one.

Over 400 lines because it is the whole schema of that day.
"""

import sqlalchemy as sa
from alembic import op

from deployx.db.types import Instant

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _people()
    _accounts()
    _fleet()
    _memberships()
    _tasks()
    _ledger()
    _links()
    _deployments()
    _runs()


def _people() -> None:
    op.create_table(
        "audit_events",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("user_id", _ID, nullable=True),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("object_type", sa.String(length=40), nullable=False),
        sa.Column("object_id", _ID, nullable=True),
        sa.Column("before", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("after", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_events_object", "audit_events", ["object_type", "object_id"], unique=False)
    op.create_index("ix_audit_events_user", "audit_events", ["user_id"], unique=False)
    op.create_table(
        "installation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("installation_id", sa.String(length=32), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_installation")),
    )
    op.create_table(
        "login_failures",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("account", sa.String(length=200), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_failures")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_login_failures_account_address_at", "login_failures", ["account", "address", "at"], unique=False
    )
    op.create_table(
        "replicas",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("lease_until", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replicas")),
    )


def _accounts() -> None:
    op.create_table(
        "users",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("username", sa.String(length=200), nullable=False),
        sa.Column("password_hash", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("deleted_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_users_username_live",
        "users",
        ["username"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "access_tokens",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("kind", sa.String(length=10), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("token_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.Column("last_used_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_access_tokens_user_id_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_tokens")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_access_tokens_token_hash")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_access_tokens_user_id"), "access_tokens", ["user_id"], unique=False)
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("headers", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_idempotency_keys_user_id_users")),
        sa.PrimaryKeyConstraint("user_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index(op.f("ix_idempotency_keys_created_at"), "idempotency_keys", ["created_at"], unique=False)


def _fleet() -> None:
    op.create_table(
        "devices",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=220), nullable=False),
        sa.Column("public_key", sa.LargeBinary(length=32), nullable=False),
        sa.Column("os", sa.String(length=20), nullable=True),
        sa.Column("os_version", sa.String(length=200), nullable=True),
        sa.Column("arch", sa.String(length=40), nullable=True),
        sa.Column("shells", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("agent_version", sa.String(length=40), nullable=True),
        sa.Column("facts", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("labels", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("last_seen", Instant(), nullable=True),
        sa.Column("replica_id", sa.String(length=32), nullable=True),
        sa.Column("session_id", sa.String(length=32), nullable=True),
        sa.Column("journal_id", sa.String(length=64), nullable=True),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("deleted_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_devices")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_devices_replica", "devices", ["replica_id"], unique=False)
    op.create_index(
        "uq_devices_name_live",
        "devices",
        ["name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )
    op.create_table(
        "groups",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.String(length=2000), nullable=False),
        sa.Column("version", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("deleted_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_groups")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_groups_name_live",
        "groups",
        ["name"],
        unique=True,
        sqlite_where=sa.text("deleted_at IS NULL"),
        postgresql_where=sa.text("deleted_at IS NULL"),
    )


def _memberships() -> None:
    op.create_table(
        "activation_keys",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("key_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("max_uses", sa.Integer(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=False),
        sa.Column("created_by", _ID, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_activation_keys_created_by_users")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_activation_keys")),
        sa.UniqueConstraint("key_hash", name=op.f("uq_activation_keys_key_hash")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "grants",
        sa.Column("group_id", _ID, nullable=False),
        sa.Column("user_id", _ID, nullable=False),
        sa.Column("permission", sa.String(length=10), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name=op.f("fk_grants_group_id_groups")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_grants_user_id_users")),
        sa.PrimaryKeyConstraint("group_id", "user_id", name=op.f("pk_grants")),
    )
    op.create_index("ix_grants_user", "grants", ["user_id", "group_id"], unique=False)
    op.create_table(
        "group_members",
        sa.Column("group_id", _ID, nullable=False),
        sa.Column("device_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_group_members_device_id_devices")),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name=op.f("fk_group_members_group_id_groups")),
        sa.PrimaryKeyConstraint("group_id", "device_id", name=op.f("pk_group_members")),
    )
    op.create_index("ix_group_members_device", "group_members", ["device_id", "group_id"], unique=False)
    op.create_table(
        "activation_key_groups",
        sa.Column("activation_key_id", _ID, nullable=False),
        sa.Column("group_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["activation_key_id"],
            ["activation_keys.id"],
            name=op.f("fk_activation_key_groups_activation_key_id_activation_keys"),
        ),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name=op.f("fk_activation_key_groups_group_id_groups")),
        sa.PrimaryKeyConstraint("activation_key_id", "group_id", name=op.f("pk_activation_key_groups")),
    )


def _tasks() -> None:
    op.create_table(
        "payloads",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=30), nullable=False),
        sa.Column("body", sa.JSON(none_as_null=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payloads")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "scheduled_tasks",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("task_name", sa.String(length=200), nullable=False),
        sa.Column("task_type", sa.String(length=30), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("payload_id", _ID, nullable=False),
        sa.Column("scheduled_time", Instant(), nullable=True),
        sa.Column("recurrence_type", sa.String(length=10), nullable=False),
        sa.Column("recurrence_config", sa.Text(), nullable=True),
        sa.Column("timezone", sa.String(length=64), nullable=False),
        sa.Column("misfire_grace_seconds", sa.Integer(), nullable=False),
        sa.Column("catch_up", sa.String(length=10), nullable=False),
        sa.Column("max_instances", sa.Integer(), nullable=False),
        sa.Column("offline_policy", sa.String(length=10), nullable=False),
        sa.Column("offline_deadline_seconds", sa.Integer(), nullable=False),
        sa.Column("lost_after_seconds", sa.Integer(), nullable=False),
        sa.Column("pause_on_failure", sa.Boolean(), nullable=False),
        sa.Column("labels", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("next_planned_for", Instant(), nullable=True),
        sa.Column("next_execution", Instant(), nullable=True),
        sa.Column("execution_count", sa.Integer(), nullable=False),
        sa.Column("last_execution", Instant(), nullable=True),
        sa.Column("last_result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_by", _ID, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("updated_at", Instant(), nullable=False),
        sa.Column("paused_reason", sa.String(length=2000), nullable=True),
        sa.Column("deleted_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_scheduled_tasks_created_by_users")),
        sa.ForeignKeyConstraint(["payload_id"], ["payloads.id"], name=op.f("fk_scheduled_tasks_payload_id_payloads")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scheduled_tasks")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_scheduled_tasks_created_by"), "scheduled_tasks", ["created_by"], unique=False)
    op.create_index(
        "ix_scheduled_tasks_due",
        "scheduled_tasks",
        ["next_execution"],
        unique=False,
        sqlite_where=sa.text("next_execution IS NOT NULL"),
        postgresql_where=sa.text("next_execution IS NOT NULL"),
    )
    op.create_index("ix_scheduled_tasks_status", "scheduled_tasks", ["status", "id"], unique=False)


def _ledger() -> None:
    op.create_table(
        "scheduled_task_executions",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("task_version", sa.Integer(), nullable=False),
        sa.Column("trigger", sa.String(length=10), nullable=False),
        sa.Column("planned_for", Instant(), nullable=True),
        sa.Column("covers_until", Instant(), nullable=True),
        sa.Column("occurrences", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column("due_at", Instant(), nullable=True),
        sa.Column("cause", sa.String(length=64), nullable=True),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("reason", sa.String(length=20), nullable=True),
        sa.Column("execution_time", Instant(), nullable=True),
        sa.Column("completed_time", Instant(), nullable=True),
        sa.Column("result", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("requested_by", _ID, nullable=True),
        sa.ForeignKeyConstraint(
            ["task_id"], ["scheduled_tasks.id"], name=op.f("fk_scheduled_task_executions_task_id_scheduled_tasks")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scheduled_task_executions")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_executions_open",
        "scheduled_task_executions",
        ["task_id"],
        unique=False,
        sqlite_where=sa.text("completed_time IS NULL"),
        postgresql_where=sa.text("completed_time IS NULL"),
    )
    op.create_index("ix_executions_task_id", "scheduled_task_executions", ["task_id", "id"], unique=False)
    op.create_index(
        "uq_executions_task_cause",
        "scheduled_task_executions",
        ["task_id", "cause"],
        unique=True,
        sqlite_where=sa.text("cause IS NOT NULL"),
        postgresql_where=sa.text("cause IS NOT NULL"),
    )
    op.create_index(
        "uq_executions_task_planned_for",
        "scheduled_task_executions",
        ["task_id", "planned_for"],
        unique=True,
        sqlite_where=sa.text("planned_for IS NOT NULL"),
        postgresql_where=sa.text("planned_for IS NOT NULL"),
    )


def _links() -> None:
    op.create_table(
        "task_target_devices",
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("device_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_task_target_devices_device_id_devices")),
        sa.ForeignKeyConstraint(
            ["task_id"], ["scheduled_tasks.id"], name=op.f("fk_task_target_devices_task_id_scheduled_tasks")
        ),
        sa.PrimaryKeyConstraint("task_id", "device_id", name=op.f("pk_task_target_devices")),
    )
    op.create_index("ix_task_target_devices_device", "task_target_devices", ["device_id", "task_id"], unique=False)
    op.create_table(
        "task_target_groups",
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("group_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name=op.f("fk_task_target_groups_group_id_groups")),
        sa.ForeignKeyConstraint(
            ["task_id"], ["scheduled_tasks.id"], name=op.f("fk_task_target_groups_task_id_scheduled_tasks")
        ),
        sa.PrimaryKeyConstraint("task_id", "group_id", name=op.f("pk_task_target_groups")),
    )
    op.create_index("ix_task_target_groups_group", "task_target_groups", ["group_id", "task_id"], unique=False)
    op.create_table(
        "task_versions",
        sa.Column("task_id", _ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("effective_at", Instant(), nullable=False),
        sa.Column("changed_by", _ID, nullable=True),
        sa.Column("action", sa.String(length=20), nullable=False),
        sa.Column("definition", sa.JSON(none_as_null=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["scheduled_tasks.id"], name=op.f("fk_task_versions_task_id_scheduled_tasks")
        ),
        sa.PrimaryKeyConstraint("task_id", "version", name=op.f("pk_task_versions")),
    )


def _deployments() -> None:
    op.create_table(
        "deployments",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("deployment_type", sa.String(length=30), nullable=False),
        sa.Column("deployment_name", sa.String(length=200), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("payload_id", _ID, nullable=False),
        sa.Column("execution_id", _ID, nullable=True),
        sa.Column("run_key", sa.String(length=120), nullable=False),
        sa.Column("offline_policy", sa.String(length=10), nullable=False),
        sa.Column("offline_deadline_seconds", sa.Integer(), nullable=False),
        sa.Column("lost_after_seconds", sa.Integer(), nullable=False),
        sa.Column("created_by", _ID, nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("started_at", Instant(), nullable=True),
        sa.Column("completed_at", Instant(), nullable=True),
        sa.Column("cancel_requested_at", Instant(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("fk_deployments_created_by_users")),
        sa.ForeignKeyConstraint(
            ["execution_id"],
            ["scheduled_task_executions.id"],
            name=op.f("fk_deployments_execution_id_scheduled_task_executions"),
        ),
        sa.ForeignKeyConstraint(["payload_id"], ["payloads.id"], name=op.f("fk_deployments_payload_id_payloads")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployments")),
        sa.UniqueConstraint("execution_id", name=op.f("uq_deployments_execution_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_deployments_open",
        "deployments",
        ["id"],
        unique=False,
        sqlite_where=sa.text("completed_at IS NULL"),
        postgresql_where=sa.text("completed_at IS NULL"),
    )
    op.create_table(
        "deployment_target_devices",
        sa.Column("deployment_id", _ID, nullable=False),
        sa.Column("device_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.id"], name=op.f("fk_deployment_target_devices_deployment_id_deployments")
        ),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.id"], name=op.f("fk_deployment_target_devices_device_id_devices")
        ),
        sa.PrimaryKeyConstraint("deployment_id", "device_id", name=op.f("pk_deployment_target_devices")),
    )
    op.create_table(
        "deployment_target_groups",
        sa.Column("deployment_id", _ID, nullable=False),
        sa.Column("group_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.id"], name=op.f("fk_deployment_target_groups_deployment_id_deployments")
        ),
        sa.ForeignKeyConstraint(["group_id"], ["groups.id"], name=op.f("fk_deployment_target_groups_group_id_groups")),
        sa.PrimaryKeyConstraint("deployment_id", "group_id", name=op.f("pk_deployment_target_groups")),
    )


def _runs() -> None:
    op.create_table(
        "device_runs",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("deployment_id", _ID, nullable=False),
        sa.Column("device_id", _ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("order_id", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("queued_at", Instant(), nullable=False),
        sa.Column("deadline_at", Instant(), nullable=True),
        sa.Column("dispatched_at", Instant(), nullable=True),
        sa.Column("journal_id", sa.String(length=64), nullable=True),
        sa.Column("started_at", Instant(), nullable=True),
        sa.Column("completed_at", Instant(), nullable=True),
        sa.Column("cancel_requested_at", Instant(), nullable=True),
        sa.Column("duration_seconds", sa.Float(), nullable=True),
        sa.Column("exit_code", sa.BigInteger(), nullable=True),
        sa.Column("steps", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("truncated", sa.Boolean(), server_default=sa.text("(false)"), nullable=False),
        sa.Column("receipt", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("late_result", sa.JSON(none_as_null=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["deployment_id"], ["deployments.id"], name=op.f("fk_device_runs_deployment_id_deployments")
        ),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_device_runs_device_id_devices")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device_runs")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_device_runs_cancelling",
        "device_runs",
        ["status", "cancel_requested_at"],
        unique=False,
        sqlite_where=sa.text("status = 'cancelling'"),
        postgresql_where=sa.text("status = 'cancelling'"),
    )
    op.create_index("ix_device_runs_deployment", "device_runs", ["deployment_id", "status"], unique=False)
    op.create_index("ix_device_runs_device", "device_runs", ["device_id", "id"], unique=False)
    op.create_index(
        "ix_device_runs_open",
        "device_runs",
        ["device_id", "status"],
        unique=False,
        sqlite_where=sa.text("completed_at IS NULL"),
        postgresql_where=sa.text("completed_at IS NULL"),
    )
    op.create_index(
        "ix_device_runs_queued",
        "device_runs",
        ["status", "device_id"],
        unique=False,
        sqlite_where=sa.text("status = 'queued'"),
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index(
        "ix_device_runs_waiting",
        "device_runs",
        ["status", "deadline_at"],
        unique=False,
        sqlite_where=sa.text("status = 'waiting'"),
        postgresql_where=sa.text("status = 'waiting'"),
    )
    op.create_table(
        "output_chunks",
        sa.Column("run_id", _ID, nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("stream", sa.String(length=6), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["device_runs.id"], name=op.f("fk_output_chunks_run_id_device_runs")),
        sa.PrimaryKeyConstraint("run_id", "seq", name=op.f("pk_output_chunks")),
    )


def downgrade() -> None:
    for name in (
        "output_chunks",
        "device_runs",
        "deployment_target_groups",
        "deployment_target_devices",
        "deployments",
        "task_versions",
        "task_target_groups",
        "task_target_devices",
        "scheduled_task_executions",
        "activation_key_groups",
        "scheduled_tasks",
        "idempotency_keys",
        "group_members",
        "grants",
        "activation_keys",
        "access_tokens",
        "users",
        "replicas",
        "payloads",
        "login_failures",
        "installation",
        "groups",
        "devices",
        "audit_events",
    ):
        op.drop_table(name)
