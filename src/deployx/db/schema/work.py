"""Tables of what happened: the ledger of executions, deployments, device runs and their output."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, String, Table, Text, text

from deployx.db.schema.base import AUTOINCREMENT, Id, id_column, index_where, metadata, ref
from deployx.db.types import Instant

scheduled_task_executions = Table(
    "scheduled_task_executions",
    metadata,
    id_column(),
    ref("task_id", "scheduled_tasks"),
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
    index_where(
        "uq_executions_task_planned_for", "task_id", "planned_for", where="planned_for IS NOT NULL", unique=True
    ),
    index_where("uq_executions_task_cause", "task_id", "cause", where="cause IS NOT NULL", unique=True),
    index_where("ix_executions_open", "task_id", where="completed_time IS NULL"),
    Index("ix_executions_task_id", "task_id", "id"),
    **AUTOINCREMENT,
)

deployments = Table(
    "deployments",
    metadata,
    id_column(),
    Column("deployment_type", String(30), nullable=False),
    Column("deployment_name", String(200), nullable=False),
    Column("status", String(10), nullable=False),
    ref("payload_id", "payloads"),
    Column("execution_id", Id, ForeignKey("scheduled_task_executions.id"), unique=True),
    Column("run_key", String(120), nullable=False),  # what the order ids are derived from
    Column("offline_policy", String(10), nullable=False),
    Column("offline_deadline_seconds", Integer, nullable=False),
    Column("lost_after_seconds", Integer, nullable=False),
    Column("rollout", JSON(none_as_null=True)),
    Column("retry", JSON(none_as_null=True)),
    Column("work", JSON(none_as_null=True)),  # files or software as they were when it started; null for commands
    Column("supersedable", Boolean, nullable=False, server_default=text("true")),  # by a newer one of the same task
    Column("opened_wave", Integer, nullable=False, server_default=text("0")),
    Column("next_wave_at", Instant),  # when the pause between two waves ends
    Column("halted_reason", Text),  # why the rollout stopped
    Column("look_at", Instant),  # when the rollout is to be looked at, besides when a run ends
    Column("closes_at", Instant),  # when the execution's windows close
    Column("created_by", Id, ForeignKey("users.id"), nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("completed_at", Instant),
    Column("cancel_requested_at", Instant),
    Column("error_message", Text),
    index_where("ix_deployments_open", "id", where="completed_at IS NULL"),
    index_where("ix_deployments_look", "look_at", where="look_at IS NOT NULL"),
    **AUTOINCREMENT,
)

deployment_target_devices = Table(
    "deployment_target_devices",
    metadata,
    ref("deployment_id", "deployments", key=True),
    ref("device_id", "devices", key=True),
)

deployment_target_groups = Table(
    "deployment_target_groups",
    metadata,
    ref("deployment_id", "deployments", key=True),
    ref("group_id", "groups", key=True),
)

device_runs = Table(
    "device_runs",
    metadata,
    id_column(),
    ref("deployment_id", "deployments"),
    ref("device_id", "devices"),
    Column("attempt", Integer, nullable=False),
    Column("wave", Integer, nullable=False),
    Column("order_id", String(32), nullable=False),
    Column("status", String(20), nullable=False),
    Column("reason", Text),
    Column("queued_at", Instant, nullable=False),
    Column("deadline_at", Instant),
    Column("is_last", Boolean, nullable=False, server_default=text("true")),  # no later attempt on this device
    Column("waits_for", String(10)),  # device | return | window | wave | turn | retry | earlier; null: for nothing
    Column("opens_at", Instant),  # when what it waits for is expected
    Column("dispatched_at", Instant),
    Column("journal_id", String(64)),
    Column("started_at", Instant),
    Column("completed_at", Instant),
    Column("cancel_requested_at", Instant),
    Column("duration_seconds", Float),
    Column("exit_code", BigInteger),
    Column("steps", JSON(none_as_null=True)),
    Column("truncated", Boolean, nullable=False, server_default=text("false")),
    Column("reboot_required", Boolean, nullable=False, server_default=text("false")),
    Column("receipt", JSON(none_as_null=True)),
    Column("late_result", JSON(none_as_null=True)),
    Index("ix_device_runs_deployment", "deployment_id", "status", "is_last"),
    # Status first, though it is one value: else the planner walks a larger index that covers the query.
    index_where("ix_device_runs_queued", "status", "device_id", where="status = 'queued'"),
    index_where("ix_device_runs_open", "device_id", "status", where="completed_at IS NULL"),
    index_where("ix_device_runs_waiting", "status", "deadline_at", where="status = 'waiting'"),
    index_where("ix_device_runs_cancelling", "status", "cancel_requested_at", where="status = 'cancelling'"),
    index_where("ix_device_runs_opening", "status", "opens_at", where="status = 'waiting' AND opens_at IS NOT NULL"),
    Index("ix_device_runs_device", "device_id", "id"),
    **AUTOINCREMENT,
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
