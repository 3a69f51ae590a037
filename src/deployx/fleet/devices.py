"""Devices: what is known of each, whether it is online, and its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select, text, update

from deployx.db.bulk import any_of, ids_parameter, moment_parameter, update_rows
from deployx.db.database import Session
from deployx.db.schema import devices, group_members, groups
from deployx.errors import Conflict
from deployx.people import grants
from deployx.people.principal import Principal

KNOWN_FACTS = frozenset(
    {"os", "os_version", "arch", "hostname", "shells", "memory_bytes", "disk_total_bytes", "disk_free_bytes",
     "cpu_count", "agent_version", "python_version"}
)  # fmt: skip
SYSTEMS = frozenset({"linux", "windows", "macos"})
LONGEST_FACT = 200
MOST_INSTALLED = 500


@dataclass(frozen=True, slots=True)
class Connected:
    """A device's new session, as its hello tells it."""

    device_id: int
    session_id: str
    replica_id: str
    journal_id: str
    agent_version: str
    facts: Mapping[str, Any]


def clean_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an agent's facts: known names, short printable strings, numbers. Pure."""
    kept: dict[str, Any] = {}
    if isinstance(facts.get("installed"), list):
        kept["installed"] = [_clean_entry(one) for one in facts["installed"][:MOST_INSTALLED] if isinstance(one, dict)]
    for name in KNOWN_FACTS & facts.keys():
        value = facts[name]
        if isinstance(value, str):
            kept[name] = printable(value)[:LONGEST_FACT]
        elif isinstance(value, list):
            kept[name] = [printable(item)[:20] for item in value[:20] if isinstance(item, str)]
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63):
            kept[name] = value
    return kept


def _clean_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One software that DeployX installed on the device."""
    known = {name: entry.get(name) for name in ("name", "version", "kind", "installed_at")}
    kept: dict[str, Any] = {
        name: printable(value)[:LONGEST_FACT] if isinstance(value, str) else None for name, value in known.items()
    }
    software_id = entry.get("software_id")
    return kept | {"software_id": software_id if type(software_id) is int and 0 < software_id < 2**63 else None}


def printable(value: str) -> str:
    return "".join(character for character in value if character.isprintable())


def told(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """The columns os, os_version, arch, shells and facts for what an agent told."""
    kept = clean_facts(facts)
    system = kept.get("os")
    texts = [kept.get(name) if isinstance(kept.get(name), str) else None for name in ("os_version", "arch")]
    shells = kept.get("shells")
    return (
        system if system in SYSTEMS else None,
        texts[0],
        None if texts[1] is None else texts[1][:40],
        shells if isinstance(shells, list) else [],
        kept,
    )


TOLD = ("os", "os_version", "arch", "shells", "facts")


async def connect(session: Session, came: Sequence[Connected], *, now: datetime) -> None:
    """Record new sessions: each device is online, here, with what it told."""
    columns = ("status", "last_seen", "replica_id", "session_id", "journal_id", "agent_version", *TOLD)
    rows = [
        (
            *(one.device_id, "online", now, one.replica_id, one.session_id, one.journal_id, one.agent_version[:40]),
            *told(one.facts),
        )
        for one in came
    ]
    await update_rows(session, devices, columns, rows, guard="deleted_at IS NULL")


async def disconnect(session: Session, sessions: Sequence[tuple[int, str]], *, now: datetime) -> list[int]:
    """Record ended sessions (device id, session id); answers the devices that are offline now.

    A device whose newer session is recorded already stays online.
    """
    rows = await session.execute(
        text("SELECT id, session_id FROM devices WHERE status = 'online' AND " + any_of(session, "id", "ids")),
        {"ids": ids_parameter(session, [device_id for device_id, _ in sessions])},
    )
    ended = set(sessions)
    gone = [row.id for row in rows if (row.id, row.session_id) in ended]
    await _go_offline(session, gone, now)
    return gone


async def abandon(session: Session, replica_ids: Sequence[str], *, now: datetime) -> list[int]:
    """The devices that these ended processes held are offline; answers which."""
    if not replica_ids:
        return []
    rows = await session.execute(select(devices.c.id).where(devices.c.replica_id.in_(replica_ids)))
    gone = list(rows.scalars())
    await _go_offline(session, gone, now)
    return gone


async def _go_offline(session: Session, device_ids: Sequence[int], now: datetime) -> None:
    await session.execute(
        text(
            "UPDATE devices SET status = 'offline', last_seen = :now, replica_id = NULL, session_id = NULL WHERE "
            + any_of(session, "id", "ids")
        ),
        {"ids": ids_parameter(session, device_ids), "now": moment_parameter(session, now)},
    )


async def seen(session: Session, when: Sequence[tuple[int, datetime]]) -> None:
    """Write when devices were last heard of."""
    await update_rows(session, devices, ("last_seen",), when, guard="status = 'online'")


async def update_facts(session: Session, reports: Sequence[tuple[int, Mapping[str, Any]]], *, now: datetime) -> None:
    rows = [(device_id, now, *told(facts)) for device_id, facts in reports]
    await update_rows(session, devices, ("last_seen", *TOLD), rows)


def listed(
    principal: Principal, *, status: str | None, group_id: int | None, os: str | None, search: str | None
) -> Select[Any]:
    """The devices a caller may see, filtered, newest first."""
    query = select(devices).where(devices.c.id.in_(grants.visible_devices(principal))).order_by(devices.c.id.desc())
    if status is not None:
        query = query.where(devices.c.status == status)
    if os is not None:
        query = query.where(devices.c.os == os)
    if search:
        query = query.where(devices.c.name.icontains(search, autoescape=True))
    if group_id is not None:
        members = select(group_members.c.device_id).where(
            group_members.c.group_id == group_id, group_members.c.group_id.in_(grants.visible_groups(principal))
        )
        query = query.where(devices.c.id.in_(members))
    return query


async def groups_of(session: Session, principal: Principal, device_ids: Sequence[int]) -> dict[int, list[int]]:
    """The groups of these devices that the caller may see, by device, ascending."""
    found: dict[int, list[int]] = {device_id: [] for device_id in device_ids}
    rows = await session.execute(
        select(group_members)
        .join(groups, (groups.c.id == group_members.c.group_id) & groups.c.deleted_at.is_(None))
        .where(
            group_members.c.device_id.in_(device_ids), group_members.c.group_id.in_(grants.visible_groups(principal))
        )
        .order_by(group_members.c.group_id)
    )
    for row in rows:
        found[row.device_id].append(row.group_id)
    return found


async def rename(session: Session, device_id: int, name: str) -> None:
    """Give a device another name. Raises Conflict where it is taken."""
    query = select(devices.c.id).where(
        devices.c.name == name, devices.c.deleted_at.is_(None), devices.c.id != device_id
    )
    if (await session.execute(query)).first() is not None:
        raise Conflict(f"Another device is named {name!r}: choose another name.")
    await _change(session, device_id, name=name)


async def relabel(session: Session, device_id: int, labels: Mapping[str, str]) -> None:
    await _change(session, device_id, labels=dict(labels))


async def revoke(session: Session, device_id: int, *, now: datetime) -> None:
    """Remove a device: its key opens no session any more, its name is free."""
    await _change(session, device_id, deleted_at=now, status="offline")


async def _change(session: Session, device_id: int, **values: Any) -> None:
    statement = update(devices).where(devices.c.id == device_id)
    await session.execute(statement.values(version=devices.c.version + 1, **values))
