"""Tables of what is deployed: stored files, the software catalogue, and what uses which."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, Integer, String, Table, text

from deployx.db.schema.base import AUTOINCREMENT, Id, id_column, metadata, ref
from deployx.db.types import Instant

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
)
"""Contents that are stored, once each; where they lie follows from the digest."""

files = Table(
    "files",
    metadata,
    id_column(),
    Column("filename", String(255), nullable=False),
    Column("sha256", String(64), ForeignKey("blobs.sha256"), nullable=False, index=True),
    ref("uploaded_by", "users"),
    Column("created_at", Instant, nullable=False),
    Index("ix_files_uploaded_by", "uploaded_by", "id"),
    **AUTOINCREMENT,
)

software = Table(
    "software",
    metadata,
    id_column(),
    Column("name", String(200), nullable=False),
    Column("version", String(200), nullable=False),
    Column("description", String(2000), nullable=False),
    Column("installers", JSON(none_as_null=True), nullable=False),
    Column("revision", Integer, nullable=False, server_default=text("1")),
    ref("created_by", "users"),
    Column("created_at", Instant, nullable=False),
    Index("uq_software_name_version", "name", "version", unique=True),
    **AUTOINCREMENT,
)

software_dependencies = Table(
    "software_dependencies",
    metadata,
    ref("software_id", "software", key=True),
    ref("depends_on_id", "software", key=True, index=True),
)

software_files = Table(
    "software_files",
    metadata,
    ref("software_id", "software", key=True),
    ref("file_id", "files", key=True, index=True),
)

payload_files = Table(
    "payload_files",
    metadata,
    ref("payload_id", "payloads", key=True),
    Column("file_id", Id, primary_key=True, index=True),
)
"""Which files a payload names. No foreign key: the payload of an ended deployment outlives the file."""

payload_software = Table(
    "payload_software",
    metadata,
    ref("payload_id", "payloads", key=True),
    Column("software_id", Id, primary_key=True, index=True),
)
"""Which software a payload names. No foreign key: the payload of an ended deployment outlives the entry."""
