"""Tables of the fleet: devices, their groups, who may do what with those, and how devices enrol."""

from __future__ import annotations

from sqlalchemy import JSON, Column, Index, Integer, LargeBinary, String, Table, text

from deployx.db.schema.base import AUTOINCREMENT, id_column, index_where, metadata, ref
from deployx.db.types import Instant

groups = Table(
    "groups",
    metadata,
    id_column(),
    Column("name", String(200), nullable=False),
    Column("description", String(2000), nullable=False),
    Column("version", Integer, nullable=False, server_default=text("1")),
    Column("created_at", Instant, nullable=False),
    Column("deleted_at", Instant),
    index_where("uq_groups_name_live", "name", where="deleted_at IS NULL", unique=True),
    **AUTOINCREMENT,
)

devices = Table(
    "devices",
    metadata,
    id_column(),
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
    index_where("uq_devices_name_live", "name", where="deleted_at IS NULL", unique=True),
    Index("ix_devices_replica", "replica_id"),
    **AUTOINCREMENT,
)

group_members = Table(
    "group_members",
    metadata,
    ref("group_id", "groups", key=True),
    ref("device_id", "devices", key=True),
    Index("ix_group_members_device", "device_id", "group_id"),
)

grants = Table(
    "grants",
    metadata,
    ref("group_id", "groups", key=True),
    ref("user_id", "users", key=True),
    Column("permission", String(10), nullable=False),  # view | run | manage
    Index("ix_grants_user", "user_id", "group_id"),
)

activation_keys = Table(
    "activation_keys",
    metadata,
    id_column(),
    Column("key_hash", LargeBinary(32), nullable=False, unique=True),
    Column("max_uses", Integer, nullable=False),
    Column("uses", Integer, nullable=False),
    Column("expires_at", Instant, nullable=False),
    ref("created_by", "users"),
    Column("created_at", Instant, nullable=False),
    **AUTOINCREMENT,
)

activation_key_groups = Table(
    "activation_key_groups",
    metadata,
    ref("activation_key_id", "activation_keys", key=True),
    ref("group_id", "groups", key=True),
)
