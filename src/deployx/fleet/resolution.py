"""Whom a task or deployment reaches now, and what its owner may not reach: for many tasks in a few queries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from deployx.db.bulk import any_of, ids_parameter
from deployx.db.database import Session


@dataclass(slots=True)
class Targets:
    """The devices of one task, in the order of their ids with whether each is online, and what stands in the way.

    `work` is what they are sent, where that is not the payload as it stands; `sent_as` is the payload's own name.
    """

    devices: dict[int, bool] = field(default_factory=dict)
    refusal: str | None = None
    work: Mapping[str, Any] | None = None
    sent_as: str | None = None

    def ordered(self) -> list[tuple[int, bool]]:
        return sorted(self.devices.items())


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose permission counts."""

    user_id: int
    username: str
    role: str
    is_active: bool


TASK_TARGETS = ("task_target_devices", "task_target_groups", "task_id")
DEPLOYMENT_TARGETS = ("deployment_target_devices", "deployment_target_groups", "deployment_id")


async def resolve(
    session: Session, owners: Mapping[int, Owner], tables: tuple[str, str, str] = TASK_TARGETS
) -> dict[int, Targets]:
    """Resolve the targets of each thing in `owners` (task id or deployment id → owner), each device once.

    A target that is gone, or that the owner may not run on, sets `refusal`; then nothing may be sent to any device.
    """
    found = {identity: Targets() for identity in owners}
    ids = ids_parameter(session, owners)
    direct = await _direct_devices(session, ids, tables)
    via_groups = await _groups(session, ids, tables)
    for identity, owner in owners.items():
        found[identity].refusal = _refused_owner(owner)
    for identity, device_id, name, gone, online in direct:
        _add(
            found[identity], device_id, online, f"Device {name!r} (id {device_id}) no longer exists." if gone else None
        )
    for identity, group_id, name, gone in via_groups:
        if gone:
            _add_refusal(found[identity], f"Group {name!r} (id {group_id}) no longer exists.")
    await _refuse_unpermitted(session, owners, found, direct, via_groups)
    for identity, device_id, online in await _members(session, ids, tables):
        found[identity].devices[device_id] = online
    return found


def _refused_owner(owner: Owner) -> str | None:
    if not owner.is_active:
        return f"The owner {owner.username!r} is deactivated."
    if owner.role == "viewer":
        return f"The owner {owner.username!r} is a viewer, who may not run anything."
    return None


def _add(targets: Targets, device_id: int, online: bool, refusal: str | None) -> None:
    targets.devices[device_id] = online
    if refusal:
        _add_refusal(targets, refusal)


def _add_refusal(targets: Targets, refusal: str) -> None:
    targets.refusal = targets.refusal or refusal


async def _direct_devices(
    session: Session, ids: object, tables: tuple[str, str, str]
) -> Sequence[tuple[int, int, str, bool, bool]]:
    rows = await session.execute(
        text(
            f"SELECT t.{tables[2]} AS id, d.id AS device_id, d.name, d.deleted_at IS NOT NULL AS gone,"
            f" d.status = 'online' AS online FROM {tables[0]} t JOIN devices d ON d.id = t.device_id WHERE "
            + any_of(session, f"t.{tables[2]}", "ids")
        ),
        {"ids": ids},
    )
    return [(row.id, row.device_id, row.name, bool(row.gone), bool(row.online)) for row in rows]


async def _groups(session: Session, ids: object, tables: tuple[str, str, str]) -> Sequence[tuple[int, int, str, bool]]:
    rows = await session.execute(
        text(
            f"SELECT t.{tables[2]} AS id, g.id AS group_id, g.name, g.deleted_at IS NOT NULL AS gone"
            f" FROM {tables[1]} t JOIN groups g ON g.id = t.group_id WHERE " + any_of(session, f"t.{tables[2]}", "ids")
        ),
        {"ids": ids},
    )
    return [(row.id, row.group_id, row.name, bool(row.gone)) for row in rows]


async def _members(session: Session, ids: object, tables: tuple[str, str, str]) -> Sequence[tuple[int, int, bool]]:
    rows = await session.execute(
        text(
            f"SELECT t.{tables[2]} AS id, d.id AS device_id, d.status = 'online' AS online FROM {tables[1]} t"
            " JOIN groups g ON g.id = t.group_id AND g.deleted_at IS NULL"
            " JOIN group_members m ON m.group_id = t.group_id"
            " JOIN devices d ON d.id = m.device_id AND d.deleted_at IS NULL WHERE "
            + any_of(session, f"t.{tables[2]}", "ids")
        ),
        {"ids": ids},
    )
    return [(row.id, row.device_id, bool(row.online)) for row in rows]


async def _refuse_unpermitted(
    session: Session,
    owners: Mapping[int, Owner],
    found: Mapping[int, Targets],
    direct: Sequence[tuple[int, int, str, bool, bool]],
    via_groups: Sequence[tuple[int, int, str, bool]],
) -> None:
    """Owners who are not administrators need `run` on every group, and on every device through one of its groups."""
    limited = {owner.user_id for owner in owners.values() if owner.role != "admin"}
    if not limited:
        return
    grants = await _runnable_groups(session, limited)
    groups_of = await _groups_of(
        session, {device for identity, device, *_ in direct if owners[identity].role != "admin"}
    )
    for identity, group_id, name, _gone in via_groups:
        owner = owners[identity]
        if owner.role != "admin" and group_id not in grants[owner.user_id]:
            _add_refusal(found[identity], f"{owner.username!r} no longer has `run` on group {name!r} (id {group_id}).")
    for identity, device_id, name, *_ in direct:
        owner = owners[identity]
        if owner.role != "admin" and not (groups_of[device_id] & grants[owner.user_id]):
            _add_refusal(
                found[identity], f"{owner.username!r} no longer has `run` on device {name!r} (id {device_id})."
            )


async def _runnable_groups(session: Session, user_ids: set[int]) -> Mapping[int, set[int]]:
    rows = await session.execute(
        text(
            "SELECT a.user_id, a.group_id FROM grants a JOIN groups g ON g.id = a.group_id AND g.deleted_at IS NULL"
            " WHERE a.permission IN ('run', 'manage') AND " + any_of(session, "a.user_id", "ids")
        ),
        {"ids": ids_parameter(session, user_ids)},
    )
    grants: dict[int, set[int]] = defaultdict(set)
    for row in rows:
        grants[row.user_id].add(row.group_id)
    return grants


async def _groups_of(session: Session, device_ids: set[int]) -> Mapping[int, set[int]]:
    rows = await session.execute(
        text("SELECT device_id, group_id FROM group_members WHERE " + any_of(session, "device_id", "ids")),
        {"ids": ids_parameter(session, device_ids)},
    )
    groups: dict[int, set[int]] = defaultdict(set)
    for row in rows:
        groups[row.device_id].add(row.group_id)
    return groups
