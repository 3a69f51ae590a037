"""Tables of the installation and its people: who may sign in, and what they did."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Index, Integer, LargeBinary, String, Table

from deployx.db.schema.base import AUTOINCREMENT, Id, id_column, index_where, metadata, ref
from deployx.db.types import Instant

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

users = Table(
    "users",
    metadata,
    id_column(),
    Column("username", String(200), nullable=False),
    Column("password_hash", String(200), nullable=False),
    Column("role", String(20), nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("deleted_at", Instant),
    index_where("uq_users_username_live", "username", where="deleted_at IS NULL", unique=True),
    **AUTOINCREMENT,
)

access_tokens = Table(
    "access_tokens",
    metadata,
    id_column(),
    ref("user_id", "users", index=True),
    Column("kind", String(10), nullable=False),  # session | api
    Column("name", String(200)),
    Column("token_hash", LargeBinary(32), nullable=False, unique=True),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant),
    Column("last_used_at", Instant),
    **AUTOINCREMENT,
)

login_failures = Table(
    "login_failures",
    metadata,
    id_column(),
    Column("account", String(200), nullable=False),
    Column("address", String(64), nullable=False),
    Column("at", Instant, nullable=False),
    Index("ix_login_failures_account_address_at", "account", "address", "at"),
    **AUTOINCREMENT,
)

audit_events = Table(
    "audit_events",
    metadata,
    id_column(),
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
    **AUTOINCREMENT,
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    ref("user_id", "users", key=True),
    Column("key", String(200), primary_key=True),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("status", Integer),
    Column("headers", JSON(none_as_null=True)),
    Column("body", LargeBinary),
    Column("created_at", Instant, nullable=False, index=True),
)
