"""Tables of what is planned: tasks with their targets and versions, calendars, dependencies, single occurrences."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Index, Integer, String, Table, Text, text

from deployx.db.schema.base import AUTOINCREMENT, Id, id_column, index_where, metadata, ref
from deployx.db.types import Instant

payloads = Table(
    "payloads",
    metadata,
    id_column(),
    Column("kind", String(30), nullable=False),  # command | software_deployment | file_deployment
    Column("body", JSON(none_as_null=True), nullable=False),
    **AUTOINCREMENT,
)
"""What is run, immutable: an edit of a task makes a new row, so work under way keeps what it started with."""

scheduled_tasks = Table(
    "scheduled_tasks",
    metadata,
    id_column(),
    Column("task_name", String(200), nullable=False),
    Column("task_type", String(30), nullable=False),
    Column("status", String(10), nullable=False),
    Column("version", Integer, nullable=False),
    ref("payload_id", "payloads"),
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
    Column("rollout", JSON(none_as_null=True)),  # null: all devices at once, no failure allowed
    Column("retry", JSON(none_as_null=True)),  # null: one attempt
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
    ref("created_by", "users", index=True),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("paused_reason", String(2000)),
    Column("paused_until", Instant),
    Column("deleted_at", Instant),
    index_where("ix_scheduled_tasks_due", "next_execution", where="next_execution IS NOT NULL"),
    Index("ix_scheduled_tasks_status", "status", "id"),
    **AUTOINCREMENT,
)

task_target_devices = Table(
    "task_target_devices",
    metadata,
    ref("task_id", "scheduled_tasks", key=True),
    ref("device_id", "devices", key=True),
    Index("ix_task_target_devices_device", "device_id", "task_id"),
)

task_target_groups = Table(
    "task_target_groups",
    metadata,
    ref("task_id", "scheduled_tasks", key=True),
    ref("group_id", "groups", key=True),
    Index("ix_task_target_groups_group", "group_id", "task_id"),
)

task_versions = Table(
    "task_versions",
    metadata,
    ref("task_id", "scheduled_tasks", key=True),
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
    id_column(),
    ref("task_id", "scheduled_tasks", index=True),
    Column("at", Instant, nullable=False, index=True),
    **AUTOINCREMENT,
)
"""When the clock is to look at a task for another reason than its next occurrence; it deletes those it has seen."""

occurrence_overrides = Table(
    "occurrence_overrides",
    metadata,
    ref("task_id", "scheduled_tasks", key=True),
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
    ref("task_id", "scheduled_tasks", key=True),
    ref("upstream_id", "scheduled_tasks", key=True),
    Column("on_ending", String(10), nullable=False),  # success | failure | completion
    Index("ix_task_dependencies_upstream", "upstream_id"),
)

dependency_events = Table(
    "dependency_events",
    metadata,
    id_column(),
    ref("task_id", "scheduled_tasks"),
    ref("upstream_id", "scheduled_tasks"),
    ref("execution_id", "scheduled_task_executions"),
    Column("at", Instant, nullable=False),
    Index("uq_dependency_events_task_execution", "task_id", "execution_id", unique=True),
    **AUTOINCREMENT,
)
"""An upstream ended as its dependent asks; the clock uses them up when it fires the dependent."""

windows = Table(
    "windows",
    metadata,
    id_column(),
    Column("name", String(200), nullable=False, unique=True),
    Column("days_of_week", JSON(none_as_null=True), nullable=False),
    Column("start", String(8), nullable=False),
    Column("end", String(8), nullable=False),
    Column("timezone", String(64), nullable=False),
    Column("version", Integer, nullable=False, server_default=text("1")),
    ref("created_by", "users"),
    Column("created_at", Instant, nullable=False),
    **AUTOINCREMENT,
)

blackouts = Table(
    "blackouts",
    metadata,
    id_column(),
    Column("name", String(200), nullable=False, unique=True),
    Column("from_at", Instant),
    Column("to_at", Instant),
    Column("dates", JSON(none_as_null=True)),
    Column("timezone", String(64), nullable=False),
    Column("version", Integer, nullable=False, server_default=text("1")),
    ref("created_by", "users"),
    Column("created_at", Instant, nullable=False),
    **AUTOINCREMENT,
)

task_windows = Table(
    "task_windows",
    metadata,
    ref("task_id", "scheduled_tasks", key=True),
    ref("window_id", "windows", key=True, index=True),
)

task_blackouts = Table(
    "task_blackouts",
    metadata,
    ref("task_id", "scheduled_tasks", key=True),
    ref("blackout_id", "blackouts", key=True, index=True),
)

group_windows = Table(
    "group_windows",
    metadata,
    ref("group_id", "groups", key=True),
    ref("window_id", "windows", key=True, index=True),
)

group_blackouts = Table(
    "group_blackouts",
    metadata,
    ref("group_id", "groups", key=True),
    ref("blackout_id", "blackouts", key=True, index=True),
)
