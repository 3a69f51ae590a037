"""Every table of the server, with its keys and the indexes that the hot queries stand on.

Over 400 lines on purpose: the whole schema on one page is what a reader looks for.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

from deployx.db.types import Instant

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_N_label)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = BigInteger().with_variant(Integer(), "sqlite")


def _id() -> Column[int]:
    return Column("id", Id, primary_key=True, autoincrement=True)


def _ref(name: str, target: str, *, nullable: bool = False, index: bool = False, key: bool = False) -> Column[int]:
    return Column(name, Id, ForeignKey(f"{target}.id"), nullable=nullable, index=index, primary_key=key)


_AUTOINCREMENT: dict[str, Any] = {"sqlite_autoincrement": True}
"""Ids are never reused, even after the newest row is deleted: an id in a log names one thing for ever."""

# -- the installation -------------------------------------------------------------------------------------------

installation = Table(
    "installation",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("installation_id", String(32), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("created_at", Instant, nullable=False),
)

replicas = Table(
    "replicas",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("lease_until", Instant, nullable=False),
)

# -- people -----------------------------------------------------------------------------------------------------

users = Table(
    "users",
    metadata,
    _id(),
    Column("username", String(200), nullable=False),
    Column("password_hash", String(200), nullable=False),
    Column("role", String(20), nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("deleted_at", Instant),
    Index(
        "uq_users_username_live",
        "username",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
    **_AUTOINCREMENT,
)

access_tokens = Table(
    "access_tokens",
    metadata,
    _id(),
    _ref("user_id", "users", index=True),
    Column("kind", String(10), nullable=False),  # session | api
    Column("name", String(200)),
    Column("token_hash", LargeBinary(32), nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("last_used_at", Instant),
    **_AUTOINCREMENT,
)

login_failures = Table(
    "login_failures",
    metadata,
    _id(),
    Column("account", String(200), nullable=False),
    Column("address", String(64), nullable=False),
    Column("at", Instant, nullable=False),
    Index("ix_login_failures_account_address_at", "account", "address", "at"),
    **_AUTOINCREMENT,
)

audit_events = Table(
    "audit_events",
    metadata,
    _id(),
    Column("at", Instant, nullable=False),
    Column("user_id", Id),
    Column("action", String(40), nullable=False),
    Column("object_type", String(40), nullable=False),
    Column("object_id", Id),
    Column("before", JSON(none_as_null=True)),
    Column("after", JSON(none_as_null=True)),
    Column("address", String(64)),
    Column("request_id", String(64)),
    Index("ix_audit_events_object", "object_type", "object_id"),
    Index("ix_audit_events_user", "user_id"),
    **_AUTOINCREMENT,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    _ref("user_id", "users", key=True),
    Column("key", String(200), primary_key=True),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("status", Integer),
    Column("headers", JSON(none_as_null=True)),
    Column("body", LargeBinary),
    Column("created_at", Instant, nullable=False, index=True),
)

# -- the fleet --------------------------------------------------------------------------------------------------

groups = Table(
    "groups",
    metadata,
    _id(),
    Column("name", String(200), nullable=False),
    Column("description", String(2000), nullable=False),
    Column("version", Integer, nullable=False, server_default=text("1")),
    Column("created_at", Instant, nullable=False),
    Column("deleted_at", Instant),
    Index(
        "uq_groups_name_live",
        "name",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
    **_AUTOINCREMENT,
)

devices = Table(
    "devices",
    metadata,
    _id(),
    Column("name", String(220), nullable=False),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("os", String(20)),
    Column("os_version", String(200)),
    Column("arch", String(40)),
    Column("shells", JSON(none_as_null=True), nullable=False),
    Column("agent_version", String(40)),
    Column("facts", JSON(none_as_null=True), nullable=False),
    Column("labels", JSON(none_as_null=True), nullable=False),
    Column("status", String(10), nullable=False),  # online | offline
    Column("last_seen", Instant),
    Column("replica_id", String(32)),
    Column("session_id", String(32)),
    Column("journal_id", String(64)),
    Column("version", Integer, nullable=False, server_default=text("1")),
    Column("created_at", Instant, nullable=False),
    Column("deleted_at", Instant),
    Index(
        "uq_devices_name_live",
        "name",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
    Index("ix_devices_replica", "replica_id"),
    **_AUTOINCREMENT,
)

group_members = Table(
    "group_members",
    metadata,
    _ref("group_id", "groups", key=True),
    _ref("device_id", "devices", key=True),
    Index("ix_group_members_device", "device_id", "group_id"),
)

grants = Table(
    "grants",
    metadata,
    _ref("group_id", "groups", key=True),
    _ref("user_id", "users", key=True),
    Column("permission", String(10), nullable=False),  # view | run | manage
    Index("ix_grants_user", "user_id", "group_id"),
)

activation_keys = Table(
    "activation_keys",
    metadata,
    _id(),
    Column("key_hash", LargeBinary(32), nullable=False, unique=True),
    Column("max_uses", Integer, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("expires_at", Instant, nullable=False),
    _ref("created_by", "users"),
    Column("created_at", Instant, nullable=False),
    **_AUTOINCREMENT,
)

activation_key_groups = Table(
    "activation_key_groups",
    metadata,
    _ref("activation_key_id", "activation_keys", key=True),
    _ref("group_id", "groups", key=True),
)

# -- the spine --------------------------------------------------------------------------------------------------

payloads = Table(
    "payloads",
    metadata,
    _id(),
    Column("kind", String(30), nullable=False),  # command
    Column("body", JSON(none_as_null=True), nullable=False),
    **_AUTOINCREMENT,
)
"""What is run, immutable: an edit of a task makes a new row, so work under way keeps what it started with."""

scheduled_tasks = Table(
    "scheduled_tasks",
    metadata,
    _id(),
    Column("task_name", String(200), nullable=False),
    Column("task_type", String(30), nullable=False),
    Column("status", String(10), nullable=False),
    Column("version", Integer, nullable=False),
    _ref("payload_id", "payloads"),
    Column("scheduled_time", Instant),
    Column("recurrence_type", String(10), nullable=False),
    Column("recurrence_config", Text),  # the normalised JSON text: the key of the clock's cache of parsed values
    Column("timezone", String(64), nullable=False),
    Column("misfire_grace_seconds", Integer, nullable=False),
    Column("catch_up", String(10), nullable=False),
    Column("max_instances", Integer, nullable=False),
    Column("offline_policy", String(10), nullable=False),
    Column("offline_deadline_seconds", Integer, nullable=False),
    Column("lost_after_seconds", Integer, nullable=False),
    Column("pause_on_failure", Boolean, nullable=False),
    Column("overlap_policy", String(20), nullable=False, server_default=text("'skip'")),
    Column("jitter_seconds", Integer, nullable=False, server_default=text("0")),
    Column("outside_window", String(10), nullable=False, server_default=text("'delay'")),
    Column("labels", JSON(none_as_null=True), nullable=False),
    Column("last_planned_for", Instant),  # where max_occurrences ends the recurrence
    Column("planned_before", Integer, nullable=False, server_default=text("0")),  # instants planned before counted_from
    Column("counted_from", Instant),  # null: from the creation
    Column("waiting", Boolean, nullable=False, server_default=text("false")),  # has queued or delayed executions
    Column("restricted", Boolean, nullable=False, server_default=text("false")),  # has windows or blackouts
    Column("overridden", Boolean, nullable=False, server_default=text("false")),  # has occurrence overrides
    Column("next_planned_for", Instant),
    Column("next_execution", Instant),
    Column("execution_count", Integer, nullable=False),
    Column("last_execution", Instant),
    Column("last_result", JSON(none_as_null=True)),
    Column("error_message", Text),
    _ref("created_by", "users", index=True),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("paused_reason", String(2000)),
    Column("paused_until", Instant),
    Column("deleted_at", Instant),
    Index(
        "ix_scheduled_tasks_due",
        "next_execution",
        sqlite_where=text("next_execution IS NOT NULL"),
        postgresql_where=text("next_execution IS NOT NULL"),
    ),
    Index("ix_scheduled_tasks_status", "status", "id"),
    **_AUTOINCREMENT,
)

task_target_devices = Table(
    "task_target_devices",
    metadata,
    _ref("task_id", "scheduled_tasks", key=True),
    _ref("device_id", "devices", key=True),
    Index("ix_task_target_devices_device", "device_id", "task_id"),
)

task_target_groups = Table(
    "task_target_groups",
    metadata,
    _ref("task_id", "scheduled_tasks", key=True),
    _ref("group_id", "groups", key=True),
    Index("ix_task_target_groups_group", "group_id", "task_id"),
)

task_versions = Table(
    "task_versions",
    metadata,
    _ref("task_id", "scheduled_tasks", key=True),
    Column("version", Integer, primary_key=True),
    Column("effective_at", Instant, nullable=False),
    Column("changed_by", Id),
    Column("action", String(20), nullable=False),  # create | update | pause | resume | cancel | fail | delete
    Column("definition", JSON(none_as_null=True), nullable=False),
    Column("status", String(10), nullable=False, server_default=text("'pending'")),
    Column("last_planned_for", Instant),
)

alarms = Table(
    "alarms",
    metadata,
    _id(),
    _ref("task_id", "scheduled_tasks", index=True),
    Column("at", Instant, nullable=False, index=True),
    **_AUTOINCREMENT,
)
"""When the clock is to look at a task for another reason than its next occurrence; it deletes those it has seen."""

occurrence_overrides = Table(
    "occurrence_overrides",
    metadata,
    _ref("task_id", "scheduled_tasks", key=True),
    Column("planned_for", Instant, primary_key=True),
    Column("due_at", Instant),  # null: skipped by hand
    Column(
        "fired", Boolean, nullable=False, server_default=text("false")
    ),  # moved ahead of its instant, and accounted for
    Column("changed_by", Id),  # null: kept from an earlier definition, whose jitter had not run out
    Column("changed_at", Instant, nullable=False),
)

task_dependencies = Table(
    "task_dependencies",
    metadata,
    _ref("task_id", "scheduled_tasks", key=True),
    _ref("upstream_id", "scheduled_tasks", key=True),
    Column("on_ending", String(10), nullable=False),  # success | failure | completion
    Index("ix_task_dependencies_upstream", "upstream_id"),
)

dependency_events = Table(
    "dependency_events",
    metadata,
    _id(),
    _ref("task_id", "scheduled_tasks"),
    _ref("upstream_id", "scheduled_tasks"),
    _ref("execution_id", "scheduled_task_executions"),
    Column("at", Instant, nullable=False),
    Index("uq_dependency_events_task_execution", "task_id", "execution_id", unique=True),
    **_AUTOINCREMENT,
)
"""An upstream ended as its dependent asks; the clock uses them up when it fires the dependent."""

windows = Table(
    "windows",
    metadata,
    _id(),
    Column("name", String(200), nullable=False, unique=True),
    Column("days_of_week", JSON(none_as_null=True), nullable=False),
    Column("start", String(8), nullable=False),
    Column("end", String(8), nullable=False),
    Column("timezone", String(64), nullable=False),
    Column("version", Integer, nullable=False, server_default=text("1")),
    _ref("created_by", "users"),
    Column("created_at", Instant, nullable=False),
    **_AUTOINCREMENT,
)

blackouts = Table(
    "blackouts",
    metadata,
    _id(),
    Column("name", String(200), nullable=False, unique=True),
    Column("from_at", Instant),
    Column("to_at", Instant),
    Column("dates", JSON(none_as_null=True)),
    Column("timezone", String(64), nullable=False),
    Column("version", Integer, nullable=False, server_default=text("1")),
    _ref("created_by", "users"),
    Column("created_at", Instant, nullable=False),
    **_AUTOINCREMENT,
)

task_windows = Table(
    "task_windows",
    metadata,
    _ref("task_id", "scheduled_tasks", key=True),
    _ref("window_id", "windows", key=True, index=True),
)

task_blackouts = Table(
    "task_blackouts",
    metadata,
    _ref("task_id", "scheduled_tasks", key=True),
    _ref("blackout_id", "blackouts", key=True, index=True),
)

group_windows = Table(
    "group_windows",
    metadata,
    _ref("group_id", "groups", key=True),
    _ref("window_id", "windows", key=True, index=True),
)

group_blackouts = Table(
    "group_blackouts",
    metadata,
    _ref("group_id", "groups", key=True),
    _ref("blackout_id", "blackouts", key=True, index=True),
)

scheduled_task_executions = Table(
    "scheduled_task_executions",
    metadata,
    _id(),
    _ref("task_id", "scheduled_tasks"),
    Column("task_version", Integer, nullable=False),
    Column("trigger", String(10), nullable=False),  # schedule | catch_up | manual | dependency | retry
    Column("planned_for", Instant),
    Column("covers_until", Instant),
    Column("occurrences", Integer, nullable=False, server_default=text("1")),
    Column("due_at", Instant),
    Column("cause", String(64)),
    Column("status", String(10), nullable=False),
    Column("reason", String(20)),
    Column("execution_time", Instant),
    Column("completed_time", Instant),
    Column("result", JSON(none_as_null=True)),
    Column("error_message", Text),
    Column("requested_by", Id),
    Index(
        "uq_executions_task_planned_for",
        "task_id",
        "planned_for",
        unique=True,
        sqlite_where=text("planned_for IS NOT NULL"),
        postgresql_where=text("planned_for IS NOT NULL"),
    ),
    Index(
        "uq_executions_task_cause",
        "task_id",
        "cause",
        unique=True,
        sqlite_where=text("cause IS NOT NULL"),
        postgresql_where=text("cause IS NOT NULL"),
    ),
    Index(
        "ix_executions_open",
        "task_id",
        sqlite_where=text("completed_time IS NULL"),
        postgresql_where=text("completed_time IS NULL"),
    ),
    Index("ix_executions_task_id", "task_id", "id"),
    **_AUTOINCREMENT,
)

deployments = Table(
    "deployments",
    metadata,
    _id(),
    Column("deployment_type", String(30), nullable=False),
    Column("deployment_name", String(200), nullable=False),
    Column("status", String(10), nullable=False),
    _ref("payload_id", "payloads"),
    Column("execution_id", Id, ForeignKey("scheduled_task_executions.id"), unique=True),
    Column("run_key", String(120), nullable=False),  # what the order ids are derived from
    Column("offline_policy", String(10), nullable=False),
    Column("offline_deadline_seconds", Integer, nullable=False),
    Column("lost_after_seconds", Integer, nullable=False),
    Column("created_by", Id, ForeignKey("users.id"), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("completed_at", Instant),
    Column("cancel_requested_at", Instant),
    Column("error_message", Text),
    Index(
        "ix_deployments_open",
        "id",
        sqlite_where=text("completed_at IS NULL"),
        postgresql_where=text("completed_at IS NULL"),
    ),
    **_AUTOINCREMENT,
)

deployment_target_devices = Table(
    "deployment_target_devices",
    metadata,
    _ref("deployment_id", "deployments", key=True),
    _ref("device_id", "devices", key=True),
)

deployment_target_groups = Table(
    "deployment_target_groups",
    metadata,
    _ref("deployment_id", "deployments", key=True),
    _ref("group_id", "groups", key=True),
)

device_runs = Table(
    "device_runs",
    metadata,
    _id(),
    _ref("deployment_id", "deployments"),
    _ref("device_id", "devices"),
    Column("attempt", Integer, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("order_id", String(32), nullable=False),
    Column("status", String(20), nullable=False),
    Column("reason", Text),
    Column("queued_at", Instant, nullable=False),
    Column("deadline_at", Instant),
    Column("opens_at", Instant),  # waits for a window of the device's groups
    Column("dispatched_at", Instant),
    Column("journal_id", String(64)),
    Column("started_at", Instant),
    Column("completed_at", Instant),
    Column("cancel_requested_at", Instant),
    Column("duration_seconds", Float),
    Column("exit_code", BigInteger),
    Column("steps", JSON(none_as_null=True)),
    Column("truncated", Boolean, nullable=False, server_default=text("false")),
    Column("receipt", JSON(none_as_null=True)),
    Column("late_result", JSON(none_as_null=True)),
    Index("ix_device_runs_deployment", "deployment_id", "status"),
    Index(
        "ix_device_runs_queued",
        "status",  # first, though it is one value: else the planner walks a larger index that covers the query
        "device_id",
        sqlite_where=text("status = 'queued'"),
        postgresql_where=text("status = 'queued'"),
    ),
    Index(
        "ix_device_runs_open",
        "device_id",
        "status",
        sqlite_where=text("completed_at IS NULL"),
        postgresql_where=text("completed_at IS NULL"),
    ),
    Index(
        "ix_device_runs_waiting",
        "status",
        "deadline_at",
        sqlite_where=text("status = 'waiting'"),
        postgresql_where=text("status = 'waiting'"),
    ),
    Index(
        "ix_device_runs_cancelling",
        "status",
        "cancel_requested_at",
        sqlite_where=text("status = 'cancelling'"),
        postgresql_where=text("status = 'cancelling'"),
    ),
    Index(
        "ix_device_runs_opening",
        "status",
        "opens_at",
        sqlite_where=text("status = 'waiting' AND opens_at IS NOT NULL"),
        postgresql_where=text("status = 'waiting' AND opens_at IS NOT NULL"),
    ),
    Index("ix_device_runs_device", "device_id", "id"),
    **_AUTOINCREMENT,
)

output_chunks = Table(
    "output_chunks",
    metadata,
    Column("run_id", Id, ForeignKey("device_runs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("step", Integer, nullable=False),
    Column("stream", String(6), nullable=False),
    Column("at", Instant, nullable=False),
    Column("text", Text, nullable=False),
)
